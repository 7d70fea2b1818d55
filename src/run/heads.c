#include "run/heads.h"

void heads_finish(const tmx_model *model, const row_ops *rows, int32_t layer, int32_t n_q_heads, int32_t n_kv_heads, bool is_normed,
                  float *heads)
{
    const model_layer *w = &model->layers[layer];
    const tmx_model_info *m = &model->info;
    const size_t head_dim = (size_t)m->head_dim;
    if (w->bias != NULL) {
        const float *bias = w->bias + (size_t)(m->n_heads - n_q_heads) * head_dim;     /* without q it begins at k's */
        for (size_t i = 0; i < (size_t)(n_q_heads + 2 * n_kv_heads) * head_dim; i++) heads[i] += bias[i];
    }
    if (w->q_norm == NULL || !is_normed) return;
    for (int32_t h = 0; h < n_q_heads + n_kv_heads; h++, heads += head_dim) {
        rows->rmsnorm(heads, h < n_q_heads ? w->q_norm : w->k_norm, m->rms_eps, m->head_dim, heads, TMX_TYPE_F32);
    }
}
