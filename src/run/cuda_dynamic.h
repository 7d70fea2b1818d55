/* cuda_dynamic.h - dynamic methods in a session on a CUDA device: room for key lists and estimates, and the pairs they leave,
 * counted on the device.  In: the segments of a chunk as attention sequences.  Out: calls on the session's stream. */
#ifndef TMX_RUN_CUDA_DYNAMIC_H
#define TMX_RUN_CUDA_DYNAMIC_H

#include "attn/attn_gpu.h"
#include "base/layout.h"
#include "ops/cuda/ops_cuda.h"
#include "run/session.h"

/* The methods that have an estimator on a device. */
#define CUDA_DYNAMIC_KINDS (1u << TMX_PATTERN_XATTENTION | 1u << TMX_PATTERN_FLEXPREFILL | 1u << TMX_PATTERN_MINFERENCE)

typedef struct cuda_dynamic {
    uint64_t *lists;               /* device: of all segments of a chunk, one after the other; or what heads point to */
    head_keys *heads;              /* device [segments][n_heads]: MInference's; NULL: no plan has it */
    minference_head *chosen;       /* [n_heads]: of the layer at work */
    void *scratch;                 /* device: of one estimate */
    size_t n_scratch;
    uint64_t *pairs;               /* device [n_layers], over all heads; only ever added to */
    uint64_t *seen;                /* [n_layers]: how much of them the session has counted */
} cuda_dynamic;

/* Takes what plans of these kinds need; nothing if there are none. */
void cuda_dynamic_lay_out(cuda_dynamic *d, layout *at, const tmx_gpu_attention_params *params, int32_t n_layers, const tmx_session_params *p,
                          uint32_t kinds);
/* Once the memory is there. */
tmx_status cuda_dynamic_create(cuda_dynamic *d, gpu *g, const tmx_model_info *m, tmx_error *err);
void cuda_dynamic_free(cuda_dynamic *d);

/* Lists of all sequences in params, whose pattern is dense, by the plan's method of this kind; and attention over them, by the same. */
tmx_status cuda_dynamic_estimate(const cuda_dynamic *d, gpu *g, const tmx_gpu_attention_params *params, const tmx_plan *plan,
                                 tmx_pattern_kind kind, int32_t layer, tmx_error *err);
tmx_status cuda_dynamic_attend(const cuda_dynamic *d, gpu *g, const tmx_gpu_attention_params *params, tmx_pattern_kind kind, int32_t layer,
                               tmx_error *err);

/* After a wait: what was counted since the last call joins the session's counts. */
tmx_status cuda_dynamic_settle(const cuda_dynamic *d, gpu *g, tmx_session *s, tmx_error *err);

#endif
