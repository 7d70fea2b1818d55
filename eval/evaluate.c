#include "evaluate.h"

#include "fault.h"
#include "greedy.h"
#include "journal.h"
#include "score.h"
#include "text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_WARM_UP = 256, MAX_KEPT_ANSWER = 400 };

typedef struct prompt {
    task_sample made;              /* of a generated task: freed with the prompt */
    const task_sample *sample;     /* NULL for a text */
    task_metric metric;
    bool is_first_line;
    int32_t *ids, n_ids;           /* to be prefilled */
    int32_t *made_ids;             /* freed with the prompt */
} prompt;

/* A greedy answer. */
typedef struct answer {
    int32_t *ids, n_ids;           /* [n_predict] */
} answer;

typedef struct runner {
    const eval_params *p;
    eval_run *run;
    journal *journal;
    tmx_session *session;
    int32_t n_vocab, max_predict, n_ctx;
    float *logits;                 /* [n_vocab] */
    float *first_logits;           /* [EVAL_N_FORCED + 1][n_vocab]: of the first plan, before each token of its answer */
    int32_t n_first_logits;
    answer first, own;             /* of the first plan; of the plan at work */
    text_buf text;
    struct timespec start;
    double *cell_ms;               /* [n_cells] spent on samples of this run */
    int32_t *cell_done;            /* [n_cells] samples of this run */
    int32_t cell, index;           /* at work */
} runner;

/* ---------------------------------------------------------------- progress */

static double elapsed_ms(const runner *r)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - r->start.tv_sec) * 1e3 + (double)(now.tv_nsec - r->start.tv_nsec) / 1e6;
}

/* What cells of a length cost is known after their first sample; before that, the cost per token of the others. */
static double left_ms(const runner *r)
{
    double n_tokens = 0, spent = 0, left = 0;
    for (int32_t c = 0; c < r->p->n_cells; c++) {
        n_tokens += (double)r->cell_done[c] * (r->p->cells[c].length + 1);
        spent += r->cell_ms[c];
    }
    for (int32_t c = 0; c < r->p->n_cells; c++) {
        int32_t n_left = 0;
        for (int32_t i = 0; i < r->p->cells[c].n_samples; i++) n_left += !r->run->samples[c][i].is_done;
        const double each = r->cell_done[c] > 0 ? r->cell_ms[c] / r->cell_done[c]
                            : n_tokens > 0      ? spent / n_tokens * (r->p->cells[c].length + 1)
                                                : 0;
        left += n_left * each;
    }
    return left;
}

static bool report(const runner *r)
{
    if (r->p->progress == NULL) return true;
    const eval_progress at = {
        .cell = &r->p->cells[r->cell], .index = r->index, .n_done = r->run->n_done, .n_total = r->run->n_total,
        .elapsed_ms = elapsed_ms(r), .left_ms = left_ms(r),
    };
    return r->p->progress(r->p->progress_ctx, &at);
}

static bool on_prefill(void *ctx, const tmx_progress *at)
{
    (void)at;
    return report(ctx);
}

static tmx_status decode(runner *r, int32_t id, tmx_error *err)
{
    if (!report(r)) return fault(err, TMX_E_CANCELLED, "evaluation: stopped");
    return tmx_decode(r->session, 0, id, r->logits, err);
}

/* ---------------------------------------------------------------- prompts */

static void prompt_free(prompt *p)
{
    task_sample_free(&p->made);
    free(p->made_ids);
    *p = (prompt){ 0 };
}

static tmx_status make_prompt(const eval_params *p, const eval_cell *cell, int32_t index, prompt *made, tmx_error *err)
{
    if (cell->text != NULL) {
        made->ids = (int32_t *)(cell->text + (size_t)index * (size_t)cell->length);
        made->n_ids = cell->length - EVAL_N_SCORED;
        return TMX_OK;
    }
    if (cell->kind != NULL) {
        made->metric = cell->kind->metric;
        made->sample = &made->made;
        TRY(task_make(cell->kind, p->model, p->seed, index, cell->length - cell->kind->n_predict, p->is_chat, &made->made,
                      err));
    } else {
        made->metric = cell->data->items[index].metric;
        made->is_first_line = cell->data->items[index].is_first_line;
        made->sample = &cell->data->items[index].sample;
    }
    TRY(task_prompt_ids(made->sample, p->model, p->is_chat, &made->made_ids, &made->n_ids, err));
    made->ids = made->made_ids;
    return TMX_OK;
}

/* FNV-1a over the ids: does a journal speak of this prompt? */
static uint64_t hash_prompt(const prompt *p)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (int32_t i = 0; i < p->n_ids; i++) hash = (hash ^ (uint32_t)p->ids[i]) * 0x100000001b3u;
    return hash;
}

/* What the cells need of a session; refuses now what would fail in hours. */
static tmx_status check_cell(runner *r, const eval_cell *cell, tmx_error *err)
{
    int32_t n_most = cell->length, n_predict = cell->kind != NULL ? cell->kind->n_predict : 0;
    if (cell->text != NULL) {
        if (cell->length <= EVAL_N_SCORED || (int64_t)cell->length * cell->n_samples > cell->n_text) {
            return fault(err, TMX_E_ARG, "%s: %d samples of %d tokens, expected more than %d tokens each and %d in all",
                         cell->name, cell->n_samples, cell->length, EVAL_N_SCORED, cell->n_text);
        }
    } else if (cell->kind != NULL) {
        if (cell->length <= n_predict) {
            return fault(err, TMX_E_ARG, "task %s: length %d, of which the answer alone takes %d", cell->name, cell->length,
                         n_predict);
        }
        prompt first = { 0 };
        const tmx_status status = make_prompt(r->p, cell, 0, &first, err);
        prompt_free(&first);
        if (status != TMX_OK) return status;
    } else {
        const int32_t n_limit = r->p->session.n_ctx > 0 ? r->p->session.n_ctx
                                                         : tmx_model_info_get(r->p->model)->n_ctx_max;
        for (int32_t i = 0; i < cell->n_samples; i++) {
            prompt p = { 0 };
            const tmx_status status = make_prompt(r->p, cell, i, &p, err);
            const int32_t n_ids = p.n_ids, n = cell->data->items[i].sample.n_predict;
            prompt_free(&p);
            if (status != TMX_OK) return status;
            if (n_ids > n_limit - n) {
                return fault(err, TMX_E_FULL, "%s, line %d: the prompt has %d tokens and its answer up to %d, the context holds %d",
                             cell->name, cell->data->items[i].line, n_ids, n, n_limit);
            }
            if (n_ids + n > n_most) n_most = n_ids + n;
            if (n > n_predict) n_predict = n;
        }
    }
    if (n_most > r->n_ctx) r->n_ctx = n_most;
    if (n_predict > r->max_predict) r->max_predict = n_predict;
    return TMX_OK;
}

/* ---------------------------------------------------------------- one plan on one sample */

/* The prediction in r->logits, made after `position` tokens of the first plan's answer, against that plan's own. */
static void compare_logits(const runner *r, int32_t position, eval_result *result)
{
    tmx_agreement a;
    tmx_logits_compare(r->first_logits + (size_t)position * (size_t)r->n_vocab, r->logits, r->n_vocab, &a);
    if (position == 0) {
        result->kl_first = a.kl;
        result->is_top_first = a.top_a == a.top_b;
        return;
    }
    result->kl_forced += (a.kl - result->kl_forced) / ++result->n_forced;      /* a running mean */
    result->n_top_forced += a.top_a == a.top_b;
}

/* Greedy from r->logits on, until the model ends or n_predict tokens are there. */
static tmx_status answer_first(runner *r, int32_t n_predict, tmx_error *err)
{
    answer *a = &r->first;
    r->n_first_logits = 0;
    for (a->n_ids = 0;;) {
        if (a->n_ids <= EVAL_N_FORCED) {
            memcpy(r->first_logits + (size_t)a->n_ids * (size_t)r->n_vocab, r->logits, (size_t)r->n_vocab * sizeof *r->logits);
            r->n_first_logits = a->n_ids + 1;
        }
        const int32_t id = greedy_token(r->logits, r->n_vocab);
        if (tmx_token_is_end(r->p->model, id)) return TMX_OK;
        a->ids[a->n_ids++] = id;
        if (a->n_ids == n_predict) return TMX_OK;
        TRY(decode(r, id, err));
    }
}

/* The same for another plan.  As long as it writes what the first one wrote, its predictions are also those after the first
 * plan's tokens; where they part, the session goes back and is led along the rest of the first plan's answer. */
static tmx_status answer_next(runner *r, int32_t n_prompt, int32_t n_predict, eval_result *result, tmx_error *err)
{
    const answer *first = &r->first;
    answer *a = &r->own;
    bool is_equal = true;
    for (a->n_ids = 0;;) {
        if (is_equal && a->n_ids < r->n_first_logits) compare_logits(r, a->n_ids, result);
        const int32_t id = greedy_token(r->logits, r->n_vocab);
        const bool is_end = tmx_token_is_end(r->p->model, id);
        if (is_equal) {
            result->n_equal = a->n_ids;
            is_equal = a->n_ids < first->n_ids ? !is_end && first->ids[a->n_ids] == id : is_end;
        }
        if (is_end) break;
        a->ids[a->n_ids++] = id;
        if (a->n_ids == n_predict) break;
        TRY(decode(r, id, err));
    }
    if (is_equal) {
        result->n_equal = a->n_ids;
        return TMX_OK;
    }
    TRY(tmx_session_rewind(r->session, 0, n_prompt + result->n_equal, err));
    for (int32_t k = result->n_equal; k + 1 < r->n_first_logits; k++) {
        TRY(decode(r, first->ids[k], err));
        compare_logits(r, k + 1, result);
    }
    return TMX_OK;
}

/* Keeps the answer's text and scores it. */
static tmx_status judge(runner *r, const prompt *p, const answer *a, eval_result *result, tmx_error *err)
{
    TRY(greedy_text(r->p->model, a->ids, a->n_ids, &r->text, err));
    size_t n_kept = r->text.n_bytes < MAX_KEPT_ANSWER ? r->text.n_bytes : MAX_KEPT_ANSWER;
    while (n_kept > 0 && n_kept < r->text.n_bytes && (r->text.data[n_kept] & 0xc0) == 0x80) n_kept--;
    result->answer = strndup(r->text.data, n_kept);
    if (result->answer == NULL) return fault_memory(err, "the text of an answer");
    char *text = r->text.data;
    if (p->is_first_line) {
        text += strspn(text, " \n\r\t");
        text[strcspn(text, "\n")] = '\0';
    }
    return score_answer(p->metric, text, p->sample->answers, p->sample->n_answers, &result->score, err);
}

static tmx_status run_task(runner *r, const prompt *p, int32_t plan, eval_result *result, tmx_error *err)
{
    const int32_t n_predict = p->sample->n_predict;
    TRY(plan == 0 ? answer_first(r, n_predict, err) : answer_next(r, p->n_ids, n_predict, result, err));
    const answer *a = plan == 0 ? &r->first : &r->own;
    result->n_answer = a->n_ids;
    if (plan == 0) {
        result->is_top_first = 1;
        result->n_equal = a->n_ids;
        result->n_forced = result->n_top_forced = r->n_first_logits - 1;
    }
    return judge(r, p, a, result, err);
}

/* -log of the probability of an id, in f64. */
static double surprise(const float *logits, int32_t n, int32_t id)
{
    const double top = (double)logits[greedy_token(logits, n)];
    double sum = exp((double)logits[0] - top);
    for (int32_t i = 1; i < n; i++) sum += exp((double)logits[i] - top);
    return log(sum) + top - (double)logits[id];
}

static tmx_status run_text(runner *r, const int32_t *next, eval_result *result, tmx_error *err)
{
    double sum = 0;
    for (int32_t i = 0; i < EVAL_N_SCORED; i++) {
        if (i > 0) TRY(decode(r, next[i - 1], err));
        sum += surprise(r->logits, r->n_vocab, next[i]);
    }
    result->score = sum / EVAL_N_SCORED;
    return TMX_OK;
}

/* The last layer computes single rows. */
static double density_of(const runner *r)
{
    const int32_t n = tmx_model_info_get(r->p->model)->n_layers, n_layers = n > 1 ? n - 1 : n;
    double sum = 0;
    for (int32_t i = 0; i < n_layers; i++) sum += tmx_session_layer_density(r->session, i);
    return sum / n_layers;
}

static tmx_status run_plan(runner *r, const prompt *p, int32_t plan, eval_result *result, tmx_error *err)
{
    tmx_timings timings;
    tmx_session_reset(r->session);
    TRY(tmx_session_set_plan(r->session, r->p->plans[plan].plan, err));
    TRY(tmx_prefill(r->session, &(tmx_prompt){ .tokens = p->ids, .n_tokens = p->n_ids, .logits = r->logits }, 1, err));
    tmx_session_timings(r->session, &timings);
    result->prefill_ms = timings.prefill_ms;
    result->attention_ms = timings.attention_ms;
    result->density = density_of(r);
    return p->sample != NULL ? run_task(r, p, plan, result, err) : run_text(r, p->ids + p->n_ids, result, err);
}

/* ---------------------------------------------------------------- all samples */

static void results_free(eval_result *results, int32_t n_plans)
{
    for (int32_t i = 0; results != NULL && i < n_plans; i++) free(results[i].answer);
    free(results);
}

static tmx_status run_plans(runner *r, const prompt *p, eval_sample *sample, tmx_error *err)
{
    eval_result *results = calloc((size_t)r->p->n_plans, sizeof *results);
    if (results == NULL) return fault_memory(err, "the results of a sample");
    tmx_status status = TMX_OK;
    for (int32_t i = 0; i < r->p->n_plans && status == TMX_OK; i++) status = run_plan(r, p, i, &results[i], err);
    if (status != TMX_OK) {
        results_free(results, r->p->n_plans);
        return status;
    }
    *sample = (eval_sample){ .is_done = true, .prompt_hash = hash_prompt(p), .n_tokens = p->n_ids, .results = results };
    return TMX_OK;
}

static tmx_status run_prompt(runner *r, const prompt *p, tmx_error *err)
{
    const eval_cell *cell = &r->p->cells[r->cell];
    eval_sample *sample = &r->run->samples[r->cell][r->index];
    if (sample->is_done) {
        if (sample->prompt_hash == hash_prompt(p)) return TMX_OK;
        return fault(err, TMX_E_FORMAT, "%.72s: sample %d of %s at length %d had another prompt", r->p->journal, r->index,
                     cell->name, cell->length);
    }
    const double begin_ms = elapsed_ms(r);
    TRY(run_plans(r, p, sample, err));
    r->cell_ms[r->cell] += elapsed_ms(r) - begin_ms;
    r->cell_done[r->cell]++;
    r->run->n_done++;
    return r->journal != NULL ? journal_add(r->journal, r->run, r->cell, r->index, err) : TMX_OK;
}

/* Touches weights, workspace and threads, so that the first sample is not slower than the others. */
static tmx_status warm_up(runner *r, const prompt *p, tmx_error *err)
{
    const int32_t n = p->n_ids < N_WARM_UP ? p->n_ids : N_WARM_UP;
    return tmx_prefill(r->session, &(tmx_prompt){ .tokens = p->ids, .n_tokens = n }, 1, err);
}

static tmx_status run_samples(runner *r, tmx_error *err)
{
    bool is_warm = false;
    int32_t n_most = 0;
    for (int32_t c = 0; c < r->p->n_cells; c++) {
        if (r->p->cells[c].n_samples > n_most) n_most = r->p->cells[c].n_samples;
    }
    for (r->index = 0; r->index < n_most; r->index++) {
        for (r->cell = 0; r->cell < r->p->n_cells; r->cell++) {
            const eval_cell *cell = &r->p->cells[r->cell];
            if (r->index >= cell->n_samples) continue;
            prompt p = { 0 };
            tmx_status status = make_prompt(r->p, cell, r->index, &p, err);
            const bool is_new = !r->run->samples[r->cell][r->index].is_done;
            if (status == TMX_OK && is_new && !is_warm) {
                status = warm_up(r, &p, err);
                is_warm = true;
            }
            if (status == TMX_OK) status = run_prompt(r, &p, err);
            prompt_free(&p);
            if (status == TMX_OK && !report(r)) status = fault(err, TMX_E_CANCELLED, "evaluation: stopped");
            if (status != TMX_OK) return status;
        }
    }
    return TMX_OK;
}

/* ---------------------------------------------------------------- the whole */

static tmx_status allocate(runner *r, tmx_error *err)
{
    const size_t n_cells = (size_t)r->p->n_cells, n_vocab = (size_t)r->n_vocab;
    r->run->samples = calloc(n_cells, sizeof(eval_sample *));
    r->cell_ms = calloc(n_cells, sizeof *r->cell_ms);
    r->cell_done = calloc(n_cells, sizeof *r->cell_done);
    r->logits = malloc(n_vocab * sizeof *r->logits);
    r->first_logits = malloc((EVAL_N_FORCED + 1) * n_vocab * sizeof *r->first_logits);
    r->first.ids = malloc(((size_t)r->max_predict + 1) * sizeof *r->first.ids);
    r->own.ids = malloc(((size_t)r->max_predict + 1) * sizeof *r->own.ids);
    bool is_whole = r->run->samples != NULL && r->cell_ms != NULL && r->cell_done != NULL && r->logits != NULL
                    && r->first_logits != NULL && r->first.ids != NULL && r->own.ids != NULL;
    for (int32_t c = 0; c < r->p->n_cells && is_whole; c++) {
        r->run->samples[c] = calloc((size_t)r->p->cells[c].n_samples + 1, sizeof **r->run->samples);
        is_whole = r->run->samples[c] != NULL;
        r->run->n_total += r->p->cells[c].n_samples;
    }
    return is_whole ? TMX_OK : fault_memory(err, "the samples of an evaluation");
}

static tmx_status prepare(runner *r, tmx_error *err)
{
    const eval_params *p = r->p;
    if (p->n_plans < 1 || p->n_plans > EVAL_MAX_PLANS) {
        return fault(err, TMX_E_ARG, "evaluation: %d plans, expected 1..%d", p->n_plans, EVAL_MAX_PLANS);
    }
    if (p->n_cells < 1) return fault(err, TMX_E_ARG, "evaluation: nothing to evaluate");
    for (int32_t c = 0; c < p->n_cells; c++) TRY(check_cell(r, &p->cells[c], err));
    TRY(allocate(r, err));
    tmx_session_params params = p->session;
    if (params.n_ctx == 0) params.n_ctx = r->n_ctx;
    if (r->n_ctx > params.n_ctx) {
        return fault(err, TMX_E_ARG, "evaluation: samples of %d tokens do not fit into a context of %d", r->n_ctx, params.n_ctx);
    }
    params.n_seqs = 1;
    params.progress = on_prefill;
    params.progress_ctx = r;
    TRY(tmx_session_create(&r->session, p->model, p->plans[0].plan, p->pool, &params, err));
    if (p->journal != NULL) TRY(journal_open(&r->journal, r->run, err));
    r->run->n_resumed = r->run->n_done;
    return TMX_OK;
}

tmx_status eval_run_all(eval_run *run, const eval_params *params, tmx_error *err)
{
    tmx_error own_err;
    if (err == NULL) err = &own_err;
    *run = (eval_run){ .params = params };
    runner r = { .p = params, .run = run, .n_vocab = tmx_model_info_get(params->model)->n_vocab };
    clock_gettime(CLOCK_MONOTONIC, &r.start);
    tmx_status status = prepare(&r, err);
    if (status == TMX_OK) status = run_samples(&r, err);
    if (status == TMX_E_CANCELLED) {
        run->is_stopped = run->n_done < run->n_total;
        status = TMX_OK;
    }
    journal_close(r.journal);
    tmx_session_free(r.session);
    text_free(&r.text);
    free(r.logits);
    free(r.first_logits);
    free(r.first.ids);
    free(r.own.ids);
    free(r.cell_ms);
    free(r.cell_done);
    return status;
}

void eval_run_free(eval_run *run)
{
    const eval_params *p = run->params;
    for (int32_t c = 0; run->samples != NULL && c < p->n_cells; c++) {
        for (int32_t i = 0; run->samples[c] != NULL && i < p->cells[c].n_samples; i++) {
            results_free(run->samples[c][i].results, p->n_plans);
        }
        free(run->samples[c]);
    }
    free(run->samples);
    *run = (eval_run){ 0 };
}
