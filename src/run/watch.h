/* watch.h - what one head of one layer attended to, counted into the tiles of tmx_session_watch.  In: a session that watches, and
 * what rows of that layer attended by.  Out: its tiles. */
#ifndef TMX_RUN_WATCH_H
#define TMX_RUN_WATCH_H

#include "attn/attn.h"
#include "run/session.h"

static inline bool watches_layer(const tmx_session *s, int32_t layer) { return s->watch.pairs != NULL && s->watch.layer == layer; }

/* Rows [q_begin, q_end) attended by a pattern of positions, or by lists; rows [q_begin, head->n) by what MInference found. */
void watch_static(tmx_session *s, const tmx_pattern *pattern, int32_t n_prompt, int32_t q_begin, int32_t q_end);
void watch_lists(tmx_session *s, const key_lists *lists, int32_t q_begin, int32_t q_end);
void watch_head(tmx_session *s, const head_keys *head, int32_t q_begin);

/* A row tile of S2O: s2o_watch.see of this. */
typedef struct s2o_visits {
    s2o_watch watch;
    tmx_session *session;
} s2o_visits;

void watch_s2o(s2o_watch *watch, const s2o_visit *visit);

#endif
