/* rooms: bench; wrap: malloc calloc realloc free tmx_prefill */
/* test_bench.c - what tmx bench measures with, on a tiny random model and tiny shapes: results that hold together, plans that take
 * turns, checks that catch a wrong bit, stops, lack of memory. */
#include "alloc_watch.h"
#include "bench/kernel_bench.h"
#include "bench/model_bench.h"
#include "bench/timing.h"
#include "tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { N_PLANS = 2, N_REPEATS = 3, MAX_SEEN = 256 };

typedef struct fixture {
    tiny_model tiny;
    tmx_pool *pool;
    tmx_model *model;
    tmx_plan *plans[N_PLANS];
    const tmx_plan *columns[N_PLANS];
} fixture;

static int set_up(void **state)
{
    static fixture f;
    static const char *const specs[N_PLANS] = { "dense", "triangle:1-2" };
    tmx_error err;
    tiny_model_create(&f.tiny, 7, false, false);
    if (tmx_pool_create(&f.pool, 2, &err) != TMX_OK || tmx_model_open(&f.model, f.tiny.path, NULL, f.pool, &err) != TMX_OK) return -1;
    for (int i = 0; i < N_PLANS; i++) {
        if (tmx_plan_parse(&f.plans[i], specs[i], tmx_model_info_get(f.model), &err) != TMX_OK) return -1;
        tmx_plan_set_sizes(f.plans[i], 4, 20, 30, NULL);
        f.columns[i] = f.plans[i];
    }
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < N_PLANS; i++) tmx_plan_free(f->plans[i]);
    tmx_model_close(f->model);
    tmx_pool_free(f->pool);
    tiny_model_free(&f->tiny);
    return 0;
}

/* ---------------------------------------------------------------- a prefill that errs when told to */

static struct { int32_t n_calls, wrong_at; bool is_nan; } fault;       /* wrong_at: which call, from 1; 0 = none */

tmx_status __real_tmx_prefill(tmx_session *session, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err);
tmx_status __wrap_tmx_prefill(tmx_session *session, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err);

tmx_status __wrap_tmx_prefill(tmx_session *session, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err)
{
    const tmx_status status = __real_tmx_prefill(session, prompts, n_prompts, err);
    if (++fault.n_calls == fault.wrong_at && prompts->logits != NULL) {
        float *last = &prompts->logits[TINY_VOCAB - 1];
        *last = fault.is_nan ? NAN : nextafterf(*last, INFINITY);
    }
    return status;
}

/* ---------------------------------------------------------------- statistics */

static void summaries_of_known_numbers(void **state)
{
    (void)state;
    double x[] = { 4, 1, 3, 2, 10 };
    timing_summary s = timing_summarize(x, 5);
    assert_true(s.mean == 4 && s.median == 3 && s.least == 1);
    assert_true(fabs(s.stddev - sqrt((9.0 + 4 + 1 + 0 + 36) / 4)) < 1e-15);
    assert_true(fabs(s.spread_pct - 100 * (4.0 - 2.0) / 3) < 1e-12);
    double two[] = { 2, 1 };
    s = timing_summarize(two, 2);
    assert_true(s.median == 1.5 && s.mean == 1.5 && fabs(s.spread_pct - 100 * 0.5 / 1.5) < 1e-12);
    s = timing_summarize(two, 1);
    assert_true(s.median == 1 && s.stddev == 0 && s.spread_pct == 0);
    s = timing_summarize(NULL, 0);
    assert_true(s.median == 0 && s.mean == 0 && s.stddev == 0);
}

/* ---------------------------------------------------------------- a model */

static const bench_test tests[] = {
    { .n_prompt = 90 }, { .n_prompt = 40, .n_depth = 35 }, { .n_gen = 3 }, { .n_gen = 2, .n_depth = 11 }, { .n_prompt = 17, .n_gen = 2 },
};
enum { N_TESTS = sizeof tests / sizeof tests[0], N_RESULTS = 2 * 3 + 2 };

typedef struct seen {
    struct { bench_test test; int32_t plan; } turns[MAX_SEEN];         /* without the checks, repeated calls once */
    int32_t n_turns, n_finished, n_calls, stop_at;
    double share;
} seen;

static bool on_progress(void *ctx, const bench_progress *at)
{
    seen *s = ctx;
    assert_true(at->share >= s->share - 1e-9 && at->share <= 1);
    s->share = at->share;
    s->n_calls++;
    const bool is_new = s->n_turns == 0 || memcmp(&s->turns[s->n_turns - 1].test, &at->test, sizeof at->test) != 0
                        || s->turns[s->n_turns - 1].plan != at->plan;
    if (!at->is_check && is_new) {
        assert_true(s->n_turns < MAX_SEEN);
        s->turns[s->n_turns].test = at->test;
        s->turns[s->n_turns++].plan = at->plan;
    }
    return s->stop_at == 0 || s->n_calls < s->stop_at;
}

static void on_finished(void *ctx, const bench_result *r)
{
    seen *s = ctx;
    assert_true(r->n_repeats > 0);
    s->n_finished++;
}

static bench_params params_of(const fixture *f, seen *s)
{
    memset(&fault, 0, sizeof fault);
    *s = (seen){ .n_turns = 0 };
    return (bench_params){
        .model = f->model, .pool = f->pool, .plans = f->columns, .n_plans = N_PLANS, .tests = tests, .n_tests = N_TESTS,
        .n_repeats = N_REPEATS, .seed = 3, .progress = on_progress, .finished = on_finished, .ctx = s,
    };
}

static void results_hold_together(void **state)
{
    seen s;
    tmx_error err;
    bench_run run;
    const bench_params p = params_of(*state, &s);
    if (bench_model(&run, &p, &err) != TMX_OK) fail_msg("%s", err.text);
    assert_false(run.is_stopped);
    assert_int_equal(run.n_results, N_RESULTS);
    assert_int_equal(s.n_finished, N_RESULTS);
    int32_t at = 0;
    for (int32_t i = 0; i < N_TESTS; i++) {
        const int32_t n_plans = tests[i].n_prompt > 0 ? N_PLANS : 1;
        for (int32_t k = 0; k < n_plans; k++, at++) {
            const bench_result *r = &run.results[at];
            assert_memory_equal(&r->test, &tests[i], sizeof r->test);
            assert_int_equal(r->plan, k);
            assert_int_equal(r->n_repeats, N_REPEATS);
            assert_true(r->unix_time_s > 1600000000);
            assert_true(r->peak_bytes > 1 << 20);
            double layers_ms = 0, attention_ms = 0, least_rest_ms = INFINITY;
            for (int32_t l = 0; l < TINY_LAYERS; l++) layers_ms += r->layer_attention_ms[l];
            for (int32_t n = 0; n < N_REPEATS; n++) {
                assert_true(r->time_ms[n] > 0 && r->time_ms[n] < 1e5);
                assert_true(r->ttft_ms[n] <= r->time_ms[n] && r->attention_ms[n] <= r->ttft_ms[n]);
                assert_int_equal(r->ttft_ms[n] > 0, tests[i].n_prompt > 0);
                assert_int_equal(r->attention_ms[n] > 0, tests[i].n_prompt > 0);
                attention_ms += r->attention_ms[n] / N_REPEATS;
                least_rest_ms = fmin(least_rest_ms, r->time_ms[n] - r->ttft_ms[n]);
            }
            assert_true(fabs(layers_ms - attention_ms) <= 1e-6 + 1e-9 * attention_ms);
            if (tests[i].n_gen == 0) assert_true(least_rest_ms < 5);       /* a busy machine may take longer once */
        }
    }
    bench_run_free(&run);
}

static void plans_take_turns(void **state)
{
    seen s;
    bench_run run;
    bench_params p = params_of(*state, &s);
    p.n_tests = 1;
    assert_int_equal(bench_model(&run, &p, NULL), TMX_OK);
    assert_int_equal(s.n_turns, (N_REPEATS + 1) * N_PLANS);            /* the warm-up, too */
    for (int32_t i = 0; i < s.n_turns; i++) assert_int_equal(s.turns[i].plan, i % N_PLANS);
    bench_run_free(&run);
    p = params_of(*state, &s);
    p.n_tests = 1;
    p.is_cold = true;
    assert_int_equal(bench_model(&run, &p, NULL), TMX_OK);
    assert_int_equal(s.n_turns, N_REPEATS * N_PLANS);
    assert_int_equal(run.results[0].n_repeats, N_REPEATS);
    bench_run_free(&run);
}

/* Check on all threads, check on another number, warm-up and repetitions: each compares with what came before. */
static void a_wrong_bit_is_caught(void **state)
{
    seen s;
    tmx_error err;
    bench_run run;
    bench_params p = params_of(*state, &s);
    p.n_tests = 1;
    p.n_repeats = 2;
    assert_int_equal(bench_model(&run, &p, NULL), TMX_OK);
    const int32_t n_calls = fault.n_calls;
    bench_run_free(&run);
    assert_int_equal(n_calls, N_PLANS * (2 + 1 + 2));
    for (int32_t n = 1; n <= n_calls; n++) {
        for (int is_nan = 0; is_nan < 2; is_nan++) {
            fault.n_calls = 0;
            fault.wrong_at = n;
            fault.is_nan = is_nan;
            err.text[0] = '\0';
            s.share = 0;
            assert_int_equal(bench_model(&run, &p, &err), TMX_E_NUMERIC);
            assert_non_null(strstr(err.text, is_nan ? "not finite" : "not the same bits"));
            bench_run_free(&run);
        }
    }
}

static void a_stop_keeps_what_is_done(void **state)
{
    seen s;
    bench_run run;
    bench_params p = params_of(*state, &s);
    assert_int_equal(bench_model(&run, &p, NULL), TMX_OK);
    const int32_t n_calls = s.n_calls;
    bench_run_free(&run);
    int32_t n_partial = 0;
    for (int32_t stop_at = 1; stop_at < n_calls; stop_at += 1 + n_calls / 40) {
        p = params_of(*state, &s);
        s.stop_at = stop_at;
        assert_int_equal(bench_model(&run, &p, NULL), TMX_OK);
        assert_true(run.is_stopped);
        assert_int_equal(s.n_calls, stop_at);
        int32_t n_begun = 0;
        for (int32_t i = 0; i < run.n_results; i++) {
            const int32_t n = run.results[i].n_repeats;
            n_begun += n > 0;
            n_partial += n > 0 && n < N_REPEATS;
        }
        assert_int_equal(s.n_finished, n_begun);
        bench_run_free(&run);
    }
    assert_true(n_partial > 0);
}

static void bad_params_are_refused(void **state)
{
    static const bench_test wrong[] = {
        { 0, 0, 0 }, { -1, 5, 0 }, { 5, -1, 0 }, { 5, 0, -1 }, { TINY_CTX, 1, 0 }, { 0, TINY_CTX, 0 }, { 1, INT32_MAX, INT32_MAX },
    };
    seen s;
    tmx_error err;
    bench_run run;
    bench_params p = params_of(*state, &s);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        p.tests = &wrong[i];
        p.n_tests = 1;
        assert_int_equal(bench_model(&run, &p, &err), TMX_E_ARG);
        assert_true(strlen(err.text) > 0);
        assert_int_equal(run.n_results, 0);
        bench_run_free(&run);
    }
    const bench_test whole = { .n_prompt = TINY_CTX };
    p.tests = &whole;
    p.n_repeats = 1;
    p.is_cold = true;
    assert_int_equal(bench_model(&run, &p, NULL), TMX_OK);
    bench_run_free(&run);
    for (int i = 0; i < 5; i++) {
        p = params_of(*state, &s);
        if (i == 0) p.n_plans = 0;
        if (i == 1) p.n_plans = BENCH_MAX_PLANS + 1;
        if (i == 2) p.n_repeats = 0;
        if (i == 3) p.n_repeats = BENCH_MAX_REPEATS + 1;
        if (i == 4) p.n_tests = 0;
        assert_int_equal(bench_model(&run, &p, NULL), TMX_E_ARG);
        bench_run_free(&run);
    }
}

static void a_model_without_memory(void **state)
{
    seen s;
    for (long n = 1;; n += 1 + n / 16) {
        tmx_error err = { 0 };
        bench_run run;
        bench_params p = params_of(*state, &s);
        p.n_tests = 2;
        p.n_repeats = 1;
        watch_begin(n);
        const tmx_status status = bench_model(&run, &p, &err);
        bench_run_free(&run);
        watch_end();
        assert_int_equal(watch.n_live, 0);
        if (watch.n_calls < n) {
            assert_int_equal(status, TMX_OK);
            return;
        }
        assert_int_equal(status, TMX_E_MEMORY);
        assert_int_equal(err.code, TMX_E_MEMORY);
    }
}

/* ---------------------------------------------------------------- kernels */

static const int32_t lengths[] = { 1, 200 }, head_dims[] = { 8, 64 }, groups[] = { 1, 3 };
static const kernel_shape shapes[] = { { 40, 64 }, { 1, 32 } };

typedef struct kernels_seen {
    int32_t n_attention, n_matmul, n_matvec, n_steps, stop_at;
    double share, dense_ms;
} kernels_seen;

static bool on_kernel_progress(void *ctx, double share)
{
    kernels_seen *s = ctx;
    assert_true(share >= s->share && share <= 1.0001);
    s->share = share;
    return s->stop_at == 0 || ++s->n_steps < s->stop_at;
}

static void on_kernel(void *ctx, const kernel_result *r)
{
    kernels_seen *s = ctx;
    assert_true(r->time.least <= r->time.median && r->time.median > 0 && r->rate > 0);
    assert_true(r->error >= 0 && r->error < 1e-2);
    assert_true(r->isa >= TMX_ISA_SCALAR && r->isa <= tmx_isa_best());
    assert_int_equal(r->pct_of_ceiling > 0, r->op == KERNEL_MATVEC || r->isa > TMX_ISA_SCALAR);
    if (r->op == KERNEL_ATTENTION) {
        s->n_attention++;
        const double pairs = (double)tmx_pattern_pairs(&r->pattern, r->n_tokens, 0, r->n_tokens);
        const double flop = 4.0 * pairs * r->n_heads * r->head_dim;
        assert_true(fabs(r->rate * r->time.median * 1e6 / flop - 1) < 1e-9);
        assert_true(fabs(r->pair_ratio - pairs / (r->n_tokens * (r->n_tokens + 1.0) / 2)) < 1e-12);
        if (r->pattern.kind == TMX_PATTERN_DENSE) s->dense_ms = r->time.median;
        assert_true(fabs(r->time_ratio * s->dense_ms / r->time.median - 1) < 1e-12);
        assert_int_equal(r->n_heads % r->n_kv_heads, 0);
    } else if (r->op == KERNEL_MATMUL) {
        s->n_matmul++;
        assert_true(fabs(r->rate * r->time.median * 1e6 / (2.0 * r->n_tokens * r->n_out * r->n_in) - 1) < 1e-9);
    } else {
        s->n_matvec++;
    }
}

static kernel_params kernels_of(const fixture *f, kernels_seen *s, tmx_isa isa)
{
    *s = (kernels_seen){ .share = 0 };
    return (kernel_params){
        .pool = f->pool, .isa = isa, .lengths = lengths, .n_lengths = 2, .head_dims = head_dims, .n_head_dims = 2, .groups = groups,
        .n_groups = 2, .shapes = shapes, .n_shapes = 2, .n_rows = 9, .n_repeats = 2, .seed = 5, .progress = on_kernel_progress,
        .finished = on_kernel, .ctx = s,
    };
}

static void kernels_hold_together(void **state)
{
    for (int isa = TMX_ISA_AUTO; isa <= (int)tmx_isa_best(); isa++) {
        kernels_seen s;
        ceilings c;
        bool is_stopped;
        tmx_error err;
        const kernel_params p = kernels_of(*state, &s, (tmx_isa)isa);
        if (bench_kernels(&p, &c, &is_stopped, &err) != TMX_OK) fail_msg("%s", err.text);
        assert_false(is_stopped);
        const int32_t n_rungs = isa == TMX_ISA_AUTO && tmx_isa_best() > TMX_ISA_AVX2 ? (int32_t)tmx_isa_best() - 1 : 1;
        assert_int_equal(s.n_attention, 2 * 2 * 2 * 2 * 3 * n_rungs);
        assert_true(s.n_matmul >= 2 * 2 * n_rungs);
        assert_int_equal(s.n_matvec, 6 * n_rungs);
        assert_int_equal(c.avx2_f32 > 0, tmx_isa_best() >= TMX_ISA_AVX2);
        assert_int_equal(c.avx512_bf16 > 0, tmx_isa_best() >= TMX_ISA_AVX512_BF16);
        assert_true(c.copy > 0);
    }
}

static void kernels_stop_and_refuse(void **state)
{
    kernels_seen s;
    ceilings c;
    bool is_stopped;
    for (int stop_at = 1; stop_at < 170; stop_at += 84) {
        const kernel_params p = kernels_of(*state, &s, TMX_ISA_AUTO);
        s.stop_at = stop_at;
        assert_int_equal(bench_kernels(&p, &c, &is_stopped, NULL), TMX_OK);
        assert_true(is_stopped);
    }
    kernel_params p = kernels_of(*state, &s, TMX_ISA_AUTO);
    p.n_repeats = 0;
    assert_int_equal(bench_kernels(&p, &c, &is_stopped, NULL), TMX_E_ARG);
    p = kernels_of(*state, &s, TMX_ISA_AUTO);
    const int32_t wide = 513;
    p.head_dims = &wide;
    p.n_head_dims = 1;
    assert_int_equal(bench_kernels(&p, &c, &is_stopped, NULL), TMX_E_ARG);
}

static void kernels_without_memory(void **state)
{
    for (long n = 3;; n += 1 + n / 2) {        /* the first two are the memory copy's, which is left out then */
        kernels_seen s;
        ceilings c;
        bool is_stopped;
        tmx_error err = { 0 };
        kernel_params p = kernels_of(*state, &s, TMX_ISA_AUTO);
        p.n_lengths = p.n_head_dims = p.n_groups = p.n_shapes = 1;
        watch_begin(n);
        const tmx_status status = bench_kernels(&p, &c, &is_stopped, &err);
        watch_end();
        assert_int_equal(watch.n_live, 0);
        if (watch.n_calls < n) {
            assert_int_equal(status, TMX_OK);
            return;
        }
        assert_int_equal(status, TMX_E_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest all[] = {
        cmocka_unit_test(summaries_of_known_numbers),
        cmocka_unit_test(results_hold_together),
        cmocka_unit_test(plans_take_turns),
        cmocka_unit_test(a_wrong_bit_is_caught),
        cmocka_unit_test(a_stop_keeps_what_is_done),
        cmocka_unit_test(bad_params_are_refused),
        cmocka_unit_test(a_model_without_memory),
        cmocka_unit_test(kernels_hold_together),
        cmocka_unit_test(kernels_stop_and_refuse),
        cmocka_unit_test(kernels_without_memory),
    };
    return cmocka_run_group_tests(all, set_up, tear_down);
}
