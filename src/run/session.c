#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "base/status.h"
#include "run/backend.h"
#include "run/reuse.h"
#include "run/watch.h"

#include <math.h>
#include <string.h>

enum { MAX_SEQS = 4096 };

bool logits_are_finite(const float *logits, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (!isfinite(logits[i])) return false;
    }
    return true;
}

void session_count_pairs(tmx_session *s, int32_t layer, int32_t q_begin, int32_t q_end, double n_pairs)
{
    const double n_rows = q_end - q_begin;
    s->layer_pairs[2 * layer] += n_pairs;
    s->layer_pairs[2 * layer + 1] += n_rows * q_begin + n_rows * (n_rows + 1) / 2;
}

void session_count_static(tmx_session *s, int32_t layer, const tmx_pattern *pattern, int32_t n_prompt, int32_t q_begin, int32_t q_end)
{
    session_count_pairs(s, layer, q_begin, q_end, (double)tmx_pattern_pairs(pattern, n_prompt, q_begin, q_end));
    if (watches_layer(s, layer)) watch_static(s, pattern, n_prompt, q_begin, q_end);
}

/* What does not depend on the backend, which fills in the rest. */
static tmx_status resolve_params(const tmx_model_info *m, const tmx_session_params *given, tmx_session_params *p, tmx_error *err)
{
    *p = given != NULL ? *given : (tmx_session_params){ 0 };
    if (p->n_ctx == 0) p->n_ctx = m->n_ctx_train;
    if (p->n_ctx < 1 || p->n_ctx > m->n_ctx_max) {
        return refuse(err, TMX_E_ARG, "context: %d tokens asked for, the model has %d (a RoPE base of your own lifts the limit)",
                      p->n_ctx, m->n_ctx_max);
    }
    if (p->n_seqs == 0) p->n_seqs = 1;
    if (p->n_seqs < 1 || p->n_seqs > MAX_SEQS) return refuse(err, TMX_E_ARG, "n_seqs: %d is out of range 1..%d", p->n_seqs, MAX_SEQS);
    if (p->n_chunk < 0) return refuse(err, TMX_E_ARG, "chunk: %d is negative", p->n_chunk);
    if (p->kv_type != TMX_TYPE_DEFAULT && p->kv_type != TMX_TYPE_F32 && p->kv_type != TMX_TYPE_BF16) {
        return refuse(err, TMX_E_ARG, "kv_type: unknown value %d", (int)p->kv_type);
    }
    return TMX_OK;
}

const backend *backend_of(const tmx_model_info *info)
{
    return info->device == NULL || strcmp(info->device, "cpu") == 0 ? &backend_cpu : &backend_cuda;
}

enum { FLEXPREFILL_MAX_CTX = 1 << 22 };        /* its map of blocks has an int32 for every tile */

static tmx_status check_plan(const tmx_plan *plan, const tmx_model_info *info, int32_t n_ctx, tmx_error *err)
{
    if (plan == NULL) return TMX_OK;
    if (plan->n_layers != info->n_layers) {
        return refuse(err, TMX_E_ARG, "plan: %d layers, the model has %d", plan->n_layers, info->n_layers);
    }
    const uint32_t unknown = plan_dynamic_kinds(plan) & ~backend_of(info)->dynamic_kinds;
    if (unknown != 0) {
        return refuse(err, TMX_E_UNSUPPORTED, "plan: %s layers run on the CPU only, the model is on %s",
                      tmx_pattern_name((tmx_pattern_kind)__builtin_ctz(unknown)), info->device);
    }
    if (plan->thresholds != NULL && plan_has(plan, TMX_PATTERN_XATTENTION) && !backend_of(info)->has_thresholds) {
        return refuse(err, TMX_E_UNSUPPORTED, "plan: xattention's thresholds by head run on the CPU only, the model is on %s", info->device);
    }
    if (plan_estimate_rows(plan) > 0 && !backend_of(info)->has_estimate_rows) {
        return refuse(err, TMX_E_UNSUPPORTED, "plan: estimates per chunk run on the CPU only, the model is on %s", info->device);
    }
    if (plan->n_heads != 0 && plan->n_heads != info->n_heads) {
        return refuse(err, TMX_E_ARG, "plan: %s is configured for %d heads, the model has %d", plan->heads != NULL ? "minference" : "xattention",
                      plan->n_heads, info->n_heads);
    }
    if (plan_has(plan, TMX_PATTERN_FLEXPREFILL) && n_ctx > FLEXPREFILL_MAX_CTX) {
        return refuse(err, TMX_E_ARG, "plan: flexprefill takes a context of up to %d tokens, the session has %d", FLEXPREFILL_MAX_CTX, n_ctx);
    }
    return TMX_OK;
}

tmx_status tmx_memory_plan(const tmx_model_info *info, tmx_compute compute, tmx_isa isa, const tmx_session_params *params,
                           int32_t n_threads, tmx_memory *memory, tmx_error *err)
{
    if (info == NULL || memory == NULL) return refuse(err, TMX_E_ARG, "tmx_memory_plan: NULL argument");
    if (n_threads < 1) return refuse(err, TMX_E_ARG, "threads: %d, expected at least 1", n_threads);
    memory_case at = { .info = info, .isa = cpu_isa_resolve(isa), .n_threads = n_threads };
    at.compute = model_compute_resolve(compute, at.isa);
    tmx_session_params p;
    tmx_memory m;
    TRY(resolve_params(info, params, &p, err));
    TRY(check_plan(p.plan, info, p.n_ctx, err));
    TRY(backend_of(info)->plan_memory(&at, &p, &m, err));
    if (p.plan != NULL && !plan_is_static(p.plan)) {       /* once more with the chunk it needs, now that the default is known */
        at.dynamic_kinds = plan_dynamic_kinds(p.plan);
        p.n_chunk = max_i32(p.n_chunk, min_i32(plan_row_unit(p.plan), p.n_ctx));
        TRY(backend_of(info)->plan_memory(&at, &p, &m, err));
    }
    m.total_bytes = m.weight_bytes + m.merged_bytes + m.kv_bytes + m.workspace_bytes;
    *memory = m;
    return TMX_OK;
}

/* A session's own: what does not fit now is refused. */
static memory_case case_of(const tmx_session *s)
{
    return (memory_case){ .info = &s->model->info, .compute = s->model->compute, .isa = s->model->isa,
                          .n_threads = pool_n_threads(s->pool), .model = s->model, .is_taken_now = true };
}

static int32_t chunk_for(const tmx_session *s, const tmx_plan *plan)
{
    return max_i32(s->asked_chunk, min_i32(plan_row_unit(plan), s->params.n_ctx));
}

static tmx_status fill_session(tmx_session *s, const tmx_model *model, const tmx_plan *plan, tmx_pool *pool,
                               const tmx_session_params *params, tmx_error *err)
{
    const tmx_model_info *info = &model->info;
    s->model = model;
    s->pool = pool;
    s->backend = backend_of(info);
    TRY(resolve_params(info, params, &s->params, err));
    s->params.plan = NULL;
    TRY(check_plan(plan, info, s->params.n_ctx, err));
    if (plan == NULL) TRY(plan_create_dense(&s->plan, info->n_layers, err));
    else TRY(plan_copy(&s->plan, plan, err));
    TRY(plan_bind_windows(s->plan, info, err));
    tmx_memory memory;
    memory_case at = case_of(s);
    TRY(s->backend->plan_memory(&at, &s->params, &memory, err));       /* a chunk of 0 becomes the default */
    s->asked_chunk = s->params.n_chunk;
    s->n_chunk = chunk_for(s, s->plan);
    s->dynamic_kinds = at.dynamic_kinds = plan_dynamic_kinds(s->plan);
    if (!plan_is_static(s->plan)) {
        s->params.n_chunk = s->n_chunk;
        TRY(s->backend->plan_memory(&at, &s->params, &memory, err));
    }
    s->n_past = mem_alloc((size_t)s->params.n_seqs, sizeof *s->n_past);
    s->cold = mem_alloc((size_t)s->params.n_seqs, sizeof *s->cold);
    s->segments = mem_alloc((size_t)s->params.n_seqs, sizeof *s->segments);
    s->layer_attention_ms = mem_alloc((size_t)info->n_layers, sizeof *s->layer_attention_ms);
    s->layer_pairs = mem_alloc((size_t)info->n_layers, 2 * sizeof *s->layer_pairs);
    if (s->n_past == NULL || s->cold == NULL || s->segments == NULL || s->layer_attention_ms == NULL || s->layer_pairs == NULL) {
        return refuse(err, TMX_E_MEMORY, "session: out of memory for %d sequences", s->params.n_seqs);
    }
    return s->backend->create(s, &memory, err);
}

tmx_status tmx_session_create(tmx_session **session, const tmx_model *model, const tmx_plan *plan, tmx_pool *pool,
                              const tmx_session_params *params, tmx_error *err)
{
    if (session == NULL || model == NULL) return refuse(err, TMX_E_ARG, "tmx_session_create: NULL argument");
    tmx_session *s = mem_alloc(1, sizeof *s);
    if (s == NULL) return refuse(err, TMX_E_MEMORY, "session: out of memory");
    const tmx_status status = fill_session(s, model, plan, pool, params, err);
    if (status != TMX_OK) {
        tmx_session_free(s);
        return status;
    }
    *session = s;
    return TMX_OK;
}

void tmx_session_free(tmx_session *s)
{
    if (s == NULL) return;
    if (s->backend != NULL) s->backend->free(s);
    tmx_plan_free(s->plan);
    mem_free(s->n_past);
    mem_free(s->cold);
    mem_free(s->segments);
    mem_free(s->layer_attention_ms);
    mem_free(s->layer_pairs);
    mem_free(s);
}

void tmx_session_reset(tmx_session *s)
{
    memset(s->n_past, 0, (size_t)s->params.n_seqs * sizeof *s->n_past);
    memset(s->cold, 0, (size_t)s->params.n_seqs * sizeof *s->cold);
    memset(s->layer_attention_ms, 0, (size_t)s->model->info.n_layers * sizeof *s->layer_attention_ms);
    memset(s->layer_pairs, 0, (size_t)s->model->info.n_layers * 2 * sizeof *s->layer_pairs);
    s->timings = (tmx_timings){ 0 };
}

tmx_status tmx_session_rewind(tmx_session *s, int32_t seq, int32_t n_past, tmx_error *err)
{
    if (s == NULL) return refuse(err, TMX_E_ARG, "tmx_session_rewind: NULL argument");
    if (seq < 0 || seq >= s->params.n_seqs) {
        return refuse(err, TMX_E_ARG, "rewind: sequence %d is out of range 0..%d", seq, s->params.n_seqs - 1);
    }
    if (n_past < 0 || n_past > s->n_past[seq]) {
        return refuse(err, TMX_E_ARG, "rewind: position %d is out of range 0..%d", n_past, s->n_past[seq]);
    }
    s->n_past[seq] = n_past;
    cold_rows_cut(s, seq, n_past);
    return TMX_OK;
}

/* Another state, with memory for these kinds and chunks.  No sequence holds tokens: nothing is carried over. */
static tmx_status rebuild(tmx_session *s, uint32_t dynamic_kinds, int32_t n_chunk, tmx_error *err)
{
    const tmx_session old = *s;
    memory_case at = case_of(s);
    tmx_memory memory;
    at.dynamic_kinds = s->dynamic_kinds = dynamic_kinds;
    s->params.n_chunk = n_chunk;
    tmx_status status = s->backend->plan_memory(&at, &s->params, &memory, err);
    if (status == TMX_OK) {
        s->state = NULL;
        status = s->backend->create(s, &memory, err);
        void *unwanted = status == TMX_OK ? old.state : s->state, *wanted = status == TMX_OK ? s->state : old.state;
        s->state = unwanted;
        s->backend->free(s);
        s->state = wanted;
    }
    if (status == TMX_OK) return TMX_OK;
    s->params = old.params;
    s->dynamic_kinds = old.dynamic_kinds;
    return status;
}

/* Memory for this plan, beside those that the session ran already. */
static tmx_status make_room(tmx_session *s, const tmx_plan *plan, tmx_error *err)
{
    const uint32_t kinds = s->dynamic_kinds | plan_dynamic_kinds(plan);
    const int32_t n_chunk = max_i32(s->params.n_chunk, chunk_for(s, plan));
    if (n_chunk > s->params.n_chunk || kinds != s->dynamic_kinds) return rebuild(s, kinds, n_chunk, err);
    return s->backend->fit_plan != NULL ? s->backend->fit_plan(s, plan, err) : TMX_OK;
}

tmx_status tmx_session_set_plan(tmx_session *s, const tmx_plan *plan, tmx_error *err)
{
    if (s == NULL || plan == NULL) return refuse(err, TMX_E_ARG, "tmx_session_set_plan: NULL argument");
    TRY(check_plan(plan, &s->model->info, s->params.n_ctx, err));
    for (int32_t i = 0; i < s->params.n_seqs; i++) {
        if (s->n_past[i] != 0) return refuse(err, TMX_E_ARG, "plan: sequence %d already holds %d tokens", i, s->n_past[i]);
    }
    tmx_plan *copy;
    TRY(plan_copy(&copy, plan, err));
    tmx_status status = plan_bind_windows(copy, &s->model->info, err);
    if (status == TMX_OK) status = make_room(s, copy, err);
    if (status != TMX_OK) {
        tmx_plan_free(copy);
        return status;
    }
    tmx_plan_free(s->plan);
    s->plan = copy;
    s->n_chunk = chunk_for(s, copy);
    return TMX_OK;
}

int32_t tmx_session_n_ctx(const tmx_session *s) { return s->params.n_ctx; }

int32_t tmx_session_n_past(const tmx_session *s, int32_t seq)
{
    return seq >= 0 && seq < s->params.n_seqs ? s->n_past[seq] : -1;
}

void tmx_session_timings(const tmx_session *s, tmx_timings *timings)
{
    *timings = s->timings;
    for (int32_t l = 0; l < s->model->info.n_layers; l++) timings->attention_ms += s->layer_attention_ms[l];
    timings->rest_ms = timings->prefill_ms - timings->matmul_ms - timings->attention_ms;
}

double tmx_session_layer_attention_ms(const tmx_session *s, int32_t layer)
{
    return layer >= 0 && layer < s->model->info.n_layers ? s->layer_attention_ms[layer] : 0;
}

double tmx_session_layer_density(const tmx_session *session, int32_t layer)
{
    if (layer < 0 || layer >= session->model->info.n_layers || session->layer_pairs[2 * layer + 1] == 0) return 0;
    return session->layer_pairs[2 * layer] / session->layer_pairs[2 * layer + 1];
}
