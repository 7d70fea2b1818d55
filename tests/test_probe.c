/* test_probe.c - the gradient probe on a tiny random model: its f64 twin against finite differences, the probe against the
 * twin, and the probe's own kernels against finite differences of whole sections. */
#include "base/cpu.h"
#include "moved_section.h"
#include "tiny_gradient.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { N_PROMPT = 203, TARGET = 77 };

static const tmx_probe_sections small = { .n_sink = 3, .n_window = 20, .n_last = 11 };
static const tmx_pattern small_triangle = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = 3, .n_window = 20, .n_last = 11 };
static const char *const section_names[] = { "streaming", "last", "middle" };

typedef struct machine {
    tiny_model tiny;
    tmx_pool *pool;
    tmx_model *model;
    tmx_probe *probe;
} machine;

static void open_machine(machine *m, tmx_isa isa, tmx_compute compute, int32_t n_threads, int32_t n_tokens)
{
    tmx_error err = { 0 };
    tiny_model_create(&m->tiny, 7, isa != TMX_ISA_AVX2, isa != TMX_ISA_SCALAR);
    assert_int_equal(tmx_pool_create(&m->pool, n_threads, &err), TMX_OK);
    const tmx_model_params params = { .isa = isa, .compute = compute };
    if (tmx_model_open(&m->model, m->tiny.path, &params, m->pool, &err) != TMX_OK) fail_msg("%s", err.text);
    const tmx_probe_params probe_params = { .n_tokens = n_tokens, .sections = small };
    if (tmx_probe_create(&m->probe, m->model, m->pool, &probe_params, &err) != TMX_OK) fail_msg("%s", err.text);
}

static void close_machine(machine *m)
{
    tmx_probe_free(m->probe);
    tmx_model_close(m->model);
    tmx_pool_free(m->pool);
    tiny_model_free(&m->tiny);
}

static void random_tokens(int32_t *tokens, int32_t n, uint64_t seed)
{
    for (int32_t i = 0; i < n; i++) tokens[i] = (int32_t)(tiny_random(&seed) % TINY_VOCAB);
}

static void run(const machine *m, const int32_t *tokens, int32_t n, int32_t target, tmx_probe_layer *layers, tmx_probe_result *result)
{
    tmx_error err = { 0 };
    if (tmx_probe_run(m->probe, tokens, n, target, layers, result, &err) != TMX_OK) fail_msg("%s", err.text);
}

/* ---------------------------------------------------------------- the twin */

static double logit_with(const tiny_model *m, tiny_pass *pass, const int32_t *tokens, const tiny_theta *theta)
{
    tiny_forward_keep(m, pass, tokens, theta);
    return pass->logits[TARGET];
}

/* Central differences by theta of single pairs: every pair of a short prompt. */
static void the_twin_agrees_with_finite_differences_of_every_pair(void **state)
{
    (void)state;
    enum { N = 24 };
    const double e = 2e-5;
    int32_t tokens[N];
    double largest = 0, worst = 0;
    tiny_model tiny;
    tiny_model_create(&tiny, 3, false, true);
    random_tokens(tokens, N, 5);
    tiny_pass pass = tiny_pass_create(N), moved = tiny_pass_create(N);
    tiny_forward_keep(&tiny, &pass, tokens, NULL);
    tiny_backward(&tiny, &pass, TARGET);
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int i = 0; i < N; i++) {
            for (int j = 0; j <= i; j++) {
                tiny_theta theta = { .layer = l, .i = i, .j = j, .factor = 1 + e };
                const double up = logit_with(&tiny, &moved, tokens, &theta);
                theta.factor = 1 - e;
                const double difference = (up - logit_with(&tiny, &moved, tokens, &theta)) / (2 * e);
                const double found = pass.theta[(l * N + i) * N + j];
                largest = fmax(largest, fabs(found));
                if (!(fabs(found - difference) <= worst)) worst = fabs(found - difference);
            }
        }
    }
    print_message("largest dy/dtheta %.3g, worst difference %.2e\n", largest, worst);
    assert_true(largest > 1e-3 && worst <= 1e-8 * largest);        /* measured: 1.2e-9 */
    tiny_pass_free(&pass);
    tiny_pass_free(&moved);
    tiny_model_free(&tiny);
}

/* ---------------------------------------------------------------- the probe against the twin */

/* Of a section's sum of head_abs, da_abs or attention.  Measured: f32 below 3e-6, bf16 below 4e-2 (a model of random weights is far from linear). */
static double limit_of(tmx_compute compute) { return compute == TMX_COMPUTE_F32 ? 2e-5 : 0.05; }

static void sums_match_the_twin(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 1, 2, 3, 16, 17, 33, 64, 65, N_PROMPT };
    int32_t tokens[N_PROMPT];
    random_tokens(tokens, N_PROMPT, 1);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            machine m;
            double worst = 0;
            open_machine(&m, (tmx_isa)isa, (tmx_compute)compute, 2, N_PROMPT);
            for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
                tmx_probe_layer layers[TINY_LAYERS];
                tiny_pass pass = tiny_pass_create(lengths[i]);
                run(&m, tokens, lengths[i], TARGET, layers, NULL);
                tiny_forward_keep(&m.tiny, &pass, tokens, NULL);
                tiny_backward(&m.tiny, &pass, TARGET);
                worst = fmax(worst, tiny_worst_of_layers(layers, &pass, &small_triangle));
                tiny_pass_free(&pass);
            }
            print_message("%-10s %s: worst difference %.2e\n", tmx_isa_name((tmx_isa)isa),
                          compute == TMX_COMPUTE_F32 ? "f32 " : "bf16", worst);
            assert_true(worst <= limit_of((tmx_compute)compute));
            close_machine(&m);
        }
    }
}

/* ---------------------------------------------------------------- finite differences of the probe's own kernels */

static void sums_match_finite_differences_of_sections(void **state)
{
    (void)state;
    const float e = 0.005f;
    int32_t tokens[N_PROMPT];
    random_tokens(tokens, N_PROMPT, 4);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AVX512; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        machine m;
        tmx_probe_layer layers[TINY_LAYERS];
        double worst = 0;
        open_machine(&m, (tmx_isa)isa, TMX_COMPUTE_F32, 2, N_PROMPT);
        run(&m, tokens, N_PROMPT, TARGET, layers, NULL);
        for (int32_t l = 0; l < TINY_LAYERS; l++) {
            for (int section = 0; section < 3; section++) {
                const tmx_probe_sums *s = tiny_section_of(&layers[l], section);
                const double difference = section_difference(m.probe, tokens, N_PROMPT, TARGET, l, section, e);
                print_message("  layer %d %-9s signed sum %10.6f, finite difference %10.6f\n", l, section_names[section],
                              s->theta_signed, difference);
                worst = fmax(worst, fabs(difference - s->theta_signed));
            }
        }
        assert_true(worst <= 1e-3);                /* f32 logits of about 10, divided by 2 e; measured: below 6e-4 */
        close_machine(&m);
    }
}

/* ---------------------------------------------------------------- properties */

static void the_last_layer_has_gradient_in_its_last_row_alone(void **state)
{
    (void)state;
    int32_t tokens[N_PROMPT];
    machine m;
    tmx_probe_layer layers[TINY_LAYERS];
    random_tokens(tokens, N_PROMPT, 6);
    open_machine(&m, tmx_isa_best(), TMX_COMPUTE_F32, 1, N_PROMPT);
    run(&m, tokens, N_PROMPT, TARGET, layers, NULL);
    const tmx_probe_sums *middle = &layers[TINY_LAYERS - 1].middle;
    assert_true(middle->theta_abs == 0 && middle->theta_signed == 0 && middle->head_abs == 0 && middle->da_abs == 0);
    assert_true(middle->attention > 0 && layers[TINY_LAYERS - 1].last.theta_abs > 0 && layers[0].middle.theta_abs > 0);
    close_machine(&m);
}

/* The sum over all pairs of dy/dtheta is the sum over rows and heads of d_o . o; probabilities of a row add up to 1. */
static void sums_over_all_sections_are_identities(void **state)
{
    (void)state;
    int32_t tokens[N_PROMPT];
    machine m;
    tmx_probe_layer layers[TINY_LAYERS];
    random_tokens(tokens, N_PROMPT, 8);
    open_machine(&m, tmx_isa_best(), TMX_COMPUTE_F32, 2, N_PROMPT);
    run(&m, tokens, N_PROMPT, TARGET, layers, NULL);
    tiny_pass pass = tiny_pass_create(N_PROMPT);
    tiny_forward_keep(&m.tiny, &pass, tokens, NULL);
    tiny_backward(&m.tiny, &pass, TARGET);
    for (int l = 0; l < TINY_LAYERS; l++) {
        double theta = 0, size = 0, attention = 0, dots = 0;
        for (int section = 0; section < 3; section++) {
            const tmx_probe_sums *s = tiny_section_of(&layers[l], section);
            theta += s->theta_signed;
            size += s->head_abs;
            attention += s->attention;
            assert_true(s->theta_abs <= s->head_abs * (1 + 1e-6) && fabs(s->theta_signed) <= s->theta_abs * (1 + 1e-6));
        }
        for (int i = 0; i < N_PROMPT; i++) dots += pass.dots[l * N_PROMPT + i];
        assert_true(fabs(theta - dots) <= 1e-5 * size);
        assert_true(fabs(attention - N_PROMPT * TINY_HEADS) <= 1e-5 * N_PROMPT * TINY_HEADS);
    }
    tiny_pass_free(&pass);
    close_machine(&m);
}

static void the_forward_pass_is_prefill(void **state)
{
    (void)state;
    int32_t tokens[N_PROMPT];
    float logits[TINY_VOCAB];
    random_tokens(tokens, N_PROMPT, 9);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            machine m;
            tmx_session *session;
            tmx_probe_result result;
            open_machine(&m, (tmx_isa)isa, (tmx_compute)compute, 2, N_PROMPT);
            assert_int_equal(tmx_session_create(&session, m.model, NULL, m.pool, NULL, NULL), TMX_OK);
            assert_int_equal(tmx_prefill(session, &(tmx_prompt){ .tokens = tokens, .n_tokens = N_PROMPT, .logits = logits }, 1, NULL), TMX_OK);
            run(&m, tokens, N_PROMPT, TARGET, NULL, &result);
            int32_t top = 0;
            for (int32_t i = 1; i < TINY_VOCAB; i++) top = logits[i] > logits[top] ? i : top;
            /* the last layer's one q row is rounded here and not there, or summed in another order */
            const double limit = compute == TMX_COMPUTE_F32 ? 2e-5 : 0.05;
            assert_true(fabs((double)result.target_logit - (double)logits[TARGET]) <= limit);
            assert_true(fabs((double)result.top_logit - (double)logits[top]) <= limit && result.top_token == top);
            assert_true(result.is_correct == (top == TARGET));
            run(&m, tokens, N_PROMPT, top, NULL, &result);
            assert_true(result.is_correct && result.target_logit == result.top_logit);
            tmx_session_free(session);
            close_machine(&m);
        }
    }
}

static void bits_never_move(void **state)
{
    (void)state;
    int32_t tokens[N_PROMPT], other[N_PROMPT];
    random_tokens(tokens, N_PROMPT, 2);
    random_tokens(other, N_PROMPT, 12);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            tmx_probe_layer first[TINY_LAYERS], layers[TINY_LAYERS];
            for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
                machine m;
                /* what ran before, and room for longer prompts, change nothing either */
                open_machine(&m, (tmx_isa)isa, (tmx_compute)compute, n_threads, N_PROMPT + 100 * (n_threads - 1));
                if (n_threads == 2) run(&m, other, N_PROMPT, 3, layers, NULL);
                run(&m, tokens, N_PROMPT - 1, TARGET, n_threads == 1 ? first : layers, NULL);
                if (n_threads > 1) assert_memory_equal(first, layers, sizeof first);
                close_machine(&m);
            }
        }
    }
}

static void cells_are_counted(void **state)
{
    (void)state;
    tmx_probe_cells cells;
    tmx_error err;
    assert_int_equal(tmx_probe_count_cells(&(tmx_probe_sections){ 0 }, 2000, &cells, &err), TMX_OK);
    assert_true(cells.streaming == 365664 && cells.last == 223296 && cells.middle == 1412040);
    for (int32_t n = 1; n < 60; n++) {
        int64_t counted[3] = { 0 };
        for (int32_t i = 0; i < n; i++) {
            for (int32_t j = 0; j <= i; j++) counted[tiny_section(&small_triangle, n, i, j)]++;
        }
        assert_int_equal(tmx_probe_count_cells(&small, n, &cells, &err), TMX_OK);
        assert_true(cells.streaming == counted[0] && cells.last == counted[1] && cells.middle == counted[2]);
    }
    assert_int_equal(tmx_probe_count_cells(&small, 0, &cells, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_count_cells(NULL, 5, &cells, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_count_cells(&(tmx_probe_sections){ .n_sink = 4 }, 5, &cells, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_count_cells(&(tmx_probe_sections){ .n_sink = -1, .n_window = 3 }, 5, &cells, &err), TMX_E_ARG);
}

/* ---------------------------------------------------------------- refusals */

static bool stop_at_the_third(void *ctx, const tmx_progress *progress)
{
    assert_true(progress->n_done > 0 && progress->n_done <= progress->n_total);
    return ++*(int *)ctx < 3;
}

static void arguments_are_checked(void **state)
{
    (void)state;
    machine m;
    tmx_error err;
    tmx_probe *none = NULL;
    tmx_probe_layer layers[TINY_LAYERS], before[TINY_LAYERS];
    tmx_probe_result result = { .top_token = -7 };
    int32_t tokens[30];
    int n_calls = 0;
    random_tokens(tokens, 30, 1);
    open_machine(&m, tmx_isa_best(), TMX_COMPUTE_F32, 1, 29);
    memset(layers, 0xee, sizeof layers);
    memcpy(before, layers, sizeof layers);
    const struct { int32_t n, target; int32_t bad_token; tmx_status status; const char *text; } cases[] = {
        { 0, 5, 0, TMX_E_ARG, "probe: a prompt of 0 tokens, expected 1 or more" },
        { -3, 5, 0, TMX_E_ARG, "probe: a prompt of -3 tokens, expected 1 or more" },
        { 30, 5, 0, TMX_E_FULL, "probe: a prompt of 30 tokens, this probe was made for 29" },
        { 9, -1, 0, TMX_E_ARG, "probe: the target is token -1, expected 0..256" },
        { 9, TINY_VOCAB, 0, TMX_E_ARG, "probe: the target is token 257, expected 0..256" },
        { 9, 5, TINY_VOCAB, TMX_E_ARG, "probe: token 4 is 257, expected 0..256" },
        { 9, 5, INT32_MIN, TMX_E_ARG, "probe: token 4 is -2147483648, expected 0..256" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int32_t good = tokens[4];
        if (cases[i].bad_token != 0) tokens[4] = cases[i].bad_token;
        assert_int_equal(tmx_probe_run(m.probe, tokens, cases[i].n, cases[i].target, layers, &result, &err), cases[i].status);
        assert_string_equal(err.text, cases[i].text);
        tokens[4] = good;
    }
    assert_int_equal(tmx_probe_run(NULL, tokens, 3, 3, layers, &result, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_run(m.probe, NULL, 3, 3, layers, &result, &err), TMX_E_ARG);
    assert_true(memcmp(layers, before, sizeof layers) == 0 && result.top_token == -7);

    const tmx_probe_params bad[] = {
        { .n_tokens = -1 }, { .n_tokens = TINY_CTX + 1 }, { .n_tokens = INT32_MAX },
        { .sections = { .n_sink = 5 } }, { .sections = { .n_window = -2 } }, { .sections = { .n_window = 1, .n_last = -1 } },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        tmx_memory memory;
        assert_int_equal(tmx_probe_create(&none, m.model, m.pool, &bad[i], &err), TMX_E_ARG);
        assert_true(none == NULL && err.text[0] != '\0');
        assert_int_equal(tmx_probe_memory(&m.model->info, TMX_COMPUTE_F32, TMX_ISA_AUTO, &bad[i], 1, &memory, &err), TMX_E_ARG);
    }
    assert_int_equal(tmx_probe_create(NULL, m.model, m.pool, NULL, &err), TMX_E_ARG);
    assert_int_equal(tmx_probe_create(&none, NULL, m.pool, NULL, &err), TMX_E_ARG);
    tmx_probe_free(NULL);

    const tmx_probe_params stopping = { .n_tokens = 29, .sections = small, .progress = stop_at_the_third, .progress_ctx = &n_calls };
    assert_int_equal(tmx_probe_create(&none, m.model, m.pool, &stopping, &err), TMX_OK);
    for (int i = 0; i < 2; i++) {                  /* in the forward pass, then in the backward pass */
        n_calls = i == 0 ? 0 : -2;
        assert_int_equal(tmx_probe_run(none, tokens, 20, 5, layers, &result, &err), TMX_E_CANCELLED);
        assert_true(memcmp(layers, before, sizeof layers) == 0 && result.top_token == -7);
    }
    tmx_probe_free(none);
    close_machine(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_twin_agrees_with_finite_differences_of_every_pair),
        cmocka_unit_test(sums_match_the_twin),
        cmocka_unit_test(sums_match_finite_differences_of_sections),
        cmocka_unit_test(the_last_layer_has_gradient_in_its_last_row_alone),
        cmocka_unit_test(sums_over_all_sections_are_identities),
        cmocka_unit_test(the_forward_pass_is_prefill),
        cmocka_unit_test(bits_never_move),
        cmocka_unit_test(cells_are_counted),
        cmocka_unit_test(arguments_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
