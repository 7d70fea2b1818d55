/* plan_budget.h - tmx plan --budget: options -> a calibration (eval/calibrate.h), its table and picture. */
#ifndef TMX_CLI_PLAN_BUDGET_H
#define TMX_CLI_PLAN_BUDGET_H

#include "commands.h"
#include "eval/calibrate.h"

/* Measures, prints the curve and draws it.  Returns an exit code; *found to be freed if it is 0. */
int budget_spend(const plan_options *o, const tmx_model *model, tmx_pool *pool, const tmx_probe_report *report,
                 tmx_probe_order order, uint64_t order_seed, calibration *found);

/* The curve, the shortest length that pays, and in the note how they were found. */
tmx_status budget_record(const plan_options *o, const calibration *found, tmx_plan *plan, tmx_error *err);

#endif
