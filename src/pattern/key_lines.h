/* key_lines.h - what MInference keeps of one head, and which keys a block of query rows sees of it.  In: columns and distances
 * (or blocks, or sizes) that an estimator chose.  Out: runs of keys, the predicate, pair counts.
 *
 * Rows are taken in blocks of LINE_BLOCK, on absolute multiples of it.  For the block [t, t + LINE_BLOCK)
 *   a distance D covers the LINE_BLOCK keys that end at e = max(t + LINE_BLOCK - D, LINE_BLOCK), which hold every (q, q - D);
 *   those are merged from the farthest on: a next one that ends at most LINE_BLOCK behind the end of a run makes it LINE_BLOCK
 *   longer, one that ends farther away begins a new run;
 *   columns count where no run holds them.
 * So runs begin at any key, not at multiples of LINE_BLOCK, and a block sees a little more than its lines. */
#ifndef TMX_PATTERN_KEY_LINES_H
#define TMX_PATTERN_KEY_LINES_H

#include "base/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LINE_BLOCK = 64 };

typedef enum head_keys_kind {
    HEAD_DENSE,
    HEAD_WINDOW,                   /* the streaming pattern of n_sink and n_window, to the key */
    HEAD_LINES,                    /* columns and distances */
    HEAD_BLOCKS,                   /* blocks of LINE_BLOCK keys, chosen for every block of rows */
} head_keys_kind;

typedef struct head_keys {
    head_keys_kind kind;
    int32_t n;                     /* prompt, or where the chunk ends that the keys were found for */
    int32_t n_sink, n_window;
    int32_t n_columns, n_distances;
    const int32_t *columns;        /* [n_columns], ascending, none twice */
    const int32_t *distances;      /* [n_distances], descending, none twice; the last one is 0 */
    int32_t n_words;               /* of a row of blocks */
    const uint64_t *blocks;        /* [line_blocks_of(n)][n_words]: bit k / LINE_BLOCK */
} head_keys;

HOST_DEVICE static inline int32_t line_blocks_of(int32_t n) { return n / LINE_BLOCK + (n % LINE_BLOCK != 0); }

/* Walks the keys up to the last row of the block of rows at t, a multiple of LINE_BLOCK, in ascending order; runs are apart from
 * each other.  Not for HEAD_WINDOW.
 *     line_runs it = line_runs_of(head, t);
 *     for (int32_t begin, end; line_runs_next(&it, &begin, &end); ) ... */
typedef struct line_runs {
    const head_keys *head;
    int32_t t, k_end;
    int32_t next;                  /* distance, or block, not looked at */
    int32_t next_column;
    int32_t begin, end;            /* run of distances not handed out; begin == end: none is left */
} line_runs;

line_runs line_runs_of(const head_keys *head, int32_t t);
bool line_runs_next(line_runs *it, int32_t *k_begin, int32_t *k_end);

bool head_keys_visible(const head_keys *head, int32_t q_pos, int32_t k_pos);
/* Visible pairs of rows [q_begin, n); q_begin is a multiple of LINE_BLOCK. */
int64_t head_keys_pairs(const head_keys *head, int32_t q_begin);

#endif
