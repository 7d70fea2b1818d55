#include "model_bench.h"

#include "eval/dice.h"
#include "eval/fault.h"
#include "timing.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Of the check's prompt: more than the default triangle's 8 + 512 + 128, so that some pairs are hidden. */
enum { CHECK_TOKENS = 700, CHECK_CHUNK = 96 };

typedef struct bench {
    const bench_params *params;
    bench_run *run;
    int32_t n_vocab, n_layers;
    int32_t *tokens;               /* [n_tokens], the same for every test */
    float *logits;                 /* [n_vocab] */
    double *layer_ms;              /* [n_layers], before the repetition at work */

    tmx_session *session;          /* of the test at work */
    int32_t plan;                  /* that the session holds tokens of; -1 = none */
    uint64_t bits[BENCH_MAX_PLANS];        /* hash of each plan's logits in this test */
    bool has_bits[BENCH_MAX_PLANS];

    bench_progress at;
    double work_done, work_total, work_now;        /* in tokens; work_now: of the repetition at work */
    double call_begin, call_size;  /* of them: before the prefill at work, in it */
} bench;

/* ---------------------------------------------------------------- progress */

static bool report(bench *b, double n_done_now)
{
    const bench_params *p = b->params;
    b->at.share = fmin((b->work_done + n_done_now) / b->work_total, 1);
    return p->progress == NULL || p->progress(p->ctx, &b->at);
}

static bool on_prefill(void *ctx, const tmx_progress *at)
{
    bench *b = ctx;
    const double share = at->n_total > 0 ? (double)at->n_done / (double)at->n_total : 0;
    return report(b, b->call_begin + b->call_size * share);
}

/* ---------------------------------------------------------------- memory */

/* The kernel keeps the largest resident size; writing 5 to clear_refs sets it back to the present one. */
static void reset_peak(void)
{
    const int fd = open("/proc/self/clear_refs", O_WRONLY);
    if (fd < 0) return;
    if (write(fd, "5", 1) < 0) { /* an old or a locked kernel: the peak is that of the whole run */ }
    close(fd);
}

static uint64_t read_peak(void)
{
    char line[128];
    unsigned long long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "VmHWM: %llu kB", &kib) == 1) break;
    }
    if (file != NULL) fclose(file);
    return (uint64_t)kib * 1024;
}

/* ---------------------------------------------------------------- checks */

/* FNV-1a over the bits of the logits; false when one is not finite. */
static bool hash_logits(const float *logits, int32_t n, uint64_t *hash)
{
    *hash = 0xcbf29ce484222325u;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        if (!isfinite(logits[i])) return false;
        memcpy(&bits, &logits[i], sizeof bits);
        *hash = (*hash ^ bits) * 0x100000001b3u;
    }
    return true;
}

static tmx_status expect_bits(bench *b, const char *what, bool *has_bits, uint64_t *bits, tmx_error *err)
{
    uint64_t hash;
    if (!hash_logits(b->logits, b->n_vocab, &hash)) {
        return fault(err, TMX_E_NUMERIC, "check: plan %d, %s: the logits are not finite", b->at.plan + 1, what);
    }
    if (*has_bits && hash != *bits) {
        return fault(err, TMX_E_NUMERIC, "check: plan %d, %s: the logits are not the same bits", b->at.plan + 1, what);
    }
    *has_bits = true;
    *bits = hash;
    return TMX_OK;
}

static tmx_status check_plans_on(bench *b, int32_t n_tokens, tmx_pool *pool, int32_t n_chunk, bool *has_bits, uint64_t *bits,
                                 tmx_error *err)
{
    const bench_params *p = b->params;
    tmx_session_params params = p->session;
    params.n_ctx = n_tokens + 1;
    params.n_seqs = 0;
    if (n_chunk > 0) params.n_chunk = n_chunk;
    params.progress = on_prefill;
    params.progress_ctx = b;
    tmx_session *session;
    tmx_status status = tmx_session_create(&session, p->model, NULL, pool, &params, err);
    if (status != TMX_OK) return status;
    for (int32_t i = 0; i < p->n_plans && status == TMX_OK; i++) {
        const tmx_prompt prompt = { .tokens = b->tokens, .n_tokens = n_tokens, .logits = b->logits };
        b->at.plan = i;
        b->call_begin = 0;
        b->call_size = n_tokens;
        tmx_session_reset(session);
        status = tmx_session_set_plan(session, p->plans[i], err);
        if (status == TMX_OK) status = tmx_prefill(session, &prompt, 1, err);
        if (status == TMX_OK) status = expect_bits(b, "other chunks and threads", &has_bits[2 * i], &bits[2 * i], err);
        if (status == TMX_OK) status = tmx_decode(session, 0, b->tokens[0], b->logits, err);
        if (status == TMX_OK) {
            status = expect_bits(b, "decoding on other threads", &has_bits[2 * i + 1], &bits[2 * i + 1], err);
        }
        b->work_done += n_tokens;
    }
    tmx_session_free(session);
    return status;
}

static int32_t longest(const bench_params *p)
{
    int32_t n = 0;
    for (int32_t i = 0; i < p->n_tests; i++) {
        const bench_test *t = &p->tests[i];
        const int32_t n_test = t->n_depth + bench_test_tokens(t);
        if (n_test > n) n = n_test;
    }
    return n;
}

static int32_t check_tokens(const bench_params *p)
{
    const int32_t n = longest(p), n_most = tmx_model_info_get(p->model)->n_ctx_max - 1;
    return n < CHECK_TOKENS ? (n < n_most ? n : n_most) : CHECK_TOKENS < n_most ? CHECK_TOKENS : n_most;
}

static tmx_status check_plans(bench *b, tmx_error *err)
{
    const bench_params *p = b->params;
    const int32_t n = check_tokens(p);
    bool has_bits[2 * BENCH_MAX_PLANS] = { false };
    uint64_t bits[2 * BENCH_MAX_PLANS] = { 0 };
    tmx_pool *other;
    if (n < 1) return fault(err, TMX_E_ARG, "the model's context holds no more than one token");
    tmx_status status = tmx_pool_create(&other, tmx_pool_n_threads(p->pool) == 1 ? 2 : 1, err);
    if (status != TMX_OK) return status;
    b->at = (bench_progress){ .test = { .n_prompt = n, .n_gen = 1 }, .is_check = true };
    status = check_plans_on(b, n, p->pool, 0, has_bits, bits, err);
    if (status == TMX_OK) status = check_plans_on(b, n, other, CHECK_CHUNK, has_bits, bits, err);
    tmx_pool_free(other);
    return status;
}

/* ---------------------------------------------------------------- one repetition */

/* A session that holds n_depth tokens under the plan of the result; decoding alone needs one token to go on from. */
static tmx_status prepare(bench *b, const bench_result *r, tmx_error *err)
{
    const bench_test *t = &r->test;
    const int32_t n_before = t->n_depth == 0 && t->n_prompt == 0 ? 1 : t->n_depth;
    if (b->plan == r->plan) return tmx_session_rewind(b->session, 0, n_before, err);
    b->plan = -1;
    b->call_begin = 0;
    b->call_size = t->n_depth;
    tmx_session_reset(b->session);
    tmx_status status = tmx_session_set_plan(b->session, b->params->plans[r->plan], err);
    if (status != TMX_OK) return status;
    if (n_before > 0) status = tmx_prefill(b->session, &(tmx_prompt){ .tokens = b->tokens, .n_tokens = n_before }, 1, err);
    if (status == TMX_OK) b->plan = r->plan;
    return status;
}

static tmx_status decode_all(bench *b, const bench_test *t, tmx_error *err)
{
    const int32_t *ids = b->tokens + t->n_depth + t->n_prompt;
    for (int32_t i = 0; i < t->n_gen; i++) {
        if (!report(b, t->n_depth + t->n_prompt + i)) {
            return fault(err, TMX_E_CANCELLED, "stopped after %d of %d tokens", i, t->n_gen);
        }
        const tmx_status status = tmx_decode(b->session, 0, ids[i], b->logits, err);
        if (status != TMX_OK) return status;
    }
    return TMX_OK;
}

/* Times one repetition into slot r->n_repeats; the warm-up goes where the first repetition will. */
static tmx_status run_once(bench *b, bench_result *r, bool is_kept, tmx_error *err)
{
    const bench_test *t = &r->test;
    const int32_t at = r->n_repeats;
    tmx_timings before, after;
    b->at = (bench_progress){ .test = *t, .plan = r->plan };
    b->work_now = t->n_depth + bench_test_tokens(t);
    tmx_status status = prepare(b, r, err);
    if (status != TMX_OK) return status;

    tmx_session_timings(b->session, &before);
    for (int32_t l = 0; l < b->n_layers; l++) b->layer_ms[l] = tmx_session_layer_attention_ms(b->session, l);
    reset_peak();
    const double begin_ms = timing_now_ms();
    double prefilled_ms = begin_ms;
    b->call_begin = t->n_depth;
    b->call_size = t->n_prompt;
    if (t->n_prompt > 0) {
        const tmx_prompt prompt = { .tokens = b->tokens + t->n_depth, .n_tokens = t->n_prompt, .logits = b->logits };
        status = tmx_prefill(b->session, &prompt, 1, err);
        prefilled_ms = timing_now_ms();
    }
    if (status == TMX_OK) status = decode_all(b, t, err);
    const double end_ms = timing_now_ms();
    const uint64_t peak = read_peak();
    if (status == TMX_OK) status = expect_bits(b, "repeated", &b->has_bits[r->plan], &b->bits[r->plan], err);
    if (status != TMX_OK) return status;
    b->work_done += b->work_now;
    if (peak > r->peak_bytes) r->peak_bytes = peak;
    if (!is_kept) return TMX_OK;

    tmx_session_timings(b->session, &after);
    r->time_ms[at] = end_ms - begin_ms;
    r->ttft_ms[at] = t->n_prompt > 0 ? prefilled_ms - begin_ms : 0;
    r->attention_ms[at] = after.attention_ms - before.attention_ms;
    for (int32_t l = 0; l < b->n_layers; l++) {
        const double ms = tmx_session_layer_attention_ms(b->session, l) - b->layer_ms[l];
        r->layer_attention_ms[l] += (ms - r->layer_attention_ms[l]) / (at + 1);
    }
    r->n_repeats++;
    return TMX_OK;
}

/* ---------------------------------------------------------------- tests */

static int32_t n_plans_of(const bench_params *p, const bench_test *t) { return t->n_prompt > 0 ? p->n_plans : 1; }

static tmx_status run_test(bench *b, const bench_test *t, bench_result *results, tmx_error *err)
{
    const bench_params *p = b->params;
    const int32_t n_plans = n_plans_of(p, t);
    tmx_session_params params = p->session;
    params.n_ctx = t->n_depth + bench_test_tokens(t) + (t->n_depth == 0 && t->n_prompt == 0);
    params.n_seqs = 0;
    params.progress = on_prefill;
    params.progress_ctx = b;
    b->plan = -1;
    memset(b->has_bits, 0, sizeof b->has_bits);
    tmx_status status = tmx_session_create(&b->session, p->model, NULL, p->pool, &params, err);
    if (status != TMX_OK) return status;
    for (int32_t i = p->is_cold ? 0 : -1; i < p->n_repeats && status == TMX_OK; i++) {
        for (int32_t k = 0; k < n_plans && status == TMX_OK; k++) {
            if (results[k].unix_time_s == 0) results[k].unix_time_s = (int64_t)time(NULL);
            status = run_once(b, &results[k], i >= 0, err);
        }
    }
    tmx_session_free(b->session);
    b->session = NULL;
    return status;
}

static void free_result(bench_result *r)
{
    free(r->time_ms);
    free(r->ttft_ms);
    free(r->attention_ms);
    free(r->layer_attention_ms);
}

static bool alloc_result(bench_result *r, const bench_test *t, int32_t plan, int32_t n_repeats, int32_t n_layers)
{
    const size_t n = (size_t)n_repeats;
    *r = (bench_result){
        .test = *t, .plan = plan, .time_ms = calloc(n, sizeof *r->time_ms), .ttft_ms = calloc(n, sizeof *r->ttft_ms),
        .attention_ms = calloc(n, sizeof *r->attention_ms),
        .layer_attention_ms = calloc((size_t)n_layers, sizeof *r->layer_attention_ms),
    };
    return r->time_ms != NULL && r->ttft_ms != NULL && r->attention_ms != NULL && r->layer_attention_ms != NULL;
}

static tmx_status run_tests(bench *b, tmx_error *err)
{
    const bench_params *p = b->params;
    tmx_status status = TMX_OK;
    for (int32_t i = 0; i < p->n_tests && status == TMX_OK; i++) {
        const bench_test *t = &p->tests[i];
        const int32_t n_plans = n_plans_of(p, t);
        bench_result *results = b->run->results + b->run->n_results;
        for (int32_t k = 0; k < n_plans; k++) {
            b->run->n_results++;
            if (!alloc_result(&results[k], t, k, p->n_repeats, b->n_layers)) {
                return fault(err, TMX_E_MEMORY, "out of memory for %d repetitions", p->n_repeats);
            }
        }
        status = run_test(b, t, results, err);
        const bool is_shown = status == TMX_OK || status == TMX_E_CANCELLED;
        for (int32_t k = 0; k < n_plans && is_shown && p->finished != NULL; k++) {
            if (results[k].n_repeats > 0) p->finished(p->ctx, &results[k]);
        }
    }
    return status;
}

/* ---------------------------------------------------------------- the door */

static tmx_status check_params(const bench_params *p, tmx_error *err)
{
    const int32_t n_most = tmx_model_info_get(p->model)->n_ctx_max;
    if (p->n_plans < 1 || p->n_plans > BENCH_MAX_PLANS) {
        return fault(err, TMX_E_ARG, "%d plans, expected 1..%d", p->n_plans, BENCH_MAX_PLANS);
    }
    if (p->n_repeats < 1 || p->n_repeats > BENCH_MAX_REPEATS) {
        return fault(err, TMX_E_ARG, "%d repetitions, expected 1..%d", p->n_repeats, BENCH_MAX_REPEATS);
    }
    if (p->n_tests < 1) return fault(err, TMX_E_ARG, "no test");
    for (int32_t i = 0; i < p->n_tests; i++) {
        const bench_test *t = &p->tests[i];
        if (t->n_prompt < 0 || t->n_gen < 0 || t->n_depth < 0 || (t->n_prompt == 0 && t->n_gen == 0)) {
            return fault(err, TMX_E_ARG, "test %d: %d prompt tokens, %d to generate, at depth %d", i + 1, t->n_prompt, t->n_gen,
                        t->n_depth);
        }
        const int64_t n = (int64_t)t->n_depth + t->n_prompt + t->n_gen + (t->n_depth == 0 && t->n_prompt == 0);
        if (n > n_most) {
            return fault(err, TMX_E_ARG, "test %d takes %lld tokens (prompt %d, generation %d, depth %d), the model has %d", i + 1,
                        (long long)n, t->n_prompt, t->n_gen, t->n_depth, n_most);
        }
    }
    return TMX_OK;
}

static double work_of(const bench_params *p)
{
    double work = 2.0 * p->n_plans * check_tokens(p);
    for (int32_t i = 0; i < p->n_tests; i++) {
        const bench_test *t = &p->tests[i];
        work += (double)(t->n_depth + bench_test_tokens(t)) * n_plans_of(p, t) * (p->n_repeats + !p->is_cold);
    }
    return work;
}

tmx_status bench_model(bench_run *run, const bench_params *params, tmx_error *err)
{
    *run = (bench_run){ 0 };
    tmx_status status = check_params(params, err);
    if (status != TMX_OK) return status;
    const tmx_model_info *info = tmx_model_info_get(params->model);
    const int32_t n_tokens = longest(params);
    bench *b = calloc(1, sizeof *b);
    run->results = calloc((size_t)params->n_tests * (size_t)params->n_plans, sizeof *run->results);
    if (b != NULL) {
        *b = (bench){
            .params = params, .run = run, .n_vocab = info->n_vocab, .n_layers = info->n_layers, .work_total = work_of(params),
            .tokens = calloc((size_t)n_tokens + 1, sizeof *b->tokens), .logits = calloc((size_t)info->n_vocab, sizeof *b->logits),
            .layer_ms = calloc((size_t)info->n_layers, sizeof *b->layer_ms),
        };
    }
    if (b == NULL || run->results == NULL || b->tokens == NULL || b->logits == NULL || b->layer_ms == NULL) {
        status = fault(err, TMX_E_MEMORY, "out of memory for %d tokens", n_tokens);
    } else {
        dice d = { .state = params->seed };
        for (int32_t i = 0; i <= n_tokens; i++) b->tokens[i] = dice_below(&d, info->n_vocab);
        status = check_plans(b, err);
        if (status == TMX_OK) status = run_tests(b, err);
    }
    if (b != NULL) {
        free(b->tokens);
        free(b->logits);
        free(b->layer_ms);
    }
    free(b);
    run->is_stopped = status == TMX_E_CANCELLED;
    return run->is_stopped ? TMX_OK : status;
}

void bench_run_free(bench_run *run)
{
    for (int32_t i = 0; i < run->n_results; i++) free_result(&run->results[i]);
    free(run->results);
    *run = (bench_run){ 0 };
}
