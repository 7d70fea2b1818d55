#include "plan/strict_json.h"

#include "base/mem.h"
#include "base/status.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *path_tail(const char *path)
{
    enum { MAX_SHOWN = 72 };
    const size_t n = strlen(path);
    if (n <= MAX_SHOWN) return path;
    const char *tail = path + n - MAX_SHOWN;
    while ((*tail & 0xc0) == 0x80) tail++;             /* not from the middle of a character */
    return tail;
}

/* ---------------------------------------------------------------- text -> value */

static tmx_status refuse_size(const strict_reader *r, uint64_t n_bytes)
{
    return refuse(r->err, TMX_E_FORMAT, "%s: %" PRIu64 " bytes, a %s file has at most %zu", r->file, n_bytes, r->what, r->max_bytes);
}

tmx_status strict_parse(const strict_reader *r, const char *text, size_t n_bytes, json_t **root)
{
    if (n_bytes > r->max_bytes) return refuse_size(r, n_bytes);
    if (n_bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        return refuse(r->err, TMX_E_FORMAT, "%s:1:1: starts with a byte order mark, expected plain UTF-8", r->file);
    }
    json_error_t e;
    *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &e);
    if (*root != NULL) return TMX_OK;
    /* jansson gives no text when a value finds no memory, and calls a string without memory an invalid token */
    if (json_error_code(&e) == json_error_out_of_memory || e.text[0] == '\0') {
        return refuse(r->err, TMX_E_MEMORY, "%s: no memory to read it", r->file);
    }
    return refuse(r->err, TMX_E_FORMAT, "%s:%d:%d: %s", r->file, e.line, e.column, e.text);
}

const char *strict_type_name(const json_t *value)
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

json_t *strict_find(json_t *object, const char *field)
{
    const char *dot = strrchr(field, '.');
    return json_object_get(object, dot != NULL ? dot + 1 : field);
}

tmx_status strict_refuse_field(const strict_reader *r, const char *field, const char *format, ...)
{
    char reason[160];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    return refuse(r->err, TMX_E_FORMAT, "%s: field \"%s\": %s", r->file, field, reason);
}

tmx_status strict_get_typed(const strict_reader *r, json_t *object, const char *field, json_type type, const char *expected,
                            json_t **value)
{
    *value = strict_find(object, field);
    if (*value == NULL) return strict_refuse_field(r, field, "missing, expected %s", expected);
    if (json_typeof(*value) == type) return TMX_OK;
    return strict_refuse_field(r, field, "found %s, expected %s", strict_type_name(*value), expected);
}

tmx_status strict_get_count(const strict_reader *r, json_t *object, const char *field, int32_t min, int32_t *count)
{
    json_t *value;
    TRY(strict_get_typed(r, object, field, JSON_INTEGER, "an integer", &value));
    const json_int_t n = json_integer_value(value);
    if (n < min || n > INT32_MAX) {
        return strict_refuse_field(r, field, "found %" JSON_INTEGER_FORMAT ", expected %d..%d", n, min, INT32_MAX);
    }
    *count = (int32_t)n;
    return TMX_OK;
}

tmx_status strict_get_number(const strict_reader *r, json_t *object, const char *field, bool is_signed, double *number)
{
    json_t *value = strict_find(object, field);
    if (value == NULL) return strict_refuse_field(r, field, "missing, expected a number");
    if (!json_is_number(value)) return strict_refuse_field(r, field, "found %s, expected a number", strict_type_name(value));
    const double x = json_number_value(value);
    if (!isfinite(x) || (!is_signed && x < 0)) {
        return strict_refuse_field(r, field, "found %g, expected a finite number%s", x, is_signed ? "" : ", 0 or more");
    }
    *number = x;
    return TMX_OK;
}

tmx_status strict_get_text(const strict_reader *r, json_t *object, const char *field, char *text, size_t size)
{
    json_t *value;
    TRY(strict_get_typed(r, object, field, JSON_STRING, "a string", &value));
    const size_t n = json_string_length(value);
    if (n >= size) return strict_refuse_field(r, field, "%zu bytes, expected at most %zu", n, size - 1);
    memcpy(text, json_string_value(value), n + 1);
    return TMX_OK;
}

tmx_status strict_get_optional_text(const strict_reader *r, json_t *object, const char *field, char *text, size_t size)
{
    return strict_find(object, field) != NULL ? strict_get_text(r, object, field, text, size) : TMX_OK;
}

tmx_status strict_refuse_unknown_fields(const strict_reader *r, json_t *object, const char *inside, const char *const *known)
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

tmx_status strict_check_format(const strict_reader *r, json_t *root, const char *format, int32_t last_version, const char *const *known)
{
    if (!json_is_object(root)) {
        return refuse(r->err, TMX_E_FORMAT, "%s: found %s, expected an object {...}", r->file, strict_type_name(root));
    }
    json_t *value;
    char expected[48];
    snprintf(expected, sizeof expected, "\"%s\"", format);
    TRY(strict_get_typed(r, root, "format", JSON_STRING, expected, &value));
    if (strcmp(json_string_value(value), format) != 0) {
        return strict_refuse_field(r, "format", "found \"%.40s\", expected \"%s\"", json_string_value(value), format);
    }
    int32_t found = 0;
    TRY(strict_get_count(r, root, "version", 1, &found));
    if (found > last_version) {                    /* before the fields: a later version may have others */
        return refuse(r->err, TMX_E_UNSUPPORTED, "%s: %s version %d, this library reads version %s%d", r->file, r->what, found,
                      last_version > 1 ? "1 to " : "", last_version);
    }
    return strict_refuse_unknown_fields(r, root, "", known);
}

/* ---------------------------------------------------------------- file -> text */

int strict_open(const char *path) { return open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK); }

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

tmx_status strict_read_file(const strict_reader *r, int fd, char **text, size_t *n_bytes)
{
    struct stat st;
    if (fstat(fd, &st) != 0) return refuse(r->err, TMX_E_IO, "%s: %s", r->file, strerror(errno));
    if (!S_ISREG(st.st_mode)) return refuse(r->err, TMX_E_IO, "%s: not a regular file, expected a %s file", r->file, r->what);
    if ((uint64_t)st.st_size > r->max_bytes) return refuse_size(r, (uint64_t)st.st_size);
    *n_bytes = (size_t)st.st_size;
    *text = mem_alloc(*n_bytes, 1);
    if (*text == NULL) return refuse(r->err, TMX_E_MEMORY, "%s: no memory for %zu bytes", r->file, *n_bytes);
    const tmx_status status = read_all(fd, r->file, *text, *n_bytes, r->err);
    if (status != TMX_OK) mem_free(*text);
    return status;
}

/* ---------------------------------------------------------------- value -> text -> file */

tmx_status strict_text(json_t *root, const char *what, size_t n_digits, char **text, size_t *n_bytes, tmx_error *err)
{
    const size_t flags = JSON_INDENT(2) | JSON_REAL_PRECISION(n_digits);
    const size_t n = root != NULL ? json_dumpb(root, NULL, 0, flags) : 0;
    char *buf = n != 0 ? mem_alloc(n + 2, 1) : NULL;
    const bool is_done = buf != NULL && json_dumpb(root, buf, n, flags) == n;
    json_decref(root);
    if (!is_done) {
        mem_free(buf);
        return refuse(err, TMX_E_MEMORY, "%s: no memory for its text", what);
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

tmx_status strict_write_file(const char *path, const char *text, size_t n_bytes, tmx_error *err)
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
