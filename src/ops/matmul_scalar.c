/* matmul_scalar.c - y[r][c] (+)= sum over k of x[r][k] * w[k][c], f32: the rung every CPU has.  A tile is 2 rows x
 * 16 columns: 8 sums + 4 weights + 1 broadcast = 13 of the 16 registers of baseline x86-64.  The lanes are the
 * compiler's portable vectors: from plain loops gcc 12 vectorises along k and shuffles, five times slower. */
#include "ops/matmul_kernel.h"

#include <string.h>

typedef float lanes __attribute__((vector_size(16)));

enum { TILE_ROWS = 2, N_PANEL = 16, N_VEC = N_PANEL / 4 };

ALWAYS_INLINE void tile(const matmul_block *b, int32_t row, const int n_rows)
{
    const float *x = (const float *)b->x + (size_t)row * b->x_stride;
    const lanes *w = b->w;
    lanes sum[TILE_ROWS][N_VEC];
    UNROLL for (int r = 0; r < n_rows; r++) {
        UNROLL for (int v = 0; v < N_VEC; v++) sum[r][v] = (lanes){ 0 };
    }
    for (int32_t k = 0; k < b->n_k; k++, w += N_VEC, x++) {
        UNROLL for (int r = 0; r < n_rows; r++) {
            const float x_rk = x[(size_t)r * b->x_stride];
            UNROLL for (int v = 0; v < N_VEC; v++) sum[r][v] += x_rk * w[v];
        }
    }
    UNROLL for (int r = 0; r < n_rows; r++) {
        float *y = b->y + (size_t)(row + r) * b->y_stride, row_sum[N_PANEL];
        memcpy(row_sum, sum[r], sizeof row_sum);
        for (int32_t c = 0; c < b->n_cols; c++) y[c] = b->is_added ? y[c] + row_sum[c] : row_sum[c];
    }
}

static void run(const matmul_block *b)
{
    int32_t row = 0;
    for (; row + TILE_ROWS <= b->n_rows; row += TILE_ROWS) tile(b, row, TILE_ROWS);
    if (row < b->n_rows) tile(b, row, 1);
}

const matmul_kernel matmul_kernel_f32_scalar = {
    .run = run, .n_panel = N_PANEL, .n_depth = 512, .n_tile = TILE_ROWS, .n_chunk = MATMUL_CHUNK_ROWS, .n_k_align = 2,
};
