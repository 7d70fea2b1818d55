/* record.h - results as records: one list of named fields each, written as a line of CSV or as an object of a JSON array.
 * Every record of a writer has the same fields in the same order. */
#ifndef TMX_CLI_RECORD_H
#define TMX_CLI_RECORD_H

#include "report.h"

typedef enum field_kind {
    FIELD_NONE,                    /* there is no such thing for this record: null, an empty cell */
    FIELD_TEXT, FIELD_COUNT, FIELD_NUMBER, FIELD_BOOL,
    FIELD_COUNTS, FIELD_NUMBERS,   /* arrays: only JSON has them */
} field_kind;

typedef struct field {
    const char *name;
    const char *text;
    int64_t count;                 /* also of BOOL */
    double number;
    const int64_t *counts;         /* [n] */
    const double *numbers;         /* [n] */
    int32_t n;
    field_kind kind;
} field;

static inline field field_none(const char *name) { return (field){ .name = name, .kind = FIELD_NONE }; }
static inline field field_text(const char *name, const char *text) { return (field){ .name = name, .kind = FIELD_TEXT, .text = text }; }
static inline field field_count(const char *name, int64_t n) { return (field){ .name = name, .kind = FIELD_COUNT, .count = n }; }
static inline field field_number(const char *name, double x) { return (field){ .name = name, .kind = FIELD_NUMBER, .number = x }; }
static inline field field_bool(const char *name, bool b) { return (field){ .name = name, .kind = FIELD_BOOL, .count = b }; }
static inline field field_counts(const char *name, const int64_t *counts, int32_t n)
{
    return (field){ .name = name, .kind = FIELD_COUNTS, .counts = counts, .n = n };
}
static inline field field_numbers(const char *name, const double *numbers, int32_t n)
{
    return (field){ .name = name, .kind = FIELD_NUMBERS, .numbers = numbers, .n = n };
}

typedef struct record_writer {
    bool is_json, has_begun;
    json_writer json;
} record_writer;

/* Writes to standard output and flushes, so that a reader sees each result when it stands. */
void record_write(record_writer *w, const field *fields, int32_t n_fields);
void record_end(record_writer *w);     /* nothing if nothing was written */

#endif
