/* gpu_rows.cu - what stands between the products: embedding, RMSNorm, gates, RoPE with biases, norms of heads and the KV cache.  All of it is limited by
 * memory: each input is read once, each output written once, in pieces of 8 elements (16 bytes of bf16) where the shape
 * and the addresses allow, one by one otherwise.
 *
 * Floors, bytes a row: embed 6 n_embd; rmsnorm 6 n_embd to bf16; add_normed 12 n_embd; gates 6 n_ff in bf16; place_heads 4 (n_heads + 2 n_kv_heads)
 * head_dim in bf16. */
#include "ops/cuda/gpu_device.cuh"

enum { ROW_THREADS = 256 };

/* A row of n_pieces is cut into blocks of as many threads as it has pieces, ROW_THREADS at most. */
struct row_cut {
    int32_t n_threads, blocks_per_row;
};

static row_cut cut_row(int32_t n_pieces)
{
    row_cut cut;
    cut.n_threads = min_i32(ROW_THREADS, divide_up(n_pieces, 32) * 32);
    cut.blocks_per_row = divide_up(n_pieces, cut.n_threads);
    return cut;
}

/* ---------------------------------------------------------------- embedding */

template <int N>
__global__ void embed_kernel(const tmx_bf16 *table, const int32_t *tokens, int32_t n_embd, float scale, int32_t blocks_per_row, float *x)
{
    const int32_t row = blockIdx.x / blocks_per_row, i = ((blockIdx.x % blocks_per_row) * blockDim.x + threadIdx.x) * N;
    if (i >= n_embd) return;
    float piece[N];
    load_piece(piece, table + (size_t)tokens[row] * n_embd + i);
#pragma unroll
    for (int j = 0; j < N; j++) piece[j] *= scale;
    store_piece(x + (size_t)row * n_embd + i, piece);
}

extern "C" void gpu_embed(gpu *g, const void *table, const int32_t *tokens, int32_t n_rows, int32_t n_embd, float scale, float *x)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    const bool is_wide = n_embd % 8 == 0 && is_aligned16(table) && is_aligned16(x);
    const row_cut cut = cut_row(is_wide ? n_embd / 8 : n_embd);
    const auto kernel = is_wide ? embed_kernel<8> : embed_kernel<1>;
    kernel<<<n_rows * cut.blocks_per_row, cut.n_threads, 0, g->stream>>>((const tmx_bf16 *)table, tokens, n_embd, scale,
                                                                         cut.blocks_per_row, x);
    gpu_keep_launch(g, "embed");
}

/* ---------------------------------------------------------------- RMSNorm */

/* The block's sum, in every thread; at most 32 warps. */
DEVICE float block_sum(float x)
{
    __shared__ float of_warp[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0.0f);
}

/* A float that results are added to instead of being stored. */
struct alignas(4) summed { float sum; };
DEVICE void store_piece(summed *p, const float (&x)[1]) { p->sum += x[0]; }
DEVICE void store_norm(summed *out, float4 y)
{
    const float4 x = *(const float4 *)out;
    *(float4 *)out = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}
DEVICE void store_norm(float *out, float4 y) { *(float4 *)out = y; }
DEVICE void store_norm(tmx_bf16 *out, float4 y) { *(uint2 *)out = make_uint2(bf16_pair(y.x, y.y), bf16_pair(y.z, y.w)); }

/* One block = one row, which stays in registers: N_KEPT float4 a thread. */
template <typename T, int N_KEPT>
__global__ void rmsnorm_kernel(const float *x, const float *weight, float eps, int32_t n_embd, T *out)
{
    const int32_t n_pieces = n_embd / 4;
    const float4 *row = (const float4 *)(x + (size_t)blockIdx.x * n_embd);
    float4 kept[N_KEPT];
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < N_KEPT; j++) {
        const int32_t i = threadIdx.x + j * blockDim.x;
        kept[j] = i < n_pieces ? row[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
#pragma unroll
    for (int j = 0; j < N_KEPT; j++) {
        sum = fmaf(kept[j].x, kept[j].x, fmaf(kept[j].y, kept[j].y, fmaf(kept[j].z, kept[j].z, fmaf(kept[j].w, kept[j].w, sum))));
    }
    const float scale = 1.0f / sqrtf(block_sum(sum) / (float)n_embd + eps);
#pragma unroll
    for (int j = 0; j < N_KEPT; j++) {
        const int32_t i = threadIdx.x + j * blockDim.x;
        if (i >= n_pieces) break;
        const float4 w = ((const float4 *)weight)[i], a = kept[j];
        store_norm(out + (size_t)blockIdx.x * n_embd + 4 * (size_t)i,
                   make_float4(a.x * scale * w.x, a.y * scale * w.y, a.z * scale * w.z, a.w * scale * w.w));
    }
}

/* Rows of any length and alignment, read twice. */
template <typename T>
__global__ void rmsnorm_any_kernel(const float *x, const float *weight, float eps, int32_t n_embd, T *out)
{
    const float *row = x + (size_t)blockIdx.x * n_embd;
    float sum = 0.0f;
    for (int32_t i = threadIdx.x; i < n_embd; i += blockDim.x) sum = fmaf(row[i], row[i], sum);
    const float scale = 1.0f / sqrtf(block_sum(sum) / (float)n_embd + eps);
    for (int32_t i = threadIdx.x; i < n_embd; i += blockDim.x) {
        const float y[1] = { row[i] * scale * weight[i] };
        store_piece(out + (size_t)blockIdx.x * n_embd + i, y);
    }
}

template <typename T>
static void rmsnorm(const gpu *g, const float *x, const float *weight, float eps, int32_t n_rows, int32_t n_embd, T *out)
{
    const bool is_wide = n_embd % 4 == 0 && is_aligned16(x) && is_aligned16(weight) && is_aligned16(out);
    const int32_t n_pieces = n_embd / 4;
    auto kernel = rmsnorm_any_kernel<T>;
    int32_t n_kept = 0;
    if (is_wide && n_pieces <= ROW_THREADS) kernel = rmsnorm_kernel<T, 1>, n_kept = 1;
    else if (is_wide && n_pieces <= 2 * ROW_THREADS) kernel = rmsnorm_kernel<T, 2>, n_kept = 2;
    else if (is_wide && n_pieces <= 4 * ROW_THREADS) kernel = rmsnorm_kernel<T, 4>, n_kept = 4;
    else if (is_wide && n_pieces <= 8 * 1024) kernel = rmsnorm_kernel<T, 8>, n_kept = 8;
    const int32_t n_busy = n_kept > 0 ? divide_up(n_pieces, n_kept) : n_embd, n_threads = min_i32(1024, divide_up(n_busy, 32) * 32);
    kernel<<<n_rows, n_threads, 0, g->stream>>>(x, weight, eps, n_embd, out);
}

extern "C" void gpu_rmsnorm(gpu *g, const float *x, const float *weight, float eps, int32_t n_rows, int32_t n_embd, void *out,
                            tmx_type out_type)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    if (out_type == TMX_TYPE_BF16) rmsnorm(g, x, weight, eps, n_rows, n_embd, (tmx_bf16 *)out);
    else rmsnorm(g, x, weight, eps, n_rows, n_embd, (float *)out);
    gpu_keep_launch(g, "rmsnorm");
}

extern "C" void gpu_add_normed(gpu *g, const float *branch, const float *weight, float eps, int32_t n_rows, int32_t n_embd, float *x)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    rmsnorm(g, branch, weight, eps, n_rows, n_embd, (summed *)x);
    gpu_keep_launch(g, "add_normed");
}

/* ---------------------------------------------------------------- gates */

struct silu {
    DEVICE static float of(float g) { return __fdividef(g, 1.0f + expf(-g)); }
};

/* gelu in the tanh form: g / (1 + exp(-2 t)), t = sqrt(2 / pi) (g + 0.044715 g^3). */
struct gelu {
    DEVICE static float of(float g)
    {
        const float t = 0.79788456080286536f * fmaf(0.044715f * g * g, g, g);
        return __fdividef(g, 1.0f + expf(-2.0f * t));
    }
};

template <typename GATE, typename T, int N> __global__ void gate_kernel(const T *gate_up, int32_t n_ff, int32_t blocks_per_row, T *out)
{
    const int32_t row = blockIdx.x / blocks_per_row, i = ((blockIdx.x % blocks_per_row) * blockDim.x + threadIdx.x) * N;
    if (i >= n_ff) return;
    float gate[N], up[N];
    load_piece(gate, gate_up + (size_t)row * 2 * n_ff + i);
    load_piece(up, gate_up + (size_t)row * 2 * n_ff + n_ff + i);
#pragma unroll
    for (int j = 0; j < N; j++) gate[j] = GATE::of(gate[j]) * up[j];
    store_piece(out + (size_t)row * n_ff + i, gate);
}

template <typename GATE, typename T> static void enqueue_gate(const gpu *g, const T *gate_up, int32_t n_rows, int32_t n_ff, T *out)
{
    const bool is_wide = n_ff % 8 == 0 && is_aligned16(gate_up) && is_aligned16(out);
    const row_cut cut = cut_row(is_wide ? n_ff / 8 : n_ff);
    const auto kernel = is_wide ? gate_kernel<GATE, T, 8> : gate_kernel<GATE, T, 1>;
    kernel<<<n_rows * cut.blocks_per_row, cut.n_threads, 0, g->stream>>>(gate_up, n_ff, cut.blocks_per_row, out);
}

template <typename GATE> static void gate_rows(gpu *g, const void *gate_up, int32_t n_rows, int32_t n_ff, void *out, tmx_type type)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    if (type == TMX_TYPE_BF16) enqueue_gate<GATE>(g, (const tmx_bf16 *)gate_up, n_rows, n_ff, (tmx_bf16 *)out);
    else enqueue_gate<GATE>(g, (const float *)gate_up, n_rows, n_ff, (float *)out);
    gpu_keep_launch(g, "gate");
}

extern "C" void gpu_swiglu(gpu *g, const void *gate_up, int32_t n_rows, int32_t n_ff, void *out, tmx_type type)
{
    gate_rows<silu>(g, gate_up, n_rows, n_ff, out, type);
}

extern "C" void gpu_geglu(gpu *g, const void *gate_up, int32_t n_rows, int32_t n_ff, void *out, tmx_type type)
{
    gate_rows<gelu>(g, gate_up, n_rows, n_ff, out, type);
}

/* ---------------------------------------------------------------- biases, norms of heads, RoPE, KV cache */

/* cos and sin of position * inverse_freq, the product rounded to f32 as rope_angles does.  Whole turns go in f64: an angle of
 * 1e6 keeps 1e-10 of a turn, and what is left needs no big-number reduction, which would take local memory. */
DEVICE float2 rope_angle(int32_t position, float inverse_freq, float factor)
{
    const double half_turns = (double)__fmul_rn((float)position, inverse_freq) * 0.31830988618379067154;
    float2 angle;
    sincospif((float)(half_turns - 2.0 * rint(0.5 * half_turns)), &angle.y, &angle.x);
    return make_float2(factor * angle.x, factor * angle.y);
}

/* A head of the product, and what is added to it and multiplied with it before it is turned: IS_PLAIN, nothing. */
template <typename T, bool IS_PLAIN> struct finished_head {
    const T *x;
    const float *bias, *weight;    /* NULL: none */
    float scale;                   /* with weight: 1 / sqrt(mean square + eps) */
};

template <int N, typename T, bool IS_PLAIN> DEVICE void load_finished(float (&x)[N], const finished_head<T, IS_PLAIN> &head, int32_t e)
{
    float other[N];
    load_piece(x, head.x + e);
    if constexpr (IS_PLAIN) return;
    if (head.bias != NULL) {
        load_piece(other, head.bias + e);
#pragma unroll
        for (int j = 0; j < N; j++) x[j] = __fadd_rn(x[j], other[j]);
    }
    if (head.weight != NULL) {
        load_piece(other, head.weight + e);
#pragma unroll
        for (int j = 0; j < N; j++) x[j] = __fmul_rn(__fmul_rn(x[j], head.scale), other[j]);
    }
}

/* The scale of each of n_normed heads, into shared memory; a warp takes every n-th head.  Element by element whatever the type
 * and the alignment: a prompt's last row comes a second time, in f32, and must get the same bits. */
template <typename T>
DEVICE void scale_heads(const gpu_place &place, const T *row, const float *bias, int32_t n_normed, float *scales)
{
    const int32_t head_dim = place.head_dim, lane = threadIdx.x % 32;
    for (int32_t h = threadIdx.x / 32; h < n_normed; h += blockDim.x / 32) {
        float sum = 0.0f;
        for (int32_t e = h * head_dim + lane; e < (h + 1) * head_dim; e += 32) {
            float x[1];
            load_piece(x, row + e);
            if (bias != NULL) x[0] = __fadd_rn(x[0], bias[e]);
            sum = fmaf(x[0], x[0], sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) scales[h] = 1.0f / sqrtf(sum / (float)head_dim + place.norm_eps);
    }
}

/* x[0..N) at element e of a head, e < n_rot, turned.  A piece lies within one half, or holds whole pairs; head: where the
 * partners of the pairs are. */
template <int N, typename T, bool IS_PLAIN>
DEVICE void turn(float (&x)[N], const finished_head<T, IS_PLAIN> &head, int32_t e, int32_t n_rot, rope_style style, const float2 *angles)
{
    const int32_t n_pairs = n_rot / 2;
    float partner[N];
    if (style == ROPE_HALF_SPLIT) {
        const bool is_second = e >= n_pairs;
        load_finished(partner, head, is_second ? e - n_pairs : e + n_pairs);
        angles += is_second ? e - n_pairs : e;
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float other = partner[j] * angles[j].y;
            x[j] = fmaf(x[j], angles[j].x, is_second ? other : -other);
        }
    } else {
        if (N == 1) load_finished(partner, head, e ^ 1);
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (N > 1) partner[j] = x[j ^ (N > 1)];
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float2 angle = angles[(e + j) / 2];
            const float other = partner[j] * angle.y;
            x[j] = fmaf(x[j], angle.x, (e + j) % 2 != 0 ? other : -other);
        }
    }
}

/* One block = one row: the angles and the scales of normed heads into shared memory, then every head's pieces.  The row comes from
 * memory once: what the scales and the partners of pieces read again is in L1.  Heads without bias and norm have an instance of their
 * own: 31 registers a thread instead of 43. */
template <typename T, int N, bool IS_PLAIN> __global__ void place_heads_kernel(const __grid_constant__ gpu_place place, const T *qkv, tmx_bf16 *q)
{
    extern __shared__ float2 angles[];                     /* [n_rot / 2]; then the scales [n_q + n_kv] */
    const int32_t row = blockIdx.x, position = place.positions[row], n_rot = place.n_rot, head_dim = place.head_dim;
    const int32_t n_q = q != NULL ? place.n_heads : 0, n_kv = place.n_kv_heads, n_all = n_q + 2 * n_kv;
    const float *bias = !IS_PLAIN && place.bias != NULL ? place.bias + (place.n_heads - n_q) * head_dim : NULL;
    float *scales = (float *)(angles + n_rot / 2);
    qkv += (size_t)row * n_all * head_dim;
    for (int32_t i = threadIdx.x; i < n_rot / 2; i += blockDim.x) {
        angles[i] = rope_angle(position, place.inverse_freq[i], place.rope_factor);
    }
    if (!IS_PLAIN && place.q_norm != NULL) scale_heads(place, qkv, bias, n_q + n_kv, scales);
    __syncthreads();
    const bool is_cached = position >= 0 && position < place.n_ctx;
    const size_t first_kv = (size_t)place.seqs[row] * n_kv;
    const int32_t pieces = head_dim / N;
    for (int32_t item = threadIdx.x; item < n_all * pieces; item += blockDim.x) {
        const int32_t i_head = item / pieces, e = item % pieces * N;
        finished_head<T, IS_PLAIN> head = { qkv + i_head * head_dim, bias != NULL ? bias + i_head * head_dim : NULL, NULL, 1.0f };
        if (!IS_PLAIN && place.q_norm != NULL && i_head < n_q + n_kv) {
            head.weight = i_head < n_q ? place.q_norm : place.k_norm;
            head.scale = scales[i_head];
        }
        float x[N];
        load_finished(x, head, e);
        if (i_head < n_q + n_kv && e < n_rot) turn(x, head, e, n_rot, place.rope, angles);
        if (i_head < n_q) {
            store_piece(q + ((size_t)row * n_q + i_head) * head_dim + e, x);
        } else if (is_cached) {
            const bool is_k = i_head < n_q + n_kv;
            const size_t kv_head = first_kv + (i_head - n_q - (is_k ? 0 : n_kv));
            tmx_bf16 *cache = (tmx_bf16 *)(is_k ? place.k : place.v);
            store_piece(cache + (kv_head * place.n_ctx + position) * head_dim + e, x);
        }
    }
}

template <typename T, bool IS_PLAIN> static void enqueue_place(const gpu *g, const gpu_place *place, const T *qkv, tmx_bf16 *q)
{
    const int32_t n_turned = place->rope == ROPE_HALF_SPLIT ? place->n_rot / 2 : place->n_rot;
    const bool is_wide = place->head_dim % 8 == 0 && n_turned % 8 == 0 && is_aligned16(qkv) && is_aligned16(q)
        && is_aligned16(place->k) && is_aligned16(place->v) && is_aligned16(place->bias) && is_aligned16(place->q_norm)
        && is_aligned16(place->k_norm);
    const size_t n_shared = place->n_rot / 2 * sizeof(float2) + (place->n_heads + place->n_kv_heads) * sizeof(float);
    const auto kernel = is_wide ? place_heads_kernel<T, 8, IS_PLAIN> : place_heads_kernel<T, 1, IS_PLAIN>;
    kernel<<<place->n_rows, ROW_THREADS, n_shared, g->stream>>>(*place, qkv, q);
}

template <typename T> static void place_heads(const gpu *g, const gpu_place *place, const T *qkv, tmx_bf16 *q)
{
    const bool is_plain = place->bias == NULL && place->q_norm == NULL;
    (is_plain ? enqueue_place<T, true> : enqueue_place<T, false>)(g, place, qkv, q);
}

extern "C" void gpu_place_heads(gpu *g, const gpu_place *place, const void *qkv, tmx_type qkv_type, void *q)
{
    if (place->n_rows <= 0 || !gpu_is_ready(g)) return;
    if (qkv_type == TMX_TYPE_BF16) place_heads(g, place, (const tmx_bf16 *)qkv, (tmx_bf16 *)q);
    else place_heads(g, place, (const float *)qkv, (tmx_bf16 *)q);
    gpu_keep_launch(g, "place_heads");
}
