/* matmul_avx512bf16.c - y[r][c] (+)= sum over k of x[r][k] * w[k][c], bf16 operands, f32 sums (vdpbf16ps: two k at a
 * time).  A tile is 6 rows x 64 columns: 24 sums + 4 weights + 1 broadcast = 29 of 32 zmm.  For each pair of k: 4 loads
 * of w, 6 broadcasts of an x pair, 24 vdpbf16ps.  Floor: 24 cycles a pair on a core that retires one zmm vdpbf16ps a
 * cycle (Zen 4), so w may come from L2 at 10.7 bytes a cycle.  The lines of y are prefetched while the sums are made:
 * 5 % where n_in is short (3072 x 576, 208 -> 220 GFLOP/s). */
#include "base/num.h"
#include "ops/matmul_kernel.h"

#include <assert.h>
#include <immintrin.h>

enum { TILE_ROWS = 6, N_PANEL = 64, N_VEC = N_PANEL / 16 };

ALWAYS_INLINE __mmask16 column_mask(int32_t n_cols)
{
    return (__mmask16)(n_cols >= 16 ? 0xffffu : n_cols <= 0 ? 0u : (1u << n_cols) - 1u);
}

ALWAYS_INLINE __m512bh pair_load(const tmx_bf16 *x)
{
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

ALWAYS_INLINE void tile(const matmul_block *b, int32_t row, const int n_rows)
{
    const tmx_bf16 *x = (const tmx_bf16 *)b->x + (size_t)row * b->x_stride;
    const tmx_bf16 *w = b->w;
    __m512 sum[TILE_ROWS][N_VEC];
    __m512bh w_k[N_VEC];
    UNROLL for (int r = 0; r < n_rows; r++) {
        UNROLL for (int v = 0; v < N_VEC; v++) {
            sum[r][v] = _mm512_setzero_ps();
            __builtin_prefetch(b->y + (size_t)(row + r) * b->y_stride + 16 * v, 1);
        }
    }
    for (int32_t k = 0; k + 2 <= b->n_k; k += 2, w += 2 * N_PANEL, x += 2) {
        UNROLL for (int v = 0; v < N_VEC; v++) w_k[v] = (__m512bh)_mm512_load_si512(w + 32 * v);
        UNROLL for (int r = 0; r < n_rows; r++) {
            const __m512bh x_rk = pair_load(x + (size_t)r * b->x_stride);
            UNROLL for (int v = 0; v < N_VEC; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], w_k[v], x_rk);
        }
    }
    if (b->n_k % 2 != 0) {                       /* the pair's second half would lie beyond the row of x */
        UNROLL for (int v = 0; v < N_VEC; v++) w_k[v] = (__m512bh)_mm512_load_si512(w + 32 * v);
        UNROLL for (int r = 0; r < n_rows; r++) {
            const __m512bh x_rk = (__m512bh)_mm512_set1_epi32((int)x[(size_t)r * b->x_stride]);
            UNROLL for (int v = 0; v < N_VEC; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], w_k[v], x_rk);
        }
    }
    UNROLL for (int v = 0; v < N_VEC; v++) {
        const __mmask16 mask = column_mask(b->n_cols - 16 * v);
        UNROLL for (int r = 0; r < n_rows; r++) {
            float *y = b->y + (size_t)(row + r) * b->y_stride + 16 * v;
            if (b->is_added) sum[r][v] = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sum[r][v]);
            _mm512_mask_storeu_ps(y, mask, sum[r][v]);
        }
    }
}

#include "ops/matmul_rows.h"

const matmul_kernel matmul_kernel_bf16_avx512bf16 = {
    .run = run, .n_panel = N_PANEL, .n_depth = 1024, .n_tile = TILE_ROWS, .n_chunk = MATMUL_CHUNK_ROWS, .n_k_align = 2,
    .takes_bf16 = true,
};
