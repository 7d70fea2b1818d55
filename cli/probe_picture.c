#include "probe_picture.h"

#include "report.h"
#include "svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- the table */

static void print_order(FILE *out, const int32_t *order, int32_t n)
{
    fprintf(out, "\norder, least Middle gradient first\n ");
    int column = 1;
    for (int32_t i = 0; i < n; i++) {
        if (column > 72) column = fprintf(out, "\n ") - 1;
        column += fprintf(out, " %d", order[i]);
    }
    fputc('\n', out);
}

static void print_facts(FILE *out, const tmx_probe_report *report, const tmx_model_info *info)
{
    const tmx_probe_settings *s = tmx_probe_report_settings(report);
    const int32_t n = tmx_probe_report_n_samples(report), n_correct = tmx_probe_report_n_correct(report);
    int32_t least = INT32_MAX, most = 0;
    for (int32_t i = 0; i < n; i++) {
        const int32_t n_tokens = tmx_probe_report_sample(report, i)->n_tokens;
        least = n_tokens < least ? n_tokens : least;
        most = n_tokens > most ? n_tokens : most;
    }
    fprintf(out, "%-12s%s ", "model", info->architecture);
    print_safe(out, info->name);
    fprintf(out, ", %d layers\n%-12s", info->n_layers, "prompts");
    print_safe(out, s->source);
    fprintf(out, ", %d of %d samples, %d-%d tokens, seed %lld\n", n, s->n_samples, least, most, (long long)s->seed);
    fprintf(out, "%-12sthe dense model begins %d of %d answers right (%.0f %%)%s\n", "answers", n_correct, n, 100.0 * n_correct / n,
            s->is_correct_only ? "; means over these" : "");
    fprintf(out, "%-12ssink %d, window %d, last %d\n\n", "sections", s->sections.n_sink, s->sections.n_window, s->sections.n_last);
}

void print_probe_table(FILE *out, const tmx_probe_report *report, const tmx_model_info *info)
{
    const int32_t n = tmx_probe_report_n_layers(report), n_ranked = tmx_probe_report_n_ranked(report);
    if (tmx_probe_report_n_samples(report) == 0) return;
    print_facts(out, report, info);
    int32_t *order = malloc((size_t)n * sizeof *order);
    if (order == NULL || tmx_probe_report_order(report, TMX_ORDER_GRADIENT, 0, order, NULL) != TMX_OK) {
        fprintf(out, "no sample to take means over\n");
        free(order);
        return;
    }
    fprintf(out, "%5s  %32s   %32s   %s\n", "", "gradient per pair", "attention per pair", "Middle");
    fprintf(out, "%5s  %10s %10s %10s   %10s %10s %10s   %s\n", "layer", "Middle", "last", "streaming", "Middle", "last", "streaming", "rank");
    for (int32_t l = 0; l < n; l++) {
        const tmx_probe_layer *m = tmx_probe_report_layer(report, l);
        int32_t rank = 0;
        while (order[rank] != l) rank++;
        fprintf(out, "%5d  %10.3g %10.3g %10.3g   %10.3g %10.3g %10.3g   ", l, m->middle.theta_abs, m->last.theta_abs,
                m->streaming.theta_abs, m->middle.attention, m->last.attention, m->streaming.attention);
        if (rank < n_ranked) fprintf(out, "%d\n", rank + 1);
        else fprintf(out, "own window\n");
    }
    print_order(out, order, n_ranked);
    free(order);
}

/* ---------------------------------------------------------------- the picture */

enum { PANEL_WIDTH = 400, PANEL_HEIGHT = 260, LEFT = 64, TOP = 66, GAP = 76, BOTTOM = 46 };

typedef struct series { const char *name, *colour, *dash; } series;
static const series sections[] = {                     /* told apart by dashes and marks, too */
    { "Middle", "#c2571a", "" }, { "last", "#2d8a4e", "6 3" }, { "streaming", "#2a6f97", "2 3" },
};
enum { N_SECTIONS = 3 };

typedef struct panel {
    FILE *out;
    const tmx_probe_report *report;
    int32_t n_layers;
    double x0;
    bool is_attention;
    int low, high;                 /* decades: the axis goes from 10^low to 10^high */
} panel;

static double value_at(const panel *p, int section, int32_t layer)
{
    const tmx_probe_layer *m = tmx_probe_report_layer(p->report, layer);
    const tmx_probe_sums *s = section == 0 ? &m->middle : section == 1 ? &m->last : &m->streaming;
    return p->is_attention ? s->attention : s->theta_abs;
}

/* At most eight decades below the largest value, or far outliers would press everything else flat. */
static void find_decades(panel *p)
{
    double least = INFINITY, most = 0;
    for (int s = 0; s < N_SECTIONS; s++) {
        for (int32_t l = 0; l < p->n_layers; l++) {
            const double v = value_at(p, s, l);
            if (v > 0) least = fmin(least, v);
            most = fmax(most, v);
        }
    }
    p->high = most > 0 ? (int)ceil(log10(most)) : 0;
    p->low = most > 0 ? (int)floor(log10(least)) : -1;
    if (p->low < p->high - 8) p->low = p->high - 8;
    if (p->low >= p->high) p->low = p->high - 1;
}

static double x_of(const panel *p, int32_t layer)
{
    return p->x0 + (p->n_layers > 1 ? (double)layer / (p->n_layers - 1) * PANEL_WIDTH : PANEL_WIDTH / 2.0);
}

static double y_of(const panel *p, double value)
{
    const double at = value > 0 ? (log10(value) - p->low) / (p->high - p->low) : 0;
    return TOP + PANEL_HEIGHT * (1 - (at < 0 ? 0 : at));
}

static void draw_axes(const panel *p)
{
    const int step = p->n_layers <= 12 ? 1 : p->n_layers <= 60 ? 5 : p->n_layers <= 120 ? 10 : 100;
    fprintf(p->out, "<text x=\"%.0f\" y=\"%d\" font-size=\"13\">%s</text>\n", p->x0, TOP - 14,
            p->is_attention ? "attention per pair, summed over heads" : "gradient per pair, |dy/d\xce\xb8|");
    for (int d = p->low; d <= p->high; d++) {
        const double y = TOP + PANEL_HEIGHT * (1 - (double)(d - p->low) / (p->high - p->low));
        fprintf(p->out, "<line x1=\"%.0f\" y1=\"%.1f\" x2=\"%.0f\" y2=\"%.1f\" stroke=\"#dde0e4\"/>"
                "<text x=\"%.0f\" y=\"%.1f\" font-size=\"11\" text-anchor=\"end\">1e%d</text>\n",
                p->x0 - 8, y, p->x0 + PANEL_WIDTH + 8, y, p->x0 - 12, y + 4, d);
    }
    for (int32_t l = 0; l < p->n_layers; l += step) {
        fprintf(p->out, "<text x=\"%.1f\" y=\"%d\" font-size=\"11\" text-anchor=\"middle\">%d</text>\n", x_of(p, l),
                TOP + PANEL_HEIGHT + 18, l);
    }
    fprintf(p->out, "<text x=\"%.0f\" y=\"%d\" font-size=\"11\" text-anchor=\"middle\">layer</text>\n", p->x0 + PANEL_WIDTH / 2.0,
            TOP + PANEL_HEIGHT + 36);
}

/* Zero has no place on a log scale: the line breaks, and an open mark lies on the bottom. */
static void draw_series(const panel *p, int section)
{
    const series *s = &sections[section];
    bool is_open = false;
    fprintf(p->out, "<g stroke=\"%s\" fill=\"none\" stroke-width=\"1.8\"><path stroke-dasharray=\"%s\" d=\"", s->colour, s->dash);
    for (int32_t l = 0; l < p->n_layers; l++) {
        const double v = value_at(p, section, l);
        if (v > 0) fprintf(p->out, "%c%.1f %.1f", is_open ? 'L' : 'M', x_of(p, l), y_of(p, v));
        is_open = v > 0;
    }
    fputs("\"/>\n", p->out);
    for (int32_t l = 0; l < p->n_layers; l++) {
        const double v = value_at(p, section, l);
        fprintf(p->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"><title>layer %d, %s: %.3g</title></circle>\n", x_of(p, l),
                y_of(p, v), v > 0 ? s->colour : "#fff", l, s->name, v);
    }
    fputs("</g>\n", p->out);
}

static void draw_panel(panel *p)
{
    find_decades(p);
    draw_axes(p);
    for (int s = N_SECTIONS - 1; s >= 0; s--) draw_series(p, s);
}

typedef struct picture {
    const tmx_probe_report *report;
    const tmx_model_info *info;
} picture;

enum { MAX_SHOWN = 36 };           /* of a name, so that it ends before the legend */

static void draw(FILE *out, const void *what)
{
    const tmx_probe_report *report = ((const picture *)what)->report;
    const tmx_model_info *info = ((const picture *)what)->info;
    const int width = LEFT + 2 * PANEL_WIDTH + GAP + 24;
    const tmx_probe_settings *s = tmx_probe_report_settings(report);
    svg_begin(out, width, TOP + PANEL_HEIGHT + BOTTOM);
    fputs("<text x=\"16\" y=\"22\" font-size=\"14\">", out);
    svg_put_text(out, info->name[0] != '\0' ? info->name : info->architecture, MAX_SHOWN);
    fprintf(out, ": %d samples of ", tmx_probe_report_n_used(report));
    svg_put_text(out, s->source, MAX_SHOWN);
    fprintf(out, ", up to %d tokens</text>\n", s->n_tokens);
    for (int i = 0; i < N_SECTIONS; i++) {
        const int x = width - 330 + i * 110;
        fprintf(out, "<line x1=\"%d\" y1=\"18\" x2=\"%d\" y2=\"18\" stroke=\"%s\" stroke-width=\"1.8\" stroke-dasharray=\"%s\"/>"
                "<text x=\"%d\" y=\"22\" font-size=\"12\">%s</text>\n", x, x + 28, sections[i].colour, sections[i].dash, x + 34, sections[i].name);
    }
    for (int i = 0; i < 2; i++) {
        panel p = { .out = out, .report = report, .n_layers = tmx_probe_report_n_layers(report), .is_attention = i == 1,
                    .x0 = LEFT + i * (PANEL_WIDTH + GAP) };
        draw_panel(&p);
    }
    svg_end(out);
}

int write_probe_picture(const char *path, const tmx_probe_report *report, const tmx_model_info *info)
{
    return svg_write(path, draw, &(picture){ report, info });
}
