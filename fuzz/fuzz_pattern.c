/* rooms: pattern */
/* Bytes -> a geometry.  The key tiles of a query tile must hold each visible pair once, say truly whether they are
 * full, and the closed-form counts must agree with the predicate. */
#include "pattern/pattern.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool holds) { if (!holds) abort(); }

/* Byte -> a size from 0 to beyond any prompt here; 255 stands for the largest. */
static int32_t size_of(uint8_t byte) { return byte == 255 ? INT32_MAX : byte; }

static void check_tile(const tmx_pattern *p, int32_t n_prompt, const key_tiles *it, const key_tile *t)
{
    bool all = true;
    for (int32_t k = t->k_begin; k < t->k_end; k++) {
        bool any = false;
        for (int32_t q = it->q_begin; q < it->q_end; q++) {
            const bool is_visible = tmx_pattern_is_visible(p, n_prompt, q, k);
            any |= is_visible;
            all &= is_visible;
        }
        require(any);                                  /* a key nobody sees is in no tile */
    }
    require(t->is_full == all);
}

/* The same sizes at the far end of int32: overflow is for the sanitizer to find. */
static void check_far_end(const tmx_pattern *p, int32_t n_rows)
{
    const int32_t n = INT32_MAX, q_begin = n - n_rows;
    const int64_t n_before = tmx_pattern_pairs(p, n, 0, q_begin), n_here = tmx_pattern_pairs(p, n, q_begin, n);
    require(n_before + n_here == tmx_pattern_pairs(p, n, 0, n));
    key_tiles it = key_tiles_of(p, n, q_begin, n, INT32_MAX / 3);
    int32_t k_last = 0;
    for (key_tile t; key_tiles_next(&it, &t); k_last = t.k_end) require(k_last <= t.k_begin && t.k_begin < t.k_end);
    require(k_last == n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    uint8_t b[8] = { 0 };
    memcpy(b, data, n_bytes < sizeof b ? n_bytes : sizeof b);
    const tmx_pattern p = { .kind = (tmx_pattern_kind)(b[0] % 3), .n_sink = size_of(b[1]),
                            .n_window = max_i32(1, size_of(b[2])), .n_last = size_of(b[3]) };
    const int32_t n_prompt = 1 + b[4], q_begin = b[5] % n_prompt, tile_k = max_i32(1, size_of(b[7]));
    const int32_t q_end = min_i32(n_prompt, q_begin + 1 + b[6] % 32);

    int64_t n_pairs = 0, n_in_tiles = 0;
    for (int32_t q = q_begin; q < q_end; q++) {
        for (int32_t k = 0; k < n_prompt; k++) n_pairs += tmx_pattern_is_visible(&p, n_prompt, q, k);
    }
    require(tmx_pattern_pairs(&p, n_prompt, q_begin, q_end) == n_pairs);

    key_tiles it = key_tiles_of(&p, n_prompt, q_begin, q_end, tile_k);
    int32_t k_last = 0;
    for (key_tile t; key_tiles_next(&it, &t); k_last = t.k_end) {
        require(k_last <= t.k_begin && t.k_begin < t.k_end && t.k_end <= q_end);
        require(t.k_begin / tile_k == (t.k_end - 1) / tile_k);
        check_tile(&p, n_prompt, &it, &t);
        for (int32_t q = q_begin; q < q_end; q++) {
            for (int32_t k = t.k_begin; k < t.k_end; k++) n_in_tiles += tmx_pattern_is_visible(&p, n_prompt, q, k);
        }
    }
    require(n_in_tiles == n_pairs);                    /* tiles ascend without overlap: each pair once */
    check_far_end(&p, q_end - q_begin);
    return 0;
}
