#include "signals.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t is_polite, n_interrupts, has_bar;
static atomic_flag is_leaving = ATOMIC_FLAG_INIT, is_said = ATOMIC_FLAG_INIT;

/* Only async-signal-safe calls; a write that fails has nobody left to be told. */
static void say(const char *text)
{
    if (has_bar && write(STDERR_FILENO, "\n", 1) < 0) return;
    if (write(STDERR_FILENO, text, strlen(text)) < 0) return;
}

int signals_say_interrupted(void)
{
    if (!atomic_flag_test_and_set(&is_said)) say("tmx: interrupted\n");
    return EXIT_INTERRUPTED;
}

static void on_interrupt(int number)
{
    (void)number;
    if (is_polite && n_interrupts == 0) {
        n_interrupts = 1;
        return;
    }
    _exit(signals_say_interrupted());
}

/* Weights and metadata are read through a mapping: reading past the new end of a file that shrank raises this, in
 * several threads at once.  One of them speaks; the others wait to be ended. */
static void on_bus_error(int number)
{
    (void)number;
    while (atomic_flag_test_and_set(&is_leaving)) pause();
    say("tmx: the model file was changed or truncated while in use\n");
    _exit(2);
}

static void handle(int number, void (*handler)(int))
{
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

void signals_install(void)
{
    struct sigaction before;
    sigaction(SIGINT, NULL, &before);
    if (before.sa_handler != SIG_IGN) handle(SIGINT, on_interrupt);    /* a shell's background job: not for us */
    handle(SIGPIPE, SIG_IGN);
    handle(SIGBUS, on_bus_error);
}

void signals_begin_polite(void) { is_polite = 1; }
void signals_end_polite(void) { is_polite = 0; }
void signals_forget(void) { n_interrupts = 0; }
bool signals_interrupted(void) { return n_interrupts != 0; }
void signals_set_bar(bool is_shown) { has_bar = is_shown; }
