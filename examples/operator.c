/* operator.c - operator [N]: the attention operator alone, on N random tokens (default 8192): a triangle beside dense, their
 * times and how far the rows differ.  The last rows see everything in both, so there the difference is 0.
 *
 *     cc operator.c $(pkg-config --cflags --libs trianglemix) -lm -o operator */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <tmx.h>

enum { N_HEADS = 8, N_KV_HEADS = 2, HEAD_DIM = 64, ROW = N_HEADS * HEAD_DIM, KV_ROW = N_KV_HEADS * HEAD_DIM };

static float *random_rows(size_t n)
{
    static uint64_t state = 1;
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x != NULL && i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)(state >> 40) * 0x1p-23f - 1;        /* in [-1, 1) */
    }
    return x;
}

static double attend_ms(const tmx_pattern *pattern, const tmx_attention_seq *seq, tmx_pool *pool)
{
    const tmx_attention_params params = {
        .n_heads = N_HEADS, .n_kv_heads = N_KV_HEADS, .head_dim = HEAD_DIM, .pattern = *pattern, .seqs = seq, .n_seqs = 1,
        .q_pos_stride = ROW, .q_head_stride = HEAD_DIM, .out_pos_stride = ROW, .out_head_stride = HEAD_DIM,
        .k_pos_stride = KV_ROW, .k_head_stride = HEAD_DIM, .v_pos_stride = KV_ROW, .v_head_stride = HEAD_DIM,
    };
    struct timespec begin, end;
    tmx_error err;
    timespec_get(&begin, TIME_UTC);
    if (tmx_attention(&params, pool, &err)) fprintf(stderr, "operator: %s\n", err.text), exit(2);
    timespec_get(&end, TIME_UTC);
    return (double)(end.tv_sec - begin.tv_sec) * 1e3 + (double)(end.tv_nsec - begin.tv_nsec) * 1e-6;
}

static double max_difference(const float *a, const float *b, size_t n)
{
    double max = 0;
    for (size_t i = 0; i < n; i++) max = fmax(max, fabs((double)a[i] - (double)b[i]));
    return max;
}

int main(int argc, char **argv)
{
    const int32_t n = argc > 1 ? (int32_t)strtol(argv[1], NULL, 10) : 8192;
    if (n < 1 || n > 1 << 20) return fprintf(stderr, "usage: operator [N], N in 1..1048576\n"), 1;
    const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE };
    const tmx_pattern triangle = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = TMX_DEFAULT_SINK, .n_window = TMX_DEFAULT_WINDOW,
                                   .n_last = TMX_DEFAULT_LAST };
    const size_t rows = (size_t)n;
    float *q = random_rows(rows * ROW), *k = random_rows(rows * KV_ROW), *v = random_rows(rows * KV_ROW);
    float *out[2] = { malloc(rows * ROW * sizeof(float)), malloc(rows * ROW * sizeof(float)) };
    tmx_pool *pool;
    if (!q || !k || !v || !out[0] || !out[1] || tmx_pool_create(&pool, 0, NULL)) fprintf(stderr, "out of memory\n"), exit(3);

    tmx_attention_seq seq = { .q = q, .k = k, .v = v, .out = out[0], .n_q = n, .n_prompt = n };
    const double dense_ms = attend_ms(&dense, &seq, pool);
    seq.out = out[1];
    const double triangle_ms = attend_ms(&triangle, &seq, pool);

    const size_t n_last = n > TMX_DEFAULT_LAST ? TMX_DEFAULT_LAST : rows, first_last = (rows - n_last) * ROW;
    printf("%d tokens, %d threads\n", n, tmx_pool_n_threads(pool));
    printf("dense      %9.1f ms  %12lld pairs\n", dense_ms, (long long)tmx_pattern_pairs(&dense, n, 0, n));
    printf("triangle   %9.1f ms  %12lld pairs\n", triangle_ms, (long long)tmx_pattern_pairs(&triangle, n, 0, n));
    printf("max difference: %.2g in the last %zu rows, %.2g in the others\n",
           max_difference(out[0] + first_last, out[1] + first_last, n_last * ROW), n_last,
           max_difference(out[0], out[1], first_last));
    tmx_pool_free(pool);
    free(q), free(k), free(v), free(out[0]), free(out[1]);
    return 0;
}
