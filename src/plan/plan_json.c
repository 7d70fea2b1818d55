#include "plan/plan_parts.h"

#include "base/mem.h"
#include "base/status.h"
#include "pattern/pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char FORMAT_NAME[] = "trianglemix-plan";
enum { FORMAT_VERSION = 1 };

/* ---------------------------------------------------------------- JSON -> plan */

/* jansson proves the syntax and knows line and column; what follows proves the meaning and names the field. */
typedef struct reader { const char *file; tmx_error *err; } reader;

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

/* A field is given as the path shown to the user; its last part is the key. */
static json_t *find(json_t *object, const char *field)
{
    const char *dot = strrchr(field, '.');
    return json_object_get(object, dot != NULL ? dot + 1 : field);
}

__attribute__((format(printf, 3, 4)))
static tmx_status refuse_field(const reader *r, const char *field, const char *format, ...)
{
    char reason[160];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    return refuse(r->err, TMX_E_FORMAT, "%s: field \"%s\": %s", r->file, field, reason);
}

static tmx_status get_typed(const reader *r, json_t *object, const char *field, json_type type, const char *expected,
                            json_t **value)
{
    *value = find(object, field);
    if (*value == NULL) return refuse_field(r, field, "missing, expected %s", expected);
    if (json_typeof(*value) == type) return TMX_OK;
    return refuse_field(r, field, "found %s, expected %s", type_name(*value), expected);
}

static tmx_status get_count(const reader *r, json_t *object, const char *field, int32_t min, int32_t *count)
{
    json_t *value;
    TRY(get_typed(r, object, field, JSON_INTEGER, "an integer", &value));
    const json_int_t n = json_integer_value(value);
    if (n < min || n > INT32_MAX) {
        return refuse_field(r, field, "found %" JSON_INTEGER_FORMAT ", expected %d..%d", n, min, INT32_MAX);
    }
    *count = (int32_t)n;
    return TMX_OK;
}

static tmx_status get_text(const reader *r, json_t *object, const char *field, char *text, size_t size)
{
    json_t *value;
    TRY(get_typed(r, object, field, JSON_STRING, "a string", &value));
    const size_t n = json_string_length(value);
    if (n >= size) return refuse_field(r, field, "%zu bytes, expected at most %zu", n, size - 1);
    memcpy(text, json_string_value(value), n + 1);
    return TMX_OK;
}

/* Leaves text as it is if the field is absent. */
static tmx_status get_optional_text(const reader *r, json_t *object, const char *field, char *text, size_t size)
{
    return find(object, field) != NULL ? get_text(r, object, field, text, size) : TMX_OK;
}

static tmx_status refuse_unknown_fields(const reader *r, json_t *object, const char *inside, const char *const *known)
{
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        const char *const *k = known;
        while (*k != NULL && strcmp(*k, key) != 0) k++;
        if (*k == NULL) return refuse(r->err, TMX_E_FORMAT, "%s: field \"%s%.40s\": unknown", r->file, inside, key);
    }
    return TMX_OK;
}

static tmx_status check_format(const reader *r, json_t *root)
{
    static const char *const known[] = { "format", "version", "model", "n_sink", "n_window", "n_last", "layers", "note",
                                         NULL };
    if (!json_is_object(root)) {
        return refuse(r->err, TMX_E_FORMAT, "%s: found %s, expected an object {...}", r->file, type_name(root));
    }
    json_t *format;
    TRY(get_typed(r, root, "format", JSON_STRING, "\"trianglemix-plan\"", &format));
    if (strcmp(json_string_value(format), FORMAT_NAME) != 0) {
        return refuse_field(r, "format", "found \"%.40s\", expected \"%s\"", json_string_value(format), FORMAT_NAME);
    }
    int32_t version;
    TRY(get_count(r, root, "version", 1, &version));
    if (version != FORMAT_VERSION) {               /* before the fields: a later version may have others */
        return refuse(r->err, TMX_E_UNSUPPORTED, "%s: plan version %d, this library reads version %d", r->file, version,
                      FORMAT_VERSION);
    }
    return refuse_unknown_fields(r, root, "", known);
}

static tmx_status read_model(const reader *r, json_t *root, tmx_plan *p)
{
    static const char *const known[] = { "architecture", "name", "n_layers", "fingerprint", NULL };
    json_t *model;
    TRY(get_typed(r, root, "model", JSON_OBJECT, "an object", &model));
    TRY(refuse_unknown_fields(r, model, "model.", known));
    TRY(get_text(r, model, "model.architecture", p->architecture, sizeof p->architecture));
    TRY(get_optional_text(r, model, "model.name", p->model_name, sizeof p->model_name));
    TRY(get_optional_text(r, model, "model.fingerprint", p->fingerprint, sizeof p->fingerprint));
    const size_t n = strlen(p->fingerprint), n_hex = strspn(p->fingerprint, "0123456789abcdef");
    if (n != n_hex || (n != 0 && n != 64)) {
        return refuse_field(r, "model.fingerprint", "found \"%.16s\" (%zu bytes), expected 64 hex digits (0-9a-f) or"
                            " \"\"", p->fingerprint, n);
    }
    return get_count(r, model, "model.n_layers", 1, &p->n_layers);
}

/* "dense" -> TMX_PATTERN_DENSE; false if no kind has this name. */
static bool kind_of_name(const char *name, tmx_pattern_kind *kind)
{
    static const tmx_pattern_kind kinds[] = { TMX_PATTERN_DENSE, TMX_PATTERN_STREAMING, TMX_PATTERN_TRIANGLE };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(name, tmx_pattern_name(kinds[i])) != 0) continue;
        *kind = kinds[i];
        return true;
    }
    return false;
}

static tmx_status read_layers(const reader *r, json_t *root, tmx_plan *p)
{
    tmx_pattern layer = { .kind = TMX_PATTERN_DENSE };
    TRY(get_count(r, root, "n_sink", 0, &layer.n_sink));
    TRY(get_count(r, root, "n_window", 1, &layer.n_window));
    TRY(get_count(r, root, "n_last", 0, &layer.n_last));
    json_t *layers;
    TRY(get_typed(r, root, "layers", JSON_ARRAY, "an array of pattern names", &layers));
    const size_t n_entries = json_array_size(layers);
    if (n_entries != (size_t)p->n_layers) {
        return refuse_field(r, "layers", "%zu entries, expected %d (model.n_layers)", n_entries, p->n_layers);
    }
    p->layers = mem_alloc(n_entries, sizeof *p->layers);
    if (p->layers == NULL) return refuse(r->err, TMX_E_MEMORY, "%s: no memory for %zu layers", r->file, n_entries);
    for (size_t i = 0; i < n_entries; i++) {
        const json_t *entry = json_array_get(layers, i);
        char field[32];
        snprintf(field, sizeof field, "layers[%zu]", i);
        const char *name = json_string_value(entry);
        if (name == NULL) return refuse_field(r, field, "found %s, expected a pattern name", type_name(entry));
        if (!kind_of_name(name, &layer.kind)) {
            return refuse_field(r, field, "found \"%.24s\", expected \"dense\", \"streaming\" or \"triangle\"", name);
        }
        p->layers[i] = layer;
    }
    return TMX_OK;
}

static tmx_status check_model(const reader *r, const tmx_plan *p, const tmx_model_info *info)
{
    const bool is_any = p->architecture[0] == '\0';
    if ((!is_any && strcmp(p->architecture, info->architecture) != 0) || p->n_layers != info->n_layers) {
        return refuse(r->err, TMX_E_UNSUPPORTED, "%s: made for %s with %d layers, this model is %.24s with %d layers",
                      r->file, is_any ? "any model" : p->architecture, p->n_layers, info->architecture, info->n_layers);
    }
    const bool is_known = info->fingerprint != NULL && info->fingerprint[0] != '\0';
    if (is_known && p->fingerprint[0] != '\0' && strcmp(p->fingerprint, info->fingerprint) != 0) {
        return refuse(r->err, TMX_E_UNSUPPORTED, "%s: made for another model file, other LoRA adapters or another "
                      "RoPE base (fingerprint %.12s, here %.12s); set \"fingerprint\" to \"\" to use it anyway", r->file,
                      p->fingerprint, info->fingerprint);
    }
    return TMX_OK;
}

static tmx_status read_plan(const reader *r, json_t *root, const tmx_model_info *info, tmx_plan *p)
{
    TRY(check_format(r, root));
    TRY(read_model(r, root, p));
    TRY(read_layers(r, root, p));
    TRY(get_optional_text(r, root, "note", p->note, sizeof p->note));
    return info != NULL ? check_model(r, p, info) : TMX_OK;
}

static tmx_status refuse_size(const char *file, uint64_t n_bytes, tmx_error *err)
{
    return refuse(err, TMX_E_FORMAT, "%s: %" PRIu64 " bytes, a plan file has at most %d", file, n_bytes,
                  PLAN_FILE_MAX_BYTES);
}

tmx_status plan_read_json(tmx_plan **plan, const char *text, size_t n_bytes, const char *name,
                          const tmx_model_info *info, tmx_error *err)
{
    const reader r = { .file = path_tail(name), .err = err };
    if (n_bytes > PLAN_FILE_MAX_BYTES) return refuse_size(r.file, n_bytes, err);
    if (n_bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        return refuse(err, TMX_E_FORMAT, "%s:1:1: starts with a byte order mark, expected plain UTF-8", r.file);
    }
    json_error_t e;
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &e);
    if (root == NULL) {
        /* jansson gives no text when a value finds no memory, and calls a string without memory an invalid token */
        if (json_error_code(&e) == json_error_out_of_memory || e.text[0] == '\0') {
            return refuse(err, TMX_E_MEMORY, "%s: no memory to read it", r.file);
        }
        return refuse(err, TMX_E_FORMAT, "%s:%d:%d: %s", r.file, e.line, e.column, e.text);
    }
    tmx_status status;
    tmx_plan *p = mem_alloc(1, sizeof *p);
    if (p == NULL) status = refuse(err, TMX_E_MEMORY, "%s: no memory for a plan", r.file);
    else status = read_plan(&r, root, info, p);
    json_decref(root);
    if (status == TMX_OK) *plan = p;
    else tmx_plan_free(p);
    return status;
}

/* ---------------------------------------------------------------- file -> text */

static tmx_status read_all(int fd, const char *file, char *text, size_t n_bytes, tmx_error *err)
{
    for (size_t n = 0; n < n_bytes;) {
        const ssize_t got = read(fd, text + n, n_bytes - n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return refuse(err, TMX_E_IO, "%s: %s", file, strerror(errno));
        if (got == 0) return refuse(err, TMX_E_IO, "%s: changed while it was read, ends at byte %zu", file, n);
        n += (size_t)got;
    }
    return TMX_OK;
}

static tmx_status read_open_file(tmx_plan **plan, int fd, const char *path, const tmx_model_info *info, tmx_error *err)
{
    const char *file = path_tail(path);
    struct stat st;
    if (fstat(fd, &st) != 0) return refuse(err, TMX_E_IO, "%s: %s", file, strerror(errno));
    if (!S_ISREG(st.st_mode)) return refuse(err, TMX_E_IO, "%s: not a regular file, expected a plan file", file);
    if (st.st_size > PLAN_FILE_MAX_BYTES) return refuse_size(file, (uint64_t)st.st_size, err);
    const size_t n_bytes = (size_t)st.st_size;
    char *text = mem_alloc(n_bytes, 1);
    if (text == NULL) return refuse(err, TMX_E_MEMORY, "%s: no memory for %zu bytes", file, n_bytes);
    tmx_status status = read_all(fd, file, text, n_bytes, err);
    if (status == TMX_OK) status = plan_read_json(plan, text, n_bytes, path, info, err);
    mem_free(text);
    return status;
}

tmx_status plan_read_file(tmx_plan **plan, const char *path, const tmx_model_info *info, tmx_error *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);       /* a FIFO must not block */
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ENAMETOOLONG)) {
        return refuse(err, TMX_E_ARG, "plan '%.72s': no such file, and none of dense, triangle[:LAYERS], "
                      "streaming[:LAYERS], preset:NAME (LAYERS as in 5,7,10-29)", path);
    }
    if (fd < 0) return refuse(err, TMX_E_IO, "%s: %s", path_tail(path), strerror(errno));
    const tmx_status status = read_open_file(plan, fd, path, info, err);
    close(fd);
    return status;
}

/* ---------------------------------------------------------------- plan -> text -> file */

static json_t *plan_to_json(const tmx_plan *plan)
{
    json_t *layers = json_array();
    for (int32_t i = 0; i < plan->n_layers; i++) {
        json_array_append_new(layers, json_string(tmx_pattern_name(plan->layers[i].kind)));
    }
    json_t *root = json_pack("{s:s, s:i, s:{s:s, s:s, s:i, s:s}, s:i, s:i, s:i}", "format", FORMAT_NAME, "version",
                             FORMAT_VERSION, "model", "architecture", plan->architecture, "name", plan->model_name,
                             "n_layers", (int)plan->n_layers, "fingerprint", plan->fingerprint, "n_sink",
                             (int)plan->layers[0].n_sink, "n_window", (int)plan->layers[0].n_window, "n_last",
                             (int)plan->layers[0].n_last);
    /* Each call takes its value over, also when it fails; a short array is one of those failures. */
    const bool is_whole = json_array_size(layers) == (size_t)plan->n_layers;
    const bool has_layers = json_object_set_new(root, "layers", layers) == 0;
    const bool has_note = json_object_set_new(root, "note", json_string(plan->note)) == 0;
    if (is_whole && has_layers && has_note) return root;
    json_decref(root);
    return NULL;
}

tmx_status plan_json_text(const tmx_plan *plan, char **text, size_t *n_bytes, tmx_error *err)
{
    json_t *root = plan_to_json(plan);
    const size_t n = root != NULL ? json_dumpb(root, NULL, 0, JSON_INDENT(2)) : 0;
    char *buf = n != 0 ? mem_alloc(n + 2, 1) : NULL;
    const bool is_done = buf != NULL && json_dumpb(root, buf, n, JSON_INDENT(2)) == n;
    json_decref(root);
    if (!is_done) {
        mem_free(buf);
        return refuse(err, TMX_E_MEMORY, "plan: no memory for its text");
    }
    buf[n] = '\n';
    *text = buf;
    *n_bytes = n + 1;
    return TMX_OK;
}

static bool write_all(int fd, const char *text, size_t n_bytes)
{
    for (size_t n = 0; n < n_bytes;) {
        const ssize_t put = write(fd, text + n, n_bytes - n);
        if (put < 0 && errno != EINTR) return false;
        if (put > 0) n += (size_t)put;
    }
    return true;
}

/* A new file beside `path`, whose name is put into temporary[size]; -1 and errno if there can be none.  The name is
 * taken with O_EXCL, so writers never share one; the mode obeys the umask, which mkstemp's would not. */
static int create_beside(const char *path, char *temporary, size_t size)
{
    for (int i = 0; i < 100; i++) {
        const int n = snprintf(temporary, size, "%s.%ld-%d.tmp", path, (long)getpid(), i);
        if (n < 0 || (size_t)n >= size) {
            errno = ENAMETOOLONG;
            return -1;
        }
        const int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
    return -1;
}

static tmx_status write_file(const char *path, const char *text, size_t n_bytes, tmx_error *err)
{
    const char *file = path_tail(path);
    struct stat st;
    if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode)) {           /* rename would replace /dev/stdout, too */
        return refuse(err, TMX_E_IO, "%s: not a regular file, left as it is", file);
    }
    char temporary[PATH_MAX];
    const int fd = create_beside(path, temporary, sizeof temporary);
    if (fd < 0) return refuse(err, TMX_E_IO, "%s: cannot create a file in its folder: %s", file, strerror(errno));
    bool is_ok = write_all(fd, text, n_bytes) && fsync(fd) == 0;
    int why = errno;
    if (close(fd) != 0 && is_ok) {
        is_ok = false;
        why = errno;
    }
    if (is_ok && rename(temporary, path) == 0) return TMX_OK;
    if (is_ok) why = errno;
    unlink(temporary);
    return refuse(err, TMX_E_IO, "%s: not written: %s", file, strerror(why));
}

tmx_status tmx_plan_save(const tmx_plan *plan, const char *path, tmx_error *err)
{
    if (plan == NULL || path == NULL || path[0] == '\0') return refuse(err, TMX_E_ARG, "plan save: no plan or no path");
    char *text;
    size_t n_bytes;
    TRY(plan_json_text(plan, &text, &n_bytes, err));
    const tmx_status status = write_file(path, text, n_bytes, err);
    mem_free(text);
    return status;
}
