/* rooms: token gguf base */
/* Replays token ids of an independent tokenizer (scripts/make-token-goldens.py) on the demo model's vocabulary. */
#include "token/token.h"
#include "gguf_writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_IDS = 4096, N_RULES = 3 };
static const char *const rules[N_RULES] = { "smollm", "gpt-2", "llama-bpe" };

typedef struct goldens {
    tmx_file *model;
    gw_bytes written[N_RULES];
    tmx_file *files[N_RULES];
    vocab *vocabs[N_RULES];
    FILE *lines;
} goldens;

/* The model's vocabulary under another pre-tokenizer. */
static void open_as(goldens *g, int i)
{
    static const char *const arrays[] = { "tokenizer.ggml.tokens", "tokenizer.ggml.merges" };
    static const char types[] = "tokenizer.ggml.token_type";
    gguf_writer w = gguf_writer_begin();
    gguf_array array;
    gw_key_string(&w, "tokenizer.ggml.model", "gpt2");
    gw_key_string(&w, "tokenizer.ggml.pre", rules[i]);
    gw_key_string(&w, "tokenizer.chat_template", "<|im_start|> <|im_end|>");
    for (int k = 0; k < 2; k++) {
        assert_int_equal(gguf_get_array(g->model, arrays[k], GGUF_STRING, &array, NULL), TMX_OK);
        gw_key_array(&w, arrays[k], GGUF_STRING, array.n, NULL, 0);
        for (uint64_t j = 0; j < array.n; j++) {
            gw_put_string_n(&w.keys, array.strings[j].data, array.strings[j].n_bytes);
        }
    }
    assert_int_equal(gguf_get_array(g->model, types, GGUF_I32, &array, NULL), TMX_OK);
    gw_key_array(&w, types, GGUF_I32, array.n, array.data, array.n * sizeof(int32_t));
    g->written[i] = gw_finish(&w);
    assert_int_equal(gguf_open_memory(&g->files[i], g->written[i].data, g->written[i].n_bytes, rules[i], NULL), TMX_OK);
    assert_int_equal(vocab_create(&g->vocabs[i], g->files[i], NULL), TMX_OK);
}

static int set_up(void **state)
{
    static goldens g;
    *state = &g;
    const char *path = TMX_SOURCE_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
    FILE *f = fopen(path, "rb");
    if (f == NULL) {
        printf("skipped: %s is absent\n", path);
        return 0;
    }
    fclose(f);
    assert_int_equal(tmx_file_open(&g.model, path, NULL), TMX_OK);
    for (int i = 0; i < N_RULES; i++) open_as(&g, i);
    g.lines = fopen(TMX_SOURCE_DIR "/tests/vectors/token_goldens.txt", "r");
    assert_non_null(g.lines);
    return 0;
}

static int tear_down(void **state)
{
    goldens *g = *state;
    for (int i = 0; i < N_RULES; i++) {
        vocab_free(g->vocabs[i]);
        tmx_file_close(g->files[i]);
        gw_free(&g->written[i]);
    }
    tmx_file_close(g->model);
    if (g->lines != NULL) fclose(g->lines);
    return 0;
}

/* Undoes \xNN in place; ends at a newline or a bar, which it skips. */
static char *unescape(char *at, size_t *n_bytes)
{
    char *out = at, *begin = at;
    for (; *at != '\n' && *at != '|' && *at != '\0'; out++) {
        unsigned byte;
        if (at[0] == '\\' && sscanf(at, "\\x%2x", &byte) == 1) {
            *out = (char)byte;
            at += 4;
        } else {
            *out = *at++;
        }
    }
    *n_bytes = (size_t)(out - begin);
    char *next = *at == '\0' ? at : at + 1;
    *out = '\0';
    return next;
}

static size_t read_ids(const char *line, int32_t *ids)
{
    size_t n = 0;
    for (char *end; n < MAX_IDS; line = end) {
        const long id = strtol(line, &end, 10);
        if (end == line) break;
        ids[n++] = (int32_t)id;
    }
    return n;
}

static void check(const vocab *v, const char *what, const char *text, const int32_t *ids, size_t n, const char *line)
{
    static int32_t expected[MAX_IDS];
    const size_t n_expected = read_ids(line, expected);
    if (n == n_expected && memcmp(ids, expected, n * sizeof *ids) == 0) return;
    size_t i = 0;
    while (i < n && i < n_expected && ids[i] == expected[i]) i++;
    fail_msg("%s '%s': id %zu is %d '%s', expected %d '%s' (%zu and %zu ids)", what, text, i, i < n ? ids[i] : -1,
             i < n ? vocab_token_name(v, ids[i]) : "", i < n_expected ? expected[i] : -1,
             i < n_expected ? vocab_token_name(v, expected[i]) : "", n, n_expected);
}

static void ids_equal_the_goldens(void **state)
{
    goldens *g = *state;
    if (g->model == NULL) skip();
    static char line[1 << 16], text[1 << 16];
    static int32_t ids[MAX_IDS];
    size_t n_text = 0, n_ids = 0;
    int n_checked = 0;
    char *parts[3] = { NULL, NULL, NULL };
    while (fgets(line, sizeof line, g->lines) != NULL) {
        if (line[0] == 'T') {
            strcpy(text, line + 2);
            unescape(text, &n_text);
            continue;
        }
        if (line[0] == 'C') {
            strcpy(text, line + 2);
            char *at = text;
            for (int i = 0; i < 3; i++) {
                parts[i] = at;
                at = unescape(at, &n_text);
                if (strcmp(parts[i], "-") == 0) parts[i] = NULL;
            }
            continue;
        }
        char *numbers = strchr(line, ' ');
        if (numbers != NULL) *numbers++ = '\0';
        else line[strcspn(line, "\n")] = '\0';
        const vocab *v = g->vocabs[0];
        if (strcmp(line, "chat") == 0) {
            const tmx_chat chat = { .system = parts[0], .user = parts[1], .assistant = parts[2] };
            assert_int_equal(vocab_chat_tokenize(v, &chat, ids, MAX_IDS, &n_ids, NULL), TMX_OK);
        } else {
            const uint32_t flags = strcmp(line, "special") == 0 ? TMX_TOKEN_SPECIAL : TMX_TOKEN_PLAIN;
            for (int i = 0; i < N_RULES; i++) {
                if (strcmp(line, rules[i]) == 0) v = g->vocabs[i];
            }
            assert_int_equal(vocab_tokenize(v, text, n_text, flags, ids, MAX_IDS, &n_ids, NULL), TMX_OK);
        }
        assert_true(n_ids <= MAX_IDS);
        check(v, line, text, ids, n_ids, numbers != NULL ? numbers : "");
        n_checked++;
    }
    printf("%d id lists compared\n", n_checked);
    assert_true(n_checked > 800);
}

static void every_token_of_the_model_is_consistent(void **state)
{
    goldens *g = *state;
    if (g->model == NULL) skip();
    const vocab *v = g->vocabs[0];
    assert_int_equal(vocab_n_tokens(v), 49152);
    assert_string_equal(vocab_chat_format(v), "chatml");
    int n_without_bytes = 0;
    for (int32_t id = 0; id < vocab_n_tokens(v); id++) {
        size_t n_bytes = 0, n_ids = 0;
        int32_t again = -1;
        const char *bytes = vocab_token_bytes(v, id, &n_bytes), *name = vocab_token_name(v, id);
        assert_non_null(bytes);
        n_without_bytes += n_bytes == 0;
        assert_int_equal(vocab_tokenize(v, name, strlen(name), TMX_TOKEN_SPECIAL, &again, 1, &n_ids, NULL), TMX_OK);
        if (n_bytes == 0) assert_true(n_ids == 1 && again == id);
        assert_int_equal(vocab_is_end(v, id), id == 0 || id == 2);
    }
    assert_int_equal(n_without_bytes, 17);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_equal_the_goldens),
        cmocka_unit_test(every_token_of_the_model_is_consistent),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
