/* fake_gpu_lists.c - attn_gpu.h on host memory, through the queue of fake_gpu.c: the CPU's estimators and its attention over lists. */
#include "attn/attn.h"
#include "attn/attn_gpu.h"
#include "base/mem.h"
#include "base/num.h"
#include "base/status.h"
#include "fake_gpu.h"

#include <stdlib.h>
#include <string.h>

typedef struct lists_args {        /* of an estimate, of attention */
    tmx_gpu_attention_params params;
    tmx_gpu_attention_seq seq;
    xattention method;
    flexprefill flex;
    key_lists lists;
} lists_args;

typedef struct heads_args {        /* of MInference's estimate, of attention over heads */
    tmx_gpu_attention_params params;
    tmx_gpu_attention_seq seq;
    minference_head *chosen;       /* a copy: the caller's is read during the call only */
    head_keys *found;
    uint64_t *room, *n_pairs;
} heads_args;

typedef struct pairs_args {
    key_lists lists;
    int32_t q_begin, q_end;
    uint64_t *n_pairs;
} pairs_args;

static void *must(void *block)
{
    if (block == NULL) abort();
    return block;
}

static tmx_attention_params host_params(const tmx_gpu_attention_params *p, const tmx_gpu_attention_seq *of, tmx_attention_seq *seq)
{
    *seq = (tmx_attention_seq){ .q = of->q, .k = of->k, .v = of->v, .q_begin = of->q_begin, .n_q = of->n_q, .n_prompt = of->n_prompt };
    return (tmx_attention_params){
        .q_type = TMX_TYPE_BF16, .kv_type = TMX_TYPE_BF16, .n_heads = p->n_heads, .n_kv_heads = p->n_kv_heads, .head_dim = p->head_dim,
        .q_pos_stride = p->q_pos_stride, .q_head_stride = p->q_head_stride, .k_pos_stride = p->k_pos_stride,
        .k_head_stride = p->k_head_stride, .v_pos_stride = p->v_pos_stride, .v_head_stride = p->v_head_stride,
        .out_pos_stride = p->out_pos_stride, .out_head_stride = p->out_head_stride, .scale = p->scale, .pattern = p->pattern,
        .seqs = seq, .n_seqs = 1,
    };
}

static void *scratch_for(const tmx_attention_params *p, tmx_pattern_kind kind)
{
    return must(mem_alloc(attn_lists_scratch_bytes(p, kind, p->seqs->q_begin + p->seqs->n_q, 1), 1));
}

static void run_xattention(const void *args)
{
    const lists_args *a = args;
    tmx_attention_seq seq;
    tmx_attention_params params = host_params(&a->params, &a->seq, &seq);
    key_lists lists = key_lists_on(a->lists.bits, a->lists.n_heads, seq.q_begin, seq.n_q);
    params.scratch = scratch_for(&params, TMX_PATTERN_XATTENTION);
    attn_xattention(&params, &a->method, &lists, NULL);
    mem_free(params.scratch);
}

/* Engines call it for prompts longer than flexprefill_dense_tokens only. */
static void run_flexprefill(const void *args)
{
    const lists_args *a = args;
    tmx_attention_seq seq;
    tmx_attention_params params = host_params(&a->params, &a->seq, &seq);
    key_lists lists = key_lists_on(a->lists.bits, a->lists.n_heads, seq.q_begin, seq.n_q);
    params.scratch = scratch_for(&params, TMX_PATTERN_FLEXPREFILL);
    attn_flexprefill(&params, &a->flex, &lists, NULL);
    mem_free(params.scratch);
}

static void run_minference(const void *args)
{
    const heads_args *a = args;
    tmx_attention_seq seq;
    tmx_attention_params params = host_params(&a->params, &a->seq, &seq);
    params.scratch = scratch_for(&params, TMX_PATTERN_MINFERENCE);
    attn_minference(&params, a->chosen, a->found, a->room, NULL);
    mem_free(params.scratch);
    mem_free(a->chosen);
}

/* By lists, or by heads; out may be q. */
static void attend(const tmx_gpu_attention_params *p, const tmx_gpu_attention_seq *of, const key_lists *lists, const head_keys *heads)
{
    const size_t n = (size_t)of->n_q * p->out_pos_stride;
    tmx_attention_seq seq;
    tmx_attention_params params = host_params(p, of, &seq);
    tmx_bf16 *out = must(mem_alloc(n, sizeof *out));
    seq.out = out;
    params.scratch = scratch_for(&params, heads != NULL ? TMX_PATTERN_MINFERENCE : TMX_PATTERN_XATTENTION);
    if (heads != NULL) attn_over_heads(&params, heads, NULL);
    else attn_over_lists(&params, lists, NULL);
    memcpy(of->out, out, n * sizeof *out);
    mem_free(params.scratch);
    mem_free(out);
}

static void run_attention(const void *args)
{
    const lists_args *a = args;
    attend(&a->params, &a->seq, &a->lists, NULL);
}

static void run_over_heads(const void *args)
{
    const heads_args *a = args;
    attend(&a->params, &a->seq, NULL, a->found);
    for (int32_t h = 0; h < a->params.n_heads && a->n_pairs != NULL; h++) *a->n_pairs += (uint64_t)head_keys_pairs(&a->found[h], 0);
}

static void run_pairs(const void *args)
{
    const pairs_args *a = args;
    *a->n_pairs += (uint64_t)key_lists_pairs(&a->lists, a->q_begin, a->q_end);
}

static void enqueue_lists(void *stream, void (*run)(const void *args), const tmx_gpu_attention_params *params, const xattention *method,
                          const flexprefill *flex, const key_lists *lists)
{
    lists_args args = { .params = *params, .seq = params->seqs[0], .lists = *lists };
    if (method != NULL) args.method = *method;
    if (flex != NULL) args.flex = *flex;
    if (params->n_seqs != 1 || params->pattern.kind != TMX_PATTERN_DENSE) abort();
    fake_gpu_enqueue(stream, run, &args, sizeof args);
}

tmx_status __wrap_gpu_lists_check(int32_t head_dim, tmx_error *err);
tmx_status __wrap_gpu_lists_check(int32_t head_dim, tmx_error *err)
{
    return head_dim == 64 || head_dim == 128 ? TMX_OK : refuse(err, TMX_E_UNSUPPORTED, "dynamic methods on a GPU: head_dim %d", head_dim);
}

tmx_status __wrap_gpu_xattention(const tmx_gpu_attention_params *params, const xattention *method, const key_lists *lists, void *scratch,
                                 size_t scratch_bytes, void *stream, tmx_error *err);
tmx_status __wrap_gpu_xattention(const tmx_gpu_attention_params *params, const xattention *method, const key_lists *lists, void *scratch,
                                 size_t scratch_bytes, void *stream, tmx_error *err)
{
    const int32_t n_q = params->seqs->n_q;
    if (scratch == NULL || scratch_bytes < gpu_xattention_scratch_bytes(params, n_q, params->seqs->q_begin + n_q)) {
        return refuse(err, TMX_E_ARG, "xattention on a GPU: scratch");
    }
    enqueue_lists(stream, run_xattention, params, method, NULL, lists);
    return TMX_OK;
}

tmx_status __wrap_gpu_flexprefill(const tmx_gpu_attention_params *params, const flexprefill *method, const key_lists *lists, void *scratch,
                                  size_t scratch_bytes, void *stream, tmx_error *err);
tmx_status __wrap_gpu_flexprefill(const tmx_gpu_attention_params *params, const flexprefill *method, const key_lists *lists, void *scratch,
                                  size_t scratch_bytes, void *stream, tmx_error *err)
{
    if (scratch == NULL || scratch_bytes < gpu_flexprefill_scratch_bytes(params, params->seqs->n_q)) {
        return refuse(err, TMX_E_ARG, "flexprefill on a GPU: scratch");
    }
    enqueue_lists(stream, run_flexprefill, params, NULL, method, lists);
    return TMX_OK;
}

tmx_status __wrap_gpu_minference(const tmx_gpu_attention_params *params, const minference_head *chosen, head_keys *found, uint64_t *room,
                                 void *scratch, size_t scratch_bytes, void *stream, tmx_error *err);
tmx_status __wrap_gpu_minference(const tmx_gpu_attention_params *params, const minference_head *chosen, head_keys *found, uint64_t *room,
                                 void *scratch, size_t scratch_bytes, void *stream, tmx_error *err)
{
    if (scratch == NULL || scratch_bytes < gpu_minference_scratch_bytes(params, params->seqs->n_q)) {
        return refuse(err, TMX_E_ARG, "minference on a GPU: scratch");
    }
    const size_t n_heads = (size_t)params->n_heads;
    const heads_args args = { .params = *params, .seq = params->seqs[0], .chosen = must(mem_alloc(n_heads, sizeof *chosen)), .found = found, .room = room };
    if (params->n_seqs != 1 || params->pattern.kind != TMX_PATTERN_DENSE || args.seq.q_begin != 0 || args.seq.n_q != args.seq.n_prompt) abort();
    memcpy(args.chosen, chosen, n_heads * sizeof *chosen);
    fake_gpu_enqueue(stream, run_minference, &args, sizeof args);
    return TMX_OK;
}

tmx_status __wrap_gpu_attention_over_heads(const tmx_gpu_attention_params *params, const head_keys *heads, uint64_t *n_pairs, void *stream,
                                           tmx_error *err);
tmx_status __wrap_gpu_attention_over_heads(const tmx_gpu_attention_params *params, const head_keys *heads, uint64_t *n_pairs, void *stream,
                                           tmx_error *err)
{
    if (tmx_gpu_attention_scratch_bytes(params) > params->scratch_bytes) return refuse(err, TMX_E_ARG, "gpu attention: scratch_bytes");
    const heads_args args = { .params = *params, .seq = params->seqs[0], .found = (head_keys *)(uintptr_t)heads, .n_pairs = n_pairs };
    fake_gpu_enqueue(stream, run_over_heads, &args, sizeof args);
    return TMX_OK;
}

tmx_status __wrap_gpu_attention_over_lists(const tmx_gpu_attention_params *params, const key_lists *lists, void *stream, tmx_error *err);
tmx_status __wrap_gpu_attention_over_lists(const tmx_gpu_attention_params *params, const key_lists *lists, void *stream, tmx_error *err)
{
    if (tmx_gpu_attention_scratch_bytes(params) > params->scratch_bytes) return refuse(err, TMX_E_ARG, "gpu attention: scratch_bytes");
    enqueue_lists(stream, run_attention, params, NULL, NULL, lists);
    return TMX_OK;
}

tmx_status __wrap_gpu_lists_add_pairs(const key_lists *lists, int32_t q_begin, int32_t q_end, uint64_t *n_pairs, void *stream, tmx_error *err);
tmx_status __wrap_gpu_lists_add_pairs(const key_lists *lists, int32_t q_begin, int32_t q_end, uint64_t *n_pairs, void *stream, tmx_error *err)
{
    (void)err;
    const pairs_args args = { .lists = *lists, .q_begin = q_begin, .q_end = q_end, .n_pairs = n_pairs };
    fake_gpu_enqueue(stream, run_pairs, &args, sizeof args);
    return TMX_OK;
}
