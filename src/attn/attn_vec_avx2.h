/* attn_vec_avx2.h - the vf and vi part of attn_tile.h's vocabulary: 8 f32 lanes. */
#ifndef TMX_ATTN_ATTN_VEC_AVX2_H
#define TMX_ATTN_ATTN_VEC_AVX2_H

#include "attn/attn_kernel.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

typedef __m256 vf;
typedef __m256i vi;

enum { LANES = 8, DECODE_HEADS = 2 };

ALWAYS_INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
ALWAYS_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
ALWAYS_INLINE vf vf_load(const float *x) { return _mm256_loadu_ps(x); }
ALWAYS_INLINE void vf_store(float *x, vf v) { _mm256_storeu_ps(x, v); }
ALWAYS_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
ALWAYS_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
ALWAYS_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
ALWAYS_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
ALWAYS_INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
ALWAYS_INLINE bool vf_any_differs(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ)) != 0; }

ALWAYS_INLINE float vf_sum(vf v)
{
    const __m128 quad = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

ALWAYS_INLINE void vf_sum4(const vf v[4], float *to)
{
    const vf abcd = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

ALWAYS_INLINE vf vf_widen(const uint16_t *x)
{
    const __m128i bits = _mm_loadu_si128((const __m128i *)(const void *)x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

ALWAYS_INLINE vi vi_load(const int32_t *x) { return _mm256_loadu_si256((const __m256i *)(const void *)x); }
ALWAYS_INLINE vi vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
ALWAYS_INLINE vi vi_min(vi a, vi b) { return _mm256_min_epi32(a, b); }
ALWAYS_INLINE vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }

ALWAYS_INLINE vf vf_hide(vf s, int32_t k, vi lo, vi hi)
{
    const vi key = vi_set1(k), is_hidden = _mm256_or_si256(_mm256_cmpgt_epi32(lo, key), _mm256_cmpgt_epi32(key, hi));
    return _mm256_blendv_ps(s, vf_set1(-INFINITY), _mm256_castsi256_ps(is_hidden));
}

/* x in lanes with lo <= ids <= hi, else +0 */
ALWAYS_INLINE vf vf_keep(vf x, vi ids, int32_t lo, int32_t hi)
{
    const vi is_hidden = _mm256_or_si256(_mm256_cmpgt_epi32(vi_set1(lo), ids), _mm256_cmpgt_epi32(ids, vi_set1(hi)));
    return _mm256_andnot_ps(_mm256_castsi256_ps(is_hidden), x);
}

/* 2^t for t <= 0, relative error 1.7e-7; exactly 1 at 0, exactly 0 below -127; NaN stays NaN (max gives its second
 * argument, and the power of two is a factor). */
ALWAYS_INLINE vf vf_exp2(vf t)
{
    const vf magic = vf_set1(0x1.8p23f);           /* adding it leaves a whole number in the low mantissa bits */
    const vf clamped = vf_max(vf_set1(-127.0f), t), shifted = vf_add(clamped, magic);
    const vf f = vf_sub(clamped, vf_sub(shifted, magic));
    const vi biased = _mm256_add_epi32(_mm256_castps_si256(shifted), vi_set1(127));
    vf p = vf_set1(EXP2_C5);
    p = vf_fma(p, f, vf_set1(EXP2_C4));
    p = vf_fma(p, f, vf_set1(EXP2_C3));
    p = vf_fma(p, f, vf_set1(EXP2_C2));
    p = vf_fma(p, f, vf_set1(EXP2_C1));
    p = vf_fma(p, f, vf_set1(1.0f));
    return vf_mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}

#endif
