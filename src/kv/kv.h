/* kv.h - the keys and values of one session.  In: sizes.  Out: views of one layer of one sequence.  Every token's K and
 * V of every layer are kept; nothing is evicted.  Never computes.
 *
 * k and v are [n_layers][n_seqs][n_kv_heads][n_ctx][head_dim] of one type, taken whole at create time. */
#ifndef TMX_KV_KV_H
#define TMX_KV_KV_H

#include "tmx.h"

typedef struct kv_cache {
    tmx_type type;                 /* TMX_TYPE_F32 or TMX_TYPE_BF16 */
    int32_t n_layers, n_seqs, n_kv_heads, n_ctx, head_dim;
    char *k, *v;
} kv_cache;

static inline size_t type_bytes(tmx_type type) { return type == TMX_TYPE_BF16 ? 2 : 4; }

/* Bytes of k and v together; false if the product overflows. */
bool kv_bytes(const kv_cache *sizes, uint64_t *n_bytes);
/* Takes the memory for the sizes given in *kv; TMX_E_MEMORY leaves k and v NULL. */
tmx_status kv_create(kv_cache *kv, tmx_error *err);
void kv_free(kv_cache *kv);

static inline size_t kv_head_stride(const kv_cache *kv) { return (size_t)kv->n_ctx * (size_t)kv->head_dim; }

/* First byte of one layer of one sequence in k (or v): [n_kv_heads][n_ctx][head_dim]. */
static inline char *kv_view(const kv_cache *kv, char *base, int32_t layer, int32_t seq)
{
    const size_t n_elements = ((size_t)layer * (size_t)kv->n_seqs + (size_t)seq) * (size_t)kv->n_kv_heads * kv_head_stride(kv);
    return base + n_elements * type_bytes(kv->type);
}

/* One head's row at a position in k (or v): [head_dim]. */
static inline char *kv_row(const kv_cache *kv, char *base, int32_t layer, int32_t seq, int32_t kv_head, int32_t position)
{
    const size_t n_elements = (size_t)kv_head * kv_head_stride(kv) + (size_t)position * (size_t)kv->head_dim;
    return kv_view(kv, base, layer, seq) + n_elements * type_bytes(kv->type);
}

#endif
