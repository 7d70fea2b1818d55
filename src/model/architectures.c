/* architectures.c - the families there are, and those that are known but need what this program has not. */
#include "base/status.h"
#include "model/model.h"

#include <stdio.h>
#include <string.h>

extern const model_family model_family_gemma3, model_family_llama, model_family_phi3, model_family_qwen2, model_family_qwen3,
    model_family_qwen3moe;

static const model_family *const families[] = {
    &model_family_llama, &model_family_qwen2, &model_family_qwen3, &model_family_qwen3moe, &model_family_gemma3, &model_family_phi3,
};
enum { N_FAMILIES = sizeof families / sizeof families[0] };

/* What a named architecture needs, as docs/models.md lists it.  Names end with NULL. */
static const struct { const char *feature, *names[24]; } missing[] = {
    { "multi-head latent attention (MLA)",
      { "deepseek2", "deepseek2-ocr", "minicpm3", "plm", "mistral4", "glm-dsa", "kimi-linear" } },
    { "state-space or other recurrent layers",
      { "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "jamba", "falcon-h1", "granitehybrid", "nemotron_h",
        "nemotron_h_moe", "plamo2", "qwen3next", "qwen35", "qwen35moe", "lfm2", "lfm2moe" } },
    { "an encoder, which reads both ways and answers nothing",
      { "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert", "t5",
        "t5encoder", "gemma-embedding", "llama-embed", "wavtokenizer-dec" } },
    { "image or sound input",
      { "clip", "qwen2vl", "qwen3vl", "qwen3vlmoe", "cogvlm", "chameleon", "hunyuan_vl", "paddleocr" } },
    { "capped attention scores", { "gemma2", "grok" } },
    { "attention sinks that are learned", { "gpt-oss" } },
    { "per-layer embeddings and shared caches", { "gemma3n", "gemma4" } },
    { "mixture of experts as this family routes it",
      { "qwen2moe", "deepseek", "dbrx", "arctic", "olmoe", "phimoe", "granitemoe", "glm4moe", "ernie4_5-moe",
        "bailingmoe", "bailingmoe2", "hunyuan-moe", "llama4", "minimax-m2", "dots1", "grovemoe", "smallthinker", "afmoe",
        "exaone-moe", "llada-moe", "mimo2", "step35" } },
    { "diffusion instead of one token after another", { "dream", "llada", "rnd1" } },
    { "learned positions or ALiBi instead of RoPE", { "gpt2", "bloom", "mpt", "starcoder", "refact", "baichuan", "jais" } },
};

static bool is_name(gguf_string s, const char *name) { return s.n_bytes == strlen(name) && memcmp(s.data, name, s.n_bytes) == 0; }

static const char *missing_feature(gguf_string name)
{
    for (size_t i = 0; i < sizeof missing / sizeof missing[0]; i++) {
        const size_t n = sizeof missing[i].names / sizeof missing[i].names[0];
        for (size_t k = 0; k < n && missing[i].names[k] != NULL; k++) {
            if (is_name(name, missing[i].names[k])) return missing[i].feature;
        }
    }
    return NULL;
}

tmx_status model_family_find(const tmx_file *file, const model_family **family, tmx_error *err)
{
    gguf_string name;
    TRY(gguf_get_string(file, "general.architecture", &name, err));
    char supported[128] = "";
    for (int i = 0; i < N_FAMILIES; i++) {
        const size_t n = strlen(supported);
        snprintf(supported + n, sizeof supported - n, "%s%s", i == 0 ? "" : ", ", families[i]->architecture);
        if (!is_name(name, families[i]->architecture)) continue;
        *family = families[i];
        return TMX_OK;
    }
    const char *feature = missing_feature(name);
    if (feature != NULL) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: architecture '%.*s' is not supported: it needs %s", gguf_label(file),
                      (int)name.n_bytes, name.data, feature);
    }
    return refuse(err, TMX_E_UNSUPPORTED, "%s: architecture '%.*s' is not supported (supported: %s)", gguf_label(file),
                  (int)(name.n_bytes < 47 ? name.n_bytes : 47), name.data, supported);
}
