/* alloc_watch.h - counts this program's allocations and makes a chosen one fail.  Include it in a test
 * file whose first line says "wrap: malloc calloc realloc free":
 *
 *     watch_begin(3);             the third allocation from here gives NULL; 0 = none fails
 *     ...
 *     watch_end();                watch.n_calls, watch.n_live (not freed yet), watch.n_bytes (asked for in all) and
 *                                 watch.n_live_bytes (not freed yet, as the allocator rounds) tell what happened */
#ifndef TMX_TESTS_ALLOC_WATCH_H
#define TMX_TESTS_ALLOC_WATCH_H

#include <malloc.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static struct {
    bool is_on;
    long n_calls, fail_at;         /* the call that gets NULL, from 1; 0 = none */
    long n_live;
    size_t n_bytes;
    long long n_live_bytes;
} watch;

void *__real_malloc(size_t n_bytes);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *block, size_t n_bytes);
void __real_free(void *block);
void *__wrap_malloc(size_t n_bytes);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *block, size_t n_bytes);
void __wrap_free(void *block);

/* Counts one allocation; true if it shall fail. */
static bool is_failing(size_t n_bytes)
{
    if (!watch.is_on) return false;
    watch.n_calls++;
    if (watch.n_calls == watch.fail_at) return true;
    watch.n_live++;
    watch.n_bytes += n_bytes;
    return false;
}

static void *taken(void *block)
{
    if (watch.is_on && block != NULL) watch.n_live_bytes += (long long)malloc_usable_size(block);
    return block;
}

static void given_back(void *block)
{
    if (!watch.is_on || block == NULL) return;
    watch.n_live--;
    watch.n_live_bytes -= (long long)malloc_usable_size(block);
}

void *__wrap_malloc(size_t n_bytes) { return is_failing(n_bytes) ? NULL : taken(__real_malloc(n_bytes)); }
void *__wrap_calloc(size_t n, size_t size) { return is_failing(n * size) ? NULL : taken(__real_calloc(n, size)); }

void *__wrap_realloc(void *block, size_t n_bytes)
{
    if (is_failing(n_bytes)) return NULL;
    given_back(block);
    return taken(__real_realloc(block, n_bytes));
}

void __wrap_free(void *block)
{
    given_back(block);
    __real_free(block);
}

static void watch_begin(long fail_at)
{
    memset(&watch, 0, sizeof watch);
    watch.fail_at = fail_at;
    watch.is_on = true;
}

static void watch_end(void) { watch.is_on = false; }

#endif
