/* bench_report.h - what tmx bench prints: a model's tests as a table in llama-bench's columns, as CSV, or as JSON in llama-bench's
 * fields; kernels in the same three forms.  Each result is printed when it stands.  docs/bench.md explains the columns. */
#ifndef TMX_CLI_BENCH_REPORT_H
#define TMX_CLI_BENCH_REPORT_H

#include "bench/ceiling.h"
#include "commands.h"
#include "bench/kernel_bench.h"
#include "bench/model_bench.h"
#include "plan_choice.h"
#include "record.h"

typedef struct bench_facts {       /* the same for all results of a run */
    const char *model_path;        /* NULL: kernels without a model */
    char model_type[64];           /* "llama 135M Q4_1" */
    uint64_t model_bytes, n_params;/* of the tensors */
    char cpu[96];
    const char *gpu;               /* what computed instead of the CPU; "" = none */
    const char *isa, *compute, *cache_type;
    int32_t n_threads, n_chunk, n_layers, n_repeats;
    int64_t seed;
    char labels[BENCH_MAX_PLANS][PLAN_LABEL_BYTES];
    const tmx_plan *plans[BENCH_MAX_PLANS];
    int32_t n_plans;
} bench_facts;

typedef struct bench_report {
    const bench_facts *facts;
    int32_t form;                  /* BENCH_OUTPUT_... */
    record_writer records;
    bool has_header;               /* of the Markdown table */
} bench_report;

/* "pp512", "tg128", "pp512+tg128", "tg128 @ d4096" */
const char *bench_test_name(const bench_test *t, char buf[64]);

void bench_print_result(bench_report *report, const bench_result *result);
/* Before the kernels: what this machine reaches. */
void bench_print_ceilings(bench_report *report, const ceilings *c);
void bench_print_kernel(bench_report *report, const kernel_result *result);
void bench_print_end(bench_report *report);

#endif
