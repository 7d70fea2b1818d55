#include "pattern/flexprefill.h"

#include "base/num.h"
#include "base/status.h"
#include "pattern/heaviest.h"

#include <assert.h>
#include <math.h>

enum { BUDGET_UNIT = 128 };        /* entries of by_key or by_distance per block of budget */

tmx_status flexprefill_check(const flexprefill *f, tmx_error *err)
{
    if (!(f->gamma > 0 && f->gamma <= 1)) {
        return refuse(err, TMX_E_ARG, "flexprefill gamma: %g, expected more than 0, up to 1", f->gamma);
    }
    if (!(f->tau >= 0 && f->tau <= 1)) return refuse(err, TMX_E_ARG, "flexprefill tau: %g, expected 0..1", f->tau);
    if (f->min_budget < 1 || f->min_budget > 1 << 24) {
        return refuse(err, TMX_E_ARG, "flexprefill min_budget: %d, expected 1..%d tokens", f->min_budget, 1 << 24);
    }
    return TMX_OK;
}

int32_t flexprefill_dense_tokens(const flexprefill *f)
{
    return max_i32(2 * KEY_BLOCK, key_blocks_of(f->min_budget) * KEY_BLOCK);
}

int32_t flexprefill_coverage(const double *x, int32_t n, double gamma, int32_t *order)
{
    heaviest left = heaviest_of(x, 0, n, order);
    double sum = 0;
    for (int32_t n_covered = 0; n_covered < n; n_covered++) {
        sum += x[heaviest_next(&left)];
        if (sum > gamma) return n_covered + 1;
    }
    return n + 1;
}

static int32_t end_block(const key_lists *lists) { return lists->first_block + lists->n_blocks; }

void flexprefill_keep_column(key_lists *lists, int32_t head, int32_t k_block)
{
    for (int32_t row = max_i32(k_block, lists->first_block); row < end_block(lists); row++) key_list_add(key_list_of(lists, head, row), k_block);
}

void flexprefill_keep_diagonal(key_lists *lists, int32_t head, int32_t offset)
{
    for (int32_t row = max_i32(offset, lists->first_block); row < end_block(lists); row++) key_list_add(key_list_of(lists, head, row), row - offset);
}

static double sum_of(const double *x, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

static void sum_blocks(const double *x, int32_t n, double *block)
{
    for (int32_t b = 0; b < key_blocks_of(n); b++) block[b] = sum_of(x + b * KEY_BLOCK, min_i32(KEY_BLOCK, n - b * KEY_BLOCK));
}

/* Square root of the Jensen-Shannon divergence, in nats.  An entry that is 0 as an f32 makes the authors' distance NaN, and
 * their head vertical-slash: so it is here. */
static bool is_nearer(const double *a, const double *b, int32_t n, double tau)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        if ((float)a[i] == 0.0f || (float)b[i] == 0.0f) return false;
        const double mean = (a[i] + b[i]) / 2;
        sum += 0.5 * a[i] * log(a[i] / mean) + 0.5 * b[i] * log(b[i] / mean);
    }
    return sqrt(fmax(sum, 0)) < tau;
}

/* The forced block, then the heaviest of the others until there are `budget`. */
static void keep_heaviest(key_lists *lists, int32_t head, double *block, int32_t budget, bool is_diagonal, int32_t *order)
{
    const int32_t nb = end_block(lists);
    block[0] = INFINITY;
    heaviest left = heaviest_of(block, 0, nb, order);
    for (int32_t i = 0; i < budget; i++) {
        const int32_t b = heaviest_next(&left);
        if (is_diagonal) flexprefill_keep_diagonal(lists, head, b);
        else flexprefill_keep_column(lists, head, b);
    }
}

bool flexprefill_select(const flexprefill *f, const flex_head *at, key_lists *lists, int32_t head, double *block_mass, int32_t *order)
{
    const int32_t nb = end_block(lists), least = min_i32(nb, key_blocks_of(f->min_budget));
    double *columns = block_mass, *diagonals = block_mass + nb;
    assert(nb == key_blocks_of(at->n));
    const double whole = sum_of(at->by_key, at->n) + sum_of(at->by_distance, at->n) + sum_of(at->pooled, nb);
    if (f->gamma >= 1 || !isfinite(whole)) {
        for (int32_t b = 0; b < nb; b++) flexprefill_keep_column(lists, head, b);
        return false;
    }
    sum_blocks(at->by_key, at->n, columns);
    sum_blocks(at->by_distance, at->n, diagonals);
    for (int32_t b = 0; b < nb / 2; b++) {             /* bins to offsets: the nearest diagonal first */
        const double swap = diagonals[b];
        diagonals[b] = diagonals[nb - 1 - b];
        diagonals[nb - 1 - b] = swap;
    }
    const bool is_query_aware = is_nearer(at->pooled, columns, nb, f->tau);
    int32_t n_columns = least, n_diagonals = least;
    if (!is_query_aware) {
        n_columns = flexprefill_coverage(at->by_key, at->n, f->gamma, order) / BUDGET_UNIT + 1;
        n_diagonals = flexprefill_coverage(at->by_distance, at->n, f->gamma, order) / BUDGET_UNIT + 1;
    }
    keep_heaviest(lists, head, columns, min_i32(nb, max_i32(least, n_columns)), false, order);
    keep_heaviest(lists, head, diagonals, min_i32(nb, max_i32(least, n_diagonals)), true, order);
    return is_query_aware;
}

void flexprefill_select_tiles(const flexprefill *f, const double *map, key_lists *lists, int32_t head, int32_t *order)
{
    const int32_t nb = end_block(lists), first_tile = flexprefill_map_row(lists->first_block), n_tiles = flexprefill_map_row(nb) - first_tile;
    heaviest left = heaviest_of(map, 0, n_tiles, order);
    double sum = 0;
    for (int32_t i = 0; i < n_tiles; i++) {
        const int32_t at = heaviest_next(&left), tile = first_tile + at;
        sum += map[at];
        if (sum > f->gamma * lists->n_blocks) return;
        int32_t row = (int32_t)((sqrt(8.0 * tile + 1) - 1) / 2);       /* of the map, up to rounding */
        while (flexprefill_map_row(row) > tile) row--;
        while (flexprefill_map_row(row + 1) <= tile) row++;
        key_list_add(key_list_of(lists, head, row), tile - flexprefill_map_row(row));
    }
}
