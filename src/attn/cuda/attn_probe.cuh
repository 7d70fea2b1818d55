/* attn_probe.cuh - what the last PROBE rows of a prompt attend to, by key and by distance, for estimators that look at a prompt's end
 * (FlexPrefill, MInference); means of blocks of rows; and the largest of many values without a sort.  Functions only: each estimator's
 * source file has kernels of its own around them.
 *
 *   probe_rows       largest score and sum of weights of each probe row     one CTA = PROBE_PART_BLOCKS key blocks of a head
 *   probe_norm       the same over all keys                                 one thread = one row
 *   probe_masses     scores once more, now as shares of the mean of the rows' probabilities: by_key, by_distance      as probe_rows
 *   heaviest_cut     the largest values up to a limit                       one cluster = the values of a head
 *
 * A CTA of 2 PROBE threads: a warp owns 16 rows of the probe.  Scores take two passes: keeping them would take more memory than making
 * them takes time.  Every sum has a fixed order: the bits depend on Q and K alone. */
#ifndef TMX_ATTN_ATTN_PROBE_CUH
#define TMX_ATTN_ATTN_PROBE_CUH

#include "attn/cuda/attn_rows.cuh"
#include "attn/cuda/cuda_status.cuh"
#include "base/mma_ptx.cuh"

#include <cooperative_groups.h>

namespace {

namespace cg = cooperative_groups;

enum { PROBE_PAD = 8, MASS_PITCH = KEY_BLOCK + 8 };            /* pitches without bank conflicts */
enum { MEAN_THREADS = 256, MAP_TILE = 64, MAP_PITCH = MAP_TILE + 4, MAP_THREADS = 256 };
enum { CUT_CTAS = 8, CUT_THREADS = 512, CUT_WARPS = CUT_THREADS / 32, CUT_TOP = 28 };     /* 30 bits: values below 2 */

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

/* to[d] = sum over rows [begin, end) of x / n_mean; a CTA of MEAN_THREADS. */
template <typename T, int HEAD_DIM>
DEVICE void mean_of_rows(const T *x, size_t pos_stride, int32_t begin, int32_t end, int32_t n_mean, float *to)
{
    enum { LANES = HEAD_DIM / 8, ROWS = MEAN_THREADS / LANES };
    __shared__ float parts[ROWS][HEAD_DIM];
    const int32_t lane = threadIdx.x % LANES, part = threadIdx.x / LANES;
    float sum[8] = { 0 };
    for (int32_t row = begin + part; row < end; row += ROWS) {
        const uint4 bits = *(const uint4 *)(x + 8 * lane + (size_t)row * pos_stride);
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
    to[threadIdx.x] = all / (float)n_mean;
}

template <int HEAD_DIM> struct map_smem {
    float q[HEAD_DIM][MAP_PITCH], k[HEAD_DIM][MAP_PITCH];
};

template <int HEAD_DIM> DEVICE void load_means(float (&to)[HEAD_DIM][MAP_PITCH], const float *means, int32_t first, int32_t n)
{
    for (int32_t i = threadIdx.x; i < MAP_TILE * HEAD_DIM; i += MAP_THREADS) {
        const int32_t row = first + i / HEAD_DIM;
        to[i % HEAD_DIM][i / HEAD_DIM] = row < n ? means[(size_t)row * HEAD_DIM + i % HEAD_DIM] : 0.0f;
    }
}

/* Products of the loaded means: the thread's rows 4 (tid / 16) + i, columns 4 (tid % 16) + j. */
template <int HEAD_DIM> DEVICE void multiply_means(const map_smem<HEAD_DIM> &smem, float (&z)[4][4])
{
    const int32_t row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
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
}

/* ---------------------------------------------------------------- the probe */

template <typename T, int HEAD_DIM> struct probe_tiles {
    T rows[2][KEY_BLOCK][HEAD_DIM + PROBE_PAD];                /* the probe first, then key blocks in turns */
};

/* N_ROWS rows from `first` on, zeros behind the end. */
template <typename T, int HEAD_DIM, int N_ROWS, int THREADS>
DEVICE void load_block(T (&to)[KEY_BLOCK][HEAD_DIM + PROBE_PAD], const T *x, size_t pos_stride, int32_t first, int32_t end)
{
    enum { LANES = HEAD_DIM / 8, ROWS = THREADS / LANES };
    const int32_t lane = threadIdx.x % LANES;
#pragma unroll
    for (int32_t row = threadIdx.x / LANES; row < N_ROWS; row += ROWS) {
        const bool is_there = first + row < end;
        copy_async(&to[row][8 * lane], x + (is_there ? (size_t)(first + row) * pos_stride + 8 * lane : 0), is_there);
    }
    copy_commit();
}

/* Walks the key blocks of a part: step(block, s) with the scores of the warp's 16 rows, hidden ones -infinity. */
template <typename T, int HEAD_DIM, int PROBE, typename step_fn>
DEVICE void walk_part(const probe_launch &c, probe_tiles<T, HEAD_DIM> &tiles, int32_t head, int32_t part, step_fn step)
{
    const T *q = (const T *)c.q + (size_t)head * c.q_head_stride;
    const T *k = (const T *)c.k + (size_t)(head / (c.n_heads / c.n_kv_heads)) * c.k_head_stride;
    const int32_t lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, first_row = c.n - PROBE;
    const int32_t begin = part * PROBE_PART_BLOCKS, end = min_i32(key_blocks_of(c.n), begin + PROBE_PART_BLOCKS);
    uint32_t probe[HEAD_DIM / 16][4];
    load_block<T, HEAD_DIM, PROBE, 2 * PROBE>(tiles.rows[1], q, c.q_pos_stride, first_row, c.n);
    load_block<T, HEAD_DIM, KEY_BLOCK, 2 * PROBE>(tiles.rows[0], k, c.k_pos_stride, begin * KEY_BLOCK, c.n);
    copy_wait<1>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) load_matrices(probe[i], &tiles.rows[1][warp_row + lane % 16][16 * i + lane / 16 * 8]);
    __syncthreads();
    for (int32_t block = begin; block < end; block++) {
        T (&keys)[KEY_BLOCK][HEAD_DIM + PROBE_PAD] = tiles.rows[(block - begin) & 1];
        if (block + 1 < end) {
            load_block<T, HEAD_DIM, KEY_BLOCK, 2 * PROBE>(tiles.rows[(block - begin + 1) & 1], k, c.k_pos_stride, (block + 1) * KEY_BLOCK, c.n);
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

/* Of part blockIdx.x; heads of scratch: blockIdx.y. */
template <typename T, int HEAD_DIM, int PROBE> DEVICE void probe_rows(const probe_launch &c, probe_tiles<T, HEAD_DIM> &tiles, int32_t head)
{
    float max[2] = { -CUDART_INF_F, -CUDART_INF_F }, sum[2] = { 0, 0 };
    walk_part<T, HEAD_DIM, PROBE>(c, tiles, head, (int32_t)blockIdx.x, [&](int32_t, float (&s)[KEY_BLOCK / 2]) {
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
    float2 *to = (float2 *)c.part_rows + ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * PROBE + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float all = quad_sum(sum[r]);
        if (threadIdx.x % 4 == 0) to[8 * r] = make_float2(max[r], all);
    }
}

/* rows: what a score becomes a share of the mean with: 2^(scale_log2 s - [0]) [1].  Heads of scratch: blockIdx.x. */
template <int PROBE> DEVICE void probe_norm(const probe_launch &c, int32_t n_parts)
{
    const float2 *parts = (const float2 *)c.part_rows + (size_t)blockIdx.x * n_parts * PROBE + threadIdx.x;
    float max = -CUDART_INF_F;
    double sum = 0;
    for (int32_t i = 0; i < n_parts; i++) max = fmaxf(max, parts[(size_t)i * PROBE].x);
    const float shift = __fmul_rn(max, c.scale_log2);
    for (int32_t i = 0; i < n_parts; i++) {
        const float2 part = parts[(size_t)i * PROBE];
        sum += (double)part.y * (double)exp2_fast(__fmul_rn(part.x, c.scale_log2) - shift);
    }
    ((float2 *)c.rows)[(size_t)blockIdx.x * PROBE + threadIdx.x] = make_float2(shift, (float)(1.0 / (sum * PROBE)));
}

template <typename T, int HEAD_DIM, int PROBE> struct mass_smem {
    probe_tiles<T, HEAD_DIM> tiles;
    float share[PROBE][MASS_PITCH];
};

/* Entry e = column - row + PROBE - 1 of a block's diagonals belongs to by_distance[block KEY_BLOCK + e]: the first KEY_BLOCK lie in
 * the block's own entries, the others in those of the next, which takes them over (`later`), across parts by `spill`.  So distance D of
 * a prompt of n is entry n - 1 - D.  A thread has a column, or entry u of its own block and of the next; of a probe of 64, both. */
template <typename T, int HEAD_DIM, int PROBE> DEVICE void probe_masses(const probe_launch &c, mass_smem<T, HEAD_DIM, PROBE> &smem, int32_t head)
{
    static_assert(2 * PROBE == KEY_BLOCK || 2 * PROBE == 2 * KEY_BLOCK, "threads of a CTA");
    const int32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4, u = threadIdx.x % KEY_BLOCK;
    const bool is_column = threadIdx.x < KEY_BLOCK, is_diagonal = 2 * PROBE == KEY_BLOCK || !is_column;
    const size_t n_padded = (size_t)key_blocks_of(c.n) * KEY_BLOCK;
    float *by_key = c.by_key + blockIdx.y * n_padded, *by_distance = c.by_distance + blockIdx.y * n_padded;
    const float2 norm[2] = { ((const float2 *)c.rows)[blockIdx.y * PROBE + row], ((const float2 *)c.rows)[blockIdx.y * PROBE + row + 8] };
    float later = 0;
    walk_part<T, HEAD_DIM, PROBE>(c, smem.tiles, head, (int32_t)blockIdx.x, [&](int32_t block, float (&s)[KEY_BLOCK / 2]) {
#pragma unroll
        for (int i = 0; i < KEY_BLOCK / 2; i += 2) {
            const float2 n = norm[i / 2 % 2];
            const float low = exp2_fast(fmaf(s[i], c.scale_log2, -n.x)) * n.y, high = exp2_fast(fmaf(s[i + 1], c.scale_log2, -n.x)) * n.y;
            *(float2 *)&smem.share[row + i / 2 % 2 * 8][i / 4 * 8 + lane_column()] = make_float2(low, high);
        }
        __syncthreads();
        if (is_column) {
            float sum = 0;
#pragma unroll 16
            for (int r = 0; r < PROBE; r++) sum += smem.share[r][u];
            by_key[block * KEY_BLOCK + u] = sum;
        }
        if (is_diagonal) {
            float own = 0, next = 0;
#pragma unroll 16
            for (int r = 0; r < PROBE; r++) {
                const float share = smem.share[r][(r + u + KEY_BLOCK - PROBE + 1) % KEY_BLOCK];
                if (r < PROBE - 1 - u) next += share;
                else own += share;
            }
            by_distance[block * KEY_BLOCK + u] = own + later;
            later = next;
        }
    });
    if (is_diagonal) c.spill[((size_t)blockIdx.y * gridDim.x + blockIdx.x) * KEY_BLOCK + u] = later;
}

/* What the part before has left for the first block of a part; other blocks: 0. */
DEVICE float spill_of(const probe_launch &c, int32_t scratch_head, int32_t n_parts, int32_t block, int32_t entry)
{
    if (block % PROBE_PART_BLOCKS != 0 || block == 0) return 0.0f;
    return c.spill[((size_t)scratch_head * n_parts + block / PROBE_PART_BLOCKS - 1) * KEY_BLOCK + entry];
}

/* ---------------------------------------------------------------- the largest values up to a limit */

struct cut {
    uint32_t least;                /* bits of the value that crosses the limit */
    double n_above, n_ties;        /* values above it; of those equal to it, how many are among the largest */
    double n_equal;                /* of those equal to it, how many there are */
    double above_before, ties_before;          /* values above, and equal, in the CTAs before this one */
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

/* Of all values at(i) the largest whose weights add up to at most `limit`; this CTA looks at [begin, end).  Weights are weight(value), the
 * same for equal values.  Values are not negative, so their order is that of their bits.  Ends with a barrier of the cluster. */
template <typename at_fn, typename weight_fn>
DEVICE cut heaviest_cut(at_fn at, weight_fn weight, int64_t begin, int64_t end, double limit, cut_smem &smem)
{
    cut found = { 0, 0, 0, 0, 0, 0, false };
    double sums[3] = { 0, 0, 0 }, before[3];
    int turn = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += CUT_THREADS) sums[0] += weight(at(i));
    cluster_sums(smem, turn, sums, before);
    found.has_all = !(sums[0] > limit);
    for (int shift = CUT_TOP; shift >= 0 && !found.has_all; shift -= 2) {
        sums[0] = sums[1] = sums[2] = 0;
        for (int64_t i = begin + threadIdx.x; i < end; i += CUT_THREADS) {
            const float value = at(i);
            const uint32_t bits = __float_as_uint(value);
#pragma unroll
            for (uint32_t j = 0; j < 3; j++) {
                if (bits >= (found.least | (j + 1) << shift)) sums[j] += weight(value);
            }
        }
        cluster_sums(smem, turn, sums, before);
        found.least |= (uint32_t)((sums[0] > limit) + (sums[1] > limit) + (sums[2] > limit)) << shift;
    }
    sums[0] = sums[1] = sums[2] = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += CUT_THREADS) {
        const float value = at(i);
        const uint32_t bits = __float_as_uint(value);
        if (bits > found.least) {
            sums[0] += weight(value);
            sums[1] += 1;
        }
        sums[2] += bits == found.least;
    }
    cluster_sums(smem, turn, sums, before);
    found.n_above = sums[1];
    found.n_equal = sums[2];
    found.above_before = before[1];
    found.ties_before = before[2];
    found.n_ties = found.has_all ? sums[2] : fmin(sums[2] - 1, floor((limit - sums[0]) / weight(__uint_as_float(found.least))));
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

/* How many before this thread, in the order of threads, and in all; two barriers, `of_warp` is free behind the second. */
template <int WARPS> DEVICE int32_t cta_rank(bool is_one, int32_t (&of_warp)[WARPS], int32_t *n_all)
{
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t lanes = __ballot_sync(0xffffffff, is_one);
    int32_t rank = __popc(lanes & ((1u << lane) - 1));
    *n_all = 0;
    if (lane == 0) of_warp[warp] = __popc(lanes);
    __syncthreads();
    for (int i = 0; i < WARPS; i++) {
        if (i < warp) rank += of_warp[i];
        *n_all += of_warp[i];
    }
    __syncthreads();
    return rank;
}

}

#endif
