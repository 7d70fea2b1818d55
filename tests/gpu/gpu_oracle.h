/* gpu_oracle.h - attention over lists or heads on a GPU against the f64 oracle: errors of sampled rows, and their limits. */
#ifndef TMX_TESTS_GPU_ORACLE_H
#define TMX_TESTS_GPU_ORACLE_H

#include "gpu_buffers.h"

#include <math.h>

/* Relative L2 of out over the sampled rows of a case, worst |lse|: the limits of check_gpu, whose kernel runs them. */
static const struct { const char *name; double out, lse; } bounds[] = {
    { "bf16", 4e-3, 1e-4 },
    { "f16", 6e-4, 1e-4 },
};
static double worst_out[2], worst_lse[2];

enum { N_SAMPLES = 12 };

typedef struct row_error {
    double error, norm, lse;
} row_error;

/* got [n], got_lse [n_heads]: of the GPU; out, lse: the oracle's. */
static inline row_error row_error_of(tmx_type type, const uint16_t *got, const double *out, size_t n, const float *got_lse, const double *lse,
                                     size_t n_heads)
{
    row_error e = { 0 };
    for (size_t i = 0; i < n; i++) {
        const double difference = (double)get(type, got[i]) - out[i];
        e.error += difference * difference;
        e.norm += out[i] * out[i];
    }
    for (size_t h = 0; h < n_heads; h++) {
        const double difference = fabs((double)got_lse[h] - lse[h]);
        if (!(difference <= e.lse)) e.lse = difference;
    }
    return e;
}

static inline bool errors_hold(tmx_type type, const row_error (*rows)[N_SAMPLES])
{
    double error = 0.0, norm = 0.0, worst = 0.0;
    for (int32_t i = 0; i < N_SAMPLES; i++) {
        error += (*rows)[i].error;
        norm += (*rows)[i].norm;
        if (!((*rows)[i].lse <= worst)) worst = (*rows)[i].lse;
    }
    const int which = type == TMX_TYPE_F16;
    const double relative = sqrt(error / norm);
    if (!(relative <= worst_out[which])) worst_out[which] = relative;
    if (!(worst <= worst_lse[which])) worst_lse[which] = worst;
    const bool is_ok = relative <= bounds[which].out && worst <= bounds[which].lse;
    if (!is_ok) printf("relative error %.3g, lse %.3g\n", relative, worst);
    return is_ok;
}

static inline void print_worst_errors(void)
{
    for (int i = 0; i < 2; i++) {
        printf("%s: worst relative error %.3g (limit %.3g), worst lse %.3g (limit %.3g)\n", bounds[i].name, worst_out[i], bounds[i].out,
               worst_lse[i], bounds[i].lse);
    }
}

#endif
