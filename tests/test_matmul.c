/* rooms: ops gguf base */
#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "gguf/blocks.h"
#include "ops/matmul.h"

#include <dirent.h>
#include <malloc.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define COUNT_OF(a) (sizeof(a) / sizeof(a)[0])

/* Largest |y - y64| / sum |x * w| over all cases below, as measured on Zen 4, beside what the test lets pass. */
static const struct {
    const char *op;
    double limit;
} limits[] = {
    { "matmul f32", 6e-7 },        /* 2.6e-7: the scalar rung, which rounds twice */
    { "matmul bf16", 3e-7 },       /* 9.7e-8, against operands that are rounded already */
    { "matvec", 3e-7 },            /* 9.6e-8 */
};
enum { LIMIT_MATMUL_F32, LIMIT_MATMUL_BF16, LIMIT_MATVEC, N_LIMITS };
static double worst[N_LIMITS];

static uint64_t random_state = 20250721;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static float random_f32(void) { return (float)((double)random_u32() / 0x1p30 - 1.0); }

static const uint32_t block_types[] = {
    BLOCK_F32, BLOCK_F16, BLOCK_BF16, BLOCK_Q4_0, BLOCK_Q4_1, BLOCK_Q5_0, BLOCK_Q5_1, BLOCK_Q8_0, BLOCK_Q2_K, BLOCK_Q3_K,
    BLOCK_Q4_K, BLOCK_Q5_K, BLOCK_Q6_K, BLOCK_Q8_K, BLOCK_IQ4_NL, BLOCK_IQ4_XS, BLOCK_MXFP4,
};

/* Where a block has its halves; a scale is near 0.01, a minimum near -0.06. */
static const struct { uint32_t type; int scale, minimum; } halves[] = {
    { BLOCK_F16, 0, -1 }, { BLOCK_Q4_0, 0, -1 }, { BLOCK_Q4_1, 0, 2 }, { BLOCK_Q5_0, 0, -1 }, { BLOCK_Q5_1, 0, 2 },
    { BLOCK_Q8_0, 0, -1 }, { BLOCK_Q2_K, 80, 82 }, { BLOCK_Q3_K, 108, -1 }, { BLOCK_Q4_K, 0, 2 }, { BLOCK_Q5_K, 0, 2 },
    { BLOCK_Q6_K, 208, -1 }, { BLOCK_IQ4_NL, 0, -1 }, { BLOCK_IQ4_XS, 0, -1 },
};

/* Random weights in a buffer of exactly their size. */
static matmul_source random_source(uint32_t type, int32_t n_out, int32_t n_in)
{
    const block_format *format = block_format_find(type);
    const size_t n_bytes = (size_t)n_out * block_row_bytes(format, (size_t)n_in), block = (size_t)format->n_bytes;
    unsigned char *data = mem_alloc(1, n_bytes);
    assert_non_null(data);
    for (size_t at = 0; at < n_bytes; at += block) {
        for (size_t i = 0; i < block; i++) data[at + i] = (unsigned char)random_u32();
        const uint16_t half = (uint16_t)(0x2000u + random_u32() % 0x400u);
        const float plain = random_f32();
        const tmx_bf16 narrow = bf16_from_f32(plain);
        const uint16_t minimum = (uint16_t)(0xac00u + random_u32() % 0x400u);
        if (type == BLOCK_F32 || type == BLOCK_Q8_K) memcpy(data + at, &plain, sizeof plain);
        if (type == BLOCK_BF16) memcpy(data + at, &narrow, sizeof narrow);
        if (type == BLOCK_MXFP4) data[at] = (unsigned char)(118 + random_u32() % 8);
        for (size_t h = 0; h < COUNT_OF(halves); h++) {
            if (halves[h].type != type) continue;
            memcpy(data + at + halves[h].scale, &half, sizeof half);
            if (halves[h].minimum >= 0) memcpy(data + at + halves[h].minimum, &minimum, sizeof minimum);
        }
    }
    return (matmul_source){ .data = data, .type = type, .n_out = n_out, .n_in = n_in };
}

static void source_free(matmul_source *source) { mem_free((void *)(uintptr_t)source->data); }

static int count_threads(void)
{
    DIR *dir = opendir("/proc/self/task");
    assert_non_null(dir);
    int n = 0;
    while (readdir(dir) != NULL) n++;
    closedir(dir);
    return n - 2;
}

/* Every way a product can be made on this CPU. */
typedef struct variant {
    tmx_isa isa;
    tmx_compute compute;
    matmul_provider provider;
} variant;

static variant variants[16];
static int n_variants;
static int n_threads_at_start;         /* the pool of the tests is up, no library has been called */

static void find_variants(void)
{
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) {
            printf("# skipped: this CPU has no %s\n", tmx_isa_name((tmx_isa)isa));
            continue;
        }
        variants[n_variants++] = (variant){ (tmx_isa)isa, TMX_COMPUTE_F32, MATMUL_BUILTIN };
        variants[n_variants++] = (variant){ (tmx_isa)isa, TMX_COMPUTE_BF16, MATMUL_BUILTIN };
    }
    matmul_source source = random_source(BLOCK_F32, 1, 1);
    matmul_weight *weight = NULL;
    tmx_error err;
    const tmx_status status =
        matmul_weight_create(&weight, &source, 1, TMX_COMPUTE_BF16, tmx_isa_best(), MATMUL_ONEDNN, NULL, &err);
    if (status == TMX_OK) variants[n_variants++] = (variant){ tmx_isa_best(), TMX_COMPUTE_BF16, MATMUL_ONEDNN };
    else printf("# skipped: oneDNN (%s)\n", err.text);
    matmul_weight_free(weight);
    source_free(&source);
}

static matmul_weight *weight_of(const variant *v, const matmul_source *sources, int32_t n_sources, tmx_pool *pool)
{
    matmul_weight *weight = NULL;
    tmx_error err = { .text = "" };
    const tmx_status status =
        matmul_weight_create(&weight, sources, n_sources, v->compute, v->isa, v->provider, pool, &err);
    assert_string_equal(err.text, "");
    assert_int_equal(status, TMX_OK);
    assert_int_equal(matmul_provider_of(weight), v->provider);
    return weight;
}

/* Rows of x in the variant's type, padded with NaN to the stride: nothing may read the padding. */
static void *random_rows(tmx_compute compute, int32_t n_rows, int32_t n_in, size_t stride)
{
    const size_t item = compute == TMX_COMPUTE_BF16 ? sizeof(tmx_bf16) : sizeof(float);
    char *x = mem_alloc((size_t)(n_rows - 1) * stride + (size_t)n_in, item);
    assert_non_null(x);
    for (size_t i = 0; i < (size_t)(n_rows - 1) * stride + (size_t)n_in; i++) {
        const float value = i % stride < (size_t)n_in ? random_f32() : NAN;
        if (compute == TMX_COMPUTE_BF16) ((tmx_bf16 *)(void *)x)[i] = bf16_from_f32(value);
        else ((float *)(void *)x)[i] = value;
    }
    return x;
}

static double x_at(const void *x, tmx_compute compute, size_t i)
{
    return compute == TMX_COMPUTE_BF16 ? (double)bf16_to_f32(((const tmx_bf16 *)x)[i]) : (double)((const float *)x)[i];
}

static void judge(int limit, double error)
{
    if (!(error <= limits[limit].limit)) {
        fail_msg("%s: error %.3g, limit %.3g", limits[limit].op, error, limits[limit].limit);
    }
    if (error > worst[limit]) worst[limit] = error;
}

static void check_product(const variant *v, const matmul_source *source, int32_t n_rows, bool is_added, tmx_pool *pool)
{
    const float before = is_added ? 0.75f : NAN, guard = -12345.0f;
    const size_t n_in = (size_t)source->n_in, n_out = (size_t)source->n_out;
    const size_t x_stride = n_in + (is_added ? 3 : 0), y_stride = n_out + 5, n_y = (size_t)n_rows * y_stride;
    matmul_weight *weight = weight_of(v, source, 1, pool);
    void *x = random_rows(v->compute, n_rows, source->n_in, x_stride);
    void *scratch = mem_alloc(1, matmul_scratch_bytes(source->n_out, source->n_in, pool_n_threads(pool)));
    float *y = mem_alloc(n_y, sizeof *y), *row = mem_alloc(n_in, sizeof *row);
    for (size_t i = 0; i < n_y; i++) y[i] = i % y_stride < n_out ? before : guard;
    matmul_run(weight, x, x_stride, n_rows, y, y_stride, is_added, scratch, pool);

    const block_format *format = block_format_find(source->type);
    for (size_t o = 0; o < n_out; o++) {
        format->to_f32((const char *)source->data + o * block_row_bytes(format, n_in), row, n_in);
        for (size_t r = 0; r < (size_t)n_rows; r++) {
            double sum = 0, size = is_added ? (double)before : 0;
            for (size_t i = 0; i < n_in; i++) {
                const float w = v->compute == TMX_COMPUTE_BF16 ? bf16_to_f32(bf16_from_f32(row[i])) : row[i];
                const double product = x_at(x, v->compute, r * x_stride + i) * (double)w;
                sum += product;
                size += fabs(product);
            }
            if (is_added) sum += (double)before;
            judge(v->compute == TMX_COMPUTE_BF16 ? LIMIT_MATMUL_BF16 : LIMIT_MATMUL_F32,
                  fabs((double)y[r * y_stride + o] - sum) / size);
        }
    }
    for (size_t i = 0; i < n_y; i++) {
        if (i % y_stride >= n_out) assert_true(y[i] == guard);
    }
    mem_free(x), mem_free(y), mem_free(row), mem_free(scratch);
    matmul_weight_free(weight);
}

static void products_match_f64(void **state)
{
    static const int32_t shapes[][3] = {           /* n_out, n_in, n_rows */
        { 1, 1, 1 }, { 1, 2, 3 }, { 3, 5, 7 }, { 15, 17, 6 }, { 16, 16, 4 }, { 17, 15, 5 }, { 64, 64, 12 },
        { 63, 65, 11 }, { 65, 63, 8 }, { 130, 33, 103 }, { 33, 511, 10 }, { 20, 513, 9 }, { 70, 1023, 2 },
        { 18, 1025, 13 }, { 9, 2051, 1 }, { 1100, 40, 65 }, { 193, 96, 97 },
    };
    tmx_pool *pool = *state;
    for (int i = 0; i < n_variants; i++) {
        for (size_t s = 0; s < COUNT_OF(shapes); s++) {
            matmul_source source = random_source(BLOCK_F32, shapes[s][0], shapes[s][1]);
            check_product(&variants[i], &source, shapes[s][2], false, s % 2 == 0 ? pool : NULL);
            check_product(&variants[i], &source, shapes[s][2], true, s % 2 == 0 ? NULL : pool);
            source_free(&source);
        }
        for (size_t t = 0; t < COUNT_OF(block_types); t++) {
            const int32_t n_block = block_format_find(block_types[t])->n_elements;
            matmul_source source = random_source(block_types[t], 37, n_block > 96 ? 2 * n_block : 96);
            check_product(&variants[i], &source, 7, false, pool);
            source_free(&source);
        }
    }
}

/* n_in takes every kernel through more than one block of k, n_out through more than one panel. */
static void bits_depend_on_the_row_alone(void **state)
{
    static const int32_t row_counts[] = { 1, 2, 5, 63, 64, 65, 200, 513 };
    enum { N_OUT = 70, N_IN = 1031, N_ROWS = 513 };
    tmx_pool *pools[] = { NULL, *state, NULL };
    assert_int_equal(tmx_pool_create(&pools[2], 5, NULL), TMX_OK);
    matmul_source source = random_source(BLOCK_F32, N_OUT, N_IN);
    void *scratch = mem_alloc(1, matmul_scratch_bytes(N_OUT, N_IN, 5));
    float *whole = mem_alloc((size_t)N_ROWS * N_OUT, sizeof *whole);
    float *part = mem_alloc((size_t)N_ROWS * N_OUT, sizeof *part);
    for (int i = 0; i < n_variants; i++) {
        const size_t item = variants[i].compute == TMX_COMPUTE_BF16 ? sizeof(tmx_bf16) : sizeof(float);
        char *x = random_rows(variants[i].compute, N_ROWS, N_IN, N_IN);
        matmul_weight *weight = weight_of(&variants[i], &source, 1, NULL);
        matmul_weight *twin = weight_of(&variants[i], &source, 1, pools[2]);
        matmul_run(weight, x, N_IN, N_ROWS, whole, N_OUT, false, scratch, NULL);
        for (size_t c = 0; c < COUNT_OF(row_counts); c++) {
            const int32_t n_rows = row_counts[c];
            const size_t begin = (size_t)(N_ROWS - n_rows) * (c % 3) / 2;      /* the front, the middle, the end */
            memset(part, 0xff, (size_t)N_ROWS * N_OUT * sizeof *part);
            matmul_run(c % 2 == 0 ? weight : twin, x + begin * N_IN * item, N_IN, n_rows, part, N_OUT, false, scratch,
                       pools[c % COUNT_OF(pools)]);
            assert_memory_equal(part, whole + begin * N_OUT, (size_t)n_rows * N_OUT * sizeof *part);
        }
        matmul_weight_free(weight);
        matmul_weight_free(twin);
        mem_free(x);
    }
    mem_free(whole), mem_free(part), mem_free(scratch);
    source_free(&source);
    tmx_pool_free(pools[2]);
}

static void stacked_sources_equal_single_ones(void **state)
{
    enum { N_IN = 160, N_ROWS = 9, N_OUT = 30 + 1 + 77 + 64 };
    matmul_source sources[] = {
        random_source(BLOCK_Q4_1, 30, N_IN), random_source(BLOCK_F16, 1, N_IN), random_source(BLOCK_Q8_0, 77, N_IN),
        random_source(BLOCK_Q4_0, 64, N_IN),
    };
    void *scratch = mem_alloc(1, matmul_scratch_bytes(N_OUT, N_IN, pool_n_threads(*state)));
    float *stacked = mem_alloc((size_t)N_ROWS * N_OUT, sizeof *stacked);
    float *single = mem_alloc((size_t)N_ROWS * 77, sizeof *single);
    for (int i = 0; i < n_variants; i++) {
        void *x = random_rows(variants[i].compute, N_ROWS, N_IN, N_IN);
        matmul_weight *weight = weight_of(&variants[i], sources, COUNT_OF(sources), *state);
        matmul_run(weight, x, N_IN, N_ROWS, stacked, N_OUT, false, scratch, *state);
        matmul_weight_free(weight);
        size_t out = 0;
        for (size_t s = 0; s < COUNT_OF(sources); s++) {
            const size_t n_out = (size_t)sources[s].n_out;
            weight = weight_of(&variants[i], &sources[s], 1, *state);
            matmul_run(weight, x, N_IN, N_ROWS, single, n_out, false, scratch, *state);
            matmul_weight_free(weight);
            for (size_t r = 0; r < N_ROWS; r++) {
                assert_memory_equal(stacked + r * N_OUT + out, single + r * n_out, n_out * sizeof *single);
            }
            out += n_out;
        }
        mem_free(x);
    }
    mem_free(stacked), mem_free(single), mem_free(scratch);
    for (size_t s = 0; s < COUNT_OF(sources); s++) source_free(&sources[s]);
}

/* Bit for bit the product with a matrix that was transposed by hand: one kernel, one order of sums. */
static void transposed_equals_a_transposed_matrix(void **state)
{
    enum { N_IN = 160, N_ROWS = 9, N_OUT = 31 + 1 + 77 };
    matmul_source sources[] = {
        random_source(BLOCK_Q4_1, 31, N_IN), random_source(BLOCK_F16, 1, N_IN), random_source(BLOCK_Q8_0, 77, N_IN),
    };
    float *flat = mem_alloc((size_t)N_IN * N_OUT, sizeof *flat), *row = mem_alloc(N_IN, sizeof *row);
    size_t out = 0;
    for (size_t s = 0; s < COUNT_OF(sources); s++) {
        const block_format *format = block_format_find(sources[s].type);
        for (size_t o = 0; o < (size_t)sources[s].n_out; o++, out++) {
            format->to_f32((const char *)sources[s].data + o * block_row_bytes(format, N_IN), row, N_IN);
            for (size_t i = 0; i < N_IN; i++) flat[i * N_OUT + out] = row[i];
        }
    }
    const matmul_source by_hand = { .data = flat, .type = BLOCK_F32, .n_out = N_IN, .n_in = N_OUT };
    void *scratch = mem_alloc(1, matmul_scratch_bytes(N_IN, N_OUT, pool_n_threads(*state)));
    float *y = mem_alloc((size_t)N_ROWS * N_IN, sizeof *y), *expected = mem_alloc((size_t)N_ROWS * N_IN, sizeof *y);
    for (int i = 0; i < n_variants; i++) {
        const variant *v = &variants[i];
        void *x = random_rows(v->compute, N_ROWS, N_OUT, N_OUT);
        matmul_weight *weight = NULL, *twin = weight_of(v, &by_hand, 1, NULL);
        assert_int_equal(matmul_weight_create_transposed(&weight, sources, COUNT_OF(sources), v->compute, v->isa, v->provider,
                                                         *state, NULL), TMX_OK);
        memset(y, 0xff, (size_t)N_ROWS * N_IN * sizeof *y);
        matmul_run(weight, x, N_OUT, N_ROWS, y, N_IN, false, scratch, *state);
        matmul_run(twin, x, N_OUT, N_ROWS, expected, N_IN, false, scratch, NULL);
        assert_memory_equal(y, expected, (size_t)N_ROWS * N_IN * sizeof *y);
        matmul_weight_free(weight);
        matmul_weight_free(twin);
        mem_free(x);
    }
    mem_free(flat), mem_free(row), mem_free(y), mem_free(expected), mem_free(scratch);
    for (size_t s = 0; s < COUNT_OF(sources); s++) source_free(&sources[s]);
}

static void a_bad_row_spoils_no_other(void **state)
{
    enum { N_OUT = 20, N_IN = 33, N_ROWS = 70, BAD = 65 };
    matmul_source source = random_source(BLOCK_F32, N_OUT, N_IN);
    void *scratch = mem_alloc(1, matmul_scratch_bytes(N_OUT, N_IN, pool_n_threads(*state)));
    float *y = mem_alloc((size_t)N_ROWS * N_OUT, sizeof *y);
    for (int i = 0; i < n_variants; i++) {
        void *x = random_rows(variants[i].compute, N_ROWS, N_IN, N_IN);
        if (variants[i].compute == TMX_COMPUTE_BF16) ((tmx_bf16 *)x)[BAD * N_IN + 7] = bf16_from_f32(NAN);
        else ((float *)x)[BAD * N_IN + 7] = NAN;
        matmul_weight *weight = weight_of(&variants[i], &source, 1, NULL);
        matmul_run(weight, x, N_IN, N_ROWS, y, N_OUT, false, scratch, *state);
        for (int k = 0; k < N_ROWS * N_OUT; k++) assert_int_equal(isnan(y[k]) != 0, k / N_OUT == BAD);
        matmul_weight_free(weight);
        mem_free(x);
    }
    mem_free(y), mem_free(scratch);
    source_free(&source);
}

static void wrong_sources_are_refused(void **state)
{
    (void)state;
    const float data[64] = { 0 };
    matmul_weight *weight = NULL;
    tmx_error err;
    const matmul_source good = { .data = data, .type = BLOCK_F32, .n_out = 2, .n_in = 32 };
    const struct { matmul_source sources[2]; int32_t n; tmx_status status; const char *text; } cases[] = {
        { { good }, 0, TMX_E_ARG, "matmul: 0 sources, expected 1..4" },
        { { good }, 5, TMX_E_ARG, "matmul: 5 sources, expected 1..4" },
        { { good, { .data = data, .type = BLOCK_F32, .n_out = 2, .n_in = 16 } }, 2, TMX_E_ARG,
          "matmul: source 1 is [2][16], expected [>= 1][32]" },
        { { { .data = data, .type = BLOCK_F32, .n_out = 0, .n_in = 32 } }, 1, TMX_E_ARG,
          "matmul: source 0 is [0][32], expected [>= 1][32]" },
        { { { .data = data, .type = BLOCK_Q8_0, .n_out = 1, .n_in = 33 } }, 1, TMX_E_ARG,
          "matmul: source 0 has rows of 33 elements, expected a multiple of 32 (Q8_0)" },
        { { { .data = data, .type = 9999, .n_out = 1, .n_in = 32 } }, 1, TMX_E_UNSUPPORTED,
          "matmul: source 0 has block type 9999 (unknown), which cannot be expanded" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        assert_int_equal(matmul_weight_create(&weight, cases[i].sources, cases[i].n, TMX_COMPUTE_F32, TMX_ISA_SCALAR,
                                              MATMUL_AUTO, NULL, &err), cases[i].status);
        assert_string_equal(err.text, cases[i].text);
        assert_int_equal(matmul_weight_create_transposed(&weight, cases[i].sources, cases[i].n, TMX_COMPUTE_F32,
                                                         TMX_ISA_SCALAR, MATMUL_AUTO, NULL, &err), cases[i].status);
        assert_string_equal(err.text, cases[i].text);
        assert_null(weight);
    }
    assert_int_equal(TMX_E_ARG, matmul_weight_create(&weight, &good, 1, TMX_COMPUTE_AUTO, TMX_ISA_SCALAR,
                                                     MATMUL_AUTO, NULL, &err));
    assert_int_equal(TMX_E_UNSUPPORTED, matmul_weight_create(&weight, &good, 1, TMX_COMPUTE_F32, TMX_ISA_SCALAR,
                                                             MATMUL_ONEDNN, NULL, &err));
    matmul_weight_free(NULL);
}

/* Counts what malloc gave out, so it needs the C library's own malloc. */
static void weight_bytes_are_what_create_takes(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    printf("# skipped: a sanitizer's malloc does not count\n");
#else
    static const int32_t shapes[][2] = { { 960, 576 }, { 576, 1536 }, { 1100, 1000 }, { 150, 1601 }, { 3000, 2050 } };
    for (int i = 0; i < n_variants; i++) {
        for (size_t s = 0; s < COUNT_OF(shapes); s++) {
            matmul_source source = random_source(BLOCK_F32, shapes[s][0], shapes[s][1]);
            matmul_weight_free(weight_of(&variants[i], &source, 1, NULL));         /* a library's first-use costs */
            const struct mallinfo2 before = mallinfo2();
            matmul_weight *weight = weight_of(&variants[i], &source, 1, NULL);
            const struct mallinfo2 after = mallinfo2();
            const double taken = (double)(after.uordblks + after.hblkhd) - (double)(before.uordblks + before.hblkhd);
            const double said = (double)matmul_weight_bytes(shapes[s][0], shapes[s][1], variants[i].compute);
            if (!(fabs(taken - said) <= 0.05 * taken)) {
                fail_msg("provider %d [%d][%d]: took %.0f bytes, said %.0f", variants[i].provider, shapes[s][0],
                         shapes[s][1], taken, said);
            }
            matmul_weight_free(weight);
            source_free(&source);
        }
    }
#endif
}

static void no_library_brings_its_own_threads(void **state)
{
    enum { N_OUT = 300, N_IN = 256, N_ROWS = 300 };
    matmul_source source = random_source(BLOCK_F32, N_OUT, N_IN);
    void *scratch = mem_alloc(1, matmul_scratch_bytes(N_OUT, N_IN, pool_n_threads(*state)));
    float *y = mem_alloc((size_t)N_ROWS * N_OUT, sizeof *y);
    for (int i = 0; i < n_variants; i++) {
        void *x = random_rows(variants[i].compute, N_ROWS, N_IN, N_IN);
        matmul_weight *weight = weight_of(&variants[i], &source, 1, *state);
        matmul_run(weight, x, N_IN, N_ROWS, y, N_OUT, false, scratch, *state);
        matmul_run(weight, x, N_IN, N_ROWS, y, N_OUT, false, scratch, NULL);
        assert_int_equal(count_threads(), n_threads_at_start);
        matmul_weight_free(weight);
        mem_free(x);
    }
    mem_free(y), mem_free(scratch);
    source_free(&source);
}

/* ---------------------------------------------------------------- matvec */

static void check_matvec(const matmul_source *source, tmx_isa isa, bool is_added, tmx_pool *pool)
{
    const size_t n_in = (size_t)source->n_in, n_out = (size_t)source->n_out;
    const float before = is_added ? -0.5f : NAN;
    float *x = random_rows(TMX_COMPUTE_F32, 1, source->n_in, n_in), *row = mem_alloc(n_in, sizeof *row);
    float *y = mem_alloc(2 * n_out + 1, sizeof *y), *again = y + n_out;
    float *scratch = mem_alloc((size_t)pool_n_threads(pool) * n_in, sizeof *scratch);
    for (size_t i = 0; i < 2 * n_out; i++) y[i] = before;
    again[n_out] = 77.0f;
    matvec_run(source, x, y, is_added, isa, scratch, NULL);
    matvec_run(source, x, again, is_added, isa, scratch, pool);
    assert_memory_equal(y, again, n_out * sizeof *y);
    assert_true(again[n_out] == 77.0f);
    const block_format *format = block_format_find(source->type);
    for (size_t o = 0; o < n_out; o++) {
        format->to_f32((const char *)source->data + o * block_row_bytes(format, n_in), row, n_in);
        double sum = is_added ? (double)before : 0, size = fabs(sum);
        for (size_t i = 0; i < n_in; i++) {
            sum += (double)x[i] * (double)row[i];
            size += fabs((double)x[i] * (double)row[i]);
        }
        judge(LIMIT_MATVEC, fabs((double)y[o] - sum) / size);
    }
    mem_free(x), mem_free(row), mem_free(y), mem_free(scratch);
}

static void matvec_matches_f64_for_any_pool(void **state)
{
    static const int32_t plain_lengths[] = { 1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000 };
    static const int32_t block_counts[] = { 1, 2, 3, 18 }, out_counts[] = { 1, 15, 16, 50 };
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (size_t t = 0; t < COUNT_OF(block_types); t++) {
            const int32_t n_block = block_format_find(block_types[t])->n_elements;
            const bool is_plain = n_block == 1;
            for (size_t l = 0; l < (is_plain ? COUNT_OF(plain_lengths) : COUNT_OF(block_counts)); l++) {
                const int32_t n_in = is_plain ? plain_lengths[l] : n_block * block_counts[l];
                for (size_t o = 0; o < COUNT_OF(out_counts); o++) {
                    matmul_source source = random_source(block_types[t], out_counts[o], n_in);
                    check_matvec(&source, (tmx_isa)isa, o % 2 == 1, *state);
                    source_free(&source);
                }
            }
        }
    }
}

static int pool_setup(void **state)
{
    tmx_pool *pool = NULL;
    if (tmx_pool_create(&pool, 3, NULL) != TMX_OK) return 1;
    *state = pool;
    n_threads_at_start = count_threads();
    find_variants();
    return 0;
}

static int pool_teardown(void **state)
{
    tmx_pool_free(*state);
    for (int i = 0; i < N_LIMITS; i++) {
        printf("# %s: worst error %.2g of %.2g\n", limits[i].op, worst[i], limits[i].limit);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_match_f64),
        cmocka_unit_test(bits_depend_on_the_row_alone),
        cmocka_unit_test(stacked_sources_equal_single_ones),
        cmocka_unit_test(transposed_equals_a_transposed_matrix),
        cmocka_unit_test(a_bad_row_spoils_no_other),
        cmocka_unit_test(wrong_sources_are_refused),
        cmocka_unit_test(weight_bytes_are_what_create_takes),
        cmocka_unit_test(no_library_brings_its_own_threads),
        cmocka_unit_test(matvec_matches_f64_for_any_pool),
    };
    return cmocka_run_group_tests(tests, pool_setup, pool_teardown);
}
