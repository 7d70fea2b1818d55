/* matmul.c - the door of the matrix products: checks, packing, the split into tasks, the choice of who multiplies.
 *
 * Built-in path.  A task owns a chunk of rows x a group of panels and walks k in blocks, equal ones of at most n_depth:
 *   for each k block:   [widen the chunk of x to f32]
 *       for each panel: [widen the panel to f32]   kernel(chunk, panel)
 * (widening: BF16 compute on a rung whose kernel takes f32).  The block of w is reused by every row of the chunk out
 * of L2, the chunk of x by every panel.  A kernel on matrix tiles takes all panels of the task in one call, since it holds the rows
 * and lets the panels stream.  The k blocks depend on the kernel and n_in alone, and each y[r][c] is summed by one
 * task in k order, so neither the rows around it nor the split into tasks can reach its bits. */
#include "ops/matmul.h"

#include "base/cpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "base/status.h"
#include "gguf/blocks.h"
#include "ops/matmul_kernel.h"
#include "ops/matmul_onednn.h"

#include <assert.h>

enum {
    MAX_SOURCES = 4,
    STRIP = 16,                    /* outputs packed at once: what one task expands, divides every n_panel */
    TASKS_PER_THREAD = 8,          /* so that an unlucky last task costs at most an eighth */
    MAX_DEPTH = 512, MAX_PANEL = 64,   /* of the kernels that may need widened operands */
};

struct matmul_weight {
    int32_t n_out, n_in;
    const matmul_kernel *kernel;
    void *packed;                  /* [n_panels][n_k][n_panel] f32, or bf16 pairs; n_k = n_in aligned; NULL with oneDNN */
    bool is_bf16;                  /* what `packed` and x hold */
    matmul_onednn *onednn;         /* NULL = built-in */
};

static int32_t round_up(int32_t n, int32_t to) { return (n + to - 1) / to * to; }
static int32_t divide_up(int32_t n, int32_t by) { return (n + by - 1) / by; }

void matmul_stack_row(const matmul_stack *stack, int32_t out, float *row)
{
    const matmul_source *source = stack->sources;
    while (out >= source->n_out) out -= (source++)->n_out;
    const block_format *format = block_format_find(source->type);
    const size_t n_in = (size_t)source->n_in;
    format->to_f32((const char *)source->data + (size_t)out * block_row_bytes(format, n_in), row, n_in);
}

static size_t panel_items(const matmul_weight *weight)
{
    return align_up((size_t)weight->n_in, (size_t)weight->kernel->n_k_align) * (size_t)weight->kernel->n_panel;
}

/* ---------------------------------------------------------------- create */

typedef struct pack_job {
    const matmul_stack *stack;
    matmul_weight *weight;
    float *rows;                   /* [n_threads][STRIP][n_in] */
} pack_job;

static void pack_strip(void *ctx, int32_t task, int32_t thread)
{
    const pack_job *job = ctx;
    matmul_weight *weight = job->weight;
    const size_t n_in = (size_t)weight->n_in, n_panel = (size_t)weight->kernel->n_panel;
    float *rows = job->rows + (size_t)thread * STRIP * n_in;
    const int32_t out_begin = task * STRIP, n_outs = min_i32(STRIP, weight->n_out - out_begin);
    for (int32_t c = 0; c < n_outs; c++) matmul_stack_row(job->stack, out_begin + c, rows + (size_t)c * n_in);

    const size_t panel = (size_t)out_begin / n_panel, column = (size_t)out_begin % n_panel;
    const size_t panel_begin = panel * panel_items(weight);
    if (weight->is_bf16) {
        tmx_bf16 *packed = (tmx_bf16 *)weight->packed + panel_begin + 2 * column;
        for (size_t k = 0; k < n_in; k++) {
            tmx_bf16 *pairs = packed + k / 2 * 2 * n_panel + k % 2;
            for (int32_t c = 0; c < n_outs; c++) pairs[2 * c] = bf16_from_f32(rows[(size_t)c * n_in + k]);
        }
    } else {
        float *packed = (float *)weight->packed + panel_begin + column;
        for (size_t k = 0; k < n_in; k++, packed += n_panel) {
            for (int32_t c = 0; c < n_outs; c++) packed[c] = rows[(size_t)c * n_in + k];
        }
    }
}

/* A strip of the stack's rows is a strip of k here: each row is cut into the panels. */
static void pack_transposed_strip(void *ctx, int32_t task, int32_t thread)
{
    const pack_job *job = ctx;
    matmul_weight *weight = job->weight;
    const size_t n_row = (size_t)job->stack->n_in, n_panel = (size_t)weight->kernel->n_panel;
    float *row = job->rows + (size_t)thread * STRIP * n_row;
    const int32_t k_end = min_i32((task + 1) * STRIP, weight->n_in);
    for (int32_t k = task * STRIP; k < k_end; k++) {
        matmul_stack_row(job->stack, k, row);
        for (size_t out = 0; out < n_row; out++) {
            const size_t panel_begin = out / n_panel * panel_items(weight), column = out % n_panel, at = (size_t)k;
            if (weight->is_bf16) {
                ((tmx_bf16 *)weight->packed)[panel_begin + (at / 2 * n_panel + column) * 2 + at % 2] = bf16_from_f32(row[out]);
            } else {
                ((float *)weight->packed)[panel_begin + at * n_panel + column] = row[out];
            }
        }
    }
}

static tmx_status pack(matmul_weight *weight, const matmul_stack *stack, bool is_transposed, tmx_pool *pool, tmx_error *err)
{
    const size_t n_outs = align_up((size_t)weight->n_out, MATMUL_OUT_ALIGN);
    const size_t n_packed = n_outs / (size_t)weight->kernel->n_panel * panel_items(weight);
    const size_t n_strip_rows = (size_t)pool_n_threads(pool) * STRIP;
    weight->packed = mem_alloc(n_packed, weight->is_bf16 ? sizeof(tmx_bf16) : sizeof(float));
    pack_job job = { .stack = stack, .weight = weight };
    job.rows = mem_alloc(n_strip_rows * (size_t)stack->n_in, sizeof(float));
    if (weight->packed == NULL || job.rows == NULL) {
        mem_free(job.rows);
        return refuse(err, TMX_E_MEMORY, "packed weight [%d][%d]: out of memory", weight->n_out, weight->n_in);
    }
    pool_run(pool, divide_up(stack->n_out, STRIP), is_transposed ? pack_transposed_strip : pack_strip, &job);
    mem_free(job.rows);
    return TMX_OK;
}

static tmx_status check_sources(matmul_stack *stack, const matmul_source *sources, int32_t n_sources, tmx_compute compute,
                                tmx_error *err)
{
    *stack = (matmul_stack){ .n_sources = 0 };
    if (compute != TMX_COMPUTE_F32 && compute != TMX_COMPUTE_BF16) {
        return refuse(err, TMX_E_ARG, "matmul: compute type %d, expected f32 or bf16", (int)compute);
    }
    if (n_sources < 1 || n_sources > MAX_SOURCES) {
        return refuse(err, TMX_E_ARG, "matmul: %d sources, expected 1..%d", n_sources, MAX_SOURCES);
    }
    int64_t n_out = 0;
    for (int32_t i = 0; i < n_sources; i++) {
        const matmul_source *s = &sources[i];
        if (s->data == NULL || s->n_out < 1 || s->n_in < 1 || s->n_in != sources[0].n_in) {
            return refuse(err, TMX_E_ARG, "matmul: source %d is [%d][%d], expected [>= 1][%d]", i, s->n_out, s->n_in,
                          sources[0].n_in);
        }
        const block_format *format = block_format_find(s->type);
        if (format == NULL || format->to_f32 == NULL) {
            return refuse(err, TMX_E_UNSUPPORTED, "matmul: source %d has block type %u (%s), which cannot be expanded",
                          i, s->type, format == NULL ? "unknown" : format->name);
        }
        if (s->n_in % format->n_elements != 0) {
            return refuse(err, TMX_E_ARG, "matmul: source %d has rows of %d elements, expected a multiple of %d (%s)",
                          i, s->n_in, format->n_elements, format->name);
        }
        stack->sources[i] = *s;
        n_out += s->n_out;
    }
    if (n_out > INT32_MAX - MATMUL_OUT_ALIGN) return refuse(err, TMX_E_ARG, "matmul: %lld outputs", (long long)n_out);
    stack->n_sources = n_sources;
    stack->n_out = (int32_t)n_out;
    stack->n_in = sources[0].n_in;
    return TMX_OK;
}

static const matmul_kernel *kernel_for(tmx_compute compute, tmx_isa isa)
{
    switch (cpu_isa_resolve(isa)) {
    case TMX_ISA_AMX: return compute == TMX_COMPUTE_BF16 ? &matmul_kernel_bf16_amx : &matmul_kernel_f32_avx512;
    case TMX_ISA_AVX512_BF16:
        return compute == TMX_COMPUTE_BF16 ? &matmul_kernel_bf16_avx512bf16 : &matmul_kernel_f32_avx512;
    case TMX_ISA_AVX512: return &matmul_kernel_f32_avx512;
    case TMX_ISA_AVX2: return &matmul_kernel_f32_avx2;
    default: return &matmul_kernel_f32_scalar;
    }
}

/* oneDNN multiplies transposed bf16 weights (the probe's backward pass) on the rung that has bf16 products of lanes; everywhere else the
 * built-in kernels are as fast, faster or the only ones, and the reference mode depends on no library. */
static bool auto_is_onednn(const matmul_kernel *kernel, bool is_transposed)
{
    return is_transposed && kernel == &matmul_kernel_bf16_avx512bf16 && matmul_onednn_is_built();
}

static tmx_status create(matmul_weight **out, const matmul_source *sources, int32_t n_sources, bool is_transposed,
                         tmx_compute compute, tmx_isa isa, matmul_provider provider, tmx_pool *pool, tmx_error *err)
{
    matmul_stack stack;
    TRY(check_sources(&stack, sources, n_sources, compute, err));
    if (stack.n_in > INT32_MAX - MATMUL_OUT_ALIGN) return refuse(err, TMX_E_ARG, "matmul: rows of %d elements", stack.n_in);
    const matmul_kernel *kernel = kernel_for(compute, isa);
    if (provider == MATMUL_ONEDNN && !kernel->takes_bf16) {
        return refuse(err, TMX_E_UNSUPPORTED, "matmul: oneDNN is used for bf16 on %s only, asked for %s on %s",
                      tmx_isa_name(TMX_ISA_AVX512_BF16), compute == TMX_COMPUTE_BF16 ? "bf16" : "f32",
                      tmx_isa_name(isa));
    }
    matmul_weight *weight = mem_alloc(1, sizeof *weight);
    if (weight == NULL) return refuse(err, TMX_E_MEMORY, "matmul weight: out of memory");
    *weight = (matmul_weight){
        .n_out = is_transposed ? stack.n_in : stack.n_out, .n_in = is_transposed ? stack.n_out : stack.n_in,
        .kernel = kernel, .is_bf16 = compute == TMX_COMPUTE_BF16,
    };
    tmx_status status = TMX_E_UNSUPPORTED;
    if (provider == MATMUL_ONEDNN || (provider == MATMUL_AUTO && auto_is_onednn(kernel, is_transposed))) {
        status = matmul_onednn_create(&weight->onednn, &stack, is_transposed, pool, err);
    }
    if (status == TMX_E_UNSUPPORTED && provider != MATMUL_ONEDNN) status = pack(weight, &stack, is_transposed, pool, err);
    if (status != TMX_OK) {
        matmul_weight_free(weight);
        return status;
    }
    *out = weight;
    return TMX_OK;
}

tmx_status matmul_weight_create(matmul_weight **weight, const matmul_source *sources, int32_t n_sources,
                                tmx_compute compute, tmx_isa isa, matmul_provider provider, tmx_pool *pool,
                                tmx_error *err)
{
    return create(weight, sources, n_sources, false, compute, isa, provider, pool, err);
}

tmx_status matmul_weight_create_transposed(matmul_weight **weight, const matmul_source *sources, int32_t n_sources,
                                           tmx_compute compute, tmx_isa isa, matmul_provider provider, tmx_pool *pool,
                                           tmx_error *err)
{
    return create(weight, sources, n_sources, true, compute, isa, provider, pool, err);
}

void matmul_weight_free(matmul_weight *weight)
{
    if (weight == NULL) return;
    matmul_onednn_free(weight->onednn);
    mem_free(weight->packed);
    mem_free(weight);
}

size_t matmul_weight_bytes(int32_t n_out, int32_t n_in, tmx_compute compute)
{
    const size_t size = compute == TMX_COMPUTE_BF16 ? sizeof(tmx_bf16) : sizeof(float);
    return align_up((size_t)n_out, MATMUL_OUT_ALIGN) * align_up((size_t)n_in, 2) * size;
}

matmul_provider matmul_provider_of(const matmul_weight *weight)
{
    return weight->onednn != NULL ? MATMUL_ONEDNN : MATMUL_BUILTIN;
}

/* ---------------------------------------------------------------- run */

enum { WIDE_X = MATMUL_CHUNK_ROWS * MAX_DEPTH, WIDE_W = MAX_DEPTH * MAX_PANEL };     /* floats of scratch */
static_assert(WIDE_X * sizeof(float) >= MATMUL_BLOCK_SCRATCH, "a kernel that is not widened for has their place");

static size_t thread_scratch_bytes(int32_t n_out, int32_t n_in)
{
    const size_t builtin = (WIDE_X + WIDE_W) * sizeof(float), onednn = matmul_onednn_scratch_bytes(n_out, n_in);
    return align_up(builtin > onednn ? builtin : onednn, MEM_ALIGN);
}

size_t matmul_scratch_bytes(int32_t n_out, int32_t n_in, int32_t n_threads)
{
    return thread_scratch_bytes(n_out, n_in) * (size_t)n_threads;
}

typedef struct run_job {
    const matmul_weight *weight;
    const matmul_call *call;
    int32_t n_chunks, chunk_rows;
    int32_t n_panels, group_panels, depth;
} run_job;

static void widen_rows(const tmx_bf16 *x, size_t x_stride, int32_t n_rows, int32_t n_k, float *wide)
{
    for (int32_t r = 0; r < n_rows; r++, x += x_stride, wide += n_k) {
        for (int32_t k = 0; k < n_k; k++) wide[k] = bf16_to_f32(x[k]);
    }
}

static void widen_panel(const tmx_bf16 *pairs, int32_t n_k, int32_t n_panel, float *wide)
{
    for (int32_t k = 0; k < n_k; k += 2, wide += 2 * n_panel) {
        for (int32_t c = 0; c < n_panel; c++, pairs += 2) {
            wide[c] = bf16_to_f32(pairs[0]);
            wide[n_panel + c] = bf16_to_f32(pairs[1]);
        }
    }
}

static void run_block(void *ctx, int32_t task, int32_t thread)
{
    const run_job *job = ctx;
    const matmul_weight *weight = job->weight;
    const matmul_call *call = job->call;
    const matmul_kernel *kernel = weight->kernel;
    const bool is_widened = weight->is_bf16 && !kernel->takes_bf16;
    const size_t item = weight->is_bf16 ? sizeof(tmx_bf16) : sizeof(float);
    float *wide_x = (float *)(call->scratch + (size_t)thread * call->scratch_bytes), *wide_w = wide_x + WIDE_X;

    const int32_t row_begin = task % job->n_chunks * job->chunk_rows;
    const int32_t panel_begin = task / job->n_chunks * job->group_panels;
    const int32_t panel_end = min_i32(panel_begin + job->group_panels, job->n_panels);
    const int32_t n_at_once = kernel->group_bytes > 0 ? job->group_panels : 1;
    const char *x = (const char *)call->x + (size_t)row_begin * call->x_stride * item;
    matmul_block block = {
        .n_rows = min_i32(job->chunk_rows, call->n_rows - row_begin), .y_stride = call->y_stride,
        .panel_items = panel_items(weight), .scratch = wide_x,
    };
    for (int32_t k_begin = 0; k_begin < weight->n_in; k_begin += job->depth) {
        block.n_k = min_i32(job->depth, weight->n_in - k_begin);
        block.is_added = call->is_added || k_begin > 0;
        block.x = x + (size_t)k_begin * item;
        block.x_stride = call->x_stride;
        if (is_widened) {
            widen_rows(block.x, call->x_stride, block.n_rows, block.n_k, wide_x);
            block.x = wide_x;
            block.x_stride = (size_t)block.n_k;
        }
        for (int32_t panel = panel_begin; panel < panel_end; panel += n_at_once) {
            const int32_t out = panel * kernel->n_panel;
            const size_t w_begin = (size_t)panel * block.panel_items + (size_t)k_begin * (size_t)kernel->n_panel;
            block.w = (const char *)weight->packed + w_begin * item;
            if (is_widened) {
                widen_panel(block.w, block.n_k, kernel->n_panel, wide_w);
                block.w = wide_w;
            }
            block.n_cols = min_i32(n_at_once * kernel->n_panel, weight->n_out - out);
            block.y = call->y + (size_t)row_begin * call->y_stride + (size_t)out;
            kernel->run(&block);
        }
    }
}

void matmul_run(const matmul_weight *weight, const void *x, size_t x_stride, int32_t n_rows,
                float *y, size_t y_stride, bool is_added, void *scratch, tmx_pool *pool)
{
    assert(n_rows >= 0 && x_stride >= (size_t)weight->n_in && y_stride >= (size_t)weight->n_out);
    assert((uintptr_t)scratch % MEM_ALIGN == 0);
    if (n_rows == 0) return;
    const matmul_call call = {
        .x = x, .y = y, .x_stride = x_stride, .y_stride = y_stride, .n_rows = n_rows, .is_added = is_added,
        .scratch = scratch, .scratch_bytes = thread_scratch_bytes(weight->n_out, weight->n_in),
    };
    if (weight->onednn != NULL) {
        matmul_onednn_run(weight->onednn, &call, pool);
        return;
    }
    const matmul_kernel *kernel = weight->kernel;
    run_job job = { .weight = weight, .call = &call, .n_panels = divide_up(weight->n_out, kernel->n_panel) };
    job.chunk_rows = round_up(divide_up(n_rows, divide_up(n_rows, kernel->n_chunk)), kernel->n_tile);
    job.n_chunks = divide_up(n_rows, job.chunk_rows);
    job.depth = round_up(divide_up(weight->n_in, divide_up(weight->n_in, kernel->n_depth)), MATMUL_K_STEP);
    const int32_t n_wanted = divide_up(TASKS_PER_THREAD * pool_n_threads(pool), job.n_chunks);
    job.group_panels = max_i32(1, job.n_panels / n_wanted);
    if (kernel->group_bytes > 0) {
        const size_t most = kernel->group_bytes / (panel_items(weight) * sizeof(tmx_bf16));
        if ((size_t)job.group_panels > most) job.group_panels = max_i32(1, (int32_t)most);
    }
    pool_run(pool, job.n_chunks * divide_up(job.n_panels, job.group_panels), run_block, &job);
}
