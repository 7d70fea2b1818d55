#include "kernel_parts.h"

#include "base/cpu.h"
#include "eval/fault.h"

tmx_status kernel_step(kernel_run *run, double flop, tmx_error *err)
{
    const kernel_params *p = run->params;
    run->work_done += flop;
    if (p->progress == NULL || p->progress(p->ctx, run->work_done / run->work_total)) return TMX_OK;
    return fault(err, TMX_E_CANCELLED, "stopped");
}

static void find_rungs(kernel_run *run, tmx_isa isa)
{
    if (isa != TMX_ISA_AUTO) {
        run->rungs[run->n_rungs++] = isa;
        return;
    }
    for (int i = TMX_ISA_AVX2; i <= TMX_ISA_AMX; i++) {
        if (cpu_has((tmx_isa)i)) run->rungs[run->n_rungs++] = (tmx_isa)i;
    }
    if (run->n_rungs == 0) run->rungs[run->n_rungs++] = TMX_ISA_SCALAR;
}

tmx_status bench_kernels(const kernel_params *params, ceilings *measured, bool *is_stopped, tmx_error *err)
{
    kernel_run run = { .params = params, .ceilings = measured };
    *is_stopped = false;
    if (params->n_repeats < 1 || params->n_repeats > KERNEL_MAX_REPEATS) {
        return fault(err, TMX_E_ARG, "%d repetitions, expected 1..%d", params->n_repeats, KERNEL_MAX_REPEATS);
    }
    if (!cpu_has(params->isa)) return fault(err, TMX_E_ARG, "this CPU has no %s", tmx_isa_name(params->isa));
    find_rungs(&run, params->isa);
    run.work_total = attention_bench_work(params, run.n_rungs) + product_bench_work(&run);
    ceilings_measure(measured, params->pool);
    tmx_status status = kernel_step(&run, 0, err);
    if (status == TMX_OK) status = attention_bench(&run, err);
    if (status == TMX_OK) status = product_bench(&run, err);
    *is_stopped = status == TMX_E_CANCELLED;
    return *is_stopped ? TMX_OK : status;
}
