/* attn_decode_tile.h - the body of every decode kernel, in the vf vocabulary of attn_tile.h, with
 * vf_sum (all lanes, in one fixed order), vf_sum4 (the same of four vectors, into four floats), vf_widen (LANES bf16 as f32) and
 * DECODE_HEADS, how many heads' sums the registers hold.
 *
 *   max[g] = max over keys of s,  s = q[g] . K[k];   sum[g] = sum of w,  o[g] = sum of w V[k],  w = 2^(c (s - max[g]))
 *
 * One row per head, so lanes run along head_dim and K is dotted as it lies.  A task owns one range of at most
 * ATTN_DECODE_KEYS keys of one KV head; a row of K or V becomes f32 in registers and serves DECODE_HEADS heads of the group.
 * Where head_dim is no whole number of vectors, ATTN_DECODE_STEP rows go to scratch first, with zeros behind them.  Floor: reading
 * K and V once, 4 * head_dim bytes a key in bf16; the arithmetic, n_group * 4 * head_dim FLOP a key, stays below it up to
 * about 8 heads per group. */
#ifndef TMX_ATTN_ATTN_DECODE_TILE_H
#define TMX_ATTN_ATTN_DECODE_TILE_H

enum { DOT_KEYS = 4, VALUE_VECS = 4, FETCH_KEYS = 16 };
static_assert(ATTN_DECODE_STEP % DOT_KEYS == 0 && ATTN_DECODE_KEYS % LANES == 0, "whole steps");
static_assert(DECODE_HEADS >= 1 && DECODE_HEADS <= 4, "the switches below");

/* Rows of keys, one after the other: in place, or in scratch. */
typedef struct decode_rows {
    const char *at;
    size_t stride;                 /* bytes */
    bool is_bf16;
    int32_t k_begin, n;            /* of the part */
} decode_rows;

ALWAYS_INLINE vf row_vec(const char *row, size_t d, bool is_bf16)
{
    return is_bf16 ? vf_widen((const uint16_t *)(const void *)row + d) : vf_load((const float *)(const void *)row + d);
}

/* Rows of one KV head lie a whole position apart, too far for the hardware to run ahead of; so we fetch. */
ALWAYS_INLINE void fetch_row(const char *row, size_t stride, size_t n_bytes)
{
    const uintptr_t ahead = (uintptr_t)row + FETCH_KEYS * stride;      /* may be no key: fetching never faults */
    for (size_t at = 0; at < n_bytes; at += MEM_ALIGN) __builtin_prefetch((const void *)(ahead + at));
}

/* Scores of n_heads heads from g on.  The last step repeats its last key, and writes behind the scores what weigh_row hides. */
ALWAYS_INLINE void dot_heads(const attn_decode_part *part, decode_rows rows, int32_t g, const int n_heads, const bool is_bf16)
{
    const float *q = part->q + (size_t)g * part->d_stride;
    float *s = part->weights + (size_t)g * ATTN_DECODE_KEYS + rows.k_begin;
    const size_t n_bytes = part->d_stride * (is_bf16 ? 2 : 4);
    for (int32_t j = 0; j < rows.n; j += DOT_KEYS) {
        const char *row[DOT_KEYS];
        vf sum[4][DOT_KEYS];
        UNROLL for (int i = 0; i < DOT_KEYS; i++) {
            row[i] = rows.at + (size_t)min_i32(j + i, rows.n - 1) * rows.stride;
            fetch_row(row[i], rows.stride, n_bytes);
            UNROLL for (int h = 0; h < n_heads; h++) sum[h][i] = vf_zero();
        }
        for (size_t d = 0; d < part->d_stride; d += LANES) {
            vf k[DOT_KEYS];
            UNROLL for (int i = 0; i < DOT_KEYS; i++) k[i] = row_vec(row[i], d, is_bf16);
            UNROLL for (int h = 0; h < n_heads; h++) {
                const vf q_d = vf_load(q + (size_t)h * part->d_stride + d);
                UNROLL for (int i = 0; i < DOT_KEYS; i++) sum[h][i] = vf_fma(q_d, k[i], sum[h][i]);
            }
        }
        UNROLL for (int h = 0; h < n_heads; h++) vf_sum4(sum[h], s + (size_t)h * ATTN_DECODE_KEYS + j);
    }
}

/* o += w V for n_heads heads from g on and n_vecs vectors from d on. */
ALWAYS_INLINE void add_heads(const attn_decode_part *part, decode_rows rows, int32_t g, size_t d, const int n_heads, const int n_vecs,
                             const bool is_bf16)
{
    const float *w = part->weights + (size_t)g * ATTN_DECODE_KEYS + rows.k_begin;
    float *o = part->o + (size_t)g * part->d_stride + d;
    vf acc[4][VALUE_VECS];
    UNROLL for (int h = 0; h < n_heads; h++) {
        UNROLL for (int i = 0; i < n_vecs; i++) acc[h][i] = vf_load(o + (size_t)h * part->d_stride + (size_t)i * LANES);
    }
    for (int32_t j = 0; j < rows.n; j++) {
        const char *row = rows.at + (size_t)j * rows.stride;
        if (d == 0) fetch_row(row, rows.stride, part->d_stride * (is_bf16 ? 2 : 4));
        vf v[VALUE_VECS];
        UNROLL for (int i = 0; i < n_vecs; i++) v[i] = row_vec(row, d + (size_t)i * LANES, is_bf16);
        UNROLL for (int h = 0; h < n_heads; h++) {
            const vf w_j = vf_set1(w[(size_t)h * ATTN_DECODE_KEYS + (size_t)j]);
            UNROLL for (int i = 0; i < n_vecs; i++) acc[h][i] = vf_fma(w_j, v[i], acc[h][i]);
        }
    }
    UNROLL for (int h = 0; h < n_heads; h++) {
        UNROLL for (int i = 0; i < n_vecs; i++) vf_store(o + (size_t)h * part->d_stride + (size_t)i * LANES, acc[h][i]);
    }
}

ALWAYS_INLINE void dot_rows_of(const attn_decode_part *part, decode_rows rows, const bool is_bf16)
{
    int32_t g = 0;
    for (; g + DECODE_HEADS <= part->n_group; g += DECODE_HEADS) dot_heads(part, rows, g, DECODE_HEADS, is_bf16);
    switch (part->n_group - g) {
    case 3: dot_heads(part, rows, g, 3, is_bf16); break;
    case 2: dot_heads(part, rows, g, 2, is_bf16); break;
    case 1: dot_heads(part, rows, g, 1, is_bf16); break;
    default: break;
    }
}

ALWAYS_INLINE void add_columns(const attn_decode_part *part, decode_rows rows, int32_t g, const int n_heads, const bool is_bf16)
{
    size_t d = 0;
    for (; d + VALUE_VECS * LANES <= part->d_stride; d += VALUE_VECS * LANES) add_heads(part, rows, g, d, n_heads, VALUE_VECS, is_bf16);
    for (; d < part->d_stride; d += LANES) add_heads(part, rows, g, d, n_heads, 1, is_bf16);
}

ALWAYS_INLINE void add_rows_of(const attn_decode_part *part, decode_rows rows, const bool is_bf16)
{
    int32_t g = 0;
    for (; g + DECODE_HEADS <= part->n_group; g += DECODE_HEADS) add_columns(part, rows, g, DECODE_HEADS, is_bf16);
    switch (part->n_group - g) {
    case 3: add_columns(part, rows, g, 3, is_bf16); break;
    case 2: add_columns(part, rows, g, 2, is_bf16); break;
    case 1: add_columns(part, rows, g, 1, is_bf16); break;
    default: break;
    }
}

static void dot_rows(const attn_decode_part *part, decode_rows rows)
{
    if (rows.is_bf16) dot_rows_of(part, rows, true);
    else dot_rows_of(part, rows, false);
}

static void add_rows(const attn_decode_part *part, decode_rows rows)
{
    if (rows.is_bf16) add_rows_of(part, rows, true);
    else add_rows_of(part, rows, false);
}

/* Hands the part's rows of K or V to `use`: all at once where they lie, or from scratch, a few at a time. */
ALWAYS_INLINE void walk_rows(const attn_decode_part *part, const void *from, size_t stride,
                             void (*use)(const attn_decode_part *part, decode_rows rows))
{
    const size_t n_bytes = attn_element_bytes(part->kv_type), head_dim = (size_t)part->head_dim;
    if (head_dim == part->d_stride) {
        use(part, (decode_rows){ .at = from, .stride = stride * n_bytes, .is_bf16 = part->kv_type == TMX_TYPE_BF16, .n = part->n_keys });
        return;
    }
    for (int32_t k = 0; k < part->n_keys; k += ATTN_DECODE_STEP) {
        const int32_t n = min_i32(ATTN_DECODE_STEP, part->n_keys - k);
        for (int32_t j = 0; j < n; j++) {
            float *row = part->rows + (size_t)j * part->d_stride;
            load_row(row, (const char *)from + (size_t)(k + j) * stride * n_bytes, part->kv_type, part->head_dim);
            for (size_t d = head_dim; d < part->d_stride; d++) row[d] = 0.0f;
        }
        use(part, (decode_rows){ .at = (const char *)part->rows, .stride = part->d_stride * sizeof *part->rows, .k_begin = k, .n = n });
    }
}

static void weigh_row(const attn_decode_part *part, int32_t g)
{
    const vf c = vf_set1(part->scale * (float)M_LOG2E);
    float *s = part->weights + (size_t)g * ATTN_DECODE_KEYS, lanes[LANES];
    int32_t n = part->n_keys;
    while (n % LANES != 0) s[n++] = -INFINITY;
    vf max = vf_set1(-FLT_MAX), sum = vf_zero();
    for (int32_t k = 0; k < n; k += LANES) max = vf_max(vf_load(s + k), max);
    vf_store(lanes, max);
    float m = lanes[0];
    for (int i = 1; i < LANES; i++) m = lanes[i] > m ? lanes[i] : m;
    for (int32_t k = 0; k < n; k += LANES) {
        const vf w = vf_exp2(vf_mul(vf_sub(vf_load(s + k), vf_set1(m)), c));
        vf_store(s + k, w);
        sum = vf_add(sum, w);
    }
    part->max[g] = m;
    part->sum[g] = vf_sum(sum);
}

static void decode_part(const attn_decode_part *part)
{
    walk_rows(part, part->k, part->k_stride, dot_rows);
    for (int32_t g = 0; g < part->n_group; g++) weigh_row(part, g);
    for (size_t i = 0; i < (size_t)part->n_group * part->d_stride; i++) part->o[i] = 0.0f;
    walk_rows(part, part->v, part->v_stride, add_rows);
}

#endif
