/* test_reuse.c - a prompt that begins with what the session holds: the rest prefilled is the whole prefilled, to the bit. */
#include "base/cpu.h"
#include "run/session.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { FIRST_STEP = 4 };           /* of first prompts, which take ten times as long here */
#else
enum { FIRST_STEP = 1 };
#endif
enum { MAX_TOKENS = 320, N_ANSWER = 4 };

static const tmx_pattern dense = { .kind = TMX_PATTERN_DENSE, .n_sink = 3, .n_window = 20, .n_last = 11 };
static const tmx_pattern triangle = { .kind = TMX_PATTERN_TRIANGLE, .n_sink = 3, .n_window = 20, .n_last = 11 };
static const tmx_pattern streaming = { .kind = TMX_PATTERN_STREAMING, .n_sink = 3, .n_window = 20, .n_last = 11 };

typedef struct plan_case {
    const char *name;
    const tmx_pattern *layers[TINY_LAYERS];
    int32_t min_tokens;
} plan_case;

static const plan_case plans[] = {
    { "dense", { &dense, &dense, &dense }, 0 },
    { "triangle", { &triangle, &triangle, &triangle }, 0 },
    { "triangle in the middle", { &dense, &triangle, &dense }, 0 },
    { "triangle last", { &dense, &dense, &triangle }, 0 },
    { "streaming", { &streaming, &streaming, &dense }, 0 },
    { "triangle from 60 tokens on", { &triangle, &dense, &triangle }, 60 },
};
enum { N_PLANS = sizeof plans / sizeof plans[0] };

typedef struct machine {
    tiny_model tiny;
    tmx_pool *pool;
    tmx_model *model;
} machine;

static machine machines[2];        /* f32 and bf16, on the best rung */

static int open_machines(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const tmx_model_params params = { .compute = i == 0 ? TMX_COMPUTE_F32 : TMX_COMPUTE_BF16 };
        tiny_model_create(&machines[i].tiny, 7, i == 0, false);
        assert_int_equal(tmx_pool_create(&machines[i].pool, 2, NULL), TMX_OK);
        assert_int_equal(tmx_model_open(&machines[i].model, machines[i].tiny.path, &params, machines[i].pool, NULL), TMX_OK);
    }
    return 0;
}

static int close_machines(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        tmx_model_close(machines[i].model);
        tmx_pool_free(machines[i].pool);
        tiny_model_free(&machines[i].tiny);
    }
    return 0;
}

static tmx_session *open_session(const machine *m, const plan_case *p, int32_t n_chunk)
{
    tmx_plan *plan;
    tmx_session *s = NULL;
    tmx_error err;
    assert_int_equal(plan_create_dense(&plan, TINY_LAYERS, NULL), TMX_OK);
    for (int l = 0; l < TINY_LAYERS; l++) plan->layers[l] = *p->layers[l];
    plan->min_tokens = p->min_tokens;
    const tmx_session_params params = { .n_ctx = MAX_TOKENS + N_ANSWER + 1, .n_chunk = n_chunk };
    if (tmx_session_create(&s, m->model, plan, m->pool, &params, &err) != TMX_OK) fail_msg("%s", err.text);
    tmx_plan_free(plan);
    return s;
}

/* What a prompt leads to: its logits, and those of a few tokens after it, which read all of K and V. */
typedef struct outcome { float logits[1 + N_ANSWER][TINY_VOCAB]; } outcome;

static void answer(tmx_session *s, const int32_t *tokens, int32_t n_past, int32_t n_tokens, outcome *o)
{
    tmx_error err;
    assert_int_equal(tmx_session_n_past(s, 0), n_past);
    const tmx_prompt prompt = { .tokens = tokens + n_past, .n_tokens = n_tokens - n_past, .logits = o->logits[0] };
    if (tmx_prefill(s, &prompt, 1, &err) != TMX_OK) fail_msg("%s", err.text);
    for (int i = 0; i < N_ANSWER; i++) {
        if (tmx_decode(s, 0, (7 * i + n_tokens) % TINY_VOCAB, o->logits[i + 1], &err) != TMX_OK) fail_msg("%s", err.text);
    }
}

static void answer_cold(const machine *m, const plan_case *p, const int32_t *tokens, int32_t n_tokens, outcome *o)
{
    tmx_session *s = open_session(m, p, 0);
    answer(s, tokens, 0, n_tokens, o);
    tmx_session_free(s);
}

/* Rewinds to what can be kept (and n_more beyond, to do wrong) and goes on; the number of tokens kept. */
static int32_t answer_hot(tmx_session *s, const int32_t *tokens, int32_t n_common, int32_t n_tokens, int32_t n_more, outcome *o)
{
    int32_t n = tmx_session_n_reusable(s, 0, n_tokens) + n_more;
    if (n > n_common) n = n_common;
    if (n > n_tokens - 1) n = n_tokens - 1;
    assert_int_equal(tmx_session_rewind(s, 0, n, NULL), TMX_OK);
    answer(s, tokens, n, n_tokens, o);
    return n;
}

static void make_tokens(int32_t *tokens, uint64_t seed)
{
    for (int32_t i = 0; i < MAX_TOKENS; i++) tokens[i] = (int32_t)(tiny_random(&seed) % TINY_VOCAB);
}

static void a_second_prompt_hot_is_cold(void **state)
{
    (void)state;
    static const int32_t lengths[] = { 1, 2, 11, 12, 23, 24, 25, 34, 35, 36, 58, 59, 60, 61, 75, 130, 203 };
    enum { N = sizeof lengths / sizeof lengths[0] };
    static outcome cold[N], hot;
    int32_t tokens[MAX_TOKENS], n_kept = 0, n_moved = 0;
    make_tokens(tokens, 1);
    for (int i = 0; i < 2; i++) {
        for (int p = 0; p < N_PLANS; p++) {
            for (int k = 0; k < N; k++) answer_cold(&machines[i], &plans[p], tokens, lengths[k], &cold[k]);
            tmx_session *s = open_session(&machines[i], &plans[p], 17);
            for (int a = 0; a < N; a += FIRST_STEP) {
                for (int b = 0; b < N; b++) {
                    tmx_session_reset(s);
                    answer(s, tokens, 0, lengths[a], &hot);
                    const int32_t n_common = lengths[a] < lengths[b] ? lengths[a] : lengths[b];
                    n_kept += answer_hot(s, tokens, n_common, lengths[b], 0, &hot);
                    if (memcmp(&hot, &cold[b], sizeof hot) != 0) {
                        fail_msg("%s, %d then %d tokens: other bits", plans[p].name, lengths[a], lengths[b]);
                    }
                    tmx_session_reset(s);
                    answer(s, tokens, 0, lengths[a], &hot);
                    answer_hot(s, tokens, n_common, lengths[b], MAX_TOKENS, &hot);
                    n_moved += memcmp(&hot, &cold[b], sizeof hot) != 0;
                }
            }
            tmx_session_free(s);
        }
    }
    print_message("# %d tokens kept; keeping all that is common moves the bits of %d prompts\n", n_kept, n_moved);
    assert_true(n_kept > 10000 / FIRST_STEP && n_moved > 100 / FIRST_STEP);
}

/* As many rows as by definition: those whose keys do not change in a layer that another one follows. */
static void what_is_kept_is_all_that_may_be(void **state)
{
    (void)state;
    int32_t tokens[MAX_TOKENS];
    outcome o;
    make_tokens(tokens, 2);
    for (int p = 0; p < N_PLANS; p++) {
        tmx_session *s = open_session(&machines[0], &plans[p], 0);
        for (int32_t then = 1; then < 120; then += 7) {
            tmx_session_reset(s);
            answer(s, tokens, 0, then, &o);
            for (int32_t now = 1; now < 160; now++) {
                int32_t n = 0;
                for (bool is_same = true; n < then && n < now; n++) {
                    for (int l = 0; l < TINY_LAYERS - 1; l++) {
                        const tmx_pattern a = plan_layer_pattern(s->plan, l, then), b = plan_layer_pattern(s->plan, l, now);
                        for (int32_t k = 0; k <= n; k++) is_same &= pattern_is_visible(&a, then, n, k) == pattern_is_visible(&b, now, n, k);
                    }
                    if (!is_same) break;
                }
                if (tmx_session_n_reusable(s, 0, now) == n) continue;
                fail_msg("%s, %d then %d tokens: %d kept, expected %d", plans[p].name, then, now, tmx_session_n_reusable(s, 0, now), n);
            }
        }
        tmx_session_free(s);
    }
}

/* Turns of any lengths, answers in between, some that part from what was there: each as if it came first. */
static void a_conversation_hot_is_cold(void **state)
{
    (void)state;
    static outcome hot, cold;
    for (int i = 0; i < 2; i++) {
        for (int p = 0; p < N_PLANS; p++) {
            uint64_t seed = (uint64_t)p;
            int32_t held[MAX_TOKENS + N_ANSWER + 1], tokens[MAX_TOKENS], n_held = 0, n_tokens = 0, n_kept = 0;
            make_tokens(tokens, 3);
            tmx_session *s = open_session(&machines[i], &plans[p], 0);
            for (int turn = 0; turn < 12; turn++) {
                n_tokens += 1 + (int32_t)(tiny_random(&seed) % 40);
                if (n_tokens > MAX_TOKENS || turn % 5 == 4) n_tokens = 1 + n_tokens / 2;
                if (turn % 3 == 2) tokens[n_tokens / 2] = turn;
                int32_t n_common = 0;
                while (n_common < n_held && n_common < n_tokens && held[n_common] == tokens[n_common]) n_common++;
                n_kept += answer_hot(s, tokens, n_common, n_tokens, 0, &hot);
                answer_cold(&machines[i], &plans[p], tokens, n_tokens, &cold);
                if (memcmp(&hot, &cold, sizeof hot) != 0) fail_msg("%s, turn %d: other bits", plans[p].name, turn);
                memcpy(held, tokens, (size_t)n_tokens * sizeof *tokens);
                for (int k = 0; k < N_ANSWER; k++) held[n_tokens + k] = (7 * k + n_tokens) % TINY_VOCAB;
                n_held = n_tokens + N_ANSWER;
                for (int32_t k = n_tokens; turn % 4 == 1 && k < n_held && k < MAX_TOKENS; k++) tokens[k] = held[k];
            }
            assert_true(n_kept > 100);
            tmx_session_free(s);
        }
    }
}

/* Appending to what cannot be kept, decoding and cancelled prefills: nothing of it may count. */
static void what_is_not_cold_does_not_count(void **state)
{
    (void)state;
    int32_t tokens[MAX_TOKENS];
    float logits[TINY_VOCAB];
    outcome o;
    make_tokens(tokens, 4);
    tmx_session *s = open_session(&machines[0], &plans[1], 0);
    assert_int_equal(tmx_session_n_reusable(s, 0, 50), 0);
    assert_int_equal(tmx_session_n_reusable(s, 1, 50), -1);
    assert_int_equal(tmx_session_n_reusable(s, -1, 50), -1);
    assert_int_equal(tmx_session_n_reusable(NULL, 0, 50), -1);
    answer(s, tokens, 0, 100, &o);
    assert_int_equal(tmx_session_n_reusable(s, 0, 0), 0);
    assert_int_equal(tmx_session_n_reusable(s, 0, 100), 100);
    assert_int_equal(tmx_session_n_reusable(s, 0, 104), 89);
    assert_int_equal(tmx_prefill(s, &(tmx_prompt){ .tokens = tokens, .n_tokens = 50, .logits = logits }, 1, NULL), TMX_OK);
    assert_int_equal(tmx_session_n_reusable(s, 0, 154), 89);
    assert_int_equal(tmx_session_rewind(s, 0, 60, NULL), TMX_OK);
    assert_int_equal(tmx_session_n_reusable(s, 0, 154), 60);
    assert_int_equal(tmx_decode(s, 0, 1, logits, NULL), TMX_OK);
    assert_int_equal(tmx_session_n_reusable(s, 0, 154), 60);
    tmx_session_reset(s);
    assert_int_equal(tmx_session_n_reusable(s, 0, 154), 0);
    tmx_session_free(s);
}

/* Dynamic layers: dense prompts are kept as in a dense plan, nothing once one of both is not, whatever the lengths.  The last
 * layer is no layer that another one follows. */
static void dynamic_layers_keep_dense_prompts_only(void **state)
{
    (void)state;
    enum { LONG = 2 * KEY_BLOCK };     /* the longest prompt that xattention leaves dense */
    static const tmx_pattern_kind kinds[] = { TMX_PATTERN_XATTENTION, TMX_PATTERN_FLEXPREFILL, TMX_PATTERN_MINFERENCE, TMX_PATTERN_S2O };
    static outcome cold, hot;
    int32_t tokens[MAX_TOKENS];
    make_tokens(tokens, 5);
    for (int i = 0; i < 3; i++) {
        const tmx_pattern dynamic = { .kind = kinds[i], .n_sink = 3, .n_window = 20, .n_last = 11 };
        const plan_case first = { "dynamic first", { &dynamic, &dense, &dense }, 0 }, last = { "dynamic last", { &dense, &dense, &dynamic }, 0 };
        tmx_session *s = open_session(&machines[0], &first, 0);
        flexprefill *f = &s->plan->flexprefill;
        f->min_budget = KEY_BLOCK;
        s->plan->s2o.segment = KEY_BLOCK;
        s->plan->minference = (minference){ .vertical = 30, .slash = 50 };
        const int32_t n_dense = plan_dense_tokens(s->plan, kinds[i]);
        assert_in_range(n_dense, 1, LONG);
        answer(s, tokens, 0, 100, &hot);
        assert_int_equal(tmx_session_n_reusable(s, 0, n_dense), 100);
        assert_int_equal(tmx_session_n_reusable(s, 0, n_dense + 1), 0);
        tmx_session_reset(s);
        answer(s, tokens, 0, 300, &cold);
        assert_int_equal(tmx_session_n_reusable(s, 0, 100), 0);
        assert_int_equal(tmx_session_n_reusable(s, 0, 300), 0);
        assert_int_equal(tmx_session_n_reusable(s, 0, 310), 0);
        assert_int_equal(answer_hot(s, tokens, 300, 300, 0, &hot), 0);
        assert_memory_equal(&hot, &cold, sizeof hot);
        /* A turn on a filled cache is dense in these layers: other bits, so what it leaves may not count either. */
        tmx_session_reset(s);
        answer(s, tokens, 0, 290, &hot);
        assert_int_equal(tmx_session_rewind(s, 0, 280, NULL), TMX_OK);
        answer(s, tokens, 280, 300, &hot);
        assert_int_equal(tmx_session_n_reusable(s, 0, 300), 0);
        tmx_session_free(s);

        s = open_session(&machines[0], &last, 0);
        answer(s, tokens, 0, 300, &hot);
        assert_int_equal(tmx_session_n_reusable(s, 0, 310), 300);
        tmx_session_free(s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_second_prompt_hot_is_cold),
        cmocka_unit_test(what_is_kept_is_all_that_may_be),
        cmocka_unit_test(a_conversation_hot_is_cold),
        cmocka_unit_test(what_is_not_cold_does_not_count),
        cmocka_unit_test(dynamic_layers_keep_dense_prompts_only),
    };
    return cmocka_run_group_tests(tests, open_machines, close_machines);
}
