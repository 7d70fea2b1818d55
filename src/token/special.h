/* special.h - finds whole tokens written out in text: control tokens, user-defined tokens or both.  In: the vocabulary, any bytes.  Out: the leftmost match, the longest one there.  Linear in the text: at
 * most SPECIAL_MAX_BYTES steps are spent at a position. */
#ifndef TMX_TOKEN_SPECIAL_H
#define TMX_TOKEN_SPECIAL_H

#include "token/word_index.h"

enum { SPECIAL_USER = 1, SPECIAL_CONTROL = 2 };
enum { SPECIAL_MAX_BYTES = 256 };  /* longer ones exist only by id; they are never found in text */

typedef struct special_token {
    const char *name;              /* as it stands in text; borrowed from the vocabulary */
    int32_t n_bytes, id;
    bool is_user;
} special_token;

typedef struct special_set {
    special_token *tokens;         /* [n_tokens] by spelling; of equal ones the lowest id of each kind */
    int32_t n_tokens;
    uint8_t starts[256];           /* SPECIAL_USER, SPECIAL_CONTROL: kinds of the tokens that start with this byte */
} special_set;

/* TMX_E_MEMORY.  The set is freeable after a failure. */
tmx_status special_create(special_set *set, const vocab_token *tokens, int32_t n_tokens, tmx_error *err);
void special_free(special_set *set);

/* The first match of these kinds at or after *at: true, its place in *at.  False: none, *at is untouched. */
bool special_next(const special_set *set, const char *text, size_t n_bytes, unsigned kinds, size_t *at,
                  const special_token **match);
/* Id of the control token spelled so, or -1. */
int32_t special_find(const special_set *set, const char *name);

#endif
