/* gpu_buffers.h - what the checks that run on a GPU share: random 16-bit numbers, device memory between guard zones, their options, and
 * how a check that ends early says why. */
#ifndef TMX_TESTS_GPU_BUFFERS_H
#define TMX_TESTS_GPU_BUFFERS_H

#include "gpu_random.h"
#include "base/num.h"
#include "tmx.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 4096, POISON = 0xff };

static inline void cuda_ok(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString(error));
    exit(2);
}
#define CUDA_OK(call) cuda_ok((call), #call)

typedef struct check_options {
    int32_t n_cases;
    bool is_small;
} check_options;

/* [--seed N] [--cases N] [--small]; what else stands there ends the check.  First of all every launch is waited for, so that what a
 * kernel does wrong is told with its name and shape (launch_kernel), and no line is lost with a program that dies. */
static inline check_options begin_check(int argc, char **argv, const char *name, int32_t n_cases)
{
    check_options o = { .n_cases = n_cases };
    setenv("CUDA_LAUNCH_BLOCKING", "1", 0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0) o.is_small = true;
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--cases") == 0 && i + 1 < argc) o.n_cases = atoi(argv[++i]);
        else {
            fprintf(stderr, "usage: %s [--seed N] [--cases N] [--small]\n", name);
            exit(1);
        }
    }
    return o;
}

/* ---------------------------------------------------------------- half precision on the host */

static inline uint16_t f16_from_f32(float f)          /* inputs here are small normal numbers: rounding to nearest even */
{
    const uint32_t bits = f32_to_bits(f), sign = bits >> 16 & 0x8000u;
    const int32_t exponent = (int32_t)(bits >> 23 & 0xff) - 112;
    if (exponent <= 0) return (uint16_t)sign;
    const uint32_t half = (uint32_t)exponent << 10 | (bits >> 13 & 0x3ff), rest = bits & 0x1fff;
    return (uint16_t)(sign | (half + (rest > 0x1000 || (rest == 0x1000 && (half & 1)))));
}

static inline float get(tmx_type type, uint16_t x) { return type == TMX_TYPE_F16 ? f16_to_f32(x) : bf16_to_f32(x); }
static inline uint16_t put(tmx_type type, float x) { return type == TMX_TYPE_F16 ? f16_from_f32(x) : bf16_from_f32(x); }

typedef struct device_buffer {     /* n bytes between two guard zones */
    unsigned char *base, *data;
    size_t n_bytes;
} device_buffer;

static inline device_buffer device_alloc(size_t n_bytes)
{
    device_buffer b = { .n_bytes = n_bytes };
    CUDA_OK(cudaMalloc((void **)&b.base, n_bytes + (size_t)2 * GUARD_BYTES));
    CUDA_OK(cudaMemset(b.base, POISON, n_bytes + (size_t)2 * GUARD_BYTES));
    b.data = b.base + GUARD_BYTES;
    return b;
}

static inline void *host_alloc(size_t n)
{
    void *p = malloc(n > 0 ? n : 1);
    if (p == NULL) {
        printf("out of memory\n");
        exit(2);
    }
    return p;
}

static inline uint16_t *random_values(tmx_type type, size_t n, float **as_f32)
{
    uint16_t *values = host_alloc(n * sizeof *values);
    *as_f32 = host_alloc(n * sizeof **as_f32);
    for (size_t i = 0; i < n; i++) {
        values[i] = put(type, random_normal());
        (*as_f32)[i] = get(type, values[i]);
    }
    return values;
}

/* Rows of n dense elements to rows `row` elements apart on the device. */
static inline void upload_rows(void *to, size_t row, const uint16_t *from, size_t n, int32_t n_rows)
{
    if (n_rows > 0) CUDA_OK(cudaMemcpy2D(to, 2 * row, from, 2 * n, 2 * n, (size_t)n_rows, cudaMemcpyHostToDevice));
}

/* Both with its guard zones: what it holds, and what is written over it. */
static inline unsigned char *device_download(const device_buffer *b)
{
    unsigned char *bytes = host_alloc(b->n_bytes + (size_t)2 * GUARD_BYTES);
    CUDA_OK(cudaDeviceSynchronize());
    CUDA_OK(cudaMemcpy(bytes, b->base, b->n_bytes + (size_t)2 * GUARD_BYTES, cudaMemcpyDeviceToHost));
    return bytes;
}

static inline void device_poison(const device_buffer *b) { CUDA_OK(cudaMemset(b->base, POISON, b->n_bytes + (size_t)2 * GUARD_BYTES)); }

/* Of downloaded bytes. */
static inline bool guard_zones_hold(const unsigned char *bytes, const device_buffer *b)
{
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (bytes[i] != POISON || bytes[GUARD_BYTES + b->n_bytes + i] != POISON) return false;
    }
    return true;
}

static inline void device_free(device_buffer *b)
{
    CUDA_OK(cudaFree(b->base));
    b->base = NULL;
}

#endif
