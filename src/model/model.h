/* model.h - tensor table -> named weights with proven shapes.  In: a tmx_file.  Out: a tmx_model that run/ can walk
 * layer by layer without asking which family it is: a family is the llama layer with the steps below switched on.  One file
 * per family fills it (llama.c, gemma3.c, ...); the table of families is in architectures.c.  Never sees CUDA, sessions or
 * plans.
 *
 *   x = embedding * embedding_scale
 *   per layer:  y = norm(x);  q, k, v = y Wqkv^T [+ bias];  [q, k = norm of every head];  q, k turned by RoPE
 *               o = attention(score_scale q, k, v; the last n_window keys in a sliding-window layer)
 *               x += [norm](o Wo^T);  z = norm(x);  x += [norm]((gate(z Wg^T) * z Wu^T) Wd^T), or the experts' weighted sum
 *   logits = norm(x) Wlm^T */
#ifndef TMX_MODEL_MODEL_H
#define TMX_MODEL_MODEL_H

#include "gguf/gguf.h"
#include "model/rope_table.h"
#include "ops/matmul.h"
#include "ops/rows.h"
#include "token/token.h"
#include "tmx.h"

typedef enum gate_kind { GATE_SILU = 0, GATE_GELU_TANH } gate_kind;

/* Hyper-parameters, read and checked by the family's file. */
typedef struct model_shape {
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train;
    int32_t n_rot;                 /* leading elements of a head that RoPE turns */
    rope_style rope;
    float rope_freq_base, rms_eps;
    rope_scaling scaling;          /* of layers without a window, and of all where window_freq_base is 0 */
    gate_kind gate;
    float embedding_scale;         /* 0 = none */
    float score_scale;             /* 0 = 1 / sqrt(head_dim) */
    int32_t n_window;              /* what a sliding-window layer sees, the token itself counted; 0 = no such layers */
    int32_t window_period;         /* layer l sees everything where (l + 1) % window_period == 0; 0 = no layer does */
    float window_freq_base;        /* RoPE of sliding-window layers, unscaled; 0 = as the other layers */
    bool has_qkv_bias, has_head_norms, has_branch_norms;
    int32_t n_experts, n_experts_used;     /* 0: one feed-forward block; else n_ff is that of an expert */
} model_shape;

/* One layer's tensors in the file; shapes proven. */
typedef struct tensor_rows tensor_rows;
typedef struct layer_tensors {
    const gguf_tensor *attn_norm, *q, *k, *v, *attn_output, *ffn_norm, *gate, *up, *down;
    const gguf_tensor *bias[3];                    /* of q, k, v */
    const gguf_tensor *q_norm, *k_norm;            /* [head_dim] */
    const gguf_tensor *attn_branch_norm, *ffn_branch_norm;     /* [n_embd]: of what is added to the residual */
    const gguf_tensor *router;                     /* [n_experts][n_embd] */
    const tensor_rows *experts;                    /* [3][n_experts]: gate, up, down of each; then there are no others */
} layer_tensors;

typedef struct expert_weights { matmul_weight *gate_up, *down; } expert_weights;

/* Packed for prefill.  The last layer has none of these: only one row of each prompt goes through it beyond K and V. */
typedef struct model_layer {
    const layer_tensors *tensors;
    const float *attn_norm, *ffn_norm;             /* [n_embd] */
    const float *attn_branch_norm, *ffn_branch_norm;           /* [n_embd] or NULL, as the next three */
    const float *q_norm, *k_norm;                  /* [head_dim] */
    const float *bias;             /* [(n_heads + 2 n_kv_heads) * head_dim] */
    matmul_weight *qkv;            /* [(n_heads + 2 n_kv_heads) * head_dim][n_embd] */
    matmul_weight *attn_output;    /* [n_embd][n_heads * head_dim] */
    matmul_weight *gate_up;        /* [2 n_ff][n_embd]: gate rows, then up rows */
    matmul_weight *down;           /* [n_embd][n_ff] */
    matmul_weight *router;         /* [n_experts][n_embd] */
    expert_weights *experts;       /* [n_experts] */
} model_layer;

/* Rows of a fused tensor as a tensor of their own; follows the whole when an adapter is laid over it. */
struct tensor_rows {
    gguf_tensor rows;
    const gguf_tensor *whole;      /* [rows][n_in], or experts [n][rows][n_in], whose rows are numbered through */
    int64_t begin;
};

void tensor_rows_follow(tensor_rows *part);

typedef struct expert_choice { int32_t expert; float weight; } expert_choice;

/* The n_experts_used largest of scores [n_experts], the lower index where two are equal, in ascending order of the index; their
 * softmax weights, made to add up to 1.  chosen [n_experts_used] */
void model_choose_experts(const model_shape *shape, const float *scores, expert_choice *chosen);
/* Where an expert stands in the choices [n_rows][n_used] of rows: row * n_used + place, ascending -> at [n_rows]; how many. */
int32_t model_rows_of_expert(const expert_choice *chosen, int32_t n_rows, int32_t n_used, int32_t expert, int32_t *at);

/* What a family finds in a file before anything is packed. */
typedef struct model_tensors {
    const struct model_family *family;
    char name[128];                /* general.name, cut to fit; "" if absent */
    model_shape shape;             /* its rope_freq_base is the one in use */
    float file_rope_freq_base;
    layer_tensors *layers;         /* [n_layers] */
    const gguf_tensor *token_embd; /* [n_vocab][n_embd] */
    const gguf_tensor *output_norm;
    const gguf_tensor *lm_head;    /* [n_vocab][n_embd]; token_embd itself when tied */
    const gguf_tensor *rope_freqs; /* [n_rot / 2] divisors, or NULL; of LongRoPE those of short sessions, beside: */
    const gguf_tensor *rope_freqs_long;
    tensor_rows *parts;            /* [n_parts] of fused tensors and of experts; NULL where the family has none */
    int32_t n_parts, max_parts;
    bool *is_used;                 /* [tmx_file_n_tensors]: the family asked for it; the others are extras */
} model_tensors;

typedef struct model_family {
    const char *architecture;      /* general.architecture */
    tmx_status (*read_shape)(const tmx_file *file, model_shape *shape, tmx_error *err);
    tmx_status (*find_tensors)(const tmx_file *file, model_tensors *tensors, tmx_error *err);  /* shape is filled */
    bool is_fused;                 /* q, k, v and gate, up are rows of two tensors */
} model_family;

/* general.architecture -> family; an unknown name, or one that names a feature there is not, is TMX_E_UNSUPPORTED. */
tmx_status model_family_find(const tmx_file *file, const model_family **family, tmx_error *err);

struct tmx_model {
    tmx_file *file;
    tmx_model_info info;
    char fingerprint[65];
    tmx_compute compute;
    tmx_isa isa;
    model_tensors tensors;
    model_layer *layers;           /* [n_layers] */
    matmul_weight *last_kv;        /* last layer: [2 n_kv_heads * head_dim][n_embd] */
    const float *output_norm;      /* [n_embd] */
    rope_table rope, rope_long, rope_window;       /* see model_rope */
    float *vectors;                /* the memory behind all norms, biases and RoPE tables */
    void *merged;                  /* the memory behind tensors that adapters changed, see lora.h; or NULL */
    vocab *vocab;                  /* NULL: a model made for timing, without text */
    /* What run/ keeps with the model for the device that computes; NULL on the CPU.  Then nothing is packed. */
    void *on_device;
    void (*free_on_device)(void *on_device);
};

/* The table of a layer in a session of n_ctx tokens.  LongRoPE has two sets of divisors: which one holds depends on how long
 * the session may get, not on how long it is, so that no key is ever turned by another table than the queries that see it. */
const rope_table *model_rope(const tmx_model *model, int32_t layer, int32_t n_ctx);
/* tmx_model_open for the CPU; or, when another device will compute, for everything but the packed weights: info.device says
 * which, and compute is bf16. */
tmx_status model_open(tmx_model **model, const char *path, const tmx_model_params *params, const char *device, tmx_pool *pool,
                      tmx_error *err);

static inline bool model_is_on_cpu(const tmx_model *m) { return m->free_on_device == NULL; }

/* AUTO -> bf16 where the rung multiplies it in hardware. */
tmx_compute model_compute_resolve(tmx_compute compute, tmx_isa isa);

/* Memory the packed weights take. */
uint64_t model_weight_bytes(const tmx_model_info *info, tmx_compute compute);
/* Memory the copies of adapted tensors take. */
uint64_t model_merged_bytes(const tmx_model_info *info, tmx_compute compute);

static inline matmul_source tensor_source(const gguf_tensor *t)
{
    return (matmul_source){ .data = t->data, .type = t->type,
                            .n_out = (int32_t)t->shape[t->n_dims - 2], .n_in = (int32_t)t->shape[t->n_dims - 1] };
}

#endif
