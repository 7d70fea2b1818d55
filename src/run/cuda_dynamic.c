#include "run/cuda_dynamic.h"

#include "base/num.h"
#include "base/status.h"

#include <assert.h>

static bool has_kind(uint32_t kinds, tmx_pattern_kind kind) { return kinds >> kind & 1; }

static int32_t most_segments(const tmx_session_params *p) { return min_i32(p->n_seqs, p->n_chunk); }

/* A sequence's rows in a chunk may begin or end within a block: one more for each that can share it. */
static size_t lists_bytes(int32_t n_heads, const tmx_session_params *p)
{
    const int64_t n_rows = p->n_chunk + (int64_t)KEY_BLOCK * (most_segments(p) - 1);
    return key_lists_bytes(n_heads, n_rows < INT32_MAX ? (int32_t)n_rows : INT32_MAX, p->n_ctx);
}

/* Whole prompts, which fill the chunk together: what one takes grows faster than its length, so few long ones are the most. */
static size_t rooms_bytes(int32_t n_heads, const tmx_session_params *p)
{
    const int32_t n_prompts = (p->n_chunk - 1) / p->n_ctx + 1;
    return (size_t)n_prompts * (size_t)n_heads * minference_room_bytes(p->n_ctx);
}

void cuda_dynamic_lay_out(cuda_dynamic *d, layout *at, const tmx_gpu_attention_params *params, int32_t n_layers, const tmx_session_params *p,
                          uint32_t kinds)
{
    *d = (cuda_dynamic){ .seen = NULL };
    if (kinds == 0) return;
    size_t n_lists = 0;
    if (has_kind(kinds, TMX_PATTERN_XATTENTION)) d->n_scratch = gpu_xattention_scratch_bytes(params, p->n_chunk, p->n_ctx);
    if (has_kind(kinds, TMX_PATTERN_FLEXPREFILL)) d->n_scratch = max_size(d->n_scratch, gpu_flexprefill_scratch_bytes(params, p->n_ctx));
    if (kinds & ~(1u << TMX_PATTERN_MINFERENCE)) n_lists = lists_bytes(params->n_heads, p);
    if (has_kind(kinds, TMX_PATTERN_MINFERENCE)) {
        d->n_scratch = max_size(d->n_scratch, gpu_minference_scratch_bytes(params, p->n_ctx));
        n_lists = max_size(n_lists, rooms_bytes(params->n_heads, p));
        d->heads = layout_take(at, (uint64_t)most_segments(p) * (uint64_t)params->n_heads * sizeof *d->heads);
    }
    d->lists = layout_take(at, n_lists);
    d->scratch = layout_take(at, d->n_scratch);
    d->pairs = layout_take(at, (uint64_t)n_layers * sizeof *d->pairs);
}

/* What the memory holds at first does not matter: differences are counted. */
tmx_status cuda_dynamic_create(cuda_dynamic *d, gpu *g, const tmx_model_info *m, tmx_error *err)
{
    if (d->pairs == NULL) return TMX_OK;
    d->seen = mem_alloc((size_t)m->n_layers, sizeof *d->seen);
    d->chosen = mem_alloc((size_t)m->n_heads, sizeof *d->chosen);
    if (d->seen == NULL || d->chosen == NULL) return refuse(err, TMX_E_MEMORY, "session: out of memory");
    return gpu_download(g, d->seen, d->pairs, (size_t)m->n_layers * sizeof *d->seen, err);
}

void cuda_dynamic_free(cuda_dynamic *d)
{
    mem_free(d->seen);
    mem_free(d->chosen);
}

static tmx_gpu_attention_params part_of(const tmx_gpu_attention_params *params, int32_t i)
{
    tmx_gpu_attention_params part = *params;
    part.seqs = &params->seqs[i];
    part.n_seqs = 1;
    return part;
}

/* Lists of a sequence's rows at *at, which goes on to those of the next. */
static key_lists lists_of(const tmx_gpu_attention_params *part, uint64_t **at)
{
    key_lists lists = key_lists_shape(part->n_heads, part->seqs->q_begin, part->seqs->n_q);
    lists.bits = *at;
    *at += (size_t)lists.n_heads * (size_t)lists.n_blocks * (size_t)lists.n_words;
    return lists;
}

static tmx_status estimate_lists(const cuda_dynamic *d, gpu *g, const tmx_gpu_attention_params *part, const tmx_plan *plan, tmx_pattern_kind kind,
                                 int32_t layer, uint64_t **at, tmx_error *err)
{
    const key_lists lists = lists_of(part, at);
    const int32_t q_begin = part->seqs->q_begin;
    void *stream = gpu_stream(g);
    if (kind == TMX_PATTERN_FLEXPREFILL) {
        TRY(gpu_flexprefill(part, &plan->flexprefill, &lists, d->scratch, d->n_scratch, stream, err));
    } else {
        assert(kind == TMX_PATTERN_XATTENTION);        /* the session refuses plans of other kinds */
        TRY(gpu_xattention(part, &plan->xattention, &lists, d->scratch, d->n_scratch, stream, err));
    }
    return gpu_lists_add_pairs(&lists, q_begin, q_begin + part->seqs->n_q, d->pairs + layer, stream, err);
}

tmx_status cuda_dynamic_estimate(const cuda_dynamic *d, gpu *g, const tmx_gpu_attention_params *params, const tmx_plan *plan,
                                 tmx_pattern_kind kind, int32_t layer, tmx_error *err)
{
    uint64_t *at = d->lists;
    for (int32_t h = 0; h < params->n_heads && kind == TMX_PATTERN_MINFERENCE; h++) d->chosen[h] = plan_minference_head(plan, layer, h);
    for (int32_t i = 0; i < params->n_seqs; i++) {
        const tmx_gpu_attention_params part = part_of(params, i);
        if (kind == TMX_PATTERN_MINFERENCE) {
            TRY(gpu_minference(&part, d->chosen, d->heads + (size_t)i * (size_t)params->n_heads, at, d->scratch, d->n_scratch, gpu_stream(g), err));
            at += (size_t)params->n_heads * (minference_room_bytes(part.seqs->n_q) / sizeof *at);
        } else {
            TRY(estimate_lists(d, g, &part, plan, kind, layer, &at, err));
        }
    }
    return TMX_OK;
}

tmx_status cuda_dynamic_attend(const cuda_dynamic *d, gpu *g, const tmx_gpu_attention_params *params, tmx_pattern_kind kind, int32_t layer,
                               tmx_error *err)
{
    uint64_t *at = d->lists;
    for (int32_t i = 0; i < params->n_seqs; i++) {
        const tmx_gpu_attention_params part = part_of(params, i);
        if (kind == TMX_PATTERN_MINFERENCE) {
            TRY(gpu_attention_over_heads(&part, d->heads + (size_t)i * (size_t)params->n_heads, d->pairs + layer, gpu_stream(g), err));
        } else {
            const key_lists lists = lists_of(&part, &at);
            TRY(gpu_attention_over_lists(&part, &lists, gpu_stream(g), err));
        }
    }
    return TMX_OK;
}

tmx_status cuda_dynamic_settle(const cuda_dynamic *d, gpu *g, tmx_session *s, tmx_error *err)
{
    const tmx_model_info *m = &s->model->info;
    if (d->pairs == NULL) return TMX_OK;
    for (int32_t layer = 0; layer < m->n_layers; layer++) {
        uint64_t now;
        TRY(gpu_download(g, &now, d->pairs + layer, sizeof now, err));
        s->layer_pairs[2 * layer] += (double)(now - d->seen[layer]) / m->n_heads;
        d->seen[layer] = now;
    }
    return TMX_OK;
}
