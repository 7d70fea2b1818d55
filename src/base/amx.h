/* amx.h - the tile registers of AMX, for files compiled for that rung: 8 tiles of 16 rows of 64 bytes, and the product of 32 x 32
 * sums that every kernel of ours is made of.
 *
 *   tiles 0 1    sums of rows  0..15, columns 0..15 and 16..31      4 5    left operand, rows  0..15 and 16..31
 *         2 3    sums of rows 16..31                                6 7    right operand, columns 0..15 and 16..31
 *
 * 4 loads for 4 products of 16 cycles.  Operands are bf16: a left row is 32 values of depth, a right row two values of depth beside
 * each other for each of 16 columns.  The instruction sums the even and the odd terms of its 32 apart, then adds both to the tile; it
 * takes denormals for zero and rounds to nearest, as vdpbf16ps does. */
#ifndef TMX_BASE_AMX_H
#define TMX_BASE_AMX_H

#include "base/unroll.h"

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

enum { AMX_TILE = 16, AMX_DEPTH = 32, AMX_BLOCK = 2 * AMX_TILE /* rows and columns of sums */ };

/* gcc's tile loads do not say that they read memory. */
#define AMX_BARRIER() __asm__ volatile("" ::: "memory")

static inline void amx_begin(void)
{
    static const struct { uint8_t palette, start_row, zero[14]; uint16_t row_bytes[16]; uint8_t n_rows[16]; } config = {
        .palette = 1,
        .row_bytes = { 64, 64, 64, 64, 64, 64, 64, 64 },
        .n_rows = { AMX_TILE, AMX_TILE, AMX_TILE, AMX_TILE, AMX_TILE, AMX_TILE, AMX_TILE, AMX_TILE },
    };
    _tile_loadconfig(&config);
}

static inline void amx_end(void) { _tile_release(); }

ALWAYS_INLINE void amx_zero_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* [32][32] f32, strides in elements. */
ALWAYS_INLINE void amx_load_sums(const float *from, size_t stride)
{
    const float *below = from + AMX_TILE * stride;
    _tile_loadd(0, from, (long)(4 * stride));
    _tile_loadd(1, from + AMX_TILE, (long)(4 * stride));
    _tile_loadd(2, below, (long)(4 * stride));
    _tile_loadd(3, below + AMX_TILE, (long)(4 * stride));
}

ALWAYS_INLINE void amx_store_sums(float *to, size_t stride)
{
    float *below = to + AMX_TILE * stride;
    _tile_stored(0, to, (long)(4 * stride));
    _tile_stored(1, to + AMX_TILE, (long)(4 * stride));
    _tile_stored(2, below, (long)(4 * stride));
    _tile_stored(3, below + AMX_TILE, (long)(4 * stride));
}

/* Sums += left [32 rows][32 deep] x right [16 pairs][32 columns]; two pointers and a stride of bytes for each operand. */
#define AMX_MULTIPLY(left_0, left_1, left_stride, right_0, right_1, right_stride) do { \
        _tile_loadd(4, (left_0), (left_stride)); \
        _tile_loadd(6, (right_0), (right_stride)); \
        _tile_loadd(7, (right_1), (right_stride)); \
        _tile_dpbf16ps(0, 4, 6); \
        _tile_loadd(5, (left_1), (left_stride)); \
        _tile_dpbf16ps(1, 4, 7); \
        _tile_dpbf16ps(2, 5, 6); \
        _tile_dpbf16ps(3, 5, 7); \
    } while (0)

#endif
