/* rooms: ops gguf base */
/* bench_matmul - GFLOP/s of the matrix products, built-in kernels beside oneDNN, and the bandwidth of matvec.
 *
 *     bench_matmul [n_threads] [n_rows] [n_rounds]
 *
 * Each round times every provider once, so that a disturbance hits all of them; the weights of one shape are rotated
 * through N_COPIES copies, as the layers of a model are.  A result is checked against f64 sums before it is timed. */
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "gguf/blocks.h"
#include "ops/matmul.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { N_COPIES = 4, MAX_ROUNDS = 1000, N_ENTRIES = 3, N_WARM_UPS = 2 };

typedef struct entry {
    const char *name, *type;
    tmx_compute compute;
    matmul_provider provider;
    matmul_weight *weights[N_COPIES];
    double times_ms[MAX_ROUNDS];
} entry;

typedef struct product {
    int32_t n_out, n_in, n_rows;
    tmx_bf16 *w, *x;
    float *x_f32, *y;
    void *scratch;
} product;

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static float random_unit(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(*seed >> 8) * 0x1p-23f - 1.0f;
}

static void *take(size_t n, size_t size)
{
    void *block = mem_alloc(n, size);
    if (block == NULL) {
        fprintf(stderr, "bench_matmul: out of memory\n");
        exit(1);
    }
    return block;
}

/* Relative L2 distance of some outputs of some rows from f64 sums. */
static double error_of(const product *p)
{
    const size_t n_in = (size_t)p->n_in, n_out = (size_t)p->n_out, n_rows = (size_t)p->n_rows;
    double diff = 0, norm = 0;
    for (size_t r = 0; r < n_rows; r += n_rows > 8 ? n_rows / 8 : 1) {
        for (size_t o = 0; o < n_out; o += 7) {
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

static product product_create(int32_t n_out, int32_t n_in, int32_t n_rows, const tmx_pool *pool)
{
    const size_t n_w = (size_t)n_out * (size_t)n_in, n_x = (size_t)n_rows * (size_t)n_in;
    product p = {
        .n_out = n_out, .n_in = n_in, .n_rows = n_rows, .w = take(n_w, sizeof *p.w), .x = take(n_x, sizeof *p.x),
        .x_f32 = take(n_x, sizeof *p.x_f32), .y = take((size_t)n_rows * (size_t)n_out, sizeof *p.y),
        .scratch = take(1, matmul_scratch_bytes(n_out, n_in, pool_n_threads(pool))),
    };
    uint32_t seed = 1;
    for (size_t i = 0; i < n_w; i++) p.w[i] = bf16_from_f32(random_unit(&seed));
    for (size_t i = 0; i < n_x; i++) {
        p.x[i] = bf16_from_f32(random_unit(&seed));
        p.x_f32[i] = bf16_to_f32(p.x[i]);
    }
    return p;
}

static void create_weights(entry *e, const product *p, tmx_pool *pool)
{
    const matmul_source source = { .data = p->w, .type = BLOCK_BF16, .n_out = p->n_out, .n_in = p->n_in };
    tmx_error err;
    tmx_status status = TMX_OK;
    for (int c = 0; status == TMX_OK && c < N_COPIES; c++) {
        status = matmul_weight_create(&e->weights[c], &source, 1, e->compute, TMX_ISA_AUTO, e->provider, pool, &err);
    }
    if (status != TMX_OK) printf("# %s %s: %s\n", e->name, e->type, err.text);
}

static double run_once(const entry *e, int32_t copy, const product *p, tmx_pool *pool)
{
    const void *x = e->compute == TMX_COMPUTE_BF16 ? (const void *)p->x : p->x_f32;
    const double begin = now_ms();
    matmul_run(e->weights[copy], x, (size_t)p->n_in, p->n_rows, p->y, (size_t)p->n_out, false, p->scratch, pool);
    return now_ms() - begin;
}

static void bench_product(int32_t n_out, int32_t n_in, int32_t n_rows, int32_t n_rounds, tmx_pool *pool)
{
    entry entries[N_ENTRIES] = {
        { .name = "builtin", .type = "bf16", .compute = TMX_COMPUTE_BF16, .provider = MATMUL_BUILTIN },
        { .name = "onednn", .type = "bf16", .compute = TMX_COMPUTE_BF16, .provider = MATMUL_ONEDNN },
        { .name = "builtin", .type = "f32", .compute = TMX_COMPUTE_F32, .provider = MATMUL_BUILTIN },
    };
    product p = product_create(n_out, n_in, n_rows, pool);
    for (int i = 0; i < N_ENTRIES; i++) create_weights(&entries[i], &p, pool);
    for (int32_t round = -N_WARM_UPS; round < n_rounds; round++) {
        for (entry *e = entries; e < entries + N_ENTRIES; e++) {
            if (e->weights[N_COPIES - 1] == NULL) continue;
            const double time_ms = run_once(e, (round + N_WARM_UPS) % N_COPIES, &p, pool);
            if (round >= 0) {
                e->times_ms[round] = time_ms;
            } else if (!(error_of(&p) < 1e-5)) {
                fprintf(stderr, "bench_matmul: %s %s: relative error %.2e\n", e->name, e->type, error_of(&p));
                exit(1);
            }
        }
    }
    const double gflop = 2e-9 * n_rows * (double)n_out * n_in;
    for (entry *e = entries; e < entries + N_ENTRIES; e++) {
        if (e->weights[N_COPIES - 1] != NULL) {
            double *t = e->times_ms;
            qsort(t, (size_t)n_rounds, sizeof *t, compare_doubles);
            const double median = t[n_rounds / 2], spread = t[n_rounds * 3 / 4] - t[n_rounds / 4];
            printf("matmul,%s,%s,%d,%d,%d,%d,%.4f,%.4f,%.1f,%.1f,%.1f\n", e->name, e->type, n_out, n_in, n_rows,
                   pool_n_threads(pool), median, t[0], 100 * spread / median, 1e3 * gflop / median, 1e3 * gflop / t[0]);
        }
        for (int c = 0; c < N_COPIES; c++) matmul_weight_free(e->weights[c]);
    }
    mem_free(p.w), mem_free(p.x), mem_free(p.x_f32), mem_free(p.y), mem_free(p.scratch);
}

/* A matrix of 64 MB, more than the caches hold; zero blocks take as long as any other. */
static void bench_matvec(uint32_t type, int32_t n_in, int32_t n_rounds, tmx_pool *pool)
{
    const block_format *format = block_format_find(type);
    const size_t row_bytes = block_row_bytes(format, (size_t)n_in), n_out = ((size_t)64 << 20) / row_bytes;
    void *blocks = memset(take(n_out, row_bytes), 0, n_out * row_bytes);     /* touched: not all one zero page */
    const matmul_source source = { .data = blocks, .type = type, .n_out = (int32_t)n_out, .n_in = n_in };
    float *x = take((size_t)n_in, sizeof *x), *y = take(n_out, sizeof *y);
    float *scratch = take((size_t)n_in * (size_t)pool_n_threads(pool), sizeof *scratch);
    static double t[MAX_ROUNDS];
    for (int32_t round = -N_WARM_UPS; round < n_rounds; round++) {
        const double begin = now_ms();
        matvec_run(&source, x, y, false, TMX_ISA_AUTO, scratch, pool);
        if (round >= 0) t[round] = now_ms() - begin;
    }
    qsort(t, (size_t)n_rounds, sizeof *t, compare_doubles);
    const double median = t[n_rounds / 2], n_bytes = (double)(n_out * row_bytes);
    printf("# matvec %s [%d][%d], %d threads: median %.3f ms, %.1f GB/s, %.1f G weights/s\n", format->name,
           source.n_out, n_in, pool_n_threads(pool), median, n_bytes / median * 1e-6,
           (double)n_out * n_in / median * 1e-6);
    mem_free(blocks), mem_free(x), mem_free(y), mem_free(scratch);
}

int main(int argc, char **argv)
{
    static const int32_t shapes[][2] = {          /* n_out, n_in: the demo model's four, then a 7B's */
        { 960, 576 }, { 576, 576 }, { 3072, 576 }, { 576, 1536 }, { 4096, 4096 }, { 11008, 4096 }, { 4096, 11008 },
    };
    static const uint32_t types[] = { BLOCK_Q4_0, BLOCK_Q4_1, BLOCK_Q8_0, BLOCK_F16, BLOCK_BF16, BLOCK_F32 };
    const int32_t n_threads = argc > 1 ? atoi(argv[1]) : 1, n_rows = argc > 2 ? atoi(argv[2]) : 512;
    const int32_t n_rounds = argc > 3 ? atoi(argv[3]) : 21;
    if (n_threads < 1 || n_rows < 1 || n_rounds < 1 || n_rounds > MAX_ROUNDS) {
        fprintf(stderr, "usage: bench_matmul [n_threads >= 1] [n_rows >= 1] [n_rounds 1..%d]\n", MAX_ROUNDS);
        return 2;
    }
    tmx_pool *pool;
    tmx_error err;
    if (tmx_pool_create(&pool, n_threads, &err) != TMX_OK) {
        fprintf(stderr, "bench_matmul: %s\n", err.text);
        return 1;
    }
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) bench_matvec(types[i], 576, n_rounds, pool);
    printf("op,provider,compute,n_out,n_in,n_rows,n_threads,median_ms,min_ms,spread_pct,median_gflops,best_gflops\n");
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const bool is_large = (double)shapes[i][0] * shapes[i][1] > 1e7;
        bench_product(shapes[i][0], shapes[i][1], n_rows, is_large ? (n_rounds + 4) / 5 : n_rounds, pool);
        fflush(stdout);
    }
    tmx_pool_free(pool);
    return 0;
}
