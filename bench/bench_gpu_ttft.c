/* rooms: run */
/* Times whole prefills and decoding on a CUDA device, on a model of a known shape with random weights: TTFT of three plans (dense,
 * triangle on the upper half of the layers, triangle on all) at several prompt lengths, decoding at several depths, and
 * device memory beside the plan's.
 *
 *     bench_gpu_ttft [--shape llama-3.1-8b] [--lengths 1024,32768,131072] [--depths 1024,131072] [--reps 5] [--chunk 0]
 *
 * TTFT is the time of tmx_prefill, logits on the host.  A length's plans alternate; one run of each goes first, untimed. */
#include "ops/cuda/ops_cuda.h"
#include "run/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LENGTHS = 32, MAX_REPS = 50, N_PLANS = 3, N_DECODED = 64, LONG_TOKENS = 100000, LONG_REPS = 3 };

typedef struct bench {
    const char *shape;
    int32_t lengths[MAX_LENGTHS], n_lengths, depths[MAX_LENGTHS], n_depths;
    int32_t n_reps, n_chunk;
    gpu *g;                        /* to ask for free memory */
    uint64_t free_before, least_free;
    tmx_model *model;
    tmx_session *session;
    tmx_plan *plans[N_PLANS];
    int32_t *tokens;
    float *logits;
} bench;

static const char *plan_names[N_PLANS] = { "dense", NULL, "triangle" };
static char upper_half[40];

static void stop(const tmx_error *err)
{
    fprintf(stderr, "bench_gpu_ttft: %s\n", err->text);
    exit(3);
}

static int32_t parse_list(const char *text, int32_t *list)
{
    int32_t n = 0;
    for (char *end; n < MAX_LENGTHS; text = end + 1) {
        list[n++] = (int32_t)strtol(text, &end, 10);
        if (*end != ',') break;
    }
    return n;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void watch_memory(bench *b)
{
    uint64_t n_free, n_total;
    tmx_error err;
    if (gpu_memory(b->g, &n_free, &n_total, &err) != TMX_OK) stop(&err);
    if (n_free < b->least_free) b->least_free = n_free;
}

static double prefill_ms(bench *b, int plan, int32_t n_tokens, tmx_timings *timings)
{
    tmx_error err = { 0 };
    const tmx_prompt prompt = { .tokens = b->tokens, .n_tokens = n_tokens, .logits = b->logits };
    tmx_session_reset(b->session);
    if (tmx_session_set_plan(b->session, b->plans[plan], &err) != TMX_OK) stop(&err);
    const double start = now_ms();
    if (tmx_prefill(b->session, &prompt, 1, &err) != TMX_OK) stop(&err);
    const double ms = now_ms() - start;
    tmx_session_timings(b->session, timings);
    return ms;
}

static void time_length(bench *b, int32_t n_tokens)
{
    static double ms[N_PLANS][MAX_REPS];
    tmx_timings last[N_PLANS] = { 0 };
    const int32_t n_reps = n_tokens >= LONG_TOKENS && b->n_reps > LONG_REPS ? LONG_REPS : b->n_reps;
    for (int32_t r = -1; r < n_reps; r++) {
        for (int p = 0; p < N_PLANS; p++) {
            const double t = prefill_ms(b, p, n_tokens, &last[p]);
            if (r >= 0) ms[p][r] = t;
        }
    }
    watch_memory(b);
    for (int p = 0; p < N_PLANS; p++) {
        qsort(ms[p], (size_t)n_reps, sizeof ms[p][0], by_value);
        const double median = ms[p][n_reps / 2], dense = ms[0][n_reps / 2];
        printf("| %d | %s | %.1f | %.1f | %.1f | %.1f | %.1f | %.1f | %.0f | %.2f |\n", n_tokens, plan_names[p], median, ms[p][0],
               100 * (ms[p][n_reps - 1] - ms[p][0]) / median, last[p].matmul_ms, last[p].attention_ms, last[p].rest_ms,
               n_tokens / median * 1e3, dense / median);
        fflush(stdout);
    }
}

/* Bytes that one token must read: every weight but the embedding table, and the cache. */
static double token_bytes(const bench *b, int32_t depth)
{
    const tmx_model_info *m = tmx_model_info_get(b->model);
    const double n_weights = (double)m->n_params - (double)m->n_vocab * m->n_embd;
    return 2 * n_weights + 4.0 * m->n_layers * m->n_kv_heads * m->head_dim * depth;
}

static void time_decoding(bench *b, int32_t depth)
{
    static const struct { const char *name; tmx_sampler_params params; } choices[] = {
        { "none", { .temperature = 0 } }, { "greedy", { .temperature = 0 } },
        { "top-k 40", { .temperature = 1, .top_k = 40 } },
        { "top-p 0.9", { .temperature = 1, .top_p = 0.9f } },
    };
    tmx_timings ignored;
    tmx_error err = { 0 };
    const int32_t n_filled = depth - N_DECODED / 2;
    const double filled_ms = prefill_ms(b, N_PLANS - 1, n_filled, &ignored);
    for (size_t c = 0; c < sizeof choices / sizeof choices[0]; c++) {
        double ms[2][N_DECODED];
        tmx_sampler *sampler = NULL;
        if (tmx_sampler_create(&sampler, &choices[c].params, tmx_model_info_get(b->model)->n_vocab, &err) != TMX_OK) stop(&err);
        for (int on_device = 0; on_device < (c == 0 ? 1 : 2); on_device++) {
            if (tmx_session_rewind(b->session, 0, n_filled, &err) != TMX_OK) stop(&err);
            for (int i = -8; i < N_DECODED - 8; i++) {
                const int32_t token = b->tokens[i + 8];
                int32_t next;
                const double start = now_ms();
                const tmx_status status = on_device ? tmx_decode_next(b->session, 0, token, sampler, &next, &err)
                                                    : tmx_decode(b->session, 0, token, b->logits, &err);
                if (status != TMX_OK) stop(&err);
                if (!on_device && c > 0) tmx_sampler_next(sampler, b->logits);
                if (i >= 0) ms[on_device][i] = now_ms() - start;
            }
            qsort(ms[on_device], N_DECODED - 8, sizeof ms[0][0], by_value);
            const double median = ms[on_device][(N_DECODED - 8) / 2];
            printf("| %d | %.0f | %s | %s | %.3f | %.1f | %.0f |\n", depth, filled_ms, choices[c].name, on_device ? "device" : "host", median,
                   1e3 / median, token_bytes(b, depth) / median * 1e-6);
            fflush(stdout);
        }
        tmx_sampler_free(sampler);
    }
}

static void parse_arguments(bench *b, int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--shape") == 0) b->shape = argv[i + 1];
        else if (strcmp(argv[i], "--lengths") == 0) b->n_lengths = parse_list(argv[i + 1], b->lengths);
        else if (strcmp(argv[i], "--depths") == 0) b->n_depths = parse_list(argv[i + 1], b->depths);
        else if (strcmp(argv[i], "--reps") == 0) b->n_reps = (int32_t)strtol(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--chunk") == 0) b->n_chunk = (int32_t)strtol(argv[i + 1], NULL, 10);
        else argc = 0;
    }
    if (argc % 2 == 0 || b->n_reps < 1 || b->n_reps > MAX_REPS) {
        fprintf(stderr, "usage: bench_gpu_ttft [--shape NAME] [--lengths N,N] [--depths N,N] [--reps 1..%d] [--chunk N]\n", MAX_REPS);
        exit(1);
    }
}

static int32_t largest(const int32_t *list, int32_t n, int32_t least)
{
    for (int32_t i = 0; i < n; i++) least = list[i] > least ? list[i] : least;
    return least;
}

int main(int argc, char **argv)
{
    bench b = { .shape = "llama-3.1-8b", .lengths = { 1024, 32768, 131072 }, .n_lengths = 3, .depths = { 1024, 131072 }, .n_depths = 2,
                .n_reps = 5 };
    tmx_error err = { 0 };
    tmx_memory plan = { 0 };
    uint64_t n_total;
    parse_arguments(&b, argc, argv);
    if (gpu_open(&b.g, 0, &err) != TMX_OK || gpu_memory(b.g, &b.free_before, &n_total, &err) != TMX_OK) stop(&err);
    b.least_free = b.free_before;
    double start = now_ms();
    if (tmx_model_open_random(&b.model, b.shape, NULL, NULL, &err) != TMX_OK) stop(&err);
    const tmx_model_info *m = tmx_model_info_get(b.model);
    printf("%s, %s; opened in %.1f s\n", m->name, tmx_model_device_name(b.model), (now_ms() - start) * 1e-3);
    watch_memory(&b);
    const uint64_t open_bytes = b.free_before - b.least_free;
    const tmx_session_params params = { .n_ctx = largest(b.depths, b.n_depths, largest(b.lengths, b.n_lengths, 1)) + N_DECODED,
                                        .n_chunk = b.n_chunk };
    if (tmx_memory_plan(m, TMX_COMPUTE_BF16, TMX_ISA_AUTO, &params, 1, &plan, &err) != TMX_OK) stop(&err);
    snprintf(upper_half, sizeof upper_half, "triangle:%d-%d", m->n_layers / 2, m->n_layers - 1);
    plan_names[1] = upper_half;
    for (int p = 0; p < N_PLANS; p++) {
        if (tmx_plan_parse(&b.plans[p], plan_names[p], m, &err) != TMX_OK) stop(&err);
    }
    start = now_ms();
    if (tmx_session_create(&b.session, b.model, b.plans[N_PLANS - 1], NULL, &params, &err) != TMX_OK) stop(&err);
    printf("session of %d tokens, chunks of %d, made in %.0f ms\n\n", params.n_ctx, b.session->params.n_chunk, now_ms() - start);
    b.tokens = malloc((size_t)params.n_ctx * sizeof *b.tokens);
    b.logits = malloc((size_t)m->n_vocab * sizeof *b.logits);
    if (b.tokens == NULL || b.logits == NULL) {
        free(b.tokens);
        free(b.logits);
        return 3;
    }
    uint64_t state = 1;
    for (int32_t i = 0; i < params.n_ctx; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        b.tokens[i] = (int32_t)((state >> 33) % (uint64_t)m->n_vocab);
    }

    printf("| tokens | plan | TTFT ms, median | least | spread %% | products | attention | rest | tok/s | x dense |\n|--|--|--|--|--|--|--|--|--|--|\n");
    for (int32_t i = 0; i < b.n_lengths; i++) time_length(&b, b.lengths[i]);
    printf("\n| depth | filled with triangle, ms, once | choice | by | decode ms a token | tok/s | GB/s |\n|--|--|--|--|--|--|--|\n");
    for (int32_t i = 0; i < b.n_depths; i++) time_decoding(&b, b.depths[i]);
    watch_memory(&b);
    const double peak = (double)(b.free_before - b.least_free), planned = (double)plan.total_bytes;
    printf("\ndevice memory: opened %.3f GiB, at most %.3f GiB, planned %.3f GiB (%+.1f %%)\n", (double)open_bytes / 0x1p30, peak / 0x1p30,
           planned / 0x1p30, 100 * (peak - planned) / planned);

    tmx_session_free(b.session);
    for (int p = 0; p < N_PLANS; p++) tmx_plan_free(b.plans[p]);
    tmx_model_close(b.model);
    gpu_close(b.g);
    free(b.tokens);
    free(b.logits);
    return 0;
}
