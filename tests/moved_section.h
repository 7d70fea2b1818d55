/* moved_section.h - a logit's central difference by a factor on one section of a layer's attention probabilities, on the probe's
 * own forward pass: the layer's o, made by the production kernels under the patterns that see the section or all but it, is
 * moved, and the passes after it are run again.  f32, models without windows of their own. */
#ifndef TMX_TESTS_MOVED_SECTION_H
#define TMX_TESTS_MOVED_SECTION_H

#include "probe/probe.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* o += e times the section's part of it; sections as in tmx_probe_layer: 0 streaming, 1 last, 2 middle. */
static inline void move_section(const tmx_probe *p, int32_t layer, int section, float e)
{
    const tmx_model_info *m = &p->model->info;
    const probe_tape *t = &p->tape[layer];
    const size_t n = (size_t)p->n_tokens, n_dim = (size_t)m->head_dim, n_heads = (size_t)m->n_heads, n_q = n_heads * n_dim;
    const size_t n_kv = (size_t)m->n_kv_heads * n_dim;
    float *part = calloc(n * n_q, sizeof *part), *lse = calloc(n * n_heads, sizeof *lse), *o = t->o;
    const tmx_attention_seq seq = { .q = t->q, .k = t->k, .v = t->v, .out = part, .lse = lse, .n_q = p->n_tokens, .n_prompt = p->n_tokens };
    const tmx_attention_params params = {
        .n_heads = m->n_heads, .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim, .q_pos_stride = n_q, .q_head_stride = n_dim,
        .k_pos_stride = n_kv, .k_head_stride = n_dim, .v_pos_stride = n_kv, .v_head_stride = n_dim, .out_pos_stride = n_q,
        .out_head_stride = n_dim, .seqs = &seq, .n_seqs = 1, .isa = p->model->isa,
        .pattern = { .kind = TMX_PATTERN_STREAMING, .n_sink = p->sections.n_sink, .n_window = p->sections.n_window },
    };
    assert_int_equal(tmx_attention(&params, p->pool, NULL), TMX_OK);
    for (size_t i = 0; i < n; i++) {
        const bool is_tail = i + (size_t)p->sections.n_last >= n;
        for (size_t h = 0; h < n_heads; h++) {
            const float share = expf(lse[i * n_heads + h] - t->lse[i * n_heads + h]);
            for (size_t d = 0; d < n_dim; d++) {
                const size_t at = i * n_q + h * n_dim + d;
                const float streaming = share * part[at], rest = o[at] - streaming;
                o[at] += e * (section == 0 ? streaming : (section == 1) == is_tail ? rest : 0);
            }
        }
    }
    free(part), free(lse);
}

static inline double section_difference(tmx_probe *p, const int32_t *tokens, int32_t n, int32_t target, int32_t layer, int section, float e)
{
    double logits[2];
    for (int i = 0; i < 2; i++) {
        tmx_error err;
        if (tmx_probe_run(p, tokens, n, target, NULL, NULL, &err) != TMX_OK) fail_msg("%s", err.text);
        move_section(p, layer, section, i == 0 ? -e : e);
        probe_finish_layer(p, layer);
        for (int32_t l = layer + 1; l < p->model->info.n_layers; l++) {
            probe_forward(p, tokens, l);
            probe_finish_layer(p, l);
        }
        logits[i] = (double)p->b.logits[target];
    }
    return (logits[1] - logits[0]) / (2 * (double)e);
}

#endif
