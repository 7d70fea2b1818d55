#include "token/spm.h"

#include "base/mem.h"
#include "base/num.h"
#include "base/status.h"
#include "token/utf8.h"

#include <assert.h>
#include <string.h>

/* Which characters stand next to each other inside some token, as a set with false positives: where the answer is no,
 * no token reaches across, and the text can be cut.  Half a megabyte of bits, for some 100000 pairs in real files. */
enum { JOINT_BITS = 22 };

struct spm {
    const vocab_token *tokens;
    word_index words;
    uint64_t *joints;              /* [2^JOINT_BITS / 64] */
    int32_t byte_ids[256];         /* -1 = none */
    int32_t unknown_id;            /* -1 = none; then all bytes have tokens */
};

size_t spm_plain_spaces(const char *text, size_t n_bytes, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        if (n_bytes - i >= 3 && memcmp(text + i, "\xe2\x96\x81", 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = text[i++];
        }
    }
    return n;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int spm_byte_of(const char *name, size_t n_name)
{
    if (n_name != 6 || memcmp(name, "<0x", 3) != 0 || name[5] != '>') return -1;
    const int high = hex_digit(name[3]), low = hex_digit(name[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

/* ---------------------------------------------------------------- creation */

static uint64_t joint_of(const char *left, size_t n_left, const char *right, size_t n_right)
{
    uint32_t a = 0, b = 0;
    memcpy(&a, left, n_left);
    memcpy(&b, right, n_right);
    return hash_stir(hash_stir((uint64_t)a << 32 | b)) >> (64 - JOINT_BITS);
}

static bool is_joint(const spm *s, const char *left, size_t n_left, const char *right, size_t n_right)
{
    const uint64_t bit = joint_of(left, n_left, right, n_right);
    return (s->joints[bit / 64] >> bit % 64 & 1) != 0;
}

/* Length of the character at text, 0 if it is no UTF-8. */
static size_t character_length(const char *text, size_t n_bytes)
{
    const int length = utf8_length((const unsigned char *)text, n_bytes);
    return length > 0 ? (size_t)length : 0;
}

static void add_joints(spm *s, const vocab_token *token)
{
    const size_t n_bytes = (size_t)token->n_bytes;
    size_t n_left = character_length(token->bytes, n_bytes);
    for (size_t at = 0; n_left > 0 && at + n_left < n_bytes;) {
        const char *left = token->bytes + at, *right = left + n_left;
        const size_t n_right = character_length(right, n_bytes - at - n_left);
        if (n_right > 0) {
            const uint64_t bit = joint_of(left, n_left, right, n_right);
            s->joints[bit / 64] |= (uint64_t)1 << bit % 64;
        }
        at += n_left;
        n_left = n_right;
    }
}

tmx_status spm_create(spm **merger, const vocab_token *tokens, int32_t n_tokens, int32_t unknown_id, tmx_error *err)
{
    spm *s = mem_alloc(1, sizeof *s);
    if (s == NULL) return refuse(err, TMX_E_MEMORY, "vocabulary: out of memory");
    s->tokens = tokens;
    s->unknown_id = unknown_id;
    s->joints = mem_alloc((size_t)1 << JOINT_BITS >> 6, sizeof *s->joints);
    tmx_status status = TMX_OK;
    if (s->joints == NULL) status = refuse(err, TMX_E_MEMORY, "vocabulary: out of memory");
    /* seeded by where it happens to lie: colliding tokens cannot be prepared */
    if (status == TMX_OK) status = word_index_create(&s->words, tokens, n_tokens, hash_stir((uint64_t)(uintptr_t)s), err);
    for (int i = 0; i < 256; i++) s->byte_ids[i] = -1;
    for (int32_t id = n_tokens - 1; status == TMX_OK && id >= 0; id--) {
        if (tokens[id].is_text) add_joints(s, &tokens[id]);
        if (tokens[id].type == TOKEN_BYTE) s->byte_ids[(unsigned char)tokens[id].bytes[0]] = id;
    }
    for (int i = 0; status == TMX_OK && i < 256; i++) {
        if (s->byte_ids[i] >= 0 || unknown_id >= 0) continue;
        status = refuse(err, TMX_E_UNSUPPORTED, "tokenizer.ggml.tokens: no token <0x%02X>, and no unknown token in its place",
                        (unsigned)i);
    }
    if (status != TMX_OK) {
        spm_free(s);
        return status;
    }
    *merger = s;
    return TMX_OK;
}

void spm_free(spm *s)
{
    if (s == NULL) return;
    word_index_free(&s->words);
    mem_free(s->joints);
    mem_free(s);
}

/* ---------------------------------------------------------------- pairs, the best first */

static bool is_before(spm_pair a, spm_pair b) { return a.order != b.order ? a.order < b.order : a.at < b.at; }

static tmx_status heap_push(spm_scratch *h, spm_pair pair, tmx_error *err)
{
    if (h->n_heap == h->heap_cap) {
        const size_t cap = h->heap_cap == 0 ? 1024 : h->heap_cap + h->heap_cap / 2;
        spm_pair *heap = mem_alloc(cap, sizeof *heap);
        if (heap == NULL) return refuse(err, TMX_E_MEMORY, "tokenize: no memory for %zu pairs", cap);
        if (h->n_heap > 0) memcpy(heap, h->heap, h->n_heap * sizeof *heap);
        mem_free(h->heap);
        h->heap = heap;
        h->heap_cap = cap;
    }
    size_t i = h->n_heap++;
    for (; i > 0 && is_before(pair, h->heap[(i - 1) / 2]); i = (i - 1) / 2) h->heap[i] = h->heap[(i - 1) / 2];
    h->heap[i] = pair;
    return TMX_OK;
}

static spm_pair heap_pop(spm_scratch *h)
{
    const spm_pair best = h->heap[0], last = h->heap[--h->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < h->n_heap; i = child) {
        if (child + 1 < h->n_heap && is_before(h->heap[child + 1], h->heap[child])) child++;
        if (!is_before(h->heap[child], last)) break;
        h->heap[i] = h->heap[child];
    }
    h->heap[i] = last;
    return best;
}

/* Floats ordered as unsigned integers, the highest first; both zeros are one score. */
static uint32_t order_of(float score)
{
    const uint32_t bits = f32_to_bits(score + 0.0f);
    return (bits >> 31) != 0 ? bits : 0x7fffffffu - bits;
}

/* ---------------------------------------------------------------- one stretch of text */

/* Symbols are ranges of the text, known by where they begin. */
typedef struct stretch {
    const spm *s;
    spm_scratch *scratch;
    const char *text;
    int32_t n_bytes;
    int32_t *length;               /* of the symbol that begins here; 0 = none does */
    int32_t *before;               /* where its left neighbour begins; -1 = none */
    int32_t *id;                   /* -1 = a character without a token */
} stretch;

static tmx_status add_pair(const stretch *w, int32_t left, int32_t right, tmx_error *err)
{
    if (left < 0 || right == w->n_bytes) return TMX_OK;
    const int32_t n_bytes = w->length[left] + w->length[right];
    const int32_t id = word_index_find(&w->s->words, w->text + left, (size_t)n_bytes);
    if (id < 0) return TMX_OK;
    return heap_push(w->scratch, (spm_pair){ .order = order_of(w->s->tokens[id].score), .at = left, .id = id }, err);
}

/* A pair is out of date when one of its symbols has been joined with another since: the two then are not as long as
 * their token any more. */
static tmx_status join(const stretch *w, spm_pair pair, tmx_error *err)
{
    const int32_t left = pair.at, right = left + w->length[left];
    if (w->length[left] == 0 || right == w->n_bytes) return TMX_OK;
    if (w->length[left] + w->length[right] != w->s->tokens[pair.id].n_bytes) return TMX_OK;
    w->length[left] += w->length[right];
    w->length[right] = 0;
    w->id[left] = pair.id;
    const int32_t after = left + w->length[left];
    if (after < w->n_bytes) w->before[after] = left;
    TRY(add_pair(w, w->before[left], left, err));
    return add_pair(w, left, after, err);
}

static void put_bytes(const spm *s, const char *bytes, size_t n_bytes, id_sink *sink, bool *was_unknown)
{
    bool is_unknown = false;
    for (size_t i = 0; i < n_bytes; i++) is_unknown |= s->byte_ids[(unsigned char)bytes[i]] < 0;
    if (is_unknown && !*was_unknown) sink_push(sink, s->unknown_id);
    for (size_t i = 0; i < n_bytes && !is_unknown; i++) sink_push(sink, s->byte_ids[(unsigned char)bytes[i]]);
    *was_unknown = is_unknown;
}

static tmx_status reserve(spm_scratch *scratch, size_t n, tmx_error *err)
{
    if (n <= scratch->n_links) return TMX_OK;
    if (n < 4096) n = 4096;
    mem_free(scratch->links);
    scratch->n_links = 0;
    scratch->links = mem_alloc(n, 3 * sizeof *scratch->links);
    if (scratch->links == NULL) return refuse(err, TMX_E_MEMORY, "tokenize: no memory for %zu bytes of text", n);
    scratch->n_links = n;
    return TMX_OK;
}

/* UTF-8 only. */
static tmx_status encode_stretch(const spm *s, spm_scratch *scratch, const char *text, size_t n_bytes, id_sink *sink,
                                 bool *was_unknown, tmx_error *err)
{
    TRY(reserve(scratch, n_bytes, err));
    const stretch w = {
        .s = s, .scratch = scratch, .text = text, .n_bytes = (int32_t)n_bytes, .length = scratch->links,
        .before = scratch->links + scratch->n_links, .id = scratch->links + 2 * scratch->n_links,
    };
    memset(w.length, 0, n_bytes * sizeof *w.length);
    scratch->n_heap = 0;
    for (int32_t at = 0, before = -1; at < w.n_bytes; before = at, at += w.length[at]) {
        w.length[at] = (int32_t)character_length(text + at, n_bytes - (size_t)at);
        w.before[at] = before;
        w.id[at] = word_index_find(&s->words, text + at, (size_t)w.length[at]);
        TRY(add_pair(&w, before, at, err));
    }
    while (scratch->n_heap > 0) TRY(join(&w, heap_pop(scratch), err));
    for (int32_t at = 0; at < w.n_bytes; at += w.length[at]) {
        if (w.id[at] < 0) {
            put_bytes(s, text + at, (size_t)w.length[at], sink, was_unknown);
        } else {
            sink_push(sink, w.id[at]);
            *was_unknown = false;
        }
    }
    return TMX_OK;
}

tmx_status spm_encode(const spm *s, spm_scratch *scratch, const char *text, size_t n_bytes, id_sink *sink,
                      tmx_error *err)
{
    assert(n_bytes <= INT32_MAX);
    bool was_unknown = false;
    size_t begin = 0, n_left = 0;              /* of the stretch; of the character that ends at `at` */
    for (size_t at = 0; at < n_bytes;) {
        const size_t n = character_length(text + at, n_bytes - at);
        if (at > begin && (n == 0 || !is_joint(s, text + at - n_left, n_left, text + at, n))) {
            TRY(encode_stretch(s, scratch, text + begin, at - begin, sink, &was_unknown, err));
            begin = at;
        }
        if (n == 0) {
            put_bytes(s, text + at, 1, sink, &was_unknown);
            begin = ++at;
        } else {
            at += n;
        }
        n_left = n;
    }
    return begin == n_bytes ? TMX_OK : encode_stretch(s, scratch, text + begin, n_bytes - begin, sink, &was_unknown, err);
}

void spm_scratch_free(spm_scratch *scratch)
{
    mem_free(scratch->links);
    mem_free(scratch->heap);
    *scratch = (spm_scratch){ 0 };
}
