#include "probe/cuda/probe_ops_cuda.h"

/* In place of the device operators, in a build without them: no gpu object comes to be (ops_cuda_none.c), so none is called. */
void gpu_zero(gpu *g, void *data, size_t n_bytes) { (void)g, (void)data, (void)n_bytes; }
void gpu_copy(gpu *g, void *to, const void *from, size_t n_bytes) { (void)g, (void)to, (void)from, (void)n_bytes; }
void gpu_narrow(gpu *g, const float *x, size_t n, void *y) { (void)g, (void)x, (void)n, (void)y; }

void gpu_rmsnorm_back(gpu *g, const float *d_y, const float *x, const float *weight, float eps, int32_t n_rows, int32_t n_embd,
                      float *d_x)
{
    (void)g, (void)d_y, (void)x, (void)weight, (void)eps, (void)n_rows, (void)n_embd, (void)d_x;
}

void gpu_swiglu_back(gpu *g, const float *d_y, const void *gate_up, tmx_type type, int32_t n_rows, int32_t n_ff, void *d_gate_up)
{
    (void)g, (void)d_y, (void)gate_up, (void)type, (void)n_rows, (void)n_ff, (void)d_gate_up;
}

void gpu_heads_back_run(gpu *g, const gpu_heads_back *heads, const float *d_heads, void *d_qkv)
{
    (void)g, (void)heads, (void)d_heads, (void)d_qkv;
}

size_t gpu_attn_back_scratch_bytes(int32_t n_tokens, int32_t n_heads) { (void)n_tokens, (void)n_heads; return 0; }
void gpu_attn_back_run(gpu *g, const gpu_attn_back *back) { (void)g, (void)back; }
