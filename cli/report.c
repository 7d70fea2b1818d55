#include "report.h"

#include "signals.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- plain text */

void print_safe(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, out);
}

int complain(int code, const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fputs("tmx: ", stderr);
    print_safe(stderr, line);
    fputc('\n', stderr);
    return code;
}

int complain_error(const tmx_error *err)
{
    switch (err->code) {
    case TMX_OK: return 0;
    case TMX_E_ARG: return complain(EXIT_USAGE, "%s", err->text);
    case TMX_E_MEMORY:
    case TMX_E_DEVICE: return complain(EXIT_RESOURCES, "%s", err->text);
    case TMX_E_CANCELLED: return signals_say_interrupted();
    case TMX_E_IO:
    case TMX_E_FORMAT:
    case TMX_E_UNSUPPORTED:
    case TMX_E_FULL:
    case TMX_E_NUMERIC: break;
    }
    return complain(EXIT_INPUT, "%s", err->text);
}

void print_warning(const char *line)
{
    complain(0, "warning: %s", line);
}

static int output_errno;           /* of the first flush that failed: stdio forgets it */

bool flush_output(void)
{
    errno = 0;
    const bool is_fine = fflush(stdout) == 0 && !ferror(stdout);
    if (!is_fine && output_errno == 0) output_errno = errno != 0 ? errno : EIO;
    return is_fine;
}

int finish_output(int code)
{
    if (flush_output() || code != 0) return code;      /* a failure printed its one line already */
    if (output_errno == EPIPE) return EXIT_PIPE;
    return complain(EXIT_INPUT, "cannot write to standard output: %s", strerror(output_errno));
}

const char *text_of_ms(double ms, char buf[32])
{
    if (ms < 999.5) snprintf(buf, 32, "%.*f ms", ms < 9.95 ? 1 : 0, ms);
    else snprintf(buf, 32, "%.*f s", ms < 99950 ? 1 : 0, ms / 1e3);
    return buf;
}

const char *text_of_bytes(uint64_t n_bytes, char buf[32])
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    double n = (double)n_bytes;
    int unit = 0;
    for (; n >= 1024 && unit < 4; unit++) n /= 1024;
    snprintf(buf, 32, "%.*f %s", unit == 0 ? 0 : n < 10 ? 2 : n < 100 ? 1 : 0, n, units[unit]);
    return buf;
}

/* ---------------------------------------------------------------- JSON */

/* Length of the UTF-8 sequence at s, of which n bytes are there; 0 if it is none (overlong and surrogates too). */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    if (s[0] < 0x80) return 1;
    const size_t length = s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    if (length == 0 || length > n) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
    }
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f)) return 0;
    if ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f)) return 0;
    return length;
}

static void put_string(FILE *out, const char *text, size_t n_bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    fputc('"', out);
    for (size_t i = 0; i < n_bytes;) {
        const size_t length = utf8_length(s + i, n_bytes - i);
        if (length == 0) fputs("\\ufffd", out);
        else if (s[i] == '"' || s[i] == '\\') fprintf(out, "\\%c", s[i]);
        else if (s[i] == '\n') fputs("\\n", out);
        else if (s[i] < 0x20 || s[i] == 0x7f) fprintf(out, "\\u%04x", s[i]);
        else fwrite(s + i, 1, length, out);
        i += length > 0 ? length : 1;
    }
    fputc('"', out);
}

static void begin_item(json_writer *j, const char *key)
{
    if (j->depth == 0) return;
    if (j->has_items[j->depth - 1]) fputc(',', j->out);
    j->has_items[j->depth - 1] = true;
    fprintf(j->out, "\n%*s", 2 * j->depth, "");
    if (key == NULL) return;
    put_string(j->out, key, strlen(key));
    fputs(": ", j->out);
}

static void begin(json_writer *j, const char *key, char opener, char closer)
{
    begin_item(j, key);
    assert(j->depth < JSON_DEPTH);
    fputc(opener, j->out);
    j->closer[j->depth] = closer;
    j->has_items[j->depth++] = false;
}

void json_begin_object(json_writer *j, const char *key) { begin(j, key, '{', '}'); }
void json_begin_array(json_writer *j, const char *key) { begin(j, key, '[', ']'); }

void json_end(json_writer *j)
{
    j->depth--;
    if (j->has_items[j->depth]) fprintf(j->out, "\n%*s", 2 * j->depth, "");
    fputc(j->closer[j->depth], j->out);
    if (j->depth == 0) fputc('\n', j->out);
}

void json_bytes(json_writer *j, const char *key, const char *text, size_t n_bytes)
{
    begin_item(j, key);
    put_string(j->out, text, n_bytes);
}

void json_text(json_writer *j, const char *key, const char *text)
{
    if (text != NULL) {
        json_bytes(j, key, text, strlen(text));
        return;
    }
    begin_item(j, key);
    fputs("null", j->out);
}

void json_count(json_writer *j, const char *key, int64_t n)
{
    begin_item(j, key);
    fprintf(j->out, "%lld", (long long)n);
}

void json_size(json_writer *j, const char *key, uint64_t n)
{
    begin_item(j, key);
    fprintf(j->out, "%llu", (unsigned long long)n);
}

static void put_number(FILE *out, double x)
{
    if (isfinite(x)) fprintf(out, "%.9g", x);
    else fputs("null", out);
}

void json_number(json_writer *j, const char *key, double x)
{
    begin_item(j, key);
    put_number(j->out, x);
}

void json_bool(json_writer *j, const char *key, bool is_true)
{
    begin_item(j, key);
    fputs(is_true ? "true" : "false", j->out);
}

void json_ids(json_writer *j, const char *key, const int32_t *ids, size_t n)
{
    begin_item(j, key);
    fputc('[', j->out);
    for (size_t i = 0; i < n; i++) fprintf(j->out, "%s%d", i == 0 ? "" : ", ", ids[i]);
    fputc(']', j->out);
}

void json_counts(json_writer *j, const char *key, const int64_t *counts, int32_t n)
{
    begin_item(j, key);
    fputc('[', j->out);
    for (int32_t i = 0; i < n; i++) fprintf(j->out, "%s%lld", i == 0 ? "" : ", ", (long long)counts[i]);
    fputc(']', j->out);
}

void json_numbers(json_writer *j, const char *key, const double *numbers, int32_t n)
{
    begin_item(j, key);
    fputc('[', j->out);
    for (int32_t i = 0; i < n; i++) {
        if (i > 0) fputs(", ", j->out);
        put_number(j->out, numbers[i]);
    }
    fputc(']', j->out);
}

/* ---------------------------------------------------------------- NumPy */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the header says '<f4'");

int write_npy(const char *path, const float *data, size_t n_rows, size_t n_cols)
{
    /* magic, version, length of what follows, a Python dict padded so that the data starts at a multiple of 64 */
    enum { PREFIX = 10, HEADER = 128 };
    char header[HEADER], shape[64];
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = HEADER - PREFIX;
    header[9] = 0;
    if (n_rows == 0) snprintf(shape, sizeof shape, "(%zu,)", n_cols);
    else snprintf(shape, sizeof shape, "(%zu, %zu)", n_rows, n_cols);
    const int n = snprintf(header + PREFIX, HEADER - PREFIX,
                           "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }", shape);
    memset(header + PREFIX + n, ' ', (size_t)(HEADER - PREFIX - n - 1));
    header[HEADER - 1] = '\n';

    FILE *file = fopen(path, "wb");
    if (file == NULL) return complain(EXIT_INPUT, "%s: cannot be created: %s", path, strerror(errno));
    const size_t n_items = (n_rows == 0 ? 1 : n_rows) * n_cols;
    errno = 0;
    const bool is_written = fwrite(header, 1, HEADER, file) == HEADER
                            && fwrite(data, sizeof *data, n_items, file) == n_items;
    const int why = errno;
    if (fclose(file) == 0 && is_written) return 0;
    return complain(EXIT_INPUT, "%s: cannot be written: %s", path, strerror(is_written ? errno : why));
}
