/* blocks_k.c - the formats in blocks of 256 elements, in their plain form: groups of 16 or 32 elements have an integer
 * scale each (and some a minimum), the block a half for all of them.
 *
 * Products are taken from the left: d * scale is exact in f32, and so is times q but in Q6_K, which rounds there. */
#include "gguf/blocks_internal.h"

/* 16 bytes: scale in the low nibble, minimum in the high one, of each 16 elements; 64 bytes of 2-bit q; f16 d, f16 m.
 * A half block of 128 elements has 32 bytes of q: element l of its group g of 32 is bits 2g of byte l.
 * x = d * scale * q - m * minimum. */
void q2_k_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 256, p += 84) {
        const float d = f16_to_f32(load_u16(p + 80)), m = f16_to_f32(load_u16(p + 82));
        for (size_t j = 0; j < 256; j++) {
            const unsigned char scale = p[j / 16];
            const int q = p[16 + j / 128 * 32 + j % 32] >> (j % 128 / 32 * 2) & 3;
            x[i + j] = d * (float)(scale & 15) * (float)q - m * (float)(scale >> 4);
        }
    }
}

/* 32 bytes of third bits: bit g of byte l is that of element l of group g of 32; 64 bytes with the low two bits as in
 * Q2_K; 12 bytes of scales of 16 elements each; f16 d.  x = d * (scale - 32) * (q - 4). */
void q3_k_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    unsigned char scales[16];
    for (size_t i = 0; i < n; i += 256, p += 110) {
        const float d = f16_to_f32(load_u16(p + 108));
        q3_k_scales(p + 96, scales);
        for (size_t j = 0; j < 256; j++) {
            const int low = p[32 + j / 128 * 32 + j % 32] >> (j % 128 / 32 * 2) & 3, third = p[j % 32] >> (j / 32) & 1;
            const int scale = scales[j / 16] - 32;
            x[i + j] = d * (float)scale * (float)((low | third << 2) - 4);
        }
    }
}

/* Group g of 32 elements is in the low (g even) or high nibbles of bytes 32 * (g / 2)...; x = d * scale * q - m * min. */
static void expand_group(const unsigned char *nibbles, const unsigned char *fifth, size_t g, float scale, float min, float *x)
{
    for (size_t l = 0; l < 32; l++) {
        const int low = nibbles[g / 2 * 32 + l] >> (g % 2 * 4) & 15, bit = fifth != NULL ? fifth[l] >> g & 1 : 0;
        x[l] = scale * (float)(low | bit << 4) - min;
    }
}

static void expand_groups(const unsigned char *block, const unsigned char *fifth, const unsigned char *nibbles, float *x)
{
    const float d = f16_to_f32(load_u16(block)), m = f16_to_f32(load_u16(block + 2));
    uint64_t scales, minima;
    k_scales(block + 4, &scales, &minima);
    for (size_t g = 0; g < 8; g++, scales >>= 8, minima >>= 8) {
        expand_group(nibbles, fifth, g, d * (float)(scales & 63), m * (float)(minima & 63), x + 32 * g);
    }
}

/* f16 d, f16 m, 12 bytes of scales and minima of 32 elements each, 128 bytes of 4-bit q. */
void q4_k_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 256, p += 144) expand_groups(p, NULL, p + 16, x + i);
}

/* As Q4_K with 32 bytes of fifth bits before the 128: bit g of byte l is that of element l of group g. */
void q5_k_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 256, p += 176) expand_groups(p, p + 16, p + 48, x + i);
}

/* 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales of 16 elements each, f16 d.  A half block has
 * 64 and 32 bytes of these: element l of its group g of 32 has its low bits in byte l + 32 * (g % 2), in the high
 * nibble from g = 2 on, and its high bits in bits 2g of byte l.  x = d * scale * (q - 32). */
void q6_k_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 256, p += 210) {
        const float d = f16_to_f32(load_u16(p + 208));
        for (size_t j = 0; j < 256; j++) {
            const size_t half = j / 128, g = j % 128 / 32, l = j % 32;
            const int low = p[half * 64 + g % 2 * 32 + l] >> (g / 2 * 4) & 15;
            const int high = p[128 + half * 32 + l] >> (g * 2) & 3;
            int8_t scale;
            memcpy(&scale, p + 192 + j / 16, 1);
            x[i + j] = d * (float)scale * (float)((low | high << 4) - 32);
        }
    }
}

/* f32 d, 256 signed bytes q, 16 sums of q that only products of integers need.  x = d * q. */
void q8_k_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 256, p += 292) {
        const float d = f32_from_bits(load_u32(p));
        for (size_t j = 0; j < 256; j++) {
            int8_t q;
            memcpy(&q, p + 4 + j, 1);
            x[i + j] = d * (float)q;
        }
    }
}

/* f16 d; scales of 32 elements each, 6 bits: a pair of high bits in a 16-bit word, low nibbles in 4 bytes; 128 bytes of
 * nibbles, 16 for each 32 elements in the order of Q4_0, which number the values of IQ4_NL.
 * x = d * (scale - 32) * value. */
void iq4_xs_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 256, p += 136) {
        const float d = f16_to_f32(load_u16(p));
        const unsigned high = load_u16(p + 2);
        for (size_t g = 0; g < 8; g++) {
            const int scale = (p[4 + g / 2] >> (g % 2 * 4) & 15) | (int)(high >> (2 * g) & 3) << 4;
            const float d_group = d * (float)(scale - 32);
            for (size_t j = 0; j < 16; j++) {
                const unsigned char nibbles = p[8 + 16 * g + j];
                x[i + 32 * g + j] = d_group * (float)iq4_values[nibbles & 15];
                x[i + 32 * g + j + 16] = d_group * (float)iq4_values[nibbles >> 4];
            }
        }
    }
}
