/* check_gpu_families.c - a tiny random model of every family on a CUDA device: against f64, and bit for bit against itself.  Linked
 * with fake_gpu.c, the same without a device.
 *
 *     check_gpu_families [NAME]      all of them, or one
 *
 * Without a usable GPU, everything is skipped and counted.  Ends with "N passed, N failed, N skipped". */
#include "gpu/gpu_model.h"
#include "tiny_family_gradient.h"

#ifndef CHECK_TOKENS
#define CHECK_TOKENS 81            /* at least 45; sanitizers get fewer */
#endif

/* The models of tiny_family.h with heads as the GPU kernels have them, and smaller weights for their width.  Six of eight experts:
 * rounding decides between two experts with almost the same score, and the last of six counts for little. */
#define SPREAD .spread = 0.2f
static const tf_spec specs[] = {
    { "llama-yarn", "llama", 3, 4, 2, 64, 64, 1e4, 4, TF_YARN, .is_interleaved = true, SPREAD },
    { "mistral", "llama", 3, 4, 2, 64, 64, 1e4, 1, .is_interleaved = true, .n_window = TF_WINDOW, SPREAD },
    { "qwen2", "qwen2", 3, 4, 2, 128, 128, 1e6, 1, .is_tied = true, .has_bias = true, SPREAD },
    { "qwen2-yarn", "qwen2", 3, 7, 1, 64, 64, 1e4, 4, TF_YARN, .has_bias = true, SPREAD },
    { "qwen3", "qwen3", 3, 4, 2, 128, 128, 1e6, 1, .has_head_norms = true, SPREAD },
    { "qwen3moe", "qwen3moe", 3, 4, 2, 64, 64, 1e6, 1, .has_head_norms = true, .n_experts = 8, .n_used = 6, .n_ff_expert = 24, SPREAD },
    { "gemma3", "gemma3", 7, 2, 1, 256, 256, 1e6, 8, TF_LINEAR, .is_tied = true, .has_head_norms = true,
      .has_branch_norms = true, .is_gelu = true, .n_window = TF_WINDOW, .window_period = 6, .window_base = 1e4, SPREAD },
    { "llama-96", "llama", 2, 4, 2, 96, 96, 1e4, 1, .is_interleaved = true, SPREAD },
    { "phi3", "phi3", 3, 3, 1, 96, 96, 1e4, 1, .is_fused = true, .n_window = TF_WINDOW, SPREAD },
    { "phi3-long", "phi3", 3, 4, 2, 128, 96, 1e4, 1, TF_LONG, .is_fused = true, .is_tied = true, SPREAD },
};
enum { N_SPECS = sizeof specs / sizeof specs[0], N_TOKENS = CHECK_TOKENS, N_BATCH = 3 };

/* Relative to the largest logit.  Weights, cache and what products read are rounded to bf16: up to 1.2e-2 through fake_gpu.c. */
static const double WORST_LOGIT = 0.03;
/* Of a section's derivatives, relative to a layer's sum of absolute values; up to 6.6e-3 through fake_gpu.c. */
static const double WORST_SUM = 0.015;

static int32_t tokens[N_TOKENS];

typedef struct family {
    tf_model file;
    tmx_model *model;
    tmx_pool *pool;
} family;

static tmx_plan *plan_of(const family *f, const char *spec) { return make_plan(f->model, spec, 2, 20, 11); }

/* Patterns of a plan; windows of the model's own go before them. */
static void expect(const family *f, const tmx_plan *plan, int n, int n_ctx, double *logits)
{
    tmx_pattern patterns[8];
    for (int l = 0; l < f->file.spec->n_layers; l++) patterns[l] = *tmx_plan_layer(plan, l);
    tf_forward(&(tf_f64){ .m = &f->file, .n = n, .n_ctx = n_ctx, .patterns = patterns }, tokens, logits);
}

static void logits_match_f64(const family *f, const char *spec)
{
    static const int32_t lengths[] = { 1, 33, N_TOKENS };
    tmx_plan *plan = plan_of(f, spec);
    double worst = 0;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        float logits[TF_VOCAB];
        double expected[TF_VOCAB];
        fresh_logits(f->model, f->pool, plan, 0, tokens, lengths[i], logits);
        expect(f, plan, lengths[i], lengths[i], expected);
        const double d = worst_difference(logits, expected, TF_VOCAB);
        if (!(d <= worst)) worst = d;
    }
    check(worst <= WORST_LOGIT, "%s, %s against f64: worst difference %.2e (limit %.2g)", f->file.spec->name, spec, worst, WORST_LOGIT);
    tmx_plan_free(plan);
}

static void chunks_change_nothing(const family *f, const char *spec)
{
    static const int32_t chunks[] = { 1, 41 };
    float whole[TF_VOCAB], logits[TF_VOCAB];
    tmx_plan *plan = plan_of(f, spec);
    fresh_logits(f->model, f->pool, plan, N_TOKENS, tokens, N_TOKENS, whole);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        fresh_logits(f->model, f->pool, plan, chunks[i], tokens, N_TOKENS, logits);
        check(is_equal(whole, logits, TF_VOCAB), "%s, %s in chunks of %d: same bits", f->file.spec->name, spec, chunks[i]);
    }
    tmx_plan_free(plan);
}

static void a_batch_is_its_prompts(const family *f)
{
    static const int32_t lengths[N_BATCH] = { N_TOKENS - 11, 1, 31 };
    float alone[N_BATCH][TF_VOCAB], together[N_BATCH][TF_VOCAB];
    tmx_prompt prompts[N_BATCH];
    tmx_error err = { 0 };
    tmx_plan *plan = plan_of(f, "triangle");
    for (int i = 0; i < N_BATCH; i++) {
        tmx_session *session = open_session(f->model, f->pool, plan, &(tmx_session_params){ .n_ctx = N_TOKENS });
        prefill(session, tokens + i, lengths[i], 0, alone[i]);
        tmx_session_free(session);
        prompts[i] = (tmx_prompt){ .tokens = tokens + i, .n_tokens = lengths[i], .seq = N_BATCH - 1 - i, .logits = together[i] };
    }
    tmx_session *session = open_session(f->model, f->pool, plan, &(tmx_session_params){ .n_ctx = N_TOKENS, .n_seqs = N_BATCH, .n_chunk = 47 });
    memset(together, 0xff, sizeof together);
    const bool is_done = tmx_prefill(session, prompts, N_BATCH, &err) == TMX_OK;
    check(is_done && memcmp(alone, together, sizeof alone) == 0, "%s, a batch of %d: same bits %s", f->file.spec->name, N_BATCH,
          is_done ? "" : err.text);
    tmx_session_free(session);
    tmx_plan_free(plan);
}

static void decoding_goes_on(const family *f)
{
    enum { N_FIRST = 29, N_LAST = N_TOKENS - 5 };      /* within a window, and beyond it; of these rows every 18th is looked at */
    double worst = 0;
    tmx_error err = { 0 };
    tmx_plan *dense = plan_of(f, "dense");
    tmx_session *session = open_session(f->model, f->pool, NULL, &(tmx_session_params){ .n_ctx = N_LAST, .n_seqs = 2 });
    prefill(session, tokens + 7, N_FIRST, 0, NULL);        /* a neighbour */
    prefill(session, tokens, N_FIRST, 1, NULL);
    for (int i = N_FIRST; i < N_LAST; i++) {
        float logits[TF_VOCAB];
        double expected[TF_VOCAB];
        if (tmx_decode(session, 1, tokens[i], logits, &err) != TMX_OK) check(false, "decode: %s", err.text);
        if ((N_LAST - 1 - i) % 18 != 0) continue;
        expect(f, dense, i + 1, N_LAST, expected);
        const double d = worst_difference(logits, expected, TF_VOCAB);
        if (!(d <= worst)) worst = d;
    }
    check(worst <= WORST_LOGIT, "%s, decoding against f64: worst difference %.2e (limit %.2g)", f->file.spec->name, worst, WORST_LOGIT);
    tmx_session_free(session);
    tmx_plan_free(dense);
}

/* Each cell's derivative by finite differences.  What the probe does not do on a GPU, or at all, is refused. */
static void probe_matches_f64(const family *f)
{
    enum { N = CHECK_TOKENS < 60 ? 7 : 12, TARGET = 5 };
    static const tmx_pattern sections = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = 1, .n_window = 2, .n_last = 2 };
    const tf_spec *spec = f->file.spec;
    const bool is_refused = spec->n_window > 0 || spec->n_experts > 0;
    const tmx_probe_params params = { .n_tokens = N, .sections = { sections.n_sink, sections.n_window, sections.n_last } };
    tmx_probe_layer layers[8];
    tmx_probe *probe = NULL;
    tmx_error err = { 0 };
    const tmx_status status = tmx_probe_create(&probe, f->model, f->pool, &params, &err);
    if (!check(status == (is_refused ? TMX_E_UNSUPPORTED : TMX_OK), "%s, probe: %s", spec->name, err.text) || is_refused) return;
    if (tmx_probe_run(probe, tokens, N, TARGET, layers, NULL, &err) != TMX_OK) check(false, "%s, probe: %s", spec->name, err.text);
    double worst = 0;
    for (int l = 0; l < spec->n_layers; l++) {
        double cells[N * N], abs_sums[3], signed_sums[3];
        const tmx_probe_sums *const found[3] = { &layers[l].streaming, &layers[l].last, &layers[l].middle };
        tf_finite_differences(&f->file, tokens, N, TARGET, l, cells);
        tf_section_sums(cells, N, &sections, abs_sums, signed_sums);
        const double size = abs_sums[0] + abs_sums[1] + abs_sums[2];
        for (int s = 0; s < 3; s++) {
            const double d = fmax(fabs(found[s]->theta_abs - abs_sums[s]), fabs(found[s]->theta_signed - signed_sums[s])) / size;
            if (!(d <= worst)) worst = d;
        }
    }
    check(worst <= WORST_SUM, "%s, probe against finite differences: worst sum %.2e (limit %.2g)", spec->name, worst, WORST_SUM);
    tmx_probe_free(probe);
}

static void what_is_missing_is_named(tmx_pool *pool)
{
    static const struct { tf_spec spec; const char *text; } cases[] = {
        { { "narrow", "llama", 3, 4, 2, 80, 80, 1e6, 1, .is_interleaved = true }, "head_dim 80: the GPU kernels have 64, 96, 128 and 256" },
        { { "wide group", "llama", 3, 9, 1, 256, 256, 1e6, 1, .is_interleaved = true },
          "9 heads on 1 KV heads of 256: the GPU kernels have up to 8 on one" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tf_model file;
        tmx_model *model = NULL;
        tmx_error err = { 0 };
        tf_create(&file, &cases[i].spec);
        const tmx_status status = tmx_model_open(&model, file.path, &(tmx_model_params){ .device = "cuda" }, pool, &err);
        check(status == TMX_E_UNSUPPORTED && strstr(err.text, cases[i].text) != NULL, "%s: %s", cases[i].spec.name, err.text);
        tmx_model_close(model);
        tf_free(&file);
    }
}

/* Heads that the kernels forward have, but not those of the way back. */
static void the_probe_refuses_other_heads(tmx_pool *pool)
{
    static const tf_spec spec = { "llama-256", "llama", 2, 4, 2, 256, 256, 1e4, 1, .is_interleaved = true };
    tf_model file;
    tmx_model *model = NULL;
    tmx_probe *probe = NULL;
    tmx_error err = { 0 };
    tf_create(&file, &spec);
    tmx_status status = tmx_model_open(&model, file.path, &(tmx_model_params){ .device = "cuda" }, pool, &err);
    if (check(status == TMX_OK, "%s: opens %s", spec.name, err.text)) {
        status = tmx_probe_create(&probe, model, pool, NULL, &err);
        check(status == TMX_E_UNSUPPORTED && strstr(err.text, "heads of more than 128") != NULL, "%s: %s", spec.name, err.text);
    }
    tmx_probe_free(probe);
    tmx_model_close(model);
    tf_free(&file);
}

/* False: there is no GPU. */
static bool check_family(const tf_spec *spec, tmx_pool *pool)
{
    family f = { .pool = pool };
    tmx_error err = { 0 };
    tf_create(&f.file, spec);
    const tmx_status status = tmx_model_open(&f.model, f.file.path, &(tmx_model_params){ .device = "cuda" }, pool, &err);
    const bool has_gpu = status != TMX_E_DEVICE && (status != TMX_E_UNSUPPORTED || strstr(err.text, "CUDA") == NULL);
    if (has_gpu && check(status == TMX_OK, "%s: opens %s", spec->name, err.text)) {
        static const char *const plans[] = { "dense", "triangle" };
        for (int p = 0; p < 2; p++) {
            logits_match_f64(&f, plans[p]);
        }
        chunks_change_nothing(&f, "triangle");
        a_batch_is_its_prompts(&f);
        decoding_goes_on(&f);
        probe_matches_f64(&f);
    } else if (!has_gpu) {
        printf("skipped: %s\n", err.text);
        n_skipped++;
    }
    tmx_model_close(f.model);
    tf_free(&f.file);
    return has_gpu;
}

int main(int argc, char **argv)
{
    tmx_pool *pool;
    tmx_error err;
    if (tmx_pool_create(&pool, 0, &err) != TMX_OK) return 1;
    tf_tokens(tokens, N_TOKENS);
    bool has_gpu = true;
    for (int i = 0; has_gpu && i < N_SPECS; i++) {
        if (argc > 1 && strcmp(argv[1], specs[i].name) != 0) continue;
        has_gpu = check_family(&specs[i], pool);
    }
    if (has_gpu) {
        what_is_missing_is_named(pool);
        the_probe_refuses_other_heads(pool);
    }
    tmx_pool_free(pool);
    printf("%d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed == 0 ? 0 : 1;
}
