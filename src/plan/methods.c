#include "plan/plan_parts.h"

#include <string.h>

static tmx_status check_xattention(const tmx_plan *plan, tmx_error *err) { return xattention_check(&plan->xattention, err); }

static tmx_status check_flexprefill(const tmx_plan *plan, tmx_error *err) { return flexprefill_check(&plan->flexprefill, err); }

static tmx_status check_minference(const tmx_plan *plan, tmx_error *err) { return minference_check(&plan->minference, err); }

static tmx_status check_s2o(const tmx_plan *plan, tmx_error *err) { return s2o_check(&plan->s2o, err); }

static const method_param xattention_params[] = {
    { .name = "stride", .at = offsetof(tmx_plan, xattention.stride), .is_integer = true },
    { .name = "threshold", .at = offsetof(tmx_plan, xattention.threshold) },
    { .name = "norm", .at = offsetof(tmx_plan, xattention.norm) },
};

static const method_param flexprefill_params[] = {
    { .name = "gamma", .at = offsetof(tmx_plan, flexprefill.gamma) },
    { .name = "tau", .at = offsetof(tmx_plan, flexprefill.tau) },
    { .name = "min_budget", .at = offsetof(tmx_plan, flexprefill.min_budget), .is_integer = true },
};

static const method_param minference_params[] = {
    { .name = "vertical", .at = offsetof(tmx_plan, minference.vertical), .is_integer = true },
    { .name = "slash", .at = offsetof(tmx_plan, minference.slash), .is_integer = true },
};

static const method_param s2o_params[] = {
    { .name = "segment", .at = offsetof(tmx_plan, s2o.segment), .is_integer = true },
    { .name = "tau", .at = offsetof(tmx_plan, s2o.tau) },
    { .name = "sink", .at = offsetof(tmx_plan, s2o.sink), .is_integer = true },
    { .name = "min_tiles", .at = offsetof(tmx_plan, s2o.min_tiles), .is_integer = true },
    { .name = "vote", .at = offsetof(tmx_plan, s2o.vote), .is_integer = true },
    { .name = "guide", .at = offsetof(tmx_plan, s2o.guide), .is_integer = true },
};

const method plan_methods[N_METHODS] = {
    { .kind = TMX_PATTERN_XATTENTION, .params = xattention_params, .check = check_xattention, .table = &threshold_table,
      .n_params = sizeof xattention_params / sizeof xattention_params[0] },
    { .kind = TMX_PATTERN_FLEXPREFILL, .params = flexprefill_params, .check = check_flexprefill,
      .n_params = sizeof flexprefill_params / sizeof flexprefill_params[0] },
    { .kind = TMX_PATTERN_MINFERENCE, .params = minference_params, .check = check_minference,
      .n_params = sizeof minference_params / sizeof minference_params[0], .table = &minference_table },
    { .kind = TMX_PATTERN_S2O, .params = s2o_params, .check = check_s2o, .n_params = sizeof s2o_params / sizeof s2o_params[0] },
};

void methods_set_defaults(tmx_plan *plan)
{
    plan->xattention = (xattention)XATTENTION_DEFAULTS;
    plan->flexprefill = (flexprefill)FLEXPREFILL_DEFAULTS;
    plan->minference = (minference)MINFERENCE_DEFAULTS;
    plan->s2o = (s2o)S2O_DEFAULTS;
}

const method *method_of(tmx_pattern_kind kind)
{
    for (int32_t i = 0; i < N_METHODS; i++) {
        if (plan_methods[i].kind == kind) return &plan_methods[i];
    }
    return NULL;
}

double method_get(const tmx_plan *plan, const method_param *param)
{
    const char *at = (const char *)plan + param->at;
    int32_t n;
    double x;
    if (!param->is_integer) return memcpy(&x, at, sizeof x), x;
    return memcpy(&n, at, sizeof n), n;
}

bool method_set(tmx_plan *plan, const method_param *param, double value)
{
    char *at = (char *)plan + param->at;
    if (!param->is_integer) return memcpy(at, &value, sizeof value), true;
    if (!(value >= INT32_MIN && value <= INT32_MAX) || value != (int32_t)value) return false;
    const int32_t n = (int32_t)value;
    return memcpy(at, &n, sizeof n), true;
}

bool kind_of_name(const char *name, size_t n, tmx_pattern_kind *kind)
{
    static const tmx_pattern_kind kinds[] = { TMX_PATTERN_DENSE, TMX_PATTERN_STREAMING, TMX_PATTERN_TRIANGLE,
                                              TMX_PATTERN_XATTENTION, TMX_PATTERN_FLEXPREFILL, TMX_PATTERN_MINFERENCE,
                                              TMX_PATTERN_S2O };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        const char *known = tmx_pattern_name(kinds[i]);
        if (strlen(known) != n || memcmp(name, known, n) != 0) continue;
        *kind = kinds[i];
        return true;
    }
    return false;
}
