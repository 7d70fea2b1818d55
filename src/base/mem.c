#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20, HUGE_BLOCK = 4 * HUGE_PAGE };

/* Asks for pages of 2 MiB where a block has room for several: what streams through caches then misses few translations. */
static void use_huge_pages(char *raw, size_t n_bytes)
{
    if (n_bytes < HUGE_BLOCK) return;
    char *begin = raw + (HUGE_PAGE - (uintptr_t)raw % HUGE_PAGE) % HUGE_PAGE, *end = raw + n_bytes;
    end -= (uintptr_t)end % HUGE_PAGE;
    (void)madvise(begin, (size_t)(end - begin), MADV_HUGEPAGE);        /* a kernel without them says no */
}

/* The block starts one aligned step before what the caller sees; that step holds the address calloc gave.  calloc,
 * not posix_memalign + memset: fresh pages are zero already and stay untouched until used. */
void *mem_alloc(size_t n, size_t size)
{
    uint64_t n_bytes;
    if (!mul_ok(n, size, &n_bytes) || !add_ok(n_bytes, 2 * MEM_ALIGN, &n_bytes) || n_bytes > PTRDIFF_MAX) return NULL;
    char *raw = calloc(1, (size_t)n_bytes);
    if (raw == NULL) return NULL;
    use_huge_pages(raw, (size_t)n_bytes);
    char *block = raw + MEM_ALIGN + (MEM_ALIGN - (uintptr_t)raw % MEM_ALIGN) % MEM_ALIGN;
    memcpy(block - sizeof raw, &raw, sizeof raw);
    return block;
}

void mem_free(void *block)
{
    if (block == NULL) return;
    char *raw;
    memcpy(&raw, (char *)block - sizeof raw, sizeof raw);
    free(raw);
}

uint64_t mem_available_bytes(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    if (f == NULL) return 0;
    char line[128];
    unsigned long long kib = 0;
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
    }
    fclose(f);
    return (uint64_t)kib * 1024;
}
