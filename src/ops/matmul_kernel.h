/* matmul_kernel.h - the built-in block kernels behind matmul.c.  In: rows of x, packed panels of weights.  Out:
 * y[r][c] = or += sum over k of x[r][k] * w[k][c].  Every y[r][c] has one accumulator that walks k upwards, so its bits
 * do not depend on how many rows the call has or on which row of a tile it is.
 *
 * A panel is n_panel output columns wide and lies [k][n_panel] in f32, or [k/2][n_panel][2] in bf16 pairs; k is padded with zeros
 * to n_k_align.  Columns beyond n_out are zero weights and are never stored. */
#ifndef TMX_OPS_MATMUL_KERNEL_H
#define TMX_OPS_MATMUL_KERNEL_H

#include "base/unroll.h"
#include "ops/matmul.h"

typedef struct matmul_block {
    const void *x;                 /* [n_rows][n_k], row stride x_stride elements */
    const void *w;                 /* the first panel, from its first k of this block */
    size_t panel_items;            /* elements from panel to panel */
    float *y;                      /* [n_rows][n_cols], row stride y_stride elements */
    size_t x_stride, y_stride;
    int32_t n_rows, n_k, n_cols;   /* n_cols: of all panels */
    bool is_added;
    void *scratch;                 /* MATMUL_BLOCK_SCRATCH bytes */
} matmul_block;

typedef struct matmul_kernel {
    void (*run)(const matmul_block *block);
    int32_t n_panel;               /* divides MATMUL_OUT_ALIGN */
    int32_t n_depth;               /* most k of one block, a multiple of MATMUL_K_STEP */
    int32_t n_tile;                /* rows the kernel works on at once */
    int32_t n_chunk;               /* most rows of a task */
    int32_t n_k_align;
    size_t group_bytes;            /* 0: a call is one panel; else all panels of a task, of at most so many bytes, which stay in L2
                                    * from task to task */
    bool takes_bf16;               /* x and w are bf16; otherwise both are f32 */
} matmul_kernel;

enum {
    MATMUL_OUT_ALIGN = 64,         /* outputs are padded to this on every rung, so memory hardly depends on the rung */
    MATMUL_K_STEP = 32,
    MATMUL_CHUNK_ROWS = 96,        /* n_chunk of kernels on lanes: 96 rows x 1024 bf16 (or 512 f32) = 192 KiB, beside 128 KiB of w in L2 */
    MATMUL_BLOCK_SCRATCH = 32 * 640 * 2,           /* 32 rows of x of a block, bf16 */
};

extern const matmul_kernel matmul_kernel_f32_scalar, matmul_kernel_f32_avx2, matmul_kernel_f32_avx512;
extern const matmul_kernel matmul_kernel_bf16_avx512bf16, matmul_kernel_bf16_amx;

/* One matmul_run, for whoever does the work. */
typedef struct matmul_call {
    const void *x;                 /* [n_rows][n_in] of the compute type */
    float *y;                      /* [n_rows][n_out] */
    size_t x_stride, y_stride;
    int32_t n_rows;
    bool is_added;
    char *scratch;                 /* scratch_bytes of it for each thread */
    size_t scratch_bytes;
} matmul_call;

/* The stacked sources of a weight, seen as one matrix. */
typedef struct matmul_stack {
    matmul_source sources[4];
    int32_t n_sources, n_out, n_in;
} matmul_stack;

void matmul_stack_row(const matmul_stack *stack, int32_t out, float *row);   /* row [n_in], expanded to f32 */

#endif
