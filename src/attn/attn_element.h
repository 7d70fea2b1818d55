/* attn_element.h - numbers of a raw buffer, f32 or bf16, and means of its rows, for what is no kernel: estimators, references, checks. */
#ifndef TMX_ATTN_ATTN_ELEMENT_H
#define TMX_ATTN_ATTN_ELEMENT_H

#include "base/num.h"
#include "tmx.h"

static inline double attn_element(const void *data, tmx_type type, size_t at)
{
    return (double)(type == TMX_TYPE_BF16 ? bf16_to_f32(((const tmx_bf16 *)data)[at]) : ((const float *)data)[at]);
}

/* mean[d] = sum over rows [begin, end) of x / n */
static inline void attn_mean_of_rows(const void *x, tmx_type type, size_t stride, int32_t begin, int32_t end, int32_t head_dim, int32_t n,
                                     double *mean)
{
    for (int32_t d = 0; d < head_dim; d++) mean[d] = 0;
    for (int32_t row = begin; row < end; row++) {
        for (int32_t d = 0; d < head_dim; d++) mean[d] += attn_element(x, type, (size_t)row * stride + (size_t)d);
    }
    for (int32_t d = 0; d < head_dim; d++) mean[d] /= n;
}

#endif
