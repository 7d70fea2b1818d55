#include "stats.h"

#include <math.h>
#include <stdlib.h>

double mean_of(const double *x, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += x[i];
    return n > 0 ? sum / n : 0;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median_of(double *x, int32_t n)
{
    if (n == 0) return 0;
    qsort(x, (size_t)n, sizeof *x, by_size);
    return n % 2 == 1 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

interval paired_interval(const double *d, int32_t n)
{
    if (n == 0) return (interval){ -1, 1 };
    const double z = 1.959963984540054;        /* 97.5 % quantile of the normal distribution */
    double sum = 0, squares = 1;               /* two halves of 1 are added */
    for (int32_t i = 0; i < n; i++) {
        sum += d[i];
        squares += d[i] * d[i];
    }
    const double m = n + 2.0, mean = sum / m, half = z * sqrt((squares / m - mean * mean) / m);
    return (interval){ fmax(mean - half, -1), fmin(mean + half, 1) };
}

/* 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, beyond that Hill's expansion around the normal
 * quantile (Communications of the ACM 13, 1970, algorithm 396), good to 4 digits from 3 degrees on. */
static double t_quantile(double f)
{
    const double p = 0.05;                     /* two-sided */
    if (f == 1) return 1 / tan(p * 3.14159265358979323846 / 2);
    if (f == 2) return sqrt(2 / (p * (2 - p)) - 2);
    const double a = 1 / (f - 0.5), b = 48 / (a * a);
    double c = ((20700 * a / b - 98) * a - 16) * a + 96.36;
    const double d = ((94.5 / (b + c) - 3) / b + 1) * sqrt(a * 3.14159265358979323846 / 2) * f;
    double y = pow(d * p, 2 / f);
    if (y > 0.05 + a) {
        const double x = -1.959963984540054;
        y = x * x;
        if (f < 5) c += 0.3 * (f - 4.5) * (x + 0.6);
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c;
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x;
        y = expm1(a * y * y);
    } else {
        y = ((1 / (((f + 6) / (f * y) - 0.089 * d - 0.822) * (f + 2) * 3) + 0.5 / (f + 4)) * y - 1) * (f + 1) / (f + 2) + 1 / y;
    }
    return sqrt(f * y);
}

interval mean_interval(const double *x, int32_t n)
{
    if (n < 2) return (interval){ -INFINITY, INFINITY };
    const double mean = mean_of(x, n);
    double squares = 0;
    for (int32_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    const double half = t_quantile(n - 1) * sqrt(squares / (n - 1) / n);
    return (interval){ mean - half, mean + half };
}
