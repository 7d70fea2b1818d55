/* rooms: token gguf base */
/* Input that starts with "GGUF" is a model file: its vocabulary must be refused or work.  Any other input is text: it
 * must survive encoding and decoding under every pre-tokenizer. */
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
        (void)vocab_chat_tokenize(v, &(tmx_chat){ .system = "s", .user = text }, NULL, 0, &n, NULL);
        vocab_free(v);
    }
    tmx_file_close(file);
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
    if (n_bytes >= 4 && memcmp(data, "GGUF", 4) == 0) {
        check_file(data, n_bytes);
        return 0;
    }
    for (int i = 0; i < N_RULES; i++) {
        if (vocabs[i] == NULL) {
            tiny_vocab t = tv_begin_rich(rules[i]);
            files[i] = tv_finish(&t);
            must(gguf_open_memory(&opened[i], files[i].data, files[i].n_bytes, rules[i], NULL) == TMX_OK);
            must(vocab_create(&vocabs[i], opened[i], NULL) == TMX_OK);
        }
        check_text(vocabs[i], (const char *)data, n_bytes, TMX_TOKEN_PLAIN, true);
        check_text(vocabs[i], (const char *)data, n_bytes, TMX_TOKEN_SPECIAL | TMX_TOKEN_BOS, false);
    }
    return 0;
}
