/* open_model.c - the public door to models: which device computes, and the weights in its memory. */
#include "base/mem.h"
#include "base/status.h"
#include "run/cuda_weights.h"

#include <stdio.h>
#include <string.h>

/* The strings live as long as the program: tmx_model_info is copied about. */
static const char *const cuda_names[] = { "cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cuda:5", "cuda:6", "cuda:7",
                                          "cuda:8", "cuda:9", "cuda:10", "cuda:11", "cuda:12", "cuda:13", "cuda:14", "cuda:15" };
enum { N_CUDA_NAMES = sizeof cuda_names / sizeof cuda_names[0] };

/* auto: "cuda:0" if it is worth a try. */
static tmx_status choose_device(const tmx_model_params *p, const char **device, tmx_error *err)
{
    const char *wanted = p->device != NULL ? p->device : "cpu";
    if (strcmp(wanted, "cpu") == 0) {
        *device = "cpu";
        return TMX_OK;
    }
    if (strcmp(wanted, "auto") == 0) {
        const bool is_for_cpu = p->compute == TMX_COMPUTE_F32 || p->isa != TMX_ISA_AUTO;
        *device = !is_for_cpu && gpu_count() > 0 ? cuda_names[0] : "cpu";
        return TMX_OK;
    }
    const int32_t index = strcmp(wanted, "cuda") == 0 ? 0 : cuda_device_index(wanted);
    if (index < 0 || index >= N_CUDA_NAMES) {
        return refuse(err, TMX_E_ARG, "device: '%.40s' is not one of cpu, cuda, cuda:N (N below %d), auto", wanted, N_CUDA_NAMES);
    }
    if (p->compute == TMX_COMPUTE_F32) return refuse(err, TMX_E_UNSUPPORTED, "compute f32: %s multiplies in bf16 only", wanted);
    *device = cuda_names[index];
    return TMX_OK;
}

static tmx_status open_on_device(tmx_model **model, const char *path, const tmx_model_params *p, const char *device, tmx_pool *pool,
                                 tmx_error *err)
{
    tmx_model *m = NULL;
    TRY(model_open(&m, path, p, device, pool, err));
    const tmx_status status = cuda_weights_attach(m, pool, err);
    if (status != TMX_OK) {
        tmx_model_close(m);
        return status;
    }
    *model = m;
    return TMX_OK;
}

tmx_status tmx_model_open(tmx_model **model, const char *path, const tmx_model_params *params, tmx_pool *pool, tmx_error *err)
{
    if (model == NULL || path == NULL) return refuse(err, TMX_E_ARG, "tmx_model_open: NULL argument");
    const tmx_model_params p = params != NULL ? *params : (tmx_model_params){ 0 };
    const char *device;
    tmx_error why;
    TRY(choose_device(&p, &device, err));
    if (strcmp(device, "cpu") == 0) return model_open(model, path, &p, device, pool, err);
    const tmx_status status = open_on_device(model, path, &p, device, pool, &why);
    if (status == TMX_OK) return TMX_OK;
    if (strcmp(p.device, "auto") != 0) {
        if (err != NULL) *err = why;
        return status;
    }
    TRY(model_open(model, path, &p, "cpu", pool, err));
    if (p.warn != NULL) {
        char line[sizeof why.text + 32];
        snprintf(line, sizeof line, "running on the CPU: %s", why.text);
        p.warn(p.warn_ctx, line);
    }
    return TMX_OK;
}

const char *tmx_model_device_name(const tmx_model *model)
{
    return model_is_on_cpu(model) ? "" : gpu_name(((const cuda_weights *)model->on_device)->g);
}

/* ---------------------------------------------------------------- models without a file */

typedef struct known_shape {
    const char *name, *architecture;
    model_shape shape;
} known_shape;

static const known_shape shapes[] = {
    { "llama-3.1-8b", "llama", { .n_layers = 32, .n_embd = 4096, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128, .n_ff = 14336,
                                 .n_vocab = 128256, .n_ctx_train = 131072, .n_rot = 128, .rope_freq_base = 500000.0f,
                                 .rms_eps = 1e-5f } },
    { "qwen2.5-7b", "qwen2", { .n_layers = 28, .n_embd = 3584, .n_heads = 28, .n_kv_heads = 4, .head_dim = 128, .n_ff = 18944,
                               .n_vocab = 152064, .n_ctx_train = 32768, .n_rot = 128, .rope = ROPE_HALF_SPLIT,
                               .rope_freq_base = 1e6f, .rms_eps = 1e-6f, .has_qkv_bias = true } },
    { "qwen3-8b", "qwen3", { .n_layers = 36, .n_embd = 4096, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128, .n_ff = 12288,
                             .n_vocab = 151936, .n_ctx_train = 40960, .n_rot = 128, .rope = ROPE_HALF_SPLIT,
                             .rope_freq_base = 1e6f, .rms_eps = 1e-6f, .has_head_norms = true } },
    { "llama-3.1-70b-one-layer", "llama", { .n_layers = 2, .n_embd = 8192, .n_heads = 64, .n_kv_heads = 8, .head_dim = 128,
                                            .n_ff = 28672, .n_vocab = 128256, .n_ctx_train = 131072, .n_rot = 128,
                                            .rope_freq_base = 500000.0f, .rms_eps = 1e-5f } },
};

static uint64_t count_params(const model_shape *s)
{
    const uint64_t n_embd = (uint64_t)s->n_embd, n_q = (uint64_t)s->n_heads * (uint64_t)s->head_dim;
    const uint64_t n_kv = (uint64_t)s->n_kv_heads * (uint64_t)s->head_dim;
    const uint64_t n_bias = s->has_qkv_bias ? n_q + 2 * n_kv : 0, n_norm = s->has_head_norms ? 2 * (uint64_t)s->head_dim : 0;
    const uint64_t layer = n_embd * (n_q + 2 * n_kv) + n_q * n_embd + 3 * n_embd * (uint64_t)s->n_ff + 2 * n_embd + n_bias + n_norm;
    return (uint64_t)s->n_layers * layer + 2 * (uint64_t)s->n_vocab * n_embd + n_embd;
}

static tmx_status set_shape(tmx_model *m, const known_shape *known, const char *device, tmx_error *err)
{
    model_shape *s = &m->tensors.shape;
    *s = known->shape;
    s->scaling = (rope_scaling){ .factor = 1, .attention_factor = 1 };
    m->vectors = mem_alloc((size_t)s->n_rot / 2, sizeof *m->vectors);
    if (m->vectors == NULL) return refuse(err, TMX_E_MEMORY, "random weights: out of memory");
    rope_frequencies(s->rope_freq_base, s->n_rot, &s->scaling, NULL, m->vectors);
    m->rope = m->rope_long = m->rope_window = (rope_table){ .frequency = m->vectors, .n_pairs = s->n_rot / 2, .factor = 1 };
    m->compute = TMX_COMPUTE_BF16;
    m->isa = tmx_isa_best();
    snprintf(m->tensors.name, sizeof m->tensors.name, "%s, random weights", known->name);
    m->info = (tmx_model_info){
        .architecture = known->architecture, .name = m->tensors.name, .fingerprint = m->fingerprint, .n_layers = s->n_layers,
        .n_embd = s->n_embd, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim, .n_ff = s->n_ff,
        .n_vocab = s->n_vocab, .n_ctx_train = s->n_ctx_train, .n_ctx_max = 1 << 27, .rope_freq_base = s->rope_freq_base,
        .rms_eps = s->rms_eps, .n_params = count_params(s), .device = device,
    };
    return TMX_OK;
}

tmx_status tmx_model_open_random(tmx_model **model, const char *shape, const tmx_model_params *params, tmx_pool *pool, tmx_error *err)
{
    if (model == NULL || shape == NULL) return refuse(err, TMX_E_ARG, "tmx_model_open_random: NULL argument");
    tmx_model_params p = params != NULL ? *params : (tmx_model_params){ 0 };
    const known_shape *known = NULL;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (strcmp(shape, shapes[i].name) == 0) known = &shapes[i];
    }
    if (known == NULL) {
        return refuse(err, TMX_E_ARG, "random weights: '%.40s' is not one of llama-3.1-8b, qwen2.5-7b, qwen3-8b, "
                      "llama-3.1-70b-one-layer", shape);
    }
    if (p.device == NULL || strcmp(p.device, "auto") == 0) p.device = "cuda";
    const char *device;
    TRY(choose_device(&p, &device, err));
    if (strcmp(device, "cpu") == 0) return refuse(err, TMX_E_UNSUPPORTED, "random weights: made on a GPU only");
    tmx_model *m = mem_alloc(1, sizeof *m);
    if (m == NULL) return refuse(err, TMX_E_MEMORY, "random weights: out of memory");
    tmx_status status = set_shape(m, known, device, err);
    if (status == TMX_OK) status = cuda_weights_attach(m, pool, err);
    if (status != TMX_OK) {
        tmx_model_close(m);
        return status;
    }
    *model = m;
    return TMX_OK;
}
