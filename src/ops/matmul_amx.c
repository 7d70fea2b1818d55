/* matmul_amx.c - y[r][c] (+)= sum over k of x[r][k] * w[k][c], bf16 operands, f32 sums (tdpbf16ps: 32 k at a time).  A block is
 * 32 rows x 32 columns in four tiles; for every 32 k four tiles are loaded and four products made.  Floor: 64 cycles for those
 * products, 1024 FLOP a cycle.
 *
 * 32 rows of x are copied to scratch, tile behind tile, zero where there are no rows and no k; so they never meet in few sets of the
 * cache.  They are used by all panels of a task, 1 MiB of w at most, which then lie in L2 for the next rows. */
#include "base/amx.h"
#include "base/num.h"
#include "ops/matmul_kernel.h"

#include <assert.h>
#include <string.h>

enum { N_PANEL = AMX_BLOCK, N_DEPTH = 640, STEP_ITEMS = AMX_BLOCK * AMX_DEPTH };
static_assert((int)MATMUL_BLOCK_SCRATCH >= AMX_BLOCK * N_DEPTH * (int)sizeof(tmx_bf16) && (int)MATMUL_K_STEP == (int)AMX_DEPTH, "room");

/* [n_k / 32][32 rows][32] */
static void copy_rows(const matmul_block *b, int32_t row, int32_t n_rows, tmx_bf16 *to)
{
    const tmx_bf16 *x = (const tmx_bf16 *)b->x + (size_t)row * b->x_stride;
    for (int32_t k = 0; k < b->n_k; k += AMX_DEPTH, to += STEP_ITEMS) {
        const int32_t n = min_i32(AMX_DEPTH, b->n_k - k);
        if (n_rows < AMX_BLOCK || n < AMX_DEPTH) memset(to, 0, STEP_ITEMS * sizeof *to);
        for (int32_t r = 0; r < n_rows; r++) {
            const tmx_bf16 *from = x + (size_t)r * b->x_stride + k;
            if (n == AMX_DEPTH) memcpy(to + r * AMX_DEPTH, from, AMX_DEPTH * sizeof *to);
            else memcpy(to + r * AMX_DEPTH, from, (size_t)n * sizeof *to);
        }
    }
}

/* y [32][32] */
static void multiply(const tmx_bf16 *x, const tmx_bf16 *w, int32_t n_k, float *y, size_t y_stride, bool is_added)
{
    AMX_BARRIER();
    if (is_added) amx_load_sums(y, y_stride);
    else amx_zero_sums();
    for (int32_t k = 0; k < n_k; k += AMX_DEPTH, x += STEP_ITEMS, w += AMX_DEPTH * N_PANEL) {
        AMX_MULTIPLY(x, x + AMX_TILE * AMX_DEPTH, 2 * AMX_DEPTH, w, w + 2 * AMX_TILE, 4 * N_PANEL);
    }
    amx_store_sums(y, y_stride);
    AMX_BARRIER();
}

/* The same where not all 32 rows and columns exist. */
static void multiply_edge(const tmx_bf16 *x, const tmx_bf16 *w, int32_t n_k, float *y, size_t y_stride, bool is_added, int32_t n_rows,
                          int32_t n_cols)
{
    float sums[AMX_BLOCK * AMX_BLOCK];
    const size_t n_bytes = (size_t)n_cols * sizeof *y;
    if (is_added) {
        memset(sums, 0, sizeof sums);
        for (int32_t r = 0; r < n_rows; r++) memcpy(sums + r * AMX_BLOCK, y + (size_t)r * y_stride, n_bytes);
    }
    multiply(x, w, n_k, sums, AMX_BLOCK, is_added);
    for (int32_t r = 0; r < n_rows; r++) memcpy(y + (size_t)r * y_stride, sums + r * AMX_BLOCK, n_bytes);
}

static void run(const matmul_block *b)
{
    amx_begin();
    for (int32_t row = 0; row < b->n_rows; row += AMX_BLOCK) {
        const tmx_bf16 *x = b->scratch, *w = b->w;
        const int32_t n_rows = min_i32(AMX_BLOCK, b->n_rows - row);
        copy_rows(b, row, n_rows, b->scratch);
        for (int32_t col = 0; col < b->n_cols; col += N_PANEL, w += b->panel_items) {
            const int32_t n_cols = min_i32(N_PANEL, b->n_cols - col);
            float *y = b->y + (size_t)row * b->y_stride + col;
            if (n_rows == AMX_BLOCK && n_cols == N_PANEL) multiply(x, w, b->n_k, y, b->y_stride, b->is_added);
            else multiply_edge(x, w, b->n_k, y, b->y_stride, b->is_added, n_rows, n_cols);
        }
    }
    amx_end();
}

const matmul_kernel matmul_kernel_bf16_amx = {
    .run = run, .n_panel = N_PANEL, .n_depth = N_DEPTH, .n_tile = AMX_BLOCK, .n_chunk = AMX_BLOCK, .n_k_align = AMX_DEPTH,
    .group_bytes = 1 << 20, .takes_bf16 = true,
};
