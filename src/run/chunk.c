#include "run/chunk.h"

#include "base/status.h"

/* Rows of a prompt that come next: what is left, or what fits and ends where the plan allows a cut; what is estimated together is
 * never cut. */
static int32_t next_rows(const tmx_session *s, int32_t n_left, int32_t n_room)
{
    const int32_t n_together = plan_rows_together(s->plan, n_left);
    if (n_together > 0) return n_together <= n_room ? n_together : 0;
    return n_left <= n_room ? n_left : n_room - n_room % plan_row_unit(s->plan);
}

bool chunk_next(chunk *c, prompt_cursor *next, const tmx_prompt *prompts, int32_t n_prompts)
{
    tmx_session *s = c->s;
    c->n_rows = c->n_segments = 0;
    while (next->prompt < n_prompts && c->n_rows < s->n_chunk) {
        const tmx_prompt *p = &prompts[next->prompt];
        const int32_t n_rows = next_rows(s, p->n_tokens - next->at, s->n_chunk - c->n_rows), n_past = s->n_past[p->seq];
        if (n_rows == 0) break;        /* the next chunk has room: n_chunk is at least the unit, or all of a sequence */
        s->segments[c->n_segments++] = (segment){
            .tokens = p->tokens + next->at, .prompt = next->prompt, .seq = p->seq, .row = c->n_rows, .n_rows = n_rows,
            .q_begin = n_past + next->at, .n_prompt = n_past + p->n_tokens,
        };
        c->n_rows += n_rows;
        next->at += n_rows;
        if (next->at < p->n_tokens) break;                 /* one segment of a prompt in a chunk */
        *next = (prompt_cursor){ .prompt = next->prompt + 1 };
    }
    return c->n_rows > 0;
}

tmx_status prompts_check(const tmx_session *s, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err)
{
    if (s == NULL || prompts == NULL) return refuse(err, TMX_E_ARG, "tmx_prefill: NULL argument");
    if (n_prompts < 1 || n_prompts > s->params.n_seqs) {
        return refuse(err, TMX_E_ARG, "prefill: %d prompts for %d sequences", n_prompts, s->params.n_seqs);
    }
    for (int32_t i = 0; i < n_prompts; i++) {
        const tmx_prompt *p = &prompts[i];
        if (p->tokens == NULL || p->n_tokens < 1) return refuse(err, TMX_E_ARG, "prompt %d: empty; at least one token is needed", i);
        if (p->seq < 0 || p->seq >= s->params.n_seqs) {
            return refuse(err, TMX_E_ARG, "prompt %d: sequence %d is out of range 0..%d", i, p->seq, s->params.n_seqs - 1);
        }
        for (int32_t k = 0; k < i; k++) {
            if (prompts[k].seq == p->seq) return refuse(err, TMX_E_ARG, "prompt %d: sequence %d was given twice", i, p->seq);
        }
        if (p->n_tokens > s->params.n_ctx - s->n_past[p->seq]) {
            return refuse(err, TMX_E_FULL, "prompt %d: %d tokens do not fit into a context of %d tokens that holds %d",
                          i, p->n_tokens, s->params.n_ctx, s->n_past[p->seq]);
        }
        for (int32_t k = 0; k < p->n_tokens; k++) {
            if (p->tokens[k] >= 0 && p->tokens[k] < s->model->info.n_vocab) continue;
            return refuse(err, TMX_E_ARG, "prompt %d: token %d is %d, expected 0..%d", i, k, p->tokens[k], s->model->info.n_vocab - 1);
        }
    }
    return TMX_OK;
}

/* Dynamic methods speak of whole prompts: a new turn on a filled cache is dense. */
tmx_pattern chunk_pattern(const chunk *c, const segment *g)
{
    tmx_pattern p = plan_rows_pattern(c->s->plan, c->layer, g->n_prompt, g->q_begin + g->n_rows);
    if (tmx_pattern_is_dynamic(p.kind) && c->s->n_past[g->seq] != 0) p.kind = TMX_PATTERN_DENSE;
    return p;
}

bool chunk_is_last_layer(const chunk *c) { return c->layer == c->s->model->info.n_layers - 1; }
