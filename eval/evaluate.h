/* evaluate.h - plans side by side on the same samples.  In: a model, plans, cells (a task at a length, a file of samples, a
 * text), and how many samples of each.  Out: for every sample and plan the score, the prefill time and how far the plan
 * agrees with the first one.  A journal keeps what is finished.
 *
 * The first plan is what the others are compared with; it is dense unless the caller wants it otherwise.  Each sample is
 * answered greedily by every plan.  The first plan's answer also gives the tokens after which the others' predictions are
 * compared with its own (teacher forcing), up to EVAL_N_FORCED tokens.
 *
 * Samples run in the order: number 0 of every cell, number 1 of every cell, ..., so that a stopped run has seen all. */
#ifndef TMX_EVAL_EVALUATE_H
#define TMX_EVAL_EVALUATE_H

#include "data.h"
#include "task.h"

enum { EVAL_N_FORCED = 32, EVAL_N_SCORED = 128, EVAL_MAX_PLANS = 64 };

typedef struct eval_plan {
    const char *label;
    const tmx_plan *plan;
    double value;                  /* in a sweep: of the size that is swept */
} eval_plan;

/* Exactly one of kind, data and text is set. */
typedef struct eval_cell {
    const char *name;
    const task_kind *kind;
    const data_set *data;
    const int32_t *text;           /* [n_text] ids; sample i is tokens [i * length, (i + 1) * length) of it: all but the last
                                      EVAL_N_SCORED are prefilled, those are predicted one by one */
    int32_t n_text;
    int32_t length;                /* prompt and answer in tokens; 0 for data */
    int32_t n_samples;             /* of data and text: at most what they hold */
} eval_cell;

typedef struct eval_result {       /* of one plan on one sample */
    double score;                  /* 0 to 1; of a text: mean negative log probability of a token, natural log */
    double prefill_ms, attention_ms;       /* the second is part of the first */
    double density;                /* share of the causal pairs attended to, mean over all layers but the last */
    double kl_first, kl_forced;    /* KL(first plan || this one) of the first token; mean over the forced ones */
    int32_t is_top_first, n_top_forced, n_forced;      /* equal most probable token: first; how many of the forced ones */
    int32_t n_equal, n_answer;     /* tokens before the greedy answers part; of this plan's answer */
    char *answer;                  /* as text, cut; NULL for texts */
} eval_result;

typedef struct eval_sample {
    bool is_done;
    uint64_t prompt_hash;
    int32_t n_tokens;              /* of the prompt */
    eval_result *results;          /* [n_plans] */
} eval_sample;

typedef struct eval_progress {
    const eval_cell *cell;
    int32_t index, n_done, n_total;        /* of the sample at work; samples finished, in all */
    double elapsed_ms, left_ms;    /* of this run; the estimate of what is left */
} eval_progress;

typedef struct eval_params {
    const tmx_model *model;
    tmx_pool *pool;
    tmx_session_params session;    /* n_ctx 0 = what the cells need; progress and n_seqs are set inside */
    const eval_plan *plans;
    int32_t n_plans;
    const eval_cell *cells;
    int32_t n_cells;
    uint64_t seed;
    bool is_chat;                  /* prompts as chat turns */
    const char *journal;           /* path; NULL = none */
    bool (*progress)(void *ctx, const eval_progress *p);       /* called often; false = stop */
    void *progress_ctx;
} eval_params;

typedef struct eval_run {
    const eval_params *params;     /* borrowed */
    eval_sample **samples;         /* [n_cells][n_samples of the cell] */
    int32_t n_done, n_total, n_resumed;
    bool is_stopped;               /* progress said so: not all samples are done */
} eval_run;

/* Runs everything.  *run is to be freed in any case; what is_done in it is whole, also after a failure.  Stopped by
 * progress is success with is_stopped.
 * TMX_E_ARG     bad params; a length too small for its task; a prompt that does not fit the context
 * TMX_E_FORMAT  a journal that is none, or of other settings;  TMX_E_IO, TMX_E_MEMORY, and what the library refuses */
tmx_status eval_run_all(eval_run *run, const eval_params *params, tmx_error *err);
void eval_run_free(eval_run *run);

#endif
