/* gpu_schedule.h - what each CTA does: tasks, their query tile and their key steps.  In: shapes, a pattern, sequences.
 * Out: task i of n, longest first.  Plain arithmetic on positions, the same on the host (sizes, tests) and on the device.
 *
 * A tile is tile_rows rows = n_positions positions x n_tile_heads query heads of one KV head (position-major), so that a
 * GQA group shares its keys and a window wastes little.  Its steps over the keys, from the diagonal downwards:
 *
 *      step:      slot n            ...          slot 2        slot 1      narrow
 *                 |<--slot_keys-->|         |<------------>|<------------>|<-n_positions->|   + the sinks, if they fit
 *      keys:   ...                                                     k_top          k_top + n_positions
 *
 * The narrow step holds the diagonal and the sinks; every wide slot then ends where the tile begins, so a window of 512
 * costs 4 slots of 128 and one narrow step.  Sinks that do not fit beside the diagonal come as slots of their own.
 *
 * A tile with dense rows of a triangle needs all keys.  Its keys are cut into splits, each a task of the same shape, whose
 * partial results are merged in order of the splits.
 *
 * Bits: tiles lie on multiples of n_positions, steps and splits follow from the tile's position and the prompt's
 * final length.  So what a row computes never depends on the chunk or the batch it comes in. */
#ifndef TMX_ATTN_GPU_SCHEDULE_H
#define TMX_ATTN_GPU_SCHEDULE_H

#include "pattern/pattern.h"

enum { GPU_MAX_SEQS = 32 };        /* of one launch; a larger batch takes several */
enum { GPU_MAX_SPLITS = 16, GPU_MIN_SPLIT_KEYS = 4096 };
enum { GPU_HEADS_IN_L2_BYTES = 32 << 20 };     /* K and V that tiles working at the same time may range over */

typedef struct gpu_grid {          /* the same for all sequences */
    tmx_pattern pattern;
    int32_t n_heads, n_kv_heads, n_group;      /* n_group = n_heads / n_kv_heads */
    int32_t head_shift;            /* n_tile_heads = 1 << head_shift; row r of a tile: head r % n_tile_heads */
    int32_t n_positions;           /* tile_rows >> head_shift */
    int32_t n_head_tiles;          /* tiles side by side at one position */
    int32_t slot_keys, narrow_keys;
} gpu_grid;

typedef struct gpu_seq {
    int32_t q_begin, q_end, n_prompt, first_dense_row;
    int32_t first_tile, n_tiles;   /* tiles of this chunk; the tail is the last n_tail_tiles of them */
    int32_t n_tail_tiles, n_splits, split_slots;
    int32_t heads_at_once;         /* head tiles that take turns, so that their keys stay in L2 */
    int32_t tail_tasks_end, tasks_end;         /* running sums over the sequences of a launch */
    int32_t partials_begin;
} gpu_seq;

typedef struct gpu_task {
    int32_t seq, kv_head, first_head, n_heads; /* query heads [first_head, first_head + n_heads) */
    int32_t t_begin, t_end;        /* the tile's positions, clipped at the prompt's end only */
    int32_t k_top;                 /* keys [k_top, k_top + n_positions) are in the narrow step; may be negative */
    int32_t narrow_sinks;          /* sinks behind them */
    int32_t n_window_slots, n_sink_slots;
    int32_t n_full_slots;          /* the first of the window slots that no row needs a mask in */
    int32_t sink_end;              /* of the interval apart from the window; 0 when there is none */
    int32_t partial;               /* where this split's result goes; -1: it is final */
} gpu_task;

HOST_DEVICE static inline int32_t ceil_div_i32(int32_t a, int32_t b) { return a <= 0 ? 0 : (a - 1) / b + 1; }

/* Heads that share a tile: the largest power of two in the group, or for 7 a tile with one idle head, when the window
 * would waste more than that. */
static inline int32_t gpu_head_shift(int32_t n_group, tmx_pattern_kind kind)
{
    int32_t shift = 0;
    if (n_group == 7 && kind != TMX_PATTERN_DENSE) return 3;
    while (shift < 3 && n_group % (2 << shift) == 0) shift++;
    return shift;
}

/* Splits of a tail tile at t_begin: the diagonal's has n_positions + split_slots slots, so has every other. */
HOST_DEVICE static inline int32_t gpu_n_splits(const gpu_grid *grid, int32_t split_slots, int32_t t_begin)
{
    const int32_t slots_keys = split_slots * grid->slot_keys;
    return 1 + ceil_div_i32(t_begin - slots_keys, grid->n_positions + slots_keys);
}

/* Fills seq from its positions; kv_token_bytes is K and V of one token and KV head. */
static inline void gpu_seq_set(gpu_seq *seq, const gpu_grid *grid, int32_t q_begin, int32_t n_q, int32_t n_prompt,
                               int32_t kv_token_bytes)
{
    const int32_t p = grid->n_positions;
    int32_t dense = pattern_first_dense_row(&grid->pattern, n_prompt);
    if (grid->pattern.kind == TMX_PATTERN_TRIANGLE && dense <= grid->pattern.n_window) dense = 0;   /* hides nothing */
    seq->q_begin = q_begin;
    seq->q_end = q_begin + n_q;
    seq->n_prompt = n_prompt;
    seq->first_dense_row = dense;
    seq->first_tile = q_begin / p;
    seq->n_tiles = n_q > 0 ? (seq->q_end - 1) / p + 1 - seq->first_tile : 0;
    seq->n_tail_tiles = 0;
    seq->n_splits = 1;
    seq->split_slots = ceil_div_i32(max_i32(GPU_MIN_SPLIT_KEYS, ceil_div_i32(n_prompt, GPU_MAX_SPLITS)),
                                    grid->slot_keys);
    if (n_q > 0 && dense > 0 && dense < n_prompt && seq->q_end > dense / p * p) {      /* a triangle with a tail */
        const int32_t last_tile = seq->first_tile + seq->n_tiles - 1;
        seq->n_splits = gpu_n_splits(grid, seq->split_slots, last_tile * p);
        if (seq->n_splits > 1) seq->n_tail_tiles = last_tile + 1 - max_i32(seq->first_tile, dense / p);
    }
    const int64_t head_bytes = (int64_t)seq->q_end * kv_token_bytes;
    seq->tail_tasks_end = seq->tasks_end = seq->partials_begin = 0;        /* gpu_seqs_chain sets them */
    seq->heads_at_once = 1;
    while (seq->heads_at_once < grid->n_head_tiles && 2 * seq->heads_at_once * head_bytes <= GPU_HEADS_IN_L2_BYTES) {
        seq->heads_at_once *= 2;
    }
}

/* Chains the sequences of a launch: all tail tasks come first, being the longest.  Returns the number of partial results;
 * -1 if the tasks are too many to count. */
static inline int32_t gpu_seqs_chain(gpu_seq *seqs, int32_t n_seqs, const gpu_grid *grid)
{
    int64_t n_tasks = 0;
    for (int32_t i = 0; i < n_seqs; i++) {
        seqs[i].partials_begin = (int32_t)n_tasks;
        n_tasks += (int64_t)seqs[i].n_tail_tiles * seqs[i].n_splits * grid->n_head_tiles;
        if (n_tasks > INT32_MAX / 2) return -1;
        seqs[i].tail_tasks_end = (int32_t)n_tasks;
    }
    const int32_t n_partials = (int32_t)n_tasks;
    for (int32_t i = 0; i < n_seqs; i++) {
        n_tasks += (int64_t)(seqs[i].n_tiles - seqs[i].n_tail_tiles) * grid->n_head_tiles;
        if (n_tasks > INT32_MAX / 2) return -1;
        seqs[i].tasks_end = (int32_t)n_tasks;
    }
    return n_partials;
}

HOST_DEVICE static inline void gpu_task_set_heads(gpu_task *task, const gpu_grid *grid, int32_t head_tile)
{
    const int32_t tiles_per_group = grid->n_head_tiles / grid->n_kv_heads;
    const int32_t in_group = (head_tile % tiles_per_group) << grid->head_shift;
    task->kv_head = head_tile / tiles_per_group;
    task->first_head = task->kv_head * grid->n_group + in_group;
    task->n_heads = min_i32(1 << grid->head_shift, grid->n_group - in_group);
}

/* Task `index` of [0, tasks_end of the last sequence); false: a split that this tile does not have. */
HOST_DEVICE static inline bool gpu_task_get(const gpu_grid *grid, const gpu_seq *seqs, int32_t n_seqs, int32_t index,
                                            gpu_task *task)
{
    const int32_t n_tail = seqs[n_seqs - 1].tail_tasks_end, p = grid->n_positions;
    const bool is_tail = index < n_tail;
    int32_t i = 0, begin = is_tail ? 0 : n_tail;
    for (int32_t end; end = is_tail ? seqs[i].tail_tasks_end : seqs[i].tasks_end, index >= end; i++) begin = end;
    const gpu_seq *seq = &seqs[i];
    task->seq = i;
    index -= begin;

    int32_t split = 0;
    if (is_tail) {                 /* tiles of one split side by side: they read the same keys */
        const int32_t tile = index % seq->n_tail_tiles, of_head = index / seq->n_tail_tiles;
        split = of_head % seq->n_splits;
        gpu_task_set_heads(task, grid, of_head / seq->n_splits);
        task->t_begin = (seq->first_tile + seq->n_tiles - seq->n_tail_tiles + tile) * p;
        task->partial = seq->partials_begin + index;
    } else {
        const int32_t n_tiles = seq->n_tiles - seq->n_tail_tiles, per_turn = n_tiles * seq->heads_at_once;
        const int32_t first_head = index / per_turn * seq->heads_at_once, in_turn = index % per_turn;
        const int32_t n_turn = min_i32(seq->heads_at_once, grid->n_head_tiles - first_head);
        gpu_task_set_heads(task, grid, first_head + in_turn % n_turn);
        task->t_begin = (seq->first_tile + n_tiles - 1 - in_turn / n_turn) * p;
        task->partial = -1;
    }
    task->t_end = min_i32(task->t_begin + p, seq->n_prompt);

    const key_intervals keys = key_intervals_of(&grid->pattern, seq->first_dense_row, task->t_begin, task->t_end);
    const int32_t split_keys = p + seq->split_slots * grid->slot_keys;
    task->k_top = task->t_begin - split * split_keys;
    task->sink_end = keys.sink_end;
    task->narrow_sinks = keys.sink_end <= grid->narrow_keys - p ? keys.sink_end : 0;
    task->n_sink_slots = task->narrow_sinks > 0 ? 0 : ceil_div_i32(keys.sink_end, grid->slot_keys);
    task->n_window_slots = ceil_div_i32(task->k_top - keys.window_begin, grid->slot_keys);
    if (is_tail) {
        if (split >= gpu_n_splits(grid, seq->split_slots, task->t_begin)) return false;
        task->n_window_slots = min_i32(task->n_window_slots, seq->split_slots);
    }
    /* The last streaming row sees least of the window: the slots above its oldest key are full. */
    const int32_t q_worst = task->t_begin < seq->first_dense_row ? min_i32(task->t_end, seq->first_dense_row) - 1 : task->t_begin;
    const int32_t oldest = pattern_row_keys(&grid->pattern, seq->first_dense_row, q_worst).window_begin;
    task->n_full_slots = min_i32(task->n_window_slots, max_i32(0, task->k_top - oldest) / grid->slot_keys);
    return true;
}

/* First key of wide slot `slot` in [1, n_window_slots + n_sink_slots]: the window's from the top down, then the sinks'. */
HOST_DEVICE static inline int32_t gpu_slot_begin(const gpu_grid *grid, const gpu_task *task, int32_t slot)
{
    return slot <= task->n_window_slots ? task->k_top - slot * grid->slot_keys
                                        : (slot - task->n_window_slots - 1) * grid->slot_keys;
}

/* The row's keys as far as they are counted in the window's steps or in the sinks'. */
HOST_DEVICE static inline row_keys gpu_window_keys(const gpu_grid *grid, const gpu_seq *seq, const gpu_task *task,
                                                   int32_t q_pos)
{
    row_keys row = pattern_row_keys(&grid->pattern, seq->first_dense_row, q_pos);
    if (task->sink_end > 0) row.sink_end = 0;          /* the sinks have their own step */
    return row;
}

HOST_DEVICE static inline row_keys gpu_sink_keys(const gpu_task *task, int32_t q_pos)
{
    row_keys row = { task->sink_end, INT32_MAX, q_pos };
    return row;
}

#endif
