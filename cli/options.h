/* options.h - the command line as a table.  In: one table per command and argv.  Out: a filled struct, or one line that
 * says what is wrong; the same table prints --help and the man page.  Never exits, never prints a complaint itself. */
#ifndef TMX_CLI_OPTIONS_H
#define TMX_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum option_kind {
    OPTION_SWITCH,                 /* bool, no value */
    OPTION_COUNT,                  /* int32_t in [min, max] */
    OPTION_INTEGER,                /* int64_t in [min, max] */
    OPTION_NUMBER,                 /* double in [min, max], finite */
    OPTION_TEXT,                   /* const char *, borrowed from argv; NULL when not given */
    OPTION_TEXTS,                  /* text_list; may be repeated */
    OPTION_SCALED,                 /* scaled_list: a text and a number in [min, max], not 0; may be repeated */
    OPTION_UNSCALED,               /* scaled_list: a text with the number 1; may be repeated */
    OPTION_CHOICE,                 /* int32_t: index of the word in `choices` */
} option_kind;

enum { MAX_TEXTS = 64 };
typedef struct text_list {
    const char *items[MAX_TEXTS];
    int32_t n;
} text_list;

typedef struct scaled_list {
    const char *items[MAX_TEXTS];
    double scales[MAX_TEXTS];
    int32_t n;
} scaled_list;

typedef struct option_spec {
    const char *group;             /* heading in --help; options of a group stand together */
    const char *name, *alias;      /* "predict" for --predict; alias may be NULL */
    const char *argument;          /* "FILE"; NULL for a switch; "FILE S" for SCALED, which takes two */
    option_kind kind;
    char letter;                   /* 'm' for -m; 0 = none */
    double min, max, initial;      /* the numeric kinds and CHOICE; exact in a double */
    const char *choices;           /* "auto|f32|bf16" */
    const char *fallback;          /* the default in words; NULL = `initial` itself, "" = show none */
    const char *help;
    size_t offset;                 /* of the member in the command's struct */
} option_spec;

typedef struct command_example { const char *does, *line; } command_example;

typedef struct command {
    const char *name;              /* "run"; "" for tmx itself */
    const char *usage;             /* what follows the name in the usage line */
    const char *summary;           /* one line, for the list of commands */
    const char *description;       /* paragraphs, separated by '\n' */
    const option_spec *options;
    int32_t n_options;
    const char *operand;           /* name of the option that a bare argument sets; NULL = bare arguments are refused */
    const command_example *examples;
    int32_t n_examples;
} command;

enum { MAX_OPTIONS = 64 };         /* per command */

typedef enum options_result { OPTIONS_RUN, OPTIONS_HELP, OPTIONS_MAN, OPTIONS_WRONG } options_result;

/* argv[0] is the first argument after the command's name.  On OPTIONS_WRONG `why` holds one line. */
options_result options_parse(const command *c, int argc, char *const *argv, void *values, char *why, size_t size);

/* Whole-string numbers: no white space, no '+', no hexadecimal, no nan or infinity. */
bool parse_integer(const char *text, int64_t *value);
bool parse_number(const char *text, double *value);

void options_print_help(const command *c, FILE *out);
void options_print_man(const command *c, FILE *out);
/* tmx itself: the commands and the exit codes. */
void options_print_overview(const command *const *commands, int32_t n_commands, FILE *out);
void options_print_overview_man(const command *const *commands, int32_t n_commands, FILE *out);

#endif
