/* attn_mass_tile.h - the bodies of the estimators, in the vocabulary of attn_tile.h: score_step serves all.
 *
 * XAttention (pattern/xattention.h has the formula).
 *
 *   Z[m][n] = sum over t of Q[m S + S - 1 - t] . K[n S + t]      one dot product of S * head_dim numbers
 *
 * A group of S rows of K is S rows as they lie; a group of Q is S rows in descending order.  Lanes are query groups: those of
 * all heads that share a KV head, head by head, BLOCK at a time.  A task owns one query block a of one KV head; for each BLOCK:
 *   load    Q groups                                                once
 *   for each key block b <= a
 *     load  K [KEY_BLOCK][n_cells], zero behind the end
 *     score Z [KEY_BLOCK / S][BLOCK], the groups behind a lane's own hidden in block a
 *     sum   max[b], sum[b] = sum of 2^(c (Z - max[b]))               so that no row of Z is ever kept
 *   finish  p of block b = 2^(c (max[b] - max)) sum[b] / total, added to the mass of the lane's head in f64
 * Floor: head_dim / (2 S) multiply-adds for each causal pair, where attention has 2 * head_dim: 1/(2 S) of it at best, where
 * the groups of all heads fill a BLOCK.
 *
 * The probe of FlexPrefill and MInference: probabilities of the last n_probe rows of one head, summed by key and by
 * distance.  Lanes are rows; each BLOCK of them walks the keys twice, for maximum and sum and then for the probabilities, since
 * keeping the scores would take more memory than the scores take time.  Floor: 2 n_probe N head_dim multiply-adds a head.
 *
 * Sums run upwards over key blocks and over lanes: no bit depends on threads or chunks. */
#ifndef TMX_ATTN_ATTN_MASS_TILE_H
#define TMX_ATTN_ATTN_MASS_TILE_H

static_assert(KEY_BLOCK / XATTENTION_MAX_STRIDE % KEY_STEP == 0, "whole steps");

typedef struct mass_state {
    const tmx_attention_params *params;
    const attn_mass_task *task;
    int32_t n_group, n_groups;     /* heads; groups of rows in a block */
    int32_t begin, end;            /* rows of the query block that exist */
    size_t n_cells, wide;          /* of a row, of a group */
    float scale_log2;
    cell *q, *stage, *k;
    float *s, *max, *sum;
} mass_state;

/* Lanes beyond the last group repeat it; they are never read. */
static int32_t lane_group(const mass_state *st, int32_t block, int32_t lane)
{
    return min_i32(block * BLOCK + lane, st->n_group * st->n_groups - 1);
}

static void load_groups(const mass_state *st, int32_t block)
{
    const tmx_attention_params *p = st->params;
    const tmx_attention_seq *seq = p->seqs;
    const int32_t stride = st->task->stride;
    for (int32_t t = 0; t < stride; t++) {
        for (int32_t lane = 0; lane < BLOCK; lane++) {
            const int32_t group = lane_group(st, block, lane), head = st->task->kv_head * st->n_group + group / st->n_groups;
            const int32_t q_pos = st->begin + (group % st->n_groups + 1) * stride - 1 - t;
            cell *to = st->stage + (size_t)lane * st->n_cells;
            if (q_pos >= st->end) {
                memset(to, 0, st->n_cells * sizeof *to);
                continue;
            }
            const size_t at = (size_t)(q_pos - seq->q_begin) * p->q_pos_stride + (size_t)head * p->q_head_stride;
            load_row(to, (const char *)seq->q + at * attn_element_bytes(p->q_type), p->q_type, p->head_dim);
        }
        cell *q = st->q + (size_t)t * st->n_cells * BLOCK;
        for (size_t c = 0; c < st->n_cells; c++) {
            for (size_t i = 0; i < BLOCK; i++) q[c * BLOCK + i] = st->stage[i * st->n_cells + c];
        }
    }
}

/* Keys of one block to rows of `to`, zero from position `end` on. */
static void load_keys(const tmx_attention_params *p, int32_t kv_head, int32_t k_block, int32_t end, cell *to, size_t n_cells)
{
    const size_t n_bytes = attn_element_bytes(p->kv_type);
    const char *k = (const char *)p->seqs->k + (size_t)kv_head * p->k_head_stride * n_bytes;
    const int32_t begin = k_block * KEY_BLOCK, n = min_i32(KEY_BLOCK, end - begin);
    for (int32_t i = 0; i < n; i++) {
        load_row(to + (size_t)i * n_cells, k + (size_t)(begin + i) * p->k_pos_stride * n_bytes, p->kv_type, p->head_dim);
    }
    memset(to + (size_t)n * n_cells, 0, (size_t)(KEY_BLOCK - n) * n_cells * sizeof *to);
}

/* Largest score and sum of weights of each lane in one key block; last_group: what a lane sees of it, NULL for all. */
static void sum_block(const mass_state *st, const int32_t *last_group, float *max_out, float *sum_out)
{
    const vf c = vf_set1(st->scale_log2);
    vf max[ROW_VECS], sum[ROW_VECS];
    UNROLL for (int r = 0; r < ROW_VECS; r++) {
        max[r] = vf_set1(-FLT_MAX);
        sum[r] = vf_zero();
    }
    for (int32_t n = 0; n < st->n_groups; n += KEY_STEP) {
        vf s[KEY_STEP][ROW_VECS];
        score_step(st->q, st->k + (size_t)n * st->wide, st->wide, s);
        UNROLL for (int j = 0; j < KEY_STEP; j++) {
            UNROLL for (int r = 0; r < ROW_VECS; r++) {
                if (last_group != NULL) s[j][r] = vf_hide(s[j][r], n + j, vi_set1(0), vi_load(last_group + r * LANES));
                max[r] = vf_max(s[j][r], max[r]);
                vf_store(st->s + (n + j) * BLOCK + r * LANES, s[j][r]);
            }
        }
    }
    for (int32_t n = 0; n < st->n_groups; n++) {
        UNROLL for (int r = 0; r < ROW_VECS; r++) {
            const vf s = vf_load(st->s + n * BLOCK + r * LANES);
            sum[r] = vf_add(sum[r], vf_exp2(vf_mul(vf_sub(s, max[r]), c)));
        }
    }
    UNROLL for (int r = 0; r < ROW_VECS; r++) {
        vf_store(max_out + r * LANES, max[r]);
        vf_store(sum_out + r * LANES, sum[r]);
    }
}

/* Sums of the blocks, each relative to its own maximum, become sums relative to the lane's maximum; total of each lane. */
static void rescale_blocks(const mass_state *st, double total[BLOCK])
{
    const int32_t n_blocks = st->task->q_block + 1;
    const vf c = vf_set1(st->scale_log2);
    vf max[ROW_VECS];
    UNROLL for (int r = 0; r < ROW_VECS; r++) max[r] = vf_load(st->max + r * LANES);
    for (int32_t b = 1; b < n_blocks; b++) {
        UNROLL for (int r = 0; r < ROW_VECS; r++) max[r] = vf_max(vf_load(st->max + b * BLOCK + r * LANES), max[r]);
    }
    for (size_t i = 0; i < BLOCK; i++) total[i] = 0;
    for (int32_t b = 0; b < n_blocks; b++) {
        float *sum = st->sum + b * BLOCK;
        UNROLL for (int r = 0; r < ROW_VECS; r++) {
            const vf old = vf_load(st->max + b * BLOCK + r * LANES);
            vf_store(sum + r * LANES, vf_mul(vf_load(sum + r * LANES), vf_exp2(vf_mul(vf_sub(old, max[r]), c))));
        }
        for (size_t i = 0; i < BLOCK; i++) total[i] += (double)sum[i];
    }
}

static void block_mass(const attn_job *job, const attn_mass_task *task, const attn_mass_layout *at, void *scratch)
{
    const tmx_attention_seq *seq = job->params->seqs;
    char *base = scratch;
    mass_state st = {
        .params = job->params, .task = task, .n_group = job->n_group, .n_groups = KEY_BLOCK / task->stride,
        .begin = task->q_block * KEY_BLOCK,
        .n_cells = ((size_t)job->params->head_dim + CELL - 1) / CELL, .scale_log2 = task->scale * (float)M_LOG2E,
        .q = (cell *)(base + at->q), .stage = (cell *)(base + at->stage), .k = (cell *)(base + at->k),
        .s = (float *)(base + at->s), .max = (float *)(base + at->max), .sum = (float *)(base + at->sum),
    };
    st.end = min_i32(st.begin + KEY_BLOCK, seq->q_begin + seq->n_q);
    st.wide = (size_t)task->stride * st.n_cells;
    const int32_t n_lanes = st.n_group * st.n_groups, n_blocks = task->q_block + 1;
    const int32_t n_there = (st.end - st.begin + task->stride - 1) / task->stride;     /* groups not wholly behind the end */
    double *mass = (double *)(void *)(base + at->mass);
    memset(mass, 0, (size_t)st.n_group * (size_t)n_blocks * sizeof *mass);
    for (int32_t block = 0; block * BLOCK < n_lanes; block++) {
        int32_t own[BLOCK];
        double total[BLOCK];
        load_groups(&st, block);
        for (int32_t i = 0; i < BLOCK; i++) own[i] = lane_group(&st, block, i) % st.n_groups;
        for (int32_t b = 0; b < n_blocks; b++) {
            load_keys(st.params, task->kv_head, b, st.end, st.k, st.n_cells);
            sum_block(&st, b == task->q_block ? own : NULL, st.max + b * BLOCK, st.sum + b * BLOCK);
        }
        rescale_blocks(&st, total);
        for (int32_t i = 0; i < min_i32(BLOCK, n_lanes - block * BLOCK); i++) {
            if (own[i] >= n_there) continue;
            double *to = mass + (size_t)((block * BLOCK + i) / st.n_groups) * (size_t)n_blocks;
            for (int32_t b = 0; b < n_blocks; b++) to[b] += (double)st.sum[b * BLOCK + i] / total[i];
        }
    }
}

/* ---- the probe */

static_assert(KEY_BLOCK % BLOCK == 0 && KEY_BLOCK % KEY_STEP == 0, "whole blocks, whole steps");

typedef struct tail_state {
    const tmx_attention_params *params;
    int32_t head, kv_head, n, first;       /* rows [first, n), whole blocks of them */
    size_t n_cells;
    float scale_log2;
    cell *q, *stage, *k;
    float *s;
} tail_state;

static void load_tail(const tail_state *st, int32_t row, int32_t q_pos[BLOCK])
{
    const tmx_attention_params *p = st->params;
    for (int32_t i = 0; i < BLOCK; i++) {
        q_pos[i] = st->first + row + i;
        const size_t at = (size_t)(q_pos[i] - p->seqs->q_begin) * p->q_pos_stride + (size_t)st->head * p->q_head_stride;
        load_row(st->stage + (size_t)i * st->n_cells, (const char *)p->seqs->q + at * attn_element_bytes(p->q_type), p->q_type,
                 p->head_dim);
    }
    for (size_t c = 0; c < st->n_cells; c++) {
        for (size_t i = 0; i < BLOCK; i++) st->q[c * BLOCK + i] = st->stage[i * st->n_cells + c];
    }
}

/* Scores of one key block to st->s; max grows to cover them. */
static void score_tail(const tail_state *st, int32_t k_block, const int32_t q_pos[BLOCK], vf max[ROW_VECS])
{
    const int32_t begin = k_block * KEY_BLOCK;
    const bool is_partial = begin + KEY_BLOCK - 1 > q_pos[0];
    vf m[ROW_VECS];
    UNROLL for (int r = 0; r < ROW_VECS; r++) m[r] = max[r];
    load_keys(st->params, st->kv_head, k_block, st->n, st->k, st->n_cells);
    for (int32_t j = 0; j < KEY_BLOCK; j += KEY_STEP) {
        vf s[KEY_STEP][ROW_VECS];
        score_step(st->q, st->k + (size_t)j * st->n_cells, st->n_cells, s);
        UNROLL for (int i = 0; i < KEY_STEP; i++) {
            UNROLL for (int r = 0; r < ROW_VECS; r++) {
                if (is_partial) s[i][r] = vf_hide(s[i][r], begin + j + i, vi_set1(0), vi_load(q_pos + r * LANES));
                m[r] = vf_max(s[i][r], m[r]);
                vf_store(st->s + (j + i) * BLOCK + r * LANES, s[i][r]);
            }
        }
    }
    UNROLL for (int r = 0; r < ROW_VECS; r++) max[r] = m[r];
}

/* Scores become weights in place; sum grows by them. */
static void weigh_tail(const tail_state *st, const vf max[ROW_VECS], vf sum[ROW_VECS])
{
    const vf c = vf_set1(st->scale_log2);
    vf total[ROW_VECS], m[ROW_VECS];
    UNROLL for (int r = 0; r < ROW_VECS; r++) {
        total[r] = sum[r];
        m[r] = max[r];
    }
    for (int32_t j = 0; j < KEY_BLOCK; j++) {
        UNROLL for (int r = 0; r < ROW_VECS; r++) {
            float *at = st->s + j * BLOCK + r * LANES;
            const vf weight = vf_exp2(vf_mul(vf_sub(vf_load(at), m[r]), c));
            vf_store(at, weight);
            total[r] = vf_add(total[r], weight);
        }
    }
    UNROLL for (int r = 0; r < ROW_VECS; r++) sum[r] = total[r];
}

/* Weights of one key block, of rows [row, row + BLOCK) of the probe, to the sums by key and by distance. */
static void add_tail(const tail_state *st, int32_t k_block, int32_t row, const double inverse[BLOCK], double *by_key, double *by_distance)
{
    const int32_t begin = k_block * KEY_BLOCK, n = min_i32(KEY_BLOCK, st->n - begin);
    for (int32_t j = 0; j < n; j++) {
        const float *weight = st->s + j * BLOCK;
        double *diagonal = by_distance + begin + j + st->n - st->first - 1 - row, sum = 0;
        for (int32_t i = 0; i < BLOCK; i++) {
            const double p = (double)weight[i] * inverse[i];
            sum += p;
            if (begin + j <= st->first + row + i) diagonal[-i] += p;
        }
        by_key[begin + j] += sum;
    }
}

static void tail_mass(const attn_job *job, int32_t head, int32_t n_probe, const attn_tail_layout *at, void *scratch)
{
    const tmx_attention_seq *seq = job->params->seqs;
    char *base = scratch;
    const tail_state st = {
        .params = job->params, .head = head, .kv_head = head / job->n_group, .n = seq->q_begin + seq->n_q,
        .first = seq->q_begin + seq->n_q - n_probe,
        .n_cells = ((size_t)job->params->head_dim + CELL - 1) / CELL, .scale_log2 = job->scale * (float)M_LOG2E,
        .q = (cell *)(base + at->q), .stage = (cell *)(base + at->stage), .k = (cell *)(base + at->k), .s = (float *)(base + at->s),
    };
    double *by_key = (double *)(void *)(base + at->by_key), *by_distance = (double *)(void *)(base + at->by_distance);
    memset(by_key, 0, (size_t)st.n * sizeof *by_key);
    memset(by_distance, 0, (size_t)st.n * sizeof *by_distance);
    for (int32_t row = 0; row < n_probe; row += BLOCK) {
        int32_t q_pos[BLOCK];
        float lanes[BLOCK];
        double inverse[BLOCK];
        vf max[ROW_VECS], sum[ROW_VECS];
        load_tail(&st, row, q_pos);
        UNROLL for (int r = 0; r < ROW_VECS; r++) {
            max[r] = vf_set1(-FLT_MAX);
            sum[r] = vf_zero();
        }
        for (int32_t b = 0; b < key_blocks_of(st.n); b++) {
            vf old[ROW_VECS];
            UNROLL for (int r = 0; r < ROW_VECS; r++) old[r] = max[r];
            score_tail(&st, b, q_pos, max);
            UNROLL for (int r = 0; r < ROW_VECS; r++) {
                sum[r] = vf_mul(sum[r], vf_exp2(vf_mul(vf_sub(old[r], max[r]), vf_set1(st.scale_log2))));
            }
            weigh_tail(&st, max, sum);
        }
        UNROLL for (int r = 0; r < ROW_VECS; r++) vf_store(lanes + r * LANES, sum[r]);
        for (size_t i = 0; i < BLOCK; i++) inverse[i] = 1.0 / ((double)lanes[i] * n_probe);
        for (int32_t b = 0; b < key_blocks_of(st.n); b++) {
            score_tail(&st, b, q_pos, max);            /* max covers them already */
            weigh_tail(&st, max, sum);
            add_tail(&st, b, row, inverse, by_key, by_distance);
        }
    }
}

#endif
