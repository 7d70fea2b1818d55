/* greedy.h - what greedy answers are made of.  In: logits, tokens.  Out: the next token, text. */
#ifndef TMX_EVAL_GREEDY_H
#define TMX_EVAL_GREEDY_H

#include "text.h"
#include "tmx.h"

/* The most probable token; ties: lowest id. */
int32_t greedy_token(const float *logits, int32_t n_vocab);

/* Tokens as whole text; takes the place of what `text` held.  TMX_E_MEMORY. */
tmx_status greedy_text(const tmx_model *model, const int32_t *ids, int32_t n_ids, text_buf *text, tmx_error *err);

#endif
