/* rows.h - everything between the matrix products, one row at a time.  In: f32 rows.  Out: f32 rows, or rows of the
 * activation type the next product wants (bf16 rounded to nearest even).  One table of functions per rung, filled with
 * the scalar form first; a row's bits depend on nothing but the row and the rung. */
#ifndef TMX_OPS_ROWS_H
#define TMX_OPS_ROWS_H

#include "tmx.h"

typedef enum rope_style {
    ROPE_INTERLEAVED = 0,          /* pairs (2i, 2i+1): GGUF llama */
    ROPE_HALF_SPLIT = 1,           /* pairs (i, i + n_rot/2): qwen, gemma, phi */
} rope_style;

typedef struct row_ops {
    /* y[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i] */
    void (*rmsnorm)(const float *x, const float *weight, float eps, int32_t n, void *y, tmx_type y_type);
    /* y[i] = gate[i] / (1 + exp(-gate[i])) * up[i] */
    void (*swiglu)(const float *gate, const float *up, int32_t n, void *y, tmx_type y_type);
    /* y[i] = gelu(gate[i]) * up[i], the tanh form: gelu(g) = g / (1 + exp(-2 t)), t = sqrt(2/pi) (g + 0.044715 g^3) */
    void (*geglu)(const float *gate, const float *up, int32_t n, void *y, tmx_type y_type);
    /* One head rotated: the first n_rot of head_dim elements; cos, sin [n_rot / 2]; the rest is copied.  y may be x if
     * it is f32. */
    void (*rope)(const float *x, const float *cos, const float *sin, int32_t n_rot, int32_t head_dim, rope_style style,
                 void *y, tmx_type y_type);
    void (*convert)(const float *x, int32_t n, void *y, tmx_type y_type);

    /* The derivatives of the first three.  d_y is what the scalar at the end changes by for each element of y.
     * dx[i] += r g[i] - r^3 mean(g x) x[i],  g = d_y weight,  r = 1 / sqrt(mean(x^2) + eps) */
    void (*rmsnorm_back)(const float *d_y, const float *x, const float *weight, float eps, int32_t n, float *dx);
    /* d_gate[i] = d_y[i] up[i] s (1 + gate[i] (1 - s)),  d_up[i] = d_y[i] gate[i] s,  s = 1 / (1 + exp(-gate[i])) */
    void (*swiglu_back)(const float *d_y, const float *gate, const float *up, int32_t n, void *d_gate, void *d_up,
                        tmx_type d_type);
    /* d_gate[i] = d_y[i] up[i] s (1 + 2 gate[i] (1 - s) t'),  d_up[i] = d_y[i] gate[i] s,  s = 1 / (1 + exp(-2 t)),
     * t' = sqrt(2/pi) (1 + 3 * 0.044715 gate[i]^2) */
    void (*geglu_back)(const float *d_y, const float *gate, const float *up, int32_t n, void *d_gate, void *d_up,
                       tmx_type d_type);
} row_ops;

const row_ops *row_ops_get(tmx_isa isa);       /* AUTO or a rung the CPU lacks: the best there is */

/* RoPE of one kind of layer. */
typedef struct rope_table {
    const float *frequency;        /* [n_pairs]: angle per position */
    int32_t n_pairs;
    float factor;                  /* on cos and sin; 1 but for scaled RoPE */
} rope_table;

/* factor * cos and sin of position * frequency[i], [n_pairs] each.  The angle is rounded to f32 as in the models' training
 * code, then taken in f64. */
void rope_angles(int32_t position, const rope_table *table, float *cos, float *sin);

#endif
