/* attn_ranked_tile.h - S2O's row tiles (pattern/s2o.h) on the steps of attn_tile.h, which is included before.  One task is
 * one query head and up to S2O_ROW_TILE rows of one segment in any order: positions travel with the rows.
 *
 *   own segment   keys [begin, max of the rows' positions], masked by position, in absolute tiles of ATTN_TILE_K
 *   history       S2O_KEY_TILE keys of the order at a time, gathered, without a mask; after each, the vote on stopping
 *
 * The running maximum, sum and O are those of any other tile walk, so the rows that stop are a softmax over what they saw. */
#ifndef TMX_ATTN_ATTN_RANKED_TILE_H
#define TMX_ATTN_ATTN_RANKED_TILE_H

static_assert((int)S2O_KEY_TILE <= (int)ATTN_TILE_K && (int)S2O_ROW_TILE <= (int)ATTN_MAX_ROWS, "a tile fits");

static void walk_segment(const tile_state *st, const attn_ranked_keys *ranked)
{
    int32_t first[ATTN_MAX_ROWS / BLOCK] = { 0 }, last[ATTN_MAX_ROWS / BLOCK] = { 0 }, k_end = ranked->begin;
    for (int32_t block = 0; block < st->n_blocks; block++) {
        const int32_t *q_pos = st->q_pos + block * BLOCK;
        first[block] = last[block] = q_pos[0];
        for (int32_t i = 1; i < BLOCK; i++) {
            first[block] = min_i32(first[block], q_pos[i]);
            last[block] = max_i32(last[block], q_pos[i]);
        }
        k_end = max_i32(k_end, last[block] + 1);
    }
    for (int32_t begin = ranked->begin, end; begin < k_end; begin = end) {
        const int32_t base = begin - begin % ATTN_TILE_K;
        end = min_i32(k_end, base + ATTN_TILE_K);
        for (int32_t key = begin; key < end; key++) st->keys[key - base] = key;
        const bool is_guarded = load_tile(st, begin - base, end - base);
        for (int32_t block = 0; block < st->n_blocks; block++) {
            const int32_t seen_end = min_i32(end, last[block] + 1);
            const key_span span = { .begin = begin, .end = seen_end, .start = begin - begin % KEY_ALIGN, .stop = stop_of(seen_end),
                                    .first_pos = first[block] };
            if (span.begin < span.end) block_step(st, block, base, span, is_guarded);
        }
    }
}

/* A gain that is no number stops nothing, so that a NaN shows. */
static bool is_enough(const tile_state *st, const s2o *method)
{
    double sum = 0, most = 0;
    for (int32_t row = 0; row < st->n_rows; row++) {
        const double gain = (double)st->tile_sum[row] / (double)st->sum[row];
        sum += gain;
        if (!(gain <= most)) most = gain;
    }
    return method->vote == 1 ? most < method->tau && sum >= 0 : sum / st->n_rows < method->tau;
}

static int32_t walk_history(tile_state *st, const attn_ranked_keys *ranked, int32_t *no_limit)
{
    const s2o *method = ranked->method;
    const int32_t n_keys = ranked->begin, n_forced = min_i32(method->sink, n_keys);
    st->last_key = no_limit;
    for (int32_t row = 0; row < st->n_blocks * BLOCK; row++) no_limit[row] = INT32_MAX;
    int32_t n_seen = 0;
    for (int32_t n_tiles = 1; n_seen < n_keys; n_tiles++) {
        const int32_t n = min_i32(S2O_KEY_TILE, n_keys - n_seen);
        for (int32_t i = 0; i < n; i++) st->keys[i] = ranked->keys != NULL ? ranked->keys[n_seen + i] : n_seen + i;
        const bool is_guarded = load_tile(st, 0, n);
        const key_span span = { .end = n, .stop = stop_of(n), .first_pos = INT32_MAX };
        for (int32_t block = 0; block < st->n_blocks; block++) block_step(st, block, 0, span, is_guarded);
        n_seen += n;
        if (ranked->keys != NULL && n_tiles >= method->min_tiles && n_seen >= n_forced && is_enough(st, method)) break;
    }
    return n_seen;
}

static int32_t ranked_run(const attn_job *job, const attn_task *task, const attn_ranked_keys *ranked, void *scratch)
{
    tile_state st = tile_state_of(job, task, scratch);
#ifdef ATTN_TILES
    tiles_begin();
#endif
    load_q(&st);
    walk_segment(&st, ranked);
    int32_t *no_limit = (int32_t *)(void *)((char *)scratch + attn_layout_of(st.head_dim).last_key);
    const int32_t n_seen = walk_history(&st, ranked, no_limit);
#ifdef ATTN_TILES
    tiles_end();
#endif
    for (int32_t block = 0; block < st.n_blocks; block++) finish(&st, block);
    return n_seen;
}

#endif
