/* llama.c - the llama family: Llama 2 and 3, Mistral 7B, SmolLM2 and everything converted under that name.
 * RMSNorm, GQA attention with interleaved RoPE (the converter permutes q and k rows), SwiGLU; no biases.  A sliding window,
 * where a file names one (Mistral 7B v0.1), holds in every layer. */
#include "model/family.h"

static tmx_status read_shape(const tmx_file *file, model_shape *shape, tmx_error *err)
{
    TRY(family_read_common(file, "llama", shape, err));
    shape->rope = ROPE_INTERLEAVED;
    return family_read_window(file, "llama", shape, err);
}

static tmx_status find_tensors(const tmx_file *file, model_tensors *t, tmx_error *err)
{
    TRY(family_find_ends(file, t, err));
    for (int32_t l = 0; l < t->shape.n_layers; l++) {
        TRY(family_find_attention(file, t, l, err));
        TRY(family_find_ffn(file, t, l, err));
    }
    return TMX_OK;
}

const model_family model_family_llama = { .architecture = "llama", .read_shape = read_shape, .find_tensors = find_tensors };
