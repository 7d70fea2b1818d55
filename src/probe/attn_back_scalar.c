/* attn_back_scalar.c - the rung of every CPU. */
#include "attn/attn_vec_scalar.h"

enum { ROW_VECS = 2, KEY_STEP = 4, M_STEP = 4, D_VECS = 2 };

#include "probe/attn_back_tile.h"

void attn_back_scalar(const attn_back_strip *strip) { run_strip(strip); }
