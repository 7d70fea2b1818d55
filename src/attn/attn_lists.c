/* attn_lists.c - attention over key lists, and the estimators that make them.  One sequence a call; tasks are longest first
 * (the last query block sees most), so that the end of a call is short pieces. */
#include "attn/attn_kernel.h"
#include "attn/attn_element.h"
#include "base/num.h"
#include "base/pool.h"

#include <assert.h>
#include <math.h>

static int32_t end_of(const tmx_attention_params *p) { return p->seqs->q_begin + p->seqs->n_q; }

static size_t estimate_bytes(const tmx_attention_params *p, tmx_pattern_kind kind, int32_t n_ctx)
{
    if (kind == TMX_PATTERN_MINFERENCE) return attn_minference_bytes(p->head_dim, n_ctx);
    if (kind == TMX_PATTERN_FLEXPREFILL) return attn_tail_layout_of(p->head_dim, n_ctx).n_bytes;
    return attn_mass_layout_of(p->head_dim, p->n_heads / p->n_kv_heads, key_blocks_of(n_ctx)).n_bytes;
}

size_t attn_lists_scratch_bytes(const tmx_attention_params *params, tmx_pattern_kind kind, int32_t n_ctx, int32_t n_threads)
{
    if (kind == TMX_PATTERN_S2O) return attn_s2o_scratch_bytes(params, n_ctx, n_threads);
    const size_t run = attn_layout_of(params->head_dim).n_bytes, estimate = estimate_bytes(params, kind, n_ctx);
    return (size_t)n_threads * (run > estimate ? run : estimate);
}

/* What attn.h promises for a call. */
static void assert_ready(const tmx_attention_params *p, const key_lists *lists)
{
    assert(p->pattern.kind == TMX_PATTERN_DENSE && p->n_seqs == 1 && p->scratch != NULL && lists->n_heads == p->n_heads);
    assert(p->seqs->q_begin == lists->first_block * KEY_BLOCK && key_blocks_of(p->seqs->n_q) == lists->n_blocks);
    (void)p, (void)lists;
}

/* ---- XAttention */

typedef struct mass_run {
    attn_job job;
    const xattention *method;
    const key_lists *lists;
    attn_mass_layout at;
    float scale;
    char *scratch;
} mass_run;

static void run_mass_task(void *ctx, int32_t index, int32_t thread)
{
    const mass_run *run = ctx;
    const int32_t n_kv_heads = run->job.params->n_kv_heads, n_group = run->job.n_group;
    const key_lists *lists = run->lists;
    const attn_mass_task task = { .kv_head = index % n_kv_heads, .stride = run->method->stride, .scale = run->scale,
                                  .q_block = lists->first_block + lists->n_blocks - 1 - index / n_kv_heads };
    char *scratch = run->scratch + (size_t)thread * run->at.n_bytes;
    const double *mass = (const double *)(const void *)(scratch + run->at.mass);
    int32_t *order = (int32_t *)(void *)(scratch + run->at.order);
    if (task.q_block >= 2) run->job.kernel->block_mass(&run->job, &task, &run->at, scratch);
    for (int32_t i = 0; i < n_group; i++) {
        const int32_t head = task.kv_head * n_group + i;
        uint64_t *list = key_list_of(lists, head, task.q_block);
        if (task.q_block >= 2) {
            const double threshold = xattention_threshold(run->method, head);
            xattention_select(mass + (size_t)i * (size_t)(task.q_block + 1), task.q_block, threshold, list, order);
        } else {                   /* blocks 0 and 1 keep all there is */
            for (int32_t b = 0; b <= task.q_block; b++) key_list_add(list, b);
        }
    }
}

void attn_xattention(const tmx_attention_params *params, const xattention *method, key_lists *lists, tmx_pool *pool)
{
    assert_ready(params, lists);
    const double scale = 1.0 / (sqrt((double)params->head_dim) * method->stride * method->norm);
    mass_run run = {
        .job = attn_job_of(params),
        .method = method, .lists = lists, .scale = (float)scale, .scratch = params->scratch,
        .at = attn_mass_layout_of(params->head_dim, params->n_heads / params->n_kv_heads, key_blocks_of(end_of(params))),
    };
    pool_run(pool, lists->n_blocks * params->n_kv_heads, run_mass_task, &run);
}

/* ---- FlexPrefill */

typedef struct tail_run {
    attn_job job;
    const flexprefill *method;
    key_lists *lists;
    attn_tail_layout at;
    char *scratch;
} tail_run;

static void block_means(const void *x, tmx_type type, size_t stride, int32_t n, int32_t head_dim, double *means)
{
    for (int32_t b = 0; b < key_blocks_of(n); b++, means += head_dim) {
        const int32_t begin = b * KEY_BLOCK, end = min_i32(n, begin + KEY_BLOCK);
        attn_mean_of_rows(x, type, stride, begin, end, head_dim, end - begin, means);
    }
}

/* p[i] = softmax over i < n of scale q . keys[i] */
static void softmax_row(const double *q, const double *keys, int32_t n, int32_t head_dim, double scale, double *p)
{
    double max = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++, keys += head_dim) {
        p[i] = 0;
        for (int32_t d = 0; d < head_dim; d++) p[i] += q[d] * keys[d];
        p[i] *= scale;
        max = fmax(max, p[i]);
    }
    for (int32_t i = 0; i < n; i++) sum += p[i] = exp(p[i] - max);
    for (int32_t i = 0; i < n; i++) p[i] /= sum;
}

static void run_tail_task(void *ctx, int32_t head, int32_t thread)
{
    const tail_run *run = ctx;
    const tmx_attention_params *p = run->job.params;
    const int32_t n = end_of(p), n_q = p->seqs->n_q, nb = key_blocks_of(n), first = run->lists->first_block, dim = p->head_dim;
    const double scale = (double)run->job.scale;
    char *scratch = run->scratch + (size_t)thread * run->at.n_bytes;
    double *mean_q = (double *)(void *)(scratch + run->at.mean_q), *mean_k = (double *)(void *)(scratch + run->at.mean_k);
    double *pooled = (double *)(void *)(scratch + run->at.pooled), *map = (double *)(void *)(scratch + run->at.map);
    int32_t *order = (int32_t *)(void *)(scratch + run->at.order);
    const size_t kv_head = (size_t)(head / run->job.n_group);
    const char *q = (const char *)p->seqs->q + (size_t)head * p->q_head_stride * attn_element_bytes(p->q_type);
    const char *k = (const char *)p->seqs->k + kv_head * p->k_head_stride * attn_element_bytes(p->kv_type);

    run->job.kernel->tail_mass(&run->job, head, KEY_BLOCK, &run->at, scratch);
    block_means(k, p->kv_type, p->k_pos_stride, n, dim, mean_k);
    attn_mean_of_rows(q, p->q_type, p->q_pos_stride, n_q - KEY_BLOCK, n_q, dim, KEY_BLOCK, mean_q);
    softmax_row(mean_q, mean_k, nb, dim, scale, pooled);
    const flex_head found = { .n = n, .by_key = (const double *)(const void *)(scratch + run->at.by_key), .pooled = pooled,
                              .by_distance = (const double *)(const void *)(scratch + run->at.by_distance) };
    double *block_mass = (double *)(void *)(scratch + run->at.block_mass);
    if (!flexprefill_select(run->method, &found, run->lists, head, block_mass, order)) return;
    block_means(q, p->q_type, p->q_pos_stride, n_q, dim, mean_q);
    for (int32_t b = first; b < nb; b++) {
        softmax_row(mean_q + (b - first) * dim, mean_k, b + 1, dim, scale, map + flexprefill_map_row(b) - flexprefill_map_row(first));
    }
    flexprefill_select_tiles(run->method, map, run->lists, head, order);
}

void attn_flexprefill(const tmx_attention_params *params, const flexprefill *method, key_lists *lists, tmx_pool *pool)
{
    assert_ready(params, lists);
    assert(params->seqs->n_q >= KEY_BLOCK && end_of(params) > 2 * KEY_BLOCK);
    tail_run run = {
        .job = attn_job_of(params),
        .method = method, .lists = lists, .scratch = params->scratch, .at = attn_tail_layout_of(params->head_dim, end_of(params)),
    };
    pool_run(pool, params->n_heads, run_tail_task, &run);
}

/* ---- attention */

typedef struct list_run {
    attn_job job;
    char *scratch;
    size_t thread_bytes;
} list_run;

static void run_list_task(void *ctx, int32_t index, int32_t thread)
{
    const list_run *run = ctx;
    const key_lists *lists = run->job.lists;
    const int32_t head = index % lists->n_heads, q_block = lists->first_block + lists->n_blocks - 1 - index / lists->n_heads;
    const attn_task task = { .kv_head = head / run->job.n_group, .head_begin = head, .n_heads = 1, .t_begin = q_block * KEY_BLOCK,
                             .t_end = min_i32((q_block + 1) * KEY_BLOCK, end_of(run->job.params)) };
    run->job.kernel->run(&run->job, &task, run->scratch + (size_t)thread * run->thread_bytes);
}

void attn_over_lists(const tmx_attention_params *params, const key_lists *lists, tmx_pool *pool)
{
    assert_ready(params, lists);
    list_run run = {
        .job = attn_job_of(params),
        .scratch = params->scratch, .thread_bytes = attn_layout_of(params->head_dim).n_bytes,
    };
    run.job.lists = lists;
    pool_run(pool, lists->n_blocks * lists->n_heads, run_list_task, &run);
}
