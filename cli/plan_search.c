#include "plan_search.h"

#include "eval/task.h"
#include "options.h"
#include "progress.h"
#include "report.h"
#include "signals.h"

#include <stdio.h>
#include <stdlib.h>

enum { DEFAULT_TOKENS = 4000 };

/* Sample i of the task as ids. */
static tmx_status make_prompt(const plan_options *o, const tmx_model *model, const task_kind *kind, int32_t n_tokens, int32_t i,
                              int32_t **ids, tmx_prompt *prompt, tmx_error *err)
{
    const bool is_chat = tmx_chat_format(model) != NULL;
    task_sample sample;
    tmx_status status = task_make(kind, model, (uint64_t)o->seed, i, n_tokens, is_chat, &sample, err);
    if (status != TMX_OK) return status;
    status = task_prompt_ids(&sample, model, is_chat, ids, &prompt->n_tokens, err);
    task_sample_free(&sample);
    prompt->tokens = *ids;
    return status;
}

static int search_prompts(const plan_options *o, const tmx_model *model, tmx_pool *pool, const tmx_prompt *prompts, const char *label)
{
    tmx_plan *plan = NULL;
    tmx_head_search_result found;
    tmx_error err;
    progress bar;
    const tmx_head_search_params params = { .prompts = prompts, .n_prompts = o->n_samples, .keep = o->keep,
                                            .progress = progress_update, .progress_ctx = &bar };
    progress_init(&bar, o->is_quiet);
    progress_begin(&bar, label);
    signals_begin_polite();
    tmx_status status = tmx_minference_search(&plan, model, pool, &params, &found, &err);
    signals_end_polite();
    progress_end(&bar);
    if (status == TMX_OK) status = tmx_plan_save_heads(plan, o->output, &err);
    tmx_plan_free(plan);
    if (status != TMX_OK) return complain_error(&err);
    printf("%s, seed %lld, %.3g of the pairs\n", label, (long long)o->seed, o->keep);
    printf("%d heads vertical-slash, %d A-shape, %d block-sparse; mean error of a head's output %.3g\n", found.n_vertical_slash,
           found.n_a_shape, found.n_block_sparse, found.error);
    return 0;
}

int search_minference(const plan_options *o, const tmx_model *model, tmx_pool *pool)
{
    const char *name = o->task != NULL ? o->task : "kv_uuid";
    const task_kind *kind = task_find(name);
    const int32_t n_most = tmx_model_info_get(model)->n_ctx_max;
    int32_t n_tokens = o->n_tokens > 0 ? o->n_tokens : DEFAULT_TOKENS;
    if (kind == NULL) return complain(EXIT_USAGE, "option --task: no task '%s'; tmx eval --list-tasks names them", name);
    if (n_tokens > n_most && o->n_tokens > 0) {
        return complain(EXIT_USAGE, "option --tokens: %d, the model's context is %d", n_tokens, n_most);
    }
    if (n_tokens > n_most) n_tokens = n_most;
    int32_t **ids = calloc((size_t)o->n_samples, sizeof *ids);
    tmx_prompt *prompts = calloc((size_t)o->n_samples, sizeof *prompts);
    if (ids == NULL || prompts == NULL) {
        free(ids);
        free(prompts);
        return complain(EXIT_RESOURCES, "out of memory for %d prompts", o->n_samples);
    }
    int code = 0;
    for (int32_t i = 0; i < o->n_samples && code == 0; i++) {
        tmx_error err;
        if (make_prompt(o, model, kind, n_tokens, i, &ids[i], &prompts[i], &err) != TMX_OK) code = complain_error(&err);
    }
    char label[64];
    snprintf(label, sizeof label, "%d %.24s prompts of %d tokens", o->n_samples, kind->name, n_tokens);
    if (code == 0) code = search_prompts(o, model, pool, prompts, label);
    for (int32_t i = 0; i < o->n_samples; i++) free(ids[i]);
    free(ids);
    free(prompts);
    return code;
}
