/* sample_rule.c - the definition, in f64 over the candidates from the best on. */
#include "ops/sample_rule.h"

#include <math.h>
#include <stdlib.h>

static int32_t arg_max(const float *x, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        if (x[i] > x[best]) best = i;
    }
    return best;
}

static int by_logit_then_id(const void *a, const void *b)
{
    const sample_candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

int32_t sample_choose(const sample_rule *rule, const float *logits, int32_t n_vocab, sample_candidate *c)
{
    if (rule->temperature == 0) return arg_max(logits, n_vocab);

    for (int32_t i = 0; i < n_vocab; i++) c[i] = (sample_candidate){ .logit = logits[i], .id = i };
    qsort(c, (size_t)n_vocab, sizeof *c, by_logit_then_id);
    int32_t n = rule->top_k > 0 && rule->top_k < n_vocab ? rule->top_k : n_vocab;
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        c[i].p = exp(((double)c[i].logit - (double)c[0].logit) / (double)rule->temperature);
        sum += c[i].p;
    }
    if (rule->top_p > 0 && rule->top_p < 1) {
        double kept = 0;
        int32_t i = 0;
        while (i < n && kept < (double)rule->top_p * sum) kept += c[i++].p;
        n = i;
        sum = kept;
    }
    if (rule->min_p > 0) {
        int32_t i = 1;
        double kept = c[0].p;
        while (i < n && c[i].p >= (double)rule->min_p * c[0].p) kept += c[i++].p;
        n = i;
        sum = kept;
    }
    double left = rule->draw * sum;
    for (int32_t i = 0; i < n; i++) {
        left -= c[i].p;
        if (left < 0) return c[i].id;
    }
    return c[n - 1].id;
}
