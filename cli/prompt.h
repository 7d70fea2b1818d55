/* prompt.h - where prompts come from.  In: -p, -f or --ids.  Out: bytes, then token ids that the model knows.
 * Every function returns an exit code and has complained when it is not 0. */
#ifndef TMX_CLI_PROMPT_H
#define TMX_CLI_PROMPT_H

#include "commands.h"
#include "tmx.h"

typedef struct prompt {
    const char *source;            /* for messages: a path, "standard input" or "-p" */
    char *text;                    /* [n_bytes] and a NUL; NULL for --ids */
    size_t n_bytes;
    int32_t *ids;
    size_t n_ids;
} prompt;

typedef struct prompt_list {
    prompt items[MAX_TEXTS];
    int32_t n;
} prompt_list;

/* Reads everything before the model is opened, so that a wrong path costs no time. */
int prompts_read(const run_options *o, prompt_list *list);
/* Text -> ids (or checks the ids that were read).  An empty prompt is refused. */
int prompts_tokenize(const run_options *o, const tmx_model *model, prompt_list *list);
void prompts_free(prompt_list *list);

/* One file by itself: its bytes, then its ids as plain text after the model's BOS.  Freed by prompt_free. */
int prompt_read(prompt *p, const char *path);
int prompt_tokenize_text(prompt *p, const tmx_model *model);
void prompt_free(prompt *p);

#endif
