#include "run/search_heads.h"

#include "attn/attn_element.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/status.h"
#include "pattern/pattern.h"

#include <math.h>
#include <string.h>

/* The paper's candidates; sizes matter by their ratio. */
static const minference_head candidates[N_CANDIDATES] = {
    { MINFERENCE_VERTICAL_SLASH, 30, 2048 }, { MINFERENCE_VERTICAL_SLASH, 100, 1800 }, { MINFERENCE_VERTICAL_SLASH, 500, 1500 },
    { MINFERENCE_VERTICAL_SLASH, 3000, 200 }, { MINFERENCE_A_SHAPE, 1024, 4096 }, { MINFERENCE_BLOCK_SPARSE, 0, 0 },
};

enum { N_STEPS = 8 };              /* of a bisection: sizes to 1/256 of the prompt */

/* factor 1: the larger size is the prompt. */
static minference_head scaled(const minference_head *head, double factor, int32_t n)
{
    const int32_t larger = max_i32(head->a, head->b);
    minference_head made = *head;
    if (larger == 0) return made;
    made.a = (int32_t)lround(factor * head->a / larger * n);
    made.b = max_i32(1, (int32_t)lround(factor * head->b / larger * n));
    return made;
}

typedef struct error_run {
    const tmx_attention_params *params;
    const void *out;
    double *error;                 /* [n_heads] */
} error_run;

static void run_error_task(void *ctx, int32_t head, int32_t thread)
{
    const error_run *run = ctx;
    const tmx_attention_params *p = run->params;
    double difference = 0, norm = 0;
    (void)thread;
    for (int32_t i = 0; i < p->seqs->n_q; i++) {
        const size_t at = (size_t)i * p->out_pos_stride + (size_t)head * p->out_head_stride;
        for (size_t d = 0; d < (size_t)p->head_dim; d++) {
            const double dense = attn_element(p->seqs->out, p->q_type, at + d), x = attn_element(run->out, p->q_type, at + d) - dense;
            difference += x * x;
            norm += dense * dense;
        }
    }
    run->error[head] = norm > 0 ? difference / norm : 0;
}

/* Sizes of one candidate for every head, into chosen, with at most `budget` pairs if there are such; found is what they keep. */
static void fit_sizes(head_search *search, int32_t which, double budget, const tmx_attention_params *params, minference_head *chosen,
                      head_keys *found, uint64_t *room, tmx_pool *pool)
{
    const int32_t n = params->seqs->n_q, n_heads = params->n_heads;
    for (int32_t h = 0; h < n_heads; h++) search->least[h] = 0, search->most[h] = 1;
    for (int32_t step = 0; step < N_STEPS && candidates[which].type != MINFERENCE_BLOCK_SPARSE; step++) {
        for (int32_t h = 0; h < n_heads; h++) chosen[h] = scaled(&candidates[which], (search->least[h] + search->most[h]) / 2, n);
        attn_minference(params, chosen, found, room, pool);
        for (int32_t h = 0; h < n_heads; h++) {
            const double middle = (search->least[h] + search->most[h]) / 2;
            *((double)head_keys_pairs(&found[h], 0) <= budget ? &search->least[h] : &search->most[h]) = middle;
        }
    }
    for (int32_t h = 0; h < n_heads; h++) chosen[h] = scaled(&candidates[which], search->least[h], n);
    attn_minference(params, chosen, found, room, pool);
}

void search_layer(head_search *search, int32_t layer, const tmx_attention_params *params, minference_head *chosen, head_keys *found,
                  uint64_t *room, tmx_pool *pool)
{
    const int32_t n = params->seqs->n_q, n_heads = params->n_heads;
    const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE };
    const double budget = search->keep * (double)tmx_pattern_pairs(&dense, n, 0, n);
    tmx_attention_seq seq = *params->seqs;
    tmx_attention_params other = *params;
    seq.out = search->out;
    other.seqs = &seq;
    for (int32_t which = 0; which < N_CANDIDATES; which++) {
        fit_sizes(search, which, budget, params, chosen, found, room, pool);
        attn_over_heads(&other, found, pool);
        error_run run = { .params = params, .out = search->out, .error = search->error };
        pool_run(pool, n_heads, run_error_task, &run);
        for (int32_t h = 0; h < n_heads; h++) {
            candidate *at = &search->candidates[((size_t)layer * (size_t)n_heads + (size_t)h) * N_CANDIDATES + (size_t)which];
            if (!search->is_seen[layer] || chosen[h].a < at->head.a) at->head.a = chosen[h].a;
            if (!search->is_seen[layer] || chosen[h].b < at->head.b) at->head.b = chosen[h].b;
            at->head.type = chosen[h].type;
            at->error += (double)head_keys_pairs(&found[h], 0) <= budget ? search->error[h] : INFINITY;
        }
    }
    search->is_seen[layer] = true;
}

/* ---------------------------------------------------------------- the search over a model */

static tmx_status make_search(head_search *search, const tmx_model *model, int32_t n_most, tmx_error *err)
{
    const tmx_model_info *info = tmx_model_info_get(model);
    const size_t n_layers = (size_t)info->n_layers, n_heads = (size_t)info->n_heads;
    search->n_heads = info->n_heads;
    search->candidates = mem_alloc(n_layers * n_heads, N_CANDIDATES * sizeof *search->candidates);
    search->out = mem_alloc((size_t)n_most, n_heads * (size_t)info->head_dim * sizeof(float));
    search->least = mem_alloc(n_heads, sizeof *search->least);
    search->most = mem_alloc(n_heads, sizeof *search->most);
    search->error = mem_alloc(n_heads, sizeof *search->error);
    search->is_seen = mem_alloc(n_layers, sizeof *search->is_seen);
    if (search->candidates != NULL && search->out != NULL && search->least != NULL && search->most != NULL && search->error != NULL
        && search->is_seen != NULL) {
        return TMX_OK;
    }
    return refuse(err, TMX_E_MEMORY, "minference search: no memory for prompts of %d tokens", n_most);
}

static void free_search(head_search *search)
{
    mem_free(search->candidates);
    mem_free(search->out);
    mem_free(search->least);
    mem_free(search->most);
    mem_free(search->error);
    mem_free(search->is_seen);
}

typedef struct search_clock {
    const tmx_head_search_params *params;
    int32_t n_layers;
    int64_t n_tokens_before, n_tokens;     /* of the prompts that are done, of all */
} search_clock;

static bool on_progress(void *ctx, const tmx_progress *p)
{
    const search_clock *clock = ctx;
    if (clock->params->progress == NULL) return true;
    const tmx_progress all = { .n_done = clock->n_tokens_before * clock->n_layers + p->n_done, .n_total = clock->n_tokens * clock->n_layers };
    return clock->params->progress(clock->params->progress_ctx, &all);
}

static tmx_status run_prompts(head_search *search, const tmx_model *model, tmx_pool *pool, const tmx_plan *plan, int32_t n_most,
                              const tmx_head_search_params *params, tmx_error *err)
{
    search_clock clock = { .params = params, .n_layers = tmx_model_info_get(model)->n_layers };
    for (int32_t i = 0; i < params->n_prompts; i++) clock.n_tokens += params->prompts[i].n_tokens;
    const tmx_session_params sizes = { .n_ctx = n_most, .progress = on_progress, .progress_ctx = &clock };
    tmx_session *session;
    TRY(tmx_session_create(&session, model, plan, pool, &sizes, err));
    session->search = search;
    tmx_status status = TMX_OK;
    for (int32_t i = 0; i < params->n_prompts && status == TMX_OK; i++) {
        const tmx_prompt prompt = { .tokens = params->prompts[i].tokens, .n_tokens = params->prompts[i].n_tokens };
        tmx_session_reset(session);
        status = tmx_prefill(session, &prompt, 1, err);
        clock.n_tokens_before += prompt.n_tokens;
    }
    tmx_session_free(session);
    return status;
}

/* The candidate with the least error for every head; a layer that never ran takes what MInference gives a head without a name. */
static tmx_status choose_heads(tmx_plan *plan, const head_search *search, int32_t n_prompts, tmx_head_search_result *result, tmx_error *err)
{
    const size_t n_heads = (size_t)search->n_heads, n = (size_t)plan->n_layers * n_heads;
    double error = 0;
    *result = (tmx_head_search_result){ .error = 0 };
    plan->minference = (minference)MINFERENCE_DEFAULTS;
    plan->heads = mem_alloc(n, sizeof *plan->heads);
    if (plan->heads == NULL) return refuse(err, TMX_E_MEMORY, "minference search: no memory for %zu heads", n);
    plan->n_heads = search->n_heads;
    for (size_t i = 0; i < n; i++) {
        const candidate *of = &search->candidates[i * N_CANDIDATES], *best = of;
        plan->heads[i] = (minference_head){ MINFERENCE_VERTICAL_SLASH, plan->minference.vertical, plan->minference.slash };
        if (!search->is_seen[i / n_heads]) continue;
        for (int32_t c = 1; c < N_CANDIDATES; c++) {
            if (of[c].error < best->error) best = &of[c];
        }
        plan->heads[i] = best->head;
        error += best->error / n_prompts;
        result->n_vertical_slash += best->head.type == MINFERENCE_VERTICAL_SLASH;
        result->n_a_shape += best->head.type == MINFERENCE_A_SHAPE;
        result->n_block_sparse += best->head.type == MINFERENCE_BLOCK_SPARSE;
    }
    const int32_t n_chosen = result->n_vertical_slash + result->n_a_shape + result->n_block_sparse;
    result->error = n_chosen > 0 ? error / n_chosen : 0;
    return TMX_OK;
}

tmx_status tmx_minference_search(tmx_plan **plan, const tmx_model *model, tmx_pool *pool, const tmx_head_search_params *params,
                                 tmx_head_search_result *result, tmx_error *err)
{
    enum { LEAST_TOKENS = 2 * KEY_BLOCK + 1 };
    if (plan == NULL || model == NULL || params == NULL || params->prompts == NULL || result == NULL) {
        return refuse(err, TMX_E_ARG, "minference search: NULL argument");
    }
    if (!(params->keep > 0 && params->keep <= 1)) {
        return refuse(err, TMX_E_ARG, "minference search: keep: %g, expected more than 0, up to 1", params->keep);
    }
    if (params->n_prompts < 1) return refuse(err, TMX_E_ARG, "minference search: %d prompts, expected 1 or more", params->n_prompts);
    int32_t n_most = 0;
    for (int32_t i = 0; i < params->n_prompts; i++) {
        const int32_t n = params->prompts[i].n_tokens;
        if (n < LEAST_TOKENS) return refuse(err, TMX_E_ARG, "minference search: prompt %d has %d tokens, expected %d or more", i, n, LEAST_TOKENS);
        n_most = max_i32(n_most, n);
    }
    head_search search = { .keep = params->keep };
    tmx_plan *p = NULL;
    /* every layer but those with a window of the model's own; sizes for which none runs dense */
    tmx_status status = tmx_plan_parse(&p, "minference(vertical=0,slash=0)", tmx_model_info_get(model), err);
    if (status == TMX_OK) status = make_search(&search, model, n_most, err);
    if (status == TMX_OK) status = run_prompts(&search, model, pool, p, n_most, params, err);
    if (status == TMX_OK) status = choose_heads(p, &search, params->n_prompts, result, err);
    free_search(&search);
    if (status == TMX_OK) *plan = p;
    else tmx_plan_free(p);
    return status;
}
