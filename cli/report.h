/* report.h - everything tmx prints that is not generated text: complaints, quantities, JSON, .npy files.
 * Text that comes from files is never trusted to be printable. */
#ifndef TMX_CLI_REPORT_H
#define TMX_CLI_REPORT_H

#include "tmx.h"

#include <stdio.h>

enum { EXIT_USAGE = 1, EXIT_INPUT = 2, EXIT_RESOURCES = 3, EXIT_PIPE = 141 };

/* "tmx: ..." on standard error, one line.  Returns code. */
__attribute__((format(printf, 2, 3)))
int complain(int code, const char *format, ...);
/* The same for a failed library call; the code follows from the status. */
int complain_error(const tmx_error *err);
/* "tmx: warning: ...": the program goes on. */
void print_warning(const char *line);

/* Flushes standard output; false once anything could not be written. */
bool flush_output(void);
/* The last word of main: code, or EXIT_INPUT when the output could not be written, or EXIT_PIPE when its reader has
 * gone. */
int finish_output(int code);

/* The bytes with every control character as "?", for names and values from files. */
void print_safe(FILE *out, const char *text);

/* "14.2 s", "312 ms"; "1.46 GiB", "312 B" */
const char *text_of_ms(double ms, char buf[32]);
const char *text_of_bytes(uint64_t n_bytes, char buf[32]);

/* ---------------------------------------------------------------- JSON */

/* Writes one well-formed object or array.  key is NULL inside arrays.  Bytes that are no UTF-8 become U+FFFD, numbers that are
 * not finite become null. */
enum { JSON_DEPTH = 16 };
typedef struct json_writer {
    FILE *out;
    int depth;
    char closer[JSON_DEPTH];
    bool has_items[JSON_DEPTH];
} json_writer;

void json_begin_object(json_writer *j, const char *key);
void json_begin_array(json_writer *j, const char *key);
void json_end(json_writer *j);     /* the innermost; the outermost also ends the line */
void json_text(json_writer *j, const char *key, const char *text);         /* NULL = null */
void json_bytes(json_writer *j, const char *key, const char *text, size_t n_bytes);
void json_count(json_writer *j, const char *key, int64_t n);
void json_size(json_writer *j, const char *key, uint64_t n);
void json_number(json_writer *j, const char *key, double x);
void json_bool(json_writer *j, const char *key, bool is_true);
/* arrays on one line */
void json_ids(json_writer *j, const char *key, const int32_t *ids, size_t n);
void json_counts(json_writer *j, const char *key, const int64_t *counts, int32_t n);
void json_numbers(json_writer *j, const char *key, const double *numbers, int32_t n);

/* ---------------------------------------------------------------- NumPy */

/* Format version 1, float32, C order; [n_cols] when n_rows is 0, else [n_rows][n_cols].  Returns an exit code. */
int write_npy(const char *path, const float *data, size_t n_rows, size_t n_cols);

#endif
