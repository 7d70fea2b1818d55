/* blocks_avx2.c - the expansions of blocks.c, 8 floats at a time and to the same bits: integers widen to i32, convert,
 * multiply, add (never fused).  One task is one row.  Floor: the 4 bytes an element written, so memory decides. */
#include "gguf/blocks_internal.h"

#include "base/num.h"

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static inline __m256 broadcast_f16(const unsigned char *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return _mm256_set1_ps(_cvtsh_ss(h));
}

static inline __m128i load_128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }

void f16_to_f32_row_avx2(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, _mm256_cvtph_ps(load_128(p + 2 * i)));
    for (; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof h);
        x[i] = f16_to_f32(h);
    }
}

void bf16_to_f32_row_avx2(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p + 2 * i)), 16);
        _mm256_storeu_ps(x + i, _mm256_castsi256_ps(wide));
    }
    for (; i < n; i++) {
        tmx_bf16 b;
        memcpy(&b, p + 2 * i, sizeof b);
        x[i] = bf16_to_f32(b);
    }
}

/* The 16 signed bytes of q as 16 floats. */
static inline void widen_16(__m128i q, __m256 *lo, __m256 *hi)
{
    *lo = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
    *hi = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(q, q)));
}

static inline void store_scaled_16(float *x, __m128i q, __m256 d)
{
    __m256 lo, hi;
    widen_16(q, &lo, &hi);
    _mm256_storeu_ps(x, _mm256_mul_ps(d, lo));
    _mm256_storeu_ps(x + 8, _mm256_mul_ps(d, hi));
}

static inline void store_scaled_shifted_16(float *x, __m128i q, __m256 d, __m256 m)
{
    __m256 lo, hi;
    widen_16(q, &lo, &hi);
    _mm256_storeu_ps(x, _mm256_add_ps(_mm256_mul_ps(d, lo), m));
    _mm256_storeu_ps(x + 8, _mm256_add_ps(_mm256_mul_ps(d, hi), m));
}

static inline __m128i low_nibbles(__m128i q) { return _mm_and_si128(q, _mm_set1_epi8(15)); }
static inline __m128i high_nibbles(__m128i q) { return low_nibbles(_mm_srli_epi16(q, 4)); }

void q8_0_to_f32_row_avx2(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 34) {
        const __m256 d = broadcast_f16(p);
        store_scaled_16(x + i, load_128(p + 2), d);
        store_scaled_16(x + i + 16, load_128(p + 18), d);
    }
}

void q4_0_to_f32_row_avx2(const void *blocks, float *x, size_t n)
{
    const __m128i eight = _mm_set1_epi8(8);
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 18) {
        const __m256 d = broadcast_f16(p);
        const __m128i q = load_128(p + 2);
        store_scaled_16(x + i, _mm_sub_epi8(low_nibbles(q), eight), d);
        store_scaled_16(x + i + 16, _mm_sub_epi8(high_nibbles(q), eight), d);
    }
}

void q4_1_to_f32_row_avx2(const void *blocks, float *x, size_t n)
{
    const unsigned char *p = blocks;
    for (size_t i = 0; i < n; i += 32, p += 20) {
        const __m256 d = broadcast_f16(p), m = broadcast_f16(p + 2);
        const __m128i q = load_128(p + 4);
        store_scaled_shifted_16(x + i, low_nibbles(q), d, m);
        store_scaled_shifted_16(x + i + 16, high_nibbles(q), d, m);
    }
}
