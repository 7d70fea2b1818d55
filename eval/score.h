/* score.h - how right an answer is, 0 to 1.  In: what the model wrote and the accepted answers.  An answer without a
 * word in it scores 0, whatever was expected.
 *
 * Match (RULER): the text is stripped, control characters become line ends, case does not count; an answer counts where
 * it occurs, also inside a longer word or number.  F1 and ROUGE-L: both texts lower-cased, punctuation and the articles
 * a, an, the removed, cut at white space; the best over the accepted answers.  ROUGE-L takes each text as one sequence of
 * words and gives F1 of the longest common subsequence.  Lower case is ASCII's. */
#ifndef TMX_EVAL_SCORE_H
#define TMX_EVAL_SCORE_H

#include "task.h"

/* answers [n_answers], n_answers >= 1.  TMX_E_MEMORY. */
tmx_status score_answer(task_metric metric, const char *text, char *const *answers, int32_t n_answers, double *score,
                        tmx_error *err);

const char *score_name(task_metric metric);        /* "match_all" "match_part" "f1" "rouge_l" */

#endif
