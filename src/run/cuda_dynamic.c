#include "run/cuda_dynamic.h"

#include "base/num.h"
#include "base/status.h"

#include <assert.h>

void cuda_dynamic_lay_out(cuda_dynamic *d, layout *at, const tmx_gpu_attention_params *params, int32_t n_layers, const tmx_session_params *p,
                          uint32_t kinds)
{
    *d = (cuda_dynamic){ .seen = NULL };
    if (kinds == 0) return;
    /* A sequence's rows in a chunk may begin or end within a block: one more for each that can share it. */
    const int64_t n_rows = p->n_chunk + (int64_t)KEY_BLOCK * (min_i32(p->n_seqs, p->n_chunk) - 1);
    d->lists = layout_take(at, key_lists_bytes(params->n_heads, n_rows < INT32_MAX ? (int32_t)n_rows : INT32_MAX, p->n_ctx));
    if (kinds >> TMX_PATTERN_XATTENTION & 1) d->n_scratch = gpu_xattention_scratch_bytes(params, p->n_chunk, p->n_ctx);
    if (kinds >> TMX_PATTERN_FLEXPREFILL & 1) d->n_scratch = max_size(d->n_scratch, gpu_flexprefill_scratch_bytes(params, p->n_ctx));
    d->scratch = layout_take(at, d->n_scratch);
    d->pairs = layout_take(at, (uint64_t)n_layers * sizeof *d->pairs);
}

/* What the memory holds at first does not matter: differences are counted. */
tmx_status cuda_dynamic_create(cuda_dynamic *d, gpu *g, int32_t n_layers, tmx_error *err)
{
    if (d->pairs == NULL) return TMX_OK;
    d->seen = mem_alloc((size_t)n_layers, sizeof *d->seen);
    if (d->seen == NULL) return refuse(err, TMX_E_MEMORY, "session: out of memory");
    return gpu_download(g, d->seen, d->pairs, (size_t)n_layers * sizeof *d->seen, err);
}

void cuda_dynamic_free(cuda_dynamic *d) { mem_free(d->seen); }

/* One sequence of params, and where its lists lie; *at goes on to those of the next. */
static tmx_gpu_attention_params part_of(const tmx_gpu_attention_params *params, int32_t i, uint64_t **at, key_lists *lists)
{
    tmx_gpu_attention_params part = *params;
    part.seqs = &params->seqs[i];
    part.n_seqs = 1;
    *lists = key_lists_shape(params->n_heads, part.seqs->q_begin, part.seqs->n_q);
    lists->bits = *at;
    *at += (size_t)lists->n_heads * (size_t)lists->n_blocks * (size_t)lists->n_words;
    return part;
}

static tmx_status estimate(const cuda_dynamic *d, const tmx_gpu_attention_params *part, const tmx_plan *plan, tmx_pattern_kind kind,
                           const key_lists *lists, void *stream, tmx_error *err)
{
    if (kind == TMX_PATTERN_FLEXPREFILL) return gpu_flexprefill(part, &plan->flexprefill, lists, d->scratch, d->n_scratch, stream, err);
    assert(kind == TMX_PATTERN_XATTENTION);            /* the session refuses plans of other kinds */
    return gpu_xattention(part, &plan->xattention, lists, d->scratch, d->n_scratch, stream, err);
}

tmx_status cuda_dynamic_estimate(const cuda_dynamic *d, gpu *g, const tmx_gpu_attention_params *params, const tmx_plan *plan,
                                 tmx_pattern_kind kind, int32_t layer, tmx_error *err)
{
    uint64_t *at = d->lists;
    for (int32_t i = 0; i < params->n_seqs; i++) {
        key_lists lists;
        const tmx_gpu_attention_params part = part_of(params, i, &at, &lists);
        const int32_t q_begin = part.seqs->q_begin;
        TRY(estimate(d, &part, plan, kind, &lists, gpu_stream(g), err));
        TRY(gpu_lists_add_pairs(&lists, q_begin, q_begin + part.seqs->n_q, d->pairs + layer, gpu_stream(g), err));
    }
    return TMX_OK;
}

tmx_status cuda_dynamic_attend(const cuda_dynamic *d, gpu *g, const tmx_gpu_attention_params *params, tmx_error *err)
{
    uint64_t *at = d->lists;
    for (int32_t i = 0; i < params->n_seqs; i++) {
        key_lists lists;
        const tmx_gpu_attention_params part = part_of(params, i, &at, &lists);
        TRY(gpu_attention_over_lists(&part, &lists, gpu_stream(g), err));
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
