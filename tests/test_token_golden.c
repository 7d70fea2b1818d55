/* rooms: token gguf base */
/* Replays token ids of independent tokenizers (scripts/make-token-goldens.py) on the vocabularies of real models. */
#include "base/sha256.h"
#include "token/nfc.h"
#include "token/spm.h"
#include "token/token.h"
#include "gguf_writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { MAX_IDS = 4096, N_RULES = 9, N_LONG = 1 << 20, MAX_TEXTS = 512 };
static const char *const rules[N_RULES] = {
    "smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "default", "deepseek-llm", "deepseek-v3",
};

typedef struct goldens {
    tmx_file *model, *gemma;       /* NULL if the file is absent */
    gw_bytes written[N_RULES];
    tmx_file *files[N_RULES];
    vocab *vocabs[N_RULES], *spm;
} goldens;

typedef struct golden_text { char *bytes; size_t n_bytes; } golden_text;

/* All texts of a file so far, for the long one. */
static golden_text texts[MAX_TEXTS];
static size_t n_texts;

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

static tmx_file *open_model(const char *path)
{
    tmx_file *file = NULL;
    tmx_error err;
    if (tmx_file_open(&file, path, &err) != TMX_OK) printf("# skipped: %s (scripts/fetch-models.sh --all)\n", err.text);
    return file;
}

static int set_up(void **state)
{
    static goldens g;
    *state = &g;
    g.model = open_model(TMX_SOURCE_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    g.gemma = open_model(TMX_SOURCE_DIR "/models/gemma-3-270m-q4_k_m.gguf");
    for (int i = 0; i < N_RULES && g.model != NULL; i++) open_as(&g, i);
    if (g.gemma != NULL) assert_int_equal(vocab_create(&g.spm, g.gemma, NULL), TMX_OK);
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
    vocab_free(g->spm);
    tmx_file_close(g->model);
    tmx_file_close(g->gemma);
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

static void check(const vocab *v, const char *what, const char *text, const int32_t *ids, size_t n, const int32_t *expected,
                  size_t n_expected)
{
    if (n == n_expected && memcmp(ids, expected, n * sizeof *ids) == 0) return;
    size_t i = 0;
    while (i < n && i < n_expected && ids[i] == expected[i]) i++;
    fail_msg("%s '%s': id %zu is %d '%s', expected %d '%s' (%zu and %zu ids)", what, text, i, i < n ? ids[i] : -1,
             i < n ? vocab_token_name(v, ids[i]) : "", i < n_expected ? expected[i] : -1,
             i < n_expected ? vocab_token_name(v, expected[i]) : "", n, n_expected);
}

/* The ids' bytes, one behind the other, are the text. */
static void check_bytes(const vocab *v, const char *bytes, size_t n_bytes, const int32_t *ids, size_t n_ids)
{
    size_t at = 0, n = 0;
    for (size_t i = 0; i < n_ids; i++, at += n) {
        const char *token = vocab_token_bytes(v, ids[i], &n);
        if (n > n_bytes - at || memcmp(bytes + at, token, n) != 0) fail_msg("id %zu of %zu breaks the text at byte %zu", i, n_ids, at);
    }
    assert_int_equal(at, n_bytes);
}

/* The same; qwen2's are the text in NFC. */
static void check_round_trip(const vocab *v, const char *what, const char *bytes, size_t n_bytes, const int32_t *ids, size_t n_ids)
{
    nfc_text t = { 0 };
    if (strcmp(what, "qwen2") == 0) {
        assert_int_equal(nfc_normalize(&t, bytes, n_bytes, NULL), TMX_OK);
        check_bytes(v, t.bytes, t.n_bytes, ids, n_ids);
        nfc_free(&t);
    } else {
        check_bytes(v, bytes, n_bytes, ids, n_ids);
    }
}

/* A megabyte of the file's texts, a line each, by the generator of the script; "count hash" as it was there. */
static void check_long(const vocab *v, const char *what, const char *numbers)
{
    uint64_t state = 1;
    char *bytes = malloc(N_LONG + (1 << 16)), found[96], hex[65];
    int32_t *ids = malloc((N_LONG + (1 << 16)) * sizeof *ids);
    size_t n_bytes = 0, n_ids = 0;
    assert_true(bytes != NULL && ids != NULL);
    while (n_bytes < N_LONG) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const golden_text *t = &texts[(state >> 33) % n_texts];
        memcpy(bytes + n_bytes, t->bytes, t->n_bytes);
        n_bytes += t->n_bytes;
        bytes[n_bytes++] = '\n';
    }
    assert_int_equal(vocab_tokenize(v, bytes, n_bytes, TMX_TOKEN_PLAIN, ids, N_LONG + (1 << 16), &n_ids, NULL), TMX_OK);
    if (strcmp(what, "spm") == 0) n_bytes = spm_plain_spaces(bytes, n_bytes, bytes);    /* U+2581 comes back as a space */
    check_round_trip(v, what, bytes, n_bytes, ids, n_ids);
    sha256 hash;
    sha256_init(&hash);
    sha256_add(&hash, ids, n_ids * sizeof *ids);
    sha256_hex(&hash, hex);
    snprintf(found, sizeof found, "%zu %s", n_ids, hex);
    if (strncmp(found, numbers, strlen(found)) != 0) fail_msg("%s, 1 MB: %s, expected %s", what, found, numbers);
    free(bytes);
    free(ids);
}

static const vocab *vocab_named(const goldens *g, const char *name)
{
    for (int i = 0; i < N_RULES; i++) {
        if (strcmp(name, rules[i]) == 0) return g->vocabs[i];
    }
    return strcmp(name, "spm") == 0 ? g->spm : g->vocabs[0];
}

static void read_text(char *line)
{
    assert_true(n_texts < MAX_TEXTS);
    golden_text *t = &texts[n_texts++];
    t->bytes = malloc(strlen(line));
    assert_non_null(t->bytes);
    strcpy(t->bytes, line + 2);
    unescape(t->bytes, &t->n_bytes);
}

static void check_file(const goldens *g, const char *path, int n_least)
{
    static char line[1 << 16], chat_text[1 << 16];
    static int32_t ids[MAX_IDS], written[N_RULES + 1][MAX_IDS];
    static size_t n_written[N_RULES + 1];
    size_t n_ids = 0;
    int n_checked = 0;
    char *parts[3] = { NULL, NULL, NULL };
    FILE *lines = fopen(path, "r");
    assert_non_null(lines);
    while (fgets(line, sizeof line, lines) != NULL) {
        if (line[0] == 'T') {
            read_text(line);
            continue;
        }
        if (line[0] == 'C') {
            strcpy(chat_text, line + 2);
            char *at = chat_text;
            for (int i = 0; i < 3; i++) {
                size_t n;
                parts[i] = at;
                at = unescape(at, &n);
                if (strcmp(parts[i], "-") == 0) parts[i] = NULL;
            }
            continue;
        }
        line[strcspn(line, "\n")] = '\0';
        const bool is_long = strncmp(line, "M ", 2) == 0;
        char *name = is_long ? line + 2 : line, *numbers = strchr(name, ' ');
        if (numbers != NULL) *numbers++ = '\0';
        const vocab *v = vocab_named(g, name);
        n_checked++;
        if (is_long) {
            check_long(v, name, numbers);
            continue;
        }
        int own = N_RULES, other = -1;
        for (int i = 0; i < N_RULES; i++) {
            if (strcmp(name, rules[i]) == 0) own = i;
            if (numbers != NULL && numbers[0] == '=' && strcmp(numbers + 2, rules[i]) == 0) other = i;
        }
        if (other >= 0) {
            memcpy(written[own], written[other], n_written[other] * sizeof *ids);
            n_written[own] = n_written[other];
        } else {
            n_written[own] = read_ids(numbers != NULL ? numbers : "", written[own]);
        }
        const golden_text *t = n_texts > 0 ? &texts[n_texts - 1] : NULL;
        if (strcmp(name, "chat") == 0) {
            const tmx_chat chat = { .system = parts[0], .user = parts[1], .assistant = parts[2] };
            assert_int_equal(vocab_chat_tokenize(v, &chat, ids, MAX_IDS, &n_ids, NULL), TMX_OK);
            check(v, name, parts[1], ids, n_ids, written[own], n_written[own]);
            continue;
        }
        const bool is_special = strcmp(name, "special") == 0;
        assert_int_equal(vocab_tokenize(v, t->bytes, t->n_bytes, is_special ? TMX_TOKEN_SPECIAL : TMX_TOKEN_PLAIN, ids, MAX_IDS,
                                        &n_ids, NULL), TMX_OK);
        assert_true(n_ids <= MAX_IDS);
        check(v, name, t->bytes, ids, n_ids, written[own], n_written[own]);
        if (!is_special && strstr(t->bytes, "\xe2\x96\x81") == NULL) check_round_trip(v, name, t->bytes, t->n_bytes, ids, n_ids);
    }
    fclose(lines);
    while (n_texts > 0) free(texts[--n_texts].bytes);
    printf("# %d id lists compared\n", n_checked);
    assert_true(n_checked > n_least);
}

static void ids_equal_the_goldens(void **state)
{
    const goldens *g = *state;
    if (g->model == NULL) skip();
    check_file(g, TMX_SOURCE_DIR "/tests/vectors/token_goldens.txt", 2400);
}

static void ids_equal_sentencepiece(void **state)
{
    const goldens *g = *state;
    if (g->gemma == NULL) skip();
    check_file(g, TMX_SOURCE_DIR "/tests/vectors/token_goldens_gemma.txt", 250);
}

/* 10 MB of one character, of pairs that tie, and of what no token covers. */
static void sentencepiece_takes_ten_megabytes(void **state)
{
    const goldens *g = *state;
    if (g->gemma == NULL) skip();
    enum { N = 10 << 20 };
    static const char *const units[] = { "a", " ", "\n", "!", "ab", "\xcc\x81", "\xf0\x9f\x91\xa9\xe2\x80\x8d", "\xff" };
    char *bytes = malloc(N);
    int32_t *ids = malloc(N * sizeof *ids);
    assert_true(bytes != NULL && ids != NULL);
    for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
        size_t n_ids = 0, n = 0;
        for (const size_t n_unit = strlen(units[u]); n + n_unit <= N; n += n_unit) memcpy(bytes + n, units[u], n_unit);
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        assert_int_equal(vocab_tokenize(g->spm, bytes, n, TMX_TOKEN_PLAIN, ids, N, &n_ids, NULL), TMX_OK);
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("# %zu: %.1f s, %zu ids\n", u, (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec), n_ids);
        check_bytes(g->spm, bytes, n, ids, n_ids);
    }
    free(bytes);
    free(ids);
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
        cmocka_unit_test(ids_equal_sentencepiece),
        cmocka_unit_test(sentencepiece_takes_ten_megabytes),
        cmocka_unit_test(every_token_of_the_model_is_consistent),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
