/* Blocks lie unaligned in a file, so every field is loaded through memcpy.  q is a small integer and d a half: d * q is
 * exact in f32, and a format with an offset rounds once, in the addition.  Blocks of 256 elements are in blocks_k.c. */
#include "gguf/blocks.h"

#include "base/cpu.h"
#include "base/num.h"
#include "gguf/blocks_internal.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "fields are little-endian and loaded as they lie");

static void f32_to_f32_row(const void *blocks, float *x, size_t n) { memcpy(x, blocks, n * sizeof *x); }

static void f16_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i++) x[i] = f16_to_f32(load_u16(p + 2 * i));
}

static void bf16_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i++) x[i] = bf16_to_f32(load_u16(p + 2 * i));
}

/* 32 elements: f16 d, 32 signed bytes q.  x = d * q. */
static void q8_0_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 34) {
        const float d = f16_to_f32(load_u16(p));
        for (size_t j = 0; j < 32; j++) {
            int8_t q;
            memcpy(&q, p + 2 + j, 1);
            x[i + j] = d * (float)q;
        }
    }
}

/* 32 elements: f16 d, 16 bytes; byte j holds element j in its low nibble, element j + 16 in the high one.
 * x = d * (q - 8). */
static void q4_0_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 18) {
        const float d = f16_to_f32(load_u16(p));
        for (size_t j = 0; j < 16; j++) {
            x[i + j] = d * (float)((p[2 + j] & 15) - 8);
            x[i + j + 16] = d * (float)((p[2 + j] >> 4) - 8);
        }
    }
}

/* 32 elements: f16 d, f16 m, 16 bytes with the nibbles of Q4_0.  x = d * q + m. */
static void q4_1_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 20) {
        const float d = f16_to_f32(load_u16(p)), m = f16_to_f32(load_u16(p + 2));
        for (size_t j = 0; j < 16; j++) {
            x[i + j] = d * (float)(p[4 + j] & 15) + m;
            x[i + j + 16] = d * (float)(p[4 + j] >> 4) + m;
        }
    }
}

/* 32 elements: f16 d, 32 fifth bits (bit j of the word is element j's), 16 bytes with the nibbles of Q4_0.
 * x = d * (q - 16). */
static void q5_0_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 22) {
        const float d = f16_to_f32(load_u16(p));
        const uint32_t fifth = load_u32(p + 2);
        for (unsigned j = 0; j < 16; j++) {
            const int low = (p[6 + j] & 15) | (int)(fifth >> j & 1) << 4;
            const int high = p[6 + j] >> 4 | (int)(fifth >> (j + 16) & 1) << 4;
            x[i + j] = d * (float)(low - 16);
            x[i + j + 16] = d * (float)(high - 16);
        }
    }
}

/* 32 elements: f16 d, f16 m, then as Q5_0.  x = d * q + m. */
static void q5_1_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 24) {
        const float d = f16_to_f32(load_u16(p)), m = f16_to_f32(load_u16(p + 2));
        const uint32_t fifth = load_u32(p + 4);
        for (unsigned j = 0; j < 16; j++) {
            const int low = (p[8 + j] & 15) | (int)(fifth >> j & 1) << 4;
            const int high = p[8 + j] >> 4 | (int)(fifth >> (j + 16) & 1) << 4;
            x[i + j] = d * (float)low + m;
            x[i + j + 16] = d * (float)high + m;
        }
    }
}

const int8_t iq4_values[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };

/* 32 elements: f16 d, 16 bytes with the nibbles of Q4_0, which number 16 unevenly spaced values.  x = d * value. */
static void iq4_nl_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 18) {
        const float d = f16_to_f32(load_u16(p));
        for (size_t j = 0; j < 16; j++) {
            x[i + j] = d * (float)iq4_values[p[2 + j] & 15];
            x[i + j + 16] = d * (float)iq4_values[p[2 + j] >> 4];
        }
    }
}

/* Twice the values of a 4-bit float with 2 bits of exponent and 1 of mantissa. */
const int8_t mxfp4_values[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

/* 32 elements: a byte e, 16 bytes with the nibbles of Q4_0, which number the values above.  x = 2^(e - 128) * value. */
static void mxfp4_to_f32_row(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 17) {
        const float d = mxfp4_scale(p[0]);
        for (size_t j = 0; j < 16; j++) {
            x[i + j] = d * (float)mxfp4_values[p[1 + j] & 15];
            x[i + j + 16] = d * (float)mxfp4_values[p[1 + j] >> 4];
        }
    }
}

/* Indexed by the id of the file format; the holes are retired ids and Q8_1, which never lies in a file.
 * Formats without to_f32 are here for their sizes: the reader proves that their tensors lie inside the file. */
static const block_format scalar_formats[] = {
    [BLOCK_F32] = { BLOCK_F32, "F32", 1, 4, f32_to_f32_row },
    [BLOCK_F16] = { BLOCK_F16, "F16", 1, 2, f16_to_f32_row },
    [BLOCK_Q4_0] = { BLOCK_Q4_0, "Q4_0", 32, 18, q4_0_to_f32_row },
    [BLOCK_Q4_1] = { BLOCK_Q4_1, "Q4_1", 32, 20, q4_1_to_f32_row },
    [BLOCK_Q5_0] = { BLOCK_Q5_0, "Q5_0", 32, 22, q5_0_to_f32_row },
    [BLOCK_Q5_1] = { BLOCK_Q5_1, "Q5_1", 32, 24, q5_1_to_f32_row },
    [BLOCK_Q8_0] = { BLOCK_Q8_0, "Q8_0", 32, 34, q8_0_to_f32_row },
    [BLOCK_Q2_K] = { BLOCK_Q2_K, "Q2_K", 256, 84, q2_k_to_f32_row },
    [BLOCK_Q3_K] = { BLOCK_Q3_K, "Q3_K", 256, 110, q3_k_to_f32_row },
    [BLOCK_Q4_K] = { BLOCK_Q4_K, "Q4_K", 256, 144, q4_k_to_f32_row },
    [BLOCK_Q5_K] = { BLOCK_Q5_K, "Q5_K", 256, 176, q5_k_to_f32_row },
    [BLOCK_Q6_K] = { BLOCK_Q6_K, "Q6_K", 256, 210, q6_k_to_f32_row },
    [BLOCK_Q8_K] = { BLOCK_Q8_K, "Q8_K", 256, 292, q8_k_to_f32_row },
    [16] = { 16, "IQ2_XXS", 256, 66, NULL },
    [17] = { 17, "IQ2_XS", 256, 74, NULL },
    [18] = { 18, "IQ3_XXS", 256, 98, NULL },
    [19] = { 19, "IQ1_S", 256, 50, NULL },
    [BLOCK_IQ4_NL] = { BLOCK_IQ4_NL, "IQ4_NL", 32, 18, iq4_nl_to_f32_row },
    [21] = { 21, "IQ3_S", 256, 110, NULL },
    [22] = { 22, "IQ2_S", 256, 82, NULL },
    [BLOCK_IQ4_XS] = { BLOCK_IQ4_XS, "IQ4_XS", 256, 136, iq4_xs_to_f32_row },
    [BLOCK_I8] = { BLOCK_I8, "I8", 1, 1, NULL },
    [25] = { 25, "I16", 1, 2, NULL },
    [26] = { 26, "I32", 1, 4, NULL },
    [BLOCK_I64] = { BLOCK_I64, "I64", 1, 8, NULL },
    [28] = { 28, "F64", 1, 8, NULL },
    [29] = { 29, "IQ1_M", 256, 56, NULL },
    [BLOCK_BF16] = { BLOCK_BF16, "BF16", 1, 2, bf16_to_f32_row },
    [34] = { 34, "TQ1_0", 256, 54, NULL },
    [35] = { 35, "TQ2_0", 256, 66, NULL },
    [BLOCK_MXFP4] = { BLOCK_MXFP4, "MXFP4", 32, 17, mxfp4_to_f32_row },
    [40] = { 40, "NVFP4", 64, 36, NULL },
    [41] = { 41, "Q1_0", 128, 18, NULL },
    [42] = { 42, "Q2_0", 64, 18, NULL },
};
enum { N_SCALAR = sizeof scalar_formats / sizeof scalar_formats[0] };

static const block_format avx2_formats[] = {
    { BLOCK_F16, "F16", 1, 2, f16_to_f32_row_avx2 },
    { BLOCK_Q4_0, "Q4_0", 32, 18, q4_0_to_f32_row_avx2 },
    { BLOCK_Q4_1, "Q4_1", 32, 20, q4_1_to_f32_row_avx2 },
    { BLOCK_Q5_0, "Q5_0", 32, 22, q5_0_to_f32_row_avx2 },
    { BLOCK_Q5_1, "Q5_1", 32, 24, q5_1_to_f32_row_avx2 },
    { BLOCK_Q8_0, "Q8_0", 32, 34, q8_0_to_f32_row_avx2 },
    { BLOCK_Q2_K, "Q2_K", 256, 84, q2_k_to_f32_row_avx2 },
    { BLOCK_Q3_K, "Q3_K", 256, 110, q3_k_to_f32_row_avx2 },
    { BLOCK_Q4_K, "Q4_K", 256, 144, q4_k_to_f32_row_avx2 },
    { BLOCK_Q5_K, "Q5_K", 256, 176, q5_k_to_f32_row_avx2 },
    { BLOCK_Q6_K, "Q6_K", 256, 210, q6_k_to_f32_row_avx2 },
    { BLOCK_Q8_K, "Q8_K", 256, 292, q8_k_to_f32_row_avx2 },
    { BLOCK_IQ4_NL, "IQ4_NL", 32, 18, iq4_nl_to_f32_row_avx2 },
    { BLOCK_IQ4_XS, "IQ4_XS", 256, 136, iq4_xs_to_f32_row_avx2 },
    { BLOCK_BF16, "BF16", 1, 2, bf16_to_f32_row_avx2 },
    { BLOCK_MXFP4, "MXFP4", 32, 17, mxfp4_to_f32_row_avx2 },
};
enum { N_AVX2 = sizeof avx2_formats / sizeof avx2_formats[0] };

const block_format *block_format_find_for(uint32_t type, tmx_isa isa)
{
    if (type >= N_SCALAR || scalar_formats[type].n_bytes == 0) return NULL;
    if (cpu_isa_resolve(isa) >= TMX_ISA_AVX2) {
        for (size_t i = 0; i < N_AVX2; i++) {
            if (avx2_formats[i].type == type) return &avx2_formats[i];
        }
    }
    return &scalar_formats[type];
}

const block_format *block_format_find(uint32_t type) { return block_format_find_for(type, TMX_ISA_AUTO); }
