/* attn_tile.h - the body of every prefill kernel, written once in a small vector vocabulary that each rung's file
 * defines before including this.
 *
 *   out[row] = sum over visible k of 2^(c (s_k - m)) V[k] / sum of the same weights,   s = q . K[k],  c = scale log2(e)
 *
 * Lanes are rows: a vector holds one score of LANES different query rows.  So K and V are broadcast from (almost) their
 * natural layout, maxima and sums need no horizontal step, any key range costs exactly its keys, and a row's arithmetic
 * is the same in whichever lane it sits.  A task owns up to ATTN_MAX_ROWS rows (position-major, the heads of a GQA
 * group side by side), cut into blocks of BLOCK = ROW_VECS * LANES rows.  For each key tile:
 *   load    K [keys][n_cells], V [keys / CELL][d_pad] into scratch, once for all blocks
 *   score   S = K Q^T   [keys of the block][BLOCK]      KEY_STEP * ROW_VECS accumulators
 *   weigh   m, P = 2^(c (S - m)), row sums              in place of S
 *   value   O^T = O^T * rescale + V^T P                 DIM_STEP * ROW_VECS accumulators
 * Each block takes only the keys between its first and its last visible one; masks run in steps that need them.
 *
 * With key lists instead of a pattern, a task is one head and one query block, and a tile is the next keys of its list (whole
 * blocks, or MInference's runs and single columns), packed: the steps are the same, and a mask is needed only around the diagonal.
 *
 * Bits.  Score: one accumulator over d.  Sums and O: one accumulator over keys upwards within a tile of ATTN_TILE_K
 * keys (absolute multiples).  A hidden key has weight +0, which changes neither; a block without a visible key leaves
 * m, and so a rescale of exactly 1.  Only the sign of a zero in O can differ, and finish() adds +0 to remove it.
 *
 * A rung with matrix tiles (attn_amx.c) does both products in them, KEY_ALIGN keys at a time from multiples of it; scores
 * lie in scratch then, and V is placed as its tiles want it.  The rest is the same.
 *
 * Vocabulary: LANES, ROW_VECS, KEY_STEP, DIM_STEP, CELL (values per 32-bit cell: 1 f32 or 2 bf16), KEY_ALIGN (CELL, unless
 * the rung has tiles); types cell, vc (LANES cells), vf (LANES f32), vi (LANES int32);
 *   vc_load vc_store vc_set1 vc_dot(acc, a, b) vc_where_nonzero(p, v)
 *   vc_weigh(s, stride, max, c, sum): CELL rows of scores -> weights of one cell row, added to *sum
 *   vf_zero vf_set1 vf_load vf_store vf_add vf_sub vf_mul vf_max(a, b: b if a is NaN) vf_exp2 vf_any_differs
 *   vf_hide(s, k, lo, hi): -inf in lanes without lo <= k <= hi        vi_load vi_set1 vi_min vi_max
 *   load_row(cells, row, type, n)      load_values(cells, rows[CELL] or NULL for zeros, type, n)
 * With ATTN_TILES instead of load_values: CELL_ALIGN (cells of a row of Q and K are a multiple), V_STRIDE (cells between
 * values of d in V),
 *   tiles_begin() tiles_end(), around all that follows in a thread
 *   tiles_place(v, rows[KEY_ALIGN] or NULL for zeros, n, d_pad): V of KEY_ALIGN keys
 *   tiles_score(s, q, k, n_cells): [KEY_ALIGN][BLOCK] scores
 *   tiles_value(o, p, v, n, is_guarded): value_step, n a multiple of KEY_ALIGN / CELL */
#ifndef TMX_ATTN_ATTN_TILE_H
#define TMX_ATTN_ATTN_TILE_H

#include "base/num.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { BLOCK = ROW_VECS * LANES };
#ifdef ATTN_TILES
enum { HAS_TILES = true };
#else
enum { HAS_TILES = false };
#endif
static_assert(ATTN_MAX_ROWS % BLOCK == 0 && (int)BLOCK <= (int)ATTN_MAX_BLOCK, "whole blocks");
static_assert(ATTN_TILE_K % KEY_ALIGN == 0 && KEY_STEP % CELL == 0 && (int)KEY_STEP <= (int)ATTN_KEY_PAD, "whole cells");
static_assert((int)KEY_ALIGN == (int)CELL || KEY_ALIGN % KEY_STEP == 0, "whole steps");
static_assert((int)ATTN_DIM_PAD % (int)DIM_STEP == 0, "room for whole steps");

typedef struct tile_state {
    const tmx_attention_params *params;
    const tmx_attention_seq *seq;
    const attn_task *task;
    float scale, scale_log2;
    int32_t n_group, n_rows, n_blocks, head_dim, first_dense_row, n_sink, n_window;
    size_t n_cells, d_pad;
    cell *q, *k, *v;
    float *o, *s, *max, *sum, *tile_sum;
    int32_t *q_pos, *window_begin;
    int32_t *last_key;             /* the last key a row may see, in the numbering of the tile at work */
    int32_t *keys;                 /* [TILE_K] positions of the rows of k and v */
} tile_state;

/* Keys a block works on in one tile, and what its rows see of them: positions, or places in a packed tile. */
typedef struct key_span {
    int32_t begin, end;            /* first and one past the last key any row may see; begin == end: nothing */
    int32_t start, stop;           /* begin and end, rounded to multiples of KEY_ALIGN */
    int32_t first_pos;             /* smallest position of the block */
    int32_t full_begin;            /* every row's window covers keys >= this, up to its own position */
} key_span;

static int32_t stop_of(int32_t end) { return (end + KEY_ALIGN - 1) / KEY_ALIGN * KEY_ALIGN; }

static int32_t window_begin_of(const tile_state *st, int32_t q_pos)
{
    return q_pos >= st->first_dense_row ? 0 : max_i32(0, q_pos - st->n_window + 1);
}

static size_t cells_of(int32_t head_dim)
{
    const size_t n_cells = ((size_t)head_dim + CELL - 1) / CELL;
#ifdef ATTN_TILES
    return align_up(n_cells, CELL_ALIGN);
#else
    return n_cells;
#endif
}

static tile_state tile_state_of(const attn_job *job, const attn_task *task, void *scratch)
{
    const tmx_attention_params *params = job->params;
    const tmx_attention_seq *seq = &params->seqs[task->seq];
    const attn_layout at = attn_layout_of(params->head_dim);
    char *base = scratch;
    const int32_t n_rows = (task->t_end - task->t_begin) * task->n_heads;
    tile_state st = {
        .params = params, .seq = seq, .task = task,
        .scale = job->scale, .scale_log2 = job->scale * (float)M_LOG2E,
        .n_group = task->n_heads, .n_rows = n_rows, .n_blocks = (n_rows + BLOCK - 1) / BLOCK,
        .head_dim = params->head_dim,
        .first_dense_row = pattern_first_dense_row(&params->pattern, seq->n_prompt),
        .n_sink = params->pattern.kind == TMX_PATTERN_DENSE ? 0 : params->pattern.n_sink,
        .n_window = params->pattern.n_window,
        .n_cells = cells_of(params->head_dim), .d_pad = align_up((size_t)params->head_dim, DIM_STEP),
        .q = (cell *)(base + at.q), .k = (cell *)(base + at.k), .v = (cell *)(base + at.v),
        .o = (float *)(base + at.o), .s = (float *)(base + at.s),
        .max = (float *)(base + at.max), .sum = (float *)(base + at.sum),
        .tile_sum = (float *)(base + at.tile_sum),
        .q_pos = (int32_t *)(base + at.q_pos), .window_begin = (int32_t *)(base + at.window_begin),
        .keys = (int32_t *)(base + at.keys),
    };
    st.last_key = job->lists != NULL || job->heads != NULL ? (int32_t *)(base + at.last_key) : st.q_pos;
    return st;
}

/* A row of q or k, zero behind its values. */
ALWAYS_INLINE void load_padded(const tile_state *st, cell *to, const void *row, tmx_type type)
{
    const size_t n = ((size_t)st->head_dim + CELL - 1) / CELL;
    load_row(to, row, type, st->head_dim);
    if (n < st->n_cells) memset(to + n, 0, (st->n_cells - n) * sizeof *to);
}

/* Rows beyond n_rows repeat the last one, so that they widen no span; their results are never stored. */
static void load_q(tile_state *st)
{
    const tmx_attention_params *p = st->params;
    const size_t n_bytes = attn_element_bytes(p->q_type);
    const size_t head_begin = (size_t)st->task->head_begin;
    cell *stage = (cell *)(void *)st->s;
    for (int32_t block = 0; block < st->n_blocks; block++) {
        cell *q = st->q + (size_t)block * st->n_cells * BLOCK;
        for (int32_t i = 0; i < BLOCK; i++) {
            const int32_t row = min_i32(block * BLOCK + i, st->n_rows - 1);
            const int32_t q_pos = st->task->rows != NULL ? st->task->rows[row] : st->task->t_begin + row / st->n_group;
            const size_t at = (size_t)(q_pos - st->seq->q_begin) * p->q_pos_stride
                            + (head_begin + (size_t)(row % st->n_group)) * p->q_head_stride;
            load_padded(st, stage + (size_t)i * st->n_cells, (const char *)st->seq->q + at * n_bytes, p->q_type);
            st->q_pos[block * BLOCK + i] = q_pos;
            st->window_begin[block * BLOCK + i] = window_begin_of(st, q_pos);
        }
        for (size_t c = 0; c < st->n_cells; c++) {
            for (size_t i = 0; i < BLOCK; i++) q[c * BLOCK + i] = stage[i * st->n_cells + c];
        }
    }
    const size_t n_rows = (size_t)st->n_blocks * BLOCK;
    for (size_t i = 0; i < n_rows * st->d_pad; i++) st->o[i] = 0.0f;
    for (size_t i = 0; i < n_rows; i++) {
        st->max[i] = -FLT_MAX;
        st->sum[i] = 0.0f;
    }
}

static bool has_nonfinite(const cell *v, size_t n)
{
    const uint32_t magnitude = CELL == 1 ? 0x7fffffffu : 0x7fff7fffu, one = CELL == 1 ? 0x00800000u : 0x00800080u;
    const uint32_t sign = ~magnitude;
    uint32_t carry = 0;            /* an exponent of all ones, one more, reaches the sign bit */
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, v + i, sizeof bits);
        carry |= (bits & magnitude) + one;
    }
    return (carry & sign) != 0;
}

/* V of the keys at st->keys[begin .. end) into those places of scratch, zero around them up to a multiple of KEY_ALIGN.
 * Returns whether it holds NaN or infinity. */
static bool load_tile_values(const tile_state *st, const char *v, int32_t begin, int32_t end)
{
    const tmx_attention_params *p = st->params;
    const size_t step = p->v_pos_stride * attn_element_bytes(p->kv_type);
    const int32_t first = begin - begin % KEY_ALIGN;
    bool is_nonfinite = false;
    for (int32_t i = first; i < end; i += KEY_ALIGN) {
        const void *rows[KEY_ALIGN];
        for (int32_t j = 0; j < KEY_ALIGN; j++) {
            const bool is_inside = i + j >= begin && i + j < end;
            rows[j] = is_inside ? v + (size_t)st->keys[i + j] * step : NULL;
        }
#ifdef ATTN_TILES
        cell *to = st->v + i / CELL;
        tiles_place(to, rows, st->head_dim, st->d_pad);
        for (int32_t d = 0; d < st->head_dim; d++) is_nonfinite |= has_nonfinite(to + (size_t)d * V_STRIDE, KEY_ALIGN / CELL);
#else
        cell *to = st->v + (size_t)(i / CELL) * st->d_pad;
        load_values(to, rows, p->kv_type, st->head_dim);
        memset(to + st->head_dim, 0, (st->d_pad - (size_t)st->head_dim) * sizeof *to);
#endif
    }
#ifndef ATTN_TILES
    const size_t v_begin = (size_t)(first / CELL) * st->d_pad, v_end = (size_t)((end + CELL - 1) / CELL) * st->d_pad;
    is_nonfinite = has_nonfinite(st->v + v_begin, v_end - v_begin);
#endif
    return is_nonfinite;
}

/* Brings the keys at st->keys[begin .. end) into those places of scratch.  Rows just outside that a step may touch are set to
 * zero: nothing read there counts, but it should not be what an earlier call left.  Returns whether V holds NaN or infinity. */
static bool load_tile(const tile_state *st, int32_t begin, int32_t end)
{
    const tmx_attention_params *p = st->params;
    const size_t n_bytes = attn_element_bytes(p->kv_type), head = (size_t)st->task->kv_head;
    const char *k = (const char *)st->seq->k + head * p->k_head_stride * n_bytes;
    const char *v = (const char *)st->seq->v + head * p->v_head_stride * n_bytes;
    for (int32_t i = begin; i < end; i++) {
        load_padded(st, st->k + (size_t)i * st->n_cells, k + (size_t)st->keys[i] * p->k_pos_stride * n_bytes, p->kv_type);
    }
    const size_t n_before = (size_t)(begin % KEY_ALIGN), n_behind = (size_t)(ATTN_KEY_PAD + stop_of(end) - end);
    memset(st->k + ((size_t)begin - n_before) * st->n_cells, 0, n_before * st->n_cells * sizeof *st->k);
    memset(st->k + (size_t)end * st->n_cells, 0, n_behind * st->n_cells * sizeof *st->k);
    return load_tile_values(st, v, begin, end);
}

static key_span span_of(const tile_state *st, int32_t block, int32_t k_begin, int32_t k_end)
{
    const int32_t first_pos = st->q_pos[block * BLOCK], last_pos = st->q_pos[block * BLOCK + BLOCK - 1];
    const bool has_dense = last_pos >= st->first_dense_row, has_streaming = first_pos < st->first_dense_row;
    key_span span = { .first_pos = first_pos, .begin = k_begin, .end = min_i32(k_end, last_pos + 1) };
    if (has_streaming) span.full_begin = window_begin_of(st, min_i32(last_pos, st->first_dense_row - 1));
    if (!has_dense && k_begin >= st->n_sink) span.begin = max_i32(k_begin, window_begin_of(st, first_pos));
    if (span.begin > span.end) span.begin = span.end;
    span.start = span.begin - span.begin % KEY_ALIGN;
    span.stop = stop_of(span.end);
    return span;
}

/* s[j][row] = q[row] . k[j] for KEY_STEP keys. */
ALWAYS_INLINE void score_step(const cell *q, const cell *k, size_t n_cells, vf s[KEY_STEP][ROW_VECS])
{
    UNROLL for (int j = 0; j < KEY_STEP; j++) {
        UNROLL for (int r = 0; r < ROW_VECS; r++) s[j][r] = vf_zero();
    }
    for (size_t c = 0; c < n_cells; c++) {
        vc q_c[ROW_VECS];
        UNROLL for (int r = 0; r < ROW_VECS; r++) q_c[r] = vc_load(q + c * BLOCK + r * LANES);
        UNROLL for (int j = 0; j < KEY_STEP; j++) {
            const vc k_jc = vc_set1(k + (size_t)j * n_cells + c);
            UNROLL for (int r = 0; r < ROW_VECS; r++) s[j][r] = vc_dot(s[j][r], q_c[r], k_jc);
        }
    }
}

/* Scores of a block's span into st->s, row 0 = span.start; max grows to cover them. */
static void score_block(const tile_state *st, int32_t block, int32_t base, key_span span, vf max[ROW_VECS])
{
    const cell *q = st->q + (size_t)block * st->n_cells * BLOCK;
    float *s_out = st->s;
    vf m[ROW_VECS];
    UNROLL for (int r = 0; r < ROW_VECS; r++) m[r] = max[r];
    for (int32_t key = span.start; key < span.stop; key += KEY_STEP, s_out += KEY_STEP * BLOCK) {
        vf s[KEY_STEP][ROW_VECS];
        const cell *k = st->k + (size_t)(key - base) * st->n_cells;
#ifdef ATTN_TILES
        if ((key - span.start) % KEY_ALIGN == 0) tiles_score(s_out, q, k, st->n_cells);
        UNROLL for (int j = 0; j < KEY_STEP; j++) {
            UNROLL for (int r = 0; r < ROW_VECS; r++) s[j][r] = vf_load(s_out + j * BLOCK + r * LANES);
        }
#else
        score_step(q, k, st->n_cells, s);
#endif
        const int32_t key_end = key + KEY_STEP;
        const bool is_full = key >= span.begin && key_end <= span.end && key_end - 1 <= span.first_pos
                          && (key >= span.full_begin || key_end <= st->n_sink);
        if (!is_full) {
            UNROLL for (int r = 0; r < ROW_VECS; r++) {
                const int32_t row = block * BLOCK + r * LANES;
                const vi any = vi_set1(span.begin);
                const vi hi = vi_min(vi_load(st->last_key + row), vi_set1(span.end - 1));
                const vi lo = vi_max(vi_load(st->window_begin + row), any);
                UNROLL for (int j = 0; j < KEY_STEP; j++) {
                    s[j][r] = vf_hide(s[j][r], key + j, key + j < st->n_sink ? any : lo, hi);
                }
            }
        }
        UNROLL for (int j = 0; j < KEY_STEP; j++) {
            UNROLL for (int r = 0; r < ROW_VECS; r++) {
                m[r] = vf_max(s[j][r], m[r]);
                if (!HAS_TILES || !is_full) vf_store(s_out + j * BLOCK + r * LANES, s[j][r]);
            }
        }
    }
    UNROLL for (int r = 0; r < ROW_VECS; r++) max[r] = m[r];
}

/* Scores of n cells of keys become weights, in place; sum = what they add up to. */
static const cell *weigh_block(float *s, int32_t n, const vf max[ROW_VECS], vf c, vf sum[ROW_VECS])
{
    cell *const p_begin = (cell *)(void *)s;
    cell *p = p_begin;
    vf total[ROW_VECS], m[ROW_VECS];
    UNROLL for (int r = 0; r < ROW_VECS; r++) {
        total[r] = vf_zero();
        m[r] = max[r];
    }
    for (int32_t i = 0; i < n; i++, p += BLOCK, s += CELL * BLOCK) {
        UNROLL for (int r = 0; r < ROW_VECS; r++) {
            vc_store(p + r * LANES, vc_weigh(s + r * LANES, BLOCK, m[r], c, &total[r]));
        }
    }
    UNROLL for (int r = 0; r < ROW_VECS; r++) sum[r] = total[r];
    return p_begin;
}

/* o[d][row] += sum over cells i of v[i][d] p[i][row] for DIM_STEP values of d.  is_guarded keeps 0 * NaN out of rows
 * that do not see the NaN. */
ALWAYS_INLINE void value_step(float *o, const cell *p, const cell *v, size_t v_stride, int32_t n, bool is_guarded)
{
    vf acc[DIM_STEP][ROW_VECS];
    UNROLL for (int j = 0; j < DIM_STEP; j++) {
        UNROLL for (int r = 0; r < ROW_VECS; r++) acc[j][r] = vf_load(o + j * BLOCK + r * LANES);
    }
    for (int32_t i = 0; i < n; i++, p += BLOCK, v += v_stride) {
        vc p_i[ROW_VECS];
        UNROLL for (int r = 0; r < ROW_VECS; r++) p_i[r] = vc_load(p + r * LANES);
        UNROLL for (int j = 0; j < DIM_STEP; j++) {
            const vc v_ij = vc_set1(v + j);
            UNROLL for (int r = 0; r < ROW_VECS; r++) {
                acc[j][r] = vc_dot(acc[j][r], p_i[r], is_guarded ? vc_where_nonzero(p_i[r], v_ij) : v_ij);
            }
        }
    }
    UNROLL for (int j = 0; j < DIM_STEP; j++) {
        UNROLL for (int r = 0; r < ROW_VECS; r++) vf_store(o + j * BLOCK + r * LANES, acc[j][r]);
    }
}

static void block_step(const tile_state *st, int32_t block, int32_t base, key_span span, bool is_guarded)
{
    float *max_at = st->max + block * BLOCK, *sum_at = st->sum + block * BLOCK;
    float *o = st->o + (size_t)block * st->d_pad * BLOCK;
    const vf c = vf_set1(st->scale_log2);
    vf old[ROW_VECS], max[ROW_VECS], sum[ROW_VECS], rescale[ROW_VECS];
    UNROLL for (int r = 0; r < ROW_VECS; r++) max[r] = old[r] = vf_load(max_at + r * LANES);
    score_block(st, block, base, span, max);

    const int32_t n = (span.stop - span.start) / CELL;
    const cell *p = weigh_block(st->s, n, max, c, sum);

    bool has_new_max = false;
    UNROLL for (int r = 0; r < ROW_VECS; r++) {
        rescale[r] = vf_exp2(vf_mul(vf_sub(old[r], max[r]), c));
        has_new_max |= vf_any_differs(old[r], max[r]);
        vf_store(sum_at + r * LANES, vf_add(vf_mul(vf_load(sum_at + r * LANES), rescale[r]), sum[r]));
        vf_store(st->tile_sum + block * BLOCK + r * LANES, sum[r]);
        vf_store(max_at + r * LANES, max[r]);
    }
    if (has_new_max) {
        for (size_t d = 0; d < st->d_pad; d++) {
            UNROLL for (int r = 0; r < ROW_VECS; r++) {
                float *at = o + d * BLOCK + r * LANES;
                vf_store(at, vf_mul(vf_load(at), rescale[r]));
            }
        }
    }

#ifdef ATTN_TILES
    const cell *v = st->v + (span.start - base) / CELL;
    for (size_t d = 0; d < st->d_pad; d += DIM_STEP) tiles_value(o + d * BLOCK, p, v + d * V_STRIDE, n, is_guarded);
#else
    const cell *v = st->v + (size_t)((span.start - base) / CELL) * st->d_pad;
    for (size_t d = 0; d < st->d_pad; d += DIM_STEP) {
        if (is_guarded) value_step(o + d * BLOCK, p, v + d, st->d_pad, n, true);
        else value_step(o + d * BLOCK, p, v + d, st->d_pad, n, false);
    }
#endif
}

/* Columns of from [n][BLOCK] become rows of n. */
static void scatter_rows(const tile_state *st, int32_t block, const uint32_t *from, size_t n_bytes)
{
    const tmx_attention_params *p = st->params;
    const size_t head_begin = (size_t)st->task->head_begin;
    const int32_t n_rows = min_i32(BLOCK, st->n_rows - block * BLOCK);
    for (int32_t i = 0; i < n_rows; i++) {
        const int32_t row = block * BLOCK + i;
        const size_t pos = (size_t)(st->q_pos[row] - st->seq->q_begin), head = head_begin + (size_t)(row % st->n_group);
        char *out = (char *)st->seq->out
                  + (pos * p->out_pos_stride + head * p->out_head_stride) * attn_element_bytes(p->q_type);
        size_t at = 0;
        for (; at + 4 <= n_bytes; at += 4) memcpy(out + at, from + at / 4 * BLOCK + i, 4);
        if (at < n_bytes) memcpy(out + at, from + at / 4 * BLOCK + i, n_bytes - at);
    }
}

/* out = O / sum, lse = max scale + ln(sum); a row that saw nothing gives 0 and -inf. */
static void finish(tile_state *st, int32_t block)
{
    const bool is_bf16 = st->params->q_type == TMX_TYPE_BF16;
    const size_t head_dim = (size_t)st->head_dim;
    const float *max = st->max + block * BLOCK, *sum = st->sum + block * BLOCK;
    float *o = st->o + (size_t)block * st->d_pad * BLOCK;
    uint32_t *words = (uint32_t *)(void *)st->s;
    float inverse[BLOCK];
    for (size_t i = 0; i < BLOCK; i++) inverse[i] = sum[i] == 0.0f ? 0.0f : 1.0f / sum[i];
    for (size_t d = 0; d < st->d_pad; d++) {
        for (size_t i = 0; i < BLOCK; i++) o[d * BLOCK + i] = o[d * BLOCK + i] * inverse[i] + 0.0f;
    }
    if (is_bf16) {                 /* two values of d side by side: half as many words to scatter */
        for (size_t d = 0; d < head_dim; d += 2) {
            const float *lo = o + d * BLOCK, *hi = lo + BLOCK;
            for (size_t i = 0; i < BLOCK; i++) {
                words[d / 2 * BLOCK + i] = bf16_from_f32(lo[i]) | (uint32_t)bf16_from_f32(hi[i]) << 16;
            }
        }
    } else {
        memcpy(words, o, head_dim * BLOCK * sizeof *o);
    }
    scatter_rows(st, block, words, head_dim * attn_element_bytes(st->params->q_type));

    if (st->seq->lse == NULL) return;
    const size_t head_begin = (size_t)st->task->head_begin;
    for (int32_t row = block * BLOCK; row < min_i32(st->n_rows, (block + 1) * BLOCK); row++, max++, sum++) {
        const size_t pos = (size_t)(st->q_pos[row] - st->seq->q_begin), head = head_begin + (size_t)(row % st->n_group);
        const double lse = (double)*max * (double)st->scale + log((double)*sum);
        st->seq->lse[pos * (size_t)st->params->n_heads + head] = *sum == 0.0f ? -INFINITY : (float)lse;
    }
}

/* Moves to the next absolute tile of ATTN_TILE_K keys.  A sink piece and a window piece of one absolute tile are one
 * step, the gap between them masked: which of them a query tile gets apart depends on where it begins, and a row's bits
 * must not. */
static bool next_tile(key_tiles *it, key_tile *ahead, bool *has_ahead, key_tile *tile)
{
    if (!*has_ahead) return false;
    *tile = *ahead;
    *has_ahead = key_tiles_next(it, ahead);
    if (*has_ahead && ahead->k_begin / ATTN_TILE_K == tile->k_begin / ATTN_TILE_K) {
        tile->k_end = ahead->k_end;
        *has_ahead = key_tiles_next(it, ahead);
    }
    return true;
}

static void walk_pattern(const tile_state *st)
{
    key_tiles it = key_tiles_of(&st->params->pattern, st->seq->n_prompt, st->task->t_begin, st->task->t_end, ATTN_TILE_K);
    key_tile tile, ahead;
    bool has_ahead = key_tiles_next(&it, &ahead);
    while (next_tile(&it, &ahead, &has_ahead, &tile)) {
        const int32_t base = tile.k_begin - tile.k_begin % ATTN_TILE_K;
        for (int32_t key = tile.k_begin; key < tile.k_end; key++) st->keys[key - base] = key;
        const bool is_guarded = load_tile(st, tile.k_begin - base, tile.k_end - base);
        for (int32_t block = 0; block < st->n_blocks; block++) {
            const key_span span = span_of(st, block, tile.k_begin, tile.k_end);
            if (span.begin < span.end) block_step(st, block, base, span, is_guarded);
        }
    }
}

/* The runs of a task's list, from whichever of the two kinds of lists it is. */
typedef struct list_runs {
    key_runs blocks;
    line_runs lines;
    bool is_lines;
} list_runs;

static list_runs list_runs_of(const attn_job *job, const attn_task *task)
{
    if (job->heads != NULL) return (list_runs){ .lines = line_runs_of(&job->heads[task->head_begin], task->t_begin), .is_lines = true };
    const uint64_t *list = key_list_of(job->lists, task->head_begin, task->t_begin / KEY_BLOCK);
    return (list_runs){ .blocks = { .list = list, .k_end = task->t_end } };
}

static bool list_runs_next(list_runs *it, int32_t *begin, int32_t *end)
{
    return it->is_lines ? line_runs_next(&it->lines, begin, end) : key_runs_next(&it->blocks, begin, end);
}

/* Fills st->keys with the next keys of a list, a whole tile while there are so many; returns how many.  *begin and *end are
 * what is left of the run at hand. */
static int32_t pack_keys(const tile_state *st, list_runs *it, int32_t *begin, int32_t *end)
{
    int32_t n = 0;
    while (n < ATTN_TILE_K && (*begin < *end || list_runs_next(it, begin, end))) {
        while (n < ATTN_TILE_K && *begin < *end) st->keys[n++] = (*begin)++;
    }
    return n;
}

/* What each row sees of n packed keys: they ascend, so it is a beginning of them. */
static void find_last_keys(const tile_state *st, int32_t n)
{
    int32_t n_seen = st->keys[n - 1] <= st->task->t_begin ? n : 0;
    for (int32_t row = 0; row < st->n_blocks * BLOCK; row++) {
        while (n_seen < n && st->keys[n_seen] <= st->q_pos[row]) n_seen++;
        st->last_key[row] = n_seen - 1;
    }
}

/* A tile is the next ATTN_TILE_K keys of the list, wherever they lie; a list of all keys makes the tiles of a dense pattern,
 * and its bits. */
static void walk_list(const tile_state *st, const attn_job *job)
{
    list_runs it = list_runs_of(job, st->task);
    int32_t begin = 0, end = 0;
    for (int32_t n; (n = pack_keys(st, &it, &begin, &end)) > 0;) {
        const bool is_guarded = load_tile(st, 0, n);
        find_last_keys(st, n);
        for (int32_t block = 0; block < st->n_blocks; block++) {
            const int32_t *last_key = st->last_key + block * BLOCK;
            const int32_t n_seen = last_key[BLOCK - 1] + 1;
            const key_span span = { .end = n_seen, .stop = stop_of(n_seen), .first_pos = last_key[0] };
            if (span.begin < span.end) block_step(st, block, 0, span, is_guarded);
        }
    }
}

static void tile_run(const attn_job *job, const attn_task *task, void *scratch)
{
    tile_state st = tile_state_of(job, task, scratch);
#ifdef ATTN_TILES
    tiles_begin();
#endif
    load_q(&st);
    if (job->lists != NULL || job->heads != NULL) walk_list(&st, job);
    else walk_pattern(&st);
#ifdef ATTN_TILES
    tiles_end();
#endif
    for (int32_t block = 0; block < st.n_blocks; block++) finish(&st, block);
}

#endif
