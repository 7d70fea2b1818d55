/* check_gpu_model.c - whole models on a CUDA device: against f64 and the CPU's f32, and bit for bit against themselves.  Linked with
 * fake_gpu.c, the same without a device.
 *
 *     check_gpu_model [--model FILE.gguf --ids FILE]      the demo model and its prompt, too
 *
 * Without a usable GPU, everything is skipped and counted.  Ends with "N passed, N failed, N skipped". */
#define TINY_WIDTHS TINY_EMBD = 128, TINY_HEADS = 6, TINY_KV_HEADS = 2, TINY_HEAD_DIM = CHECK_HEAD_DIM, TINY_FF = 192
#define TINY_SPREAD 0.16f
#include "gpu/gpu_model.h"

enum { N_PROMPT = 203, N_SEQS = 4 };

/* Against f64, relative to the largest logit: the limit of bf16 on the CPU in test_session.c, which reaches 1.1e-2 on these
 * models; fake_gpu.c, with the device's roundings, 1.4e-2.  What a plan leaves out must move the logits by more, or the comparison would not see a wrong pattern. */
static const double WORST_LOGIT = 0.04;
/* Against the CPU's f32, as docs/gpu.md states it; the best token must agree where its lead is clear. */
static const double MOST_KL = 2e-3, CLEAR_MARGIN = 0.5;

static const char *const plan_specs[] = { "dense", "triangle", "triangle:0", "streaming" };
enum { N_PLANS = sizeof plan_specs / sizeof plan_specs[0] };

/* ---------------------------------------------------------------- the tiny model */

/* How far the patterns move the logits of a whole prompt, in f64. */
static double plan_effect(const tiny_model *tiny, const int32_t *tokens, const tmx_pattern *patterns)
{
    const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE }, all_dense[TINY_LAYERS] = { dense, dense, dense };
    double expected[TINY_VOCAB], other[TINY_VOCAB];
    float rounded[TINY_VOCAB];
    tiny_forward_f64(tiny, tokens, N_PROMPT, all_dense, expected);
    tiny_forward_f64(tiny, tokens, N_PROMPT, patterns, other);
    for (int i = 0; i < TINY_VOCAB; i++) rounded[i] = (float)other[i];
    return worst_difference(rounded, expected, TINY_VOCAB);
}

static void logits_match_f64(const tiny_model *tiny, const tmx_model *model, tmx_pool *pool)
{
    static const int32_t lengths[] = { 1, 2, 17, 64, 65, 129, N_PROMPT };
    int32_t tokens[N_PROMPT];
    random_tokens(tokens, N_PROMPT, 1);
    for (int p = 0; p < N_PLANS; p++) {
        tmx_plan *plan = make_plan(model, plan_specs[p], 3, 20, 11);
        tmx_pattern patterns[TINY_LAYERS];
        double worst = 0;
        for (int l = 0; l < TINY_LAYERS; l++) patterns[l] = *tmx_plan_layer(plan, l);
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
            float logits[TINY_VOCAB];
            double expected[TINY_VOCAB];
            fresh_logits(model, pool, plan, 0, tokens, lengths[i], logits);
            tiny_forward_f64(tiny, tokens, lengths[i], patterns, expected);
            const double d = worst_difference(logits, expected, TINY_VOCAB);
            if (!(d <= worst)) worst = d;
        }
        check(worst <= WORST_LOGIT, "head_dim %d, %s against f64: worst difference %.2e (limit %.2g)", TINY_HEAD_DIM, plan_specs[p], worst,
              WORST_LOGIT);
        if (p > 0) check(plan_effect(tiny, tokens, patterns) > 2 * WORST_LOGIT, "%s is not dense", plan_specs[p]);
        tmx_plan_free(plan);
    }
}

static void chunks_change_nothing(const tmx_model *model, tmx_pool *pool)
{
    static const int32_t chunks[] = { 1, 7, 64, 100, N_PROMPT - 1, 5000 };
    int32_t tokens[N_PROMPT];
    random_tokens(tokens, N_PROMPT, 2);
    for (int p = 0; p < N_PLANS; p++) {
        tmx_plan *plan = make_plan(model, plan_specs[p], 3, 20, 11);
        float whole[TINY_VOCAB], logits[TINY_VOCAB];
        fresh_logits(model, pool, plan, N_PROMPT, tokens, N_PROMPT, whole);
        for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
            fresh_logits(model, pool, plan, chunks[i], tokens, N_PROMPT, logits);
            check(is_equal(whole, logits, TINY_VOCAB), "%s in chunks of %d: same bits", plan_specs[p], chunks[i]);
        }
        tmx_plan_free(plan);
    }
}

/* Prompts below the plan's min_tokens among them. */
static void a_batch_is_its_prompts(const tmx_model *model, tmx_pool *pool)
{
    static const int32_t lengths[N_SEQS] = { 90, 1, N_PROMPT, 33 }, seqs[N_SEQS] = { 2, 0, 3, 1 };
    static int32_t tokens[N_SEQS][N_PROMPT];
    static float alone[N_SEQS][TINY_VOCAB], together[N_SEQS][TINY_VOCAB];
    tmx_prompt prompts[N_SEQS];
    tmx_error err = { 0 };
    tmx_plan *plan = make_plan(model, "triangle", 3, 20, 11);
    tmx_plan_set_min_tokens(plan, 80, NULL);
    for (int i = 0; i < N_SEQS; i++) {
        random_tokens(tokens[i], N_PROMPT, (uint64_t)i + 10);
        fresh_logits(model, pool, plan, 0, tokens[i], lengths[i], alone[i]);
        prompts[i] = (tmx_prompt){ .tokens = tokens[i], .n_tokens = lengths[i], .seq = seqs[i], .logits = together[i] };
    }
    for (int32_t n_chunk = 30; n_chunk < 800; n_chunk += 250) {
        tmx_session *session = open_session(model, pool, plan, &(tmx_session_params){ .n_seqs = N_SEQS, .n_chunk = n_chunk });
        memset(together, 0xff, sizeof together);
        const bool is_done = tmx_prefill(session, prompts, N_SEQS, &err) == TMX_OK;
        check(is_done && memcmp(alone, together, sizeof alone) == 0, "a batch of %d in chunks of %d: same bits %s", N_SEQS, n_chunk,
              is_done ? "" : err.text);
        tmx_session_free(session);
    }
    tmx_plan_free(plan);
}

static void decoding_goes_on(const tiny_model *tiny, const tmx_model *model, tmx_pool *pool)
{
    enum { N_FIRST = 150, N_MORE = 12 };
    const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE }, patterns[TINY_LAYERS] = { dense, dense, dense };
    int32_t tokens[N_PROMPT];
    static float fresh[N_MORE][TINY_VOCAB];
    float logits[TINY_VOCAB];
    double worst = 0;
    bool is_same = true;
    tmx_error err = { 0 };
    random_tokens(tokens, N_PROMPT, 4);
    tmx_session *session = open_session(model, pool, NULL, &(tmx_session_params){ .n_seqs = 2 });
    prefill(session, tokens + 7, 60, 0, NULL);             /* a neighbour */
    prefill(session, tokens, N_FIRST, 1, NULL);
    for (int i = 0; i < N_MORE; i++) {
        double expected[TINY_VOCAB];
        if (tmx_decode(session, 1, tokens[N_FIRST + i], fresh[i], &err) != TMX_OK) check(false, "decode: %s", err.text);
        tiny_forward_f64(tiny, tokens, N_FIRST + i + 1, patterns, expected);
        const double d = worst_difference(fresh[i], expected, TINY_VOCAB);
        if (!(d <= worst)) worst = d;
    }
    check(worst <= WORST_LOGIT, "decoding against f64: worst difference %.2e (limit %.2g)", worst, WORST_LOGIT);
    check(tmx_session_rewind(session, 1, N_FIRST + 3, &err) == TMX_OK, "rewind");
    for (int i = 0; i < N_MORE; i++) tmx_decode(session, 1, tokens[i], logits, &err);
    tmx_session_rewind(session, 1, N_FIRST + 3, &err);
    for (int i = 3; i < N_MORE; i++) {
        tmx_decode(session, 1, tokens[N_FIRST + i], logits, &err);
        is_same &= is_equal(logits, fresh[i], TINY_VOCAB);
    }
    check(is_same, "a rewound sequence gives the same bits again");
    tmx_session_free(session);
}

/* The device's choice is the host's from the same logits; what the device cannot do itself goes by the host. */
static void next_tokens_are_the_hosts(const tmx_model *model, tmx_pool *pool)
{
    enum { N_FIRST = 20, N_MORE = 20 };
    static const tmx_sampler_params rules[] = {
        { .temperature = 0 },
        { .temperature = 1, .seed = 1 },
        { .temperature = 1, .seed = 2 },
        { .temperature = 0.7f, .top_k = 40, .top_p = 0.9f, .seed = 3 },
        { .temperature = 5, .min_p = 0.2f, .top_p = 0.7f, .seed = 4 },
        { .temperature = 1, .repeat_penalty = 1.3f, .seed = 5 },
    };
    int32_t tokens[N_PROMPT], next = -1;
    float logits[TINY_VOCAB];
    tmx_error err = { 0 };
    random_tokens(tokens, N_PROMPT, 5);
    tmx_session *a = open_session(model, pool, NULL, &(tmx_session_params){ .n_ctx = N_PROMPT });
    tmx_session *b = open_session(model, pool, NULL, &(tmx_session_params){ .n_ctx = N_PROMPT });
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        tmx_sampler *on_host = NULL, *on_device = NULL;
        int n_same = 0, n_changes = 0;
        int32_t token = tokens[N_FIRST];
        if (tmx_sampler_create(&on_host, &rules[i], TINY_VOCAB, &err) != TMX_OK
            || tmx_sampler_create(&on_device, &rules[i], TINY_VOCAB, &err) != TMX_OK) check(false, "sampler: %s", err.text);
        tmx_session_reset(a);
        tmx_session_reset(b);
        prefill(a, tokens, N_FIRST, 0, NULL);
        prefill(b, tokens, N_FIRST, 0, NULL);
        for (int k = 0; k < N_MORE; k++) {
            tmx_sampler_accept(on_host, token);
            tmx_sampler_accept(on_device, token);
            if (tmx_decode(a, 0, token, logits, &err) != TMX_OK) check(false, "decode: %s", err.text);
            if (tmx_decode_next(b, 0, token, on_device, &next, &err) != TMX_OK) check(false, "decode, next: %s", err.text);
            const int32_t expected = tmx_sampler_next(on_host, logits);
            n_same += next == expected;
            n_changes += expected != token;
            token = expected;
        }
        check(n_same == N_MORE && n_changes > 0, "sampler %zu: %d of %d tokens chosen on the device are the host's", i, n_same, N_MORE);
        check(tmx_session_n_past(b, 0) == N_FIRST + N_MORE, "and all are in the cache");
        tmx_sampler_free(on_host);
        tmx_sampler_free(on_device);
    }
    tmx_sampler *small = NULL;
    if (tmx_sampler_create(&small, NULL, TINY_VOCAB - 1, &err) != TMX_OK) check(false, "sampler: %s", err.text);
    check(tmx_decode_next(b, 0, 1, small, &next, &err) == TMX_E_ARG, "a sampler of another vocabulary: %s", err.text);
    tmx_sampler_free(small);
    tmx_session_free(a);
    tmx_session_free(b);
}

static void a_stopped_prefill_leaves_no_trace(const tmx_model *model, tmx_pool *pool)
{
    int32_t tokens[N_PROMPT];
    float fresh[TINY_VOCAB], again[TINY_VOCAB];
    tmx_error err = { 0 };
    tmx_plan *plan = make_plan(model, "triangle", 3, 20, 11);
    random_tokens(tokens, N_PROMPT, 6);
    fresh_logits(model, pool, plan, 50, tokens, N_PROMPT, fresh);
    for (int n_steps = 0; n_steps < 6; n_steps += 2) {
        int n_left = n_steps;
        tmx_session *session = open_session(model, pool, plan, &(tmx_session_params){ .n_chunk = 50, .progress = stop_after, .progress_ctx = &n_left });
        const tmx_prompt prompt = { .tokens = tokens, .n_tokens = N_PROMPT, .logits = again };
        const tmx_status status = tmx_prefill(session, &prompt, 1, &err);
        check(status == TMX_E_CANCELLED && tmx_session_n_past(session, 0) == 0, "stopped after %d chunks: %s", n_steps, err.text);
        n_left = 1000;
        prefill(session, tokens, N_PROMPT, 0, again);
        check(is_equal(fresh, again, TINY_VOCAB), "and run again: same bits");
        tmx_session_free(session);
    }
    tmx_plan_free(plan);
}

static void a_plan_may_grow(const tmx_model *model, tmx_pool *pool)
{
    enum { N_LONG = 4700 };
    static int32_t tokens[N_LONG];
    float fresh[TINY_VOCAB], logits[TINY_VOCAB];
    tmx_error err = { 0 };
    tmx_plan *small = make_plan(model, "triangle", 8, 64, 16), *large = make_plan(model, "triangle", 8, 64, 3000);
    random_tokens(tokens, N_LONG, 8);
    fresh_logits(model, pool, large, 0, tokens, N_LONG, fresh);
    tmx_session *session = open_session(model, pool, small, &(tmx_session_params){ .n_ctx = N_LONG, .n_chunk = 700 });
    check(tmx_session_set_plan(session, large, &err) == TMX_OK, "a plan with more last rows");
    prefill(session, tokens, N_LONG, 0, logits);
    check(is_equal(fresh, logits, TINY_VOCAB), "the session gives the bits of one made for it");
    tmx_session_free(session);
    tmx_plan_free(small);
    tmx_plan_free(large);
}

/* The CPU's engine: its logits, and its share of pairs but for blocks at the edge of the threshold; then a batch whose chunks, where
 * the plan lets them, end within blocks, in a session made for another plan. */
static void dynamic_layers_are_the_cpus(const tiny_model *tiny, const tmx_model *model, tmx_pool *pool)
{
    enum { N_LONG = 500, N_SHORT = 300 };
    static const char *const specs[] = { "xattention(stride=8,threshold=0.5)", "mix:triangle=1,rest=xattention(stride=16,threshold=0.6)",
                                         "mix:xattention=1,rest=flexprefill(gamma=0.2,min_budget=128)",
                                         "mix:triangle=1,rest=minference(vertical=30,slash=60)" };
    static const double MOST_DENSITY = 0.03;
    static int32_t tokens[N_LONG], other[N_SHORT];
    float expected[TINY_VOCAB], logits[TINY_VOCAB], beside[TINY_VOCAB], batched[2][TINY_VOCAB];
    tmx_model *cpu = NULL;
    tmx_error err = { 0 };
    const tmx_model_params f32 = { .compute = TMX_COMPUTE_F32, .rope_freq_base = 10000.0f };
    random_tokens(tokens, N_LONG, 12);
    random_tokens(other, N_SHORT, 13);
    if (!check(tmx_model_open(&cpu, tiny->path, &f32, pool, &err) == TMX_OK, "open on the CPU %s", err.text)) return;
    tmx_session *batch = open_session(model, pool, NULL, &(tmx_session_params){ .n_ctx = N_LONG, .n_seqs = 2, .n_chunk = 450 });
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        tmx_plan *plan = make_plan(model, specs[i], 3, 20, 11);
        tmx_timings timings;
        tmx_agreement a;
        tmx_session *session = open_session(cpu, pool, plan, &(tmx_session_params){ .n_ctx = N_LONG });
        prefill(session, tokens, N_LONG, 0, expected);
        const double wanted = tmx_session_layer_density(session, 0);
        tmx_session_free(session);
        session = open_session(model, pool, plan, &(tmx_session_params){ .n_ctx = N_LONG });
        prefill(session, tokens, N_LONG, 0, logits);
        const double density = tmx_session_layer_density(session, 0);
        tmx_session_timings(session, &timings);
        tmx_session_reset(session);
        prefill(session, tokens, N_LONG, 0, logits);
        const double again = tmx_session_layer_density(session, 0);
        tmx_session_free(session);
        tmx_logits_compare(expected, logits, TINY_VOCAB, &a);
        check(a.kl <= MOST_KL, "%s: KL to the CPU's f32 %.2e (limit %.2g)", specs[i], a.kl, MOST_KL);
        check(wanted < 1 && fabs(density - wanted) <= MOST_DENSITY && density == again, "%s: %.4f of the pairs, the CPU %.4f, again %.4f", specs[i],
              density, wanted, again);
        check(timings.estimate_ms > 0 && timings.estimate_ms < timings.attention_ms, "%s: %.3f of %.3f ms are the estimate", specs[i],
              timings.estimate_ms, timings.attention_ms);
        fresh_logits(model, pool, plan, 0, other, N_SHORT, beside);
        const tmx_prompt prompts[] = { { .tokens = other, .n_tokens = N_SHORT, .seq = 1, .logits = batched[1] },
                                       { .tokens = tokens, .n_tokens = N_LONG, .seq = 0, .logits = batched[0] } };
        tmx_session_reset(batch);
        const bool is_done = tmx_session_set_plan(batch, plan, &err) == TMX_OK && tmx_prefill(batch, prompts, 2, &err) == TMX_OK;
        check(is_done && is_equal(logits, batched[0], TINY_VOCAB) && is_equal(beside, batched[1], TINY_VOCAB), "%s, in a batch of two in chunks of 450: same bits %s", specs[i],
              is_done ? "" : err.text);
        tmx_plan_free(plan);
    }
    tmx_session_free(batch);
    tmx_model_close(cpu);
}

static void refusals_say_why(const tmx_model *model, const tiny_model *tiny, tmx_pool *pool)
{
    tmx_error err = { 0 };
    tmx_session *session = NULL;
    tmx_model *other = NULL;
    tmx_memory memory = { 0 };
    const tmx_session_params huge = { .n_ctx = 100000000 }, f32 = { .kv_type = TMX_TYPE_F32 };
    tmx_status status = tmx_session_create(&session, model, NULL, pool, &huge, &err);
    check(status == TMX_E_MEMORY && strstr(err.text, "tokens would fit") != NULL, "too long a context: %s", err.text);
    status = tmx_session_create(&session, model, NULL, pool, &f32, &err);
    check(status == TMX_E_UNSUPPORTED, "f32 cache: %s", err.text);
    status = tmx_model_open(&other, tiny->path, &(tmx_model_params){ .device = "cuda", .compute = TMX_COMPUTE_F32 }, pool, &err);
    check(status == TMX_E_UNSUPPORTED, "f32 products: %s", err.text);
    status = tmx_model_open(&other, tiny->path, &(tmx_model_params){ .device = "cuda:15" }, pool, &err);
    check(status == TMX_E_DEVICE, "no such device: %s", err.text);
    status = tmx_memory_plan(tmx_model_info_get(model), TMX_COMPUTE_BF16, TMX_ISA_AUTO, NULL, 1, &memory, &err);
    check(status == TMX_OK && memory.kv_bytes > 0 && memory.available_bytes > 0, "memory plan: %.1f MiB of %.1f GiB",
          (double)memory.total_bytes / 0x1p20, (double)memory.available_bytes / 0x1p30);
}

static bool check_tiny(tmx_pool *pool)
{
    tiny_model tiny;
    tmx_model *model = NULL;
    tmx_error err = { 0 };
    tiny_model_create(&tiny, 7, false, true);
    const tmx_model_params params = { .device = "cuda", .rope_freq_base = 10000.0f };      /* lifts the limit on the context */
    const tmx_status status = tmx_model_open(&model, tiny.path, &params, pool, &err);
    if (status == TMX_E_UNSUPPORTED || status == TMX_E_DEVICE) {
        printf("skipped: %s\n", err.text);
        n_skipped++;
        tiny_model_free(&tiny);
        return false;
    }
    if (check(status == TMX_OK, "open on %s %s", status == TMX_OK ? tmx_model_device_name(model) : "a GPU:", err.text)) {
        logits_match_f64(&tiny, model, pool);
        chunks_change_nothing(model, pool);
        a_batch_is_its_prompts(model, pool);
        decoding_goes_on(&tiny, model, pool);
        next_tokens_are_the_hosts(model, pool);
        a_stopped_prefill_leaves_no_trace(model, pool);
        a_plan_may_grow(model, pool);
        dynamic_layers_are_the_cpus(&tiny, model, pool);
        refusals_say_why(model, &tiny, pool);
    }
    tmx_model_close(model);
    tiny_model_free(&tiny);
    return true;
}

/* ---------------------------------------------------------------- a model from a file */

static void check_file(const char *path, const char *ids_path, tmx_pool *pool)
{
    enum { N_MOST = 4096 };
    static const struct { const char *spec; int32_t n_tokens; } cases[] = {
        { "dense", 1 }, { "dense", 129 }, { "dense", 1024 }, { NULL, 1024 }, { "dense", N_MOST }, { NULL, N_MOST },
        { "xattention(stride=8,threshold=0.9)", N_MOST }, { "mix:triangle=10-29,rest=xattention(stride=8,threshold=0.95)", N_MOST },
        { "mix:triangle=10-29,rest=flexprefill(gamma=0.95)", N_MOST },
    };
    static int32_t ids[N_MOST];
    tmx_model *cpu = NULL, *cuda = NULL;
    tmx_error err = { 0 };
    const int32_t n_ids = read_ids(ids_path, ids, N_MOST);
    if (tmx_model_open(&cpu, path, &(tmx_model_params){ .compute = TMX_COMPUTE_F32 }, pool, &err) != TMX_OK
        || tmx_model_open(&cuda, path, &(tmx_model_params){ .device = "cuda" }, pool, &err) != TMX_OK || n_ids < N_MOST) {
        check(false, "%s: %s (%d ids)", path, err.text, n_ids);
        tmx_model_close(cpu);
        tmx_model_close(cuda);
        return;
    }
    const int32_t n_vocab = tmx_model_info_get(cpu)->n_vocab;
    const char *triangle = tmx_model_info_get(cpu)->n_layers == 30 ? "triangle:10-29" : "triangle";         /* the demo model's */
    float *expected = malloc((size_t)n_vocab * sizeof *expected), *logits = malloc((size_t)n_vocab * sizeof *logits);
    float *chunked = malloc((size_t)n_vocab * sizeof *chunked);
    if (expected == NULL || logits == NULL || chunked == NULL) abort();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int32_t n = cases[i].n_tokens;
        const char *spec = cases[i].spec != NULL ? cases[i].spec : triangle;
        tmx_plan *plan = make_plan(cpu, spec, 8, 512, 128);
        tmx_agreement a;
        fresh_logits(cpu, pool, plan, 0, ids, n, expected);
        fresh_logits(cuda, pool, plan, 0, ids, n, logits);
        fresh_logits(cuda, pool, plan, 300, ids, n, chunked);
        tmx_logits_compare(expected, logits, n_vocab, &a);
        check(a.kl <= MOST_KL && (a.top_a == a.top_b || a.margin_a < CLEAR_MARGIN),
              "%s, %d tokens: KL to the CPU's f32 %.2e (limit %.2g), best %d and %d, lead %.2f", spec, n, a.kl, MOST_KL, a.top_a,
              a.top_b, a.margin_a);
        check(is_equal(logits, chunked, n_vocab), "%s, %d tokens in chunks of 300: same bits", spec, n);
        if (n > 1 && n < N_MOST) {
            tmx_session *session = open_session(cuda, pool, NULL, &(tmx_session_params){ .n_ctx = n });
            prefill(session, ids, n / 2, 0, NULL);
            for (int32_t k = n / 2; k < n; k++) tmx_decode(session, 0, ids[k], logits, &err);
            if (strcmp(spec, "dense") == 0) {
                tmx_logits_compare(expected, logits, n_vocab, &a);
                check(a.kl <= MOST_KL, "the second half of %d decoded token by token: KL %.2e", n, a.kl);
            }
            tmx_session_free(session);
        }
        tmx_plan_free(plan);
    }
    free(expected);
    free(logits);
    free(chunked);
    tmx_model_close(cpu);
    tmx_model_close(cuda);
}

int main(int argc, char **argv)
{
    const char *model = NULL, *ids = NULL;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--model") == 0) model = argv[i + 1];
        else if (strcmp(argv[i], "--ids") == 0) ids = argv[i + 1];
    }
    tmx_pool *pool;
    tmx_error err;
    if (tmx_pool_create(&pool, 0, &err) != TMX_OK) return 1;
    if (check_tiny(pool)) {
        if (model != NULL && ids != NULL) {
            check_file(model, ids, pool);
        } else {
            printf("skipped: no model file was given (--model FILE --ids FILE)\n");
            n_skipped++;
        }
    }
    tmx_pool_free(pool);
    printf("%d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed == 0 ? 0 : 1;
}
