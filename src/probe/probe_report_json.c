#include "probe/probe_report.h"

#include "base/mem.h"
#include "base/status.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char FORMAT_NAME[] = "trianglemix-probe";
enum { FORMAT_VERSION = 1 };

/* ---------------------------------------------------------------- the tables both directions walk */

static const struct { const char *name; size_t offset; bool is_signed; } sum_fields[] = {
    { "theta_abs", offsetof(tmx_probe_sums, theta_abs), false }, { "theta_signed", offsetof(tmx_probe_sums, theta_signed), true },
    { "head_abs", offsetof(tmx_probe_sums, head_abs), false }, { "da_abs", offsetof(tmx_probe_sums, da_abs), false },
    { "attention", offsetof(tmx_probe_sums, attention), false },
};
enum { N_SUM_FIELDS = sizeof sum_fields / sizeof sum_fields[0] };

static const struct { const char *name; size_t offset; } section_fields[] = {
    { "middle", offsetof(tmx_probe_layer, middle) }, { "last", offsetof(tmx_probe_layer, last) },
    { "streaming", offsetof(tmx_probe_layer, streaming) },
};
enum { N_SECTION_FIELDS = sizeof section_fields / sizeof section_fields[0] };

static const char *const compute_names[] = { "f32", "bf16" };      /* of TMX_COMPUTE_F32, TMX_COMPUTE_BF16 */

/* ---------------------------------------------------------------- JSON -> report */

static tmx_status get_bool(const strict_reader *r, json_t *object, const char *field, bool *is_true)
{
    json_t *value = strict_find(object, field);
    if (value == NULL) return strict_refuse_field(r, field, "missing, expected a boolean");
    if (!json_is_boolean(value)) return strict_refuse_field(r, field, "found %s, expected a boolean", strict_type_name(value));
    *is_true = json_is_true(value);
    return TMX_OK;
}

static tmx_status read_settings(const strict_reader *r, json_t *root, tmx_probe_settings *s)
{
    static const char *const known[] = { "source", "n_sink", "n_window", "n_last", "n_tokens", "n_samples", "seed", "correct_only",
                                         "compute", NULL };
    json_t *settings, *seed;
    char compute[8];
    *s = (tmx_probe_settings){ 0 };
    TRY(strict_get_typed(r, root, "settings", JSON_OBJECT, "an object", &settings));
    TRY(strict_refuse_unknown_fields(r, settings, "settings.", known));
    TRY(strict_get_text(r, settings, "settings.source", s->source, sizeof s->source));
    TRY(strict_get_count(r, settings, "settings.n_sink", 0, &s->sections.n_sink));
    TRY(strict_get_count(r, settings, "settings.n_window", 1, &s->sections.n_window));
    TRY(strict_get_count(r, settings, "settings.n_last", 0, &s->sections.n_last));
    TRY(strict_get_count(r, settings, "settings.n_tokens", 1, &s->n_tokens));
    TRY(strict_get_count(r, settings, "settings.n_samples", 1, &s->n_samples));
    TRY(strict_get_typed(r, settings, "settings.seed", JSON_INTEGER, "an integer", &seed));
    s->seed = json_integer_value(seed);
    if (s->seed < 0) return strict_refuse_field(r, "settings.seed", "found %lld, expected 0 or more", (long long)s->seed);
    TRY(get_bool(r, settings, "settings.correct_only", &s->is_correct_only));
    TRY(strict_get_text(r, settings, "settings.compute", compute, sizeof compute));
    s->compute = strcmp(compute, compute_names[1]) == 0 ? TMX_COMPUTE_BF16 : TMX_COMPUTE_F32;
    if (strcmp(compute, compute_names[s->compute - TMX_COMPUTE_F32]) != 0) {
        return strict_refuse_field(r, "settings.compute", "found \"%s\", expected \"f32\" or \"bf16\"", compute);
    }
    return TMX_OK;
}

static tmx_status read_sample(const strict_reader *r, json_t *value, size_t i, tmx_probe_report *report)
{
    static const char *const known[] = { "n_tokens", "target", "top_token", "target_logit", NULL };
    static const char *const names[] = { "n_tokens", "target", "top_token" };
    char inside[32], field[64];
    snprintf(inside, sizeof inside, "samples[%zu].", i);
    if (!json_is_object(value)) {
        return refuse(r->err, TMX_E_FORMAT, "%s: field \"samples[%zu]\": found %s, expected an object", r->file, i,
                      strict_type_name(value));
    }
    TRY(strict_refuse_unknown_fields(r, value, inside, known));
    int32_t numbers[3] = { 0 };
    double logit = 0;
    for (int k = 0; k < 3; k++) {
        snprintf(field, sizeof field, "%s%s", inside, names[k]);
        TRY(strict_get_count(r, value, field, k == 0 ? 1 : 0, &numbers[k]));
    }
    snprintf(field, sizeof field, "%starget_logit", inside);
    TRY(strict_get_number(r, value, field, true, &logit));
    const tmx_probe_sample sample = { .n_tokens = numbers[0], .target = numbers[1], .top_token = numbers[2],
                                      .target_logit = (float)logit };
    if (sample.n_tokens > report->settings.n_tokens) {
        snprintf(field, sizeof field, "%sn_tokens", inside);
        return strict_refuse_field(r, field, "found %d, expected at most %d (settings.n_tokens)", sample.n_tokens,
                                   report->settings.n_tokens);
    }
    report->samples[report->n_samples++] = sample;
    report->n_correct += sample.top_token == sample.target;
    report->n_used += probe_sample_is_used(report, &sample);
    return TMX_OK;
}

static tmx_status read_samples(const strict_reader *r, json_t *root, tmx_probe_report *report)
{
    json_t *samples;
    TRY(strict_get_typed(r, root, "samples", JSON_ARRAY, "an array", &samples));
    const size_t n = json_array_size(samples);
    if (n > PROBE_MAX_SAMPLES) return strict_refuse_field(r, "samples", "%zu entries, expected at most %d", n, PROBE_MAX_SAMPLES);
    TRY(probe_report_reserve(report, (int32_t)n, r->err));
    for (size_t i = 0; i < n; i++) TRY(read_sample(r, json_array_get(samples, i), i, report));
    const struct { const char *field; int32_t counted; } counts[] = {
        { "n_samples", report->n_samples }, { "n_correct", report->n_correct }, { "n_used", report->n_used },
    };
    for (int i = 0; i < 3; i++) {
        int32_t found = 0;
        TRY(strict_get_count(r, root, counts[i].field, 0, &found));
        if (found == counts[i].counted) continue;
        return strict_refuse_field(r, counts[i].field, "found %d, the samples say %d", found, counts[i].counted);
    }
    return TMX_OK;
}

static tmx_status read_layer(const strict_reader *r, json_t *value, int32_t layer, tmx_probe_layer *means)
{
    static const char *const known[] = { "layer", "middle", "last", "streaming", NULL };
    static const char *const known_sums[] = { "theta_abs", "theta_signed", "head_abs", "da_abs", "attention", NULL };
    char inside[32], field[64], section_inside[64];
    int32_t number = 0;
    snprintf(inside, sizeof inside, "layers[%d].", layer);
    if (!json_is_object(value)) {
        return refuse(r->err, TMX_E_FORMAT, "%s: field \"layers[%d]\": found %s, expected an object", r->file, layer,
                      strict_type_name(value));
    }
    TRY(strict_refuse_unknown_fields(r, value, inside, known));
    snprintf(field, sizeof field, "%slayer", inside);
    TRY(strict_get_count(r, value, field, 0, &number));
    if (number != layer) return strict_refuse_field(r, field, "found %d, expected %d", number, layer);
    for (int s = 0; s < N_SECTION_FIELDS; s++) {
        json_t *section;
        snprintf(field, sizeof field, "%s%s", inside, section_fields[s].name);
        TRY(strict_get_typed(r, value, field, JSON_OBJECT, "an object", &section));
        snprintf(section_inside, sizeof section_inside, "%s%s.", inside, section_fields[s].name);
        TRY(strict_refuse_unknown_fields(r, section, section_inside, known_sums));
        for (int i = 0; i < N_SUM_FIELDS; i++) {
            double *to = (double *)(void *)((char *)means + section_fields[s].offset + sum_fields[i].offset);
            snprintf(field, sizeof field, "%.40s%s", section_inside, sum_fields[i].name);
            TRY(strict_get_number(r, section, field, sum_fields[i].is_signed, to));
        }
    }
    return TMX_OK;
}

static tmx_status read_layers(const strict_reader *r, json_t *root, tmx_probe_report *report)
{
    json_t *layers;
    TRY(strict_get_typed(r, root, "layers", JSON_ARRAY, "an array", &layers));
    const size_t n = json_array_size(layers);
    if (n != (size_t)report->n_layers) {
        return strict_refuse_field(r, "layers", "%zu entries, expected %d (model.n_layers)", n, report->n_layers);
    }
    for (int32_t l = 0; l < report->n_layers; l++) TRY(read_layer(r, json_array_get(layers, (size_t)l), l, &report->means[l]));
    return TMX_OK;
}

/* What follows from the layers is not taken from the file, but must not contradict them. */
static tmx_status check_order(const strict_reader *r, json_t *root, const tmx_probe_report *report)
{
    json_t *order;
    TRY(strict_get_typed(r, root, "order", JSON_ARRAY, "an array", &order));
    const size_t n = json_array_size(order), n_expected = report->n_used == 0 ? 0 : (size_t)tmx_probe_report_n_ranked(report);
    if (n != n_expected) return strict_refuse_field(r, "order", "%zu entries, expected %zu", n, n_expected);
    if (n == 0) return TMX_OK;
    int32_t *layers = mem_alloc((size_t)report->n_layers, sizeof *layers);
    if (layers == NULL) return refuse(r->err, TMX_E_MEMORY, "%s: no memory for %d layers", r->file, report->n_layers);
    tmx_status status = tmx_probe_report_order(report, TMX_ORDER_GRADIENT, 0, layers, r->err);
    for (size_t i = 0; i < n && status == TMX_OK; i++) {
        const json_t *value = json_array_get(order, i);
        if (json_is_integer(value) && json_integer_value(value) == layers[i]) continue;
        char field[32];
        snprintf(field, sizeof field, "order[%zu]", i);
        status = strict_refuse_field(r, field, "expected %d, by ascending theta_abs of the middle sections", layers[i]);
    }
    mem_free(layers);
    return status;
}

/* The fields are there where the model has windows of its own. */
static tmx_status read_own_window(const strict_reader *r, json_t *root, const tmx_model_info *info, tmx_probe_report *report)
{
    if (strict_find(root, "own_window") != NULL) {
        TRY(strict_get_count(r, root, "own_window", 1, &report->n_own_window));
        TRY(strict_get_count(r, root, "own_period", 1, &report->own_period));
    }
    if (info == NULL || (report->n_own_window == info->n_window && report->own_period == info->window_period)) return TMX_OK;
    return strict_refuse_field(r, "own_window", "%d, the model's is %d in all but every layer %d", report->n_own_window, info->n_window,
                               info->window_period);
}

static tmx_status read_report(const strict_reader *r, json_t *root, const tmx_model_info *info, tmx_probe_report **made)
{
    static const char *const known[] = { "format", "version", "model", "settings", "n_samples", "n_correct", "n_used", "order",
                                         "layers", "samples", "own_window", "own_period", NULL };
    model_tag tag = { .name = "", .fingerprint = "" };
    int32_t n_layers = 0;
    tmx_probe_settings settings;
    TRY(strict_check_format(r, root, FORMAT_NAME, FORMAT_VERSION, known));
    TRY(model_tag_read(r, root, &tag, &n_layers));
    if (info != NULL) TRY(model_tag_check(r, &tag, n_layers, info));
    TRY(read_settings(r, root, &settings));
    json_t *layers;
    TRY(strict_get_typed(r, root, "layers", JSON_ARRAY, "an array", &layers));
    if (json_array_size(layers) != (size_t)n_layers) {             /* before memory is taken for what model.n_layers claims */
        return strict_refuse_field(r, "layers", "%zu entries, expected %d (model.n_layers)", json_array_size(layers), n_layers);
    }
    tmx_error why;
    const tmx_status status = probe_report_new(made, n_layers, &settings, &why);
    if (status == TMX_E_ARG) return refuse(r->err, TMX_E_FORMAT, "%s: field \"settings\": %.160s", r->file, why.text);
    if (status != TMX_OK) return refuse(r->err, status, "%s", why.text);
    (*made)->model = tag;
    TRY(read_own_window(r, root, info, *made));
    TRY(read_samples(r, root, *made));
    TRY(read_layers(r, root, *made));
    return check_order(r, root, *made);
}

static strict_reader reader_of(const char *path, tmx_error *err)
{
    return (strict_reader){ .file = path_tail(path), .what = "probe report", .max_bytes = PROBE_FILE_MAX_BYTES, .err = err };
}

tmx_status probe_report_read_json(tmx_probe_report **report, const char *text, size_t n_bytes, const char *name,
                                  const tmx_model_info *info, tmx_error *err)
{
    const strict_reader r = reader_of(name, err);
    json_t *root = NULL;
    TRY(strict_parse(&r, text, n_bytes, &root));
    tmx_probe_report *made = NULL;
    const tmx_status status = read_report(&r, root, info, &made);
    json_decref(root);
    if (status == TMX_OK) *report = made;
    else tmx_probe_report_free(made);
    return status;
}

tmx_status tmx_probe_report_open(tmx_probe_report **report, const char *path, const tmx_model_info *info, tmx_error *err)
{
    if (report == NULL || path == NULL) return refuse(err, TMX_E_ARG, "tmx_probe_report_open: NULL argument");
    const strict_reader r = reader_of(path, err);
    const int fd = strict_open(path);
    if (fd < 0) return refuse(err, TMX_E_IO, "%s: %s", r.file, strerror(errno));
    char *text = NULL;
    size_t n_bytes = 0;
    tmx_status status = strict_read_file(&r, fd, &text, &n_bytes);
    close(fd);
    if (status != TMX_OK) return status;
    status = probe_report_read_json(report, text, n_bytes, path, info, err);
    mem_free(text);
    return status;
}

/* ---------------------------------------------------------------- report -> JSON */

/* Every builder gives NULL when memory ran out; jansson's _new calls take their value over, also when they fail. */

static json_t *sums_to_json(const tmx_probe_sums *sums)
{
    json_t *object = json_object();
    for (int i = 0; i < N_SUM_FIELDS; i++) {
        const double *from = (const double *)(const void *)((const char *)sums + sum_fields[i].offset);
        if (json_object_set_new(object, sum_fields[i].name, json_real(*from)) == 0) continue;
        json_decref(object);
        return NULL;
    }
    return object;
}

static json_t *layer_to_json(const tmx_probe_layer *means, int32_t layer)
{
    json_t *object = json_pack("{s:i}", "layer", (int)layer);
    for (int s = 0; s < N_SECTION_FIELDS; s++) {
        const void *sums = (const char *)means + section_fields[s].offset;
        if (json_object_set_new(object, section_fields[s].name, sums_to_json(sums)) == 0) continue;
        json_decref(object);
        return NULL;
    }
    return object;
}

static json_t *sample_to_json(const tmx_probe_sample *s)
{
    return json_pack("{s:i, s:i, s:i, s:f}", "n_tokens", (int)s->n_tokens, "target", (int)s->target, "top_token", (int)s->top_token,
                     "target_logit", (double)s->target_logit);
}

static json_t *settings_to_json(const tmx_probe_settings *s)
{
    return json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:I, s:b, s:s}", "source", s->source, "n_sink", (int)s->sections.n_sink,
                     "n_window", (int)s->sections.n_window, "n_last", (int)s->sections.n_last, "n_tokens", (int)s->n_tokens,
                     "n_samples", (int)s->n_samples, "seed", (json_int_t)s->seed, "correct_only", (int)s->is_correct_only,
                     "compute", compute_names[s->compute - TMX_COMPUTE_F32]);
}

static json_t *order_to_json(const tmx_probe_report *report)
{
    json_t *array = json_array();
    if (report->n_used == 0) return array;
    int32_t *layers = mem_alloc((size_t)report->n_layers, sizeof *layers);
    bool is_whole = array != NULL && layers != NULL;
    if (is_whole) is_whole = tmx_probe_report_order(report, TMX_ORDER_GRADIENT, 0, layers, NULL) == TMX_OK;
    for (int32_t i = 0; i < tmx_probe_report_n_ranked(report) && is_whole; i++) {
        is_whole = json_array_append_new(array, json_integer(layers[i])) == 0;
    }
    mem_free(layers);
    if (is_whole) return array;
    json_decref(array);
    return NULL;
}

static json_t *report_to_json(const tmx_probe_report *report)
{
    json_t *root = json_pack("{s:s, s:i}", "format", FORMAT_NAME, "version", FORMAT_VERSION);
    json_t *layers = json_array(), *samples = json_array();
    bool is_whole = root != NULL && layers != NULL && samples != NULL;
    for (int32_t l = 0; l < report->n_layers && is_whole; l++) {
        is_whole = json_array_append_new(layers, layer_to_json(&report->means[l], l)) == 0;
    }
    for (int32_t i = 0; i < report->n_samples && is_whole; i++) {
        is_whole = json_array_append_new(samples, sample_to_json(&report->samples[i])) == 0;
    }
    const struct { const char *key; json_t *value; } fields[] = {
        { "model", model_tag_json(&report->model, report->n_layers) }, { "settings", settings_to_json(&report->settings) },
        { "n_samples", json_integer(report->n_samples) }, { "n_correct", json_integer(report->n_correct) },
        { "n_used", json_integer(report->n_used) }, { "order", order_to_json(report) }, { "layers", layers }, { "samples", samples },
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        is_whole &= json_object_set_new(root, fields[i].key, fields[i].value) == 0;
    }
    if (report->n_own_window > 0) {
        is_whole &= json_object_set_new(root, "own_window", json_integer(report->n_own_window)) == 0;
        is_whole &= json_object_set_new(root, "own_period", json_integer(report->own_period)) == 0;
    }
    if (is_whole) return root;
    json_decref(root);
    return NULL;
}

tmx_status probe_report_json_text(const tmx_probe_report *report, char **text, size_t *n_bytes, tmx_error *err)
{
    return strict_text(report_to_json(report), "probe report", 17, text, n_bytes, err);
}

tmx_status tmx_probe_report_save(const tmx_probe_report *report, const char *path, tmx_error *err)
{
    if (report == NULL || path == NULL || path[0] == '\0') return refuse(err, TMX_E_ARG, "probe report: nothing to save or no path");
    char *text;
    size_t n_bytes;
    TRY(probe_report_json_text(report, &text, &n_bytes, err));
    const tmx_status status = strict_write_file(path, text, n_bytes, err);
    mem_free(text);
    return status;
}
