#include "timing.h"

#include "eval/stats.h"

#include <math.h>
#include <time.h>

double timing_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* Of sorted values, between the two nearest; share in [0, 1]. */
static double quantile(const double *sorted, int32_t n, double share)
{
    const double at = share * (n - 1);
    const int32_t below = (int32_t)at, above = below + 1 < n ? below + 1 : below;
    return sorted[below] + (sorted[above] - sorted[below]) * (at - below);
}

timing_summary timing_summarize(double *x, int32_t n)
{
    timing_summary s = { 0 };
    if (n == 0) return s;
    double squares = 0;
    s.median = median_of(x, n);                /* which sorts */
    s.least = x[0];
    if (s.median > 0) s.spread_pct = 100 * (quantile(x, n, 0.75) - quantile(x, n, 0.25)) / s.median;
    s.mean = mean_of(x, n);
    for (int32_t i = 0; i < n; i++) squares += (x[i] - s.mean) * (x[i] - s.mean);
    if (n > 1) s.stddev = sqrt(squares / (n - 1));
    return s;
}
