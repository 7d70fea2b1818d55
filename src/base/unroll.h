/* unroll.h - two words every kernel needs. */
#ifndef TMX_BASE_UNROLL_H
#define TMX_BASE_UNROLL_H

/* Loops over accumulators must unroll, or the compiler keeps the accumulators on the stack. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#endif
