#include "probe/attn_back.h"

#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "probe/attn_back_kernel.h"

#include <math.h>
#include <string.h>

size_t attn_back_d_pad(int32_t head_dim) { return align_up((size_t)head_dim, ATTN_BACK_DIM); }
size_t attn_back_rows_padded(int32_t n_tokens) { return align_up((size_t)n_tokens, ATTN_BACK_ROWS); }

static size_t keys_padded(int32_t n_keys) { return align_up((size_t)n_keys, ATTN_BACK_KEYS); }

/* Rows before r see about r^2 / 2 pairs: equal shares end at n sqrt(s / n_strips). */
attn_strips attn_back_strips(int32_t n_tokens, int32_t n_kv_heads, int32_t head_dim)
{
    const size_t key_floats = (size_t)n_kv_heads * attn_back_d_pad(head_dim);
    attn_strips strips = { .n = min_i32(ATTN_BACK_STRIPS, (n_tokens + 2 * ATTN_BACK_ROWS - 1) / (2 * ATTN_BACK_ROWS)) };
    for (int32_t s = 1; s <= strips.n; s++) {
        const int32_t row = (int32_t)(n_tokens * sqrt((double)s / strips.n));
        strips.begin[s] = s == strips.n ? n_tokens : row - row % ATTN_BACK_ROWS;
        strips.kv_at[s] = strips.kv_at[s - 1] + 2 * keys_padded(strips.begin[s]) * key_floats;
    }
    return strips;
}

/* What every thread shares: k and v in f32, then the sums of the strips. */
static size_t shared_bytes(int32_t n_tokens, int32_t n_kv_heads, int32_t head_dim)
{
    const size_t n_floats = 2 * keys_padded(n_tokens) * (size_t)n_kv_heads * attn_back_d_pad(head_dim);
    return n_floats * sizeof(float) + align_up(ATTN_BACK_STRIPS * N_SECTIONS * N_SUMS * sizeof(double), MEM_ALIGN);
}

static size_t thread_bytes(int32_t n_heads, int32_t head_dim)
{
    return align_up(attn_back_floats(n_heads, attn_back_d_pad(head_dim)) * sizeof(float), MEM_ALIGN);
}

size_t attn_back_scratch_bytes(int32_t n_tokens, int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, int32_t n_threads)
{
    return shared_bytes(n_tokens, n_kv_heads, head_dim) + (size_t)n_threads * thread_bytes(n_heads, head_dim);
}

typedef struct back_job {
    const attn_back *back;
    attn_strips strips;
    size_t d_pad;
    float *k, *v;
    double (*sums)[N_SECTIONS][N_SUMS];            /* [strips] */
    char *scratch;
    attn_back_kernel *run;
} back_job;

static void widen_row(const void *x, tmx_type type, size_t row, size_t n, float *to)
{
    if (type == TMX_TYPE_F32) {
        memcpy(to, (const float *)x + row * n, n * sizeof *to);
        return;
    }
    const tmx_bf16 *from = (const tmx_bf16 *)x + row * n;
    for (size_t d = 0; d < n; d++) to[d] = bf16_to_f32(from[d]);
}

static void widen_keys(void *ctx, int32_t tile, int32_t thread)
{
    (void)thread;
    const back_job *job = ctx;
    const attn_back *b = job->back;
    const size_t n_kv = (size_t)b->n_kv_heads, head_dim = (size_t)b->head_dim;
    const size_t begin = (size_t)tile * ATTN_BACK_KEYS * n_kv, n_rows = ATTN_BACK_KEYS * n_kv;
    memset(job->k + begin * job->d_pad, 0, n_rows * job->d_pad * sizeof *job->k);
    memset(job->v + begin * job->d_pad, 0, n_rows * job->d_pad * sizeof *job->v);
    for (size_t row = begin; row < begin + n_rows && row < (size_t)b->n_tokens * n_kv; row++) {
        widen_row(b->k, b->type, row, head_dim, job->k + row * job->d_pad);
        widen_row(b->v, b->type, row, head_dim, job->v + row * job->d_pad);
    }
}

/* The longest-lasting strips are alike, so any order of tasks will do. */
static void run_strip(void *ctx, int32_t s, int32_t thread)
{
    const back_job *job = ctx;
    const attn_back *b = job->back;
    const size_t n_floats = keys_padded(job->strips.begin[s + 1]) * (size_t)b->n_kv_heads * job->d_pad;
    attn_back_strip strip = {
        .back = b, .k = job->k, .v = job->v, .begin = job->strips.begin[s], .end = job->strips.begin[s + 1],
        .sums = job->sums[s], .scratch = (float *)(void *)(job->scratch + (size_t)thread * thread_bytes(b->n_heads, b->head_dim)),
    };
    if (!b->is_sums_only) {
        strip.d_k = b->d_kv + job->strips.kv_at[s];
        strip.d_v = strip.d_k + n_floats;
        memset(strip.d_k, 0, 2 * n_floats * sizeof *strip.d_k);
    }
    job->run(&strip);
}

static attn_back_kernel *kernel_for(tmx_isa isa)
{
    switch (cpu_isa_resolve(isa)) {
    case TMX_ISA_AMX:
    case TMX_ISA_AVX512_BF16:
    case TMX_ISA_AVX512: return attn_back_avx512;
    case TMX_ISA_AVX2: return attn_back_avx2;
    default: return attn_back_scalar;
    }
}

void attn_back_run(const attn_back *back, tmx_probe_sums *sums, tmx_pool *pool)
{
    back_job job = { .back = back, .d_pad = attn_back_d_pad(back->head_dim), .run = kernel_for(back->isa),
                     .strips = attn_back_strips(back->n_tokens, back->n_kv_heads, back->head_dim) };
    const size_t n_floats = keys_padded(back->n_tokens) * (size_t)back->n_kv_heads * job.d_pad;
    job.k = back->scratch;
    job.v = job.k + n_floats;
    job.sums = (double (*)[N_SECTIONS][N_SUMS])(void *)(job.v + n_floats);
    job.scratch = (char *)back->scratch + shared_bytes(back->n_tokens, back->n_kv_heads, back->head_dim);
    memset(job.sums, 0, (size_t)job.strips.n * sizeof *job.sums);
    pool_run(pool, (int32_t)(keys_padded(back->n_tokens) / ATTN_BACK_KEYS), widen_keys, &job);
    pool_run(pool, job.strips.n, run_strip, &job);

    for (int32_t section = 0; section < N_SECTIONS; section++) {
        double total[N_SUMS] = { 0 };
        for (int32_t s = 0; s < job.strips.n; s++) {
            for (int32_t i = 0; i < N_SUMS; i++) total[i] += job.sums[s][section][i];
        }
        sums[section] = (tmx_probe_sums){
            .theta_abs = total[SUM_THETA_ABS], .theta_signed = total[SUM_THETA_SIGNED], .head_abs = total[SUM_HEAD_ABS],
            .da_abs = total[SUM_DA_ABS], .attention = total[SUM_ATTENTION],
        };
    }
}

void attn_back_kv_row(const attn_back *back, const attn_strips *strips, bool is_v, int32_t key, int32_t kv_head, float *row)
{
    const size_t d_pad = attn_back_d_pad(back->head_dim), n_kv = (size_t)back->n_kv_heads;
    for (int32_t d = 0; d < back->head_dim; d++) row[d] = 0.0f;
    for (int32_t s = 0; s < strips->n; s++) {
        if (strips->begin[s + 1] <= key || strips->begin[s] == strips->begin[s + 1]) continue;
        const size_t n_keys = keys_padded(strips->begin[s + 1]);
        const float *from = back->d_kv + strips->kv_at[s]
                          + (((is_v ? n_keys : 0) + (size_t)key) * n_kv + (size_t)kv_head) * d_pad;
        for (int32_t d = 0; d < back->head_dim; d++) row[d] += from[d];
    }
}
