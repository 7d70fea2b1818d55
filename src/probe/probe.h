/* probe.h - the gradient probe: a dense forward pass that keeps its activations, and the exact backward pass of one logit
 * through them.  In: a model, a prompt, a target token.  Out: sums over sections of the pairs of every layer (tmx.h), and
 * reports of many samples with the order of layers they lead to.  No weight gets a gradient; nothing of size n_tokens^2
 * exists.
 *
 * Per layer (x in, x2 out; weights lie [out][in] and are applied as x W^T forward, so as d W backward):
 *
 *   y = norm(x) w1;  q, k, v = y Wqkv^T [+ bias];  [q, k = norm of heads];  q, k turned by RoPE;  o = attention;
 *   x1 = x + [norm](o Wo^T);  z = norm(x1) w2;  a, u = z Wgu^T;  g = gate(a) u;  x2 = x1 + [norm](g Wd^T)
 *
 *   d_b = [norm_back](d);  d_g = d_b Wd;  d_a, d_u = gate_back(d_g);  d_z = (d_a, d_u) Wgu;  d += norm_back(d_z, x1, w2)
 *   d_b = [norm_back](d);  d_o = d_b Wo;  attn_back: the sums, d_q, d_k, d_v;  turned back;  [norm_back of heads];
 *   d_y = (d_q, d_k, d_v) Wqkv;  d += norm_back(d_y, x, w1)
 *
 * Experts in the feed-forward block's place: s = z Wr^T; C, the best k by s, and p = softmax of s over C, for each row;
 *
 *   a_e, u_e = z Wgu_e^T;  g_e = gate(a_e) u_e;  x2 = x1 + sum over e in C of p_e (g_e Wd_e^T)
 *
 *   h_e = d Wd_e;  r_e = h_e . g_e  (the derivative by p_e);  d_a, d_u = gate_back(p_e h_e);  d_z = sum of (d_a, d_u) Wgu_e
 *   d_s_e = p_e (r_e - sum over c in C of p_c r_c), 0 outside C;  d_z += d_s Wr;  d += norm_back(d_z, x1, w2)
 *
 * with C held fixed: it does not change but where two scores meet.
 *
 * a and u are made again from x1, which halves what is kept; so are what a branch adds before its norm, and q and k before
 * theirs.  Of the last layer only the last row goes beyond k, v and the
 * probabilities, as in prefill; d is zero in all other rows there.  A family's own step (a bias, a norm of heads or of a
 * branch's output) goes where its forward step stands, here and in the order above: probe_layer.c has both passes, probe_experts.c
 * those of experts, probe_rows.c each row step beside its derivative. */
#ifndef TMX_PROBE_PROBE_H
#define TMX_PROBE_PROBE_H

#include "model/model.h"
#include "probe/attn_back.h"
#include "tmx.h"

enum { PROBE_CHUNK = 512 };        /* rows of the products' buffers; never changes a bit */

/* What the forward pass keeps of a layer.  N = n_tokens; "act" is the type the products read, bf16 or f32. */
typedef struct probe_tape {
    float *x, *x1;                 /* [N][n_embd] */
    void *q, *o;                   /* [N][n_heads * head_dim]         act, q turned */
    void *k, *v;                   /* [N][n_kv_heads * head_dim]      act, k turned */
    float *lse;                    /* [N][n_heads] */
} probe_tape;

/* Weights as the backward pass multiplies by them. */
typedef struct probe_weights {
    matmul_weight *qkv, *attn_output, *gate_up, *down;     /* qkv: not of layer 0, where the backward pass ends */
    matmul_weight *router;         /* with experts, which have gate_up and down: */
    expert_weights *experts;       /* [n_experts] */
} probe_weights;

typedef struct probe_buffers {     /* C = PROBE_CHUNK rows, or N if that is less */
    float *cos, *sin;              /* [N][n_rot / 2]; sin_back is -sin: the turn undone */
    float *sin_back;
    float *window_cos, *window_sin, *window_sin_back;      /* of layers with a window; NULL where there are none */
    float *branch, *d_branch;      /* [C][n_embd]: what a branch adds, before its norm, and d by it; experts: one's part of d_z, and d_z */
    void *normed;                  /* [C][n_embd]                     act */
    float *wide;                   /* [C][max(n_q + 2 n_kv, 2 n_ff)]  qkv, or gate_up */
    void *gated;                   /* [C][n_ff]                       act */
    void *d_act;                   /* [C][max(n_q + 2 n_kv, 2 n_ff, n_embd, n_experts)]   act: what a backward product reads */
    float *d_wide;                 /* [C][max(n_ff, n_embd)]          what it gives */
    float *d;                      /* [N][n_embd]                     derivative by the residual stream */
    float *d_o;                    /* [N][n_q] */
    float *d_q, *d_kv;             /* attn_back.h */
    float *scores;                 /* [C][n_experts]: s, then d_s; of no size, as the next five, where there are no experts */
    expert_choice *chosen;         /* [C][n_experts_used] */
    float *d_chosen;               /* [C][n_experts_used]: r */
    int32_t *expert_rows;          /* [C]: where the expert at work stands in chosen */
    void *gathered;                /* [C][n_embd]                     act: its rows of z, or of d */
    float *gated_row;              /* [n_ff]: the last layer's g */
    float *x_end, *logits;         /* [n_embd], [n_vocab] */
    float *row;                    /* [max(n_embd, n_q, n_ff)]        f32 row in front of a matvec */
    void *scratch;
} probe_buffers;

typedef struct probe_backend probe_backend;

struct tmx_probe {
    const tmx_model *model;
    tmx_pool *pool;
    const probe_backend *backend;
    const rope_table *rope;        /* of layers without a window */
    tmx_probe_params params;       /* defaults filled in */
    tmx_pattern sections;          /* triangle */
    tmx_probe_layer *found;        /* [n_layers]: results, handed out when all of them are there */
    int32_t n_tokens;              /* of the prompt at work */
    const float *logits;           /* [n_vocab], the backend's */
    struct probe_device *device;   /* probe_cuda.c */
    int32_t n_chunk;               /* device: rows of a step; tests lower it */
                                   /* the rest is the CPU's */

    const row_ops *rows;
    tmx_type act_type;
    probe_tape *tape;              /* [n_layers] */
    probe_weights *weights;        /* [n_layers] */
    matmul_weight *last_q;         /* last layer: [n_q][n_embd], for the attention sums of all rows */
    probe_buffers b;
    void *memory;                  /* the block behind what tape and b point to */
    const int32_t *tokens;         /* of the prompt at work */
    int32_t target;
};

/* What memory depends on; compute and isa are resolved. */
typedef struct probe_case {
    const tmx_model_info *info;
    const tmx_probe_params *params;
    tmx_compute compute;
    tmx_isa isa;
    int32_t n_threads;
} probe_case;

/* A kind of memory in which the passes run.  Passes never fail and may return before they are done (a device's queue). */
struct probe_backend {
    tmx_status (*plan_memory)(const probe_case *at, tmx_memory *memory, tmx_error *err);
    /* For p->params; free takes what a failed create leaves. */
    tmx_status (*create)(tmx_probe *p, tmx_error *err);
    void (*free)(tmx_probe *p);
    /* A prompt of p->n_tokens, borrowed until the last pass.  Then forward layer by layer, then, if asked for, backward. */
    tmx_status (*begin)(tmx_probe *p, const int32_t *tokens, int32_t target, tmx_error *err);
    void (*forward)(tmx_probe *p, int32_t layer);
    void (*backward)(tmx_probe *p, int32_t layer);
    tmx_status (*catch_up)(tmx_probe *p, tmx_error *err);      /* after every pass: at most one layer is ahead of the host */
    tmx_status (*read_logits)(tmx_probe *p, tmx_error *err);   /* -> p->logits */
    tmx_status (*read_sums)(tmx_probe *p, tmx_error *err);     /* -> p->found */
};
extern const probe_backend probe_cpu, probe_cuda;

/* Rows [begin, begin + n). */
typedef struct probe_span { int32_t begin, n; } probe_span;

bool probe_is_last(const tmx_probe *p, int32_t layer);
static inline size_t probe_type_bytes(tmx_type type) { return type == TMX_TYPE_BF16 ? 2 : 4; }
static inline void *probe_row(const tmx_probe *p, const void *base, size_t row, size_t width)    /* of an act buffer */
{
    return (char *)(uintptr_t)base + row * width * probe_type_bytes(p->act_type);
}

/* ---- probe_layer.c */

void probe_forward(tmx_probe *p, const int32_t *tokens, int32_t layer);    /* all that precedes the layer's attention, and it */
void probe_finish_layer(tmx_probe *p, int32_t layer);  /* from o to the next layer's x, or x_end and logits */
void probe_begin_backward(tmx_probe *p, int32_t target);
void probe_backward(tmx_probe *p, int32_t layer, tmx_probe_sums sums[N_SECTIONS]);
/* y [n_rows][y_width] = or += W x, packed; y = or += W x of one row, from the file in f32. */
void probe_product(const tmx_probe *p, const matmul_weight *w, const void *x, size_t x_width, int32_t n_rows, float *y,
                   size_t y_width, bool is_added);
void probe_row_product(const tmx_probe *p, const gguf_tensor *w, const float *x, float *y, bool is_added);
/* norm(x1) of the layer -> normed; of the last layer, whose one row s is, -> row, in f32 */
void probe_norm_ffn(tmx_probe *p, int32_t layer, probe_span s);
/* [n] act -> f32 */
void probe_widen_row(const tmx_probe *p, const void *act, size_t n, float *row);

/* ---- probe_experts.c; of the last layer, s is its one row */

void probe_experts(tmx_probe *p, int32_t layer, probe_span s, float *x);   /* tape.x1 -> added to x, the first row of s */
void probe_experts_back(tmx_probe *p, int32_t layer, probe_span s);        /* tape.x1, d -> d_branch, which is d_z */

/* ---- probe_rows.c; chunk rows lie at the front of the chunk's buffers */

void probe_embed(tmx_probe *p, const int32_t *tokens);                     /* tokens -> tape[0].x, cos, sin */
void probe_norm(tmx_probe *p, const float *x, const float *weight, probe_span s);      /* x [N][n_embd] -> normed */
/* d += back of d_y, rows of the chunk */
void probe_norm_back(tmx_probe *p, const float *d_y, const float *x, const float *weight, probe_span s);
void probe_add_branch(tmx_probe *p, const float *weight, float *x, probe_span s);      /* branch, normed, added to x [N][n_embd] */
void probe_branch_back(tmx_probe *p, const float *weight, probe_span s);               /* d by way of the norm of branch -> d_act */
void probe_place_heads(tmx_probe *p, int32_t layer, probe_span s, bool has_q, bool has_kv);    /* wide -> q, k, v */
/* d_q, d_kv -> d_act, turned back; where heads have norms, wide holds q, k, v before them. */
void probe_gather_heads(tmx_probe *p, const attn_back *back, int32_t layer, probe_span s);
void probe_gate_row(const tmx_probe *p, const float *gate, const float *up, void *gated, tmx_type type);       /* [n_ff] */
void probe_gate(tmx_probe *p, probe_span s);                               /* wide -> gated */
void probe_gate_back(tmx_probe *p, probe_span s);                          /* d_wide, wide -> d_act */
void probe_convert_d(tmx_probe *p, probe_span s);                          /* d -> d_act */

#endif
