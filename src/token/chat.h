/* chat.h - a conversation in the model's own format.  In: the chat template of the file, as text to recognise; it is
 * never executed.  Out: control tokens from the format, everything else as plain text, so that nothing a user writes
 * can open or close a turn.  {X} is the control token X; "..." is the text of a turn.
 *
 *                    user's turn                                         assistant's turn
 *   chatml           {<|im_start|>}user\n...{<|im_end|>}\n               {<|im_start|>}assistant\n...{<|im_end|>}\n
 *   llama3           {<|start_header_id|>}user{<|end_header_id|>}\n\n...{<|eot_id|>}         likewise, assistant
 *   gemma            {<start_of_turn>}user\n...{<end_of_turn>}\n         {<start_of_turn>}model\n...{<end_of_turn>}\n
 *   phi3             {<|user|>}...{<|end|>}                              {<|assistant|>}...{<|end|>}
 *   phi4             {<|im_start|>}user{<|im_sep|>}...{<|im_end|>}       likewise, assistant
 *   mistral-v1       " [INST] ... [/INST]", all of it text               " ..."{</s>}
 *   mistral-v3       {[INST]}" ..."{[/INST]}                             " ..."{</s>}
 *   mistral-tekken   {[INST]}...{[/INST]}                                ...{</s>}
 *
 * - A system text has a turn like the user's; in gemma and mistral it stands before the text of the first user's turn
 *   (mistral-v3, mistral-tekken: of the last one), with an empty line between.
 * - White space around a text is dropped where the published template does so: llama3 and gemma everywhere, mistral-v3
 *   in the assistant's turns; not around the begun text of the last turn.
 * - phi3: its marks swallow the white space behind them, so the template's line ends and what a text begins with
 *   are never seen by the model.
 * - The space that mistral-v1 and mistral-v3 write is the one a SentencePiece vocabulary puts before a text by itself:
 *   it comes once.  No space stands before an assistant's text that is empty.
 * - BOS comes first, once, if the model asks for it (add_bos_token) or the template names it.
 * - A gemma3 file without a template that has gemma's control tokens counts as gemma.
 *
 * The closing mark of an assistant's turn ends an answer, whatever the file says about it. */
#ifndef TMX_TOKEN_CHAT_H
#define TMX_TOKEN_CHAT_H

#include "token/vocab.h"

/* Recognises the format and finds its control tokens in v->specials: sets v->chat, or v->chat_refusal.  A file without
 * a known template still is a usable vocabulary, so only a template of a wrong type is a failure. */
tmx_status chat_recognise(vocab *v, const tmx_file *file, tmx_error *err);

#endif
