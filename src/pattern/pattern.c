#include "pattern/pattern.h"

#include "base/status.h"

const char *tmx_pattern_name(tmx_pattern_kind kind)
{
    switch (kind) {
    case TMX_PATTERN_DENSE: return "dense";
    case TMX_PATTERN_STREAMING: return "streaming";
    case TMX_PATTERN_TRIANGLE: return "triangle";
    case TMX_PATTERN_XATTENTION: return "xattention";
    case TMX_PATTERN_FLEXPREFILL: return "flexprefill";
    case TMX_PATTERN_MINFERENCE: return "minference";
    case TMX_PATTERN_S2O: return "s2o";
    }
    return "unknown";
}

bool tmx_pattern_is_dynamic(tmx_pattern_kind kind)
{
    return kind == TMX_PATTERN_XATTENTION || kind == TMX_PATTERN_FLEXPREFILL || kind == TMX_PATTERN_MINFERENCE || kind == TMX_PATTERN_S2O;
}

tmx_status pattern_check(const tmx_pattern *p, tmx_error *err)
{
    switch (p->kind) {
    case TMX_PATTERN_DENSE: return TMX_OK;             /* reads no size: an all-zero struct is a valid pattern */
    case TMX_PATTERN_STREAMING:
    case TMX_PATTERN_TRIANGLE: break;
    case TMX_PATTERN_XATTENTION:
    case TMX_PATTERN_FLEXPREFILL:
    case TMX_PATTERN_MINFERENCE:
    case TMX_PATTERN_S2O:
        return refuse(err, TMX_E_ARG, "pattern kind: %s is dynamic, no pattern of positions", tmx_pattern_name(p->kind));
    default:
        return refuse(err, TMX_E_ARG, "pattern kind: %d, expected 0 (dense), 1 (streaming), 2 (triangle)",
                      (int)p->kind);
    }
    if (p->n_sink < 0) return refuse(err, TMX_E_ARG, "pattern n_sink: %d, expected 0 or more", p->n_sink);
    if (p->n_window < 1) return refuse(err, TMX_E_ARG, "pattern n_window: %d, expected 1 or more", p->n_window);
    if (p->kind == TMX_PATTERN_TRIANGLE && p->n_last < 0) {
        return refuse(err, TMX_E_ARG, "pattern n_last: %d, expected 0 or more", p->n_last);
    }
    return TMX_OK;
}

bool tmx_pattern_is_visible(const tmx_pattern *p, int32_t n_prompt, int32_t q_pos, int32_t k_pos)
{
    if (p == NULL || pattern_check(p, NULL) != TMX_OK || k_pos < 0 || k_pos > q_pos || q_pos >= n_prompt) return false;
    return pattern_is_visible(p, n_prompt, q_pos, k_pos);
}

static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows [begin, end) do not see every key before them; empty if begin >= end. */
typedef struct limited_rows {
    int64_t begin, end;
} limited_rows;

static limited_rows limited_rows_of(const tmx_pattern *p, int32_t n_prompt)
{
    if (p->kind == TMX_PATTERN_DENSE) return (limited_rows){ 0 };
    return (limited_rows){ .begin = (int64_t)p->n_sink + p->n_window, .end = pattern_first_dense_row(p, n_prompt) };
}

int32_t pattern_n_same_rows(const tmx_pattern *a, int32_t n_a, const tmx_pattern *b, int32_t n_b)
{
    const limited_rows x = limited_rows_of(a, n_a), y = limited_rows_of(b, n_b);
    const bool has_x = x.begin < x.end, has_y = y.begin < y.end;
    int64_t n = min_i32(n_a, n_b);
    if (has_x && has_y) {
        assert(x.begin == y.begin);
        if (x.end != y.end) n = min_i64(n, min_i64(x.end, y.end));
    } else if (has_x || has_y) {
        n = min_i64(n, has_x ? x.begin : y.begin);
    }
    return (int32_t)n;
}

/* Sum of min(i + 1, cap) over rows [0, n_rows): below 2^62 for every int32 input. */
static int64_t capped_pairs(int64_t n_rows, int64_t cap)
{
    const int64_t n_growing = n_rows < cap ? n_rows : cap;
    return n_growing * (n_growing + 1) / 2 + (n_rows - n_growing) * cap;
}

/* Row i of the streaming part sees min(i + 1, n_window) window keys and min(i + 1 - n_window, n_sink) sinks before
 * them: the same sum twice, the second shifted by n_window rows. */
static int64_t streaming_pairs(const tmx_pattern *p, int64_t n_rows)
{
    const int64_t n_past_window = n_rows > p->n_window ? n_rows - p->n_window : 0;
    return capped_pairs(n_rows, p->n_window) + capped_pairs(n_past_window, p->n_sink);
}

int64_t tmx_pattern_pairs(const tmx_pattern *p, int32_t n_prompt, int32_t q_begin, int32_t q_end)
{
    if (p == NULL || pattern_check(p, NULL) != TMX_OK) return 0;
    const int32_t begin = max_i32(q_begin, 0), end = min_i32(q_end, n_prompt);
    if (begin >= end) return 0;
    const int32_t dense_begin = max_i32(begin, min_i32(end, pattern_first_dense_row(p, n_prompt)));
    int64_t n_pairs = capped_pairs(end, end) - capped_pairs(dense_begin, dense_begin);
    if (begin < dense_begin) n_pairs += streaming_pairs(p, dense_begin) - streaming_pairs(p, begin);
    return n_pairs;
}

key_tiles key_tiles_of(const tmx_pattern *p, int32_t n_prompt, int32_t q_begin, int32_t q_end, int32_t tile_k)
{
    assert(pattern_check(p, NULL) == TMX_OK);
    assert(0 <= q_begin && q_begin <= q_end && q_end <= n_prompt && tile_k >= 1);
    const int32_t first_dense_row = pattern_first_dense_row(p, n_prompt);
    key_tiles it = { .pattern = *p, .first_dense_row = first_dense_row, .q_begin = q_begin, .q_end = q_end,
                     .tile_k = tile_k, .k_next = q_end };
    if (q_begin == q_end) return it;
    const key_intervals keys = key_intervals_of(p, first_dense_row, q_begin, q_end);
    it.sink_end = keys.sink_end;
    it.window_begin = keys.window_begin;
    it.k_next = keys.sink_end > 0 ? 0 : keys.window_begin;
    return it;
}

bool key_tiles_next(key_tiles *it, key_tile *tile)
{
    if (it->k_next >= it->q_end) return false;
    const int32_t k_begin = it->k_next;
    const int32_t interval_end = k_begin < it->sink_end ? it->sink_end : it->q_end;
    const int64_t grid_end = ((int64_t)k_begin / it->tile_k + 1) * it->tile_k;
    const int32_t k_end = grid_end < interval_end ? (int32_t)grid_end : interval_end;
    *tile = (key_tile){ .k_begin = k_begin, .k_end = k_end,
                        .is_full = pattern_is_full(&it->pattern, it->first_dense_row, it->q_begin, it->q_end, k_begin,
                                                   k_end) };
    it->k_next = k_end == it->sink_end ? it->window_begin : k_end;
    return true;
}
