/* qwen2.c - Qwen2 and Qwen2.5: the llama layer with half-split RoPE and a bias on q, k and v. */
#include "model/family.h"

static tmx_status read_shape(const tmx_file *file, model_shape *shape, tmx_error *err)
{
    TRY(family_read_common(file, "qwen2", shape, err));
    shape->rope = ROPE_HALF_SPLIT;
    shape->has_qkv_bias = true;
    return family_refuse_window(file, "qwen2", shape, err);
}

static tmx_status find_tensors(const tmx_file *file, model_tensors *t, tmx_error *err)
{
    const int64_t n_q = (int64_t)t->shape.n_heads * t->shape.head_dim, n_kv = (int64_t)t->shape.n_kv_heads * t->shape.head_dim;
    TRY(family_find_ends(file, t, err));
    for (int32_t l = 0; l < t->shape.n_layers; l++) {
        TRY(family_find_attention(file, t, l, err));
        TRY(family_find_layer(file, t, l, "attn_q.bias", 0, n_q, &t->layers[l].bias[0], err));
        TRY(family_find_layer(file, t, l, "attn_k.bias", 0, n_kv, &t->layers[l].bias[1], err));
        TRY(family_find_layer(file, t, l, "attn_v.bias", 0, n_kv, &t->layers[l].bias[2], err));
        TRY(family_find_ffn(file, t, l, err));
    }
    return TMX_OK;
}

const model_family model_family_qwen2 = { .architecture = "qwen2", .read_shape = read_shape, .find_tensors = find_tensors };
