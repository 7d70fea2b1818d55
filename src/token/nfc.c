/* nfc.c - characters come one by one, taken apart; a base and the marks behind it wait until the next base comes.  Then the
 * marks are put in order of their combining class, those that compose with the base are joined to it, and what is left goes
 * out.  Two bases compose only when nothing is left between them. */
#include "token/nfc.h"

#include "base/mem.h"
#include "base/status.h"
#include "token/nfc_table.h"
#include "token/utf8.h"

#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Hangul syllables: leading consonant, vowel, perhaps a trailing consonant. */
enum { S_BASE = 0xac00, L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11a7, N_L = 19, N_V = 21, N_T = 28, N_S = N_L * N_V * N_T };
enum { FIRST_CHANGED = 0x300, FIRST_CHANGED_BYTE = 0xcc, N_CLASSES = 256, FEW_MARKS = 24 };

typedef struct nfc_mark {
    uint32_t code, combining_class;
} nfc_mark;

/* ---------------------------------------------------------------- tables */

static uint32_t class_of(uint32_t code)
{
    size_t begin = 0, end = COUNT(class_ranges);
    while (begin < end) {
        const size_t middle = (begin + end) / 2;
        if (code < class_ranges[middle].first) end = middle;
        else if (code - class_ranges[middle].first < class_ranges[middle].n) return class_ranges[middle].combining_class;
        else begin = middle + 1;
    }
    return 0;
}

/* The place of code in the table, -1 if it stands for itself. */
static int find_parts(uint32_t code)
{
    size_t begin = 0, end = COUNT(decompositions);
    while (begin < end) {
        const size_t middle = (begin + end) / 2;
        if (decompositions[middle].code == code) return (int)middle;
        if (decompositions[middle].code < code) begin = middle + 1;
        else end = middle;
    }
    return -1;
}

/* 0: they do not compose. */
static uint32_t compose(uint32_t first, uint32_t second)
{
    if (second < FIRST_CHANGED) return 0;
    if (first - L_BASE < N_L && second - V_BASE < N_V) return S_BASE + ((first - L_BASE) * N_V + second - V_BASE) * N_T;
    if (first - S_BASE < N_S && (first - S_BASE) % N_T == 0 && second - T_BASE - 1 < N_T - 1) return first + second - T_BASE;
    size_t begin = 0, end = COUNT(compositions);
    while (begin < end) {
        const size_t middle = (begin + end) / 2;
        const uint32_t a = compositions[middle].first, b = compositions[middle].second;
        if (a == first && b == second) return compositions[middle].code;
        if (a < first || (a == first && b < second)) begin = middle + 1;
        else end = middle;
    }
    return 0;
}

/* ---------------------------------------------------------------- output */

static tmx_status reserve(nfc_text *t, size_t n_more, tmx_error *err)
{
    if (t->cap - t->n_bytes >= n_more) return TMX_OK;
    const size_t cap = t->n_bytes + n_more + t->cap / 2 + 64;
    char *bytes = mem_alloc(cap, 1);
    if (bytes == NULL) return refuse(err, TMX_E_MEMORY, "tokenize: no memory for %zu bytes of text", cap);
    if (t->n_bytes > 0) memcpy(bytes, t->bytes, t->n_bytes);
    mem_free(t->bytes);
    t->bytes = bytes;
    t->cap = cap;
    return TMX_OK;
}

static tmx_status put_bytes(nfc_text *t, const char *bytes, size_t n_bytes, tmx_error *err)
{
    if (n_bytes == 0) return TMX_OK;
    TRY(reserve(t, n_bytes, err));
    memcpy(t->bytes + t->n_bytes, bytes, n_bytes);
    t->n_bytes += n_bytes;
    return TMX_OK;
}

static tmx_status put_code(nfc_text *t, uint32_t code, tmx_error *err)
{
    char c[4];
    if (code < 0x80) {
        c[0] = (char)code;
        return put_bytes(t, c, 1, err);
    }
    const int n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, code >>= 6) c[i] = (char)(0x80 | (code & 0x3f));
    c[0] = (char)((0xf0 << (4 - n)) | (int)code);
    return put_bytes(t, c, (size_t)n, err);
}

/* ---------------------------------------------------------------- one base and its marks */

static tmx_status add_mark(nfc_text *t, nfc_mark mark, tmx_error *err)
{
    if (t->n_marks == t->marks_cap) {
        const size_t cap = 2 * t->marks_cap + 32;
        nfc_mark *marks = mem_alloc(cap, 2 * sizeof *marks);
        if (marks == NULL) return refuse(err, TMX_E_MEMORY, "tokenize: no memory for %zu combining marks", cap);
        if (t->n_marks > 0) memcpy(marks, t->marks, t->n_marks * sizeof *marks);
        mem_free(t->marks);
        t->marks = marks;
        t->marks_cap = cap;
    }
    t->marks[t->n_marks++] = mark;
    return TMX_OK;
}

/* By class, equal ones as they came: insertion for a few, a bucket for each class where somebody piled them up. */
static void sort_marks(nfc_text *t)
{
    nfc_mark *marks = t->marks;
    const size_t n = t->n_marks;
    if (n <= FEW_MARKS) {
        for (size_t i = 1; i < n; i++) {
            const nfc_mark mark = marks[i];
            size_t at = i;
            for (; at > 0 && marks[at - 1].combining_class > mark.combining_class; at--) marks[at] = marks[at - 1];
            marks[at] = mark;
        }
        return;
    }
    size_t starts[N_CLASSES + 1] = { 0 };
    nfc_mark *sorted = marks + t->marks_cap;
    for (size_t i = 0; i < n; i++) starts[marks[i].combining_class + 1]++;
    for (int k = 0; k < N_CLASSES; k++) starts[k + 1] += starts[k];
    for (size_t i = 0; i < n; i++) sorted[starts[marks[i].combining_class]++] = marks[i];
    memcpy(marks, sorted, n * sizeof *marks);
}

/* Joins to the base what composes with it.  A mark is cut off from the base by one left before it of its own class. */
static void compose_marks(nfc_text *t)
{
    sort_marks(t);
    size_t n_left = 0;
    for (size_t i = 0; i < t->n_marks && t->has_base; i++) {
        const nfc_mark mark = t->marks[i];
        const bool is_cut_off = n_left > 0 && t->marks[n_left - 1].combining_class == mark.combining_class;
        const uint32_t composed = is_cut_off ? 0 : compose(t->base, mark.code);
        if (composed != 0) t->base = composed;
        else t->marks[n_left++] = mark;
    }
    if (t->has_base) t->n_marks = n_left;
}

static tmx_status flush(nfc_text *t, tmx_error *err)
{
    if (t->has_base) TRY(put_code(t, t->base, err));
    for (size_t i = 0; i < t->n_marks; i++) TRY(put_code(t, t->marks[i].code, err));
    t->n_marks = 0;
    t->has_base = false;
    return TMX_OK;
}

/* One that stands for itself. */
static tmx_status add_code(nfc_text *t, uint32_t code, tmx_error *err)
{
    const uint32_t combining_class = code < FIRST_CHANGED ? 0 : class_of(code);
    if (combining_class != 0) return add_mark(t, (nfc_mark){ code, combining_class }, err);
    compose_marks(t);
    const uint32_t composed = t->has_base && t->n_marks == 0 ? compose(t->base, code) : 0;
    if (composed != 0) {
        t->base = composed;
        return TMX_OK;
    }
    TRY(flush(t, err));
    t->base = code;
    t->has_base = true;
    return TMX_OK;
}

/* Takes a character apart: what is first in it may be taken apart further, what is second never. */
static tmx_status add_character(nfc_text *t, uint32_t code, tmx_error *err)
{
    enum { DEPTH = 4 };
    uint32_t seconds[DEPTH];
    int n = 0;
    if (code - S_BASE < N_S) {
        const uint32_t s = code - S_BASE;
        TRY(add_code(t, L_BASE + s / (N_V * N_T), err));
        TRY(add_code(t, V_BASE + s % (N_V * N_T) / N_T, err));
        return s % N_T == 0 ? TMX_OK : add_code(t, T_BASE + s % N_T, err);
    }
    for (int at; code >= 0xc0 && n < DEPTH && (at = find_parts(code)) >= 0; code = decompositions[at].first) {
        if (decompositions[at].second != 0) seconds[n++] = decompositions[at].second;
    }
    TRY(add_code(t, code, err));
    while (n > 0) TRY(add_code(t, seconds[--n], err));
    return TMX_OK;
}

/* ---------------------------------------------------------------- texts */

bool nfc_is_plain(const char *text, size_t n_bytes)
{
    unsigned char highest = 0;
    for (size_t i = 0; i < n_bytes; i++) highest = (unsigned char)text[i] > highest ? (unsigned char)text[i] : highest;
    return highest < FIRST_CHANGED_BYTE;
}

static uint32_t code_at(const char *text, int length)
{
    const unsigned char *c = (const unsigned char *)text;
    if (length == 1) return c[0];
    uint32_t code = c[0] & (0xffu >> (length + 1));
    for (int i = 1; i < length; i++) code = code << 6 | (c[i] & 0x3f);
    return code;
}

tmx_status nfc_normalize(nfc_text *t, const char *text, size_t n_bytes, tmx_error *err)
{
    t->n_bytes = t->n_marks = 0;
    t->has_base = false;
    for (size_t at = 0; at < n_bytes;) {
        const int length = utf8_length((const unsigned char *)text + at, n_bytes - at);
        if (length > 0) {
            TRY(add_character(t, code_at(text + at, length), err));
            at += (size_t)length;
        } else {
            compose_marks(t);
            TRY(flush(t, err));
            TRY(put_bytes(t, text + at++, 1, err));
        }
    }
    compose_marks(t);
    return flush(t, err);
}

void nfc_free(nfc_text *t)
{
    mem_free(t->bytes);
    mem_free(t->marks);
    *t = (nfc_text){ 0 };
}
