#include "token/special.h"

#include "base/mem.h"
#include "base/status.h"

#include <stdlib.h>
#include <string.h>

static int by_spelling(const void *left, const void *right)
{
    const special_token *a = left, *b = right;
    const int32_t n = a->n_bytes < b->n_bytes ? a->n_bytes : b->n_bytes;
    const int order = memcmp(a->name, b->name, (size_t)n);
    if (order != 0) return order;
    if (a->n_bytes != b->n_bytes) return a->n_bytes < b->n_bytes ? -1 : 1;
    if (a->is_user != b->is_user) return a->is_user ? 1 : -1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static bool is_repeat(const special_token *a, const special_token *b)
{
    return a->is_user == b->is_user && a->n_bytes == b->n_bytes && memcmp(a->name, b->name, (size_t)a->n_bytes) == 0;
}

/* A user-defined token stands for its bytes, a control token for none: that one is found by its name.  False: neither,
 * or its spelling is empty or too long. */
static bool read_special(const vocab_token *token, int32_t id, special_token *special)
{
    const bool is_user = token->type == TOKEN_USER;
    if (!is_user && token->type != TOKEN_CONTROL && token->type != TOKEN_UNKNOWN) return false;
    *special = (special_token){ .name = is_user ? token->bytes : token->name,
                                .n_bytes = is_user ? token->n_bytes : token->n_name, .id = id, .is_user = is_user };
    return special->n_bytes > 0 && special->n_bytes <= SPECIAL_MAX_BYTES;
}

tmx_status special_create(special_set *set, const vocab_token *tokens, int32_t n_tokens, tmx_error *err)
{
    int32_t n = 0;
    special_token special;
    for (int32_t id = 0; id < n_tokens; id++) n += read_special(&tokens[id], id, &special);
    set->tokens = mem_alloc((size_t)n, sizeof *set->tokens);
    if (set->tokens == NULL) return refuse(err, TMX_E_MEMORY, "vocabulary: no memory for %d special tokens", n);
    special_token *all = set->tokens;
    n = 0;
    for (int32_t id = 0; id < n_tokens; id++) {
        if (read_special(&tokens[id], id, &special)) all[n++] = special;
    }
    qsort(all, (size_t)n, sizeof *all, by_spelling);
    int32_t n_kept = 0;
    for (int32_t i = 0; i < n; i++) {
        if (n_kept > 0 && is_repeat(&all[n_kept - 1], &all[i])) continue;
        set->starts[(unsigned char)all[i].name[0]] |= all[i].is_user ? SPECIAL_USER : SPECIAL_CONTROL;
        all[n_kept++] = all[i];
    }
    set->n_tokens = n_kept;
    return TMX_OK;
}

void special_free(special_set *set)
{
    mem_free(set->tokens);
    set->tokens = NULL;
}

/* First of [begin, end), which share their first `depth` bytes, whose next byte is >= next. */
static int32_t lower_bound(const special_token *tokens, int32_t begin, int32_t end, int32_t depth, int next)
{
    while (begin < end) {
        const int32_t middle = begin + (end - begin) / 2;
        const special_token *token = &tokens[middle];
        const int byte = token->n_bytes > depth ? (unsigned char)token->name[depth] : -1;
        if (byte < next) begin = middle + 1;
        else end = middle;
    }
    return begin;
}

static const special_token *longest_at(const special_set *set, const char *text, size_t n_bytes, unsigned kinds)
{
    const special_token *longest = NULL;
    int32_t begin = 0, end = set->n_tokens;
    for (int32_t depth = 0; (size_t)depth < n_bytes; depth++) {
        const int next = (unsigned char)text[depth];
        begin = lower_bound(set->tokens, begin, end, depth, next);
        end = lower_bound(set->tokens, begin, end, depth, next + 1);
        if (begin == end) break;
        /* those that end here sort first: a control token, then a user-defined one, either may be absent */
        for (int32_t i = begin; i < end && set->tokens[i].n_bytes == depth + 1; i++) {
            if ((kinds & (set->tokens[i].is_user ? SPECIAL_USER : SPECIAL_CONTROL)) == 0) continue;
            longest = &set->tokens[i];
            break;
        }
    }
    return longest;
}

bool special_next(const special_set *set, const char *text, size_t n_bytes, unsigned kinds, size_t *at,
                  const special_token **match)
{
    for (size_t i = *at; i < n_bytes; i++) {
        if ((set->starts[(unsigned char)text[i]] & kinds) == 0) continue;
        *match = longest_at(set, text + i, n_bytes - i, kinds);
        if (*match == NULL) continue;
        *at = i;
        return true;
    }
    return false;
}

int32_t special_find(const special_set *set, const char *name)
{
    const special_token *match = longest_at(set, name, strlen(name), SPECIAL_CONTROL);
    return match != NULL && (size_t)match->n_bytes == strlen(name) ? match->id : -1;
}
