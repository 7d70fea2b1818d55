/* gpu_probe_rows.cu - what stands between the products on the way back: derivatives of RMSNorm, SwiGLU, RoPE and the norms of heads,
 * roundings, copies.
 * Limited by memory, like gpu_rows.cu.
 *
 * Floors, bytes a row: rmsnorm_back 16 n_embd; swiglu_back 12 n_ff in bf16; heads_back 6 (8 with norms) n_all head_dim; narrow 6 n_embd. */
#include "ops/cuda/gpu_device.cuh"

extern "C" {
#include "probe/cuda/probe_ops_cuda.h"
}

enum { ROW_THREADS = 256 };

extern "C" void gpu_zero(gpu *g, void *data, size_t n_bytes)
{
    if (n_bytes > 0 && gpu_is_ready(g)) GPU_TRY(g, cudaMemsetAsync(data, 0, n_bytes, g->stream));
}

extern "C" void gpu_copy(gpu *g, void *to, const void *from, size_t n_bytes)
{
    if (n_bytes > 0 && gpu_is_ready(g)) GPU_TRY(g, cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, g->stream));
}

/* Blocks for n items, one a thread. */
static uint32_t blocks_for(size_t n) { return (uint32_t)((n + ROW_THREADS - 1) / ROW_THREADS); }
DEVICE size_t thread_item() { return blockIdx.x * (size_t)ROW_THREADS + threadIdx.x; }

__global__ void narrow_kernel(const float *x, size_t n_pieces, tmx_bf16 *y)
{
    const size_t i = thread_item();
    if (i >= n_pieces) return;
    float piece[8];
    load_piece(piece, x + 8 * i);
    store_piece(y + 8 * i, piece);
}

extern "C" void gpu_narrow(gpu *g, const float *x, size_t n, void *y)
{
    if (n == 0 || !gpu_is_ready(g)) return;
    narrow_kernel<<<blocks_for(n / 8), ROW_THREADS, 0, g->stream>>>(x, n / 8, (tmx_bf16 *)y);
    gpu_keep_launch(g, "narrow");
}

/* ---------------------------------------------------------------- RMSNorm */

/* One block = one row, read twice.  dx += r g - r^3 mean(g x) x,  g = d_y weight,  r = 1 / sqrt(mean(x^2) + eps) */
__global__ void rmsnorm_back_kernel(const float *d_y, const float *x, const float *weight, float eps, int32_t n_embd, float *d_x)
{
    __shared__ float of_warp[2][ROW_THREADS / 32];
    const size_t first = (size_t)blockIdx.x * n_embd;
    const float4 *x4 = (const float4 *)(x + first), *d4 = (const float4 *)(d_y + first), *w4 = (const float4 *)weight;
    float squares = 0.0f, products = 0.0f;
    for (int32_t i = threadIdx.x; i < n_embd / 4; i += ROW_THREADS) {
        const float4 a = x4[i], d = d4[i], w = w4[i];
        squares = fmaf(a.x, a.x, fmaf(a.y, a.y, fmaf(a.z, a.z, fmaf(a.w, a.w, squares))));
        products = fmaf(a.x, d.x * w.x, fmaf(a.y, d.y * w.y, fmaf(a.z, d.z * w.z, fmaf(a.w, d.w * w.w, products))));
    }
    squares = warp_sum(squares);
    products = warp_sum(products);
    if (threadIdx.x % 32 == 0) {
        of_warp[0][threadIdx.x / 32] = squares;
        of_warp[1][threadIdx.x / 32] = products;
    }
    __syncthreads();
    squares = products = 0.0f;
#pragma unroll
    for (int i = 0; i < ROW_THREADS / 32; i++) {
        squares += of_warp[0][i];
        products += of_warp[1][i];
    }
    const float r = 1.0f / sqrtf(squares / (float)n_embd + eps), along = r * r * r * (products / (float)n_embd);
    float4 *out = (float4 *)(d_x + first);
    for (int32_t i = threadIdx.x; i < n_embd / 4; i += ROW_THREADS) {
        const float4 a = x4[i], d = d4[i], w = w4[i];
        float4 sum = out[i];
        sum.x += r * d.x * w.x - along * a.x;
        sum.y += r * d.y * w.y - along * a.y;
        sum.z += r * d.z * w.z - along * a.z;
        sum.w += r * d.w * w.w - along * a.w;
        out[i] = sum;
    }
}

extern "C" void gpu_rmsnorm_back(gpu *g, const float *d_y, const float *x, const float *weight, float eps, int32_t n_rows,
                                 int32_t n_embd, float *d_x)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    rmsnorm_back_kernel<<<n_rows, ROW_THREADS, 0, g->stream>>>(d_y, x, weight, eps, n_embd, d_x);
    gpu_keep_launch(g, "rmsnorm_back");
}

/* ---------------------------------------------------------------- SwiGLU */

template <typename T> __global__ void swiglu_back_kernel(const float *d_y, const T *gate_up, size_t n_pieces, int32_t n_ff, tmx_bf16 *d_gate_up)
{
    const size_t item = thread_item();
    if (item >= n_pieces) return;
    const size_t row = item / (n_ff / 8), at = row * 2 * n_ff + item % (n_ff / 8) * 8;
    float d[8], gate[8], up[8];
    load_piece(d, d_y + 8 * item);
    load_piece(gate, gate_up + at);
    load_piece(up, gate_up + at + n_ff);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float s = __fdividef(1.0f, 1.0f + expf(-gate[i])), d_gate = d[i] * up[i] * s * (1.0f + gate[i] * (1.0f - s));
        up[i] = d[i] * gate[i] * s;
        gate[i] = d_gate;
    }
    store_piece(d_gate_up + at, gate);
    store_piece(d_gate_up + at + n_ff, up);
}

extern "C" void gpu_swiglu_back(gpu *g, const float *d_y, const void *gate_up, tmx_type type, int32_t n_rows, int32_t n_ff, void *d_gate_up)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    const size_t n = (size_t)n_rows * n_ff / 8;
    tmx_bf16 *to = (tmx_bf16 *)d_gate_up;
    if (type == TMX_TYPE_BF16) swiglu_back_kernel<<<blocks_for(n), ROW_THREADS, 0, g->stream>>>(d_y, (const tmx_bf16 *)gate_up, n, n_ff, to);
    else swiglu_back_kernel<<<blocks_for(n), ROW_THREADS, 0, g->stream>>>(d_y, (const float *)gate_up, n, n_ff, to);
    gpu_keep_launch(g, "swiglu_back");
}

/* ---------------------------------------------------------------- heads */

/* Element e of a head turned back: (a, b) of a pair came out of a turn as x, so a = x_a cos + x_b sin, b = x_b cos - x_a sin. */
DEVICE float turned_back(const gpu_heads_back &t, const float *head, int32_t e, size_t row)
{
    const int32_t n_pairs = t.n_rot / 2;
    if (e >= t.n_rot) return head[e];
    const bool is_split = t.rope == ROPE_HALF_SPLIT, is_second = is_split ? e >= n_pairs : e % 2 == 1;
    const int32_t step = is_split ? n_pairs : 1, pair = is_split ? e - (is_second ? n_pairs : 0) : e / 2;
    const float cos = t.cos[row * n_pairs + pair], sin = t.sin[row * n_pairs + pair];
    return is_second ? fmaf(head[e], cos, -head[e - step] * sin) : fmaf(head[e], cos, head[e + step] * sin);
}

/* One warp = one head, lane l its elements l, l + 32, ... */
template <int HEAD_DIM> __global__ void heads_back_kernel(const __grid_constant__ gpu_heads_back t, const float *d_heads, tmx_bf16 *d_qkv)
{
    constexpr int n_kept = HEAD_DIM / 32;
    const int32_t n_all = t.n_heads + 2 * t.n_kv_heads, lane = threadIdx.x % 32;
    const size_t i_head = blockIdx.x * (size_t)(ROW_THREADS / 32) + threadIdx.x / 32, row = i_head / n_all;
    if (row >= (size_t)t.n_rows) return;
    const int32_t h = (int32_t)(i_head % n_all);
    const float *head = d_heads + i_head * HEAD_DIM, *norm = h < t.n_heads ? t.q_norm : h < t.n_heads + t.n_kv_heads ? t.k_norm : NULL;
    const bool is_turned = h < t.n_heads + t.n_kv_heads;
    float d[n_kept];
#pragma unroll
    for (int i = 0; i < n_kept; i++) d[i] = is_turned ? turned_back(t, head, lane + 32 * i, row) : head[lane + 32 * i];
    if (norm != NULL) {                                    /* r g - r^3 mean(g x) x, as rmsnorm_back */
        float x[n_kept], squares = 0.0f, products = 0.0f;
#pragma unroll
        for (int i = 0; i < n_kept; i++) {
            const int32_t e = lane + 32 * i;
            x[i] = bf16_low(((const tmx_bf16 *)t.qkv)[i_head * HEAD_DIM + e]) + (t.bias != NULL ? t.bias[h * HEAD_DIM + e] : 0.0f);
            d[i] *= norm[e];
            squares = fmaf(x[i], x[i], squares);
            products = fmaf(x[i], d[i], products);
        }
        const float r = 1.0f / sqrtf(warp_sum(squares) / (float)HEAD_DIM + t.norm_eps), along = r * r * r * (warp_sum(products) / (float)HEAD_DIM);
#pragma unroll
        for (int i = 0; i < n_kept; i++) d[i] = r * d[i] - along * x[i];
    }
#pragma unroll
    for (int i = 0; i < n_kept; i++) d_qkv[i_head * HEAD_DIM + lane + 32 * i] = (tmx_bf16)bf16_pair(d[i], 0.0f);
}

extern "C" void gpu_heads_back_run(gpu *g, const gpu_heads_back *heads, const float *d_heads, void *d_qkv)
{
    if (heads->n_rows <= 0 || !gpu_is_ready(g)) return;
    const size_t n = (size_t)heads->n_rows * (heads->n_heads + 2 * heads->n_kv_heads) * 32;
    const auto kernel = heads->head_dim == 64 ? heads_back_kernel<64> : heads->head_dim == 96 ? heads_back_kernel<96> : heads_back_kernel<128>;
    kernel<<<blocks_for(n), ROW_THREADS, 0, g->stream>>>(*heads, d_heads, (tmx_bf16 *)d_qkv);
    gpu_keep_launch(g, "heads_back");
}
