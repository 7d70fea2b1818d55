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
#include "attn/cuda/attn_probe.cuh"

extern "C" {
#include "base/num.h"
}

namespace {

enum { N_THREADS = 256, N_WARPS = N_THREADS / 32 };
enum head_kind { KEEPS_ALL, HAS_LINES, IS_QUERY_AWARE };

static_assert((int)N_THREADS == 2 * KEY_BLOCK && (int)N_THREADS == MEAN_THREADS && (int)N_THREADS == MAP_THREADS, "threads that the shared functions expect");

/* ---------------------------------------------------------------- means, and the probe */

struct mean_rows {
    const void *x;                 /* of the first head */
    size_t pos_stride, head_stride;
    int32_t begin, end;            /* rows; block b begins at begin + b KEY_BLOCK */
    float *to;                     /* [heads][blocks][HEAD_DIM] */
    const int32_t *kinds;          /* only heads that are query-aware; NULL: all */
};

template <typename T, int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS) attn_flex_means(const mean_rows m)
{
    const int32_t block = blockIdx.x, head = blockIdx.y;
    if (m.kinds != NULL && m.kinds[head] != IS_QUERY_AWARE) return;
    const int32_t begin = m.begin + block * KEY_BLOCK, end = min_i32(m.end, begin + KEY_BLOCK);
    mean_of_rows<T, HEAD_DIM>((const T *)m.x + (size_t)head * m.head_stride, m.pos_stride, begin, end, end - begin,
                              m.to + ((size_t)head * gridDim.x + block) * HEAD_DIM);
}

template <typename T, int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS, 2) attn_flex_rows(const probe_launch c, int32_t first_head)
{
    extern __shared__ __align__(16) unsigned char smem[];
    probe_rows<T, HEAD_DIM, KEY_BLOCK>(c, *(probe_tiles<T, HEAD_DIM> *)smem, first_head + (int32_t)blockIdx.y);
}

__global__ void __launch_bounds__(KEY_BLOCK) attn_flex_norm(const probe_launch c, int32_t n_parts) { probe_norm<KEY_BLOCK>(c, n_parts); }

template <typename T, int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS) attn_flex_masses(const probe_launch c, int32_t first_head)
{
    extern __shared__ __align__(16) unsigned char smem[];
    probe_masses<T, HEAD_DIM, KEY_BLOCK>(c, *(mass_smem<T, HEAD_DIM, KEY_BLOCK> *)smem, first_head + (int32_t)blockIdx.y);
}

/* block_mass [2][nb]: columns; diagonals, the nearest first. */
__global__ void __launch_bounds__(KEY_BLOCK) attn_flex_blocks(const flex_launch c, int32_t n_parts)
{
    __shared__ double parts[KEY_BLOCK / 32];
    const int32_t block = blockIdx.x, nb = gridDim.x, i = block * KEY_BLOCK + threadIdx.x;
    const size_t at = (size_t)blockIdx.y * nb * KEY_BLOCK + i;
    if (block % PROBE_PART_BLOCKS == 0) c.probe.by_distance[at] += spill_of(c.probe, blockIdx.y, n_parts, block, threadIdx.x);
    const double column = cta_sum(i < c.probe.n ? (double)c.probe.by_key[at] : 0.0, parts);
    const double diagonal = cta_sum(i < c.probe.n ? (double)c.probe.by_distance[at] : 0.0, parts);
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
    const int32_t nb = key_blocks_of(c.probe.n), head = blockIdx.x, lane = threadIdx.x % 32, n_group = c.probe.n_heads / c.probe.n_kv_heads;
    const int32_t kv = (first_head + head) / n_group - first_head / n_group;
    const float *probe = c.mean_probe + (size_t)head * c.probe.head_dim, *keys = c.mean_k + (size_t)kv * nb * c.probe.head_dim;
    const double *mass = c.block_mass + (size_t)head * 2 * nb;
    double *pooled = c.pooled + (size_t)head * nb, max = -CUDART_INF, sum = 0, whole = 0, apart = 0;
    for (int32_t b = threadIdx.x / 32; b < nb; b += N_WARPS) {
        double z = 0;
        for (int32_t i = lane; i < c.probe.head_dim; i += 32) z += (double)probe[i] * (double)keys[(size_t)b * c.probe.head_dim + i];
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

/* ---------------------------------------------------------------- how many columns and diagonals */

/* budgets [2]: blocks of columns, of diagonals. */
__global__ void __cluster_dims__(CUT_CTAS, 1, 1) __launch_bounds__(CUT_THREADS) attn_flex_coverage(const flex_launch c)
{
    __shared__ cut_smem smem;
    const int32_t nb = key_blocks_of(c.probe.n), head = blockIdx.z, least = min_i32(nb, key_blocks_of(c.min_budget));
    int32_t *budget = c.budgets + 2 * head + blockIdx.y;
    if (c.kinds[head] != HAS_LINES) {
        if (blockIdx.x == 0 && threadIdx.x == 0) *budget = least;
        return;
    }
    int64_t begin, end;
    share_of(c.probe.n, &begin, &end);
    const float *x = (blockIdx.y == 0 ? c.probe.by_key : c.probe.by_distance) + (size_t)head * nb * KEY_BLOCK;
    const cut found = heaviest_cut([x](int64_t i) { return x[i]; }, [](float value) { return (double)value; }, begin, end, c.gamma, smem);
    const int32_t n_covered = found.has_all ? c.probe.n + 1 : 1 + (int32_t)(found.n_above + found.n_ties);
    if (blockIdx.x == 0 && threadIdx.x == 0) *budget = min_i32(nb, max_i32(least, n_covered / FLEX_BUDGET_UNIT + 1));
}

/* ---------------------------------------------------------------- columns and diagonals -> lists */

/* kept [2][n_kept_words]: a bit for each column or diagonal whose rank is below the budget.  Comparing each with all is exact about
 * ties and, at a few thousand blocks, cheaper than a sort. */
__global__ void __launch_bounds__(N_THREADS) attn_flex_keep(const flex_launch c)
{
    const int32_t nb = key_blocks_of(c.probe.n), head = blockIdx.z, b = blockIdx.x * N_THREADS + threadIdx.x, n_words = key_list_words(nb) * 2;
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
    const int32_t nb = key_blocks_of(c.probe.n), n_words = c.lists.n_words, n_kept = key_list_words(nb) * 2;
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

template <int HEAD_DIM> __global__ void __launch_bounds__(N_THREADS) attn_flex_map(const flex_launch c, int32_t first_head)
{
    extern __shared__ __align__(16) unsigned char smem_bytes[];
    map_smem<HEAD_DIM> &smem = *(map_smem<HEAD_DIM> *)smem_bytes;
    const int32_t nb = key_blocks_of(c.probe.n), head = blockIdx.y, n_group = c.probe.n_heads / c.probe.n_kv_heads;
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
        multiply_means<HEAD_DIM>(smem, z);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int32_t m = m_first + row + i, n = n_first + column + j;
                if (m < nb && n <= m) map[row_begin(m) + n] = z[i][j] * c.probe.scale_log2;
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
    const int32_t nb = key_blocks_of(c.probe.n), head = blockIdx.y, n_words = c.lists.n_words;
    if (c.kinds[head] != IS_QUERY_AWARE) return;
    const float *map = c.map + (size_t)head * row_begin(nb);
    uint64_t *lists = c.lists.bits + (size_t)(first_head + head) * nb * n_words;
    int64_t begin, end;
    share_of((int64_t)row_begin(nb), &begin, &end);
    const cut found = heaviest_cut([map](int64_t i) { return map[i]; }, [](float value) { return (double)value; }, begin, end, c.gamma * nb, smem);
    int64_t n_ties = (int64_t)(found.n_ties - found.ties_before);      /* left to this CTA; the earlier in row order first */
    for (int64_t first = begin; first < end; first += CUT_THREADS) {
        const int64_t tile = first + threadIdx.x;
        const uint32_t bits = tile < end ? __float_as_uint(map[tile]) : 0;
        const bool is_tie = tile < end && bits == found.least;
        bool is_kept = tile < end && bits > found.least;
        if (n_ties > 0 && __syncthreads_or(is_tie)) {
            int32_t n_all;
            const int32_t rank = cta_rank(is_tie, of_warp, &n_all);
            is_kept |= is_tie && rank < n_ties;
            n_ties -= n_all;
        }
        if (is_kept) keep_tile(lists, n_words, tile);
    }
}

/* ---------------------------------------------------------------- host */

template <typename T, int HEAD_DIM>
tmx_status enqueue_heads(const flex_launch &c, int32_t first_head, int32_t n_heads, cudaStream_t stream, tmx_error *err)
{
    const int32_t n_group = c.probe.n_heads / c.probe.n_kv_heads, first_kv = first_head / n_group, n_kv = (first_head + n_heads - 1) / n_group + 1 - first_kv;
    const unsigned nb = (unsigned)key_blocks_of(c.probe.n), heads = (unsigned)n_heads, n_parts = (nb - 1) / PROBE_PART_BLOCKS + 1;
    const T *q = (const T *)c.probe.q + (size_t)first_head * c.probe.q_head_stride;
    const mean_rows of_k = { (const T *)c.probe.k + (size_t)first_kv * c.probe.k_head_stride, c.probe.k_pos_stride, c.probe.k_head_stride, 0, c.probe.n, c.mean_k, NULL };
    const mean_rows of_probe = { q, c.probe.q_pos_stride, c.probe.q_head_stride, c.probe.n - KEY_BLOCK, c.probe.n, c.mean_probe, NULL };
    const mean_rows of_q = { q, c.probe.q_pos_stride, c.probe.q_head_stride, 0, c.probe.n, c.mean_q, c.kinds };
    const size_t rows_bytes = sizeof(probe_tiles<T, HEAD_DIM>), mass_bytes = sizeof(mass_smem<T, HEAD_DIM, KEY_BLOCK>), map_bytes = sizeof(map_smem<HEAD_DIM>);
    const unsigned n_word_ctas = (unsigned)(((size_t)nb * (size_t)c.lists.n_words - 1) / N_THREADS + 1);

    TRY(launch_kernel("attn_flex_means", attn_flex_means<T, HEAD_DIM>, dim3(nb, (unsigned)n_kv), N_THREADS, 0, stream, err, of_k));
    TRY(launch_kernel("attn_flex_means", attn_flex_means<T, HEAD_DIM>, dim3(1, heads), N_THREADS, 0, stream, err, of_probe));
    TRY(launch_kernel("attn_flex_rows", attn_flex_rows<T, HEAD_DIM>, dim3(n_parts, heads), N_THREADS, rows_bytes, stream, err, c.probe, first_head));
    TRY(launch_kernel("attn_flex_norm", attn_flex_norm, heads, KEY_BLOCK, 0, stream, err, c.probe, (int32_t)n_parts));
    TRY(launch_kernel("attn_flex_masses", attn_flex_masses<T, HEAD_DIM>, dim3(n_parts, heads), N_THREADS, mass_bytes, stream, err, c.probe, first_head));
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
        const size_t n_words = (size_t)key_blocks_of(c.probe.n) * (size_t)c.lists.n_words;
        return launch_kernel("attn_flex_write", attn_flex_write, dim3((unsigned)((n_words - 1) / N_THREADS + 1), (unsigned)c.probe.n_heads), N_THREADS, 0,
                             (cudaStream_t)stream, err, c, 0, true);
    }
    for (int32_t first = 0; first < c.probe.n_heads; first += c.heads_at_once) {
        const int32_t n = min_i32(c.heads_at_once, c.probe.n_heads - first);
        const auto enqueue = c.probe.head_dim == 64 ? (c.probe.is_f16 ? enqueue_heads<__half, 64> : enqueue_heads<__nv_bfloat16, 64>)
                                              : (c.probe.is_f16 ? enqueue_heads<__half, 128> : enqueue_heads<__nv_bfloat16, 128>);
        TRY(enqueue(c, first, n, (cudaStream_t)stream, err));
    }
    return TMX_OK;
}
