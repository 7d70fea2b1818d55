/* attn_rows.cuh - the part of attention that is arithmetic on rows, shared by all CUDA kernels: mask, online softmax, the
 * end.  A thread holds two rows of a 16-row fragment, as mma and wgmma lay out their sums: lane l has rows l / 4 (values
 * 4 i, 4 i + 1) and l / 4 + 8 (values 4 i + 2, 4 i + 3), columns 8 i + 2 (l % 4) + {0, 1}.  Four lanes (a quad) share a row.
 *
 *   m' = max(m, scores);  p = 2^(c (s - m'));  sum' = sum 2^(c (m - m')) + p;  O' = O 2^(c (m - m')) + p V;  c = scale log2(e)
 *
 * m' may stay at m while no score exceeds it by more than 2^8 in weight: the quotient is the same, weights up to 256 lose nothing
 * in bf16 or f16, and O hardly ever needs its rescale.  The choice is each row's own, so that bits never depend on neighbours.
 * A row that has seen nothing yet has m = -infinity; 0 stands for it in the differences, so no NaN arises. */
#ifndef TMX_ATTN_ATTN_ROWS_CUH
#define TMX_ATTN_ATTN_ROWS_CUH

#include "attn/cuda/attn_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

#define LAZY_LOG2 8.0f             /* weights stay below 256: far from f16's 65504, also summed over 16 keys */

struct row_pair {
    float max[2], sum[2];          /* sum: this lane's columns only, until the end */
};

DEVICE float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Lane's own column of block 0 in a fragment. */
DEVICE int32_t lane_column() { return 2 * (int32_t)(threadIdx.x % 4); }

/* Hides the keys that a row does not see: column c of the fragment is key k_begin + c.  All of them lie before the tile, so
 * without sinks among them row_keys_has comes down to one comparison. */
template <int N_KEYS> DEVICE void mask_slot(float *s, const row_keys (&rows)[2], int32_t k_begin)
{
    const int32_t k = k_begin + lane_column();
    if (rows[0].sink_end == 0 && rows[1].sink_end == 0) {
        const int32_t hidden[2] = { rows[0].window_begin - k, rows[1].window_begin - k };
#pragma unroll
        for (int i = 0; i < N_KEYS / 2; i++) {
            if (i / 4 * 8 + i % 2 < hidden[i / 2 % 2]) s[i] = -CUDART_INF_F;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N_KEYS / 2; i++) {
        if (!row_keys_has(rows[i / 2 % 2], k + i / 4 * 8 + i % 2)) s[i] = -CUDART_INF_F;
    }
}

/* The same for the narrow step: n_diagonal columns from key k_top on, then n_sinks sinks from key 0 on, then nothing. */
template <int N_KEYS> DEVICE void mask_narrow(float *s, const row_keys (&rows)[2], int32_t k_top, int32_t n_diagonal,
                                              int32_t n_sinks)
{
#pragma unroll
    for (int i = 0; i < N_KEYS / 2; i++) {
        const int32_t column = lane_column() + i / 4 * 8 + i % 2;
        const bool is_seen = i / 4 * 8 < n_diagonal ? row_keys_has(rows[i / 2 % 2], k_top + column)
                                                    : column < n_diagonal + n_sinks;
        if (!is_seen) s[i] = -CUDART_INF_F;
    }
}

DEVICE float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

DEVICE float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

/* Scores -> weights in place; rescale is what O and the sum of earlier steps must be multiplied by. */
template <int N_KEYS> DEVICE void softmax_step(float *s, row_pair &rows, float scale_log2, float (&rescale)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float max = rows.max[r], max_odd = s[2 * r + 1];           /* two chains: half the latency */
#pragma unroll
        for (int i = 2 * r; i < N_KEYS / 2; i += 4) {
            max = fmaxf(max, s[i]);
            max_odd = fmaxf(max_odd, s[i + 1]);
        }
        max = quad_max(fmaxf(max, max_odd));
        if (!((max - rows.max[r]) * scale_log2 > LAZY_LOG2)) max = rows.max[r];
        const float shift = max == -CUDART_INF_F ? 0.0f : __fmul_rn(max, scale_log2);
        rescale[r] = exp2_fast(__fmul_rn(rows.max[r], scale_log2) - shift);        /* exactly 1 for an old maximum */
        rows.max[r] = max;
        float sum = rows.sum[r] * rescale[r];
#pragma unroll
        for (int i = 2 * r; i < N_KEYS / 2; i += 4) {
            s[i] = exp2_fast(fmaf(s[i], scale_log2, -shift));
            s[i + 1] = exp2_fast(fmaf(s[i + 1], scale_log2, -shift));
            sum += s[i] + s[i + 1];
        }
        rows.sum[r] = sum;
    }
}

DEVICE float log_sum_exp(float max, float sum, float scale_log2)
{
    return sum == 0.0f ? -CUDART_INF_F : __fmul_rn(fmaf(max, scale_log2, __log2f(sum)), CUDART_LN2_F);
}

DEVICE uint32_t pack_pair(float low, float high, __nv_bfloat16)
{
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

DEVICE uint32_t pack_pair(float low, float high, __half)
{
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

/* Weights -> the A operand of the next product: values 2 i, 2 i + 1 -> register i. */
template <int N_KEYS, typename T> DEVICE void pack_weights(uint32_t *p, const float *s)
{
#pragma unroll
    for (int i = 0; i < N_KEYS / 4; i++) p[i] = pack_pair(s[2 * i], s[2 * i + 1], T());
}

/* Uniform in a warp; multiplying by 1 changes no bit, so skipping it for 16 rows at once does not either. */
DEVICE bool needs_rescale(const float (&rescale)[2])
{
    return __any_sync(0xffffffff, rescale[0] != 1.0f || rescale[1] != 1.0f);
}

template <int HEAD_DIM> DEVICE void rescale_rows(float *o, const float (&rescale)[2])
{
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) o[i] *= rescale[i / 2 % 2];
}

/* Lane q of a quad holds pair q of blocks 0..3; afterwards it holds pairs 0..3 of block q: 8 values in a row. */
DEVICE void quad_transpose(uint32_t (&x)[4])
{
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffff, odd ? x[i] : x[i + 1], 1);
        if (odd) x[i] = got;
        else x[i + 1] = got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffff, high ? x[i] : x[i + 2], 2);
        if (high) x[i] = got;
        else x[i + 2] = got;
    }
}

/* Ends a tile: normalises and writes the thread's two rows, or leaves the unnormalised result of a split for the merge.
 * row: of the tile, the first of the two.  Every lane must come here, also for rows outside the chunk. */
template <int HEAD_DIM, typename T>
DEVICE void finish_rows(const gpu_launch &launch, const gpu_task &task, const row_pair &rows, float *o, int32_t row)
{
    const gpu_seq &seq = launch.seqs[task.seq];
    const gpu_buffers &buffers = launch.buffers[task.seq];
    const int32_t lane = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++, row += 8) {
        const float sum = quad_sum(rows.sum[r]);
        if (task.partial >= 0) {
            const size_t at = (size_t)task.partial * launch.tile_rows + row;
            float *partial = launch.partial_o + at * HEAD_DIM + lane_column();
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 8; i++) {
                *(float2 *)(partial + 8 * i) = make_float2(o[4 * i + 2 * r], o[4 * i + 2 * r + 1]);
            }
            if (lane == 0) ((float2 *)launch.partial_max_sum)[at] = make_float2(rows.max[r], sum);
            continue;
        }
        const int32_t head = row & ((1 << launch.grid.head_shift) - 1);
        const int32_t q_pos = task.t_begin + (row >> launch.grid.head_shift);
        const bool is_ours = head < task.n_heads && q_pos >= seq.q_begin && q_pos < seq.q_end;
        const size_t i_q = q_pos - seq.q_begin, i_head = task.first_head + head;
        const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
        T *out = (T *)buffers.out + i_q * launch.out_pos_stride + i_head * launch.out_head_stride;
#pragma unroll
        for (int block = 0; block < HEAD_DIM / 8; block += 4) {
            uint32_t x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {                  /* + 0 turns -0 into 0: hidden keys may decide that sign */
                const float *pair = o + 4 * (block + i) + 2 * r;
                x[i] = pack_pair(fmaf(pair[0], scale, 0.0f), fmaf(pair[1], scale, 0.0f), T());
            }
            quad_transpose(x);
            if (is_ours) *(uint4 *)(out + 8 * (block + lane)) = make_uint4(x[0], x[1], x[2], x[3]);
        }
        if (buffers.lse != NULL && is_ours && lane == 0) {
            buffers.lse[i_q * launch.grid.n_heads + i_head] = log_sum_exp(rows.max[r], sum, launch.scale_log2);
        }
    }
}

#endif
