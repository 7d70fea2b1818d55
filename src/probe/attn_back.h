/* attn_back.h - the backward pass of dense causal attention, and the probe's sums over sections, in one walk over tiles.
 * In a layer with a window, pairs beyond it are not there: P is 0, and no sum counts them.
 * In: what the forward kept of a layer (q, k, v, o, lse) and d_o, the derivative of the answer's logit by o.  Out: d_q, d_k,
 * d_v, and per section of (query, key) pairs five sums.  Nothing of size n_tokens^2 exists.
 *
 *   P[h][i][j]  = exp(scale q[i][h] . k[j][g] - lse[i][h])         softmax probability; 0 for j > i
 *   dA[h][i][j] = d_o[i][h] . v[j][g],   D[h][i] = d_o[i][h] . o[i][h],   dS = scale P (dA - D)
 *   d_q[i][h] = sum over j of dS k[j][g];   d_k[j][g] = sum over i, h of dS q[i][h];   d_v[j][g] = sum over i, h of P d_o[i][h]
 *   theta[i][j] = sum over h of P dA        the derivative by a factor on the pair (i, j), the same for all heads
 *
 * A task owns a strip of query rows: their d_q, and a d_k and d_v of its own over all keys they see.  Strips have equal numbers
 * of pairs and depend on n_tokens alone; who reads d_k and d_v adds the strips up in order (attn_back_kv_row).  So no bit
 * depends on threads.  Memory: N_STRIPS * 2/3 n_tokens * n_kv_heads * d_pad * 8 bytes. */
#ifndef TMX_PROBE_ATTN_BACK_H
#define TMX_PROBE_ATTN_BACK_H

#include "tmx.h"

enum {
    ATTN_BACK_STRIPS = 16,         /* at most: as many threads as can share a layer's pass */
    ATTN_BACK_ROWS = 32,           /* strips begin at multiples of this; every rung's row tile divides it */
    ATTN_BACK_KEYS = 64,           /* keys of a tile */
    ATTN_BACK_DIM = 16,            /* head_dim is padded to this with zeros */
};

typedef enum probe_section { SECTION_STREAMING = 0, SECTION_LAST, SECTION_MIDDLE, N_SECTIONS } probe_section;

typedef struct attn_strips {
    int32_t n;
    int32_t begin[ATTN_BACK_STRIPS + 1];           /* rows [begin[s], begin[s + 1]) */
    size_t kv_at[ATTN_BACK_STRIPS + 1];            /* first element of strip s in d_kv */
} attn_strips;

typedef struct attn_back {
    tmx_type type;                 /* of q, k, v, o: f32 or bf16 */
    int32_t n_tokens, n_heads, n_kv_heads, head_dim;
    float scale;
    int32_t n_window;              /* keys a row sees, its own counted; 0 = all up to its own */
    tmx_isa isa;
    tmx_pattern sections;          /* a triangle: its sizes cut the pairs into streaming, last and middle */
    const void *q, *o;             /* [n_tokens][n_heads][head_dim] */
    const void *k, *v;             /* [n_tokens][n_kv_heads][head_dim] */
    const float *lse;              /* [n_tokens][n_heads], natural log */
    const float *d_o;              /* [n_tokens][n_heads][head_dim] */
    bool is_sums_only;             /* d_q and d_kv are left alone */
    float *d_q;                    /* [n_rows_padded][n_heads][d_pad] */
    float *d_kv;                   /* strips; a strip: [2: k, v][keys, padded][n_kv_heads][d_pad] */
    void *scratch;                 /* attn_back_scratch_bytes, 64-byte aligned */
} attn_back;

size_t attn_back_d_pad(int32_t head_dim);
size_t attn_back_rows_padded(int32_t n_tokens);
attn_strips attn_back_strips(int32_t n_tokens, int32_t n_kv_heads, int32_t head_dim);
size_t attn_back_scratch_bytes(int32_t n_tokens, int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, int32_t n_threads);

/* sums [N_SECTIONS], written: over all pairs of each section, f64.  Allocates nothing. */
void attn_back_run(const attn_back *back, tmx_probe_sums *sums, tmx_pool *pool);

/* d_k (is_v: d_v) of one key and KV head, the strips added up: [head_dim]. */
void attn_back_kv_row(const attn_back *back, const attn_strips *strips, bool is_v, int32_t key, int32_t kv_head, float *row);

#endif
