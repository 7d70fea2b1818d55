/* test_search_heads.c - the search for MInference's heads: errors and sizes of one layer against f64, and whole searches of a tiny
 * random model. */
#include "base/mem.h"
#include "base/pool.h"
#include "plan/plan_parts.h"
#include "run/search_heads.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define RANDOM_SEED 424
#include "random_buffers.h"

static const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE };

/* Head 0 looks at a key far back, which no window holds; head 1 at what is near. */
static void a_layer_is_searched_as_defined(void **state)
{
    (void)state;
    enum { N = 640, HEADS = 2, DIM = 8, COLUMN = 150, ALL = N * HEADS * DIM };
    float *q = random_buffer(TMX_TYPE_F32, ALL), *k = random_buffer(TMX_TYPE_F32, N * DIM), *v = random_buffer(TMX_TYPE_F32, N * DIM);
    float *out = malloc(ALL * sizeof *out), *other = malloc(ALL * sizeof *other);
    double *expected = malloc(ALL * sizeof *expected), *kept = malloc(ALL * sizeof *kept), *lse = malloc(N * HEADS * sizeof *lse);
    uint64_t *room = malloc(HEADS * minference_room_bytes(N));
    assert_true(out != NULL && other != NULL && expected != NULL && kept != NULL && lse != NULL && room != NULL);
    for (size_t i = 0; i < N; i++) {
        k[i * DIM] = i == COLUMN ? 8 : 0;
        k[i * DIM + 1] = 0.02f * (float)i;                 /* grows: the newest keys win for head 1 */
        q[i * HEADS * DIM] = 6, q[i * HEADS * DIM + 1] = 0;
        q[i * HEADS * DIM + DIM] = 0, q[i * HEADS * DIM + DIM + 1] = 12;
    }
    tmx_attention_seq seq = { .q = q, .k = k, .v = v, .out = out, .n_q = N, .n_prompt = N };
    tmx_attention_params params = {
        .q_type = TMX_TYPE_F32, .kv_type = TMX_TYPE_F32, .n_heads = HEADS, .n_kv_heads = 1, .head_dim = DIM, .q_pos_stride = HEADS * DIM,
        .q_head_stride = DIM, .out_pos_stride = HEADS * DIM, .out_head_stride = DIM, .k_pos_stride = DIM, .k_head_stride = N * DIM,
        .v_pos_stride = DIM, .v_head_stride = N * DIM, .seqs = &seq, .n_seqs = 1,
    };
    tmx_error err;
    if (tmx_attention(&params, NULL, &err) != TMX_OK) fail_msg("%s", err.text);
    params.scratch = mem_alloc(attn_lists_scratch_bytes(&params, TMX_PATTERN_MINFERENCE, N, 1), 1);
    assert_non_null(params.scratch);
    candidate candidates[2 * HEADS * N_CANDIDATES] = { { .error = 0 } };
    double least[HEADS], most[HEADS], error[HEADS];
    bool is_seen[2] = { false };
    head_search search = { .keep = 0.5, .n_heads = HEADS, .candidates = candidates, .out = other, .least = least, .most = most, .error = error,
                           .is_seen = is_seen };
    minference_head chosen[HEADS];
    head_keys found[HEADS];
    search_layer(&search, 1, &params, chosen, found, room, NULL);
    assert_true(is_seen[1] && !is_seen[0]);
    attn_ref_f64(&params, 0, expected, lse);
    const double budget = 0.5 * (double)tmx_pattern_pairs(&dense, N, 0, N);
    for (int c = 0; c < N_CANDIDATES; c++) {               /* once more with the sizes that were found */
        for (size_t h = 0; h < HEADS; h++) chosen[h] = candidates[(HEADS + h) * N_CANDIDATES + (size_t)c].head;
        attn_minference(&params, chosen, found, room, NULL);
        attn_heads_ref_f64(&params, found, kept, lse);
        for (size_t h = 0; h < HEADS; h++) {
            const candidate *at = &candidates[(HEADS + h) * N_CANDIDATES + (size_t)c];
            double difference = 0, norm = 0;
            for (size_t i = 0; i < N * DIM; i++) {
                const size_t o = (i / DIM * HEADS + h) * DIM + i % DIM;
                difference += (kept[o] - expected[o]) * (kept[o] - expected[o]);
                norm += expected[o] * expected[o];
            }
            if (at->head.type == MINFERENCE_BLOCK_SPARSE) {        /* 100 blocks are the whole prompt */
                assert_true(isinf(at->error));
                continue;
            }
            assert_true((double)head_keys_pairs(&found[h], 0) <= budget);
            assert_true((double)head_keys_pairs(&found[h], 0) > 0.8 * budget);
            if (!(fabs(at->error - difference / norm) <= 1e-4 * at->error + 1e-10)) {
                fail_msg("head %zu, candidate %d: error %g, f64 %g", h, c, at->error, difference / norm);
            }
        }
    }
    const candidate *column = candidates + HEADS * N_CANDIDATES, *near = column + N_CANDIDATES;
    assert_true(column[3].error < 1e-3 && column[4].error > 0.1);      /* mostly columns; A-shape */
    assert_true(near[4].error < 1e-3);
    mem_free(params.scratch);
    free(q), free(k), free(v), free(out), free(other), free(expected), free(kept), free(lse), free(room);
}

typedef struct machine {
    tiny_model tiny;
    tmx_pool *pool;
    tmx_model *model;
} machine;

static void open_machine(machine *m, int32_t n_threads)
{
    tmx_error err = { 0 };
    tiny_model_create(&m->tiny, 7, true, true);
    assert_int_equal(tmx_pool_create(&m->pool, n_threads, &err), TMX_OK);
    if (tmx_model_open(&m->model, m->tiny.path, &(tmx_model_params){ 0 }, m->pool, &err) != TMX_OK) fail_msg("%s", err.text);
}

static void close_machine(machine *m)
{
    tmx_model_close(m->model);
    tmx_pool_free(m->pool);
    tiny_model_free(&m->tiny);
}

static bool count(void *ctx, const tmx_progress *p)
{
    int64_t *at = ctx;
    assert_true(p->n_done >= at[0] && p->n_done <= p->n_total);
    at[0] = p->n_done;
    at[1] = p->n_total;
    return p->n_done < at[2];
}

static void a_model_is_searched(void **state)
{
    (void)state;
    enum { N = 600 };
    int32_t tokens[2][N];
    for (int i = 0; i < 2 * N; i++) tokens[i / N][i % N] = random_in(0, TINY_VOCAB);
    const tmx_prompt prompts[] = { { .tokens = tokens[0], .n_tokens = N }, { .tokens = tokens[1], .n_tokens = 400 } };
    int64_t at[3] = { 0, 0, INT64_MAX };
    tmx_head_search_params params = { .prompts = prompts, .n_prompts = 2, .keep = 0.6, .progress = count, .progress_ctx = at };
    tmx_head_search_result result, again;
    tmx_plan *first = NULL, *plan;
    tmx_error err;
    for (int32_t n_threads = 1; n_threads <= 3; n_threads += 2) {
        machine m;
        open_machine(&m, n_threads);
        at[0] = 0;
        if (tmx_minference_search(&plan, m.model, m.pool, &params, n_threads == 1 ? &result : &again, &err) != TMX_OK) fail_msg("%s", err.text);
        assert_true(at[0] == at[1] && at[1] > 0);
        if (first == NULL) {
            first = plan;
        } else {
            assert_memory_equal(first->heads, plan->heads, (size_t)TINY_LAYERS * TINY_HEADS * sizeof *plan->heads);
            assert_memory_equal(&result, &again, sizeof result);
            tmx_plan_free(plan);
        }
        close_machine(&m);
    }
    assert_int_equal(result.n_vertical_slash + result.n_a_shape + result.n_block_sparse, (TINY_LAYERS - 1) * TINY_HEADS);
    assert_true(result.error > 0 && result.error < 1);
    for (int32_t h = 0; h < TINY_HEADS; h++) {             /* the last layer runs single rows: nothing to look at */
        const minference_head head = plan_minference_head(first, TINY_LAYERS - 1, h);
        assert_true(head.type == MINFERENCE_VERTICAL_SLASH && head.a == 1000 && head.b == 6096);
    }

    char path[] = "/tmp/tmx-heads-XXXXXX", spec[64];
    const int fd = mkstemp(path);
    machine m;
    open_machine(&m, 2);
    assert_true(fd >= 0 && close(fd) == 0);
    assert_int_equal(tmx_plan_save_heads(first, path, &err), TMX_OK);
    snprintf(spec, sizeof spec, "minference(%s)", path);
    if (tmx_plan_parse(&plan, spec, tmx_model_info_get(m.model), &err) != TMX_OK) fail_msg("%s", err.text);
    assert_memory_equal(first->heads, plan->heads, (size_t)TINY_LAYERS * TINY_HEADS * sizeof *plan->heads);
    tmx_session *session;
    assert_int_equal(tmx_session_create(&session, m.model, plan, m.pool, NULL, &err), TMX_OK);
    assert_int_equal(tmx_prefill(session, prompts, 1, &err), TMX_OK);
    assert_true(tmx_session_layer_density(session, 0) > 0.3 && tmx_session_layer_density(session, 0) < 0.75);
    tmx_session_free(session);
    tmx_plan_free(plan);
    unlink(path);

    at[0] = 0, at[2] = 1;                                  /* stopped */
    assert_int_equal(tmx_minference_search(&plan, m.model, m.pool, &params, &again, &err), TMX_E_CANCELLED);
    params.keep = 0;
    assert_int_equal(tmx_minference_search(&plan, m.model, m.pool, &params, &again, &err), TMX_E_ARG);
    assert_string_equal(err.text, "minference search: keep: 0, expected more than 0, up to 1");
    params.keep = 0.5;
    params.prompts = &(tmx_prompt){ .tokens = tokens[0], .n_tokens = 256 };
    params.n_prompts = 1;
    assert_int_equal(tmx_minference_search(&plan, m.model, m.pool, &params, &again, &err), TMX_E_ARG);
    assert_string_equal(err.text, "minference search: prompt 0 has 256 tokens, expected 257 or more");
    params.n_prompts = 0;
    assert_int_equal(tmx_minference_search(&plan, m.model, m.pool, &params, &again, &err), TMX_E_ARG);
    assert_int_equal(plan_create_dense(&plan, 2, NULL), TMX_OK);
    assert_int_equal(tmx_plan_save_heads(plan, path, &err), TMX_E_ARG);
    tmx_plan_free(plan);
    tmx_plan_free(first);
    close_machine(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_layer_is_searched_as_defined),
        cmocka_unit_test(a_model_is_searched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
