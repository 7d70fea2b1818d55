/* matmul_onednn.c - bf16 rows x bf16 weights -> f32 through oneDNN 2.x; the only file that sees the library.
 *
 * oneDNN chooses its blocking by shape.  It is therefore only ever shown one shape a weight: a panel of PANEL_ROWS rows
 * (the last one zero-padded in scratch) times a block of outputs, so a row's bits cannot depend on how many rows there
 * are.  A task is one panel x one block; its sums land in scratch and are copied or added to y, which frees the
 * primitive from y's stride and from the padded rows.
 *
 * The library threads through libgomp.  Our tasks already run one a core, so each task lowers its own thread's OpenMP
 * width to 1 around the calls into the library, and puts it back: the caller's OpenMP code is not ours to change. */
#include "ops/matmul_onednn.h"

#include "base/status.h"

#ifndef TMX_HAS_ONEDNN

bool matmul_onednn_is_built(void) { return false; }

tmx_status matmul_onednn_create(matmul_onednn **onednn, const matmul_stack *stack, bool is_transposed, tmx_pool *pool,
                                tmx_error *err)
{
    (void)onednn, (void)stack, (void)is_transposed, (void)pool;
    return refuse(err, TMX_E_UNSUPPORTED, "oneDNN: not part of this build");
}

void matmul_onednn_free(matmul_onednn *onednn) { (void)onednn; }

size_t matmul_onednn_scratch_bytes(int32_t n_out, int32_t n_in)
{
    (void)n_out, (void)n_in;
    return 0;
}

void matmul_onednn_run(const matmul_onednn *onednn, const matmul_call *call, tmx_pool *pool)
{
    (void)onednn, (void)call, (void)pool;
}

#else

#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"

#include <math.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdatomic.h>

/* Of libgomp, which libdnnl is linked to; <omp.h> belongs to the compiler, which may bring another runtime. */
void omp_set_num_threads(int n);
int omp_get_max_threads(void);

enum {
    PANEL_ROWS = 64,
    BLOCK_OUTS = 1024,             /* most outputs of a block */
    LIBRARY_SCRATCH_BYTES = 1 << 20,   /* a primitive that wants more is not used */
    N_SHAPES = 2,                  /* full blocks and the last one */
};

typedef struct block_shape {
    dnnl_primitive_t product;
    dnnl_memory_desc_t x, w, y, scratch;
} block_shape;

struct matmul_onednn {
    dnnl_engine_t engine;
    int32_t n_out, n_in, n_blocks, block_outs;
    block_shape shapes[N_SHAPES];
    dnnl_memory_t *weights;        /* [n_blocks] */
    char *packed;                  /* [n_blocks][block_bytes] */
    size_t block_bytes;
};

static int32_t block_outs_of(int32_t n_out)
{
    const int32_t n_blocks = (n_out + BLOCK_OUTS - 1) / BLOCK_OUTS;
    return (int32_t)align_up((size_t)((n_out + n_blocks - 1) / n_blocks), MATMUL_OUT_ALIGN);
}

static int32_t outs_of_block(const matmul_onednn *o, int32_t block)
{
    const int32_t left = o->n_out - block * o->block_outs;
    return left < o->block_outs ? left : o->block_outs;
}

static const block_shape *shape_of_block(const matmul_onednn *o, int32_t block)
{
    return &o->shapes[outs_of_block(o, block) == o->block_outs ? 0 : 1];
}

bool matmul_onednn_is_built(void) { return true; }

void matmul_onednn_free(matmul_onednn *o)
{
    if (o == NULL) return;
    for (int32_t i = 0; o->weights != NULL && i < o->n_blocks; i++) {
        if (o->weights[i] != NULL) dnnl_memory_destroy(o->weights[i]);
    }
    for (int i = 0; i < N_SHAPES; i++) {
        if (o->shapes[i].product != NULL) dnnl_primitive_destroy(o->shapes[i].product);
    }
    if (o->engine != NULL) dnnl_engine_destroy(o->engine);
    mem_free(o->weights);
    mem_free(o->packed);
    mem_free(o);
}

/* The product of PANEL_ROWS rows with n_outs outputs; weights in whatever order the library likes best. */
static dnnl_status_t shape_create(block_shape *shape, dnnl_engine_t engine, int32_t n_outs, int32_t n_in)
{
    const dnnl_dims_t x_dims = { PANEL_ROWS, n_in }, w_dims = { n_outs, n_in }, y_dims = { PANEL_ROWS, n_outs };
    dnnl_memory_desc_t w_any;
    dnnl_inner_product_desc_t product;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t found = NULL;
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&shape->x, 2, x_dims, dnnl_bf16, dnnl_ab);
    if (status == dnnl_success) {
        status = dnnl_memory_desc_init_by_tag(&w_any, 2, w_dims, dnnl_bf16, dnnl_format_tag_any);
    }
    if (status == dnnl_success) status = dnnl_memory_desc_init_by_tag(&shape->y, 2, y_dims, dnnl_f32, dnnl_ab);
    if (status == dnnl_success) {
        status = dnnl_inner_product_forward_desc_init(&product, dnnl_forward_inference, &shape->x, &w_any, NULL,
                                                      &shape->y);
    }
    if (status == dnnl_success) status = dnnl_primitive_attr_create(&attr);
    if (status == dnnl_success) status = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (status == dnnl_success) status = dnnl_primitive_desc_create(&found, &product, attr, engine, NULL);
    if (status == dnnl_success) {
        shape->w = *dnnl_primitive_desc_query_md(found, dnnl_query_weights_md, 0);
        shape->scratch = *dnnl_primitive_desc_query_md(found, dnnl_query_scratchpad_md, 0);
        if (dnnl_memory_desc_get_size(&shape->scratch) > LIBRARY_SCRATCH_BYTES) status = dnnl_unimplemented;
    }
    if (status == dnnl_success) status = dnnl_primitive_create(&shape->product, found);
    if (found != NULL) dnnl_primitive_desc_destroy(found);
    if (attr != NULL) dnnl_primitive_attr_destroy(attr);
    return status;
}

/* One call into the library on memory of the calling thread. */
static dnnl_status_t execute(dnnl_engine_t engine, dnnl_primitive_t primitive, int32_t n_args, dnnl_exec_arg_t *args)
{
    dnnl_stream_t stream = NULL;
    dnnl_status_t status = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    if (status == dnnl_success) status = dnnl_primitive_execute(primitive, stream, n_args, args);
    if (status == dnnl_success) status = dnnl_stream_wait(stream);
    if (stream != NULL) dnnl_stream_destroy(stream);
    return status;
}

/* ---------------------------------------------------------------- packing */

typedef struct pack_job {
    matmul_onednn *onednn;
    const matmul_stack *stack;
    bool is_transposed;            /* the weight is the stack's transpose */
    char *staging;                 /* a thread's share: a block of bf16 weights, then one f32 row of the stack */
    size_t staging_bytes;
    atomic_int status;             /* the first dnnl_status_t that is not success */
} pack_job;

static dnnl_status_t reorder(dnnl_engine_t engine, const dnnl_memory_desc_t *plain, void *rows,
                             const block_shape *shape, dnnl_memory_t packed)
{
    dnnl_primitive_desc_t found = NULL;
    dnnl_primitive_t copy = NULL;
    dnnl_memory_t source = NULL;
    dnnl_status_t status = dnnl_reorder_primitive_desc_create(&found, plain, engine, &shape->w, engine, NULL);
    if (status == dnnl_success) status = dnnl_primitive_create(&copy, found);
    if (status == dnnl_success) status = dnnl_memory_create(&source, plain, engine, rows);
    if (status == dnnl_success) {
        dnnl_exec_arg_t args[] = { { DNNL_ARG_FROM, source }, { DNNL_ARG_TO, packed } };
        status = execute(engine, copy, 2, args);
    }
    if (source != NULL) dnnl_memory_destroy(source);
    if (copy != NULL) dnnl_primitive_destroy(copy);
    if (found != NULL) dnnl_primitive_desc_destroy(found);
    return status;
}

/* The block's weights as they come out of the stack's rows: [n_outs][n_in], or transposed [n_in][n_outs]. */
static void expand_block(const pack_job *job, int32_t out_begin, int32_t n_outs, tmx_bf16 *rows, float *wide)
{
    const int32_t n_rows = job->is_transposed ? job->stack->n_out : n_outs;
    const int32_t width = job->is_transposed ? n_outs : job->stack->n_in;
    const float *from = job->is_transposed ? wide + out_begin : wide;
    for (int32_t r = 0; r < n_rows; r++, rows += width) {
        matmul_stack_row(job->stack, job->is_transposed ? r : out_begin + r, wide);
        for (int32_t c = 0; c < width; c++) rows[c] = bf16_from_f32(from[c]);
    }
}

static void pack_block(void *ctx, int32_t block, int32_t thread)
{
    pack_job *job = ctx;
    matmul_onednn *o = job->onednn;
    const int32_t n_outs = outs_of_block(o, block);
    const size_t n_in = (size_t)o->n_in;
    tmx_bf16 *rows = (tmx_bf16 *)(job->staging + (size_t)thread * job->staging_bytes);
    float *wide = (float *)((char *)rows + align_up((size_t)o->block_outs * n_in * sizeof *rows, MEM_ALIGN));
    expand_block(job, block * o->block_outs, n_outs, rows, wide);

    const block_shape *shape = shape_of_block(o, block);
    const dnnl_dims_t dims = { n_outs, o->n_in };
    const int n_outer_threads = omp_get_max_threads();
    omp_set_num_threads(1);
    dnnl_memory_desc_t plain;
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&plain, 2, dims, dnnl_bf16, job->is_transposed ? dnnl_ba : dnnl_ab);
    if (status == dnnl_success) {
        char *packed = o->packed + (size_t)block * o->block_bytes;
        status = dnnl_memory_create(&o->weights[block], &shape->w, o->engine, packed);
    }
    if (status == dnnl_success) status = reorder(o->engine, &plain, rows, shape, o->weights[block]);
    omp_set_num_threads(n_outer_threads);
    int expected = dnnl_success;
    if (status != dnnl_success) atomic_compare_exchange_strong(&job->status, &expected, (int)status);
}

static tmx_status answer(dnnl_status_t status, const matmul_onednn *o, tmx_error *err)
{
    if (status == dnnl_success) return TMX_OK;
    if (status == dnnl_unimplemented) {
        return refuse(err, TMX_E_UNSUPPORTED, "oneDNN: no bf16 product [%d][%d] on this CPU", o->n_out, o->n_in);
    }
    return refuse(err, TMX_E_MEMORY, "oneDNN: weight [%d][%d]: library status %d", o->n_out, o->n_in, (int)status);
}

static dnnl_status_t shapes_create(matmul_onednn *o)
{
    dnnl_status_t status = dnnl_engine_create(&o->engine, dnnl_cpu, 0);
    if (status == dnnl_success) status = shape_create(&o->shapes[0], o->engine, outs_of_block(o, 0), o->n_in);
    const int32_t n_last = outs_of_block(o, o->n_blocks - 1);
    if (status == dnnl_success && n_last != o->block_outs) {
        status = shape_create(&o->shapes[1], o->engine, n_last, o->n_in);
    }
    return status;
}

static tmx_status pack(matmul_onednn *o, const matmul_stack *stack, bool is_transposed, tmx_pool *pool, tmx_error *err)
{
    o->block_bytes = align_up(dnnl_memory_desc_get_size(&o->shapes[0].w), MEM_ALIGN);
    o->packed = mem_alloc((size_t)o->n_blocks, o->block_bytes);
    o->weights = mem_alloc((size_t)o->n_blocks, sizeof(dnnl_memory_t));
    pack_job job = { .onednn = o, .stack = stack, .is_transposed = is_transposed };
    job.staging_bytes = align_up((size_t)o->block_outs * (size_t)o->n_in * sizeof(tmx_bf16), MEM_ALIGN)
                      + align_up((size_t)stack->n_in * sizeof(float), MEM_ALIGN);
    job.staging = mem_alloc((size_t)pool_n_threads(pool), job.staging_bytes);
    if (o->packed == NULL || o->weights == NULL || job.staging == NULL) {
        mem_free(job.staging);
        return refuse(err, TMX_E_MEMORY, "packed weight [%d][%d]: out of memory", o->n_out, o->n_in);
    }
    pool_run(pool, o->n_blocks, pack_block, &job);
    mem_free(job.staging);
    return answer((dnnl_status_t)atomic_load(&job.status), o, err);
}

tmx_status matmul_onednn_create(matmul_onednn **out, const matmul_stack *stack, bool is_transposed, tmx_pool *pool,
                                tmx_error *err)
{
    matmul_onednn *o = mem_alloc(1, sizeof *o);
    if (o == NULL) return refuse(err, TMX_E_MEMORY, "oneDNN weight: out of memory");
    o->n_out = is_transposed ? stack->n_in : stack->n_out;
    o->n_in = is_transposed ? stack->n_out : stack->n_in;
    o->block_outs = block_outs_of(o->n_out);
    o->n_blocks = (o->n_out + o->block_outs - 1) / o->block_outs;
    const int n_outer_threads = omp_get_max_threads();
    omp_set_num_threads(1);                      /* a primitive is built for the width it will run with */
    const dnnl_status_t created = shapes_create(o);
    omp_set_num_threads(n_outer_threads);
    tmx_status status = answer(created, o, err);
    if (status == TMX_OK) status = pack(o, stack, is_transposed, pool, err);
    if (status != TMX_OK) {
        matmul_onednn_free(o);
        return status;
    }
    *out = o;
    return TMX_OK;
}

/* ---------------------------------------------------------------- run */

typedef struct thread_scratch {
    float *y;                      /* [PANEL_ROWS][block_outs] */
    tmx_bf16 *x;                   /* [PANEL_ROWS][n_in] */
    void *library;
} thread_scratch;

static size_t y_bytes(int32_t n_out) { return (size_t)PANEL_ROWS * (size_t)block_outs_of(n_out) * sizeof(float); }
static size_t x_bytes(int32_t n_in) { return (size_t)PANEL_ROWS * (size_t)n_in * sizeof(tmx_bf16); }

/* The widest block any smaller n_out is cut into may be wider than that of n_out itself, so count the widest. */
size_t matmul_onednn_scratch_bytes(int32_t n_out, int32_t n_in)
{
    return y_bytes(n_out < BLOCK_OUTS ? n_out : BLOCK_OUTS) + x_bytes(n_in) + LIBRARY_SCRATCH_BYTES;
}

typedef struct run_job {
    const matmul_onednn *onednn;
    const matmul_call *call;
} run_job;

static dnnl_status_t multiply(const matmul_onednn *o, int32_t block, const tmx_bf16 *x, const thread_scratch *scratch)
{
    const block_shape *shape = shape_of_block(o, block);
    dnnl_memory_t x_memory = NULL, y_memory = NULL, library_memory = NULL;
    dnnl_status_t status = dnnl_memory_create(&x_memory, &shape->x, o->engine, (void *)(uintptr_t)x);
    if (status == dnnl_success) status = dnnl_memory_create(&y_memory, &shape->y, o->engine, scratch->y);
    if (status == dnnl_success) {
        status = dnnl_memory_create(&library_memory, &shape->scratch, o->engine, scratch->library);
    }
    if (status == dnnl_success) {
        dnnl_exec_arg_t args[] = {
            { DNNL_ARG_SRC, x_memory }, { DNNL_ARG_WEIGHTS, o->weights[block] }, { DNNL_ARG_DST, y_memory },
            { DNNL_ARG_SCRATCHPAD, library_memory },
        };
        status = execute(o->engine, shape->product, 4, args);
    }
    if (x_memory != NULL) dnnl_memory_destroy(x_memory);
    if (y_memory != NULL) dnnl_memory_destroy(y_memory);
    if (library_memory != NULL) dnnl_memory_destroy(library_memory);
    return status;
}

static void run_panel(void *ctx, int32_t task, int32_t thread)
{
    const run_job *job = ctx;
    const matmul_onednn *o = job->onednn;
    const matmul_call *call = job->call;
    const int32_t block = task % o->n_blocks, row_begin = task / o->n_blocks * PANEL_ROWS;
    const int32_t n_outs = outs_of_block(o, block), n_left = call->n_rows - row_begin;
    const int32_t n_rows = n_left < PANEL_ROWS ? n_left : PANEL_ROWS;
    const size_t n_in = (size_t)o->n_in;
    char *base = call->scratch + (size_t)thread * call->scratch_bytes;
    const thread_scratch scratch = {
        .y = (float *)base, .library = base + y_bytes(o->block_outs),
        .x = (tmx_bf16 *)(base + y_bytes(o->block_outs) + LIBRARY_SCRATCH_BYTES),
    };

    const tmx_bf16 *x = (const tmx_bf16 *)call->x + (size_t)row_begin * call->x_stride;
    if (n_rows < PANEL_ROWS || call->x_stride != n_in) {
        for (int32_t r = 0; r < n_rows; r++) {
            memcpy(scratch.x + (size_t)r * n_in, x + (size_t)r * call->x_stride, n_in * sizeof *x);
        }
        memset(scratch.x + (size_t)n_rows * n_in, 0, (size_t)(PANEL_ROWS - n_rows) * n_in * sizeof *x);
        x = scratch.x;
    }
    const int n_outer_threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const dnnl_status_t status = multiply(o, block, x, &scratch);
    omp_set_num_threads(n_outer_threads);

    for (int32_t r = 0; r < n_rows; r++) {
        const float *sum = scratch.y + (size_t)r * (size_t)n_outs;
        float *y = call->y + (size_t)(row_begin + r) * call->y_stride + (size_t)block * (size_t)o->block_outs;
        if (status != dnnl_success) {            /* out of memory inside the library: let the session see it */
            for (int32_t c = 0; c < n_outs; c++) y[c] = NAN;
        } else if (call->is_added) {
            for (int32_t c = 0; c < n_outs; c++) y[c] += sum[c];
        } else {
            memcpy(y, sum, (size_t)n_outs * sizeof *y);
        }
    }
}

void matmul_onednn_run(const matmul_onednn *o, const matmul_call *call, tmx_pool *pool)
{
    run_job job = { .onednn = o, .call = call };
    pool_run(pool, (call->n_rows + PANEL_ROWS - 1) / PANEL_ROWS * o->n_blocks, run_panel, &job);
}

#endif
