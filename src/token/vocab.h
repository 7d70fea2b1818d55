/* vocab.h - the inside of a vocabulary, shared by the files of this room and by nobody else. */
#ifndef TMX_TOKEN_VOCAB_H
#define TMX_TOKEN_VOCAB_H

#include "token/bpe.h"
#include "token/nfc.h"
#include "token/pretokenize.h"
#include "token/special.h"
#include "token/spm.h"
#include "token/token.h"

typedef struct chat_format chat_format;
enum { CHAT_ROLES = 3, CHAT_MARKS = 3 };

struct vocab {
    vocab_token *tokens;           /* [n_tokens] */
    int32_t n_tokens;
    char *arena;                   /* what the tokens' name and bytes point into */
    bpe *merger;                   /* byte-level BPE, with the words it works on; both NULL if spm is not */
    pretokenizer *words;
    bool wants_nfc;                /* of the words' text */
    spm *spm;                      /* SentencePiece-style */
    bool adds_space, trims_spaces; /* spm: before a text; runs of spaces become one, those at the ends none */
    special_set specials;
    int32_t bos_id;                /* -1 = none */
    bool adds_bos;
    const chat_format *chat;       /* NULL = none we know; then chat_refusal says why */
    int32_t chat_ids[CHAT_ROLES][CHAT_MARKS];      /* -1 where the format has none */
    bool chat_has_bos;
    char chat_refusal[256];
};

/* One tokenize call: where ids go, and scratch that lives as long as the call. */
typedef struct encoder {
    const vocab *v;
    id_sink sink;
    bpe_scratch scratch;
    word_cursor cursor;
    nfc_text nfc;
    spm_scratch spm_scratch;
    char *plain;                   /* [plain_cap] spm: a text as its tokens spell it */
    size_t plain_cap;
    bool is_inside;                /* spm: text would go on, so it gets no space before it */
} encoder;

tmx_status encoder_begin(encoder *e, const vocab *v, int32_t *ids, size_t cap, tmx_error *err);
tmx_status encoder_add_text(encoder *e, const char *text, size_t n_bytes, bool with_control, tmx_error *err);
void encoder_add_control(encoder *e, int32_t id);
void encoder_end(encoder *e);

#endif
