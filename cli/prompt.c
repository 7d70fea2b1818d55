#include "prompt.h"

#include "report.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_PROMPT_BYTES ((size_t)1 << 30)

static bool is_stdin(const char *path) { return strcmp(path, "-") == 0; }

static int read_stream(FILE *file, prompt *p)
{
    size_t capacity = 1 << 16;
    for (;;) {
        char *text = realloc(p->text, capacity + 1);
        if (text == NULL) return complain(EXIT_RESOURCES, "%s: out of memory for %zu bytes", p->source, capacity);
        p->text = text;
        errno = 0;
        p->n_bytes += fread(p->text + p->n_bytes, 1, capacity - p->n_bytes, file);
        if (ferror(file)) return complain(EXIT_INPUT, "%s: cannot be read: %s", p->source, strerror(errno));
        p->text[p->n_bytes] = '\0';
        if (p->n_bytes > MAX_PROMPT_BYTES) {
            return complain(EXIT_INPUT, "%s: longer than 1 GiB, the most a prompt may be", p->source);
        }
        if (p->n_bytes < capacity) return 0;
        capacity *= 2;
    }
}

static int read_path(const char *path, prompt *p)
{
    if (is_stdin(path)) {
        p->source = "standard input";
        return read_stream(stdin, p);
    }
    p->source = path;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return complain(EXIT_INPUT, "%s: %s", path, strerror(errno));
    struct stat st;
    int code;
    if (fstat(fileno(file), &st) == 0 && S_ISDIR(st.st_mode)) code = complain(EXIT_INPUT, "%s: is a directory", path);
    else code = read_stream(file, p);
    fclose(file);
    return code;
}

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* "1 2 3" -> ids; the text is not needed afterwards. */
static int parse_ids(prompt *p)
{
    size_t n_words = 0;
    for (size_t i = 0; i < p->n_bytes; i++) n_words += !is_space(p->text[i]) && (i == 0 || is_space(p->text[i - 1]));
    p->ids = malloc((n_words + 1) * sizeof *p->ids);
    if (p->ids == NULL) return complain(EXIT_RESOURCES, "%s: out of memory for %zu token ids", p->source, n_words);
    for (size_t at = 0, end; p->n_ids < n_words; at = end) {
        while (is_space(p->text[at])) at++;
        for (end = at; end < p->n_bytes && !is_space(p->text[end]);) end++;
        char word[24] = "";
        int64_t id;
        const size_t length = end - at;
        memcpy(word, p->text + at, length < sizeof word ? length : sizeof word - 1);
        if (strlen(word) != length || !parse_integer(word, &id) || id < 0 || id > INT32_MAX) {
            return complain(EXIT_INPUT, "%s: '%s' at position %zu (byte %zu) is not a token id", p->source, word,
                            p->n_ids, at);
        }
        p->ids[p->n_ids++] = (int32_t)id;
    }
    free(p->text);
    p->text = NULL;
    return 0;
}

int prompts_read(const run_options *o, prompt_list *list)
{
    *list = (prompt_list){ .n = o->files.n > 0 ? o->files.n : 1 };
    if (o->prompt != NULL) {
        prompt *p = &list->items[0];
        p->source = "-p";
        p->n_bytes = strlen(o->prompt);
        p->text = strdup(o->prompt);
        return p->text != NULL ? 0 : complain(EXIT_RESOURCES, "out of memory for the prompt");
    }
    if (o->ids_file != NULL) {
        const int code = read_path(o->ids_file, &list->items[0]);
        return code != 0 ? code : parse_ids(&list->items[0]);
    }
    for (int32_t i = 0; i < list->n; i++) {
        const int code = read_path(o->files.items[i], &list->items[i]);
        if (code != 0) return code;
    }
    return 0;
}

static tmx_status tokenize_into(const run_options *o, const tmx_model *model, prompt *p, size_t cap, tmx_error *err)
{
    if (o->is_chat) {
        const tmx_chat chat = { .system = o->system, .user = p->text, .assistant = o->assistant };
        return tmx_chat_tokenize(model, &chat, p->ids, cap, &p->n_ids, err);
    }
    const uint32_t flags = TMX_TOKEN_BOS | (o->parse_special ? TMX_TOKEN_SPECIAL : 0u);
    return tmx_tokenize(model, p->text, p->n_bytes, flags, p->ids, cap, &p->n_ids, err);
}

/* Most text has a few bytes per token: a first guess of half the bytes is nearly always enough for one pass. */
static int tokenize(const run_options *o, const tmx_model *model, prompt *p)
{
    if (o->is_chat && memchr(p->text, '\0', p->n_bytes) != NULL) {
        return complain(EXIT_INPUT, "%s: holds a NUL byte, which --chat cannot carry", p->source);
    }
    tmx_error err;
    for (size_t cap = p->n_bytes / 2 + 256;; cap = p->n_ids) {
        free(p->ids);
        p->ids = malloc(cap * sizeof *p->ids);
        if (p->ids == NULL) return complain(EXIT_RESOURCES, "%s: out of memory for %zu token ids", p->source, cap);
        if (tokenize_into(o, model, p, cap, &err) != TMX_OK) return complain_error(&err);
        if (p->n_ids <= cap) return 0;
    }
}

int prompts_tokenize(const run_options *o, const tmx_model *model, prompt_list *list)
{
    const int32_t n_vocab = tmx_model_info_get(model)->n_vocab;
    for (int32_t i = 0; i < list->n; i++) {
        prompt *p = &list->items[i];
        if (p->text != NULL) {
            const int code = tokenize(o, model, p);
            if (code != 0) return code;
        }
        if (p->n_ids == 0) return complain(EXIT_INPUT, "%s: the prompt is empty", p->source);
        for (size_t k = 0; k < p->n_ids; k++) {
            if (p->ids[k] < n_vocab) continue;
            return complain(EXIT_INPUT, "%s: token id %d at position %zu is out of range 0..%d", p->source,
                            p->ids[k], k, n_vocab - 1);
        }
    }
    return 0;
}

void prompts_free(prompt_list *list)
{
    for (int32_t i = 0; i < list->n; i++) prompt_free(&list->items[i]);
}

int prompt_read(prompt *p, const char *path) { return read_path(path, p); }
int prompt_tokenize_text(prompt *p, const tmx_model *model) { return tokenize(&(run_options){ 0 }, model, p); }

void prompt_free(prompt *p)
{
    free(p->text);
    free(p->ids);
}
