/* minference_heads.c - which type and budget every head of a model has, by MInference.  A layer is an object
 *
 *   {"0": ["vertical_and_slash", 1000, 6096, 0.93], "1": ["stream_llm", 100, 800], ...}
 *
 * of heads in decimal; a head that is not named is vertical-slash of the plan's vertical and slash.  The fourth element, the score of
 * a search, is not kept. */
#include "base/mem.h"
#include "base/status.h"
#include "plan/plan_parts.h"
#include "plan/strict_json.h"

#include <stdio.h>
#include <string.h>

static minference_head unnamed(const tmx_plan *p)
{
    return (minference_head){ .type = MINFERENCE_VERTICAL_SLASH, .a = p->minference.vertical, .b = p->minference.slash };
}

minference_head plan_minference_head(const tmx_plan *plan, int32_t layer, int32_t head)
{
    if (plan->heads == NULL) return unnamed(plan);
    return plan->heads[(size_t)layer * (size_t)plan->n_heads + (size_t)head];
}

/* "7" -> 7, as the one way to write it. */
static bool head_of_key(const char *key, int32_t n_heads, int32_t *head)
{
    char back[16];
    int32_t n = 0;
    for (const char *at = key; *at >= '0' && *at <= '9' && n < n_heads; at++) n = n * 10 + (*at - '0');
    snprintf(back, sizeof back, "%d", n);
    *head = n;
    return n < n_heads && strcmp(back, key) == 0;
}

static tmx_status read_size(const strict_reader *r, const char *field, int32_t i, const json_t *entry, int32_t *size)
{
    const json_t *value = json_array_get(entry, (size_t)i);
    char element[64];
    snprintf(element, sizeof element, "%s[%d]", field, i);
    if (!json_is_integer(value)) return strict_refuse_field(r, element, "found %s, expected an integer", strict_type_name(value));
    const json_int_t n = json_integer_value(value);
    if (n < 0 || n > MINFERENCE_MAX_SIZE) {
        return strict_refuse_field(r, element, "found %" JSON_INTEGER_FORMAT ", expected 0..%d", n, MINFERENCE_MAX_SIZE);
    }
    *size = (int32_t)n;
    return TMX_OK;
}

static tmx_status read_head(const strict_reader *r, const char *field, const json_t *entry, minference_head *head)
{
    if (!json_is_array(entry)) return strict_refuse_field(r, field, "found %s, expected [type, size, size]", strict_type_name(entry));
    const size_t n = json_array_size(entry);
    if (n < 3 || n > 4) return strict_refuse_field(r, field, "%zu elements, expected [type, size, size] or a score behind them", n);
    const json_t *type = json_array_get(entry, 0), *score = json_array_get(entry, 3);
    const char *name = json_is_string(type) ? json_string_value(type) : "";
    int32_t i = 0;
    while (minference_type_names[i] != NULL && strcmp(name, minference_type_names[i]) != 0) i++;
    if (minference_type_names[i] == NULL) {
        return strict_refuse_field(r, field, "type \"%.24s\", expected vertical_and_slash, stream_llm or block_sparse", name);
    }
    head->type = (minference_type)i;
    TRY(read_size(r, field, 1, entry, &head->a));
    TRY(read_size(r, field, 2, entry, &head->b));
    if (score != NULL && !json_is_number(score)) {
        return strict_refuse_field(r, field, "score: found %s, expected a number", strict_type_name(score));
    }
    tmx_error why;
    if (minference_head_check(head, field, &why) == TMX_OK) return TMX_OK;
    return refuse(r->err, TMX_E_FORMAT, "%s: %.160s", r->file, why.text);
}

static tmx_status read_layers(const strict_reader *r, const char *field, json_t *array, tmx_plan *p)
{
    const size_t n_layers = json_array_size(array);
    const int32_t n_heads = p->n_heads;
    char name[48];
    minference_head *heads = mem_alloc(n_layers * (size_t)n_heads, sizeof *heads);
    if (heads == NULL) return refuse(r->err, TMX_E_MEMORY, "%s: no memory for %zu layers of %d heads", r->file, n_layers, n_heads);
    mem_free(p->heads);
    p->heads = heads;
    for (size_t i = 0; i < n_layers * (size_t)n_heads; i++) heads[i] = unnamed(p);
    for (size_t i = 0; i < n_layers; i++) {
        json_t *layer = json_array_get(array, i), *entry;
        const char *key;
        snprintf(name, sizeof name, "%s[%zu]", field, i);
        if (!json_is_object(layer)) return strict_refuse_field(r, name, "found %s, expected an object {...}", strict_type_name(layer));
        json_object_foreach(layer, key, entry) {
            int32_t head;
            if (!head_of_key(key, n_heads, &head)) return strict_refuse_field(r, name, "head \"%.16s\", expected 0..%d", key, n_heads - 1);
            snprintf(name, sizeof name, "%s[%zu].%d", field, i, head);
            TRY(read_head(r, name, entry, &heads[i * (size_t)n_heads + (size_t)head]));
            snprintf(name, sizeof name, "%s[%zu]", field, i);
        }
    }
    return TMX_OK;
}

static bool is_same(minference_head a, minference_head b) { return a.type == b.type && a.a == b.a && a.b == b.b; }

/* All layers; what is as `rest` is left out.  rest NULL: all heads, with the score that the authors' reader asks for. */
static json_t *table_json(const tmx_plan *plan, const minference_head *rest)
{
    json_t *table = json_array();
    for (int32_t l = 0; l < plan->n_layers; l++) {
        json_t *layer = json_object();
        int32_t n = 0;
        for (int32_t h = 0; h < plan->n_heads; h++) {
            const minference_head head = plan_minference_head(plan, l, h);
            char key[16];
            if (rest != NULL && is_same(head, *rest)) continue;
            snprintf(key, sizeof key, "%d", h);
            json_object_set_new(layer, key, rest == NULL ? json_pack("[s, i, i, i]", minference_type_names[head.type], (int)head.a, (int)head.b, 1)
                                                 : json_pack("[s, i, i]", minference_type_names[head.type], (int)head.a, (int)head.b));
            n++;
        }
        const bool is_whole = json_object_size(layer) == (size_t)n;
        if (json_array_append_new(table, layer) == 0 && is_whole) continue;
        json_decref(table);
        return NULL;
    }
    return table;
}

static bool is_there(const tmx_plan *plan) { return plan->heads != NULL; }

static void add_layer(const tmx_plan *plan, int32_t layer, sha256 *digest)
{
    for (int32_t h = 0; h < plan->n_heads; h++) {
        const minference_head head = plan_minference_head(plan, layer, h);
        char text[64];
        sha256_add(digest, text, (size_t)snprintf(text, sizeof text, "%s %d %d\n", minference_type_names[head.type], head.a, head.b));
    }
}

static json_t *layers_json(const tmx_plan *plan)
{
    const minference_head rest = unnamed(plan);
    return table_json(plan, &rest);
}

const head_table minference_table = { .field = "heads", .is_alone = true, .read_layers = read_layers, .is_there = is_there,
                                      .add_layer = add_layer, .layers_json = layers_json };

tmx_status minference_config_text(const tmx_plan *plan, char **text, size_t *n_bytes, tmx_error *err)
{
    return strict_text(table_json(plan, NULL), "minference configuration", 9, text, n_bytes, err);
}

tmx_status tmx_plan_save_heads(const tmx_plan *plan, const char *path, tmx_error *err)
{
    if (plan == NULL || path == NULL || path[0] == '\0') return refuse(err, TMX_E_ARG, "heads save: no plan or no path");
    if (plan->heads == NULL) return refuse(err, TMX_E_ARG, "heads save: the plan has no table of heads");
    char *text;
    size_t n_bytes;
    TRY(minference_config_text(plan, &text, &n_bytes, err));
    const tmx_status status = strict_write_file(path, text, n_bytes, err);
    mem_free(text);
    return status;
}
