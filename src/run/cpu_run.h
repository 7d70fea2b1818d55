/* cpu_run.h - a session's part on the CPU: activations, KV cache, and the steps on them.  In: a chunk, or a single row.
 * Out: rows in the buffers below, K and V in the cache. */
#ifndef TMX_RUN_CPU_RUN_H
#define TMX_RUN_CPU_RUN_H

#include "kv/kv.h"
#include "run/chunk.h"

/* One chunk's activations.  "act" is the type the products read: bf16 or f32, by the compute mode.  R = n_chunk rows. */
typedef struct activations {
    float *x;                      /* [R][n_embd]                            residual stream */
    void *normed;                  /* [R][n_embd]                     act    what qkv and gate_up read */
    float *qkv;                    /* [R][(n_heads + 2 n_kv_heads) * head_dim] */
    void *q, *heads;               /* [R][n_heads * head_dim]         act    into and out of attention */
    float *gate_up;                /* [R][2 n_ff] */
    float *branch;                 /* [R][n_embd]: in gate_up's place, which is free when a branch ends */
    void *gated;                   /* [R][n_ff]                       act */
    float *cos, *sin;              /* [R][n_rot / 2] */
    float *window_cos, *window_sin;        /* the same for layers with a window; NULL where the model has none */
    float *scores;                 /* [R][n_experts]; of no size, as the next four, where there are no experts */
    expert_choice *chosen;         /* [R][n_experts_used] */
    int32_t *expert_rows;          /* [R]: where the expert at work stands in chosen */
    void *gathered;                /* [R][n_embd]                     act    what they read */
    float *expert_out;             /* [R][n_embd] */
    uint64_t *lists;               /* key lists of a dynamic layer at work; or what found_heads points to */
    minference_head *chosen_heads; /* [n_heads]: MInference's, of the layer at work */
    head_keys *found_heads;        /* [n_heads] */
    float *row;                    /* single-row work, see one_row.c */
    void *scratch;                 /* for matmul, matvec, attention: the largest of their needs */
} activations;

typedef struct cpu_run {
    const row_ops *rows;
    tmx_type act_type;
    const rope_table *rope, *rope_window;  /* NULL where no layer needs it */
    kv_cache kv;
    activations act;
    void *memory;                  /* the block behind act */
    size_t n_scratch_bytes;        /* of act.scratch */
    tmx_attention_seq *attention_seqs;     /* [n_seqs] */
} cpu_run;

/* Strides and types of this session's attention calls; the caller adds pattern, seqs and q's type. */
tmx_attention_params cpu_attention(const tmx_session *s, tmx_type q_type);

/* One row of an act-typed buffer of `width` elements a row. */
static inline void *act_row(const cpu_run *r, void *base, int32_t row, size_t width)
{
    return (char *)base + (size_t)row * width * type_bytes(r->act_type);
}

/* ---- chunk_rows.c: row steps of c->layer, on the pool.  Names say what is read and written, see activations. */

void cpu_embed(chunk *c);                              /* tokens -> x, cos, sin */
void cpu_norm_rows(chunk *c, const float *weight);     /* x -> normed */
void cpu_place_heads(chunk *c);                        /* qkv -> q, KV cache (last layer: kv -> KV cache) */
void cpu_gate(chunk *c);                               /* gate_up -> gated */
void cpu_experts(chunk *c);                            /* normed -> added to x; cpu_experts.c */
void cpu_add_branch(chunk *c, const float *weight);    /* branch -> added to x, normed */

/* The gate of the family: [n_ff], [n_ff] -> gated [n_ff] */
void cpu_gate_rows(chunk *c, int32_t n_rows);          /* the first rows of gate_up -> gated */
void cpu_gate_row(const tmx_session *s, const float *gate, const float *up, void *gated, tmx_type type);
/* RoPE's angles of a position -> row `row` of cos and sin, and of window_cos and window_sin */
void cpu_angles(const tmx_session *s, int32_t position, int32_t row);
/* One token's embedding -> x [n_embd] */
void cpu_embed_token(const tmx_session *s, int32_t token, float *x);

/* ---- one_row.c: one row in f32 straight from the file's blocks: every row of decoding, and in prefill the one row of the
 * last layer that a prompt's answer needs. */

/* Where a single row stands. */
typedef struct row_place {
    int32_t seq, position;
    bool is_prefill;               /* the layer's pattern applies; false: decoding, dense */
    const float *cos, *sin;        /* [n_rot / 2] of this position */
    const float *window_cos, *window_sin;
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
