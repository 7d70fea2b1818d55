/* command_run.h - one call of `tmx run`: what was opened, and what each timed run over the prompts gave. */
#ifndef TMX_CLI_COMMAND_RUN_H
#define TMX_CLI_COMMAND_RUN_H

#include "answer.h"
#include "commands.h"
#include "progress.h"
#include "prompt.h"
#include "tmx.h"

typedef struct timed_run {
    const tmx_plan *plan;          /* borrowed */
    tmx_timings timings;
    double ttft_ms;                /* tokenise + prefill + first sample, of the whole batch */
    double *layer_attention_ms;    /* [n_layers] */
    double *layer_density;         /* [n_layers] */
    float *logits;                 /* [n_prompts][n_vocab], after the last prompt token */
    answer answers[MAX_TEXTS];     /* [n_prompts] */
} timed_run;

typedef struct runner {
    const run_options *options;
    prompt_list prompts;
    tmx_pool *pool;
    tmx_model *model;
    tmx_plan *plan, *dense;        /* dense only with --compare */
    tmx_session *session;
    progress progress;
    uint64_t seed;
    int32_t *end_ids, n_end_ids;   /* with --ignore-eos */
    double load_ms, tokenize_ms;
    timed_run runs[2];             /* dense, then the plan; or the plan alone */
    int32_t n_runs;
} runner;

static inline const timed_run *last_run(const runner *r) { return &r->runs[r->n_runs - 1]; }

/* conversation.c: tmx run -i, after model and session are open.  r->prompts holds the first turn or nothing.  Returns an
 * exit code. */
int conversation_hold(runner *r);

/* run_report.c */
void print_model(const runner *r);         /* --verbose, on standard error */
void print_summary(const runner *r);       /* on standard error */
void print_comparison(const runner *r);    /* on standard output */
void print_run_json(const runner *r);      /* on standard output */

#endif
