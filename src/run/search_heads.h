/* search_heads.h - MInference's kernel-aware search: which type of head loses least at the same number of pairs.  In: Q, K and V of a
 * layer of a prompt that runs dense.  Out: for every head the errors of its candidates, and their sizes.
 *
 * A candidate is a type and the ratio of its two sizes.  For each head, bisection finds the largest sizes at which what the head keeps
 * of this very prompt has no more than the wanted share of its causal pairs; the error is ||o - o_dense||^2 / ||o_dense||^2 over all
 * rows of the head.  A candidate that cannot be so small, or has no sizes and is larger, is out. */
#ifndef TMX_RUN_SEARCH_HEADS_H
#define TMX_RUN_SEARCH_HEADS_H

#include "attn/attn.h"
#include "run/session.h"

enum { N_CANDIDATES = 6 };

typedef struct candidate {
    minference_head head;          /* sizes: the least over the prompts */
    double error;                  /* sum over the prompts; INFINITY: out */
} candidate;

typedef struct head_search {
    double keep;                   /* (0, 1] */
    int32_t n_heads;
    candidate *candidates;         /* [n_layers][n_heads][N_CANDIDATES] */
    void *out;                     /* [n_ctx][n_heads * head_dim] of q_type: what a candidate gives */
    double *least, *most;          /* [n_heads]: bounds of a bisection */
    double *error;                 /* [n_heads]: of the candidate at hand on the layer at hand */
    bool *is_seen;                 /* [n_layers]: the layer ran */
} head_search;

/* Every candidate on one layer of a whole prompt; params as attn_minference takes them, with dense output in params->seqs->out.
 * chosen, found, room: as there, for work. */
void search_layer(head_search *search, int32_t layer, const tmx_attention_params *params, minference_head *chosen, head_keys *found,
                  uint64_t *room, tmx_pool *pool);

#endif
