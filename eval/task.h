/* task.h - the tasks a model is measured on.  In: a kind, a model's tokenizer, a seed and a length in tokens.  Out: a
 * prompt as long as fits, what its answer must hold, and how that is scored.
 *
 * Sample `index` of a kind is the same on every machine, for every length asked for the same question in more or less
 * text.  The tasks follow the definitions of RULER (arXiv 2404.06654) and the key-value retrieval of arXiv 2507.21526;
 * the wording and all text are ours (word-lists.txt). */
#ifndef TMX_EVAL_TASK_H
#define TMX_EVAL_TASK_H

#include "tmx.h"

typedef enum task_metric {
    TASK_MATCH_ALL,                /* share of the answers that the text holds */
    TASK_MATCH_PART,               /* 1 if the text holds any answer */
    TASK_F1,                       /* best word overlap (F1) with any answer */
    TASK_ROUGE_L,                  /* best longest common subsequence of words (F1) with any answer */
} task_metric;

typedef struct task_sample {
    char *user, *assistant;        /* user turn; assistant turn begun, "" if none */
    char **answers;                /* [n_answers]; the model's answer begins with a space when assistant is not "" */
    int32_t n_answers, n_predict;
} task_sample;

typedef struct task_build task_build;          /* task_parts.h */

typedef struct task_kind {
    const char *name, *summary;
    task_metric metric;
    int32_t n_predict;             /* tokens an answer may take */
    tmx_status (*build)(const task_build *b, task_sample *sample, tmx_error *err);
    int32_t min_units, max_units;  /* of filler; max 0 = no limit */
    int32_t variant;               /* what tells kinds of one builder apart */
} task_kind;

int32_t task_count(void);
const task_kind *task_at(int32_t i);           /* NULL if out of range */
const task_kind *task_find(const char *name);  /* NULL if unknown */

/* Sample `index` of the kind with the longest filler that keeps the prompt within n_tokens tokens, in the model's chat
 * format if is_chat.  Depends on nothing but (kind, seed, index, n_tokens, is_chat, the model's tokenizer).
 * TMX_E_ARG      NULL, index < 0, or n_tokens too small for the task; the text names the least
 * TMX_E_MEMORY, or what the tokenizer refuses.  On failure *sample is untouched. */
tmx_status task_make(const task_kind *kind, const tmx_model *model, uint64_t seed, int32_t index, int32_t n_tokens,
                     bool is_chat, task_sample *sample, tmx_error *err);
void task_sample_free(task_sample *sample);    /* accepts NULL; leaves it empty */

/* The prompt's ids: the chat turn, or without chat the user text and, on a new line, the assistant text.  *ids is
 * freed by the caller.  TMX_E_MEMORY, or what the tokenizer refuses. */
tmx_status task_prompt_ids(const task_sample *sample, const tmx_model *model, bool is_chat, int32_t **ids,
                           int32_t *n_ids, tmx_error *err);

#endif
