/* attn_cuda.h - what the door (attn_gpu.c) and the CUDA kernels say to each other.  In: a launch, checked and planned.
 * Out: kernels enqueued on a stream.  Nothing here allocates or waits.  attn_cuda_none.c stands in where there is no nvcc. */
#ifndef TMX_ATTN_ATTN_CUDA_H
#define TMX_ATTN_ATTN_CUDA_H

#include "attn/cuda/gpu_schedule.h"
#include "pattern/key_lists.h"
#include "pattern/minference.h"

/* The narrow step of 48 keys holds the diagonal and 16 sinks of a tile of up to 32 positions; other tiles take 128. */
enum { SM90_TILE_ROWS = 128, SM90_SLOT_KEYS = 128, SM90_NARROW_KEYS = 48 };
enum { PORTABLE_TILE_ROWS = 64, PORTABLE_SLOT_KEYS = 64 };

typedef struct gpu_buffers {       /* of one sequence; shapes as in tmx_gpu_attention_seq */
    const void *q, *k, *v;
    void *out;
    float *lse;
    const int32_t *pages;
} gpu_buffers;

typedef struct gpu_launch {
    gpu_grid grid;
    int32_t n_seqs, n_tasks, n_partials, tile_rows;
    int32_t head_dim, page_shift;  /* page_shift -1: contiguous */
    bool is_f16;
    int32_t n_pages;               /* of the pool */
    float scale_log2;              /* scale * log2(e) */
    size_t q_pos_stride, q_head_stride, out_pos_stride, out_head_stride;
    size_t k_pos_stride, k_head_stride, k_page_stride, v_pos_stride, v_head_stride, v_page_stride;
    int32_t *next_task;            /* scratch: the counter that CTAs take tasks from */
    float *partial_max_sum;        /* scratch: [n_partials][tile_rows][2] */
    float *partial_o;              /* scratch: [n_partials][tile_rows][head_dim] */
    key_lists lists;               /* bits on the device: of sequence 0, in place of the pattern; NULL: none */
    const head_keys *heads;        /* device [n_heads]: the same by head (gpu_lines.h); NULL: none */
    uint64_t *n_pairs;             /* device: the visible pairs of heads are added; NULL: not counted */
    gpu_seq seqs[GPU_MAX_SEQS];
    gpu_buffers buffers[GPU_MAX_SEQS];
} gpu_launch;

typedef struct mass_launch {       /* XAttention's estimator; shapes as in tmx_gpu_attention_seq */
    const void *q, *k;
    size_t q_pos_stride, q_head_stride, k_pos_stride, k_head_stride;
    int32_t q_begin, n_q, n_heads, n_kv_heads, head_dim;
    bool is_f16;
    int32_t stride;
    float scale_log2;              /* of antidiagonal sums, * log2(e) */
    double threshold;
    key_lists lists;
    float *block_sums;             /* scratch: [n_heads][slab_groups][row_blocks] */
    int32_t slab_groups;           /* query groups at a time, a multiple of MASS_TILE_GROUPS */
    int32_t row_blocks;            /* key blocks, rounded up to whole tiles of any stride */
} mass_launch;

typedef struct probe_launch {      /* what a prompt's last rows attend to (attn_probe.cuh), of some heads at a time: H, which scratch has room for */
    const void *q, *k;
    size_t q_pos_stride, q_head_stride, k_pos_stride, k_head_stride;
    int32_t n, n_heads, n_kv_heads, head_dim;
    bool is_f16;
    float scale_log2;
    float *part_rows;              /* scratch: [H][parts][probe][2], largest score and sum; parts of PROBE_PART_BLOCKS blocks */
    float *rows;                   /* [H][probe][2] */
    float *by_key, *by_distance;   /* [H][nb][KEY_BLOCK] */
    float *spill;                  /* [H][parts][KEY_BLOCK], to be added to by_distance of the next part */
} probe_launch;

typedef struct flex_launch {       /* FlexPrefill's estimator of a whole prompt; nb = key_blocks_of(n) */
    probe_launch probe;
    bool keeps_all;                /* lists of everything, no scratch */
    double scale, gamma, tau;
    int32_t min_budget;
    key_lists lists;
    int32_t heads_at_once;         /* H */
    double *block_mass, *pooled;   /* scratch: [H][2][nb], [H][nb] */
    float *mean_k, *mean_q, *mean_probe;       /* [H][nb][head_dim] twice, [H][head_dim]; mean_k of the heads' KV heads */
    float *map;                    /* [H][nb (nb + 1) / 2] */
    int32_t *kinds, *budgets;      /* [H], [H][2] */
    uint32_t *kept;                /* [H][2][2 key_list_words(nb)] */
} flex_launch;

typedef struct lines_launch {      /* MInference's estimator of a whole prompt; nb = line_blocks_of(n) */
    probe_launch probe;
    const minference_head *chosen; /* host [n_heads] */
    head_keys *found;              /* device [n_heads] */
    uint64_t *room;                /* device: n_room_words for each head */
    size_t n_room_words;
    int32_t heads_at_once;         /* H: of vertical-slash heads */
    float *mean_q, *mean_k;        /* scratch, of one block-sparse head: [nb][head_dim] twice */
    float *map;                    /* [map_rows][nb] */
    int32_t map_rows;              /* a multiple of LINE_BLOCK: rows of blocks at a time */
} lines_launch;

/* Key blocks of a CTA that walks the probe; entries per block of budget; prompts whose map of tiles an int32 counts; heads of a grid. */
enum { PROBE_PART_BLOCKS = 8, FLEX_BUDGET_UNIT = 128, FLEX_MAX_BLOCKS = 1 << 15, FLEX_MAX_HEADS = 1 << 12 };
enum { MASS_TILE_GROUPS = 256, MASS_MAX_BLOCKS = 1 << 15 };    /* query groups of a tile; key blocks whose masses fit into a CTA */

#ifdef __cplusplus
extern "C" {
#endif

/* Compute capability (10 major + minor) and name of the current device; TMX_E_DEVICE without one, TMX_E_UNSUPPORTED in a
 * build without CUDA. */
tmx_status cuda_device_get(int32_t *capability, char *name, size_t size, tmx_error *err);

tmx_status cuda_run_sm90(const gpu_launch *launch, void *stream, tmx_error *err);
tmx_status cuda_run_portable(const gpu_launch *launch, void *stream, tmx_error *err);
tmx_status cuda_run_mass(const mass_launch *launch, void *stream, tmx_error *err);
tmx_status cuda_run_flexprefill(const flex_launch *launch, void *stream, tmx_error *err);
tmx_status cuda_run_minference(const lines_launch *launch, void *stream, tmx_error *err);
tmx_status cuda_add_pairs(const key_lists *lists, int32_t q_begin, int32_t q_end, uint64_t *n_pairs, void *stream, tmx_error *err);

#ifdef __cplusplus
}
#endif

#endif
