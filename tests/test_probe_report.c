/* rooms: probe */
/* test_probe_report.c - probe reports: means, orders, the file read back and read strictly, the plan they lead to. */
#include "base/mem.h"
#include "plan/plan.h"
#include "probe/probe_report.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define PRINT_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define PRINT_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

enum { N_LAYERS = 4, N_TOKENS = 40 };
static const tmx_model_info model = { .architecture = "llama", .name = "tiny", .fingerprint = PRINT_A, .n_layers = N_LAYERS };
static const tmx_probe_settings settings = {
    .source = "kv_number", .sections = { .n_sink = 2, .n_window = 5, .n_last = 4 }, .n_tokens = N_TOKENS, .n_samples = 9, .seed = 42,
    .compute = TMX_COMPUTE_F32,
};

static tmx_probe_report *report_of(const tmx_probe_settings *s)
{
    tmx_probe_report *report = NULL;
    tmx_error err = { .text = "" };
    if (tmx_probe_report_create(&report, &model, s, &err) != TMX_OK) fail_msg("%s", err.text);
    return report;
}

/* Numbers that no decimal of few digits holds. */
static void fill_layers(tmx_probe_layer layers[N_LAYERS], int seed)
{
    for (int l = 0; l < N_LAYERS; l++) {
        double *x = (double *)(void *)&layers[l];
        for (size_t i = 0; i < sizeof layers[l] / sizeof *x; i++) x[i] = (double)((l * 37 + seed * 101 + (int)i * 13) % 29) / 7;
    }
}

static void add(tmx_probe_report *report, int seed, bool is_correct)
{
    tmx_probe_layer layers[N_LAYERS];
    tmx_error err = { .text = "" };
    const tmx_probe_sample sample = { .n_tokens = N_TOKENS - seed % 3, .target = 5, .top_token = is_correct ? 5 : 6, .target_logit = 1.0f / 3 };
    fill_layers(layers, seed);
    if (tmx_probe_report_add(report, &sample, layers, &err) != TMX_OK) fail_msg("%s", err.text);
}

static char *text_of(const tmx_probe_report *report)
{
    char *text = NULL;
    size_t n_bytes = 0;
    if (probe_report_json_text(report, &text, &n_bytes, NULL) != TMX_OK || strlen(text) != n_bytes) abort();
    return text;
}

static void assert_same(const tmx_probe_report *a, const tmx_probe_report *b)
{
    char *x = text_of(a), *y = text_of(b);
    assert_string_equal(x, y);
    assert_memory_equal(a->means, b->means, N_LAYERS * sizeof *a->means);
    mem_free(x), mem_free(y);
}

/* ---------------------------------------------------------------- means */

static void means_are_over_pairs_and_samples_used(void **state)
{
    (void)state;
    tmx_probe_settings s = settings;
    for (int pass = 0; pass < 2; pass++) {
        s.is_correct_only = pass == 1;
        tmx_probe_report *report = report_of(&s);
        double expected[N_LAYERS] = { 0 };
        int n_used = 0;
        for (int i = 0; i < 7; i++) {
            tmx_probe_layer layers[N_LAYERS];
            tmx_probe_cells cells;
            fill_layers(layers, i);
            add(report, i, i % 3 != 0);
            if (s.is_correct_only && i % 3 == 0) continue;
            assert_int_equal(tmx_probe_count_cells(&s.sections, N_TOKENS - i % 3, &cells, NULL), TMX_OK);
            for (int l = 0; l < N_LAYERS; l++) expected[l] += layers[l].middle.theta_abs / (double)cells.middle;
            n_used++;
        }
        assert_int_equal(tmx_probe_report_n_samples(report), 7);
        assert_int_equal(tmx_probe_report_n_correct(report), 4);
        assert_int_equal(tmx_probe_report_n_used(report), n_used);
        for (int l = 0; l < N_LAYERS; l++) {
            const double found = tmx_probe_report_layer(report, l)->middle.theta_abs;
            assert_true(found >= expected[l] / n_used * (1 - 1e-14) && found <= expected[l] / n_used * (1 + 1e-14));
        }
        assert_null(tmx_probe_report_layer(report, N_LAYERS));
        assert_null(tmx_probe_report_layer(report, -1));
        assert_null(tmx_probe_report_sample(report, 7));
        assert_int_equal(tmx_probe_report_sample(report, 2)->n_tokens, N_TOKENS - 2);
        tmx_probe_report_free(report);
    }
}

static void a_report_saved_and_opened_goes_on_to_the_same_bits(void **state)
{
    (void)state;
    char path[] = "/tmp/tmx-probe-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    tmx_probe_report *whole = report_of(&settings), *parts = report_of(&settings);
    for (int i = 0; i < 200; i++) {
        add(whole, i, i % 2 == 0);
        add(parts, i, i % 2 == 0);
        if (i % 23 != 5) continue;
        tmx_error err = { .text = "" };
        assert_int_equal(tmx_probe_report_save(parts, path, &err), TMX_OK);
        tmx_probe_report_free(parts);
        if (tmx_probe_report_open(&parts, path, &model, &err) != TMX_OK) fail_msg("%s", err.text);
        assert_same(whole, parts);
    }
    assert_same(whole, parts);
    tmx_probe_report_free(whole);
    tmx_probe_report_free(parts);
    unlink(path);
}

/* ---------------------------------------------------------------- orders */

static void check_order(const tmx_probe_report *report, tmx_probe_order order, const int32_t expected[N_LAYERS])
{
    int32_t layers[N_LAYERS];
    assert_int_equal(tmx_probe_report_order(report, order, 3, layers, NULL), TMX_OK);
    assert_memory_equal(layers, expected, sizeof layers);
}

static void orders_follow_the_middle_gradient(void **state)
{
    (void)state;
    tmx_probe_report *report = report_of(&settings);
    int32_t layers[N_LAYERS], again[N_LAYERS];
    tmx_error err;
    assert_int_equal(tmx_probe_report_order(report, TMX_ORDER_GRADIENT, 0, layers, &err), TMX_E_ARG);
    add(report, 1, true);
    static const double theta[N_LAYERS] = { 3, 1, 3, 0 };          /* a tie: the higher layer first */
    for (int l = 0; l < N_LAYERS; l++) report->means[l].middle.theta_abs = theta[l];
    check_order(report, TMX_ORDER_GRADIENT, (const int32_t[]){ 3, 1, 2, 0 });
    check_order(report, TMX_ORDER_WORST, (const int32_t[]){ 2, 0, 1, 3 });
    check_order(report, TMX_ORDER_DEEPEST, (const int32_t[]){ 3, 2, 1, 0 });
    check_order(report, TMX_ORDER_SHALLOWEST, (const int32_t[]){ 0, 1, 2, 3 });
    bool has_differed = false;
    for (uint64_t seed = 0; seed < 20; seed++) {
        int n_seen[N_LAYERS] = { 0 };
        assert_int_equal(tmx_probe_report_order(report, TMX_ORDER_RANDOM, seed, layers, NULL), TMX_OK);
        for (int l = 0; l < N_LAYERS; l++) n_seen[layers[l]]++;
        for (int l = 0; l < N_LAYERS; l++) assert_int_equal(n_seen[l], 1);
        if (seed > 0) has_differed |= memcmp(layers, again, sizeof layers) != 0;
        memcpy(again, layers, sizeof layers);
    }
    assert_true(has_differed);
    assert_int_equal(tmx_probe_report_order(report, (tmx_probe_order)9, 0, layers, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_report_order(NULL, TMX_ORDER_WORST, 0, layers, &err), TMX_E_ARG);
    tmx_probe_report_free(report);
}

static void a_report_leads_to_a_plan(void **state)
{
    (void)state;
    static const char *const texts[] = { "dense 0-3", "triangle 3 (sink 8, window 512, last 128), dense 0-2",
                                         "triangle 2-3 (sink 8, window 512, last 128), dense 0-1",
                                         "triangle 1-3 (sink 8, window 512, last 128), dense 0",
                                         "triangle 0-3 (sink 8, window 512, last 128)" };
    tmx_probe_report *report = report_of(&settings);
    tmx_plan *plan = NULL;
    tmx_error err;
    char text[128];
    add(report, 1, true);
    for (int k = 0; k <= N_LAYERS; k++) {
        assert_int_equal(tmx_probe_report_plan(&plan, report, &model, TMX_ORDER_DEEPEST, 0, k, &err), TMX_OK);
        assert_string_equal(tmx_plan_text(plan, text, sizeof text), texts[k]);
        assert_string_equal(plan->model.fingerprint, PRINT_A);
        tmx_plan_free(plan);
    }
    assert_int_equal(tmx_probe_report_plan(&plan, report, &model, TMX_ORDER_RANDOM, 77, 2, &err), TMX_OK);
    assert_string_equal(tmx_plan_note(plan), "tmx probe: 2 of 4 layers, random 77 first; 1 samples of kv_number, up to 40 tokens, sections 2/5/4");
    tmx_plan_free(plan);
    plan = NULL;
    assert_int_equal(tmx_probe_report_plan(&plan, report, &model, TMX_ORDER_DEEPEST, 0, 5, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_report_plan(&plan, report, &model, TMX_ORDER_DEEPEST, 0, -1, &err), TMX_E_ARG);
    tmx_model_info other = model;
    other.fingerprint = PRINT_B;
    assert_int_equal(tmx_probe_report_plan(&plan, report, &other, TMX_ORDER_DEEPEST, 0, 1, &err), TMX_E_UNSUPPORTED);
    assert_null(plan);
    tmx_probe_report_free(report);
}

/* ---------------------------------------------------------------- files */

/* A good file with one thing replaced. */
static void expect_read(const char *good, const char *what, const char *with, tmx_status status, const char *text)
{
    char *changed = malloc(strlen(good) + strlen(with) + 1);
    const char *at = strstr(good, what);
    assert_non_null(at);
    sprintf(changed, "%.*s%s%s", (int)(at - good), good, with, at + strlen(what));
    tmx_probe_report *report = NULL;
    tmx_error err = { .text = "" };
    const tmx_status found = probe_report_read_json(&report, changed, strlen(changed), "p.json", &model, &err);
    if (found != status || strcmp(err.text, text) != 0) {
        fail_msg("%s -> %s:\n  found    %s %s\n  expected %s %s", what, with, tmx_status_name(found), err.text, tmx_status_name(status), text);
    }
    tmx_probe_report_free(report);
    free(changed);
}

static void wrong_files_are_explained(void **state)
{
    (void)state;
    tmx_probe_report *report = report_of(&settings);
    for (int i = 0; i < 3; i++) add(report, i, i > 0);
    for (int l = 0; l < N_LAYERS; l++) report->means[l].middle.theta_abs = 4 - l;
    char *good = NULL;
    size_t n_good;
    assert_int_equal(probe_report_json_text(report, &good, &n_good, NULL), TMX_OK);
    static const struct { const char *what, *with; tmx_status status; const char *text; } cases[] = {
        { "trianglemix-probe", "trianglemix-plan", TMX_E_FORMAT,
          "p.json: field \"format\": found \"trianglemix-plan\", expected \"trianglemix-probe\"" },
        { "\"version\": 1", "\"version\": 2", TMX_E_UNSUPPORTED, "p.json: probe report version 2, this library reads version 1" },
        { "\"version\": 1", "\"version\": 1, \"x\": 1", TMX_E_FORMAT, "p.json: field \"x\": unknown" },
        { "aaaa", "AAAA", TMX_E_FORMAT, "p.json: field \"model.fingerprint\": found \"AAAAaaaaaaaaaaaa\" (64 bytes), expected 64 hex digits "
          "(0-9a-f) or \"\"" },
        { PRINT_A, PRINT_B, TMX_E_UNSUPPORTED, "p.json: made for another model file, other LoRA adapters or another "
          "RoPE base (fingerprint bbbbbbbbbbbb, here aaaaaaaaaaaa); set \"fingerprint\" to \"\" to use it anyway" },
        { PRINT_A, "", TMX_OK, "" },
        { "\"n_layers\": 4", "\"n_layers\": 5", TMX_E_UNSUPPORTED, "p.json: made for llama with 5 layers, this model is llama with 4 layers" },
        { "kv_number", "kv\\u0000number", TMX_E_FORMAT,
          "p.json:11:30: \\u0000 is not allowed without JSON_ALLOW_NUL near '\"kv\\u0000number\"'" },
        { "\"n_sink\": 2", "\"n_sink\": -2", TMX_E_FORMAT, "p.json: field \"settings.n_sink\": found -2, expected 0..2147483647" },
        { "\"n_window\": 5", "\"n_window\": 0", TMX_E_FORMAT, "p.json: field \"settings.n_window\": found 0, expected 1..2147483647" },
        { "\"n_tokens\": 40", "\"n_tokens\": 39", TMX_E_FORMAT,
          "p.json: field \"samples[0].n_tokens\": found 40, expected at most 39 (settings.n_tokens)" },
        { "\"n_samples\": 9", "\"n_samples\": 100001", TMX_E_FORMAT,
          "p.json: field \"settings\": probe report: n_samples 100001, expected 1..100000" },
        { "\"seed\": 42", "\"seed\": -1", TMX_E_FORMAT, "p.json: field \"settings.seed\": found -1, expected 0 or more" },
        { "\"seed\": 42", "\"seed\": 1.5", TMX_E_FORMAT,
          "p.json: field \"settings.seed\": found a number with a fraction or an exponent, expected an integer" },
        { "\"correct_only\": false", "\"correct_only\": 0", TMX_E_FORMAT,
          "p.json: field \"settings.correct_only\": found an integer, expected a boolean" },
        { "\"correct_only\": false", "\"correct_only\": true", TMX_E_FORMAT, "p.json: field \"n_used\": found 3, the samples say 2" },
        { "\"compute\": \"f32\"", "\"compute\": \"fp8\"", TMX_E_FORMAT,
          "p.json: field \"settings.compute\": found \"fp8\", expected \"f32\" or \"bf16\"" },
        { "\"n_correct\": 2", "\"n_correct\": 3", TMX_E_FORMAT, "p.json: field \"n_correct\": found 3, the samples say 2" },
        { "\"target\": 5", "\"target\": -5", TMX_E_FORMAT, "p.json: field \"samples[0].target\": found -5, expected 0..2147483647" },
        { "\"target\": 5", "\"target\": 5, \"y\": 0", TMX_E_FORMAT, "p.json: field \"samples[0].y\": unknown" },
        { "\"theta_abs\": 4.0", "\"theta_abs\": -4.0", TMX_E_FORMAT,
          "p.json: field \"layers[0].middle.theta_abs\": found -4, expected a finite number, 0 or more" },
        { "\"theta_abs\": 4.0", "\"theta_abs\": 4", TMX_OK, "" },
        { "\"theta_abs\": 4.0", "\"theta_abs\": 1e999", TMX_E_FORMAT, "p.json:34:26: real number overflow near '1e999'" },
        { "\"theta_abs\": 4.0", "\"theta_abs\": 0.5", TMX_E_FORMAT,
          "p.json: field \"order[0]\": expected 0, by ascending theta_abs of the middle sections" },
        { "\"theta_abs\": 4.0", "\"theta_abs\": null", TMX_E_FORMAT, "p.json: field \"layers[0].middle.theta_abs\": found null, expected a number" },
        { "\"middle\"", "\"muddle\"", TMX_E_FORMAT, "p.json: field \"layers[0].muddle\": unknown" },
        { "\"layer\": 1", "\"layer\": 2", TMX_E_FORMAT, "p.json: field \"layers[1].layer\": found 2, expected 1" },
        { "\"order\": [\n    3,", "\"order\": [\n    \"3\",", TMX_E_FORMAT,
          "p.json: field \"order[0]\": expected 3, by ascending theta_abs of the middle sections" },
        { "\"order\": [\n    3,", "\"order\": [", TMX_E_FORMAT, "p.json: field \"order\": 3 entries, expected 4" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) expect_read(good, cases[i].what, cases[i].with, cases[i].status, cases[i].text);
    for (size_t n = 0; n + 2 < n_good; n++) {                /* every truncation is refused */
        tmx_probe_report *none = NULL;
        tmx_error err = { .text = "" };
        assert_int_equal(probe_report_read_json(&none, good, n, "p.json", &model, &err), TMX_E_FORMAT);
        assert_true(none == NULL && err.text[0] != '\0');
    }
    tmx_error err;
    assert_int_equal(tmx_probe_report_open(&report, "/tmp/nowhere/p.json", &model, &err), TMX_E_IO);
    assert_int_equal(tmx_probe_report_open(&report, "/tmp", &model, &err), TMX_E_IO);
    assert_int_equal(tmx_probe_report_save(report, "/tmp/nowhere/p.json", &err), TMX_E_IO);
    assert_int_equal(tmx_probe_report_save(report, "", &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_report_save(NULL, "x", &err), TMX_E_ARG);
    mem_free(good);
    tmx_probe_report_free(report);
}

static void arguments_are_checked(void **state)
{
    (void)state;
    tmx_probe_report *none = NULL;
    tmx_error err;
    const tmx_probe_settings bad[] = {
        { .n_tokens = 0, .n_samples = 1, .compute = TMX_COMPUTE_F32 }, { .n_tokens = 5, .n_samples = 0, .compute = TMX_COMPUTE_F32 },
        { .n_tokens = 5, .n_samples = 1 }, { .n_tokens = 5, .n_samples = 1, .compute = TMX_COMPUTE_F32, .seed = -1 },
        { .n_tokens = 5, .n_samples = 1, .compute = TMX_COMPUTE_F32, .source = "\xff" },
        { .n_tokens = 5, .n_samples = 1, .compute = TMX_COMPUTE_F32, .sections = { .n_sink = 1 } },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(tmx_probe_report_create(&none, &model, &bad[i], &err), TMX_E_ARG);
        assert_null(none);
    }
    tmx_probe_settings endless = settings;
    memset(endless.source, 'x', sizeof endless.source);
    assert_int_equal(tmx_probe_report_create(&none, &model, &endless, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_report_create(&none, NULL, &settings, &err), TMX_E_ARG);

    tmx_probe_report *report = report_of(&settings);
    tmx_probe_layer layers[N_LAYERS] = { 0 };
    const tmx_probe_sample brief = { .n_tokens = 11 }, lengthy = { .n_tokens = N_TOKENS + 1 }, good = { .n_tokens = 20 };
    assert_int_equal(tmx_probe_report_add(report, &brief, layers, &err), TMX_E_ARG);
    assert_string_equal(err.text, "probe: a prompt of 11 tokens has no Middle section beside sink 2, window 5 and last 4");
    assert_int_equal(tmx_probe_report_add(report, &lengthy, layers, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_report_add(report, &good, NULL, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_report_add(NULL, &good, layers, &err), TMX_E_ARG);
    layers[2].last.head_abs = (double)INFINITY;
    assert_int_equal(tmx_probe_report_add(report, &good, layers, &err), TMX_E_NUMERIC);
    assert_int_equal(tmx_probe_report_n_samples(report), 0);
    assert_int_equal(tmx_probe_report_set_n_samples(report, 0, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_report_set_n_samples(report, 12, &err), TMX_OK);
    assert_int_equal(tmx_probe_report_settings(report)->n_samples, 12);
    tmx_probe_report_free(report);
    tmx_probe_report_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(means_are_over_pairs_and_samples_used),
        cmocka_unit_test(a_report_saved_and_opened_goes_on_to_the_same_bits),
        cmocka_unit_test(orders_follow_the_middle_gradient),
        cmocka_unit_test(a_report_leads_to_a_plan),
        cmocka_unit_test(wrong_files_are_explained),
        cmocka_unit_test(arguments_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
