/* attn_avx512bf16.c - both products in vdpbf16ps: two multiply-adds in each of 16 lanes, one instruction a cycle on
 * Zen 4.  Formula and steps: attn_tile.h.
 *
 * Per 32 rows and 8 keys (score) or 8 values of d (value): 16 sums + 2 vectors + 1 broadcast + 2 maxima = 21 of 32 zmm,
 * 10 loads for 16 products; gcc 12 keeps all of it in registers (objdump: no spill in either loop).
 * Cache at head_dim 64: Q of a block 4 KiB and 8 rows of K 1 KiB stay in L1, S streams through L2 (32 KiB), V comes in
 * order.  Floor: n_pairs * 4 * head_dim FLOP at 64 FLOP a cycle; 16 scores cost 2 * head_dim / 4 cycles of products and
 * about 6.5 of softmax.  Measured on one core of 236 GFLOP/s, N 4096: head_dim 64 dense 79 %, triangle 72 %; head_dim
 * 128 dense 85 %, triangle 78 %. */
#include "attn/attn_vec_avx512bf16.h"

enum { DIM_STEP = 8, KEY_ALIGN = CELL };

static void load_values(cell *to, const void *const rows[CELL], tmx_type type, int32_t n)
{
    (void)type;
    static const uint16_t zeros[ATTN_MAX_DIM];
    const uint16_t *v0 = rows[0] != NULL ? rows[0] : zeros, *v1 = rows[1] != NULL ? rows[1] : zeros;
    for (int32_t d = 0; d < n; d++) to[d] = v0[d] | (uint32_t)v1[d] << 16;
}

#include "attn/attn_tile.h"
#include "attn/attn_ranked_tile.h"
#include "attn/attn_mass_tile.h"

const attn_kernel attn_kernel_bf16_avx512bf16 = { .run = tile_run, .run_ranked = ranked_run, .block_mass = block_mass, .tail_mass = tail_mass };
