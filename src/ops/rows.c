#include "ops/rows.h"

#include "base/cpu.h"
#include "ops/rows_kernel.h"

#include <math.h>

const row_ops *row_ops_get(tmx_isa isa)
{
    switch (cpu_isa_resolve(isa)) {
    case TMX_ISA_AMX:
    case TMX_ISA_AVX512_BF16:
    case TMX_ISA_AVX512: return &row_ops_avx512;
    case TMX_ISA_AVX2: return &row_ops_avx2;
    default: return &row_ops_scalar;
    }
}

void rope_angles(int32_t position, const rope_table *table, float *cos_row, float *sin_row)
{
    for (int32_t i = 0; i < table->n_pairs; i++) {
        const float angle = (float)position * table->frequency[i];
        cos_row[i] = (float)cos((double)angle) * table->factor;
        sin_row[i] = (float)sin((double)angle) * table->factor;
    }
}
