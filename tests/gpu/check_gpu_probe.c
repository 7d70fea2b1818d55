/* check_gpu_probe.c - the gradient probe on a CUDA device: its operators against f64 on random shapes, a tiny model against the f64
 * twin, and the demo model against the CPU's f32.  Linked with fake_gpu.c, the passes without a device.
 *
 *     check_gpu_probe [--cases N] [--seed N] [--kernels 1] [--model FILE.gguf --ids FILE [--samples N]] [--time 1]
 *
 * --kernels: nothing but our own kernels, for racecheck, which reports hazards in those of cuBLASLt.  --ids: a text's token ids; sample
 * i asks for the one behind a stretch of them.  --time: the operators at the Llama-3.1-8B shape.
 * Without a usable GPU, everything is skipped and counted.  Ends with "N passed, N failed, N skipped". */
#define TINY_WIDTHS TINY_EMBD = 128, TINY_HEADS = 6, TINY_KV_HEADS = 2, TINY_HEAD_DIM = CHECK_HEAD_DIM, TINY_FF = 192
#define TINY_SPREAD 0.16f
#include "base/mem.h"
#include "base/num.h"
#include "gpu/gpu_model.h"
#include "pattern/pattern.h"
#include "probe/cuda/probe_ops_cuda.h"
#include "probe/probe.h"
#include "tiny_gradient.h"
#include "gpu_random.h"

/* Beside what is measured with fake_gpu.c, which has the device's roundings. */
static const struct { const char *what; double limit; } limits[] = {
    { "d_q", 4e-3 },               /* 9.2e-4 of the sum of sizes: dS and P are rounded to bf16, at most by 2^-8 = 3.9e-3 */
    { "d_k", 4e-3 },               /* 9.7e-4 */
    { "d_v", 4e-3 },               /* 3.8e-3 */
    { "sums", 1e-5 },              /* 5.4e-7, on an H200 1.2e-6: f32 scores up to 60, f32 sums within a thread */
};
enum { LIMIT_D_Q, LIMIT_D_K, LIMIT_D_V, LIMIT_SUMS, N_LIMITS };
static const double WORST_OF_TWIN = 0.02;          /* 8.4e-3 */
static const double WORST_ROW = 4e-3;              /* results in bf16, rounded by at most 2^-8, and f32 sums; measured: 3.1e-3 */

static void *must(void *block)
{
    if (block != NULL) return block;
    printf("out of memory\n");
    exit(3);
}

static void stop_on(tmx_status status, const tmx_error *err)
{
    if (status == TMX_OK) return;
    check(false, "device: %s", err->text);
    exit(1);
}

/* ---------------------------------------------------------------- buffers on both sides */

typedef struct buffer { void *host, *device; size_t n_bytes; } buffer;

static buffer buffer_create(gpu *g, size_t n_bytes)
{
    buffer b = { .host = must(malloc(n_bytes)), .n_bytes = n_bytes };
    tmx_error err = { 0 };
    memset(b.host, 0xff, n_bytes);
    stop_on(gpu_alloc(g, &b.device, n_bytes, &err), &err);
    return b;
}

static void upload(gpu *g, const buffer *b)
{
    void *pinned;
    tmx_error err = { 0 };
    stop_on(gpu_alloc_pinned(g, &pinned, b->n_bytes, &err), &err);
    memcpy(pinned, b->host, b->n_bytes);
    gpu_upload(g, b->device, pinned, b->n_bytes);
    stop_on(gpu_wait(g, &err), &err);
    gpu_free_pinned(g, pinned);
}

static void download(gpu *g, const buffer *b)
{
    tmx_error err = { 0 };
    stop_on(gpu_download(g, b->host, b->device, b->n_bytes, &err), &err);
}

static void buffer_free(gpu *g, buffer *b)
{
    gpu_free(g, b->device);
    free(b->host);
}

static buffer random_bf16(gpu *g, size_t n, float size)
{
    const buffer b = buffer_create(g, 2 * n);
    for (size_t i = 0; i < n; i++) ((tmx_bf16 *)b.host)[i] = bf16_from_f32(size * random_normal());
    return b;
}

static buffer random_f32(gpu *g, size_t n, float size)
{
    const buffer b = buffer_create(g, n * sizeof(float));
    for (size_t i = 0; i < n; i++) ((float *)b.host)[i] = size * random_normal();
    return b;
}

static double b16(const buffer *b, size_t i) { return (double)bf16_to_f32(((const tmx_bf16 *)b->host)[i]); }
static double f32(const buffer *b, size_t i) { return (double)((const float *)b->host)[i]; }

/* ---------------------------------------------------------------- attention */

typedef struct shape { int32_t n, n_heads, n_kv_heads, head_dim, n_ctx, n_sink, n_window, n_last; } shape;

typedef struct attention_case {
    shape s;
    buffer q, k, v, o, d_o, lse, d_qkv, sums, scratch;
    double *expected, *sizes;      /* of d_qkv; sizes: of what is added up */
    double sums_expected[N_SECTIONS][N_SUMS];
} attention_case;

static size_t q_at(const shape *s, int32_t i, int32_t h) { return ((size_t)i * (size_t)s->n_heads + (size_t)h) * (size_t)s->head_dim; }
static size_t k_at(const shape *s, int32_t j, int32_t kv_head) { return ((size_t)kv_head * (size_t)s->n_ctx + (size_t)j) * (size_t)s->head_dim; }
static int32_t kv_head_of(const shape *s, int32_t h) { return h / (s->n_heads / s->n_kv_heads); }

static double dot(const buffer *x, size_t x_at, const buffer *y, size_t y_at, int32_t n)
{
    double sum = 0;
    for (size_t d = 0; d < (size_t)n; d++) sum += b16(x, x_at + d) * b16(y, y_at + d);
    return sum;
}

/* p[j] of one row, from o and lse of a forward pass in f64, which are written too. */
static void forward_row(attention_case *c, int32_t i, int32_t h, double *p)
{
    const shape *s = &c->s;
    const double scale = 1 / sqrt((double)s->head_dim);
    double top = -INFINITY, sum = 0;
    for (int32_t j = 0; j <= i; j++) top = fmax(top, p[j] = scale * dot(&c->q, q_at(s, i, h), &c->k, k_at(s, j, kv_head_of(s, h)), s->head_dim));
    for (int32_t j = 0; j <= i; j++) sum += p[j] = exp(p[j] - top);
    ((float *)c->lse.host)[i * s->n_heads + h] = (float)(top + log(sum));
    for (int32_t j = 0; j <= i; j++) p[j] /= sum;
    for (size_t d = 0; d < (size_t)s->head_dim; d++) {
        double o = 0;
        for (int32_t j = 0; j <= i; j++) o += p[j] * b16(&c->v, k_at(s, j, kv_head_of(s, h)) + d);
        ((tmx_bf16 *)c->o.host)[q_at(s, i, h) + d] = bf16_from_f32((float)o);
    }
}

static void add_pair(attention_case *c, int32_t i, int32_t j, int32_t h, double p, double da)
{
    const shape *s = &c->s;
    const size_t n_dim = (size_t)s->head_dim, width = (size_t)(s->n_heads + 2 * s->n_kv_heads) * n_dim;
    const size_t q = q_at(s, i, h), kv = k_at(s, j, kv_head_of(s, h));
    const size_t to_q = (size_t)i * width + (size_t)h * n_dim, to_k = (size_t)j * width + (size_t)(s->n_heads + kv_head_of(s, h)) * n_dim;
    const size_t to_v = to_k + (size_t)s->n_kv_heads * n_dim;
    double sizes = 0;
    for (size_t d = 0; d < n_dim; d++) sizes += fabs(b16(&c->d_o, q + d)) * (fabs(b16(&c->v, kv + d)) + fabs(b16(&c->o, q + d)));
    const double factor = p / sqrt((double)s->head_dim), ds = factor * (da - dot(&c->d_o, q, &c->o, q, s->head_dim)), ds_size = factor * sizes;
    for (size_t d = 0; d < n_dim; d++) {
        c->expected[to_q + d] += ds * b16(&c->k, kv + d);
        c->sizes[to_q + d] += ds_size * fabs(b16(&c->k, kv + d));
        c->expected[to_k + d] += ds * b16(&c->q, q + d);
        c->sizes[to_k + d] += ds_size * fabs(b16(&c->q, q + d));
        c->expected[to_v + d] += p * b16(&c->d_o, q + d);
        c->sizes[to_v + d] += p * fabs(b16(&c->d_o, q + d));
    }
}

static int section_of(const shape *s, int32_t i, int32_t j)
{
    const tmx_pattern triangle = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = s->n_sink, .n_window = s->n_window, .n_last = s->n_last };
    return tiny_section(&triangle, s->n, i, j);
}

static void make_reference(attention_case *c)
{
    const shape *s = &c->s;
    double *p = must(calloc((size_t)s->n * (size_t)s->n_heads, sizeof *p));
    for (int32_t i = 0; i < s->n; i++) {
        for (int32_t h = 0; h < s->n_heads; h++) forward_row(c, i, h, p + h * s->n);
        for (int32_t j = 0; j <= i; j++) {
            double *sums = c->sums_expected[section_of(s, i, j)], theta = 0;
            for (int32_t h = 0; h < s->n_heads; h++) {
                const double p_h = p[h * s->n + j], da = dot(&c->d_o, q_at(s, i, h), &c->v, k_at(s, j, kv_head_of(s, h)), s->head_dim);
                add_pair(c, i, j, h, p_h, da);
                theta += p_h * da;
                sums[SUM_HEAD_ABS] += fabs(p_h * da);
                sums[SUM_DA_ABS] += fabs(da);
                sums[SUM_ATTENTION] += p_h;
            }
            sums[SUM_THETA_ABS] += fabs(theta);
            sums[SUM_THETA_SIGNED] += theta;
        }
    }
    free(p);
}

/* Positions behind the prompt hold NaN. */
static void hide_tail(const shape *s, const buffer *kv)
{
    for (int32_t h = 0; h < s->n_kv_heads; h++) {
        memset((tmx_bf16 *)kv->host + k_at(s, s->n, h), 0xff, 2 * (size_t)(s->n_ctx - s->n) * (size_t)s->head_dim);
    }
}

static attention_case case_create(gpu *g, const shape *s)
{
    const size_t n = (size_t)s->n, n_q = (size_t)(s->n_heads * s->head_dim), n_kv = (size_t)(s->n_kv_heads * s->head_dim), n_ctx = (size_t)s->n_ctx;
    attention_case c = {
        .s = *s, .q = random_bf16(g, n * n_q, 2), .k = random_bf16(g, n_ctx * n_kv, 2), .v = random_bf16(g, n_ctx * n_kv, 1),
        .o = buffer_create(g, 2 * n * n_q), .d_o = random_bf16(g, n * n_q, 0.01f), .lse = buffer_create(g, n * (size_t)s->n_heads * sizeof(float)),
        .d_qkv = buffer_create(g, n * (n_q + 2 * n_kv) * sizeof(float)), .sums = buffer_create(g, N_SECTIONS * N_SUMS * sizeof(double)),
        .scratch = buffer_create(g, gpu_attn_back_scratch_bytes(s->n, s->n_heads)),
        .expected = must(calloc(n * (n_q + 2 * n_kv), sizeof(double))), .sizes = must(calloc(n * (n_q + 2 * n_kv), sizeof(double))),
    };
    hide_tail(s, &c.k);
    hide_tail(s, &c.v);
    return c;
}

static void case_free(gpu *g, attention_case *c)
{
    buffer *const buffers[] = { &c->q, &c->k, &c->v, &c->o, &c->d_o, &c->lse, &c->d_qkv, &c->sums, &c->scratch };
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) buffer_free(g, buffers[i]);
    free(c->expected);
    free(c->sizes);
}

static void case_upload(gpu *g, const attention_case *c)
{
    const buffer *const buffers[] = { &c->q, &c->k, &c->v, &c->o, &c->d_o, &c->lse, &c->d_qkv, &c->sums, &c->scratch };
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) upload(g, buffers[i]);
}

static gpu_attn_back back_of(const attention_case *c, bool is_sums_only)
{
    const shape *s = &c->s;
    return (gpu_attn_back){
        .n_tokens = s->n, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim, .n_ctx = s->n_ctx,
        .scale = (float)(1 / sqrt((double)s->head_dim)),
        .sections = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = s->n_sink, .n_window = s->n_window, .n_last = s->n_last },
        .q = c->q.device, .o = c->o.device, .d_o = c->d_o.device, .k = c->k.device, .v = c->v.device, .lse = c->lse.device,
        .d_qkv = is_sums_only ? NULL : c->d_qkv.device, .sums = c->sums.device, .scratch = c->scratch.device,
    };
}

/* Limit of the place in a row of d_qkv. */
static int limit_at(const shape *s, size_t i)
{
    const size_t head = i / (size_t)s->head_dim % (size_t)(s->n_heads + 2 * s->n_kv_heads);
    return head < (size_t)s->n_heads ? LIMIT_D_Q : head < (size_t)(s->n_heads + s->n_kv_heads) ? LIMIT_D_K : LIMIT_D_V;
}

static void judge(const attention_case *c, double *worst)
{
    const shape *s = &c->s;
    const size_t n = c->d_qkv.n_bytes / sizeof(float);
    for (size_t i = 0; i < n; i++) {
        const double error = fabs(f32(&c->d_qkv, i) - c->expected[i]), relative = error == 0 ? 0 : error / c->sizes[i];
        double *at = &worst[limit_at(s, i)];
        if (!(relative <= *at)) *at = relative;
    }
    for (int section = 0; section < N_SECTIONS; section++) {
        for (int i = 0; i < N_SUMS; i++) {
            const double *expected = c->sums_expected[section], found = ((const double *)c->sums.host)[section * N_SUMS + i];
            const double error = fabs(found - expected[i]), relative = error == 0 ? 0 : error / expected[i < SUM_HEAD_ABS ? SUM_HEAD_ABS : i];
            if (!(relative <= worst[LIMIT_SUMS])) worst[LIMIT_SUMS] = relative;
        }
    }
}

static void check_case(gpu *g, const shape *s)
{
    attention_case c = case_create(g, s);
    double worst[N_LIMITS] = { 0 };
    bool is_good = true, is_same;
    make_reference(&c);
    case_upload(g, &c);
    const gpu_attn_back back = back_of(&c, false), sums_only = back_of(&c, true);
    gpu_attn_back_run(g, &back);
    download(g, &c.d_qkv);
    download(g, &c.sums);
    judge(&c, worst);
    void *const first = must(malloc(c.d_qkv.n_bytes)), *const first_sums = must(malloc(c.sums.n_bytes));
    memcpy(first, c.d_qkv.host, c.d_qkv.n_bytes);
    memcpy(first_sums, c.sums.host, c.sums.n_bytes);
    gpu_attn_back_run(g, &back);
    gpu_attn_back_run(g, &sums_only);
    download(g, &c.d_qkv);
    download(g, &c.sums);
    is_same = memcmp(first, c.d_qkv.host, c.d_qkv.n_bytes) == 0 && memcmp(first_sums, c.sums.host, c.sums.n_bytes) == 0;
    for (int i = 0; i < N_LIMITS; i++) is_good &= worst[i] <= limits[i].limit;
    check(is_good && is_same, "attention n %d, heads %d/%d of %d, sink %d, window %d, last %d: d_q %.1e, d_k %.1e, d_v %.1e, sums %.1e; %s",
          s->n, s->n_heads, s->n_kv_heads, s->head_dim, s->n_sink, s->n_window, s->n_last, worst[0], worst[1], worst[2], worst[3],
          is_same ? "same bits again" : "OTHER BITS AGAIN");
    free(first);
    free(first_sums);
    case_free(g, &c);
}

static void check_attention(gpu *g, int32_t n_cases)
{
    static const shape fixed[] = {
        { 1, 1, 1, 0, 1, 0, 1, 0 }, { 2, 2, 1, 0, 2, 1, 1, 1 }, { 63, 3, 3, 0, 70, 4, 8, 5 }, { 64, 4, 2, 0, 64, 0, 64, 64 },
        { 65, 6, 2, 0, 65, 64, 1, 0 }, { 129, 2, 1, 0, 200, 3, 20, 11 }, { 130, 8, 1, 0, 130, 200, 5, 5 }, { 100, 2, 2, 0, 100, 0, 200, 7 },
        { 193, 4, 2, 0, 193, 10, 30, 300 }, { 257, 2, 2, 0, 260, 64, 64, 64 },
    };
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        shape s = fixed[i];
        s.head_dim = i % 3 == 2 ? 96 : CHECK_HEAD_DIM;
        check_case(g, &s);
    }
    for (int32_t i = 0; i < n_cases; i++) {
        const int32_t n = random_in(1, 330), n_kv = random_in(1, 4);
        const shape s = { .n = n, .n_heads = n_kv * random_in(1, 5), .n_kv_heads = n_kv, .head_dim = random_in(0, 4) == 0 ? 96 : CHECK_HEAD_DIM,
                          .n_ctx = n + random_in(0, 70),
                          .n_sink = random_in(0, 100), .n_window = random_in(1, 150), .n_last = random_in(0, 150) };
        check_case(g, &s);
    }
}

/* ---------------------------------------------------------------- rows and products */

/* The largest error relative to the largest number. */
typedef struct difference { double worst, largest; } difference;

static void compare(difference *d, double found, double expected)
{
    if (!(fabs(found - expected) <= d->worst)) d->worst = fabs(found - expected);
    d->largest = fmax(d->largest, fabs(expected));
}

static void judge_rows(const difference *d, const char *what, int32_t n_rows, int32_t n)
{
    const double relative = d->worst / d->largest;
    check(relative <= WORST_ROW, "%s, %d rows of %d: worst difference %.1e", what, n_rows, n, relative);
}

static void check_norm(gpu *g, int32_t n_rows, int32_t n)
{
    const size_t width = (size_t)n, count = (size_t)n_rows * width;
    buffer d_y = random_f32(g, count, 1), x = random_f32(g, count, 3), weight = random_f32(g, width, 1), d_x = random_f32(g, count, 1);
    double *expected = must(malloc(count * sizeof *expected));
    difference d = { 0 };
    for (size_t r = 0; r < (size_t)n_rows; r++) {
        double squares = 0, products = 0;
        for (size_t i = r * width; i < (r + 1) * width; i++) {
            squares += f32(&x, i) * f32(&x, i) / n;
            products += f32(&d_y, i) * f32(&weight, i % width) * f32(&x, i) / n;
        }
        const double scale = 1 / sqrt(squares + 1e-5);
        for (size_t i = r * width; i < (r + 1) * width; i++) {
            expected[i] = f32(&d_x, i) + scale * f32(&d_y, i) * f32(&weight, i % width) - scale * scale * scale * products * f32(&x, i);
        }
    }
    upload(g, &d_y), upload(g, &x), upload(g, &weight), upload(g, &d_x);
    gpu_rmsnorm_back(g, d_y.device, x.device, weight.device, 1e-5f, n_rows, n, d_x.device);
    download(g, &d_x);
    for (size_t i = 0; i < count; i++) compare(&d, f32(&d_x, i), expected[i]);
    judge_rows(&d, "rmsnorm_back", n_rows, n);
    free(expected);
    buffer_free(g, &d_y), buffer_free(g, &x), buffer_free(g, &weight), buffer_free(g, &d_x);
}

static void check_swiglu(gpu *g, int32_t n_rows, int32_t n, bool is_f32)
{
    const size_t width = (size_t)n, count = (size_t)n_rows * width;
    buffer d_y = random_f32(g, count, 1), gate_up = is_f32 ? random_f32(g, 2 * count, 3) : random_bf16(g, 2 * count, 3);
    buffer out = buffer_create(g, 4 * count);
    difference d = { 0 };
    upload(g, &d_y), upload(g, &gate_up);
    gpu_swiglu_back(g, d_y.device, gate_up.device, is_f32 ? TMX_TYPE_F32 : TMX_TYPE_BF16, n_rows, n, out.device);
    download(g, &out);
    for (size_t i = 0; i < count; i++) {
        const size_t at = i / width * 2 * width + i % width;
        const double gate = is_f32 ? f32(&gate_up, at) : b16(&gate_up, at), up = is_f32 ? f32(&gate_up, at + width) : b16(&gate_up, at + width);
        const double s = 1 / (1 + exp(-gate)), y = f32(&d_y, i);
        compare(&d, b16(&out, at), y * up * s * (1 + gate * (1 - s)));
        compare(&d, b16(&out, at + width), y * gate * s);
    }
    judge_rows(&d, is_f32 ? "swiglu_back of f32" : "swiglu_back of bf16", n_rows, n);
    buffer_free(g, &d_y), buffer_free(g, &gate_up), buffer_free(g, &out);
}

/* Of one head of head_dim elements, in f64: turned back, then by way of its norm. */
static void head_back(const gpu_heads_back *t, const double *cosines, const double *sines, const double *d, const double *raw,
                      const double *norm, double *out)
{
    const int32_t n_pairs = t->n_rot / 2, step = t->rope == ROPE_HALF_SPLIT ? n_pairs : 1;
    double squares = 0, products = 0;
    for (int32_t e = 0; e < t->head_dim; e++) out[e] = d[e];
    for (int32_t i = 0; i < n_pairs; i++) {
        const int32_t e = t->rope == ROPE_HALF_SPLIT ? i : 2 * i;
        out[e] = d[e] * cosines[i] + d[e + step] * sines[i];
        out[e + step] = d[e + step] * cosines[i] - d[e] * sines[i];
    }
    if (norm == NULL) return;
    for (int32_t e = 0; e < t->head_dim; e++) {
        out[e] *= norm[e];
        squares += raw[e] * raw[e] / t->head_dim;
        products += raw[e] * out[e] / t->head_dim;
    }
    const double scale = 1 / sqrt(squares + 1e-5);
    for (int32_t e = 0; e < t->head_dim; e++) out[e] = scale * out[e] - scale * scale * scale * products * raw[e];
}

static void check_heads(gpu *g, int32_t n_rows, int32_t head_dim, int32_t n_rot, rope_style style, bool has_norms)
{
    enum { N_HEADS = 4, N_KV = 2, N_ALL = N_HEADS + 2 * N_KV, MOST_DIM = 128 };
    const size_t n_pairs = (size_t)n_rot / 2, n_dim = (size_t)head_dim, rows = (size_t)n_rows, count = rows * N_ALL * n_dim;
    buffer x = random_f32(g, count, 1), y = buffer_create(g, 2 * count), angles = random_f32(g, 2 * rows * n_pairs, 1);
    buffer qkv = random_bf16(g, count, 2), norms = random_f32(g, 2 * n_dim, 1), bias = random_f32(g, N_ALL * n_dim, 0.5f);
    difference d = { 0 };
    upload(g, &x), upload(g, &angles), upload(g, &qkv), upload(g, &norms), upload(g, &bias);
    const float *cosines = angles.device, *norm = norms.device;
    const gpu_heads_back heads = {
        .cos = cosines, .sin = cosines + rows * n_pairs, .n_rows = n_rows, .n_heads = N_HEADS, .n_kv_heads = N_KV, .head_dim = head_dim,
        .n_rot = n_rot, .rope = style, .q_norm = has_norms ? norm : NULL, .k_norm = has_norms ? norm + n_dim : NULL, .norm_eps = 1e-5f,
        .qkv = has_norms ? qkv.device : NULL, .bias = bias.device,
    };
    gpu_heads_back_run(g, &heads, x.device, y.device);
    download(g, &y);
    for (size_t i = 0; i < rows * N_ALL; i++) {
        const size_t h = i % N_ALL, row = i / N_ALL;
        const bool is_turned = h < N_HEADS + N_KV;
        double c[MOST_DIM], s[MOST_DIM], in[MOST_DIM], raw[MOST_DIM], weight[MOST_DIM], out[MOST_DIM];
        for (size_t e = 0; e < n_pairs; e++) {
            c[e] = is_turned ? f32(&angles, row * n_pairs + e) : 1;
            s[e] = is_turned ? f32(&angles, (rows + row) * n_pairs + e) : 0;
        }
        for (size_t e = 0; e < n_dim; e++) {
            in[e] = f32(&x, i * n_dim + e);
            raw[e] = b16(&qkv, i * n_dim + e) + f32(&bias, h * n_dim + e);
            weight[e] = f32(&norms, (h < N_HEADS ? 0 : n_dim) + e);
        }
        head_back(&heads, c, s, in, raw, has_norms && is_turned ? weight : NULL, out);
        for (size_t e = 0; e < n_dim; e++) compare(&d, b16(&y, i * n_dim + e), out[e]);
    }
    char what[64];
    snprintf(what, sizeof what, "heads_back of %d, %s%s", head_dim, style == ROPE_HALF_SPLIT ? "halves" : "neighbours", has_norms ? ", normed" : "");
    judge_rows(&d, what, n_rows, n_rot);
    buffer_free(g, &x), buffer_free(g, &y), buffer_free(g, &angles), buffer_free(g, &qkv), buffer_free(g, &norms), buffer_free(g, &bias);
}

static void check_product(gpu *g, int32_t n_rows, int32_t n_out, int32_t n_in, tmx_type type)
{
    const size_t rows = (size_t)n_rows, outs = (size_t)n_out, ins = (size_t)n_in;
    buffer w = random_bf16(g, outs * ins, 0.1f), x = random_bf16(g, rows * outs, 1);
    buffer y = buffer_create(g, rows * ins * (type == TMX_TYPE_BF16 ? 2 : 4));
    double *sums = must(calloc(rows * ins, sizeof *sums));
    const gpu_weight weight = { .data = w.device, .n_out = n_out, .n_in = n_in };
    difference d = { 0 };
    char what[64];
    upload(g, &w), upload(g, &x);
    gpu_product_back(g, &weight, x.device, outs, n_rows, y.device, ins, type);
    download(g, &y);
    for (size_t r = 0; r < rows; r++) {
        for (size_t o = 0; o < outs; o++) {
            const double factor = b16(&x, r * outs + o);
            for (size_t i = 0; i < ins; i++) sums[r * ins + i] += factor * b16(&w, o * ins + i);
        }
    }
    for (size_t i = 0; i < rows * ins; i++) compare(&d, type == TMX_TYPE_BF16 ? b16(&y, i) : f32(&y, i), sums[i]);
    snprintf(what, sizeof what, "product_back with [%d][%d], %s", n_out, n_in, type == TMX_TYPE_BF16 ? "bf16" : "f32");
    judge_rows(&d, what, n_rows, n_in);
    free(sums);
    buffer_free(g, &w), buffer_free(g, &x), buffer_free(g, &y);
}

static void check_products(gpu *g)
{
    check_product(g, 1, 192, 128, TMX_TYPE_F32);
    check_product(g, 7, 384, 576, TMX_TYPE_F32);
    check_product(g, 130, 128, 192, TMX_TYPE_BF16);
}

static void check_rows(gpu *g)
{
    check_norm(g, 1, 128);
    check_norm(g, 3, 576);
    check_norm(g, 2, 4096);
    check_swiglu(g, 1, 192, true);
    check_swiglu(g, 5, 1536, false);
    check_heads(g, 3, CHECK_HEAD_DIM, CHECK_HEAD_DIM, ROPE_INTERLEAVED, false);
    check_heads(g, 3, CHECK_HEAD_DIM, CHECK_HEAD_DIM, ROPE_HALF_SPLIT, true);
    check_heads(g, 2, CHECK_HEAD_DIM, CHECK_HEAD_DIM / 2, ROPE_HALF_SPLIT, false);
    check_heads(g, 1, CHECK_HEAD_DIM, 24, ROPE_INTERLEAVED, true);
    check_heads(g, 2, 96, 96, ROPE_HALF_SPLIT, true);
}

/* ---------------------------------------------------------------- the tiny model */

#ifndef CHECK_TOKENS
#define CHECK_TOKENS 163           /* more than 65, so that there are two chunks; sanitizers get fewer */
#endif
enum { N_PROMPT = CHECK_TOKENS, TARGET = 77 };
static const tmx_probe_sections small = { .n_sink = 3, .n_window = 20, .n_last = 11 };
static const tmx_pattern small_triangle = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = 3, .n_window = 20, .n_last = 11 };

static tmx_probe *probe_create(const tmx_model *model, tmx_pool *pool, const tmx_probe_params *params)
{
    tmx_probe *probe = NULL;
    tmx_error err = { 0 };
    if (tmx_probe_create(&probe, model, pool, params, &err) == TMX_OK) return probe;
    check(false, "probe: %s", err.text);
    exit(1);
}

static bool probe_run(tmx_probe *probe, const int32_t *tokens, int32_t n, int32_t target, tmx_probe_layer *layers, tmx_probe_result *result)
{
    tmx_error err = { 0 };
    return tmx_probe_run(probe, tokens, n, target, layers, result, &err) == TMX_OK || check(false, "probe of %d tokens: %s", n, err.text);
}

static void sums_match_the_twin(const tiny_model *tiny, const tmx_model *model, tmx_pool *pool)
{
    static const int32_t lengths[] = { 1, 2, 17, 64, 65, N_PROMPT };
    int32_t tokens[N_PROMPT];
    tmx_probe *probe = probe_create(model, pool, &(tmx_probe_params){ .n_tokens = N_PROMPT, .sections = small });
    random_tokens(tokens, N_PROMPT, 1);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        tmx_probe_layer layers[TINY_LAYERS];
        tmx_probe_result result;
        tiny_pass pass = tiny_pass_create(lengths[i]);
        if (!probe_run(probe, tokens, lengths[i], TARGET, layers, &result)) break;
        tiny_forward_keep(tiny, &pass, tokens, NULL);
        tiny_backward(tiny, &pass, TARGET);
        const double worst = tiny_worst_of_layers(layers, &pass, &small_triangle);
        check(worst <= WORST_OF_TWIN, "a tiny model, %d tokens, against f64: worst sum %.2e (limit %.2g), logit %.3f and %.3f", lengths[i],
              worst, WORST_OF_TWIN, (double)result.target_logit, pass.logits[TARGET]);
        check(layers[TINY_LAYERS - 1].middle.da_abs == 0, "no gradient in the last layer's Middle");
        tiny_pass_free(&pass);
    }
    tmx_probe_free(probe);
}

/* What ran before, room for longer prompts, and the cut into chunks. */
static void bits_never_move(const tmx_model *model, tmx_pool *pool)
{
    int32_t tokens[N_PROMPT], other[N_PROMPT];
    tmx_probe_layer first[TINY_LAYERS], layers[TINY_LAYERS];
    random_tokens(tokens, N_PROMPT, 2);
    random_tokens(other, N_PROMPT, 12);
    for (int i = 0; i < 4; i++) {
        tmx_probe *probe = probe_create(model, pool, &(tmx_probe_params){ .n_tokens = i == 1 ? N_PROMPT + 150 : N_PROMPT, .sections = small });
        if (i == 2) probe_run(probe, other, N_PROMPT, 3, layers, NULL);
        if (i == 3) probe->n_chunk = 64;
        probe_run(probe, tokens, N_PROMPT - 1, TARGET, i == 0 ? first : layers, NULL);
        if (i > 0) {
            check(memcmp(first, layers, sizeof first) == 0, "the same bits %s", i == 1 ? "with room for longer prompts" : i == 2
                  ? "behind another prompt" : "in chunks of 64 rows");
        }
        tmx_probe_free(probe);
    }
}

static void a_stopped_run_leaves_no_trace(const tmx_model *model, tmx_pool *pool)
{
    int32_t tokens[N_PROMPT];
    tmx_probe_layer first[TINY_LAYERS], layers[TINY_LAYERS];
    tmx_error err = { 0 };
    int n_left = 1000;
    const tmx_probe_params params = { .n_tokens = N_PROMPT, .sections = small, .progress = stop_after, .progress_ctx = &n_left };
    tmx_probe *probe = probe_create(model, pool, &params);
    random_tokens(tokens, N_PROMPT, 6);
    probe_run(probe, tokens, N_PROMPT, TARGET, first, NULL);
    for (int n_steps = 1; n_steps < 2 * TINY_LAYERS; n_steps += 3) {
        n_left = n_steps;
        const tmx_status status = tmx_probe_run(probe, tokens, N_PROMPT, TARGET, layers, NULL, &err);
        check(status == TMX_E_CANCELLED, "stopped after %d layers: %s", n_steps, err.text);
        n_left = 1000;
        probe_run(probe, tokens, N_PROMPT, TARGET, layers, NULL);
        check(memcmp(first, layers, sizeof first) == 0, "and run again: same bits");
    }
    tmx_probe_free(probe);
}

static void refusals_say_why(tmx_model *model, tmx_pool *pool)
{
    tmx_probe *probe = NULL;
    tmx_error err = { 0 };
    tmx_memory memory = { 0 };
    const int32_t n_layers = model->info.n_layers;
    model->info.n_layers = 1 << 20;                        /* more activations than any card holds */
    tmx_status status = tmx_probe_create(&probe, model, pool, &(tmx_probe_params){ .n_tokens = N_PROMPT }, &err);
    model->info.n_layers = n_layers;
    check(status == TMX_E_MEMORY && strstr(err.text, "are free") != NULL, "too large: %s", err.text);
    model->tensors.shape.gate = GATE_GELU_TANH;
    status = tmx_probe_create(&probe, model, pool, NULL, &err);
    model->tensors.shape.gate = GATE_SILU;
    check(status == TMX_E_UNSUPPORTED, "another family: %s", err.text);
    const tmx_probe_params params = { .n_tokens = N_PROMPT };
    status = tmx_probe_memory(tmx_model_info_get(model), TMX_COMPUTE_BF16, TMX_ISA_AUTO, &params, 1, &memory, &err);
    check(status == TMX_OK && memory.kv_bytes > 0 && memory.available_bytes > 0 && memory.weight_bytes == 0, "memory plan: %.1f MiB of %.1f GiB",
          (double)memory.total_bytes / 0x1p20, (double)memory.available_bytes / 0x1p30);
}

static void check_tiny(tmx_pool *pool)
{
    tiny_model tiny;
    tmx_model *model = NULL;
    tmx_error err = { 0 };
    tiny_model_create(&tiny, 7, false, true);
    const tmx_model_params params = { .device = "cuda", .rope_freq_base = 10000.0f };      /* lifts the limit on the context */
    const tmx_status status = tmx_model_open(&model, tiny.path, &params, pool, &err);
    if (check(status == TMX_OK, "open on %s %s", status == TMX_OK ? tmx_model_device_name(model) : "a GPU:", err.text)) {
        sums_match_the_twin(&tiny, model, pool);
        bits_never_move(model, pool);
        a_stopped_run_leaves_no_trace(model, pool);
        refusals_say_why(model, pool);
    }
    tmx_model_close(model);
    tiny_model_free(&tiny);
}

/* ---------------------------------------------------------------- a model from a file */

/* Reports of the same samples: stretches of a text and what comes behind them. */
static tmx_probe_report *report_of(const tmx_model *model, tmx_pool *pool, const int32_t *ids, int32_t n_ids, int32_t n_tokens, int32_t n_samples)
{
    const tmx_model_info *m = tmx_model_info_get(model);
    const tmx_probe_settings settings = { .source = "text", .n_tokens = n_tokens, .n_samples = n_samples, .compute = tmx_model_compute(model) };
    tmx_probe_layer *layers = must(calloc((size_t)m->n_layers, sizeof *layers));
    tmx_probe_report *report = NULL;
    tmx_error err = { 0 };
    tmx_probe *probe = probe_create(model, pool, &(tmx_probe_params){ .n_tokens = n_tokens });
    stop_on(tmx_probe_report_create(&report, m, &settings, &err), &err);
    for (int32_t i = 0; i < n_samples; i++) {
        const int32_t *at = ids + (n_ids - n_tokens - 1) / n_samples * i;
        tmx_probe_result result;
        if (!probe_run(probe, at, n_tokens, at[n_tokens], layers, &result)) exit(1);
        const tmx_probe_sample sample = { .n_tokens = n_tokens, .target = at[n_tokens], .top_token = result.top_token,
                                          .target_logit = result.target_logit };
        stop_on(tmx_probe_report_add(report, &sample, layers, &err), &err);
    }
    tmx_probe_free(probe);
    free(layers);
    return report;
}

static void print_order(const char *device, const int32_t *order, int32_t n)
{
    printf("%-5s", device);
    for (int32_t i = 0; i < n; i++) printf(" %d", order[i]);
    putchar('\n');
}

static double number_of(const tmx_probe_sums *s, int i)
{
    const double numbers[N_SUMS] = { s->theta_abs, s->theta_signed, s->head_abs, s->da_abs, s->attention };
    return numbers[i];
}

/* The worst layer of each mean, relative to its size on the CPU. */
static void print_differences(const tmx_probe_report *a, const tmx_probe_report *b, int32_t n_layers)
{
    static const char *const sections[] = { "streaming", "last", "middle" };
    static const char *const numbers[] = { "theta_abs", "theta_signed", "head_abs", "da_abs", "attention" };
    for (int section = 0; section < N_SECTIONS; section++) {
        for (int i = 0; i < N_SUMS; i++) {
            double worst = 0;
            int32_t at = 0;
            for (int32_t l = 0; l < n_layers; l++) {
                const tmx_probe_sums *x = tiny_section_of(tmx_probe_report_layer(a, l), section);
                const tmx_probe_sums *y = tiny_section_of(tmx_probe_report_layer(b, l), section);
                const double size = number_of(x, i == SUM_THETA_SIGNED ? SUM_HEAD_ABS : i), error = fabs(number_of(x, i) - number_of(y, i));
                const double relative = error == 0 ? 0 : error / size;
                if (relative <= worst) continue;
                worst = relative;
                at = l;
            }
            printf("  %-9s %-12s: means differ by at most %.2e of their size, in layer %d\n", sections[section], numbers[i], worst, at);
        }
    }
}

static void check_file(const char *path, const char *ids_path, int32_t n_samples, tmx_pool *pool)
{
    enum { N_MOST = 4096, N_TOKENS = 1500 };
    static int32_t ids[N_MOST];
    tmx_model *cpu = NULL, *cuda = NULL;
    tmx_error err = { 0 };
    const int32_t n_ids = read_ids(ids_path, ids, N_MOST);
    if (n_ids < N_MOST || tmx_model_open(&cpu, path, &(tmx_model_params){ .compute = TMX_COMPUTE_F32 }, pool, &err) != TMX_OK
        || tmx_model_open(&cuda, path, &(tmx_model_params){ .device = "cuda" }, pool, &err) != TMX_OK) {
        check(false, "%s: %s (%d ids)", path, err.text, n_ids);
        tmx_model_close(cpu);
        tmx_model_close(cuda);
        return;
    }
    const int32_t n_layers = tmx_model_info_get(cpu)->n_layers;
    int32_t *order_a = must(calloc((size_t)n_layers, sizeof *order_a)), *order_b = must(calloc((size_t)n_layers, sizeof *order_b));
    tmx_probe_report *a = report_of(cpu, pool, ids, n_ids, N_TOKENS, n_samples);
    tmx_probe_report *b = report_of(cuda, pool, ids, n_ids, N_TOKENS, n_samples);
    stop_on(tmx_probe_report_order(a, TMX_ORDER_GRADIENT, 0, order_a, &err), &err);
    stop_on(tmx_probe_report_order(b, TMX_ORDER_GRADIENT, 0, order_b, &err), &err);
    print_order("cpu", order_a, n_layers);
    print_order("cuda", order_b, n_layers);
    print_differences(a, b, n_layers);
    for (int32_t i = 0; i < n_layers; i++) {
        printf("  layer %2d: middle theta_abs %.4e on the CPU in f32, %.4e on the GPU\n", i, tmx_probe_report_layer(a, i)->middle.theta_abs,
               tmx_probe_report_layer(b, i)->middle.theta_abs);
    }
    check(memcmp(order_a, order_b, (size_t)n_layers * sizeof *order_a) == 0, "%d samples of %d tokens: the CPU's order of layers", n_samples, N_TOKENS);
    tmx_probe_report_free(a);
    tmx_probe_report_free(b);
    free(order_a);
    free(order_b);
    tmx_model_close(cpu);
    tmx_model_close(cuda);
}

/* ---------------------------------------------------------------- time */

enum { TIMED_TOKENS = 2000, N_TIMED = 20 };

typedef struct timed_marks { gpu_mark *begin, *end; } timed_marks;

static double timed_ms(gpu *g, const timed_marks *m)
{
    tmx_error err = { 0 };
    stop_on(gpu_wait(g, &err), &err);
    return gpu_mark_ms(g, m->begin, m->end) / N_TIMED;
}

static void time_product(gpu *g, const timed_marks *m, const char *what, int32_t n_out, int32_t n_in, tmx_type type)
{
    const size_t outs = (size_t)n_out, ins = (size_t)n_in;
    buffer w = buffer_create(g, 2 * outs * ins), x = buffer_create(g, 2 * TIMED_TOKENS * outs), y = buffer_create(g, 4 * TIMED_TOKENS * ins);
    const gpu_weight weight = { .data = w.device, .n_out = n_out, .n_in = n_in };
    const gpu_weight noise = { .data = x.device, .n_out = TIMED_TOKENS, .n_in = n_out };
    gpu_weight_random(g, &weight, 0.02f, 1);
    gpu_weight_random(g, &noise, 1.0f, 2);
    gpu_product_back(g, &weight, x.device, outs, TIMED_TOKENS, y.device, ins, type);
    gpu_mark_set(g, m->begin);
    for (int i = 0; i < N_TIMED; i++) gpu_product_back(g, &weight, x.device, outs, TIMED_TOKENS, y.device, ins, type);
    gpu_mark_set(g, m->end);
    const double ms = timed_ms(g, m), tflop = 2e-12 * TIMED_TOKENS * (double)n_out * n_in;
    printf("product_back %-12s [%5d][%5d] %s: %.3f ms, %.0f TFLOP/s\n", what, n_out, n_in, type == TMX_TYPE_BF16 ? "bf16" : "f32 ", ms,
           tflop / ms * 1e3);
    buffer_free(g, &w), buffer_free(g, &x), buffer_free(g, &y);
}

static void time_attention(gpu *g, const timed_marks *m, bool is_sums_only)
{
    const shape s = { .n = TIMED_TOKENS, .n_heads = 32, .n_kv_heads = 8, .head_dim = CHECK_HEAD_DIM, .n_ctx = TIMED_TOKENS, .n_sink = 64,
                      .n_window = 128, .n_last = 128 };
    attention_case c = case_create(g, &s);
    memset(c.o.host, 0, c.o.n_bytes);
    for (size_t i = 0; i < c.lse.n_bytes / sizeof(float); i++) ((float *)c.lse.host)[i] = 8;
    case_upload(g, &c);
    const gpu_attn_back back = back_of(&c, is_sums_only);
    gpu_attn_back_run(g, &back);
    gpu_mark_set(g, m->begin);
    for (int i = 0; i < N_TIMED; i++) gpu_attn_back_run(g, &back);
    gpu_mark_set(g, m->end);
    const double ms = timed_ms(g, m), pairs = 0.5 * TIMED_TOKENS * (TIMED_TOKENS + 1.0);
    const double tflop = 1e-12 * (is_sums_only ? 2 : 9) * 2 * pairs * s.n_heads * s.head_dim;
    printf("attention back, %s: %.3f ms a layer, %.0f TFLOP/s of the products it makes\n",
           is_sums_only ? "the sums alone" : "sums and derivatives", ms, tflop / ms * 1e3);
    case_free(g, &c);
}

static void time_operators(void)
{
    gpu *g = NULL;
    timed_marks m;
    tmx_error err = { 0 };
    stop_on(gpu_open(&g, 0, &err), &err);
    stop_on(gpu_mark_create(g, &m.begin, &err), &err);
    stop_on(gpu_mark_create(g, &m.end, &err), &err);
    printf("the Llama-3.1-8B shape, %d tokens, on %s\n", TIMED_TOKENS, gpu_name(g));
    time_product(g, &m, "down", 4096, 14336, TMX_TYPE_F32);
    time_product(g, &m, "gate_up", 28672, 4096, TMX_TYPE_F32);
    time_product(g, &m, "attn_output", 4096, 4096, TMX_TYPE_BF16);
    time_product(g, &m, "qkv", 6144, 4096, TMX_TYPE_F32);
    time_attention(g, &m, true);
    time_attention(g, &m, false);
    gpu_mark_free(g, m.begin);
    gpu_mark_free(g, m.end);
    gpu_close(g);
}

int main(int argc, char **argv)
{
    const char *model = NULL, *ids = NULL;
    int32_t n_cases = 2, n_samples = 6;
    bool is_timed = false, is_kernels_only = false;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--model") == 0) model = argv[i + 1];
        else if (strcmp(argv[i], "--ids") == 0) ids = argv[i + 1];
        else if (strcmp(argv[i], "--cases") == 0) n_cases = (int32_t)strtol(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--samples") == 0) n_samples = (int32_t)strtol(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0) seed = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--time") == 0) is_timed = true;
        else if (strcmp(argv[i], "--kernels") == 0) is_kernels_only = true;
    }
    tmx_pool *pool;
    tmx_error err;
    if (tmx_pool_create(&pool, 0, &err) != TMX_OK) return 1;
    gpu *g = NULL;
    const tmx_status status = gpu_open(&g, 0, &err);
    if (status == TMX_OK) {
        check_rows(g);
        check_attention(g, n_cases);
        if (!is_kernels_only) {
            check_products(g);
            check_tiny(pool);
        }
        if (is_timed) time_operators();
    }
    if (status == TMX_OK && model != NULL && ids != NULL && n_samples > 0) {
        check_file(model, ids, n_samples, pool);
    } else {
        printf("skipped: %s\n", status == TMX_OK ? "no model file was given (--model FILE --ids FILE)" : err.text);
        n_skipped++;
    }
    gpu_close(g);
    tmx_pool_free(pool);
    printf("%d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed == 0 ? 0 : 1;
}
