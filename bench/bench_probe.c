/* Times a probe sample beside a dense prefill of the same length, alternating, on one model.
 *     bench_probe MODEL [n_tokens [n_repeats [n_threads [f32 | bf16]]]]      default 2000 5 0 (all cores), the model's mode
 * Prints one CSV line per kind of run and the ratio of the medians. */
#include "timing.h"
#include "tmx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_REPEATS = 100 };

static double print_times(const char *what, double *ms, int n_repeats, int32_t n_tokens, const tmx_model *model, const tmx_pool *pool)
{
    const timing_summary s = timing_summarize(ms, n_repeats);
    printf("%s,%s,%s,%d,%d,%.1f,%.1f,%.1f\n", what, tmx_model_compute(model) == TMX_COMPUTE_BF16 ? "bf16" : "f32",
           tmx_isa_name(tmx_model_isa(model)), tmx_pool_n_threads(pool), n_tokens, s.median, s.least,
           s.spread_pct);
    return s.median;
}

static void check(tmx_status status, const tmx_error *err)
{
    if (status == TMX_OK) return;
    fprintf(stderr, "bench_probe: %s\n", err->text);
    exit(1);
}

static void *take(size_t n, size_t size)
{
    void *block = calloc(n, size);
    check(block != NULL ? TMX_OK : TMX_E_MEMORY, &(tmx_error){ .text = "out of memory" });
    return block;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_probe MODEL [n_tokens [n_repeats [n_threads [f32 | bf16]]]]\n");
        return 1;
    }
    const int32_t n_tokens = argc > 2 ? atoi(argv[2]) : 2000;
    const int n_asked = argc > 3 ? atoi(argv[3]) : 5, n_repeats = n_asked < 1 ? 1 : n_asked > MAX_REPEATS ? MAX_REPEATS : n_asked;
    tmx_pool *pool;
    tmx_model *model;
    tmx_session *session;
    tmx_probe *probe;
    tmx_error err;
    tmx_model_params params = { 0 };
    if (argc > 5) params.compute = strcmp(argv[5], "bf16") == 0 ? TMX_COMPUTE_BF16 : TMX_COMPUTE_F32;
    check(tmx_pool_create(&pool, argc > 4 ? atoi(argv[4]) : 0, &err), &err);
    check(tmx_model_open(&model, argv[1], &params, pool, &err), &err);
    check(tmx_session_create(&session, model, NULL, pool, &(tmx_session_params){ .n_ctx = n_tokens }, &err), &err);
    check(tmx_probe_create(&probe, model, pool, &(tmx_probe_params){ .n_tokens = n_tokens }, &err), &err);
    const tmx_model_info *info = tmx_model_info_get(model);
    int32_t *tokens = take((size_t)n_tokens, sizeof *tokens);
    float *logits = take((size_t)info->n_vocab, sizeof *logits);
    tmx_probe_layer *layers = take((size_t)info->n_layers, sizeof *layers);
    for (int32_t i = 0; i < n_tokens; i++) tokens[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)info->n_vocab);

    double prefill_ms[MAX_REPEATS], forward_ms[MAX_REPEATS], probe_ms[MAX_REPEATS];
    for (int i = -1; i < n_repeats; i++) {         /* the first round warms up */
        const int at = i < 0 ? 0 : i;
        double start = timing_now_ms();
        tmx_session_reset(session);
        check(tmx_prefill(session, &(tmx_prompt){ .tokens = tokens, .n_tokens = n_tokens, .logits = logits }, 1, &err), &err);
        prefill_ms[at] = timing_now_ms() - start;
        start = timing_now_ms();
        check(tmx_probe_run(probe, tokens, n_tokens, 0, NULL, NULL, &err), &err);
        forward_ms[at] = timing_now_ms() - start;
        start = timing_now_ms();
        check(tmx_probe_run(probe, tokens, n_tokens, 0, layers, NULL, &err), &err);
        probe_ms[at] = timing_now_ms() - start;
    }
    printf("op,compute,isa,threads,n_tokens,median_ms,min_ms,spread_pct\n");
    const double prefill = print_times("prefill", prefill_ms, n_repeats, n_tokens, model, pool);
    print_times("probe_forward", forward_ms, n_repeats, n_tokens, model, pool);
    const double sample = print_times("probe", probe_ms, n_repeats, n_tokens, model, pool);
    printf("# a probe sample is %.2f dense prefills\n", sample / prefill);
    free(tokens), free(logits), free(layers);
    tmx_probe_free(probe);
    tmx_session_free(session);
    tmx_model_close(model);
    tmx_pool_free(pool);
    return 0;
}
