#include "progress.h"

#include "signals.h"

#include <stdio.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { REDRAW_MS = 100, MAX_BAR = 40, LINE_BYTES = 160 };

double clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

void progress_init(progress *p, bool is_quiet)
{
    *p = (progress){ .is_shown = !is_quiet && isatty(STDERR_FILENO) };
}

/* Columns that can be written without wrapping: the last one makes some terminals move on. */
static int terminal_columns(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 79;
    return size.ws_col - 1;
}

/* Overwrites the line with text, and with blanks what was longer before: works on terminals that know no escapes. */
static void redraw(progress *p, const char *text, int n_text)
{
    const int n_blanks = p->n_columns > n_text ? p->n_columns - n_text : 0;
    fprintf(stderr, "\r%.*s%*s", n_text, text, n_blanks, "");
    fflush(stderr);
    p->n_columns = n_text;
    signals_set_bar(n_text > 0);
}

static void draw(progress *p, const tmx_progress *at, double now_ms)
{
    const double done = at->n_total > 0 ? (double)at->n_done / (double)at->n_total : 0;
    const double left_s = done > 0 ? (now_ms - p->start_ms) * (1 - done) / done / 1e3 : 0;
    const int columns = terminal_columns();
    char line[LINE_BYTES], bar[MAX_BAR + 1], tail[48];
    snprintf(tail, sizeof tail, "%3d%%  %.0f s left", (int)(done * 100), left_s);
    int n_bar = columns - snprintf(line, sizeof line, "%s []  %s", p->label, tail);
    int n;
    if (n_bar >= 4) {
        if (n_bar > MAX_BAR) n_bar = MAX_BAR;
        for (int i = 0; i < n_bar; i++) bar[i] = i < (int)(done * n_bar) ? '=' : ' ';
        bar[n_bar] = '\0';
        n = snprintf(line, sizeof line, "%s [%s]  %s", p->label, bar, tail);
    } else {
        n = snprintf(line, sizeof line, "%3d%%", (int)(done * 100));
    }
    if (n <= columns) redraw(p, line, n);
}

void progress_begin(progress *p, const char *label)
{
    p->label = label;
    p->start_ms = p->drawn_ms = clock_ms();
}

void progress_clear(progress *p)
{
    if (p->n_columns == 0) return;
    redraw(p, "", 0);
    fputc('\r', stderr);
}

void progress_end(progress *p)
{
    progress_clear(p);
    p->label = NULL;
}

bool progress_update(void *ctx, const tmx_progress *at)
{
    progress *p = ctx;
    const double now_ms = clock_ms();
    if (p->is_shown && p->label != NULL && now_ms - p->drawn_ms >= REDRAW_MS) {
        p->drawn_ms = now_ms;
        draw(p, at, now_ms);
    }
    return !signals_interrupted();
}
