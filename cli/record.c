#include "record.h"

#include <string.h>

static bool is_array(const field *f) { return f->kind == FIELD_COUNTS || f->kind == FIELD_NUMBERS; }

/* ---------------------------------------------------------------- CSV */

/* Quoted where a comma or a quote asks for it; control characters become '?', so that a record is a line. */
static void put_cell(FILE *out, const char *text)
{
    const bool is_quoted = strpbrk(text, ",\"") != NULL;
    if (is_quoted) fputc('"', out);
    for (; *text != '\0'; text++) {
        if (*text == '"') fputc('"', out);
        fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, out);
    }
    if (is_quoted) fputc('"', out);
}

static void put_line(FILE *out, const field *fields, int32_t n, bool is_header)
{
    bool is_first = true;
    for (int32_t i = 0; i < n; i++) {
        const field *f = &fields[i];
        if (is_array(f)) continue;
        if (!is_first) fputc(',', out);
        is_first = false;
        if (is_header) fputs(f->name, out);
        else if (f->kind == FIELD_TEXT) put_cell(out, f->text);
        else if (f->kind == FIELD_COUNT) fprintf(out, "%lld", (long long)f->count);
        else if (f->kind == FIELD_NUMBER) fprintf(out, "%.9g", f->number);
        else if (f->kind == FIELD_BOOL) fputs(f->count != 0 ? "true" : "false", out);
    }
    fputc('\n', out);
}

/* ---------------------------------------------------------------- JSON */

static void put_object(json_writer *j, const field *fields, int32_t n)
{
    json_begin_object(j, NULL);
    for (int32_t i = 0; i < n; i++) {
        const field *f = &fields[i];
        switch (f->kind) {
        case FIELD_NONE: json_text(j, f->name, NULL); break;
        case FIELD_TEXT: json_text(j, f->name, f->text); break;
        case FIELD_COUNT: json_count(j, f->name, f->count); break;
        case FIELD_NUMBER: json_number(j, f->name, f->number); break;
        case FIELD_BOOL: json_bool(j, f->name, f->count != 0); break;
        case FIELD_COUNTS: json_counts(j, f->name, f->counts, f->n); break;
        case FIELD_NUMBERS: json_numbers(j, f->name, f->numbers, f->n); break;
        }
    }
    json_end(j);
}

/* ---------------------------------------------------------------- both */

void record_write(record_writer *w, const field *fields, int32_t n_fields)
{
    if (!w->has_begun) {
        w->json.out = stdout;
        if (w->is_json) json_begin_array(&w->json, NULL);
        else put_line(stdout, fields, n_fields, true);
    }
    w->has_begun = true;
    if (w->is_json) put_object(&w->json, fields, n_fields);
    else put_line(stdout, fields, n_fields, false);
    flush_output();
}

void record_end(record_writer *w)
{
    if (w->has_begun && w->is_json) json_end(&w->json);
}
