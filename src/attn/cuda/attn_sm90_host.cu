/* attn_sm90_host.cu - before the kernel: tensor maps for the copy engine, and which kernel. */
#include "attn/cuda/attn_sm90.cuh"
#include "attn/cuda/sm90_maps.cuh"

#include <stdio.h>

static tmx_status encode_kv(encode_fn encode, kv_maps *maps, const gpu_launch *launch, const char *name, const void *data,
                            int32_t n_keys, size_t pos_stride, size_t head_stride, size_t page_stride, tmx_error *err)
{
    const int32_t piece = launch->heads != NULL ? LINE_BLOCK : launch->grid.n_positions;
    if (launch->page_shift >= 0) {
        const int32_t page_size = 1 << launch->page_shift;
        const map_axis axes[] = {
            { (uint64_t)launch->head_dim, 1, COLUMNS },
            { (uint64_t)page_size, pos_stride, min_i32(piece, page_size) },
            { (uint64_t)launch->grid.n_kv_heads, head_stride, 1 },
            { (uint64_t)launch->n_pages, page_stride, 1 },
        };
        return encode_map(encode, &maps->piece, launch->is_f16, name, data, axes, 4, err);
    }
    map_axis axes[] = {
        { (uint64_t)launch->head_dim, 1, COLUMNS },
        { (uint64_t)launch->grid.n_kv_heads, head_stride, 1 },
        { (uint64_t)n_keys, pos_stride, piece },
    };
    TRY(encode_map(encode, &maps->piece, launch->is_f16, name, data, axes, 3, err));
    axes[2].box = SM90_SLOT_KEYS;
    return encode_map(encode, &maps->slot, launch->is_f16, name, data, axes, 3, err);
}

extern "C" tmx_status cuda_run_sm90(const gpu_launch *launch, void *stream, tmx_error *err)
{
    encode_fn encode;
    TRY(find_encode(&encode, err));
    int device, n_sms;
    CUDA_TRY(cudaGetDevice(&device), err);
    CUDA_TRY(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, device), err);

    sm90_launch full;
    full.common = *launch;
    for (int32_t i = 0; i < launch->n_seqs; i++) {
        const gpu_seq *seq = &launch->seqs[i];
        const gpu_buffers *buffers = &launch->buffers[i];
        if (seq->n_tiles == 0 && (launch->page_shift < 0 || i > 0)) continue;
        const map_axis axes[] = {
            { (uint64_t)launch->head_dim, 1, COLUMNS },
            { (uint64_t)launch->grid.n_heads, launch->q_head_stride, 1 << launch->grid.head_shift },
            { (uint64_t)(seq->q_end - seq->q_begin), launch->q_pos_stride, launch->grid.n_positions },
        };
        if (seq->n_tiles > 0) TRY(encode_map(encode, &full.maps[i].q, launch->is_f16, "q", buffers->q, axes, 3, err));
        if (i > 0 && launch->page_shift >= 0) continue;            /* one map for the pool */
        TRY(encode_kv(encode, &full.maps[i].k, launch, "k", buffers->k, seq->q_end, launch->k_pos_stride,
                      launch->k_head_stride, launch->k_page_stride, err));
        TRY(encode_kv(encode, &full.maps[i].v, launch, "v", buffers->v, seq->q_end, launch->v_pos_stride,
                      launch->v_head_stride, launch->v_page_stride, err));
    }
    sm90_enqueue_fn *const enqueue = launch->is_f16 ? (launch->head_dim == 64 ? sm90_enqueue_f16_d64 : sm90_enqueue_f16_d128)
                                                    : (launch->head_dim == 64 ? sm90_enqueue_bf16_d64 : sm90_enqueue_bf16_d128);
    return enqueue(&full, n_sms, (cudaStream_t)stream, err);
}

extern "C" tmx_status cuda_device_get(int32_t *capability, char *name, size_t size, tmx_error *err)
{
    int device = 0, n_devices = 0, major = 0, minor = 0;
    const cudaError_t error = cudaGetDeviceCount(&n_devices);
    if (error != cudaSuccess || n_devices == 0) {
        cudaGetLastError();
        return refuse(err, TMX_E_DEVICE, "no CUDA device: %s", error != cudaSuccess ? cudaGetErrorString(error)
                                                                                      : "none is visible");
    }
    CUDA_TRY(cudaGetDevice(&device), err);
    CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), err);
    CUDA_TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), err);
    *capability = 10 * major + minor;
    if (name != NULL) {
        cudaDeviceProp properties;
        CUDA_TRY(cudaGetDeviceProperties(&properties, device), err);
        snprintf(name, size, "%s", properties.name);
    }
    return TMX_OK;
}
