/* time_gpu_ops.c - rates of the device operators at the 8B geometry (check_gpu_ops --time): medians over replays of a graph of
 * N_CALLS calls, each on weights or a cache of its own, after other clean lines have filled L2. */
#include "gpu_ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static gpu_mark *mark_begin, *mark_end;
static gpu_weight flush;           /* larger than L2, read before each timed graph: written lines would have to leave first */
static float *flush_rows;
enum { N_TIMES = 9, N_CALLS = 8 };

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct timed {
    gpu_weight weight;
    gpu_place place;
    const void *in;
    void *out, *scratch;
    int32_t n_rows, n, turn;       /* turn: which of N_CALLS calls; each takes other weights, other caches */
    tmx_type type;
    bool is_added;
} timed;

static gpu_graph *record(void (*call)(const timed *t), const timed *t)
{
    tmx_error err;
    gpu_graph *graph = NULL;
    timed of_turn = *t;
    gpu_graph_begin(g);
    for (of_turn.turn = 0; of_turn.turn < N_CALLS; of_turn.turn++) call(&of_turn);
    stop_at(gpu_graph_end(g, &graph, &err) == TMX_OK, err.text);
    return graph;
}

/* ms[i]: median ms of one call of graph i; the graphs take turns. */
static void time_graphs(gpu_graph *const *graphs, int32_t n_graphs, double *ms)
{
    double all[2][N_TIMES];
    for (int32_t round = -1; round < N_TIMES; round++) {
        for (int32_t i = 0; i < n_graphs; i++) {
            gpu_row_product(g, &flush, flush_rows, 1, flush_rows + flush.n_in, false);
            gpu_mark_set(g, mark_begin);
            gpu_graph_run(g, graphs[i]);
            gpu_mark_set(g, mark_end);
            wait_ok();
            if (round >= 0) all[i][round] = gpu_mark_ms(g, mark_begin, mark_end) / N_CALLS;
        }
    }
    for (int32_t i = 0; i < n_graphs; i++) {
        qsort(all[i], N_TIMES, sizeof *all[i], compare_doubles);
        ms[i] = all[i][N_TIMES / 2];
        gpu_graph_free(g, graphs[i]);
    }
}

static double copy_rate;

static void print_rate(const char *name, int32_t a, int32_t b, size_t n_bytes, void (*call)(const timed *t), const timed *t)
{
    double ms;
    gpu_graph *graph = record(call, t);
    time_graphs(&graph, 1, &ms);
    const double rate = (double)n_bytes / ms * 1e-6;
    if (copy_rate == 0) copy_rate = rate;                  /* the first is the copy */
    printf("%-16s %7d x %6d  %8.4f ms  %5.0f GB/s  %3.0f %%\n", name, a, b, ms, rate, 100 * rate / copy_rate);
}

static gpu_weight weight_of_turn(const timed *t)
{
    gpu_weight w = t->weight;
    const uint64_t n_bytes = gpu_weight_bytes(w.n_out, w.n_in), n_fitting = ((uint64_t)2 << 30) / n_bytes;
    w.data = (char *)w.data + (uint64_t)t->turn % n_fitting * n_bytes;
    return w;
}

static void run_product(const timed *t)
{
    const gpu_weight w = weight_of_turn(t);
    gpu_product(g, &w, t->in, (size_t)w.n_in, t->n_rows, t->out, (size_t)w.n_out, t->type, t->is_added);
}
static void run_row_product(const timed *t)
{
    const gpu_weight w = weight_of_turn(t);
    gpu_row_product(g, &w, t->in, t->n_rows, t->out, false);
}
static void run_decode(const timed *t)
{
    gpu_place place = t->place;
    const size_t layer = (size_t)2 * (size_t)place.n_kv_heads * (size_t)place.head_dim * (size_t)place.n_ctx;
    place.k = (char *)place.k + (size_t)t->turn * layer;
    place.v = (char *)place.v + (size_t)t->turn * layer;
    gpu_decode_attention(g, &place, 0.088f, 0, t->in, t->out, t->scratch);
}
static void run_copy(const timed *t)
{
    CUDA_OK(cudaMemcpyAsync(t->out, t->in, (size_t)1 << 30, cudaMemcpyDeviceToDevice, gpu_stream(g)));
}
static void run_rmsnorm(const timed *t) { gpu_rmsnorm(g, t->in, t->scratch, 1e-5f, t->n_rows, t->n, t->out, TMX_TYPE_BF16); }
static void run_swiglu(const timed *t) { gpu_swiglu(g, t->in, t->n_rows, t->n, t->out, t->type); }
static void run_place(const timed *t) { gpu_place_heads(g, &t->place, t->in, TMX_TYPE_BF16, t->out); }
static void run_greedy(const timed *t) { gpu_sample(g, t->in, t->n, &(sample_rule){ 0 }, t->out, t->scratch); }
static void run_top_k(const timed *t) { gpu_sample(g, t->in, t->n, &(sample_rule){ .temperature = 1, .top_k = 40, .draw = 0.5 }, t->out, t->scratch); }
static void run_sampled(const timed *t) { gpu_sample(g, t->in, t->n, &(sample_rule){ .temperature = 1, .top_p = 0.9f, .draw = 0.5 }, t->out, t->scratch); }
static void run_embed(const timed *t) { gpu_embed(g, t->scratch, t->in, t->n_rows, t->n, 1.0f, t->out); }

/* A layer of 8B for one row, as decoding runs it. */
static void run_layer(const timed *t)
{
    static const int32_t shapes[][2] = { { 6144, 4096 }, { 4096, 4096 }, { 28672, 4096 }, { 4096, 14336 } };
    gpu_weight w[COUNT(shapes)];
    float *x = t->out, *norm = x + 4096, *wide = norm + 4096, *narrow = wide + 28672;
    char *data = (char *)t->weight.data + (size_t)(t->turn % 4) * ((size_t)500 << 20);
    for (int32_t i = 0; i < COUNT(shapes); i++) {
        w[i] = (gpu_weight){ .data = data, .n_out = shapes[i][0], .n_in = shapes[i][1] };
        data += gpu_weight_bytes(w[i].n_out, w[i].n_in);
    }
    gpu_place place = t->place;
    const size_t layer = (size_t)2 * (size_t)place.n_kv_heads * (size_t)place.head_dim * (size_t)place.n_ctx;
    place.k = (char *)place.k + (size_t)t->turn * layer;
    place.v = (char *)place.v + (size_t)t->turn * layer;
    gpu_rmsnorm(g, x, t->in, 1e-5f, 1, 4096, norm, TMX_TYPE_F32);
    gpu_row_product(g, &w[0], norm, 1, wide, false);
    gpu_place_heads(g, &place, wide, TMX_TYPE_F32, narrow);
    gpu_decode_attention(g, &place, 0.088f, 0, narrow, norm, t->scratch);
    gpu_row_product(g, &w[1], norm, 1, x, true);
    gpu_rmsnorm(g, x, t->in, 1e-5f, 1, 4096, norm, TMX_TYPE_F32);
    gpu_row_product(g, &w[2], norm, 1, wide, false);
    gpu_swiglu(g, wide, 1, 14336, narrow, TMX_TYPE_F32);
    gpu_row_product(g, &w[3], narrow, 1, x, true);
}

static void *big_alloc(size_t n_bytes)
{
    void *p = NULL;
    tmx_error err;
    stop_at(gpu_alloc(g, &p, n_bytes, &err) == TMX_OK, err.text);
    return p;
}

static void fill_random(void *p, size_t n_bytes)
{
    const gpu_weight all = { .data = p, .n_out = (int32_t)(n_bytes >> 13), .n_in = 4096 };
    gpu_weight_random(g, &all, 1.0f, 5);
}

/* The first choice and the tuned one take turns. */
static void time_products(void *x, void *y, void *w)
{
    static const struct { const char *name; int32_t n_out, n_in; tmx_type type; bool is_added; } shapes[] = {
        { "qkv", 6144, 4096, TMX_TYPE_BF16, false }, { "o", 4096, 4096, TMX_TYPE_F32, true },
        { "gate_up", 28672, 4096, TMX_TYPE_BF16, false }, { "down", 4096, 14336, TMX_TYPE_F32, true },
    };
    static const int32_t rows[] = { 512, 2048, 8192 };
    for (int32_t i = 0; i < COUNT(shapes); i++) {
        timed t = { .weight = { .data = w, .n_out = shapes[i].n_out, .n_in = shapes[i].n_in }, .in = x, .out = y,
                    .type = shapes[i].type, .is_added = shapes[i].is_added };
        gpu_graph *graphs[COUNT(rows)][2];
        tmx_error err;
        for (int32_t r = 0; r < COUNT(rows); r++) t.n_rows = rows[r], graphs[r][0] = record(run_product, &t);
        stop_at(gpu_weight_tune(g, &t.weight, 2048, t.type, t.is_added, y, &err) == TMX_OK, err.text);
        gpu_weight_describe(&t.weight, err.text, sizeof err.text);
        printf("%s: %s\n", shapes[i].name, err.text);
        for (int32_t r = 0; r < COUNT(rows); r++) {
            double ms[2];
            t.n_rows = rows[r], graphs[r][1] = record(run_product, &t);
            time_graphs(graphs[r], 2, ms);
            const double gflop = 2e-9 * rows[r] * (double)t.weight.n_out * t.weight.n_in;
            printf("  %5d rows: untuned %7.4f ms %4.0f TFLOP/s, tuned %7.4f ms %4.0f TFLOP/s\n", rows[r], ms[0], gflop / ms[0],
                   ms[1], gflop / ms[1]);
        }
    }
}

void time_all(void)
{
    enum { ROWS = 8192, EMBD = 4096, FF = 14336, HEADS = 32, KV_HEADS = 8, DIM = 128, DEPTH = 131072, VOCAB = 128256 };
    enum { LAYER_BYTES = 2 * 4096 * (6144 + 4096 + 28672 + 14336) };
    tmx_error err;
    stop_at(gpu_mark_create(g, &mark_begin, &err) == TMX_OK && gpu_mark_create(g, &mark_end, &err) == TMX_OK, "no marks");
    const size_t big = (size_t)2 << 30;
    void *a = big_alloc(big), *b = big_alloc(big), *c = big_alloc(big), *v = big_alloc(big);
    fill_random(a, big), fill_random(b, big), fill_random(c, big), fill_random(v, big);
    flush = (gpu_weight){ .data = v, .n_out = 32768, .n_in = 4096 };
    flush_rows = big_alloc(sizeof(float) * (32768 + 4096));
    CUDA_OK(cudaMemset(flush_rows, 0, sizeof(float) * 4096));
    float *rows_of_layer = big_alloc(sizeof(float) * 65536);
    CUDA_OK(cudaMemset(rows_of_layer, 0, sizeof(float) * 65536));
    timed t = { .in = a, .out = b };
    print_rate("copy, 1 GiB", 1, 1, (size_t)2 << 30, run_copy, &t);
    time_products(a, b, c);

    fill_random(a, big);
    t = (timed){ .weight = { .data = c }, .in = a, .out = b };
    static const int32_t matrices[][2] = { { 6144, 4096 }, { 4096, 4096 }, { 28672, 4096 }, { 4096, 14336 }, { VOCAB, 4096 } };
    static const int32_t few[] = { 1, 2, 4, 8 };
    for (int32_t i = 0; i < COUNT(matrices); i++) {
        t.weight.n_out = matrices[i][0], t.weight.n_in = matrices[i][1];
        for (int32_t r = 0; r < COUNT(few); r++) {
            char name[32];
            t.n_rows = few[r];
            snprintf(name, sizeof name, "row product, %d", few[r]);
            print_rate(name, t.weight.n_out, t.weight.n_in, gpu_weight_bytes(t.weight.n_out, t.weight.n_in), run_row_product, &t);
        }
    }

    t = (timed){ .in = a, .out = b, .scratch = c, .n_rows = ROWS, .n = EMBD, .type = TMX_TYPE_BF16 };
    print_rate("rmsnorm", ROWS, EMBD, (size_t)6 * ROWS * EMBD, run_rmsnorm, &t);
    t.n_rows = 1;
    print_rate("rmsnorm", 1, EMBD, (size_t)6 * EMBD, run_rmsnorm, &t);
    t.n_rows = ROWS, t.n = FF;
    print_rate("swiglu", ROWS, FF, (size_t)6 * ROWS * FF, run_swiglu, &t);
    t.n_rows = 1, t.type = TMX_TYPE_F32;
    print_rate("swiglu f32", 1, FF, (size_t)12 * FF, run_swiglu, &t);
    t.n = VOCAB;
    print_rate("greedy choice", 1, VOCAB, (size_t)4 * VOCAB, run_greedy, &t);
    t.scratch = big_alloc(gpu_sample_bytes(VOCAB));
    print_rate("sample, top-k 40", 1, VOCAB, (size_t)4 * VOCAB, run_top_k, &t);
    print_rate("sample, top-p 0.9", 1, VOCAB, (size_t)4 * VOCAB, run_sampled, &t);

    int32_t *numbers = host_alloc(ROWS * sizeof *numbers);
    float freq[DIM / 2];
    for (int32_t i = 0; i < ROWS; i++) numbers[i] = i;
    for (int32_t i = 0; i < DIM / 2; i++) freq[i] = (float)pow(500000.0, -2.0 * i / DIM);
    int32_t *positions = big_alloc(ROWS * sizeof *numbers), *seqs = big_alloc(ROWS * sizeof *numbers);
    float *inverse_freq = big_alloc(sizeof freq);
    CUDA_OK(cudaMemcpy(positions, numbers, ROWS * sizeof *numbers, cudaMemcpyHostToDevice));
    CUDA_OK(cudaMemcpy(inverse_freq, freq, sizeof freq, cudaMemcpyHostToDevice));
    CUDA_OK(cudaMemset(seqs, 0, ROWS * sizeof *numbers));
    CUDA_OK(cudaDeviceSynchronize());
    free(numbers);
    t = (timed){ .in = positions, .out = b, .scratch = c, .n_rows = ROWS, .n = EMBD };
    print_rate("embed", ROWS, EMBD, (size_t)6 * ROWS * EMBD, run_embed, &t);
    t = (timed){ .in = a, .out = b, .scratch = (char *)a + (big >> 1) };
    t.place = (gpu_place){ .positions = positions, .seqs = seqs, .inverse_freq = inverse_freq, .rope_factor = 1, .n_rows = ROWS,
                           .n_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim = DIM, .n_rot = DIM, .rope = ROPE_INTERLEAVED,
                           .k = c, .v = v, .n_ctx = DEPTH };
    const size_t row_bytes = (size_t)4 * (HEADS + 2 * KV_HEADS) * DIM;
    print_rate("place, pairs", ROWS, EMBD, ROWS * row_bytes, run_place, &t);
    t.place.rope = ROPE_HALF_SPLIT;
    print_rate("place, halves", ROWS, EMBD, ROWS * row_bytes, run_place, &t);
    t.place.n_rows = 1;
    print_rate("place, halves", 1, EMBD, row_bytes, run_place, &t);
    static const int32_t depths[] = { 1024, 32768, 131072 }, kv_heads[] = { 8, 4, 2 };
    for (int32_t h = 0; h < COUNT(kv_heads); h++) {
        for (int32_t i = 0; i < COUNT(depths); i++) {
            const int32_t last = depths[i] - 1;
            CUDA_OK(cudaMemcpy(positions, &last, 4, cudaMemcpyHostToDevice));
            CUDA_OK(cudaDeviceSynchronize());
            t.place.n_kv_heads = kv_heads[h];
            char name[32];
            snprintf(name, sizeof name, "decode, %d / %d", HEADS, kv_heads[h]);
            const size_t n_bytes = (size_t)4 * (size_t)kv_heads[h] * DIM * (size_t)depths[i];
            print_rate(name, depths[i], DIM, n_bytes, run_decode, &t);
            if (h > 0) continue;
            timed layer = t;
            layer.weight.data = b, layer.out = rows_of_layer;
            print_rate("a layer, 1 row", depths[i], DIM, n_bytes + LAYER_BYTES, run_layer, &layer);
        }
    }
    gpu_free(g, positions), gpu_free(g, seqs), gpu_free(g, inverse_freq);
    gpu_free(g, a), gpu_free(g, b), gpu_free(g, c), gpu_free(g, v), gpu_free(g, flush_rows), gpu_free(g, rows_of_layer);
    gpu_mark_free(g, mark_begin), gpu_mark_free(g, mark_end);
}
