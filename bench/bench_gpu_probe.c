/* Times samples of the gradient probe on a CUDA device, on a model of a known shape with random weights.
 *
 *     bench_gpu_probe [--shape llama-3.1-8b] [--tokens 2000] [--samples 100] [--model FILE]      a model file in place of a shape
 *
 * A sample is tmx_probe_run from the prompt's ids to the sums of all layers; forward is the same without the way back.  One of each
 * goes first, untimed. */
#include "ops/cuda/ops_cuda.h"
#include "timing.h"
#include "tmx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SAMPLES = 1000, N_FORWARD = 10 };

static void check(tmx_status status, const tmx_error *err)
{
    if (status == TMX_OK) return;
    fprintf(stderr, "bench_gpu_probe: %s\n", err->text);
    exit(3);
}

static void *take(size_t n, size_t size)
{
    void *block = calloc(n, size);
    check(block != NULL ? TMX_OK : TMX_E_MEMORY, &(tmx_error){ .text = "out of memory" });
    return block;
}

static void print_times(const char *what, double *ms, int n)
{
    const timing_summary s = timing_summarize(ms, n);
    printf("| %s | %d | %.1f | %.1f | %.1f |\n", what, n, s.median, s.least, s.spread_pct);
}

static double used_gib(gpu *g)
{
    uint64_t n_free, n_total;
    tmx_error err;
    check(gpu_memory(g, &n_free, &n_total, &err), &err);
    return (double)(n_total - n_free) / 0x1p30;
}

int main(int argc, char **argv)
{
    const char *shape = "llama-3.1-8b", *path = NULL;
    int32_t n_tokens = 2000, n_samples = 100;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--shape") == 0) shape = argv[i + 1];
        else if (strcmp(argv[i], "--model") == 0) path = argv[i + 1];
        else if (strcmp(argv[i], "--tokens") == 0) n_tokens = (int32_t)strtol(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--samples") == 0) n_samples = (int32_t)strtol(argv[i + 1], NULL, 10);
        else argc = 0;
    }
    if (argc % 2 == 0 || n_samples < 1 || n_samples > MAX_SAMPLES || n_tokens < 1) {
        fprintf(stderr, "usage: bench_gpu_probe [--shape NAME | --model FILE] [--tokens N] [--samples 1..%d]\n", MAX_SAMPLES);
        return 1;
    }
    gpu *g;
    tmx_pool *pool;
    tmx_model *model;
    tmx_probe *probe;
    tmx_memory plan;
    tmx_error err;
    const tmx_model_params cuda = { .device = "cuda" };
    const tmx_probe_params params = { .n_tokens = n_tokens };
    check(gpu_open(&g, 0, &err), &err);
    check(tmx_pool_create(&pool, 0, &err), &err);
    if (path != NULL) check(tmx_model_open(&model, path, &cuda, pool, &err), &err);
    else check(tmx_model_open_random(&model, shape, NULL, pool, &err), &err);
    const tmx_model_info *m = tmx_model_info_get(model);
    check(tmx_probe_memory(m, TMX_COMPUTE_BF16, TMX_ISA_AUTO, &params, 1, &plan, &err), &err);
    const double used_before = used_gib(g), start_create = timing_now_ms();
    check(tmx_probe_create(&probe, model, pool, &params, &err), &err);
    printf("%s, %s; %d tokens; probe made in %.0f ms\n", m->name, tmx_model_device_name(model), n_tokens, timing_now_ms() - start_create);
    int32_t *tokens = take((size_t)n_tokens, sizeof *tokens);
    tmx_probe_layer *layers = take((size_t)m->n_layers, sizeof *layers);
    double forward_ms[N_FORWARD], sample_ms[MAX_SAMPLES];
    for (int32_t i = 0; i < n_tokens; i++) tokens[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)m->n_vocab);

    for (int i = -1; i < N_FORWARD; i++) {
        const double start = timing_now_ms();
        check(tmx_probe_run(probe, tokens, n_tokens, 0, NULL, NULL, &err), &err);
        if (i >= 0) forward_ms[i] = timing_now_ms() - start;
    }
    check(tmx_probe_run(probe, tokens, n_tokens, 0, layers, NULL, &err), &err);
    const double start_all = timing_now_ms();
    for (int i = 0; i < n_samples; i++) {
        const double start = timing_now_ms();
        tokens[0] = i % m->n_vocab;
        check(tmx_probe_run(probe, tokens, n_tokens, i % m->n_vocab, layers, NULL, &err), &err);
        sample_ms[i] = timing_now_ms() - start;
    }
    const double all_s = (timing_now_ms() - start_all) * 1e-3;
    printf("\n| | runs | median ms | least | spread %% |\n|--|--|--|--|--|\n");
    print_times("forward", forward_ms, N_FORWARD);
    print_times("sample", sample_ms, n_samples);
    printf("\n%d samples in %.2f s; memory beside the weights: planned %.3f GiB, taken %.3f\n", n_samples, all_s,
           (double)plan.total_bytes / 0x1p30, used_gib(g) - used_before);
    for (int32_t l = 0; l < m->n_layers; l += 8) {
        printf("layer %2d: middle theta_abs %.3e, attention %.1f\n", l, layers[l].middle.theta_abs, layers[l].middle.attention);
    }
    free(tokens), free(layers);
    tmx_probe_free(probe);
    tmx_model_close(model);
    tmx_pool_free(pool);
    gpu_close(g);
    return 0;
}
