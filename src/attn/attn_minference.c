/* attn_minference.c - MInference: what the heads of a prompt keep, and attention over it.  A task of the estimate is one query head;
 * one of attention is TASK_ROWS rows of one head, longest first. */
#include "attn/attn_kernel.h"
#include "attn/attn_element.h"
#include "base/num.h"
#include "base/pool.h"

#include <assert.h>
#include <math.h>

enum { TASK_ROWS = 2 * LINE_BLOCK };
static_assert(MINFERENCE_PROBE % ATTN_MAX_BLOCK == 0, "the probe is whole blocks of rows");

/* Byte offsets into a thread's scratch; n = prompt.  The probe's part is laid out as FlexPrefill's is. */
typedef struct estimate_layout {
    attn_tail_layout tail;
    size_t mean_q, mean_k;         /* [line blocks][head_dim] f64 */
    size_t scores;                 /* [line blocks] f64 */
    size_t order;                  /* [n] int32 */
    size_t marks;                  /* [n / 64 + 1] */
    size_t n_bytes;
} estimate_layout;

static estimate_layout estimate_layout_of(int32_t head_dim, int32_t n)
{
    const size_t n_tokens = (size_t)n, n_blocks = (size_t)line_blocks_of(n), n_means = n_blocks * (size_t)head_dim;
    estimate_layout at = { .tail = attn_tail_layout_of(head_dim, 1) };
    at.tail.by_distance = at.tail.by_key + n_tokens * sizeof(double);
    at.mean_q = at.tail.by_distance + n_tokens * sizeof(double);
    at.mean_k = at.mean_q + n_means * sizeof(double);
    at.scores = at.mean_k + n_means * sizeof(double);
    at.marks = at.scores + n_blocks * sizeof(double);
    at.order = at.marks + (n_tokens / 64 + 1) * sizeof(uint64_t);
    at.n_bytes = align_up(at.order + n_tokens * sizeof(int32_t), MEM_ALIGN);
    return at;
}

size_t attn_minference_bytes(int32_t head_dim, int32_t n_ctx) { return estimate_layout_of(head_dim, n_ctx).n_bytes; }

typedef struct estimate_run {
    attn_job job;
    const minference_head *chosen;
    head_keys *found;
    uint64_t *room;
    estimate_layout at;
    char *scratch;
} estimate_run;

static int32_t end_of(const tmx_attention_params *p) { return p->seqs->q_begin + p->seqs->n_q; }

/* Means of blocks of LINE_BLOCK rows, a last short one padded with zeros. */
static void line_block_means(const void *x, tmx_type type, size_t stride, int32_t n, int32_t head_dim, double *means)
{
    for (int32_t begin = 0; begin < n; begin += LINE_BLOCK, means += head_dim) {
        attn_mean_of_rows(x, type, stride, begin, min_i32(n, begin + LINE_BLOCK), head_dim, LINE_BLOCK, means);
    }
}

static head_keys find_blocks(const estimate_run *run, int32_t head, char *scratch, uint64_t *room)
{
    const tmx_attention_params *p = run->job.params;
    const tmx_attention_seq *seq = p->seqs;
    const int32_t n = end_of(p), dim = p->head_dim;
    double *mean_q = (double *)(void *)(scratch + run->at.mean_q), *mean_k = (double *)(void *)(scratch + run->at.mean_k);
    double *scores = (double *)(void *)(scratch + run->at.scores);
    int32_t *order = (int32_t *)(void *)(scratch + run->at.order);
    const size_t q_at = (size_t)head * p->q_head_stride, k_at = (size_t)(head / run->job.n_group) * p->k_head_stride;
    line_block_means((const char *)seq->q + q_at * attn_element_bytes(p->q_type), p->q_type, p->q_pos_stride, seq->n_q, dim, mean_q);
    line_block_means((const char *)seq->k + k_at * attn_element_bytes(p->kv_type), p->kv_type, p->k_pos_stride, n, dim, mean_k);
    head_keys keys = minference_blocks_on(room, n);
    for (int32_t m = seq->q_begin / LINE_BLOCK; m < line_blocks_of(n); m++, mean_q += dim) {
        for (int32_t b = 0; b <= m; b++) {
            scores[b] = 0;
            for (int32_t d = 0; d < dim; d++) scores[b] += mean_q[d] * mean_k[(size_t)b * (size_t)dim + (size_t)d];
        }
        minference_select_blocks(&keys, room, m, scores, order);
    }
    return keys;
}

static head_keys find_lines(const estimate_run *run, int32_t head, char *scratch, uint64_t *room)
{
    const int32_t n = end_of(run->job.params);
    double *by_key = (double *)(void *)(scratch + run->at.tail.by_key);
    double *by_distance = (double *)(void *)(scratch + run->at.tail.by_distance);
    run->job.kernel->tail_mass(&run->job, head, MINFERENCE_PROBE, &run->at.tail, scratch);
    for (int32_t i = 0; i < n / 2; i++) {              /* the probe has distance n - 1 first */
        const double swap = by_distance[i];
        by_distance[i] = by_distance[n - 1 - i];
        by_distance[n - 1 - i] = swap;
    }
    return minference_select_lines(&run->chosen[head], n, by_key, by_distance, (int32_t *)(void *)(scratch + run->at.order),
                                   (uint64_t *)(void *)(scratch + run->at.marks), room);
}

static void run_estimate_task(void *ctx, int32_t head, int32_t thread)
{
    const estimate_run *run = ctx;
    const int32_t n = end_of(run->job.params);
    char *scratch = run->scratch + (size_t)thread * run->at.n_bytes;
    uint64_t *room = run->room + (size_t)head * (minference_room_bytes(n) / sizeof *room);
    if (minference_is_known(&run->chosen[head], n, &run->found[head])) return;
    const bool is_blocks = run->chosen[head].type == MINFERENCE_BLOCK_SPARSE;
    run->found[head] = is_blocks ? find_blocks(run, head, scratch, room) : find_lines(run, head, scratch, room);
}

static void assert_ready(const tmx_attention_params *p)
{
    assert(p->pattern.kind == TMX_PATTERN_DENSE && p->n_seqs == 1 && p->scratch != NULL);
    assert(p->seqs->q_begin % KEY_BLOCK == 0 && p->seqs->n_q >= MINFERENCE_PROBE && end_of(p) > 2 * KEY_BLOCK);
    (void)p;
}

void attn_minference(const tmx_attention_params *params, const minference_head *chosen, head_keys *found, uint64_t *room, tmx_pool *pool)
{
    assert_ready(params);
    estimate_run run = {
        .job = attn_job_of(params), .chosen = chosen,
        .found = found, .room = room, .scratch = params->scratch, .at = estimate_layout_of(params->head_dim, end_of(params)),
    };
    pool_run(pool, params->n_heads, run_estimate_task, &run);
}

/* ---- attention */

typedef struct heads_run {
    attn_job job;                  /* with heads */
    char *scratch;
    size_t thread_bytes;
} heads_run;

/* A head with a static pattern runs by it; another block by block of its lists. */
static void run_heads_task(void *ctx, int32_t index, int32_t thread)
{
    const heads_run *run = ctx;
    tmx_attention_params params = *run->job.params;
    const int32_t n_heads = params.n_heads, n_tasks = (params.seqs->n_q + TASK_ROWS - 1) / TASK_ROWS, head = index % n_heads;
    const int32_t begin = params.seqs->q_begin + (n_tasks - 1 - index / n_heads) * TASK_ROWS, end = min_i32(end_of(&params), begin + TASK_ROWS);
    const head_keys *keys = &run->job.heads[head];
    const bool is_static = keys->kind == HEAD_DENSE || keys->kind == HEAD_WINDOW;
    void *scratch = run->scratch + (size_t)thread * run->thread_bytes;
    attn_job job = run->job;
    job.params = &params;
    if (keys->kind == HEAD_WINDOW) {
        params.pattern = (tmx_pattern){ .kind = TMX_PATTERN_STREAMING, .n_sink = keys->n_sink, .n_window = keys->n_window };
    }
    if (is_static) job.heads = NULL;
    for (int32_t t = begin, t_end; t < end; t = t_end) {
        t_end = is_static ? end : min_i32(end, t + LINE_BLOCK);
        const attn_task task = { .kv_head = head / job.n_group, .head_begin = head, .n_heads = 1, .t_begin = t, .t_end = t_end };
        job.kernel->run(&job, &task, scratch);
    }
}

void attn_over_heads(const tmx_attention_params *params, const head_keys *heads, tmx_pool *pool)
{
    assert_ready(params);
    heads_run run = {
        .job = attn_job_of(params), .scratch = params->scratch, .thread_bytes = attn_layout_of(params->head_dim).n_bytes,
    };
    run.job.heads = heads;
    pool_run(pool, (params->seqs->n_q + TASK_ROWS - 1) / TASK_ROWS * params->n_heads, run_heads_task, &run);
}
