#include "words.h"

#include <assert.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

extern const char word_lists_text[];           /* the file, through CMake */

/* ---------------------------------------------------------------- lists */

void words_init(words *w)
{
    w->n_lists = w->n_entries = 0;
    for (const char *line = word_lists_text; *line != '\0';) {
        const size_t n = strcspn(line, "\n");
        if (line[0] == '[') {
            assert(w->n_lists < MAX_WORD_LISTS);
            w->lists[w->n_lists++] = (word_list){ .name = { line + 1, n - 2 }, .first = w->n_entries };
        } else {
            assert(w->n_entries < MAX_WORD_ENTRIES && w->n_lists > 0);
            w->entries[w->n_entries++] = (word_entry){ line, n };
            w->lists[w->n_lists - 1].n++;
        }
        line += n + (line[n] == '\n');
    }
}

/* first_letter may be a capital. */
static int32_t find_list(const words *w, const char *name, size_t n_bytes)
{
    for (int32_t i = 0; i < w->n_lists; i++) {
        const word_entry *e = &w->lists[i].name;
        if (e->n_bytes == n_bytes && e->text[0] == tolower((unsigned char)name[0])
            && memcmp(e->text + 1, name + 1, n_bytes - 1) == 0) {
            return i;
        }
    }
    assert(!"word-lists.txt names a list that it does not hold");
    return 0;
}

const word_list *words_list(const words *w, const char *name) { return &w->lists[find_list(w, name, strlen(name))]; }

static void put_entry(const word_entry *e, text_buf *out) { text_add_n(out, e->text, e->n_bytes); }

int32_t words_n_pairs(const words *w) { return words_list(w, "adjective")->n * words_list(w, "noun")->n; }

void words_format_pair(const words *w, int32_t i, char *text, size_t size)
{
    const word_list *adjectives = words_list(w, "adjective"), *nouns = words_list(w, "noun");
    const word_entry *a = &w->entries[adjectives->first + i / nouns->n], *n = &w->entries[nouns->first + i % nouns->n];
    snprintf(text, size, "%.*s-%.*s", (int)a->n_bytes, a->text, (int)n->n_bytes, n->text);
}

void words_put_pair(const words *w, int32_t i, text_buf *out)
{
    char text[64];
    words_format_pair(w, i, text, sizeof text);
    text_add(out, text);
}

/* ---------------------------------------------------------------- prose */

void prose_init(prose *p, const words *w, uint64_t seed)
{
    p->words = w;
    p->dice = (dice){ .state = seed };
    for (int32_t i = 0; i < w->n_lists; i++) p->n_left[i] = 0;
    p->month = dice_below(&p->dice, words_list(w, "month")->n);
    p->year = 1;
    p->part = -1;
    p->n_sentences = 0;
}

static const word_entry *draw(prose *p, int32_t list)
{
    const word_list *l = &p->words->lists[list];
    int16_t *deck = p->decks + l->first;
    if (p->n_left[list] == 0) {
        for (int32_t i = 0; i < l->n; i++) deck[i] = (int16_t)(l->first + i);
        p->n_left[list] = l->n;
    }
    const int32_t at = dice_below(&p->dice, p->n_left[list]), entry = deck[at];
    deck[at] = deck[--p->n_left[list]];
    return &p->words->entries[entry];
}

/* {name} is an entry of that list, {Name} one with a capital; {month} and {season} are the chapter's. */
static void put_filled(prose *p, const word_entry *pattern, text_buf *out)
{
    const words *w = p->words;
    const char *at = pattern->text, *end = at + pattern->n_bytes;
    while (at < end) {
        const char *open = memchr(at, '{', (size_t)(end - at));
        text_add_n(out, at, (size_t)((open != NULL ? open : end) - at));
        if (open == NULL) return;
        const size_t n_name = strcspn(open + 1, "}");
        const int32_t list = find_list(w, open + 1, n_name);
        const word_list *l = &w->lists[list];
        const bool is_chapters = l == words_list(w, "month") || l == words_list(w, "season");
        const word_entry *e = is_chapters ? &w->entries[l->first + p->month] : draw(p, list);
        const size_t n_before = out->n_bytes;
        put_entry(e, out);
        if (isupper((unsigned char)open[1]) && !out->has_failed) {
            out->data[n_before] = (char)toupper((unsigned char)out->data[n_before]);
        }
        at = open + n_name + 2;
    }
}

void prose_add_sentence(prose *p, piece_list *list)
{
    const char *before = " ";
    if (p->n_sentences == 0) {
        before = "\n\n";
        p->n_sentences = 4 + dice_below(&p->dice, 3);
        p->part++;
        if (p->part == 3) {
            p->part = 0;
            p->month = (p->month + 1) % words_list(p->words, "month")->n;
            p->year += p->month == 0;
        }
        if (p->part == 0) {
            put_entry(&p->words->entries[words_list(p->words, "month")->first + p->month], &list->text);
            text_print(&list->text, ", year %d. ", p->year);
        }
    }
    const words *w = p->words;
    put_filled(p, draw(p, (int32_t)(words_list(w, "sentence") - w->lists)), &list->text);
    pieces_end(list, before);
    p->n_sentences--;
}
