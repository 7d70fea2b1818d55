/* gguf.c - the reader.  The file is hostile: a cursor that cannot pass the end hands out the bytes, every count is
 * held against the bytes left before anything is allocated for it, and every sum and product is checked.
 *
 *   file:    "GGUF", u32 version, u64 n_tensors, u64 n_keys, keys, tensor records, zeros up to the alignment, data
 *   key:     string name, u32 value type, value         string: u64 length, bytes
 *   array:   u32 element type, u64 count, elements
 *   tensor:  string name, u32 n_dims, u64 dims, u32 type, u64 offset */
#include "gguf/gguf_file.h"

#include "base/mem.h"
#include "base/status.h"
#include "gguf/blocks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers of the file are loaded as they lie");

/* Limits far above any real file (about 40 keys, 300 to 50000 tensors, 300000 tokens), so that a few hostile bytes
 * cannot ask for gigabytes. */
enum {
    MAX_KEYS = 1 << 16,
    MAX_STRING = 64 << 20,         /* bytes */
    MAX_ARRAY = 1 << 26,           /* elements */
    MAX_KEY_NAME = 65535,
    MAX_DIMS = 4,
    MIN_ALIGNMENT = 8, DEFAULT_ALIGNMENT = 32, MAX_ALIGNMENT = 1 << 16,
    MIN_KEY_BYTES = 8 + 1 + 4 + 1, /* the smallest records there can be */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
};

/* ---------------------------------------------------------------- cursor */

typedef struct cursor {
    const tmx_file *file;
    size_t at;                     /* <= file->n_bytes */
    const char *subject;           /* "key", "tensor"; NULL in the header */
    int32_t index, count;
    gguf_string name;              /* of the subject, once it is read */
    tmx_error *err;
} cursor;

enum { SUBJECT_BYTES = NAME_SHOWN + 24 };

static const char *subject_text(const cursor *c, char text[SUBJECT_BYTES])
{
    if (c->subject == NULL) {
        snprintf(text, SUBJECT_BYTES, "the header");
    } else if (c->name.data == NULL) {
        snprintf(text, SUBJECT_BYTES, "%s %d of %d", c->subject, c->index + 1, c->count);
    } else {
        const int n_shown = c->name.n_bytes < NAME_SHOWN ? (int)c->name.n_bytes : NAME_SHOWN;
        snprintf(text, SUBJECT_BYTES, "%s '%.*s'", c->subject, n_shown, c->name.data);
    }
    return text;
}

/* "m.gguf: key 'a.b' at byte 60: ..." */
__attribute__((format(printf, 4, 5)))
static void reject_set(const cursor *c, size_t at, tmx_status code, const char *format, ...)
{
    char subject[SUBJECT_BYTES], detail[160];
    va_list args;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    error_set(c->err, code, "%s: %s at byte %zu: %s", c->file->label, subject_text(c, subject), at, detail);
}

/* refuse() with the place in front: an expression of the value `code`. */
#define reject(c, at, code, ...) (reject_set((c), (at), (code), __VA_ARGS__), (code))

static size_t bytes_left(const cursor *c) { return c->file->n_bytes - c->at; }

static void truncated_set(const cursor *c, const char *what, uint64_t n_needed)
{
    char subject[SUBJECT_BYTES];
    error_set(c->err, TMX_E_FORMAT, "%s: truncated at byte %zu while reading the %s of %s: needs %llu bytes from byte "
              "%zu", c->file->label, c->file->n_bytes, what, subject_text(c, subject), (unsigned long long)n_needed,
              c->at);
}

#define truncated(c, what, n_needed) (truncated_set((c), (what), (n_needed)), TMX_E_FORMAT)

static tmx_status take(cursor *c, uint64_t n_bytes, const char *what, const unsigned char **bytes)
{
    if (n_bytes > bytes_left(c)) return truncated(c, what, n_bytes);
    *bytes = c->file->data + c->at;
    c->at += (size_t)n_bytes;
    return TMX_OK;
}

static tmx_status read_u32(cursor *c, const char *what, uint32_t *value)
{
    const unsigned char *bytes;
    TRY(take(c, sizeof *value, what, &bytes));
    memcpy(value, bytes, sizeof *value);
    return TMX_OK;
}

static tmx_status read_u64(cursor *c, const char *what, uint64_t *value)
{
    const unsigned char *bytes;
    TRY(take(c, sizeof *value, what, &bytes));
    memcpy(value, bytes, sizeof *value);
    return TMX_OK;
}

static tmx_status read_string(cursor *c, const char *what, gguf_string *string)
{
    const size_t begin = c->at;
    const unsigned char *bytes;
    uint64_t n_bytes;
    TRY(read_u64(c, what, &n_bytes));
    if (n_bytes > MAX_STRING) {
        return reject(c, begin, TMX_E_FORMAT, "string of %llu bytes, the limit is %d", (unsigned long long)n_bytes,
                      MAX_STRING);
    }
    TRY(take(c, n_bytes, what, &bytes));
    *string = (gguf_string){ .data = (const char *)bytes, .n_bytes = (size_t)n_bytes };
    return TMX_OK;
}

/* ---------------------------------------------------------------- names */

/* Names become C strings and appear in messages and listings, so they are printable ASCII. */
static tmx_status read_name(cursor *c, size_t max_bytes, gguf_string *name)
{
    const size_t begin = c->at;
    TRY(read_string(c, "name", name));
    if (name->n_bytes < 1 || name->n_bytes > max_bytes) {
        return reject(c, begin, TMX_E_FORMAT, "name of %zu bytes, expected 1..%zu", name->n_bytes, max_bytes);
    }
    for (size_t i = 0; i < name->n_bytes; i++) {
        const unsigned char byte = (unsigned char)name->data[i];
        if (byte < 0x20 || byte > 0x7e) {
            return reject(c, begin, TMX_E_FORMAT, "byte %zu of the name is 0x%02x, expected printable ASCII", i, byte);
        }
    }
    c->name = *name;
    return TMX_OK;
}

int gguf_compare_names(const void *a, const void *b)
{
    const gguf_name *x = a, *y = b;
    return strcmp(x->text, y->text);
}

/* Replaces the names' places in the mapping by NUL-terminated copies; sorts; refuses duplicates. */
static tmx_status names_settle(const cursor *c, gguf_names *names)
{
    size_t n_arena = 0;
    for (int32_t i = 0; i < names->n; i++) n_arena += names->sorted[i].n_bytes + 1;
    names->arena = mem_alloc(n_arena, 1);
    if (names->arena == NULL) {
        return refuse(c->err, TMX_E_MEMORY, "%s: no memory for %zu bytes of names", c->file->label, n_arena);
    }
    char *copy = names->arena;
    for (int32_t i = 0; i < names->n; i++) {
        gguf_name *name = &names->sorted[i];
        memcpy(copy, name->text, name->n_bytes);
        name->text = copy;
        copy += name->n_bytes + 1;
    }
    qsort(names->sorted, (size_t)names->n, sizeof *names->sorted, gguf_compare_names);
    for (int32_t i = 1; i < names->n; i++) {
        const gguf_name *a = &names->sorted[i - 1], *b = &names->sorted[i];
        if (strcmp(a->text, b->text) != 0) continue;
        return refuse(c->err, TMX_E_FORMAT, "%s: %s '%.*s' appears twice, as numbers %d and %d of %d", c->file->label,
                      c->subject, NAME_SHOWN, a->text, (a->i < b->i ? a->i : b->i) + 1, (a->i < b->i ? b->i : a->i) + 1,
                      names->n);
    }
    return TMX_OK;
}

int32_t gguf_names_find(const gguf_names *names, const char *text)
{
    const gguf_name wanted = { .text = text };
    if (names->n == 0) return -1;
    const gguf_name *found = bsearch(&wanted, names->sorted, (size_t)names->n, sizeof wanted, gguf_compare_names);
    return found != NULL ? found->i : -1;
}

/* ---------------------------------------------------------------- header */

/* Files that people hand over by mistake, by their first bytes. */
static const char *looks_like(const unsigned char *data, size_t n_bytes)
{
    static const struct { size_t at; const char *bytes; size_t n_bytes; const char *name; } kinds[] = {
#define STARTS(at, bytes, name) { at, bytes, sizeof(bytes) - 1, name }
        STARTS(0, "lmgg", "an old GGML model; convert it to GGUF"),
        STARTS(0, "fmgg", "an old GGMF model; convert it to GGUF"),
        STARTS(0, "tjgg", "an old GGJT model; convert it to GGUF"),
        STARTS(0, "FUGG", "a byte-swapped (big-endian) GGUF"),
        STARTS(0, "PK\3\4", "a zip archive, such as a PyTorch checkpoint"),
        STARTS(0, "\x80\2", "a Python pickle, such as an old PyTorch checkpoint"),
        STARTS(8, "{\"", "a safetensors file; convert it to GGUF"),
        STARTS(0, "\x7f" "ELF", "a program (ELF)"),
        STARTS(0, "version https://git-lfs", "a Git LFS pointer; the model itself was not downloaded (git lfs pull)"),
        STARTS(0, "<!DOCTYPE", "an HTML page; the download failed"),
        STARTS(0, "<!doctype", "an HTML page; the download failed"),
        STARTS(0, "<html", "an HTML page; the download failed"),
        STARTS(0, "\x1f\x8b", "a gzip archive"),
        STARTS(0, "\0\0\0\0", "a file of zeros; the download was not finished"),
#undef STARTS
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (n_bytes < kinds[i].at + kinds[i].n_bytes) continue;
        if (memcmp(data + kinds[i].at, kinds[i].bytes, kinds[i].n_bytes) == 0) return kinds[i].name;
    }
    return "no model format we know";
}

static tmx_status read_version(cursor *c, tmx_file *file)
{
    const size_t begin = c->at;
    uint32_t version;
    TRY(read_u32(c, "version", &version));
    if (version != 0 && (version & 0xffff) == 0) {
        return reject(c, begin, TMX_E_UNSUPPORTED, "version 0x%08x: a big-endian GGUF (version %u byte-swapped); "
                      "convert it to little-endian", version, __builtin_bswap32(version));
    }
    if (version != 2 && version != 3) {
        return reject(c, begin, TMX_E_UNSUPPORTED, "GGUF version %u, expected 2 or 3", version);
    }
    file->version = (int32_t)version;
    return TMX_OK;
}

static tmx_status read_count(cursor *c, const char *what, uint64_t limit, int32_t *n)
{
    const size_t begin = c->at;
    uint64_t count;
    TRY(read_u64(c, what, &count));
    if (count > limit) {
        return reject(c, begin, TMX_E_FORMAT, "%s %llu, the limit is %llu", what, (unsigned long long)count,
                      (unsigned long long)limit);
    }
    *n = (int32_t)count;
    return TMX_OK;
}

static tmx_status read_header(cursor *c, tmx_file *file)
{
    const unsigned char *magic;
    TRY(take(c, 4, "magic bytes", &magic));
    if (memcmp(magic, "GGUF", 4) != 0) {
        return refuse(c->err, TMX_E_FORMAT, "%s: not a GGUF file: begins with %02x %02x %02x %02x; looks like %s",
                      file->label, magic[0], magic[1], magic[2], magic[3], looks_like(file->data, file->n_bytes));
    }
    TRY(read_version(c, file));
    TRY(read_count(c, "tensor count", MAX_TENSORS, &file->n_tensors));
    TRY(read_count(c, "key count", MAX_KEYS, &file->n_keys));
    const uint64_t n_needed = (uint64_t)file->n_keys * MIN_KEY_BYTES + (uint64_t)file->n_tensors * MIN_TENSOR_BYTES;
    if (n_needed > bytes_left(c)) return truncated(c, "keys and tensors", n_needed);
    return TMX_OK;
}

/* ---------------------------------------------------------------- keys */

const value_kind value_kinds[N_VALUE_TYPES] = {
    [GGUF_U8] = { "u8", 1 },   [GGUF_I8] = { "i8", 1 },   [GGUF_U16] = { "u16", 2 }, [GGUF_I16] = { "i16", 2 },
    [GGUF_U32] = { "u32", 4 }, [GGUF_I32] = { "i32", 4 }, [GGUF_F32] = { "f32", 4 }, [GGUF_BOOL] = { "bool", 1 },
    [GGUF_STRING] = { "string", 0 }, [GGUF_ARRAY] = { "array", 0 },
    [GGUF_U64] = { "u64", 8 }, [GGUF_I64] = { "i64", 8 }, [GGUF_F64] = { "f64", 8 },
};

static tmx_status read_type(cursor *c, gguf_value_type *type)
{
    const size_t begin = c->at;
    uint32_t id;
    TRY(read_u32(c, "type", &id));
    if (id >= N_VALUE_TYPES) {
        return reject(c, begin, TMX_E_FORMAT, "value type %u, expected 0..%d", id, N_VALUE_TYPES - 1);
    }
    *type = (gguf_value_type)id;
    return TMX_OK;
}

static tmx_status check_bools(const cursor *c, const unsigned char *values, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (values[i] <= 1) continue;
        const size_t at = (size_t)(values + i - c->file->data);
        return reject(c, at, TMX_E_FORMAT, "bool holds %d, expected 0 or 1", values[i]);
    }
    return TMX_OK;
}

/* Walks the strings once to prove that they are there, then allocates the table and walks again. */
static tmx_status read_strings(cursor *c, gguf_array *array)
{
    const size_t begin = c->at;
    if (array->n * sizeof(uint64_t) > bytes_left(c)) return truncated(c, "strings", array->n * sizeof(uint64_t));
    gguf_string string;
    for (uint64_t i = 0; i < array->n; i++) TRY(read_string(c, "strings", &string));
    gguf_string *strings = mem_alloc((size_t)array->n, sizeof *strings);
    if (strings == NULL) {
        return reject(c, begin, TMX_E_MEMORY, "no memory for %llu strings", (unsigned long long)array->n);
    }
    array->strings = strings;
    c->at = begin;
    for (uint64_t i = 0; i < array->n; i++) TRY(read_string(c, "strings", &strings[i]));
    return TMX_OK;
}

static tmx_status read_array(cursor *c, gguf_array *array)
{
    const size_t begin = c->at;
    gguf_value_type type;
    TRY(read_type(c, &type));
    if (type == GGUF_ARRAY) return reject(c, begin, TMX_E_UNSUPPORTED, "an array of arrays");
    uint64_t n;
    TRY(read_u64(c, "element count", &n));
    if (n > MAX_ARRAY) {
        return reject(c, begin, TMX_E_FORMAT, "array of %llu elements, the limit is %d", (unsigned long long)n,
                      MAX_ARRAY);
    }
    array->type = type;
    array->n = n;
    array->data = c->file->data + c->at;
    if (type == GGUF_STRING) return read_strings(c, array);
    const unsigned char *values;
    TRY(take(c, n * value_kinds[type].n_bytes, "elements", &values));
    return type == GGUF_BOOL ? check_bools(c, values, (size_t)n) : TMX_OK;
}

static tmx_status read_value(cursor *c, gguf_key *key)
{
    gguf_value_type type;
    TRY(read_type(c, &type));
    key->type = type;              /* set before the value: closing the file frees the string table of an array */
    if (type == GGUF_STRING) return read_string(c, "value", &key->value.string);
    if (type == GGUF_ARRAY) return read_array(c, &key->value.array);
    const unsigned char *value;
    TRY(take(c, value_kinds[type].n_bytes, "value", &value));
    memcpy(&key->value.bits, value, value_kinds[type].n_bytes);
    return type == GGUF_BOOL ? check_bools(c, value, 1) : TMX_OK;
}

static void cursor_name(cursor *c, const char *subject, int32_t index, int32_t count)
{
    c->subject = subject;
    c->index = index;
    c->count = count;
    c->name = (gguf_string){ 0 };
}

static tmx_status read_keys(cursor *c, tmx_file *file)
{
    gguf_names *names = &file->key_names;
    file->keys = mem_alloc((size_t)file->n_keys, sizeof *file->keys);
    names->sorted = mem_alloc((size_t)file->n_keys, sizeof *names->sorted);
    if (file->keys == NULL || names->sorted == NULL) {
        return refuse(c->err, TMX_E_MEMORY, "%s: no memory for %d keys", file->label, file->n_keys);
    }
    for (int32_t i = 0; i < file->n_keys; i++) {
        gguf_string name;
        cursor_name(c, "key", i, file->n_keys);
        TRY(read_name(c, MAX_KEY_NAME, &name));
        TRY(read_value(c, &file->keys[i]));
        names->sorted[names->n++] = (gguf_name){ .text = name.data, .n_bytes = name.n_bytes, .i = i };
    }
    TRY(names_settle(c, names));
    for (int32_t i = 0; i < names->n; i++) file->keys[names->sorted[i].i].name = names->sorted[i].text;
    return TMX_OK;
}

/* ---------------------------------------------------------------- tensors */

static tmx_status read_alignment(const cursor *c, uint64_t *alignment)
{
    const int32_t i = gguf_names_find(&c->file->key_names, "general.alignment");
    *alignment = DEFAULT_ALIGNMENT;
    if (i < 0) return TMX_OK;
    const gguf_key *key = &c->file->keys[i];
    if (key->type != GGUF_U32) {
        return refuse(c->err, TMX_E_FORMAT, "%s: key 'general.alignment': type %s, expected u32", c->file->label,
                      value_kinds[key->type].name);
    }
    const uint64_t a = key->value.bits;
    if (a < MIN_ALIGNMENT || a > MAX_ALIGNMENT || (a & (a - 1)) != 0) {
        return refuse(c->err, TMX_E_FORMAT, "%s: key 'general.alignment': %llu, expected a power of two in %d..%d",
                      c->file->label, (unsigned long long)a, MIN_ALIGNMENT, MAX_ALIGNMENT);
    }
    *alignment = a;
    return TMX_OK;
}

static tmx_status read_shape(cursor *c, gguf_tensor *t, uint64_t *n_elements)
{
    size_t begin = c->at;
    uint32_t n_dims;
    TRY(read_u32(c, "number of dimensions", &n_dims));
    if (n_dims < 1 || n_dims > MAX_DIMS) {
        return reject(c, begin, TMX_E_FORMAT, "%u dimensions, expected 1..%d", n_dims, MAX_DIMS);
    }
    t->n_dims = (int32_t)n_dims;
    for (int32_t i = 0; i < MAX_DIMS; i++) t->shape[i] = 1;
    *n_elements = 1;
    for (uint32_t i = 0; i < n_dims; i++) {
        begin = c->at;
        uint64_t n;
        TRY(read_u64(c, "dimensions", &n));
        if (n < 1 || n > INT64_MAX) {
            return reject(c, begin, TMX_E_FORMAT, "dimension %u is %llu, expected 1..2^63-1", i, (unsigned long long)n);
        }
        if (!mul_ok(*n_elements, n, n_elements) || *n_elements > INT64_MAX) {
            return reject(c, begin, TMX_E_FORMAT, "the product of the dimensions is over 2^63-1");
        }
        t->shape[n_dims - 1 - i] = (int64_t)n;
    }
    return TMX_OK;
}

/* Leaves the offset relative to the tensor data: where that begins is known after the last record. */
static tmx_status read_tensor(cursor *c, gguf_tensor *t, uint64_t alignment)
{
    uint64_t n_elements;
    TRY(read_shape(c, t, &n_elements));
    const size_t type_begin = c->at;
    TRY(read_u32(c, "type", &t->type));
    const block_format *format = block_format_find(t->type);
    if (format == NULL) return reject(c, type_begin, TMX_E_UNSUPPORTED, "type %u not supported", t->type);
    const int64_t n_row = t->shape[t->n_dims - 1];
    if (n_row % format->n_elements != 0) {
        return reject(c, type_begin, TMX_E_FORMAT, "rows of %lld elements, expected a multiple of %d (type %s)",
                      (long long)n_row, format->n_elements, format->name);
    }
    if (!mul_ok(n_elements / (uint64_t)format->n_elements, (uint64_t)format->n_bytes, &t->n_bytes)) {
        return reject(c, type_begin, TMX_E_FORMAT, "%llu elements of type %s: their size in bytes is over 2^64-1",
                      (unsigned long long)n_elements, format->name);
    }
    const size_t offset_begin = c->at;
    TRY(read_u64(c, "offset", &t->offset_bytes));
    if (t->offset_bytes % alignment != 0) {
        return reject(c, offset_begin, TMX_E_FORMAT, "offset %llu, expected a multiple of the alignment %llu",
                      (unsigned long long)t->offset_bytes, (unsigned long long)alignment);
    }
    return TMX_OK;
}

static tmx_status read_tensors(cursor *c, tmx_file *file, uint64_t alignment)
{
    gguf_names *names = &file->tensor_names;
    file->tensors = mem_alloc((size_t)file->n_tensors, sizeof *file->tensors);
    names->sorted = mem_alloc((size_t)file->n_tensors, sizeof *names->sorted);
    if (file->tensors == NULL || names->sorted == NULL) {
        return refuse(c->err, TMX_E_MEMORY, "%s: no memory for %d tensors", file->label, file->n_tensors);
    }
    for (int32_t i = 0; i < file->n_tensors; i++) {
        gguf_string name;
        cursor_name(c, "tensor", i, file->n_tensors);
        TRY(read_name(c, GGUF_MAX_TENSOR_NAME, &name));
        TRY(read_tensor(c, &file->tensors[i], alignment));
        names->sorted[names->n++] = (gguf_name){ .text = name.data, .n_bytes = name.n_bytes, .i = i };
    }
    TRY(names_settle(c, names));
    for (int32_t i = 0; i < names->n; i++) file->tensors[names->sorted[i].i].name = names->sorted[i].text;
    return TMX_OK;
}

typedef struct span {
    uint64_t begin, end;
    const char *name;
} span;

static int by_begin(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static tmx_status check_overlap(const tmx_file *file, tmx_error *err)
{
    const size_t n = (size_t)file->n_tensors;
    span *spans = mem_alloc(n, sizeof *spans);
    if (spans == NULL) return refuse(err, TMX_E_MEMORY, "%s: no memory for %zu tensors", file->label, n);
    for (size_t i = 0; i < n; i++) {
        const gguf_tensor *t = &file->tensors[i];
        spans[i] = (span){ .begin = t->offset_bytes, .end = t->offset_bytes + t->n_bytes, .name = t->name };
    }
    qsort(spans, n, sizeof *spans, by_begin);
    tmx_status status = TMX_OK;
    for (size_t i = 1; i < n && status == TMX_OK; i++) {
        const span *a = &spans[i - 1], *b = &spans[i];
        if (b->begin >= a->end) continue;
        status = refuse(err, TMX_E_FORMAT, "%s: tensor '%s' at byte %llu overlaps '%s', which ends at byte %llu",
                        file->label, b->name, (unsigned long long)b->begin, a->name, (unsigned long long)a->end);
    }
    mem_free(spans);
    return status;
}

static tmx_status place_tensors(const cursor *c, tmx_file *file, uint64_t alignment)
{
    const size_t begin = align_up(c->at, (size_t)alignment);
    file->data_begin = begin < file->n_bytes ? begin : file->n_bytes;
    for (int32_t i = 0; i < file->n_tensors; i++) {
        gguf_tensor *t = &file->tensors[i];
        uint64_t end;
        if (!add_ok(begin, t->offset_bytes, &t->offset_bytes) || !add_ok(t->offset_bytes, t->n_bytes, &end)) {
            return refuse(c->err, TMX_E_FORMAT, "%s: tensor '%s': offset + size is over 2^64-1", file->label, t->name);
        }
        if (end > file->n_bytes) {
            return refuse(c->err, TMX_E_FORMAT, "%s: truncated at byte %zu while reading the data of tensor '%s': "
                          "bytes %llu to %llu", file->label, file->n_bytes, t->name,
                          (unsigned long long)t->offset_bytes, (unsigned long long)end);
        }
        t->data = file->data + t->offset_bytes;
    }
    return check_overlap(file, c->err);
}

/* ---------------------------------------------------------------- open and close */

static tmx_status read_file(tmx_file *file, tmx_error *err)
{
    cursor c = { .file = file, .err = err };
    uint64_t alignment;
    TRY(read_header(&c, file));
    TRY(read_keys(&c, file));
    TRY(read_alignment(&c, &alignment));
    TRY(read_tensors(&c, file, alignment));
    return place_tensors(&c, file, alignment);
}

/* The end of a long path says more than its beginning. */
static void label_set(char label[LABEL_BYTES + 1], const char *path)
{
    const size_t n = strlen(path);
    if (n <= LABEL_BYTES) memcpy(label, path, n + 1);
    else snprintf(label, LABEL_BYTES + 1, "...%s", path + n - (LABEL_BYTES - 3));
}

/* Takes the mapping over, also on failure. */
static tmx_status open_bytes(tmx_file **file, const void *data, size_t n_bytes, bool is_mapped, const char *path,
                             tmx_error *err)
{
    tmx_file *f = mem_alloc(1, sizeof *f);
    if (f == NULL) {
        if (is_mapped) munmap((void *)(uintptr_t)data, n_bytes);
        return refuse(err, TMX_E_MEMORY, "no memory to open a file");
    }
    f->data = data;
    f->n_bytes = n_bytes;
    f->is_mapped = is_mapped;
    f->n_parts = 1;
    label_set(f->label, path);
    const tmx_status status = read_file(f, err);
    if (status == TMX_OK) *file = f;
    else tmx_file_close(f);
    return status;
}

tmx_status gguf_open_memory(tmx_file **file, const void *data, size_t n_bytes, const char *name, tmx_error *err)
{
    if (file == NULL || name == NULL || (data == NULL && n_bytes != 0)) {
        return refuse(err, TMX_E_ARG, "gguf_open_memory: NULL argument");
    }
    return open_bytes(file, data, n_bytes, false, name, err);
}

static const char *file_kind(mode_t mode)
{
    if (S_ISDIR(mode)) return "a directory";
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISSOCK(mode)) return "a socket";
    return "a device";
}

static tmx_status map_file(const char *path, const char *label, const void **data, size_t *n_bytes, tmx_error *err)
{
    /* O_NONBLOCK: opening a pipe that nobody writes must not wait; it changes nothing for a regular file. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return refuse(err, TMX_E_IO, "%s: cannot open: %s", label, strerror(errno));
    tmx_status status = TMX_OK;
    struct stat info;
    if (fstat(fd, &info) != 0) {
        status = refuse(err, TMX_E_IO, "%s: cannot stat: %s", label, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        status = refuse(err, TMX_E_IO, "%s: is %s, expected a regular file", label, file_kind(info.st_mode));
    } else if (info.st_size == 0) {
        status = refuse(err, TMX_E_FORMAT, "%s: truncated at byte 0 while reading the magic bytes: the file is empty",
                        label);
    } else {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) status = refuse(err, TMX_E_IO, "%s: cannot map: %s", label, strerror(errno));
        *data = map;
        *n_bytes = (size_t)info.st_size;
    }
    close(fd);
    return status;
}

tmx_status gguf_open_path(tmx_file **file, const char *path, tmx_error *err)
{
    char label[LABEL_BYTES + 1];
    const void *data;
    size_t n_bytes;
    label_set(label, path);
    TRY(map_file(path, label, &data, &n_bytes, err));
    return open_bytes(file, data, n_bytes, true, path, err);
}

void tmx_file_close(tmx_file *file)
{
    if (file == NULL) return;
    for (int32_t k = 1; k < file->n_parts; k++) tmx_file_close(file->parts[k]);
    mem_free(file->parts);
    for (int32_t i = 0; i < file->n_keys && file->keys != NULL; i++) {
        const gguf_key *key = &file->keys[i];
        if (key->type == GGUF_ARRAY) mem_free((void *)(uintptr_t)key->value.array.strings);
    }
    mem_free(file->keys);
    mem_free(file->tensors);
    mem_free(file->key_names.sorted);
    mem_free(file->key_names.arena);
    mem_free(file->tensor_names.sorted);
    mem_free(file->tensor_names.arena);
    if (file->is_mapped) munmap((void *)(uintptr_t)file->data, file->n_bytes);
    mem_free(file);
}

const char *gguf_label(const tmx_file *file) { return file->label; }
int32_t tmx_file_version(const tmx_file *file) { return file != NULL ? file->version : 0; }

uint64_t tmx_file_bytes(const tmx_file *file)
{
    uint64_t n = file != NULL ? file->n_bytes : 0;
    for (int32_t k = 1; file != NULL && k < file->n_parts; k++) n += file->parts[k]->n_bytes;
    return n;
}
