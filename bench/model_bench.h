/* model_bench.h - a model from end to end.  In: a model, plans, and tests: n_prompt tokens prefilled, then n_gen decoded, after
 * n_depth that are there already.  Out: for every test and plan the time of each repetition, the part attention had in it, and the
 * memory the process held at most.
 *
 * Tests run one after the other; of one test the plans alternate in each repetition, so that a drift of the machine hits all
 * alike.  Before a plan is timed its logits on a short prompt must be finite and the same bits in other chunks on another
 * number of threads; in every repetition the logits must be those of the warm-up.  A run that fails either is an error, not a time.
 *
 * What is timed: tmx_prefill with the logits of its last token, and tmx_decode.  Token ids are random and seeded: every
 * engine's caches and branches see text-like rows, never a row of zeros.  Choosing tokens is not timed. */
#ifndef TMX_BENCH_MODEL_BENCH_H
#define TMX_BENCH_MODEL_BENCH_H

#include "tmx.h"

enum { BENCH_MAX_PLANS = 64, BENCH_MAX_REPEATS = 1000 };

typedef struct bench_test {
    int32_t n_prompt, n_gen, n_depth;      /* not both of the first two 0 */
} bench_test;

typedef struct bench_result {
    bench_test test;
    int32_t plan;                  /* index into the plans */
    int64_t unix_time_s;           /* when its first repetition began; 0 = it never did */
    int32_t n_repeats;             /* finished; fewer than asked for after a stop */
    double *time_ms;               /* [n_repeats], prompt and generation together */
    double *ttft_ms;               /* [n_repeats], prompt alone; 0 without one */
    double *attention_ms;          /* [n_repeats], of the prompt's time */
    double *layer_attention_ms;    /* [n_layers], mean over the repetitions, of the prompt's time */
    uint64_t peak_bytes;           /* resident memory of the process, the mapped file included; 0 = unknown */
} bench_result;

typedef struct bench_progress {
    bench_test test;
    int32_t plan;
    bool is_check;                 /* nothing is timed yet */
    double share;                  /* of all repetitions of all tests, by tokens, 0..1 */
} bench_progress;

typedef struct bench_params {
    const tmx_model *model;
    tmx_pool *pool;
    tmx_session_params session;    /* n_ctx, n_seqs and progress are set inside */
    const tmx_plan *const *plans;  /* [n_plans] */
    int32_t n_plans;
    const bench_test *tests;       /* [n_tests] */
    int32_t n_tests;
    int32_t n_repeats;             /* 1..BENCH_MAX_REPEATS */
    bool is_cold;                  /* no warm-up: the first repetition counts, whatever it met */
    uint64_t seed;
    /* May be NULL.  progress is called often, also within a prefill; false = stop.  finished: a result stands and will not
     * change. */
    bool (*progress)(void *ctx, const bench_progress *p);
    void (*finished)(void *ctx, const bench_result *result);
    void *ctx;
} bench_params;

typedef struct bench_run {
    bench_result *results;         /* [n_results], in the order they ran */
    int32_t n_results;
    bool is_stopped;
} bench_run;

/* A test that only decodes runs with the first plan alone: decoding is dense under every plan.
 *
 * *run is to be freed in any case; after a failure or a stop it holds what finished.  Stopped by progress is TMX_OK with is_stopped.
 * TMX_E_ARG      bad params; a test longer than the model's context
 * TMX_E_NUMERIC  logits that are not finite, or not the same bits;  TMX_E_MEMORY, and what the library refuses */
tmx_status bench_model(bench_run *run, const bench_params *params, tmx_error *err);
void bench_run_free(bench_run *run);

/* Tokens that time_ms counts. */
static inline int32_t bench_test_tokens(const bench_test *t) { return t->n_prompt + t->n_gen; }

#endif
