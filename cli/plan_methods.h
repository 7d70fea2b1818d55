/* plan_methods.h - tmx plan --methods 'A;B': its text -> dynamic methods, and what a calibration chose of them as a table. */
#ifndef TMX_CLI_PLAN_METHODS_H
#define TMX_CLI_PLAN_METHODS_H

#include "eval/calibrate.h"
#include "spec_list.h"

/* Dynamic methods without layers, each once: a plan has one setting of each.  What the text says and cannot be is EXIT_INPUT, as of any plan.
 * Returns an exit code; methods to be freed in any case. */
int methods_parse(spec_list *methods, const char *text, const tmx_model_info *info);

void print_methods(const calibration *found, const spec_list *methods);

#endif
