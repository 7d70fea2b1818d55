/* chunk.h - a prompt's work cut into chunks of rows.  In: prompts.  Out: segments, one for each prompt in a chunk.  Which
 * rows share a chunk changes nothing. */
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
/* What the layer at work lets the segment's rows attend to. */
tmx_pattern chunk_pattern(const chunk *c, const segment *g);
/* The segment holds its prompt's last row. */
static inline bool segment_is_end(const segment *g) { return g->q_begin + g->n_rows == g->n_prompt; }

#endif
