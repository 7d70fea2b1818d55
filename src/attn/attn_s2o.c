/* attn_s2o.c - S2O: segment by segment, first every head's orders of keys and rows, then attention, whose tasks are row tiles.
 * The orders of one segment are all that is kept: n_heads (n_ctx + segment) integers. */
#include "attn/attn_kernel.h"
#include "attn/attn_element.h"
#include "base/clock.h"
#include "base/layout.h"
#include "base/num.h"
#include "base/pool.h"

#include <assert.h>
#include <math.h>

/* What a thread needs to rank. */
typedef struct rank_scratch {
    float *mean, *guide;           /* [d_pad] */
    float *score;                  /* [n]: keys, then rows */
    int32_t *order;                /* [n] */
    uint32_t *sort;                /* [3 n] */
} rank_scratch;

static size_t rank_lay_out(rank_scratch *r, int32_t head_dim, int32_t n, void *base)
{
    layout at = { .base = base };
    r->mean = layout_rows(&at, 1, attn_d_pad(head_dim), sizeof(float));
    r->guide = layout_rows(&at, 1, attn_d_pad(head_dim), sizeof(float));
    r->score = layout_rows(&at, 1, (size_t)n, sizeof(float));
    r->order = layout_rows(&at, 1, (size_t)n, sizeof(int32_t));
    r->sort = layout_rows(&at, 3, (size_t)n, sizeof(uint32_t));
    return (size_t)at.n_bytes;
}

static size_t thread_bytes(int32_t head_dim, int32_t n)
{
    rank_scratch ignored;
    const size_t run = align_up(attn_layout_of(head_dim).n_bytes, MEM_ALIGN), rank = rank_lay_out(&ignored, head_dim, n, NULL);
    return run > rank ? run : rank;
}

/* What all threads share of the segment at work. */
typedef struct s2o_orders {
    int32_t *keys;                 /* [n_heads][key_stride] */
    int32_t *rows;                 /* [n_heads][row_stride] */
    int32_t *n_seen;               /* [n_heads][row_stride / S2O_ROW_TILE] */
    bool *is_ranked;               /* [n_heads]; false: a score is no number */
    size_t key_stride, row_stride;
} s2o_orders;

static size_t orders_lay_out(s2o_orders *o, int32_t n_heads, int32_t n_ctx, int32_t n_q, void *base)
{
    const size_t heads = (size_t)n_heads;
    layout at = { .base = base };
    o->key_stride = (size_t)n_ctx;
    o->row_stride = align_up((size_t)min_i32(n_q, S2O_MAX_SEGMENT), S2O_ROW_TILE);
    o->keys = layout_rows(&at, heads, o->key_stride, sizeof(int32_t));
    o->rows = layout_rows(&at, heads, o->row_stride, sizeof(int32_t));
    o->n_seen = layout_rows(&at, heads, o->row_stride / S2O_ROW_TILE, sizeof(int32_t));
    o->is_ranked = layout_rows(&at, heads, 1, sizeof(bool));
    return (size_t)at.n_bytes;
}

size_t attn_s2o_scratch_bytes(const tmx_attention_params *params, int32_t n_ctx, int32_t n_threads)
{
    s2o_orders ignored;
    return orders_lay_out(&ignored, params->n_heads, n_ctx, params->seqs->n_q, NULL)
         + (size_t)n_threads * thread_bytes(params->head_dim, n_ctx);
}

typedef struct s2o_run {
    attn_job job;
    const s2o *method;
    s2o_orders orders;
    int32_t begin, end;            /* the segment */
    char *scratch;
    size_t thread_bytes;
} s2o_run;

/* ---- the orders */

static void row_f32(float *to, const void *x, tmx_type type, size_t at, int32_t n)
{
    for (int32_t d = 0; d < n; d++) {
        to[d] = (float)attn_element(x, type, at + (size_t)d);
    }
}

enum { DOT_SUMS = 8 };
static_assert(ATTN_DIM_PAD % DOT_SUMS == 0, "whole steps");

/* a . b over n values, a multiple of DOT_SUMS; one sum a lane, so that the compiler may use vectors. */
static float dot(const float *a, const float *b, size_t n)
{
    float sum[DOT_SUMS] = { 0 };
    for (size_t d = 0; d < n; d += DOT_SUMS) {
        for (size_t i = 0; i < DOT_SUMS; i++) sum[i] += a[d + i] * b[d + i];
    }
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

/* A head's rows or keys, from position 0. */
typedef struct rows_of {
    const char *data;
    size_t stride;
    tmx_type type;
} rows_of;

/* score[i] = with . row begin + i; false if one is no number. */
static bool score_rows(const rows_of *x, int32_t begin, int32_t end, const float *with, int32_t head_dim, float *score)
{
    float row[ATTN_MAX_DIM + ATTN_DIM_PAD] = { 0 };
    bool is_finite = true;
    for (int32_t i = begin; i < end; i++) {
        row_f32(row, x->data, x->type, (size_t)i * x->stride, head_dim);
        score[i - begin] = dot(row, with, attn_d_pad(head_dim));
        is_finite &= isfinite(score[i - begin]) != 0;
    }
    return is_finite;
}

/* Sums are f64, rounded once.  x [d_pad], zero behind head_dim. */
static void mean_row(const rows_of *x, int32_t begin, int32_t end, int32_t head_dim, float *mean)
{
    double exact[ATTN_MAX_DIM];
    attn_mean_of_rows(x->data, x->type, x->stride, begin, end, head_dim, end - begin, exact);
    for (size_t d = 0; d < attn_d_pad(head_dim); d++) mean[d] = d < (size_t)head_dim ? (float)exact[d] : 0;
}

/* guide = sum over keys [n_forced, n) of exp(scale (r - max)) K: its length orders nothing, so it is not normalised. */
static void guide_of(const rows_of *k, const float *r, int32_t n_forced, int32_t n, float scale, int32_t head_dim, float *guide)
{
    float row[ATTN_MAX_DIM], max = -INFINITY;
    double sum[ATTN_MAX_DIM] = { 0 };
    for (int32_t j = n_forced; j < n; j++) max = fmaxf(max, r[j]);
    for (int32_t j = n_forced; j < n; j++) {
        const float weight = expf(scale * (r[j] - max));
        if (weight < 0x1p-24f) continue;               /* it could not move the sum */
        row_f32(row, k->data, k->type, (size_t)j * k->stride, head_dim);
        for (int32_t d = 0; d < head_dim; d++) sum[d] += (double)(weight * row[d]);
    }
    for (size_t d = 0; d < attn_d_pad(head_dim); d++) guide[d] = d < (size_t)head_dim ? (float)sum[d] : 0;
}

static void run_rank_task(void *ctx, int32_t head, int32_t thread)
{
    const s2o_run *run = ctx;
    const tmx_attention_params *p = run->job.params;
    const tmx_attention_seq *seq = p->seqs;
    const int32_t n = run->begin, n_rows = run->end - run->begin, n_forced = min_i32(run->method->sink, n), dim = p->head_dim;
    const size_t kv_head = (size_t)(head / run->job.n_group);
    const rows_of q = { .type = p->q_type, .stride = p->q_pos_stride,
                        .data = (const char *)seq->q + (size_t)head * p->q_head_stride * attn_element_bytes(p->q_type) };
    const rows_of k = { .type = p->kv_type, .stride = p->k_pos_stride,
                        .data = (const char *)seq->k + kv_head * p->k_head_stride * attn_element_bytes(p->kv_type) };
    const int32_t q_begin = run->begin - seq->q_begin;
    int32_t *keys = run->orders.keys + (size_t)head * run->orders.key_stride;
    int32_t *rows = run->orders.rows + (size_t)head * run->orders.row_stride;
    rank_scratch at;
    (void)rank_lay_out(&at, dim, max_i32(n, n_rows), run->scratch + (size_t)thread * run->thread_bytes);

    for (int32_t i = 0; i < n_rows; i++) rows[i] = run->begin + i;
    mean_row(&q, q_begin, q_begin + n_rows, dim, at.mean);
    bool *is_ranked = &run->orders.is_ranked[head];
    *is_ranked = score_rows(&k, 0, n, at.mean, dim, at.score);
    if (!*is_ranked) return;
    s2o_rank(at.score + n_forced, n - n_forced, at.order, at.sort);
    for (int32_t j = 0; j < n_forced; j++) keys[j] = j;
    for (int32_t j = n_forced; j < n; j++) keys[j] = n_forced + at.order[j - n_forced];
    if (n == n_forced || run->method->guide == 0) return;
    guide_of(&k, at.score, n_forced, n, run->job.scale, dim, at.guide);
    if (!score_rows(&q, q_begin, q_begin + n_rows, at.guide, dim, at.score)) return;
    s2o_rank(at.score, n_rows, at.order, at.sort);
    for (int32_t i = 0; i < n_rows; i++) rows[i] = run->begin + at.order[i];
}

/* ---- attention */

static void run_ranked_task(void *ctx, int32_t index, int32_t thread)
{
    const s2o_run *run = ctx;
    const s2o_orders *orders = &run->orders;
    const int32_t n_heads = run->job.params->n_heads, head = index % n_heads, tile = index / n_heads;
    const int32_t first = tile * S2O_ROW_TILE, n_rows = min_i32(S2O_ROW_TILE, run->end - run->begin - first);
    const attn_task task = { .kv_head = head / run->job.n_group, .head_begin = head, .n_heads = 1, .t_end = n_rows,
                             .rows = orders->rows + (size_t)head * orders->row_stride + first };
    const attn_ranked_keys ranked = { .method = run->method, .begin = run->begin, .end = run->end,
                                      .keys = orders->is_ranked[head] ? orders->keys + (size_t)head * orders->key_stride : NULL };
    orders->n_seen[(size_t)head * (orders->row_stride / S2O_ROW_TILE) + (size_t)tile] =
        run->job.kernel->run_ranked(&run->job, &task, &ranked, run->scratch + (size_t)thread * run->thread_bytes);
}

s2o_result attn_s2o(const tmx_attention_params *params, const s2o *method, tmx_pool *pool, s2o_watch *watch)
{
    const tmx_attention_seq *seq = params->seqs;
    const int32_t n_ctx = seq->q_begin + seq->n_q;
    assert(params->pattern.kind == TMX_PATTERN_DENSE && params->n_seqs == 1 && params->scratch != NULL);
    assert(seq->q_begin % method->segment == 0);
    s2o_run run = {
        .job = attn_job_of(params), .method = method,
        .thread_bytes = thread_bytes(params->head_dim, n_ctx),
    };
    run.scratch = (char *)params->scratch + orders_lay_out(&run.orders, params->n_heads, n_ctx, seq->n_q, params->scratch);
    s2o_result result = { 0 };
    for (run.begin = seq->q_begin; run.begin < n_ctx; run.begin = run.end) {
        run.end = min_i32(n_ctx, run.begin + method->segment);
        const int32_t n_rows = run.end - run.begin, n_tiles = (n_rows + S2O_ROW_TILE - 1) / S2O_ROW_TILE;
        const double start = now_ms();
        pool_run(pool, params->n_heads, run_rank_task, &run);
        result.estimate_ms += now_ms() - start;
        pool_run(pool, n_tiles * params->n_heads, run_ranked_task, &run);
        for (int32_t head = 0; head < params->n_heads; head++) {
            const size_t tiles_at = (size_t)head * (run.orders.row_stride / S2O_ROW_TILE);
            result.n_pairs += (int64_t)n_rows * (n_rows + 1) / 2;
            for (int32_t tile = 0; tile < n_tiles; tile++) {
                const int32_t first = tile * S2O_ROW_TILE, n = min_i32(S2O_ROW_TILE, n_rows - first);
                const s2o_visit visit = { .head = head, .begin = run.begin, .end = run.end, .n_rows = n,
                                          .n_keys = run.orders.n_seen[tiles_at + (size_t)tile],
                                          .rows = run.orders.rows + (size_t)head * run.orders.row_stride + first,
                                          .keys = run.orders.is_ranked[head] ? run.orders.keys + (size_t)head * run.orders.key_stride : NULL };
                result.n_pairs += (int64_t)n * visit.n_keys;
                if (watch != NULL) watch->see(watch, &visit);
            }
        }
    }
    return result;
}
