#include "token/pretokenize.h"

#include "base/mem.h"
#include "base/status.h"
#include "token/utf8.h"

#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Unicode's White_Space.  PCRE2's own \s also takes U+180E, which Unicode 6.3 withdrew. */
#define SPACES "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define SPACE "[" SPACES "]"
#define OTHER "[^" SPACES "\\p{L}\\p{N}]"
#define ENDINGS "'s|'t|'re|'ve|'m|'ll|'d"

static const word_rule rules[] = {
    { .name = "gpt-2",
      .pattern = ENDINGS "| ?\\p{L}+| ?\\p{N}+| ?" OTHER "+|" SPACE "+(?![^" SPACES "])|" SPACE "+" },
    /* Digits are cut out first and the rest goes through gpt-2's pattern piece by piece, so its look-ahead sees the
     * end of a piece where a digit follows.  That is one pattern here. */
    { .name = "smollm",
      .pattern = "\\p{N}|" ENDINGS "| ?\\p{L}+| ?" OTHER "+|" SPACE "+(?![^" SPACES "\\p{N}])|" SPACE "+" },
    { .name = "llama-bpe", .ignores_merges = true, .adds_bos = true,
      .pattern = "(?i:" ENDINGS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?" OTHER "+[\\r\\n]*|" SPACE "*[\\r\\n]+|"
                 SPACE "+(?![^" SPACES "])|" SPACE "+" },
};

const word_rule *word_rule_find(const char *name, size_t n_bytes)
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if (strlen(rules[i].name) == n_bytes && memcmp(rules[i].name, name, n_bytes) == 0) return &rules[i];
    }
    return NULL;
}

struct pretokenizer {
    pcre2_general_context *memory;
    pcre2_code *code;
};

static void *pcre2_take(size_t n_bytes, void *ctx)
{
    (void)ctx;
    return mem_alloc(n_bytes, 1);
}

static void pcre2_give(void *block, void *ctx)
{
    (void)ctx;
    mem_free(block);
}

tmx_status pretokenizer_create(pretokenizer **out, const word_rule *rule, bool use_jit, tmx_error *err)
{
    pretokenizer *words = mem_alloc(1, sizeof *words);
    pcre2_compile_context *options = NULL;
    if (words == NULL) goto fail;
    words->memory = pcre2_general_context_create(pcre2_take, pcre2_give, NULL);
    if (words->memory == NULL) goto fail;
    options = pcre2_compile_context_create(words->memory);
    if (options == NULL) goto fail;
    int code;
    size_t offset;
    /* Anchored: some alternative takes any character, so a word starts where the last one ended. */
    words->code = pcre2_compile((PCRE2_SPTR)rule->pattern, PCRE2_ZERO_TERMINATED,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &code, &offset, options);
    pcre2_compile_context_free(options);
    options = NULL;
    if (words->code == NULL) goto fail;
    if (use_jit) (void)pcre2_jit_compile(words->code, PCRE2_JIT_COMPLETE);     /* refused: PCRE2 interprets */
    *out = words;
    return TMX_OK;
fail:
    pretokenizer_free(words);
    return refuse(err, TMX_E_MEMORY, "pre-tokenizer '%s': no memory to compile its pattern", rule->name);
}

void pretokenizer_free(pretokenizer *words)
{
    if (words == NULL) return;
    pcre2_code_free(words->code);
    pcre2_general_context_free(words->memory);
    mem_free(words);
}

tmx_status word_cursor_open(word_cursor *c, const pretokenizer *words, tmx_error *err)
{
    c->words = words;
    c->match = pcre2_match_data_create(1, words->memory);
    c->context = pcre2_match_context_create(words->memory);
    if (c->match == NULL || c->context == NULL) return refuse(err, TMX_E_MEMORY, "tokenize: out of memory");
    return TMX_OK;
}

void word_cursor_close(word_cursor *c)
{
    pcre2_match_data_free(c->match);
    pcre2_match_context_free(c->context);
    *c = (word_cursor){ 0 };
}

void word_cursor_set(word_cursor *c, const char *text, size_t n_bytes)
{
    /* The patterns backtrack over one run of spaces at most, so matching is linear; the limits state that. */
    const uint64_t n_steps = 1000 + 8 * (uint64_t)n_bytes;
    pcre2_set_match_limit(c->context, n_steps > UINT32_MAX ? UINT32_MAX : (uint32_t)n_steps);
    pcre2_set_heap_limit(c->context, 1024);    /* KiB */
    c->text = text;
    c->n_bytes = n_bytes;
    c->at = c->valid_end = 0;
}

static size_t end_of_valid(const unsigned char *text, size_t at, size_t n_bytes)
{
    while (at < n_bytes) {
        const int length = utf8_length(text + at, n_bytes - at);
        if (length <= 0) break;
        at += (size_t)length;
    }
    return at;
}

static size_t end_of_invalid(const unsigned char *text, size_t at, size_t n_bytes)
{
    while (at < n_bytes && utf8_length(text + at, n_bytes - at) <= 0) at++;
    return at;
}

tmx_status word_cursor_next(word_cursor *c, const char **word, size_t *n_bytes, tmx_error *err)
{
    const unsigned char *text = (const unsigned char *)c->text;
    const size_t begin = c->at;
    *word = NULL;
    if (begin == c->n_bytes) return TMX_OK;
    if (begin == c->valid_end) c->valid_end = end_of_valid(text, begin, c->n_bytes);
    if (begin == c->valid_end) {
        c->at = c->valid_end = end_of_invalid(text, begin, c->n_bytes);
    } else {
        /* Not PCRE2_MATCH_INVALID_UTF: without JIT it would check the rest of the text again for every word. */
        const int n_groups = pcre2_match(c->words->code, text, c->valid_end, begin, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY,
                                         c->match, c->context);
        if (n_groups < 0) {
            return refuse(err, TMX_E_MEMORY, "tokenize: PCRE2 gave up at byte %zu (error %d)", begin, n_groups);
        }
        c->at = pcre2_get_ovector_pointer(c->match)[1];
    }
    *word = c->text + begin;
    *n_bytes = c->at - begin;
    return TMX_OK;
}
