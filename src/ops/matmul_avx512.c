/* matmul_avx512.c - y[r][c] (+)= sum over k of x[r][k] * w[k][c], f32.  A tile is 6 rows x 64 columns: 24 sums +
 * 4 weights + 1 broadcast = 29 of 32 zmm.  For each k: 4 loads of w, 6 broadcasts of x, 24 fused multiply-adds.  Floor:
 * 24 cycles a k on a core that retires one zmm FMA a cycle (Zen 4), so w may come from L2 at 10.7 bytes a cycle.
 * The lines of y are prefetched while the sums are made: 3 % where n_in is short (3072 x 576, 106 -> 109 GFLOP/s). */
#include "ops/matmul_kernel.h"

#include <assert.h>
#include <immintrin.h>

enum { TILE_ROWS = 6, N_PANEL = 64, N_VEC = N_PANEL / 16 };

ALWAYS_INLINE __mmask16 column_mask(int32_t n_cols)
{
    return (__mmask16)(n_cols >= 16 ? 0xffffu : n_cols <= 0 ? 0u : (1u << n_cols) - 1u);
}

ALWAYS_INLINE void tile(const matmul_block *b, int32_t row, const int n_rows)
{
    const float *x = (const float *)b->x + (size_t)row * b->x_stride;
    const float *w = b->w;
    __m512 sum[TILE_ROWS][N_VEC];
    UNROLL for (int r = 0; r < n_rows; r++) {
        UNROLL for (int v = 0; v < N_VEC; v++) {
            sum[r][v] = _mm512_setzero_ps();
            __builtin_prefetch(b->y + (size_t)(row + r) * b->y_stride + 16 * v, 1);
        }
    }
    for (int32_t k = 0; k < b->n_k; k++, w += N_PANEL, x++) {
        __m512 w_k[N_VEC];
        UNROLL for (int v = 0; v < N_VEC; v++) w_k[v] = _mm512_load_ps(w + 16 * v);
        UNROLL for (int r = 0; r < n_rows; r++) {
            const __m512 x_rk = _mm512_set1_ps(x[(size_t)r * b->x_stride]);
            UNROLL for (int v = 0; v < N_VEC; v++) sum[r][v] = _mm512_fmadd_ps(x_rk, w_k[v], sum[r][v]);
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

const matmul_kernel matmul_kernel_f32_avx512 = {
    .run = run, .n_panel = N_PANEL, .n_depth = 512, .n_tile = TILE_ROWS, .n_chunk = MATMUL_CHUNK_ROWS, .n_k_align = 2,
};
