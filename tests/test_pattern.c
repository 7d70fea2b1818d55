/* rooms: base pattern */
#include "pattern/pattern.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define RNG_SEED 0x7274696d6978u
#include "rng_below.h"

enum { MAX_PROMPT = 160 };

static const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE };

static tmx_pattern triangle(int32_t n_sink, int32_t n_window, int32_t n_last)
{
    return (tmx_pattern){ .kind = TMX_PATTERN_TRIANGLE, .n_sink = n_sink, .n_window = n_window, .n_last = n_last };
}

static tmx_pattern streaming(int32_t n_sink, int32_t n_window)
{
    return (tmx_pattern){ .kind = TMX_PATTERN_STREAMING, .n_sink = n_sink, .n_window = n_window, .n_last = -77 };
}

/* The definition in its plainest form, written a second time on purpose. */
static bool oracle(const tmx_pattern *p, int32_t n_prompt, int32_t q, int32_t k)
{
    if (k > q) return false;
    if (p->kind == TMX_PATTERN_DENSE || q - k < p->n_window || k < p->n_sink) return true;
    if (p->kind == TMX_PATTERN_STREAMING) return false;
    return p->n_last >= n_prompt ? q >= 1 : q >= n_prompt - p->n_last;
}

static int64_t oracle_pairs(const tmx_pattern *p, int32_t n_prompt, int32_t q_begin, int32_t q_end)
{
    int64_t n_pairs = 0;
    for (int32_t q = q_begin; q < q_end; q++) {
        for (int32_t k = 0; k <= q; k++) n_pairs += oracle(p, n_prompt, q, k);
    }
    return n_pairs;
}

static void check_tiles(const tmx_pattern *p, int32_t n_prompt, int32_t q_begin, int32_t q_end, int32_t tile_k)
{
    uint8_t n_covers[MAX_PROMPT] = { 0 };              /* per key: tiles that hold it */
    int32_t k_last = 0;
    key_tiles it = key_tiles_of(p, n_prompt, q_begin, q_end, tile_k);
    for (key_tile t; key_tiles_next(&it, &t);) {
        assert_in_range(t.k_begin, k_last, q_end - 1);
        assert_in_range(t.k_end, t.k_begin + 1, q_end);
        assert_int_equal(t.k_begin / tile_k, (t.k_end - 1) / tile_k);
        assert_true(t.k_begin > k_last || t.k_begin % tile_k == 0);        /* no cut but the grid's, save over a gap */
        k_last = t.k_end;
        bool any = false, all = true;
        for (int32_t k = t.k_begin; k < t.k_end; k++) {
            n_covers[k]++;
            for (int32_t q = q_begin; q < q_end; q++) {
                const bool visible = oracle(p, n_prompt, q, k);
                any |= visible;
                all &= visible;
            }
        }
        if (!any || all != t.is_full) {
            fail_msg("kind %d N %d sink %d window %d last %d rows %d..%d tile_k %d keys %d..%d: any %d all %d full %d",
                     (int)p->kind, n_prompt, p->n_sink, p->n_window, p->n_last, q_begin, q_end, tile_k, t.k_begin,
                     t.k_end, any, all, t.is_full);
        }
    }
    for (int32_t k = 0; k < n_prompt; k++) {
        bool is_needed = false;
        for (int32_t q = q_begin; q < q_end; q++) is_needed |= oracle(p, n_prompt, q, k);
        assert_int_equal(n_covers[k], is_needed);      /* once if any row sees it, and no key beyond */
    }
    assert_false(key_tiles_next(&it, &(key_tile){ 0 }));
}

static void check_geometry(const tmx_pattern *p, int32_t n_prompt)
{
    for (int32_t q = 0; q < n_prompt; q++) {
        for (int32_t k = 0; k < n_prompt; k++) {
            assert_int_equal(tmx_pattern_is_visible(p, n_prompt, q, k), oracle(p, n_prompt, q, k));
        }
    }
    int64_t n_sum = 0;
    for (int32_t q_begin = 0, q_end; q_begin < n_prompt; q_begin = q_end) {
        q_end = q_begin + 1 + rng_below(n_prompt - q_begin);
        const int64_t n_pairs = tmx_pattern_pairs(p, n_prompt, q_begin, q_end);
        assert_int_equal(n_pairs, oracle_pairs(p, n_prompt, q_begin, q_end));
        n_sum += n_pairs;
    }
    assert_int_equal(n_sum, tmx_pattern_pairs(p, n_prompt, 0, n_prompt));
}

/* A size around the edges that matter for a prompt of n_prompt tokens. */
static int32_t awkward(int32_t n_prompt, int32_t tile)
{
    const int32_t edges[] = { 0, 1, 2, tile - 1, tile, tile + 1, n_prompt - 1, n_prompt, n_prompt + 1, INT32_MAX };
    if (rng_below(2) == 0) return rng_below(n_prompt + 2);
    return max_i32(0, edges[rng_below((int32_t)(sizeof edges / sizeof edges[0]))]);
}

static void tiles_cover_visible_pairs_once(void **state)
{
    (void)state;
    static const int32_t prompts[] = { 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, MAX_PROMPT };
    static const int32_t tiles[] = { 1, 2, 3, 7, 8, 16, 17, 64, 128, 1000, INT32_MAX };
    for (int round = 0; round < 4000; round++) {
        const int32_t n_prompt = round < 400 ? prompts[round % 16] : 1 + rng_below(MAX_PROMPT);
        const int32_t tile_k = tiles[rng_below(11)];
        const int32_t tile = min_i32(tile_k, n_prompt);
        const tmx_pattern_kind kind = (tmx_pattern_kind)(round % 8 == 0 ? 0 : 1 + rng_below(2));
        const tmx_pattern p = { .kind = kind, .n_sink = awkward(n_prompt, tile),
                                .n_window = max_i32(1, awkward(n_prompt, tile)), .n_last = awkward(n_prompt, tile) };
        const int32_t q_begin = rng_below(n_prompt);
        const int32_t q_end = q_begin + min_i32(n_prompt - q_begin, 1 + rng_below(40));
        check_tiles(&p, n_prompt, q_begin, q_end, tile_k);
        check_tiles(&p, n_prompt, q_begin, q_begin, tile_k);        /* no rows: no tile */
        if (round % 4 == 0) check_geometry(&p, n_prompt);
    }
}

static void small_geometries_exhaustively(void **state)
{
    (void)state;
    enum { N = 9 };
    for (int32_t i = 0; i < 3 * 11 * 11 * 11; i++) {
        const tmx_pattern p = { .kind = (tmx_pattern_kind)(i % 3), .n_sink = i / 3 % 11,
                                .n_window = 1 + i / 33 % 11, .n_last = i / 363 };
        for (int32_t q_begin = 0; q_begin < N; q_begin++) {
            for (int32_t q_end = q_begin; q_end <= N; q_end++) {
                assert_int_equal(tmx_pattern_pairs(&p, N, q_begin, q_end), oracle_pairs(&p, N, q_begin, q_end));
                for (int32_t tile_k = 1; tile_k <= 4; tile_k++) check_tiles(&p, N, q_begin, q_end, tile_k);
            }
        }
    }
}

/* Spec 12.1: row i of a 12-token prompt with 1 sink, a window of 2 and 2 last rows. */
static void twelve_tokens_look_like_the_drawing(void **state)
{
    (void)state;
    static const char *const rows[12] = { "#", "##", "###", "#.##", "#..##", "#...##", "#....##", "#.....##",
                                          "#......##", "#.......##", "###########", "############" };
    const tmx_pattern p = triangle(1, 2, 2);
    for (int32_t q = 0; q < 12; q++) {
        for (int32_t k = 0; k < 12; k++) {
            assert_int_equal(tmx_pattern_is_visible(&p, 12, q, k), k <= q && rows[q][k] == '#');
        }
    }
}

/* Spec 3.5 and 12.2. */
static void published_pair_counts(void **state)
{
    (void)state;
    static const struct { int32_t n_prompt; int64_t n_dense, n_triangle; } table[] = {
        { 2048, 2098176, 1117476 },      { 4096, 8390656, 2444580 },      { 8192, 33558528, 5098788 },
        { 16384, 134225920, 10407204 },  { 32768, 536887296, 21024036 },  { 65536, 2147516416, 42257700 },
        { 131072, 8590000128, 84725028 },
    };
    const tmx_pattern p = triangle(TMX_DEFAULT_SINK, TMX_DEFAULT_WINDOW, TMX_DEFAULT_LAST);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        const int32_t n = table[i].n_prompt;
        assert_int_equal(tmx_pattern_pairs(&dense, n, 0, n), table[i].n_dense);
        assert_int_equal(tmx_pattern_pairs(&p, n, 0, n), table[i].n_triangle);
    }
    assert_int_equal(tmx_pattern_pairs(&p, 8192, 6144, 8192), 2038848);
}

/* Spec 3.4: squares of the tile grid touched by all query tiles of a prompt.  The table's tiles are whole squares, so
 * it masks every sink tile; ours ends at n_sink and needs no mask.  Our count of full tiles is therefore the table's
 * plus one per query tile with a sink tile.  Where sinks and window share a square we have two tiles, the table one. */
static void published_tile_counts(void **state)
{
    (void)state;
    static const struct { int32_t n_prompt, tile_q, tile_k, n_visited, n_mask_free; } table[] = {
        { 1024, 128, 128, 35, 22 },
        { 4096, 64, 64, 702, 531 },      { 32768, 64, 64, 6078, 4563 },      { 131072, 64, 64, 24510, 18387 },
        { 4096, 128, 64, 380, 236 },     { 32768, 128, 64, 3292, 2028 },     { 131072, 128, 64, 13276, 8172 },
        { 4096, 128, 128, 203, 118 },    { 32768, 128, 128, 1771, 1014 },    { 131072, 128, 128, 7147, 4086 },
        { 4096, 64, 128, 406, 236 },     { 32768, 64, 128, 3542, 2028 },     { 131072, 64, 128, 14294, 8172 },
    };
    const tmx_pattern p = triangle(TMX_DEFAULT_SINK, TMX_DEFAULT_WINDOW, TMX_DEFAULT_LAST);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        int32_t n_visited = 0, n_full = 0, n_sink_tiles = 0;
        for (int32_t q = 0; q < table[i].n_prompt; q += table[i].tile_q) {
            const int32_t q_end = min_i32(q + table[i].tile_q, table[i].n_prompt);
            int32_t square = -1;
            key_tiles it = key_tiles_of(&p, table[i].n_prompt, q, q_end, table[i].tile_k);
            for (key_tile t; key_tiles_next(&it, &t);) {
                n_visited += t.k_begin / table[i].tile_k != square;
                square = t.k_begin / table[i].tile_k;
                n_full += t.is_full;
                n_sink_tiles += t.k_begin == 0 && t.k_end == p.n_sink;
            }
        }
        assert_int_equal(n_visited, table[i].n_visited);
        assert_int_equal(n_full, table[i].n_mask_free + n_sink_tiles);
    }
    int32_t n_dense = 0;
    for (int32_t q = 0; q < 1024; q += 128) {
        key_tiles it = key_tiles_of(&dense, 1024, q, q + 128, 128);
        for (key_tile t; key_tiles_next(&it, &t);) n_dense++;
    }
    assert_int_equal(n_dense, 36);
}

static void a_deep_query_tile_has_six_key_tiles(void **state)
{
    (void)state;
    static const key_tile expected[] = {
        { .k_begin = 0, .k_end = 8, .is_full = true },
        { .k_begin = 4096 - 511, .k_end = 3712, .is_full = false },
        { .k_begin = 3712, .k_end = 3840, .is_full = true },
        { .k_begin = 3840, .k_end = 3968, .is_full = true },
        { .k_begin = 3968, .k_end = 4096, .is_full = true },
        { .k_begin = 4096, .k_end = 4224, .is_full = false },
    };
    const tmx_pattern p = triangle(8, 512, 128);
    key_tiles it = key_tiles_of(&p, 8192, 4096, 4224, 128);
    key_tile t;
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        assert_true(key_tiles_next(&it, &t));
        assert_int_equal(t.k_begin, expected[i].k_begin);
        assert_int_equal(t.k_end, expected[i].k_end);
        assert_int_equal(t.is_full, expected[i].is_full);
    }
    assert_false(key_tiles_next(&it, &t));
}

static void assert_same(const tmx_pattern *a, const tmx_pattern *b, int32_t n)
{
    for (int32_t q = 0; q < n; q++) {
        for (int32_t k = 0; k < n; k++) {
            assert_int_equal(tmx_pattern_is_visible(a, n, q, k), tmx_pattern_is_visible(b, n, q, k));
        }
        assert_int_equal(tmx_pattern_pairs(a, n, 0, q), tmx_pattern_pairs(b, n, 0, q));
    }
    for (int32_t q = 0; q < n; q += 5) {
        key_tiles it_a = key_tiles_of(a, n, q, min_i32(q + 5, n), 4);
        key_tiles it_b = key_tiles_of(b, n, q, min_i32(q + 5, n), 4);
        key_tile t_a, t_b;
        while (key_tiles_next(&it_a, &t_a)) {
            assert_true(key_tiles_next(&it_b, &t_b));
            assert_int_equal(t_a.k_begin, t_b.k_begin);
            assert_int_equal(t_a.k_end, t_b.k_end);
            assert_int_equal(t_a.is_full, t_b.is_full);
        }
        assert_false(key_tiles_next(&it_b, &t_b));
    }
}

static void limits_equal_their_simpler_kind(void **state)
{
    (void)state;
    for (int32_t n = 1; n <= 40; n += 3) {
        const tmx_pattern no_tail = triangle(2, 5, 0), no_tail_streaming = streaming(2, 5);
        assert_same(&no_tail, &no_tail_streaming, n);
        const tmx_pattern dense_ones[] = {
            triangle(0, n, 0),         triangle(0, INT32_MAX, 0), streaming(0, n),
            triangle(n, 1, 0),         triangle(INT32_MAX, 1, 0), streaming(n, 1),
            triangle(0, 1, n - 1),     triangle(0, 1, n),         triangle(0, 1, INT32_MAX),
        };
        for (size_t i = 0; i < sizeof dense_ones / sizeof dense_ones[0]; i++) {
            for (int32_t q = 0; q < n; q++) {
                for (int32_t k = 0; k < n; k++) {
                    assert_int_equal(tmx_pattern_is_visible(&dense_ones[i], n, q, k), k <= q);
                }
            }
            assert_int_equal(tmx_pattern_pairs(&dense_ones[i], n, 0, n), tmx_pattern_pairs(&dense, n, 0, n));
        }
    }
}

/* Sizes and prompts at the end of int32: nothing overflows (UBSan watches) and the counts stay exact. */
static void largest_prompt_does_not_overflow(void **state)
{
    (void)state;
    const int32_t n = INT32_MAX;
    assert_int_equal(tmx_pattern_pairs(&dense, n, 0, n), (int64_t)n * ((int64_t)n + 1) / 2);
    const int32_t sizes[] = { 1, 2, 8, 512, INT32_MAX / 2, INT32_MAX - 1, INT32_MAX };
    for (int i = 0; i < 7 * 7 * 7; i++) {
        const tmx_pattern p = triangle(sizes[i % 7], sizes[i / 7 % 7], sizes[i / 49]);
        const tmx_pattern s = streaming(p.n_sink, p.n_window);
        const int32_t cuts[] = { 0, 1, 513, n / 3, n / 2, n - 129, n - 1, n };
        int64_t n_sum = 0;
        for (size_t c = 0; c + 1 < sizeof cuts / sizeof cuts[0]; c++) {
            n_sum += tmx_pattern_pairs(&p, n, cuts[c], cuts[c + 1]);
        }
        assert_int_equal(n_sum, tmx_pattern_pairs(&p, n, 0, n));
        assert_true(n_sum <= tmx_pattern_pairs(&dense, n, 0, n));
        assert_true(tmx_pattern_pairs(&s, n, 0, n) <= n_sum);
        assert_true(tmx_pattern_is_visible(&p, n, n - 1, 0));
        key_tiles it = key_tiles_of(&p, n, n - 3, n, INT32_MAX - 1);
        int32_t k_covered = -1;
        for (key_tile t; key_tiles_next(&it, &t);) k_covered = t.k_end;
        assert_int_equal(k_covered, n);
    }
    const tmx_pattern p = streaming(8, 512);
    assert_int_equal(tmx_pattern_pairs(&p, n, n - 10, n), 10 * 520);
    key_tiles it = key_tiles_of(&p, n, n - 1, n, 128);
    key_tile t;
    assert_true(key_tiles_next(&it, &t));
    assert_int_equal(t.k_end, 8);
    assert_true(key_tiles_next(&it, &t));
    assert_int_equal(t.k_begin, n - 512);
    while (key_tiles_next(&it, &t)) assert_true(t.is_full);
    assert_int_equal(t.k_end, n);
}

static void bad_patterns_are_named(void **state)
{
    (void)state;
    static const struct { tmx_pattern p; const char *text; } cases[] = {
        { { .kind = TMX_PATTERN_TRIANGLE, .n_sink = -1, .n_window = 1 }, "pattern n_sink: -1, expected 0 or more" },
        { { .kind = TMX_PATTERN_STREAMING, .n_sink = 8 }, "pattern n_window: 0, expected 1 or more" },
        { { .kind = TMX_PATTERN_TRIANGLE, .n_window = INT32_MIN },
          "pattern n_window: -2147483648, expected 1 or more" },
        { { .kind = TMX_PATTERN_TRIANGLE, .n_window = 1, .n_last = -1 }, "pattern n_last: -1, expected 0 or more" },
        { { .kind = (tmx_pattern_kind)99, .n_window = 1 },
          "pattern kind: 99, expected 0 (dense), 1 (streaming), 2 (triangle)" },
        { { .kind = TMX_PATTERN_XATTENTION, .n_window = 1 }, "pattern kind: xattention is dynamic, no pattern of positions" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tmx_error err;
        assert_int_equal(pattern_check(&cases[i].p, &err), TMX_E_ARG);
        assert_string_equal(err.text, cases[i].text);
        assert_false(tmx_pattern_is_visible(&cases[i].p, 4, 1, 1));
        assert_int_equal(tmx_pattern_pairs(&cases[i].p, 4, 0, 4), 0);
    }
    const tmx_pattern unread = { .kind = TMX_PATTERN_DENSE, .n_sink = -1, .n_window = INT32_MIN, .n_last = -1 };
    const tmx_pattern no_last = streaming(0, 1);
    assert_int_equal(pattern_check(&unread, NULL), TMX_OK);
    assert_int_equal(pattern_check(&no_last, NULL), TMX_OK);
    assert_int_equal(tmx_pattern_pairs(&unread, 4, 0, 4), 10);
    check_tiles(&unread, 4, 0, 0, 2);
    check_tiles(&unread, 4, 1, 4, 2);
}

static void public_functions_accept_anything(void **state)
{
    (void)state;
    assert_string_equal(tmx_pattern_name(TMX_PATTERN_DENSE), "dense");
    assert_string_equal(tmx_pattern_name(TMX_PATTERN_STREAMING), "streaming");
    assert_string_equal(tmx_pattern_name(TMX_PATTERN_TRIANGLE), "triangle");
    assert_string_equal(tmx_pattern_name((tmx_pattern_kind)9), "unknown");
    const int32_t any[] = { INT32_MIN, -1, 0, 1, 5, INT32_MAX };
    const tmx_pattern p = triangle(1, 2, 3);
    for (int i = 0; i < 6 * 6 * 6; i++) {
        const int32_t n = any[i % 6], q = any[i / 6 % 6], k = any[i / 36];
        const bool is_inside = 0 <= k && k <= q && q < n;
        if (!is_inside) assert_false(tmx_pattern_is_visible(&p, n, q, k));
        const int64_t n_pairs = tmx_pattern_pairs(&p, n, q, k);
        if (k <= q || n <= 0 || k <= 0) assert_int_equal(n_pairs, 0);
        assert_true(n_pairs >= 0);
    }
    assert_int_equal(tmx_pattern_pairs(&p, 5, INT32_MIN, INT32_MAX), tmx_pattern_pairs(&p, 5, 0, 5));
    assert_false(tmx_pattern_is_visible(NULL, 1, 0, 0));
    assert_int_equal(tmx_pattern_pairs(NULL, 1, 0, 1), 0);
}

static int32_t n_same_rows_by_definition(const tmx_pattern *a, int32_t n_a, const tmx_pattern *b, int32_t n_b)
{
    int32_t n = 0;
    for (; n < n_a && n < n_b; n++) {
        for (int32_t k = 0; k <= n; k++) {
            if (pattern_is_visible(a, n_a, n, k) != pattern_is_visible(b, n_b, n, k)) return n;
        }
    }
    return n;
}

static void rows_that_two_prompts_share(void **state)
{
    (void)state;
    for (int i = 0; i < 20000; i++) {
        const int32_t n_a = 1 + rng_below(60), n_b = rng_below(8) == 0 ? n_a : 1 + rng_below(60);
        const tmx_pattern kinds[] = { triangle(rng_below(12), 1 + rng_below(20), rng_below(40)), dense, dense };
        tmx_pattern a = kinds[rng_below(2)], b = kinds[rng_below(2)];
        if (rng_below(4) == 0) {
            a = streaming(kinds[0].n_sink, kinds[0].n_window);
            if (rng_below(2) == 0) b = a;
        }
        const int32_t expected = n_same_rows_by_definition(&a, n_a, &b, n_b), n = pattern_n_same_rows(&a, n_a, &b, n_b);
        if (n == expected) continue;
        fail_msg("%s of %d, %s of %d (sink %d, window %d, last %d): %d rows, expected %d", tmx_pattern_name(a.kind), n_a,
                 tmx_pattern_name(b.kind), n_b, kinds[0].n_sink, kinds[0].n_window, kinds[0].n_last, n, expected);
    }
    const tmx_pattern huge = triangle(INT32_MAX, INT32_MAX, INT32_MAX), none = triangle(0, 1, 0);
    assert_int_equal(pattern_n_same_rows(&huge, INT32_MAX, &dense, INT32_MAX), INT32_MAX);
    assert_int_equal(pattern_n_same_rows(&none, INT32_MAX, &dense, INT32_MAX), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_geometries_exhaustively),
        cmocka_unit_test(tiles_cover_visible_pairs_once),
        cmocka_unit_test(twelve_tokens_look_like_the_drawing),
        cmocka_unit_test(published_pair_counts),
        cmocka_unit_test(published_tile_counts),
        cmocka_unit_test(a_deep_query_tile_has_six_key_tiles),
        cmocka_unit_test(limits_equal_their_simpler_kind),
        cmocka_unit_test(rows_that_two_prompts_share),
        cmocka_unit_test(largest_prompt_does_not_overflow),
        cmocka_unit_test(bad_patterns_are_named),
        cmocka_unit_test(public_functions_accept_anything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
