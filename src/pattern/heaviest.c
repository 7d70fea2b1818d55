#include "pattern/heaviest.h"

#include <stdbool.h>

static bool is_before(const heaviest *h, int32_t a, int32_t b)
{
    return h->value[a] != h->value[b] ? h->value[a] > h->value[b] : a < b;
}

static void sift_down(const heaviest *h, int32_t root)
{
    int32_t *heap = h->heap;
    for (int32_t child; (child = 2 * root + 1) < h->n; root = child) {
        if (child + 1 < h->n && is_before(h, heap[child + 1], heap[child])) child++;
        if (!is_before(h, heap[child], heap[root])) return;
        const int32_t swap = heap[root];
        heap[root] = heap[child];
        heap[child] = swap;
    }
}

heaviest heaviest_of(const double *value, int32_t begin, int32_t end, int32_t *heap)
{
    heaviest h = { .value = value, .heap = heap };
    for (int32_t i = begin; i < end; i++) heap[h.n++] = i;
    for (int32_t i = h.n / 2 - 1; i >= 0; i--) sift_down(&h, i);
    return h;
}

int32_t heaviest_next(heaviest *h)
{
    if (h->n == 0) return -1;
    const int32_t first = h->heap[0];
    h->heap[0] = h->heap[--h->n];
    sift_down(h, 0);
    return first;
}
