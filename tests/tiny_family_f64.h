/* tiny_family_f64.h - the forward pass of a tf_model in f64, from the definitions in src/model/model.h: one position after
 * another, one loop a formula, with a factor on one attention probability. */
#ifndef TMX_TESTS_TINY_FAMILY_F64_H
#define TMX_TESTS_TINY_FAMILY_F64_H

#include "pattern/pattern.h"
#include "tiny_family.h"
#include "unsanitized.h"

enum { TF_MAX_HEADS_WIDTH = 1024 };

typedef struct tf_theta { int layer, i, j; double factor; } tf_theta;      /* pair (i, j) of all heads of a layer */

typedef struct tf_f64 {
    const tf_model *m;
    const tf_theta *theta;         /* or NULL */
    const tmx_pattern *patterns;   /* [n_layers]; or NULL: dense */
    int n, n_ctx;
} tf_f64;

static inline const float *tf_of(const tf_model *m, int layer, const char *name)
{
    char full[64];
    snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    return tf_find(m, full);
}

static inline bool tf_is_windowed(const tf_spec *s, int layer)
{
    return s->n_window > 0 && (s->window_period == 0 || (layer + 1) % s->window_period != 0);
}

UNSANITIZED static inline void tf_matrix(const float *w, int n_out, int n_in, const double *x, double *y)
{
    for (int o = 0; o < n_out; o++) {
        y[o] = 0;
        for (int i = 0; i < n_in; i++) y[o] += (double)w[o * n_in + i] * x[i];
    }
}

static inline void tf_norm(const float *w, int n, const double *x, double *y)
{
    double mean = 0;
    for (int i = 0; i < n; i++) mean += x[i] * x[i] / n;
    for (int i = 0; i < n; i++) y[i] = x[i] / sqrt(mean + (double)1e-5f) * (double)w[i];
}

/* Angle per position of a pair, rounded as models are trained; *factor multiplies cos and sin. */
static inline float tf_frequency(const tf_f64 *f, int layer, int pair, double *factor)
{
    const tf_spec *s = f->m->spec;
    const bool is_own = tf_is_windowed(s, layer) && s->window_base != 0;
    const double plain = pow(is_own ? s->window_base : s->freq_base, -2.0 * pair / s->n_rot);
    *factor = 1;
    if (is_own) return (float)plain;
    if (s->scaling == TF_DIVISORS) return (float)plain / tf_find(f->m, "rope_freqs.weight")[pair];
    if (s->scaling == TF_LINEAR) return (float)(plain / s->factor);
    if (s->scaling == TF_LONG) {
        *factor = sqrt(1 + log((double)TF_CTX / TF_CTX_ORIGINAL) / log(TF_CTX_ORIGINAL));
        const char *name = f->n_ctx > TF_CTX_ORIGINAL ? "rope_factors_long.weight" : "rope_factors_short.weight";
        return (float)plain / tf_find(f->m, name)[pair];
    }
    if (s->scaling != TF_YARN) return (float)plain;
    *factor = 0.1 * log(s->factor) + 1;
    const double turns_32 = s->n_rot * log(TF_CTX_ORIGINAL / (32 * 2 * acos(-1))) / (2 * log(s->freq_base));
    const double turns_1 = s->n_rot * log(TF_CTX_ORIGINAL / (2 * acos(-1))) / (2 * log(s->freq_base));
    const double low = fmax(floor(turns_32), 0), high = ceil(turns_1);
    const double share = fmin(fmax((pair - low) / (high - low), 0), 1);
    return (float)(plain / s->factor * share + plain * (1 - share));
}

static inline void tf_turn(const tf_f64 *f, int layer, double *head, int position)
{
    const tf_spec *s = f->m->spec;
    for (int i = 0; i < s->n_rot / 2; i++) {
        double factor;
        const double angle = (double)((float)position * tf_frequency(f, layer, i, &factor));
        double *a = head + (s->is_interleaved ? 2 * i : i), *b = s->is_interleaved ? a + 1 : a + s->n_rot / 2, x = *a, y = *b;
        *a = factor * (x * cos(angle) - y * sin(angle));
        *b = factor * (x * sin(angle) + y * cos(angle));
    }
}

static inline const float *tf_rows(const tf_model *m, int layer, const char *name, const char *fused, int begin)
{
    const float *own = m->spec->is_fused ? NULL : tf_of(m, layer, name);
    return own != NULL ? own : tf_of(m, layer, fused) + (size_t)begin * TF_EMBD;
}

/* q, k or v of one row: product, bias, norm of heads, turn. */
static inline void tf_heads(const tf_f64 *f, int layer, char kind, int position, const double *y, double *out)
{
    const tf_spec *s = f->m->spec;
    const int n_heads = kind == 'q' ? s->n_heads : s->n_kv_heads, n = n_heads * s->head_dim;
    const int begin = kind == 'q' ? 0 : (s->n_heads + (kind == 'v' ? s->n_kv_heads : 0)) * s->head_dim;
    char name[32];
    snprintf(name, sizeof name, "attn_%c.weight", kind);
    tf_matrix(tf_rows(f->m, layer, name, "attn_qkv.weight", begin), n, TF_EMBD, y, out);
    snprintf(name, sizeof name, "attn_%c.bias", kind);
    const float *bias = tf_of(f->m, layer, name);
    for (int i = 0; bias != NULL && i < n; i++) out[i] += (double)bias[i];
    if (kind == 'v') return;
    snprintf(name, sizeof name, "attn_%c_norm.weight", kind);
    const float *norm = tf_of(f->m, layer, name);
    for (int h = 0; h < n_heads; h++) {
        if (norm != NULL) tf_norm(norm, s->head_dim, out + h * s->head_dim, out + h * s->head_dim);
        tf_turn(f, layer, out + h * s->head_dim, position);
    }
}

static inline bool tf_sees(const tf_f64 *f, int layer, int i, int j)
{
    if (tf_is_windowed(f->m->spec, layer)) return j <= i && i - j < f->m->spec->n_window;
    return f->patterns == NULL ? j <= i : pattern_is_visible(&f->patterns[layer], f->n, i, j);
}

UNSANITIZED static inline void tf_attend(const tf_f64 *f, int layer, int i, const double *q, const double *k, const double *v, double *out)
{
    const tf_spec *s = f->m->spec;
    const int d = s->head_dim, n_kv = s->n_kv_heads * d;
    double *p = calloc((size_t)f->n, sizeof *p);
    for (int h = 0; h < s->n_heads; h++) {
        const int at = h / (s->n_heads / s->n_kv_heads) * d;
        double top = -INFINITY, sum = 0;
        for (int j = 0; j <= i; j++) {
            p[j] = -INFINITY;
            if (!tf_sees(f, layer, i, j)) continue;
            p[j] = 0;
            for (int e = 0; e < d; e++) p[j] += q[h * d + e] * k[j * n_kv + at + e] / sqrt(d);
            top = fmax(top, p[j]);
        }
        for (int j = 0; j <= i; j++) sum += p[j] = exp(p[j] - top);
        for (int e = 0; e < d; e++) {
            double o = 0;
            for (int j = 0; j <= i; j++) {
                const tf_theta *t = f->theta;
                const bool is_marked = t != NULL && t->layer == layer && t->i == i && t->j == j;
                o += p[j] / sum * (is_marked ? t->factor : 1) * v[j * n_kv + at + e];
            }
            out[h * d + e] = o;
        }
    }
    free(p);
}

static inline void tf_add_branch(const tf_f64 *f, int layer, const char *norm, double *branch, double *x)
{
    if (f->m->spec->has_branch_norms) tf_norm(tf_of(f->m, layer, norm), TF_EMBD, branch, branch);
    for (int e = 0; e < TF_EMBD; e++) x[e] += branch[e];
}

static inline double tf_gate(const tf_spec *s, double g)
{
    if (!s->is_gelu) return g / (1 + exp(-g));
    return 0.5 * g * (1 + tanh(sqrt(2 / acos(-1)) * (g + 0.044715 * g * g * g)));
}

static inline void tf_ffn(const tf_spec *s, const float *gate_w, const float *up_w, const float *down_w, int n_ff, const double *y, double *out)
{
    double gate[TF_FF], up[TF_FF];
    tf_matrix(gate_w, n_ff, TF_EMBD, y, gate);
    tf_matrix(up_w, n_ff, TF_EMBD, y, up);
    for (int i = 0; i < n_ff; i++) gate[i] = tf_gate(s, gate[i]) * up[i];
    tf_matrix(down_w, TF_EMBD, n_ff, gate, out);
}

/* Softmax over all experts, the n_used largest, their weights made to add up to 1. */
static inline void tf_experts(const tf_f64 *f, int layer, const double *y, double *out)
{
    const tf_spec *s = f->m->spec;
    const int n = s->n_ff_expert * TF_EMBD;
    double score[16], sum = 0, one[TF_EMBD];
    int chosen[16];
    tf_matrix(tf_of(f->m, layer, "ffn_gate_inp.weight"), s->n_experts, TF_EMBD, y, score);
    for (int e = 0; e < TF_EMBD; e++) out[e] = 0;
    for (int c = 0; c < s->n_used; c++) {
        chosen[c] = -1;
        for (int e = 0; e < s->n_experts; e++) {
            bool is_taken = false;
            for (int b = 0; b < c; b++) is_taken |= chosen[b] == e;
            if (!is_taken && (chosen[c] < 0 || score[e] > score[chosen[c]])) chosen[c] = e;
        }
        sum += exp(score[chosen[c]] - score[chosen[0]]);
    }
    for (int c = 0; c < s->n_used; c++) {
        const int e = chosen[c];
        tf_ffn(s, tf_of(f->m, layer, "ffn_gate_exps.weight") + e * n, tf_of(f->m, layer, "ffn_up_exps.weight") + e * n,
               tf_of(f->m, layer, "ffn_down_exps.weight") + e * n, s->n_ff_expert, y, one);
        for (int i = 0; i < TF_EMBD; i++) out[i] += exp(score[e] - score[chosen[0]]) / sum * one[i];
    }
}

/* logits [TF_VOCAB] after the last of f->n tokens. */
static inline void tf_forward(const tf_f64 *f, const int32_t *tokens, double *logits)
{
    const tf_model *m = f->m;
    const tf_spec *s = m->spec;
    const int n = f->n, n_q = s->n_heads * s->head_dim, n_kv = s->n_kv_heads * s->head_dim;
    double (*x)[TF_EMBD] = calloc((size_t)n, sizeof *x), y[TF_EMBD], branch[TF_EMBD], heads[TF_MAX_HEADS_WIDTH];
    double *q = calloc((size_t)(n * n_q), 8), *k = calloc((size_t)(n * n_kv), 8), *v = calloc((size_t)(n * n_kv), 8);
    const float *embd = tf_find(m, "token_embd.weight"), *head = s->is_tied ? embd : tf_find(m, "output.weight");
    for (int i = 0; i < n; i++) {
        for (int e = 0; e < TF_EMBD; e++) {
            x[i][e] = (double)embd[tokens[i] * TF_EMBD + e] * (s->is_gelu ? (double)sqrtf(TF_EMBD) : 1);       /* both Gemma's */
        }
    }
    for (int l = 0; l < s->n_layers; l++) {
        for (int i = 0; i < n; i++) {
            tf_norm(tf_of(m, l, "attn_norm.weight"), TF_EMBD, x[i], y);
            tf_heads(f, l, 'q', i, y, q + i * n_q);
            tf_heads(f, l, 'k', i, y, k + i * n_kv);
            tf_heads(f, l, 'v', i, y, v + i * n_kv);
        }
        for (int i = 0; i < n; i++) {
            tf_attend(f, l, i, q + i * n_q, k, v, heads);
            tf_matrix(tf_of(m, l, "attn_output.weight"), TF_EMBD, n_q, heads, branch);
            tf_add_branch(f, l, "post_attention_norm.weight", branch, x[i]);
            tf_norm(tf_of(m, l, "ffn_norm.weight"), TF_EMBD, x[i], y);
            if (s->n_experts > 0) tf_experts(f, l, y, branch);
            else {
                tf_ffn(s, tf_rows(m, l, "ffn_gate.weight", "ffn_up.weight", 0), tf_rows(m, l, "ffn_up.weight", "ffn_up.weight", TF_FF),
                       tf_of(m, l, "ffn_down.weight"), TF_FF, y, branch);
            }
            tf_add_branch(f, l, "post_ffw_norm.weight", branch, x[i]);
        }
    }
    tf_norm(tf_find(m, "output_norm.weight"), TF_EMBD, x[n - 1], y);
    tf_matrix(head, TF_VOCAB, TF_EMBD, y, logits);
    free(x);
    free(q);
    free(k);
    free(v);
}

#endif
