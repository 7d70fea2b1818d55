/* attn_back_tile.h - the body of every rung's attn_back kernel, in the vf and vi vocabulary of attn_tile.h and ROW_VECS,
 * KEY_STEP, M_STEP, D_VECS of its own.  Formulas: attn_back.h.
 *
 * Lanes are query rows while scores are made, head_dim elements while d_q, d_k and d_v are.  For each tile of TILE_ROWS rows and
 * ATTN_BACK_KEYS keys at or before them, with the heads innermost, since the sum over heads must be whole before its absolute
 * value is taken:
 *   dots     S = k q^T, dA = v d_o^T       [keys][rows]      KEY_STEP * ROW_VECS sums over head_dim, q and d_o transposed
 *   weigh    S -> P, dA -> dS, theta += P dA, the sums over sections      in place
 *   update   d_q += dS^T k, d_k += dS q, d_v += P d_o        M_STEP * D_VECS sums
 * Five products of 2 n_pairs head_dim FLOP each, where a forward has two: the floor is 2.5 forwards, 1 if only sums are asked
 * for.  Sections: tiles inside one section take no masks; in the others every section is an interval of rows for a given
 * key.  Sums are f32 within a tile and lane, f64 beyond, in the order of the tiles. */
#ifndef TMX_PROBE_ATTN_BACK_TILE_H
#define TMX_PROBE_ATTN_BACK_TILE_H

#include "base/num.h"
#include "base/unroll.h"
#include "pattern/pattern.h"
#include "probe/attn_back_kernel.h"

#include <math.h>
#include <string.h>

enum { TILE_ROWS = ROW_VECS * LANES, TILE_KEYS = ATTN_BACK_KEYS };
static_assert((int)ATTN_BACK_ROWS % (int)TILE_ROWS == 0 && (int)TILE_ROWS % (int)M_STEP == 0, "whole row tiles");
static_assert((int)TILE_KEYS % (int)KEY_STEP == 0 && (int)KEY_STEP % (int)M_STEP == 0, "whole key steps");
static_assert((int)ATTN_BACK_DIM % (int)LANES == 0, "whole vectors");

typedef struct back_state {
    const attn_back_strip *strip;
    const attn_back *back;
    size_t d_pad, head_dim, n_heads, n_kv;
    int32_t n_group, tail_begin;   /* first of the last rows */
    int32_t n_window;              /* larger than any distance where there is none */
    float c;                       /* scale log2(e) */
    float *q_t, *do_t;             /* [n_heads][head_dim][TILE_ROWS] */
    float *q, *d_o;                /* [n_heads][TILE_ROWS][d_pad] */
    float *lse_log2, *dots;        /* [n_heads][TILE_ROWS]: lse log2(e), infinite for rows that are not there; D */
    float *s, *a, *theta;          /* [TILE_KEYS][TILE_ROWS] */
} back_state;

/* One tile of pairs.  section < 0: several sections, or pairs with j > i. */
typedef struct back_tile {
    int32_t row, key, n_keys;      /* first row and key; keys, a multiple of KEY_STEP */
    bool is_causal;                /* every row sees every key */
    int32_t section;
} back_tile;

static back_state back_state_of(const attn_back_strip *strip)
{
    const attn_back *b = strip->back;
    back_state st = {
        .strip = strip, .back = b, .d_pad = (size_t)((b->head_dim + ATTN_BACK_DIM - 1) / ATTN_BACK_DIM * ATTN_BACK_DIM),
        .head_dim = (size_t)b->head_dim, .n_heads = (size_t)b->n_heads, .n_kv = (size_t)b->n_kv_heads,
        .n_group = b->n_heads / b->n_kv_heads, .tail_begin = pattern_first_dense_row(&b->sections, b->n_tokens),
        .n_window = b->n_window > 0 ? b->n_window : INT32_MAX, .c = b->scale * (float)M_LOG2E, .q_t = strip->scratch,
    };
    const size_t n = st.n_heads * TILE_ROWS;
    st.do_t = st.q_t + n * st.d_pad;
    st.q = st.do_t + n * st.d_pad;
    st.d_o = st.q + n * st.d_pad;
    st.lse_log2 = st.d_o + n * st.d_pad;
    st.dots = st.lse_log2 + n;
    st.s = st.dots + n;
    st.a = st.s + TILE_KEYS * TILE_ROWS;
    st.theta = st.a + TILE_KEYS * TILE_ROWS;
    return st;
}

static float element(const void *x, tmx_type type, size_t at)
{
    return type == TMX_TYPE_F32 ? ((const float *)x)[at] : bf16_to_f32(((const tmx_bf16 *)x)[at]);
}

/* Rows [row, row + TILE_ROWS) of all heads; rows behind the last token have no probability and no derivative. */
static void load_rows(const back_state *st, int32_t row)
{
    const attn_back *b = st->back;
    memset(st->q, 0, 2 * st->n_heads * TILE_ROWS * st->d_pad * sizeof *st->q);
    for (size_t h = 0; h < st->n_heads; h++) {
        float *q_t = st->q_t + h * st->d_pad * TILE_ROWS, *do_t = st->do_t + h * st->d_pad * TILE_ROWS;
        for (size_t i = 0; i < TILE_ROWS; i++) {
            const size_t at_row = h * TILE_ROWS + i, pos = (size_t)row + i;
            float *q = st->q + at_row * st->d_pad, *d_o = st->d_o + at_row * st->d_pad;
            double dot = 0;
            if (pos < (size_t)b->n_tokens) {
                const size_t from = (pos * st->n_heads + h) * st->head_dim;
                for (size_t d = 0; d < st->head_dim; d++) {
                    q[d] = element(b->q, b->type, from + d);
                    d_o[d] = b->d_o[from + d];
                    dot += (double)d_o[d] * (double)element(b->o, b->type, from + d);
                }
            }
            for (size_t d = 0; d < st->head_dim; d++) {
                q_t[d * TILE_ROWS + i] = q[d];
                do_t[d * TILE_ROWS + i] = d_o[d];
            }
            st->lse_log2[at_row] = pos < (size_t)b->n_tokens ? b->lse[pos * st->n_heads + h] * (float)M_LOG2E : INFINITY;
            st->dots[at_row] = (float)dot;
        }
    }
    if (!b->is_sums_only) {
        memset(b->d_q + (size_t)row * st->n_heads * st->d_pad, 0, TILE_ROWS * st->n_heads * st->d_pad * sizeof *b->d_q);
    }
}

static back_tile tile_at(const back_state *st, int32_t row, int32_t key)
{
    const tmx_pattern *p = &st->back->sections;
    const int32_t row_end = row + TILE_ROWS, left = min_i32(row_end, st->back->n_tokens) - key;
    const int32_t n_keys = min_i32(TILE_KEYS, (left + KEY_STEP - 1) / KEY_STEP * KEY_STEP), key_end = key + n_keys;
    back_tile t = { .row = row, .key = key, .n_keys = n_keys, .is_causal = key_end - 1 <= row, .section = -1 };
    t.is_causal &= row_end - 1 - key < st->n_window;
    if (!t.is_causal) return t;
    if (key_end <= p->n_sink || row_end - 1 - key < p->n_window) t.section = SECTION_STREAMING;
    else if (key >= p->n_sink && row - (key_end - 1) >= p->n_window) {
        if (row >= st->tail_begin) t.section = SECTION_LAST;
        else if (row_end <= st->tail_begin) t.section = SECTION_MIDDLE;
    }
    return t;
}

/* out[j][row] = x[row] . rows[j] for KEY_STEP keys; x_t is [head_dim][TILE_ROWS]. */
ALWAYS_INLINE void dots_step(const float *x_t, const float *rows, size_t stride, size_t head_dim, float *out)
{
    vf sum[KEY_STEP][ROW_VECS];
    UNROLL for (int j = 0; j < KEY_STEP; j++) {
        UNROLL for (int r = 0; r < ROW_VECS; r++) sum[j][r] = vf_zero();
    }
    for (size_t d = 0; d < head_dim; d++) {
        vf x_d[ROW_VECS];
        UNROLL for (int r = 0; r < ROW_VECS; r++) x_d[r] = vf_load(x_t + d * TILE_ROWS + r * LANES);
        UNROLL for (int j = 0; j < KEY_STEP; j++) {
            const vf k_jd = vf_set1(rows[(size_t)j * stride + d]);
            UNROLL for (int r = 0; r < ROW_VECS; r++) sum[j][r] = vf_fma(x_d[r], k_jd, sum[j][r]);
        }
    }
    UNROLL for (int j = 0; j < KEY_STEP; j++) {
        UNROLL for (int r = 0; r < ROW_VECS; r++) vf_store(out + j * TILE_ROWS + r * LANES, sum[j][r]);
    }
}

/* For one key: the rows whose pair with it lies in each section, as [lo, hi]. */
typedef struct row_intervals { int32_t lo[N_SECTIONS], hi[N_SECTIONS]; } row_intervals;

static row_intervals intervals_of(const back_state *st, int32_t key)
{
    const tmx_pattern *p = &st->back->sections;
    const int32_t n = INT32_MAX, is_sink = key < p->n_sink, far = key < n - p->n_window ? key + p->n_window : n;
    row_intervals v = { .lo = { [SECTION_STREAMING] = key }, .hi = { [SECTION_STREAMING] = is_sink ? n : far - 1 } };
    v.lo[SECTION_MIDDLE] = is_sink ? n : far;
    v.hi[SECTION_MIDDLE] = is_sink ? 0 : st->tail_begin - 1;
    v.lo[SECTION_LAST] = is_sink ? n : max_i32(far, st->tail_begin);
    v.hi[SECTION_LAST] = is_sink ? 0 : n;
    return v;
}

typedef struct lane_sums { vf of[N_SECTIONS][N_SUMS]; } lane_sums;

ALWAYS_INLINE void add_to(lane_sums *sums, const back_tile *t, int sum, vf x)
{
    sums->of[t->section][sum] = vf_add(sums->of[t->section][sum], x);
}

ALWAYS_INLINE void add_by_section(lane_sums *sums, const row_intervals *v, vi rows, int sum, vf x)
{
    for (int section = 0; section < N_SECTIONS; section++) {
        const vf kept = vf_keep(x, rows, v->lo[section], v->hi[section]);
        sums->of[section][sum] = vf_add(sums->of[section][sum], kept);
    }
}

ALWAYS_INLINE vi row_ids(int32_t row)
{
    int32_t ids[LANES];
    for (int i = 0; i < LANES; i++) ids[i] = row + i;
    return vi_load(ids);
}

/* s, a of one head and tile: S -> P, dA -> dS; theta and the sums that are taken head by head. */
ALWAYS_INLINE void weigh(const back_state *st, const back_tile *t, size_t h, lane_sums *sums, const bool is_uniform)
{
    const vf c = vf_set1(st->c), scale = vf_set1(st->back->scale);
    for (int r = 0; r < ROW_VECS; r++) {
        const vf lse = vf_load(st->lse_log2 + h * TILE_ROWS + r * LANES), dot = vf_load(st->dots + h * TILE_ROWS + r * LANES);
        const vi rows = row_ids(t->row + r * LANES), first = row_ids(t->row + r * LANES + 1 - st->n_window);
        vf attention = vf_zero(), head_abs = vf_zero(), da_abs = vf_zero();
        for (int32_t j = 0; j < t->n_keys; j++) {
            float *s_at = st->s + j * TILE_ROWS + r * LANES, *a_at = st->a + j * TILE_ROWS + r * LANES;
            float *theta_at = st->theta + j * TILE_ROWS + r * LANES;
            vf s = vf_load(s_at);
            const vf a = vf_load(a_at);
            if (!is_uniform) s = vf_hide(s, t->key + j, first, rows);
            const vf p = vf_exp2(vf_sub(vf_mul(s, c), lse)), product = vf_mul(p, a);
            vf_store(theta_at, h == 0 ? product : vf_add(vf_load(theta_at), product));
            vf_store(s_at, p);
            vf_store(a_at, vf_mul(vf_mul(p, scale), vf_sub(a, dot)));
            if (is_uniform) {
                attention = vf_add(attention, p);
                head_abs = vf_add(head_abs, vf_abs(product));
                da_abs = vf_add(da_abs, vf_abs(a));
            } else {
                const row_intervals v = intervals_of(st, t->key + j);
                add_by_section(sums, &v, rows, SUM_ATTENTION, p);
                add_by_section(sums, &v, rows, SUM_HEAD_ABS, vf_abs(product));
                const int32_t last = t->key + j < INT32_MAX - st->n_window ? t->key + j + st->n_window - 1 : INT32_MAX;
                add_by_section(sums, &v, rows, SUM_DA_ABS, vf_keep(vf_abs(a), rows, t->key + j, last));
            }
        }
        if (is_uniform) {
            add_to(sums, t, SUM_ATTENTION, attention);
            add_to(sums, t, SUM_HEAD_ABS, head_abs);
            add_to(sums, t, SUM_DA_ABS, da_abs);
        }
    }
}

static void add_theta(const back_state *st, const back_tile *t, lane_sums *sums)
{
    for (int r = 0; r < ROW_VECS; r++) {
        const vi rows = row_ids(t->row + r * LANES);
        for (int32_t j = 0; j < t->n_keys; j++) {
            const vf theta = vf_load(st->theta + j * TILE_ROWS + r * LANES);
            if (t->section >= 0) {
                add_to(sums, t, SUM_THETA_SIGNED, theta);
                add_to(sums, t, SUM_THETA_ABS, vf_abs(theta));
            } else {
                const row_intervals v = intervals_of(st, t->key + j);
                add_by_section(sums, &v, rows, SUM_THETA_SIGNED, theta);
                add_by_section(sums, &v, rows, SUM_THETA_ABS, vf_abs(theta));
            }
        }
    }
}

/* y[m][d] += sum over k of w[m w_m + k w_k] x[k][d] for M_STEP rows and n_vecs vectors. */
ALWAYS_INLINE void update_step(float *y, size_t y_stride, const float *w, size_t w_m, size_t w_k, const float *x, size_t x_stride,
                               int32_t n_k, const int n_vecs)
{
    vf sum[M_STEP][D_VECS];
    UNROLL for (int m = 0; m < M_STEP; m++) {
        UNROLL for (int v = 0; v < n_vecs; v++) sum[m][v] = vf_load(y + (size_t)m * y_stride + v * LANES);
    }
    for (int32_t k = 0; k < n_k; k++, w += w_k, x += x_stride) {
        vf x_k[D_VECS];
        UNROLL for (int v = 0; v < n_vecs; v++) x_k[v] = vf_load(x + v * LANES);
        UNROLL for (int m = 0; m < M_STEP; m++) {
            const vf w_mk = vf_set1(w[(size_t)m * w_m]);
            UNROLL for (int v = 0; v < n_vecs; v++) sum[m][v] = vf_fma(w_mk, x_k[v], sum[m][v]);
        }
    }
    UNROLL for (int m = 0; m < M_STEP; m++) {
        UNROLL for (int v = 0; v < n_vecs; v++) vf_store(y + (size_t)m * y_stride + v * LANES, sum[m][v]);
    }
}

static void update(float *y, size_t y_stride, const float *w, size_t w_m, size_t w_k, const float *x, size_t x_stride,
                   int32_t n_m, int32_t n_k, size_t n_d)
{
    enum { STEP = D_VECS * LANES };
    for (int32_t m = 0; m < n_m; m += M_STEP, y += M_STEP * y_stride, w += M_STEP * w_m) {
        size_t d = 0;
        for (; d + STEP <= n_d; d += STEP) update_step(y + d, y_stride, w, w_m, w_k, x + d, x_stride, n_k, D_VECS);
        for (; d < n_d; d += LANES) update_step(y + d, y_stride, w, w_m, w_k, x + d, x_stride, n_k, 1);
    }
}

static void run_head(const back_state *st, const back_tile *t, size_t h, lane_sums *sums)
{
    const attn_back_strip *strip = st->strip;
    const size_t stride = st->n_kv * st->d_pad, at = (size_t)t->key * stride + h / (size_t)st->n_group * st->d_pad;
    const size_t head_rows = h * TILE_ROWS * st->d_pad;
    for (int32_t j = 0; j < t->n_keys; j += KEY_STEP) {
        const size_t row = at + (size_t)j * stride;
        dots_step(st->q_t + head_rows, strip->k + row, stride, st->head_dim, st->s + j * TILE_ROWS);
        dots_step(st->do_t + head_rows, strip->v + row, stride, st->head_dim, st->a + j * TILE_ROWS);
    }
    if (t->section >= 0) weigh(st, t, h, sums, true);
    else weigh(st, t, h, sums, false);
    if (st->back->is_sums_only) return;

    float *d_q = st->back->d_q + ((size_t)t->row * st->n_heads + h) * st->d_pad;
    update(d_q, st->n_heads * st->d_pad, st->a, 1, TILE_ROWS, strip->k + at, stride, TILE_ROWS, t->n_keys, st->d_pad);
    update(strip->d_k + at, stride, st->a, TILE_ROWS, 1, st->q + head_rows, st->d_pad, t->n_keys, TILE_ROWS, st->d_pad);
    update(strip->d_v + at, stride, st->s, TILE_ROWS, 1, st->d_o + head_rows, st->d_pad, t->n_keys, TILE_ROWS, st->d_pad);
}

static void run_strip(const attn_back_strip *strip)
{
    const back_state st = back_state_of(strip);
    for (int32_t row = strip->begin; row < strip->end; row += TILE_ROWS) {
        load_rows(&st, row);
        const int32_t key_end = min_i32(row + TILE_ROWS, strip->back->n_tokens);
        const int32_t first = max_i32(row - (st.n_window - 1), 0);     /* no row sees a key before it */
        for (int32_t key = first / TILE_KEYS * TILE_KEYS; key < key_end; key += TILE_KEYS) {
            const back_tile t = tile_at(&st, row, key);
            lane_sums sums;
            for (int section = 0; section < N_SECTIONS; section++) {
                for (int i = 0; i < N_SUMS; i++) sums.of[section][i] = vf_zero();
            }
            for (size_t h = 0; h < st.n_heads; h++) run_head(&st, &t, h, &sums);
            add_theta(&st, &t, &sums);
            for (int section = 0; section < N_SECTIONS; section++) {
                for (int i = 0; i < N_SUMS; i++) {
                    float lanes[LANES];
                    vf_store(lanes, sums.of[section][i]);
                    for (int lane = 0; lane < LANES; lane++) strip->sums[section][i] += (double)lanes[lane];
                }
            }
        }
    }
}

#endif
