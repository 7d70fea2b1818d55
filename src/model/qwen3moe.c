/* qwen3moe.c - Qwen3 with experts: the qwen3 layer whose feed-forward block is a weighted sum of a few of many small ones. */
#include "model/family.h"

enum { MAX_EXPERTS = 1024, MAX_FF = 1 << 20 };

static tmx_status read_count(const tmx_file *file, const char *key, int32_t max, int32_t *value, tmx_error *err)
{
    uint32_t n;
    TRY(gguf_get_u32(file, key, &n, err));
    if (n < 1 || n > (uint32_t)max) return refuse(err, TMX_E_FORMAT, "%s: %s is %u, expected 1..%d", gguf_label(file), key, n, max);
    *value = (int32_t)n;
    return TMX_OK;
}

static tmx_status read_shape(const tmx_file *file, model_shape *shape, tmx_error *err)
{
    int32_t n_ff;
    TRY(read_count(file, "qwen3moe.expert_count", MAX_EXPERTS, &shape->n_experts, err));
    TRY(read_count(file, "qwen3moe.expert_used_count", shape->n_experts, &shape->n_experts_used, err));
    TRY(read_count(file, "qwen3moe.expert_feed_forward_length", MAX_FF, &n_ff, err));
    TRY(family_read_common(file, "qwen3moe", shape, err));
    shape->n_ff = n_ff;
    shape->rope = ROPE_HALF_SPLIT;
    shape->has_head_norms = true;
    return family_refuse_window(file, "qwen3moe", shape, err);
}

static tmx_status find_tensors(const tmx_file *file, model_tensors *t, tmx_error *err)
{
    TRY(family_find_ends(file, t, err));
    for (int32_t l = 0; l < t->shape.n_layers; l++) {
        TRY(family_find_attention(file, t, l, err));
        TRY(family_find_head_norms(file, t, l, err));
        TRY(family_find_experts(file, t, l, err));
    }
    return TMX_OK;
}

const model_family model_family_qwen3moe = { .architecture = "qwen3moe", .read_shape = read_shape, .find_tensors = find_tensors };
