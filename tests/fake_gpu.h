/* fake_gpu.h - how a room's own device operators join the queue of fake_gpu.c: run(args) when its turn comes. */
#ifndef TMX_TESTS_FAKE_GPU_H
#define TMX_TESTS_FAKE_GPU_H

#include "ops/cuda/ops_cuda.h"

enum { FAKE_ARGS_BYTES = 384 };

void fake_gpu_enqueue(gpu *g, void (*run)(const void *args), const void *args, size_t n_bytes);

#endif
