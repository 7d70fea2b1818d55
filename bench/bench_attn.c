/* rooms: attn */
/* Times tmx_attention against the arithmetic ceiling of one core, measured beside it.
 *     bench_attn [n_tokens [head_dim [n_threads]]]      default 8192 64 1; 3 query heads share one KV head, 2 KV heads
 * Checks a small case against the fp64 oracle first, then prints one CSV line per (pattern, dtype). */
#include "attn/attn.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_KV_HEADS = 2, N_GROUP = 3, N_HEADS = N_KV_HEADS * N_GROUP, N_REPEATS = 9, N_CHECK = 600 };

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* GFLOP/s of one core: 8 independent sums, nothing else. */
#define CEILING(op, reg, flop_per_op) do { \
        for (int i = 0; i < N; i++) { \
            __asm__ volatile(op " %%" reg "15,%%" reg "14,%%" reg "0\n" op " %%" reg "15,%%" reg "14,%%" reg "1\n" \
                             op " %%" reg "15,%%" reg "14,%%" reg "2\n" op " %%" reg "15,%%" reg "14,%%" reg "3\n" \
                             op " %%" reg "15,%%" reg "14,%%" reg "4\n" op " %%" reg "15,%%" reg "14,%%" reg "5\n" \
                             op " %%" reg "15,%%" reg "14,%%" reg "6\n" op " %%" reg "15,%%" reg "14,%%" reg "7\n" \
                             ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7"); \
        } \
        flop = 8.0 * (flop_per_op) * N; \
    } while (0)

static double ceiling_gflops(tmx_isa isa, tmx_type type)
{
    enum { N = 1000000 };
    double best = 0.0;
    for (int repeat = 0; repeat < 5; repeat++) {
        double flop = 0.0;
        const double begin = now_ms();
        if (isa == TMX_ISA_AVX512_BF16 && type == TMX_TYPE_BF16) CEILING("vdpbf16ps", "zmm", 64);
        else if (isa >= TMX_ISA_AVX512) CEILING("vfmadd231ps", "zmm", 32);
        else if (isa == TMX_ISA_AVX2) CEILING("vfmadd231ps", "ymm", 16);
        else return 0.0;
        best = fmax(best, flop / (now_ms() - begin) * 1e-6);
    }
    return best;
}

static void fill(void *p, tmx_type type, size_t n)
{
    uint64_t seed = 1;
    for (size_t i = 0; i < n; i++) {
        float x = 0.0f;
        for (int j = 0; j < 4; j++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            x += (float)(seed >> 40) * 0x1p-24f - 0.5f;
        }
        if (type == TMX_TYPE_BF16) ((tmx_bf16 *)p)[i] = bf16_from_f32(x * 1.7f);
        else ((float *)p)[i] = x * 1.7f;
    }
}

static double error_of(tmx_attention_params p)
{
    tmx_attention_seq seq = p.seqs[0];
    const int32_t n = seq.n_prompt < N_CHECK ? seq.n_prompt : N_CHECK;
    const size_t rows = (size_t)n * N_HEADS, dim = (size_t)p.head_dim;
    seq.n_q = seq.n_prompt = n;
    p.seqs = &seq;
    double *out = malloc(rows * dim * sizeof *out), *lse = malloc(rows * sizeof *lse), diff = 0.0, norm = 0.0;
    if (out == NULL || lse == NULL || tmx_attention(&p, NULL, NULL) != TMX_OK) exit(1);
    attn_ref_f64(&p, 0, out, lse);
    for (size_t i = 0; i < rows * dim; i++) {
        const bool is_bf16 = p.q_type == TMX_TYPE_BF16;
        const double x = (double)(is_bf16 ? bf16_to_f32(((tmx_bf16 *)seq.out)[i]) : ((float *)seq.out)[i]);
        diff += (x - out[i]) * (x - out[i]);
        norm += out[i] * out[i];
    }
    free(out);
    free(lse);
    return sqrt(diff / norm);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench(tmx_pattern pattern, tmx_type type, tmx_isa isa, int32_t n, int32_t head_dim, tmx_pool *pool)
{
    const size_t n_bytes = type == TMX_TYPE_BF16 ? 2 : 4, dim = (size_t)head_dim;
    const size_t n_q = (size_t)n * N_HEADS * dim, n_kv = (size_t)n * N_KV_HEADS * dim;
    void *q = mem_alloc(n_q, n_bytes), *k = mem_alloc(n_kv, n_bytes), *v = mem_alloc(n_kv, n_bytes);
    void *out = mem_alloc(n_q, n_bytes);
    if (q == NULL || k == NULL || v == NULL || out == NULL) exit(1);
    fill(q, type, n_q);
    fill(k, type, n_kv);
    fill(v, type, n_kv);
    const tmx_attention_seq seq = { .q = q, .k = k, .v = v, .out = out, .n_q = n, .n_prompt = n };
    tmx_attention_params p = {
        .q_type = type, .kv_type = type, .n_heads = N_HEADS, .n_kv_heads = N_KV_HEADS, .head_dim = head_dim,
        .q_pos_stride = N_HEADS * dim, .q_head_stride = dim, .out_pos_stride = N_HEADS * dim, .out_head_stride = dim,
        .k_pos_stride = N_KV_HEADS * dim, .k_head_stride = dim, .v_pos_stride = N_KV_HEADS * dim, .v_head_stride = dim,
        .pattern = pattern, .seqs = &seq, .n_seqs = 1, .isa = isa,
    };
    const double error = error_of(p), ceiling = ceiling_gflops(isa, type) * tmx_pool_n_threads(pool);
    p.scratch = mem_alloc(tmx_attention_scratch_bytes(&p, tmx_pool_n_threads(pool)), 1);
    double ms[N_REPEATS];
    for (int i = -1; i < N_REPEATS; i++) {
        const double begin = now_ms();
        if (tmx_attention(&p, pool, NULL) != TMX_OK) exit(1);
        if (i >= 0) ms[i] = now_ms() - begin;
    }
    qsort(ms, N_REPEATS, sizeof *ms, by_value);
    const double flop = (double)tmx_pattern_pairs(&pattern, n, 0, n) * N_HEADS * 4.0 * head_dim;
    const double rate = flop / ms[0] * 1e-6;
    printf("attention,%s,%s,%s,%d,%d,%d,%.3f,%.3f,%.1f,%.1f,%.1f,%.2g\n", tmx_pattern_name(pattern.kind),
           type == TMX_TYPE_BF16 ? "bf16" : "f32", tmx_isa_name(isa), tmx_pool_n_threads(pool), n, head_dim,
           ms[N_REPEATS / 2], ms[0], (ms[N_REPEATS - 1] / ms[0] - 1.0) * 100.0, rate,
           ceiling > 0.0 ? rate / ceiling * 100.0 : 0.0, error);
    mem_free(p.scratch);
    mem_free(q);
    mem_free(k);
    mem_free(v);
    mem_free(out);
}

int main(int argc, char **argv)
{
    const int32_t n = argc > 1 ? atoi(argv[1]) : 8192, head_dim = argc > 2 ? atoi(argv[2]) : 64;
    const tmx_pattern patterns[] = {
        { .kind = TMX_PATTERN_DENSE },
        { TMX_PATTERN_TRIANGLE, TMX_DEFAULT_SINK, TMX_DEFAULT_WINDOW, TMX_DEFAULT_LAST },
    };
    tmx_pool *pool;
    tmx_error err;
    const int32_t n_threads = argc > 3 ? atoi(argv[3]) : 1;
    if (n < 1 || head_dim < 1 || head_dim > 512 || tmx_pool_create(&pool, n_threads, &err) != TMX_OK) {
        fprintf(stderr, "usage: bench_attn [n_tokens [head_dim 1..512 [n_threads]]]\n");
        return 1;
    }
    printf("op,pattern,dtype,isa,threads,n_tokens,head_dim,median_ms,min_ms,spread_pct,gflops,pct_of_ceiling,rel_l2\n");
    for (int i = 0; i < 2; i++) {
        bench(patterns[i], TMX_TYPE_BF16, tmx_isa_best(), n, head_dim, pool);
        bench(patterns[i], TMX_TYPE_F32, tmx_isa_best(), n, head_dim, pool);
    }
    tmx_pool_free(pool);
    return 0;
}
