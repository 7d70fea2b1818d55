/* rows_kernel.h - the tables behind row_ops_get, one per rung. */
#ifndef TMX_OPS_ROWS_KERNEL_H
#define TMX_OPS_ROWS_KERNEL_H

#include "ops/rows.h"

extern const row_ops row_ops_scalar, row_ops_avx2, row_ops_avx512;

#endif
