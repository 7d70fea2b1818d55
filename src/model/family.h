/* family.h - what every architecture family needs to read its hyper-parameters and find its tensors.  In: a checked
 * tmx_file.  Out: numbers inside stated limits and tensors of the expected shape, or one sentence that names the key
 * or tensor, what was found and what was expected. */
#ifndef TMX_MODEL_FAMILY_H
#define TMX_MODEL_FAMILY_H

#include "base/status.h"
#include "model/model.h"

/* The keys all families share, under their own prefix: counts, sizes, head_dim, RMS epsilon, RoPE base, width and scaling.
 * Experts are refused: a family that has them reads their keys before. */
tmx_status family_read_common(const tmx_file *file, const char *architecture, model_shape *shape, tmx_error *err);

/* attention.sliding_window of a family whose layers all have it, none where it is absent or holds the whole context. */
tmx_status family_read_window(const tmx_file *file, const char *architecture, model_shape *shape, tmx_error *err);
/* For a family of which no model is known to have one: programs do not agree on the layers it holds in. */
tmx_status family_refuse_window(const tmx_file *file, const char *architecture, model_shape *shape, tmx_error *err);

/* token_embd, output_norm, output (absent = tied to token_embd), rope_freqs or LongRoPE's two lists (optional). */
tmx_status family_find_ends(const tmx_file *file, model_tensors *t, tmx_error *err);

/* "[576][1536]", for messages. */
void tensor_shape_text(char text[64], int32_t n_dims, const int64_t *shape);

/* What nearly all layers have: both norms, q, k, v, output; gate, up, down. */
tmx_status family_find_attention(const tmx_file *file, model_tensors *t, int32_t layer, tmx_error *err);
tmx_status family_find_ffn(const tmx_file *file, model_tensors *t, int32_t layer, tmx_error *err);
/* attn_q_norm and attn_k_norm. */
tmx_status family_find_head_norms(const tmx_file *file, model_tensors *t, int32_t layer, tmx_error *err);

/* ffn_gate_inp and the three stacks ffn_gate_exps, ffn_up_exps, ffn_down_exps. */
tmx_status family_find_experts(const tmx_file *file, model_tensors *t, int32_t layer, tmx_error *err);

/* Rows [begin, begin + n) of a fused tensor, as a tensor. */
const gguf_tensor *family_take_rows(model_tensors *t, const gguf_tensor *whole, int64_t begin, int64_t n);

/* blk.LAYER.NAME of shape [n_out][n_in], or [n_in] when n_out is 0; marks it as used. */
tmx_status family_find_layer(const tmx_file *file, model_tensors *t, int32_t layer, const char *name,
                             int64_t n_out, int64_t n_in, const gguf_tensor **tensor, tmx_error *err);

#endif
