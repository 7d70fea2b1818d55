/* plan.h - model -> a pattern for every layer.  In: a spec string, a preset name or a plan file.  Out: a tmx_plan
 * (opaque in tmx.h).  Never reads weights, never touches a device. */
#ifndef TMX_PLAN_PLAN_H
#define TMX_PLAN_PLAN_H

#include "plan/model_tag.h"
#include "tmx.h"

struct tmx_plan {
    int32_t n_layers;
    tmx_pattern *layers;           /* [n_layers]; sizes are the same in every layer, dense ones (unread) included */
    model_tag model;
    char note[512];                /* UTF-8 */
    int32_t min_tokens;            /* shorter prompts run dense */
    int32_t n_own_window, own_period;      /* of the model, see tmx_model_info; 0 while the plan knows no model */
    tmx_plan_point *curve;         /* [n_points], NULL if there is none */
    int32_t n_points;
};

static inline bool plan_has_own_window(const tmx_plan *plan, int32_t layer)
{
    return plan->n_own_window > 0 && (plan->own_period == 0 || (layer + 1) % plan->own_period != 0);   /* as tmx_model_info says */
}

/* What a layer may attend to in a prompt of this final length. */
static inline tmx_pattern plan_layer_pattern(const tmx_plan *plan, int32_t layer, int32_t n_prompt)
{
    if (plan_has_own_window(plan, layer)) {
        return (tmx_pattern){ .kind = TMX_PATTERN_STREAMING, .n_sink = 0, .n_window = plan->n_own_window, .n_last = 0 };
    }
    tmx_pattern p = plan->layers[layer];
    if (n_prompt < plan->min_tokens) p.kind = TMX_PATTERN_DENSE;
    return p;
}

/* All layers dense, default sizes, of no model in particular. */
tmx_status plan_create_dense(tmx_plan **plan, int32_t n_layers, tmx_error *err);
/* Binds the plan to the model's sliding-window layers; TMX_E_ARG if it asks for something else in one of them. */
tmx_status plan_bind_windows(tmx_plan *plan, const tmx_model_info *info, tmx_error *err);
tmx_status plan_copy(tmx_plan **copy, const tmx_plan *plan, tmx_error *err);

/* The plan file's text -> plan.  `name` is used in messages ("plan.json:3:14: ...").  info NULL = any model. */
tmx_status plan_read_json(tmx_plan **plan, const char *text, size_t n_bytes, const char *name,
                          const tmx_model_info *info, tmx_error *err);

/* "5,7,10,15-35" -> flags [n_layers]; refuses out of range, repeated, empty, reversed. */
tmx_status plan_parse_layers(const char *list, int32_t n_layers, bool *is_listed, tmx_error *err);

#endif
