/* clock.h - wall time for timings. */
#ifndef TMX_BASE_CLOCK_H
#define TMX_BASE_CLOCK_H

#include <time.h>

/* Milliseconds of a clock that is never set back. */
static inline double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

#endif
