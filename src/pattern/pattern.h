/* pattern.h - which (query, key) pairs are visible.  In: a tmx_pattern, the prompt's final length, a tile of query
 * rows.  Out: the one predicate everything obeys, key tiles marked full or partial, closed-form pair counts.  Knows
 * positions only: no heads, no models, no memory.  Spec: arXiv 2507.21526 section 3 (as the authors' kernel has it).
 *
 *   visible(q, k) = k <= q and ( dense or q - k < n_window or k < n_sink or q >= T ),  T = first dense row */
#ifndef TMX_PATTERN_PATTERN_H
#define TMX_PATTERN_PATTERN_H

#include "base/device.h"
#include "base/num.h"
#include "tmx.h"

#include <assert.h>

/* Rows >= this see every key before them: 0 for dense, n_prompt for streaming, T for triangle. */
HOST_DEVICE static inline int32_t pattern_first_dense_row(const tmx_pattern *p, int32_t n_prompt)
{
    switch (p->kind) {
    case TMX_PATTERN_DENSE: return 0;
    case TMX_PATTERN_STREAMING: return n_prompt;
    case TMX_PATTERN_TRIANGLE: return n_prompt - min_i32(p->n_last, n_prompt - 1);
    case TMX_PATTERN_XATTENTION:
    case TMX_PATTERN_FLEXPREFILL:
    case TMX_PATTERN_MINFERENCE:
    case TMX_PATTERN_S2O: break;                       /* pattern_check lets none in */
    }
    return 0;
}

/* What one row sees: keys [0, sink_end) and [window_begin, q_pos].  The two may overlap. */
typedef struct row_keys {
    int32_t sink_end, window_begin, q_pos;
} row_keys;

HOST_DEVICE static inline row_keys pattern_row_keys(const tmx_pattern *p, int32_t first_dense_row, int32_t q_pos)
{
    row_keys row = { 0, 0, q_pos };
    if (q_pos < first_dense_row) {
        row.sink_end = p->n_sink;
        row.window_begin = max_i32(0, q_pos - p->n_window + 1);
    }
    return row;
}

/* A negative k_pos, as it occurs in a tile that hangs over the first key, is no key. */
HOST_DEVICE static inline bool row_keys_has(row_keys row, int32_t k_pos)
{
    return k_pos <= row.q_pos && (k_pos >= row.window_begin || (uint32_t)k_pos < (uint32_t)row.sink_end);
}

HOST_DEVICE static inline bool pattern_is_visible(const tmx_pattern *p, int32_t n_prompt, int32_t q_pos, int32_t k_pos)
{
    return row_keys_has(pattern_row_keys(p, pattern_first_dense_row(p, n_prompt), q_pos), k_pos);
}

/* What query rows [q_begin, q_end) need: keys [0, sink_end) and [window_begin, q_end), apart from each other; when there
 * is but one interval, [0, q_end), both are 0. */
typedef struct key_intervals {
    int32_t sink_end, window_begin;
} key_intervals;

HOST_DEVICE static inline key_intervals key_intervals_of(const tmx_pattern *p, int32_t first_dense_row, int32_t q_begin,
                                                         int32_t q_end)
{
    key_intervals keys = { 0, 0 };
    if (q_end > first_dense_row) return keys;          /* one dense row in the tile needs every key */
    const int32_t oldest = q_begin - p->n_window + 1;  /* the first row's window begins here */
    if (oldest <= p->n_sink) return keys;
    keys.sink_end = p->n_sink;
    keys.window_begin = oldest;
    return keys;
}

/* Does every row of [q_begin, q_end) see every key of [k_begin, k_end)?  The keys lie inside one interval of the rows,
 * so two questions remain: does the first row come after every key, and does the last streaming row (the worst one)
 * still see the oldest key that is no sink? */
HOST_DEVICE static inline bool pattern_is_full(const tmx_pattern *p, int32_t first_dense_row, int32_t q_begin,
                                               int32_t q_end, int32_t k_begin, int32_t k_end)
{
    if (k_end - 1 > q_begin) return false;
    if (q_begin >= first_dense_row || k_end <= p->n_sink) return true;
    const int32_t q_worst = min_i32(q_end, first_dense_row) - 1;
    return q_worst - max_i32(k_begin, p->n_sink) < p->n_window;
}

/* Rows [0, result) see the same keys in a prompt of n_a tokens under a and in one of n_b under b; at most the shorter one's.
 * Sizes are equal unless a kind reads none: a and b are one layer of a plan. */
int32_t pattern_n_same_rows(const tmx_pattern *a, int32_t n_a, const tmx_pattern *b, int32_t n_b);

tmx_status pattern_check(const tmx_pattern *p, tmx_error *err);      /* sizes in range, kind known */

/* A run of keys that at least one row of the query tile sees. */
typedef struct key_tile {
    int32_t k_begin, k_end;        /* k_begin / tile_k == (k_end - 1) / tile_k: never crosses a multiple of tile_k */
    bool is_full;                  /* every row sees every key: no mask code needed */
} key_tile;

/* Walks the key tiles of query rows [q_begin, q_end) in ascending order; each visible pair lies in exactly one tile.
 *     key_tiles it = key_tiles_of(&pattern, n_prompt, q_begin, q_end, tile_k);
 *     for (key_tile t; key_tiles_next(&it, &t); ) ...
 * At most two key intervals exist: [0, q_end), or [0, n_sink) and [q_begin - n_window + 1, q_end).  Tiles are cut at
 * interval ends, so the sink tile is as narrow as n_sink. */
typedef struct key_tiles {
    tmx_pattern pattern;
    int32_t first_dense_row, q_begin, q_end, tile_k;
    int32_t k_next;                /* start of the next tile */
    int32_t sink_end, window_begin;/* intervals [0, sink_end) and [window_begin, q_end); one interval: sink_end 0 */
} key_tiles;

key_tiles key_tiles_of(const tmx_pattern *p, int32_t n_prompt, int32_t q_begin, int32_t q_end, int32_t tile_k);
bool key_tiles_next(key_tiles *it, key_tile *tile);

#endif
