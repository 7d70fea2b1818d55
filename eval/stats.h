/* stats.h - what many samples say.  In: numbers of each sample.  Out: means, medians, an interval.
 *
 * The interval of a paired difference of scores: both plans answered the same n samples, d[i] in [-1, 1] is the
 * difference of their scores.  The usual mean +- z s / sqrt(n) says "exactly 0" when few samples never differ, so two
 * samples are added first, as Agresti and Min do for paired yes-no answers (Statistics in Medicine 24, 2005): half a
 * sample each at +1 and -1, and one at 0.  With m = n + 2, mean' = sum d / m, var' = (sum d^2 + 1) / m - mean'^2:
 *
 *     mean' +- 1.96 sqrt(var' / m)
 *
 * Ten samples that agree give +-16 points, fifty +-3.8, a hundred +-1.9: what a rule-of-three would say, too. */
#ifndef TMX_EVAL_STATS_H
#define TMX_EVAL_STATS_H

#include <stdint.h>

typedef struct interval { double low, high; } interval;

double mean_of(const double *x, int32_t n);    /* 0 for n 0 */
double median_of(double *x, int32_t n);        /* sorts x; 0 for n 0 */

/* 95 % interval of the mean of paired differences in [-1, 1]; n 0: [-1, 1]. */
interval paired_interval(const double *d, int32_t n);
/* 95 % Student t interval of the mean of any numbers; n < 2: all numbers. */
interval mean_interval(const double *x, int32_t n);

#endif
