/* rooms: run eval */
/* test_eval_run.c - whole evaluations of a tiny random model: numbers against direct computation, journals that are taken up,
 * torn and tampered with, and reports. */
#include "eval/eval_report.h"
#include "tiny_model.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>

#include <cmocka.h>

enum { LENGTH = 600, N_SAMPLES = 3, N_PLANS = 3, N_TEXT = 900, TEXT_LENGTH = 300 };

typedef struct fixture {
    tiny_model tiny;
    tmx_pool *pool;
    tmx_model *model;
    tmx_plan *plans[N_PLANS];
    eval_plan columns[N_PLANS];
    int32_t text[N_TEXT];
    data_item item;
    data_set set;
    eval_cell cells[3];
    char folder[32], journal[64];
} fixture;

static int set_up(void **state)
{
    static fixture f;
    static char *answers[] = { "zz" };
    static const char *const specs[N_PLANS] = { "dense", "triangle:1-2", "streaming" };
    tmx_error err;
    tiny_model_create(&f.tiny, 7, false, false);
    if (tmx_pool_create(&f.pool, 2, &err) != TMX_OK || tmx_model_open(&f.model, f.tiny.path, NULL, f.pool, &err) != TMX_OK) return -1;
    for (int i = 0; i < N_PLANS; i++) {
        if (tmx_plan_parse(&f.plans[i], specs[i], tmx_model_info_get(f.model), &err) != TMX_OK) return -1;
        tmx_plan_set_sizes(f.plans[i], 4, 20, 30, NULL);
        f.columns[i] = (eval_plan){ .label = specs[i], .plan = f.plans[i] };
    }
    uint64_t seed = 5;
    for (int i = 0; i < N_TEXT; i++) f.text[i] = (int32_t)(tiny_random(&seed) % 256);
    f.item = (data_item){ .sample = { .user = "What <b>&\"?", .assistant = "", .answers = answers, .n_answers = 1, .n_predict = 40 },
                          .metric = TASK_F1, .line = 1 };
    f.set = (data_set){ .name = "brought", .items = &f.item, .n = 1 };
    f.cells[0] = (eval_cell){ .name = "passkey", .kind = task_find("passkey"), .length = LENGTH, .n_samples = N_SAMPLES };
    f.cells[1] = (eval_cell){ .name = "brought", .data = &f.set, .n_samples = 1 };
    f.cells[2] = (eval_cell){ .name = "text", .text = f.text, .n_text = N_TEXT, .length = TEXT_LENGTH, .n_samples = N_TEXT / TEXT_LENGTH };
    snprintf(f.folder, sizeof f.folder, "/tmp/tmx-eval-XXXXXX");
    if (mkdtemp(f.folder) == NULL) return -1;
    snprintf(f.journal, sizeof f.journal, "%s/journal", f.folder);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < N_PLANS; i++) tmx_plan_free(f->plans[i]);
    tmx_model_close(f->model);
    tmx_pool_free(f->pool);
    tiny_model_free(&f->tiny);
    unlink(f->journal);
    return rmdir(f->folder);
}

static eval_params params_of(const fixture *f)
{
    return (eval_params){ .model = f->model, .pool = f->pool, .plans = f->columns, .n_plans = N_PLANS, .cells = f->cells,
                          .n_cells = 3, .seed = 42 };
}

static void run_fine(eval_run *run, const eval_params *p)
{
    tmx_error err;
    if (eval_run_all(run, p, &err) != TMX_OK) fail_msg("%s", err.text);
    assert_false(run->is_stopped);
    assert_int_equal(run->n_done, run->n_total);
}

/* Everything but times, which are equal only if taken from a journal. */
static void assert_equal_runs(const eval_run *a, const eval_run *b)
{
    for (int32_t c = 0; c < a->params->n_cells; c++) {
        for (int32_t i = 0; i < a->params->cells[c].n_samples; i++) {
            const eval_sample *x = &a->samples[c][i], *y = &b->samples[c][i];
            assert_true(x->prompt_hash == y->prompt_hash && x->n_tokens == y->n_tokens);
            for (int32_t k = 0; k < a->params->n_plans; k++) {
                eval_result u = x->results[k], v = y->results[k];
                if (u.answer != NULL) assert_string_equal(u.answer, v.answer);
                assert_true((u.answer == NULL) == (v.answer == NULL));
                u.prefill_ms = v.prefill_ms = u.attention_ms = v.attention_ms = 0;
                u.answer = v.answer = NULL;
                assert_memory_equal(&u, &v, sizeof u);
            }
        }
    }
}

/* ---------------------------------------------------------------- numbers */

static int32_t best_of(const float *logits)
{
    int32_t best = 0;
    for (int32_t i = 1; i < TINY_VOCAB; i++) best = logits[i] > logits[best] ? i : best;
    return best;
}

/* Logits before each of n tokens behind a prompt, with a session of its own. */
static void follow(const fixture *f, int32_t plan, const int32_t *prompt, int32_t n_prompt, const int32_t *tokens, int32_t n,
                   float (*logits)[TINY_VOCAB])
{
    tmx_session *s;
    tmx_error err;
    assert_int_equal(tmx_session_create(&s, f->model, f->plans[plan], f->pool, NULL, &err), TMX_OK);
    assert_int_equal(tmx_prefill(s, &(tmx_prompt){ .tokens = prompt, .n_tokens = n_prompt, .logits = logits[0] }, 1, &err), TMX_OK);
    for (int32_t i = 0; i < n; i++) assert_int_equal(tmx_decode(s, 0, tokens[i], logits[i + 1], &err), TMX_OK);
    tmx_session_free(s);
}

/* The greedy answer: tokens before an end token, at most n. */
static int32_t answer_greedily(const fixture *f, int32_t plan, const int32_t *prompt, int32_t n_prompt, int32_t *tokens, int32_t n)
{
    float logits[TINY_VOCAB];
    tmx_session *s;
    tmx_error err;
    int32_t i = 0;
    assert_int_equal(tmx_session_create(&s, f->model, f->plans[plan], f->pool, NULL, &err), TMX_OK);
    assert_int_equal(tmx_prefill(s, &(tmx_prompt){ .tokens = prompt, .n_tokens = n_prompt, .logits = logits }, 1, &err), TMX_OK);
    for (; i < n && !tmx_token_is_end(f->model, best_of(logits)); i++) {
        tokens[i] = best_of(logits);
        assert_int_equal(tmx_decode(s, 0, tokens[i], logits, &err), TMX_OK);
    }
    tmx_session_free(s);
    return i;
}

static void agreement_is_what_it_says(void **state)
{
    const fixture *f = *state;
    eval_run run;
    eval_params p = params_of(f);
    run_fine(&run, &p);
    bool has_parted = false;
    for (int32_t sample = 0; sample < N_SAMPLES; sample++) {
        static float first_logits[64][TINY_VOCAB], logits[64][TINY_VOCAB];
        int32_t first[64], own[64], *ids, n_ids;
        task_sample made = { 0 };
        tmx_error err;
        const task_kind *kind = task_find("passkey");
        assert_int_equal(task_make(kind, f->model, 42, sample, LENGTH - kind->n_predict, false, &made, &err), TMX_OK);
        assert_int_equal(task_prompt_ids(&made, f->model, false, &ids, &n_ids, &err), TMX_OK);
        const int32_t n_first = answer_greedily(f, 0, ids, n_ids, first, kind->n_predict);
        const int32_t n_forced = n_first < kind->n_predict ? n_first : kind->n_predict - 1;
        follow(f, 0, ids, n_ids, first, n_forced, first_logits);
        for (int32_t plan = 0; plan < N_PLANS; plan++) {
            const eval_result *x = &run.samples[0][sample].results[plan];
            double kl = 0;
            int32_t n_top = 0, n_equal = 0;
            const int32_t n_own = answer_greedily(f, plan, ids, n_ids, own, kind->n_predict);
            while (n_equal < n_own && n_equal < n_first && own[n_equal] == first[n_equal]) n_equal++;
            has_parted |= n_equal < n_first;
            follow(f, plan, ids, n_ids, first, n_forced, logits);
            tmx_agreement a;
            for (int32_t i = 1; i <= n_forced; i++) {
                tmx_logits_compare(first_logits[i], logits[i], TINY_VOCAB, &a);
                kl += a.kl / n_forced;
                n_top += a.top_a == a.top_b;
            }
            tmx_logits_compare(first_logits[0], logits[0], TINY_VOCAB, &a);
            assert_int_equal(x->n_answer, n_own);
            assert_int_equal(x->n_equal, n_equal);
            assert_int_equal(x->n_forced, n_forced);
            assert_int_equal(x->n_top_forced, n_top);
            assert_int_equal(x->is_top_first, a.top_a == a.top_b);
            assert_true(fabs(x->kl_first - a.kl) <= 1e-12);
            assert_true(fabs(x->kl_forced - kl) <= 1e-12 * (1 + kl));
        }
        free(ids);
        task_sample_free(&made);
    }
    assert_true(has_parted);               /* or the rewind was not needed */
    eval_run_free(&run);
}

static void perplexity_is_what_it_says(void **state)
{
    const fixture *f = *state;
    static float logits[EVAL_N_SCORED][TINY_VOCAB];
    eval_run run;
    eval_params p = params_of(f);
    run_fine(&run, &p);
    for (int32_t plan = 0; plan < N_PLANS; plan++) {
        const int32_t *begin = f->text + TEXT_LENGTH, n_prompt = TEXT_LENGTH - EVAL_N_SCORED;
        double nll = 0;
        follow(f, plan, begin, n_prompt, begin + n_prompt, EVAL_N_SCORED - 1, logits);
        for (int32_t i = 0; i < EVAL_N_SCORED; i++) {
            double sum = 0;
            for (int32_t k = 0; k < TINY_VOCAB; k++) sum += exp((double)logits[i][k]);
            nll += (log(sum) - (double)logits[i][begin[n_prompt + i]]) / EVAL_N_SCORED;
        }
        assert_true(fabs(run.samples[2][1].results[plan].score - nll) <= 1e-9 * nll);
    }
    summary rows;
    assert_int_equal(summary_make(&rows, &run, NULL), TMX_OK);
    double mean = 0;
    for (int32_t i = 0; i < 3; i++) mean += run.samples[2][i].results[1].score / 3;
    const summary_row *row = &rows.rows[2 * N_PLANS + 1];
    assert_true(row->is_text && row->plan == 1 && row->n == 3);
    assert_true(fabs(row->score - exp(mean)) <= 1e-9 * row->score);
    summary_free(&rows);
    eval_run_free(&run);
}

/* ---------------------------------------------------------------- journals */

static bool stop_later(void *ctx, const eval_progress *at)
{
    const int32_t *limit = ctx;
    return at->n_done < *limit;
}

static char *read_journal(const fixture *f, size_t *n)
{
    static char text[1 << 20];
    FILE *file = fopen(f->journal, "rb");
    if (file == NULL) return NULL;
    *n = fread(text, 1, sizeof text - 1, file);
    text[*n] = '\0';
    fclose(file);
    return text;
}

static void write_journal(const fixture *f, const char *text, size_t n)
{
    FILE *file = fopen(f->journal, "wb");
    if (file == NULL || fwrite(text, 1, n, file) != n || fclose(file) != 0) abort();
}

static void a_stopped_run_goes_on_to_the_same_numbers(void **state)
{
    const fixture *f = *state;
    eval_run whole, part;
    eval_params p = params_of(f);
    tmx_error err;
    run_fine(&whole, &p);
    p.journal = f->journal;
    unlink(f->journal);
    p.progress = stop_later;
    for (int32_t limit = 0; limit < whole.n_total; limit += 2) {           /* each time two samples more */
        p.progress_ctx = &limit;
        if (eval_run_all(&part, &p, &err) != TMX_OK) fail_msg("%s", err.text);
        assert_true(part.is_stopped);
        assert_int_equal(part.n_done, limit);
        summary rows;
        assert_int_equal(summary_make(&rows, &part, &err), TMX_OK);        /* of what there is */
        summary_free(&rows);
        eval_run_free(&part);
    }
    /* torn in the middle of a line, as by a crash */
    size_t n = 0;
    char *text = read_journal(f, &n);
    write_journal(f, text, n - 7);
    p.progress = NULL;
    run_fine(&part, &p);
    assert_equal_runs(&whole, &part);
    eval_run_free(&part);
    run_fine(&part, &p);                       /* nothing is left to do */
    assert_int_equal(part.n_resumed, part.n_total);
    assert_equal_runs(&whole, &part);
    eval_run_free(&part);
    eval_run_free(&whole);                     /* before its parameters change */
    /* fewer cells and samples are taken from it, too */
    eval_cell cell = f->cells[0];
    cell.n_samples = 1;
    p.cells = &cell;
    p.n_cells = 1;
    run_fine(&part, &p);
    assert_int_equal(part.n_resumed, 1);
    eval_run_free(&part);
}

/* One thing in the journal changed: its first `from` becomes `to`. */
static void assert_refused(const fixture *f, const eval_params *p, const char *good, const char *from, const char *to,
                           const char *says)
{
    static char changed[1 << 20];
    eval_run run;
    tmx_error err = { 0 };
    const char *at = strstr(good, from);
    assert_non_null(at);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - good), good, to, at + strlen(from));
    write_journal(f, changed, strlen(changed));
    assert_int_equal(eval_run_all(&run, p, &err), TMX_E_FORMAT);
    if (strstr(err.text, says) == NULL) fail_msg("'%s' -> '%s' says '%s'", from, to, err.text);
    eval_run_free(&run);
    size_t n = 0;
    assert_string_equal(read_journal(f, &n), changed);         /* left as it is */
}

static void wrong_journals_are_refused(void **state)
{
    const fixture *f = *state;
    eval_run run;
    eval_params p = params_of(f);
    p.journal = f->journal;
    unlink(f->journal);
    run_fine(&run, &p);
    eval_run_free(&run);
    size_t n = 0;
    char *good = strdup(read_journal(f, &n));
    static const struct { const char *from, *to, *says; } cases[] = {
        { "{\"format\":\"trianglemix-eval\"", "notes of mine", ":1: not a journal of tmx eval" },
        { "\"version\":1", "\"version\":2", "kept with \"version\" 2, now it is 1" },
        { "\"seed\":42", "\"seed\":43", "kept with \"seed\" 43, now it is 42" },
        { "\"is_chat\":false,", "", "kept with \"is_chat\" missing" },
        { "streaming 0-2", "streaming 0-1", "kept with \"plans\"" },
        { "{\"task\"", "{\"task", ":2:" },
        { "\"task\":\"passkey\"", "\"task\":3", ":2: field \"task\"" },
        { "\"index\":0", "\"index\":-1", ":2: field \"index\"" },
        { "\"index\":1,", "\"index\":0,", "stands there twice" },
        { "\"score\":0", "\"score\":7", ":2: field \"score\"" },
        { "\"score\":0", "\"score\":\"0", ":2:" },
        { "\"prefill_ms\":", "\"prefill_ms\":1e999,\"x\":", ":2:" },
        { "\"n_equal\":", "\"n_equal\":100000,\"x\":", ":2: field \"n_equal\"" },
        { "\"answer\":", "\"answer\":null,\"x\":", ":2: field \"answer\"" },
        { "\"results\":[", "\"results\":[{},", ":2: field \"results\"" },
        { "\"prompt\":\"", "\"prompt\":\"x", ":2: field \"prompt\"" },
        { "\"prompt\":\"", "\"prompt\":\"0000000000000000\",\"x\":\"", "sample 0 of passkey at length 600 had another prompt" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_refused(f, &p, good, cases[i].from, cases[i].to, cases[i].says);
    }
    write_journal(f, "mine", 4);               /* no line end, and not ours: must not be cut away */
    tmx_error err;
    assert_int_equal(eval_run_all(&run, &p, &err), TMX_E_FORMAT);
    eval_run_free(&run);
    assert_string_equal(read_journal(f, &n), "mine");
    p.journal = f->folder;
    assert_int_equal(eval_run_all(&run, &p, &err), TMX_E_IO);
    eval_run_free(&run);
    free(good);
    unlink(f->journal);
}

/* XAttention with a threshold for every head of layer 1, from a file that is gone afterwards. */
static tmx_plan *plan_of_table(const fixture *f, double threshold)
{
    const tmx_model_info *info = tmx_model_info_get(f->model);
    char path[64], spec[96];
    snprintf(path, sizeof path, "%s/t.json", f->folder);
    snprintf(spec, sizeof spec, "xattention(thresholds=%s):1", path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("[null, [", file);
    for (int32_t h = 0; h < info->n_heads; h++) fprintf(file, "%s%g", h == 0 ? "" : ", ", threshold);
    fputs("], null]", file);
    fclose(file);
    tmx_plan *plan;
    tmx_error err;
    if (tmx_plan_parse(&plan, spec, info, &err) != TMX_OK) fail_msg("%s", err.text);
    unlink(path);
    return plan;
}

static void a_journal_knows_tables(void **state)
{
    const fixture *f = *state;
    eval_run run;
    tmx_error err;
    tmx_plan *one = plan_of_table(f, 0.5), *again = plan_of_table(f, 0.5), *other = plan_of_table(f, 0.6);
    eval_plan columns[2] = { f->columns[0], { .label = "table" } };
    eval_params p = params_of(f);
    p.plans = columns;
    p.n_plans = 2;
    p.n_cells = 1;
    p.journal = f->journal;
    unlink(f->journal);
    columns[1].plan = one;
    run_fine(&run, &p);
    eval_run_free(&run);
    columns[1].plan = again;
    run_fine(&run, &p);
    assert_int_equal(run.n_resumed, N_SAMPLES);
    eval_run_free(&run);
    columns[1].plan = other;
    assert_int_equal(eval_run_all(&run, &p, &err), TMX_E_FORMAT);
    if (strstr(err.text, "kept with \"plans\"") == NULL) fail_msg("%s", err.text);
    eval_run_free(&run);
    tmx_plan_free(one);
    tmx_plan_free(again);
    tmx_plan_free(other);
    unlink(f->journal);
}

static void wrong_parameters_are_refused(void **state)
{
    const fixture *f = *state;
    eval_run run;
    tmx_error err;
    eval_params p = params_of(f);
    p.n_plans = 0;
    assert_int_equal(eval_run_all(&run, &p, &err), TMX_E_ARG);
    eval_run_free(&run);
    p = params_of(f);
    p.n_cells = 0;
    assert_int_equal(eval_run_all(&run, &p, &err), TMX_E_ARG);
    eval_run_free(&run);
    eval_cell cell = f->cells[0];
    p = params_of(f);
    p.cells = &cell;
    p.n_cells = 1;
    static const struct { int32_t length; const char *says; } cases[] = {
        { 10, "task passkey: length 10, of which the answer alone takes 12" }, { 60, "48 tokens are too few" },
        { 5000, "1024" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cell.length = cases[i].length;
        assert_int_equal(eval_run_all(&run, &p, &err), TMX_E_ARG);
        if (strstr(err.text, cases[i].says) == NULL) fail_msg("%s", err.text);
        eval_run_free(&run);
    }
    cell = f->cells[1];
    p.session.n_ctx = 20;
    assert_int_equal(eval_run_all(&run, &p, &err), TMX_E_FULL);
    assert_non_null(strstr(err.text, "brought, line 1: the prompt has "));
    eval_run_free(&run);
}

/* ---------------------------------------------------------------- reports */

static char *print_to_text(void (*print)(const eval_report *, FILE *), const eval_report *r)
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    print(r, out);
    fclose(out);
    return text;
}

static void print_json(const eval_report *r, FILE *out) { assert_int_equal(report_print_json(r, out, NULL), TMX_OK); }

static void reports_hold_together(void **state)
{
    const fixture *f = *state;
    eval_run run;
    eval_params p = params_of(f);
    summary rows;
    run_fine(&run, &p);
    assert_int_equal(summary_make(&rows, &run, NULL), TMX_OK);
    assert_int_equal(rows.n, 4 * N_PLANS);     /* three cells and the mean of the two tasks */
    const eval_report r = { .run = &run, .rows = &rows, .model_path = "a<b>.gguf", .command = "tmx eval 'x & y'", .n_threads = 2 };

    char *text = print_to_text(report_print_markdown, &r);
    size_t width = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        if (line[0] != '|' || strncmp(line, "| text", 6) == 0) width = 0;
        if (line[0] == '|' && width == 0) width = strlen(line);
        if (line[0] == '|') assert_int_equal(strlen(line), width);
    }
    free(text);

    text = print_to_text(report_print_csv, &r);
    int n_lines = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"), n_lines++) {
        int n_commas = 0, is_quoted = 0;
        for (const char *c = line; *c != '\0'; c++) {
            is_quoted ^= *c == '"';
            n_commas += *c == ',' && !is_quoted;
        }
        assert_int_equal(n_commas, 18);
    }
    assert_int_equal(n_lines, 1 + rows.n);
    free(text);

    text = print_to_text(print_json, &r);
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    assert_int_equal(json_array_size(json_object_get(root, "rows")), (size_t)rows.n);
    assert_int_equal(json_array_size(json_object_get(root, "samples")), 7);
    json_decref(root);
    free(text);

    text = print_to_text(report_print_page, &r);
    assert_non_null(strstr(text, "a&lt;b&gt;.gguf"));
    assert_non_null(strstr(text, "tmx eval 'x &amp; y'"));
    assert_null(strstr(text, "<b>"));
    assert_null(strstr(text, "http"));         /* nothing is loaded */
    assert_null(strstr(text, "<script"));
    assert_null(strstr(text, "nan"));
    free(text);
    summary_free(&rows);
    eval_run_free(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agreement_is_what_it_says),
        cmocka_unit_test(perplexity_is_what_it_says),
        cmocka_unit_test(a_stopped_run_goes_on_to_the_same_numbers),
        cmocka_unit_test(wrong_journals_are_refused),
        cmocka_unit_test(a_journal_knows_tables),
        cmocka_unit_test(wrong_parameters_are_refused),
        cmocka_unit_test(reports_hold_together),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
