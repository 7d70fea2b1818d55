/* gpu_lines.h - which keys a tile of 128 rows of a head takes by MInference, in the pieces in which the Hopper kernel copies them.
 * In: head_keys (pattern/key_lines.h).  Out: halves of a slot, LINE_BLOCK keys each, with a mask for each block of rows.
 *
 * A tile is two blocks of LINE_BLOCK rows, one for each warpgroup: X = 0, 1, from t_X = t + LINE_BLOCK X on.  Its diagonal step holds
 * the keys from t_X on, which every row of X sees up to itself.  Everything else that X sees comes once, in halves of two kinds:
 *
 *      in a row    keys [k, k + LINE_BLOCK) from the first one on that X = 0 or 1 sees in a run and no half has held yet, ascending
 *      gathered    LINE_BLOCK neighbours in the head's list of columns, without those that a half in a row holds
 *
 * Masks are the union of runs and columns, before t_X.  A window's rows do not all see the same keys of a half: there the mask is too
 * wide and rows_differ says that row_keys decide.
 *
 * The walk is sequential, as key_lines.h defines it: a run's keys depend on all distances before.  On the device all lanes of a warp
 * walk together and look at 32 distances or 64 columns at once; on the host the same code looks at them one by one. */
#ifndef TMX_ATTN_GPU_LINES_H
#define TMX_ATTN_GPU_LINES_H

#include "base/device.h"
#include "base/num.h"
#include "pattern/key_lines.h"

#ifdef __CUDACC__
#define LINES_INLINE HOST_DEVICE static __forceinline__
#else
#define LINES_INLINE static inline
#endif

enum { LINE_NO_KEY = INT32_MAX };

typedef struct line_half {
    int32_t begin;                 /* first key; gathered: first index in columns */
    bool is_gathered, rows_differ;
    uint64_t seen[2];              /* by X: bit i for key begin + i, or for column begin + i of the list */
} line_half;

/* What X sees in runs, LINE_BLOCK keys at a time. */
typedef struct line_tiles {
    int32_t begin, end;            /* the keys at hand that no half has held; begin >= t_X: none is left */
    int32_t next;                  /* distance that no run holds yet: this one or a later one */
    int32_t own;                   /* device: distance next + lane, -1 behind the end */
} line_tiles;

typedef struct line_columns {
    int32_t base, n;               /* [base, base + 64) of the list at hand; base >= n: none is left */
    int32_t last;                  /* the last one of them */
    uint64_t apart;                /* bit i: no half in a row holds column base + i */
    int32_t own[2];                /* device: columns base + lane, base + 32 + lane */
} line_columns;

typedef struct line_walk {
    const head_keys *head;
    int32_t t;
    line_tiles tiles[2];
    line_columns columns;
    int32_t begin;                 /* of the half in a row at hand, LINE_NO_KEY: there is none */
    uint64_t seen[2], found;       /* its masks of runs; the columns in it */
} line_walk;

/* Bits [0, n) */
LINES_INLINE uint64_t line_bits(int32_t n) { return n >= 64 ? ~(uint64_t)0 : n <= 0 ? 0 : ((uint64_t)1 << n) - 1; }

/* ---------------------------------------------------------------- distances, descending */

LINES_INLINE void line_look(line_tiles *x, const head_keys *head)
{
#ifdef __CUDA_ARCH__
    const int32_t i = x->next + (int32_t)(threadIdx.x % 32);
    x->own = i < head->n_distances ? head->distances[i] : -1;
#else
    (void)x, (void)head;
#endif
}

/* The first distance, from next on, below the limit; -1: none. */
LINES_INLINE int32_t line_seek(line_tiles *x, const head_keys *head, int32_t limit)
{
#ifdef __CUDA_ARCH__
    while (x->next < head->n_distances) {
        const uint32_t lanes = __ballot_sync(0xffffffff, x->own < limit);
        if (lanes != 0) return __shfl_sync(0xffffffff, x->own, __ffs(lanes) - 1);
        x->next += 32;
        line_look(x, head);
    }
    return -1;
#else
    while (x->next < head->n_distances && head->distances[x->next] >= limit) x->next++;
    return x->next < head->n_distances ? head->distances[x->next] : -1;
#endif
}

/* A place in the list before which all distances are at least limit, near the end of those. */
LINES_INLINE int32_t line_place(const head_keys *head, int32_t limit)
{
    int32_t begin = 0;
#ifdef __CUDA_ARCH__
    for (int32_t n = head->n_distances; n > 32; ) {
        const int32_t step = (n + 31) / 32, i = begin + (int32_t)(threadIdx.x % 32) * step;
        const uint32_t below = __ballot_sync(0xffffffff, i >= head->n_distances || head->distances[i] < limit);
        const int32_t first = below != 0 ? __ffs(below) - 1 : 32;
        if (first == 0) break;
        begin += (first - 1) * step;
        n = step;
    }
#else
    (void)head, (void)limit;
#endif
    return begin;
}

/* ---------------------------------------------------------------- runs of X */

/* A block that X keeps, this one or a later one below its own; its own: there is none. */
LINES_INLINE int32_t line_block_from(const head_keys *head, int32_t own, int32_t block)
{
    const uint64_t *row = head->blocks + (size_t)own * (size_t)head->n_words;
    for (int32_t word = block / 64; block < own && word <= own / 64; word++, block = word * 64) {
        const uint64_t bits = row[word] & ~line_bits(block - word * 64);
        if (bits == 0) continue;
#ifdef __CUDA_ARCH__
        return min_i32(own, word * 64 + __ffsll((long long)bits) - 1);
#else
        return min_i32(own, word * 64 + __builtin_ctzll(bits));
#endif
    }
    return own;
}

/* t: X's first row. */
LINES_INLINE void line_tiles_next(line_tiles *x, const head_keys *head, int32_t t)
{
    int32_t begin = x->end;
    if (head->kind == HEAD_LINES) {
        const int32_t limit = t + LINE_BLOCK - x->end, distance = limit > 0 ? line_seek(x, head, limit) : -1;
        const int32_t end = max_i32(t + LINE_BLOCK - distance, LINE_BLOCK);
        if (distance < 0) begin = t;
        else if (end > x->end + LINE_BLOCK) begin = end - LINE_BLOCK;
    } else if (head->kind == HEAD_BLOCKS) {
        begin = LINE_BLOCK * line_block_from(head, t / LINE_BLOCK, x->end / LINE_BLOCK);
    } else if (head->kind == HEAD_WINDOW && begin >= head->n_sink) {
        begin = max_i32(begin, t - head->n_window + 1);
    }
    x->begin = begin;
    x->end = begin + LINE_BLOCK;
}

/* ---------------------------------------------------------------- columns, ascending */

/* Takes the 64 from base on; those from limit on are no longer needed. */
LINES_INLINE void line_columns_load(line_columns *c, const head_keys *head, int32_t limit)
{
    const int32_t n = min_i32(c->n - c->base, 64);
    if (n <= 0) return;
    c->apart = line_bits(n);
#ifdef __CUDA_ARCH__
    const int32_t lane = (int32_t)(threadIdx.x % 32);
    c->own[0] = lane < n ? head->columns[c->base + lane] : LINE_NO_KEY;
    c->own[1] = lane + 32 < n ? head->columns[c->base + 32 + lane] : LINE_NO_KEY;
    c->last = __shfl_sync(0xffffffff, n > 32 ? c->own[1] : c->own[0], (n - 1) % 32);
    const int32_t first = __shfl_sync(0xffffffff, c->own[0], 0);
#else
    c->last = head->columns[c->base + n - 1];
    const int32_t first = head->columns[c->base];
#endif
    if (first >= limit) c->n = c->base;
}

/* Those in [begin, begin + 64) are no longer apart; returns their places in it. */
LINES_INLINE uint64_t line_columns_take(line_columns *c, const head_keys *head, int32_t begin)
{
#ifdef __CUDA_ARCH__
    uint32_t low = 0, high = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t at = (uint32_t)(c->own[i] - begin);
        const uint32_t lanes = __ballot_sync(0xffffffff, at < 64);
        c->apart &= ~((uint64_t)lanes << 32 * i);
        if (at < 32) low |= 1u << at;
        else if (at < 64) high |= 1u << (at - 32);
    }
    return (uint64_t)__reduce_or_sync(0xffffffff, high) << 32 | __reduce_or_sync(0xffffffff, low);
#else
    uint64_t places = 0;
    for (int32_t i = c->base; i < min_i32(c->n, c->base + 64); i++) {
        const uint32_t at = (uint32_t)(head->columns[i] - begin);
        if (at >= 64) continue;
        c->apart &= ~((uint64_t)1 << (i - c->base));
        places |= (uint64_t)1 << at;
    }
    return places;
#endif
}

/* Bits of the columns at hand that lie before the limit: the first so many. */
LINES_INLINE uint64_t line_columns_before(const line_columns *c, const head_keys *head, int32_t limit)
{
#ifdef __CUDA_ARCH__
    return (uint64_t)__ballot_sync(0xffffffff, c->own[1] < limit) << 32 | __ballot_sync(0xffffffff, c->own[0] < limit);
#else
    int32_t n = 0;
    while (c->base + n < c->n && n < 64 && head->columns[c->base + n] < limit) n++;
    return line_bits(n);
#endif
}

/* ---------------------------------------------------------------- the walk */

/* The next half in a row, as far as runs go. */
LINES_INLINE void line_walk_row(line_walk *w)
{
    int32_t begin = LINE_NO_KEY;
    for (int x = 0; x < 2; x++) {
        if (w->tiles[x].begin < w->t + x * LINE_BLOCK) begin = min_i32(begin, w->tiles[x].begin);
    }
    w->begin = begin;
    w->found = 0;
    if (begin == LINE_NO_KEY) return;
    const int32_t end = begin + LINE_BLOCK;
    for (int x = 0; x < 2; x++) {
        line_tiles *tiles = &w->tiles[x];
        const int32_t t = w->t + x * LINE_BLOCK;
        uint64_t seen = 0;
        while (tiles->begin < t && tiles->begin < end) {
            seen |= line_bits(tiles->end - begin) & ~line_bits(tiles->begin - begin);
            if (tiles->end <= end) line_tiles_next(tiles, w->head, t);
            else tiles->begin = end;
        }
        w->seen[x] = seen & line_bits(t - begin);
    }
}

/* Of the tile at t, a multiple of 2 LINE_BLOCK, before head->n. */
LINES_INLINE line_walk line_walk_of(const head_keys *head, int32_t t)
{
    line_walk w;
    w.head = head;
    w.t = t;
    for (int x = 0; x < 2; x++) {
        line_tiles *tiles = &w.tiles[x];
        const int32_t row = t + x * LINE_BLOCK;
        tiles->begin = tiles->end = tiles->next = tiles->own = 0;
        if (head->kind == HEAD_LINES) {
            /* What lies between the limits of both blocks is LINE_BLOCK distances at most. */
            tiles->next = x == 0 ? line_place(head, t + LINE_BLOCK) : max_i32(0, w.tiles[0].next - LINE_BLOCK);
            line_look(tiles, head);
        }
        if (row >= head->n) tiles->begin = row;        /* no such rows */
        else line_tiles_next(tiles, head, row);
    }
    w.columns.base = 0;
    w.columns.n = head->kind == HEAD_LINES ? head->n_columns : 0;
    w.columns.last = w.columns.own[0] = w.columns.own[1] = 0;
    w.columns.apart = 0;
    line_columns_load(&w.columns, head, t + LINE_BLOCK);
    line_walk_row(&w);
    return w;
}

LINES_INLINE bool line_walk_next(line_walk *w, line_half *half)
{
    line_columns *columns = &w->columns;
    const int32_t t0 = w->t, t1 = w->t + LINE_BLOCK;
    while (columns->base < columns->n) {
        if (w->begin != LINE_NO_KEY) {
            w->found |= line_columns_take(columns, w->head, w->begin);
            if (columns->last >= w->begin + LINE_BLOCK) break;     /* the half in a row has all of its columns */
        }
        half->begin = columns->base;
        half->is_gathered = true;
        half->rows_differ = false;
        half->seen[0] = columns->apart & line_columns_before(columns, w->head, t0);
        half->seen[1] = columns->apart & line_columns_before(columns, w->head, t1);
        columns->base += 64;
        line_columns_load(columns, w->head, t1);
        if ((half->seen[0] | half->seen[1]) != 0) return true;
    }
    if (w->begin == LINE_NO_KEY) return false;
    const head_keys *head = w->head;
    half->begin = w->begin;
    half->is_gathered = false;
    /* The tile's last row sees least of the window, and what reaches over the sinks' end is not theirs alone. */
    half->rows_differ = head->kind == HEAD_WINDOW && w->begin < t0 + 2 * LINE_BLOCK - head->n_window && w->begin + LINE_BLOCK > head->n_sink;
    half->seen[0] = w->seen[0] | (w->found & line_bits(t0 - w->begin));
    half->seen[1] = w->seen[1] | (w->found & line_bits(t1 - w->begin));
    line_walk_row(w);
    return true;
}

#endif
