/* probe_prompts.h - the samples of tmx probe.  In: a file of prompts and answers, or a kind of generated task.  Out: for each
 * index the prompt's token ids and the answer's first token.  Every complaint is made here. */
#ifndef TMX_CLI_PROBE_PROMPTS_H
#define TMX_CLI_PROBE_PROMPTS_H

#include "commands.h"
#include "eval/task.h"
#include "tmx.h"

typedef struct probe_sample {
    int32_t *ids;                  /* [n_ids], the prompt */
    int32_t n_ids, target;         /* first token of the answer */
} probe_sample;

typedef struct probe_prompts {
    const tmx_model *model;
    const task_kind *kind;         /* generated; NULL = from the file */
    bool is_chat;
    int64_t seed;
    probe_sample *samples;         /* [n_samples], of a file */
    int32_t n_samples;             /* there are; generated: INT32_MAX */
    int32_t n_tokens;              /* of a prompt, at most */
    char source[96];               /* for tmx_probe_settings */
} probe_prompts;

/* Each returns an exit code. */
int probe_prompts_read(probe_prompts *p, const char *path, int32_t n_tokens, const tmx_probe_sections *sections,
                       const tmx_model *model);
/* Refuses a prompt of n_tokens without a Middle section; `what` begins the complaint. */
int probe_prompts_check_length(const char *what, int32_t n_tokens, const tmx_probe_sections *sections);
int probe_prompts_generate(probe_prompts *p, const char *kind, int32_t n_tokens, int64_t seed, const tmx_model *model);
void probe_prompts_free(probe_prompts *p);

/* Sample i; ids are freed by probe_sample_free. */
int probe_prompts_get(const probe_prompts *p, int32_t i, probe_sample *sample);
void probe_sample_free(probe_sample *sample);

#endif
