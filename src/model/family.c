#include "model/family.h"

#include "gguf/blocks.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Far above every model there is; small enough that no product of two of them overflows 64 bits. */
enum { MAX_LAYERS = 1024, MAX_EMBD = 1 << 18, MAX_HEADS = 1024, MAX_HEAD_DIM = 2 * ROPE_MAX_PAIRS, MAX_FF = 1 << 20, MAX_CTX = 1 << 27 };
#define ROPE_DIVISORS_SHORT "rope_factors_short.weight"
#define ROPE_DIVISORS_LONG "rope_factors_long.weight"
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

static tmx_status refuse_experts(const key_reader *r)
{
    char key[96];
    uint32_t n_experts;
    TRY(gguf_get_u32_or(r->file, key_name(r, "expert_count", key), 0, &n_experts, r->err));
    if (n_experts == 0) return TMX_OK;
    return refuse(r->err, TMX_E_UNSUPPORTED, "%s: %s %u: mixture of experts is not supported in this family",
                  gguf_label(r->file), key, n_experts);
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
    const bool has_divisors = gguf_tensor_find(file, ROPE_DIVISORS_LONG) != NULL;
    TRY(rope_scaling_read(file, architecture, s->n_ctx_train, has_divisors, &s->scaling, err));
    return s->n_experts > 0 ? TMX_OK : refuse_experts(&r);
}

tmx_status family_read_window(const tmx_file *file, const char *architecture, model_shape *s, tmx_error *err)
{
    const key_reader r = { .file = file, .architecture = architecture, .err = err };
    char key[96];
    uint32_t n_window;
    TRY(gguf_get_u32_or(file, key_name(&r, "attention.sliding_window", key), 0, &n_window, err));
    if (n_window < (uint32_t)s->n_ctx_train) s->n_window = (int32_t)n_window;
    return TMX_OK;
}

tmx_status family_refuse_window(const tmx_file *file, const char *architecture, model_shape *s, tmx_error *err)
{
    TRY(family_read_window(file, architecture, s, err));
    if (s->n_window == 0) return TMX_OK;
    return refuse(err, TMX_E_UNSUPPORTED, "%s: %s.attention.sliding_window %d: a sliding window is not supported in this family",
                  gguf_label(file), architecture, s->n_window);
}

void tensor_shape_text(char text[64], int32_t n_dims, const int64_t *shape)
{
    size_t at = 0;
    for (int32_t i = 0; i < n_dims && at < 48; i++) at += (size_t)snprintf(text + at, 64 - at, "[%lld]", (long long)shape[i]);
}

static tmx_status find_shaped(const tmx_file *file, model_tensors *t, const char *name, int32_t n_dims, const int64_t *expected,
                              const gguf_tensor **found, tmx_error *err)
{
    const gguf_tensor *tensor = gguf_tensor_find(file, name);
    if (tensor == NULL) return refuse(err, TMX_E_FORMAT, "%s: tensor %s is missing", gguf_label(file), name);
    if (tensor->n_dims != n_dims || memcmp(tensor->shape, expected, (size_t)n_dims * sizeof *expected) != 0) {
        char have[64], want[64];
        tensor_shape_text(have, tensor->n_dims, tensor->shape);
        tensor_shape_text(want, n_dims, expected);
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

static tmx_status find_tensor(const tmx_file *file, model_tensors *t, const char *name, int64_t n_out, int64_t n_in,
                              const gguf_tensor **found, tmx_error *err)
{
    const int64_t expected[2] = { n_out, n_in };
    return find_shaped(file, t, name, n_out == VECTOR ? 1 : 2, n_out == VECTOR ? expected + 1 : expected, found, err);
}

tmx_status family_find_layer(const tmx_file *file, model_tensors *t, int32_t layer, const char *name,
                             int64_t n_out, int64_t n_in, const gguf_tensor **tensor, tmx_error *err)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    return find_tensor(file, t, full, n_out, n_in, tensor, err);
}

tmx_status family_find_attention(const tmx_file *file, model_tensors *t, int32_t l, tmx_error *err)
{
    const model_shape *s = &t->shape;
    const int64_t n_q = (int64_t)s->n_heads * s->head_dim, n_kv = (int64_t)s->n_kv_heads * s->head_dim;
    layer_tensors *layer = &t->layers[l];
    TRY(family_find_layer(file, t, l, "attn_norm.weight", VECTOR, s->n_embd, &layer->attn_norm, err));
    TRY(family_find_layer(file, t, l, "attn_q.weight", n_q, s->n_embd, &layer->q, err));
    TRY(family_find_layer(file, t, l, "attn_k.weight", n_kv, s->n_embd, &layer->k, err));
    TRY(family_find_layer(file, t, l, "attn_v.weight", n_kv, s->n_embd, &layer->v, err));
    TRY(family_find_layer(file, t, l, "attn_output.weight", s->n_embd, n_q, &layer->attn_output, err));
    return family_find_layer(file, t, l, "ffn_norm.weight", VECTOR, s->n_embd, &layer->ffn_norm, err);
}

tmx_status family_find_ffn(const tmx_file *file, model_tensors *t, int32_t l, tmx_error *err)
{
    const model_shape *s = &t->shape;
    layer_tensors *layer = &t->layers[l];
    TRY(family_find_layer(file, t, l, "ffn_gate.weight", s->n_ff, s->n_embd, &layer->gate, err));
    TRY(family_find_layer(file, t, l, "ffn_up.weight", s->n_ff, s->n_embd, &layer->up, err));
    return family_find_layer(file, t, l, "ffn_down.weight", s->n_embd, s->n_ff, &layer->down, err);
}

tmx_status family_find_head_norms(const tmx_file *file, model_tensors *t, int32_t l, tmx_error *err)
{
    TRY(family_find_layer(file, t, l, "attn_q_norm.weight", VECTOR, t->shape.head_dim, &t->layers[l].q_norm, err));
    return family_find_layer(file, t, l, "attn_k_norm.weight", VECTOR, t->shape.head_dim, &t->layers[l].k_norm, err);
}

tmx_status family_find_experts(const tmx_file *file, model_tensors *t, int32_t l, tmx_error *err)
{
    const model_shape *s = &t->shape;
    static const char *const names[3] = { "gate", "up", "down" };
    layer_tensors *layer = &t->layers[l];
    TRY(family_find_layer(file, t, l, "ffn_gate_inp.weight", s->n_experts, s->n_embd, &layer->router, err));
    layer->experts = &t->parts[t->n_parts];
    for (int i = 0; i < 3; i++) {
        const int64_t expected[3] = { s->n_experts, i < 2 ? s->n_ff : s->n_embd, i < 2 ? s->n_embd : s->n_ff };
        const gguf_tensor *stack;
        char name[64];
        snprintf(name, sizeof name, "blk.%d.ffn_%s_exps.weight", l, names[i]);
        TRY(find_shaped(file, t, name, 3, expected, &stack, err));
        for (int32_t e = 0; e < s->n_experts; e++) family_take_rows(t, stack, e * expected[1], expected[1]);
    }
    return TMX_OK;
}

const gguf_tensor *family_take_rows(model_tensors *t, const gguf_tensor *whole, int64_t begin, int64_t n)
{
    assert(t->n_parts < t->max_parts);
    tensor_rows *part = &t->parts[t->n_parts++];
    *part = (tensor_rows){ .rows = *whole, .whole = whole, .begin = begin };
    part->rows.n_dims = 2;
    part->rows.shape[0] = n;
    part->rows.shape[1] = whole->shape[whole->n_dims - 1];
    part->rows.shape[2] = 1;
    tensor_rows_follow(part);
    return &part->rows;
}

void tensor_rows_follow(tensor_rows *part)
{
    const size_t row_bytes = block_row_bytes(block_format_find(part->whole->type), (size_t)part->rows.shape[1]);
    part->rows.type = part->whole->type;
    part->rows.n_bytes = (uint64_t)part->rows.shape[0] * row_bytes;
    part->rows.data = (const char *)part->whole->data + (size_t)part->begin * row_bytes;
}

static tmx_status check_divisors(const tmx_file *file, const gguf_tensor *tensor, int32_t n, tmx_error *err)
{
    float divisors[ROPE_MAX_PAIRS];
    block_format_find(tensor->type)->to_f32(tensor->data, divisors, (size_t)n);
    for (int32_t i = 0; i < n; i++) {
        if (isfinite(divisors[i]) && divisors[i] > 0) continue;
        return refuse(err, TMX_E_FORMAT, "%s: tensor %s: element %d is %g, expected a positive number", gguf_label(file),
                      tensor->name, i, (double)divisors[i]);
    }
    return TMX_OK;
}

static tmx_status find_divisors(const tmx_file *file, model_tensors *t, const char *name, const gguf_tensor **found, tmx_error *err)
{
    if (gguf_tensor_find(file, name) == NULL) return TMX_OK;
    TRY(find_tensor(file, t, name, VECTOR, t->shape.n_rot / 2, found, err));
    return check_divisors(file, *found, t->shape.n_rot / 2, err);
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
    if (s->scaling.kind != ROPE_LONG) return find_divisors(file, t, "rope_freqs.weight", &t->rope_freqs, err);
    TRY(find_divisors(file, t, ROPE_DIVISORS_SHORT, &t->rope_freqs, err));
    TRY(find_divisors(file, t, ROPE_DIVISORS_LONG, &t->rope_freqs_long, err));
    if (t->rope_freqs != NULL) return TMX_OK;
    return refuse(err, TMX_E_FORMAT, "%s: tensor " ROPE_DIVISORS_LONG " has no " ROPE_DIVISORS_SHORT " beside it", gguf_label(file));
}
