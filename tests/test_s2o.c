/* rooms: attn pattern base */
/* test_s2o.c - S2O: its ranking, and attention over the ranked keys, against plain f64 from the definition in pattern/s2o.h. */
#include "attn/attn.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RANDOM_SEED 20261125
#include "random_buffers.h"

#define FOR_EACH_ISA(isa) for (tmx_isa isa = TMX_ISA_SCALAR; isa <= tmx_isa_best(); isa++)

/* ---------------------------------------------------------------- the order */

static void scores_are_ranked_stably(void **state)
{
    (void)state;
    enum { MOST = 700 };
    static const float special[] = { 0.0f, -0.0f, 1.0f, -1.0f, 0x1p-149f, -0x1p-149f, 3e38f, -3e38f };
    for (int i = 0; i < 60; i++) {
        const int32_t n = i < 4 ? i : random_in(1, MOST);
        float score[MOST] = { 0 };
        int32_t order[MOST];
        uint32_t scratch[3 * MOST];
        for (int32_t j = 0; j < n; j++) {
            score[j] = i % 3 == 0 ? special[random_u32() % 8] : i % 3 == 1 ? (float)random_in(-5, 5) : random_normal();
        }
        s2o_rank(score, n, order, scratch);
        bool is_there[MOST] = { false };
        for (int32_t j = 0; j < n; j++) {
            assert_true(order[j] >= 0 && order[j] < n && !is_there[order[j]]);
            is_there[order[j]] = true;
            if (j == 0) continue;
            const float before = score[order[j - 1]], here = score[order[j]];
            assert_true(before > here || (before == here && order[j - 1] < order[j]));
        }
    }
}

static void bad_parameters_are_named(void **state)
{
    (void)state;
    static const struct { s2o s; const char *field; } cases[] = {
        { { .segment = 0, .tau = .1 }, "segment" }, { { .segment = 200, .tau = .1 }, "segment" },
        { { .segment = 1 << 17, .tau = .1 }, "segment" }, { { .segment = 128, .tau = -.1 }, "tau" },
        { { .segment = 128, .tau = NAN }, "tau" }, { { .segment = 128, .tau = 1.1 }, "tau" },
        { { .segment = 128, .sink = -1 }, "sink" }, { { .segment = 128, .min_tiles = -1 }, "min_tiles" },
        { { .segment = 128, .vote = 2 }, "vote" }, { { .segment = 128, .guide = -1 }, "guide" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tmx_error err;
        assert_int_equal(s2o_check(&cases[i].s, &err), TMX_E_ARG);
        assert_non_null(strstr(err.text, cases[i].field));
    }
    const s2o good = S2O_DEFAULTS;
    assert_int_equal(s2o_check(&good, NULL), TMX_OK);
}

/* ---------------------------------------------------------------- one sequence, q [n_q][heads][dim], k and v [kv][n][dim] */

typedef struct shape {
    int32_t q_begin, n_q, n_heads, n_kv_heads, head_dim;
    tmx_type type;
} shape;

typedef struct data {
    shape s;
    int32_t n;
    tmx_attention_params params;
    tmx_attention_seq seq;
    void *q, *k, *v, *out;
    float *lse;
} data;

static size_t n_out(const data *d) { return (size_t)d->s.n_q * (size_t)d->s.n_heads * (size_t)d->s.head_dim; }
static size_t n_out_bytes(const data *d) { return n_out(d) * bytes_of(d->s.type); }

static data *data_make(shape s)
{
    data *d = calloc(1, sizeof *d);
    assert_non_null(d);
    const size_t dim = (size_t)s.head_dim;
    d->s = s;
    d->n = s.q_begin + s.n_q;
    const size_t n_kv = (size_t)d->n * (size_t)s.n_kv_heads * dim;
    d->q = random_buffer(s.type, n_out(d));
    d->k = random_buffer(s.type, n_kv);
    d->v = random_buffer(s.type, n_kv);
    d->out = malloc(n_out_bytes(d));
    d->lse = malloc((size_t)s.n_q * (size_t)s.n_heads * sizeof *d->lse);
    assert_true(d->out != NULL && d->lse != NULL);
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
    free(d);
}

static size_t q_at(const data *d, int32_t q_pos, int32_t head)
{
    return ((size_t)(q_pos - d->s.q_begin) * (size_t)d->s.n_heads + (size_t)head) * (size_t)d->s.head_dim;
}

static size_t k_at(const data *d, int32_t k_pos, int32_t head)
{
    const int32_t kv_head = head / (d->s.n_heads / d->s.n_kv_heads);
    return ((size_t)kv_head * (size_t)d->n + (size_t)k_pos) * (size_t)d->s.head_dim;
}

/* Scratch and out that hold nothing good. */
static s2o_result run(data *d, tmx_isa isa, tmx_pool *pool, const s2o *method, s2o_watch *watch)
{
    const size_t n_bytes = attn_s2o_scratch_bytes(&d->params, d->n, pool_n_threads(pool));
    d->params.isa = isa;
    d->params.scratch = mem_alloc(n_bytes, 1);
    assert_non_null(d->params.scratch);
    memset(d->params.scratch, 0xff, n_bytes);
    memset(d->out, 0xff, n_out_bytes(d));
    const s2o_result result = attn_s2o(&d->params, method, pool, watch);
    mem_free(d->params.scratch);
    d->params.scratch = NULL;
    return result;
}

/* ---------------------------------------------------------------- the definition in f64 */

typedef struct reference {
    const data *d;
    const s2o *method;
    double *q, *k, *v;             /* as d->q, d->k, d->v: read once, since a pair costs three rows */
    double *out;                   /* as d->out */
    int64_t n_pairs;
    double margin;                 /* how near the nearest vote was to tau, relative */
} reference;

static double dot_f64(const data *d, const double *x, const void *rows, size_t at)
{
    double sum = 0;
    for (int32_t c = 0; c < d->s.head_dim; c++) sum += x[c] * (double)get(rows, d->s.type, at + (size_t)c);
    return sum;
}

/* indices [0, n) by descending value, ties by index */
static void rank_f64(const double *value, int32_t n, int32_t *order)
{
    for (int32_t i = 0; i < n; i++) {
        int32_t place = 0;
        for (int32_t j = 0; j < n; j++) place += value[j] > value[i] || (value[j] == value[i] && j < i);
        order[place] = i;
    }
}

/* One row's softmax so far: weights are not rescaled, since scores of a test are small. */
typedef struct row_state { double sum, o[128]; } row_state;

static double see_key(const reference *r, int32_t head, int32_t q, int32_t k, row_state *row)
{
    const data *d = r->d;
    const double *q_row = r->q + q_at(d, q, head), *k_row = r->k + k_at(d, k, head), *v_row = r->v + k_at(d, k, head);
    double s = 0;
    for (int32_t c = 0; c < d->s.head_dim; c++) s += q_row[c] * k_row[c];
    const double weight = exp(s / sqrt((double)d->s.head_dim));
    row->sum += weight;
    for (int32_t c = 0; c < d->s.head_dim; c++) row->o[c] += weight * v_row[c];
    return weight;
}

static void tile_f64(reference *r, int32_t head, int32_t a, const int32_t *rows, int32_t n_rows, const int32_t *keys)
{
    const data *d = r->d;
    row_state *state = calloc((size_t)n_rows, sizeof *state);
    assert_non_null(state);
    for (int32_t i = 0; i < n_rows; i++) {
        for (int32_t k = a; k <= rows[i]; k++) (void)see_key(r, head, rows[i], k, &state[i]);
    }
    for (int32_t tile = 0, seen = 0; seen < a; tile++) {
        const int32_t end = min_i32(a, seen + S2O_KEY_TILE);
        double mean = 0, most = 0;
        for (int32_t i = 0; i < n_rows; i++) {
            double weight = 0;
            for (int32_t j = seen; j < end; j++) weight += see_key(r, head, rows[i], keys[j], &state[i]);
            mean += weight / state[i].sum / n_rows;
            most = fmax(most, weight / state[i].sum);
        }
        r->n_pairs += (int64_t)n_rows * (end - seen);
        seen = end;
        if (tile + 1 < r->method->min_tiles || seen < min_i32(r->method->sink, a)) continue;
        const double gain = r->method->vote == 1 ? most : mean;
        if (seen < a) r->margin = fmin(r->margin, fabs(gain / r->method->tau - 1));
        if (gain < r->method->tau) break;
    }
    for (int32_t i = 0; i < n_rows; i++) {
        for (int32_t c = 0; c < d->s.head_dim; c++) r->out[q_at(d, rows[i], head) + (size_t)c] = state[i].o[c] / state[i].sum;
    }
    free(state);
}

static void segment_f64(reference *r, int32_t head, int32_t a, int32_t b)
{
    const data *d = r->d;
    const int32_t dim = d->s.head_dim, n_rows = b - a, sink = min_i32(r->method->sink, a);
    double mean[128] = { 0 }, guide[128] = { 0 }, *score = calloc((size_t)max_i32(a, n_rows), sizeof *score), max = -INFINITY;
    int32_t *keys = calloc((size_t)a + 1, sizeof *keys), *rows = calloc((size_t)n_rows, sizeof *rows);
    assert_true(score != NULL && keys != NULL && rows != NULL);
    for (int32_t q = a; q < b; q++) {
        for (int32_t c = 0; c < dim; c++) mean[c] += (double)get(d->q, d->s.type, q_at(d, q, head) + (size_t)c) / n_rows;
    }
    for (int32_t k = 0; k < a; k++) score[k] = dot_f64(d, mean, d->k, k_at(d, k, head));
    for (int32_t k = 0; k < sink; k++) keys[k] = k;
    rank_f64(score + sink, a - sink, keys + sink);
    for (int32_t j = sink; j < a; j++) keys[j] += sink;
    for (int32_t k = sink; k < a; k++) max = fmax(max, score[k]);
    for (int32_t k = sink; k < a; k++) {
        const double weight = exp((score[k] - max) / sqrt((double)dim));
        for (int32_t c = 0; c < dim; c++) guide[c] += weight * (double)get(d->k, d->s.type, k_at(d, k, head) + (size_t)c);
    }
    for (int32_t i = 0; i < n_rows; i++) score[i] = r->method->guide == 1 ? dot_f64(d, guide, d->q, q_at(d, a + i, head)) : 0;
    rank_f64(score, n_rows, rows);
    for (int32_t i = 0; i < n_rows; i++) rows[i] += a;
    for (int32_t i = 0; i < n_rows; i += S2O_ROW_TILE) tile_f64(r, head, a, rows + i, min_i32(S2O_ROW_TILE, n_rows - i), keys);
    r->n_pairs += (int64_t)n_rows * (n_rows + 1) / 2;
    free(score);
    free(keys);
    free(rows);
}

static double *in_f64(const void *x, tmx_type type, size_t n)
{
    double *y = malloc(n * sizeof *y);
    assert_non_null(y);
    for (size_t i = 0; i < n; i++) y[i] = (double)get(x, type, i);
    return y;
}

static reference reference_of(const data *d, const s2o *method)
{
    reference r = { .d = d, .method = method, .out = calloc(n_out(d), sizeof *r.out), .margin = INFINITY };
    const size_t n_kv = (size_t)d->n * (size_t)d->s.n_kv_heads * (size_t)d->s.head_dim;
    assert_non_null(r.out);
    r.q = in_f64(d->q, d->s.type, n_out(d));
    r.k = in_f64(d->k, d->s.type, n_kv);
    r.v = in_f64(d->v, d->s.type, n_kv);
    for (int32_t head = 0; head < d->s.n_heads; head++) {
        for (int32_t a = d->s.q_begin; a < d->n; a += method->segment) segment_f64(&r, head, a, min_i32(d->n, a + method->segment));
    }
    free(r.q);
    free(r.k);
    free(r.v);
    return r;
}

/* Relative L2 distance. */
static double distance(const data *d, const double *ref)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n_out(d); i++) {
        const double x = (double)get(d->out, d->s.type, i);
        assert_true(isfinite(x));
        diff += (x - ref[i]) * (x - ref[i]);
        norm += ref[i] * ref[i];
    }
    return sqrt(diff / norm);
}

/* As test_sparse.c has them. */
static double limit_of(const data *d) { return d->s.type == TMX_TYPE_F32 ? 2e-6 : 4e-3; }

static void sharpen(data *d, float factor)
{
    for (size_t i = 0; i < n_out(d); i++) put(d->q, d->s.type, i, get(d->q, d->s.type, i) * factor);
}

/* A vote that rounding could turn is no case: bf16 weights (one rung) are good to 2^-9. */
static void it_is_the_definition(void **state)
{
    (void)state;
    static const shape shapes[] = {
        { 0, 512, 2, 1, 16, 0 }, { 0, 385, 3, 1, 20, 0 }, { 384, 131, 2, 1, 33, 0 }, { 0, 642, 1, 1, 8, 0 }, { 512, 128, 4, 2, 9, 0 },
        { 256, 1, 2, 1, 8, 0 }, { 0, 200, 2, 1, 32, 0 }, { 512, 31, 2, 2, 64, 0 },
    };
    static const s2o methods[] = {
        { .segment = 128, .tau = 0.1, .sink = 64, .min_tiles = 2, .guide = 1 },
        { .segment = 128, .tau = 0.12, .sink = 7, .min_tiles = 0, .guide = 0 },
        { .segment = 128, .tau = 0.25, .sink = 0, .min_tiles = 1, .vote = 1, .guide = 1 },
        { .segment = 256, .tau = 0.15, .sink = 130, .min_tiles = 0, .guide = 1 },
        { .segment = 128, .tau = 1, .sink = 8, .min_tiles = 3, .guide = 1 },       /* stops where it first may */
        { .segment = 128, .tau = 1, .sink = 130, .min_tiles = 1, .vote = 1, .guide = 1 },
    };
    double worst = 0;
    int n_checked = 0, n_stopped = 0;
    for (int i = 0; i < 48; i++) {
        const s2o *method = &methods[i / 8];
        shape s = shapes[i % 8];
        s.type = i % 2 == i / 8 % 2 ? TMX_TYPE_F32 : TMX_TYPE_BF16;
        if (s.q_begin % method->segment != 0) continue;
        data *d = data_make(s);
        sharpen(d, 2);
        const reference r = reference_of(d, method);
        const int64_t n_all = (int64_t)s.n_heads * ((int64_t)s.n_q * s.q_begin + (int64_t)s.n_q * (s.n_q + 1) / 2);
        n_stopped += r.n_pairs < n_all;
        FOR_EACH_ISA(isa) {
            const s2o_result result = run(d, isa, NULL, method, NULL);
            if (r.margin < (s.type == TMX_TYPE_F32 ? 1e-5 : isa >= TMX_ISA_AVX512_BF16 ? 1e-2 : 1e-5)) continue;
            if (result.n_pairs != r.n_pairs) {
                fail_msg("case %d, %s: %lld pairs, expected %lld", i, tmx_isa_name(isa), (long long)result.n_pairs, (long long)r.n_pairs);
            }
            const double error = distance(d, r.out);
            worst = fmax(worst, error / limit_of(d));
            if (!(error <= limit_of(d))) fail_msg("case %d, %s: distance %.3g", i, tmx_isa_name(isa), error);
            n_checked++;
        }
        free(r.out);
        data_free(d);
    }
    print_message("%d checks, %d cases stop early, worst distance %.2g of the limit\n", n_checked, n_stopped, worst);
    assert_true(n_checked >= 40 && n_stopped >= 12);
}

static void dense_f64(const data *d, double *out)
{
    double *lse = malloc((size_t)d->s.n_q * (size_t)d->s.n_heads * sizeof *lse);
    assert_non_null(lse);
    attn_ref_f64(&d->params, 0, out, lse);
    for (int32_t i = 0; i < d->s.n_q * d->s.n_heads; i++) assert_true(fabs((double)d->lse[i] - lse[i]) <= 2e-3 * fmax(1, fabs(lse[i])));
    free(lse);
}

static void tau_0_is_dense(void **state)
{
    (void)state;
    const s2o method = { .segment = 256, .tau = 0, .sink = 64, .min_tiles = 2, .guide = 1 };
    for (int i = 0; i < 6; i++) {
        data *d = data_make((shape){ i % 2 * 256, 190 + 21 * i, 2, 1, i % 3 == 0 ? 64 : 20, i % 2 ? TMX_TYPE_BF16 : TMX_TYPE_F32 });
        sharpen(d, 4);
        double *out = malloc(n_out(d) * sizeof *out);
        assert_non_null(out);
        FOR_EACH_ISA(isa) {
            const s2o_result result = run(d, isa, NULL, &method, NULL);
            const int64_t n_q = d->s.n_q;
            assert_int_equal(result.n_pairs, d->s.n_heads * (n_q * d->s.q_begin + n_q * (n_q + 1) / 2));
            dense_f64(d, out);
            if (!(distance(d, out) <= limit_of(d))) fail_msg("case %d, %s: distance %.3g", i, tmx_isa_name(isa), distance(d, out));
        }
        free(out);
        data_free(d);
    }
}

/* Whole segments are computed alone, so neither chunks nor threads move a bit; and a larger tau never visits more. */
static void chunks_and_threads_move_no_bit(void **state)
{
    (void)state;
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 3, NULL), TMX_OK);
    for (int i = 0; i < 4; i++) {
        data *d = data_make((shape){ 0, 530 + i, 4, 2, i % 2 ? 64 : 24, i < 2 ? TMX_TYPE_F32 : TMX_TYPE_BF16 });
        const size_t row_bytes = n_out_bytes(d) / (size_t)d->s.n_q;
        void *whole = malloc(n_out_bytes(d));
        s2o method = { .segment = 128, .tau = 0.1, .sink = 64, .min_tiles = 1, .guide = 1 };
        assert_non_null(whole);
        sharpen(d, 2);
        const int64_t n_pairs = run(d, TMX_ISA_AUTO, NULL, &method, NULL).n_pairs;
        memcpy(whole, d->out, n_out_bytes(d));
        assert_int_equal(run(d, TMX_ISA_AUTO, pool, &method, NULL).n_pairs, n_pairs);
        assert_memory_equal(d->out, whole, n_out_bytes(d));
        int64_t in_chunks = 0;
        const int32_t n = d->n;
        void *const q = d->q, *const out = d->out;
        for (int32_t begin = 0; begin < n; begin += 256) {
            d->s.q_begin = d->seq.q_begin = begin;
            d->s.n_q = d->seq.n_q = min_i32(256, n - begin);
            d->seq.q = (char *)q + (size_t)begin * row_bytes;
            d->seq.out = d->out = (char *)out + (size_t)begin * row_bytes;
            d->n = begin + d->s.n_q;
            in_chunks += run(d, TMX_ISA_AUTO, pool, &method, NULL).n_pairs;
        }
        d->seq.q = q;
        d->out = d->seq.out = out;
        d->n = d->s.n_q = d->seq.n_q = n;
        d->s.q_begin = d->seq.q_begin = 0;
        assert_int_equal(in_chunks, n_pairs);
        assert_memory_equal(d->out, whole, n_out_bytes(d));
        int64_t before = INT64_MAX;
        for (method.tau = 0; method.tau <= 1; method.tau += 0.25) {
            const int64_t here = run(d, TMX_ISA_AUTO, pool, &method, NULL).n_pairs;
            assert_true(here <= before);
            before = here;
        }
        free(whole);
        data_free(d);
    }
    tmx_pool_free(pool);
}

/* ---------------------------------------------------------------- planted structure */

typedef struct finder {
    s2o_watch watch;
    int32_t key, n_rows, n_found;  /* rows of tiles with the key in their history, and those of them that saw it */
} finder;

static void look_for(s2o_watch *watch, const s2o_visit *visit)
{
    finder *f = (finder *)(void *)watch;
    if (f->key >= visit->begin) return;
    f->n_rows += visit->n_rows;
    for (int32_t j = 0; j < visit->n_keys; j++) {
        if (visit->keys[j] == f->key) f->n_found += visit->n_rows;
    }
}

/* Scattered keys that every query points at are found: one in each block of 128, so that lists of blocks would keep everything. */
static void scattered_lines_are_found(void **state)
{
    (void)state;
    enum { N = 768, DIM = 32, STEP = 128, OFFSET = 77 };
    data *d = data_make((shape){ 0, N, 2, 1, DIM, TMX_TYPE_F32 });
    float *q = d->q, *k = d->k;
    for (size_t i = 0; i < (size_t)(N * DIM); i++) k[i] *= 0.1f;
    for (size_t i = 0; i < (size_t)(2 * N * DIM); i++) q[i] *= 0.1f;
    for (int32_t i = 0; i < N; i++) {
        if (i % STEP == OFFSET) k[i * DIM] = 20;
        for (int32_t head = 0; head < 2; head++) q[(i * 2 + head) * DIM] = 4;
    }
    const s2o method = { .segment = 128, .tau = 0.01, .sink = 0, .min_tiles = 1, .guide = 1 };
    double *out = malloc(n_out(d) * sizeof *out);
    assert_non_null(out);
    FOR_EACH_ISA(isa) {
        finder f = { .watch.see = look_for };
        s2o_result result = { 0 };
        for (f.key = OFFSET; f.key < N; f.key += STEP) {
            if (isa != tmx_isa_best() && f.key > 3 * STEP) break;
            f.n_rows = f.n_found = 0;
            result = run(d, isa, NULL, &method, &f.watch);
            assert_int_equal(f.n_rows, f.n_found);
        }
        assert_true((double)result.n_pairs < 0.5 * 2 * N * (N + 1) / 2);
        dense_f64(d, out);
        assert_true(distance(d, out) < 2e-3);
    }
    free(out);
    data_free(d);
}

/* A NaN reaches the rows that see it, as in dense attention, and no key is dropped to hide it. */
static void no_number_hides_nothing(void **state)
{
    (void)state;
    enum { N = 600, DIM = 16, BAD = 40 };
    const s2o method = { .segment = 128, .tau = 0.5, .sink = 8, .min_tiles = 1, .guide = 1 };
    for (int which = 0; which < 2; which++) {
        data *d = data_make((shape){ 0, N, 2, 2, DIM, TMX_TYPE_F32 });
        void *bad = which == 0 ? d->k : d->q;
        put(bad, TMX_TYPE_F32, which == 0 ? k_at(d, BAD, 0) : q_at(d, 300, 0), NAN);
        FOR_EACH_ISA(isa) {
            (void)run(d, isa, NULL, &method, NULL);
            for (int32_t q = 0; q < N; q++) {
                const bool is_expected = which == 0 ? q >= BAD : q == 300;
                assert_true((isnan(get(d->out, TMX_TYPE_F32, q_at(d, q, 0))) != 0) == is_expected);
                assert_true(isfinite(get(d->out, TMX_TYPE_F32, q_at(d, q, 1))));
            }
        }
        data_free(d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_are_ranked_stably), cmocka_unit_test(bad_parameters_are_named), cmocka_unit_test(it_is_the_definition),
        cmocka_unit_test(tau_0_is_dense), cmocka_unit_test(chunks_and_threads_move_no_bit), cmocka_unit_test(scattered_lines_are_found),
        cmocka_unit_test(no_number_hides_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
