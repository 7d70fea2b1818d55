/* attn_gpu.h - dynamic methods on a CUDA GPU, in the two steps of attn.h: an estimator turns q and k into key lists, attention
 * runs them.  In: params, device buffers.  Out: work on a stream.  Nothing here allocates, waits, or copies to the host.
 *
 * Lists are key_lists whose bits lie in device memory (key_lists_shape has the sizes).  An estimator writes every word of every
 * list, so the bits may hold anything before; each list holds the query block's own key block.
 *
 * All: one sequence whose q_begin is a multiple of KEY_BLOCK, lists of its rows, params as a tmx_gpu_attention call with a dense
 * pattern and contiguous K and V (the pattern, n_prompt, out and scratch of params matter to attention only).  Where: compute
 * capability 9.0, head_dim 64 and 128; elsewhere TMX_E_UNSUPPORTED, which gpu_lists_check says without a call.  No bit depends on
 * timing or on how a prompt is cut into chunks. */
#ifndef TMX_ATTN_ATTN_GPU_H
#define TMX_ATTN_ATTN_GPU_H

#include "pattern/flexprefill.h"
#include "pattern/key_lists.h"
#include "pattern/minference.h"
#include "pattern/xattention.h"
#include "tmx.h"

tmx_status gpu_lists_check(int32_t head_dim, tmx_error *err);

/* Attention over key_lists_visible.  Lists of all keys give the bits of a dense tmx_gpu_attention call in which every query head
 * has a KV head of its own. */
tmx_status gpu_attention_over_lists(const tmx_gpu_attention_params *params, const key_lists *lists, void *stream, tmx_error *err);

/* XAttention (pattern/xattention.h) with one threshold: thresholds by head are TMX_E_UNSUPPORTED.  Scratch: device, 256-byte aligned; at
 * most 256 MiB or what one row of tiles needs, whatever n_q.  n_ctx: keys at most. */
size_t gpu_xattention_scratch_bytes(const tmx_gpu_attention_params *params, int32_t n_q, int32_t n_ctx);
tmx_status gpu_xattention(const tmx_gpu_attention_params *params, const xattention *method, const key_lists *lists, void *scratch,
                          size_t scratch_bytes, void *stream, tmx_error *err);

/* FlexPrefill (pattern/flexprefill.h), of a whole prompt from position 0; up to flexprefill_dense_tokens, lists of everything.  Lists
 * are the CPU's up to rounding where a sum meets its threshold.  Scratch: device, 256-byte aligned; 256 MiB at most, or what one
 * head needs where that is more; with less, fewer heads run at once.  32 heads of 131072 tokens take 135 MiB; of 1048576 tokens one
 * head takes 146, so that one runs at a time. */
size_t gpu_flexprefill_scratch_bytes(const tmx_gpu_attention_params *params, int32_t n_q);
tmx_status gpu_flexprefill(const tmx_gpu_attention_params *params, const flexprefill *method, const key_lists *lists, void *scratch,
                           size_t scratch_bytes, void *stream, tmx_error *err);

/* MInference (pattern/minference.h), of a whole prompt of more than 2 KEY_BLOCK tokens, in the same two steps by head: found [n_heads] and
 * room, minference_room_bytes of the prompt for each head, are device memory that may hold anything before; found points into room.
 * chosen [n_heads] is host memory, read during the call.  Choices are the CPU's but where rounding decides between nearly equal sums.
 * Scratch: device, 256-byte aligned; up to a million tokens 256 MiB at most, or what one head needs where that is more; with less, fewer
 * heads run at once.  Attention adds the visible pairs over all heads to *n_pairs in device memory unless it is NULL, and takes any
 * length. */
size_t gpu_minference_scratch_bytes(const tmx_gpu_attention_params *params, int32_t n_q);
tmx_status gpu_minference(const tmx_gpu_attention_params *params, const minference_head *chosen, head_keys *found, uint64_t *room, void *scratch,
                          size_t scratch_bytes, void *stream, tmx_error *err);
tmx_status gpu_attention_over_heads(const tmx_gpu_attention_params *params, const head_keys *heads, uint64_t *n_pairs, void *stream, tmx_error *err);

/* Adds the visible pairs of rows [q_begin, q_end), over all heads, to *n_pairs in device memory. */
tmx_status gpu_lists_add_pairs(const key_lists *lists, int32_t q_begin, int32_t q_end, uint64_t *n_pairs, void *stream, tmx_error *err);

#endif
