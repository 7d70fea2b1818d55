#include "score.h"

#include "fault.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

const char *score_name(task_metric metric)
{
    switch (metric) {
    case TASK_MATCH_ALL: return "match_all";
    case TASK_MATCH_PART: return "match_part";
    case TASK_F1: return "f1";
    case TASK_ROUGE_L: return "rouge_l";
    }
    return "?";
}

/* ---------------------------------------------------------------- match */

static char *lower_copy(const char *text)
{
    char *copy = strdup(text);
    if (copy == NULL) return NULL;
    for (char *c = copy; *c != '\0'; c++) {
        *c = (unsigned char)*c < 0x20 ? '\n' : *c >= 'A' && *c <= 'Z' ? (char)(*c + ('a' - 'A')) : *c;
    }
    return copy;
}

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static bool is_blank(const char *text)
{
    while (*text != '\0' && (is_space(*text) || (unsigned char)*text < 0x20)) text++;
    return *text == '\0';
}

static tmx_status match(const char *text, char *const *answers, int32_t n_answers, int32_t *n_found, tmx_error *err)
{
    char *lower = lower_copy(text);
    if (lower == NULL) return fault_memory(err, "a copy of an answer");
    *n_found = 0;
    for (int32_t i = 0; i < n_answers; i++) {
        char *wanted = lower_copy(answers[i]);
        if (wanted == NULL) {
            free(lower);
            return fault_memory(err, "a copy of an answer");
        }
        *n_found += wanted[0] != '\0' && strstr(lower, wanted) != NULL;
        free(wanted);
    }
    free(lower);
    return TMX_OK;
}

/* ---------------------------------------------------------------- words */

typedef struct word_seq {
    char *text;                    /* the words, each with a NUL */
    char **words;                  /* [n] */
    int32_t n;
} word_seq;

static void word_seq_free(word_seq *s)
{
    free(s->text);
    free(s->words);
}

static bool is_article(const char *word) { return strcmp(word, "a") == 0 || strcmp(word, "an") == 0 || strcmp(word, "the") == 0; }

static bool is_punctuation(char c) { return (unsigned char)c < 0x80 && ispunct((unsigned char)c); }

static tmx_status split_words(const char *text, word_seq *s, tmx_error *err)
{
    const size_t n_bytes = strlen(text);
    *s = (word_seq){ .text = lower_copy(text), .words = malloc((n_bytes / 2 + 1) * sizeof *s->words) };
    if (s->text == NULL || s->words == NULL) {
        word_seq_free(s);
        return fault_memory(err, "the words of an answer");
    }
    char *to = s->text;
    for (const char *at = s->text; *at != '\0';) {         /* to <= at: words only get shorter */
        while (is_space(*at)) at++;
        char *word = to;
        for (; *at != '\0' && !is_space(*at); at++) {
            if (!is_punctuation(*at)) *to++ = *at;
        }
        const bool is_end = *at == '\0';
        if (to == word) continue;
        *to++ = '\0';
        if (is_article(word)) to = word;
        else s->words[s->n++] = word;
        if (is_end) break;
        at++;
    }
    return TMX_OK;
}

static int by_word(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Words both have, each as often as in the one that has it less.  Sorts both. */
static int32_t count_shared(word_seq *a, word_seq *b)
{
    int32_t n = 0;
    qsort(a->words, (size_t)a->n, sizeof *a->words, by_word);
    qsort(b->words, (size_t)b->n, sizeof *b->words, by_word);
    for (int32_t i = 0, k = 0; i < a->n && k < b->n;) {
        const int order = strcmp(a->words[i], b->words[k]);
        n += order == 0;
        i += order <= 0;
        k += order >= 0;
    }
    return n;
}

static tmx_status longest_common(const word_seq *a, const word_seq *b, int32_t *n, tmx_error *err)
{
    int32_t *row = calloc((size_t)b->n + 1, sizeof *row);          /* of the prefix of a so far: [prefix of b] */
    if (row == NULL) return fault_memory(err, "the longest common subsequence");
    for (int32_t i = 0; i < a->n; i++) {
        int32_t diagonal = 0;
        for (int32_t k = 0; k < b->n; k++) {
            const int32_t above = row[k + 1];
            if (strcmp(a->words[i], b->words[k]) == 0) row[k + 1] = diagonal + 1;
            else if (row[k] > above) row[k + 1] = row[k];
            diagonal = above;
        }
    }
    *n = row[b->n];
    free(row);
    return TMX_OK;
}

static tmx_status word_overlap(task_metric metric, const char *text, const char *answer, double *score, tmx_error *err)
{
    word_seq a, b;
    int32_t n_shared = 0;
    tmx_status status = TMX_OK;
    TRY(split_words(text, &a, err));
    status = split_words(answer, &b, err);
    if (status == TMX_OK) {
        if (metric == TASK_F1) n_shared = count_shared(&a, &b);
        else status = longest_common(&a, &b, &n_shared, err);
        *score = n_shared > 0 ? 2.0 * n_shared / (a.n + b.n) : 0;          /* harmonic mean of n/a.n and n/b.n */
        word_seq_free(&b);
    }
    word_seq_free(&a);
    return status;
}

tmx_status score_answer(task_metric metric, const char *text, char *const *answers, int32_t n_answers, double *score,
                        tmx_error *err)
{
    double best = 0;
    if (!is_blank(text)) {
        int32_t n_found = 0;
        switch (metric) {
        case TASK_MATCH_ALL:
        case TASK_MATCH_PART:
            TRY(match(text, answers, n_answers, &n_found, err));
            best = metric == TASK_MATCH_PART ? n_found > 0 : (double)n_found / n_answers;
            break;
        case TASK_F1:
        case TASK_ROUGE_L:
            for (int32_t i = 0; i < n_answers; i++) {
                double overlap = 0;
                TRY(word_overlap(metric, text, answers[i], &overlap, err));
                if (overlap > best) best = overlap;
            }
            break;
        }
    }
    *score = best;
    return TMX_OK;
}
