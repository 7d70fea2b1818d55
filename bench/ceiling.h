/* ceiling.h - what this machine can do at most, measured: the yardstick beside every kernel.  In: a pool.  Out: GFLOP/s of loops
 * that touch nothing but registers, GB/s of a copy larger than the caches; all threads of the pool at once, the best of a few
 * tries, so that a busy moment makes kernels look better, never worse. */
#ifndef TMX_BENCH_CEILING_H
#define TMX_BENCH_CEILING_H

#include "tmx.h"

typedef struct ceilings {
    /* GFLOP/s: vfmadd231ps ymm, zmm, vdpbf16ps zmm, tdpbf16ps; 0 = this CPU lacks it */
    double avx2_f32, avx512_f32, avx512_bf16, amx_bf16;
    double copy;                   /* GB/s, bytes read and bytes written; 0 = no memory for it */
} ceilings;

void ceilings_measure(ceilings *c, tmx_pool *pool);

/* Of a kernel of this rung with operands of this type; 0 = none, as for scalar code.  Rungs without bf16 products widen
 * bf16 to f32 first. */
double ceiling_of(const ceilings *c, tmx_isa isa, tmx_type type);

#endif
