#include "model/model.h"

#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/status.h"
#include "gguf/blocks.h"
#include "model/lora.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_CTX = 1 << 27,             /* tokens of a session whose RoPE base lifts the model's own limit */
    FUSED_PARTS = 5,               /* q, k, v, gate, up of a layer */
};

static void copy_string(char *to, size_t size, gguf_string from)
{
    const size_t n = from.n_bytes < size - 1 ? from.n_bytes : size - 1;
    memcpy(to, from.data, n);
    to[n] = '\0';
}

static tmx_status refuse_adapter(const tmx_file *file, tmx_error *err)
{
    gguf_string type = { 0 };
    if (gguf_has(file, "general.type")) TRY(gguf_get_string(file, "general.type", &type, err));
    if (type.n_bytes != 7 || memcmp(type.data, "adapter", 7) != 0) return TMX_OK;
    return refuse(err, TMX_E_UNSUPPORTED, "%s: this is an adapter, which is given beside the model it belongs to",
                  gguf_label(file));
}

static tmx_status read_name(const tmx_file *file, char *name, size_t size, tmx_error *err)
{
    gguf_string text;
    if (!gguf_has(file, "general.name")) return TMX_OK;
    TRY(gguf_get_string(file, "general.name", &text, err));
    copy_string(name, size, text);
    return TMX_OK;
}

static tmx_status read_n_vocab(const tmx_file *file, int32_t *n_vocab, tmx_error *err)
{
    gguf_array tokens;
    TRY(gguf_get_array(file, "tokenizer.ggml.tokens", GGUF_STRING, &tokens, err));
    if (tokens.n < 1 || tokens.n > (1u << 24)) {
        return refuse(err, TMX_E_FORMAT, "%s: tokenizer.ggml.tokens has %llu entries, expected 1..%u",
                      gguf_label(file), (unsigned long long)tokens.n, 1u << 24);
    }
    *n_vocab = (int32_t)tokens.n;
    return TMX_OK;
}

/* A tensor inside a layer that the family did not ask for would change the result if it were known (a bias, a second
 * norm): refused.  Elsewhere it is worth a remark.  Old converters left RoPE tables behind, which say nothing new. */
static tmx_status check_extras(const tmx_file *file, const model_tensors *t, const tmx_model_params *params, tmx_error *err)
{
    for (int32_t i = 0; i < tmx_file_n_tensors(file); i++) {
        if (t->is_used[i]) continue;
        const char *name = gguf_tensor_at(file, i)->name;
        if (strncmp(name, "blk.", 4) == 0 && strstr(name, "rot_embd") == NULL) {
            return refuse(err, TMX_E_UNSUPPORTED, "%s: tensor %s is not part of a %s layer as this program runs it",
                          gguf_label(file), name, t->family->architecture);
        }
        if (params->warn != NULL) {
            char line[192];
            snprintf(line, sizeof line, "tensor %s is not used by this architecture; ignored", name);
            params->warn(params->warn_ctx, line);
        }
    }
    return TMX_OK;
}

static tmx_status set_rope_freq_base(model_shape *shape, float base, tmx_error *err)
{
    if (!isfinite(base) || base < 0) return refuse(err, TMX_E_ARG, "rope_freq_base: %g is not a positive number", (double)base);
    if (base > 0) shape->rope_freq_base = base;
    return TMX_OK;
}

static void free_tensors(model_tensors *t)
{
    mem_free(t->is_used);
    mem_free(t->layers);
    mem_free(t->parts);
}

/* Everything that can be known without packing: shape, tensors, extras.  The caller frees t, also after a failure. */
static tmx_status read_tensors(const tmx_file *file, const tmx_model_params *params, model_tensors *t, tmx_error *err)
{
    TRY(refuse_adapter(file, err));
    TRY(model_family_find(file, &t->family, err));
    TRY(read_name(file, t->name, sizeof t->name, err));
    TRY(t->family->read_shape(file, &t->shape, err));
    t->file_rope_freq_base = t->shape.rope_freq_base;
    TRY(set_rope_freq_base(&t->shape, params->rope_freq_base, err));
    TRY(read_n_vocab(file, &t->shape.n_vocab, err));
    const int32_t n_layers = t->shape.n_layers, n_tensors = tmx_file_n_tensors(file);
    if (n_tensors < n_layers) {
        return refuse(err, TMX_E_FORMAT, "%s: %d tensors cannot hold block_count %d layers", gguf_label(file), n_tensors, n_layers);
    }
    t->layers = mem_alloc((size_t)n_layers, sizeof *t->layers);
    t->is_used = mem_alloc((size_t)n_tensors, sizeof *t->is_used);
    t->max_parts = n_layers * (t->family->is_fused ? FUSED_PARTS : 3 * t->shape.n_experts);        /* 1024 * 3 * 1024 at most */
    if (t->max_parts > 0) t->parts = mem_alloc((size_t)t->max_parts, sizeof *t->parts);
    if (t->layers == NULL || t->is_used == NULL || (t->parts == NULL && t->max_parts > 0)) {
        return refuse(err, TMX_E_MEMORY, "%s: out of memory for %d layers", gguf_label(file), n_layers);
    }
    TRY(t->family->find_tensors(file, t, err));
    return check_extras(file, t, params, err);
}

static uint64_t count_params(const tmx_file *file)
{
    uint64_t n = 0;
    for (int32_t i = 0; i < tmx_file_n_tensors(file); i++) {
        const gguf_tensor *t = gguf_tensor_at(file, i);
        uint64_t product = 1;
        for (int32_t d = 0; d < t->n_dims; d++) product *= (uint64_t)t->shape[d];   /* bounded by the file: cannot overflow */
        n += product;
    }
    return n;
}

static void fill_info(tmx_model_info *info, const model_shape *s, const tmx_file *file, const tmx_model_params *params,
                      const lora_set *loras)
{
    info->n_layers = s->n_layers;
    info->n_embd = s->n_embd;
    info->n_heads = s->n_heads;
    info->n_kv_heads = s->n_kv_heads;
    info->head_dim = s->head_dim;
    info->n_ff = s->n_ff;
    info->n_vocab = s->n_vocab;
    info->n_ctx_train = s->n_ctx_train;
    info->rope_freq_base = s->rope_freq_base;
    info->rms_eps = s->rms_eps;
    info->n_window = s->n_window;
    info->window_period = s->window_period;
    info->n_experts = s->n_experts;
    info->n_experts_used = s->n_experts_used;
    info->n_params = count_params(file);
    info->n_ctx_max = params->rope_freq_base > 0 ? MAX_CTX : s->n_ctx_train;
    info->n_loras = params->n_loras;
    info->n_merged = lora_set_n_merged(loras);
}

static const tmx_model_params default_params;

tmx_status tmx_model_probe_file(const tmx_file *file, const tmx_model_params *given, tmx_model_info *info, tmx_error *err)
{
    if (file == NULL || info == NULL) return refuse(err, TMX_E_ARG, "tmx_model_probe_file: NULL argument");
    tmx_model_params params = given != NULL ? *given : default_params;
    params.warn = NULL;
    model_tensors t = { 0 };
    vocab *v = NULL;
    lora_set *loras = NULL;
    tmx_status status = read_tensors(file, &params, &t, err);
    if (status == TMX_OK) status = vocab_create(&v, file, err);
    if (status == TMX_OK) status = lora_set_read(&loras, &params, file, &t, err);
    if (status == TMX_OK) {
        *info = (tmx_model_info){ .architecture = t.family->architecture, .name = "", .fingerprint = "", .device = "cpu" };
        fill_info(info, &t.shape, file, &params, loras);
    }
    lora_set_free(loras);
    vocab_free(v);
    free_tensors(&t);
    return status;
}

/* The file's fingerprint; when adapters or another RoPE base make another model of it, a hash over all of them. */
static void fingerprint(tmx_model *m, const lora_set *loras)
{
    gguf_fingerprint(m->file, m->fingerprint);
    const float base = m->tensors.shape.rope_freq_base;
    if (loras == NULL && base == m->tensors.file_rope_freq_base) return;
    sha256 hash;
    sha256_init(&hash);
    sha256_add(&hash, m->fingerprint, 64);
    lora_set_hash(loras, &hash);
    if (base != m->tensors.file_rope_freq_base) sha256_add(&hash, &base, sizeof base);
    sha256_hex(&hash, m->fingerprint);
}

/* ---------------------------------------------------------------- norms, biases, RoPE tables: small, f32, made once */

typedef struct vectors {
    float *at;                     /* NULL: only count */
    size_t n;
} vectors;

static const float *take(vectors *v, const gguf_tensor *t, size_t n)
{
    if (t == NULL) return NULL;
    float *at = v->at == NULL ? NULL : v->at + v->n;
    if (at != NULL) block_format_find(t->type)->to_f32(t->data, at, n);
    v->n += n;
    return at;
}

static const float *take_bias(vectors *v, const layer_tensors *t, size_t n_q, size_t n_kv)
{
    const float *q = take(v, t->bias[0], n_q);
    take(v, t->bias[1], n_kv);
    take(v, t->bias[2], n_kv);
    return q;
}

static rope_table take_rope(vectors *v, const model_shape *s, float base, const rope_scaling *scaling, const gguf_tensor *divisors)
{
    float divisor[ROPE_MAX_PAIRS];
    const size_t n_pairs = (size_t)s->n_rot / 2;
    if (divisors != NULL) block_format_find(divisors->type)->to_f32(divisors->data, divisor, n_pairs);
    float *at = v->at == NULL ? NULL : v->at + v->n;
    if (at != NULL) rope_frequencies(base, s->n_rot, scaling, divisors != NULL ? divisor : NULL, at);
    v->n += n_pairs;
    return (rope_table){ .frequency = at, .n_pairs = s->n_rot / 2, .factor = scaling->attention_factor };
}

static void take_vectors(tmx_model *m, vectors *v)
{
    static const rope_scaling unscaled = { .factor = 1, .attention_factor = 1 };
    const model_tensors *t = &m->tensors;
    const model_shape *s = &t->shape;
    const size_t n_embd = (size_t)s->n_embd, head_dim = (size_t)s->head_dim;
    for (int32_t l = 0; l < s->n_layers; l++) {
        model_layer *layer = &m->layers[l];
        const layer_tensors *from = &t->layers[l];
        layer->attn_norm = take(v, from->attn_norm, n_embd);
        layer->ffn_norm = take(v, from->ffn_norm, n_embd);
        layer->attn_branch_norm = take(v, from->attn_branch_norm, n_embd);
        layer->ffn_branch_norm = take(v, from->ffn_branch_norm, n_embd);
        layer->q_norm = take(v, from->q_norm, head_dim);
        layer->k_norm = take(v, from->k_norm, head_dim);
        layer->bias = take_bias(v, from, (size_t)s->n_heads * head_dim, (size_t)s->n_kv_heads * head_dim);
    }
    m->output_norm = take(v, t->output_norm, n_embd);
    m->rope = m->rope_long = m->rope_window = take_rope(v, s, s->rope_freq_base, &s->scaling, t->rope_freqs);
    if (t->rope_freqs_long != NULL) m->rope_long = take_rope(v, s, s->rope_freq_base, &s->scaling, t->rope_freqs_long);
    if (s->window_freq_base != 0) m->rope_window = take_rope(v, s, s->window_freq_base, &unscaled, NULL);
}

static tmx_status expand_vectors(tmx_model *m, tmx_error *err)
{
    vectors v = { 0 };
    take_vectors(m, &v);
    m->vectors = v.at = mem_alloc(v.n, sizeof *v.at);
    if (v.at == NULL) return refuse(err, TMX_E_MEMORY, "%s: out of memory for the norm weights", gguf_label(m->file));
    v.n = 0;
    take_vectors(m, &v);
    return TMX_OK;
}

const rope_table *model_rope(const tmx_model *m, int32_t layer, int32_t n_ctx)
{
    const model_shape *s = &m->tensors.shape;
    if (s->window_freq_base != 0 && tmx_model_layer_has_window(&m->info, layer)) return &m->rope_window;
    return s->scaling.kind == ROPE_LONG && n_ctx > s->scaling.n_ctx_original ? &m->rope_long : &m->rope;
}

static tmx_status pack(tmx_model *m, matmul_weight **weight, const gguf_tensor *const *tensors, int32_t n, tmx_pool *pool,
                       tmx_error *err)
{
    matmul_source sources[3];
    for (int32_t i = 0; i < n; i++) sources[i] = tensor_source(tensors[i]);
    return matmul_weight_create(weight, sources, n, m->compute, m->isa, MATMUL_AUTO, pool, err);
}

static tmx_status pack_experts(tmx_model *m, model_layer *layer, tmx_pool *pool, tmx_error *err)
{
    const size_t n = (size_t)m->info.n_experts;
    const tensor_rows *gate = layer->tensors->experts, *up = gate + n, *down = up + n;
    TRY(pack(m, &layer->router, (const gguf_tensor *[]){ layer->tensors->router }, 1, pool, err));
    layer->experts = mem_alloc(n, sizeof *layer->experts);
    if (layer->experts == NULL) return refuse(err, TMX_E_MEMORY, "%s: out of memory for %zu experts", gguf_label(m->file), n);
    for (size_t e = 0; e < n; e++) {
        TRY(pack(m, &layer->experts[e].gate_up, (const gguf_tensor *[]){ &gate[e].rows, &up[e].rows }, 2, pool, err));
        TRY(pack(m, &layer->experts[e].down, (const gguf_tensor *[]){ &down[e].rows }, 1, pool, err));
    }
    return TMX_OK;
}

static void free_experts(model_layer *layer, int32_t n)
{
    for (int32_t e = 0; layer->experts != NULL && e < n; e++) {
        matmul_weight_free(layer->experts[e].gate_up);
        matmul_weight_free(layer->experts[e].down);
    }
    matmul_weight_free(layer->router);
    mem_free(layer->experts);
}

static tmx_status pack_weights(tmx_model *m, tmx_pool *pool, tmx_error *err)
{
    const int32_t n_layers = m->info.n_layers;
    for (int32_t l = 0; l < n_layers; l++) {
        model_layer *layer = &m->layers[l];
        const layer_tensors *t = layer->tensors = &m->tensors.layers[l];
        if (l == n_layers - 1) {                   /* its other products run on single rows, from the file */
            TRY(pack(m, &m->last_kv, (const gguf_tensor *[]){ t->k, t->v }, 2, pool, err));
            break;
        }
        TRY(pack(m, &layer->qkv, (const gguf_tensor *[]){ t->q, t->k, t->v }, 3, pool, err));
        TRY(pack(m, &layer->attn_output, (const gguf_tensor *[]){ t->attn_output }, 1, pool, err));
        if (t->router != NULL) {
            TRY(pack_experts(m, layer, pool, err));
            continue;
        }
        TRY(pack(m, &layer->gate_up, (const gguf_tensor *[]){ t->gate, t->up }, 2, pool, err));
        TRY(pack(m, &layer->down, (const gguf_tensor *[]){ t->down }, 1, pool, err));
    }
    return TMX_OK;
}

static tmx_status check_memory(const tmx_model *m, tmx_error *err)
{
    const bool is_on_cpu = strcmp(m->info.device, "cpu") == 0;
    const uint64_t packed = is_on_cpu ? model_weight_bytes(&m->info, m->compute) : 0, merged = model_merged_bytes(&m->info, m->compute);
    const uint64_t have = mem_available_bytes();
    if (have == 0 || packed + merged <= have) return TMX_OK;
    char adapters[64] = "";
    if (merged > 0) snprintf(adapters, sizeof adapters, " and those of adapters %.1f GiB", (double)merged / 0x1p30);
    return refuse(err, TMX_E_MEMORY, "%s: packed weights need %.1f GiB%s, %.1f GiB of memory are available",
                  gguf_label(m->file), (double)packed / 0x1p30, adapters, (double)have / 0x1p30);
}

uint64_t model_merged_bytes(const tmx_model_info *info, tmx_compute compute)
{
    return info->n_merged * (compute == TMX_COMPUTE_BF16 ? sizeof(tmx_bf16) : sizeof(float));
}

uint64_t model_weight_bytes(const tmx_model_info *info, tmx_compute compute)
{
    const int32_t n_q = info->n_heads * info->head_dim, n_kv = info->n_kv_heads * info->head_dim;
    const uint64_t ffn = (uint64_t)matmul_weight_bytes(2 * info->n_ff, info->n_embd, compute)
                       + matmul_weight_bytes(info->n_embd, info->n_ff, compute);
    const uint64_t experts = info->n_experts == 0 ? ffn
        : ffn * (uint64_t)info->n_experts + matmul_weight_bytes(info->n_experts, info->n_embd, compute);
    const uint64_t layer = (uint64_t)matmul_weight_bytes(n_q + 2 * n_kv, info->n_embd, compute)
                         + matmul_weight_bytes(info->n_embd, n_q, compute) + experts;
    return layer * (uint64_t)(info->n_layers - 1) + matmul_weight_bytes(2 * n_kv, info->n_embd, compute);
}

tmx_compute model_compute_resolve(tmx_compute compute, tmx_isa isa)
{
    if (compute != TMX_COMPUTE_AUTO) return compute;
    return isa >= TMX_ISA_AVX512_BF16 ? TMX_COMPUTE_BF16 : TMX_COMPUTE_F32;
}

/* Adapters are read, hashed, merged and closed: what comes after sees merged tensors in the file's table. */
static tmx_status open_adapters(tmx_model *m, const lora_set *loras, const tmx_model_params *params, const char *device,
                                tmx_pool *pool, tmx_error *err)
{
    fingerprint(m, loras);
    m->info = (tmx_model_info){ .architecture = m->tensors.family->architecture, .name = m->tensors.name,
                                .fingerprint = m->fingerprint, .device = device };
    fill_info(&m->info, &m->tensors.shape, m->file, params, loras);
    TRY(check_memory(m, err));
    TRY(lora_set_merge(loras, m->file, m->compute, pool, &m->merged, err));
    for (int32_t i = 0; i < m->tensors.n_parts; i++) tensor_rows_follow(&m->tensors.parts[i]);
    return TMX_OK;
}

static tmx_status open_file(tmx_model *m, const tmx_model_params *params, const char *device, tmx_pool *pool, tmx_error *err)
{
    const bool is_on_cpu = strcmp(device, "cpu") == 0;
    m->isa = cpu_isa_resolve(params->isa);
    m->compute = is_on_cpu ? model_compute_resolve(params->compute, m->isa) : TMX_COMPUTE_BF16;
    TRY(read_tensors(m->file, params, &m->tensors, err));
    TRY(vocab_create(&m->vocab, m->file, err));
    lora_set *loras;
    TRY(lora_set_read(&loras, params, m->file, &m->tensors, err));
    const tmx_status status = open_adapters(m, loras, params, device, pool, err);
    lora_set_free(loras);
    if (status != TMX_OK) return status;
    m->layers = mem_alloc((size_t)m->info.n_layers, sizeof *m->layers);
    if (m->layers == NULL) return refuse(err, TMX_E_MEMORY, "%s: out of memory for %d layers", gguf_label(m->file), m->info.n_layers);
    TRY(expand_vectors(m, err));
    return is_on_cpu ? pack_weights(m, pool, err) : TMX_OK;
}

tmx_status model_open(tmx_model **model, const char *path, const tmx_model_params *params, const char *device, tmx_pool *pool,
                      tmx_error *err)
{
    tmx_model *m = mem_alloc(1, sizeof *m);
    if (m == NULL) return refuse(err, TMX_E_MEMORY, "%s: out of memory", path);
    tmx_status status = tmx_file_open(&m->file, path, err);
    if (status == TMX_OK) status = open_file(m, params, device, pool, err);
    if (status != TMX_OK) {
        tmx_model_close(m);
        return status;
    }
    *model = m;
    return TMX_OK;
}

void tmx_model_close(tmx_model *m)
{
    if (m == NULL) return;
    if (m->free_on_device != NULL) m->free_on_device(m->on_device);
    for (int32_t l = 0; m->layers != NULL && l < m->info.n_layers; l++) {
        matmul_weight_free(m->layers[l].qkv);
        matmul_weight_free(m->layers[l].attn_output);
        matmul_weight_free(m->layers[l].gate_up);
        matmul_weight_free(m->layers[l].down);
        free_experts(&m->layers[l], m->info.n_experts);
    }
    matmul_weight_free(m->last_kv);
    vocab_free(m->vocab);
    mem_free(m->vectors);
    mem_free(m->merged);
    mem_free(m->layers);
    free_tensors(&m->tensors);
    tmx_file_close(m->file);
    mem_free(m);
}

bool tmx_model_layer_has_window(const tmx_model_info *info, int32_t layer)
{
    return info->n_window > 0 && (info->window_period == 0 || (layer + 1) % info->window_period != 0);
}

const tmx_model_info *tmx_model_info_get(const tmx_model *model) { return model == NULL ? NULL : &model->info; }
tmx_compute tmx_model_compute(const tmx_model *model) { return model->compute; }
tmx_isa tmx_model_isa(const tmx_model *model) { return model->isa; }

const char *tmx_model_provider(const tmx_model *model)
{
    if (!model_is_on_cpu(model)) return "cublaslt";
    return matmul_provider_of(model->last_kv) == MATMUL_ONEDNN ? "onednn" : "builtin";
}
