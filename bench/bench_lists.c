/* rooms: attn pattern */
/* Times the two steps of dynamic methods against dense attention in the same rounds: what an estimate costs, and what attention
 * over key lists costs for the pairs it visits.
 *     bench_lists [n_tokens [head_dim]]      default 4096 64; one thread, f32, 3 query heads share one KV head, 3 KV heads
 * S2O does both in one call; its ranking is wall time.  Checks first that a list of every block gives dense attention's bits.  CSV; times are CPU time, the least of N_ROUNDS. */
#include "attn/attn.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "pattern/pattern.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_KV_HEADS = 3, N_HEADS = 9, N_ROUNDS = 5 };

static uint64_t seed = 1;

static uint32_t random_u32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static float *random_floats(size_t n)
{
    float *x = mem_alloc(n, sizeof *x);
    if (x == NULL) exit(1);
    for (size_t i = 0; i < n; i++) {
        for (int j = 0; j < 4; j++) x[i] += 1.7f * ((float)random_u32() * 0x1p-31f - 0.5f);
    }
    return x;
}

/* Waiting for a busy machine does not count. */
static double cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

typedef struct subject {
    tmx_attention_params params;
    uint64_t *bits;
    int32_t n;
} subject;

static key_lists empty_lists(const subject *s) { return key_lists_on(s->bits, N_HEADS, 0, s->n); }

/* The own block, the first, and one in `one_in` of the others. */
static key_lists some_lists(const subject *s, uint32_t one_in)
{
    const key_lists lists = empty_lists(s);
    for (int32_t h = 0; h < N_HEADS; h++) {
        for (int32_t a = 0; a < lists.n_blocks; a++) {
            for (int32_t b = 0; b <= a; b++) {
                if (b == 0 || b == a || random_u32() % one_in == 0) key_list_add(key_list_of(&lists, h, a), b);
            }
        }
    }
    return lists;
}

static void estimate_x(const subject *s, int32_t stride)
{
    key_lists lists = empty_lists(s);
    attn_xattention(&s->params, &(xattention){ .stride = stride, .threshold = 0.9, .norm = 1 }, &lists, NULL);
}

static void estimate_flex(const subject *s)
{
    key_lists lists = empty_lists(s);
    const flexprefill f = FLEXPREFILL_DEFAULTS;
    attn_flexprefill(&s->params, &f, &lists, NULL);
}

/* Random scores stop nobody: tau 0 visits everything, tau 1 stops after n_keys of the history.  Returns the share of pairs. */
static double run_s2o(const subject *s, int32_t segment, int32_t n_keys, double *estimate_ms)
{
    const s2o method = { .segment = segment, .tau = n_keys > 0 ? 1 : 0, .min_tiles = n_keys / S2O_KEY_TILE };
    const s2o_result done = attn_s2o(&s->params, &method, NULL, NULL);
    *estimate_ms = fmin(*estimate_ms, done.estimate_ms);
    return (double)done.n_pairs / N_HEADS / ((double)s->n * (s->n + 1.0) / 2);
}

static double density(const key_lists *lists, int32_t n)
{
    return (double)key_lists_pairs(lists, 0, n) / N_HEADS / (double)tmx_pattern_pairs(&(tmx_pattern){ 0 }, n, 0, n);
}

int main(int argc, char **argv)
{
    const int32_t n = argc > 1 ? atoi(argv[1]) : 4096, head_dim = argc > 2 ? atoi(argv[2]) : 64;
    if (n <= 512 || n > 1 << 20 || head_dim < 1 || head_dim > 512) {
        fprintf(stderr, "usage: bench_lists [n_tokens 513.. [head_dim 1..512]]\n");
        return 1;
    }
    const size_t dim = (size_t)head_dim, n_q = (size_t)n * N_HEADS * dim, n_kv = (size_t)n * N_KV_HEADS * dim;
    float *q = random_floats(n_q), *k = random_floats(n_kv), *v = random_floats(n_kv), *out = random_floats(n_q), *dense = random_floats(n_q);
    tmx_attention_seq seq = { .q = q, .k = k, .v = v, .out = dense, .n_q = n, .n_prompt = n };
    subject s = { .n = n, .bits = mem_alloc(key_lists_bytes(N_HEADS, n, n), 1), .params = {
        .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_F32, .n_heads = N_HEADS, .n_kv_heads = N_KV_HEADS, .head_dim = head_dim,
        .q_pos_stride = N_HEADS * dim, .q_head_stride = dim, .out_pos_stride = N_HEADS * dim, .out_head_stride = dim,
        .k_pos_stride = dim, .k_head_stride = dim * (size_t)n, .v_pos_stride = dim, .v_head_stride = dim * (size_t)n,
        .seqs = &seq, .n_seqs = 1 } };
    size_t n_scratch = tmx_attention_scratch_bytes(&s.params, 1);
    for (int kind = TMX_PATTERN_XATTENTION; kind <= TMX_PATTERN_FLEXPREFILL; kind++) {
        const size_t n_more = attn_lists_scratch_bytes(&s.params, (tmx_pattern_kind)kind, n, 1);
        if (n_more > n_scratch) n_scratch = n_more;
    }
    const size_t n_ranked = attn_s2o_scratch_bytes(&s.params, n, 1);
    if (n_ranked > n_scratch) n_scratch = n_ranked;
    s.params.scratch = mem_alloc(n_scratch, 1);
    if (s.params.scratch == NULL || s.bits == NULL || tmx_attention(&s.params, NULL, NULL) != TMX_OK) return 1;
    seq.out = out;
    key_lists lists = some_lists(&s, 1);
    attn_over_lists(&s.params, &lists, NULL);
    if (memcmp(out, dense, n_q * sizeof *out) != 0) {
        fprintf(stderr, "bench_lists: a list of every block is not dense attention\n");
        return 1;
    }

    enum { N_STEPS = 13 };
    static const char *const names[N_STEPS] = { "dense", "estimate xattention stride 4", "estimate xattention stride 8",
        "estimate xattention stride 16", "estimate flexprefill", "lists of all", "lists of 1 in 4", "lists of 1 in 16",
        "s2o of all", "s2o segment 128 256 keys", "s2o segment 512 256 keys", "of them ranking 128", "of them ranking 512" };
    double best[N_STEPS], share[N_STEPS] = { 1, 0, 0, 0, 0, 1 };
    for (int i = 0; i < N_STEPS; i++) best[i] = INFINITY;
    for (int round = 0; round < N_ROUNDS; round++) {
        for (int i = 0; i < N_STEPS; i++) {
            if (i >= 11) continue;
            if (i >= 5 && i < 8) lists = some_lists(&s, i == 5 ? 1 : i == 6 ? 4 : 16);
            const double begin = cpu_ms();
            if (i == 0 && tmx_attention(&s.params, NULL, NULL) != TMX_OK) return 1;
            else if (i >= 1 && i <= 3) estimate_x(&s, 2 << i);
            else if (i == 4) estimate_flex(&s);
            else if (i >= 8) share[i] = run_s2o(&s, i == 9 ? 128 : 512, i == 8 ? 0 : 256, &best[i == 9 ? 11 : 12]);
            else if (i >= 5) attn_over_lists(&s.params, &lists, NULL);
            best[i] = fmin(best[i], cpu_ms() - begin);
            if (i >= 5 && i < 8) share[i] = density(&lists, n);
        }
    }
    printf("step,isa,n_tokens,head_dim,pairs_pct,min_ms,pct_of_dense\n");
    for (int i = 0; i < N_STEPS; i++) {
        printf("%s,%s,%d,%d,%.1f,%.2f,%.1f\n", names[i], tmx_isa_name(tmx_isa_best()), n, head_dim, 100 * share[i], best[i],
               100 * best[i] / best[0]);
    }
    mem_free(s.params.scratch);
    mem_free(s.bits);
    float *const buffers[] = { q, k, v, out, dense };
    for (int i = 0; i < 5; i++) mem_free(buffers[i]);
    return 0;
}
