/* matvec_avx2.c - sum over i of row[i] * x[i] with the row expanded in registers, never in memory.  Sums lie in 4 ymm,
 * one per 8 elements in turn, and are folded in one fixed order at the end. */
#include "gguf/blocks.h"
#include "gguf/blocks_avx2.h"
#include "ops/matvec_kernel.h"

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

typedef struct dot_sums {
    const float *x;
    __m256 sum[4];
} dot_sums;

/* The weights first, as the expansion has them, then their products: one definition of what a block stands for.  d q is exact (17
 * bits at most by 5), so rounding once, after m, gives the expansion's bits. */
ALWAYS_INLINE void add_piece(void *to, size_t i, __m128i q, __m256 d, __m256 m, const bool is_shifted)
{
    dot_sums *dot = to;
    __m256 w[2];
    piece_widen(q, &w[0], &w[1]);
    UNROLL for (size_t v = 0; v < 2; v++) {
        w[v] = is_shifted ? _mm256_fmadd_ps(d, w[v], m) : _mm256_mul_ps(d, w[v]);
        const size_t lane = i / 8 % 4 + v;
        dot->sum[lane] = _mm256_fmadd_ps(w[v], _mm256_loadu_ps(dot->x + i + 8 * v), dot->sum[lane]);
    }
}

ALWAYS_INLINE float dot_blocks(const void *row, const float *x, size_t n, take_block *take, const size_t n_elements,
                               const size_t n_bytes)
{
    const unsigned char *block = row;
    dot_sums dot;
    UNROLL for (int v = 0; v < 4; v++) dot.sum[v] = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += n_elements, block += n_bytes) {
        dot.x = x + i;             /* pieces count from the block's begin, so that their lane is known at compile time */
        take(block, 0, add_piece, &dot);
    }
    return fold(dot.sum);
}

/* 32 elements: f16 d, [f16 m,] 16 bytes; element i is the low nibble of byte i, element 16 + i the high one.  The same bits as
 * by pieces, without widening and conversion: q is a small integer, so a bf16, and a nibble picks the two bytes of it.  The
 * bytes are first laid so that each unpacked quarter of the block is 8 elements in order:
 *   lane 0: 0-3, 8-11, 16-19, 24-27    lane 1: 4-7, 12-15, 20-23, 28-31 */
ALWAYS_INLINE float dot_nibbles(const void *row, const float *x, size_t n, const bool has_min)
{
    const __m256i place = _mm256_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11,
                                           4, 5, 6, 7, 12, 13, 14, 15, 4, 5, 6, 7, 12, 13, 14, 15);
    const __m256i shift = _mm256_setr_epi64x(0, 4, 0, 4), mask = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    /* 0..15, or -8..7, in bf16: high bytes, low bytes */
    const __m128i from_0[2] = {
        _mm_setr_epi8(0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41),
        _mm_setr_epi8(0x00, -128, 0x00, 0x40, -128, -96, -64, -32, 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70),
    };
    const __m128i from_minus_8[2] = {
        _mm_setr_epi8(-63, -64, -64, -64, -64, -64, -64, -65, 0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40),
        _mm_setr_epi8(0x00, -32, -64, -96, -128, 0x40, 0x00, -128, 0x00, -128, 0x00, 0x40, -128, -96, -64, -32),
    };
    const __m256i high = _mm256_broadcastsi128_si256(has_min ? from_0[0] : from_minus_8[0]);
    const __m256i low = _mm256_broadcastsi128_si256(has_min ? from_0[1] : from_minus_8[1]);
    const unsigned char *block = row;
    __m256 sum[4];
    UNROLL for (int v = 0; v < 4; v++) sum[v] = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 32, block += has_min ? 20 : 18) {
        const __m256 scales = _mm256_cvtph_ps(has_min ? _mm_set1_epi32((int)load_u32(block)) : _mm_set1_epi16((short)load_u16(block)));
        const __m256 d = has_min ? _mm256_moveldup_ps(scales) : scales, m = _mm256_movehdup_ps(scales);
        const __m256i bytes = _mm256_broadcastsi128_si256(piece_load(block + (has_min ? 4 : 2)));
        const __m256i q = _mm256_and_si256(_mm256_srlv_epi64(_mm256_shuffle_epi8(bytes, place), shift), mask);
        const __m256i q_high = _mm256_shuffle_epi8(high, q), q_low = _mm256_shuffle_epi8(low, q);
        const __m256i half[2] = { _mm256_unpacklo_epi8(q_low, q_high), _mm256_unpackhi_epi8(q_low, q_high) };
        UNROLL for (size_t v = 0; v < 4; v++) {
            const __m256i bits = v % 2 == 0 ? _mm256_unpacklo_epi16(zero, half[v / 2]) : _mm256_unpackhi_epi16(zero, half[v / 2]);
            const __m256 q_v = _mm256_castsi256_ps(bits), w = has_min ? _mm256_fmadd_ps(d, q_v, m) : _mm256_mul_ps(d, q_v);
            sum[v] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x + i + 8 * v), sum[v]);
        }
    }
    return fold(sum);
}

static float dot_q4_0(const void *row, const float *x, size_t n) { return dot_nibbles(row, x, n, false); }
static float dot_q4_1(const void *row, const float *x, size_t n) { return dot_nibbles(row, x, n, true); }
static float dot_q5_0(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_q5_0, 32, 22); }
static float dot_q5_1(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_q5_1, 32, 24); }
static float dot_q8_0(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_q8_0, 32, 34); }
static float dot_q2_k(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_q2_k, 256, 84); }
static float dot_q3_k(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_q3_k, 256, 110); }
static float dot_q4_k(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_q4_k, 256, 144); }
static float dot_q5_k(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_q5_k, 256, 176); }
static float dot_q6_k(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_q6_k, 256, 210); }
static float dot_iq4_nl(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_iq4_nl, 32, 18); }
static float dot_iq4_xs(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_iq4_xs, 256, 136); }
static float dot_mxfp4(const void *row, const float *x, size_t n) { return dot_blocks(row, x, n, take_mxfp4, 32, 17); }

matvec_dot *matvec_dot_avx2(uint32_t type)
{
    switch (type) {
    case BLOCK_F32: return dot_f32;
    case BLOCK_F16: return dot_f16;
    case BLOCK_BF16: return dot_bf16;
    case BLOCK_Q4_0: return dot_q4_0;
    case BLOCK_Q4_1: return dot_q4_1;
    case BLOCK_Q5_0: return dot_q5_0;
    case BLOCK_Q5_1: return dot_q5_1;
    case BLOCK_Q8_0: return dot_q8_0;
    case BLOCK_Q2_K: return dot_q2_k;
    case BLOCK_Q3_K: return dot_q3_k;
    case BLOCK_Q4_K: return dot_q4_k;
    case BLOCK_Q5_K: return dot_q5_k;
    case BLOCK_Q6_K: return dot_q6_k;
    case BLOCK_IQ4_NL: return dot_iq4_nl;
    case BLOCK_IQ4_XS: return dot_iq4_xs;
    case BLOCK_MXFP4: return dot_mxfp4;
    default: return NULL;
    }
}
