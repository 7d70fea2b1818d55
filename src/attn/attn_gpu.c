/* The door to the CUDA kernels: checks every argument, plans launches of up to GPU_MAX_SEQS sequences, hands them over. */
#include "attn/attn_gpu.h"
#include "attn/cuda/attn_cuda.h"
#include "base/mem.h"
#include "base/status.h"
#include "pattern/pattern.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PROMPT = 1 << 30, MAX_HEADS = 1 << 16, SCRATCH_ALIGN = 256, ELEMENT_BYTES = 2, COPY_ELEMENTS = 8 };

/* ---------------------------------------------------------------- checks */

/* Of the Hopper kernel; the portable one has 96 and 256, too. */
static bool has_sm90(int32_t head_dim) { return head_dim == 64 || head_dim == 128; }

/* Everything the size of scratch depends on. */
static tmx_status check_shape(const tmx_gpu_attention_params *p, tmx_error *err)
{
    if (p == NULL) return refuse(err, TMX_E_ARG, "gpu attention: params is NULL");
    if (p->n_kv_heads < 1 || p->n_kv_heads > MAX_HEADS) {
        return refuse(err, TMX_E_ARG, "gpu attention: n_kv_heads: %d, expected 1..%d", p->n_kv_heads, MAX_HEADS);
    }
    if (p->n_heads < 1 || p->n_heads > MAX_HEADS || p->n_heads % p->n_kv_heads != 0) {
        return refuse(err, TMX_E_ARG, "gpu attention: n_heads: %d, expected a multiple of n_kv_heads %d up to %d", p->n_heads,
                      p->n_kv_heads, MAX_HEADS);
    }
    if (!has_sm90(p->head_dim) && p->head_dim != 96 && p->head_dim != 256) {
        return refuse(err, p->head_dim < 1 ? TMX_E_ARG : TMX_E_UNSUPPORTED,
                      "gpu attention: head_dim: %d, supported are 64, 96, 128 and 256", p->head_dim);
    }
    TRY(pattern_check(&p->pattern, err));
    if (p->n_seqs < 0) return refuse(err, TMX_E_ARG, "gpu attention: n_seqs: %d, expected 0 or more", p->n_seqs);
    if (p->n_seqs > 0 && p->seqs == NULL) return refuse(err, TMX_E_ARG, "gpu attention: seqs is NULL");
    for (int32_t i = 0; i < p->n_seqs; i++) {
        const tmx_gpu_attention_seq *seq = &p->seqs[i];
        if (seq->q_begin < 0 || seq->n_q < 0) {
            return refuse(err, TMX_E_ARG, "gpu attention: seqs[%d]: q_begin %d and n_q %d, expected 0 or more", i,
                          seq->q_begin, seq->n_q);
        }
        if (seq->n_prompt > MAX_PROMPT || seq->n_prompt - seq->q_begin < seq->n_q) {
            return refuse(err, TMX_E_ARG, "gpu attention: seqs[%d].n_prompt: %d, expected q_begin %d + n_q %d to %d", i,
                          seq->n_prompt, seq->q_begin, seq->n_q, MAX_PROMPT);
        }
    }
    return TMX_OK;
}

static tmx_status check_values(const tmx_gpu_attention_params *p, tmx_error *err)
{
    if (p->type != TMX_TYPE_DEFAULT && p->type != TMX_TYPE_BF16 && p->type != TMX_TYPE_F16) {
        return refuse(err, TMX_E_ARG, "gpu attention: type: %d, expected 0 (default), 2 (bf16) or 3 (f16)", (int)p->type);
    }
    if (p->scale != 0.0f && !(p->scale >= 0x1p-100f && p->scale <= 0x1p100f)) {
        return refuse(err, TMX_E_ARG, "gpu attention: scale: %g, expected 0 (default) or 2^-100..2^100", (double)p->scale);
    }
    if ((int)p->kernel < TMX_GPU_KERNEL_AUTO || (int)p->kernel > TMX_GPU_KERNEL_SM90) {
        return refuse(err, TMX_E_ARG, "gpu attention: kernel: %d, expected %d..%d", (int)p->kernel, TMX_GPU_KERNEL_AUTO,
                      TMX_GPU_KERNEL_SM90);
    }
    if (p->page_size != 0 && (p->page_size < 16 || p->page_size > 256 || (p->page_size & (p->page_size - 1)) != 0)) {
        return refuse(err, TMX_E_ARG, "gpu attention: page_size: %d, expected 0, 16, 32, 64, 128 or 256", p->page_size);
    }
    if (p->scratch == NULL || (uintptr_t)p->scratch % SCRATCH_ALIGN != 0) {
        return refuse(err, TMX_E_ARG, "gpu attention: scratch: NULL or not aligned to %d bytes", SCRATCH_ALIGN);
    }
    return TMX_OK;
}

/* A buffer [n_pos][n_heads][head_dim]: there, aligned for 16-byte copies, and inside the address space. */
static tmx_status check_buffer(const char *field, int32_t i, const void *data, int64_t n_pos, size_t pos_stride,
                               int64_t n_heads, size_t head_stride, int32_t head_dim, tmx_error *err)
{
    if (data == NULL) return refuse(err, TMX_E_ARG, "gpu attention: seqs[%d]: %s is NULL", i, field);
    if ((uintptr_t)data % 16 != 0) return refuse(err, TMX_E_ARG, "gpu attention: seqs[%d]: %s: not aligned to 16 bytes", i, field);
    if ((n_pos > 1 && pos_stride % COPY_ELEMENTS != 0) || (n_heads > 1 && head_stride % COPY_ELEMENTS != 0)) {
        return refuse(err, TMX_E_ARG, "gpu attention: %s: strides %zu and %zu, expected multiples of %d", field, pos_stride,
                      head_stride, COPY_ELEMENTS);
    }
    uint64_t pos, head, n;
    /* 2^40 bytes: what the copy engine's strides can say. */
    if (!mul_ok((uint64_t)n_pos - 1, pos_stride, &pos) || !mul_ok((uint64_t)n_heads - 1, head_stride, &head)
        || !add_ok(pos, head, &n) || !add_ok(n, (uint64_t)head_dim, &n) || n >= (uint64_t)1 << 39
        || (uintptr_t)data > UINTPTR_MAX - n * ELEMENT_BYTES) {
        return refuse(err, TMX_E_ARG, "gpu attention: seqs[%d]: %s: strides %zu and %zu reach too far", i, field, pos_stride,
                      head_stride);
    }
    return TMX_OK;
}

static tmx_status check_kv(const tmx_gpu_attention_params *p, int32_t i, tmx_error *err)
{
    const tmx_gpu_attention_seq *seq = &p->seqs[i];
    const int64_t n_keys = (int64_t)seq->q_begin + seq->n_q;
    if (p->page_size == 0) {
        TRY(check_buffer("k", i, seq->k, n_keys, p->k_pos_stride, p->n_kv_heads, p->k_head_stride, p->head_dim, err));
        return check_buffer("v", i, seq->v, n_keys, p->v_pos_stride, p->n_kv_heads, p->v_head_stride, p->head_dim, err);
    }
    if (p->n_pages < 1) return refuse(err, TMX_E_ARG, "gpu attention: n_pages: %d, expected 1 or more", p->n_pages);
    if (seq->pages == NULL || (uintptr_t)seq->pages % sizeof *seq->pages != 0) {
        return refuse(err, TMX_E_ARG, "gpu attention: seqs[%d].pages: NULL or not aligned", i);
    }
    TRY(check_buffer("k_pages", i, p->k_pages, p->page_size, p->k_pos_stride, p->n_kv_heads, p->k_head_stride, p->head_dim, err));
    TRY(check_buffer("v_pages", i, p->v_pages, p->page_size, p->v_pos_stride, p->n_kv_heads, p->v_head_stride, p->head_dim, err));
    TRY(check_buffer("k_pages", i, p->k_pages, p->n_pages, p->k_page_stride, 1, 0, p->head_dim, err));
    return check_buffer("v_pages", i, p->v_pages, p->n_pages, p->v_page_stride, 1, 0, p->head_dim, err);
}

static tmx_status check_seq(const tmx_gpu_attention_params *p, int32_t i, tmx_error *err)
{
    const tmx_gpu_attention_seq *seq = &p->seqs[i];
    if (seq->n_q == 0) return TMX_OK;
    TRY(check_buffer("q", i, seq->q, seq->n_q, p->q_pos_stride, p->n_heads, p->q_head_stride, p->head_dim, err));
    TRY(check_buffer("out", i, seq->out, seq->n_q, p->out_pos_stride, p->n_heads, p->out_head_stride, p->head_dim, err));
    if ((uintptr_t)seq->lse % sizeof *seq->lse != 0) {
        return refuse(err, TMX_E_ARG, "gpu attention: seqs[%d].lse: not aligned", i);
    }
    return check_kv(p, i, err);
}

/* ---------------------------------------------------------------- launches */

static gpu_grid grid_with(const tmx_gpu_attention_params *p, tmx_gpu_kernel kernel, int32_t head_shift)
{
    const bool is_sm90 = kernel == TMX_GPU_KERNEL_SM90;
    gpu_grid grid = { .pattern = p->pattern, .n_heads = p->n_heads, .n_kv_heads = p->n_kv_heads };
    grid.n_group = p->n_heads / p->n_kv_heads;
    grid.head_shift = head_shift;
    grid.n_positions = (is_sm90 ? SM90_TILE_ROWS : PORTABLE_TILE_ROWS) >> grid.head_shift;
    grid.n_head_tiles = grid.n_kv_heads * ceil_div_i32(grid.n_group, 1 << grid.head_shift);
    grid.slot_keys = is_sm90 ? SM90_SLOT_KEYS : PORTABLE_SLOT_KEYS;
    grid.narrow_keys = is_sm90 && grid.n_positions < SM90_NARROW_KEYS ? SM90_NARROW_KEYS : grid.slot_keys;
    return grid;
}

static gpu_grid grid_of(const tmx_gpu_attention_params *p, tmx_gpu_kernel kernel)
{
    return grid_with(p, kernel, gpu_head_shift(p->n_heads / p->n_kv_heads, p->pattern.kind));
}

/* Plans the sequences from `first` on, as many as one launch takes.  False: too many tasks to count. */
static bool plan_launch(gpu_launch *launch, const tmx_gpu_attention_params *p, const gpu_grid *grid, int32_t first)
{
    *launch = (gpu_launch){ .grid = *grid, .n_seqs = min_i32(p->n_seqs - first, GPU_MAX_SEQS) };
    for (int32_t i = 0; i < launch->n_seqs; i++) {
        const tmx_gpu_attention_seq *seq = &p->seqs[first + i];
        gpu_seq_set(&launch->seqs[i], grid, seq->q_begin, seq->n_q, seq->n_prompt, 2 * ELEMENT_BYTES * p->head_dim);
        launch->buffers[i] = (gpu_buffers){ .q = seq->q, .k = seq->k, .v = seq->v, .out = seq->out, .lse = seq->lse };
        if (p->page_size > 0) {
            launch->buffers[i].k = p->k_pages;
            launch->buffers[i].v = p->v_pages;
            launch->buffers[i].pages = seq->pages;
        }
    }
    launch->n_partials = gpu_seqs_chain(launch->seqs, launch->n_seqs, grid);
    launch->n_tasks = launch->seqs[launch->n_seqs - 1].tasks_end;
    launch->tile_rows = grid->n_positions << grid->head_shift;
    return launch->n_partials >= 0;
}

/* The counter, then each partial's maxima and sums, then their O.  Launches of one call follow each other: they share it. */
static uint64_t partials_offset(uint64_t n_rows) { return SCRATCH_ALIGN + n_rows * 2 * sizeof(float); }

static uint64_t launch_bytes(const gpu_launch *launch, int32_t head_dim)
{
    const uint64_t n_rows = (uint64_t)launch->n_partials * (uint64_t)launch->tile_rows;
    return align_up(partials_offset(n_rows) + n_rows * (uint64_t)head_dim * sizeof(float), SCRATCH_ALIGN);
}

static uint64_t scratch_bytes(const tmx_gpu_attention_params *p, tmx_gpu_kernel kernel)
{
    const gpu_grid grid = grid_of(p, kernel);
    uint64_t n_bytes = SCRATCH_ALIGN;
    for (int32_t first = 0; first < p->n_seqs; first += GPU_MAX_SEQS) {
        gpu_launch launch;
        if (!plan_launch(&launch, p, &grid, first)) return 0;
        const uint64_t n = launch_bytes(&launch, p->head_dim);
        if (n > n_bytes) n_bytes = n;
    }
    return n_bytes;
}

size_t tmx_gpu_attention_scratch_bytes(const tmx_gpu_attention_params *params)
{
    if (check_shape(params, NULL) != TMX_OK) return 0;
    const uint64_t portable = scratch_bytes(params, TMX_GPU_KERNEL_PORTABLE), sm90 = scratch_bytes(params, TMX_GPU_KERNEL_SM90);
    if (portable == 0 || sm90 == 0) return 0;
    if (params->kernel == TMX_GPU_KERNEL_AUTO && !has_sm90(params->head_dim)) return (size_t)portable;
    if (params->kernel == TMX_GPU_KERNEL_AUTO) return (size_t)(portable > sm90 ? portable : sm90);
    return (size_t)(params->kernel == TMX_GPU_KERNEL_SM90 ? sm90 : portable);
}

/* What a planned launch takes from the params, and its places in scratch. */
static void fill_launch(gpu_launch *launch, const tmx_gpu_attention_params *p)
{
    const double scale = p->scale != 0.0f ? (double)p->scale : 1.0 / sqrt((double)p->head_dim);
    launch->head_dim = p->head_dim;
    launch->is_f16 = p->type == TMX_TYPE_F16;
    launch->page_shift = p->page_size > 0 ? __builtin_ctz((unsigned)p->page_size) : -1;
    launch->n_pages = p->n_pages;
    launch->scale_log2 = (float)(scale * M_LOG2E);
    launch->q_pos_stride = p->q_pos_stride;
    launch->q_head_stride = p->q_head_stride;
    launch->out_pos_stride = p->out_pos_stride;
    launch->out_head_stride = p->out_head_stride;
    launch->k_pos_stride = p->k_pos_stride;
    launch->k_head_stride = p->k_head_stride;
    launch->k_page_stride = p->k_page_stride;
    launch->v_pos_stride = p->v_pos_stride;
    launch->v_head_stride = p->v_head_stride;
    launch->v_page_stride = p->v_page_stride;
    char *scratch = p->scratch;
    launch->next_task = (int32_t *)(void *)scratch;
    launch->partial_max_sum = (float *)(void *)(scratch + SCRATCH_ALIGN);
    const uint64_t n_rows = (uint64_t)launch->n_partials * (uint64_t)launch->tile_rows;
    launch->partial_o = (float *)(void *)(scratch + partials_offset(n_rows));
}

static tmx_status choose_kernel(tmx_gpu_kernel wanted, int32_t capability, int32_t head_dim, tmx_gpu_kernel *kernel, tmx_error *err)
{
    if (capability < 80) {
        return refuse(err, TMX_E_UNSUPPORTED, "gpu attention: compute capability %d.%d, the kernels need 8.0 or later",
                      capability / 10, capability % 10);
    }
    if (wanted == TMX_GPU_KERNEL_SM90 && capability != 90) {
        return refuse(err, TMX_E_UNSUPPORTED, "gpu attention: kernel: the sm90 kernel needs compute capability 9.0, this is "
                      "%d.%d", capability / 10, capability % 10);
    }
    if (wanted == TMX_GPU_KERNEL_SM90 && !has_sm90(head_dim)) {
        return refuse(err, TMX_E_UNSUPPORTED, "gpu attention: kernel: the sm90 kernel has head_dim 64 and 128, this is %d", head_dim);
    }
    *kernel = wanted;
    if (wanted == TMX_GPU_KERNEL_AUTO) {
        *kernel = capability == 90 && has_sm90(head_dim) ? TMX_GPU_KERNEL_SM90 : TMX_GPU_KERNEL_PORTABLE;
    }
    return TMX_OK;
}

tmx_status tmx_gpu_device_get(tmx_gpu_device *device, tmx_error *err)
{
    tmx_gpu_device found = { .capability = 0 };
    if (device == NULL) return refuse(err, TMX_E_ARG, "gpu device: device is NULL");
    TRY(cuda_device_get(&found.capability, found.name, sizeof found.name, err));
    TRY(choose_kernel(TMX_GPU_KERNEL_AUTO, found.capability, 128, &found.kernel, err));
    *device = found;
    return TMX_OK;
}

tmx_status tmx_gpu_attention(const tmx_gpu_attention_params *params, void *stream, tmx_error *err)
{
    const tmx_gpu_attention_params *p = params;
    TRY(check_shape(p, err));
    TRY(check_values(p, err));
    for (int32_t i = 0; i < p->n_seqs; i++) TRY(check_seq(p, i, err));
    int32_t capability;
    tmx_gpu_kernel kernel;
    TRY(cuda_device_get(&capability, NULL, 0, err));
    TRY(choose_kernel(p->kernel, capability, p->head_dim, &kernel, err));
    const uint64_t n_needed = scratch_bytes(p, kernel);
    if (n_needed == 0) return refuse(err, TMX_E_ARG, "gpu attention: n_seqs: %d sequences have too many tiles", p->n_seqs);
    if (p->scratch_bytes < n_needed) {
        return refuse(err, TMX_E_ARG, "gpu attention: scratch_bytes: %zu, expected at least %llu", p->scratch_bytes,
                      (unsigned long long)n_needed);
    }

    const gpu_grid grid = grid_of(p, kernel);
    for (int32_t first = 0; first < p->n_seqs; first += GPU_MAX_SEQS) {
        gpu_launch launch;
        (void)plan_launch(&launch, p, &grid, first);           /* counted above */
        if (launch.n_tasks == 0) continue;
        fill_launch(&launch, p);
        TRY((kernel == TMX_GPU_KERNEL_SM90 ? cuda_run_sm90 : cuda_run_portable)(&launch, stream, err));
    }
    return TMX_OK;
}

/* ---------------------------------------------------------------- key lists */

tmx_status gpu_lists_check(int32_t head_dim, tmx_error *err)
{
    int32_t capability;
    TRY(cuda_device_get(&capability, NULL, 0, err));
    if (capability == 90 && has_sm90(head_dim)) return TMX_OK;
    return refuse(err, TMX_E_UNSUPPORTED, "dynamic methods on a GPU: compute capability %d.%d, head_dim %d; they need 9.0 and a "
                  "head_dim of 64 or 128", capability / 10, capability % 10, head_dim);
}

/* Buffers of a call; needs_all: attention, not only an estimate. */
static tmx_status check_buffers(const tmx_gpu_attention_params *p, bool needs_all, tmx_error *err)
{
    const tmx_gpu_attention_seq *seq = p->seqs;
    if (needs_all) {
        TRY(check_values(p, err));
        TRY(check_seq(p, 0, err));
    } else if (seq->n_q > 0) {
        TRY(check_buffer("q", 0, seq->q, seq->n_q, p->q_pos_stride, p->n_heads, p->q_head_stride, p->head_dim, err));
        TRY(check_buffer("k", 0, seq->k, seq->q_begin + seq->n_q, p->k_pos_stride, p->n_kv_heads, p->k_head_stride, p->head_dim, err));
    }
    return gpu_lists_check(p->head_dim, err);
}

/* What attn_gpu.h asks of a call over lists. */
static tmx_status check_lists_call(const tmx_gpu_attention_params *p, const key_lists *lists, bool needs_all, tmx_error *err)
{
    TRY(check_shape(p, err));
    if (p->n_seqs != 1 || p->page_size != 0 || p->pattern.kind != TMX_PATTERN_DENSE) {
        return refuse(err, TMX_E_UNSUPPORTED, "gpu attention: key lists need one sequence, contiguous K and V and a dense pattern");
    }
    const tmx_gpu_attention_seq *seq = p->seqs;
    if (lists->bits == NULL || lists->n_heads != p->n_heads || seq->q_begin != lists->first_block * KEY_BLOCK
        || key_blocks_of(seq->n_q) != lists->n_blocks || lists->n_words < key_list_words(lists->first_block + lists->n_blocks)) {
        return refuse(err, TMX_E_ARG, "gpu attention: lists: not of rows [%d, %d) of %d heads", seq->q_begin,
                      seq->q_begin + seq->n_q, p->n_heads);
    }
    return check_buffers(p, needs_all, err);
}

/* Of a checked call, by lists or by heads. */
static tmx_status attend_listed(const tmx_gpu_attention_params *p, const key_lists *lists, const head_keys *heads, uint64_t *n_pairs, void *stream,
                                tmx_error *err)
{
    const gpu_grid grid = grid_with(p, TMX_GPU_KERNEL_SM90, 0);
    gpu_launch launch;
    if (!plan_launch(&launch, p, &grid, 0)) return refuse(err, TMX_E_ARG, "gpu attention: too many tiles");
    if (p->scratch_bytes < launch_bytes(&launch, p->head_dim)) {
        return refuse(err, TMX_E_ARG, "gpu attention: scratch_bytes: %zu, expected at least %llu", p->scratch_bytes,
                      (unsigned long long)launch_bytes(&launch, p->head_dim));
    }
    if (launch.n_tasks == 0) return TMX_OK;
    fill_launch(&launch, p);
    if (lists != NULL) launch.lists = *lists;
    launch.heads = heads;
    launch.n_pairs = n_pairs;
    return cuda_run_sm90(&launch, stream, err);
}

tmx_status gpu_attention_over_lists(const tmx_gpu_attention_params *params, const key_lists *lists, void *stream, tmx_error *err)
{
    TRY(check_lists_call(params, lists, true, err));
    return attend_listed(params, lists, NULL, NULL, stream, err);
}

/* An estimator that looks at a prompt's end takes all of it. */
static tmx_status check_whole(const tmx_gpu_attention_params *p, const char *name, tmx_error *err)
{
    const tmx_gpu_attention_seq *seq = p->seqs;
    if (seq->q_begin != 0 || seq->n_q != seq->n_prompt) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s on a GPU: rows [%d, %d) of %d, expected a whole prompt", name, seq->q_begin,
                      seq->q_begin + seq->n_q, seq->n_prompt);
    }
    if (key_blocks_of(seq->n_q) > FLEX_MAX_BLOCKS) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s on a GPU: %d tokens, at most %d", name, seq->n_q, FLEX_MAX_BLOCKS * KEY_BLOCK);
    }
    return TMX_OK;
}

/* What attn_gpu.h asks of a call over heads. */
static tmx_status check_heads_call(const tmx_gpu_attention_params *p, const head_keys *heads, bool needs_all, tmx_error *err)
{
    TRY(check_shape(p, err));
    if (p->n_seqs != 1 || p->page_size != 0 || p->pattern.kind != TMX_PATTERN_DENSE) {
        return refuse(err, TMX_E_UNSUPPORTED, "gpu attention: heads need one sequence, contiguous K and V and a dense pattern");
    }
    TRY(check_whole(p, "minference", err));
    if (heads == NULL || (uintptr_t)heads % sizeof(void *) != 0) return refuse(err, TMX_E_ARG, "gpu attention: heads: NULL or not aligned");
    return check_buffers(p, needs_all, err);
}

tmx_status gpu_attention_over_heads(const tmx_gpu_attention_params *params, const head_keys *heads, uint64_t *n_pairs, void *stream, tmx_error *err)
{
    TRY(check_heads_call(params, heads, true, err));
    return attend_listed(params, NULL, heads, n_pairs, stream, err);
}

/* ---------------------------------------------------------------- XAttention */

/* Sums of all heads' query groups at a time; more would only save launches. */
static const uint64_t MOST_SUMS_BYTES = (uint64_t)256 << 20;

/* A tile of keys has as many blocks as the stride has rows. */
static int32_t row_blocks(int32_t n_blocks) { return ceil_div_i32(n_blocks, XATTENTION_MAX_STRIDE) * XATTENTION_MAX_STRIDE; }

/* Bytes of one tile's query groups of all heads, against keys of n_blocks. */
static uint64_t tile_sums_bytes(int32_t n_heads, int32_t n_blocks)
{
    return (uint64_t)n_heads * MASS_TILE_GROUPS * (uint64_t)row_blocks(n_blocks) * sizeof(float);
}

size_t gpu_xattention_scratch_bytes(const tmx_gpu_attention_params *params, int32_t n_q, int32_t n_ctx)
{
    const uint64_t tile = tile_sums_bytes(params->n_heads, key_blocks_of(n_ctx));
    const uint64_t n_tiles = (uint64_t)n_q / (4 * MASS_TILE_GROUPS) + 1;       /* 4: the least stride */
    const uint64_t n_wanted = n_tiles * tile, n_most = MOST_SUMS_BYTES > tile ? MOST_SUMS_BYTES : tile;
    return (size_t)align_up(n_wanted < n_most ? n_wanted : n_most, SCRATCH_ALIGN);
}

tmx_status gpu_xattention(const tmx_gpu_attention_params *params, const xattention *method, const key_lists *lists, void *scratch,
                          size_t scratch_bytes, void *stream, tmx_error *err)
{
    const tmx_gpu_attention_params *p = params;
    TRY(xattention_check(method, err));
    if (method->thresholds != NULL) return refuse(err, TMX_E_UNSUPPORTED, "xattention on a GPU: thresholds by head run on the CPU only");
    TRY(check_lists_call(p, lists, false, err));
    const tmx_gpu_attention_seq *seq = p->seqs;
    const int32_t n_blocks = lists->first_block + lists->n_blocks;
    if (seq->n_q == 0) return TMX_OK;
    if (n_blocks > MASS_MAX_BLOCKS) {
        return refuse(err, TMX_E_UNSUPPORTED, "xattention on a GPU: %d tokens, at most %d", seq->q_begin + seq->n_q,
                      MASS_MAX_BLOCKS * KEY_BLOCK);
    }
    const uint64_t tile = tile_sums_bytes(p->n_heads, n_blocks), n_tiles = tile > 0 ? scratch_bytes / tile : 0;
    if (scratch == NULL || (uintptr_t)scratch % SCRATCH_ALIGN != 0 || n_tiles == 0) {
        return refuse(err, TMX_E_ARG, "xattention on a GPU: scratch: %zu bytes, expected at least %llu, aligned to %d", scratch_bytes,
                      (unsigned long long)tile, SCRATCH_ALIGN);
    }
    const uint64_t n_needed = ((uint64_t)seq->n_q - 1) / ((uint64_t)method->stride * MASS_TILE_GROUPS) + 1;
    const mass_launch launch = {
        .q = seq->q, .k = seq->k, .q_pos_stride = p->q_pos_stride, .q_head_stride = p->q_head_stride,
        .k_pos_stride = p->k_pos_stride, .k_head_stride = p->k_head_stride, .q_begin = seq->q_begin, .n_q = seq->n_q,
        .n_heads = p->n_heads, .n_kv_heads = p->n_kv_heads, .head_dim = p->head_dim, .is_f16 = p->type == TMX_TYPE_F16,
        .stride = method->stride, .threshold = method->threshold, .lists = *lists, .block_sums = scratch, .row_blocks = row_blocks(n_blocks),
        .scale_log2 = (float)(M_LOG2E / (sqrt((double)p->head_dim) * method->stride * method->norm)),
        .slab_groups = (int32_t)(n_tiles < n_needed ? n_tiles : n_needed) * MASS_TILE_GROUPS,
    };
    return cuda_run_mass(&launch, stream, err);
}

/* ---------------------------------------------------------------- FlexPrefill, and what MInference shares with it */

static const uint64_t MOST_PROBE_BYTES = (uint64_t)256 << 20;

typedef struct scratch_room {
    unsigned char *base;           /* NULL: only count */
    uint64_t n_bytes;
} scratch_room;

static void *take(scratch_room *r, uint64_t n, size_t element_bytes)
{
    unsigned char *at = r->base == NULL ? NULL : r->base + r->n_bytes;
    r->n_bytes += align_up(n * element_bytes, SCRATCH_ALIGN);
    return at;
}

static int32_t probe_parts(int32_t n) { return ceil_div_i32(key_blocks_of(n), PROBE_PART_BLOCKS); }

static void place_probe(probe_launch *probe, scratch_room *r, uint64_t n_heads, int32_t n_rows)
{
    const uint64_t nb = (uint64_t)key_blocks_of(probe->n), n_parts = (uint64_t)probe_parts(probe->n), rows = (uint64_t)n_rows;
    probe->part_rows = take(r, n_heads * n_parts * rows * 2, sizeof(float));
    probe->rows = take(r, n_heads * rows * 2, sizeof(float));
    probe->by_key = take(r, n_heads * nb * KEY_BLOCK, sizeof(float));
    probe->by_distance = take(r, n_heads * nb * KEY_BLOCK, sizeof(float));
    probe->spill = take(r, n_heads * n_parts * KEY_BLOCK, sizeof(float));
}

/* Without its places in scratch. */
static probe_launch probe_of(const tmx_gpu_attention_params *p)
{
    const tmx_gpu_attention_seq *seq = p->seqs;
    const double scale = p->scale != 0.0f ? (double)p->scale : 1.0 / sqrt((double)p->head_dim);
    return (probe_launch){
        .q = seq->q, .k = seq->k, .q_pos_stride = p->q_pos_stride, .q_head_stride = p->q_head_stride,
        .k_pos_stride = p->k_pos_stride, .k_head_stride = p->k_head_stride, .n = seq->n_q, .n_heads = p->n_heads,
        .n_kv_heads = p->n_kv_heads, .head_dim = p->head_dim, .is_f16 = p->type == TMX_TYPE_F16, .scale_log2 = (float)(scale * M_LOG2E),
    };
}

/* Places in scratch of launch->heads_at_once heads; returns their bytes. */
static uint64_t place_flex(flex_launch *launch, void *scratch)
{
    const uint64_t heads = (uint64_t)launch->heads_at_once, nb = (uint64_t)key_blocks_of(launch->probe.n), dim = (uint64_t)launch->probe.head_dim;
    scratch_room r = { .base = scratch };
    place_probe(&launch->probe, &r, heads, KEY_BLOCK);
    launch->block_mass = take(&r, heads * 2 * nb, sizeof(double));
    launch->pooled = take(&r, heads * nb, sizeof(double));
    launch->mean_k = take(&r, heads * nb * dim, sizeof(float));
    launch->mean_q = take(&r, heads * nb * dim, sizeof(float));
    launch->mean_probe = take(&r, heads * dim, sizeof(float));
    launch->map = take(&r, heads * (nb * (nb + 1) / 2), sizeof(float));
    launch->kinds = take(&r, heads, sizeof(int32_t));
    launch->budgets = take(&r, heads * 2, sizeof(int32_t));
    launch->kept = take(&r, heads * 4 * (uint64_t)key_list_words((int32_t)nb), sizeof(uint32_t));
    return r.n_bytes;
}

/* A head's share is never less than a head alone takes, so that many shares hold as many heads. */
static uint64_t flex_head_bytes(int32_t head_dim, int32_t n)
{
    flex_launch one = { .probe = { .n = n, .head_dim = head_dim }, .heads_at_once = 1 };
    return place_flex(&one, NULL);
}

size_t gpu_flexprefill_scratch_bytes(const tmx_gpu_attention_params *params, int32_t n_q)
{
    const uint64_t head = flex_head_bytes(params->head_dim, n_q), all = head * (uint64_t)params->n_heads;
    const uint64_t most = MOST_PROBE_BYTES > head ? MOST_PROBE_BYTES : head;
    return (size_t)(all < most ? all : most);
}

tmx_status gpu_flexprefill(const tmx_gpu_attention_params *params, const flexprefill *method, const key_lists *lists, void *scratch,
                           size_t scratch_bytes, void *stream, tmx_error *err)
{
    const tmx_gpu_attention_params *p = params;
    TRY(flexprefill_check(method, err));
    TRY(check_lists_call(p, lists, false, err));
    const tmx_gpu_attention_seq *seq = p->seqs;
    if (seq->n_q == 0) return TMX_OK;
    TRY(check_whole(p, "flexprefill", err));
    flex_launch launch = {
        .probe = probe_of(p), .keeps_all = method->gamma >= 1 || seq->n_q <= flexprefill_dense_tokens(method),
        .scale = p->scale != 0.0f ? (double)p->scale : 1.0 / sqrt((double)p->head_dim), .gamma = method->gamma, .tau = method->tau,
        .min_budget = method->min_budget, .lists = *lists,
    };
    if (launch.keeps_all) return cuda_run_flexprefill(&launch, stream, err);
    const uint64_t head = flex_head_bytes(p->head_dim, seq->n_q), n_heads = scratch_bytes / head;
    if (scratch == NULL || (uintptr_t)scratch % SCRATCH_ALIGN != 0 || n_heads == 0) {
        return refuse(err, TMX_E_ARG, "flexprefill on a GPU: scratch: %zu bytes, expected at least %llu, aligned to %d", scratch_bytes,
                      (unsigned long long)head, SCRATCH_ALIGN);
    }
    launch.heads_at_once = min_i32(p->n_heads, n_heads < FLEX_MAX_HEADS ? (int32_t)n_heads : FLEX_MAX_HEADS);
    (void)place_flex(&launch, scratch);
    return cuda_run_flexprefill(&launch, stream, err);
}

/* ---------------------------------------------------------------- MInference */

/* Block scores of one head at a time; more would only save launches. */
static const uint64_t MOST_MAP_BYTES = (uint64_t)64 << 20;

static uint64_t lines_head_bytes(int32_t head_dim, int32_t n)
{
    probe_launch one = { .n = n, .head_dim = head_dim };
    scratch_room r = { .base = NULL };
    place_probe(&one, &r, 1, MINFERENCE_PROBE);
    return r.n_bytes;
}

/* Places of a block-sparse head with launch->map_rows; returns their bytes. */
static uint64_t place_blocks(lines_launch *launch, void *scratch)
{
    const uint64_t nb = (uint64_t)line_blocks_of(launch->probe.n), dim = (uint64_t)launch->probe.head_dim;
    scratch_room r = { .base = scratch };
    launch->mean_q = take(&r, nb * dim, sizeof(float));
    launch->mean_k = take(&r, nb * dim, sizeof(float));
    launch->map = take(&r, (uint64_t)launch->map_rows * nb, sizeof(float));
    return r.n_bytes;
}

static uint64_t blocks_bytes(int32_t head_dim, int32_t n, int32_t map_rows)
{
    lines_launch one = { .probe = { .n = n, .head_dim = head_dim }, .map_rows = map_rows };
    return place_blocks(&one, NULL);
}

/* Rows of the map that n_bytes hold, whole tiles of them. */
static int32_t map_rows_of(int32_t n, uint64_t n_bytes)
{
    const uint64_t nb = (uint64_t)line_blocks_of(n), n_tiles = n_bytes / (nb * sizeof(float) * LINE_BLOCK), n_needed = (nb - 1) / LINE_BLOCK + 1;
    return LINE_BLOCK * max_i32(1, (int32_t)(n_tiles < n_needed ? n_tiles : n_needed));
}

static uint64_t least_lines_bytes(int32_t head_dim, int32_t n)
{
    const uint64_t head = lines_head_bytes(head_dim, n), blocks = blocks_bytes(head_dim, n, LINE_BLOCK);
    return head > blocks ? head : blocks;
}

size_t gpu_minference_scratch_bytes(const tmx_gpu_attention_params *params, int32_t n_q)
{
    if (n_q < 1) return SCRATCH_ALIGN;
    const uint64_t least = least_lines_bytes(params->head_dim, n_q), all = lines_head_bytes(params->head_dim, n_q) * (uint64_t)params->n_heads;
    const uint64_t lines = all < MOST_PROBE_BYTES ? all : MOST_PROBE_BYTES;
    const uint64_t blocks = blocks_bytes(params->head_dim, n_q, map_rows_of(n_q, MOST_MAP_BYTES)), wanted = lines > blocks ? lines : blocks;
    return (size_t)(wanted > least ? wanted : least);
}

tmx_status gpu_minference(const tmx_gpu_attention_params *params, const minference_head *chosen, head_keys *found, uint64_t *room, void *scratch,
                          size_t scratch_bytes, void *stream, tmx_error *err)
{
    const tmx_gpu_attention_params *p = params;
    char name[32];
    TRY(check_heads_call(p, found, false, err));
    const int32_t n = p->seqs->n_q;
    for (int32_t h = 0; h < p->n_heads; h++) {
        snprintf(name, sizeof name, "minference head %d", h);
        TRY(minference_head_check(&chosen[h], name, err));
    }
    if (n <= 2 * KEY_BLOCK) return refuse(err, TMX_E_ARG, "minference on a GPU: %d tokens, expected more than %d", n, 2 * KEY_BLOCK);
    if (room == NULL || (uintptr_t)room % sizeof *room != 0) return refuse(err, TMX_E_ARG, "minference on a GPU: room: NULL or not aligned");
    const uint64_t least = least_lines_bytes(p->head_dim, n);
    if (scratch == NULL || (uintptr_t)scratch % SCRATCH_ALIGN != 0 || scratch_bytes < least) {
        return refuse(err, TMX_E_ARG, "minference on a GPU: scratch: %zu bytes, expected at least %llu, aligned to %d", scratch_bytes,
                      (unsigned long long)least, SCRATCH_ALIGN);
    }
    lines_launch launch = { .probe = probe_of(p), .chosen = chosen, .found = found, .room = room,
                            .n_room_words = minference_room_bytes(n) / sizeof *room };
    const uint64_t n_heads = scratch_bytes / lines_head_bytes(p->head_dim, n);
    launch.heads_at_once = n_heads < (uint64_t)p->n_heads ? (int32_t)n_heads : p->n_heads;
    scratch_room of_probe = { .base = scratch };
    place_probe(&launch.probe, &of_probe, (uint64_t)launch.heads_at_once, MINFERENCE_PROBE);
    launch.map_rows = map_rows_of(n, scratch_bytes - blocks_bytes(p->head_dim, n, 0));
    (void)place_blocks(&launch, scratch);      /* block-sparse heads come after the others, over the same memory */
    return cuda_run_minference(&launch, stream, err);
}

tmx_status gpu_lists_add_pairs(const key_lists *lists, int32_t q_begin, int32_t q_end, uint64_t *n_pairs, void *stream, tmx_error *err)
{
    return cuda_add_pairs(lists, q_begin, q_end, n_pairs, stream, err);
}
