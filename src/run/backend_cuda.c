/* backend_cuda.c - the steps of backend.h on a CUDA device: each is enqueued on the session's stream and returns at once.
 *
 * Products read bf16 and sum in f32; the residual stream is f32.  One chunk is in flight while the host enqueues the next, so
 * that the device never waits for the host: what a chunk needs from the host (tokens, positions) lies in one of two slots of
 * pinned memory, and catch_up waits for the chunk before.  Single rows (decoding, the end of a prompt) run in f32 between
 * products that read each weight once; decoding is recorded as a graph when the session is made, and reads its token and
 * position from device memory.  Nothing is taken after create, but for a plan whose attention needs more scratch.
 *
 * Errors: the operators keep the first one and skip what follows; it surfaces at the next wait. */
#include "attn/cuda/gpu_schedule.h"
#include "base/layout.h"
#include "base/status.h"
#include "kv/kv.h"
#include "ops/cuda/ops_cuda.h"
#include "run/backend.h"
#include "run/cuda_dynamic.h"
#include "run/cuda_weights.h"

#include <math.h>
#include <string.h>

enum {
    DEVICE_ALIGN = 256,
    /* Rows.  Products are within 2 % of their best rate from 2048 on; so many rows on 8 KV heads are 32 tiles of dense attention for
     * each of 132 multiprocessors, and halves of them are whole rounds too. */
    MOST_CHUNK = 16896, LEAST_CHUNK = 528,
    MAX_TILE_POSITIONS = 128,                      /* of an attention tile */
    MOST_SPLIT_TOKENS = 1 << 16,                   /* prompts of this length are cut into the most splits (gpu_schedule.h) */
    N_SLOTS = 2,
    MARKS_PER_LAYER = 13, OTHER_MARKS = 4,
    DECODE_INTS = 3,                               /* token, position, sequence */
};
/* Beside its blocks: the product library's workspace of the model's and of the session's handle, and small things. */
static const uint64_t LIBRARY_BYTES = 72u << 20;
/* Of a card's memory, what its driver and context hold. */
static const uint64_t CONTEXT_BYTES = 768u << 20;

typedef enum work_kind { WORK_REST, WORK_PRODUCT, WORK_ESTIMATE, WORK_ATTENTION } work_kind;

/* A chunk that was enqueued. */
typedef struct chunk_slot {
    int32_t *ints;                 /* pinned, [3 R + n_seqs]: tokens, positions, seqs [n_rows each], last rows [n_segments] */
    gpu_mark **marks;              /* [n_marks]; between marks i and i + 1 the device did kinds[i] in layers[i] */
    work_kind *kinds;
    int32_t *layers;
    int32_t n_marks, n_rows;
    bool is_in_flight;
} chunk_slot;

/* Device memory.  R = n_chunk rows; bf16 unless said.  What is dead when another is made shares its place: qkv and q with
 * gate_up, normed with gated, and a branch that is normed before it is added with qkv, away from q, or with gate_up. */
typedef struct device_buffers {
    float *x;                      /* f32 [R][n_embd] */
    void *normed, *gated;          /* [R][n_embd], [R][n_ff] */
    void *qkv, *q, *gate_up;       /* [R][n_q + 2 n_kv], [R][n_q], [R][2 n_ff]; attention writes its result over q */
    float *branch;                 /* f32 [R][n_embd] */
    /* with experts, P = gpu_group_places(R): gate_up and gated are [P] rows */
    float *scores, *expert_out;    /* f32 [R][n_experts]; f32 [P][n_embd], over gate_up */
    gpu_choice *chosen;            /* [R][n_experts_used] */
    gpu_groups groups;             /* of a chunk of R rows */
    int32_t *ints;                 /* as chunk_slot.ints */
    /* single rows, f32 */
    float *row_x, *row_normed, *row_branch;        /* [n_embd] */
    float *row_qkv, *row_heads;    /* [n_q + 2 n_kv], [n_q] */
    float *row_gate_up, *row_gated;        /* [2 n_ff], [n_ff] */
    float *row_scores, *row_expert_out;            /* [n_experts], [n_experts_used][n_embd]; row_gate_up and row_gated have as many rows */
    gpu_choice *row_chosen;        /* [n_experts_used] */
    void *row_q;                   /* bf16 [n_q] */
    float *logits;                 /* f32 [n_seqs][n_vocab] */
    int32_t *decode_ints;          /* [DECODE_INTS] */
    int32_t *zero;                 /* [1] */
    void *decode_scratch;
    cuda_dynamic dynamic;
    int32_t *next_token;           /* [1] */
    void *sample_scratch;
} device_buffers;

typedef struct cuda_run {
    gpu *g;
    const cuda_weights *weights;
    kv_cache kv;                   /* k and v on the device */
    device_buffers b;
    void *memory;                  /* device: the block behind b */
    void *attention_scratch;       /* device */
    size_t n_attention_scratch;
    tmx_gpu_attention_seq *attention_seqs;         /* [n_seqs] */
    chunk_slot slots[N_SLOTS];
    int32_t at;                    /* the slot being filled */
    int32_t n_marks;               /* of a slot */
    int32_t *decode_ints;          /* pinned */
    gpu_graph *decode;
    tmx_error failure;             /* of an attention call; code TMX_OK: none */
} cuda_run;

/* ---------------------------------------------------------------- sizes */

static size_t n_ints(const tmx_session_params *p) { return 3 * (size_t)p->n_chunk + (size_t)p->n_seqs; }

static void lay_out_experts(device_buffers *b, layout *at, const tmx_model_info *m, const tmx_session_params *p)
{
    const uint64_t n_rows = (uint64_t)p->n_chunk, n_experts = (uint64_t)m->n_experts, n_used = (uint64_t)m->n_experts_used;
    const uint64_t n_places = (uint64_t)gpu_group_places(p->n_chunk, m->n_experts, m->n_experts_used);
    b->expert_out = b->gate_up;
    b->scores = layout_take(at, n_rows * n_experts * sizeof(float));
    b->chosen = layout_take(at, n_rows * n_used * sizeof *b->chosen);
    b->groups = (gpu_groups){ .n_experts = m->n_experts, .n_used = m->n_experts_used };
    b->groups.begin = layout_take(at, (n_experts + 1) * sizeof(int32_t));
    b->groups.next = layout_take(at, n_experts * sizeof(int32_t));
    b->groups.rows = layout_take(at, n_places * sizeof(int32_t));
    b->groups.places = layout_take(at, n_rows * n_used * sizeof(int32_t));
    b->row_scores = layout_take(at, n_experts * sizeof(float));
    b->row_chosen = layout_take(at, n_used * sizeof *b->row_chosen);
    b->row_expert_out = layout_take(at, n_used * (uint64_t)m->n_embd * sizeof(float));
}

static tmx_gpu_attention_params attention_params(const tmx_model_info *m, const tmx_session_params *p)
{
    const size_t head_dim = (size_t)m->head_dim, n_q = (size_t)m->n_heads * head_dim, head_stride = (size_t)p->n_ctx * head_dim;
    return (tmx_gpu_attention_params){
        .type = TMX_TYPE_BF16, .n_heads = m->n_heads, .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim,
        .q_pos_stride = n_q, .q_head_stride = head_dim, .out_pos_stride = n_q, .out_head_stride = head_dim,
        .k_pos_stride = head_dim, .k_head_stride = head_stride, .v_pos_stride = head_dim, .v_head_stride = head_stride,
    };
}

static void lay_out(device_buffers *b, layout *at, const tmx_model_info *m, const tmx_session_params *p, uint32_t dynamic_kinds)
{
    const bool has_experts = m->n_experts > 0;
    const uint64_t n_ffn_rows = has_experts ? (uint64_t)gpu_group_places(p->n_chunk, m->n_experts, m->n_experts_used) : (uint64_t)p->n_chunk;
    const uint64_t n_row_ffn = has_experts ? (uint64_t)m->n_experts_used : 1;
    const uint64_t n_rows = (uint64_t)p->n_chunk, n_embd = (uint64_t)m->n_embd, n_ff = (uint64_t)m->n_ff;
    const uint64_t n_q = (uint64_t)m->n_heads * (uint64_t)m->head_dim, n_qkv = n_q + 2 * (uint64_t)m->n_kv_heads * (uint64_t)m->head_dim;
    const uint64_t qkv_bytes = align_up(n_rows * max_size(n_qkv * 2, n_embd * sizeof(float)), DEVICE_ALIGN);
    b->x = layout_take(at, n_rows * n_embd * sizeof(float));
    const uint64_t ffn_bytes = n_ffn_rows * max_size(n_ff * 4, has_experts ? n_embd * sizeof(float) : 0);
    b->normed = b->gated = layout_take(at, max_size(n_rows * n_embd, n_ffn_rows * n_ff) * 2);
    b->gate_up = b->qkv = layout_take(at, max_size(ffn_bytes, qkv_bytes + n_rows * n_q * 2));
    b->q = b->qkv == NULL ? NULL : (char *)b->qkv + qkv_bytes;
    b->branch = b->qkv;
    b->ints = layout_take(at, n_ints(p) * sizeof(int32_t));
    b->row_x = layout_take(at, n_embd * sizeof(float));
    b->row_normed = layout_take(at, n_embd * sizeof(float));
    b->row_branch = layout_take(at, n_embd * sizeof(float));
    b->row_qkv = layout_take(at, n_qkv * sizeof(float));
    b->row_heads = layout_take(at, n_q * sizeof(float));
    b->row_gate_up = layout_take(at, n_row_ffn * 2 * n_ff * sizeof(float));
    b->row_gated = layout_take(at, n_row_ffn * n_ff * sizeof(float));
    if (has_experts) lay_out_experts(b, at, m, p);
    b->row_q = layout_take(at, n_q * 2);
    b->logits = layout_take(at, (uint64_t)p->n_seqs * (uint64_t)m->n_vocab * sizeof(float));
    b->decode_ints = layout_take(at, DECODE_INTS * sizeof(int32_t));
    b->zero = layout_take(at, sizeof(int32_t));
    b->decode_scratch = layout_take(at, gpu_decode_attention_bytes(1, m->n_heads, m->n_kv_heads, m->head_dim, p->n_ctx));
    const tmx_gpu_attention_params attention = attention_params(m, p);
    cuda_dynamic_lay_out(&b->dynamic, at, &attention, m->n_layers, p, dynamic_kinds);
    b->next_token = layout_take(at, sizeof(int32_t));
    b->sample_scratch = layout_take(at, gpu_sample_bytes(m->n_vocab));
}

static kv_cache kv_sizes(const tmx_model_info *m, const tmx_session_params *p)
{
    return (kv_cache){ .type = TMX_TYPE_BF16, .n_layers = m->n_layers, .n_seqs = p->n_seqs, .n_kv_heads = m->n_kv_heads,
                       .n_ctx = p->n_ctx, .head_dim = m->head_dim };
}

/* Partial results come from a triangle's last rows: the most there are when the chunk holds as many of them as it can, spread
 * over as many sequences as share a launch.  One tile more for those that begin within a tile. */
static size_t attention_scratch_bytes(const tmx_model_info *m, const tmx_session_params *p, const tmx_pattern *pattern)
{
    const int32_t n_seqs = min_i32(p->n_seqs, GPU_MAX_SEQS), lengths[] = { p->n_ctx, min_i32(p->n_ctx, MOST_SPLIT_TOKENS) };
    const int32_t n_last = min_i32(pattern->n_last, (p->n_chunk - 1) / n_seqs + 1);
    tmx_gpu_attention_seq seqs[GPU_MAX_SEQS];
    tmx_gpu_attention_params params = attention_params(m, p);
    size_t n_bytes = 0;
    params.pattern = *pattern;
    params.pattern.n_last = min_i32(n_last, INT32_MAX - MAX_TILE_POSITIONS) + MAX_TILE_POSITIONS;
    params.seqs = seqs;
    params.n_seqs = n_seqs;
    for (int i = 0; i < 2; i++) {
        const int32_t n_q = min_i32(params.pattern.n_last, lengths[i]);
        for (int32_t k = 0; k < n_seqs; k++) {
            seqs[k] = (tmx_gpu_attention_seq){ .q_begin = lengths[i] - n_q, .n_q = n_q, .n_prompt = lengths[i] };
        }
        const size_t n = tmx_gpu_attention_scratch_bytes(&params);
        n_bytes = n > n_bytes ? n : n_bytes;
    }
    return n_bytes;
}

/* What a prompt's last row attends by, see finish. */
static const tmx_pattern one_dense_row = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = 0, .n_window = 1, .n_last = 1 };

static size_t plan_scratch_bytes(const tmx_model_info *m, const tmx_session_params *p, const tmx_plan *plan)
{
    size_t n = attention_scratch_bytes(m, p, &one_dense_row);
    for (int32_t l = 0; l < plan->n_layers; l++) {
        if (plan->layers[l].kind != TMX_PATTERN_TRIANGLE) continue;
        const size_t n_layer = attention_scratch_bytes(m, p, &plan->layers[l]);
        n = n_layer > n ? n_layer : n;
    }
    return n;
}

static uint64_t workspace_bytes(const tmx_model_info *m, const tmx_session_params *p, uint32_t dynamic_kinds)
{
    const tmx_pattern usual = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = TMX_DEFAULT_SINK, .n_window = TMX_DEFAULT_WINDOW,
                                .n_last = TMX_DEFAULT_LAST };
    device_buffers ignored;
    layout count = { .align = DEVICE_ALIGN };
    lay_out(&ignored, &count, m, p, dynamic_kinds);
    return count.n_bytes + attention_scratch_bytes(m, p, &usual) + LIBRARY_BYTES;
}

/* The chunk asked for, or the largest usual one with which the session fits into n_room bytes. */
static int32_t choose_chunk(const tmx_model_info *m, tmx_session_params p, uint32_t dynamic_kinds, uint64_t n_room)
{
    const int64_t most_rows = (int64_t)p.n_ctx * p.n_seqs;
    const bool is_free = p.n_chunk == 0;
    if (is_free) p.n_chunk = MOST_CHUNK;
    for (;; p.n_chunk /= 2) {
        if (p.n_chunk > most_rows) p.n_chunk = (int32_t)most_rows;
        if (!is_free || p.n_chunk <= LEAST_CHUNK || workspace_bytes(m, &p, dynamic_kinds) <= n_room) return p.n_chunk;
    }
}

/* The longest context of as many sequences for which n_room bytes suffice; 0: none. */
static int32_t longest_context(const tmx_model_info *m, const tmx_session_params *asked, uint32_t dynamic_kinds, uint64_t n_room)
{
    int32_t fits = 0, too_long = asked->n_ctx;
    while (too_long - fits > 1) {
        tmx_session_params p = *asked;
        p.n_ctx = fits + (too_long - fits) / 2;
        p.n_chunk = min_i32(p.n_chunk, LEAST_CHUNK);
        const kv_cache kv = kv_sizes(m, &p);
        uint64_t n_kv;
        if (kv_bytes(&kv, &n_kv) && n_kv + workspace_bytes(m, &p, dynamic_kinds) <= n_room) fits = p.n_ctx;
        else too_long = p.n_ctx;
    }
    return fits;
}

static tmx_status memory_of(const memory_case *at, uint64_t *n_free, uint64_t *n_total, tmx_error *err)
{
    if (at->model != NULL) return gpu_memory(((const cuda_weights *)at->model->on_device)->g, n_free, n_total, err);
    gpu *g = NULL;
    TRY(gpu_open(&g, cuda_device_index(at->info->device), err));
    const tmx_status status = gpu_memory(g, n_free, n_total, err);
    gpu_close(g);
    return status;
}

static tmx_status plan_memory(const memory_case *at, tmx_session_params *p, tmx_memory *memory, tmx_error *err)
{
    if (p->kv_type == TMX_TYPE_F32) return refuse(err, TMX_E_UNSUPPORTED, "kv_type f32: on %s the KV cache is bf16", at->info->device);
    TRY(cuda_model_check(at->info, err));
    p->kv_type = TMX_TYPE_BF16;
    const kv_cache kv = kv_sizes(at->info, p);
    uint64_t n_total;
    tmx_memory m = { .weight_bytes = cuda_weight_bytes(at->info) };
    if (!kv_bytes(&kv, &m.kv_bytes)) return refuse(err, TMX_E_MEMORY, "KV cache: the size overflows for %d tokens", p->n_ctx);
    TRY(memory_of(at, &m.available_bytes, &n_total, err));
    if (at->dynamic_kinds != 0) TRY(gpu_lists_check(at->info->head_dim, err));
    /* From the card's size, not from what is free, so that a plan before and after the model was opened says the same. */
    uint64_t n_taken = CONTEXT_BYTES + m.weight_bytes + m.kv_bytes;
    uint64_t n_room = n_total > n_taken ? n_total - n_taken : 0;
    if (at->is_taken_now) n_room = m.available_bytes > m.kv_bytes ? m.available_bytes - m.kv_bytes : 0;
    p->n_chunk = choose_chunk(at->info, *p, at->dynamic_kinds, n_room);
    m.workspace_bytes = workspace_bytes(at->info, p, at->dynamic_kinds);
    *memory = m;
    if (!at->is_taken_now || m.kv_bytes + m.workspace_bytes <= m.available_bytes) return TMX_OK;
    return refuse(err, TMX_E_MEMORY, "%s: a session of %d x %d tokens needs %.2f GiB (KV cache %.2f), %.2f of %.2f GiB are free; "
                  "%d tokens would fit", at->info->device, p->n_seqs, p->n_ctx, (double)(m.kv_bytes + m.workspace_bytes) / 0x1p30,
                  (double)m.kv_bytes / 0x1p30, (double)m.available_bytes / 0x1p30, (double)n_total / 0x1p30,
                  longest_context(at->info, p, at->dynamic_kinds, m.available_bytes));
}

/* ---------------------------------------------------------------- create, free */

static cuda_run *run_of(const tmx_session *s) { return s->state; }

static tmx_status make_slot(cuda_run *r, chunk_slot *slot, const tmx_session_params *p, tmx_error *err)
{
    void *pinned;
    TRY(gpu_alloc_pinned(r->g, &pinned, n_ints(p) * sizeof(int32_t), err));
    slot->ints = pinned;
    slot->marks = mem_alloc((size_t)r->n_marks, sizeof(void *));
    slot->kinds = mem_alloc((size_t)r->n_marks, sizeof *slot->kinds);
    slot->layers = mem_alloc((size_t)r->n_marks, sizeof *slot->layers);
    if (slot->marks == NULL || slot->kinds == NULL || slot->layers == NULL) return refuse(err, TMX_E_MEMORY, "session: out of memory");
    for (int32_t i = 0; i < r->n_marks; i++) TRY(gpu_mark_create(r->g, &slot->marks[i], err));
    return TMX_OK;
}

static void enqueue_decode(tmx_session *s);

/* Once as it is, so that every kernel is loaded, and once recorded.  Position 0 of the cache is written over by any prompt. */
static tmx_status record_decode(tmx_session *s, tmx_error *err)
{
    cuda_run *r = run_of(s);
    memset(r->decode_ints, 0, DECODE_INTS * sizeof *r->decode_ints);
    gpu_upload(r->g, r->b.decode_ints, r->decode_ints, DECODE_INTS * sizeof *r->decode_ints);
    gpu_upload(r->g, r->b.zero, r->decode_ints, sizeof *r->b.zero);
    enqueue_decode(s);
    TRY(gpu_wait(r->g, err));
    gpu_graph_begin(r->g);
    enqueue_decode(s);
    return gpu_graph_end(r->g, &r->decode, err);
}

static tmx_status create(tmx_session *s, const tmx_memory *memory, tmx_error *err)
{
    const tmx_model_info *m = &s->model->info;
    cuda_run *r = s->state = mem_alloc(1, sizeof *r);
    void *k, *v, *pinned;
    if (r == NULL) return refuse(err, TMX_E_MEMORY, "session: out of memory");
    r->weights = s->model->on_device;
    TRY(gpu_open(&r->g, r->weights->device, err));
    r->attention_seqs = mem_alloc((size_t)s->params.n_seqs, sizeof *r->attention_seqs);
    if (r->attention_seqs == NULL) return refuse(err, TMX_E_MEMORY, "session: out of memory");
    r->kv = kv_sizes(m, &s->params);
    TRY(gpu_alloc(r->g, &k, memory->kv_bytes / 2, err));
    r->kv.k = k;
    TRY(gpu_alloc(r->g, &v, memory->kv_bytes / 2, err));
    r->kv.v = v;
    layout at = { .align = DEVICE_ALIGN };
    lay_out(&r->b, &at, m, &s->params, s->dynamic_kinds);
    TRY(gpu_alloc(r->g, &r->memory, at.n_bytes, err));
    at = (layout){ .base = r->memory, .align = DEVICE_ALIGN };
    lay_out(&r->b, &at, m, &s->params, s->dynamic_kinds);
    TRY(cuda_dynamic_create(&r->b.dynamic, r->g, m, err));
    const size_t n_scratch = plan_scratch_bytes(m, &s->params, s->plan);
    TRY(gpu_alloc(r->g, &r->attention_scratch, n_scratch, err));
    r->n_attention_scratch = n_scratch;
    r->n_marks = m->n_layers * MARKS_PER_LAYER + OTHER_MARKS;
    for (int i = 0; i < N_SLOTS; i++) TRY(make_slot(r, &r->slots[i], &s->params, err));
    TRY(gpu_alloc_pinned(r->g, &pinned, DECODE_INTS * sizeof *r->decode_ints, err));
    r->decode_ints = pinned;
    return record_decode(s, err);
}

static void free_run(tmx_session *s)
{
    cuda_run *r = run_of(s);
    if (r == NULL) return;
    for (int i = 0; r->g != NULL && i < N_SLOTS; i++) {
        chunk_slot *slot = &r->slots[i];
        for (int32_t k = 0; slot->marks != NULL && k < r->n_marks; k++) gpu_mark_free(r->g, slot->marks[k]);
        gpu_free_pinned(r->g, slot->ints);
        mem_free(slot->marks);
        mem_free(slot->kinds);
        mem_free(slot->layers);
    }
    if (r->g != NULL) {
        gpu_graph_free(r->g, r->decode);
        gpu_free_pinned(r->g, r->decode_ints);
        gpu_free(r->g, r->attention_scratch);
        gpu_free(r->g, r->memory);
        gpu_free(r->g, r->kv.k);
        gpu_free(r->g, r->kv.v);
    }
    gpu_close(r->g);
    cuda_dynamic_free(&r->b.dynamic);
    mem_free(r->attention_seqs);
    mem_free(r);
}

static tmx_status fit_plan(tmx_session *s, const tmx_plan *plan, tmx_error *err)
{
    cuda_run *r = run_of(s);
    const size_t n_needed = plan_scratch_bytes(&s->model->info, &s->params, plan);
    void *larger;
    if (n_needed <= r->n_attention_scratch) return TMX_OK;
    TRY(gpu_wait(r->g, err));
    TRY(gpu_alloc(r->g, &larger, n_needed, err));
    gpu_free(r->g, r->attention_scratch);
    r->attention_scratch = larger;
    r->n_attention_scratch = n_needed;
    return TMX_OK;
}

/* ---------------------------------------------------------------- clocks */

/* From here on the device does `kind`.  Kinds that follow each other without a change share a span. */
static void clock_begin(chunk *c, work_kind kind)
{
    cuda_run *r = run_of(c->s);
    chunk_slot *slot = &r->slots[r->at];
    const int32_t n = slot->n_marks;
    const bool is_same = n > 0 && slot->kinds[n - 1] == kind && (kind < WORK_ESTIMATE || slot->layers[n - 1] == c->layer);
    if (is_same || n == r->n_marks - 1) return;            /* the last one is for clock_end */
    gpu_mark_set(r->g, slot->marks[n]);
    slot->kinds[n] = kind;
    slot->layers[n] = c->layer;
    slot->n_marks++;
}

static void clock_end(cuda_run *r)
{
    chunk_slot *slot = &r->slots[r->at];
    gpu_mark_set(r->g, slot->marks[slot->n_marks++]);
}

/* Waits for the slot's chunk, adds up its spans, and empties it.  Returns its rows. */
static tmx_status finish_slot(tmx_session *s, chunk_slot *slot, int32_t *n_rows, tmx_error *err)
{
    cuda_run *r = run_of(s);
    *n_rows = 0;
    if (!slot->is_in_flight) return TMX_OK;
    slot->is_in_flight = false;
    TRY(gpu_mark_wait(r->g, slot->marks[slot->n_marks - 1], err));
    for (int32_t i = 0; i + 1 < slot->n_marks; i++) {
        if (slot->kinds[i] == WORK_REST) continue;
        const double ms = gpu_mark_ms(r->g, slot->marks[i], slot->marks[i + 1]);
        if (slot->kinds[i] == WORK_PRODUCT) s->timings.matmul_ms += ms;
        else s->layer_attention_ms[slot->layers[i]] += ms;
        if (slot->kinds[i] == WORK_ESTIMATE) s->timings.estimate_ms += ms;
    }
    *n_rows = slot->n_rows;
    return TMX_OK;
}

static void keep_failure(cuda_run *r, tmx_status status, const tmx_error *err)
{
    if (status != TMX_OK && r->failure.code == TMX_OK) r->failure = *err;
}

static tmx_status first_failure(const cuda_run *r, tmx_error *err)
{
    if (r->failure.code != TMX_OK && err != NULL) *err = r->failure;
    return r->failure.code;
}

/* ---------------------------------------------------------------- the steps of a chunk */

typedef struct chunk_ints { const int32_t *tokens, *positions, *seqs, *last_rows; } chunk_ints;      /* device */

static chunk_ints ints_of(const chunk *c)
{
    const int32_t *ints = run_of(c->s)->b.ints;
    return (chunk_ints){ .tokens = ints, .positions = ints + c->n_rows, .seqs = ints + 2 * c->n_rows, .last_rows = ints + 3 * c->n_rows };
}

static float embedding_scale(const tmx_session *s)
{
    const float scale = s->model->tensors.shape.embedding_scale;
    return scale != 0 ? scale : 1.0f;
}

static void embed(chunk *c)
{
    cuda_run *r = run_of(c->s);
    chunk_slot *slot = &r->slots[r->at];
    const tmx_model_info *m = &c->s->model->info;
    slot->n_marks = 0;
    slot->n_rows = c->n_rows;
    int32_t *tokens = slot->ints, *positions = tokens + c->n_rows, *seqs = positions + c->n_rows, *last_rows = seqs + c->n_rows;
    for (int32_t i = 0; i < c->n_segments; i++) {
        const segment *g = &c->s->segments[i];
        memcpy(tokens + g->row, g->tokens, (size_t)g->n_rows * sizeof *tokens);
        for (int32_t k = 0; k < g->n_rows; k++) {
            positions[g->row + k] = g->q_begin + k;
            seqs[g->row + k] = g->seq;
        }
        last_rows[i] = g->row + g->n_rows - 1;
    }
    clock_begin(c, WORK_REST);
    gpu_upload(r->g, r->b.ints, slot->ints, (3 * (size_t)c->n_rows + (size_t)c->n_segments) * sizeof *tokens);
    gpu_embed(r->g, r->weights->token_embd.data, r->b.ints, c->n_rows, m->n_embd, embedding_scale(c->s), r->b.x);
}

static void norm(chunk *c, norm_step step)
{
    cuda_run *r = run_of(c->s);
    const tmx_model_info *m = &c->s->model->info;
    const cuda_layer *w = &r->weights->layers[c->layer];
    clock_begin(c, WORK_REST);
    gpu_rmsnorm(r->g, r->b.x, step == NORM_ATTENTION ? w->attn_norm : w->ffn_norm, m->rms_eps, c->n_rows, m->n_embd, r->b.normed,
                TMX_TYPE_BF16);
}

static void product(chunk *c, product_step step)
{
    cuda_run *r = run_of(c->s);
    const device_buffers *b = &r->b;
    const cuda_layer *w = &r->weights->layers[c->layer];
    const bool is_added = !c->s->model->tensors.shape.has_branch_norms;
    float *const sum = is_added ? b->x : b->branch;
    const struct { const gpu_weight *weight; const void *x; void *y; tmx_type y_type; bool is_added; } p[] = {
        [PRODUCT_QKV] = { &w->qkv, b->normed, b->qkv, TMX_TYPE_BF16, false },
        [PRODUCT_LAST_KV] = { &r->weights->last_kv, b->normed, b->qkv, TMX_TYPE_BF16, false },
        [PRODUCT_ATTN_OUTPUT] = { &w->attn_output, b->q, sum, TMX_TYPE_F32, is_added },
        [PRODUCT_GATE_UP] = { &w->gate_up, b->normed, b->gate_up, TMX_TYPE_BF16, false },
        [PRODUCT_DOWN] = { &w->down, b->gated, sum, TMX_TYPE_F32, is_added },
    };
    const gpu_weight *weight = p[step].weight;
    clock_begin(c, WORK_PRODUCT);
    gpu_product(r->g, weight, p[step].x, (size_t)weight->n_in, c->n_rows, p[step].y, (size_t)weight->n_out, p[step].y_type,
                p[step].is_added);
}

static gpu_place place_of(const tmx_session *s, int32_t layer, const int32_t *positions, const int32_t *seqs, int32_t n_rows)
{
    const cuda_run *r = run_of(s);
    const model_shape *m = &s->model->tensors.shape;
    const cuda_layer *w = &r->weights->layers[layer];
    const rope_table *table = cuda_rope(s->model, layer, s->params.n_ctx);
    return (gpu_place){
        .positions = positions, .seqs = seqs, .inverse_freq = table->frequency, .n_rows = n_rows, .n_heads = m->n_heads,
        .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim, .n_rot = m->n_rot, .rope = m->rope, .rope_factor = table->factor,
        .bias = w->bias, .q_norm = w->q_norm, .k_norm = w->k_norm, .norm_eps = m->rms_eps,
        .k = kv_view(&r->kv, r->kv.k, layer, 0), .v = kv_view(&r->kv, r->kv.v, layer, 0), .n_ctx = s->params.n_ctx,
    };
}

static void place_heads(chunk *c)
{
    cuda_run *r = run_of(c->s);
    const chunk_ints at = ints_of(c);
    const gpu_place place = place_of(c->s, c->layer, at.positions, at.seqs, c->n_rows);
    clock_begin(c, WORK_REST);
    gpu_place_heads(r->g, &place, r->b.qkv, TMX_TYPE_BF16, chunk_is_last_layer(c) ? NULL : r->b.q);
}

/* The sequences are in r->attention_seqs. */
static tmx_gpu_attention_params attention_call(const tmx_session *s, const tmx_pattern *pattern, int32_t n_seqs)
{
    const cuda_run *r = run_of(s);
    tmx_gpu_attention_params params = attention_params(&s->model->info, &s->params);
    params.scale = s->model->tensors.shape.score_scale;
    params.pattern = *pattern;
    params.seqs = r->attention_seqs;
    params.n_seqs = n_seqs;
    params.scratch = r->attention_scratch;
    params.scratch_bytes = r->n_attention_scratch;
    return params;
}

static void enqueue_attention(tmx_session *s, const tmx_pattern *pattern, int32_t n_seqs)
{
    cuda_run *r = run_of(s);
    const tmx_gpu_attention_params params = attention_call(s, pattern, n_seqs);
    tmx_error err;
    keep_failure(r, tmx_gpu_attention(&params, gpu_stream(r->g), &err), &err);
}

static void enqueue_dynamic(chunk *c, const tmx_pattern *pattern, int32_t n_seqs)
{
    cuda_run *r = run_of(c->s);
    const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE, .n_sink = 0, .n_window = 1, .n_last = 0 };
    const tmx_gpu_attention_params params = attention_call(c->s, &dense, n_seqs);
    tmx_error err;
    clock_begin(c, WORK_ESTIMATE);
    keep_failure(r, cuda_dynamic_estimate(&r->b.dynamic, r->g, &params, c->s->plan, pattern->kind, c->layer, &err), &err);
    clock_begin(c, WORK_ATTENTION);
    keep_failure(r, cuda_dynamic_attend(&r->b.dynamic, r->g, &params, pattern->kind, c->layer, &err), &err);
}

static void attend(chunk *c, const tmx_pattern *pattern)
{
    tmx_session *s = c->s;
    cuda_run *r = run_of(s);
    const size_t row_bytes = 2 * (size_t)s->model->info.n_heads * (size_t)s->model->info.head_dim;
    const bool is_dynamic = tmx_pattern_is_dynamic(pattern->kind);
    int32_t n_seqs = 0;
    for (int32_t i = 0; i < c->n_segments; i++) {
        const segment *g = &s->segments[i];
        if (chunk_pattern(c, g).kind != pattern->kind) continue;
        void *q = (char *)r->b.q + (size_t)g->row * row_bytes;
        r->attention_seqs[n_seqs++] = (tmx_gpu_attention_seq){
            .q = q, .out = q, .k = kv_view(&r->kv, r->kv.k, c->layer, g->seq), .v = kv_view(&r->kv, r->kv.v, c->layer, g->seq),
            .q_begin = g->q_begin, .n_q = g->n_rows, .n_prompt = g->n_prompt,
        };
        if (is_dynamic) session_count_pairs(s, c->layer, g->q_begin, g->q_begin + g->n_rows, 0);   /* cuda_dynamic_settle has them */
        else session_count_static(s, c->layer, pattern, g->n_prompt, g->q_begin, g->q_begin + g->n_rows);
    }
    if (n_seqs == 0) return;
    if (is_dynamic) {
        enqueue_dynamic(c, pattern, n_seqs);
        return;
    }
    clock_begin(c, WORK_ATTENTION);
    enqueue_attention(s, pattern, n_seqs);
}

static void gate_rows(const tmx_session *s, const void *gate_up, int32_t n_rows, void *gated, tmx_type type)
{
    const bool is_gelu = s->model->tensors.shape.gate == GATE_GELU_TANH;
    (is_gelu ? gpu_geglu : gpu_swiglu)(run_of(s)->g, gate_up, n_rows, s->model->info.n_ff, gated, type);
}

static void gate(chunk *c)
{
    const cuda_run *r = run_of(c->s);
    clock_begin(c, WORK_REST);
    gate_rows(c->s, r->b.gate_up, c->n_rows, r->b.gated, TMX_TYPE_BF16);
}

static void experts(chunk *c)
{
    cuda_run *r = run_of(c->s);
    const device_buffers *b = &r->b;
    const tmx_model_info *m = &c->s->model->info;
    const cuda_layer *w = &r->weights->layers[c->layer];
    gpu_groups groups = b->groups;
    groups.n_rows = c->n_rows;
    const int32_t n_places = (int32_t)gpu_group_places(c->n_rows, m->n_experts, m->n_experts_used);
    clock_begin(c, WORK_PRODUCT);
    gpu_product(r->g, &w->router, b->normed, (size_t)m->n_embd, c->n_rows, b->scores, (size_t)m->n_experts, TMX_TYPE_F32, false);
    clock_begin(c, WORK_REST);
    gpu_choose_experts(r->g, b->scores, c->n_rows, m->n_experts, m->n_experts_used, b->chosen);
    gpu_group_rows(r->g, b->chosen, &groups);
    clock_begin(c, WORK_PRODUCT);
    gpu_grouped_product(r->g, &w->gate_up, &groups, b->normed, true, b->gate_up, TMX_TYPE_BF16);
    clock_begin(c, WORK_REST);
    gate_rows(c->s, b->gate_up, n_places, b->gated, TMX_TYPE_BF16);
    clock_begin(c, WORK_PRODUCT);
    gpu_grouped_product(r->g, &w->down, &groups, b->gated, false, b->expert_out, TMX_TYPE_F32);
    clock_begin(c, WORK_REST);
    gpu_add_experts(r->g, b->chosen, groups.places, c->n_rows, m->n_experts_used, b->expert_out, m->n_embd, b->x);
}

static void add_branch(chunk *c, norm_step step)
{
    cuda_run *r = run_of(c->s);
    const tmx_model_info *m = &c->s->model->info;
    const cuda_layer *w = &r->weights->layers[c->layer];
    clock_begin(c, WORK_REST);
    gpu_add_normed(r->g, r->b.branch, step == NORM_ATTENTION ? w->attn_branch_norm : w->ffn_branch_norm, m->rms_eps, c->n_rows,
                   m->n_embd, r->b.x);
}

/* ---------------------------------------------------------------- single rows, f32 */

/* W input, normed where branches are, added to x. */
static void add_row_branch(const tmx_session *s, const gpu_weight *w, const float *input, const float *norm, float *x)
{
    const cuda_run *r = run_of(s);
    const tmx_model_info *m = &s->model->info;
    gpu_row_product(r->g, w, input, 1, norm == NULL ? x : r->b.row_branch, norm == NULL);
    if (norm != NULL) gpu_add_normed(r->g, r->b.row_branch, norm, m->rms_eps, 1, m->n_embd, x);
}

/* row_normed -> added to x [n_embd] */
static void add_row_experts(const tmx_session *s, const cuda_layer *w, float *x)
{
    const cuda_run *r = run_of(s);
    const device_buffers *b = &r->b;
    const tmx_model_info *m = &s->model->info;
    const int32_t n = m->n_experts, n_used = m->n_experts_used;
    gpu_row_product(r->g, &w->router, b->row_normed, 1, b->row_scores, false);
    gpu_choose_experts(r->g, b->row_scores, 1, n, n_used, b->row_chosen);
    gpu_chosen_product(r->g, &w->gate_up, n, b->row_chosen, n_used, b->row_normed, 0, b->row_gate_up);
    gate_rows(s, b->row_gate_up, n_used, b->row_gated, TMX_TYPE_F32);
    gpu_chosen_product(r->g, &w->down, n, b->row_chosen, n_used, b->row_gated, (size_t)m->n_ff, b->row_expert_out);
    gpu_add_experts(r->g, b->row_chosen, NULL, 1, n_used, b->row_expert_out, m->n_embd, x);
}

/* From the attention's result in row_heads to the layer's output, added to x [n_embd]. */
static void finish_row_layer(const tmx_session *s, int32_t layer, float *x)
{
    const cuda_run *r = run_of(s);
    const device_buffers *b = &r->b;
    const tmx_model_info *m = &s->model->info;
    const cuda_layer *w = &r->weights->layers[layer];
    add_row_branch(s, &w->attn_output, b->row_heads, w->attn_branch_norm, x);
    gpu_rmsnorm(r->g, x, w->ffn_norm, m->rms_eps, 1, m->n_embd, b->row_normed, TMX_TYPE_F32);
    if (m->n_experts > 0) {
        add_row_experts(s, w, x);
        return;
    }
    gpu_row_product(r->g, &w->gate_up, b->row_normed, 1, b->row_gate_up, false);
    gate_rows(s, b->row_gate_up, 1, b->row_gated, TMX_TYPE_F32);
    add_row_branch(s, &w->down, b->row_gated, w->ffn_branch_norm, x);
}

static void row_logits(const tmx_session *s, const float *x, float *logits)
{
    const cuda_run *r = run_of(s);
    const tmx_model_info *m = &s->model->info;
    gpu_rmsnorm(r->g, x, r->weights->output_norm, m->rms_eps, 1, m->n_embd, r->b.row_normed, TMX_TYPE_F32);
    gpu_row_product(r->g, &r->weights->lm_head, r->b.row_normed, 1, logits, false);
}

/* One row's attention in the last layer.  A row that sees everything goes as the one last row of a triangle: its keys are
 * cut into splits then, and many CTAs share them. */
static void attend_row(chunk *c, const segment *g)
{
    tmx_session *s = c->s;
    cuda_run *r = run_of(s);
    tmx_pattern pattern = chunk_pattern(c, g);
    if (tmx_pattern_is_dynamic(pattern.kind)) pattern.kind = TMX_PATTERN_DENSE;    /* no block of rows to estimate from */
    const bool is_dense = pattern.kind == TMX_PATTERN_DENSE || (pattern.kind == TMX_PATTERN_TRIANGLE && pattern.n_last > 0);
    r->attention_seqs[0] = (tmx_gpu_attention_seq){
        .q = r->b.row_q, .out = r->b.row_q, .k = kv_view(&r->kv, r->kv.k, c->layer, g->seq),
        .v = kv_view(&r->kv, r->kv.v, c->layer, g->seq), .q_begin = g->n_prompt - 1, .n_q = 1, .n_prompt = g->n_prompt,
    };
    enqueue_attention(s, is_dense ? &one_dense_row : &pattern, 1);
    session_count_static(s, c->layer, &pattern, g->n_prompt, g->n_prompt - 1, g->n_prompt);
}

/* gpu_embed also turns rows of bf16 into f32: the row's k and v as the chunk's product gave them, so that placing them again
 * writes the bits that are there, and the attention's result. */
static void finish(chunk *c, const tmx_prompt *prompts)
{
    tmx_session *s = c->s;
    cuda_run *r = run_of(s);
    const device_buffers *b = &r->b;
    const tmx_model_info *m = &s->model->info;
    const int32_t n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim;
    const chunk_ints at = ints_of(c);
    for (int32_t i = 0; i < c->n_segments; i++) {
        const segment *g = &s->segments[i];
        if (!segment_is_end(g) || prompts[g->prompt].logits == NULL) continue;
        const int32_t row = g->row + g->n_rows - 1;
        float *x = b->x + (size_t)row * (size_t)m->n_embd;
        const gpu_place place = place_of(s, c->layer, at.positions + row, at.seqs + row, 1);
        gpu_rmsnorm(r->g, x, r->weights->layers[c->layer].attn_norm, m->rms_eps, 1, m->n_embd, b->row_normed, TMX_TYPE_F32);
        gpu_row_product(r->g, &r->weights->last_q, b->row_normed, 1, b->row_qkv, false);
        gpu_embed(r->g, b->qkv, at.last_rows + i, 1, 2 * n_kv, 1.0f, b->row_qkv + n_q);
        gpu_place_heads(r->g, &place, b->row_qkv, TMX_TYPE_F32, b->row_q);
        attend_row(c, g);
        gpu_embed(r->g, b->row_q, b->zero, 1, n_q, 1.0f, b->row_heads);
        finish_row_layer(s, c->layer, x);
        row_logits(s, x, b->logits + (size_t)g->prompt * (size_t)m->n_vocab);
    }
}

/* ---------------------------------------------------------------- waiting */

static tmx_status catch_up(chunk *c, int64_t *n_done, tmx_error *err)
{
    cuda_run *r = run_of(c->s);
    if (!chunk_is_last_layer(c)) return TMX_OK;
    int32_t n_rows;
    clock_end(r);
    r->slots[r->at].is_in_flight = true;
    r->at = (r->at + 1) % N_SLOTS;
    TRY(finish_slot(c->s, &r->slots[r->at], &n_rows, err));        /* the chunk before: its slot is free for the next one */
    *n_done += (int64_t)n_rows * c->s->model->info.n_layers;
    return first_failure(r, err);
}

static tmx_status settle(tmx_session *s, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err)
{
    cuda_run *r = run_of(s);
    const size_t n_vocab = (size_t)s->model->info.n_vocab;
    int32_t n_rows;
    TRY(gpu_wait(r->g, err));
    for (int i = 0; i < N_SLOTS; i++) TRY(finish_slot(s, &r->slots[i], &n_rows, err));
    TRY(first_failure(r, err));
    TRY(cuda_dynamic_settle(&r->b.dynamic, r->g, s, err));
    for (int32_t i = 0; i < n_prompts; i++) {
        if (prompts[i].logits == NULL) continue;
        TRY(gpu_download(r->g, prompts[i].logits, r->b.logits + (size_t)i * n_vocab, n_vocab * sizeof(float), err));
    }
    return TMX_OK;
}

/* ---------------------------------------------------------------- decoding */

static void enqueue_decode(tmx_session *s)
{
    const cuda_run *r = run_of(s);
    const device_buffers *b = &r->b;
    const tmx_model_info *m = &s->model->info;
    const float own_scale = s->model->tensors.shape.score_scale, scale = own_scale != 0 ? own_scale : 1.0f / sqrtf((float)m->head_dim);
    gpu_embed(r->g, r->weights->token_embd.data, b->decode_ints, 1, m->n_embd, embedding_scale(s), b->row_x);
    for (int32_t layer = 0; layer < m->n_layers; layer++) {
        const cuda_layer *w = &r->weights->layers[layer];
        const gpu_place place = place_of(s, layer, b->decode_ints + 1, b->decode_ints + 2, 1);
        gpu_rmsnorm(r->g, b->row_x, w->attn_norm, m->rms_eps, 1, m->n_embd, b->row_normed, TMX_TYPE_F32);
        gpu_row_product(r->g, &w->qkv, b->row_normed, 1, b->row_qkv, false);
        gpu_place_heads(r->g, &place, b->row_qkv, TMX_TYPE_F32, b->row_q);
        const int32_t n_window = tmx_model_layer_has_window(m, layer) ? m->n_window : 0;
        gpu_decode_attention(r->g, &place, scale, n_window, b->row_q, b->row_heads, b->decode_scratch);
        finish_row_layer(s, layer, b->row_x);
    }
    row_logits(s, b->row_x, b->logits);
}

static void run_decode(tmx_session *s, int32_t seq, int32_t token)
{
    cuda_run *r = run_of(s);
    r->decode_ints[0] = token;
    r->decode_ints[1] = s->n_past[seq];
    r->decode_ints[2] = seq;
    gpu_upload(r->g, r->b.decode_ints, r->decode_ints, DECODE_INTS * sizeof *r->decode_ints);
    gpu_graph_run(r->g, r->decode);
}

static tmx_status decode(tmx_session *s, int32_t seq, int32_t token, float *logits, tmx_error *err)
{
    const cuda_run *r = run_of(s);
    run_decode(s, seq, token);
    return gpu_download(r->g, logits, r->b.logits, (size_t)s->model->info.n_vocab * sizeof *logits, err);
}

/* The choice is enqueued while the graph runs, so that its launches cost nothing. */
static tmx_status decode_next(tmx_session *s, int32_t seq, int32_t token, const sample_rule *rule, int32_t *next, tmx_error *err)
{
    const cuda_run *r = run_of(s);
    run_decode(s, seq, token);
    gpu_sample(r->g, r->b.logits, s->model->info.n_vocab, rule, r->b.next_token, r->b.sample_scratch);
    return gpu_download(r->g, next, r->b.next_token, sizeof *next, err);
}

const backend backend_cuda = {
    .dynamic_kinds = CUDA_DYNAMIC_KINDS,
    .plan_memory = plan_memory, .create = create, .free = free_run, .fit_plan = fit_plan,
    .embed = embed, .norm = norm, .product = product, .place_heads = place_heads, .attend = attend, .gate = gate,
    .experts = experts, .add_branch = add_branch, .finish = finish, .catch_up = catch_up, .settle = settle, .decode = decode,
    .decode_next = decode_next,
};
