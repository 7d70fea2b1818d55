/* attn_kernel.h - what the door (attn.c) and the rungs agree on: one task, its scratch, a table of functions per rung.
 * In: parameters the door has checked.  Out: rows of out and lse.  Kernels check nothing and take no memory. */
#ifndef TMX_ATTN_ATTN_KERNEL_H
#define TMX_ATTN_ATTN_KERNEL_H

#include "attn/attn.h"
#include "base/mem.h"
#include "base/unroll.h"
#include "pattern/flexprefill.h"
#include "pattern/key_lines.h"
#include "pattern/key_lists.h"
#include "pattern/pattern.h"
#include "pattern/s2o.h"
#include "pattern/xattention.h"

enum {
    ATTN_MAX_GROUP = 64,           /* query heads per KV head */
    ATTN_MAX_DIM = 512,
    ATTN_MAX_ROWS = 256,           /* of a task: loading a key tile then costs below 2 % of using it */
    ATTN_MAX_BLOCK = 32,           /* rows a rung works on at once, at most */
    ATTN_TILE_K = 256,             /* keys brought into scratch at once; 128 is 3 % (head_dim 64) to 7 % (128) slower */
    ATTN_KEY_PAD = 8,              /* key rows behind a tile that a last, incomplete step may touch */
    ATTN_DIM_PAD = 32,             /* scratch has room for head_dim rounded up to this */
    ATTN_DECODE_KEYS = 512,        /* key range of one decode task */
};

typedef struct attn_kernel attn_kernel;

/* What all tasks of a call share. */
typedef struct attn_job {
    const attn_kernel *kernel;     /* of the rung and types of params */
    const tmx_attention_params *params;
    int32_t n_group;               /* query heads per KV head */
    float scale;                   /* never 0 */
    const key_lists *lists;        /* what rows see; NULL: params->pattern says it */
    const head_keys *heads;        /* [n_heads], the same by head; NULL: neither */
} attn_job;

/* Owns out and lse of positions [t_begin, t_end) for query heads [head_begin, head_begin + n_heads) of one KV head: the whole
 * group, or with lists or heads one head and one block of rows, so that all rows of a task have the same list. */
typedef struct attn_task {
    int32_t seq, kv_head, head_begin, n_heads, t_begin, t_end;
    const int32_t *rows;           /* [t_end - t_begin] positions instead, in any order, of one head; NULL: those named */
} attn_task;

/* A row tile of S2O.  attn_task.rows are its rows, all in the segment [begin, end). */
typedef struct attn_ranked_keys {
    const s2o *method;
    int32_t begin, end;
    const int32_t *keys;           /* [begin]: the history in the order of visits; NULL: ascending, all of it */
} attn_ranked_keys;

/* Byte offsets into a thread's scratch.  A cell is 32 bits: one f32, or a pair of bf16; B = rows of a block. */
typedef struct attn_layout {
    size_t q;                      /* [n_blocks][n_cells][B] cells */
    size_t o;                      /* [n_blocks][d_pad][B] f32, unnormalised */
    size_t k;                      /* [TILE_K + KEY_PAD][n_cells] cells */
    size_t v;                      /* [TILE_K / values per cell][d_pad] cells, or as a rung places them */
    size_t s;                      /* [TILE_K + KEY_PAD][B] f32 scores, then weights in place; also staging for rows */
    size_t max, sum;               /* [n_blocks * B] f32 */
    size_t tile_sum;               /* the same, of the last tile alone */
    size_t q_pos, window_begin, last_key;  /* [n_blocks * B] int32 */
    size_t keys;                   /* [TILE_K] int32 */
    size_t n_bytes;
} attn_layout;

static inline size_t attn_d_pad(int32_t head_dim) { return align_up((size_t)head_dim, ATTN_DIM_PAD); }

static inline attn_layout attn_layout_of(int32_t head_dim)
{
    enum { WORD = 4, SCORES = (ATTN_TILE_K + ATTN_KEY_PAD) * ATTN_MAX_BLOCK, STAGE = ATTN_MAX_BLOCK };
    const size_t d_pad = attn_d_pad(head_dim), rows = ATTN_MAX_ROWS;
    const size_t stage = STAGE * d_pad;
    attn_layout at;
    at.q = 0;
    at.o = at.q + rows * d_pad * WORD;
    at.k = at.o + rows * d_pad * WORD;
    at.v = at.k + align_up((ATTN_TILE_K + ATTN_KEY_PAD) * d_pad * WORD, MEM_ALIGN);
    at.s = at.v + ATTN_TILE_K * d_pad * WORD;
    at.max = at.s + (stage > SCORES ? stage : SCORES) * WORD;
    at.sum = at.max + rows * WORD;
    at.tile_sum = at.sum + rows * WORD;
    at.q_pos = at.tile_sum + rows * WORD;
    at.window_begin = at.q_pos + rows * WORD;
    at.last_key = at.window_begin + rows * WORD;
    at.keys = at.last_key + rows * WORD;
    at.n_bytes = at.keys + ATTN_TILE_K * WORD;
    return at;
}

/* One range of keys for one decoding row of every head of a group. */
typedef struct attn_decode_part {
    const float *q;                /* [n_group][d_stride] f32, zero beyond head_dim */
    const void *k, *v;             /* first key of the range, kv_type */
    size_t k_stride, v_stride;     /* elements from key to key */
    tmx_type kv_type;
    int32_t n_keys, n_group, head_dim;
    size_t d_stride;               /* head_dim rounded up to 16 */
    float scale;
    float *max, *sum;              /* [n_group]: raw maximum, sum of 2^(scale log2(e) (s - max)) */
    float *o;                      /* [n_group][d_stride], unnormalised */
    float *weights;                /* scratch [n_group][ATTN_DECODE_KEYS] */
    float *rows;                   /* scratch [ATTN_DECODE_STEP][d_stride] */
} attn_decode_part;

enum { ATTN_DECODE_STEP = 16 };    /* keys converted to f32 at once */

/* 2^f = 1 + C1 f + ... + C5 f^5 on [-1/2, 1/2], relative error 1.1e-7 (minimax with value 1 at 0). */
#define EXP2_C1 0x1.62e42ap-1f
#define EXP2_C2 0x1.ebf9bcp-3f
#define EXP2_C3 0x1.c6b752p-5f
#define EXP2_C4 0x1.3cea88p-7f
#define EXP2_C5 0x1.5bba14p-10f

/* XAttention's masses of one query block for the heads of one KV head. */
typedef struct attn_mass_task {
    int32_t kv_head, q_block;
    int32_t stride;
    float scale;                   /* of Z, in natural logarithms */
} attn_mass_task;

/* Byte offsets into a thread's scratch of the estimator; n_blocks = key blocks of the longest sequence. */
typedef struct attn_mass_layout {
    size_t q;                      /* [stride * n_cells][B] cells */
    size_t stage;                  /* [B][n_cells] cells */
    size_t k;                      /* [KEY_BLOCK][n_cells] cells */
    size_t s;                      /* [KEY_BLOCK / stride][B] f32 */
    size_t max, sum;               /* [n_blocks][B] f32: a group's largest score in a block; sum of its weights there */
    size_t mass;                   /* [n_group][n_blocks] f64: the result */
    size_t order;                  /* [n_blocks] int32, for the selection */
    size_t n_bytes;
} attn_mass_layout;

static inline attn_mass_layout attn_mass_layout_of(int32_t head_dim, int32_t n_group, int32_t n_blocks)
{
    enum { WORD = 4, LANES_MOST = ATTN_MAX_BLOCK, GROUPS_MOST = KEY_BLOCK / 4 };
    const size_t d_pad = attn_d_pad(head_dim), n = (size_t)n_blocks;
    attn_mass_layout at;
    at.q = 0;
    at.stage = at.q + XATTENTION_MAX_STRIDE * LANES_MOST * d_pad * WORD;
    at.k = at.stage + LANES_MOST * d_pad * WORD;
    at.s = at.k + KEY_BLOCK * d_pad * WORD;
    at.max = at.s + GROUPS_MOST * LANES_MOST * WORD;
    at.sum = at.max + n * LANES_MOST * WORD;
    at.mass = at.sum + n * LANES_MOST * WORD;
    at.order = at.mass + (size_t)n_group * n * sizeof(double);
    at.n_bytes = align_up(at.order + n * WORD, MEM_ALIGN);
    return at;
}

/* The same for FlexPrefill; n = prompt, nb = its blocks. */
typedef struct attn_tail_layout {
    size_t q, stage, k, s;         /* [n_cells][B], [B][n_cells], [KEY_BLOCK][n_cells] cells; [KEY_BLOCK][B] f32 */
    size_t by_key, by_distance;    /* [n] f64: the result of tail_mass */
    size_t block_mass, pooled;     /* [2 nb], [nb] f64 */
    size_t mean_q, mean_k;         /* [nb][head_dim] f64 */
    size_t map;                    /* [nb (nb + 1) / 2] f64 */
    size_t order;                  /* int32, as many as the larger of n and the map */
    size_t n_bytes;
} attn_tail_layout;

static inline attn_tail_layout attn_tail_layout_of(int32_t head_dim, int32_t n)
{
    enum { WORD = 4, LANES_MOST = ATTN_MAX_BLOCK };
    const size_t d_pad = attn_d_pad(head_dim), nb = (size_t)key_blocks_of(n), n_map = nb * (nb + 1) / 2;
    attn_tail_layout at;
    at.q = 0;
    at.stage = at.q + LANES_MOST * d_pad * WORD;
    at.k = at.stage + LANES_MOST * d_pad * WORD;
    at.s = at.k + KEY_BLOCK * d_pad * WORD;
    at.by_key = at.s + KEY_BLOCK * LANES_MOST * WORD;
    at.by_distance = at.by_key + (size_t)n * sizeof(double);
    at.block_mass = at.by_distance + (size_t)n * sizeof(double);
    at.pooled = at.block_mass + 2 * nb * sizeof(double);
    at.mean_q = at.pooled + nb * sizeof(double);
    at.mean_k = at.mean_q + nb * (size_t)head_dim * sizeof(double);
    at.map = at.mean_k + nb * (size_t)head_dim * sizeof(double);
    at.order = at.map + n_map * sizeof(double);
    at.n_bytes = align_up(at.order + (n_map > (size_t)n ? n_map : (size_t)n) * WORD, MEM_ALIGN);
    return at;
}

struct attn_kernel {
    void (*run)(const attn_job *job, const attn_task *task, void *scratch);
    /* S2O: returns how many keys of the history the rows of the task saw. */
    int32_t (*run_ranked)(const attn_job *job, const attn_task *task, const attn_ranked_keys *ranked, void *scratch);
    void (*block_mass)(const attn_job *job, const attn_mass_task *task, const attn_mass_layout *at, void *scratch);
    /* by_key and by_distance of flexprefill.h for one query head: the last n_probe rows, a multiple of ATTN_MAX_BLOCK, look at all keys. */
    void (*tail_mass)(const attn_job *job, int32_t head, int32_t n_probe, const attn_tail_layout *at, void *scratch);
    void (*decode)(const attn_decode_part *part);
};

extern const attn_kernel attn_kernel_f32_scalar, attn_kernel_f32_avx2, attn_kernel_f32_avx512;
extern const attn_kernel attn_kernel_bf16_avx512bf16, attn_kernel_bf16_amx;      /* q and kv both bf16; no decode */

/* For params the door has checked. */
attn_job attn_job_of(const tmx_attention_params *p);

/* The one place that maps (rung, types) to a kernel. isa as in params. */
const attn_kernel *attn_kernel_get(tmx_isa isa, tmx_type q_type, tmx_type kv_type);
const attn_kernel *attn_decode_kernel_get(tmx_isa isa);

static inline size_t attn_element_bytes(tmx_type type) { return type == TMX_TYPE_BF16 ? 2 : 4; }

#endif
