/* sample_rule.h - which token follows: a rule on the logits of one position.  The definition that a device's gpu_sample follows. */
#ifndef TMX_OPS_SAMPLE_RULE_H
#define TMX_OPS_SAMPLE_RULE_H

#include <stdint.h>

/* In this order: temperature, top-k, top-p, min-p, draw; the fields as in tmx_sampler_params. */
typedef struct sample_rule {
    float temperature, top_p, min_p;
    int32_t top_k;
    double draw;                   /* in [0, 1): where among what is kept; nothing to the greedy choice */
} sample_rule;

typedef struct sample_candidate { float logit; int32_t id; double p; } sample_candidate;

/* Of logits [n], all finite; candidates [n] is scratch, unused when greedy. */
int32_t sample_choose(const sample_rule *rule, const float *logits, int32_t n, sample_candidate *candidates);

#endif
