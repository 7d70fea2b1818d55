/* curve_picture.h - a plan's curve as SVG: loss and time over the number of triangle layers. */
#ifndef TMX_CLI_CURVE_PICTURE_H
#define TMX_CLI_CURVE_PICTURE_H

#include "tmx.h"

/* Two panels: KL on a log scale, TTFT from 0.  n_chosen is marked.  Returns an exit code. */
int write_curve_picture(const char *path, const tmx_plan_point *points, int32_t n_points, int32_t n_chosen, const char *title);

#endif
