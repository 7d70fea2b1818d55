/* pretokenize.h - cuts text into the words BPE works on.  In: any bytes.  Out: ranges that cover them all, in order.
 * The published patterns run in PCRE2 (Unicode 14 tables; JIT where the system allows it).  Bytes that are not UTF-8
 * never reach the pattern: a run of them is a word of its own. */
#ifndef TMX_TOKEN_PRETOKENIZE_H
#define TMX_TOKEN_PRETOKENIZE_H

#include "tmx.h"

enum { MAX_STAGES = 6 };

/* What tokenizer.ggml.pre stands for.  A new pre-tokenizer is a line in the table of pretokenize.c. */
typedef struct word_rule {
    const char *name;
    const char *patterns[MAX_STAGES];          /* one: takes any text, word by word; several: see word_cursor; NULL after */
    bool ignores_merges;           /* a word that is a token becomes that token, whatever the merges say */
    bool wants_nfc;                /* text is brought to NFC first, see nfc.h */
    bool adds_bos;                 /* when tokenizer.ggml.add_bos_token is absent */
} word_rule;

const word_rule *word_rule_find(const char *name, size_t n_bytes);     /* NULL if unknown */

/* Their names with commas between, in buf. */
const char *word_rule_names(char *buf, size_t size);

/* Immutable after creation; may be shared by threads. */
typedef struct pretokenizer pretokenizer;
/* use_jit false is for the test that both engines agree. */
tmx_status pretokenizer_create(pretokenizer **words, const word_rule *rule, bool use_jit, tmx_error *err);
void pretokenizer_free(pretokenizer *words);

/* A piece of text that a pattern cuts: what it matches and what lies between are pieces for the next pattern, and words
 * after the last. */
typedef struct word_stage {
    size_t begin, end, at;         /* [at, end) is still to be handed out */
    size_t match_begin, match_end; /* of the next match; end, end = there is none; match_end <= at = unknown */
} word_stage;

/* One reader of texts, one after the other; starts zeroed. */
typedef struct word_cursor {
    const pretokenizer *words;
    void *match;                   /* pcre2_match_data */
    void *context;                 /* pcre2_match_context: limits */
    const char *text;
    size_t n_bytes, at;
    size_t valid_end;              /* [at, valid_end) is UTF-8 */
    word_stage stages[MAX_STAGES]; /* if the rule has several patterns */
    int depth;                     /* of the stage that hands out next; -1 = none */
} word_cursor;

tmx_status word_cursor_open(word_cursor *c, const pretokenizer *words, tmx_error *err);
void word_cursor_close(word_cursor *c);                                /* also after a failed open */
/* text is borrowed until the last word. */
void word_cursor_set(word_cursor *c, const char *text, size_t n_bytes);
/* The next word, or *word NULL at the end.  TMX_E_MEMORY. */
tmx_status word_cursor_next(word_cursor *c, const char **word, size_t *n_bytes, tmx_error *err);

#endif
