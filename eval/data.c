#include "data.h"

#include "fault.h"
#include "task_parts.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct reader {
    const char *file;              /* for messages */
    int32_t line;
    int32_t metric, n_predict;     /* asked for; -1, 0 = the schema's */
    const char *task;              /* the set's name */
    tmx_error *err;
} reader;

/* ---------------------------------------------------------------- fields */

static const char *type_name(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number with a fraction or an exponent";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    case JSON_NULL: return "null";
    }
    return "something else";
}

/* A string; *text stays NULL if an optional one is missing. */
static tmx_status get_text(const reader *r, const json_t *object, const char *field, bool is_required, const char **text)
{
    const json_t *value = json_object_get(object, field);
    *text = NULL;
    if (value == NULL && !is_required) return TMX_OK;
    if (value == NULL) return fault(r->err, TMX_E_FORMAT, "%s:%d: field \"%s\" is missing", r->file, r->line, field);
    *text = json_string_value(value);
    if (*text != NULL) return TMX_OK;
    return fault(r->err, TMX_E_FORMAT, "%s:%d: field \"%s\": found %s, expected a string", r->file, r->line, field,
                 type_name(value));
}

static tmx_status check_count(const reader *r, const json_t *object, const char *field)
{
    const json_t *value = json_object_get(object, field);
    if (value == NULL || (json_is_integer(value) && json_integer_value(value) >= 0)) return TMX_OK;
    return fault(r->err, TMX_E_FORMAT, "%s:%d: field \"%s\": found %s, expected an integer from 0 on", r->file, r->line, field,
                 json_is_integer(value) ? "a negative number" : type_name(value));
}

static tmx_status read_answers(const reader *r, const json_t *object, const char *field, task_sample *sample)
{
    const json_t *list = json_object_get(object, field);
    if (!json_is_array(list)) {
        return fault(r->err, TMX_E_FORMAT, "%s:%d: field \"%s\": found %s, expected an array of strings", r->file, r->line,
                     field, type_name(list));
    }
    const size_t n = json_array_size(list);
    if (n < 1 || n > DATA_MAX_ANSWERS) {
        return fault(r->err, TMX_E_FORMAT, "%s:%d: field \"%s\": %zu entries, expected 1..%d", r->file, r->line, field, n,
                     DATA_MAX_ANSWERS);
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *entry = json_array_get(list, i);
        if (!json_is_string(entry)) {
            return fault(r->err, TMX_E_FORMAT, "%s:%d: field \"%s\", entry %zu: found %s, expected a string", r->file, r->line,
                         field, i, type_name(entry));
        }
        TRY(sample_add_answer(sample, json_string_value(entry), r->err));
    }
    return TMX_OK;
}

/* ---------------------------------------------------------------- RULER */

static tmx_status read_ruler(const reader *r, const json_t *object, data_item *item)
{
    enum { PREDICT = 128, PREDICT_QA = 32 };
    const char *input, *begun;
    TRY(get_text(r, object, "input", true, &input));
    TRY(get_text(r, object, "answer_prefix", false, &begun));
    TRY(check_count(r, object, "length"));
    TRY(check_count(r, object, "index"));
    text_buf user = { 0 }, assistant = { 0 };
    text_add(&user, input);
    if (begun != NULL) text_add(&assistant, begun + strspn(begun, " \n"));
    TRY(sample_take_texts(&item->sample, &user, &assistant, r->err));
    TRY(read_answers(r, object, "outputs", &item->sample));
    const bool is_qa = strncmp(r->task, "qa", 2) == 0;
    const task_kind *kind = task_find(r->task);
    item->metric = is_qa ? TASK_MATCH_PART : TASK_MATCH_ALL;
    item->sample.n_predict = is_qa ? PREDICT_QA : kind != NULL ? kind->n_predict : PREDICT;
    return TMX_OK;
}

/* ---------------------------------------------------------------- LongBench */

typedef struct bench_set {
    const char *name;
    task_metric metric;
    int32_t n_predict;
    enum { ASKS, SUMS_UP, SUMS_UP_FOR, GOES_ON } form;
    bool is_first_line;
} bench_set;

static const bench_set bench_sets[] = {        /* metrics and answer lengths as the benchmark has them */
    { .name = "narrativeqa", .metric = TASK_F1, .n_predict = 128, .form = ASKS },
    { .name = "qasper", .metric = TASK_F1, .n_predict = 128, .form = ASKS },
    { .name = "multifieldqa_en", .metric = TASK_F1, .n_predict = 64, .form = ASKS },
    { .name = "hotpotqa", .metric = TASK_F1, .n_predict = 32, .form = ASKS },
    { .name = "2wikimqa", .metric = TASK_F1, .n_predict = 32, .form = ASKS },
    { .name = "musique", .metric = TASK_F1, .n_predict = 32, .form = ASKS },
    { .name = "triviaqa", .metric = TASK_F1, .n_predict = 32, .form = GOES_ON, .is_first_line = true },
    { .name = "gov_report", .metric = TASK_ROUGE_L, .n_predict = 512, .form = SUMS_UP },
    { .name = "qmsum", .metric = TASK_ROUGE_L, .n_predict = 512, .form = SUMS_UP_FOR },
    { .name = "multi_news", .metric = TASK_ROUGE_L, .n_predict = 512, .form = SUMS_UP },
    { .name = "samsum", .metric = TASK_ROUGE_L, .n_predict = 128, .form = GOES_ON, .is_first_line = true },
};
static const bench_set any_questions = { .name = "", .metric = TASK_F1, .n_predict = 64, .form = ASKS };

/* LongBench-E names its sets "hotpotqa_e". */
static const bench_set *find_bench_set(const char *name)
{
    const size_t n = strlen(name);
    for (size_t i = 0; i < sizeof bench_sets / sizeof bench_sets[0]; i++) {
        const size_t n_known = strlen(bench_sets[i].name);
        if (strncmp(name, bench_sets[i].name, n_known) != 0) continue;
        if (n == n_known || strcmp(name + n_known, "_e") == 0) return &bench_sets[i];
    }
    return NULL;
}

static tmx_status read_longbench(const reader *r, const json_t *object, data_item *item)
{
    const char *input, *context, *dataset;
    TRY(get_text(r, object, "input", true, &input));
    TRY(get_text(r, object, "context", true, &context));
    TRY(get_text(r, object, "dataset", false, &dataset));
    TRY(check_count(r, object, "length"));
    const bench_set *set = dataset != NULL ? find_bench_set(dataset) : &any_questions;
    if (set == NULL && r->metric < 0) {
        return fault(r->err, TMX_E_UNSUPPORTED, "%s:%d: dataset \"%.40s\" has a metric of its own; --metric sets another",
                     r->file, r->line, dataset);
    }
    if (set == NULL) set = &any_questions;
    text_buf user = { 0 }, assistant = { 0 };
    switch (set->form) {
    case ASKS:
        text_print(&user, "Read the text and answer the question about it in as few words as you can.\n\n%s\n\n"
                   "Question: %s\nAnswer in as few words as you can:", context, input);
        break;
    case SUMS_UP:
        text_print(&user, "Read the text and sum it up on one page.\n\n%s\n\nSummary:", context);
        break;
    case SUMS_UP_FOR:
        text_print(&user, "Read the text and answer the request about it in a few sentences.\n\n%s\n\nRequest: %s\nAnswer:",
                   context, input);
        break;
    case GOES_ON:
        text_print(&user, "Go on in the way of the examples.\n\n%s\n\n%s", context, input);
        break;
    }
    TRY(sample_take_texts(&item->sample, &user, &assistant, r->err));
    TRY(read_answers(r, object, "answers", &item->sample));
    item->metric = set->metric;
    item->is_first_line = set->is_first_line;
    item->sample.n_predict = set->n_predict;
    return TMX_OK;
}

/* ---------------------------------------------------------------- lines */

static tmx_status read_object(const reader *r, const json_t *object, data_item *item)
{
    if (!json_is_object(object)) {
        return fault(r->err, TMX_E_FORMAT, "%s:%d: found %s, expected an object", r->file, r->line, type_name(object));
    }
    const bool has_outputs = json_object_get(object, "outputs") != NULL, has_answers = json_object_get(object, "answers") != NULL;
    if (has_outputs == has_answers) {
        return fault(r->err, TMX_E_FORMAT, "%s:%d: %s, expected \"outputs\" (RULER) or \"answers\" (LongBench)", r->file,
                     r->line, has_outputs ? "both fields" : "neither field");
    }
    TRY(has_outputs ? read_ruler(r, object, item) : read_longbench(r, object, item));
    if (r->metric >= 0) item->metric = (task_metric)r->metric;
    if (r->n_predict > 0) item->sample.n_predict = r->n_predict;
    return TMX_OK;
}

static tmx_status read_line_object(const reader *r, const char *text, size_t n_bytes, data_item *item)
{
    json_error_t e;
    json_t *object = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (object == NULL) {
        /* jansson gives no text when a value finds no memory, and calls a string without memory an invalid token */
        if (json_error_code(&e) == json_error_out_of_memory || e.text[0] == '\0') return fault_memory(r->err, "a line of JSON");
        return fault(r->err, TMX_E_FORMAT, "%s:%d:%d: %s", r->file, r->line, e.column, e.text);
    }
    const tmx_status status = read_object(r, object, item);
    json_decref(object);
    return status;
}

/* The next line without its end; *is_end when there is none. */
static tmx_status next_line(reader *r, FILE *file, text_buf *line, bool *is_end)
{
    char part[4096];
    line->n_bytes = 0;
    r->line++;
    for (;;) {
        errno = 0;
        size_t n = 0;
        int c = EOF;
        while (n < sizeof part && (c = getc_unlocked(file)) != EOF && c != '\n') part[n++] = (char)c;
        if (ferror(file)) return fault(r->err, TMX_E_IO, "%s: %s", r->file, strerror(errno));
        text_add_n(line, part, n);
        if (line->has_failed) return fault_memory(r->err, "a line of JSON");
        if (line->n_bytes > DATA_MAX_LINE_BYTES) {
            return fault(r->err, TMX_E_FORMAT, "%s:%d: the line is longer than %d MiB", r->file, r->line,
                         DATA_MAX_LINE_BYTES >> 20);
        }
        if (c == '\n' || c == EOF) {
            *is_end = c == EOF && line->n_bytes == 0;
            return TMX_OK;
        }
    }
}

static bool is_blank(const text_buf *line) { return line->n_bytes == strspn(line->data, " \t\r"); }

static tmx_status read_lines(reader *r, FILE *file, data_set *set, int32_t n_most, text_buf *line)
{
    for (int32_t cap = 0;;) {
        bool is_end = false;
        TRY(next_line(r, file, line, &is_end));
        if (is_end || set->n == n_most) break;
        if (is_blank(line)) continue;
        if (set->n == cap) {
            cap = cap > 0 ? 2 * cap : 64;
            data_item *items = realloc(set->items, (size_t)cap * sizeof *items);
            if (items == NULL) return fault_memory(r->err, "the samples of a file");
            set->items = items;
        }
        data_item *item = &set->items[set->n++];
        *item = (data_item){ .line = r->line };
        TRY(read_line_object(r, line->data, line->n_bytes, item));
    }
    if (set->n == 0) return fault(r->err, TMX_E_FORMAT, "%s: holds no sample", r->file);
    return TMX_OK;
}

/* "dir/qa_1/validation.jsonl" -> "qa_1"; "dir/hotpotqa.jsonl" -> "hotpotqa" */
static char *name_of_path(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path, *end = path + strlen(path);
    if (slash != NULL && slash > path && strcmp(name, "validation.jsonl") == 0) {
        end = slash;
        name = slash;
        while (name > path && name[-1] != '/') name--;
    } else if (end - name > 6 && strcmp(end - 6, ".jsonl") == 0) end -= 6;
    char *copy = strndup(name, end - name < 64 ? (size_t)(end - name) : 64);
    for (char *c = copy; c != NULL && *c != '\0'; c++) {
        if ((unsigned char)*c <= ' ' || (unsigned char)*c >= 0x7f || *c == ',' || *c == '"') *c = '_';
    }
    return copy;
}

static const char *path_tail(const char *path)
{
    enum { MAX_SHOWN = 72 };
    const size_t n = strlen(path);
    return n > MAX_SHOWN ? path + n - MAX_SHOWN : path;
}

tmx_status data_read(data_set *set, const char *path, int32_t n_most, int32_t metric, int32_t n_predict, tmx_error *err)
{
    *set = (data_set){ .name = name_of_path(path) };
    if (set->name == NULL) return fault_memory(err, "the name of a file");
    reader r = { .file = path_tail(path), .metric = metric, .n_predict = n_predict, .task = set->name, .err = err };
    FILE *file = fopen(path, "rb");
    if (file == NULL) return fault(err, TMX_E_IO, "%s: %s", r.file, strerror(errno));
    struct stat st;
    text_buf line = { 0 };
    tmx_status status;
    if (fstat(fileno(file), &st) == 0 && S_ISDIR(st.st_mode)) status = fault(err, TMX_E_IO, "%s: is a directory", r.file);
    else status = read_lines(&r, file, set, n_most, &line);
    text_free(&line);
    fclose(file);
    return status;
}

void data_free(data_set *set)
{
    for (int32_t i = 0; i < set->n; i++) task_sample_free(&set->items[i].sample);
    free(set->items);
    free(set->name);
    *set = (data_set){ 0 };
}
