#include "bench_report.h"

#include "commit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---------------------------------------------------------------- Markdown tables */

/* Text cells lie left, numbers right; widths are llama-bench's, so that both programs' rows stand under each other. */
typedef struct column { const char *title; int width; bool is_left; } column;

/* Characters, not bytes: of UTF-8 everything but continuation bytes. */
static int n_characters(const char *text)
{
    int n = 0;
    for (; *text != '\0'; text++) n += (*text & 0xc0) != 0x80;
    return n;
}

static void put_cell(const column *c, const char *text)
{
    const int n_blanks = c->width > n_characters(text) ? c->width - n_characters(text) : 0;
    printf("| %*s", c->is_left ? 0 : n_blanks, "");
    for (; *text != '\0'; text++) putchar((unsigned char)*text < 0x20 || *text == 0x7f || *text == '|' ? '?' : *text);
    printf("%*s ", c->is_left ? n_blanks : 0, "");
}

static void put_header(const column *columns, int n)
{
    for (int i = 0; i < n; i++) put_cell(&columns[i], columns[i].title);
    fputs("|\n", stdout);
    for (int i = 0; i < n; i++) {
        fputs("| ", stdout);
        for (int k = 1; k < columns[i].width; k++) putchar('-');
        fputs(columns[i].is_left ? "- " : ": ", stdout);
    }
    fputs("|\n", stdout);
}

/* ---------------------------------------------------------------- a model's tests */

const char *bench_test_name(const bench_test *t, char buf[64])
{
    int n = 0;
    if (t->n_prompt > 0) n = snprintf(buf, 64, "pp%d", t->n_prompt);
    if (t->n_gen > 0) n += snprintf(buf + n, 64 - (size_t)n, "%stg%d", n > 0 ? "+" : "", t->n_gen);
    if (t->n_depth > 0) snprintf(buf + n, 64 - (size_t)n, " @ d%d", t->n_depth);
    return buf;
}

typedef struct numbers {           /* of one result */
    timing_summary ns, ts, ttft_s; /* time of a repetition; tokens per second; time to first token */
    double attention_share;
} numbers;

/* samples_ns, samples_ts [n_repeats], written in the order of time. */
static numbers numbers_of(const bench_result *r, int64_t *samples_ns, double *samples_ts, double *scratch)
{
    numbers x = { 0 };
    const int32_t n = r->n_repeats;
    double attention_ms = 0, prefill_ms = 0;
    for (int32_t i = 0; i < n; i++) {
        samples_ns[i] = llround(r->time_ms[i] * 1e6);
        samples_ts[i] = 1e9 * bench_test_tokens(&r->test) / (double)samples_ns[i];
        attention_ms += r->attention_ms[i];
        prefill_ms += r->ttft_ms[i];
    }
    for (int32_t i = 0; i < n; i++) scratch[i] = (double)samples_ns[i];
    x.ns = timing_summarize(scratch, n);
    for (int32_t i = 0; i < n; i++) scratch[i] = samples_ts[i];
    x.ts = timing_summarize(scratch, n);
    for (int32_t i = 0; i < n; i++) scratch[i] = r->ttft_ms[i] * 1e-3;
    x.ttft_s = timing_summarize(scratch, n);
    x.attention_share = prefill_ms > 0 ? attention_ms / prefill_ms : 0;
    return x;
}

static void print_row(bench_report *report, const bench_result *r, const numbers *x)
{
    const bench_facts *f = report->facts;
    int plan_width = 10;
    for (int32_t i = 0; i < f->n_plans; i++) plan_width = (int)fmax(plan_width, n_characters(f->labels[i]));
    const column columns[] = {
        { "model", 30, true }, { "size", 10, false }, { "params", 10, false }, { "backend", 10, true }, { "threads", 7, false },
        { "plan", plan_width, true }, { "peak", 9, false }, { "attention", 9, false }, { "ttft s", 8, false },
        { "test", 15, false }, { "t/s", 20, false },
    };
    enum { N_COLUMNS = sizeof columns / sizeof columns[0] };
    if (!report->has_header) put_header(columns, N_COLUMNS);
    report->has_header = true;
    char cells[N_COLUMNS][96], text[64];
    const bool has_prompt = r->test.n_prompt > 0, is_small = f->model_bytes < 1u << 30;
    snprintf(cells[0], sizeof cells[0], "%s", f->model_type);
    snprintf(cells[1], sizeof cells[1], "%.2f %s", (double)f->model_bytes / (is_small ? 0x1p20 : 0x1p30), is_small ? "MiB" : "GiB");
    snprintf(cells[2], sizeof cells[2], "%.2f %s", (double)f->n_params / (f->n_params < 1000000000 ? 1e6 : 1e9),
             f->n_params < 1000000000 ? "M" : "B");
    snprintf(cells[3], sizeof cells[3], "%s", f->gpu[0] == '\0' ? "CPU" : "CUDA");
    snprintf(cells[4], sizeof cells[4], "%d", f->n_threads);
    snprintf(cells[5], sizeof cells[5], "%s", f->labels[r->plan]);
    cells[6][0] = cells[7][0] = cells[8][0] = '\0';
    if (r->peak_bytes > 0) text_of_bytes(r->peak_bytes, cells[6]);
    if (has_prompt) snprintf(cells[7], sizeof cells[7], "%.1f %%", 100 * x->attention_share);
    if (has_prompt) snprintf(cells[8], sizeof cells[8], "%.3f", x->ttft_s.median);
    bench_test_name(&r->test, text);
    if (r->n_repeats == f->n_repeats) snprintf(cells[9], sizeof cells[9], "%s", text);
    else snprintf(cells[9], sizeof cells[9], "%s (%d of %d)", text, r->n_repeats, f->n_repeats);
    snprintf(cells[10], sizeof cells[10], "%.2f \xc2\xb1 %.2f", x->ts.mean, x->ts.stddev);
    for (int i = 0; i < N_COLUMNS; i++) put_cell(&columns[i], cells[i]);
    fputs("|\n", stdout);
    flush_output();
}

static void print_record(bench_report *report, const bench_result *r, const numbers *x, const int64_t *samples_ns,
                         const double *samples_ts)
{
    const bench_facts *f = report->facts;
    char when[32] = "", plan_text[PLAN_TEXT_BYTES];
    struct tm utc;
    const time_t t = (time_t)r->unix_time_s;
    if (gmtime_r(&t, &utc) != NULL) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
    const bool has_prompt = r->test.n_prompt > 0;
    const field fields[] = {
        field_text("build_commit", TMX_COMMIT), field_count("build_number", TMX_COMMIT_NUMBER),
        field_text("cpu_info", f->cpu), field_text("gpu_info", f->gpu),
        field_text("backends", f->gpu[0] == '\0' ? "CPU" : "CUDA"),
        field_text("model_filename", f->model_path), field_text("model_type", f->model_type),
        field_count("model_size", (int64_t)f->model_bytes), field_count("model_n_params", (int64_t)f->n_params),
        field_count("n_threads", f->n_threads), field_text("isa", f->isa), field_text("compute", f->compute),
        field_text("type_k", f->cache_type), field_text("type_v", f->cache_type), field_count("n_chunk", f->n_chunk),
        field_count("n_gpu_layers", f->gpu[0] == '\0' ? 0 : -1),
        field_count("n_prompt", r->test.n_prompt), field_count("n_gen", r->test.n_gen), field_count("n_depth", r->test.n_depth),
        field_text("test_time", when),
        field_count("avg_ns", llround(x->ns.mean)), field_count("stddev_ns", llround(x->ns.stddev)),
        field_number("avg_ts", x->ts.mean), field_number("stddev_ts", x->ts.stddev),
        field_count("median_ns", llround(x->ns.median)), field_number("spread_pct", x->ns.spread_pct),
        field_text("plan", f->labels[r->plan]), field_text("plan_layers", tmx_plan_text(f->plans[r->plan], plan_text, sizeof plan_text)),
        has_prompt ? field_number("ttft_s", x->ttft_s.median) : field_none("ttft_s"),
        has_prompt ? field_number("attention_share", x->attention_share) : field_none("attention_share"),
        r->peak_bytes > 0 ? field_count("peak_bytes", (int64_t)r->peak_bytes) : field_none("peak_bytes"),
        field_count("seed", f->seed), field_count("n_repetitions", r->n_repeats), field_bool("is_complete", r->n_repeats == f->n_repeats),
        field_counts("samples_ns", samples_ns, r->n_repeats), field_numbers("samples_ts", samples_ts, r->n_repeats),
        field_numbers("layer_attention_ms", r->layer_attention_ms, has_prompt ? f->n_layers : 0),
    };
    record_write(&report->records, fields, sizeof fields / sizeof fields[0]);
}

void bench_print_result(bench_report *report, const bench_result *r)
{
    static int64_t samples_ns[BENCH_MAX_REPEATS];
    static double samples_ts[BENCH_MAX_REPEATS], scratch[BENCH_MAX_REPEATS];
    const numbers x = numbers_of(r, samples_ns, samples_ts, scratch);
    if (report->form == BENCH_OUTPUT_MD) print_row(report, r, &x);
    else print_record(report, r, &x, samples_ns, samples_ts);
}

/* ---------------------------------------------------------------- kernels */

static const char *op_name(kernel_op op)
{
    return op == KERNEL_ATTENTION ? "attention" : op == KERNEL_MATMUL ? "matmul" : "matvec";
}

static void print_kernel_row(bench_report *report, const kernel_result *r)
{
    static const column columns[] = {
        { "op", 9, true }, { "pattern", 9, true }, { "type", 4, true }, { "by", 7, true }, { "isa", 10, true }, { "shape", 30, true },
        { "ms", 9, false }, { "spread", 7, false }, { "rate", 12, false }, { "of ceiling", 10, false }, { "time", 6, false },
        { "pairs", 6, false },
    };
    enum { N_COLUMNS = sizeof columns / sizeof columns[0] };
    if (!report->has_header) put_header(columns, N_COLUMNS);
    report->has_header = true;
    char cells[N_COLUMNS][64] = { "" };
    const bool is_attention = r->op == KERNEL_ATTENTION;
    snprintf(cells[0], sizeof cells[0], "%s", op_name(r->op));
    if (is_attention) snprintf(cells[1], sizeof cells[1], "%s", tmx_pattern_name(r->pattern.kind));
    snprintf(cells[2], sizeof cells[2], "%s", r->type);
    snprintf(cells[3], sizeof cells[3], "%s", r->provider);
    snprintf(cells[4], sizeof cells[4], "%s", tmx_isa_name(r->isa));
    if (is_attention) {
        snprintf(cells[5], sizeof cells[5], "%d tokens, %d/%d heads of %d", r->n_tokens, r->n_heads, r->n_kv_heads, r->head_dim);
    } else {
        snprintf(cells[5], sizeof cells[5], "[%d][%d] x %d", r->n_out, r->n_in, r->n_tokens);
    }
    snprintf(cells[6], sizeof cells[6], "%.3f", r->time.median);
    snprintf(cells[7], sizeof cells[7], "%.1f %%", r->time.spread_pct);
    snprintf(cells[8], sizeof cells[8], "%.1f %s", r->rate, r->op == KERNEL_MATVEC ? "GB/s" : "GFLOP/s");
    if (r->pct_of_ceiling > 0) snprintf(cells[9], sizeof cells[9], "%.1f %%", r->pct_of_ceiling);
    if (is_attention) snprintf(cells[10], sizeof cells[10], "%.3f", r->time_ratio);
    if (is_attention) snprintf(cells[11], sizeof cells[11], "%.3f", r->pair_ratio);
    for (int i = 0; i < N_COLUMNS; i++) put_cell(&columns[i], cells[i]);
    fputs("|\n", stdout);
    flush_output();
}

/* A field that an op does not have is there all the same, empty. */
static void print_kernel_record(bench_report *report, const char *op, const kernel_result *r)
{
    const bench_facts *f = report->facts;
    const bool is_ceiling = strcmp(op, "ceiling") == 0, is_attention = !is_ceiling && r->op == KERNEL_ATTENTION;
    const bool is_product = !is_ceiling && !is_attention, is_bytes = r->op == KERNEL_MATVEC;
#define ONLY(condition, kind, name, value) ((condition) ? field_##kind(name, value) : field_none(name))
    const field fields[] = {
        field_text("build_commit", TMX_COMMIT), field_count("build_number", TMX_COMMIT_NUMBER), field_text("cpu_info", f->cpu),
        field_count("n_threads", f->n_threads), field_text("op", op),
        ONLY(is_attention, text, "pattern", tmx_pattern_name(r->pattern.kind)), field_text("type", r->type),
        ONLY(!is_ceiling, text, "provider", r->provider), ONLY(r->isa != TMX_ISA_AUTO, text, "isa", tmx_isa_name(r->isa)),
        ONLY(!is_ceiling, count, "n_tokens", r->n_tokens), ONLY(is_attention, count, "n_heads", r->n_heads),
        ONLY(is_attention, count, "n_kv_heads", r->n_kv_heads), ONLY(is_attention, count, "head_dim", r->head_dim),
        ONLY(is_product, count, "n_out", r->n_out), ONLY(is_product, count, "n_in", r->n_in),
        ONLY(!is_ceiling, number, "median_ms", r->time.median), ONLY(!is_ceiling, number, "min_ms", r->time.least),
        ONLY(!is_ceiling, number, "spread_pct", r->time.spread_pct), ONLY(!is_bytes, number, "gflops", r->rate),
        ONLY(is_bytes, number, "gbytes_per_s", r->rate), ONLY(r->pct_of_ceiling > 0, number, "pct_of_ceiling", r->pct_of_ceiling),
        ONLY(is_attention, number, "time_ratio", r->time_ratio), ONLY(is_attention, number, "pair_ratio", r->pair_ratio),
        ONLY(!is_ceiling, number, "relative_error", r->error),
    };
#undef ONLY
    record_write(&report->records, fields, sizeof fields / sizeof fields[0]);
}

void bench_print_kernel(bench_report *report, const kernel_result *r)
{
    if (report->form == BENCH_OUTPUT_MD) print_kernel_row(report, r);
    else print_kernel_record(report, op_name(r->op), r);
}

void bench_print_ceilings(bench_report *report, const ceilings *c)
{
    const struct { const char *title, *type; double rate; tmx_isa isa; bool is_bytes; } rows[] = {
        { "f32 multiply-adds, AVX2", "f32", c->avx2_f32, TMX_ISA_AVX2, false },
        { "f32 multiply-adds, AVX-512", "f32", c->avx512_f32, TMX_ISA_AVX512, false },
        { "bf16 dot products, AVX-512", "bf16", c->avx512_bf16, TMX_ISA_AVX512_BF16, false },
        { "bf16 dot products, AMX", "bf16", c->amx_bf16, TMX_ISA_AMX, false },
        { "memory copy, read and written", "copy", c->copy, TMX_ISA_AUTO, true },
    };
    if (report->form == BENCH_OUTPUT_MD) printf("Ceilings on %d threads of %s\n\n", report->facts->n_threads, report->facts->cpu);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (rows[i].rate <= 0) continue;
        if (report->form == BENCH_OUTPUT_MD) {
            printf("- %s: %.1f %s\n", rows[i].title, rows[i].rate, rows[i].is_bytes ? "GB/s" : "GFLOP/s");
            continue;
        }
        const kernel_result r = { .op = rows[i].is_bytes ? KERNEL_MATVEC : KERNEL_MATMUL, .type = rows[i].type, .isa = rows[i].isa,
                                  .rate = rows[i].rate };
        print_kernel_record(report, "ceiling", &r);
    }
    if (report->form == BENCH_OUTPUT_MD) putchar('\n');
    flush_output();
}

void bench_print_end(bench_report *report) { record_end(&report->records); }
