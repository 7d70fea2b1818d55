/* matvec_avx2.c - sum over i of row[i] * x[i] with the row expanded in registers, never in memory.  Sums lie in 4 ymm,
 * one per 8 elements in turn, and are folded in one fixed order at the end. */
#include "gguf/blocks.h"
#include "ops/matmul_kernel.h"
#include "ops/matvec_kernel.h"

#include <immintrin.h>
#include <string.h>

ALWAYS_INLINE __m256 load_half(const void *p)    /* one f16, in every lane */
{
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

ALWAYS_INLINE float fold(const __m256 sum[4])
{
    const __m256 all = _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3]));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

ALWAYS_INLINE __m256 widen_f32(const void *w) { return _mm256_loadu_ps(w); }
ALWAYS_INLINE __m256 widen_f16(const void *w) { return _mm256_cvtph_ps(_mm_loadu_si128(w)); }
ALWAYS_INLINE __m256 widen_bf16(const void *w)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(w)), 16));
}

typedef __m256 widen(const void *w);

ALWAYS_INLINE float dot_plain(const void *row, const float *x, size_t n, widen *widen_lanes, const size_t item)
{
    const char *w = row;
    __m256 sum[4];
    UNROLL for (int v = 0; v < 4; v++) sum[v] = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        UNROLL for (size_t v = 0; v < 4; v++) {
            sum[v] = _mm256_fmadd_ps(widen_lanes(w + (i + 8 * v) * item), _mm256_loadu_ps(x + i + 8 * v), sum[v]);
        }
    }
    for (; i < n; i += 8) {
        const size_t n_lanes = n - i < 8 ? n - i : 8;
        char w_lanes[8 * sizeof(float)] = { 0 };
        float x_lanes[8] = { 0 };
        memcpy(w_lanes, w + i * item, n_lanes * item);
        memcpy(x_lanes, x + i, n_lanes * sizeof *x);
        sum[0] = _mm256_fmadd_ps(widen_lanes(w_lanes), _mm256_loadu_ps(x_lanes), sum[0]);
    }
    return fold(sum);
}

static float dot_f32(const void *row, const float *x, size_t n) { return dot_plain(row, x, n, widen_f32, 4); }
static float dot_f16(const void *row, const float *x, size_t n) { return dot_plain(row, x, n, widen_f16, 2); }
static float dot_bf16(const void *row, const float *x, size_t n) { return dot_plain(row, x, n, widen_bf16, 2); }

ALWAYS_INLINE __m256 signed_bytes(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }

/* 32 elements: f16 d, [f16 m,] 16 bytes; element i is the low nibble of byte i, element 16 + i the high one. */
ALWAYS_INLINE float dot_nibbles(const void *row, const float *x, size_t n, const bool has_min)
{
    const __m128i low = _mm_set1_epi8(15), bias = _mm_set1_epi8(has_min ? 0 : 8);
    const unsigned char *block = row;
    __m256 sum[4];
    UNROLL for (int v = 0; v < 4; v++) sum[v] = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 32, block += has_min ? 20 : 18) {
        const __m256 d = load_half(block), m = has_min ? load_half(block + 2) : _mm256_setzero_ps();
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(block + (has_min ? 4 : 2)));
        const __m128i q[2] = {
            _mm_sub_epi8(_mm_and_si128(bytes, low), bias),
            _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), low), bias),
        };
        UNROLL for (size_t v = 0; v < 4; v++) {
            const __m256 counts = signed_bytes(v % 2 == 0 ? q[v / 2] : _mm_srli_si128(q[v / 2], 8));
            const __m256 w = _mm256_add_ps(_mm256_mul_ps(counts, d), m);
            sum[v] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x + i + 8 * v), sum[v]);
        }
    }
    return fold(sum);
}

static float dot_q4_0(const void *row, const float *x, size_t n) { return dot_nibbles(row, x, n, false); }
static float dot_q4_1(const void *row, const float *x, size_t n) { return dot_nibbles(row, x, n, true); }

/* 32 elements: f16 d, 32 signed bytes. */
static float dot_q8_0(const void *row, const float *x, size_t n)
{
    const unsigned char *block = row;
    __m256 sum[4];
    UNROLL for (int v = 0; v < 4; v++) sum[v] = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 32, block += 34) {
        const __m256 d = load_half(block);
        UNROLL for (size_t v = 0; v < 4; v++) {
            const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(block + 2 + 8 * v));
            const __m256 w = _mm256_mul_ps(signed_bytes(bytes), d);
            sum[v] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x + i + 8 * v), sum[v]);
        }
    }
    return fold(sum);
}

matvec_dot *matvec_dot_avx2(uint32_t type)
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
