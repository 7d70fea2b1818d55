#include "attn/attn.h"
#include "attn/attn_element.h"
#include "base/mem.h"
#include "base/num.h"
#include "eval/dice.h"
#include "eval/fault.h"
#include "kernel_parts.h"

#include <math.h>
#include <stdlib.h>

static const tmx_pattern patterns[] = {
    { .kind = TMX_PATTERN_DENSE },
    { TMX_PATTERN_STREAMING, TMX_DEFAULT_SINK, TMX_DEFAULT_WINDOW, 0 },
    { TMX_PATTERN_TRIANGLE, TMX_DEFAULT_SINK, TMX_DEFAULT_WINDOW, TMX_DEFAULT_LAST },
};
static const tmx_type types[] = { TMX_TYPE_F32, TMX_TYPE_BF16 };
enum { N_PATTERNS = 3, N_TYPES = 2, MAX_ENTRIES = N_PATTERNS * KERNEL_MAX_RUNGS };

/* Rows that are checked: half before the tail of a triangle, half in it; behind so many keys that the first half misses some. */
enum { CHECK_KEYS = 900, CHECK_ROWS = 32, CHECK_ROWS_TAIL = CHECK_ROWS / 2 };
/* Largest relative L2 distance from the f64 result: f32 sums of hundreds of weights, and bf16 results of bf16 weights. */
static double limit_of(tmx_type type) { return type == TMX_TYPE_BF16 ? 1e-2 : 1e-5; }

/* One shape: buffers and the call on them.  q and out [n][n_heads][head_dim], k and v [n][KERNEL_N_KV_HEADS][head_dim] */
typedef struct shape {
    tmx_attention_params call;
    tmx_attention_seq seq;
    void *q, *k, *v, *out, *scratch;
    int32_t n;
} shape;

typedef struct entry {
    tmx_pattern pattern;
    tmx_isa isa;
    double flop, error;
    double times_ms[KERNEL_MAX_REPEATS];
} entry;

static double flop_of(const tmx_pattern *p, int32_t n, int32_t n_heads, int32_t head_dim)
{
    return 4.0 * head_dim * n_heads * (double)tmx_pattern_pairs(p, n, 0, n);
}

double attention_bench_work(const kernel_params *p, int32_t n_rungs)
{
    double flop = 0;
    for (int32_t i = 0; i < p->n_lengths; i++) {
        for (int32_t d = 0; d < p->n_head_dims; d++) {
            for (int32_t g = 0; g < p->n_groups; g++) {
                for (int k = 0; k < N_PATTERNS; k++) {
                    flop += flop_of(&patterns[k], p->lengths[i], p->groups[g] * KERNEL_N_KV_HEADS, p->head_dims[d]);
                }
            }
        }
    }
    return flop * n_rungs * N_TYPES * (p->n_repeats + 1);
}

/* Near normal numbers, sigma 1: scores of sigma 1 behind the scale. */
static void fill(void *data, tmx_type type, size_t n, dice *d)
{
    for (size_t i = 0; i < n; i++) {
        const double x = (dice_unit(d) + dice_unit(d) + dice_unit(d) + dice_unit(d) - 2) * 1.7320508075688772;
        if (type == TMX_TYPE_BF16) ((tmx_bf16 *)data)[i] = bf16_from_f32((float)x);
        else ((float *)data)[i] = (float)x;
    }
}

static void shape_free(shape *s)
{
    mem_free(s->q);
    mem_free(s->k);
    mem_free(s->v);
    mem_free(s->out);
    mem_free(s->scratch);
}

static tmx_status shape_create(shape *s, tmx_type type, int32_t n, int32_t head_dim, int32_t n_group, const kernel_run *run,
                               tmx_error *err)
{
    const kernel_params *p = run->params;
    const int32_t n_heads = n_group * KERNEL_N_KV_HEADS;
    const size_t n_bytes = type == TMX_TYPE_BF16 ? sizeof(tmx_bf16) : sizeof(float);
    const size_t q_row = (size_t)n_heads * (size_t)head_dim, k_row = (size_t)KERNEL_N_KV_HEADS * (size_t)head_dim;
    *s = (shape){
        .n = n, .q = mem_alloc((size_t)n * q_row, n_bytes), .out = mem_alloc((size_t)n * q_row, n_bytes),
        .k = mem_alloc((size_t)n * k_row, n_bytes), .v = mem_alloc((size_t)n * k_row, n_bytes),
    };
    s->call = (tmx_attention_params){
        .q_type = type, .kv_type = type, .n_heads = n_heads, .n_kv_heads = KERNEL_N_KV_HEADS, .head_dim = head_dim,
        .q_pos_stride = q_row, .q_head_stride = (size_t)head_dim, .out_pos_stride = q_row, .out_head_stride = (size_t)head_dim,
        .k_pos_stride = k_row, .k_head_stride = (size_t)head_dim, .v_pos_stride = k_row, .v_head_stride = (size_t)head_dim,
        .seqs = &s->seq, .n_seqs = 1,
    };
    s->seq = (tmx_attention_seq){ .q = s->q, .k = s->k, .v = s->v, .out = s->out, .n_q = n, .n_prompt = n };
    /* the most that any entry needs */
    size_t scratch_bytes = 0;
    for (int32_t i = 0; i < N_PATTERNS * run->n_rungs; i++) {
        s->call.pattern = patterns[i % N_PATTERNS];
        s->call.isa = run->rungs[i / N_PATTERNS];
        const size_t n_here = tmx_attention_scratch_bytes(&s->call, tmx_pool_n_threads(p->pool));
        if (n_here > scratch_bytes) scratch_bytes = n_here;
    }
    s->scratch = mem_alloc(scratch_bytes, 1);
    if (s->q == NULL || s->out == NULL || s->k == NULL || s->v == NULL || s->scratch == NULL) {
        return fault(err, TMX_E_MEMORY, "out of memory for attention of %d tokens, %d heads of %d", n, n_heads, head_dim);
    }
    dice d = { .state = p->seed };
    fill(s->q, type, (size_t)n * q_row, &d);
    fill(s->k, type, (size_t)n * k_row, &d);
    fill(s->v, type, (size_t)n * k_row, &d);
    return TMX_OK;
}

/* Some rows of a prompt of its own, against the f64 oracle. */
static tmx_status check(const shape *s, entry *e, tmx_pool *pool, tmx_error *err)
{
    tmx_attention_params call = s->call;
    tmx_attention_seq seq = s->seq;
    const size_t row = (size_t)call.n_heads * (size_t)call.head_dim, n_bytes = call.q_type == TMX_TYPE_BF16 ? 2 : 4;
    seq.n_prompt = s->n < CHECK_KEYS ? s->n : CHECK_KEYS;
    seq.q_begin = seq.n_prompt - TMX_DEFAULT_LAST - CHECK_ROWS_TAIL;
    if (seq.q_begin < 0) seq.q_begin = 0;
    seq.n_q = seq.n_prompt - seq.q_begin < CHECK_ROWS ? seq.n_prompt - seq.q_begin : CHECK_ROWS;
    seq.q = (const char *)s->q + (size_t)seq.q_begin * row * n_bytes;
    call.seqs = &seq;
    call.pattern = e->pattern;
    call.isa = e->isa;
    const size_t n_out = (size_t)seq.n_q * row;
    double *out = malloc(n_out * sizeof *out), *lse = malloc((size_t)seq.n_q * (size_t)call.n_heads * sizeof *lse);
    tmx_status status = TMX_OK;
    if (out == NULL || lse == NULL) status = fault(err, TMX_E_MEMORY, "out of memory for the f64 attention");
    if (status == TMX_OK) status = tmx_attention(&call, pool, err);
    if (status == TMX_OK) {
        double diff = 0, norm = 0;
        attn_ref_f64(&call, 0, out, lse);
        for (size_t i = 0; i < n_out; i++) {
            const double d = attn_element(seq.out, call.q_type, i) - out[i];
            diff += d * d;
            norm += out[i] * out[i];
        }
        e->error = sqrt(diff / norm);
        if (!(e->error < limit_of(call.q_type))) {
            status = fault(err, TMX_E_NUMERIC, "check: attention %s, %s, %s, head_dim %d: relative error %.2g, expected below %g",
                                 tmx_pattern_name(e->pattern.kind), call.q_type == TMX_TYPE_BF16 ? "bf16" : "f32",
                                 tmx_isa_name(e->isa), call.head_dim, e->error, limit_of(call.q_type));
        }
    }
    free(out);
    free(lse);
    return status;
}

static void finish(const kernel_run *run, const shape *s, entry *entries, int32_t n_entries)
{
    const kernel_params *p = run->params;
    const tmx_type type = s->call.q_type;
    double dense_ms = 1, dense_flop = 1;
    for (int32_t i = 0; i < n_entries; i++) {
        entry *e = &entries[i];
        kernel_result r = {
            .op = KERNEL_ATTENTION, .type = type == TMX_TYPE_BF16 ? "bf16" : "f32", .provider = "builtin", .isa = e->isa,
            .pattern = e->pattern, .n_tokens = s->n, .n_heads = s->call.n_heads, .n_kv_heads = s->call.n_kv_heads,
            .head_dim = s->call.head_dim, .time = timing_summarize(e->times_ms, p->n_repeats), .error = e->error,
        };
        if (e->pattern.kind == TMX_PATTERN_DENSE) {            /* the first entry of each rung */
            dense_ms = r.time.median;
            dense_flop = e->flop;
        }
        const double ceiling = ceiling_of(run->ceilings, e->isa, type);
        r.rate = e->flop / r.time.median * 1e-6;
        r.pct_of_ceiling = ceiling > 0 ? 100 * r.rate / ceiling : 0;
        r.pair_ratio = e->flop / dense_flop;
        r.time_ratio = r.time.median / dense_ms;
        if (p->finished != NULL) p->finished(p->ctx, &r);
    }
}

static tmx_status run_shape(kernel_run *run, const shape *s, entry *entries, tmx_error *err)
{
    const kernel_params *p = run->params;
    tmx_status status = TMX_OK;
    int32_t n = 0;
    for (int32_t r = 0; r < run->n_rungs; r++) {
        for (int k = 0; k < N_PATTERNS; k++, n++) {
            entries[n].pattern = patterns[k];
            entries[n].isa = run->rungs[r];
            entries[n].flop = flop_of(&patterns[k], s->n, s->call.n_heads, s->call.head_dim);
        }
    }
    for (int32_t i = 0; i < n && status == TMX_OK; i++) status = check(s, &entries[i], p->pool, err);
    for (int32_t repeat = -1; repeat < p->n_repeats; repeat++) {
        for (int32_t i = 0; i < n && status == TMX_OK; i++) {
            tmx_attention_params call = s->call;
            call.pattern = entries[i].pattern;
            call.isa = entries[i].isa;
            call.scratch = s->scratch;
            const double begin_ms = timing_now_ms();
            status = tmx_attention(&call, p->pool, err);
            if (repeat >= 0) entries[i].times_ms[repeat] = timing_now_ms() - begin_ms;
            if (status == TMX_OK) status = kernel_step(run, entries[i].flop, err);
        }
    }
    if (status == TMX_OK) finish(run, s, entries, n);
    return status;
}

tmx_status attention_bench(kernel_run *run, tmx_error *err)
{
    const kernel_params *p = run->params;
    entry *entries = calloc(MAX_ENTRIES, sizeof *entries);
    if (entries == NULL) return fault(err, TMX_E_MEMORY, "out of memory for %d repetitions", p->n_repeats);
    tmx_status status = TMX_OK;
    const int32_t n_cases = p->n_lengths * p->n_head_dims * p->n_groups * N_TYPES;
    for (int32_t i = 0; i < n_cases && status == TMX_OK; i++) {        /* the length changes slowest */
        const int32_t type = i % N_TYPES, group = i / N_TYPES % p->n_groups, dim = i / N_TYPES / p->n_groups % p->n_head_dims;
        const int32_t length = i / N_TYPES / p->n_groups / p->n_head_dims;
        shape s;
        status = shape_create(&s, types[type], p->lengths[length], p->head_dims[dim], p->groups[group], run, err);
        if (status == TMX_OK) status = run_shape(run, &s, entries, err);
        shape_free(&s);
    }
    free(entries);
    return status;
}
