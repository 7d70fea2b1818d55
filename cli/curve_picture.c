#include "curve_picture.h"

#include "svg.h"

#include <math.h>
#include <stdio.h>

enum { WIDTH = 400, HEIGHT = 240, LEFT = 70, TOP = 60, GAP = 80, BOTTOM = 44, N_TICKS = 4 };

typedef struct panel {
    FILE *out;
    const tmx_plan_point *points;
    int32_t n_points, n_most;      /* n_most: layers at the right end */
    bool is_time;
    double x0, low, high;          /* of the y axis: milliseconds, or decades of KL */
} panel;

static double value_of(const panel *p, const tmx_plan_point *at)
{
    return p->is_time ? at->ttft_ms : fmax(log10(at->kl), p->low);
}

/* Zero has no place on a log scale: no line leads there, and its mark is hollow, on the bottom. */
static bool has_place(const panel *p, const tmx_plan_point *at) { return p->is_time || at->kl > 0; }

static double x_of(const panel *p, int32_t n_sparse) { return p->x0 + WIDTH * (double)n_sparse / p->n_most; }
static double y_of(const panel *p, double v) { return TOP + HEIGHT * (1 - (v - p->low) / (p->high - p->low)); }

static void find_scale(panel *p)
{
    double least = INFINITY, most = 0;
    for (int32_t i = 0; i < p->n_points; i++) {
        const double v = p->is_time ? p->points[i].ttft_ms : p->points[i].kl;
        if (v > 0 && v < least) least = v;
        if (v > most) most = v;
    }
    p->low = 0;
    p->high = p->is_time ? fmax(most * 1.1, 1) : 0;
    if (p->is_time) return;
    p->low = most > 0 ? fmax(floor(log10(least)), floor(log10(most)) - 8) : -1;
    p->high = most > 0 ? fmax(ceil(log10(most)), p->low + 1) : 0;
}

static void draw_axes(const panel *p)
{
    const int n_ticks = p->is_time ? N_TICKS : (int)(p->high - p->low);
    fprintf(p->out, "<text x=\"%.0f\" y=\"%d\" font-size=\"13\">%s</text>\n", p->x0, TOP - 12,
            p->is_time ? "time to first token, ms" : "mean KL(dense, plan) of the first token");
    for (int i = 0; i <= n_ticks; i++) {
        const double v = p->low + (p->high - p->low) * i / n_ticks, y = y_of(p, v);
        fprintf(p->out, "<line x1=\"%.0f\" y1=\"%.1f\" x2=\"%.0f\" y2=\"%.1f\" stroke=\"#dde0e4\"/>"
                "<text x=\"%.0f\" y=\"%.1f\" font-size=\"11\" text-anchor=\"end\">%s%.0f</text>\n",
                p->x0, y, p->x0 + WIDTH, y, p->x0 - 8, y + 4, p->is_time ? "" : "1e", v);
    }
    for (int32_t i = 0, shown = -p->n_most; i < p->n_points; i++) {
        const int32_t n = p->points[i].n_sparse;
        if (WIDTH * (int64_t)(n - shown) < 24 * (int64_t)p->n_most) continue;      /* labels need room */
        fprintf(p->out, "<text x=\"%.1f\" y=\"%d\" font-size=\"11\" text-anchor=\"middle\">%d</text>\n", x_of(p, n),
                TOP + HEIGHT + 18, n);
        shown = n;
    }
    fprintf(p->out, "<text x=\"%.0f\" y=\"%d\" font-size=\"11\" text-anchor=\"middle\">triangle layers</text>\n",
            p->x0 + WIDTH / 2.0, TOP + HEIGHT + 36);
}

static void draw_panel(panel *p, int32_t n_chosen)
{
    const char *colour = p->is_time ? "#2a6f97" : "#c2571a";
    find_scale(p);
    draw_axes(p);
    fprintf(p->out, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" d=\"", colour);
    for (int32_t i = 0, is_open = 0; i < p->n_points; i++) {
        const tmx_plan_point *at = &p->points[i];
        if (has_place(p, at)) fprintf(p->out, "%c%.1f %.1f", is_open ? 'L' : 'M', x_of(p, at->n_sparse), y_of(p, value_of(p, at)));
        is_open = has_place(p, at);
    }
    fputs("\"/>\n", p->out);
    for (int32_t i = 0; i < p->n_points; i++) {
        const tmx_plan_point *at = &p->points[i];
        const bool is_chosen = at->n_sparse == n_chosen;
        fprintf(p->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" fill=\"%s\" stroke=\"%s\" stroke-width=\"1.8\"><title>%d layers: KL %.3g, "
                "score %.1f, %.0f ms</title></circle>\n", x_of(p, at->n_sparse), y_of(p, value_of(p, at)), is_chosen ? 6 : 3,
                is_chosen || !has_place(p, at) ? "#fff" : colour, colour, at->n_sparse, at->kl, at->score, at->ttft_ms);
    }
}

typedef struct picture {
    const tmx_plan_point *points;
    int32_t n_points, n_chosen;
    const char *title;
} picture;

static void draw(FILE *out, const void *what)
{
    const picture *c = what;
    const int32_t n_most = c->points[c->n_points - 1].n_sparse;
    svg_begin(out, LEFT + 2 * WIDTH + GAP + 24, TOP + HEIGHT + BOTTOM);
    fprintf(out, "<text x=\"16\" y=\"22\" font-size=\"14\">%s; chosen: %d layers (ring)</text>\n", c->title, c->n_chosen);
    for (int i = 0; i < 2; i++) {
        panel p = { .out = out, .points = c->points, .n_points = c->n_points, .n_most = n_most > 0 ? n_most : 1, .is_time = i == 1,
                    .x0 = LEFT + i * (WIDTH + GAP) };
        draw_panel(&p, c->n_chosen);
    }
    svg_end(out);
}

int write_curve_picture(const char *path, const tmx_plan_point *points, int32_t n_points, int32_t n_chosen, const char *title)
{
    return svg_write(path, draw, &(picture){ points, n_points, n_chosen, title });
}
