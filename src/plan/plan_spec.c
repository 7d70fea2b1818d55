/* plan_spec.c - the plan as one argument of a command line.
 *
 *   spec   = method [":" layers] | "preset:" name | "mix:" item {"," item} | path of a plan file
 *   item   = method "=" layers | "rest" "=" method            the rest is dense unless named
 *   method = "dense" | "streaming" | "triangle" | dynamic ["(" param {"," param} ")"] | "minference(" path ")"
 *   param  = name "=" number | "thresholds=" path             the path without "," and ")"
 *   layers = range {"," range}, range = number ["-" number]   (plan_parse_layers) */
#include "base/mem.h"
#include "base/status.h"
#include "plan/plan_parts.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct spec_cursor {
    const char *spec, *at;
    const tmx_model_info *info;
    tmx_plan *plan;
    bool *is_set;                  /* [n_layers] */
    uint32_t kinds;                /* bit of each kind that was named */
} spec_cursor;

__attribute__((format(printf, 3, 4)))
static tmx_status refuse_spec(const spec_cursor *c, tmx_error *err, const char *format, ...)
{
    char reason[144];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    return refuse(err, TMX_E_ARG, "plan '%.48s', character %td: %s", c->spec, c->at - c->spec + 1, reason);
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static size_t word_length(const char *at) { return strspn(at, "abcdefghijklmnopqrstuvwxyz_0123456789"); }

static tmx_status parse_mark(spec_cursor *c, char mark, tmx_error *err)
{
    if (*c->at != mark) return refuse_spec(c, err, "expected '%c'", mark);
    c->at++;
    return TMX_OK;
}

/* digits ["." digits], at most 15 of them: both parts are exact in a double, so the quotient is the nearest one. */
static tmx_status parse_number(spec_cursor *c, const char *name, double *number, tmx_error *err)
{
    double value = 0, power = 1;
    int n_digits = 0;
    const char *at = c->at;
    if (!is_digit(*at)) return refuse_spec(c, err, "%s: expected a number such as 8 or 0.95", name);
    for (bool is_fraction = false; is_digit(*at) || (*at == '.' && !is_fraction && is_digit(at[1])); at++) {
        if (*at == '.') {
            is_fraction = true;
            continue;
        }
        if (++n_digits > 15) return refuse_spec(c, err, "%s: a number of more than 15 digits", name);
        value = value * 10 + (*at - '0');
        if (is_fraction) power *= 10;
    }
    c->at = at;
    *number = value / power;
    return TMX_OK;
}

/* A path of n characters, to a file that holds the method's table of heads. */
static tmx_status parse_path(spec_cursor *c, const method *m, size_t n, tmx_error *err)
{
    char *copy = mem_alloc(n + 1, 1);
    if (copy == NULL) return refuse(err, TMX_E_MEMORY, "plan: no memory for a path");
    memcpy(copy, c->at, n);
    const tmx_status status = head_table_read_file(m->table, c->plan, copy, c->info, err);
    mem_free(copy);
    c->at += n;
    return status;
}

static bool is_table(const method *m, const char *name, size_t n)
{
    return m->table != NULL && !m->table->is_alone && strlen(m->table->field) == n && memcmp(name, m->table->field, n) == 0;
}

/* thresholds=FILE; its bit in `named` is the one behind those of the parameters. */
static tmx_status parse_table(spec_cursor *c, const method *m, uint32_t *named, tmx_error *err)
{
    if (*named >> m->n_params & 1) return refuse_spec(c, err, "%s is named twice", m->table->field);
    *named |= 1u << m->n_params;
    c->at += strlen(m->table->field);
    TRY(parse_mark(c, '=', err));
    const size_t n = strcspn(c->at, ",)");
    if (n == 0) return refuse_spec(c, err, "%s: expected a file", m->table->field);
    return parse_path(c, m, n, err);
}

static tmx_status parse_param(spec_cursor *c, const method *m, uint32_t *named, tmx_error *err)
{
    const char *name = c->at;
    const size_t n = word_length(name);
    if (is_table(m, name, n)) return parse_table(c, m, named, err);
    for (int32_t i = 0; i < m->n_params; i++) {
        const method_param *param = &m->params[i];
        double value = 0;
        if (strlen(param->name) != n || memcmp(name, param->name, n) != 0) continue;
        if (*named >> i & 1) return refuse_spec(c, err, "%s is named twice", param->name);
        *named |= 1u << i;
        c->at += n;
        TRY(parse_mark(c, '=', err));
        const char *start = c->at;
        TRY(parse_number(c, param->name, &value, err));
        if (method_set(c->plan, param, value)) return TMX_OK;
        c->at = start;
        return refuse_spec(c, err, "%s: expected a whole number", param->name);
    }
    char known[64] = "";
    for (int32_t i = 0; i < m->n_params; i++) {
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i == 0 ? "" : ", ", m->params[i].name);
    }
    if (m->table != NULL && !m->table->is_alone) {
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, ", %s", m->table->field);
    }
    if (n == 0) return refuse_spec(c, err, "expected one of %s", known);
    return refuse_spec(c, err, "%.*s: no parameter of %s, expected one of %s", (int)(n < 24 ? n : 24), name, tmx_pattern_name(m->kind), known);
}

/* "(FILE)": up to the bracket, and no name with "=". */
static tmx_status parse_file(spec_cursor *c, const method *m, tmx_error *err)
{
    const char *path = ++c->at;
    const size_t n = strcspn(path, ")");
    if (n == 0 || path[n] == '\0') {
        if (path[n] == '\0') c->at += n;
        return refuse_spec(c, err, "expected a file and ')', or one of vertical, slash");
    }
    TRY(parse_path(c, m, n, err));
    c->at++;
    return TMX_OK;
}

/* Values are checked where they can be named: the method's own check. */
static tmx_status parse_method(spec_cursor *c, tmx_pattern_kind *kind, tmx_error *err)
{
    const size_t n = word_length(c->at);
    if (!kind_of_name(c->at, n, kind)) return refuse_spec(c, err, "expected " PLAN_KIND_NAMES);
    if (c->kinds >> *kind & 1) return refuse_spec(c, err, "%s is named twice", tmx_pattern_name(*kind));
    c->kinds |= 1u << *kind;
    c->at += n;
    const method *m = method_of(*kind);
    if (m == NULL || *c->at != '(') return TMX_OK;
    const bool is_file = m->table != NULL && m->table->is_alone && c->at[1 + word_length(c->at + 1)] != '=';
    if (is_file) return parse_file(c, m, err);
    uint32_t named = 0;
    do {
        c->at++;
        TRY(parse_param(c, m, &named, err));
    } while (*c->at == ',');
    TRY(parse_mark(c, ')', err));
    return m->check(c->plan, err);
}

static tmx_status set_kind(const spec_cursor *c, const bool *is_listed, tmx_pattern_kind kind, tmx_error *err)
{
    for (int32_t i = 0; i < c->plan->n_layers; i++) {
        if (!is_listed[i]) continue;
        if (plan_has_own_window(c->plan, i)) return plan_refuse_window(c->plan, i, err);
        c->plan->layers[i].kind = kind;
    }
    return TMX_OK;
}

/* The layers that were not named, but those with a window of the model's own. */
static void set_rest(spec_cursor *c, tmx_pattern_kind kind)
{
    for (int32_t i = 0; i < c->plan->n_layers; i++) {
        if (!c->is_set[i] && !plan_has_own_window(c->plan, i)) c->plan->layers[i].kind = kind;
    }
}

/* As many characters as look like a list; what they say is plan_parse_layers' matter.  A comma before a word ends it. */
static tmx_status parse_layers(spec_cursor *c, tmx_pattern_kind kind, tmx_error *err)
{
    size_t n = 0;
    while (is_digit(c->at[n]) || c->at[n] == '-' || (c->at[n] == ',' && (is_digit(c->at[n + 1]) || c->at[n + 1] == '-'))) n++;
    char *list = mem_alloc(n + 1, 1);
    bool *is_listed = mem_alloc((size_t)c->plan->n_layers, sizeof *is_listed);
    tmx_status status = TMX_OK;
    if (list == NULL || is_listed == NULL) status = refuse(err, TMX_E_MEMORY, "plan: no memory for %d flags", c->plan->n_layers);
    if (status == TMX_OK) {
        memcpy(list, c->at, n);
        status = plan_parse_layers(list, c->plan->n_layers, is_listed, err);
    }
    for (int32_t i = 0; i < c->plan->n_layers && status == TMX_OK; i++) {
        if (is_listed[i] && c->is_set[i]) status = refuse_spec(c, err, "layer %d is named twice", i);
        c->is_set[i] |= is_listed[i];
    }
    if (status == TMX_OK) status = set_kind(c, is_listed, kind, err);
    if (status == TMX_OK) c->at += n;
    mem_free(list);
    mem_free(is_listed);
    return status;
}

static tmx_status parse_mix(spec_cursor *c, tmx_error *err)
{
    tmx_pattern_kind kind, rest = TMX_PATTERN_DENSE;
    bool has_rest = false;
    do {
        c->at++;                   /* the ':' or ',' before an item */
        if (strncmp(c->at, "rest=", 5) == 0) {
            if (has_rest) return refuse_spec(c, err, "the rest is named twice");
            has_rest = true;
            c->at += 5;
            TRY(parse_method(c, &rest, err));
        } else {
            TRY(parse_method(c, &kind, err));
            TRY(parse_mark(c, '=', err));
            TRY(parse_layers(c, kind, err));
        }
    } while (*c->at == ',');
    if (*c->at != '\0') return refuse_spec(c, err, "expected ',' or the end");
    set_rest(c, rest);
    return TMX_OK;
}

static bool begins_with(const char *text, const char *word) { return strncmp(text, word, strlen(word)) == 0; }

/* The layer list that a one-method spec ends with is checked as a whole, so that its own messages tell the place. */
static tmx_status parse_spec(spec_cursor *c, const tmx_model_info *info, tmx_error *err)
{
    if (begins_with(c->spec, "mix:")) {
        c->at += 3;
        return parse_mix(c, err);
    }
    const char *list = NULL;
    tmx_pattern_kind kind = TMX_PATTERN_TRIANGLE;
    if (begins_with(c->spec, "preset:")) {
        TRY(preset_layers(&list, c->spec + 7, info, err));
        snprintf(c->plan->note, sizeof c->plan->note, "preset %s", c->spec + 7);
    } else {
        TRY(parse_method(c, &kind, err));
        if (*c->at == ':') list = c->at + 1;
        else if (*c->at != '\0') return refuse_spec(c, err, "expected ':' or the end");
    }
    if (list != NULL) {
        TRY(plan_parse_layers(list, c->plan->n_layers, c->is_set, err));
        return set_kind(c, c->is_set, kind, err);
    }
    set_rest(c, kind);
    return TMX_OK;
}

/* A method's name, alone or before what may follow it, "preset:" or "mix:". */
static bool is_spec(const char *spec)
{
    tmx_pattern_kind kind;
    if (begins_with(spec, "preset:") || begins_with(spec, "mix:")) return true;
    const size_t n = word_length(spec);
    if (!kind_of_name(spec, n, &kind)) return false;
    if (spec[n] == '(') return method_of(kind) != NULL;
    return spec[n] == '\0' || (spec[n] == ':' && kind != TMX_PATTERN_DENSE);
}

tmx_status plan_read_spec(tmx_plan **plan, const char *spec, const tmx_model_info *info, tmx_error *err)
{
    tmx_plan *p;
    TRY(plan_create_dense(&p, info->n_layers, err));
    p->model = model_tag_of(info);
    (void)plan_bind_windows(p, info, NULL);            /* all dense: never refused */
    spec_cursor c = { .spec = spec, .at = spec, .info = info, .plan = p, .is_set = mem_alloc((size_t)p->n_layers, sizeof *c.is_set) };
    tmx_status status;
    if (c.is_set == NULL) status = refuse(err, TMX_E_MEMORY, "plan: no memory for %d flags", p->n_layers);
    else status = parse_spec(&c, info, err);
    mem_free(c.is_set);
    if (status == TMX_OK) *plan = p;
    else tmx_plan_free(p);
    return status;
}

tmx_status tmx_plan_parse(tmx_plan **plan, const char *spec, const tmx_model_info *info, tmx_error *err)
{
    if (plan == NULL || spec == NULL || info == NULL || info->architecture == NULL) {
        return refuse(err, TMX_E_ARG, "plan: NULL where a plan, a spec or a model is expected");
    }
    return is_spec(spec) ? plan_read_spec(plan, spec, info, err) : plan_read_file(plan, spec, info, err);
}
