/* gpu_decode.cu - attention of one new row a sequence over its cache, or over the end of it that a window shows.
 *
 *   out[h] = sum over first <= k <= position of 2^(c (s_k - m)) V[k] / sum of the same weights,   s_k = q[h] . K[k],  c = scale log2(e)
 *
 * Keys are cut into ranges of RANGE_KEYS.  A unit = one range of one KV head of one row; its heads (a GQA group) are the rows of
 * a 16-row matrix fragment, so K and V are read once for all of them.  A block works on one unit after another; its warps take
 * turns at tiles of 16 keys:
 *   load     K and V tiles straight into the registers mma.sync wants: the order of the 16 products of a sum and of
 *            the 8 columns of a result is free, so a lane's 16 bytes of a key are its share of two steps
 *   score    S = Q K^T, 16 heads x 16 keys     softmax  running max and sum, base 2     value  O += P V, P as the sum of two
 *            bf16 (2^-17): the tensor cores idle anyway, and decoding stays as exact as its bf16 inputs
 * then the warps are merged in order through shared memory, and a second kernel merges the ranges in order.  The grid covers n_ctx
 * with a bounded number of blocks; ranges behind the position, and before a window, are skipped.
 *
 * Floor: 4 n_kv_heads head_dim bytes a key; 8B at 131072: 537 MB a layer, 0.18 ms at 3.0 TB/s.  Partials add 1.6 % at a group
 * of 4.  Registers: O 64, K 32, V 32, Q 16 or 32 of a thread at head_dim 128; two blocks an SM have up to 64 KiB in flight.
 * At 256 two warps share a tile: both make its weights, each has one half of V's columns, for O and V of the size above; K comes
 * twice into the SM, once from memory, and Q is read from L1 for every tile.  At 96, V's columns are padded with zeros to 128 in registers. */
#include "ops/cuda/gpu_device.cuh"

enum { RANGE_KEYS = 256, TILE_KEYS = 16, DECODE_WARPS = 4, DECODE_THREADS = 32 * DECODE_WARPS, MERGE_WARPS = 16,
       MAX_BLOCKS = 2048, MAX_GROUP = 16, MAX_GROUP_256 = 8 };

DEVICE float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* d [16][8] += a [16][16] b [16][8] */
DEVICE void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* 16 bytes that the compiler may not keep in registers: their place is L1. */
DEVICE uint4 load_again(const void *p)
{
    uint4 x;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    return x;
}

/* Low or high halves of two words, side by side: the same element of two keys. */
DEVICE uint32_t low_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
DEVICE uint32_t high_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }
DEVICE uint32_t word(const uint4 &x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

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

struct partials {                  /* of one call; split = range */
    int32_t n_splits;
    float2 *max_sum;               /* [n_rows][n_heads][n_splits] */
    float *o;                      /* [n_rows][n_heads][n_splits][head_dim], not divided by the sum */
};

/* IS_WIDE: more than 8 heads share a KV head, so that rows 8..15 of the fragments are real. */
template <int HEAD_DIM, bool IS_WIDE> struct decode_unit {
    static constexpr int N_PARTS = HEAD_DIM > 128 ? 2 : 1, COLUMNS = HEAD_DIM / N_PARTS;   /* of V, and of them a warp's own */
    static constexpr int K_GROUPS = HEAD_DIM / 32, V_GROUPS = (COLUMNS + 63) / 64, N_ROWS = IS_WIDE ? 2 : 1, GROUP = 8 * N_ROWS;
    static constexpr bool IS_Q_KEPT = HEAD_DIM <= 128;     /* in registers; else it is read from L1 for every tile */
    static constexpr int STEP_KEYS = DECODE_WARPS / N_PARTS * TILE_KEYS;
    static constexpr int O_ROW = COLUMNS + 4;              /* spreads the rows over the banks */
    struct smem_map {
        float o[DECODE_WARPS][GROUP][O_ROW], max[DECODE_WARPS][GROUP], sum[DECODE_WARPS][GROUP];
    };

    uint4 q[N_ROWS][K_GROUPS];     /* head lane / 4 (+ 8): elements 32 g + 8 (lane % 4) + 0..7 */
    const tmx_bf16 *q_of_lane;     /* the same in memory, of the first row */
    uint4 k[2][K_GROUPS];          /* key lane / 4 (+ 8): the same elements */
    uint4 v[4][V_GROUPS];          /* keys 2 (lane % 4) + { 0, 1, 8, 9 }: columns 64 g + 8 (lane / 4) + 0..7 */
    float o[V_GROUPS][8][4];       /* head lane / 4 (+ 8 from [2] on): column 64 g + 8 (2 (lane % 4) + i % 2) + e */
    float max[N_ROWS], sum[N_ROWS];
    float scale_log2;

    /* Is column e, a multiple of 8, there?  Always, unless V is padded. */
    DEVICE static bool has(int32_t e) { return COLUMNS % 64 == 0 || e < COLUMNS; }

    DEVICE void begin()
    {
#pragma unroll
        for (int i = 0; i < V_GROUPS * 32; i++) o[i / 32][i / 4 % 8][i % 4] = 0.0f;
#pragma unroll
        for (int r = 0; r < N_ROWS; r++) max[r] = -CUDART_INF_F, sum[r] = 0.0f;
    }

    /* Keys from last_key on repeat it: finite weights of 0 times whatever lies behind the position could be NaN. */
    DEVICE void load_k(const tmx_bf16 *head, int32_t key, int32_t last_key)
    {
        const int32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const tmx_bf16 *at = head + (size_t)min_i32(key + 8 * i + lane / 4, last_key) * HEAD_DIM + 8 * (lane % 4);
#pragma unroll
            for (int g = 0; g < K_GROUPS; g++) k[i][g] = load_once(at + 32 * g);
        }
    }

    /* head: at the warp's first column. */
    DEVICE void load_v(const tmx_bf16 *head, int32_t key, int32_t last_key)
    {
        const int32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int32_t of_tile = 2 * (lane % 4) + i % 2 + 8 * (i / 2);
            const tmx_bf16 *at = head + (size_t)min_i32(key + of_tile, last_key) * HEAD_DIM + 8 * (lane / 4);
#pragma unroll
            for (int g = 0; g < V_GROUPS; g++) v[i][g] = has(64 * g + 8 * (lane / 4)) ? load_once(at + 64 * g) : make_uint4(0, 0, 0, 0);
        }
    }

    DEVICE void score(float (&s)[2][4]) const
    {
#pragma unroll
        for (int i = 0; i < 8; i++) s[i / 4][i % 4] = 0.0f;
#pragma unroll
        for (int g = 0; g < K_GROUPS; g++) {
            const uint4 low = IS_Q_KEPT ? q[0][g] : load_again(q_of_lane + 32 * g), high = IS_WIDE ? q[N_ROWS - 1][g] : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                multiply_add(s[i], low.x, high.x, low.y, high.y, k[i][g].x, k[i][g].y);
                multiply_add(s[i], low.z, high.z, low.w, high.w, k[i][g].z, k[i][g].w);
            }
        }
    }

    /* s: scores of keys key + 8 i + 2 (lane % 4) + j % 2 -> weights. */
    DEVICE void softmax(float (&s)[2][4], int32_t key, int32_t first_key, int32_t last_key)
    {
        const int32_t column = key + 2 * (threadIdx.x % 4);
        if (key < first_key || key + TILE_KEYS - 1 > last_key) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int32_t k_pos = column + i / 4 * 8 + i % 2;
                if (k_pos < first_key || k_pos > last_key) s[i / 4][i % 4] = -CUDART_INF_F;
            }
        }
#pragma unroll
        for (int r = 0; r < N_ROWS; r++) {
            float *low = &s[0][2 * r], *high = &s[1][2 * r];
            const float old = max[r];
            max[r] = fmaxf(old, quad_max(fmaxf(fmaxf(low[0], low[1]), fmaxf(high[0], high[1]))));
            const float shift = max[r] == -CUDART_INF_F ? 0.0f : __fmul_rn(max[r], scale_log2);
            const float rescale = exp2_fast(__fmul_rn(old, scale_log2) - shift);
            low[0] = exp2_fast(fmaf(low[0], scale_log2, -shift)), low[1] = exp2_fast(fmaf(low[1], scale_log2, -shift));
            high[0] = exp2_fast(fmaf(high[0], scale_log2, -shift)), high[1] = exp2_fast(fmaf(high[1], scale_log2, -shift));
            sum[r] = fmaf(sum[r], rescale, (low[0] + low[1]) + (high[0] + high[1]));
#pragma unroll
            for (int i = 0; i < V_GROUPS * 16; i++) o[i / 16][i / 2 % 8][2 * r + i % 2] *= rescale;
        }
    }

    DEVICE void value(const float (&s)[2][4])
    {
        uint32_t p[2][2][2];       /* [heads + 8][keys + 8][rounded, rest] */
#pragma unroll
        for (int r = 0; r < 2; r++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (r >= N_ROWS) {
                    p[r][i][0] = p[r][i][1] = 0;
                    continue;
                }
                const float a = s[i][2 * r], b = s[i][2 * r + 1];
                p[r][i][0] = bf16_pair(a, b);
                p[r][i][1] = bf16_pair(a - bf16_low(p[r][i][0]), b - bf16_high(p[r][i][0]));
            }
        }
#pragma unroll
        for (int g = 0; g < V_GROUPS; g++) {
#pragma unroll
            for (int e = 0; e < 8; e++) {
                const uint32_t a = word(v[0][g], e / 2), b = word(v[1][g], e / 2);
                const uint32_t c = word(v[2][g], e / 2), d = word(v[3][g], e / 2);
                const uint32_t v_low = e % 2 ? high_halves(a, b) : low_halves(a, b);
                const uint32_t v_high = e % 2 ? high_halves(c, d) : low_halves(c, d);
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    multiply_add(o[g][e], p[0][0][part], p[1][0][part], p[0][1][part], p[1][1][part], v_low, v_high);
                }
            }
        }
    }

    /* The warps' results into one partial.  Warps that saw no key have max -infinity, sum 0 and O 0. */
    DEVICE void finish(smem_map *smem, const partials &to, size_t first_head, int32_t n_group, int32_t split)
    {
        const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        __syncthreads();                                   /* everyone is done with the unit before */
#pragma unroll
        for (int r = 0; r < N_ROWS; r++) {
            const int32_t head = lane / 4 + 8 * r;
            const float total = quad_sum(sum[r]);
            if (lane % 4 == 0) smem->max[warp][head] = max[r], smem->sum[warp][head] = total;
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < N_ROWS; r++) {
            const int32_t head = lane / 4 + 8 * r;
            if (head >= n_group) continue;
            float all = smem->max[0][head];
#pragma unroll
            for (int w = 1; w < DECODE_WARPS; w++) all = fmaxf(all, smem->max[w][head]);
            const float shift = all == -CUDART_INF_F ? 0.0f : __fmul_rn(all, scale_log2);
            const float weight = exp2_fast(__fmul_rn(max[r], scale_log2) - shift);
#pragma unroll
            for (int i = 0; i < V_GROUPS * 4; i++) {       /* four elements of o at a time */
                const int g = i / 4, j = i / 2 % 2, e = i % 2 * 4, column = 64 * g + 8 * (2 * (lane % 4) + j);
                if (!has(column)) continue;
                *(float4 *)&smem->o[warp][head][column + e] =
                    make_float4(weight * o[g][e][2 * r + j], weight * o[g][e + 1][2 * r + j], weight * o[g][e + 2][2 * r + j],
                                weight * o[g][e + 3][2 * r + j]);
            }
            if (warp == 0 && lane % 4 == 0) {
                float total = 0.0f;
#pragma unroll
                for (int w = 0; w < DECODE_WARPS; w += N_PARTS) {
                    total = fmaf(exp2_fast(__fmul_rn(smem->max[w][head], scale_log2) - shift), smem->sum[w][head], total);
                }
                to.max_sum[(first_head + head) * to.n_splits + split] = make_float2(all, total);
            }
        }
        __syncthreads();
        for (int32_t i = threadIdx.x; i < n_group * (HEAD_DIM / 4); i += DECODE_THREADS) {
            const int32_t head = i / (HEAD_DIM / 4), e = i % (HEAD_DIM / 4) * 4;
            const int32_t part = e / COLUMNS, column = e % COLUMNS;
            float4 total = *(float4 *)&smem->o[part][head][column];
#pragma unroll
            for (int w = N_PARTS; w < DECODE_WARPS; w += N_PARTS) {
                const float4 x = *(float4 *)&smem->o[w + part][head][column];
                total = make_float4(total.x + x.x, total.y + x.y, total.z + x.z, total.w + x.w);
            }
            *(float4 *)(to.o + ((first_head + head) * to.n_splits + split) * HEAD_DIM + e) = total;
        }
    }
};

DEVICE int32_t last_key_of(const gpu_place &place, int32_t row) { return min_i32(place.positions[row], place.n_ctx - 1); }
DEVICE int32_t first_key_of(int32_t n_window, int32_t last_key) { return n_window > 0 ? max_i32(0, last_key + 1 - n_window) : 0; }

template <int HEAD_DIM, bool IS_WIDE>
__global__ void __launch_bounds__(DECODE_THREADS, 2)
decode_kernel(const __grid_constant__ gpu_place place, const __grid_constant__ partials to, float scale_log2, int32_t n_window,
              const tmx_bf16 *q)
{
    using unit = decode_unit<HEAD_DIM, IS_WIDE>;
    __shared__ alignas(16) typename unit::smem_map smem;
    const int32_t kv_head = blockIdx.y, row = blockIdx.z, last_key = last_key_of(place, row);
    const int32_t n_used = (last_key + RANGE_KEYS) / RANGE_KEYS;           /* 0 for position -1 */
    const int32_t first_key = first_key_of(n_window, last_key), first_split = first_key / RANGE_KEYS + blockIdx.x;
    if (first_split >= n_used) return;

    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_group = place.n_heads / place.n_kv_heads;
    const size_t first_head = (size_t)row * place.n_heads + kv_head * n_group;
    const size_t kv = ((size_t)place.seqs[row] * place.n_kv_heads + kv_head) * place.n_ctx * HEAD_DIM;
    const tmx_bf16 *k = (const tmx_bf16 *)place.k + kv;
    const tmx_bf16 *v = (const tmx_bf16 *)place.v + kv + warp % unit::N_PARTS * unit::COLUMNS;
    unit work;
    work.scale_log2 = scale_log2;
#pragma unroll
    for (int r = 0; r < unit::N_ROWS; r++) {
        const int32_t head = min_i32(lane / 4 + 8 * r, n_group - 1);       /* rows without a head repeat the last */
        const tmx_bf16 *of_lane = q + (first_head + head) * HEAD_DIM + 8 * (lane % 4);
        if (r == 0) work.q_of_lane = of_lane;
#pragma unroll
        for (int g = 0; unit::IS_Q_KEPT && g < unit::K_GROUPS; g++) work.q[r][g] = *(const uint4 *)(of_lane + 32 * g);
    }
    for (int32_t split = first_split; split < n_used; split += gridDim.x) {
        const int32_t end = min_i32((split + 1) * RANGE_KEYS, last_key + 1);
        int32_t key = split * RANGE_KEYS + warp / unit::N_PARTS * TILE_KEYS;
        while (key + TILE_KEYS <= first_key) key += unit::STEP_KEYS;
        work.begin();
        if (key < end) work.load_k(k, key, last_key), work.load_v(v, key, last_key);
        while (key < end) {
            const int32_t next = key + unit::STEP_KEYS;
            float s[2][4];
            work.score(s);
            if (next < end) work.load_k(k, next, last_key);
            work.softmax(s, key, first_key, last_key);
            work.value(s);
            if (next < end) work.load_v(v, next, last_key);
            key = next;
        }
        work.finish(&smem, to, first_head, n_group, split);
    }
}

/* One block = one head of one row; a warp takes every MERGE_WARPS-th range. */
template <int HEAD_DIM>
__global__ void __launch_bounds__(32 * MERGE_WARPS)
decode_merge_kernel(const __grid_constant__ gpu_place place, const __grid_constant__ partials from, float scale_log2, int32_t n_window,
                    float *out)
{
    constexpr int N_PAIRS = HEAD_DIM / 2, N_OWN = (N_PAIRS + 31) / 32;         /* of a lane: pairs lane, lane + 32, ... */
    __shared__ alignas(8) float of_warp[MERGE_WARPS][HEAD_DIM];
    __shared__ float sum_of_warp[MERGE_WARPS];
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const size_t head = blockIdx.x;
    const int32_t last_key = last_key_of(place, blockIdx.x / place.n_heads), n_used = (last_key + RANGE_KEYS) / RANGE_KEYS;
    const int32_t first = first_key_of(n_window, last_key) / RANGE_KEYS;
    const float2 *max_sum = from.max_sum + head * from.n_splits;
    const float2 *o = (const float2 *)(from.o + head * from.n_splits * HEAD_DIM);

    float max = -CUDART_INF_F;
    for (int32_t i = first + lane; i < n_used; i += 32) max = fmaxf(max, max_sum[i].x);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, mask));
    const float shift = max == -CUDART_INF_F ? 0.0f : __fmul_rn(max, scale_log2);

    float sum = 0.0f;
    float2 value[N_OWN];
#pragma unroll
    for (int j = 0; j < N_OWN; j++) value[j] = make_float2(0.0f, 0.0f);
#pragma unroll 4
    for (int32_t i = first + warp; i < n_used; i += MERGE_WARPS) {
        const float2 of_range = max_sum[i];
        const float weight = exp2_fast(__fmul_rn(of_range.x, scale_log2) - shift);
        sum = fmaf(weight, of_range.y, sum);
#pragma unroll
        for (int j = 0; j < N_OWN; j++) {
            if (lane + 32 * j >= N_PAIRS) break;
            const float2 x = o[(size_t)i * N_PAIRS + lane + 32 * j];
            value[j] = make_float2(fmaf(weight, x.x, value[j].x), fmaf(weight, x.y, value[j].y));
        }
    }
#pragma unroll
    for (int j = 0; j < N_OWN; j++) {
        if (lane + 32 * j < N_PAIRS) *(float2 *)&of_warp[warp][2 * (lane + 32 * j)] = value[j];
    }
    if (lane == 0) sum_of_warp[warp] = sum;
    __syncthreads();
    if (threadIdx.x >= HEAD_DIM) return;
    float total = 0.0f, weights = 0.0f;
#pragma unroll
    for (int w = 0; w < MERGE_WARPS; w++) total += of_warp[w][threadIdx.x], weights += sum_of_warp[w];
    out[head * HEAD_DIM + threadIdx.x] = weights == 0.0f ? 0.0f : total / weights;
}

/* ---------------------------------------------------------------- host */

static int32_t count_splits(int32_t n_ctx) { return divide_up(n_ctx, RANGE_KEYS); }

static size_t max_sum_bytes(int32_t n_rows, int32_t n_heads, int32_t n_ctx)
{
    return align_up((size_t)n_rows * (size_t)n_heads * (size_t)count_splits(n_ctx) * sizeof(float2), 256);
}

extern "C" size_t gpu_decode_attention_bytes(int32_t n_rows, int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, int32_t n_ctx)
{
    (void)n_kv_heads;
    const size_t n_partials = (size_t)n_rows * (size_t)n_heads * (size_t)count_splits(n_ctx);
    return max_sum_bytes(n_rows, n_heads, n_ctx) + n_partials * (size_t)head_dim * sizeof(float);
}

template <int HEAD_DIM>
static void decode(gpu *g, const gpu_place *place, const partials &parts, float scale_log2, int32_t n_window, const tmx_bf16 *q,
                   float *out)
{
    constexpr bool CAN_BE_WIDE = HEAD_DIM <= 128;
    const int32_t n_units = place->n_kv_heads * place->n_rows;
    const int32_t n_splits = n_window > 0 ? min_i32(parts.n_splits, (n_window - 1) / RANGE_KEYS + 2) : parts.n_splits;
    const dim3 grid(max_i32(1, min_i32(n_splits, MAX_BLOCKS / n_units)), place->n_kv_heads, place->n_rows);
    const bool is_wide = place->n_heads / place->n_kv_heads > 8;
    const auto kernel = is_wide ? decode_kernel<HEAD_DIM, CAN_BE_WIDE> : decode_kernel<HEAD_DIM, false>;
    kernel<<<grid, DECODE_THREADS, 0, g->stream>>>(*place, parts, scale_log2, n_window, q);
    gpu_keep_launch(g, "decode attention");
    const int32_t n_heads = place->n_rows * place->n_heads;
    decode_merge_kernel<HEAD_DIM><<<n_heads, 32 * MERGE_WARPS, 0, g->stream>>>(*place, parts, scale_log2, n_window, out);
    gpu_keep_launch(g, "decode attention, merge");
}

extern "C" void gpu_decode_attention(gpu *g, const gpu_place *place, float scale, int32_t n_window, const void *q, float *out,
                                     void *scratch)
{
    if (place->n_rows <= 0 || !gpu_is_ready(g)) return;
    const int32_t n_group = place->n_heads / place->n_kv_heads, most_group = place->head_dim == 256 ? MAX_GROUP_256 : MAX_GROUP;
    const bool has_dim = place->head_dim == 64 || place->head_dim == 96 || place->head_dim == 128 || place->head_dim == 256;
    if (!has_dim || n_group > most_group || n_group * place->n_kv_heads != place->n_heads) {
        error_set(&g->first, TMX_E_UNSUPPORTED, "decode attention: %d heads, %d KV heads, head_dim %d; expected groups of 1..%d, "
                  "head_dim 64, 96, 128 or 256", place->n_heads, place->n_kv_heads, place->head_dim, most_group);
        return;
    }
    partials parts;
    parts.n_splits = count_splits(place->n_ctx);
    parts.max_sum = (float2 *)scratch;
    parts.o = (float *)((char *)scratch + max_sum_bytes(place->n_rows, place->n_heads, place->n_ctx));
    const float scale_log2 = scale * 1.4426950408889634f;
    const auto run = place->head_dim == 64 ? decode<64> : place->head_dim == 96 ? decode<96> : place->head_dim == 128 ? decode<128>
                   : decode<256>;
    run(g, place, parts, scale_log2, n_window, (const tmx_bf16 *)q, out);
}
