#include "text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(text_buf *t, size_t n_more)
{
    if (t->has_failed) return false;
    if (n_more < t->cap - t->n_bytes) return true;
    size_t cap = t->cap > 0 ? t->cap : 256;
    while (cap - t->n_bytes <= n_more && cap <= SIZE_MAX / 4) cap *= 2;
    char *data = cap - t->n_bytes > n_more ? realloc(t->data, cap) : NULL;
    if (data == NULL) {
        t->has_failed = true;
        return false;
    }
    t->data = data;
    t->cap = cap;
    return true;
}

void text_add_n(text_buf *t, const char *text, size_t n_bytes)
{
    if (!reserve(t, n_bytes)) return;
    if (n_bytes > 0) memcpy(t->data + t->n_bytes, text, n_bytes);
    t->n_bytes += n_bytes;
    t->data[t->n_bytes] = '\0';
}

void text_add(text_buf *t, const char *text) { text_add_n(t, text, strlen(text)); }

void text_print(text_buf *t, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, format, args);
    if (n < 0) t->has_failed = true;
    else if (reserve(t, (size_t)n)) {
        vsnprintf(t->data + t->n_bytes, (size_t)n + 1, format, again);
        t->n_bytes += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

char *text_take(text_buf *t)
{
    text_add_n(t, "", 0);                      /* nothing added is the empty text, not NULL */
    char *data = t->data;
    if (t->has_failed) {
        free(data);
        data = NULL;
    }
    *t = (text_buf){ 0 };
    return data;
}

void text_free(text_buf *t)
{
    free(t->data);
    *t = (text_buf){ 0 };
}

/* ---------------------------------------------------------------- pieces */

static piece *open_slot(piece_list *list, int32_t at)
{
    if (list->n == list->cap && !list->text.has_failed) {
        const int32_t cap = list->cap > 0 ? 2 * list->cap : 64;
        piece *items = cap <= INT32_MAX / 2 ? realloc(list->items, (size_t)cap * sizeof *items) : NULL;
        if (items == NULL) list->text.has_failed = true;
        else {
            list->items = items;
            list->cap = cap;
        }
    }
    if (list->text.has_failed) return NULL;
    memmove(list->items + at + 1, list->items + at, (size_t)(list->n - at) * sizeof *list->items);
    list->n++;
    return &list->items[at];
}

void pieces_insert(piece_list *list, int32_t at, const char *before, const char *text)
{
    if (text != NULL) text_add(&list->text, text);
    piece *p = open_slot(list, at);
    if (p == NULL) return;
    *p = (piece){ .begin = list->n_ended, .end = list->text.n_bytes, .before = before };
    list->n_ended = list->text.n_bytes;
}

void pieces_add(piece_list *list, const char *before, const char *text) { pieces_insert(list, list->n, before, text); }
void pieces_end(piece_list *list, const char *before) { pieces_insert(list, list->n, before, NULL); }

void pieces_write(const piece_list *list, int32_t begin, int32_t end, text_buf *out)
{
    if (list->text.has_failed) out->has_failed = true;
    for (int32_t i = begin; i < end && !out->has_failed; i++) {
        const piece *p = &list->items[i];
        if (i > begin) text_add(out, p->before);
        text_add_n(out, list->text.data + p->begin, p->end - p->begin);
    }
}

void pieces_free(piece_list *list)
{
    text_free(&list->text);
    free(list->items);
    *list = (piece_list){ 0 };
}
