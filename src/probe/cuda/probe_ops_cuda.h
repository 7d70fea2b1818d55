/* probe_ops_cuda.h - what the probe computes on a CUDA device beside ops_cuda.h: the derivatives of the steps between products, and
 * the backward pass of attention with its sums over sections.  In: device pointers, shapes.  Out: kernels enqueued on the
 * device's stream, errors kept as there.  probe_ops_none.c stands in where there is no nvcc.
 *
 * Formulas: rows.h, attn_back.h.  Sums have one order, so the same input gives the same bits. */
#ifndef TMX_PROBE_PROBE_OPS_CUDA_H
#define TMX_PROBE_PROBE_OPS_CUDA_H

#include "ops/cuda/ops_cuda.h"
#include "probe/attn_back_kernel.h"
#include "tmx.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- rows */

void gpu_zero(gpu *g, void *data, size_t n_bytes);
void gpu_copy(gpu *g, void *to, const void *from, size_t n_bytes);              /* device to device */
void gpu_narrow(gpu *g, const float *x, size_t n, void *y);                     /* f32 -> bf16; n a multiple of 8 */
/* d_x[r] += the derivative of RMSNorm at x[r], applied to d_y[r]; all f32 [n_rows][n_embd], n_embd a multiple of 4. */
void gpu_rmsnorm_back(gpu *g, const float *d_y, const float *x, const float *weight, float eps, int32_t n_rows, int32_t n_embd,
                      float *d_x);
/* d_y f32 [n_rows][n_ff], gate_up [n_rows][2 n_ff] bf16 or f32 -> d_gate_up bf16 [n_rows][2 n_ff]; n_ff a multiple of 8. */
void gpu_swiglu_back(gpu *g, const float *d_y, const void *gate_up, tmx_type type, int32_t n_rows, int32_t n_ff, void *d_gate_up);

/* Derivatives by heads of q, k and v as gpu_place_heads made them: q and k turned back by the angles they were turned by, then, if
 * they were normed, by way of that norm; all narrowed. */
typedef struct gpu_heads_back {
    const float *cos, *sin;        /* [n_rows][n_rot / 2] */
    int32_t n_rows, n_heads, n_kv_heads;
    int32_t head_dim, n_rot;       /* head_dim 64, 96 or 128 */
    rope_style rope;
    const float *q_norm, *k_norm;  /* [head_dim]; both NULL: none */
    float norm_eps;
    const void *qkv;               /* bf16, what gpu_place_heads read; where there are norms */
    const float *bias;             /* [(n_heads + 2 n_kv_heads) * head_dim] or NULL */
} gpu_heads_back;
/* d_heads f32 -> d_qkv bf16, both [n_rows][n_heads + 2 n_kv_heads][head_dim]. */
void gpu_heads_back_run(gpu *g, const gpu_heads_back *heads, const float *d_heads, void *d_qkv);

/* ---------------------------------------------------------------- attention */

typedef struct gpu_attn_back {
    int32_t n_tokens, n_heads, n_kv_heads, head_dim;       /* head_dim 64, 96 or 128 */
    int32_t n_ctx;                 /* positions of k and v there is room for */
    float scale;
    tmx_pattern sections;          /* a triangle */
    const void *q, *o, *d_o;       /* bf16 [n_tokens][n_heads][head_dim] */
    const void *k, *v;             /* bf16 [n_kv_heads][n_ctx][head_dim] */
    const float *lse;              /* [n_tokens][n_heads], natural log */
    float *d_qkv;                  /* [n_tokens][n_heads + 2 n_kv_heads][head_dim], written; NULL: the sums alone */
    double *sums;                  /* [N_SECTIONS][N_SUMS], written */
    void *scratch;                 /* gpu_attn_back_scratch_bytes, 256-byte aligned */
} gpu_attn_back;

size_t gpu_attn_back_scratch_bytes(int32_t n_tokens, int32_t n_heads);
void gpu_attn_back_run(gpu *g, const gpu_attn_back *back);

#ifdef __cplusplus
}
#endif
#endif
