/* gguf.h - bytes -> checked header, metadata and tensor table.  In: a path.  Out: a tmx_file (declared in tmx.h) whose
 * every offset, size, string and array was proven to lie inside the mapping.  Never copies tensor data, never
 * interprets hyper-parameters (model/ does), never converts a value of one type into another of a different kind.
 *
 * GGUF lists a tensor's fastest axis first; the order is reversed here, once: shapes are slowest axis first. */
#ifndef TMX_GGUF_GGUF_H
#define TMX_GGUF_GGUF_H

#include "tmx.h"

typedef enum gguf_value_type {     /* ids of the file format */
    GGUF_U8 = 0, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY,
    GGUF_U64, GGUF_I64, GGUF_F64,
} gguf_value_type;

enum { GGUF_MAX_TENSOR_NAME = 63 };    /* bytes, without the NUL */

typedef struct gguf_string {
    const char *data;              /* borrowed from the mapping; no NUL at the end; may hold any byte */
    size_t n_bytes;
} gguf_string;

typedef struct gguf_array {
    gguf_value_type type;          /* never GGUF_ARRAY */
    uint64_t n;
    const unsigned char *data;     /* packed little-endian elements; unaligned */
    const gguf_string *strings;    /* [n] if type is GGUF_STRING, else NULL */
} gguf_array;

typedef struct gguf_tensor {
    const char *name;              /* NUL-terminated copy owned by the file */
    uint32_t type;                 /* id of the file format, see blocks.h */
    int32_t n_dims;
    int64_t shape[4];              /* slowest axis first; unused are 1 */
    const void *data;              /* in the mapping, aligned to general.alignment */
    uint64_t n_bytes, offset_bytes;/* offset from the start of the file, of a split model: of the part */
    int32_t part;                  /* of a split model, from 0 */
} gguf_tensor;

/* Same as tmx_file_open, on memory the caller keeps alive (tests, fuzzing). `name` is used in messages. */
tmx_status gguf_open_memory(tmx_file **file, const void *data, size_t n_bytes, const char *name, tmx_error *err);

/* The parts of a split model, in order, become one file: the first one's keys, everybody's tensors.  Takes all of them over
 * on success, none on failure.  Refused: a part of another model, another number or count, a tensor in two parts. */
tmx_status gguf_join(tmx_file **file, tmx_file *const *parts, int32_t n_parts, tmx_error *err);

const char *gguf_label(const tmx_file *file);         /* the path, or the end of a long one: how messages begin */
const gguf_tensor *gguf_tensor_at(const tmx_file *file, int32_t i);
const gguf_tensor *gguf_tensor_find(const tmx_file *file, const char *name);   /* NULL if absent; by bisection */
/* Lays other data of the same shape over tensor i: whoever reads the table, now or through a pointer got before, sees
 * `type` and `data` (borrowed, must outlive the file's use).  Fingerprints are to be taken before. */
void gguf_tensor_overlay(tmx_file *file, int32_t i, uint32_t type, const void *data);

/* Typed getters.  A missing key is TMX_E_FORMAT naming the key; a value of another kind too.  u32 accepts U8, U16,
 * U32, U64 and non-negative I32 that fit (counts are written in all of them); f32 accepts F32 and F64; nothing else is
 * converted.  The _or forms give `fallback` when the key is absent (and still refuse a wrong kind). */
bool gguf_has(const tmx_file *file, const char *key);
tmx_status gguf_get_u32(const tmx_file *file, const char *key, uint32_t *value, tmx_error *err);
tmx_status gguf_get_u32_or(const tmx_file *file, const char *key, uint32_t fallback, uint32_t *value, tmx_error *err);
tmx_status gguf_get_f32(const tmx_file *file, const char *key, float *value, tmx_error *err);
tmx_status gguf_get_f32_or(const tmx_file *file, const char *key, float fallback, float *value, tmx_error *err);
tmx_status gguf_get_bool_or(const tmx_file *file, const char *key, bool fallback, bool *value, tmx_error *err);
tmx_status gguf_get_string(const tmx_file *file, const char *key, gguf_string *value, tmx_error *err);
tmx_status gguf_get_array(const tmx_file *file, const char *key, gguf_value_type type, gguf_array *value,
                          tmx_error *err);
bool gguf_is_array(const tmx_file *file, const char *key);

float gguf_array_f32(const gguf_array *array, uint64_t i);      /* array->type is GGUF_F32, i < n: asserted */
int32_t gguf_array_i32(const gguf_array *array, uint64_t i);    /* GGUF_I32 or GGUF_U32 */

/* 64 hex digits: SHA-256 over all bytes before the tensor data (of every part), then of the first 4096 bytes of every
 * tensor. */
void gguf_fingerprint(const tmx_file *file, char hex[65]);

#endif
