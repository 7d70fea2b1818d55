#include "kv/kv.h"

#include "base/mem.h"
#include "base/status.h"

bool kv_bytes(const kv_cache *s, uint64_t *n_bytes)
{
    const int32_t factors[] = { s->n_layers, s->n_seqs, s->n_kv_heads, s->n_ctx, s->head_dim };
    uint64_t n = 2 * type_bytes(s->type);
    for (size_t i = 0; i < sizeof factors / sizeof factors[0]; i++) {
        if (!mul_ok(n, (uint64_t)factors[i], &n)) return false;
    }
    *n_bytes = n;
    return true;
}

tmx_status kv_create(kv_cache *kv, tmx_error *err)
{
    uint64_t n_bytes;
    if (!kv_bytes(kv, &n_bytes)) return refuse(err, TMX_E_MEMORY, "KV cache: the size overflows for %d tokens", kv->n_ctx);
    kv->k = mem_alloc(1, n_bytes / 2);
    kv->v = mem_alloc(1, n_bytes / 2);
    if (kv->k == NULL || kv->v == NULL) {
        kv_free(kv);
        return refuse(err, TMX_E_MEMORY, "KV cache: out of memory for %.2f GiB", (double)n_bytes / 0x1p30);
    }
    return TMX_OK;
}

void kv_free(kv_cache *kv)
{
    mem_free(kv->k);
    mem_free(kv->v);
    kv->k = kv->v = NULL;
}
