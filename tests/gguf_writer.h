/* gguf_writer.h - makes GGUF files in memory, for tests: small models and hostile ones.  Header only.
 *
 *     gguf_writer w = gguf_writer_begin();
 *     gw_key_string(&w, "general.architecture", "llama");
 *     gw_tensor(&w, "token_embd.weight", 0, 2, (int64_t[]){ n_vocab, n_embd }, values, n_vocab * n_embd * 4);
 *     gw_bytes file = gw_finish(&w);                        -> file.data, file.n_bytes
 *     ...
 *     gw_free(&file);
 *
 * What a well-behaved writer would not do is done by hand: the counts, the version, the alignment and the offset of the
 * next tensor are plain fields that may be set before the call that uses them, and gw_put_* append raw bytes to the
 * `keys` or `tensors` part. */
#ifndef TMX_TESTS_GGUF_WRITER_H
#define TMX_TESTS_GGUF_WRITER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct gw_bytes {
    unsigned char *data;
    size_t n_bytes, capacity;
} gw_bytes;

typedef struct gguf_writer {
    uint32_t version;
    uint64_t n_tensors, n_keys;    /* what the header will claim */
    uint32_t alignment;            /* of the tensor data; writes no key: see gw_key_u32 "general.alignment" */
    gw_bytes keys, tensors, data;
} gguf_writer;

/* ---------------------------------------------------------------- raw bytes */

static inline void gw_put(gw_bytes *b, const void *data, size_t n_bytes)
{
    if (b->n_bytes + n_bytes > b->capacity) {
        b->capacity = 2 * (b->n_bytes + n_bytes) + 64;
        b->data = realloc(b->data, b->capacity);
        if (b->data == NULL) abort();
    }
    if (n_bytes > 0) memcpy(b->data + b->n_bytes, data, n_bytes);
    b->n_bytes += n_bytes;
}

static inline void gw_put_u8(gw_bytes *b, uint8_t v) { gw_put(b, &v, sizeof v); }
static inline void gw_put_u32(gw_bytes *b, uint32_t v) { gw_put(b, &v, sizeof v); }
static inline void gw_put_u64(gw_bytes *b, uint64_t v) { gw_put(b, &v, sizeof v); }

static inline void gw_put_string_n(gw_bytes *b, const char *text, size_t n_bytes)
{
    gw_put_u64(b, n_bytes);
    gw_put(b, text, n_bytes);
}

static inline void gw_put_string(gw_bytes *b, const char *text) { gw_put_string_n(b, text, strlen(text)); }

static inline void gw_put_zeros_to(gw_bytes *b, size_t multiple)
{
    while (b->n_bytes % multiple != 0) gw_put_u8(b, 0);
}

static inline void gw_free(gw_bytes *b)
{
    free(b->data);
    *b = (gw_bytes){ 0 };
}

/* ---------------------------------------------------------------- keys */

static inline gguf_writer gguf_writer_begin(void) { return (gguf_writer){ .version = 3, .alignment = 32 }; }

/* Any key: the value's type id and its bytes as they will lie in the file. */
static inline void gw_key(gguf_writer *w, const char *key, uint32_t type, const void *value, size_t n_bytes)
{
    gw_put_string(&w->keys, key);
    gw_put_u32(&w->keys, type);
    gw_put(&w->keys, value, n_bytes);
    w->n_keys++;
}

static inline void gw_key_u8(gguf_writer *w, const char *key, uint8_t v) { gw_key(w, key, 0, &v, sizeof v); }
static inline void gw_key_i8(gguf_writer *w, const char *key, int8_t v) { gw_key(w, key, 1, &v, sizeof v); }
static inline void gw_key_u16(gguf_writer *w, const char *key, uint16_t v) { gw_key(w, key, 2, &v, sizeof v); }
static inline void gw_key_i16(gguf_writer *w, const char *key, int16_t v) { gw_key(w, key, 3, &v, sizeof v); }
static inline void gw_key_u32(gguf_writer *w, const char *key, uint32_t v) { gw_key(w, key, 4, &v, sizeof v); }
static inline void gw_key_i32(gguf_writer *w, const char *key, int32_t v) { gw_key(w, key, 5, &v, sizeof v); }
static inline void gw_key_f32(gguf_writer *w, const char *key, float v) { gw_key(w, key, 6, &v, sizeof v); }
static inline void gw_key_bool(gguf_writer *w, const char *key, bool v) { gw_key(w, key, 7, &(uint8_t){ v }, 1); }
static inline void gw_key_u64(gguf_writer *w, const char *key, uint64_t v) { gw_key(w, key, 10, &v, sizeof v); }
static inline void gw_key_i64(gguf_writer *w, const char *key, int64_t v) { gw_key(w, key, 11, &v, sizeof v); }
static inline void gw_key_f64(gguf_writer *w, const char *key, double v) { gw_key(w, key, 12, &v, sizeof v); }

static inline void gw_key_string_n(gguf_writer *w, const char *key, const char *text, size_t n_bytes)
{
    gw_key(w, key, 8, NULL, 0);
    gw_put_string_n(&w->keys, text, n_bytes);
}

static inline void gw_key_string(gguf_writer *w, const char *key, const char *text)
{
    gw_key_string_n(w, key, text, strlen(text));
}

/* An array of n scalars of type `type`, as they lie in memory.  n and n_bytes need not agree in a hostile file. */
static inline void gw_key_array(gguf_writer *w, const char *key, uint32_t type, uint64_t n, const void *values,
                                size_t n_bytes)
{
    gw_key(w, key, 9, NULL, 0);
    gw_put_u32(&w->keys, type);
    gw_put_u64(&w->keys, n);
    gw_put(&w->keys, values, n_bytes);
}

static inline void gw_key_strings(gguf_writer *w, const char *key, const char *const *texts, uint64_t n)
{
    gw_key_array(w, key, 8, n, NULL, 0);
    for (uint64_t i = 0; i < n; i++) gw_put_string(&w->keys, texts[i]);
}

/* ---------------------------------------------------------------- tensors */

/* A record only; dims as they lie in the file, fastest axis first. */
static inline void gw_tensor_record(gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims,
                                    const uint64_t *dims, uint64_t offset)
{
    gw_put_string(&w->tensors, name);
    gw_put_u32(&w->tensors, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) gw_put_u64(&w->tensors, dims[i]);
    gw_put_u32(&w->tensors, type);
    gw_put_u64(&w->tensors, offset);
    w->n_tensors++;
}

/* A record and its data, behind the tensors so far; shape slowest axis first. */
static inline void gw_tensor(gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims, const int64_t *shape,
                             const void *data, size_t n_bytes)
{
    uint64_t dims[4];
    for (uint32_t i = 0; i < n_dims; i++) dims[n_dims - 1 - i] = (uint64_t)shape[i];
    gw_put_zeros_to(&w->data, w->alignment);
    gw_tensor_record(w, name, type, n_dims, dims, w->data.n_bytes);
    gw_put(&w->data, data, n_bytes);
}

/* Joins the parts, frees them, and gives the file to the caller.  Its capacity is exact, so that a read past the end
 * is a read past the allocation. */
static inline gw_bytes gw_finish(gguf_writer *w)
{
    gw_bytes file = { 0 };
    gw_put(&file, "GGUF", 4);
    gw_put_u32(&file, w->version);
    gw_put_u64(&file, w->n_tensors);
    gw_put_u64(&file, w->n_keys);
    gw_put(&file, w->keys.data, w->keys.n_bytes);
    gw_put(&file, w->tensors.data, w->tensors.n_bytes);
    if (w->n_tensors > 0) gw_put_zeros_to(&file, w->alignment);
    gw_put(&file, w->data.data, w->data.n_bytes);
    gw_free(&w->keys);
    gw_free(&w->tensors);
    gw_free(&w->data);
    unsigned char *exact = malloc(file.n_bytes);
    if (exact == NULL) abort();
    memcpy(exact, file.data, file.n_bytes);
    free(file.data);
    return (gw_bytes){ .data = exact, .n_bytes = file.n_bytes, .capacity = file.n_bytes };
}

/* false if the file cannot be written. */
static inline bool gw_save(const gw_bytes *file, const char *path)
{
    FILE *f = fopen(path, "wb");
    if (f == NULL) return false;
    const bool is_written = file->n_bytes == 0 || fwrite(file->data, 1, file->n_bytes, f) == file->n_bytes;
    return (fclose(f) == 0) && is_written;
}

#endif
