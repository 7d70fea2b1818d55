/* timing.h - the clock of every benchmark, and what repeated times say.  In: times of one thing, done again and again.  Out: mean
 * and standard deviation as llama-bench prints them; median, least and the distance between the quartiles, which one
 * disturbed repetition cannot move. */
#ifndef TMX_BENCH_TIMING_H
#define TMX_BENCH_TIMING_H

#include <stdint.h>

double timing_now_ms(void);        /* monotonic */

typedef struct timing_summary {
    double mean, stddev;           /* stddev of a sample (n - 1); 0 for one value */
    double median, least;
    double spread_pct;             /* upper minus lower quartile, in percent of the median */
} timing_summary;

/* Sorts x.  All zero for n 0. */
timing_summary timing_summarize(double *x, int32_t n);

#endif
