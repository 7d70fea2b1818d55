/* llama.c - the llama family: Llama 2 and 3, Mistral 7B, SmolLM2 and everything converted under that name.
 * RMSNorm, GQA attention with interleaved RoPE (the converter permutes q and k rows), SwiGLU; no biases. */
#include "model/family.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static tmx_status refuse_scaling(const tmx_file *file, tmx_error *err)
{
    gguf_string type = { 0 };
    if (gguf_has(file, "llama.rope.scaling.type")) {
        TRY(gguf_get_string(file, "llama.rope.scaling.type", &type, err));
        if (type.n_bytes != 4 || memcmp(type.data, "none", 4) != 0) {
            return refuse(err, TMX_E_UNSUPPORTED, "%s: llama.rope.scaling.type '%.*s': RoPE scaling is not supported",
                          gguf_label(file), (int)(type.n_bytes < 32 ? type.n_bytes : 32), type.data);
        }
    }
    if (type.data != NULL) return TMX_OK;          /* "none": a factor left beside it is not applied */
    static const char *const factors[] = { "llama.rope.scaling.factor", "llama.rope.scale_linear" };
    for (int i = 0; i < 2; i++) {
        float factor;
        TRY(gguf_get_f32_or(file, factors[i], 1.0f, &factor, err));
        if (factor == 1.0f) continue;
        return refuse(err, TMX_E_UNSUPPORTED, "%s: %s %g: RoPE scaling is not supported", gguf_label(file), factors[i],
                      (double)factor);
    }
    return TMX_OK;
}

static tmx_status read_shape(const tmx_file *file, model_shape *shape, tmx_error *err)
{
    TRY(family_read_common(file, "llama", shape, err));
    shape->rope = ROPE_INTERLEAVED;
    TRY(refuse_scaling(file, err));
    uint32_t n_experts, n_window;
    TRY(gguf_get_u32_or(file, "llama.expert_count", 0, &n_experts, err));
    if (n_experts > 0) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: llama.expert_count %u: mixture of experts is not supported",
                      gguf_label(file), n_experts);
    }
    TRY(gguf_get_u32_or(file, "llama.attention.sliding_window", 0, &n_window, err));
    if (n_window > 0 && n_window < (uint32_t)shape->n_ctx_train) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: llama.attention.sliding_window %u: a model with its own sliding window "
                      "is not supported", gguf_label(file), n_window);
    }
    return TMX_OK;
}

static tmx_status find_tensors(const tmx_file *file, model_tensors *t, tmx_error *err)
{
    const model_shape *s = &t->shape;
    const int64_t n_q = (int64_t)s->n_heads * s->head_dim, n_kv = (int64_t)s->n_kv_heads * s->head_dim;
    TRY(family_find_ends(file, t, err));
    for (int32_t l = 0; l < s->n_layers; l++) {
        layer_tensors *layer = &t->layers[l];
        TRY(family_find_layer(file, t, l, "attn_norm", 0, s->n_embd, &layer->attn_norm, err));
        TRY(family_find_layer(file, t, l, "attn_q", n_q, s->n_embd, &layer->q, err));
        TRY(family_find_layer(file, t, l, "attn_k", n_kv, s->n_embd, &layer->k, err));
        TRY(family_find_layer(file, t, l, "attn_v", n_kv, s->n_embd, &layer->v, err));
        TRY(family_find_layer(file, t, l, "attn_output", s->n_embd, n_q, &layer->attn_output, err));
        TRY(family_find_layer(file, t, l, "ffn_norm", 0, s->n_embd, &layer->ffn_norm, err));
        TRY(family_find_layer(file, t, l, "ffn_gate", s->n_ff, s->n_embd, &layer->gate, err));
        TRY(family_find_layer(file, t, l, "ffn_up", s->n_ff, s->n_embd, &layer->up, err));
        TRY(family_find_layer(file, t, l, "ffn_down", s->n_embd, s->n_ff, &layer->down, err));
    }
    return TMX_OK;
}

const model_family model_family_llama = { .architecture = "llama", .read_shape = read_shape, .find_tensors = find_tensors };
