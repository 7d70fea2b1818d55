/* matmul_onednn.h - bf16 products through oneDNN (version 2 C interface).  In: a stack of sources, then rows of bf16.
 * Out: f32 rows.  Built without oneDNN, create answers TMX_E_UNSUPPORTED and nothing else is ever called. */
#ifndef TMX_OPS_MATMUL_ONEDNN_H
#define TMX_OPS_MATMUL_ONEDNN_H

#include "ops/matmul_kernel.h"

typedef struct matmul_onednn matmul_onednn;

bool matmul_onednn_is_built(void);
/* The weight is the stack or its transpose.  TMX_E_UNSUPPORTED: the library has no fast bf16 product on this CPU. */
tmx_status matmul_onednn_create(matmul_onednn **onednn, const matmul_stack *stack, bool is_transposed, tmx_pool *pool,
                                tmx_error *err);
void matmul_onednn_free(matmul_onednn *onednn);
size_t matmul_onednn_scratch_bytes(int32_t n_out, int32_t n_in);         /* of one thread */
void matmul_onednn_run(const matmul_onednn *onednn, const matmul_call *call, tmx_pool *pool);

#endif
