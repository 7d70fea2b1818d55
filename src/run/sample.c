/* sample.c - logits -> the next token.  Order of the steps: repeat penalty, then those of ops/sample_rule.h. */
#include "run/sample.h"

#include "base/mem.h"
#include "base/status.h"

#include <math.h>
#include <string.h>

enum { DEFAULT_LAST_N = 64, MAX_LAST_N = 1 << 20 };

struct tmx_sampler {
    tmx_sampler_params params;
    int32_t n_vocab;
    sample_candidate *candidates;         /* [n_vocab] */
    float *logits;                 /* [n_vocab] after the repeat penalty */
    int32_t *recent;               /* ring of the last repeat_last_n tokens */
    int32_t n_recent, next_recent;
    uint64_t state;
};

static tmx_status check_range(const char *name, float value, float max, tmx_error *err)
{
    if (isfinite(value) && value >= 0 && value <= max) return TMX_OK;
    return refuse(err, TMX_E_ARG, "%s: %g is out of range 0..%g", name, (double)value, (double)max);
}

tmx_status tmx_sampler_create(tmx_sampler **sampler, const tmx_sampler_params *params, int32_t n_vocab, tmx_error *err)
{
    tmx_sampler_params p = params != NULL ? *params : (tmx_sampler_params){ 0 };
    if (sampler == NULL) return refuse(err, TMX_E_ARG, "tmx_sampler_create: sampler is NULL");
    if (n_vocab < 1) return refuse(err, TMX_E_ARG, "n_vocab: %d, expected at least 1", n_vocab);
    TRY(check_range("temperature", p.temperature, 1e4f, err));
    TRY(check_range("top_p", p.top_p, 1, err));
    TRY(check_range("min_p", p.min_p, 1, err));
    TRY(check_range("repeat_penalty", p.repeat_penalty, 1e4f, err));
    if (p.top_k < 0) return refuse(err, TMX_E_ARG, "top_k: %d is negative", p.top_k);
    if (p.repeat_last_n < 0 || p.repeat_last_n > MAX_LAST_N) {
        return refuse(err, TMX_E_ARG, "repeat_last_n: %d is out of range 0..%d", p.repeat_last_n, MAX_LAST_N);
    }
    if (p.repeat_last_n == 0) p.repeat_last_n = DEFAULT_LAST_N;
    tmx_sampler *s = mem_alloc(1, sizeof *s);
    if (s == NULL) return refuse(err, TMX_E_MEMORY, "sampler: out of memory");
    s->params = p;
    s->n_vocab = n_vocab;
    s->state = p.seed;
    s->candidates = mem_alloc((size_t)n_vocab, sizeof *s->candidates);
    s->logits = mem_alloc((size_t)n_vocab, sizeof *s->logits);
    s->recent = mem_alloc((size_t)p.repeat_last_n, sizeof *s->recent);
    if (s->candidates == NULL || s->logits == NULL || s->recent == NULL) {
        tmx_sampler_free(s);
        return refuse(err, TMX_E_MEMORY, "sampler: out of memory for %d tokens", n_vocab);
    }
    *sampler = s;
    return TMX_OK;
}

void tmx_sampler_free(tmx_sampler *s)
{
    if (s == NULL) return;
    mem_free(s->candidates);
    mem_free(s->logits);
    mem_free(s->recent);
    mem_free(s);
}

void tmx_sampler_accept(tmx_sampler *s, int32_t token)
{
    if (token < 0 || token >= s->n_vocab) return;
    s->recent[s->next_recent] = token;
    s->next_recent = (s->next_recent + 1) % s->params.repeat_last_n;
    if (s->n_recent < s->params.repeat_last_n) s->n_recent++;
}

/* splitmix64: one word of state, the same numbers everywhere. */
static double draw_unit(tmx_sampler *s)
{
    uint64_t z = s->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static void penalise(tmx_sampler *s)
{
    const float penalty = s->params.repeat_penalty;
    if (sampler_is_plain(s)) return;
    for (int32_t i = 0; i < s->n_recent; i++) {
        const int32_t id = s->recent[i];
        bool is_done = false;
        for (int32_t k = 0; k < i && !is_done; k++) is_done = s->recent[k] == id;
        if (!is_done) s->logits[id] = s->logits[id] > 0 ? s->logits[id] / penalty : s->logits[id] * penalty;
    }
}

int32_t sampler_n_vocab(const tmx_sampler *s) { return s->n_vocab; }
float *sampler_logits(tmx_sampler *s) { return s->logits; }
bool sampler_is_plain(const tmx_sampler *s) { return s->params.repeat_penalty == 0 || s->params.repeat_penalty == 1; }

sample_rule sampler_rule(tmx_sampler *s)
{
    const tmx_sampler_params *p = &s->params;
    return (sample_rule){ .temperature = p->temperature, .top_k = p->top_k, .top_p = p->top_p, .min_p = p->min_p,
                          .draw = p->temperature != 0 ? draw_unit(s) : 0 };
}

int32_t tmx_sampler_next(tmx_sampler *s, const float *logits)
{
    if (logits != s->logits) memcpy(s->logits, logits, (size_t)s->n_vocab * sizeof *logits);
    penalise(s);
    const sample_rule rule = sampler_rule(s);
    return sample_choose(&rule, s->logits, s->n_vocab, s->candidates);
}
