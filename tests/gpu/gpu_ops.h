/* gpu_ops.h - what check_gpu_ops.c (are the results right?) and time_gpu_ops.c (how long do they take?) share. */
#ifndef TMX_TESTS_GPU_OPS_H
#define TMX_TESTS_GPU_OPS_H

#include "ops/cuda/ops_cuda.h"

#include <cuda_runtime_api.h>

#define COUNT(array) ((int32_t)(sizeof(array) / sizeof *(array)))
#define CUDA_OK(call) cuda_ok((call), #call)

extern gpu *g;

/* These print and leave the program when something did not work. */
void stop_at(bool is_ok, const char *what);
void cuda_ok(cudaError_t error, const char *what);
void wait_ok(void);
void *host_alloc(size_t n);

void time_all(void);

#endif
