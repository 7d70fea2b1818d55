/* gguf_tensors.c - questions about the tensors of an open file: the table, a scan for NaN, the fingerprint. */
#include "gguf/gguf_file.h"

#include "base/num.h"
#include "base/sha256.h"
#include "base/status.h"
#include "gguf/blocks.h"

#include <math.h>
#include <string.h>

enum {
    FINGERPRINT_SAMPLE = 4096,     /* bytes of each tensor */
    CHECK_ELEMENTS = 4096,         /* expanded at once: a multiple of every block, 16 KiB on the stack */
};

int32_t tmx_file_n_tensors(const tmx_file *file) { return file != NULL ? file->n_tensors : 0; }

const gguf_tensor *gguf_tensor_at(const tmx_file *file, int32_t i)
{
    return i >= 0 && i < file->n_tensors ? &file->tensors[i] : NULL;
}

const gguf_tensor *gguf_tensor_find(const tmx_file *file, const char *name)
{
    return gguf_tensor_at(file, gguf_names_find(&file->tensor_names, name));
}

void gguf_tensor_overlay(tmx_file *file, int32_t i, uint32_t type, const void *data)
{
    gguf_tensor *t = &file->tensors[i];
    const block_format *before = block_format_find(t->type), *after = block_format_find(type);
    t->n_bytes = block_row_bytes(after, (size_t)(t->n_bytes / (uint64_t)before->n_bytes) * (size_t)before->n_elements);
    t->type = type;
    t->data = data;
}

tmx_status tmx_file_tensor(const tmx_file *file, int32_t i, tmx_tensor_info *info, tmx_error *err)
{
    if (file == NULL || info == NULL) return refuse(err, TMX_E_ARG, "tmx_file_tensor: NULL argument");
    const gguf_tensor *t = gguf_tensor_at(file, i);
    if (t == NULL) {
        return refuse(err, TMX_E_ARG, "%s: tensor %d is out of range 0..%d", file->label, i, file->n_tensors - 1);
    }
    const block_format *format = block_format_find(t->type);
    *info = (tmx_tensor_info){
        .name = t->name, .type_name = format->name, .n_dims = t->n_dims,
        .n_bytes = t->n_bytes, .offset_bytes = t->offset_bytes, .part = t->part, .is_supported = format->to_f32 != NULL,
    };
    memcpy(info->shape, t->shape, sizeof info->shape);
    return TMX_OK;
}

/* First element that is NaN or infinite, or n.  An infinite or NaN scale times any q is infinite or NaN, so looking at
 * the expanded values covers the scales too. */
static size_t first_not_finite(const float *x, size_t n)
{
    uint32_t n_bad = 0;
    for (size_t i = 0; i < n; i++) n_bad += (f32_to_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
    if (n_bad == 0) return n;
    size_t i = 0;
    while (isfinite(x[i])) i++;
    return i;
}

static const char *part_label(const tmx_file *file, const gguf_tensor *t)
{
    return t->part > 0 ? file->parts[t->part]->label : file->label;
}

static tmx_status check_tensor(const tmx_file *file, const gguf_tensor *t, const block_format *format, tmx_error *err)
{
    float x[CHECK_ELEMENTS];
    const unsigned char *blocks = t->data;
    const uint64_t n_elements = t->n_bytes / (uint64_t)format->n_bytes * (uint64_t)format->n_elements;
    for (uint64_t at = 0; at < n_elements; at += CHECK_ELEMENTS) {
        const size_t n = n_elements - at < CHECK_ELEMENTS ? (size_t)(n_elements - at) : CHECK_ELEMENTS;
        format->to_f32(blocks, x, n);
        const size_t bad = first_not_finite(x, n);
        if (bad < n) {
            const uint64_t block_begin = t->offset_bytes
                + (uint64_t)(blocks - (const unsigned char *)t->data) + block_row_bytes(format, bad);
            return refuse(err, TMX_E_NUMERIC, "%s: tensor '%s' (%s): element %llu, block at byte %llu: %s",
                          part_label(file, t), t->name, format->name, (unsigned long long)(at + bad),
                          (unsigned long long)block_begin, isnan(x[bad]) ? "NaN" : "infinity");
        }
        blocks += block_row_bytes(format, n);
    }
    return TMX_OK;
}

tmx_status tmx_file_check_tensors(const tmx_file *file, tmx_error *err)
{
    if (file == NULL) return refuse(err, TMX_E_ARG, "tmx_file_check_tensors: NULL argument");
    const gguf_tensor *unchecked = NULL;
    for (int32_t i = 0; i < file->n_tensors; i++) {
        const gguf_tensor *t = &file->tensors[i];
        const block_format *format = block_format_find(t->type);
        if (format->to_f32 != NULL) TRY(check_tensor(file, t, format, err));
        else if (unchecked == NULL && (t->type < BLOCK_I8 || t->type > BLOCK_I64)) unchecked = t;
    }
    if (unchecked == NULL) return TMX_OK;
    return refuse(err, TMX_E_UNSUPPORTED, "%s: tensor '%s': cannot look into type %s", part_label(file, unchecked), unchecked->name,
                  block_format_find(unchecked->type)->name);
}

void gguf_fingerprint(const tmx_file *file, char hex[65])
{
    sha256 s;
    sha256_init(&s);
    sha256_add(&s, file->data, file->data_begin);
    for (int32_t k = 1; k < file->n_parts; k++) sha256_add(&s, file->parts[k]->data, file->parts[k]->data_begin);
    for (int32_t i = 0; i < file->n_tensors; i++) {
        const gguf_tensor *t = &file->tensors[i];
        sha256_add(&s, t->data, t->n_bytes < FINGERPRINT_SAMPLE ? (size_t)t->n_bytes : FINGERPRINT_SAMPLE);
    }
    sha256_hex(&s, hex);
}
