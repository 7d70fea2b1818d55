/* attn_amx.c - both products in tdpbf16ps, tiles of 16 rows of 32 bf16 (AMX): S = K Q^T and O^T += V^T P as in attn_tile.h,
 * where K lies as it comes, Q and P in pairs beside each other are already what the right-hand tile wants, and V is turned
 * when it is brought in.  Formula and steps: attn_tile.h.
 *
 * One instruction takes 32 keys (or 32 values of d) into 16 x 16 sums in 16 cycles: 1024 FLOP a cycle, 16 times vdpbf16ps on the
 * same core.  Floor: a score costs head_dim / 256 cycles of products and about 0.4 of softmax, which therefore is most of the time at
 * head_dim 64.
 *
 * Bits.  32 keys are one step of a row's sum (base/amx.h), and must be the same 32 wherever a task begins: KEY_ALIGN. */
#include "attn/attn_vec_avx512bf16.h"
#include "base/amx.h"

enum { TILE = AMX_TILE, DIM_STEP = AMX_BLOCK, KEY_ALIGN = AMX_DEPTH, CELL_ALIGN = TILE };
enum { V_STRIDE = ATTN_TILE_K / CELL + TILE };     /* a power of two would put the rows of a tile into few sets of the cache */

#define ATTN_TILES

static void tiles_begin(void) { amx_begin(); }
static void tiles_end(void) { amx_end(); }

/* r[i] lane j -> r[j] lane i */
ALWAYS_INLINE void turn(vi r[TILE])
{
    vi t[TILE];
    UNROLL for (int i = 0; i < TILE; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < TILE; i += 4) {     /* now r[i + c] holds rows i .. i + 3 of columns c, 4 + c, 8 + c, 12 + c */
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    UNROLL for (int c = 0; c < 4; c++) {
        const vi even_a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), even_b = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        const vi odd_a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd), odd_b = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_i32x4(even_a, even_b, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(even_a, even_b, 0xdd);
        t[4 + c] = _mm512_shuffle_i32x4(odd_a, odd_b, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(odd_a, odd_b, 0xdd);
    }
    UNROLL for (int i = 0; i < TILE; i++) r[i] = t[i];
}

ALWAYS_INLINE vi load_half(const uint16_t *row, size_t d, __mmask16 mask)
{
    return row == NULL ? _mm512_setzero_si512() : _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + d));
}

static void tiles_place(cell *v, const void *const rows[KEY_ALIGN], int32_t n, size_t d_pad)
{
    for (size_t d = 0; d < d_pad; d += TILE) {
        const int32_t left = n - (int32_t)d;
        const __mmask16 mask = (__mmask16)(left >= TILE ? 0xffff : left > 0 ? (1 << left) - 1 : 0);
        vi pairs[TILE];
        UNROLL for (int i = 0; i < TILE; i++) {
            const vi even = load_half(rows[2 * i], d, mask), odd = load_half(rows[2 * i + 1], d, mask);
            pairs[i] = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
        }
        turn(pairs);
        UNROLL for (int i = 0; i < TILE; i++) _mm512_storeu_si512(v + (d + (size_t)i) * V_STRIDE, pairs[i]);
    }
}

static_assert((int)ROW_VECS * (int)LANES == (int)AMX_BLOCK, "a block is two tiles wide");

static void tiles_score(float *s, const cell *q, const cell *k, size_t n_cells)
{
    const long stride = (long)(n_cells * sizeof *k);
    AMX_BARRIER();
    amx_zero_sums();
    for (size_t c = 0; c < n_cells; c += TILE) {
        const cell *q_c = q + c * AMX_BLOCK;
        AMX_MULTIPLY(k + c, k + TILE * n_cells + c, stride, q_c, q_c + TILE, 4 * AMX_BLOCK);
    }
    amx_store_sums(s, AMX_BLOCK);
}

/* Which halves are infinite or NaN. */
ALWAYS_INLINE __mmask32 nonfinite_of(vc v)
{
    const vc exponent = _mm512_set1_epi16(0x7f80);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512(v, exponent), exponent);
}

/* What the product left out: the values that are not finite, for the rows that give them a weight. */
static void add_nonfinite(float *o, const cell *p, const cell *v, int32_t n)
{
    for (int32_t d = 0; d < DIM_STEP; d++, o += ROW_VECS * LANES, v += V_STRIDE) {
        for (int32_t i = 0; i < n; i++) {
            const vc v_i = vc_set1(v + i);
            const __mmask32 is_nonfinite = nonfinite_of(v_i);
            if (is_nonfinite == 0) continue;
            for (int r = 0; r < ROW_VECS; r++) {
                const vc p_i = vc_load(p + i * ROW_VECS * LANES + r * LANES);
                const vc value = vc_where_nonzero(p_i, _mm512_maskz_mov_epi16(is_nonfinite, v_i));
                vf_store(o + r * LANES, vc_dot(vf_load(o + r * LANES), p_i, value));
            }
        }
    }
}

static void clean_tile(cell to[TILE * TILE], const cell *v)
{
    for (int i = 0; i < TILE; i++) {
        const vc row = vc_load(v + i * V_STRIDE);
        vc_store(to + i * TILE, _mm512_maskz_mov_epi16(~nonfinite_of(row), row));
    }
}

static void tiles_value(float *o, const cell *p, const cell *v, int32_t n, bool is_guarded)
{
    AMX_BARRIER();
    amx_load_sums(o, AMX_BLOCK);
    for (int32_t i = 0; i < n; i += TILE) {
        const cell *p_i = p + i * AMX_BLOCK;
        if (is_guarded) {
            cell clean[2][TILE * TILE];
            clean_tile(clean[0], v + i);
            clean_tile(clean[1], v + TILE * V_STRIDE + i);
            AMX_BARRIER();
            AMX_MULTIPLY(clean[0], clean[1], 4 * TILE, p_i, p_i + TILE, 4 * AMX_BLOCK);
            AMX_BARRIER();
        } else {
            AMX_MULTIPLY(v + i, v + TILE * V_STRIDE + i, 4 * V_STRIDE, p_i, p_i + TILE, 4 * AMX_BLOCK);
        }
    }
    amx_store_sums(o, AMX_BLOCK);
    if (is_guarded) add_nonfinite(o, p, v, n);
}

#include "attn/attn_tile.h"
#include "attn/attn_ranked_tile.h"
#include "attn/attn_mass_tile.h"

const attn_kernel attn_kernel_bf16_amx = { .run = tile_run, .run_ranked = ranked_run, .block_mass = block_mass, .tail_mass = tail_mass };
