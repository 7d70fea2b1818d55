/* tiny_family_gradient.h - what the probe should find on a tf_model: each cell's derivative by finite differences of the f64 forward
 * pass, added up over sections. */
#ifndef TMX_TESTS_TINY_FAMILY_GRADIENT_H
#define TMX_TESTS_TINY_FAMILY_GRADIENT_H

#include "tiny_family_f64.h"

/* d logits[target] / d theta of every pair of a layer, [n][n]. */
static inline void tf_finite_differences(const tf_model *m, const int32_t *tokens, int n, int target, int layer, double *cells)
{
    const double step = 1e-3;
    double logits[TF_VOCAB];
    for (int i = 0; i < n; i++) {
        for (int j = 0; j <= i; j++) {
            cells[i * n + j] = 0;
            for (int sign = -1; sign <= 1; sign += 2) {
                const tf_theta theta = { .layer = layer, .i = i, .j = j, .factor = 1 + sign * step };
                tf_forward(&(tf_f64){ .m = m, .theta = &theta, .n = n, .n_ctx = n }, tokens, logits);
                cells[i * n + j] += sign * logits[target] / (2 * step);
            }
        }
    }
}

/* Of streaming, last, middle. */
static inline void tf_section_sums(const double *cells, int n, const tmx_pattern *triangle, double abs_sums[3], double signed_sums[3])
{
    tmx_pattern streaming = *triangle;
    streaming.kind = TMX_PATTERN_STREAMING;
    for (int s = 0; s < 3; s++) abs_sums[s] = signed_sums[s] = 0;
    for (int i = 0; i < n; i++) {
        for (int j = 0; j <= i; j++) {
            const int s = pattern_is_visible(&streaming, n, i, j) ? 0 : pattern_is_visible(triangle, n, i, j) ? 1 : 2;
            abs_sums[s] += fabs(cells[i * n + j]);
            signed_sums[s] += cells[i * n + j];
        }
    }
}

#endif
