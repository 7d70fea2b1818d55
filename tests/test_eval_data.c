/* rooms: run eval */
/* test_eval_data.c - JSON lines, good and hostile. */
#include "eval/data.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/tmx-data-XXXXXX";

static int make_folder(void **state) { (void)state; return mkdtemp(folder) != NULL ? 0 : -1; }

static int remove_folder(void **state)
{
    char command[64];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static const char *write_file(const char *name, const char *text, size_t n)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(text, 1, n, f) != n || fclose(f) != 0) abort();
    return path;
}

static tmx_status read_text(data_set *set, const char *name, const char *text, int32_t n_most, int32_t metric, tmx_error *err)
{
    return data_read(set, write_file(name, text, strlen(text)), n_most, metric, 0, err);
}

static void ruler_lines_are_read(void **state)
{
    (void)state;
    data_set s;
    tmx_error err;
    const char *text = "{\"index\": 0, \"input\": \"Where?\", \"outputs\": [\"here\", \"there\"], \"length\": 12, \"extra\": [{}]}\n"
                       "\n  \r\n"
                       "{\"input\": \"Who?\", \"outputs\": [\"me\"], \"answer_prefix\": \" It is\"}";
    assert_int_equal(read_text(&s, "niah_single_1.jsonl", text, 100, -1, &err), TMX_OK);
    assert_string_equal(s.name, "niah_single_1");
    assert_int_equal(s.n, 2);
    assert_string_equal(s.items[0].sample.user, "Where?");
    assert_string_equal(s.items[0].sample.assistant, "");
    assert_int_equal(s.items[0].sample.n_answers, 2);
    assert_int_equal(s.items[0].sample.n_predict, 128);
    assert_int_equal(s.items[0].metric, TASK_MATCH_ALL);
    assert_int_equal(s.items[1].line, 4);
    assert_string_equal(s.items[1].sample.assistant, "It is");
    data_free(&s);
    char path[128];
    snprintf(path, sizeof path, "%s/qa_1", folder);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(read_text(&s, "qa_1/validation.jsonl", text, 1, -1, &err), TMX_OK);
    assert_string_equal(s.name, "qa_1");
    assert_int_equal(s.n, 1);
    assert_int_equal(s.items[0].metric, TASK_MATCH_PART);
    assert_int_equal(s.items[0].sample.n_predict, 32);
    data_free(&s);
}

static void longbench_lines_are_read(void **state)
{
    (void)state;
    data_set s;
    tmx_error err;
    const char *text = "{\"input\": \"Who?\", \"context\": \"A tale.\", \"answers\": [\"Ann\"], \"length\": 3, \"dataset\": \"hotpotqa_e\", "
                       "\"language\": \"en\", \"all_classes\": null, \"_id\": \"x\"}\n"
                       "{\"input\": \"\", \"context\": \"A report.\", \"answers\": [\"Sum\"], \"dataset\": \"gov_report\"}\n"
                       "{\"input\": \"Q:\", \"context\": \"Q: 1\", \"answers\": [\"Sum\"], \"dataset\": \"triviaqa\"}\n";
    assert_int_equal(read_text(&s, "all sets.jsonl", text, 100, -1, &err), TMX_OK);
    assert_string_equal(s.name, "all_sets");
    assert_int_equal(s.n, 3);
    assert_int_equal(s.items[0].metric, TASK_F1);
    assert_int_equal(s.items[0].sample.n_predict, 32);
    assert_non_null(strstr(s.items[0].sample.user, "A tale."));
    assert_non_null(strstr(s.items[0].sample.user, "Question: Who?"));
    assert_int_equal(s.items[1].metric, TASK_ROUGE_L);
    assert_true(s.items[2].is_first_line && !s.items[0].is_first_line);
    data_free(&s);
}

static void bad_lines_are_named(void **state)
{
    (void)state;
    static const struct { const char *text; tmx_status status; const char *says; } cases[] = {
        { "", TMX_E_FORMAT, "bad.jsonl: holds no sample" },
        { "\n\n", TMX_E_FORMAT, "holds no sample" },
        { "{", TMX_E_FORMAT, "bad.jsonl:1:1: " },
        { "\n[1]", TMX_E_FORMAT, "bad.jsonl:2: found an array, expected an object" },
        { "17", TMX_E_FORMAT, ":1: found an integer, expected an object" },
        { "{}", TMX_E_FORMAT, "neither field, expected \"outputs\" (RULER) or \"answers\" (LongBench)" },
        { "{\"outputs\": [\"a\"], \"answers\": [\"a\"]}", TMX_E_FORMAT, "both fields" },
        { "{\"outputs\": [\"a\"]}", TMX_E_FORMAT, "field \"input\" is missing" },
        { "{\"outputs\": [\"a\"], \"input\": 3}", TMX_E_FORMAT, "field \"input\": found an integer, expected a string" },
        { "{\"outputs\": \"a\", \"input\": \"x\"}", TMX_E_FORMAT, "field \"outputs\": found a string, expected an array" },
        { "{\"outputs\": [], \"input\": \"x\"}", TMX_E_FORMAT, "field \"outputs\": 0 entries, expected 1..1000" },
        { "{\"outputs\": [\"a\", null], \"input\": \"x\"}", TMX_E_FORMAT, "entry 1: found null, expected a string" },
        { "{\"outputs\": [\"a\"], \"input\": \"x\", \"length\": -1}", TMX_E_FORMAT, "found a negative number" },
        { "{\"outputs\": [\"a\"], \"input\": \"x\", \"length\": 1.5}", TMX_E_FORMAT, "found a number with a fraction" },
        { "{\"outputs\": [\"a\"], \"input\": \"x\", \"index\": \"1\"}", TMX_E_FORMAT, "found a string" },
        { "{\"outputs\": [\"a\"], \"input\": \"x\", \"answer_prefix\": []}", TMX_E_FORMAT, "found an array" },
        { "{\"answers\": [\"a\"], \"input\": \"x\"}", TMX_E_FORMAT, "field \"context\" is missing" },
        { "{\"answers\": [\"a\"], \"input\": \"x\", \"context\": \"c\", \"dataset\": 1}", TMX_E_FORMAT, "field \"dataset\"" },
        { "{\"answers\": [\"a\"], \"input\": \"x\", \"context\": \"c\", \"dataset\": \"lcc\"}", TMX_E_UNSUPPORTED, "dataset \"lcc\"" },
        { "{\"outputs\": [\"a\"], \"input\": \"x\", \"input\": \"y\"}", TMX_E_FORMAT, "duplicate" },
        { "{\"outputs\": [\"a\"], \"input\": \"\\u0000\"}", TMX_E_FORMAT, "bad.jsonl:1:" },
        { "{\"outputs\": [\"a\"], \"input\": \"\\ud800\"}", TMX_E_FORMAT, "bad.jsonl:1:" },
        { "{\"outputs\": [\"a\"], \"input\": \"\xff\"}", TMX_E_FORMAT, "bad.jsonl:1:" },
        { "{\"outputs\": [\"a\"], \"input\": \"x\", \"n\": 1e999}", TMX_E_FORMAT, "bad.jsonl:1:" },
        { "{\"outputs\": [\"a\"], \"input\": \"x\"} x", TMX_E_FORMAT, "bad.jsonl:1:" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        data_set s;
        tmx_error err = { 0 };
        assert_int_equal(read_text(&s, "bad.jsonl", cases[i].text, 100, -1, &err), cases[i].status);
        if (strstr(err.text, cases[i].says) == NULL) fail_msg("case %zu says '%s'", i, err.text);
        data_free(&s);
    }
    data_set s;
    tmx_error err = { 0 };
    const char nul[] = "{\"outputs\": [\"a\"],\0 \"input\": \"x\"}";
    assert_int_equal(data_read(&s, write_file("bad.jsonl", nul, sizeof nul - 1), 9, -1, 0, &err), TMX_E_FORMAT);
    data_free(&s);
    assert_int_equal(data_read(&s, "/nowhere/at/all", 9, -1, 0, &err), TMX_E_IO);
    data_free(&s);
    assert_int_equal(data_read(&s, "/tmp", 9, -1, 0, &err), TMX_E_IO);
    data_free(&s);
    assert_int_equal(data_read(&s, "/dev/zero", 9, -1, 0, &err), TMX_E_FORMAT);
    assert_non_null(strstr(err.text, "longer than 64 MiB"));
    data_free(&s);
}

static void depth_is_limited(void **state)
{
    (void)state;
    enum { DEPTH = 100000 };
    static char deep[DEPTH + 1];
    data_set s;
    tmx_error err;
    memset(deep, '[', DEPTH);
    assert_int_equal(read_text(&s, "deep.jsonl", deep, 100, -1, &err), TMX_E_FORMAT);
    data_free(&s);
}

static void options_override(void **state)
{
    (void)state;
    data_set s;
    tmx_error err;
    const char *text = "{\"answers\": [\"a\"], \"input\": \"x\", \"context\": \"c\", \"dataset\": \"lcc\"}";
    assert_int_equal(data_read(&s, write_file("a.jsonl", text, strlen(text)), 9, TASK_ROUGE_L, 7, &err), TMX_OK);
    assert_int_equal(s.items[0].metric, TASK_ROUGE_L);
    assert_int_equal(s.items[0].sample.n_predict, 7);
    data_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ruler_lines_are_read),
        cmocka_unit_test(longbench_lines_are_read),
        cmocka_unit_test(bad_lines_are_named),
        cmocka_unit_test(depth_is_limited),
        cmocka_unit_test(options_override),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
