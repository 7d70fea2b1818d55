/* gpu_device.cuh - what the files of this folder share: the device object, how a failure is kept, 16-byte pieces of rows. */
#ifndef TMX_OPS_GPU_DEVICE_CUH
#define TMX_OPS_GPU_DEVICE_CUH

#include <cuda_runtime.h>
#include <math_constants.h>

extern "C" {
#include "base/mem.h"
#include "base/num.h"
#include "base/status.h"
#include "gguf/blocks.h"
#include "ops/cuda/ops_cuda.h"
}

enum { STAGING_BYTES = 16 << 20, BEST_BLOCKS = 128 };

struct gpu_lt;                     /* the product library, gpu_product.cu */

struct gpu {
    int device, n_sms;
    char name[256];
    cudaStream_t stream;
    tmx_error first;               /* the failure that stopped this device; code TMX_OK: none */
    bool is_recording;
    gpu_lt *lt;
    char *staging[2];              /* pinned, STAGING_BYTES each; taken by the first fill */
    cudaEvent_t staged[2];         /* the upload out of it is done */
    float2 *best;                  /* device, [BEST_BLOCKS]: of a greedy choice, and small results of tuning */
};

/* False once something has failed; otherwise makes the device current. */
bool gpu_is_ready(gpu *g);
/* Keeps the first failure. */
void gpu_keep(gpu *g, cudaError_t error, const char *call);
#define GPU_TRY(g, call) gpu_keep((g), (call), #call)
/* For calls whose failure is the caller's alone. */
#define GPU_TRY_STATUS(call, err) do { \
        const cudaError_t cuda_error_ = (call); \
        if (cuda_error_ != cudaSuccess) { \
            cudaGetLastError(); \
            return refuse((err), TMX_E_DEVICE, "%.40s: %s", #call, cudaGetErrorString(cuda_error_)); \
        } \
    } while (0)
static inline void gpu_keep_launch(gpu *g, const char *kernel) { gpu_keep(g, cudaGetLastError(), kernel); }
tmx_status gpu_failure(const gpu *g, tmx_error *err);       /* the kept failure, or TMX_OK */

tmx_status gpu_lt_open(gpu *g, tmx_error *err);
void gpu_lt_close(gpu *g);
void gpu_fill_random(gpu *g, void *bf16, size_t n, float deviation, uint64_t seed);

/* ---------------------------------------------------------------- in kernels */

static inline int32_t divide_up(int32_t n, int32_t by) { return (n + by - 1) / by; }
static inline bool is_aligned16(const void *p) { return ((uintptr_t)p & 15) == 0; }

DEVICE float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

/* Rounded to nearest even; low is the element at the lower address. */
DEVICE uint32_t bf16_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* 16 bytes that are read once: they leave the L1 cache to what is read again. */
DEVICE uint4 load_once(const void *p)
{
    uint4 x;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    return x;
}

DEVICE void unpack(float (&x)[8], uint4 packed)
{
    x[0] = bf16_low(packed.x), x[1] = bf16_high(packed.x), x[2] = bf16_low(packed.y), x[3] = bf16_high(packed.y);
    x[4] = bf16_low(packed.z), x[5] = bf16_high(packed.z), x[6] = bf16_low(packed.w), x[7] = bf16_high(packed.w);
}

/* Eight elements of a row, 16-byte aligned, or one. */
DEVICE void load_piece(float (&x)[8], const tmx_bf16 *p) { unpack(x, *(const uint4 *)p); }
DEVICE void load_piece(float (&x)[1], const tmx_bf16 *p) { x[0] = bf16_low(*p); }
DEVICE void load_piece(float (&x)[1], const float *p) { x[0] = *p; }
DEVICE void load_piece(float (&x)[8], const float *p)
{
    const float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

DEVICE void store_piece(tmx_bf16 *p, const float (&x)[8])
{
    *(uint4 *)p = make_uint4(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]), bf16_pair(x[6], x[7]));
}
DEVICE void store_piece(tmx_bf16 *p, const float (&x)[1]) { *p = (tmx_bf16)bf16_pair(x[0], 0.0f); }
DEVICE void store_piece(float *p, const float (&x)[1]) { *p = x[0]; }
DEVICE void store_piece(float *p, const float (&x)[8])
{
    ((float4 *)p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4 *)p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

DEVICE float warp_sum(float x)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffff, x, mask);
    return x;
}

#endif
