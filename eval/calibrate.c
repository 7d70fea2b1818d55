#include "calibrate_parts.h"

#include "fault.h"
#include "greedy.h"
#include "score.h"
#include "stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_BEYOND = 2 };

/* ---------------------------------------------------------------- search */

int32_t calibrate_search(int32_t n, int (*fits)(void *ctx, int32_t k), void *ctx)
{
    int32_t fit = 0, unfit = n + 1;
    while (unfit - fit > 1) {
        const int32_t k = fit + (unfit - fit) / 2;
        const int answer = fits(ctx, k);
        if (answer < 0) return -1;
        if (answer) fit = k;
        else unfit = k;
    }
    for (int32_t k = fit + 2; k <= n && k <= fit + 1 + N_BEYOND; k++) {        /* fit + 1 was asked: it is `unfit` */
        const int answer = fits(ctx, k);
        if (answer < 0) return -1;
        if (answer) fit = k;
    }
    return fit;
}

/* ---------------------------------------------------------------- plans */

/* "triangle=2,0,1" of the first n_sparse layers of the order, or "xattention(stride=8)=4,5" of those that have the method; nothing of none. */
static void add_item(text_buf *spec, const char *method, const int32_t *layers, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (i == 0) text_print(spec, "%s%s=", spec->n_bytes > 4 ? "," : "", method);       /* more than "mix:" */
        text_print(spec, i == 0 ? "%d" : ",%d", layers[i]);
    }
}

tmx_status calibration_plan(tmx_plan **plan, const tmx_model *model, const calibration_params *p, int32_t n_sparse,
                            const int32_t *methods, tmx_error *err)
{
    const tmx_model_info *info = tmx_model_info_get(model);
    text_buf spec = { 0 };
    int32_t *layers = malloc((size_t)info->n_layers * sizeof *layers);
    if (layers == NULL) return fault_memory(err, "a plan");
    text_add(&spec, "mix:");
    add_item(&spec, "triangle", p->order, n_sparse);
    for (int32_t m = 0; m < p->n_methods && methods != NULL; m++) {
        int32_t n = 0;
        for (int32_t l = 0; l < info->n_layers; l++) {
            if (methods[l] == m) layers[n++] = l;
        }
        add_item(&spec, p->methods[m], layers, n);
    }
    if (spec.n_bytes == 4) text_add(&spec, "rest=dense");
    free(layers);
    char *text = text_take(&spec);
    if (text == NULL) return fault_memory(err, "a plan");
    tmx_plan *made = NULL;
    tmx_status status = tmx_plan_parse(&made, text, info, err);
    free(text);
    if (status == TMX_OK) status = tmx_plan_set_sizes(made, p->n_sink, p->n_window, p->n_last, err);
    if (status == TMX_OK && p->estimate_rows > 0) status = tmx_plan_set_estimate_rows(made, p->estimate_rows, err);
    if (status != TMX_OK) tmx_plan_free(made);
    else *plan = made;
    return status;
}

/* ---------------------------------------------------------------- measuring */

static double clock_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* The first n_ids tokens of a prompt with a plan; logits of the last. */
static tmx_status run_prompt(bench *b, const tmx_plan *plan, const calibration_prompt *prompt, int32_t n_ids, float *logits,
                             double *time_ms)
{
    tmx_session_reset(b->session);
    TRY(tmx_session_set_plan(b->session, plan, b->err));
    const tmx_prompt run = { .tokens = prompt->ids, .n_tokens = n_ids, .logits = logits };
    const double start = clock_ms();
    TRY(tmx_prefill(b->session, &run, 1, b->err));
    *time_ms = clock_ms() - start;
    return TMX_OK;
}

/* Runs that are no step of the progress ask, too, so that a stop never waits for many of them. */
static tmx_status may_go_on(const bench *b)
{
    const calibration_params *p = b->params;
    if (p->progress == NULL || p->progress(p->progress_ctx, b->n_done, b->n_total)) return TMX_OK;
    return fault(b->err, TMX_E_CANCELLED, "calibration: stopped after %d of about %d prompts", b->n_done, b->n_total);
}

/* The greedy answer after a prefill, scored; `logits`, of the prompt's last token, may be b->logits. */
static tmx_status score_prompt(bench *b, const calibration_prompt *prompt, const float *logits, double *score)
{
    const task_sample *s = &prompt->sample;
    int32_t n_ids = 0;
    for (int32_t id; n_ids < s->n_predict; logits = b->logits) {
        id = greedy_token(logits, b->n_vocab);
        if (tmx_token_is_end(b->model, id)) break;
        b->ids[n_ids++] = id;
        if (n_ids < s->n_predict) TRY(tmx_decode(b->session, 0, id, b->logits, b->err));
    }
    TRY(greedy_text(b->model, b->ids, n_ids, &b->text, b->err));
    return score_answer(b->params->kind->metric, b->text.data, s->answers, s->n_answers, score, b->err);
}

/* Prompt i with plan k: its share of the row, and its times. */
static tmx_status measure_prompt(bench *b, const tmx_plan *plan, int32_t i, int32_t k, tmx_plan_point *point, layer_times *layers)
{
    const int32_t n = b->params->n_samples;
    const size_t at = (size_t)k * (size_t)n + (size_t)i;
    calibration_prompt *prompt = &b->prompts[i];
    float *logits = b->is_dense_known ? b->logits : prompt->dense;
    tmx_agreement agreement;
    tmx_timings timings;
    double score;
    TRY(run_prompt(b, plan, prompt, prompt->n_ids, logits, &b->times_ms[at]));
    tmx_session_timings(b->session, &timings);
    b->attention_ms[at] = timings.attention_ms;
    for (int32_t l = 0; layers != NULL && l < layers->n; l++) {
        const size_t row = (size_t)k * (size_t)layers->n + (size_t)l;
        layers->ms[row * (size_t)n + (size_t)i] = tmx_session_layer_attention_ms(b->session, layers->layers[l]);
    }
    tmx_logits_compare(prompt->dense, logits, b->n_vocab, &agreement);
    TRY(score_prompt(b, prompt, logits, &score));
    point->kl += fmax(agreement.kl, 0) / n;
    point->top1 += (agreement.top_a == agreement.top_b) / (double)n;
    point->score += 100 * score / n;
    b->n_done++;
    return may_go_on(b);
}

tmx_status bench_measure(bench *b, const tmx_plan *const *plans, int32_t n_plans, int32_t n_sparse, method_row *rows, layer_times *layers)
{
    const int32_t n = b->params->n_samples;
    for (int32_t k = 0; k < n_plans; k++) rows[k] = (method_row){ .point = { .n_sparse = n_sparse } };
    for (int32_t i = 0; i < n; i++) {
        for (int32_t k = 0; k < n_plans; k++) TRY(measure_prompt(b, plans[k], i, k, &rows[k].point, layers));
    }
    for (int32_t k = 0; k < n_plans; k++) {
        tmx_plan_point *point = &rows[k].point;
        point->top1 = fmin(point->top1, 1);
        point->score = fmin(point->score, 100);
        point->ttft_ms = median_of(b->times_ms + (size_t)k * (size_t)n, n);
        rows[k].attention_ms = median_of(b->attention_ms + (size_t)k * (size_t)n, n);
    }
    return TMX_OK;
}

static const tmx_plan_point *point_of(const bench *b, int32_t n_sparse)
{
    for (int32_t i = 0; i < b->n_points; i++) {
        if (b->curve[i].n_sparse == n_sparse) return &b->curve[i];
    }
    return NULL;
}

static tmx_status add_point(bench *b, int32_t n_sparse)
{
    tmx_plan *plan;
    method_row row;
    if (point_of(b, n_sparse) != NULL) return TMX_OK;
    TRY(calibration_plan(&plan, b->model, b->params, n_sparse, NULL, b->err));
    const tmx_status status = bench_measure(b, (const tmx_plan *const *)&plan, 1, n_sparse, &row, NULL);
    tmx_plan_free(plan);
    if (status != TMX_OK) return status;
    int32_t at = b->n_points++;
    for (; at > 0 && b->curve[at - 1].n_sparse > n_sparse; at--) b->curve[at] = b->curve[at - 1];
    b->curve[at] = row.point;
    return TMX_OK;
}

bool bench_is_inside(const bench *b, const tmx_plan_point *point)
{
    switch (b->params->budget) {
    case CALIBRATE_KL: return point->kl <= b->params->limit;
    case CALIBRATE_DROP: return b->curve[0].score - point->score <= b->params->limit;
    }
    return false;
}

static int fits(void *ctx, int32_t n_sparse)
{
    bench *b = ctx;
    b->status = add_point(b, n_sparse);
    return b->status != TMX_OK ? -1 : bench_is_inside(b, point_of(b, n_sparse));
}

/* ---------------------------------------------------------------- where it pays */

tmx_status bench_race(bench *b, const tmx_plan *const plans[2], int32_t n_ids, double medians[2])
{
    double times[2][N_REPEATS];
    for (int32_t i = 0; i < N_REPEATS; i++) {
        for (int k = 0; k < 2; k++) {
            TRY(may_go_on(b));
            TRY(run_prompt(b, plans[k], &b->prompts[0], n_ids, b->logits, &times[k][i]));
        }
    }
    for (int k = 0; k < 2; k++) medians[k] = median_of(times[k], N_REPEATS);
    return TMX_OK;
}

/* Lengths halve from the calibration's own; up to sink + window tokens, and with methods up to two blocks, the two are the same
 * computation. */
static tmx_status find_min_tokens(bench *b, const tmx_plan *const plans[2], bool has_methods, int32_t *min_tokens)
{
    enum { N_ALL_SEEN = 256 };
    int64_t n_same = (int64_t)b->params->n_sink + b->params->n_window;
    if (has_methods && n_same > N_ALL_SEEN) n_same = N_ALL_SEEN;
    int32_t shortest = b->prompts[0].n_ids + 1;        /* it may pay nowhere */
    for (int32_t n_ids = b->prompts[0].n_ids; n_ids > n_same; n_ids /= 2) {
        double medians[2];
        TRY(bench_race(b, plans, n_ids, medians));
        if (medians[1] > medians[0]) {
            *min_tokens = shortest;
            return TMX_OK;
        }
        shortest = n_ids;
    }
    *min_tokens = 0;
    return TMX_OK;
}

static tmx_status find_start(bench *b, calibration *found)
{
    const bool has_methods = found->n_given > 0;
    tmx_plan *plans[2] = { NULL, NULL };
    found->min_tokens = 0;
    if (found->n_sparse == 0 && !has_methods) return TMX_OK;
    tmx_status status = calibration_plan(&plans[0], b->model, b->params, 0, NULL, b->err);
    if (status == TMX_OK) status = calibration_plan(&plans[1], b->model, b->params, found->n_sparse, found->layer_methods, b->err);
    if (status == TMX_OK) status = find_min_tokens(b, (const tmx_plan *const *)plans, has_methods, &found->min_tokens);
    tmx_plan_free(plans[0]);
    tmx_plan_free(plans[1]);
    return status;
}

/* ---------------------------------------------------------------- all of it */

static tmx_status make_prompts(bench *b)
{
    const calibration_params *p = b->params;
    for (int32_t i = 0; i < p->n_samples; i++) {
        calibration_prompt *prompt = &b->prompts[i];
        TRY(task_make(p->kind, b->model, p->seed, i, p->n_tokens, p->is_chat, &prompt->sample, b->err));
        TRY(task_prompt_ids(&prompt->sample, b->model, p->is_chat, &prompt->ids, &prompt->n_ids, b->err));
        prompt->dense = malloc((size_t)b->n_vocab * sizeof *prompt->dense);
        if (prompt->dense == NULL) return fault_memory(b->err, "the logits of a prompt");
    }
    return TMX_OK;
}

static tmx_status open_bench(bench *b, tmx_pool *pool)
{
    const size_t n_columns = 1 + (size_t)b->params->n_methods, n_samples = (size_t)b->params->n_samples;
    b->prompts = calloc(n_samples, sizeof *b->prompts);
    b->logits = malloc((size_t)b->n_vocab * sizeof *b->logits);
    b->ids = malloc((size_t)b->params->kind->n_predict * sizeof *b->ids);
    b->times_ms = calloc(n_columns * n_samples, sizeof *b->times_ms);
    b->attention_ms = calloc(n_columns * n_samples, sizeof *b->attention_ms);
    b->curve = malloc(((size_t)b->n_layers + 1) * sizeof *b->curve);
    if (b->prompts == NULL || b->logits == NULL || b->ids == NULL || b->times_ms == NULL || b->attention_ms == NULL || b->curve == NULL) {
        return fault_memory(b->err, "calibration");
    }
    TRY(make_prompts(b));
    int32_t n_ctx = 1;
    for (int32_t i = 0; i < b->params->n_samples; i++) {
        const int32_t n = b->prompts[i].n_ids + b->prompts[i].sample.n_predict;
        if (n > n_ctx) n_ctx = n;
    }
    return tmx_session_create(&b->session, b->model, NULL, pool, &(tmx_session_params){ .n_ctx = n_ctx }, b->err);
}

static void close_bench(bench *b)
{
    for (int32_t i = 0; b->prompts != NULL && i < b->params->n_samples; i++) {
        task_sample_free(&b->prompts[i].sample);
        free(b->prompts[i].ids);
        free(b->prompts[i].dense);
    }
    free(b->prompts);
    free(b->logits);
    free(b->ids);
    text_free(&b->text);
    free(b->times_ms);
    free(b->attention_ms);
    tmx_session_free(b->session);
}

/* The first run with a plan pays for cold caches and fresh memory; it is not counted. */
tmx_status bench_warm_up(bench *b, const tmx_plan *plan)
{
    double ignored;
    TRY(may_go_on(b));
    return run_prompt(b, plan, &b->prompts[0], b->prompts[0].n_ids, b->logits, &ignored);
}

static tmx_status measure_dense(bench *b)
{
    tmx_plan *dense;
    TRY(calibration_plan(&dense, b->model, b->params, 0, NULL, b->err));
    const tmx_status status = bench_warm_up(b, dense);
    tmx_plan_free(dense);
    if (status == TMX_OK) TRY(add_point(b, 0));
    b->is_dense_known = true;
    return status;
}

/* Points for a picture of the whole curve; the search finds them measured. */
static tmx_status add_curve(bench *b)
{
    const int32_t step = b->params->curve_step;
    for (int64_t k = 0; step > 0 && k <= b->n_layers; k += step) TRY(add_point(b, (int32_t)k));
    return TMX_OK;
}

static int32_t most_inside(const bench *b)
{
    int32_t most = 0;
    for (int32_t i = 0; i < b->n_points; i++) {
        if (bench_is_inside(b, &b->curve[i])) most = b->curve[i].n_sparse;
    }
    return most;
}

static int32_t fastest_inside(const bench *b)
{
    const tmx_plan_point *best = &b->curve[0];
    for (int32_t i = 1; i < b->n_points; i++) {
        const tmx_plan_point *point = &b->curve[i];
        if (bench_is_inside(b, point) && point->ttft_ms < best->ttft_ms) best = point;
    }
    return best->n_sparse;
}

static tmx_status run_bench(bench *b, tmx_pool *pool, calibration *found)
{
    TRY(open_bench(b, pool));
    TRY(bench_try_methods(b));
    TRY(measure_dense(b));
    TRY(add_curve(b));
    if (calibrate_search(b->n_layers, fits, b) < 0) return b->status;
    found->n_sparse = b->params->is_fastest ? fastest_inside(b) : most_inside(b);
    TRY(bench_choose_methods(b, found));
    return find_start(b, found);
}

static tmx_status check_params(const calibration_params *p, int32_t n_layers, tmx_error *err)
{
    if (p->n_samples < 1 || p->n_samples > 100000) return fault(err, TMX_E_ARG, "calibration: %d samples, expected 1..100000", p->n_samples);
    if (p->curve_step < 0) return fault(err, TMX_E_ARG, "calibration: a curve step of %d, expected 0 or more", p->curve_step);
    if (!(p->limit >= 0) || isinf(p->limit)) return fault(err, TMX_E_ARG, "calibration: a budget of %g, expected 0 or more", p->limit);
    if (p->n_methods < 0 || p->n_methods > METHODS_MAX) {
        return fault(err, TMX_E_ARG, "calibration: %d methods, expected 0..%d", p->n_methods, METHODS_MAX);
    }
    bool *is_seen = calloc((size_t)n_layers, sizeof *is_seen);
    if (is_seen == NULL) return fault_memory(err, "an order of layers");
    tmx_status status = TMX_OK;
    for (int32_t i = 0; i < n_layers && status == TMX_OK; i++) {
        const int32_t layer = p->order[i];
        if (layer < 0 || layer >= n_layers || is_seen[layer]) {
            status = fault(err, TMX_E_ARG, "calibration: order[%d] is layer %d, expected each of 0..%d once", i, layer, n_layers - 1);
        } else is_seen[layer] = true;
    }
    free(is_seen);
    return status;
}

tmx_status calibrate(calibration *result, const tmx_model *model, tmx_pool *pool, const calibration_params *params,
                     tmx_error *err)
{
    const tmx_model_info *info = tmx_model_info_get(model);
    TRY(check_params(params, info->n_layers, err));
    int32_t n_changeable = 0;                          /* an order has the others behind these */
    for (int32_t l = 0; l < info->n_layers; l++) n_changeable += !tmx_model_layer_has_window(info, l);
    bench b = { .params = params, .model = model, .n_layers = n_changeable, .n_vocab = info->n_vocab, .err = err };
    int32_t n_candidates = 1 + N_BEYOND + (params->curve_step > 0 ? n_changeable / params->curve_step : 0);
    for (int32_t n = n_changeable; n > 0; n /= 2) n_candidates++;
    if (params->n_methods > 0) n_candidates += 1 + params->n_methods + 1;      /* side by side, then at least one choice */
    b.n_total = n_candidates * params->n_samples;
    calibration found = { .kind = params->kind, .n_samples = params->n_samples, .n_tokens = params->n_tokens };
    const tmx_status status = run_bench(&b, pool, &found);
    close_bench(&b);
    if (status != TMX_OK) {
        free(b.curve);
        calibration_free(&found);
        return status;
    }
    found.curve = b.curve;
    found.n_points = b.n_points;
    *result = found;
    return TMX_OK;
}

void calibration_free(calibration *result)
{
    free(result->curve);
    free(result->layer_methods);
    free(result->rows);
    *result = (calibration){ 0 };
}
