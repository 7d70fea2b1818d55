#include "run/cuda_weights.h"

#include "base/layout.h"
#include "base/num.h"
#include "base/status.h"

#include <stdlib.h>
#include <string.h>

enum { DEVICE_ALIGN = 256, TUNE_ROWS = 8192, MIN_TUNE_ROWS = 256, MAX_EXPERTS = 1024 /* of ops_cuda.h */ };

int32_t cuda_device_index(const char *device)
{
    static const char prefix[] = "cuda:";
    if (device == NULL || strncmp(device, prefix, sizeof prefix - 1) != 0) return -1;
    const char *number = device + sizeof prefix - 1;
    char *end;
    if (*number < '0' || *number > '9') return -1;
    const long n = strtol(number, &end, 10);
    return *end == '\0' && n < 1024 ? (int32_t)n : -1;
}

uint64_t cuda_weight_bytes(const tmx_model_info *m)
{
    const uint64_t n_norm = (uint64_t)(2 * m->n_layers + 1) * (uint64_t)m->n_embd;
    return 2 * m->n_params + 2 * n_norm + (uint64_t)m->n_layers * 6 * DEVICE_ALIGN;        /* norms are f32; biases hardly count */
}

tmx_status cuda_model_check(const tmx_model_info *m, tmx_error *err)
{
    const int32_t n_group = m->n_heads / m->n_kv_heads, most = m->head_dim == 256 ? 8 : 16;        /* of gpu_decode_attention */
    if (m->head_dim != 64 && m->head_dim != 96 && m->head_dim != 128 && m->head_dim != 256) {
        return refuse(err, TMX_E_UNSUPPORTED, "head_dim %d: the GPU kernels have 64, 96, 128 and 256; run it with --device cpu",
                      m->head_dim);
    }
    if (m->n_experts > MAX_EXPERTS || (int64_t)m->n_experts * max_i32(2 * m->n_ff, m->n_embd) > INT32_MAX) {
        return refuse(err, TMX_E_UNSUPPORTED, "%d experts of n_ff %d, n_embd %d: too many rows for the GPU kernels; run it with --device cpu",
                      m->n_experts, m->n_ff, m->n_embd);
    }
    if (n_group > most) {
        return refuse(err, TMX_E_UNSUPPORTED, "%d heads on %d KV heads of %d: the GPU kernels have up to %d on one; run it with "
                      "--device cpu", m->n_heads, m->n_kv_heads, m->head_dim, most);
    }
    if (m->n_embd % 8 != 0 || m->n_ff % 8 != 0) {
        return refuse(err, TMX_E_UNSUPPORTED, "n_embd %d, n_ff %d: the GPU kernels need multiples of 8; run it with --device cpu",
                      m->n_embd, m->n_ff);
    }
    return TMX_OK;
}

/* ---------------------------------------------------------------- the block: one walk counts and lays out */

static gpu_weight take_weight(layout *at, int32_t n_out, int32_t n_in)
{
    return (gpu_weight){ .data = layout_take(at, gpu_weight_bytes(n_out, n_in)), .n_out = n_out, .n_in = n_in };
}

static gpu_weight rows_of(const gpu_weight *w, int32_t first, int32_t n_out)
{
    void *data = w->data == NULL ? NULL : (char *)w->data + gpu_weight_bytes(first, w->n_in);
    return (gpu_weight){ .data = data, .n_out = n_out, .n_in = w->n_in };
}

/* What stays f32, see take_vectors, comes last. */
static void lay_out(cuda_weights *w, layout *at, const model_shape *m, bool is_tied, size_t n_floats, const float **floats)
{
    const int32_t n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim, n_blocks = max_i32(m->n_experts, 1);
    w->token_embd = take_weight(at, m->n_vocab, m->n_embd);
    w->lm_head = is_tied ? w->token_embd : take_weight(at, m->n_vocab, m->n_embd);
    for (int32_t l = 0; l < m->n_layers; l++) {
        cuda_layer *layer = &w->layers[l];
        layer->qkv = take_weight(at, n_q + 2 * n_kv, m->n_embd);
        layer->attn_output = take_weight(at, m->n_embd, n_q);
        layer->gate_up = take_weight(at, n_blocks * 2 * m->n_ff, m->n_embd);
        layer->down = take_weight(at, n_blocks * m->n_embd, m->n_ff);
        if (m->n_experts > 0) layer->router = take_weight(at, m->n_experts, m->n_embd);
    }
    const gpu_weight *last = &w->layers[m->n_layers - 1].qkv;
    w->last_q = rows_of(last, 0, n_q);
    w->last_kv = rows_of(last, n_q, 2 * n_kv);
    *floats = layout_take(at, n_floats * sizeof(float));
}

/* ---------------------------------------------------------------- filling it */

/* A walk over what stays f32: counts where both pointers are NULL. */
typedef struct vectors {
    float *copy;                   /* pinned */
    const float *device;           /* where the copy goes */
    size_t n;
} vectors;

/* n numbers of the model, or n times `otherwise` where there is no file. */
static const float *take(vectors *v, const float *from, int32_t n, float otherwise)
{
    const float *at = v->device == NULL ? NULL : v->device + v->n;
    for (int32_t i = 0; v->copy != NULL && i < n; i++) v->copy[v->n + (size_t)i] = from != NULL ? from[i] : otherwise;
    v->n += (size_t)n;
    return at;
}

static rope_table take_rope(vectors *v, const rope_table *from)
{
    rope_table table = *from;
    table.frequency = take(v, from->frequency, from->n_pairs, 0);
    return table;
}

static void take_vectors(const tmx_model *model, cuda_weights *w, vectors *v)
{
    static const model_layer none = { 0 };
    const model_shape *m = &model->tensors.shape;
    for (int32_t l = 0; l < m->n_layers; l++) {
        const model_layer *from = model->layers != NULL ? &model->layers[l] : &none;
        cuda_layer *to = &w->layers[l];
        to->attn_norm = take(v, from->attn_norm, m->n_embd, 1);
        to->ffn_norm = take(v, from->ffn_norm, m->n_embd, 1);
        if (m->has_branch_norms) to->attn_branch_norm = take(v, from->attn_branch_norm, m->n_embd, 1);
        if (m->has_branch_norms) to->ffn_branch_norm = take(v, from->ffn_branch_norm, m->n_embd, 1);
        if (m->has_head_norms) to->q_norm = take(v, from->q_norm, m->head_dim, 1);
        if (m->has_head_norms) to->k_norm = take(v, from->k_norm, m->head_dim, 1);
        if (m->has_qkv_bias) to->bias = take(v, from->bias, (m->n_heads + 2 * m->n_kv_heads) * m->head_dim, 0);
    }
    w->output_norm = take(v, model->output_norm, m->n_embd, 1);
    w->rope = take_rope(v, &model->rope);
    w->rope_long = take_rope(v, &model->rope_long);
    w->rope_window = take_rope(v, &model->rope_window);
}

const rope_table *cuda_rope(const tmx_model *model, int32_t layer, int32_t n_ctx)
{
    const cuda_weights *w = model->on_device;
    const rope_table *table = model_rope(model, layer, n_ctx);
    return table == &model->rope_window ? &w->rope_window : table == &model->rope_long ? &w->rope_long : &w->rope;
}

static tmx_status upload_vectors(const tmx_model *model, cuda_weights *w, const float *to, size_t n, tmx_error *err)
{
    const size_t n_bytes = n * sizeof(float);
    void *pinned;
    TRY(gpu_alloc_pinned(w->g, &pinned, n_bytes, err));
    vectors v = { .copy = pinned, .device = to };
    take_vectors(model, w, &v);
    gpu_upload(w->g, (void *)(uintptr_t)to, pinned, n_bytes);
    const tmx_status status = gpu_wait(w->g, err);
    gpu_free_pinned(w->g, pinned);
    return status;
}

static tmx_status fill(gpu *g, const gpu_weight *w, const gguf_tensor *const *tensors, int32_t n, tmx_pool *pool, tmx_error *err)
{
    matmul_source sources[3];
    for (int32_t i = 0; i < n; i++) sources[i] = tensor_source(tensors[i]);
    return gpu_weight_fill(g, w, sources, n, pool, err);
}

/* [n_experts] times gate's rows, then up's; [n_experts] times down's. */
static tmx_status fill_experts(gpu *g, const cuda_layer *to, const layer_tensors *from, int32_t n_experts, tmx_pool *pool, tmx_error *err)
{
    const size_t n = (size_t)n_experts;
    const tensor_rows *gate = from->experts, *up = gate + n, *down = up + n;
    matmul_source *sources = mem_alloc(3 * n, sizeof *sources);
    if (sources == NULL) return refuse(err, TMX_E_MEMORY, "out of memory for %d experts", n_experts);
    for (size_t e = 0; e < n; e++) {
        sources[2 * e] = tensor_source(&gate[e].rows);
        sources[2 * e + 1] = tensor_source(&up[e].rows);
        sources[2 * n + e] = tensor_source(&down[e].rows);
    }
    tmx_status status = fill(g, &to->router, &from->router, 1, pool, err);
    if (status == TMX_OK) status = gpu_weight_fill(g, &to->gate_up, sources, 2 * n_experts, pool, err);
    if (status == TMX_OK) status = gpu_weight_fill(g, &to->down, sources + 2 * n, n_experts, pool, err);
    mem_free(sources);
    return status;
}

static tmx_status fill_from_file(const tmx_model *model, cuda_weights *w, tmx_pool *pool, tmx_error *err)
{
    const model_tensors *t = &model->tensors;
    TRY(fill(w->g, &w->token_embd, &t->token_embd, 1, pool, err));
    if (t->lm_head != t->token_embd) TRY(fill(w->g, &w->lm_head, &t->lm_head, 1, pool, err));
    for (int32_t l = 0; l < t->shape.n_layers; l++) {
        const layer_tensors *from = &t->layers[l];
        const cuda_layer *to = &w->layers[l];
        TRY(fill(w->g, &to->qkv, (const gguf_tensor *[]){ from->q, from->k, from->v }, 3, pool, err));
        TRY(fill(w->g, &to->attn_output, &from->attn_output, 1, pool, err));
        if (t->shape.n_experts > 0) {
            TRY(fill_experts(w->g, to, from, t->shape.n_experts, pool, err));
            continue;
        }
        TRY(fill(w->g, &to->gate_up, (const gguf_tensor *[]){ from->gate, from->up }, 2, pool, err));
        TRY(fill(w->g, &to->down, &from->down, 1, pool, err));
    }
    return TMX_OK;
}

/* 0.02 is what models of this kind are initialised with: activations keep their usual sizes. */
static void fill_randomly(const tmx_model *model, cuda_weights *w)
{
    uint64_t seed = 1;
    gpu_weight_random(w->g, &w->token_embd, 0.02f, seed++);
    gpu_weight_random(w->g, &w->lm_head, 0.02f, seed++);
    for (int32_t l = 0; l < model->info.n_layers; l++) {
        gpu_weight *const of_layer[] = { &w->layers[l].qkv, &w->layers[l].attn_output, &w->layers[l].gate_up, &w->layers[l].down };
        for (size_t i = 0; i < sizeof of_layer / sizeof of_layer[0]; i++) gpu_weight_random(w->g, of_layer[i], 0.02f, seed++);
    }
}

/* ---------------------------------------------------------------- product algorithms */

static tmx_status tune_all(cuda_weights *w, const model_shape *m, int32_t n_rows, void *scratch, tmx_error *err)
{
    const bool is_added = !m->has_branch_norms;
    for (int32_t l = 0; l < m->n_layers; l++) {
        cuda_layer *layer = &w->layers[l];
        TRY(gpu_weight_tune(w->g, &layer->qkv, n_rows, TMX_TYPE_BF16, false, scratch, err));
        TRY(gpu_weight_tune(w->g, &layer->attn_output, n_rows, TMX_TYPE_F32, is_added, scratch, err));
        if (m->n_experts > 0) {    /* theirs are no library products */
            TRY(gpu_weight_tune(w->g, &layer->router, n_rows, TMX_TYPE_F32, false, scratch, err));
            continue;
        }
        TRY(gpu_weight_tune(w->g, &layer->gate_up, n_rows, TMX_TYPE_BF16, false, scratch, err));
        TRY(gpu_weight_tune(w->g, &layer->down, n_rows, TMX_TYPE_F32, is_added, scratch, err));
    }
    return gpu_weight_tune(w->g, &w->last_kv, n_rows, TMX_TYPE_BF16, false, scratch, err);
}

/* Once for a model, so that bits do not depend on a session's chunks.  Before any session: its memory may be used. */
static tmx_status tune(cuda_weights *w, const model_shape *m, tmx_error *err)
{
    const uint64_t n_q = (uint64_t)m->n_heads * (uint64_t)m->head_dim, n_kv = (uint64_t)m->n_kv_heads * (uint64_t)m->head_dim;
    const uint64_t n_embd = (uint64_t)m->n_embd, n_ff = (uint64_t)m->n_ff;
    const uint64_t row_bytes[] = { 2 * n_embd + 2 * (n_q + 2 * n_kv), 2 * n_q + 4 * n_embd, 2 * n_embd + 4 * n_ff, 2 * n_ff + 4 * n_embd,
                                   2 * n_embd + 4 * (uint64_t)m->n_experts };
    uint64_t widest = 0;
    for (int i = 0; i < 5; i++) widest = row_bytes[i] > widest ? row_bytes[i] : widest;
    void *scratch = NULL;
    tmx_status status = TMX_E_MEMORY;
    int32_t n_rows = 2 * TUNE_ROWS;
    while (status == TMX_E_MEMORY && n_rows > MIN_TUNE_ROWS) {
        n_rows /= 2;
        status = gpu_alloc(w->g, &scratch, widest * (uint64_t)n_rows + 4 * DEVICE_ALIGN, err);
    }
    if (status != TMX_OK) return status;
    status = tune_all(w, m, n_rows, scratch, err);
    gpu_free(w->g, scratch);
    return status;
}

/* ---------------------------------------------------------------- */

static void free_weights(void *on_device)
{
    cuda_weights *w = on_device;
    if (w == NULL) return;
    if (w->g != NULL) gpu_free(w->g, w->memory);
    gpu_close(w->g);
    mem_free(w->layers);
    mem_free(w);
}

static tmx_status make_weights(tmx_model *model, cuda_weights *w, tmx_pool *pool, tmx_error *err)
{
    const model_shape *m = &model->tensors.shape;
    const bool is_random = model->file == NULL, is_tied = !is_random && model->tensors.lm_head == model->tensors.token_embd;
    w->device = cuda_device_index(model->info.device);
    TRY(gpu_open(&w->g, w->device, err));
    w->layers = mem_alloc((size_t)m->n_layers, sizeof *w->layers);
    if (w->layers == NULL) return refuse(err, TMX_E_MEMORY, "%s: out of memory for %d layers", model->info.device, m->n_layers);
    vectors floats = { 0 };
    layout count = { .align = DEVICE_ALIGN };
    uint64_t n_free, n_total;
    take_vectors(model, w, &floats);
    lay_out(w, &count, m, is_tied, floats.n, &floats.device);
    TRY(gpu_memory(w->g, &n_free, &n_total, err));
    if (count.n_bytes > n_free) {
        return refuse(err, TMX_E_MEMORY, "%s (%s): the weights need %.2f GiB in bf16, %.2f of %.2f GiB are free", model->info.device,
                      gpu_name(w->g), (double)count.n_bytes / 0x1p30, (double)n_free / 0x1p30, (double)n_total / 0x1p30);
    }
    TRY(gpu_alloc(w->g, &w->memory, count.n_bytes, err));
    layout at = { .base = w->memory, .align = DEVICE_ALIGN };
    lay_out(w, &at, m, is_tied, floats.n, &floats.device);
    TRY(upload_vectors(model, w, floats.device, floats.n, err));
    if (is_random) fill_randomly(model, w);
    else TRY(fill_from_file(model, w, pool, err));
    TRY(tune(w, m, err));
    return gpu_wait(w->g, err);
}

tmx_status cuda_weights_attach(tmx_model *model, tmx_pool *pool, tmx_error *err)
{
    TRY(cuda_model_check(&model->info, err));
    cuda_weights *w = mem_alloc(1, sizeof *w);
    if (w == NULL) return refuse(err, TMX_E_MEMORY, "%s: out of memory", model->info.device);
    model->on_device = w;
    model->free_on_device = free_weights;
    return make_weights(model, w, pool, err);
}
