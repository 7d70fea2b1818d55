/* cpu_experts.c - a layer's experts on a chunk: every row's choice, then expert by expert the rows that chose it, gathered so
 * that each expert's weights are read once.  A row gets its experts' results in ascending order of the expert, so its bits do
 * not depend on the rows beside it. */
#include "run/cpu_run.h"

#include <string.h>

static void product(chunk *c, const matmul_weight *w, const void *x, size_t x_width, int32_t n_rows, float *y, size_t y_width)
{
    const cpu_run *r = c->s->state;
    const double start = now_ms();
    matmul_run(w, x, x_width, n_rows, y, y_width, false, r->act.scratch, c->s->pool);
    c->s->timings.matmul_ms += now_ms() - start;
}

static void run_expert(chunk *c, int32_t e)
{
    const cpu_run *r = c->s->state;
    const activations *a = &r->act;
    const tmx_model_info *m = &c->s->model->info;
    const model_layer *w = &c->s->model->layers[c->layer];
    const size_t n_embd = (size_t)m->n_embd, n_ff = (size_t)m->n_ff, row_bytes = n_embd * type_bytes(r->act_type);
    const int32_t n_used = m->n_experts_used, n = model_rows_of_expert(a->chosen, c->n_rows, n_used, e, a->expert_rows);
    if (n == 0) return;
    for (int32_t i = 0; i < n; i++) {
        memcpy(act_row(r, a->gathered, i, n_embd), act_row(r, a->normed, a->expert_rows[i] / n_used, n_embd), row_bytes);
    }
    product(c, w->experts[e].gate_up, a->gathered, n_embd, n, a->gate_up, 2 * n_ff);
    cpu_gate_rows(c, n);
    product(c, w->experts[e].down, a->gated, n_ff, n, a->expert_out, n_embd);
    for (int32_t i = 0; i < n; i++) {
        const float weight = a->chosen[a->expert_rows[i]].weight, *y = a->expert_out + (size_t)i * n_embd;
        float *x = a->x + (size_t)(a->expert_rows[i] / n_used) * n_embd;
        for (size_t k = 0; k < n_embd; k++) x[k] += weight * y[k];
    }
}

void cpu_experts(chunk *c)
{
    const cpu_run *r = c->s->state;
    const activations *a = &r->act;
    const tmx_model *model = c->s->model;
    const size_t n_experts = (size_t)model->info.n_experts, n_used = (size_t)model->info.n_experts_used;
    product(c, model->layers[c->layer].router, a->normed, (size_t)model->info.n_embd, c->n_rows, a->scores, n_experts);
    for (size_t row = 0; row < (size_t)c->n_rows; row++) {
        model_choose_experts(&model->tensors.shape, a->scores + row * n_experts, a->chosen + row * n_used);
    }
    for (int32_t e = 0; e < model->info.n_experts; e++) run_expert(c, e);
}
