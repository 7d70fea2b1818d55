/* plan_choice.h - --plan, --sink, --window, --last -> a plan; and a plan as JSON and as a title.
 *
 * The one rule for all commands: a plan is input, as a model file is.  What a spec, a preset's name or a plan file says and cannot be is
 * EXIT_INPUT; EXIT_USAGE is for options that do not exist, lack a value, or do not go together. */
#ifndef TMX_CLI_PLAN_CHOICE_H
#define TMX_CLI_PLAN_CHOICE_H

#include "commands.h"
#include "report.h"
#include "tmx.h"

/* The plan to be freed.  Returns an exit code and has complained when it is not 0. */
int plan_choose(const plan_choice *choice, const tmx_model_info *info, tmx_plan **plan);
/* The pattern that stands out: the last layer's kind that is not dense; NULL when all layers are dense. */
const tmx_pattern *plan_pattern(const tmx_plan *plan);
/* "dense", "triangle", "triangle mix" (some layers dense), "streaming", ... */
const char *plan_title(const tmx_plan *plan, char buf[32]);
/* A short name for tables: a short spec itself, of a path the file's name, and whether it estimates per chunk; unlike the n labels
 * before it. */
enum { PLAN_LABEL_BYTES = 40 };
void plan_label(char label[PLAN_LABEL_BYTES], const char *spec, const tmx_plan *plan, char (*before)[PLAN_LABEL_BYTES], int32_t n);
void json_plan(json_writer *j, const char *key, const tmx_plan *plan);

enum { PLAN_TEXT_BYTES = 2048 };

#endif
