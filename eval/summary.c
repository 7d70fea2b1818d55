#include "summary.h"

#include "fault.h"

#include <math.h>
#include <stdlib.h>

/* The finished samples of one or more cells. */
typedef struct picks {
    const eval_sample **samples;   /* [n_total of the run] */
    double *x;                     /* as many: numbers at work */
    int32_t n;
} picks;

static void pick_cell(picks *p, const eval_run *run, int32_t cell)
{
    for (int32_t i = 0; i < run->params->cells[cell].n_samples; i++) {
        const eval_sample *s = &run->samples[cell][i];
        if (s->is_done) p->samples[p->n++] = s;
    }
}

static double larger(double a, double b) { return a > b ? a : b; }

static void compare(const picks *p, int32_t plan, summary_row *row)
{
    int64_t n_forced = 0, n_top = 0;
    int32_t n_with_forced = 0, n_top_first = 0;
    for (int32_t i = 0; i < p->n; i++) {
        const eval_result *x = &p->samples[i]->results[plan], *first = p->samples[i]->results;
        const int32_t n_longest = x->n_answer > first->n_answer ? x->n_answer : first->n_answer;
        row->kl_first += x->kl_first / p->n;
        row->kl_first_worst = larger(row->kl_first_worst, x->kl_first);
        n_top_first += x->is_top_first;
        row->same += n_longest > 0 ? (double)x->n_equal / n_longest : 1;
        n_forced += x->n_forced;
        n_top += x->n_top_forced;
        row->kl_forced += x->kl_forced;
        n_with_forced += x->n_forced > 0;
    }
    row->top_first = 100.0 * n_top_first / p->n;
    row->same *= 100.0 / p->n;
    row->kl_forced = n_with_forced > 0 ? row->kl_forced / n_with_forced : 0;
    row->top_forced = n_forced > 0 ? 100.0 * (double)n_top / (double)n_forced : 100;
}

static void score_texts(const picks *p, int32_t plan, summary_row *row)
{
    for (int32_t i = 0; i < p->n; i++) p->x[i] = p->samples[i]->results[plan].score;
    row->score = exp(mean_of(p->x, p->n));
    for (int32_t i = 0; i < p->n; i++) p->x[i] -= p->samples[i]->results[0].score;
    const interval range = mean_interval(p->x, p->n);
    row->difference = 100 * expm1(mean_of(p->x, p->n));
    row->range = (interval){ 100 * expm1(range.low), 100 * expm1(range.high) };
}

static void score_tasks(const picks *p, int32_t plan, summary_row *row)
{
    for (int32_t i = 0; i < p->n; i++) p->x[i] = p->samples[i]->results[plan].score;
    row->score = 100 * mean_of(p->x, p->n);
    for (int32_t i = 0; i < p->n; i++) p->x[i] -= p->samples[i]->results[0].score;
    const interval range = paired_interval(p->x, p->n);
    row->difference = 100 * mean_of(p->x, p->n);
    row->range = (interval){ 100 * range.low, 100 * range.high };
    compare(p, plan, row);
}

static void add_rows(summary *s, const picks *p, int32_t n_plans, const summary_row *head)
{
    if (p->n == 0) return;
    for (int32_t plan = 0; plan < n_plans; plan++) {
        summary_row *row = &s->rows[s->n++];
        *row = *head;
        row->plan = plan;
        row->n = p->n;
        if (head->is_text) score_texts(p, plan, row);
        else score_tasks(p, plan, row);
        for (int32_t i = 0; i < p->n; i++) p->x[i] = p->samples[i]->results[plan].prefill_ms;
        row->prefill_ms = median_of(p->x, p->n);
        for (int32_t i = 0; i < p->n; i++) p->x[i] = p->samples[i]->results[plan].attention_ms;
        row->attention_ms = median_of(p->x, p->n);
        for (int32_t i = 0; i < p->n; i++) row->density += 100 * p->samples[i]->results[plan].density / p->n;
        for (int32_t i = 0; i < p->n; i++) {
            const eval_result *results = p->samples[i]->results;
            p->x[i] = results[plan].prefill_ms > 0 ? results[0].prefill_ms / results[plan].prefill_ms : 0;
        }
        row->gain = median_of(p->x, p->n);
        if (plan == 0) row->difference = row->range.low = row->range.high = row->gain = (double)NAN;
    }
}

/* The mean over all tasks of a length; 0 = over all there are.  Nothing if that is a single cell. */
static void add_mean(summary *s, picks *p, const eval_run *run, int32_t length)
{
    int32_t n_cells = 0;
    p->n = 0;
    for (int32_t c = 0; c < run->params->n_cells; c++) {
        const eval_cell *cell = &run->params->cells[c];
        if (cell->text != NULL || (length != 0 && cell->length != length)) continue;
        pick_cell(p, run, c);
        n_cells++;
    }
    if (n_cells > 1) add_rows(s, p, run->params->n_plans, &(summary_row){ .length = length });
}

static bool is_first_of_length(const eval_params *p, int32_t cell)
{
    for (int32_t c = 0; c < cell; c++) {
        if (p->cells[c].length == p->cells[cell].length) return false;
    }
    return true;
}

static bool has_one_length(const eval_params *p)
{
    for (int32_t c = 1; c < p->n_cells; c++) {
        if (p->cells[c].length != p->cells[0].length) return false;
    }
    return true;
}

tmx_status summary_make(summary *s, const eval_run *run, tmx_error *err)
{
    const eval_params *p = run->params;
    const size_t n = (size_t)run->n_total + 1;
    picks at = { .samples = malloc(n * sizeof(const eval_sample *)), .x = malloc(n * sizeof *at.x) };
    *s = (summary){ .rows = calloc((2 * (size_t)p->n_cells + 1) * (size_t)p->n_plans, sizeof *s->rows) };
    const bool is_whole = at.samples != NULL && at.x != NULL && s->rows != NULL;
    for (int32_t c = 0; c < p->n_cells && is_whole; c++) {
        const eval_cell *cell = &p->cells[c];
        at.n = 0;
        pick_cell(&at, run, c);
        add_rows(s, &at, p->n_plans, &(summary_row){ .task = cell->name, .length = cell->length, .is_text = cell->text != NULL });
    }
    for (int32_t c = 0; c < p->n_cells && is_whole; c++) {
        if (p->cells[c].length > 0 && is_first_of_length(p, c)) add_mean(s, &at, run, p->cells[c].length);
    }
    if (is_whole && !has_one_length(p)) add_mean(s, &at, run, 0);
    free(at.samples);
    free(at.x);
    if (is_whole) return TMX_OK;
    summary_free(s);
    return fault_memory(err, "the summary of an evaluation");
}

void summary_free(summary *s)
{
    free(s->rows);
    *s = (summary){ 0 };
}
