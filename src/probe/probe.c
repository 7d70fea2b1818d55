/* probe.c - the door: what is asked for, one run. */
#include "probe/probe.h"

#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "base/status.h"
#include "pattern/pattern.h"

#include <math.h>
#include <string.h>

enum { DEFAULT_TOKENS = 2048, MAX_TOKENS = 1 << 20 };

/* ---------------------------------------------------------------- sections */

static tmx_status sections_pattern(const tmx_probe_sections *given, tmx_pattern *pattern, tmx_error *err)
{
    static const tmx_probe_sections defaults = { TMX_PROBE_SINK, TMX_PROBE_WINDOW, TMX_PROBE_LAST };
    const tmx_probe_sections *s = given->n_window == 0 ? &defaults : given;
    if (given->n_window == 0 && (given->n_sink != 0 || given->n_last != 0)) {
        return refuse(err, TMX_E_ARG, "probe sections: n_window is 0 beside n_sink %d and n_last %d, expected 1 or more",
                      given->n_sink, given->n_last);
    }
    const tmx_pattern p = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = s->n_sink, .n_window = s->n_window, .n_last = s->n_last };
    TRY(pattern_check(&p, err));
    *pattern = p;
    return TMX_OK;
}

tmx_status tmx_probe_count_cells(const tmx_probe_sections *sections, int32_t n_tokens, tmx_probe_cells *cells, tmx_error *err)
{
    if (sections == NULL || cells == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_count_cells: NULL argument");
    if (n_tokens < 1) return refuse(err, TMX_E_ARG, "probe: %d tokens, expected 1 or more", n_tokens);
    tmx_pattern triangle;
    TRY(sections_pattern(sections, &triangle, err));
    tmx_pattern streaming = triangle, dense = triangle;
    streaming.kind = TMX_PATTERN_STREAMING;
    dense.kind = TMX_PATTERN_DENSE;
    const int64_t n_streaming = tmx_pattern_pairs(&streaming, n_tokens, 0, n_tokens);
    const int64_t n_triangle = tmx_pattern_pairs(&triangle, n_tokens, 0, n_tokens);
    *cells = (tmx_probe_cells){ .streaming = n_streaming, .last = n_triangle - n_streaming,
                                .middle = tmx_pattern_pairs(&dense, n_tokens, 0, n_tokens) - n_triangle };
    return TMX_OK;
}

/* ---------------------------------------------------------------- what is asked for */

static tmx_status resolve_params(const tmx_model_info *m, const tmx_probe_params *given, tmx_probe_params *p, tmx_error *err)
{
    *p = given != NULL ? *given : (tmx_probe_params){ 0 };
    const int32_t limit = min_i32(m->n_ctx_max, MAX_TOKENS);
    if (p->n_tokens == 0) p->n_tokens = min_i32(DEFAULT_TOKENS, limit);
    if (p->n_tokens < 1 || p->n_tokens > limit) {
        return refuse(err, TMX_E_ARG, "probe: prompts of %d tokens asked for, the limit is %d (the model's context of %d, which a "
                      "RoPE base of your own lifts, or %d)", p->n_tokens, limit, m->n_ctx_train, MAX_TOKENS);
    }
    return TMX_OK;
}

static const probe_backend *backend_of(const tmx_model_info *info)
{
    return info->device == NULL || strcmp(info->device, "cpu") == 0 ? &probe_cpu : &probe_cuda;
}

tmx_status tmx_probe_memory(const tmx_model_info *info, tmx_compute compute, tmx_isa isa, const tmx_probe_params *params,
                            int32_t n_threads, tmx_memory *memory, tmx_error *err)
{
    if (info == NULL || memory == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_memory: NULL argument");
    if (n_threads < 1) return refuse(err, TMX_E_ARG, "threads: %d, expected at least 1", n_threads);
    tmx_probe_params p;
    tmx_pattern sections;
    TRY(resolve_params(info, params, &p, err));
    TRY(sections_pattern(&p.sections, &sections, err));
    isa = cpu_isa_resolve(isa);
    const probe_case at = { .info = info, .params = &p, .compute = model_compute_resolve(compute, isa), .isa = isa, .n_threads = n_threads };
    return backend_of(info)->plan_memory(&at, memory, err);
}

/* ---------------------------------------------------------------- create */

static tmx_status fill_probe(tmx_probe *p, const tmx_model *model, tmx_pool *pool, const tmx_probe_params *params, tmx_error *err)
{
    const tmx_model_info *info = &model->info;
    p->model = model;
    p->pool = pool;
    p->backend = backend_of(info);
    TRY(resolve_params(info, params, &p->params, err));
    for (int32_t l = 0; l < info->n_layers; l++) {
        if (!tmx_model_layer_has_window(info, l)) p->rope = model_rope(model, l, p->params.n_tokens);
    }
    if (p->rope == NULL) {
        return refuse(err, TMX_E_UNSUPPORTED, "probe: every layer of this model has a sliding window of %d tokens of its own; there "
                      "is none to choose", info->n_window);
    }
    TRY(sections_pattern(&p->params.sections, &p->sections, err));
    p->found = mem_alloc((size_t)info->n_layers, sizeof *p->found);
    if (p->found == NULL) return refuse(err, TMX_E_MEMORY, "probe: out of memory for the sums of %d layers", info->n_layers);
    return p->backend->create(p, err);
}

tmx_status tmx_probe_create(tmx_probe **probe, const tmx_model *model, tmx_pool *pool, const tmx_probe_params *params, tmx_error *err)
{
    if (probe == NULL || model == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_create: NULL argument");
    tmx_probe *p = mem_alloc(1, sizeof *p);
    if (p == NULL) return refuse(err, TMX_E_MEMORY, "probe: out of memory");
    const tmx_status status = fill_probe(p, model, pool, params, err);
    if (status != TMX_OK) {
        tmx_probe_free(p);
        return status;
    }
    *probe = p;
    return TMX_OK;
}

void tmx_probe_free(tmx_probe *p)
{
    if (p == NULL) return;
    p->backend->free(p);
    mem_free(p->found);
    mem_free(p);
}

/* ---------------------------------------------------------------- run */

static tmx_status check_prompt(const tmx_probe *p, const int32_t *tokens, int32_t n_tokens, int32_t target, tmx_error *err)
{
    if (p == NULL || tokens == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_run: NULL argument");
    if (n_tokens < 1) return refuse(err, TMX_E_ARG, "probe: a prompt of %d tokens, expected 1 or more", n_tokens);
    if (n_tokens > p->params.n_tokens) {
        return refuse(err, TMX_E_FULL, "probe: a prompt of %d tokens, this probe was made for %d", n_tokens, p->params.n_tokens);
    }
    const int32_t n_vocab = p->model->info.n_vocab;
    for (int32_t i = 0; i < n_tokens; i++) {
        if (tokens[i] >= 0 && tokens[i] < n_vocab) continue;
        return refuse(err, TMX_E_ARG, "probe: token %d is %d, expected 0..%d", i, tokens[i], n_vocab - 1);
    }
    if (target >= 0 && target < n_vocab) return TMX_OK;
    return refuse(err, TMX_E_ARG, "probe: the target is token %d, expected 0..%d", target, n_vocab - 1);
}

/* Both passes tell progress; a backward layer takes about twice as long as a forward one. */
static tmx_status tell(const tmx_probe *p, tmx_progress *progress, int32_t n_units, int32_t layer, tmx_error *err)
{
    progress->n_done += (int64_t)n_units * p->n_tokens;
    if (p->params.progress == NULL || p->params.progress(p->params.progress_ctx, progress)) return TMX_OK;
    return refuse(err, TMX_E_CANCELLED, "probe: stopped in layer %d", layer);
}

static bool is_finite(const tmx_probe_sums *s)
{
    return isfinite(s->theta_abs + s->theta_signed + s->head_abs + s->da_abs + s->attention);
}

static tmx_status run_forward(tmx_probe *p, tmx_progress *progress, tmx_error *err)
{
    for (int32_t l = 0; l < p->model->info.n_layers; l++) {
        p->backend->forward(p, l);
        TRY(p->backend->catch_up(p, err));
        TRY(tell(p, progress, 1, l, err));
    }
    return p->backend->read_logits(p, err);
}

static tmx_status run_backward(tmx_probe *p, tmx_progress *progress, tmx_error *err)
{
    const int32_t n_layers = p->model->info.n_layers;
    for (int32_t l = n_layers - 1; l >= 0; l--) {
        p->backend->backward(p, l);
        TRY(p->backend->catch_up(p, err));
        TRY(tell(p, progress, 2, l, err));
    }
    TRY(p->backend->read_sums(p, err));
    for (int32_t l = n_layers - 1; l >= 0; l--) {
        const tmx_probe_layer *found = &p->found[l];
        if (is_finite(&found->streaming) && is_finite(&found->last) && is_finite(&found->middle)) continue;
        return refuse(err, TMX_E_NUMERIC, "probe: the gradient of layer %d holds NaN or infinity", l);
    }
    return TMX_OK;
}

static tmx_status run_passes(tmx_probe *p, int32_t target, tmx_probe_layer *layers, tmx_probe_result *result, tmx_error *err)
{
    const tmx_model_info *m = &p->model->info;
    tmx_progress progress = { .n_total = (int64_t)p->n_tokens * m->n_layers * (layers != NULL ? 3 : 1) };
    TRY(run_forward(p, &progress, err));
    tmx_probe_result found = { .target_logit = p->logits[target], .top_logit = p->logits[0] };
    for (int32_t i = 0; i < m->n_vocab; i++) {
        const float logit = p->logits[i];
        if (!isfinite(logit)) {
            return refuse(err, TMX_E_NUMERIC, "probe: the logits hold NaN or infinity; the model file may be damaged");
        }
        if (logit > found.top_logit) {
            found.top_logit = logit;
            found.top_token = i;
        }
    }
    found.is_correct = found.top_token == target;
    if (layers != NULL) {
        TRY(run_backward(p, &progress, err));
        memcpy(layers, p->found, (size_t)m->n_layers * sizeof *layers);
    }
    if (result != NULL) *result = found;
    return TMX_OK;
}

tmx_status tmx_probe_run(tmx_probe *p, const int32_t *tokens, int32_t n_tokens, int32_t target, tmx_probe_layer *layers,
                         tmx_probe_result *result, tmx_error *err)
{
    TRY(check_prompt(p, tokens, n_tokens, target, err));
    p->n_tokens = n_tokens;
    TRY(p->backend->begin(p, tokens, target, err));
    return run_passes(p, target, layers, result, err);
}
