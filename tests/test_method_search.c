/* rooms: eval */
/* test_method_search.c - the choice of a method for every layer, on made-up times and losses. */
#include "eval/method_search.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_LAYERS = 12, MAX_ASKED = 256 };

/* What a machine and a model would say. */
typedef struct world {
    int32_t n_layers, n_methods;
    double ttft_ms[1 + METHODS_MAX], layer_ms[(1 + METHODS_MAX) * MAX_LAYERS];     /* as in method_costs */
    double loss[METHODS_MAX][MAX_LAYERS];
    double pair_loss;              /* of every two neighbours with a method: losses that do not add up; may be negative */
    double limit;
    double toll_ms[METHODS_MAX];   /* of the whole, for a method that any layer uses */
    int32_t n_fits, n_pays, stop_at;       /* questions; the one that is answered by -1, from 1, 0: none */
    int32_t asked[MAX_ASKED][MAX_LAYERS];
} world;

static double loss_of(const world *w, const int32_t *choice)
{
    double loss = 0;
    for (int32_t l = 0; l < w->n_layers; l++) {
        if (choice[l] == METHOD_NONE) continue;
        loss += w->loss[choice[l]][l];
        if (l > 0 && choice[l - 1] != METHOD_NONE) loss += w->pair_loss;
    }
    return loss;
}

static double saved_ms(const world *w, const int32_t *choice)
{
    double saved = 0;
    bool is_used[METHODS_MAX] = { false };
    for (int32_t l = 0; l < w->n_layers; l++) {
        if (choice[l] == METHOD_NONE) continue;
        saved += w->layer_ms[l] - w->layer_ms[(1 + choice[l]) * w->n_layers + l];
        is_used[choice[l]] = true;
    }
    for (int32_t m = 0; m < w->n_methods; m++) saved -= is_used[m] ? w->toll_ms[m] : 0;
    return saved;
}

static bool is_stopped(const world *w) { return w->stop_at > 0 && w->n_fits + w->n_pays >= w->stop_at; }

static int fits(void *ctx, const int32_t *choice)
{
    world *w = ctx;
    bool is_any = false;
    assert_true(w->n_fits < MAX_ASKED);
    for (int32_t l = 0; l < w->n_layers; l++) {
        assert_true(choice[l] >= METHOD_NONE && choice[l] < w->n_methods);
        is_any |= choice[l] != METHOD_NONE;
        if (choice[l] == METHOD_NONE) continue;
        assert_true(w->layer_ms[(1 + choice[l]) * w->n_layers + l] < w->layer_ms[l]);      /* nothing slower is ever tried */
        assert_true(w->ttft_ms[1 + choice[l]] < w->ttft_ms[0]);
    }
    assert_true(is_any);                               /* no method: known, never asked */
    for (int32_t i = 0; i < w->n_fits && w->n_pays == 0; i++) assert_memory_not_equal(w->asked[i], choice, (size_t)w->n_layers * sizeof *choice);
    memcpy(w->asked[w->n_fits++], choice, (size_t)w->n_layers * sizeof *choice);
    return is_stopped(w) ? -1 : loss_of(w, choice) <= w->limit;
}

static int pays(void *ctx, const int32_t *choice)
{
    world *w = ctx;
    assert_true(loss_of(w, choice) <= w->limit);       /* what breaks the budget is not worth a race */
    w->n_pays++;
    return is_stopped(w) ? -1 : saved_ms(w, choice) > 0;
}

static int search(world *w, int32_t *choice)
{
    const method_costs costs = { .n_layers = w->n_layers, .n_methods = w->n_methods, .ttft_ms = w->ttft_ms, .layer_ms = w->layer_ms };
    w->n_fits = w->n_pays = 0;
    memset(choice, 77, (size_t)w->n_layers * sizeof *choice);
    const int result = method_search(choice, &costs, &(method_judge){ .fits = fits, .pays = pays, .ctx = w });
    assert_true(w->n_fits <= w->n_layers * w->n_methods + w->n_methods);
    assert_true(w->n_pays <= w->n_methods);
    if (result == 0) {
        assert_true(loss_of(w, choice) <= w->limit);
        bool is_any = false;
        for (int32_t l = 0; l < w->n_layers; l++) is_any |= choice[l] != METHOD_NONE;
        assert_true(!is_any || saved_ms(w, choice) > 0);
    }
    return result;
}

static void assert_choice(const int32_t *found, const int32_t *expected, int32_t n)
{
    for (int32_t l = 0; l < n; l++) {
        if (found[l] != expected[l]) fail_msg("layer %d: %d, expected %d", l, found[l], expected[l]);
    }
}

/* Four layers of 10 ms.  Method 0 takes 4, 4, 4, 12 ms, method 1 takes 6, 3, 6, 6. */
static world small(void)
{
    return (world){ .n_layers = 4, .n_methods = 2, .ttft_ms = { 100, 84, 81 },
                    .layer_ms = { 10, 10, 10, 10, 4, 4, 4, 12, 6, 3, 6, 6 },
                    .loss = { { 4, 4, 4, 0 }, { 1, 1, 1, 1 } }, .limit = 100 };
}

static void what_fits_is_the_fastest_of_every_layer(void **state)
{
    (void)state;
    int32_t choice[4];
    world w = small();
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ 0, 1, 0, 1 }, 4);
    assert_int_equal(w.n_fits, 1);
    assert_int_equal(w.n_pays, 1);
}

static void a_budget_is_spent_layer_by_layer(void **state)
{
    (void)state;
    int32_t choice[4];
    world w = small();
    w.limit = 6;                                       /* 0, 1, 0, 1 loses 10; 4 + 1 + (no 4, but 1) + no 1 */
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ 0, 1, 1, METHOD_NONE }, 4);
    assert_int_equal(w.n_fits, 1 + 1 + 1 + 2 + 1);

    w.limit = 3;                                       /* layer 1's second method is tried, too: it is no less of a loss */
    w.loss[1][1] = 9;
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ 1, METHOD_NONE, 1, 1 }, 4);
    assert_int_equal(w.n_fits, 1 + 2 + 2 + 2 + 1);

    w.limit = 0;
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ METHOD_NONE, METHOD_NONE, METHOD_NONE, METHOD_NONE }, 4);
    assert_int_equal(w.n_pays, 0);

    w = small();                                       /* losses that do not add up: a layer behind one that gave up still may */
    w.loss[0][0] = w.loss[1][0] = 50;
    w.limit = 10;
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ METHOD_NONE, 1, 0, 1 }, 4);
}

static void what_is_not_faster_is_not_tried(void **state)
{
    (void)state;
    int32_t choice[4];
    world w = small();
    w.ttft_ms[2] = 100;                                /* method 1 as a whole: no faster */
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ 0, 0, 0, METHOD_NONE }, 4);
    w.ttft_ms[1] = 130;
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ METHOD_NONE, METHOD_NONE, METHOD_NONE, METHOD_NONE }, 4);
    assert_int_equal(w.n_fits + w.n_pays, 0);
    w = small();
    for (int32_t l = 0; l < 8; l++) w.layer_ms[4 + l] = l % 2 == 0 ? 10 : NAN;     /* as fast as dense; not measured */
    assert_int_equal(search(&w, choice), 0);
    assert_int_equal(w.n_fits + w.n_pays, 0);
    w = small();
    memcpy(&w.layer_ms[8], &w.layer_ms[4], 4 * sizeof w.layer_ms[0]);      /* equal times: the method named first, then the other */
    w.limit = 3;
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ 1, 1, 1, METHOD_NONE }, 4);
}

/* Every layer is faster, the whole is not. */
static void what_does_not_pay_goes(void **state)
{
    (void)state;
    int32_t choice[4];
    world w = small();
    w.layer_ms[7] = 5;                                 /* fastest: 0, 1, 0, 0 */
    w.toll_ms[1] = 30;                                 /* method 1 saves 7 in one layer: it goes, and the rest saves 17 */
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ 0, METHOD_NONE, 0, 0 }, 4);
    assert_int_equal(w.n_fits, 2);                     /* what is left is measured before it races */
    assert_int_equal(w.n_pays, 2);
    w.toll_ms[0] = 30;
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ METHOD_NONE, METHOD_NONE, METHOD_NONE, METHOD_NONE }, 4);
    assert_int_equal(w.n_fits, 2);
    assert_int_equal(w.n_pays, 2);
    w.toll_ms[0] = 0;                                  /* what is left is outside without its neighbour: it does not race, and goes */
    w.loss[1][1] = -90;
    w.limit = 0;
    assert_int_equal(search(&w, choice), 0);
    assert_choice(choice, (const int32_t[]){ METHOD_NONE, METHOD_NONE, METHOD_NONE, METHOD_NONE }, 4);
    assert_int_equal(w.n_fits, 2);
    assert_int_equal(w.n_pays, 1);
}

/* Random worlds: search() checks what must hold for any answer. */
static void nothing_outside_is_chosen(void **state)
{
    (void)state;
    uint64_t seed = 1;
    int32_t n_mixed = 0, n_dropped = 0, n_stopped = 0;
    for (int round = 0; round < 4000; round++) {
        int32_t choice[MAX_LAYERS], again[MAX_LAYERS];
        world w = { 0 };
#define RANDOM() (seed = seed * 6364136223846793005u + 1442695040888963407u, (double)(seed >> 40) / (double)(1 << 24))
        w.n_layers = 1 + (int32_t)(RANDOM() * MAX_LAYERS);
        w.n_methods = 1 + (int32_t)(RANDOM() * 4);
        for (int32_t k = 0; k <= w.n_methods; k++) {
            w.ttft_ms[k] = 100 + 10 * (k == 0) - 20 * RANDOM();
            for (int32_t l = 0; l < w.n_layers; l++) w.layer_ms[k * w.n_layers + l] = 1 + RANDOM();
        }
        for (int32_t m = 0; m < w.n_methods; m++) {
            w.toll_ms[m] = RANDOM() < 0.3 ? 2 * RANDOM() : 0;
            for (int32_t l = 0; l < w.n_layers; l++) w.loss[m][l] = RANDOM();
        }
        w.pair_loss = RANDOM() - 0.5;
        w.limit = RANDOM() * 4;
        assert_int_equal(search(&w, choice), 0);
        const int32_t n_asked = w.n_fits + w.n_pays;
        int32_t n_kinds = 0;
        for (int32_t m = 0; m < w.n_methods; m++) {
            bool is_used = false;
            for (int32_t l = 0; l < w.n_layers; l++) is_used |= choice[l] == m;
            n_kinds += is_used;
        }
        n_mixed += n_kinds > 1;
        n_dropped += w.n_pays > 1;
        if (n_asked == 0) continue;
        w.stop_at = 1 + (int32_t)(RANDOM() * n_asked);
        assert_int_equal(search(&w, again), -1);
        assert_int_equal(w.n_fits + w.n_pays, w.stop_at);      /* not one question more */
        n_stopped++;
    }
    assert_true(n_mixed > 100 && n_dropped > 20 && n_stopped > 1000);      /* the rounds did what they are for */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_fits_is_the_fastest_of_every_layer),
        cmocka_unit_test(a_budget_is_spent_layer_by_layer),
        cmocka_unit_test(what_is_not_faster_is_not_tried),
        cmocka_unit_test(what_does_not_pay_goes),
        cmocka_unit_test(nothing_outside_is_chosen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
