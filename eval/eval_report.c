#include "eval_report.h"

#include "fault.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const report_task_heads[REPORT_TASK_COLUMNS] = {
    "task", "length", "n", "plan", "score", "diff", "95% interval", "prefill", "gain", "KL first", "top-1", "KL next", "top-1 next",
    "same",
};
const char *const report_text_heads[REPORT_TEXT_COLUMNS] = {
    "text", "length", "n", "plan", "perplexity", "change", "95% interval", "prefill", "gain",
};

const char *const report_notes[] = {
    "Every plan answers the same samples, greedily; diff, KL and the columns behind it compare with the first plan.",
    "length: tokens of prompt and answer together. n: samples. score: points of 100.",
    "95% interval: of the paired difference, adjusted as Agresti and Min (2005) do: half a sample each for better and worse and one "
    "equal sample are added, so that few samples that agree do not look like certainty.",
    "prefill: median time. gain: median, over the samples, of the first plan's prefill time divided by this plan's.",
    "KL first, top-1: divergence (natural log) and equal most probable token, at the first token of the answer. KL next, top-1 "
    "next: the same over up to 32 further tokens, each plan led along the first plan's answer.",
    "same: share of the two greedy answers before they part.",
    "perplexity: of the last 128 tokens of each piece of text, the rest prefilled; its interval is Student's, of the mean "
    "difference of log probabilities.",
    NULL,
};

bool report_is_name(bool is_text, int32_t column)
{
    (void)is_text;
    return column == 0 || column == 3;
}

bool report_has_rows(const eval_report *r, bool is_text)
{
    for (int32_t i = 0; i < r->rows->n; i++) {
        if (r->rows->rows[i].is_text == is_text) return true;
    }
    return false;
}

/* ---------------------------------------------------------------- cells */

static void format_ms(double ms, char text[REPORT_CELL_BYTES])
{
    if (ms < 999.5) snprintf(text, REPORT_CELL_BYTES, "%.*f ms", ms < 9.95 ? 1 : 0, ms);
    else snprintf(text, REPORT_CELL_BYTES, "%.*f s", ms < 99950 ? 2 : 0, ms / 1e3);
}

static void format_range(const interval *range, char text[REPORT_CELL_BYTES])
{
    if (isfinite(range->low)) snprintf(text, REPORT_CELL_BYTES, "%+.1f .. %+.1f", range->low, range->high);
    else snprintf(text, REPORT_CELL_BYTES, "unknown");
}

const char *report_cell(const eval_report *r, const summary_row *row, int32_t column, char text[REPORT_CELL_BYTES])
{
    const bool is_first = row->plan == 0;
    if (is_first && (column == 5 || column == 6 || column >= 8)) return "";
    switch (column) {
    case 0: return row->task != NULL ? row->task : "mean";
    case 1:
        if (row->length == 0) return row->task != NULL ? "own" : "all";
        snprintf(text, REPORT_CELL_BYTES, "%d", row->length);
        break;
    case 2: snprintf(text, REPORT_CELL_BYTES, "%d", row->n); break;
    case 3: return r->run->params->plans[row->plan].label;
    case 4: snprintf(text, REPORT_CELL_BYTES, row->is_text ? "%.3f" : "%.1f", row->score); break;
    case 5: snprintf(text, REPORT_CELL_BYTES, row->is_text ? "%+.1f%%" : "%+.1f", row->difference); break;
    case 6: format_range(&row->range, text); break;
    case 7: format_ms(row->prefill_ms, text); break;
    case 8: snprintf(text, REPORT_CELL_BYTES, "%.2fx", row->gain); break;
    case 9: snprintf(text, REPORT_CELL_BYTES, "%.4f", fabs(row->kl_first)); break;
    case 10: snprintf(text, REPORT_CELL_BYTES, "%.0f%%", row->top_first); break;
    case 11: snprintf(text, REPORT_CELL_BYTES, "%.4f", fabs(row->kl_forced)); break;
    case 12: snprintf(text, REPORT_CELL_BYTES, "%.1f%%", row->top_forced); break;
    case 13: snprintf(text, REPORT_CELL_BYTES, "%.0f%%", row->same); break;
    default: return "";
    }
    return text;
}

bool report_setting(const eval_report *r, int32_t i, const char **label, char *line, size_t size)
{
    const eval_params *p = r->run->params;
    const tmx_model_info *m = tmx_model_info_get(p->model);
    char text[2048];
    switch (i) {
    case 0:
        *label = "model";
        snprintf(line, size, "%s (%s), fingerprint %.12s", m->name[0] != '\0' ? m->name : m->architecture, r->model_path, m->fingerprint);
        return true;
    case 1:
        *label = "machine";
        if (strcmp(m->device, "cpu") != 0) {
            snprintf(line, size, "bf16, %s, %s", tmx_model_device_name(p->model), tmx_model_provider(p->model));
            return true;
        }
        snprintf(line, size, "%s, %s, %s, %d threads", tmx_model_compute(p->model) == TMX_COMPUTE_BF16 ? "bf16" : "f32",
                 tmx_isa_name(tmx_model_isa(p->model)), tmx_model_provider(p->model), r->n_threads);
        return true;
    case 2:
        *label = "prompts";
        snprintf(line, size, "%s%s, seed %llu, trianglemix %s", p->is_chat ? "chat turns, " : "plain text, no chat format",
                 p->is_chat ? tmx_chat_format(p->model) : "", (unsigned long long)p->seed, tmx_version());
        return true;
    case 3:
        *label = "command";
        snprintf(line, size, "%s", r->command);
        return true;
    default: break;
    }
    if (i - 4 >= p->n_plans) return false;
    *label = i == 4 ? "plans" : "";
    snprintf(line, size, "%s: %s", p->plans[i - 4].label, tmx_plan_text(p->plans[i - 4].plan, text, sizeof text));
    return true;
}

/* ---------------------------------------------------------------- Markdown */

/* Characters, not bytes, for alignment. */
static int32_t columns_of(const char *text)
{
    int32_t n = 0;
    for (; *text != '\0'; text++) n += (*text & 0xc0) != 0x80;
    return n;
}

/* No control characters, and no bar inside a table. */
static void put_text(FILE *out, const char *text, bool is_cell)
{
    for (; *text != '\0'; text++) {
        fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : is_cell && *text == '|' ? '/' : *text, out);
    }
}

static void put_aligned(FILE *out, const char *text, int32_t width, bool is_name)
{
    const int32_t n_blanks = width - columns_of(text);
    fputs("| ", out);
    if (!is_name) fprintf(out, "%*s", n_blanks, "");
    put_text(out, text, true);
    if (is_name) fprintf(out, "%*s", n_blanks, "");
    fputc(' ', out);
}

static void print_table(const eval_report *r, bool is_text, FILE *out)
{
    const char *const *heads = is_text ? report_text_heads : report_task_heads;
    const int32_t n_columns = report_n_columns(is_text);
    int32_t width[REPORT_TASK_COLUMNS];
    char cell[REPORT_CELL_BYTES];
    for (int32_t c = 0; c < n_columns; c++) {
        width[c] = columns_of(heads[c]);
        for (int32_t i = 0; i < r->rows->n; i++) {
            if (r->rows->rows[i].is_text != is_text) continue;
            const int32_t n = columns_of(report_cell(r, &r->rows->rows[i], c, cell));
            if (n > width[c]) width[c] = n;
        }
    }
    fputc('\n', out);
    for (int32_t c = 0; c < n_columns; c++) put_aligned(out, heads[c], width[c], report_is_name(is_text, c));
    fputs("|\n", out);
    for (int32_t c = 0; c < n_columns; c++) {
        const bool is_name = report_is_name(is_text, c);
        fputs(is_name ? "|:" : "|-", out);
        for (int32_t i = 0; i < width[c]; i++) fputc('-', out);
        fputc(is_name ? '-' : ':', out);
    }
    fputs("|\n", out);
    for (int32_t i = 0; i < r->rows->n; i++) {
        if (r->rows->rows[i].is_text != is_text) continue;
        for (int32_t c = 0; c < n_columns; c++) {
            put_aligned(out, report_cell(r, &r->rows->rows[i], c, cell), width[c], report_is_name(is_text, c));
        }
        fputs("|\n", out);
    }
}

static void print_stopped(const eval_run *run, FILE *out)
{
    if (run->n_done < run->n_total) fprintf(out, "\nStopped after %d of %d samples.\n", run->n_done, run->n_total);
}

void report_print_markdown(const eval_report *r, FILE *out)
{
    char line[4096];
    const char *label;
    for (int32_t i = 0; report_setting(r, i, &label, line, sizeof line); i++) {
        fprintf(out, "%s%-9s", i == 0 ? "" : "\n", label);
        put_text(out, line, false);
    }
    fputc('\n', out);
    print_stopped(r->run, out);
    if (report_has_rows(r, false)) print_table(r, false, out);
    if (report_has_rows(r, true)) print_table(r, true, out);
}

/* ---------------------------------------------------------------- CSV */

static void put_field(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text != '\0'; text++) {
        if (*text == '"') fputc('"', out);
        fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, out);
    }
    fputc('"', out);
}

static void put_number(FILE *out, double x)
{
    fputc(',', out);
    if (isfinite(x)) fprintf(out, "%.9g", x);
}

void report_print_csv(const eval_report *r, FILE *out)
{
    fputs("kind,task,length,plan,n,score,difference,interval_low,interval_high,prefill_ms,gain,attention_ms,density_pct,kl_first,kl_first_worst,top_first_pct,"
          "kl_forced,top_forced_pct,same_pct\n", out);
    for (int32_t i = 0; i < r->rows->n; i++) {
        const summary_row *row = &r->rows->rows[i];
        fprintf(out, "%s,", row->is_text ? "perplexity" : row->task == NULL ? "mean" : "task");
        put_field(out, row->task != NULL ? row->task : "mean");
        fprintf(out, ",%d,", row->length);
        put_field(out, r->run->params->plans[row->plan].label);
        fprintf(out, ",%d", row->n);
        const double numbers[] = { row->score, row->difference, row->range.low, row->range.high, row->prefill_ms, row->gain,
                                   row->attention_ms, row->density };
        const double agreement[] = { row->kl_first, row->kl_first_worst, row->top_first, row->kl_forced, row->top_forced, row->same };
        for (size_t k = 0; k < sizeof numbers / sizeof numbers[0]; k++) put_number(out, numbers[k]);
        for (size_t k = 0; k < sizeof agreement / sizeof agreement[0]; k++) put_number(out, row->is_text ? (double)NAN : agreement[k]);
        fputc('\n', out);
    }
}

/* ---------------------------------------------------------------- JSON */

/* Objects and arrays are never left half filled: *is_whole says whether everything was put. */
static void put(json_t *object, const char *key, json_t *value, bool *is_whole)
{
    *is_whole &= json_object_set_new(object, key, value) == 0;
}

static void add(json_t *array, json_t *value, bool *is_whole) { *is_whole &= json_array_append_new(array, value) == 0; }

static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

/* Names and paths may hold any bytes: where they are no UTF-8, what is not ASCII becomes '?'. */
static json_t *text_value(const char *text)
{
    json_t *value = json_string(text);
    char *copy = value == NULL ? strdup(text) : NULL;
    if (copy == NULL) return value;
    for (char *c = copy; *c != '\0'; c++) {
        if ((unsigned char)*c >= 0x80) *c = '?';
    }
    value = json_string(copy);
    free(copy);
    return value;
}

static json_t *row_object(const eval_report *r, const summary_row *row, bool *is_whole)
{
    json_t *o = json_object();
    put(o, "kind", json_string(row->is_text ? "perplexity" : row->task == NULL ? "mean" : "task"), is_whole);
    put(o, "task", row->task != NULL ? json_string(row->task) : json_null(), is_whole);
    put(o, "length", json_integer(row->length), is_whole);
    put(o, "plan", text_value(r->run->params->plans[row->plan].label), is_whole);
    put(o, "n", json_integer(row->n), is_whole);
    put(o, "score", number(row->score), is_whole);
    put(o, "difference", number(row->difference), is_whole);
    put(o, "interval", json_pack("[o, o]", number(row->range.low), number(row->range.high)), is_whole);
    put(o, "prefill_ms", number(row->prefill_ms), is_whole);
    put(o, "gain", number(row->gain), is_whole);
    put(o, "attention_ms", number(row->attention_ms), is_whole);
    put(o, "density_pct", number(row->density), is_whole);
    if (row->is_text) return o;
    put(o, "kl_first", number(row->kl_first), is_whole);
    put(o, "kl_first_worst", number(row->kl_first_worst), is_whole);
    put(o, "top_first_pct", number(row->top_first), is_whole);
    put(o, "kl_forced", number(row->kl_forced), is_whole);
    put(o, "top_forced_pct", number(row->top_forced), is_whole);
    put(o, "same_pct", number(row->same), is_whole);
    return o;
}

static json_t *result_object(const eval_result *x, bool *is_whole)
{
    json_t *o = json_object();
    put(o, "score", number(x->score), is_whole);
    put(o, "prefill_ms", number(x->prefill_ms), is_whole);
    put(o, "attention_ms", number(x->attention_ms), is_whole);
    put(o, "density", number(x->density), is_whole);
    if (x->answer == NULL) return o;
    put(o, "kl_first", number(x->kl_first), is_whole);
    put(o, "top_first", json_boolean(x->is_top_first), is_whole);
    put(o, "kl_forced", number(x->kl_forced), is_whole);
    put(o, "n_top_forced", json_integer(x->n_top_forced), is_whole);
    put(o, "n_forced", json_integer(x->n_forced), is_whole);
    put(o, "n_equal", json_integer(x->n_equal), is_whole);
    put(o, "n_answer", json_integer(x->n_answer), is_whole);
    put(o, "answer", text_value(x->answer), is_whole);
    return o;
}

static json_t *sample_object(const eval_run *run, int32_t cell, int32_t index, bool *is_whole)
{
    const eval_sample *s = &run->samples[cell][index];
    json_t *o = json_object(), *results = json_array();
    put(o, "task", json_string(run->params->cells[cell].name), is_whole);
    put(o, "length", json_integer(run->params->cells[cell].length), is_whole);
    put(o, "index", json_integer(index), is_whole);
    put(o, "n_tokens", json_integer(s->n_tokens), is_whole);
    for (int32_t i = 0; i < run->params->n_plans; i++) add(results, result_object(&s->results[i], is_whole), is_whole);
    put(o, "results", results, is_whole);
    return o;
}

static json_t *report_object(const eval_report *r, bool *is_whole)
{
    const eval_params *p = r->run->params;
    const tmx_model_info *m = tmx_model_info_get(p->model);
    json_t *o = json_object(), *plans = json_array(), *rows = json_array(), *samples = json_array();
    put(o, "version", json_string(tmx_version()), is_whole);
    put(o, "command", text_value(r->command), is_whole);
    put(o, "model", json_pack("{s:o, s:s, s:s}", "path", text_value(r->model_path), "architecture", m->architecture,
                              "fingerprint", m->fingerprint), is_whole);
    put(o, "compute", json_string(tmx_model_compute(p->model) == TMX_COMPUTE_BF16 ? "bf16" : "f32"), is_whole);
    put(o, "device", json_string(m->device), is_whole);
    put(o, "isa", json_string(tmx_isa_name(tmx_model_isa(p->model))), is_whole);
    put(o, "n_threads", json_integer(r->n_threads), is_whole);
    put(o, "chat_format", p->is_chat ? json_string(tmx_chat_format(p->model)) : json_null(), is_whole);
    put(o, "seed", json_integer((json_int_t)p->seed), is_whole);
    put(o, "n_samples_done", json_integer(r->run->n_done), is_whole);
    put(o, "n_samples", json_integer(r->run->n_total), is_whole);
    put(o, "sweep", r->sweep != NULL ? json_string(r->sweep) : json_null(), is_whole);
    for (int32_t i = 0; i < p->n_plans; i++) {
        char text[2048];
        add(plans, json_pack("{s:o, s:s}", "label", text_value(p->plans[i].label), "text",
                             tmx_plan_text(p->plans[i].plan, text, sizeof text)), is_whole);
    }
    put(o, "plans", plans, is_whole);
    for (int32_t i = 0; i < r->rows->n; i++) add(rows, row_object(r, &r->rows->rows[i], is_whole), is_whole);
    put(o, "rows", rows, is_whole);
    for (int32_t c = 0; c < p->n_cells; c++) {
        for (int32_t i = 0; i < p->cells[c].n_samples; i++) {
            if (r->run->samples[c][i].is_done) add(samples, sample_object(r->run, c, i, is_whole), is_whole);
        }
    }
    put(o, "samples", samples, is_whole);
    return o;
}

tmx_status report_print_json(const eval_report *r, FILE *out, tmx_error *err)
{
    bool is_whole = true;
    json_t *o = report_object(r, &is_whole);
    if (is_whole && o != NULL) {
        is_whole = json_dumpf(o, out, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) == 0 || ferror(out);
        fputc('\n', out);
    }
    json_decref(o);
    return is_whole && o != NULL ? TMX_OK : fault_memory(err, "the JSON of an evaluation");
}
