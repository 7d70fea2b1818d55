#include "method_search.h"

static double layer_ms(const method_costs *c, int32_t layer, int32_t m)
{
    return c->layer_ms[(int64_t)(1 + m) * c->n_layers + layer];
}

/* A comparison with NaN is false: what was not measured is not faster. */
bool method_is_faster(const method_costs *c, int32_t layer, int32_t m)
{
    return c->ttft_ms[1 + m] < c->ttft_ms[0] && layer_ms(c, layer, m) < layer_ms(c, layer, METHOD_NONE);
}

/* The layer's next method by time, the earlier one first where times are equal; METHOD_NONE behind the last.  after METHOD_NONE: the fastest. */
static int32_t next_method(const method_costs *c, int32_t layer, int32_t after)
{
    int32_t next = METHOD_NONE;
    for (int32_t m = 0; m < c->n_methods; m++) {
        if (!method_is_faster(c, layer, m)) continue;
        const double ms = layer_ms(c, layer, m);
        if (after != METHOD_NONE) {
            const double last = layer_ms(c, layer, after);
            if (ms < last || (ms == last && m <= after)) continue;
        }
        if (next == METHOD_NONE || ms < layer_ms(c, layer, next)) next = m;
    }
    return next;
}

/* Layers that a method may run in, each with its fastest. */
static int32_t choose_fastest(int32_t *choice, const method_costs *c)
{
    int32_t n = 0;
    for (int32_t l = 0; l < c->n_layers; l++) {
        choice[l] = next_method(c, l, METHOD_NONE);
        n += choice[l] != METHOD_NONE;
    }
    return n;
}

static int choose_by_layer(int32_t *choice, const method_costs *c, const method_judge *judge, int32_t n_left)
{
    bool is_all_fastest = true;
    for (int32_t l = 0; l < c->n_layers; l++) choice[l] = METHOD_NONE;
    for (int32_t l = 0; l < c->n_layers; l++) {
        int32_t m = next_method(c, l, METHOD_NONE);
        if (m == METHOD_NONE) continue;
        const int32_t fastest = m;
        if (--n_left == 0 && is_all_fastest) m = next_method(c, l, m);         /* asked already: the fastest of all layers */
        for (; m != METHOD_NONE; m = next_method(c, l, m)) {
            choice[l] = m;
            const int answer = judge->fits(judge->ctx, choice);
            if (answer < 0) return -1;
            if (answer) break;
            choice[l] = METHOD_NONE;
        }
        is_all_fastest &= choice[l] == fastest;
    }
    return 0;
}

/* The method of the fewest layers, of equals the later one; METHOD_NONE: none is in use. */
static int32_t least_used(const int32_t *choice, const method_costs *c)
{
    int32_t n_uses[METHODS_MAX] = { 0 }, least = METHOD_NONE;
    for (int32_t l = 0; l < c->n_layers; l++) {
        if (choice[l] != METHOD_NONE) n_uses[choice[l]]++;
    }
    for (int32_t m = 0; m < c->n_methods; m++) {
        if (n_uses[m] > 0 && (least == METHOD_NONE || n_uses[m] <= n_uses[least])) least = m;
    }
    return least;
}

/* Ends, at the latest, with no method, which needs no measuring. */
static int drop_what_does_not_pay(int32_t *choice, const method_costs *c, const method_judge *judge)
{
    int is_inside = 1;
    for (int32_t out; (out = least_used(choice, c)) != METHOD_NONE;) {
        const int pays = is_inside ? judge->pays(judge->ctx, choice) : 0;
        if (pays != 0) return pays < 0 ? -1 : 0;
        for (int32_t l = 0; l < c->n_layers; l++) {
            if (choice[l] == out) choice[l] = METHOD_NONE;
        }
        if (least_used(choice, c) == METHOD_NONE) return 0;
        is_inside = judge->fits(judge->ctx, choice);
        if (is_inside < 0) return -1;
    }
    return 0;
}

int method_search(int32_t *choice, const method_costs *costs, const method_judge *judge)
{
    const int32_t n = choose_fastest(choice, costs);
    if (n == 0) return 0;
    const int answer = judge->fits(judge->ctx, choice);
    if (answer < 0) return -1;
    if (!answer && choose_by_layer(choice, costs, judge, n) < 0) return -1;
    return drop_what_does_not_pay(choice, costs, judge);
}
