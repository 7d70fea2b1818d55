#include "pattern/s2o.h"

#include "base/status.h"

#include <string.h>

tmx_status s2o_check(const s2o *s, tmx_error *err)
{
    if (s->segment < S2O_ROW_TILE || s->segment > S2O_MAX_SEGMENT || s->segment % S2O_ROW_TILE != 0) {
        return refuse(err, TMX_E_ARG, "s2o segment: %d, expected a multiple of %d up to %d", s->segment, S2O_ROW_TILE, S2O_MAX_SEGMENT);
    }
    if (!(s->tau >= 0 && s->tau <= 1)) return refuse(err, TMX_E_ARG, "s2o tau: %g, expected 0..1", s->tau);
    if (s->sink < 0 || s->sink > 1 << 24) return refuse(err, TMX_E_ARG, "s2o sink: %d, expected 0..%d keys", s->sink, 1 << 24);
    if (s->min_tiles < 0 || s->min_tiles > 1 << 24) {
        return refuse(err, TMX_E_ARG, "s2o min_tiles: %d, expected 0..%d", s->min_tiles, 1 << 24);
    }
    if (s->vote < 0 || s->vote > 1) return refuse(err, TMX_E_ARG, "s2o vote: %d, expected 0 (mean) or 1 (max)", s->vote);
    if (s->guide < 0 || s->guide > 1) return refuse(err, TMX_E_ARG, "s2o guide: %d, expected 0 or 1", s->guide);
    return TMX_OK;
}

/* A larger score gives a smaller number. */
static uint32_t descending(float score)
{
    const float x = score + 0.0f;  /* -0 is 0 */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

void s2o_rank(const float *score, int32_t n, int32_t *order, uint32_t *scratch)
{
    enum { DIGIT_BITS = 11, N_DIGITS = 1 << DIGIT_BITS, N_PASSES = 3 };
    const size_t count = (size_t)n;
    uint32_t *key = scratch, *key_to = scratch + count;
    int32_t *index = (int32_t *)(void *)(scratch + 2 * count), *index_to = order;
    for (int32_t i = 0; i < n; i++) {
        key[i] = descending(score[i]);
        index[i] = i;
    }
    for (int pass = 0; pass < N_PASSES; pass++) {              /* an odd number of passes ends in order */
        const int shift = pass * DIGIT_BITS;
        uint32_t at[N_DIGITS] = { 0 }, n_before = 0;
        for (size_t i = 0; i < count; i++) at[key[i] >> shift & (N_DIGITS - 1)]++;
        for (int digit = 0; digit < N_DIGITS; digit++) {
            const uint32_t n_here = at[digit];
            at[digit] = n_before;
            n_before += n_here;
        }
        for (size_t i = 0; i < count; i++) {
            const uint32_t to = at[key[i] >> shift & (N_DIGITS - 1)]++;
            key_to[to] = key[i];
            index_to[to] = index[i];
        }
        uint32_t *const swap_key = key;
        int32_t *const swap_index = index;
        key = key_to;
        index = index_to;
        key_to = swap_key;
        index_to = swap_index;
    }
}
