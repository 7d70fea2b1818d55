/* plan_parts.h - what the files of this room share.  plan.c holds the object and the spec strings, plan_json.c the
 * plan file, presets.c the table of published choices. */
#ifndef TMX_PLAN_PLAN_PARTS_H
#define TMX_PLAN_PLAN_PARTS_H

#include "plan/plan.h"

enum { PLAN_FILE_MAX_BYTES = 1 << 20 };

/* Reads a plan file; a path that does not exist is TMX_E_ARG, since it may be a misspelt keyword. */
tmx_status plan_read_file(tmx_plan **plan, const char *path, const tmx_model_info *info, tmx_error *err);

/* The plan file's text, NUL-terminated, mem_free()d by the caller. */
tmx_status plan_json_text(const tmx_plan *plan, char **text, size_t *n_bytes, tmx_error *err);

/* Name -> the preset's layer list, borrowed from the table.  TMX_E_ARG for an unknown name, TMX_E_UNSUPPORTED for
 * another architecture or number of layers than the model's. */
tmx_status preset_layers(const char **layers, const char *name, const tmx_model_info *info, tmx_error *err);

#endif
