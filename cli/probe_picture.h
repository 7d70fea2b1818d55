/* probe_picture.h - what a probe report looks like: a table for the terminal, an SVG for eyes. */
#ifndef TMX_CLI_PROBE_PICTURE_H
#define TMX_CLI_PROBE_PICTURE_H

#include "tmx.h"

#include <stdio.h>

/* Facts, then a line for each layer, then the order. */
void print_probe_table(FILE *out, const tmx_probe_report *report, const tmx_model_info *info);

/* Two panels, gradient (theta_abs) and attention, over the layers, a line for each section, log scale.  Returns an exit code. */
int write_probe_picture(const char *path, const tmx_probe_report *report, const tmx_model_info *info);

#endif
