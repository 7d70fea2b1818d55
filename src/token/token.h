/* token.h - text <-> token ids.  In: the tokenizer keys of a model file.  Out: a vocabulary that encodes any bytes in
 * linear time (n log n for SentencePiece) and decodes ids to bytes.  Immutable after creation; encoding takes its own scratch.  Never reads
 * weights.  Byte-level BPE (tokenizer.ggml.model "gpt2") with the pre-tokenizers in pretokenize.c, and SentencePiece-style
 * BPE ("llama"). */
#ifndef TMX_TOKEN_TOKEN_H
#define TMX_TOKEN_TOKEN_H

#include "gguf/gguf.h"
#include "tmx.h"

typedef struct vocab vocab;

/* Everything it keeps is copied out of the file.  TMX_E_FORMAT names the key; TMX_E_UNSUPPORTED names the tokenizer
 * model or pre-tokenizer.
 *
 * What it decides where files differ:
 * - Of tokens with equal bytes the lowest id is used.  A merge that needs a token the vocabulary lacks is refused.
 * - Tokens of unknown type (2) count as control tokens; so do <|im_end|> and its like, whatever their type.  Control
 *   tokens never come out of merging, so plain text cannot make one.  User-defined tokens are found in any text.
 * - Without add_bos_token, llama-bpe models get their BOS token (if TMX_TOKEN_BOS is asked for), the others do not.
 * - A byte the vocabulary cannot spell becomes U+FFFD: then, and only then, decoding does not give the text back.
 * - qwen2 brings text to Unicode's composed form (NFC) before it cuts it, as published: decoding gives that form.
 * - A token that is not spelled in GPT-2's alphabet stands for its own spelling.
 * - No EOS is ever added: what follows a prompt is the answer.
 *
 * SentencePiece-style ("llama"):
 * - U+2581 in a text is a space, which decoding gives back.  add_space_prefix (true if absent) puts a space before a text
 *   and before what follows a control token, remove_extra_whitespaces (false if absent) drops spaces; only these two
 *   change a text.
 * - Unused tokens (type 5) are not made from text.  Bytes that are no UTF-8 become their byte tokens.
 * - BOS is added unless add_bos_token says no. */
tmx_status vocab_create(vocab **v, const tmx_file *file, tmx_error *err);
void vocab_free(vocab *v);

int32_t vocab_n_tokens(const vocab *v);
/* These are what the tmx_ functions of the same name call; same contracts. */
tmx_status vocab_tokenize(const vocab *v, const char *text, size_t n_bytes, uint32_t flags,
                          int32_t *ids, size_t cap, size_t *n_ids, tmx_error *err);
tmx_status vocab_chat_tokenize(const vocab *v, const tmx_chat *chat,
                               int32_t *ids, size_t cap, size_t *n_ids, tmx_error *err);
const char *vocab_chat_format(const vocab *v);
bool vocab_is_end(const vocab *v, int32_t id);
const char *vocab_token_bytes(const vocab *v, int32_t id, size_t *n_bytes);
const char *vocab_token_name(const vocab *v, int32_t id);
tmx_status vocab_detokenize(const vocab *v, tmx_detokenizer *d, int32_t id,
                            char *text, size_t size, size_t *n_written, tmx_error *err);

#endif
