/* wrap: malloc calloc realloc free */
/* test_model_memory.c - a model, a plan and a session when memory runs out, and what they take when it does not. */
#include "alloc_watch.h"
#include "base/cpu.h"
#include "model/model.h"
#include "tiny_lora.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define DEMO_MODEL TMX_SOURCE_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf"
#define DEMO_ADAPTER TMX_SOURCE_DIR "/eval/longctx/smollm2-135m-32k.lora.gguf"

/* ---------------------------------------------------------------- what happens when there is none */

static bool is_mapped(const char *path)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    bool is_found = false;
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) is_found |= strstr(line, path) != NULL;
    if (maps != NULL) fclose(maps);
    return is_found;
}

/* Two matrices, one of them twice. */
static void create_adapters(tiny_lora loras[2])
{
    const tiny_pair up = { .base = "blk.0.ffn_up.weight", .n_out = TINY_FF, .n_in = TINY_EMBD, .rank = 3 };
    const tiny_pair down = { .base = "blk.2.ffn_down.weight", .n_out = TINY_EMBD, .n_in = TINY_FF, .rank = 5 };
    for (int i = 0; i < 2; i++) {
        loras[i] = tl_begin((uint64_t)i, 1, (tiny_lora_keys){ 0 });
        tl_pair(&loras[i], &up, 1, NULL);
        if (i == 1) tl_pair(&loras[i], &down, 1, NULL);
        tl_finish(&loras[i]);
    }
}

/* Every one of the first 200, then a sample. */
static long next_failure(long n) { return n < 200 ? n + 1 : n + 37; }

typedef struct scarce {
    const char *path, *spec;
    tmx_model_params params;
    const tmx_model *model;
    const tmx_plan *plan;
    void *made;
} scarce;

static tmx_status make_model(scarce *s, tmx_error *err)
{
    return tmx_model_open((tmx_model **)&s->made, s->path, &s->params, NULL, err);
}

static tmx_status make_plan(scarce *s, tmx_error *err)
{
    return tmx_plan_parse((tmx_plan **)&s->made, s->spec, &s->model->info, err);
}

static tmx_status make_session(scarce *s, tmx_error *err)
{
    return tmx_session_create((tmx_session **)&s->made, s->model, s->plan, NULL, NULL, err);
}

/* A dense session that is given a plan which needs more: when that fails, it answers as before. */
static tmx_status make_session_grow(scarce *s, tmx_error *err)
{
    static int32_t tokens[300];
    tmx_session *session;
    tmx_status status = tmx_session_create(&session, s->model, NULL, NULL, NULL, err);
    if (status != TMX_OK) return status;
    status = tmx_session_set_plan(session, s->plan, err);
    if (status == TMX_OK) {
        s->made = session;
        return TMX_OK;
    }
    static float logits[TINY_VOCAB];
    const tmx_prompt prompt = { .tokens = tokens, .n_tokens = 300, .logits = logits };
    assert_int_equal(tmx_prefill(session, &prompt, 1, NULL), TMX_OK);
    assert_true(tmx_session_layer_density(session, 0) == 1);
    tmx_session_free(session);
    return status;
}

static void drop_model(scarce *s) { tmx_model_close(s->made); }
static void drop_plan(scarce *s) { tmx_plan_free(s->made); }
static void drop_session(scarce *s) { tmx_session_free(s->made); }

/* No crash, no leak, the right status, and the result untouched.  PCRE2 does without its compiler's. */
static void fail_each(const char *what, scarce *s,
                      tmx_status (*make)(scarce *s, tmx_error *err), void (*drop)(scarce *s))
{
    long n_tolerated = 0;
    for (long n = 1; n < 100000; n = next_failure(n)) {
        tmx_error err = { 0 };
        s->made = NULL;
        watch_begin(n);
        const tmx_status status = make(s, &err);
        if (status == TMX_OK) drop(s);
        watch_end();
        assert_int_equal(watch.n_live, 0);
        if (s->path != NULL) assert_false(is_mapped(s->path));
        if (watch.n_calls < n) {
            assert_int_equal(status, TMX_OK);
            print_message("%s: %ld allocations, %ld may fail\n", what, watch.n_calls, n_tolerated);
            return;
        }
        if (status == TMX_OK) {
            n_tolerated++;
            continue;
        }
        if (status != TMX_E_MEMORY) fail_msg("allocation %ld: %s %s", n, tmx_status_name(status), err.text);
        assert_true(err.code == TMX_E_MEMORY && err.text[0] != '\0');
        assert_null(s->made);
    }
    fail_msg("%s: never succeeds", what);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    static const tmx_compute computes[] = { TMX_COMPUTE_F32, TMX_COMPUTE_BF16 };
    tiny_model tiny;
    tmx_error err;
    tmx_model *model;
    tmx_plan *plan;
    tiny_lora loras[2];
    char plan_path[80];
    tiny_model_create(&tiny, 9, true, true);
    create_adapters(loras);
    const tmx_lora given[2] = { { loras[0].path, 1 }, { loras[1].path, 2 } };
    snprintf(plan_path, sizeof plan_path, "%s.plan", tiny.path);
    for (int i = 0; i < 2; i++) {
        scarce s = { .path = tiny.path, .params = { .compute = computes[i] } };
        fail_each(i == 0 ? "model, f32" : "model, bf16", &s, make_model, drop_model);
        s.params.loras = given;
        s.params.n_loras = 2;
        fail_each("the same with adapters", &s, make_model, drop_model);
        assert_false(is_mapped("/tmp/tmx-lora-"));
    }
    assert_int_equal(tmx_model_open(&model, tiny.path, NULL, NULL, &err), TMX_OK);
    assert_int_equal(tmx_plan_parse(&plan, "triangle:1-2", tmx_model_info_get(model), &err), TMX_OK);
    assert_int_equal(tmx_plan_save(plan, plan_path, &err), TMX_OK);
    scarce s = { .model = model, .plan = plan };
    fail_each("session", &s, make_session, drop_session);
    s.plan = NULL;
    fail_each("session without a plan", &s, make_session, drop_session);
    s.spec = "triangle:1-2";
    fail_each("plan", &s, make_plan, drop_plan);
    s.spec = "mix:triangle=1,xattention(stride=4)=2,rest=flexprefill(min_budget=1)";
    fail_each("plan of many methods", &s, make_plan, drop_plan);
    tmx_plan *dynamic;
    assert_int_equal(tmx_plan_parse(&dynamic, s.spec, tmx_model_info_get(model), &err), TMX_OK);
    s.plan = dynamic;
    fail_each("session, a plan that needs more", &s, make_session_grow, drop_session);
    tmx_plan_free(dynamic);
    s.spec = plan_path;
    fail_each("plan from a file", &s, make_plan, drop_plan);
    tmx_plan_free(plan);
    tmx_model_close(model);
    unlink(plan_path);
    for (int i = 0; i < 2; i++) tl_remove(&loras[i]);
    tiny_model_free(&tiny);
}

/* ---------------------------------------------------------------- what the memory plan says */

/* What a file and its vocabulary take by themselves. */
static long long bytes_without_weights(const char *path)
{
    tmx_file *file;
    vocab *v;
    tmx_error err;
    watch_begin(0);
    assert_int_equal(tmx_file_open(&file, path, &err), TMX_OK);
    assert_int_equal(vocab_create(&v, file, &err), TMX_OK);
    watch_end();
    const long long n_bytes = watch.n_live_bytes;
    vocab_free(v);
    tmx_file_close(file);
    return n_bytes;
}

/* 8 KiB more for the records around the numbers, which count in a tiny model only. */
static void expect_within_5_percent(const char *what, uint64_t predicted, long long taken_bytes)
{
    print_message("  %-20s predicted %12llu, taken %12lld\n", what, (unsigned long long)predicted, taken_bytes);
    assert_true(fabs((double)predicted - (double)taken_bytes) <= 0.05 * (double)taken_bytes + 8192);
}

/* Blocks that oneDNN takes by itself are not seen here; the packed weights are ours. */
static void check_prediction(const char *path, const tmx_model_params *params, const tmx_session_params *session_params)
{
    tmx_model *model;
    tmx_session *session;
    tmx_error err;
    tmx_memory memory;
    const long long n_other = bytes_without_weights(path);
    watch_begin(0);
    assert_int_equal(tmx_model_open(&model, path, params, NULL, &err), TMX_OK);
    watch_end();
    const long long n_model = watch.n_live_bytes - n_other;
    watch_begin(0);
    assert_int_equal(tmx_session_create(&session, model, NULL, NULL, session_params, &err), TMX_OK);
    watch_end();
    const tmx_model_info *info = tmx_model_info_get(model);
    assert_int_equal(tmx_memory_plan(info, params->compute, params->isa, session_params, 1, &memory, &err), TMX_OK);
    expect_within_5_percent("weights", memory.weight_bytes + memory.merged_bytes, n_model);
    assert_true((memory.merged_bytes > 0) == (params->n_loras > 0));
    expect_within_5_percent("KV and workspace", memory.kv_bytes + memory.workspace_bytes, watch.n_live_bytes);
    assert_int_equal(memory.total_bytes, memory.weight_bytes + memory.merged_bytes + memory.kv_bytes + memory.workspace_bytes);
    tmx_session_free(session);
    tmx_model_close(model);
}

static void memory_is_predicted(void **state)
{
    (void)state;
    tiny_model tiny;
    tiny_lora loras[2];
    tiny_model_create(&tiny, 10, true, true);
    create_adapters(loras);
    const tmx_lora given[2] = { { loras[0].path, 1 }, { loras[1].path, 2 } };
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AVX512; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            tmx_model_params params = { .isa = (tmx_isa)isa, .compute = (tmx_compute)compute };
            check_prediction(tiny.path, &params, &(tmx_session_params){ .n_chunk = 100, .n_seqs = 2 });
            params.loras = given;
            params.n_loras = 2;
            check_prediction(tiny.path, &params, &(tmx_session_params){ .n_chunk = 100, .n_seqs = 2 });
        }
    }
    for (int i = 0; i < 2; i++) tl_remove(&loras[i]);
    tiny_model_free(&tiny);
    if (access(DEMO_MODEL, R_OK) != 0) {
        print_message("skipped for the demo model: %s is not there\n", DEMO_MODEL);
        return;
    }
    check_prediction(DEMO_MODEL, &(tmx_model_params){ 0 }, &(tmx_session_params){ .n_ctx = 4096 });
    const tmx_model_params adapted = { .loras = &(tmx_lora){ .path = DEMO_ADAPTER }, .n_loras = 1 };
    check_prediction(DEMO_MODEL, &adapted, &(tmx_session_params){ .n_ctx = 4096 });
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(memory_is_predicted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
