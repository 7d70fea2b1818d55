/* attn_sm90.cuh - prefill attention for Hopper.  One CTA takes tiles of 128 rows (positions x query heads of one KV head,
 * gpu_schedule.h) from a counter until none is left.
 *
 *   out[row] = sum over visible k of 2^(c (s_k - m)) V[k] / sum of the same weights,   s = q . K[k],  c = scale log2(e)
 *
 *   producer (1 warp)    for each task: TMA Q into a Q buffer; TMA K, V of each step into a ring, as slots become free
 *   math (2 x 128)       64 rows each; all steps of all tiles are one stream.  Step j of a tile (0 is the narrow one):
 *     score    S = Q K_j^T        [64][128]  f32 registers, asynchronous
 *     value    O += P V_{j-1}     [64][HEAD_DIM]            asynchronous, behind score
 *     mask     partial slots only                           while value runs
 *     softmax  running max and sum, base 2: S -> weights    while value runs
 *     rescale  O *= 2^(c (m - m')); P = weights as 16 bit
 *   At a tile's end the last value runs beside the narrow score of the next tile; then
 *     finish   O / sum -> out, lse; or a split's O, max and sum to scratch
 *
 * So a warpgroup's exponentials hide behind its own value product, and the two take turns at issuing (turn_*), so that
 * they hide behind the other's products too.  Ring order: K0, K1, V0, K2, V1, ..., K0 of the next tile, V_last, ...
 *
 * Per SM at head_dim 128: shared memory 2 Q buffers x 32 KiB + 5 slots x 32 KiB + barriers of 227 KiB; registers
 * 2 x 128 x 232 + 128 x 40 of 65536 (S 64, P 32, O 64); one CTA.  Floor: docs/perf-log.md. */
#ifndef TMX_ATTN_ATTN_SM90_CUH
#define TMX_ATTN_ATTN_SM90_CUH

#include "attn/cuda/attn_merge.cuh"
#include "attn/cuda/attn_rows.cuh"
#include "attn/cuda/attn_sm90_lines.cuh"
#include "attn/cuda/sm90_launch.cuh"
#include "attn/cuda/sm90_ptx.cuh"

enum { N_MATH = 2, N_THREADS = 128 * (N_MATH + 1), N_MATH_WARPS = 4 * N_MATH, N_Q_BUFFERS = 2 };
enum { REGS_PRODUCER = 40, REGS_MATH = 232 };
enum { REGS_LINE_PRODUCER = 72, REGS_LINE_MATH = 216 };
enum { BARRIER_TURN = 1 };         /* named barriers 1 and 2: math warpgroup 0's and 1's turn; 0 is __syncthreads; 3 and 4: clear_strangers;
                                    * 5: attn_sm90_lines.cuh */

/* HAS_LINES: of MInference's heads, one head a tile, by attn_sm90_lines.cuh. */
template <typename T, int HEAD_DIM, int NARROW_KEYS, bool HAS_LINES = false> struct sm90_kernel {
    using element = T;
    static constexpr int DIM = HEAD_DIM;
    static constexpr int N_SLOTS = HEAD_DIM == 128 ? 5 : 10;
    static constexpr int N_BLOCKS = HEAD_DIM / COLUMNS;
    static constexpr int BLOCK_BYTES = SM90_SLOT_KEYS * COLUMNS * (int)sizeof(T);   /* also of Q: 128 rows */
    static constexpr int Q_BYTES = N_BLOCKS * BLOCK_BYTES, SLOT_BYTES = N_BLOCKS * BLOCK_BYTES;
    static_assert((int)SM90_TILE_ROWS == (int)SM90_SLOT_KEYS && SM90_TILE_ROWS == 64 * N_MATH, "one block size");

    struct alignas(1024) smem_map {
        unsigned char q[N_Q_BUFFERS][Q_BYTES];
        unsigned char slots[N_SLOTS][SLOT_BYTES];
        uint64_t q_full[N_Q_BUFFERS], q_free[N_Q_BUFFERS], slot_full[N_SLOTS], slot_free[N_SLOTS];
        gpu_task tasks[N_Q_BUFFERS];           /* belongs to the Q buffer; t_begin < 0: no more */
        line_smem<N_SLOTS, HAS_LINES> lines;
    };
    static constexpr size_t SMEM_BYTES = sizeof(smem_map) + 1024;  /* the driver aligns to less than a swizzle needs */
    static_assert(SMEM_BYTES <= 227 * 1024, "shared memory of one CTA");

    /* Position in a ring of buffers, and the parity of its phase. */
    template <int N> struct ring {
        int i = 0;
        uint32_t phase = 0;
        DEVICE void advance()
        {
            if (++i == N) {
                i = 0;
                phase ^= 1;
            }
        }
    };

    /* ---------------------------------------------------------------- producer: one warp */

    /* The blocks of a key list below its own, from the diagonal downwards.  Lane l holds word 32 page + l of it. */
    struct block_walk {
        const uint64_t *list;
        int32_t own, page;         /* the query block */
        uint64_t word;             /* what of it is still to come */

        DEVICE void load(int32_t at_page)
        {
            const int32_t i = 32 * at_page + threadIdx.x % 32;
            page = at_page;
            word = i <= own / 64 ? list[i] : 0;
            if (i == own / 64) word &= ((uint64_t)1 << own % 64) - 1;
        }

        DEVICE int32_t count()
        {
            int32_t n = 0;
            for (int32_t i = own / 64 / 32; i >= 0; i--) {
                load(i);
                n += __popcll(word);
            }
            return __reduce_add_sync(0xffffffff, n);
        }

        DEVICE int32_t next()      /* there is one */
        {
            uint32_t lanes;
            while (lanes = __ballot_sync(0xffffffff, word != 0), lanes == 0) load(page - 1);
            const int32_t lane = 31 - __clz(lanes), bit = 63 - __clzll(__shfl_sync(0xffffffff, word, lane));
            if (threadIdx.x % 32 == lane) word ^= (uint64_t)1 << bit;
            return (32 * page + lane) * 64 + bit;
        }
    };

    struct producer {
        const sm90_launch &launch;
        smem_map &smem;
        ring<N_SLOTS> slot;
        ring<N_Q_BUFFERS> q_buffer;
        int32_t piece_keys;        /* of one copy: the box of the tensor map */
        int32_t next_index;
        block_walk walk;           /* of the task at work, where there are lists */

        /* Listed tiles are 128 positions of one head; the narrow step is the diagonal block, each wide slot a block below it. */
        DEVICE bool has_lists() const { return NARROW_KEYS == SM90_SLOT_KEYS && launch.common.lists.bits != NULL; }

        DEVICE block_walk walk_of(const gpu_task &task) const
        {
            const key_lists &lists = launch.common.lists;
            const int32_t own = task.t_begin / KEY_BLOCK;
            const size_t row = (size_t)task.first_head * lists.n_blocks + (own - lists.first_block);
            return { lists.bits + row * lists.n_words, own };
        }

        DEVICE const sm90_maps &maps_of(const gpu_task &task)
        {
            return launch.maps[launch.common.page_shift < 0 ? task.seq : 0];
        }

        /* Copies `n_keys` keys from k_begin on to row `row` of the slot; a piece that is no key of this sequence comes out
         * as zeros.  Lane l takes piece l / N_BLOCKS, column block l % N_BLOCKS. */
        DEVICE void copy_keys(const kv_maps &maps, const gpu_task &task, int32_t k_begin, int32_t n_keys, int32_t row)
        {
            const int32_t lane = threadIdx.x % 32, block = lane % N_BLOCKS, shift = launch.common.page_shift;
            uint64_t *full = &smem.slot_full[slot.i];
            unsigned char *to = smem.slots[slot.i] + block * BLOCK_BYTES + row * COLUMNS * (int)sizeof(T);
            if (shift < 0 && n_keys == SM90_SLOT_KEYS) {
                if (lane < N_BLOCKS) tma_load_3d(to, &maps.slot, full, block * COLUMNS, task.kv_head, k_begin);
                return;
            }
            for (int32_t piece = lane / N_BLOCKS; piece * piece_keys < n_keys; piece += 32 / N_BLOCKS) {
                const int32_t k = k_begin + piece * piece_keys;
                unsigned char *piece_to = to + piece * piece_keys * COLUMNS * (int)sizeof(T);
                if (shift < 0) {
                    tma_load_3d(piece_to, &maps.piece, full, block * COLUMNS, task.kv_head, k);
                } else {
                    const bool is_key = k >= 0 && k < launch.common.seqs[task.seq].q_end;
                    const int32_t page = is_key ? launch.common.buffers[task.seq].pages[k >> shift] : -1;
                    tma_load_4d(piece_to, &maps.piece, full, block * COLUMNS, k & ((1 << shift) - 1), task.kv_head, page);
                }
            }
        }

        DEVICE void acquire(int32_t n_rows)
        {
            mbarrier_wait(&smem.slot_free[slot.i], slot.phase ^ 1);
            if (threadIdx.x % 32 == 0) {
                mbarrier_arrive_expect(&smem.slot_full[slot.i], n_rows * HEAD_DIM * (int)sizeof(T));
            }
            __syncwarp();
        }

        DEVICE void load_narrow(const kv_maps &maps, const gpu_task &task)
        {
            const int32_t n_diagonal = launch.common.grid.n_positions;
            const int32_t n_rest = max_i32(0, (NARROW_KEYS - n_diagonal + piece_keys - 1) / piece_keys * piece_keys);
            const int32_t n_sinks = (task.narrow_sinks + piece_keys - 1) / piece_keys * piece_keys;
            acquire(n_diagonal + n_rest);
            copy_keys(maps, task, task.k_top, n_diagonal, 0);
            copy_keys(maps, task, 0, n_sinks, n_diagonal);
            copy_keys(maps, task, -n_rest, n_rest - n_sinks, n_diagonal + n_sinks);     /* zeros: weight 0 times NaN is NaN */
            slot.advance();
        }

        DEVICE void load_slot(const kv_maps &maps, const gpu_task &task, int32_t k_begin)
        {
            acquire(SM90_SLOT_KEYS);
            copy_keys(maps, task, k_begin, SM90_SLOT_KEYS, 0);
            slot.advance();
        }

        /* k_begin: of slot j. */
        DEVICE void load_values(const gpu_task &task, int32_t j, int32_t k_begin)
        {
            if (j == 0) load_narrow(maps_of(task).v, task);
            else load_slot(maps_of(task).v, task, k_begin);
        }

        /* First key of wide slot j; each is asked for once, upwards. */
        DEVICE int32_t next_slot(const gpu_task &task, int32_t j)
        {
            return has_lists() ? KEY_BLOCK * walk.next() : gpu_slot_begin(&launch.common.grid, &task, j);
        }

        DEVICE void load_q(const gpu_task &task)
        {
            const int32_t lane = threadIdx.x % 32;
            uint64_t *full = &smem.q_full[q_buffer.i];
            mbarrier_wait(&smem.q_free[q_buffer.i], q_buffer.phase ^ 1);
            if (lane == 0) {
                smem.tasks[q_buffer.i] = task;
                if (task.t_begin < 0) mbarrier_arrive(full);
                else mbarrier_arrive_expect(full, Q_BYTES);
            }
            __syncwarp();
            if (task.t_begin >= 0 && lane < N_BLOCKS) {
                tma_load_3d(smem.q[q_buffer.i] + lane * BLOCK_BYTES, &launch.maps[task.seq].q, full, lane * COLUMNS,
                            task.first_head, task.t_begin - launch.common.seqs[task.seq].q_begin);
            }
            q_buffer.advance();
        }

        /* The next task that exists, or the sign that there is none. */
        DEVICE gpu_task next_task()
        {
            const gpu_launch &common = launch.common;
            gpu_task task;
            for (int32_t index = next_index; ; ) {
                if (index >= common.n_tasks) {
                    task.t_begin = -1;
                    return task;
                }
                next_index = 0;
                if (threadIdx.x % 32 == 0) next_index = atomicAdd(common.next_task, 1) + gridDim.x;
                const bool exists = gpu_task_get(&common.grid, common.seqs, common.n_seqs, index, &task);
                next_index = index = __shfl_sync(0xffffffff, next_index, 0);
                if (!exists) continue;
                if (has_lists()) task.n_window_slots = task.n_full_slots = walk_of(task).count();
                return task;
            }
        }

        DEVICE void run()
        {
            const gpu_launch &common = launch.common;
            piece_keys = common.grid.n_positions;
            if (common.page_shift >= 0) piece_keys = min_i32(piece_keys, 1 << common.page_shift);
            next_index = blockIdx.x;
            gpu_task task = next_task();
            load_q(task);
            if (task.t_begin >= 0) load_narrow(maps_of(task).k, task);
            while (task.t_begin >= 0) {
                const int32_t n_slots = task.n_window_slots + task.n_sink_slots;
                int32_t k_before = 0;
                if (has_lists()) {
                    walk = walk_of(task);
                    walk.load(walk.own / 64 / 32);
                }
                for (int32_t j = 1; j < n_slots; j++) {
                    const int32_t k_begin = next_slot(task, j);
                    load_slot(maps_of(task).k, task, k_begin);
                    load_values(task, j - 1, k_before);
                    k_before = k_begin;
                }
                const gpu_task next = next_task();     /* its Q comes early: the ring is ahead of the math by two steps */
                load_q(next);
                if (n_slots > 0) {
                    const int32_t k_begin = next_slot(task, n_slots);
                    load_slot(maps_of(task).k, task, k_begin);
                    load_values(task, n_slots - 1, k_before);
                    k_before = k_begin;
                }
                if (next.t_begin >= 0) load_narrow(maps_of(next).k, next);
                load_values(task, n_slots, k_before);
                task = next;
            }
        }
    };

    /* ---------------------------------------------------------------- math: one warpgroup, 64 rows */

    struct math {
        const gpu_launch &launch;
        smem_map &smem;
        const int32_t wg;
        ring<N_SLOTS> slot;
        ring<N_Q_BUFFERS> q_buffer;
        uint64_t q_tile;           /* descriptors */
        gpu_task task;
        row_keys window[2];
        row_pair rows;
        float s[SM90_SLOT_KEYS / 2], o[HEAD_DIM / 2];
        uint32_t p[SM90_SLOT_KEYS / 4];

        DEVICE static void release(uint64_t *free)
        {
            if (threadIdx.x % 32 == 0) mbarrier_arrive(free);
        }

        DEVICE void turn_wait() { named_barrier_sync(BARRIER_TURN + wg, 128 * N_MATH); }
        DEVICE void turn_pass() { named_barrier_arrive(BARRIER_TURN + 1 - wg, 128 * N_MATH); }

        /* S = Q K^T: 16 of head_dim a time, 32 bytes further in the swizzled row. */
        template <int N_KEYS> DEVICE void score(float *s)
        {
            mbarrier_wait(&smem.slot_full[slot.i], slot.phase);
            if constexpr (HAS_LINES) fence_proxy_async();              /* gathered keys are ordinary writes */
            const uint64_t k_tile = wgmma_descriptor(smem.slots[slot.i], 0);
            wgmma_fence();
#pragma unroll
            for (int d = 0; d < HEAD_DIM; d += 16) {
                const uint64_t at = (d / COLUMNS * BLOCK_BYTES + d % COLUMNS * (int)sizeof(T)) >> 4;
                wgmma_ss<N_KEYS, T>(s, q_tile + at, k_tile + at, d > 0);
            }
            wgmma_commit();
        }

        /* O (+)= P V, 16 keys a time; slot v holds V of step j of a task. */
        template <int N_KEYS, bool IS_FIRST> DEVICE void value(const ring<N_SLOTS> &v, const gpu_task &of, int32_t j)
        {
            mbarrier_wait(&smem.slot_full[v.i], v.phase);
            if constexpr (HAS_LINES) fence_proxy_async();
            if (launch.page_shift >= 0 && (IS_FIRST || j > of.n_window_slots)) clear_strangers(v, of, j);
            const uint64_t v_tile = wgmma_descriptor(smem.slots[v.i], BLOCK_BYTES);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < N_KEYS; k += 16) {
                const uint64_t at = k * COLUMNS * (int)sizeof(T) >> 4;
                wgmma_rs<HEAD_DIM, T>(o, p + k / 4, v_tile + at, !IS_FIRST || k > 0);
            }
            wgmma_commit();
        }

        /* A page may hold anything behind the sequence's last key, and weight 0 times NaN is NaN: zero those rows of V.  Only the
         * diagonal and a slot of sinks reach that far.  (Without pages the tensor map ends there.) */
        DEVICE void clear_strangers(const ring<N_SLOTS> &v, const gpu_task &of, int32_t j)
        {
            const int32_t k_begin = j == 0 ? of.k_top : gpu_slot_begin(&launch.grid, &of, j);
            const int32_t n_keys = j == 0 ? launch.grid.n_positions : SM90_SLOT_KEYS;
            const int32_t n_ours = max_i32(0, launch.seqs[of.seq].q_end - k_begin);
            if (n_ours >= n_keys) return;
            for (int32_t i = n_ours * 8 + threadIdx.x % 128; i < n_keys * 8; i += 128) {
                for (int block = 0; block < N_BLOCKS; block++) {
                    *(uint4 *)(smem.slots[v.i] + block * BLOCK_BYTES + i * 16) = make_uint4(0, 0, 0, 0);
                }
            }
            fence_proxy_async();
            named_barrier_sync(BARRIER_TURN + N_MATH + wg, 128);
        }

        /* ptxas moves a wait up past arithmetic that does not need its result, and so ran the exponentials after the value
         * product instead of beside it.  A branch that needs all of them, never taken (a sum of weights is not negative), keeps
         * the order; tests/gpu/check-sass.sh looks at it. */
        DEVICE void stay_before_wait() const
        {
            if (rows.sum[0] + rows.sum[1] < 0.0f) asm volatile("nanosleep.u32 0;");
        }

        /* The step in the middle of a tile: scores of slot j beside the values of the step before, which had N_BEFORE keys.  Returns
         * is_last, which of lines the slot itself says. */
        template <int N_BEFORE, bool IS_FIRST> DEVICE bool step(int32_t j, bool is_last)
        {
            ring<N_SLOTS> v = slot;
            v.advance();
            turn_wait();
            score<SM90_SLOT_KEYS>(s);
            value<N_BEFORE, IS_FIRST>(v, task, j - 1);
            turn_pass();
            wgmma_wait<1>(s);
            line_view view;
            if constexpr (HAS_LINES) {
                view = line_view_of(smem.lines.slots[slot.i], wg);
                is_last = view.is_last;
            }
            release(&smem.slot_free[slot.i]);
            if (is_last) release(&smem.q_free[q_buffer.i]);
            if constexpr (HAS_LINES) {
                hide_unseen(s, view, window);
            } else if (j > task.n_full_slots) {
                const bool is_window = j <= task.n_window_slots;
                const row_keys keys[2] = { is_window ? window[0] : gpu_sink_keys(&task, window[0].q_pos),
                                           is_window ? window[1] : gpu_sink_keys(&task, window[1].q_pos) };
                mask_slot<SM90_SLOT_KEYS>(s, keys, gpu_slot_begin(&launch.grid, &task, j));
            }
            float rescale[2];
            softmax_step<SM90_SLOT_KEYS>(s, rows, launch.scale_log2, rescale);
            stay_before_wait();
            wgmma_wait<0>(o);
            release(&smem.slot_free[v.i]);
            pack_weights<SM90_SLOT_KEYS, T>(p, s);
            if (needs_rescale(rescale)) rescale_rows<HEAD_DIM>(o, rescale);
            slot = v;
            slot.advance();
            return is_last;
        }

        /* From one tile to the next: the narrow scores of `next` beside the last values of this one. */
        template <int N_BEFORE, bool IS_FIRST> DEVICE void step_to(const gpu_task &next)
        {
            ring<N_SLOTS> v = slot;
            v.advance();
            const gpu_task last = task;
            const row_pair last_rows = rows;
            float narrow[NARROW_KEYS / 2];
            begin_tile(next);
            turn_wait();
            score<NARROW_KEYS>(narrow);
            value<N_BEFORE, IS_FIRST>(v, last, last.n_window_slots + last.n_sink_slots);
            turn_pass();
            wgmma_wait<1>(narrow);
            release(&smem.slot_free[slot.i]);
            narrow_softmax(narrow);
            stay_before_wait();
            wgmma_wait<0>(o);
            release(&smem.slot_free[v.i]);
            pack_weights<NARROW_KEYS, T>(p, narrow);
            finish_rows<HEAD_DIM, T>(launch, last, last_rows, o, first_row());
            slot = v;
            slot.advance();
        }

        template <int N_BEFORE, bool IS_FIRST> DEVICE void last_step()
        {
            value<N_BEFORE, IS_FIRST>(slot, task, task.n_window_slots + task.n_sink_slots);
            wgmma_wait<0>(o);
            finish_rows<HEAD_DIM, T>(launch, task, rows, o, first_row());
        }

        DEVICE void narrow_softmax(float (&narrow)[NARROW_KEYS / 2])
        {
            float rescale[2];
            if (task.n_window_slots + task.n_sink_slots == 0) release(&smem.q_free[q_buffer.i]);
            mask_narrow<NARROW_KEYS>(narrow, window, task.k_top, launch.grid.n_positions, task.narrow_sinks);
            if constexpr (HAS_LINES) {                         /* the other block's keys are in halves of their own */
#pragma unroll
                for (int i = 0; i < NARROW_KEYS / 4; i++) {
                    if (wg == 1) narrow[i] = -CUDART_INF_F;
                }
            }
            softmax_step<NARROW_KEYS>(narrow, rows, launch.scale_log2, rescale);
        }

        DEVICE int32_t first_row() const { return 64 * wg + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }

        DEVICE void begin_tile(const gpu_task &next)
        {
            task = next;
            q_tile = wgmma_descriptor(smem.q[q_buffer.i] + 64 * wg * COLUMNS * sizeof(T), 0);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int32_t q_pos = task.t_begin + ((first_row() + 8 * r) >> launch.grid.head_shift);
                if constexpr (HAS_LINES) window[r] = line_row_keys(smem.lines.windows[q_buffer.i], q_pos);
                else window[r] = gpu_window_keys(&launch.grid, &launch.seqs[task.seq], &task, q_pos);
                rows.max[r] = -CUDART_INF_F;
                rows.sum[r] = 0.0f;
            }
        }

        /* The task in the Q buffer, once Q is there. */
        DEVICE gpu_task wait_task()
        {
            mbarrier_wait(&smem.q_full[q_buffer.i], q_buffer.phase);
            const gpu_task next = smem.tasks[q_buffer.i];
            __syncwarp();                              /* all lanes have read before lane 0 gives the buffer back */
            return next;
        }

        DEVICE void run()
        {
            if (wg == 1) named_barrier_arrive(BARRIER_TURN, 128 * N_MATH);     /* warpgroup 0 begins */
            const gpu_task first = wait_task();
            if (first.t_begin < 0) return;
            {
                float narrow[NARROW_KEYS / 2];
                begin_tile(first);
                score<NARROW_KEYS>(narrow);
                wgmma_wait<0>(narrow);
                release(&smem.slot_free[slot.i]);
                slot.advance();
                narrow_softmax(narrow);
                pack_weights<NARROW_KEYS, T>(p, narrow);
            }
            if constexpr (HAS_LINES) walk_lines();
            else walk_slots();
        }

        DEVICE void walk_slots()
        {
            for (;;) {
                const int32_t n_slots = task.n_window_slots + task.n_sink_slots;
                if (n_slots > 0) step<NARROW_KEYS, true>(1, n_slots == 1);
                for (int32_t j = 2; j <= n_slots; j++) step<SM90_SLOT_KEYS, false>(j, j == n_slots);
                q_buffer.advance();
                const gpu_task next = wait_task();
                if (next.t_begin < 0) break;
                if (n_slots > 0) step_to<SM90_SLOT_KEYS, false>(next);
                else step_to<NARROW_KEYS, true>(next);
            }
            if (task.n_window_slots + task.n_sink_slots > 0) last_step<SM90_SLOT_KEYS, false>();
            else last_step<NARROW_KEYS, true>();
        }

        /* A tile of lines has one wide slot at least. */
        DEVICE void walk_lines()
        {
            for (;;) {
                bool is_last = step<NARROW_KEYS, true>(1, false);
                while (!is_last) is_last = step<SM90_SLOT_KEYS, false>(2, false);
                q_buffer.advance();
                const gpu_task next = wait_task();
                if (next.t_begin < 0) break;
                step_to<SM90_SLOT_KEYS, false>(next);
            }
            last_step<SM90_SLOT_KEYS, false>();
        }
    };
};

template <typename T, int HEAD_DIM, int NARROW_KEYS, bool HAS_LINES>
__global__ void __launch_bounds__(N_THREADS, 1) attn_sm90(const __grid_constant__ sm90_launch launch)
{
    using kernel = sm90_kernel<T, HEAD_DIM, NARROW_KEYS, HAS_LINES>;
    extern __shared__ unsigned char smem_bytes[];
    typename kernel::smem_map &smem = *(typename kernel::smem_map *)(smem_bytes + (-smem_address(smem_bytes) & 1023));
    if (threadIdx.x == 0) {
        for (int i = 0; i < N_Q_BUFFERS; i++) {
            mbarrier_init(&smem.q_full[i], 1);
            mbarrier_init(&smem.q_free[i], N_MATH_WARPS);
        }
        for (int i = 0; i < kernel::N_SLOTS; i++) {
            mbarrier_init(&smem.slot_full[i], HAS_LINES ? 1 + LINE_PRODUCERS : 1);
            mbarrier_init(&smem.slot_free[i], N_MATH_WARPS);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    const int32_t wg = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    if (wg == N_MATH) {
        regs_shrink<HAS_LINES ? REGS_LINE_PRODUCER : REGS_PRODUCER>();
        if constexpr (HAS_LINES) {
            line_producer<kernel> producer(launch, smem);
            producer.run();
        } else if (threadIdx.x / 32 == 4 * N_MATH) {
            typename kernel::producer producer{ launch, smem };
            producer.run();
        }
    } else {
        regs_grow<HAS_LINES ? REGS_LINE_MATH : REGS_MATH>();
        typename kernel::math math{ launch.common, smem, wg };
        math.run();
    }
}

/* ---------------------------------------------------------------- host */

template <typename T, int HEAD_DIM, int NARROW_KEYS, bool HAS_LINES = false>
static tmx_status sm90_enqueue(const sm90_launch *launch, int32_t n_sms, cudaStream_t stream, tmx_error *err)
{
    constexpr size_t n_bytes = sm90_kernel<T, HEAD_DIM, NARROW_KEYS, HAS_LINES>::SMEM_BYTES;
    CUDA_TRY(cudaMemsetAsync(launch->common.next_task, 0, sizeof(int32_t), stream), err);
    TRY(launch_kernel(HAS_LINES ? "attn_sm90 over lines" : "attn_sm90", attn_sm90<T, HEAD_DIM, NARROW_KEYS, HAS_LINES>,
                      min_i32(n_sms, launch->common.n_tasks), N_THREADS, n_bytes, stream, err, *launch));
    return merge_splits<T, HEAD_DIM>(&launch->common, stream, err);
}

template <typename T, int HEAD_DIM>
static tmx_status sm90_enqueue_any(const sm90_launch *launch, int32_t n_sms, cudaStream_t stream, tmx_error *err)
{
    if (launch->common.grid.narrow_keys == SM90_NARROW_KEYS) {
        return sm90_enqueue<T, HEAD_DIM, SM90_NARROW_KEYS>(launch, n_sms, stream, err);
    }
    if (launch->common.heads != NULL) return sm90_enqueue<T, HEAD_DIM, SM90_SLOT_KEYS, true>(launch, n_sms, stream, err);
    return sm90_enqueue<T, HEAD_DIM, SM90_SLOT_KEYS>(launch, n_sms, stream, err);
}

/* One source file each, so that they compile side by side. */
typedef tmx_status sm90_enqueue_fn(const sm90_launch *launch, int32_t n_sms, cudaStream_t stream, tmx_error *err);
sm90_enqueue_fn sm90_enqueue_bf16_d64, sm90_enqueue_bf16_d128, sm90_enqueue_f16_d64, sm90_enqueue_f16_d128;

#endif
