#include "inspect_pattern.h"

#include "model_choice.h"
#include "plan_choice.h"
#include "prompt.h"
#include "svg.h"

#include <stdlib.h>
#include <string.h>

enum { SIZE = 640, LEFT = 60, TOP = 72, BOTTOM = 40, MAX_PICTURE_TOKENS = 1 << 20 };

/* pairs [n][n], as tmx_session_watch counts them. */
typedef struct tile_map {
    const inspect_options *o;
    const char *kind;              /* the layer's */
    double *pairs, density;        /* of the rows that were computed */
    int32_t n, n_tokens, n_visited, n_tiles;
} tile_map;

/* Causal pairs of a tile. */
static double pairs_of(const tile_map *map, int32_t i, int32_t j)
{
    const double left = map->n_tokens - (double)i * TMX_WATCH_TILE, n_rows = left < TMX_WATCH_TILE ? left : TMX_WATCH_TILE;
    return i == j ? n_rows * (n_rows + 1) / 2 : n_rows * TMX_WATCH_TILE;
}

static void put_title(FILE *out, const tile_map *map)
{
    fprintf(out, "layer %d, head %d: %s, %d tokens, %.1f %% of the pairs, %d of %d tiles", map->o->layer, map->o->head, map->kind,
            map->n_tokens, 100 * map->density, map->n_visited, map->n_tiles);
}

/* A tile is the darker the more of its pairs are visited; one that is not visited stays pale. */
static void draw(FILE *out, const void *what)
{
    const tile_map *map = what;
    const double side = (double)SIZE / map->n;
    svg_begin(out, LEFT + SIZE + 20, TOP + SIZE + BOTTOM);
    fprintf(out, "<text x=\"%d\" y=\"28\" font-size=\"16\">", LEFT);
    svg_put_text(out, map->o->pattern, 70);
    fprintf(out, "</text>\n<text x=\"%d\" y=\"52\" font-size=\"13\">", LEFT);
    put_title(out, map);
    fputs("</text>\n<g shape-rendering=\"crispEdges\">\n", out);
    for (int32_t i = 0; i < map->n; i++) {
        fprintf(out, "<rect x=\"%d\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"#eef0f3\"/>\n", LEFT, TOP + i * side, (i + 1) * side, side);
        for (int32_t j = 0; j <= i; j++) {
            const double share = map->pairs[(size_t)i * (size_t)map->n + (size_t)j] / pairs_of(map, i, j);
            if (share <= 0) continue;
            fprintf(out, "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"#1f5fa8\" fill-opacity=\"%.2f\"/>\n",
                    LEFT + j * side, TOP + i * side, side, side, 0.15 + 0.85 * share);
        }
    }
    fprintf(out, "</g>\n<text x=\"%d\" y=\"%d\" font-size=\"12\">keys 0 to %d; darker: more pairs of a tile of %d x %d</text>\n"
            "<text x=\"%d\" y=\"%d\" font-size=\"12\" transform=\"rotate(-90 %d %d)\">query rows, downwards</text>\n",
            LEFT, TOP + SIZE + 24, map->n_tokens - 1, TMX_WATCH_TILE, TMX_WATCH_TILE, LEFT - 16, TOP + 140, LEFT - 16, TOP + 140);
    svg_end(out);
}

static int report(tile_map *map, const tmx_plan *plan)
{
    map->kind = tmx_plan_own_window(plan, map->o->layer) > 0 ? "the model's own window" : tmx_pattern_name(tmx_plan_layer(plan, map->o->layer)->kind);
    const bool is_last = map->o->layer == tmx_plan_n_layers(plan) - 1;
    double n_visited = 0, n_all = 0;
    for (int32_t i = is_last ? map->n - 1 : 0; i < map->n; i++) {
        for (int32_t j = 0; j <= i; j++) {
            const double here = map->pairs[(size_t)i * (size_t)map->n + (size_t)j];
            n_visited += here;
            n_all += pairs_of(map, i, j);
            map->n_visited += here > 0;
            map->n_tiles++;
        }
    }
    map->density = n_visited / (is_last ? map->n_tokens : n_all);
    put_title(stdout, map);
    putchar('\n');
    if (is_last) puts("the last layer: prefill computes its last row only");
    return map->o->picture == NULL ? 0 : svg_write(map->o->picture, draw, map);
}

static int run(tile_map *map, const tmx_model *model, const tmx_plan *plan, tmx_pool *pool, const prompt *p)
{
    tmx_error err;
    tmx_session *session = NULL;
    if (p->n_ids == 0) return complain(EXIT_INPUT, "%s: the prompt is empty", p->source);
    if (p->n_ids > MAX_PICTURE_TOKENS) {
        return complain(EXIT_INPUT, "%s: %zu tokens, a picture takes up to %d", p->source, p->n_ids, MAX_PICTURE_TOKENS);
    }
    map->n_tokens = (int32_t)p->n_ids;
    map->n = (map->n_tokens + TMX_WATCH_TILE - 1) / TMX_WATCH_TILE;
    map->pairs = calloc((size_t)map->n * (size_t)map->n, sizeof *map->pairs);
    float *logits = calloc((size_t)tmx_model_info_get(model)->n_vocab, sizeof *logits);    /* asking for them runs the last layer */
    if (map->pairs == NULL || logits == NULL) {
        free(logits);
        return complain(EXIT_RESOURCES, "out of memory for %d x %d tiles", map->n, map->n);
    }
    const tmx_session_params params = { .n_ctx = map->n_tokens, .kv_type = (tmx_type)map->o->cache_type };
    const tmx_prompt whole = { .tokens = p->ids, .n_tokens = map->n_tokens, .logits = logits };
    tmx_status status = tmx_session_create(&session, model, plan, pool, &params, &err);
    if (status == TMX_OK) status = tmx_session_watch(session, map->o->layer, map->o->head, map->pairs, map->n, &err);
    if (status == TMX_OK) status = tmx_prefill(session, &whole, 1, &err);
    const int code = status == TMX_OK ? report(map, plan) : complain_error(&err);
    tmx_session_free(session);
    free(logits);
    return code;
}

static int read_prompt(const inspect_options *o, prompt *p)
{
    if (o->prompt_file != NULL) return prompt_read(p, o->prompt_file);
    *p = (prompt){ .source = "-p", .n_bytes = strlen(o->prompt), .text = strdup(o->prompt) };
    return p->text != NULL ? 0 : complain(EXIT_RESOURCES, "out of memory for the prompt");
}

int inspect_pattern(const inspect_options *o)
{
    tile_map map = { .o = o };
    const model_opening opening = { .path = o->model, .changes = &o->changes, .compute = o->compute };
    const plan_choice choice = { .spec = o->pattern, .n_sink = -1, .n_window = -1, .n_last = -1 };
    tmx_error err;
    prompt p = { 0 };
    tmx_pool *pool = NULL;
    tmx_model *model = NULL;
    tmx_plan *plan = NULL;
    int code = read_prompt(o, &p);
    if (code == 0 && tmx_pool_create(&pool, o->n_threads, &err) != TMX_OK) code = complain_error(&err);
    if (code == 0) code = open_chosen_model(&model, &opening, pool);
    if (code == 0) code = plan_choose(&choice, tmx_model_info_get(model), &plan);
    if (code == 0) code = prompt_tokenize_text(&p, model);
    if (code == 0) code = run(&map, model, plan, pool, &p);
    free(map.pairs);
    tmx_plan_free(plan);
    tmx_model_close(model);
    tmx_pool_free(pool);
    prompt_free(&p);
    return code;
}
