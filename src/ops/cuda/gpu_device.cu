/* gpu_device.cu - the device object: memory, the stream, points in its time, recorded work. */
#include "ops/cuda/gpu_device.cuh"

#include <stdio.h>

struct gpu_mark {
    cudaEvent_t event;
};

struct gpu_graph {
    cudaGraphExec_t executable;
};

bool gpu_is_ready(gpu *g)
{
    if (g->first.code == TMX_OK) GPU_TRY(g, cudaSetDevice(g->device));
    return g->first.code == TMX_OK;
}

void gpu_keep(gpu *g, cudaError_t error, const char *call)
{
    if (error == cudaSuccess) return;
    cudaGetLastError();                                    /* ours now, not the next call's */
    if (g->first.code == TMX_OK) error_set(&g->first, TMX_E_DEVICE, "%s: %.60s: %s", g->name, call, cudaGetErrorString(error));
}

tmx_status gpu_failure(const gpu *g, tmx_error *err)
{
    if (g->first.code != TMX_OK && err != NULL) *err = g->first;
    return g->first.code;
}

/* ---------------------------------------------------------------- open, close */

extern "C" int32_t gpu_count(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
    cudaGetLastError();
    return 0;
}

static tmx_status find_device(int32_t device, tmx_error *err)
{
    int n = 0, driver = 0, runtime = 0;
    const cudaError_t error = cudaGetDeviceCount(&n);
    if (error == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        GPU_TRY_STATUS(cudaDriverGetVersion(&driver), err);
        GPU_TRY_STATUS(cudaRuntimeGetVersion(&runtime), err);
        if (driver == 0) return refuse(err, TMX_E_DEVICE, "no NVIDIA driver was found");
        return refuse(err, TMX_E_DEVICE, "the NVIDIA driver is too old: it supports CUDA %d.%d, this build needs %d.%d",
                      driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (error != cudaSuccess || n == 0) {
        cudaGetLastError();
        return refuse(err, TMX_E_DEVICE, "no CUDA device: %s",
                      error != cudaSuccess ? cudaGetErrorString(error) : "none is visible");
    }
    if (device < 0 || device >= n) {
        return refuse(err, TMX_E_DEVICE, "CUDA device %d: there %s %d, numbered from 0", device, n == 1 ? "is" : "are", n);
    }
    return TMX_OK;
}

static tmx_status open_device(gpu *g, tmx_error *err)
{
    cudaDeviceProp properties;
    GPU_TRY_STATUS(cudaSetDevice(g->device), err);
    GPU_TRY_STATUS(cudaGetDeviceProperties(&properties, g->device), err);
    snprintf(g->name, sizeof g->name, "%.80s", properties.name);
    g->n_sms = properties.multiProcessorCount;
    if (properties.major < 8) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: compute capability %d.%d, at least 8.0 is needed", g->name, properties.major,
                      properties.minor);
    }
    GPU_TRY_STATUS(cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking), err);
    for (int i = 0; i < 2; i++) GPU_TRY_STATUS(cudaEventCreateWithFlags(&g->staged[i], cudaEventDisableTiming), err);
    GPU_TRY_STATUS(cudaMalloc((void **)&g->best, BEST_BLOCKS * sizeof *g->best), err);
    return gpu_lt_open(g, err);
}

extern "C" tmx_status gpu_open(gpu **opened, int32_t device, tmx_error *err)
{
    TRY(find_device(device, err));
    gpu *g = (gpu *)mem_alloc(1, sizeof *g);
    if (g == NULL) return refuse(err, TMX_E_MEMORY, "CUDA device %d: out of host memory", device);
    g->device = device;
    const tmx_status status = open_device(g, err);
    if (status != TMX_OK) {
        gpu_close(g);
        return status;
    }
    *opened = g;
    return TMX_OK;
}

extern "C" void gpu_close(gpu *g)
{
    if (g == NULL) return;
    /* After a failure there is no one left to tell. */
    cudaSetDevice(g->device);
    if (g->stream != NULL) cudaStreamSynchronize(g->stream);
    gpu_lt_close(g);
    cudaFree(g->best);
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(g->staging[i]);
        if (g->staged[i] != NULL) cudaEventDestroy(g->staged[i]);
    }
    if (g->stream != NULL) cudaStreamDestroy(g->stream);
    cudaGetLastError();
    mem_free(g);
}

extern "C" const char *gpu_name(const gpu *g) { return g->name; }
extern "C" void *gpu_stream(const gpu *g) { return g->stream; }

extern "C" tmx_status gpu_memory(const gpu *g, uint64_t *n_free, uint64_t *n_total, tmx_error *err)
{
    size_t free = 0, total = 0;
    GPU_TRY_STATUS(cudaSetDevice(g->device), err);
    GPU_TRY_STATUS(cudaMemGetInfo(&free, &total), err);
    *n_free = free;
    *n_total = total;
    return TMX_OK;
}

/* ---------------------------------------------------------------- memory */

extern "C" tmx_status gpu_alloc(gpu *g, void **data, uint64_t n_bytes, tmx_error *err)
{
    if (!gpu_is_ready(g)) return gpu_failure(g, err);
    void *block = NULL;
    const cudaError_t error = cudaMalloc(&block, n_bytes > 0 ? n_bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        uint64_t n_free = 0, n_total = 0;
        TRY(gpu_memory(g, &n_free, &n_total, err));
        return refuse(err, TMX_E_MEMORY, "%s: %llu bytes of device memory asked for, %llu of %llu are free", g->name,
                      (unsigned long long)n_bytes, (unsigned long long)n_free, (unsigned long long)n_total);
    }
    gpu_keep(g, error, "cudaMalloc");
    TRY(gpu_failure(g, err));
    *data = block;
    return TMX_OK;
}

extern "C" void gpu_free(gpu *g, void *data)
{
    if (data == NULL) return;
    cudaSetDevice(g->device);
    gpu_keep(g, cudaFree(data), "cudaFree");
}

extern "C" tmx_status gpu_alloc_pinned(gpu *g, void **data, size_t n_bytes, tmx_error *err)
{
    if (!gpu_is_ready(g)) return gpu_failure(g, err);
    void *block = NULL;
    if (cudaHostAlloc(&block, n_bytes > 0 ? n_bytes : 1, cudaHostAllocDefault) != cudaSuccess) {
        cudaGetLastError();
        return refuse(err, TMX_E_MEMORY, "%s: %zu bytes of pinned host memory are not to be had", g->name, n_bytes);
    }
    *data = block;
    return TMX_OK;
}

extern "C" void gpu_free_pinned(gpu *g, void *data)
{
    if (data != NULL) gpu_keep(g, cudaFreeHost(data), "cudaFreeHost");
}

extern "C" void gpu_upload(gpu *g, void *to, const void *from, size_t n_bytes)
{
    if (!gpu_is_ready(g) || n_bytes == 0) return;
    gpu_keep(g, cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyHostToDevice, g->stream), "upload");
}

extern "C" tmx_status gpu_download(gpu *g, void *to, const void *from, size_t n_bytes, tmx_error *err)
{
    if (gpu_is_ready(g) && n_bytes > 0) {
        gpu_keep(g, cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToHost, g->stream), "download");
    }
    return gpu_wait(g, err);
}

extern "C" tmx_status gpu_wait(gpu *g, tmx_error *err)
{
    if (gpu_is_ready(g)) gpu_keep(g, cudaStreamSynchronize(g->stream), "waiting for the device");
    return gpu_failure(g, err);
}

/* ---------------------------------------------------------------- marks, graphs */

extern "C" tmx_status gpu_mark_create(gpu *g, gpu_mark **mark, tmx_error *err)
{
    if (!gpu_is_ready(g)) return gpu_failure(g, err);
    gpu_mark *m = (gpu_mark *)mem_alloc(1, sizeof *m);
    if (m == NULL) return refuse(err, TMX_E_MEMORY, "%s: out of host memory", g->name);
    GPU_TRY(g, cudaEventCreate(&m->event));
    if (g->first.code != TMX_OK) {
        mem_free(m);
        return gpu_failure(g, err);
    }
    *mark = m;
    return TMX_OK;
}

extern "C" void gpu_mark_free(gpu *g, gpu_mark *mark)
{
    if (mark == NULL) return;
    GPU_TRY(g, cudaEventDestroy(mark->event));
    mem_free(mark);
}

extern "C" void gpu_mark_set(gpu *g, gpu_mark *mark)
{
    if (gpu_is_ready(g)) GPU_TRY(g, cudaEventRecord(mark->event, g->stream));
}

extern "C" double gpu_mark_ms(gpu *g, const gpu_mark *begin, const gpu_mark *end)
{
    float ms = 0.0f;
    if (gpu_is_ready(g)) GPU_TRY(g, cudaEventElapsedTime(&ms, begin->event, end->event));
    return (double)ms;
}

extern "C" tmx_status gpu_mark_wait(gpu *g, const gpu_mark *mark, tmx_error *err)
{
    if (gpu_is_ready(g)) gpu_keep(g, cudaEventSynchronize(mark->event), "waiting for the device");
    return gpu_failure(g, err);
}

/* Of this thread only: another session's thread may allocate meanwhile. */
extern "C" void gpu_graph_begin(gpu *g)
{
    if (!gpu_is_ready(g)) return;
    GPU_TRY(g, cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeThreadLocal));
    g->is_recording = g->first.code == TMX_OK;
}

extern "C" tmx_status gpu_graph_end(gpu *g, gpu_graph **graph, tmx_error *err)
{
    if (!g->is_recording) {
        TRY(gpu_failure(g, err));
        return refuse(err, TMX_E_ARG, "gpu_graph_end without gpu_graph_begin");
    }
    g->is_recording = false;
    cudaGraph_t recorded = NULL;
    cudaGraphExec_t executable = NULL;
    GPU_TRY(g, cudaStreamEndCapture(g->stream, &recorded));        /* also after a failure: the stream must be usable */
    if (g->first.code == TMX_OK) GPU_TRY(g, cudaGraphInstantiate(&executable, recorded, 0));
    if (recorded != NULL) cudaGraphDestroy(recorded);
    TRY(gpu_failure(g, err));
    gpu_graph *made = (gpu_graph *)mem_alloc(1, sizeof *made);
    if (made == NULL) {
        cudaGraphExecDestroy(executable);
        return refuse(err, TMX_E_MEMORY, "%s: out of host memory", g->name);
    }
    made->executable = executable;
    *graph = made;
    return TMX_OK;
}

extern "C" void gpu_graph_run(gpu *g, const gpu_graph *graph)
{
    if (gpu_is_ready(g)) GPU_TRY(g, cudaGraphLaunch(graph->executable, g->stream));
}

extern "C" void gpu_graph_free(gpu *g, gpu_graph *graph)
{
    if (graph == NULL) return;
    GPU_TRY(g, cudaGraphExecDestroy(graph->executable));
    mem_free(graph);
}
