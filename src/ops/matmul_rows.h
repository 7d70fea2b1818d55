/* matmul_rows.h - the rows of a block, TILE_ROWS at a time and the rest at once: included by each rung's file after its
 * TILE_ROWS and its tile(), which the compiler needs to see with a constant number of rows. */
#ifndef TMX_OPS_MATMUL_ROWS_H
#define TMX_OPS_MATMUL_ROWS_H

static_assert(TILE_ROWS == 6, "the switch below has a case for each smaller number of rows");

static void run(const matmul_block *b)
{
    int32_t row = 0;
    for (; row + TILE_ROWS <= b->n_rows; row += TILE_ROWS) tile(b, row, TILE_ROWS);
    switch (b->n_rows - row) {
    case 5: tile(b, row, 5); break;
    case 4: tile(b, row, 4); break;
    case 3: tile(b, row, 3); break;
    case 2: tile(b, row, 2); break;
    case 1: tile(b, row, 1); break;
    default: break;
    }
}

#endif
