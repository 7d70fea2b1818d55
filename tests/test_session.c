/* test_session.c - prefill and decode of a tiny random model: against f64, and bit for bit against themselves. */
#include "base/cpu.h"
#include "run/session.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { N_PROMPT = 203 };

static const tmx_pattern triangle = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = 3, .n_window = 20, .n_last = 11 };
static const tmx_pattern streaming = { .kind = TMX_PATTERN_STREAMING, .n_sink = 3, .n_window = 20 };
static const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE };

typedef struct machine {           /* a model opened in one way */
    tiny_model tiny;
    tmx_pool *pool;
    tmx_model *model;
} machine;

static void random_tokens(int32_t *tokens, int32_t n, uint64_t seed)
{
    for (int32_t i = 0; i < n; i++) tokens[i] = (int32_t)(tiny_random(&seed) % TINY_VOCAB);
}

static void open_machine(machine *m, tmx_isa isa, tmx_compute compute, int32_t n_threads)
{
    tmx_error err = { 0 };
    tiny_model_create(&m->tiny, 7, isa != TMX_ISA_AVX2, isa != TMX_ISA_SCALAR);
    assert_int_equal(tmx_pool_create(&m->pool, n_threads, &err), TMX_OK);
    const tmx_model_params params = { .isa = isa, .compute = compute };
    if (tmx_model_open(&m->model, m->tiny.path, &params, m->pool, &err) != TMX_OK) fail_msg("%s", err.text);
}

static void close_machine(machine *m)
{
    tmx_model_close(m->model);
    tmx_pool_free(m->pool);
    tiny_model_free(&m->tiny);
}

static tmx_session *open_session(const machine *m, const tmx_pattern *patterns, const tmx_session_params *params)
{
    tmx_error err = { 0 };
    tmx_plan *plan;
    tmx_session *session = NULL;
    assert_int_equal(plan_create_dense(&plan, TINY_LAYERS, &err), TMX_OK);
    for (int l = 0; l < TINY_LAYERS; l++) plan->layers[l] = patterns[l];
    if (tmx_session_create(&session, m->model, plan, m->pool, params, &err) != TMX_OK) fail_msg("%s", err.text);
    tmx_plan_free(plan);
    return session;
}

static void prefill(const machine *m, const tmx_pattern *pattern, int32_t n_chunk, const int32_t *tokens, int32_t n, float *logits)
{
    const tmx_pattern patterns[TINY_LAYERS] = { *pattern, *pattern, *pattern };
    tmx_error err = { 0 };
    tmx_session *session = open_session(m, patterns, &(tmx_session_params){ .n_chunk = n_chunk });
    for (int i = 0; i < TINY_VOCAB; i++) logits[i] = NAN;
    const tmx_prompt prompt = { .tokens = tokens, .n_tokens = n, .logits = logits };
    if (tmx_prefill(session, &prompt, 1, &err) != TMX_OK) fail_msg("%s", err.text);
    tmx_session_free(session);
}

/* Relative to the largest logit. */
static double worst_difference(const float *a, const double *b)
{
    double worst = 0, largest = 0;
    for (int i = 0; i < TINY_VOCAB; i++) {
        const double difference = fabs((double)a[i] - b[i]);
        if (!(difference <= worst)) worst = difference;         /* NaN never passes */
        largest = fmax(largest, fabs(b[i]));
    }
    return worst / largest;
}

/* Measured: f32 below 4e-6, bf16 below 2.7e-2, on every rung. */
static double limit_of(tmx_compute compute) { return compute == TMX_COMPUTE_F32 ? 1e-5 : 0.04; }

static void logits_match_f64(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 1, 2, 16, 17, 64, 65, N_PROMPT };
    const tmx_pattern mixed[TINY_LAYERS] = { dense, triangle, streaming }, all_triangle[TINY_LAYERS] = { triangle, triangle, triangle };
    int32_t tokens[N_PROMPT];
    random_tokens(tokens, N_PROMPT, 1);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            machine m;
            double worst = 0;
            open_machine(&m, (tmx_isa)isa, (tmx_compute)compute, 2);
            for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
                const tmx_pattern *patterns = i % 2 ? mixed : all_triangle;
                float logits[TINY_VOCAB];
                double expected[TINY_VOCAB];
                tmx_error err;
                tmx_session *session = open_session(&m, patterns, NULL);
                const tmx_prompt prompt = { .tokens = tokens, .n_tokens = lengths[i], .logits = logits };
                assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
                tiny_forward_f64(&m.tiny, tokens, lengths[i], patterns, expected);
                worst = fmax(worst, worst_difference(logits, expected));
                tmx_session_free(session);
            }
            print_message("%-10s %s: worst difference %.2e\n", tmx_isa_name((tmx_isa)isa),
                          compute == TMX_COMPUTE_F32 ? "f32 " : "bf16", worst);
            assert_true(worst <= limit_of((tmx_compute)compute));
            close_machine(&m);
        }
    }
}

static void bits_never_move(void **state)
{
    (void)state;
    static const int32_t chunks[] = { 1, 7, 64, 100, N_PROMPT, 5000 };
    const tmx_pattern *const patterns[] = { &dense, &triangle, &streaming };
    int32_t tokens[N_PROMPT];
    random_tokens(tokens, N_PROMPT, 2);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            float first[3][TINY_VOCAB], logits[TINY_VOCAB];
            for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
                machine m;
                open_machine(&m, (tmx_isa)isa, (tmx_compute)compute, n_threads);
                for (int p = 0; p < 3; p++) {
                    if (n_threads == 1) prefill(&m, patterns[p], 0, tokens, N_PROMPT, first[p]);
                    for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
                        prefill(&m, patterns[p], chunks[c], tokens, N_PROMPT, logits);
                        if (memcmp(logits, first[p], sizeof logits) == 0) continue;
                        fail_msg("%s, compute %d, %s, chunk %d, %d threads: other bits", tmx_isa_name((tmx_isa)isa), compute,
                                 tmx_pattern_name(patterns[p]->kind), chunks[c], n_threads);
                    }
                }
                close_machine(&m);
            }
        }
    }
}

static void patterns_that_see_the_same_give_the_same_bits(void **state)
{
    (void)state;
    const tmx_pattern wide = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = 0, .n_window = N_PROMPT, .n_last = 5 };
    const tmx_pattern no_tail = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = 3, .n_window = 20, .n_last = 0 };
    int32_t tokens[N_PROMPT];
    random_tokens(tokens, N_PROMPT, 3);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            machine m;
            float a[TINY_VOCAB], b[TINY_VOCAB];
            open_machine(&m, (tmx_isa)isa, (tmx_compute)compute, 2);
            prefill(&m, &dense, 0, tokens, N_PROMPT, a);
            prefill(&m, &wide, 64, tokens, N_PROMPT, b);
            assert_memory_equal(a, b, sizeof a);
            prefill(&m, &streaming, 0, tokens, N_PROMPT, a);
            prefill(&m, &no_tail, 64, tokens, N_PROMPT, b);
            assert_memory_equal(a, b, sizeof a);
            prefill(&m, &dense, 0, tokens, N_PROMPT, b);
            assert_memory_not_equal(a, b, sizeof a);
            close_machine(&m);
        }
    }
}

static void a_batch_is_its_prompts(void **state)
{
    (void)state;
    enum { N_SEQS = 4 };
    static const int32_t lengths[N_SEQS] = { 90, 1, N_PROMPT, 33 }, seqs[N_SEQS] = { 2, 0, 3, 1 };
    static int32_t tokens[N_SEQS][N_PROMPT];
    machine m;
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    const tmx_pattern patterns[TINY_LAYERS] = { triangle, dense, triangle };
    static float alone[N_SEQS][TINY_VOCAB], together[N_SEQS][TINY_VOCAB];
    tmx_error err;
    tmx_prompt prompts[N_SEQS];
    for (int i = 0; i < N_SEQS; i++) {
        random_tokens(tokens[i], N_PROMPT, (uint64_t)i + 10);
        tmx_session *session = open_session(&m, patterns, NULL);
        prompts[i] = (tmx_prompt){ .tokens = tokens[i], .n_tokens = lengths[i], .logits = alone[i] };
        assert_int_equal(tmx_prefill(session, &prompts[i], 1, &err), TMX_OK);
        tmx_session_free(session);
    }
    for (int32_t n_chunk = 30; n_chunk < 400; n_chunk += 170) {
        tmx_session *session = open_session(&m, patterns, &(tmx_session_params){ .n_seqs = N_SEQS, .n_chunk = n_chunk });
        for (int i = 0; i < N_SEQS; i++) {
            prompts[i].logits = together[i];
            prompts[i].seq = seqs[i];
        }
        memset(together, 0xff, sizeof together);
        assert_int_equal(tmx_prefill(session, prompts, N_SEQS, &err), TMX_OK);
        assert_memory_equal(alone, together, sizeof alone);
        for (int i = 0; i < N_SEQS; i++) assert_int_equal(tmx_session_n_past(session, seqs[i]), lengths[i]);
        tmx_session_free(session);
    }
    close_machine(&m);
}

/* Prompts below the plan's min_tokens, in one batch with prompts above it; in the last layer, too. */
static void short_prompts_run_dense(void **state)
{
    (void)state;
    enum { N_SEQS = 3 };
    static const int32_t lengths[N_SEQS] = { 99, N_PROMPT, 100 };
    static int32_t tokens[N_SEQS][N_PROMPT];
    static float expected[N_SEQS][TINY_VOCAB], got[N_SEQS][TINY_VOCAB];
    machine m;
    tmx_error err;
    tmx_prompt prompts[N_SEQS];
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    for (int32_t i = 0; i < N_SEQS; i++) {
        random_tokens(tokens[i], N_PROMPT, (uint64_t)i + 30);
        prefill(&m, lengths[i] < 100 ? &dense : &streaming, 0, tokens[i], lengths[i], expected[i]);
        prompts[i] = (tmx_prompt){ .tokens = tokens[i], .n_tokens = lengths[i], .seq = i, .logits = got[i] };
    }
    const tmx_pattern patterns[TINY_LAYERS] = { streaming, streaming, streaming };
    for (int32_t n_chunk = 30; n_chunk < 600; n_chunk += 190) {
        tmx_session *session = open_session(&m, patterns, &(tmx_session_params){ .n_seqs = N_SEQS, .n_chunk = n_chunk });
        assert_int_equal(tmx_plan_set_min_tokens(session->plan, 100, NULL), TMX_OK);
        assert_int_equal(tmx_prefill(session, prompts, N_SEQS, &err), TMX_OK);
        assert_memory_equal(got, expected, sizeof expected);
        tmx_session_free(session);
    }
    close_machine(&m);
}

/* ---- dynamic layers */

enum { N_LONG = 700 };

static tmx_session *open_dynamic(const machine *m, const char *spec, int32_t n_chunk, int32_t n_seqs)
{
    tmx_error err = { .text = "" };
    tmx_plan *plan;
    tmx_session *session = NULL;
    if (tmx_plan_parse(&plan, spec, tmx_model_info_get(m->model), &err) != TMX_OK) fail_msg("%s", err.text);
    const tmx_session_params params = { .n_chunk = n_chunk, .n_seqs = n_seqs };
    if (tmx_session_create(&session, m->model, plan, m->pool, &params, &err) != TMX_OK) fail_msg("%s", err.text);
    tmx_plan_free(plan);
    return session;
}

static void prefill_dynamic(const machine *m, const char *spec, int32_t n_chunk, const int32_t *tokens, int32_t n, float *logits,
                            double *density)
{
    tmx_error err;
    tmx_session *session = open_dynamic(m, spec, n_chunk, 1);
    for (int i = 0; i < TINY_VOCAB; i++) logits[i] = NAN;
    const tmx_prompt prompt = { .tokens = tokens, .n_tokens = n, .logits = logits };
    if (tmx_prefill(session, &prompt, 1, &err) != TMX_OK) fail_msg("%s", err.text);
    if (density != NULL) *density = tmx_session_layer_density(session, 0);
    tmx_session_free(session);
}

static void dynamic_bits_never_move(void **state)
{
    (void)state;
    static const int32_t chunks[] = { 1, 200, 512, 5000 };    /* raised to 128, cut at multiples of it */
    enum { N_SPECS = 5 };
    static const char *const specs[N_SPECS] = { "xattention(threshold=0.3)", "s2o(segment=128,tau=0.3,sink=8,min_tiles=1)", "mix:triangle=1,rest=xattention(stride=16,threshold=0.4)",
                                                "flexprefill(gamma=0.4,tau=0.05,min_budget=1)",
                                                "mix:triangle=1,rest=minference(vertical=30,slash=110)" };
    int32_t tokens[N_LONG];
    random_tokens(tokens, N_LONG, 12);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            float first[N_SPECS][TINY_VOCAB], logits[TINY_VOCAB];
            for (int32_t n_threads = 1; n_threads <= 3; n_threads += 2) {
                machine m;
                open_machine(&m, (tmx_isa)isa, (tmx_compute)compute, n_threads);
                for (int p = 0; p < N_SPECS; p++) {
                    double density;
                    if (n_threads == 1) {
                        prefill_dynamic(&m, specs[p], 0, tokens, N_LONG, first[p], &density);
                        assert_true(density > 0.3 && density < 0.95);
                    }
                    for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
                        prefill_dynamic(&m, specs[p], chunks[c], tokens, N_LONG, logits, NULL);
                        if (memcmp(logits, first[p], sizeof logits) == 0) continue;
                        fail_msg("%s, compute %d, %s, chunk %d, %d threads: other bits", tmx_isa_name((tmx_isa)isa), compute,
                                 specs[p], chunks[c], n_threads);
                    }
                }
                close_machine(&m);
            }
        }
    }
}

static void a_threshold_of_1_is_dense_to_the_bit(void **state)
{
    (void)state;
    int32_t tokens[N_LONG];
    random_tokens(tokens, N_LONG, 13);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            machine m;
            float a[TINY_VOCAB], b[TINY_VOCAB];
            double density;
            open_machine(&m, (tmx_isa)isa, (tmx_compute)compute, 2);
            prefill(&m, &dense, 0, tokens, N_LONG, a);
            prefill_dynamic(&m, "xattention(threshold=1)", 0, tokens, N_LONG, b, &density);
            assert_memory_equal(a, b, sizeof a);
            assert_true(density == 1);
            prefill_dynamic(&m, "flexprefill(gamma=1)", 0, tokens, N_LONG, b, &density);
            assert_memory_equal(a, b, sizeof a);
            prefill_dynamic(&m, "xattention(threshold=0.3)", 0, tokens, N_LONG, b, &density);
            assert_memory_not_equal(a, b, sizeof a);
            prefill_dynamic(&m, "flexprefill(gamma=0.3,min_budget=1)", 0, tokens, N_LONG, b, &density);
            assert_memory_not_equal(a, b, sizeof a);
            prefill_dynamic(&m, "flexprefill(gamma=0.3,min_budget=641)", 0, tokens, N_LONG, b, &density);
            assert_memory_equal(a, b, sizeof a);           /* the budget is the prompt: dense */
            prefill_dynamic(&m, "s2o(segment=384)", 0, tokens, N_LONG, b, &density);
            assert_memory_equal(a, b, sizeof a);           /* two segments: dense */
            prefill_dynamic(&m, "minference", 0, tokens, N_LONG, b, &density);
            assert_memory_equal(a, b, sizeof a);
            assert_true(density == 1);
            prefill_dynamic(&m, "minference(vertical=30,slash=100)", 0, tokens, N_LONG, b, &density);
            assert_memory_not_equal(a, b, sizeof a);
            prefill(&m, &dense, 0, tokens, 256, a);        /* two blocks: nothing to drop */
            prefill_dynamic(&m, "xattention(threshold=0.01)", 0, tokens, 256, b, &density);
            assert_memory_equal(a, b, sizeof a);
            close_machine(&m);
        }
    }
}

#define THRESHOLDS_FILE TMX_BINARY_DIR "/test-session-thresholds.json"
#define BY_HEAD "xattention(threshold=0.3,thresholds=" THRESHOLDS_FILE ")"

/* A table whose layer 0 keeps everything, and layer 1 in its first head only. */
static void write_thresholds(void)
{
    FILE *f = fopen(THRESHOLDS_FILE, "w");
    assert_non_null(f);
    for (int layer = 0; layer < TINY_LAYERS; layer++) {
        for (int head = 0; head < TINY_HEADS; head++) {
            fprintf(f, "%s%s", head > 0 ? ", " : layer > 0 ? ",\n[" : "[[", layer == 0 || (layer == 1 && head == 0) ? "1" : "null");
        }
        fprintf(f, "]");
    }
    fprintf(f, "]\n");
    assert_int_equal(fclose(f), 0);
}

static void thresholds_are_those_of_layer_and_head(void **state)
{
    (void)state;
    static const char *const specs[] = { "mix:dense=0,rest=xattention(threshold=0.3)", BY_HEAD };
    int32_t tokens[N_LONG];
    double density[2][2];
    machine m;
    tmx_error err;
    write_thresholds();
    random_tokens(tokens, N_LONG, 13);
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    for (int i = 0; i < 2; i++) {
        tmx_session *session = open_dynamic(&m, specs[i], 0, 1);
        const tmx_prompt prompt = { .tokens = tokens, .n_tokens = N_LONG };
        assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
        for (int32_t layer = 0; layer < 2; layer++) density[i][layer] = tmx_session_layer_density(session, layer);
        tmx_session_free(session);
    }
    assert_true(density[0][0] == 1 && density[1][0] == 1);
    assert_true(density[1][1] > density[0][1] && density[1][1] < 1);
    tmx_plan *plan;
    assert_int_equal(tmx_plan_parse(&plan, BY_HEAD, &m.model->info, &err), TMX_OK);
    plan->n_heads = TINY_HEADS + 1;
    tmx_session *session = open_dynamic(&m, "dense", 0, 1);
    assert_int_equal(tmx_session_set_plan(session, plan, &err), TMX_E_ARG);
    assert_non_null(strstr(err.text, "plan: xattention is configured for"));
    tmx_session_free(session);
    tmx_plan_free(plan);
    close_machine(&m);
}

/* Prompts of these lengths together in one session. */
static void prefill_per_chunk(const machine *m, const char *spec, int32_t rows, int32_t n_chunk, int32_t n_prompts, int32_t *const tokens[],
                              const int32_t *lengths, float (*logits)[TINY_VOCAB])
{
    enum { MOST = 2 };
    tmx_error err;
    tmx_plan *plan;
    tmx_prompt prompts[MOST];
    tmx_session *session = open_dynamic(m, "dense", n_chunk, n_prompts);
    assert_int_equal(tmx_plan_parse(&plan, spec, &m->model->info, &err), TMX_OK);
    assert_int_equal(tmx_plan_set_estimate_rows(plan, rows, &err), TMX_OK);
    assert_int_equal(tmx_session_set_plan(session, plan, &err), TMX_OK);
    for (int32_t i = 0; i < n_prompts; i++) {
        prompts[i] = (tmx_prompt){ .tokens = tokens[i], .n_tokens = lengths[i], .seq = i, .logits = logits[i] };
    }
    if (tmx_prefill(session, prompts, n_prompts, &err) != TMX_OK) fail_msg("%s", err.text);
    tmx_session_free(session);
    tmx_plan_free(plan);
}

/* What is estimated together is the plan's, never the session's chunk or the batch; and a plan that estimates the whole prompt at once is
 * one-shot.  XAttention and S2O do not change. */
static void estimates_per_chunk_are_the_plans(void **state)
{
    (void)state;
    enum { N_PROMPTS = 2 };
    static const char *const specs[] = { "mix:minference(vertical=30,slash=100)=0,rest=xattention(threshold=0.3)",
                                         "mix:flexprefill(gamma=0.5,min_budget=1)=0,rest=s2o(segment=128,tau=0.3,sink=8,min_tiles=1)",
                                         "mix:s2o(segment=128,tau=0.3,sink=8,min_tiles=1)=0,rest=xattention(threshold=0.3)" };
    static const int32_t chunks[] = { 60, 400 }, lengths[N_PROMPTS] = { 600, 640 };       /* the first is cut early: 256, 128, 216 */
    static int32_t room[N_PROMPTS][N_LONG];
    int32_t *tokens[N_PROMPTS];
    machine m;
    for (int i = 0; i < N_PROMPTS; i++) {
        tokens[i] = room[i];
        random_tokens(tokens[i], N_LONG, (uint64_t)i + 50);
    }
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        float one_shot[TINY_VOCAB], alone[N_PROMPTS][TINY_VOCAB], together[N_PROMPTS][TINY_VOCAB];
        prefill_dynamic(&m, specs[i], 0, tokens[0], lengths[0], one_shot, NULL);
        prefill_per_chunk(&m, specs[i], 768, 0, 1, tokens, lengths, alone);
        assert_memory_equal(alone[0], one_shot, sizeof one_shot);
        for (int p = 0; p < N_PROMPTS; p++) prefill_per_chunk(&m, specs[i], 256, 0, 1, &tokens[p], &lengths[p], &alone[p]);
        const bool is_changed = i < 2;
        if ((memcmp(alone[0], one_shot, sizeof one_shot) != 0) != is_changed) fail_msg("%s: changed or not", specs[i]);
        for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
            prefill_per_chunk(&m, specs[i], 256, chunks[c], N_PROMPTS, tokens, lengths, together);
            if (memcmp(together, alone, sizeof alone) != 0) fail_msg("%s, chunks of %d: other bits", specs[i], chunks[c]);
        }
    }
    close_machine(&m);
}

/* Long and short prompts in chunks that hold several of them, and a second turn. */
static void a_dynamic_batch_is_its_prompts(void **state)
{
    (void)state;
    enum { N_SEQS = 4 };
    static const char spec[] = "mix:flexprefill(gamma=0.3,min_budget=1)=1,minference(vertical=30,slash=100)=0,rest=xattention(threshold=0.3)";
    static const int32_t lengths[N_SEQS] = { 390, 1, N_LONG, 300 }, seqs[N_SEQS] = { 2, 0, 3, 1 };
    static int32_t tokens[N_SEQS][N_LONG];
    static float alone[N_SEQS][TINY_VOCAB], together[N_SEQS][TINY_VOCAB];
    machine m;
    tmx_error err;
    tmx_prompt prompts[N_SEQS];
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    for (int i = 0; i < N_SEQS; i++) {
        random_tokens(tokens[i], N_LONG, (uint64_t)i + 40);
        prefill_dynamic(&m, spec, 0, tokens[i], lengths[i], alone[i], NULL);
        prompts[i] = (tmx_prompt){ .tokens = tokens[i], .n_tokens = lengths[i], .logits = together[i], .seq = seqs[i] };
    }
    for (int32_t n_chunk = 30; n_chunk < 1300; n_chunk += 310) {
        tmx_session *session = open_dynamic(&m, spec, n_chunk, N_SEQS);
        memset(together, 0xff, sizeof together);
        assert_int_equal(tmx_prefill(session, prompts, N_SEQS, &err), TMX_OK);
        assert_memory_equal(alone, together, sizeof alone);
        tmx_session_free(session);
    }

    float dense_turn[TINY_VOCAB], turn[TINY_VOCAB];
    for (int is_dynamic = 0; is_dynamic < 2; is_dynamic++) {       /* the first turn is too short to drop anything */
        tmx_session *session = open_dynamic(&m, is_dynamic ? spec : "dense", 0, 1);
        const tmx_prompt first = { .tokens = tokens[2], .n_tokens = 200 };
        const tmx_prompt second = { .tokens = tokens[2] + 200, .n_tokens = 500, .logits = is_dynamic ? turn : dense_turn };
        assert_int_equal(tmx_prefill(session, &first, 1, &err), TMX_OK);
        assert_int_equal(tmx_prefill(session, &second, 1, &err), TMX_OK);
        tmx_session_free(session);
    }
    assert_memory_equal(turn, dense_turn, sizeof turn);
    close_machine(&m);
}

static void the_memory_plan_counts_what_a_plan_needs(void **state)
{
    (void)state;
    static const char *const specs[] = { "triangle", "xattention", "flexprefill", "minference" };
    machine m;
    tmx_error err;
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 1);
    const tmx_model_info *info = tmx_model_info_get(m.model);
    tmx_memory none, with[4];
    tmx_session_params params = { .n_chunk = 64 };
    assert_int_equal(tmx_memory_plan(info, TMX_COMPUTE_AUTO, TMX_ISA_AUTO, &params, 1, &none, &err), TMX_OK);
    for (int i = 0; i < 4; i++) {
        tmx_plan *plan;
        assert_int_equal(tmx_plan_parse(&plan, specs[i], info, &err), TMX_OK);
        params.plan = plan;
        assert_int_equal(tmx_memory_plan(info, TMX_COMPUTE_AUTO, TMX_ISA_AUTO, &params, 1, &with[i], &err), TMX_OK);
        tmx_plan_free(plan);
    }
    assert_int_equal(with[0].workspace_bytes, none.workspace_bytes);
    assert_true(with[1].workspace_bytes > none.workspace_bytes);           /* 128 rows */
    assert_true(with[2].workspace_bytes > 2 * with[1].workspace_bytes);    /* 1024 rows */
    assert_true(with[3].workspace_bytes > 2 * with[1].workspace_bytes);
    close_machine(&m);
}

/* One session through many plans: it grows where one needs more, and no answer depends on what it ran before. */
static void plans_may_be_set_in_any_order(void **state)
{
    (void)state;
    static const char *const specs[] = { "dense", "xattention(threshold=0.3)", "flexprefill(gamma=0.3,min_budget=1)", "dense",
                                         "mix:flexprefill(gamma=0.4,min_budget=128)=0,xattention(threshold=0.4)=1", "triangle",
                                         "mix:s2o(segment=256,tau=0.3)=0,rest=xattention(threshold=0.4)",
                                         "minference(vertical=30,slash=100)", "xattention(threshold=0.3)" };
    enum { N_SPECS = sizeof specs / sizeof specs[0] };
    int32_t tokens[N_LONG];
    random_tokens(tokens, N_LONG, 14);
    machine m;
    tmx_error err;
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    tmx_session *session = open_dynamic(&m, "dense", 100, 1);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N_SPECS; i++) {
            float alone[TINY_VOCAB], logits[TINY_VOCAB];
            double density;
            tmx_plan *plan;
            assert_int_equal(tmx_plan_parse(&plan, specs[i], tmx_model_info_get(m.model), &err), TMX_OK);
            tmx_session_reset(session);
            if (tmx_session_set_plan(session, plan, &err) != TMX_OK) fail_msg("%s", err.text);
            const tmx_prompt prompt = { .tokens = tokens, .n_tokens = N_LONG, .logits = logits };
            assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
            prefill_dynamic(&m, specs[i], 0, tokens, N_LONG, alone, &density);
            assert_memory_equal(logits, alone, sizeof alone);
            assert_true(density == tmx_session_layer_density(session, 0));
            if (i == 2) assert_true(density < 0.95);
            tmx_plan_free(plan);
        }
    }
    tmx_session_free(session);
    close_machine(&m);
}

/* Known before a device is looked for, so this runs without one. */
static void dynamic_plans_are_refused_on_a_device(void **state)
{
    (void)state;
    static const struct { const char *spec, *why; } cases[] = {
        { "s2o:1", "plan: s2o layers run on the CPU only, the model is on cuda:3" },
        { "mix:flexprefill=0,minference=1,rest=s2o", "plan: s2o layers run on the CPU only, the model is on cuda:3" },
        { BY_HEAD, "plan: xattention's thresholds by head run on the CPU only, the model is on cuda:3" },
    };
    machine m;
    tmx_error err;
    write_thresholds();
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 1);
    tmx_session *session = open_dynamic(&m, "dense", 0, 1), *other;
    const char *cpu = m.model->info.device;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tmx_plan *plan;
        tmx_memory memory;
        m.model->info.device = cpu;
        assert_int_equal(tmx_plan_parse(&plan, cases[i].spec, &m.model->info, &err), TMX_OK);
        m.model->info.device = "cuda:3";
        assert_int_equal(tmx_session_create(&other, m.model, plan, m.pool, NULL, &err), TMX_E_UNSUPPORTED);
        assert_string_equal(err.text, cases[i].why);
        assert_int_equal(tmx_session_set_plan(session, plan, &err), TMX_E_UNSUPPORTED);
        assert_string_equal(err.text, cases[i].why);
        const tmx_session_params params = { .plan = plan };
        assert_int_equal(tmx_memory_plan(&m.model->info, TMX_COMPUTE_AUTO, TMX_ISA_AUTO, &params, 1, &memory, &err), TMX_E_UNSUPPORTED);
        assert_string_equal(err.text, cases[i].why);
        tmx_plan_free(plan);
    }
    m.model->info.device = cpu;
    tmx_session_free(session);
    close_machine(&m);
}

/* A watched head's tiles: a pattern's own pairs, tile by tile; of any method, all heads together, what the density says. */
static void watched_tiles_are_what_was_visited(void **state)
{
    (void)state;
    static const char *const specs[] = { "dense", "triangle", "xattention(threshold=0.3)", "flexprefill(gamma=0.3,min_budget=1)",
                                         "s2o(segment=128,tau=0.3,sink=8,min_tiles=1)" };
    enum { TILES = (N_LONG + TMX_WATCH_TILE - 1) / TMX_WATCH_TILE };
    static double pairs[TILES][TILES];
    int32_t tokens[N_LONG];
    machine m;
    tmx_error err;
    random_tokens(tokens, N_LONG, 21);
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        double n_pairs = 0, density = 0;
        for (int32_t head = 0; head < TINY_HEADS; head++) {
            tmx_session *session = open_dynamic(&m, specs[i], 200, 1);
            memset(pairs, 0, sizeof pairs);
            assert_int_equal(tmx_session_watch(session, 0, head, &pairs[0][0], TILES - 1, &err), TMX_E_ARG);
            assert_int_equal(tmx_session_watch(session, 0, TINY_HEADS, &pairs[0][0], 99, &err), TMX_E_ARG);
            assert_int_equal(tmx_session_watch(session, -1, 0, &pairs[0][0], 99, &err), TMX_E_ARG);
            tmx_session_free(session);
            tmx_plan *plan;
            assert_int_equal(tmx_plan_parse(&plan, specs[i], tmx_model_info_get(m.model), &err), TMX_OK);
            const tmx_session_params params = { .n_ctx = N_LONG };
            assert_int_equal(tmx_session_create(&session, m.model, plan, m.pool, &params, &err), TMX_OK);
            assert_int_equal(tmx_session_watch(session, 0, head, &pairs[0][0], TILES, &err), TMX_OK);
            const tmx_prompt prompt = { .tokens = tokens, .n_tokens = N_LONG };
            assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
            density = tmx_session_layer_density(session, 0);
            const tmx_pattern pattern = *tmx_plan_layer(plan, 0);
            for (int32_t q = 0; q < N_LONG; q++) {
                for (int32_t k = 0; k <= q && i < 2; k++) {
                    if (tmx_pattern_is_visible(&pattern, N_LONG, q, k)) pairs[q / TMX_WATCH_TILE][k / TMX_WATCH_TILE]--, n_pairs++;
                }
            }
            for (int32_t a = 0; a < TILES; a++) {
                for (int32_t b = 0; b < TILES; b++) {
                    if (i < 2) assert_true(pairs[a][b] == 0);
                    n_pairs += pairs[a][b];
                }
            }
            tmx_session_free(session);
            tmx_plan_free(plan);
        }
        assert_true(fabs(n_pairs / TINY_HEADS / (N_LONG * (N_LONG + 1.0) / 2) - density) < 1e-12);
        assert_true(i == 0 || density < 1);
    }
    close_machine(&m);
}

static void decoding_continues_the_prompt(void **state)
{
    (void)state;
    const tmx_pattern patterns[TINY_LAYERS] = { dense, dense, dense };
    int32_t tokens[N_PROMPT];
    random_tokens(tokens, N_PROMPT, 4);
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        machine m;
        open_machine(&m, (tmx_isa)isa, TMX_COMPUTE_F32, 2);
        for (int32_t n_first = 1; n_first + 9 <= N_PROMPT; n_first += 67) {
            float logits[TINY_VOCAB];
            double expected[TINY_VOCAB];
            tmx_error err;
            tmx_session *session = open_session(&m, patterns, NULL);
            const tmx_prompt prompt = { .tokens = tokens, .n_tokens = n_first };
            assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
            for (int32_t i = n_first; i < n_first + 9; i++) {
                if (tmx_decode(session, 0, tokens[i], logits, &err) != TMX_OK) fail_msg("%s", err.text);
            }
            tiny_forward_f64(&m.tiny, tokens, n_first + 9, patterns, expected);
            assert_true(worst_difference(logits, expected) <= limit_of(TMX_COMPUTE_F32));
            tmx_session_free(session);
        }
        close_machine(&m);
    }
}

/* tmx_decode_next is tmx_decode and tmx_sampler_next. */
static void the_next_token_is_the_samplers(void **state)
{
    (void)state;
    enum { N_FIRST = 60, N_MORE = 20 };
    static const tmx_sampler_params rules[] = { { .temperature = 0 }, { .temperature = 3, .seed = 2 }, { .temperature = 1, .repeat_penalty = 1.5f } };
    const tmx_pattern patterns[TINY_LAYERS] = { triangle, dense, streaming };
    int32_t tokens[N_PROMPT];
    float logits[TINY_VOCAB];
    tmx_error err;
    machine m;
    random_tokens(tokens, N_PROMPT, 13);
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    tmx_session *session = open_session(&m, patterns, &(tmx_session_params){ .n_seqs = 2 });
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        tmx_sampler *a, *b;
        int32_t token = 3, next = -1;
        assert_int_equal(tmx_sampler_create(&a, &rules[i], TINY_VOCAB, &err), TMX_OK);
        assert_int_equal(tmx_sampler_create(&b, &rules[i], TINY_VOCAB, &err), TMX_OK);
        tmx_session_reset(session);
        for (int32_t seq = 0; seq < 2; seq++) {
            assert_int_equal(tmx_prefill(session, &(tmx_prompt){ .tokens = tokens, .n_tokens = N_FIRST, .seq = seq }, 1, &err), TMX_OK);
        }
        for (int k = 0; k < N_MORE; k++, token = next) {
            tmx_sampler_accept(a, token);
            tmx_sampler_accept(b, token);
            assert_int_equal(tmx_decode(session, 0, token, logits, &err), TMX_OK);
            assert_int_equal(tmx_decode_next(session, 1, token, b, &next, &err), TMX_OK);
            assert_int_equal(next, tmx_sampler_next(a, logits));
        }
        assert_int_equal(tmx_session_n_past(session, 1), N_FIRST + N_MORE);
        tmx_sampler_free(a);
        tmx_sampler_free(b);
    }
    tmx_session_free(session);
    close_machine(&m);
}

/* Another answer after a rewind is the one that a fresh session gives, whatever the plan. */
static void a_rewound_session_answers_anew(void **state)
{
    (void)state;
    enum { N_FIRST = 150, N_MORE = 9 };
    const tmx_pattern patterns[TINY_LAYERS] = { triangle, dense, streaming };
    int32_t tokens[N_PROMPT];
    float fresh[N_MORE][TINY_VOCAB], logits[TINY_VOCAB];
    tmx_error err;
    machine m;
    random_tokens(tokens, N_PROMPT, 9);
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    tmx_session *session = open_session(&m, patterns, &(tmx_session_params){ .n_seqs = 2 });
    const tmx_prompt prompt = { .tokens = tokens, .n_tokens = N_FIRST, .seq = 1 };
    assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
    for (int i = 0; i < N_MORE; i++) assert_int_equal(tmx_decode(session, 1, tokens[N_FIRST + i], fresh[i], &err), TMX_OK);
    assert_int_equal(tmx_session_rewind(session, 1, N_FIRST + 3, &err), TMX_OK);
    for (int i = 0; i < N_MORE; i++) assert_int_equal(tmx_decode(session, 1, tokens[i], logits, &err), TMX_OK);
    assert_int_equal(tmx_session_rewind(session, 1, N_FIRST + 3, &err), TMX_OK);
    assert_int_equal(tmx_session_n_past(session, 1), N_FIRST + 3);
    for (int i = 3; i < N_MORE; i++) {
        assert_int_equal(tmx_decode(session, 1, tokens[N_FIRST + i], logits, &err), TMX_OK);
        assert_memory_equal(logits, fresh[i], sizeof logits);
    }
    assert_int_equal(tmx_session_rewind(session, 1, N_FIRST + N_MORE + 1, &err), TMX_E_ARG);
    assert_string_equal(err.text, "rewind: position 160 is out of range 0..159");
    assert_int_equal(tmx_session_rewind(session, 1, -1, &err), TMX_E_ARG);
    assert_int_equal(tmx_session_rewind(session, 2, 0, &err), TMX_E_ARG);
    assert_int_equal(tmx_session_rewind(NULL, 0, 0, &err), TMX_E_ARG);
    tmx_session_free(session);
    close_machine(&m);
}

static void a_dense_prompt_may_come_in_turns(void **state)
{
    (void)state;
    const tmx_pattern patterns[TINY_LAYERS] = { dense, dense, dense };
    int32_t tokens[N_PROMPT];
    float whole[TINY_VOCAB], turns[TINY_VOCAB];
    tmx_error err;
    machine m;
    random_tokens(tokens, N_PROMPT, 5);
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    prefill(&m, &dense, 0, tokens, N_PROMPT, whole);
    tmx_session *session = open_session(&m, patterns, NULL);
    const tmx_prompt first = { .tokens = tokens, .n_tokens = 90 }, second = { .tokens = tokens + 90, .n_tokens = N_PROMPT - 90, .logits = turns };
    assert_int_equal(tmx_prefill(session, &first, 1, &err), TMX_OK);
    assert_int_equal(tmx_prefill(session, &second, 1, &err), TMX_OK);
    assert_memory_equal(whole, turns, sizeof whole);
    tmx_session_free(session);
    close_machine(&m);
}

static bool stop_after(void *ctx, const tmx_progress *p)
{
    int *n_left = ctx;
    assert_true(p->n_done > 0 && p->n_done <= p->n_total);
    return (*n_left)-- > 0;
}

static void a_stopped_prefill_leaves_no_trace(void **state)
{
    (void)state;
    const tmx_pattern patterns[TINY_LAYERS] = { triangle, dense, triangle };
    int32_t tokens[N_PROMPT];
    float fresh[TINY_VOCAB], again[TINY_VOCAB];
    tmx_error err;
    machine m;
    random_tokens(tokens, N_PROMPT, 6);
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 2);
    for (int n_steps = 0; n_steps < 12; n_steps += 5) {
        int n_left = n_steps;
        tmx_session *session = open_session(&m, patterns, &(tmx_session_params){ .n_chunk = 50, .progress = stop_after, .progress_ctx = &n_left });
        tmx_prompt prompt = { .tokens = tokens, .n_tokens = N_PROMPT, .logits = again };
        assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_E_CANCELLED);
        assert_int_equal(tmx_session_n_past(session, 0), 0);
        n_left = 1 << 30;
        assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
        tmx_session_reset(session);
        prompt.logits = fresh;
        assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
        assert_memory_equal(fresh, again, sizeof fresh);
        tmx_session_free(session);
    }
    close_machine(&m);
}

static void wrong_calls_are_refused(void **state)
{
    (void)state;
    const tmx_pattern patterns[TINY_LAYERS] = { dense, dense, dense };
    int32_t tokens[TINY_CTX + 1];
    float logits[TINY_VOCAB];
    tmx_error err;
    machine m;
    random_tokens(tokens, TINY_CTX + 1, 8);
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_AUTO, 1);
    tmx_session *session = open_session(&m, patterns, &(tmx_session_params){ .n_ctx = 64, .n_seqs = 2 });
    const struct { tmx_prompt prompt; tmx_status status; const char *text; } cases[] = {
        { { .tokens = tokens, .n_tokens = 0 }, TMX_E_ARG, "prompt 0: empty; at least one token is needed" },
        { { .tokens = NULL, .n_tokens = 3 }, TMX_E_ARG, "prompt 0: empty; at least one token is needed" },
        { { .tokens = tokens, .n_tokens = 65 }, TMX_E_FULL, "prompt 0: 65 tokens do not fit into a context of 64 tokens that holds 0" },
        { { .tokens = tokens, .n_tokens = 3, .seq = 2 }, TMX_E_ARG, "prompt 0: sequence 2 is out of range 0..1" },
        { { .tokens = (const int32_t[]){ 5, -1 }, .n_tokens = 2 }, TMX_E_ARG, "prompt 0: token 1 is -1, expected 0..256" },
        { { .tokens = (const int32_t[]){ TINY_VOCAB }, .n_tokens = 1 }, TMX_E_ARG, "prompt 0: token 0 is 257, expected 0..256" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(tmx_prefill(session, &cases[i].prompt, 1, &err), cases[i].status);
        assert_string_equal(err.text, cases[i].text);
    }
    const tmx_prompt twice[2] = { { .tokens = tokens, .n_tokens = 3, .seq = 1 }, { .tokens = tokens, .n_tokens = 3, .seq = 1 } };
    assert_int_equal(tmx_prefill(session, twice, 2, &err), TMX_E_ARG);
    assert_int_equal(tmx_decode(session, 0, 1, logits, &err), TMX_E_ARG);
    const tmx_prompt full = { .tokens = tokens, .n_tokens = 64 };
    assert_int_equal(tmx_prefill(session, &full, 1, &err), TMX_OK);
    assert_int_equal(tmx_decode(session, 0, 1, logits, &err), TMX_E_FULL);
    assert_int_equal(tmx_decode(session, 0, TINY_VOCAB, logits, &err), TMX_E_ARG);
    tmx_plan *plan;
    assert_int_equal(plan_create_dense(&plan, TINY_LAYERS, &err), TMX_OK);
    assert_int_equal(tmx_session_set_plan(session, plan, &err), TMX_E_ARG);
    tmx_session_reset(session);
    assert_int_equal(tmx_session_set_plan(session, plan, &err), TMX_OK);
    tmx_plan_free(plan);
    tmx_session_free(session);

    static const tmx_session_params bad[] = {
        { .n_ctx = -1 }, { .n_ctx = TINY_CTX + 1 }, { .n_chunk = -1 }, { .n_seqs = -1 }, { .n_seqs = 100000 },
        { .kv_type = (tmx_type)9 },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        session = NULL;
        assert_int_equal(tmx_session_create(&session, m.model, NULL, m.pool, &bad[i], &err), TMX_E_ARG);
        assert_null(session);
    }
    close_machine(&m);
}

static void a_rope_base_of_ones_own_lifts_the_context(void **state)
{
    (void)state;
    enum { N = 50 };
    machine m;
    open_machine(&m, TMX_ISA_AUTO, TMX_COMPUTE_F32, 1);
    static const float bases[] = { 0, 10000, 1e6f, -1, NAN, INFINITY };
    static float logits[3][TINY_VOCAB];
    int32_t tokens[N];
    char prints[3][65];
    random_tokens(tokens, N, 3);
    for (int i = 0; i < 6; i++) {
        const tmx_model_params params = { .compute = TMX_COMPUTE_F32, .rope_freq_base = bases[i] };
        tmx_model *model = NULL;
        tmx_session *session = NULL;
        tmx_error err;
        if (i >= 3) {
            assert_int_equal(tmx_model_open(&model, m.tiny.path, &params, m.pool, &err), TMX_E_ARG);
            assert_null(model);
            continue;
        }
        assert_int_equal(tmx_model_open(&model, m.tiny.path, &params, m.pool, &err), TMX_OK);
        const tmx_model_info *info = tmx_model_info_get(model);
        assert_true(info->rope_freq_base == (i < 2 ? 10000.0f : 1e6f));
        snprintf(prints[i], sizeof prints[i], "%s", info->fingerprint);
        const tmx_session_params longer = { .n_ctx = TINY_CTX + 1 }, huge = { .n_ctx = 1 << 27, .n_seqs = 4096 };
        assert_int_equal(tmx_session_create(&session, model, NULL, m.pool, &huge, &err), i == 0 ? TMX_E_ARG : TMX_E_MEMORY);
        assert_int_equal(tmx_session_create(&session, model, NULL, m.pool, &longer, &err), i == 0 ? TMX_E_ARG : TMX_OK);
        if (i == 0) assert_int_equal(tmx_session_create(&session, model, NULL, m.pool, NULL, &err), TMX_OK);
        const tmx_prompt prompt = { .tokens = tokens, .n_tokens = N, .logits = logits[i] };
        assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
        tmx_session_free(session);
        tmx_model_close(model);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);       /* the model's own base, said aloud */
    assert_memory_not_equal(logits[0], logits[2], sizeof logits[0]);
    assert_string_equal(prints[0], prints[1]);
    assert_string_not_equal(prints[0], prints[2]);
    close_machine(&m);
}

static void samplers_follow_their_definitions(void **state)
{
    (void)state;
    enum { N = 5, N_DRAWS = 20000 };
    const float logits[N] = { 1.0f, 3.0f, 2.0f, 3.0f, -1.0f };
    tmx_sampler *s;
    tmx_error err;
    assert_int_equal(tmx_sampler_create(&s, NULL, N, &err), TMX_OK);
    assert_int_equal(tmx_sampler_next(s, logits), 1);           /* ties: lowest id */
    tmx_sampler_free(s);
    const struct { tmx_sampler_params params; double expected[N]; } cases[] = {
        { { .temperature = 1, .seed = 1 }, { 0.05367, 0.39660, 0.14590, 0.39660, 0.00726 } },
        { { .temperature = 1, .top_k = 3, .seed = 2 }, { 0, 0.42231, 0.15536, 0.42231, 0 } },
        { { .temperature = 1, .top_p = 0.7f, .seed = 3 }, { 0, 0.5, 0, 0.5, 0 } },
        { { .temperature = 1, .min_p = 0.3f, .seed = 4 }, { 0, 0.42231, 0.15536, 0.42231, 0 } },
        { { .temperature = 0.5f, .seed = 5 }, { 0.00850, 0.46425, 0.06283, 0.46425, 0.00016 } },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int counts[N] = { 0 };
        assert_int_equal(tmx_sampler_create(&s, &cases[i].params, N, &err), TMX_OK);
        for (int k = 0; k < N_DRAWS; k++) counts[tmx_sampler_next(s, logits)]++;
        tmx_sampler_free(s);
        for (int k = 0; k < N; k++) {
            const double share = (double)counts[k] / N_DRAWS;
            assert_true(fabs(share - cases[i].expected[k]) < 0.015);
            if (cases[i].expected[k] == 0) assert_int_equal(counts[k], 0);
        }
    }
    assert_int_equal(tmx_sampler_create(&s, &(tmx_sampler_params){ .repeat_penalty = 4 }, N, &err), TMX_OK);
    tmx_sampler_accept(s, 1);
    assert_int_equal(tmx_sampler_next(s, logits), 3);
    tmx_sampler_free(s);
    static const tmx_sampler_params bad[] = {
        { .temperature = NAN }, { .temperature = -1 }, { .top_p = 2 }, { .min_p = -0.1f }, { .top_k = -1 }, { .repeat_last_n = -1 },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_int_equal(tmx_sampler_create(&s, &bad[i], N, &err), TMX_E_ARG);
}

static void agreement_is_measured_in_f64(void **state)
{
    (void)state;
    const float a[3] = { 1, 2, 3 }, b[3] = { 1, 3, 2 };
    tmx_agreement r;
    tmx_logits_compare(a, b, 3, &r);
    /* p = softmax(a): KL = p2 (3 - 2) + p1 (2 - 3) with equal normalisers */
    const double z = exp(1.0) + exp(2.0) + exp(3.0);
    assert_true(fabs(r.kl - (exp(3.0) - exp(2.0)) / z) < 1e-12);
    assert_int_equal(r.top_a, 2);
    assert_int_equal(r.top_b, 1);
    assert_true(fabs(r.margin_a - 1) < 1e-12 && fabs(r.max_abs_diff - 1) < 1e-12);
    tmx_logits_compare(a, a, 3, &r);
    assert_true(r.kl == 0 && r.max_abs_diff == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_match_f64),
        cmocka_unit_test(bits_never_move),
        cmocka_unit_test(patterns_that_see_the_same_give_the_same_bits),
        cmocka_unit_test(a_batch_is_its_prompts),
        cmocka_unit_test(short_prompts_run_dense),
        cmocka_unit_test(dynamic_bits_never_move),
        cmocka_unit_test(a_threshold_of_1_is_dense_to_the_bit),
        cmocka_unit_test(thresholds_are_those_of_layer_and_head),
        cmocka_unit_test(estimates_per_chunk_are_the_plans),
        cmocka_unit_test(a_dynamic_batch_is_its_prompts),
        cmocka_unit_test(the_memory_plan_counts_what_a_plan_needs),
        cmocka_unit_test(plans_may_be_set_in_any_order),
        cmocka_unit_test(dynamic_plans_are_refused_on_a_device),
        cmocka_unit_test(watched_tiles_are_what_was_visited),
        cmocka_unit_test(decoding_continues_the_prompt),
        cmocka_unit_test(the_next_token_is_the_samplers),
        cmocka_unit_test(a_rewound_session_answers_anew),
        cmocka_unit_test(a_dense_prompt_may_come_in_turns),
        cmocka_unit_test(a_stopped_prefill_leaves_no_trace),
        cmocka_unit_test(wrong_calls_are_refused),
        cmocka_unit_test(a_rope_base_of_ones_own_lifts_the_context),
        cmocka_unit_test(samplers_follow_their_definitions),
        cmocka_unit_test(agreement_is_measured_in_f64),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
