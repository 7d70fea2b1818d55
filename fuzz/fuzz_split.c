/* rooms: gguf */
/* Bytes -> two parts of a model, u16 length of the first in front.  Either a part or their joining is refused with a text, or
 * every tensor lies inside its part and is found by its name. */
#include "gguf/gguf.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool holds) { if (!holds) abort(); }

static void walk(const tmx_file *file, const uint8_t *const data[2], const size_t n_bytes[2])
{
    char hex[65];
    int32_t n_tensors = 0;
    require(tmx_file_n_parts(file) == 2 && tmx_file_bytes(file) == n_bytes[0] + n_bytes[1]);
    for (int32_t k = 0; k < 2; k++) {
        tmx_part_info part;
        require(tmx_file_part(file, k, &part, NULL) == TMX_OK && part.n_bytes == n_bytes[k]);
        n_tensors += part.n_tensors;
    }
    require(n_tensors == tmx_file_n_tensors(file));
    for (int32_t i = 0; i < n_tensors; i++) {
        const gguf_tensor *t = gguf_tensor_at(file, i);
        require(gguf_tensor_find(file, t->name) == t && t->part >= 0 && t->part < 2);
        require(t->data == data[t->part] + t->offset_bytes && t->n_bytes <= n_bytes[t->part] - t->offset_bytes);
    }
    gguf_fingerprint(file, hex);
    tmx_file_check_tensors(file, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    if (n_bytes < 2) return 0;
    size_t n_first = data[0] | (size_t)data[1] << 8;
    if (n_first > n_bytes - 2) n_first = n_bytes - 2;
    const uint8_t *const starts[2] = { data + 2, data + 2 + n_first };
    const size_t sizes[2] = { n_first, n_bytes - 2 - n_first };
    tmx_file *parts[2] = { NULL, NULL }, *file = NULL;
    tmx_error err = { 0 };
    tmx_status status = gguf_open_memory(&parts[0], starts[0], sizes[0], "a.gguf", &err);
    if (status == TMX_OK) status = gguf_open_memory(&parts[1], starts[1], sizes[1], "b.gguf", &err);
    if (status == TMX_OK) status = gguf_join(&file, parts, 2, &err);
    if (status == TMX_OK) {
        walk(file, starts, sizes);
        tmx_file_close(file);
        return 0;
    }
    require(file == NULL && err.code == status && (err.text[0] == 'a' || err.text[0] == 'b'));
    tmx_file_close(parts[0]);
    tmx_file_close(parts[1]);
    return 0;
}
