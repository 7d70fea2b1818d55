/* probe.c - the door: sizes, memory, one run. */
#include "probe/probe.h"

#include "base/cpu.h"
#include "base/layout.h"
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

/* ---------------------------------------------------------------- sizes: one walk serves the plan and the real thing */

static size_t scratch_bytes(const tmx_model_info *m, int32_t n_tokens, tmx_type act_type, tmx_isa isa, int32_t n_threads)
{
    const int32_t n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim;
    const struct { int32_t n_out, n_in; } products[] = {
        { n_q + 2 * n_kv, m->n_embd }, { m->n_embd, n_q + 2 * n_kv }, { m->n_embd, n_q }, { n_q, m->n_embd },
        { 2 * m->n_ff, m->n_embd }, { m->n_embd, 2 * m->n_ff }, { m->n_embd, m->n_ff }, { m->n_ff, m->n_embd },
    };
    size_t n = (size_t)n_threads * (size_t)max_i32(max_i32(m->n_ff, n_q), m->n_embd) * sizeof(float);      /* matvec */
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        n = max_size(n, matmul_scratch_bytes(products[i].n_out, products[i].n_in, n_threads));
    }
    const tmx_attention_seq seq = { .n_q = n_tokens, .n_prompt = n_tokens };
    const tmx_attention_params attention = { .q_type = act_type, .kv_type = act_type, .n_heads = m->n_heads,
        .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim, .isa = isa, .seqs = &seq, .n_seqs = 1,
        .pattern = { .kind = TMX_PATTERN_DENSE, .n_window = 1 } };
    n = max_size(n, tmx_attention_scratch_bytes(&attention, n_threads));
    return max_size(n, attn_back_scratch_bytes(n_tokens, m->n_heads, m->n_kv_heads, m->head_dim, n_threads));
}

static void lay_out_tape(probe_tape *tape, layout *at, const tmx_model_info *m, size_t n, size_t act)
{
    const size_t n_q = (size_t)m->n_heads * (size_t)m->head_dim, n_kv = (size_t)m->n_kv_heads * (size_t)m->head_dim;
    const probe_tape t = {
        .x = layout_rows(at, n, (size_t)m->n_embd, sizeof(float)), .x1 = layout_rows(at, n, (size_t)m->n_embd, sizeof(float)),
        .q = layout_rows(at, n, n_q, act), .o = layout_rows(at, n, n_q, act), .k = layout_rows(at, n, n_kv, act), .v = layout_rows(at, n, n_kv, act),
        .lse = layout_rows(at, n, (size_t)m->n_heads, sizeof(float)),
    };
    if (tape != NULL) *tape = t;
}

static void lay_out(probe_buffers *b, layout *at, const tmx_model_info *m, size_t n, size_t act, size_t n_scratch)
{
    const size_t n_q = (size_t)m->n_heads * (size_t)m->head_dim, n_kv = (size_t)m->n_kv_heads * (size_t)m->head_dim;
    const size_t n_embd = (size_t)m->n_embd, n_ff = (size_t)m->n_ff, n_angles = ((size_t)m->head_dim + 1) / 2;
    const size_t n_chunk = n < PROBE_CHUNK ? n : PROBE_CHUNK, n_wide = max_size(n_q + 2 * n_kv, 2 * n_ff);
    const attn_strips strips = attn_back_strips((int32_t)n, m->n_kv_heads, m->head_dim);
    b->cos = layout_rows(at, n, n_angles, sizeof(float));
    b->sin = layout_rows(at, n, n_angles, sizeof(float));
    b->sin_back = layout_rows(at, n, n_angles, sizeof(float));
    b->window_cos = m->n_window > 0 ? layout_rows(at, n, n_angles, sizeof(float)) : NULL;
    b->window_sin = m->n_window > 0 ? layout_rows(at, n, n_angles, sizeof(float)) : NULL;
    b->window_sin_back = m->n_window > 0 ? layout_rows(at, n, n_angles, sizeof(float)) : NULL;
    b->branch = layout_rows(at, n_chunk, n_embd, sizeof(float));
    b->d_branch = layout_rows(at, n_chunk, n_embd, sizeof(float));
    b->normed = layout_rows(at, n_chunk, n_embd, act);
    b->wide = layout_rows(at, n_chunk, n_wide, sizeof(float));
    b->gated = layout_rows(at, n_chunk, n_ff, act);
    b->d_act = layout_rows(at, n_chunk, max_size(n_wide, n_embd), act);
    b->d_wide = layout_rows(at, n_chunk, max_size(n_ff, n_embd), sizeof(float));
    b->d = layout_rows(at, n, n_embd, sizeof(float));
    b->d_o = layout_rows(at, n, n_q, sizeof(float));
    b->d_q = layout_rows(at, attn_back_rows_padded((int32_t)n) * (size_t)m->n_heads, attn_back_d_pad(m->head_dim), sizeof(float));
    b->d_kv = layout_rows(at, strips.kv_at[strips.n], 1, sizeof(float));
    b->x_end = layout_rows(at, 1, n_embd, sizeof(float));
    b->logits = layout_rows(at, 1, (size_t)m->n_vocab, sizeof(float));
    b->row = layout_rows(at, 1, max_size(max_size(n_embd, n_q), n_ff), sizeof(float));
    b->scratch = layout_rows(at, 1, n_scratch, 1);
}

/* Beside the model's own: the transposes of every layer, and the last layer's q. */
static uint64_t extra_weight_bytes(const tmx_model_info *m, tmx_compute compute)
{
    const int32_t n_q = m->n_heads * m->head_dim, n_qkv = n_q + 2 * m->n_kv_heads * m->head_dim;
    const uint64_t layer = (uint64_t)matmul_weight_bytes(n_q, m->n_embd, compute)
                         + matmul_weight_bytes(m->n_embd, 2 * m->n_ff, compute)
                         + matmul_weight_bytes(m->n_ff, m->n_embd, compute);
    return layer * (uint64_t)m->n_layers + (uint64_t)matmul_weight_bytes(m->n_embd, n_qkv, compute) * (uint64_t)(m->n_layers - 1)
         + matmul_weight_bytes(n_q, m->n_embd, compute);
}

static tmx_type act_type_of(tmx_compute compute) { return compute == TMX_COMPUTE_BF16 ? TMX_TYPE_BF16 : TMX_TYPE_F32; }

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

static void count_bytes(const tmx_model_info *m, const tmx_probe_params *p, tmx_compute compute, tmx_isa isa, int32_t n_threads,
                        tmx_memory *memory, size_t *n_scratch)
{
    const size_t act = probe_type_bytes(act_type_of(compute)), n_layers = (size_t)m->n_layers;
    const size_t n_record = sizeof(probe_tape) + sizeof(probe_weights) + sizeof(tmx_probe_layer);
    layout tape = { 0 }, rest = { 0 };
    probe_buffers ignored;
    *n_scratch = scratch_bytes(m, p->n_tokens, act_type_of(compute), isa, n_threads);
    lay_out_tape(NULL, &tape, m, (size_t)p->n_tokens, act);
    lay_out(&ignored, &rest, m, (size_t)p->n_tokens, act, *n_scratch);
    *memory = (tmx_memory){ .weight_bytes = extra_weight_bytes(m, compute), .kv_bytes = tape.n_bytes * n_layers,
                            .workspace_bytes = rest.n_bytes + n_layers * n_record,
                            .available_bytes = mem_available_bytes() };
    memory->total_bytes = memory->weight_bytes + memory->kv_bytes + memory->workspace_bytes;
}

tmx_status tmx_probe_memory(const tmx_model_info *info, tmx_compute compute, tmx_isa isa, const tmx_probe_params *params,
                            int32_t n_threads, tmx_memory *memory, tmx_error *err)
{
    if (info == NULL || memory == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_memory: NULL argument");
    if (n_threads < 1) return refuse(err, TMX_E_ARG, "threads: %d, expected at least 1", n_threads);
    tmx_probe_params p;
    tmx_pattern sections;
    size_t n_scratch;
    TRY(resolve_params(info, params, &p, err));
    TRY(sections_pattern(&p.sections, &sections, err));
    isa = cpu_isa_resolve(isa);
    count_bytes(info, &p, model_compute_resolve(compute, isa), isa, n_threads, memory, &n_scratch);
    return TMX_OK;
}

/* ---------------------------------------------------------------- create */

static tmx_status pack(tmx_probe *p, matmul_weight **weight, const gguf_tensor *const *tensors, int32_t n, tmx_error *err)
{
    matmul_source sources[3];
    for (int32_t i = 0; i < n; i++) sources[i] = tensor_source(tensors[i]);
    return matmul_weight_create_transposed(weight, sources, n, p->model->compute, p->model->isa, MATMUL_AUTO,
                                           p->pool, err);
}

static tmx_status pack_weights(tmx_probe *p, tmx_error *err)
{
    const tmx_model *m = p->model;
    for (int32_t l = 0; l < m->info.n_layers; l++) {
        const layer_tensors *t = m->layers[l].tensors;
        probe_weights *w = &p->weights[l];
        if (l > 0) TRY(pack(p, &w->qkv, (const gguf_tensor *[]){ t->q, t->k, t->v }, 3, err));
        TRY(pack(p, &w->attn_output, (const gguf_tensor *[]){ t->attn_output }, 1, err));
        TRY(pack(p, &w->gate_up, (const gguf_tensor *[]){ t->gate, t->up }, 2, err));
        TRY(pack(p, &w->down, (const gguf_tensor *[]){ t->down }, 1, err));
    }
    const matmul_source q = tensor_source(m->layers[m->info.n_layers - 1].tensors->q);
    return matmul_weight_create(&p->last_q, &q, 1, m->compute, m->isa, MATMUL_AUTO, p->pool, err);
}

static tmx_status fill_probe(tmx_probe *p, const tmx_model *model, tmx_pool *pool, const tmx_probe_params *params, tmx_error *err)
{
    const tmx_model_info *info = &model->info;
    const size_t n_layers = (size_t)info->n_layers;
    p->model = model;
    p->pool = pool;
    p->rows = row_ops_get(model->isa);
    p->act_type = act_type_of(model->compute);
    TRY(resolve_params(info, params, &p->params, err));
    for (int32_t l = 0; l < info->n_layers; l++) {
        if (!tmx_model_layer_has_window(info, l)) p->rope = model_rope(model, l, p->params.n_tokens);
    }
    if (info->n_experts > 0) return refuse(err, TMX_E_UNSUPPORTED, "probe: the backward pass of a model with experts is not supported");
    if (p->rope == NULL) {
        return refuse(err, TMX_E_UNSUPPORTED, "probe: every layer of this model has a sliding window of %d tokens of its own; there "
                      "is none to choose", info->n_window);
    }
    TRY(sections_pattern(&p->params.sections, &p->sections, err));
    tmx_memory need;
    size_t n_scratch;
    count_bytes(info, &p->params, model->compute, model->isa, pool_n_threads(pool), &need, &n_scratch);
    if (need.available_bytes != 0 && need.total_bytes > need.available_bytes) {
        return refuse(err, TMX_E_MEMORY, "a probe of %d tokens needs %.2f GiB (%.2f for transposed weights, %.2f for activations), "
                      "%.2f GiB are available", p->params.n_tokens, (double)need.total_bytes / 0x1p30,
                      (double)need.weight_bytes / 0x1p30, (double)need.kv_bytes / 0x1p30, (double)need.available_bytes / 0x1p30);
    }
    p->tape = mem_alloc(n_layers, sizeof *p->tape);
    p->weights = mem_alloc(n_layers, sizeof *p->weights);
    p->found = mem_alloc(n_layers, sizeof *p->found);
    p->memory = mem_alloc(1, (size_t)(need.kv_bytes + need.workspace_bytes));
    if (p->tape == NULL || p->weights == NULL || p->found == NULL || p->memory == NULL) {
        return refuse(err, TMX_E_MEMORY, "probe: out of memory for %.2f GiB of activations", (double)need.kv_bytes / 0x1p30);
    }
    layout at = { .base = p->memory };
    const size_t act = probe_type_bytes(p->act_type), n_tokens = (size_t)p->params.n_tokens;
    for (size_t l = 0; l < n_layers; l++) lay_out_tape(&p->tape[l], &at, info, n_tokens, act);
    lay_out(&p->b, &at, info, n_tokens, act, n_scratch);
    return pack_weights(p, err);
}

tmx_status tmx_probe_create(tmx_probe **probe, const tmx_model *model, tmx_pool *pool, const tmx_probe_params *params, tmx_error *err)
{
    if (probe == NULL || model == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_create: NULL argument");
    if (!model_is_on_cpu(model)) {
        return refuse(err, TMX_E_UNSUPPORTED, "probe: the model was opened on %s; the probe runs on the CPU", model->info.device);
    }
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
    for (int32_t l = 0; p->weights != NULL && l < p->model->info.n_layers; l++) {
        matmul_weight_free(p->weights[l].qkv);
        matmul_weight_free(p->weights[l].attn_output);
        matmul_weight_free(p->weights[l].gate_up);
        matmul_weight_free(p->weights[l].down);
    }
    matmul_weight_free(p->last_q);
    mem_free(p->weights);
    mem_free(p->found);
    mem_free(p->tape);
    mem_free(p->memory);
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

static tmx_status run_backward(tmx_probe *p, int32_t target, tmx_progress *progress, tmx_error *err)
{
    probe_begin_backward(p, target);
    for (int32_t l = p->model->info.n_layers - 1; l >= 0; l--) {
        tmx_probe_sums sums[N_SECTIONS];
        probe_backward(p, l, sums);
        for (int32_t i = 0; i < N_SECTIONS; i++) {
            if (!is_finite(&sums[i])) return refuse(err, TMX_E_NUMERIC, "probe: the gradient of layer %d holds NaN or infinity", l);
        }
        p->found[l] = (tmx_probe_layer){ .streaming = sums[SECTION_STREAMING], .last = sums[SECTION_LAST],
                                         .middle = sums[SECTION_MIDDLE] };
        TRY(tell(p, progress, 2, l, err));
    }
    return TMX_OK;
}

tmx_status tmx_probe_run(tmx_probe *p, const int32_t *tokens, int32_t n_tokens, int32_t target, tmx_probe_layer *layers,
                         tmx_probe_result *result, tmx_error *err)
{
    TRY(check_prompt(p, tokens, n_tokens, target, err));
    const tmx_model_info *m = &p->model->info;
    tmx_progress progress = { .n_total = (int64_t)n_tokens * m->n_layers * (layers != NULL ? 3 : 1) };
    p->n_tokens = n_tokens;
    for (int32_t l = 0; l < m->n_layers; l++) {
        probe_forward(p, tokens, l);
        probe_finish_layer(p, l);
        TRY(tell(p, &progress, 1, l, err));
    }
    tmx_probe_result found = { .target_logit = p->b.logits[target], .top_logit = p->b.logits[0] };
    for (int32_t i = 0; i < m->n_vocab; i++) {
        const float logit = p->b.logits[i];
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
        TRY(run_backward(p, target, &progress, err));
        memcpy(layers, p->found, (size_t)m->n_layers * sizeof *layers);
    }
    if (result != NULL) *result = found;
    return TMX_OK;
}
