/* gpu_attn_back.cu - the backward pass of dense causal attention and the probe's sums over sections, for any card since sm_80:
 * mma.sync on tiles of 64 rows x 64 keys.  Formulas: attn_back.h.  Each of three kernels makes the probabilities of its tiles again:
 *
 *   sums    one CTA = one tile of pairs, all heads one after the other, since the sum over heads must be whole before its
 *           absolute value is taken:  S = Q K^T,  dA = dO V^T,  theta += P dA;  15 numbers a CTA
 *   rows    one CTA = 64 rows of one head, its keys from the first on:  S, dA -> dS,  dQ += dS K
 *   keys    one CTA = 64 keys of one KV head, its query heads and their rows in order:  S^T, dA^T -> P^T, dS^T,
 *           dV += P^T dO,  dK += dS^T Q
 *
 * So nothing is added by two CTAs, and no sum depends on their order: same input, same bits.  The price is nine products of
 * tiles where five would do; beside the products of a layer that is little (floor at 32 heads of 128, 2000 tokens: 147 GFLOP a
 * layer, where the products have 2600).  P and dS are rounded to bf16 for the products that read them, sums are f32; section sums
 * are f32 within a thread, f64 beyond.
 *
 * 4 warps x 16 rows (or keys).  Shared memory: 4 x 64 rows x (head_dim + 8) x 2 bytes, 70 KB at head_dim 128: 3 CTAs. */
#include "attn/cuda/attn_rows.cuh"
#include "base/mma_ptx.cuh"
#include "ops/cuda/gpu_device.cuh"

extern "C" {
#include "pattern/pattern.h"
#include "probe/cuda/probe_ops_cuda.h"
}

enum { TILE = 64, N_THREADS = 128, BANK_PAD = 8, N_ELEMENTS = TILE / 2, N_ALL_SUMS = N_SECTIONS * N_SUMS, NO_SECTION = N_SECTIONS };
static_assert(NO_SECTION < 4, "a section takes two bits");

#define LOG2_E 1.44269504088896341f

/* CTAs of sums on a multiprocessor: as many as Hopper's shared memory holds at head_dim 128, if the registers suffice; sm_80's holds
 * two. */
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ < 900
#define SUMS_CTAS(head_dim) 2
#else
#define SUMS_CTAS(head_dim) ((head_dim) == 96 ? 2 : 3)
#endif

struct launch {
    gpu_attn_back b;
    int32_t n_tiles, tail_begin;   /* first of the last rows */
    float *dots;                   /* D: [n_tokens][n_heads] */
    double *partials;              /* [N_ALL_SUMS][tiles of pairs] */
};

template <int HEAD_DIM> struct back_tiles {
    static constexpr int ROW = HEAD_DIM + BANK_PAD;
    typedef tmx_bf16 tile[TILE][ROW];
    tile q, d_o, k, v;
};

/* ---------------------------------------------------------------- steps */

/* Rows from n_rows on are zeros. */
template <int HEAD_DIM>
DEVICE void load_tile(tmx_bf16 (*to)[HEAD_DIM + BANK_PAD], const void *from, size_t at, size_t stride, int32_t n_rows)
{
    constexpr int pieces = HEAD_DIM / 8;
    const tmx_bf16 *rows = (const tmx_bf16 *)from + at;
    for (int32_t i = threadIdx.x; i < TILE * pieces; i += N_THREADS) {
        const int32_t row = i / pieces, d = i % pieces * 8;
        copy_async(&to[row][d], rows + (row < n_rows ? row * stride : 0) + d, row < n_rows);
    }
}

template <int HEAD_DIM> DEVICE void load_rows(tmx_bf16 (*to)[HEAD_DIM + BANK_PAD], const gpu_attn_back &b, const void *from, int32_t row, int32_t head)
{
    const size_t stride = (size_t)b.n_heads * HEAD_DIM;
    load_tile<HEAD_DIM>(to, from, row * stride + (size_t)head * HEAD_DIM, stride, b.n_tokens - row);
}

template <int HEAD_DIM> DEVICE void load_keys(tmx_bf16 (*to)[HEAD_DIM + BANK_PAD], const gpu_attn_back &b, const void *from, int32_t key, int32_t kv_head)
{
    load_tile<HEAD_DIM>(to, from, ((size_t)kv_head * b.n_ctx + key) * HEAD_DIM, HEAD_DIM, b.n_tokens - key);
}

DEVICE void loads_wait()
{
    copy_commit();
    copy_wait<0>();
    __syncthreads();
}

/* s[i][j] = a[i] . b[j]: the warp's 16 rows of a with all 64 of b, as lanes hold fragments (attn_rows.cuh). */
template <int HEAD_DIM> DEVICE void dots_of(float (&s)[N_ELEMENTS], const tmx_bf16 (*a)[HEAD_DIM + BANK_PAD], const tmx_bf16 (*b)[HEAD_DIM + BANK_PAD])
{
    const int32_t lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * 16;
#pragma unroll
    for (int i = 0; i < N_ELEMENTS; i++) s[i] = 0.0f;
#pragma unroll
    for (int d = 0; d < HEAD_DIM; d += 16) {
        uint32_t x[4], y[4];
        load_matrices(x, &a[first_row + lane % 16][d + lane / 16 * 8]);
#pragma unroll
        for (int n = 0; n < TILE; n += 16) {
            load_matrices(y, &b[n + lane % 8 + lane / 16 * 8][d + lane / 8 % 2 * 8]);
            multiply_add(s + n / 2, x, y[0], y[1], __nv_bfloat16());
            multiply_add(s + n / 2 + 4, x, y[2], y[3], __nv_bfloat16());
        }
    }
}

/* sum[i] += sum over j of s[i][j] b[j]: s rounded to bf16. */
template <int HEAD_DIM> DEVICE void add_weighted(float (&sum)[HEAD_DIM / 2], const float (&s)[N_ELEMENTS], const tmx_bf16 (*b)[HEAD_DIM + BANK_PAD])
{
    const int32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < TILE; j += 16) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = bf16_pair(s[j / 2 + 2 * i], s[j / 2 + 2 * i + 1]);
#pragma unroll
        for (int d = 0; d < HEAD_DIM; d += 16) {
            uint32_t y[4];
            load_matrices_transposed(y, &b[j + lane % 16][d + lane / 16 * 8]);
            multiply_add(sum + d / 2, x, y[0], y[1], __nv_bfloat16());
            multiply_add(sum + d / 2 + 4, x, y[2], y[3], __nv_bfloat16());
        }
    }
}

/* Of a row that is there; for others a weight of 0 comes out. */
DEVICE float lse_log2_of(const gpu_attn_back &b, int32_t row, int32_t head)
{
    return row < b.n_tokens ? b.lse[(size_t)row * b.n_heads + head] * LOG2_E : CUDART_INF_F;
}

DEVICE float dot_of(const launch &l, int32_t row, int32_t head)
{
    return row < l.b.n_tokens ? l.dots[(size_t)row * l.b.n_heads + head] : 0.0f;
}

/* Where element i of a lane's fragment lies beside the lane's first. */
DEVICE constexpr int row_of(int i) { return i / 2 % 2 * 8; }
DEVICE constexpr int column_of(int i) { return i / 4 * 8 + i % 2; }

template <int HEAD_DIM> DEVICE void store_rows(const float (&x)[HEAD_DIM / 2], const gpu_attn_back &b, int32_t first_row, int32_t head)
{
    const size_t width = (size_t)(b.n_heads + 2 * b.n_kv_heads) * HEAD_DIM;
    const int32_t row = first_row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i += 2) {
        if (row + row_of(i) >= b.n_tokens) continue;
        float *to = b.d_qkv + (row + row_of(i)) * width + (size_t)head * HEAD_DIM + lane_column() + column_of(i);
        *(float2 *)to = make_float2(x[i], x[i + 1]);
    }
}

/* ---------------------------------------------------------------- sums */

DEVICE uint32_t section_of(const launch &l, int32_t row, int32_t key)
{
    const tmx_pattern &p = l.b.sections;
    if (key > row || row >= l.b.n_tokens) return NO_SECTION;
    if (key < p.n_sink || row - key < p.n_window) return SECTION_STREAMING;
    return row >= l.tail_begin ? SECTION_LAST : SECTION_MIDDLE;
}

DEVICE double warp_sum_f64(double x)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffff, x, mask);
    return x;
}

template <int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS, SUMS_CTAS(HEAD_DIM)) attn_back_sums(const __grid_constant__ launch l)
{
    if (blockIdx.x > blockIdx.y) return;                   /* keys behind the rows */
    extern __shared__ uint4 smem_bytes[];
    auto &tiles = *(back_tiles<HEAD_DIM> *)smem_bytes;
    __shared__ double of_warp[N_THREADS / 32][N_ALL_SUMS];
    const gpu_attn_back &b = l.b;
    const int32_t first_row = blockIdx.y * TILE, first_key = blockIdx.x * TILE, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int32_t row = first_row + warp * 16 + lane / 4, key = first_key + lane_column(), n_group = b.n_heads / b.n_kv_heads;
    const float scale_log2 = b.scale * LOG2_E;
    float theta[N_ELEMENTS], sums[N_SECTIONS][N_SUMS], s[N_ELEMENTS], a[N_ELEMENTS];
    uint32_t sections[2] = { 0, 0 };                       /* of the lane's pairs, two bits each */
#pragma unroll
    for (int i = 0; i < N_ELEMENTS; i++) {
        theta[i] = 0.0f;
        sections[i / 16] |= section_of(l, row + row_of(i), key + column_of(i)) << i % 16 * 2;
    }
#pragma unroll
    for (int section = 0; section < N_SECTIONS; section++) {
#pragma unroll
        for (int i = 0; i < N_SUMS; i++) sums[section][i] = 0.0f;
    }
    for (int32_t h = 0; h < b.n_heads; h++) {
        __syncthreads();                                   /* everyone is done with the head before */
        load_rows<HEAD_DIM>(tiles.q, b, b.q, first_row, h);
        load_rows<HEAD_DIM>(tiles.d_o, b, b.d_o, first_row, h);
        if (h % n_group == 0) {
            load_keys<HEAD_DIM>(tiles.k, b, b.k, first_key, h / n_group);
            load_keys<HEAD_DIM>(tiles.v, b, b.v, first_key, h / n_group);
        }
        const float lse_log2[2] = { lse_log2_of(b, row, h), lse_log2_of(b, row + 8, h) };
        loads_wait();
        dots_of<HEAD_DIM>(s, tiles.q, tiles.k);
        dots_of<HEAD_DIM>(a, tiles.d_o, tiles.v);
#pragma unroll
        for (int i = 0; i < N_ELEMENTS; i++) {
            const uint32_t in = sections[i / 16] >> i % 16 * 2 & 3;
            const float p = in == NO_SECTION ? 0.0f : exp2_fast(fmaf(s[i], scale_log2, -lse_log2[i / 2 % 2]));
            const float of_head = in == NO_SECTION ? 0.0f : p * a[i];
            theta[i] += of_head;
#pragma unroll
            for (uint32_t section = 0; section < N_SECTIONS; section++) {
                if (in != section) continue;
                sums[section][SUM_HEAD_ABS] += fabsf(of_head);
                sums[section][SUM_DA_ABS] += fabsf(a[i]);
                sums[section][SUM_ATTENTION] += p;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < N_ELEMENTS; i++) {
        const uint32_t in = sections[i / 16] >> i % 16 * 2 & 3;
#pragma unroll
        for (uint32_t section = 0; section < N_SECTIONS; section++) {
            if (in != section) continue;
            sums[section][SUM_THETA_ABS] += fabsf(theta[i]);
            sums[section][SUM_THETA_SIGNED] += theta[i];
        }
    }
#pragma unroll
    for (int i = 0; i < N_ALL_SUMS; i++) {
        const double sum = warp_sum_f64((double)sums[i / N_SUMS][i % N_SUMS]);
        if (lane == 0) of_warp[warp][i] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= N_ALL_SUMS) return;
    double sum = 0.0;
    for (int w = 0; w < N_THREADS / 32; w++) sum += of_warp[w][threadIdx.x];
    const size_t n_pairs = (size_t)l.n_tiles * (l.n_tiles + 1) / 2, at = (size_t)blockIdx.y * (blockIdx.y + 1) / 2 + blockIdx.x;
    l.partials[threadIdx.x * n_pairs + at] = sum;
}

/* One warp = one of the sums, over the tiles in a fixed order. */
__global__ void attn_back_total(const __grid_constant__ launch l)
{
    const size_t n_pairs = (size_t)l.n_tiles * (l.n_tiles + 1) / 2;
    const double *of_tiles = l.partials + blockIdx.x * n_pairs;
    double sum = 0.0;
    for (size_t i = threadIdx.x; i < n_pairs; i += 32) sum += of_tiles[i];
    sum = warp_sum_f64(sum);
    if (threadIdx.x == 0) l.b.sums[blockIdx.x] = sum;
}

/* ---------------------------------------------------------------- derivatives */

/* D = d_o . o; one warp = one row of one head. */
template <int HEAD_DIM> __global__ void attn_back_dots(const __grid_constant__ launch l)
{
    const size_t row = blockIdx.x * (size_t)(N_THREADS / 32) + threadIdx.x / 32;
    if (row >= (size_t)l.b.n_tokens * l.b.n_heads) return;
    const tmx_bf16 *o = (const tmx_bf16 *)l.b.o + row * HEAD_DIM, *d_o = (const tmx_bf16 *)l.b.d_o + row * HEAD_DIM;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < HEAD_DIM; i += 32) sum = fmaf(bf16_low(o[i + threadIdx.x % 32]), bf16_low(d_o[i + threadIdx.x % 32]), sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) l.dots[row] = sum;
}

template <int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS, 2) attn_back_rows(const __grid_constant__ launch l)
{
    extern __shared__ uint4 smem_bytes[];
    auto &tiles = *(back_tiles<HEAD_DIM> *)smem_bytes;
    const gpu_attn_back &b = l.b;
    const int32_t row_tile = l.n_tiles - 1 - (int32_t)blockIdx.x, h = blockIdx.y, kv_head = h / (b.n_heads / b.n_kv_heads);     /* the longest first */
    const int32_t row = row_tile * TILE + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const float scale_log2 = b.scale * LOG2_E, lse_log2[2] = { lse_log2_of(b, row, h), lse_log2_of(b, row + 8, h) };
    const float dots[2] = { dot_of(l, row, h), dot_of(l, row + 8, h) };
    float d_q[HEAD_DIM / 2], s[N_ELEMENTS], a[N_ELEMENTS];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) d_q[i] = 0.0f;
    load_rows<HEAD_DIM>(tiles.q, b, b.q, row_tile * TILE, h);
    load_rows<HEAD_DIM>(tiles.d_o, b, b.d_o, row_tile * TILE, h);
    for (int32_t key_tile = 0; key_tile <= row_tile; key_tile++) {
        __syncthreads();
        load_keys<HEAD_DIM>(tiles.k, b, b.k, key_tile * TILE, kv_head);
        load_keys<HEAD_DIM>(tiles.v, b, b.v, key_tile * TILE, kv_head);
        loads_wait();
        dots_of<HEAD_DIM>(s, tiles.q, tiles.k);
        dots_of<HEAD_DIM>(a, tiles.d_o, tiles.v);
        const int32_t key = key_tile * TILE + lane_column();
#pragma unroll
        for (int i = 0; i < N_ELEMENTS; i++) {
            const bool is_seen = key_tile < row_tile || key + column_of(i) <= row + row_of(i);
            const float p = is_seen ? exp2_fast(fmaf(s[i], scale_log2, -lse_log2[i / 2 % 2])) : 0.0f;
            s[i] = b.scale * p * (a[i] - dots[i / 2 % 2]);
        }
        add_weighted<HEAD_DIM>(d_q, s, tiles.k);
    }
    store_rows<HEAD_DIM>(d_q, b, row_tile * TILE, h);
}

template <int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS, 2) attn_back_keys(const __grid_constant__ launch l)
{
    extern __shared__ uint4 smem_bytes[];
    auto &tiles = *(back_tiles<HEAD_DIM> *)smem_bytes;
    __shared__ float lse_log2[TILE], dots[TILE];           /* of the rows, which are columns here */
    const gpu_attn_back &b = l.b;
    const int32_t key_tile = blockIdx.x, kv_head = blockIdx.y, n_group = b.n_heads / b.n_kv_heads;
    const int32_t key = key_tile * TILE + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const float scale_log2 = b.scale * LOG2_E;
    float d_k[HEAD_DIM / 2], d_v[HEAD_DIM / 2], s[N_ELEMENTS], a[N_ELEMENTS];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) d_k[i] = d_v[i] = 0.0f;
    load_keys<HEAD_DIM>(tiles.k, b, b.k, key_tile * TILE, kv_head);
    load_keys<HEAD_DIM>(tiles.v, b, b.v, key_tile * TILE, kv_head);
    for (int32_t h = kv_head * n_group; h < (kv_head + 1) * n_group; h++) {
        for (int32_t row_tile = key_tile; row_tile < l.n_tiles; row_tile++) {
            __syncthreads();
            load_rows<HEAD_DIM>(tiles.q, b, b.q, row_tile * TILE, h);
            load_rows<HEAD_DIM>(tiles.d_o, b, b.d_o, row_tile * TILE, h);
            if (threadIdx.x < TILE) {
                lse_log2[threadIdx.x] = lse_log2_of(b, row_tile * TILE + threadIdx.x, h);
                dots[threadIdx.x] = dot_of(l, row_tile * TILE + threadIdx.x, h);
            }
            loads_wait();
            dots_of<HEAD_DIM>(s, tiles.k, tiles.q);
            dots_of<HEAD_DIM>(a, tiles.v, tiles.d_o);
#pragma unroll
            for (int i = 0; i < N_ELEMENTS; i++) {
                const int32_t column = lane_column() + column_of(i);
                const bool is_seen = key_tile < row_tile || key + row_of(i) <= row_tile * TILE + column;
                s[i] = is_seen ? exp2_fast(fmaf(s[i], scale_log2, -lse_log2[column])) : 0.0f;
                a[i] = b.scale * s[i] * (a[i] - dots[column]);
            }
            add_weighted<HEAD_DIM>(d_v, s, tiles.d_o);
            add_weighted<HEAD_DIM>(d_k, a, tiles.q);
        }
    }
    store_rows<HEAD_DIM>(d_k, b, key_tile * TILE, b.n_heads + kv_head);
    store_rows<HEAD_DIM>(d_v, b, key_tile * TILE, b.n_heads + b.n_kv_heads + kv_head);
}

/* ---------------------------------------------------------------- host */

static size_t dots_bytes(int32_t n_tokens, int32_t n_heads) { return align_up((size_t)n_tokens * n_heads * sizeof(float), 256); }

extern "C" size_t gpu_attn_back_scratch_bytes(int32_t n_tokens, int32_t n_heads)
{
    const size_t n_tiles = (size_t)divide_up(n_tokens, TILE);
    return dots_bytes(n_tokens, n_heads) + n_tiles * (n_tiles + 1) / 2 * N_ALL_SUMS * sizeof(double);
}

template <int HEAD_DIM> static void enqueue(gpu *g, const launch *l)
{
    const gpu_attn_back *b = &l->b;
    constexpr int n_bytes = (int)sizeof(back_tiles<HEAD_DIM>);
    const auto sums = attn_back_sums<HEAD_DIM>, rows = attn_back_rows<HEAD_DIM>, keys = attn_back_keys<HEAD_DIM>;
    GPU_TRY(g, cudaFuncSetAttribute(sums, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes));
    sums<<<dim3(l->n_tiles, l->n_tiles), N_THREADS, n_bytes, g->stream>>>(*l);
    gpu_keep_launch(g, "attn_back_sums");
    attn_back_total<<<N_ALL_SUMS, 32, 0, g->stream>>>(*l);
    gpu_keep_launch(g, "attn_back_total");
    if (b->d_qkv == NULL) return;
    GPU_TRY(g, cudaFuncSetAttribute(rows, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes));
    GPU_TRY(g, cudaFuncSetAttribute(keys, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes));
    const int64_t n_rows = (int64_t)b->n_tokens * b->n_heads;
    attn_back_dots<HEAD_DIM><<<(uint32_t)((n_rows + 3) / 4), N_THREADS, 0, g->stream>>>(*l);
    gpu_keep_launch(g, "attn_back_dots");
    rows<<<dim3(l->n_tiles, b->n_heads), N_THREADS, n_bytes, g->stream>>>(*l);
    gpu_keep_launch(g, "attn_back_rows");
    keys<<<dim3(l->n_tiles, b->n_kv_heads), N_THREADS, n_bytes, g->stream>>>(*l);
    gpu_keep_launch(g, "attn_back_keys");
}

extern "C" void gpu_attn_back_run(gpu *g, const gpu_attn_back *back)
{
    if (!gpu_is_ready(g)) return;
    launch l;
    l.b = *back;
    l.n_tiles = divide_up(back->n_tokens, TILE);
    l.tail_begin = pattern_first_dense_row(&back->sections, back->n_tokens);
    l.dots = (float *)back->scratch;
    l.partials = (double *)((char *)back->scratch + dots_bytes(back->n_tokens, back->n_heads));
    if (back->head_dim == 64) enqueue<64>(g, &l);
    else if (back->head_dim == 96) enqueue<96>(g, &l);
    else enqueue<128>(g, &l);
}
