/* decode.c - one more token of one sequence: a single row through every layer, dense over the whole cache. */
#include "base/status.h"
#include "run/backend.h"

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
    TRY(s->backend->decode(s, seq, token, logits, err));
    if (!logits_are_finite(logits, m->n_vocab)) {
        return refuse(err, TMX_E_NUMERIC, "decode: the logits hold NaN or infinity at position %d", s->n_past[seq]);
    }
    s->n_past[seq]++;
    s->timings.n_decode_tokens++;
    s->timings.decode_ms += now_ms() - start;
    return TMX_OK;
}
