/* attn_vec_avx512.h - the part of attn_tile.h's vocabulary that both AVX-512 rungs share: 16 f32 lanes. */
#ifndef TMX_ATTN_ATTN_VEC_AVX512_H
#define TMX_ATTN_ATTN_VEC_AVX512_H

#include "attn/attn_kernel.h"

#include <immintrin.h>
#include <math.h>

typedef __m512 vf;
typedef __m512i vi;

enum { LANES = 16, DECODE_HEADS = 4 };

ALWAYS_INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
ALWAYS_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
ALWAYS_INLINE vf vf_load(const float *x) { return _mm512_loadu_ps(x); }
ALWAYS_INLINE void vf_store(float *x, vf v) { _mm512_storeu_ps(x, v); }
ALWAYS_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
ALWAYS_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
ALWAYS_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
ALWAYS_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
ALWAYS_INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
ALWAYS_INLINE bool vf_any_differs(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ) != 0; }

ALWAYS_INLINE float vf_sum(vf v) { return _mm512_reduce_add_ps(v); }

ALWAYS_INLINE void vf_sum4(const vf v[4], float *to)
{
    const vf ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const vf cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const vf abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

ALWAYS_INLINE vf vf_widen(const uint16_t *x)
{
    const __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

ALWAYS_INLINE vi vi_load(const int32_t *x) { return _mm512_loadu_si512(x); }
ALWAYS_INLINE vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
ALWAYS_INLINE vi vi_min(vi a, vi b) { return _mm512_min_epi32(a, b); }
ALWAYS_INLINE vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }

ALWAYS_INLINE vf vf_hide(vf s, int32_t k, vi lo, vi hi)
{
    const vi key = vi_set1(k);
    const __mmask16 is_visible = _mm512_mask_cmple_epi32_mask(_mm512_cmple_epi32_mask(lo, key), key, hi);
    return _mm512_mask_mov_ps(vf_set1(-INFINITY), is_visible, s);
}

/* x in lanes with lo <= ids <= hi, else +0 */
ALWAYS_INLINE vf vf_keep(vf x, vi ids, int32_t lo, int32_t hi)
{
    const __mmask16 is_kept = _mm512_mask_cmple_epi32_mask(_mm512_cmple_epi32_mask(vi_set1(lo), ids), ids, vi_set1(hi));
    return _mm512_maskz_mov_ps(is_kept, x);
}

/* 2^t, relative error 1.7e-7; exactly 1 at 0, exactly 0 below -150; NaN stays NaN (max gives its second argument). */
ALWAYS_INLINE vf vf_exp2(vf t)
{
    const vf clamped = vf_max(vf_set1(-200.0f), t);
    const vf whole = _mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vf f = vf_sub(clamped, whole);
    vf p = vf_set1(EXP2_C5);
    p = vf_fma(p, f, vf_set1(EXP2_C4));
    p = vf_fma(p, f, vf_set1(EXP2_C3));
    p = vf_fma(p, f, vf_set1(EXP2_C2));
    p = vf_fma(p, f, vf_set1(EXP2_C1));
    p = vf_fma(p, f, vf_set1(1.0f));
    return _mm512_scalef_ps(p, whole);
}

#endif
