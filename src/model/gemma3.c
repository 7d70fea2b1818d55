/* gemma3.c - Gemma 3, text: norms of q and k heads and of what each branch adds, a tanh-GELU gate, embeddings times
 * sqrt(n_embd).  Of six layers five have a sliding window and RoPE of base 10000; every sixth sees everything and has the
 * file's base and scaling.  The file's norm weights include the 1 that the model's own code adds. */
#include "model/family.h"

#include <math.h>

enum { PERIOD = 6, LAYERS_27B = 62 };

/* The pattern is implied by the family; a file may state it, as a period or as a flag per layer (true: sliding). */
static tmx_status check_pattern(const tmx_file *file, const model_shape *s, tmx_error *err)
{
    static const char key[] = "gemma3.attention.sliding_window_pattern";
    if (!gguf_has(file, key)) return TMX_OK;
    bool is_same;
    if (gguf_is_array(file, key)) {
        gguf_array flags;
        TRY(gguf_get_array(file, key, GGUF_BOOL, &flags, err));
        is_same = flags.n == (uint64_t)s->n_layers;
        for (int32_t l = 0; is_same && l < s->n_layers; l++) is_same = (flags.data[l] != 0) == ((l + 1) % PERIOD != 0);
    } else {
        uint32_t period;
        TRY(gguf_get_u32(file, key, &period, err));
        is_same = period == PERIOD;
    }
    if (is_same) return TMX_OK;
    return refuse(err, TMX_E_UNSUPPORTED, "%s: %s: only every sixth layer without a window is supported", gguf_label(file), key);
}

static tmx_status read_shape(const tmx_file *file, model_shape *s, tmx_error *err)
{
    TRY(family_read_common(file, "gemma3", s, err));
    s->rope = ROPE_HALF_SPLIT;
    s->gate = GATE_GELU_TANH;
    s->embedding_scale = sqrtf((float)s->n_embd);
    s->has_head_norms = s->has_branch_norms = true;
    /* The 27B model alone divides by the width that heads would have if they made up n_embd; no key says so. */
    if (s->n_layers == LAYERS_27B) s->score_scale = (float)(1.0 / sqrt((double)s->n_embd / s->n_heads));
    TRY(family_read_window(file, "gemma3", s, err));
    if (s->n_window == 0 && !gguf_has(file, "gemma3.attention.sliding_window")) {
        return refuse(err, TMX_E_FORMAT, "%s: key 'gemma3.attention.sliding_window' is missing", gguf_label(file));
    }
    if (s->n_window == 0) s->n_window = s->n_ctx_train;        /* these layers still have a RoPE of their own */
    s->window_period = PERIOD;
    TRY(gguf_get_f32_or(file, "gemma3.rope.freq_base_swa", 10000.0f, &s->window_freq_base, err));
    if (!isfinite(s->window_freq_base) || s->window_freq_base <= 0) {
        return refuse(err, TMX_E_FORMAT, "%s: gemma3.rope.freq_base_swa is %g, expected a positive number", gguf_label(file),
                      (double)s->window_freq_base);
    }
    float softcap;
    TRY(gguf_get_f32_or(file, "gemma3.final_logit_softcapping", 0, &softcap, err));
    if (softcap != 0) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: gemma3.final_logit_softcapping %g: capped logits are not supported",
                      gguf_label(file), (double)softcap);
    }
    return check_pattern(file, s, err);
}

static tmx_status find_tensors(const tmx_file *file, model_tensors *t, tmx_error *err)
{
    TRY(family_find_ends(file, t, err));
    for (int32_t l = 0; l < t->shape.n_layers; l++) {
        layer_tensors *layer = &t->layers[l];
        TRY(family_find_attention(file, t, l, err));
        TRY(family_find_head_norms(file, t, l, err));
        TRY(family_find_layer(file, t, l, "post_attention_norm.weight", 0, t->shape.n_embd, &layer->attn_branch_norm, err));
        TRY(family_find_layer(file, t, l, "post_ffw_norm.weight", 0, t->shape.n_embd, &layer->ffn_branch_norm, err));
        TRY(family_find_ffn(file, t, l, err));
    }
    return TMX_OK;
}

const model_family model_family_gemma3 = { .architecture = "gemma3", .read_shape = read_shape, .find_tensors = find_tensors };
