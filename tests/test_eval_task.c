/* rooms: run eval */
/* test_eval_task.c - the generated tasks, on a tiny vocabulary in which every byte is a token. */
#include "eval/task.h"
#include "eval/task_parts.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { CHAT_VOCAB = TINY_VOCAB + 2, LONG = 20000, LONGEST_UNIT = 320 };

typedef struct fixture {
    tiny_model tiny;
    tmx_pool *pool;
    tmx_model *model;
} fixture;

static void add_chat(tiny_vocab *v, void *ctx)
{
    const int64_t shape[2] = { CHAT_VOCAB, TINY_EMBD };
    float *zeros = calloc((size_t)CHAT_VOCAB * TINY_EMBD, sizeof *zeros);
    (void)ctx;
    if (zeros == NULL) abort();
    tv_token(v, "<|im_start|>", 3);
    tv_token(v, "<|im_end|>", 3);
    v->chat_template = "{{'<|im_start|>' + role + '<|im_end|>'}}";
    gw_tensor(&v->writer, "token_embd.weight", BLOCK_F32, 2, shape, zeros, (size_t)CHAT_VOCAB * TINY_EMBD * sizeof *zeros);
    free(zeros);
}

static int open_model(void **state)
{
    static fixture f;
    static const char *const hidden[] = { "token_embd.weight", NULL };
    tmx_error err;
    tiny_model_create_changed(&f.tiny, 3, true, false, &(tiny_change){ .add = add_chat, .hidden = hidden });
    if (tmx_pool_create(&f.pool, 1, &err) != TMX_OK) return -1;
    if (tmx_model_open(&f.model, f.tiny.path, NULL, f.pool, &err) != TMX_OK) {
        print_error("%s\n", err.text);
        return -1;
    }
    *state = &f;
    return 0;
}

static int close_model(void **state)
{
    fixture *f = *state;
    tmx_model_close(f->model);
    tmx_pool_free(f->pool);
    tiny_model_free(&f->tiny);
    return 0;
}

static task_sample make(const fixture *f, const task_kind *kind, uint64_t seed, int32_t index, int32_t n_tokens, bool is_chat)
{
    task_sample s = { 0 };
    tmx_error err;
    if (task_make(kind, f->model, seed, index, n_tokens, is_chat, &s, &err) != TMX_OK) fail_msg("%s", err.text);
    return s;
}

static int32_t count_ids(const fixture *f, const task_sample *s, bool is_chat)
{
    int32_t *ids = NULL, n = 0;
    tmx_error err;
    if (task_prompt_ids(s, f->model, is_chat, &ids, &n, &err) != TMX_OK) fail_msg("%s", err.text);
    free(ids);
    return n;
}

static int count_in(const char *text, const char *wanted)
{
    int n = 0;
    for (const char *at = strstr(text, wanted); at != NULL; at = strstr(at + 1, wanted)) n++;
    return n;
}

static bool is_equal(const task_sample *a, const task_sample *b)
{
    bool is_same = strcmp(a->user, b->user) == 0 && strcmp(a->assistant, b->assistant) == 0 && a->n_answers == b->n_answers;
    for (int32_t i = 0; is_same && i < a->n_answers; i++) is_same = strcmp(a->answers[i], b->answers[i]) == 0;
    return is_same;
}

static void names_find_kinds(void **state)
{
    (void)state;
    assert_null(task_find("nothing"));
    assert_null(task_find(NULL));
    assert_null(task_at(-1));
    assert_null(task_at(task_count()));
    for (int32_t i = 0; i < task_count(); i++) assert_ptr_equal(task_find(task_at(i)->name), task_at(i));
}

static void samples_fill_their_length(void **state)
{
    const fixture *f = *state;
    static const int32_t lengths[] = { 1500, 2000, 4096, LONG };
    for (int32_t k = 0; k < task_count(); k++) {
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
            for (int is_chat = 0; is_chat < 2; is_chat++) {
                task_sample s = { 0 };
                tmx_error err;
                if (task_make(task_at(k), f->model, 42, (int32_t)i, lengths[i], is_chat, &s, &err) != TMX_OK) {
                    assert_non_null(strstr(err.text, "tokens are too few"));       /* tasks with an example */
                    assert_true(lengths[i] < LONG);
                    continue;
                }
                const int32_t n = count_ids(f, &s, is_chat);
                if (n > lengths[i] || n < lengths[i] - LONGEST_UNIT) fail_msg("%s: %d of %d", task_at(k)->name, n, lengths[i]);
                assert_true(s.n_answers > 0 && s.n_predict > 0);
                task_sample_free(&s);
            }
        }
    }
}

static void samples_repeat_themselves(void **state)
{
    const fixture *f = *state;
    for (int32_t k = 0; k < task_count(); k++) {
        task_sample a = make(f, task_at(k), 42, 5, LONG, true), b = make(f, task_at(k), 42, 5, LONG, true);
        task_sample other = make(f, task_at(k), 42, 6, LONG, true), seed = make(f, task_at(k), 43, 5, LONG, true);
        assert_true(is_equal(&a, &b));
        assert_false(is_equal(&a, &other));
        assert_false(is_equal(&a, &seed));
        assert_string_not_equal(a.answers[0], other.answers[0]);
        task_sample shorter = make(f, task_at(k), 42, 5, LONG / 2, true);      /* the same question in less text */
        assert_true(strlen(shorter.user) < strlen(a.user));
        task_sample_free(&a);
        task_sample_free(&b);
        task_sample_free(&other);
        task_sample_free(&seed);
        task_sample_free(&shorter);
    }
}

/* The gold record or fact stands once in the document, in the middle; its place is uniform there. */
static void gold_is_once_and_anywhere(void **state)
{
    const fixture *f = *state;
    static const struct { const char *kind; int n_key; } cases[] = { { "kv_uuid", 3 }, { "kv_number", 3 }, { "passkey", 1 } };
    enum { N = 200, N_TOKENS = 4000, BINS = 4 };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        const task_kind *kind = task_find(cases[c].kind);
        int bins[BINS] = { 0 };
        for (int32_t i = 0; i < N; i++) {
            task_sample s = make(f, kind, 7, i, N_TOKENS, false), shorter = make(f, kind, 7, i, N_TOKENS / 2, false);
            assert_int_equal(s.n_answers, 1);
            assert_int_equal(count_in(s.user, s.answers[0]), 1);
            assert_string_equal(s.answers[0], shorter.answers[0]);
            assert_string_equal(s.assistant, shorter.assistant);
            const char *at = strstr(s.user, s.answers[0]);
            /* a byte is a token: the fact stays out of the first 64 and the last 128 */
            assert_true(at - s.user >= 64);
            assert_true(strlen(at) + strlen(s.assistant) >= 128);
            bins[(size_t)(at - s.user) * BINS / strlen(s.user)]++;
            task_sample_free(&s);
            task_sample_free(&shorter);
        }
        /* a quarter each, less what the ends leave out; 4 standard deviations of a binomial are 25 */
        for (int b = 0; b < BINS; b++) {
            if (bins[b] < 25 || bins[b] > 80) fail_msg("%s: %d of %d in quarter %d", kind->name, bins[b], N, b);
        }
    }
}

/* The needles that are asked for stand once each; other keys have other values. */
static void needles_are_where_they_should(void **state)
{
    const fixture *f = *state;
    static const struct { const char *kind; int n_answers, n_needles; } cases[] = {
        { "niah_single_1", 1, 1 }, { "niah_single_2", 1, 1 }, { "niah_single_3", 1, 1 }, { "niah_multikey_1", 1, 4 },
        { "niah_multikey_2", 1, -1 }, { "niah_multikey_3", 1, -1 }, { "niah_multivalue", 4, 4 }, { "niah_multiquery", 4, 4 },
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int n_early = 0;
        enum { N = 40 };
        for (int32_t i = 0; i < N; i++) {
            task_sample s = make(f, task_find(cases[c].kind), 7, i, 6000, false);
            const int n_needles = count_in(s.user, "The registry ");
            assert_int_equal(s.n_answers, cases[c].n_answers);
            if (cases[c].n_needles > 0) assert_int_equal(n_needles, cases[c].n_needles);
            else assert_true(n_needles > 50);
            for (int32_t k = 0; k < s.n_answers; k++) {
                assert_int_equal(count_in(s.user, s.answers[k]), 1);
                n_early += 2 * (strstr(s.user, s.answers[k]) - s.user) < (ptrdiff_t)strlen(s.user);
            }
            task_sample_free(&s);
        }
        const int n = N * cases[c].n_answers;              /* half of them, within 4 standard deviations */
        if (abs(2 * n_early - n) * abs(2 * n_early - n) > 16 * n) fail_msg("%s: %d of %d early", cases[c].kind, n_early, n);
    }
}

static void variables_form_one_chain(void **state)
{
    const fixture *f = *state;
    task_sample s = make(f, task_find("vt"), 7, 3, 6000, false);
    assert_int_equal(s.n_answers, 5);
    assert_int_equal(count_in(s.user, "VAR "), 2 * (1 + 4 * 2));       /* the example's and the asked one's */
    const char *before = s.user;
    for (int32_t k = 0; k < 5; k++) {
        char line[64];
        if (k == 0) snprintf(line, sizeof line, "\nVAR %s = ", s.answers[0]);
        else snprintf(line, sizeof line, "\nVAR %s = VAR %s\n", s.answers[k], s.answers[k - 1]);
        assert_int_equal(count_in(s.user, line), 1);
        assert_true(strstr(s.user, line) > before);
        before = strstr(s.user, line);
    }
    task_sample_free(&s);
}

static void common_words_are_common(void **state)
{
    const fixture *f = *state;
    static const struct { int32_t n_tokens; int n_common, n_rare; } cases[] = { { 3900, 6, 1 }, { LONG, 30, 3 } };
    for (size_t c = 0; c < 2; c++) {
        task_sample s = make(f, task_find("cwe"), 7, 3, cases[c].n_tokens, false);
        assert_int_equal(s.n_answers, 10);
        char *list = strstr(strstr(s.user, "Below") + 1, "Below");     /* behind the solved example */
        for (int32_t k = 0; k < 10; k++) {
            char word[80];
            snprintf(word, sizeof word, " %s\n", s.answers[k]);
            assert_int_equal(count_in(list, word), cases[c].n_common);
            assert_int_equal(count_in(s.user, word), cases[c].n_common);
        }
        int n_lines = 0;
        for (const char *at = list; (at = strchr(at, '\n')) != NULL; at++) n_lines += at[1] >= '1' && at[1] <= '9';
        assert_int_equal((n_lines - 10 * cases[c].n_common) % cases[c].n_rare, 0);
        task_sample_free(&s);
    }
}

static void frequent_words_are_ranked(void **state)
{
    const fixture *f = *state;
    task_sample s = make(f, task_find("fwe"), 7, 3, LONG, false);
    assert_int_equal(s.n_answers, 3);
    const int n_dots = count_in(s.user, " ... "), first = count_in(s.user, s.answers[0]), second = count_in(s.user, s.answers[1]),
              third = count_in(s.user, s.answers[2]);
    assert_true(n_dots > 2 * first && first > second && second > third && third > 50);
    task_sample_free(&s);
}

static void records_have_distinct_keys(void **state)
{
    const fixture *f = *state;
    task_sample s = make(f, task_find("kv_number"), 1, 0, LONG, false);
    int n_records = 0;
    for (char *line = strtok(s.user, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        char key[64], again[68];
        int value;
        if (sscanf(line, "%60[a-z-]: %d", key, &value) != 2) continue;
        assert_in_range(value, 1000000, 9999999);
        n_records++;
        snprintf(again, sizeof again, "\n%s: ", key);
        for (char *rest = line + strlen(line) + 1; rest < line + strlen(line) + 200 && *rest != '\0'; rest++) {
            assert_int_not_equal(strncmp(rest - 1, again, strlen(again)), 0);
        }
    }
    assert_true(n_records > 400);
    task_sample_free(&s);
}

static void word_lists_are_whole(void **state)
{
    (void)state;
    static words w;
    words_init(&w);
    assert_true(words_n_pairs(&w) > 30000);
    for (int32_t i = 0; i < w.n_lists; i++) {
        assert_true(w.lists[i].n > 0);
        for (int32_t k = w.lists[i].first; k < w.lists[i].first + w.lists[i].n; k++) assert_true(w.entries[k].n_bytes > 0);
    }
    piece_list list = { 0 };
    prose p;
    prose_init(&p, &w, 1);
    for (int i = 0; i < 5000; i++) prose_add_sentence(&p, &list);
    text_buf out = { 0 };
    pieces_write(&list, 0, list.n, &out);
    assert_false(out.has_failed);
    assert_null(strpbrk(out.data, "{}[]"));
    for (const char *c = out.data; *c != '\0'; c++) assert_true((*c >= ' ' && *c < 0x7f) || *c == '\n');
    pieces_free(&list);
    text_free(&out);
}

static void wrong_calls_are_refused(void **state)
{
    const fixture *f = *state;
    const task_kind *kind = task_find("kv_uuid");
    task_sample s = { 0 };
    tmx_error err;
    assert_int_equal(task_make(NULL, f->model, 1, 0, 1000, false, &s, &err), TMX_E_ARG);
    assert_int_equal(task_make(kind, NULL, 1, 0, 1000, false, &s, &err), TMX_E_ARG);
    assert_int_equal(task_make(kind, f->model, 1, -1, 1000, false, &s, &err), TMX_E_ARG);
    assert_int_equal(task_make(kind, f->model, 1, 0, 0, false, &s, &err), TMX_E_ARG);
    assert_int_equal(task_make(kind, f->model, 1, 0, INT32_MAX, false, &s, &err), TMX_E_ARG);
    assert_int_equal(task_make(kind, f->model, 1, 0, 100, false, &s, &err), TMX_E_ARG);
    assert_non_null(strstr(err.text, "task kv_uuid: 100 tokens are too few, its shortest prompt has "));
    assert_null(s.user);
    task_sample_free(&s);
    task_sample_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_find_kinds),
        cmocka_unit_test(word_lists_are_whole),
        cmocka_unit_test(samples_fill_their_length),
        cmocka_unit_test(samples_repeat_themselves),
        cmocka_unit_test(gold_is_once_and_anywhere),
        cmocka_unit_test(needles_are_where_they_should),
        cmocka_unit_test(variables_form_one_chain),
        cmocka_unit_test(common_words_are_common),
        cmocka_unit_test(frequent_words_are_ranked),
        cmocka_unit_test(records_have_distinct_keys),
        cmocka_unit_test(wrong_calls_are_refused),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
