/* probe_cpu.c - the CPU's side of probe.h: memory, transposed weights, and the table of its passes (probe_layer.c). */
#include "base/cpu.h"
#include "base/layout.h"
#include "base/num.h"
#include "base/pool.h"
#include "base/status.h"
#include "probe/probe.h"

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
    if (m->n_experts > 0) {
        n = max_size(n, matmul_scratch_bytes(m->n_experts, m->n_embd, n_threads));
        n = max_size(n, matmul_scratch_bytes(m->n_embd, m->n_experts, n_threads));
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
    b->d_act = layout_rows(at, n_chunk, max_size(max_size(n_wide, n_embd), (size_t)m->n_experts), act);
    b->d_wide = layout_rows(at, n_chunk, max_size(n_ff, n_embd), sizeof(float));
    b->d = layout_rows(at, n, n_embd, sizeof(float));
    b->d_o = layout_rows(at, n, n_q, sizeof(float));
    b->d_q = layout_rows(at, attn_back_rows_padded((int32_t)n) * (size_t)m->n_heads, attn_back_d_pad(m->head_dim), sizeof(float));
    b->d_kv = layout_rows(at, strips.kv_at[strips.n], 1, sizeof(float));
    const size_t n_expert_rows = m->n_experts > 0 ? n_chunk : 0;
    b->scores = layout_rows(at, n_expert_rows, (size_t)m->n_experts, sizeof(float));
    b->chosen = layout_rows(at, n_expert_rows, (size_t)m->n_experts_used, sizeof *b->chosen);
    b->d_chosen = layout_rows(at, n_expert_rows, (size_t)m->n_experts_used, sizeof(float));
    b->expert_rows = layout_rows(at, n_expert_rows, 1, sizeof *b->expert_rows);
    b->gathered = layout_rows(at, n_expert_rows, n_embd, act);
    b->gated_row = layout_rows(at, n_expert_rows > 0, n_ff, sizeof(float));
    b->x_end = layout_rows(at, 1, n_embd, sizeof(float));
    b->logits = layout_rows(at, 1, (size_t)m->n_vocab, sizeof(float));
    b->row = layout_rows(at, 1, max_size(max_size(n_embd, n_q), n_ff), sizeof(float));
    b->scratch = layout_rows(at, 1, n_scratch, 1);
}

/* Beside the model's own: the transposes of every layer, and the last layer's q. */
static uint64_t extra_weight_bytes(const tmx_model_info *m, tmx_compute compute)
{
    const int32_t n_q = m->n_heads * m->head_dim, n_qkv = n_q + 2 * m->n_kv_heads * m->head_dim;
    const uint64_t ffn = (uint64_t)matmul_weight_bytes(m->n_embd, 2 * m->n_ff, compute) + matmul_weight_bytes(m->n_ff, m->n_embd, compute);
    const uint64_t experts = m->n_experts == 0 ? ffn
        : ffn * (uint64_t)m->n_experts + matmul_weight_bytes(m->n_embd, m->n_experts, compute);
    const uint64_t layer = (uint64_t)matmul_weight_bytes(n_q, m->n_embd, compute) + experts;
    return layer * (uint64_t)m->n_layers + (uint64_t)matmul_weight_bytes(m->n_embd, n_qkv, compute) * (uint64_t)(m->n_layers - 1)
         + matmul_weight_bytes(n_q, m->n_embd, compute);
}

static tmx_type act_type_of(tmx_compute compute) { return compute == TMX_COMPUTE_BF16 ? TMX_TYPE_BF16 : TMX_TYPE_F32; }

static void count_bytes(const tmx_model_info *m, const tmx_probe_params *p, tmx_compute compute, tmx_isa isa, int32_t n_threads,
                        tmx_memory *memory, size_t *n_scratch)
{
    const size_t act = probe_type_bytes(act_type_of(compute)), n_layers = (size_t)m->n_layers;
    const size_t n_record = sizeof(probe_tape) + sizeof(probe_weights) + sizeof(tmx_probe_layer)
                          + (size_t)m->n_experts * sizeof(expert_weights);
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

static tmx_status plan_memory(const probe_case *at, tmx_memory *memory, tmx_error *err)
{
    (void)err;
    size_t n_scratch;
    count_bytes(at->info, at->params, at->compute, at->isa, at->n_threads, memory, &n_scratch);
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

static tmx_status pack_experts(tmx_probe *p, const layer_tensors *t, probe_weights *w, tmx_error *err)
{
    const size_t n = (size_t)p->model->info.n_experts;
    const tensor_rows *gate = t->experts, *up = gate + n, *down = up + n;
    TRY(pack(p, &w->router, (const gguf_tensor *[]){ t->router }, 1, err));
    w->experts = mem_alloc(n, sizeof *w->experts);
    if (w->experts == NULL) return refuse(err, TMX_E_MEMORY, "probe: out of memory for %zu experts", n);
    for (size_t e = 0; e < n; e++) {
        TRY(pack(p, &w->experts[e].gate_up, (const gguf_tensor *[]){ &gate[e].rows, &up[e].rows }, 2, err));
        TRY(pack(p, &w->experts[e].down, (const gguf_tensor *[]){ &down[e].rows }, 1, err));
    }
    return TMX_OK;
}

static tmx_status pack_weights(tmx_probe *p, tmx_error *err)
{
    const tmx_model *m = p->model;
    for (int32_t l = 0; l < m->info.n_layers; l++) {
        const layer_tensors *t = m->layers[l].tensors;
        probe_weights *w = &p->weights[l];
        if (l > 0) TRY(pack(p, &w->qkv, (const gguf_tensor *[]){ t->q, t->k, t->v }, 3, err));
        TRY(pack(p, &w->attn_output, (const gguf_tensor *[]){ t->attn_output }, 1, err));
        if (t->router != NULL) {
            TRY(pack_experts(p, t, w, err));
            continue;
        }
        TRY(pack(p, &w->gate_up, (const gguf_tensor *[]){ t->gate, t->up }, 2, err));
        TRY(pack(p, &w->down, (const gguf_tensor *[]){ t->down }, 1, err));
    }
    const matmul_source q = tensor_source(m->layers[m->info.n_layers - 1].tensors->q);
    return matmul_weight_create(&p->last_q, &q, 1, m->compute, m->isa, MATMUL_AUTO, p->pool, err);
}

static tmx_status create(tmx_probe *p, tmx_error *err)
{
    const tmx_model_info *info = &p->model->info;
    const size_t n_layers = (size_t)info->n_layers;
    tmx_memory need;
    size_t n_scratch;
    count_bytes(info, &p->params, p->model->compute, p->model->isa, pool_n_threads(p->pool), &need, &n_scratch);
    if (need.available_bytes != 0 && need.total_bytes > need.available_bytes) {
        return refuse(err, TMX_E_MEMORY, "a probe of %d tokens needs %.2f GiB (%.2f for transposed weights, %.2f for activations), "
                      "%.2f GiB are available", p->params.n_tokens, (double)need.total_bytes / 0x1p30,
                      (double)need.weight_bytes / 0x1p30, (double)need.kv_bytes / 0x1p30, (double)need.available_bytes / 0x1p30);
    }
    p->rows = row_ops_get(p->model->isa);
    p->act_type = act_type_of(p->model->compute);
    p->tape = mem_alloc(n_layers, sizeof *p->tape);
    p->weights = mem_alloc(n_layers, sizeof *p->weights);
    p->memory = mem_alloc(1, (size_t)(need.kv_bytes + need.workspace_bytes));
    if (p->tape == NULL || p->weights == NULL || p->memory == NULL) {
        return refuse(err, TMX_E_MEMORY, "probe: out of memory for %.2f GiB of activations", (double)need.kv_bytes / 0x1p30);
    }
    layout at = { .base = p->memory };
    const size_t act = probe_type_bytes(p->act_type), n_tokens = (size_t)p->params.n_tokens;
    for (size_t l = 0; l < n_layers; l++) lay_out_tape(&p->tape[l], &at, info, n_tokens, act);
    lay_out(&p->b, &at, info, n_tokens, act, n_scratch);
    p->logits = p->b.logits;
    return pack_weights(p, err);
}

static void free_experts(const probe_weights *w, int32_t n)
{
    for (int32_t e = 0; w->experts != NULL && e < n; e++) {
        matmul_weight_free(w->experts[e].gate_up);
        matmul_weight_free(w->experts[e].down);
    }
    matmul_weight_free(w->router);
    mem_free(w->experts);
}

static void free_state(tmx_probe *p)
{
    for (int32_t l = 0; p->weights != NULL && l < p->model->info.n_layers; l++) {
        matmul_weight_free(p->weights[l].qkv);
        matmul_weight_free(p->weights[l].attn_output);
        matmul_weight_free(p->weights[l].gate_up);
        matmul_weight_free(p->weights[l].down);
        free_experts(&p->weights[l], p->model->info.n_experts);
    }
    matmul_weight_free(p->last_q);
    mem_free(p->weights);
    mem_free(p->tape);
    mem_free(p->memory);
}

/* ---------------------------------------------------------------- passes */

static tmx_status begin(tmx_probe *p, const int32_t *tokens, int32_t target, tmx_error *err)
{
    (void)err;
    p->tokens = tokens;
    p->target = target;
    return TMX_OK;
}

static void forward(tmx_probe *p, int32_t layer)
{
    probe_forward(p, p->tokens, layer);
    probe_finish_layer(p, layer);
}

static void backward(tmx_probe *p, int32_t layer)
{
    tmx_probe_sums sums[N_SECTIONS];
    if (probe_is_last(p, layer)) probe_begin_backward(p, p->target);
    probe_backward(p, layer, sums);
    p->found[layer] = (tmx_probe_layer){ .streaming = sums[SECTION_STREAMING], .last = sums[SECTION_LAST], .middle = sums[SECTION_MIDDLE] };
}

/* All is done when a pass returns. */
static tmx_status done(tmx_probe *p, tmx_error *err)
{
    (void)p, (void)err;
    return TMX_OK;
}

const probe_backend probe_cpu = {
    .plan_memory = plan_memory, .create = create, .free = free_state, .begin = begin, .forward = forward, .backward = backward,
    .catch_up = done, .read_logits = done, .read_sums = done,
};
