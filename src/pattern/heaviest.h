/* heaviest.h - indices in descending order of their values, ties by ascending index: the one order in which dynamic methods
 * choose.  A heap, since the first few are usually enough.  Values are numbers, not NaN; the caller owns both arrays. */
#ifndef TMX_PATTERN_HEAVIEST_H
#define TMX_PATTERN_HEAVIEST_H

#include <stdint.h>

typedef struct heaviest {
    const double *value;
    int32_t *heap, n;              /* indices that are left */
} heaviest;

/* Over indices [begin, end); heap: scratch for that many. */
heaviest heaviest_of(const double *value, int32_t begin, int32_t end, int32_t *heap);
/* -1 when none is left. */
int32_t heaviest_next(heaviest *h);

#endif
