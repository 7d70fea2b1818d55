#include "plan/plan_parts.h"

#include "base/mem.h"
#include "base/status.h"
#include "pattern/pattern.h"
#include "plan/strict_json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char FORMAT_NAME[] = "trianglemix-plan";
/* Version 2 has dynamic methods; plans without them are written as version 1, which every library reads. */
enum { STATIC_VERSION = 1, DYNAMIC_VERSION = 2, N_DIGITS = 9 };        /* 0.1, not 0.10000000000000001 */

/* ---------------------------------------------------------------- JSON -> plan */

static tmx_status read_layers(const strict_reader *r, json_t *root, tmx_plan *p)
{
    tmx_pattern layer = { .kind = TMX_PATTERN_DENSE };
    TRY(strict_get_count(r, root, "n_sink", 0, &layer.n_sink));
    TRY(strict_get_count(r, root, "n_window", 1, &layer.n_window));
    TRY(strict_get_count(r, root, "n_last", 0, &layer.n_last));
    json_t *layers;
    TRY(strict_get_typed(r, root, "layers", JSON_ARRAY, "an array of pattern names", &layers));
    const size_t n_entries = json_array_size(layers);
    if (n_entries != (size_t)p->n_layers) {
        return strict_refuse_field(r, "layers", "%zu entries, expected %d (model.n_layers)", n_entries, p->n_layers);
    }
    p->layers = mem_alloc(n_entries, sizeof *p->layers);
    if (p->layers == NULL) return refuse(r->err, TMX_E_MEMORY, "%s: no memory for %zu layers", r->file, n_entries);
    for (size_t i = 0; i < n_entries; i++) {
        const json_t *entry = json_array_get(layers, i);
        char field[32];
        snprintf(field, sizeof field, "layers[%zu]", i);
        const char *name = json_string_value(entry);
        if (name == NULL) return strict_refuse_field(r, field, "found %s, expected a pattern name", strict_type_name(entry));
        if (!kind_of_name(name, strlen(name), &layer.kind)) {
            return strict_refuse_field(r, field, "found \"%.24s\", expected " PLAN_KIND_NAMES, name);
        }
        p->layers[i] = layer;
    }
    return TMX_OK;
}

/* "xattention": {"stride": 8, ...}: all parameters of a method, for the layers that name it. */
static tmx_status read_method(const strict_reader *r, json_t *object, const method *m, tmx_plan *p)
{
    enum { MAX_PARAMS = 8, TABLE = 2 };
    const char *known[MAX_PARAMS + TABLE + 1] = { NULL };
    const char *name = tmx_pattern_name(m->kind);
    char field[48];
    for (int32_t i = 0; i < m->n_params && i < MAX_PARAMS; i++) known[i] = m->params[i].name;
    if (m->table != NULL) known[m->n_params] = "n_heads", known[m->n_params + 1] = m->table->field;
    snprintf(field, sizeof field, "%s.", name);
    TRY(strict_refuse_unknown_fields(r, object, field, known));
    for (int32_t i = 0; i < m->n_params; i++) {
        double value = 0;
        snprintf(field, sizeof field, "%s.%s", name, m->params[i].name);
        TRY(strict_get_number(r, object, field, false, &value));
        if (!method_set(p, &m->params[i], value)) return strict_refuse_field(r, field, "found %g, expected a whole number", value);
    }
    tmx_error why;
    if (m->check(p, &why) != TMX_OK) return refuse(r->err, TMX_E_FORMAT, "%s: %.160s", r->file, why.text);
    return m->table != NULL ? head_table_read_plan(m->table, r, name, object, p) : TMX_OK;
}

static tmx_status read_methods(const strict_reader *r, json_t *root, tmx_plan *p)
{
    int32_t version;
    TRY(strict_get_count(r, root, "version", 1, &version));
    methods_set_defaults(p);
    for (int32_t i = 0; i < N_METHODS; i++) {
        const method *m = &plan_methods[i];
        const char *name = tmx_pattern_name(m->kind);
        if (!plan_has(p, m->kind) && strict_find(root, name) == NULL) continue;
        if (version < DYNAMIC_VERSION) {
            return strict_refuse_field(r, "version", "found %d, expected %d for a plan with %s", version, DYNAMIC_VERSION, name);
        }
        json_t *object;
        TRY(strict_get_typed(r, root, name, JSON_OBJECT, "an object {...}", &object));
        TRY(read_method(r, object, m, p));
    }
    return TMX_OK;
}

static tmx_status read_point(const strict_reader *r, size_t i, json_t *entry, tmx_plan_point *point)
{
    static const char *const known[] = { "n_sparse", "kl", "top1", "score", "ttft_ms", NULL };
    double *const numbers[] = { &point->kl, &point->top1, &point->score, &point->ttft_ms };
    char field[48];
    snprintf(field, sizeof field, "curve[%zu].", i);
    const size_t n = strlen(field);
    if (!json_is_object(entry)) {
        field[n - 1] = '\0';
        return strict_refuse_field(r, field, "found %s, expected an object {...}", strict_type_name(entry));
    }
    TRY(strict_refuse_unknown_fields(r, entry, field, known));
    snprintf(field + n, sizeof field - n, "%s", known[0]);
    TRY(strict_get_count(r, entry, field, 0, &point->n_sparse));
    for (int k = 0; k < 4; k++) {
        snprintf(field + n, sizeof field - n, "%s", known[1 + k]);
        TRY(strict_get_number(r, entry, field, false, numbers[k]));
    }
    return TMX_OK;
}

static tmx_status read_curve(const strict_reader *r, json_t *root, tmx_plan *p)
{
    if (strict_find(root, "curve") == NULL) return TMX_OK;
    json_t *curve;
    TRY(strict_get_typed(r, root, "curve", JSON_ARRAY, "an array of points", &curve));
    const size_t n_points = json_array_size(curve);
    if (n_points > (size_t)p->n_layers + 1) {
        return strict_refuse_field(r, "curve", "%zu entries, expected at most %d (model.n_layers + 1)", n_points, p->n_layers + 1);
    }
    if (n_points == 0) return TMX_OK;
    tmx_plan_point *points = mem_alloc(n_points, sizeof *points);
    if (points == NULL) return refuse(r->err, TMX_E_MEMORY, "%s: no memory for %zu points", r->file, n_points);
    tmx_status status = TMX_OK;
    for (size_t i = 0; i < n_points && status == TMX_OK; i++) status = read_point(r, i, json_array_get(curve, i), &points[i]);
    tmx_error why;
    if (status == TMX_OK && (status = tmx_plan_set_curve(p, points, (int32_t)n_points, &why)) != TMX_OK) {
        status = refuse(r->err, status == TMX_E_ARG ? TMX_E_FORMAT : status, "%s: %.160s", r->file, why.text);
    }
    mem_free(points);
    return status;
}

static tmx_status read_estimate_rows(const strict_reader *r, json_t *root, tmx_plan *p)
{
    if (strict_find(root, "estimate_rows") == NULL) return TMX_OK;
    int32_t n;
    tmx_error why;
    TRY(strict_get_count(r, root, "estimate_rows", 0, &n));
    if (tmx_plan_set_estimate_rows(p, n, &why) == TMX_OK) return TMX_OK;
    return refuse(r->err, TMX_E_FORMAT, "%s: %.160s", r->file, why.text);
}

static tmx_status read_plan(const strict_reader *r, json_t *root, const tmx_model_info *info, tmx_plan *p)
{
    static const char *const known[] = { "format", "version", "model", "n_sink", "n_window", "n_last", "layers", "note",
                                         "min_tokens", "estimate_rows", "curve", "xattention",
                                         "flexprefill", "minference", "s2o", NULL };
    TRY(strict_check_format(r, root, FORMAT_NAME, DYNAMIC_VERSION, known));
    TRY(model_tag_read(r, root, &p->model, &p->n_layers));
    TRY(read_layers(r, root, p));
    TRY(read_methods(r, root, p));
    TRY(strict_get_optional_text(r, root, "note", p->note, sizeof p->note));
    if (strict_find(root, "min_tokens") != NULL) TRY(strict_get_count(r, root, "min_tokens", 0, &p->min_tokens));
    TRY(read_estimate_rows(r, root, p));
    TRY(read_curve(r, root, p));
    if (info == NULL) return TMX_OK;
    TRY(model_tag_check(r, &p->model, p->n_layers, info));
    if (p->n_heads != 0 && p->n_heads != info->n_heads) {
        return refuse(r->err, TMX_E_UNSUPPORTED, "%s: field \"%s.n_heads\": %d, the model has %d", r->file,
                      p->heads != NULL ? "minference" : "xattention", p->n_heads, info->n_heads);
    }
    tmx_error why;
    if (plan_bind_windows(p, info, &why) == TMX_OK) return TMX_OK;
    return refuse(r->err, TMX_E_FORMAT, "%s: %.160s", r->file, why.text);
}

static strict_reader reader_of(const char *path, tmx_error *err)
{
    return (strict_reader){ .file = path_tail(path), .what = "plan", .max_bytes = PLAN_FILE_MAX_BYTES, .err = err };
}

tmx_status plan_read_json(tmx_plan **plan, const char *text, size_t n_bytes, const char *name,
                          const tmx_model_info *info, tmx_error *err)
{
    const strict_reader r = reader_of(name, err);
    json_t *root;
    TRY(strict_parse(&r, text, n_bytes, &root));
    tmx_status status;
    tmx_plan *p = mem_alloc(1, sizeof *p);
    if (p == NULL) status = refuse(err, TMX_E_MEMORY, "%s: no memory for a plan", r.file);
    else status = read_plan(&r, root, info, p);
    json_decref(root);
    if (status == TMX_OK) *plan = p;
    else tmx_plan_free(p);
    return status;
}

static tmx_status read_open_file(tmx_plan **plan, int fd, const char *path, const tmx_model_info *info, tmx_error *err)
{
    const strict_reader r = reader_of(path, err);
    char *text;
    size_t n_bytes;
    TRY(strict_read_file(&r, fd, &text, &n_bytes));
    const tmx_status status = plan_read_json(plan, text, n_bytes, path, info, err);
    mem_free(text);
    return status;
}

tmx_status plan_read_file(tmx_plan **plan, const char *path, const tmx_model_info *info, tmx_error *err)
{
    const int fd = strict_open(path);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG)) {
        return refuse(err, TMX_E_ARG, "plan '%.60s': no such file, and none of dense, METHOD[:LAYERS], mix:METHOD=LAYERS,rest=METHOD, "
                      "preset:NAME (METHOD triangle, streaming, xattention, flexprefill, minference, s2o; LAYERS as in 5,7,10-29)", path);
    }
    if (fd < 0) return refuse(err, TMX_E_IO, "%s: %s", path_tail(path), strerror(errno));
    const tmx_status status = read_open_file(plan, fd, path, info, err);
    close(fd);
    return status;
}

/* ---------------------------------------------------------------- plan -> text -> file */

/* The fields that a plan need not have; absent ones are not written. */
static bool add_choice(json_t *root, const tmx_plan *plan)
{
    if (plan->min_tokens > 0 && json_object_set_new(root, "min_tokens", json_integer(plan->min_tokens)) != 0) return false;
    const bool is_per_chunk = plan->estimate_rows > 0 && plan_has_ends(plan);
    if (is_per_chunk && json_object_set_new(root, "estimate_rows", json_integer(plan->estimate_rows)) != 0) return false;
    if (plan->n_points == 0) return true;
    json_t *curve = json_array();
    for (int32_t i = 0; i < plan->n_points; i++) {
        const tmx_plan_point *p = &plan->curve[i];
        json_array_append_new(curve, json_pack("{s:i, s:f, s:f, s:f, s:f}", "n_sparse", (int)p->n_sparse, "kl", p->kl,
                                               "top1", p->top1, "score", p->score, "ttft_ms", p->ttft_ms));
    }
    const bool is_whole = json_array_size(curve) == (size_t)plan->n_points;
    return json_object_set_new(root, "curve", curve) == 0 && is_whole;
}

/* The parameters of the methods that layers name. */
static bool add_methods(json_t *root, const tmx_plan *plan)
{
    for (int32_t i = 0; i < N_METHODS; i++) {
        const method *m = &plan_methods[i];
        if (!plan_has(plan, m->kind)) continue;
        json_t *object = json_object();
        bool is_whole = json_object_set_new(root, tmx_pattern_name(m->kind), object) == 0;
        for (int32_t k = 0; k < m->n_params && is_whole; k++) {
            const double value = method_get(plan, &m->params[k]);
            json_t *number = m->params[k].is_integer ? json_integer((json_int_t)value) : json_real(value);
            is_whole = json_object_set_new(object, m->params[k].name, number) == 0;
        }
        if (is_whole && m->table != NULL) is_whole = head_table_add_json(m->table, object, plan);
        if (!is_whole) return false;
    }
    return true;
}

static json_t *plan_to_json(const tmx_plan *plan)
{
    json_t *layers = json_array();
    for (int32_t i = 0; i < plan->n_layers; i++) {
        json_array_append_new(layers, json_string(tmx_pattern_name(plan->layers[i].kind)));
    }
    json_t *root = json_pack("{s:s, s:i, s:o?, s:i, s:i, s:i}", "format", FORMAT_NAME, "version",
                             plan_is_static(plan) ? STATIC_VERSION : DYNAMIC_VERSION, "model",
                             model_tag_json(&plan->model, plan->n_layers), "n_sink", (int)plan->layers[0].n_sink, "n_window",
                             (int)plan->layers[0].n_window, "n_last", (int)plan->layers[0].n_last);
    /* Each call takes its value over, also when it fails; a short array is one of those failures. */
    const bool is_whole = json_array_size(layers) == (size_t)plan->n_layers && json_is_object(json_object_get(root, "model"));
    const bool has_layers = json_object_set_new(root, "layers", layers) == 0;
    const bool has_note = json_object_set_new(root, "note", json_string(plan->note)) == 0;
    if (is_whole && has_layers && has_note && add_methods(root, plan) && add_choice(root, plan)) return root;
    json_decref(root);
    return NULL;
}

tmx_status plan_json_text(const tmx_plan *plan, char **text, size_t *n_bytes, tmx_error *err)
{
    return strict_text(plan_to_json(plan), "plan", N_DIGITS, text, n_bytes, err);
}

tmx_status tmx_plan_save(const tmx_plan *plan, const char *path, tmx_error *err)
{
    if (plan == NULL || path == NULL || path[0] == '\0') return refuse(err, TMX_E_ARG, "plan save: no plan or no path");
    char *text;
    size_t n_bytes;
    TRY(plan_json_text(plan, &text, &n_bytes, err));
    const tmx_status status = strict_write_file(path, text, n_bytes, err);
    mem_free(text);
    return status;
}
