/* mem.h - checked sizes and aligned memory.  In: counts.  Out: zeroed, 64-byte aligned blocks or NULL.
 * Never aborts; every size that comes from outside goes through mul_ok / add_ok first. */
#ifndef TMX_BASE_MEM_H
#define TMX_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MEM_ALIGN = 64 };           /* a cache line and a zmm register */

static inline bool mul_ok(uint64_t a, uint64_t b, uint64_t *product) { return !__builtin_mul_overflow(a, b, product); }
static inline bool add_ok(uint64_t a, uint64_t b, uint64_t *sum) { return !__builtin_add_overflow(a, b, sum); }
static inline size_t align_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Zeroed memory for n items of `size` bytes, 64-byte aligned; NULL if the product overflows or memory is out.
 * n * size == 0 gives a valid pointer.  Large blocks come from fresh pages, so zeroing costs nothing up front. */
void *mem_alloc(size_t n, size_t size);
void mem_free(void *block);        /* accepts NULL */

uint64_t mem_available_bytes(void);    /* what the kernel says is free for us now; 0 = unknown */

#endif
