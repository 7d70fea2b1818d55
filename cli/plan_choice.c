#include "plan_choice.h"

#include <string.h>

int plan_choose(const plan_choice *choice, const tmx_model_info *info, tmx_plan **plan)
{
    tmx_error err;
    tmx_plan *p;
    const char *spec = choice->spec != NULL ? choice->spec : "dense";
    if (tmx_plan_parse(&p, spec, info, &err) != TMX_OK) {
        return err.code == TMX_E_ARG ? complain(EXIT_INPUT, "%s", err.text) : complain_error(&err);
    }
    if (tmx_plan_set_sizes(p, choice->n_sink, choice->n_window, choice->n_last, &err) != TMX_OK) {
        tmx_plan_free(p);
        return complain_error(&err);
    }
    int32_t rows;
    if (choice->estimate != NULL && (!estimate_parse(choice->estimate, &rows) || tmx_plan_set_estimate_rows(p, rows, &err) != TMX_OK)) {
        tmx_plan_free(p);
        return complain(EXIT_USAGE, "option --estimate: '%s'", choice->estimate);      /* the options' check has let it pass */
    }
    *plan = p;
    return 0;
}

const tmx_pattern *plan_pattern(const tmx_plan *plan)
{
    for (int32_t layer = tmx_plan_n_layers(plan) - 1; layer >= 0; layer--) {
        const tmx_pattern *p = tmx_plan_layer(plan, layer);
        if (p->kind != TMX_PATTERN_DENSE) return p;
    }
    return NULL;
}

const char *plan_title(const tmx_plan *plan, char buf[32])
{
    const tmx_pattern *main = plan_pattern(plan);
    bool is_mix = false;
    for (int32_t layer = 0; main != NULL && layer < tmx_plan_n_layers(plan); layer++) {
        is_mix |= tmx_plan_layer(plan, layer)->kind != main->kind;
    }
    snprintf(buf, 32, "%s%s", main != NULL ? tmx_pattern_name(main->kind) : "dense", is_mix ? " mix" : "");
    return buf;
}

void plan_label(char label[PLAN_LABEL_BYTES], const char *spec, const tmx_plan *plan, char (*before)[PLAN_LABEL_BYTES], int32_t n)
{
    const char *how = tmx_plan_estimate_rows(plan) > 0 ? " per-chunk" : "";
    const size_t n_most = 28 - strlen(how);
    const char *slash = strrchr(spec, '/'), *name = slash != NULL && slash[1] != '\0' ? slash + 1 : spec;
    size_t length = strlen(name);
    if (length > 5 && strcmp(name + length - 5, ".json") == 0) length -= 5;
    if (length > n_most) length = n_most;
    while (length > 0 && (name[length] & 0xc0) == 0x80) length--;
    length = (size_t)snprintf(label, PLAN_LABEL_BYTES, "%.*s%s", (int)length, name, how);
    for (int32_t i = 0; i < n; i++) {
        if (strcmp(before[i], label) != 0) continue;
        snprintf(label + length, PLAN_LABEL_BYTES - length, " (%d)", n + 1);
        return;
    }
}

void json_plan(json_writer *j, const char *key, const tmx_plan *plan)
{
    char text[PLAN_TEXT_BYTES];
    const tmx_pattern *p = plan_pattern(plan);
    json_begin_object(j, key);
    json_text(j, "text", tmx_plan_text(plan, text, sizeof text));
    json_text(j, "note", tmx_plan_note(plan));
    json_text(j, "estimate", tmx_plan_estimate_rows(plan) > 0 ? "per-chunk" : "one-shot");
    json_count(j, "estimate_rows", tmx_plan_estimate_rows(plan));
    if (p != NULL) {
        json_count(j, "n_sink", p->n_sink);
        json_count(j, "n_window", p->n_window);
        json_count(j, "n_last", p->n_last);
    }
    json_begin_array(j, "layers");
    for (int32_t layer = 0; layer < tmx_plan_n_layers(plan); layer++) {
        json_text(j, NULL, tmx_pattern_name(tmx_plan_layer(plan, layer)->kind));
    }
    json_end(j);
    json_end(j);
}
