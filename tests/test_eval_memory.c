/* rooms: run eval; wrap: malloc calloc realloc free */
/* test_eval_memory.c - evaluations when memory runs out: the right status, nothing left behind (the address sanitizer looks). */
#include "alloc_watch.h"
#include "eval/eval_report.h"
#include "eval/score.h"
#include "tiny_model.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

typedef struct fixture {
    tiny_model tiny;
    tmx_model *model;
    tmx_plan *plans[2];
    char data[40], journal[40];
} fixture;

/* jansson's own calls go past the wrapping of this program. */
static void *watched_malloc(size_t n_bytes) { return malloc(n_bytes); }
static void watched_free(void *block) { free(block); }

static int set_up(void **state)
{
    static fixture f;
    tmx_error err;
    json_set_alloc_funcs(watched_malloc, watched_free);
    tiny_model_create(&f.tiny, 7, true, false);
    if (tmx_model_open(&f.model, f.tiny.path, NULL, NULL, &err) != TMX_OK) return -1;
    if (tmx_plan_parse(&f.plans[0], "dense", tmx_model_info_get(f.model), &err) != TMX_OK) return -1;
    if (tmx_plan_parse(&f.plans[1], "triangle", tmx_model_info_get(f.model), &err) != TMX_OK) return -1;
    tmx_plan_set_sizes(f.plans[1], 4, 20, 30, NULL);
    snprintf(f.data, sizeof f.data, "/tmp/tmx-data-XXXXXX");
    snprintf(f.journal, sizeof f.journal, "/tmp/tmx-journal-XXXXXX");
    const int fd = mkstemp(f.data), journal = mkstemp(f.journal);
    static const char lines[] = "{\"input\": \"Who?\", \"outputs\": [\"me\", \"you\"], \"answer_prefix\": \"It is\"}\n"
                                "{\"input\": \"Who?\", \"context\": \"A tale.\", \"answers\": [\"Ann\"], \"dataset\": \"gov_report\"}\n";
    if (fd < 0 || journal < 0 || write(fd, lines, sizeof lines - 1) != (ssize_t)sizeof lines - 1) return -1;
    close(fd);
    close(journal);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < 2; i++) tmx_plan_free(f->plans[i]);
    tmx_model_close(f->model);
    tiny_model_free(&f->tiny);
    unlink(f->data);
    unlink(f->journal);
    return 0;
}

static tmx_status run_and_report(fixture *f, int32_t has_journal, tmx_error *err);

/* jansson takes some failures for bad syntax. */
static bool is_right(tmx_status status, bool reads_json)
{
    return status == TMX_E_MEMORY || (reads_json && status == TMX_E_FORMAT);
}

/* Runs `work` with its 1st, 2nd, ... allocation failing (later ones in growing steps) until none fails. */
static void fail_each(const char *name, fixture *f, tmx_status (*work)(fixture *f, int32_t which, tmx_error *err), int32_t which,
                      bool reads_json)
{
    for (long n = 1;; n += 1 + n / 16) {
        tmx_error err = { 0 };
        watch_begin(n);
        const tmx_status status = work(f, which, &err);
        watch_end();
        if (watch.n_calls < n) {
            assert_int_equal(status, TMX_OK);
            return;
        }
        if (status == TMX_OK && work == run_and_report) continue;      /* a text_value that needed its second try */
        if (!is_right(status, reads_json) || err.code != status) fail_msg("%s, allocation %ld: %d '%s'", name, n, status, err.text);
    }
}

static tmx_status make_sample(fixture *f, int32_t which, tmx_error *err)
{
    task_sample s = { 0 };
    const tmx_status status = task_make(task_at(which), f->model, 1, 0, 3000, false, &s, err);
    task_sample_free(&s);
    return status;
}

static void samples_without_memory(void **state)
{
    for (int32_t i = 0; i < task_count(); i++) fail_each(task_at(i)->name, *state, make_sample, i, false);
}

static tmx_status read_data(fixture *f, int32_t which, tmx_error *err)
{
    (void)which;
    data_set set;
    const tmx_status status = data_read(&set, f->data, 10, -1, 0, err);
    data_free(&set);
    return status;
}

static tmx_status score(fixture *f, int32_t which, tmx_error *err)
{
    (void)f;
    char *answers[] = { "one two", "three" };
    double x;
    return score_answer((task_metric)which, "two three", answers, 2, &x, err);
}

static void data_and_scores_without_memory(void **state)
{
    fail_each("data", *state, read_data, 0, true);
    for (int32_t metric = TASK_MATCH_ALL; metric <= TASK_ROUGE_L; metric++) fail_each("score", *state, score, metric, false);
}

static tmx_status run_and_report(fixture *f, int32_t has_journal, tmx_error *err)
{
    int32_t text[200] = { 1, 2, 3 };
    const eval_plan columns[] = { { .label = "a", .plan = f->plans[0] }, { .label = "b", .plan = f->plans[1] } };
    const eval_cell cells[] = {
        { .name = "passkey", .kind = task_find("passkey"), .length = 400, .n_samples = 1 },
        { .name = "text", .text = text, .n_text = 200, .length = 200, .n_samples = 1 },
    };
    const eval_params p = { .model = f->model, .plans = columns, .n_plans = 2, .cells = cells, .n_cells = 2,
                            .journal = has_journal ? f->journal : NULL };
    eval_run run;
    summary rows;
    if (has_journal && truncate(f->journal, 0) != 0) return TMX_E_IO;
    tmx_status status = eval_run_all(&run, &p, err);
    if (status == TMX_OK && has_journal) {     /* and once more, from the journal */
        eval_run_free(&run);
        status = eval_run_all(&run, &p, err);
    }
    if (status == TMX_OK) {
        status = summary_make(&rows, &run, err);
        FILE *out = fopen("/dev/null", "w");
        const eval_report r = { .run = &run, .rows = &rows, .model_path = "m", .command = "c" };
        if (status == TMX_OK && out == NULL) status = TMX_E_IO;
        if (status == TMX_OK) status = report_print_json(&r, out, err);
        if (out != NULL) fclose(out);
        summary_free(&rows);
    }
    eval_run_free(&run);
    return status;
}

static void runs_without_memory(void **state)
{
    fail_each("run", *state, run_and_report, 0, false);
    fail_each("run with a journal", *state, run_and_report, 1, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(samples_without_memory),
        cmocka_unit_test(data_and_scores_without_memory),
        cmocka_unit_test(runs_without_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
