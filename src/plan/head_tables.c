/* head_tables.c - what a method is told for every head of a model: a configuration file, which is the array of all layers, and the same
 * array in the method's object of a plan file, beside the number of heads.  What stands for a layer is the method's own. */
#include "base/mem.h"
#include "base/status.h"
#include "plan/plan_parts.h"
#include "plan/strict_json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_HEADS = 1024, MAX_TABLE = 1 << 20 };

/* array: an entry for every layer of the plan; field: its name, "" for a whole file. */
static tmx_status read_table(const head_table *table, const strict_reader *r, const char *field, json_t *array, int32_t n_heads, tmx_plan *p)
{
    const size_t n_layers = json_array_size(array);
    if (n_layers != (size_t)p->n_layers) {
        return refuse(r->err, TMX_E_FORMAT, "%s: %s%s%zu layers, expected %d", r->file, field, field[0] != '\0' ? ": " : "", n_layers,
                      p->n_layers);
    }
    if (n_heads < 1 || n_heads > MAX_HEADS || n_layers * (size_t)n_heads > MAX_TABLE) {
        return refuse(r->err, TMX_E_FORMAT, "%s: %zu layers of %d heads, expected 1..%d heads, at most %d in all", r->file, n_layers,
                      n_heads, MAX_HEADS, MAX_TABLE);
    }
    if (p->n_heads != 0 && p->n_heads != n_heads) {
        return refuse(r->err, TMX_E_FORMAT, "%s: %s: of %d heads, where another method's table has %d", r->file, field, n_heads, p->n_heads);
    }
    p->n_heads = n_heads;
    return table->read_layers(r, field, array, p);
}

tmx_status head_table_read_plan(const head_table *table, const strict_reader *r, const char *name, json_t *object, tmx_plan *p)
{
    if (strict_find(object, table->field) == NULL && strict_find(object, "n_heads") == NULL) return TMX_OK;
    char field[48];
    int32_t n_heads;
    json_t *array;
    snprintf(field, sizeof field, "%s.n_heads", name);
    TRY(strict_get_count(r, object, field, 1, &n_heads));
    snprintf(field, sizeof field, "%s.%s", name, table->field);
    TRY(strict_get_typed(r, object, field, JSON_ARRAY, "an array of layers", &array));
    return read_table(table, r, field, array, n_heads, p);
}

void head_table_digest(const head_table *table, const tmx_plan *plan, tmx_pattern_kind kind, char hex[TABLE_DIGEST_DIGITS + 1])
{
    sha256 digest;
    char whole[65];
    sha256_init(&digest);
    for (int32_t l = 0; l < plan->n_layers; l++) {
        if (plan->layers[l].kind == kind) table->add_layer(plan, l, &digest);
    }
    sha256_hex(&digest, whole);
    memcpy(hex, whole, TABLE_DIGEST_DIGITS);
    hex[TABLE_DIGEST_DIGITS] = '\0';
}

bool head_table_add_json(const head_table *table, json_t *object, const tmx_plan *plan)
{
    if (!table->is_there(plan)) return true;
    return json_object_set_new(object, "n_heads", json_integer(plan->n_heads)) == 0
        && json_object_set_new(object, table->field, table->layers_json(plan)) == 0;
}

static strict_reader reader_of(const char *path, tmx_error *err)
{
    return (strict_reader){ .file = path_tail(path), .what = "configuration", .max_bytes = PLAN_FILE_MAX_BYTES, .err = err };
}

tmx_status head_table_read_config(const head_table *table, tmx_plan *p, const char *text, size_t n_bytes, const char *name, int32_t n_heads,
                                  tmx_error *err)
{
    const strict_reader r = reader_of(name, err);
    json_t *root;
    TRY(strict_parse(&r, text, n_bytes, &root));
    tmx_status status;
    if (json_is_array(root)) status = read_table(table, &r, "", root, n_heads, p);
    else status = refuse(err, TMX_E_FORMAT, "%s: found %s, expected an array of layers", r.file, strict_type_name(root));
    json_decref(root);
    return status;
}

tmx_status head_table_read_file(const head_table *table, tmx_plan *p, const char *path, const tmx_model_info *info, tmx_error *err)
{
    const strict_reader r = reader_of(path, err);
    char *text;
    size_t n_bytes;
    const int fd = strict_open(path);
    if (fd < 0) return refuse(err, TMX_E_IO, "%s: %s", r.file, strerror(errno));
    tmx_status status = strict_read_file(&r, fd, &text, &n_bytes);
    close(fd);
    if (status != TMX_OK) return status;
    status = head_table_read_config(table, p, text, n_bytes, path, info->n_heads, err);
    mem_free(text);
    return status;
}
