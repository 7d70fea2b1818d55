/* reuse.h - which rows of the KV cache a cold prefill would make again.  In: what prefill and rewind did to a sequence.
 * Out: tmx_session_n_reusable.
 *
 * K and V of a row depend on its token, its position, and on what the row and those before it saw in the layers below; this
 * in turn depends on the plan and, where the plan has a triangle layer, on the final length of the prompt.  Nothing else:
 * not on chunks, threads or other sequences. */
#ifndef TMX_RUN_REUSE_H
#define TMX_RUN_REUSE_H

#include "run/session.h"

/* Rows [0, n_rows) of a sequence have the bits that a prefill of n_prompt tokens gives them in an empty session. */
typedef struct cold_rows {
    int32_t n_rows, n_prompt;      /* 0 <= n_rows <= n_past */
} cold_rows;

/* The last n_tokens of the sequence, already counted in n_past, were prefilled in one call. */
void cold_rows_extend(tmx_session *s, int32_t seq, int32_t n_tokens);
/* The sequence now ends at n_past. */
void cold_rows_cut(tmx_session *s, int32_t seq, int32_t n_past);

#endif
