/* task_parts.h - what the builders of the tasks share.  A builder writes one sample with exactly n_units units of filler
 * (records, sentences, lines); task_make looks for the largest number that fits. */
#ifndef TMX_EVAL_TASK_PARTS_H
#define TMX_EVAL_TASK_PARTS_H

#include "dice.h"
#include "fault.h"
#include "task.h"
#include "text.h"
#include "words.h"

struct task_build {
    const task_kind *kind;
    const tmx_model *model;
    const words *words;
    uint64_t seed;                 /* of this sample */
    int32_t n_tokens, n_units;
    bool is_chat;
};

/* Independent streams of one sample, so that more filler never moves the question. */
enum { STREAM_QUESTION = 1, STREAM_FILLER, STREAM_PLACE, STREAM_ORDER };
static inline dice build_dice(const task_build *b, uint64_t stream)
{
    return (dice){ .state = dice_mix(b->seed, stream) };
}

/* Texts become the sample's; both buffers are empty afterwards. */
tmx_status sample_take_texts(task_sample *sample, text_buf *user, text_buf *assistant, tmx_error *err);
/* Keeps a copy of the answer. */
tmx_status sample_add_answer(task_sample *sample, const char *text, tmx_error *err);

/* Tokens of plain text.  The chat format only adds to them. */
tmx_status count_text_tokens(const tmx_model *model, const text_buf *text, int32_t *n_tokens, tmx_error *err);

/* The places of a gold piece in a document of `intro`, the pieces and `outro` where it is out of reach of a window: at
 * least one piece away from the first 64 and the last 128 tokens.  [*begin, *end) are numbers of pieces before it; the
 * range is empty if the document is too short.  TMX_E_MEMORY. */
tmx_status find_middle(const task_build *b, const char *intro, const piece_list *pieces, const char *outro,
                       int32_t *begin, int32_t *end, tmx_error *err);

enum { UUID_BYTES = 37 };
void format_uuid(dice *d, char uuid[UUID_BYTES]);          /* version 4 */
void put_uuid(dice *d, text_buf *out);
/* 0..n-1 in random order, to be freed; NULL if memory is out. */
int32_t *shuffled(dice *d, int32_t n);

/* task_retrieval.c */
tmx_status build_key_value(const task_build *b, task_sample *sample, tmx_error *err);
tmx_status build_passkey(const task_build *b, task_sample *sample, tmx_error *err);

enum { KEY_VALUE_UUIDS, KEY_VALUE_NUMBERS };   /* variants of build_key_value */

/* task_niah.c */
tmx_status build_niah(const task_build *b, task_sample *sample, tmx_error *err);
enum { NIAH_SINGLE_1, NIAH_SINGLE_2, NIAH_SINGLE_3, NIAH_MULTIKEY_1, NIAH_MULTIKEY_2, NIAH_MULTIKEY_3, NIAH_MULTIVALUE,
       NIAH_MULTIQUERY };          /* its variants */

/* task_aggregate.c */
tmx_status build_variables(const task_build *b, task_sample *sample, tmx_error *err);
tmx_status build_common_words(const task_build *b, task_sample *sample, tmx_error *err);
tmx_status build_frequent_words(const task_build *b, task_sample *sample, tmx_error *err);

/* Units that need a word pair each: the pairs must last for the keys and examples, too. */
enum { MAX_PAIR_UNITS = 31000 };

/* The haystack that says nothing. */
#define REPEATED_LINE "The clouds drift by. The river is wide. The hills are far. We keep walking. On and on it goes."

#endif
