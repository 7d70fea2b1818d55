#include "attn/attn.h"

#include "attn/attn_kernel.h"
#include "base/cpu.h"
#include "base/pool.h"
#include "base/status.h"

#include <float.h>
#include <math.h>

const attn_kernel *attn_kernel_get(tmx_isa isa, tmx_type q_type, tmx_type kv_type)
{
    switch (cpu_isa_resolve(isa)) {
    case TMX_ISA_AMX:
        if (q_type == TMX_TYPE_BF16 && kv_type == TMX_TYPE_BF16) return &attn_kernel_bf16_amx;
        return &attn_kernel_f32_avx512;
    case TMX_ISA_AVX512_BF16:
        if (q_type == TMX_TYPE_BF16 && kv_type == TMX_TYPE_BF16) return &attn_kernel_bf16_avx512bf16;
        return &attn_kernel_f32_avx512;
    case TMX_ISA_AVX512: return &attn_kernel_f32_avx512;
    case TMX_ISA_AVX2: return &attn_kernel_f32_avx2;
    case TMX_ISA_AUTO:
    case TMX_ISA_SCALAR: break;
    }
    return &attn_kernel_f32_scalar;
}

attn_job attn_job_of(const tmx_attention_params *p)
{
    return (attn_job){ .kernel = attn_kernel_get(p->isa, p->q_type, p->kv_type), .params = p, .n_group = p->n_heads / p->n_kv_heads,
                       .scale = p->scale != 0.0f ? p->scale : (float)(1.0 / sqrt((double)p->head_dim)) };
}

/* ---------------------------------------------------------------- checks */

static tmx_status check_type(const char *field, tmx_type type, tmx_error *err)
{
    if (type == TMX_TYPE_DEFAULT || type == TMX_TYPE_F32 || type == TMX_TYPE_BF16) return TMX_OK;
    return refuse(err, TMX_E_ARG, "attention: %s: %d, expected 0 (default), 1 (f32) or 2 (bf16)", field, (int)type);
}

/* Everything the size of scratch depends on. */
static tmx_status check_shape(const tmx_attention_params *p, tmx_error *err)
{
    if (p == NULL) return refuse(err, TMX_E_ARG, "attention: params is NULL");
    if (p->n_heads < 1) return refuse(err, TMX_E_ARG, "attention: n_heads: %d, expected 1 or more", p->n_heads);
    if (p->n_kv_heads < 1) {
        return refuse(err, TMX_E_ARG, "attention: n_kv_heads: %d, expected 1 or more", p->n_kv_heads);
    }
    if (p->n_heads % p->n_kv_heads != 0) {
        return refuse(err, TMX_E_ARG, "attention: n_heads: %d is not a multiple of n_kv_heads %d", p->n_heads,
                      p->n_kv_heads);
    }
    if (p->n_heads / p->n_kv_heads > ATTN_MAX_GROUP) {
        return refuse(err, TMX_E_ARG, "attention: n_heads: %d for n_kv_heads %d, expected at most %d per KV head",
                      p->n_heads, p->n_kv_heads, ATTN_MAX_GROUP);
    }
    if (p->head_dim < 1 || p->head_dim > ATTN_MAX_DIM) {
        return refuse(err, TMX_E_ARG, "attention: head_dim: %d, expected 1..%d", p->head_dim, ATTN_MAX_DIM);
    }
    if (p->n_seqs < 0) return refuse(err, TMX_E_ARG, "attention: n_seqs: %d, expected 0 or more", p->n_seqs);
    if (p->n_seqs > 0 && p->seqs == NULL) return refuse(err, TMX_E_ARG, "attention: seqs is NULL");
    for (int32_t i = 0; i < p->n_seqs; i++) {
        const tmx_attention_seq *seq = &p->seqs[i];
        if (seq->q_begin < 0) {
            return refuse(err, TMX_E_ARG, "attention: seqs[%d].q_begin: %d is negative", i, seq->q_begin);
        }
        if (seq->n_q < 0) return refuse(err, TMX_E_ARG, "attention: seqs[%d].n_q: %d is negative", i, seq->n_q);
        if (seq->n_prompt - seq->q_begin < seq->n_q) {         /* q_begin >= 0: cannot overflow unless n_prompt < 0 */
            return refuse(err, TMX_E_ARG, "attention: seqs[%d].n_prompt: %d, expected at least q_begin %d + n_q %d", i,
                          seq->n_prompt, seq->q_begin, seq->n_q);
        }
    }
    return TMX_OK;
}

static tmx_status check_values(const tmx_attention_params *p, tmx_error *err)
{
    TRY(check_type("q_type", p->q_type, err));
    TRY(check_type("kv_type", p->kv_type, err));
    /* The bounds keep scale * log2(e) and the distance to a hidden score (infinite) apart from 0 and infinity. */
    if (p->scale != 0.0f && !(p->scale >= 0x1p-100f && p->scale <= 0x1p100f)) {
        return refuse(err, TMX_E_ARG, "attention: scale: %g, expected 0 (default) or 2^-100..2^100", (double)p->scale);
    }
    if (pattern_check(&p->pattern, err) != TMX_OK) return TMX_E_ARG;
    if ((int)p->isa < TMX_ISA_AUTO || (int)p->isa > TMX_ISA_AMX) {
        return refuse(err, TMX_E_ARG, "attention: isa: %d, expected %d..%d", (int)p->isa, TMX_ISA_AUTO,
                      TMX_ISA_AMX);
    }
    if (!cpu_has(p->isa)) {
        return refuse(err, TMX_E_ARG, "attention: isa: this CPU has no %s; its best is %s", tmx_isa_name(p->isa),
                      tmx_isa_name(tmx_isa_best()));
    }
    if ((uintptr_t)p->scratch % MEM_ALIGN != 0) {
        return refuse(err, TMX_E_ARG, "attention: scratch: not aligned to %d bytes", MEM_ALIGN);
    }
    return TMX_OK;
}

/* A buffer [n_pos][n_heads][head_dim] as an address range. */
typedef struct buffer {
    const char *field;
    uintptr_t begin;
    uint64_t n_bytes;
    size_t pos_stride, head_stride;
} buffer;

static tmx_status check_buffer(buffer *b, int32_t i, const char *field, const void *data, tmx_type type, int32_t n_pos,
                               int32_t n_heads, int32_t head_dim, size_t pos_stride, size_t head_stride, tmx_error *err)
{
    if (data == NULL) return refuse(err, TMX_E_ARG, "attention: seqs[%d].%s is NULL", i, field);
    if ((uintptr_t)data % attn_element_bytes(type) != 0) {
        return refuse(err, TMX_E_ARG, "attention: seqs[%d].%s: not aligned to its type", i, field);
    }
    uint64_t pos, head, n;
    if (!mul_ok((uint64_t)n_pos - 1, pos_stride, &pos) || !mul_ok((uint64_t)n_heads - 1, head_stride, &head)
        || !add_ok(pos, head, &n) || !add_ok(n, (uint64_t)head_dim, &n) || !mul_ok(n, attn_element_bytes(type), &n)
        || n > PTRDIFF_MAX || (uintptr_t)data > UINTPTR_MAX - n) {
        return refuse(err, TMX_E_ARG, "attention: seqs[%d].%s: strides %zu and %zu reach beyond the address space", i,
                      field, pos_stride, head_stride);
    }
    *b = (buffer){ field, (uintptr_t)data, n, pos_stride, head_stride };
    return TMX_OK;
}

static tmx_status check_apart(int32_t i, const buffer *out, const buffer *other, tmx_error *err)
{
    if (out->begin + out->n_bytes <= other->begin || other->begin + other->n_bytes <= out->begin) return TMX_OK;
    return refuse(err, TMX_E_ARG, "attention: seqs[%d].%s overlaps %s", i, out->field, other->field);
}

/* Two rows of out must never share an element: either all heads of a position come before the next position, or all
 * positions of a head before the next head. */
static bool rows_are_apart(uint64_t n_pos, uint64_t n_heads, uint64_t head_dim, uint64_t pos_stride,
                           uint64_t head_stride)
{
    if ((n_pos > 1 && pos_stride < head_dim) || (n_heads > 1 && head_stride < head_dim)) return false;
    return n_pos == 1 || n_heads == 1 || pos_stride >= (n_heads - 1) * head_stride + head_dim
        || head_stride >= (n_pos - 1) * pos_stride + head_dim;
}

static tmx_status check_seq(const tmx_attention_params *p, int32_t i, tmx_error *err)
{
    const tmx_attention_seq *seq = &p->seqs[i];
    const int32_t n_keys = seq->q_begin + seq->n_q;
    buffer q, k, v, out, lse;
    if (seq->n_q == 0) return TMX_OK;
    TRY(check_buffer(&q, i, "q", seq->q, p->q_type, seq->n_q, p->n_heads, p->head_dim, p->q_pos_stride,
                     p->q_head_stride, err));
    TRY(check_buffer(&k, i, "k", seq->k, p->kv_type, n_keys, p->n_kv_heads, p->head_dim, p->k_pos_stride,
                     p->k_head_stride, err));
    TRY(check_buffer(&v, i, "v", seq->v, p->kv_type, n_keys, p->n_kv_heads, p->head_dim, p->v_pos_stride,
                     p->v_head_stride, err));
    TRY(check_buffer(&out, i, "out", seq->out, p->q_type, seq->n_q, p->n_heads, p->head_dim, p->out_pos_stride,
                     p->out_head_stride, err));
    if (!rows_are_apart((uint64_t)seq->n_q, (uint64_t)p->n_heads, (uint64_t)p->head_dim, p->out_pos_stride,
                        p->out_head_stride)) {
        return refuse(err, TMX_E_ARG, "attention: out_pos_stride %zu and out_head_stride %zu: rows of seqs[%d].out "
                      "overlap", p->out_pos_stride, p->out_head_stride, i);
    }
    const bool is_in_place = out.begin == q.begin && out.pos_stride == q.pos_stride && out.head_stride == q.head_stride;
    if (!is_in_place) TRY(check_apart(i, &out, &q, err));      /* in place: a task reads its q before it writes */
    TRY(check_apart(i, &out, &k, err));
    TRY(check_apart(i, &out, &v, err));
    if (seq->lse == NULL) return TMX_OK;
    TRY(check_buffer(&lse, i, "lse", seq->lse, TMX_TYPE_F32, seq->n_q, p->n_heads, 1, (size_t)p->n_heads, 1, err));
    const buffer *const others[] = { &q, &k, &v, &out };
    for (int32_t other = 0; other < 4; other++) TRY(check_apart(i, &lse, others[other], err));
    return TMX_OK;
}

/* ---------------------------------------------------------------- tasks */

/* A query tile of one sequence: n_kv_heads tasks of the same length. */
typedef struct query_tile {
    int64_t n_pairs;
    int32_t seq, t_begin, t_end;
} query_tile;

typedef struct tiling {
    int32_t n_positions;           /* of a query tile */
    int64_t n_tiles;
} tiling;

static int64_t tiles_of(const tmx_attention_params *p, int32_t n_positions)
{
    int64_t n = 0;
    for (int32_t i = 0; i < p->n_seqs; i++) n += ((int64_t)p->seqs[i].n_q + n_positions - 1) / n_positions;
    return n;
}

/* As many rows as fit, unless that leaves threads idle; never below two blocks, since loading a key tile must pay. */
static tiling tiling_of(const tmx_attention_params *p, int32_t n_threads)
{
    const int32_t n_group = p->n_heads / p->n_kv_heads;
    const int64_t n_enough = 4 * (int64_t)n_threads;
    tiling t = { .n_positions = ATTN_MAX_ROWS / n_group };
    t.n_tiles = tiles_of(p, t.n_positions);
    while (t.n_tiles * p->n_kv_heads < n_enough && t.n_positions * n_group >= 4 * ATTN_MAX_BLOCK) {
        t.n_positions = (t.n_positions + 1) / 2;
        t.n_tiles = tiles_of(p, t.n_positions);
    }
    return t;
}

/* Halving at most doubles a count that was below n_enough: this bound holds for every call with no more rows. */
static uint64_t max_tiles(const tmx_attention_params *p, int32_t n_threads)
{
    const int32_t n_positions = ATTN_MAX_ROWS / (p->n_heads / p->n_kv_heads);
    return (uint64_t)tiles_of(p, n_positions) + 8 * (uint64_t)n_threads;
}

static bool scratch_bytes(const tmx_attention_params *p, int32_t n_threads, uint64_t *n_bytes)
{
    uint64_t n_list;
    return mul_ok(max_tiles(p, n_threads), sizeof(query_tile), &n_list)
        && mul_ok((uint64_t)n_threads, attn_layout_of(p->head_dim).n_bytes, n_bytes)
        && add_ok(*n_bytes, n_list, n_bytes) && *n_bytes <= PTRDIFF_MAX;
}

size_t tmx_attention_scratch_bytes(const tmx_attention_params *params, int32_t n_threads)
{
    uint64_t n_bytes;
    if (check_shape(params, NULL) != TMX_OK || !scratch_bytes(params, max_i32(n_threads, 1), &n_bytes)) return 0;
    return (size_t)n_bytes;
}

static bool is_before(const query_tile *a, const query_tile *b)
{
    if (a->n_pairs != b->n_pairs) return a->n_pairs > b->n_pairs;
    if (a->seq != b->seq) return a->seq < b->seq;
    return a->t_begin < b->t_begin;
}

static void sift_down(query_tile *tiles, int64_t root, int64_t n)
{
    for (int64_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && is_before(&tiles[child], &tiles[child + 1])) child++;
        if (!is_before(&tiles[root], &tiles[child])) return;
        const query_tile swap = tiles[root];
        tiles[root] = tiles[child];
        tiles[child] = swap;
    }
}

/* Heap sort: qsort may allocate. */
static void sort_longest_first(query_tile *tiles, int64_t n)
{
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift_down(tiles, i, n);
    for (int64_t end = n - 1; end > 0; end--) {
        const query_tile last = tiles[end];
        tiles[end] = tiles[0];
        tiles[0] = last;
        sift_down(tiles, 0, end);
    }
}

static void list_tiles(const tmx_attention_params *p, int32_t n_positions, query_tile *tiles)
{
    for (int32_t i = 0; i < p->n_seqs; i++) {
        const tmx_attention_seq *seq = &p->seqs[i];
        const int32_t end = seq->q_begin + seq->n_q;
        for (int32_t t = seq->q_begin; t < end; ) {
            const int32_t t_end = end - t > n_positions ? t + n_positions : end;
            *tiles++ = (query_tile){ tmx_pattern_pairs(&p->pattern, seq->n_prompt, t, t_end), i, t, t_end };
            t = t_end;
        }
    }
}

typedef struct attn_run {
    attn_job job;
    const query_tile *tiles;
    char *scratch;                 /* [n_threads] of layout bytes */
    size_t thread_bytes;
} attn_run;

static void run_task(void *ctx, int32_t index, int32_t thread)
{
    const attn_run *run = ctx;
    const query_tile *tile = &run->tiles[index / run->job.params->n_kv_heads];
    const int32_t kv_head = index % run->job.params->n_kv_heads, n_group = run->job.n_group;
    const attn_task task = { .seq = tile->seq, .kv_head = kv_head, .head_begin = kv_head * n_group, .n_heads = n_group,
                             .t_begin = tile->t_begin, .t_end = tile->t_end };
    run->job.kernel->run(&run->job, &task, run->scratch + (size_t)thread * run->thread_bytes);
}

tmx_status tmx_attention(const tmx_attention_params *params, tmx_pool *pool, tmx_error *err)
{
    TRY(check_shape(params, err));
    TRY(check_values(params, err));
    tmx_attention_params p = *params;
    if (p.q_type == TMX_TYPE_DEFAULT) p.q_type = TMX_TYPE_F32;
    if (p.kv_type == TMX_TYPE_DEFAULT) p.kv_type = TMX_TYPE_F32;
    for (int32_t i = 0; i < p.n_seqs; i++) TRY(check_seq(&p, i, err));

    const int32_t n_threads = pool_n_threads(pool);
    const tiling t = tiling_of(&p, n_threads);
    if (t.n_tiles == 0) return TMX_OK;
    if (t.n_tiles > INT32_MAX / p.n_kv_heads) {
        return refuse(err, TMX_E_ARG, "attention: n_seqs: %d sequences with %lld query tiles for n_kv_heads %d are too "
                      "many", p.n_seqs, (long long)t.n_tiles, p.n_kv_heads);
    }
    uint64_t n_bytes;
    void *own = NULL;
    if (p.scratch == NULL) {
        if (scratch_bytes(&p, n_threads, &n_bytes)) own = mem_alloc((size_t)n_bytes, 1);
        if (own == NULL) {
            return refuse(err, TMX_E_MEMORY, "attention: out of memory for the scratch of %d threads", n_threads);
        }
        p.scratch = own;
    }
    const size_t thread_bytes = attn_layout_of(p.head_dim).n_bytes;
    query_tile *tiles = (query_tile *)(void *)((char *)p.scratch + (size_t)n_threads * thread_bytes);
    list_tiles(&p, t.n_positions, tiles);
    sort_longest_first(tiles, t.n_tiles);
    attn_run run = {
        .job = attn_job_of(&p),
        .tiles = tiles, .scratch = p.scratch, .thread_bytes = thread_bytes,
    };
    pool_run(pool, (int32_t)t.n_tiles * p.n_kv_heads, run_task, &run);
    mem_free(own);
    return TMX_OK;
}
