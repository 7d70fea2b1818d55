/* signals.h - Ctrl-C, broken pipes and model files that shrink.  In: signals.  Out: one flag to poll.
 * The first SIGINT inside a polite region asks to stop; outside of one, and from the second on, it exits at once with
 * 130.  SIGPIPE is ignored, so that writing to a closed pipe fails with EPIPE and is seen where output is written. */
#ifndef TMX_CLI_SIGNALS_H
#define TMX_CLI_SIGNALS_H

#include <stdbool.h>

enum { EXIT_INTERRUPTED = 130 };

void signals_install(void);
void signals_begin_polite(void);   /* from here on somebody polls */
void signals_end_polite(void);
bool signals_interrupted(void);
void signals_forget(void);         /* the first SIGINT was obeyed; the next one is a first one again */

/* "tmx: interrupted", once, whoever comes first: the command that stopped or a further Ctrl-C.  Returns 130. */
int signals_say_interrupted(void);

/* Is a progress bar on the terminal's current line?  Exiting at once then leaves the line first. */
void signals_set_bar(bool is_shown);

#endif
