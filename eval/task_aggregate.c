/* task_aggregate.c - answers that are spread over the whole prompt: variable tracking, common words, frequent words. */
#include "task_parts.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- variable tracking */

/* A chain: the first variable gets a number, each of the others the value of the one before. */
enum { N_HOPS = 4, N_CHAIN = N_HOPS + 1, NAME_BYTES = 8 };

static void draw_name(dice *d, int32_t n_letters, char name[NAME_BYTES])
{
    for (int32_t i = 0; i < n_letters; i++) name[i] = (char)('A' + dice_below(d, 26));
    name[n_letters] = '\0';
}

static void draw_chain(dice *d, int32_t n_letters, char names[N_CHAIN][NAME_BYTES])
{
    for (int32_t i = 0; i < N_CHAIN; i++) {
        bool is_new;
        do {
            draw_name(d, n_letters, names[i]);
            is_new = true;
            for (int32_t k = 0; k < i; k++) is_new &= strcmp(names[i], names[k]) != 0;
        } while (!is_new);
    }
}

static void put_chain(dice *places, int32_t value, char names[N_CHAIN][NAME_BYTES], int32_t n_lines, text_buf *out)
{
    double depths[N_CHAIN] = { 0 };
    for (int32_t i = 0; i < N_CHAIN; i++) {                /* sorted as they come: statements stand in order */
        const double depth = dice_unit(places);
        int32_t at = i;
        for (; at > 0 && depths[at - 1] > depth; at--) depths[at] = depths[at - 1];
        depths[at] = depth;
    }
    text_print(out, "The text below sets variables. Remember what each of them holds: a question follows.\n\n");
    for (int32_t line = 0, next = 0; line <= n_lines; line++) {
        for (; next < N_CHAIN && (int32_t)(depths[next] * (n_lines + 1)) == line; next++) {
            if (next == 0) text_print(out, "VAR %s = %d\n", names[0], value);
            else text_print(out, "VAR %s = VAR %s\n", names[next], names[next - 1]);
        }
        if (line < n_lines) text_add(out, REPEATED_LINE "\n");
    }
    text_print(out, "\nWhich variables hold the value %d in the text above?\n", value);
}

static void put_holders(int32_t value, char names[N_CHAIN][NAME_BYTES], bool is_answered, text_buf *out)
{
    text_print(out, "The %d variables that hold the value %d are", N_CHAIN, value);
    for (int32_t i = 0; i < N_CHAIN && is_answered; i++) text_print(out, "%s %s", i == 0 ? ":" : ",", names[i]);
    text_add(out, is_answered ? ".\n\n" : ":");
}

tmx_status build_variables(const task_build *b, task_sample *sample, tmx_error *err)
{
    enum { EXAMPLE_LINES = 5 };
    dice d = build_dice(b, STREAM_QUESTION), places = build_dice(b, STREAM_PLACE);
    char names[N_CHAIN][NAME_BYTES];
    text_buf user = { 0 }, assistant = { 0 };

    int32_t value = 10000 + dice_below(&d, 89999);
    draw_chain(&d, 3, names);
    put_chain(&places, value, names, EXAMPLE_LINES, &user);
    put_holders(value, names, true, &user);

    int32_t asked = 10000 + dice_below(&d, 89999);
    while (asked == value) asked = 10000 + dice_below(&d, 89999);
    draw_chain(&d, 5, names);
    put_chain(&places, asked, names, b->n_units, &user);
    put_holders(asked, names, false, &assistant);
    tmx_status status = sample_take_texts(sample, &user, &assistant, err);
    for (int32_t i = 0; i < N_CHAIN && status == TMX_OK; i++) status = sample_add_answer(sample, names[i], err);
    return status;
}

/* ---------------------------------------------------------------- common words */

enum { N_COMMON = 10 };

/* A numbered list in which pairs[0..9] come n_common times each and the next n_rare ones n_rare_times each. */
static tmx_status put_list(const task_build *b, dice *d, const int32_t *pairs, int32_t n_common, int32_t n_rare,
                           int32_t n_rare_times, text_buf *out, tmx_error *err)
{
    const int32_t n = N_COMMON * n_common + n_rare * n_rare_times;
    int32_t *order = shuffled(d, n);
    if (order == NULL) return fault(err, TMX_E_MEMORY, "out of memory for %d words", n);
    text_add(out, "Below is a numbered list of words. Some of them come much more often than the others. Remember those.\n\n");
    for (int32_t i = 0; i < n; i++) {
        const int32_t k = order[i], common = N_COMMON * n_common;
        const int32_t word = k < common ? k / n_common : N_COMMON + (k - common) / n_rare_times;
        text_print(out, "%d. ", i + 1);
        words_put_pair(b->words, pairs[word], out);
        text_add(out, "\n");
    }
    text_add(out, "\nWhat are the 10 most common words in the list above?\n");
    free(order);
    return TMX_OK;
}

static const char common_answer[] = "The 10 most common words in the list are:";

tmx_status build_common_words(const task_build *b, task_sample *sample, tmx_error *err)
{
    enum { SHORT_TOKENS = 4096 };
    const bool is_short = b->n_tokens + b->kind->n_predict < SHORT_TOKENS;
    const int32_t n_example_rare = is_short ? 10 : 30, n_example_common = is_short ? 3 : 10;
    dice d = build_dice(b, STREAM_QUESTION), order = build_dice(b, STREAM_ORDER);
    text_buf user = { 0 }, assistant = { 0 };
    int32_t *pairs = shuffled(&d, words_n_pairs(b->words));
    if (pairs == NULL) return fault_memory(err, "the words of a sample");
    const int32_t *example = pairs, *asked = pairs + N_COMMON + n_example_rare;
    tmx_status status = put_list(b, &order, example, n_example_common, n_example_rare, is_short ? 1 : 3, &user, err);
    if (status == TMX_OK) {
        text_add(&user, common_answer);
        for (int32_t i = 0; i < N_COMMON; i++) {
            text_print(&user, " %d. ", i + 1);
            words_put_pair(b->words, example[i], &user);
        }
        text_add(&user, "\n\n");
        text_add(&assistant, common_answer);
        status = put_list(b, &order, asked, is_short ? 6 : 30, b->n_units, is_short ? 1 : 3, &user, err);
    }
    if (status == TMX_OK) status = sample_take_texts(sample, &user, &assistant, err);
    for (int32_t i = 0; i < N_COMMON && status == TMX_OK; i++) {
        char word[64];
        words_format_pair(b->words, asked[i], word, sizeof word);
        status = sample_add_answer(sample, word, err);
    }
    text_free(&user);
    text_free(&assistant);
    free(pairs);
    return status;
}

/* ---------------------------------------------------------------- frequent words */

enum { CODE_LETTERS = 6 };

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* n different words of six letters; false: out of memory.  A repeated one is so rare that all are drawn again. */
static bool draw_codes(dice *d, int32_t n, char (*codes)[CODE_LETTERS + 1])
{
    const char **sorted = malloc(((size_t)n + 1) * sizeof *sorted);
    if (sorted == NULL) return false;
    bool is_repeated;
    do {
        for (int32_t i = 0; i < n; i++) {
            for (int32_t k = 0; k < CODE_LETTERS; k++) codes[i][k] = (char)('a' + dice_below(d, 26));
            codes[i][CODE_LETTERS] = '\0';
            sorted[i] = codes[i];
        }
        qsort(sorted, (size_t)n, sizeof *sorted, by_text);
        is_repeated = false;
        for (int32_t i = 1; i < n; i++) is_repeated |= strcmp(sorted[i - 1], sorted[i]) == 0;
    } while (is_repeated);
    free(sorted);
    return true;
}

/* How often rank r (from 1) of a zeta law with exponent 2 comes among about n words. */
static int32_t zeta_count(int32_t n, int32_t rank)
{
    const double zeta_2 = 3.14159265358979323846 * 3.14159265358979323846 / 6;
    return (int32_t)(n / (zeta_2 * rank * rank));
}

static tmx_status put_codes(const task_build *b, dice *d, int32_t n_codes, char (*codes)[CODE_LETTERS + 1], text_buf *out,
                            tmx_error *err)
{
    int32_t n_words = 0;
    for (int32_t i = 0; i < n_codes; i++) n_words += zeta_count(b->n_units, i + 1);
    int32_t *order = shuffled(d, n_words), *rank_of = malloc(((size_t)n_words + 1) * sizeof *rank_of);
    const bool is_whole = order != NULL && rank_of != NULL;
    if (is_whole) {
        for (int32_t i = 0, at = 0; i < n_codes; i++) {
            for (int32_t k = zeta_count(b->n_units, i + 1); k > 0; k--) rank_of[at++] = i;
        }
        for (int32_t i = 0; i < n_words; i++) {
            text_print(out, "%s%s", i == 0 ? "" : " ", rank_of[order[i]] == 0 ? "..." : codes[rank_of[order[i]]]);
        }
    }
    free(order);
    free(rank_of);
    return is_whole ? TMX_OK : fault_memory(err, "the words of a sample");
}

tmx_status build_frequent_words(const task_build *b, task_sample *sample, tmx_error *err)
{
    enum { TOKENS_PER_CODE = 50, MIN_CODES = 20, N_ASKED = 3 };
    int32_t n_codes = b->n_tokens / TOKENS_PER_CODE;
    if (n_codes < MIN_CODES) n_codes = MIN_CODES;
    dice d = build_dice(b, STREAM_QUESTION), order = build_dice(b, STREAM_ORDER);
    text_buf user = { 0 }, assistant = { 0 };
    char (*codes)[CODE_LETTERS + 1] = malloc((size_t)n_codes * sizeof *codes);
    if (codes == NULL || !draw_codes(&d, n_codes, codes)) {
        free(codes);
        return fault_memory(err, "the words of a sample");
    }
    text_add(&user, "The text below is written in code words. The dots mean nothing. Find the three words that come most "
             "often.\n\n");
    tmx_status status = put_codes(b, &order, n_codes, codes, &user, err);
    text_add(&user, "\n\nWithout the dots, what are the three most frequent words in the text above?");
    text_add(&assistant, "The three most frequent words are");
    if (status == TMX_OK) status = sample_take_texts(sample, &user, &assistant, err);
    for (int32_t i = 1; i <= N_ASKED && status == TMX_OK; i++) status = sample_add_answer(sample, codes[i], err);
    text_free(&user);
    text_free(&assistant);
    free(codes);
    return status;
}
