/* check_gpu_ops - the device operators against the CPU's rows and f64 loops, awkward shapes first.
 *
 *     check_gpu_ops [--seed N] [--small] [--time]     --small: shapes for a run under compute-sanitizer; --time: rates instead
 *
 * Outputs start as NaN between guard zones.  Ends with one line: N passed, N failed, N skipped.  Without a GPU all of it is one
 * skipped test. */
#include "gpu_random.h"
#include "gpu_ops.h"

#include "base/num.h"
#include "gguf/blocks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Relative L2 of a whole output against f64.  Measured: the worst seen on an H100; one rounding to bf16 costs 1.7e-3 of many
 * elements, and 2^-8 of a single one at worst (FEW_BF16: outputs below MANY elements); the tensor cores' f32 sums cost 1.6e-5 over
 * 14336 products. */
enum bound { EXACT_F32, ROUNDED_BF16, FEW_BF16, PRODUCT_F32, DECODE, N_BOUNDS };
static const struct { const char *name; double limit, measured; } bounds[N_BOUNDS] = {
    { "rows, f32", 1e-6, 1.3e-7 }, { "rounded to bf16", 2.5e-3, 2.1e-3 }, { "rounded to bf16, few", 0x1.01p-8, 2.8e-3 },
    { "products, f32", 3e-5, 1.6e-5 }, { "decode attention", 1e-5, 1.2e-6 },
};
enum { MANY = 500 };
static double worst[N_BOUNDS];

enum { GUARD_BYTES = 4096, POISON = 0xff };

static int32_t n_passed, n_failed;
static bool is_small;
gpu *g;

static void report(bool is_ok, const char *op, const char *what, int32_t a, int32_t b, int32_t c)
{
    if (is_ok) n_passed++;
    else {
        n_failed++;
        printf("FAILED %s %d x %d x %d: %s\n", op, a, b, c, what);
    }
}

void stop_at(bool is_ok, const char *what)
{
    if (is_ok) return;
    printf("%s\n%d passed, %d failed, 0 skipped\n", what, n_passed, n_failed + 1);
    exit(2);
}

void cuda_ok(cudaError_t error, const char *what)
{
    if (error != cudaSuccess) printf("%s: %s\n", what, cudaGetErrorString(error));
    stop_at(error == cudaSuccess, "a CUDA call failed");
}

void wait_ok(void)
{
    tmx_error err;
    const tmx_status status = gpu_wait(g, &err);
    if (status != TMX_OK) printf("%s\n", err.text);
    stop_at(status == TMX_OK, "the device failed");
}

/* ---------------------------------------------------------------- memory on both sides */

void *host_alloc(size_t n)
{
    void *p = malloc(n > 0 ? n : 1);
    stop_at(p != NULL, "out of memory");
    return p;
}

typedef struct device_buffer {     /* n bytes between two guard zones, all of it NaN at first */
    unsigned char *base;
    void *data;
    size_t n_bytes;
} device_buffer;

static void poison(const device_buffer *b)
{
    CUDA_OK(cudaMemset(b->base, POISON, b->n_bytes + (size_t)2 * GUARD_BYTES));
    CUDA_OK(cudaDeviceSynchronize());
}

static device_buffer device_alloc(size_t n_bytes)
{
    device_buffer b = { .n_bytes = n_bytes };
    CUDA_OK(cudaMalloc((void **)&b.base, n_bytes + (size_t)2 * GUARD_BYTES));
    b.data = b.base + GUARD_BYTES;
    poison(&b);
    return b;
}

static device_buffer device_copy(const void *from, size_t n_bytes)
{
    device_buffer b = device_alloc(n_bytes);
    CUDA_OK(cudaMemcpy(b.data, from, n_bytes, cudaMemcpyHostToDevice));
    CUDA_OK(cudaDeviceSynchronize());
    return b;
}

static void device_free(device_buffer *b)
{
    CUDA_OK(cudaFree(b->base));
    b->base = NULL;
}

/* What the buffer holds now; the guards must be whole. */
static void *download(const device_buffer *b)
{
    unsigned char guard[2 * GUARD_BYTES];
    void *to = host_alloc(b->n_bytes);
    tmx_error err;
    stop_at(gpu_download(g, to, b->data, b->n_bytes, &err) == TMX_OK, err.text);
    CUDA_OK(cudaMemcpy(guard, b->base, GUARD_BYTES, cudaMemcpyDeviceToHost));
    CUDA_OK(cudaMemcpy(guard + GUARD_BYTES, (const unsigned char *)b->data + b->n_bytes, GUARD_BYTES, cudaMemcpyDeviceToHost));
    for (int i = 0; i < 2 * GUARD_BYTES; i++) stop_at(guard[i] == POISON, "a kernel wrote outside its output");
    return to;
}

typedef struct values {            /* random numbers on both sides */
    size_t n;
    tmx_type type;
    float *x;                      /* what the device has, exactly */
    device_buffer device;
} values;

static void values_upload(values *v)
{
    tmx_bf16 *rounded = host_alloc(v->n * sizeof *rounded);
    for (size_t i = 0; i < v->n; i++) {
        rounded[i] = bf16_from_f32(v->x[i]);
        if (v->type == TMX_TYPE_BF16) v->x[i] = bf16_to_f32(rounded[i]);
    }
    v->device = v->type == TMX_TYPE_BF16 ? device_copy(rounded, 2 * v->n) : device_copy(v->x, 4 * v->n);
    free(rounded);
}

static values random_values(size_t n, tmx_type type, float deviation)
{
    values v = { .n = n, .type = type, .x = host_alloc(n * sizeof(float)) };
    for (size_t i = 0; i < n; i++) v.x[i] = random_normal() * deviation;
    values_upload(&v);
    return v;
}

static void values_free(values *v)
{
    free(v->x);
    device_free(&v->device);
}

static size_t type_bytes(tmx_type type) { return type == TMX_TYPE_BF16 ? 2 : 4; }
static float get(const void *x, tmx_type type, size_t i)
{
    return type == TMX_TYPE_BF16 ? bf16_to_f32(((const tmx_bf16 *)x)[i]) : ((const float *)x)[i];
}

typedef struct distance { double error, norm; int32_t n; bool differs; } distance;

/* NaN and infinity must be where they should. */
static void measure(distance *d, float got, double expected)
{
    if (isnan(expected) || isinf(expected)) {
        d->differs |= isnan(expected) ? !isnan(got) : (double)got != expected;
        return;
    }
    const double difference = (double)got - expected;
    if (!(fabs(difference) <= 1e30)) d->differs = true;
    d->error += difference * difference;
    d->norm += expected * expected;
    d->n++;
}

static bool is_close(const distance *d, enum bound bound)
{
    const double relative = d->norm > 0 ? sqrt(d->error / d->norm) : sqrt(d->error);
    if (bound == ROUNDED_BF16 && d->n < MANY) bound = FEW_BF16;
    if (relative > worst[bound]) worst[bound] = relative;
    if (d->differs || !(relative <= bounds[bound].limit)) {
        printf("relative error %.3g (limit %.3g)%s\n", relative, bounds[bound].limit,
               d->differs ? ", NaN or infinity differs" : "");
        return false;
    }
    return true;
}

static enum bound bound_of(tmx_type type) { return type == TMX_TYPE_BF16 ? ROUNDED_BF16 : EXACT_F32; }

static const tmx_type both_types[] = { TMX_TYPE_BF16, TMX_TYPE_F32 };

/* ---------------------------------------------------------------- device */

static void check_device(void)
{
    tmx_error err;
    gpu *other = NULL;
    const int32_t wrong[] = { -1, 1000 };
    for (int32_t i = 0; i < COUNT(wrong); i++) {
        char number[16];
        snprintf(number, sizeof number, " %d:", wrong[i]);
        const tmx_status status = gpu_open(&other, wrong[i], &err);
        report(status == TMX_E_DEVICE && strstr(err.text, number) != NULL, "open", err.text, wrong[i], 0, 0);
    }
    uint64_t n_free = 0, n_total = 0;
    const bool is_known = gpu_memory(g, &n_free, &n_total, &err) == TMX_OK;
    report(is_known && n_free > 0 && n_free <= n_total, "memory", "free and total", 0, 0, 0);
    void *data = NULL;
    if (!is_small) {               /* a sanitizer would report the refusal itself */
        const tmx_status status = gpu_alloc(g, &data, (uint64_t)1 << 46, &err);
        report(status == TMX_E_MEMORY && strstr(err.text, "70368744177664") != NULL && data == NULL, "alloc", "64 TiB", 0, 0, 0);
    }
    report(gpu_wait(g, &err) == TMX_OK, "alloc", "a refusal is not kept", 0, 0, 0);

    char *pinned = NULL;
    const size_t n = 1000003;
    const bool has_all = gpu_alloc(g, &data, n, &err) == TMX_OK && gpu_alloc_pinned(g, (void **)&pinned, 2 * n, &err) == TMX_OK;
    stop_at(has_all, "no memory");
    for (size_t i = 0; i < n; i++) pinned[i] = (char)random_u32();
    gpu_mark *begin = NULL, *end = NULL;
    stop_at(gpu_mark_create(g, &begin, &err) == TMX_OK && gpu_mark_create(g, &end, &err) == TMX_OK, "no marks");
    gpu_mark_set(g, begin);
    gpu_upload(g, data, pinned, n);
    gpu_mark_set(g, end);
    report(gpu_download(g, pinned + n, data, n, &err) == TMX_OK && memcmp(pinned, pinned + n, n) == 0, "copies",
           "there and back", (int32_t)n, 0, 0);
    report(gpu_mark_ms(g, begin, end) > 0, "marks", "no time passed", 0, 0, 0);
    gpu_mark_free(g, begin);
    gpu_mark_free(g, end);
    gpu_free_pinned(g, pinned);
    gpu_free(g, data);

    stop_at(gpu_open(&other, 0, &err) == TMX_OK, "no second device object");
    const gpu_place wrong_place = { .n_rows = 1, .n_heads = 4, .n_kv_heads = 2, .head_dim = 80, .n_ctx = 16 };
    gpu_decode_attention(other, &wrong_place, 1.0f, 0, NULL, NULL, NULL);
    report(gpu_wait(other, &err) == TMX_E_UNSUPPORTED && strstr(err.text, "80") != NULL, "kept failure", err.text, 0, 0, 0);
    report(gpu_alloc(other, &data, 16, &err) == TMX_E_UNSUPPORTED, "kept failure", "later work is refused", 0, 0, 0);
    gpu_close(other);
    gpu_close(NULL);
}

/* ---------------------------------------------------------------- rows */

static void check_embed(int32_t n_rows, int32_t n_embd)
{
    enum { N_VOCAB = 50 };
    values table = random_values((size_t)N_VOCAB * (size_t)n_embd, TMX_TYPE_BF16, 1.0f);
    int32_t *tokens = host_alloc((size_t)n_rows * sizeof *tokens);
    for (int32_t r = 0; r < n_rows; r++) tokens[r] = random_in(0, N_VOCAB);
    device_buffer d_tokens = device_copy(tokens, (size_t)n_rows * sizeof *tokens);
    device_buffer x = device_alloc((size_t)n_rows * (size_t)n_embd * sizeof(float));
    gpu_embed(g, table.device.data, d_tokens.data, n_rows, n_embd, 1.0f, x.data);
    float *got = download(&x);
    bool is_ok = true, is_scaled = true;
    for (int32_t r = 0; r < n_rows; r++) {
        is_ok &= memcmp(got + (size_t)r * (size_t)n_embd, table.x + (size_t)tokens[r] * (size_t)n_embd,
                        (size_t)n_embd * sizeof *got) == 0;
    }
    report(is_ok, "embed", "differs", n_rows, n_embd, 0);
    const float scale = 33.94112549695428f;
    gpu_embed(g, table.device.data, d_tokens.data, n_rows, n_embd, scale, x.data);
    float *scaled = download(&x);
    for (size_t i = 0; i < (size_t)n_rows * (size_t)n_embd; i++) is_scaled &= scaled[i] == scale * got[i];
    report(is_scaled, "embed", "scaled: differs", n_rows, n_embd, 0);
    free(scaled);
    free(got);
    free(tokens);
    device_free(&d_tokens);
    device_free(&x);
    values_free(&table);
}

static void check_rmsnorm(int32_t n_rows, int32_t n_embd, tmx_type type)
{
    const size_t n = (size_t)n_rows * (size_t)n_embd;
    const float eps = 1e-5f;
    values x = random_values(n, TMX_TYPE_F32, 3.0f), weight = random_values((size_t)n_embd, TMX_TYPE_F32, 1.0f);
    const int32_t nan_row = n_rows > 2 ? n_rows / 2 : -1;
    if (nan_row >= 0) {
        x.x[(size_t)nan_row * (size_t)n_embd + (size_t)n_embd / 2] = NAN;
        device_free(&x.device);
        values_upload(&x);
    }
    device_buffer out = device_alloc(n * type_bytes(type)), alone = device_alloc((size_t)n_embd * type_bytes(type));
    gpu_rmsnorm(g, x.device.data, weight.device.data, eps, n_rows, n_embd, out.data, type);
    void *got = download(&out);
    distance d = { 0 };
    for (int32_t r = 0; r < n_rows; r++) {
        const float *row = x.x + (size_t)r * (size_t)n_embd;
        double sum = 0;
        for (int32_t i = 0; i < n_embd; i++) sum += (double)row[i] * (double)row[i];
        const double scale = 1.0 / sqrt(sum / n_embd + (double)eps);
        for (int32_t i = 0; i < n_embd; i++) {
            measure(&d, get(got, type, (size_t)r * (size_t)n_embd + (size_t)i), (double)row[i] * scale * (double)weight.x[i]);
        }
    }
    report(is_close(&d, bound_of(type)), "rmsnorm", "differs", n_rows, n_embd, (int32_t)type);
    const size_t row_bytes = (size_t)n_embd * type_bytes(type), last = (size_t)(n_rows - 1);
    gpu_rmsnorm(g, (const float *)x.device.data + last * (size_t)n_embd, weight.device.data, eps, 1, n_embd, alone.data, type);
    void *got_alone = download(&alone);
    report(memcmp(got_alone, (char *)got + last * row_bytes, row_bytes) == 0, "rmsnorm", "a row alone has other bits", n_rows,
           n_embd, (int32_t)type);
    free(got_alone);
    free(got);
    device_free(&out);
    device_free(&alone);
    values_free(&x);
    values_free(&weight);
}

static void check_add_normed(int32_t n_rows, int32_t n_embd)
{
    const size_t n = (size_t)n_rows * (size_t)n_embd;
    const float eps = 1e-5f;
    values branch = random_values(n, TMX_TYPE_F32, 3.0f), weight = random_values((size_t)n_embd, TMX_TYPE_F32, 1.0f);
    values before = random_values(n, TMX_TYPE_F32, 1.0f);
    device_buffer x = device_copy(before.x, n * sizeof(float));
    gpu_add_normed(g, branch.device.data, weight.device.data, eps, n_rows, n_embd, x.data);
    float *got = download(&x);
    distance d = { 0 };
    for (size_t r = 0; r < (size_t)n_rows; r++) {
        const float *row = branch.x + r * (size_t)n_embd;
        double sum = 0;
        for (int32_t i = 0; i < n_embd; i++) sum += (double)row[i] * (double)row[i];
        const double scale = 1.0 / sqrt(sum / n_embd + (double)eps);
        for (size_t i = 0; i < (size_t)n_embd; i++) {
            const size_t at = r * (size_t)n_embd + i;
            measure(&d, got[at], (double)before.x[at] + (double)row[i] * scale * (double)weight.x[i]);
        }
    }
    report(is_close(&d, EXACT_F32), "add_normed", "differs", n_rows, n_embd, 0);
    free(got);
    device_free(&x);
    values_free(&branch), values_free(&weight), values_free(&before);
}

static void check_gate(int32_t n_rows, int32_t n_ff, tmx_type type, bool is_gelu)
{
    const size_t n = (size_t)n_rows * (size_t)n_ff;
    values x = random_values(2 * n, type, 3.0f);
    const float special[] = { 100.0f, -100.0f, NAN, INFINITY, -INFINITY, 0.0f, -20.0f, 20.0f };
    /* Times little: a product of 100 would be most of the norm, and its rounding alone the error. */
    for (size_t i = 0; i < 8 && i < (size_t)n_ff; i++) x.x[i] = special[i], x.x[(size_t)n_ff + i] *= 0.01f;
    device_free(&x.device);
    values_upload(&x);
    device_buffer out = device_alloc(n * type_bytes(type));
    (is_gelu ? gpu_geglu : gpu_swiglu)(g, x.device.data, n_rows, n_ff, out.data, type);
    void *got = download(&out);
    distance d = { 0 };
    for (size_t r = 0; r < (size_t)n_rows; r++) {
        for (size_t i = 0; i < (size_t)n_ff; i++) {
            const double gate = (double)x.x[2 * r * (size_t)n_ff + i], up = (double)x.x[(2 * r + 1) * (size_t)n_ff + i];
            const double t = is_gelu ? 2 * sqrt(2 / acos(-1)) * (gate + 0.044715 * gate * gate * gate) : gate;
            measure(&d, get(got, type, r * (size_t)n_ff + i), gate / (1.0 + exp(-t)) * up);
        }
    }
    report(is_close(&d, bound_of(type)), is_gelu ? "geglu" : "swiglu", "differs", n_rows, n_ff, (int32_t)type);
    free(got);
    device_free(&out);
    values_free(&x);
}

/* ---------------------------------------------------------------- RoPE, KV cache */

typedef struct geometry { int32_t n_heads, n_kv_heads, head_dim, n_rot; rope_style rope; } geometry;

enum { N_SEQS = 3 };

enum finish { PLAIN = 0, BIASED = 1, NORMED = 2, N_FINISHES = 4 };

/* A head of q, k or v before it is turned, in f64: + bias, then normed.  NULL: not. */
static void finish_oracle(const float *x, const float *bias, const float *norm, float eps, int32_t n, float *out)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        const double y = (double)x[i] + (bias != NULL ? (double)bias[i] : 0.0);
        sum += y * y;
    }
    const double scale = norm != NULL ? 1.0 / sqrt(sum / n + (double)eps) : 1.0;
    for (int32_t i = 0; i < n; i++) {
        out[i] = (float)(((double)x[i] + (bias != NULL ? (double)bias[i] : 0.0)) * scale * (norm != NULL ? (double)norm[i] : 1.0));
    }
}

/* Row r: a sequence and a position of its own; the last lies behind the cache and must not be written. */
static void check_place(const geometry *s, int32_t n_rows, tmx_type type, bool has_q, int finish)
{
    enum { N_CTX = 200, BEHIND = 1000000 };
    const int32_t n_q = has_q ? s->n_heads : 0, n_all = n_q + 2 * s->n_kv_heads;
    const size_t head_dim = (size_t)s->head_dim, row = (size_t)n_all * head_dim;
    const size_t cache_size = (size_t)N_SEQS * (size_t)s->n_kv_heads * N_CTX * head_dim;
    values qkv = random_values((size_t)n_rows * row, type, 1.0f);
    int32_t *positions = host_alloc((size_t)n_rows * sizeof *positions), *seqs = host_alloc((size_t)n_rows * sizeof *seqs);
    float *inverse_freq = host_alloc((size_t)s->n_rot * sizeof(float)), *angle_cos = host_alloc((size_t)s->n_rot * sizeof(float)),
          *angle_sin = host_alloc((size_t)s->n_rot * sizeof(float)), *turned = host_alloc(head_dim * sizeof *turned), *x = host_alloc(head_dim * sizeof *x);
    values bias = random_values((size_t)(s->n_heads + 2 * s->n_kv_heads) * head_dim, TMX_TYPE_F32, 3.0f);
    values norms = random_values(2 * head_dim, TMX_TYPE_F32, 1.0f);
    const float factor = finish == PLAIN ? 1.0f : 1.19f, eps = 1e-2f;
    for (int32_t i = 0; i < s->n_rot / 2; i++) inverse_freq[i] = (float)(1.0 / pow(10000.0, 2.0 * i / s->n_rot));
    for (int32_t r = 0; r < n_rows; r++) {
        positions[r] = r == n_rows - 1 ? BEHIND : (r * 7 + 3) % N_CTX;
        seqs[r] = r % N_SEQS;
    }
    device_buffer d_positions = device_copy(positions, (size_t)n_rows * 4), d_seqs = device_copy(seqs, (size_t)n_rows * 4);
    device_buffer d_freq = device_copy(inverse_freq, (size_t)(s->n_rot / 2) * 4);
    device_buffer q = device_alloc((size_t)n_rows * (size_t)s->n_heads * head_dim * 2), k = device_alloc(2 * cache_size),
        v = device_alloc(2 * cache_size);
    const gpu_place place = { .positions = d_positions.data, .seqs = d_seqs.data, .inverse_freq = d_freq.data, .n_rows = n_rows,
                              .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim, .n_rot = s->n_rot,
                              .rope = s->rope, .k = k.data, .v = v.data, .n_ctx = N_CTX, .rope_factor = factor, .norm_eps = eps,
                              .bias = finish & BIASED ? bias.device.data : NULL, .q_norm = finish & NORMED ? norms.device.data : NULL,
                              .k_norm = finish & NORMED ? (const float *)norms.device.data + head_dim : NULL };
    gpu_place_heads(g, &place, qkv.device.data, type, has_q ? q.data : NULL);
    tmx_bf16 *got_q = download(&q), *got_k = download(&k), *got_v = download(&v);
    size_t n_written = 0;
    distance d = { 0 };
    bool is_v_exact = true;
    for (int32_t r = 0; r < n_rows; r++) {
        rope_angles(positions[r], &(rope_table){ .frequency = inverse_freq, .n_pairs = s->n_rot / 2, .factor = factor }, angle_cos,
                    angle_sin);
        for (int32_t h = 0; h < n_all; h++) {
            const bool is_v = h >= n_q + s->n_kv_heads;
            const float *norm = !(finish & NORMED) || is_v ? NULL : norms.x + (h < n_q ? 0 : head_dim);
            finish_oracle(qkv.x + (size_t)r * row + (size_t)h * head_dim,
                          finish & BIASED ? bias.x + (size_t)(s->n_heads - n_q + h) * head_dim : NULL, norm, eps, s->head_dim, x);
            const int32_t kv_head = (h - n_q) % s->n_kv_heads;
            const size_t at = ((size_t)(seqs[r] * s->n_kv_heads + kv_head) * N_CTX + (size_t)(positions[r] % BEHIND)) * head_dim;
            if (h >= n_q && positions[r] >= N_CTX) continue;
            if (is_v) {
                for (size_t i = 0; i < head_dim; i++) is_v_exact &= got_v[at + i] == bf16_from_f32(x[i]);
                continue;
            }
            row_ops_get(TMX_ISA_SCALAR)->rope(x, angle_cos, angle_sin, s->n_rot, s->head_dim, s->rope, turned, TMX_TYPE_F32);
            const tmx_bf16 *got = h < n_q ? got_q + ((size_t)r * (size_t)n_q + (size_t)h) * head_dim : got_k + at;
            for (size_t i = 0; i < head_dim; i++) measure(&d, bf16_to_f32(got[i]), (double)turned[i]);
            n_written += h >= n_q ? head_dim : 0;
        }
    }
    for (size_t i = 0; i < cache_size; i++) n_written -= got_k[i] != 0xffff;
    report(is_close(&d, ROUNDED_BF16), "place_heads", "q or k differs", s->n_heads, s->head_dim, s->n_rot);
    report(is_v_exact, "place_heads", "v differs", s->n_heads, s->head_dim, s->n_rot);
    report(n_written == 0, "place_heads", "other positions of the cache were written", s->n_heads, s->head_dim, s->n_rot);
    free(got_q), free(got_k), free(got_v), free(positions), free(seqs), free(inverse_freq), free(angle_cos), free(angle_sin),
        free(turned), free(x);
    values_free(&bias), values_free(&norms);
    device_free(&d_positions), device_free(&d_seqs), device_free(&d_freq), device_free(&q), device_free(&k), device_free(&v);
    values_free(&qkv);
}

/* A prompt's last row is placed a second time, in f32 and without the rows beside it: k must get the bits that are there. */
static void check_placed_again(const geometry *s)
{
    const size_t n_kv = (size_t)(s->n_kv_heads * s->head_dim), n_q = (size_t)(s->n_heads * s->head_dim);
    const int32_t position = 5, zero = 0;
    values kv = random_values(2 * n_kv, TMX_TYPE_BF16, 1.0f), row = random_values(n_q + 2 * n_kv, TMX_TYPE_F32, 1.0f);
    values bias = random_values(n_q + 2 * n_kv, TMX_TYPE_F32, 3.0f), norms = random_values((size_t)s->head_dim, TMX_TYPE_F32, 1.0f);
    values freq = random_values((size_t)s->n_rot / 2, TMX_TYPE_F32, 1.0f);
    memcpy(row.x + n_q, kv.x, 2 * n_kv * sizeof *kv.x);
    device_free(&row.device);
    values_upload(&row);
    device_buffer p = device_copy(&position, 4), seq = device_copy(&zero, 4), q = device_alloc(2 * n_q), cache = device_alloc(24 * n_kv);
    const gpu_place place = { .positions = p.data, .seqs = seq.data, .inverse_freq = freq.device.data, .n_rows = 1, .n_heads = s->n_heads,
                              .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim, .n_rot = s->n_rot, .rope = s->rope, .rope_factor = 1.19f,
                              .bias = bias.device.data, .q_norm = norms.device.data, .k_norm = norms.device.data, .norm_eps = 1e-6f,
                              .k = cache.data, .v = (char *)cache.data + 12 * n_kv, .n_ctx = 6 };
    gpu_place_heads(g, &place, kv.device.data, TMX_TYPE_BF16, NULL);
    void *first = download(&cache);
    gpu_place_heads(g, &place, row.device.data, TMX_TYPE_F32, q.data);
    void *second = download(&cache);
    report(memcmp(first, second, cache.n_bytes) == 0, "place_heads", "placed again: other bits", s->n_heads, s->head_dim, s->n_rot);
    free(first), free(second);
    device_free(&p), device_free(&seq), device_free(&q), device_free(&cache);
    values_free(&kv), values_free(&row), values_free(&bias), values_free(&norms), values_free(&freq);
}

/* (sin, cos) turned by the angle is (0, 1): bf16 has room for a small deviation from 0, so the angle shows to 1e-6. */
static void check_angles(int32_t position)
{
    enum { DIM = 128, PAIRS = DIM / 2 };
    float row[3 * DIM] = { 0 }, angle_cos[PAIRS], angle_sin[PAIRS], inverse_freq[PAIRS];
    for (int32_t i = 0; i < PAIRS; i++) inverse_freq[i] = (float)(1.0 / pow(500000.0, 2.0 * i / DIM));
    rope_angles(position, &(rope_table){ .frequency = inverse_freq, .n_pairs = PAIRS, .factor = 1 }, angle_cos, angle_sin);
    memcpy(row, angle_sin, sizeof angle_sin);
    memcpy(row + PAIRS, angle_cos, sizeof angle_cos);
    const int32_t zero = 0;
    device_buffer qkv = device_copy(row, sizeof row), p = device_copy(&position, 4), s = device_copy(&zero, 4),
                  freq = device_copy(inverse_freq, sizeof inverse_freq), q = device_alloc(2 * DIM), kv = device_alloc(4 * DIM);
    const gpu_place place = { .positions = p.data, .seqs = s.data, .inverse_freq = freq.data, .n_rows = 1, .n_heads = 1,
                              .n_kv_heads = 1, .head_dim = DIM, .n_rot = DIM, .rope = ROPE_HALF_SPLIT, .rope_factor = 1, .k = kv.data,
                              .v = (char *)kv.data + 2 * DIM, .n_ctx = 1 };
    gpu_place_heads(g, &place, qkv.data, TMX_TYPE_F32, q.data);
    tmx_bf16 *got = download(&q);
    double most = 0;
    for (int32_t i = 0; i < PAIRS; i++) {
        const double error = fabs((double)bf16_to_f32(got[i]));
        if (!(error <= most)) most = error;
    }
    if (!(most <= 1e-6)) printf("angle error %.3g\n", most);
    report(most <= 1e-6, "place_heads", "angle", position, 0, 0);
    free(got);
    device_free(&qkv), device_free(&p), device_free(&s), device_free(&freq), device_free(&q), device_free(&kv);
}

/* ---------------------------------------------------------------- products */

static double dot(const float *x, const float *w, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i] * (double)w[i];
    return sum;
}

static void check_product(int32_t n_rows, int32_t n_out, int32_t n_in, tmx_type y_type, bool is_added, int32_t pad)
{
    const size_t x_stride = (size_t)(n_in + pad), y_stride = (size_t)(n_out + pad), rows = (size_t)n_rows;
    const size_t y_bytes = type_bytes(y_type);
    values w = random_values((size_t)n_out * (size_t)n_in, TMX_TYPE_BF16, 1.0f);
    values x = random_values(rows * x_stride, TMX_TYPE_BF16, 1.0f);
    values before = random_values(rows * y_stride, y_type, 10.0f);
    device_buffer y = device_alloc(rows * y_stride * y_bytes);
    device_buffer scratch = device_alloc(rows * (2 * (size_t)n_in + y_bytes * (size_t)n_out));
    gpu_weight weight = { .data = w.device.data, .n_out = n_out, .n_in = n_in };
    void *first = NULL;
    /* Whole and untuned, then tuned: whole, and in cuts of the sizes a chunk can have. */
    const int32_t cuts[] = { 0, 0, 1, 3, 7, 128, 777 };
    for (int32_t i = 0; i < COUNT(cuts); i++) {
        const int32_t step = cuts[i] == 0 ? n_rows : cuts[i];
        if (cuts[i] >= n_rows || (cuts[i] == 1 && n_rows > 300)) continue;
        tmx_error err = { 0 };
        if (i == 1 && n_rows >= 2) {
            const tmx_status status = gpu_weight_tune(g, &weight, n_rows, y_type, is_added, scratch.data, &err);
            report(status == TMX_OK, "tune", err.text, n_rows, n_out, n_in);
            if (n_rows > 500) {
                gpu_weight_describe(&weight, err.text, sizeof err.text);
                printf("%s\n", err.text);
            }
        }
        CUDA_OK(cudaMemcpy(y.data, before.device.data, y.n_bytes, cudaMemcpyDeviceToDevice));
        CUDA_OK(cudaDeviceSynchronize());
        for (int32_t r = 0; r < n_rows; r += step) {
            gpu_product(g, &weight, (char *)x.device.data + 2 * (size_t)r * x_stride, x_stride, min_i32(step, n_rows - r),
                        (char *)y.data + (size_t)r * y_stride * y_bytes, y_stride, y_type, is_added);
        }
        void *got = download(&y);
        if (first != NULL) {
            report(memcmp(first, got, y.n_bytes) == 0, "product", i == 1 ? "tuning changed bits" : "cuts change bits", n_rows,
                   n_out, cuts[i]);
            free(got);
        } else {
            first = got;
        }
    }
    distance d = { 0 };
    for (int32_t i = 0; i < 4000; i++) {
        const size_t r = i < n_out ? rows - 1 : (size_t)random_in(0, n_rows), o = (size_t)(i < n_out ? i : random_in(0, n_out));
        const double old = is_added ? (double)before.x[r * y_stride + o] : 0.0;
        measure(&d, get(first, y_type, r * y_stride + o), old + dot(x.x + r * x_stride, w.x + o * (size_t)n_in, n_in));
    }
    report(is_close(&d, y_type == TMX_TYPE_BF16 ? ROUNDED_BF16 : PRODUCT_F32), "product", "differs", n_rows, n_out, n_in);
    bool is_between_kept = true;
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = r * y_stride + (size_t)n_out; i < (r + 1) * y_stride; i++) {
            is_between_kept &= get(first, y_type, i) == before.x[i];
        }
    }
    report(is_between_kept, "product", "wrote between the rows", n_rows, n_out, n_in);
    free(first);
    values_free(&w), values_free(&x), values_free(&before);
    device_free(&y), device_free(&scratch);
}

static void check_row_product(int32_t n_out, int32_t n_in, bool is_added)
{
    enum { MOST_ROWS = 8 };
    values w = random_values((size_t)n_out * (size_t)n_in, TMX_TYPE_BF16, 1.0f);
    values x = random_values((size_t)MOST_ROWS * (size_t)n_in, TMX_TYPE_F32, 1.0f);
    values before = random_values((size_t)MOST_ROWS * (size_t)n_out, TMX_TYPE_F32, 10.0f);
    const gpu_weight weight = { .data = w.device.data, .n_out = n_out, .n_in = n_in };
    float *all = NULL;
    for (int32_t n_rows = MOST_ROWS; n_rows >= 1; n_rows--) {
        device_buffer y = device_copy(before.x, (size_t)n_rows * (size_t)n_out * sizeof(float));
        gpu_row_product(g, &weight, x.device.data, n_rows, y.data, is_added);
        float *got = download(&y);
        if (all != NULL) {
            report(memcmp(got, all, y.n_bytes) == 0, "row product", "n_rows changes bits", n_rows, n_out, n_in);
            free(got);
        } else {
            all = got;
        }
        device_free(&y);
    }
    distance d = { 0 };
    for (int32_t i = 0; i < 3000; i++) {
        const size_t r = (size_t)(i % MOST_ROWS), o = (size_t)(i < 8 * n_out ? i / 8 : random_in(0, n_out));
        const double old = is_added ? (double)before.x[r * (size_t)n_out + o] : 0.0;
        measure(&d, all[r * (size_t)n_out + o], old + dot(x.x + r * (size_t)n_in, w.x + o * (size_t)n_in, n_in));
    }
    report(is_close(&d, EXACT_F32), "row product", "differs", n_out, n_in, is_added);
    free(all);
    values_free(&w), values_free(&x), values_free(&before);
}

/* ---------------------------------------------------------------- weights */

static void check_fill(void)
{
    enum { N_IN = 1024 };
    static const struct { uint32_t type; int32_t n_out; } parts[] = {
        { BLOCK_BF16, 20000 }, { BLOCK_F16, 3 }, { BLOCK_Q8_0, 300 }, { BLOCK_Q4_0, 17 }, { BLOCK_F32, 1 },
    };
    matmul_source sources[COUNT(parts)];
    int32_t n_out = 0;
    for (int32_t i = 0; i < COUNT(parts); i++) {
        const block_format *format = block_format_find(parts[i].type);
        const size_t n_bytes = block_row_bytes(format, N_IN) * (size_t)parts[i].n_out;
        unsigned char *data = host_alloc(n_bytes);
        for (size_t b = 0; b < n_bytes; b++) data[b] = (unsigned char)random_u32();
        /* f16 scales, or values, near 0.07 */
        for (size_t b = 0; b + 1 < n_bytes; b += (size_t)format->n_bytes) data[b + 1] = 0x2c;
        for (size_t b = 0; parts[i].type == BLOCK_F32 && b < n_bytes; b += 4) data[b + 3] = 0x3f;
        sources[i] = (matmul_source){ .data = data, .type = parts[i].type, .n_out = parts[i].n_out, .n_in = N_IN };
        n_out += parts[i].n_out;
    }
    device_buffer data = device_alloc(gpu_weight_bytes(n_out, N_IN));
    gpu_weight weight = { .data = data.data, .n_out = n_out, .n_in = N_IN };
    tmx_pool *pool = NULL;
    tmx_error err = { 0 };
    stop_at(tmx_pool_create(&pool, 0, &err) == TMX_OK, err.text);
    report(gpu_weight_fill(g, &weight, sources, COUNT(parts), pool, &err) == TMX_OK, "fill", err.text, n_out, N_IN, 0);
    tmx_bf16 *got = download(&data), *at = got;
    float row[N_IN];
    bool is_ok = true;
    for (int32_t i = 0; i < COUNT(parts); i++) {
        const block_format *format = block_format_find(parts[i].type);
        for (int32_t r = 0; r < parts[i].n_out; r++, at += N_IN) {
            format->to_f32((const char *)sources[i].data + (size_t)r * block_row_bytes(format, N_IN), row, N_IN);
            for (int32_t j = 0; j < N_IN; j++) {
                const tmx_bf16 expected = bf16_from_f32(row[j]);
                is_ok &= at[j] == expected || (isnan(row[j]) && isnan(bf16_to_f32(at[j]))) || fabsf(row[j]) < 1.2e-38f;
            }
        }
    }
    report(is_ok, "fill", "differs from rounding the expanded blocks", n_out, N_IN, 0);
    weight.n_out--;
    report(gpu_weight_fill(g, &weight, sources, COUNT(parts), pool, &err) == TMX_E_ARG, "fill", "wrong number of rows", n_out,
           N_IN, 0);
    weight.n_out++, weight.n_in--;
    report(gpu_weight_fill(g, &weight, sources, COUNT(parts), pool, &err) == TMX_E_ARG, "fill", "wrong depth", n_out, N_IN, 0);
    weight.n_in++, sources[1].type = BLOCK_I8;
    const tmx_status status = gpu_weight_fill(g, &weight, sources, COUNT(parts), pool, &err);
    report(status == TMX_E_UNSUPPORTED && strstr(err.text, "source 1") != NULL, "fill", "a type without expansion", n_out, N_IN, 0);
    for (int32_t i = 0; i < COUNT(parts); i++) free((void *)(uintptr_t)sources[i].data);
    free(got);
    device_free(&data);
    tmx_pool_free(pool);
}

static void check_random(void)
{
    enum { N_OUT = 777, N_IN = 1000, N = N_OUT * N_IN };
    device_buffer data = device_alloc(gpu_weight_bytes(N_OUT, N_IN));
    const gpu_weight weight = { .data = data.data, .n_out = N_OUT, .n_in = N_IN };
    tmx_bf16 *got[3];
    for (int i = 0; i < 3; i++) {
        poison(&data);
        gpu_weight_random(g, &weight, 0.02f, i == 2 ? 8 : 7);
        got[i] = download(&data);
    }
    report(memcmp(got[0], got[1], (size_t)2 * N) == 0, "random", "the same seed gave other numbers", N_OUT, N_IN, 0);
    report(memcmp(got[0], got[2], (size_t)2 * N) != 0, "random", "another seed gave the same numbers", N_OUT, N_IN, 0);
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) {
        const double x = (double)bf16_to_f32(got[0][i]);
        sum += x, squares += x * x;
    }
    report(fabs(sum / N) < 1e-4 && fabs(sqrt(squares / N) - 0.02) < 1e-4, "random", "mean or deviation", N_OUT, N_IN, 0);
    for (int i = 0; i < 3; i++) free(got[i]);
    device_free(&data);
}

/* ---------------------------------------------------------------- experts */

/* Scores of a few values, so that many are equal; the choice in f64 by the definition. */
static void check_choose(int32_t n_rows, int32_t n_experts, int32_t n_used)
{
    const size_t n = (size_t)n_rows * (size_t)n_used;
    values scores = random_values((size_t)n_rows * (size_t)n_experts, TMX_TYPE_F32, 2.0f);
    for (size_t i = 0; i < scores.n; i++) {
        if (i / (size_t)n_experts % 2 == 0) scores.x[i] = floorf(scores.x[i]);
    }
    device_free(&scores.device);
    values_upload(&scores);
    device_buffer out = device_alloc(n * sizeof(gpu_choice));
    gpu_choose_experts(g, scores.device.data, n_rows, n_experts, n_used, out.data);
    gpu_choice *got = download(&out);
    distance d = { 0 };
    bool is_right = true;
    for (int32_t r = 0; r < n_rows; r++) {
        const float *s = scores.x + (size_t)r * (size_t)n_experts;
        gpu_choice *chosen = got + (size_t)r * (size_t)n_used;
        double sum = 0;
        int32_t n_found = 0;
        for (int32_t e = 0; e < n_experts; e++) {
            int32_t n_better = 0;
            for (int32_t o = 0; o < n_experts; o++) n_better += s[o] > s[e] || (s[o] == s[e] && o < e);
            if (n_better >= n_used) continue;
            is_right &= chosen[n_found++].expert == e;
            sum += exp((double)s[e]);
        }
        for (int32_t i = 0; is_right && i < n_used; i++) measure(&d, chosen[i].weight, exp((double)s[chosen[i].expert]) / sum);
    }
    report(is_right, "choose", "other experts", n_rows, n_experts, n_used);
    report(is_close(&d, EXACT_F32), "choose", "weights differ", n_rows, n_experts, n_used);
    free(got);
    device_free(&out);
    values_free(&scores);
}

typedef struct expert_case { int32_t n_rows, n_experts, n_used, n_out, n_in; } expert_case;

static gpu_groups groups_make(const expert_case *c, device_buffer *memory)
{
    const size_t n_places = (size_t)gpu_group_places(c->n_rows, c->n_experts, c->n_used);
    *memory = device_alloc((2 * (size_t)c->n_experts + 1 + n_places + (size_t)c->n_rows * (size_t)c->n_used) * sizeof(int32_t));
    gpu_groups groups = { .n_rows = c->n_rows, .n_experts = c->n_experts, .n_used = c->n_used, .begin = memory->data };
    groups.next = groups.begin + c->n_experts + 1;
    groups.rows = groups.next + c->n_experts;
    groups.places = groups.rows + n_places;
    return groups;
}

/* Every choice has a place of its own, in a tile of its expert; the other places have none. */
static void check_places_of(const expert_case *c, const gpu_groups *groups, const device_buffer *memory, const gpu_choice *chosen)
{
    int32_t *all = download(memory), n_taken = 0;
    const int32_t *begin = all, *rows = all + (groups->rows - groups->begin), *places = all + (groups->places - groups->begin);
    bool is_right = begin[0] == 0 && begin[c->n_experts] <= gpu_group_places(c->n_rows, c->n_experts, c->n_used);
    for (int32_t e = 0; e < c->n_experts; e++) is_right &= begin[e] % GPU_GROUP_ROWS == 0 && begin[e] <= begin[e + 1];
    for (int32_t i = 0; is_right && i < c->n_rows * c->n_used; i++) {
        const int32_t e = chosen[i].expert, p = places[i];
        is_right &= p >= begin[e] && p < begin[e + 1] && rows[p] == i / c->n_used;
    }
    for (int64_t p = 0; p < gpu_group_places(c->n_rows, c->n_experts, c->n_used); p++) n_taken += rows[p] >= 0;
    report(is_right && n_taken == c->n_rows * c->n_used, "group", "places", c->n_rows, c->n_experts, c->n_used);
    free(all);
}

/* The sum of a row's experts in f64, and the kernels' by way of places and, for the last row, without them. */
static void check_experts(const expert_case *c, tmx_type type)
{
    const size_t n_in = (size_t)c->n_in, n_out = (size_t)c->n_out, n = (size_t)c->n_rows * (size_t)c->n_used, last = (size_t)c->n_rows - 1;
    const size_t n_places = (size_t)gpu_group_places(c->n_rows, c->n_experts, c->n_used);
    values w = random_values((size_t)c->n_experts * n_out * n_in, TMX_TYPE_BF16, 1.0f);
    values x = random_values((size_t)c->n_rows * n_in, TMX_TYPE_BF16, 1.0f), sums = random_values((size_t)c->n_rows * n_out, TMX_TYPE_F32, 1.0f);
    values scores = random_values((size_t)c->n_rows * (size_t)c->n_experts, TMX_TYPE_F32, 1.0f);
    for (size_t r = 0; r < (size_t)c->n_rows; r++) scores.x[r * (size_t)c->n_experts] += 1.0f;     /* a favourite: several tiles */
    device_free(&scores.device);
    values_upload(&scores);
    const gpu_weight weight = { .data = w.device.data, .n_out = c->n_experts * c->n_out, .n_in = c->n_in };
    device_buffer memory, chosen = device_alloc(n * sizeof(gpu_choice)), y = device_alloc(n_places * n_out * type_bytes(type));
    device_buffer own = device_alloc(n_places * n_in * 2), again = device_alloc(n_places * n_out * type_bytes(type));
    const gpu_groups groups = groups_make(c, &memory);
    gpu_choose_experts(g, scores.device.data, c->n_rows, c->n_experts, c->n_used, chosen.data);
    gpu_group_rows(g, chosen.data, &groups);
    gpu_choice *choice = download(&chosen);
    check_places_of(c, &groups, &memory, choice);
    gpu_grouped_product(g, &weight, &groups, x.device.data, true, y.data, type);
    int32_t *ints = download(&memory), *places = ints + (groups.places - groups.begin);
    void *got = download(&y);
    distance d = { 0 };
    for (int32_t k = 0; k < 3000; k++) {
        const size_t i = k < 1000 ? n - 1 - (size_t)k % n : (size_t)random_in(0, (int32_t)n), o = (size_t)random_in(0, c->n_out);
        const double expected = dot(x.x + i / (size_t)c->n_used * n_in, w.x + ((size_t)choice[i].expert * n_out + o) * n_in, c->n_in);
        measure(&d, get(got, type, (size_t)places[i] * n_out + o), expected);
    }
    report(is_close(&d, type == TMX_TYPE_BF16 ? ROUNDED_BF16 : PRODUCT_F32), "grouped product", "differs", c->n_rows, c->n_out, c->n_in);

    /* A place's own rows, copied there: the same bits. */
    for (size_t i = 0; i < n; i++) {
        CUDA_OK(cudaMemcpy((char *)own.data + 2 * (size_t)places[i] * n_in, (char *)x.device.data + 2 * (i / (size_t)c->n_used) * n_in,
                           2 * n_in, cudaMemcpyDeviceToDevice));
    }
    CUDA_OK(cudaDeviceSynchronize());
    gpu_grouped_product(g, &weight, &groups, own.data, false, again.data, type);
    void *second = download(&again);
    bool is_same = true;
    for (size_t i = 0; i < n; i++) {
        const size_t at = (size_t)places[i] * n_out * type_bytes(type);
        is_same &= memcmp((char *)got + at, (char *)second + at, n_out * type_bytes(type)) == 0;
    }
    report(is_same, "grouped product", "ungathered: other bits", c->n_rows, c->n_out, c->n_in);

    /* The last row alone: the same bits, at another place. */
    const expert_case one = { 1, c->n_experts, c->n_used, c->n_out, c->n_in };
    device_buffer few;
    const gpu_groups alone = groups_make(&one, &few);
    gpu_group_rows(g, (const gpu_choice *)chosen.data + last * (size_t)c->n_used, &alone);
    gpu_grouped_product(g, &weight, &alone, (char *)x.device.data + 2 * last * n_in, true, again.data, type);
    int32_t *few_ints = download(&few), *few_places = few_ints + (alone.places - alone.begin);
    void *third = download(&again);
    is_same = true;
    for (size_t i = 0; i < (size_t)c->n_used; i++) {
        const size_t a = (size_t)few_places[i] * n_out, b = (size_t)places[last * (size_t)c->n_used + i] * n_out;
        is_same &= memcmp((char *)third + a * type_bytes(type), (char *)got + b * type_bytes(type), n_out * type_bytes(type)) == 0;
    }
    report(is_same, "grouped product", "a row alone has other bits", c->n_rows, c->n_out, c->n_in);

    if (type == TMX_TYPE_F32) {
        device_buffer x_sum = device_copy(sums.x, sums.n * sizeof(float));
        gpu_add_experts(g, chosen.data, groups.places, c->n_rows, c->n_used, y.data, c->n_out, x_sum.data);
        float *total = download(&x_sum);
        distance d_sum = { 0 };
        for (int32_t k = 0; k < 500; k++) {
            const size_t r = k < 100 ? last : (size_t)random_in(0, c->n_rows), o = (size_t)random_in(0, c->n_out);
            double expected = (double)sums.x[r * n_out + o];
            for (size_t i = r * (size_t)c->n_used; i < (r + 1) * (size_t)c->n_used; i++) {
                expected += (double)choice[i].weight
                          * dot(x.x + r * n_in, w.x + ((size_t)choice[i].expert * n_out + o) * n_in, c->n_in);
            }
            measure(&d_sum, total[r * n_out + o], expected);
        }
        report(is_close(&d_sum, PRODUCT_F32), "add experts", "differs", c->n_rows, c->n_out, c->n_used);
        free(total);
        device_free(&x_sum);
    }

    /* Few rows: as gpu_row_product with each chosen expert's weight. */
    values row = random_values((size_t)c->n_used * n_in, TMX_TYPE_F32, 1.0f);
    device_buffer rows_y = device_alloc((size_t)c->n_used * n_out * 4), one_y = device_alloc(n_out * 4);
    is_same = true;
    for (int is_shared = 0; is_shared < 2; is_shared++) {
        gpu_chosen_product(g, &weight, c->n_experts, chosen.data, c->n_used, row.device.data, is_shared ? 0 : n_in, rows_y.data);
        float *all = download(&rows_y);
        for (size_t i = 0; i < (size_t)c->n_used; i++) {
            const gpu_weight own_weight = { .data = (char *)w.device.data + 2 * (size_t)choice[i].expert * n_out * n_in, .n_out = c->n_out, .n_in = c->n_in };
            gpu_row_product(g, &own_weight, (const float *)row.device.data + (is_shared ? 0 : i * n_in), 1, one_y.data, false);
            float *alone_y = download(&one_y);
            is_same &= memcmp(alone_y, all + i * n_out, n_out * 4) == 0;
            free(alone_y);
        }
        free(all);
    }
    report(is_same, "chosen product", "other bits than the row product", c->n_experts, c->n_out, c->n_in);
    free(choice), free(ints), free(got), free(second), free(few_ints), free(third);
    device_free(&memory), device_free(&chosen), device_free(&y), device_free(&own), device_free(&again), device_free(&few), device_free(&rows_y),
        device_free(&one_y);
    values_free(&w), values_free(&x), values_free(&sums), values_free(&scores), values_free(&row);
}

/* ---------------------------------------------------------------- decoding */

typedef struct cache { int32_t n_ctx; tmx_bf16 *k, *v; device_buffer d_k, d_v; } cache;

/* out [head_dim] of one head, in f64. */
static void decode_oracle(const geometry *s, const cache *c, int32_t seq, int32_t position, int32_t n_window, int32_t head,
                          const float *q, float scale, double *out)
{
    const size_t first = n_window > 0 && position >= n_window ? (size_t)(position - n_window + 1) : 0;
    const size_t head_dim = (size_t)s->head_dim, kv_head = (size_t)(seq * s->n_kv_heads + head / (s->n_heads / s->n_kv_heads));
    const tmx_bf16 *k = c->k + kv_head * (size_t)c->n_ctx * head_dim, *v = c->v + kv_head * (size_t)c->n_ctx * head_dim;
    double *scores = host_alloc((size_t)(position + 1) * sizeof *scores), most = -INFINITY, sum = 0;
    for (size_t p = first; p <= (size_t)position; p++) {
        scores[p] = 0;
        for (size_t i = 0; i < head_dim; i++) scores[p] += (double)q[i] * (double)bf16_to_f32(k[p * head_dim + i]);
        scores[p] *= (double)scale;
        if (scores[p] > most) most = scores[p];
    }
    for (size_t i = 0; i < head_dim; i++) out[i] = 0;
    for (size_t p = first; p <= (size_t)position; p++) {
        const double weight = exp(scores[p] - most);
        sum += weight;
        for (size_t i = 0; i < head_dim; i++) out[i] += weight * (double)bf16_to_f32(v[p * head_dim + i]);
    }
    for (size_t i = 0; i < head_dim; i++) out[i] /= sum;
    free(scores);
}

/* Keys behind the positions stay NaN.  pad: further context, which may change nothing. */
static cache cache_make(const geometry *s, int32_t n_ctx, const int32_t *n_keys, int32_t n_seqs, const cache *like)
{
    const size_t n = (size_t)n_seqs * (size_t)s->n_kv_heads * (size_t)n_ctx * (size_t)s->head_dim, row = (size_t)s->head_dim;
    cache c = { .n_ctx = n_ctx, .k = host_alloc(2 * n), .v = host_alloc(2 * n) };
    memset(c.k, POISON, 2 * n);
    memset(c.v, POISON, 2 * n);
    for (int32_t h = 0; h < n_seqs * s->n_kv_heads; h++) {
        const size_t n_values = (size_t)n_keys[h / s->n_kv_heads] * row, at = (size_t)h * (size_t)n_ctx * row;
        for (size_t i = 0; i < n_values; i++) {
            c.k[at + i] = like != NULL ? like->k[(size_t)h * (size_t)like->n_ctx * row + i] : bf16_from_f32(random_normal());
            c.v[at + i] = like != NULL ? like->v[(size_t)h * (size_t)like->n_ctx * row + i] : bf16_from_f32(random_normal());
        }
    }
    c.d_k = device_copy(c.k, 2 * n);
    c.d_v = device_copy(c.v, 2 * n);
    return c;
}

static void cache_free(cache *c)
{
    free(c->k), free(c->v);
    device_free(&c->d_k), device_free(&c->d_v);
}

/* Rows: sequences n_rows - 1 .. 0 at the given positions; in a batch, alone, in a larger context, and from a graph that was
 * recorded at other positions. */
static void check_decode(const geometry *s, const int32_t *positions, int32_t n_rows, int32_t n_window)
{
    const float scale = 1.0f / sqrtf((float)s->head_dim);
    const size_t q_row = (size_t)s->n_heads * (size_t)s->head_dim;
    int32_t n_ctx = 1, seqs[8], n_keys[8], recorded[8];
    for (int32_t r = 0; r < n_rows; r++) {
        seqs[r] = n_rows - 1 - r;
        n_keys[seqs[r]] = positions[r] + 1;
        recorded[r] = positions[r] / 3;
        n_ctx = max_i32(n_ctx, positions[r] + 1);
    }
    values q = random_values((size_t)n_rows * q_row, TMX_TYPE_BF16, 2.0f);
    cache tight = cache_make(s, n_ctx, n_keys, n_rows, NULL), loose = cache_make(s, n_ctx + 1000, n_keys, n_rows, &tight);
    device_buffer d_positions = device_copy(positions, (size_t)n_rows * 4), d_seqs = device_copy(seqs, (size_t)n_rows * 4);
    device_buffer out = device_alloc((size_t)n_rows * q_row * sizeof(float));
    device_buffer scratch = device_alloc(gpu_decode_attention_bytes(n_rows, s->n_heads, s->n_kv_heads, s->head_dim, n_ctx + 1000));
    gpu_place place = { .positions = d_positions.data, .seqs = d_seqs.data, .n_rows = n_rows, .n_heads = s->n_heads,
                        .n_kv_heads = s->n_kv_heads,
                        .head_dim = s->head_dim, .k = tight.d_k.data, .v = tight.d_v.data, .n_ctx = n_ctx };
    gpu_decode_attention(g, &place, scale, n_window, q.device.data, out.data, scratch.data);
    float *all = download(&out);
    distance d = { 0 };
    double expected[256];
    for (int32_t r = 0; r < n_rows; r++) {
        for (int32_t h = 0; h < s->n_heads; h++) {
            const size_t at = (size_t)r * q_row + (size_t)h * (size_t)s->head_dim;
            decode_oracle(s, &tight, seqs[r], positions[r], n_window, h, q.x + at, scale, expected);
            for (size_t i = 0; i < (size_t)s->head_dim; i++) measure(&d, all[at + i], expected[i]);
        }
    }
    report(is_close(&d, DECODE), n_window > 0 ? "decode with a window" : "decode", "differs", s->n_heads, s->head_dim, positions[0]);

    place.k = loose.d_k.data, place.v = loose.d_v.data, place.n_ctx = n_ctx + 1000;
    poison(&out), poison(&scratch);
    for (int32_t r = 0; r < n_rows; r++) {
        gpu_place alone = place;
        alone.positions += r, alone.seqs += r, alone.n_rows = 1;
        gpu_decode_attention(g, &alone, scale, n_window, (const tmx_bf16 *)q.device.data + (size_t)r * q_row,
                             (float *)out.data + (size_t)r * q_row, scratch.data);
    }
    float *again = download(&out);
    report(memcmp(all, again, out.n_bytes) == 0, "decode", "alone in a larger context: other bits", s->n_heads, s->n_kv_heads,
           positions[0]);
    free(again);

    CUDA_OK(cudaMemcpy(d_positions.data, recorded, (size_t)n_rows * 4, cudaMemcpyHostToDevice));
    CUDA_OK(cudaDeviceSynchronize());
    gpu_graph *graph = NULL;
    tmx_error err = { 0 };
    gpu_graph_begin(g);
    gpu_decode_attention(g, &place, scale, n_window, q.device.data, out.data, scratch.data);
    stop_at(gpu_graph_end(g, &graph, &err) == TMX_OK, err.text);
    gpu_graph_run(g, graph);
    wait_ok();
    CUDA_OK(cudaMemcpy(d_positions.data, positions, (size_t)n_rows * 4, cudaMemcpyHostToDevice));
    CUDA_OK(cudaDeviceSynchronize());
    poison(&out);
    gpu_graph_run(g, graph);
    again = download(&out);
    report(memcmp(all, again, out.n_bytes) == 0, "decode", "graph at moved positions: other bits", s->n_heads, s->n_kv_heads,
           positions[0]);
    gpu_graph_free(g, graph);
    free(again), free(all);
    values_free(&q);
    cache_free(&tight), cache_free(&loose);
    device_free(&d_positions), device_free(&d_seqs), device_free(&out), device_free(&scratch);
}

/* A random rule; draws in the middle, so that sums in another order choose the same. */
static sample_rule random_rule(bool is_greedy)
{
    sample_rule rule = { .temperature = 0, .draw = (random_in(0, 1 << 20) + 0.5) / (1 << 20) };
    if (is_greedy) return rule;
    static const float temperatures[] = { 0.05f, 0.7f, 1, 3, 100 };
    rule.temperature = temperatures[random_in(0, COUNT(temperatures))];
    if (random_in(0, 2) == 0) rule.top_k = random_in(1, 3000);
    if (random_in(0, 2) == 0) rule.top_p = (float)random_in(1, 1000) * 1e-3f;
    if (random_in(0, 3) == 0) rule.min_p = (float)random_in(1, 1000) * 1e-3f;
    return rule;
}

static void check_sample(int32_t n)
{
    values x = random_values((size_t)n, TMX_TYPE_F32, 3.0f);
    const size_t n_scratch = gpu_sample_bytes(n);
    sample_candidate *candidates = host_alloc((size_t)n * sizeof *candidates);
    device_buffer token = device_alloc(4), scratch = device_alloc(n_scratch);
    for (int way = 0; way < 5; way++) {
        for (int32_t i = 0; i < n; i++) {
            if (way == 1 && random_in(0, 3) == 0) x.x[i] = random_in(0, 2) == 0 ? 7.0f : -7.0f;        /* ties */
            if (way == 2) x.x[i] = i % 2 == 0 ? 0.0f : -0.0f;
        }
        static const float strange[] = { NAN, INFINITY, -INFINITY };
        if (way > 2) x.x[random_in(0, n)] = strange[random_in(0, 3)];
        device_buffer logits = device_copy(x.x, (size_t)n * 4);
        for (int k = 0; k < 12; k++) {
            const sample_rule rule = random_rule(k < 2);
            const int32_t expected = way > 2 ? -1 : sample_choose(&rule, x.x, n, candidates);
            gpu_sample(g, logits.data, n, &rule, token.data, scratch.data);
            int32_t *got = download(&token);
            report(*got == expected, "sample", k < 2 ? "greedy" : "drawn", n, way, *got);
            free(got);
        }
        device_free(&logits);
        if (way > 2) values_free(&x), x = random_values((size_t)n, TMX_TYPE_F32, 3.0f);
    }
    device_free(&token);
    device_free(&scratch);
    free(candidates);
    values_free(&x);
}

/* ---------------------------------------------------------------- all of it */

static void check_rows(void)
{
    static const int32_t widths[] = { 1, 4, 5, 8, 9, 127, 576, 1024, 1028, 4096, 4104, 8192, 16384, 33000 };
    static const int32_t some_rows[] = { 1, 3, 65 };
    for (int32_t i = 0; i < COUNT(widths); i++) {
        for (int32_t r = 0; r < COUNT(some_rows); r++) {
            check_embed(some_rows[r], widths[i]);
            check_add_normed(some_rows[r], widths[i]);
            for (int t = 0; t < 2; t++) {
                check_rmsnorm(some_rows[r], widths[i], both_types[t]);
                check_gate(some_rows[r], widths[i], both_types[t], false);
                check_gate(some_rows[r], widths[i], both_types[t], true);
            }
        }
    }
}

static void check_places(void)
{
    static const geometry geometries[] = {
        { 1, 1, 64, 2, ROPE_INTERLEAVED }, { 1, 1, 64, 2, ROPE_HALF_SPLIT },
        { 9, 3, 64, 64, ROPE_INTERLEAVED }, { 9, 3, 64, 64, ROPE_HALF_SPLIT },
        { 32, 8, 128, 128, ROPE_INTERLEAVED }, { 32, 8, 128, 128, ROPE_HALF_SPLIT },
        { 4, 2, 80, 20, ROPE_HALF_SPLIT }, { 4, 2, 80, 20, ROPE_INTERLEAVED },
        { 4, 4, 96, 32, ROPE_HALF_SPLIT }, { 4, 4, 96, 32, ROPE_INTERLEAVED },
        { 3, 1, 6, 4, ROPE_HALF_SPLIT }, { 3, 1, 6, 6, ROPE_INTERLEAVED },
        { 2, 1, 256, 128, ROPE_HALF_SPLIT },
    };
    static const int32_t positions[] = { 0, 1, 4095, 131071, 999999, 1000000, 2000003 };
    for (int32_t i = 0; i < COUNT(geometries); i++) {
        for (int t = 0; t < 2; t++) {
            for (int finish = PLAIN; finish < N_FINISHES; finish++) {
                check_place(&geometries[i], finish == PLAIN ? 1 : 3, both_types[t], true, finish);
                check_place(&geometries[i], 77, both_types[t], true, finish);
                check_place(&geometries[i], 5, both_types[t], false, finish);
            }
        }
        check_placed_again(&geometries[i]);
    }
    for (int32_t i = 0; i < COUNT(positions); i++) check_angles(positions[i]);
}

static void check_products(void)
{
    check_product(1, 8, 8, TMX_TYPE_BF16, false, 0);
    check_product(2, 64, 64, TMX_TYPE_F32, false, 0);
    check_product(130, 1032, 72, TMX_TYPE_BF16, false, 8);
    check_product(300, 960, 576, TMX_TYPE_BF16, false, 0);
    check_product(300, 576, 1536, TMX_TYPE_F32, true, 0);
    check_product(130, 100, 60, TMX_TYPE_F32, true, 4);
    if (is_small) return;
    check_product(1557, 6144, 4096, TMX_TYPE_BF16, false, 0);
    check_product(1557, 4096, 4096, TMX_TYPE_F32, true, 0);
    check_product(1557, 1024, 14336, TMX_TYPE_F32, true, 0);
    check_product(1557, 3072, 576, TMX_TYPE_BF16, false, 0);
}

static void check_row_products(void)
{
    static const int32_t shapes[][2] = { { 1, 8 }, { 5, 16 }, { 33, 57 }, { 4, 1 }, { 960, 576 }, { 576, 1536 }, { 1026, 4104 },
                                         { 4096, 4096 } };
    for (int32_t i = 0; i < COUNT(shapes) - is_small; i++) {
        check_row_product(shapes[i][0], shapes[i][1], false);
        check_row_product(shapes[i][0], shapes[i][1], true);
    }
}

static void check_all_experts(void)
{
    static const int32_t choices[][3] = { { 1, 1, 1 }, { 7, 5, 5 }, { 9, 31, 3 }, { 9, 32, 32 }, { 33, 33, 2 }, { 100, 128, 8 }, { 3, 1024, 40 } };
    static const expert_case cases[] = {
        { 1, 1, 1, 8, 8 }, { 3, 4, 2, 40, 24 }, { 130, 6, 2, 48, 104 }, { 300, 8, 3, 256, 64 }, { 200, 128, 8, 136, 200 }, { 700, 5, 5, 128, 32 },
    };
    for (int32_t i = 0; i < COUNT(choices); i++) check_choose(choices[i][0], choices[i][1], choices[i][2]);
    for (int32_t i = 0; i < COUNT(cases) - 2 * is_small; i++) {
        for (int t = 0; t < 2; t++) check_experts(&cases[i], both_types[t]);
    }
    if (!is_small) check_experts(&(expert_case){ 1557, 128, 8, 1536, 2048 }, TMX_TYPE_BF16);
    if (!is_small) check_experts(&(expert_case){ 1557, 128, 8, 2048, 768 }, TMX_TYPE_F32);
}

static void check_decodes(void)
{
    static const geometry geometries[] = {
        { .n_heads = 9, .n_kv_heads = 3, .head_dim = 64 }, { .n_heads = 32, .n_kv_heads = 8, .head_dim = 128 },
        { .n_heads = 2, .n_kv_heads = 2, .head_dim = 64 }, { .n_heads = 14, .n_kv_heads = 2, .head_dim = 128 },
        { .n_heads = 8, .n_kv_heads = 1, .head_dim = 128 }, { .n_heads = 9, .n_kv_heads = 1, .head_dim = 128 },
        { .n_heads = 16, .n_kv_heads = 1, .head_dim = 64 }, { .n_heads = 32, .n_kv_heads = 2, .head_dim = 128 },
        { .n_heads = 4, .n_kv_heads = 1, .head_dim = 256 }, { .n_heads = 16, .n_kv_heads = 2, .head_dim = 256 },
        { .n_heads = 3, .n_kv_heads = 3, .head_dim = 96 }, { .n_heads = 24, .n_kv_heads = 2, .head_dim = 96 },
    };
    static const int32_t windows[] = { 0, 1, 17, 255, 512 };
    static const int32_t positions[][3] = { { 0, 0, 0 }, { 1, 14, 15 }, { 16, 62, 63 }, { 64, 255, 17 }, { 256, 254, 3 },
                                            { 257, 511, 1023 }, { 2999, 777, 0 } };
    for (int32_t i = 0; i < COUNT(geometries); i++) {
        for (int32_t p = 0; p < COUNT(positions) - is_small; p++) {
            for (int32_t w = 0; w < COUNT(windows); w++) {
                if (w == 0 || i % 4 == w - 1 || i >= 8) check_decode(&geometries[i], positions[p], p == 0 ? 1 : 3, windows[w]);
            }
        }
    }
    static const int32_t deep[] = { 20000 };
    if (!is_small) check_decode(&geometries[0], deep, 1, 0);
    for (int32_t n = 1; n < 200000; n = n * 7 + 3) check_sample(n);
    check_sample(128256);
}

int main(int argc, char **argv)
{
    bool is_timing = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0) is_small = true;
        else if (strcmp(argv[i], "--time") == 0) is_timing = true;
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = strtoull(argv[++i], NULL, 10);
        else {
            fprintf(stderr, "usage: check_gpu_ops [--seed N] [--small] [--time]\n");
            return 1;
        }
    }
    tmx_error err;
    if (gpu_open(&g, 0, &err) != TMX_OK) {
        const bool has_device = gpu_count() > 0;
        printf("%s: %s\n0 passed, %d failed, %d skipped\n", has_device ? "FAILED" : "skipped", err.text, has_device, !has_device);
        return has_device;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("%s, seed %llu\n", gpu_name(g), (unsigned long long)seed);
    if (is_timing) {
        time_all();
        gpu_close(g);
        return 0;
    }
    check_device();
    check_rows();
    check_places();
    check_row_products();
    check_all_experts();
    check_decodes();
    if (!is_small) check_fill();
    check_random();
    check_products();
    for (int i = 0; i < N_BOUNDS; i++) {
        printf("%s: worst relative error %.3g (measured before %.3g, limit %.3g)\n", bounds[i].name, worst[i], bounds[i].measured,
               bounds[i].limit);
    }
    gpu_close(g);
    printf("%d passed, %d failed, 0 skipped\n", n_passed, n_failed);
    return n_failed != 0;
}
