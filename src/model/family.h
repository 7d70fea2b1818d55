/* family.h - what every architecture family needs to read its hyper-parameters and find its tensors.  In: a checked
 * tmx_file.  Out: numbers inside stated limits and tensors of the expected shape, or one sentence that names the key
 * or tensor, what was found and what was expected. */
#ifndef TMX_MODEL_FAMILY_H
#define TMX_MODEL_FAMILY_H

#include "base/status.h"
#include "model/model.h"

/* The keys all families share, under their own prefix: counts, sizes, head_dim, RMS epsilon, RoPE base and width. */
tmx_status family_read_common(const tmx_file *file, const char *architecture, model_shape *shape, tmx_error *err);

/* token_embd, output_norm, output (absent = tied to token_embd), rope_freqs (optional). */
tmx_status family_find_ends(const tmx_file *file, model_tensors *t, tmx_error *err);

/* "[576][1536]", for messages. */
void tensor_shape_text(char text[64], int32_t n_dims, const int64_t *shape);

/* blk.LAYER.NAME.weight of shape [n_out][n_in], or [n_in] when n_out is 0; marks it as used. */
tmx_status family_find_layer(const tmx_file *file, model_tensors *t, int32_t layer, const char *name,
                             int64_t n_out, int64_t n_in, const gguf_tensor **tensor, tmx_error *err);

#endif
