/* test_families.c - a tiny random model of every family: logits against transformers' own class (stored), chunks and threads
 * against each other to the bit, prefill against decoding, and what a plan may change. */
#include "gguf/gguf.h"
#include "tiny_family_f64.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { N_STORED = (TF_VOCAB + 3) / 4, MAX_TOKENS = 300 };

/* Largest difference relative to the largest logit; measured: 5e-6, phi3-long at 300 tokens. */
static const double limit = 1e-4;

typedef struct golden {
    char name[32];
    int n_tokens;
    double largest, logits[N_STORED];
} golden;

static golden goldens[3 * 16];
static int n_goldens;
static double worst;
static int32_t tokens[MAX_TOKENS];

static int read_goldens(void **state)
{
    (void)state;
    FILE *file = fopen("tests/vectors/logits_families.txt", "r");
    char head[256];
    if (file == NULL || fgets(head, sizeof head, file) == NULL) return -1;
    for (golden *g = goldens; fscanf(file, "%31s %d %lf", g->name, &g->n_tokens, &g->largest) == 3; g++, n_goldens++) {
        for (int i = 0; i < N_STORED; i++) {
            if (fscanf(file, "%lf", &g->logits[i]) != 1) return -1;
        }
    }
    tf_tokens(tokens, MAX_TOKENS);
    return fclose(file);
}

/* ---------------------------------------------------------------- running */

typedef struct run_case {
    tmx_isa isa;
    tmx_compute compute;
    int32_t n_threads, n_chunk, n_ctx;
    const char *plan;              /* or NULL */
    int n_decoded;                 /* of the tokens, the last ones by decoding */
} run_case;

static void run(const tf_model *m, int n_tokens, const run_case *c, float *logits)
{
    tmx_error err;
    tmx_pool *pool;
    tmx_model *model;
    tmx_session *session;
    tmx_plan *plan = NULL;
    if (tmx_pool_create(&pool, c->n_threads, &err) != TMX_OK) fail_msg("%s", err.text);
    const tmx_model_params params = { .compute = c->compute, .isa = c->isa };
    if (tmx_model_open(&model, m->path, &params, pool, &err) != TMX_OK) fail_msg("%s: %s", m->spec->name, err.text);
    if (c->plan != NULL) {
        if (tmx_plan_parse(&plan, c->plan, tmx_model_info_get(model), &err) != TMX_OK) fail_msg("%s", err.text);
        assert_int_equal(tmx_plan_set_sizes(plan, 2, 8, 4, &err), TMX_OK);
    }
    const tmx_session_params sizes = { .n_ctx = c->n_ctx > 0 ? c->n_ctx : n_tokens, .n_chunk = c->n_chunk };
    if (tmx_session_create(&session, model, plan, pool, &sizes, &err) != TMX_OK) fail_msg("%s", err.text);
    const int n_first = n_tokens - c->n_decoded;
    const tmx_prompt prompt = { .tokens = tokens, .n_tokens = n_first, .logits = logits };
    if (tmx_prefill(session, &prompt, 1, &err) != TMX_OK) fail_msg("%s", err.text);
    for (int i = n_first; i < n_tokens; i++) assert_int_equal(tmx_decode(session, 0, tokens[i], logits, &err), TMX_OK);
    tmx_session_free(session);
    tmx_plan_free(plan);
    tmx_model_close(model);
    tmx_pool_free(pool);
}

static void compare(const golden *g, const float *logits, const char *how)
{
    for (int i = 0; i < N_STORED; i++) {
        const double diff = fabs((double)logits[4 * i] - g->logits[i]) / g->largest;
        if (!(diff <= limit)) {
            fail_msg("%s, %d tokens, %s: logit %d is %.7g, transformers has %.7g", g->name, g->n_tokens, how, 4 * i,
                     (double)logits[4 * i], g->logits[i]);
        }
        if (diff > worst) worst = diff;
    }
}

/* ---------------------------------------------------------------- tests */

static void logits_are_those_of_transformers(void **state)
{
    (void)state;
    static const run_case whole = { .compute = TMX_COMPUTE_F32, .n_threads = 2 };
    static const run_case plain = { .compute = TMX_COMPUTE_F32, .n_threads = 1, .isa = TMX_ISA_SCALAR, .n_chunk = 64 };
    float logits[TF_VOCAB];
    int n_compared = 0;
    for (int i = 0; i < TF_N_SPECS; i++) {
        tf_model m;
        tf_create(&m, &tf_specs[i]);
        for (int k = 0; k < n_goldens; k++) {
            if (strcmp(goldens[k].name, m.spec->name) != 0) continue;
            run(&m, goldens[k].n_tokens, &whole, logits);
            compare(&goldens[k], logits, "prefill");
            run(&m, goldens[k].n_tokens, &plain, logits);
            compare(&goldens[k], logits, "scalar prefill in chunks");
            run_case decoded = whole;
            decoded.n_decoded = goldens[k].n_tokens / 3;
            run(&m, goldens[k].n_tokens, &decoded, logits);
            compare(&goldens[k], logits, "decoding after a prefill");
            n_compared++;
        }
        tf_free(&m);
    }
    assert_int_equal(n_compared, 3 * TF_N_SPECS);
}

/* The f64 pass stands on transformers' numbers; then it may be asked about plans, which transformers does not know. */
static void plans_match_f64(void **state)
{
    (void)state;
    enum { N = 60 };
    for (int i = 0; i < TF_N_SPECS; i++) {
        tf_model m;
        float logits[TF_VOCAB];
        double expected[TF_VOCAB], largest = 0;
        tmx_pattern patterns[8];
        tf_create(&m, &tf_specs[i]);
        for (int k = 0; k < n_goldens; k++) {
            if (strcmp(goldens[k].name, m.spec->name) != 0 || goldens[k].n_tokens > 33) continue;
            tf_forward(&(tf_f64){ .m = &m, .n = goldens[k].n_tokens, .n_ctx = goldens[k].n_tokens }, tokens, expected);
            for (int v = 0; v < N_STORED; v++) assert_true(fabs(expected[4 * v] - goldens[k].logits[v]) <= 1e-5 * goldens[k].largest);
        }
        for (int l = 0; l < m.spec->n_layers; l++) {
            patterns[l] = (tmx_pattern){ .kind = TMX_PATTERN_TRIANGLE, .n_sink = 2, .n_window = 8, .n_last = 4 };
        }
        tf_forward(&(tf_f64){ .m = &m, .n = N, .n_ctx = N, .patterns = patterns }, tokens, expected);
        run(&m, N, &(run_case){ .compute = TMX_COMPUTE_F32, .n_threads = 1, .n_chunk = 7, .plan = "triangle" }, logits);
        for (int v = 0; v < TF_VOCAB; v++) largest = fmax(largest, fabs(expected[v]));
        for (int v = 0; v < TF_VOCAB; v++) assert_true(fabs((double)logits[v] - expected[v]) <= limit * largest);
        tf_free(&m);
    }
}

static void chunks_and_threads_move_no_bit(void **state)
{
    (void)state;
    static const char *const plans[] = { "dense", "triangle" };
    for (int i = 0; i < TF_N_SPECS; i++) {
        tf_model m;
        tf_create(&m, &tf_specs[i]);
        for (int k = 0; k < 4; k++) {
            float whole[TF_VOCAB], cut[TF_VOCAB];
            run_case c = { .compute = k % 2 == 0 ? TMX_COMPUTE_F32 : TMX_COMPUTE_BF16, .n_threads = 1, .plan = plans[k / 2] };
            run(&m, MAX_TOKENS, &c, whole);
            c.n_threads = 3;
            c.n_chunk = 41;
            run(&m, MAX_TOKENS, &c, cut);
            assert_memory_equal(whole, cut, sizeof whole);
        }
        tf_free(&m);
    }
}

/* In bf16 the products see rounded values: close, and the same to a few parts in a hundred. */
static void bf16_is_near_f32(void **state)
{
    (void)state;
    for (int i = 0; i < TF_N_SPECS; i++) {
        tf_model m;
        float exact[TF_VOCAB], rounded[TF_VOCAB], largest = 0, diff = 0;
        tf_create(&m, &tf_specs[i]);
        run(&m, 33, &(run_case){ .compute = TMX_COMPUTE_F32, .n_threads = 1 }, exact);
        run(&m, 33, &(run_case){ .compute = TMX_COMPUTE_BF16, .n_threads = 1 }, rounded);
        for (int k = 0; k < TF_VOCAB; k++) {
            largest = fmaxf(largest, fabsf(exact[k]));
            diff = fmaxf(diff, fabsf(exact[k] - rounded[k]));
        }
        if (!(diff <= 0.1f * largest)) fail_msg("%s: bf16 differs by %g of %g", m.spec->name, (double)diff, (double)largest);
        tf_free(&m);
    }
}

/* Which divisors hold is the session's matter: the same prompt in a longer one gets the long ones. */
static void longrope_goes_by_the_session(void **state)
{
    (void)state;
    tf_model m;
    float fitting[TF_VOCAB], roomy[TF_VOCAB], edge[TF_VOCAB];
    tf_create(&m, &tf_specs[TF_N_SPECS - 1]);
    assert_string_equal(m.spec->name, "phi3-long");
    run_case c = { .compute = TMX_COMPUTE_F32, .n_threads = 1 };
    run(&m, 33, &c, fitting);
    c.n_ctx = TF_CTX_ORIGINAL;
    run(&m, 33, &c, edge);
    assert_memory_equal(fitting, edge, sizeof edge);
    c.n_ctx = TF_CTX_ORIGINAL + 1;
    run(&m, 33, &c, roomy);
    assert_memory_not_equal(fitting, roomy, sizeof roomy);
    tf_free(&m);
}

static const tf_spec *spec_of(const char *name)
{
    for (int i = 0; i < TF_N_SPECS; i++) {
        if (strcmp(tf_specs[i].name, name) == 0) return &tf_specs[i];
    }
    return NULL;
}

static void a_plan_leaves_own_windows_alone(void **state)
{
    (void)state;
    tf_model m;
    tmx_error err;
    tmx_pool *pool;
    tmx_model *model;
    tmx_plan *plan, *other;
    tmx_session *session;
    char text[256];
    tf_create(&m, spec_of("gemma3"));
    assert_int_equal(tmx_pool_create(&pool, 1, &err), TMX_OK);
    assert_int_equal(tmx_model_open(&model, m.path, NULL, pool, &err), TMX_OK);
    const tmx_model_info *info = tmx_model_info_get(model);
    assert_int_equal(info->n_window, TF_WINDOW);
    assert_true(tmx_model_layer_has_window(info, 4) && !tmx_model_layer_has_window(info, 5) && tmx_model_layer_has_window(info, 6));

    assert_int_equal(tmx_plan_parse(&plan, "triangle", info, &err), TMX_OK);
    assert_string_equal(tmx_plan_text(plan, text, sizeof text),
                        "triangle 5 (sink 8, window 512, last 128), the model's own window of 32 0-4,6");
    assert_int_equal(tmx_plan_layer(plan, 5)->kind, TMX_PATTERN_TRIANGLE);
    assert_int_equal(tmx_plan_layer(plan, 6)->kind, TMX_PATTERN_DENSE);
    assert_int_equal(tmx_plan_own_window(plan, 6), TF_WINDOW);
    assert_int_equal(tmx_plan_own_window(plan, 5), 0);
    assert_int_equal(tmx_plan_parse(&other, "triangle:5", info, &err), TMX_OK);
    tmx_plan_free(other);
    assert_int_equal(tmx_plan_parse(&other, "triangle:4-5", info, &err), TMX_E_ARG);
    assert_string_equal(err.text, "plan: layer 4 has a sliding window of the model's own, of 32 tokens, which a plan cannot change");

    static const struct { const char *spec, *text; } specs[] = {
        { "xattention", "xattention 5 (stride 8, threshold 0.9, norm 1), the model's own window of 32 0-4,6" },
        { "flexprefill(tau=0.2):5", "flexprefill 5 (gamma 0.9, tau 0.2, min_budget 512), the model's own window of 32 0-4,6" },
        { "mix:triangle=5", "triangle 5 (sink 8, window 512, last 128), the model's own window of 32 0-4,6" },
        { "mix:rest=triangle", "triangle 5 (sink 8, window 512, last 128), the model's own window of 32 0-4,6" },
        { "mix:dense=5,rest=xattention", "dense 5, the model's own window of 32 0-4,6" },
    };
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        assert_int_equal(tmx_plan_parse(&other, specs[i].spec, info, &err), TMX_OK);
        assert_string_equal(tmx_plan_text(other, text, sizeof text), specs[i].text);
        tmx_plan_free(other);
    }
    static const char *const named[] = { "xattention:4", "mix:flexprefill=0-4", "mix:dense=4,triangle=5", "mix:rest=dense,triangle=4-5" };
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++) {
        assert_int_equal(tmx_plan_parse(&other, named[i], info, &err), TMX_E_ARG);
        assert_non_null(strstr(err.text, "has a sliding window of the model's own, of 32 tokens, which a plan cannot change"));
    }

    /* A plan that was made for a model without windows meets one that has them in the session. */
    tmx_model_info without = *info;
    without.n_window = 0;
    assert_int_equal(tmx_plan_parse(&other, "triangle:3", &without, &err), TMX_OK);
    const tmx_session_params sizes = { .n_ctx = 64 };
    assert_int_equal(tmx_session_create(&session, model, other, pool, &sizes, &err), TMX_E_ARG);
    assert_non_null(strstr(err.text, "layer 3 has a sliding window of the model's own"));
    assert_int_equal(tmx_session_create(&session, model, plan, pool, &sizes, &err), TMX_OK);
    assert_int_equal(tmx_session_set_plan(session, other, &err), TMX_E_ARG);
    tmx_session_free(session);
    tmx_plan_free(other);

    /* A plan file says the same. */
    assert_int_equal(tmx_plan_parse(&other, "triangle:6", &without, &err), TMX_OK);
    snprintf(text, sizeof text, "%s.json", m.path);
    assert_int_equal(tmx_plan_save(other, text, &err), TMX_OK);
    tmx_plan_free(other);
    assert_int_equal(tmx_plan_parse(&other, text, info, &err), TMX_E_FORMAT);
    assert_non_null(strstr(err.text, "layer 6 has a sliding window of the model's own, of 32 tokens, which a plan cannot change"));
    unlink(text);
    tmx_plan_free(plan);
    tmx_model_close(model);
    tmx_pool_free(pool);
    tf_free(&m);
}

/* ---------------------------------------------------------------- files that ask for what there is not */

typedef struct added { const char *family, *key; char kind; double value; tmx_status status; const char *text; } added;

static void add_key(gguf_writer *w, const void *ctx)
{
    const added *a = ctx;
    unsigned char flags[7] = { 1, 1, 1, 1, 1, 0, 1 };
    switch (a->kind) {
    case 'u': gw_key_u32(w, a->key, (uint32_t)a->value); break;
    case 'f': gw_key_f32(w, a->key, (float)a->value); break;
    case 'b':                          /* a flag per layer; `value` of them, the last but one as it should not be if it is odd */
        if (a->value < 0) flags[5] = 1;
        gw_key_array(w, a->key, 7, (uint64_t)fabs(a->value), flags, (size_t)fabs(a->value));
        break;
    default: {                         /* a tensor of that many zeros */
        float zeros[64] = { 0 };
        const int64_t n = (int64_t)a->value;
        gw_tensor(w, a->key, BLOCK_F32, 1, &n, zeros, (size_t)n * sizeof *zeros);
    }
    }
}

static void what_is_not_there_is_named(void **state)
{
    (void)state;
#define PATTERN "gemma3.attention.sliding_window_pattern"
    static const added cases[] = {
        { "gemma3", PATTERN, 'u', 6, TMX_OK, "" },
        { "gemma3", PATTERN, 'u', 4, TMX_E_UNSUPPORTED, PATTERN ": only every sixth layer without a window is supported" },
        { "gemma3", PATTERN, 'f', 6, TMX_E_FORMAT, "key '" PATTERN "': type f32, expected u32" },
        { "gemma3", PATTERN, 'b', 7, TMX_OK, "" },
        { "gemma3", PATTERN, 'b', -7, TMX_E_UNSUPPORTED, PATTERN ": only every sixth layer without a window is supported" },
        { "gemma3", PATTERN, 'b', 6, TMX_E_UNSUPPORTED, PATTERN ": only every sixth layer without a window is supported" },
        { "gemma3", "gemma3.rope.freq_base_swa", 'f', 0, TMX_E_FORMAT, "gemma3.rope.freq_base_swa is 0, expected a positive number" },
        { "gemma3", "gemma3.final_logit_softcapping", 'f', 30, TMX_E_UNSUPPORTED,
          "gemma3.final_logit_softcapping 30: capped logits are not supported" },
        { "gemma3", "gemma3.expert_count", 'u', 4, TMX_E_UNSUPPORTED, "mixture of experts is not supported in this family" },
        { "qwen2", "qwen2.attention.sliding_window", 'u', 16, TMX_E_UNSUPPORTED,
          "qwen2.attention.sliding_window 16: a sliding window is not supported in this family" },
        { "qwen2", "qwen2.attention.sliding_window", 'u', 131072, TMX_OK, "" },
        { "qwen2-yarn", "qwen2.rope.scaling.attn_factor", 'f', 1, TMX_OK, "" },
        { "qwen2-yarn", "qwen2.rope.scaling.attn_factor", 'f', 1.25, TMX_E_UNSUPPORTED,
          "qwen2.rope.scaling.attn_factor 1.25: YaRN with a factor of its own is not supported" },
        { "qwen2-yarn", "qwen2.rope.scaling.yarn_beta_fast", 'f', -1, TMX_E_FORMAT,
          "qwen2.rope.scaling.yarn_beta_fast is -1, expected a positive number" },
        { "phi3-long", "phi3.rope.scaling.attn_factor", 'f', (double)NAN, TMX_E_FORMAT,
          "phi3.rope.scaling.attn_factor is nan, expected a positive number" },
        { "phi3", "rope_factors_long.weight", 't', 8, TMX_E_FORMAT, "key 'phi3.rope.scaling.original_context_length' is missing" },
        { "phi3", "blk.0.attn_qkv.bias", 't', 8, TMX_E_UNSUPPORTED, "blk.0.attn_qkv.bias is not part of a phi3 layer" },
        { "qwen3", "blk.1.attn_q.bias", 't', 8, TMX_E_UNSUPPORTED, "blk.1.attn_q.bias is not part of a qwen3 layer" },
    };
    tmx_pool *pool;
    assert_int_equal(tmx_pool_create(&pool, 1, NULL), TMX_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tf_model m;
        tmx_model *model = NULL;
        tmx_error err = { 0 };
        tf_create_with(&m, spec_of(cases[i].family), add_key, &cases[i]);
        const tmx_status status = tmx_model_open(&model, m.path, NULL, pool, &err);
        if (status != cases[i].status || strstr(err.text, cases[i].text) == NULL) fail_msg("%s: %s", cases[i].key, err.text);
        tmx_model_close(model);
        tf_free(&m);
    }
    tmx_pool_free(pool);
}

static void expect_counts(int n_experts, int n_used, int n_ff_expert, const char *text)
{
    tf_spec spec = *spec_of("qwen3moe");
    spec.n_experts = n_experts, spec.n_used = n_used, spec.n_ff_expert = n_ff_expert;
    tf_model m;
    tmx_model *model = NULL;
    tmx_error err = { 0 };
    tf_create(&m, &spec);
    const tmx_status status = tmx_model_open(&model, m.path, NULL, NULL, &err);
    if ((status == TMX_OK) != (text == NULL) || (text != NULL && strstr(err.text, text) == NULL)) fail_msg("%s", err.text);
    tmx_model_close(model);
    tf_free(&m);
}

static void experts_are_counted(void **state)
{
    (void)state;
    expect_counts(1, 1, 8, NULL);
    expect_counts(5, 5, 8, NULL);
    expect_counts(4, 5, 8, "qwen3moe.expert_used_count is 5, expected 1..4");
    expect_counts(4, 0, 8, "qwen3moe.expert_used_count is 0, expected 1..4");
}

/* Bytes of the header changed at random: a file opens or is refused with a reason, and nothing reads beyond it (the sanitizers
 * watch). */
static void spoiled_headers_are_survived(void **state)
{
    (void)state;
    enum { N_TRIALS = 300 };
    int n_opened = 0, n_refused = 0;
    for (int i = 0; i < TF_N_SPECS; i++) {
        tf_model m;
        tf_create(&m, &tf_specs[i]);
        FILE *file = fopen(m.path, "rb");
        assert_true(file != NULL && fseek(file, 0, SEEK_END) == 0);
        const size_t n_bytes = (size_t)ftell(file);
        unsigned char *whole = malloc(n_bytes), *spoiled = malloc(n_bytes);
        rewind(file);
        assert_int_equal(fread(whole, 1, n_bytes, file), n_bytes);
        assert_int_equal(fclose(file), 0);
        tmx_file *good;
        assert_int_equal(gguf_open_memory(&good, whole, n_bytes, "good", NULL), TMX_OK);
        const size_t n_header = (size_t)gguf_tensor_at(good, 0)->offset_bytes;
        tmx_file_close(good);
        for (int k = 0; k < N_TRIALS; k++) {
            tmx_file *bad;
            tmx_model_info info;
            tmx_error err = { 0 };
            memcpy(spoiled, whole, n_bytes);
            for (int b = 0; b <= k % 3; b++) {
                const uint64_t random = tf_random(991, (uint64_t)((i * N_TRIALS + k) * 3 + b));
                spoiled[random % n_header] = (unsigned char)(random >> 56);
            }
            tmx_status status = gguf_open_memory(&bad, spoiled, n_bytes, "bad", &err);
            if (status == TMX_OK) {
                status = tmx_model_probe_file(bad, NULL, &info, &err);
                tmx_file_close(bad);
            }
            if (status == TMX_OK) n_opened++;
            else n_refused++;
            assert_true(status == TMX_OK || err.text[0] != '\0');
        }
        free(whole);
        free(spoiled);
        tf_free(&m);
    }
    assert_true(n_opened > 0 && n_refused > 0);
}

static int report(void **state)
{
    (void)state;
    printf("# worst difference from transformers: %.2g of the largest logit\n", worst);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_transformers),
        cmocka_unit_test(plans_match_f64),
        cmocka_unit_test(chunks_and_threads_move_no_bit),
        cmocka_unit_test(bf16_is_near_f32),
        cmocka_unit_test(longrope_goes_by_the_session),
        cmocka_unit_test(a_plan_leaves_own_windows_alone),
        cmocka_unit_test(what_is_not_there_is_named),
        cmocka_unit_test(experts_are_counted),
        cmocka_unit_test(spoiled_headers_are_survived),
    };
    return cmocka_run_group_tests(tests, read_goldens, report);
}
