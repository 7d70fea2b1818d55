/* gpu_sample.cu - the next token from logits [n], as sample_choose defines it.
 *
 *   greedy   every block its best, one block the best of them
 *   else     sort    (logit, id), best first and the lower id where two are equal: a stable radix sort, 8 bits a pass
 *            weigh   p_i = exp((l_i - l_0) / temperature) for the top k, and their sum
 *            cut     top-p, then min-p: how many are left, and their sum
 *            draw    the first whose running sum exceeds draw * sum
 *
 * What follows the sort is one block, 1024 candidates a turn.  Floor: the launches, 13 of them; logits of 128256 tokens are 0.5 MB. */
#include "ops/cuda/gpu_device.cuh"

enum { BEST_THREADS = 256, DRAW_THREADS = 1024, N_DRAW_WARPS = DRAW_THREADS / 32 };
enum { DIGIT_BITS = 8, N_DIGITS = 1 << DIGIT_BITS, SORT_WARPS = 256, WARPS_PER_BLOCK = 4, SORT_THREADS = 32 * WARPS_PER_BLOCK };

/* ---------------------------------------------------------------- greedy */

/* value, bits of the index; a logit that is not finite wins everywhere, as index -1. */
DEVICE float2 entry_of(float logit, int32_t i)
{
    return isfinite(logit) ? make_float2(logit, __int_as_float(i)) : make_float2(CUDART_INF_F, __int_as_float(-1));
}

DEVICE float2 better(float2 a, float2 b)
{
    const bool is_b = b.x > a.x || (b.x == a.x && __float_as_int(b.y) < __float_as_int(a.y));
    return is_b ? b : a;
}

/* The best of the block, in thread 0. */
DEVICE float2 best_of_block(float2 best)
{
    __shared__ float2 of_warp[BEST_THREADS / 32];
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
        best = better(best, make_float2(__shfl_xor_sync(0xffffffff, best.x, mask), __shfl_xor_sync(0xffffffff, best.y, mask)));
    }
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    for (int32_t w = 0; w < BEST_THREADS / 32; w++) best = better(best, of_warp[w]);
    return best;
}

__global__ void best_of_blocks_kernel(const float *logits, int32_t n, float2 *best_of_blocks)
{
    float2 best = make_float2(-CUDART_INF_F, __int_as_float(INT32_MAX));
    for (int32_t i = blockIdx.x * BEST_THREADS + threadIdx.x; i < n; i += BEST_BLOCKS * BEST_THREADS) {
        best = better(best, entry_of(logits[i], i));
    }
    best = best_of_block(best);
    if (threadIdx.x == 0) best_of_blocks[blockIdx.x] = best;
}

__global__ void best_kernel(const float2 *best_of_blocks, int32_t *token)
{
    const float2 best = best_of_block(best_of_blocks[threadIdx.x % BEST_BLOCKS]);
    if (threadIdx.x == 0) *token = __float_as_int(best.y);
}

/* ---------------------------------------------------------------- sampling */

struct sort_list {                 /* [n] each */
    uint32_t *keys;
    int32_t *ids;
};

/* Ascends as logits descend; -0 is 0. */
DEVICE uint32_t key_of(float logit)
{
    const uint32_t bits = __float_as_uint(logit + 0.0f);
    return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

/* A warp's share: n_own entries side by side. */
struct sort_share { int32_t begin, end; };
DEVICE sort_share share_of(int32_t warp, int32_t n)
{
    const int32_t n_own = (n + SORT_WARPS - 1) / SORT_WARPS;
    return { min_i32(n, warp * n_own), min_i32(n, (warp + 1) * n_own) };
}

/* Entry i of the pass's input: the first pass reads the logits. */
DEVICE uint32_t key_at(const float *logits, const sort_list &from, int32_t i) { return logits != NULL ? key_of(logits[i]) : from.keys[i]; }

/* counts [N_DIGITS][SORT_WARPS]: of each digit in each warp's share. */
__global__ void __launch_bounds__(SORT_THREADS)
count_digits_kernel(const float *logits, sort_list from, int32_t n, int32_t shift, uint32_t *counts)
{
    __shared__ uint32_t of_warp[WARPS_PER_BLOCK][N_DIGITS];
    const int32_t lane = threadIdx.x % 32, warp = blockIdx.x * WARPS_PER_BLOCK + threadIdx.x / 32;
    uint32_t *own = of_warp[threadIdx.x / 32];
    for (int32_t d = lane; d < N_DIGITS; d += 32) own[d] = 0;
    __syncwarp();
    const sort_share share = share_of(warp, n);
    for (int32_t i = share.begin + lane; i < share.end; i += 32) atomicAdd(&own[key_at(logits, from, i) >> shift & (N_DIGITS - 1)], 1u);
    __syncwarp();
    for (int32_t d = lane; d < N_DIGITS; d += 32) counts[d * SORT_WARPS + warp] = own[d];
}

/* counts -> the sum of all before, one thread a digit. */
__global__ void __launch_bounds__(N_DIGITS) sum_counts_kernel(uint32_t *counts)
{
    __shared__ uint32_t of_digit[N_DIGITS];
    uint32_t *own = counts + threadIdx.x * SORT_WARPS, sum = 0;
    for (int32_t w = 0; w < SORT_WARPS; w += 4) {
        const uint4 x = *(const uint4 *)(own + w);
        sum += x.x + x.y + x.z + x.w;
    }
    of_digit[threadIdx.x] = sum;
    __syncthreads();
    uint32_t before = 0;
    for (int32_t d = 0; d < (int32_t)threadIdx.x; d++) before += of_digit[d];
    for (int32_t w = 0; w < SORT_WARPS; w += 4) {
        const uint4 x = *(const uint4 *)(own + w);
        *(uint4 *)(own + w) = make_uint4(before, before + x.x, before + x.x + x.y, before + x.x + x.y + x.z);
        before += x.x + x.y + x.z + x.w;
    }
}

/* Every entry to its place by this digit; entries of one digit keep their order. */
__global__ void __launch_bounds__(SORT_THREADS)
deal_kernel(const float *logits, sort_list from, int32_t n, int32_t shift, const uint32_t *counts, sort_list to)
{
    __shared__ uint32_t of_warp[WARPS_PER_BLOCK][N_DIGITS];
    const int32_t lane = threadIdx.x % 32, warp = blockIdx.x * WARPS_PER_BLOCK + threadIdx.x / 32;
    uint32_t *next = of_warp[threadIdx.x / 32];
    for (int32_t d = lane; d < N_DIGITS; d += 32) next[d] = counts[d * SORT_WARPS + warp];
    __syncwarp();
    const sort_share share = share_of(warp, n);
    for (int32_t begin = share.begin; begin < share.end; begin += 32) {
        const int32_t i = begin + lane;
        const bool is_ours = i < share.end;
        const uint32_t key = is_ours ? key_at(logits, from, i) : 0, digit = is_ours ? key >> shift & (N_DIGITS - 1) : N_DIGITS;
        const uint32_t peers = __match_any_sync(0xffffffff, digit), n_before = __popc(peers & ((1u << lane) - 1));
        if (is_ours) {
            const uint32_t place = next[digit] + n_before;
            to.keys[place] = key;
            to.ids[place] = logits != NULL ? i : from.ids[i];
        }
        __syncwarp();
        if (is_ours && n_before == 0) next[digit] += __popc(peers);
        __syncwarp();
    }
}

/* Sum of the threads' values up to and including the own one, and of all. */
DEVICE double block_running_sum(double x, double *total)
{
    __shared__ double of_warp[N_DRAW_WARPS];
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const double before = __shfl_up_sync(0xffffffff, x, d);
        if (lane >= d) x += before;
    }
    __syncthreads();                                   /* of_warp of the call before has been read */
    if (lane == 31) of_warp[warp] = x;
    __syncthreads();
    double before = 0, all = 0;
    for (int32_t w = 0; w < N_DRAW_WARPS; w++) {
        if (w == warp) before = all;
        all += of_warp[w];
    }
    *total = all;
    return before + x;
}

/* The first of n candidates whose running sum is at least (or, for a draw, more than) `border`; n if there is none.  *sum: up to it. */
template <bool IS_DRAW> DEVICE int32_t first_beyond(const double *p, int32_t n, double border, double *sum)
{
    __shared__ int32_t first;
    __shared__ double sum_at_first;
    double done = 0;
    if (threadIdx.x == 0) first = n;
    for (int32_t begin = 0; begin < n; begin += DRAW_THREADS) {
        const int32_t i = begin + threadIdx.x;
        double total;
        const double x = i < n ? p[i] : 0.0, running = done + block_running_sum(x, &total);
        const bool is_beyond = i < n && (IS_DRAW ? running > border : running >= border);
        /* Running sums of a turn, made by different additions, need not ascend to the last bit: the least index counts. */
        if (is_beyond) atomicMin(&first, i);
        __syncthreads();
        if (first == i) sum_at_first = running;
        if (first < n) break;
        done += total;
        __syncthreads();
    }
    __syncthreads();
    const int32_t found = first;
    *sum = found < n ? sum_at_first : done;
    __syncthreads();                                   /* before the next call writes */
    return found;
}

__global__ void __launch_bounds__(DRAW_THREADS)
draw_kernel(const float *logits, const int32_t *ids, int32_t n_vocab, const __grid_constant__ sample_rule rule, double *p, int32_t *token)
{
    const float best = logits[ids[0]];
    if (!isfinite(best) || !isfinite(logits[ids[n_vocab - 1]])) {          /* in their order: the others lie between */
        if (threadIdx.x == 0) *token = -1;
        return;
    }
    int32_t n = rule.top_k > 0 ? min_i32(rule.top_k, n_vocab) : n_vocab;
    double sum = 0, total;
    for (int32_t begin = 0; begin < n; begin += DRAW_THREADS) {
        const int32_t i = begin + threadIdx.x;
        const double x = i < n ? exp(((double)logits[ids[i]] - (double)best) / (double)rule.temperature) : 0.0;
        if (i < n) p[i] = x;
        block_running_sum(x, &total);
        sum += total;
    }
    if (rule.top_p > 0 && rule.top_p < 1) n = min_i32(n, first_beyond<false>(p, n, (double)rule.top_p * sum, &sum) + 1);
    if (rule.min_p > 0) {
        const double least = (double)rule.min_p * p[0];
        int32_t n_kept = 0;
        sum = 0;
        for (int32_t begin = 0; begin < n; begin += DRAW_THREADS) {
            const int32_t i = begin + threadIdx.x;
            const bool is_kept = i < n && (i == 0 || p[i] >= least);
            block_running_sum(is_kept ? p[i] : 0.0, &total);
            sum += total;
            n_kept += __syncthreads_count(is_kept);
        }
        n = n_kept;
    }
    const int32_t chosen = min_i32(first_beyond<true>(p, n, rule.draw * sum, &sum), n - 1);
    if (threadIdx.x == 0) *token = ids[chosen];
}

/* ---------------------------------------------------------------- host */

struct sample_scratch {
    double *p;                     /* [n] */
    sort_list lists[2];
    uint32_t *counts;              /* [N_DIGITS][SORT_WARPS] */
};

static size_t lay_out(sample_scratch *s, void *base, int32_t n)
{
    const size_t n_double = align_up((size_t)n * sizeof(double), 256), n_word = align_up((size_t)n * sizeof(float), 256);
    char *const words = (char *)base + n_double;
    s->p = (double *)base;
    for (int i = 0; i < 2; i++) s->lists[i] = { (uint32_t *)(words + 2 * i * n_word), (int32_t *)(words + (2 * i + 1) * n_word) };
    s->counts = (uint32_t *)(words + 4 * n_word);
    return n_double + 4 * n_word + N_DIGITS * SORT_WARPS * sizeof(uint32_t);
}

extern "C" size_t gpu_sample_bytes(int32_t n)
{
    sample_scratch ignored;
    return lay_out(&ignored, NULL, n);
}

/* Into lists[1]: an even number of passes, the first of which reads the logits. */
static void sort(gpu *g, const float *logits, int32_t n, const sample_scratch &s)
{
    constexpr int N_BLOCKS = SORT_WARPS / WARPS_PER_BLOCK;
    for (int32_t pass = 0; pass < 32 / DIGIT_BITS; pass++) {
        const float *input = pass == 0 ? logits : NULL;
        const sort_list from = s.lists[(pass + 1) % 2], to = s.lists[pass % 2];
        count_digits_kernel<<<N_BLOCKS, SORT_THREADS, 0, g->stream>>>(input, from, n, pass * DIGIT_BITS, s.counts);
        sum_counts_kernel<<<1, N_DIGITS, 0, g->stream>>>(s.counts);
        deal_kernel<<<N_BLOCKS, SORT_THREADS, 0, g->stream>>>(input, from, n, pass * DIGIT_BITS, s.counts, to);
    }
}

extern "C" void gpu_sample(gpu *g, const float *logits, int32_t n, const sample_rule *rule, int32_t *token, void *scratch)
{
    if (n <= 0 || !gpu_is_ready(g)) return;
    if (rule->temperature == 0) {
        best_of_blocks_kernel<<<BEST_BLOCKS, BEST_THREADS, 0, g->stream>>>(logits, n, g->best);
        best_kernel<<<1, BEST_THREADS, 0, g->stream>>>(g->best, token);
        gpu_keep_launch(g, "greedy choice");
        return;
    }
    sample_scratch s;
    lay_out(&s, scratch, n);
    sort(g, logits, n, s);
    draw_kernel<<<1, DRAW_THREADS, 0, g->stream>>>(logits, s.lists[1].ids, n, *rule, s.p, token);
    gpu_keep_launch(g, "sampling");
}
