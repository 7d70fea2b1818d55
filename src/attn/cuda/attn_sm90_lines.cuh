/* attn_sm90_lines.cuh - the producer of attn_sm90.cuh for MInference's heads, and what its slots tell the math warpgroups.
 *
 * A slot is two halves of LINE_BLOCK keys (gpu_lines.h): in a row, by the copy engine from any key on, or gathered, 16 bytes at a time
 * into the places where the copy engine's swizzle would put them.  Beside each slot of K stands for each warpgroup, which is one block of
 * rows, the mask of the keys it sees, so the math needs neither lists nor positions.
 *
 *   producer (4 warps)   all walk the same halves, each on its own; warp 0 has the copy engine, each gathers 16 rows of a half
 *                        a task's wide slots are not counted before: each says whether it is the last one, so the walk is one slot ahead
 *
 * A tile has at least one wide slot, if need be of zeros.  The rows of a slot are there when LINE_PRODUCERS threads' copies have arrived
 * and the bytes of the copy engine.  Visible pairs are counted in passing. */
#ifndef TMX_ATTN_ATTN_SM90_LINES_CUH
#define TMX_ATTN_ATTN_SM90_LINES_CUH

#include "attn/cuda/attn_rows.cuh"
#include "attn/cuda/gpu_lines.h"
#include "attn/cuda/sm90_launch.cuh"
#include "attn/cuda/sm90_ptx.cuh"
#include "base/mma_ptx.cuh"

enum { BARRIER_PRODUCERS = 5 };
enum { LINE_PRODUCERS = 128, LINE_ZEROS = INT32_MAX / 2 };

struct alignas(16) line_slot {
    uint64_t seen[2][2];           /* [block of rows][half] */
    int32_t begin[2];              /* first keys of the halves; read where rows_differ */
    bool is_last, rows_differ;
};

struct line_window {               /* what rows see beside masks: all keys, or a head's window */
    int32_t n_sink, n_window;
};

template <int N_SLOTS, bool HAS_LINES> struct line_smem {};

template <int N_SLOTS> struct line_smem<N_SLOTS, true> {
    line_slot slots[N_SLOTS];      /* of K */
    line_slot found[2];            /* in turns: what the walk says of the slot that comes next, and of the one behind it */
    line_window windows[2];        /* belong to the Q buffers, as tasks do */
    int32_t next_index[2];         /* in turns: the task after the next one */
};

/* ---------------------------------------------------------------- math */

struct line_view {
    uint32_t seen[4];
    int32_t begin[2];
    bool is_last, rows_differ;
};

/* All lanes have read before lane 0 gives the slot back. */
DEVICE line_view line_view_of(const line_slot &slot, int32_t wg)
{
    const uint4 seen = *(const uint4 *)slot.seen[wg];
    const line_view view = { { seen.x, seen.y, seen.z, seen.w }, { slot.begin[0], slot.begin[1] }, slot.is_last, slot.rows_differ };
    __syncwarp();
    return view;
}

DEVICE void hide_unseen(float *s, const line_view &view, const row_keys (&rows)[2])
{
    if ((view.seen[0] & view.seen[1] & view.seen[2] & view.seen[3]) != 0xffffffff) {
#pragma unroll
        for (int i = 0; i < 64; i++) {
            if (!(view.seen[i / 16] >> lane_column() & 1u << (i / 4 % 4 * 8 + i % 2))) s[i] = -CUDART_INF_F;
        }
    }
    if (view.rows_differ) {
        mask_slot<LINE_BLOCK>(s, rows, view.begin[0]);
        mask_slot<LINE_BLOCK>(s + LINE_BLOCK / 2, rows, view.begin[1]);
    }
}

DEVICE row_keys line_row_keys(const line_window &window, int32_t q_pos)
{
    return { window.n_sink, max_i32(0, q_pos - window.n_window + 1), q_pos };
}

/* ---------------------------------------------------------------- producer */

/* Read where it is needed: what the compiler makes of it once and for all would fill the producer's registers. */
DEVICE int32_t lane_now()
{
    int32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

template <typename kernel> struct line_producer {
    using T = typename kernel::element;
    static constexpr int HEAD_DIM = kernel::DIM, N_BLOCKS = kernel::N_BLOCKS, ROW_BYTES = COLUMNS * (int)sizeof(T);
    static constexpr int HALF_BYTES = LINE_BLOCK * HEAD_DIM * (int)sizeof(T);
    static constexpr int CHUNKS = HEAD_DIM / 8, ROWS_AT_ONCE = 32 / CHUNKS, WARP_ROWS = 16;        /* of a gathered half */

    /* Where the keys of a slot come from. */
    struct slot_plan {
        int32_t begin[2];          /* of halves in a row, LINE_ZEROS; gathered: ~index of the first column */
    };

    struct tile {
        int32_t t, head;           /* t < 0: there is none */
    };

    const sm90_launch &launch;
    typename kernel::smem_map &smem;
    const int32_t warp;
    typename kernel::template ring<kernel::N_SLOTS> slot;
    typename kernel::template ring<2> q_buffer;
    int32_t next_index;
    int turn, found_turn;
    line_walk walk;
    uint32_t n_pairs;              /* of the tile at work */

    DEVICE line_producer(const sm90_launch &of, typename kernel::smem_map &map)
        : launch(of), smem(map), warp(__shfl_sync(0xffffffff, (int32_t)(threadIdx.x % 128 / 32), 0))
    {
        next_index = (int32_t)blockIdx.x;
        turn = found_turn = 0;
    }

    DEVICE bool is_writer() const { return warp == 0 && lane_now() == 0; }
    DEVICE int32_t n_rows_of(tile of) const { return min_i32(2 * LINE_BLOCK, launch.common.seqs[0].q_end - of.t); }

    DEVICE tile next_tile()
    {
        const gpu_launch &common = launch.common;
        gpu_task task;
        if (next_index >= common.n_tasks) return { -1, 0 };
        if (is_writer()) smem.lines.next_index[turn] = atomicAdd(common.next_task, 1) + (int32_t)gridDim.x;
        (void)gpu_task_get(&common.grid, common.seqs, 1, next_index, &task);
        named_barrier_sync(BARRIER_PRODUCERS, LINE_PRODUCERS);
        next_index = smem.lines.next_index[turn];
        turn ^= 1;                 /* so that no warp overtakes a reader */
        return { task.t_begin, task.first_head };
    }

    /* The task as the math knows it: what its slots hold stands beside them, one wide slot is there at least. */
    DEVICE gpu_task task_of(tile of) const
    {
        gpu_task task;
        task.seq = 0;
        task.kv_head = of.head / launch.common.grid.n_group;
        task.first_head = of.head;
        task.n_heads = 1;
        task.t_begin = task.k_top = of.t;
        task.t_end = of.t + n_rows_of(of);
        task.narrow_sinks = task.n_sink_slots = task.n_full_slots = task.sink_end = 0;
        task.n_window_slots = 1;
        task.partial = -1;
        return task;
    }

    DEVICE void load_q(tile of)
    {
        if (warp != 0) return;
        const int32_t lane = lane_now();
        uint64_t *full = &smem.q_full[q_buffer.i];
        mbarrier_wait(&smem.q_free[q_buffer.i], q_buffer.phase ^ 1);
        if (lane == 0) {
            smem.tasks[q_buffer.i] = task_of(of);
            if (of.t < 0) {
                mbarrier_arrive(full);
            } else {
                const head_keys *head = launch.common.heads + of.head;
                const bool is_window = head->kind == HEAD_WINDOW;
                smem.lines.windows[q_buffer.i] = { is_window ? head->n_sink : 0, is_window ? head->n_window : INT32_MAX };
                mbarrier_arrive_expect(full, kernel::Q_BYTES);
            }
        }
        __syncwarp();
        if (of.t >= 0 && lane < N_BLOCKS) {
            tma_load_3d(smem.q[q_buffer.i] + lane * kernel::BLOCK_BYTES, &launch.maps[0].q, full, lane * COLUMNS, of.head, of.t);
        }
        q_buffer.advance();
    }

    /* The warp's rows of half h: columns from `first` on, zeros behind the last one. */
    DEVICE void gather(tile of, unsigned char *to, int h, int32_t first, const T *rows, size_t stride)
    {
        const head_keys *head = launch.common.heads + of.head;
        const int32_t lane = lane_now(), chunk = lane % CHUNKS, at = first + warp * WARP_ROWS + lane % WARP_ROWS;
        const int32_t own_key = at < head->n_columns ? head->columns[at] : -1;
        to += chunk / 8 * kernel::BLOCK_BYTES + (h * LINE_BLOCK + warp * WARP_ROWS) * ROW_BYTES;
        rows += chunk * 8;
#pragma unroll
        for (int i = 0; i < WARP_ROWS; i += ROWS_AT_ONCE) {
            const int32_t row = i + lane / CHUNKS, key = __shfl_sync(0xffffffff, own_key, row);
            copy_async(to + row * ROW_BYTES + (chunk % 8 ^ row % 8) * 16, rows + (size_t)max_i32(key, 0) * stride, key >= 0);
        }
    }

    /* is_key: the slot is one of K. */
    DEVICE void load(tile of, const slot_plan &plan, bool is_key)
    {
        const gpu_launch &c = launch.common;
        const int32_t kv_head = of.head / c.grid.n_group;
        uint64_t *full = &smem.slot_full[slot.i];
        unsigned char *to = smem.slots[slot.i];
        if (warp == 0) {
            const int32_t lane = lane_now(), h = lane / N_BLOCKS, block = lane % N_BLOCKS, begin = h == 0 ? plan.begin[0] : plan.begin[1];
            if (lane == 0) mbarrier_arrive_expect(full, ((plan.begin[0] >= 0) + (plan.begin[1] >= 0)) * HALF_BYTES);
            __syncwarp();
            if (h < 2 && begin >= 0) {
                tma_load_3d(to + block * kernel::BLOCK_BYTES + h * LINE_BLOCK * ROW_BYTES, is_key ? &launch.maps[0].k.piece : &launch.maps[0].v.piece,
                            full, block * COLUMNS, kv_head, begin);
            }
            __syncwarp();
        }
#pragma unroll 1
        for (int h = 0; h < 2; h++) {
            const int32_t begin = h == 0 ? plan.begin[0] : plan.begin[1];
            if (begin >= 0) continue;
            const T *rows = (const T *)(is_key ? c.buffers[0].k : c.buffers[0].v) + (size_t)kv_head * (is_key ? c.k_head_stride : c.v_head_stride);
            gather(of, to, h, ~begin, rows, is_key ? c.k_pos_stride : c.v_pos_stride);
        }
        mbarrier_arrive_copied(full);
        slot.advance();
    }

    DEVICE void wait_free() { mbarrier_wait(&smem.slot_free[slot.i], slot.phase ^ 1); }

    DEVICE void load_diagonal(tile of, bool is_key)
    {
        wait_free();
        load(of, diagonal_of(of), is_key);
    }

    DEVICE static slot_plan diagonal_of(tile of) { return { { of.t, of.t + LINE_BLOCK } }; }

    /* A slot of K, and what is known of it. */
    DEVICE void load_wide(tile of, const slot_plan &plan, bool is_last)
    {
        wait_free();
        if (is_writer()) {
            line_slot &said = smem.lines.slots[slot.i];
            said = smem.lines.found[found_turn];       /* the one before the newest */
            said.is_last = is_last;
        }
        load(of, plan, true);
    }

    DEVICE void load_values(tile of, const slot_plan &plan)
    {
        wait_free();
        load(of, plan, false);
    }

    /* The walk's next slot, of zeros behind its end; is there one? */
    DEVICE bool next_slot(tile of, slot_plan *plan)
    {
        const int32_t n_rows = n_rows_of(of);
        line_slot &found = smem.lines.found[found_turn];
        bool is_there = false, rows_differ = false;
        found_turn ^= 1;
#pragma unroll 1
        for (int h = 0; h < 2; h++) {
            line_half half;
            if (line_walk_next(&walk, &half)) {
                is_there = true;
            } else {
                half.begin = LINE_ZEROS;
                half.is_gathered = half.rows_differ = false;
                half.seen[0] = half.seen[1] = 0;
            }
            rows_differ |= half.rows_differ;
            if (is_writer()) {
                found.seen[0][h] = half.seen[0];
                found.seen[1][h] = half.seen[1];
                found.begin[h] = half.begin;
                found.rows_differ = rows_differ;
            }
            n_pairs += (uint32_t)(__popcll(half.seen[0]) * min_i32(n_rows, LINE_BLOCK) + __popcll(half.seen[1]) * max_i32(0, n_rows - LINE_BLOCK));
            if (h == 0) plan->begin[0] = half.is_gathered ? ~half.begin : half.begin;
            else plan->begin[1] = half.is_gathered ? ~half.begin : half.begin;
        }
        return is_there;
    }

    /* The tile's pairs beside those of its wide slots; of a window head, whose masks are too wide, all. */
    DEVICE void add_pairs(tile of)
    {
        const head_keys *head = walk.head;
        const int32_t n_rows = n_rows_of(of);
        const bool is_window = head->kind == HEAD_WINDOW;
        uint32_t n = 0;
        for (int32_t row = lane_now(); row < n_rows; row += 32) {
            const int32_t n_seen = of.t + row + 1;
            n += (uint32_t)(is_window ? min_i32(n_seen, head->n_window) + min_i32(head->n_sink, max_i32(0, n_seen - head->n_window))
                                      : row % LINE_BLOCK + 1);
        }
        n = __reduce_add_sync(0xffffffff, n);
        if (launch.common.n_pairs == NULL || !is_writer()) return;
        atomicAdd((unsigned long long *)launch.common.n_pairs, (unsigned long long)(is_window ? n : n + n_pairs));
    }

    DEVICE void run()
    {
        tile at = next_tile();
        load_q(at);
        if (at.t >= 0) load_diagonal(at, true);
        while (at.t >= 0) {
            tile next = { -1, 0 };
            slot_plan before, now = diagonal_of(at);
            walk = line_walk_of(launch.common.heads + at.head, at.t);
            n_pairs = 0;
            for (bool is_wide = false; ; is_wide = true) {
                slot_plan then;
                const bool has_more = next_slot(at, &then) || !is_wide;
                if (is_wide) {
                    if (!has_more) {
                        next = next_tile();
                        load_q(next);          /* early: the ring is ahead of the math by two steps */
                    }
                    load_wide(at, now, !has_more);
                    load_values(at, before);
                }
                before = now;
                if (!has_more) break;
                now = then;
            }
            add_pairs(at);
            if (next.t >= 0) load_diagonal(next, true);
            load_values(at, before);
            at = next;
        }
        copy_commit();
        copy_wait<0>();            /* no thread leaves before its copies have arrived */
    }
};

#endif
