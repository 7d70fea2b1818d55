/* calibrate_parts.h - what the two halves of a calibration share: calibrate.c, which finds a number of triangle layers, and
 * calibrate_methods.c, which gives the others methods.  Prompts in, losses and times out. */
#ifndef TMX_EVAL_CALIBRATE_PARTS_H
#define TMX_EVAL_CALIBRATE_PARTS_H

#include "calibrate.h"
#include "text.h"

enum { N_REPEATS = 3 };

typedef struct calibration_prompt {
    task_sample sample;
    int32_t *ids, n_ids;
    float *dense;                  /* [n_vocab]: the first token's logits, dense */
} calibration_prompt;

typedef struct bench {
    const calibration_params *params;
    const tmx_model *model;
    tmx_session *session;
    calibration_prompt *prompts;   /* [n_samples] */
    float *logits;                 /* [n_vocab] */
    int32_t *ids;                  /* [n_predict] of the kind */
    text_buf text;
    double *times_ms, *attention_ms;       /* [1 + n_methods][n_samples] */
    tmx_plan_point *curve;         /* [n_layers + 1] */
    bool is_dense_known;           /* the prompts hold their dense logits */
    int32_t n_points, n_layers, n_vocab, n_done, n_total;
    tmx_status status;
    tmx_error *err;
} bench;

/* Attention of single layers, of every plan that is measured. */
typedef struct layer_times {
    const int32_t *layers;         /* [n] */
    int32_t n;
    double *ms;                    /* [n_plans][n][n_samples] */
} layer_times;

/* Every prompt with each of at most 1 + n_methods plans, taking turns; rows [n_plans], of points with this n_sparse.  layers may be NULL. */
tmx_status bench_measure(bench *b, const tmx_plan *const *plans, int32_t n_plans, int32_t n_sparse, method_row *rows, layer_times *layers);
/* Is the point inside the budget? */
bool bench_is_inside(const bench *b, const tmx_plan_point *point);
/* The first n_ids tokens of the first prompt, once and untimed; median times of two plans that take turns. */
tmx_status bench_warm_up(bench *b, const tmx_plan *plan);
tmx_status bench_race(bench *b, const tmx_plan *const plans[2], int32_t n_ids, double medians[2]);

/* calibrate_methods.c.  Refuses methods that the model's device cannot run, or no memory is there for. */
tmx_status bench_try_methods(bench *b);
/* Methods for the layers behind the first found->n_sparse of the order. */
tmx_status bench_choose_methods(bench *b, calibration *found);

#endif
