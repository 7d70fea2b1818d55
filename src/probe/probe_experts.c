/* probe_experts.c - a layer's experts, forward as in run/cpu_experts.c and backward by probe.h: expert by expert the rows that
 * chose it, gathered.  A row gets the parts of its experts in ascending order, the router's last. */
#include "probe/probe.h"

#include <assert.h>
#include <string.h>

static const tensor_rows *expert_tensor(const tmx_probe *p, int32_t layer, int32_t part, int32_t e)    /* part 0 gate, 1 up, 2 down */
{
    return p->model->tensors.layers[layer].experts + (size_t)part * (size_t)p->model->info.n_experts + (size_t)e;
}

/* x1 -> z in normed or row, chosen */
static void route(tmx_probe *p, int32_t layer, probe_span s)
{
    const tmx_model_info *m = &p->model->info;
    const model_layer *w = &p->model->layers[layer];
    const size_t n_experts = (size_t)m->n_experts;
    assert(w->ffn_branch_norm == NULL);
    probe_norm_ffn(p, layer, s);
    if (probe_is_last(p, layer)) probe_row_product(p, w->tensors->router, p->b.row, p->b.scores, false);
    else probe_product(p, w->router, p->b.normed, (size_t)m->n_embd, s.n, p->b.scores, n_experts, false);
    for (size_t row = 0; row < (size_t)s.n; row++) {
        model_choose_experts(&p->model->tensors.shape, p->b.scores + row * n_experts, p->b.chosen + row * (size_t)m->n_experts_used);
    }
}

static size_t row_of(const tmx_probe *p, int32_t i) { return (size_t)(p->b.expert_rows[i] / p->model->info.n_experts_used); }

/* The expert's rows of the chunk -> expert_rows, their (a, u) -> wide, their g -> gated, or gated_row in f32; how many. */
static int32_t gate_expert(tmx_probe *p, int32_t layer, probe_span s, int32_t e)
{
    const tmx_model_info *m = &p->model->info;
    const size_t n_embd = (size_t)m->n_embd, n_ff = (size_t)m->n_ff, row_bytes = n_embd * probe_type_bytes(p->act_type);
    const int32_t n = model_rows_of_expert(p->b.chosen, s.n, m->n_experts_used, e, p->b.expert_rows);
    if (n == 0) return 0;
    if (probe_is_last(p, layer)) {
        probe_row_product(p, &expert_tensor(p, layer, 0, e)->rows, p->b.row, p->b.wide, false);
        probe_row_product(p, &expert_tensor(p, layer, 1, e)->rows, p->b.row, p->b.wide + n_ff, false);
        probe_gate_row(p, p->b.wide, p->b.wide + n_ff, p->b.gated_row, TMX_TYPE_F32);
        return n;
    }
    for (int32_t i = 0; i < n; i++) {
        memcpy(probe_row(p, p->b.gathered, (size_t)i, n_embd), probe_row(p, p->b.normed, row_of(p, i), n_embd), row_bytes);
    }
    probe_product(p, p->model->layers[layer].experts[e].gate_up, p->b.gathered, n_embd, n, p->b.wide, 2 * n_ff, false);
    probe_gate(p, (probe_span){ .n = n });
    return n;
}

void probe_experts(tmx_probe *p, int32_t layer, probe_span s, float *x)
{
    const tmx_model_info *m = &p->model->info;
    const size_t n_embd = (size_t)m->n_embd;
    route(p, layer, s);
    for (int32_t e = 0; e < m->n_experts; e++) {
        const int32_t n = gate_expert(p, layer, s, e);
        if (n == 0) continue;
        if (probe_is_last(p, layer)) probe_row_product(p, &expert_tensor(p, layer, 2, e)->rows, p->b.gated_row, p->b.branch, false);
        else probe_product(p, p->model->layers[layer].experts[e].down, p->b.gated, (size_t)m->n_ff, n, p->b.branch, n_embd, false);
        for (int32_t i = 0; i < n; i++) {
            const float weight = p->b.chosen[p->b.expert_rows[i]].weight, *y = p->b.branch + (size_t)i * n_embd;
            float *sum = x + row_of(p, i) * n_embd;
            for (size_t k = 0; k < n_embd; k++) sum[k] += weight * y[k];
        }
    }
}

/* h -> r, and p_e h in its place, of the expert's i-th row */
static void weigh_row(tmx_probe *p, bool is_last, int32_t i)
{
    const size_t n_ff = (size_t)p->model->info.n_ff;
    const int32_t at = p->b.expert_rows[i];
    const float weight = p->b.chosen[at].weight;
    float *h = p->b.d_wide + (size_t)i * n_ff, *g = is_last ? p->b.gated_row : p->b.row;
    if (!is_last) probe_widen_row(p, probe_row(p, p->b.gated, (size_t)i, n_ff), n_ff, g);
    double r = 0;
    for (size_t k = 0; k < n_ff; k++) {
        r += (double)h[k] * (double)g[k];
        h[k] *= weight;
    }
    p->b.d_chosen[at] = (float)r;
}

static void back_expert(tmx_probe *p, int32_t layer, probe_span s, int32_t e)
{
    const expert_weights *w = &p->weights[layer].experts[e];
    const size_t n_embd = (size_t)p->model->info.n_embd, n_ff = (size_t)p->model->info.n_ff;
    const int32_t n = gate_expert(p, layer, s, e);
    if (n == 0) return;
    for (int32_t i = 0; i < n; i++) {
        p->rows->convert(p->b.d + ((size_t)s.begin + row_of(p, i)) * n_embd, (int32_t)n_embd,
                         probe_row(p, p->b.gathered, (size_t)i, n_embd), p->act_type);
    }
    probe_product(p, w->down, p->b.gathered, n_embd, n, p->b.d_wide, n_ff, false);
    for (int32_t i = 0; i < n; i++) weigh_row(p, probe_is_last(p, layer), i);
    probe_gate_back(p, (probe_span){ .n = n });
    probe_product(p, w->gate_up, p->b.d_act, 2 * n_ff, n, p->b.branch, n_embd, false);
    for (int32_t i = 0; i < n; i++) {
        const float *part = p->b.branch + (size_t)i * n_embd;
        float *d_z = p->b.d_branch + row_of(p, i) * n_embd;
        for (size_t k = 0; k < n_embd; k++) d_z[k] += part[k];
    }
}

/* r -> d_s of the chunk's row, in act_type in d_act */
static void back_choice(tmx_probe *p, size_t row)
{
    const size_t n_experts = (size_t)p->model->info.n_experts, n_used = (size_t)p->model->info.n_experts_used;
    const expert_choice *chosen = p->b.chosen + row * n_used;
    const float *r = p->b.d_chosen + row * n_used;
    float *d_s = p->b.scores + row * n_experts;
    double mean = 0;
    for (size_t i = 0; i < n_used; i++) mean += (double)chosen[i].weight * (double)r[i];
    memset(d_s, 0, n_experts * sizeof *d_s);
    for (size_t i = 0; i < n_used; i++) d_s[chosen[i].expert] = chosen[i].weight * (float)((double)r[i] - mean);
    p->rows->convert(d_s, (int32_t)n_experts, probe_row(p, p->b.d_act, row, n_experts), p->act_type);
}

void probe_experts_back(tmx_probe *p, int32_t layer, probe_span s)
{
    const size_t n_embd = (size_t)p->model->info.n_embd, n_experts = (size_t)p->model->info.n_experts;
    route(p, layer, s);
    memset(p->b.d_branch, 0, (size_t)s.n * n_embd * sizeof *p->b.d_branch);
    for (int32_t e = 0; e < p->model->info.n_experts; e++) back_expert(p, layer, s, e);
    for (size_t row = 0; row < (size_t)s.n; row++) back_choice(p, row);
    probe_product(p, p->weights[layer].router, p->b.d_act, n_experts, s.n, p->b.d_branch, n_embd, true);
}
