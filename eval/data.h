/* data.h - samples that the user brings.  In: a file of JSON lines in one of two public schemas.  Out: samples as the
 * tasks make them.  Extra fields are ignored, wrong types are not.
 *
 *   RULER      {"input": TEXT, "outputs": [TEXT, ...], "answer_prefix": TEXT?, "length": N?, "index": N?}
 *              the input is the prompt; match of all outputs, or of any for qa_*.  The task's name is the file's, or its
 *              folder's when the file is called validation.jsonl, as RULER writes it.
 *   LongBench  {"input": TEXT, "context": TEXT, "answers": [TEXT, ...], "dataset": NAME?, "length": N?}
 *              prompts in our own words around context and input; F1 for the question sets, ROUGE-L for the summaries;
 *              sets with other metrics are refused by name.  Without a dataset: a question, F1. */
#ifndef TMX_EVAL_DATA_H
#define TMX_EVAL_DATA_H

#include "task.h"

typedef struct data_item {
    task_sample sample;
    task_metric metric;
    bool is_first_line;            /* only the answer's first line counts */
    int32_t line;                  /* of the file, from 1 */
} data_item;

typedef struct data_set {
    char *name;                    /* of the task */
    data_item *items;              /* [n] */
    int32_t n;
} data_set;

enum { DATA_MAX_LINE_BYTES = 64 << 20, DATA_MAX_ANSWERS = 1000 };

/* The first n_most samples of the file.  metric: -1 = the schema's, else a task_metric for all.  n_predict: 0 = the
 * schema's.  To be freed in any case.
 * TMX_E_IO, TMX_E_MEMORY, TMX_E_FORMAT ("file:line: ..."; also a file without samples), TMX_E_UNSUPPORTED (a set whose
 * metric we do not have). */
tmx_status data_read(data_set *set, const char *path, int32_t n_most, int32_t metric, int32_t n_predict, tmx_error *err);
void data_free(data_set *set);

#endif
