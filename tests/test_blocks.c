/* rooms: gguf */
#include "base/cpu.h"
#include "base/num.h"
#include "base/sha256.h"
#include "gguf/blocks.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_ELEMENTS = 8192, GUARD = 64 };

static const uint32_t expandable[] = {
    BLOCK_F32, BLOCK_F16, BLOCK_BF16, BLOCK_Q4_0, BLOCK_Q4_1, BLOCK_Q5_0, BLOCK_Q5_1, BLOCK_Q8_0, BLOCK_Q2_K, BLOCK_Q3_K,
    BLOCK_Q4_K, BLOCK_Q5_K, BLOCK_Q6_K, BLOCK_Q8_K, BLOCK_IQ4_NL, BLOCK_IQ4_XS, BLOCK_MXFP4,
};
enum { N_EXPANDABLE = sizeof expandable / sizeof expandable[0] };

static uint64_t random_state;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

/* The published definitions, one element at a time, in double: products and sums of halves and small integers are
 * exact there, so the final conversion is the one rounding.  In f32 the order matters nowhere: at most the last
 * operation of each formula rounds. */
static double half(const unsigned char *p)
{
    const unsigned bits = p[0] | (unsigned)p[1] << 8, mantissa = bits & 0x3ff, exponent = bits >> 10 & 0x1f;
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
    return sign * (exponent != 0 ? ldexp(1024 + mantissa, (int)exponent - 25) : ldexp(mantissa, -24));
}

/* Nibble of element j of 32: the low ones first. */
static int nibble(const unsigned char *p, size_t j) { return j < 16 ? p[j] & 15 : p[j - 16] >> 4; }

static int bit(const unsigned char *p, size_t i) { return p[i / 8] >> (i % 8) & 1; }

static int signed_byte(unsigned char byte) { return byte < 128 ? byte : byte - 256; }

static const int numbered[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };

/* Scale and minimum of group g of 8 in Q4_K and Q5_K, from 12 bytes. */
static int group_scale(const unsigned char *s, size_t g)
{
    return g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
}

static int group_minimum(const unsigned char *s, size_t g)
{
    return g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | (s[g] >> 6) << 4;
}

/* Element j of a block of 256. */
static double expected_k(uint32_t type, const unsigned char *p, size_t j)
{
    const size_t g = j / 32, l = j % 32, half_block = j / 128;
    int scale, q;
    float wide;
    switch (type) {
    case BLOCK_Q2_K:
        q = p[16 + 32 * half_block + l] >> (2 * (g % 4)) & 3;
        return half(p + 80) * (p[j / 16] & 15) * q - half(p + 82) * (p[j / 16] >> 4);
    case BLOCK_Q3_K:
        scale = p[96 + j / 16 % 8] >> (j / 16 < 8 ? 0 : 4) & 15;
        scale |= (p[104 + j / 16 % 4] >> (2 * (j / 64)) & 3) << 4;
        q = (p[32 + 32 * half_block + l] >> (2 * (g % 4)) & 3) - (bit(p + l, g) != 0 ? 0 : 4);
        return half(p + 108) * (scale - 32) * q;
    case BLOCK_Q4_K:
        q = p[16 + 32 * (g / 2) + l] >> (4 * (g % 2)) & 15;
        return half(p) * group_scale(p + 4, g) * q - half(p + 2) * group_minimum(p + 4, g);
    case BLOCK_Q5_K:
        q = (p[48 + 32 * (g / 2) + l] >> (4 * (g % 2)) & 15) + 16 * bit(p + 16 + l, g);
        return half(p) * group_scale(p + 4, g) * q - half(p + 2) * group_minimum(p + 4, g);
    case BLOCK_Q6_K:
        q = p[64 * half_block + 32 * (g % 2) + l] >> (g % 4 < 2 ? 0 : 4) & 15;
        q |= (p[128 + 32 * half_block + l] >> (2 * (g % 4)) & 3) << 4;
        return half(p + 208) * signed_byte(p[192 + j / 16]) * (q - 32);
    case BLOCK_Q8_K:
        memcpy(&wide, p, sizeof wide);
        return (double)wide * signed_byte(p[4 + j]);
    default:                       /* BLOCK_IQ4_XS */
        scale = (p[4 + g / 2] >> (4 * (g % 2)) & 15) | (p[2 + g / 4] >> (2 * (g % 4)) & 3) << 4;
        return half(p) * (scale - 32) * numbered[nibble(p + 8 + 16 * g, l)];
    }
}

static float expected(uint32_t type, const unsigned char *blocks, size_t i)
{
    /* element 8 would be -0, but the published expansion goes through integers */
    static const double float4[16] = { 0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6 };
    const block_format *f = block_format_find(type);
    if (f->n_elements == 256) return (float)expected_k(type, blocks + i / 256 * (size_t)f->n_bytes, i % 256);
    const size_t block = i / 32, j = i % 32;
    const unsigned char *p;
    uint32_t bits;
    switch (type) {
    case BLOCK_F32: memcpy(&bits, blocks + 4 * i, 4); return f32_from_bits(bits);
    case BLOCK_F16: return (float)half(blocks + 2 * i);
    case BLOCK_BF16: return f32_from_bits((uint32_t)blocks[2 * i] << 16 | (uint32_t)blocks[2 * i + 1] << 24);
    case BLOCK_Q8_0:
        p = blocks + 34 * block;
        return (float)(half(p) * signed_byte(p[2 + j]));
    case BLOCK_Q4_0:
        p = blocks + 18 * block;
        return (float)(half(p) * (nibble(p + 2, j) - 8));
    case BLOCK_Q4_1:
        p = blocks + 20 * block;
        return (float)(half(p) * nibble(p + 4, j) + half(p + 2));
    case BLOCK_Q5_0:
        p = blocks + 22 * block;
        return (float)(half(p) * (nibble(p + 6, j) + 16 * bit(p + 2, j) - 16));
    case BLOCK_Q5_1:
        p = blocks + 24 * block;
        return (float)(half(p) * (nibble(p + 8, j) + 16 * bit(p + 4, j)) + half(p + 2));
    case BLOCK_IQ4_NL:
        p = blocks + 18 * block;
        return (float)(half(p) * numbered[nibble(p + 2, j)]);
    default:                       /* BLOCK_MXFP4 */
        p = blocks + 17 * block;
        return (float)ldexp(float4[nibble(p + 1, j)], p[0] - 127);
    }
}

/* Written by scripts/make-block-goldens.py: type, the high bytes of the scales in a block, SHA-256 of the floats. */
enum { N_GOLDEN_BLOCKS = 64 };
static const struct { uint32_t type; int high_bytes[2]; const char *hex; } goldens[] = {
    { BLOCK_BF16, { 1, -1 },
      "3304ce7d4a20dd1b9da8d138329c1b7a289050fc20bc6cf12183e09df4fae72f" },
    { BLOCK_Q4_0, { 1, -1 },
      "7d51d093245b70bcdf92fd86b8ae619183fd1fb68a22d393c9a77e9a798e5177" },
    { BLOCK_Q4_1, { 1, 3 },
      "6b5b456e3a9de8a1c79b397ae36816e362e346ec279a66b0577b885b86cf1e22" },
    { BLOCK_Q5_0, { 1, -1 },
      "03ce6a2c8de9291495f254dbc6f0b9625970e399589995e93e87e84a479b6637" },
    { BLOCK_Q5_1, { 1, 3 },
      "195748037fed40092c2f410f147cb6d74fd6611b940240fe98d7a8bcad3cc43a" },
    { BLOCK_Q8_0, { 1, -1 },
      "4005ef5159957ef4a41bcc07d25d42d11422826d8a0536e6d7639c30642977b9" },
    { BLOCK_Q2_K, { 81, 83 },
      "91e2961bab17db0aa0d97b08944279d0cad9d07ce9a923c243bc2fd4c5f70a08" },
    { BLOCK_Q3_K, { 109, -1 },
      "7259333d70d43ca27f28b30e12738e4256aed6167d9dfafe4f1ede62c2b2af63" },
    { BLOCK_Q4_K, { 1, 3 },
      "ac1b75d7f836e5ba30c9d68d924e842083002878b0272a97682db0008be3b5b8" },
    { BLOCK_Q5_K, { 1, 3 },
      "0009a5132802e9032a372c81e991c237fadb2ac145e59fffe168bedbc200cd62" },
    { BLOCK_Q6_K, { 209, -1 },
      "ae495ecf4351aac30e6b72aacd29841cb77e2dd6a7c959c7c2c8622f76b058b3" },
    { BLOCK_IQ4_NL, { 1, -1 },
      "0f82115e8db7becd065d077795b4fea7d58948cbec662996efc4d2c360e88a6c" },
    { BLOCK_IQ4_XS, { 1, -1 },
      "6f69cd573711828cab1ad6d483efe724f5b25707bd66c24cef7620f78adb836a" },
    { BLOCK_MXFP4, { 0, -1 },
      "368f2e51c681547df264794f9d30127d397cd10fbbd40851aa4184b68e214824" },
};

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
                if (n_blocks[i] * n_block <= MAX_ELEMENTS) for_each_rung(expandable[k], blocks, n_blocks[i] * n_block);
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
    static const struct { uint32_t type; size_t scale, minimum; } places[] = {     /* equal: no minimum */
        { BLOCK_Q4_0, 0, 0 }, { BLOCK_Q4_1, 0, 2 }, { BLOCK_Q5_0, 0, 0 }, { BLOCK_Q5_1, 0, 2 }, { BLOCK_Q8_0, 0, 0 },
        { BLOCK_Q2_K, 80, 82 }, { BLOCK_Q3_K, 108, 108 }, { BLOCK_Q4_K, 0, 2 }, { BLOCK_Q5_K, 0, 2 },
        { BLOCK_Q6_K, 208, 208 }, { BLOCK_Q8_K, 2, 2 }, { BLOCK_IQ4_NL, 0, 0 }, { BLOCK_IQ4_XS, 0, 0 },
    };
    for (size_t k = 0; k < sizeof places / sizeof places[0]; k++) {
        const block_format *f = block_format_find(places[k].type);
        const size_t n_bytes = (size_t)f->n_bytes;
        for (int pair = 0; pair < N_SCALES * N_SCALES; pair++) {
            unsigned char blocks[8 * 292] = { 0 };
            for (size_t b = 0; b < 8; b++) {
                unsigned char *p = blocks + b * n_bytes;
                for (size_t i = 0; i < n_bytes; i++) p[i] = (unsigned char)(b * 32 + i * 37);
                memcpy(p + places[k].minimum, &scales[pair % N_SCALES], 2);
                memcpy(p + places[k].scale, &scales[pair / N_SCALES], 2);
            }
            for_each_rung(places[k].type, blocks, 8 * (size_t)f->n_elements);
        }
    }
}

/* A power of two for each value of the byte; the smallest are denormal. */
static void every_mxfp4_scale_expands(void **state)
{
    (void)state;
    static unsigned char blocks[256 * 17];
    for (size_t e = 0; e < 256; e++) {
        blocks[17 * e] = (unsigned char)e;
        for (size_t j = 0; j < 16; j++) blocks[17 * e + 1 + j] = (unsigned char)(j | (15 - j) << 4);
    }
    for_each_rung(BLOCK_MXFP4, blocks, 256 * 32);
}

/* What the Python package gguf makes of the same random blocks (scripts/make-block-goldens.py): SHA-256 of the floats. */
static void expansions_equal_an_independent_implementation(void **state)
{
    (void)state;
    static unsigned char blocks[N_GOLDEN_BLOCKS * 292];
    static float x[N_GOLDEN_BLOCKS * 256];
    for (size_t k = 0; k < sizeof goldens / sizeof goldens[0]; k++) {
        const block_format *f = block_format_find(goldens[k].type);
        const size_t n_bytes = (size_t)f->n_bytes, n = N_GOLDEN_BLOCKS * (size_t)f->n_elements;
        random_state = goldens[k].type;
        for (size_t i = 0; i < N_GOLDEN_BLOCKS * n_bytes; i++) blocks[i] = (unsigned char)random_u32();
        for (size_t b = 0; b < N_GOLDEN_BLOCKS; b++) {             /* finite scales: NaN has more than one spelling */
            for (int h = 0; h < 2; h++) {
                if (goldens[k].high_bytes[h] >= 0) blocks[b * n_bytes + (size_t)goldens[k].high_bytes[h]] &= 0xbf;
            }
        }
        for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AVX2; isa++) {
            if (!cpu_has((tmx_isa)isa)) continue;
            sha256 hash;
            char hex[65];
            block_format_find_for(goldens[k].type, (tmx_isa)isa)->to_f32(blocks, x, n);
            sha256_init(&hash);
            sha256_add(&hash, x, n * sizeof *x);
            sha256_hex(&hash, hex);
            if (strcmp(hex, goldens[k].hex) != 0) fail_msg("%s, %s: %s", f->name, tmx_isa_name((tmx_isa)isa), hex);
        }
    }
}

static void format_table_holds(void **state)
{
    (void)state;
    static const struct { uint32_t type; const char *name; int32_t n_elements, n_bytes; } cases[] = {
        { 0, "F32", 1, 4 }, { 1, "F16", 1, 2 }, { 2, "Q4_0", 32, 18 }, { 3, "Q4_1", 32, 20 }, { 6, "Q5_0", 32, 22 },
        { 7, "Q5_1", 32, 24 }, { 8, "Q8_0", 32, 34 }, { 12, "Q4_K", 256, 144 }, { 13, "Q5_K", 256, 176 },
        { 14, "Q6_K", 256, 210 }, { 15, "Q8_K", 256, 292 }, { 10, "Q2_K", 256, 84 }, { 11, "Q3_K", 256, 110 },
        { 20, "IQ4_NL", 32, 18 }, { 23, "IQ4_XS", 256, 136 }, { 30, "BF16", 1, 2 }, { 39, "MXFP4", 32, 17 }, { 40, "NVFP4", 64, 36 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const block_format *f = block_format_find(cases[i].type);
        assert_non_null(f);
        assert_string_equal(f->name, cases[i].name);
        assert_int_equal(f->n_elements, cases[i].n_elements);
        assert_int_equal(f->n_bytes, cases[i].n_bytes);
    }
    static const uint32_t unknown[] = { 4, 5, 9, 31, 32, 33, 36, 37, 38, 43, 999, UINT32_MAX };
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
        cmocka_unit_test(every_mxfp4_scale_expands),
        cmocka_unit_test(expansions_equal_an_independent_implementation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
