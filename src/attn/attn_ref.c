#include "attn/attn_kernel.h"

#include "attn/attn_element.h"

#include <math.h>

/* out[i][h] = sum over visible k of exp(s_k - m) V[k] / sum of exp(s_k - m);  s_k = scale q[i][h] . K[k][g], m = max.
 * Every score is computed again wherever it is needed, so that no buffer is. */
static void reference(const tmx_attention_params *p, const tmx_attention_seq *seq, const key_lists *lists, const head_keys *heads,
                      double *out, double *lse)
{
    const double scale = p->scale != 0.0f ? (double)p->scale : 1.0 / sqrt((double)p->head_dim);
    const int32_t n_group = p->n_heads / p->n_kv_heads;
    const size_t n_dim = (size_t)p->head_dim;
    for (int32_t i = 0; i < seq->n_q; i++) {
        for (int32_t h = 0; h < p->n_heads; h++, out += n_dim, lse++) {
            const int32_t q_pos = seq->q_begin + i;
            const size_t q_at = (size_t)i * p->q_pos_stride + (size_t)h * p->q_head_stride;
            const size_t g = (size_t)(h / n_group);
            double max = -INFINITY, sum = 0.0;
            for (size_t d = 0; d < n_dim; d++) out[d] = 0.0;
            for (int pass = 0; pass < 2; pass++) {
                for (int32_t k = 0; k <= q_pos; k++) {
                    const bool is_visible = lists != NULL ? key_lists_visible(lists, h, q_pos, k)
                                          : heads != NULL ? head_keys_visible(&heads[h], q_pos, k)
                                                          : pattern_is_visible(&p->pattern, seq->n_prompt, q_pos, k);
                    if (!is_visible) continue;
                    const size_t k_at = (size_t)k * p->k_pos_stride + g * p->k_head_stride;
                    const size_t v_at = (size_t)k * p->v_pos_stride + g * p->v_head_stride;
                    double s = 0.0;
                    for (size_t d = 0; d < n_dim; d++) {
                        s += attn_element(seq->q, p->q_type, q_at + d) * attn_element(seq->k, p->kv_type, k_at + d);
                    }
                    s *= scale;
                    if (pass == 0) {
                        if (s > max || isnan(s)) max = s;
                        continue;
                    }
                    const double weight = exp(s - max);
                    sum += weight;
                    for (size_t d = 0; d < n_dim; d++) out[d] += weight * attn_element(seq->v, p->kv_type, v_at + d);
                }
            }
            for (size_t d = 0; d < n_dim && sum != 0.0; d++) out[d] /= sum;
            *lse = sum == 0.0 ? -INFINITY : max + log(sum);
        }
    }
}

void attn_ref_f64(const tmx_attention_params *params, int32_t seq, double *out, double *lse)
{
    reference(params, &params->seqs[seq], NULL, NULL, out, lse);
}

void attn_lists_ref_f64(const tmx_attention_params *params, const key_lists *lists, double *out, double *lse)
{
    reference(params, &params->seqs[0], lists, NULL, out, lse);
}

void attn_heads_ref_f64(const tmx_attention_params *params, const head_keys *heads, double *out, double *lse)
{
    reference(params, &params->seqs[0], NULL, heads, out, lse);
}
