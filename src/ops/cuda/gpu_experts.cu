/* gpu_experts.cu - feed-forward blocks of which every row takes a few: choice, grouping, products, sum.
 *
 * The host never learns who chose what.  A row's choices are dealt to places: those of one expert lie side by side and begin on a
 * multiple of GPU_GROUP_ROWS, so a tile of a product belongs to one expert, which it finds by bisection.  The grid covers the
 * most tiles there can be; those behind the last leave at once.
 *
 * Bits: in which order the rows of an expert get their places is a race, but a row's sums run through its products in one order
 * wherever it lies, and its experts' results are added in ascending order of the expert.
 *
 * Floor of the products: 2 FLOP a weight and choice; tiles are filled to n_rows n_used / (that + GPU_GROUP_ROWS / 2 for every expert), 89 %
 * at 8192 rows that take 8 of 128. */
#include "base/mma_ptx.cuh"
#include "ops/cuda/gpu_device.cuh"

/* ---------------------------------------------------------------- choice */

enum { CHOICE_WARPS = 8, MAX_EXPERTS = 1024, MOST_OF_LANE = MAX_EXPERTS / 32 };

/* index -1: nothing. */
struct candidate { float score; int32_t index; };

DEVICE candidate better(candidate a, candidate b)
{
    const bool is_b = a.index < 0 || (b.index >= 0 && (b.score > a.score || (b.score == a.score && b.index < a.index)));
    return is_b ? b : a;
}

/* One warp = one row; lane l looks after experts l, l + 32, ...; a bit of `taken` for each of them. */
__global__ void choose_experts_kernel(const float *scores, int32_t n_rows, int32_t n_experts, int32_t n_used, gpu_choice *chosen)
{
    const int32_t row = blockIdx.x * CHOICE_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n_rows) return;
    scores += (size_t)row * n_experts;
    chosen += (size_t)row * n_used;
    uint32_t taken = 0;
    float top = 0.0f;
    double sum = 0.0;
    for (int32_t round = 0; round < n_used; round++) {
        candidate best = { 0.0f, -1 };
        for (int32_t i = 0, e = lane; e < n_experts; i++, e += 32) {
            if (!(taken >> i & 1)) best = better(best, candidate{ scores[e], e });
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) {
            best = better(best, candidate{ __shfl_xor_sync(0xffffffff, best.score, mask), __shfl_xor_sync(0xffffffff, best.index, mask) });
        }
        best.score = __shfl_sync(0xffffffff, best.score, 0);           /* lanes may disagree about NaNs */
        best.index = __shfl_sync(0xffffffff, best.index, 0);
        if (best.index % 32 == lane) taken |= 1u << best.index / 32;
        if (round == 0) top = best.score;
        sum += exp((double)(best.score - top));
    }
    int32_t n_before = 0;                                  /* chosen experts below this one */
    for (int32_t i = 0; 32 * i < n_experts; i++) {
        const bool is_mine = taken >> i & 1;
        const uint32_t all = __ballot_sync(0xffffffff, is_mine);
        if (is_mine) {
            const int32_t e = 32 * i + lane;
            chosen[n_before + __popc(all & ((1u << lane) - 1))] = gpu_choice{ e, (float)(exp((double)(scores[e] - top)) / sum) };
        }
        n_before += __popc(all);
    }
}

extern "C" void gpu_choose_experts(gpu *g, const float *scores, int32_t n_rows, int32_t n_experts, int32_t n_used, gpu_choice *chosen)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    choose_experts_kernel<<<divide_up(n_rows, CHOICE_WARPS), 32 * CHOICE_WARPS, 0, g->stream>>>(scores, n_rows, n_experts, n_used, chosen);
    gpu_keep_launch(g, "choose experts");
}

/* ---------------------------------------------------------------- grouping */

enum { COUNT_THREADS = 1024, PLACE_THREADS = 256 };

/* One block: how many rows chose each expert -> where its places begin; next [n_experts] is set to the same. */
__global__ void begin_groups_kernel(const gpu_choice *chosen, int32_t n, int32_t n_experts, int32_t *begin, int32_t *next)
{
    __shared__ int32_t counts[MAX_EXPERTS];
    for (int32_t e = threadIdx.x; e < n_experts; e += COUNT_THREADS) counts[e] = 0;
    __syncthreads();
    for (int32_t i = threadIdx.x; i < n; i += COUNT_THREADS) atomicAdd(&counts[chosen[i].expert], 1);
    __syncthreads();
    if (threadIdx.x > 0) return;
    int32_t at = 0;
    for (int32_t e = 0; e < n_experts; e++) {
        begin[e] = next[e] = at;
        at += (counts[e] + GPU_GROUP_ROWS - 1) / GPU_GROUP_ROWS * GPU_GROUP_ROWS;
    }
    begin[n_experts] = at;
}

__global__ void place_rows_kernel(const gpu_choice *chosen, int32_t n, int32_t n_used, int32_t *next, int32_t *rows, int32_t *places)
{
    const int32_t i = blockIdx.x * PLACE_THREADS + threadIdx.x;
    if (i >= n) return;
    const int32_t place = atomicAdd(&next[chosen[i].expert], 1);
    rows[place] = i / n_used;
    places[i] = place;
}

extern "C" void gpu_group_rows(gpu *g, const gpu_choice *chosen, const gpu_groups *groups)
{
    if (groups->n_rows <= 0 || !gpu_is_ready(g)) return;
    const int32_t n = groups->n_rows * groups->n_used;
    const int64_t n_places = gpu_group_places(groups->n_rows, groups->n_experts, groups->n_used);
    GPU_TRY(g, cudaMemsetAsync(groups->rows, 0xff, n_places * sizeof *groups->rows, g->stream));
    begin_groups_kernel<<<1, COUNT_THREADS, 0, g->stream>>>(chosen, n, groups->n_experts, groups->begin, groups->next);
    gpu_keep_launch(g, "begin groups");
    place_rows_kernel<<<divide_up(n, PLACE_THREADS), PLACE_THREADS, 0, g->stream>>>(chosen, n, groups->n_used, groups->next,
                                                                                   groups->rows, groups->places);
    gpu_keep_launch(g, "place rows");
}

/* ---------------------------------------------------------------- products of groups */

/* A block = 128 places x 128 outputs of one expert, 8 warps of 64 x 32 in fragments of mma.sync; 32 inputs a step, four steps in flight
 * through cp.async.  Rows of shared memory are 40 elements: eight of them, 16 bytes each, meet all banks once (ldmatrix).
 * Shared memory 80 KiB, two blocks an SM on Hopper, one on sm_86. */
enum { TILE_OUTS = 128, STEP = 32, SMEM_ROW = STEP + 8, N_STAGES = 4, GROUP_THREADS = 256,
       GROUPS_SMEM = N_STAGES * (GPU_GROUP_ROWS + TILE_OUTS) * SMEM_ROW * 2 };

DEVICE void store_pair(float *y, float a, float b) { *(float2 *)y = make_float2(a, b); }
DEVICE void store_pair(tmx_bf16 *y, float a, float b) { *(uint32_t *)y = bf16_pair(a, b); }

struct grouped {
    const tmx_bf16 *w, *x;         /* [n_experts][n_out][n_in]; [...][n_in] */
    const int32_t *begin, *rows;   /* rows NULL: a place's x is its own */
    int32_t n_experts, n_out, n_in;
};

/* The expert whose places hold `place`, which lies before the last one's end. */
DEVICE int32_t expert_of(const int32_t *begin, int32_t n_experts, int32_t place)
{
    int32_t low = 0, high = n_experts;                     /* begin[low] <= place < begin[high] */
    while (high - low > 1) {
        const int32_t middle = (low + high) / 2;
        if (begin[middle] <= place) low = middle;
        else high = middle;
    }
    return low;
}

template <typename T>
__global__ void __launch_bounds__(GROUP_THREADS, 2) grouped_product_kernel(const __grid_constant__ grouped p, T *y)
{
    extern __shared__ uint4 smem_bytes[];
    using stage = tmx_bf16[GPU_GROUP_ROWS + TILE_OUTS][SMEM_ROW];          /* x, then w */
    stage *stages = (stage *)smem_bytes;
    const int32_t n_out_tiles = (p.n_out + TILE_OUTS - 1) / TILE_OUTS;
    const int32_t place = blockIdx.x / n_out_tiles * GPU_GROUP_ROWS, first_out = blockIdx.x % n_out_tiles * TILE_OUTS;
    if (place >= p.begin[p.n_experts]) return;
    const int32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const tmx_bf16 *w = p.w + (size_t)expert_of(p.begin, p.n_experts, place) * p.n_out * p.n_in;

    /* A thread copies 16 bytes of four rows: threadIdx.x / 4 + 64 j, the first two of x, the others of w. */
    const int32_t column = threadIdx.x % 4 * 8;
    const tmx_bf16 *from[4];
    bool is_there[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int32_t i = threadIdx.x / 4 + 64 * (j % 2);
        if (j < 2) {
            const int32_t row = p.rows != NULL ? p.rows[place + i] : place + i;
            is_there[j] = row >= 0;
            from[j] = p.x + (size_t)max_i32(row, 0) * p.n_in + column;
        } else {
            is_there[j] = first_out + i < p.n_out;
            from[j] = w + (size_t)min_i32(first_out + i, p.n_out - 1) * p.n_in + column;
        }
    }
    const int32_t n_steps = (p.n_in + STEP - 1) / STEP;
    const auto load = [&](int32_t step) {
        if (step < n_steps) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const bool is_inside = step * STEP + column < p.n_in;
                copy_async(&stages[step % N_STAGES][threadIdx.x / 4 + 64 * j][column], is_inside ? from[j] + step * STEP : from[j],
                           is_inside && is_there[j]);
            }
        }
        copy_commit();
    };

    float sums[4][4][4];                                   /* [16 places][8 outputs] fragments of the warp */
#pragma unroll
    for (int i = 0; i < 64; i++) sums[i / 16][i / 4 % 4][i % 4] = 0.0f;
    const int32_t warp_row = warp % 2 * 64, warp_out = warp / 2 * 32;
#pragma unroll
    for (int32_t step = 0; step < N_STAGES - 1; step++) load(step);
    for (int32_t step = 0; step < n_steps; step++) {
        copy_wait<N_STAGES - 2>();
        __syncthreads();                                   /* the step is there, and everyone is done with the one before */
        load(step + N_STAGES - 1);
        const stage &s = stages[step % N_STAGES];
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t b[2][4];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                load_matrices(b[n], &s[GPU_GROUP_ROWS + warp_out + 16 * n + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
            }
#pragma unroll
            for (int m = 0; m < 4; m++) {
                uint32_t a[4];
                load_matrices(a, &s[warp_row + 16 * m + lane % 16][k + lane / 16 * 8]);
#pragma unroll
                for (int n = 0; n < 4; n++) multiply_add(sums[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], __nv_bfloat16());
            }
        }
    }
#pragma unroll
    for (int m = 0; m < 4; m++) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int32_t row = place + warp_row + 16 * m + lane / 4, out = first_out + warp_out + 8 * n + 2 * (lane % 4);
            if (out >= p.n_out) continue;
            store_pair(y + (size_t)row * p.n_out + out, sums[m][n][0], sums[m][n][1]);
            store_pair(y + (size_t)(row + 8) * p.n_out + out, sums[m][n][2], sums[m][n][3]);
        }
    }
}

template <typename T> static void grouped_product(gpu *g, const grouped &p, int64_t n_places, T *y)
{
    const auto kernel = grouped_product_kernel<T>;
    GPU_TRY(g, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GROUPS_SMEM));
    if (!gpu_is_ready(g)) return;
    const int64_t n_tiles = n_places / GPU_GROUP_ROWS * divide_up(p.n_out, TILE_OUTS);
    kernel<<<(uint32_t)n_tiles, GROUP_THREADS, GROUPS_SMEM, g->stream>>>(p, y);
    gpu_keep_launch(g, "grouped product");
}

extern "C" void gpu_grouped_product(gpu *g, const gpu_weight *weight, const gpu_groups *groups, const void *x, bool is_gathered, void *y,
                                    tmx_type y_type)
{
    if (groups->n_rows <= 0 || !gpu_is_ready(g)) return;
    const int64_t n_places = gpu_group_places(groups->n_rows, groups->n_experts, groups->n_used);
    grouped p;
    p.w = (const tmx_bf16 *)weight->data, p.x = (const tmx_bf16 *)x;
    p.begin = groups->begin, p.rows = is_gathered ? groups->rows : NULL;
    p.n_experts = groups->n_experts, p.n_out = weight->n_out / groups->n_experts, p.n_in = weight->n_in;
    if (y_type == TMX_TYPE_BF16) grouped_product(g, p, n_places, (tmx_bf16 *)y);
    else grouped_product(g, p, n_places, (float *)y);
}

/* ---------------------------------------------------------------- sum */

enum { SUM_THREADS = 256 };

__global__ void add_experts_kernel(const gpu_choice *chosen, const int32_t *places, int32_t n_used, const float *y, int32_t n_embd,
                                   int32_t blocks_per_row, float *x)
{
    const int32_t row = blockIdx.x / blocks_per_row, i = 4 * (blockIdx.x % blocks_per_row * SUM_THREADS + threadIdx.x);
    if (i >= n_embd) return;
    float4 *at = (float4 *)(x + (size_t)row * n_embd + i), sum = *at;
    for (int32_t c = row * n_used; c < (row + 1) * n_used; c++) {
        const float weight = chosen[c].weight;
        const float4 z = *(const float4 *)(y + (size_t)(places != NULL ? places[c] : c) * n_embd + i);
        sum = make_float4(fmaf(weight, z.x, sum.x), fmaf(weight, z.y, sum.y), fmaf(weight, z.z, sum.z), fmaf(weight, z.w, sum.w));
    }
    *at = sum;
}

extern "C" void gpu_add_experts(gpu *g, const gpu_choice *chosen, const int32_t *places, int32_t n_rows, int32_t n_used, const float *y,
                                int32_t n_embd, float *x)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    const int32_t blocks_per_row = divide_up(n_embd / 4, SUM_THREADS);
    add_experts_kernel<<<n_rows * blocks_per_row, SUM_THREADS, 0, g->stream>>>(chosen, places, n_used, y, n_embd, blocks_per_row, x);
    gpu_keep_launch(g, "add experts");
}
