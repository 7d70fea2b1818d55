/* key_lists.h - what a dynamic method found: for every head and every KEY_BLOCK query rows, the blocks of KEY_BLOCK keys
 * that those rows attend to.  In: bits that an estimator sets.  Out: the predicate, runs of keys, pair counts.
 *
 *   visible(h, q, k) = k <= q and bit k / KEY_BLOCK of list (h, q / KEY_BLOCK) is set
 *
 * Blocks lie on absolute multiples of KEY_BLOCK, so a list speaks of its own rows only, whatever chunk they come in. */
#ifndef TMX_PATTERN_KEY_LISTS_H
#define TMX_PATTERN_KEY_LISTS_H

#include "base/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KEY_BLOCK = 128 };

typedef struct key_lists {
    int32_t n_heads;
    int32_t first_block, n_blocks; /* query blocks that have lists: [first_block, first_block + n_blocks) */
    int32_t n_words;               /* of a list: one bit for each key block up to the last query block */
    uint64_t *bits;                /* [n_heads][n_blocks][n_words] */
} key_lists;

HOST_DEVICE static inline int32_t key_blocks_of(int32_t n) { return n / KEY_BLOCK + (n % KEY_BLOCK != 0); }
HOST_DEVICE static inline int32_t key_list_words(int32_t n_blocks) { return n_blocks / 64 + (n_blocks % 64 != 0); }

/* The sizes of lists of rows [q_begin, q_begin + n_q), without bits; q_begin is a multiple of KEY_BLOCK. */
key_lists key_lists_shape(int32_t n_heads, int32_t q_begin, int32_t n_q);
/* The same, empty, on bits of at least key_lists_bytes. */
key_lists key_lists_on(uint64_t *bits, int32_t n_heads, int32_t q_begin, int32_t n_q);
/* Enough for any n_q rows of a sequence of at most n_ctx. */
size_t key_lists_bytes(int32_t n_heads, int32_t n_q, int32_t n_ctx);

static inline uint64_t *key_list_of(const key_lists *lists, int32_t head, int32_t q_block)
{
    const size_t row = (size_t)head * (size_t)lists->n_blocks + (size_t)(q_block - lists->first_block);
    return lists->bits + row * (size_t)lists->n_words;
}

static inline void key_list_add(uint64_t *list, int32_t k_block) { list[k_block / 64] |= (uint64_t)1 << k_block % 64; }
static inline bool key_list_has(const uint64_t *list, int32_t k_block) { return list[k_block / 64] >> k_block % 64 & 1; }

static inline bool key_lists_visible(const key_lists *lists, int32_t head, int32_t q_pos, int32_t k_pos)
{
    return k_pos >= 0 && k_pos <= q_pos && key_list_has(key_list_of(lists, head, q_pos / KEY_BLOCK), k_pos / KEY_BLOCK);
}

/* Visible pairs of rows [q_begin, q_end), which have lists, over all heads. */
int64_t key_lists_pairs(const key_lists *lists, int32_t q_begin, int32_t q_end);

/* Walks the keys before k_end of a list in ascending order, neighbouring blocks in one run.
 *     key_runs it = { .list = list, .k_end = q_end };
 *     for (int32_t begin, end; key_runs_next(&it, &begin, &end); ) ... */
typedef struct key_runs {
    const uint64_t *list;
    int32_t k_end, next_block;
} key_runs;

bool key_runs_next(key_runs *it, int32_t *k_begin, int32_t *k_end);

#endif
