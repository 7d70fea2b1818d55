/* agreement.c - how far two rows of logits agree. */
#include "tmx.h"

#include <math.h>

static double log_sum_exp(const float *x, int32_t n, int32_t top)
{
    double sum = 1;
    for (int32_t i = 0; i < n; i++) {
        if (i != top) sum += exp((double)x[i] - (double)x[top]);
    }
    return (double)x[top] + log(sum);
}

/* Ties: lowest id.  skip -1 = none; with skip 0 n must be at least 2. */
static int32_t arg_max_but(const float *x, int32_t n, int32_t skip)
{
    int32_t best = skip == 0 ? 1 : 0;
    for (int32_t i = best + 1; i < n; i++) {
        if (i != skip && x[i] > x[best]) best = i;
    }
    return best;
}

void tmx_logits_compare(const float *a, const float *b, int32_t n, tmx_agreement *result)
{
    tmx_agreement r = { .top_a = arg_max_but(a, n, -1), .top_b = arg_max_but(b, n, -1) };
    const double lse_a = log_sum_exp(a, n, r.top_a), lse_b = log_sum_exp(b, n, r.top_b);
    for (int32_t i = 0; i < n; i++) {
        const double log_a = (double)a[i] - lse_a, log_b = (double)b[i] - lse_b;
        r.kl += exp(log_a) * (log_a - log_b);
        r.max_abs_diff = fmax(r.max_abs_diff, fabs((double)a[i] - (double)b[i]));
    }
    if (r.kl < 0) r.kl = 0;                    /* rounding: KL is never negative */
    if (n > 1) r.margin_a = (double)a[r.top_a] - (double)a[arg_max_but(a, n, r.top_a)];
    *result = r;
}
