/* eval_page.c - the report as one page of HTML: settings, pictures in SVG, tables.  Pictures are drawn PIC_WIDTH units wide,
 * about the width of a phone, and stand side by side where there is room. */
#include "eval_report.h"

#include <math.h>
#include <string.h>

enum { PIC_WIDTH = 360, NAME_WIDTH = 112, VALUE_WIDTH = 44, ROW_HEIGHT = 14, GROUP_GAP = 8, PLOT_TOP = 18, N_COLOURS = 6 };
enum { PLOT_LEFT = NAME_WIDTH + 6, PLOT_WIDTH = PIC_WIDTH - PLOT_LEFT - VALUE_WIDTH };

static const char style[] =
    ":root{color-scheme:light dark;--ink:#1c2126;--soft:#5b6570;--line:#d5dae0;--back:#fff;--raised:#f5f7f9;"
    "--c0:#6b7785;--c1:#0b6bcb;--c2:#c2570c;--c3:#0f8a5f;--c4:#8b3fc4;--c5:#b3262d}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa5b1;--line:#39424c;--back:#14181c;--raised:#1d2329;"
    "--c0:#93a0ae;--c1:#5aa9f5;--c2:#f0924c;--c3:#45c496;--c4:#c08bef;--c5:#f0777c}}\n"
    "*{box-sizing:border-box}body{margin:0 auto;padding:1rem;max-width:84rem;background:var(--back);color:var(--ink);"
    "font:15px/1.5 system-ui,sans-serif}\n"
    "h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.1rem;margin:2rem 0 .6rem}p.lead{margin:0;color:var(--soft)}\n"
    "p.stopped{font-weight:bold;color:var(--c5)}\n"
    "dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.15rem 1rem;margin:1rem 0}dt{color:var(--soft)}"
    "dd{margin:0;overflow-wrap:anywhere}\n"
    ".pics{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;flex:1 1 20rem;max-width:34rem;min-width:0;padding:.7rem;"
    "border:1px solid var(--line);border-radius:6px}\n"
    "figcaption{font-weight:600;margin-bottom:.4rem}figcaption span{font-weight:400;color:var(--soft)}svg{display:block;width:100%;height:auto}\n"
    "svg text{font:10px system-ui,sans-serif;fill:var(--ink)}svg .soft{fill:var(--soft)}svg .axis{stroke:var(--line)}\n"
    ".key{display:flex;flex-wrap:wrap;gap:.1rem 1rem;margin:.4rem 0 1rem;padding:0;list-style:none;font-size:.9rem}"
    ".key i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}\n"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}"
    "th{position:sticky;top:0;background:var(--raised)}th.name,td.name{text-align:left}tr.mean td{background:var(--raised);font-weight:600}\n"
    "ul.notes{padding-left:1.1rem;color:var(--soft);font-size:.88rem}\n";

static void put_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '&': fputs("&amp;", out); break;
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '"': fputs("&quot;", out); break;
        default: fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, out);
        }
    }
}

static int32_t colour_of(int32_t plan) { return plan == 0 ? 0 : 1 + (plan - 1) % (N_COLOURS - 1); }

static const char *task_of(const summary_row *row) { return row->task != NULL ? row->task : "mean"; }

/* ---------------------------------------------------------------- bars and intervals */

typedef enum picture { PICTURE_SCORES, PICTURE_DIFFERENCES, PICTURE_GAINS } picture;

static bool is_drawn(const summary_row *row, picture what, int32_t length)
{
    return !row->is_text && row->length == length && (what == PICTURE_SCORES || row->plan > 0);
}

static bool has_rows(const eval_report *r, picture what, int32_t length)
{
    for (int32_t i = 0; i < r->rows->n; i++) {
        if (is_drawn(&r->rows->rows[i], what, length)) return true;
    }
    return false;
}

static double value_of(const summary_row *row, picture what)
{
    return what == PICTURE_SCORES ? row->score : what == PICTURE_GAINS ? row->gain : row->difference;
}

/* The scale of a picture: scores from 0 to 100, differences around 0, gains from 0. */
static void scale_of(const eval_report *r, picture what, int32_t length, double *low, double *high)
{
    *low = 0;
    *high = what == PICTURE_SCORES ? 100 : what == PICTURE_GAINS ? 1 : 5;
    for (int32_t i = 0; i < r->rows->n && what != PICTURE_SCORES; i++) {
        const summary_row *row = &r->rows->rows[i];
        if (!is_drawn(row, what, length)) continue;
        if (what == PICTURE_GAINS) *high = fmax(*high, row->gain);
        else *high = fmax(*high, fmax(fabs(row->range.low), fabs(row->range.high)));
    }
    if (what == PICTURE_GAINS) *high = ceil(2 * *high) / 2;
    if (what == PICTURE_DIFFERENCES) {
        *high = *high <= 10 ? ceil(*high) : 10 * ceil(*high / 10);
        *low = -*high;
    }
}

static void put_mark(FILE *out, const summary_row *row, picture what, double low, double high, double y)
{
    const double unit = PLOT_WIDTH / (high - low), x = PLOT_LEFT + (value_of(row, what) - low) * unit;
    const int32_t colour = colour_of(row->plan);
    if (what != PICTURE_DIFFERENCES) {
        fprintf(out, "<rect x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" rx=\"1.5\" fill=\"var(--c%d)\"/>", PLOT_LEFT, y + 2,
                fmax(x - PLOT_LEFT, 0), ROW_HEIGHT - 4, colour);
        return;
    }
    const double x_low = PLOT_LEFT + (row->range.low - low) * unit, x_high = PLOT_LEFT + (row->range.high - low) * unit;
    fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"var(--c%d)\" stroke-width=\"2\"/>"
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"var(--c%d)\"/>",
            x_low, x_high, y + ROW_HEIGHT / 2.0, y + ROW_HEIGHT / 2.0, colour, x, y + ROW_HEIGHT / 2.0, colour);
}

static void put_row(FILE *out, const eval_report *r, const summary_row *row, picture what, double low, double high, double y)
{
    char value[REPORT_CELL_BYTES];
    const int32_t column = what == PICTURE_SCORES ? 4 : what == PICTURE_GAINS ? 8 : 5;
    fputs("<g><title>", out);
    put_text(out, task_of(row));
    fputs(", ", out);
    put_text(out, r->run->params->plans[row->plan].label);
    fprintf(out, ": %s", report_cell(r, row, column, value));
    if (what == PICTURE_DIFFERENCES) fprintf(out, " (%s)", report_cell(r, row, 6, value));
    fputs("</title>", out);
    put_mark(out, row, what, low, high, y);
    fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text></g>\n", PIC_WIDTH - 2, y + ROW_HEIGHT - 3.5,
            report_cell(r, row, column, value));
}

static void put_axis(FILE *out, picture what, double low, double high, double bottom)
{
    for (int i = 0; i <= 2; i++) {
        const double x = PLOT_LEFT + i * PLOT_WIDTH / 2.0, value = low + i * (high - low) / 2;
        fprintf(out, "<line class=\"axis\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%.1f\"/>"
                "<text class=\"soft\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">", x, x, PLOT_TOP - 4, bottom, x, PLOT_TOP - 8);
        if (what == PICTURE_GAINS) fprintf(out, "%.2gx</text>\n", value);
        else fprintf(out, what == PICTURE_SCORES ? "%.0f</text>\n" : "%+.0f</text>\n", value);
    }
}

static void put_picture(FILE *out, const eval_report *r, picture what, int32_t length)
{
    static const char *const captions[] = { "Score", "Difference to the first plan", "Prefill gain" };
    static const char *const units[] = { "points", "points, 95% interval", "times faster than the first plan" };
    double low, high, y = PLOT_TOP;
    const summary_row *before = NULL;
    if (!has_rows(r, what, length)) return;
    scale_of(r, what, length, &low, &high);
    for (int32_t i = 0; i < r->rows->n; i++) {             /* the height first */
        const summary_row *row = &r->rows->rows[i];
        if (!is_drawn(row, what, length)) continue;
        if (before != NULL && row->task != before->task) y += GROUP_GAP;
        y += ROW_HEIGHT;
        before = row;
    }
    fprintf(out, "<figure><figcaption>%s <span>", captions[what]);
    if (length > 0) fprintf(out, "at %d tokens, ", length);
    fprintf(out, "%s</span></figcaption>\n<svg viewBox=\"0 0 %d %.0f\" role=\"img\">\n", units[what], PIC_WIDTH, y + 6);
    put_axis(out, what, low, high, y + 2);
    y = PLOT_TOP;
    before = NULL;
    for (int32_t i = 0; i < r->rows->n; i++) {
        const summary_row *row = &r->rows->rows[i];
        if (!is_drawn(row, what, length)) continue;
        const bool is_new = before == NULL || row->task != before->task;
        if (is_new && before != NULL) y += GROUP_GAP;
        if (is_new) {
            fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", NAME_WIDTH, y + ROW_HEIGHT - 3.5);
            char name[24];
            snprintf(name, sizeof name, "%.20s%s", task_of(row), strlen(task_of(row)) > 20 ? ".." : "");
            put_text(out, name);
            fputs("</text>", out);
        }
        put_row(out, r, row, what, low, high, y);
        y += ROW_HEIGHT;
        before = row;
    }
    fputs("</svg></figure>\n", out);
}

/* ---------------------------------------------------------------- sweeps */

enum { CURVE_LEFT = 44, CURVE_TOP = 10, CURVE_WIDTH = PIC_WIDTH - CURVE_LEFT - 12, CURVE_HEIGHT = 150 };

/* The row that stands for a length: the mean of its tasks, or its only task. */
static const summary_row *row_of(const eval_report *r, int32_t length, int32_t plan)
{
    const summary_row *found = NULL;
    for (int32_t i = 0; i < r->rows->n; i++) {
        const summary_row *row = &r->rows->rows[i];
        if (!row->is_text && row->length == length && row->plan == plan) found = row;      /* means come last */
    }
    return found;
}

typedef enum curve { CURVE_SCORE, CURVE_KL, CURVE_GAIN } curve;

static double curve_value(const summary_row *row, curve what)
{
    return what == CURVE_SCORE ? row->score : what == CURVE_KL ? fabs(row->kl_first) : row->plan == 0 ? 1 : row->gain;
}

static bool is_first_with_length(const eval_report *r, int32_t i)
{
    for (int32_t k = 0; k < i; k++) {
        if (!r->rows->rows[k].is_text && r->rows->rows[k].length == r->rows->rows[i].length) return false;
    }
    return !r->rows->rows[i].is_text && r->rows->rows[i].task != NULL;
}

static double curve_x(const eval_report *r, int32_t plan)
{
    const int32_t n = r->run->params->n_plans;             /* plan 0 is the dense line */
    return n > 2 ? CURVE_LEFT + (plan - 1) * (CURVE_WIDTH / (n - 2.0)) : CURVE_LEFT + CURVE_WIDTH / 2.0;
}

static void put_curve_axes(FILE *out, const eval_report *r, curve what, double high)
{
    const int32_t n = r->run->params->n_plans, step = n > 10 ? (n + 8) / 9 : 1;
    for (int i = 0; i <= 2; i++) {
        const double y = CURVE_TOP + CURVE_HEIGHT * (1 - i / 2.0);
        fprintf(out, "<line class=\"axis\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                "<text class=\"soft\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.3g%s</text>\n", CURVE_LEFT, CURVE_LEFT + CURVE_WIDTH, y, y,
                CURVE_LEFT - 5, y + 3.5, high * i / 2, what == CURVE_GAIN ? "x" : "");
    }
    for (int32_t plan = 1; plan < n; plan += step) {
        fprintf(out, "<text class=\"soft\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.0f</text>\n", curve_x(r, plan),
                CURVE_TOP + CURVE_HEIGHT + 14, r->run->params->plans[plan].value);
    }
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", CURVE_LEFT + CURVE_WIDTH / 2,
            CURVE_TOP + CURVE_HEIGHT + 28, r->sweep);
}

static void put_curve(FILE *out, const eval_report *r, curve what)
{
    static const char *const captions[] = { "Score", "KL of the first token", "Prefill gain" };
    double high = what == CURVE_SCORE ? 100 : what == CURVE_KL ? 1e-6 : 1;
    for (int32_t i = 0; i < r->rows->n; i++) {
        if (!r->rows->rows[i].is_text) high = fmax(high, curve_value(&r->rows->rows[i], what));
    }
    if (what == CURVE_GAIN) high = ceil(2 * high) / 2;
    fprintf(out, "<figure><figcaption>%s <span>against %s%s</span></figcaption>\n<svg viewBox=\"0 0 %d %d\" role=\"img\">\n",
            captions[what], r->sweep, what == CURVE_KL ? "" : "; dashed: dense", PIC_WIDTH, CURVE_TOP + CURVE_HEIGHT + 34);
    put_curve_axes(out, r, what, high);
    int32_t n_lines = 0;
    for (int32_t i = 0; i < r->rows->n; i++) {
        if (!is_first_with_length(r, i)) continue;
        const int32_t length = r->rows->rows[i].length, colour = 1 + n_lines++ % (N_COLOURS - 1);
        const double unit = CURVE_HEIGHT / high, bottom = CURVE_TOP + CURVE_HEIGHT;
        const double y_dense = bottom - unit * curve_value(row_of(r, length, 0), what);
        if (what != CURVE_KL) {
            fprintf(out, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"var(--c%d)\" stroke-dasharray=\"4 4\"/>\n",
                    CURVE_LEFT, CURVE_LEFT + CURVE_WIDTH, y_dense, y_dense, colour);
        }
        fprintf(out, "<polyline fill=\"none\" stroke=\"var(--c%d)\" stroke-width=\"2\" points=\"", colour);
        for (int32_t plan = 1; plan < r->run->params->n_plans; plan++) {
            fprintf(out, "%.1f,%.1f ", curve_x(r, plan), bottom - unit * curve_value(row_of(r, length, plan), what));
        }
        fputs("\"/>\n", out);
        for (int32_t plan = 1; plan < r->run->params->n_plans; plan++) {
            const double value = curve_value(row_of(r, length, plan), what);
            fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"var(--c%d)\"><title>%s %g, length %d: %.4g</title></circle>\n",
                    curve_x(r, plan), bottom - unit * value, colour, r->sweep, r->run->params->plans[plan].value, length, value);
        }
    }
    fputs("</svg></figure>\n", out);
}

/* ---------------------------------------------------------------- the page */

static void put_key_entry(FILE *out, int32_t colour, const char *text)
{
    fprintf(out, "<li><i style=\"background:var(--c%d)\"></i>", colour);
    put_text(out, text);
    fputs("</li>", out);
}

static void put_pictures(FILE *out, const eval_report *r)
{
    if (!report_has_rows(r, false)) return;
    fputs("<h2>Pictures</h2>\n<ul class=\"key\">", out);
    if (r->sweep != NULL) {
        int32_t n_lines = 0;
        for (int32_t i = 0; i < r->rows->n; i++) {
            char text[48];
            if (!is_first_with_length(r, i)) continue;
            if (r->rows->rows[i].length > 0) snprintf(text, sizeof text, "%d tokens", r->rows->rows[i].length);
            else snprintf(text, sizeof text, "own lengths");
            put_key_entry(out, 1 + n_lines++ % (N_COLOURS - 1), text);
        }
        fputs("</ul>\n<div class=\"pics\">\n", out);
        for (int what = CURVE_SCORE; what <= CURVE_GAIN; what++) put_curve(out, r, (curve)what);
    } else {
        for (int32_t i = 0; i < r->run->params->n_plans; i++) put_key_entry(out, colour_of(i), r->run->params->plans[i].label);
        fputs("</ul>\n<div class=\"pics\">\n", out);
        for (int32_t i = 0; i < r->rows->n; i++) {
            if (!is_first_with_length(r, i)) continue;
            for (int what = PICTURE_SCORES; what <= PICTURE_GAINS; what++) {
                put_picture(out, r, (picture)what, r->rows->rows[i].length);
            }
        }
    }
    fputs("</div>\n", out);
}

static void put_table(FILE *out, const eval_report *r, bool is_text)
{
    const char *const *heads = is_text ? report_text_heads : report_task_heads;
    if (!report_has_rows(r, is_text)) return;
    fprintf(out, "<h2>%s</h2>\n<div class=\"wide\"><table>\n<thead><tr>", is_text ? "Texts" : "Tasks");
    for (int32_t c = 0; c < report_n_columns(is_text); c++) {
        fprintf(out, "<th%s>%s</th>", report_is_name(is_text, c) ? " class=\"name\"" : "", heads[c]);
    }
    fputs("</tr></thead>\n<tbody>\n", out);
    for (int32_t i = 0; i < r->rows->n; i++) {
        const summary_row *row = &r->rows->rows[i];
        if (row->is_text != is_text) continue;
        fputs(row->task == NULL ? "<tr class=\"mean\">" : "<tr>", out);
        for (int32_t c = 0; c < report_n_columns(is_text); c++) {
            char cell[REPORT_CELL_BYTES];
            fputs(report_is_name(is_text, c) ? "<td class=\"name\">" : "<td>", out);
            put_text(out, report_cell(r, row, c, cell));
            fputs("</td>", out);
        }
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table></div>\n", out);
}

void report_print_page(const eval_report *r, FILE *out)
{
    const eval_run *run = r->run;
    const tmx_model_info *m = tmx_model_info_get(run->params->model);
    const char *name = m->name[0] != '\0' ? m->name : r->model_path, *label;
    char line[4096];
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Plans compared: ", out);
    put_text(out, name);
    fprintf(out, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>Plans compared</h1>\n<p class=\"lead\">", style);
    put_text(out, name);
    fprintf(out, ", %d samples, every plan on each</p>\n", run->n_done);
    if (run->n_done < run->n_total) fprintf(out, "<p class=\"stopped\">Stopped after %d of %d samples.</p>\n", run->n_done, run->n_total);
    fputs("<dl>\n", out);
    for (int32_t i = 0; report_setting(r, i, &label, line, sizeof line); i++) {
        const bool is_command = strcmp(label, "command") == 0;
        fprintf(out, "<dt>%s</dt><dd>%s", label, is_command ? "<code>" : "");
        put_text(out, line);
        fprintf(out, "%s</dd>\n", is_command ? "</code>" : "");
    }
    fputs("</dl>\n", out);
    put_pictures(out, r);
    put_table(out, r, false);
    put_table(out, r, true);
    fputs("<h2>How to read this</h2>\n<ul class=\"notes\">\n", out);
    for (int32_t i = 0; report_notes[i] != NULL; i++) {
        fputs("<li>", out);
        put_text(out, report_notes[i]);
        fputs("</li>\n", out);
    }
    fputs("</ul>\n</body>\n</html>\n", out);
}
