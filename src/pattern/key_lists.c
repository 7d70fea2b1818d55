#include "pattern/key_lists.h"

#include "base/num.h"

#include <assert.h>
#include <string.h>

key_lists key_lists_shape(int32_t n_heads, int32_t q_begin, int32_t n_q)
{
    assert(q_begin % KEY_BLOCK == 0 && n_q <= INT32_MAX - q_begin);
    const int32_t first = q_begin / KEY_BLOCK, n_blocks = key_blocks_of(n_q);
    return (key_lists){ .n_heads = n_heads, .first_block = first, .n_blocks = n_blocks, .n_words = key_list_words(first + n_blocks) };
}

key_lists key_lists_on(uint64_t *bits, int32_t n_heads, int32_t q_begin, int32_t n_q)
{
    key_lists lists = key_lists_shape(n_heads, q_begin, n_q);
    lists.bits = bits;
    memset(bits, 0, (size_t)n_heads * (size_t)lists.n_blocks * (size_t)lists.n_words * sizeof *bits);
    return lists;
}

size_t key_lists_bytes(int32_t n_heads, int32_t n_q, int32_t n_ctx)
{
    return (size_t)n_heads * (size_t)key_blocks_of(n_q) * (size_t)key_list_words(key_blocks_of(n_ctx)) * sizeof(uint64_t);
}

bool key_runs_next(key_runs *it, int32_t *k_begin, int32_t *k_end)
{
    const int32_t n_blocks = key_blocks_of(it->k_end);
    int32_t block = it->next_block;
    while (block < n_blocks && !key_list_has(it->list, block)) block++;
    if (block >= n_blocks) return false;
    *k_begin = block * KEY_BLOCK;
    while (block < n_blocks && key_list_has(it->list, block)) block++;
    it->next_block = block;
    *k_end = block == n_blocks ? it->k_end : block * KEY_BLOCK;
    return true;
}

/* Rows [t, t_end) of one block: earlier blocks count whole, the block's own triangle by rows. */
static int64_t block_pairs(const uint64_t *list, int32_t t, int32_t t_end)
{
    const int32_t own = t / KEY_BLOCK;
    int64_t n_keys = 0;
    for (int32_t block = 0; block < own; block++) n_keys += key_list_has(list, block) ? KEY_BLOCK : 0;
    const int64_t n_rows = t_end - t, first = t % KEY_BLOCK;
    return n_rows * n_keys + (key_list_has(list, own) ? n_rows * first + n_rows * (n_rows + 1) / 2 : 0);
}

int64_t key_lists_pairs(const key_lists *lists, int32_t q_begin, int32_t q_end)
{
    int64_t n = 0;
    for (int32_t head = 0; head < lists->n_heads; head++) {
        for (int32_t t = q_begin, t_end; t < q_end; t = t_end) {
            t_end = min_i32(q_end, (t / KEY_BLOCK + 1) * KEY_BLOCK);
            n += block_pairs(key_list_of(lists, head, t / KEY_BLOCK), t, t_end);
        }
    }
    return n;
}
