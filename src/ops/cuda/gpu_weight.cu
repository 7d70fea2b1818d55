/* gpu_weight.cu - weights into device memory: expanded from the file's blocks, or made up. */
#include "ops/cuda/gpu_device.cuh"

#include <string.h>

/* ---------------------------------------------------------------- fill */

enum { FILL_ROWS = 8 };            /* what a task of the pool expands at once */

struct fill_job {
    const matmul_source *source;
    const block_format *format;
    const row_ops *ops;
    int32_t first_row, n_rows;     /* of the source, in this chunk */
    tmx_bf16 *to;                  /* the chunk, pinned */
    float *rows;                   /* [n_threads][n_in] */
};

static void fill_rows(void *ctx, int32_t task, int32_t thread)
{
    const fill_job *job = (const fill_job *)ctx;
    const size_t n_in = (size_t)job->source->n_in, row_bytes = block_row_bytes(job->format, n_in);
    const int32_t end = min_i32(job->n_rows, (task + 1) * FILL_ROWS);
    for (int32_t row = task * FILL_ROWS; row < end; row++) {
        const char *blocks = (const char *)job->source->data + (size_t)(job->first_row + row) * row_bytes;
        tmx_bf16 *to = job->to + (size_t)row * n_in;
        if (job->source->type == BLOCK_BF16) {
            memcpy(to, blocks, n_in * sizeof *to);
            continue;
        }
        float *x = job->rows + (size_t)thread * n_in;
        job->format->to_f32(blocks, x, n_in);
        job->ops->convert(x, job->source->n_in, to, TMX_TYPE_BF16);
    }
}

static tmx_status check_fill(const gpu_weight *weight, const matmul_source *sources, int32_t n_sources, tmx_error *err)
{
    int64_t n_out = 0;
    for (int32_t i = 0; i < n_sources; i++) {
        const matmul_source *s = &sources[i];
        const block_format *format = block_format_find(s->type);
        if (s->data == NULL || s->n_out < 1 || s->n_in != weight->n_in) {
            return refuse(err, TMX_E_ARG, "gpu weight: source %d is [%d][%d], expected [>= 1][%d]", i, s->n_out, s->n_in,
                          weight->n_in);
        }
        if (format == NULL || format->to_f32 == NULL || s->n_in % format->n_elements != 0) {
            return refuse(err, TMX_E_UNSUPPORTED, "gpu weight: source %d [%d][%d] has block type %u (%s), which cannot be expanded",
                          i, s->n_out, s->n_in, s->type, format != NULL ? format->name : "unknown");
        }
        n_out += s->n_out;
    }
    if (n_out != weight->n_out) {
        return refuse(err, TMX_E_ARG, "gpu weight: sources have %lld rows, expected %d", (long long)n_out, weight->n_out);
    }
    if (2 * (size_t)weight->n_in > STAGING_BYTES) {
        return refuse(err, TMX_E_UNSUPPORTED, "gpu weight: a row of %d elements, expected at most %d", weight->n_in,
                      STAGING_BYTES / 2);
    }
    return TMX_OK;
}

/* One buffer is expanded into while the other is on its way to the device. */
extern "C" tmx_status gpu_weight_fill(gpu *g, const gpu_weight *weight, const matmul_source *sources, int32_t n_sources,
                                      tmx_pool *pool, tmx_error *err)
{
    TRY(check_fill(weight, sources, n_sources, err));
    for (int i = 0; i < 2; i++) {
        if (g->staging[i] == NULL) TRY(gpu_alloc_pinned(g, (void **)&g->staging[i], STAGING_BYTES, err));
    }
    const size_t n_in = (size_t)weight->n_in, row_bytes = 2 * n_in;
    fill_job job;
    job.ops = row_ops_get(TMX_ISA_AUTO);
    job.rows = (float *)mem_alloc((size_t)pool_n_threads(pool) * n_in, sizeof *job.rows);
    if (job.rows == NULL) return refuse(err, TMX_E_MEMORY, "gpu weight [%d][%d]: out of host memory", weight->n_out, weight->n_in);
    const int32_t chunk_rows = (int32_t)(STAGING_BYTES / row_bytes);
    char *to = (char *)weight->data;
    int buffer = 0;
    for (int32_t i = 0; i < n_sources; i++) {
        job.source = &sources[i];
        job.format = block_format_find(sources[i].type);
        for (job.first_row = 0; job.first_row < sources[i].n_out && gpu_is_ready(g); job.first_row += job.n_rows, buffer ^= 1) {
            job.n_rows = min_i32(chunk_rows, sources[i].n_out - job.first_row);
            job.to = (tmx_bf16 *)g->staging[buffer];
            GPU_TRY(g, cudaEventSynchronize(g->staged[buffer]));
            pool_run(pool, divide_up(job.n_rows, FILL_ROWS), fill_rows, &job);
            gpu_upload(g, to, job.to, (size_t)job.n_rows * row_bytes);
            GPU_TRY(g, cudaEventRecord(g->staged[buffer], g->stream));
            to += (size_t)job.n_rows * row_bytes;
        }
    }
    mem_free(job.rows);
    return gpu_wait(g, err);
}

/* ---------------------------------------------------------------- random numbers */

DEVICE uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Box and Muller: two uniform numbers make two normal ones.  Number i depends on i and the seed alone. */
__global__ void random_kernel(tmx_bf16 *x, size_t n, float deviation, uint64_t seed)
{
    const size_t n_pairs = (n + 1) / 2;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n_pairs; i += gridDim.x * (size_t)blockDim.x) {
        const uint64_t bits = mix(seed * 0x9e3779b97f4a7c15u + mix(i + 1));
        const float u = ((uint32_t)(bits >> 40) + 1) * 0x1p-24f, turn = (uint32_t)bits * 0x1p-31f;
        const float radius = deviation * sqrtf(-2.0f * logf(u));
        float s, c;
        sincospif(turn, &s, &c);
        x[2 * i] = (tmx_bf16)bf16_pair(radius * c, 0.0f);
        if (2 * i + 1 < n) x[2 * i + 1] = (tmx_bf16)bf16_pair(radius * s, 0.0f);
    }
}

void gpu_fill_random(gpu *g, void *bf16, size_t n, float deviation, uint64_t seed)
{
    if (n == 0 || !gpu_is_ready(g)) return;
    random_kernel<<<16 * g->n_sms, 256, 0, g->stream>>>((tmx_bf16 *)bf16, n, deviation, seed);
    gpu_keep_launch(g, "random numbers");
}

extern "C" void gpu_weight_random(gpu *g, const gpu_weight *weight, float deviation, uint64_t seed)
{
    gpu_fill_random(g, weight->data, (size_t)weight->n_out * (size_t)weight->n_in, deviation, seed);
}
