/* matmul_avx2.c - y[r][c] (+)= sum over k of x[r][k] * w[k][c], f32.  A tile is 6 rows x 16 columns: 12 sums +
 * 2 weights + 1 broadcast = 15 of 16 ymm.  For each k: 2 loads of w, 6 broadcasts of x, 12 fused multiply-adds.
 * Floor: 6 cycles a k on a core with two FMA pipes. */
#include "ops/matmul_kernel.h"

#include <assert.h>
#include <immintrin.h>

enum { TILE_ROWS = 6, N_PANEL = 16, N_VEC = N_PANEL / 8 };

ALWAYS_INLINE __m256i column_mask(int32_t n_cols)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n_cols), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

ALWAYS_INLINE void tile(const matmul_block *b, int32_t row, const int n_rows)
{
    const float *x = (const float *)b->x + (size_t)row * b->x_stride;
    const float *w = b->w;
    __m256 sum[TILE_ROWS][N_VEC];
    UNROLL for (int r = 0; r < n_rows; r++) {
        UNROLL for (int v = 0; v < N_VEC; v++) sum[r][v] = _mm256_setzero_ps();
    }
    for (int32_t k = 0; k < b->n_k; k++, w += N_PANEL, x++) {
        const __m256 w_lo = _mm256_load_ps(w), w_hi = _mm256_load_ps(w + 8);
        UNROLL for (int r = 0; r < n_rows; r++) {
            const __m256 x_rk = _mm256_broadcast_ss(x + (size_t)r * b->x_stride);
            sum[r][0] = _mm256_fmadd_ps(x_rk, w_lo, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(x_rk, w_hi, sum[r][1]);
        }
    }
    UNROLL for (int v = 0; v < N_VEC; v++) {
        const __m256i mask = column_mask(b->n_cols - 8 * v);
        UNROLL for (int r = 0; r < n_rows; r++) {
            float *y = b->y + (size_t)(row + r) * b->y_stride + 8 * v;
            if (b->is_added) sum[r][v] = _mm256_add_ps(_mm256_maskload_ps(y, mask), sum[r][v]);
            _mm256_maskstore_ps(y, mask, sum[r][v]);
        }
    }
}

#include "ops/matmul_rows.h"

const matmul_kernel matmul_kernel_f32_avx2 = {
    .run = run, .n_panel = N_PANEL, .n_depth = 512, .n_tile = TILE_ROWS, .n_chunk = MATMUL_CHUNK_ROWS, .n_k_align = 2,
};
