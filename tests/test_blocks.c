/* rooms: gguf */
#include "base/cpu.h"
#include "base/num.h"
#include "gguf/blocks.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_ELEMENTS = 8192, GUARD = 64 };

static const uint32_t expandable[] = { BLOCK_F32, BLOCK_F16, BLOCK_BF16, BLOCK_Q8_0, BLOCK_Q4_0, BLOCK_Q4_1 };
enum { N_EXPANDABLE = sizeof expandable / sizeof expandable[0] };

static uint64_t random_state;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

/* The published definitions, one element at a time, in double: products and sums of halves and small integers are
 * exact there, so the final conversion is the one rounding. */
static double half(const unsigned char *p)
{
    const unsigned bits = p[0] | (unsigned)p[1] << 8, mantissa = bits & 0x3ff, exponent = bits >> 10 & 0x1f;
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
    return sign * (exponent != 0 ? ldexp(1024 + mantissa, (int)exponent - 25) : ldexp(mantissa, -24));
}

static float expected(uint32_t type, const unsigned char *blocks, size_t i)
{
    const size_t block = i / 32, j = i % 32;
    const unsigned char *p;
    uint32_t bits;
    switch (type) {
    case BLOCK_F32: memcpy(&bits, blocks + 4 * i, 4); return f32_from_bits(bits);
    case BLOCK_F16: return (float)half(blocks + 2 * i);
    case BLOCK_BF16: return f32_from_bits((uint32_t)blocks[2 * i] << 16 | (uint32_t)blocks[2 * i + 1] << 24);
    case BLOCK_Q8_0:
        p = blocks + 34 * block;
        return (float)(half(p) * (p[2 + j] < 128 ? p[2 + j] : p[2 + j] - 256));
    case BLOCK_Q4_0:
        p = blocks + 18 * block;
        return (float)(half(p) * ((j < 16 ? p[2 + j] & 15 : p[2 + j - 16] >> 4) - 8));
    default:
        p = blocks + 20 * block;
        return (float)(half(p) * (j < 16 ? p[4 + j] & 15 : p[4 + j - 16] >> 4) + half(p + 2));
    }
}

/* NaN matches NaN; everything else, zeros' signs too, to the bit. */
static void assert_same(float found, float wanted, const block_format *f, tmx_isa isa, size_t i)
{
    if (isnan(wanted) ? isnan(found) : f32_to_bits(found) == f32_to_bits(wanted)) return;
    fail_msg("%s, %s: element %zu is %a, expected %a", f->name, tmx_isa_name(isa), i, (double)found, (double)wanted);
}

/* Expands n elements from unaligned blocks on one rung and looks at every element and at both sides. */
static void check_row(uint32_t type, tmx_isa isa, const unsigned char *blocks, size_t n)
{
    const block_format *f = block_format_find_for(type, isa);
    static float x[MAX_ELEMENTS + 2 * GUARD];
    for (size_t i = 0; i < n + 2 * GUARD; i++) x[i] = f32_from_bits(0x7fc12345);
    const size_t n_bytes = block_row_bytes(f, n);
    unsigned char *exact = malloc(n_bytes + 1);           /* ASan sees a read past the last block */
    assert_non_null(exact);
    memcpy(exact + 1, blocks, n_bytes);
    f->to_f32(exact + 1, x + GUARD, n);
    for (size_t i = 0; i < n; i++) assert_same(x[GUARD + i], expected(type, blocks, i), f, isa, i);
    for (size_t i = 0; i < GUARD; i++) {
        assert_int_equal(f32_to_bits(x[i]), 0x7fc12345);
        assert_int_equal(f32_to_bits(x[GUARD + n + i]), 0x7fc12345);
    }
    free(exact);
}

static void for_each_rung(uint32_t type, const unsigned char *blocks, size_t n)
{
    check_row(type, TMX_ISA_SCALAR, blocks, n);
    if (cpu_has(TMX_ISA_AVX2)) check_row(type, TMX_ISA_AVX2, blocks, n);
}

static void random_blocks_expand_to_the_formula(void **state)
{
    (void)state;
    static unsigned char blocks[MAX_ELEMENTS * 4];
    for (int seed = 0; seed < 20; seed++) {
        random_state = (uint64_t)seed;
        for (size_t i = 0; i < sizeof blocks; i++) blocks[i] = (unsigned char)random_u32();
        for (int k = 0; k < N_EXPANDABLE; k++) {
            const size_t n_block = (size_t)block_format_find(expandable[k])->n_elements;
            static const size_t n_blocks[] = { 0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 100 };
            for (size_t i = 0; i < sizeof n_blocks / sizeof n_blocks[0]; i++) {
                for_each_rung(expandable[k], blocks, n_blocks[i] * n_block);
            }
        }
    }
}

static void every_half_and_bfloat_expands(void **state)
{
    (void)state;
    static unsigned char blocks[2 * MAX_ELEMENTS];
    for (unsigned begin = 0; begin < 0x10000; begin += MAX_ELEMENTS) {
        for (unsigned i = 0; i < MAX_ELEMENTS; i++) {
            blocks[2 * i] = (unsigned char)(begin + i);
            blocks[2 * i + 1] = (unsigned char)((begin + i) >> 8);
        }
        for_each_rung(BLOCK_F16, blocks, MAX_ELEMENTS);
        for_each_rung(BLOCK_BF16, blocks, MAX_ELEMENTS);
    }
}

/* Zero, denormal, largest, infinite and NaN scales against every quantised value. */
static void awkward_scales_expand_to_the_formula(void **state)
{
    (void)state;
    static const uint16_t scales[] = {
        0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x7c01,
    };
    enum { N_SCALES = sizeof scales / sizeof scales[0] };
    for (int k = 0; k < N_EXPANDABLE; k++) {
        const block_format *f = block_format_find(expandable[k]);
        if (f->n_elements == 1) continue;
        for (int pair = 0; pair < N_SCALES * N_SCALES; pair++) {
            unsigned char blocks[8 * 34] = { 0 };
            for (int b = 0; b < 8; b++) {
                unsigned char *p = blocks + b * f->n_bytes;
                for (int i = 0; i < f->n_bytes; i++) p[i] = (unsigned char)(b * 32 + i * 37);
                memcpy(p, &scales[pair / N_SCALES], 2);
                if (expandable[k] == BLOCK_Q4_1) memcpy(p + 2, &scales[pair % N_SCALES], 2);
            }
            for_each_rung(expandable[k], blocks, 8 * 32);
        }
    }
}

static void format_table_holds(void **state)
{
    (void)state;
    static const struct { uint32_t type; const char *name; int32_t n_elements, n_bytes; } cases[] = {
        { 0, "F32", 1, 4 }, { 1, "F16", 1, 2 }, { 2, "Q4_0", 32, 18 }, { 3, "Q4_1", 32, 20 }, { 6, "Q5_0", 32, 22 },
        { 7, "Q5_1", 32, 24 }, { 8, "Q8_0", 32, 34 }, { 12, "Q4_K", 256, 144 }, { 13, "Q5_K", 256, 176 },
        { 14, "Q6_K", 256, 210 }, { 30, "BF16", 1, 2 }, { 39, "MXFP4", 32, 17 }, { 40, "NVFP4", 64, 36 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const block_format *f = block_format_find(cases[i].type);
        assert_non_null(f);
        assert_string_equal(f->name, cases[i].name);
        assert_int_equal(f->n_elements, cases[i].n_elements);
        assert_int_equal(f->n_bytes, cases[i].n_bytes);
    }
    static const uint32_t unknown[] = { 4, 5, 9, 15, 31, 32, 33, 36, 37, 38, 43, 999, UINT32_MAX };
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) assert_null(block_format_find(unknown[i]));

    int n_expandable = 0;
    for (uint32_t type = 0; type < 100; type++) {
        const block_format *slow = block_format_find_for(type, TMX_ISA_SCALAR), *fast = block_format_find(type);
        assert_int_equal(slow == NULL, fast == NULL);
        if (slow == NULL) continue;
        assert_int_equal(slow->type, type);
        assert_int_equal(fast->type, type);
        assert_string_equal(slow->name, fast->name);
        assert_int_equal(slow->n_elements, fast->n_elements);
        assert_int_equal(slow->n_bytes, fast->n_bytes);
        assert_int_equal(slow->to_f32 == NULL, fast->to_f32 == NULL);
        n_expandable += slow->to_f32 != NULL;
    }
    assert_int_equal(n_expandable, N_EXPANDABLE);
    assert_int_equal(block_row_bytes(block_format_find(BLOCK_Q4_1), 576), 360);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(format_table_holds),
        cmocka_unit_test(random_blocks_expand_to_the_formula),
        cmocka_unit_test(every_half_and_bfloat_expands),
        cmocka_unit_test(awkward_scales_expand_to_the_formula),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
