#include "token/word_index.h"

#include "base/mem.h"
#include "base/status.h"

#include <string.h>

static uint64_t hash_bytes(uint64_t seed, const char *p, size_t n)
{
    uint64_t hash = hash_stir(seed ^ n), w;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&w, p, 8);
        hash = hash_stir(hash ^ w);
    }
    if (n >= 4) {
        uint32_t head, tail;
        memcpy(&head, p, 4);
        memcpy(&tail, p + n - 4, 4);
        w = (uint64_t)head << 32 | tail;
    } else if (n > 0) {
        w = (uint64_t)(unsigned char)p[0] << 16 | (uint64_t)(unsigned char)p[n / 2] << 8 | (unsigned char)p[n - 1];
    } else {
        return hash_stir(hash);
    }
    return hash_stir(hash_stir(hash ^ w));
}

int32_t word_index_find(const word_index *index, const char *bytes, size_t n_bytes)
{
    if (n_bytes > (size_t)index->max_bytes) return -1;
    const uint64_t hash = hash_bytes(index->seed, bytes, n_bytes);
    for (uint64_t i = hash;; i++) {
        const word_slot slot = index->slots[i & index->mask];
        if (slot.id < 0) return -1;
        if (slot.tag != (uint32_t)(hash >> 32)) continue;
        const vocab_token *token = &index->tokens[slot.id];
        if ((size_t)token->n_bytes == n_bytes && memcmp(token->bytes, bytes, n_bytes) == 0) return slot.id;
    }
}

tmx_status word_index_create(word_index *index, const vocab_token *tokens, int32_t n_tokens, uint64_t seed,
                             tmx_error *err)
{
    const uint64_t n_slots = hash_slots_for((uint64_t)n_tokens);
    *index = (word_index){ .tokens = tokens, .seed = seed, .mask = n_slots - 1 };
    index->slots = mem_alloc(n_slots, sizeof *index->slots);
    if (index->slots == NULL) return refuse(err, TMX_E_MEMORY, "vocabulary: no memory to index %d tokens", n_tokens);
    for (uint64_t i = 0; i < n_slots; i++) index->slots[i].id = -1;
    for (int32_t id = 0; id < n_tokens; id++) {
        const vocab_token *token = &tokens[id];
        if (!token->is_text) continue;
        if (token->n_bytes > index->max_bytes) index->max_bytes = token->n_bytes;
        /* A repeat is left out rather than put behind its equal: many of them would make a long chain. */
        if (word_index_find(index, token->bytes, (size_t)token->n_bytes) >= 0) continue;
        const uint64_t hash = hash_bytes(seed, token->bytes, (size_t)token->n_bytes);
        uint64_t i = hash;
        while (index->slots[i & index->mask].id >= 0) i++;
        index->slots[i & index->mask] = (word_slot){ .tag = (uint32_t)(hash >> 32), .id = id };
    }
    return TMX_OK;
}

void word_index_free(word_index *index)
{
    mem_free(index->slots);
    index->slots = NULL;
}
