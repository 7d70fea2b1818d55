/* rows_scalar.c - the plain form of every row operation; the other rungs are checked against it. */
#include "base/num.h"
#include "ops/rows_kernel.h"

#include <math.h>

static inline void store(void *y, int32_t i, float value, tmx_type type)
{
    if (type == TMX_TYPE_BF16) ((tmx_bf16 *)y)[i] = bf16_from_f32(value);
    else ((float *)y)[i] = value;
}

static void convert(const float *x, int32_t n, void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n; i++) store(y, i, x[i], y_type);
}

static void rmsnorm(const float *x, const float *weight, float eps, int32_t n, void *y, tmx_type y_type)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    const float scale = (float)(1.0 / sqrt(sum / n + (double)eps));
    for (int32_t i = 0; i < n; i++) store(y, i, x[i] * scale * weight[i], y_type);
}

static void swiglu(const float *gate, const float *up, int32_t n, void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n; i++) store(y, i, gate[i] / (1.0f + expf(-gate[i])) * up[i], y_type);
}

/* 1 / (1 + exp(-2 t)) */
static float gelu_share(float g) { return 1.0f / (1.0f + expf(-g * (GELU_A + GELU_B * g * g))); }

static void geglu(const float *gate, const float *up, int32_t n, void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n; i++) store(y, i, gate[i] * gelu_share(gate[i]) * up[i], y_type);
}

static void rope(const float *x, const float *cos_row, const float *sin_row, int32_t n_rot, int32_t head_dim,
                 rope_style style, void *y, tmx_type y_type)
{
    const int32_t n_pairs = n_rot / 2;
    for (int32_t i = 0; i < n_pairs; i++) {
        const int32_t a = style == ROPE_INTERLEAVED ? 2 * i : i, b = style == ROPE_INTERLEAVED ? a + 1 : a + n_pairs;
        const float x_a = x[a], x_b = x[b];
        store(y, a, x_a * cos_row[i] - x_b * sin_row[i], y_type);
        store(y, b, x_a * sin_row[i] + x_b * cos_row[i], y_type);
    }
    for (int32_t i = 2 * n_pairs; i < head_dim; i++) store(y, i, x[i], y_type);
}

static void rmsnorm_back(const float *d_y, const float *x, const float *weight, float eps, int32_t n, float *dx)
{
    double sum = 0, product = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
        product += (double)d_y[i] * (double)weight[i] * (double)x[i];
    }
    const double r = 1.0 / sqrt(sum / n + (double)eps);
    const float scale = (float)r, back = (float)(r * r * r * (product / n));
    for (int32_t i = 0; i < n; i++) dx[i] += d_y[i] * weight[i] * scale - back * x[i];
}

static void swiglu_back(const float *d_y, const float *gate, const float *up, int32_t n, void *d_gate, void *d_up,
                        tmx_type d_type)
{
    for (int32_t i = 0; i < n; i++) {
        const float s = 1.0f / (1.0f + expf(-gate[i])), d_s = d_y[i] * s;
        store(d_gate, i, d_s * up[i] * (1.0f + gate[i] * (1.0f - s)), d_type);
        store(d_up, i, d_s * gate[i], d_type);
    }
}

static void geglu_back(const float *d_y, const float *gate, const float *up, int32_t n, void *d_gate, void *d_up,
                       tmx_type d_type)
{
    for (int32_t i = 0; i < n; i++) {
        const float g = gate[i], s = gelu_share(g), d_s = d_y[i] * s;
        store(d_gate, i, d_s * up[i] * (1.0f + g * (1.0f - s) * (GELU_A + 3 * GELU_B * g * g)), d_type);
        store(d_up, i, d_s * g, d_type);
    }
}

const row_ops row_ops_scalar = {
    .rmsnorm = rmsnorm, .swiglu = swiglu, .geglu = geglu, .rope = rope, .convert = convert,
    .rmsnorm_back = rmsnorm_back, .swiglu_back = swiglu_back, .geglu_back = geglu_back,
};
