#include "plan/plan_parts.h"

#include "base/mem.h"
#include "base/status.h"
#include "pattern/pattern.h"

#include <float.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- the object */

tmx_status plan_create_dense(tmx_plan **plan, int32_t n_layers, tmx_error *err)
{
    if (n_layers < 1) return refuse(err, TMX_E_ARG, "plan: %d layers, expected 1 or more", n_layers);
    tmx_plan *p = mem_alloc(1, sizeof *p);
    if (p != NULL) p->layers = mem_alloc((size_t)n_layers, sizeof *p->layers);
    if (p == NULL || p->layers == NULL) {
        mem_free(p);
        return refuse(err, TMX_E_MEMORY, "plan: no memory for %d layers", n_layers);
    }
    p->n_layers = n_layers;
    methods_set_defaults(p);
    for (int32_t i = 0; i < n_layers; i++) {
        p->layers[i] = (tmx_pattern){ .kind = TMX_PATTERN_DENSE, .n_sink = TMX_DEFAULT_SINK,
                                      .n_window = TMX_DEFAULT_WINDOW, .n_last = TMX_DEFAULT_LAST };
    }
    *plan = p;
    return TMX_OK;
}

tmx_status plan_copy(tmx_plan **copy, const tmx_plan *plan, tmx_error *err)
{
    tmx_plan *p;
    TRY(plan_create_dense(&p, plan->n_layers, err));
    tmx_pattern *layers = p->layers;
    *p = *plan;
    p->layers = layers;
    p->curve = NULL;
    p->heads = NULL;
    p->thresholds = NULL;
    memcpy(layers, plan->layers, (size_t)plan->n_layers * sizeof *layers);
    tmx_status status = tmx_plan_set_curve(p, plan->curve, plan->n_points, err);
    const size_t n = (size_t)plan->n_layers * (size_t)plan->n_heads;
    if (status == TMX_OK && plan->heads != NULL) {
        p->heads = mem_alloc(n, sizeof *p->heads);
        if (p->heads != NULL) memcpy(p->heads, plan->heads, n * sizeof *p->heads);
        else status = refuse(err, TMX_E_MEMORY, "plan: no memory for %zu heads", n);
    }
    if (status == TMX_OK && plan->thresholds != NULL) {
        p->thresholds = mem_alloc(n, sizeof *p->thresholds);
        if (p->thresholds != NULL) memcpy(p->thresholds, plan->thresholds, n * sizeof *p->thresholds);
        else status = refuse(err, TMX_E_MEMORY, "plan: no memory for %zu thresholds", n);
    }
    if (status != TMX_OK) tmx_plan_free(p);
    else *copy = p;
    return status;
}

tmx_status plan_refuse_window(const tmx_plan *plan, int32_t layer, tmx_error *err)
{
    return refuse(err, TMX_E_ARG, "plan: layer %d has a sliding window of the model's own, of %d tokens, which a plan cannot change",
                  layer, plan->n_own_window);
}

tmx_status plan_bind_windows(tmx_plan *plan, const tmx_model_info *info, tmx_error *err)
{
    plan->n_own_window = info->n_window;
    plan->own_period = info->window_period;
    for (int32_t i = 0; i < plan->n_layers; i++) {
        if (plan_has_own_window(plan, i) && plan->layers[i].kind != TMX_PATTERN_DENSE) return plan_refuse_window(plan, i, err);
    }
    return TMX_OK;
}

void tmx_plan_free(tmx_plan *plan)
{
    if (plan == NULL) return;
    mem_free(plan->layers);
    mem_free(plan->curve);
    mem_free(plan->heads);
    mem_free(plan->thresholds);
    mem_free(plan);
}

int32_t tmx_plan_n_layers(const tmx_plan *plan) { return plan != NULL ? plan->n_layers : 0; }

const tmx_pattern *tmx_plan_layer(const tmx_plan *plan, int32_t layer)
{
    return plan != NULL && layer >= 0 && layer < plan->n_layers ? &plan->layers[layer] : NULL;
}

int32_t tmx_plan_own_window(const tmx_plan *plan, int32_t layer)
{
    return tmx_plan_layer(plan, layer) != NULL && plan_has_own_window(plan, layer) ? plan->n_own_window : 0;
}

tmx_status tmx_plan_set_sizes(tmx_plan *plan, int32_t n_sink, int32_t n_window, int32_t n_last, tmx_error *err)
{
    if (plan == NULL) return refuse(err, TMX_E_ARG, "plan: NULL");
    tmx_pattern p = plan->layers[0];
    if (n_sink != -1) p.n_sink = n_sink;
    if (n_window != -1) p.n_window = n_window;
    if (n_last != -1) p.n_last = n_last;
    p.kind = TMX_PATTERN_TRIANGLE;                     /* the kind whose check reads all three */
    TRY(pattern_check(&p, err));
    for (int32_t i = 0; i < plan->n_layers; i++) {
        p.kind = plan->layers[i].kind;
        plan->layers[i] = p;
    }
    return TMX_OK;
}

const char *tmx_plan_note(const tmx_plan *plan) { return plan != NULL ? plan->note : ""; }

tmx_status tmx_plan_set_note(tmx_plan *plan, const char *note, tmx_error *err)
{
    if (plan == NULL || note == NULL) return refuse(err, TMX_E_ARG, "plan note: NULL");
    const size_t n = strlen(note);
    if (n >= sizeof plan->note) {
        return refuse(err, TMX_E_ARG, "plan note: %zu bytes, expected at most %zu", n, sizeof plan->note - 1);
    }
    if (!is_utf8(note)) return refuse(err, TMX_E_ARG, "plan note: not valid UTF-8");
    memmove(plan->note, note, n + 1);                  /* the caller may hand back tmx_plan_note() */
    return TMX_OK;
}

int32_t tmx_plan_min_tokens(const tmx_plan *plan) { return plan != NULL ? plan->min_tokens : 0; }

tmx_status tmx_plan_set_min_tokens(tmx_plan *plan, int32_t n, tmx_error *err)
{
    if (plan == NULL) return refuse(err, TMX_E_ARG, "plan: NULL");
    if (n < 0) return refuse(err, TMX_E_ARG, "plan min_tokens: %d, expected 0 or more", n);
    plan->min_tokens = n;
    return TMX_OK;
}

int32_t tmx_plan_estimate_rows(const tmx_plan *plan) { return plan != NULL ? plan_estimate_rows(plan) : 0; }

tmx_status tmx_plan_set_estimate_rows(tmx_plan *plan, int32_t n, tmx_error *err)
{
    enum { LEAST = 2 * KEY_BLOCK, MOST = 1 << 24 };
    if (plan == NULL) return refuse(err, TMX_E_ARG, "plan: NULL");
    if (n != 0 && (n < LEAST || n > MOST || n % KEY_BLOCK != 0)) {
        return refuse(err, TMX_E_ARG, "plan estimate_rows: %d, expected 0 or a multiple of %d from %d to %d", n, KEY_BLOCK, LEAST, MOST);
    }
    plan->estimate_rows = n;
    return TMX_OK;
}

const tmx_plan_point *tmx_plan_curve(const tmx_plan *plan, int32_t *n_points)
{
    if (n_points != NULL) *n_points = plan != NULL ? plan->n_points : 0;
    return plan != NULL ? plan->curve : NULL;
}

/* A comparison with NaN is false, so NaN never passes. */
static bool is_within(double value, double max) { return value >= 0 && value <= max; }

tmx_status tmx_plan_set_curve(tmx_plan *plan, const tmx_plan_point *points, int32_t n_points, tmx_error *err)
{
    if (plan == NULL || (points == NULL && n_points != 0)) return refuse(err, TMX_E_ARG, "plan curve: NULL");
    if (n_points < 0 || n_points > plan->n_layers + 1) {
        return refuse(err, TMX_E_ARG, "plan curve: %d points, expected 0..%d", n_points, plan->n_layers + 1);
    }
    for (int32_t i = 0, least = 0; i < n_points; i++) {
        const tmx_plan_point *p = &points[i];
        if (p->n_sparse < least || p->n_sparse > plan->n_layers) {
            return refuse(err, TMX_E_ARG, "plan curve[%d]: n_sparse %d, expected %d..%d", i, p->n_sparse, least,
                          plan->n_layers);
        }
        least = p->n_sparse + 1;
        if (is_within(p->kl, DBL_MAX) && is_within(p->top1, 1) && is_within(p->score, 100) && is_within(p->ttft_ms, DBL_MAX)) continue;
        return refuse(err, TMX_E_ARG, "plan curve[%d]: kl %g, top1 %g, score %g, ttft_ms %g, expected finite numbers from 0, "
                      "top1 up to 1, score up to 100", i, p->kl, p->top1, p->score, p->ttft_ms);
    }
    tmx_plan_point *copy = NULL;
    if (n_points > 0) {
        copy = mem_alloc((size_t)n_points, sizeof *copy);
        if (copy == NULL) return refuse(err, TMX_E_MEMORY, "plan curve: no memory for %d points", n_points);
        memcpy(copy, points, (size_t)n_points * sizeof *copy);
    }
    mem_free(plan->curve);
    plan->curve = copy;
    plan->n_points = n_points;
    return TMX_OK;
}

/* ---------------------------------------------------------------- layer lists */

typedef struct list_cursor { const char *list, *at; int32_t n_layers; } list_cursor;

__attribute__((format(printf, 3, 4)))
static tmx_status refuse_list(const list_cursor *c, tmx_error *err, const char *format, ...)
{
    char reason[128];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    return refuse(err, TMX_E_ARG, "layers '%.48s', character %td: %s", c->list, c->at - c->list + 1, reason);
}

static tmx_status refuse_found(const list_cursor *c, const char *expected, tmx_error *err)
{
    const unsigned char found = (unsigned char)*c->at;
    if (found == '\0') return refuse_list(c, err, "found the end, expected %s", expected);
    if (found < 0x20 || found >= 0x7f) return refuse_list(c, err, "found byte 0x%02x, expected %s", found, expected);
    return refuse_list(c, err, "found '%c', expected %s", found, expected);
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static tmx_status parse_layer(list_cursor *c, int32_t *layer, tmx_error *err)
{
    if (!is_digit(*c->at)) {
        char expected[48];
        snprintf(expected, sizeof expected, "a layer number 0..%d", c->n_layers - 1);
        return refuse_found(c, expected, err);
    }
    int64_t value = 0;
    int n_digits = 0;
    for (; is_digit(c->at[n_digits]); n_digits++) {
        if (value <= INT32_MAX) value = value * 10 + (c->at[n_digits] - '0');      /* stays too large once it is */
    }
    if (value >= c->n_layers) {
        const int n_shown = n_digits < 20 ? n_digits : 20;
        return refuse_list(c, err, "layer %.*s is out of range 0..%d", n_shown, c->at, c->n_layers - 1);
    }
    c->at += n_digits;
    *layer = (int32_t)value;
    return TMX_OK;
}

/* range {"," range}, range = layer ["-" layer] */
static tmx_status parse_list(list_cursor *c, bool *is_listed, tmx_error *err)
{
    for (;;) {
        const char *start = c->at;
        int32_t first = 0, last;
        TRY(parse_layer(c, &first, err));
        last = first;
        const bool is_range = *c->at == '-';
        if (is_range) {
            c->at++;
            TRY(parse_layer(c, &last, err));
        }
        const char *end = c->at;
        c->at = start;                                 /* what is wrong with a range is reported at its start */
        if (last < first) return refuse_list(c, err, "the range %d-%d is reversed", first, last);
        for (int32_t i = first; i <= last; i++) {
            if (is_listed[i]) return refuse_list(c, err, "layer %d is named twice", i);
            is_listed[i] = true;
        }
        c->at = end;
        if (*c->at == '\0') return TMX_OK;
        if (*c->at != ',') return refuse_found(c, is_range ? "',' or the end" : "',', '-' or the end", err);
        c->at++;
    }
}

tmx_status plan_parse_layers(const char *list, int32_t n_layers, bool *is_listed, tmx_error *err)
{
    if (n_layers < 1) return refuse(err, TMX_E_ARG, "layers '%.48s': the model has %d layers", list, n_layers);
    bool *found = mem_alloc((size_t)n_layers, sizeof *found);
    if (found == NULL) return refuse(err, TMX_E_MEMORY, "layers: no memory for %d flags", n_layers);
    list_cursor c = { .list = list, .at = list, .n_layers = n_layers };
    const tmx_status status = parse_list(&c, found, err);
    if (status == TMX_OK) memcpy(is_listed, found, (size_t)n_layers * sizeof *found);
    mem_free(found);
    return status;
}

/* ---------------------------------------------------------------- a plan in words */

typedef struct text_out { char *buf; size_t size, n; } text_out;

__attribute__((format(printf, 2, 3)))
static void put(text_out *out, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(out->buf + out->n, out->size - out->n, format, args);
    va_end(args);
    const size_t n_room = out->size - out->n - 1;
    if (n > 0) out->n += (size_t)n < n_room ? (size_t)n : n_room;
}

enum { OWN_WINDOW = -1 };          /* beside the pattern kinds */

static int kind_of(const tmx_plan *plan, int32_t layer)
{
    return plan_has_own_window(plan, layer) ? OWN_WINDOW : (int)plan->layers[layer].kind;
}

static void put_layers_of(text_out *out, const tmx_plan *plan, int kind)
{
    const char *before = out->n == 0 ? "" : ", ";
    bool is_any = false;
    for (int32_t first = 0, end; first < plan->n_layers; first = end) {
        end = first + 1;
        if (kind_of(plan, first) != kind) continue;
        while (end < plan->n_layers && kind_of(plan, end) == kind) end++;
        if (is_any) put(out, ",");
        else if (kind == OWN_WINDOW) put(out, "%sthe model's own window of %d ", before, plan->n_own_window);
        else put(out, "%s%s ", before, tmx_pattern_name((tmx_pattern_kind)kind));
        if (end - first == 1) put(out, "%d", first);
        else put(out, "%d-%d", first, end - 1);
        is_any = true;
    }
    if (!is_any || kind == OWN_WINDOW || kind == TMX_PATTERN_DENSE) return;
    const method *m = method_of((tmx_pattern_kind)kind);
    if (m != NULL) {
        for (int32_t i = 0; i < m->n_params; i++) {
            put(out, "%s%s %.9g", i == 0 ? " (" : ", ", m->params[i].name, method_get(plan, &m->params[i]));
        }
        if (m->table != NULL && m->table->is_there(plan)) {
            char hex[TABLE_DIGEST_DIGITS + 1];
            head_table_digest(m->table, plan, m->kind, hex);
            put(out, ", by head %s", hex);
        }
        put(out, ")");
        return;
    }
    put(out, " (sink %d, window %d", plan->layers[0].n_sink, plan->layers[0].n_window);
    if (kind == TMX_PATTERN_TRIANGLE) put(out, ", last %d", plan->layers[0].n_last);
    put(out, ")");
}

const char *tmx_plan_text(const tmx_plan *plan, char *buf, size_t size)
{
    if (buf == NULL || size == 0) return buf;
    buf[0] = '\0';
    if (plan == NULL) return buf;
    text_out out = { .buf = buf, .size = size };
    put_layers_of(&out, plan, TMX_PATTERN_TRIANGLE);
    put_layers_of(&out, plan, TMX_PATTERN_STREAMING);
    put_layers_of(&out, plan, TMX_PATTERN_XATTENTION);
    put_layers_of(&out, plan, TMX_PATTERN_FLEXPREFILL);
    put_layers_of(&out, plan, TMX_PATTERN_MINFERENCE);
    put_layers_of(&out, plan, TMX_PATTERN_S2O);
    put_layers_of(&out, plan, TMX_PATTERN_DENSE);
    put_layers_of(&out, plan, OWN_WINDOW);
    if (plan_estimate_rows(plan) > 0) put(&out, "; estimated per chunk of %d tokens", plan_estimate_rows(plan));
    if (plan->min_tokens > 0) put(&out, "; dense below %d tokens", plan->min_tokens);
    return buf;
}
