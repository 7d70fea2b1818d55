/* wrap: malloc calloc realloc free */
/* test_probe_memory.c - a probe and its report when memory runs out, and what a probe takes when it does not. */
#include "alloc_watch.h"
#include "base/cpu.h"
#include "probe/probe.h"
#include "probe/probe_report.h"
#include "tiny_family.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

typedef struct scarce {
    const tmx_model *model;
    const char *path;
    tmx_probe_report *report;
    void *made;
} scarce;

static const tmx_probe_params params = { .n_tokens = 90, .sections = { .n_sink = 2, .n_window = 9, .n_last = 4 } };

static tmx_status make_probe(scarce *s, tmx_error *err) { return tmx_probe_create((tmx_probe **)&s->made, s->model, NULL, &params, err); }
static tmx_status open_report(scarce *s, tmx_error *err) { return tmx_probe_report_open((tmx_probe_report **)&s->made, s->path, NULL, err); }
static tmx_status save_report(scarce *s, tmx_error *err) { return tmx_probe_report_save(s->report, s->path, err); }
static void drop_probe(scarce *s) { tmx_probe_free(s->made); }
static void drop_report(scarce *s) { tmx_probe_report_free(s->made); }
static void drop_nothing(scarce *s) { (void)s; }

/* A tiny model with experts, to a file. */
static void create_experts(tf_model *m)
{
    for (int i = 0; i < TF_N_SPECS; i++) {
        if (tf_specs[i].n_experts > 0) tf_create(m, &tf_specs[i]);
    }
}

/* No crash, no leak, the right status, the result untouched.  jansson takes some failures for bad syntax. */
static void fail_each(const char *what, scarce *s, bool may_be_format, tmx_status (*make)(scarce *s, tmx_error *err),
                      void (*drop)(scarce *s))
{
    for (long n = 1; n < 100000; n++) {
        tmx_error err = { 0 };
        s->made = NULL;
        watch_begin(n);
        const tmx_status status = make(s, &err);
        if (status == TMX_OK) drop(s);
        watch_end();
        assert_int_equal(watch.n_live, 0);
        if (watch.n_calls < n) {
            assert_int_equal(status, TMX_OK);
            print_message("%s: %ld allocations\n", what, watch.n_calls);
            return;
        }
        if (status == TMX_OK) continue;
        if (status != TMX_E_MEMORY && !(may_be_format && status == TMX_E_FORMAT)) {
            fail_msg("%s, allocation %ld: %s %s", what, n, tmx_status_name(status), err.text);
        }
        assert_true(s->made == NULL && err.text[0] != '\0');
    }
    fail_msg("%s: never succeeds", what);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    tiny_model tiny;
    tmx_error err;
    tmx_model *model;
    tmx_probe *probe;
    tmx_probe_layer layers[TINY_LAYERS];
    char path[80];
    int32_t tokens[90] = { 1, 2, 3 };
    json_set_alloc_funcs(malloc, free);            /* of this program, so that the watch sees them */
    tiny_model_create(&tiny, 9, true, true);
    snprintf(path, sizeof path, "%s.probe.json", tiny.path);
    for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
        assert_int_equal(tmx_model_open(&model, tiny.path, &(tmx_model_params){ .compute = (tmx_compute)compute }, NULL, &err), TMX_OK);
        scarce s = { .model = model };
        fail_each("probe", &s, false, make_probe, drop_probe);
        tmx_model_close(model);
    }
    tf_model experts;
    create_experts(&experts);
    const char *const paths[] = { experts.path, tiny.path };
    for (int i = 0; i < 2; i++) {                  /* the second stays open */
        assert_int_equal(tmx_model_open(&model, paths[i], NULL, NULL, &err), TMX_OK);
        assert_int_equal(tmx_probe_create(&probe, model, NULL, &params, &err), TMX_OK);
        watch_begin(0);                            /* a run takes nothing */
        assert_int_equal(tmx_probe_run(probe, tokens, 90, 5, layers, NULL, &err), TMX_OK);
        watch_end();
        assert_int_equal(watch.n_calls, 0);
        if (i == 1) break;
        tmx_probe_free(probe);
        scarce s = { .model = model };
        fail_each("probe of experts", &s, false, make_probe, drop_probe);
        tmx_model_close(model);
    }
    tf_free(&experts);

    scarce s = { .path = path };
    const tmx_probe_settings settings = { .source = "test", .sections = params.sections, .n_tokens = 90, .n_samples = 2, .seed = 1,
                                          .compute = TMX_COMPUTE_F32 };
    assert_int_equal(tmx_probe_report_create(&s.report, tmx_model_info_get(model), &settings, &err), TMX_OK);
    assert_int_equal(tmx_probe_report_add(s.report, &(tmx_probe_sample){ .n_tokens = 90, .target = 5 }, layers, &err), TMX_OK);
    assert_int_equal(tmx_probe_report_save(s.report, path, &err), TMX_OK);
    fail_each("report saved", &s, false, save_report, drop_nothing);
    fail_each("report opened", &s, true, open_report, drop_report);
    tmx_probe_report_free(s.report);
    tmx_probe_free(probe);
    tmx_model_close(model);
    unlink(path);
    tiny_model_free(&tiny);
}

/* 8 KiB more for the records around the numbers, which count in a tiny model only; an expert's two weights have records too. */
static void expect_prediction(const char *path, double record_bytes)
{
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AVX512; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            tmx_model *model;
            tmx_probe *probe;
            tmx_error err;
            tmx_memory memory;
            const tmx_model_params as = { .isa = (tmx_isa)isa, .compute = (tmx_compute)compute };
            assert_int_equal(tmx_model_open(&model, path, &as, NULL, &err), TMX_OK);
            assert_int_equal(tmx_probe_memory(tmx_model_info_get(model), as.compute, as.isa, &params, 1, &memory, &err), TMX_OK);
            watch_begin(0);
            assert_int_equal(tmx_probe_create(&probe, model, NULL, &params, &err), TMX_OK);
            watch_end();
            const double taken = (double)watch.n_live_bytes, said = (double)memory.total_bytes;
            print_message("  %-8s said %9.0f, taken %9.0f\n", tmx_isa_name((tmx_isa)isa), said, taken);
            assert_true(fabs(said - taken) <= 0.05 * taken + record_bytes);
            assert_true(memory.total_bytes == memory.weight_bytes + memory.kv_bytes + memory.workspace_bytes);
            tmx_probe_free(probe);
            tmx_model_close(model);
        }
    }
}

static void memory_is_predicted(void **state)
{
    (void)state;
    tiny_model tiny;
    tf_model experts;
    tiny_model_create(&tiny, 10, true, true);
    create_experts(&experts);
    expect_prediction(tiny.path, 8192);
    expect_prediction(experts.path, 16384);
    tf_free(&experts);
    tiny_model_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(memory_is_predicted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
