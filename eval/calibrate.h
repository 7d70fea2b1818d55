/* calibrate.h - how many layers of an order may become triangle before a budget is spent.  In: a model, an order of its
 * layers, prompts of one task, a budget.  Out: the measured curve, the largest number of layers inside the budget, and
 * the prompt length from which the plan pays.
 *
 * Dense and every candidate run on the same prompts.  Losses need not grow with every layer, so bisection only finds
 * where to look; the numbers behind it are measured too, and the largest that was seen to fit is taken.  A step of the curve
 * measures the whole of it.
 *
 * Then, if there are methods to choose from, each layer that stayed dense may get one, as far as the same budget and the same prompts
 * allow and where it is faster (method_search.h): all layers but those with a window of the model's own, and but the model's last one,
 * whose single row no method thins.  All methods in all of these layers are timed first, taking turns prompt by prompt. */
#ifndef TMX_EVAL_CALIBRATE_H
#define TMX_EVAL_CALIBRATE_H

#include "method_search.h"
#include "task.h"

typedef enum calibration_budget {
    CALIBRATE_KL,                  /* mean KL(dense || plan) of the first token, natural log */
    CALIBRATE_DROP,                /* points of the task's score, 0..100, below dense */
} calibration_budget;

typedef struct calibration_params {
    const int32_t *order;          /* [n_layers], every layer once: what to give up first */
    int32_t n_sink, n_window, n_last;      /* of the triangle layers */
    const task_kind *kind;
    bool is_chat;
    uint64_t seed;
    int32_t n_samples, n_tokens;
    calibration_budget budget;
    double limit;                  /* >= 0 */
    int32_t curve_step;            /* also measure 0, curve_step, 2 curve_step, ... layers; 0 = only what the search needs */
    bool is_fastest;               /* among what fits, the shortest time to first token; else the most layers */
    const char *const *methods;    /* [n_methods] specs of dynamic methods without layers, each kind once: "flexprefill(gamma=0.95)" */
    int32_t n_methods;
    int32_t estimate_rows;         /* as tmx_plan_set_estimate_rows has it */
    bool (*progress)(void *ctx, int32_t n_done, int32_t n_total);      /* prompts run; false = stop; may be NULL */
    void *progress_ctx;
} calibration_params;

typedef struct method_row {
    tmx_plan_point point;
    double attention_ms;           /* median of all layers together */
    int32_t n_layers;              /* that run a method */
} method_row;

typedef struct calibration {
    tmx_plan_point *curve;         /* [n_points], ascending in n_sparse, dense first */
    int32_t n_points;
    int32_t n_sparse;              /* chosen: the first n_sparse layers of the order */
    int32_t min_tokens;            /* shortest length from which the plan was no slower, 0 = every length tried */
    const task_kind *kind;         /* what was measured on */
    int32_t n_samples, n_tokens;
    /* With methods only, else NULL and 0.  rows [n_rows], n_sparse of all is the one chosen: no method; each method in all layers
     * that were asked; and, if any layer got one, what was chosen. */
    int32_t *layer_methods;        /* [n_layers] of the model: of params->methods, or METHOD_NONE */
    method_row *rows;
    int32_t n_rows, n_asked, n_given;      /* layers that were asked; that got one */
    double race_ms[2];             /* medians of the first prompt, taking turns: no method, what was chosen; 0 if none was */
} calibration;

/* TMX_E_ARG, TMX_E_MEMORY, TMX_E_CANCELLED, or what making and running the prompts refuses; *result is untouched. */
tmx_status calibrate(calibration *result, const tmx_model *model, tmx_pool *pool, const calibration_params *params,
                     tmx_error *err);
void calibration_free(calibration *result);

/* The plan that makes the first n_sparse layers of an order triangle, and gives others a method of params: methods as in
 * calibration.layer_methods, NULL: none. */
tmx_status calibration_plan(tmx_plan **plan, const tmx_model *model, const calibration_params *params, int32_t n_sparse,
                            const int32_t *methods, tmx_error *err);

/* The search by itself.  fits(ctx, k) measures k and says whether it is inside the budget; 0 always is.  Each k in
 * 1..n is asked at most once; returns the largest that fit, or -1 if fits gave -1 (stopped). */
int32_t calibrate_search(int32_t n, int (*fits)(void *ctx, int32_t k), void *ctx);

#endif
