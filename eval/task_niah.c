/* task_niah.c - needles in a haystack.  A needle is one sentence that gives a key a value; the question asks for all values
 * of one or more keys.  Haystacks: prose, the same five short sentences again and again, or more needles. */
#include "task_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct niah_shape {
    enum { PROSE, REPEATED, NEEDLES } haystack;
    bool is_key_uuid, is_value_uuid;           /* else a word pair and a number */
    int32_t n_keys, n_values, n_asked;         /* values of each key; keys that are asked for */
} niah_shape;

#define SHAPE(of_haystack, keys, values, asked) .haystack = of_haystack, .n_keys = keys, .n_values = values, .n_asked = asked

static const niah_shape shapes[] = {           /* as RULER combines them */
    [NIAH_SINGLE_1] = { SHAPE(REPEATED, 1, 1, 1) },
    [NIAH_SINGLE_2] = { SHAPE(PROSE, 1, 1, 1) },
    [NIAH_SINGLE_3] = { SHAPE(PROSE, 1, 1, 1), .is_value_uuid = true },
    [NIAH_MULTIKEY_1] = { SHAPE(PROSE, 4, 1, 1) },
    [NIAH_MULTIKEY_2] = { SHAPE(NEEDLES, 1, 1, 1) },
    [NIAH_MULTIKEY_3] = { SHAPE(NEEDLES, 1, 1, 1), .is_key_uuid = true, .is_value_uuid = true },
    [NIAH_MULTIVALUE] = { SHAPE(PROSE, 1, 4, 1) },
    [NIAH_MULTIQUERY] = { SHAPE(PROSE, 4, 1, 4) },
};

enum { MAX_NEEDLES = 4, KEY_BYTES = 64, VALUE_BYTES = 40 };

typedef struct needles {
    const niah_shape *shape;
    char keys[MAX_NEEDLES][KEY_BYTES];         /* [n_keys] */
    char values[MAX_NEEDLES][VALUE_BYTES];     /* [n_keys][n_values] */
    double depths[MAX_NEEDLES];                /* in [0, 1], of each value's needle */
    int32_t n;                                 /* n_keys * n_values */
} needles;

static const char *noun(const niah_shape *s) { return s->is_value_uuid ? "registry code" : "registry number"; }

static void put_value(const niah_shape *s, dice *d, char value[VALUE_BYTES])
{
    if (s->is_value_uuid) format_uuid(d, value);
    else snprintf(value, VALUE_BYTES, "%d", 1000000 + dice_below(d, 9000000));
}

static void put_key(const task_build *b, const niah_shape *s, dice *d, int32_t pair, char key[KEY_BYTES])
{
    if (s->is_key_uuid) format_uuid(d, key);
    else words_format_pair(b->words, pair, key, KEY_BYTES);
}

/* pairs: shuffled numbers of word pairs; the first n_keys are the keys. */
static void draw_needles(const task_build *b, const int32_t *pairs, needles *x)
{
    enum { N_DEPTHS = 40 };
    const niah_shape *s = x->shape;
    dice d = build_dice(b, STREAM_QUESTION), places = build_dice(b, STREAM_PLACE);
    bool is_taken[N_DEPTHS] = { false };
    for (int32_t i = 0; i < s->n_keys; i++) put_key(b, s, &d, pairs[i], x->keys[i]);
    for (int32_t i = 0; i < x->n; i++) {
        put_value(s, &d, x->values[i]);
        if (s->haystack != PROSE) {
            x->depths[i] = dice_unit(&places);
            continue;
        }
        int32_t at = dice_below(&places, N_DEPTHS);        /* prose: depths on a grid, each at most once */
        while (is_taken[at]) at = (at + 1) % N_DEPTHS;
        is_taken[at] = true;
        x->depths[i] = at / (double)(N_DEPTHS - 1);
    }
}

static bool is_gold(const needles *x, const char *value)
{
    for (int32_t i = 0; i < x->n; i++) {
        if (strcmp(x->values[i], value) == 0) return true;
    }
    return false;
}

static void put_needle(const niah_shape *s, const char *key, const char *value, text_buf *out)
{
    text_print(out, "The %s of %s is %s.", noun(s), key, value);
}

/* ---------------------------------------------------------------- the haystack */

static tmx_status add_prose(const task_build *b, piece_list *list, tmx_error *err)
{
    prose *p = malloc(sizeof *p);
    if (p == NULL) return fault_memory(err, "the text of a prompt");
    prose_init(p, b->words, dice_mix(b->seed, STREAM_FILLER));
    for (int32_t i = 0; i < b->n_units; i++) prose_add_sentence(p, list);
    free(p);
    return TMX_OK;
}

static void add_needles(const task_build *b, const needles *x, const int32_t *pairs, piece_list *list)
{
    const niah_shape *s = x->shape;
    dice d = build_dice(b, STREAM_FILLER);
    for (int32_t i = 0; i < b->n_units; i++) {
        char key[KEY_BYTES], value[VALUE_BYTES];
        put_key(b, s, &d, pairs[s->n_keys + i], key);
        do put_value(s, &d, value);
        while (is_gold(x, value));
        put_needle(s, key, value, &list->text);
        pieces_end(list, "\n");
    }
}

/* The haystack with the needles in it.  Deeper needles first, so that the places of the others do not move. */
static tmx_status build_haystack(const task_build *b, const needles *x, const int32_t *pairs, piece_list *list, tmx_error *err)
{
    const niah_shape *s = x->shape;
    if (s->haystack == PROSE) TRY(add_prose(b, list, err));
    else if (s->haystack == NEEDLES) add_needles(b, x, pairs, list);
    else for (int32_t i = 0; i < b->n_units; i++) pieces_add(list, "\n", REPEATED_LINE);
    if (list->text.has_failed) return fault_memory(err, "the text of a prompt");
    const int32_t n_pieces = list->n;
    int32_t order[MAX_NEEDLES] = { 0 };
    for (int32_t i = 0; i < x->n; i++) {
        int32_t at = i;
        for (; at > 0 && x->depths[order[at - 1]] < x->depths[i]; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    for (int32_t i = 0; i < x->n; i++) {
        const int32_t k = order[i];
        text_buf needle = { 0 };
        put_needle(s, x->keys[k / s->n_values], x->values[k], &needle);
        if (needle.has_failed) list->text.has_failed = true;
        else pieces_insert(list, (int32_t)(n_pieces * x->depths[k]), s->haystack == PROSE ? " " : "\n", needle.data);
        text_free(&needle);
    }
    return TMX_OK;
}

/* ---------------------------------------------------------------- the question */

/* "a", "a and b", "a, b, c and d" */
static void put_asked(const needles *x, text_buf *out)
{
    const int32_t n = x->shape->n_asked;
    for (int32_t i = 0; i < n; i++) {
        if (i > 0) text_add(out, i == n - 1 ? " and " : ", ");
        text_add(out, x->keys[i]);
    }
}

static tmx_status build_with(const task_build *b, const needles *x, const int32_t *pairs, task_sample *sample, tmx_error *err)
{
    const niah_shape *s = x->shape;
    const bool is_one = s->n_asked * s->n_values == 1;
    piece_list list = { 0 };
    text_buf user = { 0 }, assistant = { 0 };
    tmx_status status = build_haystack(b, x, pairs, &list, err);
    if (status == TMX_OK) {
        text_print(&user, is_one ? "A %s is hidden in the text below. Remember it: a question about it follows.\n\n"
                                 : "Some %ss are hidden in the text below. Remember them: a question about them follows.\n\n",
                   noun(s));
        pieces_write(&list, 0, list.n, &user);
        text_print(&user, is_one ? "\n\nWhat is the %s of " : "\n\nWhat are all the %ss of ", noun(s));
        put_asked(x, &user);
        text_add(&user, " in the text above?");
        text_print(&assistant, is_one ? "The %s of " : "The %ss of ", noun(s));
        put_asked(x, &assistant);
        text_add(&assistant, is_one ? " is" : " are");
        status = sample_take_texts(sample, &user, &assistant, err);
    }
    pieces_free(&list);
    for (int32_t i = 0; i < s->n_asked * s->n_values && status == TMX_OK; i++) {
        status = sample_add_answer(sample, x->values[i], err);
    }
    return status;
}

tmx_status build_niah(const task_build *b, task_sample *sample, tmx_error *err)
{
    const niah_shape *s = &shapes[b->kind->variant];
    needles x = { .shape = s, .n = s->n_keys * s->n_values };
    dice d = build_dice(b, STREAM_ORDER);
    int32_t *pairs = shuffled(&d, words_n_pairs(b->words));
    if (pairs == NULL) return fault_memory(err, "the keys of a sample");
    draw_needles(b, pairs, &x);
    const tmx_status status = build_with(b, &x, pairs, sample, err);
    free(pairs);
    return status;
}
