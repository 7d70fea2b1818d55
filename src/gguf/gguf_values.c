/* gguf_values.c - metadata out of an open file: typed getters, which refuse what is not of the kind asked for, and
 * values as text for people. */
#include "gguf/gguf_file.h"

#include "base/status.h"

#include <assert.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int32_t tmx_file_n_keys(const tmx_file *file) { return file != NULL ? file->n_keys : 0; }

const char *tmx_file_key(const tmx_file *file, int32_t i)
{
    return i >= 0 && i < tmx_file_n_keys(file) ? file->keys[i].name : NULL;
}

/* ---------------------------------------------------------------- getters */

static const gguf_key *key_find(const tmx_file *file, const char *name)
{
    const int32_t i = gguf_names_find(&file->key_names, name);
    return i >= 0 ? &file->keys[i] : NULL;
}

static tmx_status key_get(const tmx_file *file, const char *name, const gguf_key **key, tmx_error *err)
{
    *key = key_find(file, name);
    if (*key == NULL) return refuse(err, TMX_E_FORMAT, "%s: key '%.*s' is missing", file->label, NAME_SHOWN, name);
    return TMX_OK;
}

static tmx_status wrong_kind(const tmx_file *file, const gguf_key *key, const char *expected, tmx_error *err)
{
    const bool is_array = key->type == GGUF_ARRAY;
    const char *found = value_kinds[is_array ? key->value.array.type : key->type].name;
    return refuse(err, TMX_E_FORMAT, "%s: key '%.*s': type %s%s, expected %s", file->label, NAME_SHOWN, key->name,
                  is_array ? "array of " : "", found, expected);
}

static bool is_signed(gguf_value_type type)
{
    return type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
}

static int64_t sign_extend(gguf_value_type type, uint64_t bits)
{
    const unsigned n_unused = 64 - 8 * (unsigned)value_kinds[type].n_bytes;
    return (int64_t)(bits << n_unused) >> n_unused;
}

bool gguf_has(const tmx_file *file, const char *key) { return key_find(file, key) != NULL; }

bool gguf_is_array(const tmx_file *file, const char *key)
{
    const gguf_key *k = key_find(file, key);
    return k != NULL && k->type == GGUF_ARRAY;
}

tmx_status gguf_get_u32(const tmx_file *file, const char *key, uint32_t *value, tmx_error *err)
{
    const gguf_key *k;
    TRY(key_get(file, key, &k, err));
    switch (k->type) {
    case GGUF_U8: case GGUF_U16: case GGUF_U32: case GGUF_U64: break;
    case GGUF_I32:
        if (sign_extend(GGUF_I32, k->value.bits) >= 0) break;
        return refuse(err, TMX_E_FORMAT, "%s: key '%.*s': %" PRId64 ", expected 0..4294967295", file->label, NAME_SHOWN,
                      k->name, sign_extend(GGUF_I32, k->value.bits));
    default: return wrong_kind(file, k, "u32", err);
    }
    if (k->value.bits > UINT32_MAX) {
        return refuse(err, TMX_E_FORMAT, "%s: key '%.*s': %" PRIu64 ", expected 0..4294967295", file->label, NAME_SHOWN,
                      k->name, k->value.bits);
    }
    *value = (uint32_t)k->value.bits;
    return TMX_OK;
}

tmx_status gguf_get_u32_or(const tmx_file *file, const char *key, uint32_t fallback, uint32_t *value, tmx_error *err)
{
    if (gguf_has(file, key)) return gguf_get_u32(file, key, value, err);
    *value = fallback;
    return TMX_OK;
}

static double f64_of(gguf_value_type type, uint64_t bits)
{
    double wide;
    float narrow;
    memcpy(&wide, &bits, sizeof wide);
    memcpy(&narrow, &bits, sizeof narrow);
    return type == GGUF_F64 ? wide : (double)narrow;
}

tmx_status gguf_get_f32(const tmx_file *file, const char *key, float *value, tmx_error *err)
{
    const gguf_key *k;
    TRY(key_get(file, key, &k, err));
    if (k->type != GGUF_F32 && k->type != GGUF_F64) return wrong_kind(file, k, "f32", err);
    const double v = f64_of(k->type, k->value.bits);
    if (isfinite(v) && fabs(v) > (double)FLT_MAX) {
        return refuse(err, TMX_E_FORMAT, "%s: key '%.*s': %g does not fit f32", file->label, NAME_SHOWN, k->name, v);
    }
    *value = (float)v;
    return TMX_OK;
}

tmx_status gguf_get_f32_or(const tmx_file *file, const char *key, float fallback, float *value, tmx_error *err)
{
    if (gguf_has(file, key)) return gguf_get_f32(file, key, value, err);
    *value = fallback;
    return TMX_OK;
}

tmx_status gguf_get_bool_or(const tmx_file *file, const char *key, bool fallback, bool *value, tmx_error *err)
{
    const gguf_key *k = key_find(file, key);
    if (k != NULL && k->type != GGUF_BOOL) return wrong_kind(file, k, "bool", err);
    *value = k != NULL ? k->value.bits != 0 : fallback;
    return TMX_OK;
}

tmx_status gguf_get_string(const tmx_file *file, const char *key, gguf_string *value, tmx_error *err)
{
    const gguf_key *k;
    TRY(key_get(file, key, &k, err));
    if (k->type != GGUF_STRING) return wrong_kind(file, k, "string", err);
    *value = k->value.string;
    return TMX_OK;
}

tmx_status gguf_get_array(const tmx_file *file, const char *key, gguf_value_type type, gguf_array *value,
                          tmx_error *err)
{
    const gguf_key *k;
    TRY(key_get(file, key, &k, err));
    if (k->type != GGUF_ARRAY || k->value.array.type != type) {
        char expected[32];
        snprintf(expected, sizeof expected, "array of %s", value_kinds[type].name);
        return wrong_kind(file, k, expected, err);
    }
    *value = k->value.array;
    return TMX_OK;
}

float gguf_array_f32(const gguf_array *array, uint64_t i)
{
    assert(array->type == GGUF_F32 && i < array->n);
    float value;
    memcpy(&value, array->data + i * sizeof value, sizeof value);
    return value;
}

int32_t gguf_array_i32(const gguf_array *array, uint64_t i)
{
    assert((array->type == GGUF_I32 || array->type == GGUF_U32) && i < array->n);
    int32_t value;
    memcpy(&value, array->data + i * sizeof value, sizeof value);
    return value;
}

/* ---------------------------------------------------------------- text */

enum { N_SHOWN_ELEMENTS = 8, NUMBER_BYTES = 32 };

static const char ellipsis[] = "...";

typedef struct text_buffer {
    char *bytes;
    size_t size, used;             /* used < size */
    bool is_cut;                   /* something did not fit; nothing more is added */
} text_buffer;

/* All of the piece or nothing, keeping room for the ellipsis. */
static void text_add(text_buffer *text, const char *piece, size_t n_bytes)
{
    if (text->is_cut || n_bytes + sizeof ellipsis > text->size - text->used) {
        text->is_cut = true;
        return;
    }
    memcpy(text->bytes + text->used, piece, n_bytes);
    text->used += n_bytes;
}

static void text_end(text_buffer *text)
{
    if (text->is_cut) {
        const size_t n_left = text->size - 1 - text->used, n_dots = sizeof ellipsis - 1;
        const size_t n = n_left < n_dots ? n_left : n_dots;
        memcpy(text->bytes + text->used, ellipsis, n);
        text->used += n;
    }
    text->bytes[text->used] = '\0';
}

/* Bytes of the UTF-8 character at s, or 0: broken, overlong, a surrogate, or a control character. */
static size_t utf8_printable(const unsigned char *s, size_t n)
{
    if (s[0] < 0x80) return s[0] >= 0x20 && s[0] != 0x7f;
    const size_t n_char = s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                        : s[0] >= 0xf0 && s[0] < 0xf5 ? 4 : 0;
    if (n_char == 0 || n_char > n) return 0;
    uint32_t code = s[0] & (0xffu >> (n_char + 1));
    for (size_t i = 1; i < n_char; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        code = code << 6 | (s[i] & 0x3fu);
    }
    static const uint32_t smallest[] = { 0, 0, 0xa0, 0x800, 0x10000 };    /* 0x80..0x9f are controls */
    if (code < smallest[n_char] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return 0;
    return n_char;
}

/* What a terminal would act on, and what is no text, comes out as an escape. */
static void text_add_escaped(text_buffer *text, const gguf_string *s)
{
    const unsigned char *bytes = (const unsigned char *)s->data;
    for (size_t i = 0; i < s->n_bytes && !text->is_cut;) {
        const size_t n_char = utf8_printable(bytes + i, s->n_bytes - i);
        if (n_char != 0 && bytes[i] != '\\') {
            text_add(text, s->data + i, n_char);
            i += n_char;
            continue;
        }
        char hex[8];
        snprintf(hex, sizeof hex, "\\x%02x", bytes[i]);
        const char *escape = bytes[i] == '\n' ? "\\n" : bytes[i] == '\t' ? "\\t" : bytes[i] == '\\' ? "\\\\" : hex;
        text_add(text, escape, strlen(escape));
        i++;
    }
}

/* The fewest digits that read back as the same number, but 7, so that 1000000 is not written 1e+06. */
static void float_text(char number[NUMBER_BYTES], gguf_value_type type, double value)
{
    for (int n_digits = 7; n_digits <= 17; n_digits++) {
        snprintf(number, NUMBER_BYTES, "%.*g", n_digits, value);
        const double back = type == GGUF_F32 ? (double)strtof(number, NULL) : strtod(number, NULL);
        if (back == value || isnan(value)) return;
    }
}

static void text_add_scalar(text_buffer *text, gguf_value_type type, uint64_t bits)
{
    char number[NUMBER_BYTES];
    if (type == GGUF_BOOL) snprintf(number, sizeof number, "%s", bits != 0 ? "true" : "false");
    else if (type == GGUF_F32 || type == GGUF_F64) float_text(number, type, f64_of(type, bits));
    else if (is_signed(type)) snprintf(number, sizeof number, "%" PRId64, sign_extend(type, bits));
    else snprintf(number, sizeof number, "%" PRIu64, bits);
    text_add(text, number, strlen(number));
}

/* [49152 strings: "a", "b", ...] */
static void text_add_array(text_buffer *text, const gguf_array *array)
{
    char head[64];
    const int n_head = snprintf(head, sizeof head, "[%" PRIu64 " %s%s%s", array->n, value_kinds[array->type].name,
                                array->strings != NULL && array->n != 1 ? "s" : "", array->n != 0 ? ": " : "");
    text_add(text, head, (size_t)n_head);
    for (uint64_t i = 0; i < array->n && i < N_SHOWN_ELEMENTS && !text->is_cut; i++) {
        if (i > 0) text_add(text, ", ", 2);
        if (array->strings != NULL) {
            text_add(text, "\"", 1);
            text_add_escaped(text, &array->strings[i]);
            text_add(text, "\"", 1);
        } else {
            const size_t n_bytes = value_kinds[array->type].n_bytes;
            uint64_t bits = 0;
            memcpy(&bits, array->data + i * n_bytes, n_bytes);
            text_add_scalar(text, array->type, bits);
        }
    }
    if (array->n > N_SHOWN_ELEMENTS) text_add(text, ", ...", 5);
    text_add(text, "]", 1);
}

const char *tmx_file_value_text(const tmx_file *file, int32_t i, char *buf, size_t size)
{
    if (buf == NULL || size == 0) return buf;
    text_buffer text = { .bytes = buf, .size = size };
    if (i >= 0 && i < tmx_file_n_keys(file)) {
        const gguf_key *key = &file->keys[i];
        if (key->type == GGUF_STRING) text_add_escaped(&text, &key->value.string);
        else if (key->type == GGUF_ARRAY) text_add_array(&text, &key->value.array);
        else text_add_scalar(&text, key->type, key->value.bits);
    }
    text_end(&text);
    return buf;
}
