/* decode.c - one more token of one sequence: a single row through every layer, dense over the whole cache. */
#include "base/status.h"
#include "run/backend.h"
#include "run/sample.h"

static tmx_status check(const tmx_session *s, int32_t seq, int32_t token, tmx_error *err)
{
    const tmx_model_info *m = &s->model->info;
    if (seq < 0 || seq >= s->params.n_seqs) {
        return refuse(err, TMX_E_ARG, "decode: sequence %d is out of range 0..%d", seq, s->params.n_seqs - 1);
    }
    if (token < 0 || token >= m->n_vocab) return refuse(err, TMX_E_ARG, "decode: token %d, expected 0..%d", token, m->n_vocab - 1);
    if (s->n_past[seq] == 0) return refuse(err, TMX_E_ARG, "decode: sequence %d holds no prompt yet", seq);
    if (s->n_past[seq] >= s->params.n_ctx) return refuse(err, TMX_E_FULL, "decode: the context of %d tokens is full", s->params.n_ctx);
    return TMX_OK;
}

static tmx_status refuse_logits(const tmx_session *s, int32_t seq, tmx_error *err)
{
    return refuse(err, TMX_E_NUMERIC, "decode: the logits hold NaN or infinity at position %d", s->n_past[seq]);
}

static void count_token(tmx_session *s, int32_t seq, double start_ms)
{
    s->n_past[seq]++;
    s->timings.n_decode_tokens++;
    s->timings.decode_ms += now_ms() - start_ms;
}

tmx_status tmx_decode(tmx_session *s, int32_t seq, int32_t token, float *logits, tmx_error *err)
{
    if (s == NULL || logits == NULL) return refuse(err, TMX_E_ARG, "tmx_decode: NULL argument");
    TRY(check(s, seq, token, err));
    const double start_ms = now_ms();
    TRY(s->backend->decode(s, seq, token, logits, err));
    if (!logits_are_finite(logits, s->model->info.n_vocab)) return refuse_logits(s, seq, err);
    count_token(s, seq, start_ms);
    return TMX_OK;
}

tmx_status tmx_decode_next(tmx_session *s, int32_t seq, int32_t token, tmx_sampler *sampler, int32_t *next, tmx_error *err)
{
    if (s == NULL || sampler == NULL || next == NULL) return refuse(err, TMX_E_ARG, "tmx_decode_next: NULL argument");
    const int32_t n_vocab = s->model->info.n_vocab;
    if (sampler_n_vocab(sampler) != n_vocab) {
        return refuse(err, TMX_E_ARG, "decode: a sampler of %d tokens, the model has %d", sampler_n_vocab(sampler), n_vocab);
    }
    if (s->backend->decode_next == NULL || !sampler_is_plain(sampler)) {
        TRY(tmx_decode(s, seq, token, sampler_logits(sampler), err));
        *next = tmx_sampler_next(sampler, sampler_logits(sampler));
        return TMX_OK;
    }
    TRY(check(s, seq, token, err));
    const double start_ms = now_ms();
    const sample_rule rule = sampler_rule(sampler);
    int32_t chosen;
    TRY(s->backend->decode_next(s, seq, token, &rule, &chosen, err));
    if (chosen < 0) return refuse_logits(s, seq, err);
    count_token(s, seq, start_ms);
    *next = chosen;
    return TMX_OK;
}
