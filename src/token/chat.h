/* chat.h - one chat turn in the model's own format.  In: the chat template of the file, as text to recognise; it is
 * never executed.  Out: control tokens from the format, everything else as plain text, so that nothing a user writes
 * can open or close a turn.
 *
 *   chatml   <|im_start|>system\n SYSTEM <|im_end|>\n
 *            <|im_start|>user\n USER <|im_end|>\n
 *            <|im_start|>assistant\n BEGUN
 *   llama3   <|begin_of_text|>
 *            <|start_header_id|>system<|end_header_id|>\n\n SYSTEM <|eot_id|>   and likewise user and assistant
 *
 * (spaces and line ends only here, for reading).  Without a system text there is no system block.  llama3 drops white
 * space around SYSTEM and USER, as its templates do.  chatml gets a BOS token only if the model asks for one. */
#ifndef TMX_TOKEN_CHAT_H
#define TMX_TOKEN_CHAT_H

#include "token/vocab.h"

/* Recognises the format and finds its control tokens in v->specials: sets v->chat, or v->chat_refusal.  A file without
 * a known template still is a usable vocabulary, so only a template of a wrong type is a failure. */
tmx_status chat_recognise(vocab *v, const tmx_file *file, tmx_error *err);

#endif
