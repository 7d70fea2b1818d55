#include "bench_picture.h"

#include "svg.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 400, HEIGHT = 250, LEFT = 70, TOP = 56, GAP = 84, BOTTOM = 50, LEGEND_LINE = 18, N_TICKS = 5, MAX_SHOWN = 60 };

/* Told apart by dashes, too; plans beyond eight share them. */
static const struct { const char *colour, *dash; } styles[] = {
    { "#444b54", "" }, { "#c2571a", "" }, { "#2a6f97", "" }, { "#2d8a4e", "" },
    { "#8a4f9e", "6 3" }, { "#b08900", "6 3" }, { "#c0395b", "2 3" }, { "#1f8a8a", "2 3" },
};
enum { N_STYLES = sizeof styles / sizeof styles[0] };

typedef struct picture {
    const bench_facts *facts;
    const bench_run *run;
    int32_t n_depth, n_longest;    /* of the tests shown */
} picture;

typedef struct panel {
    FILE *out;
    double x0, x_most, y_most;
} panel;

static bool is_shown(const picture *p, const bench_result *r)
{
    return r->n_repeats > 0 && r->test.n_gen == 0 && r->test.n_depth == p->n_depth;
}

static double ttft_of(const bench_result *r)
{
    double sorted[BENCH_MAX_REPEATS];
    memcpy(sorted, r->ttft_ms, (size_t)r->n_repeats * sizeof *sorted);
    return timing_summarize(sorted, r->n_repeats).median * 1e-3;
}

static double x_of(const panel *p, double x) { return p->x0 + WIDTH * x / p->x_most; }
static double y_of(const panel *p, double y) { return TOP + HEIGHT * (1 - y / p->y_most); }

/* 1, 2 or 5 times a power of ten: N_TICKS or fewer of it reach x. */
static double tick_of(double x)
{
    const double least = x / N_TICKS, power = pow(10, floor(log10(least)));
    return power * (least <= power ? 1 : least <= 2 * power ? 2 : least <= 5 * power ? 5 : 10);
}

static void draw_axes(const panel *p, const char *title, const char *below)
{
    const double x_tick = fmax(tick_of(p->x_most), 1), y_tick = tick_of(p->y_most);
    fprintf(p->out, "<text x=\"%.0f\" y=\"%d\" font-size=\"13\">%s</text>\n", p->x0, TOP - 14, title);
    for (int i = 0; i * y_tick <= p->y_most * 1.0001; i++) {
        const double y = i * y_tick;
        fprintf(p->out, "<line x1=\"%.0f\" y1=\"%.1f\" x2=\"%.0f\" y2=\"%.1f\" stroke=\"#dde0e4\"/>"
                "<text x=\"%.0f\" y=\"%.1f\" font-size=\"11\" text-anchor=\"end\">%.4g</text>\n",
                p->x0, y_of(p, y), p->x0 + WIDTH, y_of(p, y), p->x0 - 8, y_of(p, y) + 4, y);
    }
    for (int i = 0; i * x_tick <= p->x_most * 1.0001; i++) {
        const double x = i * x_tick;
        fprintf(p->out, "<text x=\"%.1f\" y=\"%d\" font-size=\"11\" text-anchor=\"middle\">%.0f</text>\n", x_of(p, x),
                TOP + HEIGHT + 18, x);
    }
    fprintf(p->out, "<text x=\"%.0f\" y=\"%d\" font-size=\"11\" text-anchor=\"middle\">%s</text>\n", p->x0 + WIDTH / 2.0,
            TOP + HEIGHT + 38, below);
}

static void begin_line(const panel *p, int32_t plan)
{
    fprintf(p->out, "<g stroke=\"%s\" fill=\"none\" stroke-width=\"1.8\"><path stroke-dasharray=\"%s\" d=\"",
            styles[plan % N_STYLES].colour, styles[plan % N_STYLES].dash);
}

static void put_point(const panel *p, bool is_first, double x, double y)
{
    fprintf(p->out, "%c%.1f %.1f", is_first ? 'M' : 'L', x_of(p, x), y_of(p, y));
}

__attribute__((format(printf, 5, 6)))
static void put_mark(const panel *p, int32_t plan, double x, double y, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(p->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"><title>", x_of(p, x), y_of(p, y), styles[plan % N_STYLES].colour);
    vfprintf(p->out, format, args);
    fputs("</title></circle>\n", p->out);
    va_end(args);
}

/* ---------------------------------------------------------------- the two panels */

/* The next longer result of a plan; lengths may have been given in any order.  NULL behind the last. */
static const bench_result *next_longer(const picture *c, int32_t plan, int32_t than)
{
    const bench_result *next = NULL;
    for (int32_t i = 0; i < c->run->n_results; i++) {
        const bench_result *r = &c->run->results[i];
        if (!is_shown(c, r) || r->plan != plan || r->test.n_prompt <= than) continue;
        if (next == NULL || r->test.n_prompt < next->test.n_prompt) next = r;
    }
    return next;
}

static void draw_times(const picture *c, FILE *out)
{
    panel p = { .out = out, .x0 = LEFT, .x_most = c->n_longest };
    for (int32_t i = 0; i < c->facts->n_plans; i++) {
        for (const bench_result *r = next_longer(c, i, 0); r != NULL; r = next_longer(c, i, r->test.n_prompt)) {
            p.y_most = fmax(p.y_most, ttft_of(r) * 1.05);
        }
    }
    draw_axes(&p, "time to first token, s (median)", "tokens");
    for (int32_t i = 0; i < c->facts->n_plans; i++) {
        const bench_result *first = next_longer(c, i, 0);
        begin_line(&p, i);
        for (const bench_result *r = first; r != NULL; r = next_longer(c, i, r->test.n_prompt)) {
            put_point(&p, r == first, r->test.n_prompt, ttft_of(r));
        }
        fputs("\"/>\n", out);
        for (const bench_result *r = first; r != NULL; r = next_longer(c, i, r->test.n_prompt)) {
            put_mark(&p, i, r->test.n_prompt, ttft_of(r), "%d tokens: %.3f s", r->test.n_prompt, ttft_of(r));
        }
        fputs("</g>\n", out);
    }
}

static void draw_layers(const picture *c, FILE *out)
{
    const int32_t n_layers = c->facts->n_layers;
    char title[96];
    panel p = { .out = out, .x0 = LEFT + WIDTH + GAP, .x_most = n_layers > 1 ? n_layers - 1 : 1 };
    for (int32_t i = 0; i < c->facts->n_plans; i++) {
        const bench_result *r = next_longer(c, i, c->n_longest - 1);
        for (int32_t l = 0; r != NULL && l < n_layers; l++) p.y_most = fmax(p.y_most, r->layer_attention_ms[l] * 1.05);
    }
    if (p.y_most <= 0) p.y_most = 1;
    snprintf(title, sizeof title, "attention of a layer at %d tokens, ms (mean)", c->n_longest);
    draw_axes(&p, title, "layer");
    for (int32_t i = 0; i < c->facts->n_plans; i++) {
        const bench_result *r = next_longer(c, i, c->n_longest - 1);
        if (r == NULL) continue;
        begin_line(&p, i);
        for (int32_t l = 0; l < n_layers; l++) put_point(&p, l == 0, l, r->layer_attention_ms[l]);
        fputs("\"/>\n", out);
        for (int32_t l = 0; l < n_layers; l++) put_mark(&p, i, l, r->layer_attention_ms[l], "layer %d: %.3g ms", l, r->layer_attention_ms[l]);
        fputs("</g>\n", out);
    }
}

static void draw_legend(const picture *c, FILE *out)
{
    for (int32_t i = 0; i < c->facts->n_plans; i++) {
        const int y = TOP + HEIGHT + BOTTOM + LEGEND_LINE * i + 8;
        fprintf(out, "<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"%s\" stroke-width=\"1.8\" stroke-dasharray=\"%s\"/>"
                "<text x=\"%d\" y=\"%d\" font-size=\"12\">", LEFT, y - 4, LEFT + 28, y - 4, styles[i % N_STYLES].colour,
                styles[i % N_STYLES].dash, LEFT + 36, y);
        svg_put_text(out, c->facts->labels[i], MAX_SHOWN);
        fputs("</text>\n", out);
    }
}

static void draw(FILE *out, const void *what)
{
    const picture *c = what;
    const bench_facts *f = c->facts;
    svg_begin(out, LEFT + 2 * WIDTH + GAP + 24, TOP + HEIGHT + BOTTOM + LEGEND_LINE * f->n_plans + 8);
    fputs("<text x=\"16\" y=\"22\" font-size=\"14\">", out);
    svg_put_text(out, f->model_type, MAX_SHOWN);
    fprintf(out, ", %d threads, %s, ", f->n_threads, f->compute);
    svg_put_text(out, f->cpu, MAX_SHOWN);
    if (c->n_depth > 0) fprintf(out, ", at depth %d", c->n_depth);
    fputs("</text>\n", out);
    if (c->n_longest > 0) {
        draw_times(c, out);
        draw_layers(c, out);
        draw_legend(c, out);
    } else {
        fprintf(out, "<text x=\"%d\" y=\"%d\" font-size=\"13\">no test that only prefills</text>\n", LEFT, TOP);
    }
    svg_end(out);
}

int write_bench_picture(const char *path, const bench_facts *facts, const bench_run *run)
{
    picture c = { .facts = facts, .run = run, .n_depth = INT32_MAX };
    for (int32_t i = 0; i < run->n_results; i++) {
        const bench_result *r = &run->results[i];
        if (r->n_repeats > 0 && r->test.n_gen == 0 && r->test.n_depth < c.n_depth) c.n_depth = r->test.n_depth;
    }
    for (int32_t i = 0; i < run->n_results; i++) {
        const bench_result *r = &run->results[i];
        if (is_shown(&c, r) && r->test.n_prompt > c.n_longest) c.n_longest = r->test.n_prompt;
    }
    return svg_write(path, draw, &c);
}
