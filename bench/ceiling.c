#include "ceiling.h"

#include "base/cpu.h"
#include "base/mem.h"
#include "base/pool.h"
#include "timing.h"

#include <math.h>
#include <string.h>

enum {
    N_TRIES = 5, N_TURNS = 200000, N_SUMS = 12,    /* 12: two units of latency 6 at most, and two registers left for operands */
    TASKS_PER_THREAD = 4,
    AMX_SHARE = 16,                /* of N_TURNS: a product of tiles takes 16 cycles */
    COPY_BYTES = 128 << 20, COPY_TASK = 1 << 20,
};

#define CLEAR(r) "vpxor %%xmm" #r ",%%xmm" #r ",%%xmm" #r "\n"
#define SUM(op, reg, r) op " %%" reg "15,%%" reg "14,%%" reg #r "\n"
/* Sums of zeros: the time of a multiplication does not depend on normal numbers. */
#define LOOP(op, reg) do { \
        __asm__ volatile( \
            CLEAR(0) CLEAR(1) CLEAR(2) CLEAR(3) CLEAR(4) CLEAR(5) CLEAR(6) CLEAR(7) \
            CLEAR(8) CLEAR(9) CLEAR(10) CLEAR(11) CLEAR(14) CLEAR(15) \
            "1:\n" \
            SUM(op, reg, 0) SUM(op, reg, 1) SUM(op, reg, 2) SUM(op, reg, 3) SUM(op, reg, 4) SUM(op, reg, 5) \
            SUM(op, reg, 6) SUM(op, reg, 7) SUM(op, reg, 8) SUM(op, reg, 9) SUM(op, reg, 10) SUM(op, reg, 11) \
            "dec %0\n" \
            "jnz 1b\n" \
            "vzeroupper\n" \
            : "+r"(n_turns) : : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
              "xmm11", "xmm14", "xmm15"); \
    } while (0)

static void run_avx2(void *ctx, int32_t task, int32_t thread)
{
    int64_t n_turns = N_TURNS;
    (void)ctx, (void)task, (void)thread;
    LOOP("vfmadd231ps", "ymm");
}

static void run_avx512(void *ctx, int32_t task, int32_t thread)
{
    int64_t n_turns = N_TURNS;
    (void)ctx, (void)task, (void)thread;
    LOOP("vfmadd231ps", "zmm");
}

static void run_avx512_bf16(void *ctx, int32_t task, int32_t thread)
{
    int64_t n_turns = N_TURNS;
    (void)ctx, (void)task, (void)thread;
    LOOP("vdpbf16ps", "zmm");
}

/* Sums in four tiles, operands in two; as many in flight as the attention kernel has. */
static void run_amx(void *ctx, int32_t task, int32_t thread)
{
    static const struct { uint8_t palette, start_row, zero[14]; uint16_t row_bytes[16]; uint8_t n_rows[16]; } config = {
        .palette = 1, .row_bytes = { 64, 64, 64, 64, 64, 64 }, .n_rows = { 16, 16, 16, 16, 16, 16 },
    };
    int64_t n_turns = N_TURNS / AMX_SHARE;
    (void)ctx, (void)task, (void)thread;
    __asm__ volatile(
        "ldtilecfg %1\n"
        "tilezero %%tmm0\n" "tilezero %%tmm1\n" "tilezero %%tmm2\n" "tilezero %%tmm3\n" "tilezero %%tmm4\n" "tilezero %%tmm5\n"
        "1:\n"
        "tdpbf16ps %%tmm5,%%tmm4,%%tmm0\n" "tdpbf16ps %%tmm5,%%tmm4,%%tmm1\n"
        "tdpbf16ps %%tmm5,%%tmm4,%%tmm2\n" "tdpbf16ps %%tmm5,%%tmm4,%%tmm3\n"
        "tdpbf16ps %%tmm5,%%tmm4,%%tmm0\n" "tdpbf16ps %%tmm5,%%tmm4,%%tmm1\n"
        "tdpbf16ps %%tmm5,%%tmm4,%%tmm2\n" "tdpbf16ps %%tmm5,%%tmm4,%%tmm3\n"
        "tdpbf16ps %%tmm5,%%tmm4,%%tmm0\n" "tdpbf16ps %%tmm5,%%tmm4,%%tmm1\n"
        "tdpbf16ps %%tmm5,%%tmm4,%%tmm2\n" "tdpbf16ps %%tmm5,%%tmm4,%%tmm3\n"
        "dec %0\n"
        "jnz 1b\n"
        "tilerelease\n"
        : "+r"(n_turns) : "m"(config) : "cc");
}

static double measure_flops(tmx_pool *pool, pool_task *run, double flop_per_sum)
{
    const int32_t n_tasks = TASKS_PER_THREAD * pool_n_threads(pool);
    const double gflop = flop_per_sum * N_SUMS * N_TURNS * n_tasks * 1e-9;
    double best = 0;
    for (int i = 0; i < N_TRIES; i++) {
        const double begin_ms = timing_now_ms();
        pool_run(pool, n_tasks, run, NULL);
        best = fmax(best, 1e3 * gflop / (timing_now_ms() - begin_ms));
    }
    return best;
}

typedef struct copy { char *to; const char *from; } copy;

static void run_copy(void *ctx, int32_t task, int32_t thread)
{
    const copy *c = ctx;
    (void)thread;
    memcpy(c->to + (size_t)task * COPY_TASK, c->from + (size_t)task * COPY_TASK, COPY_TASK);
}

static double measure_copy(tmx_pool *pool)
{
    char *from = mem_alloc(COPY_BYTES, 1), *to = mem_alloc(COPY_BYTES, 1);
    double best = 0;
    if (from != NULL && to != NULL) {
        copy c = { to, from };
        memset(from, 1, COPY_BYTES);           /* pages of its own: fresh ones all show the same zeros */
        for (int i = -1; i < N_TRIES; i++) {
            const double begin_ms = timing_now_ms();
            pool_run(pool, COPY_BYTES / COPY_TASK, run_copy, &c);
            if (i >= 0) best = fmax(best, 2e-6 * COPY_BYTES / (timing_now_ms() - begin_ms));
        }
    }
    mem_free(from);
    mem_free(to);
    return best;
}

void ceilings_measure(ceilings *c, tmx_pool *pool)
{
    *c = (ceilings){ 0 };
    if (cpu_has(TMX_ISA_AVX2)) c->avx2_f32 = measure_flops(pool, run_avx2, 2 * 8);
    if (cpu_has(TMX_ISA_AVX512)) c->avx512_f32 = measure_flops(pool, run_avx512, 2 * 16);
    if (cpu_has(TMX_ISA_AVX512_BF16)) c->avx512_bf16 = measure_flops(pool, run_avx512_bf16, 2 * 32);
    if (cpu_has(TMX_ISA_AMX)) c->amx_bf16 = measure_flops(pool, run_amx, 2.0 * 16 * 16 * 32 / AMX_SHARE);
    c->copy = measure_copy(pool);
}

double ceiling_of(const ceilings *c, tmx_isa isa, tmx_type type)
{
    if (isa == TMX_ISA_AMX && type == TMX_TYPE_BF16) return c->amx_bf16;
    if (isa == TMX_ISA_AVX512_BF16 && type == TMX_TYPE_BF16) return c->avx512_bf16;
    if (isa >= TMX_ISA_AVX512) return c->avx512_f32;
    return isa == TMX_ISA_AVX2 ? c->avx2_f32 : 0;
}
