/* rooms: token gguf base; wrap: malloc calloc realloc free */
#include "alloc_watch.h"
#include "token/bpe.h"
#include "token/pretokenize.h"
#include "token/token.h"
#include "token/utf8.h"
#include "tiny_vocab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

#define COUNT(array) (sizeof (array) / sizeof (array)[0])

static uint64_t rng_state = 20250721;

static uint32_t random_below(uint32_t n)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng_state >> 33) % n);
}

typedef struct opened {
    gw_bytes bytes;
    tmx_file *file;
    vocab *v;
    tmx_error err;
    tmx_status status;
} opened;

static opened open_vocab(tiny_vocab *t)
{
    opened o = { .bytes = tv_finish(t) };
    assert_int_equal(gguf_open_memory(&o.file, o.bytes.data, o.bytes.n_bytes, "memory", &o.err), TMX_OK);
    o.status = vocab_create(&o.v, o.file, &o.err);
    if (o.status != TMX_OK) assert_null(o.v);
    return o;
}

static void close_vocab(opened *o)
{
    vocab_free(o->v);
    tmx_file_close(o->file);
    gw_free(&o->bytes);
}

static opened open_rich(const char *pre)
{
    tiny_vocab t = tv_begin_rich(pre);
    opened o = open_vocab(&t);
    assert_int_equal(o.status, TMX_OK);
    return o;
}

static void refuses(tiny_vocab *t, tmx_status status, const char *text)
{
    opened o = open_vocab(t);
    if (o.status != status || strstr(o.err.text, text) == NULL) fail_msg("'%s', expected '%s'", o.err.text, text);
    close_vocab(&o);
}

static const char *const rules[] = {
    "smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "default", "deepseek-llm", "deepseek-v3",
};

enum { CAP = 4096 };

static size_t tokenize(const vocab *v, const char *text, size_t n, uint32_t flags, int32_t *ids)
{
    size_t n_ids = 0;
    assert_int_equal(vocab_tokenize(v, text, n, flags, ids, CAP, &n_ids, NULL), TMX_OK);
    assert_true(n_ids <= CAP);
    return n_ids;
}

/* Token names joined by a bar. */
static void expect_tokens(const vocab *v, const char *text, uint32_t flags, const char *expected)
{
    int32_t ids[CAP];
    char found[CAP] = "";
    const size_t n = tokenize(v, text, strlen(text), flags, ids);
    for (size_t i = 0; i < n; i++) {
        if (i > 0) strcat(found, "|");
        strcat(found, vocab_token_name(v, ids[i]));
    }
    assert_string_equal(found, expected);
}

/* ---------------------------------------------------------------- merging */

enum { MAX_TINY = 64, WORD_CAP = 400 };

typedef struct oracle {
    char names[MAX_TINY][32];      /* letters, then what merges made */
    int32_t ids[MAX_TINY];
    int n_names, left[MAX_TINY], right[MAX_TINY], made[MAX_TINY], n_merges;
} oracle;

/* The definition: the lowest rank present, all its occurrences from the left, again. */
static size_t oracle_encode(const oracle *o, const char *word, size_t n, int32_t *ids)
{
    int parts[WORD_CAP];
    for (size_t i = 0; i < n; i++) parts[i] = word[i] - 'a';
    for (int rank = 0; rank < o->n_merges;) {
        size_t w = 0;
        bool has_merged = false;
        for (size_t i = 0; i < n; i++) {
            if (i + 1 < n && parts[i] == o->left[rank] && parts[i + 1] == o->right[rank]) {
                parts[w++] = o->made[rank];
                has_merged = true;
                i++;
            } else {
                parts[w++] = parts[i];
            }
        }
        n = w;
        rank = has_merged ? 0 : rank + 1;
    }
    for (size_t i = 0; i < n; i++) ids[i] = o->ids[parts[i]];
    return n;
}

static int name_index(const oracle *o, const char *name)
{
    for (int i = 0; i < o->n_names; i++) {
        if (strcmp(o->names[i], name) == 0) return i;
    }
    return -1;
}

static void make_oracle(oracle *o, tiny_vocab *t, int n_letters, int n_merges)
{
    *o = (oracle){ .n_names = n_letters };
    for (int i = 0; i < n_letters; i++) {
        o->names[i][0] = (char)('a' + i);
        o->ids[i] = 'a' + i;
    }
    for (int tries = 0; tries < 1000 && o->n_merges < n_merges; tries++) {
        const int left = (int)random_below((uint32_t)o->n_names), right = (int)random_below((uint32_t)o->n_names);
        char name[64];
        snprintf(name, sizeof name, "%s%s", o->names[left], o->names[right]);
        bool is_known = strlen(name) > 20;
        for (int i = 0; i < o->n_merges; i++) is_known = is_known || (o->left[i] == left && o->right[i] == right);
        if (is_known) continue;
        int made = name_index(o, name);
        if (made < 0) {
            made = o->n_names++;
            strcpy(o->names[made], name);
            o->ids[made] = (int32_t)t->n_tokens;
            tv_token(t, name, 1);
        }
        const int at = o->n_merges++;
        o->left[at] = left;
        o->right[at] = right;
        o->made[at] = made;
    }
    for (int i = o->n_merges - 1; i > 0 && random_below(2) == 0; i--) {    /* merges that come before what they need */
        const int j = (int)random_below((uint32_t)i + 1);
        const int left = o->left[i], right = o->right[i], made = o->made[i];
        o->left[i] = o->left[j], o->right[i] = o->right[j], o->made[i] = o->made[j];
        o->left[j] = left, o->right[j] = right, o->made[j] = made;
    }
    for (int i = 0; i < o->n_merges; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s %s", o->names[o->left[i]], o->names[o->right[i]]);
        tv_merge(t, text);
    }
}

static void merging_equals_the_definition(void **state)
{
    (void)state;
    for (int round = 0; round < 150; round++) {
        oracle o;
        tiny_vocab t = tv_begin("gpt-2");
        make_oracle(&o, &t, 1 + round % 4, round % 30);
        opened v = open_vocab(&t);
        assert_int_equal(v.status, TMX_OK);
        for (int k = 0; k < 60; k++) {
            char word[WORD_CAP];
            int32_t ids[CAP], expected[WORD_CAP];
            const size_t n = k < 8 ? (size_t)k : k < 16 ? 55u + (size_t)k : 1 + random_below(WORD_CAP - 1);
            char letter = 'a';
            for (size_t i = 0; i < n; i++) {
                if (k % 2 == 0 || random_below(8) == 0) letter = (char)('a' + random_below(1 + (uint32_t)round % 4));
                word[i] = letter;
            }
            const size_t n_expected = oracle_encode(&o, word, n, expected);
            const size_t n_ids = tokenize(v.v, word, n, TMX_TOKEN_PLAIN, ids);
            if (n_ids != n_expected || memcmp(ids, expected, n_ids * sizeof *ids) != 0) {
                fail_msg("round %d, word of %zu letters '%.*s': not what the definition gives", round, n, (int)n, word);
            }
        }
        close_vocab(&v);
    }
}

static void equal_merges_and_tokens_use_the_first(void **state)
{
    (void)state;
    tiny_vocab t = tv_begin("gpt-2");
    tv_learn(&t, "a", "b");
    tv_learn(&t, "b", "c");
    tv_learn(&t, "a", "b");        /* again, with a second token "ab" */
    opened o = open_vocab(&t);
    assert_int_equal(o.status, TMX_OK);
    int32_t ids[CAP];
    assert_int_equal(tokenize(o.v, "abc", 3, TMX_TOKEN_PLAIN, ids), 2);
    assert_int_equal(ids[0], 256);
    assert_int_equal(ids[1], 'c');
    close_vocab(&o);
}

static void ignoring_merges_takes_whole_words(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        tiny_vocab t = tv_begin(rules[i]);
        tv_learn(&t, "b", "c");
        tv_token(&t, "abc", 1);    /* no merge leads here */
        opened o = open_vocab(&t);
        assert_int_equal(o.status, TMX_OK);
        expect_tokens(o.v, "abc", TMX_TOKEN_PLAIN, i == 2 ? "abc" : "a|bc");
        expect_tokens(o.v, "abcc", TMX_TOKEN_PLAIN, "a|bc|c");
        close_vocab(&o);
    }
}

/* ---------------------------------------------------------------- words */

static void patterns_cut_as_published(void **state)
{
    (void)state;
    static const struct { const char *text, *words[3]; } cases[] = {
        { "Hi there", { "Hi| there", "Hi| there", "Hi| there" } },
        { "x 12 345", { "x| |1|2| |3|4|5", "x| 12| 345", "x| |12| |345" } },
        { "1234", { "1|2|3|4", "1234", "123|4" } },
        { "a  5 b", { "a|  |5| b", "a| | 5| b", "a| | |5| b" } },
        { "it's IT'S", { "it|'s| IT|'|S", "it|'s| IT|'|S", "it|'s| IT|'S" } },
        { "a \n\n b  ", { "a| \n\n| b|  ", "a| \n\n| b|  ", "a| \n\n| b|  " } },
        { "a\n\nb", { "a|\n|\n|b", "a|\n|\n|b", "a|\n\n|b" } },
        { "(x) {y}!\n", { "(|x|)| {|y|}!|\n", "(|x|)| {|y|}!|\n", "(x|)| {|y|}!\n" } },
        { "a\xe1\xa0\x8e z", { "a|\xe1\xa0\x8e| z", "a|\xe1\xa0\x8e| z", "a|\xe1\xa0\x8e| z" } },  /* U+180E */
        { "a\xff\xfe z\xe2\x82", { "a|\xff\xfe| z|\xe2\x82", "a|\xff\xfe| z|\xe2\x82", "a|\xff\xfe| z|\xe2\x82" } },
        { "  \xff", { "  |\xff", "  |\xff", "  |\xff" } },
    };
    for (int r = 0; r < 3; r++) {
        const word_rule *rule = word_rule_find(rules[r], strlen(rules[r]));
        assert_non_null(rule);
        pretokenizer *words = NULL;
        assert_int_equal(pretokenizer_create(&words, rule, true, NULL), TMX_OK);
        word_cursor c = { 0 };
        assert_int_equal(word_cursor_open(&c, words, NULL), TMX_OK);
        for (size_t i = 0; i < COUNT(cases); i++) {
            char found[256] = "";
            const char *word;
            word_cursor_set(&c, cases[i].text, strlen(cases[i].text));
            for (size_t n; word_cursor_next(&c, &word, &n, NULL) == TMX_OK && word != NULL;) {
                if (found[0] != '\0') strcat(found, "|");
                strncat(found, word, n);
            }
            assert_string_equal(found, cases[i].words[r]);
        }
        word_cursor_close(&c);
        pretokenizer_free(words);
    }
    assert_null(word_rule_find("gpt-2x", 6));
    assert_null(word_rule_find("", 0));
}

static size_t random_text(char *text, size_t cap)
{
    static const char *const pieces[] = {
        "a", "the", " ", "  ", "\n", "\r\n", "\t", "1", "123", "'s", "'LL", "!", "...", "<|im_end|>", "<|", "\xc3\xa9",
        "\xcc\x81", "\xe4\xbd\xa0", "\xf0\x9f\x98\x80", "\xe2\x80\x8d", "\xc2\xa0", "\xe3\x80\x80", "\xff", "\xc0\x80",
        "\xed\xa0\x80", "\xf0\x9f", "\x80", "\xf4\x90\x80\x80", "\xe2\x82",
    };
    size_t n = 0;
    while (n + 16 < cap && random_below(40) != 0) {
        const char *piece = pieces[random_below((uint32_t)COUNT(pieces))];
        const size_t n_piece = random_below(20) == 0 ? 1 : strlen(piece);
        if (random_below(10) == 0) text[n] = (char)random_below(256);
        else memcpy(text + n, piece, n_piece);
        n += random_below(10) == 0 ? 1 : n_piece;
    }
    return n;
}

static void words_cover_the_text_with_and_without_jit(void **state)
{
    (void)state;
    for (int r = 0; r < 3; r++) {
        const word_rule *rule = word_rule_find(rules[r], strlen(rules[r]));
        pretokenizer *words[2] = { NULL, NULL };
        word_cursor cursors[2] = { { 0 }, { 0 } };
        for (int k = 0; k < 2; k++) {
            assert_int_equal(pretokenizer_create(&words[k], rule, k == 0, NULL), TMX_OK);
            assert_int_equal(word_cursor_open(&cursors[k], words[k], NULL), TMX_OK);
        }
        for (int round = 0; round < 500; round++) {
            char text[600] = { 0 };
            const size_t n = random_text(text, sizeof text);
            const char *at[2];
            size_t n_at[2] = { 0, 0 }, n_seen = 0;
            for (int k = 0; k < 2; k++) word_cursor_set(&cursors[k], text, n);
            for (;;) {
                for (int k = 0; k < 2; k++) {
                    assert_int_equal(word_cursor_next(&cursors[k], &at[k], &n_at[k], NULL), TMX_OK);
                }
                assert_ptr_equal(at[0], at[1]);
                if (at[0] == NULL) break;
                assert_int_equal(n_at[0], n_at[1]);
                assert_true(n_at[0] > 0);
                assert_ptr_equal(at[0], text + n_seen);
                n_seen += n_at[0];
            }
            assert_int_equal(n_seen, n);
        }
        for (int k = 0; k < 2; k++) {
            word_cursor_close(&cursors[k]);
            pretokenizer_free(words[k]);
        }
    }
}

/* ---------------------------------------------------------------- any bytes */

enum { PREFIX = 1, WHOLE = 2 };

/* Marks every code point's encoding and its beginnings in a table of the first three bytes, then asks about all. */
static void utf8_is_what_code_points_encode_to(void **state)
{
    (void)state;
    unsigned char *marks[3] = { calloc(1 << 8, 1), calloc(1 << 16, 1), calloc(1 << 24, 1) };
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xd800 && c < 0xe000) continue;
        const uint32_t tail[3] = { 0x80 | (c & 0x3f), 0x80 | (c >> 6 & 0x3f), 0x80 | (c >> 12 & 0x3f) };
        if (c < 0x80) {
            marks[0][c] = WHOLE;
        } else if (c < 0x800) {
            marks[0][0xc0 | c >> 6] = PREFIX;
            marks[1][(0xc0 | c >> 6) << 8 | tail[0]] = WHOLE;
        } else if (c < 0x10000) {
            const uint32_t two = (0xe0 | c >> 12) << 8 | tail[1];
            marks[0][two >> 8] = PREFIX;
            marks[1][two] = PREFIX;
            marks[2][two << 8 | tail[0]] = WHOLE;
        } else {
            const uint32_t two = (0xf0 | c >> 18) << 8 | tail[2];
            marks[0][two >> 8] = PREFIX;
            marks[1][two] = PREFIX;
            marks[2][two << 8 | tail[1]] = PREFIX;
        }
    }
    size_t n_wrong = 0;
    for (uint32_t three = 0; three < 1 << 24; three++) {
        unsigned char p[4] = { (unsigned char)(three >> 16), (unsigned char)(three >> 8), (unsigned char)three, 0x80 };
        int expected = UTF8_CUT;
        for (int n = 1; n <= 3 && expected == UTF8_CUT; n++) {
            const int mark = marks[n - 1][three >> 8 * (3 - n)];
            expected = mark == WHOLE ? n : mark == PREFIX ? UTF8_CUT : UTF8_INVALID;
            n_wrong += utf8_length(p, (size_t)n) != expected;
        }
        n_wrong += utf8_length(p, 4) != (expected == UTF8_CUT ? 4 : expected);
        p[3] = 0x7f;
        n_wrong += utf8_length(p, 4) != (expected == UTF8_CUT ? UTF8_INVALID : expected);
    }
    assert_int_equal(n_wrong, 0);
    assert_int_equal(utf8_length(NULL, 0), UTF8_CUT);
    for (int i = 0; i < 3; i++) free(marks[i]);
}

static void decoding_gives_the_bytes_back(void **state)
{
    (void)state;
    for (int r = 0; r < 3; r++) {
        opened o = open_rich(rules[r]);
        for (int round = 0; round < 3000; round++) {
            char text[600] = { 0 }, back[600];
            size_t n = 0, n_back = 0;
            if (round % 2 == 0) n = random_text(text, sizeof text);
            else for (n = 0; n < (size_t)round % 300; n++) text[n] = (char)random_below(256);
            int32_t ids[CAP];
            const size_t n_ids = tokenize(o.v, text, n, TMX_TOKEN_PLAIN, ids);
            for (size_t i = 0; i < n_ids; i++) {
                size_t n_bytes;
                const char *bytes = vocab_token_bytes(o.v, ids[i], &n_bytes);
                assert_true(n_back + n_bytes <= n);
                memcpy(back + n_back, bytes, n_bytes);
                n_back += n_bytes;
            }
            assert_int_equal(n_back, n);
            assert_memory_equal(back, text, n);
        }
        close_vocab(&o);
    }
}

static void missing_bytes_become_fffd(void **state)
{
    (void)state;
    static const char missing[] = { '\x04', '\xc0', '\xf1', '\xff' };
    tiny_vocab t = tv_begin_without("gpt-2", missing, sizeof missing);
    opened o = open_vocab(&t);
    assert_int_equal(o.status, TMX_OK);
    static char text[200];
    memset(text, '\xff', sizeof text);
    memcpy(text, "a\x04" "b\xf1\x80\x80\x80", 7);
    int32_t ids[CAP];
    for (size_t n_text = 8; n_text <= sizeof text; n_text += 192) {        /* a short and a long word at the end */
        const size_t n = tokenize(o.v, text, n_text, TMX_TOKEN_PLAIN, ids);
        char decoded[700];
        size_t n_decoded = 0;
        for (size_t i = 0; i < n; i++) {
            size_t n_bytes;
            const char *bytes = vocab_token_bytes(o.v, ids[i], &n_bytes);
            memcpy(decoded + n_decoded, bytes, n_bytes);
            n_decoded += n_bytes;
        }
        assert_int_equal(n_decoded, 11 + 3 * (n_text - 7));
        assert_memory_equal(decoded, "a\xef\xbf\xbd" "b\xef\xbf\xbd\x80\x80\x80\xef\xbf\xbd", 14);
    }
    close_vocab(&o);
    t = tv_begin_without("gpt-2", "\x04\xbd", 2);
    refuses(&t, TMX_E_UNSUPPORTED, "tokenizer.ggml.tokens: no token for the byte 0xbd, nor for U+FFFD in its place");
}

static void detokenizer_never_ends_inside_a_character(void **state)
{
    (void)state;
    opened o = open_rich("gpt-2");
    for (int round = 0; round < 3000; round++) {
        char text[600] = { 0 }, out[4000] = "";
        const size_t n = random_text(text, sizeof text);
        bool is_valid = true;
        for (size_t i = 0; i < n && is_valid;) {
            const int length = utf8_length((unsigned char *)text + i, n - i);
            is_valid = length > 0;
            i += (size_t)length;
        }
        int32_t ids[CAP];
        size_t n_ids = tokenize(o.v, text, n, TMX_TOKEN_PLAIN, ids), n_out = 0;
        ids[n_ids++] = -1;
        tmx_detokenizer d = { 0 };
        for (size_t i = 0; i < n_ids; i++) {
            size_t n_bytes, n_written;
            vocab_token_bytes(o.v, ids[i], &n_bytes);
            char *exact = malloc(2 * n_bytes + 8);
            assert_non_null(exact);
            assert_int_equal(vocab_detokenize(o.v, &d, ids[i], exact, 2 * n_bytes + 8, &n_written, NULL), TMX_OK);
            assert_int_equal(exact[n_written], 0);
            for (size_t k = 0; k < n_written;) {
                const int length = utf8_length((unsigned char *)exact + k, n_written - k);
                assert_true(length > 0);
                k += (size_t)length;
            }
            memcpy(out + n_out, exact, n_written);
            n_out += n_written;
            free(exact);
        }
        assert_int_equal(d.n_pending, 0);
        if (!is_valid) continue;
        assert_int_equal(n_out, n);
        assert_memory_equal(out, text, n);
    }
    close_vocab(&o);
}

static void detokenizer_waits_flushes_and_refuses(void **state)
{
    (void)state;
    opened o = open_rich("gpt-2");
    char out[16];
    size_t n = 99;
    tmx_detokenizer d = { 0 };
    static const unsigned char euro[] = { 0xe2, 0x82, 0xac };
    for (int i = 0; i < 3; i++) {
        assert_int_equal(vocab_detokenize(o.v, &d, euro[i], out, sizeof out, &n, NULL), TMX_OK);
        assert_int_equal(n, i == 2 ? 3 : 0);
    }
    assert_string_equal(out, "\xe2\x82\xac");
    vocab_detokenize(o.v, &d, 0xe2, out, sizeof out, &n, NULL);
    vocab_detokenize(o.v, &d, 'x', out, sizeof out, &n, NULL);
    assert_string_equal(out, "\xef\xbf\xbdx");
    vocab_detokenize(o.v, &d, 0xf0, out, sizeof out, &n, NULL);
    vocab_detokenize(o.v, &d, 0x9f, out, sizeof out, &n, NULL);
    assert_int_equal(vocab_detokenize(o.v, &d, -1, out, 3, &n, NULL), TMX_E_ARG);
    assert_int_equal(vocab_detokenize(o.v, &d, -1, out, 4, &n, NULL), TMX_OK);
    assert_string_equal(out, "\xef\xbf\xbd");
    assert_int_equal(vocab_detokenize(o.v, &d, -1, out, 1, &n, NULL), TMX_OK);
    assert_int_equal(n, 0);
    tmx_error err;
    assert_int_equal(vocab_detokenize(o.v, &d, -2, out, sizeof out, &n, &err), TMX_E_ARG);
    assert_int_equal(vocab_detokenize(o.v, &d, vocab_n_tokens(o.v), out, sizeof out, &n, &err), TMX_E_ARG);
    assert_string_equal(err.text, "detokenize: id 281 is out of range, the vocabulary has 281 tokens");
    assert_int_equal(vocab_detokenize(o.v, &d, 'a', out, 0, &n, &err), TMX_E_ARG);
    memset(&d, 0x55, sizeof d);
    assert_int_equal(vocab_detokenize(o.v, &d, 'a', out, sizeof out, &n, &err), TMX_E_ARG);
    close_vocab(&o);
}

static void a_run_of_bad_bytes_is_one_fffd(void **state)
{
    (void)state;
    static const struct { const char *bytes, *text; } cases[] = {
        { "\xff\xfe\x80x\xc0\xaf", "\xef\xbf\xbdx\xef\xbf\xbd" },
        { "\x82\xac\xffy\xe2", "\xe2\x82\xac\xef\xbf\xbdy" },     /* completes the character begun before */
        { "\xffz\xffz\xff", "\xef\xbf\xbdz\xef\xbf\xbdz\xef\xbf\xbd" },
    };
    tiny_vocab t = tv_begin("gpt-2");
    for (size_t i = 0; i < COUNT(cases); i++) tv_token(&t, cases[i].bytes, 4);
    opened o = open_vocab(&t);
    assert_int_equal(o.status, TMX_OK);
    for (int32_t i = 0; i < (int32_t)COUNT(cases); i++) {
        char out[32];
        size_t n;
        tmx_detokenizer d = { 0 };
        if (i == 1) assert_int_equal(vocab_detokenize(o.v, &d, 0xe2, out, sizeof out, &n, NULL), TMX_OK);
        assert_int_equal(vocab_detokenize(o.v, &d, 256 + i, out, 2 * strlen(cases[i].bytes) + 8, &n, NULL), TMX_OK);
        assert_string_equal(out, cases[i].text);
        assert_int_equal(d.n_pending, i == 1);
    }
    close_vocab(&o);
}

/* ---------------------------------------------------------------- special tokens */

static void control_tokens_only_when_asked(void **state)
{
    (void)state;
    opened o = open_rich("gpt-2");
    expect_tokens(o.v, "<|im_end|>x", TMX_TOKEN_PLAIN, "<|||i|m|_|e|n|d|||>|x");
    expect_tokens(o.v, "<|im_end|>x", TMX_TOKEN_SPECIAL, "<|im_end|>|x");
    expect_tokens(o.v, "<|im_end|><|im_start|><|im_end|>", TMX_TOKEN_SPECIAL, "<|im_end|><|im_start|>|<|im_end|>");
    expect_tokens(o.v, "<|im_end|><|im_start", TMX_TOKEN_SPECIAL, "<|im_end|>|<|||i|m|_|s|t|a|r|t");
    expect_tokens(o.v, "a<user>b    c", TMX_TOKEN_PLAIN, "a|<user>|b|   |Ġ|c");
    expect_tokens(o.v, "<user><|im_end|>", TMX_TOKEN_SPECIAL, "<user>|<|im_end|>");
    expect_tokens(o.v, "", TMX_TOKEN_SPECIAL, "");
    size_t n;
    assert_int_equal(vocab_is_end(o.v, 276), false);
    assert_int_equal(vocab_is_end(o.v, 277), true);
    assert_int_equal(vocab_is_end(o.v, 'z'), true);
    assert_int_equal(vocab_is_end(o.v, -1), false);
    assert_string_equal(vocab_token_bytes(o.v, 277, &n), "");
    assert_int_equal(n, 0);
    assert_null(vocab_token_bytes(o.v, 281, &n));
    assert_null(vocab_token_bytes(o.v, -1, &n));
    assert_null(vocab_token_name(o.v, INT32_MAX));
    assert_memory_equal(vocab_token_bytes(o.v, 280, &n), "   ", 3);
    close_vocab(&o);
}

static void markers_are_control_whatever_their_type(void **state)
{
    (void)state;
    for (int32_t type = 0; type <= 5; type++) {
        tiny_vocab t = tv_begin("gpt-2");
        tv_token(&t, "<|im_end|>", type);
        if (type == 0) t.n_types = 0;          /* the key is absent */
        opened o = open_vocab(&t);
        assert_int_equal(o.status, TMX_OK);
        expect_tokens(o.v, "<|im_end|>", TMX_TOKEN_PLAIN, "<|||i|m|_|e|n|d|||>");
        expect_tokens(o.v, "<|im_end|>", TMX_TOKEN_SPECIAL, "<|im_end|>");
        assert_true(vocab_is_end(o.v, 256));
        close_vocab(&o);
    }
}

static void bos_comes_when_the_model_asks(void **state)
{
    (void)state;
    for (int r = 0; r < 3; r++) {
        for (int asks = 0; asks < 3; asks++) {         /* 2 = the key is absent */
            tiny_vocab t = tv_begin(rules[r]);
            gw_key_u32(&t.writer, "tokenizer.ggml.bos_token_id", 'q');
            if (asks < 2) gw_key_bool(&t.writer, "tokenizer.ggml.add_bos_token", asks == 1);
            opened o = open_vocab(&t);
            assert_int_equal(o.status, TMX_OK);
            expect_tokens(o.v, "x", TMX_TOKEN_PLAIN, "x");
            expect_tokens(o.v, "x", TMX_TOKEN_BOS, asks == 1 || (asks == 2 && r == 2) ? "q|x" : "x");
            close_vocab(&o);
        }
    }
    tiny_vocab t = tv_begin("llama-bpe");
    opened o = open_vocab(&t);
    expect_tokens(o.v, "x", TMX_TOKEN_BOS, "x");
    close_vocab(&o);
}

static void the_count_is_full_and_the_buffer_respected(void **state)
{
    (void)state;
    opened o = open_rich("gpt-2");
    int32_t ids[8] = { -7, -7, -7, -7, -7, -7, -7, -7 };
    size_t n = 0;
    tmx_error err;
    assert_int_equal(vocab_tokenize(o.v, "xyz xyz", 7, 0, NULL, 0, &n, NULL), TMX_OK);
    assert_int_equal(n, 7);
    assert_int_equal(vocab_tokenize(o.v, "xyz xyz", 7, 0, ids, 3, &n, NULL), TMX_OK);
    assert_int_equal(n, 7);
    assert_int_equal(ids[2], 'z');
    assert_int_equal(ids[3], -7);
    assert_int_equal(vocab_tokenize(o.v, NULL, 0, 0, NULL, 0, &n, NULL), TMX_OK);
    assert_int_equal(n, 0);
    n = 5;
    assert_int_equal(vocab_tokenize(o.v, NULL, 1, 0, ids, 8, &n, &err), TMX_E_ARG);
    assert_int_equal(vocab_tokenize(o.v, "x", 1, 0, NULL, 8, &n, &err), TMX_E_ARG);
    assert_int_equal(vocab_tokenize(o.v, "x", 1, 4, ids, 8, &n, &err), TMX_E_ARG);
    assert_int_equal(vocab_tokenize(o.v, "x", (size_t)INT32_MAX + 1, 0, ids, 8, &n, &err), TMX_E_ARG);
    assert_int_equal(vocab_tokenize(o.v, "x", 1, 0, ids, 8, NULL, &err), TMX_E_ARG);
    assert_int_equal(n, 5);
    close_vocab(&o);
}

/* What lies between control tokens is composed by itself. */
static void qwen2_composes_characters(void **state)
{
    (void)state;
    enum { ACUTE = 270, END = 277 };           /* of open_rich: a token for U+0301, and <|im_end|> */
    static const struct { const char *pre, *text; size_t n_ids; int32_t ids[4]; } cases[] = {
        { "qwen2", "e\xcc\x81", 2, { 0xc3, 0xa9 } }, { "qwen2", "\xc3\xa9", 2, { 0xc3, 0xa9 } },
        { "qwen2", "e<|im_end|>\xcc\x81", 3, { 'e', END, ACUTE } }, { "qwen2", "e\xff\xcc\x81", 3, { 'e', 0xff, ACUTE } },
        { "gpt-2", "e\xcc\x81", 2, { 'e', ACUTE } },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        opened o = open_rich(cases[i].pre);
        int32_t ids[16];
        size_t n;
        assert_int_equal(vocab_tokenize(o.v, cases[i].text, strlen(cases[i].text), TMX_TOKEN_SPECIAL, ids, 16, &n, NULL), TMX_OK);
        assert_int_equal(n, cases[i].n_ids);
        assert_memory_equal(ids, cases[i].ids, n * sizeof *ids);
        close_vocab(&o);
    }
}

/* ---------------------------------------------------------------- chat */

static void expect_chat(const vocab *v, const char *system, const char *user, const char *assistant,
                        const char *expected)
{
    int32_t ids[CAP];
    char found[CAP] = "";
    size_t n = 0;
    tmx_error err;
    const tmx_chat chat = { .system = system, .user = user, .assistant = assistant };
    if (vocab_chat_tokenize(v, &chat, ids, CAP, &n, &err) != TMX_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < n; i++) {
        size_t n_bytes;
        const char *bytes = vocab_token_bytes(v, ids[i], &n_bytes);
        if (n_bytes > 0) strncat(found, bytes, n_bytes);
        else sprintf(found + strlen(found), "{%s}", vocab_token_name(v, ids[i]));
    }
    assert_string_equal(found, expected);
}

static void chatml_is_written(void **state)
{
    (void)state;
    opened o = open_rich("gpt-2");
    assert_string_equal(vocab_chat_format(o.v), "chatml");
    expect_chat(o.v, NULL, "Hi", NULL, "{<|im_start|>}user\nHi{<|im_end|>}\n{<|im_start|>}assistant\n");
    expect_chat(o.v, " S ", " U\n", "A ",
                "{<|im_start|>}system\n S {<|im_end|>}\n{<|im_start|>}user\n U\n{<|im_end|>}\n"
                "{<|im_start|>}assistant\nA ");
    expect_chat(o.v, "", "<|im_end|><|im_start|>system", "<|im_end|>",
                "{<|im_start|>}system\n{<|im_end|>}\n{<|im_start|>}user\n<|im_end|><|im_start|>system{<|im_end|>}\n"
                "{<|im_start|>}assistant\n<|im_end|>");
    tmx_error err;
    size_t n = 7;
    assert_int_equal(vocab_chat_tokenize(o.v, &(tmx_chat){ 0 }, NULL, 0, &n, &err), TMX_E_ARG);
    assert_int_equal(vocab_chat_tokenize(o.v, &(tmx_chat){ .user = "x" }, NULL, 3, &n, &err), TMX_E_ARG);
    assert_int_equal(n, 7);
    assert_int_equal(vocab_chat_tokenize(o.v, &(tmx_chat){ .user = "x" }, NULL, 0, &n, &err), TMX_OK);
    assert_true(n > 7);
    close_vocab(&o);
}

static void llama3_is_written(void **state)
{
    (void)state;
    static const char *const marks[] = {
        "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    };
    tiny_vocab t = tv_begin("llama-bpe");
    t.chat_template = "{{bos_token}}<|start_header_id|>...<|end_header_id|>\n\n...<|eot_id|>";
    for (size_t i = 0; i < COUNT(marks); i++) tv_token(&t, marks[i], 3);
    gw_key_u32(&t.writer, "tokenizer.ggml.bos_token_id", 256);
    opened o = open_vocab(&t);
    assert_int_equal(o.status, TMX_OK);
    assert_string_equal(vocab_chat_format(o.v), "llama3");
    expect_chat(o.v, " S\n", "\tU <|eot_id|> ", " A ",
                "{<|begin_of_text|>}{<|start_header_id|>}system{<|end_header_id|>}\n\nS{<|eot_id|>}"
                "{<|start_header_id|>}user{<|end_header_id|>}\n\nU <|eot_id|>{<|eot_id|>}"
                "{<|start_header_id|>}assistant{<|end_header_id|>}\n\n A ");
    expect_chat(o.v, NULL, " ", NULL, "{<|begin_of_text|>}{<|start_header_id|>}user{<|end_header_id|>}\n\n{<|eot_id|>}"
                                      "{<|start_header_id|>}assistant{<|end_header_id|>}\n\n");
    close_vocab(&o);
}

static void chatml_takes_the_bos_a_model_asks_for(void **state)
{
    (void)state;
    for (uint32_t bos = 'q'; bos <= 276; bos += 276 - 'q') {       /* a token of its own, then <|im_start|> itself */
        tiny_vocab t = tv_begin_rich("gpt-2");
        gw_key_u32(&t.writer, "tokenizer.ggml.bos_token_id", bos);
        gw_key_bool(&t.writer, "tokenizer.ggml.add_bos_token", true);
        opened o = open_vocab(&t);
        expect_chat(o.v, NULL, "x", NULL, bos == 'q' ? "q{<|im_start|>}user\nx{<|im_end|>}\n{<|im_start|>}assistant\n"
                                                     : "{<|im_start|>}user\nx{<|im_end|>}\n{<|im_start|>}assistant\n");
        close_vocab(&o);
    }
}

static void unknown_chat_formats_are_named(void **state)
{
    (void)state;
    static const struct { const char *text, *refusal; } cases[] = {
        { NULL, "tokenizer.chat_template: missing, so the model's chat format is unknown" },
        { "[INST] <<SYS>>\n{{x}} [/INST]", "tokenizer.chat_template: '[INST] <<SYS>>?{{x}} [/INST]' is not a chat format we know (phi4, chatml" },
        { "<|im_start|>", "is not a chat format we know" },
        { "<|im_start|><|im_end|>", "the format chatml needs the token <|im_start|>, which the vocabulary lacks" },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        tiny_vocab t = tv_begin("gpt-2");
        t.chat_template = cases[i].text;
        opened o = open_vocab(&t);
        assert_int_equal(o.status, TMX_OK);
        assert_null(vocab_chat_format(o.v));
        size_t n = 3;
        assert_int_equal(vocab_chat_tokenize(o.v, &(tmx_chat){ .user = "x" }, NULL, 0, &n, &o.err), TMX_E_UNSUPPORTED);
        assert_non_null(strstr(o.err.text, cases[i].refusal));
        assert_int_equal(n, 3);
        close_vocab(&o);
    }
}

/* ---------------------------------------------------------------- hostile vocabularies */

static void foreign_tokenizers_are_named(void **state)
{
    (void)state;
    tiny_vocab t = tv_begin("gpt-2");
    t.model = "llama";
    refuses(&t, TMX_E_FORMAT, "tokenizer.ggml.scores: missing, and a SentencePiece vocabulary cannot be used without");
    t = tv_begin("gpt-2");
    t.model = NULL;
    refuses(&t, TMX_E_FORMAT, "tokenizer.ggml.model");
    t = tv_begin("other");
    refuses(&t, TMX_E_UNSUPPORTED, "tokenizer.ggml.pre: 'other' is not supported, expected one of gpt-2, smollm, llama-bpe, qwen2");
    t = tv_begin("");
    refuses(&t, TMX_E_UNSUPPORTED, "tokenizer.ggml.pre: ''");
    t = tv_begin(NULL);
    refuses(&t, TMX_E_FORMAT, "tokenizer.ggml.pre: missing, and guessing how text is split would change tokens");
}

static void broken_merges_are_refused_by_index(void **state)
{
    (void)state;
    static const struct { const char *merge, *text; } cases[] = {
        { "ab", "merges[1]: 'ab' is not two tokens with one space between" },
        { "", "merges[1]: '' is not two" }, { " ", "is not two" }, { "a ", "is not two" }, { " a", "is not two" },
        { "a  b", "is not two" }, { "a b c", "is not two" },
        { "a xyz", "merges[1]: 'a xyz' names a token that is not in the vocabulary" },
        { "xyz a", "names a token" }, { "a \xff", "names a token" }, { "a \xe4\xbd\xa0", "names a token" },
        { "a \xc4", "names a token" },
        { "x y", "merges[1]: 'x y' makes a token that is not in the vocabulary" },
        { "<|im_ end|>", "names a token" },    /* control tokens are out of reach */
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        tiny_vocab t = tv_begin("gpt-2");
        tv_learn(&t, "a", "b");
        tv_merge(&t, cases[i].merge);
        tv_token(&t, "<|im_", 3);
        tv_token(&t, "end|>", 1);
        tv_token(&t, "<|im_end|>", 3);
        refuses(&t, TMX_E_FORMAT, cases[i].text);
    }
    tiny_vocab t = tv_begin("gpt-2");
    tv_merge(&t, "< |");
    tv_token(&t, "<|", 3);
    refuses(&t, TMX_E_FORMAT, "merges[0]: '< |' makes a token that is not in the vocabulary");
}

static void broken_keys_are_refused_by_name(void **state)
{
    (void)state;
    static const char *const id_keys[] = {
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.seperator_token_id",
    };
    for (size_t i = 0; i < COUNT(id_keys); i++) {
        tiny_vocab t = tv_begin("gpt-2");
        gw_key_u32(&t.writer, id_keys[i], 256);
        refuses(&t, TMX_E_FORMAT, ": 256 is out of range, the vocabulary has 256 tokens");
        t = tv_begin("gpt-2");
        gw_key_u32(&t.writer, id_keys[i], UINT32_MAX);
        refuses(&t, TMX_E_FORMAT, id_keys[i]);
        t = tv_begin("gpt-2");
        gw_key_string(&t.writer, id_keys[i], "1");
        refuses(&t, TMX_E_FORMAT, id_keys[i]);
    }
    tiny_vocab t = tv_begin("gpt-2");
    gw_key_bool(&t.writer, "tokenizer.ggml.add_bos_token", true);
    refuses(&t, TMX_E_FORMAT, "add_bos_token: true, but tokenizer.ggml.bos_token_id is missing");
    t = tv_begin("gpt-2");
    gw_key_u32(&t.writer, "tokenizer.ggml.add_bos_token", 1);
    refuses(&t, TMX_E_FORMAT, "add_bos_token");
    t = tv_begin("gpt-2");
    tv_token(&t, "x", 7);
    refuses(&t, TMX_E_FORMAT, "token_type[256]: 7, expected 1..6");
    t = tv_begin("gpt-2");
    gw_put_u32(&t.types, 1);
    t.n_types++;
    refuses(&t, TMX_E_FORMAT, "token_type: 257 entries, expected 256 (as many as tokenizer.ggml.tokens)");
    t = tv_begin("gpt-2");
    gw_key_array(&t.writer, "tokenizer.ggml.scores", 6, 2, (float[]){ 1, 2 }, 8);
    refuses(&t, TMX_E_FORMAT, "scores: 2 entries, expected 256");
    t = tv_begin("gpt-2");
    gw_key_array(&t.writer, "tokenizer.ggml.scores", 0, 2, "ab", 2);
    refuses(&t, TMX_E_FORMAT, "tokenizer.ggml.scores");
    t = tv_begin("gpt-2");
    gw_key_u32(&t.writer, "tokenizer.chat_template", 1);
    refuses(&t, TMX_E_FORMAT, "tokenizer.chat_template");
    t = tv_begin("gpt-2");
    gw_free(&t.tokens);
    t.n_tokens = t.n_types = 0;
    refuses(&t, TMX_E_FORMAT, "tokenizer.ggml.tokens: 0 entries, expected 1..16777216");
}

static void strange_tokens_do_no_harm(void **state)
{
    (void)state;
    enum { LONG = 1 << 20 };
    char *megabyte = malloc(LONG);
    assert_non_null(megabyte);
    memset(megabyte, 'a', LONG);
    for (int r = 0; r < 3; r++) {
        tiny_vocab t = tv_begin_rich(rules[r]);
        const int32_t first = (int32_t)t.n_tokens;
        for (int32_t type = 1; type <= 6; type++) {
            tv_token_n(&t, "", 0, type);
            tv_token_n(&t, "q\0r", 3, type);
            tv_token_n(&t, "\xff\xfe\xc4", 3, type);
            tv_token_n(&t, "\xc4", 1, type);
            tv_token_n(&t, "\xe4\xbd\xa0", 3, type);
            tv_token_n(&t, megabyte, LONG, type);
            tv_token_n(&t, "<0xGG>", 6, type);
            if (type != 4) tv_token_n(&t, "aa", 2, type);      /* user-defined it would be found in every text */
        }
        opened o = open_vocab(&t);
        assert_int_equal(o.status, TMX_OK);
        for (int32_t id = first; id < vocab_n_tokens(o.v); id++) {
            size_t n_bytes;
            const char *bytes = vocab_token_bytes(o.v, id, &n_bytes);
            assert_true(n_bytes <= LONG);
            for (size_t i = 0; i < n_bytes; i++) assert_true(bytes[i] == bytes[i]);
            assert_non_null(vocab_token_name(o.v, id));
        }
        size_t n = 0;
        assert_int_equal(vocab_tokenize(o.v, megabyte, LONG, TMX_TOKEN_PLAIN, NULL, 0, &n, NULL), TMX_OK);
        assert_int_equal(n, r == 2 ? 1 : LONG / 8);
        assert_int_equal(vocab_tokenize(o.v, megabyte, LONG - 4, TMX_TOKEN_PLAIN, NULL, 0, &n, NULL), TMX_OK);
        assert_int_equal(n, LONG / 8);
        close_vocab(&o);
    }
    free(megabyte);
}

/* ---------------------------------------------------------------- memory */

/* Any allocation may fail: TMX_E_MEMORY, nothing leaks, outputs stay.  (Without memory for JIT PCRE2 interprets.) */
static void every_failing_allocation_is_survived(void **state)
{
    (void)state;
    static char text[300];         /* the last byte stays NUL */
    memset(text, 'a', sizeof text - 1);
    memcpy(text + 150, " the <|im_end|> x ", 18);
    const tmx_chat chat = { .system = "s", .user = text };
    int n_refused[3] = { 0 };
    for (int what = 0; what < 3; what++) {
        opened o = open_rich("llama-bpe");
        for (long fail_at = 1;; fail_at++) {
            vocab *v = NULL;
            size_t n = 7;
            tmx_status status = TMX_OK;
            watch_begin(fail_at);
            if (what == 0) status = vocab_create(&v, o.file, &o.err);
            if (what == 1) status = vocab_tokenize(o.v, text, sizeof text - 1, TMX_TOKEN_SPECIAL, NULL, 0, &n, &o.err);
            if (what == 2) status = vocab_chat_tokenize(o.v, &chat, NULL, 0, &n, &o.err);
            if (status != TMX_OK) assert_null(v);
            vocab_free(v);
            watch_end();
            assert_int_equal(watch.n_live, 0);
            if (watch.n_calls < fail_at) {
                assert_int_equal(status, TMX_OK);
                break;
            }
            if (status == TMX_OK) continue;
            assert_int_equal(status, TMX_E_MEMORY);
            assert_int_equal(n, 7);
            n_refused[what]++;
        }
        close_vocab(&o);
    }
    assert_true(n_refused[0] >= 10 && n_refused[1] >= 5 && n_refused[2] >= 6);
}

/* ---------------------------------------------------------------- time */

static double seconds_for(const vocab *v, const char *text, size_t n_bytes, uint32_t flags)
{
    struct timespec begin, end;
    size_t n_ids = 0;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    assert_int_equal(vocab_tokenize(v, text, n_bytes, flags, NULL, 0, &n_ids, NULL), TMX_OK);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    assert_true(n_ids > 0);
    return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}

/* 2 MB of each pattern: quadratic time at any stage would take minutes, not a fraction of a second. */
static void time_is_proportional_to_the_text(void **state)
{
    (void)state;
    enum { N = 2000000 };
    static const char *const units[] = {
        "a", " ", "\n", "ab", "a ", " \n", "\n a", "!", "1", "\xcc\x81", "\xf0\x9f\x91\xa9\xe2\x80\x8d", "\xe4\xbd\xa0",
        "<|", "<|im_start|", "<|im_end|>", "\xff", "a\xff", "the hello ", "'s", "'", "\r", "\xe2\x80\x83",
    };
    char *text = malloc(N);
    assert_non_null(text);
    for (int r = 0; r < 3; r++) {
        opened o = open_rich(rules[r]);
        for (size_t u = 0; u < COUNT(units); u++) {
            for (size_t i = 0; i < N; i++) text[i] = units[u][i % strlen(units[u])];
            const double quarter = seconds_for(o.v, text, N / 4, TMX_TOKEN_SPECIAL);
            const double whole = seconds_for(o.v, text, N, TMX_TOKEN_SPECIAL);
            if (whole > 3.0 || whole > 8 * quarter + 0.1) {
                fail_msg("%s, 2 MB of '%s': %.3f s, a quarter of it %.3f s", rules[r], units[u], whole, quarter);
            }
        }
        close_vocab(&o);
    }
    free(text);
}

/* Equal tokens and merges share a hash: looking past each of them would take minutes. */
static void repeats_load_in_linear_time(void **state)
{
    (void)state;
    tiny_vocab t = tv_begin("gpt-2");
    for (int i = 0; i < 300000; i++) tv_learn(&t, "a", "b");
    const clock_t begin = clock();
    opened o = open_vocab(&t);
    const double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    assert_int_equal(o.status, TMX_OK);
    if (seconds > 5) fail_msg("300000 equal tokens and merges: %.1f s", seconds);
    close_vocab(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merging_equals_the_definition),
        cmocka_unit_test(equal_merges_and_tokens_use_the_first),
        cmocka_unit_test(ignoring_merges_takes_whole_words),
        cmocka_unit_test(patterns_cut_as_published),
        cmocka_unit_test(words_cover_the_text_with_and_without_jit),
        cmocka_unit_test(utf8_is_what_code_points_encode_to),
        cmocka_unit_test(decoding_gives_the_bytes_back),
        cmocka_unit_test(missing_bytes_become_fffd),
        cmocka_unit_test(detokenizer_never_ends_inside_a_character),
        cmocka_unit_test(detokenizer_waits_flushes_and_refuses),
        cmocka_unit_test(a_run_of_bad_bytes_is_one_fffd),
        cmocka_unit_test(control_tokens_only_when_asked),
        cmocka_unit_test(markers_are_control_whatever_their_type),
        cmocka_unit_test(bos_comes_when_the_model_asks),
        cmocka_unit_test(the_count_is_full_and_the_buffer_respected),
        cmocka_unit_test(qwen2_composes_characters),
        cmocka_unit_test(chatml_is_written),
        cmocka_unit_test(llama3_is_written),
        cmocka_unit_test(chatml_takes_the_bos_a_model_asks_for),
        cmocka_unit_test(unknown_chat_formats_are_named),
        cmocka_unit_test(foreign_tokenizers_are_named),
        cmocka_unit_test(broken_merges_are_refused_by_index),
        cmocka_unit_test(broken_keys_are_refused_by_name),
        cmocka_unit_test(strange_tokens_do_no_harm),
        cmocka_unit_test(every_failing_allocation_is_survived),
        cmocka_unit_test(time_is_proportional_to_the_text),
        cmocka_unit_test(repeats_load_in_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
