#include "answer.h"

#include "progress.h"
#include "report.h"
#include "signals.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static tmx_status out_of_memory(tmx_error *err)
{
    err->code = TMX_E_MEMORY;
    snprintf(err->text, sizeof err->text, "out of memory for the answer");
    return TMX_E_MEMORY;
}

/* ---------------------------------------------------------------- text */

static bool reserve_text(answer *a, size_t n_bytes)
{
    if (n_bytes <= a->text_cap) return true;
    const size_t cap = n_bytes > 2 * a->text_cap ? n_bytes : 2 * a->text_cap;
    char *text = realloc(a->text, cap);
    if (text == NULL) return false;
    a->text = text;
    a->text_cap = cap;
    return true;
}

/* Appends what the token (or -1, the end) adds to the text. */
static tmx_status append_token(const tmx_model *model, tmx_detokenizer *d, int32_t id, answer *a, tmx_error *err)
{
    size_t n_token = 0, n_written;
    if (id >= 0) tmx_token_bytes(model, id, &n_token);
    const size_t room = 2 * n_token + 16;      /* bytes that are no character become U+FFFD, which is longer */
    if (!reserve_text(a, a->n_bytes + room)) return out_of_memory(err);
    const tmx_status status = tmx_detokenize(model, d, id, a->text + a->n_bytes, room, &n_written, err);
    if (status == TMX_OK) a->n_bytes += n_written;
    return status;
}

/* Cuts the text at the first stop text that has been completed since n_before. */
static bool cut_at_stop(answer *a, const text_list *stops, size_t n_before)
{
    size_t first = a->n_bytes;
    for (int32_t i = 0; i < stops->n; i++) {
        const size_t n_stop = strlen(stops->items[i]);
        const size_t begin = n_before >= n_stop ? n_before - n_stop + 1 : 0;
        const char *found = memmem(a->text + begin, a->n_bytes - begin, stops->items[i], n_stop);
        if (found != NULL && (size_t)(found - a->text) < first) first = (size_t)(found - a->text);
    }
    if (first == a->n_bytes) return false;
    a->n_bytes = first;
    a->text[first] = '\0';
    return true;
}

/* Bytes at the end of the text that may turn out to be the beginning of a stop text. */
static size_t held_back(const answer *a, const text_list *stops)
{
    size_t n_held = 0;
    for (int32_t i = 0; i < stops->n; i++) {
        size_t n = strlen(stops->items[i]) - 1;
        if (n > a->n_bytes) n = a->n_bytes;
        while (n > n_held && memcmp(a->text + a->n_bytes - n, stops->items[i], n) != 0) n--;
        if (n > n_held) n_held = n;
    }
    return n_held;
}

/* false: standard output is broken, and generating more would be for nobody. */
static bool show(answer *a, size_t n_bytes)
{
    if (n_bytes > a->n_shown) {
        fwrite(a->text + a->n_shown, 1, n_bytes - a->n_shown, stdout);
        a->n_shown = n_bytes;
    }
    return flush_output();
}

/* ---------------------------------------------------------------- the loop */

static tmx_status make_sampler(const answer_params *p, const int32_t *prompt_ids, size_t n_prompt,
                               tmx_sampler **sampler, tmx_error *err)
{
    const run_options *o = p->options;
    const tmx_sampler_params params = {
        .temperature = (float)o->temperature, .top_k = o->top_k, .top_p = (float)o->top_p, .min_p = (float)o->min_p,
        .repeat_penalty = o->repeat_last_n > 0 ? (float)o->repeat_penalty : 0, .repeat_last_n = o->repeat_last_n,
        .seed = p->seed,
    };
    const tmx_status status = tmx_sampler_create(sampler, &params, tmx_model_info_get(p->model)->n_vocab, err);
    if (status != TMX_OK) return status;
    const size_t n_back = (size_t)o->repeat_last_n;
    const size_t first = n_prompt > n_back ? n_prompt - n_back : 0;
    for (size_t i = first; i < n_prompt; i++) tmx_sampler_accept(*sampler, prompt_ids[i]);
    return TMX_OK;
}

static int32_t sample(const answer_params *p, tmx_sampler *sampler, float *logits)
{
    for (int32_t i = 0; i < p->n_end_ids; i++) logits[p->end_ids[i]] = -1e30f;     /* finite, as the sampler wants it */
    return tmx_sampler_next(sampler, logits);
}

/* The token after id, which joins the sequence. */
static tmx_status next_id(const answer_params *p, tmx_sampler *sampler, int32_t seq, float *logits, int32_t *id, tmx_error *err)
{
    if (p->n_end_ids == 0) return tmx_decode_next(p->session, seq, *id, sampler, id, err);
    const tmx_status status = tmx_decode(p->session, seq, *id, logits, err);
    if (status == TMX_OK) *id = sample(p, sampler, logits);
    return status;
}

static bool append_id(answer *a, int32_t id)
{
    if (a->n_ids == a->ids_cap) {
        const int32_t cap = a->ids_cap > 0 ? 2 * a->ids_cap : 64;
        int32_t *ids = realloc(a->ids, (size_t)cap * sizeof *ids);
        if (ids == NULL) return false;
        a->ids = ids;
        a->ids_cap = cap;
    }
    a->ids[a->n_ids++] = id;
    return true;
}

/* Until a->stop says why. */
static tmx_status generate(const answer_params *p, tmx_sampler *sampler, tmx_detokenizer *d, int32_t seq, float *logits,
                           answer *a, tmx_error *err)
{
    const run_options *o = p->options;
    tmx_status status;
    int32_t id = 0;
    while (o->n_predict < 0 || a->n_ids < o->n_predict) {
        if (a->n_ids == 0) {
            const double start_ms = clock_ms();
            id = sample(p, sampler, logits);
            a->first_sample_ms = clock_ms() - start_ms;
        } else if ((status = next_id(p, sampler, seq, logits, &id, err)) != TMX_OK) {
            return status;
        }
        if (tmx_token_is_end(p->model, id)) {
            a->stop = "end";
            return TMX_OK;
        }
        tmx_sampler_accept(sampler, id);
        if (!append_id(a, id)) return out_of_memory(err);
        const size_t n_before = a->n_bytes;
        if ((status = append_token(p->model, d, id, a, err)) != TMX_OK) return status;
        if (cut_at_stop(a, &o->stops, n_before)) a->stop = "stop text";
        else if (a->n_ids == o->n_predict) break;
        else if (tmx_session_n_past(p->session, seq) == tmx_session_n_ctx(p->session)) a->stop = "context";
        else if (p->is_shown && !show(a, a->n_bytes - held_back(a, &o->stops))) a->stop = "output";
        else if (signals_interrupted()) a->stop = "interrupted";
        if (a->stop != NULL) return TMX_OK;
    }
    a->stop = "limit";
    return TMX_OK;
}

tmx_status answer_generate(const answer_params *p, int32_t seq, const int32_t *prompt_ids, size_t n_prompt,
                           float *logits, answer *a, tmx_error *err)
{
    *a = (answer){ 0 };
    tmx_sampler *sampler = NULL;
    tmx_detokenizer d = { 0 };
    tmx_status status = reserve_text(a, 1) ? TMX_OK : out_of_memory(err);
    if (status == TMX_OK) {
        a->text[0] = '\0';
        status = make_sampler(p, prompt_ids, n_prompt, &sampler, err);
    }
    if (status == TMX_OK) status = generate(p, sampler, &d, seq, logits, a, err);
    if (status == TMX_OK && strcmp(a->stop, "stop text") != 0) {       /* bytes still waiting for their character */
        const size_t n_before = a->n_bytes;
        status = append_token(p->model, &d, -1, a, err);
        if (status == TMX_OK && cut_at_stop(a, &p->options->stops, n_before)) a->stop = "stop text";
    }
    if (status == TMX_OK && p->is_shown && !show(a, a->n_bytes)) a->stop = "output";
    tmx_sampler_free(sampler);
    return status;
}

void answer_free(answer *a)
{
    free(a->ids);
    free(a->text);
}
