/* ops_cuda.h - what a CUDA device computes between the attention calls.  In: device pointers, shapes, a stream.  Out: kernels
 * enqueued on that stream; only open, close, alloc, upload, download and wait take time on the host.  Knows nothing of models,
 * sessions or plans.  ops_cuda_none.c stands in where there is no nvcc: gpu_open then refuses, the rest is never called.
 *
 * Activations are bf16 [n_rows][width] or f32 where said; weights are bf16 [n_out][n_in]; sums are f32.
 *
 * Errors: launches return nothing.  The first failing CUDA call of a device is kept, later work on it is skipped, and
 * gpu_wait and gpu_download report it (TMX_E_DEVICE, with the name of the call).
 *
 * Bits: a row's result depends on that row and the weights alone, never on n_rows or its place in the batch: one product
 * algorithm is chosen for a weight, once, without splits of n_in, and serves every number of rows. */
#ifndef TMX_OPS_OPS_CUDA_H
#define TMX_OPS_OPS_CUDA_H

#include "base/pool.h"
#include "ops/matmul.h"
#include "ops/rows.h"
#include "ops/sample_rule.h"
#include "tmx.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- device */

typedef struct gpu gpu;            /* a device, one stream, the product library's handle and workspace */

/* TMX_E_UNSUPPORTED: built without CUDA, or a card below compute capability 8.0; TMX_E_DEVICE: no driver, driver too old
 * (the text gives both versions), no such device, or libcublasLt not found. */
tmx_status gpu_open(gpu **g, int32_t device, tmx_error *err);
void gpu_close(gpu *g);
int32_t gpu_count(void);                               /* devices; 0 without driver or in a build without CUDA */
const char *gpu_name(const gpu *g);
void *gpu_stream(const gpu *g);                        /* cudaStream_t */
tmx_status gpu_memory(const gpu *g, uint64_t *n_free, uint64_t *n_total, tmx_error *err);

tmx_status gpu_alloc(gpu *g, void **data, uint64_t n_bytes, tmx_error *err);    /* 256-byte aligned; TMX_E_MEMORY says how much */
void gpu_free(gpu *g, void *data);
/* Host memory the device reads directly, for uploads that do not wait. */
tmx_status gpu_alloc_pinned(gpu *g, void **data, size_t n_bytes, tmx_error *err);
void gpu_free_pinned(gpu *g, void *data);
void gpu_upload(gpu *g, void *to, const void *from, size_t n_bytes);             /* enqueued; `from` pinned and kept until a wait */
tmx_status gpu_download(gpu *g, void *to, const void *from, size_t n_bytes, tmx_error *err);   /* waits */
tmx_status gpu_wait(gpu *g, tmx_error *err);

/* Points in the stream's time. */
typedef struct gpu_mark gpu_mark;
tmx_status gpu_mark_create(gpu *g, gpu_mark **mark, tmx_error *err);
void gpu_mark_free(gpu *g, gpu_mark *mark);
void gpu_mark_set(gpu *g, gpu_mark *mark);                                        /* enqueued */
double gpu_mark_ms(gpu *g, const gpu_mark *begin, const gpu_mark *end);           /* after a wait that covers both */
tmx_status gpu_mark_wait(gpu *g, const gpu_mark *mark, tmx_error *err);            /* until the stream has passed it */

/* Records what is enqueued between begin and end and runs it again with one launch.  What changes between runs must be read
 * from device memory. */
typedef struct gpu_graph gpu_graph;
void gpu_graph_begin(gpu *g);
tmx_status gpu_graph_end(gpu *g, gpu_graph **graph, tmx_error *err);
void gpu_graph_run(gpu *g, const gpu_graph *graph);
void gpu_graph_free(gpu *g, gpu_graph *graph);

/* ---------------------------------------------------------------- weights and products */

typedef struct gpu_weight {
    void *data;                    /* bf16 [n_out][n_in] */
    int32_t n_out, n_in;
    struct gpu_algo *algo;         /* chosen by gpu_weight_tune; shared by weights of one shape */
} gpu_weight;

static inline uint64_t gpu_weight_bytes(int32_t n_out, int32_t n_in) { return 2 * (uint64_t)n_out * (uint64_t)n_in; }

/* Expands sources stacked along their output rows into weight->data, which the caller allocated; waits. */
tmx_status gpu_weight_fill(gpu *g, const gpu_weight *weight, const matmul_source *sources, int32_t n_sources, tmx_pool *pool,
                           tmx_error *err);
/* Normal numbers with this standard deviation, the same for the same seed: models made for timing. */
void gpu_weight_random(gpu *g, const gpu_weight *weight, float deviation, uint64_t seed);
/* Chooses the product algorithm by timing the library's candidates on n_rows rows of random numbers, for this pair of y type
 * and is_added; weights of one shape share the choice.  Waits.  scratch: device memory for x and y of n_rows rows.  n_rows >= 2.
 * Only candidates that agree to the bit are considered: tuning changes the time, never the result. */
tmx_status gpu_weight_tune(gpu *g, gpu_weight *weight, int32_t n_rows, tmx_type y_type, bool is_added, void *scratch,
                           tmx_error *err);
/* One line about the choice: candidates, rates. */
void gpu_weight_describe(const gpu_weight *weight, char *text, size_t size);
/* y[r][o] (+)= sum over i of x[r][i] * w[o][i].  x bf16, row stride x_stride elements; y bf16 or f32, row stride y_stride;
 * is_added needs f32. */
void gpu_product(gpu *g, const gpu_weight *weight, const void *x, size_t x_stride, int32_t n_rows, void *y, size_t y_stride,
                 tmx_type y_type, bool is_added);
/* The same for few rows (decoding, the LM head on a prompt's last row): limited by reading w.  x f32 [n_rows][n_in], y f32
 * [n_rows][n_out]; 1 <= n_rows <= 8.  Sums in f32. */
void gpu_row_product(gpu *g, const gpu_weight *weight, const float *x, int32_t n_rows, float *y, bool is_added);
/* The way back: y[r][i] = sum over o of x[r][o] * w[o][i].  x bf16 [n_rows][n_out], y bf16 or f32 [n_rows][n_in], both with row
 * strides.  The library's first proposal, never tuned. */
void gpu_product_back(gpu *g, const gpu_weight *weight, const void *x, size_t x_stride, int32_t n_rows, void *y, size_t y_stride,
                      tmx_type y_type);

/* ---------------------------------------------------------------- rows */

/* x[r] = scale * table[tokens[r]] as f32; table bf16 [n_vocab][n_embd]. */
void gpu_embed(gpu *g, const void *table, const int32_t *tokens, int32_t n_rows, int32_t n_embd, float scale, float *x);
/* out[r][i] = x[r][i] * weight[i] / sqrt(mean(x[r]^2) + eps); out bf16 or f32. */
void gpu_rmsnorm(gpu *g, const float *x, const float *weight, float eps, int32_t n_rows, int32_t n_embd, void *out,
                 tmx_type out_type);
/* x[r][i] += branch[r][i] * weight[i] / sqrt(mean(branch[r]^2) + eps). */
void gpu_add_normed(gpu *g, const float *branch, const float *weight, float eps, int32_t n_rows, int32_t n_embd, float *x);
/* out[r][i] = silu(gate_up[r][i]) * gate_up[r][n_ff + i]; both bf16, or both f32. */
void gpu_swiglu(gpu *g, const void *gate_up, int32_t n_rows, int32_t n_ff, void *out, tmx_type type);
/* The same with gelu in the tanh form of rows.h. */
void gpu_geglu(gpu *g, const void *gate_up, int32_t n_rows, int32_t n_ff, void *out, tmx_type type);

/* Rows of a chunk that belong to sequences: row r is token position positions[r] of sequence seqs[r]. */
typedef struct gpu_place {
    const int32_t *positions, *seqs;               /* device, [n_rows] */
    const float *inverse_freq;     /* device, [n_rot / 2]: the RoPE angle is the f32 product position * inverse_freq[i] (rows.h) */
    int32_t n_rows, n_heads, n_kv_heads, head_dim, n_rot;
    rope_style rope;
    float rope_factor;             /* on cos and sin */
    const float *bias;             /* device, [(n_heads + 2 n_kv_heads) * head_dim], added first; NULL: none */
    const float *q_norm, *k_norm;  /* device, [head_dim]: every head of q and k is normed by it, then turned; both NULL: none */
    float norm_eps;
    void *k, *v;                   /* KV cache of this layer, bf16 [n_seqs][n_kv_heads][n_ctx][head_dim]; positions outside
                                    * [0, n_ctx) are not written */
    int32_t n_ctx;
} gpu_place;
/* qkv [n_rows][(n_heads + 2 n_kv_heads) * head_dim] (or [2 n_kv_heads * head_dim] when q is NULL), bf16 or f32: biases added, heads
 * normed, q turned into q [n_rows][n_heads][head_dim] bf16, k turned and v into the cache. */
void gpu_place_heads(gpu *g, const gpu_place *place, const void *qkv, tmx_type qkv_type, void *q);

/* ---------------------------------------------------------------- experts */

/* Widths (n_embd, n_ff) are multiples of 8, addresses of 16 bytes, n_used <= n_experts <= 1024. */
typedef struct gpu_choice { int32_t expert; float weight; } gpu_choice;

/* chosen [n_rows][n_used]: of each row's scores [n_experts] the n_used largest, the lower index where two are equal, in ascending
 * order of the index; weights are the softmax over them. */
void gpu_choose_experts(gpu *g, const float *scores, int32_t n_rows, int32_t n_experts, int32_t n_used, gpu_choice *chosen);

/* A chunk's choices dealt to places, those of an expert side by side from a multiple of GPU_GROUP_ROWS on.  Device memory. */
enum { GPU_GROUP_ROWS = 128 };
typedef struct gpu_groups {
    int32_t n_rows, n_experts, n_used;
    int32_t *begin, *next;         /* [n_experts + 1], the first place of an expert; [n_experts], for dealing */
    int32_t *rows;                 /* [gpu_group_places]: the row at a place; -1: none */
    int32_t *places;               /* [n_rows][n_used]: of a row's choices */
} gpu_groups;

/* The most places there can be: every choice its own, and each expert that has any may leave a tile almost empty. */
static inline int64_t gpu_group_places(int32_t n_rows, int32_t n_experts, int32_t n_used)
{
    const int64_t n = (int64_t)n_rows * n_used, n_groups = n < n_experts ? n : n_experts;
    return ((n - n_groups) / GPU_GROUP_ROWS + n_groups) * GPU_GROUP_ROWS;
}

void gpu_group_rows(gpu *g, const gpu_choice *chosen, const gpu_groups *groups);
/* For every place that holds a row: y[place][o] = sum over i of x[r][i] * w[e][o][i], e its expert, r its row (is_gathered) or the place
 * itself.  weight: the experts' one after the other, [n_experts * n_out][n_in]; x bf16, y bf16 or f32, rows without gaps. */
void gpu_grouped_product(gpu *g, const gpu_weight *weight, const gpu_groups *groups, const void *x, bool is_gathered, void *y,
                         tmx_type y_type);
/* gpu_row_product with the experts that one row chose: y[i] = w[chosen[i].expert] x[i], of n_experts one after the other in weight.
 * x f32, rows x_stride elements apart (0: one for all); y f32 [n_used][n_out]. */
void gpu_chosen_product(gpu *g, const gpu_weight *weight, int32_t n_experts, const gpu_choice *chosen, int32_t n_used, const float *x,
                        size_t x_stride, float *y);
/* x[r] += sum over a row's choices, in their order, of weight * y[place]; places NULL: the choices lie one after the other in y. */
void gpu_add_experts(gpu *g, const gpu_choice *chosen, const int32_t *places, int32_t n_rows, int32_t n_used, const float *y,
                     int32_t n_embd, float *x);

/* ---------------------------------------------------------------- decoding */

/* Attention of one new row for each of n_rows sequences over positions 0..positions[r], dense, or over the last n_window of them:
 * split over key ranges of fixed length at fixed places, merged in a fixed order, so that nothing but the position decides a row's
 * bits.  n_window 0: no window.  q bf16 [n_rows][n_heads][head_dim], out f32 of the same shape, 0 for a position below 0.  scratch:
 * gpu_decode_attention_bytes(), 256-byte aligned.  head_dim 64, 96, 128 or 256, groups of 1..16 query heads a KV head, 1..8 at 256;
 * anything else is kept as TMX_E_UNSUPPORTED. */
size_t gpu_decode_attention_bytes(int32_t n_rows, int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, int32_t n_ctx);
void gpu_decode_attention(gpu *g, const gpu_place *place, float scale, int32_t n_window, const void *q, float *out, void *scratch);
/* *token (device) = what sample_choose makes of logits [n], which it leaves as they are; -1 if one is NaN or infinite.  Sums in f64, in
 * another order than the host's but always the same: a token can differ only where the draw falls within 1e-10 of the sum of a
 * border.  scratch: gpu_sample_bytes(n), 256-byte aligned. */
size_t gpu_sample_bytes(int32_t n);
void gpu_sample(gpu *g, const float *logits, int32_t n, const sample_rule *rule, int32_t *token, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
