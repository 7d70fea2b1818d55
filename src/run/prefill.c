/* prefill.c - prompts through all layers, in chunks of rows.  The heart of it is prefill_chunk: for every layer the plan
 * names the pattern, the pattern gives the visible keys of each query tile, attention runs them, and the KV cache keeps
 * K and V.  The last layer computes K and V only, plus one row for each prompt that ends in the chunk: exact, since
 * nothing else of it is ever read (docs/data-flow.md).
 *
 * A row's bits never depend on how rows are cut into chunks: products, norms and attention work row by row in a fixed
 * order, and patterns speak of absolute positions and of the final prompt length, which is known from the start. */
#include "base/status.h"
#include "run/backend.h"
#include "run/reuse.h"

/* A plan may leave short prompts dense: the chunk's segments go by the pattern that each of them gets. */
static void attend(const backend *b, chunk *c)
{
    tmx_pattern pattern = plan_layer_pattern(c->s->plan, c->layer, INT32_MAX);
    b->attend(c, &pattern);
    if (pattern.kind == TMX_PATTERN_DENSE) return;
    pattern.kind = TMX_PATTERN_DENSE;
    b->attend(c, &pattern);
}

static bool report(const tmx_session *s, const tmx_progress *progress)
{
    return s->params.progress == NULL || s->params.progress(s->params.progress_ctx, progress);
}

static tmx_status prefill_chunk(chunk *c, const tmx_prompt *prompts, tmx_progress *progress, tmx_error *err)
{
    const backend *b = c->s->backend;
    const model_shape *m = &c->s->model->tensors.shape;
    const bool has_branch_norms = m->has_branch_norms, has_experts = m->n_experts > 0;
    b->embed(c);
    for (c->layer = 0; c->layer < c->s->model->info.n_layers; c->layer++) {
        b->norm(c, NORM_ATTENTION);
        if (chunk_is_last_layer(c)) {
            b->product(c, PRODUCT_LAST_KV);
            b->place_heads(c);
            b->finish(c, prompts);
        } else {
            b->product(c, PRODUCT_QKV);
            b->place_heads(c);
            attend(b, c);
            b->product(c, PRODUCT_ATTN_OUTPUT);
            if (has_branch_norms) b->add_branch(c, NORM_ATTENTION);
            b->norm(c, NORM_FFN);
            if (has_experts) {
                b->experts(c);
            } else {
                b->product(c, PRODUCT_GATE_UP);
                b->gate(c);
                b->product(c, PRODUCT_DOWN);
            }
            if (has_branch_norms) b->add_branch(c, NORM_FFN);
        }
        const int64_t n_before = progress->n_done;
        TRY(b->catch_up(c, &progress->n_done, err));
        if (progress->n_done > n_before && !report(c->s, progress)) {
            return refuse(err, TMX_E_CANCELLED, "prefill: stopped in layer %d", c->layer);
        }
    }
    return TMX_OK;
}

static tmx_status prefill_chunks(tmx_session *s, const tmx_prompt *prompts, int32_t n_prompts, tmx_progress *progress, tmx_error *err)
{
    prompt_cursor next = { 0 };
    for (chunk c = { .s = s }; chunk_next(&c, &next, prompts, n_prompts);) TRY(prefill_chunk(&c, prompts, progress, err));
    return TMX_OK;
}

tmx_status tmx_prefill(tmx_session *s, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err)
{
    TRY(prompts_check(s, prompts, n_prompts, err));
    const double start = now_ms();
    int64_t n_tokens = 0;
    for (int32_t i = 0; i < n_prompts; i++) n_tokens += prompts[i].n_tokens;
    tmx_progress progress = { .n_total = n_tokens * s->model->info.n_layers };
    const tmx_status status = prefill_chunks(s, prompts, n_prompts, &progress, err);
    const tmx_status settled = s->backend->settle(s, prompts, n_prompts, status == TMX_OK ? err : NULL);
    if (status != TMX_OK) return status;
    TRY(settled);
    if (progress.n_done < progress.n_total) {
        progress.n_done = progress.n_total;
        if (!report(s, &progress)) return refuse(err, TMX_E_CANCELLED, "prefill: stopped after the last layer");
    }
    for (int32_t i = 0; i < n_prompts; i++) {
        if (prompts[i].logits != NULL && !logits_are_finite(prompts[i].logits, s->model->info.n_vocab)) {
            return refuse(err, TMX_E_NUMERIC, "prompt %d: the logits hold NaN or infinity; the model file may be damaged", i);
        }
    }
    for (int32_t i = 0; i < n_prompts; i++) {
        s->n_past[prompts[i].seq] += prompts[i].n_tokens;
        cold_rows_extend(s, prompts[i].seq, prompts[i].n_tokens);
    }
    s->timings.n_prefill_tokens += n_tokens;
    s->timings.prefill_ms += now_ms() - start;
    return TMX_OK;
}
