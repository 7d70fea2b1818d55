/* heads.h - what stands between the q, k, v product and RoPE in some families.  Prefill, decoding and the probe share it. */
#ifndef TMX_RUN_HEADS_H
#define TMX_RUN_HEADS_H

#include "model/model.h"

/* Biases added, then every head of q and k normed (is_normed), in place, where the layer has them.
 * heads [n_q_heads + 2 n_kv_heads][head_dim]; each count is the model's, or 0, then what belongs to it is not there. */
void heads_finish(const tmx_model *model, const row_ops *rows, int32_t layer, int32_t n_q_heads, int32_t n_kv_heads, bool is_normed,
                  float *heads);

#endif
