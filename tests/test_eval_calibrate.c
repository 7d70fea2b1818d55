/* rooms: run eval */
/* test_eval_calibrate.c - the search for the number of layers on made-up losses, and the measuring, of methods too, on a tiny
 * random model. */
#include "eval/calibrate.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { MAX_LAYERS = 64 };

typedef struct losses {
    bool is_inside[MAX_LAYERS + 1];
    int32_t n_asked, asked[MAX_LAYERS + 1], stop_at;
} losses;

static int ask(void *ctx, int32_t k)
{
    losses *l = ctx;
    assert_true(k >= 1 && k <= MAX_LAYERS);
    l->asked[k]++;
    if (++l->n_asked == l->stop_at) return -1;
    return l->is_inside[k];
}

/* Losses that grow: the search finds the edge, with few questions, none of them far behind it. */
static void the_edge_is_found(void **state)
{
    (void)state;
    for (int32_t n = 1; n <= MAX_LAYERS; n++) {
        for (int32_t edge = 0; edge <= n; edge++) {
            losses l = { .stop_at = -1 };
            for (int32_t k = 1; k <= edge; k++) l.is_inside[k] = true;
            assert_int_equal(calibrate_search(n, ask, &l), edge);
            assert_true(l.n_asked <= (int32_t)ceil(log2(n + 1)) + 2);
        }
    }
}

/* Losses that do not grow with every layer: what lies up to two layers behind the edge is found, and nothing that does not fit
 * is ever taken. */
static void a_bump_is_stepped_over(void **state)
{
    (void)state;
    losses l = { .stop_at = -1 };
    for (int32_t k = 1; k <= 12; k++) l.is_inside[k] = true;
    l.is_inside[14] = l.is_inside[15] = true;          /* 13 is the bump; halves of 30: 15, 23, 19, 17, 16 */
    assert_int_equal(calibrate_search(30, ask, &l), 15);

    l = (losses){ .stop_at = -1 };
    for (int32_t k = 1; k <= 12; k++) l.is_inside[k] = true;
    l.is_inside[14] = l.is_inside[16] = true;          /* halves of 30: 15, 7, 11, 13, 12 */
    assert_int_equal(calibrate_search(30, ask, &l), 16);

    uint64_t seed = 1;
    for (int round = 0; round < 2000; round++) {
        l = (losses){ .stop_at = -1 };
        for (int32_t k = 1; k <= 30; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            l.is_inside[k] = seed >> 63 != 0;
        }
        const int32_t found = calibrate_search(30, ask, &l);
        assert_true(found == 0 || (l.is_inside[found] && l.asked[found] > 0));
    }
}

static void a_stop_is_handed_up(void **state)
{
    (void)state;
    for (int32_t stop = 1; stop <= 6; stop++) {
        losses l = { .stop_at = stop };
        assert_int_equal(calibrate_search(30, ask, &l), -1);
        assert_int_equal(l.n_asked, stop);
    }
}

/* ---------------------------------------------------------------- on a model */

typedef struct fixture {
    tiny_model tiny;
    tmx_pool *pool;
    tmx_model *model;
} fixture;

static int open_model(void **state)
{
    static fixture f;
    tmx_error err;
    tiny_model_create(&f.tiny, 3, true, false);
    if (tmx_pool_create(&f.pool, 2, &err) != TMX_OK) return -1;
    if (tmx_model_open(&f.model, f.tiny.path, &(tmx_model_params){ .compute = TMX_COMPUTE_F32 }, f.pool, &err) != TMX_OK) {
        print_error("%s\n", err.text);
        return -1;
    }
    *state = &f;
    return 0;
}

static int close_model(void **state)
{
    fixture *f = *state;
    tmx_model_close(f->model);
    tmx_pool_free(f->pool);
    tiny_model_free(&f->tiny);
    return 0;
}

static const int32_t last_first[] = { 2, 0, 1 };

static calibration_params params_of(calibration_budget budget, double limit)
{
    return (calibration_params){ .order = last_first, .n_sink = 2, .n_window = 16, .n_last = 8, .kind = task_find("kv_number"),
                                 .seed = 5, .n_samples = 3, .n_tokens = 700, .budget = budget, .limit = limit };
}

static calibration run(const fixture *f, const calibration_params *params)
{
    calibration found = { 0 };
    tmx_error err;
    if (calibrate(&found, f->model, f->pool, params, &err) != TMX_OK) fail_msg("%s", err.text);
    return found;
}

static void budgets_bound_the_loss(void **state)
{
    const fixture *f = *state;
    calibration_params params = params_of(CALIBRATE_KL, 1e9);
    calibration found = run(f, &params);
    assert_int_equal(found.n_sparse, 3);
    assert_int_equal(found.curve[0].n_sparse, 0);
    assert_true(found.curve[0].kl == 0 && found.curve[0].top1 == 1 && found.curve[0].ttft_ms > 0);
    const tmx_plan_point *all = &found.curve[found.n_points - 1];
    assert_int_equal(all->n_sparse, 3);
    assert_true(all->kl > 1e-7);                       /* the tiny model does read its middle */
    const double kl = all->kl;
    calibration_free(&found);

    params = params_of(CALIBRATE_KL, kl / 2);          /* measured again, the same: half of it is too little for three */
    found = run(f, &params);
    assert_true(found.n_sparse >= 1 && found.n_sparse < 3);
    calibration_free(&found);

    params = params_of(CALIBRATE_KL, 0);               /* the last layer is free: its last rows see everything */
    found = run(f, &params);
    assert_int_equal(found.n_sparse, 1);
    assert_true(found.curve[1].n_sparse == 1 && found.curve[1].kl == 0);
    calibration_free(&found);

    params = params_of(CALIBRATE_DROP, 0);             /* a random model scores nothing, and so loses nothing */
    found = run(f, &params);
    assert_int_equal(found.n_sparse, 3);
    tmx_plan *plan;
    char text[128];
    assert_int_equal(calibration_plan(&plan, f->model, &params, 2, NULL, NULL), TMX_OK);
    assert_string_equal(tmx_plan_text(plan, text, sizeof text), "triangle 0,2 (sink 2, window 16, last 8), dense 1");
    assert_int_equal(tmx_plan_set_curve(plan, found.curve, found.n_points, NULL), TMX_OK);
    tmx_plan_free(plan);
    calibration_free(&found);
}

static void a_step_measures_the_whole_curve(void **state)
{
    const fixture *f = *state;
    calibration_params params = params_of(CALIBRATE_KL, 1e9);
    calibration edge = run(f, &params);
    params.curve_step = 1;
    calibration whole = run(f, &params);
    assert_int_equal(whole.n_points, 4);
    for (int32_t i = 0; i < 4; i++) assert_int_equal(whole.curve[i].n_sparse, i);
    assert_int_equal(whole.n_sparse, edge.n_sparse);
    assert_true(whole.curve[3].kl == edge.curve[edge.n_points - 1].kl);
    const double kl = whole.curve[3].kl;
    calibration_free(&edge);
    calibration_free(&whole);

    params = params_of(CALIBRATE_KL, kl / 2);
    params.curve_step = 3;                             /* 0 and 3 are measured first, what lies between by the search */
    whole = run(f, &params);
    assert_int_equal(whole.curve[whole.n_points - 1].n_sparse, 3);
    assert_true(whole.n_sparse >= 1 && whole.n_sparse < 3);
    calibration_free(&whole);
}

/* ---------------------------------------------------------------- methods */

static const char *const two_methods[] = { "xattention(stride=8,threshold=0.5)", "s2o(segment=128,tau=0.05)" };

static calibration_params params_with_methods(double limit)
{
    calibration_params params = params_of(CALIBRATE_KL, limit);
    params.methods = two_methods;
    params.n_methods = 2;
    return params;
}

static void plans_name_layers_and_methods(void **state)
{
    const fixture *f = *state;
    static const struct { int32_t n_sparse, methods[3]; const char *text; } cases[] = {
        { 1, { METHOD_NONE, METHOD_NONE, METHOD_NONE }, "triangle 2 (sink 2, window 16, last 8), dense 0-1" },
        { 0, { METHOD_NONE, METHOD_NONE, METHOD_NONE }, "dense 0-2" },
        { 1, { 1, 0, METHOD_NONE }, "triangle 2 (sink 2, window 16, last 8), xattention 1 (stride 8, threshold 0.5, norm 1), "
                                    "s2o 0 (segment 128, tau 0.05, sink 64, min_tiles 2, vote 0, guide 0)" },
        { 0, { METHOD_NONE, 0, 0 }, "xattention 1-2 (stride 8, threshold 0.5, norm 1), dense 0" },
    };
    const calibration_params params = params_with_methods(1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tmx_plan *plan;
        tmx_error err;
        char text[256];
        if (calibration_plan(&plan, f->model, &params, cases[i].n_sparse, cases[i].methods, &err) != TMX_OK) fail_msg("%s", err.text);
        assert_string_equal(tmx_plan_text(plan, text, sizeof text), cases[i].text);
        tmx_plan_free(plan);
    }
    tmx_plan *plan;
    calibration_params chunks = params;
    chunks.estimate_rows = 512;
    chunks.methods = (const char *const[]){ "flexprefill", "s2o" };
    assert_int_equal(calibration_plan(&plan, f->model, &chunks, 1, (const int32_t[]){ 0, METHOD_NONE, METHOD_NONE }, NULL), TMX_OK);
    assert_int_equal(tmx_plan_estimate_rows(plan), 512);
    tmx_plan_free(plan);
}

/* Which layers get one depends on the machine; what must hold does not. */
static void methods_stay_inside_the_budget(void **state)
{
    const fixture *f = *state;
    static const int32_t first_first[] = { 0, 1, 2 };
    int32_t n_rows_most = 0;
    for (int32_t i = 0; i < 3; i++) {
        calibration_params params = params_with_methods(i == 0 ? 0 : i == 1 ? 1e-9 : 1e9);
        if (i == 2) {
            params.order = first_first;
            params.budget = CALIBRATE_DROP;
            params.is_fastest = true;                  /* may take fewer than all */
        }
        const calibration found = run(f, &params);
        int32_t n_chosen = 0, n_asked = 0;
        for (int32_t k = 0; k < 3; k++) {
            const int32_t layer = params.order[k], m = found.layer_methods[layer];
            assert_true(m >= METHOD_NONE && m < 2);
            n_chosen += m != METHOD_NONE;
            if (k < found.n_sparse || layer == 2) assert_int_equal(m, METHOD_NONE);
            else n_asked++;
        }
        assert_int_equal(found.n_asked, n_asked);
        assert_int_equal(found.n_rows, n_asked == 0 ? 0 : 3 + (n_chosen > 0));
        assert_int_equal(found.n_given, n_chosen);
        assert_true((n_chosen > 0) == (found.race_ms[1] > 0));
        if (n_chosen > 0) {
            assert_true(found.race_ms[1] < found.race_ms[0]);
            assert_int_equal(found.rows[3].n_layers, n_chosen);
            assert_true(i == 2 || found.rows[3].point.kl <= params.limit);
        }
        for (int32_t k = 0; k < found.n_rows; k++) {
            assert_int_equal(found.rows[k].point.n_sparse, found.n_sparse);
            assert_true(found.rows[k].point.ttft_ms > found.rows[k].attention_ms && found.rows[k].attention_ms > 0);
            if (k == 1 || k == 2) assert_int_equal(found.rows[k].n_layers, n_asked);
        }
        for (int32_t k = 0; k < found.n_points && found.n_rows > 0; k++) {     /* no method: as the curve has it, to the bit */
            if (found.curve[k].n_sparse == found.n_sparse) assert_true(found.curve[k].kl == found.rows[0].point.kl);
        }
        if (i == 0) {
            assert_int_equal(found.n_sparse, 1);
            assert_true(found.rows[1].point.kl > 0 && found.rows[2].point.kl > 0);         /* they leave something out */
            assert_int_equal(n_chosen, 0);             /* which no budget of 0 allows */
        }
        n_rows_most = found.n_rows > n_rows_most ? found.n_rows : n_rows_most;
        calibration gone = found;
        calibration_free(&gone);
    }
    assert_true(n_rows_most >= 3);
}

static bool stop_at(void *ctx, int32_t n_done, int32_t n_total)
{
    assert_true(n_done <= n_total);
    return n_done < *(const int32_t *)ctx;
}

static void wrong_calls_are_explained(void **state)
{
    const fixture *f = *state;
    static const int32_t twice[] = { 2, 0, 2 }, out[] = { 2, 0, 3 };
    calibration found = { .n_sparse = 77 };
    tmx_error err;
    calibration_params params = params_of(CALIBRATE_KL, NAN);
    assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_ARG);
    assert_string_equal(err.text, "calibration: a budget of nan, expected 0 or more");
    params = params_of(CALIBRATE_KL, 1);
    params.order = twice;
    assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_ARG);
    assert_string_equal(err.text, "calibration: order[2] is layer 2, expected each of 0..2 once");
    params.order = out;
    assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_ARG);
    assert_string_equal(err.text, "calibration: order[2] is layer 3, expected each of 0..2 once");
    params = params_of(CALIBRATE_KL, 1);
    params.n_samples = 0;
    assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_ARG);
    params = params_of(CALIBRATE_KL, 1);
    params.n_window = 0;
    assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_ARG);
    params = params_of(CALIBRATE_KL, 1);
    params.curve_step = -1;
    assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_ARG);
    assert_string_equal(err.text, "calibration: a curve step of -1, expected 0 or more");
    for (int32_t stop = 1; stop <= 7; stop += 3) {
        params = params_of(CALIBRATE_KL, 1);
        params.progress = stop_at;
        params.progress_ctx = &stop;
        assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_CANCELLED);
    }
    params = params_with_methods(0);                   /* 12 prompts of the curve; then 3 side by side, and what the search asks */
    params.progress = stop_at;
    for (int32_t stop = 8; stop <= 17; stop += 3) {
        params.progress_ctx = &stop;
        assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_CANCELLED);
    }
    params.progress = NULL;
    params.n_methods = METHODS_MAX + 1;
    assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_ARG);
    assert_string_equal(err.text, "calibration: 9 methods, expected 0..8");
    params.n_methods = 2;
    params.methods = (const char *const[]){ "xattention", "xattention(stride=7)" };
    assert_int_equal(calibrate(&found, f->model, f->pool, &params, &err), TMX_E_ARG);      /* before anything runs */
    assert_string_equal(err.text, "xattention stride: 7, expected 4, 8 or 16");
    assert_int_equal(found.n_sparse, 77);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_edge_is_found),
        cmocka_unit_test(a_bump_is_stepped_over),
        cmocka_unit_test(a_stop_is_handed_up),
        cmocka_unit_test(budgets_bound_the_loss),
        cmocka_unit_test(a_step_measures_the_whole_curve),
        cmocka_unit_test(plans_name_layers_and_methods),
        cmocka_unit_test(methods_stay_inside_the_budget),
        cmocka_unit_test(wrong_calls_are_explained),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
