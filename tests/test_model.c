/* test_model.c - model files that lie: a good tiny model with one thing changed, and what is said about it. */
#include "base/cpu.h"
#include "gguf/gguf.h"
#include "model/model.h"
#include "tiny_model.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const tmx_model_params in_f32 = { .compute = TMX_COMPUTE_F32 };

/* ---------------------------------------------------------------- changed models */

typedef enum part_kind { MISSING, U16, U32, I32, U64, F32, F64, TEXT, U32_ARRAY, MATRIX, VECTOR } part_kind;

/* A key or tensor that takes the place of the one of its name, if there is one. */
typedef struct part {
    const char *name;
    part_kind kind;
    uint64_t n;                    /* value of an integer key */
    double x;                      /* of a number key */
    const char *text;
    int64_t n_out, n_in;           /* of a tensor; a vector has n_in only */
    uint32_t block;
    const float *data;             /* NULL = zeros */
} part;

#define NONE(key) { .name = key, .kind = MISSING }
#define AS_U16(key, v) { .name = key, .kind = U16, .n = v }
#define AS_U32(key, v) { .name = key, .kind = U32, .n = v }
#define AS_I32(key, v) { .name = key, .kind = I32, .n = (uint64_t)(v) }
#define AS_U64(key, v) { .name = key, .kind = U64, .n = v }
#define AS_F32(key, v) { .name = key, .kind = F32, .x = v }
#define AS_F64(key, v) { .name = key, .kind = F64, .x = v }
#define AS_TEXT(key, v) { .name = key, .kind = TEXT, .text = v }
#define AS_ARRAY(key) { .name = key, .kind = U32_ARRAY }
#define AS_MATRIX(tensor, rows, cols) { .name = tensor, .kind = MATRIX, .n_out = rows, .n_in = cols }
#define AS_VECTOR(tensor, cols) { .name = tensor, .kind = VECTOR, .n_in = cols }

typedef struct parts {
    const part *list;
    size_t n;
    void (*vocab)(tiny_vocab *v);  /* or NULL */
} parts;

static void add_tensor(gguf_writer *w, const part *p)
{
    const size_t n_rows = p->kind == MATRIX ? (size_t)p->n_out : 1;
    const size_t n_bytes = n_rows * block_row_bytes(block_format_find(p->block), (size_t)p->n_in);
    const int64_t shape[2] = { p->n_out, p->n_in };
    void *zeros = calloc(1, n_bytes);
    if (zeros == NULL) abort();
    gw_tensor(w, p->name, p->block, p->kind == MATRIX ? 2 : 1, p->kind == MATRIX ? shape : shape + 1,
              p->data != NULL ? (const void *)p->data : zeros, n_bytes);
    free(zeros);
}

static void add_parts(tiny_vocab *v, void *ctx)
{
    const parts *changed = ctx;
    gguf_writer *w = &v->writer;
    for (size_t i = 0; i < changed->n; i++) {
        const part *p = &changed->list[i];
        switch (p->kind) {
        case MISSING: break;
        case U16: gw_key_u16(w, p->name, (uint16_t)p->n); break;
        case U32: gw_key_u32(w, p->name, (uint32_t)p->n); break;
        case I32: gw_key_i32(w, p->name, (int32_t)p->n); break;
        case U64: gw_key_u64(w, p->name, p->n); break;
        case F32: gw_key_f32(w, p->name, (float)p->x); break;
        case F64: gw_key_f64(w, p->name, p->x); break;
        case TEXT: gw_key_string(w, p->name, p->text); break;
        case U32_ARRAY: gw_key_array(w, p->name, GGUF_U32, 3, (const uint32_t[]){ 2, 2, 2 }, 12); break;
        case MATRIX:
        case VECTOR: add_tensor(w, p); break;
        }
    }
    if (changed->vocab != NULL) changed->vocab(v);
}

static void create_changed(tiny_model *m, const parts *changed)
{
    const char *hidden[16] = { NULL };
    assert_true(changed->n < 16);
    for (size_t i = 0; i < changed->n; i++) hidden[i] = changed->list[i].name;
    const tiny_change change = { .add = add_parts, .ctx = (void *)(uintptr_t)changed, .hidden = hidden };
    tiny_model_create_changed(m, 5, true, false, &change);
}

static tmx_status probe(const char *path, tmx_model_info *info, tmx_error *err)
{
    tmx_file *file;
    tmx_status status = tmx_file_open(&file, path, err);
    if (status != TMX_OK) return status;
    status = tmx_model_probe_file(file, NULL, info, err);
    tmx_file_close(file);
    return status;
}

/* Opening and probing say the same; nothing is written on failure.  The vocabulary names a key, not the file. */
static void expect(const parts *changed, tmx_status status, const char *text)
{
    tiny_model tiny;
    tmx_model *const untouched = (tmx_model *)&tiny;
    tmx_model *model = untouched;
    tmx_model_info info = { .n_layers = -7 };
    tmx_error opened = { 0 }, probed = { 0 };
    create_changed(&tiny, changed);
    const tmx_status open_status = tmx_model_open(&model, tiny.path, &in_f32, NULL, &opened);
    const tmx_status probe_status = probe(tiny.path, &info, &probed);
    char full[256];
    snprintf(full, sizeof full, "%s: %s", tiny.path, text);
    const char *said = opened.text, *expected = strncmp(text, "tokenizer.", 10) == 0 ? text : full;
    if (open_status != status || (status != TMX_OK && strcmp(said, expected) != 0)) {
        fail_msg("%s:\n  found    %s %s\n  expected %s %s", changed->n > 0 ? changed->list[0].name : "?",
                 tmx_status_name(open_status), said, tmx_status_name(status), expected);
    }
    assert_int_equal(probe_status, status);
    assert_string_equal(probed.text, opened.text);
    if (status == TMX_OK) tmx_model_close(model);
    else assert_true(model == untouched && info.n_layers == -7);
    tiny_model_free(&tiny);
}

static void expect_part(const part *changed, tmx_status status, const char *text)
{
    expect(&(parts){ .list = changed, .n = 1 }, status, text);
}

typedef struct lie { part part; tmx_status status; const char *text; } lie;

static void expect_lies(const lie *lies, size_t n)
{
    for (size_t i = 0; i < n; i++) expect_part(&lies[i].part, lies[i].status, lies[i].text);
}

/* ---------------------------------------------------------------- keys */

#define HEADS "llama.attention.head_count"
#define KV_HEADS "llama.attention.head_count_kv"
#define KEY_DIM "llama.attention.key_length"
#define EPS "llama.attention.layer_norm_rms_epsilon"
#define BASE "llama.rope.freq_base"
#define N_ROT "llama.rope.dimension_count"

static void hyper_parameters_are_checked(void **state)
{
    (void)state;
    static const lie lies[] = {
        { AS_U32(HEADS, 0), TMX_E_FORMAT, HEADS " is 0, expected 1..1024" },
        { AS_U32(HEADS, 1025), TMX_E_FORMAT, HEADS " is 1025, expected 1..1024" },
        { AS_U32(HEADS, 5), TMX_E_FORMAT, KV_HEADS " 2 does not divide head_count 5" },
        { AS_U32(HEADS, 100), TMX_E_FORMAT, KEY_DIM " is 0, expected 1..512" },
        { AS_U32(HEADS, 12), TMX_E_FORMAT,
          "tensor blk.0.attn_k.weight: shape [16][48], expected [8][48] from the hyper-parameters" },
        { NONE(HEADS), TMX_E_FORMAT, "key '" HEADS "' is missing" },
        { AS_TEXT(HEADS, "6"), TMX_E_FORMAT, "key '" HEADS "': type string, expected u32" },
        { AS_F32(HEADS, 6), TMX_E_FORMAT, "key '" HEADS "': type f32, expected u32" },
        { AS_I32(HEADS, -6), TMX_E_FORMAT, "key '" HEADS "': -6, expected 0..4294967295" },
        { AS_U64(HEADS, 1ull << 32 | 6), TMX_E_FORMAT, "key '" HEADS "': 4294967302, expected 0..4294967295" },
        { AS_U64(HEADS, 6), TMX_OK, "" },
        { AS_U32(KV_HEADS, 0), TMX_E_FORMAT, KV_HEADS " is 0, expected 1..1024" },
        { AS_U32(KV_HEADS, 4), TMX_E_FORMAT, KV_HEADS " 4 does not divide head_count 6" },
        { AS_U32(KV_HEADS, 12), TMX_E_FORMAT, KV_HEADS " 12 does not divide head_count 6" },
        { AS_U32(KV_HEADS, 3), TMX_E_FORMAT,
          "tensor blk.0.attn_k.weight: shape [16][48], expected [24][48] from the hyper-parameters" },
        { NONE(KV_HEADS), TMX_E_FORMAT,
          "tensor blk.0.attn_k.weight: shape [16][48], expected [48][48] from the hyper-parameters" },
        { AS_ARRAY(KV_HEADS), TMX_E_UNSUPPORTED, KV_HEADS " is an array: layers of different sizes are not supported" },
        { AS_U32(KEY_DIM, 0), TMX_E_FORMAT, KEY_DIM " is 0, expected 1..512" },
        { AS_U32(KEY_DIM, 100000), TMX_E_FORMAT, KEY_DIM " is 100000, expected 1..512" },
        { AS_U32(KEY_DIM, 7), TMX_E_FORMAT, N_ROT " is 7, expected an even number up to head_dim 7" },
        { AS_U32(KEY_DIM, 16), TMX_E_FORMAT,
          "tensor blk.0.attn_q.weight: shape [48][48], expected [96][48] from the hyper-parameters" },
        { AS_U32(KEY_DIM, 8), TMX_OK, "" },
        { AS_U32("llama.attention.value_length", 4), TMX_E_UNSUPPORTED,
          "llama.attention.value_length 4 differs from key_length 8" },
        { AS_U32("llama.attention.value_length", 0), TMX_E_FORMAT,
          "llama.attention.value_length is 0, expected 1..512" },
        { AS_U32("llama.block_count", 0), TMX_E_FORMAT, "llama.block_count is 0, expected 1..1024" },
        { AS_U32("llama.block_count", 1000000), TMX_E_FORMAT, "llama.block_count is 1000000, expected 1..1024" },
        { AS_U32("llama.block_count", 1000), TMX_E_FORMAT, "29 tensors cannot hold block_count 1000 layers" },
        { AS_U32("llama.block_count", 4), TMX_E_FORMAT, "tensor blk.3.attn_norm.weight is missing" },
        { AS_U32("llama.block_count", 2), TMX_E_UNSUPPORTED,
          "tensor blk.2.attn_norm.weight is not part of a llama layer as this program runs it" },
        { AS_TEXT("llama.block_count", "three"), TMX_E_FORMAT, "key 'llama.block_count': type string, expected u32" },
        { AS_F32(EPS, 0), TMX_E_FORMAT, EPS " is 0, expected a positive number" },
        { AS_F32(EPS, -1e-5), TMX_E_FORMAT, EPS " is -1e-05, expected a positive number" },
        { AS_F32(EPS, (double)NAN), TMX_E_FORMAT, EPS " is nan, expected a positive number" },
        { AS_F32(EPS, (double)INFINITY), TMX_E_FORMAT, EPS " is inf, expected a positive number" },
        { AS_U32(EPS, 1), TMX_E_FORMAT, "key '" EPS "': type u32, expected f32" },
        { NONE(EPS), TMX_E_FORMAT, "key '" EPS "' is missing" },
        { AS_F32(BASE, 0), TMX_E_FORMAT, BASE " is 0, expected a positive number" },
        { AS_F32(BASE, (double)NAN), TMX_E_FORMAT, BASE " is nan, expected a positive number" },
        { AS_F64(BASE, 1e300), TMX_E_FORMAT, "key '" BASE "': 1e+300 does not fit f32" },
        { NONE(BASE), TMX_OK, "" },
        { AS_U32("llama.context_length", 0), TMX_E_FORMAT, "llama.context_length is 0, expected 1..134217728" },
        { AS_U32("llama.context_length", 0xffffffff), TMX_E_FORMAT,
          "llama.context_length is 4294967295, expected 1..134217728" },
        { AS_U32("llama.feed_forward_length", 0), TMX_E_FORMAT, "llama.feed_forward_length is 0, expected 1..1048576" },
        { AS_ARRAY("llama.feed_forward_length"), TMX_E_UNSUPPORTED,
          "llama.feed_forward_length is an array: layers of different sizes are not supported" },
        { AS_U32("llama.embedding_length", 0), TMX_E_FORMAT, "llama.embedding_length is 0, expected 1..262144" },
        { AS_U32("llama.embedding_length", 0xffffffff), TMX_E_FORMAT,
          "llama.embedding_length is 4294967295, expected 1..262144" },
        { AS_U32("llama.embedding_length", 49), TMX_E_FORMAT,
          "tensor token_embd.weight: shape [257][48], expected [257][49] from the hyper-parameters" },
        { AS_U32(N_ROT, 0), TMX_E_FORMAT, N_ROT " is 0, expected 1..512" },
        { AS_U32(N_ROT, 5), TMX_E_FORMAT, N_ROT " is 5, expected an even number up to head_dim 8" },
        { AS_U32(N_ROT, 10), TMX_E_FORMAT, N_ROT " is 10, expected an even number up to head_dim 8" },
        { AS_U32(N_ROT, 4), TMX_OK, "" },
        { AS_U32("llama.expert_count", 8), TMX_E_UNSUPPORTED,
          "llama.expert_count 8: mixture of experts is not supported in this family" },
        { AS_U32("llama.expert_count", 0), TMX_OK, "" },
        { AS_U32("llama.attention.sliding_window", 512), TMX_OK, "" },
        { AS_TEXT("llama.attention.sliding_window", "512"), TMX_E_FORMAT,
          "key 'llama.attention.sliding_window': type string, expected u32" },
        { AS_U32("llama.attention.sliding_window", TINY_CTX), TMX_OK, "" },
        { AS_TEXT("llama.rope.scaling.type", "linear"), TMX_OK, "" },
        { AS_TEXT("llama.rope.scaling.type", "yarn"), TMX_OK, "" },
        { AS_TEXT("llama.rope.scaling.type", "longrope"), TMX_E_UNSUPPORTED,
          "llama.rope.scaling.type 'longrope': this RoPE scaling is not supported (supported: none, linear, yarn, longrope with "
          "its factors)" },
        { AS_TEXT("llama.rope.scaling.type", ""), TMX_E_UNSUPPORTED,
          "llama.rope.scaling.type '': this RoPE scaling is not supported (supported: none, linear, yarn, longrope with its "
          "factors)" },
        { AS_U32("llama.rope.scaling.type", 0), TMX_E_FORMAT,
          "key 'llama.rope.scaling.type': type u32, expected string" },
        { AS_TEXT("llama.rope.scaling.type", "none"), TMX_OK, "" },
        { AS_F32("llama.rope.scaling.factor", 4), TMX_OK, "" },
        { AS_F32("llama.rope.scaling.factor", 0), TMX_E_FORMAT, "llama.rope.scaling.factor is 0, expected a positive number" },
        { AS_F32("llama.rope.scale_linear", 2), TMX_OK, "" },
        { AS_F32("llama.rope.scale_linear", -2), TMX_E_FORMAT, "llama.rope.scale_linear is -2, expected a positive number" },
        { AS_F32("llama.rope.scale_linear", (double)NAN), TMX_E_FORMAT,
          "llama.rope.scale_linear is nan, expected a positive number" },
        { AS_F32("llama.rope.scale_linear", 1), TMX_OK, "" },
        { AS_U32("general.name", 1), TMX_E_FORMAT, "key 'general.name': type u32, expected string" },
        { NONE("general.name"), TMX_OK, "" },
        { AS_U16("split.count", 2), TMX_E_FORMAT, "key 'split.no' is missing" },
        { AS_U32("split.count", 1025), TMX_E_FORMAT, "split.count 1025, the limit is 1024" },
        { AS_TEXT("split.count", "2"), TMX_E_FORMAT, "key 'split.count': type string, expected u32" },
        { AS_U16("split.count", 1), TMX_OK, "" },
    };
    expect_lies(lies, sizeof lies / sizeof lies[0]);
}

static void architectures_are_checked(void **state)
{
    (void)state;
    static const lie lies[] = {
        { AS_TEXT("general.architecture", "deepseek2"), TMX_E_UNSUPPORTED,
          "architecture 'deepseek2' is not supported: it needs multi-head latent attention (MLA)" },
        { AS_TEXT("general.architecture", "mamba"), TMX_E_UNSUPPORTED,
          "architecture 'mamba' is not supported: it needs state-space or other recurrent layers" },
        { AS_TEXT("general.architecture", "lfm2moe"), TMX_E_UNSUPPORTED,
          "architecture 'lfm2moe' is not supported: it needs state-space or other recurrent layers" },
        { AS_TEXT("general.architecture", "clip"), TMX_E_UNSUPPORTED,
          "architecture 'clip' is not supported: it needs image or sound input" },
        { AS_TEXT("general.architecture", "jais"), TMX_E_UNSUPPORTED,
          "architecture 'jais' is not supported: it needs learned positions or ALiBi instead of RoPE" },
        { AS_TEXT("general.architecture", "qwen2"), TMX_E_FORMAT, "key 'qwen2.block_count' is missing" },
        { AS_TEXT("general.architecture", "llam"), TMX_E_UNSUPPORTED,
          "architecture 'llam' is not supported (supported: llama, qwen2, qwen3, qwen3moe, gemma3, phi3)" },
        { AS_TEXT("general.architecture", ""), TMX_E_UNSUPPORTED,
          "architecture '' is not supported (supported: llama, qwen2, qwen3, qwen3moe, gemma3, phi3)" },
        { AS_TEXT("general.architecture", "\033[2J\n%s"), TMX_E_UNSUPPORTED,
          "architecture '?[2J?%s' is not supported (supported: llama, qwen2, qwen3, qwen3moe, gemma3, phi3)" },
        { AS_U32("general.architecture", 1), TMX_E_FORMAT, "key 'general.architecture': type u32, expected string" },
        { NONE("general.architecture"), TMX_E_FORMAT, "key 'general.architecture' is missing" },
    };
    expect_lies(lies, sizeof lies / sizeof lies[0]);
    enum { LONG = 1 << 20 };
    char *name = malloc(LONG + 1), text[192];
    memset(name, 'x', LONG);
    name[LONG] = '\0';
    snprintf(text, sizeof text, "architecture '%.47s' is not supported (supported: llama, qwen2, qwen3, qwen3moe, gemma3, phi3)", name);
    expect_part(&(part)AS_TEXT("general.architecture", name), TMX_E_UNSUPPORTED, text);
    free(name);
}

/* ---------------------------------------------------------------- tensors */

static const struct { const char *name; int64_t n_out, n_in; } tensors[] = {     /* n_out 0: a vector */
    { "token_embd.weight", TINY_VOCAB, TINY_EMBD }, { "output_norm.weight", 0, TINY_EMBD },
    { "blk.0.attn_norm.weight", 0, TINY_EMBD }, { "blk.0.attn_q.weight", 48, TINY_EMBD },
    { "blk.1.attn_k.weight", 16, TINY_EMBD }, { "blk.1.attn_v.weight", 16, TINY_EMBD },
    { "blk.1.attn_output.weight", TINY_EMBD, 48 }, { "blk.1.ffn_norm.weight", 0, TINY_EMBD },
    { "blk.2.ffn_gate.weight", TINY_FF, TINY_EMBD }, { "blk.2.ffn_up.weight", TINY_FF, TINY_EMBD },
    { "blk.2.ffn_down.weight", TINY_EMBD, TINY_FF },
};
enum { N_TENSORS = sizeof tensors / sizeof tensors[0] };

static void shape_name(char text[48], int64_t n_out, int64_t n_in)
{
    if (n_out == 0) snprintf(text, 48, "[%lld]", (long long)n_in);
    else snprintf(text, 48, "[%lld][%lld]", (long long)n_out, (long long)n_in);
}

static void every_shape_is_checked(void **state)
{
    (void)state;
    for (int i = 0; i < N_TENSORS; i++) {
        const int64_t n_out = tensors[i].n_out, n_in = tensors[i].n_in;
        const struct { int64_t n_out, n_in; } wrong[] = {
            { n_out == 0 ? 0 : n_out + 1, n_in + (n_out == 0) }, { n_out == 0 ? 0 : n_out - 1, n_in - (n_out == 0) },
            { n_out, n_in + 1 }, { n_out, 1 }, { n_in, n_out + 1 },
            { n_out == 0 ? 1 : 0, n_in }, { n_out == 0 ? n_in : 0, n_out == 0 ? 1 : n_out * n_in },    /* 1-D for 2-D */
        };
        char expected[48], found[48], text[256];
        shape_name(expected, n_out, n_in);
        for (size_t k = 0; k < sizeof wrong / sizeof wrong[0]; k++) {
            const part changed = { .name = tensors[i].name, .kind = wrong[k].n_out == 0 ? VECTOR : MATRIX,
                                   .n_out = wrong[k].n_out, .n_in = wrong[k].n_in };
            shape_name(found, wrong[k].n_out, wrong[k].n_in);
            snprintf(text, sizeof text, "tensor %s: shape %s, expected %s from the hyper-parameters", changed.name,
                     found, expected);
            expect_part(&changed, TMX_E_FORMAT, text);
        }
        snprintf(text, sizeof text, "tensor %s is missing", tensors[i].name);
        expect_part(&(part)NONE(tensors[i].name), TMX_E_FORMAT, text);
        snprintf(text, sizeof text, "tensor %s: block type I8 is not supported", tensors[i].name);
        const part bytes = { .name = tensors[i].name, .kind = n_out == 0 ? VECTOR : MATRIX, .n_out = n_out,
                             .n_in = n_in, .block = BLOCK_I8 };
        expect_part(&bytes, TMX_E_UNSUPPORTED, text);
    }
}

static void other_tensors_are_checked(void **state)
{
    (void)state;
    static const float one_zero[] = { 1, 1, 0, 1 }, one_nan[] = { 1, NAN, 1, 1 };
    static const float one_negative[] = { 1, 1, 1, -2 }, infinite[] = { INFINITY, 1, 1, 1 };
#define DIVISORS(values) { .name = "rope_freqs.weight", .kind = VECTOR, .n_in = 4, .data = values }
    static const lie lies[] = {
        { AS_MATRIX("output.weight", TINY_VOCAB, TINY_EMBD), TMX_OK, "" },
        { AS_MATRIX("output.weight", TINY_VOCAB - 1, TINY_EMBD), TMX_E_FORMAT,
          "tensor output.weight: shape [256][48], expected [257][48] from the hyper-parameters" },
        { AS_VECTOR("rope_freqs.weight", 5), TMX_E_FORMAT,
          "tensor rope_freqs.weight: shape [5], expected [4] from the hyper-parameters" },
        { AS_VECTOR("rope_freqs.weight", 1 << 16), TMX_E_FORMAT,
          "tensor rope_freqs.weight: shape [65536], expected [4] from the hyper-parameters" },
        { AS_MATRIX("rope_freqs.weight", 1, 4), TMX_E_FORMAT,
          "tensor rope_freqs.weight: shape [1][4], expected [4] from the hyper-parameters" },
        { DIVISORS(one_zero), TMX_E_FORMAT, "tensor rope_freqs.weight: element 2 is 0, expected a positive number" },
        { DIVISORS(one_nan), TMX_E_FORMAT, "tensor rope_freqs.weight: element 1 is nan, expected a positive number" },
        { DIVISORS(one_negative), TMX_E_FORMAT,
          "tensor rope_freqs.weight: element 3 is -2, expected a positive number" },
        { DIVISORS(infinite), TMX_E_FORMAT, "tensor rope_freqs.weight: element 0 is inf, expected a positive number" },
        { AS_VECTOR("blk.0.attn_q.bias", 48), TMX_E_UNSUPPORTED,
          "tensor blk.0.attn_q.bias is not part of a llama layer as this program runs it" },
        { AS_VECTOR("blk.7.attn_norm.weight", 48), TMX_E_UNSUPPORTED,
          "tensor blk.7.attn_norm.weight is not part of a llama layer as this program runs it" },
        { AS_VECTOR("blk.00.attn_norm.weight", 48), TMX_E_UNSUPPORTED,
          "tensor blk.00.attn_norm.weight is not part of a llama layer as this program runs it" },
        { AS_VECTOR("blk.0.attn_rot_embd.weight", 4), TMX_OK, "" },
        { AS_VECTOR("something.else", 3), TMX_OK, "" },
    };
    expect_lies(lies, sizeof lies / sizeof lies[0]);
    enum { IQ2_XXS = 16 };
    const part wide[] = {
        AS_U32("llama.embedding_length", 256), AS_U32(KEY_DIM, 8),
        { .name = "token_embd.weight", .kind = MATRIX, .n_out = TINY_VOCAB, .n_in = 256, .block = IQ2_XXS },
    };
    expect(&(parts){ .list = wide, .n = 3 }, TMX_E_UNSUPPORTED,
           "tensor token_embd.weight: block type IQ2_XXS is not supported");
}

/* A matrix of one row has two axes, and its row count is read from the right one. */
static void a_matrix_may_have_one_row(void **state)
{
    (void)state;
    static part narrow[] = {
        AS_U32("llama.feed_forward_length", 1),
        AS_MATRIX("blk.0.ffn_gate.weight", 1, TINY_EMBD), AS_MATRIX("blk.0.ffn_up.weight", 1, TINY_EMBD),
        AS_MATRIX("blk.0.ffn_down.weight", TINY_EMBD, 1),
        AS_MATRIX("blk.1.ffn_gate.weight", 1, TINY_EMBD), AS_MATRIX("blk.1.ffn_up.weight", 1, TINY_EMBD),
        AS_MATRIX("blk.1.ffn_down.weight", TINY_EMBD, 1),
        AS_MATRIX("blk.2.ffn_gate.weight", 1, TINY_EMBD), AS_MATRIX("blk.2.ffn_up.weight", 1, TINY_EMBD),
        AS_MATRIX("blk.2.ffn_down.weight", TINY_EMBD, 1),
    };
    const parts changed = { .list = narrow, .n = sizeof narrow / sizeof narrow[0] };
    expect(&changed, TMX_OK, "");
    tiny_model tiny;
    tmx_model *model;
    tmx_session *session;
    tmx_error err;
    float logits[TINY_VOCAB];
    create_changed(&tiny, &changed);
    assert_int_equal(tmx_model_open(&model, tiny.path, NULL, NULL, &err), TMX_OK);
    assert_int_equal(tmx_session_create(&session, model, NULL, NULL, NULL, &err), TMX_OK);
    const tmx_prompt prompt = { .tokens = (const int32_t[]){ 1, 2, 3 }, .n_tokens = 3, .logits = logits };
    assert_int_equal(tmx_prefill(session, &prompt, 1, &err), TMX_OK);
    assert_int_equal(tmx_decode(session, 0, 4, logits, &err), TMX_OK);
    tmx_session_free(session);
    tmx_model_close(model);
    tiny_model_free(&tiny);
    narrow[4].kind = VECTOR;
    expect(&changed, TMX_E_FORMAT,
           "tensor blk.1.ffn_gate.weight: shape [48], expected [1][48] from the hyper-parameters");
}

typedef struct remarks { int n; char last[256]; } remarks;

static void note_remark(void *ctx, const char *line)
{
    remarks *r = ctx;
    r->n++;
    snprintf(r->last, sizeof r->last, "%s", line);
}

static void an_unknown_tensor_is_remarked_once(void **state)
{
    (void)state;
    const part extra = AS_VECTOR("something.else.that.has.the.longest.name.a.tensor.may.have.here", 3);
    tiny_model tiny;
    tmx_model *model;
    tmx_error err;
    remarks heard = { 0 };
    create_changed(&tiny, &(parts){ .list = &extra, .n = 1 });
    const tmx_model_params params = { .compute = TMX_COMPUTE_F32, .warn = note_remark, .warn_ctx = &heard };
    assert_int_equal(tmx_model_open(&model, tiny.path, &params, NULL, &err), TMX_OK);
    assert_int_equal(heard.n, 1);
    assert_string_equal(heard.last, "tensor something.else.that.has.the.longest.name.a.tensor.may.have.here "
                                    "is not used by this architecture; ignored");
    tmx_model_close(model);
    tiny_model_free(&tiny);
}

/* ---------------------------------------------------------------- vocabulary */

static void no_tokens(tiny_vocab *v) { v->has_no_tokens = true; }
static void no_merges(tiny_vocab *v) { v->has_no_merges = true; }
static void no_tokenizer(tiny_vocab *v) { v->model = NULL; }
static void one_token_more(tiny_vocab *v) { tv_token(v, "more", 1); }
static void unknown_pre(tiny_vocab *v) { v->pre = "klingon"; }
static void other_tokenizer(tiny_vocab *v) { v->model = "bert"; }
static void merge_of_strangers(tiny_vocab *v) { tv_merge(v, "xq zz"); }
static void merge_to_stranger(tiny_vocab *v) { tv_merge(v, "a b"); }
static void types_too_few(tiny_vocab *v) { v->n_types--, v->types.n_bytes -= 4; }

static void vocabularies_are_checked(void **state)
{
    (void)state;
    static const lie lies[] = {
        { AS_U32("tokenizer.ggml.eos_token_id", TINY_VOCAB), TMX_E_FORMAT,
          "tokenizer.ggml.eos_token_id: 257 is out of range, the vocabulary has 257 tokens" },
        { AS_U32("tokenizer.ggml.bos_token_id", 0xffffffff), TMX_E_FORMAT,
          "tokenizer.ggml.bos_token_id: 4294967295 is out of range, the vocabulary has 257 tokens" },
    };
    expect_lies(lies, sizeof lies / sizeof lies[0]);
    static const struct { void (*vocab)(tiny_vocab *v); tmx_status status; const char *text; } changed[] = {
        { no_tokens, TMX_E_FORMAT, "key 'tokenizer.ggml.tokens' is missing" },
        { no_merges, TMX_E_FORMAT, "key 'tokenizer.ggml.merges' is missing" },
        { no_tokenizer, TMX_E_FORMAT, "key 'tokenizer.ggml.model' is missing" },
        { one_token_more, TMX_E_FORMAT,
          "tensor token_embd.weight: shape [257][48], expected [258][48] from the hyper-parameters" },
        { unknown_pre, TMX_E_UNSUPPORTED,
          "tokenizer.ggml.pre: 'klingon' is not supported, expected one of gpt-2, smollm, llama-bpe, qwen2, deepseek-r1-qwen, "
          "tekken, gpt-4o, default, deepseek-llm, deepseek-v3" },
        { other_tokenizer, TMX_E_UNSUPPORTED,
          "tokenizer.ggml.model: 'bert' is not supported, expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece)" },
        { merge_of_strangers, TMX_E_FORMAT,
          "tokenizer.ggml.merges[0]: 'xq zz' names a token that is not in the vocabulary" },
        { merge_to_stranger, TMX_E_FORMAT,
          "tokenizer.ggml.merges[0]: 'a b' makes a token that is not in the vocabulary" },
        { types_too_few, TMX_E_FORMAT,
          "tokenizer.ggml.token_type: 256 entries, expected 257 (as many as tokenizer.ggml.tokens)" },
    };
    for (size_t i = 0; i < sizeof changed / sizeof changed[0]; i++) {
        expect(&(parts){ .vocab = changed[i].vocab }, changed[i].status, changed[i].text);
    }
}

/* ---------------------------------------------------------------- paths */

static void paths_are_checked(void **state)
{
    (void)state;
    static const struct { const char *path; tmx_status status; const char *text; } cases[] = {
        { "/tmp", TMX_E_IO, "/tmp: is a directory, expected a regular file" },
        { "/tmp/no-such-model.gguf", TMX_E_IO, "/tmp/no-such-model.gguf: cannot open: No such file or directory" },
        { "", TMX_E_IO, ": cannot open: No such file or directory" },
        { "/dev/null", TMX_E_IO, "/dev/null: is a device, expected a regular file" },
    };
    tmx_model *model = NULL;
    tmx_error err;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(tmx_model_open(&model, cases[i].path, NULL, NULL, &err), cases[i].status);
        assert_string_equal(err.text, cases[i].text);
    }
    assert_int_equal(tmx_model_open(NULL, "x", NULL, NULL, &err), TMX_E_ARG);
    assert_int_equal(tmx_model_open(&model, NULL, NULL, NULL, &err), TMX_E_ARG);
    assert_null(model);
    tmx_model_close(NULL);
}

/* However long the path, the message still has room for what is wrong. */
static void a_long_path_leaves_room_for_the_reason(void **state)
{
    (void)state;
    const part broken = AS_U32(KEY_DIM, 16);
    static const char reason[] =
        ": tensor blk.0.attn_q.weight: shape [48][48], expected [96][48] from the hyper-parameters";
    char path[1024] = "/tmp";
    tiny_model tiny;
    tmx_model *model;
    tmx_error err;
    create_changed(&tiny, &(parts){ .list = &broken, .n = 1 });
    for (int i = 0; i < 400; i++) strcat(path, "/.");
    strcat(path, tiny.path + strlen("/tmp"));
    assert_int_equal(tmx_model_open(&model, path, NULL, NULL, &err), TMX_E_FORMAT);
    assert_true(strlen(err.text) > strlen(reason));
    assert_string_equal(err.text + strlen(err.text) - strlen(reason), reason);
    tiny_model_free(&tiny);
}

/* ---------------------------------------------------------------- damaged weights */

static uint64_t tensor_offset(const char *path, const char *name)
{
    tmx_file *file;
    tmx_error err;
    assert_int_equal(tmx_file_open(&file, path, &err), TMX_OK);
    const gguf_tensor *t = gguf_tensor_find(file, name);
    assert_non_null(t);
    const uint64_t offset = t->offset_bytes;
    tmx_file_close(file);
    return offset;
}

static void overwrite(const char *path, uint64_t offset, const void *bytes, size_t n_bytes)
{
    const int fd = open(path, O_WRONLY);
    assert_true(fd >= 0 && pwrite(fd, bytes, n_bytes, (off_t)offset) == (ssize_t)n_bytes);
    close(fd);
}

typedef struct bench { tiny_model tiny; tmx_model *model; tmx_session *session; } bench;

static void bench_open(bench *b, const tmx_model_params *params, const char *spec)
{
    tmx_error err;
    tmx_plan *plan;
    if (tmx_model_open(&b->model, b->tiny.path, params, NULL, &err) != TMX_OK) fail_msg("%s", err.text);
    assert_int_equal(tmx_plan_parse(&plan, spec, tmx_model_info_get(b->model), &err), TMX_OK);
    assert_int_equal(tmx_plan_set_sizes(plan, 0, 2, 3, &err), TMX_OK);
    const tmx_session_params small = { .n_ctx = 128, .n_chunk = 16 };
    assert_int_equal(tmx_session_create(&b->session, b->model, plan, NULL, &small, &err), TMX_OK);
    tmx_plan_free(plan);
}

static void bench_close(bench *b)
{
    tmx_session_free(b->session);
    tmx_model_close(b->model);
}

enum { N_PROMPT = 70, BAD_TOKEN = 200, BAD_AT = 3 };

static void fill_prompt(int32_t tokens[N_PROMPT])
{
    for (int i = 0; i < N_PROMPT; i++) tokens[i] = i * 7 % 190;
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

static void check_nan_weights(const tmx_model_params *params)
{
    static const char *const names[] = {
        "output_norm.weight", "output.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight",
        "blk.0.attn_v.weight", "blk.0.attn_output.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_gate.weight",
        "blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "blk.2.attn_norm.weight", "blk.2.attn_q.weight",
        "blk.2.attn_k.weight", "blk.2.attn_v.weight", "blk.2.attn_output.weight", "blk.2.ffn_norm.weight",
        "blk.2.ffn_gate.weight", "blk.2.ffn_up.weight", "blk.2.ffn_down.weight",
    };
    const float nan = NAN;
    int32_t tokens[N_PROMPT];
    float logits[TINY_VOCAB];
    tmx_error err;
    fill_prompt(tokens);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        bench b;
        tiny_model_create(&b.tiny, 6, false, false);
        overwrite(b.tiny.path, tensor_offset(b.tiny.path, names[i]), &nan, sizeof nan);
        bench_open(&b, params, i % 2 ? "dense" : "triangle");
        const tmx_prompt prompt = { .tokens = tokens, .n_tokens = N_PROMPT, .logits = logits };
        if (tmx_prefill(b.session, &prompt, 1, &err) != TMX_E_NUMERIC) {
            fail_msg("NaN in %s went unseen (%s, compute %d)", names[i], tmx_isa_name(params->isa),
                     (int)params->compute);
        }
        assert_string_equal(err.text, "prompt 0: the logits hold NaN or infinity; the model file may be damaged");
        assert_int_equal(tmx_session_n_past(b.session, 0), 0);
        bench_close(&b);
        tiny_model_free(&b.tiny);
    }
}

static void nan_weights_open_and_stop_the_answer(void **state)
{
    (void)state;
    on_every_rung(check_nan_weights);
}

/* One token's embedding is NaN: only what sees that token is lost, and then the session goes on unharmed. */
static void check_nan_token(const tmx_model_params *params)
{
    const float nan = NAN;
    int32_t tokens[N_PROMPT];
    float clean[TINY_VOCAB], again[TINY_VOCAB], decoded[TINY_VOCAB];
    tmx_error err;
    bench b;
    tiny_model_create(&b.tiny, 6, false, false);
    const uint64_t row = tensor_offset(b.tiny.path, "token_embd.weight") + BAD_TOKEN * TINY_EMBD * sizeof nan;
    overwrite(b.tiny.path, row, &nan, sizeof nan);
    static const struct { const char *spec; bool is_seen; } plans[] = {
        { "dense", true }, { "triangle", true }, { "streaming", false },
    };
    for (int i = 0; i < 3; i++) {
        bench_open(&b, params, plans[i].spec);
        fill_prompt(tokens);
        tmx_prompt prompt = { .tokens = tokens, .n_tokens = 40, .logits = clean };
        assert_int_equal(tmx_prefill(b.session, &prompt, 1, &err), TMX_OK);
        assert_int_equal(tmx_decode(b.session, 0, BAD_TOKEN, decoded, &err), TMX_E_NUMERIC);
        assert_string_equal(err.text, "decode: the logits hold NaN or infinity at position 40");
        assert_int_equal(tmx_session_n_past(b.session, 0), 40);
        assert_int_equal(tmx_decode(b.session, 0, 9, decoded, &err), TMX_OK);
        tmx_session_reset(b.session);

        tokens[BAD_AT] = BAD_TOKEN;
        prompt = (tmx_prompt){ .tokens = tokens, .n_tokens = N_PROMPT, .logits = again };
        const tmx_status status = tmx_prefill(b.session, &prompt, 1, &err);
        if (status != (plans[i].is_seen ? TMX_E_NUMERIC : TMX_OK)) {
            fail_msg("%s, %s, compute %d: %s", plans[i].spec, tmx_isa_name(params->isa), (int)params->compute,
                     tmx_status_name(status));
        }
        assert_int_equal(tmx_session_n_past(b.session, 0), plans[i].is_seen ? 0 : N_PROMPT);
        tmx_session_reset(b.session);

        fill_prompt(tokens);
        prompt = (tmx_prompt){ .tokens = tokens, .n_tokens = 40, .logits = again };
        assert_int_equal(tmx_prefill(b.session, &prompt, 1, &err), TMX_OK);
        assert_memory_equal(again, clean, sizeof clean);
        assert_int_equal(tmx_decode(b.session, 0, 9, again, &err), TMX_OK);
        assert_memory_equal(again, decoded, sizeof decoded);
        bench_close(&b);
    }
    tiny_model_free(&b.tiny);
}

static void a_nan_reaches_only_what_sees_it(void **state)
{
    (void)state;
    on_every_rung(check_nan_token);
}

/* ---------------------------------------------------------------- which file a plan is for */

static void read_fingerprint(const char *path, char print[65])
{
    tmx_model *model;
    tmx_error err;
    if (tmx_model_open(&model, path, &in_f32, NULL, &err) != TMX_OK) fail_msg("%s", err.text);
    snprintf(print, 65, "%s", tmx_model_info_get(model)->fingerprint);
    assert_int_equal(strlen(print), 64);
    tmx_model_close(model);
}

static void a_plan_belongs_to_its_file(void **state)
{
    (void)state;
    static const char *const names[] = { "token_embd.weight", "blk.0.attn_norm.weight", "blk.2.ffn_down.weight" };
    static const uint64_t ats[] = { 4095, 100, 0 };
    char plan_path[80], before[65], after[65], text[256];
    tiny_model tiny;
    tmx_error err;
    tmx_plan *plan;
    tiny_model_create(&tiny, 8, true, false);
    snprintf(plan_path, sizeof plan_path, "%s.plan", tiny.path);
    read_fingerprint(tiny.path, before);
    tmx_model_info info = { .architecture = "llama", .name = "tiny", .fingerprint = before, .n_layers = TINY_LAYERS };
    assert_int_equal(tmx_plan_parse(&plan, "triangle:1-2", &info, &err), TMX_OK);
    assert_int_equal(tmx_plan_save(plan, plan_path, &err), TMX_OK);
    tmx_plan_free(plan);
    for (int i = 0; i < 3; i++) {
        const uint64_t offset = tensor_offset(tiny.path, names[i]) + ats[i];
        char byte;
        const int fd = open(tiny.path, O_RDONLY);
        assert_true(pread(fd, &byte, 1, (off_t)offset) == 1);
        close(fd);
        overwrite(tiny.path, offset, &(char){ (char)(byte ^ 1) }, 1);
        read_fingerprint(tiny.path, after);
        assert_string_not_equal(before, after);
        info.fingerprint = after;
        assert_int_equal(tmx_plan_parse(&plan, plan_path, &info, &err), TMX_E_UNSUPPORTED);
        snprintf(text, sizeof text, "%s: made for another model file, other LoRA adapters or another RoPE base "
                 "(fingerprint %.12s, here %.12s); set \"fingerprint\" to \"\" to use it anyway", plan_path, before, after);
        assert_string_equal(err.text, text);
        overwrite(tiny.path, offset, &byte, 1);
        read_fingerprint(tiny.path, after);
        assert_string_equal(before, after);
    }
    assert_int_equal(tmx_plan_parse(&plan, plan_path, &info, &err), TMX_OK);
    tmx_plan_free(plan);
    tiny_model_free(&tiny);
    tiny_model_create(&tiny, 8, true, false);                  /* made again: the same file */
    read_fingerprint(tiny.path, after);
    assert_string_equal(before, after);
    tiny_model_free(&tiny);

    const part longer = AS_U32("llama.context_length", TINY_CTX + 1);
    parts changed = { .list = &longer, .n = 1 };
    tiny_model_create_changed(&tiny, 8, true, false, &(tiny_change){ .add = add_parts, .ctx = &changed,
                              .hidden = (const char *const[]){ longer.name, NULL } });
    read_fingerprint(tiny.path, after);
    assert_string_not_equal(before, after);
    tiny_model_free(&tiny);
    unlink(plan_path);
}

/* Any bytes may stand in general.name; a plan made for that model still saves and loads. */
static void a_wild_name_still_makes_a_plan(void **state)
{
    (void)state;
    char name[400], plan_path[80];
    for (size_t i = 0; i < sizeof name - 1; i++) name[i] = "\xe2\x82\xac\n\xff\"\\\x1b"[i % 8];
    name[sizeof name - 1] = '\0';
    const part wild = AS_TEXT("general.name", name);
    tiny_model tiny;
    tmx_model *model;
    tmx_error err;
    tmx_plan *plan;
    create_changed(&tiny, &(parts){ .list = &wild, .n = 1 });
    snprintf(plan_path, sizeof plan_path, "%s.plan", tiny.path);
    assert_int_equal(tmx_model_open(&model, tiny.path, &in_f32, NULL, &err), TMX_OK);
    const tmx_model_info *info = tmx_model_info_get(model);
    assert_int_equal(strlen(info->name), 127);
    assert_int_equal(tmx_plan_parse(&plan, "triangle", info, &err), TMX_OK);
    if (tmx_plan_save(plan, plan_path, &err) != TMX_OK) fail_msg("%s", err.text);
    tmx_plan_free(plan);
    assert_int_equal(tmx_plan_parse(&plan, plan_path, info, &err), TMX_OK);
    tmx_plan_free(plan);
    tmx_model_close(model);
    unlink(plan_path);
    tiny_model_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hyper_parameters_are_checked),
        cmocka_unit_test(architectures_are_checked),
        cmocka_unit_test(every_shape_is_checked),
        cmocka_unit_test(other_tensors_are_checked),
        cmocka_unit_test(a_matrix_may_have_one_row),
        cmocka_unit_test(an_unknown_tensor_is_remarked_once),
        cmocka_unit_test(vocabularies_are_checked),
        cmocka_unit_test(paths_are_checked),
        cmocka_unit_test(a_long_path_leaves_room_for_the_reason),
        cmocka_unit_test(nan_weights_open_and_stop_the_answer),
        cmocka_unit_test(a_nan_reaches_only_what_sees_it),
        cmocka_unit_test(a_plan_belongs_to_its_file),
        cmocka_unit_test(a_wild_name_still_makes_a_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
