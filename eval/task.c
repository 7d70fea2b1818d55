#include "task.h"

#include "task_parts.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NIAH(kind, names, max, text) \
    { .name = kind, .summary = text, .metric = TASK_MATCH_ALL, .n_predict = 128, .build = build_niah, .min_units = 1, \
      .max_units = max, .variant = names }

static const task_kind kinds[] = {
    { .name = "kv_uuid", .summary = "the UUID that belongs to a UUID, among records of both",
      .metric = TASK_MATCH_ALL, .n_predict = 40, .build = build_key_value, .min_units = 1, .variant = KEY_VALUE_UUIDS },
    { .name = "kv_number", .summary = "the 7-digit number that belongs to a pair of words, among such records",
      .metric = TASK_MATCH_ALL, .n_predict = 16, .build = build_key_value, .min_units = 1,
      .max_units = MAX_PAIR_UNITS, .variant = KEY_VALUE_NUMBERS },
    { .name = "passkey", .summary = "a 6-digit number planted in a text",
      .metric = TASK_MATCH_ALL, .n_predict = 12, .build = build_passkey, .min_units = 1 },
    NIAH("niah_single_1", NIAH_SINGLE_1, 0, "a number of a key, in five sentences said again and again"),
    NIAH("niah_single_2", NIAH_SINGLE_2, 0, "a number of a key, in prose"),
    NIAH("niah_single_3", NIAH_SINGLE_3, 0, "a UUID of a key, in prose"),
    NIAH("niah_multikey_1", NIAH_MULTIKEY_1, 0, "a number of one of four keys, in prose"),
    NIAH("niah_multikey_2", NIAH_MULTIKEY_2, MAX_PAIR_UNITS, "a number of a key, among nothing but such sentences"),
    NIAH("niah_multikey_3", NIAH_MULTIKEY_3, 0, "a UUID of a UUID, among nothing but such sentences"),
    NIAH("niah_multivalue", NIAH_MULTIVALUE, 0, "the four numbers of one key, in prose"),
    NIAH("niah_multiquery", NIAH_MULTIQUERY, 0, "the numbers of all four keys, in prose"),
    { .name = "vt", .summary = "the five variables that hold a value through a chain of assignments",
      .metric = TASK_MATCH_ALL, .n_predict = 30, .build = build_variables, .min_units = 1 },
    { .name = "cwe", .summary = "the ten most common words of a list",
      .metric = TASK_MATCH_ALL, .n_predict = 120, .build = build_common_words, .min_units = 10,
      .max_units = MAX_PAIR_UNITS },
    { .name = "fwe", .summary = "the three most frequent words of a text in code",
      .metric = TASK_MATCH_ALL, .n_predict = 50, .build = build_frequent_words, .min_units = 100 },
};
#undef NIAH
enum { N_KINDS = sizeof kinds / sizeof kinds[0] };

int32_t task_count(void) { return N_KINDS; }

const task_kind *task_at(int32_t i) { return i >= 0 && i < N_KINDS ? &kinds[i] : NULL; }

const task_kind *task_find(const char *name)
{
    for (int32_t i = 0; name != NULL && i < N_KINDS; i++) {
        if (strcmp(kinds[i].name, name) == 0) return &kinds[i];
    }
    return NULL;
}

/* ---------------------------------------------------------------- samples */

void task_sample_free(task_sample *sample)
{
    if (sample == NULL) return;
    free(sample->user);
    free(sample->assistant);
    for (int32_t i = 0; i < sample->n_answers; i++) free(sample->answers[i]);
    free(sample->answers);
    *sample = (task_sample){ 0 };
}

tmx_status sample_add_answer(task_sample *sample, const char *text, tmx_error *err)
{
    char *copy = strdup(text);
    char **answers = copy != NULL ? realloc(sample->answers, ((size_t)sample->n_answers + 1) * sizeof *answers) : NULL;
    if (answers == NULL) {
        free(copy);
        return fault_memory(err, "the answers of a sample");
    }
    sample->answers = answers;
    sample->answers[sample->n_answers++] = copy;
    return TMX_OK;
}

tmx_status sample_take_texts(task_sample *sample, text_buf *user, text_buf *assistant, tmx_error *err)
{
    sample->user = text_take(user);
    sample->assistant = text_take(assistant);
    if (sample->user != NULL && sample->assistant != NULL) return TMX_OK;
    return fault_memory(err, "the text of a prompt");
}

/* ids may be NULL with cap 0: then only the count is wanted. */
static tmx_status tokenize(const task_sample *s, const tmx_model *model, bool is_chat, int32_t *ids, size_t cap,
                           size_t *n_ids, tmx_error *err)
{
    if (is_chat) {
        const tmx_chat chat = { .user = s->user, .assistant = s->assistant[0] != '\0' ? s->assistant : NULL };
        return tmx_chat_tokenize(model, &chat, ids, cap, n_ids, err);
    }
    text_buf text = { 0 };
    text_add(&text, s->user);
    if (s->assistant[0] != '\0') text_print(&text, "\n%s", s->assistant);
    tmx_status status;
    if (text.has_failed) status = fault_memory(err, "the text of a prompt");
    else status = tmx_tokenize(model, text.data, text.n_bytes, TMX_TOKEN_BOS, ids, cap, n_ids, err);
    text_free(&text);
    return status;
}

tmx_status task_prompt_ids(const task_sample *sample, const tmx_model *model, bool is_chat, int32_t **ids,
                           int32_t *n_ids, tmx_error *err)
{
    size_t n = 0;
    TRY(tokenize(sample, model, is_chat, NULL, 0, &n, err));
    if (n > INT32_MAX) return fault(err, TMX_E_ARG, "a prompt of %zu tokens is too long", n);
    int32_t *found = malloc((n + 1) * sizeof *found);
    if (found == NULL) return fault(err, TMX_E_MEMORY, "out of memory for %zu token ids", n);
    const tmx_status status = tokenize(sample, model, is_chat, found, n, &n, err);
    if (status != TMX_OK) {
        free(found);
        return status;
    }
    *ids = found;
    *n_ids = (int32_t)n;
    return TMX_OK;
}

/* ---------------------------------------------------------------- the longest that fits */

/* One try: a sample of b->n_units and its length in tokens. */
static tmx_status build(const task_build *b, task_sample *sample, int32_t *n_tokens, tmx_error *err)
{
    task_sample s = { .n_predict = b->kind->n_predict };
    size_t n = 0;
    tmx_status status = b->kind->build(b, &s, err);
    if (status == TMX_OK) status = tokenize(&s, b->model, b->is_chat, NULL, 0, &n, err);
    if (status == TMX_OK && n > INT32_MAX) status = fault(err, TMX_E_ARG, "a prompt of %zu tokens is too long", n);
    if (status != TMX_OK) {
        task_sample_free(&s);
        return status;
    }
    task_sample_free(sample);
    *sample = s;
    *n_tokens = (int32_t)n;
    return TMX_OK;
}

/* Between a number of units that fits and one that does not; by proportion, since all units are about as long, and by
 * halves every third time, in case they are not. */
static int32_t next_guess(int32_t fits, int32_t n_fits, int32_t beyond, int32_t n_beyond, int32_t n_tokens, int32_t step)
{
    int64_t guess = fits + (beyond - fits) / 2;
    if (step % 3 != 2 && n_beyond > n_fits) {
        guess = fits + (int64_t)(beyond - fits) * (n_tokens - n_fits) / (n_beyond - n_fits);
    }
    if (guess <= fits) guess = fits + 1;
    if (guess >= beyond) guess = beyond - 1;
    return (int32_t)guess;
}

static tmx_status make_longest(task_build *b, int32_t n_tokens, task_sample *best, tmx_error *err)
{
    int32_t fits = b->kind->min_units, n_fits = 0, beyond = 0, n_beyond = 0, n_tried = 0;
    task_sample tried = { 0 };
    b->n_units = fits;
    TRY(build(b, best, &n_fits, err));
    if (n_fits > n_tokens) {
        return fault(err, TMX_E_ARG, "task %s: %d tokens are too few, its shortest prompt has %d", b->kind->name,
                     n_tokens, n_fits);
    }
    const int32_t max_units = b->kind->max_units > 0 ? b->kind->max_units : INT32_MAX / 2;
    for (int32_t step = 0; beyond == 0 ? fits < max_units : beyond - fits > 1; step++) {
        if (beyond != 0) b->n_units = next_guess(fits, n_fits, beyond, n_beyond, n_tokens, step);
        else b->n_units = fits < max_units / 2 ? 2 * fits + 1 : max_units;
        const tmx_status status = build(b, &tried, &n_tried, err);
        if (status != TMX_OK) {
            task_sample_free(&tried);
            return status;
        }
        if (n_tried > n_tokens) {
            beyond = b->n_units;
            n_beyond = n_tried;
            continue;
        }
        fits = b->n_units;
        n_fits = n_tried;
        const task_sample better = tried;
        tried = *best;
        *best = better;
    }
    task_sample_free(&tried);
    return TMX_OK;
}

/* FNV-1a: kinds draw different samples from one seed. */
static uint64_t hash_name(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name != '\0'; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return hash;
}

tmx_status task_make(const task_kind *kind, const tmx_model *model, uint64_t seed, int32_t index, int32_t n_tokens,
                     bool is_chat, task_sample *sample, tmx_error *err)
{
    enum { MAX_TOKENS = 1 << 27 };
    if (kind == NULL || model == NULL || sample == NULL) return fault(err, TMX_E_ARG, "task: NULL");
    if (index < 0) return fault(err, TMX_E_ARG, "task %s: sample %d, expected 0 or more", kind->name, index);
    if (n_tokens < 1 || n_tokens > MAX_TOKENS) {
        return fault(err, TMX_E_ARG, "task %s: %d tokens, expected 1..%d", kind->name, n_tokens, MAX_TOKENS);
    }
    words *w = malloc(sizeof *w);
    if (w == NULL) return fault_memory(err, "the word lists");
    words_init(w);
    assert(words_n_pairs(w) > MAX_PAIR_UNITS + 100);       /* the keys of a sample and of its example on top */
    task_build b = {
        .kind = kind, .model = model, .words = w, .is_chat = is_chat, .n_tokens = n_tokens,
        .seed = dice_mix(dice_mix(seed, hash_name(kind->name)), (uint64_t)index),
    };
    task_sample best = { 0 };
    const tmx_status status = make_longest(&b, n_tokens, &best, err);
    free(w);
    if (status == TMX_OK) *sample = best;
    else task_sample_free(&best);
    return status;
}

/* ---------------------------------------------------------------- for the builders */

tmx_status count_text_tokens(const tmx_model *model, const text_buf *text, int32_t *n_tokens, tmx_error *err)
{
    size_t n = 0;
    if (text->has_failed) return fault_memory(err, "the text of a prompt");
    TRY(tmx_tokenize(model, text->data, text->n_bytes, TMX_TOKEN_PLAIN, NULL, 0, &n, err));
    *n_tokens = n < INT32_MAX ? (int32_t)n : INT32_MAX;
    return TMX_OK;
}

/* Fewest pieces at one end whose text with `fixed` has at least n_wanted tokens; more than there are if none. */
static tmx_status pieces_for_tokens(const task_build *b, const char *fixed, const piece_list *pieces, bool is_start,
                                    int32_t n_wanted, int32_t *n_pieces, tmx_error *err)
{
    tmx_status status = TMX_OK;
    text_buf text = { 0 };
    for (*n_pieces = 0; *n_pieces <= pieces->n; (*n_pieces)++) {
        int32_t n_tokens = 0;
        text.n_bytes = 0;
        text_add(&text, fixed);
        if (is_start) pieces_write(pieces, 0, *n_pieces, &text);
        else pieces_write(pieces, pieces->n - *n_pieces, pieces->n, &text);
        status = count_text_tokens(b->model, &text, &n_tokens, err);
        if (status != TMX_OK || n_tokens >= n_wanted) break;
    }
    text_free(&text);
    return status;
}

tmx_status find_middle(const task_build *b, const char *intro, const piece_list *pieces, const char *outro,
                       int32_t *begin, int32_t *end, tmx_error *err)
{
    enum { FIRST_TOKENS = 64, LAST_TOKENS = 128 };
    int32_t n_first = 0, n_last = 0;
    TRY(pieces_for_tokens(b, intro, pieces, true, FIRST_TOKENS, &n_first, err));
    TRY(pieces_for_tokens(b, outro, pieces, false, LAST_TOKENS, &n_last, err));
    *begin = n_first + 1;
    *end = pieces->n - n_last;
    if (*end < *begin) *end = *begin;
    return TMX_OK;
}

void format_uuid(dice *d, char uuid[UUID_BYTES])
{
    const uint64_t high = dice_next(d), low = dice_next(d);
    snprintf(uuid, UUID_BYTES, "%08x-%04x-4%03x-%x%03x-%012llx", (unsigned)(high >> 32), (unsigned)(high >> 16 & 0xffff),
             (unsigned)(high & 0xfff), 8 + (unsigned)(low >> 62), (unsigned)(low >> 48 & 0xfff),
             (unsigned long long)(low & 0xffffffffffffu));
}

void put_uuid(dice *d, text_buf *out)
{
    char uuid[UUID_BYTES];
    format_uuid(d, uuid);
    text_add(out, uuid);
}

int32_t *shuffled(dice *d, int32_t n)
{
    int32_t *order = malloc(((size_t)n + 1) * sizeof *order);
    if (order == NULL) return NULL;
    for (int32_t i = 0; i < n; i++) order[i] = i;
    for (int32_t i = n - 1; i > 0; i--) {
        const int32_t k = dice_below(d, i + 1), held = order[i];
        order[i] = order[k];
        order[k] = held;
    }
    return order;
}
