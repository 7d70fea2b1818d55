/* chunk_rows.c - everything between the products on the CPU: a few rows a task, each row by itself. */
#include "base/pool.h"
#include "gguf/blocks.h"
#include "run/cpu_run.h"
#include "run/heads.h"

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

void cpu_embed_token(const tmx_session *s, int32_t token, float *x)
{
    const gguf_tensor *table = s->model->tensors.token_embd;
    const block_format *format = block_format_find(table->type);
    const size_t n_embd = (size_t)s->model->info.n_embd;
    format->to_f32((const char *)table->data + (size_t)token * block_row_bytes(format, n_embd), x, n_embd);
    const float scale = s->model->tensors.shape.embedding_scale;
    for (size_t i = 0; scale != 0 && i < n_embd; i++) x[i] *= scale;
}

void cpu_angles(const tmx_session *s, int32_t position, int32_t row)
{
    const cpu_run *r = s->state;
    const activations *a = &r->act;
    const size_t at = (size_t)row * ((size_t)s->model->tensors.shape.n_rot / 2);
    if (r->rope != NULL) rope_angles(position, r->rope, a->cos + at, a->sin + at);
    if (r->rope_window != NULL) rope_angles(position, r->rope_window, a->window_cos + at, a->window_sin + at);
}

/* Token embeddings and RoPE angles. */
static void embed_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const chunk *c = ctx;
    const tmx_session *s = c->s;
    const cpu_run *r = s->state;
    for (int32_t row = task * ROWS_PER_TASK; row < task_end(c, task); row++) {
        const segment *g = segment_of(c, row);
        const int32_t at = row - g->row;
        cpu_embed_token(s, g->tokens[at], r->act.x + (size_t)row * (size_t)s->model->info.n_embd);
        cpu_angles(s, g->q_begin + at, row);
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

/* x += norm(branch); the branch is normed in its own place first. */
static void add_branch_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const norm_job *job = ctx;
    const cpu_run *r = job->c->s->state;
    const tmx_model_info *m = &job->c->s->model->info;
    for (int32_t row = task * ROWS_PER_TASK; row < task_end(job->c, task); row++) {
        const size_t at = (size_t)row * (size_t)m->n_embd;
        float *branch = r->act.branch + at, *x = r->act.x + at;
        r->rows->rmsnorm(branch, job->weight, m->rms_eps, m->n_embd, branch, TMX_TYPE_F32);
        for (int32_t i = 0; i < m->n_embd; i++) x[i] += branch[i];
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
    const bool has_window = tmx_model_layer_has_window(&s->model->info, c->layer);
    const float *cos_0 = has_window ? r->act.window_cos : r->act.cos, *sin_0 = has_window ? r->act.window_sin : r->act.sin;
    for (int32_t row = task * ROWS_PER_TASK; row < task_end(c, task); row++) {
        const segment *g = segment_of(c, row);
        const int32_t position = g->q_begin + row - g->row;
        const float *cos = cos_0 + (size_t)row * n_angles, *sin = sin_0 + (size_t)row * n_angles;
        float *head = r->act.qkv + (size_t)row * width;
        heads_finish(s->model, r->rows, c->layer, n_q_heads, m->n_kv_heads, true, head);
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

void cpu_gate_row(const tmx_session *s, const float *gate, const float *up, void *gated, tmx_type type)
{
    const cpu_run *r = s->state;
    const bool is_gelu = s->model->tensors.shape.gate == GATE_GELU_TANH;
    (is_gelu ? r->rows->geglu : r->rows->swiglu)(gate, up, s->model->info.n_ff, gated, type);
}

typedef struct gate_job { const chunk *c; int32_t n_rows; } gate_job;

static void gate_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const gate_job *job = ctx;
    const tmx_session *s = job->c->s;
    cpu_run *r = s->state;
    const size_t n_ff = (size_t)s->model->info.n_ff;
    for (int32_t row = task * ROWS_PER_TASK; row < (task + 1) * ROWS_PER_TASK && row < job->n_rows; row++) {
        const float *gate = r->act.gate_up + (size_t)row * 2 * n_ff;
        cpu_gate_row(s, gate, gate + n_ff, act_row(r, r->act.gated, row, n_ff), r->act_type);
    }
}

void cpu_embed(chunk *c) { for_rows(c, embed_rows, c); }
void cpu_norm_rows(chunk *c, const float *weight) { for_rows(c, norm_rows, &(norm_job){ .c = c, .weight = weight }); }
void cpu_add_branch(chunk *c, const float *weight) { for_rows(c, add_branch_rows, &(norm_job){ .c = c, .weight = weight }); }
void cpu_place_heads(chunk *c) { for_rows(c, place_heads, c); }
void cpu_gate(chunk *c) { cpu_gate_rows(c, c->n_rows); }

void cpu_gate_rows(chunk *c, int32_t n_rows)
{
    pool_run(c->s->pool, (n_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK, gate_rows, &(gate_job){ .c = c, .n_rows = n_rows });
}
