/* test_probe_families.c - the probe on tiny models of every family: each cell's derivative by finite differences of the f64
 * forward pass, added up over sections; experts by whole sections of the production kernels too. */
#include "base/cpu.h"
#include "moved_section.h"
#include "tiny_family_gradient.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { N = 14, TARGET = 5 };

static const tmx_pattern sections = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = 2, .n_window = 4, .n_last = 3 };

/* Error of a sum relative to the layer's sum of absolute values; measured beside. */
static const double f32_limit = 1e-5, bf16_limit = 0.1;        /* 1.9e-6, 0.019 */
static double worst[2];

static void check_layer(const tf_model *m, const double *cells, int layer, const tmx_probe_layer *found, bool is_f32)
{
    double abs_sums[3], signed_sums[3];
    tf_section_sums(cells, N, &sections, abs_sums, signed_sums);
    const tmx_probe_sums *const sums[3] = { &found->streaming, &found->last, &found->middle };
    const double size = abs_sums[0] + abs_sums[1] + abs_sums[2];
    for (int s = 0; s < 3; s++) {
        const double error = fmax(fabs(sums[s]->theta_abs - abs_sums[s]), fabs(sums[s]->theta_signed - signed_sums[s])) / size;
        if (!(error <= (is_f32 ? f32_limit : bf16_limit))) {
            fail_msg("%s, layer %d, section %d: theta_abs %.6g, signed %.6g; finite differences %.6g, %.6g", m->spec->name, layer, s,
                     sums[s]->theta_abs, sums[s]->theta_signed, abs_sums[s], signed_sums[s]);
        }
        worst[is_f32] = fmax(worst[is_f32], error);
    }
}

typedef struct machine { tmx_pool *pool; tmx_model *model; tmx_probe *probe; } machine;

static machine open_machine(const tf_model *m, const tmx_model_params *as, const tmx_probe_params *params, int32_t n_threads)
{
    tmx_error err;
    machine a;
    assert_int_equal(tmx_pool_create(&a.pool, n_threads, &err), TMX_OK);
    if (tmx_model_open(&a.model, m->path, as, a.pool, &err) != TMX_OK) fail_msg("%s", err.text);
    if (tmx_probe_create(&a.probe, a.model, a.pool, params, &err) != TMX_OK) fail_msg("%s: %s", m->spec->name, err.text);
    return a;
}

static void close_machine(machine *a)
{
    tmx_probe_free(a->probe);
    tmx_model_close(a->model);
    tmx_pool_free(a->pool);
}

static void probe(const tf_model *m, const int32_t *tokens, tmx_compute compute, int32_t n_threads, tmx_probe_layer *layers)
{
    const tmx_probe_params params = { .n_tokens = N, .sections = { sections.n_sink, sections.n_window, sections.n_last } };
    tmx_error err;
    machine a = open_machine(m, &(tmx_model_params){ .compute = compute }, &params, n_threads);
    if (tmx_probe_run(a.probe, tokens, N, TARGET, layers, NULL, &err) != TMX_OK) fail_msg("%s: %s", m->spec->name, err.text);
    close_machine(&a);
}

static void every_family_matches_finite_differences(void **state)
{
    (void)state;
    int32_t tokens[N];
    tf_tokens(tokens, N);
    static double cells[N * N];
    for (int i = 0; i < TF_N_SPECS; i++) {
        tf_model m;
        tmx_probe_layer exact[8], threaded[8], rounded[8];
        tf_spec spec = tf_specs[i];
        if (spec.n_window > 0 && spec.window_period == 0) continue;    /* the next test's */
        if (spec.scaling == TF_LINEAR || spec.scaling == TF_DIVISORS) continue;        /* only other frequencies */
        if (spec.n_window > 0) spec.n_window = 6;                      /* cuts through every section */
        tf_create(&m, &spec);
        probe(&m, tokens, TMX_COMPUTE_F32, 1, exact);
        probe(&m, tokens, TMX_COMPUTE_F32, 3, threaded);
        probe(&m, tokens, TMX_COMPUTE_BF16, 1, rounded);
        assert_memory_equal(exact, threaded, sizeof *exact * (size_t)spec.n_layers);
        for (int l = 0; l < spec.n_layers; l++) {
            tf_finite_differences(&m, tokens, N, TARGET, l, cells);
            check_layer(&m, cells, l, &exact[l], true);
            check_layer(&m, cells, l, &rounded[l], false);
        }
        tf_free(&m);
    }
}

/* Experts through the production kernels, in a prompt longer than a chunk.  All of them are chosen: where a choice flips between
 * the two ends of a difference, the logit jumps. */
static void experts_match_finite_differences_of_sections(void **state)
{
    (void)state;
    enum { N_LONG = PROBE_CHUNK + 37 };
    const tmx_probe_params params = { .n_tokens = N_LONG, .sections = { 3, 60, 40 } };
    int32_t tokens[N_LONG];
    tf_model m;
    tf_spec spec;
    tf_tokens(tokens, N_LONG);
    for (int i = 0; i < TF_N_SPECS; i++) {
        if (tf_specs[i].n_experts > 0) spec = tf_specs[i];
    }
    spec.n_used = spec.n_experts;
    tf_create(&m, &spec);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AVX512; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        const tmx_model_params as = { .isa = (tmx_isa)isa, .compute = TMX_COMPUTE_F32 };
        tmx_probe_layer layers[8], again[8];
        double furthest = 0, largest = 0;
        machine a = open_machine(&m, &as, &params, 2), b = open_machine(&m, &as, &params, 3);
        assert_int_equal(tmx_probe_run(a.probe, tokens, N_LONG, TARGET, layers, NULL, NULL), TMX_OK);
        assert_int_equal(tmx_probe_run(b.probe, tokens, N_LONG, TARGET, again, NULL, NULL), TMX_OK);
        assert_memory_equal(layers, again, sizeof *layers * (size_t)spec.n_layers);
        for (int32_t l = 0; l < spec.n_layers; l++) {
            const double found[3] = { layers[l].streaming.theta_signed, layers[l].last.theta_signed, layers[l].middle.theta_signed };
            for (int section = 0; section < 3; section++) {
                const double difference = section_difference(a.probe, tokens, N_LONG, TARGET, l, section, 0.005f);
                furthest = fmax(furthest, fabs(found[section] - difference));
                largest = fmax(largest, fabs(difference));
            }
        }
        print_message("  %-8s largest difference by a section %.3g, furthest from its sum %.2g\n", tmx_isa_name((tmx_isa)isa), largest, furthest);
        assert_true(largest > 0.1 && furthest <= 1e-3);
        close_machine(&a);
        close_machine(&b);
    }
    tf_free(&m);
}

static void expect_refused(const char *name, const char *text)
{
    tf_model m;
    tmx_error err;
    tmx_pool *pool;
    tmx_model *model;
    tmx_probe *probe;
    for (int i = 0; i < TF_N_SPECS; i++) {
        if (strcmp(tf_specs[i].name, name) == 0) tf_create(&m, &tf_specs[i]);
    }
    assert_int_equal(tmx_pool_create(&pool, 1, &err), TMX_OK);
    assert_int_equal(tmx_model_open(&model, m.path, NULL, pool, &err), TMX_OK);
    assert_int_equal(tmx_probe_create(&probe, model, pool, NULL, &err), TMX_E_UNSUPPORTED);
    assert_string_equal(err.text, text);
    tmx_model_close(model);
    tmx_pool_free(pool);
    tf_free(&m);
}

static void what_it_cannot_is_refused(void **state)
{
    (void)state;
    expect_refused("mistral", "probe: every layer of this model has a sliding window of 32 tokens of its own; there is none to choose");
}

static void own_windows_are_not_ranked(void **state)
{
    (void)state;
    tmx_error err;
    tmx_probe_report *report, *again;
    tmx_plan *plan;
    char path[] = "/tmp/tmx-probe-XXXXXX", fingerprint[65];
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && close(fd) == 0);
    memset(fingerprint, 'a', 64);
    fingerprint[64] = '\0';
    tmx_model_info info = { .architecture = "gemma3", .name = "tiny", .fingerprint = fingerprint, .n_layers = 14, .n_window = 32, .window_period = 6 };
    const tmx_probe_settings settings = { .source = "test", .sections = { 2, 4, 3 }, .n_tokens = N, .n_samples = 1, .compute = TMX_COMPUTE_F32 };
    tmx_probe_layer layers[14] = { 0 };
    layers[11].middle.theta_abs = 1;
    assert_int_equal(tmx_probe_report_create(&report, &info, &settings, &err), TMX_OK);
    assert_int_equal(tmx_probe_report_add(report, &(tmx_probe_sample){ .n_tokens = N }, layers, &err), TMX_OK);
    assert_int_equal(tmx_probe_report_n_ranked(report), 2);
    int32_t order[14];
    for (int kind = TMX_ORDER_GRADIENT; kind <= TMX_ORDER_WORST; kind++) {
        assert_int_equal(tmx_probe_report_order(report, (tmx_probe_order)kind, 1, order, &err), TMX_OK);
        assert_int_equal(order[0] + order[1], 5 + 11);
        if (kind == TMX_ORDER_GRADIENT || kind == TMX_ORDER_SHALLOWEST) assert_int_equal(order[0], 5);
        if (kind == TMX_ORDER_WORST || kind == TMX_ORDER_DEEPEST) assert_int_equal(order[0], 11);
    }
    assert_int_equal(tmx_probe_report_plan(&plan, report, &info, TMX_ORDER_GRADIENT, 0, 2, &err), TMX_OK);
    tmx_plan_free(plan);
    assert_int_equal(tmx_probe_report_plan(&plan, report, &info, TMX_ORDER_GRADIENT, 0, 3, &err), TMX_E_ARG);
    assert_string_equal(err.text, "plan: 3 layers, a plan can change 2 of this model's 14 (the others have a window of their own)");
    assert_int_equal(tmx_probe_report_save(report, path, &err), TMX_OK);
    if (tmx_probe_report_open(&again, path, &info, &err) != TMX_OK) fail_msg("%s", err.text);
    assert_int_equal(tmx_probe_report_n_ranked(again), 2);
    tmx_probe_report_free(again);
    info.window_period = 3;
    assert_int_equal(tmx_probe_report_open(&again, path, &info, &err), TMX_E_FORMAT);
    assert_non_null(strstr(err.text, "own_window"));
    unlink(path);
    tmx_probe_report_free(report);
}

static int report(void **state)
{
    (void)state;
    printf("# worst error: f32 %.2g of %.2g, bf16 %.2g of %.2g\n", worst[1], f32_limit, worst[0], bf16_limit);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_matches_finite_differences),
        cmocka_unit_test(experts_match_finite_differences_of_sections),
        cmocka_unit_test(what_it_cannot_is_refused),
        cmocka_unit_test(own_windows_are_not_ranked),
    };
    return cmocka_run_group_tests(tests, NULL, report);
}
