/* words.h - the word lists of word-lists.txt, which is built in, and the text they make: endless, harmless English about a
 * town and its gardens.  In: a dice.  Out: entries, names, sentences; the same for the same dice. */
#ifndef TMX_EVAL_WORDS_H
#define TMX_EVAL_WORDS_H

#include "dice.h"
#include "text.h"

enum { MAX_WORD_LISTS = 64, MAX_WORD_ENTRIES = 2048 };

typedef struct word_entry { const char *text; size_t n_bytes; } word_entry;     /* borrowed from the program */
typedef struct word_list { word_entry name; int32_t first, n; } word_list;

typedef struct words {
    word_list lists[MAX_WORD_LISTS];
    word_entry entries[MAX_WORD_ENTRIES];
    int32_t n_lists, n_entries;
} words;

void words_init(words *w);
/* The list of that name, which exists. */
const word_list *words_list(const words *w, const char *name);

/* How many adjective-noun pairs there are, and number `i` of them: "amber-acorn". */
int32_t words_n_pairs(const words *w);
void words_put_pair(const words *w, int32_t i, text_buf *out);
void words_format_pair(const words *w, int32_t i, char *text, size_t size);

/* Sentences in paragraphs of four to six, three paragraphs to a month.  Every list is drawn like cards from a shuffled
 * deck: nothing comes again before the rest of its list has been used. */
typedef struct prose {
    const words *words;
    dice dice;
    int16_t decks[MAX_WORD_ENTRIES];           /* each list's part holds what is left of it, first */
    int32_t n_left[MAX_WORD_LISTS];
    int32_t month, year, part, n_sentences;    /* of the paragraph; n_sentences counts down */
} prose;

void prose_init(prose *p, const words *w, uint64_t seed);
/* The next sentence becomes a piece of the list, separated as its place in the paragraph asks. */
void prose_add_sentence(prose *p, piece_list *list);

#endif
