/* journal.h - the file that keeps finished samples: one JSON line of settings, then one for each sample, written whole as it
 * is finished.  A last line without its end was torn off by a crash: it is ignored and cut away.  Anything else that is
 * wrong is refused with its line number.  One process at a time holds a journal. */
#ifndef TMX_EVAL_JOURNAL_H
#define TMX_EVAL_JOURNAL_H

#include "evaluate.h"

typedef struct journal journal;

/* Creates the file, or reads what it holds into the samples of run (is_done, prompt_hash, results).  Samples that this run
 * does not ask for stay in the file. */
tmx_status journal_open(journal **j, eval_run *run, tmx_error *err);
tmx_status journal_add(journal *j, const eval_run *run, int32_t cell, int32_t index, tmx_error *err);
void journal_close(journal *j);                /* accepts NULL */

#endif
