/* plan_budget.h - tmx plan --budget: options -> a calibration (eval/calibrate.h), its table and picture. */
#ifndef TMX_CLI_PLAN_BUDGET_H
#define TMX_CLI_PLAN_BUDGET_H

#include "commands.h"
#include "eval/calibrate.h"
#include "spec_list.h"

typedef struct budget {
    calibration_params params;
    calibration found;
    int32_t *order;                /* [n_layers]; of params */
    spec_list methods;             /* of params */
} budget;

/* Measures, prints curve and methods and draws the curve.  Returns an exit code; *b to be freed in any case. */
int budget_spend(const plan_options *o, const tmx_model *model, tmx_pool *pool, const tmx_probe_report *report,
                 tmx_probe_order order, uint64_t order_seed, budget *b);

/* From the plan of triangle layers alone, with its note, to the whole: methods, the curve, the shortest length that pays, and in the note
 * how they were found.  *plan is replaced. */
tmx_status budget_finish(const plan_options *o, const budget *b, const tmx_model *model, tmx_plan **plan, tmx_error *err);
void budget_free(budget *b);

#endif
