/* rows_avx2.c - the row operations, 8 elements at a time; tails by masked loads and partial stores. */
#include "base/unroll.h"
#include "ops/rows_kernel.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

enum { LANES = 8 };

ALWAYS_INLINE int32_t lanes_left(int32_t n) { return n < LANES ? n : LANES; }

ALWAYS_INLINE __m256i lane_mask(int32_t n_lanes)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n_lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

ALWAYS_INLINE __m256 load(const float *x, int32_t n_lanes)
{
    return n_lanes == LANES ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, lane_mask(n_lanes));
}

/* Bit for bit base/num.h: nearest even, denormals kept, NaN quieted. */
ALWAYS_INLINE __m128i to_bf16(__m256 value)
{
    const __m256i bits = _mm256_castps_si256(value), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i carry = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, carry), 16);
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i wide = _mm256_blendv_epi8(rounded, quiet, is_nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}

ALWAYS_INLINE void store(void *y, int32_t i, __m256 value, int32_t n_lanes, tmx_type type)
{
    if (type == TMX_TYPE_BF16) {
        const __m128i narrow = to_bf16(value);
        memcpy((uint16_t *)y + i, &narrow, (size_t)n_lanes * sizeof(uint16_t));
    } else if (n_lanes == LANES) {
        _mm256_storeu_ps((float *)y + i, value);
    } else {
        _mm256_maskstore_ps((float *)y + i, lane_mask(n_lanes), value);
    }
}

ALWAYS_INLINE double sum_lanes(__m256d sum)
{
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd(sum, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

static void convert(const float *x, int32_t n, void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n; i += LANES) {
        const int32_t n_lanes = lanes_left(n - i);
        store(y, i, load(x + i, n_lanes), n_lanes, y_type);
    }
}

static void rmsnorm(const float *x, const float *weight, float eps, int32_t n, void *y, tmx_type y_type)
{
    __m256d sum_lo = _mm256_setzero_pd(), sum_hi = _mm256_setzero_pd();
    for (int32_t i = 0; i < n; i += LANES) {
        const __m256 x_i = load(x + i, lanes_left(n - i));
        const __m256d lo = _mm256_cvtps_pd(_mm256_castps256_ps128(x_i));
        const __m256d hi = _mm256_cvtps_pd(_mm256_extractf128_ps(x_i, 1));
        sum_lo = _mm256_fmadd_pd(lo, lo, sum_lo);
        sum_hi = _mm256_fmadd_pd(hi, hi, sum_hi);
    }
    const double mean = sum_lanes(_mm256_add_pd(sum_lo, sum_hi)) / n;
    const __m256 scale = _mm256_set1_ps((float)(1.0 / sqrt(mean + (double)eps)));
    for (int32_t i = 0; i < n; i += LANES) {
        const int32_t n_lanes = lanes_left(n - i);
        const __m256 scaled = _mm256_mul_ps(load(x + i, n_lanes), scale);
        store(y, i, _mm256_mul_ps(scaled, load(weight + i, n_lanes)), n_lanes, y_type);
    }
}

/* e^x = 2^k * e^r, k = round(x / ln 2), |r| <= ln 2 / 2; e^r by its Taylor sum to r^7 / 7!, whose remainder is below
 * 6e-9.  2^k is written into the exponent, so x is held inside [-87, 88]: the limits come first in min and max, which
 * keeps a NaN. */
ALWAYS_INLINE __m256 exp_lanes(__m256 x)
{
    x = _mm256_max_ps(_mm256_set1_ps(-87), _mm256_min_ps(_mm256_set1_ps(88), x));
    const __m256 k = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(k, _mm256_set1_ps(0x1.62e400p-1f), x);       /* ln 2 in two parts */
    r = _mm256_fnmadd_ps(k, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 sum = _mm256_set1_ps(1.0f / 5040);
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 720));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 120));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 24));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 6));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(0.5f));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1));
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127));
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

static void swiglu(const float *gate, const float *up, int32_t n, void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n; i += LANES) {
        const int32_t n_lanes = lanes_left(n - i);
        const __m256 g = load(gate + i, n_lanes), e = exp_lanes(_mm256_sub_ps(_mm256_setzero_ps(), g));
        const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1), e));
        store(y, i, _mm256_mul_ps(silu, load(up + i, n_lanes)), n_lanes, y_type);
    }
}

/* 1 / (1 + exp(-2 t)); *square = g^2 */
ALWAYS_INLINE __m256 gelu_share(__m256 g, __m256 *square)
{
    *square = _mm256_mul_ps(g, g);
    const __m256 t = _mm256_mul_ps(g, _mm256_fmadd_ps(_mm256_set1_ps(GELU_B), *square, _mm256_set1_ps(GELU_A)));
    const __m256 one = _mm256_set1_ps(1), e = exp_lanes(_mm256_sub_ps(_mm256_setzero_ps(), t));
    return _mm256_div_ps(one, _mm256_add_ps(one, e));
}

static void geglu(const float *gate, const float *up, int32_t n, void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n; i += LANES) {
        const int32_t n_lanes = lanes_left(n - i);
        const __m256 g = load(gate + i, n_lanes);
        __m256 square;
        store(y, i, _mm256_mul_ps(_mm256_mul_ps(g, gelu_share(g, &square)), load(up + i, n_lanes)), n_lanes, y_type);
    }
}

static void rope_halves(const float *x, const float *cos_row, const float *sin_row, int32_t n_pairs,
                        void *y, tmx_type y_type)
{
    for (int32_t i = 0; i < n_pairs; i += LANES) {
        const int32_t n_lanes = lanes_left(n_pairs - i);
        const __m256 c = load(cos_row + i, n_lanes), s = load(sin_row + i, n_lanes);
        const __m256 x_a = load(x + i, n_lanes), x_b = load(x + n_pairs + i, n_lanes);
        store(y, i, _mm256_fmsub_ps(x_a, c, _mm256_mul_ps(x_b, s)), n_lanes, y_type);
        store(y, n_pairs + i, _mm256_fmadd_ps(x_a, s, _mm256_mul_ps(x_b, c)), n_lanes, y_type);
    }
}

static void rope_pairs(const float *x, const float *cos_row, const float *sin_row, int32_t n_pairs,
                       void *y, tmx_type y_type)
{
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    for (int32_t i = 0; i < n_pairs; i += LANES / 2) {
        const int32_t n_lanes = lanes_left(2 * (n_pairs - i));
        const __m256 c = _mm256_permutevar8x32_ps(load(cos_row + i, n_lanes / 2), twice);
        const __m256 s = _mm256_permutevar8x32_ps(load(sin_row + i, n_lanes / 2), twice);
        const __m256 x_i = load(x + 2 * i, n_lanes), swapped = _mm256_permute_ps(x_i, 0xb1);
        store(y, 2 * i, _mm256_fmaddsub_ps(x_i, c, _mm256_mul_ps(swapped, s)), n_lanes, y_type);
    }
}

static void rope(const float *x, const float *cos_row, const float *sin_row, int32_t n_rot, int32_t head_dim,
                 rope_style style, void *y, tmx_type y_type)
{
    const int32_t n_pairs = n_rot / 2, n_rotated = 2 * n_pairs;
    if (style == ROPE_INTERLEAVED) rope_pairs(x, cos_row, sin_row, n_pairs, y, y_type);
    else rope_halves(x, cos_row, sin_row, n_pairs, y, y_type);
    for (int32_t i = n_rotated; i < head_dim; i += LANES) {
        const int32_t n_lanes = lanes_left(head_dim - i);
        store(y, i, load(x + i, n_lanes), n_lanes, y_type);
    }
}

static void rmsnorm_back(const float *d_y, const float *x, const float *weight, float eps, int32_t n, float *dx)
{
    __m256d sum_lo = _mm256_setzero_pd(), sum_hi = sum_lo, product_lo = sum_lo, product_hi = sum_lo;
    for (int32_t i = 0; i < n; i += LANES) {
        const int32_t n_lanes = lanes_left(n - i);
        const __m256 x_i = load(x + i, n_lanes), g = _mm256_mul_ps(load(d_y + i, n_lanes), load(weight + i, n_lanes));
        const __m256d x_lo = _mm256_cvtps_pd(_mm256_castps256_ps128(x_i)), x_hi = _mm256_cvtps_pd(_mm256_extractf128_ps(x_i, 1));
        sum_lo = _mm256_fmadd_pd(x_lo, x_lo, sum_lo);
        sum_hi = _mm256_fmadd_pd(x_hi, x_hi, sum_hi);
        product_lo = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(g)), x_lo, product_lo);
        product_hi = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(g, 1)), x_hi, product_hi);
    }
    const double r = 1.0 / sqrt(sum_lanes(_mm256_add_pd(sum_lo, sum_hi)) / n + (double)eps);
    const double mean = sum_lanes(_mm256_add_pd(product_lo, product_hi)) / n;
    const __m256 scale = _mm256_set1_ps((float)r), back = _mm256_set1_ps((float)(r * r * r * mean));
    for (int32_t i = 0; i < n; i += LANES) {
        const int32_t n_lanes = lanes_left(n - i);
        const __m256 g = _mm256_mul_ps(load(d_y + i, n_lanes), load(weight + i, n_lanes));
        const __m256 d = _mm256_fmsub_ps(g, scale, _mm256_mul_ps(back, load(x + i, n_lanes)));
        store(dx, i, _mm256_add_ps(load(dx + i, n_lanes), d), n_lanes, TMX_TYPE_F32);
    }
}

static void swiglu_back(const float *d_y, const float *gate, const float *up, int32_t n, void *d_gate, void *d_up,
                        tmx_type d_type)
{
    const __m256 one = _mm256_set1_ps(1);
    for (int32_t i = 0; i < n; i += LANES) {
        const int32_t n_lanes = lanes_left(n - i);
        const __m256 g = load(gate + i, n_lanes), e = exp_lanes(_mm256_sub_ps(_mm256_setzero_ps(), g));
        const __m256 s = _mm256_div_ps(one, _mm256_add_ps(one, e)), d_s = _mm256_mul_ps(load(d_y + i, n_lanes), s);
        const __m256 slope = _mm256_fmadd_ps(g, _mm256_sub_ps(one, s), one);
        store(d_gate, i, _mm256_mul_ps(_mm256_mul_ps(d_s, load(up + i, n_lanes)), slope), n_lanes, d_type);
        store(d_up, i, _mm256_mul_ps(d_s, g), n_lanes, d_type);
    }
}

static void geglu_back(const float *d_y, const float *gate, const float *up, int32_t n, void *d_gate, void *d_up,
                       tmx_type d_type)
{
    const __m256 one = _mm256_set1_ps(1);
    for (int32_t i = 0; i < n; i += LANES) {
        const int32_t n_lanes = lanes_left(n - i);
        __m256 square;
        const __m256 g = load(gate + i, n_lanes), s = gelu_share(g, &square), d_s = _mm256_mul_ps(load(d_y + i, n_lanes), s);
        const __m256 steep = _mm256_fmadd_ps(_mm256_set1_ps(3 * GELU_B), square, _mm256_set1_ps(GELU_A));
        const __m256 slope = _mm256_fmadd_ps(_mm256_mul_ps(g, _mm256_sub_ps(one, s)), steep, one);
        store(d_gate, i, _mm256_mul_ps(_mm256_mul_ps(d_s, load(up + i, n_lanes)), slope), n_lanes, d_type);
        store(d_up, i, _mm256_mul_ps(d_s, g), n_lanes, d_type);
    }
}

const row_ops row_ops_avx2 = {
    .rmsnorm = rmsnorm, .swiglu = swiglu, .geglu = geglu, .rope = rope, .convert = convert,
    .rmsnorm_back = rmsnorm_back, .swiglu_back = swiglu_back, .geglu_back = geglu_back,
};
