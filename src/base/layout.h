/* layout.h - the buffers of one block of memory.  In: their sizes, one after the other.  Out: how much the block takes, and
 * with a base, where each buffer lies: one walk serves the memory plan and the real thing. */
#ifndef TMX_BASE_LAYOUT_H
#define TMX_BASE_LAYOUT_H

#include "base/mem.h"

typedef struct layout {
    char *base;                    /* NULL: only count */
    size_t align;                  /* of every buffer, and of base; 0 = MEM_ALIGN */
    uint64_t n_bytes;
} layout;

/* The next buffer; NULL when only counting. */
static inline void *layout_take(layout *at, uint64_t n_bytes)
{
    void *buffer = at->base == NULL ? NULL : at->base + at->n_bytes;
    at->n_bytes += align_up(n_bytes, at->align != 0 ? at->align : MEM_ALIGN);
    return buffer;
}

/* [n_rows][n_elements] of element_bytes each. */
static inline void *layout_rows(layout *at, size_t n_rows, size_t n_elements, size_t element_bytes)
{
    return layout_take(at, n_rows * n_elements * element_bytes);
}

#endif
