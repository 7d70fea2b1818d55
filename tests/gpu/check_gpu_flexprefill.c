/* check_gpu_flexprefill - FlexPrefill's estimator on a GPU (attn/attn_gpu.h) against the definition in f64.
 *
 *     check_gpu_flexprefill [--seed N] [--cases N] [--small]      --small: shapes that fit a run under compute-sanitizer
 *
 * An estimate in f32 and one in f64 may part where a sum meets its threshold or two masses are nearly equal.  So lists are held between
 * two bounds made in f64: what must be kept whatever EPSILON of a sum, a mass or the distance does, and what may be kept.  Then:
 * the same bits with scratch for one head at a time, guard zones, numbers that are no numbers, short prompts, and refusals.
 * Ends with one line: N passed, N failed, N skipped.  Without a GPU that runs key lists all of it is one skipped test. */
#include "gpu_buffers.h"
#include "attn/attn.h"
#include "attn/attn_gpu.h"
#include "base/pool.h"

#include <math.h>
#include <string.h>

#define EPSILON 1e-4               /* relative, of a mass, of a sum, of tau */

enum { PAD = 8, BUDGET_UNIT = 128 };

static int32_t n_passed, n_failed;
static int64_t n_lists, n_lists_like_cpu, n_tiles, n_tiles_open, n_heads_aware, n_heads_all;
static tmx_pool *pool;

typedef struct shape {
    int32_t n, n_heads, n_kv_heads, head_dim;
    tmx_type type;
} shape;

typedef struct instance {
    shape s;
    flexprefill method;
    uint16_t *q, *k;               /* host: q [n][n_heads][d], k [n][n_kv_heads][d] */
    float *q_f32, *k_f32;
    device_buffer dq, dk, dlists, scratch;
    tmx_gpu_attention_seq seq;
    tmx_gpu_attention_params params;
    key_lists lists;               /* of the device */
    unsigned char *got;            /* its lists with their guards */
} instance;

static bool report(const instance *in, const char *what, bool is_ok)
{
    const shape *s = &in->s;
    if (!is_ok) {
        printf("FAILED %s: %s d%d heads %d/%d n %d gamma %g tau %g min_budget %d\n", what, s->type == TMX_TYPE_F16 ? "f16" : "bf16",
               s->head_dim, s->n_heads, s->n_kv_heads, s->n, in->method.gamma, in->method.tau, in->method.min_budget);
    }
    n_passed += is_ok;
    n_failed += !is_ok;
    return is_ok;
}

static size_t n_words(const instance *in) { return (size_t)in->s.n_heads * (size_t)in->lists.n_blocks * (size_t)in->lists.n_words; }

static void set(tmx_type type, uint16_t *x, float *as_f32, size_t i, float value)
{
    x[i] = put(type, value);
    as_f32[i] = get(type, x[i]);
}

/* Q scaled so that attention is flat, or not; keys that all queries of a head like; near keys like the query. */
static void plant(instance *in, float sharpness, bool has_lines)
{
    const shape *s = &in->s;
    const size_t d = (size_t)s->head_dim, n_heads = (size_t)s->n_heads, n_kv = (size_t)s->n_kv_heads, n_group = n_heads / n_kv;
    for (size_t pos = 0; pos < (size_t)s->n; pos++) {
        const float angle = (float)pos * 0.02f;
        for (size_t h = 0; h < n_kv && has_lines; h++) {
            const bool is_line = pos == 0 || (pos * 7 + 13 * h) % 389 == 5;
            for (size_t i = 0; i < d; i++) {
                const size_t at = (pos * n_kv + h) * d + i;
                const float wave = i < d / 4 ? (i % 2 ? sinf(angle) : cosf(angle)) : 0.0f;
                set(s->type, in->k, in->k_f32, at, 0.5f * in->k_f32[at] + wave + (is_line && i >= d / 2 ? 1.0f : 0.0f));
            }
        }
        for (size_t h = 0; h < n_heads; h++) {
            for (size_t i = 0; i < d; i++) {
                const size_t at = (pos * n_heads + h) * d + i;
                const float wave = i < d / 4 ? (i % 2 ? sinf(angle) : cosf(angle)) * (float)(h / n_group % 2 * 2) : 0.0f;
                set(s->type, in->q, in->q_f32, at, sharpness * in->q_f32[at] + (has_lines ? wave + (i >= d / 2 ? 0.8f : 0.0f) : 0.0f));
            }
        }
    }
}

static void instance_make(instance *in, const shape *s, const flexprefill *method, float sharpness, bool has_lines)
{
    memset(in, 0, sizeof *in);
    in->s = *s;
    in->method = *method;
    const size_t d = (size_t)s->head_dim, q_row = (size_t)s->n_heads * d, kv_row = (size_t)s->n_kv_heads * d, n = (size_t)s->n;
    in->q = random_values(s->type, n * q_row, &in->q_f32);
    in->k = random_values(s->type, n * kv_row, &in->k_f32);
    plant(in, sharpness, has_lines);
    in->dq = device_alloc(2 * n * (q_row + PAD));
    in->dk = device_alloc(2 * n * (kv_row + PAD));
    in->seq = (tmx_gpu_attention_seq){ .q = in->dq.data, .k = in->dk.data, .n_q = s->n, .n_prompt = s->n };
    in->params = (tmx_gpu_attention_params){
        .type = s->type, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim,
        .q_pos_stride = q_row + PAD, .q_head_stride = d, .k_pos_stride = kv_row + PAD, .k_head_stride = d,
        .pattern = { .kind = TMX_PATTERN_DENSE, .n_window = 1 }, .seqs = &in->seq, .n_seqs = 1,
    };
    in->lists = key_lists_shape(s->n_heads, 0, s->n);
    in->dlists = device_alloc(n_words(in) * sizeof(uint64_t));
    in->lists.bits = (uint64_t *)(void *)in->dlists.data;
    in->scratch = device_alloc(gpu_flexprefill_scratch_bytes(&in->params, s->n));
}

static void upload(const instance *in)
{
    const size_t q_row = (size_t)in->s.n_heads * (size_t)in->s.head_dim, kv_row = (size_t)in->s.n_kv_heads * (size_t)in->s.head_dim;
    upload_rows(in->dq.data, q_row + PAD, in->q, q_row, in->s.n);
    upload_rows(in->dk.data, kv_row + PAD, in->k, kv_row, in->s.n);
}

static void instance_free(instance *in)
{
    void *const host[] = { in->q, in->k, in->q_f32, in->k_f32, in->got };
    device_buffer *const device[] = { &in->dq, &in->dk, &in->dlists, &in->scratch };
    for (size_t i = 0; i < sizeof host / sizeof *host; i++) free(host[i]);
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) device_free(device[i]);
}

/* Into poisoned lists and scratch. */
static bool run(instance *in, size_t n_scratch)
{
    tmx_error err;
    device_poison(&in->dlists);
    device_poison(&in->scratch);
    const tmx_status status = gpu_flexprefill(&in->params, &in->method, &in->lists, in->scratch.data, n_scratch, NULL, &err);
    if (status != TMX_OK) printf("%s\n", err.text);
    free(in->got);
    in->got = device_download(&in->dlists);
    return status == TMX_OK;
}

/* ---------------------------------------------------------------- the definition */

typedef struct head_ref {
    double *by_key, *by_distance, *pooled, *map, *columns, *diagonals;     /* as in flexprefill.h; diagonals: the nearest first */
} head_ref;

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

static void softmax(double *z, int32_t n)
{
    double max = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++) max = fmax(max, z[i]);
    for (int32_t i = 0; i < n; i++) sum += z[i] = exp(z[i] - max);
    for (int32_t i = 0; i < n; i++) z[i] /= sum;
}

static void mean_of(const instance *in, const float *(*row)(const instance *, int32_t, int32_t), int32_t head, int32_t begin, int32_t end, double *mean)
{
    for (int32_t i = 0; i < in->s.head_dim; i++) {
        mean[i] = 0;
        for (int32_t pos = begin; pos < end; pos++) mean[i] += (double)row(in, pos, head)[i];
        mean[i] /= end - begin;
    }
}

static head_ref head_ref_make(const instance *in, int32_t head)
{
    const int32_t n = in->s.n, nb = key_blocks_of(n), d = in->s.head_dim;
    const double scale = 1 / sqrt((double)d);
    head_ref ref = { numbers((size_t)n), numbers((size_t)n), numbers((size_t)nb), numbers((size_t)nb * (size_t)(nb + 1) / 2),
                     numbers((size_t)nb), numbers((size_t)nb) };
    double *z = numbers((size_t)n), *mean_k = numbers((size_t)nb * (size_t)d), *mean_q = numbers((size_t)d);
    for (int32_t row = n - KEY_BLOCK; row < n; row++) {
        const float *q = q_row(in, row, head);
        for (int32_t j = 0; j <= row; j++) {
            const float *k = k_row(in, j, head);
            z[j] = 0;
            for (int32_t i = 0; i < d; i++) z[j] += (double)q[i] * (double)k[i];
            z[j] *= scale;
        }
        softmax(z, row + 1);
        for (int32_t j = 0; j <= row; j++) {
            ref.by_key[j] += z[j] / KEY_BLOCK;
            ref.by_distance[n - 1 - (row - j)] += z[j] / KEY_BLOCK;
        }
    }
    for (int32_t j = 0; j < n; j++) {
        ref.columns[j / KEY_BLOCK] += ref.by_key[j];
        ref.diagonals[nb - 1 - j / KEY_BLOCK] += ref.by_distance[j];
    }
    for (int32_t b = 0; b < nb; b++) mean_of(in, k_row, head, b * KEY_BLOCK, min_i32(n, (b + 1) * KEY_BLOCK), mean_k + (size_t)b * (size_t)d);
    for (int32_t m = -1; m < nb; m++) {        /* -1: the probe */
        const int32_t begin = m < 0 ? n - KEY_BLOCK : m * KEY_BLOCK, n_seen = m < 0 ? nb : m + 1;
        double *to = m < 0 ? ref.pooled : ref.map + (size_t)m * (size_t)(m + 1) / 2;
        mean_of(in, q_row, head, begin, min_i32(n, begin + KEY_BLOCK), mean_q);
        for (int32_t b = 0; b < n_seen; b++) {
            for (int32_t i = 0; i < d; i++) to[b] += mean_q[i] * mean_k[(size_t)b * (size_t)d + (size_t)i];
            to[b] *= scale;
        }
        softmax(to, n_seen);
    }
    free(z);
    free(mean_k);
    free(mean_q);
    return ref;
}

static void head_ref_free(head_ref *ref)
{
    double *const all[] = { ref->by_key, ref->by_distance, ref->pooled, ref->map, ref->columns, ref->diagonals };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static double js_distance(const double *a, const double *b, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        const double mean = (a[i] + b[i]) / 2;
        sum += 0.5 * a[i] * log(a[i] / mean) + 0.5 * b[i] * log(b[i] / mean);
    }
    return sqrt(fmax(sum, 0));
}

/* ---------------------------------------------------------------- what must be kept, what may be */

typedef struct list_bounds {
    uint64_t *must, *may;          /* [nb][n_words] of one head */
    int32_t n_words, nb;
} list_bounds;

static void add(uint64_t *bits, const list_bounds *to, int32_t row, int32_t block) { key_list_add(bits + (size_t)row * (size_t)to->n_words, block); }

static int32_t budget_of(const instance *in, const double *x, double gamma, bool is_aware)
{
    const int32_t nb = in->lists.n_blocks, least = min_i32(nb, key_blocks_of(in->method.min_budget));
    if (is_aware) return least;
    int32_t *order = host_alloc((size_t)in->s.n * sizeof *order);
    const int32_t n = flexprefill_coverage(x, in->s.n, gamma, order) / BUDGET_UNIT + 1;
    free(order);
    return min_i32(nb, max_i32(least, n));
}

static void add_lines(const instance *in, const double *x, const double *mass, bool is_aware, bool is_diagonal, list_bounds *to)
{
    const int32_t least = budget_of(in, x, in->method.gamma * (1 - EPSILON), is_aware);
    const int32_t most = budget_of(in, x, in->method.gamma * (1 + EPSILON), is_aware);
    for (int32_t b = 0; b < to->nb; b++) {
        int32_t before = 0, surely_before = 0;
        for (int32_t i = 0; i < to->nb && b > 0; i++) {
            before += i != b && (i == 0 || mass[i] >= mass[b] * (1 - EPSILON));
            surely_before += i == 0 || mass[i] > mass[b] * (1 + EPSILON);
        }
        for (int32_t row = b; row < to->nb; row++) {
            const int32_t block = is_diagonal ? row - b : b;
            if (before < least) add(to->must, to, row, block);
            if (surely_before < most) add(to->may, to, row, block);
        }
    }
}

static int descending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Sum of the values above `value`. */
static double sum_above(const double *sorted, const double *sums, int32_t n, double value)
{
    int32_t low = 0, high = n;     /* the first that is not */
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        if (sorted[middle] > value) low = middle + 1;
        else high = middle;
    }
    return sums[low];
}

static void add_tiles(const instance *in, const double *map, list_bounds *to)
{
    const int32_t n = to->nb * (to->nb + 1) / 2;
    const double limit = in->method.gamma * to->nb;
    double *sorted = numbers((size_t)n), *sums = numbers((size_t)n + 1);
    memcpy(sorted, map, (size_t)n * sizeof *map);
    qsort(sorted, (size_t)n, sizeof *sorted, descending);
    for (int32_t i = 0; i < n; i++) sums[i + 1] = sums[i] + sorted[i];
    for (int32_t row = 0; row < to->nb; row++) {
        for (int32_t b = 0; b <= row; b++) {
            const double p = map[(size_t)row * (size_t)(row + 1) / 2 + (size_t)b];
            if (sum_above(sorted, sums, n, p * (1 - EPSILON)) <= limit * (1 - EPSILON)) add(to->must, to, row, b);
            if (sum_above(sorted, sums, n, p * (1 + EPSILON)) + p <= limit * (1 + EPSILON)) add(to->may, to, row, b);
        }
    }
    free(sorted);
    free(sums);
}

static list_bounds list_bounds_make(const instance *in)
{
    list_bounds b = { .n_words = in->lists.n_words, .nb = in->lists.n_blocks };
    const size_t n = (size_t)b.nb * (size_t)b.n_words * sizeof(uint64_t);
    b.must = host_alloc(n);
    b.may = host_alloc(n);
    memset(b.must, 0, n);
    memset(b.may, 0, n);
    return b;
}

static void list_bounds_of_kind(const instance *in, const head_ref *ref, bool is_aware, list_bounds *to)
{
    add_lines(in, ref->by_key, ref->columns, is_aware, false, to);
    add_lines(in, ref->by_distance, ref->diagonals, is_aware, true, to);
    if (is_aware) add_tiles(in, ref->map, to);
}

typedef struct head_check {
    const instance *in;
    struct { int64_t n_wrong, n_tiles, n_open; bool is_aware; } *heads;
} head_check;

static void check_head(void *ctx, int32_t head, int32_t thread)
{
    (void)thread;
    const head_check *at = ctx;
    const instance *in = at->in;
    const uint64_t *got = (const uint64_t *)(const void *)(in->got + GUARD_BYTES) + (size_t)head * (size_t)in->lists.n_blocks * (size_t)in->lists.n_words;
    head_ref ref = head_ref_make(in, head);
    list_bounds bounds = list_bounds_make(in), other = list_bounds_make(in);
    const double distance = js_distance(ref.pooled, ref.columns, in->lists.n_blocks), tau = in->method.tau;
    const bool is_aware = distance < tau, is_open = fabs(distance - tau) <= EPSILON && tau > 0;
    list_bounds_of_kind(in, &ref, is_aware, &bounds);
    if (is_open) list_bounds_of_kind(in, &ref, !is_aware, &other);
    at->heads[head].is_aware = is_aware;
    for (size_t i = 0; i < (size_t)bounds.nb * (size_t)bounds.n_words; i++) {
        const uint64_t must = is_open ? bounds.must[i] & other.must[i] : bounds.must[i], may = bounds.may[i] | other.may[i];
        at->heads[head].n_wrong += __builtin_popcountll((must & ~got[i]) | (got[i] & ~may));
        at->heads[head].n_open += __builtin_popcountll(may & ~must);
        at->heads[head].n_tiles += __builtin_popcountll(got[i]);
    }
    list_bounds *const all[] = { &bounds, &other };
    for (int i = 0; i < 2; i++) {
        free(all[i]->must);
        free(all[i]->may);
    }
    head_ref_free(&ref);
}

static bool lists_agree(const instance *in)
{
    head_check check = { .in = in, .heads = host_alloc((size_t)in->s.n_heads * sizeof *check.heads) };
    memset(check.heads, 0, (size_t)in->s.n_heads * sizeof *check.heads);
    pool_run(pool, in->s.n_heads, check_head, &check);
    int64_t n_wrong = 0;
    for (int32_t h = 0; h < in->s.n_heads; h++) {
        n_wrong += check.heads[h].n_wrong;
        n_tiles += check.heads[h].n_tiles;
        n_tiles_open += check.heads[h].n_open;
        n_heads_aware += check.heads[h].is_aware;
        n_heads_all++;
    }
    if (n_wrong > 0) printf("%lld tiles are wrong\n", (long long)n_wrong);
    free(check.heads);
    return n_wrong == 0;
}

/* How often the lists are the CPU's to the bit: a number to look at, not a test. */
static void compare_with_cpu(const instance *in)
{
    const size_t d = (size_t)in->s.head_dim, n_row = (size_t)in->s.n_heads * d, kv_row = (size_t)in->s.n_kv_heads * d;
    const tmx_attention_seq seq = { .q = in->q_f32, .k = in->k_f32, .n_q = in->s.n, .n_prompt = in->s.n };
    tmx_attention_params params = {
        .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_F32, .n_heads = in->s.n_heads, .n_kv_heads = in->s.n_kv_heads,
        .head_dim = in->s.head_dim, .q_pos_stride = n_row, .q_head_stride = d, .k_pos_stride = kv_row, .k_head_stride = d,
        .pattern = { .kind = TMX_PATTERN_DENSE, .n_window = 1 }, .seqs = &seq, .n_seqs = 1,
    };
    const size_t n_scratch = attn_lists_scratch_bytes(&params, TMX_PATTERN_FLEXPREFILL, in->s.n, tmx_pool_n_threads(pool));
    params.scratch = aligned_alloc(64, (n_scratch + 63) / 64 * 64);
    uint64_t *bits = host_alloc(n_words(in) * sizeof *bits);
    key_lists cpu = key_lists_on(bits, in->s.n_heads, 0, in->s.n);
    attn_flexprefill(&params, &in->method, &cpu, pool);
    const uint64_t *got = (const uint64_t *)(const void *)(in->got + GUARD_BYTES);
    const size_t n_list = (size_t)cpu.n_words;
    for (size_t i = 0; i < n_words(in); i += n_list) n_lists_like_cpu += memcmp(got + i, bits + i, n_list * sizeof *bits) == 0;
    n_lists += (int64_t)(n_words(in) / n_list);
    free(params.scratch);
    free(bits);
}

/* ---------------------------------------------------------------- checks */

static bool keeps_everything(const instance *in, int32_t first_head)
{
    const uint64_t *got = (const uint64_t *)(const void *)(in->got + GUARD_BYTES);
    for (int32_t h = first_head; h < in->s.n_heads; h++) {
        for (int32_t row = 0; row < in->lists.n_blocks; row++) {
            const uint64_t *list = got + ((size_t)h * (size_t)in->lists.n_blocks + (size_t)row) * (size_t)in->lists.n_words;
            for (int32_t b = 0; b < 64 * in->lists.n_words; b++) {
                if (key_list_has(list, b) != (b <= row)) return false;
            }
        }
    }
    return true;
}

static void check_case(const shape *s, const flexprefill *method, float sharpness, bool has_lines)
{
    static instance in;
    instance_make(&in, s, method, sharpness, has_lines);
    upload(&in);
    if (report(&in, "run", run(&in, in.scratch.n_bytes))) {
        unsigned char *scratch = device_download(&in.scratch), *first = in.got;
        report(&in, "guards", guard_zones_hold(in.got, &in.dlists) && guard_zones_hold(scratch, &in.scratch));
        free(scratch);
        if (s->n <= flexprefill_dense_tokens(method) || method->gamma >= 1) {
            report(&in, "everything", keeps_everything(&in, 0));
        } else {
            report(&in, "lists", lists_agree(&in));
            compare_with_cpu(&in);
        }
        in.got = NULL;
        report(&in, "one head at a time", run(&in, in.scratch.n_bytes / (size_t)s->n_heads)
                                              && memcmp(in.got, first, in.dlists.n_bytes + (size_t)2 * GUARD_BYTES) == 0);
        free(first);
    }
    instance_free(&in);
}

/* Keys that are no numbers: heads that see them keep everything, the others what they keep without. */
static void check_nan(uint16_t bits)
{
    const shape s = { .n = 1000, .n_heads = 4, .n_kv_heads = 2, .head_dim = 64, .type = TMX_TYPE_BF16 };
    const flexprefill method = { .gamma = 0.5, .tau = 0.1, .min_budget = 1 };
    static instance in;
    instance_make(&in, &s, &method, 2, true);
    upload(&in);
    bool is_ok = run(&in, in.scratch.n_bytes) && !keeps_everything(&in, 2);
    unsigned char *before = in.got;
    in.got = NULL;
    in.k[(size_t)300 * 128 + 70] = bits;       /* KV head 1: heads 2 and 3 */
    upload(&in);
    is_ok &= run(&in, in.scratch.n_bytes) && keeps_everything(&in, 2) && memcmp(in.got, before, GUARD_BYTES + n_words(&in) / 2 * sizeof(uint64_t)) == 0;
    report(&in, "no numbers", is_ok);
    free(before);
    instance_free(&in);
}

static void check_refusals(void)
{
    const shape s = { .n = 1000, .n_heads = 2, .n_kv_heads = 1, .head_dim = 64, .type = TMX_TYPE_BF16 };
    const flexprefill method = FLEXPREFILL_DEFAULTS, wrong = { .gamma = 0, .tau = 0.1, .min_budget = 1 };
    static instance in;
    tmx_error err;
    instance_make(&in, &s, &method, 1, false);
    upload(&in);
    bool is_ok = gpu_flexprefill(&in.params, &method, &in.lists, in.scratch.data, in.scratch.n_bytes / 2 - 1, NULL, &err) == TMX_E_ARG;
    is_ok &= gpu_flexprefill(&in.params, &method, &in.lists, NULL, in.scratch.n_bytes, NULL, &err) == TMX_E_ARG;
    is_ok &= gpu_flexprefill(&in.params, &wrong, &in.lists, in.scratch.data, in.scratch.n_bytes, NULL, &err) == TMX_E_ARG;
    in.seq.n_prompt = 1001;
    is_ok &= gpu_flexprefill(&in.params, &method, &in.lists, in.scratch.data, in.scratch.n_bytes, NULL, &err) == TMX_E_UNSUPPORTED;
    report(&in, "refusals", is_ok);
    instance_free(&in);
}

static void check_random(int32_t limit)
{
    static const int32_t groups[] = { 1, 4, 7, 8, 1 }, edges[] = { 257, 383, 384, 385, 511, 512, 513, 1023, 1024, 1025, 1151, 2048, 2049 };
    static const double gammas[] = { 0.9, 0.95, 0.5, 0.99, 0.1, 1 }, taus[] = { 0.1, 0, 0.3, 1 };
    static const int32_t budgets[] = { 1, 128, 300, 512 };
    static const float sharpnesses[] = { 0.1f, 1, 4 };
    shape s = { .type = random_in(0, 3) ? TMX_TYPE_BF16 : TMX_TYPE_F16, .head_dim = random_in(0, 2) ? 64 : 128, .n_kv_heads = random_in(1, 3) };
    s.n_heads = s.n_kv_heads * groups[random_in(0, 5)];
    do {
        s.n = random_in(0, 2) ? edges[random_in(0, (int32_t)(sizeof edges / sizeof *edges))] : random_in(1, limit + 1);
    } while (s.n > limit);
    const flexprefill method = { .gamma = gammas[random_in(0, 6)], .tau = taus[random_in(0, 4)], .min_budget = budgets[random_in(0, 4)] };
    check_case(&s, &method, sharpnesses[random_in(0, 3)], random_in(0, 3) > 0);
}

int main(int argc, char **argv)
{
    const check_options o = begin_check(argc, argv, "check_gpu_flexprefill", 40);
    tmx_error err;
    if (gpu_lists_check(128, &err) != TMX_OK) {
        printf("skipped: %s\n0 passed, 0 failed, 1 skipped\n", err.text);
        return 0;
    }
    if (tmx_pool_create(&pool, 0, &err) != TMX_OK) return 2;
    printf("seed %llu\n", (unsigned long long)seed);
    for (int32_t i = 0; i < o.n_cases; i++) check_random(o.is_small ? 1100 : i % 8 == 7 ? 12000 : 4000);
    check_nan(0x7fc0);
    check_nan(0x7f80);
    check_refusals();
    printf("lists: %lld of %lld are the CPU's; %lld tiles kept, %lld between the bounds; %lld of %lld heads query-aware\n",
           (long long)n_lists_like_cpu, (long long)n_lists, (long long)n_tiles, (long long)n_tiles_open, (long long)n_heads_aware,
           (long long)n_heads_all);
    printf("%d passed, %d failed, 0 skipped\n", n_passed, n_failed);
    tmx_pool_free(pool);
    return n_failed > 0;
}
