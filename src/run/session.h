/* session.h - what prefill and decode share whatever computes: positions, the plan, the clocks.  In: a model, a plan, a
 * pool.  Out: a tmx_session whose loops take no memory.  One thread at a time. */
#ifndef TMX_RUN_SESSION_H
#define TMX_RUN_SESSION_H

#include "model/model.h"
#include "plan/plan.h"
#include "tmx.h"

typedef struct backend backend;    /* backend.h */

struct tmx_session {
    const tmx_model *model;
    tmx_pool *pool;
    tmx_plan *plan;
    tmx_session_params params;     /* defaults filled in */
    const backend *backend;
    void *state;                   /* the backend's: cpu_run.h */
    int32_t *n_past;               /* [n_seqs] */
    struct cold_rows *cold;        /* [n_seqs], reuse.h */
    struct segment *segments;      /* [n_seqs]: of the chunk at work, chunk.h */
    tmx_timings timings;           /* attention_ms and rest_ms are filled when asked for */
    double *layer_attention_ms;    /* [n_layers], prefill */
};

double now_ms(void);
bool logits_are_finite(const float *logits, int32_t n);

#endif
