/* sm90_launch.cuh - what the host hands to the Hopper kernel: a planned launch and tensor maps for the copy engine. */
#ifndef TMX_ATTN_SM90_LAUNCH_CUH
#define TMX_ATTN_SM90_LAUNCH_CUH

#include "attn/cuda/attn_cuda.h"

#include <cuda.h>

enum { COLUMNS = 64 };             /* of one 128-byte swizzled row; a head_dim of 128 is two blocks of columns */

struct kv_maps {                   /* the same keys in boxes of one piece, and (contiguous only) of a whole slot */
    CUtensorMap piece, slot;
};

struct sm90_maps {                 /* of one sequence; k and v are of the pool when it is paged */
    CUtensorMap q;
    kv_maps k, v;
};

struct sm90_launch {
    gpu_launch common;
    sm90_maps maps[GPU_MAX_SEQS];
};

#endif
