/* rooms: attn pattern base */
/* test_sparse.c - key lists, attention over them, and the estimators that make them: against plain f64, on random and planted
 * Q and K. */
#include "attn/attn.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "pattern/pattern.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RANDOM_SEED 20251125
#include "random_buffers.h"

#define FOR_EACH_ISA(isa) for (tmx_isa isa = TMX_ISA_SCALAR; isa <= tmx_isa_best(); isa++)

/* ---------------------------------------------------------------- one sequence, q [n_q][heads][dim], k and v [kv][n][dim] */

typedef struct shape {
    int32_t q_begin, n_q, n_heads, n_kv_heads, head_dim;
    tmx_type type;
} shape;

typedef struct data {
    shape s;
    int32_t n;                     /* keys */
    tmx_attention_params params;
    tmx_attention_seq seq;
    void *q, *k, *v, *out;
    float *lse;
    uint64_t *bits;
    key_lists lists;
    tmx_pattern_kind kind;         /* of the estimator that scratch is for */
} data;

static size_t q_at(const data *d, int32_t q_pos, int32_t head)
{
    return ((size_t)(q_pos - d->s.q_begin) * (size_t)d->s.n_heads + (size_t)head) * (size_t)d->s.head_dim;
}

static size_t k_at(const data *d, int32_t k_pos, int32_t kv_head)
{
    return ((size_t)kv_head * (size_t)d->n + (size_t)k_pos) * (size_t)d->s.head_dim;
}

static size_t n_out(const data *d) { return (size_t)d->s.n_q * (size_t)d->s.n_heads * (size_t)d->s.head_dim; }

static data *data_make(shape s)
{
    data *d = calloc(1, sizeof *d);
    assert_non_null(d);
    const size_t dim = (size_t)s.head_dim;
    d->s = s;
    d->kind = TMX_PATTERN_XATTENTION;
    d->n = s.q_begin + s.n_q;
    const size_t n_kv = (size_t)d->n * (size_t)s.n_kv_heads * dim;
    d->q = random_buffer(s.type, n_out(d));
    d->k = random_buffer(s.type, n_kv);
    d->v = random_buffer(s.type, n_kv);
    d->out = malloc(n_out(d) * bytes_of(s.type));
    d->lse = malloc((size_t)s.n_q * (size_t)s.n_heads * sizeof *d->lse);
    d->bits = malloc(key_lists_bytes(s.n_heads, s.n_q, d->n));
    assert_true(d->out != NULL && d->lse != NULL && d->bits != NULL);
    d->lists = key_lists_on(d->bits, s.n_heads, s.q_begin, s.n_q);
    d->seq = (tmx_attention_seq){ .q = d->q, .k = d->k, .v = d->v, .out = d->out, .lse = d->lse, .q_begin = s.q_begin,
                                  .n_q = s.n_q, .n_prompt = d->n };
    d->params = (tmx_attention_params){
        .q_type = s.type, .kv_type = s.type, .n_heads = s.n_heads, .n_kv_heads = s.n_kv_heads, .head_dim = s.head_dim,
        .q_pos_stride = dim * (size_t)s.n_heads, .q_head_stride = dim, .out_pos_stride = dim * (size_t)s.n_heads,
        .out_head_stride = dim, .k_pos_stride = dim, .k_head_stride = dim * (size_t)d->n, .v_pos_stride = dim,
        .v_head_stride = dim * (size_t)d->n, .seqs = &d->seq, .n_seqs = 1,
    };
    return d;
}

static void data_free(data *d)
{
    free(d->q);
    free(d->k);
    free(d->v);
    free(d->out);
    free(d->lse);
    free(d->bits);
    free(d);
}

typedef void step(data *d, tmx_pool *pool, const void *ctx);

/* Runs a step with scratch that holds nothing good. */
static void with_scratch(data *d, tmx_isa isa, tmx_pool *pool, step *run, const void *ctx)
{
    const size_t n_bytes = attn_lists_scratch_bytes(&d->params, d->kind, d->n, pool_n_threads(pool));
    d->params.isa = isa;
    d->params.scratch = mem_alloc(n_bytes, 1);
    assert_non_null(d->params.scratch);
    memset(d->params.scratch, 0xff, n_bytes);
    run(d, pool, ctx);
    mem_free(d->params.scratch);
    d->params.scratch = NULL;
}

static void attend(data *d, tmx_pool *pool, const void *ctx)
{
    (void)ctx;
    memset(d->out, 0xff, n_out(d) * bytes_of(d->s.type));
    attn_over_lists(&d->params, &d->lists, pool);
}

static void random_lists(data *d, int one_in)
{
    d->lists = key_lists_on(d->bits, d->s.n_heads, d->s.q_begin, d->s.n_q);
    for (int32_t h = 0; h < d->s.n_heads; h++) {
        for (int32_t a = d->lists.first_block; a < d->lists.first_block + d->lists.n_blocks; a++) {
            for (int32_t b = 0; b <= a; b++) {
                if (one_in == 1 || random_u32() % (uint32_t)one_in == 0) key_list_add(key_list_of(&d->lists, h, a), b);
            }
        }
    }
}

/* ---------------------------------------------------------------- lists */

static void runs_and_pairs_are_the_predicate(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 1, 127, 128, 129, 500, 8193, 8400 };
    for (int i = 0; i < 28; i++) {
        const int32_t n = lengths[i % 7], q_begin = n > 400 && i >= 14 ? n / 256 * 128 : 0;
        data *d = data_make((shape){ .q_begin = q_begin, .n_q = n - q_begin, .n_heads = 2, .n_kv_heads = 1, .head_dim = 1,
                                     .type = TMX_TYPE_F32 });
        random_lists(d, 1 + i % 4);
        int64_t n_pairs = 0;
        for (int32_t h = 0; h < 2; h++) {
            for (int32_t q = q_begin; q < n; q += 1 + (n > 1000 ? 61 : 0)) {
                key_runs it = { .list = key_list_of(&d->lists, h, q / KEY_BLOCK), .k_end = q + 1 };
                int32_t next = 0, begin, end;
                while (key_runs_next(&it, &begin, &end)) {
                    assert_true(begin >= next && begin < end && end <= q + 1);
                    for (; next < begin; next++) assert_false(key_lists_visible(&d->lists, h, q, next));
                    for (; next < end; next++) assert_true(key_lists_visible(&d->lists, h, q, next));
                    n_pairs += end - begin;
                }
                for (; next <= q + 1; next++) assert_false(key_lists_visible(&d->lists, h, q, next));
            }
        }
        if (n <= 1000) assert_int_equal(n_pairs, key_lists_pairs(&d->lists, q_begin, n));
        data_free(d);
    }
}

/* Relative L2 distance to the oracle.  Measured: 4.1e-7, 2.2e-3 (bf16). */
static double distance(const data *d, const double *ref)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n_out(d); i++) {
        const double x = (double)get(d->out, d->s.type, i);
        assert_true(isfinite(x));
        diff += (x - ref[i]) * (x - ref[i]);
        norm += ref[i] * ref[i];
    }
    return norm > 0 ? sqrt(diff / norm) : diff;
}

static double limit_of(const data *d) { return d->s.type == TMX_TYPE_F32 ? 2e-6 : 4e-3; }

static void random_lists_match_the_oracle(void **state)
{
    (void)state;
    static const shape shapes[] = {
        { 0, 1, 1, 1, 64, 0 }, { 0, 127, 3, 1, 40, 0 }, { 0, 128, 2, 2, 64, 0 }, { 0, 129, 4, 2, 33, 0 }, { 0, 700, 3, 1, 64, 0 },
        { 256, 200, 6, 2, 24, 0 }, { 512, 128, 2, 1, 128, 0 }, { 384, 1, 9, 3, 64, 0 }, { 0, 513, 2, 1, 7, 0 },
    };
    double worst = 0;
    for (int i = 0; i < 36; i++) {
        shape s = shapes[i % 9];
        s.type = i % 2 == 0 ? TMX_TYPE_F32 : TMX_TYPE_BF16;
        data *d = data_make(s);
        random_lists(d, 2 + i / 9);            /* rows that see nothing too */
        double *out = malloc(n_out(d) * sizeof *out), *lse = malloc((size_t)s.n_q * (size_t)s.n_heads * sizeof *lse);
        assert_true(out != NULL && lse != NULL);
        attn_lists_ref_f64(&d->params, &d->lists, out, lse);
        FOR_EACH_ISA(isa) {
            with_scratch(d, isa, NULL, attend, NULL);
            const double error = distance(d, out);
            worst = fmax(worst, error / limit_of(d));
            if (!(error <= limit_of(d))) fail_msg("case %d, %s: distance %.3g", i, tmx_isa_name(isa), error);
            for (int32_t r = 0; r < s.n_q * s.n_heads; r++) {
                if (isinf(lse[r])) assert_true(d->lse[r] == -INFINITY);
                else assert_true(fabs((double)d->lse[r] - lse[r]) <= 2e-3 * fmax(1, fabs(lse[r])));
            }
        }
        free(out);
        free(lse);
        data_free(d);
    }
    print_message("worst distance %.2g of the limit\n", worst);
}

static void run_dense(data *d, tmx_pool *pool)
{
    tmx_error err;
    if (tmx_attention(&d->params, pool, &err) != TMX_OK) fail_msg("%s", err.text);
}

static void full_lists_are_dense_to_the_bit(void **state)
{
    (void)state;
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 3, NULL), TMX_OK);
    for (int i = 0; i < 12; i++) {
        const int32_t q_begin = i % 3 * 384;
        data *d = data_make((shape){ q_begin, 1 + i * 83, 6, 2, i % 2 ? 64 : 40, i % 4 < 2 ? TMX_TYPE_F32 : TMX_TYPE_BF16 });
        random_lists(d, 1);
        void *dense = malloc(n_out(d) * bytes_of(d->s.type));
        FOR_EACH_ISA(isa) {
            d->params.isa = isa;
            run_dense(d, pool);
            memcpy(dense, d->out, n_out(d) * bytes_of(d->s.type));
            with_scratch(d, isa, i % 2 ? pool : NULL, attend, NULL);
            assert_memory_equal(d->out, dense, n_out(d) * bytes_of(d->s.type));
        }
        free(dense);
        data_free(d);
    }
    tmx_pool_free(pool);
}

/* ---------------------------------------------------------------- XAttention */

static void the_selection_is_the_golden_one(void **state)
{
    (void)state;
    static const struct { double mass[6]; int32_t a; double threshold; uint64_t list; } cases[] = {
        { { 3, .5, .25, 6, 1, 5.25 }, 5, 0.9, 0x39 }, { { 3, .5, .25, 6, 1, 5.25 }, 5, 0.5, 0x21 },
        { { 3, .5, .25, 6, 1, 5.25 }, 5, 1, 0x3f }, { { 3, .5, 0, 6, 0, 5.25 }, 5, 1, 0x3f },
        { { 0, 1, 1, 1, 1, 0 }, 5, 0.5, 0x27 },        /* ties: the earlier block first */
        { { 0, 0, 0, 0 }, 3, 0.9, 0x9 }, { { 1 }, 0, 0.9, 1 }, { { 0, 1 }, 1, 0.1, 3 },
        { { 1, NAN, 1, 1 }, 3, 0.1, 0xf }, { { 1, 1, INFINITY, 1 }, 3, 0.1, 0xf },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t list = 0;
        int32_t order[6];
        xattention_select(cases[i].mass, cases[i].a, cases[i].threshold, &list, order);
        if (list != cases[i].list) fail_msg("case %zu: list %llx, expected %llx", i, (unsigned long long)list, (unsigned long long)cases[i].list);
    }
}

/* Against the definition without a heap. */
static void the_selection_is_greedy(void **state)
{
    (void)state;
    for (int i = 0; i < 400; i++) {
        enum { MOST = 150 };
        const int32_t a = random_in(0, MOST);
        const double threshold = (double)random_in(1, 100) / 100;
        double mass[MOST], whole = 0;
        bool is_kept[MOST] = { false };
        for (int32_t b = 0; b <= a; b++) whole += mass[b] = (double)random_in(0, i % 2 ? 1000 : 4);
        double kept = a > 0 ? mass[0] + mass[a] : mass[0];
        is_kept[0] = is_kept[a] = true;
        while (kept < threshold * whole) {
            int32_t best = -1;
            for (int32_t b = 0; b <= a; b++) {
                if (!is_kept[b] && (best < 0 || mass[b] > mass[best])) best = b;
            }
            if (best < 0) break;
            is_kept[best] = true;
            kept += mass[best];
        }
        uint64_t list[3] = { 0 };
        int32_t order[MOST];
        xattention_select(mass, a, threshold, list, order);
        for (int32_t b = 0; b < MOST; b++) assert_int_equal(key_list_has(list, b), b <= a && is_kept[b]);
    }
}

/* M of pattern/xattention.h for one head, straight from it. */
static void masses_f64(const data *d, const xattention *x, int32_t head, int32_t a, double *mass)
{
    const int32_t stride = x->stride, n_groups = KEY_BLOCK / stride, kv_head = head / (d->s.n_heads / d->s.n_kv_heads);
    const int32_t m_end = (min_i32(d->n, (a + 1) * KEY_BLOCK) + stride - 1) / stride;
    double *z = malloc((size_t)(a + 1) * (size_t)n_groups * sizeof *z);
    assert_non_null(z);
    for (int32_t b = 0; b <= a; b++) mass[b] = 0;
    for (int32_t m = a * n_groups; m < m_end; m++) {
        double max = -INFINITY, sum = 0;
        for (int32_t n = 0; n <= m; n++) {
            z[n] = 0;
            for (int32_t t = 0; t < stride; t++) {
                const int32_t q = m * stride + stride - 1 - t, k = n * stride + t;
                if (q >= d->n || k >= d->n) continue;
                for (int32_t c = 0; c < d->s.head_dim; c++) {
                    z[n] += (double)get(d->q, d->s.type, q_at(d, q, head) + (size_t)c)
                          * (double)get(d->k, d->s.type, k_at(d, k, kv_head) + (size_t)c);
                }
            }
            z[n] /= sqrt((double)d->s.head_dim) * stride * x->norm;
            max = fmax(max, z[n]);
        }
        for (int32_t n = 0; n <= m; n++) sum += exp(z[n] - max);
        for (int32_t n = 0; n <= m; n++) mass[n / n_groups] += exp(z[n] - max) / sum;
    }
    free(z);
}

static void estimate(data *d, tmx_pool *pool, const void *ctx)
{
    d->lists = key_lists_on(d->bits, d->s.n_heads, d->s.q_begin, d->s.n_q);
    attn_xattention(&d->params, ctx, &d->lists, pool);
}

/* Sharper scores than random ones have, so that blocks differ. */
static void sharpen(data *d, float factor)
{
    for (size_t i = 0; i < n_out(d); i++) put(d->q, d->s.type, i, get(d->q, d->s.type, i) * factor);
}

/* The list must be a right answer for masses that differ from the exact ones by no more than rounding: it reaches the
 * threshold, needs its least block to do so, and drops nothing heavier than what it keeps. */
static double check_list(const data *d, const xattention *x, int32_t head, int32_t a, double *mass)
{
    const double slack = d->s.type == TMX_TYPE_F32 ? 1e-5 : 2e-3;
    const uint64_t *list = key_list_of(&d->lists, head, a);
    double whole = 0, kept = 0, least = INFINITY, dropped = 0;
    masses_f64(d, x, head, a, mass);
    for (int32_t b = 0; b <= a; b++) {
        whole += mass[b];
        if (key_list_has(list, b)) kept += mass[b];
        else dropped = fmax(dropped, mass[b]);
        if (key_list_has(list, b) && b != 0 && b != a) least = fmin(least, mass[b]);
    }
    assert_true(key_list_has(list, 0) && key_list_has(list, a));
    const double threshold = xattention_threshold(x, head);
    assert_true(kept >= (threshold - slack) * whole);
    assert_true(least == INFINITY || kept - least < (threshold + slack) * whole);
    assert_true(dropped <= least + slack * whole);
    for (int32_t b = a + 1; b < d->lists.n_words * 64; b++) assert_false(key_list_has(list, b));
    return kept / whole;
}

static void estimates_match_f64(void **state)
{
    (void)state;
    static const shape shapes[] = {
        { 0, 640, 2, 1, 64, 0 }, { 0, 641, 3, 1, 40, 0 }, { 384, 259, 6, 2, 33, 0 }, { 0, 770, 1, 1, 16, 0 }, { 512, 128, 7, 1, 24, 0 },
        { 0, 389, 20, 1, 8, 0 },
    };
    static const int32_t strides[] = { 4, 8, 16 };
    int64_t n_kept = 0, n_all = 0;
    for (int i = 0; i < 36; i++) {
        shape s = shapes[i % 6];
        s.type = i / 6 % 2 == 0 ? TMX_TYPE_F32 : TMX_TYPE_BF16;
        /* in every third case some heads have a threshold of their own */
        static const double by_head[20] = { 0, 0.75, 0.3, 1e-9, 0, 0.99, 0.5 };
        const xattention x = { .stride = strides[i / 12], .threshold = i % 2 ? 0.9 : 0.6, .norm = i % 5 == 0 ? 0.25 : 1,
                               .thresholds = i % 3 == 2 ? by_head : NULL };
        data *d = data_make(s);
        sharpen(d, 6);
        double *mass = malloc((size_t)key_blocks_of(d->n) * sizeof *mass);
        assert_non_null(mass);
        FOR_EACH_ISA(isa) {
            with_scratch(d, isa, NULL, estimate, &x);
            for (int32_t h = 0; h < s.n_heads; h++) {
                for (int32_t a = d->lists.first_block; a < d->lists.first_block + d->lists.n_blocks; a++) {
                    check_list(d, &x, h, a, mass);
                }
            }
            n_kept += key_lists_pairs(&d->lists, s.q_begin, d->n);
            n_all += s.n_heads * tmx_pattern_pairs(&(tmx_pattern){ 0 }, d->n, s.q_begin, d->n);
        }
        free(mass);
        data_free(d);
    }
    print_message("kept %.1f %% of the pairs\n", 100 * (double)n_kept / (double)n_all);
    assert_true(n_kept < n_all);
}

/* A stripe of keys that all rows look for, and a diagonal at one distance: their blocks must be in the lists. */
static void planted_structure_is_found(void **state)
{
    (void)state;
    enum { N = 2048, DIM = 32, STRIPE = 5, DISTANCE = 6 };
    FOR_EACH_ISA(isa) {
        data *d = data_make((shape){ 0, N, 2, 1, DIM, TMX_TYPE_F32 });
        for (int32_t i = 0; i < N; i++) {
            float *k = (float *)d->k + k_at(d, i, 0), *stripe = (float *)d->q + q_at(d, i, 0), *slash = (float *)d->q + q_at(d, i, 1);
            for (int c = 0; c < DIM; c++) k[c] *= 0.3f, stripe[c] *= 0.3f, slash[c] *= 0.3f;
            stripe[0] = 12;                    /* head 0 looks for what the keys of block STRIPE hold */
            k[0] = i / KEY_BLOCK == STRIPE ? 12 : 0;
            const int32_t block = i / KEY_BLOCK;           /* head 1 looks for the block DISTANCE blocks ago */
            k[1 + block] = 12;
            if (block >= DISTANCE) slash[1 + block - DISTANCE] = 12;
        }
        const xattention x = { .stride = 8, .threshold = 0.9, .norm = 1 };
        with_scratch(d, isa, NULL, estimate, &x);
        for (int32_t a = 0; a < N / KEY_BLOCK; a++) {
            if (a >= STRIPE) assert_true(key_list_has(key_list_of(&d->lists, 0, a), STRIPE));
            if (a >= DISTANCE) assert_true(key_list_has(key_list_of(&d->lists, 1, a), a - DISTANCE));
        }
        const double density = (double)key_lists_pairs(&d->lists, 0, N) / 2 / (double)tmx_pattern_pairs(&(tmx_pattern){ 0 }, N, 0, N);
        if (!(density < 0.45)) fail_msg("density %.3f", density);
        data_free(d);
    }
}

/* One shot, in chunks of whole blocks, with one thread or three: the same lists, and so the same bits. */
static void chunks_and_threads_never_move_a_list(void **state)
{
    (void)state;
    static const int32_t cuts[] = { 0, 128, 512, 640, 777 };
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 3, NULL), TMX_OK);
    for (int t = 0; t < 2; t++) {
        data *d = data_make((shape){ 0, 777, 6, 2, 40, t ? TMX_TYPE_BF16 : TMX_TYPE_F32 });
        sharpen(d, 6);
        const xattention x = { .stride = 8, .threshold = 0.8, .norm = 1 };
        const size_t n_bytes = n_out(d) * bytes_of(d->s.type);
        char *out = malloc(n_bytes);
        assert_non_null(out);
        FOR_EACH_ISA(isa) {
            with_scratch(d, isa, NULL, estimate, &x);
            with_scratch(d, isa, NULL, attend, NULL);
            memcpy(out, d->out, n_bytes);
            const data whole = *d;
            memset(d->out, 0xff, n_bytes);
            for (int c = 0; c < 4; c++) {
                const int32_t begin = cuts[c];
                d->s.q_begin = d->seq.q_begin = begin;
                d->s.n_q = d->seq.n_q = cuts[c + 1] - begin;
                const size_t at = (size_t)begin * (size_t)d->s.n_heads * (size_t)d->s.head_dim * bytes_of(d->s.type);
                d->seq.q = (char *)d->q + at;
                d->seq.out = (char *)d->out + at;
                d->seq.lse = NULL;
                d->n = cuts[c + 1];
                d->lists = key_lists_on(d->bits, 6, begin, d->s.n_q);
                with_scratch(d, isa, pool, estimate, &x);
                d->params.scratch = mem_alloc(attn_lists_scratch_bytes(&d->params, d->kind, d->n, 3), 1);
                attn_over_lists(&d->params, &d->lists, pool);
                mem_free(d->params.scratch);
                d->params.scratch = NULL;
            }
            assert_memory_equal(d->out, out, n_bytes);
            void *const bits = d->bits;
            *d = whole;
            d->bits = bits;
            d->params.seqs = &d->seq;
        }
        free(out);
        data_free(d);
    }
    tmx_pool_free(pool);
}

/* Damage must show: a NaN in K reaches the rows after it as it does in dense attention. */
static void nan_keeps_every_block(void **state)
{
    (void)state;
    FOR_EACH_ISA(isa) {
        data *d = data_make((shape){ 0, 700, 1, 1, 16, TMX_TYPE_F32 });
        sharpen(d, 20);
        put(d->k, TMX_TYPE_F32, k_at(d, 300, 0), NAN);
        const xattention x = { .stride = 8, .threshold = 0.3, .norm = 1 };
        with_scratch(d, isa, NULL, estimate, &x);
        for (int32_t a = 3; a < 6; a++) {
            for (int32_t b = 0; b <= a; b++) assert_true(key_list_has(key_list_of(&d->lists, 0, a), b));
        }
        data_free(d);
    }
}

static void parameters_are_checked(void **state)
{
    (void)state;
    tmx_error err;
    static const struct { xattention x; const char *text; } bad[] = {
        { { 0, 0.9, 1, NULL }, "xattention stride: 0" }, { { 5, 0.9, 1, NULL }, "xattention stride: 5" },
        { { 32, 0.9, 1, NULL }, "xattention stride: 32" }, { { 8, 0, 1, NULL }, "xattention threshold: 0" },
        { { 8, 1.01, 1, NULL }, "xattention threshold: 1.01" }, { { 8, NAN, 1, NULL }, "xattention threshold: nan" },
        { { 8, 0.9, 0, NULL }, "xattention norm: 0" }, { { 8, 0.9, INFINITY, NULL }, "xattention norm: inf" },
        { { 8, 0.9, NAN, NULL }, "xattention norm: nan" },
    };
    const xattention good = XATTENTION_DEFAULTS;
    assert_int_equal(xattention_check(&good, &err), TMX_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(xattention_check(&bad[i].x, &err), TMX_E_ARG);
        assert_non_null(strstr(err.text, bad[i].text));
    }
}

/* ---------------------------------------------------------------- FlexPrefill */

static void coverage_and_tiles_are_the_golden_ones(void **state)
{
    (void)state;
    static const double x[] = { .1, .5, .05, .2, .05, .1 };
    static const struct { double gamma; int32_t covered; } cases[] = { { .49, 1 }, { .5, 2 }, { .75, 3 }, { .9, 5 }, { .95, 6 }, { 1.5, 7 } };
    int32_t order[6];
    for (size_t i = 0; i < 6; i++) assert_int_equal(flexprefill_coverage(x, 6, cases[i].gamma, order), cases[i].covered);

    static const uint64_t rows[] = { 0x1, 0x3, 0x7, 0xd, 0x1d };
    uint64_t bits[5];
    key_lists lists = key_lists_on(bits, 1, 0, 5 * KEY_BLOCK - 3);
    flexprefill_keep_column(&lists, 0, 0);
    flexprefill_keep_column(&lists, 0, 2);
    flexprefill_keep_diagonal(&lists, 0, 0);
    flexprefill_keep_diagonal(&lists, 0, 1);
    assert_memory_equal(bits, rows, sizeof rows);
}

/* Bin b of the distances stands for the diagonal nb - 1 - b, whether or not blocks fill the prompt. */
static void bins_are_the_golden_ones(void **state)
{
    (void)state;
    static const struct { int32_t n, distance, offset; } cases[] = {
        { 512, 127, 0 }, { 512, 128, 1 }, { 512, 255, 1 }, { 512, 256, 2 }, { 512, 383, 2 }, { 512, 384, 3 }, { 512, 511, 3 },
        { 300, 43, 0 }, { 300, 44, 1 }, { 300, 171, 1 }, { 300, 172, 2 }, { 300, 299, 2 },
    };
    const flexprefill f = { .gamma = 0.9, .tau = 0, .min_budget = 2 * KEY_BLOCK };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enum { MOST = 512 };
        const int32_t n = cases[i].n, nb = key_blocks_of(n);
        double by_key[MOST] = { 1 }, by_distance[MOST] = { 0 }, pooled[4] = { .25, .25, .25, .25 }, block_mass[8];
        uint64_t bits[4];
        int32_t order[MOST];
        by_distance[n - 1 - cases[i].distance] = 1;
        key_lists lists = key_lists_on(bits, 1, 0, n);
        const flex_head at = { .n = n, .by_key = by_key, .by_distance = by_distance, .pooled = pooled };
        assert_false(flexprefill_select(&f, &at, &lists, 0, block_mass, order));
        for (int32_t row = 0; row < nb; row++) {           /* columns 0 and, by the tie rule, 1; diagonals 0 and the planted one */
            uint64_t expected = 0x3 & ((1u << (row + 1)) - 1);
            expected |= 1u << row;
            const int32_t offset = cases[i].offset == 0 ? 1 : cases[i].offset;
            if (row >= offset) expected |= 1u << (row - offset);
            assert_int_equal(bits[row], expected);
        }
    }
}

/* The tile that crosses gamma nb is dropped; the distance of {.5, .5} and {.9, .1} is 0.31899. */
static void query_aware_heads_are_found_by_hand(void **state)
{
    (void)state;
    static const double map[] = { 1, .3, .7, .1, .2, .7 };
    static const struct { double gamma; uint64_t rows[3]; } tiles[] = {
        { 0.3, { 0, 0, 0 } }, { 0.34, { 1, 0, 0 } }, { 0.79, { 1, 2, 0 } }, { 0.85, { 1, 2, 4 } }, { 0.95, { 1, 3, 4 } }, { 0.999, { 1, 3, 6 } },
    };
    int32_t order[256];
    for (size_t i = 0; i < sizeof tiles / sizeof tiles[0]; i++) {
        const flexprefill f = { .gamma = tiles[i].gamma, .tau = 0.1, .min_budget = 1 };
        uint64_t bits[3];
        key_lists lists = key_lists_on(bits, 1, 0, 3 * KEY_BLOCK);
        flexprefill_select_tiles(&f, map, &lists, 0, order);
        assert_memory_equal(bits, tiles[i].rows, sizeof bits);
    }
    static const struct { double tau, pooled[2]; bool is_query_aware; } heads[] = {
        { 0.318, { .5, .5 }, false }, { 0.32, { .5, .5 }, true }, { 0, { .9, .1 }, false }, { 1e-6, { .9, .1 }, true }, { 1, { 1, 0 }, false },
    };
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        const flexprefill f = { .gamma = 0.9, .tau = heads[i].tau, .min_budget = 1 };
        double by_key[256] = { .9 }, by_distance[256] = { 1 }, block_mass[4];
        by_key[200] = .1;
        uint64_t bits[2];
        key_lists lists = key_lists_on(bits, 1, 0, 256);
        const flex_head at = { .n = 256, .by_key = by_key, .by_distance = by_distance, .pooled = heads[i].pooled };
        assert_int_equal(flexprefill_select(&f, &at, &lists, 0, block_mass, order), heads[i].is_query_aware);
    }
}

typedef struct flex_reference { double *by_key, *by_distance, *pooled, *map, *block_mass; int32_t *order; uint64_t *bits; } flex_reference;

static double dot_f64(const double *a, const double *b, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void mean_f64(const data *d, bool is_q, int32_t head, int32_t begin, int32_t end, double *mean)
{
    for (int32_t c = 0; c < d->s.head_dim; c++) {
        mean[c] = 0;
        for (int32_t i = begin; i < end; i++) {
            mean[c] += (double)(is_q ? get(d->q, d->s.type, q_at(d, i, head) + (size_t)c) : get(d->k, d->s.type, k_at(d, i, head) + (size_t)c));
        }
        mean[c] /= end - begin;
    }
}

static void softmax_f64(double *x, int32_t n)
{
    double max = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++) max = fmax(max, x[i]);
    for (int32_t i = 0; i < n; i++) sum += x[i] = exp(x[i] - max);
    for (int32_t i = 0; i < n; i++) x[i] /= sum;
}

/* What flexprefill.h defines for one head, from Q and K in f64; of a chunk, where it ends is the end. */
static void measure_f64(const data *d, int32_t head, flex_reference *r)
{
    const int32_t n = d->n, nb = key_blocks_of(n), first = d->s.q_begin / KEY_BLOCK, dim = d->s.head_dim, kv_head = head / (d->s.n_heads / d->s.n_kv_heads);
    const double scale = 1 / sqrt((double)dim);
    double *p = malloc((size_t)n * sizeof *p), q[512], k[512];
    assert_non_null(p);
    for (int32_t i = 0; i < n; i++) r->by_key[i] = r->by_distance[i] = 0;
    for (int32_t row = n - KEY_BLOCK; row < n; row++) {
        mean_f64(d, true, head, row, row + 1, q);
        for (int32_t j = 0; j <= row; j++) {
            mean_f64(d, false, kv_head, j, j + 1, k);
            p[j] = scale * dot_f64(q, k, dim);
        }
        softmax_f64(p, row + 1);
        for (int32_t j = 0; j <= row; j++) {
            r->by_key[j] += p[j] / KEY_BLOCK;
            r->by_distance[n - 1 - (row - j)] += p[j] / KEY_BLOCK;
        }
    }
    mean_f64(d, true, head, n - KEY_BLOCK, n, q);
    for (int32_t m = first - 1; m < nb; m++) {             /* before the first row: pooled, over all blocks */
        const bool is_pooled = m < first;
        double *row = is_pooled ? r->pooled : r->map + m * (m + 1) / 2 - first * (first + 1) / 2;
        const int32_t n_row = is_pooled ? nb : m + 1;
        if (!is_pooled) mean_f64(d, true, head, m * KEY_BLOCK, min_i32(n, (m + 1) * KEY_BLOCK), q);
        for (int32_t b = 0; b < n_row; b++) {
            mean_f64(d, false, kv_head, b * KEY_BLOCK, min_i32(n, (b + 1) * KEY_BLOCK), k);
            row[b] = scale * dot_f64(q, k, dim);
        }
        softmax_f64(row, n_row);
    }
    free(p);
}

static key_lists select_f64(const data *d, flexprefill f, double gamma, flex_reference *r, bool *is_query_aware)
{
    key_lists lists = key_lists_on(r->bits, 1, d->s.q_begin, d->s.n_q);
    const flex_head at = { .n = d->n, .by_key = r->by_key, .by_distance = r->by_distance, .pooled = r->pooled };
    f.gamma = gamma;
    *is_query_aware = flexprefill_select(&f, &at, &lists, 0, r->block_mass, r->order);
    if (*is_query_aware) flexprefill_select_tiles(&f, r->map, &lists, 0, r->order);
    return lists;
}

static void flex_estimate(data *d, tmx_pool *pool, const void *ctx)
{
    d->lists = key_lists_on(d->bits, d->s.n_heads, d->s.q_begin, d->s.n_q);
    attn_flexprefill(&d->params, ctx, &d->lists, pool);
}

/* The lists lie between those that exact measures give for a slightly smaller and a slightly larger gamma.  Prompts, and chunks that end
 * where the prompt does. */
static void flexprefill_matches_f64(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 257, 400, 513, 640, 1001 };
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 3, NULL), TMX_OK);
    int64_t n_kept = 0, n_all = 0;
    int n_aware[2] = { 0 }, n_slash[2] = { 0 };            /* of prompts, of chunks */
    for (int i = 0; i < 20; i++) {
        const int32_t q_begin = i % 5 >= 2 && i % 2 == 0 ? 384 : 0;
        const shape s = { q_begin, lengths[i % 5] - q_begin, 3, i % 2 ? 1 : 3, i % 3 ? 24 : 33, i / 5 % 2 ? TMX_TYPE_BF16 : TMX_TYPE_F32 };
        const flexprefill f = { .gamma = i % 4 < 2 ? 0.5 : 0.85, .tau = i < 10 ? 0.02 : 0.4, .min_budget = i % 3 == 0 ? 100 : 200 };
        data *d = data_make(s);
        d->kind = TMX_PATTERN_FLEXPREFILL;
        sharpen(d, i % 2 ? 4 : 1);
        const size_t n = (size_t)d->n, nb = (size_t)key_blocks_of(d->n), n_map = nb * (nb + 1) / 2;
        flex_reference r = { malloc(n * 8), malloc(n * 8), malloc(nb * 8), malloc(n_map * 8), malloc(2 * nb * 8),
                             malloc((n + n_map) * sizeof(int32_t)), malloc(key_lists_bytes(1, d->n, d->n)) };
        for (int32_t h = 0; h < s.n_heads; h++) {
            measure_f64(d, h, &r);
            FOR_EACH_ISA(isa) {
                bool is_query_aware;
                with_scratch(d, isa, isa % 2 ? pool : NULL, flex_estimate, &f);
                key_lists low = select_f64(d, f, f.gamma - 1e-4, &r, &is_query_aware);
                for (int32_t a = d->lists.first_block; a < (int32_t)nb; a++) {
                    assert_int_equal(*key_list_of(&low, 0, a) & ~*key_list_of(&d->lists, h, a), 0);
                }
                key_lists high = select_f64(d, f, f.gamma + 1e-4, &r, &is_query_aware);
                for (int32_t a = d->lists.first_block; a < (int32_t)nb; a++) {
                    assert_int_equal(*key_list_of(&d->lists, h, a) & ~*key_list_of(&high, 0, a), 0);
                    assert_int_equal(*key_list_of(&d->lists, h, a) & (1u | 1u << a), 1u | 1u << a);
                }
                n_aware[q_begin > 0] += is_query_aware;
                n_slash[q_begin > 0] += !is_query_aware;
            }
        }
        n_kept += key_lists_pairs(&d->lists, q_begin, d->n);
        n_all += s.n_heads * tmx_pattern_pairs(&(tmx_pattern){ 0 }, d->n, q_begin, d->n);
        free(r.by_key), free(r.by_distance), free(r.pooled), free(r.map), free(r.block_mass), free(r.order), free(r.bits);
        data_free(d);
    }
    tmx_pool_free(pool);
    print_message("%d + %d heads query-aware, %d + %d vertical-slash; kept %.1f %% of the pairs\n", n_aware[0], n_aware[1], n_slash[0], n_slash[1],
                  100 * (double)n_kept / (double)n_all);
    for (int i = 0; i < 2; i++) assert_true(n_aware[i] > 0 && n_slash[i] > 0 && n_kept < n_all);
}

/* A column that the last rows look at, and a diagonal on which they look back. */
static void flexprefill_finds_what_is_planted(void **state)
{
    (void)state;
    enum { N = 2000, DIM = 64, COLUMN = 700, DISTANCE = 1100 };
    FOR_EACH_ISA(isa) {
        data *d = data_make((shape){ 0, N, 2, 1, DIM, TMX_TYPE_F32 });
        d->kind = TMX_PATTERN_FLEXPREFILL;
        for (int32_t i = 0; i < N; i++) {
            float *k = (float *)d->k + k_at(d, i, 0), *column = (float *)d->q + q_at(d, i, 0), *slash = (float *)d->q + q_at(d, i, 1);
            for (int c = 0; c < DIM; c++) k[c] *= 0.2f, column[c] *= 0.2f, slash[c] *= 0.2f;
            column[0] = 12;
            k[0] = i == COLUMN ? 12 : 0;
            const float angle = 0.7f * (float)i;           /* head 1 looks for the angle that the key DISTANCE ago had */
            k[1] = 12 * cosf(angle), k[2] = 12 * sinf(angle);
            slash[1] = 20 * cosf(angle - 0.7f * DISTANCE), slash[2] = 20 * sinf(angle - 0.7f * DISTANCE);
            const float slow = 0.0013f * (float)i;
            k[3] = 12 * cosf(slow), k[4] = 12 * sinf(slow);
            slash[3] = 60 * cosf(slow - 0.0013f * DISTANCE), slash[4] = 60 * sinf(slow - 0.0013f * DISTANCE);
        }
        const flexprefill f = { .gamma = 0.5, .tau = 0, .min_budget = 256 };
        with_scratch(d, isa, NULL, flex_estimate, &f);
        for (int32_t a = 0; a < key_blocks_of(N); a++) {
            if (a >= COLUMN / KEY_BLOCK) assert_true(key_list_has(key_list_of(&d->lists, 0, a), COLUMN / KEY_BLOCK));
            const int32_t offset = key_blocks_of(N) - 1 - (N - 1 - DISTANCE) / KEY_BLOCK;
            if (a >= offset) assert_true(key_list_has(key_list_of(&d->lists, 1, a), a - offset));
        }
        const double density = (double)key_lists_pairs(&d->lists, 0, N) / 2 / (double)tmx_pattern_pairs(&(tmx_pattern){ 0 }, N, 0, N);
        if (!(density < 0.5)) fail_msg("density %.3f", density);
        data_free(d);
    }
}

static void flexprefill_at_its_edges(void **state)
{
    (void)state;
    const flexprefill all = { .gamma = 1, .tau = 1, .min_budget = 1 }, few = { .gamma = 0.3, .tau = 0.1, .min_budget = 1 };
    FOR_EACH_ISA(isa) {
        data *d = data_make((shape){ 0, 700, 1, 1, 16, TMX_TYPE_F32 });
        d->kind = TMX_PATTERN_FLEXPREFILL;
        const int64_t n_all = tmx_pattern_pairs(&(tmx_pattern){ 0 }, 700, 0, 700);
        with_scratch(d, isa, NULL, flex_estimate, &all);
        assert_int_equal(key_lists_pairs(&d->lists, 0, 700), n_all);
        put(d->k, TMX_TYPE_F32, k_at(d, 300, 0), NAN);     /* damage must show */
        with_scratch(d, isa, NULL, flex_estimate, &few);
        assert_int_equal(key_lists_pairs(&d->lists, 0, 700), n_all);
        data_free(d);
    }
    tmx_error err;
    static const struct { flexprefill f; const char *text; } bad[] = {
        { { 0, 0.1, 512 }, "flexprefill gamma: 0" }, { { 1.1, 0.1, 512 }, "flexprefill gamma: 1.1" }, { { NAN, 0.1, 512 }, "flexprefill gamma: nan" },
        { { 0.9, -0.1, 512 }, "flexprefill tau: -0.1" }, { { 0.9, NAN, 512 }, "flexprefill tau: nan" }, { { 0.9, 0.1, 0 }, "flexprefill min_budget: 0" },
        { { 0.9, 0.1, INT32_MAX }, "flexprefill min_budget: 2147483647" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(flexprefill_check(&bad[i].f, &err), TMX_E_ARG);
        assert_non_null(strstr(err.text, bad[i].text));
    }
    assert_int_equal(flexprefill_dense_tokens(&few), 256);
    assert_int_equal(flexprefill_dense_tokens(&(flexprefill){ 0.9, 0.1, 513 }), 640);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_and_pairs_are_the_predicate),
        cmocka_unit_test(random_lists_match_the_oracle),
        cmocka_unit_test(full_lists_are_dense_to_the_bit),
        cmocka_unit_test(the_selection_is_the_golden_one),
        cmocka_unit_test(the_selection_is_greedy),
        cmocka_unit_test(estimates_match_f64),
        cmocka_unit_test(planted_structure_is_found),
        cmocka_unit_test(chunks_and_threads_never_move_a_list),
        cmocka_unit_test(nan_keeps_every_block),
        cmocka_unit_test(parameters_are_checked),
        cmocka_unit_test(coverage_and_tiles_are_the_golden_ones),
        cmocka_unit_test(bins_are_the_golden_ones),
        cmocka_unit_test(query_aware_heads_are_found_by_hand),
        cmocka_unit_test(flexprefill_matches_f64),
        cmocka_unit_test(flexprefill_finds_what_is_planted),
        cmocka_unit_test(flexprefill_at_its_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
