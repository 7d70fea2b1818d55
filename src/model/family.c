#include "model/family.h"

#include "gguf/blocks.h"

#include <math.h>
#include <stdio.h>

/* Far above every model there is; small enough that no product of two of them overflows 64 bits. */
enum { MAX_LAYERS = 1024, MAX_EMBD = 1 << 18, MAX_HEADS = 1024, MAX_HEAD_DIM = 512, MAX_FF = 1 << 20, MAX_CTX = 1 << 27 };
enum { VECTOR = 0 };               /* n_out of a tensor with one axis; a matrix of one row has two */

typedef struct key_reader {
    const tmx_file *file;
    const char *architecture;
    tmx_error *err;
} key_reader;

static const char *key_name(const key_reader *r, const char *suffix, char key[96])
{
    snprintf(key, 96, "%s.%s", r->architecture, suffix);
    return key;
}

/* fallback < 0: the key is required. */
static tmx_status read_count(const key_reader *r, const char *suffix, int64_t fallback, int32_t max, int32_t *value)
{
    char key[96];
    uint32_t n;
    key_name(r, suffix, key);
    if (gguf_is_array(r->file, key)) {
        return refuse(r->err, TMX_E_UNSUPPORTED, "%s: %s is an array: layers of different sizes are not supported",
                      gguf_label(r->file), key);
    }
    if (fallback < 0) TRY(gguf_get_u32(r->file, key, &n, r->err));
    else TRY(gguf_get_u32_or(r->file, key, (uint32_t)fallback, &n, r->err));
    if (n < 1 || n > (uint32_t)max) {
        return refuse(r->err, TMX_E_FORMAT, "%s: %s is %u, expected 1..%d", gguf_label(r->file), key, n, max);
    }
    *value = (int32_t)n;
    return TMX_OK;
}

static tmx_status read_positive(const key_reader *r, const char *suffix, float fallback, float *value)
{
    char key[96];
    key_name(r, suffix, key);
    if (fallback == 0) TRY(gguf_get_f32(r->file, key, value, r->err));
    else TRY(gguf_get_f32_or(r->file, key, fallback, value, r->err));
    if (!isfinite(*value) || *value <= 0) {
        return refuse(r->err, TMX_E_FORMAT, "%s: %s is %g, expected a positive number", gguf_label(r->file), key, (double)*value);
    }
    return TMX_OK;
}

tmx_status family_read_common(const tmx_file *file, const char *architecture, model_shape *s, tmx_error *err)
{
    const key_reader r = { .file = file, .architecture = architecture, .err = err };
    int32_t value_dim;
    TRY(read_count(&r, "block_count", -1, MAX_LAYERS, &s->n_layers));
    TRY(read_count(&r, "embedding_length", -1, MAX_EMBD, &s->n_embd));
    TRY(read_count(&r, "attention.head_count", -1, MAX_HEADS, &s->n_heads));
    TRY(read_count(&r, "attention.head_count_kv", s->n_heads, MAX_HEADS, &s->n_kv_heads));
    TRY(read_count(&r, "feed_forward_length", -1, MAX_FF, &s->n_ff));
    TRY(read_count(&r, "context_length", -1, MAX_CTX, &s->n_ctx_train));
    TRY(read_count(&r, "attention.key_length", s->n_embd / s->n_heads, MAX_HEAD_DIM, &s->head_dim));
    TRY(read_count(&r, "attention.value_length", s->head_dim, MAX_HEAD_DIM, &value_dim));
    TRY(read_count(&r, "rope.dimension_count", s->head_dim, MAX_HEAD_DIM, &s->n_rot));
    TRY(read_positive(&r, "attention.layer_norm_rms_epsilon", 0, &s->rms_eps));
    TRY(read_positive(&r, "rope.freq_base", 10000.0f, &s->rope_freq_base));
    const char *path = gguf_label(file);
    if (s->n_heads % s->n_kv_heads != 0) {
        return refuse(err, TMX_E_FORMAT, "%s: %s.attention.head_count_kv %d does not divide head_count %d",
                      path, architecture, s->n_kv_heads, s->n_heads);
    }
    if (value_dim != s->head_dim) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: %s.attention.value_length %d differs from key_length %d",
                      path, architecture, value_dim, s->head_dim);
    }
    if (s->n_rot > s->head_dim || s->n_rot % 2 != 0) {
        return refuse(err, TMX_E_FORMAT, "%s: %s.rope.dimension_count is %d, expected an even number up to head_dim %d",
                      path, architecture, s->n_rot, s->head_dim);
    }
    return TMX_OK;
}

void tensor_shape_text(char text[64], int32_t n_dims, const int64_t *shape)
{
    size_t at = 0;
    for (int32_t i = 0; i < n_dims && at < 48; i++) at += (size_t)snprintf(text + at, 64 - at, "[%lld]", (long long)shape[i]);
}

static tmx_status find_tensor(const tmx_file *file, model_tensors *t, const char *name, int64_t n_out, int64_t n_in,
                              const gguf_tensor **found, tmx_error *err)
{
    const gguf_tensor *tensor = gguf_tensor_find(file, name);
    if (tensor == NULL) return refuse(err, TMX_E_FORMAT, "%s: tensor %s is missing", gguf_label(file), name);
    const int64_t expected[2] = { n_out, n_in };
    const int32_t n_dims = n_out == VECTOR ? 1 : 2;
    const bool is_right = tensor->n_dims == n_dims && tensor->shape[n_dims - 1] == n_in && (n_dims == 1 || tensor->shape[0] == n_out);
    if (!is_right) {
        char have[64], want[64];
        tensor_shape_text(have, tensor->n_dims, tensor->shape);
        tensor_shape_text(want, n_dims, expected + 2 - n_dims);
        return refuse(err, TMX_E_FORMAT, "%s: tensor %s: shape %s, expected %s from the hyper-parameters",
                      gguf_label(file), name, have, want);
    }
    const block_format *format = block_format_find(tensor->type);
    if (format == NULL || format->to_f32 == NULL) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: tensor %s: block type %s is not supported", gguf_label(file), name,
                      format != NULL ? format->name : "?");
    }
    t->is_used[tensor - gguf_tensor_at(file, 0)] = true;
    *found = tensor;
    return TMX_OK;
}

tmx_status family_find_layer(const tmx_file *file, model_tensors *t, int32_t layer, const char *name,
                             int64_t n_out, int64_t n_in, const gguf_tensor **tensor, tmx_error *err)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    return find_tensor(file, t, full, n_out, n_in, tensor, err);
}

static tmx_status check_divisors(const tmx_file *file, const gguf_tensor *tensor, int32_t n, tmx_error *err)
{
    float divisors[MAX_HEAD_DIM / 2];
    block_format_find(tensor->type)->to_f32(tensor->data, divisors, (size_t)n);
    for (int32_t i = 0; i < n; i++) {
        if (isfinite(divisors[i]) && divisors[i] > 0) continue;
        return refuse(err, TMX_E_FORMAT, "%s: tensor %s: element %d is %g, expected a positive number", gguf_label(file),
                      tensor->name, i, (double)divisors[i]);
    }
    return TMX_OK;
}

tmx_status family_find_ends(const tmx_file *file, model_tensors *t, tmx_error *err)
{
    const model_shape *s = &t->shape;
    TRY(find_tensor(file, t, "token_embd.weight", s->n_vocab, s->n_embd, &t->token_embd, err));
    TRY(find_tensor(file, t, "output_norm.weight", VECTOR, s->n_embd, &t->output_norm, err));
    t->lm_head = t->token_embd;
    if (gguf_tensor_find(file, "output.weight") != NULL) {
        TRY(find_tensor(file, t, "output.weight", s->n_vocab, s->n_embd, &t->lm_head, err));
    }
    if (gguf_tensor_find(file, "rope_freqs.weight") != NULL) {
        TRY(find_tensor(file, t, "rope_freqs.weight", VECTOR, s->n_rot / 2, &t->rope_freqs, err));
        TRY(check_divisors(file, t->rope_freqs, s->n_rot / 2, err));
    }
    return TMX_OK;
}
