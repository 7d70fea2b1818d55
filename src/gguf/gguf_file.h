/* gguf_file.h - what is inside a tmx_file, for this room's files: gguf.c proves and fills it, gguf_split.c joins several,
 * gguf_values.c and gguf_tensors.c read it. */
#ifndef TMX_GGUF_GGUF_FILE_H
#define TMX_GGUF_GGUF_FILE_H

#include "gguf/gguf.h"

enum {
    N_VALUE_TYPES = GGUF_F64 + 1,
    NAME_SHOWN = 48,               /* bytes of a name that a message quotes */
    LABEL_BYTES = 64,              /* bytes of the path that begin a message, so that 255 hold the rest too */
    MAX_TENSORS = 1 << 18,         /* of all parts together */
};

typedef struct value_kind {
    const char *name;              /* "u32" */
    size_t n_bytes;                /* 0: the size is written in the file */
} value_kind;

extern const value_kind value_kinds[N_VALUE_TYPES];

typedef struct gguf_key {
    const char *name;              /* NUL-terminated, in key_names */
    gguf_value_type type;
    union {
        uint64_t bits;             /* scalars: their little-endian bytes, zero-extended */
        gguf_string string;
        gguf_array array;
    } value;
} gguf_key;

typedef struct gguf_name {
    const char *text;              /* NUL-terminated, in the arena */
    size_t n_bytes;
    int32_t i;                     /* which key or tensor it names */
} gguf_name;

/* The names of all keys or all tensors, sorted: a set that no choice of names can slow down. */
typedef struct gguf_names {
    gguf_name *sorted;             /* [n] */
    int32_t n;
    char *arena;
} gguf_names;

struct tmx_file {
    const unsigned char *data;     /* [n_bytes] */
    size_t n_bytes;
    size_t data_begin;             /* where the tensor data may begin; everything before is metadata */
    bool is_mapped;
    int32_t version, n_keys, n_tensors;
    gguf_key *keys;                /* [n_keys] in file order */
    gguf_tensor *tensors;          /* [n_tensors] in file order */
    gguf_names key_names, tensor_names;
    tmx_file **parts;              /* [n_parts] of a split model: this file, the first, and those it owns; else NULL */
    int32_t n_parts;               /* 1 unless split */
    char label[LABEL_BYTES + 1];   /* the path, or its end: how messages begin */
};

/* One file by itself, which may be a part. */
tmx_status gguf_open_path(tmx_file **file, const char *path, tmx_error *err);
int gguf_compare_names(const void *a, const void *b);                  /* of two gguf_name, for qsort: strcmp */
int32_t gguf_names_find(const gguf_names *names, const char *text);    /* -1 if absent */

#endif
