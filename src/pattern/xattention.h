/* xattention.h - XAttention (arXiv 2503.16428): which key blocks a block of query rows keeps, by the attention mass that
 * antidiagonal sums promise.  In: parameters, a row of masses.  Out: a key list.  Never sees Q or K: attn/ estimates.
 *
 * With S = stride, rows and keys are taken in groups of S; for query group m and key group n <= m of a head
 *   Z[m][n] = sum over t < S of Q[m S + S - 1 - t] . K[n S + t]          every pair has q + k = (m + n) S + S - 1
 *   p[m][n] = softmax over n <= m of Z[m][n] / (sqrt(head_dim) S norm)   the group n = m is kept whole, future keys too
 *   M[a][b] = sum of p[m][n] over the groups m of query block a and n of key block b
 * Rows and keys behind the end count as zero, and groups that lie wholly behind it not at all.  Query block a keeps blocks 0
 * and a, then the others by descending mass (ties: the earlier block) until they hold `threshold` of its mass, the block that
 * crosses included. */
#ifndef TMX_PATTERN_XATTENTION_H
#define TMX_PATTERN_XATTENTION_H

#include "tmx.h"

#include <stddef.h>

enum { XATTENTION_MAX_STRIDE = 16 };

typedef struct xattention {
    int32_t stride;                /* S: 4, 8 or 16 */
    double threshold;              /* (0, 1]; 1 keeps every block, also those without mass */
    double norm;                   /* > 0; 1 is the authors' code, 1/sqrt(S) the paper's formula */
    const double *thresholds;      /* [n_heads] of the layer at work, 0: the head has none of its own; NULL: none has */
} xattention;

#define XATTENTION_DEFAULTS { .stride = 8, .threshold = 0.9, .norm = 1 }

tmx_status xattention_check(const xattention *x, tmx_error *err);

static inline double xattention_threshold(const xattention *x, int32_t head)
{
    return x->thresholds != NULL && x->thresholds[head] != 0 ? x->thresholds[head] : x->threshold;
}

/* mass [a + 1] -> the list of query block a, which was empty.  order: scratch, int32 [a + 1].  A mass that is no number keeps
 * everything, so that a NaN shows in the output as it does in dense attention. */
void xattention_select(const double *mass, int32_t a, double threshold, uint64_t *list, int32_t *order);

#endif
