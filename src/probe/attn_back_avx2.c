/* attn_back_avx2.c - 8 lanes.  dots: 8 sums + 2 rows + 1 broadcast = 11 of 16 ymm; update: the same. */
#include "attn/attn_vec_avx2.h"

enum { ROW_VECS = 2, KEY_STEP = 4, M_STEP = 4, D_VECS = 2 };

#include "probe/attn_back_tile.h"

void attn_back_avx2(const attn_back_strip *strip) { run_strip(strip); }
