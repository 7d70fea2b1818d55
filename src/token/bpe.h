/* bpe.h - byte-level BPE.  In: the bytes of one word.  Out: its token ids.
 *
 * The algorithm is the published one: start from one token per byte; as long as some neighbours can merge, take the
 * pair of the lowest rank and merge all its occurrences from left to right.  Bytes in vocabularies and merges are
 * spelled with 256 printable characters (GPT-2's alphabet); that spelling is undone once, at creation.
 *
 * A byte no token stands for (SmolLM2 lacks 21, such as 0x04 or 0xff) is replaced by U+FFFD. */
#ifndef TMX_TOKEN_BPE_H
#define TMX_TOKEN_BPE_H

#include "gguf/gguf.h"
#include "token/word_index.h"

/* Undoes GPT-2's spelling; out holds n_name bytes.  False if a character is not of that alphabet. */
bool bpe_decode_spelling(const char *name, size_t n_name, char *out, size_t *n_out);

typedef struct bpe bpe;

/* Borrows tokens until freed.  Of tokens with equal bytes the lowest id is used; of equal merges the first.
 * TMX_E_FORMAT names the merge that is malformed or needs a token that does not exist; TMX_E_UNSUPPORTED names a byte
 * that can be spelled neither by itself nor as U+FFFD; TMX_E_MEMORY. */
tmx_status bpe_create(bpe **merger, const vocab_token *tokens, int32_t n_tokens, const gguf_array *merges,
                      bool ignores_merges, tmx_error *err);
void bpe_free(bpe *merger);

/* Memory of long words, kept from word to word: 24 bytes per byte of the longest.  Starts zeroed. */
typedef struct bpe_scratch {
    int32_t *links;                /* [6][n_links] */
    size_t n_links;
    int32_t *first;                /* [n_merges] */
    uint64_t *levels[4];           /* levels[0] owns the block */
} bpe_scratch;

/* Time is proportional to n_bytes.  TMX_E_MEMORY. */
tmx_status bpe_encode(const bpe *merger, bpe_scratch *scratch, const char *word, size_t n_bytes, id_sink *sink,
                      tmx_error *err);
void bpe_scratch_free(bpe_scratch *scratch);

#endif
