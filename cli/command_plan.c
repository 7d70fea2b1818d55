#include "commands.h"
#include "model_choice.h"
#include "plan_budget.h"
#include "plan_choice.h"
#include "plan_search.h"
#include "report.h"

#include <stdio.h>
#include <string.h>

/* What of a model a plan needs.  A plan file names the exact model, which only opening it tells. */
typedef struct plan_target {
    tmx_file *file;
    tmx_pool *pool;
    tmx_model *model;
    tmx_model_info info;
} plan_target;

static int open_target(plan_target *t, const plan_options *o)
{
    tmx_error err;
    tmx_lora loras[MAX_TEXTS];
    tmx_model_params params = { .device = o->budget != NULL ? device_choose(o->device) : "cpu" };
    model_choose(&o->changes, loras, &params);
    if (o->output == NULL && o->probe == NULL) {
        if (tmx_file_open(&t->file, o->model, &err) != TMX_OK) return complain_error(&err);
        return tmx_model_probe_file(t->file, &params, &t->info, &err) == TMX_OK ? 0 : complain_error(&err);
    }
    if (tmx_pool_create(&t->pool, o->n_threads, &err) != TMX_OK) return complain_error(&err);
    if (tmx_model_open(&t->model, o->model, &params, t->pool, &err) != TMX_OK) return complain_error(&err);
    t->info = *tmx_model_info_get(t->model);
    return 0;
}

/* What a layer runs: the plan's pattern, or the model's own window. */
static tmx_pattern pattern_of(const tmx_plan *plan, int32_t layer)
{
    const int32_t n_own = tmx_plan_own_window(plan, layer);
    if (n_own == 0) return *tmx_plan_layer(plan, layer);
    return (tmx_pattern){ .kind = TMX_PATTERN_STREAMING, .n_sink = 0, .n_window = n_own, .n_last = 0 };
}

static bool is_same(const tmx_pattern *a, const tmx_pattern *b)
{
    if (a->kind != b->kind) return false;
    return a->kind == TMX_PATTERN_DENSE || tmx_pattern_is_dynamic(a->kind)
           || (a->n_sink == b->n_sink && a->n_window == b->n_window && a->n_last == b->n_last);
}

static void print_layers(const tmx_plan *plan)
{
    const int32_t n_layers = tmx_plan_n_layers(plan);
    printf("%-12s %-10s %8s %8s %8s\n", "layers", "pattern", "sink", "window", "last");
    for (int32_t first = 0, end; first < n_layers; first = end) {
        const tmx_pattern p = pattern_of(plan, first);
        const bool is_own = tmx_plan_own_window(plan, first) > 0;
        char range[32];
        for (end = first + 1; end < n_layers && (tmx_plan_own_window(plan, end) > 0) == is_own; end++) {
            const tmx_pattern next = pattern_of(plan, end);
            if (!is_same(&p, &next)) break;
        }
        if (end - first == 1) snprintf(range, sizeof range, "%d", first);
        else snprintf(range, sizeof range, "%d-%d", first, end - 1);
        if (p.kind == TMX_PATTERN_DENSE || tmx_pattern_is_dynamic(p.kind)) {
            printf("%-12s %s\n", range, tmx_pattern_name(p.kind));
            continue;
        }
        printf("%-12s %-10s %8d %8d", range, is_own ? "own window" : tmx_pattern_name(p.kind), p.n_sink, p.n_window);
        if (p.kind == TMX_PATTERN_TRIANGLE) printf(" %8d", p.n_last);
        putchar('\n');
    }
}

/* Pairs over all layers; prefill needs only the last row of the last layer.  What a dynamic layer drops depends on the prompt:
 * it counts as dense. */
static double count_pairs(const tmx_plan *plan, int32_t n_prompt, bool is_dense)
{
    const int32_t n_layers = tmx_plan_n_layers(plan);
    double n = 0;
    for (int32_t layer = 0; layer < n_layers; layer++) {
        tmx_pattern p = pattern_of(plan, layer);
        const bool is_own = tmx_plan_own_window(plan, layer) > 0;              /* what the model runs without a plan */
        if ((is_dense && !is_own) || tmx_pattern_is_dynamic(p.kind)) p.kind = TMX_PATTERN_DENSE;
        n += (double)tmx_pattern_pairs(&p, n_prompt, layer == n_layers - 1 ? n_prompt - 1 : 0, n_prompt);
    }
    return n;
}

static void print_savings(const tmx_plan *plan, const tmx_model_info *info)
{
    bool is_beyond = false;
    printf("\n%-12s %12s %12s %18s\n", "prompt", "dense pairs", "plan pairs", "share of attention");
    for (int32_t k = 2; k <= 128; k *= 2) {
        const int32_t n_prompt = k * 1024;
        const double n_dense = count_pairs(plan, n_prompt, true), n_plan = count_pairs(plan, n_prompt, false);
        const bool is_over = n_prompt > info->n_ctx_max;
        char label[16];
        snprintf(label, sizeof label, "%dK%s", k, is_over ? " *" : "");
        printf("%-12s %12.4g %12.4g %16.1f %%\n", label, n_dense, n_plan, n_dense > 0 ? 100 * n_plan / n_dense : 0);
        is_beyond |= is_over;
    }
    bool is_dynamic = false;
    for (int32_t i = 0; i < tmx_plan_n_layers(plan); i++) is_dynamic |= tmx_pattern_is_dynamic(tmx_plan_layer(plan, i)->kind);
    if (is_dynamic) printf("dynamic layers are counted as dense: what they drop depends on the prompt (tmx run -v shows it)\n");
    if (is_beyond) printf("* longer than the model's context of %d tokens\n", info->n_ctx_max);
}

/* "random:7" -> TMX_ORDER_RANDOM and 7 */
static int parse_order(const char *text, tmx_probe_order *order, uint64_t *seed)
{
    static const char *const names[] = { "gradient", "deepest", "shallowest", "random", "worst" };
    static const char random[] = "random:";
    int64_t n;
    *seed = 0;
    for (int i = 0; i < 5; i++) {
        if (i == TMX_ORDER_RANDOM || strcmp(text, names[i]) != 0) continue;
        *order = (tmx_probe_order)i;
        return 0;
    }
    if (strncmp(text, random, sizeof random - 1) == 0 && parse_integer(text + sizeof random - 1, &n) && n >= 0) {
        *order = TMX_ORDER_RANDOM;
        *seed = (uint64_t)n;
        return 0;
    }
    return complain(EXIT_USAGE, "option --order: '%s' is not one of gradient, deepest, shallowest, random:SEED, worst", text);
}

static int plan_from_probe(const plan_options *o, const plan_target *t, tmx_plan **plan)
{
    const tmx_model_info *info = &t->info;
    tmx_probe_report *report = NULL;
    budget b = { .found = { .n_sparse = o->n_layers } };
    tmx_probe_order order = TMX_ORDER_GRADIENT;
    tmx_error err;
    uint64_t seed = 0;
    int code = o->order != NULL ? parse_order(o->order, &order, &seed) : 0;
    if (code != 0) return code;
    if (o->n_layers > info->n_layers) {
        return complain(EXIT_USAGE, "option --layers: %d of a model of %d layers", o->n_layers, info->n_layers);
    }
    if (tmx_probe_report_open(&report, o->probe, info, &err) != TMX_OK) return complain_error(&err);
    if (o->budget != NULL) code = budget_spend(o, t->model, t->pool, report, order, seed, &b);
    if (code == 0) {
        tmx_status status = tmx_probe_report_plan(plan, report, info, order, seed, b.found.n_sparse, &err);
        if (status == TMX_OK) status = tmx_plan_set_sizes(*plan, o->plan.n_sink, o->plan.n_window, o->plan.n_last, &err);
        if (status == TMX_OK && o->budget != NULL) status = budget_finish(o, &b, t->model, plan, &err);
        if (status != TMX_OK) code = complain_error(&err);
    }
    tmx_probe_report_free(report);
    budget_free(&b);
    return code;
}

static int show_and_save(const plan_options *o, const plan_target *t)
{
    tmx_plan *plan = NULL;
    tmx_error err;
    int code = o->probe != NULL ? plan_from_probe(o, t, &plan) : plan_choose(&o->plan, &t->info, &plan);
    if (code == 0 && o->note != NULL && tmx_plan_set_note(plan, o->note, &err) != TMX_OK) code = complain_error(&err);
    if (code == 0 && o->output != NULL && tmx_plan_save(plan, o->output, &err) != TMX_OK) code = complain_error(&err);
    if (code == 0) {
        char text[PLAN_TEXT_BYTES];
        printf("%s\n", tmx_plan_text(plan, text, sizeof text));
        if (tmx_plan_note(plan)[0] != '\0') {
            printf("note: ");
            print_safe(stdout, tmx_plan_note(plan));
            putchar('\n');
        }
        putchar('\n');
        print_layers(plan);
        print_savings(plan, &t->info);
    }
    tmx_plan_free(plan);
    return code;
}

int plan_main(const plan_options *o)
{
    if (o->list_presets) {
        for (int32_t i = 0; i < tmx_preset_count(); i++) printf("%s\n", tmx_preset_name(i));
        return 0;
    }
    plan_target t = { 0 };
    int code = open_target(&t, o);
    if (code == 0) code = o->search != NULL ? search_minference(o, t.model, t.pool) : show_and_save(o, &t);
    tmx_file_close(t.file);
    tmx_model_close(t.model);
    tmx_pool_free(t.pool);
    return code;
}
