/* dice.h - SplitMix64: one generator for every sample and statistic of this room.  In: a seed.  Out: the same numbers on
 * every machine.  Streams that must not move when another one draws more are split off with dice_mix. */
#ifndef TMX_EVAL_DICE_H
#define TMX_EVAL_DICE_H

#include <stdint.h>

typedef struct dice { uint64_t state; } dice;

static inline uint64_t dice_next(dice *d)
{
    uint64_t z = d->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* In [0, n), n >= 1; off from uniform by less than n / 2^32. */
static inline int32_t dice_below(dice *d, int32_t n) { return (int32_t)((dice_next(d) >> 32) * (uint64_t)n >> 32); }
static inline double dice_unit(dice *d) { return (double)(dice_next(d) >> 11) * 0x1p-53; }      /* [0, 1) */

/* The seed of stream `stream` of a seed. */
static inline uint64_t dice_mix(uint64_t seed, uint64_t stream)
{
    dice d = { .state = seed };
    d.state = dice_next(&d) ^ stream;
    return dice_next(&d);
}

#endif
