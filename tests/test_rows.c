/* rooms: ops gguf base */
#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "ops/rows.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define COUNT_OF(a) (sizeof(a) / sizeof(a)[0])

/* Largest relative error of an f32 result over all cases below, as measured on Zen 4, beside what the test lets pass.
 * rope: relative to the length of the pair. */
static const struct {
    const char *op;
    double limit;
} limits[] = {
    { "rmsnorm", 2.5e-7 },         /* 1.5e-7 */
    { "swiglu", 2.5e-7 },          /* 1.6e-7 */
    { "geglu", 2.5e-7 },           /* 1.0e-7, relative to gate * up */
    { "rope", 1.5e-7 },            /* 8.3e-8 */
    { "rmsnorm_back", 3e-7 },      /* 1.6e-7, relative to the sizes of its terms */
    { "geglu_back", 3e-6 },        /* 2.0e-6, relative to d_y up (1 + gate) at most: 1 - s has an error of 2^-25 */
    { "swiglu_back", 1.3e-6 },     /* 9.6e-7: 1 - s has an error of 2^-25, which gate (below 17 where it counts) multiplies */
};
enum { LIMIT_RMSNORM, LIMIT_SWIGLU, LIMIT_GEGLU, LIMIT_ROPE, LIMIT_RMSNORM_BACK, LIMIT_GEGLU_BACK, LIMIT_SWIGLU_BACK, N_LIMITS };
static double worst[N_LIMITS];

static const int32_t lengths[] = { 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 65, 127, 576, 1000, 4099 };
enum { MAX_LENGTH = 4099, GUARD = 24 };

static uint64_t random_state = 7;

static float random_f32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(random_state >> 33) / 0x1p30 - 1.0);
}

static void fill(float *x, int32_t n, float scale)
{
    for (int32_t i = 0; i < n; i++) x[i] = random_f32() * scale;
}

static void judge(int limit, double error)
{
    if (!(error <= limits[limit].limit)) {
        fail_msg("%s: error %.3g, limit %.3g", limits[limit].op, error, limits[limit].limit);
    }
    if (error > worst[limit]) worst[limit] = error;
}

/* Results go into the middle of a poisoned buffer; everything around them must stay as it was. */
static union {
    float f32[MAX_LENGTH + 2 * GUARD];
    tmx_bf16 bf16[MAX_LENGTH + 2 * GUARD];
    unsigned char bytes[(MAX_LENGTH + 2 * GUARD) * sizeof(float)];
} output;

static void poison(void) { memset(output.bytes, 0xff, sizeof output.bytes); }

static void check_guards(int32_t n, size_t item)
{
    for (size_t i = 0; i < sizeof output.bytes; i++) {
        if (i < GUARD * item || i >= ((size_t)n + GUARD) * item) assert_int_equal(output.bytes[i], 0xff);
    }
}

/* The bf16 form of a result is the f32 form, rounded once. */
static void check_narrow(const float *wide, int32_t n)
{
    for (int32_t i = 0; i < n; i++) assert_int_equal(output.bf16[GUARD + i], bf16_from_f32(wide[i]));
    check_guards(n, sizeof(tmx_bf16));
}

#define EACH_RUNG(ops) \
    for (int isa_ = TMX_ISA_SCALAR; isa_ <= TMX_ISA_AMX; isa_++) \
        for (const row_ops *ops = cpu_has((tmx_isa)isa_) ? row_ops_get((tmx_isa)isa_) : NULL; ops != NULL; ops = NULL)

static void rmsnorm_matches_f64(void **state)
{
    (void)state;
    static float x[MAX_LENGTH], weight[MAX_LENGTH], wide[MAX_LENGTH];
    EACH_RUNG(ops) {
        for (size_t l = 0; l < COUNT_OF(lengths); l++) {
            const int32_t n = lengths[l];
            const float eps = l % 2 == 0 ? 1e-5f : 1e-6f;
            fill(x, n, l % 3 == 0 ? 1e-3f : 30.0f);
            fill(weight, n, 2.0f);
            poison();
            ops->rmsnorm(x, weight, eps, n, output.f32 + GUARD, TMX_TYPE_F32);
            check_guards(n, sizeof(float));
            double sum = 0;
            for (int32_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
            for (int32_t i = 0; i < n; i++) {
                const double expected = (double)x[i] / sqrt(sum / n + (double)eps) * (double)weight[i];
                wide[i] = output.f32[GUARD + i];
                judge(LIMIT_RMSNORM, fabs((double)wide[i] - expected) / fabs(expected));
            }
            poison();
            ops->rmsnorm(x, weight, eps, n, output.bf16 + GUARD, TMX_TYPE_BF16);
            check_narrow(wide, n);
        }
    }
}

static void swiglu_matches_f64(void **state)
{
    (void)state;
    static float gate[MAX_LENGTH], up[MAX_LENGTH], wide[MAX_LENGTH];
    static const float scales[] = { 0.01f, 1, 10, 80 };
    EACH_RUNG(ops) {
        for (size_t l = 0; l < COUNT_OF(lengths); l++) {
            const int32_t n = lengths[l];
            fill(gate, n, scales[l % COUNT_OF(scales)]);
            fill(up, n, 3.0f);
            poison();
            ops->swiglu(gate, up, n, output.f32 + GUARD, TMX_TYPE_F32);
            check_guards(n, sizeof(float));
            for (int32_t i = 0; i < n; i++) {
                const double expected = (double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i];
                wide[i] = output.f32[GUARD + i];
                judge(LIMIT_SWIGLU, fabs((double)wide[i] - expected) / fabs(expected));
            }
            poison();
            ops->swiglu(gate, up, n, output.bf16 + GUARD, TMX_TYPE_BF16);
            check_narrow(wide, n);
        }
    }
}

/* 1 / (1 + exp(-2 t)), and t' */
static double gelu_share(double g, double *steep)
{
    const double c = sqrt(2 / acos(-1));
    *steep = c * (1 + 3 * 0.044715 * g * g);
    return 1 / (1 + exp(-2 * c * (g + 0.044715 * g * g * g)));
}

static void geglu_and_its_derivative_match_f64(void **state)
{
    (void)state;
    static float d_y[MAX_LENGTH], gate[MAX_LENGTH], up[MAX_LENGTH], wide[MAX_LENGTH], d_gate[MAX_LENGTH], d_up[MAX_LENGTH];
    static const float scales[] = { 0.01f, 1, 6, 40 };
    const uint64_t state_before = random_state;        /* the tests below keep the numbers they were measured with */
    EACH_RUNG(ops) {
        for (size_t l = 0; l < COUNT_OF(lengths); l++) {
            const int32_t n = lengths[l];
            fill(d_y, n, 0.1f);
            fill(gate, n, scales[l % COUNT_OF(scales)]);
            fill(up, n, 3.0f);
            poison();
            ops->geglu(gate, up, n, output.f32 + GUARD, TMX_TYPE_F32);
            check_guards(n, sizeof(float));
            memcpy(wide, output.f32 + GUARD, (size_t)n * sizeof *wide);
            poison();
            ops->geglu(gate, up, n, output.bf16 + GUARD, TMX_TYPE_BF16);
            check_narrow(wide, n);
            ops->geglu_back(d_y, gate, up, n, d_gate, d_up, TMX_TYPE_F32);
            poison();
            ops->geglu_back(d_y, gate, up, n, output.bf16 + GUARD, d_up, TMX_TYPE_BF16);
            check_narrow(d_gate, n);
            ops->geglu_back(d_y, gate, up, n, d_gate, d_up, TMX_TYPE_F32);
            poison();
            ops->geglu_back(d_y, gate, up, n, d_gate, output.bf16 + GUARD, TMX_TYPE_BF16);
            check_narrow(d_up, n);
            ops->geglu_back(d_y, gate, up, n, d_gate, d_up, TMX_TYPE_F32);
            for (int32_t i = 0; i < n; i++) {
                double steep;
                const double g = (double)gate[i], u = (double)up[i], d = (double)d_y[i], s = gelu_share(g, &steep);
                const double slope = 1 + 2 * g * (1 - s) * steep, size = 1 + fabs(2 * g * (1 - s) * steep);
                judge(LIMIT_GEGLU, fabs((double)wide[i] - g * s * u) / fabs(g * u));
                judge(LIMIT_GEGLU_BACK, fabs((double)d_gate[i] - d * u * s * slope) / fabs(d * u * fmin(size, 1 + fabs(g))));
                judge(LIMIT_GEGLU_BACK, fabs((double)d_up[i] - d * g * s) / fabs(d * g));
            }
        }
    }
    random_state = state_before;
}

static void swiglu_bears_extremes(void **state)
{
    (void)state;
    const float gate[] = { 0, -0.0f, 200, -200, 1e30f, -1e30f, NAN, 88.5f, -88.5f, 1e-40f, INFINITY };
    enum { N = COUNT_OF(gate) };
    float up[N], y[N];
    for (int i = 0; i < N; i++) up[i] = 2.0f;
    EACH_RUNG(ops) {
        ops->geglu(gate, up, N, y, TMX_TYPE_F32);
        for (int i = 0; i < N; i++) {
            double steep;
            const double g = (double)gate[i], expected = g < -1e9 ? 0 : 2.0 * g * gelu_share(g, &steep);
            if (isnan(g)) assert_true(isnan(y[i]));
            else if (isinf(expected)) assert_true((double)y[i] == expected);
            else assert_true(fabs((double)y[i] - expected) <= 1e-6 * fabs(expected) + (g < -4 ? 1e-6 : 1e-44));
        }
        ops->swiglu(gate, up, N, y, TMX_TYPE_F32);
        for (int i = 0; i < N; i++) {
            const double g = (double)gate[i], expected = 2.0 * g / (1.0 + exp(-g));
            if (isnan(g)) assert_true(isnan(y[i]));
            else if (isinf(expected)) assert_true((double)y[i] == expected);
            else assert_true(fabs((double)y[i] - expected) <= 1e-6 * fabs(expected) + (g < -80 ? 1e-6 : 1e-44));
        }
    }
}

static void rmsnorm_back_matches_f64(void **state)
{
    (void)state;
    static float d_y[MAX_LENGTH], x[MAX_LENGTH], weight[MAX_LENGTH];
    EACH_RUNG(ops) {
        for (size_t l = 0; l < COUNT_OF(lengths); l++) {
            const int32_t n = lengths[l];
            const double eps = (double)1e-5f;
            const float before = l % 2 == 0 ? 0.0f : 0.25f;
            fill(d_y, n, l % 3 == 0 ? 1e-4f : 2.0f);
            fill(x, n, l % 3 == 1 ? 1e-3f : 30.0f);
            fill(weight, n, 2.0f);
            poison();
            for (int32_t i = 0; i < n; i++) output.f32[GUARD + i] = before;
            ops->rmsnorm_back(d_y, x, weight, 1e-5f, n, output.f32 + GUARD);
            check_guards(n, sizeof(float));
            double sum = 0, product = 0;
            for (int32_t i = 0; i < n; i++) {
                sum += (double)x[i] * (double)x[i];
                product += (double)d_y[i] * (double)weight[i] * (double)x[i];
            }
            const double r = 1 / sqrt(sum / n + eps);
            for (int32_t i = 0; i < n; i++) {
                const double a = r * (double)d_y[i] * (double)weight[i], b = r * r * r * product / n * (double)x[i];
                const double found = (double)output.f32[GUARD + i], expected = (double)before + a - b;
                judge(LIMIT_RMSNORM_BACK, fabs(found - expected) / (fabs(a) + fabs(b) + (double)before));
            }
        }
    }
}

static void swiglu_back_matches_f64(void **state)
{
    (void)state;
    static float d_y[MAX_LENGTH], gate[MAX_LENGTH], up[MAX_LENGTH], d_gate[MAX_LENGTH], d_up[MAX_LENGTH];
    static const float scales[] = { 0.01f, 1, 10, 60 };
    EACH_RUNG(ops) {
        for (size_t l = 0; l < COUNT_OF(lengths); l++) {
            const int32_t n = lengths[l];
            fill(d_y, n, 0.1f);
            fill(gate, n, scales[l % COUNT_OF(scales)]);
            fill(up, n, 3.0f);
            ops->swiglu_back(d_y, gate, up, n, d_gate, d_up, TMX_TYPE_F32);
            for (int32_t i = 0; i < n; i++) {
                const double g = (double)gate[i], s = 1 / (1 + exp(-g)), d = (double)d_y[i];
                const double slope = 1 + g * (1 - s), size = 1 + fabs(g) * (1 - s);
                judge(LIMIT_SWIGLU_BACK, fabs((double)d_gate[i] - d * (double)up[i] * s * slope)
                                         / fabs(d * (double)up[i] * s * size));
                judge(LIMIT_SWIGLU_BACK, fabs((double)d_up[i] - d * g * s) / fabs(d * g * s));
            }
            /* both outputs inside their guards, and the bf16 form is the f32 form, rounded */
            poison();
            ops->swiglu_back(d_y, gate, up, n, output.bf16 + GUARD, d_up, TMX_TYPE_BF16);
            check_narrow(d_gate, n);
            ops->swiglu_back(d_y, gate, up, n, d_gate, d_up, TMX_TYPE_F32);
            poison();
            ops->swiglu_back(d_y, gate, up, n, d_gate, output.bf16 + GUARD, TMX_TYPE_BF16);
            check_narrow(d_up, n);
        }
    }
}

static void plain_angles(int32_t position, float base, int32_t n_rot, const float *divisor, float *cos_row, float *sin_row)
{
    float frequency[MAX_LENGTH];
    for (int32_t i = 0; i < n_rot / 2; i++) {
        frequency[i] = (float)(1.0 / pow((double)base, 2.0 * i / n_rot)) / (divisor != NULL ? divisor[i] : 1.0f);
    }
    rope_angles(position, &(rope_table){ .frequency = frequency, .n_pairs = n_rot / 2, .factor = 1 }, cos_row, sin_row);
}

static void rope_matches_f64(void **state)
{
    (void)state;
    static const int32_t heads[][2] = {            /* n_rot, head_dim */
        { 2, 2 }, { 2, 5 }, { 4, 4 }, { 6, 6 }, { 8, 8 }, { 14, 31 }, { 16, 16 }, { 18, 18 }, { 32, 80 }, { 34, 34 },
        { 64, 64 }, { 96, 128 }, { 128, 128 }, { 0, 3 },
    };
    enum { MAX_HEAD = 128 };
    float x[MAX_HEAD], in_place[MAX_HEAD], cos_row[MAX_HEAD / 2], sin_row[MAX_HEAD / 2], wide[MAX_HEAD];
    EACH_RUNG(ops) {
        for (size_t h = 0; h < 2 * COUNT_OF(heads); h++) {
            const int32_t n_rot = heads[h / 2][0], head_dim = heads[h / 2][1], n_pairs = n_rot / 2;
            const rope_style style = h % 2 == 0 ? ROPE_INTERLEAVED : ROPE_HALF_SPLIT;
            fill(x, head_dim, 4.0f);
            plain_angles(12345 + (int32_t)h, 10000.0f, n_rot, NULL, cos_row, sin_row);
            poison();
            ops->rope(x, cos_row, sin_row, n_rot, head_dim, style, output.f32 + GUARD, TMX_TYPE_F32);
            check_guards(head_dim, sizeof(float));
            memcpy(wide, output.f32 + GUARD, (size_t)head_dim * sizeof *wide);
            for (int32_t i = 0; i < n_pairs; i++) {
                const int32_t a = style == ROPE_INTERLEAVED ? 2 * i : i;
                const int32_t b = style == ROPE_INTERLEAVED ? a + 1 : a + n_pairs;
                const double c = (double)cos_row[i], s = (double)sin_row[i], length = hypot((double)x[a], (double)x[b]);
                judge(LIMIT_ROPE, fabs((double)wide[a] - ((double)x[a] * c - (double)x[b] * s)) / length);
                judge(LIMIT_ROPE, fabs((double)wide[b] - ((double)x[a] * s + (double)x[b] * c)) / length);
            }
            assert_memory_equal(wide + n_rot, x + n_rot, (size_t)(head_dim - n_rot) * sizeof *x);
            memcpy(in_place, x, sizeof in_place);
            ops->rope(in_place, cos_row, sin_row, n_rot, head_dim, style, in_place, TMX_TYPE_F32);
            assert_memory_equal(in_place, wide, (size_t)head_dim * sizeof *wide);
            poison();
            ops->rope(x, cos_row, sin_row, n_rot, head_dim, style, output.bf16 + GUARD, TMX_TYPE_BF16);
            check_narrow(wide, head_dim);
        }
    }
}

static void convert_rounds_every_kind_of_number(void **state)
{
    (void)state;
    static float x[MAX_LENGTH];
    EACH_RUNG(ops) {
        for (size_t l = 0; l < COUNT_OF(lengths); l++) {
            const int32_t n = lengths[l];
            for (int32_t i = 0; i < n; i++) {
                x[i] = i % 3 == 0 ? f32_from_bits((uint32_t)(random_f32() * 0x1p30f) * 2654435761u) : random_f32();
                if (i % 5 == 0) x[i] = f32_from_bits((f32_to_bits(x[i]) & 0xffff0000u) | 0x8000u);        /* a tie */
            }
            poison();
            ops->convert(x, n, output.f32 + GUARD, TMX_TYPE_F32);
            assert_memory_equal(output.f32 + GUARD, x, (size_t)n * sizeof *x);
            check_guards(n, sizeof(float));
            poison();
            ops->convert(x, n, output.bf16 + GUARD, TMX_TYPE_BF16);
            check_narrow(x, n);
        }
        const float odd[] = { NAN, INFINITY, -INFINITY, 3.3e38f, 3.4e38f, 1e-40f, -0.0f, f32_from_bits(0x7f800001u) };
        poison();
        ops->convert(odd, COUNT_OF(odd), output.bf16 + GUARD, TMX_TYPE_BF16);
        check_narrow(odd, COUNT_OF(odd));
    }
}

static void angles_follow_the_training_code(void **state)
{
    (void)state;
    float cos_row[32], sin_row[32], divisor[32];
    plain_angles(0, 10000.0f, 64, NULL, cos_row, sin_row);
    for (int i = 0; i < 32; i++) assert_true(cos_row[i] == 1.0f && sin_row[i] == 0.0f);
    for (int i = 0; i < 32; i++) divisor[i] = i < 16 ? 1.0f : 8.0f;
    for (int with_divisor = 0; with_divisor < 2; with_divisor++) {
        plain_angles(100003, 500000.0f, 64, with_divisor != 0 ? divisor : NULL, cos_row, sin_row);
        for (int i = 0; i < 32; i++) {
            const float inv_freq = (float)pow(500000.0, -i / 32.0) / (with_divisor != 0 ? divisor[i] : 1.0f);
            const float angle = 100003.0f * inv_freq;
            /* pow may differ in the last place of inv_freq, which the position multiplies */
            assert_true(fabs((double)cos_row[i] - cos((double)angle)) <= 1e-7 + 1.2e-7 * (double)angle);
            assert_true(fabs((double)sin_row[i] - sin((double)angle)) <= 1e-7 + 1.2e-7 * (double)angle);
        }
    }
    plain_angles(7, 10000.0f, 2, NULL, cos_row, sin_row);
    assert_true(cos_row[0] == (float)cos(7.0) && sin_row[0] == (float)sin(7.0));
    rope_angles(7, &(rope_table){ .frequency = (const float[]){ 1 }, .n_pairs = 1, .factor = 1.5f }, cos_row, sin_row);
    assert_true(cos_row[0] == 1.5f * (float)cos(7.0) && sin_row[0] == 1.5f * (float)sin(7.0));
}

static int report(void **state)
{
    (void)state;
    for (int i = 0; i < N_LIMITS; i++) {
        printf("# %s: worst error %.2g of %.2g\n", limits[i].op, worst[i], limits[i].limit);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm_matches_f64),
        cmocka_unit_test(swiglu_matches_f64),
        cmocka_unit_test(geglu_and_its_derivative_match_f64),
        cmocka_unit_test(swiglu_bears_extremes),
        cmocka_unit_test(rmsnorm_back_matches_f64),
        cmocka_unit_test(swiglu_back_matches_f64),
        cmocka_unit_test(rope_matches_f64),
        cmocka_unit_test(convert_rounds_every_kind_of_number),
        cmocka_unit_test(angles_follow_the_training_code),
    };
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) printf("# skipped: this CPU has no %s\n", tmx_isa_name((tmx_isa)isa));
    }
    return cmocka_run_group_tests(tests, NULL, report);
}
