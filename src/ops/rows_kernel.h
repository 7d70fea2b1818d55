/* rows_kernel.h - the tables behind row_ops_get, one per rung. */
#ifndef TMX_OPS_ROWS_KERNEL_H
#define TMX_OPS_ROWS_KERNEL_H

#include "ops/rows.h"

/* gelu's 2 t = g (GELU_A + GELU_B g^2) */
#define GELU_A 1.5957691216057308f             /* 2 sqrt(2/pi) */
#define GELU_B 0.07135481627159841f            /* 0.044715 of that */

extern const row_ops row_ops_scalar, row_ops_avx2, row_ops_avx512;

#endif
