/* head_thresholds.c - XAttention's threshold of every head.  A layer is an array of the thresholds of all its heads, as the authors'
 * tables have it, or null; null, for a layer or a head, leaves it to the plan's own threshold. */
#include "base/mem.h"
#include "base/status.h"
#include "plan/plan_parts.h"
#include "plan/strict_json.h"

#include <stdio.h>

static tmx_status read_layer(const strict_reader *r, const char *field, size_t i, const json_t *layer, int32_t n_heads, double *thresholds)
{
    char name[48];
    if (json_is_null(layer)) return TMX_OK;
    snprintf(name, sizeof name, "%s[%zu]", field, i);
    if (!json_is_array(layer)) return strict_refuse_field(r, name, "found %s, expected an array of thresholds or null", strict_type_name(layer));
    if (json_array_size(layer) != (size_t)n_heads) {
        return strict_refuse_field(r, name, "%zu heads, expected %d", json_array_size(layer), n_heads);
    }
    for (size_t h = 0; h < (size_t)n_heads; h++) {
        const json_t *entry = json_array_get(layer, h);
        if (json_is_null(entry)) continue;
        snprintf(name, sizeof name, "%s[%zu][%zu]", field, i, h);
        if (!json_is_number(entry)) return strict_refuse_field(r, name, "found %s, expected a number or null", strict_type_name(entry));
        const double x = json_number_value(entry);
        if (!(x > 0 && x <= 1)) return strict_refuse_field(r, name, "found %g, expected more than 0, up to 1", x);
        thresholds[h] = x;
    }
    return TMX_OK;
}

static tmx_status read_layers(const strict_reader *r, const char *field, json_t *array, tmx_plan *p)
{
    const size_t n_layers = json_array_size(array), n_heads = (size_t)p->n_heads;
    double *thresholds = mem_alloc(n_layers * n_heads, sizeof *thresholds);        /* zeros: no threshold of their own */
    if (thresholds == NULL) return refuse(r->err, TMX_E_MEMORY, "%s: no memory for %zu layers of %zu heads", r->file, n_layers, n_heads);
    mem_free(p->thresholds);
    p->thresholds = thresholds;
    for (size_t i = 0; i < n_layers; i++) TRY(read_layer(r, field, i, json_array_get(array, i), p->n_heads, thresholds + i * n_heads));
    return TMX_OK;
}

static bool is_there(const tmx_plan *plan) { return plan->thresholds != NULL; }

/* Nine digits, as files have them: a plan that was saved and read back is told the same. */
static void add_layer(const tmx_plan *plan, int32_t layer, sha256 *digest)
{
    const double *thresholds = plan_thresholds(plan, layer);
    for (int32_t h = 0; h < plan->n_heads; h++) {
        char text[32];
        sha256_add(digest, text, (size_t)snprintf(text, sizeof text, "%.9g%c", thresholds[h], h + 1 < plan->n_heads ? ' ' : '\n'));
    }
}

static json_t *layer_json(const double *thresholds, int32_t n_heads)
{
    bool is_any = false;
    for (int32_t h = 0; h < n_heads; h++) is_any |= thresholds[h] != 0;
    if (!is_any) return json_null();
    json_t *layer = json_array();
    for (int32_t h = 0; h < n_heads; h++) json_array_append_new(layer, thresholds[h] != 0 ? json_real(thresholds[h]) : json_null());
    if (json_array_size(layer) == (size_t)n_heads) return layer;
    json_decref(layer);
    return NULL;
}

static json_t *layers_json(const tmx_plan *plan)
{
    json_t *table = json_array();
    for (int32_t l = 0; l < plan->n_layers; l++) {
        if (json_array_append_new(table, layer_json(plan_thresholds(plan, l), plan->n_heads)) == 0) continue;
        json_decref(table);
        return NULL;
    }
    return table;
}

const head_table threshold_table = { .field = "thresholds", .read_layers = read_layers, .is_there = is_there, .add_layer = add_layer,
                                     .layers_json = layers_json };
