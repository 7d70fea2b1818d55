#include "token/chat.h"

#include "base/mem.h"
#include "base/status.h"

#include <stdio.h>
#include <string.h>

enum { BEGIN, OPEN, HEADER_END, CLOSE, N_MARKS };

typedef struct chat_format {
    const char *name;
    const char *marks[N_MARKS];    /* control tokens; NULL where the format has none */
    const char *before;            /* between the header and the content */
    const char *after;             /* behind the closing mark */
    bool trims;                    /* system and user text lose the white space around them */
} chat_format;

static const chat_format formats[] = {
    { .name = "chatml", .marks = { NULL, "<|im_start|>", NULL, "<|im_end|>" }, .before = "\n", .after = "\n" },
    { .name = "llama3", .marks = { "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>" },
      .before = "\n\n", .after = "", .trims = true },
};

/* A template may write the first mark as its bos_token variable, so only the others are looked for. */
static bool is_template_of(const chat_format *format, const gguf_string *text)
{
    for (int i = OPEN; i < N_MARKS; i++) {
        const char *mark = format->marks[i];
        if (mark != NULL && memmem(text->data, text->n_bytes, mark, strlen(mark)) == NULL) return false;
    }
    return true;
}

tmx_status chat_recognise(vocab *v, const tmx_file *file, tmx_error *err)
{
    static const char key[] = "tokenizer.chat_template";
    gguf_string text;
    if (!gguf_has(file, key)) {
        snprintf(v->chat_refusal, sizeof v->chat_refusal, "%s: missing, so the model's chat format is unknown", key);
        return TMX_OK;
    }
    TRY(gguf_get_string(file, key, &text, err));
    const chat_format *format = NULL;
    for (size_t i = 0; i < sizeof formats / sizeof formats[0] && format == NULL; i++) {
        if (is_template_of(&formats[i], &text)) format = &formats[i];
    }
    if (format == NULL) {
        snprintf(v->chat_refusal, sizeof v->chat_refusal, "%s: '%.*s' is not a chat format we know (chatml, llama3)",
                 key, (int)(text.n_bytes < 60 ? text.n_bytes : 60), text.data);
        return TMX_OK;
    }
    for (int i = 0; i < N_MARKS; i++) {
        v->chat_ids[i] = format->marks[i] == NULL ? -1 : special_find(&v->specials, format->marks[i]);
        if (format->marks[i] == NULL || v->chat_ids[i] >= 0) continue;
        snprintf(v->chat_refusal, sizeof v->chat_refusal,
                 "%s: the format %s needs the token %s, which the vocabulary lacks", key, format->name,
                 format->marks[i]);
        return TMX_OK;
    }
    v->chat = format;
    return TMX_OK;
}

const char *vocab_chat_format(const vocab *v) { return v->chat != NULL ? v->chat->name : NULL; }

/* ---------------------------------------------------------------- writing a turn */

typedef struct chat_writer {
    const vocab *v;
    encoder encoder;
    char *buffer;                  /* room for a header and the longest content */
} chat_writer;

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static tmx_status add_mark(chat_writer *w, int mark, const char *text, tmx_error *err)
{
    encoder_add_control(&w->encoder, w->v->chat_ids[mark]);
    return encoder_add_text(&w->encoder, text, strlen(text), false, err);
}

/* Header and content, as one text wherever no mark parts them: words may reach across. */
static tmx_status add_turn(chat_writer *w, const char *role, const char *content, bool trims, tmx_error *err)
{
    const chat_format *format = w->v->chat;
    size_t n_content = strlen(content), n = 0;
    while (trims && n_content > 0 && is_space(content[0])) content++, n_content--;
    while (trims && n_content > 0 && is_space(content[n_content - 1])) n_content--;
    if (format->marks[HEADER_END] != NULL) {
        TRY(add_mark(w, OPEN, role, err));
        TRY(add_mark(w, HEADER_END, "", err));
    } else {
        TRY(add_mark(w, OPEN, "", err));
        n = strlen(role);
        memcpy(w->buffer, role, n);
    }
    const size_t n_before = strlen(format->before);
    memcpy(w->buffer + n, format->before, n_before);
    n += n_before;
    memcpy(w->buffer + n, content, n_content);
    return encoder_add_text(&w->encoder, w->buffer, n + n_content, false, err);
}

static tmx_status write_chat(chat_writer *w, const tmx_chat *chat, tmx_error *err)
{
    const vocab *v = w->v;
    const chat_format *format = v->chat;
    if (format->marks[BEGIN] != NULL) TRY(add_mark(w, BEGIN, "", err));
    else if (v->adds_bos && v->bos_id != v->chat_ids[OPEN]) encoder_add_control(&w->encoder, v->bos_id);
    if (chat->system != NULL) {
        TRY(add_turn(w, "system", chat->system, format->trims, err));
        TRY(add_mark(w, CLOSE, format->after, err));
    }
    TRY(add_turn(w, "user", chat->user, format->trims, err));
    TRY(add_mark(w, CLOSE, format->after, err));
    return add_turn(w, "assistant", chat->assistant != NULL ? chat->assistant : "", false, err);
}

tmx_status vocab_chat_tokenize(const vocab *v, const tmx_chat *chat, int32_t *ids, size_t cap, size_t *n_ids,
                               tmx_error *err)
{
    enum { HEADER_ROOM = 32 };
    if (chat == NULL || chat->user == NULL) return refuse(err, TMX_E_ARG, "chat: the user's text is NULL");
    if (n_ids == NULL || (ids == NULL && cap > 0)) return refuse(err, TMX_E_ARG, "chat: ids or n_ids is NULL");
    if (v->chat == NULL) return refuse(err, TMX_E_UNSUPPORTED, "%s", v->chat_refusal);
    size_t longest = 0;
    const char *const texts[] = { chat->system, chat->user, chat->assistant };
    for (int i = 0; i < 3; i++) {
        const size_t n_bytes = texts[i] != NULL ? strlen(texts[i]) : 0;
        if (n_bytes > INT32_MAX) {
            return refuse(err, TMX_E_ARG, "chat: a text of %zu bytes, expected at most 2^31 - 1", n_bytes);
        }
        if (n_bytes > longest) longest = n_bytes;
    }
    chat_writer w = { .v = v, .buffer = mem_alloc(longest + HEADER_ROOM, 1) };
    if (w.buffer == NULL) return refuse(err, TMX_E_MEMORY, "chat: no memory for %zu bytes of text", longest);
    tmx_status status = encoder_begin(&w.encoder, v, ids, cap, err);
    if (status == TMX_OK) status = write_chat(&w, chat, err);
    if (status == TMX_OK) *n_ids = w.encoder.sink.n;
    encoder_end(&w.encoder);
    mem_free(w.buffer);
    return status;
}
