/* rooms: plan */
/* Bytes as a plan file, as a configuration of heads, as a spec and as a layer list.  What is accepted must survive a round trip; what is refused must say why
 * and leave nothing behind. */
#include "base/mem.h"
#include "plan/plan_parts.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool holds) { if (!holds) abort(); }

static void require_reason(tmx_status status, const tmx_error *err)
{
    require(err->code == status && err->text[0] != '\0' && strchr(err->text, '\n') == NULL);
}

static void read_as_file(const char *text, size_t n_bytes)
{
    static const tmx_model_info info = { .architecture = "llama", .n_layers = 4 };
    tmx_error err = { .text = "" };
    tmx_plan *plan = NULL, *back = NULL;
    const tmx_status status = plan_read_json(&plan, text, n_bytes, "p.json", NULL, &err);
    if (status != TMX_OK) {
        require(plan == NULL && status != TMX_E_ARG && status != TMX_E_IO);
        require_reason(status, &err);
        return;
    }
    char *saved, *again, words[64];
    size_t n_saved, n_again;
    require(plan_json_text(plan, &saved, &n_saved, NULL) == TMX_OK);
    require(plan_read_json(&back, saved, n_saved, "p.json", NULL, NULL) == TMX_OK);
    require(back->n_layers == plan->n_layers && strcmp(back->note, plan->note) == 0);
    require(back->min_tokens == plan->min_tokens && back->n_points == plan->n_points);
    require(memcmp(back->layers, plan->layers, (size_t)plan->n_layers * sizeof *plan->layers) == 0);
    require(plan_json_text(back, &again, &n_again, NULL) == TMX_OK);
    require(n_again == n_saved && memcmp(again, saved, n_saved) == 0);         /* parameters of methods too */
    mem_free(again);
    require(strlen(tmx_plan_text(plan, words, sizeof words)) < sizeof words);
    tmx_plan_free(back);
    mem_free(saved);
    const tmx_status other = plan_read_json(&back, text, n_bytes, "p.json", &info, &err);
    require(other == TMX_OK || other == TMX_E_UNSUPPORTED);
    if (other == TMX_OK) tmx_plan_free(back);
    tmx_plan_free(plan);
}

static tmx_status threshold_text(const tmx_plan *plan, char **text, size_t *n_bytes, tmx_error *err)
{
    return strict_text(threshold_table.layers_json(plan), "thresholds", 9, text, n_bytes, err);
}

static void read_as_config(const head_table *table, const char *text, size_t n_bytes)
{
    tmx_status (*const config_text)(const tmx_plan *, char **, size_t *, tmx_error *) =
        table == &threshold_table ? threshold_text : minference_config_text;
    tmx_error err = { .text = "" };
    tmx_plan *plan;
    char *saved, *again;
    size_t n_saved, n_again;
    require(plan_create_dense(&plan, 4, NULL) == TMX_OK);
    tmx_status status = head_table_read_config(table, plan, text, n_bytes, "c.json", 9, &err);
    if (status != TMX_OK) {
        require(status == TMX_E_FORMAT);
        require_reason(status, &err);
    } else {
        require(config_text(plan, &saved, &n_saved, NULL) == TMX_OK);
        require(head_table_read_config(table, plan, saved, n_saved, "c.json", 9, NULL) == TMX_OK);
        require(config_text(plan, &again, &n_again, NULL) == TMX_OK);
        require(n_again == n_saved && memcmp(again, saved, n_saved) == 0);
        mem_free(saved);
        mem_free(again);
    }
    tmx_plan_free(plan);
}

static void read_as_spec(const char *spec)
{
    static const tmx_model_info info = { .architecture = "llama", .n_layers = 30, .n_heads = 9 };
    tmx_error err = { .text = "" };
    tmx_plan *plan = NULL;
    const tmx_status status = plan_read_spec(&plan, spec, &info, &err);
    if (status != TMX_OK) {
        /* minference(FILE) and thresholds=FILE may name any file */
        require(plan == NULL && status != TMX_E_MEMORY);
        require_reason(status, &err);
        return;
    }
    for (int32_t i = 0; i < N_METHODS; i++) require(plan_methods[i].check(plan, NULL) == TMX_OK);
    tmx_plan_free(plan);
}

static void read_as_list(const char *list, int32_t n_layers)
{
    bool is_listed[256];
    tmx_error err = { .text = "" };
    const tmx_status status = plan_parse_layers(list, n_layers, is_listed, &err);
    if (status != TMX_OK) {
        require(status == TMX_E_ARG);
        require_reason(status, &err);
        return;
    }
    int32_t n = 0;
    for (int32_t i = 0; i < n_layers; i++) n += is_listed[i];
    require(n >= 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    if (n_bytes > 0) {
        read_as_file((const char *)data, n_bytes);
        read_as_config(&minference_table, (const char *)data, n_bytes);
        read_as_config(&threshold_table, (const char *)data, n_bytes);
    }
    char *list = malloc(n_bytes + 1);
    if (list == NULL) return 0;
    if (n_bytes > 0) memcpy(list, data, n_bytes);
    list[n_bytes] = '\0';
    read_as_spec(list);
    read_as_list(list, 1 + (n_bytes > 0 ? data[n_bytes - 1] : 0));
    free(list);
    return 0;
}
