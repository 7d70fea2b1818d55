/* gpu_row_product.cu - the product for few rows, and the arg-max of its result.
 *
 *   y[r][o] (+)= sum over i of x[r][i] w[o][i]        x f32, w bf16, sums f32, r < 8
 *
 * One block = OUTS outputs, all rows.  Its threads take turns at pieces of 8 inputs; a piece of x serves OUTS weights, a piece
 * of w all rows; then lanes and warps are summed in a fixed order, the same for every n_rows.
 *
 * Floor: 2 n_out n_in bytes; 8B's LM head (128256 x 4096) 1.05 GB, 0.35 ms at an H100's 3.0 TB/s.  In flight: a thread has
 * STEPS OUTS 16 = 128 bytes, an SM with 5 blocks and more 80 KiB, where 30 KiB cover the latency. */
#include "ops/cuda/gpu_device.cuh"

enum { OUTS = 4, STEPS = 2, PRODUCT_THREADS = 128, PRODUCT_WARPS = PRODUCT_THREADS / 32 };

/* Sums x[0..N) over the lanes; lane l gets the sum of x[l * N / 32].  Every value is added in the same order, for any N: lanes
 * 16 apart, 8 apart, ... */
template <int N> DEVICE float sum_lanes(float (&x)[N])
{
    const int32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int mask = 16, n = N; mask > 0; mask /= 2) {
        const bool is_upper = lane & mask;
        if (n > 1) {
            n /= 2;
#pragma unroll
            for (int i = 0; i < n; i++) {
                const float sent = is_upper ? x[i] : x[i + n], kept = is_upper ? x[i + n] : x[i];
                x[i] = kept + __shfl_xor_sync(0xffffffff, sent, mask);
            }
        } else {
            x[0] += __shfl_xor_sync(0xffffffff, x[0], mask);
        }
    }
    return x[0];
}

/* sums[o * N_ROWS + r] of this thread -> y. */
template <int N_ROWS> DEVICE void finish(float (&sums)[OUTS * N_ROWS], int32_t n_rows, int32_t n_out, float *y, bool is_added)
{
    constexpr int N = OUTS * N_ROWS;
    __shared__ float of_warp[PRODUCT_WARPS][N];
    const float sum = sum_lanes<N>(sums);
    const int32_t lane = threadIdx.x % 32;
    if (lane % (32 / N) == 0) of_warp[threadIdx.x / 32][lane / (32 / N)] = sum;
    __syncthreads();
    const int32_t i = threadIdx.x, out = blockIdx.x * OUTS + i / N_ROWS, row = i % N_ROWS;
    if (i >= N || out >= n_out || row >= n_rows) return;
    float total = of_warp[0][i];
#pragma unroll
    for (int w = 1; w < PRODUCT_WARPS; w++) total += of_warp[w][i];
    float *at = y + (size_t)row * n_out + out;
    *at = is_added ? *at + total : total;
}

/* N_ROWS: n_rows rounded up; rows that are not there repeat the last. */
template <int N_ROWS>
__global__ void __launch_bounds__(PRODUCT_THREADS, N_ROWS <= 2 ? 8 : 4)
row_product_kernel(const uint4 *w, const float *x, int32_t n_rows, int32_t n_out, int32_t n_in, float *y, bool is_added)
{
    const int32_t n_pieces = n_in / 8;
    float sums[OUTS * N_ROWS];
    const uint4 *w_rows[OUTS];
#pragma unroll
    for (int i = 0; i < OUTS * N_ROWS; i++) sums[i] = 0.0f;
#pragma unroll
    for (int o = 0; o < OUTS; o++) w_rows[o] = w + (size_t)min_i32(blockIdx.x * OUTS + o, n_out - 1) * n_pieces;
    for (int32_t first = threadIdx.x; first < n_pieces; first += STEPS * PRODUCT_THREADS) {
        uint4 packed[STEPS][OUTS];
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            const int32_t piece = first + s * PRODUCT_THREADS;
#pragma unroll
            for (int o = 0; o < OUTS; o++) {
                packed[s][o] = make_uint4(0, 0, 0, 0);
                if (piece < n_pieces) packed[s][o] = load_once(w_rows[o] + piece);
            }
        }
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            const int32_t piece = first + s * PRODUCT_THREADS;
            if (piece >= n_pieces) break;
#pragma unroll
            for (int r = 0; r < N_ROWS; r++) {
                float x_piece[8];
                load_piece(x_piece, x + (size_t)min_i32(r, n_rows - 1) * n_in + 8 * (size_t)piece);
#pragma unroll
                for (int o = 0; o < OUTS; o++) {
                    float weights[8];
                    unpack(weights, packed[s][o]);
#pragma unroll
                    for (int j = 0; j < 8; j++) sums[o * N_ROWS + r] = fmaf(x_piece[j], weights[j], sums[o * N_ROWS + r]);
                }
            }
        }
    }
    finish<N_ROWS>(sums, n_rows, n_out, y, is_added);
}

/* Rows of any length and alignment: a grid of outputs and rows. */
__global__ void row_product_any_kernel(const tmx_bf16 *w, const float *x, int32_t n_out, int32_t n_in, float *y, bool is_added)
{
    const float *row = x + (size_t)blockIdx.y * n_in;
    float sums[OUTS] = { };
#pragma unroll
    for (int o = 0; o < OUTS; o++) {
        const tmx_bf16 *w_row = w + (size_t)min_i32(blockIdx.x * OUTS + o, n_out - 1) * n_in;
        for (int32_t i = threadIdx.x; i < n_in; i += PRODUCT_THREADS) sums[o] = fmaf(row[i], bf16_low(w_row[i]), sums[o]);
    }
    finish<1>(sums, 1, n_out, y + (size_t)blockIdx.y * n_out, is_added);
}

extern "C" void gpu_row_product(gpu *g, const gpu_weight *weight, const float *x, int32_t n_rows, float *y, bool is_added)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    const int32_t n_out = weight->n_out, n_in = weight->n_in, n_blocks = divide_up(n_out, OUTS);
    if (n_in % 8 != 0 || !is_aligned16(weight->data) || !is_aligned16(x)) {
        row_product_any_kernel<<<dim3(n_blocks, n_rows), PRODUCT_THREADS, 0, g->stream>>>((const tmx_bf16 *)weight->data, x, n_out,
                                                                                          n_in, y, is_added);
    } else {
        const auto kernel = n_rows == 1 ? row_product_kernel<1> : n_rows == 2 ? row_product_kernel<2>
            : n_rows <= 4 ? row_product_kernel<4> : row_product_kernel<8>;
        kernel<<<n_blocks, PRODUCT_THREADS, 0, g->stream>>>((const uint4 *)weight->data, x, n_rows, n_out, n_in, y, is_added);
    }
    gpu_keep_launch(g, "row product");
}

/* ---------------------------------------------------------------- arg-max */

enum { ARGMAX_THREADS = 256 };

/* value, bits of the index; NaN never wins. */
DEVICE float2 better(float2 a, float2 b)
{
    const bool is_b = b.x > a.x || (b.x == a.x && __float_as_int(b.y) < __float_as_int(a.y));
    return is_b ? b : a;
}

/* The best of the block, in thread 0. */
DEVICE float2 best_of_block(float2 best)
{
    __shared__ float2 of_warp[ARGMAX_THREADS / 32];
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        best = better(best, make_float2(__shfl_xor_sync(0xffffffff, best.x, mask), __shfl_xor_sync(0xffffffff, best.y, mask)));
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    for (int32_t w = 0; w < ARGMAX_THREADS / 32; w++) best = better(best, of_warp[w]);
    return best;
}

__global__ void argmax_blocks_kernel(const float *logits, int32_t n, float2 *best_of_blocks)
{
    float2 best = make_float2(-CUDART_INF_F, __int_as_float(0));
    for (int32_t i = blockIdx.x * ARGMAX_THREADS + threadIdx.x; i < n; i += ARGMAX_BLOCKS * ARGMAX_THREADS) {
        if (logits[i] > best.x) best = make_float2(logits[i], __int_as_float(i));
    }
    best = best_of_block(best);
    if (threadIdx.x == 0) best_of_blocks[blockIdx.x] = best;
}

__global__ void argmax_kernel(const float2 *best_of_blocks, int32_t *token)
{
    const float2 best = best_of_block(best_of_blocks[threadIdx.x % ARGMAX_BLOCKS]);
    if (threadIdx.x == 0) *token = __float_as_int(best.y);
}

extern "C" void gpu_argmax(gpu *g, const float *logits, int32_t n, int32_t *token)
{
    if (n <= 0 || !gpu_is_ready(g)) return;
    argmax_blocks_kernel<<<ARGMAX_BLOCKS, ARGMAX_THREADS, 0, g->stream>>>(logits, n, g->best);
    argmax_kernel<<<1, ARGMAX_THREADS, 0, g->stream>>>(g->best, token);
    gpu_keep_launch(g, "argmax");
}
