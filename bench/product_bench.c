#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "eval/dice.h"
#include "eval/fault.h"
#include "gguf/blocks.h"
#include "kernel_parts.h"
#include "ops/matmul.h"
#include "ops/matmul_onednn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_COPIES = 4, COPIES_BYTES = 64 << 20,       /* weights in rotation: more than the caches hold */
    MAX_ENTRIES = 2 * KERNEL_MAX_RUNGS + 1,        /* two types a rung, and oneDNN */
    CHECK_OUTPUT_STEP = 7, CHECK_ROWS = 8,
    MATVEC_BYTES = 64 << 20, MATVEC_CHECK_STEP = 997,
};
static const uint32_t matvec_types[] = { BLOCK_Q4_0, BLOCK_Q4_1, BLOCK_Q8_0, BLOCK_F16, BLOCK_BF16, BLOCK_F32 };
enum { N_MATVEC_TYPES = sizeof matvec_types / sizeof matvec_types[0] };
/* Relative L2 distance of f32 sums from f64 ones; operands are bf16 numbers in every mode. */
static const double sum_limit = 1e-5;

/* ---------------------------------------------------------------- products of many rows */

typedef struct entry {
    tmx_compute compute;
    tmx_isa isa;
    matmul_provider provider;
    matmul_weight *weights[MAX_COPIES];
    double error;
    double times_ms[KERNEL_MAX_REPEATS];
} entry;

typedef struct product {
    int32_t n_out, n_in, n_rows, n_copies;
    tmx_bf16 *w, *x;               /* [n_out][n_in], [n_rows][n_in] */
    float *x_f32, *y;              /* [n_rows][n_in], [n_rows][n_out] */
    void *scratch;
} product;

static double flop_of(const kernel_shape *s, int32_t n_rows) { return 2.0 * n_rows * s->n_out * s->n_in; }

/* oneDNN takes part where the engine would ask for it; the rung does not matter to it. */
static bool has_onednn(const kernel_run *run)
{
    return matmul_onednn_is_built() && run->rungs[run->n_rungs - 1] >= TMX_ISA_AVX512_BF16;
}

double product_bench_work(const kernel_run *run)
{
    const kernel_params *p = run->params;
    double flop = 0;
    for (int32_t i = 0; i < p->n_shapes; i++) flop += flop_of(&p->shapes[i], p->n_rows);
    return flop * (2 * run->n_rungs + has_onednn(run)) * (p->n_repeats + 1);
}

static void product_free(product *p)
{
    mem_free(p->w);
    mem_free(p->x);
    mem_free(p->x_f32);
    mem_free(p->y);
    mem_free(p->scratch);
}

static tmx_status product_create(product *p, const kernel_shape *s, const kernel_params *params, tmx_error *err)
{
    const size_t n_out = (size_t)s->n_out, n_in = (size_t)s->n_in, n_rows = (size_t)params->n_rows;
    const size_t weight_bytes = n_out * n_in * sizeof(tmx_bf16);
    *p = (product){
        .n_out = s->n_out, .n_in = s->n_in, .n_rows = params->n_rows,
        .n_copies = weight_bytes < COPIES_BYTES / MAX_COPIES ? MAX_COPIES : 1 + (int32_t)(weight_bytes < COPIES_BYTES),
        .w = mem_alloc(n_out * n_in, sizeof *p->w), .x = mem_alloc(n_rows * n_in, sizeof *p->x),
        .x_f32 = mem_alloc(n_rows * n_in, sizeof *p->x_f32), .y = mem_alloc(n_rows * n_out, sizeof *p->y),
    };
    if (p->w == NULL || p->x == NULL || p->x_f32 == NULL || p->y == NULL) {
        return fault(err, TMX_E_MEMORY, "out of memory for a product [%d][%d] of %d rows", s->n_out, s->n_in, params->n_rows);
    }
    dice d = { .state = params->seed };
    for (size_t i = 0; i < n_out * n_in; i++) p->w[i] = bf16_from_f32((float)(2 * dice_unit(&d) - 1));
    for (size_t i = 0; i < n_rows * n_in; i++) {
        p->x[i] = bf16_from_f32((float)(2 * dice_unit(&d) - 1));
        p->x_f32[i] = bf16_to_f32(p->x[i]);
    }
    return TMX_OK;
}

static double error_of(const product *p)
{
    const size_t n_in = (size_t)p->n_in, n_out = (size_t)p->n_out, n_rows = (size_t)p->n_rows;
    double diff = 0, norm = 0;
    for (size_t r = 0; r < n_rows; r += n_rows > CHECK_ROWS ? n_rows / CHECK_ROWS : 1) {
        for (size_t o = 0; o < n_out; o += CHECK_OUTPUT_STEP) {
            double sum = 0;
            for (size_t i = 0; i < n_in; i++) {
                sum += (double)bf16_to_f32(p->x[r * n_in + i]) * (double)bf16_to_f32(p->w[o * n_in + i]);
            }
            const double d = (double)p->y[r * n_out + o] - sum;
            diff += d * d;
            norm += sum * sum;
        }
    }
    return sqrt(diff / norm);
}

/* Entries that this machine and build have. */
static int32_t list_entries(const kernel_run *run, entry *entries)
{
    int32_t n = 0;
    for (int32_t r = 0; r < run->n_rungs; r++) {
        entries[n].compute = TMX_COMPUTE_F32, entries[n].provider = MATMUL_BUILTIN, entries[n++].isa = run->rungs[r];
        entries[n].compute = TMX_COMPUTE_BF16, entries[n].provider = MATMUL_BUILTIN, entries[n++].isa = run->rungs[r];
    }
    if (has_onednn(run)) {
        entries[n].compute = TMX_COMPUTE_BF16, entries[n].provider = MATMUL_ONEDNN, entries[n++].isa = run->rungs[run->n_rungs - 1];
    }
    return n;
}

static tmx_status create_weights(entry *e, const product *p, tmx_pool *pool, tmx_error *err)
{
    const matmul_source source = { .data = p->w, .type = BLOCK_BF16, .n_out = p->n_out, .n_in = p->n_in };
    for (int32_t c = 0; c < p->n_copies; c++) {
        const tmx_status status = matmul_weight_create(&e->weights[c], &source, 1, e->compute, e->isa, e->provider, pool, err);
        if (status != TMX_OK) return status;
    }
    return TMX_OK;
}

static double run_once(const entry *e, int32_t copy, const product *p, tmx_pool *pool)
{
    const void *x = e->compute == TMX_COMPUTE_BF16 ? (const void *)p->x : p->x_f32;
    const double begin_ms = timing_now_ms();
    matmul_run(e->weights[copy], x, (size_t)p->n_in, p->n_rows, p->y, (size_t)p->n_out, false, p->scratch, pool);
    return timing_now_ms() - begin_ms;
}

static tmx_status time_entries(kernel_run *run, entry *entries, int32_t n_entries, const product *p, double flop, tmx_error *err)
{
    const kernel_params *params = run->params;
    for (int32_t repeat = -1; repeat < params->n_repeats; repeat++) {
        for (entry *e = entries; e < entries + n_entries; e++) {
                const double time_ms = run_once(e, (repeat + 1) % p->n_copies, p, params->pool);
            if (repeat >= 0) {
                e->times_ms[repeat] = time_ms;
            } else {
                e->error = error_of(p);
                if (!(e->error < sum_limit)) {
                    return fault(err, TMX_E_NUMERIC, "check: product [%d][%d], %s, %s: relative error %.2g, expected below %g",
                                       p->n_out, p->n_in, e->compute == TMX_COMPUTE_BF16 ? "bf16" : "f32", tmx_isa_name(e->isa),
                                       e->error, sum_limit);
                }
            }
            const tmx_status status = kernel_step(run, flop, err);
            if (status != TMX_OK) return status;
        }
    }
    return TMX_OK;
}

static void finish(const kernel_run *run, entry *entries, int32_t n_entries, const product *p, double flop)
{
    const kernel_params *params = run->params;
    for (entry *e = entries; e < entries + n_entries; e++) {
        const bool is_bf16 = e->compute == TMX_COMPUTE_BF16;
        kernel_result r = {
            .op = KERNEL_MATMUL, .type = is_bf16 ? "bf16" : "f32", .isa = e->isa, .n_tokens = p->n_rows, .n_out = p->n_out,
            .n_in = p->n_in, .provider = matmul_provider_of(e->weights[0]) == MATMUL_ONEDNN ? "onednn" : "builtin",
            .time = timing_summarize(e->times_ms, params->n_repeats), .error = e->error,
        };
        const double ceiling = ceiling_of(run->ceilings, e->isa, is_bf16 ? TMX_TYPE_BF16 : TMX_TYPE_F32);
        r.rate = flop / r.time.median * 1e-6;
        r.pct_of_ceiling = ceiling > 0 ? 100 * r.rate / ceiling : 0;
        if (params->finished != NULL) params->finished(params->ctx, &r);
    }
}

static tmx_status bench_product(kernel_run *run, const kernel_shape *s, tmx_error *err)
{
    const kernel_params *params = run->params;
    const double flop = flop_of(s, params->n_rows);
    product p;
    entry *entries = calloc(MAX_ENTRIES, sizeof *entries);
    int32_t n = 0;
    tmx_status status = product_create(&p, s, params, err);
    if (status == TMX_OK && entries == NULL) status = fault(err, TMX_E_MEMORY, "out of memory for %d repetitions", params->n_repeats);
    if (status == TMX_OK) n = list_entries(run, entries);
    for (int32_t i = 0; i < n && status == TMX_OK; i++) status = create_weights(&entries[i], &p, params->pool, err);
    if (status == TMX_OK) {
        p.scratch = mem_alloc(matmul_scratch_bytes(s->n_out, s->n_in, tmx_pool_n_threads(params->pool)), 1);
        if (p.scratch == NULL) status = fault(err, TMX_E_MEMORY, "out of memory for a product's workspace");
    }
    if (status == TMX_OK) status = time_entries(run, entries, n, &p, flop, err);
    if (status == TMX_OK) finish(run, entries, n, &p, flop);
    for (int32_t i = 0; i < n; i++) {
        for (int32_t c = 0; c < MAX_COPIES; c++) matmul_weight_free(entries[i].weights[c]);
    }
    free(entries);
    product_free(&p);
    return status;
}

/* ---------------------------------------------------------------- products of one row */

/* Random bytes that make positive normal numbers whether read as f16, bf16 or f32: no scale of a block is zero, infinite or
 * a NaN. */
static void fill_blocks(uint8_t *bytes, size_t n, uint64_t seed)
{
    dice d = { .state = seed };
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(0x20 | (dice_next(&d) & 0x1b));
}

static double matvec_error(const matmul_source *source, const block_format *format, const float *x, const float *y, float *row)
{
    const size_t n_in = (size_t)source->n_in, row_bytes = block_row_bytes(format, n_in);
    double diff = 0, norm = 0;
    for (int32_t o = 0; o < source->n_out; o += MATVEC_CHECK_STEP) {
        double sum = 0;
        format->to_f32((const char *)source->data + (size_t)o * row_bytes, row, n_in);
        for (size_t i = 0; i < n_in; i++) sum += (double)row[i] * (double)x[i];
        diff += ((double)y[o] - sum) * ((double)y[o] - sum);
        norm += sum * sum;
    }
    return sqrt(diff / norm);
}

static tmx_status time_matvec(kernel_run *run, tmx_isa isa, const matmul_source *source, const block_format *format, const float *x,
                              float *y, float *scratch, double *times_ms, tmx_error *err)
{
    const kernel_params *params = run->params;
    const double n_bytes = (double)source->n_out * (double)block_row_bytes(format, (size_t)source->n_in);
    double error = 0;
    for (int32_t repeat = -1; repeat < params->n_repeats; repeat++) {
        const double begin_ms = timing_now_ms();
        matvec_run(source, x, y, false, isa, scratch, params->pool);
        if (repeat >= 0) times_ms[repeat] = timing_now_ms() - begin_ms;
        else error = matvec_error(source, format, x, y, scratch);
        const tmx_status status = kernel_step(run, 0, err);
        if (status != TMX_OK) return status;
    }
    if (!(error < sum_limit)) {
        return fault(err, TMX_E_NUMERIC, "check: product of one row, %s: relative error %.2g, expected below %g", format->name,
                           error, sum_limit);
    }
    kernel_result r = {
        .op = KERNEL_MATVEC, .type = format->name, .provider = "builtin", .isa = isa, .n_tokens = 1, .n_out = source->n_out,
        .n_in = source->n_in, .time = timing_summarize(times_ms, params->n_repeats), .error = error,
    };
    r.rate = n_bytes / r.time.median * 1e-6;
    r.pct_of_ceiling = run->ceilings->copy > 0 ? 100 * r.rate / run->ceilings->copy : 0;
    if (params->finished != NULL) params->finished(params->ctx, &r);
    return TMX_OK;
}

static tmx_status bench_matvec(kernel_run *run, uint32_t type, int32_t n_in, tmx_error *err)
{
    const kernel_params *params = run->params;
    const block_format *format = block_format_find(type);
    const size_t row_bytes = block_row_bytes(format, (size_t)n_in), n_out = MATVEC_BYTES / row_bytes;
    uint8_t *blocks = mem_alloc(n_out, row_bytes);
    float *x = mem_alloc((size_t)n_in, sizeof *x), *y = mem_alloc(n_out, sizeof *y);
    float *scratch = mem_alloc((size_t)n_in * (size_t)pool_n_threads(params->pool), sizeof *scratch);
    double *times_ms = calloc((size_t)params->n_repeats, sizeof *times_ms);
    tmx_status status = TMX_OK;
    if (blocks == NULL || x == NULL || y == NULL || scratch == NULL || times_ms == NULL) {
        status = fault(err, TMX_E_MEMORY, "out of memory for a product of one row");
    } else {
        const matmul_source source = { .data = blocks, .type = type, .n_out = (int32_t)n_out, .n_in = n_in };
        dice d = { .state = params->seed };
        fill_blocks(blocks, n_out * row_bytes, params->seed);
        for (int32_t i = 0; i < n_in; i++) x[i] = (float)(dice_unit(&d) + 0.5);
        for (int32_t r = 0; r < run->n_rungs && status == TMX_OK; r++) {
            status = time_matvec(run, run->rungs[r], &source, format, x, y, scratch, times_ms, err);
        }
    }
    mem_free(blocks);
    mem_free(x);
    mem_free(y);
    mem_free(scratch);
    free(times_ms);
    return status;
}

/* ---------------------------------------------------------------- both */

tmx_status product_bench(kernel_run *run, tmx_error *err)
{
    const kernel_params *p = run->params;
    tmx_status status = TMX_OK;
    for (int32_t i = 0; i < p->n_shapes && status == TMX_OK; i++) status = bench_product(run, &p->shapes[i], err);
    for (int i = 0; i < N_MATVEC_TYPES && p->n_shapes > 0 && status == TMX_OK; i++) {
        const int32_t n_in = p->shapes[0].n_in;
        const block_format *format = block_format_find(matvec_types[i]);
        if (n_in % format->n_elements == 0) status = bench_matvec(run, matvec_types[i], n_in, err);
    }
    return status;
}
