/* cuda_weights.h - a model's weights in the memory of a CUDA device.  In: a model that was opened without packing.  Out: bf16
 * matrices with their product algorithms chosen, f32 norms; kept with the model (model.on_device) until it is closed, shared by
 * its sessions.  Never computes. */
#ifndef TMX_RUN_CUDA_WEIGHTS_H
#define TMX_RUN_CUDA_WEIGHTS_H

#include "model/model.h"
#include "ops/cuda/ops_cuda.h"

/* Shapes as in model_layer; every layer has all of them, since single rows run on them too.  With experts, gate_up and down hold
 * all of theirs, one expert after the other. */
typedef struct cuda_layer {
    gpu_weight qkv, attn_output, gate_up, down;
    gpu_weight router;             /* [n_experts][n_embd]; no data where there are none */
    const float *attn_norm, *ffn_norm;             /* device, as the next; [n_embd] */
    const float *attn_branch_norm, *ffn_branch_norm, *q_norm, *k_norm, *bias;      /* as in model_layer, or NULL */
} cuda_layer;

typedef struct cuda_weights {
    gpu *g;                        /* for copying and choosing; sessions have their own */
    int32_t device;
    cuda_layer *layers;            /* [n_layers] */
    gpu_weight last_kv, last_q;    /* views of the last layer's qkv, with algorithms of their own */
    gpu_weight token_embd, lm_head;                /* one memory when tied */
    const float *output_norm;      /* device, [n_embd] */
    rope_table rope, rope_long, rope_window;       /* as the model's, frequencies on the device */
    void *memory;                  /* device: the block behind all of them */
} cuda_weights;

/* "cuda:1" -> 1; -1: another word. */
int32_t cuda_device_index(const char *device);

/* model_rope with the frequencies on the device. */
const rope_table *cuda_rope(const tmx_model *model, int32_t layer, int32_t n_ctx);
/* Device memory the weights take, from what is known of a file before it is opened. */
uint64_t cuda_weight_bytes(const tmx_model_info *info);
/* Sizes and features that the kernels do not have, in one sentence. */
tmx_status cuda_model_check(const tmx_model_info *info, tmx_error *err);
/* Copies the weights of a model opened for this device, or makes random ones for a model without a file, and hangs them on it.
 * TMX_E_UNSUPPORTED, TMX_E_DEVICE, TMX_E_MEMORY; the model can be closed in any case. */
tmx_status cuda_weights_attach(tmx_model *model, tmx_pool *pool, tmx_error *err);

#endif
