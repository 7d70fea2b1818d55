/* attn_avx2.c - f32 arithmetic in 8 lanes; bf16 inputs become f32 in scratch.  8 sums + 2 rows + 1 broadcast + 2 maxima
 * = 13 of 16 ymm.  Measured on one Zen 4 core of 118 GFLOP/s, N 1024, head_dim 64: dense 74 %. */
#include "attn/attn_vec_avx2.h"

#include "base/num.h"

typedef float cell;
typedef __m256 vc;

enum { CELL = 1, ROW_VECS = 2, KEY_STEP = 4, DIM_STEP = 4, KEY_ALIGN = CELL };

ALWAYS_INLINE vc vc_where_nonzero(vc p, vc v) { return _mm256_and_ps(_mm256_cmp_ps(p, vf_zero(), _CMP_NEQ_UQ), v); }

#include "attn/attn_cell_f32.h"
#include "attn/attn_tile.h"
#include "attn/attn_ranked_tile.h"
#include "attn/attn_mass_tile.h"
#include "attn/attn_decode_tile.h"

const attn_kernel attn_kernel_f32_avx2 = { .run = tile_run, .run_ranked = ranked_run, .block_mass = block_mass, .tail_mass = tail_mass, .decode = decode_part };
