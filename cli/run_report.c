#include "command_run.h"

#include "model_choice.h"
#include "plan_choice.h"
#include "report.h"

#include <string.h>

static double rate(int64_t n, double ms) { return ms > 0 ? (double)n / ms * 1e3 : 0; }

static size_t count_prompt_tokens(const runner *r)
{
    size_t n = 0;
    for (int32_t i = 0; i < r->prompts.n; i++) n += r->prompts.items[i].n_ids;
    return n;
}

static const char *compute_name(const runner *r)
{
    return tmx_model_compute(r->model) == TMX_COMPUTE_BF16 ? "bf16" : "f32";
}

static const char *cache_name(const runner *r)
{
    static const char *const names[] = { "auto", "f32", "bf16" };
    return r->options->cache_type == TMX_TYPE_DEFAULT ? compute_name(r) : names[r->options->cache_type];
}

static bool is_on_cpu(const tmx_model_info *m) { return strcmp(m->device, "cpu") == 0; }

/* ---------------------------------------------------------------- standard error */

/* "name          text", text printable */
static void print_fact(const char *name, const char *text)
{
    fprintf(stderr, "%-14s", name);
    print_safe(stderr, text);
    fputc('\n', stderr);
}

void print_model(const runner *r)
{
    const tmx_model_info *m = tmx_model_info_get(r->model);
    tmx_memory memory;
    const tmx_session_params params = {
        .n_ctx = tmx_session_n_ctx(r->session), .n_chunk = r->options->n_chunk, .n_seqs = r->options->is_conversation ? 1 : r->prompts.n,
        .kv_type = (tmx_type)r->options->cache_type, .plan = r->plan,
    };
    char line[256], machine[128], weights[32], merged[32], adapters[64] = "", kv[32], workspace[32], load[32];
    snprintf(line, sizeof line, "%s %s, %d layers, context %d, loaded in %s", m->architecture, m->name, m->n_layers,
             m->n_ctx_train, text_of_ms(r->load_ms, load));
    print_fact("model", line);
    if (is_on_cpu(m)) {
        snprintf(machine, sizeof machine, "%d threads, %s", tmx_pool_n_threads(r->pool), tmx_isa_name(tmx_model_isa(r->model)));
    } else {
        snprintf(machine, sizeof machine, "%s, %.80s", m->device, tmx_model_device_name(r->model));
    }
    snprintf(line, sizeof line, "%s, compute %s, cache %s, products by %s", machine, compute_name(r), cache_name(r),
             tmx_model_provider(r->model));
    print_fact("machine", line);
    if (tmx_memory_plan(m, tmx_model_compute(r->model), tmx_model_isa(r->model), &params, tmx_pool_n_threads(r->pool),
                        &memory, NULL) != TMX_OK) return;
    if (memory.merged_bytes > 0) {
        snprintf(adapters, sizeof adapters, "adapted tensors %s, ", text_of_bytes(memory.merged_bytes, merged));
    }
    snprintf(line, sizeof line, "weights %s, %sKV cache %s for %d x %d tokens, workspace %s",
             text_of_bytes(memory.weight_bytes, weights), adapters, text_of_bytes(memory.kv_bytes, kv), params.n_seqs,
             params.n_ctx, text_of_bytes(memory.workspace_bytes, workspace));
    print_fact("memory", line);
}

static const char *stop_text(const answer *a)
{
    static const struct { const char *stop, *text; } texts[] = {
        { "end", "ended by the model" }, { "limit", "cut at the limit (-n)" },
        { "context", "cut: the context is full" }, { "stop text", "ended at a stop text" },
        { "interrupted", "interrupted" }, { "output", "output closed" },
    };
    for (size_t i = 0; a->stop != NULL && i < sizeof texts / sizeof texts[0]; i++) {
        if (strcmp(a->stop, texts[i].stop) == 0) return texts[i].text;
    }
    return "not begun";
}

static void print_answer_facts(const runner *r, const timed_run *run)
{
    char line[256];
    int32_t n_ids = 0;
    for (int32_t i = 0; i < r->prompts.n; i++) n_ids += run->answers[i].n_ids;
    int n = snprintf(line, sizeof line, "%d token%s", n_ids, n_ids == 1 ? "" : "s");
    if (run->timings.n_decode_tokens > 0) {
        n += snprintf(line + n, sizeof line - (size_t)n, ", %.1f tok/s",
                      rate(run->timings.n_decode_tokens, run->timings.decode_ms));
    }
    if (r->prompts.n == 1) {
        n += snprintf(line + n, sizeof line - (size_t)n, ", %s", stop_text(&run->answers[0]));
    }
    if (r->options->temperature > 0) {
        snprintf(line + n, sizeof line - (size_t)n, ", seed %llu", (unsigned long long)r->seed);
    }
    print_fact("answer", line);
}

static void print_run_facts(const runner *r, const timed_run *run)
{
    char line[PLAN_TEXT_BYTES], ttft[32];
    const tmx_timings *t = &run->timings;
    const double whole = t->prefill_ms > 0 ? t->prefill_ms / 100 : 1;
    const size_t n_tokens = count_prompt_tokens(r);
    snprintf(line, sizeof line, "%zu token%s, TTFT %s, prefill %.1f tok/s", n_tokens, n_tokens == 1 ? "" : "s",
             text_of_ms(run->ttft_ms, ttft), rate(t->n_prefill_tokens, t->prefill_ms));
    print_fact("prompt", line);
    const tmx_model_info *m = tmx_model_info_get(r->model);
    if (!is_on_cpu(m)) {
        snprintf(line, sizeof line, "%s, %.80s", m->device, tmx_model_device_name(r->model));
        print_fact("device", line);
    }
    if (r->options->n_predict != 0) print_answer_facts(r, run);
    print_fact("plan", tmx_plan_text(run->plan, line, sizeof line));
    int n = snprintf(line, sizeof line, "matmul %.0f %%, attention %.0f %%", t->matmul_ms / whole, t->attention_ms / whole);
    if (t->estimate_ms > 0) n += snprintf(line + n, sizeof line - (size_t)n, " (estimating %.1f %%)", t->estimate_ms / whole);
    snprintf(line + n, sizeof line - (size_t)n, ", rest %.0f %%", t->rest_ms / whole);
    print_fact("prefill", line);
    if (!r->options->is_verbose) return;
    for (int32_t i = 0; i < tmx_plan_n_layers(run->plan); i++) {
        const bool is_own = tmx_plan_own_window(run->plan, i) > 0;
        snprintf(line, sizeof line, "%3d  %-10s %8.1f ms, %5.1f %% of the pairs", i,
                 is_own ? "own window" : tmx_pattern_name(tmx_plan_layer(run->plan, i)->kind),
                 run->layer_attention_ms[i], 100 * run->layer_density[i]);
        print_fact(i == 0 ? "attention" : "", line);
    }
}

void print_summary(const runner *r)
{
    for (int32_t i = 0; i < r->n_runs; i++) print_run_facts(r, &r->runs[i]);
}

/* ---------------------------------------------------------------- comparison */

typedef struct comparison {
    tmx_agreement logits;
    int32_t n_equal, n_most;       /* leading tokens that are equal, of the longer answer */
} comparison;

static comparison compare_runs(const runner *r)
{
    comparison c = { 0 };
    const answer *a = &r->runs[0].answers[0], *b = &r->runs[1].answers[0];
    tmx_logits_compare(r->runs[0].logits, r->runs[1].logits, tmx_model_info_get(r->model)->n_vocab, &c.logits);
    c.n_most = a->n_ids > b->n_ids ? a->n_ids : b->n_ids;
    while (c.n_equal < a->n_ids && c.n_equal < b->n_ids && a->ids[c.n_equal] == b->ids[c.n_equal]) c.n_equal++;
    return c;
}

enum { LABEL_COLUMNS = 16, VALUE_COLUMNS = 16 };

static void print_columns(const char *label, const char *a, const char *b, const char *c)
{
    printf("%-*s%-*s", LABEL_COLUMNS, label, VALUE_COLUMNS, a);
    if (c[0] != '\0') printf("%-*s%s\n", VALUE_COLUMNS, b, c);
    else printf("%s\n", b);
}

static void print_ms(const char *label, double dense_ms, double plan_ms)
{
    char a[32], b[32], c[32];
    snprintf(c, sizeof c, "%.2fx", plan_ms > 0 ? dense_ms / plan_ms : 0);
    print_columns(label, text_of_ms(dense_ms, a), text_of_ms(plan_ms, b), c);
}

/* Short enough for a column, and printable there. */
static bool fits_column(const answer *a)
{
    if (a->n_bytes + 2 > VALUE_COLUMNS) return false;
    for (size_t i = 0; i < a->n_bytes; i++) {
        const unsigned char c = (unsigned char)a->text[i];
        if (c < 0x20 || c >= 0x7f) return false;
    }
    return true;
}

static void print_block(const char *title, const answer *a)
{
    printf("\nanswer, %s:\n", title);
    fwrite(a->text, 1, a->n_bytes, stdout);
    if (a->n_bytes == 0 || a->text[a->n_bytes - 1] != '\n') putchar('\n');
}

static void print_agreement(const runner *r, const comparison *c)
{
    printf("%-*sKL %.4g, top-1 ", LABEL_COLUMNS, "agreement", c->logits.kl);
    if (c->logits.top_a == c->logits.top_b) {
        printf("equal");
    } else {
        printf("differs ('");
        print_safe(stdout, tmx_token_name(r->model, c->logits.top_a));
        printf("' against '");
        print_safe(stdout, tmx_token_name(r->model, c->logits.top_b));
        printf("')");
    }
    const char *how = r->options->temperature > 0 ? "sampled" : "greedy";
    if (c->n_most > 0) printf(", %d of %d %s tokens equal", c->n_equal, c->n_most, how);
    putchar('\n');
}

void print_comparison(const runner *r)
{
    const timed_run *dense = &r->runs[0], *plan = &r->runs[1];
    const answer *a = &dense->answers[0], *b = &plan->answers[0];
    const comparison c = compare_runs(r);
    const bool is_short = fits_column(a) && fits_column(b), has_answer = r->options->n_predict != 0;
    char title[32], text[PLAN_TEXT_BYTES];
    plan_title(r->plan, title);
    printf("%-*s%zu tokens, %d layers\n", LABEL_COLUMNS, "prompt", count_prompt_tokens(r), tmx_plan_n_layers(r->plan));
    printf("%-*s%s\n", LABEL_COLUMNS, "plan", tmx_plan_text(r->plan, text, sizeof text));
    print_columns("", "dense", title, "");
    if (has_answer && is_short) print_columns("answer", a->text, b->text, "");
    print_ms("TTFT", dense->ttft_ms, plan->ttft_ms);
    print_ms("attention", dense->timings.attention_ms, plan->timings.attention_ms);
    if (plan->timings.estimate_ms > 0) {
        char estimate[32];
        print_columns("  estimating", "", text_of_ms(plan->timings.estimate_ms, estimate), "");
    }
    print_agreement(r, &c);
    if (has_answer && !is_short) {
        print_block("dense", a);
        print_block(title, b);
    }
}

/* ---------------------------------------------------------------- JSON */

static void json_settings(json_writer *j, const runner *r)
{
    const run_options *o = r->options;
    const tmx_model_info *m = tmx_model_info_get(r->model);
    json_begin_object(j, "model");
    json_text(j, "path", o->model);
    json_text(j, "name", m->name);
    json_text(j, "architecture", m->architecture);
    json_text(j, "fingerprint", m->fingerprint);
    json_adapters(j, &o->changes);
    json_count(j, "n_layers", m->n_layers);
    json_count(j, "n_vocab", m->n_vocab);
    json_count(j, "n_ctx_train", m->n_ctx_train);
    json_size(j, "n_params", m->n_params);
    json_end(j);
    json_begin_object(j, "machine");
    json_count(j, "n_threads", tmx_pool_n_threads(r->pool));
    json_text(j, "device", m->device);
    json_text(j, "device_name", is_on_cpu(m) ? NULL : tmx_model_device_name(r->model));
    json_text(j, "isa", tmx_isa_name(tmx_model_isa(r->model)));
    json_text(j, "compute", compute_name(r));
    json_text(j, "cache_type", cache_name(r));
    json_text(j, "provider", tmx_model_provider(r->model));
    json_end(j);
    json_begin_object(j, "context");
    json_count(j, "n_ctx", tmx_session_n_ctx(r->session));
    json_number(j, "rope_freq_base", (double)m->rope_freq_base);
    json_end(j);
    json_begin_object(j, "sampling");
    json_count(j, "n_predict", o->n_predict);
    json_size(j, "seed", r->seed);
    json_number(j, "temperature", o->temperature);
    json_count(j, "top_k", o->top_k);
    json_number(j, "top_p", o->top_p);
    json_number(j, "min_p", o->min_p);
    json_number(j, "repeat_penalty", o->repeat_penalty);
    json_count(j, "repeat_last_n", o->repeat_last_n);
    json_bool(j, "ignore_eos", o->ignore_end);
    json_end(j);
}

static void json_timings(json_writer *j, const runner *r, const timed_run *run)
{
    const tmx_timings *t = &run->timings;
    json_begin_object(j, "timings");
    json_number(j, "load_ms", r->load_ms);
    json_number(j, "tokenize_ms", r->tokenize_ms);
    json_number(j, "prefill_ms", t->prefill_ms);
    json_number(j, "first_sample_ms", run->answers[0].first_sample_ms);
    json_number(j, "ttft_ms", run->ttft_ms);
    json_number(j, "matmul_ms", t->matmul_ms);
    json_number(j, "attention_ms", t->attention_ms);
    json_number(j, "estimate_ms", t->estimate_ms);
    json_number(j, "rest_ms", t->rest_ms);
    json_number(j, "decode_ms", t->decode_ms);
    json_count(j, "n_prefill_tokens", t->n_prefill_tokens);
    json_count(j, "n_decode_tokens", t->n_decode_tokens);
    json_number(j, "prefill_tok_per_s", rate(t->n_prefill_tokens, t->prefill_ms));
    json_number(j, "decode_tok_per_s", rate(t->n_decode_tokens, t->decode_ms));
    json_begin_array(j, "layer_attention_ms");
    for (int32_t i = 0; i < tmx_plan_n_layers(run->plan); i++) json_number(j, NULL, run->layer_attention_ms[i]);
    json_end(j);
    json_end(j);
}

static void json_run(json_writer *j, const runner *r, const timed_run *run)
{
    json_begin_object(j, NULL);
    json_plan(j, "plan", run->plan);
    json_timings(j, r, run);
    json_begin_array(j, "layer_density");
    for (int32_t i = 0; i < tmx_plan_n_layers(run->plan); i++) json_number(j, NULL, run->layer_density[i]);
    json_end(j);
    json_begin_array(j, "answers");
    for (int32_t i = 0; i < r->prompts.n; i++) {
        const answer *a = &run->answers[i];
        json_begin_object(j, NULL);
        json_text(j, "stop", a->stop);
        json_ids(j, "ids", a->ids, (size_t)a->n_ids);
        json_bytes(j, "text", a->text, a->n_bytes);
        json_end(j);
    }
    json_end(j);
    json_end(j);
}

static void json_comparison(json_writer *j, const runner *r)
{
    const comparison c = compare_runs(r);
    const timed_run *dense = &r->runs[0], *plan = &r->runs[1];
    json_begin_object(j, "agreement");
    json_number(j, "kl", c.logits.kl);
    json_number(j, "max_abs_diff", c.logits.max_abs_diff);
    json_count(j, "top_dense", c.logits.top_a);
    json_count(j, "top_plan", c.logits.top_b);
    json_number(j, "margin_dense", c.logits.margin_a);
    json_count(j, "n_equal_tokens", c.n_equal);
    json_count(j, "n_tokens", c.n_most);
    json_number(j, "ttft_speedup", plan->ttft_ms > 0 ? dense->ttft_ms / plan->ttft_ms : 0);
    json_end(j);
}

void print_run_json(const runner *r)
{
    json_writer j = { .out = stdout };
    json_begin_object(&j, NULL);
    json_text(&j, "version", tmx_version());
    json_settings(&j, r);
    json_begin_array(&j, "prompts");
    for (int32_t i = 0; i < r->prompts.n; i++) {
        const prompt *p = &r->prompts.items[i];
        json_begin_object(&j, NULL);
        json_text(&j, "source", p->source);
        json_size(&j, "n_tokens", p->n_ids);
        json_ids(&j, "ids", p->ids, p->n_ids);
        json_end(&j);
    }
    json_end(&j);
    json_begin_array(&j, "runs");
    for (int32_t i = 0; i < r->n_runs; i++) json_run(&j, r, &r->runs[i]);
    json_end(&j);
    if (r->options->compare) json_comparison(&j, r);
    json_end(&j);
}
