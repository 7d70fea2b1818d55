/* chunk_rows.c - everything between the products on the CPU: a few rows a task, each row by itself. */
#include "base/pool.h"
#include "gguf/blocks.h"
#include "run/cpu_run.h"

enum { ROWS_PER_TASK = 16 };

static void for_rows(const chunk *c, pool_task *run, void *ctx)
{
    pool_run(c->s->pool, (c->n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, run, ctx);
}

static int32_t task_end(const chunk *c, int32_t task)
{
    const int32_t end = (task + 1) * ROWS_PER_TASK;
    return end < c->n_rows ? end : c->n_rows;
}

static const segment *segment_of(const chunk *c, int32_t row)
{
    const segment *g = c->s->segments;
    while (row >= g->row + g->n_rows) g++;
    return g;
}

/* Token embeddings and RoPE angles. */
static void embed_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const chunk *c = ctx;
    const tmx_session *s = c->s;
    cpu_run *r = s->state;
    const model_shape *m = &s->model->tensors.shape;
    const gguf_tensor *table = s->model->tensors.token_embd;
    const block_format *format = block_format_find(table->type);
    const size_t row_bytes = block_row_bytes(format, (size_t)m->n_embd), n_angles = (size_t)m->n_rot / 2;
    for (int32_t row = task * ROWS_PER_TASK; row < task_end(c, task); row++) {
        const segment *g = segment_of(c, row);
        const int32_t at = row - g->row;
        format->to_f32((const char *)table->data + (size_t)g->tokens[at] * row_bytes,
                       r->act.x + (size_t)row * (size_t)m->n_embd, (size_t)m->n_embd);
        rope_angles(g->q_begin + at, m->rope_freq_base, m->n_rot, s->model->rope_divisor,
                    r->act.cos + (size_t)row * n_angles, r->act.sin + (size_t)row * n_angles);
    }
}

typedef struct norm_job { const chunk *c; const float *weight; } norm_job;

static void norm_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const norm_job *job = ctx;
    const tmx_session *s = job->c->s;
    cpu_run *r = s->state;
    const tmx_model_info *m = &s->model->info;
    for (int32_t row = task * ROWS_PER_TASK; row < task_end(job->c, task); row++) {
        r->rows->rmsnorm(r->act.x + (size_t)row * (size_t)m->n_embd, job->weight, m->rms_eps, m->n_embd,
                         act_row(r, r->act.normed, row, (size_t)m->n_embd), r->act_type);
    }
}

/* Heads of the fused product: q turned into act.q, k turned and v as it is into the cache.  In the last layer the product
 * holds k and v only. */
static void place_heads(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const chunk *c = ctx;
    const tmx_session *s = c->s;
    cpu_run *r = s->state;
    const model_shape *m = &s->model->tensors.shape;
    const size_t head_dim = (size_t)m->head_dim, n_angles = (size_t)m->n_rot / 2;
    const int32_t n_q_heads = chunk_is_last_layer(c) ? 0 : m->n_heads;
    const size_t width = (size_t)(n_q_heads + 2 * m->n_kv_heads) * head_dim;
    for (int32_t row = task * ROWS_PER_TASK; row < task_end(c, task); row++) {
        const segment *g = segment_of(c, row);
        const int32_t position = g->q_begin + row - g->row;
        const float *cos = r->act.cos + (size_t)row * n_angles, *sin = r->act.sin + (size_t)row * n_angles;
        const float *head = r->act.qkv + (size_t)row * width;
        char *q = act_row(r, r->act.q, row, (size_t)m->n_heads * head_dim);
        for (int32_t h = 0; h < n_q_heads; h++, head += head_dim, q += head_dim * type_bytes(r->act_type)) {
            r->rows->rope(head, cos, sin, m->n_rot, m->head_dim, m->rope, q, r->act_type);
        }
        for (int32_t h = 0; h < m->n_kv_heads; h++, head += head_dim) {
            r->rows->rope(head, cos, sin, m->n_rot, m->head_dim, m->rope,
                          kv_row(&r->kv, r->kv.k, c->layer, g->seq, h, position), r->kv.type);
        }
        for (int32_t h = 0; h < m->n_kv_heads; h++, head += head_dim) {
            r->rows->convert(head, m->head_dim, kv_row(&r->kv, r->kv.v, c->layer, g->seq, h, position), r->kv.type);
        }
    }
}

static void gate_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const chunk *c = ctx;
    const tmx_session *s = c->s;
    cpu_run *r = s->state;
    const size_t n_ff = (size_t)s->model->info.n_ff;
    for (int32_t row = task * ROWS_PER_TASK; row < task_end(c, task); row++) {
        const float *gate = r->act.gate_up + (size_t)row * 2 * n_ff;
        r->rows->swiglu(gate, gate + n_ff, (int32_t)n_ff, act_row(r, r->act.gated, row, n_ff), r->act_type);
    }
}

void cpu_embed(chunk *c) { for_rows(c, embed_rows, c); }
void cpu_norm_rows(chunk *c, const float *weight) { for_rows(c, norm_rows, &(norm_job){ .c = c, .weight = weight }); }
void cpu_place_heads(chunk *c) { for_rows(c, place_heads, c); }
void cpu_gate(chunk *c) { for_rows(c, gate_rows, c); }
