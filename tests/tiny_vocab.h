/* tiny_vocab.h - a byte-level vocabulary as a model file in memory, right or wrong, for tests and fuzzing of token/.
 * Ids 0..255 are the bytes; what is added follows in order. */
#ifndef TMX_TESTS_TINY_VOCAB_H
#define TMX_TESTS_TINY_VOCAB_H

#include "gguf_writer.h"

typedef struct tiny_vocab {
    const char *model, *pre, *chat_template;   /* NULL = key absent */
    bool has_no_tokens, has_no_merges;         /* key absent */
    gw_bytes tokens, merges, types;
    uint64_t n_tokens, n_merges, n_types;      /* what the file will claim */
    gguf_writer writer;            /* for more keys */
} tiny_vocab;

/* A byte in GPT-2's alphabet; out holds 3. */
static inline size_t tv_spell(unsigned byte, char *out)
{
    unsigned c = byte;
    if (byte < 0x21) c = 0x100 + byte;
    else if (byte >= 0x7f && byte <= 0xa0) c = 0x121 + byte - 0x7f;
    else if (byte == 0xad) c = 0x143;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

static inline void tv_token_n(tiny_vocab *t, const char *name, size_t n_bytes, int32_t type)
{
    gw_put_string_n(&t->tokens, name, n_bytes);
    gw_put_u32(&t->types, (uint32_t)type);
    t->n_tokens++;
    t->n_types++;
}

static inline void tv_token(tiny_vocab *t, const char *name, int32_t type) { tv_token_n(t, name, strlen(name), type); }

static inline void tv_merge(tiny_vocab *t, const char *text)
{
    gw_put_string(&t->merges, text);
    t->n_merges++;
}

/* A merge and the token it makes. */
static inline void tv_learn(tiny_vocab *t, const char *left, const char *right)
{
    char text[256];
    snprintf(text, sizeof text, "%s %s", left, right);
    tv_merge(t, text);
    snprintf(text, sizeof text, "%s%s", left, right);
    tv_token(t, text, 1);
}

static inline tiny_vocab tv_begin_without(const char *pre, const char *missing, size_t n_missing)
{
    tiny_vocab t = { .model = "gpt2", .pre = pre, .writer = gguf_writer_begin() };
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[3];
        const size_t n = tv_spell(byte, name);
        if (n_missing == 0 || memchr(missing, (int)byte, n_missing) == NULL) tv_token_n(&t, name, n, 1);
    }
    return t;
}

static inline tiny_vocab tv_begin(const char *pre) { return tv_begin_without(pre, NULL, 0); }

static inline gw_bytes tv_finish(tiny_vocab *t)
{
    gguf_writer *w = &t->writer;
    if (t->model != NULL) gw_key_string(w, "tokenizer.ggml.model", t->model);
    if (t->pre != NULL) gw_key_string(w, "tokenizer.ggml.pre", t->pre);
    if (t->chat_template != NULL) gw_key_string(w, "tokenizer.chat_template", t->chat_template);
    if (!t->has_no_tokens) gw_key_array(w, "tokenizer.ggml.tokens", 8, t->n_tokens, t->tokens.data, t->tokens.n_bytes);
    if (!t->has_no_merges) gw_key_array(w, "tokenizer.ggml.merges", 8, t->n_merges, t->merges.data, t->merges.n_bytes);
    if (t->n_types > 0) gw_key_array(w, "tokenizer.ggml.token_type", 5, t->n_types, t->types.data, t->types.n_bytes);
    gw_free(&t->tokens);
    gw_free(&t->merges);
    gw_free(&t->types);
    return gw_finish(w);
}

/* Merges and special tokens enough to meet every path. */
static inline tiny_vocab tv_begin_rich(const char *pre)
{
    static const char *const learned[][2] = {
        { "a", "a" }, { "aa", "aa" }, { "aaaa", "aaaa" }, { "a", "b" }, { "ab", "ab" }, { "t", "h" }, { "th", "e" },
        { "Ġ", "Ġ" }, { "ĠĠ", "ĠĠ" }, { "Ġ", "the" }, { "Ċ", "Ċ" }, { "!", "!" }, { "!!", "!!" }, { "1", "2" },
        { "Ì", "ģ" }, { "h", "e" }, { "he", "l" }, { "l", "o" }, { "hel", "lo" }, { "Ġ", "hello" },
    };
    tiny_vocab t = tv_begin(pre);
    for (size_t i = 0; i < sizeof learned / sizeof learned[0]; i++) tv_learn(&t, learned[i][0], learned[i][1]);
    tv_token(&t, "<|im_start|>", 3);
    tv_token(&t, "<|im_end|>", 3);
    tv_token(&t, "<|im_end|><|im_start|>", 3);
    tv_token(&t, "<user>", 4);
    tv_token(&t, "   ", 4);
    t.chat_template = "{{'<|im_start|>' + role + '<|im_end|>'}}";
    gw_key_u32(&t.writer, "tokenizer.ggml.eos_token_id", 'z');
    return t;
}

#endif
