/* fake_gpu.c - ops_cuda.h on host memory, in plain loops: check_gpu_model linked with it runs run/backend_cuda.c where there is no
 * GPU, under sanitizers too.  Nothing is done before the host waits for it, so that memory which the host writes again too early
 * shows; what is allocated holds NaNs.  Roundings are those of the device operators: bf16 operands, f32 sums. */
#include "fake_gpu.h"

#include "base/num.h"
#include "base/mem.h"
#include "base/status.h"
#include "gguf/blocks.h"
#include "ops/cuda/ops_cuda.h"
#include "unsanitized.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t MEMORY_BYTES = (uint64_t)80 << 30;

typedef enum call_kind {
    CALL_COPY, CALL_EMBED, CALL_RMSNORM, CALL_ADD_NORMED, CALL_SWIGLU, CALL_GEGLU, CALL_PRODUCT, CALL_PRODUCT_BACK, CALL_ROW_PRODUCT,
    CALL_PLACE, CALL_DECODE, CALL_CHOOSE, CALL_GROUP, CALL_GROUPED_PRODUCT, CALL_CHOSEN_PRODUCT, CALL_ADD_EXPERTS, CALL_ATTENTION,
    CALL_MARK, CALL_OTHER,
} call_kind;

typedef struct call {
    call_kind kind;
    const void *from, *other;      /* x, and what it meets: a table, a weight */
    void *to;
    size_t n_bytes, x_stride, y_stride;
    int32_t n_rows, n_in, n_out;
    tmx_type type;
    bool is_added;
    float number;                  /* eps, scale */
    int32_t n_window;
    gpu_place place;
    gpu_groups groups;             /* also for its counts alone */
    const gpu_choice *chosen;
    const int32_t *places;
    tmx_gpu_attention_params attention;
    tmx_gpu_attention_seq seqs[8];
    void (*run)(const void *args); /* of CALL_OTHER */
    _Alignas(16) char args[FAKE_ARGS_BYTES];
} call;

struct gpu_graph { call *calls; size_t n; };
struct gpu_mark { size_t at; };    /* calls before it */
struct gpu {
    call *calls;                   /* since the stream began; [0, n_done) are done */
    size_t n, n_done;
    gpu_graph *recording;
    uint64_t n_allocated;
};

static void *more(void *list, size_t n, size_t size)
{
    if ((n & (n - 1)) != 0) return list;
    void *larger = realloc(list, (n == 0 ? 1 : 2 * n) * size);
    if (larger == NULL) abort();
    return larger;
}

static void enqueue(gpu *g, const call *c)
{
    if (g->recording != NULL) {
        g->recording->calls = more(g->recording->calls, g->recording->n, sizeof *c);
        g->recording->calls[g->recording->n++] = *c;
        return;
    }
    g->calls = more(g->calls, g->n, sizeof *c);
    g->calls[g->n++] = *c;
}

void fake_gpu_enqueue(gpu *g, void (*run)(const void *args), const void *args, size_t n_bytes)
{
    call c = { .kind = CALL_OTHER, .run = run };
    if (n_bytes > sizeof c.args) abort();
    memcpy(c.args, args, n_bytes);
    enqueue(g, &c);
}

/* ---------------------------------------------------------------- what the calls do */

static float get(const void *x, size_t i, tmx_type type)
{
    return type == TMX_TYPE_BF16 ? bf16_to_f32(((const tmx_bf16 *)x)[i]) : ((const float *)x)[i];
}

/* Eight sums side by side, which the compiler turns into vectors; n is a multiple of 8 (cuda_model_check). */
UNSANITIZED static float dot(const float *x, const tmx_bf16 *w, int32_t n)
{
    float sums[8] = { 0 }, sum = 0;
    for (int32_t i = 0; i < n; i += 8) {
        for (int32_t k = 0; k < 8; k++) {
            const uint32_t bits = (uint32_t)w[i + k] << 16;    /* bf16_to_f32, which a sanitized build does not inline here */
            float wide;
            memcpy(&wide, &bits, sizeof wide);
            sums[k] += x[i + k] * wide;
        }
    }
    for (int32_t k = 0; k < 8; k++) sum += sums[k];
    return sum;
}

static void do_product(const call *c)
{
    const tmx_type x_type = c->kind == CALL_PRODUCT ? TMX_TYPE_BF16 : TMX_TYPE_F32;
    float *x = mem_alloc((size_t)c->n_in, sizeof *x);
    if (x == NULL) abort();
    for (int32_t r = 0; r < c->n_rows; r++) {
        for (int32_t i = 0; i < c->n_in; i++) x[i] = get(c->from, (size_t)r * c->x_stride + (size_t)i, x_type);
        for (int32_t o = 0; o < c->n_out; o++) {
            const float sum = dot(x, (const tmx_bf16 *)c->other + (size_t)o * (size_t)c->n_in, c->n_in);
            const size_t at = (size_t)r * c->y_stride + (size_t)o;
            if (c->type == TMX_TYPE_BF16) ((tmx_bf16 *)c->to)[at] = bf16_from_f32(sum);
            else ((float *)c->to)[at] = sum + (c->is_added ? ((float *)c->to)[at] : 0);
        }
    }
    mem_free(x);
}

static void do_add_normed(const call *c)
{
    const size_t n = (size_t)c->n_in;
    float *normed = mem_alloc(n, sizeof *normed);
    if (normed == NULL) abort();
    for (size_t r = 0; r < (size_t)c->n_rows; r++) {
        row_ops_get(TMX_ISA_SCALAR)->rmsnorm((const float *)c->from + r * n, c->other, c->number, c->n_in, normed, TMX_TYPE_F32);
        for (size_t i = 0; i < n; i++) ((float *)c->to)[r * n + i] += normed[i];
    }
    mem_free(normed);
}

/* y[r][i] = sum over o of x[r][o] w[o][i], o in order. */
static void do_product_back(const call *c)
{
    const size_t n_in = (size_t)c->n_in;
    float *y = mem_alloc(n_in, sizeof *y);
    if (y == NULL) abort();
    for (int32_t r = 0; r < c->n_rows; r++) {
        memset(y, 0, n_in * sizeof *y);
        for (int32_t o = 0; o < c->n_out; o++) {
            const tmx_bf16 *w = (const tmx_bf16 *)c->other + (size_t)o * n_in;
            const float x = get(c->from, (size_t)r * c->x_stride + (size_t)o, TMX_TYPE_BF16);
            for (size_t i = 0; i < n_in; i++) y[i] += x * bf16_to_f32(w[i]);
        }
        for (size_t i = 0; i < n_in; i++) {
            const size_t at = (size_t)r * c->y_stride + i;
            if (c->type == TMX_TYPE_BF16) ((tmx_bf16 *)c->to)[at] = bf16_from_f32(y[i]);
            else ((float *)c->to)[at] = y[i];
        }
    }
    mem_free(y);
}

static float gated(call_kind kind, float g)
{
    const float t = kind == CALL_GEGLU ? 1.5957691216057308f * (g + 0.044715f * g * g * g) : g;
    return g / (1 + expf(-t));
}

static void do_gate(const call *c)
{
    const size_t n_ff = (size_t)c->n_in;
    for (size_t i = 0; i < (size_t)c->n_rows * n_ff; i++) {
        const size_t row = i / n_ff * 2 * n_ff + i % n_ff;
        const float y = gated(c->kind, get(c->from, row, c->type)) * get(c->from, row + n_ff, c->type);
        if (c->type == TMX_TYPE_BF16) ((tmx_bf16 *)c->to)[i] = bf16_from_f32(y);
        else ((float *)c->to)[i] = y;
    }
}

static void do_place(const call *c)
{
    const gpu_place *p = &c->place;
    const row_ops *ops = row_ops_get(TMX_ISA_SCALAR);
    const size_t dim = (size_t)p->head_dim;
    const int32_t n_q = c->to != NULL ? p->n_heads : 0, n_all = n_q + 2 * p->n_kv_heads;
    const float *bias = p->bias != NULL ? p->bias + (size_t)(p->n_heads - n_q) * dim : NULL;
    float head[256], angle_cos[128], angle_sin[128];
    const rope_table table = { .frequency = p->inverse_freq, .n_pairs = p->n_rot / 2, .factor = p->rope_factor };
    for (int32_t r = 0; r < p->n_rows; r++) {
        rope_angles(p->positions[r], &table, angle_cos, angle_sin);
        for (int32_t h = 0; h < n_all; h++) {
            for (size_t i = 0; i < dim; i++) head[i] = get(c->from, ((size_t)r * (size_t)n_all + (size_t)h) * dim + i, c->type);
            for (size_t i = 0; bias != NULL && i < dim; i++) head[i] += bias[(size_t)h * dim + i];
            const bool is_q = h < n_q, is_v = h >= n_q + p->n_kv_heads;
            if (p->q_norm != NULL && !is_v) ops->rmsnorm(head, is_q ? p->q_norm : p->k_norm, p->norm_eps, p->head_dim, head, TMX_TYPE_F32);
            const size_t kv_head = (size_t)((h - n_q) % p->n_kv_heads + (is_q ? p->n_kv_heads : 0));
            const size_t at = (((size_t)p->seqs[r] * (size_t)p->n_kv_heads + kv_head) * (size_t)p->n_ctx + (size_t)p->positions[r]) * dim;
            tmx_bf16 *to = is_q ? (tmx_bf16 *)c->to + ((size_t)r * (size_t)n_q + (size_t)h) * dim : (tmx_bf16 *)(is_v ? p->v : p->k) + at;
            if (is_v) ops->convert(head, p->head_dim, to, TMX_TYPE_BF16);
            else ops->rope(head, angle_cos, angle_sin, p->n_rot, p->head_dim, p->rope, to, TMX_TYPE_BF16);
        }
    }
}

/* Through the CPU's operator; out may be q here, not there. */
static void attend(const tmx_gpu_attention_params *a, const tmx_gpu_attention_seq *seq)
{
    const size_t n = (size_t)seq->n_q * a->out_pos_stride;
    tmx_bf16 *out = mem_alloc(n, sizeof *out);
    if (out == NULL) abort();
    const tmx_attention_seq one = { .q = seq->q, .k = seq->k, .v = seq->v, .out = out, .lse = seq->lse, .q_begin = seq->q_begin, .n_q = seq->n_q,
                                    .n_prompt = seq->n_prompt };
    const tmx_attention_params params = {
        .q_type = TMX_TYPE_BF16, .kv_type = TMX_TYPE_BF16, .n_heads = a->n_heads, .n_kv_heads = a->n_kv_heads, .head_dim = a->head_dim,
        .q_pos_stride = a->q_pos_stride, .q_head_stride = a->q_head_stride, .k_pos_stride = a->k_pos_stride,
        .k_head_stride = a->k_head_stride, .v_pos_stride = a->v_pos_stride, .v_head_stride = a->v_head_stride,
        .out_pos_stride = a->out_pos_stride, .out_head_stride = a->out_head_stride, .scale = a->scale, .pattern = a->pattern, .seqs = &one, .n_seqs = 1,
    };
    tmx_error err;
    if (tmx_attention(&params, NULL, &err) != TMX_OK) abort();
    memcpy(seq->out, out, n * sizeof *out);
    mem_free(out);
}

/* bf16 q, f32 out: the operator takes q in f32. */
static void do_decode(const call *c)
{
    const gpu_place *p = &c->place;
    const size_t n_q = (size_t)p->n_heads * (size_t)p->head_dim, head_stride = (size_t)p->n_ctx * (size_t)p->head_dim;
    float *q = mem_alloc(n_q, sizeof *q);
    if (q == NULL) abort();
    for (size_t i = 0; i < n_q; i++) q[i] = get(c->from, i, TMX_TYPE_BF16);
    const size_t at = (size_t)p->seqs[0] * (size_t)p->n_kv_heads * head_stride;
    const tmx_attention_seq seq = { .q = q, .k = (tmx_bf16 *)p->k + at, .v = (tmx_bf16 *)p->v + at, .out = c->to,
                                    .q_begin = p->positions[0], .n_q = 1, .n_prompt = p->positions[0] + 1 };
    const tmx_attention_params params = {
        .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_BF16, .n_heads = p->n_heads, .n_kv_heads = p->n_kv_heads, .head_dim = p->head_dim,
        .scale = c->number, .q_pos_stride = n_q, .q_head_stride = (size_t)p->head_dim, .k_pos_stride = (size_t)p->head_dim,
        .k_head_stride = head_stride, .v_pos_stride = (size_t)p->head_dim, .v_head_stride = head_stride, .out_pos_stride = n_q,
        .out_head_stride = (size_t)p->head_dim, .seqs = &seq, .n_seqs = 1,
        .pattern = { .kind = c->n_window > 0 ? TMX_PATTERN_STREAMING : TMX_PATTERN_DENSE, .n_window = max_i32(c->n_window, 1) },
    };
    tmx_error err;
    if (tmx_attention(&params, NULL, &err) != TMX_OK) abort();
    mem_free(q);
}

/* ---------------------------------------------------------------- experts */

static void do_choose(const call *c)
{
    const int32_t n_experts = c->groups.n_experts, n_used = c->groups.n_used;
    for (int32_t r = 0; r < c->n_rows; r++) {
        const float *scores = (const float *)c->from + (size_t)r * (size_t)n_experts;
        gpu_choice *chosen = (gpu_choice *)c->to + (size_t)r * (size_t)n_used;
        double sum = 0, top = -INFINITY;
        int32_t n = 0;
        for (int32_t e = 0; e < n_experts; e++) {
            int32_t n_better = 0;
            for (int32_t o = 0; o < n_experts; o++) n_better += scores[o] > scores[e] || (scores[o] == scores[e] && o < e);
            if (n_better < n_used) chosen[n++].expert = e;
            top = fmax(top, (double)scores[e]);
        }
        for (int32_t i = 0; i < n_used; i++) sum += exp((double)scores[chosen[i].expert] - top);
        for (int32_t i = 0; i < n_used; i++) chosen[i].weight = (float)(exp((double)scores[chosen[i].expert] - top) / sum);
    }
}

/* Rows from the last to the first: their order within an expert is nobody's business. */
static void do_group(const call *c)
{
    const gpu_groups *g = &c->groups;
    const gpu_choice *chosen = c->from;
    const int32_t n = g->n_rows * g->n_used;
    int32_t at = 0;
    for (int64_t p = 0; p < gpu_group_places(g->n_rows, g->n_experts, g->n_used); p++) g->rows[p] = -1;
    for (int32_t e = 0; e < g->n_experts; e++) {
        g->begin[e] = at;
        for (int32_t i = n - 1; i >= 0; i--) {
            if (chosen[i].expert != e) continue;
            g->rows[at] = i / g->n_used;
            g->places[i] = at++;
        }
        at = (at + GPU_GROUP_ROWS - 1) / GPU_GROUP_ROWS * GPU_GROUP_ROWS;
    }
    g->begin[g->n_experts] = at;
    if (at > gpu_group_places(g->n_rows, g->n_experts, g->n_used)) abort();
}

static void do_grouped_product(const call *c)
{
    const gpu_groups *g = &c->groups;
    for (int32_t e = 0; e < g->n_experts; e++) {
        for (int32_t p = g->begin[e]; p < g->begin[e + 1]; p++) {
            if (g->rows[p] < 0) continue;
            const size_t row = (size_t)(c->is_added ? g->rows[p] : p), y = (size_t)p * (size_t)c->n_out * (c->type == TMX_TYPE_BF16 ? 2 : 4);
            do_product(&(call){ .kind = CALL_PRODUCT, .from = (const tmx_bf16 *)c->from + row * (size_t)c->n_in, .n_rows = 1, .n_in = c->n_in,
                                .other = (const tmx_bf16 *)c->other + (size_t)e * (size_t)c->n_out * (size_t)c->n_in, .n_out = c->n_out,
                                .to = (char *)c->to + y, .type = c->type });
        }
    }
}

static void do_chosen_product(const call *c)
{
    for (size_t i = 0; i < (size_t)c->groups.n_used; i++) {
        do_product(&(call){ .kind = CALL_ROW_PRODUCT, .from = (const float *)c->from + i * c->x_stride, .n_rows = 1, .n_in = c->n_in,
                            .other = (const tmx_bf16 *)c->other + (size_t)c->chosen[i].expert * (size_t)c->n_out * (size_t)c->n_in,
                            .n_out = c->n_out, .to = (float *)c->to + i * (size_t)c->n_out, .type = TMX_TYPE_F32 });
    }
}

static void do_add_experts(const call *c)
{
    const size_t n = (size_t)c->n_in;
    for (int32_t i = 0; i < c->n_rows * c->groups.n_used; i++) {
        const float *y = (const float *)c->from + (size_t)(c->places != NULL ? c->places[i] : i) * n;
        float *x = (float *)c->to + (size_t)(i / c->groups.n_used) * n;
        for (size_t k = 0; k < n; k++) x[k] += c->chosen[i].weight * y[k];
    }
}

static void execute(const call *c)
{
    switch (c->kind) {
    case CALL_COPY: memcpy(c->to, c->from, c->n_bytes); break;
    case CALL_EMBED:
        for (int32_t r = 0; r < c->n_rows; r++) {
            for (size_t i = 0, n = (size_t)c->n_in; i < n; i++) {
                ((float *)c->to)[(size_t)r * n + i] = c->number * get(c->other, (size_t)((const int32_t *)c->from)[r] * n + i, TMX_TYPE_BF16);
            }
        }
        break;
    case CALL_RMSNORM:
        for (int32_t r = 0; r < c->n_rows; r++) {
            const size_t at = (size_t)r * (size_t)c->n_in;
            row_ops_get(TMX_ISA_SCALAR)->rmsnorm((const float *)c->from + at, c->other, c->number, c->n_in,
                                                 (char *)c->to + at * (c->type == TMX_TYPE_BF16 ? 2 : 4), c->type);
        }
        break;
    case CALL_ADD_NORMED: do_add_normed(c); break;
    case CALL_SWIGLU: case CALL_GEGLU: do_gate(c); break;
    case CALL_PRODUCT: case CALL_ROW_PRODUCT: do_product(c); break;
    case CALL_PRODUCT_BACK: do_product_back(c); break;
    case CALL_PLACE: do_place(c); break;
    case CALL_DECODE: do_decode(c); break;
    case CALL_CHOOSE: do_choose(c); break;
    case CALL_GROUP: do_group(c); break;
    case CALL_GROUPED_PRODUCT: do_grouped_product(c); break;
    case CALL_CHOSEN_PRODUCT: do_chosen_product(c); break;
    case CALL_ADD_EXPERTS: do_add_experts(c); break;
    case CALL_ATTENTION:
        for (int32_t i = 0; i < c->attention.n_seqs; i++) attend(&c->attention, &c->seqs[i]);
        break;
    case CALL_MARK: break;
    case CALL_OTHER: c->run(c->args); break;
    }
}

static void run_until(gpu *g, size_t n)
{
    while (g->n_done < n) execute(&g->calls[g->n_done++]);
}

/* ---------------------------------------------------------------- ops_cuda.h */

tmx_status gpu_open(gpu **opened, int32_t device, tmx_error *err)
{
    if (device != 0) return refuse(err, TMX_E_DEVICE, "CUDA device %d: there is 1, numbered from 0", device);
    gpu *g = calloc(1, sizeof *g);
    if (g == NULL) abort();
    *opened = g;
    return TMX_OK;
}

void gpu_close(gpu *g)
{
    if (g == NULL) return;
    run_until(g, g->n);
    free(g->calls);
    free(g);
}

int32_t gpu_count(void) { return 1; }
const char *gpu_name(const gpu *g) { (void)g; return "host memory"; }
void *gpu_stream(const gpu *g) { return (void *)(uintptr_t)g; }

tmx_status gpu_memory(const gpu *g, uint64_t *n_free, uint64_t *n_total, tmx_error *err)
{
    (void)err;
    *n_free = MEMORY_BYTES - g->n_allocated;
    *n_total = MEMORY_BYTES;
    return TMX_OK;
}

tmx_status gpu_alloc(gpu *g, void **data, uint64_t n_bytes, tmx_error *err)
{
    if (n_bytes > MEMORY_BYTES) return refuse(err, TMX_E_MEMORY, "more than there is");
    g->n_allocated += n_bytes;
    *data = aligned_alloc(256, (n_bytes + 256) / 256 * 256);
    if (*data == NULL) abort();
    memset(*data, 0xff, n_bytes);
    return TMX_OK;
}

void gpu_free(gpu *g, void *data)
{
    run_until(g, g->n);
    free(data);
}

tmx_status gpu_alloc_pinned(gpu *g, void **data, size_t n_bytes, tmx_error *err) { return gpu_alloc(g, data, n_bytes, err); }
void gpu_free_pinned(gpu *g, void *data) { gpu_free(g, data); }

void gpu_upload(gpu *g, void *to, const void *from, size_t n_bytes)
{
    enqueue(g, &(call){ .kind = CALL_COPY, .to = to, .from = from, .n_bytes = n_bytes });
}

tmx_status gpu_wait(gpu *g, tmx_error *err)
{
    (void)err;
    run_until(g, g->n);
    return TMX_OK;
}

tmx_status gpu_download(gpu *g, void *to, const void *from, size_t n_bytes, tmx_error *err)
{
    gpu_upload(g, to, from, n_bytes);
    return gpu_wait(g, err);
}

tmx_status gpu_mark_create(gpu *g, gpu_mark **mark, tmx_error *err)
{
    (void)g, (void)err;
    *mark = calloc(1, sizeof **mark);
    return *mark != NULL ? TMX_OK : TMX_E_MEMORY;
}

void gpu_mark_free(gpu *g, gpu_mark *mark) { (void)g; free(mark); }
void gpu_mark_set(gpu *g, gpu_mark *mark) { mark->at = g->n; }
double gpu_mark_ms(gpu *g, const gpu_mark *begin, const gpu_mark *end)
{
    if (begin->at > end->at || end->at > g->n_done) abort();
    return (double)(end->at - begin->at);
}

tmx_status gpu_mark_wait(gpu *g, const gpu_mark *mark, tmx_error *err)
{
    (void)err;
    run_until(g, mark->at);
    return TMX_OK;
}

void gpu_graph_begin(gpu *g) { g->recording = calloc(1, sizeof *g->recording); }

tmx_status gpu_graph_end(gpu *g, gpu_graph **graph, tmx_error *err)
{
    (void)err;
    *graph = g->recording;
    g->recording = NULL;
    return TMX_OK;
}

void gpu_graph_run(gpu *g, const gpu_graph *graph)
{
    for (size_t i = 0; i < graph->n; i++) enqueue(g, &graph->calls[i]);
}

void gpu_graph_free(gpu *g, gpu_graph *graph)
{
    (void)g;
    if (graph == NULL) return;
    free(graph->calls);
    free(graph);
}

tmx_status gpu_weight_fill(gpu *g, const gpu_weight *weight, const matmul_source *sources, int32_t n_sources, tmx_pool *pool, tmx_error *err)
{
    (void)g, (void)pool, (void)err;
    tmx_bf16 *to = weight->data;
    float *row = mem_alloc((size_t)weight->n_in, sizeof *row);
    if (row == NULL) abort();
    for (int32_t s = 0; s < n_sources; s++) {
        const block_format *format = block_format_find(sources[s].type);
        for (int32_t o = 0; o < sources[s].n_out; o++) {
            format->to_f32((const char *)sources[s].data + (size_t)o * block_row_bytes(format, (size_t)weight->n_in), row, (size_t)weight->n_in);
            for (int32_t i = 0; i < weight->n_in; i++) *to++ = bf16_from_f32(row[i]);
        }
    }
    mem_free(row);
    return TMX_OK;
}

void gpu_weight_random(gpu *g, const gpu_weight *weight, float deviation, uint64_t seed) { (void)g, (void)weight, (void)deviation, (void)seed; }

tmx_status gpu_weight_tune(gpu *g, gpu_weight *weight, int32_t n_rows, tmx_type y_type, bool is_added, void *scratch, tmx_error *err)
{
    (void)g, (void)weight, (void)n_rows, (void)y_type, (void)is_added, (void)scratch, (void)err;
    return TMX_OK;
}

void gpu_product(gpu *g, const gpu_weight *weight, const void *x, size_t x_stride, int32_t n_rows, void *y, size_t y_stride,
                 tmx_type y_type, bool is_added)
{
    enqueue(g, &(call){ .kind = CALL_PRODUCT, .from = x, .other = weight->data, .to = y, .x_stride = x_stride, .y_stride = y_stride,
                        .n_rows = n_rows, .n_in = weight->n_in, .n_out = weight->n_out, .type = y_type, .is_added = is_added });
}

void gpu_row_product(gpu *g, const gpu_weight *weight, const float *x, int32_t n_rows, float *y, bool is_added)
{
    enqueue(g, &(call){ .kind = CALL_ROW_PRODUCT, .from = x, .other = weight->data, .to = y, .x_stride = (size_t)weight->n_in,
                        .y_stride = (size_t)weight->n_out, .n_rows = n_rows, .n_in = weight->n_in, .n_out = weight->n_out,
                        .type = TMX_TYPE_F32, .is_added = is_added });
}

void gpu_product_back(gpu *g, const gpu_weight *weight, const void *x, size_t x_stride, int32_t n_rows, void *y, size_t y_stride,
                      tmx_type y_type)
{
    enqueue(g, &(call){ .kind = CALL_PRODUCT_BACK, .from = x, .other = weight->data, .to = y, .x_stride = x_stride, .y_stride = y_stride,
                        .n_rows = n_rows, .n_in = weight->n_in, .n_out = weight->n_out, .type = y_type });
}

void gpu_embed(gpu *g, const void *table, const int32_t *tokens, int32_t n_rows, int32_t n_embd, float scale, float *x)
{
    enqueue(g, &(call){ .kind = CALL_EMBED, .from = tokens, .other = table, .to = x, .n_rows = n_rows, .n_in = n_embd, .number = scale });
}

void gpu_rmsnorm(gpu *g, const float *x, const float *weight, float eps, int32_t n_rows, int32_t n_embd, void *out, tmx_type out_type)
{
    enqueue(g, &(call){ .kind = CALL_RMSNORM, .from = x, .other = weight, .to = out, .n_rows = n_rows, .n_in = n_embd, .type = out_type,
                        .number = eps });
}

void gpu_add_normed(gpu *g, const float *branch, const float *weight, float eps, int32_t n_rows, int32_t n_embd, float *x)
{
    enqueue(g, &(call){ .kind = CALL_ADD_NORMED, .from = branch, .other = weight, .to = x, .n_rows = n_rows, .n_in = n_embd, .number = eps });
}

void gpu_geglu(gpu *g, const void *gate_up, int32_t n_rows, int32_t n_ff, void *out, tmx_type type)
{
    enqueue(g, &(call){ .kind = CALL_GEGLU, .from = gate_up, .to = out, .n_rows = n_rows, .n_in = n_ff, .type = type });
}

void gpu_swiglu(gpu *g, const void *gate_up, int32_t n_rows, int32_t n_ff, void *out, tmx_type type)
{
    enqueue(g, &(call){ .kind = CALL_SWIGLU, .from = gate_up, .to = out, .n_rows = n_rows, .n_in = n_ff, .type = type });
}

void gpu_place_heads(gpu *g, const gpu_place *place, const void *qkv, tmx_type qkv_type, void *q)
{
    enqueue(g, &(call){ .kind = CALL_PLACE, .from = qkv, .to = q, .type = qkv_type, .place = *place });
}

void gpu_choose_experts(gpu *g, const float *scores, int32_t n_rows, int32_t n_experts, int32_t n_used, gpu_choice *chosen)
{
    enqueue(g, &(call){ .kind = CALL_CHOOSE, .from = scores, .to = chosen, .n_rows = n_rows,
                        .groups = { .n_experts = n_experts, .n_used = n_used } });
}

void gpu_group_rows(gpu *g, const gpu_choice *chosen, const gpu_groups *groups)
{
    enqueue(g, &(call){ .kind = CALL_GROUP, .from = chosen, .groups = *groups });
}

void gpu_grouped_product(gpu *g, const gpu_weight *weight, const gpu_groups *groups, const void *x, bool is_gathered, void *y, tmx_type y_type)
{
    enqueue(g, &(call){ .kind = CALL_GROUPED_PRODUCT, .from = x, .other = weight->data, .to = y, .groups = *groups, .n_in = weight->n_in,
                        .n_out = weight->n_out / groups->n_experts, .type = y_type, .is_added = is_gathered });
}

void gpu_chosen_product(gpu *g, const gpu_weight *weight, int32_t n_experts, const gpu_choice *chosen, int32_t n_used, const float *x,
                        size_t x_stride, float *y)
{
    enqueue(g, &(call){ .kind = CALL_CHOSEN_PRODUCT, .from = x, .other = weight->data, .to = y, .x_stride = x_stride, .n_in = weight->n_in,
                        .n_out = weight->n_out / n_experts, .chosen = chosen, .groups = { .n_used = n_used } });
}

void gpu_add_experts(gpu *g, const gpu_choice *chosen, const int32_t *places, int32_t n_rows, int32_t n_used, const float *y, int32_t n_embd,
                     float *x)
{
    enqueue(g, &(call){ .kind = CALL_ADD_EXPERTS, .from = y, .chosen = chosen, .places = places, .to = x, .n_rows = n_rows, .n_in = n_embd,
                        .groups = { .n_used = n_used } });
}

size_t gpu_decode_attention_bytes(int32_t n_rows, int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, int32_t n_ctx)
{
    (void)n_rows, (void)n_heads, (void)n_kv_heads, (void)head_dim, (void)n_ctx;
    return 256;
}

void gpu_decode_attention(gpu *g, const gpu_place *place, float scale, int32_t n_window, const void *q, float *out, void *scratch)
{
    (void)scratch;
    enqueue(g, &(call){ .kind = CALL_DECODE, .from = q, .to = out, .place = *place, .number = scale, .n_window = n_window });
}

typedef struct sample_args { const float *logits; int32_t n, *token; sample_rule rule; } sample_args;

static void do_sample(const void *args)
{
    const sample_args *a = args;
    sample_candidate *candidates = mem_alloc((size_t)a->n, sizeof *candidates);
    if (candidates == NULL) abort();
    *a->token = 0;
    for (int32_t i = 0; i < a->n; i++) {
        if (!isfinite(a->logits[i])) *a->token = -1;
    }
    if (*a->token == 0) *a->token = sample_choose(&a->rule, a->logits, a->n, candidates);
    mem_free(candidates);
}

size_t gpu_sample_bytes(int32_t n) { (void)n; return 256; }

void gpu_sample(gpu *g, const float *logits, int32_t n, const sample_rule *rule, int32_t *token, void *scratch)
{
    (void)scratch;
    fake_gpu_enqueue(g, do_sample, &(sample_args){ .logits = logits, .n = n, .token = token, .rule = *rule }, sizeof(sample_args));
}

/* In place of tmx_gpu_attention (--wrap): the real one's demands on scratch, the CPU's result. */
tmx_status __wrap_tmx_gpu_attention(const tmx_gpu_attention_params *params, void *stream, tmx_error *err);
tmx_status __wrap_tmx_gpu_attention(const tmx_gpu_attention_params *params, void *stream, tmx_error *err)
{
    call c = { .kind = CALL_ATTENTION, .attention = *params };
    if (tmx_gpu_attention_scratch_bytes(params) > params->scratch_bytes) return refuse(err, TMX_E_ARG, "gpu attention: scratch_bytes");
    if (params->n_seqs > (int32_t)(sizeof c.seqs / sizeof c.seqs[0])) abort();
    memcpy(c.seqs, params->seqs, (size_t)params->n_seqs * sizeof c.seqs[0]);
    enqueue(stream, &c);
    return TMX_OK;
}
