/* tiny_family.h - tiny random models of every family, written to a file.  A tensor's values follow from its name, by the same
 * lines as in scripts/reference/make-family-goldens.py, so that transformers' logits of the same model can be stored. */
#ifndef TMX_TESTS_TINY_FAMILY_H
#define TMX_TESTS_TINY_FAMILY_H

#include "gguf/blocks.h"
#include "tiny_vocab.h"
#include "tmx.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TF_EMBD = 48, TF_VOCAB = 257, TF_CTX = 1024, TF_FF = 80, TF_WINDOW = 32, TF_CTX_ORIGINAL = 64, TF_MAX_TENSORS = 160 };

typedef enum tf_scaling { TF_UNSCALED, TF_DIVISORS, TF_LINEAR, TF_YARN, TF_LONG } tf_scaling;

typedef struct tf_spec {
    const char *name, *architecture;
    int n_layers, n_heads, n_kv_heads, head_dim, n_rot;
    double freq_base, factor;
    tf_scaling scaling;
    bool is_tied, is_interleaved, is_fused, has_bias, has_head_norms, has_branch_norms, is_gelu;
    int n_window;                  /* 0 = none */
    int window_period;             /* as in tmx_model_info */
    double window_base;            /* 0 = freq_base, scaled */
    int n_experts, n_used, n_ff_expert;
    float spread;                  /* of a layer's weights; 0 = 0.35 */
} tf_spec;

static const tf_spec tf_specs[] = {
    { "llama", "llama", 3, 6, 2, 8, 8, 1e4, 1, .is_interleaved = true },
    { "llama3", "llama", 3, 6, 2, 8, 8, 1e4, 8, TF_DIVISORS, .is_interleaved = true, .is_tied = true },
    { "llama-linear", "llama", 3, 6, 2, 8, 8, 1e4, 4, TF_LINEAR, .is_interleaved = true },
    { "llama-yarn", "llama", 3, 6, 2, 8, 8, 1e4, 4, TF_YARN, .is_interleaved = true },
    { "mistral", "llama", 3, 6, 2, 8, 8, 1e4, 1, .is_interleaved = true, .n_window = TF_WINDOW },
    { "qwen2", "qwen2", 3, 6, 2, 8, 8, 1e6, 1, .is_tied = true, .has_bias = true },
    { "qwen2-yarn", "qwen2", 3, 6, 2, 8, 8, 1e4, 4, TF_YARN, .has_bias = true },
    { "qwen3", "qwen3", 3, 6, 2, 16, 16, 1e6, 1, .has_head_norms = true },
    { "gemma3", "gemma3", 7, 4, 1, 16, 16, 1e6, 1, .is_tied = true, .has_head_norms = true, .has_branch_norms = true,
      .is_gelu = true, .n_window = TF_WINDOW, .window_period = 6, .window_base = 1e4 },
    { "gemma3-linear", "gemma3", 7, 4, 1, 16, 16, 1e6, 8, TF_LINEAR, .is_tied = true, .has_head_norms = true,
      .has_branch_norms = true, .is_gelu = true, .n_window = TF_WINDOW, .window_period = 6, .window_base = 1e4 },
    { "phi3", "phi3", 3, 3, 1, 16, 16, 1e4, 1, .is_fused = true, .n_window = TF_WINDOW },
    { "qwen3moe", "qwen3moe", 3, 6, 2, 16, 16, 1e6, 1, .has_head_norms = true, .n_experts = 6, .n_used = 2, .n_ff_expert = 24 },
    { "phi3-long", "phi3", 3, 3, 1, 16, 12, 1e4, 1, TF_LONG, .is_fused = true, .is_tied = true },
};
enum { TF_N_SPECS = sizeof tf_specs / sizeof tf_specs[0] };

typedef struct tf_tensor { char name[48]; float *data; int64_t n; } tf_tensor;

typedef struct tf_model {
    const tf_spec *spec;
    char path[64];
    tf_tensor tensors[TF_MAX_TENSORS];
    int n_tensors;
} tf_model;

static inline uint64_t tf_random(uint64_t seed, uint64_t i)
{
    uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline void tf_tokens(int32_t *tokens, int n)
{
    for (int i = 0; i < n; i++) tokens[i] = (int32_t)((tf_random(77, (uint64_t)i) >> 33) % TF_VOCAB);
}

static inline uint64_t tf_seed(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name != '\0'; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

/* Slowest axis first; a vector has n_2 and n_1 of 0. */
static inline void tf_put(tf_model *m, gguf_writer *w, const char *name, int64_t n_2, int64_t n_1, int64_t n_0, const float *given)
{
    const int64_t all[3] = { n_2, n_1, n_0 }, n = (n_2 > 0 ? n_2 : 1) * (n_1 > 0 ? n_1 : 1) * n_0;
    const float centre = strstr(name, "norm") != NULL ? 1.0f : 0.0f;
    const bool is_end = strncmp(name, "token_embd", 10) == 0 || strncmp(name, "output", 6) == 0;
    const float spread = centre != 0 ? 0.3f : is_end ? 1.0f : m->spec->spread != 0 ? m->spec->spread : 0.35f;
    float *data = malloc((size_t)n * sizeof *data);
    const uint64_t seed = tf_seed(name);
    for (int64_t i = 0; i < n; i++) {
        const float unit = (float)(tf_random(seed, (uint64_t)i) >> 40) * 0x1p-23f - 1.0f;
        data[i] = given != NULL ? given[i] : centre + spread * unit;
    }
    const uint32_t n_dims = n_2 > 0 ? 3 : n_1 > 0 ? 2 : 1;
    gw_tensor(w, name, BLOCK_F32, n_dims, all + 3 - n_dims, data, (size_t)n * sizeof *data);
    if (m->n_tensors == TF_MAX_TENSORS) abort();
    tf_tensor *t = &m->tensors[m->n_tensors++];
    snprintf(t->name, sizeof t->name, "%s", name);
    t->data = data;
    t->n = n;
}

static inline const float *tf_find(const tf_model *m, const char *name)
{
    for (int i = 0; i < m->n_tensors; i++) {
        if (strcmp(m->tensors[i].name, name) == 0) return m->tensors[i].data;
    }
    return NULL;
}

/* The divisors of Llama 3.1: slow pairs by the factor, fast ones by 1, a ramp between (low 1, high 4 turns). */
static inline float tf_llama3_divisor(const tf_spec *s, int pair)
{
    const double wave = 2 * acos(-1) * pow(s->freq_base, 2.0 * pair / s->n_rot);
    if (wave < TF_CTX_ORIGINAL / 4.0) return 1;
    if (wave > TF_CTX_ORIGINAL) return (float)s->factor;
    const double smooth = (TF_CTX_ORIGINAL / wave - 1) / 3;
    return (float)(1 / ((1 - smooth) / s->factor + smooth));
}

static inline void tf_put_divisors(tf_model *m, gguf_writer *w)
{
    const tf_spec *s = m->spec;
    float a[128], b[128];
    for (int i = 0; i < s->n_rot / 2; i++) {
        a[i] = s->scaling == TF_DIVISORS ? tf_llama3_divisor(s, i) : 1 + (float)i / 8;
        b[i] = 1 + (float)(i * i);
    }
    if (s->scaling == TF_DIVISORS) tf_put(m, w, "rope_freqs.weight", 0, 0, s->n_rot / 2, a);
    if (s->scaling != TF_LONG) return;
    tf_put(m, w, "rope_factors_short.weight", 0, 0, s->n_rot / 2, a);
    tf_put(m, w, "rope_factors_long.weight", 0, 0, s->n_rot / 2, b);
}

static inline void tf_put_layer(tf_model *m, gguf_writer *w, int layer)
{
    const tf_spec *s = m->spec;
    const int n_q = s->n_heads * s->head_dim, n_kv = s->n_kv_heads * s->head_dim, f = s->n_ff_expert, e = s->n_experts;
    const bool is_dense = e == 0;
    const struct { bool is_there; const char *name; int n_2, n_1, n_0; } parts[] = {
        { true, "attn_norm.weight", 0, 0, TF_EMBD }, { true, "ffn_norm.weight", 0, 0, TF_EMBD },
        { s->is_fused, "attn_qkv.weight", 0, n_q + 2 * n_kv, TF_EMBD },
        { !s->is_fused, "attn_q.weight", 0, n_q, TF_EMBD }, { !s->is_fused, "attn_k.weight", 0, n_kv, TF_EMBD },
        { !s->is_fused, "attn_v.weight", 0, n_kv, TF_EMBD }, { true, "attn_output.weight", 0, TF_EMBD, n_q },
        { s->has_bias, "attn_q.bias", 0, 0, n_q }, { s->has_bias, "attn_k.bias", 0, 0, n_kv }, { s->has_bias, "attn_v.bias", 0, 0, n_kv },
        { s->has_head_norms, "attn_q_norm.weight", 0, 0, s->head_dim }, { s->has_head_norms, "attn_k_norm.weight", 0, 0, s->head_dim },
        { s->has_branch_norms, "post_attention_norm.weight", 0, 0, TF_EMBD },
        { s->has_branch_norms, "post_ffw_norm.weight", 0, 0, TF_EMBD },
        { is_dense && !s->is_fused, "ffn_gate.weight", 0, TF_FF, TF_EMBD },
        { is_dense, "ffn_up.weight", 0, s->is_fused ? 2 * TF_FF : TF_FF, TF_EMBD }, { is_dense, "ffn_down.weight", 0, TF_EMBD, TF_FF },
        { !is_dense, "ffn_gate_inp.weight", 0, e, TF_EMBD }, { !is_dense, "ffn_gate_exps.weight", e, f, TF_EMBD },
        { !is_dense, "ffn_up_exps.weight", e, f, TF_EMBD }, { !is_dense, "ffn_down_exps.weight", e, TF_EMBD, f },
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%d.%s", layer, parts[i].name);
        if (parts[i].is_there) tf_put(m, w, name, parts[i].n_2, parts[i].n_1, parts[i].n_0, NULL);
    }
}

static inline void tf_key_u32(gguf_writer *w, const tf_spec *s, const char *suffix, int value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->architecture, suffix);
    gw_key_u32(w, key, (uint32_t)value);
}

static inline void tf_key_f32(gguf_writer *w, const tf_spec *s, const char *suffix, double value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->architecture, suffix);
    gw_key_f32(w, key, (float)value);
}

static inline void tf_keys(gguf_writer *w, const tf_spec *s)
{
    char key[96];
    gw_key_string(w, "general.architecture", s->architecture);
    gw_key_string(w, "general.name", s->name);
    tf_key_u32(w, s, "block_count", s->n_layers);
    tf_key_u32(w, s, "embedding_length", TF_EMBD);
    tf_key_u32(w, s, "attention.head_count", s->n_heads);
    tf_key_u32(w, s, "attention.head_count_kv", s->n_kv_heads);
    tf_key_u32(w, s, "attention.key_length", s->head_dim);
    tf_key_u32(w, s, "attention.value_length", s->head_dim);
    tf_key_u32(w, s, "rope.dimension_count", s->n_rot);
    tf_key_u32(w, s, "feed_forward_length", TF_FF);
    tf_key_u32(w, s, "context_length", TF_CTX);
    tf_key_f32(w, s, "attention.layer_norm_rms_epsilon", 1e-5);
    tf_key_f32(w, s, "rope.freq_base", s->freq_base);
    if (s->n_window > 0) tf_key_u32(w, s, "attention.sliding_window", s->n_window);
    if (s->n_experts > 0) {
        tf_key_u32(w, s, "expert_count", s->n_experts);
        tf_key_u32(w, s, "expert_used_count", s->n_used);
        tf_key_u32(w, s, "expert_feed_forward_length", s->n_ff_expert);
    }
    static const char *const types[] = { [TF_LINEAR] = "linear", [TF_YARN] = "yarn", [TF_LONG] = "longrope" };
    if (s->scaling < TF_LINEAR) return;
    snprintf(key, sizeof key, "%s.rope.scaling.type", s->architecture);
    gw_key_string(w, key, types[s->scaling]);
    if (s->scaling != TF_LONG) tf_key_f32(w, s, "rope.scaling.factor", s->factor);
    if (s->scaling != TF_LINEAR) tf_key_u32(w, s, "rope.scaling.original_context_length", TF_CTX_ORIGINAL);
}

/* Writes the model to a temporary file and fills m; `add`, unless NULL, adds keys or tensors.  Free with tf_free, which removes
 * the file. */
static inline void tf_create_with(tf_model *m, const tf_spec *spec, void (*add)(gguf_writer *w, const void *ctx), const void *ctx)
{
    memset(m, 0, sizeof *m);
    m->spec = spec;
    tiny_vocab bytes = tv_begin("gpt-2");
    gguf_writer *w = &bytes.writer;
    tv_token(&bytes, "<|endoftext|>", 3);
    tf_keys(w, spec);
    gw_key_u32(w, "tokenizer.ggml.eos_token_id", 256);
    tf_put(m, w, "token_embd.weight", 0, TF_VOCAB, TF_EMBD, NULL);
    tf_put(m, w, "output_norm.weight", 0, 0, TF_EMBD, NULL);
    if (!spec->is_tied) tf_put(m, w, "output.weight", 0, TF_VOCAB, TF_EMBD, NULL);
    tf_put_divisors(m, w);
    for (int l = 0; l < spec->n_layers; l++) tf_put_layer(m, w, l);
    if (add != NULL) add(w, ctx);
    snprintf(m->path, sizeof m->path, "/tmp/tmx-family-XXXXXX");
    const int fd = mkstemp(m->path);
    gw_bytes file = tv_finish(&bytes);
    if (fd < 0 || write(fd, file.data, file.n_bytes) != (ssize_t)file.n_bytes) abort();
    close(fd);
    gw_free(&file);
}

static inline void tf_create(tf_model *m, const tf_spec *spec) { tf_create_with(m, spec, NULL, NULL); }

static inline void tf_free(tf_model *m)
{
    unlink(m->path);
    for (int i = 0; i < m->n_tensors; i++) free(m->tensors[i].data);
}

#endif
