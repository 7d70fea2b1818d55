/* attn.h - attention on raw buffers.  In: q, k, v, a pattern, positions.  Out: o (and log-sum-exp).  Knows patterns and
 * tiles, never models; takes no memory in its loops.
 *
 * A task is one query tile (up to ATTN_MAX_ROWS rows = positions x query heads of one KV head) against all key tiles
 * its pattern gives; K and V are brought into scratch once per task and serve every row of the GQA group.  The door
 * (attn.c) checks, cuts tasks, longest first, and hands them to the kernel of the rung in use.  Lanes are rows
 * (attn_tile.h).
 *
 * Bits: a row's result depends only on its own q, the keys it sees, and their absolute positions.  Key tiles are cut at
 * multiples of ATTN_TILE_K from position 0, scores and sums have one accumulator per row that walks upwards, and a tile
 * or key a row does not see changes nothing.  So chunks, tiles, threads and batches never move a bit.
 *
 * NaN and infinity in K or V reach the rows that see them and no other.  (A visible key whose weight underflows to 0
 * does not count as seen for V.)  Keys behind q_begin + n_q are never read. */
#ifndef TMX_ATTN_ATTN_H
#define TMX_ATTN_ATTN_H

#include "pattern/flexprefill.h"
#include "pattern/key_lists.h"
#include "pattern/minference.h"
#include "pattern/s2o.h"
#include "pattern/xattention.h"
#include "tmx.h"

/* fp64 oracle, straight from the definition: for each row, softmax over pattern_is_visible.  Slow on purpose.
 * out and lse are double, [n_q][n_heads][head_dim] and [n_q][n_heads], dense; q, k, v as in params. */
void attn_ref_f64(const tmx_attention_params *params, int32_t seq, double *out, double *lse);
/* The same over key_lists_visible, of sequence 0. */
void attn_lists_ref_f64(const tmx_attention_params *params, const key_lists *lists, double *out, double *lse);
/* And over head_keys_visible, heads [n_heads]. */
void attn_heads_ref_f64(const tmx_attention_params *params, const head_keys *heads, double *out, double *lse);

/* Dynamic methods work in two steps: an estimator turns q and k into key lists, attention runs them.  Both: one sequence whose
 * q_begin is a multiple of KEY_BLOCK, lists made by key_lists_on for its rows, params as a checked tmx_attention call with a
 * dense pattern and scratch of attn_lists_scratch_bytes, 64-byte aligned.  Lists of all keys give tmx_attention's bits. */
size_t attn_lists_scratch_bytes(const tmx_attention_params *params, tmx_pattern_kind kind, int32_t n_ctx, int32_t n_threads);
void attn_xattention(const tmx_attention_params *params, const xattention *method, key_lists *lists, tmx_pool *pool);
/* The whole prompt at once, or a chunk of at least KEY_BLOCK rows as if the prompt ended there; longer than flexprefill_dense_tokens. */
void attn_flexprefill(const tmx_attention_params *params, const flexprefill *method, key_lists *lists, tmx_pool *pool);
void attn_over_lists(const tmx_attention_params *params, const key_lists *lists, tmx_pool *pool);

/* MInference, in the same two steps, with the same scratch, for the same rows: up to a position beyond 2 KEY_BLOCK.  room:
 * minference_room_bytes of that position for each head, which holds what `found` points to.  chosen, found: [n_heads]. */
void attn_minference(const tmx_attention_params *params, const minference_head *chosen, head_keys *found, uint64_t *room, tmx_pool *pool);
void attn_over_heads(const tmx_attention_params *params, const head_keys *heads, tmx_pool *pool);
size_t attn_minference_bytes(int32_t head_dim, int32_t n_ctx);         /* of a thread: part of attn_lists_scratch_bytes */
/* S2O (pattern/s2o.h) ranks and attends in one call, segment by segment: one sequence whose q_begin is a multiple of the segment,
 * params as above with scratch of attn_s2o_scratch_bytes for its n_q.  tau 0 visits every pair, in another order than
 * tmx_attention: equal up to rounding. */
typedef struct s2o_result {
    int64_t n_pairs;               /* visited, over all heads */
    double estimate_ms;            /* of the time of the call: ranking */
} s2o_result;

/* What one row tile saw: its own segment up to each row, and the first n_keys of the history's order (NULL: ascending). */
typedef struct s2o_visit {
    int32_t head, begin, end;      /* the segment */
    int32_t n_rows, n_keys;
    const int32_t *rows, *keys;    /* positions; valid during the call */
} s2o_visit;

typedef struct s2o_watch s2o_watch;
struct s2o_watch {
    void (*see)(s2o_watch *watch, const s2o_visit *visit);     /* after the segment, in a fixed order, on the calling thread */
};

size_t attn_s2o_scratch_bytes(const tmx_attention_params *params, int32_t n_ctx, int32_t n_threads);
s2o_result attn_s2o(const tmx_attention_params *params, const s2o *method, tmx_pool *pool, s2o_watch *watch /* may be NULL */);

/* Decoding: one query row per sequence, dense over n_keys cached positions; split over (sequence, KV head, fixed key
 * ranges) and merged in a fixed order.  seqs[].n_q must be 1 and q_begin = n_keys - 1.  No packing, no pattern.
 * scratch: attn_decode_scratch_bytes(), 64-byte aligned.  Not bit-equal to tmx_attention. */
size_t attn_decode_scratch_bytes(const tmx_attention_params *params, int32_t max_keys, int32_t n_threads);
void attn_decode(const tmx_attention_params *params, tmx_pool *pool);

#endif
