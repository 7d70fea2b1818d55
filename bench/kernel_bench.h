/* kernel_bench.h - kernels alone: attention by pattern, matrix products, products of one row straight from quantised blocks.
 * In: shapes, rungs, a pool.  Out: times, GFLOP/s or GB/s, and the share of what this machine can do (ceiling.h).
 *
 * Attention goes through tmx_attention.  Products are no part of tmx.h, so this room reaches into src/ops for them: they are
 * measured as the engine calls them, weights rotated as those of layers are.  Every entry is checked against f64 sums before it is
 * timed.  All entries of one shape and type alternate, repetition by repetition. */
#ifndef TMX_BENCH_KERNEL_BENCH_H
#define TMX_BENCH_KERNEL_BENCH_H

#include "ceiling.h"
#include "timing.h"
#include "tmx.h"

enum { KERNEL_N_KV_HEADS = 2 };

typedef struct kernel_shape { int32_t n_out, n_in; } kernel_shape;

typedef enum kernel_op { KERNEL_ATTENTION, KERNEL_MATMUL, KERNEL_MATVEC } kernel_op;

typedef struct kernel_result {
    kernel_op op;
    const char *type;              /* "bf16", "f32", of a matvec the block type: "Q4_1" */
    const char *provider;          /* "builtin", "onednn" */
    tmx_isa isa;
    tmx_pattern pattern;           /* attention */
    int32_t n_tokens, n_heads, n_kv_heads, head_dim;       /* attention; n_tokens: also rows of a product */
    int32_t n_out, n_in;           /* products */
    timing_summary time;           /* milliseconds */
    double rate, pct_of_ceiling;   /* from the median: GFLOP/s on visible pairs, of a matvec GB/s; 0 = there is no ceiling */
    double pair_ratio, time_ratio; /* attention: to dense of the same rung and shape; 1 for dense itself */
    double error;                  /* relative L2 distance from the f64 result */
} kernel_result;

typedef struct kernel_params {
    tmx_pool *pool;
    tmx_isa isa;                   /* AUTO = every vector rung this CPU has, scalar if it has none */
    const int32_t *lengths;        /* [n_lengths] */
    const int32_t *head_dims;      /* [n_head_dims], 1..512 */
    const int32_t *groups;         /* [n_groups]: query heads of a KV head */
    int32_t n_lengths, n_head_dims, n_groups;
    const kernel_shape *shapes;    /* [n_shapes] of weights */
    int32_t n_shapes, n_rows;      /* activations a product takes */
    int32_t n_repeats;             /* 1..1000 */
    uint64_t seed;
    bool (*progress)(void *ctx, double share);     /* 0..1; false = stop; may be NULL */
    void (*finished)(void *ctx, const kernel_result *result);
    void *ctx;
} kernel_params;

/* Stopped by progress is TMX_OK with *is_stopped.  TMX_E_ARG (a shape that tmx_attention refuses), TMX_E_MEMORY, TMX_E_NUMERIC (a
 * kernel is further from the f64 result than its type allows). */
tmx_status bench_kernels(const kernel_params *params, ceilings *measured, bool *is_stopped, tmx_error *err);

#endif
