/* attn_sm90_mass.cu - XAttention's estimator on Hopper: which key blocks a block of query rows keeps (pattern/xattention.h).
 *
 *   Z[m][n] = sum over t < S of Q[m S + S - 1 - t] . K[n S + t],     one product over S * head_dim numbers;   c = scale log2(e)
 *   sums    L[m][b] = log2 of the sum over the groups n <= m of key block b of 2^(c Z[m][n])    [n_heads][slab_groups][row_blocks] f32
 *   select  p[m][b] = 2^(L[m][b] - log2 of the sum over b of 2^L[m][b]);  M[b] = sum of p over the groups m of a query block;
 *           blocks 0 and its own, then by descending M until the threshold -> bits
 *
 * L holds a block's own maximum in its exponent, so tiles need nothing from each other, no row of Z is kept, and the second
 * kernel needs no maximum of the first.  Rows go in slabs of slab_groups, so that L stays bounded whatever the prompt.
 *
 *   sums: tiles of 256 query groups of one head x 128 key groups
 *     producer (1 thread)  for each t and 64 columns of head_dim: TMA Q (every S-th row from S - 1 - t on) and K (from t on)
 *     math (2 x 128)       128 query groups each: 2 x [64][128] f32 registers; then block maxima, sums, log2
 *   Rows and keys behind the end come out of the copy engine as zeros, as the definition wants them.
 *
 * Shared memory 4 stages x 48 KiB; registers 2 x 128 x 232 + 128 x 40 of 65536.  Floor: head_dim / (2 S) multiply-adds a causal
 * pair where attention has 2 head_dim; at 131072 tokens, 32 heads of 128, S = 8: 8.8 TFLOP, 10 ms at 885 TFLOP/s, and 1 ms of
 * exponentials.  Bits: sums run in a fixed order, and a query block reads its own rows and earlier keys only. */
#include "attn/cuda/attn_rows.cuh"
#include "attn/cuda/sm90_maps.cuh"
#include "attn/cuda/sm90_ptx.cuh"
#include "pattern/xattention.h"

namespace {

enum { N_MATH = 2, N_THREADS = 128 * (N_MATH + 1), N_STAGES = 4, REGS_PRODUCER = 40, REGS_MATH = 232 };
enum { COLUMNS = 64, KEY_GROUPS = 128, ROW_BYTES = COLUMNS * 2 };
enum { SELECT_THREADS = 256, SELECT_WARPS = SELECT_THREADS / 32 };

struct mass_maps {                 /* map t begins at row t and takes every S-th */
    CUtensorMap q[XATTENTION_MAX_STRIDE], k[XATTENTION_MAX_STRIDE];
};

struct sums_launch {
    mass_launch common;
    mass_maps maps;
    int32_t slab_begin, n_slab;    /* query groups of this launch, from q_begin on */
};

struct alignas(1024) stage {
    unsigned char q[MASS_TILE_GROUPS * ROW_BYTES], k[KEY_GROUPS * ROW_BYTES];
};

struct alignas(1024) sums_smem {
    stage stages[N_STAGES];
    uint64_t full[N_STAGES], free[N_STAGES];
};
constexpr size_t SUMS_SMEM_BYTES = sizeof(sums_smem) + 1024;   /* the driver aligns to less than a swizzle needs */
static_assert(SUMS_SMEM_BYTES <= 227 * 1024, "shared memory of one CTA");

struct tile {
    int32_t head, q_row, m_first;  /* first query group: of the slab, of the sequence */
    int32_t key_tile;
};

/* Walks a CTA's tiles.  Those that work at the same time share keys of one KV head. */
struct tile_walk {
    const sums_launch &launch;
    int32_t n_group, n_row_tiles, n_key_tiles;
    int64_t index;

    DEVICE explicit tile_walk(const sums_launch &of) : launch(of)
    {
        const mass_launch &c = launch.common;
        n_group = c.n_heads / c.n_kv_heads;
        n_row_tiles = (launch.n_slab + MASS_TILE_GROUPS - 1) / MASS_TILE_GROUPS;
        n_key_tiles = (c.q_begin / c.stride + launch.slab_begin + launch.n_slab - 1) / KEY_GROUPS + 1;
        index = blockIdx.x;
    }

    DEVICE bool next(tile *t)
    {
        const mass_launch &c = launch.common;
        const int32_t n_side = n_group * n_row_tiles;
        const int64_t n_tiles = (int64_t)c.n_kv_heads * n_key_tiles * n_side;
        for (; index < n_tiles; index += gridDim.x) {
            const int32_t side = (int32_t)(index % n_side), row_tile = side / n_group;
            const int64_t rest = index / n_side;
            t->key_tile = (int32_t)(rest % n_key_tiles);
            t->head = (int32_t)(rest / n_key_tiles) * n_group + side % n_group;
            t->q_row = row_tile * MASS_TILE_GROUPS;
            t->m_first = c.q_begin / c.stride + launch.slab_begin + t->q_row;
            if (t->key_tile * KEY_GROUPS >= t->m_first + MASS_TILE_GROUPS) continue;       /* behind every group of the tile */
            index += gridDim.x;
            return true;
        }
        return false;
    }
};

/* Position in the ring of stages. */
struct stage_ring {
    int i = 0;
    uint32_t phase = 0;
    DEVICE void advance()
    {
        if (++i == N_STAGES) {
            i = 0;
            phase ^= 1;
        }
    }
};

DEVICE void load_tiles(const sums_launch &launch, sums_smem &smem)
{
    const mass_launch &c = launch.common;
    const int32_t n_group = c.n_heads / c.n_kv_heads;
    tile_walk walk(launch);
    stage_ring ring;
    for (tile t; walk.next(&t); ) {
        for (int32_t i = 0; i < c.stride; i++) {
            const int32_t q_first = c.stride - 1 - i;
            /* A map of no rows cannot be: where there is none from q_first on, take what lies behind its one row. */
            const int32_t q_row = q_first < c.n_q ? launch.slab_begin + t.q_row : MASS_TILE_GROUPS;
            for (int32_t column = 0; column < c.head_dim; column += COLUMNS, ring.advance()) {
                stage &to = smem.stages[ring.i];
                mbarrier_wait(&smem.free[ring.i], ring.phase ^ 1);
                mbarrier_arrive_expect(&smem.full[ring.i], sizeof(stage));
                tma_load_3d(to.q, &launch.maps.q[q_first], &smem.full[ring.i], column, t.head, q_row);
                tma_load_3d(to.k, &launch.maps.k[i], &smem.full[ring.i], column, t.head / n_group, t.key_tile * KEY_GROUPS);
            }
        }
    }
}

/* log2 of the weights' sum in each key block, for the thread's rows of a [64][128] fragment; lane b % 4 of a quad writes block b.
 * BLOCK_GROUPS: key groups of a block. */
template <int BLOCK_GROUPS> DEVICE void write_sums(float (&z)[KEY_GROUPS / 2], int32_t m_first, int32_t n_first, float scale_log2, float *to, size_t row_stride)
{
    constexpr int N_BLOCKS = KEY_GROUPS / BLOCK_GROUPS, N_PAIRS = BLOCK_GROUPS / 8;
    const int32_t row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4, lane = threadIdx.x % 4;
    const bool is_partial = n_first + KEY_GROUPS - 1 > m_first;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int32_t own = m_first + row + 8 * r - n_first - lane_column();       /* the last column it sees */
        float *out = to + (size_t)(row + 8 * r) * row_stride;
#pragma unroll
        for (int b = 0; b < N_BLOCKS; b++) {
            float max = -CUDART_INF_F, sum = 0.0f;
#pragma unroll
            for (int i = b * N_PAIRS; i < (b + 1) * N_PAIRS; i++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float &s = z[4 * i + 2 * r + j];
                    if (is_partial && 8 * i + j > own) s = -CUDART_INF_F;
                    max = fmaxf(max, s);
                }
            }
            max = quad_max(max);
            const float shift = max == -CUDART_INF_F ? 0.0f : __fmul_rn(max, scale_log2);
#pragma unroll
            for (int i = b * N_PAIRS; i < (b + 1) * N_PAIRS; i++) {
#pragma unroll
                for (int j = 0; j < 2; j++) sum += exp2_fast(fmaf(z[4 * i + 2 * r + j], scale_log2, -shift));
            }
            sum = quad_sum(sum);
            if (lane == b % 4) out[b] = shift + __log2f(sum);
        }
    }
}

template <typename T, int BLOCK_GROUPS> DEVICE void multiply_tiles(const sums_launch &launch, sums_smem &smem, int32_t wg)
{
    const mass_launch &c = launch.common;
    const int32_t n_stages = c.stride * (c.head_dim / COLUMNS);
    float low[KEY_GROUPS / 2], high[KEY_GROUPS / 2];   /* 64 query groups each */
    tile_walk walk(launch);
    stage_ring ring;
    for (tile t; walk.next(&t); ) {
        int before = 0;
        for (int32_t k = 0; k < n_stages; k++) {
            const stage &from = smem.stages[ring.i];
            mbarrier_wait(&smem.full[ring.i], ring.phase);
            const uint64_t q_tile = wgmma_descriptor(from.q + 128 * wg * ROW_BYTES, 0), k_tile = wgmma_descriptor(from.k, 0);
            wgmma_fence();
#pragma unroll
            for (int d = 0; d < COLUMNS; d += 16) {
                const uint64_t at = d * 2 >> 4;
                wgmma_ss<KEY_GROUPS, T>(low, q_tile + at, k_tile + at, k > 0 || d > 0);
                wgmma_ss<KEY_GROUPS, T>(high, q_tile + (64 * ROW_BYTES >> 4) + at, k_tile + at, k > 0 || d > 0);
            }
            wgmma_commit();
            if (k > 0) {
                wgmma_wait<1>();
                if (threadIdx.x % 32 == 0) mbarrier_arrive(&smem.free[before]);
            }
            before = ring.i;
            ring.advance();
        }
        wgmma_wait<0>(low);
        settle(high);
        if (threadIdx.x % 32 == 0) mbarrier_arrive(&smem.free[before]);
        const int32_t m_first = t.m_first + 128 * wg, n_first = t.key_tile * KEY_GROUPS;
        const size_t row = (size_t)t.head * c.slab_groups + t.q_row + 128 * wg;
        float *to = c.block_sums + row * c.row_blocks + t.key_tile * c.stride;
        write_sums<BLOCK_GROUPS>(low, m_first, n_first, c.scale_log2, to, c.row_blocks);
        write_sums<BLOCK_GROUPS>(high, m_first + 64, n_first, c.scale_log2, to + (size_t)64 * c.row_blocks, c.row_blocks);
    }
}

template <typename T, int BLOCK_GROUPS>
__global__ void __launch_bounds__(N_THREADS, 1) attn_mass_sums(const __grid_constant__ sums_launch launch)
{
    extern __shared__ unsigned char smem_bytes[];
    sums_smem &smem = *(sums_smem *)(smem_bytes + (-smem_address(smem_bytes) & 1023));
    if (threadIdx.x == 0) {
        for (int i = 0; i < N_STAGES; i++) {
            mbarrier_init(&smem.full[i], 1);
            mbarrier_init(&smem.free[i], 4 * N_MATH);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    const int32_t wg = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    if (wg == N_MATH) {
        regs_shrink<REGS_PRODUCER>();
        if (threadIdx.x == 128 * N_MATH) load_tiles(launch, smem);
    } else {
        regs_grow<REGS_MATH>();
        multiply_tiles<T, BLOCK_GROUPS>(launch, smem, wg);
    }
}

/* ---------------------------------------------------------------- selection: one CTA = one query block of one head */

/* The same sum in every thread, in a fixed order. */
DEVICE double cta_sum(double x, double (&parts)[2][SELECT_WARPS], int &turn)
{
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffff, x, i);
    turn ^= 1;                     /* two buffers: one barrier a sum */
    if (threadIdx.x % 32 == 0) parts[turn][threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < SELECT_WARPS; i++) sum += parts[turn][i];
    return sum;
}

/* log2 of the sum of 2^x[b] over b < n, of a warp. */
DEVICE float log_sum(const float *x, int32_t n)
{
    float max = -CUDART_INF_F;
    double sum = 0;
    for (int32_t b = threadIdx.x % 32; b < n; b += 32) max = fmaxf(max, x[b]);
    for (int i = 16; i > 0; i /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, i));
    for (int32_t b = threadIdx.x % 32; b < n; b += 32) sum += (double)exp2_fast(x[b] - max);
    for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffff, sum, i);
    return max + log2f((float)sum);
}

/* The blocks of [1, a) with a mass above that of the bits `least`, and the first n_ties of those with this very mass; 0 and a
 * always.  One warp. */
DEVICE void write_list(const float *mass, int32_t a, uint32_t least, int32_t n_ties, uint64_t *list, int32_t n_words)
{
    const int32_t lane = threadIdx.x % 32;
    for (int32_t half = 0; half < 2 * n_words; half++) {
        const int32_t b = 32 * half + lane;
        const uint32_t bits = b < a ? __float_as_uint(mass[b]) : 0;
        const bool is_other = b > 0 && b < a;
        const uint32_t ties = __ballot_sync(0xffffffff, is_other && bits == least);
        const uint32_t kept = __ballot_sync(0xffffffff, b == 0 || b == a || (is_other && bits > least)
                                                        || ((ties >> lane & 1) && __popc(ties & ((1u << lane) - 1)) < n_ties));
        n_ties = max_i32(0, n_ties - __popc(ties));
        if (lane == 0) ((uint32_t *)list)[half] = kept;
    }
}

DEVICE void write_all(int32_t a, uint64_t *list, int32_t n_words)
{
    for (int32_t i = threadIdx.x; i < n_words; i += SELECT_THREADS) {
        const int32_t n = a + 1 - 64 * i;
        list[i] = n >= 64 ? ~(uint64_t)0 : n > 0 ? ((uint64_t)1 << n) - 1 : 0;
    }
}

__global__ void __launch_bounds__(SELECT_THREADS) attn_mass_select(const mass_launch c, int32_t slab_begin)
{
    extern __shared__ float mass[];            /* [a + 1] */
    __shared__ double parts[2][SELECT_WARPS];
    __shared__ float whole[KEY_BLOCK / 4];     /* of each query group, log2 */
    int turn = 0;
    const int32_t block_groups = KEY_BLOCK / c.stride, first_row = blockIdx.x * block_groups, head = blockIdx.y;
    const int32_t a = (c.q_begin / c.stride + slab_begin + first_row) / block_groups, n_words = c.lists.n_words;
    uint64_t *list = c.lists.bits + ((size_t)head * c.lists.n_blocks + (a - c.lists.first_block)) * n_words;
    if (a < 2 || c.threshold >= 1) {
        write_all(a, list, n_words);
        return;
    }
    const int32_t n_rows = min_i32(KEY_BLOCK, c.q_begin + c.n_q - a * KEY_BLOCK);
    const int32_t n_groups = (n_rows + c.stride - 1) / c.stride;
    const float *sums = c.block_sums + ((size_t)head * c.slab_groups + first_row) * c.row_blocks;
    for (int32_t m = threadIdx.x / 32; m < n_groups; m += SELECT_WARPS) whole[m] = log_sum(sums + (size_t)m * c.row_blocks, a + 1);
    __syncthreads();
    double of_all = 0;
    for (int32_t b = threadIdx.x; b <= a; b += SELECT_THREADS) {
        double sum = 0;
        for (int32_t m = 0; m < n_groups; m++) sum += (double)exp2_fast(sums[(size_t)m * c.row_blocks + b] - whole[m]);
        mass[b] = (float)sum;
        of_all += (double)mass[b];
    }
    of_all = cta_sum(of_all, parts, turn);
    if (!isfinite(of_all)) {
        write_all(a, list, n_words);
        return;
    }
    /* The largest mass, as bits, such that the blocks of at least it reach the threshold; masses are not negative, so their order
     * is that of their bits. */
    const double forced = (double)mass[0] + (double)mass[a], needed = c.threshold * of_all;
    uint32_t least = 0x7f800000;
    int32_t n_ties = 0;
    if (forced < needed) {
        least = 0;
        for (int bit = 30; bit >= 0; bit--) {
            const uint32_t tried = least | 1u << bit;
            double sum = 0;
            for (int32_t b = threadIdx.x; b < a; b += SELECT_THREADS) {
                if (b > 0 && __float_as_uint(mass[b]) >= tried) sum += (double)mass[b];
            }
            if (forced + cta_sum(sum, parts, turn) >= needed) least = tried;
        }
        double above = 0;
        for (int32_t b = threadIdx.x; b < a; b += SELECT_THREADS) {
            if (b > 0 && __float_as_uint(mass[b]) > least) above += (double)mass[b];
        }
        double kept = forced + cta_sum(above, parts, turn);
        for (const double tie = (double)__uint_as_float(least); kept < needed && n_ties < a; kept += tie) n_ties++;
    }
    if (threadIdx.x < 32) write_list(mass, a, least, n_ties, list, n_words);
}

/* ---------------------------------------------------------------- pairs */

__global__ void attn_lists_pairs(key_lists lists, int32_t q_begin, int32_t q_end, unsigned long long *n_pairs)
{
    unsigned long long n = 0;
    const int64_t n_lists = (int64_t)lists.n_heads * lists.n_blocks;
    const int64_t i = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= n_lists) return;
    const int32_t own = lists.first_block + (int32_t)(i % lists.n_blocks), lane = threadIdx.x % 32;
    const int32_t begin = max_i32(q_begin, own * KEY_BLOCK), end = min_i32(q_end, (own + 1) * KEY_BLOCK);
    const uint64_t *list = lists.bits + i * lists.n_words;
    if (begin >= end) return;
    const unsigned long long n_rows = end - begin, first = begin - own * KEY_BLOCK;
    for (int32_t w = lane; w <= own / 64; w += 32) {
        uint64_t word = list[w];
        if (w == own / 64) {
            if (word >> own % 64 & 1) n += n_rows * first + n_rows * (n_rows + 1) / 2;
            word &= ((uint64_t)1 << own % 64) - 1;
        }
        n += (unsigned long long)__popcll(word) * KEY_BLOCK * n_rows;
    }
    if (n > 0) atomicAdd(n_pairs, n);
}

/* ---------------------------------------------------------------- host */

tmx_status encode_rows(encode_fn encode, CUtensorMap *map, const mass_launch *c, const char *name, const void *data, int32_t n_rows,
                       int32_t first, int32_t n_heads, size_t pos_stride, size_t head_stride, int32_t box, tmx_error *err)
{
    const bool is_there = first < n_rows;
    const map_axis axes[] = {
        { (uint64_t)c->head_dim, 1, COLUMNS },
        { (uint64_t)n_heads, head_stride, 1 },
        { is_there ? (uint64_t)((n_rows - first - 1) / c->stride + 1) : 1, (size_t)c->stride * pos_stride, box },
    };
    const char *from = (const char *)data + (is_there ? (size_t)first * pos_stride * 2 : 0);
    return encode_map(encode, map, c->is_f16, name, from, axes, 3, err);
}

template <typename T, int BLOCK_GROUPS>
tmx_status enqueue_sums(const sums_launch *launch, int32_t n_sms, cudaStream_t stream, tmx_error *err)
{
    return launch_kernel("attn_mass_sums", attn_mass_sums<T, BLOCK_GROUPS>, n_sms, N_THREADS, SUMS_SMEM_BYTES, stream, err, *launch);
}

template <typename T> tmx_status enqueue_for(const sums_launch *launch, int32_t n_sms, cudaStream_t stream, tmx_error *err)
{
    switch (launch->common.stride) {
    case 4: return enqueue_sums<T, KEY_BLOCK / 4>(launch, n_sms, stream, err);
    case 8: return enqueue_sums<T, KEY_BLOCK / 8>(launch, n_sms, stream, err);
    default: return enqueue_sums<T, KEY_BLOCK / 16>(launch, n_sms, stream, err);
    }
}

}

extern "C" tmx_status cuda_run_mass(const mass_launch *launch, void *stream, tmx_error *err)
{
    const mass_launch *c = launch;
    sums_launch full;
    encode_fn encode;
    int device, n_sms;
    TRY(find_encode(&encode, err));
    CUDA_TRY(cudaGetDevice(&device), err);
    CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device), err);
    full.common = *c;
    for (int32_t t = 0; t < c->stride; t++) {
        TRY(encode_rows(encode, &full.maps.q[t], c, "q", c->q, c->n_q, t, c->n_heads, c->q_pos_stride, c->q_head_stride,
                        MASS_TILE_GROUPS, err));
        TRY(encode_rows(encode, &full.maps.k[t], c, "k", c->k, c->q_begin + c->n_q, t, c->n_kv_heads, c->k_pos_stride,
                        c->k_head_stride, KEY_GROUPS, err));
    }
    const int32_t n_groups = (c->n_q - 1) / c->stride + 1, block_groups = KEY_BLOCK / c->stride;
    const size_t n_mass_bytes = (size_t)c->row_blocks * sizeof(float);
    const bool needs_sums = c->q_begin + c->n_q > 2 * KEY_BLOCK && c->threshold < 1;
    for (full.slab_begin = 0; full.slab_begin < n_groups; full.slab_begin += c->slab_groups) {
        full.n_slab = min_i32(c->slab_groups, n_groups - full.slab_begin);
        if (needs_sums) {
            TRY(c->is_f16 ? enqueue_for<__half>(&full, n_sms, (cudaStream_t)stream, err)
                          : enqueue_for<__nv_bfloat16>(&full, n_sms, (cudaStream_t)stream, err));
        }
        const dim3 grid((unsigned)((full.n_slab - 1) / block_groups + 1), (unsigned)c->n_heads);
        TRY(launch_kernel("attn_mass_select", attn_mass_select, grid, SELECT_THREADS, n_mass_bytes, (cudaStream_t)stream, err, *c, full.slab_begin));
    }
    return TMX_OK;
}

extern "C" tmx_status cuda_add_pairs(const key_lists *lists, int32_t q_begin, int32_t q_end, uint64_t *n_pairs, void *stream,
                                     tmx_error *err)
{
    const int64_t n_lists = (int64_t)lists->n_heads * lists->n_blocks;
    if (n_lists == 0) return TMX_OK;
    return launch_kernel("attn_lists_pairs", attn_lists_pairs, (unsigned)((n_lists - 1) / 8 + 1), 256, 0, (cudaStream_t)stream, err, *lists,
                         q_begin, q_end, (unsigned long long *)n_pairs);
}
