/* attn_back_kernel.h - what the door (attn_back.c) and the rungs agree on: one strip, its scratch, a function per rung. */
#ifndef TMX_PROBE_ATTN_BACK_KERNEL_H
#define TMX_PROBE_ATTN_BACK_KERNEL_H

#include "probe/attn_back.h"

/* Sums of one strip; the order of the numbers is that of tmx_probe_sums. */
enum { SUM_THETA_ABS = 0, SUM_THETA_SIGNED, SUM_HEAD_ABS, SUM_DA_ABS, SUM_ATTENTION, N_SUMS };

/* k and v are f32 with zeros from head_dim to d_pad and for ATTN_BACK_KEYS keys behind the last. */
typedef struct attn_back_strip {
    const attn_back *back;
    const float *k, *v;            /* [keys, padded][n_kv_heads][d_pad] */
    int32_t begin, end;            /* rows */
    float *d_k, *d_v;              /* [keys of the strip, padded][n_kv_heads][d_pad], zero */
    double (*sums)[N_SUMS];        /* [N_SECTIONS], zero */
    float *scratch;                /* attn_back_floats() */
} attn_back_strip;

/* Of one thread: rows of q and d_o both ways round, lse and D, three tiles. */
static inline size_t attn_back_floats(int32_t n_heads, size_t d_pad)
{
    return (size_t)n_heads * ATTN_BACK_ROWS * (4 * d_pad + 2) + 3 * ATTN_BACK_KEYS * ATTN_BACK_ROWS;
}

typedef void attn_back_kernel(const attn_back_strip *strip);
attn_back_kernel attn_back_scalar, attn_back_avx2, attn_back_avx512;

#endif
