/* rng_below.h - random numbers below n for tests, by splitmix64.  Who includes it defines RNG_SEED first. */
#ifndef TMX_TESTS_RNG_BELOW_H
#define TMX_TESTS_RNG_BELOW_H

#include <stdint.h>

static uint64_t rng_state = RNG_SEED;

static inline int32_t rng_below(int32_t n)
{
    uint64_t z = (rng_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (int32_t)((z ^ (z >> 31)) % (uint64_t)n);
}

#endif
