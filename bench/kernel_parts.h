/* kernel_parts.h - what attention_bench.c and product_bench.c share: the run at work. */
#ifndef TMX_BENCH_KERNEL_PARTS_H
#define TMX_BENCH_KERNEL_PARTS_H

#include "kernel_bench.h"

enum { KERNEL_MAX_REPEATS = 1000, KERNEL_MAX_RUNGS = TMX_ISA_AMX };

typedef struct kernel_run {
    const kernel_params *params;
    const ceilings *ceilings;
    tmx_isa rungs[KERNEL_MAX_RUNGS];
    int32_t n_rungs;
    double work_done, work_total;  /* FLOP: what a share of the whole is told by */
} kernel_run;

/* Counts work as done; TMX_E_CANCELLED when progress asks to stop. */
tmx_status kernel_step(kernel_run *run, double flop, tmx_error *err);

double attention_bench_work(const kernel_params *p, int32_t n_rungs);
tmx_status attention_bench(kernel_run *run, tmx_error *err);
double product_bench_work(const kernel_run *run);
tmx_status product_bench(kernel_run *run, tmx_error *err);

#endif
