/* gpu_row_product.cu - the product for few rows, and the arg-max of its result.
 *
 *   y[r][o] (+)= sum over i of x[r][i] w[o][i]        x f32, w bf16, sums f32, r < 8
 *
 * One block = N_OUTS outputs, all rows.  Its warps take turns at chunks of 256 inputs, of which a lane has 4 in each half: so a
 * warp's loads of x (16 bytes a lane) and of w (8) are both without gaps, and x costs half of what 8 neighbours a lane would.
 * Lanes and warps are summed in a fixed order, the same for every n_rows.
 *
 * Floor: 2 n_out n_in bytes; 8B's LM head (128256 x 4096) 1.05 GB, 0.35 ms at an H100's 3.0 TB/s.  In flight: 128 bytes a
 * thread, 48 KiB an SM with three blocks and more, where 20 to 30 KiB cover the latency. */
#include "ops/cuda/gpu_device.cuh"

enum {
    CHUNK = 256, PRODUCT_WARPS = 4, PRODUCT_THREADS = 32 * PRODUCT_WARPS,
    MANY_OUTS = 6000,              /* from here on there are enough blocks of 8 outputs for an even load: twice what runs at once */
};

/* 8 bytes that are read once. */
DEVICE uint2 load_once8(const void *p)
{
    uint2 x;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(p));
    return x;
}

/* Sums x[0..N) over the lanes, N <= 32; lane l gets the sum of x[l * N / 32].  Every value is added in the same order, for any
 * N: lanes 16 apart, 8 apart, ... */
template <int N, int MASK = 16> DEVICE float sum_lanes(const float (&x)[N])
{
    constexpr int N_LEFT = N > 1 ? N / 2 : 1;
    const bool is_upper = threadIdx.x & MASK;
    float sums[N_LEFT];
#pragma unroll
    for (int i = 0; i < N_LEFT; i++) {
        const float low = x[i], high = x[N > 1 ? i + N_LEFT : i];
        sums[i] = (is_upper ? high : low) + __shfl_xor_sync(0xffffffff, is_upper ? low : high, MASK);
    }
    if constexpr (MASK > 1) return sum_lanes<N_LEFT, MASK / 2>(sums);
    else return sums[0];
}

/* sums[o * N_ROWS + r] of this thread -> y. */
template <int N_OUTS, int N_ROWS>
DEVICE void finish(float (&sums)[N_OUTS * N_ROWS], int32_t n_rows, int32_t n_out, float *y, bool is_added)
{
    constexpr int N = N_OUTS * N_ROWS, AT_ONCE = N < 32 ? N : 32;
    __shared__ float of_warp[PRODUCT_WARPS][N];
    const int32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int first = 0; first < N; first += AT_ONCE) {
        float part[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) part[i] = sums[first + i];
        const float sum = sum_lanes<AT_ONCE>(part);
        if (lane % (32 / AT_ONCE) == 0) of_warp[threadIdx.x / 32][first + lane / (32 / AT_ONCE)] = sum;
    }
    __syncthreads();
    const int32_t i = threadIdx.x, out = blockIdx.x * N_OUTS + i / N_ROWS, row = i % N_ROWS;
    if (i >= N || out >= n_out || row >= n_rows) return;
    float total = of_warp[0][i];
#pragma unroll
    for (int w = 1; w < PRODUCT_WARPS; w++) total += of_warp[w][i];
    float *at = y + (size_t)row * n_out + out;
    *at = is_added ? *at + total : total;
}

/* Which of the weights stacked in w, and its x and y, for a grid of choices; chosen NULL: there is one. */
struct chosen_rows {
    const gpu_choice *chosen;
    size_t x_stride;
};

/* N_ROWS: n_rows rounded up; rows that are not there repeat the last.  n_in % 4 == 0. */
template <int N_OUTS, int N_ROWS>
__global__ void __launch_bounds__(PRODUCT_THREADS, N_ROWS <= 2 ? 8 : N_ROWS <= 4 ? 4 : 3)
row_product_kernel(const tmx_bf16 *w, const float *x, int32_t n_rows, int32_t n_out, int32_t n_in, float *y, bool is_added,
                   chosen_rows of)
{
    if (of.chosen != NULL) {
        w += (size_t)of.chosen[blockIdx.y].expert * n_out * n_in;
        x += blockIdx.y * of.x_stride;
        y += (size_t)blockIdx.y * n_out;
    }
    constexpr int N_STEPS = 8 / N_OUTS;                    /* chunks at once */
    float sums[N_OUTS * N_ROWS];
    const tmx_bf16 *w_rows[N_OUTS];
#pragma unroll
    for (int i = 0; i < N_OUTS * N_ROWS; i++) sums[i] = 0.0f;
#pragma unroll
    for (int o = 0; o < N_OUTS; o++) w_rows[o] = w + (size_t)min_i32(blockIdx.x * N_OUTS + o, n_out - 1) * n_in;
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int32_t first = warp * CHUNK + 4 * lane; first - 4 * lane < n_in; first += N_STEPS * PRODUCT_WARPS * CHUNK) {
        uint2 packed[2 * N_STEPS][N_OUTS];
#pragma unroll
        for (int h = 0; h < 2 * N_STEPS; h++) {            /* h: half of a chunk */
            const int32_t i = first + h / 2 * PRODUCT_WARPS * CHUNK + h % 2 * CHUNK / 2;
#pragma unroll
            for (int o = 0; o < N_OUTS; o++) {
                packed[h][o] = make_uint2(0, 0);
                if (i < n_in) packed[h][o] = load_once8(w_rows[o] + i);
            }
        }
#pragma unroll
        for (int h = 0; h < 2 * N_STEPS; h++) {
            const int32_t i = first + h / 2 * PRODUCT_WARPS * CHUNK + h % 2 * CHUNK / 2;
            if (i >= n_in) break;
            float weights[N_OUTS][4];
#pragma unroll
            for (int o = 0; o < N_OUTS; o++) {
                weights[o][0] = bf16_low(packed[h][o].x), weights[o][1] = bf16_high(packed[h][o].x);
                weights[o][2] = bf16_low(packed[h][o].y), weights[o][3] = bf16_high(packed[h][o].y);
            }
#pragma unroll
            for (int r = 0; r < N_ROWS; r++) {
                const float4 piece = *(const float4 *)(x + (size_t)min_i32(r, n_rows - 1) * n_in + i);
#pragma unroll
                for (int o = 0; o < N_OUTS; o++) {
                    float &sum = sums[o * N_ROWS + r];
                    sum = fmaf(piece.x, weights[o][0], sum), sum = fmaf(piece.y, weights[o][1], sum);
                    sum = fmaf(piece.z, weights[o][2], sum), sum = fmaf(piece.w, weights[o][3], sum);
                }
            }
        }
    }
    finish<N_OUTS, N_ROWS>(sums, n_rows, n_out, y, is_added);
}

/* Rows of any length and alignment: a grid of outputs and rows. */
__global__ void row_product_any_kernel(const tmx_bf16 *w, const float *x, int32_t n_out, int32_t n_in, float *y, bool is_added)
{
    const float *row = x + (size_t)blockIdx.y * n_in;
    const tmx_bf16 *w_row = w + (size_t)blockIdx.x * n_in;
    float sums[1] = { 0.0f };
    for (int32_t i = threadIdx.x; i < n_in; i += PRODUCT_THREADS) sums[0] = fmaf(row[i], bf16_low(w_row[i]), sums[0]);
    finish<1, 1>(sums, 1, n_out, y + (size_t)blockIdx.y * n_out, is_added);
}

template <int N_OUTS, int N_ROWS>
static void row_product(const gpu *g, const gpu_weight *weight, const float *x, int32_t n_rows, float *y, bool is_added)
{
    row_product_kernel<N_OUTS, N_ROWS><<<divide_up(weight->n_out, N_OUTS), PRODUCT_THREADS, 0, g->stream>>>(
        (const tmx_bf16 *)weight->data, x, n_rows, weight->n_out, weight->n_in, y, is_added, chosen_rows{ NULL, 0 });
}

extern "C" void gpu_row_product(gpu *g, const gpu_weight *weight, const float *x, int32_t n_rows, float *y, bool is_added)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    const int32_t n_out = weight->n_out, n_in = weight->n_in;
    if (n_in % 4 != 0 || !is_aligned16(weight->data) || !is_aligned16(x)) {
        row_product_any_kernel<<<dim3(n_out, n_rows), PRODUCT_THREADS, 0, g->stream>>>((const tmx_bf16 *)weight->data, x, n_out,
                                                                                       n_in, y, is_added);
    } else if (n_rows == 1) {
        row_product<4, 1>(g, weight, x, n_rows, y, is_added);
    } else if (n_rows == 2) {
        row_product<4, 2>(g, weight, x, n_rows, y, is_added);
    } else if (n_rows <= 4) {
        row_product<4, 4>(g, weight, x, n_rows, y, is_added);
    } else if (n_out < MANY_OUTS) {
        row_product<4, 8>(g, weight, x, n_rows, y, is_added);
    } else {
        row_product<8, 8>(g, weight, x, n_rows, y, is_added);
    }
    gpu_keep_launch(g, "row product");
}

extern "C" void gpu_chosen_product(gpu *g, const gpu_weight *weight, int32_t n_experts, const gpu_choice *chosen, int32_t n_used,
                                   const float *x, size_t x_stride, float *y)
{
    if (n_used <= 0 || !gpu_is_ready(g)) return;
    constexpr int N_OUTS = 4;
    const int32_t n_out = weight->n_out / n_experts;
    row_product_kernel<N_OUTS, 1><<<dim3(divide_up(n_out, N_OUTS), n_used), PRODUCT_THREADS, 0, g->stream>>>(
        (const tmx_bf16 *)weight->data, x, 1, n_out, weight->n_in, y, false, chosen_rows{ chosen, x_stride });
    gpu_keep_launch(g, "chosen product");
}
