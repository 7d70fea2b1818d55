/* qwen3.c - Qwen3, dense: the llama layer with half-split RoPE and an RMSNorm over every head of q and k before it. */
#include "model/family.h"

static tmx_status read_shape(const tmx_file *file, model_shape *shape, tmx_error *err)
{
    TRY(family_read_common(file, "qwen3", shape, err));
    shape->rope = ROPE_HALF_SPLIT;
    shape->has_head_norms = true;
    return family_refuse_window(file, "qwen3", shape, err);
}

static tmx_status find_tensors(const tmx_file *file, model_tensors *t, tmx_error *err)
{
    TRY(family_find_ends(file, t, err));
    for (int32_t l = 0; l < t->shape.n_layers; l++) {
        TRY(family_find_attention(file, t, l, err));
        TRY(family_find_head_norms(file, t, l, err));
        TRY(family_find_ffn(file, t, l, err));
    }
    return TMX_OK;
}

const model_family model_family_qwen3 = { .architecture = "qwen3", .read_shape = read_shape, .find_tensors = find_tensors };
