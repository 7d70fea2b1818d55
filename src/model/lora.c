#include "model/lora.h"

#include "base/mem.h"
#include "base/num.h"
#include "base/pool.h"
#include "base/status.h"
#include "gguf/blocks.h"
#include "model/family.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_RANK = 1 << 14,            /* above every adapter there is; bounds the work a small file can ask for */
    ROWS_PER_TASK = 16,
    SUFFIX_BYTES = 7,              /* ".lora_a" */
    KEY_BYTES = 73,                /* fingerprint and scale as 64 + 8 hex digits, and a NUL */
};

typedef struct lora_file {
    tmx_file *file;
    float scale, alpha;
    char key[KEY_BYTES];           /* what this adapter adds: by content, not by path */
} lora_file;

typedef struct lora_pair {
    const gguf_tensor *base;       /* [n_out][n_in], of the model */
    const gguf_tensor *a, *b;      /* [rank][n_in], [n_out][rank] */
    float factor;                  /* scale * alpha / rank */
    const char *key;               /* of the file it stands in */
} lora_pair;

struct lora_set {
    lora_file *files;              /* [n_files] sorted by key */
    lora_pair *pairs;              /* [n_pairs] sorted by base, then by key */
    int32_t n_files, n_pairs;
};

void lora_set_free(lora_set *set)
{
    if (set == NULL) return;
    for (int32_t i = 0; set->files != NULL && i < set->n_files; i++) tmx_file_close(set->files[i].file);
    mem_free(set->files);
    mem_free(set->pairs);
    mem_free(set);
}

/* ---------------------------------------------------------------- one adapter file */

static tmx_status expect_text(const tmx_file *file, const char *key, const char *expected, tmx_status status, tmx_error *err)
{
    gguf_string text;
    TRY(gguf_get_string(file, key, &text, err));
    if (text.n_bytes == strlen(expected) && memcmp(text.data, expected, text.n_bytes) == 0) return TMX_OK;
    return refuse(err, status, "%s: %s is '%.*s', expected '%s'", gguf_label(file), key,
                  (int)(text.n_bytes < 32 ? text.n_bytes : 32), text.data, expected);
}

static tmx_status check_keys(lora_file *f, const char *architecture, tmx_error *err)
{
    const char *label = gguf_label(f->file);
    TRY(expect_text(f->file, "general.type", "adapter", TMX_E_FORMAT, err));
    TRY(expect_text(f->file, "adapter.type", "lora", TMX_E_UNSUPPORTED, err));
    TRY(expect_text(f->file, "general.architecture", architecture, TMX_E_UNSUPPORTED, err));
    if (gguf_has(f->file, "adapter.alora.invocation_tokens")) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: adapter.alora.invocation_tokens: an adapter that only some tokens "
                      "switch on cannot be merged", label);
    }
    TRY(gguf_get_f32(f->file, "adapter.lora.alpha", &f->alpha, err));
    if (!isfinite(f->alpha) || f->alpha <= 0) {
        return refuse(err, TMX_E_FORMAT, "%s: adapter.lora.alpha is %g, expected a positive number", label, (double)f->alpha);
    }
    return TMX_OK;
}

static tmx_status open_adapter(lora_file *f, const tmx_lora *given, const char *architecture, tmx_error *err)
{
    if (given->path == NULL) return refuse(err, TMX_E_ARG, "adapter: the path is NULL");
    f->scale = given->scale != 0 ? given->scale : 1.0f;
    if (!isfinite(f->scale)) return refuse(err, TMX_E_ARG, "adapter %.160s: the scale is %g", given->path, (double)f->scale);
    TRY(tmx_file_open(&f->file, given->path, err));
    TRY(check_keys(f, architecture, err));
    char fingerprint[65];
    gguf_fingerprint(f->file, fingerprint);
    snprintf(f->key, sizeof f->key, "%s%08x", fingerprint, f32_to_bits(f->scale));
    return TMX_OK;
}

/* ---------------------------------------------------------------- one pair */

static bool ends_with(const char *name, const char *suffix)
{
    const size_t n = strlen(name);
    return n > SUFFIX_BYTES && memcmp(name + n - SUFFIX_BYTES, suffix, SUFFIX_BYTES) == 0;
}

static tmx_status refuse_shape(const tmx_file *file, const gguf_tensor *t, const char *expected, const gguf_tensor *base,
                               tmx_error *err)
{
    char found[64], model[64];
    tensor_shape_text(found, t->n_dims, t->shape);
    tensor_shape_text(model, base->n_dims, base->shape);
    return refuse(err, TMX_E_FORMAT, "%s: tensor %s: shape %s, expected %s (the model's tensor is %s)", gguf_label(file),
                  t->name, found, expected, model);
}

static tmx_status check_pair(const tmx_file *file, const lora_pair *p, tmx_error *err)
{
    const gguf_tensor *base = p->base, *const both[2] = { p->a, p->b };
    char expected[64];
    for (int i = 0; i < 2; i++) {
        const block_format *format = block_format_find(both[i]->type);
        if (format != NULL && format->to_f32 != NULL) continue;
        return refuse(err, TMX_E_UNSUPPORTED, "%s: tensor %s: block type %s is not supported", gguf_label(file),
                      both[i]->name, format != NULL ? format->name : "?");
    }
    if (p->a->n_dims != 2 || p->a->shape[1] != base->shape[1]) {
        snprintf(expected, sizeof expected, "[rank][%lld]", (long long)base->shape[1]);
        return refuse_shape(file, p->a, expected, base, err);
    }
    const int64_t rank = p->a->shape[0];
    if (p->b->n_dims != 2 || p->b->shape[0] != base->shape[0] || p->b->shape[1] != rank) {
        snprintf(expected, sizeof expected, "[%lld][%lld]", (long long)base->shape[0], (long long)rank);
        return refuse_shape(file, p->b, expected, base, err);
    }
    if (rank > MAX_RANK) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: tensor %s: rank %lld, expected 1..%d", gguf_label(file), p->a->name,
                      (long long)rank, MAX_RANK);
    }
    return TMX_OK;
}

static bool is_zero(const gguf_tensor *t)
{
    const unsigned char *bytes = t->data;
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, (size_t)t->n_bytes - 1) == 0;
}

/* The pair that the lora_a tensor `a` belongs to. */
static tmx_status find_pair(const lora_file *f, const gguf_tensor *a, const tmx_file *model, const model_tensors *tensors,
                            lora_pair *pair, tmx_error *err)
{
    const char *label = gguf_label(f->file);
    char name[GGUF_MAX_TENSOR_NAME + 1];
    const size_t n_base = strlen(a->name) - SUFFIX_BYTES;
    snprintf(name, sizeof name, "%.*s.lora_b", (int)n_base, a->name);
    const gguf_tensor *b = gguf_tensor_find(f->file, name);
    if (b == NULL) return refuse(err, TMX_E_FORMAT, "%s: tensor %s has no %s beside it", label, a->name, name);
    name[n_base] = '\0';
    const gguf_tensor *base = gguf_tensor_find(model, name);
    if (base == NULL || !tensors->is_used[base - gguf_tensor_at(model, 0)]) {
        return refuse(err, TMX_E_FORMAT, "%s: tensor %s: the model has no tensor %s", label, a->name, name);
    }
    if (base->n_dims != 2) {
        return refuse(err, TMX_E_UNSUPPORTED, "%s: tensor %s: the model's tensor is no matrix, and only matrices can be adapted",
                      label, a->name);
    }
    if (base == tensors->token_embd) {             /* its A and B are transposed, and a tied LM head is left alone */
        return refuse(err, TMX_E_UNSUPPORTED, "%s: tensor %s: an adapter of the token embedding is not supported",
                      label, a->name);
    }
    *pair = (lora_pair){ .base = base, .a = a, .b = b, .key = f->key };
    TRY(check_pair(f->file, pair, err));
    pair->factor = f->scale * f->alpha / (float)a->shape[0];
    if (isfinite(pair->factor)) return TMX_OK;
    return refuse(err, TMX_E_NUMERIC, "%s: scale %g * alpha %g is beyond f32", label, (double)f->scale, (double)f->alpha);
}

static tmx_status read_pairs(lora_set *set, const lora_file *f, const tmx_file *model, const model_tensors *tensors,
                             tmx_error *err)
{
    const int32_t n_tensors = tmx_file_n_tensors(f->file);
    if (n_tensors == 0) return refuse(err, TMX_E_FORMAT, "%s: an adapter without tensors", gguf_label(f->file));
    for (int32_t i = 0; i < n_tensors; i++) {
        const gguf_tensor *t = gguf_tensor_at(f->file, i);
        if (ends_with(t->name, ".lora_b")) {
            char name[GGUF_MAX_TENSOR_NAME + 1];
            snprintf(name, sizeof name, "%s", t->name);
            name[strlen(name) - 1] = 'a';
            if (gguf_tensor_find(f->file, name) != NULL) continue;
            return refuse(err, TMX_E_FORMAT, "%s: tensor %s has no %s beside it", gguf_label(f->file), t->name, name);
        }
        if (!ends_with(t->name, ".lora_a")) {
            return refuse(err, TMX_E_UNSUPPORTED, "%s: tensor %s is neither a lora_a nor a lora_b", gguf_label(f->file), t->name);
        }
        lora_pair pair;
        TRY(find_pair(f, t, model, tensors, &pair, err));
        if (!is_zero(pair.a) && !is_zero(pair.b)) set->pairs[set->n_pairs++] = pair;
    }
    return tmx_file_check_tensors(f->file, err);
}

/* ---------------------------------------------------------------- all of them */

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const lora_file *)a)->key, ((const lora_file *)b)->key);
}

static int compare_pairs(const void *a, const void *b)
{
    const lora_pair *p = a, *q = b;
    if (p->base != q->base) return p->base < q->base ? -1 : 1;
    return strcmp(p->key, q->key);
}

static tmx_status read_set(lora_set *set, const tmx_model_params *params, const tmx_file *model,
                           const model_tensors *tensors, tmx_error *err)
{
    size_t n_tensors = 0;
    set->files = mem_alloc((size_t)params->n_loras, sizeof *set->files);
    if (set->files == NULL) return refuse(err, TMX_E_MEMORY, "out of memory for %d adapters", params->n_loras);
    for (; set->n_files < params->n_loras; set->n_files++) {
        lora_file *f = &set->files[set->n_files];
        const tmx_status status = open_adapter(f, &params->loras[set->n_files], tensors->family->architecture, err);
        if (status != TMX_OK) {
            tmx_file_close(f->file);
            return status;
        }
        n_tensors += (size_t)tmx_file_n_tensors(f->file);
    }
    qsort(set->files, (size_t)set->n_files, sizeof *set->files, compare_files);
    set->pairs = mem_alloc(n_tensors / 2 + 1, sizeof *set->pairs);     /* a pair has two tensors in its file */
    if (set->pairs == NULL) return refuse(err, TMX_E_MEMORY, "out of memory for %zu adapter tensors", n_tensors);
    for (int32_t i = 0; i < set->n_files; i++) TRY(read_pairs(set, &set->files[i], model, tensors, err));
    qsort(set->pairs, (size_t)set->n_pairs, sizeof *set->pairs, compare_pairs);
    return TMX_OK;
}

tmx_status lora_set_read(lora_set **out, const tmx_model_params *params, const tmx_file *model,
                         const model_tensors *tensors, tmx_error *err)
{
    *out = NULL;
    if (params->n_loras == 0) return TMX_OK;
    if (params->n_loras < 0 || params->loras == NULL) {
        return refuse(err, TMX_E_ARG, "adapters: %d given%s", params->n_loras, params->loras == NULL ? ", the list is NULL" : "");
    }
    lora_set *set = mem_alloc(1, sizeof *set);
    if (set == NULL) return refuse(err, TMX_E_MEMORY, "out of memory for %d adapters", params->n_loras);
    const tmx_status status = read_set(set, params, model, tensors, err);
    if (status == TMX_OK) *out = set;
    else lora_set_free(set);
    return status;
}

void lora_set_hash(const lora_set *set, sha256 *hash)
{
    for (int32_t i = 0; set != NULL && i < set->n_files; i++) sha256_add(hash, set->files[i].key, KEY_BYTES - 1);
}

/* Pairs [first, end) belong to one tensor of the model. */
static int32_t group_end(const lora_set *set, int32_t first)
{
    int32_t end = first + 1;
    while (end < set->n_pairs && set->pairs[end].base == set->pairs[first].base) end++;
    return end;
}

static size_t n_weights(const gguf_tensor *t) { return (size_t)t->shape[0] * (size_t)t->shape[1]; }

uint64_t lora_set_n_merged(const lora_set *set)
{
    uint64_t n = 0;
    for (int32_t i = 0; set != NULL && i < set->n_pairs; i = group_end(set, i)) n += n_weights(set->pairs[i].base);
    return n;
}

/* ---------------------------------------------------------------- merging */

typedef struct merge_job {
    const lora_pair *pairs;        /* [n_pairs], of one tensor */
    int32_t n_pairs;
    const float *a;                /* [n_pairs][rank][n_in], expanded */
    float *rows;                   /* [n_threads][3][n_in]: weights, sum of all pairs, one pair */
    float *b;                      /* [n_threads][MAX_RANK] */
    void *merged;                  /* [n_out][n_in] */
    bool is_bf16;
} merge_job;

static void merge_row(const merge_job *job, size_t out, float *row, float *b)
{
    const gguf_tensor *base = job->pairs[0].base;
    const block_format *format = block_format_find(base->type);
    const size_t n_in = (size_t)base->shape[1];
    float *sum = row + n_in, *one = sum + n_in;
    const float *a = job->a;
    format->to_f32((const char *)base->data + out * block_row_bytes(format, n_in), row, n_in);
    memset(sum, 0, n_in * sizeof *sum);
    for (int32_t i = 0; i < job->n_pairs; i++) {
        const lora_pair *p = &job->pairs[i];
        const block_format *b_format = block_format_find(p->b->type);
        const size_t rank = (size_t)p->b->shape[1];
        b_format->to_f32((const char *)p->b->data + out * block_row_bytes(b_format, rank), b, rank);
        memset(one, 0, n_in * sizeof *one);
        for (size_t r = 0; r < rank; r++, a += n_in) {
            const float factor = p->factor * b[r];
            for (size_t k = 0; k < n_in; k++) one[k] += factor * a[k];
        }
        for (size_t k = 0; k < n_in; k++) sum[k] += one[k];
    }
    if (job->is_bf16) {
        tmx_bf16 *to = (tmx_bf16 *)job->merged + out * n_in;
        for (size_t k = 0; k < n_in; k++) to[k] = bf16_from_f32(row[k] + sum[k]);
    } else {
        float *to = (float *)job->merged + out * n_in;
        for (size_t k = 0; k < n_in; k++) to[k] = row[k] + sum[k];
    }
}

static void merge_rows(void *ctx, int32_t task, int32_t thread)
{
    const merge_job *job = ctx;
    const size_t n_out = (size_t)job->pairs[0].base->shape[0], n_in = (size_t)job->pairs[0].base->shape[1];
    float *row = job->rows + (size_t)thread * 3 * n_in, *b = job->b + (size_t)thread * MAX_RANK;
    const size_t begin = (size_t)task * ROWS_PER_TASK, end = begin + ROWS_PER_TASK < n_out ? begin + ROWS_PER_TASK : n_out;
    for (size_t out = begin; out < end; out++) merge_row(job, out, row, b);
}

/* One tensor: A of all its pairs in f32, then row by row. */
static tmx_status merge_tensor(merge_job *job, tmx_pool *pool, tmx_error *err)
{
    const gguf_tensor *base = job->pairs[0].base;
    const size_t n_threads = (size_t)pool_n_threads(pool);
    size_t n_a = 0;
    for (int32_t i = 0; i < job->n_pairs; i++) n_a += n_weights(job->pairs[i].a);
    float *a = mem_alloc(n_a, sizeof *a);
    job->a = a;
    job->rows = mem_alloc(n_threads * 3 * (size_t)base->shape[1], sizeof(float));
    job->b = mem_alloc(n_threads * MAX_RANK, sizeof(float));
    const bool has_memory = a != NULL && job->rows != NULL && job->b != NULL;
    if (has_memory) {
        for (int32_t i = 0; i < job->n_pairs; i++) {
            const gguf_tensor *t = job->pairs[i].a;
            block_format_find(t->type)->to_f32(t->data, a, n_weights(t));
            a += n_weights(t);
        }
        pool_run(pool, (int32_t)((base->shape[0] + ROWS_PER_TASK - 1) / ROWS_PER_TASK), merge_rows, job);
    }
    mem_free((void *)(uintptr_t)job->a);
    mem_free(job->rows);
    mem_free(job->b);
    return has_memory ? TMX_OK : refuse(err, TMX_E_MEMORY, "tensor %s: out of memory to merge its adapters", base->name);
}

tmx_status lora_set_merge(const lora_set *set, tmx_file *model, tmx_compute compute, tmx_pool *pool, void **memory,
                          tmx_error *err)
{
    const bool is_bf16 = compute == TMX_COMPUTE_BF16;
    const size_t size = is_bf16 ? sizeof(tmx_bf16) : sizeof(float);
    size_t n_bytes = 0;
    *memory = NULL;
    if (set == NULL || set->n_pairs == 0) return TMX_OK;
    for (int32_t i = 0; i < set->n_pairs; i = group_end(set, i)) {
        n_bytes += align_up(n_weights(set->pairs[i].base) * size, MEM_ALIGN);
    }
    char *at = *memory = mem_alloc(n_bytes, 1);
    if (at == NULL) return refuse(err, TMX_E_MEMORY, "out of memory for %zu bytes of merged weights", n_bytes);
    for (int32_t i = 0, end; i < set->n_pairs; i = end) {
        const gguf_tensor *base = set->pairs[i].base;
        end = group_end(set, i);
        merge_job job = { .pairs = &set->pairs[i], .n_pairs = end - i, .merged = at, .is_bf16 = is_bf16 };
        TRY(merge_tensor(&job, pool, err));
        gguf_tensor_overlay(model, (int32_t)(base - gguf_tensor_at(model, 0)), is_bf16 ? BLOCK_BF16 : BLOCK_F32, at);
        at += align_up(n_weights(base) * size, MEM_ALIGN);
    }
    return TMX_OK;
}
