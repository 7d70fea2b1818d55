/* prefill.c - prompts through all layers, in chunks of rows.  The heart of it is prefill_chunk: for every layer the plan
 * names the pattern, the pattern gives the visible keys of each query tile, attention runs them, and the KV cache keeps
 * K and V.  The last layer computes K and V only, plus one row for each prompt that ends in the chunk: exact, since
 * nothing else of it is ever read (docs/data-flow.md).
 *
 * A row's bits never depend on how rows are cut into chunks: products, norms and attention work row by row in a fixed
 * order, and patterns speak of absolute positions and of the final prompt length, which is known from the start. */
#include "base/status.h"
#include "run/chunk.h"

#include <assert.h>

static void product(chunk *c, const matmul_weight *w, const void *x, size_t x_width, float *y, size_t y_width, bool is_added)
{
    tmx_session *s = c->s;
    const double start = now_ms();
    matmul_run(w, x, x_width, c->n_rows, y, y_width, is_added, s->act.scratch, s->pool);
    s->timings.matmul_ms += now_ms() - start;
}

/* Segments of the chunk whose prompt the layer treats as `kind`: a plan may leave short prompts dense. */
static void attend_as(chunk *c, tmx_pattern_kind kind)
{
    tmx_session *s = c->s;
    const tmx_model_info *m = &s->model->info;
    const size_t n_q = (size_t)m->n_heads * (size_t)m->head_dim;
    tmx_attention_params params = session_attention(s, s->act_type);
    for (int32_t i = 0; i < c->n_segments; i++) {
        const segment *g = &s->segments[i];
        const tmx_pattern pattern = plan_layer_pattern(s->plan, c->layer, g->n_prompt);
        if (pattern.kind != kind) continue;
        params.pattern = pattern;
        s->attention_seqs[params.n_seqs++] = (tmx_attention_seq){
            .q = act_row(s, s->act.q, g->row, n_q), .out = act_row(s, s->act.heads, g->row, n_q),
            .k = kv_view(&s->kv, s->kv.k, c->layer, g->seq), .v = kv_view(&s->kv, s->kv.v, c->layer, g->seq),
            .q_begin = g->q_begin, .n_q = g->n_rows, .n_prompt = g->n_prompt,
        };
    }
    if (params.n_seqs == 0) return;
    params.seqs = s->attention_seqs;
    params.scratch = s->act.scratch;
    assert(tmx_attention_scratch_bytes(&params, tmx_pool_n_threads(s->pool)) <= s->n_scratch_bytes);
    const double start = now_ms();
    const tmx_status status = tmx_attention(&params, s->pool, NULL);
    assert(status == TMX_OK);
    (void)status;
    s->layer_attention_ms[c->layer] += now_ms() - start;
}

static void attend(chunk *c)
{
    const tmx_pattern_kind kind = c->s->plan->layers[c->layer].kind;
    attend_as(c, kind);
    if (kind != TMX_PATTERN_DENSE) attend_as(c, TMX_PATTERN_DENSE);
}

/* Prompts that end in this chunk: their last row through the last layer, and its logits. */
static void finish_prompts(chunk *c, const tmx_prompt *prompts)
{
    tmx_session *s = c->s;
    const model_shape *m = &s->model->tensors.shape;
    for (int32_t i = 0; i < c->n_segments; i++) {
        const segment *g = &s->segments[i];
        const size_t row = (size_t)(g->row + g->n_rows - 1), n_angles = (size_t)m->n_rot / 2;
        const row_place place = { .seq = g->seq, .position = g->q_begin + g->n_rows - 1, .is_prefill = true,
                                  .cos = s->act.cos + row * n_angles, .sin = s->act.sin + row * n_angles };
        if (place.position != g->n_prompt - 1 || prompts[g->prompt].logits == NULL) continue;
        float *x = s->act.x + row * (size_t)m->n_embd;
        one_row_layer(s, c->layer, &place, x);
        one_row_logits(s, x, prompts[g->prompt].logits);
    }
}

static tmx_status prefill_chunk(chunk *c, const tmx_prompt *prompts, tmx_progress *progress, tmx_error *err)
{
    tmx_session *s = c->s;
    const activations *a = &s->act;
    const tmx_model_info *m = &s->model->info;
    const size_t n_embd = (size_t)m->n_embd, n_ff = (size_t)m->n_ff;
    const size_t n_q = (size_t)m->n_heads * (size_t)m->head_dim, n_kv = (size_t)m->n_kv_heads * (size_t)m->head_dim;

    chunk_embed(c);
    for (c->layer = 0; c->layer < m->n_layers; c->layer++) {
        const model_layer *w = &s->model->layers[c->layer];
        chunk_norm(c, w->attn_norm);
        if (chunk_is_last_layer(c)) {
            product(c, s->model->last_kv, a->normed, n_embd, a->qkv, 2 * n_kv, false);
            chunk_place_heads(c);
            finish_prompts(c, prompts);
        } else {
            product(c, w->qkv, a->normed, n_embd, a->qkv, n_q + 2 * n_kv, false);
            chunk_place_heads(c);
            attend(c);
            product(c, w->attn_output, a->heads, n_q, a->x, n_embd, true);
            chunk_norm(c, w->ffn_norm);
            product(c, w->gate_up, a->normed, n_embd, a->gate_up, 2 * n_ff, false);
            chunk_gate(c);
            product(c, w->down, a->gated, n_ff, a->x, n_embd, true);
        }
        progress->n_done += c->n_rows;
        if (s->params.progress != NULL && !s->params.progress(s->params.progress_ctx, progress)) {
            return refuse(err, TMX_E_CANCELLED, "prefill: stopped in layer %d", c->layer);
        }
    }
    return TMX_OK;
}

tmx_status tmx_prefill(tmx_session *s, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err)
{
    TRY(prompts_check(s, prompts, n_prompts, err));
    const double start = now_ms();
    int64_t n_tokens = 0;
    for (int32_t i = 0; i < n_prompts; i++) n_tokens += prompts[i].n_tokens;
    tmx_progress progress = { .n_total = n_tokens * s->model->info.n_layers };
    prompt_cursor next = { 0 };
    for (chunk c = { .s = s }; chunk_next(&c, &next, prompts, n_prompts);) {
        TRY(prefill_chunk(&c, prompts, &progress, err));
    }
    for (int32_t i = 0; i < n_prompts; i++) {
        if (prompts[i].logits != NULL && !logits_are_finite(prompts[i].logits, s->model->info.n_vocab)) {
            return refuse(err, TMX_E_NUMERIC, "prompt %d: the logits hold NaN or infinity; the model file may be damaged", i);
        }
    }
    for (int32_t i = 0; i < n_prompts; i++) s->n_past[prompts[i].seq] += prompts[i].n_tokens;
    s->timings.n_prefill_tokens += n_tokens;
    s->timings.prefill_ms += now_ms() - start;
    return TMX_OK;
}
