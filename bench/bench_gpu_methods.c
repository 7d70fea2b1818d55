/* rooms: attn ops */
/* Times dynamic methods on a CUDA device beside dense and triangle attention: estimate and attention over its key lists apart, in
 * the same rounds, on Q and K with planted structure.
 *
 *     bench_gpu_methods [--lengths 32768,131072] [--reps 5] [--csv FILE]
 *
 * Shape of Llama-3.1-8B: 32 query heads, 8 KV heads, head_dim 128, bf16, one layer, one sequence.  Noise is normal, of deviation 1.
 * Planted, the same for the same length:
 *   columns 0..31    Q and K turn with the position, 16 frequencies from 1/2 to 2^-12 a token: near keys score high; in heads
 *                    h % 4 == 2 Q is turned back by 1024 + 512 h tokens: a slash
 *   columns 32..47   the first 4 keys and all queries: sinks, but for heads h % 8 == 3
 *   columns 48..63   one key in about 4096 and the queries of heads h % 4 == 1 and h % 8 == 7: vertical lines
 * Heads h % 4 == 3 have no local part; heads h % 8 == 3 are noise alone: diffuse.
 *
 * Density: visible pairs of all causal ones.  Error: relative L2 of the output against dense, over 256 rows spread over the prompt.
 * Times are device times, the L2 cache flushed before each; median of the rounds, spread = distance of the quartiles. */
#include "attn/attn_gpu.h"
#include "base/num.h"
#include "base/pool.h"
#include "ops/cuda/ops_cuda.h"
#include "timing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_HEADS = 32, N_KV_HEADS = 8, DIM = 128, N_PAIRS = 16, N_SINKS = 4, N_SAMPLES = 256, MAX_REPS = 50, MAX_LENGTHS = 8 };
enum { STAGE_ROWS = 1024, FLUSH_ROWS = 11585 };   /* 256 MiB, several times the L2 cache */

typedef enum step_kind { IS_DENSE, IS_TRIANGLE, IS_XATTENTION, IS_FLEXPREFILL, IS_MINFERENCE } step_kind;

typedef struct step {
    const char *name, *setting;
    flexprefill flex;
    xattention x;
    double estimate_ms[MAX_REPS], attention_ms[MAX_REPS], total_ms[MAX_REPS], density, error;
    step_kind kind;
    minference_head head;          /* of all heads */
} step;

#define STEP_X(s, t) { .kind = IS_XATTENTION, .name = "xattention", .setting = "stride=" #s " threshold=" #t, .x = { .stride = s, .threshold = t, .norm = 1 } }
#define STEP_FLEX(g) { .kind = IS_FLEXPREFILL, .name = "flexprefill", .setting = "gamma=" #g, .flex = { .gamma = g, .tau = 0.1, .min_budget = 512 } }
#define STEP_LINES(v, d) { .kind = IS_MINFERENCE, .name = "minference", .setting = "vertical=" #v " slash=" #d, .head = { MINFERENCE_VERTICAL_SLASH, v, d } }

static step steps[] = {
    { .kind = IS_DENSE, .name = "dense", .setting = "" },
    { .kind = IS_TRIANGLE, .name = "triangle", .setting = "8/512/128" },
    STEP_X(8, 0.8), STEP_X(8, 0.9), STEP_X(8, 0.95), STEP_X(16, 0.9),
    STEP_FLEX(0.9), STEP_FLEX(0.95), STEP_FLEX(0.99),
    STEP_LINES(30, 800), STEP_LINES(512, 2048), STEP_LINES(1000, 6096), STEP_LINES(3500, 100),
    { .kind = IS_MINFERENCE, .name = "minference", .setting = "sink=1024 window=4096", .head = { MINFERENCE_A_SHAPE, 1024, 4096 } },
    { .kind = IS_MINFERENCE, .name = "minference", .setting = "block_sparse", .head = { MINFERENCE_BLOCK_SPARSE, 0, 0 } },
};
enum { N_STEPS = sizeof steps / sizeof *steps };

typedef struct bench {
    gpu *g;
    tmx_pool *pool;
    int32_t n, n_reps;
    uint16_t *stage;               /* pinned: STAGE_ROWS rows of q */
    void *q, *k, *v, *out, *flush, *scratch, *estimate_scratch, *bits, *heads, *n_pairs;
    size_t scratch_bytes, estimate_bytes;
    gpu_mark *marks[3];
    uint16_t *dense_rows, *rows;   /* [N_SAMPLES][N_HEADS][DIM] of the output */
} bench;

static void check(tmx_status status, const tmx_error *err)
{
    if (status == TMX_OK) return;
    fprintf(stderr, "bench_gpu_methods: %s\n", err->text);
    exit(3);
}

/* ---------------------------------------------------------------- planted Q, K and V */

static uint64_t mix(uint64_t z)
{
    z = (z + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Normal, near enough: the sum of the four 16-bit parts of a hash. */
static float noise(uint64_t at)
{
    const uint64_t z = mix(at);
    float sum = -2.0f;
    for (int i = 0; i < 4; i++) sum += (float)(z >> 16 * i & 0xffff) * 0x1p-16f;
    return sum * 1.7320508f;
}

typedef struct plant {
    uint16_t *to;                  /* [STAGE_ROWS][n_heads][DIM] */
    int32_t first, n_heads;
    uint64_t seed;
    char which;                    /* 'q', 'k', 'v' */
} plant;

static bool is_line(int32_t pos) { return mix(0xabcdef + (uint64_t)pos) % 4096 == 0; }

static float turned(int32_t pos, int32_t column)
{
    const int32_t pair = column / 2;
    const double angle = pos * exp2(-1.0 - pair * 11.0 / (N_PAIRS - 1));
    return (float)(column % 2 ? sin(angle) : cos(angle));
}

static float planted(const plant *p, int32_t pos, int32_t head, int32_t column)
{
    if (p->which == 'k') {
        if (column < 2 * N_PAIRS) return 3.0f * turned(pos, column);
        if (column < 48) return pos < N_SINKS ? 2.8f : 0.0f;
        return column < 64 && is_line(pos) ? 2.6f : 0.0f;
    }
    if (column < 2 * N_PAIRS) return head % 4 == 3 ? 0.0f : 3.0f * turned(head % 4 == 2 ? pos - 1024 - 512 * head : pos, column);
    if (column < 48) return head % 8 == 3 ? 0.0f : 2.8f;
    return column < 64 && (head % 4 == 1 || head % 8 == 7) ? 2.6f : 0.0f;
}

static void plant_row(void *ctx, int32_t row, int32_t thread)
{
    (void)thread;
    const plant *p = ctx;
    const int32_t pos = p->first + row;
    for (int32_t h = 0; h < p->n_heads; h++) {
        uint16_t *to = p->to + ((size_t)row * (size_t)p->n_heads + (size_t)h) * DIM;
        for (int32_t i = 0; i < DIM; i++) {
            const float value = noise(p->seed ^ (((uint64_t)pos * (uint64_t)p->n_heads + (uint64_t)h) * DIM + (uint64_t)i));
            to[i] = bf16_from_f32(value + (p->which != 'v' && i < 64 ? planted(p, pos, h, i) : 0.0f));
        }
    }
}

static void upload_planted(bench *b, void *to, char which, int32_t n_heads)
{
    tmx_error err;
    const size_t row_bytes = (size_t)n_heads * DIM * 2;
    for (int32_t first = 0; first < b->n; first += STAGE_ROWS) {
        const int32_t n = min_i32(STAGE_ROWS, b->n - first);
        plant p = { .to = b->stage, .first = first, .n_heads = n_heads, .seed = (uint64_t)which << 48, .which = which };
        pool_run(b->pool, n, plant_row, &p);
        gpu_upload(b->g, (char *)to + (size_t)first * row_bytes, b->stage, (size_t)n * row_bytes);
        check(gpu_wait(b->g, &err), &err);
    }
}

/* ---------------------------------------------------------------- rounds */

static tmx_gpu_attention_params params_of(const bench *b, const tmx_gpu_attention_seq *seq, bool is_triangle)
{
    tmx_gpu_attention_params p = {
        .n_heads = N_HEADS, .n_kv_heads = N_KV_HEADS, .head_dim = DIM, .q_pos_stride = N_HEADS * DIM, .q_head_stride = DIM,
        .out_pos_stride = N_HEADS * DIM, .out_head_stride = DIM, .k_pos_stride = N_KV_HEADS * DIM, .k_head_stride = DIM,
        .v_pos_stride = N_KV_HEADS * DIM, .v_head_stride = DIM, .pattern = { .kind = TMX_PATTERN_DENSE, .n_window = 1 },
        .seqs = seq, .n_seqs = 1, .scratch = b->scratch, .scratch_bytes = b->scratch_bytes,
    };
    if (is_triangle) p.pattern = (tmx_pattern){ .kind = TMX_PATTERN_TRIANGLE, .n_sink = 8, .n_window = 512, .n_last = 128 };
    return p;
}

static tmx_gpu_attention_seq seq_of(const bench *b)
{
    return (tmx_gpu_attention_seq){ .q = b->q, .k = b->k, .v = b->v, .out = b->out, .n_q = b->n, .n_prompt = b->n };
}

/* Estimate and attention of one step, times into its place `rep`; rep < 0: untimed. */
static void run_step(bench *b, step *s, int rep)
{
    tmx_error err;
    const tmx_gpu_attention_seq seq = seq_of(b);
    const tmx_gpu_attention_params p = params_of(b, &seq, s->kind == IS_TRIANGLE);
    key_lists lists = key_lists_shape(N_HEADS, 0, b->n);
    void *stream = gpu_stream(b->g);
    lists.bits = b->bits;
    gpu_weight_random(b->g, &(gpu_weight){ .data = b->flush, .n_out = FLUSH_ROWS, .n_in = FLUSH_ROWS }, 1, 1);
    gpu_mark_set(b->g, b->marks[0]);
    if (s->kind == IS_XATTENTION) check(gpu_xattention(&p, &s->x, &lists, b->estimate_scratch, b->estimate_bytes, stream, &err), &err);
    if (s->kind == IS_MINFERENCE) {
        minference_head chosen[N_HEADS];
        for (int h = 0; h < N_HEADS; h++) chosen[h] = s->head;
        check(gpu_minference(&p, chosen, b->heads, b->bits, b->estimate_scratch, b->estimate_bytes, stream, &err), &err);
    }
    if (s->kind == IS_FLEXPREFILL) check(gpu_flexprefill(&p, &s->flex, &lists, b->estimate_scratch, b->estimate_bytes, stream, &err), &err);
    gpu_mark_set(b->g, b->marks[1]);
    if (s->kind == IS_MINFERENCE) check(gpu_attention_over_heads(&p, b->heads, b->n_pairs, stream, &err), &err);
    else if (s->kind >= IS_XATTENTION) check(gpu_attention_over_lists(&p, &lists, stream, &err), &err);
    else check(tmx_gpu_attention(&p, stream, &err), &err);
    gpu_mark_set(b->g, b->marks[2]);
    check(gpu_wait(b->g, &err), &err);
    if (rep < 0) return;
    s->estimate_ms[rep] = s->kind >= IS_XATTENTION ? gpu_mark_ms(b->g, b->marks[0], b->marks[1]) : 0;
    s->attention_ms[rep] = gpu_mark_ms(b->g, b->marks[1], b->marks[2]);
    s->total_ms[rep] = s->estimate_ms[rep] + s->attention_ms[rep];
}

static void download_rows(bench *b, uint16_t *rows)
{
    tmx_error err;
    const size_t row = (size_t)N_HEADS * DIM;
    for (int32_t i = 0; i < N_SAMPLES; i++) {
        const size_t pos = (size_t)((int64_t)(i + 1) * b->n / N_SAMPLES - 1);
        check(gpu_download(b->g, rows + (size_t)i * row, (const char *)b->out + pos * row * 2, row * 2, &err), &err);
    }
}

static double error_of(const bench *b)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < (size_t)N_SAMPLES * N_HEADS * DIM; i++) {
        const double want = (double)bf16_to_f32(b->dense_rows[i]), difference = (double)bf16_to_f32(b->rows[i]) - want;
        error += difference * difference;
        norm += want * want;
    }
    return sqrt(error / norm);
}

/* The untimed first run: density, and the output beside dense. */
static void look_at(bench *b, step *s)
{
    tmx_error err;
    const double all = (double)b->n * (b->n + 1.0) / 2 * N_HEADS;
    uint64_t n_pairs = 0;
    memcpy(b->stage, &n_pairs, sizeof n_pairs);
    gpu_upload(b->g, b->n_pairs, b->stage, sizeof n_pairs);
    run_step(b, s, -1);
    download_rows(b, s->kind == IS_DENSE ? b->dense_rows : b->rows);
    s->error = s->kind == IS_DENSE ? 0 : error_of(b);
    if (s->kind >= IS_XATTENTION) {
        key_lists lists = key_lists_shape(N_HEADS, 0, b->n);
        lists.bits = b->bits;
        if (s->kind != IS_MINFERENCE) check(gpu_lists_add_pairs(&lists, 0, b->n, b->n_pairs, gpu_stream(b->g), &err), &err);
        check(gpu_download(b->g, &n_pairs, b->n_pairs, sizeof n_pairs, &err), &err);
        s->density = (double)n_pairs / all;
    } else {
        const tmx_gpu_attention_seq seq = seq_of(b);
        const tmx_gpu_attention_params p = params_of(b, &seq, s->kind == IS_TRIANGLE);
        s->density = (double)tmx_pattern_pairs(&p.pattern, b->n, 0, b->n) * N_HEADS / all;
    }
}

static void run_length(bench *b, FILE *csv)
{
    tmx_error err;
    const size_t n = (size_t)b->n, q_bytes = n * N_HEADS * DIM * 2, kv_bytes = n * N_KV_HEADS * DIM * 2;
    const tmx_gpu_attention_seq seq = { .n_q = b->n, .n_prompt = b->n };
    const tmx_gpu_attention_params dense = params_of(b, &seq, false), triangle = params_of(b, &seq, true);
    const size_t of_dense = tmx_gpu_attention_scratch_bytes(&dense), of_triangle = tmx_gpu_attention_scratch_bytes(&triangle);
    const size_t of_x = gpu_xattention_scratch_bytes(&dense, b->n, b->n), of_flex = gpu_flexprefill_scratch_bytes(&dense, b->n);
    const size_t of_lines = gpu_minference_scratch_bytes(&dense, b->n), n_lists = key_lists_bytes(N_HEADS, b->n, b->n);
    b->scratch_bytes = of_dense > of_triangle ? of_dense : of_triangle;
    b->estimate_bytes = max_size(of_lines, max_size(of_x, of_flex));
    const struct { void **data; size_t n_bytes; } buffers[] = {
        { &b->q, q_bytes }, { &b->k, kv_bytes }, { &b->v, kv_bytes }, { &b->out, q_bytes }, { &b->scratch, b->scratch_bytes },
        { &b->estimate_scratch, b->estimate_bytes }, { &b->bits, max_size(n_lists, N_HEADS * minference_room_bytes(b->n)) },
        { &b->heads, N_HEADS * sizeof(head_keys) },
    };
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) check(gpu_alloc(b->g, buffers[i].data, buffers[i].n_bytes, &err), &err);
    upload_planted(b, b->q, 'q', N_HEADS);
    upload_planted(b, b->k, 'k', N_KV_HEADS);
    upload_planted(b, b->v, 'v', N_KV_HEADS);
    for (int i = 0; i < N_STEPS; i++) look_at(b, &steps[i]);
    for (int rep = 0; rep < b->n_reps; rep++) {
        for (int i = 0; i < N_STEPS; i++) run_step(b, &steps[i], rep);
    }
    printf("\n%s, %d tokens, %d rounds; scratch of an estimate: xattention %.0f MiB, flexprefill %.0f MiB, minference %.0f MiB\n\n",
           gpu_name(b->g), b->n, b->n_reps, (double)of_x / 0x1p20, (double)of_flex / 0x1p20, (double)of_lines / 0x1p20);
    printf("| method | setting | density %% | estimate ms | attention ms | both | spread %% | of dense %% | error |\n|--|--|--|--|--|--|--|--|--|\n");
    double dense_ms = 0;
    for (int i = 0; i < N_STEPS; i++) {
        step *s = &steps[i];
        const timing_summary estimate = timing_summarize(s->estimate_ms, b->n_reps), attention = timing_summarize(s->attention_ms, b->n_reps);
        const timing_summary total = timing_summarize(s->total_ms, b->n_reps);
        if (i == 0) dense_ms = total.median;
        printf("| %s | %s | %.2f | %.2f | %.2f | %.2f | %.1f | %.1f | %.4f |\n", s->name, s->setting, 100 * s->density, estimate.median,
               attention.median, total.median, total.spread_pct, 100 * total.median / dense_ms, s->error);
        if (csv != NULL) {
            fprintf(csv, "%s,%s,%s,%d,%.3f,%.4f,%.4f,%.4f,%.4f,%.1f,%.2f,%.5f\n", gpu_name(b->g), s->name, s->setting, b->n,
                    100 * s->density, estimate.median, attention.median, total.median, total.least, total.spread_pct,
                    100 * total.median / dense_ms, s->error);
        }
    }
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) gpu_free(b->g, *buffers[i].data);
}

static void *take(size_t n, size_t size)
{
    void *block = calloc(n, size);
    check(block != NULL ? TMX_OK : TMX_E_MEMORY, &(tmx_error){ .text = "out of memory" });
    return block;
}

static void usage(void)
{
    fprintf(stderr, "usage: bench_gpu_methods [--lengths N,N,...] [--reps 1..%d] [--csv FILE]\n", MAX_REPS);
    exit(1);
}

int main(int argc, char **argv)
{
    int32_t lengths[MAX_LENGTHS] = { 32768, 131072 }, n_lengths = 2;
    const char *csv_path = NULL;
    bench b = { .n_reps = 5 };
    setvbuf(stdout, NULL, _IOLBF, 0);      /* a length is there before the next one begins */
    if (argc % 2 == 0) usage();
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--reps") == 0) b.n_reps = (int32_t)strtol(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--csv") == 0) csv_path = argv[i + 1];
        else if (strcmp(argv[i], "--lengths") == 0) {
            n_lengths = 0;
            for (char *at = argv[i + 1]; n_lengths < MAX_LENGTHS; at++) {
                lengths[n_lengths++] = (int32_t)strtol(at, &at, 10);
                if (*at != ',') break;
            }
        } else usage();
    }
    for (int32_t i = 0; i < n_lengths; i++) {
        if (lengths[i] < 1024 || lengths[i] > 1 << 20) usage();
    }
    if (b.n_reps < 1 || b.n_reps > MAX_REPS) usage();
    tmx_error err;
    void *stage;
    check(gpu_open(&b.g, 0, &err), &err);
    check(gpu_lists_check(DIM, &err), &err);
    check(tmx_pool_create(&b.pool, 0, &err), &err);
    check(gpu_alloc(b.g, &b.flush, gpu_weight_bytes(FLUSH_ROWS, FLUSH_ROWS), &err), &err);
    check(gpu_alloc(b.g, &b.n_pairs, sizeof(uint64_t), &err), &err);
    check(gpu_alloc_pinned(b.g, &stage, (size_t)STAGE_ROWS * N_HEADS * DIM * 2, &err), &err);
    for (int i = 0; i < 3; i++) check(gpu_mark_create(b.g, &b.marks[i], &err), &err);
    b.stage = stage;
    b.dense_rows = take((size_t)N_SAMPLES * N_HEADS * DIM, sizeof *b.dense_rows);
    b.rows = take((size_t)N_SAMPLES * N_HEADS * DIM, sizeof *b.rows);
    FILE *csv = csv_path != NULL ? fopen(csv_path, "w") : NULL;
    check(csv_path == NULL || csv != NULL ? TMX_OK : TMX_E_IO, &(tmx_error){ .text = "cannot write the CSV file" });
    if (csv != NULL) {
        fprintf(csv, "machine,method,setting,n_tokens,density_pct,estimate_ms,attention_ms,median_ms,min_ms,spread_pct,pct_of_dense,error\n");
    }
    for (int32_t i = 0; i < n_lengths; i++) {
        b.n = lengths[i];
        run_length(&b, csv);
    }
    if (csv != NULL) fclose(csv);
    for (int i = 0; i < 3; i++) gpu_mark_free(b.g, b.marks[i]);
    free(b.rows);
    free(b.dense_rows);
    gpu_free_pinned(b.g, stage);
    gpu_free(b.g, b.n_pairs);
    gpu_free(b.g, b.flush);
    tmx_pool_free(b.pool);
    gpu_close(b.g);
    return 0;
}
