/* rooms: attn pattern base */
/* test_minference.c - MInference: runs of a head's lines, attention over them, and the estimator, against plain f64, on random and
 * planted Q and K. */
#include "attn/attn.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "pattern/minference.h"
#include "pattern/pattern.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RANDOM_SEED 20240702
#include "random_buffers.h"

#define FOR_EACH_ISA(isa) for (tmx_isa isa = TMX_ISA_SCALAR; isa <= tmx_isa_best(); isa++)

static const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE };

/* ---------------------------------------------------------------- runs of lines */

typedef struct lines {
    head_keys keys;
    int32_t columns[1024], distances[1024];
} lines;

static void put_lines(lines *l, int32_t n, const bool *is_column, const bool *is_distance)
{
    l->keys = (head_keys){ .kind = HEAD_LINES, .n = n, .columns = l->columns, .distances = l->distances };
    for (int32_t i = 0; i < n; i++) {
        if (is_column[i]) l->columns[l->keys.n_columns++] = i;
    }
    for (int32_t i = n - 1; i >= 0; i--) {
        if (is_distance[i]) l->distances[l->keys.n_distances++] = i;
    }
}

static void the_runs_are_the_golden_ones(void **state)
{
    (void)state;
    static const struct { int32_t t, n_runs, begin[8], n_columns, columns[3]; } golden[] = {
        { 0, 1, { 0 }, 0, { 0 } }, { 64, 2, { 0, 64 }, 0, { 0 } }, { 128, 3, { 0, 64, 128 }, 0, { 0 } },
        { 192, 4, { 0, 64, 128, 192 }, 0, { 0 } }, { 256, 5, { 0, 64, 128, 192, 256 }, 0, { 0 } },
        { 320, 5, { 20, 120, 190, 256, 320 }, 2, { 0, 5 } }, { 384, 5, { 84, 184, 254, 320, 384 }, 3, { 0, 5, 70 } },
        { 448, 5, { 148, 248, 318, 384, 448 }, 3, { 0, 5, 70 } },
    };
    enum { N = 512 };
    bool is_column[N] = { [0] = true, [5] = true, [70] = true, [200] = true, [300] = true };
    bool is_distance[N] = { [300] = true, [200] = true, [130] = true, [64] = true, [1] = true, [0] = true };
    lines l;
    put_lines(&l, N, is_column, is_distance);
    for (size_t i = 0; i < sizeof golden / sizeof golden[0]; i++) {
        bool is_seen[N] = { false };
        for (int32_t k = 0; k < golden[i].n_columns; k++) is_seen[golden[i].columns[k]] = true;
        for (int32_t k = 0; k < golden[i].n_runs * LINE_BLOCK; k++) {
            is_seen[golden[i].begin[k / LINE_BLOCK] + k % LINE_BLOCK] = true;
        }
        for (int32_t q = golden[i].t; q < golden[i].t + LINE_BLOCK; q++) {
            for (int32_t k = 0; k < N; k++) assert_int_equal(head_keys_visible(&l.keys, q, k), k <= q && is_seen[k]);
        }
    }
}

/* Every pair of a line is there, nothing is far from one, runs ascend and are apart, pairs are counted. */
static void runs_cover_the_lines(void **state)
{
    (void)state;
    for (int i = 0; i < 60; i++) {
        const int32_t n = random_in(1, 700);
        bool is_column[1024] = { false }, is_distance[1024] = { [0] = true };
        for (int32_t k = 0; k < n; k++) {
            is_column[k] = random_in(0, 1 + i % 7 * 8) == 0;
            is_distance[k] |= random_in(0, 1 + i % 5 * 30) == 0;
        }
        lines l;
        put_lines(&l, n, is_column, is_distance);
        int64_t n_pairs = 0, n_late = 0;
        for (int32_t t = 0; t < n; t += LINE_BLOCK) {
            bool is_seen[1024] = { false };
            int32_t last = 0, n_long = 0;
            line_runs it = line_runs_of(&l.keys, t);
            for (int32_t begin, end; line_runs_next(&it, &begin, &end); last = end) {
                assert_true(begin >= last && begin < end && end <= min_i32(n, t + LINE_BLOCK));
                n_long += (end - begin + LINE_BLOCK - 1) / LINE_BLOCK;
                if (end - begin == 1 && end < min_i32(n, t + LINE_BLOCK)) {
                    n_long--;
                    assert_true(begin < t && is_column[begin]);
                }
                for (int32_t k = begin; k < end; k++) is_seen[k] = true;
            }
            assert_true(n_long <= l.keys.n_distances);
            for (int32_t q = t; q < min_i32(n, t + LINE_BLOCK); q++) {
                for (int32_t k = 0; k <= q; k++) {
                    assert_true(is_seen[k] || !(is_column[k] || is_distance[q - k]));
                    n_pairs += is_seen[k];
                    n_late += is_seen[k] && t >= 2 * LINE_BLOCK;
                    bool is_near = is_column[k];       /* a run is longer than its distances by less than LINE_BLOCK at each end */
                    for (int32_t d = max_i32(0, q - k - 2 * LINE_BLOCK); d < min_i32(n, q - k + 2 * LINE_BLOCK); d++) is_near |= is_distance[d];
                    if (is_seen[k]) assert_true(is_near);
                }
            }
        }
        assert_int_equal(n_pairs, head_keys_pairs(&l.keys, 0));
        assert_int_equal(n_late, head_keys_pairs(&l.keys, 2 * LINE_BLOCK));
    }
}

/* ---------------------------------------------------------------- selection */

static bool has(const int32_t *list, int32_t n, int32_t x)
{
    for (int32_t i = 0; i < n; i++) {
        if (list[i] == x) return true;
    }
    return false;
}

static void what_is_forced_and_what_is_tied(void **state)
{
    (void)state;
    enum { N = 600 };
    static uint64_t room[N], marks[N / 64 + 1];
    int32_t order[N];
    static const struct { int32_t a, b, n_columns, n_distances; } cases[] = {
        { 0, 0, 30, 50 }, { 33, 104, 33, 104 }, { 30, 99, 30, 99 }, { 500, 60, 500, 60 },
    };
    assert_true(minference_room_bytes(N) <= sizeof room);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double by_key[N] = { 0 }, by_distance[N] = { 0 };
        by_key[300] = by_key[299] = 1;                 /* of those that are tied the earlier one, then 0 for the earlier ones */
        by_key[500] = 2;
        by_distance[599] = by_distance[400] = 1;
        const minference_head head = { MINFERENCE_VERTICAL_SLASH, cases[i].a, cases[i].b };
        const head_keys keys = minference_select_lines(&head, N, by_key, by_distance, order, marks, room);
        assert_int_equal(keys.kind, HEAD_LINES);
        assert_int_equal(keys.n_columns, cases[i].n_columns);
        assert_int_equal(keys.n_distances, cases[i].n_distances);
        for (int32_t k = 1; k < keys.n_columns; k++) assert_true(keys.columns[k - 1] < keys.columns[k]);
        for (int32_t k = 1; k < keys.n_distances; k++) assert_true(keys.distances[k - 1] > keys.distances[k]);
        for (int32_t k = 0; k < 30; k++) assert_int_equal(keys.columns[k], k);
        for (int32_t k = 0; k < min_i32(100, cases[i].n_distances); k++) assert_true(has(keys.distances, keys.n_distances, k));
        const int32_t n_free = keys.n_columns - 30;
        assert_int_equal(has(keys.columns, keys.n_columns, 500), n_free >= 1);
        assert_int_equal(has(keys.columns, keys.n_columns, 299), n_free >= 2);
        assert_int_equal(has(keys.columns, keys.n_columns, 300), n_free >= 3);
        assert_int_equal(has(keys.distances, keys.n_distances, 400), cases[i].n_distances > 100);
        assert_int_equal(has(keys.distances, keys.n_distances, 599), cases[i].n_distances > 101);
    }
    static const int32_t padded[][2] = { { 63, 1 }, { 64, 2 }, { 65, 2 }, { 128, 3 } };
    for (int i = 0; i < 4; i++) assert_int_equal(minference_padded_blocks(padded[i][0]), padded[i][1]);
}

static void blocks_are_selected_by_hand(void **state)
{
    (void)state;
    enum { N = 130 * LINE_BLOCK - 3, M = 129 };
    uint64_t *room = malloc(minference_room_bytes(N));
    int32_t order[M + 1];
    double scores[M + 1];
    assert_non_null(room);
    head_keys keys = minference_blocks_on(room, N);
    for (int32_t m = 0; m <= M; m++) {
        for (int32_t b = 0; b <= m; b++) scores[b] = b < 40 ? -1 : 1;      /* ties: the earlier ones; the own block against its score */
        scores[m] = -5;
        minference_select_blocks(&keys, room, m, scores, order);
    }
    for (int32_t k = 0; k <= M; k++) {
        const bool is_kept = k == M || (k >= 40 && k < M) || k < 100 - (M - 40) - 1;
        assert_int_equal(head_keys_visible(&keys, M * LINE_BLOCK, k * LINE_BLOCK), is_kept);
        if (k <= 99) assert_true(head_keys_visible(&keys, 99 * LINE_BLOCK + 5, k * LINE_BLOCK));
    }
    scores[0] = NAN;
    minference_select_blocks(&keys, room, M, scores, order);
    assert_int_equal(keys.kind, HEAD_DENSE);
    free(room);
}

/* ---------------------------------------------------------------- one prompt, q [n][heads][dim], k and v [kv][n][dim] */

typedef struct prompt {
    int32_t n, n_heads, n_kv_heads, head_dim;
    tmx_type type;
    tmx_attention_params params;
    tmx_attention_seq seq;
    void *q, *k, *v, *out;
    float *lse;
    head_keys *heads;
    uint64_t *room;
} prompt;

static size_t q_at(const prompt *p, int32_t pos, int32_t head)
{
    return ((size_t)pos * (size_t)p->n_heads + (size_t)head) * (size_t)p->head_dim;
}

static size_t k_at(const prompt *p, int32_t pos, int32_t kv_head)
{
    return ((size_t)kv_head * (size_t)p->n + (size_t)pos) * (size_t)p->head_dim;
}

static size_t n_out(const prompt *p) { return (size_t)p->n * (size_t)p->n_heads * (size_t)p->head_dim; }
static size_t out_bytes(const prompt *p) { return n_out(p) * bytes_of(p->type); }

static prompt *prompt_make(int32_t n, int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, tmx_type type)
{
    prompt *p = calloc(1, sizeof *p);
    assert_non_null(p);
    const size_t dim = (size_t)head_dim, n_kv = (size_t)n * (size_t)n_kv_heads * dim, width = dim * (size_t)n_heads;
    *p = (prompt){ .n = n, .n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim, .type = type };
    p->q = random_buffer(type, n_out(p));
    p->k = random_buffer(type, n_kv);
    p->v = random_buffer(type, n_kv);
    p->out = malloc(out_bytes(p));
    p->lse = malloc((size_t)n * (size_t)n_heads * sizeof *p->lse);
    p->heads = calloc((size_t)n_heads, sizeof *p->heads);
    p->room = malloc(minference_room_bytes(n) * (size_t)n_heads);
    assert_true(p->out != NULL && p->lse != NULL && p->heads != NULL && p->room != NULL);
    p->seq = (tmx_attention_seq){ .q = p->q, .k = p->k, .v = p->v, .out = p->out, .lse = p->lse, .n_q = n, .n_prompt = n };
    p->params = (tmx_attention_params){
        .q_type = type, .kv_type = type, .n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim, .q_pos_stride = width,
        .q_head_stride = dim, .out_pos_stride = width, .out_head_stride = dim, .k_pos_stride = dim,
        .k_head_stride = dim * (size_t)n, .v_pos_stride = dim, .v_head_stride = dim * (size_t)n, .seqs = &p->seq, .n_seqs = 1,
    };
    return p;
}

static void prompt_free(prompt *p)
{
    free(p->q), free(p->k), free(p->v), free(p->out), free(p->lse), free(p->heads), free(p->room), free(p);
}

/* Runs both steps, or attention alone where chosen is NULL, with scratch that holds nothing good, for the chunk from q_begin on. */
static void run_from(prompt *p, tmx_isa isa, tmx_pool *pool, const minference_head *chosen, int32_t q_begin)
{
    const size_t at = q_at(p, q_begin, 0) * bytes_of(p->type);
    p->seq.q = (char *)p->q + at;
    p->seq.out = (char *)p->out + at;
    p->seq.q_begin = q_begin;
    p->seq.n_q = p->n - q_begin;
    const size_t n_bytes = attn_lists_scratch_bytes(&p->params, TMX_PATTERN_MINFERENCE, p->n, pool_n_threads(pool));
    p->params.isa = isa;
    p->params.scratch = mem_alloc(n_bytes, 1);
    assert_non_null(p->params.scratch);
    memset(p->params.scratch, 0xff, n_bytes);
    memset(p->out, 0xff, out_bytes(p));
    if (chosen != NULL) attn_minference(&p->params, chosen, p->heads, p->room, pool);
    attn_over_heads(&p->params, p->heads, pool);
    mem_free(p->params.scratch);
    p->params.scratch = NULL;
}

static void run(prompt *p, tmx_isa isa, tmx_pool *pool, const minference_head *chosen) { run_from(p, isa, pool, chosen, 0); }

/* Relative L2 distance to the oracle over the predicate of p->heads. */
static double distance(const prompt *p)
{
    double *out = malloc(n_out(p) * sizeof *out), *lse = malloc((size_t)p->n * (size_t)p->n_heads * sizeof *lse), diff = 0, norm = 0;
    assert_true(out != NULL && lse != NULL);
    attn_heads_ref_f64(&p->params, p->heads, out, lse);
    for (size_t i = 0; i < n_out(p); i++) {
        const double x = (double)get(p->out, p->type, i);
        assert_true(isfinite(x));
        diff += (x - out[i]) * (x - out[i]);
        norm += out[i] * out[i];
    }
    for (int32_t r = 0; r < p->n * p->n_heads; r++) assert_true(fabs((double)p->lse[r] - lse[r]) <= 2e-3 * fmax(1, fabs(lse[r])));
    free(out);
    free(lse);
    return sqrt(diff / norm);
}

/* Measured: 3.0e-7, 2.2e-3 (bf16). */
static double limit_of(const prompt *p) { return p->type == TMX_TYPE_F32 ? 2e-6 : 4e-3; }

static void heads_match_the_oracle(void **state)
{
    (void)state;
    static const minference_head few[] = {
        { MINFERENCE_VERTICAL_SLASH, 40, 70 }, { MINFERENCE_A_SHAPE, 5, 33 }, { MINFERENCE_BLOCK_SPARSE, 0, 0 },
        { MINFERENCE_VERTICAL_SLASH, 100, 1 }, { MINFERENCE_A_SHAPE, 0, 1 }, { MINFERENCE_VERTICAL_SLASH, 1 << 24, 50 },
    };
    static const struct { int32_t n, n_heads, n_kv_heads, head_dim; } shapes[] = { { 257, 6, 2, 40 }, { 320, 6, 1, 33 }, { 383, 6, 3, 64 }, { 449, 6, 6, 7 } };
    double worst = 0;
    for (int i = 0; i < 8; i++) {
        prompt *p = prompt_make(shapes[i % 4].n, shapes[i % 4].n_heads, shapes[i % 4].n_kv_heads, shapes[i % 4].head_dim, i < 4 ? TMX_TYPE_F32 : TMX_TYPE_BF16);
        FOR_EACH_ISA(isa) {
            run(p, isa, NULL, few);
            uint64_t row[8][1];                        /* blocks the estimator would not choose: it keeps 100 */
            for (int b = 0; b < 8; b++) row[b][0] = random_u32() | 1u << b;
            p->heads[2] = (head_keys){ .kind = HEAD_BLOCKS, .n = p->n, .n_words = 1, .blocks = &row[0][0] };
            run(p, isa, NULL, NULL);
            worst = fmax(worst, distance(p) / limit_of(p));
            if (!(worst <= 1)) fail_msg("case %d, %s: %.3g of the limit", i, tmx_isa_name(isa), worst);
        }
        assert_int_equal(p->heads[0].kind, HEAD_LINES);
        assert_int_equal(p->heads[1].kind, HEAD_WINDOW);
        assert_int_equal(p->heads[5].kind, HEAD_DENSE);
        prompt_free(p);
    }
    print_message("worst distance %.2g of the limit\n", worst);
}

/* All distances, all columns, all blocks, and budgets that hold everything. */
static void everything_is_dense_to_the_bit(void **state)
{
    (void)state;
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 3, NULL), TMX_OK);
    for (int i = 0; i < 6; i++) {
        prompt *p = prompt_make(257 + i * 61, 6, 2, i % 2 ? 64 : 40, i < 3 ? TMX_TYPE_F32 : TMX_TYPE_BF16);
        void *expected = malloc(out_bytes(p));
        static lines all;
        bool is_all[1024], is_none[1024] = { [0] = true };
        memset(is_all, true, sizeof is_all);
        put_lines(&all, p->n, is_none, is_all);
        FOR_EACH_ISA(isa) {
            tmx_error err;
            p->params.isa = isa;
            if (tmx_attention(&p->params, pool, &err) != TMX_OK) fail_msg("%s", err.text);
            memcpy(expected, p->out, out_bytes(p));
            const minference_head whole[] = {
                { MINFERENCE_VERTICAL_SLASH, 0, p->n }, { MINFERENCE_VERTICAL_SLASH, p->n, 0 }, { MINFERENCE_A_SHAPE, 0, p->n },
                { MINFERENCE_A_SHAPE, p->n, 1 }, { MINFERENCE_BLOCK_SPARSE, 0, 0 }, { MINFERENCE_VERTICAL_SLASH, 1000, 6096 },
            };
            run(p, isa, i % 2 ? pool : NULL, whole);
            assert_memory_equal(p->out, expected, out_bytes(p));
            for (int h = 0; h < 6; h++) p->heads[h] = all.keys;
            run(p, isa, i % 2 ? pool : NULL, NULL);
            assert_memory_equal(p->out, expected, out_bytes(p));
            assert_int_equal(head_keys_pairs(&all.keys, 0), tmx_pattern_pairs(&dense, p->n, 0, p->n));
        }
        free(expected);
        prompt_free(p);
    }
    tmx_pool_free(pool);
}

/* ---------------------------------------------------------------- the estimate */

/* v and s of pattern/minference.h for one head, straight from it. */
static void scores_f64(const prompt *p, int32_t head, int32_t n_probe, double *by_key, double *by_distance)
{
    const int32_t kv_head = head / (p->n_heads / p->n_kv_heads);
    double *e = malloc((size_t)p->n * sizeof *e);
    assert_non_null(e);
    for (int32_t j = 0; j < p->n; j++) by_key[j] = by_distance[j] = 0;
    for (int32_t i = p->n - n_probe; i < p->n; i++) {
        double max = -INFINITY, sum = 0;
        for (int32_t j = 0; j <= i; j++) {
            e[j] = 0;
            for (size_t c = 0; c < (size_t)p->head_dim; c++) {
                e[j] += (double)get(p->q, p->type, q_at(p, i, head) + c) * (double)get(p->k, p->type, k_at(p, j, kv_head) + c);
            }
            e[j] /= sqrt((double)p->head_dim);
            max = fmax(max, e[j]);
        }
        for (int32_t j = 0; j <= i; j++) sum += exp(e[j] - max);
        for (int32_t j = 0; j <= i; j++) {
            by_key[j] += exp(e[j] - max) / sum;
            by_distance[i - j] += exp(e[j] - max) / sum;
        }
    }
    free(e);
}

static void the_reference_has_the_golden_scores(void **state)
{
    (void)state;
    prompt *p = prompt_make(6, 1, 1, 8, TMX_TYPE_F32);
    double by_key[6], by_distance[6];
    memset(p->q, 0, out_bytes(p));
    scores_f64(p, 0, 2, by_key, by_distance);
    for (int i = 0; i < 6; i++) {
        const double expected = i < 5 ? 1.0 / 5 + 1.0 / 6 : 1.0 / 6;
        assert_true(fabs(by_key[i] - expected) < 1e-12 && fabs(by_distance[i] - expected) < 1e-12);
    }
    prompt_free(p);
}

static void sharpen(prompt *p, float factor)
{
    for (size_t i = 0; i < n_out(p); i++) put(p->q, p->type, i, get(p->q, p->type, i) * factor);
}

/* A right choice for scores that differ from the exact ones by no more than rounding: as many as asked for, and nothing dropped
 * that is heavier than what is kept. */
static void check_choice(const double *exact, int32_t n, int32_t n_first, const int32_t *list, int32_t n_list, double slack)
{
    double least = INFINITY, dropped = 0;
    for (int32_t i = n_first; i < n; i++) {
        if (has(list, n_list, i)) least = fmin(least, exact[i]);
        else dropped = fmax(dropped, exact[i]);
    }
    assert_true(dropped <= least + slack);
}

static void estimates_match_f64(void **state)
{
    (void)state;
    static const struct { int32_t n, n_heads, n_kv_heads, head_dim; } shapes[] = { { 257, 2, 1, 64 }, { 400, 3, 3, 24 }, { 513, 4, 2, 33 } };
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 3, NULL), TMX_OK);
    for (int i = 0; i < 6; i++) {
        prompt *p = prompt_make(shapes[i % 3].n, shapes[i % 3].n_heads, shapes[i % 3].n_kv_heads, shapes[i % 3].head_dim, i < 3 ? TMX_TYPE_F32 : TMX_TYPE_BF16);
        const double slack = MINFERENCE_PROBE * (p->type == TMX_TYPE_F32 ? 1e-6 : 2e-4);
        minference_head chosen[4];
        double by_key[1024], by_distance[1024];
        sharpen(p, 3);
        for (int32_t h = 0; h < p->n_heads; h++) chosen[h] = (minference_head){ MINFERENCE_VERTICAL_SLASH, 45 + 10 * h, 120 + 7 * h };
        FOR_EACH_ISA(isa) {
            run_from(p, isa, isa % 2 ? pool : NULL, chosen, i % 2 * KEY_BLOCK);        /* a chunk: the end of the rows is the end */
            for (int32_t h = 0; h < p->n_heads; h++) {
                const head_keys *keys = &p->heads[h];
                scores_f64(p, h, MINFERENCE_PROBE, by_key, by_distance);
                assert_int_equal(keys->n_columns, chosen[h].a);
                assert_int_equal(keys->n_distances, chosen[h].b);
                check_choice(by_key, p->n, MINFERENCE_LEAST_COLUMNS, keys->columns, keys->n_columns, slack);
                check_choice(by_distance, p->n, MINFERENCE_NEAR_DISTANCES, keys->distances, keys->n_distances, slack);
            }
        }
        prompt_free(p);
    }
    tmx_pool_free(pool);
}

/* Block-sparse against the definition: means with the zeros of the padding, the largest products, the own block. */
static void blocks_match_f64(void **state)
{
    (void)state;
    enum { N = 104 * LINE_BLOCK - 11, NB = 104, DIM = 8 };
    static const minference_head chosen = { MINFERENCE_BLOCK_SPARSE, 0, 0 };
    prompt *p = prompt_make(N, 1, 1, DIM, TMX_TYPE_F32);
    static double mean[2][NB][DIM];
    for (int32_t i = 0; i < N; i++) {
        for (int c = 0; c < DIM; c++) {
            mean[0][i / LINE_BLOCK][c] += (double)((float *)p->q)[q_at(p, i, 0) + (size_t)c] / LINE_BLOCK;
            mean[1][i / LINE_BLOCK][c] += (double)((float *)p->k)[k_at(p, i, 0) + (size_t)c] / LINE_BLOCK;
        }
    }
    for (int i = 0; i < 2 * (int)tmx_isa_best(); i++) {
        const tmx_isa isa = (tmx_isa)(TMX_ISA_SCALAR + i / 2);
        const int32_t q_begin = i % 2 * 101 * LINE_BLOCK / KEY_BLOCK * KEY_BLOCK;      /* a prompt, a chunk of its last blocks */
        run_from(p, isa, NULL, &chosen, q_begin);
        assert_int_equal(p->heads[0].kind, HEAD_BLOCKS);
        for (int32_t m = q_begin / LINE_BLOCK; m < NB; m++) {
            double least = INFINITY, dropped = -INFINITY;
            int32_t n_kept = 0;
            for (int32_t b = 0; b <= m; b++) {
                double score = 0;
                for (int c = 0; c < DIM; c++) score += mean[0][m][c] * mean[1][b][c];
                const bool is_kept = head_keys_visible(&p->heads[0], m * LINE_BLOCK, b * LINE_BLOCK);
                n_kept += is_kept;
                if (is_kept && b != m) least = fmin(least, score);
                if (!is_kept) dropped = fmax(dropped, score);
            }
            assert_int_equal(n_kept, min_i32(m + 1, MINFERENCE_BLOCKS));
            assert_true(head_keys_visible(&p->heads[0], m * LINE_BLOCK, m * LINE_BLOCK) && dropped <= least + 1e-9);
        }
    }
    prompt_free(p);
}

/* Head 0 looks at one column, head 1 back by one distance; both are found among as many lines as there must be. */
static void planted_lines_are_found(void **state)
{
    (void)state;
    enum { N = 1500, DIM = 64, COLUMN = 700, DISTANCE = 900 };
    static const minference_head chosen[] = { { MINFERENCE_VERTICAL_SLASH, 34, 0 }, { MINFERENCE_VERTICAL_SLASH, 0, 110 } };
    FOR_EACH_ISA(isa) {
        prompt *p = prompt_make(N, 2, 1, DIM, TMX_TYPE_F32);
        for (int32_t i = 0; i < N; i++) {
            float *k = (float *)p->k + k_at(p, i, 0), *column = (float *)p->q + q_at(p, i, 0), *slash = (float *)p->q + q_at(p, i, 1);
            for (int c = 0; c < DIM; c++) k[c] *= 0.2f, column[c] *= 0.2f, slash[c] *= 0.2f;
            column[0] = 12;
            k[0] = i == COLUMN ? 12 : 0;
            for (int c = 1; c < 9; c += 2) {               /* four angles that meet again after more than N keys */
                const float speed = 0.0013f * powf(9.0f, (float)(c / 2));
                k[c] = 4 * cosf(speed * (float)i), k[c + 1] = 4 * sinf(speed * (float)i);
                slash[c] = 30 * cosf(speed * (float)(i - DISTANCE)), slash[c + 1] = 30 * sinf(speed * (float)(i - DISTANCE));
            }
        }
        run(p, isa, NULL, chosen);
        assert_true(has(p->heads[0].columns, p->heads[0].n_columns, COLUMN));
        assert_true(has(p->heads[1].distances, p->heads[1].n_distances, DISTANCE));
        for (int32_t q = COLUMN; q < N; q += 37) assert_true(head_keys_visible(&p->heads[0], q, COLUMN));
        for (int32_t q = DISTANCE; q < N; q += 37) assert_true(head_keys_visible(&p->heads[1], q, q - DISTANCE));
        const double density = (double)(head_keys_pairs(&p->heads[0], 0) + head_keys_pairs(&p->heads[1], 0)) / 2 / (double)tmx_pattern_pairs(&dense, N, 0, N);
        if (!(density < 0.35)) fail_msg("density %.3f", density);
        prompt_free(p);
    }
}

static void threads_never_move_a_bit(void **state)
{
    (void)state;
    static const minference_head chosen[] = {
        { MINFERENCE_VERTICAL_SLASH, 40, 70 }, { MINFERENCE_A_SHAPE, 5, 33 }, { MINFERENCE_BLOCK_SPARSE, 0, 0 }, { MINFERENCE_VERTICAL_SLASH, 90, 130 },
    };
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 4, NULL), TMX_OK);
    FOR_EACH_ISA(isa) {
        prompt *p = prompt_make(611, 4, 2, 48, TMX_TYPE_BF16);
        void *alone = malloc(out_bytes(p));
        assert_non_null(alone);
        run(p, isa, NULL, chosen);
        memcpy(alone, p->out, out_bytes(p));
        run(p, isa, pool, chosen);
        assert_memory_equal(p->out, alone, out_bytes(p));
        for (int32_t q_begin = 128; q_begin < 611 - MINFERENCE_PROBE; q_begin += 128) {    /* the rows of a chunk are those of the prompt that ends with it */
            const size_t at = q_at(p, q_begin, 0) * bytes_of(p->type);
            run_from(p, isa, pool, chosen, q_begin);
            assert_memory_equal((char *)p->out + at, (char *)alone + at, out_bytes(p) - at);
        }
        free(alone);
        prompt_free(p);
    }
    tmx_pool_free(pool);
}

static void damage_keeps_everything(void **state)
{
    (void)state;
    static const minference_head chosen[] = { { MINFERENCE_VERTICAL_SLASH, 0, 0 } };
    FOR_EACH_ISA(isa) {
        prompt *p = prompt_make(400, 1, 1, 16, TMX_TYPE_F32);
        put(p->k, TMX_TYPE_F32, k_at(p, 300, 0), NAN);
        run(p, isa, NULL, chosen);
        assert_int_equal(p->heads[0].kind, HEAD_DENSE);
        for (int32_t q = 0; q < 400; q++) assert_int_equal(isfinite(get(p->out, TMX_TYPE_F32, q_at(p, q, 0))), q < 300);
        prompt_free(p);
    }
}

static void sizes_are_checked(void **state)
{
    (void)state;
    static const struct { minference_head head; const char *text; } bad[] = {
        { { MINFERENCE_VERTICAL_SLASH, -1, 0 }, "heads[3].7 first size: -1, expected 0..16777216" },
        { { MINFERENCE_VERTICAL_SLASH, 0, (1 << 24) + 1 }, "heads[3].7 second size: 16777217, expected 0..16777216" },
        { { MINFERENCE_A_SHAPE, -1, 1 }, "heads[3].7 sink size: -1" }, { { MINFERENCE_A_SHAPE, 0, 0 }, "heads[3].7 window size: 0, expected 1..16777216" },
    };
    tmx_error err;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(minference_head_check(&bad[i].head, "heads[3].7", &err), TMX_E_ARG);
        assert_non_null(strstr(err.text, bad[i].text));
    }
    assert_int_equal(minference_check(&(minference)MINFERENCE_DEFAULTS, &err), TMX_OK);
    assert_int_equal(minference_check(&(minference){ 1, -2 }, &err), TMX_E_ARG);
    assert_non_null(strstr(err.text, "minference slash: -2, expected 0..16777216"));
    assert_int_equal(minference_check(&(minference){ 1 << 25, 2 }, &err), TMX_E_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_runs_are_the_golden_ones),
        cmocka_unit_test(runs_cover_the_lines),
        cmocka_unit_test(what_is_forced_and_what_is_tied),
        cmocka_unit_test(blocks_are_selected_by_hand),
        cmocka_unit_test(heads_match_the_oracle),
        cmocka_unit_test(everything_is_dense_to_the_bit),
        cmocka_unit_test(the_reference_has_the_golden_scores),
        cmocka_unit_test(estimates_match_f64),
        cmocka_unit_test(blocks_match_f64),
        cmocka_unit_test(planted_lines_are_found),
        cmocka_unit_test(threads_never_move_a_bit),
        cmocka_unit_test(damage_keeps_everything),
        cmocka_unit_test(sizes_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
