/* blocks.h - the block formats tensors are stored in.  In: a row of blocks.  Out: f32, bit-exact with the published
 * formula (d * q + m or its like, one rounding an operation, no fused multiply-add).  One table row per format, so that a new
 * format adds a line and a function. */
#ifndef TMX_GGUF_BLOCKS_H
#define TMX_GGUF_BLOCKS_H

#include "tmx.h"

#include <stddef.h>
#include <stdint.h>

enum {
    BLOCK_F32 = 0, BLOCK_F16 = 1, BLOCK_Q4_0 = 2, BLOCK_Q4_1 = 3, BLOCK_Q5_0 = 6, BLOCK_Q5_1 = 7, BLOCK_Q8_0 = 8,
    BLOCK_Q2_K = 10, BLOCK_Q3_K = 11, BLOCK_Q4_K = 12, BLOCK_Q5_K = 13, BLOCK_Q6_K = 14, BLOCK_Q8_K = 15,
    BLOCK_IQ4_NL = 20, BLOCK_IQ4_XS = 23, BLOCK_I8 = 24, BLOCK_I64 = 27, BLOCK_BF16 = 30, BLOCK_MXFP4 = 39,
    /* I8..I64 are the four integer types */
};

typedef struct block_format {
    uint32_t type;
    const char *name;              /* "Q4_1"; also for known formats we cannot expand */
    int32_t n_elements, n_bytes;   /* of one block; 0 if unknown */
    void (*to_f32)(const void *blocks, float *x, size_t n);   /* n % n_elements == 0; NULL = not supported */
} block_format;

/* NULL: not a type of the file format (or a retired one).  to_f32 is the fastest this CPU has; every rung gives the
 * same bits, so only tests ask for one by name. */
const block_format *block_format_find(uint32_t type);
const block_format *block_format_find_for(uint32_t type, tmx_isa isa);

/* Bytes of a row of n elements, which must be a multiple of the block. */
static inline size_t block_row_bytes(const block_format *f, size_t n)
{
    return n / (size_t)f->n_elements * (size_t)f->n_bytes;
}

#endif
