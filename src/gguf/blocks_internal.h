/* blocks_internal.h - the expansions of one rung, for the table in blocks.c.  Formulas: see blocks.c. */
#ifndef TMX_GGUF_BLOCKS_INTERNAL_H
#define TMX_GGUF_BLOCKS_INTERNAL_H

#include <stddef.h>

void f16_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void bf16_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q8_0_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q4_0_to_f32_row_avx2(const void *blocks, float *x, size_t n);
void q4_1_to_f32_row_avx2(const void *blocks, float *x, size_t n);

#endif
