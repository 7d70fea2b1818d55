#include "attn/attn.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/status.h"
#include "run/chunk.h"

#include <math.h>
#include <string.h>
#include <time.h>

enum { DEFAULT_CHUNK = 512, MAX_SEQS = 4096, MAX_QUERY_TILE = 256 /* positions, at most */ };

double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

bool logits_are_finite(const float *logits, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (!isfinite(logits[i])) return false;
    }
    return true;
}

/* ---- sizes: one walk over the buffers serves the memory plan and the real thing */

typedef struct layout {
    char *base;                    /* NULL: only count */
    size_t n_bytes;
} layout;

static void *take(layout *at, size_t n_rows, size_t n_elements, size_t element_bytes)
{
    void *block = at->base == NULL ? NULL : at->base + at->n_bytes;
    at->n_bytes += align_up(n_rows * n_elements * element_bytes, MEM_ALIGN);
    return block;
}

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

static size_t scratch_bytes(const tmx_model_info *m, const tmx_attention_params *attention, int32_t n_ctx, int32_t n_threads)
{
    const int32_t n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim;
    size_t n = matmul_scratch_bytes(n_q + 2 * n_kv, m->n_embd, n_threads);
    n = max_size(n, matmul_scratch_bytes(m->n_embd, n_q, n_threads));
    n = max_size(n, matmul_scratch_bytes(2 * m->n_ff, m->n_embd, n_threads));
    n = max_size(n, matmul_scratch_bytes(m->n_embd, m->n_ff, n_threads));
    const int32_t widest = m->n_ff > n_q ? m->n_ff : n_q;
    n = max_size(n, (size_t)n_threads * (size_t)(widest > m->n_embd ? widest : m->n_embd) * sizeof(float));
    n = max_size(n, tmx_attention_scratch_bytes(attention, n_threads));
    return max_size(n, attn_decode_scratch_bytes(attention, n_ctx, n_threads));
}

static void lay_out(activations *a, layout *at, const tmx_model_info *m, const tmx_session_params *p, tmx_type act_type,
                    size_t n_scratch_bytes)
{
    const size_t n_rows = (size_t)p->n_chunk, n_embd = (size_t)m->n_embd, n_ff = (size_t)m->n_ff, act = type_bytes(act_type);
    const size_t n_q = (size_t)m->n_heads * (size_t)m->head_dim, n_kv = (size_t)m->n_kv_heads * (size_t)m->head_dim;
    const size_t n_angles = ((size_t)m->head_dim + 1) / 2;
    a->x = take(at, n_rows, n_embd, sizeof(float));
    a->normed = take(at, n_rows, n_embd, act);
    a->qkv = take(at, n_rows, n_q + 2 * n_kv, sizeof(float));
    a->q = take(at, n_rows, n_q, act);
    a->heads = take(at, n_rows, n_q, act);
    a->gate_up = take(at, n_rows, 2 * n_ff, sizeof(float));
    a->gated = take(at, n_rows, n_ff, act);
    a->cos = take(at, n_rows, n_angles, sizeof(float));
    a->sin = take(at, n_rows, n_angles, sizeof(float));
    a->row = take(at, 1, one_row_floats(m), sizeof(float));
    a->scratch = take(at, 1, n_scratch_bytes, 1);
}

static tmx_status resolve_params(const tmx_model_info *m, tmx_compute compute, const tmx_session_params *given,
                                 tmx_session_params *p, tmx_error *err)
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
    if (p->n_chunk == 0) p->n_chunk = DEFAULT_CHUNK;
    const int64_t most_rows = (int64_t)p->n_ctx * p->n_seqs;
    if (p->n_chunk > most_rows) p->n_chunk = (int32_t)most_rows;
    if (p->kv_type == TMX_TYPE_DEFAULT) p->kv_type = compute == TMX_COMPUTE_F32 ? TMX_TYPE_F32 : TMX_TYPE_BF16;
    if (p->kv_type != TMX_TYPE_F32 && p->kv_type != TMX_TYPE_BF16) return refuse(err, TMX_E_ARG, "kv_type: unknown value %d", (int)p->kv_type);
    return TMX_OK;
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

tmx_attention_params session_attention(const tmx_session *s, tmx_type q_type)
{
    return attention_params(&s->model->info, &s->kv, s->model->isa, q_type);
}

/* Scratch must serve both query types a session uses, the chunk's and the single row's f32, and every way in which the rows
 * of a chunk may belong to sequences: one sequence with an extra query tile for each of the others is the worst. */
static size_t workspace_bytes(const tmx_model_info *m, const tmx_session_params *p, const kv_cache *kv, tmx_isa isa,
                              tmx_type act_type, int32_t n_threads, size_t *n_scratch)
{
    *n_scratch = 0;
    const tmx_type types[] = { act_type, TMX_TYPE_F32 };
    const int64_t n_rows = (int64_t)p->n_chunk + (int64_t)p->n_seqs * MAX_QUERY_TILE;
    const int32_t n_q = n_rows < INT32_MAX ? (int32_t)n_rows : INT32_MAX;
    const tmx_attention_seq worst = { .n_q = n_q, .n_prompt = n_q };
    for (int i = 0; i < 2; i++) {
        tmx_attention_params attention = attention_params(m, kv, isa, types[i]);
        attention.seqs = &worst;
        attention.n_seqs = 1;
        *n_scratch = max_size(*n_scratch, scratch_bytes(m, &attention, p->n_ctx, n_threads));
    }
    activations ignored;
    layout count = { 0 };
    lay_out(&ignored, &count, m, p, act_type, *n_scratch);
    return count.n_bytes;
}

static tmx_type act_type_of(tmx_compute compute) { return compute == TMX_COMPUTE_BF16 ? TMX_TYPE_BF16 : TMX_TYPE_F32; }

tmx_status tmx_memory_plan(const tmx_model_info *info, tmx_compute compute, tmx_isa isa, const tmx_session_params *params,
                           int32_t n_threads, tmx_memory *memory, tmx_error *err)
{
    if (info == NULL || memory == NULL) return refuse(err, TMX_E_ARG, "tmx_memory_plan: NULL argument");
    if (n_threads < 1) return refuse(err, TMX_E_ARG, "threads: %d, expected at least 1", n_threads);
    isa = cpu_isa_resolve(isa);
    compute = model_compute_resolve(compute, isa);
    tmx_session_params p;
    TRY(resolve_params(info, compute, params, &p, err));
    const kv_cache kv = kv_sizes(info, &p);
    tmx_memory m = { .weight_bytes = model_weight_bytes(info, compute), .merged_bytes = model_merged_bytes(info, compute),
                     .available_bytes = mem_available_bytes() };
    if (!kv_bytes(&kv, &m.kv_bytes)) return refuse(err, TMX_E_MEMORY, "KV cache: the size overflows for %d tokens", p.n_ctx);
    size_t n_scratch;
    m.workspace_bytes = workspace_bytes(info, &p, &kv, isa, act_type_of(compute), n_threads, &n_scratch);
    m.total_bytes = m.weight_bytes + m.merged_bytes + m.kv_bytes + m.workspace_bytes;
    *memory = m;
    return TMX_OK;
}

static tmx_status check_plan(const tmx_plan *plan, const tmx_model_info *info, tmx_error *err)
{
    if (plan == NULL || plan->n_layers == info->n_layers) return TMX_OK;
    return refuse(err, TMX_E_ARG, "plan: %d layers, the model has %d", plan->n_layers, info->n_layers);
}

static tmx_status fill_session(tmx_session *s, const tmx_model *model, const tmx_plan *plan, tmx_pool *pool,
                               const tmx_session_params *params, tmx_error *err)
{
    const tmx_model_info *info = &model->info;
    s->model = model;
    s->pool = pool;
    s->rows = row_ops_get(model->isa);
    s->act_type = act_type_of(model->compute);
    TRY(check_plan(plan, info, err));
    TRY(resolve_params(info, model->compute, params, &s->params, err));
    if (plan == NULL) TRY(plan_create_dense(&s->plan, info->n_layers, err));
    else TRY(plan_copy(&s->plan, plan, err));
    s->kv = kv_sizes(info, &s->params);
    uint64_t n_kv_bytes;
    if (!kv_bytes(&s->kv, &n_kv_bytes)) return refuse(err, TMX_E_MEMORY, "KV cache: the size overflows for %d tokens", s->params.n_ctx);
    size_t n_scratch;
    const size_t n_work = workspace_bytes(info, &s->params, &s->kv, model->isa, s->act_type, pool_n_threads(pool), &n_scratch);
    const uint64_t available = mem_available_bytes();
    if (available != 0 && n_kv_bytes + n_work > available) {
        return refuse(err, TMX_E_MEMORY, "a session of %d x %d tokens needs %.2f GiB (KV cache %.2f), %.2f GiB are available",
                      s->params.n_seqs, s->params.n_ctx, (double)(n_kv_bytes + n_work) / 0x1p30,
                      (double)n_kv_bytes / 0x1p30, (double)available / 0x1p30);
    }
    TRY(kv_create(&s->kv, err));
    s->memory = mem_alloc(1, n_work);
    s->n_past = mem_alloc((size_t)s->params.n_seqs, sizeof *s->n_past);
    s->segments = mem_alloc((size_t)s->params.n_seqs, sizeof *s->segments);
    s->attention_seqs = mem_alloc((size_t)s->params.n_seqs, sizeof *s->attention_seqs);
    s->layer_attention_ms = mem_alloc((size_t)info->n_layers, sizeof *s->layer_attention_ms);
    if (s->memory == NULL || s->n_past == NULL || s->segments == NULL || s->attention_seqs == NULL || s->layer_attention_ms == NULL) {
        return refuse(err, TMX_E_MEMORY, "session: out of memory for %.2f GiB of workspace", (double)n_work / 0x1p30);
    }
    layout at = { .base = s->memory };
    lay_out(&s->act, &at, info, &s->params, s->act_type, n_scratch);
    s->n_scratch_bytes = n_scratch;
    return TMX_OK;
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
    kv_free(&s->kv);
    tmx_plan_free(s->plan);
    mem_free(s->memory);
    mem_free(s->n_past);
    mem_free(s->segments);
    mem_free(s->attention_seqs);
    mem_free(s->layer_attention_ms);
    mem_free(s);
}

void tmx_session_reset(tmx_session *s)
{
    memset(s->n_past, 0, (size_t)s->params.n_seqs * sizeof *s->n_past);
    memset(s->layer_attention_ms, 0, (size_t)s->model->info.n_layers * sizeof *s->layer_attention_ms);
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
    return TMX_OK;
}

tmx_status tmx_session_set_plan(tmx_session *s, const tmx_plan *plan, tmx_error *err)
{
    if (s == NULL || plan == NULL) return refuse(err, TMX_E_ARG, "tmx_session_set_plan: NULL argument");
    TRY(check_plan(plan, &s->model->info, err));
    for (int32_t i = 0; i < s->params.n_seqs; i++) {
        if (s->n_past[i] != 0) return refuse(err, TMX_E_ARG, "plan: sequence %d already holds %d tokens", i, s->n_past[i]);
    }
    tmx_plan *copy;
    TRY(plan_copy(&copy, plan, err));
    tmx_plan_free(s->plan);
    s->plan = copy;
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
