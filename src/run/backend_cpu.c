/* backend_cpu.c - the steps of backend.h on the CPU: each is done when it returns.  Row steps are in chunk_rows.c, single rows
 * (decoding, the end of a prompt) in one_row.c. */
#include "attn/attn.h"
#include "base/layout.h"
#include "base/num.h"
#include "base/pool.h"
#include "base/status.h"
#include "gguf/blocks.h"
#include "run/backend.h"
#include "run/cpu_run.h"
#include "run/search_heads.h"
#include "run/watch.h"

#include <assert.h>

enum { DEFAULT_CHUNK = 512, MAX_QUERY_TILE = 256 /* positions, at most */ };

/* ---- sizes: one walk over the buffers serves the memory plan and the real thing */

static size_t scratch_bytes(const tmx_model_info *m, const tmx_attention_params *attention, int32_t n_ctx, int32_t n_threads,
                            uint32_t dynamic_kinds)
{
    const int32_t n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim;
    size_t n = matmul_scratch_bytes(n_q + 2 * n_kv, m->n_embd, n_threads);
    n = max_size(n, matmul_scratch_bytes(m->n_embd, n_q, n_threads));
    n = max_size(n, matmul_scratch_bytes(2 * m->n_ff, m->n_embd, n_threads));
    n = max_size(n, matmul_scratch_bytes(m->n_embd, m->n_ff, n_threads));
    if (m->n_experts > 0) n = max_size(n, matmul_scratch_bytes(m->n_experts, m->n_embd, n_threads));
    const int32_t widest = m->n_ff > n_q ? m->n_ff : n_q;
    n = max_size(n, (size_t)n_threads * (size_t)(widest > m->n_embd ? widest : m->n_embd) * sizeof(float));
    n = max_size(n, tmx_attention_scratch_bytes(attention, n_threads));
    for (int kind = 0; dynamic_kinds >> kind != 0; kind++) {
        if (!(dynamic_kinds >> kind & 1)) continue;
        n = max_size(n, attn_lists_scratch_bytes(attention, (tmx_pattern_kind)kind, n_ctx, n_threads));
    }
    return max_size(n, attn_decode_scratch_bytes(attention, n_ctx, n_threads));
}

static void lay_out(activations *a, layout *at, const tmx_model_info *m, const tmx_session_params *p, tmx_type act_type,
                    uint32_t dynamic_kinds, size_t n_scratch_bytes)
{
    const size_t n_rows = (size_t)p->n_chunk, n_embd = (size_t)m->n_embd, n_ff = (size_t)m->n_ff, act = type_bytes(act_type);
    const size_t n_q = (size_t)m->n_heads * (size_t)m->head_dim, n_kv = (size_t)m->n_kv_heads * (size_t)m->head_dim;
    const size_t n_angles = ((size_t)m->head_dim + 1) / 2;
    a->x = layout_rows(at, n_rows, n_embd, sizeof(float));
    a->normed = layout_rows(at, n_rows, n_embd, act);
    a->qkv = layout_rows(at, n_rows, n_q + 2 * n_kv, sizeof(float));
    a->q = layout_rows(at, n_rows, n_q, act);
    a->heads = layout_rows(at, n_rows, n_q, act);
    a->gate_up = layout_rows(at, n_rows, max_size(2 * n_ff, n_embd), sizeof(float));
    a->branch = a->gate_up;
    a->gated = layout_rows(at, n_rows, n_ff, act);
    a->cos = layout_rows(at, n_rows, n_angles, sizeof(float));
    a->sin = layout_rows(at, n_rows, n_angles, sizeof(float));
    a->window_cos = m->n_window > 0 ? layout_rows(at, n_rows, n_angles, sizeof(float)) : NULL;
    a->window_sin = m->n_window > 0 ? layout_rows(at, n_rows, n_angles, sizeof(float)) : NULL;
    const size_t n_expert_rows = m->n_experts > 0 ? n_rows : 0;
    a->scores = layout_rows(at, n_expert_rows, (size_t)m->n_experts, sizeof(float));
    a->chosen = layout_rows(at, n_expert_rows, (size_t)m->n_experts_used, sizeof *a->chosen);
    a->expert_rows = layout_rows(at, n_expert_rows, 1, sizeof *a->expert_rows);
    a->gathered = layout_rows(at, n_expert_rows, n_embd, act);
    a->expert_out = layout_rows(at, n_expert_rows, n_embd, sizeof(float));
    const bool has_heads = dynamic_kinds >> TMX_PATTERN_MINFERENCE & 1;
    const size_t n_heads = has_heads ? (size_t)m->n_heads : 0, n_list_bytes = key_lists_bytes(m->n_heads, p->n_chunk, p->n_ctx);
    a->lists = layout_rows(at, 1, max_size(n_list_bytes, n_heads * minference_room_bytes(p->n_ctx)), 1);
    a->chosen_heads = layout_rows(at, n_heads, 1, sizeof *a->chosen_heads);
    a->found_heads = layout_rows(at, n_heads, 1, sizeof *a->found_heads);
    a->row = layout_rows(at, 1, one_row_floats(m), sizeof(float));
    a->scratch = layout_rows(at, 1, n_scratch_bytes, 1);
}

static kv_cache kv_sizes(const tmx_model_info *m, const tmx_session_params *p)
{
    return (kv_cache){ .type = p->kv_type, .n_layers = m->n_layers, .n_seqs = p->n_seqs, .n_kv_heads = m->n_kv_heads,
                       .n_ctx = p->n_ctx, .head_dim = m->head_dim };
}

static tmx_attention_params attention_params(const tmx_model_info *m, const kv_cache *kv, tmx_isa isa, tmx_type q_type)
{
    const size_t head_dim = (size_t)m->head_dim, n_q = (size_t)m->n_heads * head_dim;
    return (tmx_attention_params){
        .q_type = q_type, .kv_type = kv->type, .n_heads = m->n_heads, .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim,
        .q_pos_stride = n_q, .q_head_stride = head_dim, .out_pos_stride = n_q, .out_head_stride = head_dim,
        .k_pos_stride = head_dim, .k_head_stride = kv_head_stride(kv),
        .v_pos_stride = head_dim, .v_head_stride = kv_head_stride(kv), .isa = isa,
        .pattern = { .kind = TMX_PATTERN_DENSE, .n_sink = 0, .n_window = 1, .n_last = 0 },
    };
}

tmx_attention_params cpu_attention(const tmx_session *s, tmx_type q_type)
{
    const cpu_run *r = s->state;
    tmx_attention_params params = attention_params(&s->model->info, &r->kv, s->model->isa, q_type);
    params.scale = s->model->tensors.shape.score_scale;
    return params;
}

static tmx_type act_type_of(tmx_compute compute) { return compute == TMX_COMPUTE_BF16 ? TMX_TYPE_BF16 : TMX_TYPE_F32; }

/* Scratch must serve both query types a session uses, the chunk's and the single row's f32, and every way in which the rows
 * of a chunk may belong to sequences: one sequence with an extra query tile for each of the others is the worst. */
static size_t workspace_bytes(const memory_case *at, const tmx_session_params *p, const kv_cache *kv, size_t *n_scratch)
{
    const tmx_model_info *m = at->info;
    const tmx_type act_type = act_type_of(at->compute);
    *n_scratch = 0;
    const tmx_type types[] = { act_type, TMX_TYPE_F32 };
    const int64_t n_rows = (int64_t)p->n_chunk + (int64_t)p->n_seqs * MAX_QUERY_TILE;
    const int32_t n_q = n_rows < INT32_MAX ? (int32_t)n_rows : INT32_MAX;
    const tmx_attention_seq worst = { .n_q = n_q, .n_prompt = n_q };
    for (int i = 0; i < 2; i++) {
        tmx_attention_params attention = attention_params(m, kv, at->isa, types[i]);
        attention.seqs = &worst;
        attention.n_seqs = 1;
        *n_scratch = max_size(*n_scratch, scratch_bytes(m, &attention, p->n_ctx, at->n_threads, at->dynamic_kinds));
    }
    activations ignored;
    layout count = { 0 };
    lay_out(&ignored, &count, m, p, act_type, at->dynamic_kinds, *n_scratch);
    return count.n_bytes;
}

static tmx_status plan_memory(const memory_case *at, tmx_session_params *p, tmx_memory *memory, tmx_error *err)
{
    if (p->n_chunk == 0) p->n_chunk = DEFAULT_CHUNK;
    const int64_t most_rows = (int64_t)p->n_ctx * p->n_seqs;
    if (p->n_chunk > most_rows) p->n_chunk = (int32_t)most_rows;
    if (p->kv_type == TMX_TYPE_DEFAULT) p->kv_type = at->compute == TMX_COMPUTE_F32 ? TMX_TYPE_F32 : TMX_TYPE_BF16;
    const kv_cache kv = kv_sizes(at->info, p);
    tmx_memory m = { .weight_bytes = model_weight_bytes(at->info, at->compute),
                     .merged_bytes = model_merged_bytes(at->info, at->compute), .available_bytes = mem_available_bytes() };
    if (!kv_bytes(&kv, &m.kv_bytes)) return refuse(err, TMX_E_MEMORY, "KV cache: the size overflows for %d tokens", p->n_ctx);
    size_t n_scratch;
    m.workspace_bytes = workspace_bytes(at, p, &kv, &n_scratch);
    *memory = m;
    const uint64_t n_needed = m.kv_bytes + m.workspace_bytes;
    if (!at->is_taken_now || m.available_bytes == 0 || n_needed <= m.available_bytes) return TMX_OK;
    return refuse(err, TMX_E_MEMORY, "a session of %d x %d tokens needs %.2f GiB (KV cache %.2f), %.2f GiB are available",
                  p->n_seqs, p->n_ctx, (double)n_needed / 0x1p30, (double)m.kv_bytes / 0x1p30,
                  (double)m.available_bytes / 0x1p30);
}

static tmx_status create(tmx_session *s, const tmx_memory *memory, tmx_error *err)
{
    const tmx_model_info *info = &s->model->info;
    const memory_case at = { .info = info, .compute = s->model->compute, .isa = s->model->isa, .n_threads = pool_n_threads(s->pool),
                             .dynamic_kinds = s->dynamic_kinds };
    const size_t n_work = memory->workspace_bytes;
    cpu_run *r = s->state = mem_alloc(1, sizeof *r);
    if (r == NULL) return refuse(err, TMX_E_MEMORY, "session: out of memory");
    r->rows = row_ops_get(s->model->isa);
    r->act_type = act_type_of(s->model->compute);
    r->kv = kv_sizes(info, &s->params);
    for (int32_t l = 0; l < info->n_layers; l++) {
        *(tmx_model_layer_has_window(info, l) ? &r->rope_window : &r->rope) = model_rope(s->model, l, s->params.n_ctx);
    }
    TRY(kv_create(&r->kv, err));
    r->memory = mem_alloc(1, n_work);
    r->attention_seqs = mem_alloc((size_t)s->params.n_seqs, sizeof *r->attention_seqs);
    if (r->memory == NULL || r->attention_seqs == NULL) {
        return refuse(err, TMX_E_MEMORY, "session: out of memory for %.2f GiB of workspace", (double)n_work / 0x1p30);
    }
    layout lay = { .base = r->memory };
    (void)workspace_bytes(&at, &s->params, &r->kv, &r->n_scratch_bytes);
    lay_out(&r->act, &lay, info, &s->params, r->act_type, at.dynamic_kinds, r->n_scratch_bytes);
    return TMX_OK;
}

static void free_run(tmx_session *s)
{
    cpu_run *r = s->state;
    if (r == NULL) return;
    kv_free(&r->kv);
    mem_free(r->memory);
    mem_free(r->attention_seqs);
    mem_free(r);
}

/* ---- the steps */

static void norm(chunk *c, norm_step step)
{
    const model_layer *w = &c->s->model->layers[c->layer];
    cpu_norm_rows(c, step == NORM_ATTENTION ? w->attn_norm : w->ffn_norm);
}

static void add_branch(chunk *c, norm_step step)
{
    const model_layer *w = &c->s->model->layers[c->layer];
    cpu_add_branch(c, step == NORM_ATTENTION ? w->attn_branch_norm : w->ffn_branch_norm);
}

static void product(chunk *c, product_step step)
{
    tmx_session *s = c->s;
    const cpu_run *r = s->state;
    const activations *a = &r->act;
    const tmx_model_info *m = &s->model->info;
    const model_layer *w = &s->model->layers[c->layer];
    const size_t n_embd = (size_t)m->n_embd, n_ff = (size_t)m->n_ff;
    const size_t n_q = (size_t)m->n_heads * (size_t)m->head_dim, n_kv = (size_t)m->n_kv_heads * (size_t)m->head_dim;
    const bool has_branch = s->model->tensors.shape.has_branch_norms;
    float *const sum = has_branch ? a->branch : a->x;
    const struct { const matmul_weight *weight; const void *x; size_t x_width; float *y; size_t y_width; bool is_added; } p[] = {
        [PRODUCT_QKV] = { w->qkv, a->normed, n_embd, a->qkv, n_q + 2 * n_kv, false },
        [PRODUCT_LAST_KV] = { s->model->last_kv, a->normed, n_embd, a->qkv, 2 * n_kv, false },
        [PRODUCT_ATTN_OUTPUT] = { w->attn_output, a->heads, n_q, sum, n_embd, !has_branch },
        [PRODUCT_GATE_UP] = { w->gate_up, a->normed, n_embd, a->gate_up, 2 * n_ff, false },
        [PRODUCT_DOWN] = { w->down, a->gated, n_ff, sum, n_embd, !has_branch },
    };
    const double start = now_ms();
    matmul_run(p[step].weight, p[step].x, p[step].x_width, c->n_rows, p[step].y, p[step].y_width, p[step].is_added, a->scratch, s->pool);
    s->timings.matmul_ms += now_ms() - start;
}

/* The segments whose pattern in this layer is of this kind: strides and types as cpu_attention has them. */
static tmx_attention_params attention_of(const chunk *c, tmx_pattern_kind kind)
{
    const tmx_session *s = c->s;
    const cpu_run *r = s->state;
    const tmx_model_info *m = &s->model->info;
    const size_t n_q = (size_t)m->n_heads * (size_t)m->head_dim;
    tmx_attention_params params = cpu_attention(s, r->act_type);
    for (int32_t i = 0; i < c->n_segments; i++) {
        const segment *g = &s->segments[i];
        if (chunk_pattern(c, g).kind != kind) continue;
        r->attention_seqs[params.n_seqs++] = (tmx_attention_seq){
            .q = act_row(r, r->act.q, g->row, n_q), .out = act_row(r, r->act.heads, g->row, n_q),
            .k = kv_view(&r->kv, r->kv.k, c->layer, g->seq), .v = kv_view(&r->kv, r->kv.v, c->layer, g->seq),
            .q_begin = g->q_begin, .n_q = g->n_rows, .n_prompt = g->n_prompt,
        };
    }
    params.seqs = r->attention_seqs;
    params.scratch = r->act.scratch;
    return params;
}

static int64_t attend_s2o(chunk *c, const tmx_attention_params *params)
{
    tmx_session *s = c->s;
    s2o_visits visits = { .watch.see = watch_s2o, .session = s };
    const s2o_result done = attn_s2o(params, &s->plan->s2o, s->pool, watches_layer(s, c->layer) ? &visits.watch : NULL);
    s->timings.estimate_ms += done.estimate_ms;
    return done.n_pairs;
}

/* A whole prompt dense, and every candidate of a search beside it. */
static int64_t search_heads(chunk *c, const tmx_attention_params *params)
{
    tmx_session *s = c->s;
    const activations *a = &((const cpu_run *)s->state)->act;
    int64_t n_pairs = 0;
    for (int32_t h = 0; h < params->n_heads; h++) {
        a->found_heads[h] = (head_keys){ .kind = HEAD_DENSE, .n = params->seqs->n_q };
        n_pairs += head_keys_pairs(&a->found_heads[h], 0);
    }
    attn_over_heads(params, a->found_heads, s->pool);
    search_layer(s->search, c->layer, params, a->chosen_heads, a->found_heads, a->lists, s->pool);
    return n_pairs;
}

/* By MInference; returns the pairs over all heads. */
static int64_t attend_heads(chunk *c, const tmx_attention_params *params)
{
    tmx_session *s = c->s;
    const activations *a = &((const cpu_run *)s->state)->act;
    const double start = now_ms();
    int64_t n_pairs = 0;
    for (int32_t h = 0; h < params->n_heads; h++) a->chosen_heads[h] = plan_minference_head(s->plan, c->layer, h);
    attn_minference(params, a->chosen_heads, a->found_heads, a->lists, s->pool);
    s->timings.estimate_ms += now_ms() - start;
    attn_over_heads(params, a->found_heads, s->pool);
    if (watches_layer(s, c->layer)) watch_head(s, &a->found_heads[s->watch.head], params->seqs->q_begin);
    for (int32_t h = 0; h < params->n_heads; h++) n_pairs += head_keys_pairs(&a->found_heads[h], params->seqs->q_begin);
    return n_pairs;
}

static int64_t attend_lists(chunk *c, tmx_pattern_kind kind, const tmx_attention_params *params)
{
    tmx_session *s = c->s;
    const tmx_attention_seq *seq = params->seqs;
    const double start = now_ms();
    key_lists lists = key_lists_on(((const cpu_run *)s->state)->act.lists, params->n_heads, seq->q_begin, seq->n_q);
    if (kind == TMX_PATTERN_FLEXPREFILL) {
        attn_flexprefill(params, &s->plan->flexprefill, &lists, s->pool);
    } else {
        xattention method = s->plan->xattention;
        method.thresholds = plan_thresholds(s->plan, c->layer);
        attn_xattention(params, &method, &lists, s->pool);
    }
    s->timings.estimate_ms += now_ms() - start;
    attn_over_lists(params, &lists, s->pool);
    if (watches_layer(s, c->layer)) watch_lists(s, &lists, seq->q_begin, seq->q_begin + seq->n_q);
    return key_lists_pairs(&lists, seq->q_begin, seq->q_begin + seq->n_q);
}

/* Returns the pairs over all heads. */
static int64_t attend_by(chunk *c, tmx_pattern_kind kind, const tmx_attention_params *params)
{
    if (kind == TMX_PATTERN_S2O) return attend_s2o(c, params);
    if (kind != TMX_PATTERN_MINFERENCE) return attend_lists(c, kind, params);
    return c->s->search != NULL ? search_heads(c, params) : attend_heads(c, params);
}

/* Sequences one after the other: the rows so far of one prompt decide what its next rows attend to. */
static void attend_dynamic(chunk *c, tmx_pattern_kind kind, const tmx_attention_params *all)
{
    tmx_session *s = c->s;
    for (int32_t i = 0; i < all->n_seqs; i++) {
        const tmx_attention_seq *seq = &all->seqs[i];
        tmx_attention_params params = *all;
        params.seqs = seq;
        params.n_seqs = 1;
        const int64_t n_pairs = attend_by(c, kind, &params);
        session_count_pairs(s, c->layer, seq->q_begin, seq->q_begin + seq->n_q, (double)n_pairs / params.n_heads);
    }
}

static void attend_static(chunk *c, const tmx_attention_params *params)
{
    tmx_session *s = c->s;
    assert(tmx_attention_scratch_bytes(params, tmx_pool_n_threads(s->pool)) <= ((const cpu_run *)s->state)->n_scratch_bytes);
    const tmx_status status = tmx_attention(params, s->pool, NULL);
    assert(status == TMX_OK);
    (void)status;
    for (int32_t i = 0; i < params->n_seqs; i++) {
        const tmx_attention_seq *seq = &params->seqs[i];
        session_count_static(s, c->layer, &params->pattern, seq->n_prompt, seq->q_begin, seq->q_begin + seq->n_q);
    }
}

static void attend(chunk *c, const tmx_pattern *pattern)
{
    tmx_session *s = c->s;
    tmx_attention_params params = attention_of(c, pattern->kind);
    if (params.n_seqs == 0) return;
    const double start = now_ms();
    if (tmx_pattern_is_dynamic(pattern->kind)) attend_dynamic(c, pattern->kind, &params);
    else {
        params.pattern = *pattern;
        attend_static(c, &params);
    }
    s->layer_attention_ms[c->layer] += now_ms() - start;
}

static void finish(chunk *c, const tmx_prompt *prompts)
{
    tmx_session *s = c->s;
    const cpu_run *r = s->state;
    const model_shape *m = &s->model->tensors.shape;
    for (int32_t i = 0; i < c->n_segments; i++) {
        const segment *g = &s->segments[i];
        if (!segment_is_end(g) || prompts[g->prompt].logits == NULL) continue;
        const size_t row = (size_t)(g->row + g->n_rows - 1), n_angles = (size_t)m->n_rot / 2;
        const size_t at = row * n_angles;
        const row_place place = { .seq = g->seq, .position = g->n_prompt - 1, .is_prefill = true, .cos = r->act.cos + at,
                                  .sin = r->act.sin + at, .window_cos = r->act.window_cos == NULL ? NULL : r->act.window_cos + at,
                                  .window_sin = r->act.window_sin == NULL ? NULL : r->act.window_sin + at };
        float *x = r->act.x + row * (size_t)m->n_embd;
        one_row_layer(s, c->layer, &place, x);
        one_row_logits(s, x, prompts[g->prompt].logits);
    }
}

static tmx_status catch_up(chunk *c, int64_t *n_done, tmx_error *err)
{
    (void)err;
    *n_done += c->n_rows;
    return TMX_OK;
}

static tmx_status settle(tmx_session *s, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err)
{
    (void)s, (void)prompts, (void)n_prompts, (void)err;
    return TMX_OK;
}

static tmx_status decode(tmx_session *s, int32_t seq, int32_t token, float *logits, tmx_error *err)
{
    (void)err;
    const tmx_model_info *m = &s->model->info;
    const cpu_run *r = s->state;
    const row_place place = { .seq = seq, .position = s->n_past[seq], .cos = r->act.cos, .sin = r->act.sin,
                              .window_cos = r->act.window_cos, .window_sin = r->act.window_sin };
    float *x = one_row_residual(s);
    cpu_embed_token(s, token, x);
    cpu_angles(s, place.position, 0);
    for (int32_t layer = 0; layer < m->n_layers; layer++) {
        one_row_append(s, layer, &place, x);
        one_row_layer(s, layer, &place, x);
    }
    one_row_logits(s, x, logits);
    return TMX_OK;
}

const backend backend_cpu = {
    .dynamic_kinds = UINT32_MAX, .has_thresholds = true, .has_estimate_rows = true,
    .plan_memory = plan_memory, .create = create, .free = free_run,
    .embed = cpu_embed, .norm = norm, .product = product, .place_heads = cpu_place_heads, .attend = attend, .gate = cpu_gate,
    .experts = cpu_experts, .add_branch = add_branch, .finish = finish, .catch_up = catch_up, .settle = settle, .decode = decode,
};
