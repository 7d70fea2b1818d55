/* minference.h - MInference (arXiv 2407.02490, as the authors' code has it): what a head keeps, by the type and the budget it is
 * configured with.  In: what the last MINFERENCE_PROBE rows attend to, or scores of means of blocks.  Out: head_keys.  Never sees Q
 * or K itself: attn/ measures.
 *
 * N = prompt, P = attention probabilities of the probe rows.
 *   vertical-slash (a, b)   v[j] = sum over the probe rows of P[r][j], s[D] = the same along the distance D.  Kept are the
 *                           min(N, max(a, 30)) heaviest columns, columns 0..29 first, and the min(N, max(b, 50)) heaviest
 *                           distances, 0..99 first.  Ties: the earlier column, the nearer distance.
 *   A-shape (a, b)          a sink keys and a window of b keys, the token itself counted
 *   block-sparse            blocks of LINE_BLOCK rows and keys: of the products of the means of Q and of K the
 *                           MINFERENCE_BLOCKS largest in every row of blocks (ties: the earlier one), and the own block always */
#ifndef TMX_PATTERN_MINFERENCE_H
#define TMX_PATTERN_MINFERENCE_H

#include "pattern/key_lines.h"
#include "tmx.h"

enum {
    MINFERENCE_PROBE = 64,
    MINFERENCE_BLOCKS = 100,
    MINFERENCE_LEAST_COLUMNS = 30, /* also how many of the first are kept always */
    MINFERENCE_LEAST_DISTANCES = 50, MINFERENCE_NEAR_DISTANCES = 100,
    MINFERENCE_MAX_SIZE = 1 << 24,
};

typedef enum minference_type {
    MINFERENCE_VERTICAL_SLASH, MINFERENCE_A_SHAPE, MINFERENCE_BLOCK_SPARSE,
} minference_type;

typedef struct minference_head {
    minference_type type;
    int32_t a, b;                  /* columns and distances; sink and window; of block-sparse, not read */
} minference_head;

/* Of heads that no configuration names. */
typedef struct minference {
    int32_t vertical, slash;
} minference;

#define MINFERENCE_DEFAULTS { .vertical = 1000, .slash = 6096 }

tmx_status minference_check(const minference *m, tmx_error *err);
/* `name` begins the message: "minference heads[3].7". */
tmx_status minference_head_check(const minference_head *head, const char *name, tmx_error *err);

/* "vertical_and_slash", "stream_llm", "block_sparse": as configuration files have them; NULL-terminated. */
extern const char *const minference_type_names[];

/* What a head keeps that need not be looked at: A-shape, and budgets that hold the whole prompt. */
bool minference_is_known(const minference_head *head, int32_t n, head_keys *keys);

/* Prompts up to this long are seen whole. */
int32_t minference_dense_tokens(const minference_head *head);

/* Bytes behind head_keys of a prompt of n tokens, in multiples of 8. */
size_t minference_room_bytes(int32_t n);
/* What a head that must be looked at keeps, on room that nothing is written to yet: how many columns and distances, where they and
 * blocks go. */
head_keys minference_shape(const minference_head *head, int32_t n, uint64_t *room);
/* by_key[j], by_distance[D], [n], are changed; order: scratch, int32 [n]; marks: scratch [n / 64 + 1]; room: minference_room_bytes.
 * Numbers that are none keep everything. */
head_keys minference_select_lines(const minference_head *head, int32_t n, double *by_key, double *by_distance, int32_t *order,
                                  uint64_t *marks, uint64_t *room);

/* Blocks of rows: empty ones on room, then each filled from its scores[m + 1]; order: scratch, int32 [m + 1]. */
head_keys minference_blocks_on(uint64_t *room, int32_t n);
void minference_select_blocks(head_keys *keys, uint64_t *room, int32_t m, double *scores, int32_t *order);
/* Blocks of a prompt padded by LINE_BLOCK - n % LINE_BLOCK rows, as the authors pad it; the most that top-k can take. */
int32_t minference_padded_blocks(int32_t n);

#endif
