/* attn_scalar.c - the rung of every CPU: C and the compiler's own vectors of 4. */
#include "attn/attn_vec_scalar.h"

#include "base/num.h"

typedef float cell;
typedef vf vc;

enum { CELL = 1, ROW_VECS = 2, KEY_STEP = 4, DIM_STEP = 4, KEY_ALIGN = CELL };

ALWAYS_INLINE vc vc_where_nonzero(vc p, vc v) { return vf_select((vi)(p != vf_zero()), v, vf_zero()); }

#include "attn/attn_cell_f32.h"
#include "attn/attn_tile.h"
#include "attn/attn_ranked_tile.h"
#include "attn/attn_mass_tile.h"
#include "attn/attn_decode_tile.h"

const attn_kernel attn_kernel_f32_scalar = { .run = tile_run, .run_ranked = ranked_run, .block_mass = block_mass, .tail_mass = tail_mass, .decode = decode_part };
