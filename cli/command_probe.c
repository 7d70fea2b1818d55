#include "commands.h"
#include "model_choice.h"
#include "probe_picture.h"
#include "probe_prompts.h"
#include "progress.h"
#include "report.h"
#include "signals.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_TOKENS = 2000, N_TRIALS = 8, PROGRESS_UNITS = 1000000 };

/* The hardest first; the order of the words in PROBE_KINDS after auto. */
static const char *const kinds[] = { "kv_uuid", "kv_number", "passkey" };
enum { N_KINDS = 3 };

typedef struct prober {
    const probe_options *options;
    tmx_pool *pool;
    tmx_model *model;
    tmx_probe *probe;
    tmx_probe_report *report;
    tmx_probe_layer *layers;       /* [n_layers] of the sample at work */
    probe_prompts prompts;
    tmx_probe_sections sections;
    int32_t n_samples;             /* to have in the end */
    progress progress;
    int32_t n_done, n_total;       /* samples of what the bar shows */
    char label[48];
    double sample_ms;              /* of all samples run now */
    int32_t n_run;
} prober;

/* A sample's progress inside that of all. */
static bool on_progress(void *ctx, const tmx_progress *at)
{
    prober *p = ctx;
    const double part = at->n_total > 0 ? (double)at->n_done / (double)at->n_total : 0;
    const tmx_progress all = { .n_done = (int64_t)((p->n_done + part) * PROGRESS_UNITS),
                               .n_total = (int64_t)p->n_total * PROGRESS_UNITS };
    return progress_update(&p->progress, &all);
}

static void begin_bar(prober *p, const char *label, int32_t n_total)
{
    p->n_done = 0;
    p->n_total = n_total;
    snprintf(p->label, sizeof p->label, "%s", label);
    progress_begin(&p->progress, p->label);
}

/* Fewer families are probed on a GPU than run on it: where --device leaves the choice open, the CPU probes the others. */
static int leave_gpu_if_needed(prober *p, model_opening *opening)
{
    tmx_error err;
    tmx_probe *trial = NULL;
    if (strcmp(opening->device, "auto") != 0 || strcmp(tmx_model_info_get(p->model)->device, "cpu") == 0) return 0;
    const tmx_status status = tmx_probe_create(&trial, p->model, p->pool, &(tmx_probe_params){ .n_tokens = 1 }, &err);
    tmx_probe_free(trial);
    if (status != TMX_E_UNSUPPORTED) return 0;             /* other trouble is told when the real one is made */
    if (!opening->is_quiet) {
        char line[sizeof err.text + 32];
        snprintf(line, sizeof line, "running on the CPU: %s", err.text);
        print_warning(line);
    }
    tmx_model_close(p->model);
    p->model = NULL;
    opening->device = "cpu";
    return open_chosen_model(&p->model, opening, p->pool);
}

static int open_model(prober *p)
{
    const probe_options *o = p->options;
    tmx_error err;
    model_opening opening = { .path = o->model, .changes = &o->changes, .compute = o->compute, .isa = o->isa,
                                    .device = device_choose(o->device), .is_quiet = o->is_quiet };
    if (tmx_pool_create(&p->pool, o->n_threads, &err) != TMX_OK) return complain_error(&err);
    int code = open_chosen_model(&p->model, &opening, p->pool);
    if (code == 0) code = leave_gpu_if_needed(p, &opening);
    if (code != 0) return code;
    p->layers = malloc((size_t)tmx_model_info_get(p->model)->n_layers * sizeof *p->layers);
    return p->layers != NULL ? 0 : complain(EXIT_RESOURCES, "out of memory for the sums of all layers");
}

static int open_probe(prober *p, int32_t n_tokens)
{
    tmx_error err;
    const tmx_probe_params params = { .n_tokens = n_tokens, .sections = p->sections, .progress = on_progress, .progress_ctx = p };
    return tmx_probe_create(&p->probe, p->model, p->pool, &params, &err) == TMX_OK ? 0 : complain_error(&err);
}

/* ---------------------------------------------------------------- which prompts */

/* How many of the first samples the dense model begins to answer right. */
static int count_answered(prober *p, int32_t n_trials, int32_t *n_answered)
{
    tmx_error err;
    *n_answered = 0;
    for (int32_t i = 0; i < n_trials; i++, p->n_done++) {
        probe_sample sample;
        tmx_probe_result result;
        const int code = probe_prompts_get(&p->prompts, i, &sample);
        if (code != 0) return code;
        const tmx_status status = tmx_probe_run(p->probe, sample.ids, sample.n_ids, sample.target, NULL, &result, &err);
        probe_sample_free(&sample);
        if (status != TMX_OK) return complain_error(&err);
        *n_answered += result.is_correct;
    }
    return 0;
}

/* The hardest kind of which more than half of the trials are right, or else the one with the most. */
static int choose_kind(prober *p, int32_t n_tokens)
{
    int best = 0;
    int32_t n_best = -1, n_trials = p->n_samples < N_TRIALS ? p->n_samples : N_TRIALS;
    char tried[128] = "";
    for (int i = 0; i < N_KINDS && 2 * n_best <= n_trials; i++) {
        int32_t n_answered;
        char label[48];
        snprintf(label, sizeof label, "trying %s", kinds[i]);
        int code = probe_prompts_generate(&p->prompts, kinds[i], n_tokens, p->options->seed, p->model);
        begin_bar(p, label, n_trials);
        if (code == 0) code = count_answered(p, n_trials, &n_answered);
        progress_end(&p->progress);
        if (code != 0) return code;
        const size_t n = strlen(tried);
        snprintf(tried + n, sizeof tried - n, "%s%s %d of %d", n == 0 ? "" : ", ", kinds[i], n_answered, n_trials);
        if (n_answered <= n_best) continue;
        n_best = n_answered;
        best = i;
    }
    if (!p->options->is_quiet) fprintf(stderr, "prompts of kind %s; answers begun right: %s\n", kinds[best], tried);
    return probe_prompts_generate(&p->prompts, kinds[best], n_tokens, p->options->seed, p->model);
}

static bool is_generated(const char *source)
{
    for (int i = 0; i < N_KINDS; i++) {
        if (strcmp(source, kinds[i]) == 0) return true;
    }
    return false;
}

/* Prompts, and the probe for their length.  A resumed report names its kind. */
static int choose_prompts(prober *p)
{
    const probe_options *o = p->options;
    const int32_t n_tokens = o->n_tokens > 0 ? o->n_tokens : DEFAULT_TOKENS;
    const char *resumed = p->report != NULL ? tmx_probe_report_settings(p->report)->source : "";
    int code;
    if (o->prompts != NULL) {
        code = probe_prompts_read(&p->prompts, o->prompts, o->n_tokens, &p->sections, p->model);
        if (code == 0 && p->prompts.n_samples < p->n_samples) p->n_samples = p->prompts.n_samples;
        return code != 0 ? code : open_probe(p, p->prompts.n_tokens);
    }
    code = probe_prompts_check_length("option --tokens", n_tokens, &p->sections);
    if (code == 0) code = open_probe(p, n_tokens);
    if (code != 0) return code;
    if (o->kind == 0 && !is_generated(resumed)) return choose_kind(p, n_tokens);
    return probe_prompts_generate(&p->prompts, o->kind != 0 ? kinds[o->kind - 1] : resumed, n_tokens, o->seed, p->model);
}

/* ---------------------------------------------------------------- the report */

static tmx_probe_settings settings_of(const prober *p)
{
    const probe_options *o = p->options;
    tmx_probe_settings s = { .sections = p->sections, .n_tokens = p->prompts.n_tokens, .n_samples = p->n_samples, .seed = o->seed,
                             .is_correct_only = o->is_correct_only, .compute = tmx_model_compute(p->model) };
    memcpy(s.source, p->prompts.source, sizeof s.source);
    return s;
}

static int refuse_other(const prober *p, const char *what)
{
    return complain(EXIT_USAGE, "%s was measured with other %s; --resume needs the same", p->options->output, what);
}

/* Everything but the number of samples must be the same. */
static int check_resumed(const prober *p)
{
    const tmx_probe_settings *a = tmx_probe_report_settings(p->report), b = settings_of(p);
    if (strcmp(a->source, b.source) != 0) return refuse_other(p, "prompts");
    if (a->n_tokens != b.n_tokens) return refuse_other(p, "--tokens");
    if (a->seed != b.seed && p->options->prompts == NULL) return refuse_other(p, "--seed");
    if (a->is_correct_only != b.is_correct_only) return refuse_other(p, "--correct-only");
    if (a->compute != b.compute) return refuse_other(p, "--compute");
    if (memcmp(&a->sections, &b.sections, sizeof b.sections) != 0) return refuse_other(p, "sections");
    return 0;
}

/* A report to go on with, or none. */
static int open_report(prober *p)
{
    tmx_error err;
    if (!p->options->is_resumed || access(p->options->output, F_OK) != 0) return 0;
    const tmx_status status = tmx_probe_report_open(&p->report, p->options->output, tmx_model_info_get(p->model), &err);
    return status == TMX_OK ? 0 : complain_error(&err);
}

static int begin_report(prober *p)
{
    tmx_error err;
    const tmx_probe_settings settings = settings_of(p);
    if (p->report == NULL) {
        const tmx_status status = tmx_probe_report_create(&p->report, tmx_model_info_get(p->model), &settings, &err);
        return status == TMX_OK ? 0 : complain_error(&err);
    }
    const int code = check_resumed(p);
    if (code != 0) return code;
    const int32_t n_have = tmx_probe_report_n_samples(p->report);
    if (p->n_samples < n_have) p->n_samples = n_have;
    return tmx_probe_report_set_n_samples(p->report, p->n_samples, &err) == TMX_OK ? 0 : complain_error(&err);
}

static int save_report(const prober *p)
{
    tmx_error err;
    if (p->options->output == NULL) return 0;
    return tmx_probe_report_save(p->report, p->options->output, &err) == TMX_OK ? 0 : complain_error(&err);
}

/* ---------------------------------------------------------------- the samples */

static int run_sample(prober *p, int32_t i)
{
    probe_sample sample;
    tmx_probe_result result;
    tmx_error err;
    const double start_ms = clock_ms();
    int code = probe_prompts_get(&p->prompts, i, &sample);
    if (code == 0) code = probe_prompts_check_length("probe", sample.n_ids, &p->sections);
    if (code != 0) {
        probe_sample_free(&sample);
        return code;
    }
    tmx_status status = tmx_probe_run(p->probe, sample.ids, sample.n_ids, sample.target, p->layers, &result, &err);
    if (status == TMX_OK) {
        const tmx_probe_sample done = { .n_tokens = sample.n_ids, .target = sample.target, .top_token = result.top_token,
                                        .target_logit = result.target_logit };
        status = tmx_probe_report_add(p->report, &done, p->layers, &err);
    }
    probe_sample_free(&sample);
    if (status != TMX_OK) return status == TMX_E_CANCELLED ? EXIT_INTERRUPTED : complain_error(&err);
    p->sample_ms += clock_ms() - start_ms;
    p->n_run++;
    return save_report(p);
}

static int run_samples(prober *p)
{
    const int32_t first = tmx_probe_report_n_samples(p->report);
    int code = save_report(p);                         /* a file that cannot be written is known before the work */
    begin_bar(p, "probe", p->n_samples - first);
    for (int32_t i = first; i < p->n_samples && code == 0; i++, p->n_done++) {
        snprintf(p->label, sizeof p->label, "sample %d of %d", i + 1, p->n_samples);
        code = run_sample(p, i);
    }
    progress_end(&p->progress);
    return code;
}

static int show(const prober *p)
{
    char each[32];
    print_probe_table(stdout, p->report, tmx_model_info_get(p->model));
    if (!p->options->is_quiet && p->n_run > 0 && flush_output()) {
        fprintf(stderr, "%d samples, %s each\n", p->n_run, text_of_ms(p->sample_ms / p->n_run, each));
    }
    if (p->options->picture == NULL || tmx_probe_report_n_used(p->report) == 0) return 0;
    return write_probe_picture(p->options->picture, p->report, tmx_model_info_get(p->model));
}

static int probe_all(prober *p)
{
    int code = open_model(p);
    if (code == 0) code = open_report(p);
    if (code != 0) return code;
    progress_init(&p->progress, p->options->is_quiet);
    signals_begin_polite();
    code = choose_prompts(p);
    if (code == 0) code = begin_report(p);
    const bool has_begun = code == 0;
    if (code == 0) code = run_samples(p);
    signals_end_polite();
    if (!has_begun || (code != 0 && code != EXIT_INTERRUPTED)) return code;
    const int show_code = show(p);
    return code == EXIT_INTERRUPTED ? signals_say_interrupted() : show_code;
}

int probe_main(const probe_options *o)
{
    prober p = { .options = o, .n_samples = o->n_samples,
                 .sections = { .n_sink = o->n_sink, .n_window = o->n_window, .n_last = o->n_last } };
    const int code = probe_all(&p);
    free(p.layers);
    probe_prompts_free(&p.prompts);
    tmx_probe_report_free(p.report);
    tmx_probe_free(p.probe);
    tmx_model_close(p.model);
    tmx_pool_free(p.pool);
    return code;
}
