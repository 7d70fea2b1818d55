/* one_row.c - a single row through a layer, in f32, straight from the file's blocks: decoding, and the one row of the last
 * layer that a prompt's first answer token needs.  activations.row is cut into named pieces here and nowhere else. */
#include "attn/attn.h"
#include "run/cpu_run.h"

#include <assert.h>

typedef struct row_buffers {
    float *x, *normed;             /* [n_embd] */
    float *q, *heads;              /* [n_heads * head_dim] */
    float *kv;                     /* [n_kv_heads * head_dim] */
    float *gate, *up, *gated;      /* [n_ff] */
} row_buffers;

size_t one_row_floats(const tmx_model_info *m)
{
    return 2 * (size_t)m->n_embd + (size_t)(2 * m->n_heads + m->n_kv_heads) * (size_t)m->head_dim + 3 * (size_t)m->n_ff;
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
    b.gate = b.kv + (size_t)m->n_kv_heads * (size_t)m->head_dim;
    b.up = b.gate + m->n_ff;
    b.gated = b.up + m->n_ff;
    return b;
}

static void product(tmx_session *s, const gguf_tensor *w, const float *x, float *y, bool is_added)
{
    const matmul_source source = tensor_source(w);
    matvec_run(&source, x, y, is_added, s->model->isa, run_of(s)->act.scratch, s->pool);
}

static void turn_heads(const tmx_session *s, int32_t n_heads, const row_place *place, float *x)
{
    const model_shape *m = &s->model->tensors.shape;
    for (int32_t h = 0; h < n_heads; h++, x += m->head_dim) {
        run_of(s)->rows->rope(x, place->cos, place->sin, m->n_rot, m->head_dim, m->rope, x, TMX_TYPE_F32);
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
    for (int is_v = 0; is_v < 2; is_v++) {
        product(s, is_v ? t->v : t->k, b.normed, b.kv, false);
        if (!is_v) turn_heads(s, m->n_kv_heads, place, b.kv);
        for (int32_t h = 0; h < m->n_kv_heads; h++) {
            r->rows->convert(b.kv + (size_t)h * (size_t)m->head_dim, m->head_dim,
                             kv_row(&r->kv, is_v ? r->kv.v : r->kv.k, layer, place->seq, h, place->position), r->kv.type);
        }
    }
}

static void attend(tmx_session *s, int32_t layer, const row_place *place, const row_buffers *b)
{
    cpu_run *r = run_of(s);
    const tmx_attention_seq seq = {
        .q = b->q, .out = b->heads, .q_begin = place->position, .n_q = 1, .n_prompt = place->position + 1,
        .k = kv_view(&r->kv, r->kv.k, layer, place->seq), .v = kv_view(&r->kv, r->kv.v, layer, place->seq),
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
    const double start = now_ms();
    const tmx_status status = tmx_attention(&params, s->pool, NULL);
    assert(status == TMX_OK);
    (void)status;
    s->layer_attention_ms[layer] += now_ms() - start;
}

void one_row_layer(tmx_session *s, int32_t layer, const row_place *place, float *x)
{
    const tmx_model_info *m = &s->model->info;
    const model_layer *w = &s->model->layers[layer];
    const row_buffers b = buffers(s);
    normed_row(s, w->attn_norm, x, b.normed);
    product(s, w->tensors->q, b.normed, b.q, false);
    turn_heads(s, m->n_heads, place, b.q);
    attend(s, layer, place, &b);
    product(s, w->tensors->attn_output, b.heads, x, true);
    normed_row(s, w->ffn_norm, x, b.normed);
    product(s, w->tensors->gate, b.normed, b.gate, false);
    product(s, w->tensors->up, b.normed, b.up, false);
    run_of(s)->rows->swiglu(b.gate, b.up, m->n_ff, b.gated, TMX_TYPE_F32);
    product(s, w->tensors->down, b.gated, x, true);
}

void one_row_logits(tmx_session *s, const float *x, float *logits)
{
    const row_buffers b = buffers(s);
    normed_row(s, s->model->output_norm, x, b.normed);
    product(s, s->model->tensors.lm_head, b.normed, logits, false);
}
