/* cuda_status.cuh - CUDA errors as our status: CUDA_TRY(call, err) hands up TMX_E_DEVICE with the call and the reason. */
#ifndef TMX_ATTN_CUDA_STATUS_CUH
#define TMX_ATTN_CUDA_STATUS_CUH

#include <cuda_runtime.h>

extern "C" {
#include "base/status.h"
}

#define CUDA_TRY(call, err) do { \
        const cudaError_t cuda_error_ = (call); \
        if (cuda_error_ != cudaSuccess) { \
            cudaGetLastError();                        /* ours now, not the next call's */ \
            return refuse((err), TMX_E_DEVICE, "%.40s: %s", #call, cudaGetErrorString(cuda_error_)); \
        } \
    } while (0)

#endif
