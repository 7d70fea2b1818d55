#include "attn/cuda/attn_cuda.h"

#include "base/status.h"

/* In place of the kernels, in a build without CUDA. */
static tmx_status refuse_cuda(tmx_error *err)
{
    return refuse(err, TMX_E_UNSUPPORTED, "this build has no CUDA kernels; configure with -DTMX_CUDA=ON where nvcc is installed");
}

tmx_status cuda_device_get(int32_t *capability, char *name, size_t size, tmx_error *err)
{
    (void)capability, (void)name, (void)size;
    return refuse_cuda(err);
}

tmx_status cuda_run_sm90(const gpu_launch *launch, void *stream, tmx_error *err)
{
    (void)launch, (void)stream;
    return refuse_cuda(err);
}

tmx_status cuda_run_portable(const gpu_launch *launch, void *stream, tmx_error *err)
{
    (void)launch, (void)stream;
    return refuse_cuda(err);
}

tmx_status cuda_run_mass(const mass_launch *launch, void *stream, tmx_error *err)
{
    (void)launch, (void)stream;
    return refuse_cuda(err);
}

tmx_status cuda_run_flexprefill(const flex_launch *launch, void *stream, tmx_error *err)
{
    (void)launch, (void)stream;
    return refuse_cuda(err);
}

tmx_status cuda_run_minference(const lines_launch *launch, void *stream, tmx_error *err)
{
    (void)launch, (void)stream;
    return refuse_cuda(err);
}

tmx_status cuda_add_pairs(const key_lists *lists, int32_t q_begin, int32_t q_end, uint64_t *n_pairs, void *stream, tmx_error *err)
{
    (void)lists, (void)q_begin, (void)q_end, (void)n_pairs, (void)stream;
    return refuse_cuda(err);
}
