/* answer.h - from the logits of a prompt to text: sample, decode, detokenise, stop.  In: a prefilled sequence.
 * Out: ids and text, shown on standard output as they come if asked.  Stop texts are found across token edges and never
 * shown. */
#ifndef TMX_CLI_ANSWER_H
#define TMX_CLI_ANSWER_H

#include "commands.h"
#include "tmx.h"

typedef struct answer {
    int32_t *ids;                  /* [n_ids]; an end token is not among them */
    int32_t n_ids, ids_cap;
    char *text;                    /* [n_bytes] and a NUL, a stop text cut off */
    size_t n_bytes, text_cap, n_shown;
    const char *stop;              /* why it ended: "end", "limit", "context", "stop text", "interrupted", "output" */
    double first_sample_ms;
} answer;

typedef struct answer_params {
    const run_options *options;
    const tmx_model *model;
    tmx_session *session;
    uint64_t seed;
    const int32_t *end_ids;        /* [n_end_ids] ids that are never chosen (--ignore-eos) */
    int32_t n_end_ids;
    bool is_shown;                 /* stream to standard output */
} answer_params;

/* Answers sequence seq, whose prompt is given for the repeat penalty.  logits [n_vocab] belong to the last prompt token
 * and are overwritten.  Fills *a (to be freed, also after a failure).  Ctrl-C and a broken standard output end an
 * answer early: a->stop tells. */
tmx_status answer_generate(const answer_params *p, int32_t seq, const int32_t *prompt_ids, size_t n_prompt,
                           float *logits, answer *a, tmx_error *err);
void answer_free(answer *a);

#endif
