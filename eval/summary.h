/* summary.h - a run as rows: what each plan scored on each cell, how it differs from the first plan, what it saved.  In: the
 * finished samples.  Out: numbers, no text. */
#ifndef TMX_EVAL_SUMMARY_H
#define TMX_EVAL_SUMMARY_H

#include "evaluate.h"
#include "stats.h"

typedef struct summary_row {
    const char *task;              /* NULL: the mean of all tasks of this length (0: of all lengths) */
    int32_t length, plan, n;       /* n samples finished */
    bool is_text;
    /* Of the first plan difference, range and gain are NaN: there is nothing to compare.  Tasks: score and difference to the first plan in points, 0 to 100.  Texts: perplexity, and its change in percent. */
    double score, difference;
    interval range;                /* 95 % interval of the difference */
    double prefill_ms, gain;       /* medians: of the time; of first plan's time / this one's on the same sample */
    double attention_ms, density;  /* median of its part in that; mean share of the causal pairs attended to, percent */
    double kl_first, kl_first_worst, kl_forced;        /* means over samples; the largest */
    double top_first, top_forced, same;    /* percent: first token; forced tokens; share of the answer before they part */
} summary_row;

typedef struct summary {
    summary_row *rows;             /* cell by cell, plan by plan; then the means */
    int32_t n;
} summary;

/* TMX_E_MEMORY.  A cell without a finished sample has no rows. */
tmx_status summary_make(summary *s, const eval_run *run, tmx_error *err);
void summary_free(summary *s);

#endif
