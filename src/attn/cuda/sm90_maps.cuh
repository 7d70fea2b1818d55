/* sm90_maps.cuh - tensor maps for the copy engine, made on the host: rows of 16-bit numbers in blocks of 64 columns, swizzled. */
#ifndef TMX_ATTN_SM90_MAPS_CUH
#define TMX_ATTN_SM90_MAPS_CUH

#include "attn/cuda/cuda_status.cuh"

#include <cuda.h>

typedef decltype(&cuTensorMapEncodeTiled) encode_fn;

/* One axis of a tensor map, fastest first; stride in elements, box = what one copy takes. */
struct map_axis {
    uint64_t n;
    size_t stride;
    int32_t box;
};

static inline tmx_status encode_map(encode_fn encode, CUtensorMap *map, bool is_f16, const char *name, const void *data,
                             const map_axis *axes, uint32_t n_axes, tmx_error *err)
{
    cuuint64_t dims[5], strides[4];
    cuuint32_t box[5], steps[5];
    for (uint32_t i = 0; i < n_axes; i++) {
        dims[i] = axes[i].n;
        box[i] = (cuuint32_t)axes[i].box;
        steps[i] = 1;
        /* The stride of an axis of one element means nothing, but the encoder looks at it. */
        if (i > 0) strides[i - 1] = 2 * (axes[i].n > 1 ? axes[i].stride : 64);
    }
    const CUresult result = encode(map, is_f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                   n_axes, const_cast<void *>(data), dims, strides, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        return refuse(err, TMX_E_DEVICE, "attention: %s: cuTensorMapEncodeTiled failed with %d", name, (int)result);
    }
    return TMX_OK;
}

static inline tmx_status find_encode(encode_fn *encode, tmx_error *err)
{
    void *found = NULL;
    cudaDriverEntryPointQueryResult query;
    CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &query), err);
    if (query != cudaDriverEntryPointSuccess || found == NULL) {
        return refuse(err, TMX_E_DEVICE, "attention: this driver has no cuTensorMapEncodeTiled; CUDA 12 or later is needed");
    }
    *encode = (encode_fn)found;
    return TMX_OK;
}

#endif
