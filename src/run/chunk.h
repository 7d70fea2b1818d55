/* chunk.h - a prompt's work cut into chunks of rows, and the steps between the products on such a chunk.  In: prompts.
 * Out: rows in the session's activation buffers, K and V in its cache.  Which rows share a chunk changes nothing. */
#ifndef TMX_RUN_CHUNK_H
#define TMX_RUN_CHUNK_H

#include "run/session.h"

/* Consecutive rows of a chunk that belong to one prompt. */
typedef struct segment {
    const int32_t *tokens;         /* [n_rows] */
    int32_t prompt, seq;
    int32_t row, n_rows;           /* rows [row, row + n_rows) of the chunk */
    int32_t q_begin, n_prompt;     /* position of the first row; final length of the sequence */
} segment;

/* Up to n_chunk rows, of one prompt or of several. */
typedef struct chunk {
    tmx_session *s;
    int32_t n_rows, n_segments;    /* segments lie in s->segments */
    int32_t layer;                 /* at work */
} chunk;

typedef struct prompt_cursor { int32_t prompt, at; } prompt_cursor;      /* next token: prompts[prompt].tokens[at] */

/* All that can be wrong with prompts; the session is unchanged. */
tmx_status prompts_check(const tmx_session *s, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err);
/* Fills the next chunk; false when all prompts are done. */
bool chunk_next(chunk *c, prompt_cursor *next, const tmx_prompt *prompts, int32_t n_prompts);
bool chunk_is_last_layer(const chunk *c);

/* Row steps of c->layer, on the pool.  Names say what is read and written, see activations in session.h. */
void chunk_embed(chunk *c);                            /* tokens -> x, cos, sin */
void chunk_norm(chunk *c, const float *weight);        /* x -> normed */
void chunk_place_heads(chunk *c);                      /* qkv -> q, KV cache (last layer: kv -> KV cache) */
void chunk_gate(chunk *c);                             /* gate_up -> gated */

/* One row of an act-typed buffer of `width` elements a row. */
static inline void *act_row(const tmx_session *s, void *base, int32_t row, size_t width)
{
    return (char *)base + (size_t)row * width * type_bytes(s->act_type);
}

#endif
