/* rooms: token gguf base */
/* SentencePiece-style vocabularies made by hand: the definition, the white space rules, bytes, and files that lie. */
#include "token/spm.h"
#include "token/token.h"
#include "tiny_vocab.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

typedef struct piece {
    const char *name;
    float score;
    int32_t type;
} piece;

static const piece pieces[] = {                /* behind <unk> <s> </s> and 256 bytes: ids 259, 260, ... */
    { "a", -9, 1 }, { "b", -9, 1 }, { "\xe2\x96\x81", -9, 1 }, { "ab", -2, 1 }, { "ba", -1, 1 }, { "aa", -3, 1 },
    { "\xe2\x96\x81" "a", -4, 1 }, { "abab", -5, 1 }, { "  ", 0, 4 }, { "<user>", 0, 4 }, { "hid", 0, 5 }, { "aab", -3, 1 },
};
enum { N_PIECES = sizeof pieces / sizeof pieces[0], FIRST = 259, A = FIRST, B, SPACE, AB, BA, AA, SPACE_A, ABAB, TWO, USER, HID, AAB };

typedef struct spm_file {
    gguf_writer writer;
    gw_bytes tokens, scores, types;
    uint64_t n;
} spm_file;

static void add(spm_file *f, const char *name, float score, int32_t type)
{
    gw_put_string(&f->tokens, name);
    gw_put(&f->scores, &score, sizeof score);
    gw_put_u32(&f->types, (uint32_t)type);
    f->n++;
}

static spm_file begin(bool has_bytes)
{
    spm_file f = { .writer = gguf_writer_begin() };
    add(&f, "<unk>", 0, 2);
    add(&f, "<s>", 0, 3);
    add(&f, "</s>", 0, 3);
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[16];
        snprintf(name, sizeof name, has_bytes ? "<0x%02X>" : "<no%02X>", byte);
        add(&f, name, 0, has_bytes ? 6 : 3);
    }
    for (int i = 0; i < N_PIECES; i++) add(&f, pieces[i].name, pieces[i].score, pieces[i].type);
    gw_key_u32(&f.writer, "tokenizer.ggml.bos_token_id", 1);
    gw_key_u32(&f.writer, "tokenizer.ggml.eos_token_id", 2);
    return f;
}

typedef struct opened {
    gw_bytes bytes;
    tmx_file *file;
    vocab *v;
    tmx_error err;
    tmx_status status;
} opened;

static opened open_spm(spm_file *f)
{
    opened o = { .err = { .text = "" } };
    gw_key_string(&f->writer, "tokenizer.ggml.model", "llama");
    gw_key_array(&f->writer, "tokenizer.ggml.tokens", 8, f->n, f->tokens.data, f->tokens.n_bytes);
    gw_key_array(&f->writer, "tokenizer.ggml.scores", 6, f->scores.n_bytes / 4, f->scores.data, f->scores.n_bytes);
    gw_key_array(&f->writer, "tokenizer.ggml.token_type", 5, f->types.n_bytes / 4, f->types.data, f->types.n_bytes);
    gw_free(&f->tokens);
    gw_free(&f->scores);
    gw_free(&f->types);
    o.bytes = gw_finish(&f->writer);
    assert_int_equal(gguf_open_memory(&o.file, o.bytes.data, o.bytes.n_bytes, "memory", &o.err), TMX_OK);
    o.status = vocab_create(&o.v, o.file, &o.err);
    return o;
}

static void close_spm(opened *o)
{
    vocab_free(o->v);
    tmx_file_close(o->file);
    gw_free(&o->bytes);
}

static void expect(const vocab *v, const char *text, uint32_t flags, size_t n_expected, const int32_t *expected)
{
    int32_t ids[64];
    size_t n = 0;
    assert_int_equal(vocab_tokenize(v, text, strlen(text), flags, ids, 64, &n, NULL), TMX_OK);
    bool is_same = n == n_expected;
    for (size_t i = 0; is_same && i < n; i++) is_same = ids[i] == expected[i];
    if (is_same) return;
    for (size_t i = 0; i < n; i++) print_message("%d ", ids[i]);
    fail_msg("'%s': %zu ids", text, n);
}
#define EXPECT(v, text, flags, ...) expect((v), (text), (flags), sizeof((int32_t[]){ __VA_ARGS__ }) / 4, (int32_t[]){ __VA_ARGS__ })

static void the_best_pair_is_joined_first(void **state)
{
    (void)state;
    spm_file f = begin(true);
    gw_key_bool(&f.writer, "tokenizer.ggml.add_space_prefix", false);
    opened o = open_spm(&f);
    assert_int_equal(o.status, TMX_OK);
    expect(o.v, "", 0, 0, NULL);
    EXPECT(o.v, "ab", 0, AB);
    EXPECT(o.v, "aba", 0, A, BA);              /* ba scores higher than ab */
    EXPECT(o.v, "abab", 0, A, BA, B);          /* so abab never comes to be */
    EXPECT(o.v, "aaa", 0, AA, A);              /* equal scores: from the left */
    EXPECT(o.v, "aab", 0, AAB);                /* ab, then a with ab */
    EXPECT(o.v, " a", 0, SPACE_A);
    EXPECT(o.v, "\xe2\x96\x81" "a", 0, SPACE_A);
    EXPECT(o.v, "a  b", 0, A, TWO, B);         /* user-defined before anything is joined */
    EXPECT(o.v, "hid", 0, 3 + 'h', 3 + 'i', 3 + 'd');      /* unused tokens are not made */
    EXPECT(o.v, "<user>", 0, USER);
    EXPECT(o.v, "\xc3\xa9\xff", 0, 3 + 0xc3, 3 + 0xa9, 3 + 0xff);
    EXPECT(o.v, "a<s>", TMX_TOKEN_SPECIAL | TMX_TOKEN_BOS, 1, A, 1);
    close_spm(&o);
}

static void spaces_come_and_go_as_the_model_wants(void **state)
{
    (void)state;
    spm_file f = begin(true);
    gw_key_bool(&f.writer, "tokenizer.ggml.remove_extra_whitespaces", true);
    opened o = open_spm(&f);
    assert_int_equal(o.status, TMX_OK);
    EXPECT(o.v, "a", 0, SPACE_A);              /* add_space_prefix is the default */
    EXPECT(o.v, "  a   b ", 0, SPACE_A, SPACE, B);
    EXPECT(o.v, "b<s>a<user>a", TMX_TOKEN_SPECIAL, SPACE, B, 1, SPACE_A, USER, A);
    expect(o.v, "   ", 0, 0, NULL);
    close_spm(&o);
}

static void without_byte_tokens_a_run_is_one_unknown(void **state)
{
    (void)state;
    spm_file f = begin(false);
    gw_key_u32(&f.writer, "tokenizer.ggml.unknown_token_id", 0);
    gw_key_bool(&f.writer, "tokenizer.ggml.add_space_prefix", false);
    opened o = open_spm(&f);
    assert_int_equal(o.status, TMX_OK);
    EXPECT(o.v, "xyzab\xffq", 0, 0, AB, 0);
    close_spm(&o);
}

static void refuses(spm_file *f, tmx_status status, const char *text)
{
    opened o = open_spm(f);
    if (o.status != status || strstr(o.err.text, text) == NULL) fail_msg("'%s', expected '%s'", o.err.text, text);
    close_spm(&o);
}

static void files_that_lie_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = { "<0x-1>", "<0xGG>", "<0x1>", "<0x001>", "<0x0 >", "0x00", "", "<0x00" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        spm_file f = begin(true);
        char text[96];
        add(&f, names[i], 0, 6);
        snprintf(text, sizeof text, "tokenizer.ggml.tokens[%d]: '%s' is a byte token, expected <0x00> to <0xFF>", 259 + N_PIECES, names[i]);
        refuses(&f, TMX_E_FORMAT, text);
    }
    spm_file f = begin(true);
    add(&f, "x", NAN, 1);
    refuses(&f, TMX_E_FORMAT, "tokenizer.ggml.scores[271]: NaN");
    f = begin(true);
    gw_put_u32(&f.scores, 0);
    refuses(&f, TMX_E_FORMAT, "tokenizer.ggml.scores: 272 entries, expected 271");
    f = begin(false);
    refuses(&f, TMX_E_UNSUPPORTED, "no token <0x00>, and no unknown token in its place");
    f = begin(true);
    gw_key_string(&f.writer, "tokenizer.ggml.add_space_prefix", "yes");
    refuses(&f, TMX_E_FORMAT, "tokenizer.ggml.add_space_prefix");
    f = begin(true);
    gw_key_u32(&f.writer, "tokenizer.ggml.unknown_token_id", UINT32_MAX);
    refuses(&f, TMX_E_FORMAT, "tokenizer.ggml.unknown_token_id: 4294967295 is out of range");
    f = begin(true);
    gw_key_array(&f.writer, "tokenizer.ggml.precompiled_charsmap", 0, 1, "x", 1);
    refuses(&f, TMX_E_UNSUPPORTED, "tokenizer.ggml.precompiled_charsmap");
    assert_int_equal(spm_byte_of("<0xfF>", 6), 255);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_best_pair_is_joined_first),
        cmocka_unit_test(spaces_come_and_go_as_the_model_wants),
        cmocka_unit_test(without_byte_tokens_a_run_is_one_unknown),
        cmocka_unit_test(files_that_lie_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
