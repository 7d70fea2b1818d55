/* gpu_model.h - what the checks of whole models on a GPU share: counting, sessions, logits, tokens, ids of a text.  Behind the
 * definitions that tiny_model.h asks for. */
#ifndef TMX_TESTS_GPU_MODEL_H
#define TMX_TESTS_GPU_MODEL_H

#include "tiny_model.h"
#include "tmx.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int n_passed, n_failed, n_skipped;

__attribute__((format(printf, 2, 3)))
static inline bool check(bool is_right, const char *format, ...)
{
    va_list args;
    *(is_right ? &n_passed : &n_failed) += 1;
    printf("%s: ", is_right ? "ok    " : "FAILED");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
    return is_right;
}

static inline void random_tokens(int32_t *tokens, int32_t n, uint64_t seed)
{
    for (int32_t i = 0; i < n; i++) tokens[i] = (int32_t)(tiny_random(&seed) % TINY_VOCAB);
}

/* A progress callback: false after *ctx steps. */
static inline bool stop_after(void *ctx, const tmx_progress *p)
{
    int *n_left = ctx;
    return p->n_done > 0 && p->n_done <= p->n_total && (*n_left)-- > 0;
}

static inline tmx_plan *make_plan(const tmx_model *model, const char *spec, int32_t n_sink, int32_t n_window, int32_t n_last)
{
    tmx_plan *plan = NULL;
    tmx_error err = { 0 };
    if (tmx_plan_parse(&plan, spec, tmx_model_info_get(model), &err) != TMX_OK
        || tmx_plan_set_sizes(plan, n_sink, n_window, n_last, &err) != TMX_OK) {
        check(false, "plan %s: %s", spec, err.text);
        exit(1);
    }
    return plan;
}

static inline tmx_session *open_session(const tmx_model *model, tmx_pool *pool, const tmx_plan *plan, const tmx_session_params *params)
{
    tmx_session *session = NULL;
    tmx_error err = { 0 };
    if (tmx_session_create(&session, model, plan, pool, params, &err) == TMX_OK) return session;
    check(false, "session: %s", err.text);
    exit(1);
}

static inline bool prefill(tmx_session *session, const int32_t *tokens, int32_t n, int32_t seq, float *logits)
{
    tmx_error err = { 0 };
    const tmx_prompt prompt = { .tokens = tokens, .n_tokens = n, .seq = seq, .logits = logits };
    return tmx_prefill(session, &prompt, 1, &err) == TMX_OK || check(false, "prefill: %s", err.text);
}

static inline void fresh_logits(const tmx_model *model, tmx_pool *pool, const tmx_plan *plan, int32_t n_chunk, const int32_t *tokens, int32_t n,
                                float *logits)
{
    const int32_t n_vocab = tmx_model_info_get(model)->n_vocab;
    for (int32_t i = 0; i < n_vocab; i++) logits[i] = NAN;
    tmx_session *session = open_session(model, pool, plan, &(tmx_session_params){ .n_chunk = n_chunk, .n_ctx = n });
    prefill(session, tokens, n, 0, logits);
    tmx_session_free(session);
}

static inline bool is_equal(const float *a, const float *b, int32_t n) { return memcmp(a, b, (size_t)n * sizeof *a) == 0; }

/* Relative to the largest of b. */
static inline double worst_difference(const float *a, const double *b, int32_t n)
{
    double worst = 0, largest = 0;
    for (int32_t i = 0; i < n; i++) {
        const double difference = fabs((double)a[i] - b[i]);
        if (!(difference <= worst)) worst = difference;         /* NaN never passes */
        largest = fmax(largest, fabs(b[i]));
    }
    return worst / largest;
}

/* Token ids of a text file; how many there are, n_most at most. */
static inline int32_t read_ids(const char *path, int32_t *ids, int32_t n_most)
{
    FILE *f = fopen(path, "r");
    int32_t n = 0;
    while (f != NULL && n < n_most && fscanf(f, "%d", &ids[n]) == 1) n++;
    if (f != NULL) fclose(f);
    return n;
}

#endif
