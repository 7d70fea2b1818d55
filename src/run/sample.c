/* sample.c - logits -> the next token.  Order of the steps: repeat penalty, temperature, top-k, top-p, min-p, draw. */
#include "base/mem.h"
#include "base/status.h"
#include "tmx.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_LAST_N = 64, MAX_LAST_N = 1 << 20 };

typedef struct candidate { float logit; int32_t id; double p; } candidate;

struct tmx_sampler {
    tmx_sampler_params params;
    int32_t n_vocab;
    candidate *candidates;         /* [n_vocab] */
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
    if (penalty == 0 || penalty == 1) return;
    for (int32_t i = 0; i < s->n_recent; i++) {
        const int32_t id = s->recent[i];
        bool is_done = false;
        for (int32_t k = 0; k < i && !is_done; k++) is_done = s->recent[k] == id;
        if (!is_done) s->logits[id] = s->logits[id] > 0 ? s->logits[id] / penalty : s->logits[id] * penalty;
    }
}

static int32_t arg_max(const float *x, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        if (x[i] > x[best]) best = i;
    }
    return best;
}

static int by_logit_then_id(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

int32_t tmx_sampler_next(tmx_sampler *s, const float *logits)
{
    const tmx_sampler_params *p = &s->params;
    memcpy(s->logits, logits, (size_t)s->n_vocab * sizeof *logits);
    penalise(s);
    if (p->temperature == 0) return arg_max(s->logits, s->n_vocab);

    for (int32_t i = 0; i < s->n_vocab; i++) s->candidates[i] = (candidate){ .logit = s->logits[i], .id = i };
    qsort(s->candidates, (size_t)s->n_vocab, sizeof *s->candidates, by_logit_then_id);
    int32_t n = p->top_k > 0 && p->top_k < s->n_vocab ? p->top_k : s->n_vocab;
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        s->candidates[i].p = exp(((double)s->candidates[i].logit - (double)s->candidates[0].logit) / (double)p->temperature);
        sum += s->candidates[i].p;
    }
    if (p->top_p > 0 && p->top_p < 1) {
        double kept = 0;
        int32_t i = 0;
        while (i < n && kept < (double)p->top_p * sum) kept += s->candidates[i++].p;
        n = i;
        sum = kept;
    }
    if (p->min_p > 0) {
        int32_t i = 1;
        double kept = s->candidates[0].p;
        while (i < n && s->candidates[i].p >= (double)p->min_p * s->candidates[0].p) kept += s->candidates[i++].p;
        n = i;
        sum = kept;
    }
    double left = draw_unit(s) * sum;
    for (int32_t i = 0; i < n; i++) {
        left -= s->candidates[i].p;
        if (left < 0) return s->candidates[i].id;
    }
    return s->candidates[n - 1].id;
}
