/* session.h - what prefill and decode share whatever computes: positions, the plan, the clocks.  In: a model, a plan, a
 * pool.  Out: a tmx_session whose loops take no memory.  One thread at a time. */
#ifndef TMX_RUN_SESSION_H
#define TMX_RUN_SESSION_H

#include "base/clock.h"
#include "model/model.h"
#include "plan/plan.h"
#include "tmx.h"

typedef struct backend backend;    /* backend.h */

struct tmx_session {
    const tmx_model *model;
    tmx_pool *pool;
    tmx_plan *plan;
    tmx_session_params params;     /* defaults filled in; there is memory for chunks of n_chunk rows */
    uint32_t dynamic_kinds;        /* there is memory for plans with these (plan_dynamic_kinds) */
    int32_t asked_chunk;           /* rows of a chunk, unless a plan needs more */
    int32_t n_chunk;               /* rows of a chunk under this plan */
    const backend *backend;
    void *state;                   /* the backend's: cpu_run.h */
    int32_t *n_past;               /* [n_seqs] */
    struct cold_rows *cold;        /* [n_seqs], reuse.h */
    struct segment *segments;      /* [n_seqs]: of the chunk at work, chunk.h */
    tmx_timings timings;           /* attention_ms and rest_ms are filled when asked for */
    double *layer_attention_ms;    /* [n_layers], prefill */
    struct head_search *search;    /* of a search for MInference's heads (search_heads.h), else NULL */
    struct { int32_t layer, head, n; double *pairs; } watch;       /* tmx_session_watch; pairs NULL: nothing is watched */
    double *layer_pairs;           /* [n_layers][2]: pairs that prefill attended to, causal ones there were; per head */
};

/* Rows [q_begin, q_end) of a layer attended to n_pairs pairs a head. */
void session_count_pairs(tmx_session *s, int32_t layer, int32_t q_begin, int32_t q_end, double n_pairs);
/* The same for rows that attended by a static pattern. */
void session_count_static(tmx_session *s, int32_t layer, const tmx_pattern *pattern, int32_t n_prompt, int32_t q_begin, int32_t q_end);
bool logits_are_finite(const float *logits, int32_t n);

#endif
