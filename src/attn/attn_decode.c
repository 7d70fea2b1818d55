#include "attn/attn.h"

#include "attn/attn_kernel.h"
#include "base/cpu.h"
#include "base/num.h"
#include "base/pool.h"

#include <float.h>
#include <math.h>
#include <string.h>

const attn_kernel *attn_decode_kernel_get(tmx_isa isa)
{
    return attn_kernel_get(isa, TMX_TYPE_F32, TMX_TYPE_F32);   /* bf16 rung too: decoding waits for memory */
}

static size_t stride_of(int32_t head_dim) { return align_up((size_t)head_dim, MEM_ALIGN / sizeof(float)); }

static int32_t ranges_of(int32_t n_keys)
{
    return (int32_t)(((int64_t)n_keys + ATTN_DECODE_KEYS - 1) / ATTN_DECODE_KEYS);
}

/* In floats.  Of a thread: q, weights, rows.  Of a (sequence, KV head, range): o, max, sum. */
static size_t thread_floats(size_t n_group, size_t d_stride)
{
    return n_group * d_stride + n_group * ATTN_DECODE_KEYS + ATTN_DECODE_STEP * d_stride;
}

static size_t part_floats(size_t n_group, size_t d_stride) { return n_group * d_stride + 2 * align_up(n_group, 16); }

size_t attn_decode_scratch_bytes(const tmx_attention_params *params, int32_t max_keys, int32_t n_threads)
{
    const size_t n_group = (size_t)(params->n_heads / params->n_kv_heads), d_stride = stride_of(params->head_dim);
    uint64_t n_parts, n_floats, n_thread_floats;
    if (!mul_ok((uint64_t)params->n_seqs * (uint64_t)params->n_kv_heads, (uint64_t)ranges_of(max_keys), &n_parts)
        || !mul_ok(n_parts, part_floats(n_group, d_stride), &n_floats)
        || !mul_ok((uint64_t)n_threads, thread_floats(n_group, d_stride), &n_thread_floats)
        || !add_ok(n_floats, n_thread_floats, &n_floats) || !mul_ok(n_floats, sizeof(float), &n_floats)) return 0;
    return (size_t)n_floats;
}

typedef struct decode_run {
    const tmx_attention_params *params;
    tmx_type q_type, kv_type;
    const attn_kernel *kernel;
    int32_t n_group, n_ranges;     /* n_ranges: of the longest sequence */
    size_t d_stride;
    float scale;
    float *threads;
    float *parts;                  /* [n_seqs][n_ranges][n_kv_heads]: the heads of a range run one after the other, as
                                    * they usually share memory pages */
} decode_run;

static float *part_at(const decode_run *run, int32_t index)
{
    return run->parts + (size_t)index * part_floats((size_t)run->n_group, run->d_stride);
}

static void load_query(const decode_run *run, const tmx_attention_seq *seq, size_t kv_head, float *q)
{
    const tmx_attention_params *p = run->params;
    for (size_t g = 0; g < (size_t)run->n_group; g++, q += run->d_stride) {
        const size_t from = (kv_head * (size_t)run->n_group + g) * p->q_head_stride;
        for (size_t d = 0; d < run->d_stride; d++) {
            if (d >= (size_t)p->head_dim) q[d] = 0.0f;
            else if (run->q_type == TMX_TYPE_BF16) q[d] = bf16_to_f32(((const tmx_bf16 *)seq->q)[from + d]);
            else q[d] = ((const float *)seq->q)[from + d];
        }
    }
}

static void run_part(void *ctx, int32_t index, int32_t thread)
{
    const decode_run *run = ctx;
    const tmx_attention_params *p = run->params;
    const size_t kv_head = (size_t)(index % p->n_kv_heads);
    const int32_t range = index / p->n_kv_heads % run->n_ranges;
    const tmx_attention_seq *seq = &p->seqs[index / p->n_kv_heads / run->n_ranges];
    const int32_t k_begin = range * ATTN_DECODE_KEYS, n_keys = seq->q_begin + 1;
    if (k_begin >= n_keys) return;
    const size_t n_group = (size_t)run->n_group, n_bytes = attn_element_bytes(run->kv_type);
    float *scratch = run->threads + (size_t)thread * thread_floats(n_group, run->d_stride), *o = part_at(run, index);
    load_query(run, seq, kv_head, scratch);
    run->kernel->decode(&(attn_decode_part){
        .q = scratch,
        .k = (const char *)seq->k + ((size_t)k_begin * p->k_pos_stride + kv_head * p->k_head_stride) * n_bytes,
        .v = (const char *)seq->v + ((size_t)k_begin * p->v_pos_stride + kv_head * p->v_head_stride) * n_bytes,
        .k_stride = p->k_pos_stride, .v_stride = p->v_pos_stride, .kv_type = run->kv_type,
        .n_keys = min_i32(ATTN_DECODE_KEYS, n_keys - k_begin), .n_group = run->n_group,
        .head_dim = p->head_dim, .d_stride = run->d_stride, .scale = run->scale,
        .o = o, .max = o + n_group * run->d_stride, .sum = o + n_group * run->d_stride + align_up(n_group, 16),
        .weights = scratch + n_group * run->d_stride,
        .rows = scratch + n_group * run->d_stride + n_group * ATTN_DECODE_KEYS,
    });
}

/* Ranges of one KV head become its output rows, in ascending order: out = sum of w_r o_r / sum of w_r sum_r,
 * w_r = 2^(c (max_r - max)). */
static void run_merge(void *ctx, int32_t index, int32_t thread)
{
    (void)thread;
    const decode_run *run = ctx;
    const tmx_attention_params *p = run->params;
    const size_t kv_head = (size_t)(index % p->n_kv_heads);
    const tmx_attention_seq *seq = &p->seqs[index / p->n_kv_heads];
    const int32_t first_part = index / p->n_kv_heads * run->n_ranges * p->n_kv_heads + (int32_t)kv_head;
    const size_t n_group = (size_t)run->n_group, max_at = n_group * run->d_stride;
    const int32_t n_ranges = ranges_of(seq->q_begin + 1);
    const double c = (double)run->scale * M_LOG2E;
    for (size_t g = 0; g < n_group; g++) {
        const size_t head = kv_head * n_group + g;
        float max = -FLT_MAX, sum = 0.0f, out[ATTN_MAX_DIM] = { 0 };
        for (int32_t r = 0; r < n_ranges; r++) {
            const float m = part_at(run, first_part + r * p->n_kv_heads)[max_at + g];
            max = m > max ? m : max;
        }
        for (int32_t r = 0; r < n_ranges; r++) {
            const float *part = part_at(run, first_part + r * p->n_kv_heads), *o = part + g * run->d_stride;
            const float w = (float)exp2(((double)part[max_at + g] - (double)max) * c);
            sum += w * part[max_at + align_up(n_group, 16) + g];
            for (int32_t d = 0; d < p->head_dim; d++) out[d] += w * o[d];
        }
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        for (int32_t d = 0; d < p->head_dim; d++) out[d] *= inverse;
        if (run->q_type == TMX_TYPE_BF16) {
            tmx_bf16 *to = (tmx_bf16 *)seq->out + head * p->out_head_stride;
            for (int32_t d = 0; d < p->head_dim; d++) to[d] = bf16_from_f32(out[d]);
        } else {
            memcpy((float *)seq->out + head * p->out_head_stride, out, (size_t)p->head_dim * sizeof *out);
        }
        if (seq->lse != NULL) {
            const double lse = (double)max * (double)run->scale + log((double)sum);
            seq->lse[head] = sum == 0.0f ? -INFINITY : (float)lse;
        }
    }
}

void attn_decode(const tmx_attention_params *params, tmx_pool *pool)
{
    const tmx_attention_params *p = params;
    int32_t max_keys = 0;
    for (int32_t i = 0; i < p->n_seqs; i++) {
        assert(p->seqs[i].n_q == 1);
        max_keys = max_i32(max_keys, p->seqs[i].q_begin + 1);
    }
    if (max_keys == 0) return;
    decode_run run = {
        .params = p, .kernel = attn_decode_kernel_get(p->isa),
        .q_type = p->q_type == TMX_TYPE_DEFAULT ? TMX_TYPE_F32 : p->q_type,
        .kv_type = p->kv_type == TMX_TYPE_DEFAULT ? TMX_TYPE_F32 : p->kv_type,
        .n_group = p->n_heads / p->n_kv_heads, .n_ranges = ranges_of(max_keys), .d_stride = stride_of(p->head_dim),
        .scale = p->scale != 0.0f ? p->scale : (float)(1.0 / sqrt((double)p->head_dim)),
        .threads = p->scratch,
    };
    run.parts = run.threads + (size_t)pool_n_threads(pool) * thread_floats((size_t)run.n_group, run.d_stride);
    assert(p->scratch != NULL && p->n_seqs <= INT32_MAX / p->n_kv_heads / run.n_ranges);
    pool_run(pool, p->n_seqs * p->n_kv_heads * run.n_ranges, run_part, &run);
    pool_run(pool, p->n_seqs * p->n_kv_heads, run_merge, &run);
}
