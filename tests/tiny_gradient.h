/* tiny_gradient.h - a tiny_model's forward pass in f64 that keeps everything, with a factor theta on chosen attention
 * probabilities, and the backward pass of one logit, from the definitions: full matrices, one loop a formula. */
#ifndef TMX_TESTS_TINY_GRADIENT_H
#define TMX_TESTS_TINY_GRADIENT_H

#include "tiny_model.h"

enum { TG_Q = TINY_HEADS * TINY_HEAD_DIM, TG_KV = TINY_KV_HEADS * TINY_HEAD_DIM, TG_GROUP = TINY_HEADS / TINY_KV_HEADS };

/* 1 everywhere but in layer `layer`, where pair (i, j), or every pair of a section if i < 0, has `factor`. */
typedef struct tiny_theta {
    int layer, i, j;
    int section;                   /* 0 streaming, 1 last, 2 middle */
    const tmx_pattern *triangle;   /* whose sizes cut the sections */
    double factor;
} tiny_theta;

typedef struct tiny_pass {
    int n;
    double (*x)[TINY_EMBD];        /* [TINY_LAYERS + 1][n] */
    double (*x1)[TINY_EMBD], (*q)[TG_Q], (*o)[TG_Q], (*k)[TG_KV], (*v)[TG_KV];     /* [TINY_LAYERS][n] */
    double (*gate)[TINY_FF], (*up)[TINY_FF];
    double *a;                     /* [TINY_LAYERS][TINY_HEADS][n][n]: probabilities before theta */
    double *theta;                 /* [TINY_LAYERS][n][n]: dy/dtheta, by tiny_backward */
    double *da;                    /* [TINY_LAYERS][TINY_HEADS][n][n]: dy/dA */
    double *dots;                  /* [TINY_LAYERS][n]: sum over h of d_o . o */
    double logits[TINY_VOCAB];
} tiny_pass;

static inline tiny_pass tiny_pass_create(int n)
{
    const size_t rows = (size_t)(TINY_LAYERS + 1) * (size_t)n, pairs = (size_t)TINY_LAYERS * (size_t)n * (size_t)n;
    tiny_pass p = { .n = n, .a = calloc(pairs * TINY_HEADS, 8), .da = calloc(pairs * TINY_HEADS, 8), .theta = calloc(pairs, 8),
                    .dots = calloc(rows, 8) };
    p.x = calloc(rows, sizeof *p.x), p.x1 = calloc(rows, sizeof *p.x1), p.q = calloc(rows, sizeof *p.q), p.o = calloc(rows, sizeof *p.o);
    p.k = calloc(rows, sizeof *p.k), p.v = calloc(rows, sizeof *p.v), p.gate = calloc(rows, sizeof *p.gate), p.up = calloc(rows, sizeof *p.up);
    return p;
}

static inline void tiny_pass_free(tiny_pass *p)
{
    void *const blocks[] = { p->x, p->x1, p->q, p->o, p->k, p->v, p->gate, p->up, p->a, p->da, p->theta, p->dots };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) free(blocks[i]);
}

static inline int tiny_section(const tmx_pattern *triangle, int n, int i, int j)
{
    tmx_pattern streaming = *triangle;
    streaming.kind = TMX_PATTERN_STREAMING;
    return pattern_is_visible(&streaming, n, i, j) ? 0 : pattern_is_visible(triangle, n, i, j) ? 1 : 2;
}

static inline double tiny_factor(const tiny_theta *t, int n, int layer, int i, int j)
{
    if (t == NULL || t->layer != layer) return 1;
    if (t->i >= 0) return t->i == i && t->j == j ? t->factor : 1;
    return tiny_section(t->triangle, n, i, j) == t->section ? t->factor : 1;
}

static inline double *tiny_pair(const tiny_pass *p, double *base, int layer, int h, int i, int j)
{
    return base + (((size_t)layer * TINY_HEADS + (size_t)h) * (size_t)p->n + (size_t)i) * (size_t)p->n + (size_t)j;
}

static inline void tiny_attend(const tiny_pass *p, int l, const tiny_theta *theta)
{
    const size_t row0 = (size_t)l * (size_t)p->n;
    for (int i = 0; i < p->n; i++) {
        for (int h = 0; h < TINY_HEADS; h++) {
            const int at = h / TG_GROUP * TINY_HEAD_DIM;
            double *a = tiny_pair(p, p->a, l, h, i, 0), top = -INFINITY, sum = 0;
            for (int j = 0; j <= i; j++) {
                a[j] = 0;
                for (int d = 0; d < TINY_HEAD_DIM; d++) {
                    a[j] += p->q[row0 + (size_t)i][h * TINY_HEAD_DIM + d] * p->k[row0 + (size_t)j][at + d] / sqrt(TINY_HEAD_DIM);
                }
                top = fmax(top, a[j]);
            }
            for (int j = 0; j <= i; j++) sum += a[j] = exp(a[j] - top);
            for (int j = 0; j <= i; j++) a[j] /= sum;
            for (int d = 0; d < TINY_HEAD_DIM; d++) {
                double o = 0;
                for (int j = 0; j <= i; j++) o += a[j] * tiny_factor(theta, p->n, l, i, j) * p->v[row0 + (size_t)j][at + d];
                p->o[row0 + (size_t)i][h * TINY_HEAD_DIM + d] = o;
            }
        }
    }
}

static inline void tiny_forward_keep(const tiny_model *m, tiny_pass *p, const int32_t *tokens, const tiny_theta *theta)
{
    double y[TINY_EMBD], gated[TINY_FF];
    for (int i = 0; i < p->n; i++) {
        for (int e = 0; e < TINY_EMBD; e++) p->x[i][e] = (double)m->token_embd[tokens[i] * TINY_EMBD + e];
    }
    for (int l = 0; l < TINY_LAYERS; l++) {
        const size_t row0 = (size_t)l * (size_t)p->n;
        for (int i = 0; i < p->n; i++) {
            const size_t row = row0 + (size_t)i;
            tiny_norm(m->layers[l].attn_norm, p->x[row], y);
            tiny_product(m->layers[l].q, TG_Q, TINY_EMBD, y, p->q[row]);
            tiny_product(m->layers[l].k, TG_KV, TINY_EMBD, y, p->k[row]);
            tiny_product(m->layers[l].v, TG_KV, TINY_EMBD, y, p->v[row]);
            tiny_rope(m, p->q[row], TINY_HEADS, i);
            tiny_rope(m, p->k[row], TINY_KV_HEADS, i);
        }
        tiny_attend(p, l, theta);
        for (int i = 0; i < p->n; i++) {
            const size_t row = row0 + (size_t)i, next = row + (size_t)p->n;
            tiny_product(m->layers[l].o, TINY_EMBD, TG_Q, p->o[row], y);
            for (int e = 0; e < TINY_EMBD; e++) p->x1[row][e] = p->x[row][e] + y[e];
            tiny_norm(m->layers[l].ffn_norm, p->x1[row], y);
            tiny_product(m->layers[l].gate, TINY_FF, TINY_EMBD, y, p->gate[row]);
            tiny_product(m->layers[l].up, TINY_FF, TINY_EMBD, y, p->up[row]);
            for (int f = 0; f < TINY_FF; f++) gated[f] = p->gate[row][f] / (1 + exp(-p->gate[row][f])) * p->up[row][f];
            tiny_product(m->layers[l].down, TINY_EMBD, TINY_FF, gated, y);
            for (int e = 0; e < TINY_EMBD; e++) p->x[next][e] = p->x1[row][e] + y[e];
        }
    }
    tiny_norm(m->output_norm, p->x[(size_t)TINY_LAYERS * (size_t)p->n + (size_t)p->n - 1], y);
    tiny_product(m->output, TINY_VOCAB, TINY_EMBD, y, p->logits);
}

/* x[i] += sum over o of d[o] w[o][i] */
static inline void tiny_product_back(const float *w, int n_out, int n_in, const double *d, double *x)
{
    for (int o = 0; o < n_out; o++) {
        for (int i = 0; i < n_in; i++) x[i] += d[o] * (double)w[o * n_in + i];
    }
}

static inline void tiny_norm_back(const float *w, const double *x, const double *d_y, double *d_x)
{
    double square = 0, product = 0;
    for (int i = 0; i < TINY_EMBD; i++) {
        square += x[i] * x[i] / TINY_EMBD;
        product += d_y[i] * (double)w[i] * x[i] / TINY_EMBD;
    }
    const double r = 1 / sqrt(square + (double)1e-5f);
    for (int i = 0; i < TINY_EMBD; i++) d_x[i] += r * d_y[i] * (double)w[i] - r * r * r * product * x[i];
}

/* The turn back: the transpose of tiny_rope, by turning twice the other way round (a turn is orthogonal). */
static inline void tiny_rope_back(const tiny_model *m, double *heads, int n_heads, int position)
{
    for (int i = 0; i < n_heads * TINY_HEAD_DIM; i += 2) heads[i + 1] = -heads[i + 1];
    tiny_rope(m, heads, n_heads, position);
    for (int i = 0; i < n_heads * TINY_HEAD_DIM; i += 2) heads[i + 1] = -heads[i + 1];
}

/* dy/dtheta of every pair of every layer at theta = 1, y = logits[target]; the pass must have been kept with theta NULL. */
static inline void tiny_backward(const tiny_model *m, tiny_pass *p, int32_t target)
{
    const size_t n = (size_t)p->n;
    double (*d)[TINY_EMBD] = calloc(n, sizeof *d), (*d_o)[TG_Q] = calloc(n, sizeof *d_o), (*d_q)[TG_Q] = calloc(n, sizeof *d_q);
    double (*d_k)[TG_KV] = calloc(n, sizeof *d_k), (*d_v)[TG_KV] = calloc(n, sizeof *d_v), head[TINY_EMBD];
    for (int e = 0; e < TINY_EMBD; e++) head[e] = (double)m->output[target * TINY_EMBD + e];
    tiny_norm_back(m->output_norm, p->x[(size_t)TINY_LAYERS * n + n - 1], head, d[n - 1]);
    for (int l = TINY_LAYERS - 1; l >= 0; l--) {
        const size_t row0 = (size_t)l * n;
        memset(d_o, 0, n * sizeof *d_o), memset(d_q, 0, n * sizeof *d_q), memset(d_k, 0, n * sizeof *d_k), memset(d_v, 0, n * sizeof *d_v);
        for (size_t i = 0; i < n; i++) {
            double d_gated[TINY_FF] = { 0 }, d_gate[TINY_FF], d_up[TINY_FF], d_z[TINY_EMBD] = { 0 };
            tiny_product_back(m->layers[l].down, TINY_EMBD, TINY_FF, d[i], d_gated);
            for (int f = 0; f < TINY_FF; f++) {
                const double a = p->gate[row0 + i][f], s = 1 / (1 + exp(-a));
                d_gate[f] = d_gated[f] * p->up[row0 + i][f] * s * (1 + a * (1 - s));
                d_up[f] = d_gated[f] * a * s;
            }
            tiny_product_back(m->layers[l].gate, TINY_FF, TINY_EMBD, d_gate, d_z);
            tiny_product_back(m->layers[l].up, TINY_FF, TINY_EMBD, d_up, d_z);
            tiny_norm_back(m->layers[l].ffn_norm, p->x1[row0 + i], d_z, d[i]);
            tiny_product_back(m->layers[l].o, TINY_EMBD, TG_Q, d[i], d_o[i]);
            p->dots[row0 + i] = 0;
            for (int c = 0; c < TG_Q; c++) p->dots[row0 + i] += d_o[i][c] * p->o[row0 + i][c];
        }
        for (int h = 0; h < TINY_HEADS; h++) {
            const int q_at = h * TINY_HEAD_DIM, at = h / TG_GROUP * TINY_HEAD_DIM;
            for (int i = 0; i < p->n; i++) {
                double *a = tiny_pair(p, p->a, l, h, i, 0), *da = tiny_pair(p, p->da, l, h, i, 0), dot = 0;
                for (int j = 0; j <= i; j++) {
                    da[j] = 0;
                    for (int c = 0; c < TINY_HEAD_DIM; c++) da[j] += d_o[i][q_at + c] * p->v[row0 + (size_t)j][at + c];
                    p->theta[(row0 + (size_t)i) * n + (size_t)j] = (h == 0 ? 0 : p->theta[(row0 + (size_t)i) * n + (size_t)j]) + a[j] * da[j];
                    dot += a[j] * da[j];
                }
                for (int j = 0; j <= i; j++) {
                    const double ds = a[j] * (da[j] - dot) / sqrt(TINY_HEAD_DIM);
                    for (int c = 0; c < TINY_HEAD_DIM; c++) {
                        d_q[i][q_at + c] += ds * p->k[row0 + (size_t)j][at + c];
                        d_k[j][at + c] += ds * p->q[row0 + (size_t)i][q_at + c];
                        d_v[j][at + c] += a[j] * d_o[i][q_at + c];
                    }
                }
            }
        }
        for (size_t i = 0; i < n; i++) {
            double d_y[TINY_EMBD] = { 0 };
            tiny_rope_back(m, d_q[i], TINY_HEADS, (int)i);
            tiny_rope_back(m, d_k[i], TINY_KV_HEADS, (int)i);
            tiny_product_back(m->layers[l].q, TG_Q, TINY_EMBD, d_q[i], d_y);
            tiny_product_back(m->layers[l].k, TG_KV, TINY_EMBD, d_k[i], d_y);
            tiny_product_back(m->layers[l].v, TG_KV, TINY_EMBD, d_v[i], d_y);
            tiny_norm_back(m->layers[l].attn_norm, p->x[row0 + i], d_y, d[i]);
        }
    }
    free(d), free(d_o), free(d_q), free(d_k), free(d_v);
}

/* The five sums of tmx_probe_sums over one section of one layer, in their order. */
static inline void tiny_section_sums(const tiny_pass *p, const tmx_pattern *triangle, int layer, int section, double sums[5])
{
    for (int s = 0; s < 5; s++) sums[s] = 0;
    for (int i = 0; i < p->n; i++) {
        for (int j = 0; j <= i; j++) {
            if (tiny_section(triangle, p->n, i, j) != section) continue;
            const double theta = p->theta[((size_t)layer * (size_t)p->n + (size_t)i) * (size_t)p->n + (size_t)j];
            sums[0] += fabs(theta);
            sums[1] += theta;
            for (int h = 0; h < TINY_HEADS; h++) {
                const double a = *tiny_pair(p, p->a, layer, h, i, j), da = *tiny_pair(p, p->da, layer, h, i, j);
                sums[2] += fabs(a * da);
                sums[3] += fabs(da);
                sums[4] += a;
            }
        }
    }
}

static inline const tmx_probe_sums *tiny_section_of(const tmx_probe_layer *layer, int section)
{
    return section == 0 ? &layer->streaming : section == 1 ? &layer->last : &layer->middle;
}

/* The largest difference of a probe's sums from the twin's, relative to the sum of sizes of what was added up; infinite where
 * there was nothing to add. */
static inline double tiny_worst_of_layers(const tmx_probe_layer *layers, const tiny_pass *pass, const tmx_pattern *triangle)
{
    double worst = 0;
    for (int l = 0; l < TINY_LAYERS; l++) {
        for (int section = 0; section < 3; section++) {
            double expected[5];
            const tmx_probe_sums *s = tiny_section_of(&layers[l], section);
            const double found[] = { s->theta_abs, s->theta_signed, s->head_abs, s->da_abs, s->attention };
            tiny_section_sums(pass, triangle, l, section, expected);
            for (int i = 0; i < 5; i++) {
                const double size = expected[i <= 2 ? 2 : i], error = fabs(found[i] - expected[i]);
                const double relative = error == 0 ? 0 : error / size;
                if (!(relative <= worst)) worst = relative;
            }
        }
    }
    return worst;
}

#endif
