#include "pattern/xattention.h"

#include "base/status.h"
#include "pattern/heaviest.h"
#include "pattern/key_lists.h"

#include <math.h>

tmx_status xattention_check(const xattention *x, tmx_error *err)
{
    if (x->stride != 4 && x->stride != 8 && x->stride != 16) {
        return refuse(err, TMX_E_ARG, "xattention stride: %d, expected 4, 8 or 16", x->stride);
    }
    if (!(x->threshold > 0 && x->threshold <= 1)) {
        return refuse(err, TMX_E_ARG, "xattention threshold: %g, expected more than 0, up to 1", x->threshold);
    }
    if (!(x->norm >= 1e-3 && x->norm <= 1e3)) {
        return refuse(err, TMX_E_ARG, "xattention norm: %g, expected 0.001..1000", x->norm);
    }
    return TMX_OK;
}

void xattention_select(const double *mass, int32_t a, double threshold, uint64_t *list, int32_t *order)
{
    double whole = 0;
    for (int32_t b = 0; b <= a; b++) whole += mass[b];
    key_list_add(list, 0);
    key_list_add(list, a);
    if (threshold >= 1 || !isfinite(whole)) {
        for (int32_t b = 1; b < a; b++) key_list_add(list, b);
        return;
    }
    double kept = a > 0 ? mass[0] + mass[a] : mass[0];
    heaviest others = heaviest_of(mass, 1, a, order);
    while (kept < threshold * whole) {
        const int32_t b = heaviest_next(&others);
        if (b < 0) break;
        key_list_add(list, b);
        kept += mass[b];
    }
}
