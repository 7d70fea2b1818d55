/* tiny_model.h - a random llama model of a few hundred KB, written to a file, with its weights kept so that a test can
 * compute the same forward pass in f64 from the definition. */
#ifndef TMX_TESTS_TINY_MODEL_H
#define TMX_TESTS_TINY_MODEL_H

#include "gguf/blocks.h"
#include "pattern/pattern.h"
#include "tiny_vocab.h"
#include "tmx.h"
#include "unsanitized.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A program may have other widths: it defines these before it includes the file.  A wider model needs smaller weights: scores
 * that grow with the width make it answer to every rounding. */
#ifndef TINY_WIDTHS
#define TINY_WIDTHS TINY_EMBD = 48, TINY_HEADS = 6, TINY_KV_HEADS = 2, TINY_HEAD_DIM = 8, TINY_FF = 80
#define TINY_SPREAD 0.35f
#endif
enum { TINY_LAYERS = 3, TINY_WIDTHS, TINY_CTX = 1024, TINY_VOCAB = 257 };

typedef struct tiny_model {
    char path[64];
    bool is_tied, has_rope_divisors;
    float *token_embd, *output, *output_norm, *rope_divisors;
    struct { float *attn_norm, *q, *k, *v, *o, *ffn_norm, *gate, *up, *down; } layers[TINY_LAYERS];
    float *block;                  /* the memory behind all of them */
} tiny_model;

static inline uint64_t tiny_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline float *tiny_tensor(gguf_writer *w, float **at, uint64_t *state, const char *name, int64_t n_out, int64_t n_in,
                                 float centre, float spread)
{
    float *data = *at;
    const int64_t n = n_out * n_in;
    for (int64_t i = 0; i < n; i++) {
        data[i] = centre + spread * ((float)(tiny_random(state) >> 40) * 0x1p-23f - 1.0f);
    }
    *at += n;
    const int64_t shape[2] = { n_out, n_in };
    if (n_out == 1) gw_tensor(w, name, BLOCK_F32, 1, shape + 1, data, (size_t)n * sizeof *data);
    else gw_tensor(w, name, BLOCK_F32, 2, shape, data, (size_t)n * sizeof *data);
    return data;
}

static inline void tiny_keys(gguf_writer *w)
{
    gw_key_string(w, "general.architecture", "llama");
    gw_key_string(w, "general.name", "tiny");
    gw_key_u32(w, "llama.block_count", TINY_LAYERS);
    gw_key_u32(w, "llama.embedding_length", TINY_EMBD);
    gw_key_u32(w, "llama.attention.head_count", TINY_HEADS);
    gw_key_u32(w, "llama.attention.head_count_kv", TINY_KV_HEADS);
    gw_key_u32(w, "llama.feed_forward_length", TINY_FF);
    if (TINY_EMBD != TINY_HEADS * TINY_HEAD_DIM) gw_key_u32(w, "llama.attention.key_length", TINY_HEAD_DIM);
    gw_key_u32(w, "llama.context_length", TINY_CTX);
    gw_key_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gw_key_f32(w, "llama.rope.freq_base", 10000.0f);
    gw_key_u32(w, "tokenizer.ggml.eos_token_id", 256);
}

/* What a test changes.  To replace a key or tensor, add one of its name and hide the old one. */
typedef struct tiny_change {
    void (*add)(tiny_vocab *v, void *ctx);     /* called last; keys and tensors go to v->writer */
    void *ctx;
    const char *const *hidden;     /* names, up to a NULL: they get another first letter, so that nobody finds them */
} tiny_change;

static inline void tiny_hide(gw_bytes *part, const char *name)
{
    gw_bytes wanted = { 0 };
    gw_put_string(&wanted, name);              /* with its length: a name may begin another one */
    unsigned char *at = memmem(part->data, part->n_bytes, wanted.data, wanted.n_bytes);
    if (at != NULL) at[sizeof(uint64_t)] = '~';
    gw_free(&wanted);
}

/* Writes the model to a temporary file and fills m.  Free with tiny_model_free, which removes the file. */
static inline void tiny_model_create_changed(tiny_model *m, uint64_t seed, bool is_tied, bool has_rope_divisors,
                                             const tiny_change *change)
{
    enum { N_Q = TINY_HEADS * TINY_HEAD_DIM, N_KV = TINY_KV_HEADS * TINY_HEAD_DIM };
    tiny_vocab bytes = tv_begin("gpt-2");
    gguf_writer *w = &bytes.writer;
    uint64_t state = seed;
    memset(m, 0, sizeof *m);
    m->is_tied = is_tied;
    m->has_rope_divisors = has_rope_divisors;
    m->block = calloc(2 << 20, sizeof(float));
    float *at = m->block;
    tiny_keys(w);
    tv_token(&bytes, "<|endoftext|>", 3);
    m->token_embd = tiny_tensor(w, &at, &state, "token_embd.weight", TINY_VOCAB, TINY_EMBD, 0, 1);
    m->output_norm = tiny_tensor(w, &at, &state, "output_norm.weight", 1, TINY_EMBD, 1, 0.3f);
    m->output = is_tied ? m->token_embd : tiny_tensor(w, &at, &state, "output.weight", TINY_VOCAB, TINY_EMBD, 0, 1);
    if (has_rope_divisors) m->rope_divisors = tiny_tensor(w, &at, &state, "rope_freqs.weight", 1, TINY_HEAD_DIM / 2, 2, 1);
    for (int l = 0; l < TINY_LAYERS; l++) {
        const struct { const char *name; int64_t n_out, n_in; float **to; } parts[] = {
            { "attn_norm", 1, TINY_EMBD, &m->layers[l].attn_norm }, { "attn_q", N_Q, TINY_EMBD, &m->layers[l].q },
            { "attn_k", N_KV, TINY_EMBD, &m->layers[l].k }, { "attn_v", N_KV, TINY_EMBD, &m->layers[l].v },
            { "attn_output", TINY_EMBD, N_Q, &m->layers[l].o }, { "ffn_norm", 1, TINY_EMBD, &m->layers[l].ffn_norm },
            { "ffn_gate", TINY_FF, TINY_EMBD, &m->layers[l].gate }, { "ffn_up", TINY_FF, TINY_EMBD, &m->layers[l].up },
            { "ffn_down", TINY_EMBD, TINY_FF, &m->layers[l].down },
        };
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, parts[i].name);
            const float centre = parts[i].n_out == 1 ? 1.0f : 0.0f;
            *parts[i].to = tiny_tensor(w, &at, &state, name, parts[i].n_out, parts[i].n_in, centre, TINY_SPREAD);
        }
    }
    for (const char *const *name = change->hidden; name != NULL && *name != NULL; name++) {
        tiny_hide(&w->keys, *name);
        tiny_hide(&w->tensors, *name);
    }
    if (change->add != NULL) change->add(&bytes, change->ctx);
    snprintf(m->path, sizeof m->path, "/tmp/tmx-tiny-XXXXXX");
    const int fd = mkstemp(m->path);
    gw_bytes file = tv_finish(&bytes);
    if (fd < 0 || write(fd, file.data, file.n_bytes) != (ssize_t)file.n_bytes) abort();
    close(fd);
    gw_free(&file);
}

static inline void tiny_model_create(tiny_model *m, uint64_t seed, bool is_tied, bool has_rope_divisors)
{
    tiny_model_create_changed(m, seed, is_tied, has_rope_divisors, &(tiny_change){ 0 });
}

static inline void tiny_model_free(tiny_model *m)
{
    unlink(m->path);
    free(m->block);
}

/* ---- the forward pass in f64, one position after another, straight from the definitions */

UNSANITIZED static inline void tiny_product(const float *w, int n_out, int n_in, const double *x, double *y)
{
    for (int o = 0; o < n_out; o++) {
        y[o] = 0;
        for (int i = 0; i < n_in; i++) y[o] += (double)w[o * n_in + i] * x[i];
    }
}

static inline void tiny_norm(const float *w, const double *x, double *y)
{
    double mean = 0;
    for (int i = 0; i < TINY_EMBD; i++) mean += x[i] * x[i] / TINY_EMBD;
    for (int i = 0; i < TINY_EMBD; i++) y[i] = x[i] / sqrt(mean + (double)1e-5f) * (double)w[i];
}

static inline void tiny_rope(const tiny_model *m, double *heads, int n_heads, int position)
{
    for (int h = 0; h < n_heads; h++) {
        for (int i = 0; i < TINY_HEAD_DIM / 2; i++) {
            const float divisor = m->rope_divisors != NULL ? m->rope_divisors[i] : 1.0f;
            const float frequency = (float)(1.0 / pow(10000.0, 2.0 * i / TINY_HEAD_DIM)) / divisor;
            const double angle = (double)((float)position * frequency);     /* rounded as models are trained */
            double *pair = heads + h * TINY_HEAD_DIM + 2 * i;
            const double a = pair[0], b = pair[1];
            pair[0] = a * cos(angle) - b * sin(angle);
            pair[1] = a * sin(angle) + b * cos(angle);
        }
    }
}

/* logits [TINY_VOCAB] after the last of n tokens; patterns [TINY_LAYERS]. */
UNSANITIZED static inline void tiny_forward_f64(const tiny_model *m, const int32_t *tokens, int n, const tmx_pattern *patterns, double *logits)
{
    enum { N_Q = TINY_HEADS * TINY_HEAD_DIM, N_KV = TINY_KV_HEADS * TINY_HEAD_DIM };
    double (*x)[TINY_EMBD] = calloc((size_t)n, sizeof *x), (*q)[N_Q] = calloc((size_t)n, sizeof *q);
    double (*k)[N_KV] = calloc((size_t)n, sizeof *k), (*v)[N_KV] = calloc((size_t)n, sizeof *v), *p = calloc((size_t)n, sizeof *p);
    double y[TINY_EMBD], heads[N_Q], gate[TINY_FF], up[TINY_FF];
    for (int i = 0; i < n; i++) {
        for (int e = 0; e < TINY_EMBD; e++) x[i][e] = (double)m->token_embd[tokens[i] * TINY_EMBD + e];
    }
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int i = 0; i < n; i++) {
            tiny_norm(m->layers[l].attn_norm, x[i], y);
            tiny_product(m->layers[l].q, N_Q, TINY_EMBD, y, q[i]);
            tiny_product(m->layers[l].k, N_KV, TINY_EMBD, y, k[i]);
            tiny_product(m->layers[l].v, N_KV, TINY_EMBD, y, v[i]);
            tiny_rope(m, q[i], TINY_HEADS, i);
            tiny_rope(m, k[i], TINY_KV_HEADS, i);
        }
        for (int i = 0; i < n; i++) {
            for (int h = 0; h < TINY_HEADS; h++) {
                const int at = h / (TINY_HEADS / TINY_KV_HEADS) * TINY_HEAD_DIM;
                double top = -INFINITY, sum = 0;
                for (int j = 0; j <= i; j++) {
                    p[j] = -INFINITY;
                    if (!pattern_is_visible(&patterns[l], n, i, j)) continue;
                    p[j] = 0;
                    for (int d = 0; d < TINY_HEAD_DIM; d++) p[j] += q[i][h * TINY_HEAD_DIM + d] * k[j][at + d] / sqrt(TINY_HEAD_DIM);
                    top = fmax(top, p[j]);
                }
                for (int j = 0; j <= i; j++) sum += p[j] = exp(p[j] - top);
                for (int d = 0; d < TINY_HEAD_DIM; d++) {
                    double o = 0;
                    for (int j = 0; j <= i; j++) o += p[j] / sum * v[j][at + d];
                    heads[h * TINY_HEAD_DIM + d] = o;
                }
            }
            tiny_product(m->layers[l].o, TINY_EMBD, N_Q, heads, y);
            for (int e = 0; e < TINY_EMBD; e++) x[i][e] += y[e];
        }
        for (int i = 0; i < n; i++) {
            tiny_norm(m->layers[l].ffn_norm, x[i], y);
            tiny_product(m->layers[l].gate, TINY_FF, TINY_EMBD, y, gate);
            tiny_product(m->layers[l].up, TINY_FF, TINY_EMBD, y, up);
            for (int f = 0; f < TINY_FF; f++) gate[f] *= up[f] / (1 + exp(-gate[f]));
            tiny_product(m->layers[l].down, TINY_EMBD, TINY_FF, gate, y);
            for (int e = 0; e < TINY_EMBD; e++) x[i][e] += y[e];
        }
    }
    tiny_norm(m->output_norm, x[n - 1], y);
    tiny_product(m->output, TINY_VOCAB, TINY_EMBD, y, logits);
    free(x);
    free(q);
    free(k);
    free(v);
    free(p);
}

#endif
