/* matvec.c - y = W x for one row of activations, straight from the blocks in the file.
 *
 * A task owns n_group outputs; each output is one dot product in one fixed order.  Decoding reads every weight once
 * a token, so the floor is the bytes of the matrix over the memory bandwidth; the kernels only have to expand blocks
 * faster than they arrive.  A block type without a kernel is expanded to f32 in scratch first. */
#include "base/cpu.h"
#include "base/num.h"
#include "base/pool.h"
#include "gguf/blocks.h"
#include "ops/matmul.h"
#include "ops/matvec_kernel.h"

#include <assert.h>

enum { LEAST_ROWS = 16, TASKS_PER_THREAD = 2, LINE_BYTES = 64, AHEAD_BYTES = 4096 };

typedef struct run_job {
    const matmul_source *source;
    const block_format *format;
    matvec_dot *dot;               /* over blocks, or over expanded rows */
    bool is_expanded;
    const float *x;
    float *y, *scratch;
    bool is_added;
    int32_t n_group;
} run_job;

static float dot_f32_scalar(const void *row, const float *x, size_t n)
{
    const float *w = row;
    float sum[8] = { 0 };                        /* eight chains vectorise, and err less than one */
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (size_t lane = 0; lane < 8; lane++) sum[lane] += w[i + lane] * x[i + lane];
    }
    for (; i < n; i++) sum[i % 8] += w[i] * x[i];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

/* The widest kernel there is: the rung's own, or that of a rung below.  NULL: the row must be expanded. */
static matvec_dot *dot_for(tmx_isa isa, uint32_t type)
{
    const tmx_isa rung = cpu_isa_resolve(isa);
    matvec_dot *dot = NULL;
    if (rung >= TMX_ISA_AVX512) dot = matvec_dot_avx512(type);
    if (dot == NULL && rung >= TMX_ISA_AVX2) dot = matvec_dot_avx2(type);
    if (dot == NULL && type == BLOCK_F32) dot = dot_f32_scalar;
    return dot;
}

/* Weights lie in small pages of a mapped file, and the hardware's own fetching ends with each page. */
static void fetch_ahead(const void *row, size_t n)
{
    const uintptr_t ahead = (uintptr_t)row + AHEAD_BYTES;             /* may lie behind the weights: fetching never faults */
    for (size_t i = 0; i < n; i += LINE_BYTES) __builtin_prefetch((const void *)(ahead + i));
}

static void run_group(void *ctx, int32_t task, int32_t thread)
{
    const run_job *job = ctx;
    const size_t n_in = (size_t)job->source->n_in, row_bytes = block_row_bytes(job->format, n_in);
    const int32_t begin = task * job->n_group, end = min_i32(begin + job->n_group, job->source->n_out);
    float *expanded = job->scratch + (size_t)thread * n_in;
    for (int32_t out = begin; out < end; out++) {
        const void *row = (const char *)job->source->data + (size_t)out * row_bytes;
        fetch_ahead(row, row_bytes);
        if (job->is_expanded) {
            job->format->to_f32(row, expanded, n_in);
            row = expanded;
        }
        const float sum = job->dot(row, job->x, n_in);
        job->y[out] = job->is_added ? job->y[out] + sum : sum;
    }
}

void matvec_run(const matmul_source *source, const float *x, float *y, bool is_added, tmx_isa isa,
                void *scratch, tmx_pool *pool)
{
    run_job job = {
        .source = source, .format = block_format_find(source->type), .dot = dot_for(isa, source->type),
        .x = x, .y = y, .scratch = scratch, .is_added = is_added,
    };
    assert(job.format != NULL && job.format->to_f32 != NULL && source->n_in % job.format->n_elements == 0);
    job.is_expanded = job.dot == NULL;
    if (job.is_expanded) job.dot = dot_for(isa, BLOCK_F32);
    /* Few long tasks: a thread then reads on where it fetched ahead. */
    job.n_group = max_i32(LEAST_ROWS, (source->n_out - 1) / (TASKS_PER_THREAD * pool_n_threads(pool)) + 1);
    pool_run(pool, (source->n_out - 1) / job.n_group + 1, run_group, &job);
}
