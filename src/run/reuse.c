#include "run/reuse.h"

#include "pattern/pattern.h"

/* The last layer is left out: it adds nothing to K and V of any layer.  Nothing is kept of a prompt that a dynamic layer
 * chose keys for, or will: on a filled cache such a layer is dense (chunk_pattern), FlexPrefill looks at the whole prompt. */
int32_t tmx_session_n_reusable(const tmx_session *s, int32_t seq, int32_t n_prompt)
{
    if (s == NULL || seq < 0 || seq >= s->params.n_seqs) return -1;
    if (n_prompt < 1) return 0;
    const cold_rows *cold = &s->cold[seq];
    int32_t n = min_i32(cold->n_rows, n_prompt);
    for (int32_t l = 0; n > 0 && l < s->plan->n_layers - 1; l++) {
        const tmx_pattern then = plan_layer_pattern(s->plan, l, cold->n_prompt), now = plan_layer_pattern(s->plan, l, n_prompt);
        if (tmx_pattern_is_dynamic(then.kind) || tmx_pattern_is_dynamic(now.kind)) return 0;
        n = min_i32(n, pattern_n_same_rows(&then, cold->n_prompt, &now, n_prompt));
    }
    return n;
}

void cold_rows_extend(tmx_session *s, int32_t seq, int32_t n_tokens)
{
    const int32_t n_prompt = s->n_past[seq], n_reusable = tmx_session_n_reusable(s, seq, n_prompt);
    const bool is_whole = n_reusable >= n_prompt - n_tokens;
    s->cold[seq] = (cold_rows){ .n_rows = is_whole ? n_prompt : n_reusable, .n_prompt = n_prompt };
}

void cold_rows_cut(tmx_session *s, int32_t seq, int32_t n_past)
{
    s->cold[seq].n_rows = min_i32(s->cold[seq].n_rows, n_past);
}
