/* rows_avx512.c - the row operations, 16 elements at a time; tails by masks.  All of them are bound by the bytes of the
 * row, which has just left the cache of a matrix product, or is about to enter one. */
#include "base/unroll.h"
#include "ops/rows_kernel.h"

#include <immintrin.h>
#include <math.h>

enum { LANES = 16 };

ALWAYS_INLINE __mmask16 lanes_left(int32_t n) { return (__mmask16)(n >= LANES ? 0xffffu : (1u << n) - 1u); }
ALWAYS_INLINE __m512 load(const float *x, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, x); }

/* Bit for bit base/num.h: nearest even, denormals kept (vcvtneps2bf16 would flush them), NaN quieted. */
ALWAYS_INLINE __m256i to_bf16(__m512 value)
{
    const __m512i bits = _mm512_castps_si512(value), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i carry = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, carry), 16);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40)));
}

ALWAYS_INLINE void store(void *y, int32_t i, __m512 value, __mmask16 mask, tmx_type type)
{
    if (type == TMX_TYPE_BF16) _mm256_mask_storeu_epi16((uint16_t *)y + i, mask, to_bf16(value));
    else _mm512_mask_storeu_ps((float *)y + i, mask, value);
}

static void convert(const float *x, int32_t n, void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        store(y, i, load(x + i, mask), mask, y_type);
    }
}

static void rmsnorm(const float *x, const float *weight, float eps, int32_t n, void *y, tmx_type y_type)
{
    __m512d sum_lo = _mm512_setzero_pd(), sum_hi = _mm512_setzero_pd();
    for (int32_t i = 0; i < n; i += LANES) {
        const __m512 x_i = load(x + i, lanes_left(n - i));
        const __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(x_i));
        const __m512d hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x_i, 1));
        sum_lo = _mm512_fmadd_pd(lo, lo, sum_lo);
        sum_hi = _mm512_fmadd_pd(hi, hi, sum_hi);
    }
    const double mean = _mm512_reduce_add_pd(_mm512_add_pd(sum_lo, sum_hi)) / n;
    const __m512 scale = _mm512_set1_ps((float)(1.0 / sqrt(mean + (double)eps)));
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        store(y, i, _mm512_mul_ps(_mm512_mul_ps(load(x + i, mask), scale), load(weight + i, mask)), mask, y_type);
    }
}

/* e^x = 2^k * e^r, k = round(x / ln 2), |r| <= ln 2 / 2; e^r by its Taylor sum to r^7 / 7!, whose remainder is below
 * 6e-9.  scalef overflows to infinity and underflows to zero as expf does; beyond +-110 nothing changes any more, and
 * r would lose its meaning.  The limits come first in min and max, which keeps a NaN. */
ALWAYS_INLINE __m512 exp_lanes(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-110), _mm512_min_ps(_mm512_set1_ps(110), x));
    const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0x1.62e400p-1f), x);       /* ln 2 in two parts */
    r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    __m512 sum = _mm512_set1_ps(1.0f / 5040);
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 720));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 120));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 24));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f / 6));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1));
    return _mm512_scalef_ps(sum, k);
}

static void swiglu(const float *gate, const float *up, int32_t n, void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        const __m512 g = load(gate + i, mask), e = exp_lanes(_mm512_sub_ps(_mm512_setzero_ps(), g));
        const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1), e));
        store(y, i, _mm512_mul_ps(silu, load(up + i, mask)), mask, y_type);
    }
}

/* 1 / (1 + exp(-2 t)); *square = g^2 */
ALWAYS_INLINE __m512 gelu_share(__m512 g, __m512 *square)
{
    *square = _mm512_mul_ps(g, g);
    const __m512 t = _mm512_mul_ps(g, _mm512_fmadd_ps(_mm512_set1_ps(GELU_B), *square, _mm512_set1_ps(GELU_A)));
    const __m512 one = _mm512_set1_ps(1), e = exp_lanes(_mm512_sub_ps(_mm512_setzero_ps(), t));
    return _mm512_div_ps(one, _mm512_add_ps(one, e));
}

static void geglu(const float *gate, const float *up, int32_t n, void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        const __m512 g = load(gate + i, mask);
        __m512 square;
        store(y, i, _mm512_mul_ps(_mm512_mul_ps(g, gelu_share(g, &square)), load(up + i, mask)), mask, y_type);
    }
}

static void rope_halves(const float *x, const float *cos_row, const float *sin_row, int32_t n_pairs,
                        void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n_pairs; i += LANES) {
        const __mmask16 mask = lanes_left(n_pairs - i);
        const __m512 c = load(cos_row + i, mask), s = load(sin_row + i, mask);
        const __m512 x_a = load(x + i, mask), x_b = load(x + n_pairs + i, mask);
        store(y, i, _mm512_fmsub_ps(x_a, c, _mm512_mul_ps(x_b, s)), mask, y_type);
        store(y, n_pairs + i, _mm512_fmadd_ps(x_a, s, _mm512_mul_ps(x_b, c)), mask, y_type);
    }
}

static void rope_pairs(const float *x, const float *cos_row, const float *sin_row, int32_t n_pairs,
                       void *y, tmx_type y_type)
{
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    for (int32_t i = 0; i < n_pairs; i += LANES / 2) {
        const __mmask16 mask = lanes_left(2 * (n_pairs - i)), pair_mask = lanes_left(n_pairs - i) & 0xff;
        const __m512 c = _mm512_permutexvar_ps(twice, load(cos_row + i, pair_mask));
        const __m512 s = _mm512_permutexvar_ps(twice, load(sin_row + i, pair_mask));
        const __m512 x_i = load(x + 2 * i, mask), swapped = _mm512_permute_ps(x_i, 0xb1);
        store(y, 2 * i, _mm512_fmaddsub_ps(x_i, c, _mm512_mul_ps(swapped, s)), mask, y_type);
    }
}

static void rope(const float *x, const float *cos_row, const float *sin_row, int32_t n_rot, int32_t head_dim,
                 rope_style style, void *y, tmx_type y_type)
{
    const int32_t n_pairs = n_rot / 2, n_rotated = 2 * n_pairs;
    if (style == ROPE_INTERLEAVED) rope_pairs(x, cos_row, sin_row, n_pairs, y, y_type);
    else rope_halves(x, cos_row, sin_row, n_pairs, y, y_type);
    for (int32_t i = n_rotated; i < head_dim; i += LANES) {
        const __mmask16 mask = lanes_left(head_dim - i);
        store(y, i, load(x + i, mask), mask, y_type);
    }
}

ALWAYS_INLINE __m512d low_half(__m512 x) { return _mm512_cvtps_pd(_mm512_castps512_ps256(x)); }
ALWAYS_INLINE __m512d high_half(__m512 x) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)); }

static void rmsnorm_back(const float *d_y, const float *x, const float *weight, float eps, int32_t n, float *dx)
{
    __m512d sum_lo = _mm512_setzero_pd(), sum_hi = sum_lo, product_lo = sum_lo, product_hi = sum_lo;
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        const __m512 x_i = load(x + i, mask), g = _mm512_mul_ps(load(d_y + i, mask), load(weight + i, mask));
        sum_lo = _mm512_fmadd_pd(low_half(x_i), low_half(x_i), sum_lo);
        sum_hi = _mm512_fmadd_pd(high_half(x_i), high_half(x_i), sum_hi);
        product_lo = _mm512_fmadd_pd(low_half(g), low_half(x_i), product_lo);
        product_hi = _mm512_fmadd_pd(high_half(g), high_half(x_i), product_hi);
    }
    const double r = 1.0 / sqrt(_mm512_reduce_add_pd(_mm512_add_pd(sum_lo, sum_hi)) / n + (double)eps);
    const double mean = _mm512_reduce_add_pd(_mm512_add_pd(product_lo, product_hi)) / n;
    const __m512 scale = _mm512_set1_ps((float)r), back = _mm512_set1_ps((float)(r * r * r * mean));
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        const __m512 g = _mm512_mul_ps(load(d_y + i, mask), load(weight + i, mask));
        const __m512 d = _mm512_fmsub_ps(g, scale, _mm512_mul_ps(back, load(x + i, mask)));
        store(dx, i, _mm512_add_ps(load(dx + i, mask), d), mask, TMX_TYPE_F32);
    }
}

static void swiglu_back(const float *d_y, const float *gate, const float *up, int32_t n, void *d_gate, void *d_up,
                        tmx_type d_type)
{
    const __m512 one = _mm512_set1_ps(1);
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        const __m512 g = load(gate + i, mask), e = exp_lanes(_mm512_sub_ps(_mm512_setzero_ps(), g));
        const __m512 s = _mm512_div_ps(one, _mm512_add_ps(one, e)), d_s = _mm512_mul_ps(load(d_y + i, mask), s);
        const __m512 slope = _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one);
        store(d_gate, i, _mm512_mul_ps(_mm512_mul_ps(d_s, load(up + i, mask)), slope), mask, d_type);
        store(d_up, i, _mm512_mul_ps(d_s, g), mask, d_type);
    }
}

static void geglu_back(const float *d_y, const float *gate, const float *up, int32_t n, void *d_gate, void *d_up,
                       tmx_type d_type)
{
    const __m512 one = _mm512_set1_ps(1);
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 mask = lanes_left(n - i);
        __m512 square;
        const __m512 g = load(gate + i, mask), s = gelu_share(g, &square), d_s = _mm512_mul_ps(load(d_y + i, mask), s);
        const __m512 steep = _mm512_fmadd_ps(_mm512_set1_ps(3 * GELU_B), square, _mm512_set1_ps(GELU_A));
        const __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(g, _mm512_sub_ps(one, s)), steep, one);
        store(d_gate, i, _mm512_mul_ps(_mm512_mul_ps(d_s, load(up + i, mask)), slope), mask, d_type);
        store(d_up, i, _mm512_mul_ps(d_s, g), mask, d_type);
    }
}

const row_ops row_ops_avx512 = {
    .rmsnorm = rmsnorm, .swiglu = swiglu, .geglu = geglu, .rope = rope, .convert = convert,
    .rmsnorm_back = rmsnorm_back, .swiglu_back = swiglu_back, .geglu_back = geglu_back,
};
