/* attn_sm90_flexprefill.cu - FlexPrefill's estimator (pattern/flexprefill.h has the definition), heads_at_once heads at a time.
 * n = prompt, nb = its blocks of B = KEY_BLOCK, d = head_dim; the probe is the last B rows.
 *
 *   attn_flex_means     mean_k [nb][d] of a KV head, mean_probe [d] of a head            one CTA = one block
 *   attn_flex_rows      largest score and sum of weights of each probe row               one CTA = PART_BLOCKS key blocks of a head
 *   attn_flex_norm      the same over all keys                                           one CTA = one head
 *   attn_flex_masses    scores once more, now as probabilities: by_key, by_distance      as attn_flex_rows
 *   attn_flex_blocks    their sums over blocks                                           one CTA = one block
 *   attn_flex_kind      pooled [nb], the Jensen-Shannon distance, the kind of head       one CTA = one head
 *   attn_flex_coverage  how many columns and diagonals                                   one cluster = by_key or by_distance of a head
 *   attn_flex_keep      which: those with a rank below the budget
 *   attn_flex_write     every word of the lists
 * and of query-aware heads alone (CTAs of the others return at once):
 *   attn_flex_means     mean_q [nb][d]
 *   attn_flex_map       mean_q . mean_k, row m at m (m + 1) / 2                          one CTA = 64 rows
 *   attn_flex_soften    their softmax                                                    one CTA = one row
 *   attn_flex_tiles     the heaviest tiles, into the lists                               one cluster = one head
 *
 * Instead of a sort, a threshold: heaviest_cut finds the least of the largest values that add up to at most a limit by two bits of it
 * at a time, 15 passes over values that stay in L2.  Scores take two passes for the same reason as on the CPU: keeping them would
 * take more memory than making them takes time.  Every sum has a fixed order: the bits depend on Q and K alone.
 * Floor at 131072 tokens of 32 heads: see perf-log.md. */
#include "attn/cuda/attn_rows.cuh"
#include "attn/cuda/cuda_status.cuh"
#include "base/mma_ptx.cuh"

#include <cooperative_groups.h>

extern "C" {
#include "base/num.h"
}

namespace {

namespace cg = cooperative_groups;

enum { N_THREADS = 256, N_WARPS = N_THREADS / 32, PAD = 8, MASS_PITCH = KEY_BLOCK + 8 };   /* pitches without bank conflicts */
enum { MAP_TILE = 64, MAP_PITCH = MAP_TILE + 4 };
enum { CUT_CTAS = 8, CUT_THREADS = 512, CUT_WARPS = CUT_THREADS / 32, CUT_TOP = 28 };     /* 30 bits: values below 2 */
enum head_kind { KEEPS_ALL, HAS_LINES, IS_QUERY_AWARE };

static_assert(KEY_BLOCK == 16 * N_WARPS, "a warp owns 16 rows of the probe");
static_assert(N_THREADS == 2 * KEY_BLOCK, "a thread owns a column, or what a block adds to two diagonals");

/* ---------------------------------------------------------------- sums in a fixed order, the same in every thread */

template <int WARPS> DEVICE double cta_sum(double x, double (&parts)[WARPS])
{
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffff, x, i);
    __syncthreads();               /* parts of the sum before are read */
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < WARPS; i++) sum += parts[i];
    return sum;
}

template <int WARPS> DEVICE double cta_max(double x, double (&parts)[WARPS])
{
    for (int i = 16; i > 0; i /= 2) x = fmax(x, __shfl_xor_sync(0xffffffff, x, i));
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    double max = parts[0];
    for (int i = 1; i < WARPS; i++) max = fmax(max, parts[i]);
    return max;
}

/* ---------------------------------------------------------------- means */

struct mean_rows {
    const void *x;                 /* of the first head */
    size_t pos_stride, head_stride;
    int32_t begin, end;            /* rows; block b begins at begin + b KEY_BLOCK */
    float *to;                     /* [heads][blocks][HEAD_DIM] */
    const int32_t *kinds;          /* only heads that are query-aware; NULL: all */
};

template <typename T, int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS) attn_flex_means(const mean_rows m)
{
    enum { LANES = HEAD_DIM / 8, ROWS = N_THREADS / LANES };
    __shared__ float parts[ROWS][HEAD_DIM];
    const int32_t block = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % LANES, part = threadIdx.x / LANES;
    if (m.kinds != NULL && m.kinds[head] != IS_QUERY_AWARE) return;
    const int32_t begin = m.begin + block * KEY_BLOCK, end = min_i32(m.end, begin + KEY_BLOCK);
    const T *x = (const T *)m.x + (size_t)head * m.head_stride + 8 * lane;
    float sum[8] = { 0 };
    for (int32_t row = begin + part; row < end; row += ROWS) {
        const uint4 bits = *(const uint4 *)(x + (size_t)row * m.pos_stride);
        T values[8];
        memcpy(values, &bits, sizeof values);
#pragma unroll
        for (int i = 0; i < 8; i++) sum[i] += (float)values[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) parts[part][8 * lane + i] = sum[i];
    __syncthreads();
    if (threadIdx.x >= HEAD_DIM) return;
    float all = 0;
    for (int i = 0; i < ROWS; i++) all += parts[i][threadIdx.x];
    m.to[((size_t)head * gridDim.x + block) * HEAD_DIM + threadIdx.x] = all / (float)(end - begin);
}

/* ---------------------------------------------------------------- the probe */

template <typename T, int HEAD_DIM> struct probe_tiles {
    T rows[2][KEY_BLOCK][HEAD_DIM + PAD];      /* the probe first, then key blocks in turns */
};

/* A block of rows from `first` on, zeros behind the end. */
template <typename T, int HEAD_DIM>
DEVICE void load_block(T (&to)[KEY_BLOCK][HEAD_DIM + PAD], const T *x, size_t pos_stride, int32_t first, int32_t end)
{
    enum { LANES = HEAD_DIM / 8, ROWS = N_THREADS / LANES };
    const int32_t lane = threadIdx.x % LANES;
#pragma unroll
    for (int32_t row = threadIdx.x / LANES; row < KEY_BLOCK; row += ROWS) {
        const bool is_there = first + row < end;
        copy_async(&to[row][8 * lane], x + (is_there ? (size_t)(first + row) * pos_stride + 8 * lane : 0), is_there);
    }
    copy_commit();
}

/* Walks the key blocks of a part: step(block, s) with the scores of the warp's 16 rows, hidden ones -infinity. */
template <typename T, int HEAD_DIM, typename step_fn>
DEVICE void walk_part(const flex_launch &c, probe_tiles<T, HEAD_DIM> &tiles, int32_t head, int32_t part, step_fn step)
{
    const T *q = (const T *)c.q + (size_t)head * c.q_head_stride;
    const T *k = (const T *)c.k + (size_t)(head / (c.n_heads / c.n_kv_heads)) * c.k_head_stride;
    const int32_t lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, first_row = c.n - KEY_BLOCK;
    const int32_t begin = part * FLEX_PART_BLOCKS, end = min_i32(key_blocks_of(c.n), begin + FLEX_PART_BLOCKS);
    uint32_t probe[HEAD_DIM / 16][4];
    load_block<T, HEAD_DIM>(tiles.rows[1], q, c.q_pos_stride, first_row, c.n);
    load_block<T, HEAD_DIM>(tiles.rows[0], k, c.k_pos_stride, begin * KEY_BLOCK, c.n);
    copy_wait<1>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) load_matrices(probe[i], &tiles.rows[1][warp_row + lane % 16][16 * i + lane / 16 * 8]);
    __syncthreads();
    for (int32_t block = begin; block < end; block++) {
        T (&keys)[KEY_BLOCK][HEAD_DIM + PAD] = tiles.rows[(block - begin) & 1];
        if (block + 1 < end) {
            load_block<T, HEAD_DIM>(tiles.rows[(block - begin + 1) & 1], k, c.k_pos_stride, (block + 1) * KEY_BLOCK, c.n);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float s[KEY_BLOCK / 2] = { 0 };
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; i++) {
#pragma unroll
            for (int j = 0; j < KEY_BLOCK / 16; j++) {
                uint32_t b[4];
                load_matrices(b, &keys[16 * j + lane / 16 * 8 + lane % 8][16 * i + lane / 8 % 2 * 8]);
                multiply_add(s + 8 * j, probe[i], b[0], b[1], T());
                multiply_add(s + 8 * j + 4, probe[i], b[2], b[3], T());
            }
        }
        if ((block + 1) * KEY_BLOCK - 1 > first_row) {
            const int32_t own = first_row + warp_row + lane / 4 - block * KEY_BLOCK - lane_column();   /* its last column */
#pragma unroll
            for (int i = 0; i < KEY_BLOCK / 2; i++) {
                if (i / 4 * 8 + i % 2 > own + i / 2 % 2 * 8) s[i] = -CUDART_INF_F;
            }
        }
        step(block, s);
        __syncthreads();           /* the next copy goes where these keys are */
    }
}

template <typename T, int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS, 2) attn_flex_rows(const flex_launch c, int32_t first_head)
{
    extern __shared__ __align__(16) unsigned char smem[];
    float max[2] = { -CUDART_INF_F, -CUDART_INF_F }, sum[2] = { 0, 0 };
    walk_part<T, HEAD_DIM>(c, *(probe_tiles<T, HEAD_DIM> *)smem, first_head + (int32_t)blockIdx.y, (int32_t)blockIdx.x,
                           [&](int32_t, float (&s)[KEY_BLOCK / 2]) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = max[r];
#pragma unroll
            for (int i = 2 * r; i < KEY_BLOCK / 2; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
            top = quad_max(top);
            const float shift = top == -CUDART_INF_F ? 0.0f : __fmul_rn(top, c.scale_log2);
            float more = 0;
#pragma unroll
            for (int i = 2 * r; i < KEY_BLOCK / 2; i += 4) {
                more += exp2_fast(fmaf(s[i], c.scale_log2, -shift)) + exp2_fast(fmaf(s[i + 1], c.scale_log2, -shift));
            }
            sum[r] = sum[r] * exp2_fast(__fmul_rn(max[r], c.scale_log2) - shift) + more;
            max[r] = top;
        }
    });
    float2 *to = (float2 *)c.part_rows + ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * KEY_BLOCK + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float all = quad_sum(sum[r]);
        if (threadIdx.x % 4 == 0) to[8 * r] = make_float2(max[r], all);
    }
}

/* rows: what a score becomes a share of the mean with: 2^(scale_log2 s - [0]) [1]. */
__global__ void __launch_bounds__(KEY_BLOCK) attn_flex_norm(const flex_launch c, int32_t n_parts)
{
    const float2 *parts = (const float2 *)c.part_rows + (size_t)blockIdx.x * n_parts * KEY_BLOCK + threadIdx.x;
    float max = -CUDART_INF_F;
    double sum = 0;
    for (int32_t i = 0; i < n_parts; i++) max = fmaxf(max, parts[(size_t)i * KEY_BLOCK].x);
    const float shift = __fmul_rn(max, c.scale_log2);
    for (int32_t i = 0; i < n_parts; i++) {
        const float2 part = parts[(size_t)i * KEY_BLOCK];
        sum += (double)part.y * (double)exp2_fast(__fmul_rn(part.x, c.scale_log2) - shift);
    }
    ((float2 *)c.rows)[(size_t)blockIdx.x * KEY_BLOCK + threadIdx.x] = make_float2(shift, (float)(1.0 / (sum * KEY_BLOCK)));
}

template <typename T, int HEAD_DIM> struct mass_smem {
    probe_tiles<T, HEAD_DIM> tiles;
    float share[KEY_BLOCK][MASS_PITCH];
};

/* Entry e = column - row + KEY_BLOCK - 1 of a block's diagonals belongs to by_distance[block KEY_BLOCK + e]: the first KEY_BLOCK
 * lie in the block's own entries, the others in those of the next, which takes them over (`later`), across parts by `spill`. */
template <typename T, int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS) attn_flex_masses(const flex_launch c, int32_t first_head)
{
    extern __shared__ __align__(16) unsigned char smem_bytes[];
    mass_smem<T, HEAD_DIM> &smem = *(mass_smem<T, HEAD_DIM> *)smem_bytes;
    const int32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, u = threadIdx.x % KEY_BLOCK;
    const bool is_column = threadIdx.x < KEY_BLOCK;
    const size_t n_padded = (size_t)key_blocks_of(c.n) * KEY_BLOCK;
    float *by_key = c.by_key + blockIdx.y * n_padded, *by_distance = c.by_distance + blockIdx.y * n_padded;
    const float2 norm[2] = { ((const float2 *)c.rows)[blockIdx.y * KEY_BLOCK + row], ((const float2 *)c.rows)[blockIdx.y * KEY_BLOCK + row + 8] };
    float later = 0;
    walk_part<T, HEAD_DIM>(c, smem.tiles, first_head + (int32_t)blockIdx.y, (int32_t)blockIdx.x,
                           [&](int32_t block, float (&s)[KEY_BLOCK / 2]) {
#pragma unroll
        for (int i = 0; i < KEY_BLOCK / 2; i += 2) {
            const float2 n = norm[i / 2 % 2];
            const float low = exp2_fast(fmaf(s[i], c.scale_log2, -n.x)) * n.y, high = exp2_fast(fmaf(s[i + 1], c.scale_log2, -n.x)) * n.y;
            *(float2 *)&smem.share[row + i / 2 % 2 * 8][i / 4 * 8 + lane_column()] = make_float2(low, high);
        }
        __syncthreads();
        float own = 0, next = 0;
        if (is_column) {
#pragma unroll 16
            for (int r = 0; r < KEY_BLOCK; r++) own += smem.share[r][u];
            by_key[block * KEY_BLOCK + u] = own;
        } else {
#pragma unroll 16
            for (int r = 0; r < KEY_BLOCK; r++) {
                const float share = smem.share[r][(r + u + 1) % KEY_BLOCK];
                if (r < KEY_BLOCK - 1 - u) next += share;
                else own += share;
            }
            by_distance[block * KEY_BLOCK + u] = own + later;
            later = next;
        }
    });
    if (!is_column) c.spill[((size_t)blockIdx.y * gridDim.x + blockIdx.x) * KEY_BLOCK + u] = later;
}

/* block_mass [2][nb]: columns; diagonals, the nearest first. */
__global__ void __launch_bounds__(KEY_BLOCK) attn_flex_blocks(const flex_launch c, int32_t n_parts)
{
    __shared__ double parts[KEY_BLOCK / 32];
    const int32_t block = blockIdx.x, nb = gridDim.x, i = block * KEY_BLOCK + threadIdx.x;
    const size_t at = (size_t)blockIdx.y * nb * KEY_BLOCK + i;
    if (block % FLEX_PART_BLOCKS == 0 && block > 0) {
        c.by_distance[at] += c.spill[((size_t)blockIdx.y * n_parts + block / FLEX_PART_BLOCKS - 1) * KEY_BLOCK + threadIdx.x];
    }
    const double column = cta_sum(i < c.n ? (double)c.by_key[at] : 0.0, parts);
    const double diagonal = cta_sum(i < c.n ? (double)c.by_distance[at] : 0.0, parts);
    double *mass = c.block_mass + (size_t)blockIdx.y * 2 * nb;
    if (threadIdx.x == 0) {
        mass[block] = column;
        mass[nb + nb - 1 - block] = diagonal;
    }
}

/* ---------------------------------------------------------------- the kind of a head */

__global__ void __launch_bounds__(N_THREADS) attn_flex_kind(const flex_launch c, int32_t first_head)
{
    __shared__ double parts[N_WARPS];
    const int32_t nb = key_blocks_of(c.n), head = blockIdx.x, lane = threadIdx.x % 32, n_group = c.n_heads / c.n_kv_heads;
    const int32_t kv = (first_head + head) / n_group - first_head / n_group;
    const float *probe = c.mean_probe + (size_t)head * c.head_dim, *keys = c.mean_k + (size_t)kv * nb * c.head_dim;
    const double *mass = c.block_mass + (size_t)head * 2 * nb;
    double *pooled = c.pooled + (size_t)head * nb, max = -CUDART_INF, sum = 0, whole = 0, apart = 0;
    for (int32_t b = threadIdx.x / 32; b < nb; b += N_WARPS) {
        double z = 0;
        for (int32_t i = lane; i < c.head_dim; i += 32) z += (double)probe[i] * (double)keys[(size_t)b * c.head_dim + i];
        for (int i = 16; i > 0; i /= 2) z += __shfl_xor_sync(0xffffffff, z, i);
        if (lane == 0) pooled[b] = z * c.scale;
    }
    __syncthreads();
    for (int32_t b = threadIdx.x; b < nb; b += N_THREADS) max = fmax(max, pooled[b]);
    max = cta_max(max, parts);
    for (int32_t b = threadIdx.x; b < nb; b += N_THREADS) sum += exp(pooled[b] - max);
    sum = cta_sum(sum, parts);
    bool has_zero = false;
    for (int32_t b = threadIdx.x; b < nb; b += N_THREADS) {
        const double p = exp(pooled[b] - max) / sum, v = mass[b], mean = (p + v) / 2;
        whole += p + v + mass[nb + b];
        has_zero |= (float)p == 0.0f || (float)v == 0.0f;
        if (p > 0 && v > 0) apart += 0.5 * p * log(p / mean) + 0.5 * v * log(v / mean);
    }
    whole = cta_sum(whole, parts);
    apart = cta_sum(apart, parts);
    has_zero = __syncthreads_or(has_zero);
    if (threadIdx.x == 0) {
        const bool is_near = !has_zero && sqrt(fmax(apart, 0.0)) < c.tau;
        c.kinds[head] = !isfinite(whole) ? KEEPS_ALL : is_near ? IS_QUERY_AWARE : HAS_LINES;
    }
}

/* ---------------------------------------------------------------- the largest values up to a limit */

struct cut {
    uint32_t least;                /* bits of the value that crosses the limit */
    double n_above, n_ties;        /* values above it; of those equal to it, how many are among the largest */
    double ties_before;            /* values equal to it in the CTAs before this one */
    bool has_all;                  /* nothing crosses */
};

struct cut_smem {
    double parts[CUT_WARPS];
    double of_cta[2][3];           /* for the others of the cluster to read, in turns: one barrier a pass */
    double sums[3], before[3];     /* of the cluster, of the CTAs before this one */
};

/* sums of the cluster, in the order of its CTAs; before: those of the CTAs before this one. */
DEVICE void cluster_sums(cut_smem &smem, int &turn, double (&x)[3], double (&before)[3])
{
    cg::cluster_group cluster = cg::this_cluster();
    double sum[3];
#pragma unroll
    for (int i = 0; i < 3; i++) sum[i] = cta_sum(x[i], smem.parts);
    turn ^= 1;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int i = 0; i < 3; i++) smem.of_cta[turn][i] = sum[i];
    }
    cluster.sync();
    if (threadIdx.x < 3) {
        double all = 0, earlier = 0;
        for (uint32_t rank = 0; rank < CUT_CTAS; rank++) {
            if (rank == cluster.block_rank()) earlier = all;
            all += cluster.map_shared_rank(&smem.of_cta[turn][0], rank)[threadIdx.x];
        }
        smem.sums[threadIdx.x] = all;
        smem.before[threadIdx.x] = earlier;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 3; i++) {
        x[i] = smem.sums[i];
        before[i] = smem.before[i];
    }
}

/* Of all x [n] the largest that add up to at most `limit`; this CTA looks at [begin, end).  Values are not negative, so their order is
 * that of their bits.  Ends with a barrier of the cluster. */
DEVICE cut heaviest_cut(const float *x, int64_t begin, int64_t end, double limit, cut_smem &smem)
{
    cut found = { 0, 0, 0, 0, false };
    double sums[3] = { 0, 0, 0 }, before[3];
    int turn = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += CUT_THREADS) sums[0] += (double)x[i];
    cluster_sums(smem, turn, sums, before);
    found.has_all = !(sums[0] > limit);
    for (int shift = CUT_TOP; shift >= 0 && !found.has_all; shift -= 2) {
        sums[0] = sums[1] = sums[2] = 0;
        for (int64_t i = begin + threadIdx.x; i < end; i += CUT_THREADS) {
            const float value = x[i];
            const uint32_t bits = __float_as_uint(value);
#pragma unroll
            for (uint32_t j = 0; j < 3; j++) {
                if (bits >= (found.least | (j + 1) << shift)) sums[j] += (double)value;
            }
        }
        cluster_sums(smem, turn, sums, before);
        found.least |= (uint32_t)((sums[0] > limit) + (sums[1] > limit) + (sums[2] > limit)) << shift;
    }
    sums[0] = sums[1] = sums[2] = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += CUT_THREADS) {
        const float value = x[i];
        const uint32_t bits = __float_as_uint(value);
        if (bits > found.least) {
            sums[0] += (double)value;
            sums[1] += 1;
        }
        sums[2] += bits == found.least;
    }
    cluster_sums(smem, turn, sums, before);
    found.n_above = sums[1];
    found.ties_before = before[2];
    found.n_ties = found.has_all ? sums[2] : fmin(sums[2] - 1, floor((limit - sums[0]) / (double)__uint_as_float(found.least)));
    cg::this_cluster().sync();     /* nobody leaves while others read */
    return found;
}

/* The CTA's share of n values. */
DEVICE void share_of(int64_t n, int64_t *begin, int64_t *end)
{
    const int64_t each = (n + CUT_CTAS * CUT_THREADS - 1) / (CUT_CTAS * CUT_THREADS) * CUT_THREADS;
    *begin = (int64_t)cg::this_cluster().block_rank() * each;
    *end = *begin + each < n ? *begin + each : n;
}

/* budgets [2]: blocks of columns, of diagonals. */
__global__ void __cluster_dims__(CUT_CTAS, 1, 1) __launch_bounds__(CUT_THREADS) attn_flex_coverage(const flex_launch c)
{
    __shared__ cut_smem smem;
    const int32_t nb = key_blocks_of(c.n), head = blockIdx.z, least = min_i32(nb, key_blocks_of(c.min_budget));
    int32_t *budget = c.budgets + 2 * head + blockIdx.y;
    if (c.kinds[head] != HAS_LINES) {
        if (blockIdx.x == 0 && threadIdx.x == 0) *budget = least;
        return;
    }
    int64_t begin, end;
    share_of(c.n, &begin, &end);
    const float *x = (blockIdx.y == 0 ? c.by_key : c.by_distance) + (size_t)head * nb * KEY_BLOCK;
    const cut found = heaviest_cut(x, begin, end, c.gamma, smem);
    const int32_t n_covered = found.has_all ? c.n + 1 : 1 + (int32_t)(found.n_above + found.n_ties);
    if (blockIdx.x == 0 && threadIdx.x == 0) *budget = min_i32(nb, max_i32(least, n_covered / FLEX_BUDGET_UNIT + 1));
}

/* ---------------------------------------------------------------- columns and diagonals -> lists */

/* kept [2][n_kept_words]: a bit for each column or diagonal whose rank is below the budget.  Comparing each with all is exact about
 * ties and, at a few thousand blocks, cheaper than a sort. */
__global__ void __launch_bounds__(N_THREADS) attn_flex_keep(const flex_launch c)
{
    const int32_t nb = key_blocks_of(c.n), head = blockIdx.z, b = blockIdx.x * N_THREADS + threadIdx.x, n_words = key_list_words(nb) * 2;
    const double *mass = c.block_mass + ((size_t)head * 2 + blockIdx.y) * nb;
    const double own = b == 0 ? CUDART_INF : b < nb ? mass[b] : 0.0;
    int32_t rank = b > 0;          /* block 0 is before all */
    for (int32_t i = 1; i < nb; i++) rank += mass[i] > own || (mass[i] == own && i < b);
    const uint32_t kept = __ballot_sync(0xffffffff, b < nb && rank < c.budgets[2 * head + blockIdx.y]);
    if (threadIdx.x % 32 == 0 && b / 32 < n_words) c.kept[((size_t)head * 2 + blockIdx.y) * n_words + b / 32] = kept;
}

DEVICE uint32_t word_of(const uint32_t *words, int32_t i, int32_t n) { return i >= 0 && i < n ? words[i] : 0; }

/* Bits [first, first + 64), zeros outside. */
DEVICE uint64_t window_of(const uint32_t *words, int32_t first, int32_t n_words)
{
    const int32_t i = first >> 5, shift = first & 31;
    const uint64_t low = (uint64_t)word_of(words, i + 1, n_words) << 32 | word_of(words, i, n_words);
    return shift == 0 ? low : low >> shift | (uint64_t)word_of(words, i + 2, n_words) << (64 - shift);
}

__global__ void __launch_bounds__(N_THREADS) attn_flex_write(const flex_launch c, int32_t first_head, bool keeps_all)
{
    const int32_t nb = key_blocks_of(c.n), n_words = c.lists.n_words, n_kept = key_list_words(nb) * 2;
    const int64_t i = (int64_t)blockIdx.x * N_THREADS + threadIdx.x;
    if (i >= (int64_t)nb * n_words) return;
    const int32_t row = (int32_t)(i / n_words), first = (int32_t)(i % n_words) * 64, n_seen = row + 1 - first;
    const uint64_t seen = n_seen >= 64 ? ~(uint64_t)0 : n_seen > 0 ? ((uint64_t)1 << n_seen) - 1 : 0;
    uint64_t word = ~(uint64_t)0;
    if (!keeps_all && c.kinds[blockIdx.y] != KEEPS_ALL) {
        const uint32_t *columns = c.kept + (size_t)blockIdx.y * 2 * n_kept, *diagonals = columns + n_kept;
        word = window_of(columns, first, n_kept) | __brevll(window_of(diagonals, row - first - 63, n_kept));
    }
    c.lists.bits[(size_t)(first_head + (int32_t)blockIdx.y) * nb * n_words + i] = word & seen;
}

/* ---------------------------------------------------------------- query-aware heads */

DEVICE size_t row_begin(int32_t row) { return (size_t)row * (row + 1) / 2; }

template <int HEAD_DIM> struct map_smem {
    float q[HEAD_DIM][MAP_PITCH], k[HEAD_DIM][MAP_PITCH];
};

template <int HEAD_DIM> DEVICE void load_means(float (&to)[HEAD_DIM][MAP_PITCH], const float *means, int32_t first, int32_t n)
{
    for (int32_t i = threadIdx.x; i < MAP_TILE * HEAD_DIM; i += N_THREADS) {
        const int32_t row = first + i / HEAD_DIM;
        to[i % HEAD_DIM][i / HEAD_DIM] = row < n ? means[(size_t)row * HEAD_DIM + i % HEAD_DIM] : 0.0f;
    }
}

template <int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS) attn_flex_map(const flex_launch c, int32_t first_head)
{
    extern __shared__ __align__(16) unsigned char smem_bytes[];
    map_smem<HEAD_DIM> &smem = *(map_smem<HEAD_DIM> *)smem_bytes;
    const int32_t nb = key_blocks_of(c.n), head = blockIdx.y, n_group = c.n_heads / c.n_kv_heads;
    if (c.kinds[head] != IS_QUERY_AWARE) return;
    const int32_t kv = (first_head + head) / n_group - first_head / n_group, m_first = (gridDim.x - 1 - blockIdx.x) * MAP_TILE;
    const int32_t row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    float *map = c.map + (size_t)head * row_begin(nb);
    load_means<HEAD_DIM>(smem.q, c.mean_q + (size_t)head * nb * HEAD_DIM, m_first, nb);
    for (int32_t n_first = 0; n_first <= m_first; n_first += MAP_TILE) {
        __syncthreads();
        load_means<HEAD_DIM>(smem.k, c.mean_k + (size_t)kv * nb * HEAD_DIM, n_first, nb);
        __syncthreads();
        float z[4][4] = { { 0 } };
#pragma unroll 4
        for (int d = 0; d < HEAD_DIM; d++) {
            const float4 a = *(const float4 *)&smem.q[d][row], b = *(const float4 *)&smem.k[d][column];
            const float q[4] = { a.x, a.y, a.z, a.w }, k[4] = { b.x, b.y, b.z, b.w };
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) z[i][j] = fmaf(q[i], k[j], z[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int32_t m = m_first + row + i, n = n_first + column + j;
                if (m < nb && n <= m) map[row_begin(m) + n] = z[i][j] * c.scale_log2;
            }
        }
    }
}

/* A row that is no numbers becomes zeros: on the CPU such tiles come last. */
__global__ void __launch_bounds__(N_THREADS) attn_flex_soften(const flex_launch c)
{
    __shared__ double parts[N_WARPS];
    const int32_t row = blockIdx.x, nb = gridDim.x;
    if (c.kinds[blockIdx.y] != IS_QUERY_AWARE) return;
    float *z = c.map + blockIdx.y * row_begin(nb) + row_begin(row);
    float max = -CUDART_INF_F;
    double sum = 0;
    for (int32_t i = threadIdx.x; i <= row; i += N_THREADS) max = fmaxf(max, z[i]);
    max = (float)cta_max((double)max, parts);
    for (int32_t i = threadIdx.x; i <= row; i += N_THREADS) sum += (double)exp2f(z[i] - max);
    sum = cta_sum(sum, parts);
    for (int32_t i = threadIdx.x; i <= row; i += N_THREADS) {
        const float p = (float)((double)exp2f(z[i] - max) / sum);
        z[i] = isnan(p) ? 0.0f : p;
    }
}

DEVICE void keep_tile(uint64_t *lists, int32_t n_words, int64_t tile)
{
    int32_t row = (int32_t)((sqrt(8.0 * (double)tile + 1) - 1) / 2);       /* up to rounding */
    while ((int64_t)row_begin(row) > tile) row--;
    while ((int64_t)row_begin(row + 1) <= tile) row++;
    const int32_t block = (int32_t)(tile - (int64_t)row_begin(row));
    atomicOr((unsigned long long *)lists + (size_t)row * n_words + block / 64, 1ull << block % 64);
}

__global__ void __cluster_dims__(CUT_CTAS, 1, 1) __launch_bounds__(CUT_THREADS) attn_flex_tiles(const flex_launch c, int32_t first_head)
{
    __shared__ cut_smem smem;
    __shared__ int32_t of_warp[CUT_WARPS];
    const int32_t nb = key_blocks_of(c.n), head = blockIdx.y, n_words = c.lists.n_words, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (c.kinds[head] != IS_QUERY_AWARE) return;
    const float *map = c.map + (size_t)head * row_begin(nb);
    uint64_t *lists = c.lists.bits + (size_t)(first_head + head) * nb * n_words;
    int64_t begin, end;
    share_of((int64_t)row_begin(nb), &begin, &end);
    const cut found = heaviest_cut(map, begin, end, c.gamma * nb, smem);
    int64_t n_ties = (int64_t)(found.n_ties - found.ties_before);      /* left to this CTA; the earlier in row order first */
    for (int64_t first = begin; first < end; first += CUT_THREADS) {
        const int64_t tile = first + threadIdx.x;
        const uint32_t bits = tile < end ? __float_as_uint(map[tile]) : 0;
        const bool is_tie = tile < end && bits == found.least;
        bool is_kept = tile < end && bits > found.least;
        if (n_ties > 0 && __syncthreads_or(is_tie)) {
            const uint32_t ties = __ballot_sync(0xffffffff, is_tie);
            int32_t rank = __popc(ties & ((1u << lane) - 1)), n_all = 0;
            if (lane == 0) of_warp[warp] = __popc(ties);
            __syncthreads();
            for (int i = 0; i < CUT_WARPS; i++) {
                if (i < warp) rank += of_warp[i];
                n_all += of_warp[i];
            }
            is_kept |= is_tie && rank < n_ties;
            n_ties -= n_all;
            __syncthreads();
        }
        if (is_kept) keep_tile(lists, n_words, tile);
    }
}

/* ---------------------------------------------------------------- host */

template <typename T, int HEAD_DIM>
tmx_status enqueue_heads(const flex_launch &c, int32_t first_head, int32_t n_heads, cudaStream_t stream, tmx_error *err)
{
    const int32_t n_group = c.n_heads / c.n_kv_heads, first_kv = first_head / n_group, n_kv = (first_head + n_heads - 1) / n_group + 1 - first_kv;
    const unsigned nb = (unsigned)key_blocks_of(c.n), heads = (unsigned)n_heads, n_parts = (nb - 1) / FLEX_PART_BLOCKS + 1;
    const T *q = (const T *)c.q + (size_t)first_head * c.q_head_stride;
    const mean_rows of_k = { (const T *)c.k + (size_t)first_kv * c.k_head_stride, c.k_pos_stride, c.k_head_stride, 0, c.n, c.mean_k, NULL };
    const mean_rows of_probe = { q, c.q_pos_stride, c.q_head_stride, c.n - KEY_BLOCK, c.n, c.mean_probe, NULL };
    const mean_rows of_q = { q, c.q_pos_stride, c.q_head_stride, 0, c.n, c.mean_q, c.kinds };
    const size_t rows_bytes = sizeof(probe_tiles<T, HEAD_DIM>), mass_bytes = sizeof(mass_smem<T, HEAD_DIM>), map_bytes = sizeof(map_smem<HEAD_DIM>);
    const unsigned n_word_ctas = (unsigned)(((size_t)nb * (size_t)c.lists.n_words - 1) / N_THREADS + 1);

    TRY(launch_kernel("attn_flex_means", attn_flex_means<T, HEAD_DIM>, dim3(nb, (unsigned)n_kv), N_THREADS, 0, stream, err, of_k));
    TRY(launch_kernel("attn_flex_means", attn_flex_means<T, HEAD_DIM>, dim3(1, heads), N_THREADS, 0, stream, err, of_probe));
    TRY(launch_kernel("attn_flex_rows", attn_flex_rows<T, HEAD_DIM>, dim3(n_parts, heads), N_THREADS, rows_bytes, stream, err, c, first_head));
    TRY(launch_kernel("attn_flex_norm", attn_flex_norm, heads, KEY_BLOCK, 0, stream, err, c, (int32_t)n_parts));
    TRY(launch_kernel("attn_flex_masses", attn_flex_masses<T, HEAD_DIM>, dim3(n_parts, heads), N_THREADS, mass_bytes, stream, err, c, first_head));
    TRY(launch_kernel("attn_flex_blocks", attn_flex_blocks, dim3(nb, heads), KEY_BLOCK, 0, stream, err, c, (int32_t)n_parts));
    TRY(launch_kernel("attn_flex_kind", attn_flex_kind, heads, N_THREADS, 0, stream, err, c, first_head));
    TRY(launch_kernel("attn_flex_coverage", attn_flex_coverage, dim3(CUT_CTAS, 2, heads), CUT_THREADS, 0, stream, err, c));
    TRY(launch_kernel("attn_flex_keep", attn_flex_keep, dim3((nb - 1) / N_THREADS + 1, 2, heads), N_THREADS, 0, stream, err, c));
    TRY(launch_kernel("attn_flex_write", attn_flex_write, dim3(n_word_ctas, heads), N_THREADS, 0, stream, err, c, first_head, false));
    if (c.tau > 0) {
        TRY(launch_kernel("attn_flex_means", attn_flex_means<T, HEAD_DIM>, dim3(nb, heads), N_THREADS, 0, stream, err, of_q));
        TRY(launch_kernel("attn_flex_map", attn_flex_map<HEAD_DIM>, dim3((nb - 1) / MAP_TILE + 1, heads), N_THREADS, map_bytes, stream, err, c,
                          first_head));
        TRY(launch_kernel("attn_flex_soften", attn_flex_soften, dim3(nb, heads), N_THREADS, 0, stream, err, c));
        TRY(launch_kernel("attn_flex_tiles", attn_flex_tiles, dim3(CUT_CTAS, heads), CUT_THREADS, 0, stream, err, c, first_head));
    }
    return TMX_OK;
}

}

extern "C" tmx_status cuda_run_flexprefill(const flex_launch *launch, void *stream, tmx_error *err)
{
    const flex_launch &c = *launch;
    if (c.keeps_all) {
        const size_t n_words = (size_t)key_blocks_of(c.n) * (size_t)c.lists.n_words;
        return launch_kernel("attn_flex_write", attn_flex_write, dim3((unsigned)((n_words - 1) / N_THREADS + 1), (unsigned)c.n_heads), N_THREADS, 0,
                             (cudaStream_t)stream, err, c, 0, true);
    }
    for (int32_t first = 0; first < c.n_heads; first += c.heads_at_once) {
        const int32_t n = min_i32(c.heads_at_once, c.n_heads - first);
        const auto enqueue = c.head_dim == 64 ? (c.is_f16 ? enqueue_heads<__half, 64> : enqueue_heads<__nv_bfloat16, 64>)
                                              : (c.is_f16 ? enqueue_heads<__half, 128> : enqueue_heads<__nv_bfloat16, 128>);
        TRY(enqueue(c, first, n, (cudaStream_t)stream, err));
    }
    return TMX_OK;
}
