/* probe_rows.c - everything between the products, forward and backward side by side: a few rows a task, each by itself. */
#include "base/pool.h"
#include "gguf/blocks.h"
#include "probe/probe.h"
#include "run/heads.h"

#include <string.h>

enum { ROWS_PER_TASK = 16, MAX_HEAD_DIM = 512 };

typedef struct row_job {
    tmx_probe *p;
    probe_span span;
    const int32_t *tokens;
    const float *x, *weight, *d_y;
    float *sum;
    int32_t layer;
    bool has_q, has_kv;
    const attn_back *back;
    attn_strips strips;
} row_job;

static void for_rows(row_job *job, pool_task *run)
{
    pool_run(job->p->pool, (job->span.n + ROWS_PER_TASK - 1) / ROWS_PER_TASK, run, job);
}

/* Rows [*row, end) of the chunk for this task. */
static size_t task_rows(const row_job *job, int32_t task, size_t *row)
{
    const size_t begin = (size_t)task * ROWS_PER_TASK, left = (size_t)job->span.n - begin;
    *row = begin;
    return begin + (left < ROWS_PER_TASK ? left : ROWS_PER_TASK);
}

/* ---------------------------------------------------------------- embedding and angles */

static void embed_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const model_shape *m = &p->model->tensors.shape;
    const gguf_tensor *table = p->model->tensors.token_embd;
    const block_format *format = block_format_find(table->type);
    const size_t n_embd = (size_t)m->n_embd, row_bytes = block_row_bytes(format, n_embd), n_angles = (size_t)m->n_rot / 2;
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        float *cos = p->b.cos + row * n_angles, *sin = p->b.sin + row * n_angles, *sin_back = p->b.sin_back + row * n_angles;
        float *x = p->tape[0].x + row * n_embd;
        format->to_f32((const char *)table->data + (size_t)job->tokens[row] * row_bytes, x, n_embd);
        for (size_t i = 0; m->embedding_scale != 0 && i < n_embd; i++) x[i] *= m->embedding_scale;
        rope_angles((int32_t)row, p->rope, cos, sin);
        for (size_t i = 0; i < n_angles; i++) sin_back[i] = -sin[i];
        if (p->b.window_cos == NULL) continue;
        const size_t at = row * n_angles;
        rope_angles((int32_t)row, &p->model->rope_window, p->b.window_cos + at, p->b.window_sin + at);
        for (size_t i = at; i < at + n_angles; i++) p->b.window_sin_back[i] = -p->b.window_sin[i];
    }
}

void probe_embed(tmx_probe *p, const int32_t *tokens)
{
    row_job job = { .p = p, .span = { .n = p->n_tokens }, .tokens = tokens };
    for_rows(&job, embed_rows);
}

/* ---------------------------------------------------------------- norms */

static void norm_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const tmx_model_info *m = &p->model->info;
    const size_t n_embd = (size_t)m->n_embd;
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        p->rows->rmsnorm(job->x + ((size_t)job->span.begin + row) * n_embd, job->weight, m->rms_eps, m->n_embd,
                         probe_row(p, p->b.normed, row, n_embd), p->act_type);
    }
}

static void norm_back_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const tmx_model_info *m = &p->model->info;
    const size_t n_embd = (size_t)m->n_embd;
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        const size_t at = ((size_t)job->span.begin + row) * n_embd;
        p->rows->rmsnorm_back(job->d_y + row * n_embd, job->x + at, job->weight, m->rms_eps, m->n_embd, p->b.d + at);
    }
}

void probe_norm(tmx_probe *p, const float *x, const float *weight, probe_span s)
{
    row_job job = { .p = p, .span = s, .x = x, .weight = weight };
    for_rows(&job, norm_rows);
}

void probe_norm_back(tmx_probe *p, const float *d_y, const float *x, const float *weight, probe_span s)
{
    row_job job = { .p = p, .span = s, .x = x, .weight = weight, .d_y = d_y };
    for_rows(&job, norm_back_rows);
}

static void add_branch_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const tmx_model_info *m = &p->model->info;
    const size_t n_embd = (size_t)m->n_embd;
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        float *branch = p->b.branch + row * n_embd, *x = job->sum + ((size_t)job->span.begin + row) * n_embd;
        p->rows->rmsnorm(branch, job->weight, m->rms_eps, m->n_embd, branch, TMX_TYPE_F32);
        for (size_t i = 0; i < n_embd; i++) x[i] += branch[i];
    }
}

static void branch_back_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const tmx_model_info *m = &p->model->info;
    const size_t n_embd = (size_t)m->n_embd;
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        float *d_branch = p->b.d_branch + row * n_embd;
        memset(d_branch, 0, n_embd * sizeof *d_branch);
        p->rows->rmsnorm_back(p->b.d + ((size_t)job->span.begin + row) * n_embd, p->b.branch + row * n_embd, job->weight, m->rms_eps,
                              m->n_embd, d_branch);
        p->rows->convert(d_branch, m->n_embd, probe_row(p, p->b.d_act, row, n_embd), p->act_type);
    }
}

void probe_add_branch(tmx_probe *p, const float *weight, float *x, probe_span s)
{
    row_job job = { .p = p, .span = s, .weight = weight, .sum = x };
    for_rows(&job, add_branch_rows);
}

void probe_branch_back(tmx_probe *p, const float *weight, probe_span s)
{
    row_job job = { .p = p, .span = s, .weight = weight };
    for_rows(&job, branch_back_rows);
}

/* ---------------------------------------------------------------- heads */

typedef struct turn { const float *cos, *sin, *sin_back; } turn;

static turn turn_of(const tmx_probe *p, int32_t layer, size_t pos)
{
    const probe_buffers *b = &p->b;
    const size_t at = pos * ((size_t)p->model->tensors.shape.n_rot / 2);
    if (tmx_model_layer_has_window(&p->model->info, layer)) {
        return (turn){ b->window_cos + at, b->window_sin + at, b->window_sin_back + at };
    }
    return (turn){ b->cos + at, b->sin + at, b->sin_back + at };
}

static void place_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const model_shape *m = &p->model->tensors.shape;
    const probe_tape *t = &p->tape[job->layer];
    const size_t head_dim = (size_t)m->head_dim;
    const int32_t n_q_heads = job->has_q ? m->n_heads : 0, n_kv_heads = job->has_kv ? m->n_kv_heads : 0;
    const size_t width = (size_t)(n_q_heads + 2 * n_kv_heads) * head_dim;
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        const size_t pos = (size_t)job->span.begin + row;
        const turn t_row = turn_of(p, job->layer, pos);
        float *head = p->b.wide + row * width;
        heads_finish(p->model, p->rows, job->layer, n_q_heads, n_kv_heads, true, head);
        for (int32_t h = 0; h < n_q_heads; h++, head += head_dim) {
            p->rows->rope(head, t_row.cos, t_row.sin, m->n_rot, m->head_dim, m->rope,
                          probe_row(p, t->q, pos * (size_t)m->n_heads + (size_t)h, head_dim), p->act_type);
        }
        for (int32_t h = 0; h < n_kv_heads; h++, head += head_dim) {
            p->rows->rope(head, t_row.cos, t_row.sin, m->n_rot, m->head_dim, m->rope,
                          probe_row(p, t->k, pos * (size_t)m->n_kv_heads + (size_t)h, head_dim), p->act_type);
        }
        for (int32_t h = 0; h < n_kv_heads; h++, head += head_dim) {
            p->rows->convert(head, m->head_dim, probe_row(p, t->v, pos * (size_t)m->n_kv_heads + (size_t)h, head_dim), p->act_type);
        }
    }
}

/* One head of d_q or d_k on its way back: by the turn by -angle, which is the transpose, so the derivative, of the turn by
 * angle; then by the norm, if there is one, of what stands in `raw`. */
static void head_back(const row_job *job, const turn *t, const float *norm, float *raw, const float *d_head, void *out)
{
    const tmx_probe *p = job->p;
    const model_shape *m = &p->model->tensors.shape;
    if (norm == NULL) {
        p->rows->rope(d_head, t->cos, t->sin_back, m->n_rot, m->head_dim, m->rope, out, p->act_type);
        return;
    }
    float turned[MAX_HEAD_DIM], d_raw[MAX_HEAD_DIM] = { 0 };
    p->rows->rope(d_head, t->cos, t->sin_back, m->n_rot, m->head_dim, m->rope, turned, TMX_TYPE_F32);
    p->rows->rmsnorm_back(turned, raw, norm, m->rms_eps, m->head_dim, d_raw);
    p->rows->convert(d_raw, m->head_dim, out, p->act_type);
}

static void gather_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const model_shape *m = &p->model->tensors.shape;
    const model_layer *w = &p->model->layers[job->layer];
    const size_t head_dim = (size_t)m->head_dim, d_pad = attn_back_d_pad(m->head_dim);
    const size_t n_heads = (size_t)m->n_heads, n_kv_heads = (size_t)m->n_kv_heads, width = n_heads + 2 * n_kv_heads;
    float head[MAX_HEAD_DIM];
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        const size_t pos = (size_t)job->span.begin + row, at = row * width;
        const turn t = turn_of(p, job->layer, pos);
        float *raw = p->b.wide + at * head_dim;
        if (w->q_norm != NULL) heads_finish(p->model, p->rows, job->layer, m->n_heads, m->n_kv_heads, false, raw);
        for (size_t h = 0; h < n_heads; h++, raw += head_dim) {
            head_back(job, &t, w->q_norm, raw, p->b.d_q + (pos * n_heads + h) * d_pad, probe_row(p, p->b.d_act, at + h, head_dim));
        }
        for (size_t h = 0; h < n_kv_heads; h++, raw += head_dim) {
            attn_back_kv_row(job->back, &job->strips, false, (int32_t)pos, (int32_t)h, head);
            head_back(job, &t, w->k_norm, raw, head, probe_row(p, p->b.d_act, at + n_heads + h, head_dim));
            attn_back_kv_row(job->back, &job->strips, true, (int32_t)pos, (int32_t)h, head);
            p->rows->convert(head, m->head_dim, probe_row(p, p->b.d_act, at + n_heads + n_kv_heads + h, head_dim), p->act_type);
        }
    }
}

void probe_place_heads(tmx_probe *p, int32_t layer, probe_span s, bool has_q, bool has_kv)
{
    row_job job = { .p = p, .span = s, .layer = layer, .has_q = has_q, .has_kv = has_kv };
    for_rows(&job, place_rows);
}

void probe_gather_heads(tmx_probe *p, const attn_back *back, int32_t layer, probe_span s)
{
    row_job job = { .p = p, .span = s, .layer = layer, .back = back,
                    .strips = attn_back_strips(back->n_tokens, back->n_kv_heads, back->head_dim) };
    for_rows(&job, gather_rows);
}

/* ---------------------------------------------------------------- gate */

void probe_gate_row(const tmx_probe *p, const float *gate, const float *up, void *gated, tmx_type type)
{
    const bool is_gelu = p->model->tensors.shape.gate == GATE_GELU_TANH;
    (is_gelu ? p->rows->geglu : p->rows->swiglu)(gate, up, p->model->info.n_ff, gated, type);
}

static void gate_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const size_t n_ff = (size_t)p->model->info.n_ff;
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        const float *gate = p->b.wide + row * 2 * n_ff;
        probe_gate_row(p, gate, gate + n_ff, probe_row(p, p->b.gated, row, n_ff), p->act_type);
    }
}

static void gate_back_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const size_t n_ff = (size_t)p->model->info.n_ff;
    const bool is_gelu = p->model->tensors.shape.gate == GATE_GELU_TANH;
    void (*const back)(const float *, const float *, const float *, int32_t, void *, void *, tmx_type) =
        is_gelu ? p->rows->geglu_back : p->rows->swiglu_back;
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        const float *gate = p->b.wide + row * 2 * n_ff;
        back(p->b.d_wide + row * n_ff, gate, gate + n_ff, (int32_t)n_ff, probe_row(p, p->b.d_act, 2 * row, n_ff),
             probe_row(p, p->b.d_act, 2 * row + 1, n_ff), p->act_type);
    }
}

static void convert_rows(void *ctx, int32_t task, int32_t thread)
{
    (void)thread;
    const row_job *job = ctx;
    const tmx_probe *p = job->p;
    const size_t n_embd = (size_t)p->model->info.n_embd;
    size_t row;
    for (const size_t end = task_rows(job, task, &row); row < end; row++) {
        p->rows->convert(p->b.d + ((size_t)job->span.begin + row) * n_embd, (int32_t)n_embd,
                         probe_row(p, p->b.d_act, row, n_embd), p->act_type);
    }
}

void probe_gate(tmx_probe *p, probe_span s)
{
    row_job job = { .p = p, .span = s };
    for_rows(&job, gate_rows);
}

void probe_gate_back(tmx_probe *p, probe_span s)
{
    row_job job = { .p = p, .span = s };
    for_rows(&job, gate_back_rows);
}

void probe_convert_d(tmx_probe *p, probe_span s)
{
    row_job job = { .p = p, .span = s };
    for_rows(&job, convert_rows);
}
