/* test_lora.c - adapters: merged against f64, against themselves to the bit, and refused when they are wrong. */
#include "base/cpu.h"
#include "run/session.h"
#include "tiny_lora.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { N_PROMPT = 40, N_Q = TINY_HEADS * TINY_HEAD_DIM, N_KV = TINY_KV_HEADS * TINY_HEAD_DIM };

/* ---------------------------------------------------------------- one run */

typedef struct result {            /* after the prompt, and after one decoded token more; everything dense */
    float prompt[TINY_VOCAB], decoded[TINY_VOCAB];
    char fingerprint[65];
    uint64_t n_merged;
} result;

static void fill_tokens(int32_t tokens[N_PROMPT + 1])
{
    uint64_t state = 11;
    for (int i = 0; i <= N_PROMPT; i++) tokens[i] = (int32_t)(tiny_random(&state) % TINY_VOCAB);
}

static void run(const tiny_model *tiny, const tmx_model_params *params, int32_t n_threads, result *r)
{
    int32_t tokens[N_PROMPT + 1];
    tmx_pool *pool;
    tmx_model *model;
    tmx_session *session;
    tmx_error err;
    fill_tokens(tokens);
    memset(r, 0, sizeof *r);
    assert_int_equal(tmx_pool_create(&pool, n_threads, &err), TMX_OK);
    if (tmx_model_open(&model, tiny->path, params, pool, &err) != TMX_OK) fail_msg("%s", err.text);
    const tmx_model_info *info = tmx_model_info_get(model);
    snprintf(r->fingerprint, sizeof r->fingerprint, "%s", info->fingerprint);
    r->n_merged = info->n_merged;
    assert_int_equal(info->n_loras, params->n_loras);
    assert_int_equal(tmx_session_create(&session, model, NULL, pool, &(tmx_session_params){ .n_ctx = 64 }, &err), TMX_OK);
    const tmx_prompt prompt = { .tokens = tokens, .n_tokens = N_PROMPT, .logits = r->prompt };
    if (tmx_prefill(session, &prompt, 1, &err) != TMX_OK) fail_msg("%s", err.text);
    if (tmx_decode(session, 0, tokens[N_PROMPT], r->decoded, &err) != TMX_OK) fail_msg("%s", err.text);
    tmx_session_free(session);
    tmx_model_close(model);
    tmx_pool_free(pool);
}

static void run_with(const tiny_model *tiny, const tmx_model_params *params, const tmx_lora *loras, int32_t n, result *r)
{
    tmx_model_params with = *params;
    with.loras = loras;
    with.n_loras = n;
    run(tiny, &with, 2, r);
}

static void expect_same_bits(const result *a, const result *b)
{
    assert_memory_equal(a->prompt, b->prompt, sizeof a->prompt);
    assert_memory_equal(a->decoded, b->decoded, sizeof a->decoded);
}

static double worst_difference(const float *found, const double *expected)
{
    double worst = 0, largest = 0;
    for (int i = 0; i < TINY_VOCAB; i++) {
        const double difference = fabs((double)found[i] - expected[i]);
        if (!(difference <= worst)) worst = difference;         /* NaN never passes */
        largest = fmax(largest, fabs(expected[i]));
    }
    return worst / largest;
}

/* As in test_session.c.  In bf16 the copies are bf16 too, so decoding errs as much as prefill does. */
static double limit_of(tmx_compute compute) { return compute == TMX_COMPUTE_F32 ? 1e-5 : 0.04; }

/* tiny holds the changed weights.  Returns the worse of prefill and decoding. */
static double difference_from_f64(const tiny_model *tiny, const result *r)
{
    static const tmx_pattern dense[TINY_LAYERS];
    int32_t tokens[N_PROMPT + 1];
    double expected[2][TINY_VOCAB];
    fill_tokens(tokens);
    for (int i = 0; i < 2; i++) tiny_forward_f64(tiny, tokens, N_PROMPT + i, dense, expected[i]);
    return fmax(worst_difference(r->prompt, expected[0]), worst_difference(r->decoded, expected[1]));
}

static void on_every_rung(void (*check)(const tmx_model_params *params))
{
    for (int isa = TMX_ISA_SCALAR; isa <= TMX_ISA_AMX; isa++) {
        if (!cpu_has((tmx_isa)isa)) continue;
        for (int compute = TMX_COMPUTE_F32; compute <= TMX_COMPUTE_BF16; compute++) {
            check(&(tmx_model_params){ .isa = (tmx_isa)isa, .compute = (tmx_compute)compute });
        }
    }
}

/* ---------------------------------------------------------------- what is merged */

/* A matrix of layer l, and where the tiny model keeps it. */
typedef struct matrix { const char *name; int64_t n_out, n_in; } matrix;
static const matrix matrices[] = {
    { "attn_q", N_Q, TINY_EMBD }, { "attn_k", N_KV, TINY_EMBD }, { "attn_v", N_KV, TINY_EMBD },
    { "attn_output", TINY_EMBD, N_Q }, { "ffn_gate", TINY_FF, TINY_EMBD }, { "ffn_up", TINY_FF, TINY_EMBD },
    { "ffn_down", TINY_EMBD, TINY_FF },
};
enum { N_MATRICES = sizeof matrices / sizeof matrices[0] };

static float *weights_of(tiny_model *tiny, int layer, int i)
{
    float *const all[N_MATRICES] = {
        tiny->layers[layer].q, tiny->layers[layer].k, tiny->layers[layer].v, tiny->layers[layer].o,
        tiny->layers[layer].gate, tiny->layers[layer].up, tiny->layers[layer].down,
    };
    return all[i];
}

/* Pairs of all matrices of all layers and of the LM head; the types take turns. */
static void add_all_pairs(tiny_lora *lora, int64_t rank, double scale, tiny_model *tiny)
{
    static const uint32_t types[] = { BLOCK_F32, BLOCK_F16, BLOCK_BF16, BLOCK_Q8_0 };
    char name[64];
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int i = 0; i < N_MATRICES; i++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, matrices[i].name);
            const tiny_pair pair = { .base = name, .n_out = matrices[i].n_out, .n_in = matrices[i].n_in, .rank = rank,
                                     .a_type = types[(l + i) % 3], .b_type = types[(l + i) % (rank % 32 == 0 ? 4 : 3)] };
            tl_pair(lora, &pair, scale, weights_of(tiny, l, i));
        }
    }
    const tiny_pair head = { .base = "output.weight", .n_out = TINY_VOCAB, .n_in = TINY_EMBD, .rank = rank };
    tl_pair(lora, &head, scale, tiny->output);
}

static void check_two_adapters(const tmx_model_params *params)
{
    tiny_model tiny;
    tiny_lora first = tl_begin(1, 0.5f, (tiny_lora_keys){ 0 }), second = tl_begin(2, 8, (tiny_lora_keys){ 0 });
    result r;
    tiny_model_create(&tiny, 3, false, true);
    add_all_pairs(&first, 3, 1, &tiny);
    add_all_pairs(&second, 32, -0.25, &tiny);
    tl_finish(&first);
    tl_finish(&second);
    run_with(&tiny, params, (const tmx_lora[]){ { first.path, 0 }, { second.path, -0.25f } }, 2, &r);
    const double worst = difference_from_f64(&tiny, &r);
    print_message("%-10s %s: worst difference %.2e\n", tmx_isa_name(params->isa),
                  params->compute == TMX_COMPUTE_F32 ? "f32 " : "bf16", worst);
    assert_true(worst <= limit_of(params->compute));
    tl_remove(&first);
    tl_remove(&second);
    tiny_model_free(&tiny);
}

static void merged_weights_match_f64(void **state)
{
    (void)state;
    on_every_rung(check_two_adapters);
}

/* An adapter of one tensor alone: no place that reads it may be left out. */
static void check_each_tensor(const tmx_model_params *params)
{
    result plain, r;
    for (int at = 0; at <= TINY_LAYERS * N_MATRICES; at++) {
        const int l = at / N_MATRICES, i = at % N_MATRICES;
        const bool is_head = l == TINY_LAYERS;
        char name[64] = "output.weight";
        tiny_model tiny;
        tiny_lora lora = tl_begin((uint64_t)at, 4, (tiny_lora_keys){ 0 });
        tiny_model_create(&tiny, 3, false, false);
        if (at == 0) run(&tiny, params, 1, &plain);
        if (!is_head) snprintf(name, sizeof name, "blk.%d.%s.weight", l, matrices[i].name);
        const tiny_pair pair = { .base = name, .n_out = is_head ? TINY_VOCAB : matrices[i].n_out,
                                 .n_in = is_head ? TINY_EMBD : matrices[i].n_in, .rank = 2 };
        tl_pair(&lora, &pair, 1, is_head ? tiny.output : weights_of(&tiny, l, i));
        tl_finish(&lora);
        run_with(&tiny, params, &(tmx_lora){ .path = lora.path }, 1, &r);
        assert_int_equal(r.n_merged, pair.n_out * pair.n_in);
        const double change = difference_from_f64(&tiny, &plain), worst = difference_from_f64(&tiny, &r);
        if (worst > limit_of(params->compute) || change < 2 * limit_of(params->compute)) {
            fail_msg("%s, %s, compute %d: %.2e from f64, without the adapter %.2e", name, tmx_isa_name(params->isa),
                     (int)params->compute, worst, change);
        }
        tl_remove(&lora);
        tiny_model_free(&tiny);
    }
}

static void every_place_reads_the_merged_tensor(void **state)
{
    (void)state;
    on_every_rung(check_each_tensor);
}

/* ---------------------------------------------------------------- bits */

static void check_nothing_added(const tmx_model_params *params)
{
    tiny_model tiny;
    tiny_lora zeros = tl_begin(5, 16, (tiny_lora_keys){ 0 }), lora = tl_begin(6, 16, (tiny_lora_keys){ 0 });
    tiny_pair pair = { .base = "blk.1.attn_q.weight", .n_out = N_Q, .n_in = TINY_EMBD, .rank = 4, .is_zero = true };
    result plain, r;
    tiny_model_create(&tiny, 4, true, false);
    tl_pair(&zeros, &pair, 1, NULL);
    pair = (tiny_pair){ .base = "blk.2.ffn_down.weight", .n_out = TINY_EMBD, .n_in = TINY_FF, .rank = 4, .is_zero = true };
    tl_pair(&zeros, &pair, 1, NULL);
    pair.is_zero = false;
    tl_pair(&lora, &pair, 1, NULL);
    tl_finish(&zeros);
    tl_finish(&lora);
    run(&tiny, params, 1, &plain);
    run_with(&tiny, params, &(tmx_lora){ .path = zeros.path }, 1, &r);
    expect_same_bits(&plain, &r);
    assert_int_equal(r.n_merged, 0);
    /* What two adapters add takes each other away.  A bf16 copy rounds what decoding reads of an f32 file. */
    run_with(&tiny, params, (const tmx_lora[]){ { lora.path, 0.7f }, { lora.path, -0.7f } }, 2, &r);
    if (params->compute == TMX_COMPUTE_F32) expect_same_bits(&plain, &r);
    assert_int_equal(r.n_merged, TINY_EMBD * TINY_FF);
    tl_remove(&zeros);
    tl_remove(&lora);
    tiny_model_free(&tiny);
}

static void nothing_added_changes_no_bit(void **state)
{
    (void)state;
    on_every_rung(check_nothing_added);
}

static void check_order_and_threads(const tmx_model_params *params)
{
    tiny_model tiny;
    tiny_lora loras[3];
    tmx_lora given[3], turned[3];
    result r, again;
    tiny_model_create(&tiny, 3, false, true);
    for (int i = 0; i < 3; i++) {
        loras[i] = tl_begin((uint64_t)i + 20, 2, (tiny_lora_keys){ 0 });
        add_all_pairs(&loras[i], i + 1, 1, &tiny);
        tl_finish(&loras[i]);
        given[i] = turned[2 - i] = (tmx_lora){ .path = loras[i].path, .scale = 0.3f + (float)i };
    }
    run_with(&tiny, params, given, 3, &r);
    run_with(&tiny, params, turned, 3, &again);
    expect_same_bits(&r, &again);
    assert_string_equal(r.fingerprint, again.fingerprint);
    for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
        tmx_model_params with = *params;
        with.loras = given;
        with.n_loras = 3;
        run(&tiny, &with, n_threads, &again);
        expect_same_bits(&r, &again);
    }
    /* the same file twice is the same as twice its scale: adding a number to itself is exact */
    const tmx_lora twice[] = { { loras[2].path, 0.5f }, { loras[2].path, 0.5f } };
    run_with(&tiny, params, twice, 2, &r);
    run_with(&tiny, params, &(tmx_lora){ loras[2].path, 1 }, 1, &again);
    expect_same_bits(&r, &again);
    for (int i = 0; i < 3; i++) tl_remove(&loras[i]);
    tiny_model_free(&tiny);
}

static void order_and_threads_change_no_bit(void **state)
{
    (void)state;
    on_every_rung(check_order_and_threads);
}

/* ---------------------------------------------------------------- which model a plan is for */

static void plans_do_not_mix(void **state)
{
    (void)state;
    enum { N = 6 };
    tiny_model tiny;
    tiny_lora first = tl_begin(1, 2, (tiny_lora_keys){ 0 }), second = tl_begin(2, 2, (tiny_lora_keys){ 0 });
    const tiny_pair pair = { .base = "blk.0.attn_v.weight", .n_out = N_KV, .n_in = TINY_EMBD, .rank = 1 };
    char plan_path[80], text[300], prints[N][65];
    tmx_error err;
    tmx_plan *plan;
    tiny_model_create(&tiny, 8, true, false);
    snprintf(plan_path, sizeof plan_path, "%s.plan", tiny.path);
    tl_pair(&first, &pair, 1, NULL);
    tl_pair(&second, &pair, 1, NULL);
    tl_finish(&first);
    tl_finish(&second);
    const tmx_lora one = { first.path, 1 }, half = { first.path, 0.5f }, other = { second.path, 1 };
    const tmx_model_params params[N] = {
        { 0 }, { .loras = &one, .n_loras = 1 }, { .loras = &half, .n_loras = 1 }, { .loras = &other, .n_loras = 1 },
        { .rope_freq_base = 5e5f }, { .loras = &one, .n_loras = 1, .rope_freq_base = 5e5f },
    };
    for (int i = 0; i < N; i++) {
        result r;
        run(&tiny, &params[i], 1, &r);
        memcpy(prints[i], r.fingerprint, sizeof prints[i]);
        assert_int_equal(strlen(prints[i]), 64);
    }
    for (int made = 0; made < N; made++) {
        tmx_model_info info = { .architecture = "llama", .name = "tiny", .fingerprint = prints[made], .n_layers = TINY_LAYERS };
        assert_int_equal(tmx_plan_parse(&plan, "triangle:1", &info, &err), TMX_OK);
        assert_int_equal(tmx_plan_save(plan, plan_path, &err), TMX_OK);
        tmx_plan_free(plan);
        for (int used = 0; used < N; used++) {
            info.fingerprint = prints[used];
            const tmx_status status = tmx_plan_parse(&plan, plan_path, &info, &err);
            assert_int_equal(status, used == made ? TMX_OK : TMX_E_UNSUPPORTED);
            if (status == TMX_OK) {
                tmx_plan_free(plan);
                continue;
            }
            snprintf(text, sizeof text, "%s: made for another model file, other LoRA adapters or another RoPE base "
                     "(fingerprint %.12s, here %.12s); set \"fingerprint\" to \"\" to use it anyway", plan_path,
                     prints[made], prints[used]);
            assert_string_equal(err.text, text);
        }
    }
    unlink(plan_path);
    tl_remove(&first);
    tl_remove(&second);
    tiny_model_free(&tiny);
}

/* ---------------------------------------------------------------- adapters that are wrong */

typedef struct raw_tensor {
    const char *name;
    int64_t n_rows, n_cols;        /* n_rows 0: a vector */
    uint32_t block;
    float first;                   /* of an F32 tensor, whose other elements are 0; 0 = 1 */
} raw_tensor;

#define A "blk.0.attn_q.weight.lora_a"
#define B "blk.0.attn_q.weight.lora_b"
#define RIGHT_A { A, 4, TINY_EMBD, 0, 0 }
#define RIGHT_B { B, N_Q, 4, 0, 0 }

typedef struct wrong_adapter {
    tmx_status status;
    const char *text;              /* after "PATH: " */
    raw_tensor tensors[3];
    tiny_lora_keys keys;
    float alpha;                   /* 0 = 16 */
    bool has_no_alpha, has_text_alpha, is_activated;
} wrong_adapter;

static void add_raw(gguf_writer *w, const raw_tensor *t)
{
    const block_format *format = block_format_find(t->block);
    const size_t n_rows = t->n_rows > 0 ? (size_t)t->n_rows : 1;
    const size_t n_bytes = block_row_bytes(format, n_rows * (size_t)t->n_cols);
    const float first = t->first != 0 ? t->first : 1;
    const int64_t shape[2] = { t->n_rows, t->n_cols };
    unsigned char *data = calloc(1, n_bytes);
    if (data == NULL) abort();
    if (t->block == BLOCK_F32) memcpy(data, &first, sizeof first);
    gw_tensor(w, t->name, t->block, t->n_rows > 0 ? 2 : 1, t->n_rows > 0 ? shape : shape + 1, data, n_bytes);
    free(data);
}

static tmx_status probe(const char *path, const tmx_model_params *params, tmx_model_info *info, tmx_error *err)
{
    tmx_file *file;
    assert_int_equal(tmx_file_open(&file, path, err), TMX_OK);
    const tmx_status status = tmx_model_probe_file(file, params, info, err);
    tmx_file_close(file);
    return status;
}

static void expect_refused(const tiny_model *tiny, const tmx_lora *loras, int32_t n, tmx_status status, const char *text)
{
    tmx_model *const untouched = (tmx_model *)(uintptr_t)tiny;
    tmx_model *model = untouched;
    tmx_model_info info = { .n_layers = -7 };
    const tmx_model_params params = { .compute = TMX_COMPUTE_F32, .loras = loras, .n_loras = n };
    tmx_error opened = { 0 }, probed = { 0 };
    assert_int_equal(probe(tiny->path, &params, &info, &probed), status);
    const tmx_status found = tmx_model_open(&model, tiny->path, &params, NULL, &opened);
    if (found != status || strcmp(opened.text, text) != 0) {
        fail_msg("\n  found    %s %s\n  expected %s %s", tmx_status_name(found), opened.text, tmx_status_name(status), text);
    }
    assert_string_equal(opened.text, probed.text);
    assert_true(model == untouched && info.n_layers == -7);
}

static void wrong_adapters_are_refused(void **state)
{
    (void)state;
    enum { IQ2_XXS = 16 };
    static const wrong_adapter cases[] = {
        { TMX_E_FORMAT, "general.type is 'model', expected 'adapter'", .keys.type = "model" },
        { TMX_E_FORMAT, "key 'general.type' is missing", .keys.type = "" },
        { TMX_E_UNSUPPORTED, "adapter.type is 'control_vector', expected 'lora'", .keys.adapter_type = "control_vector" },
        { TMX_E_FORMAT, "key 'adapter.type' is missing", .keys.adapter_type = "" },
        { TMX_E_UNSUPPORTED, "general.architecture is 'qwen2', expected 'llama'", .keys.architecture = "qwen2" },
        { TMX_E_UNSUPPORTED, "general.architecture is 'llama-that-goes-on-and-on-with-m', expected 'llama'",
          .keys.architecture = "llama-that-goes-on-and-on-with-more-letters" },
        { TMX_E_FORMAT, "key 'adapter.lora.alpha' is missing", .has_no_alpha = true },
        { TMX_E_FORMAT, "key 'adapter.lora.alpha': type string, expected f32", .has_text_alpha = true },
        { TMX_E_FORMAT, "adapter.lora.alpha is nan, expected a positive number", .alpha = NAN },
        { TMX_E_FORMAT, "adapter.lora.alpha is inf, expected a positive number", .alpha = INFINITY },
        { TMX_E_FORMAT, "adapter.lora.alpha is -16, expected a positive number", .alpha = -16 },
        { TMX_E_FORMAT, "adapter.lora.alpha is -0, expected a positive number", .alpha = -0.0f },
        { TMX_E_UNSUPPORTED, "adapter.alora.invocation_tokens: an adapter that only some tokens switch on cannot be merged",
          .is_activated = true },
        { TMX_E_FORMAT, "an adapter without tensors", .alpha = 16 },
        { TMX_E_FORMAT, "tensor " A " has no " B " beside it", .tensors = { RIGHT_A } },
        { TMX_E_FORMAT, "tensor " B " has no " A " beside it", .tensors = { RIGHT_B } },
        { TMX_E_UNSUPPORTED, "tensor blk.0.attn_q.weight is neither a lora_a nor a lora_b",
          .tensors = { RIGHT_A, RIGHT_B, { "blk.0.attn_q.weight", N_Q, TINY_EMBD, 0, 0 } } },
        { TMX_E_UNSUPPORTED, "tensor .lora_a is neither a lora_a nor a lora_b", .tensors = { { ".lora_a", 4, TINY_EMBD, 0, 0 } } },
        { TMX_E_FORMAT, "tensor blk.3.attn_q.weight.lora_a: the model has no tensor blk.3.attn_q.weight",
          .tensors = { { "blk.3.attn_q.weight.lora_a", 4, TINY_EMBD, 0, 0 }, { "blk.3.attn_q.weight.lora_b", N_Q, 4, 0, 0 } } },
        { TMX_E_FORMAT, "tensor output.weight.lora_a: the model has no tensor output.weight",     /* tied */
          .tensors = { { "output.weight.lora_a", 4, TINY_EMBD, 0, 0 }, { "output.weight.lora_b", TINY_VOCAB, 4, 0, 0 } } },
        { TMX_E_UNSUPPORTED, "tensor token_embd.weight.lora_a: an adapter of the token embedding is not supported",
          .tensors = { { "token_embd.weight.lora_a", 4, TINY_EMBD, 0, 0 }, { "token_embd.weight.lora_b", TINY_VOCAB, 4, 0, 0 } } },
        { TMX_E_UNSUPPORTED, "tensor output_norm.weight.lora_a: the model's tensor is no matrix, and only matrices can be adapted",
          .tensors = { { "output_norm.weight.lora_a", 4, TINY_EMBD, 0, 0 }, { "output_norm.weight.lora_b", 1, 4, 0, 0 } } },
        { TMX_E_FORMAT, "tensor " A ": shape [4][47], expected [rank][48] (the model's tensor is [48][48])",
          .tensors = { { A, 4, TINY_EMBD - 1, 0, 0 }, RIGHT_B } },
        { TMX_E_FORMAT, "tensor " A ": shape [48][4], expected [rank][48] (the model's tensor is [48][48])",
          .tensors = { { A, TINY_EMBD, 4, 0, 0 }, RIGHT_B } },
        { TMX_E_FORMAT, "tensor " A ": shape [48], expected [rank][48] (the model's tensor is [48][48])",
          .tensors = { { A, 0, TINY_EMBD, 0, 0 }, RIGHT_B } },
        { TMX_E_FORMAT, "tensor " B ": shape [47][4], expected [48][4] (the model's tensor is [48][48])",
          .tensors = { RIGHT_A, { B, N_Q - 1, 4, 0, 0 } } },
        { TMX_E_FORMAT, "tensor " B ": shape [48][5], expected [48][4] (the model's tensor is [48][48])",
          .tensors = { RIGHT_A, { B, N_Q, 5, 0, 0 } } },
        { TMX_E_FORMAT, "tensor " B ": shape [192], expected [48][4] (the model's tensor is [48][48])",
          .tensors = { RIGHT_A, { B, 0, N_Q * 4, 0, 0 } } },
        { TMX_E_UNSUPPORTED, "tensor " A ": rank 16385, expected 1..16384",
          .tensors = { { A, 16385, TINY_EMBD, 0, 0 }, { B, N_Q, 16385, 0, 0 } } },
        { TMX_E_UNSUPPORTED, "tensor " A ": block type I8 is not supported", .tensors = { { A, 4, TINY_EMBD, BLOCK_I8, 0 }, RIGHT_B } },
        { TMX_E_UNSUPPORTED, "tensor " B ": block type IQ2_XXS is not supported",
          .tensors = { { A, 256, TINY_EMBD, 0, 0 }, { B, N_Q, 256, IQ2_XXS, 0 } } },
        { TMX_E_NUMERIC, "tensor '" A "' (F32): element 0, block at byte 320: NaN",
          .tensors = { { A, 4, TINY_EMBD, 0, NAN }, RIGHT_B } },
        { TMX_E_NUMERIC, "tensor '" B "' (F32): element 0, block at byte 1088: infinity",
          .tensors = { RIGHT_A, { B, N_Q, 4, 0, INFINITY } } },
        { TMX_E_NUMERIC, "scale 2 * alpha 3e+38 is beyond f32",
          .tensors = { { A, 1, TINY_EMBD, 0, 0 }, { B, N_Q, 1, 0, 0 } }, .alpha = 3e38f },
    };
    tiny_model tiny;
    tiny_model_create(&tiny, 5, true, false);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const wrong_adapter *c = &cases[i];
        const float alpha = c->has_no_alpha || c->has_text_alpha ? 0 : c->alpha != 0 || signbit(c->alpha) ? c->alpha : 16;
        tiny_lora lora = tl_begin(1, alpha, c->keys);
        if (c->has_text_alpha) gw_key_string(&lora.writer, "adapter.lora.alpha", "16");
        if (alpha == 0 && signbit(alpha)) gw_key_f32(&lora.writer, "adapter.lora.alpha", alpha);
        if (c->is_activated) gw_key_array(&lora.writer, "adapter.alora.invocation_tokens", GGUF_U32, 1, &(uint32_t){ 1 }, 4);
        for (int k = 0; k < 3 && c->tensors[k].name != NULL; k++) add_raw(&lora.writer, &c->tensors[k]);
        tl_finish(&lora);
        char text[300];
        snprintf(text, sizeof text, "%s: %s", lora.path, c->text);
        expect_refused(&tiny, &(tmx_lora){ lora.path, 2 }, 1, c->status, text);
        tl_remove(&lora);
    }
    tiny_model_free(&tiny);
}

/* Cut anywhere it is refused; changed anywhere it is refused or read, and what is read opens. */
static void damaged_adapters_never_crash(void **state)
{
    (void)state;
    const tiny_pair pair = { .base = "blk.0.attn_v.weight", .n_out = N_KV, .n_in = TINY_EMBD, .rank = 2, .a_type = BLOCK_F16 };
    tiny_model tiny;
    tiny_lora lora = tl_begin(1, 2, (tiny_lora_keys){ 0 });
    tmx_error err;
    tiny_model_create(&tiny, 8, true, false);
    tl_pair(&lora, &pair, 1, NULL);
    tl_finish(&lora);
    const int fd = open(lora.path, O_RDWR);
    unsigned char bytes[1024];
    const ssize_t n_bytes = read(fd, bytes, sizeof bytes);
    assert_true(n_bytes > 300 && n_bytes < (ssize_t)sizeof bytes);
    const tmx_lora given = { lora.path, 1 };
    const tmx_model_params params = { .compute = TMX_COMPUTE_F32, .loras = &given, .n_loras = 1 };
    int n_read = 0;
    for (ssize_t at = 0; at < n_bytes; at++) {
        tmx_model *model = NULL;
        assert_int_equal(ftruncate(fd, (off_t)at), 0);
        assert_int_not_equal(tmx_model_open(&model, tiny.path, &params, NULL, &err), TMX_OK);
        assert_int_equal(pwrite(fd, bytes, (size_t)n_bytes, 0), n_bytes);
        for (int bit = 0; bit < 8; bit += 7) {
            assert_int_equal(pwrite(fd, &(unsigned char){ (unsigned char)(bytes[at] ^ 1u << bit) }, 1, (off_t)at), 1);
            if (tmx_model_open(&model, tiny.path, &params, NULL, &err) == TMX_OK) {
                tmx_model_close(model);
                n_read++;
            }
        }
        assert_int_equal(pwrite(fd, bytes, (size_t)n_bytes, 0), n_bytes);
    }
    assert_true(n_read > 0 && n_read < 2 * n_bytes);
    close(fd);
    tl_remove(&lora);
    tiny_model_free(&tiny);
}

static void wrong_arguments_are_refused(void **state)
{
    (void)state;
    tiny_model tiny;
    tiny_model_create(&tiny, 5, true, false);
    expect_refused(&tiny, NULL, 1, TMX_E_ARG, "adapters: 1 given, the list is NULL");
    expect_refused(&tiny, &(tmx_lora){ 0 }, -1, TMX_E_ARG, "adapters: -1 given");
    expect_refused(&tiny, &(tmx_lora){ 0 }, 1, TMX_E_ARG, "adapter: the path is NULL");
    expect_refused(&tiny, &(tmx_lora){ "some.gguf", NAN }, 1, TMX_E_ARG, "adapter some.gguf: the scale is nan");
    expect_refused(&tiny, &(tmx_lora){ "some.gguf", INFINITY }, 1, TMX_E_ARG, "adapter some.gguf: the scale is inf");
    expect_refused(&tiny, &(tmx_lora){ .path = "/nowhere.gguf" }, 1, TMX_E_IO, "/nowhere.gguf: cannot open: No such file or directory");
    char text[200];
    snprintf(text, sizeof text, "%s: key 'general.type' is missing", tiny.path);
    expect_refused(&tiny, &(tmx_lora){ .path = tiny.path }, 1, TMX_E_FORMAT, text);
    tiny_model_free(&tiny);
}

/* The second of two is wrong: the first is closed again, and an adapter is no model. */
static void a_right_adapter_does_not_help_a_wrong_one(void **state)
{
    (void)state;
    tiny_model tiny;
    tiny_lora right = tl_begin(1, 2, (tiny_lora_keys){ 0 }), wrong = tl_begin(2, 2, (tiny_lora_keys){ .type = "model" });
    const tiny_pair pair = { .base = "blk.0.attn_v.weight", .n_out = N_KV, .n_in = TINY_EMBD, .rank = 1 };
    tmx_model *model = NULL;
    tmx_error err;
    char text[200];
    tiny_model_create(&tiny, 8, true, false);
    tl_pair(&right, &pair, 1, NULL);
    tl_pair(&wrong, &pair, 1, NULL);
    tl_finish(&right);
    tl_finish(&wrong);
    snprintf(text, sizeof text, "%s: general.type is 'model', expected 'adapter'", wrong.path);
    expect_refused(&tiny, (const tmx_lora[]){ { right.path, 1 }, { wrong.path, 1 } }, 2, TMX_E_FORMAT, text);
    assert_int_equal(tmx_model_open(&model, right.path, NULL, NULL, &err), TMX_E_UNSUPPORTED);
    snprintf(text, sizeof text, "%s: this is an adapter, which is given beside the model it belongs to", right.path);
    assert_string_equal(err.text, text);
    tl_remove(&right);
    tl_remove(&wrong);
    tiny_model_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merged_weights_match_f64),
        cmocka_unit_test(every_place_reads_the_merged_tensor),
        cmocka_unit_test(nothing_added_changes_no_bit),
        cmocka_unit_test(order_and_threads_change_no_bit),
        cmocka_unit_test(plans_do_not_mix),
        cmocka_unit_test(wrong_adapters_are_refused),
        cmocka_unit_test(damaged_adapters_never_crash),
        cmocka_unit_test(wrong_arguments_are_refused),
        cmocka_unit_test(a_right_adapter_does_not_help_a_wrong_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
