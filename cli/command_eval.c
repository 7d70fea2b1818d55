/* command_eval.c - tmx eval: turns options into plans and cells, lets eval/ run them, and prints. */
#include "commands.h"
#include "eval/eval_report.h"
#include "eval/text.h"
#include "model_choice.h"
#include "plan_choice.h"
#include "progress.h"
#include "prompt.h"
#include "report.h"
#include "signals.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CELLS = 4096, MAX_VALUES = 64, MIN_LENGTH = 16 };

typedef struct evaluation {
    const eval_options *options;
    tmx_pool *pool;
    tmx_model *model;
    tmx_plan *plans[EVAL_MAX_PLANS];
    char labels[EVAL_MAX_PLANS][PLAN_LABEL_BYTES];
    eval_plan columns[EVAL_MAX_PLANS];
    char sweep_name[16];           /* "" = none */
    data_set sets[MAX_TEXTS];
    prompt texts[MAX_TEXTS];       /* read as prompts are */
    int64_t lengths[MAX_VALUES];
    int32_t n_lengths;
    eval_cell *cells;              /* [MAX_CELLS] */
    eval_params params;
    eval_run run;
    progress progress;
    char label[96];                /* of the progress bar */
} evaluation;

/* ---------------------------------------------------------------- lists of numbers */

/* "128,256,512" and "0..30"; each number in [min, max]. */
static int parse_values(const char *option, const char *text, int64_t min, int64_t max, int64_t *values, int32_t *n)
{
    *n = 0;
    for (const char *at = text;;) {
        char word[48];
        const size_t length = strcspn(at, ",");
        int64_t first = 0, last = 0;
        snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word - 1), at);
        char *dots = strstr(word, "..");
        if (dots != NULL) *dots = '\0';
        const bool is_number = length < sizeof word && parse_integer(word, &first)
                               && (dots == NULL || parse_integer(dots + 2, &last));
        if (dots == NULL) last = first;
        if (!is_number || first < min || last > max || last < first) {
            return complain(EXIT_USAGE, "option --%s: '%.*s' is no number or range in %lld..%lld", option, (int)length, at,
                            (long long)min, (long long)max);
        }
        for (int64_t value = first; value <= last; value++) {
            if (*n == MAX_VALUES) return complain(EXIT_USAGE, "option --%s: more than %d values", option, MAX_VALUES);
            values[(*n)++] = value;
        }
        if (at[length] == '\0') return 0;
        at += length + 1;
    }
}

/* ---------------------------------------------------------------- plans */

static int add_plan(evaluation *e, const char *spec, int32_t n_sink, int32_t n_window, int32_t n_last)
{
    const int32_t i = e->params.n_plans;
    const plan_choice choice = { .spec = spec, .n_sink = n_sink, .n_window = n_window, .n_last = n_last,
                                 .estimate = e->options->estimate };
    if (i == EVAL_MAX_PLANS) return complain(EXIT_USAGE, "more than %d plans", EVAL_MAX_PLANS);
    const int code = plan_choose(&choice, tmx_model_info_get(e->model), &e->plans[i]);
    if (code != 0) return code;
    plan_label(e->labels[i], spec, e->plans[i], e->labels, i);
    e->columns[i] = (eval_plan){ .label = e->labels[i], .plan = e->plans[i] };
    e->params.n_plans++;
    return 0;
}

/* The pattern of the plan's last layer that is not dense; NULL if all are. */
static const tmx_pattern *last_pattern(const tmx_plan *plan)
{
    for (int32_t layer = tmx_plan_n_layers(plan) - 1; layer >= 0; layer--) {
        if (tmx_plan_layer(plan, layer)->kind != TMX_PATTERN_DENSE) return tmx_plan_layer(plan, layer);
    }
    return NULL;
}

/* One plan of a sweep, made from the one that was given. */
static int add_swept(evaluation *e, const tmx_pattern *p, int64_t value)
{
    const eval_options *o = e->options;
    const int32_t n = (int32_t)value, i = e->params.n_plans, n_layers = tmx_model_info_get(e->model)->n_layers;
    const char *name = e->sweep_name;
    char spec[64];
    int code;
    if (strcmp(name, "layers") != 0) {
        code = add_plan(e, o->plans.items[0], strcmp(name, "sink") == 0 ? n : p->n_sink,
                        strcmp(name, "window") == 0 ? n : p->n_window, strcmp(name, "last") == 0 ? n : p->n_last);
    } else {
        if (n == 0) snprintf(spec, sizeof spec, "dense");
        else snprintf(spec, sizeof spec, "%s:%d-%d", tmx_pattern_name(p->kind), n_layers - n, n_layers - 1);
        code = add_plan(e, spec, p->n_sink, p->n_window, p->n_last);
    }
    if (code != 0) return code;
    snprintf(e->labels[i], PLAN_LABEL_BYTES, "%s=%d", name, n);
    e->columns[i].value = n;
    return 0;
}

static int make_sweep(evaluation *e)
{
    static const char *const names[] = { "window", "sink", "last", "layers" };
    const eval_options *o = e->options;
    const char *equals = strchr(o->sweep, '=');
    const size_t n_name = equals != NULL ? (size_t)(equals - o->sweep) : 0;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strlen(names[i]) == n_name && memcmp(names[i], o->sweep, n_name) == 0) {
            snprintf(e->sweep_name, sizeof e->sweep_name, "%s", names[i]);
        }
    }
    if (e->sweep_name[0] == '\0') {
        return complain(EXIT_USAGE, "option --sweep: '%s', expected window=, sink=, last= or layers= and values", o->sweep);
    }
    int64_t values[MAX_VALUES];
    int32_t n_values = 0;
    const bool is_layers = strcmp(e->sweep_name, "layers") == 0;
    int code = parse_values("sweep", equals + 1, strcmp(e->sweep_name, "window") == 0,
                            is_layers ? tmx_model_info_get(e->model)->n_layers : 134217728, values, &n_values);
    if (code != 0) return code;

    tmx_plan *base;
    const plan_choice choice = { .spec = o->plans.items[0], .n_sink = o->n_sink, .n_window = o->n_window, .n_last = o->n_last,
                                 .estimate = o->estimate };
    code = plan_choose(&choice, tmx_model_info_get(e->model), &base);
    if (code != 0) return code;
    const tmx_pattern *p = last_pattern(base);
    if (p == NULL) code = complain(EXIT_USAGE, "option --sweep: the plan is dense in every layer");
    else if (tmx_pattern_is_dynamic(p->kind)) code = complain(EXIT_USAGE, "option --sweep: %s has none of these sizes", tmx_pattern_name(p->kind));
    if (code == 0) code = add_plan(e, "dense", -1, -1, -1);
    for (int32_t i = 0; i < n_values && code == 0; i++) code = add_swept(e, p, values[i]);
    tmx_plan_free(base);
    return code;
}

static int make_plans(evaluation *e)
{
    const eval_options *o = e->options;
    if (o->sweep != NULL) return make_sweep(e);
    if (o->plans.n == 0) return add_plan(e, "dense", -1, -1, -1);
    int code = 0;
    for (int32_t i = 0; i < o->plans.n && code == 0; i++) {
        code = add_plan(e, o->plans.items[i], o->n_sink, o->n_window, o->n_last);
    }
    return code;
}

/* ---------------------------------------------------------------- cells */

static int add_cell(evaluation *e, const eval_cell *cell)
{
    for (int32_t i = 0; i < e->params.n_cells; i++) {
        if (strcmp(e->cells[i].name, cell->name) == 0 && e->cells[i].length == cell->length) {
            return complain(EXIT_USAGE, "'%s' is named twice", cell->name);
        }
    }
    if (e->params.n_cells == MAX_CELLS) return complain(EXIT_USAGE, "more than %d tasks and lengths", MAX_CELLS);
    e->cells[e->params.n_cells++] = *cell;
    return 0;
}

static int add_task(evaluation *e, const task_kind *kind, int32_t length)
{
    const eval_cell cell = { .name = kind->name, .kind = kind, .length = length, .n_samples = e->options->n_samples };
    return add_cell(e, &cell);
}

static int add_tasks(evaluation *e, int32_t length)
{
    const eval_options *o = e->options;
    const bool is_all = strcmp(o->tasks, "all") == 0;
    int code = 0;
    for (int32_t i = 0; is_all && i < task_count() && code == 0; i++) {
        code = add_task(e, task_at(i), length);
    }
    for (const char *at = o->tasks; !is_all && code == 0;) {
        char name[64] = "";
        const size_t n = strcspn(at, ",");
        if (n < sizeof name) memcpy(name, at, n);
        const task_kind *kind = task_find(name);
        if (kind == NULL) {
            return complain(EXIT_USAGE, "option --tasks: '%.*s' is unknown; tmx eval --list-tasks names them", (int)n, at);
        }
        code = add_task(e, kind, length);
        if (at[n] == '\0') break;
        at += n + 1;
    }
    return code;
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != '\0' ? slash + 1 : path;
}

static int add_text(evaluation *e, const prompt *text, int32_t length)
{
    const int32_t n_held = (int32_t)(text->n_ids / (size_t)length);
    if (n_held == 0) {
        return complain(EXIT_INPUT, "%s: %zu tokens, too few for one piece of %d", text->source, text->n_ids, length);
    }
    const eval_cell cell = { .name = file_name(text->source), .text = text->ids, .n_text = (int32_t)text->n_ids, .length = length,
                             .n_samples = n_held < e->options->n_samples ? n_held : e->options->n_samples };
    return add_cell(e, &cell);
}

/* Before the model is opened, so that a wrong name or path costs no time. */
static int read_files(evaluation *e)
{
    const eval_options *o = e->options;
    tmx_error err;
    e->cells = calloc(MAX_CELLS, sizeof *e->cells);
    if (e->cells == NULL) return complain(EXIT_RESOURCES, "out of memory for %d tasks", MAX_CELLS);
    for (int32_t i = 0; i < o->data.n; i++) {
        const tmx_status status = data_read(&e->sets[i], o->data.items[i], o->n_samples, o->metric - 1, o->n_predict, &err);
        if (status != TMX_OK) return complain_error(&err);
    }
    int code = parse_values("lengths", o->lengths != NULL ? o->lengths : "1024,2048", MIN_LENGTH, 134217728, e->lengths,
                            &e->n_lengths);
    for (int32_t i = 0; i < e->n_lengths && o->tasks != NULL && code == 0; i++) code = add_tasks(e, (int32_t)e->lengths[i]);
    for (int32_t i = 0; i < o->texts.n && code == 0; i++) code = prompt_read(&e->texts[i], o->texts.items[i]);
    return code;
}

static int add_files(evaluation *e)
{
    const eval_options *o = e->options;
    int code = 0;
    for (int32_t i = 0; i < o->data.n && code == 0; i++) {
        const eval_cell cell = { .name = e->sets[i].name, .data = &e->sets[i], .n_samples = e->sets[i].n };
        code = add_cell(e, &cell);
    }
    for (int32_t i = 0; i < o->texts.n && code == 0; i++) {
        code = prompt_tokenize_text(&e->texts[i], e->model);
        for (int32_t k = 0; k < e->n_lengths && code == 0; k++) code = add_text(e, &e->texts[i], (int32_t)e->lengths[k]);
    }
    return code;
}

/* ---------------------------------------------------------------- the command */

static int open_model(evaluation *e)
{
    const eval_options *o = e->options;
    tmx_error err;
    const model_opening opening = { .path = o->model, .changes = &o->changes, .compute = o->compute, .isa = o->isa,
                                    .device = device_choose(o->device), .is_quiet = o->is_quiet };
    if (tmx_pool_create(&e->pool, o->n_threads, &err) != TMX_OK) return complain_error(&err);
    const int code = open_chosen_model(&e->model, &opening, e->pool);
    if (code != 0) return code;
    const bool has_format = tmx_chat_format(e->model) != NULL;
    if (o->template == EVAL_TEMPLATE_CHAT && !has_format) {
        return complain(EXIT_INPUT, "%s: no known chat format; --template none makes plain prompts", o->model);
    }
    e->params.is_chat = o->template != EVAL_TEMPLATE_NONE && has_format;
    return 0;
}

/* The bar works in milliseconds: done and still to come. */
static bool on_progress(void *ctx, const eval_progress *at)
{
    evaluation *e = ctx;
    snprintf(e->label, sizeof e->label, "%d of %d, %.48s %d", at->n_done + 1, at->n_total, at->cell->name, at->cell->length);
    const tmx_progress bar = { .n_done = (int64_t)at->elapsed_ms, .n_total = (int64_t)(at->elapsed_ms + at->left_ms) };
    return progress_update(&e->progress, &bar);
}

static int run_all(evaluation *e)
{
    const eval_options *o = e->options;
    tmx_error err;
    e->params.model = e->model;
    e->params.pool = e->pool;
    e->params.plans = e->columns;
    e->params.cells = e->cells;
    e->params.seed = (uint64_t)o->seed;
    e->params.journal = o->journal;
    e->params.progress = on_progress;
    e->params.progress_ctx = e;
    e->params.session = (tmx_session_params){ .n_chunk = o->n_chunk, .kv_type = (tmx_type)o->cache_type };
    progress_init(&e->progress, o->is_quiet);
    progress_begin(&e->progress, e->label);
    signals_begin_polite();
    const tmx_status status = eval_run_all(&e->run, &e->params, &err);
    signals_end_polite();
    progress_end(&e->progress);
    return status == TMX_OK ? 0 : complain_error(&err);
}

/* An argument as a shell reads it back. */
static void put_argument(text_buf *out, const char *argument)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
    text_add(out, " ");
    if (argument[0] != '\0' && argument[strspn(argument, plain)] == '\0') {
        text_add(out, argument);
        return;
    }
    text_add(out, "'");
    for (const char *at = argument; *at != '\0'; at++) {
        if (*at == '\'') text_add(out, "'\\''");
        else text_add_n(out, at, 1);
    }
    text_add(out, "'");
}

static int write_page(const eval_report *report, const char *path)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL) return complain(EXIT_INPUT, "%s: cannot be created: %s", path, strerror(errno));
    errno = 0;
    report_print_page(report, file);
    const bool is_written = !ferror(file);
    const int why = errno;
    if (fclose(file) == 0 && is_written) return 0;
    return complain(EXIT_INPUT, "%s: cannot be written: %s", path, strerror(is_written ? errno : why));
}

static int print_results(const evaluation *e, const char *line)
{
    const eval_options *o = e->options;
    summary rows;
    tmx_error err;
    int code = 0;
    if (summary_make(&rows, &e->run, &err) != TMX_OK) return complain_error(&err);
    const eval_report report = {
        .run = &e->run, .rows = &rows, .model_path = o->model, .command = line,
        .sweep = e->sweep_name[0] != '\0' ? e->sweep_name : NULL, .n_threads = tmx_pool_n_threads(e->pool),
    };
    if (o->output == EVAL_OUTPUT_MD) report_print_markdown(&report, stdout);
    if (o->output == EVAL_OUTPUT_CSV) report_print_csv(&report, stdout);
    if (o->output == EVAL_OUTPUT_JSON && report_print_json(&report, stdout, &err) != TMX_OK) code = complain_error(&err);
    if (code == 0 && o->page != NULL) code = write_page(&report, o->page);
    summary_free(&rows);
    return code;
}

/* A page that cannot be written should be known before hours have passed. */
static int check_page(const char *path)
{
    FILE *file = path != NULL ? fopen(path, "ab") : NULL;
    if (path != NULL && file == NULL) return complain(EXIT_INPUT, "%s: cannot be created: %s", path, strerror(errno));
    if (file != NULL) fclose(file);
    return 0;
}

static int evaluate(evaluation *e, const char *line)
{
    int code = read_files(e);
    if (code == 0) code = check_page(e->options->page);
    if (code == 0) code = open_model(e);
    if (code == 0) code = make_plans(e);
    if (code == 0) code = add_files(e);
    if (code == 0) code = run_all(e);
    if (code == 0 && e->run.n_done > 0) code = print_results(e, line);
    return code == 0 && e->run.is_stopped ? signals_say_interrupted() : code;
}

static int list_tasks(void)
{
    for (int32_t i = 0; i < task_count(); i++) printf("%-16s %s\n", task_at(i)->name, task_at(i)->summary);
    return 0;
}

int eval_main(const eval_options *o, int argc, char *const *argv)
{
    if (o->list_tasks) return list_tasks();
    text_buf line = { 0 };
    text_add(&line, "tmx eval");
    for (int i = 0; i < argc; i++) put_argument(&line, argv[i]);
    evaluation *e = line.has_failed ? NULL : calloc(1, sizeof *e);
    if (e == NULL) {
        text_free(&line);
        return complain(EXIT_RESOURCES, "out of memory for the evaluation");
    }
    e->options = o;
    const int code = evaluate(e, line.data);
    eval_run_free(&e->run);
    free(e->cells);
    for (int32_t i = 0; i < o->data.n; i++) data_free(&e->sets[i]);
    for (int32_t i = 0; i < o->texts.n; i++) prompt_free(&e->texts[i]);
    for (int32_t i = 0; i < e->params.n_plans; i++) tmx_plan_free(e->plans[i]);
    tmx_model_close(e->model);
    tmx_pool_free(e->pool);
    free(e);
    text_free(&line);
    return code;
}
