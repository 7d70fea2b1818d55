/* tiny_lora.h - LoRA adapters for the tiny model, right or wrong, written to a file; and the same change made to the tiny
 * model's weights by hand, in f64 from the definition. */
#ifndef TMX_TESTS_TINY_LORA_H
#define TMX_TESTS_TINY_LORA_H

#include "base/num.h"
#include "tiny_model.h"

typedef struct tiny_lora {
    char path[64];
    gguf_writer writer;            /* for more keys and tensors */
    float alpha;
    uint64_t state;                /* of the random weights */
} tiny_lora;

/* NULL = what a right adapter says; "" = the key is absent. */
typedef struct tiny_lora_keys { const char *type, *adapter_type, *architecture; } tiny_lora_keys;

static inline void tl_text(gguf_writer *w, const char *key, const char *text, const char *usual)
{
    if (text == NULL) gw_key_string(w, key, usual);
    else if (text[0] != '\0') gw_key_string(w, key, text);
}

/* alpha 0: the key is absent. */
static inline tiny_lora tl_begin(uint64_t seed, float alpha, tiny_lora_keys keys)
{
    tiny_lora t = { .writer = gguf_writer_begin(), .alpha = alpha, .state = seed };
    tl_text(&t.writer, "general.type", keys.type, "adapter");
    tl_text(&t.writer, "adapter.type", keys.adapter_type, "lora");
    tl_text(&t.writer, "general.architecture", keys.architecture, "llama");
    if (alpha != 0) gw_key_f32(&t.writer, "adapter.lora.alpha", alpha);
    return t;
}

/* A random matrix about +-1/2 in any of the four types, as it lies in a file. */
static inline void *tl_random_blocks(uint64_t *state, uint32_t type, size_t n_bytes)
{
    unsigned char *bytes = malloc(n_bytes);
    if (bytes == NULL) abort();
    for (size_t i = 0; i < n_bytes; i++) bytes[i] = (unsigned char)(tiny_random(state) >> 32);
    if (type == BLOCK_F32) {
        for (size_t i = 0; i < n_bytes; i += 4) {
            const float x = (float)(tiny_random(state) >> 40) * 0x1p-24f - 0.5f;
            memcpy(bytes + i, &x, sizeof x);
        }
    } else if (type == BLOCK_F16) {
        for (size_t i = 1; i < n_bytes; i += 2) bytes[i] = (unsigned char)((bytes[i] & 0x87) | 0x30);      /* 1/8..1/2 */
    } else if (type == BLOCK_BF16) {
        for (size_t i = 1; i < n_bytes; i += 2) bytes[i] = (unsigned char)((bytes[i] & 0x80) | 0x3e);      /* 1/8..1/2 */
    } else if (type == BLOCK_Q8_0) {
        for (size_t i = 0; i < n_bytes; i += 34) memcpy(bytes + i, &(uint16_t){ 0x1c00 }, 2);     /* d = 1/256 */
    }
    return bytes;
}

static inline float *tl_matrix(tiny_lora *t, const char *base, const char *suffix, int64_t n_rows, int64_t n_cols,
                               uint32_t type, bool is_zero)
{
    const block_format *format = block_format_find_for(type, TMX_ISA_SCALAR);
    const size_t n = (size_t)(n_rows * n_cols), n_bytes = block_row_bytes(format, n);
    char name[128];
    void *blocks = tl_random_blocks(&t->state, type, n_bytes);
    float *x = malloc(n * sizeof *x);
    if (x == NULL) abort();
    if (is_zero) memset(blocks, 0, n_bytes);
    snprintf(name, sizeof name, "%s.%s", base, suffix);
    gw_tensor(&t->writer, name, type, 2, (const int64_t[]){ n_rows, n_cols }, blocks, n_bytes);
    format->to_f32(blocks, x, n);
    free(blocks);
    return x;
}

typedef struct tiny_pair {
    const char *base;
    int64_t n_out, n_in, rank;
    uint32_t a_type, b_type;
    bool is_zero;                  /* B is */
} tiny_pair;

/* Both tensors of a pair.  weights [n_out][n_in] += scale * alpha / rank * B A; may be NULL. */
static inline void tl_pair(tiny_lora *t, const tiny_pair *p, double scale, float *weights)
{
    float *a = tl_matrix(t, p->base, "lora_a", p->rank, p->n_in, p->a_type, false);
    float *b = tl_matrix(t, p->base, "lora_b", p->n_out, p->rank, p->b_type, p->is_zero);
    for (int64_t o = 0; weights != NULL && o < p->n_out; o++) {
        for (int64_t i = 0; i < p->n_in; i++) {
            double sum = 0;
            for (int64_t r = 0; r < p->rank; r++) sum += (double)b[o * p->rank + r] * (double)a[r * p->n_in + i];
            float *w = &weights[o * p->n_in + i];
            *w = (float)((double)*w + scale * (double)t->alpha / (double)p->rank * sum);
        }
    }
    free(a);
    free(b);
}

/* Writes the file; tl_remove unlinks it. */
static inline void tl_finish(tiny_lora *t)
{
    snprintf(t->path, sizeof t->path, "/tmp/tmx-lora-XXXXXX");
    const int fd = mkstemp(t->path);
    gw_bytes file = gw_finish(&t->writer);
    if (fd < 0 || write(fd, file.data, file.n_bytes) != (ssize_t)file.n_bytes) abort();
    close(fd);
    gw_free(&file);
}

static inline void tl_remove(const tiny_lora *t) { unlink(t->path); }

#endif
