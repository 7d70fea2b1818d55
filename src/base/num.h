/* num.h - small arithmetic: min and max; bfloat16 and IEEE half against float, the one definition of each.  Bit-exact with
 * the hardware instructions: round to nearest even, denormals kept, NaN stays NaN (quieted). */
#ifndef TMX_BASE_NUM_H
#define TMX_BASE_NUM_H

#include "base/device.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t tmx_bf16;

HOST_DEVICE static inline int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
HOST_DEVICE static inline int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }
static inline size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

static inline float f32_from_bits(uint32_t bits) { float f; memcpy(&f, &bits, sizeof f); return f; }
static inline uint32_t f32_to_bits(float f) { uint32_t bits; memcpy(&bits, &f, sizeof bits); return bits; }

static inline float bf16_to_f32(tmx_bf16 b) { return f32_from_bits((uint32_t)b << 16); }

/* vcvtneps2bf16 flushes denormal inputs to zero; this does not.  The difference is below 1.2e-38 and harmless. */
static inline tmx_bf16 bf16_from_f32(float f)
{
    uint32_t bits = f32_to_bits(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (tmx_bf16)((bits >> 16) | 0x0040u);
    return (tmx_bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
    if (exponent == 0x1f) return f32_from_bits(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
    if (exponent != 0) return f32_from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    const float magnitude = (float)mantissa * 0x1p-24f;          /* denormal half: exact in float */
    return f32_from_bits(sign | f32_to_bits(magnitude));
}

#endif
