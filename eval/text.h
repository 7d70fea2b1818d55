/* text.h - text that grows, and documents made of pieces.  A failed allocation is remembered: everything may be added
 * first and the failure asked for once, at the end. */
#ifndef TMX_EVAL_TEXT_H
#define TMX_EVAL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct text_buf {
    char *data;                    /* [n_bytes] and a NUL; NULL before anything was added */
    size_t n_bytes, cap;
    bool has_failed;               /* out of memory: the text is not whole */
} text_buf;

void text_add(text_buf *t, const char *text);
void text_add_n(text_buf *t, const char *text, size_t n_bytes);
__attribute__((format(printf, 2, 3)))
void text_print(text_buf *t, const char *format, ...);
/* The text, to be freed by the caller, and t is empty again; NULL if memory ran out on the way. */
char *text_take(text_buf *t);
void text_free(text_buf *t);

/* Pieces of a document in order: sentences, records, lines. */
typedef struct piece { size_t begin, end; const char *before; } piece;     /* before: what separates it, unless first */
typedef struct piece_list {
    text_buf text;                 /* all pieces, one after the other */
    piece *items;
    int32_t n, cap;
    size_t n_ended;                /* bytes of text that belong to pieces */
} piece_list;

/* What has been written to list->text since the last piece becomes one.  `before` must outlive the list. */
void pieces_end(piece_list *list, const char *before);
void pieces_add(piece_list *list, const char *before, const char *text);
/* Puts a piece before piece `at`; at n: behind the last. */
void pieces_insert(piece_list *list, int32_t at, const char *before, const char *text);
/* Pieces [begin, end) with what separates them. */
void pieces_write(const piece_list *list, int32_t begin, int32_t end, text_buf *out);
void pieces_free(piece_list *list);

#endif
