/* attn_sm90_minference.cu - MInference's estimator (pattern/minference.h has the definition) of a whole prompt of n tokens, d = head_dim.
 * What needs no look is known to the host: attn_lines_found writes it for all heads, and of the others how much they will keep.
 *
 * Vertical-slash heads, heads_at_once at a time, over the last MINFERENCE_PROBE rows (attn_probe.cuh):
 *   attn_lines_rows      largest score and sum of weights of each row           one CTA = PROBE_PART_BLOCKS key blocks of a head
 *   attn_lines_norm      the same over all keys                                 one CTA = one head
 *   attn_lines_masses    by_key, by_distance                                    as attn_lines_rows
 *   attn_lines_choose    the heaviest columns, ascending; distances, descending one cluster = by_key or by_distance of a head
 * Block-sparse heads, one after the other, nb blocks of LINE_BLOCK rows:
 *   attn_lines_means     mean_q, mean_k [nb][d]                                 one CTA = one block
 *   attn_lines_map       mean_q . mean_k, map_rows rows at a time               one CTA = 64 x 64 of them
 *   attn_lines_blocks    the MINFERENCE_BLOCKS largest of a row, as bits        one CTA = one row
 *
 * The k largest of many values are those above the k-th, which heaviest_cut finds when every value weighs 1, and as many of its equals as are
 * missing: the earlier columns, the nearer distances, the earlier blocks.  Forced ones count as larger than any share.  Scores that are no
 * number make the head see everything.  Every sum has a fixed order: the bits depend on Q and K alone. */
extern "C" {
#include "pattern/minference.h"
}
#include "attn/cuda/attn_probe.cuh"

namespace {

enum { PROBE_THREADS = 2 * MINFERENCE_PROBE, PROBE_WARPS = PROBE_THREADS / 32, CHOOSE_THREADS = 256, CHOOSE_WARPS = CHOOSE_THREADS / 32 };
enum { LAUNCH_HEADS = 64 };        /* of one launch: they are in its arguments */
#define FORCED 1.5f                /* a share is at most 1, and heaviest_cut takes values below 2 */

/* ---------------------------------------------------------------- what the host knows */

struct found_heads {
    head_keys keys[LAUNCH_HEADS];
};

__global__ void __launch_bounds__(LAUNCH_HEADS) attn_lines_found(const __grid_constant__ found_heads known, head_keys *found, int32_t n)
{
    if ((int32_t)threadIdx.x < n) found[threadIdx.x] = known.keys[threadIdx.x];
}

/* ---------------------------------------------------------------- vertical-slash */

struct line_heads {
    probe_launch probe;
    head_keys *found;
    int32_t heads[LAUNCH_HEADS];   /* by place in scratch */
};

template <typename T, int HEAD_DIM> __global__ void __launch_bounds__(PROBE_THREADS, 3) attn_lines_rows(const __grid_constant__ line_heads c)
{
    extern __shared__ __align__(16) unsigned char smem[];
    probe_rows<T, HEAD_DIM, MINFERENCE_PROBE>(c.probe, *(probe_tiles<T, HEAD_DIM> *)smem, c.heads[blockIdx.y]);
}

__global__ void __launch_bounds__(MINFERENCE_PROBE) attn_lines_norm(const __grid_constant__ line_heads c, int32_t n_parts)
{
    probe_norm<MINFERENCE_PROBE>(c.probe, n_parts);
}

template <typename T, int HEAD_DIM> __global__ void __launch_bounds__(PROBE_THREADS, 2) attn_lines_masses(const __grid_constant__ line_heads c)
{
    extern __shared__ __align__(16) unsigned char smem[];
    probe_masses<T, HEAD_DIM, MINFERENCE_PROBE>(c.probe, *(mass_smem<T, HEAD_DIM, MINFERENCE_PROBE> *)smem, c.heads[blockIdx.y]);
}

/* blockIdx.y 0: columns.  1: distances; entry i is distance n - 1 - i, so that both lists are in the order of entries. */
__global__ void __cluster_dims__(CUT_CTAS, 1, 1) __launch_bounds__(CUT_THREADS) attn_lines_choose(const __grid_constant__ line_heads c, int32_t n_parts)
{
    __shared__ cut_smem smem;
    __shared__ int32_t of_warp[CUT_WARPS];
    const bool is_distance = blockIdx.y == 1;
    const int32_t n = c.probe.n, head = c.heads[blockIdx.z];
    head_keys *found = &c.found[head];
    const int32_t n_kept = is_distance ? found->n_distances : found->n_columns;
    int32_t *kept = const_cast<int32_t *>(is_distance ? found->distances : found->columns);
    const float *x = (is_distance ? c.probe.by_distance : c.probe.by_key) + blockIdx.z * (size_t)key_blocks_of(n) * KEY_BLOCK;
    const auto share_at = [&](int64_t i) {
        const int32_t block = (int32_t)i / KEY_BLOCK;
        return is_distance ? x[i] + spill_of(c.probe, (int32_t)blockIdx.z, n_parts, block, (int32_t)i % KEY_BLOCK) : x[i];
    };
    const auto value_at = [&](int64_t i) {
        const bool is_forced = is_distance ? n - 1 - i < MINFERENCE_NEAR_DISTANCES : i < MINFERENCE_LEAST_COLUMNS;
        return is_forced ? FORCED : share_at(i);
    };
    int64_t begin, end;
    share_of(n, &begin, &end);
    double shares[3] = { 0, 0, 0 }, before[3];
    int turn = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += CUT_THREADS) shares[0] += (double)share_at(i);
    cluster_sums(smem, turn, shares, before);
    if (!isfinite(shares[0]) && blockIdx.x == 0 && threadIdx.x == 0) found->kind = HEAD_DENSE;     /* no CTA here reads it */
    cg::this_cluster().sync();     /* heaviest_cut begins its turns anew */
    const cut at = heaviest_cut(value_at, [](float) { return 1.0; }, begin, end, (double)n_kept, smem);
    const int32_t n_ties = (int32_t)at.n_ties, first_tie = is_distance ? (int32_t)at.n_equal - n_ties : 0;
    int32_t tie = (int32_t)at.ties_before, to = (int32_t)at.above_before + min_i32(n_ties, max_i32(0, tie - first_tie));
    for (int64_t first = begin; first < end; first += CUT_THREADS) {
        const int64_t i = first + threadIdx.x;
        const uint32_t bits = i < end ? __float_as_uint(value_at(i)) : 0;
        int32_t n_equal, n_more;
        const bool is_tie = i < end && bits == at.least;
        const int32_t tie_rank = tie + cta_rank(is_tie, of_warp, &n_equal) - first_tie;
        const bool is_kept = i < end && (bits > at.least || (is_tie && tie_rank >= 0 && tie_rank < n_ties));
        const int32_t place = to + cta_rank(is_kept, of_warp, &n_more);
        if (is_kept && (uint32_t)place < (uint32_t)n_kept) kept[place] = is_distance ? n - 1 - (int32_t)i : (int32_t)i;
        tie += n_equal;
        to += n_more;
    }
}

/* ---------------------------------------------------------------- block-sparse */

struct block_head {
    const void *q, *k;             /* of the head, of its KV head */
    size_t q_pos_stride, k_pos_stride;
    int32_t n;
    head_keys *found;
    uint64_t *blocks;
    float *mean_q, *mean_k, *map;
};

/* Means with the zeros of the padding; blockIdx.y 0: of Q. */
template <typename T, int HEAD_DIM> __global__ void __launch_bounds__(MEAN_THREADS) attn_lines_means(const block_head c)
{
    const int32_t begin = blockIdx.x * LINE_BLOCK, end = min_i32(c.n, begin + LINE_BLOCK);
    const bool is_q = blockIdx.y == 0;
    mean_of_rows<T, HEAD_DIM>((const T *)(is_q ? c.q : c.k), is_q ? c.q_pos_stride : c.k_pos_stride, begin, end, LINE_BLOCK,
                              (is_q ? c.mean_q : c.mean_k) + (size_t)blockIdx.x * HEAD_DIM);
}

template <int HEAD_DIM> __global__ void __launch_bounds__(MAP_THREADS) attn_lines_map(const block_head c, int32_t first_row)
{
    extern __shared__ __align__(16) unsigned char smem_bytes[];
    map_smem<HEAD_DIM> &smem = *(map_smem<HEAD_DIM> *)smem_bytes;
    const int32_t nb = line_blocks_of(c.n), m_first = first_row + (int32_t)blockIdx.y * MAP_TILE, n_first = (int32_t)blockIdx.x * MAP_TILE;
    if (n_first > m_first) return;
    load_means<HEAD_DIM>(smem.q, c.mean_q, m_first, nb);
    load_means<HEAD_DIM>(smem.k, c.mean_k, n_first, nb);
    __syncthreads();
    float z[4][4] = { { 0 } };
    multiply_means<HEAD_DIM>(smem, z);
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int32_t m = m_first + threadIdx.x / 16 * 4 + i, n = n_first + threadIdx.x % 16 * 4 + j;
            if (m < nb && n <= m) c.map[(size_t)(m - first_row) * nb + n] = z[i][j];
        }
    }
}

/* Bits in the order of the numbers they stand for. */
DEVICE uint32_t ordered(float x)
{
    const uint32_t bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000;
}

__global__ void __launch_bounds__(CHOOSE_THREADS) attn_lines_blocks(const block_head c, int32_t first_row, int32_t n_most)
{
    __shared__ double parts[CHOOSE_WARPS];
    __shared__ int32_t of_warp[CHOOSE_WARPS];
    const int32_t nb = line_blocks_of(c.n), m = first_row + (int32_t)blockIdx.x, n_kept = min_i32(m + 1, n_most), n_bits = (nb / 64 + 1) * 64;
    const float *scores = c.map + (size_t)blockIdx.x * nb;
    uint32_t *row = (uint32_t *)(c.blocks + (size_t)m * (n_bits / 64));
    const auto order_of = [&](int32_t b) { return b == m ? ~0u : ordered(scores[b]); };
    double sum = 0;
    for (int32_t b = threadIdx.x; b <= m; b += CHOOSE_THREADS) sum += (double)scores[b];
    sum = cta_sum(sum, parts);
    if (!isfinite(sum) && threadIdx.x == 0) c.found->kind = HEAD_DENSE;
    /* The largest number that at least n_kept are not below. */
    uint32_t least = 0;
    for (int bit = 31; bit >= 0; bit--) {
        const uint32_t tried = least | 1u << bit;
        double n = 0;
        for (int32_t b = threadIdx.x; b <= m; b += CHOOSE_THREADS) n += order_of(b) >= tried;
        if (cta_sum(n, parts) >= n_kept) least = tried;
    }
    double n_above = 0;
    for (int32_t b = threadIdx.x; b <= m; b += CHOOSE_THREADS) n_above += order_of(b) > least;
    int32_t n_ties = n_kept - (int32_t)cta_sum(n_above, parts);
    for (int32_t first = 0; first < n_bits; first += CHOOSE_THREADS) {
        const int32_t b = first + threadIdx.x;
        const uint32_t order = b <= m ? order_of(b) : 0;
        int32_t n_equal;
        const bool is_tie = b <= m && order == least;
        const int32_t rank = cta_rank(is_tie, of_warp, &n_equal);
        const uint32_t kept = __ballot_sync(0xffffffff, b <= m && (order > least || (is_tie && rank < n_ties)));
        if (threadIdx.x % 32 == 0 && b < n_bits) row[b / 32] = kept;
        n_ties -= n_equal;
    }
}

/* ---------------------------------------------------------------- host */

template <typename T, int HEAD_DIM> tmx_status enqueue_lines(const line_heads &c, int32_t n_heads, cudaStream_t stream, tmx_error *err)
{
    const unsigned heads = (unsigned)n_heads, n_parts = (unsigned)(key_blocks_of(c.probe.n) - 1) / PROBE_PART_BLOCKS + 1;
    const size_t rows_bytes = sizeof(probe_tiles<T, HEAD_DIM>), mass_bytes = sizeof(mass_smem<T, HEAD_DIM, MINFERENCE_PROBE>);
    TRY(launch_kernel("attn_lines_rows", attn_lines_rows<T, HEAD_DIM>, dim3(n_parts, heads), PROBE_THREADS, rows_bytes, stream, err, c));
    TRY(launch_kernel("attn_lines_norm", attn_lines_norm, heads, MINFERENCE_PROBE, 0, stream, err, c, (int32_t)n_parts));
    TRY(launch_kernel("attn_lines_masses", attn_lines_masses<T, HEAD_DIM>, dim3(n_parts, heads), PROBE_THREADS, mass_bytes, stream, err, c));
    return launch_kernel("attn_lines_choose", attn_lines_choose, dim3(CUT_CTAS, 2, heads), CUT_THREADS, 0, stream, err, c, (int32_t)n_parts);
}

template <typename T, int HEAD_DIM>
tmx_status enqueue_blocks(const lines_launch &l, const block_head &c, cudaStream_t stream, tmx_error *err)
{
    const int32_t nb = line_blocks_of(c.n), n_most = min_i32(MINFERENCE_BLOCKS, minference_padded_blocks(c.n));
    const size_t map_bytes = sizeof(map_smem<HEAD_DIM>);
    TRY(launch_kernel("attn_lines_means", attn_lines_means<T, HEAD_DIM>, dim3((unsigned)nb, 2), MEAN_THREADS, 0, stream, err, c));
    for (int32_t first = 0; first < nb; first += l.map_rows) {
        const int32_t n_rows = min_i32(l.map_rows, nb - first);
        const dim3 tiles((unsigned)(first + n_rows - 1) / MAP_TILE + 1, (unsigned)(n_rows - 1) / MAP_TILE + 1);
        TRY(launch_kernel("attn_lines_map", attn_lines_map<HEAD_DIM>, tiles, MAP_THREADS, map_bytes, stream, err, c, first));
        TRY(launch_kernel("attn_lines_blocks", attn_lines_blocks, (unsigned)n_rows, CHOOSE_THREADS, 0, stream, err, c, first, n_most));
    }
    return TMX_OK;
}

/* Everything that the host knows, for all heads. */
tmx_status enqueue_found(const lines_launch &l, cudaStream_t stream, tmx_error *err)
{
    for (int32_t first = 0; first < l.probe.n_heads; first += LAUNCH_HEADS) {
        const int32_t n = min_i32(LAUNCH_HEADS, l.probe.n_heads - first);
        found_heads known;
        for (int32_t i = 0; i < n; i++) {
            const minference_head *head = &l.chosen[first + i];
            if (minference_is_known(head, l.probe.n, &known.keys[i])) continue;
            known.keys[i] = minference_shape(head, l.probe.n, l.room + (size_t)(first + i) * l.n_room_words);
        }
        TRY(launch_kernel("attn_lines_found", attn_lines_found, 1, LAUNCH_HEADS, 0, stream, err, known, l.found + first, n));
    }
    return TMX_OK;
}

template <typename T, int HEAD_DIM> tmx_status enqueue_all(const lines_launch &l, cudaStream_t stream, tmx_error *err)
{
    const probe_launch &p = l.probe;
    line_heads lines = { p, l.found, { 0 } };
    int32_t n_lines = 0;
    head_keys ignored;
    for (int32_t h = 0; h < p.n_heads; h++) {
        const bool is_known = minference_is_known(&l.chosen[h], p.n, &ignored);
        if (!is_known && l.chosen[h].type == MINFERENCE_VERTICAL_SLASH) lines.heads[n_lines++] = h;
        if (n_lines > 0 && (h == p.n_heads - 1 || n_lines == min_i32(LAUNCH_HEADS, l.heads_at_once))) {
            TRY((enqueue_lines<T, HEAD_DIM>(lines, n_lines, stream, err)));
            n_lines = 0;
        }
    }
    for (int32_t h = 0; h < p.n_heads; h++) {
        if (l.chosen[h].type != MINFERENCE_BLOCK_SPARSE || minference_is_known(&l.chosen[h], p.n, &ignored)) continue;
        const block_head c = {
            (const T *)p.q + (size_t)h * p.q_head_stride, (const T *)p.k + (size_t)(h / (p.n_heads / p.n_kv_heads)) * p.k_head_stride,
            p.q_pos_stride, p.k_pos_stride, p.n, l.found + h, l.room + (size_t)h * l.n_room_words, l.mean_q, l.mean_k, l.map,
        };
        TRY((enqueue_blocks<T, HEAD_DIM>(l, c, stream, err)));
    }
    return TMX_OK;
}

}

extern "C" tmx_status cuda_run_minference(const lines_launch *launch, void *stream, tmx_error *err)
{
    const lines_launch &l = *launch;
    const auto enqueue = l.probe.head_dim == 64 ? (l.probe.is_f16 ? enqueue_all<__half, 64> : enqueue_all<__nv_bfloat16, 64>)
                                                : (l.probe.is_f16 ? enqueue_all<__half, 128> : enqueue_all<__nv_bfloat16, 128>);
    TRY(enqueue_found(l, (cudaStream_t)stream, err));
    return enqueue(l, (cudaStream_t)stream, err);
}
