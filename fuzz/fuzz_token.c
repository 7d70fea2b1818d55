/* rooms: token gguf base */
/* Input that starts with "GGUF" is a model file: its vocabulary must be refused or work.  Any other input is text: it
 * must survive encoding and decoding under every pre-tokenizer, and as SentencePiece. */
#include "../tests/tiny_vocab.h"
#include "token/token.h"
#include "token/utf8.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void must(bool holds)
{
    if (!holds) abort();
}

static void check_text(const vocab *v, const char *text, size_t n_bytes, uint32_t flags, bool is_lossless)
{
    size_t n_ids = 0, n_again = 0, n_decoded = 0;
    must(vocab_tokenize(v, text, n_bytes, flags, NULL, 0, &n_ids, NULL) == TMX_OK);
    int32_t *ids = malloc((n_ids + 1) * sizeof *ids);
    must(ids != NULL && vocab_tokenize(v, text, n_bytes, flags, ids, n_ids, &n_again, NULL) == TMX_OK);
    must(n_again == n_ids);
    ids[n_ids] = -1;
    tmx_detokenizer d = { 0 };
    for (size_t i = 0; i <= n_ids; i++) {
        size_t n_token, n_out = 0;
        const char *bytes = vocab_token_bytes(v, ids[i], &n_token);
        must((bytes == NULL) == (i == n_ids));
        if (is_lossless && n_token > 0) {
            must(n_decoded + n_token <= n_bytes && memcmp(text + n_decoded, bytes, n_token) == 0);
        }
        n_decoded += n_token;
        char *out = malloc(2 * n_token + 8);
        must(out != NULL && vocab_detokenize(v, &d, ids[i], out, 2 * n_token + 8, &n_out, NULL) == TMX_OK);
        for (size_t k = 0; k < n_out;) {
            const int length = utf8_length((const unsigned char *)out + k, n_out - k);
            must(length > 0);
            k += (size_t)length;
        }
        free(out);
    }
    if (is_lossless) must(n_decoded == n_bytes);
    free(ids);
}

static void check_file(const uint8_t *data, size_t n_bytes)
{
    static const char text[] = "Hello the  the\n\n123's <|im_end|> \xff\xe4\xbd\xa0! "
                               "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    tmx_file *file = NULL;
    vocab *v = NULL;
    if (gguf_open_memory(&file, data, n_bytes, "fuzz", NULL) == TMX_OK && vocab_create(&v, file, NULL) == TMX_OK) {
        size_t n;
        check_text(v, text, sizeof text - 1, TMX_TOKEN_PLAIN, false);
        check_text(v, text, sizeof text - 1, TMX_TOKEN_SPECIAL | TMX_TOKEN_BOS, false);
        const tmx_turn turn = { text, "a " };
        (void)vocab_chat_tokenize(v, &(tmx_chat){ .system = "s", .user = text, .turns = &turn, .n_turns = 1 }, NULL, 0, &n, NULL);
        vocab_free(v);
    }
    tmx_file_close(file);
}

/* SentencePiece-style: bytes, then what text is joined to. */
static vocab *open_spm(void)
{
    static const struct { const char *name; float score; uint32_t type; } pieces[] = {
        { "\xe2\x96\x81", -9, 1 }, { "a", -9, 1 }, { "b", -9, 1 }, { "ab", -2, 1 }, { "ba", -1, 1 }, { "aa", -3, 1 }, { "\xe2\x96\x81" "a", -4, 1 },
        { "abab", -5, 1 }, { "\xcc\x81", -9, 1 }, { "a\xcc\x81", 0, 1 }, { "  ", 0, 4 }, { "<user>", 0, 4 }, { "<s>", 0, 3 }, { "hid", 0, 5 },
    };
    gguf_writer w = gguf_writer_begin();
    gw_bytes names = { 0 }, scores = { 0 }, types = { 0 };
    for (unsigned i = 0; i < 256 + sizeof pieces / sizeof pieces[0]; i++) {
        char byte[8];
        snprintf(byte, sizeof byte, "<0x%02X>", i & 255);
        gw_put_string(&names, i < 256 ? byte : pieces[i - 256].name);
        gw_put(&scores, i < 256 ? &(float){ 0 } : &pieces[i - 256].score, sizeof(float));
        gw_put_u32(&types, i < 256 ? 6 : pieces[i - 256].type);
    }
    gw_key_string(&w, "tokenizer.ggml.model", "llama");
    gw_key_array(&w, "tokenizer.ggml.tokens", 8, types.n_bytes / 4, names.data, names.n_bytes);
    gw_key_array(&w, "tokenizer.ggml.scores", 6, types.n_bytes / 4, scores.data, scores.n_bytes);
    gw_key_array(&w, "tokenizer.ggml.token_type", 5, types.n_bytes / 4, types.data, types.n_bytes);
    gw_free(&names);
    gw_free(&scores);
    gw_free(&types);
    gw_bytes bytes = gw_finish(&w);
    tmx_file *file = NULL;
    vocab *v = NULL;
    must(gguf_open_memory(&file, bytes.data, bytes.n_bytes, "spm", NULL) == TMX_OK && vocab_create(&v, file, NULL) == TMX_OK);
    tmx_file_close(file);
    gw_free(&bytes);
    return v;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    enum { N_RULES = 9 };
    static const char *const rules[N_RULES] = {
        "smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "default", "deepseek-llm", "deepseek-v3",
    };
    static vocab *vocabs[N_RULES];
    static gw_bytes files[N_RULES];
    static tmx_file *opened[N_RULES];
    static vocab *spm;
    if (n_bytes >= 4 && memcmp(data, "GGUF", 4) == 0) {
        check_file(data, n_bytes);
        return 0;
    }
    if (spm == NULL) spm = open_spm();
    check_text(spm, (const char *)data, n_bytes, TMX_TOKEN_SPECIAL, false);
    for (int i = 0; i < N_RULES; i++) {
        if (vocabs[i] == NULL) {
            tiny_vocab t = tv_begin_rich(rules[i]);
            files[i] = tv_finish(&t);
            must(gguf_open_memory(&opened[i], files[i].data, files[i].n_bytes, rules[i], NULL) == TMX_OK);
            must(vocab_create(&vocabs[i], opened[i], NULL) == TMX_OK);
        }
        check_text(vocabs[i], (const char *)data, n_bytes, TMX_TOKEN_PLAIN, strcmp(rules[i], "qwen2") != 0);      /* that is NFC */
        check_text(vocabs[i], (const char *)data, n_bytes, TMX_TOKEN_SPECIAL | TMX_TOKEN_BOS, false);
    }
    return 0;
}
