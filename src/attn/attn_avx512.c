/* attn_avx512.c - f32 arithmetic in 16 lanes; bf16 inputs become f32 in scratch.  Registers as in attn_avx512bf16.c: 21
 * of 32 zmm.  Floor: n_pairs * 4 * head_dim FLOP at 32 FLOP a cycle.  Measured on one core of 118 GFLOP/s, N 4096,
 * head_dim 64: dense 87 %. */
#include "attn/attn_vec_avx512.h"

#include "base/num.h"

typedef float cell;
typedef __m512 vc;

enum { CELL = 1, ROW_VECS = 2, KEY_STEP = 8, DIM_STEP = 8, KEY_ALIGN = CELL };

ALWAYS_INLINE vc vc_where_nonzero(vc p, vc v)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(p, vf_zero(), _CMP_NEQ_UQ), v);
}

#include "attn/attn_cell_f32.h"
#include "attn/attn_tile.h"
#include "attn/attn_ranked_tile.h"
#include "attn/attn_mass_tile.h"
#include "attn/attn_decode_tile.h"

const attn_kernel attn_kernel_f32_avx512 = { .run = tile_run, .run_ranked = ranked_run, .block_mass = block_mass, .tail_mass = tail_mass, .decode = decode_part };
