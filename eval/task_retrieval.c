/* task_retrieval.c - one fact among many, or in a text: key-value records and the passkey. */
#include "task_parts.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

/* A place for the gold piece that dense attention can see and a window cannot; in a document too short for one, any
 * place: only the first tries of task_make and tiny lengths are. */
static tmx_status choose_place(const task_build *b, const char *intro, const piece_list *pieces, const char *outro,
                               int32_t *place, tmx_error *err)
{
    int32_t begin = 0, end = 0;
    dice d = build_dice(b, STREAM_PLACE);
    if (pieces->text.has_failed) return fault_memory(err, "the text of a prompt");
    TRY(find_middle(b, intro, pieces, outro, &begin, &end, err));
    if (begin == end) {
        begin = 0;
        end = pieces->n + 1;
    }
    *place = begin + (int32_t)(dice_unit(&d) * (end - begin));
    return TMX_OK;
}

/* ---------------------------------------------------------------- key-value records */

/* What is asked for: everything but the other records. */
typedef struct question {
    text_buf key, value, record, intro, outro, begun;
} question;

static void put_record(const task_build *b, dice *d, int32_t pair, text_buf *key, text_buf *value)
{
    if (b->kind->variant == KEY_VALUE_UUIDS) {
        put_uuid(d, key);
        if (key == value) text_add(value, ": ");
        put_uuid(d, value);
    } else {
        words_put_pair(b->words, pair, key);
        if (key == value) text_add(value, ": ");
        text_print(value, "%d", 1000000 + dice_below(d, 9000000));
    }
}

/* false: out of memory */
static bool ask(const task_build *b, int32_t pair, question *q)
{
    dice d = build_dice(b, STREAM_QUESTION);
    put_record(b, &d, pair, &q->key, &q->value);
    if (q->key.has_failed || q->value.has_failed) return false;
    text_print(&q->record, "%s: %s", q->key.data, q->value.data);
    text_print(&q->intro, "Below is a list of records, one on each line: a key, a colon and the value of that key. "
               "Find the value of the key %s.\n\n", q->key.data);
    text_print(&q->outro, "\n\nThe list ends here. What is the value of the key %s?", q->key.data);
    text_print(&q->begun, "%s:", q->key.data);
    return !(q->record.has_failed || q->intro.has_failed || q->outro.has_failed || q->begun.has_failed);
}

static void question_free(question *q)
{
    text_free(&q->key);
    text_free(&q->value);
    text_free(&q->record);
    text_free(&q->intro);
    text_free(&q->outro);
    text_free(&q->begun);
}

/* keys [n_units + 1]: numbers of word pairs, the gold one first; NULL for UUIDs. */
static tmx_status build_records(const task_build *b, const int32_t *keys, task_sample *sample, tmx_error *err)
{
    question q = { 0 };
    piece_list records = { 0 };
    int32_t place = 0;
    tmx_status status = TMX_OK;
    if (!ask(b, keys != NULL ? keys[0] : 0, &q)) {
        question_free(&q);
        return fault_memory(err, "the text of a prompt");
    }
    dice d = build_dice(b, STREAM_FILLER);
    for (int32_t i = 1; i <= b->n_units; i++) {
        put_record(b, &d, keys != NULL ? keys[i] : 0, &records.text, &records.text);
        pieces_end(&records, "\n");
    }
    status = choose_place(b, q.intro.data, &records, q.outro.data, &place, err);
    if (status == TMX_OK) {
        text_buf user = { 0 };
        pieces_insert(&records, place, "\n", q.record.data);
        text_add(&user, q.intro.data);
        pieces_write(&records, 0, records.n, &user);
        text_add(&user, q.outro.data);
        status = sample_take_texts(sample, &user, &q.begun, err);
    }
    if (status == TMX_OK) status = sample_add_answer(sample, q.value.data, err);
    question_free(&q);
    pieces_free(&records);
    return status;
}

tmx_status build_key_value(const task_build *b, task_sample *sample, tmx_error *err)
{
    if (b->kind->variant == KEY_VALUE_UUIDS) return build_records(b, NULL, sample, err);
    const int32_t n_pairs = words_n_pairs(b->words);
    assert(b->n_units < n_pairs);
    dice d = build_dice(b, STREAM_ORDER);
    int32_t *keys = shuffled(&d, n_pairs);
    if (keys == NULL) return fault(err, TMX_E_MEMORY, "out of memory for %d keys", n_pairs);
    const tmx_status status = build_records(b, keys, sample, err);
    free(keys);
    return status;
}

/* ---------------------------------------------------------------- passkey */

tmx_status build_passkey(const task_build *b, task_sample *sample, tmx_error *err)
{
    static const char asked[] = "\n\nWhat is the secret passcode of the garden gate?";
    static const char begun[] = "The secret passcode of the garden gate is";
    dice d = build_dice(b, STREAM_QUESTION);
    const int32_t passcode = 100000 + dice_below(&d, 900000);
    char fact[80], answer[16];
    snprintf(answer, sizeof answer, "%d", passcode);
    snprintf(fact, sizeof fact, "%s %s.", begun, answer);

    prose *p = malloc(sizeof *p);
    if (p == NULL) return fault_memory(err, "the text of a prompt");
    piece_list sentences = { 0 };
    prose_init(p, b->words, dice_mix(b->seed, STREAM_FILLER));
    for (int32_t i = 0; i < b->n_units; i++) prose_add_sentence(p, &sentences);
    free(p);
    int32_t place = 0;
    tmx_status status = choose_place(b, "", &sentences, asked, &place, err);
    if (status == TMX_OK) {
        text_buf user = { 0 }, assistant = { 0 };
        pieces_insert(&sentences, place, " ", fact);
        pieces_write(&sentences, 0, sentences.n, &user);
        text_add(&user, asked);
        text_add(&assistant, begun);
        status = sample_take_texts(sample, &user, &assistant, err);
    }
    if (status == TMX_OK) status = sample_add_answer(sample, answer, err);
    pieces_free(&sentences);
    return status;
}
