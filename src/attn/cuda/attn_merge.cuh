/* attn_merge.cuh - puts the splits of the triangle's tail together.  One warp = one row of a tail tile.
 *
 *   out = sum over splits 2^(c (m_i - M)) O_i / sum over splits 2^(c (m_i - M)) sum_i,   M = max m_i,  in order of the splits
 *
 * Floor: reads every partial once, at most 16 splits x rows x head_dim x 4 bytes; 42 MB for 131072 tokens, 32 heads. */
#ifndef TMX_ATTN_ATTN_MERGE_CUH
#define TMX_ATTN_ATTN_MERGE_CUH

#include "attn/cuda/attn_rows.cuh"
#include "attn/cuda/cuda_status.cuh"

enum { MERGE_WARPS = 8 };

template <typename T, int HEAD_DIM> __global__ void attn_merge(const __grid_constant__ gpu_launch launch)
{
    constexpr int N_PAIRS = HEAD_DIM / 2, N_OWN = (N_PAIRS + 31) / 32;         /* of a lane: pairs lane, lane + 32, ... */
    const int32_t warp_index = blockIdx.x * MERGE_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    const int32_t row = warp_index % launch.tile_rows;
    int32_t unit = warp_index / launch.tile_rows, i = 0;           /* unit: a tail tile of a head tile */
    for (int32_t n; n = launch.seqs[i].n_tail_tiles * launch.grid.n_head_tiles, unit >= n; i++) unit -= n;
    const gpu_seq &seq = launch.seqs[i];
    const int32_t tile = unit % seq.n_tail_tiles, head_tile = unit / seq.n_tail_tiles;
    gpu_task task;
    gpu_task_set_heads(&task, &launch.grid, head_tile);
    const int32_t t_begin = (seq.first_tile + seq.n_tiles - seq.n_tail_tiles + tile) * launch.grid.n_positions;
    const int32_t head = row & ((1 << launch.grid.head_shift) - 1), q_pos = t_begin + (row >> launch.grid.head_shift);
    if (head >= task.n_heads || q_pos < seq.q_begin || q_pos >= seq.q_end) return;

    const int32_t n_splits = gpu_n_splits(&launch.grid, seq.split_slots, t_begin);
    const size_t first = (size_t)(seq.partials_begin + head_tile * seq.n_splits * seq.n_tail_tiles + tile);
    const size_t rows_between = (size_t)seq.n_tail_tiles * launch.tile_rows;
    const size_t at = first * launch.tile_rows + row;
    const float2 *max_sum = (const float2 *)launch.partial_max_sum + at;
    const float *o = launch.partial_o + at * HEAD_DIM;

    float max = -CUDART_INF_F, sum = 0.0f;
    float2 value[N_OWN];
#pragma unroll
    for (int i_own = 0; i_own < N_OWN; i_own++) value[i_own] = make_float2(0.0f, 0.0f);
    for (int32_t split = 0; split < n_splits; split++) max = fmaxf(max, max_sum[split * rows_between].x);
    const float shift = max == -CUDART_INF_F ? 0.0f : __fmul_rn(max, launch.scale_log2);
    for (int32_t split = 0; split < n_splits; split++) {
        const float2 of_split = max_sum[split * rows_between];
        const float weight = exp2_fast(__fmul_rn(of_split.x, launch.scale_log2) - shift);
        sum = fmaf(weight, of_split.y, sum);
#pragma unroll
        for (int i_own = 0; i_own < N_OWN; i_own++) {
            const int32_t pair = lane + 32 * i_own;
            if (pair >= N_PAIRS) break;
            const float2 x = *(const float2 *)(o + split * rows_between * HEAD_DIM + 2 * pair);
            value[i_own] = make_float2(fmaf(weight, x.x, value[i_own].x), fmaf(weight, x.y, value[i_own].y));
        }
    }
    const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
    const size_t i_q = q_pos - seq.q_begin, i_head = task.first_head + head;
    T *out = (T *)launch.buffers[i].out + i_q * launch.out_pos_stride + i_head * launch.out_head_stride;
#pragma unroll
    for (int i_own = 0; i_own < N_OWN; i_own++) {
        const int32_t pair = lane + 32 * i_own;
        if (pair >= N_PAIRS) break;
        *(uint32_t *)(out + 2 * pair) = pack_pair(fmaf(value[i_own].x, scale, 0.0f), fmaf(value[i_own].y, scale, 0.0f), T());
    }
    float *lse = launch.buffers[i].lse;
    if (lse != NULL && lane == 0) lse[i_q * launch.grid.n_heads + i_head] = log_sum_exp(max, sum, launch.scale_log2);
}

template <typename T, int HEAD_DIM> static tmx_status merge_splits(const gpu_launch *launch, cudaStream_t stream,
                                                                   tmx_error *err)
{
    int32_t n_tiles = 0;
    for (int32_t i = 0; i < launch->n_seqs; i++) n_tiles += launch->seqs[i].n_tail_tiles * launch->grid.n_head_tiles;
    if (n_tiles == 0) return TMX_OK;
    return launch_kernel("attn_merge", attn_merge<T, HEAD_DIM>, n_tiles * (launch->tile_rows / MERGE_WARPS), 32 * MERGE_WARPS, 0, stream, err,
                         *launch);
}

#endif
