/* progress.h - a bar on standard error while a prompt is prefilled.  In: the library's progress calls.  Out: one line,
 * redrawn at most ten times a second and erased at the end; nothing at all when standard error is no terminal. */
#ifndef TMX_CLI_PROGRESS_H
#define TMX_CLI_PROGRESS_H

#include "tmx.h"

typedef struct progress {
    bool is_shown;                 /* a terminal, and not --quiet */
    const char *label;             /* NULL between prefills: draw nothing */
    double start_ms, drawn_ms;
    int n_columns;                 /* printed on the line so far */
} progress;

double clock_ms(void);             /* monotonic */

void progress_init(progress *p, bool is_quiet);
void progress_begin(progress *p, const char *label);
void progress_clear(progress *p);  /* erases the line, until the next update: somebody else writes to the terminal */
void progress_end(progress *p);    /* erases the line for good */

/* For tmx_session_params; ctx is a progress.  false once Ctrl-C was pressed. */
bool progress_update(void *ctx, const tmx_progress *at);

#endif
