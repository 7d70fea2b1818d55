/* rooms: attn pattern base */
#include "attn/cuda/gpu_lines.h"
#include "pattern/pattern.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RNG_SEED 0x6c696e65
#include "rng_below.h"

/* The halves of the Hopper kernel, walked on the host: over all tiles they hold every pair that head_keys_visible has exactly once,
 * and no other. */

enum { MAX_PROMPT = 1500 };

typedef struct instance {
    head_keys keys;
    int32_t columns[MAX_PROMPT], distances[MAX_PROMPT];
    uint64_t blocks[MAX_PROMPT];
} instance;

/* As the estimators leave them: distance 0, the own block. */
static void make(instance *in, head_keys_kind kind, int32_t n)
{
    static const int32_t rarities[] = { 1, 2, 7, 40, 300, 2000 };
    const int32_t column_rarity = rarities[rng_below(6)], distance_rarity = rarities[rng_below(6)];
    in->keys = (head_keys){ .kind = kind, .n = n, .columns = in->columns, .distances = in->distances, .blocks = in->blocks };
    switch (kind) {
    case HEAD_DENSE: break;
    case HEAD_WINDOW:
        in->keys.n_sink = rng_below(3) ? rng_below(150) : rng_below(n + 100);
        in->keys.n_window = 1 + (rng_below(3) ? rng_below(300) : rng_below(n + 100));
        break;
    case HEAD_LINES:
        for (int32_t i = 0; i < n; i++) {
            if (rng_below(column_rarity) == 0) in->columns[in->keys.n_columns++] = i;
        }
        for (int32_t i = n - 1; i >= 0; i--) {
            const bool is_near = i < 50 && n % 2 == 0;
            if (i == 0 || is_near || rng_below(distance_rarity) == 0) in->distances[in->keys.n_distances++] = i;
        }
        break;
    case HEAD_BLOCKS:
        in->keys.n_words = line_blocks_of(n) / 64 + 1;
        memset(in->blocks, 0, sizeof in->blocks);
        for (int32_t m = 0; m < line_blocks_of(n); m++) {
            for (int32_t b = 0; b <= m; b++) {
                uint64_t *word = &in->blocks[m * in->keys.n_words + b / 64];
                if (b == m || rng_below(column_rarity) == 0) *word |= (uint64_t)1 << b % 64;
            }
        }
        break;
    }
}

static int32_t key_of(const head_keys *head, const line_half *half, int32_t i) { return half->is_gathered ? head->columns[half->begin + i] : half->begin + i; }

/* Does row q see the key in the half, by what the kernel does? */
static bool is_seen(const head_keys *head, const line_half *half, int32_t i, int32_t x, int32_t q)
{
    if (!(half->seen[x] >> i & 1)) return false;
    if (!half->rows_differ) return true;
    const row_keys row = { head->n_sink, max_i32(0, q - head->n_window + 1), q };
    return row_keys_has(row, half->begin + i);
}

/* Adds what row q sees of the tile at t to counts. */
static void count_row(const head_keys *head, int32_t t, const line_half *halves, int32_t n_halves, int32_t q, uint8_t *counts)
{
    const int32_t x = (q - t) / LINE_BLOCK;
    for (int32_t i = 0; i < n_halves; i++) {
        for (int32_t k = 0; k < LINE_BLOCK; k++) {
            if (is_seen(head, &halves[i], k, x, q)) counts[key_of(head, &halves[i], k)]++;
        }
    }
    for (int32_t k = t + LINE_BLOCK * x; k <= q; k++) {    /* the diagonal step, by rows */
        if (head->kind != HEAD_WINDOW || q - k < head->n_window || k < head->n_sink) counts[k]++;
    }
}

static void check_tile(const instance *in, int32_t t)
{
    const head_keys *head = &in->keys;
    const int32_t n_rows = min_i32(2 * LINE_BLOCK, head->n - t);
    static line_half halves[MAX_PROMPT];
    int32_t n_halves = 0;
    line_walk walk = line_walk_of(head, t);
    while (line_walk_next(&walk, &halves[n_halves])) {
        const line_half *half = &halves[n_halves++];
        assert_true(n_halves < MAX_PROMPT && half->begin >= 0);
        assert_true((half->seen[0] | half->seen[1]) != 0);
        if (half->is_gathered) assert_true(half->begin % 64 == 0 && half->begin < head->n_columns && !half->rows_differ);
    }
    for (int32_t row = 0; row < n_rows; row++) {
        uint8_t counts[MAX_PROMPT + 3 * LINE_BLOCK] = { 0 };
        count_row(head, t, halves, n_halves, t + row, counts);
        for (int32_t k = 0; k < MAX_PROMPT + 3 * LINE_BLOCK; k++) {
            const bool is_visible = k < head->n && head_keys_visible(head, t + row, k);
            if (counts[k] != is_visible) {
                fail_msg("kind %d, n %d, %d columns, %d distances, sink %d, window %d: row %d, key %d: %d times", (int)head->kind, head->n, head->n_columns,
                         head->n_distances, head->n_sink, head->n_window, t + row, k, counts[k]);
            }
        }
    }
}

static void halves_hold_every_pair_once(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 257, 320, 383, 384, 385, 448, 512, 639, 1001, MAX_PROMPT };
    static instance in;
    for (int i = 0; i < 120; i++) {
        const int32_t n = lengths[i / 4 % 10];
        make(&in, (head_keys_kind)(i % 4), n);
        const int32_t n_tiles = (n - 1) / (2 * LINE_BLOCK) + 1;
        check_tile(&in, 0);
        check_tile(&in, (n_tiles - 1) * 2 * LINE_BLOCK);
        for (int k = 0; k < 2; k++) check_tile(&in, rng_below(n_tiles) * 2 * LINE_BLOCK);
    }
}

/* A tile takes little more than its runs and the columns once. */
static void halves_are_few(void **state)
{
    (void)state;
    enum { N = 1024 };
    static instance in;
    line_half half;
    for (int i = 0; i < 40; i++) {
        make(&in, HEAD_LINES, N);
        for (int32_t t = 0; t < N; t += 2 * LINE_BLOCK) {
            int32_t n_rows = 0, n_gathered = 0, n_keys = 0;
            for (int x = 0; x < 2; x++) {
                line_runs it = line_runs_of(&in.keys, t + x * LINE_BLOCK);
                for (int32_t begin, end; line_runs_next(&it, &begin, &end); ) n_keys += end - begin;
            }
            for (line_walk walk = line_walk_of(&in.keys, t); line_walk_next(&walk, &half); ) *(half.is_gathered ? &n_gathered : &n_rows) += 1;
            assert_true(n_gathered <= (in.keys.n_columns + 63) / 64);
            assert_true(n_rows <= n_keys / LINE_BLOCK + 1 && n_rows <= t / LINE_BLOCK + 2);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halves_hold_every_pair_once),
        cmocka_unit_test(halves_are_few),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
