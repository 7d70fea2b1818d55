/* attn_back_avx512.c - 16 lanes.  dots: 16 sums + 2 rows + 1 broadcast = 19 of 32 zmm; update: 16 + 4 + 1 = 21. */
#include "attn/attn_vec_avx512.h"

enum { ROW_VECS = 2, KEY_STEP = 8, M_STEP = 4, D_VECS = 4 };

#include "probe/attn_back_tile.h"

void attn_back_avx512(const attn_back_strip *strip) { run_strip(strip); }
