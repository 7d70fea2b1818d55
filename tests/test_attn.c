/* rooms: attn pattern base */
#include "attn/attn.h"
#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "pattern/pattern.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RANDOM_SEED 20250729
#include "random_buffers.h"

/* Relative L2 distance of out to the oracle, and worst distance of lse.  Measured: the worst over all cases here. */
static const struct { const char *name; double out, lse; } bounds[] = {
    { "f32 arithmetic, f32 out", 2e-6, 1e-5 },     /* measured 5.3e-7, 1.0e-6 */
    { "f32 arithmetic, bf16 out", 2.5e-3, 1e-5 },  /* measured 2.2e-3, 1.0e-6 */
    { "bf16 arithmetic", 4e-3, 2e-3 },             /* measured 2.3e-3, 1.4e-3 */
};
enum { N_BOUNDS = 3 };
static double worst_out[N_BOUNDS], worst_lse[N_BOUNDS];

/* ---------------------------------------------------------------- cases */

typedef struct shape {
    int32_t n, q_begin, n_q;       /* n: final length; rows [q_begin, q_begin + n_q) */
    int32_t n_heads, n_kv_heads, head_dim, pad;    /* pad: elements between rows that nobody may touch */
    tmx_pattern pattern;
    tmx_type q_type, kv_type;
} shape;

typedef struct data {
    tmx_attention_params params;
    tmx_attention_seq seq;
    void *q, *k, *v, *out;         /* exactly as long as promised: a sanitizer sees the first byte too far */
    float *lse;
    size_t q_elements, kv_elements;
} data;

static void poison(data *d)
{
    memset(d->out, 0xff, d->q_elements * bytes_of(d->params.q_type));
    memset(d->lse, 0xff, (size_t)d->seq.n_q * (size_t)d->params.n_heads * sizeof *d->lse);
}

static data *data_make(const shape *s)
{
    data *d = calloc(1, sizeof *d);
    assert_non_null(d);
    const size_t row = (size_t)(s->head_dim + s->pad), dim = (size_t)s->head_dim;
    const size_t n_heads = (size_t)s->n_heads, n_kv_heads = (size_t)s->n_kv_heads;
    const size_t n_keys = (size_t)(s->q_begin + s->n_q);
    d->params = (tmx_attention_params){
        .q_type = s->q_type, .kv_type = s->kv_type, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads,
        .head_dim = s->head_dim, .q_pos_stride = row * n_heads + (size_t)s->pad, .q_head_stride = row,
        .out_pos_stride = row * n_heads + (size_t)s->pad, .out_head_stride = row,
        .k_pos_stride = row, .k_head_stride = row * n_keys,            /* K head-major, V position-major */
        .v_pos_stride = row * n_kv_heads, .v_head_stride = row,
        .pattern = s->pattern, .n_seqs = 1,
    };
    d->q_elements = ((size_t)s->n_q - 1) * d->params.q_pos_stride + (n_heads - 1) * row + dim;
    d->kv_elements = (n_kv_heads * n_keys - 1) * row + dim;
    d->q = random_buffer(s->q_type, d->q_elements);
    d->k = random_buffer(s->kv_type, d->kv_elements);
    d->v = random_buffer(s->kv_type, d->kv_elements);
    d->out = malloc(d->q_elements * bytes_of(s->q_type));
    d->lse = malloc((size_t)s->n_q * n_heads * sizeof *d->lse);
    assert_true(d->out != NULL && d->lse != NULL);
    d->seq = (tmx_attention_seq){ .q = d->q, .k = d->k, .v = d->v, .out = d->out, .lse = d->lse, .q_begin = s->q_begin,
                                  .n_q = s->n_q, .n_prompt = s->n };
    d->params.seqs = &d->seq;
    poison(d);
    return d;
}

static void data_free(data *d)
{
    free(d->q);
    free(d->k);
    free(d->v);
    free(d->out);
    free(d->lse);
    free(d);
}

static void run_ok(data *d, tmx_isa isa, tmx_pool *pool)
{
    tmx_error err;
    d->params.isa = isa;
    poison(d);
    if (tmx_attention(&d->params, pool, &err) != TMX_OK) fail_msg("%s", err.text);
}

static size_t out_at(const data *d, int32_t i, int32_t h)
{
    return (size_t)i * d->params.out_pos_stride + (size_t)h * d->params.out_head_stride;
}

/* Every byte of out that is not a result still holds the poison. */
static void check_guards(const data *d)
{
    const size_t n_bytes = bytes_of(d->params.q_type), row = (size_t)d->params.head_dim * n_bytes;
    const unsigned char *out = d->out;
    size_t at = 0;
    for (int32_t i = 0; i < d->seq.n_q; i++) {
        for (int32_t h = 0; h < d->params.n_heads; h++) {
            for (; at < out_at(d, i, h) * n_bytes; at++) assert_int_equal(out[at], 0xff);
            at += row;
        }
    }
    assert_int_equal(at, d->q_elements * n_bytes);
}

static int bound_of(const data *d, tmx_isa isa)
{
    if (d->params.q_type == TMX_TYPE_F32) return 0;
    return isa >= TMX_ISA_AVX512_BF16 && d->params.kv_type == TMX_TYPE_BF16 ? 2 : 1;
}

typedef struct oracle { double *out, *lse; } oracle;

static oracle oracle_of(const data *d)
{
    const size_t rows = (size_t)d->seq.n_q * (size_t)d->params.n_heads;
    oracle o = { malloc(rows * (size_t)d->params.head_dim * sizeof *o.out), malloc(rows * sizeof *o.lse) };
    assert_true(o.out != NULL && o.lse != NULL);
    attn_ref_f64(&d->params, 0, o.out, o.lse);
    return o;
}

static void oracle_free(oracle o)
{
    free(o.out);
    free(o.lse);
}

/* slack widens the bounds where the scores themselves are large. */
static void compare(const data *d, const oracle *o, int bound, double slack)
{
    double diff = 0.0, norm = 0.0, lse_diff = 0.0;
    const double *ref = o->out, *ref_lse = o->lse;
    for (int32_t i = 0; i < d->seq.n_q; i++) {
        for (int32_t h = 0; h < d->params.n_heads; h++, ref += d->params.head_dim, ref_lse++) {
            for (int32_t c = 0; c < d->params.head_dim; c++) {
                const double x = (double)get(d->out, d->params.q_type, out_at(d, i, h) + (size_t)c);
                assert_true(isfinite(x));
                diff += (x - ref[c]) * (x - ref[c]);
                norm += ref[c] * ref[c];
            }
            const double lse = (double)d->lse[ref_lse - o->lse];
            assert_true(isfinite(lse));
            lse_diff = fmax(lse_diff, fabs(lse - *ref_lse) / fmax(1.0, fabs(*ref_lse)));
        }
    }
    const double error = sqrt(diff / norm);
    if (slack == 1.0) {
        worst_out[bound] = fmax(worst_out[bound], error);
        worst_lse[bound] = fmax(worst_lse[bound], lse_diff);
    }
    if (!(error <= bounds[bound].out * slack && lse_diff <= bounds[bound].lse * slack)) {
        fail_msg("%s: out %.3g (bound %.3g), lse %.3g (bound %.3g); n_q %d at %d of %d, heads %d/%d, head_dim %d, %s",
                 bounds[bound].name, error, bounds[bound].out * slack, lse_diff, bounds[bound].lse * slack, d->seq.n_q,
                 d->seq.q_begin, d->seq.n_prompt, d->params.n_heads, d->params.n_kv_heads, d->params.head_dim,
                 tmx_isa_name(d->params.isa));
    }
}

#define FOR_EACH_ISA(isa) for (tmx_isa isa = TMX_ISA_SCALAR; isa <= tmx_isa_best(); isa++)

static const tmx_type type_pairs[][2] = {
    { TMX_TYPE_F32, TMX_TYPE_F32 }, { TMX_TYPE_BF16, TMX_TYPE_BF16 },
    { TMX_TYPE_F32, TMX_TYPE_BF16 }, { TMX_TYPE_BF16, TMX_TYPE_F32 },
};

static void check_against_oracle(shape s, int n_pairs)
{
    for (int t = 0; t < n_pairs; t++) {
        s.q_type = type_pairs[t][0];
        s.kv_type = type_pairs[t][1];
        data *d = data_make(&s);
        const oracle o = oracle_of(d);
        FOR_EACH_ISA(isa) {
            run_ok(d, isa, NULL);
            check_guards(d);
            compare(d, &o, bound_of(d, isa), 1.0);
        }
        oracle_free(o);
        data_free(d);
    }
}

static tmx_pattern triangle(int32_t n_sink, int32_t n_window, int32_t n_last)
{
    return (tmx_pattern){ TMX_PATTERN_TRIANGLE, n_sink, n_window, n_last };
}

static tmx_pattern random_pattern(int32_t n)
{
    static const int32_t edges[] = { 0, 1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 128 };
    int32_t size[3];
    for (int i = 0; i < 3; i++) size[i] = random_u32() % 8 == 0 ? n + random_in(-1, 3) : edges[random_u32() % 12];
    const tmx_pattern_kind kind = (tmx_pattern_kind)(random_u32() % 3);
    return (tmx_pattern){ kind, max_i32(size[0], 0), max_i32(size[1], 1), max_i32(size[2], 0) };
}

/* ---------------------------------------------------------------- values */

static void odd_shapes_match_the_oracle(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129 };
    static const int32_t groups[] = { 1, 3, 4, 7, 8 }, dims[] = { 64, 80, 96, 128, 256, 1, 7, 33, 65 };
    for (int i = 0; i < 90; i++) {
        const int32_t n = lengths[i % 11], n_kv_heads = random_in(1, 3), group = groups[i % 5];
        const int32_t begin = random_u32() % 2 == 0 ? 0 : random_in(0, n);
        check_against_oracle((shape){
            .n = n, .q_begin = begin, .n_q = random_u32() % 2 == 0 ? n - begin : random_in(1, n - begin + 1),
            .n_heads = n_kv_heads * group, .n_kv_heads = n_kv_heads, .head_dim = dims[i % 9], .pad = random_in(0, 4),
            .pattern = random_pattern(n) }, n < 100 ? 4 : 2);
    }
}

static void long_shapes_match_the_oracle(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 255, 256, 257, 300, 520, 521, 530 };
    for (int i = 0; i < 14; i++) {
        const int32_t n = lengths[i % 7];
        check_against_oracle((shape){ .n = n, .q_begin = i < 7 ? 0 : n - 40, .n_q = i < 7 ? n : 33,
                                      .n_heads = i < 7 ? 1 : 3, .n_kv_heads = 1, .head_dim = i % 2 == 0 ? 64 : 40,
                                      .pattern = i % 3 == 0 ? triangle(8, 512, 128) : random_pattern(n) }, 2);
    }
    check_against_oracle((shape){ .n = 90, .n_q = 90, .n_heads = 64, .n_kv_heads = 1, .head_dim = 16,
                                  .pattern = triangle(3, 20, 10) }, 2);
    check_against_oracle((shape){ .n = 40, .n_q = 40, .n_heads = 2, .n_kv_heads = 1, .head_dim = 512 }, 2);
}

static void one_key_gives_its_value(void **state)
{
    (void)state;
    for (int t = 0; t < 2; t++) {
        data *d = data_make(&(shape){ .n = 1, .n_q = 1, .n_heads = 3, .n_kv_heads = 3, .head_dim = 64,
                                      .q_type = type_pairs[t][0], .kv_type = type_pairs[t][1] });
        FOR_EACH_ISA(isa) {
            run_ok(d, isa, NULL);
            for (size_t h = 0; h < 3; h++) {
                const size_t n_bytes = bytes_of(type_pairs[t][0]);
                assert_memory_equal((char *)d->out + h * 64 * n_bytes, (char *)d->v + h * 64 * n_bytes, 64 * n_bytes);
            }
        }
        data_free(d);
    }
}

/* All keys equal: every weight is the same.  Large scores: +-1e4, then +-1e30, where one key takes all. */
static void extreme_scores_stay_exact(void **state)
{
    (void)state;
    static const struct { float factor; double slack; } scales[] = { { 100.0f, 500.0 }, { 1e15f, 1000.0 } };
    for (int t = 0; t < 2; t++) {
        const shape s = { .n = 150, .n_q = 150, .n_heads = 2, .n_kv_heads = 1, .head_dim = 64,
                          .pattern = triangle(4, 40, 20), .q_type = type_pairs[t][0], .kv_type = type_pairs[t][1] };
        data *d = data_make(&s);
        for (size_t i = 0; i < d->kv_elements; i++) put(d->k, s.kv_type, i, get(d->k, s.kv_type, i % 64));
        oracle o = oracle_of(d);
        FOR_EACH_ISA(isa) {
            run_ok(d, isa, NULL);
            compare(d, &o, bound_of(d, isa), 1.0);
        }
        oracle_free(o);
        data_free(d);
        for (int c = 0; c < 2; c++) {
            d = data_make(&s);
            const float x = scales[c].factor;
            for (size_t i = 0; i < d->q_elements; i++) put(d->q, s.q_type, i, get(d->q, s.q_type, i) * x);
            for (size_t i = 0; i < d->kv_elements; i++) put(d->k, s.kv_type, i, get(d->k, s.kv_type, i) * x);
            o = oracle_of(d);
            FOR_EACH_ISA(isa) {
                run_ok(d, isa, NULL);
                compare(d, &o, bound_of(d, isa), s.q_type == TMX_TYPE_F32 ? scales[c].slack : 2.0);
            }
            oracle_free(o);
            data_free(d);
        }
    }
}

static void a_row_without_weight_gives_zero(void **state)
{
    (void)state;
    for (int t = 0; t < 2; t++) {
        const shape s = { .n = 70, .n_q = 70, .n_heads = 1, .n_kv_heads = 1, .head_dim = 24,
                          .q_type = type_pairs[t][0], .kv_type = type_pairs[t][1] };
        data *d = data_make(&s);
        for (size_t i = 0; i < 70; i++) {
            put(d->q, s.q_type, i * 24, 1.0f);
            if (i < 40) put(d->k, s.kv_type, i * 24, -INFINITY);       /* rows 0..39 see only scores of -inf */
        }
        FOR_EACH_ISA(isa) {
            run_ok(d, isa, NULL);
            for (int32_t i = 0; i < 70; i++) {
                assert_true(i < 40 ? d->lse[i] == -INFINITY : isfinite(d->lse[i]) != 0);
                for (size_t c = 0; c < 24; c++) {
                    const float x = get(d->out, s.q_type, (size_t)i * 24 + c);
                    assert_true(i < 40 ? x == 0.0f : isfinite(x) != 0);
                }
            }
        }
        data_free(d);
    }
}

/* ---------------------------------------------------------------- bits */

typedef struct bits { char *out; float *lse; size_t n_out, n_lse; } bits;

static bits bits_of(const data *d)
{
    bits b = { .n_out = d->q_elements * bytes_of(d->params.q_type),
               .n_lse = (size_t)d->seq.n_q * (size_t)d->params.n_heads * sizeof(float) };
    b.out = malloc(b.n_out);
    b.lse = malloc(b.n_lse);
    assert_true(b.out != NULL && b.lse != NULL);
    memcpy(b.out, d->out, b.n_out);
    memcpy(b.lse, d->lse, b.n_lse);
    return b;
}

static void bits_free(bits b)
{
    free(b.out);
    free(b.lse);
}

static void check_bits(const data *d, const bits *b)
{
    assert_memory_equal(d->out, b->out, b->n_out);
    assert_memory_equal(d->lse, b->lse, b->n_lse);
}

static bool row_equals(const data *d, const bits *b, int32_t i, int32_t h)
{
    const size_t n_bytes = bytes_of(d->params.q_type), at = out_at(d, i, h) * n_bytes;
    const size_t lse_at = (size_t)i * (size_t)d->params.n_heads + (size_t)h;
    return memcmp((const char *)d->out + at, b->out + at, (size_t)d->params.head_dim * n_bytes) == 0
        && memcmp(d->lse + lse_at, b->lse + lse_at, sizeof(float)) == 0;
}

static shape bit_shape(int t, int32_t n, tmx_pattern pattern)
{
    return (shape){ .n = n, .n_q = n, .n_heads = 3, .n_kv_heads = 1, .head_dim = 40, .pad = 1, .pattern = pattern,
                    .q_type = type_pairs[t][0], .kv_type = type_pairs[t][1] };
}

static tmx_pattern bit_pattern(int i)
{
    static const tmx_pattern patterns[] = {
        { TMX_PATTERN_DENSE, 0, 0, 0 }, { TMX_PATTERN_STREAMING, 5, 70, 0 }, { TMX_PATTERN_TRIANGLE, 8, 100, 30 },
        { TMX_PATTERN_TRIANGLE, 19, 33, 77 }, { TMX_PATTERN_STREAMING, 0, 1, 0 },
    };
    return patterns[i];
}
enum { N_BIT_PATTERNS = 5 };

/* Copies of K and V end with the chunk, so reading a later key is reading past the end. */
static void check_chunks(data *d, const shape *s, tmx_isa isa)
{
    run_ok(d, isa, NULL);
    const bits whole = bits_of(d);
    poison(d);
    for (int32_t begin = 0, n_q; begin < s->n; begin += n_q) {
        n_q = min_i32(s->n - begin, random_u32() % 4 == 0 ? random_in(1, 4) : random_in(1, 170));
        const size_t n_q_bytes = bytes_of(s->q_type), n_kv_bytes = bytes_of(s->kv_type);
        const size_t at = (size_t)begin * d->params.q_pos_stride * n_q_bytes;
        const size_t n_kv = (((size_t)(begin + n_q) - 1) * d->params.k_pos_stride + (size_t)s->head_dim) * n_kv_bytes;
        tmx_attention_params p = d->params;
        tmx_attention_seq seq = d->seq;
        char *k = malloc(n_kv), *v = malloc(n_kv);
        assert_true(k != NULL && v != NULL);
        memcpy(k, d->k, n_kv);
        memcpy(v, d->v, n_kv);
        seq.q = (char *)d->q + at;
        seq.out = (char *)d->out + at;
        seq.lse = d->lse + (size_t)begin * (size_t)s->n_heads;
        seq.k = k;
        seq.v = v;
        seq.q_begin = begin;
        seq.n_q = n_q;
        p.seqs = &seq;
        assert_int_equal(tmx_attention(&p, NULL, NULL), TMX_OK);
        free(k);
        free(v);
    }
    check_bits(d, &whole);
    bits_free(whole);
}

static void chunks_never_move_a_bit(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * N_BIT_PATTERNS; i++) {
        const shape s = bit_shape(i % 2, 521, bit_pattern(i / 2));
        data *d = data_make(&s);
        FOR_EACH_ISA(isa) check_chunks(d, &s, isa);
        data_free(d);
    }
}

/* Values so small that products and rescaled sums become denormals and zeros of both signs. */
static void tiny_values_never_move_a_bit(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        const shape s = bit_shape(i % 2, 521, bit_pattern(i / 2 % 2));
        data *d = data_make(&s);
        for (size_t at = 0; at < d->kv_elements; at++) {
            const float v = get(d->v, s.kv_type, at) * (i < 4 ? 1e-37f : 1e-44f), zero = copysignf(0.0f, v);
            put(d->v, s.kv_type, at, random_u32() % 2 == 0 ? v : zero);
            put(d->k, s.kv_type, at, get(d->k, s.kv_type, at) * 6.0f);
        }
        FOR_EACH_ISA(isa) check_chunks(d, &s, isa);
        data_free(d);
    }
}

static void threads_and_scratch_never_move_a_bit(void **state)
{
    (void)state;
    tmx_pool *pools[3];
    static const int32_t n_threads[] = { 2, 3, 9 };
    for (int i = 0; i < 3; i++) assert_int_equal(tmx_pool_create(&pools[i], n_threads[i], NULL), TMX_OK);
    for (int i = 0; i < 2 * N_BIT_PATTERNS; i++) {
        const shape s = bit_shape(i % 2, 300, bit_pattern(i / 2));
        data *d = data_make(&s);
        FOR_EACH_ISA(isa) {
            run_ok(d, isa, NULL);
            const bits alone = bits_of(d);
            for (int t = 0; t < 3; t++) {
                const size_t n_bytes = tmx_attention_scratch_bytes(&d->params, n_threads[t]);
                assert_true(n_bytes > 0);
                run_ok(d, isa, pools[t]);
                check_bits(d, &alone);
                d->params.scratch = aligned_alloc(MEM_ALIGN, align_up(n_bytes, MEM_ALIGN));
                assert_non_null(d->params.scratch);
                memset(d->params.scratch, 0xff, n_bytes);              /* NaN wherever the kernel forgot to write */
                run_ok(d, isa, pools[t]);
                check_bits(d, &alone);
                free(d->params.scratch);
                d->params.scratch = NULL;
            }
            bits_free(alone);
        }
        data_free(d);
    }
    for (int i = 0; i < 3; i++) tmx_pool_free(pools[i]);
}

static void batches_never_move_a_bit(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 97, 1, 300, 33, 0, 128 };
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 2, NULL), TMX_OK);
    for (int i = 0; i < 2 * N_BIT_PATTERNS; i++) {
        FOR_EACH_ISA(isa) {
            data *d[6];
            bits alone[6];
            tmx_attention_seq seqs[6];
            for (int j = 0; j < 6; j++) {
                shape s = bit_shape(i % 2, max_i32(lengths[j], 1), bit_pattern(i / 2));
                s.n_kv_heads = 3;
                s.pad = 0;
                if (j == 2) s.q_begin = 250, s.n_q = 50;
                d[j] = data_make(&s);
                d[j]->params.k_head_stride = 40;           /* one params for all: K position-major too */
                d[j]->params.k_pos_stride = 120;
                run_ok(d[j], isa, NULL);
                alone[j] = bits_of(d[j]);
                poison(d[j]);
                seqs[j] = d[j]->seq;
                if (lengths[j] == 0) seqs[j] = (tmx_attention_seq){ 0 };
            }
            tmx_attention_params p = d[0]->params;
            p.seqs = seqs;
            p.n_seqs = 6;
            assert_int_equal(tmx_attention(&p, pool, NULL), TMX_OK);
            for (int j = 0; j < 6; j++) {
                if (lengths[j] != 0) check_bits(d[j], &alone[j]);
                bits_free(alone[j]);
                data_free(d[j]);
            }
        }
    }
    tmx_pool_free(pool);
}

static void equal_patterns_give_equal_bits(void **state)
{
    (void)state;
    for (int t = 0; t < 2; t++) {
        const shape s = bit_shape(t, 400, (tmx_pattern){ 0 });
        const tmx_pattern pairs[][2] = {
            { { TMX_PATTERN_DENSE, 0, 0, 0 }, { TMX_PATTERN_STREAMING, 0, 400, 0 } },
            { { TMX_PATTERN_DENSE, 0, 0, 0 }, { TMX_PATTERN_STREAMING, 3, INT32_MAX, 0 } },
            { { TMX_PATTERN_DENSE, 0, 0, 0 }, { TMX_PATTERN_STREAMING, INT32_MAX, 1, 0 } },
            { { TMX_PATTERN_DENSE, 0, 0, 0 }, { TMX_PATTERN_TRIANGLE, 0, 1, INT32_MAX } },
            { { TMX_PATTERN_DENSE, 7, 7, 7 }, { TMX_PATTERN_DENSE, 0, 0, 0 } },
            { { TMX_PATTERN_STREAMING, 8, 60, 0 }, { TMX_PATTERN_TRIANGLE, 8, 60, 0 } },
            { { TMX_PATTERN_STREAMING, 0, 1, 0 }, { TMX_PATTERN_TRIANGLE, 0, 1, 0 } },
        };
        data *d = data_make(&s);
        FOR_EACH_ISA(isa) {
            for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
                d->params.pattern = pairs[i][0];
                run_ok(d, isa, NULL);
                const bits b = bits_of(d);
                d->params.pattern = pairs[i][1];
                run_ok(d, isa, NULL);
                check_bits(d, &b);
                bits_free(b);
            }
            /* Rows that see everything equal dense, whatever the masks of their neighbours. */
            d->params.pattern = (tmx_pattern){ 0 };
            run_ok(d, isa, NULL);
            const bits dense = bits_of(d);
            d->params.pattern = triangle(8, 60, 45);
            run_ok(d, isa, NULL);
            for (int32_t i = 0; i < 400; i++) {
                for (int32_t h = 0; h < 3; h++) {
                    if (i < 68 || i >= 355) assert_true(row_equals(d, &dense, i, h));
                }
            }
            bits_free(dense);
        }
        data_free(d);
    }
}

/* A head alone (group of 1, other places in the blocks) and beside heads full of NaN queries. */
static void neighbours_never_move_a_bit(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * N_BIT_PATTERNS; i++) {
        const shape s = bit_shape(i % 2, 200, bit_pattern(i / 2));
        data *d = data_make(&s);
        FOR_EACH_ISA(isa) {
            run_ok(d, isa, NULL);
            const bits grouped = bits_of(d);
            tmx_attention_params p = d->params;
            tmx_attention_seq seq = d->seq;
            seq.q = (char *)d->q + p.q_head_stride * bytes_of(s.q_type);
            seq.out = (char *)d->out + p.out_head_stride * bytes_of(s.q_type);
            seq.lse = NULL;
            p.seqs = &seq;
            p.n_heads = 1;
            poison(d);
            memcpy(d->lse, grouped.lse, grouped.n_lse);
            assert_int_equal(tmx_attention(&p, NULL, NULL), TMX_OK);
            for (int32_t row = 0; row < s.n; row++) assert_true(row_equals(d, &grouped, row, 1));
            bits_free(grouped);
        }
        FOR_EACH_ISA(isa) {
            run_ok(d, isa, NULL);
            const bits clean = bits_of(d);
            for (int32_t row = 0; row < s.n; row++) {
                for (int32_t h = 0; h < 3; h++) {
                    if ((row + h) % 3 == 0) continue;
                    put(d->q, s.q_type, out_at(d, row, h) + (size_t)random_in(0, 40), NAN);
                }
            }
            run_ok(d, isa, NULL);
            for (int32_t row = 0; row < s.n; row++) {
                for (int32_t h = 0; h < 3; h++) {
                    if ((row + h) % 3 == 0) assert_true(row_equals(d, &clean, row, h));
                    else assert_true(isnan(get(d->out, s.q_type, out_at(d, row, h))));
                }
            }
            for (size_t at = 0; at < d->q_elements; at++) {
                if (isnan(get(d->q, s.q_type, at))) put(d->q, s.q_type, at, random_normal());
            }
            bits_free(clean);
        }
        data_free(d);
    }
}

/* NaN or infinity in K or V reaches exactly the rows that see it; the others keep every bit. */
static void nan_reaches_only_rows_that_see_it(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * N_BIT_PATTERNS; i++) {
        const shape s = bit_shape(i % 2, 290, bit_pattern(i / 2));
        data *d = data_make(&s);
        const size_t row_stride = (size_t)(s.head_dim + s.pad);
        FOR_EACH_ISA(isa) {
            run_ok(d, isa, NULL);
            const bits clean = bits_of(d);
            for (int c = 0; c < 12; c++) {
                const int32_t key = c < 3 ? c * 2 : random_in(0, s.n);
                const bool is_v = c % 2 == 0;
                const size_t dim = (size_t)random_in(0, s.head_dim), at = (size_t)key * row_stride + dim;
                void *buffer = is_v ? d->v : d->k;
                const float old = get(buffer, s.kv_type, at), bad = is_v && c % 4 == 0 ? -INFINITY : NAN;
                put(buffer, s.kv_type, at, bad);
                run_ok(d, isa, NULL);
                for (int32_t row = 0; row < s.n; row++) {
                    for (int32_t h = 0; h < 3; h++) {
                        if (!pattern_is_visible(&s.pattern, s.n, row, key)) assert_true(row_equals(d, &clean, row, h));
                        else assert_true(isfinite(get(d->out, s.q_type, out_at(d, row, h) + dim)) == 0);
                    }
                }
                put(buffer, s.kv_type, at, old);
            }
            bits_free(clean);
        }
        data_free(d);
    }
}

/* ---------------------------------------------------------------- decode */

static void decode_matches_the_oracle(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 1, 2, 15, 16, 17, 511, 512, 513, 1300 }, dims[] = { 64, 80, 128, 33, 256 };
    static const int32_t groups[] = { 1, 3, 8 };
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 3, NULL), TMX_OK);
    for (int i = 0; i < 36; i++) {
        const int32_t n = lengths[i % 9], group = groups[i % 3];
        shape s = { .n = n, .q_begin = n - 1, .n_q = 1, .n_heads = 2 * group, .n_kv_heads = 2, .head_dim = dims[i % 5],
                    .pad = i % 2, .q_type = type_pairs[i % 4][0], .kv_type = type_pairs[i % 4][1] };
        data *d = data_make(&s);
        const oracle o = oracle_of(d);
        const size_t n_bytes = attn_decode_scratch_bytes(&d->params, n, 3);
        d->params.scratch = mem_alloc(n_bytes, 1);
        assert_non_null(d->params.scratch);
        FOR_EACH_ISA(isa) {
            d->params.isa = isa;
            memset(d->params.scratch, 0xff, n_bytes);
            attn_decode(&d->params, NULL);
            check_guards(d);
            compare(d, &o, s.q_type == TMX_TYPE_F32 ? 0 : 1, 1.0);
            const bits alone = bits_of(d);
            poison(d);
            attn_decode(&d->params, pool);
            check_bits(d, &alone);
            bits_free(alone);
        }
        mem_free(d->params.scratch);
        oracle_free(o);
        data_free(d);
    }
    tmx_pool_free(pool);
}

static void decode_takes_ragged_batches(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 700, 3, 1025 };
    data *d[3];
    bits alone[3];
    tmx_attention_seq seqs[3];
    for (int i = 0; i < 3; i++) {
        d[i] = data_make(&(shape){ .n = lengths[i], .q_begin = lengths[i] - 1, .n_q = 1, .n_heads = 6, .n_kv_heads = 2,
                                   .head_dim = 64, .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_BF16 });
        d[i]->params.k_pos_stride = 128;
        d[i]->params.k_head_stride = 64;
        d[i]->params.scratch = mem_alloc(attn_decode_scratch_bytes(&d[i]->params, lengths[i], 1), 1);
        attn_decode(&d[i]->params, NULL);
        alone[i] = bits_of(d[i]);
        poison(d[i]);
        seqs[i] = d[i]->seq;
        mem_free(d[i]->params.scratch);
    }
    tmx_attention_params p = d[0]->params;
    p.seqs = seqs;
    p.n_seqs = 3;
    p.scratch = mem_alloc(attn_decode_scratch_bytes(&p, 1025, 1), 1);
    attn_decode(&p, NULL);
    mem_free(p.scratch);
    for (int i = 0; i < 3; i++) {
        check_bits(d[i], &alone[i]);
        bits_free(alone[i]);
        data_free(d[i]);
    }
}

/* ---------------------------------------------------------------- the door */

static void the_door_names_the_field(void **state)
{
    (void)state;
    data *d = data_make(&(shape){ .n = 20, .q_begin = 4, .n_q = 10, .n_heads = 6, .n_kv_heads = 2, .head_dim = 8,
                                  .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_BF16 });
    const tmx_attention_params good = d->params;
    const tmx_attention_seq good_seq = d->seq;
    tmx_attention_params p;
    tmx_error err;
    _Alignas(64) static char misaligned[128];
#define REFUSED(expected, ...) do { \
        p = good; \
        d->seq = good_seq; \
        __VA_ARGS__; \
        assert_int_equal(tmx_attention(&p, NULL, &err), TMX_E_ARG); \
        if (strstr(err.text, expected) == NULL) fail_msg("'%s' does not name '%s'", err.text, expected); \
    } while (0)
    assert_int_equal(tmx_attention(NULL, NULL, &err), TMX_E_ARG);
    assert_string_equal(err.text, "attention: params is NULL");
    REFUSED("n_heads: 0", p.n_heads = 0);
    REFUSED("n_kv_heads: -1", p.n_kv_heads = -1);
    REFUSED("n_heads: 7 is not a multiple of n_kv_heads 2", p.n_heads = 7);
    REFUSED("at most 64", p.n_heads = 130);
    REFUSED("head_dim: 0", p.head_dim = 0);
    REFUSED("head_dim: 513", p.head_dim = 513);
    REFUSED("n_seqs: -1", p.n_seqs = -1);
    REFUSED("seqs is NULL", p.seqs = NULL);
    REFUSED("q_type: 3", p.q_type = (tmx_type)3);
    REFUSED("kv_type: 9", p.kv_type = (tmx_type)9);
    REFUSED("scale: -1", p.scale = -1.0f);
    REFUSED("scale: nan", p.scale = NAN);
    REFUSED("scale: inf", p.scale = INFINITY);
    REFUSED("pattern", p.pattern.kind = (tmx_pattern_kind)7);
    REFUSED("n_window", p.pattern.kind = TMX_PATTERN_STREAMING);
    REFUSED("n_last", p.pattern = triangle(1, 1, -1));
    REFUSED("isa: 6", p.isa = (tmx_isa)6);
    REFUSED("scratch: not aligned", p.scratch = misaligned + 1);
    REFUSED("seqs[0].q is NULL", d->seq.q = NULL);
    REFUSED("seqs[0].k is NULL", d->seq.k = NULL);
    REFUSED("seqs[0].v is NULL", d->seq.v = NULL);
    REFUSED("seqs[0].out is NULL", d->seq.out = NULL);
    REFUSED("seqs[0].q: not aligned", d->seq.q = (char *)d->q + 1);
    REFUSED("seqs[0].v: not aligned", d->seq.v = (char *)d->v + 1);
    REFUSED("seqs[0].lse: not aligned", d->seq.lse = (float *)(void *)((char *)d->lse + 2));
    REFUSED("seqs[0].q_begin: -1", d->seq.q_begin = -1);
    REFUSED("seqs[0].n_q: -5", d->seq.n_q = -5);
    REFUSED("seqs[0].n_prompt: 13", d->seq.n_prompt = 13);
    REFUSED("seqs[0].n_prompt: 20", d->seq.q_begin = INT32_MAX, d->seq.n_q = INT32_MAX);
    REFUSED("seqs[0].k: strides", p.k_pos_stride = SIZE_MAX / 2);
    REFUSED("seqs[0].v: strides", p.v_head_stride = SIZE_MAX / 4);
    REFUSED("rows of seqs[0].out overlap", p.out_head_stride = 7);
    REFUSED("rows of seqs[0].out overlap", p.out_pos_stride = 40);
    REFUSED("out overlaps q", d->seq.out = (float *)d->q + 4);
    REFUSED("out overlaps k", d->seq.k = d->out);
    REFUSED("out overlaps v", d->seq.v = (char *)d->out + 64);
    REFUSED("lse overlaps out", d->seq.lse = (float *)d->out);
#undef REFUSED
    if (tmx_isa_best() != TMX_ISA_AMX) {
        p = good;
        p.isa = TMX_ISA_AMX;
        assert_int_equal(tmx_attention(&p, NULL, &err), TMX_E_ARG);
    }
    d->seq = good_seq;
    const unsigned char *out = d->out;
    for (size_t i = 0; i < d->q_elements * 4; i++) assert_int_equal(out[i], 0xff);     /* refused: untouched */

    p = good;
    p.head_dim = 0;
    assert_int_equal(tmx_attention_scratch_bytes(&p, 1), 0);
    assert_int_equal(tmx_attention_scratch_bytes(NULL, 1), 0);
    p = good;
    p.n_seqs = 0;
    p.seqs = NULL;
    assert_int_equal(tmx_attention(&p, NULL, &err), TMX_OK);
    data_free(d);
}

static void in_place_is_allowed(void **state)
{
    (void)state;
    data *d = data_make(&(shape){ .n = 150, .n_q = 150, .n_heads = 6, .n_kv_heads = 2, .head_dim = 24,
                                  .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_F32 });
    run_ok(d, TMX_ISA_AUTO, NULL);
    d->seq.out = d->q;
    d->seq.lse = NULL;
    assert_int_equal(tmx_attention(&d->params, NULL, NULL), TMX_OK);
    assert_memory_equal(d->q, d->out, d->q_elements * sizeof(float));
    data_free(d);
}

static int print_worst(void **state)
{
    (void)state;
    for (int i = 0; i < N_BOUNDS; i++) {
        print_message("worst %-26s out %.2g of %.2g, lse %.2g of %.2g\n", bounds[i].name, worst_out[i], bounds[i].out,
                      worst_lse[i], bounds[i].lse);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_shapes_match_the_oracle),
        cmocka_unit_test(long_shapes_match_the_oracle),
        cmocka_unit_test(one_key_gives_its_value),
        cmocka_unit_test(extreme_scores_stay_exact),
        cmocka_unit_test(a_row_without_weight_gives_zero),
        cmocka_unit_test(chunks_never_move_a_bit),
        cmocka_unit_test(tiny_values_never_move_a_bit),
        cmocka_unit_test(threads_and_scratch_never_move_a_bit),
        cmocka_unit_test(batches_never_move_a_bit),
        cmocka_unit_test(equal_patterns_give_equal_bits),
        cmocka_unit_test(neighbours_never_move_a_bit),
        cmocka_unit_test(nan_reaches_only_rows_that_see_it),
        cmocka_unit_test(decode_matches_the_oracle),
        cmocka_unit_test(decode_takes_ragged_batches),
        cmocka_unit_test(the_door_names_the_field),
        cmocka_unit_test(in_place_is_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, print_worst);
}
