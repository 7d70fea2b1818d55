/* matvec_kernel.h - dot products of one row of file blocks with f32 x: what each rung gives matvec.c. */
#ifndef TMX_OPS_MATVEC_KERNEL_H
#define TMX_OPS_MATVEC_KERNEL_H

#include <stddef.h>
#include <stdint.h>

/* sum over i of row[i] * x[i], f32; n is a multiple of the block.  Each rung has its own fixed order of summation. */
typedef float matvec_dot(const void *row, const float *x, size_t n);

matvec_dot *matvec_dot_avx2(uint32_t type);      /* NULL: this rung has no kernel for the block type */
matvec_dot *matvec_dot_avx512(uint32_t type);

#endif
