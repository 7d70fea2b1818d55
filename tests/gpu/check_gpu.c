/* check_gpu - the CUDA kernels against the f64 oracle, on random shapes with the awkward ones first.
 *
 *     check_gpu [--seed N] [--cases N] [--small]      --small: shapes that fit a run under compute-sanitizer
 *
 * Every case runs on every kernel the card has, into NaN-filled outputs with guard zones: sampled rows against the oracle,
 * everything outside the rows untouched, the same bits in chunks, in a batch, alone, and again.  Ends with one line: N passed, N failed,
 * N skipped.  Without a GPU all of it is one skipped test. */
#include "gpu_buffers.h"
#include "attn/attn.h"
#include "base/pool.h"
#include "pattern/pattern.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Relative L2 of out over the sampled rows of a case, worst |lse|.  Measured: the worst seen on an H100. */
static const struct { const char *name; double out, lse; } bounds[] = {
    { "bf16", 4e-3, 1e-4 },
    { "f16", 6e-4, 1e-4 },
};
static double worst_out[2], worst_lse[2];

enum { MAX_SEQS = 40, N_SAMPLES = 12, PAD = 8 };

static int32_t n_passed, n_failed;
static tmx_pool *pool;

/* ---------------------------------------------------------------- cases */

typedef struct shape {
    int32_t n_seqs, n_prompt[MAX_SEQS], q_begin[MAX_SEQS], n_q[MAX_SEQS];
    int32_t n_heads, n_kv_heads, head_dim, page_size;
    tmx_type type;
    tmx_pattern pattern;
    tmx_gpu_kernel kernel;
    bool has_lse;
} shape;

typedef struct sequence {
    uint16_t *q, *k, *v;           /* host, dense: q [n_prompt][n_heads][d], k and v [n_prompt][n_kv_heads][d] */
    float *q_f32, *k_f32, *v_f32;
    device_buffer dq, dk, dv, dout, dlse, dpages;
    unsigned char *out;            /* host copy of dout with its guards */
    float *lse;
    unsigned char *first_out;      /* of the first run: later runs must equal it */
    float *first_lse;
} sequence;

typedef struct instance {
    shape s;
    sequence seqs[MAX_SEQS];
    tmx_gpu_attention_seq args[MAX_SEQS];
    tmx_gpu_attention_params params;
    device_buffer k_pool, v_pool, scratch;
    size_t q_row, kv_row;          /* elements from one position to the next on the device */
} instance;

static void upload_pages(instance *in)
{
    const shape *s = &in->s;
    const size_t dense = (size_t)s->n_kv_heads * (size_t)s->head_dim, page = in->kv_row * (size_t)s->page_size;
    int32_t n_used = 0;
    for (int32_t i = 0; i < s->n_seqs; i++) n_used += (s->q_begin[i] + s->n_q[i] + s->page_size - 1) / s->page_size;
    const int32_t n_pages = n_used + 3;
    int32_t *order = host_alloc((size_t)n_pages * sizeof *order);
    for (int32_t i = 0; i < n_pages; i++) {
        const int32_t other = random_in(0, i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    in->k_pool = device_alloc(2 * page * (size_t)n_pages);         /* NaN wherever no key is */
    in->v_pool = device_alloc(2 * page * (size_t)n_pages);
    int32_t next = 0;
    for (int32_t i = 0; i < s->n_seqs; i++) {
        const int32_t n_keys = s->q_begin[i] + s->n_q[i], n = (n_keys + s->page_size - 1) / s->page_size;
        sequence *seq = &in->seqs[i];
        seq->dpages = device_alloc((size_t)n * sizeof *order);
        if (n > 0) CUDA_OK(cudaMemcpy(seq->dpages.data, order + next, (size_t)n * sizeof *order, cudaMemcpyHostToDevice));
        for (int32_t p = 0; p < n; p++) {
            const size_t at = (size_t)order[next + p] * page, from = (size_t)p * (size_t)s->page_size;
            const int32_t n_rows = min_i32(s->page_size, n_keys - p * s->page_size);
            upload_rows((uint16_t *)(void *)in->k_pool.data + at, in->kv_row, seq->k + from * dense, dense, n_rows);
            upload_rows((uint16_t *)(void *)in->v_pool.data + at, in->kv_row, seq->v + from * dense, dense, n_rows);
        }
        next += n;
        in->args[i].pages = (const int32_t *)(const void *)seq->dpages.data;
    }
    in->params.page_size = s->page_size;
    in->params.n_pages = n_pages;
    in->params.k_pages = in->k_pool.data;
    in->params.v_pages = in->v_pool.data;
    in->params.k_page_stride = in->params.v_page_stride = page;
    free(order);
}

static void instance_make(instance *in, const shape *s)
{
    memset(in, 0, sizeof *in);
    in->s = *s;
    const size_t d = (size_t)s->head_dim, n_heads = (size_t)s->n_heads, n_kv_heads = (size_t)s->n_kv_heads;
    in->q_row = n_heads * d + PAD;
    in->kv_row = n_kv_heads * d + PAD;
    in->params = (tmx_gpu_attention_params){
        .type = s->type, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim,
        .q_pos_stride = in->q_row, .q_head_stride = d, .out_pos_stride = in->q_row, .out_head_stride = d,
        .k_pos_stride = in->kv_row, .k_head_stride = d, .v_pos_stride = in->kv_row, .v_head_stride = d,
        .pattern = s->pattern, .seqs = in->args, .n_seqs = s->n_seqs, .kernel = s->kernel,
    };
    for (int32_t i = 0; i < s->n_seqs; i++) {
        sequence *seq = &in->seqs[i];
        const size_t n = (size_t)s->n_prompt[i], n_keys = (size_t)s->q_begin[i] + (size_t)s->n_q[i];
        const size_t q_from = (size_t)s->q_begin[i] * n_heads * d, n_q = (size_t)s->n_q[i];
        seq->q = random_values(s->type, n * n_heads * d, &seq->q_f32);
        seq->k = random_values(s->type, n * n_kv_heads * d, &seq->k_f32);
        seq->v = random_values(s->type, n * n_kv_heads * d, &seq->v_f32);
        seq->dq = device_alloc(2 * n_q * in->q_row);
        upload_rows(seq->dq.data, in->q_row, seq->q + q_from, n_heads * d, s->n_q[i]);
        seq->dout = device_alloc(2 * n_q * in->q_row);
        seq->dlse = device_alloc(4 * n_q * n_heads);
        in->args[i] = (tmx_gpu_attention_seq){
            .q = seq->dq.data, .out = seq->dout.data, .lse = s->has_lse ? (float *)(void *)seq->dlse.data : NULL,
            .q_begin = s->q_begin[i], .n_q = s->n_q[i], .n_prompt = s->n_prompt[i],
        };
        if (s->page_size > 0) continue;
        seq->dk = device_alloc(2 * n_keys * in->kv_row);
        seq->dv = device_alloc(2 * n_keys * in->kv_row);
        upload_rows(seq->dk.data, in->kv_row, seq->k, n_kv_heads * d, (int32_t)n_keys);
        upload_rows(seq->dv.data, in->kv_row, seq->v, n_kv_heads * d, (int32_t)n_keys);
        in->args[i].k = seq->dk.data;
        in->args[i].v = seq->dv.data;
    }
    if (s->page_size > 0) upload_pages(in);
    in->params.scratch_bytes = tmx_gpu_attention_scratch_bytes(&in->params);
    in->scratch = device_alloc(in->params.scratch_bytes);
    in->params.scratch = in->scratch.data;
}

static void instance_free(instance *in)
{
    for (int32_t i = 0; i < in->s.n_seqs; i++) {
        sequence *seq = &in->seqs[i];
        void *const host[] = { seq->q, seq->k, seq->v, seq->q_f32, seq->k_f32, seq->v_f32, seq->out, seq->lse,
                               seq->first_out, seq->first_lse };
        device_buffer *const device[] = { &seq->dq, &seq->dk, &seq->dv, &seq->dout, &seq->dlse, &seq->dpages };
        for (size_t h = 0; h < sizeof host / sizeof *host; h++) free(host[h]);
        for (size_t h = 0; h < sizeof device / sizeof *device; h++) device_free(device[h]);
    }
    device_free(&in->k_pool);
    device_free(&in->v_pool);
    device_free(&in->scratch);
}

static void text_of(const shape *s, char *text, size_t size)
{
    int32_t at = snprintf(text, size, "%s %s d%d heads %d/%d %s %d/%d/%d page %d:",
                          s->kernel == TMX_GPU_KERNEL_SM90 ? "sm90" : "portable", s->type == TMX_TYPE_F16 ? "f16" : "bf16",
                          s->head_dim, s->n_heads, s->n_kv_heads, tmx_pattern_name(s->pattern.kind), s->pattern.n_sink,
                          s->pattern.n_window, s->pattern.n_last, s->page_size);
    for (int32_t i = 0; i < s->n_seqs && at > 0 && (size_t)at < size; i++) {
        at += snprintf(text + at, size - (size_t)at, " [%d, %d) of %d", s->q_begin[i], s->q_begin[i] + s->n_q[i],
                       s->n_prompt[i]);
    }
}

static bool report(const instance *in, const char *what, bool is_ok)
{
    char text[400];
    text_of(&in->s, text, sizeof text);
    if (!is_ok) printf("FAILED %s: %s\n", what, text);
    n_passed += is_ok;
    n_failed += !is_ok;
    return is_ok;
}

/* ---------------------------------------------------------------- running */

static void poison_outputs(instance *in)
{
    for (int32_t i = 0; i < in->s.n_seqs; i++) {
        CUDA_OK(cudaMemset(in->seqs[i].dout.base, POISON, in->seqs[i].dout.n_bytes + (size_t)2 * GUARD_BYTES));
        CUDA_OK(cudaMemset(in->seqs[i].dlse.base, POISON, in->seqs[i].dlse.n_bytes + (size_t)2 * GUARD_BYTES));
    }
    CUDA_OK(cudaMemset(in->scratch.base, POISON, in->scratch.n_bytes + (size_t)2 * GUARD_BYTES));
}

static void download(instance *in)
{
    CUDA_OK(cudaDeviceSynchronize());
    for (int32_t i = 0; i < in->s.n_seqs; i++) {
        sequence *seq = &in->seqs[i];
        const size_t n_out = seq->dout.n_bytes + (size_t)2 * GUARD_BYTES, n_lse = seq->dlse.n_bytes + (size_t)2 * GUARD_BYTES;
        if (seq->out == NULL) seq->out = host_alloc(n_out);
        if (seq->lse == NULL) seq->lse = host_alloc(n_lse);
        CUDA_OK(cudaMemcpy(seq->out, seq->dout.base, n_out, cudaMemcpyDeviceToHost));
        CUDA_OK(cudaMemcpy(seq->lse, seq->dlse.base, n_lse, cudaMemcpyDeviceToHost));
    }
}

static bool run(const tmx_gpu_attention_params *params)
{
    tmx_error err;
    if (tmx_gpu_attention(params, NULL, &err) == TMX_OK) return true;
    printf("%s\n", err.text);
    return false;
}

/* Is everything but the rows still poison, and every element of the rows written? */
static bool guards_hold(const instance *in)
{
    const size_t row = 2 * in->q_row, used = 2 * (size_t)in->s.n_heads * (size_t)in->s.head_dim;
    for (int32_t i = 0; i < in->s.n_seqs; i++) {
        const sequence *seq = &in->seqs[i];
        for (size_t b = 0; b < seq->dout.n_bytes + (size_t)2 * GUARD_BYTES; b++) {
            const bool is_row = b >= GUARD_BYTES && b < GUARD_BYTES + seq->dout.n_bytes && (b - GUARD_BYTES) % row < used;
            if (!is_row && seq->out[b] != POISON) return false;
            if (is_row && b % 2 == 0 && seq->out[b] == POISON && seq->out[b + 1] == POISON) return false;
        }
        const unsigned char *lse = (const unsigned char *)seq->lse;
        for (size_t b = 0; b < seq->dlse.n_bytes + (size_t)2 * GUARD_BYTES; b++) {
            const bool is_row = in->s.has_lse && b >= GUARD_BYTES && b < GUARD_BYTES + seq->dlse.n_bytes;
            if (!is_row && lse[b] != POISON) return false;
        }
    }
    return true;
}

/* ---------------------------------------------------------------- the oracle */

typedef struct sample {
    const instance *in;
    int32_t seq, row;
    double error, norm, lse_error;
} sample;

static void check_sample(void *ctx, int32_t index, int32_t thread)
{
    (void)thread;
    sample *at = (sample *)ctx + index;
    const shape *s = &at->in->s;
    const sequence *seq = &at->in->seqs[at->seq];
    const size_t d = (size_t)s->head_dim, n_heads = (size_t)s->n_heads, n_kv = (size_t)s->n_kv_heads;
    const int32_t q_pos = s->q_begin[at->seq] + at->row;
    double *out = host_alloc(n_heads * d * sizeof *out), *lse = host_alloc(n_heads * sizeof *lse);
    const tmx_attention_seq one = { .q = seq->q_f32 + (size_t)q_pos * n_heads * d, .k = seq->k_f32, .v = seq->v_f32,
                                    .q_begin = q_pos, .n_q = 1, .n_prompt = s->n_prompt[at->seq] };
    const tmx_attention_params params = {
        .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_F32, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads,
        .head_dim = s->head_dim, .q_pos_stride = n_heads * d, .q_head_stride = d, .k_pos_stride = n_kv * d,
        .k_head_stride = d, .v_pos_stride = n_kv * d, .v_head_stride = d, .pattern = s->pattern, .seqs = &one, .n_seqs = 1,
    };
    attn_ref_f64(&params, 0, out, lse);
    const uint16_t *got = (const uint16_t *)(const void *)(seq->out + GUARD_BYTES) + (size_t)at->row * at->in->q_row;
    const float *got_lse = (const float *)(const void *)((const unsigned char *)seq->lse + GUARD_BYTES) + (size_t)at->row * n_heads;
    for (size_t i = 0; i < n_heads * d; i++) {
        const double difference = (double)get(s->type, got[i]) - out[i];
        at->error += difference * difference;
        at->norm += out[i] * out[i];
    }
    for (size_t h = 0; h < n_heads && s->has_lse; h++) {
        const double difference = fabs((double)got_lse[h] - lse[h]);
        if (!(difference <= at->lse_error)) at->lse_error = difference;
    }
    free(out);
    free(lse);
}

static bool agrees_with_oracle(const instance *in)
{
    const shape *s = &in->s;
    sample samples[N_SAMPLES];
    int32_t n = 0;
    for (int32_t i = 0; i < N_SAMPLES; i++) {
        const int32_t seq = i % s->n_seqs;
        if (s->n_q[seq] == 0) continue;
        int32_t row = random_in(0, s->n_q[seq]);
        if (i / s->n_seqs == 0) row = s->n_q[seq] - 1;
        if (i / s->n_seqs == 1) row = 0;
        samples[n++] = (sample){ .in = in, .seq = seq, .row = row };
    }
    pool_run(pool, n, check_sample, samples);
    double error = 0.0, norm = 0.0, lse = 0.0;
    for (int32_t i = 0; i < n; i++) {
        error += samples[i].error;
        norm += samples[i].norm;
        if (!(samples[i].lse_error <= lse)) lse = samples[i].lse_error;
    }
    const int which = s->type == TMX_TYPE_F16;
    const double relative = norm > 0.0 ? sqrt(error / norm) : error;
    if (relative > worst_out[which]) worst_out[which] = relative;
    if (lse > worst_lse[which]) worst_lse[which] = lse;
    const bool is_ok = relative <= bounds[which].out && lse <= bounds[which].lse;
    if (!is_ok) printf("relative error %.3g, lse %.3g\n", relative, lse);
    return is_ok;
}

/* ---------------------------------------------------------------- properties */

static void remember(instance *in)
{
    for (int32_t i = 0; i < in->s.n_seqs; i++) {
        sequence *seq = &in->seqs[i];
        seq->first_out = seq->out;
        seq->first_lse = seq->lse;
        seq->out = NULL;
        seq->lse = NULL;
    }
}

static bool same_bits(const instance *in)
{
    for (int32_t i = 0; i < in->s.n_seqs; i++) {
        const sequence *seq = &in->seqs[i];
        if (memcmp(seq->out, seq->first_out, seq->dout.n_bytes + (size_t)2 * GUARD_BYTES) != 0
            || memcmp(seq->lse, seq->first_lse, seq->dlse.n_bytes + (size_t)2 * GUARD_BYTES) != 0) return false;
    }
    return true;
}

/* Sequence i alone, rows [begin, end) of it. */
static bool run_part(instance *in, int32_t i, int32_t begin, int32_t end)
{
    const shape *s = &in->s;
    tmx_gpu_attention_seq part = in->args[i];
    part.q = in->seqs[i].dq.data + 2 * (size_t)begin * in->q_row;
    part.out = in->seqs[i].dout.data + 2 * (size_t)begin * in->q_row;
    if (part.lse != NULL) part.lse += (size_t)begin * (size_t)s->n_heads;
    part.q_begin += begin;
    part.n_q = end - begin;
    tmx_gpu_attention_params params = in->params;
    params.seqs = &part;
    params.n_seqs = 1;
    return run(&params);
}

static bool run_in_chunks(instance *in)
{
    for (int32_t i = 0; i < in->s.n_seqs; i++) {
        const int32_t n_q = in->s.n_q[i], most = random_in(0, 2) ? 40 + n_q / 8 : 1 + n_q / 2;
        for (int32_t begin = 0, end; begin < n_q; begin = end) {
            end = min_i32(n_q, begin + random_in(1, most + 1));
            if (!run_part(in, i, begin, end)) return false;
        }
    }
    return true;
}

static bool run_alone(instance *in)
{
    for (int32_t i = 0; i < in->s.n_seqs; i++) {
        if (!run_part(in, i, 0, in->s.n_q[i])) return false;
    }
    return true;
}

/* Captured once, replayed twice. */
static bool run_as_graph(instance *in)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    tmx_error err;
    CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    const tmx_status status = tmx_gpu_attention(&in->params, stream, &err);
    CUDA_OK(cudaStreamEndCapture(stream, &graph));
    if (status != TMX_OK) printf("%s\n", err.text);
    CUDA_OK(cudaGraphInstantiate(&executable, graph, 0));
    for (int i = 0; i < 2; i++) CUDA_OK(cudaGraphLaunch(executable, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
    CUDA_OK(cudaGraphExecDestroy(executable));
    CUDA_OK(cudaGraphDestroy(graph));
    CUDA_OK(cudaStreamDestroy(stream));
    return status == TMX_OK;
}

static void check_shape(const shape *s)
{
    static const struct { const char *name; bool (*run)(instance *in); } ways[] = {
        { "in chunks", run_in_chunks }, { "alone", run_alone }, { "as a graph", run_as_graph },
    };
    static instance in;
    instance_make(&in, s);
    poison_outputs(&in);
    if (!report(&in, "run", run(&in.params))) return;
    download(&in);
    report(&in, "guards", guards_hold(&in));
    report(&in, "oracle", agrees_with_oracle(&in));
    remember(&in);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        poison_outputs(&in);
        const bool has_run = ways[i].run(&in);
        download(&in);
        report(&in, ways[i].name, has_run && same_bits(&in));
    }
    instance_free(&in);
}

/* ---------------------------------------------------------------- shapes */

static int32_t awkward_length(int32_t limit)
{
    static const int32_t edges[] = { 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 512, 513, 520, 640, 641, 1024,
                                     4095, 4096, 4097, 4224, 4225, 4257, 8191, 8449 };
    for (;;) {
        const int32_t n = random_in(0, 2) ? edges[random_in(0, (int32_t)(sizeof edges / sizeof *edges))]
                                          : random_in(1, limit + 1);
        if (n <= limit) return n;
    }
}

static tmx_pattern awkward_pattern(int32_t n)
{
    static const int32_t sinks[] = { 0, 1, 8, 15, 16, 17, 32, 33, 64, 100, 128, 129, 300 };
    static const int32_t windows[] = { 1, 2, 16, 31, 100, 127, 128, 129, 500, 512, 513, 514, 1000 };
    static const int32_t lasts[] = { 0, 1, 2, 31, 64, 127, 128, 129, 300 };
    tmx_pattern p = { .kind = (tmx_pattern_kind)random_in(0, 3), .n_sink = 8, .n_window = 512, .n_last = 128 };
    if (random_in(0, 3) == 0) return p;
    p.n_sink = sinks[random_in(0, 13)];
    p.n_window = windows[random_in(0, 13)];
    p.n_last = lasts[random_in(0, 9)];
    if (random_in(0, 12) == 0) p.n_sink = n + random_in(-1, 2);
    if (random_in(0, 12) == 0) p.n_window = n + random_in(0, 2);
    if (random_in(0, 12) == 0) p.n_last = n + random_in(-1, 2);
    p.n_sink = max_i32(p.n_sink, 0);
    p.n_last = max_i32(p.n_last, 0);
    return p;
}

static shape random_shape(tmx_gpu_kernel kernel, int32_t limit)
{
    static const int32_t groups[] = { 1, 4, 7, 8, 2, 3, 16 }, dims[] = { 128, 64, 256, 96 };
    shape s = { .kernel = kernel, .type = random_in(0, 3) ? TMX_TYPE_BF16 : TMX_TYPE_F16, .has_lse = random_in(0, 4) != 0 };
    s.n_kv_heads = random_in(1, 3);
    s.n_heads = s.n_kv_heads * groups[random_in(0, random_in(0, 3) ? 4 : 7)];
    s.head_dim = dims[random_in(0, kernel == TMX_GPU_KERNEL_SM90 ? 2 : 4)];
    s.page_size = random_in(0, 2) ? 0 : 16 << random_in(0, 5);
    s.n_seqs = random_in(0, 2) ? 1 : random_in(1, 4);
    if (random_in(0, 20) == 0) s.n_seqs = MAX_SEQS;
    for (int32_t i = 0; i < s.n_seqs; i++) {
        s.n_prompt[i] = awkward_length(s.n_seqs > 4 ? 200 : limit);
        s.q_begin[i] = random_in(0, 2) ? 0 : random_in(0, s.n_prompt[i]);
        s.n_q[i] = s.n_prompt[i] - s.q_begin[i];
        if (random_in(0, 3) == 0) s.n_q[i] = random_in(s.n_seqs > 1 ? 0 : 1, s.n_q[i] + 1);
    }
    s.pattern = awkward_pattern(s.n_prompt[0]);
    return s;
}

static void check_large(tmx_gpu_kernel kernel)
{
    static const int32_t lengths[] = { 32768, 65535, 131072 };
    for (int32_t i = 0; i < 3; i++) {
        shape s = { .n_seqs = 1, .n_prompt = { lengths[i] }, .n_q = { lengths[i] }, .n_heads = 8, .n_kv_heads = 2, .head_dim = 128,
                    .type = TMX_TYPE_BF16, .kernel = kernel, .has_lse = true,
                    .pattern = { TMX_PATTERN_TRIANGLE, 8, 512, 128 } };
        check_shape(&s);
        if (i == 0) s.pattern.kind = TMX_PATTERN_DENSE;
        else s.pattern.n_last = 100;
        check_shape(&s);
    }
}

int main(int argc, char **argv)
{
    const check_options o = begin_check(argc, argv, "check_gpu", 150);
    tmx_error err;
    tmx_gpu_device device;
    if (tmx_gpu_device_get(&device, &err) != TMX_OK) {
        printf("skipped: %s\n0 passed, 0 failed, 1 skipped\n", err.text);
        return 0;
    }
    if (tmx_pool_create(&pool, 0, &err) != TMX_OK) return 2;
    printf("%s, compute capability %d.%d, seed %llu\n", device.name, device.capability / 10, device.capability % 10,
           (unsigned long long)seed);
    for (tmx_gpu_kernel kernel = TMX_GPU_KERNEL_PORTABLE; kernel <= device.kernel; kernel++) {
        for (int32_t i = 0; i < o.n_cases; i++) {
            const shape s = random_shape(kernel, o.is_small ? 700 : i < o.n_cases / 2 ? 1200 : 9000);
            check_shape(&s);
        }
        if (!o.is_small) check_large(kernel);
    }
    for (int i = 0; i < 2; i++) {
        printf("%s: worst relative error %.3g (limit %.3g), worst lse %.3g (limit %.3g)\n", bounds[i].name, worst_out[i],
               bounds[i].out, worst_lse[i], bounds[i].lse);
    }
    tmx_pool_free(pool);
    printf("%d passed, %d failed, 0 skipped\n", n_passed, n_failed);
    return n_failed != 0;
}
