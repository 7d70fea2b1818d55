/* random_buffers.h - random numbers, and buffers of them in f32 or bf16, for tests of attention.  Who includes it defines
 * RANDOM_SEED first, and includes cmocka. */
#ifndef TMX_TESTS_RANDOM_BUFFERS_H
#define TMX_TESTS_RANDOM_BUFFERS_H

#include "base/num.h"
#include "tmx.h"

#include <stdlib.h>

static uint64_t seed = RANDOM_SEED;

static inline uint32_t random_u32(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const uint32_t x = (uint32_t)(seed >> 32);
    return x ^ x >> 15;
}

static inline int32_t random_in(int32_t begin, int32_t end) { return begin + (int32_t)(random_u32() % (uint32_t)(end - begin)); }

static inline float random_normal(void)
{
    float sum = 0.0f;
    for (int i = 0; i < 4; i++) sum += (float)(random_u32() >> 8) * 0x1p-24f - 0.5f;
    return sum * 1.7320508f;
}

static inline size_t bytes_of(tmx_type type) { return type == TMX_TYPE_BF16 ? 2 : 4; }

static inline float get(const void *p, tmx_type type, size_t at)
{
    return type == TMX_TYPE_BF16 ? bf16_to_f32(((const tmx_bf16 *)p)[at]) : ((const float *)p)[at];
}

static inline void put(void *p, tmx_type type, size_t at, float x)
{
    if (type == TMX_TYPE_BF16) ((tmx_bf16 *)p)[at] = bf16_from_f32(x);
    else ((float *)p)[at] = x;
}

static inline void *random_buffer(tmx_type type, size_t n)
{
    void *p = malloc(n * bytes_of(type));
    assert_non_null(p);
    for (size_t i = 0; i < n; i++) put(p, type, i, random_normal());
    return p;
}

#endif
