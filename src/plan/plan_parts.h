/* plan_parts.h - what the files of this room share.  plan.c holds the object, plan_spec.c the spec strings, plan_json.c the
 * plan file, presets.c the table of published choices, methods.c the parameters of dynamic methods. */
#ifndef TMX_PLAN_PLAN_PARTS_H
#define TMX_PLAN_PLAN_PARTS_H

#include "plan/plan.h"
#include "plan/strict_json.h"

enum { PLAN_FILE_MAX_BYTES = 1 << 20 };

/* Spec string that is no path, grammar in plan_spec.c. */
tmx_status plan_read_spec(tmx_plan **plan, const char *spec, const tmx_model_info *info, tmx_error *err);

/* For a layer that has a window of the model's own and was named for something else. */
tmx_status plan_refuse_window(const tmx_plan *plan, int32_t layer, tmx_error *err);

/* Reads a plan file; a path that does not exist is TMX_E_ARG, since it may be a misspelt keyword. */
tmx_status plan_read_file(tmx_plan **plan, const char *path, const tmx_model_info *info, tmx_error *err);

/* The plan file's text, NUL-terminated, mem_free()d by the caller. */
tmx_status plan_json_text(const tmx_plan *plan, char **text, size_t *n_bytes, tmx_error *err);

/* Name -> the preset's layer list, borrowed from the table.  TMX_E_ARG for an unknown name, TMX_E_UNSUPPORTED for
 * another architecture or number of layers than the model's. */
tmx_status preset_layers(const char **layers, const char *name, const tmx_model_info *info, tmx_error *err);

/* A number in tmx_plan that belongs to a dynamic method: as name=value in specs, as a field in files. */
typedef struct method_param {
    const char *name;
    size_t at;                     /* offset in tmx_plan */
    bool is_integer;               /* int32_t, else double */
} method_param;

typedef struct method {
    tmx_pattern_kind kind;
    int32_t n_params;
    const method_param *params;
    tmx_status (*check)(const tmx_plan *plan, tmx_error *err);
    /* METHOD(FILE): what a file says of all layers; NULL: there is no such form */
    tmx_status (*read_file)(tmx_plan *plan, const char *path, const tmx_model_info *info, tmx_error *err);
} method;

extern const method plan_methods[];
enum { N_METHODS = 4 };
#define PLAN_KIND_NAMES "dense, streaming, triangle, xattention, flexprefill, minference or s2o"

const method *method_of(tmx_pattern_kind kind);        /* NULL for a static kind */
void methods_set_defaults(tmx_plan *plan);
double method_get(const tmx_plan *plan, const method_param *param);
/* False if the parameter cannot hold the value: an integer with a fraction or out of range. */
bool method_set(tmx_plan *plan, const method_param *param, double value);
/* minference_heads.c: the table of heads in the plan file's object; a configuration file, which is the table alone.  False: out of
 * memory.  n_heads: the model's. */
tmx_status minference_read_plan(const strict_reader *r, json_t *object, tmx_plan *p);
bool minference_add_json(json_t *object, const tmx_plan *plan);
tmx_status minference_read_config(tmx_plan *p, const char *text, size_t n_bytes, const char *name, int32_t n_heads, tmx_error *err);
tmx_status minference_read_file(tmx_plan *p, const char *path, const tmx_model_info *info, tmx_error *err);
tmx_status minference_config_text(const tmx_plan *plan, char **text, size_t *n_bytes, tmx_error *err);
/* "dense" -> TMX_PATTERN_DENSE, of n bytes; false if no kind has this name. */
bool kind_of_name(const char *name, size_t n, tmx_pattern_kind *kind);

#endif
