/* gpu_random.h - random numbers of the checks that run on a GPU; --seed sets where they begin. */
#ifndef TMX_TESTS_GPU_RANDOM_H
#define TMX_TESTS_GPU_RANDOM_H

#include <stdint.h>

static uint64_t seed = 1;

static inline uint32_t random_u32(void)
{
    uint64_t z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static inline int32_t random_in(int32_t begin, int32_t end) { return begin + (int32_t)(random_u32() % (uint32_t)(end - begin)); }

static inline float random_normal(void)
{
    float sum = 0.0f;
    for (int i = 0; i < 4; i++) sum += (float)(random_u32() >> 8) * 0x1p-24f - 0.5f;
    return sum * 1.7320508f;
}

#endif
