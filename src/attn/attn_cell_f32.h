/* attn_cell_f32.h - attn_tile.h's vocabulary for cells of one f32, on top of a rung's vf.  Inputs may be f32 or bf16;
 * bf16 becomes f32 on the way into scratch, exactly. */
#ifndef TMX_ATTN_ATTN_CELL_F32_H
#define TMX_ATTN_ATTN_CELL_F32_H

#include "base/num.h"

#include <string.h>

ALWAYS_INLINE vc vc_load(const cell *x) { return vf_load(x); }
ALWAYS_INLINE void vc_store(cell *x, vc v) { vf_store(x, v); }
ALWAYS_INLINE vc vc_set1(const cell *x) { return vf_set1(*x); }
ALWAYS_INLINE vf vc_dot(vf acc, vc a, vc b) { return vf_fma(a, b, acc); }

ALWAYS_INLINE vc vc_weigh(const float *s, int stride, vf max, vf c, vf *sum)
{
    (void)stride;
    const vf p = vf_exp2(vf_mul(vf_sub(vf_load(s), max), c));
    *sum = vf_add(*sum, p);
    return p;
}

static void load_row(float *to, const void *row, tmx_type type, int32_t n)
{
    if (type == TMX_TYPE_F32) {
        memcpy(to, row, (size_t)n * sizeof *to);
        return;
    }
    const tmx_bf16 *b = row;
    for (int32_t d = 0; d < n; d++) to[d] = bf16_to_f32(b[d]);
}

static void load_values(cell *to, const void *const rows[CELL], tmx_type type, int32_t n)
{
    load_row(to, rows[0], type, n);
}

#endif
