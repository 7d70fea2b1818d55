/* backend.h - what a kind of memory must be able to do for run/: the steps of a chunk between which prefill.c walks the
 * layers, and one token of decoding.  A backend owns activations, KV cache and weights in its memory (session.state); the
 * session owns what is the same for all: params, plan, positions, timings.
 *
 * Steps work on the rows of a chunk in c->layer and may return before they are done (a device's queue); they run in the order
 * in which they were called.  A step never fails: what can go wrong on a device is told by catch_up and settle.  A row's bits
 * never depend on the rows beside it. */
#ifndef TMX_RUN_BACKEND_H
#define TMX_RUN_BACKEND_H

#include "ops/sample_rule.h"
#include "run/chunk.h"

typedef enum norm_step {           /* x -> normed, with the layer's weight */
    NORM_ATTENTION, NORM_FFN,
} norm_step;

typedef enum product_step {        /* which weight, from where, to where */
    PRODUCT_QKV,                   /* normed -> qkv */
    PRODUCT_LAST_KV,               /* normed -> qkv, which holds k and v only */
    PRODUCT_ATTN_OUTPUT,           /* heads  -> added to x, or to the branch where branches are normed */
    PRODUCT_GATE_UP,               /* normed -> gate_up */
    PRODUCT_DOWN,                  /* gated  -> the same */
} product_step;

/* What memory depends on, beside a session's params. */
typedef struct memory_case {
    const tmx_model_info *info;
    tmx_compute compute;           /* resolved, as isa is */
    tmx_isa isa;
    int32_t n_threads;
    const tmx_model *model;        /* NULL: not opened yet */
    bool is_taken_now;             /* a session is being made: refuse what does not fit */
    uint32_t dynamic_kinds;        /* plan_dynamic_kinds of every plan the session is to run */
} memory_case;

struct backend {
    uint32_t dynamic_kinds;        /* bit k: plans may have layers of the dynamic kind k */
    bool has_thresholds;           /* plans may tell XAttention's thresholds by head */
    bool has_estimate_rows;        /* plans may estimate chunk by chunk what is found at a prompt's end */
    /* Fills what p leaves to the backend (n_chunk, kv_type) and says what a session of p takes. */
    tmx_status (*plan_memory)(const memory_case *at, tmx_session_params *p, tmx_memory *memory, tmx_error *err);
    /* session.state for s->params, which plan_memory has filled; free takes what a failed create leaves. */
    tmx_status (*create)(tmx_session *s, const tmx_memory *memory, tmx_error *err);
    void (*free)(tmx_session *s);
    /* Makes room for a plan that will be the session's; NULL: any plan fits.  No prompt is at work. */
    tmx_status (*fit_plan)(tmx_session *s, const tmx_plan *plan, tmx_error *err);

    void (*embed)(chunk *c);                               /* tokens -> x, and RoPE's positions */
    void (*norm)(chunk *c, norm_step step);
    void (*product)(chunk *c, product_step step);
    void (*place_heads)(chunk *c);                         /* qkv -> q turned by RoPE; k turned and v -> KV cache */
    /* q -> heads, for the segments whose pattern in this layer is of pattern->kind. */
    void (*attend)(chunk *c, const tmx_pattern *pattern);
    void (*gate)(chunk *c);                                /* gate_up -> gated */
    void (*experts)(chunk *c);                             /* normed -> added to x, in the place of the last three; where there are any */
    void (*add_branch)(chunk *c, norm_step step);          /* the branch, normed, added to x; called where the shape has these norms */
    /* In the last layer, k and v in the cache: the last row of each prompt that ends in the chunk and wants logits, through
     * the rest of the layer, the final norm and the LM head. */
    void (*finish)(chunk *c, const tmx_prompt *prompts);

    /* After a layer of c: adds what is known to be done since the last call to *n_done, in tokens x layers. */
    tmx_status (*catch_up)(chunk *c, int64_t *n_done, tmx_error *err);
    /* Waits for everything; the logits are in the prompts' buffers then, and timings complete.  Also after a failure. */
    tmx_status (*settle)(tmx_session *s, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err);

    /* One token at s->n_past[seq], dense over the cache; arguments are checked. */
    tmx_status (*decode)(tmx_session *s, int32_t seq, int32_t token, float *logits, tmx_error *err);
    /* The same, and what the rule makes of the logits, which stay where they are; -1: they are not all finite.  NULL: the host
     * chooses from what decode gives. */
    tmx_status (*decode_next)(tmx_session *s, int32_t seq, int32_t token, const sample_rule *rule, int32_t *next, tmx_error *err);
};

extern const backend backend_cpu, backend_cuda;

/* By tmx_model_info.device. */
const backend *backend_of(const tmx_model_info *info);

#endif
