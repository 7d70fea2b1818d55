/* rooms: options base */
#include "commands.h"
#include "spec_list.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_ARGS = 160 };

/* Splits on single spaces; "''" is an empty argument. */
static int split(char *line, char *argv[MAX_ARGS])
{
    int n = 0;
    for (char *word = strtok(line, " "); word != NULL; word = strtok(NULL, " ")) {
        assert_true(n < MAX_ARGS);
        argv[n++] = strcmp(word, "''") == 0 ? word + 2 : word;
    }
    return n;
}

typedef struct parsed {
    options_result result;
    char line[4096], why[512];
    union { run_options run; plan_options plan; probe_options probe; eval_options eval; bench_options bench; inspect_options inspect; } v;
} parsed;

static parsed *parse(const command *c, const char *line)
{
    static parsed p;
    char *argv[MAX_ARGS];
    memset(&p, 0xa5, sizeof p);
    assert_true(strlen(line) < sizeof p.line);
    strcpy(p.line, line);
    const int argc = split(p.line, argv);
    strcpy(p.why, "nothing wrong");
    p.result = options_parse(c, argc, argv, &p.v, p.why, sizeof p.why);
    return &p;
}

static void expect_wrong(const command *c, const char *line, const char *why)
{
    const parsed *p = parse(c, line);
    assert_string_equal(p->why, why);
    assert_int_equal(p->result, OPTIONS_WRONG);
}

static void integers_are_whole_strings(void **state)
{
    (void)state;
    static const struct { const char *text; bool is_valid; int64_t value; } cases[] = {
        { "0", true, 0 }, { "-1", true, -1 }, { "007", true, 7 }, { "9223372036854775807", true, INT64_MAX },
        { "9223372036854775808", false, 0 }, { "-9223372036854775808", true, INT64_MIN },
        { "", false, 0 }, { "-", false, 0 }, { "+1", false, 0 }, { " 1", false, 0 }, { "1 ", false, 0 },
        { "1.0", false, 0 }, { "0x10", false, 0 }, { "1e3", false, 0 }, { "--1", false, 0 }, { "12a", false, 0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t value = 42;
        assert_int_equal(parse_integer(cases[i].text, &value), cases[i].is_valid);
        assert_true(value == (cases[i].is_valid ? cases[i].value : 42));
    }
}

static void numbers_are_finite_whole_strings(void **state)
{
    (void)state;
    static const struct { const char *text; bool is_valid; double value; } cases[] = {
        { "0.5", true, 0.5 }, { ".5", true, 0.5 }, { "5.", true, 5 }, { "1e3", true, 1000 }, { "-2.5E-1", true, -0.25 },
        { "nan", false, 0 }, { "inf", false, 0 }, { "-inf", false, 0 }, { "infinity", false, 0 }, { "1e999", false, 0 },
        { "", false, 0 }, { "-", false, 0 }, { ".", false, 0 }, { "0x1p3", false, 0 }, { "1,5", false, 0 },
        { " 1", false, 0 }, { "1 ", false, 0 }, { "+1", false, 0 }, { "1e", false, 0 }, { "--1", false, 0 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double value = 42;
        assert_int_equal(parse_number(cases[i].text, &value), cases[i].is_valid);
        assert_true(value == (cases[i].is_valid ? cases[i].value : 42));
    }
}

static void defaults_fill_every_member(void **state)
{
    (void)state;
    const parsed *p = parse(&run_command, "");
    const run_options *o = &p->v.run;
    assert_int_equal(p->result, OPTIONS_RUN);
    assert_null(o->model);
    assert_null(o->prompt);
    assert_null(o->plan.spec);
    assert_int_equal(o->files.n, 0);
    assert_int_equal(o->stops.n, 0);
    assert_int_equal(o->n_predict, RUN_PREDICT_DEFAULT);
    assert_int_equal(o->n_ctx, -1);
    assert_int_equal(o->seed, -1);
    assert_int_equal(o->top_k, 40);
    assert_true(o->temperature == 0 && o->top_p == 0.95 && o->min_p == 0.05 && o->repeat_penalty == 1);
    assert_int_equal(o->plan.n_sink, -1);
    assert_int_equal(o->plan.n_window, -1);
    assert_int_equal(o->plan.n_last, -1);
    assert_int_equal(o->compute, 0);
    assert_false(o->compare || o->json || o->is_chat || o->ignore_end || o->is_quiet || o->is_verbose);
}

static void every_spelling_is_read(void **state)
{
    (void)state;
    const parsed *p = parse(&run_command, "-m a.gguf --file x -f y --n-predict -1 --ctx-size=0 -t 4 --temp 0.8 "
                            "--stop . --stop ; --compute bf16 --cache-type=f32 --seed 4294967295 --compare "
                            "--plan=triangle:1-2");
    const run_options *o = &p->v.run;
    assert_int_equal(p->result, OPTIONS_RUN);
    assert_string_equal(o->model, "a.gguf");
    assert_int_equal(o->files.n, 2);
    assert_string_equal(o->files.items[1], "y");
    assert_int_equal(o->n_predict, -1);
    assert_int_equal(o->n_ctx, 0);
    assert_int_equal(o->n_threads, 4);
    assert_true(o->temperature == 0.8);
    assert_int_equal(o->stops.n, 2);
    assert_int_equal(o->compute, 2);
    assert_int_equal(o->cache_type, 1);
    assert_true(o->seed == 4294967295);
    assert_true(o->compare);
    assert_string_equal(o->plan.spec, "triangle:1-2");

    p = parse(&run_command, "-f - --prompt=-n");
    assert_int_equal(p->result, OPTIONS_RUN);
    assert_string_equal(o->files.items[0], "-");
    assert_string_equal(o->prompt, "-n");
    p = parse(&inspect_command, "-c 32 -- --odd-name");
    assert_int_equal(p->result, OPTIONS_RUN);
    assert_string_equal(p->v.inspect.model, "--odd-name");
    assert_int_equal(parse(&plan_command, "-m x --help --nonsense")->result, OPTIONS_HELP);
    assert_int_equal(parse(&plan_command, "--man")->result, OPTIONS_MAN);
}

static void unknown_options_are_named(void **state)
{
    (void)state;
    const command *run = &run_command;
    expect_wrong(run, "--frobnicate", "unknown option '--frobnicate'; 'tmx run --help' lists the options");
    expect_wrong(run, "--frobnicate=3", "unknown option '--frobnicate=3'; 'tmx run --help' lists the options");
    expect_wrong(run, "-x", "unknown option '-x'; 'tmx run --help' lists the options");
    expect_wrong(run, "-f=y", "unknown option '-f=y'; 'tmx run --help' lists the options");
    expect_wrong(run, "-n5", "unknown option '-n5'; 'tmx run --help' lists the options");
}

static void wrong_values_are_refused(void **state)
{
    (void)state;
    const command *run = &run_command;
    expect_wrong(run, "-c 99999999999", "option -c/--ctx-size: 99999999999 is out of range 0..134217728");
    expect_wrong(run, "-c 99999999999999999999",
                 "option -c/--ctx-size: 99999999999999999999 is out of range 0..134217728");
    expect_wrong(run, "-c -1", "option -c/--ctx-size: -1 is out of range 0..134217728");
    expect_wrong(run, "-n -5", "option -n/--predict: -5 is out of range -1..134217728");
    expect_wrong(run, "-n ten", "option -n/--predict: 'ten' is not a whole number (expected -1..134217728)");
    expect_wrong(run, "-n ''", "option -n/--predict: '' is not a whole number (expected -1..134217728)");
    expect_wrong(run, "-t 100000", "option -t/--threads: 100000 is out of range 0..1024");
    expect_wrong(run, "--temp nan", "option --temp: 'nan' is not a number (expected 0..100)");
    expect_wrong(run, "--temp -1", "option --temp: -1 is out of range 0..100");
    expect_wrong(run, "--top-p 2", "option --top-p: 2 is out of range 0..1");
    expect_wrong(run, "--seed 4294967296", "option -s/--seed: 4294967296 is out of range -1..4294967295");
    expect_wrong(run, "--window 0", "option --window: 0 is out of range 1..134217728");
    expect_wrong(run, "--sink -1", "option --sink: -1 is out of range 0..134217728");
    expect_wrong(run, "--compute fp8", "option --compute: 'fp8' is not one of auto|f32|bf16");
    expect_wrong(run, "--compute f3", "option --compute: 'f3' is not one of auto|f32|bf16");
    expect_wrong(run, "--compute ''", "option --compute: '' is not one of auto|f32|bf16");
    expect_wrong(run, "-m", "option -m/--model needs a value (FILE)");
    expect_wrong(run, "-m -p text", "option -m/--model needs a value (FILE)");
    expect_wrong(run, "--model --prompt=text", "option -m/--model needs a value (FILE)");
    expect_wrong(run, "--json=yes", "option --json takes no value");
    expect_wrong(run, "--temp 1 --temp 1", "option --temp given twice");
    expect_wrong(run, "--predict 1 --n-predict 2", "option -n/--predict given twice");
    expect_wrong(run, "--json --json", "option --json given twice");
    expect_wrong(run, "text", "unexpected argument 'text'; 'tmx run --help' shows the usage");
    expect_wrong(run, "-- --json", "unexpected argument '--json'; 'tmx run --help' shows the usage");
    expect_wrong(&inspect_command, "a b", "option -m/--model given twice");
}

static void repeated_texts_have_a_limit(void **state)
{
    (void)state;
    char line[4096] = "";
    for (int i = 0; i < MAX_TEXTS; i++) strcat(line, "--stop x ");
    assert_int_equal(parse(&run_command, line)->result, OPTIONS_RUN);
    strcat(line, "--stop x");
    expect_wrong(&run_command, line, "option --stop given more than 64 times");
}

static void expect_conflict(const char *line, const char *why)
{
    char text[512] = "nothing wrong";
    const parsed *p = parse(&run_command, line);
    assert_int_equal(p->result, OPTIONS_RUN);
    assert_int_equal(run_options_check(&p->v.run, text, sizeof text), strcmp(why, "nothing wrong") == 0);
    assert_string_equal(text, why);
}

static void options_that_need_or_exclude_each_other(void **state)
{
    (void)state;
    expect_conflict("-m x -p y", "nothing wrong");
    expect_conflict("-m x -f a -f - -n 0 --plan triangle --window 1", "nothing wrong");
    expect_conflict("-p y", "no model: give -m FILE");
    expect_conflict("-m x", "no prompt: give -p TEXT, -f FILE, --ids FILE or -i");
    expect_conflict("-m x -p y -f z", "give only one of -p, -f and --ids");
    expect_conflict("-m x --ids a --chat", "--ids excludes --chat and --special: its prompt is not text");
    expect_conflict("-m x -p y --system s", "option --system needs --chat or -i");
    expect_conflict("-m x -p y --assistant s", "option --assistant needs --chat");
    expect_conflict("-m x -i --json", "option -i excludes --ids, --special, --assistant, --compare, --json, --tokens and --logits");
    expect_conflict("-m x -i -p y --assistant z", "option -i excludes --ids, --special, --assistant, --compare, --json, --tokens and --logits");
    expect_conflict("-m x -i -f y -f z", "option -i takes one first turn");
    expect_conflict("-m x -i -f -", "option -i reads standard input by itself");
    expect_conflict("-m x -p y --chat --special",
                    "--chat excludes --special: control tokens come from the chat format only");
    expect_conflict("-m x -p y --compare", "option --compare needs --plan");
    expect_conflict("-m x -f y -f z --compare --plan triangle", "option --compare takes one prompt");
    expect_conflict("-m x -p y --window 5", "options --sink, --window and --last need --plan");
    expect_conflict("-m x -f - -f -", "option -f/--file: standard input can be read only once");
    expect_conflict("-m x -p y -q -v", "--verbose and --quiet exclude each other");
    expect_conflict("-m x -p y --stop ''", "option --stop: the text is empty");
    expect_conflict("-m x -p y --estimate per-chunk", "option --estimate needs --plan");
    expect_conflict("-m x -p y --plan z --estimate per-chunk:4096", "nothing wrong");
    static const char *const wrong[] = { "per-chunk:", "per-chunk:128", "per-chunk:300", "per-chunk:16777344", "per-chunk:x", "per-chunks", "once" };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char line[80], why[160];
        snprintf(line, sizeof line, "-m x -p y --plan z --estimate %s", wrong[i]);
        snprintf(why, sizeof why, "option --estimate: '%s' is not one-shot, per-chunk or per-chunk:N with N a multiple of 128 from 256 to 16777216", wrong[i]);
        expect_conflict(line, why);
    }
    int32_t rows = -1;
    assert_true(estimate_parse("one-shot", &rows) && rows == 0);
    assert_true(estimate_parse("per-chunk", &rows) && rows == 2048);
    assert_true(estimate_parse("per-chunk:16777216", &rows) && rows == 1 << 24);
}

/* ---------------------------------------------------------------- tmx bench */

static void number_lists_are_llama_benchs(void **state)
{
    (void)state;
    static const struct { const char *text; int32_t n, items[8]; } fine[] = {
        { "512", 1, { 512 } }, { "0", 1, { 0 } }, { "512,2048,8000", 3, { 512, 2048, 8000 } }, { "3-6", 4, { 3, 4, 5, 6 } },
        { "10-35+10", 3, { 10, 20, 30 } }, { "512-4096*2", 4, { 512, 1024, 2048, 4096 } }, { "7-7", 1, { 7 } },
        { "2-3*5,1", 2, { 2, 1 } }, { "1000-1000+9223372036854775807", 1, { 1000 } }, { "99-1000*9223372036854775807", 1, { 99 } },
    };
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++) {
        char why[256] = "nothing wrong";
        number_list list = { .n = 0 };
        if (!numbers_add(&list, "-p", fine[i].text, 0, 10000, why, sizeof why)) fail_msg("%s", why);
        assert_int_equal(list.n, fine[i].n);
        assert_memory_equal(list.items, fine[i].items, (size_t)list.n * sizeof *list.items);
    }
    static const struct { const char *text, *why; } wrong[] = {
        { "", "option -p: '' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "1,", "option -p: '' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "-5", "option -p: '-5' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "1K", "option -p: '1K' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "1-", "option -p: '1-' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "1-5+0", "option -p: '1-5+0' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "1-5*1", "option -p: '1-5*1' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "0-5*2", "option -p: '0-5*2' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "1-5*2x", "option -p: '1-5*2x' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "1-5/2", "option -p: '1-5/2' is no number or range (a-b, a-b+step, a-b*factor)" },
        { " 1", "option -p: ' 1' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "5-1", "option -p: 5-1 is out of range 0..10000" }, { "10001", "option -p: 10001 is out of range 0..10000" },
        { "1-99999", "option -p: 1-99999 is out of range 0..10000" },
        { "99999999999999999999", "option -p: '99999999999999999999' is no number or range (a-b, a-b+step, a-b*factor)" },
        { "1-300", "option -p: more than 256 numbers" },
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char why[256] = "nothing wrong";
        number_list list = { .n = 0 };
        assert_false(numbers_add(&list, "-p", wrong[i].text, 0, 10000, why, sizeof why));
        assert_string_equal(why, wrong[i].why);
    }
}

static void commas_part_plans_but_not_their_layers(void **state)
{
    (void)state;
    static const struct { const char *text; int32_t n; const char *items[4]; } cases[] = {
        { "dense", 1, { "dense" } }, { "dense,triangle", 2, { "dense", "triangle" } },
        { "triangle:5,7,10-29", 1, { "triangle:5,7,10-29" } },
        { "dense,triangle:5,7,10-29,a.json,triangle:3", 4, { "dense", "triangle:5,7,10-29", "a.json", "triangle:3" } },
        { "7,8", 1, { "7,8" } }, { "a,", 2, { "a", "" } }, { ",a", 2, { "", "a" } }, { "", 1, { "" } },
        { "a,1-", 2, { "a", "1-" } }, { "a,-1", 2, { "a", "-1" } }, { "a,1-2-3", 2, { "a", "1-2-3" } }, { "a,1b", 2, { "a", "1b" } },
        { "xattention(stride=8,threshold=0.9)", 1, { "xattention(stride=8,threshold=0.9)" } },
        { "dense,xattention(stride=8,threshold=0.9):0-3,7,flexprefill(gamma=0.9,tau=0.1),triangle", 4,
          { "dense", "xattention(stride=8,threshold=0.9):0-3,7", "flexprefill(gamma=0.9,tau=0.1)", "triangle" } },
        { "mix:triangle=1,3-5,rest=xattention(stride=8,threshold=0.9),dense", 2,
          { "mix:triangle=1,3-5,rest=xattention(stride=8,threshold=0.9)", "dense" } },
        { "mix:xattention(stride=8,norm=1)=0,flexprefill(gamma=0.9,tau=0.1)=2-3,7,mix:rest=triangle,xattention(stride=8)", 3,
          { "mix:xattention(stride=8,norm=1)=0,flexprefill(gamma=0.9,tau=0.1)=2-3,7", "mix:rest=triangle", "xattention(stride=8)" } },
        { "a,rest=b", 2, { "a", "rest=b" } }, { "mix:rest=dense,a.json", 2, { "mix:rest=dense", "a.json" } },
        { "mix:rest=dense,=b,(c)=1", 3, { "mix:rest=dense", "=b", "(c)=1" } },
        { "xattention(stride=8,dense", 1, { "xattention(stride=8,dense" } },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char why[128];
        spec_list specs;
        assert_true(specs_split(&specs, &(text_list){ .items = { cases[i].text }, .n = 1 }, why, sizeof why));
        assert_int_equal(specs.n, cases[i].n);
        for (int32_t k = 0; k < specs.n; k++) assert_string_equal(specs.items[k], cases[i].items[k]);
        specs_free(&specs);
    }
    char many[2 * MAX_TEXTS + 2] = "", why[128];
    for (int i = 0; i < MAX_TEXTS; i++) strcat(many, "a,");
    strcat(many, "a");
    spec_list specs;
    assert_false(specs_split(&specs, &(text_list){ .items = { many }, .n = 1 }, why, sizeof why));
    assert_string_equal(why, "option --plan: more than 64 plans");
    specs_free(&specs);
}

static void semicolons_part_methods(void **state)
{
    (void)state;
    static const struct { const char *text; int32_t n; const char *items[4]; } cases[] = {
        { "s2o", 1, { "s2o" } }, { "xattention(stride=8,threshold=0.9);s2o", 2, { "xattention(stride=8,threshold=0.9)", "s2o" } },
        { " a ;  b(c ; d);e ", 3, { "a", "b(c ; d)", "e" } }, { "", 1, { "" } }, { "a;", 2, { "a", "" } }, { ";a", 2, { "", "a" } },
        { " ", 1, { "" } }, { "a(b;c", 1, { "a(b;c" } }, { "a)b;c", 2, { "a)b", "c" } },
    };
    char why[128];
    spec_list methods;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_true(methods_split(&methods, cases[i].text, why, sizeof why));
        assert_int_equal(methods.n, cases[i].n);
        for (int32_t k = 0; k < methods.n; k++) assert_string_equal(methods.items[k], cases[i].items[k]);
        specs_free(&methods);
    }
    char many[MAX_TEXTS + 1];
    memset(many, ';', MAX_TEXTS);                      /* one method more than semicolons */
    many[MAX_TEXTS] = '\0';
    assert_false(methods_split(&methods, many, why, sizeof why));
    assert_string_equal(why, "more than 64 methods");
    specs_free(&methods);
    many[MAX_TEXTS - 1] = '\0';
    assert_true(methods_split(&methods, many, why, sizeof why));
    assert_int_equal(methods.n, MAX_TEXTS);
    specs_free(&methods);
}

static void expect_bench(const char *line, const char *why)
{
    char text[512] = "nothing wrong";
    parsed *p = parse(&bench_command, line);
    assert_string_equal(p->why, "nothing wrong");
    assert_int_equal(bench_options_check(&p->v.bench, text, sizeof text), strcmp(why, "nothing wrong") == 0);
    assert_string_equal(text, why);
}

static void bench_options_that_need_or_exclude_each_other(void **state)
{
    (void)state;
    expect_bench("-m x", "nothing wrong");
    expect_bench("-m x --estimate one-shot", "option --estimate needs --plan");
    const bench_options *o = &parse(&bench_command, "-m x -p 512 -p 1-2,9 -d 0,4096 --pg 7,8 --pg 9,1")->v.bench;
    char why[256];
    bench_options changed = *o;
    assert_true(bench_options_check(&changed, why, sizeof why));
    assert_int_equal(changed.prompt_list.n, 4);
    assert_int_equal(changed.prompt_list.items[3], 9);
    assert_int_equal(changed.predict_list.n, 1);
    assert_int_equal(changed.predict_list.items[0], 128);
    assert_int_equal(changed.depth_list.items[1], 4096);
    assert_int_equal(changed.pair_predicts[0], 8);
    assert_int_equal(changed.pair_prompts[1], 9);
    assert_int_equal(changed.n_repeats, 5);
    expect_bench("--kernels", "nothing wrong");
    expect_bench("--kernels -m x -p 16-64*2 --head-dim 64 --gqa 4 --isa avx2", "nothing wrong");
    expect_bench("", "no model: give -m FILE, --random-weights SHAPE, or --kernels");
    expect_bench("--random-weights x -p 5 --plan triangle --device cuda:1", "nothing wrong");
    static const char excludes[] = "option --random-weights excludes -m, --kernels, --lora, --lora-scaled and --rope-freq-base";
    expect_bench("--random-weights x -m y", excludes);
    expect_bench("--random-weights x --kernels", excludes);
    expect_bench("--random-weights x --lora y", excludes);
    expect_bench("--random-weights x --rope-freq-base 5", excludes);
    expect_bench("--random-weights x --device cpu", "option --random-weights: such a model is made on a GPU only, and --device is cpu");
    expect_bench("-m x -n 1,x", "option -n/--n-gen: 'x' is no number or range (a-b, a-b+step, a-b*factor)");
    expect_bench("-m x -d 134217729", "option -d/--n-depth: 134217729 is out of range 0..134217728");
    expect_bench("-m x --pg 5", "option --pg: '5' is not two numbers, of prompt and generation");
    expect_bench("-m x --pg 1-3", "option --pg: '1-3' is not two numbers, of prompt and generation");
    expect_bench("-m x --pg 0,3", "option --pg: 0 is out of range 1..134217728");
    expect_bench("-m x --window 3", "options --sink, --window and --last need --plan");
    expect_bench("-m x --gqa 3", "options --head-dim, --gqa and --rows need --kernels");
    expect_bench("--kernels -n 3", "option --kernels excludes -n, -d, --pg, --plan, --svg and --no-warmup");
    expect_bench("--kernels --chunk 3",
                 "option --kernels excludes --compute, --cache-type and --chunk: it times every type, whole");
    expect_bench("--kernels -p 0", "option -p/--n-prompt: 0 is out of range 1..134217728");
    expect_bench("--kernels --head-dim 513", "option --head-dim: 513 is out of range 1..512");
    expect_wrong(&bench_command, "-r 0", "option -r/--repetitions: 0 is out of range 1..1000");
    expect_wrong(&bench_command, "-o sql", "option -o/--output: 'sql' is not one of md|csv|json");
}

/* ---------------------------------------------------------------- tables */

static const command *const all[] = { &run_command, &plan_command, &probe_command, &eval_command, &bench_command, &inspect_command };
enum { N_ALL = sizeof all / sizeof all[0] };

static void scaled_texts_share_one_list(void **state)
{
    (void)state;
    const parsed *p = parse(&run_command, "--lora a --lora-scaled b 0.5 --lora c --lora-scaled=d -2e1");
    assert_int_equal(p->result, OPTIONS_RUN);
    static const double scales[] = { 1, 0.5, 1, -20 };
    const scaled_list *list = &p->v.run.changes.loras;
    assert_int_equal(list->n, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(list->items[i][0], "abcd"[i]);
        assert_true(list->scales[i] == scales[i]);
    }
    static const struct { const char *line, *why; } cases[] = {
        { "--lora", "option --lora needs a value (FILE)" },
        { "--lora-scaled", "option --lora-scaled needs a value (FILE S)" },
        { "--lora-scaled a", "option --lora-scaled needs two values (FILE S)" },
        { "--lora-scaled a b", "option --lora-scaled: 'b' is not a number (expected -1e+06..1e+06, not 0)" },
        { "--lora-scaled a nan", "option --lora-scaled: 'nan' is not a number (expected -1e+06..1e+06, not 0)" },
        { "--lora-scaled a -m", "option --lora-scaled: '-m' is not a number (expected -1e+06..1e+06, not 0)" },
        { "--lora-scaled a 0", "option --lora-scaled: 0 is out of range -1e+06..1e+06, not 0" },
        { "--lora-scaled a 1e7", "option --lora-scaled: 1e7 is out of range -1e+06..1e+06, not 0" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        expect_wrong(&run_command, cases[i].line, cases[i].why);
        expect_wrong(&plan_command, cases[i].line, cases[i].why);
        expect_wrong(&inspect_command, cases[i].line, cases[i].why);
    }
    char line[4096] = "";
    for (int i = 0; i <= MAX_TEXTS; i++) strcat(line, "--lora a ");
    line[strlen(line) - 1] = '\0';
    expect_wrong(&run_command, line, "option --lora given more than 64 times");
}

static void tables_are_sound(void **state)
{
    (void)state;
    for (int c = 0; c < N_ALL; c++) {
        assert_true(all[c]->n_options <= MAX_OPTIONS);
        for (int32_t i = 0; i < all[c]->n_options; i++) {
            const option_spec *o = &all[c]->options[i];
            assert_non_null(o->help);
            assert_int_equal(o->kind == OPTION_SWITCH, o->argument == NULL);
            assert_int_equal(o->kind == OPTION_CHOICE, o->choices != NULL);
            for (int32_t k = 0; k < i; k++) {
                const option_spec *other = &all[c]->options[k];
                assert_string_not_equal(o->name, other->name);
                assert_true(o->letter == 0 || o->letter != other->letter);
                const bool share_a_list = o->kind == OPTION_SCALED && other->kind == OPTION_UNSCALED;
                assert_int_equal(o->offset == other->offset, share_a_list);
                /* a group is one block: --help prints its heading once */
                if (strcmp(o->group, other->group) == 0) assert_string_equal(o->group, all[c]->options[i - 1].group);
            }
        }
    }
}

static char *print_to_text(void (*print)(const command *, FILE *), const command *c)
{
    char *text = NULL;
    size_t n;
    FILE *file = open_memstream(&text, &n);
    assert_non_null(file);
    print(c, file);
    fclose(file);
    return text;
}

static void help_names_every_option_within_its_width(void **state)
{
    (void)state;
    for (int c = 0; c < N_ALL; c++) {
        char *text = print_to_text(options_print_help, all[c]);
        for (int32_t i = 0; i < all[c]->n_options; i++) {
            char name[64];
            snprintf(name, sizeof name, "--%s", all[c]->options[i].name);
            assert_non_null(strstr(text, name));
        }
        assert_non_null(strstr(text, "\nExamples\n"));
        for (const char *line = text; strncmp(line, "Examples\n", 9) != 0; line += strcspn(line, "\n") + 1) {
            assert_in_range(strcspn(line, "\n"), 0, 100);
            assert_true(line[0] == '\n' || line[strcspn(line, "\n") - 1] != ' ');
        }
        free(text);
    }
}

static void man_pages_escape_roff(void **state)
{
    (void)state;
    const command odd = { .name = "odd", .usage = "", .summary = "s", .description = ".a -b\n'c \\d" };
    char *page = print_to_text(options_print_man, &odd);
    assert_non_null(strstr(page, "\n\\&.a \\-b\n.PP\n\\&'c \\ed\n"));
    free(page);
    for (int c = 0; c < N_ALL; c++) {
        char *text = print_to_text(options_print_man, all[c]);
        assert_int_equal(strncmp(text, ".TH tmx", 7), 0);
        assert_non_null(strstr(text, ".SH EXIT STATUS"));
        for (const char *line = text; *line != '\0'; line += strcspn(line, "\n") + 1) {
            if (line[0] != '.') continue;
            static const char *const requests[] = { ".TH ", ".SH ", ".SS ", ".TP\n", ".PP\n", ".nf\n", ".fi\n", ".RS\n",
                                                    ".RE\n" };
            bool is_known = false;
            for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++) {
                is_known |= strncmp(line, requests[i], 4) == 0;
            }
            assert_true(is_known);
        }
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integers_are_whole_strings),
        cmocka_unit_test(numbers_are_finite_whole_strings),
        cmocka_unit_test(defaults_fill_every_member),
        cmocka_unit_test(every_spelling_is_read),
        cmocka_unit_test(unknown_options_are_named),
        cmocka_unit_test(wrong_values_are_refused),
        cmocka_unit_test(repeated_texts_have_a_limit),
        cmocka_unit_test(options_that_need_or_exclude_each_other),
        cmocka_unit_test(scaled_texts_share_one_list),
        cmocka_unit_test(number_lists_are_llama_benchs),
        cmocka_unit_test(commas_part_plans_but_not_their_layers),
        cmocka_unit_test(semicolons_part_methods),
        cmocka_unit_test(bench_options_that_need_or_exclude_each_other),
        cmocka_unit_test(tables_are_sound),
        cmocka_unit_test(help_names_every_option_within_its_width),
        cmocka_unit_test(man_pages_escape_roff),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
