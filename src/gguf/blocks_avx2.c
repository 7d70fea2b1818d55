/* blocks_avx2.c - the expansions of blocks.c and blocks_k.c, 8 floats at a time and to the same bits: integers widen to
 * i32, convert, multiply, add (never fused).  One task is one row.  Floor: the 4 bytes an element written, so memory
 * decides. */
#include "gguf/blocks_avx2.h"

void f16_to_f32_row_avx2(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_cvtph_ps(piece_load(p + 2 * i)));
    for (; i < n; i++) x[i] = f16_to_f32(load_u16(p + 2 * i));
}

void bf16_to_f32_row_avx2(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(piece_load(p + 2 * i)), 16);
        _mm256_storeu_ps(x + i, _mm256_castsi256_ps(wide));
    }
    for (; i < n; i++) x[i] = bf16_to_f32(load_u16(p + 2 * i));
}

ALWAYS_INLINE void store_piece(void *to, size_t i, __m128i q, __m256 d, __m256 m, const bool is_shifted)
{
    float *x = to;
    __m256 lo, hi;
    piece_widen(q, &lo, &hi);
    lo = _mm256_mul_ps(d, lo);
    hi = _mm256_mul_ps(d, hi);
    _mm256_storeu_ps(x + i, is_shifted ? _mm256_add_ps(lo, m) : lo);
    _mm256_storeu_ps(x + i + 8, is_shifted ? _mm256_add_ps(hi, m) : hi);
}

ALWAYS_INLINE void expand(const void *blocks, float *x, size_t n, take_block *take, const size_t n_elements, const size_t n_bytes)
{
    const unsigned char *block = blocks;
    for (size_t i = 0; i < n; i += n_elements, block += n_bytes) take(block, i, store_piece, x);
}

void q4_0_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q4_0, 32, 18); }
void q4_1_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q4_1, 32, 20); }
void q5_0_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q5_0, 32, 22); }
void q5_1_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q5_1, 32, 24); }
void q8_0_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q8_0, 32, 34); }
void q2_k_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q2_k, 256, 84); }
void q3_k_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q3_k, 256, 110); }
void q4_k_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q4_k, 256, 144); }
void q5_k_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q5_k, 256, 176); }
void q6_k_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q6_k, 256, 210); }
void q8_k_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_q8_k, 256, 292); }
void iq4_nl_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_iq4_nl, 32, 18); }
void iq4_xs_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_iq4_xs, 256, 136); }
void mxfp4_to_f32_row_avx2(const void *blocks, float *x, size_t n) { expand(blocks, x, n, take_mxfp4, 32, 17); }
