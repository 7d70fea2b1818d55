#include "token/bpe.h"

#include "base/mem.h"
#include "base/status.h"

#include <string.h>

enum {
    MAX_MERGES = 1 << 24,          /* four levels of 64 cover it */
    SHORT_BYTES = 64,              /* up to here a pass over everything per rank beats linked lists */
    FFFD_BYTES = 3,
};
#define NO_RANK UINT32_MAX

/* left + right -> id; a merge's index is its rank.  16 bytes, so that a look-up touches one cache line. */
typedef struct merge {
    int32_t left, right;           /* left < 0 = empty slot */
    uint32_t rank;
    int32_t id;
} merge;

struct bpe {
    const vocab_token *tokens;
    uint64_t seed;
    merge *by_rank;                /* [n_merges] */
    merge *slots;                  /* [merge_mask + 1] */
    uint32_t n_merges;
    uint64_t merge_mask;
    word_index words;              /* bytes -> id */
    bool *is_whole;                /* [n_tokens]: this token's bytes, as a word, give exactly this token */
    int32_t byte_ids[256];         /* -1 = replaced by U+FFFD */
    int32_t fffd_ids[FFFD_BYTES];
};

/* ---------------------------------------------------------------- GPT-2's alphabet */

/* Printable Latin-1 stands for itself; the other 68 bytes are U+0100, U+0101, ... in order. */
static int byte_of_character(unsigned c)
{
    if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff)) return (int)c;
    if (c >= 0x100 && c <= 0x120) return (int)(c - 0x100);                 /* 0x00..0x20 */
    if (c >= 0x121 && c <= 0x142) return (int)(c - 0x121 + 0x7f);          /* 0x7f..0xa0 */
    return c == 0x143 ? 0xad : -1;
}

bool bpe_decode_spelling(const char *name, size_t n_name, char *out, size_t *n_out)
{
    size_t n = 0;
    for (size_t i = 0; i < n_name; i++) {
        unsigned c = (unsigned char)name[i];
        if (c >= 0x80) {           /* the alphabet needs two bytes of UTF-8 at most */
            if (c < 0xc2 || c > 0xdf || i + 1 == n_name || ((unsigned char)name[i + 1] & 0xc0) != 0x80) return false;
            c = (c & 0x1f) << 6 | ((unsigned char)name[++i] & 0x3f);
        }
        const int byte = byte_of_character(c);
        if (byte < 0) return false;
        out[n++] = (char)byte;
    }
    *n_out = n;
    return true;
}

/* ---------------------------------------------------------------- tables
 *
 * Open addressing, as in word_index.h: repeats are left out here too. */

static uint64_t hash_pair(uint64_t seed, int32_t left, int32_t right)
{
    return hash_stir(hash_stir(seed ^ ((uint64_t)(uint32_t)left << 32 | (uint32_t)right)));
}

static const merge *find_merge(const bpe *b, int32_t left, int32_t right)
{
    for (uint64_t i = hash_pair(b->seed, left, right);; i++) {
        const merge *slot = &b->slots[i & b->merge_mask];
        if (slot->left == left && slot->right == right) return slot;
        if (slot->left < 0) return NULL;
    }
}

static uint32_t rank_of(const bpe *b, int32_t left, int32_t right)
{
    const merge *found = find_merge(b, left, right);
    return found != NULL ? found->rank : NO_RANK;
}

static tmx_status index_bytes(bpe *b, tmx_error *err)
{
    static const char fffd[FFFD_BYTES] = { '\xef', '\xbf', '\xbd' };
    int missing = -1;
    for (int byte = 0; byte < 256; byte++) {
        const char word[1] = { (char)byte };
        b->byte_ids[byte] = word_index_find(&b->words, word, 1);
        if (b->byte_ids[byte] < 0) missing = byte;
    }
    for (int i = 0; i < FFFD_BYTES; i++) {
        b->fffd_ids[i] = b->byte_ids[(unsigned char)fffd[i]];
        if (missing >= 0 && b->fffd_ids[i] < 0) {
            return refuse(err, TMX_E_UNSUPPORTED,
                          "tokenizer.ggml.tokens: no token for the byte 0x%02x, nor for U+FFFD in its place", missing);
        }
    }
    return TMX_OK;
}

/* "left right" -> ids.  `bytes` has room for both parts. */
static tmx_status read_merge(const bpe *b, const gguf_string *text, uint64_t index, char *bytes, merge *m,
                             tmx_error *err)
{
    const char *space = text->n_bytes < 3 ? NULL : memchr(text->data + 1, ' ', text->n_bytes - 2);
    const int n_shown = (int)(text->n_bytes < 60 ? text->n_bytes : 60);
    const size_t n_left = space == NULL ? 0 : (size_t)(space - text->data), n_right = text->n_bytes - n_left - 1;
    if (space == NULL || text->data[0] == ' ' || memchr(space + 1, ' ', n_right) != NULL) {
        return refuse(err, TMX_E_FORMAT, "tokenizer.ggml.merges[%llu]: '%.*s' is not two tokens with one space between",
                      (unsigned long long)index, n_shown, text->data);
    }
    size_t n_left_bytes = 0, n_right_bytes = 0;
    m->left = m->right = m->id = -1;
    if (bpe_decode_spelling(text->data, n_left, bytes, &n_left_bytes)
        && bpe_decode_spelling(space + 1, n_right, bytes + n_left_bytes, &n_right_bytes)) {
        m->left = word_index_find(&b->words, bytes, n_left_bytes);
        m->right = word_index_find(&b->words, bytes + n_left_bytes, n_right_bytes);
        m->id = word_index_find(&b->words, bytes, n_left_bytes + n_right_bytes);
    }
    if (m->left < 0 || m->right < 0 || m->id < 0) {
        return refuse(err, TMX_E_FORMAT, "tokenizer.ggml.merges[%llu]: '%.*s' %s", (unsigned long long)index, n_shown,
                      text->data, m->left < 0 || m->right < 0 ? "names a token that is not in the vocabulary"
                                                              : "makes a token that is not in the vocabulary");
    }
    m->rank = (uint32_t)index;
    return TMX_OK;
}

static tmx_status index_merges(bpe *b, const gguf_array *merges, tmx_error *err)
{
    if (merges->n > MAX_MERGES) {
        return refuse(err, TMX_E_FORMAT, "tokenizer.ggml.merges: %llu entries, expected at most %d",
                      (unsigned long long)merges->n, MAX_MERGES);
    }
    b->n_merges = (uint32_t)merges->n;
    size_t longest = 0;
    for (uint64_t i = 0; i < merges->n; i++) {
        if (merges->strings[i].n_bytes > longest) longest = merges->strings[i].n_bytes;
    }
    const uint64_t n_slots = hash_slots_for(merges->n);
    char *bytes = mem_alloc(longest, 1);
    b->by_rank = mem_alloc(b->n_merges, sizeof *b->by_rank);
    b->slots = mem_alloc(n_slots, sizeof *b->slots);
    if (bytes == NULL || b->by_rank == NULL || b->slots == NULL) {
        mem_free(bytes);
        return refuse(err, TMX_E_MEMORY, "vocabulary: no memory to index %u merges", b->n_merges);
    }
    b->merge_mask = n_slots - 1;
    for (uint64_t i = 0; i < n_slots; i++) b->slots[i].left = -1;
    tmx_status status = TMX_OK;
    for (uint32_t rank = 0; rank < b->n_merges && status == TMX_OK; rank++) {
        merge *m = &b->by_rank[rank];
        status = read_merge(b, &merges->strings[rank], rank, bytes, m, err);
        if (status != TMX_OK || find_merge(b, m->left, m->right) != NULL) continue;
        uint64_t i = hash_pair(b->seed, m->left, m->right);
        while (b->slots[i & b->merge_mask].left >= 0) i++;
        b->slots[i & b->merge_mask] = *m;
    }
    mem_free(bytes);
    return status;
}

static tmx_status merge_word(const bpe *b, bpe_scratch *scratch, const char *word, size_t n_bytes, id_sink *sink,
                             tmx_error *err);

/* Most words of a text are one token.  Knowing beforehand which tokens are what merging their bytes ends in, one
 * look-up replaces the merging without changing the result.  A tokenizer that ignores merges takes any token. */
static tmx_status mark_whole_words(bpe *b, int32_t n_tokens, bool ignores_merges, tmx_error *err)
{
    bpe_scratch scratch = { 0 };
    tmx_status status = TMX_OK;
    for (int32_t id = 0; id < n_tokens && status == TMX_OK; id++) {
        const vocab_token *token = &b->tokens[id];
        if (!token->is_text) continue;
        int32_t first = -1;
        id_sink sink = { .ids = &first, .cap = 1 };
        if (!ignores_merges) status = merge_word(b, &scratch, token->bytes, (size_t)token->n_bytes, &sink, err);
        b->is_whole[id] = ignores_merges || (sink.n == 1 && first == id);
    }
    bpe_scratch_free(&scratch);
    return status;
}

tmx_status bpe_create(bpe **merger, const vocab_token *tokens, int32_t n_tokens, const gguf_array *merges,
                      bool ignores_merges, tmx_error *err)
{
    bpe *b = mem_alloc(1, sizeof *b);
    if (b == NULL) return refuse(err, TMX_E_MEMORY, "vocabulary: out of memory");
    b->tokens = tokens;
    b->seed = hash_stir((uint64_t)(uintptr_t)b);    /* where it happens to lie: colliding tokens cannot be prepared */
    tmx_status status = word_index_create(&b->words, tokens, n_tokens, b->seed, err);
    b->is_whole = mem_alloc((size_t)n_tokens, sizeof *b->is_whole);
    if (status == TMX_OK && b->is_whole == NULL) {
        status = refuse(err, TMX_E_MEMORY, "vocabulary: no memory to index %d tokens", n_tokens);
    }
    if (status == TMX_OK) status = index_bytes(b, err);
    if (status == TMX_OK) status = index_merges(b, merges, err);
    if (status == TMX_OK) status = mark_whole_words(b, n_tokens, ignores_merges, err);
    if (status != TMX_OK) {
        bpe_free(b);
        return status;
    }
    *merger = b;
    return TMX_OK;
}

void bpe_free(bpe *b)
{
    if (b == NULL) return;
    mem_free(b->by_rank);
    mem_free(b->slots);
    word_index_free(&b->words);
    mem_free(b->is_whole);
    mem_free(b);
}

/* ---------------------------------------------------------------- short words */

static size_t spread_bytes(const bpe *b, const char *word, size_t n_bytes, int32_t *ids)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        const int32_t id = b->byte_ids[(unsigned char)word[i]];
        if (id >= 0) {
            ids[n++] = id;
        } else {
            memcpy(ids + n, b->fffd_ids, sizeof b->fffd_ids);
            n += FFFD_BYTES;
        }
    }
    return n;
}

static void merge_short(const bpe *b, const char *word, size_t n_bytes, id_sink *sink)
{
    enum { CAP = SHORT_BYTES * FFFD_BYTES };
    int32_t ids[CAP];
    uint32_t rank[CAP];            /* of ids[i] with its right neighbour */
    bool is_stale[CAP];
    size_t n = spread_bytes(b, word, n_bytes, ids);
    for (size_t i = 0; i < n; i++) {
        rank[i] = NO_RANK;
        is_stale[i] = true;
    }
    for (;;) {
        uint32_t lowest = NO_RANK;
        for (size_t i = 0; i < n; i++) {
            if (is_stale[i]) rank[i] = i + 1 < n ? rank_of(b, ids[i], ids[i + 1]) : NO_RANK;
            if (rank[i] < lowest) lowest = rank[i];
        }
        if (lowest == NO_RANK) break;
        size_t n_left = 0;
        for (size_t i = 0; i < n; i++, n_left++) {
            is_stale[n_left] = rank[i] == lowest;
            rank[n_left] = rank[i];
            if (!is_stale[n_left]) {
                ids[n_left] = ids[i];
                continue;
            }
            ids[n_left] = b->by_rank[lowest].id;
            if (n_left > 0) is_stale[n_left - 1] = true;
            i++;
        }
        n = n_left;
    }
    for (size_t i = 0; i < n; i++) sink_push(sink, ids[i]);
}

/* ---------------------------------------------------------------- long words
 *
 * Tokens form a linked list; every pair that can merge is also in the list of its rank, so the lowest rank's pairs are
 * at hand and leave it in O(1) when a neighbour changes.  Each merge costs two look-ups; there are fewer than n. */

enum { NONE = -1 };

typedef struct long_word {
    const bpe *b;
    int32_t *ids, *left, *right;   /* token at i; its neighbours */
    int32_t *rank;                 /* of i with its right neighbour, NONE if they cannot merge */
    int32_t *newer, *older;        /* neighbours in the list of that rank */
    int32_t *first;                /* newest of each rank; all NONE between words */
    uint64_t *const *levels;       /* bit r of [0]: rank r has pairs; bit i of [k + 1]: word i of [k] is not 0 */
} long_word;

static void rank_set(const long_word *w, int32_t rank)
{
    for (int k = 0; k < 4; k++) w->levels[k][rank >> 6 * (k + 1)] |= (uint64_t)1 << (rank >> 6 * k & 63);
}

static void rank_clear(const long_word *w, int32_t rank)
{
    for (int k = 0; k < 4; k++) {
        uint64_t *bits = &w->levels[k][rank >> 6 * (k + 1)];
        *bits &= ~((uint64_t)1 << (rank >> 6 * k & 63));
        if (*bits != 0) return;
    }
}

static int32_t lowest_rank(const long_word *w)
{
    if (w->levels[3][0] == 0) return NONE;
    int32_t at = 0;
    for (int k = 3; k >= 0; k--) at = at << 6 | __builtin_ctzll(w->levels[k][at]);
    return at;
}

static void pair_add(const long_word *w, int32_t i)
{
    w->rank[i] = NONE;
    if (w->right[i] == NONE) return;
    const merge *m = find_merge(w->b, w->ids[i], w->ids[w->right[i]]);
    if (m == NULL) return;
    const int32_t rank = (int32_t)m->rank, head = w->first[rank];
    w->rank[i] = rank;
    w->newer[i] = NONE;
    w->older[i] = head;
    if (head != NONE) w->newer[head] = i;
    else rank_set(w, rank);
    w->first[rank] = i;
}

static void pair_remove(const long_word *w, int32_t i)
{
    const int32_t rank = w->rank[i];
    if (rank == NONE) return;
    if (w->older[i] != NONE) w->newer[w->older[i]] = w->newer[i];
    if (w->newer[i] != NONE) w->older[w->newer[i]] = w->older[i];
    else w->first[rank] = w->older[i];
    if (w->first[rank] == NONE) rank_clear(w, rank);
}

static void merge_at(const long_word *w, int32_t i, int32_t id)
{
    const int32_t gone = w->right[i], before = w->left[i], after = w->right[gone];
    if (before != NONE) pair_remove(w, before);
    pair_remove(w, i);
    pair_remove(w, gone);
    w->ids[i] = id;
    w->right[i] = after;
    if (after != NONE) w->left[after] = i;
    if (before != NONE) pair_add(w, before);
    pair_add(w, i);
}

/* All occurrences of a pair.  They can only overlap in a run of one token, which must be merged from its left end, in
 * one go: walking back to it for every pair would be quadratic. */
static void merge_everywhere(const long_word *w, int32_t rank)
{
    const merge *m = &w->b->by_rank[rank];
    while (w->first[rank] != NONE) {
        int32_t i = w->first[rank];
        if (m->left == m->right) {
            while (w->left[i] != NONE && w->rank[w->left[i]] == rank) i = w->left[i];
        }
        for (; i != NONE && w->rank[i] == rank; i = w->right[i]) merge_at(w, i, m->id);
    }
}

static tmx_status reserve(const bpe *b, bpe_scratch *s, size_t n, tmx_error *err)
{
    if (s->first == NULL) {
        size_t n_words[4], n_all = 0;
        for (int k = 0; k < 4; k++) n_all += n_words[k] = (b->n_merges >> 6 * (k + 1)) + 1;
        s->levels[0] = mem_alloc(n_all, sizeof *s->levels[0]);
        s->first = s->levels[0] == NULL ? NULL : mem_alloc(b->n_merges, sizeof *s->first);
        if (s->first == NULL) return refuse(err, TMX_E_MEMORY, "tokenize: out of memory");
        for (int k = 1; k < 4; k++) s->levels[k] = s->levels[k - 1] + n_words[k - 1];
        for (uint32_t rank = 0; rank < b->n_merges; rank++) s->first[rank] = NONE;
    }
    if (n <= s->n_links) return TMX_OK;
    mem_free(s->links);
    s->n_links = 0;
    s->links = n > INT32_MAX ? NULL : mem_alloc(n, 6 * sizeof *s->links);
    if (s->links == NULL) return refuse(err, TMX_E_MEMORY, "tokenize: no memory for a word of %zu bytes", n);
    s->n_links = n;
    return TMX_OK;
}

static tmx_status merge_long(const bpe *b, bpe_scratch *s, const char *word, size_t n_bytes, id_sink *sink,
                             tmx_error *err)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) n += b->byte_ids[(unsigned char)word[i]] >= 0 ? 1 : FFFD_BYTES;
    TRY(reserve(b, s, n, err));
    const long_word w = {
        .b = b, .ids = s->links, .left = s->links + n, .right = s->links + 2 * n, .rank = s->links + 3 * n,
        .newer = s->links + 4 * n, .older = s->links + 5 * n, .first = s->first, .levels = s->levels,
    };
    spread_bytes(b, word, n_bytes, w.ids);
    const int32_t end = (int32_t)n;
    for (int32_t i = 0; i < end; i++) {
        w.left[i] = i - 1;
        w.right[i] = i + 1 < end ? i + 1 : NONE;
    }
    for (int32_t i = end - 1; i >= 0; i--) pair_add(&w, i);
    for (int32_t rank; (rank = lowest_rank(&w)) != NONE;) merge_everywhere(&w, rank);
    for (int32_t i = 0; i != NONE; i = w.right[i]) sink_push(sink, w.ids[i]);
    return TMX_OK;
}

static tmx_status merge_word(const bpe *b, bpe_scratch *scratch, const char *word, size_t n_bytes, id_sink *sink,
                             tmx_error *err)
{
    if (n_bytes > SHORT_BYTES) return merge_long(b, scratch, word, n_bytes, sink, err);
    merge_short(b, word, n_bytes, sink);
    return TMX_OK;
}

tmx_status bpe_encode(const bpe *b, bpe_scratch *scratch, const char *word, size_t n_bytes, id_sink *sink,
                      tmx_error *err)
{
    const int32_t id = word_index_find(&b->words, word, n_bytes);
    if (id >= 0 && b->is_whole[id]) {
        sink_push(sink, id);
        return TMX_OK;
    }
    return merge_word(b, scratch, word, n_bytes, sink, err);
}

void bpe_scratch_free(bpe_scratch *scratch)
{
    mem_free(scratch->links);
    mem_free(scratch->first);
    mem_free(scratch->levels[0]);
    *scratch = (bpe_scratch){ 0 };
}
