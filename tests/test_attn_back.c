/* rooms: probe */
/* test_attn_back.c - the backward pass of attention and the section sums, every rung against f64 from the definition. */
#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "pattern/pattern.h"
#include "probe/attn_back.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT_OF(a) (sizeof(a) / sizeof(a)[0])

/* Error over the sum of the sizes of what is added up, the largest of all cases below as measured, beside what may pass. */
static const struct { const char *what; double limit; } limits[] = {
    { "d_q", 2e-6 },               /* 5.7e-7 */
    { "d_k", 2e-6 },               /* 4.1e-7 */
    { "d_v", 4e-6 },               /* 2.2e-6: where P is exp of a difference of scores near 20 */
    { "sums", 2e-6 },              /* 6.7e-7 */
};
enum { LIMIT_D_Q, LIMIT_D_K, LIMIT_D_V, LIMIT_SUMS, N_LIMITS };
static double worst[N_LIMITS];

static uint64_t random_state = 11;

static float random_f32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(random_state >> 33) / 0x1p30 - 1.0);
}

static void judge(int limit, double error)
{
    if (!(error <= limits[limit].limit)) fail_msg("%s: error %.3g, limit %.3g", limits[limit].what, error, limits[limit].limit);
    if (error > worst[limit]) worst[limit] = error;
}

/* ---------------------------------------------------------------- one case: inputs, and what f64 makes of them */

typedef struct shape { int32_t n, n_heads, n_kv_heads, head_dim, n_sink, n_window, n_last; tmx_type type; int32_t n_own_window; } shape;

typedef struct reference { double *d_q, *d_k, *d_v, *d_q_size, *d_k_size, *d_v_size; double sums[N_SECTIONS][5]; } reference;

static size_t element_bytes(tmx_type type) { return type == TMX_TYPE_BF16 ? 2 : 4; }

static double at(const void *x, tmx_type type, size_t i)
{
    return type == TMX_TYPE_BF16 ? (double)bf16_to_f32(((const tmx_bf16 *)x)[i]) : (double)((const float *)x)[i];
}

static void put(void *x, tmx_type type, size_t i, float value)
{
    if (type == TMX_TYPE_BF16) ((tmx_bf16 *)x)[i] = bf16_from_f32(value);
    else ((float *)x)[i] = value;
}

static void *random_values(size_t n, tmx_type type, float size)
{
    void *x = mem_alloc(n, element_bytes(type));
    for (size_t i = 0; i < n; i++) put(x, type, i, size * random_f32());
    return x;
}

static double score(const attn_back *b, int32_t i, int32_t h, int32_t j)
{
    const size_t d_n = (size_t)b->head_dim, q = ((size_t)i * (size_t)b->n_heads + (size_t)h) * d_n;
    const size_t k = ((size_t)j * (size_t)b->n_kv_heads + (size_t)(h / (b->n_heads / b->n_kv_heads))) * d_n;
    double s = 0;
    for (size_t d = 0; d < d_n; d++) s += at(b->q, b->type, q + d) * at(b->k, b->type, k + d);
    return s * (double)b->scale;
}

static int32_t first_key(const attn_back *b, int32_t i) { return b->n_window > 0 && i >= b->n_window ? i - b->n_window + 1 : 0; }

/* o and lse of a forward pass, rounded to what the forward pass would keep. */
static void forward(attn_back *b, void *o, float *lse)
{
    const size_t d_n = (size_t)b->head_dim;
    for (int32_t i = 0; i < b->n_tokens; i++) {
        for (int32_t h = 0; h < b->n_heads; h++) {
            const size_t row = (size_t)i * (size_t)b->n_heads + (size_t)h;
            double top = -INFINITY, sum = 0;
            for (int32_t j = first_key(b, i); j <= i; j++) top = fmax(top, score(b, i, h, j));
            for (int32_t j = first_key(b, i); j <= i; j++) sum += exp(score(b, i, h, j) - top);
            lse[row] = (float)(top + log(sum));
            for (size_t d = 0; d < d_n; d++) {
                double value = 0;
                for (int32_t j = first_key(b, i); j <= i; j++) {
                    const size_t v = ((size_t)j * (size_t)b->n_kv_heads + (size_t)(h / (b->n_heads / b->n_kv_heads))) * d_n;
                    value += exp(score(b, i, h, j) - top) / sum * at(b->v, b->type, v + d);
                }
                put(o, b->type, row * d_n + d, (float)value);
            }
        }
    }
}

static attn_back case_of(const shape *s)
{
    const size_t n = (size_t)s->n, n_q = (size_t)s->n_heads * (size_t)s->head_dim, n_kv = (size_t)s->n_kv_heads * (size_t)s->head_dim;
    attn_back b = {
        .type = s->type, .n_tokens = s->n, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim,
        .scale = (float)(1 / sqrt((double)s->head_dim)), .n_window = s->n_own_window,
        .sections = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = s->n_sink, .n_window = s->n_window, .n_last = s->n_last },
        .q = random_values(n * n_q, s->type, 3), .k = random_values(n * n_kv, s->type, 3),
        .v = random_values(n * n_kv, s->type, 1), .d_o = random_values(n * n_q, TMX_TYPE_F32, 0.01f),
    };
    void *o = mem_alloc(n * n_q, element_bytes(s->type));
    float *lse = mem_alloc(n * (size_t)s->n_heads, sizeof *lse);
    const attn_strips strips = attn_back_strips(s->n, s->n_kv_heads, s->head_dim);
    forward(&b, o, lse);
    b.o = o;
    b.lse = lse;
    b.d_q = mem_alloc(attn_back_rows_padded(s->n) * (size_t)s->n_heads * attn_back_d_pad(s->head_dim), sizeof(float));
    b.d_kv = mem_alloc(strips.kv_at[strips.n], sizeof(float));
    b.scratch = mem_alloc(1, attn_back_scratch_bytes(s->n, s->n_heads, s->n_kv_heads, s->head_dim, 3));
    return b;
}

static void free_case(attn_back *b)
{
    const void *const blocks[] = { b->q, b->k, b->v, b->o, b->lse, b->d_o, b->d_q, b->d_kv, b->scratch };
    for (size_t i = 0; i < COUNT_OF(blocks); i++) mem_free((void *)(uintptr_t)blocks[i]);
}

static probe_section section_of(const tmx_pattern *triangle, int32_t n, int32_t i, int32_t j)
{
    tmx_pattern streaming = *triangle;
    streaming.kind = TMX_PATTERN_STREAMING;
    if (pattern_is_visible(&streaming, n, i, j)) return SECTION_STREAMING;
    return pattern_is_visible(triangle, n, i, j) ? SECTION_LAST : SECTION_MIDDLE;
}

static reference reference_of(const attn_back *b)
{
    const size_t n = (size_t)b->n_tokens, d_n = (size_t)b->head_dim, n_q = (size_t)b->n_heads * d_n, n_kv = (size_t)b->n_kv_heads * d_n;
    reference r = { .d_q = mem_alloc(n * n_q, 8), .d_k = mem_alloc(n * n_kv, 8), .d_v = mem_alloc(n * n_kv, 8),
                    .d_q_size = mem_alloc(n * n_q, 8), .d_k_size = mem_alloc(n * n_kv, 8), .d_v_size = mem_alloc(n * n_kv, 8) };
    for (int32_t i = 0; i < b->n_tokens; i++) {
        for (int32_t j = first_key(b, i); j <= i; j++) {
            double *sums = r.sums[section_of(&b->sections, b->n_tokens, i, j)], theta = 0;
            for (int32_t h = 0; h < b->n_heads; h++) {
                const size_t q = ((size_t)i * (size_t)b->n_heads + (size_t)h) * d_n;
                const size_t k = ((size_t)j * (size_t)b->n_kv_heads + (size_t)(h / (b->n_heads / b->n_kv_heads))) * d_n;
                const double p = exp(score(b, i, h, j) - (double)b->lse[(size_t)i * (size_t)b->n_heads + (size_t)h]);
                double da = 0, dot = 0, dot_size = 0;
                for (size_t d = 0; d < d_n; d++) {
                    da += (double)b->d_o[q + d] * at(b->v, b->type, k + d);
                    dot += (double)b->d_o[q + d] * at(b->o, b->type, q + d);
                    dot_size += fabs((double)b->d_o[q + d]) * (fabs(at(b->o, b->type, q + d)) + fabs(at(b->v, b->type, k + d)));
                }
                const double ds = p * (da - dot) * (double)b->scale, ds_size = p * dot_size * (double)b->scale;
                for (size_t d = 0; d < d_n; d++) {
                    r.d_q[q + d] += ds * at(b->k, b->type, k + d);
                    r.d_q_size[q + d] += ds_size * fabs(at(b->k, b->type, k + d));
                    r.d_k[k + d] += ds * at(b->q, b->type, q + d);
                    r.d_k_size[k + d] += ds_size * fabs(at(b->q, b->type, q + d));
                    r.d_v[k + d] += p * (double)b->d_o[q + d];
                    r.d_v_size[k + d] += p * fabs((double)b->d_o[q + d]);
                }
                theta += p * da;
                sums[2] += fabs(p * da);
                sums[3] += fabs(da);
                sums[4] += p;
            }
            sums[0] += fabs(theta);
            sums[1] += theta;
        }
    }
    return r;
}

static void free_reference(reference *r)
{
    double *const blocks[] = { r->d_q, r->d_k, r->d_v, r->d_q_size, r->d_k_size, r->d_v_size };
    for (size_t i = 0; i < COUNT_OF(blocks); i++) mem_free(blocks[i]);
}

static void poison(attn_back *b)
{
    const attn_strips strips = attn_back_strips(b->n_tokens, b->n_kv_heads, b->head_dim);
    memset(b->d_q, 0xff, attn_back_rows_padded(b->n_tokens) * (size_t)b->n_heads * attn_back_d_pad(b->head_dim) * sizeof(float));
    memset(b->d_kv, 0xff, strips.kv_at[strips.n] * sizeof(float));
    memset(b->scratch, 0xff, attn_back_scratch_bytes(b->n_tokens, b->n_heads, b->n_kv_heads, b->head_dim, 3));
}

static void check_sums(const tmx_probe_sums *sums, const reference *r)
{
    for (int s = 0; s < N_SECTIONS; s++) {
        const double found[] = { sums[s].theta_abs, sums[s].theta_signed, sums[s].head_abs, sums[s].da_abs, sums[s].attention };
        for (int i = 0; i < 5; i++) {
            const double size = r->sums[s][i <= 2 ? 2 : i];        /* signed sums cancel: judged by the sizes of the terms */
            if (size == 0) assert_true(found[i] == 0);
            else judge(LIMIT_SUMS, fabs(found[i] - r->sums[s][i]) / size);
        }
    }
}

static void check_rows(const attn_back *b, const reference *r)
{
    const attn_strips strips = attn_back_strips(b->n_tokens, b->n_kv_heads, b->head_dim);
    const size_t d_n = (size_t)b->head_dim, d_pad = attn_back_d_pad(b->head_dim);
    float row[512];
    for (size_t i = 0; i < (size_t)b->n_tokens; i++) {
        for (size_t h = 0; h < (size_t)b->n_heads; h++) {
            const size_t head = i * (size_t)b->n_heads + h;
            for (size_t d = 0; d < d_n; d++) {
                const double found = (double)b->d_q[head * d_pad + d];
                judge(LIMIT_D_Q, fabs(found - r->d_q[head * d_n + d]) / r->d_q_size[head * d_n + d]);
            }
        }
        for (size_t h = 0; h < (size_t)b->n_kv_heads; h++) {
            const size_t head = (i * (size_t)b->n_kv_heads + h) * d_n;
            attn_back_kv_row(b, &strips, false, (int32_t)i, (int32_t)h, row);
            for (size_t d = 0; d < d_n; d++) judge(LIMIT_D_K, fabs((double)row[d] - r->d_k[head + d]) / r->d_k_size[head + d]);
            attn_back_kv_row(b, &strips, true, (int32_t)i, (int32_t)h, row);
            for (size_t d = 0; d < d_n; d++) judge(LIMIT_D_V, fabs((double)row[d] - r->d_v[head + d]) / r->d_v_size[head + d]);
        }
    }
}

/* ---------------------------------------------------------------- tests */

static const shape shapes[] = {    /* n, heads, KV heads, head_dim, sink, window, last */
    { 1, 1, 1, 1, 0, 1, 0, TMX_TYPE_F32, 0 }, { 2, 2, 1, 3, 1, 1, 1, TMX_TYPE_F32, 0 }, { 31, 3, 3, 8, 2, 5, 4, TMX_TYPE_F32, 0 },
    { 32, 4, 1, 16, 0, 8, 0, TMX_TYPE_F32, 0 }, { 33, 4, 2, 17, 3, 40, 4, TMX_TYPE_BF16, 0 }, { 63, 1, 1, 64, 40, 3, 9, TMX_TYPE_F32, 0 },
    { 64, 2, 2, 31, 1, 1, 64, TMX_TYPE_F32, 0 }, { 65, 8, 1, 8, 5, 16, 100, TMX_TYPE_F32, 0 }, { 96, 6, 2, 80, 64, 16, 16, TMX_TYPE_BF16, 0 },
    { 127, 2, 1, 5, 0, 1, 1, TMX_TYPE_F32, 0 }, { 130, 3, 1, 32, 70, 31, 33, TMX_TYPE_F32, 0 }, { 200, 6, 2, 16, 64, 33, 32, TMX_TYPE_F32, 0 },
    { 257, 2, 1, 64, 64, 64, 64, TMX_TYPE_BF16, 0 }, { 300, 1, 1, 8, 8, 64, 64, TMX_TYPE_F32, 0 },
    { 90, 2, 1, 8, 3, 20, 9, TMX_TYPE_F32, 1 }, { 200, 4, 2, 16, 70, 31, 33, TMX_TYPE_F32, 64 },      /* windows of their own */
    { 300, 2, 1, 8, 8, 64, 64, TMX_TYPE_BF16, 70 }, { 230, 2, 2, 8, 5, 18, 31, TMX_TYPE_F32, 33 }, { 65, 1, 1, 4, 2, 9, 8, TMX_TYPE_F32, 64 },
    { 200, 2, 1, 8, 5, 18, 31, TMX_TYPE_F32, 0 }, { 230, 2, 2, 4, 67, 50, 49, TMX_TYPE_F32, 0 },
};

static void every_rung_matches_f64(void **state)
{
    tmx_pool *pool = *state;
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        attn_back b = case_of(&shapes[i]);
        reference r = reference_of(&b);
        for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AVX512; isa++) {
            if (!cpu_has((tmx_isa)isa)) continue;
            tmx_probe_sums sums[N_SECTIONS], again[N_SECTIONS];
            b.isa = (tmx_isa)isa;
            b.is_sums_only = false;
            poison(&b);
            attn_back_run(&b, sums, pool);
            check_sums(sums, &r);
            check_rows(&b, &r);
            b.is_sums_only = true;
            poison(&b);
            attn_back_run(&b, again, NULL);
            assert_memory_equal(sums, again, sizeof sums);
        }
        free_reference(&r);
        free_case(&b);
    }
}

static void threads_move_no_bit(void **state)
{
    const shape s = { 333, 4, 2, 20, 16, 30, 25, TMX_TYPE_F32, 0 };
    attn_back b = case_of(&s);
    const attn_strips strips = attn_back_strips(s.n, s.n_kv_heads, s.head_dim);
    const size_t n_q = attn_back_rows_padded(s.n) * (size_t)s.n_heads * attn_back_d_pad(s.head_dim);
    float *d_q = mem_alloc(n_q, sizeof *d_q), row[20];
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AVX512; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        tmx_probe_sums one[N_SECTIONS], three[N_SECTIONS];
        float first[333][2][20];
        b.isa = (tmx_isa)isa;
        poison(&b);
        attn_back_run(&b, one, NULL);
        memcpy(d_q, b.d_q, n_q * sizeof *d_q);
        for (int32_t j = 0; j < s.n; j++) {
            for (int32_t h = 0; h < 2; h++) attn_back_kv_row(&b, &strips, h == 1, j, h, first[j][h]);
        }
        poison(&b);
        attn_back_run(&b, three, *state);
        assert_memory_equal(one, three, sizeof one);
        assert_memory_equal(d_q, b.d_q, n_q * sizeof *d_q);
        for (int32_t j = 0; j < s.n; j++) {
            for (int32_t h = 0; h < 2; h++) {
                attn_back_kv_row(&b, &strips, h == 1, j, h, row);
                assert_memory_equal(row, first[j][h], sizeof row);
            }
        }
    }
    mem_free(d_q);
    free_case(&b);
}

static void strips_cover_all_rows_and_share_the_pairs(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 1, 31, 32, 33, 64, 65, 100, 1000, 2000, 2047, 8000, 100000 };
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        const attn_strips s = attn_back_strips(lengths[i], 3, 64);
        assert_true(s.n >= 1 && s.n <= ATTN_BACK_STRIPS && s.begin[0] == 0 && s.begin[s.n] == lengths[i] && s.kv_at[0] == 0);
        double most = 0;
        for (int32_t k = 0; k < s.n; k++) {
            assert_true(s.begin[k] <= s.begin[k + 1] && s.begin[k] % ATTN_BACK_ROWS == 0);
            assert_true(s.kv_at[k + 1] - s.kv_at[k] >= 2u * (size_t)s.begin[k + 1] * 3 * 64);
            const double pairs = 0.5 * ((double)s.begin[k + 1] * s.begin[k + 1] - (double)s.begin[k] * s.begin[k]);
            most = fmax(most, pairs / (0.5 * (double)lengths[i] * lengths[i]));
        }
        if (lengths[i] >= 8000) assert_true(most < 1.1 / s.n);
    }
}

static int setup(void **state)
{
    tmx_pool *pool = NULL;
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AVX512; isa++) {
        if (!cpu_has((tmx_isa)isa)) printf("# skipped: this CPU has no %s\n", tmx_isa_name((tmx_isa)isa));
    }
    if (tmx_pool_create(&pool, 3, NULL) != TMX_OK) return 1;
    *state = pool;
    return 0;
}

static int teardown(void **state)
{
    tmx_pool_free(*state);
    for (int i = 0; i < N_LIMITS; i++) printf("# %s: worst error %.2g of %.2g\n", limits[i].what, worst[i], limits[i].limit);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rung_matches_f64),
        cmocka_unit_test(threads_move_no_bit),
        cmocka_unit_test(strips_cover_all_rows_and_share_the_pairs),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
