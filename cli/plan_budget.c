#include "plan_budget.h"

#include "curve_picture.h"
#include "options.h"
#include "plan_methods.h"
#include "progress.h"
#include "report.h"
#include "signals.h"

#include <stdlib.h>
#include <string.h>

enum { FALLBACK_TOKENS = 4000 };

/* "kl=0.01" */
static int parse_budget(const char *text, calibration_params *p)
{
    static const struct { const char *name; calibration_budget budget; } kinds[] = { { "kl=", CALIBRATE_KL }, { "drop=", CALIBRATE_DROP } };
    for (int i = 0; i < 2; i++) {
        const size_t n = strlen(kinds[i].name);
        if (strncmp(text, kinds[i].name, n) != 0 || !parse_number(text + n, &p->limit) || p->limit < 0) continue;
        p->budget = kinds[i].budget;
        return 0;
    }
    return complain(EXIT_USAGE, "option --budget: '%s' is not kl=X or drop=X with X of 0 or more", text);
}

/* The task and length of the probe's own prompts, unless others are asked for. */
static int choose_task(const plan_options *o, const tmx_model_info *info, const tmx_probe_settings *s, calibration_params *p)
{
    const char *name = o->task != NULL ? o->task : s->source;
    p->kind = task_find(name);
    if (p->kind == NULL && o->task != NULL) {
        return complain(EXIT_USAGE, "option --task: no task '%s'; tmx eval --list-tasks names them", o->task);
    }
    if (p->kind == NULL) p->kind = task_find("passkey");       /* the probe ran prompts of the user's own */
    p->n_tokens = o->n_tokens > 0 ? o->n_tokens : p->kind == task_find(s->source) ? s->n_tokens : FALLBACK_TOKENS;
    const int32_t n_most = info->n_ctx_max - p->kind->n_predict;
    if (p->n_tokens <= n_most) return 0;
    if (o->n_tokens > 0) {
        return complain(EXIT_USAGE, "option --tokens: %d and an answer of %d do not fit the model's context of %d", o->n_tokens,
                        p->kind->n_predict, info->n_ctx_max);
    }
    p->n_tokens = n_most;
    return 0;
}

static bool on_prompt(void *ctx, int32_t n_done, int32_t n_total)
{
    return progress_update(ctx, &(tmx_progress){ .n_done = n_done, .n_total = n_total });
}

static void print_curve(const calibration *c)
{
    printf("%-8s %12s %8s %8s %12s\n", "layers", "KL", "top-1", "score", "TTFT");
    for (int32_t i = 0; i < c->n_points; i++) {
        const tmx_plan_point *p = &c->curve[i];
        char time[32];
        printf("%-8d %12.3g %6.0f %% %8.1f %12s%s\n", p->n_sparse, p->kl, 100 * p->top1, p->score, text_of_ms(p->ttft_ms, time),
               p->n_sparse == c->n_sparse ? "  <- chosen" : "");
    }
    putchar('\n');
}

static void params_of(const plan_options *o, const tmx_model *model, calibration_params *p)
{
    *p = (calibration_params){
        .n_sink = o->plan.n_sink >= 0 ? o->plan.n_sink : TMX_DEFAULT_SINK,
        .n_window = o->plan.n_window >= 0 ? o->plan.n_window : TMX_DEFAULT_WINDOW,
        .n_last = o->plan.n_last >= 0 ? o->plan.n_last : TMX_DEFAULT_LAST,
        .is_chat = tmx_chat_format(model) != NULL, .seed = (uint64_t)o->seed, .n_samples = o->n_samples,
        .curve_step = o->curve_step, .is_fastest = o->objective == OBJECTIVE_TTFT,
    };
}

/* All that can be refused before anything is measured. */
static int prepare(const plan_options *o, const tmx_model *model, const tmx_probe_report *report, budget *b)
{
    const tmx_model_info *info = tmx_model_info_get(model);
    calibration_params *p = &b->params;
    int code = parse_budget(o->budget, p);
    if (code == 0) code = choose_task(o, info, tmx_probe_report_settings(report), p);
    if (code == 0 && o->methods != NULL) code = methods_parse(&b->methods, o->methods, info);
    if (code != 0) return code;
    p->methods = b->methods.items;
    p->n_methods = b->methods.n;
    if (o->plan.estimate != NULL) (void)estimate_parse(o->plan.estimate, &p->estimate_rows);       /* the options' check has let it pass */
    p->order = b->order = malloc((size_t)info->n_layers * sizeof *b->order);
    return b->order != NULL ? 0 : complain(EXIT_RESOURCES, "out of memory for an order of layers");
}

int budget_spend(const plan_options *o, const tmx_model *model, tmx_pool *pool, const tmx_probe_report *report,
                 tmx_probe_order order, uint64_t order_seed, budget *b)
{
    tmx_error err;
    progress bar;
    calibration_params *p = &b->params;
    *b = (budget){ .order = NULL };
    params_of(o, model, p);
    p->progress = on_prompt;
    p->progress_ctx = &bar;
    const int code = prepare(o, model, report, b);
    if (code != 0) return code;
    char label[64];
    snprintf(label, sizeof label, "%d %.24s prompts of %d tokens", p->n_samples, p->kind->name, p->n_tokens);
    progress_init(&bar, o->is_quiet);
    tmx_status status = tmx_probe_report_order(report, order, order_seed, b->order, &err);
    if (status == TMX_OK) {
        progress_begin(&bar, label);
        signals_begin_polite();
        status = calibrate(&b->found, model, pool, p, &err);
        signals_end_polite();
        progress_end(&bar);
    }
    p->progress = NULL;
    if (status != TMX_OK) return complain_error(&err);
    printf("%s, seed %lld\n", label, (long long)o->seed);
    print_curve(&b->found);
    if (p->n_methods > 0) print_methods(&b->found, &b->methods);
    return o->picture != NULL ? write_curve_picture(o->picture, b->found.curve, b->found.n_points, b->found.n_sparse, label) : 0;
}

/* What the methods' choice costs and saves, for the note; "" if no layer got one. */
static void describe_methods(const calibration *found, char text[160])
{
    text[0] = '\0';
    if (found->n_given == 0) return;
    const method_row *chosen = &found->rows[found->n_rows - 1];
    char before[32], after[32];
    snprintf(text, 160, "; methods in %d layers: KL %.3g, TTFT %s for %s", found->n_given, chosen->point.kl, text_of_ms(found->race_ms[1], after),
             text_of_ms(found->race_ms[0], before));
}

static tmx_status add_methods(const budget *b, const tmx_model *model, tmx_plan **plan, tmx_error *err)
{
    tmx_plan *whole;
    if (b->found.n_given == 0) return TMX_OK;
    tmx_status status = calibration_plan(&whole, model, &b->params, b->found.n_sparse, b->found.layer_methods, err);
    if (status != TMX_OK) return status;
    status = tmx_plan_set_note(whole, tmx_plan_note(*plan), err);
    tmx_plan_free(*plan);
    *plan = whole;
    return status;
}

tmx_status budget_finish(const plan_options *o, const budget *b, const tmx_model *model, tmx_plan **plan, tmx_error *err)
{
    const calibration *found = &b->found;
    char note[512], methods[160];
    tmx_status status = add_methods(b, model, plan, err);
    if (status != TMX_OK) return status;
    describe_methods(found, methods);
    snprintf(note, sizeof note, "%.240s; %.40s of %d %.24s prompts of %d tokens%s", tmx_plan_note(*plan), o->budget, found->n_samples,
             found->kind->name, found->n_tokens, methods);
    status = tmx_plan_set_note(*plan, note, err);
    if (status == TMX_OK) status = tmx_plan_set_min_tokens(*plan, found->min_tokens, err);
    return status == TMX_OK ? tmx_plan_set_curve(*plan, found->curve, found->n_points, err) : status;
}

void budget_free(budget *b)
{
    calibration_free(&b->found);
    free(b->order);
    specs_free(&b->methods);
}
