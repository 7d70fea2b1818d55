#include "pattern/minference.h"

#include "base/num.h"
#include "base/status.h"
#include "pattern/heaviest.h"

#include <math.h>
#include <string.h>

const char *const minference_type_names[] = { "vertical_and_slash", "stream_llm", "block_sparse", NULL };

static tmx_status check_size(const char *name, const char *field, int32_t size, int32_t least, tmx_error *err)
{
    if (size >= least && size <= MINFERENCE_MAX_SIZE) return TMX_OK;
    return refuse(err, TMX_E_ARG, "%s %s: %d, expected %d..%d", name, field, size, least, MINFERENCE_MAX_SIZE);
}

tmx_status minference_check(const minference *m, tmx_error *err)
{
    TRY(check_size("minference", "vertical", m->vertical, 0, err));
    return check_size("minference", "slash", m->slash, 0, err);
}

tmx_status minference_head_check(const minference_head *head, const char *name, tmx_error *err)
{
    const bool is_window = head->type == MINFERENCE_A_SHAPE;
    TRY(check_size(name, is_window ? "sink size" : "first size", head->a, 0, err));
    return check_size(name, is_window ? "window size" : "second size", head->b, is_window ? 1 : 0, err);
}

static int32_t columns_of(const minference_head *head, int32_t n) { return min_i32(n, max_i32(head->a, MINFERENCE_LEAST_COLUMNS)); }
static int32_t distances_of(const minference_head *head, int32_t n) { return min_i32(n, max_i32(head->b, MINFERENCE_LEAST_DISTANCES)); }

int32_t minference_dense_tokens(const minference_head *head)
{
    switch (head->type) {
    case MINFERENCE_VERTICAL_SLASH: return max_i32(max_i32(head->a, MINFERENCE_LEAST_COLUMNS), max_i32(head->b, MINFERENCE_LEAST_DISTANCES));
    case MINFERENCE_A_SHAPE: return max_i32(head->a, head->b);
    case MINFERENCE_BLOCK_SPARSE: return MINFERENCE_BLOCKS * LINE_BLOCK;
    }
    return 0;
}

bool minference_is_known(const minference_head *head, int32_t n, head_keys *keys)
{
    *keys = (head_keys){ .kind = HEAD_DENSE, .n = n };
    switch (head->type) {
    case MINFERENCE_A_SHAPE:
        keys->kind = HEAD_WINDOW;
        keys->n_sink = head->a;
        keys->n_window = head->b;
        return true;
    case MINFERENCE_VERTICAL_SLASH:
    case MINFERENCE_BLOCK_SPARSE: return n <= minference_dense_tokens(head);
    }
    return true;
}

size_t minference_room_bytes(int32_t n)
{
    const size_t n_blocks = (size_t)line_blocks_of(n), n_bits = n_blocks * (n_blocks / 64 + 1) * sizeof(uint64_t);
    const size_t n_lines = (size_t)n * sizeof(uint64_t);       /* two int32 for each token */
    return n_lines > n_bits ? n_lines : n_bits;
}

head_keys minference_shape(const minference_head *head, int32_t n, uint64_t *room)
{
    if (head->type == MINFERENCE_BLOCK_SPARSE) return (head_keys){ .kind = HEAD_BLOCKS, .n = n, .n_words = line_blocks_of(n) / 64 + 1, .blocks = room };
    const int32_t *columns = (const int32_t *)(const void *)room, n_columns = columns_of(head, n);
    return (head_keys){ .kind = HEAD_LINES, .n = n, .n_columns = n_columns, .n_distances = distances_of(head, n), .columns = columns,
                        .distances = columns + n_columns };
}

/* Marks the n_kept heaviest of x, of which the first n_first go before all others. */
static void mark_heaviest(double *x, int32_t n, int32_t n_first, int32_t n_kept, int32_t *order, uint64_t *marks)
{
    for (int32_t i = 0; i < min_i32(n, n_first); i++) x[i] = INFINITY;
    memset(marks, 0, ((size_t)n / 64 + 1) * sizeof *marks);
    heaviest left = heaviest_of(x, 0, n, order);
    for (int32_t i = 0; i < n_kept; i++) {
        const int32_t at = heaviest_next(&left);
        marks[at / 64] |= (uint64_t)1 << at % 64;
    }
}

static bool are_numbers(const double *x, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += x[i];
    return isfinite(sum);
}

head_keys minference_select_lines(const minference_head *head, int32_t n, double *by_key, double *by_distance, int32_t *order,
                                  uint64_t *marks, uint64_t *room)
{
    const head_keys keys = minference_shape(head, n, room);
    if (!are_numbers(by_key, n) || !are_numbers(by_distance, n)) return (head_keys){ .kind = HEAD_DENSE, .n = n };
    int32_t *columns = (int32_t *)(void *)room, *distances = columns + keys.n_columns;
    mark_heaviest(by_key, n, MINFERENCE_LEAST_COLUMNS, keys.n_columns, order, marks);
    for (int32_t i = 0; i < n; i++) {
        if (marks[i / 64] >> i % 64 & 1) *columns++ = i;
    }
    mark_heaviest(by_distance, n, MINFERENCE_NEAR_DISTANCES, keys.n_distances, order, marks);
    for (int32_t i = n - 1; i >= 0; i--) {
        if (marks[i / 64] >> i % 64 & 1) *distances++ = i;
    }
    return keys;
}

int32_t minference_padded_blocks(int32_t n) { return n / LINE_BLOCK + 1; }

head_keys minference_blocks_on(uint64_t *room, int32_t n)
{
    const minference_head head = { .type = MINFERENCE_BLOCK_SPARSE };
    const head_keys keys = minference_shape(&head, n, room);
    memset(room, 0, (size_t)line_blocks_of(n) * (size_t)keys.n_words * sizeof *room);
    return keys;
}

void minference_select_blocks(head_keys *keys, uint64_t *room, int32_t m, double *scores, int32_t *order)
{
    uint64_t *row = room + (size_t)m * (size_t)keys->n_words;
    const int32_t n_kept = min_i32(m + 1, min_i32(MINFERENCE_BLOCKS, minference_padded_blocks(keys->n)));
    if (!are_numbers(scores, m + 1)) keys->kind = HEAD_DENSE;
    if (keys->kind == HEAD_DENSE) return;
    scores[m] = INFINITY;
    heaviest left = heaviest_of(scores, 0, m + 1, order);
    for (int32_t i = 0; i < n_kept; i++) {
        const int32_t at = heaviest_next(&left);
        row[at / 64] |= (uint64_t)1 << at % 64;
    }
}
