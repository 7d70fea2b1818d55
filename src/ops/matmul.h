/* matmul.h - weights x activations.  In: weights as they lie in the file (any block format), activation rows.  Out: f32
 * rows.  y[r][o] = sum over i of x[r][i] * w[o][i].  Who multiplies (oneDNN or the built-in kernels) is decided here.
 *
 * Bits: y[r] depends on x[r] and w alone, never on n_rows, the place of r, or the threads.  (oneDNN picks its blocking
 * by shape, so it is always called with the same fixed panel of rows, zero-padded at the end.) */
#ifndef TMX_OPS_MATMUL_H
#define TMX_OPS_MATMUL_H

#include "tmx.h"

/* A matrix in the mapped file; borrowed. */
typedef struct matmul_source {
    const void *data;
    uint32_t type;                 /* block format, gguf/blocks.h */
    int32_t n_out, n_in;           /* data is n_out rows of n_in elements */
} matmul_source;

typedef struct matmul_weight matmul_weight;       /* packed for one compute mode; immutable */

typedef enum matmul_provider { MATMUL_AUTO = 0, MATMUL_BUILTIN, MATMUL_ONEDNN } matmul_provider;

/* Packs up to 4 sources stacked along their output rows ([q; k; v] is one product).  compute is F32 or BF16 (weights
 * rounded once, to nearest even); isa is resolved (not AUTO).  BF16 works on every rung (emulated below AVX512-BF16:
 * operands rounded to bf16, products in f32). Sum of n_out is the width of y. Uses the pool; same bits for any pool. */
tmx_status matmul_weight_create(matmul_weight **weight, const matmul_source *sources, int32_t n_sources,
                                tmx_compute compute, tmx_isa isa, matmul_provider provider, tmx_pool *pool,
                                tmx_error *err);
/* The transpose of the same stack, for a backward pass: y[r][i] = sum over o of x[r][o] * w[o][i].  Its width is n_in, its
 * depth the sum of n_out. */
tmx_status matmul_weight_create_transposed(matmul_weight **weight, const matmul_source *sources, int32_t n_sources,
                                           tmx_compute compute, tmx_isa isa, matmul_provider provider, tmx_pool *pool,
                                           tmx_error *err);
void matmul_weight_free(matmul_weight *weight);
/* Memory that create will take, +-5 % (a library may pad n_in to 32, so a short odd n_in can be further off).  For a
 * transposed weight: its own width and depth. */
size_t matmul_weight_bytes(int32_t n_out, int32_t n_in, tmx_compute compute);
matmul_provider matmul_provider_of(const matmul_weight *weight);

/* Per-thread scratch for matmul_run, the largest any of the weights given so far may need, for any shape up to
 * [n_out][n_in]; 64-byte aligned, n_threads of them behind each other. */
size_t matmul_scratch_bytes(int32_t n_out, int32_t n_in, int32_t n_threads);

/* x [n_rows][n_in] of the compute type (f32 or bf16), row stride x_stride elements; y [n_rows][n_out] f32, row stride
 * y_stride elements.  is_added: y += product, else y = product.  Allocates nothing. */
void matmul_run(const matmul_weight *weight, const void *x, size_t x_stride, int32_t n_rows,
                float *y, size_t y_stride, bool is_added, void *scratch, tmx_pool *pool);

/* One row, straight from the file's blocks, f32 throughout: decoding, the LM head, the last layer's single row.
 * y [n_out] += or = W x [n_in].  Bit-equal for any thread count. scratch: n_threads * n_in floats. */
void matvec_run(const matmul_source *source, const float *x, float *y, bool is_added, tmx_isa isa,
                void *scratch, tmx_pool *pool);

#endif
