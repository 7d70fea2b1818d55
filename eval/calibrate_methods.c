#include "calibrate_parts.h"

#include "fault.h"
#include "stats.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- which layers, and their plans */

/* Behind the first n_sparse of the order, up to what can be changed; not the last layer, whose single row no method thins. */
static int32_t layers_behind(const bench *b, int32_t n_sparse, int32_t *layers)
{
    int32_t n = 0;
    const int32_t last = tmx_model_info_get(b->model)->n_layers - 1;
    for (int32_t i = n_sparse; i < b->n_layers; i++) {
        if (b->params->order[i] != last) layers[n++] = b->params->order[i];
    }
    return n;
}

typedef struct chooser {
    bench *b;
    int32_t n_sparse;
    int32_t *layers, n;            /* [n] that are asked */
    int32_t *by_layer;             /* [n_layers] of the model: scratch of plan_of */
    const tmx_plan *none;          /* the plan without methods */
    method_row inside;             /* of the last choice that was inside */
    int32_t n_most;                /* choices that may still be measured once the first was outside */
    double race_ms[2];
} chooser;

static void spread(const chooser *c, const int32_t *choice, int32_t *by_layer)
{
    const int32_t n_layers = tmx_model_info_get(c->b->model)->n_layers;
    for (int32_t l = 0; l < n_layers; l++) by_layer[l] = METHOD_NONE;
    for (int32_t i = 0; i < c->n; i++) by_layer[c->layers[i]] = choice[i];
}

static tmx_status plan_of(const chooser *c, const int32_t *choice, tmx_plan **plan)
{
    spread(c, choice, c->by_layer);
    return calibration_plan(plan, c->b->model, c->b->params, c->n_sparse, c->by_layer, c->b->err);
}

static tmx_status plan_of_one(const chooser *c, int32_t method, tmx_plan **plan)
{
    int32_t *choice = malloc((size_t)c->n * sizeof *choice);
    if (choice == NULL) return fault_memory(c->b->err, "a choice of methods");
    for (int32_t i = 0; i < c->n; i++) choice[i] = method;
    const tmx_status status = plan_of(c, choice, plan);
    free(choice);
    return status;
}

static tmx_status open_chooser(chooser *c, bench *b, int32_t n_sparse)
{
    const size_t n_layers = (size_t)tmx_model_info_get(b->model)->n_layers;
    *c = (chooser){ .b = b, .n_sparse = n_sparse, .layers = malloc(n_layers * sizeof *c->layers),
                    .by_layer = malloc(n_layers * sizeof *c->by_layer) };
    if (c->layers == NULL || c->by_layer == NULL) return fault_memory(b->err, "layers to choose methods for");
    c->n = layers_behind(b, n_sparse, c->layers);
    return TMX_OK;
}

static void close_chooser(chooser *c)
{
    free(c->layers);
    free(c->by_layer);
}

/* ---------------------------------------------------------------- before anything is measured */

static tmx_status try_method(const chooser *c, int32_t method)
{
    tmx_plan *plan;
    TRY(plan_of_one(c, method, &plan));
    const tmx_status status = tmx_session_set_plan(c->b->session, plan, c->b->err);
    tmx_plan_free(plan);
    return status;
}

tmx_status bench_try_methods(bench *b)
{
    chooser c;
    if (b->params->n_methods == 0) return TMX_OK;
    tmx_status status = open_chooser(&c, b, 0);
    for (int32_t m = 0; m < b->params->n_methods && status == TMX_OK && c.n > 0; m++) status = try_method(&c, m);
    close_chooser(&c);
    return status;
}

/* ---------------------------------------------------------------- side by side */

static void count_layers(const chooser *c, method_row *row, const int32_t *choice)
{
    row->n_layers = 0;
    for (int32_t i = 0; i < c->n; i++) row->n_layers += choice[i] != METHOD_NONE;
}

/* Sorts the times of the samples. */
static void take_medians(layer_times *times, int32_t n_plans, int32_t n_samples, double *layer_ms)
{
    const size_t n = (size_t)n_plans * (size_t)times->n;
    for (size_t i = 0; i < n; i++) layer_ms[i] = median_of(times->ms + i * (size_t)n_samples, n_samples);
}

/* plans [1 + n_methods]: no method, each in all layers.  layer_ms [1 + n_methods][c->n]. */
static tmx_status measure_side_by_side(const chooser *c, tmx_plan **plans, method_row *rows, double *layer_ms)
{
    bench *b = c->b;
    const int32_t n_plans = 1 + b->params->n_methods;
    const size_t n_samples = (size_t)b->params->n_samples;
    for (int32_t k = 0; k < n_plans; k++) {
        TRY(plan_of_one(c, k - 1, &plans[k]));
        TRY(bench_warm_up(b, plans[k]));
    }
    layer_times times = { .layers = c->layers, .n = c->n, .ms = calloc((size_t)n_plans * (size_t)c->n, n_samples * sizeof *times.ms) };
    if (times.ms == NULL) return fault_memory(b->err, "the times of layers");
    const tmx_status status = bench_measure(b, (const tmx_plan *const *)plans, n_plans, c->n_sparse, rows, &times);
    if (status == TMX_OK) take_medians(&times, n_plans, b->params->n_samples, layer_ms);
    free(times.ms);
    for (int32_t k = 1; k < n_plans; k++) rows[k].n_layers = c->n;
    return status;
}

/* ---------------------------------------------------------------- the questions of the search */

static int fits(void *ctx, const int32_t *choice)
{
    chooser *c = ctx;
    bench *b = c->b;
    const int32_t n = b->params->n_samples;
    tmx_plan *plan;
    method_row row;
    b->status = plan_of(c, choice, &plan);
    if (b->status != TMX_OK) return -1;
    if (b->n_done + n > b->n_total) {                  /* more than the one choice that was hoped for */
        b->n_total = b->n_done + n * (c->n_most > 0 ? c->n_most : 1);
        c->n_most = 0;
    }
    b->status = bench_measure(b, (const tmx_plan *const *)&plan, 1, c->n_sparse, &row, NULL);
    tmx_plan_free(plan);
    if (b->status != TMX_OK) return -1;
    if (!bench_is_inside(b, &row.point)) return 0;
    count_layers(c, &row, choice);
    c->inside = row;
    return 1;
}

static int pays(void *ctx, const int32_t *choice)
{
    chooser *c = ctx;
    bench *b = c->b;
    tmx_plan *plan;
    b->status = plan_of(c, choice, &plan);
    if (b->status != TMX_OK) return -1;
    b->status = bench_race(b, (const tmx_plan *const[2]){ c->none, plan }, b->prompts[0].n_ids, c->race_ms);
    tmx_plan_free(plan);
    return b->status != TMX_OK ? -1 : c->race_ms[1] < c->race_ms[0];
}

/* ---------------------------------------------------------------- all of it */

static tmx_status search(chooser *c, const method_costs *costs, calibration *found)
{
    int32_t *choice = malloc((size_t)c->n * sizeof *choice);
    if (choice == NULL) return fault_memory(c->b->err, "a choice of methods");
    for (int32_t l = 0; l < costs->n_layers; l++) {
        for (int32_t m = 0; m < costs->n_methods; m++) c->n_most += method_is_faster(costs, l, m);
    }
    c->b->n_total = c->b->n_done + c->b->params->n_samples;                /* the first choice may fit */
    const method_judge judge = { .fits = fits, .pays = pays, .ctx = c };
    const tmx_status status = method_search(choice, costs, &judge) < 0 ? c->b->status : TMX_OK;
    method_row chosen = { .n_layers = 0 };
    count_layers(c, &chosen, choice);
    if (status == TMX_OK && chosen.n_layers > 0) {
        spread(c, choice, found->layer_methods);
        found->n_given = chosen.n_layers;
        found->rows[found->n_rows++] = c->inside;
        memcpy(found->race_ms, c->race_ms, sizeof found->race_ms);
    }
    free(choice);
    return status;
}

static tmx_status choose(chooser *c, calibration *found)
{
    const int32_t n_plans = 1 + c->b->params->n_methods;
    tmx_plan *plans[1 + METHODS_MAX] = { NULL };
    double ttft_ms[1 + METHODS_MAX], *layer_ms = calloc((size_t)n_plans, (size_t)c->n * sizeof *layer_ms);
    if (layer_ms == NULL) return fault_memory(c->b->err, "the times of layers");
    tmx_status status = measure_side_by_side(c, plans, found->rows, layer_ms);
    if (status == TMX_OK) {
        found->n_rows = n_plans;
        c->none = plans[0];
        for (int32_t k = 0; k < n_plans; k++) ttft_ms[k] = found->rows[k].point.ttft_ms;
        status = search(c, &(method_costs){ .n_layers = c->n, .n_methods = n_plans - 1, .ttft_ms = ttft_ms, .layer_ms = layer_ms }, found);
    }
    for (int32_t k = 0; k < n_plans; k++) tmx_plan_free(plans[k]);
    free(layer_ms);
    return status;
}

tmx_status bench_choose_methods(bench *b, calibration *found)
{
    const int32_t n_layers = tmx_model_info_get(b->model)->n_layers;
    chooser c;
    if (b->params->n_methods == 0) return TMX_OK;
    tmx_status status = open_chooser(&c, b, found->n_sparse);
    found->n_asked = c.n;
    found->layer_methods = malloc((size_t)n_layers * sizeof *found->layer_methods);
    found->rows = calloc((size_t)b->params->n_methods + 2, sizeof *found->rows);
    if (found->layer_methods == NULL || found->rows == NULL) status = fault_memory(b->err, "methods of layers");
    for (int32_t l = 0; l < n_layers && status == TMX_OK; l++) found->layer_methods[l] = METHOD_NONE;
    if (status == TMX_OK && c.n > 0) status = choose(&c, found);
    close_chooser(&c);
    return status;
}
