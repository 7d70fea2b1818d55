/* probe_cuda.c - the passes of probe.h on a CUDA device: the same steps in the same order, enqueued on the probe's stream.
 *
 * Products read bf16 and sum in f32, forward through the algorithms that were chosen for the model, backward through the same
 * weights untransposed (gpu_product_back): nothing is kept twice.  The residual stream and the derivative by it are f32; q, k, v, o
 * and d_o are bf16, which the tensor cores read.  The last layer's one row runs in f32 between products that read each weight
 * once, as in prefill.  One layer is in flight while the host enqueues the next.  All memory is taken at create. */
#include "base/layout.h"
#include "base/num.h"
#include "base/status.h"
#include "probe/cuda/probe_ops_cuda.h"
#include "probe/probe.h"
#include "run/cuda_weights.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { DEVICE_ALIGN = 256, DEVICE_CHUNK = 4096, N_MARKS = 2 };     /* DEVICE_CHUNK: rows of the products' buffers; never changes a bit */
/* Beside the block: the product library's workspace, and small things. */
static const uint64_t LIBRARY_BYTES = 40u << 20;

/* N = n_tokens of the params, C = DEVICE_CHUNK rows, or N if that is less.  bf16 unless said. */
typedef struct device_tape {
    float *x, *x1;                 /* f32 [N][n_embd] */
    void *q, *o;                   /* [N][n_heads * head_dim], q turned */
    void *k, *v;                   /* [n_kv_heads][N][head_dim], k turned */
    float *lse;                    /* f32 [N][n_heads] */
} device_tape;

/* What is dead when another is made shares its place. */
typedef struct device_buffers {
    float *cos, *sin;              /* f32 [N][n_rot / 2] */
    int32_t *ints;                 /* [N + 1]: tokens, target; of the prompt at work */
    int32_t *positions, *zeros;    /* [N] */
    void *normed;                  /* [C][n_embd] */
    void *qkv, *gate_up;           /* [C][n_qkv], [C][2 n_ff]: one place */
    void *gated, *d_act;           /* [C][n_ff], [C][max(n_qkv, 2 n_ff, n_embd)]: one place */
    float *d_wide;                 /* f32 [C][max(n_ff, n_embd)]: what a product gives on the way back */
    float *d;                      /* f32 [N][n_embd]: derivative by the residual stream */
    void *d_o;                     /* [N][n_q] */
    float *d_qkv;                  /* f32 [N][n_qkv] */
    double *sums;                  /* [n_layers][N_SECTIONS][N_SUMS] */
    float *row_normed, *row_heads, *row_gate_up, *row_gated, *x_end;       /* f32; the last layer's one row */
    float *logits;                 /* f32 [n_vocab] */
    void *scratch;
} device_buffers;

struct probe_device {
    gpu *g;
    const cuda_weights *weights;
    device_tape *tape;             /* [n_layers] */
    device_buffers b;
    void *memory;                  /* device: the block behind both */
    size_t n_scratch;
    int32_t *ints;                 /* pinned, as b.ints */
    float *logits;                 /* host, [n_vocab] */
    gpu_mark *marks[N_MARKS];      /* set behind a pass, in turn */
    int32_t n_passes;              /* of the prompt at work */
    tmx_error failure;             /* of an attention call; code TMX_OK: none */
};

/* tmx_probe_layer as the device writes it. */
static_assert(sizeof(tmx_probe_layer) == N_SECTIONS * N_SUMS * sizeof(double), "15 numbers");
static_assert(offsetof(tmx_probe_layer, last) == SECTION_LAST * sizeof(tmx_probe_sums)
              && offsetof(tmx_probe_layer, middle) == SECTION_MIDDLE * sizeof(tmx_probe_sums), "sections in order");
static_assert(offsetof(tmx_probe_sums, theta_signed) == SUM_THETA_SIGNED * sizeof(double)
              && offsetof(tmx_probe_sums, head_abs) == SUM_HEAD_ABS * sizeof(double)
              && offsetof(tmx_probe_sums, da_abs) == SUM_DA_ABS * sizeof(double)
              && offsetof(tmx_probe_sums, attention) == SUM_ATTENTION * sizeof(double), "sums in order");

/* ---------------------------------------------------------------- sizes: one walk serves the plan and the real thing */

static size_t n_q_of(const tmx_model_info *m) { return (size_t)m->n_heads * (size_t)m->head_dim; }
static size_t n_kv_of(const tmx_model_info *m) { return (size_t)m->n_kv_heads * (size_t)m->head_dim; }
static size_t n_qkv_of(const tmx_model_info *m) { return n_q_of(m) + 2 * n_kv_of(m); }

static tmx_gpu_attention_params attention_params(const tmx_model_info *m, size_t n_ctx, const tmx_gpu_attention_seq *seq)
{
    const size_t head_dim = (size_t)m->head_dim, n_q = n_q_of(m);
    return (tmx_gpu_attention_params){                      /* but for the scale, on which no size depends */
        .type = TMX_TYPE_BF16, .n_heads = m->n_heads, .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim,
        .q_pos_stride = n_q, .q_head_stride = head_dim, .out_pos_stride = n_q, .out_head_stride = head_dim,
        .k_pos_stride = head_dim, .k_head_stride = n_ctx * head_dim, .v_pos_stride = head_dim, .v_head_stride = n_ctx * head_dim,
        .pattern = { .kind = TMX_PATTERN_DENSE, .n_window = 1 }, .seqs = seq, .n_seqs = 1,
    };
}

static size_t scratch_bytes(const tmx_model_info *m, int32_t n_tokens)
{
    const tmx_gpu_attention_seq seq = { .n_q = n_tokens, .n_prompt = n_tokens };
    const tmx_gpu_attention_params params = attention_params(m, (size_t)n_tokens, &seq);
    return max_size(tmx_gpu_attention_scratch_bytes(&params), gpu_attn_back_scratch_bytes(n_tokens, m->n_heads));
}

static void lay_out_tape(device_tape *tape, layout *at, const tmx_model_info *m, size_t n)
{
    const size_t n_embd = (size_t)m->n_embd, n_q = n_q_of(m), n_kv = n_kv_of(m);
    *tape = (device_tape){
        .x = layout_rows(at, n, n_embd, sizeof(float)), .x1 = layout_rows(at, n, n_embd, sizeof(float)),
        .q = layout_rows(at, n, n_q, 2), .o = layout_rows(at, n, n_q, 2), .k = layout_rows(at, n, n_kv, 2), .v = layout_rows(at, n, n_kv, 2),
        .lse = layout_rows(at, n, (size_t)m->n_heads, sizeof(float)),
    };
}

static void lay_out(device_buffers *b, layout *at, const tmx_model_info *m, size_t n)
{
    const size_t n_embd = (size_t)m->n_embd, n_ff = (size_t)m->n_ff, n_q = n_q_of(m), n_qkv = n_qkv_of(m), n_chunk = n < DEVICE_CHUNK ? n : DEVICE_CHUNK;
    const size_t n_angles = (size_t)m->head_dim / 2, n_wide = max_size(n_qkv, 2 * n_ff);
    b->cos = layout_rows(at, n, n_angles, sizeof(float));
    b->sin = layout_rows(at, n, n_angles, sizeof(float));
    b->ints = layout_rows(at, n + 1, 1, sizeof(int32_t));
    b->positions = layout_rows(at, n, 1, sizeof(int32_t));
    b->zeros = layout_rows(at, n, 1, sizeof(int32_t));
    b->normed = layout_rows(at, n_chunk, n_embd, 2);
    b->qkv = b->gate_up = layout_rows(at, n_chunk, n_wide, 2);
    b->gated = b->d_act = layout_rows(at, n_chunk, max_size(n_wide, n_embd), 2);
    b->d_wide = layout_rows(at, n_chunk, max_size(n_ff, n_embd), sizeof(float));
    b->d = layout_rows(at, n, n_embd, sizeof(float));
    b->d_o = layout_rows(at, n, n_q, 2);
    b->d_qkv = layout_rows(at, n, n_qkv, sizeof(float));
    b->sums = layout_rows(at, (size_t)m->n_layers, N_SECTIONS * N_SUMS, sizeof(double));
    b->row_normed = layout_rows(at, 1, n_embd, sizeof(float));
    b->row_heads = layout_rows(at, 1, n_q, sizeof(float));
    b->row_gate_up = layout_rows(at, 2, n_ff, sizeof(float));
    b->row_gated = layout_rows(at, 1, n_ff, sizeof(float));
    b->x_end = layout_rows(at, 1, n_embd, sizeof(float));
    b->logits = layout_rows(at, 1, (size_t)m->n_vocab, sizeof(float));
    b->scratch = layout_rows(at, 1, scratch_bytes(m, (int32_t)n), 1);
}

static void count_bytes(const tmx_model_info *m, int32_t n_tokens, tmx_memory *memory)
{
    layout tape = { .align = DEVICE_ALIGN }, rest = { .align = DEVICE_ALIGN };
    device_tape no_tape;
    device_buffers no_buffers;
    lay_out_tape(&no_tape, &tape, m, (size_t)n_tokens);
    lay_out(&no_buffers, &rest, m, (size_t)n_tokens);
    *memory = (tmx_memory){ .kv_bytes = tape.n_bytes * (uint64_t)m->n_layers, .workspace_bytes = rest.n_bytes + LIBRARY_BYTES };
    memory->total_bytes = memory->kv_bytes + memory->workspace_bytes;
}

static tmx_status plan_memory(const probe_case *at, tmx_memory *memory, tmx_error *err)
{
    gpu *g = NULL;
    uint64_t n_free, n_total;
    tmx_memory need;
    TRY(cuda_model_check(at->info, err));
    TRY(gpu_open(&g, cuda_device_index(at->info->device), err));
    const tmx_status status = gpu_memory(g, &n_free, &n_total, err);
    gpu_close(g);
    if (status != TMX_OK) return status;
    count_bytes(at->info, at->params->n_tokens, &need);
    need.available_bytes = n_free;
    *memory = need;
    return TMX_OK;
}

/* ---------------------------------------------------------------- create, free */

/* Angles, positions and zeros: the same for all prompts. */
static tmx_status upload_constants(const tmx_probe *p, void *pinned, tmx_error *err)
{
    const struct probe_device *v = p->device;
    const size_t n = (size_t)p->params.n_tokens, n_angles = (size_t)p->model->tensors.shape.n_rot / 2;
    float *cos = pinned, *sin = cos + n * n_angles;
    int32_t *positions = (int32_t *)(void *)(sin + n * n_angles);
    for (size_t i = 0; i < n; i++) {
        rope_angles((int32_t)i, p->rope, cos + i * n_angles, sin + i * n_angles);
        positions[i] = (int32_t)i;
    }
    gpu_upload(v->g, v->b.cos, cos, n * n_angles * sizeof *cos);
    gpu_upload(v->g, v->b.sin, sin, n * n_angles * sizeof *sin);
    gpu_upload(v->g, v->b.positions, positions, n * sizeof *positions);
    gpu_zero(v->g, v->b.zeros, n * sizeof *v->b.zeros);
    return gpu_wait(v->g, err);
}

static tmx_status fill_constants(const tmx_probe *p, tmx_error *err)
{
    const size_t n_angles = (size_t)p->model->tensors.shape.n_rot / 2;
    void *pinned;
    TRY(gpu_alloc_pinned(p->device->g, &pinned, (size_t)p->params.n_tokens * (2 * n_angles + 1) * sizeof(float), err));
    const tmx_status status = upload_constants(p, pinned, err);
    gpu_free_pinned(p->device->g, pinned);
    return status;
}

static tmx_status check_room(const tmx_probe *p, const tmx_memory *need, tmx_error *err)
{
    uint64_t n_free, n_total;
    TRY(gpu_memory(p->device->weights->g, &n_free, &n_total, err));
    if (need->total_bytes <= n_free) return TMX_OK;
    return refuse(err, TMX_E_MEMORY, "%s: a probe of %d tokens needs %.2f GiB beside the weights (%.2f for activations), %.2f of "
                  "%.2f GiB are free", p->model->info.device, p->params.n_tokens, (double)need->total_bytes / 0x1p30,
                  (double)need->kv_bytes / 0x1p30, (double)n_free / 0x1p30, (double)n_total / 0x1p30);
}

/* What the backward pass lacks, as a noun; NULL: nothing. */
static const char *missing_feature(const model_shape *s)
{
    return s->n_experts > 0 ? "experts" : s->n_window > 0 ? "sliding-window layers" : s->has_branch_norms ? "norms of what a layer adds"
         : s->gate != GATE_SILU ? "a GELU gate" : s->head_dim > 128 ? "heads of more than 128 elements" : NULL;
}

static tmx_status create(tmx_probe *p, tmx_error *err)
{
    const tmx_model_info *m = &p->model->info;
    const size_t n = (size_t)p->params.n_tokens;
    const char *feature = missing_feature(&p->model->tensors.shape);
    tmx_memory need;
    void *pinned;
    if (feature != NULL) {
        return refuse(err, TMX_E_UNSUPPORTED, "probe: %s: not on a GPU yet (--device cpu)", feature);
    }
    struct probe_device *v = p->device = mem_alloc(1, sizeof *v);
    if (v == NULL) return refuse(err, TMX_E_MEMORY, "probe: out of memory");
    v->weights = p->model->on_device;
    p->n_chunk = DEVICE_CHUNK;
    count_bytes(m, p->params.n_tokens, &need);
    TRY(check_room(p, &need, err));
    v->tape = mem_alloc((size_t)m->n_layers, sizeof *v->tape);
    v->logits = mem_alloc((size_t)m->n_vocab, sizeof *v->logits);
    if (v->tape == NULL || v->logits == NULL) return refuse(err, TMX_E_MEMORY, "probe: out of memory for %d logits", m->n_vocab);
    p->logits = v->logits;
    TRY(gpu_open(&v->g, v->weights->device, err));
    TRY(gpu_alloc(v->g, &v->memory, need.total_bytes - LIBRARY_BYTES, err));
    layout at = { .base = v->memory, .align = DEVICE_ALIGN };
    for (int32_t l = 0; l < m->n_layers; l++) lay_out_tape(&v->tape[l], &at, m, n);
    lay_out(&v->b, &at, m, n);
    v->n_scratch = scratch_bytes(m, p->params.n_tokens);
    TRY(gpu_alloc_pinned(v->g, &pinned, (n + 1) * sizeof *v->ints, err));
    v->ints = pinned;
    for (int i = 0; i < N_MARKS; i++) TRY(gpu_mark_create(v->g, &v->marks[i], err));
    return fill_constants(p, err);
}

static void free_device(tmx_probe *p)
{
    struct probe_device *v = p->device;
    if (v == NULL) return;
    if (v->g != NULL) {
        for (int i = 0; i < N_MARKS; i++) gpu_mark_free(v->g, v->marks[i]);
        gpu_free_pinned(v->g, v->ints);
        gpu_free(v->g, v->memory);
    }
    gpu_close(v->g);
    mem_free(v->logits);
    mem_free(v->tape);
    mem_free(v);
}

/* ---------------------------------------------------------------- steps on a chunk of rows */

/* Chunks of rows [begin, n_tokens): s starts as { .begin = begin }. */
static bool next_chunk(const tmx_probe *p, probe_span *s)
{
    s->begin += s->n;
    s->n = min_i32(p->n_tokens - s->begin, p->n_chunk);
    return s->n > 0;
}

static void *bf16_row(void *base, size_t row, size_t width) { return (char *)base + 2 * row * width; }
static size_t at_row(const tmx_probe *p, int32_t row) { return (size_t)row * (size_t)p->model->info.n_embd; }
static float scale_of(const tmx_probe *p)
{
    const float score_scale = p->model->tensors.shape.score_scale;
    return score_scale != 0 ? score_scale : (float)(1.0 / sqrt((double)p->model->info.head_dim));
}

static int32_t first_row(const tmx_probe *p, int32_t layer) { return probe_is_last(p, layer) ? p->n_tokens - 1 : 0; }

/* y = W x, bf16. */
static void product(const tmx_probe *p, const gpu_weight *w, const void *x, void *y, int32_t n_rows)
{
    gpu_product(p->device->g, w, x, (size_t)w->n_in, n_rows, y, (size_t)w->n_out, TMX_TYPE_BF16, false);
}

/* to = from + W x, f32 [N][n_embd]. */
static void add_product(const tmx_probe *p, const gpu_weight *w, const void *x, const float *from, float *to, probe_span s)
{
    gpu *g = p->device->g;
    const size_t at = at_row(p, s.begin);
    gpu_copy(g, to + at, from + at, (size_t)s.n * (size_t)w->n_out * sizeof *to);
    gpu_product(g, w, x, (size_t)w->n_in, s.n, to + at, (size_t)w->n_out, TMX_TYPE_F32, true);
}

static void product_back(const tmx_probe *p, const gpu_weight *w, void *y, tmx_type y_type, int32_t n_rows)
{
    gpu_product_back(p->device->g, w, p->device->b.d_act, (size_t)w->n_out, n_rows, y, (size_t)w->n_in, y_type);
}

static void norm(const tmx_probe *p, const float *x, const float *weight, probe_span s)
{
    const tmx_model_info *m = &p->model->info;
    gpu_rmsnorm(p->device->g, x + at_row(p, s.begin), weight, m->rms_eps, s.n, m->n_embd, p->device->b.normed, TMX_TYPE_BF16);
}

/* d += the norm's derivative of d_wide. */
static void norm_back(const tmx_probe *p, const float *x, const float *weight, probe_span s)
{
    const tmx_model_info *m = &p->model->info;
    const device_buffers *b = &p->device->b;
    const size_t at = at_row(p, s.begin);
    gpu_rmsnorm_back(p->device->g, b->d_wide, x + at, weight, m->rms_eps, s.n, m->n_embd, b->d + at);
}

static void narrow_d(const tmx_probe *p, probe_span s)
{
    const device_buffers *b = &p->device->b;
    gpu_narrow(p->device->g, b->d + at_row(p, s.begin), at_row(p, s.n), b->d_act);
}

/* ---------------------------------------------------------------- forward */

static void place_heads(const tmx_probe *p, int32_t layer, probe_span s)
{
    const struct probe_device *v = p->device;
    const model_shape *m = &p->model->tensors.shape;
    const cuda_layer *w = &v->weights->layers[layer];
    const device_tape *t = &v->tape[layer];
    const rope_table *table = cuda_rope(p->model, layer, p->params.n_tokens);
    const gpu_place place = {
        .positions = v->b.positions + s.begin, .seqs = v->b.zeros, .inverse_freq = table->frequency, .rope_factor = table->factor,
        .n_rows = s.n, .n_heads = m->n_heads, .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim, .n_rot = m->n_rot, .rope = m->rope,
        .bias = w->bias, .q_norm = w->q_norm, .k_norm = w->k_norm, .norm_eps = m->rms_eps, .k = t->k, .v = t->v,
        .n_ctx = p->params.n_tokens,
    };
    gpu_place_heads(v->g, &place, v->b.qkv, TMX_TYPE_BF16, bf16_row(t->q, (size_t)s.begin, n_q_of(&p->model->info)));
}

static void attend(tmx_probe *p, const device_tape *t)
{
    struct probe_device *v = p->device;
    const tmx_gpu_attention_seq seq = { .q = t->q, .k = t->k, .v = t->v, .out = t->o, .lse = t->lse, .n_q = p->n_tokens,
                                        .n_prompt = p->n_tokens };
    tmx_gpu_attention_params params = attention_params(&p->model->info, (size_t)p->params.n_tokens, &seq);
    tmx_error err;
    params.scale = scale_of(p);
    params.scratch = v->b.scratch;
    params.scratch_bytes = v->n_scratch;
    if (tmx_gpu_attention(&params, gpu_stream(v->g), &err) != TMX_OK && v->failure.code == TMX_OK) v->failure = err;
}

static void finish_layer(const tmx_probe *p, int32_t layer)
{
    const struct probe_device *v = p->device;
    const cuda_layer *w = &v->weights->layers[layer];
    const device_tape *t = &v->tape[layer];
    for (probe_span s = { 0 }; next_chunk(p, &s);) {
        add_product(p, &w->attn_output, bf16_row(t->o, (size_t)s.begin, n_q_of(&p->model->info)), t->x, t->x1, s);
        norm(p, t->x1, w->ffn_norm, s);
        product(p, &w->gate_up, v->b.normed, v->b.gate_up, s.n);
        gpu_swiglu(v->g, v->b.gate_up, s.n, p->model->info.n_ff, v->b.gated, TMX_TYPE_BF16);
        add_product(p, &w->down, v->b.gated, t->x1, v->tape[layer + 1].x, s);
    }
}

/* The one row that is read, in f32, through the last layer and to the logits.  gpu_embed also widens a row of bf16. */
static void finish_last_row(const tmx_probe *p, int32_t layer)
{
    const struct probe_device *v = p->device;
    const tmx_model_info *m = &p->model->info;
    const cuda_layer *w = &v->weights->layers[layer];
    const device_tape *t = &v->tape[layer];
    const device_buffers *b = &v->b;
    const size_t row = (size_t)p->n_tokens - 1, at = at_row(p, p->n_tokens - 1), n_bytes = (size_t)m->n_embd * sizeof(float);
    gpu_embed(v->g, bf16_row(t->o, row, n_q_of(m)), b->zeros, 1, m->n_heads * m->head_dim, 1.0f, b->row_heads);
    gpu_copy(v->g, t->x1 + at, t->x + at, n_bytes);
    gpu_row_product(v->g, &w->attn_output, b->row_heads, 1, t->x1 + at, true);
    gpu_rmsnorm(v->g, t->x1 + at, w->ffn_norm, m->rms_eps, 1, m->n_embd, b->row_normed, TMX_TYPE_F32);
    gpu_row_product(v->g, &w->gate_up, b->row_normed, 1, b->row_gate_up, false);
    gpu_swiglu(v->g, b->row_gate_up, 1, m->n_ff, b->row_gated, TMX_TYPE_F32);
    gpu_copy(v->g, b->x_end, t->x1 + at, n_bytes);
    gpu_row_product(v->g, &w->down, b->row_gated, 1, b->x_end, true);
    gpu_rmsnorm(v->g, b->x_end, v->weights->output_norm, m->rms_eps, 1, m->n_embd, b->row_normed, TMX_TYPE_F32);
    gpu_row_product(v->g, &v->weights->lm_head, b->row_normed, 1, b->logits, false);
}

static void forward(tmx_probe *p, int32_t layer)
{
    const struct probe_device *v = p->device;
    const cuda_layer *w = &v->weights->layers[layer];
    const device_tape *t = &v->tape[layer];
    const float embedding_scale = p->model->tensors.shape.embedding_scale;
    if (layer == 0) {
        gpu_embed(v->g, v->weights->token_embd.data, v->b.ints, p->n_tokens, p->model->info.n_embd,
                  embedding_scale != 0 ? embedding_scale : 1.0f, t->x);
    }
    for (probe_span s = { 0 }; next_chunk(p, &s);) {
        norm(p, t->x, w->attn_norm, s);
        product(p, &w->qkv, v->b.normed, v->b.qkv, s.n);
        place_heads(p, layer, s);
    }
    attend(p, t);
    if (probe_is_last(p, layer)) finish_last_row(p, layer);
    else finish_layer(p, layer);
}

/* ---------------------------------------------------------------- backward */

/* d = dy/dx_end in the last row, 0 in all others. */
static void begin_backward(const tmx_probe *p)
{
    const struct probe_device *v = p->device;
    const tmx_model_info *m = &p->model->info;
    const device_buffers *b = &v->b;
    gpu_zero(v->g, b->d, at_row(p, p->n_tokens) * sizeof *b->d);
    gpu_embed(v->g, v->weights->lm_head.data, b->ints + p->n_tokens, 1, m->n_embd, 1.0f, b->row_normed);
    gpu_rmsnorm_back(v->g, b->row_normed, b->x_end, v->weights->output_norm, m->rms_eps, 1, m->n_embd, b->d + at_row(p, p->n_tokens - 1));
}

static void back_mlp(const tmx_probe *p, int32_t layer)
{
    const struct probe_device *v = p->device;
    const cuda_layer *w = &v->weights->layers[layer];
    const float *x1 = v->tape[layer].x1;
    const bool is_last = probe_is_last(p, layer);          /* its one row's gate_up is still there */
    for (probe_span s = { .begin = first_row(p, layer) }; next_chunk(p, &s);) {
        if (!is_last) {
            norm(p, x1, w->ffn_norm, s);
            product(p, &w->gate_up, v->b.normed, v->b.gate_up, s.n);
        }
        narrow_d(p, s);
        product_back(p, &w->down, v->b.d_wide, TMX_TYPE_F32, s.n);
        gpu_swiglu_back(v->g, v->b.d_wide, is_last ? v->b.row_gate_up : v->b.gate_up, is_last ? TMX_TYPE_F32 : TMX_TYPE_BF16, s.n,
                        p->model->info.n_ff, v->b.d_act);
        product_back(p, &w->gate_up, v->b.d_wide, TMX_TYPE_F32, s.n);
        norm_back(p, x1, w->ffn_norm, s);
    }
}

static void back_output(const tmx_probe *p, int32_t layer)
{
    const struct probe_device *v = p->device;
    const size_t n_q = n_q_of(&p->model->info), first = (size_t)first_row(p, layer);
    gpu_zero(v->g, v->b.d_o, 2 * first * n_q);
    for (probe_span s = { .begin = (int32_t)first }; next_chunk(p, &s);) {
        narrow_d(p, s);
        product_back(p, &v->weights->layers[layer].attn_output, bf16_row(v->b.d_o, (size_t)s.begin, n_q), TMX_TYPE_BF16, s.n);
    }
}

static void back_attention(const tmx_probe *p, int32_t layer)
{
    const struct probe_device *v = p->device;
    const tmx_model_info *m = &p->model->info;
    const device_tape *t = &v->tape[layer];
    const gpu_attn_back back = {
        .n_tokens = p->n_tokens, .n_heads = m->n_heads, .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim,
        .n_ctx = p->params.n_tokens, .scale = scale_of(p), .sections = p->sections,
        .q = t->q, .o = t->o, .d_o = v->b.d_o, .k = t->k, .v = t->v, .lse = t->lse, .d_qkv = layer > 0 ? v->b.d_qkv : NULL,
        .sums = v->b.sums + (size_t)layer * N_SECTIONS * N_SUMS, .scratch = v->b.scratch,
    };
    gpu_attn_back_run(v->g, &back);
}

static void back_input(const tmx_probe *p, int32_t layer)
{
    const struct probe_device *v = p->device;
    const model_shape *m = &p->model->tensors.shape;
    const cuda_layer *w = &v->weights->layers[layer];
    for (probe_span s = { 0 }; next_chunk(p, &s);) {
        const size_t at = (size_t)s.begin, at_angle = at * ((size_t)m->n_rot / 2);
        const gpu_heads_back heads = {
            .cos = v->b.cos + at_angle, .sin = v->b.sin + at_angle, .n_rows = s.n, .n_heads = m->n_heads, .n_kv_heads = m->n_kv_heads,
            .head_dim = m->head_dim, .n_rot = m->n_rot, .rope = m->rope, .q_norm = w->q_norm, .k_norm = w->k_norm, .norm_eps = m->rms_eps,
            .qkv = v->b.qkv, .bias = w->bias,
        };
        if (w->q_norm != NULL) {                           /* q and k before their norms are made again */
            norm(p, v->tape[layer].x, w->attn_norm, s);
            product(p, &w->qkv, v->b.normed, v->b.qkv, s.n);
        }
        gpu_heads_back_run(v->g, &heads, v->b.d_qkv + at * n_qkv_of(&p->model->info), v->b.d_act);
        product_back(p, &w->qkv, v->b.d_wide, TMX_TYPE_F32, s.n);
        norm_back(p, v->tape[layer].x, w->attn_norm, s);
    }
}

static void backward(tmx_probe *p, int32_t layer)
{
    if (probe_is_last(p, layer)) begin_backward(p);
    back_mlp(p, layer);
    back_output(p, layer);
    back_attention(p, layer);
    if (layer > 0) back_input(p, layer);
}

/* ---------------------------------------------------------------- waiting */

/* What the last prompt left behind, if it was stopped, is done before the pinned numbers change. */
static tmx_status begin(tmx_probe *p, const int32_t *tokens, int32_t target, tmx_error *err)
{
    struct probe_device *v = p->device;
    const size_t n = (size_t)p->n_tokens;
    TRY(gpu_wait(v->g, err));
    memcpy(v->ints, tokens, n * sizeof *tokens);
    v->ints[n] = target;
    gpu_upload(v->g, v->b.ints, v->ints, (n + 1) * sizeof *v->ints);
    v->n_passes = 0;
    return TMX_OK;
}

static tmx_status first_failure(const struct probe_device *v, tmx_error *err)
{
    if (v->failure.code != TMX_OK && err != NULL) *err = v->failure;
    return v->failure.code;
}

static tmx_status catch_up(tmx_probe *p, tmx_error *err)
{
    struct probe_device *v = p->device;
    gpu_mark_set(v->g, v->marks[v->n_passes % N_MARKS]);
    v->n_passes++;
    if (v->n_passes >= N_MARKS) TRY(gpu_mark_wait(v->g, v->marks[v->n_passes % N_MARKS], err));
    return first_failure(v, err);
}

static tmx_status read_logits(tmx_probe *p, tmx_error *err)
{
    struct probe_device *v = p->device;
    return gpu_download(v->g, v->logits, v->b.logits, (size_t)p->model->info.n_vocab * sizeof *v->logits, err);
}

static tmx_status read_sums(tmx_probe *p, tmx_error *err)
{
    return gpu_download(p->device->g, p->found, p->device->b.sums, (size_t)p->model->info.n_layers * sizeof *p->found, err);
}

const probe_backend probe_cuda = {
    .plan_memory = plan_memory, .create = create, .free = free_device, .begin = begin, .forward = forward, .backward = backward,
    .catch_up = catch_up, .read_logits = read_logits, .read_sums = read_sums,
};
