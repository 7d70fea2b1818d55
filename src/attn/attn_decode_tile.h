/* attn_decode_tile.h - the body of every decode kernel, in the vf vocabulary of attn_tile.h, with
 * vf_sum (all lanes, in one fixed order).
 *
 *   max[g] = max over keys of s,  s = q[g] . K[k];   sum[g] = sum of w,  o[g] = sum of w V[k],  w = 2^(c (s - max[g]))
 *
 * One row per head, so lanes run along head_dim and K is dotted as it lies.  A task owns one range of at most
 * ATTN_DECODE_KEYS keys of one KV head; ATTN_DECODE_STEP rows of K, then of V, become f32 in scratch once and serve
 * every head of the group.  Floor: reading K and V once, 4 * head_dim bytes a key in bf16; the arithmetic, n_group *
 * 4 * head_dim FLOP a key, stays below it up to about 8 heads per group. */
#ifndef TMX_ATTN_ATTN_DECODE_TILE_H
#define TMX_ATTN_ATTN_DECODE_TILE_H

enum { DOT_KEYS = 4, VALUE_VECS = 4, FETCH_KEYS = 16 };
static_assert(ATTN_DECODE_STEP % DOT_KEYS == 0 && ATTN_DECODE_KEYS % LANES == 0, "whole steps");

/* Rows of one KV head lie a whole position apart, too far for the hardware to run ahead of; so we fetch. */
static void load_rows(const attn_decode_part *part, const void *from, size_t stride, int32_t k_begin, int32_t n)
{
    const size_t head_dim = (size_t)part->head_dim, n_bytes = attn_element_bytes(part->kv_type);
    for (int32_t j = 0; j < n; j++) {
        const int32_t key = k_begin + j;
        float *row = part->rows + (size_t)j * part->d_stride;
        if (key + FETCH_KEYS < part->n_keys) {
            const char *ahead = (const char *)from + (size_t)(key + FETCH_KEYS) * stride * n_bytes;
            for (size_t at = 0; at < head_dim * n_bytes; at += MEM_ALIGN) __builtin_prefetch(ahead + at);
        }
        load_row(row, (const char *)from + (size_t)key * stride * n_bytes, part->kv_type, part->head_dim);
        for (size_t d = head_dim; d < part->d_stride; d++) row[d] = 0.0f;
    }
}

static void dot_rows(const attn_decode_part *part, int32_t k_begin, int32_t n)
{
    for (int32_t g = 0; g < part->n_group; g++) {
        const float *q = part->q + (size_t)g * part->d_stride;
        float *s = part->weights + (size_t)g * ATTN_DECODE_KEYS + k_begin;
        for (int32_t j = 0; j < n; j += DOT_KEYS) {
            const float *row = part->rows + (size_t)j * part->d_stride;
            vf sum[DOT_KEYS];
            UNROLL for (int i = 0; i < DOT_KEYS; i++) sum[i] = vf_zero();
            for (size_t d = 0; d < part->d_stride; d += LANES) {
                const vf q_d = vf_load(q + d);
                UNROLL for (int i = 0; i < DOT_KEYS; i++) {
                    sum[i] = vf_fma(q_d, vf_load(row + (size_t)i * part->d_stride + d), sum[i]);
                }
            }
            UNROLL for (int i = 0; i < DOT_KEYS; i++) {
                if (j + i < n) s[j + i] = vf_sum(sum[i]);
            }
        }
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

ALWAYS_INLINE void add_vecs(const attn_decode_part *part, const float *w, float *o, size_t d, int32_t n, int n_vecs)
{
    vf acc[VALUE_VECS];
    UNROLL for (int i = 0; i < n_vecs; i++) acc[i] = vf_load(o + d + (size_t)i * LANES);
    for (int32_t j = 0; j < n; j++) {
        const float *row = part->rows + (size_t)j * part->d_stride + d;
        const vf w_j = vf_set1(w[j]);
        UNROLL for (int i = 0; i < n_vecs; i++) acc[i] = vf_fma(w_j, vf_load(row + i * LANES), acc[i]);
    }
    UNROLL for (int i = 0; i < n_vecs; i++) vf_store(o + d + (size_t)i * LANES, acc[i]);
}

static void add_rows(const attn_decode_part *part, int32_t k_begin, int32_t n)
{
    for (int32_t g = 0; g < part->n_group; g++) {
        const float *w = part->weights + (size_t)g * ATTN_DECODE_KEYS + k_begin;
        float *o = part->o + (size_t)g * part->d_stride;
        const size_t step = VALUE_VECS * LANES;
        size_t d = 0;
        for (; d + step <= part->d_stride; d += step) add_vecs(part, w, o, d, n, VALUE_VECS);
        for (; d < part->d_stride; d += LANES) add_vecs(part, w, o, d, n, 1);
    }
}

static void decode_part(const attn_decode_part *part)
{
    for (int32_t k = 0; k < part->n_keys; k += ATTN_DECODE_STEP) {
        const int32_t n = min_i32(ATTN_DECODE_STEP, part->n_keys - k);
        load_rows(part, part->k, part->k_stride, k, n);
        dot_rows(part, k, n);
    }
    for (int32_t g = 0; g < part->n_group; g++) weigh_row(part, g);
    for (size_t i = 0; i < (size_t)part->n_group * part->d_stride; i++) part->o[i] = 0.0f;
    for (int32_t k = 0; k < part->n_keys; k += ATTN_DECODE_STEP) {
        const int32_t n = min_i32(ATTN_DECODE_STEP, part->n_keys - k);
        load_rows(part, part->v, part->v_stride, k, n);
        add_rows(part, k, n);
    }
}

#endif
