/* rope_table.h - how fast RoPE turns each pair of a head.  In: base, scaling, divisors of a file.  Out: frequencies (angle per
 * position) and the factor on cos and sin, made once per model. */
#ifndef TMX_MODEL_ROPE_TABLE_H
#define TMX_MODEL_ROPE_TABLE_H

#include "base/status.h"
#include "gguf/gguf.h"

enum { ROPE_MAX_PAIRS = 256 };

typedef enum rope_scaling_kind {
    ROPE_UNSCALED = 0,
    ROPE_LINEAR,                   /* every frequency divided by factor */
    ROPE_YARN,                     /* arXiv 2309.00071: slow pairs divided by factor, fast ones left, a ramp between */
    ROPE_LONG,                     /* arXiv 2402.13753: divisors of their own for sessions up to, and beyond, n_ctx_original */
} rope_scaling_kind;

typedef struct rope_scaling {
    rope_scaling_kind kind;
    float factor;
    float attention_factor;        /* cos and sin are multiplied by it, and so scores by its square */
    float beta_fast, beta_slow;    /* YaRN: turns within n_ctx_original from which a pair is fast, below which it is slow */
    int32_t n_ctx_original;
} rope_scaling;

/* PREFIX.rope.scaling.*; has_divisors: the file has the two lists of LongRoPE. */
tmx_status rope_scaling_read(const tmx_file *file, const char *prefix, int32_t n_ctx_train, bool has_divisors,
                             rope_scaling *scaling, tmx_error *err);

/* frequency [n_rot / 2]; divisor [n_rot / 2] or NULL. */
void rope_frequencies(float base, int32_t n_rot, const rope_scaling *scaling, const float *divisor, float *frequency);

#endif
