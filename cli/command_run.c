#include "command_run.h"

#include "model_choice.h"
#include "plan_choice.h"
#include "report.h"
#include "signals.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    N_WARM_UP = 512,               /* tokens: enough to touch every weight, the workspace and every thread */
    N_PREDICT = 128,
    N_CONVERSATION = 8192,         /* tokens a conversation may hold, unless -c says otherwise */
};

static int open_model(runner *r)
{
    const run_options *o = r->options;
    tmx_error err;
    const model_opening opening = { .path = o->model, .changes = &o->changes, .compute = o->compute, .isa = o->isa,
                                    .device = device_choose(o->device), .is_quiet = o->is_quiet };
    const double start_ms = clock_ms();
    if (tmx_pool_create(&r->pool, o->n_threads, &err) != TMX_OK) return complain_error(&err);
    const int code = open_chosen_model(&r->model, &opening, r->pool);
    if (code != 0) return code;
    r->load_ms = clock_ms() - start_ms;
    return 0;
}

static int tokenize(runner *r)
{
    const double start_ms = clock_ms();
    const int code = prompts_tokenize(r->options, r->model, &r->prompts);
    r->tokenize_ms = clock_ms() - start_ms;
    return code;
}

static void print_ids(const prompt_list *prompts)
{
    for (int32_t i = 0; i < prompts->n; i++) {
        const prompt *p = &prompts->items[i];
        for (size_t k = 0; k < p->n_ids; k++) printf("%s%d", k == 0 ? "" : " ", p->ids[k]);
        putchar('\n');
    }
}

/* ---------------------------------------------------------------- the session */

/* Tokens per sequence: what was asked for, or what the longest prompt and its answer need. */
static int choose_context(const runner *r, int32_t *n_ctx)
{
    const run_options *o = r->options;
    const tmx_model_info *info = tmx_model_info_get(r->model);
    if (o->is_conversation) {
        *n_ctx = o->n_ctx > 0 ? o->n_ctx : info->n_ctx_train;
        if (o->n_ctx < 0 && *n_ctx > N_CONVERSATION) *n_ctx = N_CONVERSATION;
        return 0;
    }
    const prompt *longest = &r->prompts.items[0];
    for (int32_t i = 1; i < r->prompts.n; i++) {
        if (r->prompts.items[i].n_ids > longest->n_ids) longest = &r->prompts.items[i];
    }
    const size_t limit = (size_t)info->n_ctx_max;
    size_t n = (size_t)info->n_ctx_train;
    if (o->n_ctx > 0) n = (size_t)o->n_ctx;
    else if (o->n_ctx < 0 && o->n_predict >= 0) n = longest->n_ids + (size_t)o->n_predict;
    else if (o->n_ctx < 0 && n < longest->n_ids) n = longest->n_ids;
    if (o->n_ctx < 0 && n > limit) n = limit;
    if (longest->n_ids > n) {
        return complain(EXIT_INPUT, "%s: the prompt has %zu tokens, the context holds %zu", longest->source,
                        longest->n_ids, n);
    }
    *n_ctx = (int32_t)n;
    return 0;
}

static int open_session(runner *r)
{
    const run_options *o = r->options;
    tmx_error err;
    tmx_session_params params = {
        .n_chunk = o->n_chunk, .n_seqs = o->is_conversation ? 1 : r->prompts.n, .kv_type = (tmx_type)o->cache_type,
        .progress = progress_update, .progress_ctx = &r->progress,
    };
    int code = plan_choose(&o->plan, tmx_model_info_get(r->model), &r->plan);
    if (code == 0 && o->compare) {
        code = plan_choose(&(plan_choice){ .n_sink = -1, .n_window = -1, .n_last = -1 }, tmx_model_info_get(r->model),
                           &r->dense);
    }
    if (code == 0) code = choose_context(r, &params.n_ctx);
    if (code != 0) return code;
    const tmx_status status = tmx_session_create(&r->session, r->model, r->plan, r->pool, &params, &err);
    return status == TMX_OK ? 0 : complain_error(&err);
}

static int list_end_ids(runner *r)
{
    const int32_t n_vocab = tmx_model_info_get(r->model)->n_vocab;
    for (int pass = 0; pass < 2; pass++) {
        int32_t n = 0;
        for (int32_t id = 0; id < n_vocab; id++) {
            if (!tmx_token_is_end(r->model, id)) continue;
            if (pass == 1) r->end_ids[n] = id;
            n++;
        }
        if (pass == 1) break;
        r->end_ids = malloc(((size_t)n + 1) * sizeof *r->end_ids);
        if (r->end_ids == NULL) return complain(EXIT_RESOURCES, "out of memory for %d end tokens", n);
        r->n_end_ids = n;
    }
    return 0;
}

static uint64_t choose_seed(int64_t asked)
{
    if (asked >= 0) return (uint64_t)asked;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return ((uint64_t)now.tv_nsec * 2654435761u ^ (uint64_t)now.tv_sec ^ (uint64_t)getpid() << 16) & 0xffffffffu;
}

/* ---------------------------------------------------------------- one timed run */

static void free_run(timed_run *run, int32_t n_prompts)
{
    free(run->logits);
    free(run->layer_attention_ms);
    free(run->layer_density);
    for (int32_t i = 0; i < n_prompts; i++) answer_free(&run->answers[i]);
}

static int allocate_run(const runner *r, timed_run *run)
{
    const tmx_model_info *info = tmx_model_info_get(r->model);
    run->logits = malloc((size_t)r->prompts.n * (size_t)info->n_vocab * sizeof *run->logits);
    run->layer_attention_ms = calloc((size_t)info->n_layers, sizeof *run->layer_attention_ms);
    run->layer_density = calloc((size_t)info->n_layers, sizeof *run->layer_density);
    if (run->logits != NULL && run->layer_attention_ms != NULL && run->layer_density != NULL) return 0;
    free_run(run, 0);
    *run = (timed_run){ 0 };
    return complain(EXIT_RESOURCES, "out of memory for the logits of %d prompts", r->prompts.n);
}

static tmx_status prefill(runner *r, const char *label, float *logits, size_t n_most, tmx_error *err)
{
    tmx_prompt prompts[MAX_TEXTS];
    for (int32_t i = 0; i < r->prompts.n; i++) {
        const prompt *p = &r->prompts.items[i];
        prompts[i] = (tmx_prompt){
            .tokens = p->ids, .n_tokens = (int32_t)(p->n_ids < n_most ? p->n_ids : n_most), .seq = i,
            .logits = logits != NULL ? logits + (size_t)i * (size_t)tmx_model_info_get(r->model)->n_vocab : NULL,
        };
    }
    progress_begin(&r->progress, label);
    const tmx_status status = tmx_prefill(r->session, prompts, r->prompts.n, err);
    progress_end(&r->progress);
    return status;
}

static void print_header(const runner *r, int32_t i)
{
    if (r->prompts.n == 1 || r->options->is_quiet) return;
    fprintf(stderr, "%s--- answer %d of %d: ", i == 0 ? "" : "\n", i + 1, r->prompts.n);
    print_safe(stderr, r->prompts.items[i].source);
    fputc('\n', stderr);
}

static tmx_status answer_all(runner *r, timed_run *run, bool is_shown, tmx_error *err)
{
    const size_t n_vocab = (size_t)tmx_model_info_get(r->model)->n_vocab;
    const answer_params params = {
        .options = r->options, .model = r->model, .session = r->session, .seed = r->seed,
        .end_ids = r->end_ids, .n_end_ids = r->n_end_ids, .is_shown = is_shown,
    };
    float *logits = malloc(n_vocab * sizeof *logits);
    if (logits == NULL) {
        *err = (tmx_error){ .code = TMX_E_MEMORY, .text = "out of memory for the logits" };
        return TMX_E_MEMORY;
    }
    tmx_status status = TMX_OK;
    for (int32_t i = 0; i < r->prompts.n && status == TMX_OK; i++) {
        answer *a = &run->answers[i];
        if (is_shown) print_header(r, i);
        memcpy(logits, run->logits + (size_t)i * n_vocab, n_vocab * sizeof *logits);
        status = answer_generate(&params, i, r->prompts.items[i].ids, r->prompts.items[i].n_ids, logits, a, err);
        if (is_shown && a->n_shown > 0 && a->text[a->n_shown - 1] != '\n') putchar('\n');
        if (signals_interrupted() || (is_shown && !flush_output())) break;
    }
    free(logits);
    return status;
}

/* Prefill and answers with one plan.  An answer that Ctrl-C ended is kept; a prefill that it ended is not. */
static int run_once(runner *r, const tmx_plan *plan, bool is_shown)
{
    timed_run *run = &r->runs[r->n_runs];
    char title[32];
    tmx_error err;
    int code = allocate_run(r, run);
    if (code != 0) return code;
    run->plan = plan;
    tmx_session_reset(r->session);
    tmx_status status = tmx_session_set_plan(r->session, plan, &err);
    const double start_ms = clock_ms();
    if (status == TMX_OK) status = prefill(r, plan_title(plan, title), run->logits, SIZE_MAX, &err);
    run->ttft_ms = r->tokenize_ms + clock_ms() - start_ms;
    if (status == TMX_OK) status = answer_all(r, run, is_shown, &err);
    if (status != TMX_OK) return complain_error(&err);
    run->ttft_ms += run->answers[0].first_sample_ms;
    tmx_session_timings(r->session, &run->timings);
    for (int32_t i = 0; i < tmx_model_info_get(r->model)->n_layers; i++) {
        run->layer_attention_ms[i] = tmx_session_layer_attention_ms(r->session, i);
        run->layer_density[i] = tmx_session_layer_density(r->session, i);
    }
    r->n_runs++;
    return signals_interrupted() ? signals_say_interrupted() : 0;
}

static int compare(runner *r)
{
    tmx_error err;
    if (prefill(r, "warm-up", NULL, N_WARM_UP, &err) != TMX_OK) return complain_error(&err);
    const int code = run_once(r, r->dense, false);
    return code != 0 ? code : run_once(r, r->plan, false);
}

/* ---------------------------------------------------------------- the command */

static int print_results(const runner *r)
{
    const run_options *o = r->options;
    if (o->json) print_run_json(r);
    else if (o->compare) print_comparison(r);
    if (!o->is_quiet && (!o->compare || o->is_verbose) && flush_output()) print_summary(r);
    if (o->logits_file == NULL) return 0;
    return write_npy(o->logits_file, last_run(r)->logits, r->prompts.n > 1 ? (size_t)r->prompts.n : 0,
                     (size_t)tmx_model_info_get(r->model)->n_vocab);
}

static int run_prompts(runner *r)
{
    const run_options *o = r->options;
    int code = prompts_read(o, &r->prompts);
    if (code == 0) code = open_model(r);
    if (code == 0) code = tokenize(r);
    if (code == 0 && o->show_tokens) {
        print_ids(&r->prompts);
        return 0;
    }
    if (code == 0) code = open_session(r);
    if (code == 0 && o->ignore_end) code = list_end_ids(r);
    if (code != 0) return code;
    if (o->is_verbose) print_model(r);

    r->seed = choose_seed(o->seed);
    progress_init(&r->progress, o->is_quiet);
    signals_begin_polite();
    code = o->compare ? compare(r) : run_once(r, r->plan, !o->json);
    signals_end_polite();

    /* A comparison is whole or it is nothing; a single answer that was interrupted says so. */
    if (r->n_runs != (o->compare ? 2 : 1)) return code;
    const int print_code = print_results(r);
    return code != 0 ? code : print_code;
}

static int run_conversation(runner *r)
{
    const run_options *o = r->options;
    int code = o->prompt != NULL || o->files.n > 0 ? prompts_read(o, &r->prompts) : 0;
    if (code == 0) code = open_model(r);
    if (code != 0) return code;
    tmx_error err;
    size_t n_ids;
    if (tmx_chat_tokenize(r->model, &(tmx_chat){ .user = "" }, NULL, 0, &n_ids, &err) != TMX_OK) return complain_error(&err);
    code = open_session(r);
    if (code == 0 && o->ignore_end) code = list_end_ids(r);
    if (code != 0) return code;
    if (o->is_verbose) print_model(r);
    r->seed = choose_seed(o->seed);
    progress_init(&r->progress, o->is_quiet);
    return conversation_hold(r);
}

int run_main(const run_options *given)
{
    run_options o = *given;
    if (o.n_predict == RUN_PREDICT_DEFAULT) o.n_predict = o.is_conversation ? -1 : N_PREDICT;
    runner r = { .options = &o };
    const int code = o.is_conversation ? run_conversation(&r) : run_prompts(&r);
    free_run(&r.runs[0], r.prompts.n);
    free_run(&r.runs[1], r.prompts.n);
    free(r.end_ids);
    tmx_session_free(r.session);
    tmx_plan_free(r.plan);
    tmx_plan_free(r.dense);
    tmx_model_close(r.model);
    tmx_pool_free(r.pool);
    prompts_free(&r.prompts);
    return code;
}
