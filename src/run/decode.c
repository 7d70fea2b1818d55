/* decode.c - one more token of one sequence: a single row through every layer, dense over the whole cache. */
#include "base/status.h"
#include "gguf/blocks.h"
#include "run/session.h"

tmx_status tmx_decode(tmx_session *s, int32_t seq, int32_t token, float *logits, tmx_error *err)
{
    if (s == NULL || logits == NULL) return refuse(err, TMX_E_ARG, "tmx_decode: NULL argument");
    const tmx_model_info *m = &s->model->info;
    if (seq < 0 || seq >= s->params.n_seqs) {
        return refuse(err, TMX_E_ARG, "decode: sequence %d is out of range 0..%d", seq, s->params.n_seqs - 1);
    }
    if (token < 0 || token >= m->n_vocab) return refuse(err, TMX_E_ARG, "decode: token %d, expected 0..%d", token, m->n_vocab - 1);
    if (s->n_past[seq] == 0) return refuse(err, TMX_E_ARG, "decode: sequence %d holds no prompt yet", seq);
    if (s->n_past[seq] >= s->params.n_ctx) return refuse(err, TMX_E_FULL, "decode: the context of %d tokens is full", s->params.n_ctx);

    const double start = now_ms();
    const gguf_tensor *table = s->model->tensors.token_embd;
    const block_format *format = block_format_find(table->type);
    const row_place place = { .seq = seq, .position = s->n_past[seq], .cos = s->act.cos, .sin = s->act.sin };
    float *x = one_row_residual(s);
    format->to_f32((const char *)table->data + (size_t)token * block_row_bytes(format, (size_t)m->n_embd), x, (size_t)m->n_embd);
    rope_angles(place.position, m->rope_freq_base, s->model->tensors.shape.n_rot, s->model->rope_divisor,
                s->act.cos, s->act.sin);
    for (int32_t layer = 0; layer < m->n_layers; layer++) {
        one_row_append(s, layer, &place, x);
        one_row_layer(s, layer, &place, x);
    }
    one_row_logits(s, x, logits);
    if (!logits_are_finite(logits, m->n_vocab)) {
        return refuse(err, TMX_E_NUMERIC, "decode: the logits hold NaN or infinity at position %d", place.position);
    }
    s->n_past[seq]++;
    s->timings.n_decode_tokens++;
    s->timings.decode_ms += now_ms() - start;
    return TMX_OK;
}
