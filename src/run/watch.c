#include "run/watch.h"

#include "base/num.h"
#include "base/status.h"
#include "pattern/pattern.h"
#include "run/backend.h"

#include <assert.h>

static_assert((int)TMX_WATCH_TILE == (int)KEY_BLOCK, "lists are in the same tiles");

tmx_status tmx_session_watch(tmx_session *session, int32_t layer, int32_t head, double *pairs, int32_t n, tmx_error *err)
{
    if (session == NULL) return refuse(err, TMX_E_ARG, "watch: session is NULL");
    session->watch.pairs = NULL;
    if (pairs == NULL) return TMX_OK;
    const tmx_model_info *m = &session->model->info;
    if (session->backend != &backend_cpu) return refuse(err, TMX_E_UNSUPPORTED, "watch: works on the CPU only, the model is on %s", m->device);
    if (session->params.n_seqs != 1) return refuse(err, TMX_E_ARG, "watch: a session of %d sequences, expected 1", session->params.n_seqs);
    if (layer < 0 || layer >= m->n_layers) return refuse(err, TMX_E_ARG, "layer: %d, expected 0..%d", layer, m->n_layers - 1);
    if (head < 0 || head >= m->n_heads) return refuse(err, TMX_E_ARG, "head: %d, expected 0..%d", head, m->n_heads - 1);
    if (n < key_blocks_of(session->params.n_ctx)) {
        return refuse(err, TMX_E_ARG, "watch: %d tiles, expected at least %d", n, key_blocks_of(session->params.n_ctx));
    }
    session->watch.layer = layer;
    session->watch.head = head;
    session->watch.n = n;
    session->watch.pairs = pairs;
    return TMX_OK;
}

static double *tiles_of_row(tmx_session *s, int32_t q_pos)
{
    return s->watch.pairs + (size_t)(q_pos / TMX_WATCH_TILE) * (size_t)s->watch.n;
}

/* Keys [begin, end) of one row. */
static void count_keys(double *tiles, int32_t begin, int32_t end)
{
    for (int32_t at = begin, next; at < end; at = next) {
        next = min_i32(end, (at / TMX_WATCH_TILE + 1) * TMX_WATCH_TILE);
        tiles[at / TMX_WATCH_TILE] += next - at;
    }
}

void watch_static(tmx_session *s, const tmx_pattern *pattern, int32_t n_prompt, int32_t q_begin, int32_t q_end)
{
    const int32_t first_dense_row = pattern_first_dense_row(pattern, n_prompt);
    for (int32_t q = q_begin; q < q_end; q++) {
        const row_keys row = pattern_row_keys(pattern, first_dense_row, q);
        const int32_t sink_end = min_i32(row.sink_end, q + 1);
        count_keys(tiles_of_row(s, q), 0, sink_end);
        count_keys(tiles_of_row(s, q), max_i32(row.window_begin, sink_end), q + 1);
    }
}

void watch_lists(tmx_session *s, const key_lists *lists, int32_t q_begin, int32_t q_end)
{
    for (int32_t q = q_begin; q < q_end; q++) {
        key_runs it = { .list = key_list_of(lists, s->watch.head, q / KEY_BLOCK), .k_end = q + 1 };
        for (int32_t begin, end; key_runs_next(&it, &begin, &end);) count_keys(tiles_of_row(s, q), begin, end);
    }
}

void watch_head(tmx_session *s, const head_keys *head, int32_t q_begin)
{
    if (head->kind == HEAD_WINDOW) {
        const tmx_pattern window = { .kind = TMX_PATTERN_STREAMING, .n_sink = head->n_sink, .n_window = head->n_window };
        watch_static(s, &window, head->n, q_begin, head->n);
        return;
    }
    for (int32_t q = q_begin; q < head->n; q++) {
        line_runs it = line_runs_of(head, q - q % LINE_BLOCK);
        for (int32_t begin, end; line_runs_next(&it, &begin, &end);) count_keys(tiles_of_row(s, q), begin, min_i32(end, q + 1));
    }
}

void watch_s2o(s2o_watch *watch, const s2o_visit *visit)
{
    tmx_session *s = ((s2o_visits *)(void *)watch)->session;
    if (visit->head != s->watch.head) return;
    for (int32_t i = 0; i < visit->n_rows; i++) {
        double *tiles = tiles_of_row(s, visit->rows[i]);
        count_keys(tiles, visit->begin, visit->rows[i] + 1);
        if (visit->keys == NULL) count_keys(tiles, 0, visit->n_keys);
        else for (int32_t j = 0; j < visit->n_keys; j++) tiles[visit->keys[j] / TMX_WATCH_TILE]++;
    }
}
