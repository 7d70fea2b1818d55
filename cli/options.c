#include "options.h"

#include "tmx.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- parsing */

/* True beyond 2^63 too: such a number is out of range, not misspelt. */
static bool is_integer_text(const char *text)
{
    const size_t sign = text[0] == '-';
    return text[sign] != '\0' && text[sign + strspn(text + sign, "0123456789")] == '\0';
}

bool parse_integer(const char *text, int64_t *value)
{
    if (!is_integer_text(text)) return false;
    errno = 0;
    const long long n = strtoll(text, NULL, 10);
    if (errno != 0) return false;
    *value = n;
    return true;
}

bool parse_number(const char *text, double *value)
{
    const size_t sign = text[0] == '-';
    if (strchr("0123456789.", text[sign]) == NULL || text[sign] == '\0') return false;
    if (text[strspn(text, "0123456789.eE+-")] != '\0') return false;
    char *end;
    const double x = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(x)) return false;
    *value = x;
    return true;
}

typedef struct parser {
    const command *command;
    char *base;                    /* the struct being filled */
    bool is_given[MAX_OPTIONS];
    char *why;
    size_t size;
} parser;

__attribute__((format(printf, 2, 3)))
static bool wrong(const parser *p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(p->why, p->size, format, args);
    va_end(args);
    return false;
}

/* "-n/--predict" */
static const char *option_label(const option_spec *o, char label[64])
{
    if (o->letter != 0) snprintf(label, 64, "-%c/--%s", o->letter, o->name);
    else snprintf(label, 64, "--%s", o->name);
    return label;
}

static const option_spec *find_long(const command *c, const char *name, size_t n)
{
    for (int32_t i = 0; i < c->n_options; i++) {
        const option_spec *o = &c->options[i];
        if (strlen(o->name) == n && memcmp(o->name, name, n) == 0) return o;
        if (o->alias != NULL && strlen(o->alias) == n && memcmp(o->alias, name, n) == 0) return o;
    }
    return NULL;
}

/* The option an argument spells, or NULL; *value is what follows '=', or NULL. */
static const option_spec *find_option(const command *c, const char *argument, const char **value)
{
    *value = NULL;
    if (argument[0] != '-' || argument[1] == '\0') return NULL;
    if (argument[1] == '-') {
        const char *equals = strchr(argument, '=');
        if (equals != NULL) *value = equals + 1;
        return find_long(c, argument + 2, equals != NULL ? (size_t)(equals - argument) - 2 : strlen(argument) - 2);
    }
    if (argument[2] != '\0') return NULL;
    for (int32_t i = 0; i < c->n_options; i++) {
        if (c->options[i].letter == argument[1]) return &c->options[i];
    }
    return NULL;
}

static bool find_choice(const char *choices, const char *word, int32_t *index)
{
    const size_t n = strlen(word);
    *index = 0;
    for (const char *at = choices;; (*index)++) {
        const size_t length = strcspn(at, "|");
        if (length == n && memcmp(at, word, n) == 0) return true;
        if (at[length] == '\0') return false;
        at += length + 1;
    }
}

static bool store(parser *p, const option_spec *o, const char *text)
{
    char label[64];
    void *at = p->base + o->offset;
    int64_t n;
    double x;
    option_label(o, label);
    switch (o->kind) {
    case OPTION_SWITCH:
        *(bool *)at = true;
        return true;
    case OPTION_COUNT:
    case OPTION_INTEGER:
        if (!is_integer_text(text)) {
            return wrong(p, "option %s: '%s' is not a whole number (expected %.0f..%.0f)", label, text, o->min, o->max);
        }
        if (!parse_integer(text, &n) || (double)n < o->min || (double)n > o->max) {
            return wrong(p, "option %s: %s is out of range %.0f..%.0f", label, text, o->min, o->max);
        }
        if (o->kind == OPTION_COUNT) *(int32_t *)at = (int32_t)n;
        else *(int64_t *)at = n;
        return true;
    case OPTION_NUMBER:
        if (!parse_number(text, &x)) {
            return wrong(p, "option %s: '%s' is not a number (expected %g..%g)", label, text, o->min, o->max);
        }
        if (x < o->min || x > o->max) {
            return wrong(p, "option %s: %s is out of range %g..%g", label, text, o->min, o->max);
        }
        *(double *)at = x;
        return true;
    case OPTION_TEXT:
        *(const char **)at = text;
        return true;
    case OPTION_TEXTS: {
        text_list *list = at;
        if (list->n == MAX_TEXTS) return wrong(p, "option %s given more than %d times", label, MAX_TEXTS);
        list->items[list->n++] = text;
        return true;
    }
    case OPTION_SCALED:
    case OPTION_UNSCALED: {
        scaled_list *list = at;
        if (list->n == MAX_TEXTS) return wrong(p, "option %s given more than %d times", label, MAX_TEXTS);
        list->items[list->n] = text;
        list->scales[list->n++] = 1;
        return true;
    }
    case OPTION_CHOICE: {
        int32_t index;
        if (!find_choice(o->choices, text, &index)) {
            return wrong(p, "option %s: '%s' is not one of %s", label, text, o->choices);
        }
        *(int32_t *)at = index;
        return true;
    }
    }
    return false;
}

/* The second argument of a SCALED option; the list holds the first. */
static bool store_scale(parser *p, const option_spec *o, const char *text)
{
    char label[64];
    scaled_list *list = (scaled_list *)(void *)(p->base + o->offset);
    double x;
    option_label(o, label);
    if (text == NULL) return wrong(p, "option %s needs two values (%s)", label, o->argument);
    if (!parse_number(text, &x)) {
        return wrong(p, "option %s: '%s' is not a number (expected %g..%g, not 0)", label, text, o->min, o->max);
    }
    if (x < o->min || x > o->max || x == 0) {
        return wrong(p, "option %s: %s is out of range %g..%g, not 0", label, text, o->min, o->max);
    }
    list->scales[list->n - 1] = x;
    return true;
}

static bool is_repeatable(option_kind kind)
{
    return kind == OPTION_TEXTS || kind == OPTION_SCALED || kind == OPTION_UNSCALED;
}

static bool take(parser *p, const option_spec *o, const char *text)
{
    char label[64];
    const ptrdiff_t index = o - p->command->options;
    if (p->is_given[index] && !is_repeatable(o->kind)) return wrong(p, "option %s given twice", option_label(o, label));
    p->is_given[index] = true;
    return store(p, o, text);
}

static void set_defaults(const command *c, char *base)
{
    for (int32_t i = 0; i < c->n_options; i++) {
        const option_spec *o = &c->options[i];
        void *at = base + o->offset;
        switch (o->kind) {
        case OPTION_SWITCH: *(bool *)at = false; break;
        case OPTION_COUNT:
        case OPTION_CHOICE: *(int32_t *)at = (int32_t)o->initial; break;
        case OPTION_INTEGER: *(int64_t *)at = (int64_t)o->initial; break;
        case OPTION_NUMBER: *(double *)at = o->initial; break;
        case OPTION_TEXT: *(const char **)at = NULL; break;
        case OPTION_TEXTS: ((text_list *)at)->n = 0; break;
        case OPTION_SCALED:
        case OPTION_UNSCALED: ((scaled_list *)at)->n = 0; break;
        }
    }
}

static bool take_operand(parser *p, const char *text)
{
    const command *c = p->command;
    if (c->operand == NULL) return wrong(p, "unexpected argument '%s'; 'tmx %s --help' shows the usage", text, c->name);
    return take(p, find_long(c, c->operand, strlen(c->operand)), text);
}

options_result options_parse(const command *c, int argc, char *const *argv, void *values, char *why, size_t size)
{
    assert(c->n_options <= MAX_OPTIONS);
    parser p = { .command = c, .base = values, .why = why, .size = size };
    bool is_ended = false;
    set_defaults(c, values);
    for (int i = 0; i < argc; i++) {
        const char *argument = argv[i], *value, *ignored;
        if (is_ended || argument[0] != '-' || argument[1] == '\0') {
            if (!take_operand(&p, argument)) return OPTIONS_WRONG;
            continue;
        }
        if (strcmp(argument, "--") == 0) {
            is_ended = true;
            continue;
        }
        if (strcmp(argument, "-h") == 0 || strcmp(argument, "--help") == 0) return OPTIONS_HELP;
        if (strcmp(argument, "--man") == 0) return OPTIONS_MAN;
        const option_spec *o = find_option(c, argument, &value);
        char label[64];
        if (o == NULL) {
            wrong(&p, "unknown option '%s'; 'tmx %s --help' lists the options", argument, c->name);
            return OPTIONS_WRONG;
        }
        if (o->kind == OPTION_SWITCH && value != NULL) {
            wrong(&p, "option %s takes no value", option_label(o, label));
            return OPTIONS_WRONG;
        }
        if (o->kind != OPTION_SWITCH && value == NULL) {
            /* "-m -p text" is a forgotten value more often than a file "-p"; --model=-p still says the latter. */
            if (i + 1 == argc || find_option(c, argv[i + 1], &ignored) != NULL) {
                wrong(&p, "option %s needs a value (%s)", option_label(o, label), o->argument);
                return OPTIONS_WRONG;
            }
            value = argv[++i];
        }
        if (!take(&p, o, value)) return OPTIONS_WRONG;
        if (o->kind == OPTION_SCALED && !store_scale(&p, o, i + 1 < argc ? argv[++i] : NULL)) return OPTIONS_WRONG;
    }
    return OPTIONS_RUN;
}

/* ---------------------------------------------------------------- help */

enum { HELP_WIDTH = 88, HELP_INDENT = 30 };

static const struct { const char *code, *meaning; } exit_codes[] = {
    { "0", "success" },
    { "1", "wrong usage; the message names the option, its value and its range" },
    { "2", "bad input: a file cannot be read or written, breaks its format or is not supported; a plan says what cannot "
           "be; the prompt does not fit" },
    { "3", "out of memory, or a device failed" },
    { "130", "stopped by Ctrl-C" },
    { "141", "whoever read standard output has gone (nothing is printed about it)" },
};
enum { N_EXIT_CODES = sizeof exit_codes / sizeof exit_codes[0] };

/* The help text of an option with its range and default behind it. */
static const char *option_help(const option_spec *o, char *text, size_t size)
{
    char initial[64] = "";
    if (o->fallback != NULL) {
        snprintf(initial, sizeof initial, "%s", o->fallback);
    } else if (o->kind == OPTION_COUNT || o->kind == OPTION_INTEGER || o->kind == OPTION_NUMBER) {
        snprintf(initial, sizeof initial, "%.10g", o->initial);
    } else if (o->kind == OPTION_CHOICE) {
        const char *at = o->choices;
        for (int32_t i = 0; i < (int32_t)o->initial; i++) at += strcspn(at, "|") + 1;
        snprintf(initial, sizeof initial, "%.*s", (int)strcspn(at, "|"), at);
    }
    if (initial[0] != '\0') snprintf(text, size, "%s (default: %s)", o->help, initial);
    else snprintf(text, size, "%s", o->help);
    return text;
}

/* Prints words of text from `column` on, breaking lines at HELP_WIDTH and starting them at `indent`. */
static void print_wrapped(FILE *out, const char *text, int column, int indent)
{
    bool is_first = true;
    for (const char *at = text; *at != '\0';) {
        const int length = (int)strcspn(at, " \n");
        if (!is_first && column + 1 + length > HELP_WIDTH) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (!is_first) {
            fputc(' ', out);
            column++;
        }
        fprintf(out, "%.*s", length, at);
        column += length;
        is_first = false;
        at += length;
        if (*at == '\n') {
            fprintf(out, "\n%s%*s", at[1] != '\0' ? "\n" : "", indent, "");
            column = indent;
            is_first = true;
        }
        at += *at != '\0';
    }
    fputc('\n', out);
}

static void print_row(FILE *out, const char *left, const char *text)
{
    int column = fprintf(out, "  %s", left);
    if (column + 2 > HELP_INDENT) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", HELP_INDENT - column, "");
    print_wrapped(out, text, HELP_INDENT, HELP_INDENT);
}

static void print_option(FILE *out, const option_spec *o)
{
    char left[160], help[512];
    int n = o->letter != 0 ? snprintf(left, sizeof left, "-%c, --%s", o->letter, o->name)
                           : snprintf(left, sizeof left, "    --%s", o->name);
    if (o->alias != NULL) n += snprintf(left + n, sizeof left - (size_t)n, ", --%s", o->alias);
    if (o->argument != NULL) snprintf(left + n, sizeof left - (size_t)n, " %s", o->argument);
    print_row(out, left, option_help(o, help, sizeof help));
}

void options_print_help(const command *c, FILE *out)
{
    fprintf(out, "Usage: tmx %s %s\n\n", c->name, c->usage);
    print_wrapped(out, c->description, 0, 0);
    const char *group = "";
    for (int32_t i = 0; i < c->n_options; i++) {
        if (strcmp(group, c->options[i].group) != 0) fprintf(out, "\n%s\n", group = c->options[i].group);
        print_option(out, &c->options[i]);
    }
    print_row(out, "-h, --help", "show this text");
    fprintf(out, "\nExamples\n");
    for (int32_t i = 0; i < c->n_examples; i++) {
        fprintf(out, "  # %s\n  %s\n", c->examples[i].does, c->examples[i].line);
    }
}

void options_print_overview(const command *const *commands, int32_t n_commands, FILE *out)
{
    fprintf(out, "Usage: tmx COMMAND [options]\n\n"
            "trianglemix %s: long-context LLM prefill with Triangle attention.\n\nCommands\n", tmx_version());
    for (int32_t i = 0; i < n_commands; i++) print_row(out, commands[i]->name, commands[i]->summary);
    fprintf(out, "\nOptions\n");
    print_row(out, "-h, --help", "show this text; 'tmx COMMAND --help' shows the options of a command");
    print_row(out, "    --version", "show the version and the instruction set in use");
    fprintf(out, "\nExit codes\n");
    for (int i = 0; i < N_EXIT_CODES; i++) print_row(out, exit_codes[i].code, exit_codes[i].meaning);
}

/* ---------------------------------------------------------------- man pages */

/* Text in roff: hyphens stay ASCII (they are typed back into shells), no line starts a request. */
static void put_roff(FILE *out, const char *text)
{
    bool is_line_start = true;
    for (; *text != '\0'; text++) {
        if (is_line_start && (*text == '.' || *text == '\'')) fputs("\\&", out);
        if (*text == '-') fputs("\\-", out);
        else if (*text == '\\') fputs("\\e", out);
        else if (*text == '\n') fputs("\n.PP\n", out);
        else fputc(*text, out);
        is_line_start = *text == '\n';
    }
}

static void put_title(FILE *out, const char *name, const char *summary)
{
    fprintf(out, ".TH %s 1 \"\" \"trianglemix %s\" \"User Commands\"\n.SH NAME\n", name, tmx_version());
    put_roff(out, name);
    fputs(" \\- ", out);
    put_roff(out, summary);
    fputc('\n', out);
}

static void put_row(FILE *out, const char *left, const char *text)
{
    fputs(".TP\n", out);
    fputs(left, out);
    fputc('\n', out);
    put_roff(out, text);
    fputc('\n', out);
}

static void put_exit_codes(FILE *out)
{
    fputs(".SH EXIT STATUS\n", out);
    for (int i = 0; i < N_EXIT_CODES; i++) put_row(out, exit_codes[i].code, exit_codes[i].meaning);
}

static void put_option(FILE *out, const option_spec *o)
{
    char help[512];
    fputs(".TP\n", out);
    if (o->letter != 0) fprintf(out, "\\fB\\-%c\\fR, ", o->letter);
    fputs("\\fB\\-\\-", out);
    put_roff(out, o->name);
    if (o->alias != NULL) {
        fputs("\\fR, \\fB\\-\\-", out);
        put_roff(out, o->alias);
    }
    fputs("\\fR", out);
    if (o->argument != NULL) fprintf(out, " \\fI%s\\fR", o->argument);
    fputc('\n', out);
    put_roff(out, option_help(o, help, sizeof help));
    fputc('\n', out);
}

void options_print_man(const command *c, FILE *out)
{
    char name[32];
    snprintf(name, sizeof name, "tmx-%s", c->name);
    put_title(out, name, c->summary);
    fprintf(out, ".SH SYNOPSIS\n\\fBtmx %s\\fR ", c->name);
    put_roff(out, c->usage);
    fputs("\n.SH DESCRIPTION\n", out);
    put_roff(out, c->description);
    fputs("\n.SH OPTIONS\n", out);
    const char *group = "";
    for (int32_t i = 0; i < c->n_options; i++) {
        if (strcmp(group, c->options[i].group) != 0) fprintf(out, ".SS %s\n", group = c->options[i].group);
        put_option(out, &c->options[i]);
    }
    put_row(out, "\\fB\\-h\\fR, \\fB\\-\\-help\\fR", "show a summary of the options");
    put_exit_codes(out);
    fputs(".SH EXAMPLES\n", out);
    for (int32_t i = 0; i < c->n_examples; i++) {
        if (i > 0) fputs(".PP\n", out);
        put_roff(out, c->examples[i].does);
        fputs(":\n.PP\n.nf\n.RS\n", out);
        put_roff(out, c->examples[i].line);
        fputs("\n.RE\n.fi\n", out);
    }
    fputs(".SH SEE ALSO\n\\fBtmx\\fR(1)\n", out);
}

void options_print_overview_man(const command *const *commands, int32_t n_commands, FILE *out)
{
    put_title(out, "tmx", "long-context LLM prefill with Triangle attention");
    fputs(".SH SYNOPSIS\n\\fBtmx\\fR \\fICOMMAND\\fR [\\fIoptions\\fR]\n.br\n", out);
    fputs("\\fBtmx\\fR \\fB\\-\\-help\\fR | \\fB\\-\\-version\\fR\n.SH COMMANDS\n", out);
    for (int32_t i = 0; i < n_commands; i++) {
        char left[64];
        snprintf(left, sizeof left, "\\fBtmx\\-%s\\fR(1)", commands[i]->name);
        put_row(out, left, commands[i]->summary);
    }
    put_exit_codes(out);
}
