/* s2o.h - S2O (arXiv 2602.22575): early stopping over keys in an order of their own.  In: parameters, scores.  Out: the orders.
 * Never sees Q or K: attn/ scores and attends.  The paper has no public code; what it leaves open is decided here, see
 * docs/patterns.md.
 *
 * Rows are cut into segments [a, b) of `segment` rows; keys [0, a) are the segment's history.  For one query head:
 *   qbar  = mean of Q[i] over the segment                r[j] = qbar . K[j], j < a
 *   pi    = keys 0 .. sink - 1, then the others of the history by descending r (ties: the earlier)
 *   u     = sum over those others of softmax(scale r)[j] K[j]
 *   sigma = rows of the segment by descending Q[i] . u (ties: the earlier); their own order without history or with guide 0
 * Tiles of S2O_ROW_TILE rows follow sigma.  A tile attends to its own segment (k <= q) whole, then to pi in tiles of
 * S2O_KEY_TILE keys, all of which lie before every row.  After key tile t, for each row, with sums under one maximum:
 *   gain = sum of the tile's weights / sum of all weights so far
 * and the row tile stops when at least `min_tiles` tiles and all sinks are behind it, and the mean (vote 1: the largest) gain of
 * its rows is below tau. */
#ifndef TMX_PATTERN_S2O_H
#define TMX_PATTERN_S2O_H

#include "tmx.h"

enum { S2O_ROW_TILE = 128, S2O_KEY_TILE = 64, S2O_MAX_SEGMENT = 1 << 16 };

typedef struct s2o {
    int32_t segment;               /* rows: a multiple of S2O_ROW_TILE */
    double tau;                    /* [0, 1]; 0 visits everything */
    int32_t sink;                  /* keys */
    int32_t min_tiles;             /* key tiles of the history, where it has so many */
    int32_t vote;                  /* 0: mean, 1: max */
    int32_t guide;                 /* 1: rows are permuted; 0: only keys are */
} s2o;

#define S2O_DEFAULTS { .segment = 512, .tau = 0.005, .sink = 64, .min_tiles = 2, .vote = 0, .guide = 0 }

tmx_status s2o_check(const s2o *s, tmx_error *err);

/* Prompts up to this long keep everything: half of their pairs lie inside segments. */
static inline int32_t s2o_dense_tokens(const s2o *s) { return 2 * s->segment; }

/* order = indices [0, n) by descending score, ties by ascending index: a stable radix sort.  Scores are numbers, not NaN.
 * scratch: uint32 [3 n]. */
void s2o_rank(const float *score, int32_t n, int32_t *order, uint32_t *scratch);

#endif
