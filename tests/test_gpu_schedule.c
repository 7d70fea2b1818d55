/* rooms: attn pattern base */
#include "attn/attn_gpu.h"
#include "attn/cuda/attn_cuda.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define RNG_SEED 0x677075
#include "rng_below.h"

/* The tasks of the CUDA kernels, walked on the host: every visible pair is computed exactly once, mask-free slots hold
 * visible pairs only, and a row's steps do not depend on the chunk. */

enum { MAX_PROMPT = 700 };

static gpu_grid random_grid(const tmx_pattern *p)
{
    static const int32_t groups[] = { 1, 2, 3, 4, 5, 6, 7, 8, 16 };
    const bool is_sm90 = rng_below(2);
    gpu_grid grid = { .pattern = *p, .n_kv_heads = 1 + rng_below(2), .n_group = groups[rng_below(9)] };
    grid.n_heads = grid.n_kv_heads * grid.n_group;
    grid.head_shift = gpu_head_shift(grid.n_group, p->kind);
    grid.n_positions = (is_sm90 ? SM90_TILE_ROWS : PORTABLE_TILE_ROWS) >> grid.head_shift;
    grid.n_head_tiles = grid.n_kv_heads * ceil_div_i32(grid.n_group, 1 << grid.head_shift);
    grid.slot_keys = is_sm90 ? SM90_SLOT_KEYS : PORTABLE_SLOT_KEYS;
    grid.narrow_keys = is_sm90 && grid.n_positions < SM90_NARROW_KEYS ? SM90_NARROW_KEYS : grid.slot_keys;
    return grid;
}

static tmx_pattern random_pattern(int32_t n)
{
    tmx_pattern p = { .kind = (tmx_pattern_kind)rng_below(3), .n_sink = rng_below(3) ? rng_below(40) : rng_below(n + 3),
                      .n_window = 1 + (rng_below(3) ? rng_below(200) : rng_below(n + 3)), .n_last = rng_below(160) };
    return p;
}

/* Adds what one task computes of row q to counts[k]. */
static void count_row(const gpu_grid *grid, const gpu_seq *seq, const gpu_task *task, int32_t q, uint8_t *counts)
{
    const row_keys window = gpu_window_keys(grid, seq, task, q), sinks = gpu_sink_keys(task, q);
    for (int32_t c = 0; c < grid->n_positions; c++) {
        if (row_keys_has(window, task->k_top + c)) counts[task->k_top + c]++;
    }
    for (int32_t k = 0; k < task->narrow_sinks; k++) counts[k]++;
    for (int32_t slot = 1; slot <= task->n_window_slots + task->n_sink_slots; slot++) {
        const row_keys keys = slot <= task->n_window_slots ? window : sinks;
        const int32_t begin = gpu_slot_begin(grid, task, slot);
        for (int32_t k = begin; k < begin + grid->slot_keys; k++) {
            const bool is_seen = slot <= task->n_full_slots || row_keys_has(keys, k);
            if (!is_seen) continue;
            assert_in_range(k, 0, MAX_PROMPT * 20);
            counts[k]++;
        }
    }
}

static void check_coverage(const gpu_grid *grid, gpu_seq *seqs, int32_t n_seqs, int32_t n_rows_checked)
{
    const int32_t n_partials = gpu_seqs_chain(seqs, n_seqs, grid);
    const int32_t n_tasks = seqs[n_seqs - 1].tasks_end;
    gpu_task *tasks = calloc((size_t)n_tasks + 1, sizeof *tasks);
    uint8_t *partials = calloc((size_t)n_partials + 1, 1);
    assert_true(tasks != NULL && partials != NULL);
    int32_t n = 0;
    for (int32_t i = 0; i < n_tasks; i++) {
        if (!gpu_task_get(grid, seqs, n_seqs, i, &tasks[n])) continue;
        const gpu_task *task = &tasks[n++];
        assert_in_range(task->seq, 0, n_seqs - 1);
        assert_true(task->narrow_sinks <= grid->narrow_keys - grid->n_positions);
        assert_int_equal(task->t_begin % grid->n_positions, 0);
        if (task->partial >= 0) assert_int_equal(partials[task->partial]++, 0);
    }
    for (int32_t round = 0; round < n_rows_checked; round++) {
        const int32_t i = rng_below(n_seqs);
        const gpu_seq *seq = &seqs[i];
        if (seq->q_end == seq->q_begin) continue;
        const int32_t q = seq->q_begin + rng_below(seq->q_end - seq->q_begin), head = rng_below(grid->n_heads);
        uint8_t *counts = calloc((size_t)seq->n_prompt + 256, 1);
        assert_non_null(counts);
        for (int32_t t = 0; t < n; t++) {
            if (tasks[t].seq != i || q < tasks[t].t_begin || q >= tasks[t].t_begin + grid->n_positions) continue;
            if (head < tasks[t].first_head || head >= tasks[t].first_head + tasks[t].n_heads) continue;
            count_row(grid, seq, &tasks[t], q, counts);
        }
        for (int32_t k = 0; k < seq->n_prompt; k++) {
            if (counts[k] != pattern_is_visible(&grid->pattern, seq->n_prompt, q, k)) {
                fail_msg("kind %d %d/%d/%d group %d positions %d slot %d: row %d of %d, key %d counted %d times",
                         (int)grid->pattern.kind, grid->pattern.n_sink, grid->pattern.n_window, grid->pattern.n_last,
                         grid->n_group, grid->n_positions, grid->slot_keys, q, seq->n_prompt, k, counts[k]);
            }
        }
        free(counts);
    }
    free(tasks);
    free(partials);
}

static void every_visible_pair_once(void **state)
{
    (void)state;
    for (int round = 0; round < 600; round++) {
        const int32_t n_seqs = 1 + rng_below(4);
        int32_t n[4];
        for (int32_t i = 0; i < n_seqs; i++) n[i] = 1 + rng_below(MAX_PROMPT);
        const tmx_pattern p = random_pattern(n[0]);
        const gpu_grid grid = random_grid(&p);
        gpu_seq seqs[4];
        for (int32_t i = 0; i < n_seqs; i++) {
            const int32_t q_begin = rng_below(2) ? 0 : rng_below(n[i]);
            gpu_seq_set(&seqs[i], &grid, q_begin, rng_below(n[i] - q_begin + 1), n[i], 512);
        }
        check_coverage(&grid, seqs, n_seqs, 12);
    }
}

static void splits_of_long_tails(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 4223, 4224, 4225, 8352, 8353, 9000, 12345 };
    for (int round = 0; round < 40; round++) {
        const int32_t n = lengths[round % 7];
        const tmx_pattern p = { round % 4 ? TMX_PATTERN_TRIANGLE : TMX_PATTERN_STREAMING, 8, 512,
                                round % 3 ? 128 : rng_below(300) };
        const gpu_grid grid = random_grid(&p);
        gpu_seq seq;
        gpu_seq_set(&seq, &grid, n - 600, 600, n, 512);
        check_coverage(&grid, &seq, 1, 30);
        assert_true(seq.n_splits <= GPU_MAX_SPLITS + 1);
    }
}

/* The steps of a tile are the same in whatever chunk it comes. */
static void chunks_do_not_move_steps(void **state)
{
    (void)state;
    for (int round = 0; round < 300; round++) {
        const int32_t n = 1 + rng_below(9000);
        const tmx_pattern p = random_pattern(n);
        const gpu_grid grid = random_grid(&p);
        gpu_seq whole, chunk;
        gpu_seq_set(&whole, &grid, 0, n, n, 512);
        const int32_t q_begin = rng_below(n);
        gpu_seq_set(&chunk, &grid, q_begin, 1 + rng_below(n - q_begin), n, 512);
        assert_int_equal(whole.first_dense_row, chunk.first_dense_row);
        assert_int_equal(whole.split_slots, chunk.split_slots);
        gpu_seqs_chain(&whole, 1, &grid);
        gpu_seqs_chain(&chunk, 1, &grid);
        gpu_task a, b;
        const int32_t at = rng_below(chunk.tasks_end);
        if (!gpu_task_get(&grid, &chunk, 1, at, &a)) continue;
        bool is_found = false;
        for (int32_t i = 0; i < whole.tasks_end && !is_found; i++) {
            if (!gpu_task_get(&grid, &whole, 1, i, &b)) continue;
            b.partial = a.partial;                     /* whether a single split goes through scratch moves no bit */
            is_found = memcmp(&a, &b, sizeof a) == 0;
        }
        assert_true(is_found);
    }
}

/* ---------------------------------------------------------------- the door */

static _Alignas(256) char memory[1 << 12];

static tmx_gpu_attention_params good_params(const tmx_gpu_attention_seq *seq)
{
    return (tmx_gpu_attention_params){
        .n_heads = 4, .n_kv_heads = 1, .head_dim = 64, .q_pos_stride = 256, .q_head_stride = 64, .out_pos_stride = 256,
        .out_head_stride = 64, .k_pos_stride = 64, .k_head_stride = 64, .v_pos_stride = 64, .v_head_stride = 64,
        .pattern = { TMX_PATTERN_TRIANGLE, 8, 512, 128 }, .seqs = seq, .n_seqs = 1, .scratch = memory,
        .scratch_bytes = sizeof memory,
    };
}

static void the_door_names_what_is_wrong(void **state)
{
    (void)state;
    const tmx_gpu_attention_seq seq = { .q = memory, .k = memory, .v = memory, .out = memory, .n_q = 1, .n_prompt = 1 };
    tmx_error err;
#define EXPECT(field, value, words) do { \
        tmx_gpu_attention_params p = good_params(&seq); \
        p.field = value; \
        assert_int_not_equal(tmx_gpu_attention(&p, NULL, &err), TMX_OK); \
        if (strstr(err.text, words) == NULL) fail_msg("%s: %s", words, err.text); \
    } while (0)
    EXPECT(n_heads, 3 * 65536, "n_heads");
    EXPECT(n_kv_heads, 3, "n_heads");
    EXPECT(n_kv_heads, 0, "n_kv_heads");
    EXPECT(head_dim, 80, "head_dim");
    EXPECT(type, TMX_TYPE_F32, "type");
    EXPECT(scale, -1.0f, "scale");
    EXPECT(kernel, (tmx_gpu_kernel)7, "kernel");
    EXPECT(page_size, 24, "page_size");
    EXPECT(page_size, 16, "n_pages");
    EXPECT(scratch, memory + 1, "scratch");
    EXPECT(n_seqs, -1, "n_seqs");
    EXPECT(seqs, NULL, "seqs");
    EXPECT(pattern.n_window, 0, "n_window");
    EXPECT(q_head_stride, 65, "q: strides");
    EXPECT(q_head_stride, SIZE_MAX / 8 * 8, "reach too far");
    tmx_gpu_attention_seq bad = seq;
    tmx_gpu_attention_params p = good_params(&bad);
    bad.n_prompt = 0;
    assert_int_equal(tmx_gpu_attention(&p, NULL, &err), TMX_E_ARG);
    assert_non_null(strstr(err.text, "n_prompt"));
    assert_int_equal(tmx_gpu_attention_scratch_bytes(&p), 0);
    bad = seq;
    bad.k = memory + 2;
    assert_int_equal(tmx_gpu_attention(&p, NULL, &err), TMX_E_ARG);
    assert_non_null(strstr(err.text, "aligned"));
    assert_int_equal(tmx_gpu_attention(NULL, NULL, &err), TMX_E_ARG);
    assert_int_equal(tmx_gpu_device_get(NULL, &err), TMX_E_ARG);
}

static void thresholds_by_head_are_refused(void **state)
{
    (void)state;
    const tmx_gpu_attention_seq seq = { .q = memory, .k = memory, .n_q = 1, .n_prompt = 1 };
    const double thresholds[4] = { 0.5, 0, 0, 0 };
    const xattention method = { .stride = 8, .threshold = 0.9, .norm = 1, .thresholds = thresholds };
    tmx_gpu_attention_params p = good_params(&seq);
    key_lists lists = key_lists_shape(4, 0, 1);
    tmx_error err;
    p.pattern.kind = TMX_PATTERN_DENSE;
    lists.bits = (uint64_t *)(void *)memory;
    assert_int_equal(gpu_xattention(&p, &method, &lists, memory, sizeof memory, NULL, &err), TMX_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "thresholds by head run on the CPU only"));
}

static void scratch_is_planned_without_a_device(void **state)
{
    (void)state;
    tmx_gpu_attention_seq seq = { .n_q = 1000, .n_prompt = 1000 };
    tmx_gpu_attention_params p = good_params(&seq);
    assert_int_equal(tmx_gpu_attention_scratch_bytes(&p), 256);            /* nothing to merge */
    seq.n_q = seq.n_prompt = 131072;
    p.n_heads = 32;
    p.n_kv_heads = 8;
    p.head_dim = 128;
    assert_in_range(tmx_gpu_attention_scratch_bytes(&p), 30 << 20, 64 << 20);
    p.head_dim = 256;                                      /* the portable kernel's alone */
    const size_t n_256 = tmx_gpu_attention_scratch_bytes(&p);
    p.kernel = TMX_GPU_KERNEL_PORTABLE;
    assert_int_equal(tmx_gpu_attention_scratch_bytes(&p), n_256);
    p.head_dim = 128;
    assert_in_range(n_256, 2 * tmx_gpu_attention_scratch_bytes(&p) - (4 << 20), 2 * tmx_gpu_attention_scratch_bytes(&p));
    p.pattern.kind = TMX_PATTERN_DENSE;
    assert_int_equal(tmx_gpu_attention_scratch_bytes(&p), 256);
}

static void without_a_gpu_it_says_so(void **state)
{
    (void)state;
    tmx_gpu_device device;
    tmx_error err;
    const tmx_status status = tmx_gpu_device_get(&device, &err);
    if (status == TMX_OK) skip();
    assert_true(status == TMX_E_DEVICE || status == TMX_E_UNSUPPORTED);
    assert_true(err.text[0] != '\0');
    const tmx_gpu_attention_seq seq = { .q = memory, .k = memory, .v = memory, .out = memory, .n_q = 1, .n_prompt = 1 };
    const tmx_gpu_attention_params p = good_params(&seq);
    assert_int_equal(tmx_gpu_attention(&p, NULL, &err), status);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_visible_pair_once),
        cmocka_unit_test(splits_of_long_tails),
        cmocka_unit_test(chunks_do_not_move_steps),
        cmocka_unit_test(the_door_names_what_is_wrong),
        cmocka_unit_test(thresholds_by_head_are_refused),
        cmocka_unit_test(scratch_is_planned_without_a_device),
        cmocka_unit_test(without_a_gpu_it_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
