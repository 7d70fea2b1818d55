/* cuda_status.cuh - CUDA errors as our status: CUDA_TRY(call, err) hands up TMX_E_DEVICE with the call and the reason, launch_kernel
 * with the kernel, its shape and the reason. */
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

/* The permission to use so much shared memory is given here, in the source file that holds the kernel: another file's instance of the
 * same template is another kernel. */
template <typename... P, typename... A>
static tmx_status launch_kernel(const char *name, void (*kernel)(P...), dim3 grid, unsigned n_threads, size_t n_smem, cudaStream_t stream,
                                tmx_error *err, const A &...args)
{
    cudaError_t error = cudaSuccess;
    if (n_smem > 0) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)n_smem);
    if (error == cudaSuccess) {
        kernel<<<grid, n_threads, n_smem, stream>>>(args...);
        error = cudaGetLastError();
    }
    if (error == cudaSuccess) return TMX_OK;
    cudaGetLastError();
    return refuse(err, TMX_E_DEVICE, "%s: grid %u x %u x %u, %u threads, %zu bytes of shared memory: %s", name, grid.x, grid.y, grid.z,
                  n_threads, n_smem, cudaGetErrorString(error));
}

#endif
