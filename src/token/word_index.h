/* word_index.h - bytes -> token id.  In: a vocabulary.  Out: a look-up that no choice of tokens can make slow: open
 * addressing over a hash with a seed of its own. */
#ifndef TMX_TOKEN_WORD_INDEX_H
#define TMX_TOKEN_WORD_INDEX_H

#include "tmx.h"

#include <stdbool.h>

typedef enum token_type {          /* ids of the file format */
    TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE,
} token_type;

typedef struct vocab_token {
    const char *name;              /* as the file spells it; a NUL follows */
    const char *bytes;             /* what it stands for */
    int32_t n_name, n_bytes;
    float score;                   /* SentencePiece: the higher, the sooner it is merged */
    uint8_t type;
    bool is_end;                   /* generation stops here */
    bool is_text;                  /* may come out of merging: has bytes and is neither control nor user-defined */
} vocab_token;

/* Where ids go: the first cap are stored, all are counted. */
typedef struct id_sink {
    int32_t *ids;
    size_t cap, n;
} id_sink;

static inline void sink_push(id_sink *sink, int32_t id)
{
    if (sink->n < sink->cap) sink->ids[sink->n] = id;
    sink->n++;
}

typedef struct word_slot {
    uint32_t tag;                  /* high half of the hash */
    int32_t id;                    /* -1 = empty */
} word_slot;

typedef struct word_index {
    const vocab_token *tokens;
    uint64_t seed;
    word_slot *slots;              /* [mask + 1] */
    uint64_t mask;
    int32_t max_bytes;             /* of the longest token in it */
} word_index;

/* Indexes the tokens that are text; of equal ones the lowest id.  Borrows tokens until freed.  TMX_E_MEMORY. */
tmx_status word_index_create(word_index *index, const vocab_token *tokens, int32_t n_tokens, uint64_t seed,
                             tmx_error *err);
void word_index_free(word_index *index);
int32_t word_index_find(const word_index *index, const char *bytes, size_t n_bytes);      /* -1: no such token */

static inline uint64_t hash_stir(uint64_t x)
{
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 32;
}

static inline uint64_t hash_slots_for(uint64_t n)
{
    uint64_t n_slots = 16;
    while (n_slots < n + n / 2) n_slots *= 2;
    return n_slots;
}

#endif
