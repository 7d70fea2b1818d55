/* rooms: gguf */
/* Bytes -> a model file.  Either it is refused with a text, or everything a reader may ask about it stays inside it. */
#include "gguf/blocks.h"
#include "gguf/gguf.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool holds) { if (!holds) abort(); }

static void walk_key(const tmx_file *file, int32_t i)
{
    const char *key = tmx_file_key(file, i);
    char text[100];
    for (size_t size = 1; size <= sizeof text; size += 33) {
        require(strlen(tmx_file_value_text(file, i, text, size)) < size);
    }
    uint32_t u;
    float f;
    bool b;
    gguf_string s;
    gguf_array array;
    int n_kinds = 0;
    n_kinds += gguf_get_u32(file, key, &u, NULL) == TMX_OK;
    n_kinds += gguf_get_f32(file, key, &f, NULL) == TMX_OK;
    n_kinds += gguf_get_bool_or(file, key, false, &b, NULL) == TMX_OK;
    n_kinds += gguf_get_string(file, key, &s, NULL) == TMX_OK;
    for (int type = GGUF_U8; type <= GGUF_F64; type++) {
        if (gguf_get_array(file, key, (gguf_value_type)type, &array, NULL) != TMX_OK) continue;
        n_kinds++;
        for (uint64_t k = 0; k < array.n; k++) {
            if (type == GGUF_STRING && array.strings[k].n_bytes > 0) (void)*(const volatile char *)array.strings[k].data;
            if (type == GGUF_F32) gguf_array_f32(&array, k);
            if (type == GGUF_I32 || type == GGUF_U32) gguf_array_i32(&array, k);
        }
    }
    require(gguf_has(file, key) && n_kinds <= 1);
}

static void walk_tensor(const tmx_file *file, int32_t i, const uint8_t *data, size_t n_bytes)
{
    tmx_tensor_info info;
    require(tmx_file_tensor(file, i, &info, NULL) == TMX_OK);
    const gguf_tensor *t = gguf_tensor_find(file, info.name);
    require(t == gguf_tensor_at(file, i) && t->data == data + t->offset_bytes);
    require(t->offset_bytes <= n_bytes && t->n_bytes <= n_bytes - t->offset_bytes);
    uint64_t n_elements = 1;
    for (int32_t d = 0; d < t->n_dims; d++) n_elements *= (uint64_t)t->shape[d];
    require(block_row_bytes(block_format_find(t->type), n_elements) == t->n_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    tmx_file *file = NULL;
    tmx_error err = { 0 };
    const tmx_status status = gguf_open_memory(&file, data, n_bytes, "fuzz.gguf", &err);
    if (status != TMX_OK) {
        require(file == NULL && err.code == status && strncmp(err.text, "fuzz.gguf: ", 11) == 0);
        return 0;
    }
    for (int32_t i = 0; i < tmx_file_n_keys(file); i++) walk_key(file, i);
    for (int32_t i = 0; i < tmx_file_n_tensors(file); i++) walk_tensor(file, i, data, n_bytes);
    char hex[65];
    gguf_fingerprint(file, hex);
    tmx_file_check_tensors(file, &err);
    tmx_file_close(file);
    return 0;
}
