/* plan_parts.h - what the files of this room share.  plan.c holds the object, plan_spec.c the spec strings, plan_json.c the
 * plan file, presets.c the table of published choices, methods.c the parameters of dynamic methods, head_tables.c what they are told
 * for every head. */
#ifndef TMX_PLAN_PLAN_PARTS_H
#define TMX_PLAN_PLAN_PARTS_H

#include "base/sha256.h"
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

/* What a method is told for every head, by an array with an entry for each layer. */
typedef struct head_table {
    const char *field;             /* of the method's object in plan files */
    bool is_alone;                 /* in specs METHOD(FILE); else a parameter, METHOD(field=FILE) */
    /* array: of p->n_layers entries, for p->n_heads heads; field: what to call it, "" for a whole file */
    tmx_status (*read_layers)(const strict_reader *r, const char *field, json_t *array, tmx_plan *p);
    bool (*is_there)(const tmx_plan *plan);
    void (*add_layer)(const tmx_plan *plan, int32_t layer, sha256 *digest);
    json_t *(*layers_json)(const tmx_plan *plan);      /* NULL: out of memory */
} head_table;

extern const head_table minference_table, threshold_table;

typedef struct method {
    tmx_pattern_kind kind;
    int32_t n_params;
    const method_param *params;
    tmx_status (*check)(const tmx_plan *plan, tmx_error *err);
    const head_table *table;       /* NULL: it has none */
} method;

extern const method plan_methods[];
enum { N_METHODS = 4 };
#define PLAN_KIND_NAMES "dense, streaming, triangle, xattention, flexprefill, minference or s2o"

const method *method_of(tmx_pattern_kind kind);        /* NULL for a static kind */
void methods_set_defaults(tmx_plan *plan);
double method_get(const tmx_plan *plan, const method_param *param);
/* False if the parameter cannot hold the value: an integer with a fraction or out of range. */
bool method_set(tmx_plan *plan, const method_param *param, double value);
/* head_tables.c: the table in the method's object of a plan file, if it is there; a configuration file, which is the table alone.
 * False: out of memory.  n_heads: the model's. */
tmx_status head_table_read_plan(const head_table *table, const strict_reader *r, const char *name, json_t *object, tmx_plan *p);
/* What the layers of this kind are told, as plan files keep it: equal for equal behaviour, beside the parameters. */
enum { TABLE_DIGEST_DIGITS = 8 };
void head_table_digest(const head_table *table, const tmx_plan *plan, tmx_pattern_kind kind, char hex[TABLE_DIGEST_DIGITS + 1]);
bool head_table_add_json(const head_table *table, json_t *object, const tmx_plan *plan);
tmx_status head_table_read_config(const head_table *table, tmx_plan *p, const char *text, size_t n_bytes, const char *name, int32_t n_heads,
                                  tmx_error *err);
tmx_status head_table_read_file(const head_table *table, tmx_plan *p, const char *path, const tmx_model_info *info, tmx_error *err);
tmx_status minference_config_text(const tmx_plan *plan, char **text, size_t *n_bytes, tmx_error *err);
/* "dense" -> TMX_PATTERN_DENSE, of n bytes; false if no kind has this name. */
bool kind_of_name(const char *name, size_t n, tmx_pattern_kind *kind);

#endif
