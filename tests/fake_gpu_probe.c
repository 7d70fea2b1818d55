/* fake_gpu_probe.c - probe_ops_cuda.h on host memory, through the queue of fake_gpu.c: the definitions of rows.h and attn_back.h in
 * plain loops, with the roundings of the device operators: bf16 operands, P and dS rounded to bf16, the sums in f64. */
#include "base/mem.h"
#include "base/num.h"
#include "fake_gpu.h"
#include "pattern/pattern.h"
#include "probe/cuda/probe_ops_cuda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct copy_args { void *to; const void *from; size_t n; } copy_args;

static float get(const void *x, size_t i) { return bf16_to_f32(((const tmx_bf16 *)x)[i]); }
static void put(void *x, size_t i, float value) { ((tmx_bf16 *)x)[i] = bf16_from_f32(value); }
static double rounded(double x) { return (double)bf16_to_f32(bf16_from_f32((float)x)); }

static void *must(void *block)
{
    if (block == NULL) abort();
    return block;
}

/* ---------------------------------------------------------------- rows */

static void run_zero(const void *args)
{
    const copy_args *a = args;
    memset(a->to, 0, a->n);
}

static void run_copy(const void *args)
{
    const copy_args *a = args;
    memcpy(a->to, a->from, a->n);
}

static void run_narrow(const void *args)
{
    const copy_args *a = args;
    for (size_t i = 0; i < a->n; i++) put(a->to, i, ((const float *)a->from)[i]);
}

void gpu_zero(gpu *g, void *data, size_t n_bytes)
{
    fake_gpu_enqueue(g, run_zero, &(copy_args){ .to = data, .n = n_bytes }, sizeof(copy_args));
}

void gpu_copy(gpu *g, void *to, const void *from, size_t n_bytes)
{
    fake_gpu_enqueue(g, run_copy, &(copy_args){ .to = to, .from = from, .n = n_bytes }, sizeof(copy_args));
}

void gpu_narrow(gpu *g, const float *x, size_t n, void *y)
{
    fake_gpu_enqueue(g, run_narrow, &(copy_args){ .to = y, .from = x, .n = n }, sizeof(copy_args));
}

typedef struct back_args {
    const float *d_y, *x, *weight;
    const void *gate_up;
    void *to;
    float eps;
    int32_t n_rows, n;
    tmx_type type;
} back_args;

static void run_norm_back(const void *args)
{
    const back_args *a = args;
    for (int32_t r = 0; r < a->n_rows; r++) {
        const size_t at = (size_t)r * (size_t)a->n;
        row_ops_get(TMX_ISA_SCALAR)->rmsnorm_back(a->d_y + at, a->x + at, a->weight, a->eps, a->n, (float *)a->to + at);
    }
}

void gpu_rmsnorm_back(gpu *g, const float *d_y, const float *x, const float *weight, float eps, int32_t n_rows, int32_t n_embd,
                      float *d_x)
{
    const back_args args = { .d_y = d_y, .x = x, .weight = weight, .eps = eps, .n_rows = n_rows, .n = n_embd, .to = d_x };
    fake_gpu_enqueue(g, run_norm_back, &args, sizeof args);
}

static void run_swiglu_back(const void *args)
{
    const back_args *a = args;
    const size_t n_ff = (size_t)a->n;
    float *gate_up = must(mem_alloc(2 * n_ff, sizeof *gate_up));
    for (size_t r = 0; r < (size_t)a->n_rows; r++) {
        for (size_t i = 0; i < 2 * n_ff; i++) {
            const size_t at = r * 2 * n_ff + i;
            gate_up[i] = a->type == TMX_TYPE_BF16 ? get(a->gate_up, at) : ((const float *)a->gate_up)[at];
        }
        tmx_bf16 *to = (tmx_bf16 *)a->to + r * 2 * n_ff;
        row_ops_get(TMX_ISA_SCALAR)->swiglu_back(a->d_y + r * n_ff, gate_up, gate_up + n_ff, a->n, to, to + n_ff, TMX_TYPE_BF16);
    }
    mem_free(gate_up);
}

void gpu_swiglu_back(gpu *g, const float *d_y, const void *gate_up, tmx_type type, int32_t n_rows, int32_t n_ff, void *d_gate_up)
{
    const back_args args = { .d_y = d_y, .gate_up = gate_up, .type = type, .n_rows = n_rows, .n = n_ff, .to = d_gate_up };
    fake_gpu_enqueue(g, run_swiglu_back, &args, sizeof args);
}

typedef struct heads_args { gpu_heads_back heads; const float *d_heads; tmx_bf16 *d_qkv; } heads_args;

static void run_heads_back(const void *args)
{
    const heads_args *a = args;
    const gpu_heads_back *t = &a->heads;
    const row_ops *ops = row_ops_get(TMX_ISA_SCALAR);
    const size_t n_pairs = (size_t)t->n_rot / 2, head_dim = (size_t)t->head_dim, n_heads = (size_t)t->n_heads, n_kv = (size_t)t->n_kv_heads;
    float back[128], turned[128], raw[128];
    for (size_t r = 0; r < (size_t)t->n_rows; r++) {
        for (size_t i = 0; i < n_pairs; i++) back[i] = -t->sin[r * n_pairs + i];
        for (size_t h = 0; h < n_heads + 2 * n_kv; h++) {
            const size_t at = (r * (n_heads + 2 * n_kv) + h) * head_dim;
            const float *norm = h < n_heads ? t->q_norm : h < n_heads + n_kv ? t->k_norm : NULL, *d = a->d_heads + at;
            if (h < n_heads + n_kv) {
                ops->rope(d, t->cos + r * n_pairs, back, t->n_rot, t->head_dim, t->rope, turned, TMX_TYPE_F32);
                d = turned;
            }
            if (norm != NULL) {
                float d_raw[128] = { 0 };
                for (size_t i = 0; i < head_dim; i++) raw[i] = get(t->qkv, at + i) + (t->bias != NULL ? t->bias[h * head_dim + i] : 0);
                ops->rmsnorm_back(d, raw, norm, t->norm_eps, t->head_dim, d_raw);
                ops->convert(d_raw, t->head_dim, a->d_qkv + at, TMX_TYPE_BF16);
            } else {
                ops->convert(d, t->head_dim, a->d_qkv + at, TMX_TYPE_BF16);
            }
        }
    }
}

void gpu_heads_back_run(gpu *g, const gpu_heads_back *heads, const float *d_heads, void *d_qkv)
{
    const heads_args args = { .heads = *heads, .d_heads = d_heads, .d_qkv = d_qkv };
    fake_gpu_enqueue(g, run_heads_back, &args, sizeof args);
}

/* ---------------------------------------------------------------- attention */

static size_t q_row(const gpu_attn_back *b, int32_t i, int32_t h)
{
    return ((size_t)i * (size_t)b->n_heads + (size_t)h) * (size_t)b->head_dim;
}

static size_t kv_row(const gpu_attn_back *b, int32_t j, int32_t kv_head)
{
    return ((size_t)kv_head * (size_t)b->n_ctx + (size_t)j) * (size_t)b->head_dim;
}

static double dot(const void *x, size_t at, const void *y, size_t y_at, int32_t n)
{
    float sums[8] = { 0 }, sum = 0;
    for (size_t i = 0; i < (size_t)n; i += 8) {
        for (size_t k = 0; k < 8; k++) sums[k] += get(x, at + i + k) * get(y, y_at + i + k);
    }
    for (int k = 0; k < 8; k++) sum += sums[k];
    return (double)sum;
}

static void add(float *to, double weight, const void *x, size_t at, int32_t n)
{
    for (size_t d = 0; d < (size_t)n; d++) to[d] += (float)weight * get(x, at + d);
}

static void run_attn_back(const void *args)
{
    const gpu_attn_back *b = args;
    const int32_t n_dim = b->head_dim, n_all = b->n_heads + 2 * b->n_kv_heads, tail = pattern_first_dense_row(&b->sections, b->n_tokens);
    double (*sums)[N_SUMS] = (double (*)[N_SUMS])(void *)b->sums;
    memset(sums, 0, N_SECTIONS * sizeof *sums);
    if (b->d_qkv != NULL) memset(b->d_qkv, 0, (size_t)b->n_tokens * (size_t)(n_all * n_dim) * sizeof *b->d_qkv);
    for (int32_t i = 0; i < b->n_tokens; i++) {
        for (int32_t j = 0; j <= i; j++) {
            const bool is_streaming = j < b->sections.n_sink || i - j < b->sections.n_window;
            double *sum = sums[is_streaming ? SECTION_STREAMING : i >= tail ? SECTION_LAST : SECTION_MIDDLE], theta = 0;
            for (int32_t h = 0; h < b->n_heads; h++) {
                const int32_t kv_head = h / (b->n_heads / b->n_kv_heads);
                const size_t q = q_row(b, i, h), k = kv_row(b, j, kv_head);
                const double p = exp((double)b->scale * dot(b->q, q, b->k, k, n_dim) - (double)b->lse[i * b->n_heads + h]);
                const double da = dot(b->d_o, q, b->v, k, n_dim);
                theta += p * da;
                sum[SUM_HEAD_ABS] += fabs(p * da);
                sum[SUM_DA_ABS] += fabs(da);
                sum[SUM_ATTENTION] += p;
                if (b->d_qkv == NULL) continue;
                float *d_row = b->d_qkv + (size_t)i * (size_t)(n_all * n_dim), *d_key = b->d_qkv + (size_t)j * (size_t)(n_all * n_dim);
                const double ds = rounded((double)b->scale * p * (da - dot(b->d_o, q, b->o, q, n_dim)));
                add(d_row + h * n_dim, ds, b->k, k, n_dim);
                add(d_key + (b->n_heads + kv_head) * n_dim, ds, b->q, q, n_dim);
                add(d_key + (b->n_heads + b->n_kv_heads + kv_head) * n_dim, rounded(p), b->d_o, q, n_dim);
            }
            sum[SUM_THETA_ABS] += fabs(theta);
            sum[SUM_THETA_SIGNED] += theta;
        }
    }
}

size_t gpu_attn_back_scratch_bytes(int32_t n_tokens, int32_t n_heads) { return (size_t)n_tokens * (size_t)n_heads * sizeof(float); }
void gpu_attn_back_run(gpu *g, const gpu_attn_back *back) { fake_gpu_enqueue(g, run_attn_back, back, sizeof *back); }
