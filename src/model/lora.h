/* lora.h - LoRA adapters, merged into the weights when a model is opened.  In: adapter files (GGUF, as llama.cpp reads
 * them) and the model's tensors.  Out: for every tensor that an adapter changes, a copy
 *
 *     W'[o][i] = W[o][i] + sum over adapters of scale * alpha / rank * (sum over r of B[o][r] * A[r][i])
 *
 * that takes the place of the file's tensor in the table: packing, decoding and the LM head read W' there and know
 * nothing of adapters.  Never touches the adapter files again once merged. */
#ifndef TMX_MODEL_LORA_H
#define TMX_MODEL_LORA_H

#include "base/sha256.h"
#include "model/model.h"

typedef struct lora_set lora_set;

/* Opens params->loras and proves every tensor of theirs against the model's: type, shape, rank, no NaN or infinity.
 * None given: *set is NULL, which the functions below take as an empty set.  TMX_E_ARG (a params entry), TMX_E_IO,
 * TMX_E_FORMAT, TMX_E_NUMERIC, TMX_E_UNSUPPORTED, TMX_E_MEMORY. */
tmx_status lora_set_read(lora_set **set, const tmx_model_params *params, const tmx_file *model,
                         const model_tensors *tensors, tmx_error *err);
void lora_set_free(lora_set *set);

/* Weights of the tensors that get a copy.  A pair of which A or B holds only zeros needs none. */
uint64_t lora_set_n_merged(const lora_set *set);

/* Fingerprints of the adapters and their scales; the order in which they were given does not matter. */
void lora_set_hash(const lora_set *set, sha256 *hash);

/* Makes the copies, bf16 or f32 as `compute` (each weight is rounded once), and lays them over the model's tensors.
 * *memory holds them all and is mem_free()d after the model's last use; NULL when there is nothing to copy.  The bits
 * depend neither on the pool nor on the order in which the adapters were given.  TMX_E_MEMORY. */
tmx_status lora_set_merge(const lora_set *set, tmx_file *model, tmx_compute compute, tmx_pool *pool, void **memory,
                          tmx_error *err);

#endif
