/* flexprefill.h - FlexPrefill (arXiv 2502.20766, as the authors' code has it): which tiles of a head's map of query and key
 * blocks are kept.  In: what the last KEY_BLOCK rows, the probe, attend to, and means of Q and K over blocks.  Out: key lists.
 * Never sees Q or K itself: attn/ measures.
 *
 * N = prompt, B = KEY_BLOCK, nb = blocks; P = attention probabilities of the probe rows.
 *   by_key[j]       mean over the probe rows of P[r][j]                    vertical lines
 *   by_distance[c]  the same along the diagonal of distance N - 1 - c      slashes
 *   V[b], S[b]      their sums over [b B, (b + 1) B); bin b of S stands for tiles nb - 1 - b below the diagonal
 *   pooled[b]       softmax over b of (mean probe row) . (mean K of block b) / sqrt(head_dim)
 * Budgets in blocks: 1 + (1 + how many of the largest entries add up to at most gamma) / 128, for by_key and for by_distance,
 * at least ceil(min_budget / B).  The heaviest V are kept as columns of tiles, the heaviest S as diagonals of tiles; column 0
 * and the main diagonal always (ties: the earlier column, the nearer diagonal).
 *
 * A head is query-aware if the Jensen-Shannon distance of pooled and V is below tau: means of blocks then tell enough.  It keeps
 * the least budget of both, and of the map Z[m][n] = softmax over n <= m of (mean Q of m) . (mean K of n) / sqrt(head_dim) the
 * heaviest tiles that add up to at most gamma nb (ties: the earlier in row order).
 *
 * Lists of a chunk's rows alone: the prompt is taken to end with the chunk, and of the map there are the chunk's rows, of which the
 * heaviest tiles may add up to gamma times their number. */
#ifndef TMX_PATTERN_FLEXPREFILL_H
#define TMX_PATTERN_FLEXPREFILL_H

#include "pattern/key_lists.h"
#include "tmx.h"

typedef struct flexprefill {
    double gamma;                  /* (0, 1]; 1 keeps everything */
    double tau;                    /* [0, 1]; 0: no head is query-aware */
    int32_t min_budget;            /* tokens, >= 1 */
} flexprefill;

#define FLEXPREFILL_DEFAULTS { .gamma = 0.9, .tau = 0.1, .min_budget = 512 }

tmx_status flexprefill_check(const flexprefill *f, tmx_error *err);
/* Prompts up to this long keep everything. */
int32_t flexprefill_dense_tokens(const flexprefill *f);

/* What attn/ measured of one head. */
typedef struct flex_head {
    int32_t n;                     /* > KEY_BLOCK: where the rows that have lists end */
    const double *by_key, *by_distance;    /* [n] */
    const double *pooled;          /* [nb] */
} flex_head;

/* Sets the lists of a head, which were empty, up to a query-aware head's own tiles; returns whether it is one.  Numbers that are
 * no numbers keep everything.  block_mass: scratch [2 nb]; order: scratch, int32 [n]. */
bool flexprefill_select(const flexprefill *f, const flex_head *at, key_lists *lists, int32_t head, double *block_mass, int32_t *order);
/* The tiles of a query-aware head: map of the rows that have lists, row m at flexprefill_map_row(m) - flexprefill_map_row(first one);
 * order: scratch of as many. */
static inline int32_t flexprefill_map_row(int32_t m) { return m * (m + 1) / 2; }
void flexprefill_select_tiles(const flexprefill *f, const double *map, key_lists *lists, int32_t head, int32_t *order);

/* 1 + how many of the largest x add up to at most gamma. */
int32_t flexprefill_coverage(const double *x, int32_t n, double gamma, int32_t *order);
/* Tiles of a column or of a diagonal, for all query blocks that have lists. */
void flexprefill_keep_column(key_lists *lists, int32_t head, int32_t k_block);
void flexprefill_keep_diagonal(key_lists *lists, int32_t head, int32_t offset);

#endif
