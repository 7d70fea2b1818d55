/* eval_report.h - a run in words: an aligned Markdown table, CSV, JSON, or a page of HTML.  In: a run and its summary.
 * Out: bytes on a stream; whether they arrived is for the caller to ask of the stream. */
#ifndef TMX_EVAL_EVAL_REPORT_H
#define TMX_EVAL_EVAL_REPORT_H

#include "summary.h"

#include <stdio.h>

typedef struct eval_report {
    const eval_run *run;
    const summary *rows;
    const char *model_path, *command;          /* as the user gave them */
    const char *sweep;                         /* "window" ...; NULL = plans of no order */
    int32_t n_threads;
} eval_report;

void report_print_markdown(const eval_report *r, FILE *out);
void report_print_csv(const eval_report *r, FILE *out);
/* Settings, rows, and every sample with its answers.  TMX_E_MEMORY. */
tmx_status report_print_json(const eval_report *r, FILE *out, tmx_error *err);
/* One self-contained page: tables and pictures, no scripts, nothing loaded. */
void report_print_page(const eval_report *r, FILE *out);

/* ---- what the writers share */

enum { REPORT_CELL_BYTES = 96, REPORT_TASK_COLUMNS = 14, REPORT_TEXT_COLUMNS = 9 };
extern const char *const report_task_heads[REPORT_TASK_COLUMNS];
extern const char *const report_text_heads[REPORT_TEXT_COLUMNS];
/* One cell of a row as text; `column` counts in the heads of its table. */
const char *report_cell(const eval_report *r, const summary_row *row, int32_t column, char text[REPORT_CELL_BYTES]);
static inline int32_t report_n_columns(bool is_text) { return is_text ? REPORT_TEXT_COLUMNS : REPORT_TASK_COLUMNS; }
/* Left-aligned columns hold names. */
bool report_is_name(bool is_text, int32_t column);
/* "SmolLM2 ..., fingerprint 0123456789ab, bf16, avx512, 2 threads" and the like: label and line, or false at the end. */
bool report_setting(const eval_report *r, int32_t i, const char **label, char *line, size_t size);
bool report_has_rows(const eval_report *r, bool is_text);

/* How to read the columns, one sentence after the other; NULL at the end. */
extern const char *const report_notes[];

#endif
