/* blocks_avx2.h - the block formats taken apart in registers, 16 elements at a time, once for all who need them: the
 * expansion (blocks_avx2.c) and the dot product (ops/matvec_avx2.c).  For files built with AVX2 only.
 *
 * A block is a row of pieces; each hands its taker 16 signed bytes q and, in every lane, a scale d and an offset m:
 * x[i + j] = d * q[j] + m, where a format without offset passes is_shifted false (adding zero would change -0).
 * Scales are multiplied in the order of blocks_k.c, so that what the taker computes is bit-exact. */
#ifndef TMX_GGUF_BLOCKS_AVX2_H
#define TMX_GGUF_BLOCKS_AVX2_H

#include "base/unroll.h"
#include "gguf/blocks_internal.h"

#include <immintrin.h>
#include <stdbool.h>

typedef void take_piece(void *to, size_t i, __m128i q, __m256 d, __m256 m, const bool is_shifted);
typedef void take_block(const unsigned char *block, size_t i, take_piece *take, void *to);     /* element i comes first */

ALWAYS_INLINE __m128i piece_load(const void *p) { return _mm_loadu_si128((const __m128i *)p); }

ALWAYS_INLINE float half_load(const unsigned char *p) { return _cvtsh_ss(load_u16(p)); }

ALWAYS_INLINE __m128i low_nibbles(__m128i q) { return _mm_and_si128(q, _mm_set1_epi8(15)); }
ALWAYS_INLINE __m128i high_nibbles(__m128i q) { return low_nibbles(_mm_srli_epi16(q, 4)); }

/* The 16 signed bytes of q as 16 floats. */
ALWAYS_INLINE void piece_widen(__m128i q, __m256 *lo, __m256 *hi)
{
    *lo = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
    *hi = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(q, q)));
}

ALWAYS_INLINE void take_plain(take_piece *take, void *to, size_t i, __m128i q, float d)
{
    take(to, i, q, _mm256_set1_ps(d), _mm256_setzero_ps(), false);
}

/* ---------------------------------------------------------------- blocks of 32 */

ALWAYS_INLINE void take_q8_0(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    const float d = half_load(block);
    take_plain(take, to, i, piece_load(block + 2), d);
    take_plain(take, to, i + 16, piece_load(block + 18), d);
}

ALWAYS_INLINE void take_q4_0(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    const float d = half_load(block);
    const __m128i bytes = piece_load(block + 2), eight = _mm_set1_epi8(8);
    take_plain(take, to, i, _mm_sub_epi8(low_nibbles(bytes), eight), d);
    take_plain(take, to, i + 16, _mm_sub_epi8(high_nibbles(bytes), eight), d);
}

ALWAYS_INLINE void take_q4_1(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    const __m256 d = _mm256_set1_ps(half_load(block)), m = _mm256_set1_ps(half_load(block + 2));
    const __m128i bytes = piece_load(block + 4);
    take(to, i, low_nibbles(bytes), d, m, true);
    take(to, i + 16, high_nibbles(bytes), d, m, true);
}

/* Bit j of the 16 bits in each half of `bits` -> 0xff in byte j: the byte that holds the bit, then the bit alone. */
ALWAYS_INLINE __m128i spread_bits(__m128i bits, const bool is_high)
{
    const __m128i byte_of = is_high ? _mm_setr_epi8(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3)
                                    : _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m128i bit_of = _mm_set1_epi64x((long long)0x8040201008040201u);
    return _mm_cmpeq_epi8(_mm_and_si128(_mm_shuffle_epi8(bits, byte_of), bit_of), bit_of);
}

ALWAYS_INLINE void take_q5_0(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    const float d = half_load(block);
    const __m128i fifth = _mm_cvtsi32_si128((int)load_u32(block + 2)), bytes = piece_load(block + 6);
    const __m128i lowest = _mm_set1_epi8(-16);           /* added where the fifth bit is not set */
    take_plain(take, to, i, _mm_or_si128(low_nibbles(bytes), _mm_andnot_si128(spread_bits(fifth, false), lowest)), d);
    take_plain(take, to, i + 16, _mm_or_si128(high_nibbles(bytes), _mm_andnot_si128(spread_bits(fifth, true), lowest)), d);
}

ALWAYS_INLINE void take_q5_1(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    const __m256 d = _mm256_set1_ps(half_load(block)), m = _mm256_set1_ps(half_load(block + 2));
    const __m128i fifth = _mm_cvtsi32_si128((int)load_u32(block + 4)), bytes = piece_load(block + 8);
    const __m128i sixteen = _mm_set1_epi8(16);
    take(to, i, _mm_or_si128(low_nibbles(bytes), _mm_and_si128(spread_bits(fifth, false), sixteen)), d, m, true);
    take(to, i + 16, _mm_or_si128(high_nibbles(bytes), _mm_and_si128(spread_bits(fifth, true), sixteen)), d, m, true);
}

/* 16 bytes of nibbles that number the values of a table. */
ALWAYS_INLINE void take_numbered(const unsigned char *nibbles, const int8_t values[16], float d, size_t i,
                                 take_piece *take, void *to)
{
    const __m128i bytes = piece_load(nibbles), table = piece_load(values);
    take_plain(take, to, i, _mm_shuffle_epi8(table, low_nibbles(bytes)), d);
    take_plain(take, to, i + 16, _mm_shuffle_epi8(table, high_nibbles(bytes)), d);
}

ALWAYS_INLINE void take_iq4_nl(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    take_numbered(block + 2, iq4_values, half_load(block), i, take, to);
}

ALWAYS_INLINE void take_mxfp4(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    take_numbered(block + 1, mxfp4_values, mxfp4_scale(block[0]), i, take, to);
}

/* ---------------------------------------------------------------- blocks of 256 */

/* d times 16 signed bytes. */
ALWAYS_INLINE void scales_16(__m128i bytes, float d, float scales[16])
{
    __m256 lo, hi;
    piece_widen(bytes, &lo, &hi);
    _mm256_storeu_ps(scales, _mm256_mul_ps(_mm256_set1_ps(d), lo));
    _mm256_storeu_ps(scales + 8, _mm256_mul_ps(_mm256_set1_ps(d), hi));
}

ALWAYS_INLINE __m128i bit_pairs(__m128i bytes, const int g) { return _mm_and_si128(_mm_srli_epi16(bytes, 2 * g), _mm_set1_epi8(3)); }

/* Bit `from` of every byte, moved to bit `to`; the others are 0. */
ALWAYS_INLINE __m128i bit_moved(__m128i bytes, const int from, const int to)
{
    const __m128i moved = from < to ? _mm_slli_epi16(bytes, to - from) : _mm_srli_epi16(bytes, from - to);
    return _mm_and_si128(moved, _mm_set1_epi8((char)(1 << to)));
}

ALWAYS_INLINE void take_q2_k(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    float scales[16], minima[16];
    scales_16(low_nibbles(piece_load(block)), half_load(block + 80), scales);
    scales_16(high_nibbles(piece_load(block)), -half_load(block + 82), minima);
    UNROLL for (int piece = 0; piece < 16; piece++) {    /* half, group of 32, half of the group */
        const __m128i bytes = piece_load(block + 16 + piece / 8 * 32 + piece % 2 * 16);
        take(to, i + 16 * (size_t)piece, bit_pairs(bytes, piece % 8 / 2), _mm256_set1_ps(scales[piece]),
             _mm256_set1_ps(minima[piece]), true);
    }
}

ALWAYS_INLINE void take_q3_k(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    unsigned char bytes[16];
    float scales[16];
    q3_k_scales(block + 96, bytes);
    scales_16(_mm_sub_epi8(piece_load(bytes), _mm_set1_epi8(32)), half_load(block + 108), scales);
    UNROLL for (int piece = 0; piece < 16; piece++) {
        const __m128i low = bit_pairs(piece_load(block + 32 + piece / 8 * 32 + piece % 2 * 16), piece % 8 / 2);
        const __m128i third = bit_moved(piece_load(block + piece % 2 * 16), piece / 2, 2);
        const __m128i q = _mm_sub_epi8(_mm_or_si128(low, third), _mm_set1_epi8(4));
        take_plain(take, to, i + 16 * (size_t)piece, q, scales[piece]);
    }
}

ALWAYS_INLINE void take_groups(const unsigned char *block, const unsigned char *nibbles, const unsigned char *fifth,
                               const bool has_fifth, size_t i, take_piece *take, void *to)
{
    uint64_t scale_bytes, min_bytes;
    float scales[16];              /* 8, and 8 minima */
    k_scales(block + 4, &scale_bytes, &min_bytes);
    const __m256i ints[2] = { _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)scale_bytes)),
                              _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)min_bytes)) };
    _mm256_storeu_ps(scales, _mm256_mul_ps(_mm256_set1_ps(half_load(block)), _mm256_cvtepi32_ps(ints[0])));
    _mm256_storeu_ps(scales + 8, _mm256_mul_ps(_mm256_set1_ps(-half_load(block + 2)), _mm256_cvtepi32_ps(ints[1])));
    UNROLL for (int piece = 0; piece < 16; piece++) {    /* pair of groups, group, half of the group */
        const int g = piece / 2;
        const __m128i bytes = piece_load(nibbles + piece / 4 * 32 + piece % 2 * 16);
        __m128i q = g % 2 == 0 ? low_nibbles(bytes) : high_nibbles(bytes);
        if (has_fifth) q = _mm_or_si128(q, bit_moved(piece_load(fifth + piece % 2 * 16), g, 4));
        take(to, i + 16 * (size_t)piece, q, _mm256_set1_ps(scales[g]), _mm256_set1_ps(scales[8 + g]), true);
    }
}

ALWAYS_INLINE void take_q4_k(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    take_groups(block, block + 16, block, false, i, take, to);
}

ALWAYS_INLINE void take_q5_k(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    take_groups(block, block + 48, block + 16, true, i, take, to);
}

ALWAYS_INLINE void take_q6_k(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    float scales[16];
    scales_16(piece_load(block + 192), half_load(block + 208), scales);
    UNROLL for (int piece = 0; piece < 16; piece++) {
        const int half = piece / 8, g = piece % 8 / 2;
        const __m128i bytes = piece_load(block + half * 64 + g % 2 * 32 + piece % 2 * 16);
        const __m128i low = g < 2 ? low_nibbles(bytes) : high_nibbles(bytes);
        const __m128i high = bit_pairs(piece_load(block + 128 + half * 32 + piece % 2 * 16), g);
        const __m128i q = _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(high, 4)), _mm_set1_epi8(32));
        take_plain(take, to, i + 16 * (size_t)piece, q, scales[piece]);
    }
}

ALWAYS_INLINE void take_q8_k(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    const float d = f32_from_bits(load_u32(block));
    for (size_t at = 0; at < 256; at += 16) take_plain(take, to, i + at, piece_load(block + 4 + at), d);
}

ALWAYS_INLINE void take_iq4_xs(const unsigned char *block, size_t i, take_piece *take, void *to)
{
    const float d = half_load(block);
    const unsigned high = load_u16(block + 2);
    UNROLL for (unsigned g = 0; g < 8; g++) {
        const int scale = (block[4 + g / 2] >> (g % 2 * 4) & 15) | (int)(high >> (2 * g) & 3) << 4;
        take_numbered(block + 8 + 16 * g, iq4_values, d * (float)(scale - 32), i + 32 * g, take, to);
    }
}

#endif
