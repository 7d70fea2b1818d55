/* main.c - tmx: finds the command, lets its table read the arguments, and turns what it returns into an exit code. */
#include "commands.h"
#include "report.h"
#include "signals.h"
#include "tmx.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const command *const commands[] = {
    &run_command, &plan_command, &probe_command, &eval_command, &bench_command, &inspect_command,
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

/* A file opened later must not land on a standard stream that the caller closed: the number is taken by something that
 * answers every read (or write) with an error. */
static bool fill_standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) >= 0) continue;
        if (open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd) return false;
    }
    return true;
}

static int dispatch(const command *c, int argc, char **argv)
{
    char why[512];
    union { run_options run; plan_options plan; probe_options probe; eval_options eval; bench_options bench; inspect_options inspect; } values;
    switch (options_parse(c, argc, argv, &values, why, sizeof why)) {
    case OPTIONS_WRONG: return complain(EXIT_USAGE, "%s", why);
    case OPTIONS_HELP: options_print_help(c, stdout); return 0;
    case OPTIONS_MAN: options_print_man(c, stdout); return 0;
    case OPTIONS_RUN: break;
    }
    if (c == &run_command) {
        if (!run_options_check(&values.run, why, sizeof why)) return complain(EXIT_USAGE, "%s", why);
        return run_main(&values.run);
    }
    if (c == &plan_command) {
        if (!plan_options_check(&values.plan, why, sizeof why)) return complain(EXIT_USAGE, "%s", why);
        return plan_main(&values.plan);
    }
    if (c == &probe_command) {
        if (!probe_options_check(&values.probe, why, sizeof why)) return complain(EXIT_USAGE, "%s", why);
        return probe_main(&values.probe);
    }
    if (c == &eval_command) {
        if (!eval_options_check(&values.eval, why, sizeof why)) return complain(EXIT_USAGE, "%s", why);
        return eval_main(&values.eval, argc, argv);
    }
    if (c == &bench_command) {
        if (!bench_options_check(&values.bench, why, sizeof why)) return complain(EXIT_USAGE, "%s", why);
        return bench_main(&values.bench);
    }
    if (!inspect_options_check(&values.inspect, why, sizeof why)) return complain(EXIT_USAGE, "%s", why);
    return inspect_main(&values.inspect);
}

static int start(int argc, char **argv)
{
    if (argc < 2) {
        options_print_overview(commands, N_COMMANDS, stderr);
        return EXIT_USAGE;
    }
    const char *word = argv[1];
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(word, commands[i]->name) == 0) return dispatch(commands[i], argc - 2, argv + 2);
    }
    if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
        options_print_overview(commands, N_COMMANDS, stdout);
        return 0;
    }
    if (strcmp(word, "--man") == 0) {
        options_print_overview_man(commands, N_COMMANDS, stdout);
        return 0;
    }
    if (strcmp(word, "--version") == 0) {
        printf("tmx %s (%s)\n", tmx_version(), tmx_isa_name(tmx_isa_best()));
        return 0;
    }
    const char *kind = word[0] == '-' ? "option" : "command";
    return complain(EXIT_USAGE, "unknown %s '%s'; 'tmx --help' lists the commands", kind, word);
}

int main(int argc, char **argv)
{
    if (!fill_standard_streams()) return EXIT_INPUT;
    signals_install();
    return finish_output(start(argc, argv));
}
