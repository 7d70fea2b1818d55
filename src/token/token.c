#include "token/token.h"

#include "base/mem.h"
#include "base/status.h"
#include "token/chat.h"
#include "token/utf8.h"

#include <math.h>
#include <string.h>

enum { MAX_TOKENS = 1 << 24 };

/* Names whose meaning is fixed.  Converters have written some of these as normal or user-defined tokens; here they are
 * control tokens in any case, or a user's text could end a turn. */
static const struct { const char *name; bool is_end; } known_controls[] = {
    { "<|endoftext|>", true }, { "<|im_start|>", false }, { "<|im_end|>", true },
    { "<|begin_of_text|>", false }, { "<|end_of_text|>", true }, { "<|start_header_id|>", false },
    { "<|end_header_id|>", false }, { "<|eot_id|>", true }, { "<|eom_id|>", true }, { "<|im_sep|>", false },
    { "<start_of_turn>", false }, { "<end_of_turn>", true }, { "<|system|>", false }, { "<|user|>", false },
    { "<|assistant|>", false }, { "<|end|>", true }, { "[INST]", false }, { "[/INST]", false },
};

static const char key_model[] = "tokenizer.ggml.model", key_pre[] = "tokenizer.ggml.pre";
static const char key_tokens[] = "tokenizer.ggml.tokens", key_types[] = "tokenizer.ggml.token_type";
static const char key_scores[] = "tokenizer.ggml.scores", key_merges[] = "tokenizer.ggml.merges";

/* ---------------------------------------------------------------- creation */

static int shown(gguf_string s) { return (int)(s.n_bytes < 60 ? s.n_bytes : 60); }

static bool equals(const char *bytes, size_t n_bytes, const char *text)
{
    return n_bytes == strlen(text) && memcmp(bytes, text, n_bytes) == 0;
}

static tmx_status find_model(const tmx_file *file, bool *is_spm, tmx_error *err)
{
    gguf_string model;
    TRY(gguf_get_string(file, key_model, &model, err));
    *is_spm = equals(model.data, model.n_bytes, "llama");
    if (*is_spm || equals(model.data, model.n_bytes, "gpt2")) return TMX_OK;
    return refuse(err, TMX_E_UNSUPPORTED, "%s: '%.*s' is not supported, expected 'gpt2' (byte-level BPE) or 'llama' "
                  "(SentencePiece)", key_model, shown(model), model.data);
}

static tmx_status find_rule(const tmx_file *file, const word_rule **rule, tmx_error *err)
{
    gguf_string pre;
    char names[160];
    if (!gguf_has(file, key_pre)) {
        return refuse(err, TMX_E_FORMAT, "%s: missing, and guessing how text is split would change tokens silently; "
                      "convert the model again with a current converter", key_pre);
    }
    TRY(gguf_get_string(file, key_pre, &pre, err));
    *rule = word_rule_find(pre.data, pre.n_bytes);
    if (*rule == NULL) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: '%.*s' is not supported, expected one of %s", key_pre,
                      shown(pre), pre.data, word_rule_names(names, sizeof names));
    }
    return TMX_OK;
}

static tmx_status get_parallel(const tmx_file *file, const char *key, gguf_value_type type, uint64_t n_tokens,
                               gguf_array *array, tmx_error *err)
{
    *array = (gguf_array){ 0 };
    if (!gguf_has(file, key)) return TMX_OK;
    TRY(gguf_get_array(file, key, type, array, err));
    if (array->n == n_tokens) return TMX_OK;
    return refuse(err, TMX_E_FORMAT, "%s: %llu entries, expected %llu (as many as %s)", key,
                  (unsigned long long)array->n, (unsigned long long)n_tokens, key_tokens);
}

static bool is_printable_ascii(const char *s, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (s[i] < 0x21 || s[i] > 0x7e) return false;
    }
    return true;
}

/* token->name, n_name and type are set; `bytes` has room for n_name more. */
static void set_control(vocab_token *token)
{
    for (size_t i = 0; i < sizeof known_controls / sizeof known_controls[0]; i++) {
        if (!equals(token->name, (size_t)token->n_name, known_controls[i].name)) continue;
        token->type = TOKEN_CONTROL;
        token->is_end = known_controls[i].is_end;
    }
}

static void set_bytes(vocab_token *token, char *bytes)
{
    token->bytes = bytes;
    size_t n_bytes = 0;
    if (token->type == TOKEN_CONTROL || token->type == TOKEN_UNKNOWN) return;
    if (token->type != TOKEN_USER && bpe_decode_spelling(token->name, (size_t)token->n_name, bytes, &n_bytes)) {
        token->n_bytes = (int32_t)n_bytes;
        token->is_text = n_bytes > 0;
        return;
    }
    /* User-defined tokens are not spelled in GPT-2's alphabet; neither is one that fails to decode. */
    token->bytes = token->name;
    token->n_bytes = token->n_name;
    token->is_text = token->n_name > 0 && is_printable_ascii(token->name, token->n_name);
}

/* As set_bytes.  False: a byte token whose name is not <0xNN>. */
static bool set_bytes_spm(vocab_token *token, char *bytes)
{
    token->bytes = bytes;
    if (token->type == TOKEN_CONTROL || token->type == TOKEN_UNKNOWN) return true;
    if (token->type == TOKEN_BYTE) {
        const int byte = spm_byte_of(token->name, (size_t)token->n_name);
        bytes[0] = (char)byte;
        token->n_bytes = 1;
        return byte >= 0;
    }
    token->n_bytes = (int32_t)spm_plain_spaces(token->name, (size_t)token->n_name, bytes);
    token->is_text = token->type == TOKEN_NORMAL && token->n_bytes > 0;
    return true;
}

static tmx_status read_tokens(vocab *v, const tmx_file *file, bool is_spm, tmx_error *err)
{
    gguf_array names, types, scores;
    TRY(gguf_get_array(file, key_tokens, GGUF_STRING, &names, err));
    if (names.n == 0 || names.n > MAX_TOKENS) {
        return refuse(err, TMX_E_FORMAT, "%s: %llu entries, expected 1..%d", key_tokens, (unsigned long long)names.n,
                      MAX_TOKENS);
    }
    TRY(get_parallel(file, key_types, GGUF_I32, names.n, &types, err));
    TRY(get_parallel(file, key_scores, GGUF_F32, names.n, &scores, err));
    uint64_t n_arena = 0;
    for (uint64_t i = 0; i < names.n; i++) {
        const size_t n = names.strings[i].n_bytes;
        if (n >= INT32_MAX || !add_ok(n_arena, 2 * (uint64_t)n + 1, &n_arena)) {
            return refuse(err, TMX_E_FORMAT, "%s[%llu]: %zu bytes, expected less than 2^31", key_tokens,
                          (unsigned long long)i, n);
        }
    }
    v->tokens = mem_alloc((size_t)names.n, sizeof *v->tokens);
    v->arena = mem_alloc((size_t)n_arena, 1);
    if (v->tokens == NULL || v->arena == NULL) {
        return refuse(err, TMX_E_MEMORY, "vocabulary: no memory for %llu tokens", (unsigned long long)names.n);
    }
    v->n_tokens = (int32_t)names.n;
    char *arena = v->arena;
    for (uint64_t i = 0; i < names.n; i++) {
        const gguf_string name = names.strings[i];
        const int32_t type = types.n > 0 ? gguf_array_i32(&types, i) : TOKEN_NORMAL;
        if (type < TOKEN_NORMAL || type > TOKEN_BYTE) {
            return refuse(err, TMX_E_FORMAT, "%s[%llu]: %d, expected %d..%d", key_types, (unsigned long long)i, type,
                          TOKEN_NORMAL, TOKEN_BYTE);
        }
        if (name.n_bytes > 0) memcpy(arena, name.data, name.n_bytes);
        v->tokens[i] = (vocab_token){ .name = arena, .n_name = (int32_t)name.n_bytes, .type = (uint8_t)type };
        vocab_token *token = &v->tokens[i];
        set_control(token);
        if (!is_spm) {
            set_bytes(token, arena + name.n_bytes + 1);
        } else if (!set_bytes_spm(token, arena + name.n_bytes + 1)) {
            return refuse(err, TMX_E_FORMAT, "%s[%llu]: '%.*s' is a byte token, expected <0x00> to <0xFF>", key_tokens,
                          (unsigned long long)i, shown(name), name.data);
        }
        if (scores.n > 0) token->score = gguf_array_f32(&scores, i);
        if (isnan(token->score)) {
            return refuse(err, TMX_E_FORMAT, "%s[%llu]: NaN", key_scores, (unsigned long long)i);
        }
        arena += 2 * name.n_bytes + 1;
    }
    return TMX_OK;
}

static tmx_status read_id(const vocab *v, const tmx_file *file, const char *key, int32_t *id, tmx_error *err)
{
    *id = -1;
    if (!gguf_has(file, key)) return TMX_OK;
    uint32_t value;
    TRY(gguf_get_u32(file, key, &value, err));
    if (value >= (uint32_t)v->n_tokens) {
        return refuse(err, TMX_E_FORMAT, "%s: %u is out of range, the vocabulary has %d tokens", key, value,
                      v->n_tokens);
    }
    *id = (int32_t)value;
    return TMX_OK;
}

static tmx_status read_special_ids(vocab *v, const tmx_file *file, bool adds_bos, int32_t *unknown_id, tmx_error *err)
{
    static const char *const end_keys[] = { "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                            "tokenizer.ggml.eom_token_id" };
    static const char *const other_keys[] = { "tokenizer.ggml.padding_token_id", "tokenizer.ggml.seperator_token_id" };
    static const char key_bos[] = "tokenizer.ggml.bos_token_id", key_adds_bos[] = "tokenizer.ggml.add_bos_token";
    int32_t id;
    for (size_t i = 0; i < sizeof end_keys / sizeof end_keys[0]; i++) {
        TRY(read_id(v, file, end_keys[i], &id, err));
        if (id >= 0) v->tokens[id].is_end = true;
    }
    for (size_t i = 0; i < sizeof other_keys / sizeof other_keys[0]; i++) {
        TRY(read_id(v, file, other_keys[i], &id, err));        /* not used, but a wrong one means a broken file */
    }
    TRY(read_id(v, file, "tokenizer.ggml.unknown_token_id", unknown_id, err));
    TRY(read_id(v, file, key_bos, &v->bos_id, err));
    bool adds_eos;
    TRY(gguf_get_bool_or(file, "tokenizer.ggml.add_eos_token", false, &adds_eos, err));     /* only its type is checked */
    TRY(gguf_get_bool_or(file, key_adds_bos, adds_bos && v->bos_id >= 0, &v->adds_bos, err));
    if (!v->adds_bos || v->bos_id >= 0) return TMX_OK;
    return refuse(err, TMX_E_FORMAT, "%s: true, but %s is missing", key_adds_bos, key_bos);
}

static tmx_status fill_spm(vocab *v, const tmx_file *file, tmx_error *err)
{
    static const char key_map[] = "tokenizer.ggml.precompiled_charsmap";
    int32_t unknown_id;
    if (gguf_has(file, key_map)) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: tokenizers that rewrite characters are not supported", key_map);
    }
    if (!gguf_has(file, key_scores)) {
        return refuse(err, TMX_E_FORMAT, "%s: missing, and a SentencePiece vocabulary cannot be used without", key_scores);
    }
    TRY(gguf_get_bool_or(file, "tokenizer.ggml.add_space_prefix", true, &v->adds_space, err));
    TRY(gguf_get_bool_or(file, "tokenizer.ggml.remove_extra_whitespaces", false, &v->trims_spaces, err));
    TRY(read_tokens(v, file, true, err));
    TRY(read_special_ids(v, file, true, &unknown_id, err));
    return spm_create(&v->spm, v->tokens, v->n_tokens, unknown_id, err);
}

static tmx_status fill_bpe(vocab *v, const tmx_file *file, tmx_error *err)
{
    const word_rule *rule = NULL;
    gguf_array merges;
    int32_t unknown_id;
    TRY(find_rule(file, &rule, err));
    v->wants_nfc = rule->wants_nfc;
    TRY(read_tokens(v, file, false, err));
    TRY(read_special_ids(v, file, rule->adds_bos, &unknown_id, err));
    TRY(gguf_get_array(file, key_merges, GGUF_STRING, &merges, err));
    TRY(bpe_create(&v->merger, v->tokens, v->n_tokens, &merges, rule->ignores_merges, err));
    return pretokenizer_create(&v->words, rule, true, err);
}

static tmx_status fill(vocab *v, const tmx_file *file, tmx_error *err)
{
    bool is_spm;
    TRY(find_model(file, &is_spm, err));
    TRY(is_spm ? fill_spm(v, file, err) : fill_bpe(v, file, err));
    TRY(special_create(&v->specials, v->tokens, v->n_tokens, err));
    return chat_recognise(v, file, err);
}

tmx_status vocab_create(vocab **out, const tmx_file *file, tmx_error *err)
{
    vocab *v = mem_alloc(1, sizeof *v);
    if (v == NULL) return refuse(err, TMX_E_MEMORY, "vocabulary: out of memory");
    const tmx_status status = fill(v, file, err);
    if (status != TMX_OK) {
        vocab_free(v);
        return status;
    }
    *out = v;
    return TMX_OK;
}

void vocab_free(vocab *v)
{
    if (v == NULL) return;
    special_free(&v->specials);
    pretokenizer_free(v->words);
    bpe_free(v->merger);
    spm_free(v->spm);
    mem_free(v->arena);
    mem_free(v->tokens);
    mem_free(v);
}

/* ---------------------------------------------------------------- text -> ids */

tmx_status encoder_begin(encoder *e, const vocab *v, int32_t *ids, size_t cap, tmx_error *err)
{
    *e = (encoder){ .v = v, .sink = { .ids = ids, .cap = cap } };
    return v->spm != NULL ? TMX_OK : word_cursor_open(&e->cursor, v->words, err);
}

void encoder_end(encoder *e)
{
    word_cursor_close(&e->cursor);
    nfc_free(&e->nfc);
    bpe_scratch_free(&e->scratch);
    spm_scratch_free(&e->spm_scratch);
    mem_free(e->plain);
}

static tmx_status add_words(encoder *e, const char *text, size_t n_bytes, tmx_error *err)
{
    const char *word;
    size_t n_word;
    if (e->v->wants_nfc && !nfc_is_plain(text, n_bytes)) {
        TRY(nfc_normalize(&e->nfc, text, n_bytes, err));
        text = e->nfc.bytes;
        n_bytes = e->nfc.n_bytes;
        if (n_bytes > INT32_MAX) return refuse(err, TMX_E_ARG, "tokenize: %zu bytes in NFC, expected at most 2^31 - 1", n_bytes);
    }
    word_cursor_set(&e->cursor, text, n_bytes);
    for (;;) {
        TRY(word_cursor_next(&e->cursor, &word, &n_word, err));
        if (word == NULL) return TMX_OK;
        TRY(bpe_encode(e->v->merger, &e->scratch, word, n_word, &e->sink, err));
    }
}

void encoder_add_control(encoder *e, int32_t id)
{
    sink_push(&e->sink, id);
    e->is_inside = false;
}

/* The text as its tokens spell it, in e->plain: spaces plain, dropped or added as the model wants it. */
static tmx_status make_plain(encoder *e, const char *text, size_t n_bytes, size_t *n_plain, tmx_error *err)
{
    if (e->plain_cap < n_bytes + 1) {
        mem_free(e->plain);
        e->plain_cap = 0;
        e->plain = mem_alloc(n_bytes + 1, 1);
        if (e->plain == NULL) return refuse(err, TMX_E_MEMORY, "tokenize: no memory for %zu bytes of text", n_bytes);
        e->plain_cap = n_bytes + 1;
    }
    const bool adds_space = e->v->adds_space && !e->is_inside;
    char *out = e->plain + adds_space;
    size_t n = spm_plain_spaces(text, n_bytes, out);
    if (e->v->trims_spaces) {
        size_t n_kept = 0;
        for (size_t i = 0; i < n; i++) {
            if (out[i] == ' ' && (n_kept == 0 || out[n_kept - 1] == ' ')) continue;
            out[n_kept++] = out[i];
        }
        n = n_kept > 0 && out[n_kept - 1] == ' ' ? n_kept - 1 : n_kept;
    }
    if (adds_space) e->plain[0] = ' ';
    *n_plain = n > 0 ? n + adds_space : 0;
    return TMX_OK;
}

/* Text without control tokens. */
static tmx_status add_plain(encoder *e, const char *text, size_t n_bytes, tmx_error *err)
{
    const special_token *match;
    size_t begin = 0, n_plain = n_bytes;
    if (n_bytes == 0) return TMX_OK;
    if (e->v->spm == NULL) return add_words(e, text, n_bytes, err);
    TRY(make_plain(e, text, n_bytes, &n_plain, err));
    e->is_inside |= n_plain > 0;
    for (size_t at = 0; special_next(&e->v->specials, e->plain, n_plain, SPECIAL_USER, &at, &match);) {
        TRY(spm_encode(e->v->spm, &e->spm_scratch, e->plain + begin, at - begin, &e->sink, err));
        sink_push(&e->sink, match->id);
        begin = at += (size_t)match->n_bytes;
    }
    return spm_encode(e->v->spm, &e->spm_scratch, e->plain + begin, n_plain - begin, &e->sink, err);
}

/* SentencePiece looks for user-defined tokens in the text as its tokens spell it, so those come later. */
tmx_status encoder_add_text(encoder *e, const char *text, size_t n_bytes, bool with_control, tmx_error *err)
{
    const unsigned kinds = (e->v->spm == NULL ? SPECIAL_USER : 0u) | (with_control ? SPECIAL_CONTROL : 0u);
    const special_token *match;
    size_t begin = 0;
    for (size_t at = 0; special_next(&e->v->specials, text, n_bytes, kinds, &at, &match);) {
        TRY(add_plain(e, text + begin, at - begin, err));
        encoder_add_control(e, match->id);
        begin = at += (size_t)match->n_bytes;
    }
    return add_plain(e, text + begin, n_bytes - begin, err);
}

tmx_status vocab_tokenize(const vocab *v, const char *text, size_t n_bytes, uint32_t flags, int32_t *ids, size_t cap,
                          size_t *n_ids, tmx_error *err)
{
    if (n_bytes > INT32_MAX) return refuse(err, TMX_E_ARG, "tokenize: %zu bytes, expected at most 2^31 - 1", n_bytes);
    if ((text == NULL && n_bytes > 0) || (ids == NULL && cap > 0) || n_ids == NULL) {
        return refuse(err, TMX_E_ARG, "tokenize: text, ids or n_ids is NULL");
    }
    if ((flags & ~(uint32_t)(TMX_TOKEN_SPECIAL | TMX_TOKEN_BOS)) != 0) {
        return refuse(err, TMX_E_ARG, "tokenize: flags 0x%x are not all known", flags);
    }
    encoder e;
    tmx_status status = encoder_begin(&e, v, ids, cap, err);
    if (status == TMX_OK && (flags & TMX_TOKEN_BOS) != 0 && v->adds_bos) encoder_add_control(&e, v->bos_id);
    if (status == TMX_OK) status = encoder_add_text(&e, text, n_bytes, (flags & TMX_TOKEN_SPECIAL) != 0, err);
    if (status == TMX_OK) *n_ids = e.sink.n;
    encoder_end(&e);
    return status;
}

/* ---------------------------------------------------------------- ids -> text */

int32_t vocab_n_tokens(const vocab *v) { return v->n_tokens; }

static const vocab_token *token_at(const vocab *v, int32_t id)
{
    return id >= 0 && id < v->n_tokens ? &v->tokens[id] : NULL;
}

bool vocab_is_end(const vocab *v, int32_t id)
{
    const vocab_token *token = token_at(v, id);
    return token != NULL && token->is_end;
}

const char *vocab_token_bytes(const vocab *v, int32_t id, size_t *n_bytes)
{
    const vocab_token *token = token_at(v, id);
    if (n_bytes != NULL) *n_bytes = token != NULL ? (size_t)token->n_bytes : 0;
    return token != NULL ? token->bytes : NULL;
}

const char *vocab_token_name(const vocab *v, int32_t id)
{
    const vocab_token *token = token_at(v, id);
    return token != NULL ? token->name : NULL;
}

/* Text on its way out; out NULL only counts. */
typedef struct text_writer {
    tmx_detokenizer pending;
    char *out;
    size_t n;
    bool is_in_bad_run;            /* the last thing written stands for bytes that are no character */
} text_writer;

static void put(text_writer *w, const void *bytes, size_t n)
{
    if (w->out != NULL) memcpy(w->out + w->n, bytes, n);
    w->n += n;
}

/* A whole run of such bytes is one U+FFFD: this bounds the text to 2 * token bytes + 7. */
static void put_bad(text_writer *w)
{
    if (!w->is_in_bad_run) put(w, "\xef\xbf\xbd", 3);
    w->is_in_bad_run = true;
}

static void add_byte(text_writer *w, unsigned char byte)
{
    tmx_detokenizer *p = &w->pending;
    p->pending[p->n_pending++] = byte;
    int length = utf8_length(p->pending, (size_t)p->n_pending);
    if (length == UTF8_INVALID && p->n_pending > 1) {      /* what waited will never be whole; this byte starts anew */
        put_bad(w);
        p->pending[0] = byte;
        p->n_pending = 1;
        length = utf8_length(p->pending, 1);
    }
    if (length == UTF8_CUT) return;
    if (length == UTF8_INVALID) {
        put_bad(w);
    } else {
        put(w, p->pending, (size_t)p->n_pending);
        w->is_in_bad_run = false;
    }
    p->n_pending = 0;
}

static void add_token(text_writer *w, const vocab_token *token)
{
    for (int32_t i = 0; token != NULL && i < token->n_bytes; i++) add_byte(w, (unsigned char)token->bytes[i]);
    if (token == NULL && w->pending.n_pending > 0) {
        put_bad(w);
        w->pending.n_pending = 0;
    }
}

tmx_status vocab_detokenize(const vocab *v, tmx_detokenizer *d, int32_t id, char *text, size_t size, size_t *n_written,
                            tmx_error *err)
{
    if (d == NULL || text == NULL || n_written == NULL) {
        return refuse(err, TMX_E_ARG, "detokenize: d, text or n_written is NULL");
    }
    const vocab_token *token = token_at(v, id);
    if (token == NULL && id != -1) {
        return refuse(err, TMX_E_ARG, "detokenize: id %d is out of range, the vocabulary has %d tokens", id,
                      v->n_tokens);
    }
    if (d->n_pending < 0 || d->n_pending > 3 || utf8_length(d->pending, (size_t)d->n_pending) != UTF8_CUT) {
        return refuse(err, TMX_E_ARG, "detokenize: the detokenizer was not zeroed before its first use");
    }
    text_writer count = { .pending = *d };
    add_token(&count, token);
    if (count.n >= size) {
        return refuse(err, TMX_E_ARG, "detokenize: room for %zu bytes, token %d needs %zu", size, id, count.n + 1);
    }
    text_writer writer = { .pending = *d, .out = text };
    add_token(&writer, token);
    text[writer.n] = '\0';
    *n_written = writer.n;
    *d = writer.pending;
    return TMX_OK;
}
