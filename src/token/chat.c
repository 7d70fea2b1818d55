#include "token/chat.h"

#include "base/mem.h"
#include "base/status.h"

#include <stdio.h>
#include <string.h>

enum { SYSTEM, USER, ASSISTANT, N_ROLES = CHAT_ROLES };
enum { OPEN, SEPARATOR, CLOSE, N_MARKS = CHAT_MARKS };
enum { MAX_SUBSTRINGS = 3, TURN_ROOM = 64 /* bytes of a turn's own texts, at most */ };

/* {open} role {separator} before CONTENT after {close} behind: marks are control tokens, NULL = none; the others text. */
typedef struct turn_style {
    const char *marks[N_MARKS];
    const char *role, *before, *after, *behind;
    enum { KEEPS, TRIMS, SWALLOWS } space;     /* white space around a text: kept; dropped, but not around a begun one;
                                                  dropped before every one */
} turn_style;

typedef enum folding { HAS_SYSTEM_TURN, FOLDS_INTO_FIRST, FOLDS_INTO_LAST } folding;

struct chat_format {
    const char *name;
    const char *has[MAX_SUBSTRINGS], *lacks[MAX_SUBSTRINGS];   /* of the template */
    turn_style turns[N_ROLES];     /* that of the system is unused where its text is folded into a user's turn */
    folding system;
};

#define CHATML(name) { .marks = { "<|im_start|>", NULL, "<|im_end|>" }, .before = name "\n", .behind = "\n" }
#define LLAMA3(name) \
    { .marks = { "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>" }, .role = name, .before = "\n\n", .space = TRIMS }
#define GEMMA(name) { .marks = { "<start_of_turn>", NULL, "<end_of_turn>" }, .before = name "\n", .behind = "\n", .space = TRIMS }
#define PHI3(name) { .marks = { "<|" name "|>", NULL, "<|end|>" }, .space = SWALLOWS }
#define PHI4(name) { .marks = { "<|im_start|>", "<|im_sep|>", "<|im_end|>" }, .role = name }

/* A format is the first whose substrings fit.  Names of roles may be put together by the template, so marks that hold
 * one are not looked for, and neither is </s>, which templates write as their variable eos_token. */
static const chat_format formats[] = {
    { .name = "phi4", .has = { "<|im_start|>", "<|im_sep|>", "<|im_end|>" },
      .turns = { PHI4("system"), PHI4("user"), PHI4("assistant") } },
    { .name = "chatml", .has = { "<|im_start|>", "<|im_end|>" }, .lacks = { "<|im_sep|>" },
      .turns = { CHATML("system"), CHATML("user"), CHATML("assistant") } },
    { .name = "llama3", .has = { "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>" },
      .turns = { LLAMA3("system"), LLAMA3("user"), LLAMA3("assistant") } },
    { .name = "gemma", .has = { "<start_of_turn>", "<end_of_turn>" },
      .turns = { [USER] = GEMMA("user"), [ASSISTANT] = GEMMA("model") }, .system = FOLDS_INTO_FIRST },
    { .name = "phi3", .has = { "<|assistant|>", "<|end|>" }, .lacks = { "<|channel|>" },
      .turns = { PHI3("system"), PHI3("user"), PHI3("assistant") } },
    { .name = "mistral-v1", .has = { "[INST] ", " [/INST]" }, .lacks = { "<<SYS>>", "[SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]" },
      .turns = { [USER] = { .before = " [INST] ", .after = " [/INST]" },
                 [ASSISTANT] = { .marks = { NULL, NULL, "</s>" }, .before = " " } }, .system = FOLDS_INTO_FIRST },
    { .name = "mistral-v3", .has = { "[INST] ", "[/INST]" }, .lacks = { "<<SYS>>", "[SYSTEM_PROMPT]", " [/INST]" },
      .turns = { [USER] = { .marks = { "[INST]", NULL, "[/INST]" }, .before = " " },
                 [ASSISTANT] = { .marks = { NULL, NULL, "</s>" }, .before = " ", .space = TRIMS } }, .system = FOLDS_INTO_LAST },
    { .name = "mistral-tekken", .has = { "[INST]", "[/INST]" }, .lacks = { "[INST] ", "[SYSTEM_PROMPT]", " [/INST]" },
      .turns = { [USER] = { .marks = { "[INST]", NULL, "[/INST]" } },
                 [ASSISTANT] = { .marks = { NULL, NULL, "</s>" } } }, .system = FOLDS_INTO_LAST },
};
enum { N_FORMATS = sizeof formats / sizeof formats[0] };

/* ---------------------------------------------------------------- which format */

static bool holds(gguf_string text, const char *part) { return memmem(text.data, text.n_bytes, part, strlen(part)) != NULL; }

static bool is_template_of(const chat_format *format, gguf_string text)
{
    for (int i = 0; i < MAX_SUBSTRINGS; i++) {
        if (format->has[i] != NULL && !holds(text, format->has[i])) return false;
        if (format->lacks[i] != NULL && holds(text, format->lacks[i])) return false;
    }
    return true;
}

static const chat_format *format_named(const char *name)
{
    for (int i = 0; i < N_FORMATS; i++) {
        if (strcmp(formats[i].name, name) == 0) return &formats[i];
    }
    return NULL;
}

static void refuse_unknown(vocab *v, const char *key, gguf_string text)
{
    int n = snprintf(v->chat_refusal, sizeof v->chat_refusal, "%s: '%.*s' is not a chat format we know (", key,
                     (int)(text.n_bytes < 60 ? text.n_bytes : 60), text.data);
    for (int i = 0; i < N_FORMATS && n > 0 && (size_t)n < sizeof v->chat_refusal; i++) {
        n += snprintf(v->chat_refusal + n, sizeof v->chat_refusal - (size_t)n, "%s%s", formats[i].name,
                      i + 1 < N_FORMATS ? ", " : ")");
    }
}

/* By the variable or spelled out. */
static bool names_bos(const vocab *v, gguf_string text)
{
    const char *name = v->tokens[v->bos_id].name;
    return text.n_bytes > 0 && (holds(text, "bos_token") || (name[0] != '\0' && holds(text, name)));
}

/* False: the vocabulary lacks one, which v->chat_refusal names. */
static bool find_marks(vocab *v, const chat_format *format)
{
    for (int role = 0; role < N_ROLES; role++) {
        for (int mark = 0; mark < N_MARKS; mark++) {
            const char *name = format->turns[role].marks[mark];
            v->chat_ids[role][mark] = name == NULL ? -1 : special_find(&v->specials, name);
            if (name == NULL || v->chat_ids[role][mark] >= 0) continue;
            snprintf(v->chat_refusal, sizeof v->chat_refusal, "chat: the format %s needs the token %s, which the vocabulary lacks",
                     format->name, name);
            return false;
        }
    }
    return true;
}

tmx_status chat_recognise(vocab *v, const tmx_file *file, tmx_error *err)
{
    static const char key[] = "tokenizer.chat_template", key_architecture[] = "general.architecture";
    const chat_format *format = NULL;
    gguf_string text = { 0 };
    if (gguf_has(file, key)) {
        TRY(gguf_get_string(file, key, &text, err));
        for (int i = 0; i < N_FORMATS && format == NULL; i++) {
            if (is_template_of(&formats[i], text)) format = &formats[i];
        }
        if (format == NULL) refuse_unknown(v, key, text);
    } else {
        snprintf(v->chat_refusal, sizeof v->chat_refusal, "%s: missing, so the model's chat format is unknown", key);
        gguf_string name = { 0 };
        if (gguf_has(file, key_architecture)) TRY(gguf_get_string(file, key_architecture, &name, err));
        const bool is_gemma = name.n_bytes == 6 && memcmp(name.data, "gemma3", 6) == 0;
        if (is_gemma && special_find(&v->specials, "<start_of_turn>") >= 0) format = format_named("gemma");
    }
    if (format == NULL || !find_marks(v, format)) return TMX_OK;
    v->chat = format;
    v->chat_has_bos = v->bos_id >= 0 && (v->adds_bos || names_bos(v, text));
    v->tokens[v->chat_ids[ASSISTANT][CLOSE]].is_end = true;
    return TMX_OK;
}

const char *vocab_chat_format(const vocab *v) { return v->chat != NULL ? v->chat->name : NULL; }

/* ---------------------------------------------------------------- white space */

/* Bytes of the white space character at text, 0 if there is none. */
static size_t space_length(const char *text, size_t n_bytes)
{
    static const char *const wide[] = {
        "\xc2\x85", "\xc2\xa0", "\xe1\x9a\x80", "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80",
    };
    if (n_bytes > 0 && (text[0] == ' ' || (text[0] >= '\t' && text[0] <= '\r'))) return 1;
    if (n_bytes >= 3 && memcmp(text, "\xe2\x80", 2) == 0 && (unsigned char)text[2] >= 0x80 && (unsigned char)text[2] <= 0x8a) return 3;
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++) {
        const size_t n = strlen(wide[i]);
        if (n_bytes >= n && memcmp(text, wide[i], n) == 0) return n;
    }
    return 0;
}

static void trim_left(const char **text, size_t *n_bytes)
{
    for (size_t n; (n = space_length(*text, *n_bytes)) > 0; *n_bytes -= n) *text += n;
}

static void trim_right(const char *text, size_t *n_bytes)
{
    for (size_t n = 1; n <= 3 && n <= *n_bytes;) {
        if (space_length(text + *n_bytes - n, n) == n) {
            *n_bytes -= n;
            n = 1;
        } else {
            n++;
        }
    }
}

/* ---------------------------------------------------------------- writing turns */

typedef struct chat_writer {
    const vocab *v;
    encoder encoder;
    char *text;                    /* [n_text] not yet encoded: what stands between two marks is one text */
    size_t n_text;
    bool begins_with_space;        /* one of the format's own */
} chat_writer;

static void add_text(chat_writer *w, const char *text, size_t n_bytes)
{
    memcpy(w->text + w->n_text, text, n_bytes);
    w->n_text += n_bytes;
}

static void add_own_text(chat_writer *w, const char *text)
{
    if (text == NULL) return;
    if (w->n_text == 0) w->begins_with_space = text[0] == ' ';
    add_text(w, text, strlen(text));
}

static tmx_status flush_text(chat_writer *w, tmx_error *err)
{
    const bool comes_by_itself = w->begins_with_space && w->v->spm != NULL && w->v->adds_space && !w->encoder.is_inside;
    const tmx_status status = encoder_add_text(&w->encoder, w->text + comes_by_itself, w->n_text - comes_by_itself, false, err);
    w->n_text = 0;
    w->begins_with_space = false;
    return status;
}

static tmx_status add_mark(chat_writer *w, int32_t id, tmx_error *err)
{
    if (id < 0) return TMX_OK;
    TRY(flush_text(w, err));
    encoder_add_control(&w->encoder, id);
    return TMX_OK;
}

/* Up to the end of the content; system, if not NULL, stands before it. */
static tmx_status begin_turn(chat_writer *w, int role, const char *system, const char *content, bool is_begun, tmx_error *err)
{
    const turn_style *style = &w->v->chat->turns[role];
    const int32_t *ids = w->v->chat_ids[role];
    size_t n_content = strlen(content);
    if (style->space == SWALLOWS || (style->space == TRIMS && !is_begun)) trim_left(&content, &n_content);
    if (style->space == TRIMS && !is_begun) trim_right(content, &n_content);
    TRY(add_mark(w, ids[OPEN], err));
    add_own_text(w, style->role);
    TRY(add_mark(w, ids[SEPARATOR], err));
    const bool is_space = style->before != NULL && strcmp(style->before, " ") == 0;
    if (!is_space || n_content > 0 || system != NULL) add_own_text(w, style->before);
    if (system != NULL) {
        add_text(w, system, strlen(system));
        add_text(w, "\n\n", 2);
    }
    add_text(w, content, n_content);
    return TMX_OK;
}

static tmx_status add_turn(chat_writer *w, int role, const char *system, const char *content, tmx_error *err)
{
    const turn_style *style = &w->v->chat->turns[role];
    TRY(begin_turn(w, role, system, content, false, err));
    add_own_text(w, style->after);
    TRY(add_mark(w, w->v->chat_ids[role][CLOSE], err));
    add_own_text(w, style->behind);
    return TMX_OK;
}

static tmx_status write_chat(chat_writer *w, const tmx_chat *chat, tmx_error *err)
{
    const vocab *v = w->v;
    const folding system = v->chat->system;
    const int32_t folded = system == FOLDS_INTO_FIRST ? 0 : system == FOLDS_INTO_LAST ? chat->n_turns : -1;    /* into this turn */
    if (v->chat_has_bos && v->bos_id != v->chat_ids[USER][OPEN]) encoder_add_control(&w->encoder, v->bos_id);
    if (chat->system != NULL && system == HAS_SYSTEM_TURN) TRY(add_turn(w, SYSTEM, NULL, chat->system, err));
    for (int32_t i = 0; i < chat->n_turns; i++) {
        TRY(add_turn(w, USER, i == folded ? chat->system : NULL, chat->turns[i].user, err));
        TRY(add_turn(w, ASSISTANT, NULL, chat->turns[i].assistant, err));
    }
    TRY(add_turn(w, USER, folded == chat->n_turns ? chat->system : NULL, chat->user, err));
    TRY(begin_turn(w, ASSISTANT, NULL, chat->assistant != NULL ? chat->assistant : "", true, err));
    return flush_text(w, err);
}

/* Bytes of all texts and of what the format adds to them. */
static tmx_status count_bytes(const tmx_chat *chat, size_t *n_bytes, tmx_error *err)
{
    if (chat == NULL || chat->user == NULL) return refuse(err, TMX_E_ARG, "chat: the user's text is NULL");
    if (chat->n_turns < 0 || (chat->turns == NULL && chat->n_turns > 0)) {
        return refuse(err, TMX_E_ARG, "chat: %d turns at %s", chat->n_turns, chat->turns == NULL ? "NULL" : "an address");
    }
    size_t n = strlen(chat->user) + 3 * TURN_ROOM;
    if (chat->system != NULL) n += strlen(chat->system);
    if (chat->assistant != NULL) n += strlen(chat->assistant);
    for (int32_t i = 0; i < chat->n_turns; i++) {
        const tmx_turn *turn = &chat->turns[i];
        if (turn->user == NULL || turn->assistant == NULL) return refuse(err, TMX_E_ARG, "chat: a text of turn %d is NULL", i);
        n += strlen(turn->user) + strlen(turn->assistant) + 2 * TURN_ROOM;     /* in memory, all of them: cannot overflow */
    }
    if (n > INT32_MAX) return refuse(err, TMX_E_ARG, "chat: texts of %zu bytes, expected less than 2^31", n);
    *n_bytes = n;
    return TMX_OK;
}

tmx_status vocab_chat_tokenize(const vocab *v, const tmx_chat *chat, int32_t *ids, size_t cap, size_t *n_ids,
                               tmx_error *err)
{
    size_t n_bytes;
    TRY(count_bytes(chat, &n_bytes, err));
    if (n_ids == NULL || (ids == NULL && cap > 0)) return refuse(err, TMX_E_ARG, "chat: ids or n_ids is NULL");
    if (v->chat == NULL) return refuse(err, TMX_E_UNSUPPORTED, "%s", v->chat_refusal);
    chat_writer w = { .v = v, .text = mem_alloc(n_bytes, 1) };
    if (w.text == NULL) return refuse(err, TMX_E_MEMORY, "chat: no memory for %zu bytes of text", n_bytes);
    tmx_status status = encoder_begin(&w.encoder, v, ids, cap, err);
    if (status == TMX_OK) status = write_chat(&w, chat, err);
    if (status == TMX_OK) *n_ids = w.encoder.sink.n;
    encoder_end(&w.encoder);
    mem_free(w.text);
    return status;
}
