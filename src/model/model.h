/* model.h - tensor table -> named weights with proven shapes.  In: a tmx_file.  Out: a tmx_model that run/ can walk
 * layer by layer without asking which family it is.  One file per architecture family fills it (llama.c); the table
 * of families is in model.c.  Never sees CUDA, sessions or plans. */
#ifndef TMX_MODEL_MODEL_H
#define TMX_MODEL_MODEL_H

#include "gguf/gguf.h"
#include "ops/matmul.h"
#include "ops/rows.h"
#include "token/token.h"
#include "tmx.h"

/* Hyper-parameters, read and checked by the family's file. */
typedef struct model_shape {
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train;
    int32_t n_rot;                 /* leading elements of a head that RoPE turns */
    rope_style rope;
    float rope_freq_base, rms_eps;
} model_shape;

/* One layer's tensors in the file; shapes proven. */
typedef struct layer_tensors {
    const gguf_tensor *attn_norm, *q, *k, *v, *attn_output, *ffn_norm, *gate, *up, *down;
} layer_tensors;

/* Packed for prefill.  The last layer has none of these: only one row of each prompt goes through it beyond K and V. */
typedef struct model_layer {
    const layer_tensors *tensors;
    const float *attn_norm, *ffn_norm;             /* [n_embd] */
    matmul_weight *qkv;            /* [(n_heads + 2 n_kv_heads) * head_dim][n_embd] */
    matmul_weight *attn_output;    /* [n_embd][n_heads * head_dim] */
    matmul_weight *gate_up;        /* [2 n_ff][n_embd]: gate rows, then up rows */
    matmul_weight *down;           /* [n_embd][n_ff] */
} model_layer;

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
    const gguf_tensor *rope_freqs; /* [n_rot / 2] divisors, or NULL */
    bool *is_used;                 /* [tmx_file_n_tensors]: the family asked for it; the others are extras */
} model_tensors;

typedef struct model_family {
    const char *architecture;      /* general.architecture */
    tmx_status (*read_shape)(const tmx_file *file, model_shape *shape, tmx_error *err);
    tmx_status (*find_tensors)(const tmx_file *file, model_tensors *tensors, tmx_error *err);  /* shape is filled */
} model_family;

extern const model_family model_family_llama;

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
    const float *rope_divisor;     /* [n_rot / 2] or NULL */
    float *norms;                  /* the memory behind all the norm pointers */
    void *merged;                  /* the memory behind tensors that adapters changed, see lora.h; or NULL */
    vocab *vocab;
};

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
