/* probe_layer.c - one layer, forward and backward: the two lists of steps of probe.h, in the same words. */
#include "base/num.h"
#include "gguf/blocks.h"
#include "probe/probe.h"

#include <assert.h>
#include <math.h>
#include <string.h>

bool probe_is_last(const tmx_probe *p, int32_t layer) { return layer == p->model->info.n_layers - 1; }

static size_t n_q_of(const tmx_probe *p) { return (size_t)p->model->info.n_heads * (size_t)p->model->info.head_dim; }
static size_t n_kv_of(const tmx_probe *p) { return (size_t)p->model->info.n_kv_heads * (size_t)p->model->info.head_dim; }

/* Chunks of rows [begin, n_tokens): s starts as { .begin = begin }. */
static bool next_chunk(const tmx_probe *p, probe_span *s)
{
    s->begin += s->n;
    s->n = p->n_tokens - s->begin < PROBE_CHUNK ? p->n_tokens - s->begin : PROBE_CHUNK;
    return s->n > 0;
}

void probe_product(const tmx_probe *p, const matmul_weight *w, const void *x, size_t x_width, int32_t n_rows, float *y,
                   size_t y_width, bool is_added)
{
    matmul_run(w, x, x_width, n_rows, y, y_width, is_added, p->b.scratch, p->pool);
}

void probe_row_product(const tmx_probe *p, const gguf_tensor *w, const float *x, float *y, bool is_added)
{
    const matmul_source source = tensor_source(w);
    matvec_run(&source, x, y, is_added, p->model->isa, p->b.scratch, p->pool);
}

/* First row that goes beyond k, v and the probabilities of a layer. */
static int32_t first_row(const tmx_probe *p, int32_t layer) { return probe_is_last(p, layer) ? p->n_tokens - 1 : 0; }

/* ---------------------------------------------------------------- forward */

static int32_t window_of(const tmx_probe *p, int32_t layer)
{
    return tmx_model_layer_has_window(&p->model->info, layer) ? p->model->info.n_window : 0;
}

static void attend(tmx_probe *p, int32_t layer)
{
    const tmx_model_info *m = &p->model->info;
    const probe_tape *t = &p->tape[layer];
    const size_t head_dim = (size_t)m->head_dim, n_q = n_q_of(p), n_kv = n_kv_of(p);
    const int32_t n_window = window_of(p, layer);
    const tmx_attention_seq seq = { .q = t->q, .k = t->k, .v = t->v, .out = t->o, .lse = t->lse, .n_q = p->n_tokens,
                                    .n_prompt = p->n_tokens };
    const tmx_attention_params params = {
        .q_type = p->act_type, .kv_type = p->act_type, .n_heads = m->n_heads, .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim,
        .q_pos_stride = n_q, .q_head_stride = head_dim, .out_pos_stride = n_q, .out_head_stride = head_dim,
        .k_pos_stride = n_kv, .k_head_stride = head_dim, .v_pos_stride = n_kv, .v_head_stride = head_dim,
        .pattern = { .kind = n_window > 0 ? TMX_PATTERN_STREAMING : TMX_PATTERN_DENSE, .n_window = n_window > 0 ? n_window : 1 },
        .seqs = &seq, .n_seqs = 1, .isa = p->model->isa, .scale = p->model->tensors.shape.score_scale, .scratch = p->b.scratch,
    };
    const tmx_status status = tmx_attention(&params, p->pool, NULL);
    assert(status == TMX_OK);
    (void)status;
}

void probe_forward(tmx_probe *p, const int32_t *tokens, int32_t layer)
{
    const model_layer *w = &p->model->layers[layer];
    const size_t n_embd = (size_t)p->model->info.n_embd, n_q = n_q_of(p), n_kv = n_kv_of(p);
    if (layer == 0) probe_embed(p, tokens);
    for (probe_span s = { 0 }; next_chunk(p, &s);) {
        probe_norm(p, p->tape[layer].x, w->attn_norm, s);
        if (probe_is_last(p, layer)) {
            probe_product(p, p->last_q, p->b.normed, n_embd, s.n, p->b.wide, n_q, false);
            probe_place_heads(p, layer, s, true, false);
            probe_product(p, p->model->last_kv, p->b.normed, n_embd, s.n, p->b.wide, 2 * n_kv, false);
            probe_place_heads(p, layer, s, false, true);
        } else {
            probe_product(p, w->qkv, p->b.normed, n_embd, s.n, p->b.wide, n_q + 2 * n_kv, false);
            probe_place_heads(p, layer, s, true, true);
        }
    }
    attend(p, layer);
}

void probe_norm_ffn(tmx_probe *p, int32_t layer, probe_span s)
{
    const tmx_model_info *m = &p->model->info;
    const model_layer *w = &p->model->layers[layer];
    const float *x1 = p->tape[layer].x1;
    assert(!probe_is_last(p, layer) || s.n == 1);
    if (!probe_is_last(p, layer)) probe_norm(p, x1, w->ffn_norm, s);
    else p->rows->rmsnorm(x1 + (size_t)s.begin * (size_t)m->n_embd, w->ffn_norm, m->rms_eps, m->n_embd, p->b.row, TMX_TYPE_F32);
}

/* x1 -> wide = (a, u); the last layer's one row by products in f32 straight from the file, as in prefill. */
static void gate_up(tmx_probe *p, int32_t layer, probe_span s)
{
    const tmx_model_info *m = &p->model->info;
    const model_layer *w = &p->model->layers[layer];
    probe_norm_ffn(p, layer, s);
    if (!probe_is_last(p, layer)) {
        probe_product(p, w->gate_up, p->b.normed, (size_t)m->n_embd, s.n, p->b.wide, 2 * (size_t)m->n_ff, false);
        return;
    }
    probe_row_product(p, w->tensors->gate, p->b.row, p->b.wide, false);
    probe_row_product(p, w->tensors->up, p->b.row, p->b.wide + m->n_ff, false);
}

void probe_widen_row(const tmx_probe *p, const void *act, size_t n, float *row)
{
    for (size_t i = 0; i < n; i++) {
        row[i] = p->act_type == TMX_TYPE_BF16 ? bf16_to_f32(((const tmx_bf16 *)act)[i]) : ((const float *)act)[i];
    }
}

/* W input, normed where branches are, added to x; all of one row. */
static void add_row_branch(tmx_probe *p, const gguf_tensor *w, const float *norm, float *x)
{
    const tmx_model_info *m = &p->model->info;
    probe_row_product(p, w, p->b.row, norm == NULL ? x : p->b.branch, norm == NULL);
    if (norm == NULL) return;
    p->rows->rmsnorm(p->b.branch, norm, m->rms_eps, m->n_embd, p->b.branch, TMX_TYPE_F32);
    for (int32_t i = 0; i < m->n_embd; i++) x[i] += p->b.branch[i];
}

/* The same for a chunk of rows. */
static void add_branch(tmx_probe *p, const matmul_weight *w, const void *input, size_t n_in, const float *norm, float *x, probe_span s)
{
    const size_t n_embd = (size_t)p->model->info.n_embd;
    if (norm == NULL) {
        probe_product(p, w, input, n_in, s.n, x + (size_t)s.begin * n_embd, n_embd, true);
        return;
    }
    probe_product(p, w, input, n_in, s.n, p->b.branch, n_embd, false);
    probe_add_branch(p, norm, x, s);
}

static void finish_last_row(tmx_probe *p, int32_t layer)
{
    const tmx_model_info *m = &p->model->info;
    const model_layer *w = &p->model->layers[layer];
    const layer_tensors *t = w->tensors;
    const size_t row = (size_t)p->n_tokens - 1, n_embd = (size_t)m->n_embd, n_q = n_q_of(p);
    const void *o = probe_row(p, p->tape[layer].o, row, n_q);
    float *x1 = p->tape[layer].x1 + row * n_embd;
    memcpy(x1, p->tape[layer].x + row * n_embd, n_embd * sizeof *x1);
    probe_widen_row(p, o, n_q, p->b.row);
    add_row_branch(p, t->attn_output, w->attn_branch_norm, x1);
    memcpy(p->b.x_end, x1, n_embd * sizeof *x1);
    const probe_span s = { .begin = (int32_t)row, .n = 1 };
    if (m->n_experts > 0) {
        probe_experts(p, layer, s, p->b.x_end);
    } else {
        gate_up(p, layer, s);
        probe_gate_row(p, p->b.wide, p->b.wide + m->n_ff, p->b.row, TMX_TYPE_F32);
        add_row_branch(p, t->down, w->ffn_branch_norm, p->b.x_end);
    }

    p->rows->rmsnorm(p->b.x_end, p->model->output_norm, m->rms_eps, m->n_embd, p->b.row, TMX_TYPE_F32);
    probe_row_product(p, p->model->tensors.lm_head, p->b.row, p->b.logits, false);
}

void probe_finish_layer(tmx_probe *p, int32_t layer)
{
    if (probe_is_last(p, layer)) {
        finish_last_row(p, layer);
        return;
    }
    const model_layer *w = &p->model->layers[layer];
    const probe_tape *t = &p->tape[layer];
    const size_t n_embd = (size_t)p->model->info.n_embd, n_ff = (size_t)p->model->info.n_ff, n_q = n_q_of(p);
    float *next = p->tape[layer + 1].x;
    for (probe_span s = { 0 }; next_chunk(p, &s);) {
        const size_t at = (size_t)s.begin * n_embd, n_bytes = (size_t)s.n * n_embd * sizeof(float);
        memcpy(t->x1 + at, t->x + at, n_bytes);
        add_branch(p, w->attn_output, probe_row(p, t->o, (size_t)s.begin, n_q), n_q, w->attn_branch_norm, t->x1, s);
        memcpy(next + at, t->x1 + at, n_bytes);
        if (p->model->info.n_experts > 0) {
            probe_experts(p, layer, s, next + at);
            continue;
        }
        gate_up(p, layer, s);
        probe_gate(p, s);
        add_branch(p, w->down, p->b.gated, n_ff, w->ffn_branch_norm, next, s);
    }
}

/* ---------------------------------------------------------------- backward */

/* d = dy/dx_end in the last row, 0 in all others. */
void probe_begin_backward(tmx_probe *p, int32_t target)
{
    const tmx_model_info *m = &p->model->info;
    const gguf_tensor *head = p->model->tensors.lm_head;
    const block_format *format = block_format_find(head->type);
    const size_t n_embd = (size_t)m->n_embd, row_bytes = block_row_bytes(format, n_embd);
    memset(p->b.d, 0, (size_t)p->n_tokens * n_embd * sizeof *p->b.d);
    format->to_f32((const char *)head->data + (size_t)target * row_bytes, p->b.row, n_embd);
    p->rows->rmsnorm_back(p->b.row, p->b.x_end, p->model->output_norm, m->rms_eps, m->n_embd,
                          p->b.d + ((size_t)p->n_tokens - 1) * n_embd);
}

/* d by what a branch adds, before its norm -> d_act.  The branch is made again: wide holds (a, u), or o is on the tape. */
static void ffn_branch_back(tmx_probe *p, int32_t layer, probe_span s)
{
    const model_layer *w = &p->model->layers[layer];
    const size_t n_ff = (size_t)p->model->info.n_ff, n_embd = (size_t)p->model->info.n_embd;
    if (w->ffn_branch_norm == NULL) {
        probe_convert_d(p, s);
        return;
    }
    if (probe_is_last(p, layer)) {
        probe_gate_row(p, p->b.wide, p->b.wide + n_ff, p->b.row, TMX_TYPE_F32);
        probe_row_product(p, w->tensors->down, p->b.row, p->b.branch, false);
    } else {
        probe_gate(p, s);
        probe_product(p, w->down, p->b.gated, n_ff, s.n, p->b.branch, n_embd, false);
    }
    probe_branch_back(p, w->ffn_branch_norm, s);
}

static void attn_branch_back(tmx_probe *p, int32_t layer, probe_span s)
{
    const model_layer *w = &p->model->layers[layer];
    const size_t n_q = n_q_of(p);
    if (w->attn_branch_norm == NULL) {
        probe_convert_d(p, s);
        return;
    }
    const void *o = probe_row(p, p->tape[layer].o, (size_t)s.begin, n_q);
    if (probe_is_last(p, layer)) {
        probe_widen_row(p, o, n_q, p->b.row);
        probe_row_product(p, w->tensors->attn_output, p->b.row, p->b.branch, false);
    } else {
        probe_product(p, w->attn_output, o, n_q, s.n, p->b.branch, (size_t)p->model->info.n_embd, false);
    }
    probe_branch_back(p, w->attn_branch_norm, s);
}

static void back_mlp(tmx_probe *p, int32_t layer)
{
    const probe_weights *w = &p->weights[layer];
    const size_t n_embd = (size_t)p->model->info.n_embd, n_ff = (size_t)p->model->info.n_ff;
    const model_layer *forward = &p->model->layers[layer];
    for (probe_span s = { .begin = first_row(p, layer) }; next_chunk(p, &s);) {
        if (p->model->info.n_experts > 0) {
            probe_experts_back(p, layer, s);
            probe_norm_back(p, p->b.d_branch, p->tape[layer].x1, forward->ffn_norm, s);
            continue;
        }
        gate_up(p, layer, s);
        ffn_branch_back(p, layer, s);
        probe_product(p, w->down, p->b.d_act, n_embd, s.n, p->b.d_wide, n_ff, false);
        probe_gate_back(p, s);
        probe_product(p, w->gate_up, p->b.d_act, 2 * n_ff, s.n, p->b.d_wide, n_embd, false);
        probe_norm_back(p, p->b.d_wide, p->tape[layer].x1, forward->ffn_norm, s);
    }
}

static void back_output(tmx_probe *p, int32_t layer)
{
    const size_t n_embd = (size_t)p->model->info.n_embd, n_q = n_q_of(p), first = (size_t)first_row(p, layer);
    memset(p->b.d_o, 0, first * n_q * sizeof *p->b.d_o);
    for (probe_span s = { .begin = (int32_t)first }; next_chunk(p, &s);) {
        attn_branch_back(p, layer, s);
        probe_product(p, p->weights[layer].attn_output, p->b.d_act, n_embd, s.n, p->b.d_o + (size_t)s.begin * n_q, n_q, false);
    }
}

/* q, k and v before bias and norms -> wide */
static void make_heads_again(tmx_probe *p, int32_t layer, probe_span s)
{
    const model_layer *w = &p->model->layers[layer];
    const size_t n_embd = (size_t)p->model->info.n_embd, n_q = n_q_of(p), n_qkv = n_q + 2 * n_kv_of(p);
    probe_norm(p, p->tape[layer].x, w->attn_norm, s);
    if (probe_is_last(p, layer)) {
        probe_product(p, p->last_q, p->b.normed, n_embd, s.n, p->b.wide, n_qkv, false);
        probe_product(p, p->model->last_kv, p->b.normed, n_embd, s.n, p->b.wide + n_q, n_qkv, false);
    } else {
        probe_product(p, w->qkv, p->b.normed, n_embd, s.n, p->b.wide, n_qkv, false);
    }
}

static void back_input(tmx_probe *p, int32_t layer, const attn_back *back)
{
    const size_t n_embd = (size_t)p->model->info.n_embd, n_qkv = n_q_of(p) + 2 * n_kv_of(p);
    for (probe_span s = { 0 }; next_chunk(p, &s);) {
        if (p->model->layers[layer].q_norm != NULL) make_heads_again(p, layer, s);
        probe_gather_heads(p, back, layer, s);
        probe_product(p, p->weights[layer].qkv, p->b.d_act, n_qkv, s.n, p->b.d_wide, n_embd, false);
        probe_norm_back(p, p->b.d_wide, p->tape[layer].x, p->model->layers[layer].attn_norm, s);
    }
}

void probe_backward(tmx_probe *p, int32_t layer, tmx_probe_sums sums[N_SECTIONS])
{
    const tmx_model_info *m = &p->model->info;
    const probe_tape *t = &p->tape[layer];
    const float score_scale = p->model->tensors.shape.score_scale;
    const attn_back back = {
        .type = p->act_type, .n_tokens = p->n_tokens, .n_heads = m->n_heads, .n_kv_heads = m->n_kv_heads, .head_dim = m->head_dim,
        .scale = score_scale != 0 ? score_scale : (float)(1.0 / sqrt((double)m->head_dim)), .n_window = window_of(p, layer), .isa = p->model->isa, .sections = p->sections,
        .q = t->q, .k = t->k, .v = t->v, .o = t->o, .lse = t->lse, .d_o = p->b.d_o, .is_sums_only = layer == 0,
        .d_q = p->b.d_q, .d_kv = p->b.d_kv, .scratch = p->b.scratch,
    };
    back_mlp(p, layer);
    back_output(p, layer);
    attn_back_run(&back, sums, p->pool);
    if (layer > 0) back_input(p, layer, &back);
}
