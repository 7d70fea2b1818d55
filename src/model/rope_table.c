#include "model/rope_table.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct scaling_keys {
    const tmx_file *file;
    const char *prefix;
    tmx_error *err;
} scaling_keys;

static const char *key_name(const scaling_keys *k, const char *suffix, char key[96])
{
    snprintf(key, 96, "%s.rope.%s", k->prefix, suffix);
    return key;
}

static tmx_status read_number(const scaling_keys *k, const char *suffix, float fallback, float *value)
{
    char key[96];
    TRY(gguf_get_f32_or(k->file, key_name(k, suffix, key), fallback, value, k->err));
    if (isfinite(*value) && *value > 0) return TMX_OK;
    return refuse(k->err, TMX_E_FORMAT, "%s: %s is %g, expected a positive number", gguf_label(k->file), key, (double)*value);
}

/* Keys that change what YaRN means; programs disagree on how, and no family here needs them. */
static tmx_status refuse_others(const scaling_keys *k)
{
    static const struct { const char *suffix; float neutral; } keys[] = {
        { "scaling.attn_factor", 1 }, { "scaling.yarn_attn_factor", 1 }, { "scaling.yarn_ext_factor", 1 },
        { "scaling.yarn_log_multiplier", 0 },
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        char key[96];
        float value;
        TRY(gguf_get_f32_or(k->file, key_name(k, keys[i].suffix, key), keys[i].neutral, &value, k->err));
        if (value == keys[i].neutral) continue;
        return refuse(k->err, TMX_E_UNSUPPORTED, "%s: %s %g: YaRN with a factor of its own is not supported",
                      gguf_label(k->file), key, (double)value);
    }
    return TMX_OK;
}

static tmx_status read_original_context(const scaling_keys *k, int32_t fallback, int32_t *n_ctx)
{
    char key[96];
    uint32_t n;
    key_name(k, "scaling.original_context_length", key);
    if (fallback == 0) TRY(gguf_get_u32(k->file, key, &n, k->err));
    else TRY(gguf_get_u32_or(k->file, key, (uint32_t)fallback, &n, k->err));
    if (n < 2 || n > INT32_MAX) {                  /* its logarithm divides */
        return refuse(k->err, TMX_E_FORMAT, "%s: %s is %u, expected 2..%d", gguf_label(k->file), key, n, INT32_MAX);
    }
    *n_ctx = (int32_t)n;
    return TMX_OK;
}

static bool is_text(gguf_string s, const char *text) { return s.n_bytes == strlen(text) && memcmp(s.data, text, s.n_bytes) == 0; }

/* Without a type, a factor means linear scaling, as in the files that were written before there was a type. */
static tmx_status read_kind(const scaling_keys *k, bool has_divisors, rope_scaling *s)
{
    char key[96];
    gguf_string type = { .data = "linear", .n_bytes = 6 };
    if (gguf_has(k->file, key_name(k, "scaling.type", key))) TRY(gguf_get_string(k->file, key, &type, k->err));
    if (has_divisors) s->kind = ROPE_LONG;
    else if (is_text(type, "none")) s->kind = ROPE_UNSCALED;
    else if (is_text(type, "linear")) s->kind = ROPE_LINEAR;
    else if (is_text(type, "yarn")) s->kind = ROPE_YARN;
    else {
        return refuse(k->err, TMX_E_UNSUPPORTED, "%s: %s '%.*s': this RoPE scaling is not supported (supported: none, linear, yarn, "
                      "longrope with its factors)", gguf_label(k->file), key, (int)(type.n_bytes < 32 ? type.n_bytes : 32), type.data);
    }
    return TMX_OK;
}

tmx_status rope_scaling_read(const tmx_file *file, const char *prefix, int32_t n_ctx_train, bool has_divisors,
                             rope_scaling *s, tmx_error *err)
{
    const scaling_keys k = { .file = file, .prefix = prefix, .err = err };
    *s = (rope_scaling){ .factor = 1, .attention_factor = 1 };
    TRY(read_kind(&k, has_divisors, s));
    switch (s->kind) {
    case ROPE_UNSCALED: return TMX_OK;
    case ROPE_LINEAR: {
        float old;
        TRY(read_number(&k, "scale_linear", 1, &old));
        TRY(read_number(&k, "scaling.factor", old, &s->factor));
        if (s->factor == 1) s->kind = ROPE_UNSCALED;
        return TMX_OK;
    }
    case ROPE_YARN:
        TRY(refuse_others(&k));
        TRY(read_number(&k, "scaling.factor", 1, &s->factor));
        TRY(read_number(&k, "scaling.yarn_beta_fast", 32, &s->beta_fast));
        TRY(read_number(&k, "scaling.yarn_beta_slow", 1, &s->beta_slow));
        TRY(read_original_context(&k, n_ctx_train, &s->n_ctx_original));
        s->attention_factor = s->factor > 1 ? (float)(0.1 * log((double)s->factor) + 1) : 1.0f;
        return TMX_OK;
    case ROPE_LONG: break;
    }
    TRY(read_original_context(&k, 0, &s->n_ctx_original));
    const double stretch = (double)n_ctx_train / s->n_ctx_original;
    const double share = stretch > 1 ? log(stretch) / log((double)s->n_ctx_original) : 0;
    return read_number(&k, "scaling.attn_factor", (float)sqrt(1 + share), &s->attention_factor);
}

/* The (fractional) pair that makes n_turns within the original context. */
static double pair_of_turns(double n_turns, double base, int32_t n_rot, int32_t n_ctx)
{
    return n_rot * log(n_ctx / (n_turns * 2 * acos(-1))) / (2 * log(base));
}

/* Share of `factor` that pair i gets: 0 for fast pairs, 1 for slow ones. */
static double yarn_share(const rope_scaling *s, double base, int32_t n_rot, int32_t i)
{
    const double low = fmax(floor(pair_of_turns((double)s->beta_fast, base, n_rot, s->n_ctx_original)), 0);
    double high = fmin(ceil(pair_of_turns((double)s->beta_slow, base, n_rot, s->n_ctx_original)), n_rot - 1);
    if (high == low) high += 0.001;
    return fmin(fmax((i - low) / (high - low), 0), 1);
}

void rope_frequencies(float base, int32_t n_rot, const rope_scaling *s, const float *divisor, float *frequency)
{
    for (int32_t i = 0; i < n_rot / 2; i++) {
        const double plain = 1.0 / pow((double)base, 2.0 * i / n_rot);
        float f = (float)plain;
        if (s->kind == ROPE_LINEAR) f /= s->factor;
        if (s->kind == ROPE_YARN) {
            const double share = yarn_share(s, (double)base, n_rot, i);
            f = (float)(plain * (share / (double)s->factor + 1 - share));
        }
        frequency[i] = divisor != NULL ? f / divisor[i] : f;
    }
}
