/* phi3.c - Phi-3 and Phi-4-mini: the llama layer with half-split RoPE on part of each head, q, k and v in one tensor and gate
 * and up in another (gate first), and LongRoPE where the file has its divisors.  A sliding window holds in every layer. */
#include "model/family.h"

static tmx_status read_shape(const tmx_file *file, model_shape *shape, tmx_error *err)
{
    TRY(family_read_common(file, "phi3", shape, err));
    shape->rope = ROPE_HALF_SPLIT;
    return family_read_window(file, "phi3", shape, err);
}

static tmx_status find_tensors(const tmx_file *file, model_tensors *t, tmx_error *err)
{
    const model_shape *s = &t->shape;
    const int64_t n_q = (int64_t)s->n_heads * s->head_dim, n_kv = (int64_t)s->n_kv_heads * s->head_dim;
    TRY(family_find_ends(file, t, err));
    for (int32_t l = 0; l < s->n_layers; l++) {
        layer_tensors *layer = &t->layers[l];
        const gguf_tensor *qkv, *gate_up;
        TRY(family_find_layer(file, t, l, "attn_norm.weight", 0, s->n_embd, &layer->attn_norm, err));
        TRY(family_find_layer(file, t, l, "attn_qkv.weight", n_q + 2 * n_kv, s->n_embd, &qkv, err));
        TRY(family_find_layer(file, t, l, "attn_output.weight", s->n_embd, n_q, &layer->attn_output, err));
        TRY(family_find_layer(file, t, l, "ffn_norm.weight", 0, s->n_embd, &layer->ffn_norm, err));
        TRY(family_find_layer(file, t, l, "ffn_up.weight", 2 * (int64_t)s->n_ff, s->n_embd, &gate_up, err));
        TRY(family_find_layer(file, t, l, "ffn_down.weight", s->n_embd, s->n_ff, &layer->down, err));
        layer->q = family_take_rows(t, qkv, 0, n_q);
        layer->k = family_take_rows(t, qkv, n_q, n_kv);
        layer->v = family_take_rows(t, qkv, n_q + n_kv, n_kv);
        layer->gate = family_take_rows(t, gate_up, 0, s->n_ff);
        layer->up = family_take_rows(t, gate_up, s->n_ff, s->n_ff);
    }
    return TMX_OK;
}

const model_family model_family_phi3 = { .architecture = "phi3", .read_shape = read_shape, .find_tensors = find_tensors,
                                         .is_fused = true };
