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

static bool is_special(const vocab_token *token)
{
    return (token->type == TOKEN_CONTROL || token->type == TOKEN_UNKNOWN || token->type == TOKEN_USER)
        && token->n_name > 0 && token->n_name <= SPECIAL_MAX_BYTES;
}

tmx_status special_create(special_set *set, const vocab_token *tokens, int32_t n_tokens, tmx_error *err)
{
    int32_t n = 0;
    for (int32_t id = 0; id < n_tokens; id++) n += is_special(&tokens[id]);
    set->tokens = mem_alloc((size_t)n, sizeof *set->tokens);
    if (set->tokens == NULL) return refuse(err, TMX_E_MEMORY, "vocabulary: no memory for %d special tokens", n);
    special_token *all = set->tokens;
    n = 0;
    for (int32_t id = 0; id < n_tokens; id++) {
        if (!is_special(&tokens[id])) continue;
        all[n++] = (special_token){ .name = tokens[id].name, .n_bytes = tokens[id].n_name, .id = id,
                                    .is_user = tokens[id].type == TOKEN_USER };
    }
    qsort(all, (size_t)n, sizeof *all, by_spelling);
    int32_t n_kept = 0;
    for (int32_t i = 0; i < n; i++) {
        if (n_kept > 0 && is_repeat(&all[n_kept - 1], &all[i])) continue;
        const unsigned char first = (unsigned char)all[i].name[0];
        set->starts_any[first] = true;
        if (all[i].is_user) set->starts_user[first] = true;
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

static const special_token *longest_at(const special_set *set, const char *text, size_t n_bytes, bool with_control)
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
            if (!with_control && !set->tokens[i].is_user) continue;
            longest = &set->tokens[i];
            break;
        }
    }
    return longest;
}

bool special_next(const special_set *set, const char *text, size_t n_bytes, bool with_control, size_t *at,
                  const special_token **match)
{
    const bool *starts = with_control ? set->starts_any : set->starts_user;
    for (size_t i = *at; i < n_bytes; i++) {
        if (!starts[(unsigned char)text[i]]) continue;
        *match = longest_at(set, text + i, n_bytes - i, with_control);
        if (*match == NULL) continue;
        *at = i;
        return true;
    }
    return false;
}

int32_t special_find(const special_set *set, const char *name)
{
    const special_token *match = longest_at(set, name, strlen(name), true);
    return match != NULL && !match->is_user && (size_t)match->n_bytes == strlen(name) ? match->id : -1;
}
