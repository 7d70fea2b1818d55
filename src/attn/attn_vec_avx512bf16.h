/* attn_vec_avx512bf16.h - the part of attn_tile.h's vocabulary that the rungs on pairs of bf16 share. */
#ifndef TMX_ATTN_ATTN_VEC_AVX512BF16_H
#define TMX_ATTN_ATTN_VEC_AVX512BF16_H

#include "attn/attn_vec_avx512.h"

#include <string.h>

typedef uint32_t cell;             /* two bf16: values 2c, 2c + 1 of a row, or one value of keys 2i, 2i + 1 */
typedef __m512i vc;

enum { CELL = 2, ROW_VECS = 2, KEY_STEP = 8 };

ALWAYS_INLINE vc vc_load(const cell *x) { return _mm512_loadu_si512(x); }
ALWAYS_INLINE void vc_store(cell *x, vc v) { _mm512_storeu_si512(x, v); }
ALWAYS_INLINE vc vc_set1(const cell *x) { return _mm512_set1_epi32((int32_t)*x); }

/* Denormals count as zero in this instruction, so a sum that a rescale made denormal becomes zero here.  That moves no
 * bit: a rescale other than 1 means that the row sees a key of this very tile, so the next dot always comes. */
ALWAYS_INLINE vf vc_dot(vf acc, vc a, vc b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }

ALWAYS_INLINE vc vc_where_nonzero(vc p, vc v) { return _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(p, p), v); }

/* 2^t + half a bf16 ulp in f32, for t <= 0: cutting it to bf16 then rounds to nearest.  With f = t - floor(t) in [0, 1)
 * the cubic 2^f + 2^-8 is in [1, 2], one binade, so that 2^-8 is that half; adding floor(t) to the exponent field
 * finishes.  t = 0 cuts to exactly 1, t <= -127 to exactly 0 (-127 takes the exponent of 1 away); NaN stays NaN.
 * Error of the cubic 9e-5, of the result 2^-8 at most.  On Zen 4 only the multiply and the three fused steps take slots
 * of vdpbf16ps; the rest runs on the adder and integer pipes. */
ALWAYS_INLINE vi weight_bits(vf s, vf max, vf c)
{
    const vf magic = vf_set1(0x1.8p23f);           /* adding it leaves a whole number in the low mantissa bits */
    const vf t = vf_max(vf_set1(-127.0f), vf_mul(vf_sub(s, max), c));
    const vf shifted = _mm512_add_round_ps(t, magic, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const vf f = vf_sub(t, vf_sub(shifted, magic));
    vf p = vf_set1(0x1.3baaa8p-4f);
    p = vf_fma(p, f, vf_set1(0x1.d23788p-3f));
    p = vf_fma(p, f, vf_set1(0x1.63e65ap-1f));
    p = vf_fma(p, f, vf_set1(1.0f + 0x1p-8f));
    return _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23));
}

/* The sum takes the rounded weights, the same that multiply V: rounding then cannot tilt the mean. */
ALWAYS_INLINE vc vc_weigh(const float *s, int stride, vf max, vf c, vf *sum)
{
    const vi even = weight_bits(vf_load(s), max, c), odd = weight_bits(vf_load(s + stride), max, c);
    const vc p = _mm512_mask_mov_epi16(_mm512_srli_epi32(even, 16), 0xaaaaaaaau, odd);
    *sum = vc_dot(*sum, p, _mm512_set1_epi32(0x3f803f80));
    return p;
}

/* Inline: a library call for each row of 128 bytes costs more than the copy. */
ALWAYS_INLINE void load_row(cell *to, const void *row, tmx_type type, int32_t n)
{
    (void)type;
    const uint16_t *from = row;
    int32_t d = 0;
    for (; d + 32 <= n; d += 32) _mm512_storeu_si512(to + d / 2, _mm512_loadu_si512(from + d));
    if (d < n) {
        const __mmask32 tail = (1u << (n - d)) - 1;
        const __mmask16 cells = (__mmask16)((1u << (n - d + 1) / 2) - 1);
        _mm512_mask_storeu_epi32(to + d / 2, cells, _mm512_maskz_loadu_epi16(tail, from + d));
    }
}

#endif
