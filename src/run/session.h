/* session.h - what prefill and decode share: the KV cache, the activation buffers, the clocks.  In: a model, a plan, a
 * pool.  Out: a tmx_session whose loops take no memory.  One thread at a time. */
#ifndef TMX_RUN_SESSION_H
#define TMX_RUN_SESSION_H

#include "kv/kv.h"
#include "model/model.h"
#include "plan/plan.h"
#include "tmx.h"

/* One chunk's activations.  "act" is the type the products read: bf16 or f32, by the compute mode.  R = n_chunk rows. */
typedef struct activations {
    float *x;                      /* [R][n_embd]                            residual stream */
    void *normed;                  /* [R][n_embd]                     act    what qkv and gate_up read */
    float *qkv;                    /* [R][(n_heads + 2 n_kv_heads) * head_dim] */
    void *q, *heads;               /* [R][n_heads * head_dim]         act    into and out of attention */
    float *gate_up;                /* [R][2 n_ff] */
    void *gated;                   /* [R][n_ff]                       act */
    float *cos, *sin;              /* [R][n_rot / 2] */
    float *row;                    /* single-row work, see one_row.c */
    void *scratch;                 /* for matmul, matvec, attention: the largest of their needs */
} activations;

struct tmx_session {
    const tmx_model *model;
    tmx_pool *pool;
    tmx_plan *plan;
    const row_ops *rows;
    tmx_session_params params;     /* defaults filled in */
    tmx_type act_type;
    kv_cache kv;
    int32_t *n_past;               /* [n_seqs] */
    activations act;
    void *memory;                  /* the block behind act */
    size_t n_scratch_bytes;        /* of act.scratch */
    struct segment *segments;      /* [n_seqs]: of the chunk at work, chunk.h */
    tmx_attention_seq *attention_seqs;     /* [n_seqs] */
    tmx_timings timings;           /* attention_ms and rest_ms are filled when asked for */
    double *layer_attention_ms;    /* [n_layers], prefill */
};

double now_ms(void);
bool logits_are_finite(const float *logits, int32_t n);

/* Strides and types of this session's attention calls; the caller adds pattern, seqs and q's type. */
tmx_attention_params session_attention(const tmx_session *s, tmx_type q_type);

/* Where a single row stands.  The functions below take one row in f32 straight from the file's blocks: every row of
 * decoding, and in prefill the one row of the last layer that a prompt's answer needs. */
typedef struct row_place {
    int32_t seq, position;
    bool is_prefill;               /* the layer's pattern applies; false: decoding, dense */
    const float *cos, *sin;        /* [n_rot / 2] of this position */
} row_place;

/* K and V of the residual row x [n_embd], appended to the cache. */
void one_row_append(tmx_session *s, int32_t layer, const row_place *place, const float *x);
/* The layer itself on x [n_embd], updated; K and V of this position are in the cache. */
void one_row_layer(tmx_session *s, int32_t layer, const row_place *place, float *x);
/* Final norm and LM head; logits [n_vocab]. */
void one_row_logits(tmx_session *s, const float *x, float *logits);
float *one_row_residual(tmx_session *s);               /* [n_embd] for a caller that has no x of its own */
size_t one_row_floats(const tmx_model_info *info);     /* size of activations.row */

#endif
