/* attn_vec_scalar.h - the vf and vi part of attn_tile.h's vocabulary on the compiler's own vectors of 4: no instruction
 * set assumed, so multiply and add stay apart. */
#ifndef TMX_ATTN_ATTN_VEC_SCALAR_H
#define TMX_ATTN_ATTN_VEC_SCALAR_H

#include "attn/attn_kernel.h"

#include <math.h>
#include <string.h>

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

enum { LANES = 4, DECODE_HEADS = 2 };

ALWAYS_INLINE vf vf_set1(float x) { return (vf){ x, x, x, x }; }
ALWAYS_INLINE vf vf_zero(void) { return vf_set1(0.0f); }
ALWAYS_INLINE vf vf_load(const float *x) { vf v; memcpy(&v, x, sizeof v); return v; }
ALWAYS_INLINE void vf_store(float *x, vf v) { memcpy(x, &v, sizeof v); }
ALWAYS_INLINE vf vf_add(vf a, vf b) { return a + b; }
ALWAYS_INLINE vf vf_sub(vf a, vf b) { return a - b; }
ALWAYS_INLINE vf vf_mul(vf a, vf b) { return a * b; }
ALWAYS_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
ALWAYS_INLINE vf vf_select(vi is_a, vf a, vf b) { return (vf)((is_a & (vi)a) | (~is_a & (vi)b)); }
ALWAYS_INLINE vf vf_max(vf a, vf b) { return vf_select((vi)(a > b), a, b); }

ALWAYS_INLINE float vf_sum(vf v) { return (v[0] + v[2]) + (v[1] + v[3]); }

ALWAYS_INLINE void vf_sum4(const vf v[4], float *to)
{
    for (int i = 0; i < 4; i++) to[i] = vf_sum(v[i]);
}

ALWAYS_INLINE vf vf_widen(const uint16_t *x)
{
    const vi bits = { (int32_t)((uint32_t)x[0] << 16), (int32_t)((uint32_t)x[1] << 16), (int32_t)((uint32_t)x[2] << 16),
                      (int32_t)((uint32_t)x[3] << 16) };
    return (vf)bits;
}

ALWAYS_INLINE bool vf_any_differs(vf a, vf b)
{
    const vi differs = (vi)(a != b);
    return (differs[0] | differs[1] | differs[2] | differs[3]) != 0;
}

ALWAYS_INLINE vi vi_load(const int32_t *x) { vi v; memcpy(&v, x, sizeof v); return v; }
ALWAYS_INLINE vi vi_set1(int32_t x) { return (vi){ x, x, x, x }; }
ALWAYS_INLINE vi vi_min(vi a, vi b) { return (a & (a < b)) | (b & (a >= b)); }
ALWAYS_INLINE vi vi_max(vi a, vi b) { return (a & (a > b)) | (b & (a <= b)); }

ALWAYS_INLINE vf vf_abs(vf a) { return (vf)((vi)a & vi_set1(INT32_MAX)); }

ALWAYS_INLINE vf vf_hide(vf s, int32_t k, vi lo, vi hi)
{
    const vi key = vi_set1(k);
    return vf_select((lo <= key) & (key <= hi), s, vf_set1(-INFINITY));
}

/* x in lanes with lo <= ids <= hi, else +0 */
ALWAYS_INLINE vf vf_keep(vf x, vi ids, int32_t lo, int32_t hi)
{
    return (vf)((vi)x & (vi_set1(lo) <= ids) & (ids <= vi_set1(hi)));
}

/* 2^t for t <= 0, relative error 2e-7; exactly 1 at 0, exactly 0 below -127; NaN stays NaN (max gives its second
 * argument, and the power of two is a factor). */
ALWAYS_INLINE vf vf_exp2(vf t)
{
    const vf magic = vf_set1(0x1.8p23f);           /* adding it leaves a whole number in the low mantissa bits */
    const vf clamped = vf_max(vf_set1(-127.0f), t), shifted = clamped + magic;
    const vf f = clamped - (shifted - magic);
    const vu biased = (vu)shifted + (vu)vi_set1(127);
    vf p = vf_set1(EXP2_C5);
    p = vf_fma(p, f, vf_set1(EXP2_C4));
    p = vf_fma(p, f, vf_set1(EXP2_C3));
    p = vf_fma(p, f, vf_set1(EXP2_C2));
    p = vf_fma(p, f, vf_set1(EXP2_C1));
    p = vf_fma(p, f, vf_set1(1.0f));
    return p * (vf)(biased << 23);
}

#endif
