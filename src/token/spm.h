/* spm.h - SentencePiece-style BPE (tokenizer.ggml.model "llama").  In: text whose spaces are plain.  Out: token ids.
 *
 * The algorithm is the published one: start from the characters; as long as two neighbours together are a token, join
 * the pair whose token has the highest score, of equal ones the leftmost.  Characters that no token covers become one
 * byte token for each of their bytes (<0x00> .. <0xFF>), or a run of them the unknown token if the vocabulary has no
 * byte tokens.  In the file a space is spelled U+2581; that is undone once, at creation. */
#ifndef TMX_TOKEN_SPM_H
#define TMX_TOKEN_SPM_H

#include "token/word_index.h"

/* U+2581 -> space; out holds n_bytes (it may be `text` itself).  Returns the new length. */
size_t spm_plain_spaces(const char *text, size_t n_bytes, char *out);
/* The byte that "<0xNN>" names: exactly two hex digits.  -1: not such a name. */
int spm_byte_of(const char *name, size_t n_name);

typedef struct spm spm;

/* Borrows tokens until freed.  unknown_id -1 = none.  TMX_E_UNSUPPORTED: a byte has no token and there is no unknown
 * token either; TMX_E_MEMORY. */
tmx_status spm_create(spm **merger, const vocab_token *tokens, int32_t n_tokens, int32_t unknown_id, tmx_error *err);
void spm_free(spm *merger);

/* A pair of neighbours that may be joined. */
typedef struct spm_pair {
    uint32_t order;                /* of the score: the lower, the sooner */
    int32_t at, id;                /* where the left one begins; what the two become */
} spm_pair;

/* Memory kept from text to text: 12 bytes per byte of the longest stretch that tokens may span, and up to 24 more while
 * pairs wait.  Starts zeroed. */
typedef struct spm_scratch {
    int32_t *links;                /* [3][n_links] */
    size_t n_links;
    spm_pair *heap;                /* [heap_cap] */
    size_t n_heap, heap_cap;
} spm_scratch;

/* Bytes that are no UTF-8 are byte tokens (or unknown).  Time: n log n at worst, where nothing bounds what tokens may
 * span; n_bytes <= INT32_MAX.  TMX_E_MEMORY. */
tmx_status spm_encode(const spm *merger, spm_scratch *scratch, const char *text, size_t n_bytes, id_sink *sink,
                      tmx_error *err);
void spm_scratch_free(spm_scratch *scratch);

#endif
