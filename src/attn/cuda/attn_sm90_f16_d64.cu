#include "attn/cuda/attn_sm90.cuh"

tmx_status sm90_enqueue_f16_d64(const sm90_launch *launch, int32_t n_sms, cudaStream_t stream, tmx_error *err)
{
    return sm90_enqueue_any<__half, 64>(launch, n_sms, stream, err);
}
