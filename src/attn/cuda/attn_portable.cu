/* attn_portable.cu - prefill attention for any card since sm_80: mma.sync, cp.async.  One CTA = one task (gpu_schedule.h).
 *
 *   out[row] = sum over visible k of 2^(c (s_k - m)) V[k] / sum of the same weights,   s = q . K[k],  c = scale log2(e)
 *
 * 4 warps x 16 rows; for each step of 64 keys:
 *   load     K of the next step comes while P V runs, V of this one while Q K^T runs: two buffers, cp.async
 *   score    S = Q K^T   16 x 64 f32 a warp      mask, softmax: attn_rows.cuh      value   O += P V
 * Shared memory: 3 x 64 rows x (head_dim + 8) x 2 bytes (the 8 spread rows over the banks): 51 KiB at head_dim 128, 99 at 256, which
 * is all that a block may have on sm_86 and sm_89. */
#include "attn/cuda/attn_merge.cuh"
#include "attn/cuda/attn_rows.cuh"
#include "base/mma_ptx.cuh"

enum { N_WARPS = PORTABLE_TILE_ROWS / 16, BANK_PAD = 8 };

template <typename T, int HEAD_DIM> struct portable_kernel {
    static constexpr int ROW = HEAD_DIM + BANK_PAD, CHUNKS = HEAD_DIM / 8;
    struct alignas(16) smem_map {
        T q[PORTABLE_TILE_ROWS][ROW], k[PORTABLE_SLOT_KEYS][ROW], v[PORTABLE_SLOT_KEYS][ROW];
    };

    const gpu_launch &launch;
    smem_map &smem;
    gpu_task task;

    /* The key in row i of step j; -1: none. */
    DEVICE int32_t key_of(int32_t j, int32_t i) const
    {
        const int32_t p = launch.grid.n_positions;
        int32_t k = j > 0 ? gpu_slot_begin(&launch.grid, &task, j) + i : task.k_top + i;
        if (j == 0 && i >= p) k = i - p < task.narrow_sinks ? i - p : -1;
        return k < launch.seqs[task.seq].q_end ? k : -1;
    }

    DEVICE void load_keys(T (*to)[ROW], int32_t j, const void *data, size_t pos_stride, size_t head_stride,
                          size_t page_stride) const
    {
        const T *head = (const T *)data + task.kv_head * head_stride;
        for (int32_t c = threadIdx.x; c < PORTABLE_SLOT_KEYS * CHUNKS; c += 32 * N_WARPS) {
            const int32_t i = c / CHUNKS, k = key_of(j, i), shift = launch.page_shift;
            const T *from = head;
            if (k >= 0 && shift < 0) from += k * pos_stride;
            else if (k >= 0) {
                from += launch.buffers[task.seq].pages[k >> shift] * page_stride + (k & ((1 << shift) - 1)) * pos_stride;
            }
            copy_async(&to[i][c % CHUNKS * 8], from + c % CHUNKS * 8, k >= 0);
        }
        copy_commit();
    }

    DEVICE void load_k(int32_t j) const
    {
        load_keys(smem.k, j, launch.buffers[task.seq].k, launch.k_pos_stride, launch.k_head_stride, launch.k_page_stride);
    }

    DEVICE void load_v(int32_t j) const
    {
        load_keys(smem.v, j, launch.buffers[task.seq].v, launch.v_pos_stride, launch.v_head_stride, launch.v_page_stride);
    }

    DEVICE void load_q() const
    {
        const gpu_seq &seq = launch.seqs[task.seq];
        for (int32_t c = threadIdx.x; c < PORTABLE_TILE_ROWS * CHUNKS; c += 32 * N_WARPS) {
            const int32_t row = c / CHUNKS, head = row & ((1 << launch.grid.head_shift) - 1);
            const int32_t q_pos = task.t_begin + (row >> launch.grid.head_shift);
            const bool is_there = head < task.n_heads && q_pos >= seq.q_begin && q_pos < seq.q_end;
            const T *from = (const T *)launch.buffers[task.seq].q;
            if (is_there) from += (q_pos - seq.q_begin) * launch.q_pos_stride + (task.first_head + head) * launch.q_head_stride;
            copy_async(&smem.q[row][c % CHUNKS * 8], from + c % CHUNKS * 8, is_there);
        }
        copy_commit();
    }

    DEVICE void score(float *s) const
    {
        const int32_t lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16;
#pragma unroll
        for (int i = 0; i < PORTABLE_SLOT_KEYS / 2; i++) s[i] = 0.0f;
#pragma unroll
        for (int d = 0; d < HEAD_DIM; d += 16) {
            uint32_t q[4], k[4];
            load_matrices(q, &smem.q[first_row + lane % 16][d + lane / 16 * 8]);
#pragma unroll
            for (int n = 0; n < PORTABLE_SLOT_KEYS; n += 16) {
                load_matrices(k, &smem.k[n + lane % 8 + lane / 16 * 8][d + lane / 8 % 2 * 8]);
                multiply_add(s + n / 2, q, k[0], k[1], T());
                multiply_add(s + n / 2 + 4, q, k[2], k[3], T());
            }
        }
    }

    DEVICE void value(float *o, const uint32_t *p) const
    {
        const int32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < PORTABLE_SLOT_KEYS; k += 16) {
#pragma unroll
            for (int d = 0; d < HEAD_DIM; d += 16) {
                uint32_t v[4];
                load_matrices_transposed(v, &smem.v[k + lane % 16][d + lane / 16 * 8]);
                multiply_add(o + d / 2, p + k / 4, v[0], v[1], T());
                multiply_add(o + d / 2 + 4, p + k / 4, v[2], v[3], T());
            }
        }
    }

    DEVICE void run()
    {
        const int32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
        const gpu_seq &seq = launch.seqs[task.seq];
        row_pair rows;
        row_keys window[2];
        float o[HEAD_DIM / 2], s[PORTABLE_SLOT_KEYS / 2], rescale[2];
        uint32_t p[PORTABLE_SLOT_KEYS / 4];
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 2; i++) o[i] = 0.0f;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int32_t q_pos = task.t_begin + ((row + 8 * r) >> launch.grid.head_shift);
            window[r] = gpu_window_keys(&launch.grid, &seq, &task, q_pos);
            rows.max[r] = -CUDART_INF_F;
            rows.sum[r] = 0.0f;
        }
        load_q();
        load_k(0);
        const int32_t n_slots = task.n_window_slots + task.n_sink_slots;
        for (int32_t j = 0; j <= n_slots; j++) {
            load_v(j);
            copy_wait<1>();
            __syncthreads();
            score(s);
            if (j == 0) {
                mask_narrow<PORTABLE_SLOT_KEYS>(s, window, task.k_top, launch.grid.n_positions, task.narrow_sinks);
            } else if (j > task.n_full_slots) {
                const bool is_window = j <= task.n_window_slots;
                const row_keys keys[2] = { is_window ? window[0] : gpu_sink_keys(&task, window[0].q_pos),
                                           is_window ? window[1] : gpu_sink_keys(&task, window[1].q_pos) };
                mask_slot<PORTABLE_SLOT_KEYS>(s, keys, gpu_slot_begin(&launch.grid, &task, j));
            }
            softmax_step<PORTABLE_SLOT_KEYS>(s, rows, launch.scale_log2, rescale);
            pack_weights<PORTABLE_SLOT_KEYS, T>(p, s);
            if (needs_rescale(rescale)) rescale_rows<HEAD_DIM>(o, rescale);
            __syncthreads();                           /* everyone is done with K */
            if (j < n_slots) load_k(j + 1);
            else copy_commit();
            copy_wait<1>();
            __syncthreads();
            value(o, p);
            __syncthreads();                           /* and with V */
        }
        finish_rows<HEAD_DIM, T>(launch, task, rows, o, row);
    }
};

template <typename T, int HEAD_DIM>
__global__ void __launch_bounds__(32 * N_WARPS, 2) attn_portable(const __grid_constant__ gpu_launch launch)
{
    extern __shared__ uint4 smem_bytes[];
    using kernel = portable_kernel<T, HEAD_DIM>;
    gpu_task task;
    if (!gpu_task_get(&launch.grid, launch.seqs, launch.n_seqs, blockIdx.x, &task)) return;
    kernel work{ launch, *(typename kernel::smem_map *)smem_bytes, task };
    work.run();
}

template <typename T, int HEAD_DIM>
static tmx_status enqueue(const gpu_launch *launch, cudaStream_t stream, tmx_error *err)
{
    constexpr size_t n_bytes = sizeof(typename portable_kernel<T, HEAD_DIM>::smem_map);
    TRY(launch_kernel("attn_portable", attn_portable<T, HEAD_DIM>, launch->n_tasks, 32 * N_WARPS, n_bytes, stream, err, *launch));
    return merge_splits<T, HEAD_DIM>(launch, stream, err);
}

template <typename T> static tmx_status enqueue_for(const gpu_launch *launch, cudaStream_t stream, tmx_error *err)
{
    switch (launch->head_dim) {
    case 64: return enqueue<T, 64>(launch, stream, err);
    case 96: return enqueue<T, 96>(launch, stream, err);
    case 128: return enqueue<T, 128>(launch, stream, err);
    default: return enqueue<T, 256>(launch, stream, err);
    }
}

extern "C" tmx_status cuda_run_portable(const gpu_launch *launch, void *stream, tmx_error *err)
{
    return launch->is_f16 ? enqueue_for<__half>(launch, (cudaStream_t)stream, err)
                          : enqueue_for<__nv_bfloat16>(launch, (cudaStream_t)stream, err);
}
