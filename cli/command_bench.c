/* command_bench.c - tmx bench: turns options into tests or kernel shapes, lets bench/ time them, and prints. */
#include "bench_picture.h"
#include "bench_report.h"
#include "commands.h"
#include "model_choice.h"
#include "plan_choice.h"
#include "progress.h"
#include "report.h"
#include "signals.h"
#include "spec_list.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TESTS = 4096, PROGRESS_STEPS = 1000000 };

typedef struct benchmark {
    const bench_options *options;
    tmx_pool *pool;
    tmx_model *model;
    tmx_plan *plans[BENCH_MAX_PLANS];
    bench_test *tests;             /* [MAX_TESTS] */
    int32_t n_tests;
    bench_facts facts;
    bench_report report;
    ceilings ceilings;             /* of --kernels */
    bool has_ceilings;             /* they are printed */
    progress progress;
    char label[96];                /* of the progress bar */
} benchmark;

/* ---------------------------------------------------------------- facts */

/* "model name : NAME" of the first CPU the kernel lists. */
static void read_cpu(char *text, size_t size)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(text, size, "unknown CPU");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        const char *name = colon + 1 + strspn(colon + 1, " ");
        snprintf(text, size, "%.*s", (int)strcspn(name, "\n"), name);
        break;
    }
    if (file != NULL) fclose(file);
}

/* Architecture, size and the block type that most bytes have, as llama-bench names a model; and the bytes of all tensors. */
static void describe_file(bench_facts *f, const tmx_file *file, const tmx_model_info *info)
{
    enum { MAX_TYPES = 64 };
    const char *types[MAX_TYPES], *most = "";
    uint64_t bytes[MAX_TYPES], n_most = 0;
    int32_t n_types = 0;
    for (int32_t i = 0; i < tmx_file_n_tensors(file); i++) {
        tmx_tensor_info t;
        if (tmx_file_tensor(file, i, &t, NULL) != TMX_OK) continue;
        int32_t k = 0;
        while (k < n_types && strcmp(types[k], t.type_name) != 0) k++;
        if (k == MAX_TYPES) continue;
        if (k == n_types) {
            types[n_types] = t.type_name;
            bytes[n_types++] = 0;
        }
        bytes[k] += t.n_bytes;
        f->model_bytes += t.n_bytes;
    }
    for (int32_t k = 0; k < n_types; k++) {
        if (bytes[k] <= n_most) continue;
        n_most = bytes[k];
        most = types[k];
    }
    const bool is_small = info->n_params < 1000000000;
    f->n_params = info->n_params;
    f->n_layers = info->n_layers;
    snprintf(f->model_type, sizeof f->model_type, "%.24s %.0f%c %.16s", info->architecture,
             (double)info->n_params / (is_small ? 1e6 : 1e9), is_small ? 'M' : 'B', most);
}

static int describe_model(benchmark *b, tmx_model_info *info)
{
    const bench_options *o = b->options;
    tmx_error err;
    tmx_file *file;
    tmx_lora loras[MAX_TEXTS];
    tmx_model_params params = { .compute = (tmx_compute)o->compute };
    model_choose(&o->changes, loras, &params);
    if (tmx_file_open(&file, o->model, &err) != TMX_OK) return complain_error(&err);
    const tmx_status status = tmx_model_probe_file(file, &params, info, &err);
    if (status == TMX_OK) describe_file(&b->facts, file, info);
    tmx_file_close(file);
    b->facts.model_path = o->model;
    return status == TMX_OK ? 0 : complain_error(&err);
}

/* There is no file to describe. */
static void describe_random(benchmark *b)
{
    const tmx_model_info *info = tmx_model_info_get(b->model);
    bench_facts *f = &b->facts;
    f->model_path = info->name;
    f->model_bytes = 2 * info->n_params;           /* bf16 */
    f->n_params = info->n_params;
    f->n_layers = info->n_layers;
    snprintf(f->model_type, sizeof f->model_type, "%.40s BF16", b->options->random_shape);
}

/* ---------------------------------------------------------------- tests */

static int add_test(benchmark *b, int32_t n_prompt, int32_t n_gen, int32_t n_depth)
{
    if (n_prompt == 0 && n_gen == 0) return 0;
    const bench_test test = { n_prompt, n_gen, n_depth };
    for (int32_t i = 0; i < b->n_tests; i++) {
        if (memcmp(&b->tests[i], &test, sizeof test) == 0) return 0;
    }
    if (b->n_tests == MAX_TESTS) return complain(EXIT_USAGE, "more than %d tests", MAX_TESTS);
    b->tests[b->n_tests++] = test;
    return 0;
}

/* Before the model is opened, so that a wrong option costs no time. */
static int list_tests(benchmark *b)
{
    const bench_options *o = b->options;
    int code = 0;
    b->tests = calloc(MAX_TESTS, sizeof *b->tests);
    if (b->tests == NULL) return complain(EXIT_RESOURCES, "out of memory for %d tests", MAX_TESTS);
    for (int32_t d = 0; d < o->depth_list.n; d++) {
        const int32_t n_depth = o->depth_list.items[d];
        for (int32_t i = 0; i < o->prompt_list.n && code == 0; i++) code = add_test(b, o->prompt_list.items[i], 0, n_depth);
        for (int32_t i = 0; i < o->predict_list.n && code == 0; i++) code = add_test(b, 0, o->predict_list.items[i], n_depth);
        for (int32_t i = 0; i < o->pairs.n && code == 0; i++) code = add_test(b, o->pair_prompts[i], o->pair_predicts[i], n_depth);
    }
    if (code == 0 && b->n_tests == 0) code = complain(EXIT_USAGE, "no test: -p and -n are 0");
    return code;
}

static int add_plan(benchmark *b, const char *spec)
{
    const bench_options *o = b->options;
    bench_facts *f = &b->facts;
    const int32_t i = f->n_plans;
    const plan_choice choice = { .spec = spec, .n_sink = o->n_sink, .n_window = o->n_window, .n_last = o->n_last,
                                 .estimate = o->estimate };
    const int code = plan_choose(&choice, tmx_model_info_get(b->model), &b->plans[i]);
    if (code != 0) return code;
    f->plans[i] = b->plans[i];
    plan_label(f->labels[i], spec, b->plans[i], f->labels, i);
    f->n_plans++;
    return 0;
}

_Static_assert((int)MAX_TEXTS <= (int)BENCH_MAX_PLANS, "every plan that specs_split gives has a place");

static int make_plans(benchmark *b)
{
    char why[128];
    spec_list specs;
    int code = 0;
    if (b->options->plans.n == 0) return add_plan(b, "dense");
    if (!specs_split(&specs, &b->options->plans, why, sizeof why)) code = complain(EXIT_USAGE, "%s", why);
    for (int32_t i = 0; i < specs.n && code == 0; i++) code = add_plan(b, specs.items[i]);
    specs_free(&specs);
    return code;
}

static int open_model(benchmark *b)
{
    const bench_options *o = b->options;
    const model_opening opening = { .path = o->model, .random_shape = o->random_shape, .changes = &o->changes, .compute = o->compute,
                                    .isa = o->isa, .device = device_choose(o->device), .is_quiet = o->is_quiet };
    const int code = open_chosen_model(&b->model, &opening, b->pool);
    if (code != 0) return code;
    const bool is_f32 = tmx_model_compute(b->model) == TMX_COMPUTE_F32;
    b->facts.gpu = tmx_model_device_name(b->model);
    b->facts.isa = tmx_isa_name(tmx_model_isa(b->model));
    b->facts.compute = is_f32 ? "f32" : "bf16";
    b->facts.cache_type = o->cache_type == TMX_TYPE_F32 || (o->cache_type == TMX_TYPE_DEFAULT && is_f32) ? "f32" : "bf16";
    return 0;
}

/* ---------------------------------------------------------------- a model from end to end */

static bool on_bench_progress(void *ctx, const bench_progress *at)
{
    benchmark *b = ctx;
    char name[64];
    snprintf(b->label, sizeof b->label, "%s%s %.28s", at->is_check ? "checking " : "", bench_test_name(&at->test, name),
             b->facts.labels[at->plan]);
    const tmx_progress bar = { .n_done = (int64_t)(at->share * PROGRESS_STEPS), .n_total = PROGRESS_STEPS };
    return progress_update(&b->progress, &bar);
}

static void on_result(void *ctx, const bench_result *result)
{
    benchmark *b = ctx;
    progress_clear(&b->progress);
    bench_print_result(&b->report, result);
}

static int finish_run(benchmark *b, tmx_status status, bool is_stopped, const tmx_error *err)
{
    signals_end_polite();
    progress_end(&b->progress);
    bench_print_end(&b->report);
    if (status != TMX_OK) return complain_error(err);
    return is_stopped ? signals_say_interrupted() : 0;
}

static int time_model(benchmark *b)
{
    const bench_options *o = b->options;
    tmx_model_info info = { 0 };
    int code = list_tests(b);
    if (code == 0 && o->model != NULL) code = describe_model(b, &info);
    if (code == 0) code = open_model(b);
    if (code == 0 && o->model == NULL) describe_random(b);
    if (code == 0) code = make_plans(b);
    if (code != 0) return code;

    tmx_error err;
    bench_run run;
    const bench_params params = {
        .model = b->model, .pool = b->pool, .session = { .n_chunk = o->n_chunk, .kv_type = (tmx_type)o->cache_type },
        .plans = b->facts.plans, .n_plans = b->facts.n_plans, .tests = b->tests, .n_tests = b->n_tests, .n_repeats = o->n_repeats,
        .is_cold = o->is_cold, .seed = (uint64_t)o->seed, .progress = on_bench_progress, .finished = on_result, .ctx = b,
    };
    progress_begin(&b->progress, b->label);
    signals_begin_polite();
    const tmx_status status = bench_model(&run, &params, &err);
    code = finish_run(b, status, run.is_stopped, &err);
    if (o->picture != NULL && status == TMX_OK) {
        const int picture_code = write_bench_picture(o->picture, &b->facts, &run);
        if (code == 0) code = picture_code;
    }
    bench_run_free(&run);
    return code;
}

/* ---------------------------------------------------------------- kernels alone */

static bool on_kernel_progress(void *ctx, double share)
{
    benchmark *b = ctx;
    const tmx_progress bar = { .n_done = (int64_t)(share * PROGRESS_STEPS), .n_total = PROGRESS_STEPS };
    return progress_update(&b->progress, &bar);
}

static void on_kernel(void *ctx, const kernel_result *result)
{
    benchmark *b = ctx;
    progress_clear(&b->progress);
    if (!b->has_ceilings) bench_print_ceilings(&b->report, &b->ceilings);
    b->has_ceilings = true;
    bench_print_kernel(&b->report, result);
}

static int time_kernels(benchmark *b)
{
    static const kernel_shape common[] = {         /* of the 135M demo model, then of a 7B */
        { 960, 576 }, { 576, 576 }, { 3072, 576 }, { 576, 1536 }, { 4096, 4096 }, { 11008, 4096 }, { 4096, 11008 },
    };
    const bench_options *o = b->options;
    tmx_error err;
    tmx_isa isa = TMX_ISA_AUTO;
    kernel_params p = {
        .pool = b->pool, .lengths = o->prompt_list.items, .n_lengths = o->prompt_list.n, .head_dims = o->head_dim_list.items,
        .n_head_dims = o->head_dim_list.n, .groups = o->group_list.items, .n_groups = o->group_list.n, .shapes = common,
        .n_shapes = sizeof common / sizeof common[0], .n_rows = o->n_rows > 0 ? o->n_rows : 512, .n_repeats = o->n_repeats,
        .seed = (uint64_t)o->seed, .progress = on_kernel_progress, .finished = on_kernel, .ctx = b,
    };
    kernel_shape own[4];
    tmx_model_info info = { .n_kv_heads = 1 };    /* without a model nobody reads it */
    int32_t n_group = 1;
    if (o->isa != NULL && tmx_isa_parse(o->isa, &isa, &err) != TMX_OK) return complain_error(&err);
    if (o->model != NULL) {
        const int code = describe_model(b, &info);
        if (code != 0) return code;
        const int32_t n_q = info.n_heads * info.head_dim, n_kv = info.n_kv_heads * info.head_dim;
        n_group = info.n_heads / info.n_kv_heads;
        /* the engine's products: q, k and v are one, gate and up are one */
        own[0] = (kernel_shape){ n_q + 2 * n_kv, info.n_embd };
        own[1] = (kernel_shape){ info.n_embd, n_q };
        own[2] = (kernel_shape){ 2 * info.n_ff, info.n_embd };
        own[3] = (kernel_shape){ info.n_embd, info.n_ff };
        p.shapes = own, p.n_shapes = 4;
        if (o->head_dims.n == 0) p.head_dims = &info.head_dim, p.n_head_dims = 1;
        if (o->groups.n == 0) p.groups = &n_group, p.n_groups = 1;
    }
    p.isa = isa;
    bool is_stopped;
    snprintf(b->label, sizeof b->label, "kernels");
    progress_begin(&b->progress, b->label);
    signals_begin_polite();
    const tmx_status status = bench_kernels(&p, &b->ceilings, &is_stopped, &err);
    return finish_run(b, status, is_stopped, &err);
}

/* ---------------------------------------------------------------- the command */

/* A picture that cannot be written should be known before minutes have passed. */
static int check_picture(const char *path)
{
    FILE *file = path != NULL ? fopen(path, "ab") : NULL;
    if (path != NULL && file == NULL) return complain(EXIT_INPUT, "%s: cannot be created: %s", path, strerror(errno));
    if (file != NULL) fclose(file);
    return 0;
}

int bench_main(const bench_options *o)
{
    benchmark *b = calloc(1, sizeof *b);
    tmx_error err;
    if (b == NULL) return complain(EXIT_RESOURCES, "out of memory for the benchmark");
    b->options = o;
    b->report = (bench_report){ .facts = &b->facts, .form = o->output, .records = { .is_json = o->output == BENCH_OUTPUT_JSON } };
    b->facts.n_chunk = o->n_chunk;
    b->facts.n_repeats = o->n_repeats;
    b->facts.seed = o->seed;
    read_cpu(b->facts.cpu, sizeof b->facts.cpu);
    progress_init(&b->progress, o->is_quiet);
    int code = check_picture(o->picture);
    if (code == 0 && tmx_pool_create(&b->pool, o->n_threads, &err) != TMX_OK) code = complain_error(&err);
    if (code == 0) {
        b->facts.n_threads = tmx_pool_n_threads(b->pool);
        code = o->is_kernels ? time_kernels(b) : time_model(b);
    }
    for (int32_t i = 0; i < BENCH_MAX_PLANS; i++) tmx_plan_free(b->plans[i]);
    tmx_model_close(b->model);
    tmx_pool_free(b->pool);
    free(b->tests);
    free(b);
    return code;
}
