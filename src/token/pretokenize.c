#include "token/pretokenize.h"

#include "base/mem.h"
#include "base/status.h"
#include "token/utf8.h"

#include <stdio.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Unicode's White_Space.  PCRE2's own \s also takes U+180E, which Unicode 6.3 withdrew. */
#define SPACES "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define SPACE "[" SPACES "]"
#define OTHER "[^" SPACES "\\p{L}\\p{N}]"
#define ENDINGS "'s|'t|'re|'ve|'m|'ll|'d"

/* Words that know upper from lower case: at most one stranger, capitals, small letters. */
#define STRANGER "[^\\r\\n\\p{L}\\p{N}]?"
#define CAPITALS "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define SMALLS "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define BLANKS SPACE "*[\\r\\n]+|" SPACE "+(?![^" SPACES "])|" SPACE "+"

/* deepseek-llm's letters: those of scripts that know case, as a list of ranges. */
#define CASED_LETTERS \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}" \
    "\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}" \
    "\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}" \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}" \
    "\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}" \
    "\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}" \
    "\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}" \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}" \
    "\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}" \
    "\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}" \
    "\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}" \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}" \
    "\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}" \
    "\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

static const word_rule rules[] = {
    { .name = "gpt-2",
      .patterns = { ENDINGS "| ?\\p{L}+| ?\\p{N}+| ?" OTHER "+|" SPACE "+(?![^" SPACES "])|" SPACE "+" } },
    /* Digits are cut out first and the rest goes through gpt-2's pattern piece by piece, so its look-ahead sees the
     * end of a piece where a digit follows.  That is one pattern here. */
    { .name = "smollm",
      .patterns = { "\\p{N}|" ENDINGS "| ?\\p{L}+| ?" OTHER "+|" SPACE "+(?![^" SPACES "\\p{N}])|" SPACE "+" } },
    { .name = "llama-bpe", .ignores_merges = true, .adds_bos = true,
      .patterns = { "(?i:" ENDINGS ")|" STRANGER "\\p{L}+|\\p{N}{1,3}| ?" OTHER "+[\\r\\n]*|" BLANKS } },
    { .name = "qwen2", .wants_nfc = true,
      .patterns = { "(?i:" ENDINGS ")|" STRANGER "\\p{L}+|\\p{N}| ?" OTHER "+[\\r\\n]*|" BLANKS } },
    { .name = "deepseek-r1-qwen",
      .patterns = { "(?i:" ENDINGS ")|" STRANGER "\\p{L}+|\\p{N}| ?" OTHER "+[\\r\\n]*|" BLANKS } },
    { .name = "tekken", .ignores_merges = true, .adds_bos = true,
      .patterns = { STRANGER CAPITALS "*" SMALLS "+|" STRANGER CAPITALS "+" SMALLS "*|\\p{N}| ?" OTHER "+[\\r\\n/]*|" BLANKS } },
    { .name = "gpt-4o",
      .patterns = { STRANGER CAPITALS "*" SMALLS "+(?i:" ENDINGS ")?|" STRANGER CAPITALS "+" SMALLS "*(?i:" ENDINGS ")?|"
                    "\\p{N}{1,3}| ?" OTHER "+[\\r\\n/]*|" BLANKS } },
    { .name = "default",
      .patterns = { "[\\p{P}$+<=>^~|]+",
                    ENDINGS "| ?\\p{L}+| ?\\p{N}+| ?" OTHER "+|" SPACE "+(?![^" SPACES "])", "\\p{N}+", "[0-9][0-9][0-9]" } },
    /* Its "spaces at the end" starts at the first of them: as \s+$ it would try every one of a long run. */
    { .name = "deepseek-llm",
      .patterns = { "[\\r\\n]", SPACE "?[" CASED_LETTERS "]+", SPACE "?[!-/:-~！-／：-～‘-‟\\x{3000}-。]+",
                    "(?<![" SPACES "])" SPACE "+\\z", "[一-龥\\x{800}-一가-\\x{d7ff}]+", "\\p{N}+" } },
    { .name = "deepseek-v3",
      .patterns = { "\\p{N}{1,3}", "[一-龥\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
                    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
                    " ?[\\p{P}\\p{S}]+[\\r\\n]*|" BLANKS } },
};

const word_rule *word_rule_find(const char *name, size_t n_bytes)
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if (strlen(rules[i].name) == n_bytes && memcmp(rules[i].name, name, n_bytes) == 0) return &rules[i];
    }
    return NULL;
}

const char *word_rule_names(char *buf, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < sizeof rules / sizeof rules[0] && n < size; i++) {
        n += (size_t)snprintf(buf + n, size - n, "%s%s", i > 0 ? ", " : "", rules[i].name);
    }
    return buf;
}

struct pretokenizer {
    pcre2_general_context *memory;
    pcre2_code *codes[MAX_STAGES];
    int n_stages;
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
    while (words->n_stages < MAX_STAGES && rule->patterns[words->n_stages] != NULL) words->n_stages++;
    /* Anchored if alone: some alternative takes any character, so a word starts where the last one ended. */
    const uint32_t flags = PCRE2_UTF | PCRE2_UCP | (words->n_stages == 1 ? PCRE2_ANCHORED : 0u);
    for (int i = 0; i < words->n_stages; i++) {
        int code;
        size_t offset;
        words->codes[i] = pcre2_compile((PCRE2_SPTR)rule->patterns[i], PCRE2_ZERO_TERMINATED, flags, &code, &offset, options);
        if (words->codes[i] == NULL) goto fail;
        if (use_jit) (void)pcre2_jit_compile(words->codes[i], PCRE2_JIT_COMPLETE);     /* refused: PCRE2 interprets */
    }
    pcre2_compile_context_free(options);
    *out = words;
    return TMX_OK;
fail:
    pcre2_compile_context_free(options);
    pretokenizer_free(words);
    return refuse(err, TMX_E_MEMORY, "pre-tokenizer '%s': no memory to compile its pattern", rule->name);
}

void pretokenizer_free(pretokenizer *words)
{
    if (words == NULL) return;
    for (int i = 0; i < words->n_stages; i++) pcre2_code_free(words->codes[i]);
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
    c->depth = -1;
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

/* The range of the first match of pattern i in [at, end) of the n-byte text; end, end if there is none. */
static tmx_status find_match(word_cursor *c, int i, const char *text, size_t at, size_t end, size_t *begin, size_t *match_end,
                             tmx_error *err)
{
    /* Not PCRE2_MATCH_INVALID_UTF: without JIT it would check the rest of the text again for every word. */
    const int n_groups = pcre2_match(c->words->codes[i], (PCRE2_SPTR)text, end, at, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY,
                                     c->match, c->context);
    *begin = *match_end = end;
    if (n_groups == PCRE2_ERROR_NOMATCH && c->words->n_stages > 1) return TMX_OK;
    if (n_groups < 0) {
        return refuse(err, TMX_E_MEMORY, "tokenize: PCRE2 gave up at byte %zu (error %d)", c->at, n_groups);
    }
    *begin = pcre2_get_ovector_pointer(c->match)[0];
    *match_end = pcre2_get_ovector_pointer(c->match)[1];
    return TMX_OK;
}

/* The end of the word that begins at c->at, with several patterns: the deepest stage with something left hands out its
 * next piece, to the stage below until there is none. */
static tmx_status next_of_stages(word_cursor *c, size_t *end, tmx_error *err)
{
    if (c->depth < 0) {
        c->depth = 0;
        c->stages[0] = (word_stage){ .begin = c->at, .end = c->valid_end, .at = c->at };
    }
    while (c->stages[c->depth].at == c->stages[c->depth].end) c->depth--;
    for (;;) {
        word_stage *stage = &c->stages[c->depth];
        if (stage->match_end <= stage->at) {
            TRY(find_match(c, c->depth, c->text + stage->begin, stage->at - stage->begin, stage->end - stage->begin,
                           &stage->match_begin, &stage->match_end, err));
            stage->match_begin += stage->begin;
            stage->match_end += stage->begin;
        }
        const size_t begin = stage->at;
        stage->at = begin < stage->match_begin ? stage->match_begin : stage->match_end;
        if (c->depth + 1 == c->words->n_stages) {
            *end = stage->at;
            return TMX_OK;
        }
        c->stages[++c->depth] = (word_stage){ .begin = begin, .end = stage->at, .at = begin };
    }
}

tmx_status word_cursor_next(word_cursor *c, const char **word, size_t *n_bytes, tmx_error *err)
{
    const unsigned char *text = (const unsigned char *)c->text;
    const size_t begin = c->at;
    *word = NULL;
    if (begin == c->n_bytes) return TMX_OK;
    if (begin == c->valid_end) {
        c->valid_end = end_of_valid(text, begin, c->n_bytes);
        c->depth = -1;
    }
    if (begin == c->valid_end) {
        c->at = c->valid_end = end_of_invalid(text, begin, c->n_bytes);
    } else if (c->words->n_stages == 1) {
        size_t match_begin;
        TRY(find_match(c, 0, c->text, begin, c->valid_end, &match_begin, &c->at, err));
    } else {
        TRY(next_of_stages(c, &c->at, err));
    }
    *word = c->text + begin;
    *n_bytes = c->at - begin;
    return TMX_OK;
}
