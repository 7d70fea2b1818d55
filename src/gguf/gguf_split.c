/* gguf_split.c - models cut into several files.  Part k of N is named NAME-0000k-of-0000N.gguf, counted from 1, and says
 * so in split.no (counted from 0) and split.count; split.tensors.count is the number of tensors in all of them.  The first
 * part holds the metadata. */
#include "gguf/gguf_file.h"

#include "base/mem.h"
#include "base/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PARTS = 1024, SUFFIX_BYTES = 32 };

static const char key_no[] = "split.no", key_count[] = "split.count", key_tensors[] = "split.tensors.count";

/* count 1: not split, whatever else the file says. */
static tmx_status read_split(const tmx_file *file, uint32_t *no, uint32_t *count, tmx_error *err)
{
    *no = 0;
    TRY(gguf_get_u32_or(file, key_count, 1, count, err));
    if (*count <= 1) {
        *count = 1;
        return TMX_OK;
    }
    if (*count > MAX_PARTS) return refuse(err, TMX_E_FORMAT, "%s: %s %u, the limit is %d", file->label, key_count, *count, MAX_PARTS);
    TRY(gguf_get_u32(file, key_no, no, err));
    if (*no < *count) return TMX_OK;
    return refuse(err, TMX_E_FORMAT, "%s: %s %u, expected 0..%u", file->label, key_no, *no, *count - 1);
}

/* ---------------------------------------------------------------- joining */

static bool is_same_array(const gguf_array *a, const gguf_array *b)
{
    if (a->type != b->type || a->n != b->n) return false;
    if (a->type != GGUF_STRING) return a->n == 0 || memcmp(a->data, b->data, (size_t)a->n * value_kinds[a->type].n_bytes) == 0;
    for (uint64_t i = 0; i < a->n; i++) {
        const gguf_string *x = &a->strings[i], *y = &b->strings[i];
        if (x->n_bytes != y->n_bytes || (x->n_bytes > 0 && memcmp(x->data, y->data, x->n_bytes) != 0)) return false;
    }
    return true;
}

static bool is_same_value(const gguf_key *a, const gguf_key *b)
{
    if (a->type != b->type) return false;
    if (a->type == GGUF_ARRAY) return is_same_array(&a->value.array, &b->value.array);
    if (a->type != GGUF_STRING) return a->value.bits == b->value.bits;
    const gguf_string *x = &a->value.string, *y = &b->value.string;
    return x->n_bytes == y->n_bytes && (x->n_bytes == 0 || memcmp(x->data, y->data, x->n_bytes) == 0);
}

/* A later part need not repeat a key, but it must not contradict one. */
static tmx_status check_part(const tmx_file *first, const tmx_file *part, uint32_t no_expected, uint32_t count_expected, tmx_error *err)
{
    uint32_t no, count;
    TRY(read_split(part, &no, &count, err));
    if (no != no_expected || count != count_expected) {
        return refuse(err, TMX_E_FORMAT, "%s: is part %u of %u by its keys, expected part %u of %u", part->label, no + 1, count,
                      no_expected + 1, count_expected);
    }
    for (int32_t i = 0; i < part->n_keys; i++) {
        const gguf_key *key = &part->keys[i];
        const int32_t at = gguf_names_find(&first->key_names, key->name);
        if (at < 0 || strcmp(key->name, key_no) == 0 || is_same_value(key, &first->keys[at])) continue;
        return refuse(err, TMX_E_FORMAT, "%s: key '%.*s' has another value than in part 1; is it a part of another model?", part->label,
                      NAME_SHOWN, key->name);
    }
    return TMX_OK;
}

/* One table for all tensors, in the order of the parts. */
static tmx_status join_tensors(tmx_file *const *parts, int32_t n_parts, int32_t n_tensors, gguf_tensor *tensors, gguf_name *sorted,
                               tmx_error *err)
{
    int32_t n = 0;
    for (int32_t k = 0; k < n_parts; k++) {
        for (int32_t i = 0; i < parts[k]->n_tensors; i++, n++) {
            tensors[n] = parts[k]->tensors[i];
            tensors[n].part = k;
            sorted[n] = (gguf_name){ .text = tensors[n].name, .n_bytes = strlen(tensors[n].name), .i = n };
        }
    }
    qsort(sorted, (size_t)n_tensors, sizeof *sorted, gguf_compare_names);
    for (int32_t i = 1; i < n_tensors; i++) {
        const gguf_tensor *a = &tensors[sorted[i - 1].i], *b = &tensors[sorted[i].i];
        if (strcmp(a->name, b->name) != 0) continue;
        return refuse(err, TMX_E_FORMAT, "%s: tensor '%.*s' is in part %d and in part %d", parts[0]->label, NAME_SHOWN, a->name,
                      (a->part < b->part ? a->part : b->part) + 1, (a->part < b->part ? b->part : a->part) + 1);
    }
    return TMX_OK;
}

static tmx_status count_tensors(tmx_file *const *parts, int32_t n_parts, int32_t *n_tensors, tmx_error *err)
{
    uint32_t n_said;
    int64_t n = 0;
    for (int32_t k = 0; k < n_parts; k++) n += parts[k]->n_tensors;
    TRY(gguf_get_u32(parts[0], key_tensors, &n_said, err));
    if (n_said != n) {
        return refuse(err, TMX_E_FORMAT, "%s: %s %u, but the %d parts hold %lld tensors", parts[0]->label, key_tensors, n_said, n_parts,
                      (long long)n);
    }
    if (n > MAX_TENSORS) {
        return refuse(err, TMX_E_FORMAT, "%s: the parts hold %lld tensors, the limit is %d", parts[0]->label, (long long)n, MAX_TENSORS);
    }
    *n_tensors = (int32_t)n;
    return TMX_OK;
}

tmx_status gguf_join(tmx_file **file, tmx_file *const *parts, int32_t n_parts, tmx_error *err)
{
    int32_t n_tensors;
    for (int32_t k = 0; k < n_parts; k++) TRY(check_part(parts[0], parts[k], (uint32_t)k, (uint32_t)n_parts, err));
    TRY(count_tensors(parts, n_parts, &n_tensors, err));
    tmx_file **owned = mem_alloc((size_t)n_parts, sizeof(tmx_file *));
    gguf_tensor *tensors = mem_alloc((size_t)n_tensors, sizeof *tensors);
    gguf_name *sorted = mem_alloc((size_t)n_tensors, sizeof *sorted);
    tmx_status status = TMX_OK;
    if (owned == NULL || tensors == NULL || sorted == NULL) {
        status = refuse(err, TMX_E_MEMORY, "%s: no memory for %d tensors", parts[0]->label, n_tensors);
    }
    if (status == TMX_OK) status = join_tensors(parts, n_parts, n_tensors, tensors, sorted, err);
    if (status != TMX_OK) {
        mem_free(owned);
        mem_free(tensors);
        mem_free(sorted);
        return status;
    }
    tmx_file *first = parts[0];
    for (int32_t k = 0; k < n_parts; k++) owned[k] = parts[k];
    mem_free(first->tensors);      /* the names stay in their parts' arenas */
    mem_free(first->tensor_names.sorted);
    first->tensors = tensors;
    first->n_tensors = n_tensors;
    first->tensor_names.sorted = sorted;
    first->tensor_names.n = n_tensors;
    first->parts = owned;
    first->n_parts = n_parts;
    *file = first;
    return TMX_OK;
}

/* ---------------------------------------------------------------- opening */

static const char *part_suffix(uint32_t no, uint32_t count, char suffix[SUFFIX_BYTES])
{
    snprintf(suffix, SUFFIX_BYTES, "-%05u-of-%05u.gguf", no + 1, count);
    return suffix;
}

/* Opens path, whose end is replaced by that of part `no`. */
static tmx_status open_part(tmx_file **part, char *path, size_t n_prefix, uint32_t no, uint32_t count, tmx_error *err)
{
    char suffix[SUFFIX_BYTES];
    tmx_error why;
    part_suffix(no, count, suffix);
    memcpy(path + n_prefix, suffix, strlen(suffix) + 1);
    const tmx_status status = gguf_open_path(part, path, &why);
    return status == TMX_OK ? TMX_OK : refuse(err, status, "part %u of %u: %s", no + 1, count, why.text);
}

/* Takes `given` over. */
static tmx_status open_parts(tmx_file **file, tmx_file *given, const char *given_path, uint32_t given_no, uint32_t count, tmx_error *err)
{
    tmx_file *parts[MAX_PARTS] = { [0] = NULL };
    char suffix[SUFFIX_BYTES];
    const size_t n_path = strlen(given_path), n_suffix = strlen(part_suffix(given_no, count, suffix));
    char *path = mem_alloc(n_path + 1, 1);
    tmx_status status = TMX_OK;
    parts[given_no] = given;
    if (path == NULL) {
        status = refuse(err, TMX_E_MEMORY, "%s: no memory for a path", given->label);
    } else if (n_path < n_suffix || strcmp(given_path + n_path - n_suffix, suffix) != 0) {
        status = refuse(err, TMX_E_FORMAT, "%s: is part %u of %u by its keys, so its name must end in %s for the others to be found",
                        given->label, given_no + 1, count, suffix);
    }
    if (path != NULL) memcpy(path, given_path, n_path + 1);
    for (uint32_t no = 0; no < count && status == TMX_OK; no++) {
        if (no != given_no) status = open_part(&parts[no], path, n_path - n_suffix, no, count, err);
    }
    if (status == TMX_OK) status = gguf_join(file, parts, (int32_t)count, err);
    for (uint32_t no = 0; no < count && status != TMX_OK; no++) tmx_file_close(parts[no]);
    mem_free(path);
    return status;
}

tmx_status tmx_file_open(tmx_file **file, const char *path, tmx_error *err)
{
    if (file == NULL || path == NULL) return refuse(err, TMX_E_ARG, "tmx_file_open: NULL argument");
    tmx_file *given;
    uint32_t no, count;
    TRY(gguf_open_path(&given, path, err));
    const tmx_status status = read_split(given, &no, &count, err);
    if (status != TMX_OK) {
        tmx_file_close(given);
        return status;
    }
    if (count > 1) return open_parts(file, given, path, no, count, err);
    *file = given;
    return TMX_OK;
}

int32_t tmx_file_n_parts(const tmx_file *file) { return file != NULL ? file->n_parts : 0; }

tmx_status tmx_file_part(const tmx_file *file, int32_t i, tmx_part_info *info, tmx_error *err)
{
    if (file == NULL || info == NULL) return refuse(err, TMX_E_ARG, "tmx_file_part: NULL argument");
    if (i < 0 || i >= file->n_parts) return refuse(err, TMX_E_ARG, "%s: part %d is out of range 0..%d", file->label, i, file->n_parts - 1);
    const tmx_file *part = i > 0 ? file->parts[i] : file;
    int32_t n_tensors = 0;
    for (int32_t t = 0; t < file->n_tensors; t++) n_tensors += file->tensors[t].part == i;
    *info = (tmx_part_info){ .name = part->label, .n_bytes = part->n_bytes, .n_tensors = n_tensors };
    return TMX_OK;
}
