/* one_row.c - a single row through a layer, in f32, straight from the file's blocks: decoding, and the one row of the last
 * layer that a prompt's first answer token needs.  activations.row is cut into named pieces here and nowhere else. */
#include "attn/attn.h"
#include "run/cpu_run.h"
#include "run/heads.h"

#include <assert.h>

typedef struct row_buffers {
    float *x, *normed;             /* [n_embd] */
    float *q, *heads;              /* [n_heads * head_dim] */
    float *kv;                     /* [2 n_kv_heads * head_dim] */
    float *branch;                 /* [n_embd] */
    float *scores;                 /* [n_experts] */
    expert_choice *chosen;         /* [n_experts_used] */
    float *gate, *up, *gated;      /* [n_ff] */
} row_buffers;

size_t one_row_floats(const tmx_model_info *m)
{
    return 3 * (size_t)m->n_embd + (size_t)(2 * m->n_heads + 2 * m->n_kv_heads) * (size_t)m->head_dim + 3 * (size_t)m->n_ff
         + (size_t)m->n_experts + (size_t)m->n_experts_used * (sizeof(expert_choice) / sizeof(float));
}

static cpu_run *run_of(const tmx_session *s) { return s->state; }

static row_buffers buffers(const tmx_session *s)
{
    const tmx_model_info *m = &s->model->info;
    const size_t n_q = (size_t)m->n_heads * (size_t)m->head_dim;
    row_buffers b = { .x = run_of(s)->act.row };
    b.normed = b.x + m->n_embd;
    b.q = b.normed + m->n_embd;
    b.heads = b.q + n_q;
    b.kv = b.heads + n_q;
    b.branch = b.kv + 2 * (size_t)m->n_kv_heads * (size_t)m->head_dim;
    b.gate = b.branch + m->n_embd;
    b.up = b.gate + m->n_ff;
    b.gated = b.up + m->n_ff;
    b.scores = b.gated + m->n_ff;
    b.chosen = (expert_choice *)(void *)(b.scores + m->n_experts);     /* as long and as aligned as two floats */
    return b;
}

static void product(tmx_session *s, const gguf_tensor *w, const float *x, float *y, bool is_added)
{
    const matmul_source source = tensor_source(w);
    matvec_run(&source, x, y, is_added, s->model->isa, run_of(s)->act.scratch, s->pool);
}

static void turn_heads(const tmx_session *s, int32_t layer, int32_t n_heads, const row_place *place, float *x)
{
    const model_shape *m = &s->model->tensors.shape;
    const bool has_window = tmx_model_layer_has_window(&s->model->info, layer);
    const float *cos = has_window ? place->window_cos : place->cos, *sin = has_window ? place->window_sin : place->sin;
    for (int32_t h = 0; h < n_heads; h++, x += m->head_dim) {
        run_of(s)->rows->rope(x, cos, sin, m->n_rot, m->head_dim, m->rope, x, TMX_TYPE_F32);
    }
}

float *one_row_residual(tmx_session *s) { return buffers(s).x; }

static void normed_row(const tmx_session *s, const float *weight, const float *x, float *normed)
{
    const tmx_model_info *m = &s->model->info;
    run_of(s)->rows->rmsnorm(x, weight, m->rms_eps, m->n_embd, normed, TMX_TYPE_F32);
}

void one_row_append(tmx_session *s, int32_t layer, const row_place *place, const float *x)
{
    const tmx_model_info *m = &s->model->info;
    const layer_tensors *t = s->model->layers[layer].tensors;
    cpu_run *r = run_of(s);
    const row_buffers b = buffers(s);
    normed_row(s, s->model->layers[layer].attn_norm, x, b.normed);
    const size_t head_dim = (size_t)m->head_dim, n_kv = (size_t)m->n_kv_heads * head_dim;
    product(s, t->k, b.normed, b.kv, false);
    product(s, t->v, b.normed, b.kv + n_kv, false);
    heads_finish(s->model, r->rows, layer, 0, m->n_kv_heads, true, b.kv);
    turn_heads(s, layer, m->n_kv_heads, place, b.kv);
    for (int32_t h = 0; h < m->n_kv_heads; h++) {
        const float *k = b.kv + (size_t)h * head_dim;
        r->rows->convert(k, m->head_dim, kv_row(&r->kv, r->kv.k, layer, place->seq, h, place->position), r->kv.type);
        r->rows->convert(k + n_kv, m->head_dim, kv_row(&r->kv, r->kv.v, layer, place->seq, h, place->position), r->kv.type);
    }
}

/* Decoding reads the cache densely: a layer's window is where its keys begin. */
static int32_t first_key(const tmx_session *s, int32_t layer, const row_place *place)
{
    const tmx_model_info *m = &s->model->info;
    if (place->is_prefill || !tmx_model_layer_has_window(m, layer) || place->position < m->n_window) return 0;
    return place->position - m->n_window + 1;
}

static void attend(tmx_session *s, int32_t layer, const row_place *place, const row_buffers *b)
{
    cpu_run *r = run_of(s);
    const int32_t first = first_key(s, layer, place), position = place->position - first;
    const size_t skipped = (size_t)first * (size_t)s->model->info.head_dim * type_bytes(r->kv.type);
    const tmx_attention_seq seq = {
        .q = b->q, .out = b->heads, .q_begin = position, .n_q = 1, .n_prompt = position + 1,
        .k = (const char *)kv_view(&r->kv, r->kv.k, layer, place->seq) + skipped,
        .v = (const char *)kv_view(&r->kv, r->kv.v, layer, place->seq) + skipped,
    };
    tmx_attention_params params = cpu_attention(s, TMX_TYPE_F32);
    params.seqs = &seq;
    params.n_seqs = 1;
    params.scratch = r->act.scratch;
    if (!place->is_prefill) {
        attn_decode(&params, s->pool);
        return;
    }
    params.pattern = plan_layer_pattern(s->plan, layer, place->position + 1);
    if (tmx_pattern_is_dynamic(params.pattern.kind)) params.pattern.kind = TMX_PATTERN_DENSE;  /* no block of rows to estimate from */
    const double start = now_ms();
    const tmx_status status = tmx_attention(&params, s->pool, NULL);
    assert(status == TMX_OK);
    (void)status;
    s->layer_attention_ms[layer] += now_ms() - start;
    session_count_static(s, layer, &params.pattern, place->position + 1, place->position, place->position + 1);
}

/* W input, normed where branches are, added to x. */
static void add_branch(tmx_session *s, const gguf_tensor *w, const float *input, const float *norm, const row_buffers *b, float *x)
{
    if (norm == NULL) {
        product(s, w, input, x, true);
        return;
    }
    product(s, w, input, b->branch, false);
    normed_row(s, norm, b->branch, b->branch);
    for (int32_t i = 0; i < s->model->info.n_embd; i++) x[i] += b->branch[i];
}

static void add_experts(tmx_session *s, const layer_tensors *t, const row_buffers *b, float *x)
{
    const model_shape *m = &s->model->tensors.shape;
    product(s, t->router, b->normed, b->scores, false);
    model_choose_experts(m, b->scores, b->chosen);
    for (int32_t i = 0; i < m->n_experts_used; i++) {
        const tensor_rows *gate = t->experts + b->chosen[i].expert, *up = gate + m->n_experts, *down = up + m->n_experts;
        product(s, &gate->rows, b->normed, b->gate, false);
        product(s, &up->rows, b->normed, b->up, false);
        cpu_gate_row(s, b->gate, b->up, b->gated, TMX_TYPE_F32);
        product(s, &down->rows, b->gated, b->branch, false);
        for (int32_t k = 0; k < m->n_embd; k++) x[k] += b->chosen[i].weight * b->branch[k];
    }
}

void one_row_layer(tmx_session *s, int32_t layer, const row_place *place, float *x)
{
    const tmx_model_info *m = &s->model->info;
    const model_layer *w = &s->model->layers[layer];
    const row_buffers b = buffers(s);
    normed_row(s, w->attn_norm, x, b.normed);
    product(s, w->tensors->q, b.normed, b.q, false);
    heads_finish(s->model, run_of(s)->rows, layer, m->n_heads, 0, true, b.q);
    turn_heads(s, layer, m->n_heads, place, b.q);
    attend(s, layer, place, &b);
    add_branch(s, w->tensors->attn_output, b.heads, w->attn_branch_norm, &b, x);
    normed_row(s, w->ffn_norm, x, b.normed);
    if (w->tensors->router != NULL) {
        add_experts(s, w->tensors, &b, x);
        return;
    }
    product(s, w->tensors->gate, b.normed, b.gate, false);
    product(s, w->tensors->up, b.normed, b.up, false);
    cpu_gate_row(s, b.gate, b.up, b.gated, TMX_TYPE_F32);
    add_branch(s, w->tensors->down, b.gated, w->ffn_branch_norm, &b, x);
}

void one_row_logits(tmx_session *s, const float *x, float *logits)
{
    const row_buffers b = buffers(s);
    normed_row(s, s->model->output_norm, x, b.normed);
    product(s, s->model->tensors.lm_head, b.normed, logits, false);
}
