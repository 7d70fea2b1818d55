/* blocks_internal.h - the expansions of one rung, for the table in blocks.c, and what the rungs share.  Formulas: see
 * blocks.c and blocks_k.c. */
#ifndef TMX_GGUF_BLOCKS_INTERNAL_H
#define TMX_GGUF_BLOCKS_INTERNAL_H

#include "base/num.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern const int8_t iq4_values[16], mxfp4_values[16];

static inline uint16_t load_u16(const unsigned char *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t load_u32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* 2^(e - 128): half of what the byte means, because the values are doubled.  The two smallest are denormal; 255, which
 * the standard calls NaN, is one more power of two, as in the published formula. */
static inline float mxfp4_scale(unsigned char e)
{
    return f32_from_bits(e >= 2 ? (uint32_t)(e - 1) << 23 : 0x200000u << e);
}

/* The 8 scales and 8 minima of Q4_K and Q5_K, 6 bits each in 12 bytes s.  The first four of each are the low six bits
 * of s[0..3] and s[4..7]; the last four have their low bits in the nibbles of s[8..11] and their two high bits where
 * the first four left room.  Scale j is byte j of *scales, minimum j byte j of *minima. */
static inline void k_scales(const unsigned char s[12], uint64_t *scales, uint64_t *minima)
{
    const uint32_t a = load_u32(s), b = load_u32(s + 4), c = load_u32(s + 8);
    const uint32_t scale_hi = (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u);
    const uint32_t min_hi = (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u);
    *scales = (uint64_t)scale_hi << 32 | (a & 0x3f3f3f3fu);
    *minima = (uint64_t)min_hi << 32 | (b & 0x3f3f3f3fu);
}

/* The 16 scales of Q3_K, 6 bits each in 12 bytes s, without their offset of 32: low four bits in the nibbles of
 * s[0..7], high two in the bit pairs of s[8..11]. */
static inline void q3_k_scales(const unsigned char s[12], unsigned char scales[16])
{
    const uint32_t a = load_u32(s), b = load_u32(s + 4), high = load_u32(s + 8);
    const uint32_t quads[4] = {
        (a & 0x0f0f0f0fu) | (high << 4 & 0x30303030u), (b & 0x0f0f0f0fu) | (high << 2 & 0x30303030u),
        (a >> 4 & 0x0f0f0f0fu) | (high & 0x30303030u), (b >> 4 & 0x0f0f0f0fu) | (high >> 2 & 0x30303030u),
    };
    memcpy(scales, quads, sizeof quads);
}

void q2_k_to_f32_row(const void *blocks, float *x, size_t n);
void q3_k_to_f32_row(const void *blocks, float *x, size_t n);
void q4_k_to_f32_row(const void *blocks, float *x, size_t n);
void q5_k_to_f32_row(const void *blocks, float *x, size_t n);
void q6_k_to_f32_row(const void *blocks, float *x, size_t n);
void q8_k_to_f32_row(const void *blocks, float *x, size_t n);
void iq4_xs_to_f32_row(const void *blocks, float *x, size_t n);

void f16_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void bf16_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q4_0_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q4_1_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q5_0_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q5_1_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q8_0_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q2_k_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q3_k_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q4_k_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q5_k_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q6_k_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q8_k_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void iq4_nl_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void iq4_xs_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void mxfp4_to_f32_row_avx2(const void *blocks, float *x, size_t n);

#endif
