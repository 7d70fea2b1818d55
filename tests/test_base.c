/* rooms: base */
#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "base/sha256.h"
#include "base/status.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>

#include <cmocka.h>

static void sha256_matches_published_vectors(void **state)
{
    (void)state;
    static const struct { const char *text, *hex; } cases[] = {
        { "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
        { "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
        { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t cut = 0; cut <= strlen(cases[i].text); cut += 7) {
            sha256 s;
            char hex[65];
            sha256_init(&s);
            sha256_add(&s, cases[i].text, cut);
            sha256_add(&s, cases[i].text + cut, strlen(cases[i].text) - cut);
            sha256_hex(&s, hex);
            assert_string_equal(hex, cases[i].hex);
        }
    }
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t high = 0; high < 0x10000; high++) {
        const tmx_bf16 b = (tmx_bf16)high;
        const float x = bf16_to_f32(b);
        if (isnan(x)) {
            assert_true(isnan(bf16_to_f32(bf16_from_f32(x))));
            continue;
        }
        assert_int_equal(bf16_from_f32(x), b);
        if ((high & 0x7f80) == 0x7f80) continue;
        assert_int_equal(bf16_from_f32(f32_from_bits(high << 16 | 0x7fff)), b);            /* just below the tie */
        assert_int_equal(bf16_from_f32(f32_from_bits(high << 16 | 0x8000)), (tmx_bf16)(b + (b & 1)));   /* tie */
        assert_int_equal(bf16_from_f32(f32_from_bits(high << 16 | 0x8001)), (tmx_bf16)(b + 1));
    }
}

static void f16_expands_every_value(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        const int exponent = (int)(h >> 10 & 0x1f), mantissa = (int)(h & 0x3ff);
        const float x = f16_to_f32((uint16_t)h);
        if (exponent == 0x1f) {
            assert_true(mantissa != 0 ? isnan(x) : isinf(x) != 0);
            continue;
        }
        const double magnitude = exponent != 0 ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        assert_true((double)x == (h & 0x8000 ? -magnitude : magnitude));
        assert_int_equal(signbit(x) != 0, (h & 0x8000) != 0);
    }
}

static void memory_is_aligned_zeroed_and_checked(void **state)
{
    (void)state;
    for (size_t n = 0; n < 300; n += 13) {
        unsigned char *block = mem_alloc(n, 3);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % MEM_ALIGN, 0);
        for (size_t i = 0; i < 3 * n; i++) assert_int_equal(block[i], 0);
        mem_free(block);
    }
    assert_null(mem_alloc(SIZE_MAX / 2, 3));
    assert_null(mem_alloc(SIZE_MAX, 1));
    mem_free(NULL);
    assert_true(mem_available_bytes() > 0);
}

typedef struct { atomic_int seen[1000]; int32_t n_threads; atomic_int n_bad; } pool_case;

static void count_task(void *ctx, int32_t task, int32_t thread)
{
    pool_case *c = ctx;
    atomic_fetch_add(&c->seen[task], 1);
    if (thread < 0 || thread >= c->n_threads) atomic_fetch_add(&c->n_bad, 1);
}

static void pool_runs_each_task_once(void **state)
{
    (void)state;
    for (int32_t n_threads = 1; n_threads <= 5; n_threads++) {
        tmx_pool *pool = NULL;
        assert_int_equal(tmx_pool_create(&pool, n_threads, NULL), TMX_OK);
        for (int round = 0; round < 200; round++) {
            static pool_case c;
            memset(&c, 0, sizeof c);
            c.n_threads = n_threads;
            const int32_t n_tasks = round * 5;
            pool_run(pool, n_tasks, count_task, &c);
            for (int32_t i = 0; i < 1000; i++) assert_int_equal(atomic_load(&c.seen[i]), i < n_tasks);
            assert_int_equal(atomic_load(&c.n_bad), 0);
        }
        tmx_pool_free(pool);
    }
    tmx_error err;
    tmx_pool *pool = NULL;
    assert_int_equal(tmx_pool_create(&pool, -1, &err), TMX_E_ARG);
    assert_int_equal(tmx_pool_create(&pool, 1025, &err), TMX_E_ARG);
    assert_string_equal(err.text, "threads: 1025 is out of range 0..1024");
}

static void error_text_is_one_line(void **state)
{
    (void)state;
    tmx_error err;
    assert_int_equal(refuse(&err, TMX_E_FORMAT, "name '%s'", "a\nb\x7f"), TMX_E_FORMAT);
    assert_string_equal(err.text, "name 'a?b?'");
    assert_int_equal(refuse(NULL, TMX_E_IO, "nobody listens"), TMX_E_IO);
}

static void isa_names_parse(void **state)
{
    (void)state;
    tmx_isa isa;
    tmx_error err;
    assert_int_equal(tmx_isa_parse("scalar", &isa, &err), TMX_OK);
    assert_int_equal(isa, TMX_ISA_SCALAR);
    assert_int_equal(tmx_isa_parse(tmx_isa_name(tmx_isa_best()), &isa, &err), TMX_OK);
    assert_int_equal(isa, tmx_isa_best());
    assert_int_equal(tmx_isa_parse("sse9", &isa, &err), TMX_E_ARG);
    assert_int_equal(cpu_isa_resolve(TMX_ISA_AUTO), tmx_isa_best());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_matches_published_vectors),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(f16_expands_every_value),
        cmocka_unit_test(memory_is_aligned_zeroed_and_checked),
        cmocka_unit_test(pool_runs_each_task_once),
        cmocka_unit_test(error_text_is_one_line),
        cmocka_unit_test(isa_names_parse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
