#include "model/model.h"

#include <math.h>

/* Experts come in ascending order, so of two equal ones the first stays ahead. */
static bool is_better(const float *scores, int32_t a, int32_t b) { return scores[a] > scores[b]; }

void model_choose_experts(const model_shape *s, const float *scores, expert_choice *chosen)
{
    const int32_t n_used = s->n_experts_used;
    int32_t n = 0;
    for (int32_t e = 0; e < s->n_experts; e++) {           /* the best so far, best first */
        int32_t at = n < n_used ? n++ : n_used;
        for (; at > 0 && is_better(scores, e, chosen[at - 1].expert); at--) {
            if (at < n_used) chosen[at] = chosen[at - 1];
        }
        if (at < n_used) chosen[at].expert = e;
    }
    const float top = scores[chosen[0].expert];
    double sum = 0;
    for (int32_t i = 0; i < n_used; i++) sum += exp((double)(scores[chosen[i].expert] - top));
    for (int32_t i = 0; i < n_used; i++) chosen[i].weight = (float)(exp((double)(scores[chosen[i].expert] - top)) / sum);
    for (int32_t i = 1; i < n_used; i++) {
        const expert_choice c = chosen[i];
        int32_t at = i;
        for (; at > 0 && chosen[at - 1].expert > c.expert; at--) chosen[at] = chosen[at - 1];
        chosen[at] = c;
    }
}

int32_t model_rows_of_expert(const expert_choice *chosen, int32_t n_rows, int32_t n_used, int32_t expert, int32_t *at)
{
    int32_t n = 0;
    for (int32_t i = 0; i < n_rows * n_used; i++) {
        if (chosen[i].expert == expert) at[n++] = i;
    }
    return n;
}
