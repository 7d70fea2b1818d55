/* pattern.h - which (query, key) pairs are visible.  In: a tmx_pattern, the prompt's final length, a tile of query
 * rows.  Out: the one predicate everything obeys, key tiles marked full or partial, closed-form pair counts.  Knows
 * positions only: no heads, no models, no memory.  Spec: arXiv 2507.21526 section 3 (as the authors' kernel has it).
 *
 *   visible(q, k) = k <= q and ( dense or q - k < n_window or k < n_sink or q >= T ),  T = first dense row */
#ifndef TMX_PATTERN_PATTERN_H
#define TMX_PATTERN_PATTERN_H

#include "base/num.h"
#include "tmx.h"

#include <assert.h>

/* Rows >= this see every key before them: 0 for dense, n_prompt for streaming, T for triangle. */
static inline int32_t pattern_first_dense_row(const tmx_pattern *p, int32_t n_prompt)
{
    switch (p->kind) {
    case TMX_PATTERN_DENSE: return 0;
    case TMX_PATTERN_STREAMING: return n_prompt;
    case TMX_PATTERN_TRIANGLE: return n_prompt - min_i32(p->n_last, n_prompt - 1);
    }
    return 0;
}

static inline bool pattern_is_visible(const tmx_pattern *p, int32_t n_prompt, int32_t q_pos, int32_t k_pos)
{
    if (k_pos > q_pos) return false;
    if (p->kind == TMX_PATTERN_DENSE) return true;
    return q_pos - k_pos < p->n_window || k_pos < p->n_sink || q_pos >= pattern_first_dense_row(p, n_prompt);
}

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
    int32_t q_begin, q_end, first_dense_row, n_sink, n_window, tile_k;
    int32_t k_next;                /* start of the next tile */
    int32_t sink_end, window_begin;/* intervals [0, sink_end) and [window_begin, q_end); one interval: sink_end 0 */
} key_tiles;

key_tiles key_tiles_of(const tmx_pattern *p, int32_t n_prompt, int32_t q_begin, int32_t q_end, int32_t tile_k);
bool key_tiles_next(key_tiles *it, key_tile *tile);

#endif
