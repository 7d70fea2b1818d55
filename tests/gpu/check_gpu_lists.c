/* check_gpu_lists - dynamic methods on a GPU (attn/attn_gpu.h): attention over key lists against the f64 oracle, XAttention's lists
 * against the definition in f64.
 *
 *     check_gpu_lists [--seed N] [--cases N] [--small]      --small: shapes that fit a run under compute-sanitizer
 *
 * An estimate in f32 and one in f64 may part where masses are nearly equal, so a list is judged by what it must be up to EPSILON of
 * the row's mass: it reaches the threshold, would not without its lightest block, and no block outside is heavier.  Ends with
 * one line: N passed, N failed, N skipped.  Without a GPU that runs key lists all of it is one skipped test. */
#include "gpu_oracle.h"
#include "attn/attn.h"
#include "attn/attn_gpu.h"
#include "base/pool.h"

#include <math.h>
#include <string.h>

static double worst_part;
#define EPSILON 1e-4               /* of a row's mass */

enum { PAD = 8 };

static int32_t n_passed, n_failed;
static int64_t n_lists, n_lists_like_cpu;
static tmx_pool *pool;

typedef struct shape {
    int32_t n_prompt, q_begin, n_heads, n_kv_heads, head_dim;
    tmx_type type;
} shape;

typedef struct instance {
    shape s;
    uint16_t *q, *k, *v;           /* host, dense: q [n_prompt][n_heads][d], k and v [n_prompt][n_kv_heads][d] */
    float *q_f32, *k_f32, *v_f32;
    device_buffer dq, dk, dv, dout, dlse, dlists, scratch, estimate_scratch;
    size_t q_row, kv_row, n_words; /* elements from one position to the next on the device; words of all lists */
    tmx_gpu_attention_seq seq;
    tmx_gpu_attention_params params;
    key_lists lists;               /* host */
    unsigned char *out, *first_out;
    uint64_t *got, *first;         /* of an estimator, with guards */
} instance;

static bool report(const instance *in, const char *what, bool is_ok)
{
    const shape *s = &in->s;
    if (!is_ok) {
        printf("FAILED %s: %s d%d heads %d/%d rows [%d, %d)\n", what, s->type == TMX_TYPE_F16 ? "f16" : "bf16", s->head_dim,
               s->n_heads, s->n_kv_heads, s->q_begin, s->n_prompt);
    }
    n_passed += is_ok;
    n_failed += !is_ok;
    return is_ok;
}

static void instance_make(instance *in, const shape *s)
{
    memset(in, 0, sizeof *in);
    in->s = *s;
    const size_t d = (size_t)s->head_dim, n_q_heads = (size_t)s->n_heads, n_kv_heads = (size_t)s->n_kv_heads;
    const size_t n = (size_t)s->n_prompt, n_q = n - (size_t)s->q_begin;
    in->q_row = n_q_heads * d + PAD;
    in->kv_row = n_kv_heads * d + PAD;
    in->q = random_values(s->type, n * n_q_heads * d, &in->q_f32);
    in->k = random_values(s->type, n * n_kv_heads * d, &in->k_f32);
    in->v = random_values(s->type, n * n_kv_heads * d, &in->v_f32);
    in->dq = device_alloc(2 * n_q * in->q_row);
    in->dk = device_alloc(2 * n * in->kv_row);
    in->dv = device_alloc(2 * n * in->kv_row);
    in->dout = device_alloc(2 * n_q * in->q_row);
    in->dlse = device_alloc(4 * n_q * n_q_heads);
    in->seq = (tmx_gpu_attention_seq){ .q = in->dq.data, .k = in->dk.data, .v = in->dv.data, .out = in->dout.data,
                                       .lse = (float *)(void *)in->dlse.data, .q_begin = s->q_begin, .n_q = (int32_t)n_q, .n_prompt = s->n_prompt };
    in->params = (tmx_gpu_attention_params){
        .type = s->type, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim,
        .q_pos_stride = in->q_row, .q_head_stride = d, .out_pos_stride = in->q_row, .out_head_stride = d,
        .k_pos_stride = in->kv_row, .k_head_stride = d, .v_pos_stride = in->kv_row, .v_head_stride = d,
        .pattern = { .kind = TMX_PATTERN_DENSE, .n_window = 1 }, .seqs = &in->seq, .n_seqs = 1,
    };
    in->params.scratch_bytes = tmx_gpu_attention_scratch_bytes(&in->params);
    in->scratch = device_alloc(in->params.scratch_bytes);
    in->params.scratch = in->scratch.data;
    in->lists = key_lists_shape(s->n_heads, s->q_begin, (int32_t)n_q);
    in->n_words = n_q_heads * (size_t)in->lists.n_blocks * (size_t)in->lists.n_words;
    in->lists.bits = host_alloc(in->n_words * sizeof(uint64_t));
    in->dlists = device_alloc(in->n_words * sizeof(uint64_t));
    in->estimate_scratch = device_alloc(gpu_xattention_scratch_bytes(&in->params, (int32_t)n_q, s->n_prompt));
}

/* After the values in in->q and in->k were changed, too. */
static void upload(instance *in)
{
    const shape *s = &in->s;
    const size_t d = (size_t)s->head_dim, n_q = (size_t)s->n_heads * d, n_kv = (size_t)s->n_kv_heads * d;
    upload_rows(in->dq.data, in->q_row, in->q + (size_t)s->q_begin * n_q, n_q, in->seq.n_q);
    upload_rows(in->dk.data, in->kv_row, in->k, n_kv, s->n_prompt);
    upload_rows(in->dv.data, in->kv_row, in->v, n_kv, s->n_prompt);
}

static void instance_free(instance *in)
{
    void *const host[] = { in->q, in->k, in->v, in->q_f32, in->k_f32, in->v_f32, in->lists.bits, in->out, in->first_out, in->got, in->first };
    device_buffer *const device[] = { &in->dq, &in->dk, &in->dv, &in->dout, &in->dlse, &in->dlists, &in->scratch, &in->estimate_scratch };
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) device_free(device[i]);
}

/* The oracle's view: rows and keys in f32. */
static tmx_attention_params host_params(const instance *in, tmx_attention_seq *seq, int32_t q_begin, int32_t n_q)
{
    const shape *s = &in->s;
    const size_t d = (size_t)s->head_dim, n_q_row = (size_t)s->n_heads * d, n_kv_row = (size_t)s->n_kv_heads * d;
    *seq = (tmx_attention_seq){ .q = in->q_f32 + (size_t)q_begin * n_q_row, .k = in->k_f32, .v = in->v_f32, .q_begin = q_begin,
                                .n_q = n_q, .n_prompt = s->n_prompt };
    return (tmx_attention_params){
        .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_F32, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads,
        .head_dim = s->head_dim, .q_pos_stride = n_q_row, .q_head_stride = d, .k_pos_stride = n_kv_row, .k_head_stride = d,
        .v_pos_stride = n_kv_row, .v_head_stride = d, .pattern = { .kind = TMX_PATTERN_DENSE, .n_window = 1 }, .seqs = seq, .n_seqs = 1,
    };
}

/* ---------------------------------------------------------------- attention */

static bool run_lists(const instance *in, int32_t begin, int32_t n_q)      /* rows from q_begin + begin on */
{
    tmx_error err;
    tmx_gpu_attention_seq part = in->seq;
    part.q = in->dq.data + 2 * (size_t)begin * in->q_row;
    part.out = in->dout.data + 2 * (size_t)begin * in->q_row;
    part.lse += (size_t)begin * (size_t)in->s.n_heads;
    part.q_begin += begin;
    part.n_q = n_q;
    tmx_gpu_attention_params params = in->params;
    params.seqs = &part;
    key_lists lists = key_lists_shape(in->s.n_heads, part.q_begin, n_q);
    device_buffer of_part = device_alloc((size_t)lists.n_heads * (size_t)lists.n_blocks * (size_t)lists.n_words * sizeof(uint64_t));
    lists.bits = (uint64_t *)(void *)of_part.data;
    for (int32_t h = 0; h < lists.n_heads; h++) {
        for (int32_t b = 0; b < lists.n_blocks; b++) {
            const int32_t block = lists.first_block + b;
            CUDA_OK(cudaMemcpy(key_list_of(&lists, h, block), key_list_of(&in->lists, h, block), (size_t)lists.n_words * sizeof(uint64_t),
                               cudaMemcpyHostToDevice));
        }
    }
    const tmx_status status = gpu_attention_over_lists(&params, &lists, NULL, &err);
    if (status != TMX_OK) printf("%s\n", err.text);
    CUDA_OK(cudaDeviceSynchronize());
    device_free(&of_part);
    return status == TMX_OK;
}

typedef struct oracle_rows {
    const instance *in;
    const float *lse;
    int32_t rows[N_SAMPLES];
    row_error errors[N_SAMPLES];
} oracle_rows;

static void check_row(void *ctx, int32_t index, int32_t thread)
{
    (void)thread;
    oracle_rows *at = ctx;
    const instance *in = at->in;
    const int32_t row = at->rows[index];
    const size_t d = (size_t)in->s.head_dim, n_heads = (size_t)in->s.n_heads;
    double *out = host_alloc(n_heads * d * sizeof *out), *lse = host_alloc(n_heads * sizeof *lse);
    tmx_attention_seq seq;
    const tmx_attention_params params = host_params(in, &seq, in->s.q_begin + row, 1);
    attn_lists_ref_f64(&params, &in->lists, out, lse);
    const uint16_t *got = (const uint16_t *)(const void *)(in->out + GUARD_BYTES) + (size_t)row * in->q_row;
    at->errors[index] = row_error_of(in->s.type, got, out, n_heads * d, at->lse + (size_t)row * n_heads, lse, n_heads);
    free(out);
    free(lse);
}

static bool agrees_with_oracle(const instance *in)
{
    unsigned char *lse_bytes = device_download(&in->dlse);
    oracle_rows at = { .in = in, .lse = (const float *)(const void *)(lse_bytes + GUARD_BYTES) };
    for (int32_t i = 0; i < N_SAMPLES; i++) at.rows[i] = i == 0 ? in->seq.n_q - 1 : i == 1 ? 0 : random_in(0, in->seq.n_q);
    pool_run(pool, N_SAMPLES, check_row, &at);
    free(lse_bytes);
    return errors_hold(in->s.type, &at.errors);
}

/* The query block's own key block always; of 100 others, `percent`. */
static void random_lists(const instance *in, int32_t percent)
{
    memset(in->lists.bits, 0, in->n_words * sizeof(uint64_t));
    for (int32_t h = 0; h < in->s.n_heads; h++) {
        for (int32_t b = in->lists.first_block; b < in->lists.first_block + in->lists.n_blocks; b++) {
            uint64_t *list = key_list_of(&in->lists, h, b);
            for (int32_t k = 0; k <= b; k++) {
                if (k == b || random_in(0, 100) < percent) key_list_add(list, k);
            }
        }
    }
}

static bool same_out(instance *in)
{
    free(in->out);
    in->out = device_download(&in->dout);
    return memcmp(in->out, in->first_out, in->dout.n_bytes + (size_t)2 * GUARD_BYTES) == 0;
}

static bool pairs_agree(const instance *in)
{
    tmx_error err;
    device_buffer sum = device_alloc(sizeof(uint64_t));
    uint64_t got = 7;
    CUDA_OK(cudaMemcpy(sum.data, &got, sizeof got, cudaMemcpyHostToDevice));
    CUDA_OK(cudaMemcpy(in->dlists.data, in->lists.bits, in->n_words * sizeof(uint64_t), cudaMemcpyHostToDevice));
    key_lists lists = in->lists;
    lists.bits = (uint64_t *)(void *)in->dlists.data;
    const tmx_status status = gpu_lists_add_pairs(&lists, in->s.q_begin, in->s.n_prompt, (uint64_t *)(void *)sum.data, NULL, &err);
    CUDA_OK(cudaMemcpy(&got, sum.data, sizeof got, cudaMemcpyDeviceToHost));
    device_free(&sum);
    return status == TMX_OK && got == 7 + (uint64_t)key_lists_pairs(&in->lists, in->s.q_begin, in->s.n_prompt);
}

static void check_attention(const shape *s)
{
    static const int32_t percents[] = { 0, 3, 20, 60, 100 };
    static instance in;
    instance_make(&in, s);
    upload(&in);
    const int32_t percent = percents[random_in(0, 5)];
    random_lists(&in, percent);
    device_poison(&in.dout);
    if (report(&in, "run", run_lists(&in, 0, in.seq.n_q))) {
        in.out = device_download(&in.dout);
        report(&in, "guards", guard_zones_hold(in.out, &in.dout));
        report(&in, "oracle", agrees_with_oracle(&in));
        report(&in, "pairs", pairs_agree(&in));
        in.first_out = in.out;
        in.out = NULL;
        device_poison(&in.dout);
        bool has_run = true;
        for (int32_t begin = 0, n; begin < in.seq.n_q; begin += n) {
            n = min_i32(in.seq.n_q - begin, KEY_BLOCK * random_in(1, 5));
            has_run &= run_lists(&in, begin, n);
        }
        report(&in, "in chunks", has_run && same_out(&in));
        if (percent == 100 && s->n_heads == s->n_kv_heads) {
            tmx_error err;
            device_poison(&in.dout);
            in.params.kernel = TMX_GPU_KERNEL_SM90;
            report(&in, "as dense", tmx_gpu_attention(&in.params, NULL, &err) == TMX_OK && same_out(&in));
        }
    }
    instance_free(&in);
}

/* ---------------------------------------------------------------- XAttention */

/* Lists of rows from q_begin + begin on to in->dlists; n_scratch: of the estimate. */
static bool run_estimate(const instance *in, const xattention *method, int32_t begin, int32_t n_q, key_lists *lists, size_t n_scratch)
{
    tmx_error err;
    tmx_gpu_attention_seq part = in->seq;
    part.q = in->dq.data + 2 * (size_t)begin * in->q_row;
    part.q_begin += begin;
    part.n_q = n_q;
    tmx_gpu_attention_params params = in->params;
    params.seqs = &part;
    *lists = key_lists_shape(in->s.n_heads, part.q_begin, n_q);
    lists->bits = (uint64_t *)(void *)in->dlists.data;
    const tmx_status status = gpu_xattention(&params, method, lists, in->estimate_scratch.data, n_scratch, NULL, &err);
    if (status != TMX_OK) printf("%s\n", err.text);
    return status == TMX_OK;
}

/* Rows of one query block and head, from the definition: mass [a + 1] in f64. */
static void mass_ref_f64(const instance *in, const xattention *x, int32_t head, int32_t a, double *mass)
{
    const shape *s = &in->s;
    const int32_t stride = x->stride, n_heads = s->n_heads, kv_head = head / (n_heads / s->n_kv_heads);
    const size_t d = (size_t)s->head_dim;
    const int32_t n_groups = KEY_BLOCK / stride, last = min_i32((a + 1) * n_groups, (s->n_prompt - 1) / stride + 1);
    double *z = host_alloc((size_t)last * sizeof *z);
    for (int32_t b = 0; b <= a; b++) mass[b] = 0;
    for (int32_t m = a * n_groups; m < last; m++) {
        double max = -INFINITY, sum = 0;
        for (int32_t n = 0; n <= m; n++) {
            z[n] = 0;
            for (int32_t t = 0; t < stride; t++) {
                const int32_t q = m * stride + stride - 1 - t, k = n * stride + t;
                if (q >= s->n_prompt || k >= s->n_prompt) continue;
                const float *q_row = in->q_f32 + ((size_t)q * (size_t)n_heads + (size_t)head) * d;
                const float *k_row = in->k_f32 + ((size_t)k * (size_t)s->n_kv_heads + (size_t)kv_head) * d;
                for (size_t i = 0; i < d; i++) z[n] += (double)q_row[i] * (double)k_row[i];
            }
            z[n] /= sqrt((double)d) * stride * x->norm;
            max = fmax(max, z[n]);
        }
        for (int32_t n = 0; n <= m; n++) sum += z[n] = exp(z[n] - max);
        for (int32_t n = 0; n <= m; n++) mass[n / n_groups] += z[n] / sum;
    }
    free(z);
}

/* Is the list what the definition asks for, up to EPSILON?  Returns how far it is off, of the row's mass. */
static double list_error(const uint64_t *list, const double *mass, int32_t a, double threshold)
{
    double whole = 0, kept = 0, lightest = INFINITY, heaviest_out = 0;
    for (int32_t b = 0; b <= a; b++) whole += mass[b];
    for (int32_t b = 0; b <= a; b++) {
        if (key_list_has(list, b)) {
            kept += mass[b];
            if (b != 0 && b != a) lightest = fmin(lightest, mass[b]);
        } else {
            if (b == 0 || b == a) return INFINITY;
            heaviest_out = fmax(heaviest_out, mass[b]);
        }
    }
    double error = fmax(0, threshold - kept / whole);
    if (lightest < INFINITY) {
        error = fmax(error, (kept - lightest) / whole - threshold);
        error = fmax(error, (heaviest_out - lightest) / whole);
    }
    return error;
}

typedef struct list_check {
    const instance *in;
    const xattention *method;
    const key_lists *got;
    double *errors;                /* [n_heads * n_blocks] */
} list_check;

static void check_list(void *ctx, int32_t index, int32_t thread)
{
    (void)thread;
    const list_check *at = ctx;
    const int32_t head = index % at->got->n_heads, a = at->got->first_block + index / at->got->n_heads;
    const uint64_t *list = key_list_of(at->got, head, a);
    double *mass = host_alloc((size_t)(a + 1) * sizeof *mass);
    mass_ref_f64(at->in, at->method, head, a, mass);
    at->errors[index] = list_error(list, mass, a, at->method->threshold);
    for (int32_t b = 0; b <= a && (a < 2 || at->method->threshold >= 1); b++) {
        if (!key_list_has(list, b)) at->errors[index] = INFINITY;
    }
    for (int32_t b = a + 1; b < 64 * at->got->n_words; b++) {
        if (key_list_has(list, b)) at->errors[index] = INFINITY;
    }
    free(mass);
}

static bool lists_agree(instance *in, const xattention *method, const key_lists *got)
{
    tmx_attention_seq seq;
    tmx_attention_params params = host_params(in, &seq, in->s.q_begin, in->seq.n_q);
    const size_t n_scratch = attn_lists_scratch_bytes(&params, TMX_PATTERN_XATTENTION, in->s.n_prompt, tmx_pool_n_threads(pool));
    params.scratch = aligned_alloc(64, (n_scratch + 63) / 64 * 64);
    key_lists cpu = key_lists_on(in->lists.bits, in->s.n_heads, in->s.q_begin, in->seq.n_q);
    attn_xattention(&params, method, &cpu, pool);
    free(params.scratch);
    const int32_t n = got->n_heads * got->n_blocks;
    double *errors = host_alloc((size_t)n * sizeof *errors);
    list_check check = { .in = in, .method = method, .got = got, .errors = errors };
    pool_run(pool, n, check_list, &check);
    double worst = 0;
    for (int32_t i = 0; i < n; i++) {
        if (!(errors[i] <= worst)) worst = errors[i];
        const int32_t head = i % got->n_heads, a = got->first_block + i / got->n_heads;
        n_lists++;
        n_lists_like_cpu += memcmp(key_list_of(got, head, a), key_list_of(&cpu, head, a), (size_t)got->n_words * sizeof(uint64_t)) == 0;
    }
    free(errors);
    if (!(worst <= worst_part)) worst_part = worst;
    if (worst > EPSILON) printf("a list is off by %.3g of its row's mass\n", worst);
    return worst <= EPSILON;
}

/* Keys of a block that all queries like, and a diagonal of them: what an estimator is there to find. */
static void plant(instance *in, int32_t block)
{
    const shape *s = &in->s;
    const size_t d = (size_t)s->head_dim, n_group = (size_t)(s->n_heads / s->n_kv_heads);
    for (size_t pos = 0; pos < (size_t)s->n_prompt; pos++) {
        for (size_t h = 0; h < (size_t)s->n_heads; h++) {
            const size_t at = (pos * (size_t)s->n_heads + h) * d;
            for (size_t i = 0; i < d; i++) {
                in->q[at + i] = put(s->type, 0.5f * in->q_f32[at + i] + (i % 2 == (h / n_group) % 2 ? 1.0f : 0.0f));
                in->q_f32[at + i] = get(s->type, in->q[at + i]);
            }
        }
        for (size_t h = 0; h < (size_t)s->n_kv_heads; h++) {
            const size_t at = (pos * (size_t)s->n_kv_heads + h) * d;
            for (size_t i = 0; i < d && (int32_t)pos / KEY_BLOCK == block; i++) {
                in->k[at + i] = put(s->type, 0.5f * in->k_f32[at + i] + (i % 2 == h % 2 ? 2.0f : 0.0f));
                in->k_f32[at + i] = get(s->type, in->k[at + i]);
            }
        }
    }
}

static uint64_t *take_lists(const instance *in) { return (uint64_t *)(void *)device_download(&in->dlists); }

static void check_xattention(const shape *s)
{
    static const int32_t strides[] = { 8, 16, 4 };
    static const double thresholds[] = { 0.9, 0.5, 0.95, 0.99, 1, 0.05 }, norms[] = { 1, 0.125, 0.3535 };
    const xattention method = { .stride = strides[random_in(0, 3)], .threshold = thresholds[random_in(0, 6)], .norm = norms[random_in(0, 3)] };
    static instance in;
    key_lists got;
    instance_make(&in, s);
    const int32_t n_blocks = key_blocks_of(s->n_prompt), planted = n_blocks > 3 && random_in(0, 2) ? random_in(1, n_blocks - 1) : 0;
    if (planted > 0) plant(&in, planted);
    upload(&in);
    device_poison(&in.estimate_scratch);
    if (report(&in, "estimate", run_estimate(&in, &method, 0, in.seq.n_q, &got, in.estimate_scratch.n_bytes))) {
        in.first = take_lists(&in);
        unsigned char *scratch = device_download(&in.estimate_scratch);
        report(&in, "guards of the lists", guard_zones_hold((unsigned char *)in.first, &in.dlists) && guard_zones_hold(scratch, &in.estimate_scratch));
        free(scratch);
        got.bits = in.first + GUARD_BYTES / sizeof(uint64_t);
        report(&in, "lists", lists_agree(&in, &method, &got));
        bool has_all = true;
        for (int32_t h = 0; h < s->n_heads && planted > 0; h++) {
            for (int32_t a = max_i32(planted, got.first_block); a < got.first_block + got.n_blocks; a++) {
                has_all &= method.threshold < 0.5 || key_list_has(key_list_of(&got, h, a), planted);
            }
        }
        report(&in, "planted block", has_all);
        /* Chunks, and as little scratch as there may be. */
        bool same = true;
        for (int32_t begin = 0, n; begin < in.seq.n_q; begin += n) {
            key_lists part;
            n = min_i32(in.seq.n_q - begin, KEY_BLOCK * random_in(1, 9));
            device_poison(&in.dlists);
            const size_t least = (size_t)s->n_heads * 256 * (size_t)((key_blocks_of(s->n_prompt) + 15) / 16 * 16) * sizeof(float);
            same &= run_estimate(&in, &method, begin, n, &part, least < in.estimate_scratch.n_bytes ? least : in.estimate_scratch.n_bytes);
            free(in.got);
            in.got = take_lists(&in);
            part.bits = in.got + GUARD_BYTES / sizeof(uint64_t);
            for (int32_t h = 0; h < s->n_heads && same; h++) {
                for (int32_t b = part.first_block; b < part.first_block + part.n_blocks; b++) {
                    same &= memcmp(key_list_of(&part, h, b), key_list_of(&got, h, b), (size_t)part.n_words * sizeof(uint64_t)) == 0;
                }
            }
        }
        report(&in, "lists in chunks", same);
    }
    instance_free(&in);
}

/* A key that is no number: every row that sees it keeps everything. */
static void check_nan(void)
{
    const shape s = { .n_prompt = 1000, .n_heads = 4, .n_kv_heads = 2, .head_dim = 64, .type = TMX_TYPE_BF16 };
    const xattention method = XATTENTION_DEFAULTS;
    static instance in;
    key_lists got;
    instance_make(&in, &s);
    in.k[(size_t)300 * 128 + 70] = 0x7fc0;     /* KV head 1: heads 2 and 3 */
    upload(&in);
    bool is_ok = run_estimate(&in, &method, 0, s.n_prompt, &got, in.estimate_scratch.n_bytes);
    in.first = take_lists(&in);
    got.bits = in.first + GUARD_BYTES / sizeof(uint64_t);
    for (int32_t h = 2; h < 4; h++) {
        for (int32_t a = 3; a < 8; a++) is_ok &= key_list_of(&got, h, a)[0] == ((uint64_t)2 << a) - 1;
    }
    report(&in, "NaN", is_ok);
    instance_free(&in);
}

/* ---------------------------------------------------------------- shapes */

static shape random_shape(int32_t limit)
{
    static const int32_t groups[] = { 1, 4, 7, 8, 1 }, edges[] = { 1, 2, 127, 128, 129, 255, 256, 257, 383, 385, 512, 1023, 1031, 2048, 2049 };
    shape s = { .type = random_in(0, 3) ? TMX_TYPE_BF16 : TMX_TYPE_F16, .head_dim = random_in(0, 2) ? 64 : 128 };
    s.n_kv_heads = random_in(1, 3);
    s.n_heads = s.n_kv_heads * groups[random_in(0, 5)];
    do {
        s.n_prompt = random_in(0, 2) ? edges[random_in(0, (int32_t)(sizeof edges / sizeof *edges))] : random_in(1, limit + 1);
    } while (s.n_prompt > limit);
    if (random_in(0, 3) == 0) s.q_begin = random_in(0, key_blocks_of(s.n_prompt)) * KEY_BLOCK;
    return s;
}

int main(int argc, char **argv)
{
    const check_options o = begin_check(argc, argv, "check_gpu_lists", 40);
    tmx_error err;
    if (gpu_lists_check(128, &err) != TMX_OK) {
        printf("skipped: %s\n0 passed, 0 failed, 1 skipped\n", err.text);
        return 0;
    }
    if (tmx_pool_create(&pool, 0, &err) != TMX_OK) return 2;
    printf("seed %llu\n", (unsigned long long)seed);
    for (int32_t i = 0; i < o.n_cases; i++) {
        const shape attended = random_shape(o.is_small ? 700 : i % 8 == 7 ? 40000 : 4000), estimated = random_shape(o.is_small ? 700 : 4000);
        check_attention(&attended);
        check_xattention(&estimated);
    }
    check_nan();
    print_worst_errors();
    printf("lists: off by %.3g of a row's mass at most (limit %.3g); %lld of %lld are the CPU's\n", worst_part, EPSILON,
           (long long)n_lists_like_cpu, (long long)n_lists);
    tmx_pool_free(pool);
    printf("%d passed, %d failed, 0 skipped\n", n_passed, n_failed);
    return n_failed != 0;
}
