#include "journal.h"

#include "fault.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const char FORMAT_NAME[] = "trianglemix-eval";
enum { FORMAT_VERSION = 1, MAX_JOURNAL_MIB = 1024, PLAN_TEXT_BYTES = 2048 };

struct journal {
    int fd;
    const char *path;              /* borrowed */
};

typedef struct reader {
    const char *path;
    int32_t line;
    eval_run *run;
    tmx_error *err;
} reader;

/* ---------------------------------------------------------------- objects */

/* Sets a field; the object is gone and NULL once anything fails. */
static void put(json_t **object, const char *key, json_t *value)
{
    if (*object != NULL && json_object_set_new(*object, key, value) == 0) return;
    if (*object == NULL) json_decref(value);
    json_decref(*object);
    *object = NULL;
}

static json_t *hash_text(uint64_t hash) { return json_sprintf("%016llx", (unsigned long long)hash); }

/* What the numbers depend on, so that only equal runs go on with a journal.  Cells may change: samples carry theirs. */
static json_t *make_header(const eval_params *p)
{
    const tmx_model *m = p->model;
    json_t *plans = json_array(), *header = json_object();
    bool is_whole = true;
    for (int32_t i = 0; i < p->n_plans; i++) {
        char text[PLAN_TEXT_BYTES];
        is_whole &= json_array_append_new(plans, json_string(tmx_plan_text(p->plans[i].plan, text, sizeof text))) == 0;
    }
    put(&header, "format", json_string(FORMAT_NAME));
    put(&header, "version", json_integer(FORMAT_VERSION));
    put(&header, "model", json_string(tmx_model_info_get(m)->fingerprint));
    put(&header, "compute", json_integer(tmx_model_compute(m)));
    const bool is_on_cpu = strcmp(tmx_model_info_get(m)->device, "cpu") == 0;      /* else the card takes the rung's place */
    put(&header, "isa", json_string(is_on_cpu ? tmx_isa_name(tmx_model_isa(m)) : tmx_model_device_name(m)));
    put(&header, "cache_type", json_integer(p->session.kv_type));
    put(&header, "is_chat", json_boolean(p->is_chat));
    put(&header, "seed", json_integer((json_int_t)p->seed));
    put(&header, "plans", plans);
    if (is_whole) return header;
    json_decref(header);
    return NULL;
}

static json_t *make_result(const eval_result *x)
{
    json_t *o = json_object();
    put(&o, "score", json_real(x->score));
    put(&o, "prefill_ms", json_real(x->prefill_ms));
    put(&o, "attention_ms", json_real(x->attention_ms));
    put(&o, "density", json_real(x->density));
    put(&o, "kl_first", json_real(x->kl_first));
    put(&o, "kl_forced", json_real(x->kl_forced));
    put(&o, "is_top_first", json_integer(x->is_top_first));
    put(&o, "n_top_forced", json_integer(x->n_top_forced));
    put(&o, "n_forced", json_integer(x->n_forced));
    put(&o, "n_equal", json_integer(x->n_equal));
    put(&o, "n_answer", json_integer(x->n_answer));
    if (x->answer != NULL) put(&o, "answer", json_string(x->answer));
    return o;
}

static json_t *make_sample(const eval_run *run, int32_t cell, int32_t index)
{
    const eval_cell *c = &run->params->cells[cell];
    const eval_sample *s = &run->samples[cell][index];
    json_t *results = json_array(), *o = json_object();
    bool is_whole = true;
    for (int32_t i = 0; i < run->params->n_plans; i++) {
        is_whole &= json_array_append_new(results, make_result(&s->results[i])) == 0;
    }
    put(&o, "task", json_string(c->name));
    put(&o, "length", json_integer(c->length));
    put(&o, "index", json_integer(index));
    put(&o, "prompt", hash_text(s->prompt_hash));
    put(&o, "n_tokens", json_integer(s->n_tokens));
    put(&o, "results", results);
    if (is_whole) return o;
    json_decref(o);
    return NULL;
}

/* ---------------------------------------------------------------- writing */

/* One write for the whole line: a crash leaves a torn last line at worst.  Takes the object over. */
static tmx_status append_line(const journal *j, json_t *object, tmx_error *err)
{
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(object);
    if (text == NULL) return fault_memory(err, "a line of the journal");
    const size_t n_bytes = strlen(text) + 1;
    text[n_bytes - 1] = '\n';
    tmx_status status = TMX_OK;
    for (size_t n = 0; n < n_bytes && status == TMX_OK;) {
        const ssize_t put_now = write(j->fd, text + n, n_bytes - n);
        if (put_now > 0) n += (size_t)put_now;
        else if (errno != EINTR) status = fault(err, TMX_E_IO, "%.72s: cannot be written: %s", j->path, strerror(errno));
    }
    free(text);
    return status;
}

tmx_status journal_add(journal *j, const eval_run *run, int32_t cell, int32_t index, tmx_error *err)
{
    return append_line(j, make_sample(run, cell, index), err);
}

/* ---------------------------------------------------------------- reading */

static tmx_status refuse_field(const reader *r, const char *field)
{
    return fault(r->err, TMX_E_FORMAT, "%.72s:%d: field \"%s\" is missing or wrong", r->path, r->line, field);
}

static tmx_status get_count(const reader *r, const json_t *o, const char *field, int32_t max, int32_t *value)
{
    const json_t *v = json_object_get(o, field);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > max) return refuse_field(r, field);
    *value = (int32_t)json_integer_value(v);
    return TMX_OK;
}

static tmx_status get_number(const reader *r, const json_t *o, const char *field, double max, double *value)
{
    const json_t *v = json_object_get(o, field);
    const double x = json_number_value(v);
    /* a KL divergence may come out as minus a rounding error */
    if (!json_is_number(v) || !isfinite(x) || x < -1e-6 || x > max) return refuse_field(r, field);
    *value = x;
    return TMX_OK;
}

static tmx_status read_result(const reader *r, const json_t *o, bool is_text, eval_result *x)
{
    TRY(get_number(r, o, "score", is_text ? 1e9 : 1, &x->score));
    TRY(get_number(r, o, "prefill_ms", 1e12, &x->prefill_ms));
    TRY(get_number(r, o, "attention_ms", 1e12, &x->attention_ms));
    TRY(get_number(r, o, "density", 1, &x->density));
    TRY(get_number(r, o, "kl_first", 1e9, &x->kl_first));
    TRY(get_number(r, o, "kl_forced", 1e9, &x->kl_forced));
    TRY(get_count(r, o, "is_top_first", 1, &x->is_top_first));
    TRY(get_count(r, o, "n_forced", EVAL_N_FORCED, &x->n_forced));
    TRY(get_count(r, o, "n_top_forced", x->n_forced, &x->n_top_forced));
    TRY(get_count(r, o, "n_answer", INT32_MAX, &x->n_answer));
    TRY(get_count(r, o, "n_equal", x->n_answer, &x->n_equal));
    const json_t *answer = json_object_get(o, "answer");
    if (is_text) return TMX_OK;
    if (!json_is_string(answer)) return refuse_field(r, "answer");
    x->answer = strdup(json_string_value(answer));
    return x->answer != NULL ? TMX_OK : fault_memory(r->err, "an answer of the journal");
}

/* The sample that a line speaks of; NULL if this run does not ask for it. */
static eval_sample *find_sample(const eval_run *run, const char *task, int32_t length, int32_t index, bool *is_text)
{
    for (int32_t c = 0; c < run->params->n_cells; c++) {
        const eval_cell *cell = &run->params->cells[c];
        if (cell->length != length || strcmp(cell->name, task) != 0) continue;
        *is_text = cell->text != NULL;
        return index < cell->n_samples ? &run->samples[c][index] : NULL;
    }
    return NULL;
}

static tmx_status read_results(const reader *r, const json_t *list, bool is_text, eval_sample *sample)
{
    const size_t n = (size_t)r->run->params->n_plans;
    if (!json_is_array(list) || json_array_size(list) != n) return refuse_field(r, "results");
    sample->results = calloc(n, sizeof *sample->results);          /* freed with the run, also when half filled */
    if (sample->results == NULL) return fault_memory(r->err, "the results of a sample");
    for (size_t i = 0; i < n; i++) TRY(read_result(r, json_array_get(list, i), is_text, &sample->results[i]));
    return TMX_OK;
}

static tmx_status read_sample(const reader *r, const json_t *o)
{
    const char *task = json_string_value(json_object_get(o, "task")), *prompt = json_string_value(json_object_get(o, "prompt"));
    int32_t length, index;
    bool is_text = false;
    if (task == NULL) return refuse_field(r, "task");
    if (prompt == NULL || strlen(prompt) != 16 || prompt[strspn(prompt, "0123456789abcdef")] != '\0') return refuse_field(r, "prompt");
    TRY(get_count(r, o, "length", INT32_MAX, &length));
    TRY(get_count(r, o, "index", INT32_MAX, &index));
    eval_sample *sample = find_sample(r->run, task, length, index, &is_text);
    if (sample == NULL) return TMX_OK;
    if (sample->is_done) {
        return fault(r->err, TMX_E_FORMAT, "%.72s:%d: sample %d of %.40s stands there twice", r->path, r->line, index, task);
    }
    TRY(get_count(r, o, "n_tokens", INT32_MAX, &sample->n_tokens));
    TRY(read_results(r, json_object_get(o, "results"), is_text, sample));
    sample->prompt_hash = strtoull(prompt, NULL, 16);
    sample->is_done = true;
    r->run->n_done++;
    return TMX_OK;
}

static tmx_status check_header(const reader *r, const json_t *o)
{
    json_t *header = make_header(r->run->params);
    if (header == NULL) return fault_memory(r->err, "the head of a journal");
    const char *key, *different = NULL;
    json_t *value;
    json_object_foreach(header, key, value) {
        if (different == NULL && !json_equal(value, json_object_get(o, key))) different = key;
    }
    json_t *wanted = different != NULL ? json_object_get(header, different) : NULL;
    char *found = different != NULL ? json_dumps(json_object_get(o, different), JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    char *asked = different != NULL ? json_dumps(wanted, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    tmx_status status = TMX_OK;
    if (different != NULL) {
        status = fault(r->err, TMX_E_FORMAT, "%.72s: kept with \"%s\" %.48s, now it is %.48s", r->path, different,
                       found != NULL ? found : "missing", asked != NULL ? asked : "?");
    }
    free(found);
    free(asked);
    json_decref(header);
    return status;
}

static tmx_status read_line(const reader *r, const char *text, size_t n_bytes)
{
    json_error_t e;
    json_t *o = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &e);
    if (o == NULL) {
        if (json_error_code(&e) == json_error_out_of_memory || e.text[0] == '\0') return fault_memory(r->err, "a line of the journal");
        return fault(r->err, TMX_E_FORMAT, "%.72s:%d:%d: %s", r->path, r->line, e.column, e.text);
    }
    const tmx_status status = r->line == 1 ? check_header(r, o) : read_sample(r, o);
    json_decref(o);
    return status;
}

/* *n_whole: bytes up to the end of the last whole line. */
static tmx_status read_lines(reader *r, const char *text, size_t n_bytes, size_t *n_whole)
{
    static const char first[] = "{\"format\":\"trianglemix-eval\"";
    const size_t n_first = n_bytes < sizeof first - 1 ? n_bytes : sizeof first - 1;
    if (memcmp(text, first, n_first) != 0) {               /* nothing of a file that is not ours is ever cut away */
        return fault(r->err, TMX_E_FORMAT, "%.72s:1: not a journal of tmx eval", r->path);
    }
    for (*n_whole = 0; *n_whole < n_bytes;) {
        const char *line = text + *n_whole, *end = memchr(line, '\n', n_bytes - *n_whole);
        if (end == NULL) return TMX_OK;
        r->line++;
        TRY(read_line(r, line, (size_t)(end - line)));
        *n_whole += (size_t)(end - line) + 1;
    }
    return TMX_OK;
}

static tmx_status read_file(const journal *j, reader *r, size_t *n_whole)
{
    struct stat st;
    if (fstat(j->fd, &st) != 0) return fault(r->err, TMX_E_IO, "%.72s: %s", r->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return fault(r->err, TMX_E_IO, "%.72s: not a regular file, expected a journal", r->path);
    if (st.st_size > (off_t)MAX_JOURNAL_MIB << 20) {
        return fault(r->err, TMX_E_FORMAT, "%.72s: larger than %d MiB, the most a journal may be", r->path, MAX_JOURNAL_MIB);
    }
    char *text = malloc((size_t)st.st_size + 1);
    if (text == NULL) return fault_memory(r->err, "the journal");
    tmx_status status = TMX_OK;
    size_t n = 0;
    while (n < (size_t)st.st_size && status == TMX_OK) {
        const ssize_t got = pread(j->fd, text + n, (size_t)st.st_size - n, (off_t)n);
        if (got > 0) n += (size_t)got;
        else if (got == 0 || errno != EINTR) status = fault(r->err, TMX_E_IO, "%.72s: cannot be read whole", r->path);
    }
    if (status == TMX_OK) status = read_lines(r, text, n, n_whole);
    free(text);
    return status;
}

/* ---------------------------------------------------------------- the file */

static tmx_status begin(const journal *j, eval_run *run, tmx_error *err)
{
    reader r = { .path = j->path, .run = run, .err = err };
    size_t n_whole = 0;
    if (flock(j->fd, LOCK_EX | LOCK_NB) != 0) return fault(err, TMX_E_IO, "%.72s: in use by another process", j->path);
    TRY(read_file(j, &r, &n_whole));
    if (ftruncate(j->fd, (off_t)n_whole) != 0) return fault(err, TMX_E_IO, "%.72s: %s", j->path, strerror(errno));
    return n_whole == 0 ? append_line(j, make_header(run->params), err) : TMX_OK;
}

tmx_status journal_open(journal **j, eval_run *run, tmx_error *err)
{
    const char *path = run->params->journal;
    journal *opened = malloc(sizeof *opened);
    if (opened == NULL) return fault_memory(err, "the journal");
    *opened = (journal){ .path = path, .fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666) };
    tmx_status status;
    if (opened->fd < 0) status = fault(err, TMX_E_IO, "%.72s: %s", path, strerror(errno));
    else status = begin(opened, run, err);
    if (status == TMX_OK) *j = opened;
    else journal_close(opened);
    return status;
}

void journal_close(journal *j)
{
    if (j == NULL) return;
    if (j->fd >= 0) close(j->fd);
    free(j);
}
