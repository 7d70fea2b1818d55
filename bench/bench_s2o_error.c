/* What leaving out pairs costs in the output of attention, on Q and K of a real prompt: S2O, and the same without its permutation of
 * rows, against the lists of whole blocks that XAttention and FlexPrefill choose.
 *     bench_s2o_error MODEL PROMPT_FILE N_TOKENS [EVERY [LORA ROPE_BASE]]      every EVERY-th layer, 4 if left out
 * Runs the prompt dense; tmx_attention is wrapped (bench/CMakeLists.txt), so each layer's Q, K and V pass by here.  For each layer
 * and setting: density = pairs / pairs of dense attention, and error = |O - O_dense| / |O_dense| over all rows and heads.  CSV, a
 * line for the mean over layers of each setting. */
#include "attn/attn.h"
#include "base/cpu.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum method { S2O_ROWS, S2O_KEYS, XATTENTION, FLEXPREFILL, N_METHODS } method;

static const char *const names[N_METHODS] = { "s2o", "s2o without guide", "xattention", "flexprefill" };
static const double settings[N_METHODS][6] = {
    { 0.002, 0.005, 0.01, 0.02, 0.04, 0.08 }, { 0.002, 0.005, 0.01, 0.02, 0.04, 0.08 },
    { 0.98, 0.95, 0.9, 0.8, 0.6, 0.4 }, { 0.99, 0.97, 0.95, 0.9, 0.8, 0.6 },
};
enum { N_SETTINGS = 6 };
static const int32_t segments[] = { 128, 256, 512 };
enum { N_SEGMENTS = 3, N_VARIANTS = 2 * N_SEGMENTS + 2 };      /* S2O at each segment, then the two of blocks */

typedef struct result { double density, error; } result;

static struct {
    int32_t every, n_calls, n_layers;
    result sum[N_VARIANTS][N_SETTINGS];
} study;

static double norm_of_difference(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (b == NULL ? 0 : (double)b[i]);
        sum += d * d;
    }
    return sqrt(sum);
}

static method method_of(int variant) { return variant < N_SEGMENTS ? S2O_ROWS : variant < 2 * N_SEGMENTS ? S2O_KEYS : (method)(variant - 2 * N_SEGMENTS + 2); }

/* Runs a variant into params->seqs->out; returns the pairs of all heads. */
static int64_t run_variant(const tmx_attention_params *p, int variant, double setting, uint64_t *bits, tmx_pool *pool)
{
    const int32_t n = p->seqs->n_q;
    const method m = method_of(variant);
    if (m == S2O_ROWS || m == S2O_KEYS) {
        s2o s = S2O_DEFAULTS;
        s.segment = segments[variant % N_SEGMENTS];
        s.tau = setting;
        s.guide = m == S2O_ROWS;
        return attn_s2o(p, &s, pool, NULL).n_pairs;
    }
    key_lists lists = key_lists_on(bits, p->n_heads, 0, n);
    if (m == XATTENTION) {
        attn_xattention(p, &(xattention){ .stride = 8, .threshold = setting, .norm = 1 }, &lists, pool);
    } else {
        attn_flexprefill(p, &(flexprefill){ .gamma = setting, .tau = 0.1, .min_budget = 128 }, &lists, pool);
    }
    attn_over_lists(p, &lists, pool);
    return key_lists_pairs(&lists, 0, n);
}

static void study_layer(const tmx_attention_params *dense, tmx_pool *pool)
{
    tmx_attention_seq seq = dense->seqs[0];
    tmx_attention_params p = *dense;
    const int32_t n = seq.n_q, n_threads = tmx_pool_n_threads(pool);
    const size_t n_out = (size_t)n * (size_t)p.n_heads * (size_t)p.head_dim;
    float *const exact = seq.out, *other = mem_alloc(n_out, sizeof *other);
    uint64_t *bits = mem_alloc(key_lists_bytes(p.n_heads, n, n), 1);
    seq.out = other;
    seq.lse = NULL;
    p.seqs = &seq;
    size_t n_scratch = attn_s2o_scratch_bytes(&p, n, n_threads);
    for (int kind = TMX_PATTERN_XATTENTION; kind <= TMX_PATTERN_FLEXPREFILL; kind++) {
        const size_t n_more = attn_lists_scratch_bytes(&p, (tmx_pattern_kind)kind, n, n_threads);
        if (n_more > n_scratch) n_scratch = n_more;
    }
    p.scratch = mem_alloc(n_scratch, 1);
    if (other == NULL || bits == NULL || p.scratch == NULL) exit(3);
    const double norm = norm_of_difference(exact, NULL, n_out), n_all = p.n_heads * (double)n * (n + 1.0) / 2;
    for (int variant = 0; variant < N_VARIANTS; variant++) {
        for (int i = 0; i < N_SETTINGS; i++) {
            result *sum = &study.sum[variant][i];
            sum->density += (double)run_variant(&p, variant, settings[method_of(variant)][i], bits, pool) / n_all;
            sum->error += norm_of_difference(other, exact, n_out) / norm;
        }
    }
    mem_free(p.scratch);
    mem_free(other);
    mem_free(bits);
    study.n_layers++;
}

tmx_status __real_tmx_attention(const tmx_attention_params *params, tmx_pool *pool, tmx_error *err);
tmx_status __wrap_tmx_attention(const tmx_attention_params *params, tmx_pool *pool, tmx_error *err);

tmx_status __wrap_tmx_attention(const tmx_attention_params *params, tmx_pool *pool, tmx_error *err)
{
    const tmx_status status = __real_tmx_attention(params, pool, err);
    if (status == TMX_OK && study.n_calls++ % study.every == 0) study_layer(params, pool);
    return status;
}

static char *text_of(const char *path, size_t *n)
{
    FILE *in = fopen(path, "rb");
    char *text = mem_alloc(1 << 24, 1);
    if (in == NULL || text == NULL) return NULL;
    *n = fread(text, 1, 1 << 24, in);
    fclose(in);
    return text;
}

static void print_study(int32_t n_tokens)
{
    printf("method,segment,setting,n_tokens,layers,density_pct,error_pct\n");
    for (int variant = 0; variant < N_VARIANTS; variant++) {
        for (int i = 0; i < N_SETTINGS; i++) {
            const result *sum = &study.sum[variant][i];
            printf("%s,%d,%g,%d,%d,%.2f,%.3f\n", names[method_of(variant)], variant < 2 * N_SEGMENTS ? segments[variant % N_SEGMENTS] : 0,
                   settings[method_of(variant)][i], n_tokens, study.n_layers, 100 * sum->density / study.n_layers,
                   100 * sum->error / study.n_layers);
        }
    }
}

static tmx_status run_prompt(const tmx_model *model, tmx_pool *pool, const char *text, size_t n_bytes, int32_t n_tokens, tmx_error *err)
{
    const tmx_session_params params = { .n_ctx = n_tokens, .n_chunk = n_tokens, .kv_type = TMX_TYPE_F32 };
    int32_t *ids = mem_alloc(n_bytes + 1, sizeof *ids);
    size_t n_ids = 0;
    tmx_session *session;
    if (ids == NULL) exit(3);
    tmx_status status = tmx_tokenize(model, text, n_bytes, 0, ids, n_bytes + 1, &n_ids, err);
    if (status == TMX_OK && n_ids < (size_t)n_tokens) {
        fprintf(stderr, "bench_s2o_error: the prompt has %zu tokens, fewer than %d\n", n_ids, n_tokens);
        exit(2);
    }
    if (status == TMX_OK) status = tmx_session_create(&session, model, NULL, pool, &params, err);
    if (status == TMX_OK) {
        status = tmx_prefill(session, &(tmx_prompt){ .tokens = ids, .n_tokens = n_tokens }, 1, err);
        tmx_session_free(session);
    }
    mem_free(ids);
    return status;
}

int main(int argc, char **argv)
{
    const int32_t n_tokens = argc > 3 ? atoi(argv[3]) : 0;
    study.every = argc > 4 ? atoi(argv[4]) : 4;
    if (n_tokens < 513 || n_tokens > 1 << 20 || study.every < 1 || argc == 6) {
        fprintf(stderr, "usage: bench_s2o_error MODEL PROMPT_FILE N_TOKENS(513..) [EVERY [LORA ROPE_BASE]]\n");
        return 1;
    }
    size_t n_bytes = 0;
    char *text = text_of(argv[2], &n_bytes);
    if (text == NULL) {
        fprintf(stderr, "bench_s2o_error: %s: cannot be read\n", argv[2]);
        return 2;
    }
    const tmx_lora lora = { .path = argc > 6 ? argv[5] : NULL, .scale = 1 };
    const tmx_model_params params = { .compute = TMX_COMPUTE_F32, .loras = &lora, .n_loras = argc > 6,
                                      .rope_freq_base = argc > 6 ? (float)atof(argv[6]) : 0 };
    tmx_error err;
    tmx_pool *pool = NULL;
    tmx_model *model = NULL;
    tmx_status status = tmx_pool_create(&pool, 1, &err);
    if (status == TMX_OK) status = tmx_model_open(&model, argv[1], &params, pool, &err);
    if (status == TMX_OK) status = run_prompt(model, pool, text, n_bytes, n_tokens, &err);
    if (status == TMX_OK) print_study(n_tokens);
    else fprintf(stderr, "bench_s2o_error: %s\n", err.text);
    tmx_model_close(model);
    tmx_pool_free(pool);
    mem_free(text);
    return status == TMX_OK ? 0 : 2;
}
