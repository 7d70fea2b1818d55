/* matvec_avx512.c - sum over i of row[i] * x[i] with the row expanded in registers, never in memory.
 *
 * Sums lie in 4 zmm (2 for the block formats), one per 16 elements in turn; they are folded in one fixed order at the
 * end.  A 4-bit block has 16 possible weights: they are computed once (d * q + m) and picked by vpermps, whose index is
 * the low 4 bits of a lane, so the nibbles need no mask.  About 12 instructions for 32 weights. */
#include "gguf/blocks.h"
#include "ops/matmul_kernel.h"
#include "ops/matvec_kernel.h"

#include <immintrin.h>
#include <string.h>

ALWAYS_INLINE __m512 load_half(const void *p)    /* one f16, in every lane */
{
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

ALWAYS_INLINE __mmask16 tail_mask(size_t n) { return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u); }

ALWAYS_INLINE __m512 widen_f32(const void *w, size_t i, __mmask16 mask)
{
    return _mm512_maskz_loadu_ps(mask, (const float *)w + i);
}

ALWAYS_INLINE __m512 widen_f16(const void *w, size_t i, __mmask16 mask)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)w + i));
}

ALWAYS_INLINE __m512 widen_bf16(const void *w, size_t i, __mmask16 mask)
{
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)w + i);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

typedef __m512 widen(const void *w, size_t i, __mmask16 mask);

ALWAYS_INLINE float dot_plain(const void *w, const float *x, size_t n, widen *widen_lanes)
{
    __m512 sum[4];
    UNROLL for (int v = 0; v < 4; v++) sum[v] = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        UNROLL for (size_t v = 0; v < 4; v++) {
            sum[v] = _mm512_fmadd_ps(widen_lanes(w, i + 16 * v, 0xffff), _mm512_loadu_ps(x + i + 16 * v), sum[v]);
        }
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = tail_mask(n - i);
        sum[0] = _mm512_fmadd_ps(widen_lanes(w, i, mask), _mm512_maskz_loadu_ps(mask, x + i), sum[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

static float dot_f32(const void *row, const float *x, size_t n) { return dot_plain(row, x, n, widen_f32); }
static float dot_f16(const void *row, const float *x, size_t n) { return dot_plain(row, x, n, widen_f16); }
static float dot_bf16(const void *row, const float *x, size_t n) { return dot_plain(row, x, n, widen_bf16); }

/* 32 elements: f16 d, [f16 m,] 16 bytes; element i is the low nibble of byte i, element 16 + i the high one. */
ALWAYS_INLINE float dot_nibbles(const void *row, const float *x, size_t n, const bool has_min)
{
    const __m512 count = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const unsigned char *block = row;
    __m512 sum_lo = _mm512_setzero_ps(), sum_hi = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 32, block += has_min ? 20 : 18) {
        const __m512 d = load_half(block);
        const __m512 weights = has_min ? _mm512_add_ps(_mm512_mul_ps(count, d), load_half(block + 2))
                                       : _mm512_mul_ps(_mm512_sub_ps(count, _mm512_set1_ps(8)), d);
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(block + (has_min ? 4 : 2)));
        const __m512i index = _mm512_cvtepu8_epi32(bytes);
        const __m512 w_lo = _mm512_permutexvar_ps(index, weights);
        const __m512 w_hi = _mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), weights);
        sum_lo = _mm512_fmadd_ps(w_lo, _mm512_loadu_ps(x + i), sum_lo);
        sum_hi = _mm512_fmadd_ps(w_hi, _mm512_loadu_ps(x + i + 16), sum_hi);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sum_lo, sum_hi));
}

static float dot_q4_0(const void *row, const float *x, size_t n) { return dot_nibbles(row, x, n, false); }
static float dot_q4_1(const void *row, const float *x, size_t n) { return dot_nibbles(row, x, n, true); }

/* 32 elements: f16 d, 32 signed bytes. */
static float dot_q8_0(const void *row, const float *x, size_t n)
{
    const unsigned char *block = row;
    __m512 sum[2] = { _mm512_setzero_ps(), _mm512_setzero_ps() };
    for (size_t i = 0; i < n; i += 32, block += 34) {
        const __m512 d = load_half(block);
        UNROLL for (size_t v = 0; v < 2; v++) {
            const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(block + 2 + 16 * v));
            const __m512 w = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), d);
            sum[v] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + i + 16 * v), sum[v]);
        }
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

matvec_dot *matvec_dot_avx512(uint32_t type)
{
    switch (type) {
    case BLOCK_F32: return dot_f32;
    case BLOCK_F16: return dot_f16;
    case BLOCK_BF16: return dot_bf16;
    case BLOCK_Q4_0: return dot_q4_0;
    case BLOCK_Q4_1: return dot_q4_1;
    case BLOCK_Q8_0: return dot_q8_0;
    default: return NULL;
    }
}
