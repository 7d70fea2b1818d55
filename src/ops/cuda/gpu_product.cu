/* gpu_product.cu - matrix products through cuBLASLt, which is loaded when a device is opened.
 *
 *   y[r][o] (+)= sum over i of x[r][i] w[o][i]        bf16 x bf16, sums in f32, y bf16 or f32
 *
 * The library counts columns first: with w as A [n_in x n_out] transposed and x as B [n_in x n_rows], D [n_out x n_rows] is y.
 * Backward, y[r][i] = sum over o of x[r][o] w[o][i]: the same A as it lies, B [n_out x n_rows], D [n_in x n_rows].
 *
 * Bits.  Algorithms that split n_in are never taken: each sum then runs through its n_in products in one order.  What a row
 * becomes must not depend on the rows around it, so the choice is made once for a shape and serves every n_rows, and tuning
 * keeps only candidates that give, on cuts of 1, 3, 7, 128 and the remaining rows, the bits the library's first
 * proposal gives on all rows at once.  Hence neither tuning nor its noise can change a result.
 *
 * Floor: 2 n_rows n_out n_in FLOP at 770 TFLOP/s (the card's rate on 8192^3). */
#include "ops/cuda/gpu_device.cuh"

#include <cublasLt.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    WORKSPACE_BYTES = 32 << 20,    /* what the library asks for on Hopper */
    MAX_CANDIDATES = 16, N_ROUNDS = 7, MAX_PRODUCTS = 64,
    USUAL_ROWS = 2048,             /* what an untuned choice is made for, whatever n_rows */
};

struct gpu_algo {
    gpu_algo *next;
    int32_t n_out, n_in, alignment;        /* alignment: bytes, of all rows; a power of 2, at most 16 */
    tmx_type y_type;
    bool is_back, is_added, is_tuned;
    cublasLtMatmulAlgo_t algo;
    int32_t n_candidates, n_agreeing, n_rows;      /* of the tuning */
    double ms, first_ms;
};

struct gpu_lt {
    void *library;
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtMatmul) multiply;
    decltype(&cublasLtMatmulAlgoGetHeuristic) propose;
    decltype(&cublasLtMatmulAlgoCheck) check;
    decltype(&cublasLtMatmulAlgoConfigGetAttribute) config_get;
    decltype(&cublasLtMatmulDescInit_internal) init_product;       /* what the header's inline forms call */
    decltype(&cublasLtMatmulDescSetAttribute) set_product;
    decltype(&cublasLtMatrixLayoutInit_internal) init_layout;
    decltype(&cublasLtMatmulPreferenceInit_internal) init_preference;
    decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
    decltype(&cublasLtGetStatusString) status_text;
    cublasLtHandle_t handle;
    void *workspace;
    gpu_algo *algos;
};

/* ---------------------------------------------------------------- the library */

static tmx_status load_library(gpu_lt *lt, tmx_error *err)
{
    static const char *const names[] = { "libcublasLt.so.13", "libcublasLt.so.12" };
    for (int i = 0; i < 2 && lt->library == NULL; i++) lt->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (lt->library == NULL) {
        return refuse(err, TMX_E_DEVICE, "%s and %s were not found; the folder of one belongs on LD_LIBRARY_PATH", names[0],
                      names[1]);
    }
    const struct { const char *name; void *slot; } functions[] = {
        { "cublasLtCreate", &lt->create }, { "cublasLtDestroy", &lt->destroy }, { "cublasLtMatmul", &lt->multiply },
        { "cublasLtMatmulAlgoGetHeuristic", &lt->propose }, { "cublasLtMatmulAlgoCheck", &lt->check },
        { "cublasLtMatmulAlgoConfigGetAttribute", &lt->config_get }, { "cublasLtMatmulDescInit_internal", &lt->init_product },
        { "cublasLtMatmulDescSetAttribute", &lt->set_product }, { "cublasLtMatrixLayoutInit_internal", &lt->init_layout },
        { "cublasLtMatmulPreferenceInit_internal", &lt->init_preference },
        { "cublasLtMatmulPreferenceSetAttribute", &lt->set_preference }, { "cublasLtGetStatusString", &lt->status_text },
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *const found = dlsym(lt->library, functions[i].name);
        if (found == NULL) return refuse(err, TMX_E_DEVICE, "libcublasLt has no function %s", functions[i].name);
        memcpy(functions[i].slot, &found, sizeof found);
    }
    return TMX_OK;
}

tmx_status gpu_lt_open(gpu *g, tmx_error *err)
{
    gpu_lt *lt = g->lt = (gpu_lt *)mem_alloc(1, sizeof *lt);
    if (lt == NULL) return refuse(err, TMX_E_MEMORY, "%s: out of host memory", g->name);
    TRY(load_library(lt, err));
    const cublasStatus_t status = lt->create(&lt->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return refuse(err, TMX_E_DEVICE, "%s: cublasLtCreate: %s", g->name, lt->status_text(status));
    }
    GPU_TRY_STATUS(cudaMalloc(&lt->workspace, WORKSPACE_BYTES), err);
    return TMX_OK;
}

void gpu_lt_close(gpu *g)
{
    gpu_lt *lt = g->lt;
    if (lt == NULL) return;
    cudaFree(lt->workspace);
    if (lt->handle != NULL) lt->destroy(lt->handle);
    for (gpu_algo *algo = lt->algos, *next; algo != NULL; algo = next) {
        next = algo->next;
        mem_free(algo);
    }
    if (lt->library != NULL) dlclose(lt->library);
    mem_free(lt);
    g->lt = NULL;
}

static void keep_status(gpu *g, cublasStatus_t status, const gpu_weight *weight, int32_t n_rows)
{
    if (status == CUBLAS_STATUS_SUCCESS || g->first.code != TMX_OK) return;
    cudaGetLastError();
    error_set(&g->first, TMX_E_DEVICE, "%s: product of %d rows with [%d][%d]: %s", g->name, n_rows, weight->n_out,
              weight->n_in, g->lt->status_text(status));
}

/* ---------------------------------------------------------------- one product */

struct product {
    const gpu_weight *weight;
    const void *x;
    size_t x_stride;
    int32_t n_rows;
    void *y;
    size_t y_stride;
    tmx_type y_type;
    bool is_back, is_added;
};

struct lt_product {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

static size_t y_bytes(tmx_type y_type) { return y_type == TMX_TYPE_BF16 ? 2 : 4; }

static cublasStatus_t describe(const gpu_lt *lt, const product *p, lt_product *d)
{
    const uint64_t n_in = (uint64_t)p->weight->n_in, n_out = (uint64_t)p->weight->n_out, n_rows = (uint64_t)p->n_rows;
    const cublasOperation_t of_w = p->is_back ? CUBLAS_OP_N : CUBLAS_OP_T;
    const uint64_t n_x = p->is_back ? n_out : n_in, n_y = p->is_back ? n_in : n_out;
    const cudaDataType_t y_type = p->y_type == TMX_TYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    cublasStatus_t status = lt->init_product(&d->desc, sizeof d->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == 0) status = lt->set_product(&d->desc, CUBLASLT_MATMUL_DESC_TRANSA, &of_w, sizeof of_w);
    if (status == 0) status = lt->init_layout(&d->w, sizeof d->w, CUDA_R_16BF, n_in, n_out, (int64_t)n_in);
    if (status == 0) status = lt->init_layout(&d->x, sizeof d->x, CUDA_R_16BF, n_x, n_rows, (int64_t)p->x_stride);
    if (status == 0) status = lt->init_layout(&d->y, sizeof d->y, y_type, n_y, n_rows, (int64_t)p->y_stride);
    return status;
}

static cublasStatus_t enqueue(const gpu *g, const product *p, const cublasLtMatmulAlgo_t *algo)
{
    const gpu_lt *lt = g->lt;
    const float alpha = 1.0f, beta = p->is_added ? 1.0f : 0.0f;
    lt_product d;
    const cublasStatus_t status = describe(lt, p, &d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    return lt->multiply(lt->handle, &d.desc, &alpha, p->weight->data, &d.w, p->x, &d.x, &beta, p->y, &d.y, p->y, &d.y, algo,
                        lt->workspace, WORKSPACE_BYTES, g->stream);
}

/* ---------------------------------------------------------------- candidates */

/* The largest power of 2 up to 16 that divides every row's address. */
static int32_t alignment_of(const product *p)
{
    const uintptr_t bits = (uintptr_t)p->weight->data | (uintptr_t)p->x | (uintptr_t)p->y | 2 * (uintptr_t)p->weight->n_in
        | 2 * p->x_stride | y_bytes(p->y_type) * p->y_stride | 16;
    return (int32_t)(bits & -bits);
}

static bool splits_sums(const gpu_lt *lt, const cublasLtMatmulAlgo_t *algo)
{
    int32_t n_splits = 0;
    uint32_t reduction = 0;
    size_t n_written;
    if (lt->config_get(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &n_splits, sizeof n_splits, &n_written) != 0) return true;
    if (lt->config_get(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction, sizeof reduction, &n_written) != 0) return true;
    return n_splits > 1 || n_splits < 0 || reduction != CUBLASLT_REDUCTION_SCHEME_NONE;
}

static bool serves_every_n_rows(const gpu_lt *lt, const product *p, const cublasLtMatmulAlgo_t *algo)
{
    const int32_t n_rows[] = { 1, 2, 3, 8, 128, 777, p->n_rows };
    product of_rows = *p;
    for (size_t i = 0; i < sizeof n_rows / sizeof *n_rows; i++) {
        of_rows.n_rows = n_rows[i];
        lt_product d;
        cublasLtMatmulHeuristicResult_t result;
        if (describe(lt, &of_rows, &d) != 0) return false;
        if (lt->check(lt->handle, &d.desc, &d.w, &d.x, &d.y, &d.y, algo, &result) != 0 || result.state != 0
            || result.workspaceSize > WORKSPACE_BYTES) return false;
    }
    return true;
}

/* The library's proposals for n_rows rows, without those that are out of the question; best first by its own estimate. */
static int32_t find_candidates(const gpu_lt *lt, const product *p, int32_t n_rows, int32_t n_most,
                               cublasLtMatmulAlgo_t *candidates)
{
    product of_rows = *p;
    of_rows.n_rows = n_rows;
    lt_product d;
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t results[MAX_CANDIDATES];
    const uint64_t workspace = WORKSPACE_BYTES;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE, alignment = (uint32_t)alignment_of(p);
    int n_results = 0;
    if (describe(lt, &of_rows, &d) != 0 || lt->init_preference(&preference, sizeof preference) != 0) return 0;
    const struct { cublasLtMatmulPreferenceAttributes_t attribute; const void *value; size_t size; } wishes[] = {
        { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace },
        { CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment, sizeof alignment },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment, sizeof alignment },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment, sizeof alignment },
        { CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment, sizeof alignment },
    };
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++) {
        if (lt->set_preference(&preference, wishes[i].attribute, wishes[i].value, wishes[i].size) != 0) return 0;
    }
    if (lt->propose(lt->handle, &d.desc, &d.w, &d.x, &d.y, &d.y, &preference, MAX_CANDIDATES, results, &n_results) != 0) return 0;
    int32_t n = 0;
    for (int i = 0; i < n_results && n < n_most; i++) {
        if (results[i].state != 0 || splits_sums(lt, &results[i].algo)) continue;
        if (serves_every_n_rows(lt, &of_rows, &results[i].algo)) candidates[n++] = results[i].algo;
    }
    return n;
}

/* ---------------------------------------------------------------- choices, remembered by shape */

static gpu_algo *find_choice(const gpu *g, const product *p, int32_t alignment)
{
    for (gpu_algo *a = g->lt->algos; a != NULL; a = a->next) {
        if (a->n_out == p->weight->n_out && a->n_in == p->weight->n_in && a->y_type == p->y_type && a->is_added == p->is_added
            && a->is_back == p->is_back && a->alignment == alignment) return a;
    }
    return NULL;
}

static gpu_algo *add_choice(gpu *g, const product *p, int32_t alignment)
{
    gpu_algo *a = (gpu_algo *)mem_alloc(1, sizeof *a);
    if (a == NULL) {
        if (g->first.code == TMX_OK) error_set(&g->first, TMX_E_MEMORY, "%s: out of host memory", g->name);
        return NULL;
    }
    a->n_out = p->weight->n_out, a->n_in = p->weight->n_in, a->alignment = alignment;
    a->y_type = p->y_type, a->is_added = p->is_added, a->is_back = p->is_back;
    a->next = g->lt->algos;
    g->lt->algos = a;
    return a;
}

static const gpu_algo *choose_untuned(gpu *g, const product *p, int32_t alignment)
{
    gpu_algo *found = find_choice(g, p, alignment);
    if (found != NULL) return found;
    cublasLtMatmulAlgo_t first;
    if (find_candidates(g->lt, p, USUAL_ROWS, 1, &first) == 0) {
        keep_status(g, CUBLAS_STATUS_NOT_SUPPORTED, p->weight, p->n_rows);
        return NULL;
    }
    found = add_choice(g, p, alignment);
    if (found != NULL) found->algo = first;
    return found;
}

extern "C" void gpu_product(gpu *g, const gpu_weight *weight, const void *x, size_t x_stride, int32_t n_rows, void *y,
                            size_t y_stride, tmx_type y_type, bool is_added)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    product p;
    p.weight = weight, p.x = x, p.x_stride = x_stride, p.n_rows = n_rows;
    p.y = y, p.y_stride = y_stride, p.y_type = y_type, p.is_back = false, p.is_added = is_added;
    const int32_t alignment = alignment_of(&p);
    const gpu_algo *algo = weight->algo;
    if (algo == NULL || algo->y_type != y_type || algo->is_added != is_added || algo->alignment > alignment) {
        algo = choose_untuned(g, &p, alignment);
    }
    if (algo != NULL) keep_status(g, enqueue(g, &p, &algo->algo), weight, n_rows);
}

extern "C" void gpu_product_back(gpu *g, const gpu_weight *weight, const void *x, size_t x_stride, int32_t n_rows, void *y,
                                 size_t y_stride, tmx_type y_type)
{
    if (n_rows <= 0 || !gpu_is_ready(g)) return;
    product p;
    p.weight = weight, p.x = x, p.x_stride = x_stride, p.n_rows = n_rows;
    p.y = y, p.y_stride = y_stride, p.y_type = y_type, p.is_back = true, p.is_added = false;
    const gpu_algo *algo = choose_untuned(g, &p, alignment_of(&p));
    if (algo != NULL) keep_status(g, enqueue(g, &p, &algo->algo), weight, n_rows);
}

/* ---------------------------------------------------------------- tuning */

__global__ void find_difference(const uint16_t *a, const uint16_t *b, size_t n, int32_t *differs)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (size_t)blockDim.x) {
        if (a[i] != b[i]) *differs = 1;
    }
}

struct tuning {
    product all;                   /* all rows */
    cublasLtMatmulAlgo_t candidates[MAX_CANDIDATES + 1];
    bool is_in[MAX_CANDIDATES + 1];
    double ms[MAX_CANDIDATES + 1][N_ROUNDS];
    int32_t n;
};

static void *y_row(const product *p, int32_t row) { return (char *)p->y + (size_t)row * p->y_stride * y_bytes(p->y_type); }
static const void *x_row(const product *p, int32_t row) { return (const char *)p->x + 2 * (size_t)row * p->x_stride; }

static bool multiply_rows(gpu *g, const product *all, int32_t begin, int32_t end, int32_t y_begin,
                          const cublasLtMatmulAlgo_t *algo)
{
    product p = *all;
    p.x = x_row(all, begin), p.y = y_row(all, y_begin), p.n_rows = end - begin;
    const size_t n_bytes = (size_t)p.n_rows * p.y_stride * y_bytes(p.y_type);
    if (p.is_added) GPU_TRY(g, cudaMemsetAsync(p.y, 0, n_bytes, g->stream));
    return enqueue(g, &p, algo) == CUBLAS_STATUS_SUCCESS;
}

/* The first half of y holds all of its rows at once by another algorithm; do the same rows in cuts, in the second half, agree? */
static bool agrees_in_cuts(gpu *g, const product *all, const cublasLtMatmulAlgo_t *algo)
{
    const int32_t half = all->n_rows / 2;
    int32_t n_rows[] = { 1, 3, 7, 128, half }, differs = 0;
    for (int32_t i = 0, begin = 0; begin < half; i++) {
        const int32_t end = min_i32(half, begin + n_rows[i]);
        if (!multiply_rows(g, all, begin, end, half + begin, algo)) return false;
        begin = end;
    }
    int32_t *flag = (int32_t *)g->best;
    GPU_TRY(g, cudaMemsetAsync(flag, 0, sizeof *flag, g->stream));
    find_difference<<<4 * g->n_sms, 256, 0, g->stream>>>((const uint16_t *)all->y, (const uint16_t *)y_row(all, half),
                                                         (size_t)half * all->y_stride * y_bytes(all->y_type) / 2, flag);
    gpu_keep_launch(g, "find_difference");
    GPU_TRY(g, cudaMemcpyAsync(&differs, flag, sizeof differs, cudaMemcpyDeviceToHost, g->stream));
    GPU_TRY(g, cudaStreamSynchronize(g->stream));
    return differs == 0;
}

static void sort(double *x, int32_t n)
{
    for (int32_t i = 1; i < n; i++) {
        for (int32_t j = i; j > 0 && x[j] < x[j - 1]; j--) {
            const double y = x[j];
            x[j] = x[j - 1], x[j - 1] = y;
        }
    }
}

/* Rounds over all candidates, so that a card that slows down slows all of them; ms[i] ends sorted.  A time is of as many products
 * as fill round_ms: a prefill holds the card at its power limit, where another algorithm can be the best than in a
 * short burst.  The round before the first warms up and finds that number. */
static void time_candidates(gpu *g, tuning *t)
{
    const double round_ms = 3.0;
    double last_ms = 0;
    int32_t n_products = 1;
    cudaEvent_t begin = NULL, end = NULL;
    GPU_TRY(g, cudaEventCreate(&begin));
    GPU_TRY(g, cudaEventCreate(&end));
    for (int32_t round = -1; round < N_ROUNDS; round++) {
        for (int32_t i = 0; i < t->n && g->first.code == TMX_OK; i++) {
            if (!t->is_in[i]) continue;
            float ms = 0.0f;
            GPU_TRY(g, cudaEventRecord(begin, g->stream));
            for (int32_t j = 0; j < n_products; j++) {
                keep_status(g, enqueue(g, &t->all, &t->candidates[i]), t->all.weight, t->all.n_rows);
            }
            GPU_TRY(g, cudaEventRecord(end, g->stream));
            GPU_TRY(g, cudaEventSynchronize(end));
            GPU_TRY(g, cudaEventElapsedTime(&ms, begin, end));
            if (round >= 0) t->ms[i][round] = (double)ms / n_products;
            else last_ms = (double)ms;
        }
        if (round < 0 && last_ms > 0) n_products = max_i32(1, (int32_t)fmin(round_ms / last_ms, MAX_PRODUCTS));
    }
    for (int32_t i = 0; i < t->n; i++) {
        if (t->is_in[i]) sort(t->ms[i], N_ROUNDS);
    }
    if (begin != NULL) cudaEventDestroy(begin);
    if (end != NULL) cudaEventDestroy(end);
}

extern "C" tmx_status gpu_weight_tune(gpu *g, gpu_weight *weight, int32_t n_rows, tmx_type y_type, bool is_added, void *scratch,
                                      tmx_error *err)
{
    if (!gpu_is_ready(g)) return gpu_failure(g, err);
    if (n_rows < 2) {
        return refuse(err, TMX_E_ARG, "tuning [%d][%d]: %d rows, expected 2 or more", weight->n_out, weight->n_in, n_rows);
    }
    if (n_rows >= 16) n_rows -= n_rows % 16;               /* keeps x behind y aligned, in halves too */
    tuning t;
    product *all = &t.all;
    all->weight = weight, all->n_rows = n_rows, all->y_type = y_type, all->is_back = false, all->is_added = is_added;
    all->y = scratch, all->y_stride = (size_t)weight->n_out;
    all->x = (char *)scratch + (size_t)n_rows * all->y_stride * y_bytes(y_type), all->x_stride = (size_t)weight->n_in;
    const int32_t alignment = alignment_of(all);
    gpu_algo *choice = find_choice(g, all, alignment);
    if (choice != NULL && choice->is_tuned) {
        weight->algo = choice;
        return TMX_OK;
    }
    gpu_fill_random(g, const_cast<void *>(all->x), (size_t)n_rows * all->x_stride, 1.0f, 1);
    t.n = find_candidates(g->lt, all, USUAL_ROWS, 1, t.candidates);
    t.n += find_candidates(g->lt, all, n_rows, MAX_CANDIDATES, t.candidates + t.n);
    int32_t first = 0, n_agreeing = 0, best = -1;
    for (int32_t i = 0; i < t.n && g->first.code == TMX_OK; i++) {
        if (i == first && !multiply_rows(g, all, 0, n_rows / 2, 0, &t.candidates[i])) t.is_in[i] = false;
        else t.is_in[i] = agrees_in_cuts(g, all, &t.candidates[i]);
        n_agreeing += t.is_in[i];
        if (i == first && !t.is_in[i]) first++;            /* the next one is the measure then */
    }
    if (n_agreeing > 0) time_candidates(g, &t);
    TRY(gpu_failure(g, err));
    if (n_agreeing == 0) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: libcublasLt has no algorithm for [%d][%d] whose rows do not depend on their "
                      "number (of %d)", g->name, weight->n_out, weight->n_in, t.n);
    }
    for (int32_t i = 0; i < t.n; i++) {
        if (t.is_in[i] && (best < 0 || t.ms[i][N_ROUNDS / 2] < t.ms[best][N_ROUNDS / 2])) best = i;
    }
    if (choice == NULL) choice = add_choice(g, all, alignment);
    TRY(gpu_failure(g, err));
    choice->algo = t.candidates[best];
    choice->is_tuned = true;
    choice->n_candidates = t.n, choice->n_agreeing = n_agreeing, choice->n_rows = n_rows;
    choice->ms = t.ms[best][N_ROUNDS / 2], choice->first_ms = t.ms[first][N_ROUNDS / 2];
    weight->algo = choice;
    return TMX_OK;
}

extern "C" void gpu_weight_describe(const gpu_weight *weight, char *text, size_t size)
{
    const gpu_algo *a = weight->algo;
    if (a == NULL) {
        snprintf(text, size, "[%d][%d]: not tuned", weight->n_out, weight->n_in);
        return;
    }
    const double tflop = 2e-12 * a->n_rows * (double)a->n_out * a->n_in;
    snprintf(text, size, "[%d][%d]%s %s: %d of %d algorithms agree to the bit, %.0f TFLOP/s for %d rows, the library's first %.0f",
             a->n_out, a->n_in, a->is_added ? " added" : "", a->y_type == TMX_TYPE_BF16 ? "bf16" : "f32", a->n_agreeing,
             a->n_candidates, tflop / a->ms * 1e3, a->n_rows, tflop / a->first_ms * 1e3);
}
