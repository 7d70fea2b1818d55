/* plan.h - model -> a pattern for every layer, static or dynamic.  In: a spec string, a preset name or a plan file.  Out: a tmx_plan
 * (opaque in tmx.h).  Never reads weights, never touches a device. */
#ifndef TMX_PLAN_PLAN_H
#define TMX_PLAN_PLAN_H

#include "base/num.h"
#include "pattern/flexprefill.h"
#include "pattern/key_lists.h"
#include "pattern/minference.h"
#include "pattern/s2o.h"
#include "pattern/xattention.h"
#include "plan/model_tag.h"
#include "tmx.h"

struct tmx_plan {
    int32_t n_layers;
    tmx_pattern *layers;           /* [n_layers]; sizes are the same in every layer, dense ones (unread) included */
    xattention xattention;         /* of every layer of this kind, as the next */
    flexprefill flexprefill;
    s2o s2o;
    minference minference;         /* of heads that `heads` does not tell */
    minference_head *heads;        /* [n_layers][n_heads] of MInference, NULL: none is told */
    double *thresholds;            /* [n_layers][n_heads] of XAttention, 0: the head has none of its own; NULL: none has */
    int32_t n_heads;               /* of the tables; 0: there are none */
    model_tag model;
    char note[512];                /* UTF-8 */
    int32_t min_tokens;            /* shorter prompts run dense */
    int32_t estimate_rows;         /* what tmx_plan_set_estimate_rows says; plan_estimate_rows is what counts */
    int32_t n_own_window, own_period;      /* of the model, see tmx_model_info; 0 while the plan knows no model */
    tmx_plan_point *curve;         /* [n_points], NULL if there is none */
    int32_t n_points;
};

static inline bool plan_has_own_window(const tmx_plan *plan, int32_t layer)
{
    return plan->n_own_window > 0 && (plan->own_period == 0 || (layer + 1) % plan->own_period != 0);   /* as tmx_model_info says */
}

/* Prompts up to this long keep everything in layers of this kind. */
static inline int32_t plan_dense_tokens(const tmx_plan *plan, tmx_pattern_kind kind)
{
    if (kind == TMX_PATTERN_FLEXPREFILL) return flexprefill_dense_tokens(&plan->flexprefill);
    if (kind == TMX_PATTERN_S2O) return s2o_dense_tokens(&plan->s2o);
    return tmx_pattern_is_dynamic(kind) ? 2 * KEY_BLOCK : 0;
}

static inline const double *plan_thresholds(const tmx_plan *plan, int32_t layer)
{
    return plan->thresholds != NULL ? plan->thresholds + (size_t)layer * (size_t)plan->n_heads : NULL;
}

minference_head plan_minference_head(const tmx_plan *plan, int32_t layer, int32_t head);

/* Does every head of an MInference layer see the whole of a prompt so short? */
static inline bool plan_sees_all(const tmx_plan *plan, int32_t layer, int32_t n_prompt)
{
    const int32_t n_heads = plan->heads != NULL ? plan->n_heads : 1;
    for (int32_t h = 0; h < n_heads; h++) {
        const minference_head head = plan_minference_head(plan, layer, h);
        if (n_prompt > minference_dense_tokens(&head)) return false;
    }
    return true;
}

static inline bool plan_has(const tmx_plan *plan, tmx_pattern_kind kind)
{
    for (int32_t i = 0; i < plan->n_layers; i++) {
        if (plan->layers[i].kind == kind) return true;
    }
    return false;
}

/* These look at the end of what they estimate; what the others keep for a row depends on that row's block alone. */
static inline bool plan_looks_at_end(tmx_pattern_kind kind) { return kind == TMX_PATTERN_FLEXPREFILL || kind == TMX_PATTERN_MINFERENCE; }
static inline bool plan_has_ends(const tmx_plan *plan) { return plan_has(plan, TMX_PATTERN_FLEXPREFILL) || plan_has(plan, TMX_PATTERN_MINFERENCE); }

/* Where the methods of the plan but those of ends let a prompt be cut: S2O at segments of whole blocks. */
static inline int32_t plan_cut_unit(const tmx_plan *plan) { return plan_has(plan, TMX_PATTERN_S2O) ? plan->s2o.segment : KEY_BLOCK; }

/* Rows that are estimated together where the plan says per chunk and it matters: whole units, at least two; else 0. */
static inline int32_t plan_estimate_rows(const tmx_plan *plan)
{
    if (plan->estimate_rows == 0 || !plan_has_ends(plan)) return 0;
    const int32_t unit = plan_cut_unit(plan), n_units = (plan->estimate_rows + unit - 1) / unit;
    return unit * max_i32(n_units, 2);
}

/* Of a prompt's n_left last rows, how many are estimated together next: all chunks have as many but the last ones, so that none has
 * fewer than KEY_BLOCK rows, whose end could not be looked at.  0: cuts do not matter. */
static inline int32_t plan_rows_together(const tmx_plan *plan, int32_t n_left)
{
    const int32_t n = plan_estimate_rows(plan);
    if (n == 0 || n_left <= n) return min_i32(n, n_left);
    return n_left - n < KEY_BLOCK ? n - plan_cut_unit(plan) : n;
}

/* What rows may attend to in a prompt of this final length; n_seen: where their chunk ends. */
static inline tmx_pattern plan_rows_pattern(const tmx_plan *plan, int32_t layer, int32_t n_prompt, int32_t n_seen)
{
    if (plan_has_own_window(plan, layer)) {
        return (tmx_pattern){ .kind = TMX_PATTERN_STREAMING, .n_sink = 0, .n_window = plan->n_own_window, .n_last = 0 };
    }
    tmx_pattern p = plan->layers[layer];
    const int32_t n = plan_looks_at_end(p.kind) && plan->estimate_rows > 0 ? n_seen : n_prompt;
    if (n_prompt < plan->min_tokens || n <= plan_dense_tokens(plan, p.kind)) p.kind = TMX_PATTERN_DENSE;
    if (p.kind == TMX_PATTERN_MINFERENCE && plan_sees_all(plan, layer, n)) p.kind = TMX_PATTERN_DENSE;
    return p;
}

/* Those of the last row. */
static inline tmx_pattern plan_layer_pattern(const tmx_plan *plan, int32_t layer, int32_t n_prompt)
{
    return plan_rows_pattern(plan, layer, n_prompt, n_prompt);
}

/* Bit k: a layer is of the dynamic kind k. */
static inline uint32_t plan_dynamic_kinds(const tmx_plan *plan)
{
    uint32_t kinds = 0;
    for (int32_t i = 0; i < plan->n_layers; i++) {
        if (tmx_pattern_is_dynamic(plan->layers[i].kind)) kinds |= 1u << plan->layers[i].kind;
    }
    return kinds;
}

static inline bool plan_is_static(const tmx_plan *plan) { return plan_dynamic_kinds(plan) == 0; }

/* Prompts may be cut into chunks at multiples of this many tokens; a chunk must have room for as many. */
static inline int32_t plan_row_unit(const tmx_plan *plan)
{
    const int32_t n_together = plan_estimate_rows(plan);
    if (n_together > 0) return n_together;
    if (plan_has_ends(plan)) return INT32_MAX;
    return plan_is_static(plan) ? 1 : plan_cut_unit(plan);
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
