/* check_gpu_minference - MInference on a GPU (attn/attn_gpu.h): attention over heads against the f64 oracle, the estimator against the
 * definition in f64.
 *
 *     check_gpu_minference [--seed N] [--cases N] [--small]      --small: shapes that fit a run under compute-sanitizer
 *
 * Attention runs over heads of every kind, made at random: what the oracle sees is head_keys_visible, so a key too many, one too few or
 * one twice shows.  An estimate in f32 and one in f64 may part where sums are nearly equal: a choice is judged by its number, by what is
 * forced, and by no key left out that is heavier than one kept by more than EPSILON.  Ends with one line: N passed, N failed, N skipped.
 * Without a GPU that runs key lists all of it is one skipped test. */
#include "gpu_oracle.h"
#include "attn/attn.h"
#include "attn/attn_gpu.h"
#include "base/pool.h"

#include <math.h>
#include <string.h>

static double worst_choice;
#define EPSILON 1e-4               /* relative, of the lightest sum kept */

enum { PAD = 8, MOST_HEADS = 16 };

static int32_t n_passed, n_failed;
static int64_t n_heads_chosen, n_heads_like_cpu;
static tmx_pool *pool;

typedef struct shape {
    int32_t n, n_heads, n_kv_heads, head_dim;
    tmx_type type;
} shape;

typedef struct instance {
    shape s;
    uint16_t *q, *k, *v;           /* host, dense: q [n][n_heads][d], k and v [n][n_kv_heads][d] */
    float *q_f32, *k_f32, *v_f32;
    device_buffer dq, dk, dv, dout, dlse, dheads, droom, scratch, estimate_scratch, dpairs;
    size_t q_row, kv_row, n_room;  /* elements from one position to the next on the device; bytes of a head's room */
    tmx_gpu_attention_seq seq;
    tmx_gpu_attention_params params;
    head_keys heads[MOST_HEADS];   /* host, over `room` */
    unsigned char *room;           /* with guards */
    unsigned char *out, *first_out;
} instance;

static bool report(const instance *in, const char *what, bool is_ok)
{
    const shape *s = &in->s;
    if (!is_ok) {
        printf("FAILED %s: %s d%d heads %d/%d n %d:", what, s->type == TMX_TYPE_F16 ? "f16" : "bf16", s->head_dim, s->n_heads, s->n_kv_heads, s->n);
        for (int32_t h = 0; h < s->n_heads; h++) {
            const head_keys *keys = &in->heads[h];
            printf(" %d(%d,%d,%d,%d)", (int)keys->kind, keys->n_columns, keys->n_distances, keys->n_sink, keys->n_window);
        }
        printf("\n");
    }
    n_passed += is_ok;
    n_failed += !is_ok;
    return is_ok;
}

static void instance_make(instance *in, const shape *s)
{
    memset(in, 0, sizeof *in);
    in->s = *s;
    const size_t d = (size_t)s->head_dim, n_q_heads = (size_t)s->n_heads, n_kv_heads = (size_t)s->n_kv_heads, n = (size_t)s->n;
    in->q_row = n_q_heads * d + PAD;
    in->kv_row = n_kv_heads * d + PAD;
    in->n_room = minference_room_bytes(s->n);
    in->q = random_values(s->type, n * n_q_heads * d, &in->q_f32);
    in->k = random_values(s->type, n * n_kv_heads * d, &in->k_f32);
    in->v = random_values(s->type, n * n_kv_heads * d, &in->v_f32);
    in->dq = device_alloc(2 * n * in->q_row);
    in->dk = device_alloc(2 * n * in->kv_row);
    in->dv = device_alloc(2 * n * in->kv_row);
    in->dout = device_alloc(2 * n * in->q_row);
    in->dlse = device_alloc(4 * n * n_q_heads);
    in->dheads = device_alloc(n_q_heads * sizeof *in->heads);
    in->droom = device_alloc(n_q_heads * in->n_room);
    in->dpairs = device_alloc(sizeof(uint64_t));
    in->seq = (tmx_gpu_attention_seq){ .q = in->dq.data, .k = in->dk.data, .v = in->dv.data, .out = in->dout.data,
                                       .lse = (float *)(void *)in->dlse.data, .n_q = s->n, .n_prompt = s->n };
    in->params = (tmx_gpu_attention_params){
        .type = s->type, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim,
        .q_pos_stride = in->q_row, .q_head_stride = d, .out_pos_stride = in->q_row, .out_head_stride = d,
        .k_pos_stride = in->kv_row, .k_head_stride = d, .v_pos_stride = in->kv_row, .v_head_stride = d,
        .pattern = { .kind = TMX_PATTERN_DENSE, .n_window = 1 }, .seqs = &in->seq, .n_seqs = 1,
    };
    in->params.scratch_bytes = tmx_gpu_attention_scratch_bytes(&in->params);
    in->scratch = device_alloc(in->params.scratch_bytes);
    in->params.scratch = in->scratch.data;
    in->estimate_scratch = device_alloc(gpu_minference_scratch_bytes(&in->params, s->n));
    in->room = host_alloc(n_q_heads * in->n_room + (size_t)2 * GUARD_BYTES);
}

/* After the values in in->q and in->k were changed, too. */
static void upload(instance *in)
{
    const shape *s = &in->s;
    const size_t d = (size_t)s->head_dim, n_q = (size_t)s->n_heads * d, n_kv = (size_t)s->n_kv_heads * d;
    upload_rows(in->dq.data, in->q_row, in->q, n_q, s->n);
    upload_rows(in->dk.data, in->kv_row, in->k, n_kv, s->n);
    upload_rows(in->dv.data, in->kv_row, in->v, n_kv, s->n);
}

static void instance_free(instance *in)
{
    void *const host[] = { in->q, in->k, in->v, in->q_f32, in->k_f32, in->v_f32, in->room, in->out, in->first_out };
    device_buffer *const device[] = { &in->dq, &in->dk, &in->dv, &in->dout, &in->dlse, &in->dheads, &in->droom, &in->scratch,
                                      &in->estimate_scratch, &in->dpairs };
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) device_free(device[i]);
}

/* The oracle's view: rows and keys in f32. */
static tmx_attention_params host_params(const instance *in, tmx_attention_seq *seq, int32_t q_begin, int32_t n_q)
{
    const shape *s = &in->s;
    const size_t d = (size_t)s->head_dim, n_q_row = (size_t)s->n_heads * d, n_kv_row = (size_t)s->n_kv_heads * d;
    *seq = (tmx_attention_seq){ .q = in->q_f32 + (size_t)q_begin * n_q_row, .k = in->k_f32, .v = in->v_f32, .q_begin = q_begin,
                                .n_q = n_q, .n_prompt = s->n };
    return (tmx_attention_params){
        .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_F32, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads,
        .head_dim = s->head_dim, .q_pos_stride = n_q_row, .q_head_stride = d, .k_pos_stride = n_kv_row, .k_head_stride = d,
        .v_pos_stride = n_kv_row, .v_head_stride = d, .pattern = { .kind = TMX_PATTERN_DENSE, .n_window = 1 }, .seqs = seq, .n_seqs = 1,
    };
}

/* ---------------------------------------------------------------- attention */

static unsigned char *room_of(const instance *in, int32_t head) { return in->room + GUARD_BYTES + (size_t)head * in->n_room; }

static bool chance(int32_t rarity) { return random_in(0, rarity) == 0; }

/* As estimators leave them: distance 0 and the own block are there.  Lines in bunches, too. */
static void random_head(const instance *in, int32_t head, head_keys_kind kind)
{
    static const int32_t rarities[] = { 1, 3, 20, 150, 1000, 5000 };
    const int32_t n = in->s.n, column_rarity = rarities[random_in(0, 6)], distance_rarity = rarities[random_in(0, 6)], n_near = random_in(0, 150);
    const int32_t bunch = chance(2) ? 1 : 70;
    head_keys *keys = (head_keys *)&in->heads[head];
    *keys = (head_keys){ .kind = kind, .n = n };
    if (kind == HEAD_WINDOW) {
        keys->n_sink = chance(3) ? random_in(0, n + 100) : random_in(0, 150);
        keys->n_window = 1 + (chance(3) ? random_in(0, n + 100) : random_in(0, 400));
    } else if (kind == HEAD_LINES) {
        int32_t *at = (int32_t *)(void *)room_of(in, head);
        keys->columns = at;
        for (int32_t i = 0; i < n; i++) {
            if (i / bunch % 2 == 0 && chance(column_rarity)) at[keys->n_columns++] = i;
        }
        at += keys->n_columns;
        keys->distances = at;
        for (int32_t i = n - 1; i >= 0; i--) {
            if (i == 0 || i < n_near || (i / bunch % 2 == 0 && chance(distance_rarity))) at[keys->n_distances++] = i;
        }
    } else if (kind == HEAD_BLOCKS) {
        uint64_t *blocks = (uint64_t *)(void *)room_of(in, head);
        keys->n_words = line_blocks_of(n) / 64 + 1;
        keys->blocks = blocks;
        memset(blocks, 0, in->n_room);
        for (int32_t m = 0; m < line_blocks_of(n); m++) {
            for (int32_t b = 0; b <= m; b++) {
                if (b == m || chance(column_rarity)) blocks[(size_t)m * (size_t)keys->n_words + (size_t)b / 64] |= (uint64_t)1 << b % 64;
            }
        }
    }
}

/* What points into the host's room points into the device's, or back. */
static const void *moved(const void *p, const unsigned char *from, const unsigned char *to)
{
    return p == NULL ? NULL : to + ((const unsigned char *)p - from);
}

static head_keys keys_moved(const head_keys *keys, const unsigned char *from, const unsigned char *to)
{
    head_keys other = *keys;
    other.columns = moved(keys->columns, from, to);
    other.distances = moved(keys->distances, from, to);
    other.blocks = moved(keys->blocks, from, to);
    return other;
}

static bool run_heads(const instance *in)
{
    tmx_error err;
    head_keys on_device[MOST_HEADS];
    const uint64_t before = 7;
    for (int32_t h = 0; h < in->s.n_heads; h++) on_device[h] = keys_moved(&in->heads[h], in->room + GUARD_BYTES, in->droom.data);
    CUDA_OK(cudaMemcpy(in->dheads.data, on_device, in->dheads.n_bytes, cudaMemcpyHostToDevice));
    CUDA_OK(cudaMemcpy(in->droom.data, in->room + GUARD_BYTES, in->droom.n_bytes, cudaMemcpyHostToDevice));
    CUDA_OK(cudaMemcpy(in->dpairs.data, &before, sizeof before, cudaMemcpyHostToDevice));
    const tmx_status status = gpu_attention_over_heads(&in->params, (const head_keys *)(const void *)in->dheads.data,
                                                       (uint64_t *)(void *)in->dpairs.data, NULL, &err);
    if (status != TMX_OK) printf("%s\n", err.text);
    CUDA_OK(cudaDeviceSynchronize());
    return status == TMX_OK;
}

static bool pairs_agree(const instance *in)
{
    uint64_t got, expected = 7;
    CUDA_OK(cudaMemcpy(&got, in->dpairs.data, sizeof got, cudaMemcpyDeviceToHost));
    for (int32_t h = 0; h < in->s.n_heads; h++) expected += (uint64_t)head_keys_pairs(&in->heads[h], 0);
    if (got != expected) printf("%llu pairs, expected %llu\n", (unsigned long long)got, (unsigned long long)expected);
    return got == expected;
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
    const tmx_attention_params params = host_params(in, &seq, row, 1);
    attn_heads_ref_f64(&params, in->heads, out, lse);
    const uint16_t *got = (const uint16_t *)(const void *)(in->out + GUARD_BYTES) + (size_t)row * in->q_row;
    at->errors[index] = row_error_of(in->s.type, got, out, n_heads * d, at->lse + (size_t)row * n_heads, lse, n_heads);
    free(out);
    free(lse);
}

static bool agrees_with_oracle(const instance *in)
{
    unsigned char *lse_bytes = device_download(&in->dlse);
    oracle_rows at = { .in = in, .lse = (const float *)(const void *)(lse_bytes + GUARD_BYTES) };
    for (int32_t i = 0; i < N_SAMPLES; i++) at.rows[i] = i == 0 ? in->s.n - 1 : i == 1 ? 0 : i == 2 ? min_i32(in->s.n - 1, 127) : random_in(0, in->s.n);
    pool_run(pool, N_SAMPLES, check_row, &at);
    free(lse_bytes);
    return errors_hold(in->s.type, &at.errors);
}

/* kind: of all heads; -1: of each its own. */
static void check_attention(const shape *s, int kind)
{
    static instance in;
    instance_make(&in, s);
    upload(&in);
    for (int32_t h = 0; h < s->n_heads; h++) random_head(&in, h, (head_keys_kind)(kind >= 0 ? kind : random_in(0, 4)));
    device_poison(&in.dout);
    if (report(&in, "run", run_heads(&in))) {
        in.out = device_download(&in.dout);
        report(&in, "guards", guard_zones_hold(in.out, &in.dout));
        report(&in, "oracle", agrees_with_oracle(&in));
        report(&in, "pairs", pairs_agree(&in));
        in.first_out = in.out;
        in.out = NULL;
        device_poison(&in.dout);
        report(&in, "again", run_heads(&in) && (in.out = device_download(&in.dout), memcmp(in.out, in.first_out, in.dout.n_bytes) == 0));
    }
    instance_free(&in);
}

/* ---------------------------------------------------------------- the estimate */

static void set(tmx_type type, uint16_t *x, float *as_f32, size_t i, float value)
{
    x[i] = put(type, value);
    as_f32[i] = get(type, x[i]);
}

/* Keys that all queries of a head like, near keys like the query; scores as sharp as asked for. */
static void plant(instance *in, float sharpness)
{
    const shape *s = &in->s;
    const size_t d = (size_t)s->head_dim, n_heads = (size_t)s->n_heads, n_kv = (size_t)s->n_kv_heads;
    for (size_t pos = 0; pos < (size_t)s->n; pos++) {
        const float angle = (float)pos * 0.02f;
        for (size_t h = 0; h < n_kv; h++) {
            const bool is_line = (pos * 7 + 13 * h) % 389 == 5;
            for (size_t i = 0; i < d; i++) {
                const size_t at = (pos * n_kv + h) * d + i;
                const float wave = i < d / 4 ? (i % 2 ? sinf(angle) : cosf(angle)) : 0.0f;
                set(s->type, in->k, in->k_f32, at, 0.5f * in->k_f32[at] + wave + (is_line && i >= d / 2 ? 1.0f : 0.0f));
            }
        }
        for (size_t i = 0; i < n_heads * d; i++) {
            const size_t at = pos * n_heads * d + i;
            const float wave = i % d < d / 4 ? (i % 2 ? sinf(angle) : cosf(angle)) : 0.0f;
            set(s->type, in->q, in->q_f32, at, sharpness * in->q_f32[at] + wave + (i % d >= d / 2 ? 0.8f : 0.0f));
        }
    }
}

/* Into poisoned memory, then to in->heads and in->room. */
static bool run_estimate(instance *in, const minference_head *chosen, size_t n_scratch)
{
    tmx_error err;
    device_poison(&in->dheads);
    device_poison(&in->droom);
    device_poison(&in->estimate_scratch);
    const tmx_status status = gpu_minference(&in->params, chosen, (head_keys *)(void *)in->dheads.data, (uint64_t *)(void *)in->droom.data,
                                             in->estimate_scratch.data, n_scratch, NULL, &err);
    if (status != TMX_OK) printf("%s\n", err.text);
    unsigned char *heads = device_download(&in->dheads);
    free(in->room);
    in->room = device_download(&in->droom);
    bool is_ok = status == TMX_OK && guard_zones_hold(heads, &in->dheads) && guard_zones_hold(in->room, &in->droom);
    for (int32_t h = 0; h < in->s.n_heads && is_ok; h++) {
        head_keys keys;
        memcpy(&keys, heads + GUARD_BYTES + (size_t)h * sizeof keys, sizeof keys);
        in->heads[h] = keys_moved(&keys, in->droom.data, in->room + GUARD_BYTES);
    }
    free(heads);
    return is_ok;
}

static double *numbers(size_t n)
{
    double *x = host_alloc(n * sizeof *x);
    memset(x, 0, n * sizeof *x);
    return x;
}

static const float *q_row(const instance *in, int32_t pos, int32_t head)
{
    return in->q_f32 + ((size_t)pos * (size_t)in->s.n_heads + (size_t)head) * (size_t)in->s.head_dim;
}

static const float *k_row(const instance *in, int32_t pos, int32_t head)
{
    const int32_t kv = head / (in->s.n_heads / in->s.n_kv_heads);
    return in->k_f32 + ((size_t)pos * (size_t)in->s.n_kv_heads + (size_t)kv) * (size_t)in->s.head_dim;
}

/* v and s of pattern/minference.h, straight from it. */
static void sums_f64(const instance *in, int32_t head, double *by_key, double *by_distance)
{
    const int32_t n = in->s.n, d = in->s.head_dim;
    double *z = numbers((size_t)n);
    for (int32_t row = n - MINFERENCE_PROBE; row < n; row++) {
        double max = -INFINITY, sum = 0;
        for (int32_t j = 0; j <= row; j++) {
            const float *q = q_row(in, row, head), *k = k_row(in, j, head);
            z[j] = 0;
            for (int32_t i = 0; i < d; i++) z[j] += (double)q[i] * (double)k[i];
            z[j] /= sqrt((double)d);
            max = fmax(max, z[j]);
        }
        for (int32_t j = 0; j <= row; j++) sum += z[j] = exp(z[j] - max);
        for (int32_t j = 0; j <= row; j++) {
            by_key[j] += z[j] / sum;
            by_distance[row - j] += z[j] / sum;
        }
    }
    free(z);
}

/* Is the list of n_kept, in one order, a right choice of those that weigh x?  The first n_first go before all. */
static bool is_choice(const double *x, int32_t n, int32_t n_first, const int32_t *list, int32_t n_kept, bool is_ascending)
{
    bool *has = host_alloc((size_t)n * sizeof *has);
    double least = INFINITY, dropped = 0;
    bool is_ok = true;
    memset(has, 0, (size_t)n * sizeof *has);
    for (int32_t i = 0; i < n_kept && is_ok; i++) {
        is_ok = list[i] >= 0 && list[i] < n && (i == 0 || (list[i - 1] < list[i]) == is_ascending) && (i == 0 || list[i - 1] != list[i]);
        if (is_ok) has[list[i]] = true;
    }
    for (int32_t i = 0; i < min_i32(n_first, n_kept) && is_ok; i++) is_ok = has[i];
    for (int32_t i = n_first; i < n; i++) {
        if (has[i]) least = fmin(least, x[i]);
        else dropped = fmax(dropped, x[i]);
    }
    free(has);
    if (!is_ok) return false;
    const double error = least < INFINITY ? fmax(0, dropped / least - 1) : 0;
    if (!(error <= worst_choice)) worst_choice = error;
    return error <= EPSILON;
}

static bool lines_are_right(const instance *in, int32_t head, const minference_head *chosen)
{
    const int32_t n = in->s.n;
    const head_keys *keys = &in->heads[head];
    double *by_key = numbers((size_t)n), *by_distance = numbers((size_t)n);
    sums_f64(in, head, by_key, by_distance);
    const bool is_ok = keys->kind == HEAD_LINES && keys->n_columns == min_i32(n, max_i32(chosen->a, MINFERENCE_LEAST_COLUMNS))
                    && keys->n_distances == min_i32(n, max_i32(chosen->b, MINFERENCE_LEAST_DISTANCES))
                    && is_choice(by_key, n, MINFERENCE_LEAST_COLUMNS, keys->columns, keys->n_columns, true)
                    && is_choice(by_distance, n, MINFERENCE_NEAR_DISTANCES, keys->distances, keys->n_distances, false);
    free(by_key);
    free(by_distance);
    return is_ok;
}

/* Every bit of the row m is as it must be; scores of means differ by rounding only. */
static bool blocks_are_right(const instance *in, int32_t head)
{
    const int32_t n = in->s.n, d = in->s.head_dim, nb = line_blocks_of(n), n_most = min_i32(MINFERENCE_BLOCKS, minference_padded_blocks(n));
    const head_keys *keys = &in->heads[head];
    bool is_ok = keys->kind == HEAD_BLOCKS && keys->n == n && keys->n_words == nb / 64 + 1;
    double *mean_q = numbers((size_t)nb * (size_t)d), *mean_k = numbers((size_t)nb * (size_t)d), *scores = numbers((size_t)nb);
    for (int32_t pos = 0; pos < n; pos++) {
        for (int32_t i = 0; i < d; i++) {
            mean_q[(size_t)(pos / LINE_BLOCK) * (size_t)d + (size_t)i] += (double)q_row(in, pos, head)[i] / LINE_BLOCK;
            mean_k[(size_t)(pos / LINE_BLOCK) * (size_t)d + (size_t)i] += (double)k_row(in, pos, head)[i] / LINE_BLOCK;
        }
    }
    for (int32_t m = 0; m < nb && is_ok; m++) {
        const uint64_t *row = keys->blocks + (size_t)m * (size_t)keys->n_words;
        double least = INFINITY, dropped = -INFINITY, size = 0;
        int32_t n_kept = 0;
        for (int32_t b = 0; b <= m; b++) {
            scores[b] = 0;
            for (int32_t i = 0; i < d; i++) scores[b] += mean_q[(size_t)m * (size_t)d + (size_t)i] * mean_k[(size_t)b * (size_t)d + (size_t)i];
            size = fmax(size, fabs(scores[b]));
        }
        for (int32_t b = 0; b < 64 * keys->n_words; b++) {
            const bool is_kept = row[b / 64] >> b % 64 & 1;
            n_kept += is_kept;
            if (b > m) is_ok &= !is_kept;
            else if (b == m) is_ok &= is_kept;
            else if (is_kept) least = fmin(least, scores[b]);
            else dropped = fmax(dropped, scores[b]);
        }
        is_ok &= n_kept == min_i32(m + 1, n_most) && dropped <= least + EPSILON * size;
    }
    free(mean_q);
    free(mean_k);
    free(scores);
    return is_ok;
}

/* How many heads are the CPU's to the bit: a number to look at, not a test. */
static void compare_with_cpu(const instance *in, const minference_head *chosen)
{
    tmx_attention_seq seq;
    tmx_attention_params params = host_params(in, &seq, 0, in->s.n);
    const size_t n_heads = (size_t)in->s.n_heads, n_scratch = attn_lists_scratch_bytes(&params, TMX_PATTERN_MINFERENCE, in->s.n, tmx_pool_n_threads(pool));
    head_keys cpu[MOST_HEADS];
    uint64_t *room = host_alloc(n_heads * in->n_room);
    params.scratch = aligned_alloc(64, (n_scratch + 63) / 64 * 64);
    attn_minference(&params, chosen, cpu, room, pool);
    for (int32_t h = 0; h < in->s.n_heads; h++) {
        const head_keys *a = &cpu[h], *b = &in->heads[h];
        bool is_same = a->kind == b->kind;
        if (a->kind == HEAD_LINES && is_same) {
            is_same = a->n_columns == b->n_columns && a->n_distances == b->n_distances
                   && memcmp(a->columns, b->columns, (size_t)a->n_columns * sizeof(int32_t)) == 0
                   && memcmp(a->distances, b->distances, (size_t)a->n_distances * sizeof(int32_t)) == 0;
        } else if (a->kind == HEAD_BLOCKS && is_same) {
            is_same = memcmp(a->blocks, b->blocks, (size_t)line_blocks_of(a->n) * (size_t)a->n_words * sizeof(uint64_t)) == 0;
        } else {
            continue;
        }
        n_heads_chosen++;
        n_heads_like_cpu += is_same;
    }
    free(params.scratch);
    free(room);
}

static bool is_known_as(const instance *in, int32_t head, const head_keys *expected)
{
    const head_keys *got = &in->heads[head];
    return got->kind == expected->kind && got->n == expected->n && got->n_sink == expected->n_sink && got->n_window == expected->n_window;
}

/* Estimates, and attention over what they give. */
static void check_estimate(const shape *s, const minference_head *chosen, float sharpness)
{
    static instance in;
    instance_make(&in, s);
    plant(&in, sharpness);
    upload(&in);
    if (report(&in, "estimate", run_estimate(&in, chosen, in.estimate_scratch.n_bytes))) {
        unsigned char *scratch = device_download(&in.estimate_scratch), *first = host_alloc(in.droom.n_bytes);
        report(&in, "guards of scratch", guard_zones_hold(scratch, &in.estimate_scratch));
        free(scratch);
        bool is_ok = true;
        for (int32_t h = 0; h < s->n_heads; h++) {
            head_keys known;
            if (minference_is_known(&chosen[h], s->n, &known)) is_ok &= is_known_as(&in, h, &known);
            else is_ok &= chosen[h].type == MINFERENCE_BLOCK_SPARSE ? blocks_are_right(&in, h) : lines_are_right(&in, h, &chosen[h]);
        }
        report(&in, "choice", is_ok);
        compare_with_cpu(&in, chosen);
        memcpy(first, in.room + GUARD_BYTES, in.droom.n_bytes);
        device_poison(&in.dout);
        if (report(&in, "attention over it", run_heads(&in))) {
            in.out = device_download(&in.dout);
            report(&in, "oracle of it", agrees_with_oracle(&in));
            report(&in, "pairs of it", pairs_agree(&in));
        }
        const size_t n_all = in.estimate_scratch.n_bytes, n_little = n_all / (size_t)s->n_heads + (128 << 10);
        report(&in, "little scratch", run_estimate(&in, chosen, n_little < n_all ? n_little : n_all)
                                          && memcmp(first, in.room + GUARD_BYTES, in.droom.n_bytes) == 0);
        free(first);
    }
    instance_free(&in);
}

/* Keys that are no numbers: heads that see them keep everything, the others what they keep without. */
static void check_nan(uint16_t bits, int32_t n, minference_type type)
{
    const shape s = { .n = n, .n_heads = 4, .n_kv_heads = 2, .head_dim = 64, .type = TMX_TYPE_BF16 };
    const minference_head one = { .type = type, .a = 40, .b = 60 }, chosen[4] = { one, one, one, one };
    static instance in;
    instance_make(&in, &s);
    upload(&in);
    bool is_ok = run_estimate(&in, chosen, in.estimate_scratch.n_bytes);
    unsigned char *before = in.room;
    in.room = NULL;
    in.k[(size_t)300 * 128 + 70] = bits;       /* KV head 1: heads 2 and 3 */
    upload(&in);
    is_ok &= run_estimate(&in, chosen, in.estimate_scratch.n_bytes);
    for (int32_t h = 0; h < 4; h++) is_ok &= (in.heads[h].kind == HEAD_DENSE) == (h >= 2);
    report(&in, "no numbers", is_ok && memcmp(in.room + GUARD_BYTES, before + GUARD_BYTES, 2 * in.n_room) == 0);
    free(before);
    instance_free(&in);
}

static void check_refusals(void)
{
    const shape s = { .n = 1000, .n_heads = 2, .n_kv_heads = 1, .head_dim = 64, .type = TMX_TYPE_BF16 };
    const minference_head good[2] = { { MINFERENCE_VERTICAL_SLASH, 40, 60 }, { MINFERENCE_A_SHAPE, 4, 60 } };
    const minference_head wrong[2] = { { MINFERENCE_VERTICAL_SLASH, 40, 60 }, { MINFERENCE_A_SHAPE, 4, 0 } };
    static instance in;
    tmx_error err;
    instance_make(&in, &s);
    upload(&in);
    head_keys *found = (head_keys *)(void *)in.dheads.data;
    uint64_t *room = (uint64_t *)(void *)in.droom.data;
    void *scratch = in.estimate_scratch.data;
    const size_t n_scratch = in.estimate_scratch.n_bytes;
    bool is_ok = gpu_minference(&in.params, wrong, found, room, scratch, n_scratch, NULL, &err) == TMX_E_ARG && strstr(err.text, "head 1") != NULL;
    is_ok &= gpu_minference(&in.params, good, found, NULL, scratch, n_scratch, NULL, &err) == TMX_E_ARG;
    is_ok &= gpu_minference(&in.params, good, NULL, room, scratch, n_scratch, NULL, &err) == TMX_E_ARG;
    is_ok &= gpu_minference(&in.params, good, found, room, scratch, 100, NULL, &err) == TMX_E_ARG;
    is_ok &= gpu_attention_over_heads(&in.params, NULL, NULL, NULL, &err) == TMX_E_ARG;
    in.seq.n_prompt = 1001;
    is_ok &= gpu_minference(&in.params, good, found, room, scratch, n_scratch, NULL, &err) == TMX_E_UNSUPPORTED;
    report(&in, "refusals", is_ok);
    instance_free(&in);
}

/* ---------------------------------------------------------------- shapes */

static shape random_shape(int32_t limit, int32_t least)
{
    static const int32_t groups[] = { 1, 4, 7, 8, 1 };
    static const int32_t edges[] = { 1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 257, 319, 320, 321, 383, 385, 511, 512, 1023, 1031, 2048, 2049 };
    shape s = { .type = random_in(0, 3) ? TMX_TYPE_BF16 : TMX_TYPE_F16, .head_dim = random_in(0, 2) ? 64 : 128, .n_kv_heads = random_in(1, 3) };
    s.n_heads = s.n_kv_heads * groups[random_in(0, 5)];
    do {
        s.n = random_in(0, 2) ? edges[random_in(0, (int32_t)(sizeof edges / sizeof *edges))] : random_in(least, limit + 1);
    } while (s.n > limit || s.n < least);
    return s;
}

static void check_random_estimate(int32_t limit)
{
    static const int32_t columns[] = { 0, 30, 45, 130, 1000 }, distances[] = { 0, 50, 70, 100, 101, 180, 2000 };
    static const float sharpnesses[] = { 0.1f, 1, 4 };
    const shape s = random_shape(limit, 257);
    minference_head chosen[MOST_HEADS];
    for (int32_t h = 0; h < s.n_heads; h++) {
        const int32_t kind = random_in(0, 8);
        chosen[h] = (minference_head){ .type = MINFERENCE_VERTICAL_SLASH, .a = columns[random_in(0, 5)], .b = distances[random_in(0, 7)] };
        if (kind == 0) chosen[h] = (minference_head){ .type = MINFERENCE_A_SHAPE, .a = random_in(0, 200), .b = random_in(1, 600) };
        if (kind == 1) chosen[h] = (minference_head){ .type = MINFERENCE_BLOCK_SPARSE };
    }
    check_estimate(&s, chosen, sharpnesses[random_in(0, 3)]);
}

/* Longer than block-sparse heads see whole. */
static void check_long_blocks(void)
{
    const shape s = { .n = 104 * LINE_BLOCK - 11, .n_heads = 3, .n_kv_heads = 1, .head_dim = 128, .type = TMX_TYPE_BF16 };
    const minference_head chosen[3] = { { MINFERENCE_BLOCK_SPARSE, 0, 0 }, { MINFERENCE_VERTICAL_SLASH, 500, 700 }, { MINFERENCE_BLOCK_SPARSE, 0, 0 } };
    check_estimate(&s, chosen, 1);
}

int main(int argc, char **argv)
{
    const check_options o = begin_check(argc, argv, "check_gpu_minference", 40);
    tmx_error err;
    if (gpu_lists_check(128, &err) != TMX_OK) {
        printf("skipped: %s\n0 passed, 0 failed, 1 skipped\n", err.text);
        return 0;
    }
    if (tmx_pool_create(&pool, 0, &err) != TMX_OK) {
        printf("pool: %s\n", err.text);
        return 2;
    }
    printf("seed %llu\n", (unsigned long long)seed);
    for (int kind = 0; kind < 4; kind++) {     /* each kind alone first, so that a fault has a name */
        const shape s = { .n = 1031, .n_heads = 2, .n_kv_heads = 1, .head_dim = kind % 2 ? 64 : 128, .type = TMX_TYPE_BF16 };
        printf("heads of kind %d\n", kind);
        check_attention(&s, kind);
    }
    for (int32_t i = 0; i < o.n_cases; i++) {
        const shape s = random_shape(o.is_small ? 700 : i % 8 == 7 ? 20000 : 4000, 1);
        check_attention(&s, -1);
        check_random_estimate(o.is_small ? 700 : 4000);
    }
    if (!o.is_small) check_long_blocks();
    check_nan(0x7fc0, 1000, MINFERENCE_VERTICAL_SLASH);
    check_nan(0x7f80, 1000, MINFERENCE_VERTICAL_SLASH);
    if (!o.is_small) check_nan(0x7fc0, 101 * LINE_BLOCK, MINFERENCE_BLOCK_SPARSE);
    check_refusals();
    print_worst_errors();
    printf("choices: off by %.3g of the lightest sum kept (limit %.3g); %lld of %lld heads are the CPU's\n", worst_choice, EPSILON,
           (long long)n_heads_like_cpu, (long long)n_heads_chosen);
    tmx_pool_free(pool);
    printf("%d passed, %d failed, 0 skipped\n", n_passed, n_failed);
    return n_failed != 0;
}
