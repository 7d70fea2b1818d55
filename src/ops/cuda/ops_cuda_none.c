#include "ops/cuda/ops_cuda.h"

#include "base/status.h"

/* In place of the device operators, in a build without them: no gpu object comes to be, so only the first two are ever called. */
static tmx_status refuse_cuda(tmx_error *err)
{
    return refuse(err, TMX_E_UNSUPPORTED,
                  "this build has no CUDA operators; configure with -DTMX_CUDA=ON where nvcc and cublasLt.h are installed");
}

tmx_status gpu_open(gpu **g, int32_t device, tmx_error *err)
{
    (void)g, (void)device;
    return refuse_cuda(err);
}

int32_t gpu_count(void) { return 0; }

void gpu_close(gpu *g) { (void)g; }
const char *gpu_name(const gpu *g) { (void)g; return ""; }
void *gpu_stream(const gpu *g) { (void)g; return NULL; }

tmx_status gpu_memory(const gpu *g, uint64_t *n_free, uint64_t *n_total, tmx_error *err)
{
    (void)g, (void)n_free, (void)n_total;
    return refuse_cuda(err);
}

tmx_status gpu_alloc(gpu *g, void **data, uint64_t n_bytes, tmx_error *err)
{
    (void)g, (void)data, (void)n_bytes;
    return refuse_cuda(err);
}

void gpu_free(gpu *g, void *data) { (void)g, (void)data; }

tmx_status gpu_alloc_pinned(gpu *g, void **data, size_t n_bytes, tmx_error *err)
{
    (void)g, (void)data, (void)n_bytes;
    return refuse_cuda(err);
}

void gpu_free_pinned(gpu *g, void *data) { (void)g, (void)data; }
void gpu_upload(gpu *g, void *to, const void *from, size_t n_bytes) { (void)g, (void)to, (void)from, (void)n_bytes; }

tmx_status gpu_download(gpu *g, void *to, const void *from, size_t n_bytes, tmx_error *err)
{
    (void)g, (void)to, (void)from, (void)n_bytes;
    return refuse_cuda(err);
}

tmx_status gpu_wait(gpu *g, tmx_error *err)
{
    (void)g;
    return refuse_cuda(err);
}

tmx_status gpu_mark_create(gpu *g, gpu_mark **mark, tmx_error *err)
{
    (void)g, (void)mark;
    return refuse_cuda(err);
}

void gpu_mark_free(gpu *g, gpu_mark *mark) { (void)g, (void)mark; }
void gpu_mark_set(gpu *g, gpu_mark *mark) { (void)g, (void)mark; }

double gpu_mark_ms(gpu *g, const gpu_mark *begin, const gpu_mark *end)
{
    (void)g, (void)begin, (void)end;
    return 0;
}

tmx_status gpu_mark_wait(gpu *g, const gpu_mark *mark, tmx_error *err)
{
    (void)g, (void)mark;
    return refuse_cuda(err);
}

void gpu_graph_begin(gpu *g) { (void)g; }

tmx_status gpu_graph_end(gpu *g, gpu_graph **graph, tmx_error *err)
{
    (void)g, (void)graph;
    return refuse_cuda(err);
}

void gpu_graph_run(gpu *g, const gpu_graph *graph) { (void)g, (void)graph; }
void gpu_graph_free(gpu *g, gpu_graph *graph) { (void)g, (void)graph; }

tmx_status gpu_weight_fill(gpu *g, const gpu_weight *weight, const matmul_source *sources, int32_t n_sources, tmx_pool *pool,
                           tmx_error *err)
{
    (void)g, (void)weight, (void)sources, (void)n_sources, (void)pool;
    return refuse_cuda(err);
}

void gpu_weight_random(gpu *g, const gpu_weight *weight, float deviation, uint64_t seed)
{
    (void)g, (void)weight, (void)deviation, (void)seed;
}

tmx_status gpu_weight_tune(gpu *g, gpu_weight *weight, int32_t n_rows, tmx_type y_type, bool is_added, void *scratch,
                           tmx_error *err)
{
    (void)g, (void)weight, (void)n_rows, (void)y_type, (void)is_added, (void)scratch;
    return refuse_cuda(err);
}

void gpu_weight_describe(const gpu_weight *weight, char *text, size_t size)
{
    (void)weight;
    if (size > 0) text[0] = 0;
}

void gpu_product(gpu *g, const gpu_weight *weight, const void *x, size_t x_stride, int32_t n_rows, void *y, size_t y_stride,
                 tmx_type y_type, bool is_added)
{
    (void)g, (void)weight, (void)x, (void)x_stride, (void)n_rows, (void)y, (void)y_stride, (void)y_type, (void)is_added;
}

void gpu_product_back(gpu *g, const gpu_weight *weight, const void *x, size_t x_stride, int32_t n_rows, void *y, size_t y_stride,
                      tmx_type y_type)
{
    (void)g, (void)weight, (void)x, (void)x_stride, (void)n_rows, (void)y, (void)y_stride, (void)y_type;
}

void gpu_row_product(gpu *g, const gpu_weight *weight, const float *x, int32_t n_rows, float *y, bool is_added)
{
    (void)g, (void)weight, (void)x, (void)n_rows, (void)y, (void)is_added;
}

void gpu_embed(gpu *g, const void *table, const int32_t *tokens, int32_t n_rows, int32_t n_embd, float scale, float *x)
{
    (void)g, (void)table, (void)tokens, (void)n_rows, (void)n_embd, (void)scale, (void)x;
}

void gpu_rmsnorm(gpu *g, const float *x, const float *weight, float eps, int32_t n_rows, int32_t n_embd, void *out,
                 tmx_type out_type)
{
    (void)g, (void)x, (void)weight, (void)eps, (void)n_rows, (void)n_embd, (void)out, (void)out_type;
}

void gpu_add_normed(gpu *g, const float *branch, const float *weight, float eps, int32_t n_rows, int32_t n_embd, float *x)
{
    (void)g, (void)branch, (void)weight, (void)eps, (void)n_rows, (void)n_embd, (void)x;
}

void gpu_swiglu(gpu *g, const void *gate_up, int32_t n_rows, int32_t n_ff, void *out, tmx_type type)
{
    (void)g, (void)gate_up, (void)n_rows, (void)n_ff, (void)out, (void)type;
}

void gpu_geglu(gpu *g, const void *gate_up, int32_t n_rows, int32_t n_ff, void *out, tmx_type type)
{
    (void)g, (void)gate_up, (void)n_rows, (void)n_ff, (void)out, (void)type;
}

void gpu_place_heads(gpu *g, const gpu_place *place, const void *qkv, tmx_type qkv_type, void *q)
{
    (void)g, (void)place, (void)qkv, (void)qkv_type, (void)q;
}

void gpu_choose_experts(gpu *g, const float *scores, int32_t n_rows, int32_t n_experts, int32_t n_used, gpu_choice *chosen)
{
    (void)g, (void)scores, (void)n_rows, (void)n_experts, (void)n_used, (void)chosen;
}

void gpu_group_rows(gpu *g, const gpu_choice *chosen, const gpu_groups *groups) { (void)g, (void)chosen, (void)groups; }

void gpu_grouped_product(gpu *g, const gpu_weight *weight, const gpu_groups *groups, const void *x, bool is_gathered, void *y,
                         tmx_type y_type)
{
    (void)g, (void)weight, (void)groups, (void)x, (void)is_gathered, (void)y, (void)y_type;
}

void gpu_chosen_product(gpu *g, const gpu_weight *weight, int32_t n_experts, const gpu_choice *chosen, int32_t n_used, const float *x,
                        size_t x_stride, float *y)
{
    (void)g, (void)weight, (void)n_experts, (void)chosen, (void)n_used, (void)x, (void)x_stride, (void)y;
}

void gpu_add_experts(gpu *g, const gpu_choice *chosen, const int32_t *places, int32_t n_rows, int32_t n_used, const float *y,
                     int32_t n_embd, float *x)
{
    (void)g, (void)chosen, (void)places, (void)n_rows, (void)n_used, (void)y, (void)n_embd, (void)x;
}

size_t gpu_decode_attention_bytes(int32_t n_rows, int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, int32_t n_ctx)
{
    (void)n_rows, (void)n_heads, (void)n_kv_heads, (void)head_dim, (void)n_ctx;
    return 0;
}

void gpu_decode_attention(gpu *g, const gpu_place *place, float scale, int32_t n_window, const void *q, float *out, void *scratch)
{
    (void)g, (void)place, (void)scale, (void)n_window, (void)q, (void)out, (void)scratch;
}

size_t gpu_sample_bytes(int32_t n) { (void)n; return 0; }

void gpu_sample(gpu *g, const float *logits, int32_t n, const sample_rule *rule, int32_t *token, void *scratch)
{
    (void)g, (void)logits, (void)n, (void)rule, (void)token, (void)scratch;
}
