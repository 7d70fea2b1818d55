/* tmx.h - the one public header of libtmx: fast long-context LLM prefill with Triangle attention.
 *
 * Three ideas.  A *model* is a GGUF file whose shapes were proven; it is immutable and may be shared.  A *plan* names,
 * for every layer, which part of causal attention is computed during prefill: dense, streaming (sink tokens + sliding
 * window), triangle (streaming + a dense tail of last rows), or what a dynamic method finds in the prompt itself
 * (XAttention, FlexPrefill, MInference).  A *session* owns the KV cache and the workspace of one or more token sequences; it
 * belongs to one thread at a time and borrows a *pool* of worker threads.  Decoding is always dense over the whole
 * cache.
 *
 *     tmx_pool *pool; tmx_model *model; tmx_plan *plan; tmx_session *session; tmx_error err;
 *     tmx_pool_create(&pool, 0, &err);
 *     tmx_model_open(&model, "model.gguf", NULL, pool, &err);
 *     tmx_plan_parse(&plan, "triangle:10-29", tmx_model_info_get(model), &err);
 *     tmx_session_create(&session, model, plan, pool, NULL, &err);
 *     tmx_prefill(session, &(tmx_prompt){ .tokens = ids, .n_tokens = n, .logits = logits }, 1, &err);
 *     (every call returns TMX_OK or says in err.text what is wrong; free in reverse order)
 *
 * Rules for every function below.
 * - Failure is a non-zero tmx_status; `err` (may be NULL) then holds one line of text.  Outputs are untouched on
 *   failure unless said otherwise.  The library never prints and never exits.
 * - Who creates frees; every free/close accepts NULL.  Borrowed pointers are const and state their lifetime.
 * - Counts, ids and positions are int32_t; bytes and element strides are size_t.  Shapes are written slowest axis
 *   first.  Ranges are half-open.
 * - A params struct set to zero (or a NULL pointer to it) means all defaults.
 * - Results never depend on the number of threads, the chunk size, or what else is in the batch: to the bit.
 */
#ifndef TMX_H
#define TMX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define TMX_API
#else
#define TMX_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define TMX_VERSION "0.1.0"

/* ---------------------------------------------------------------- status */

typedef enum tmx_status {          /* append-only */
    TMX_OK = 0,
    TMX_E_ARG = 1,                 /* a wrong argument of the caller */
    TMX_E_IO = 2,                  /* a file cannot be opened, read or written */
    TMX_E_FORMAT = 3,              /* a file (model, plan) breaks its format */
    TMX_E_UNSUPPORTED = 4,         /* well formed, but a feature we do not have; the text names it */
    TMX_E_MEMORY = 5,              /* out of memory, or more than the machine has */
    TMX_E_FULL = 6,                /* the context has no room for the tokens */
    TMX_E_NUMERIC = 7,             /* NaN or infinity where a number must be */
    TMX_E_CANCELLED = 8,           /* the progress callback asked to stop */
    TMX_E_DEVICE = 9,              /* an accelerator call failed */
} tmx_status;

typedef struct tmx_error {
    tmx_status code;
    char text[256];                /* one line, no newline: what, where, found, expected */
} tmx_error;

TMX_API const char *tmx_version(void);                 /* equals TMX_VERSION of the library that was loaded */
TMX_API const char *tmx_status_name(tmx_status code);  /* "TMX_E_FORMAT" */

/* ---------------------------------------------------------------- machine */

typedef enum tmx_isa {             /* instruction-set rungs; each includes the ones below */
    TMX_ISA_AUTO = 0,              /* the best this CPU has */
    TMX_ISA_SCALAR = 1,
    TMX_ISA_AVX2 = 2,              /* AVX2 + FMA + F16C */
    TMX_ISA_AVX512 = 3,            /* AVX-512 F, BW, VL, DQ */
    TMX_ISA_AVX512_BF16 = 4,
    TMX_ISA_AMX = 5,               /* matrix tiles of bf16 */
} tmx_isa;

TMX_API tmx_isa tmx_isa_best(void);                    /* never AUTO */
TMX_API const char *tmx_isa_name(tmx_isa isa);         /* "auto" "scalar" "avx2" "avx512" "avx512bf16" "amx" */
TMX_API tmx_status tmx_isa_parse(const char *name, tmx_isa *isa, tmx_error *err); /* refuses a rung this CPU lacks */

typedef enum tmx_type {
    TMX_TYPE_DEFAULT = 0, TMX_TYPE_F32 = 1, TMX_TYPE_BF16 = 2,
    TMX_TYPE_F16 = 3,              /* IEEE half; only on a GPU */
} tmx_type;

typedef enum tmx_compute {
    TMX_COMPUTE_AUTO = 0,          /* bf16 where the rung in use has AVX512-BF16, f32 otherwise */
    TMX_COMPUTE_F32 = 1,           /* the reference mode */
    TMX_COMPUTE_BF16 = 2,          /* bf16 operands, f32 accumulation */
} tmx_compute;

/* Worker threads, an explicit object.  n_threads counts the caller; 0 = one per core this process may use.
 * TMX_E_ARG for n_threads < 0 or > 1024.  One session at a time may run on a pool. */
typedef struct tmx_pool tmx_pool;
TMX_API tmx_status tmx_pool_create(tmx_pool **pool, int32_t n_threads, tmx_error *err);
TMX_API int32_t tmx_pool_n_threads(const tmx_pool *pool);
TMX_API void tmx_pool_free(tmx_pool *pool);

/* ---------------------------------------------------------------- patterns */

typedef enum tmx_pattern_kind {
    TMX_PATTERN_DENSE = 0,         /* k <= q */
    TMX_PATTERN_STREAMING = 1,     /* k <= q and (q - k < n_window or k < n_sink) */
    TMX_PATTERN_TRIANGLE = 2,      /* k <= q and (q - k < n_window or k < n_sink or q >= T) */
    TMX_PATTERN_XATTENTION = 3,    /* dynamic: found in Q and K of the prompt itself (docs/patterns.md); plans only */
    TMX_PATTERN_FLEXPREFILL = 4,
    TMX_PATTERN_MINFERENCE = 5,
    TMX_PATTERN_S2O = 6,
} tmx_pattern_kind;

/* T = n_prompt - min(n_last, n_prompt - 1); n_prompt is the final length of the sequence, this prefill included.
 * n_window counts the token itself.  arXiv 2507.21526 section 3, with the kernel's boundaries. */
typedef struct tmx_pattern {
    tmx_pattern_kind kind;
    int32_t n_sink, n_window, n_last;      /* >= 0; n_window >= 1; read only by the kinds that name them */
} tmx_pattern;

enum { TMX_DEFAULT_SINK = 8, TMX_DEFAULT_WINDOW = 512, TMX_DEFAULT_LAST = 128 };

TMX_API const char *tmx_pattern_name(tmx_pattern_kind kind);   /* "dense" "streaming" "triangle" "xattention" "flexprefill" ... */
TMX_API bool tmx_pattern_is_dynamic(tmx_pattern_kind kind);
/* These two know positions only: for a dynamic kind, false and 0. */
TMX_API bool tmx_pattern_is_visible(const tmx_pattern *p, int32_t n_prompt, int32_t q_pos, int32_t k_pos);
/* Number of visible (query, key) pairs of rows [q_begin, q_end), closed form. */
TMX_API int64_t tmx_pattern_pairs(const tmx_pattern *p, int32_t n_prompt, int32_t q_begin, int32_t q_end);

/* ---------------------------------------------------------------- model files */

/* A parsed GGUF container: header, metadata, tensor table.  Reading it proves every offset and size; it says nothing
 * about whether the model can run (tmx_model_open does).  A model split into files NAME-00001-of-0000N.gguf is opened by any
 * one of them; the others are taken from the same folder, and all are one file here: the first one's keys, everybody's
 * tensors. */
typedef struct tmx_file tmx_file;

typedef struct tmx_tensor_info {
    const char *name;              /* borrowed, lives as long as the file */
    const char *type_name;         /* "Q4_1" */
    int32_t n_dims;                /* 1..4 */
    int64_t shape[4];              /* slowest axis first */
    uint64_t n_bytes, offset_bytes;/* offset from the start of the file (of its part) */
    bool is_supported;             /* block type can be expanded */
    int32_t part;                  /* of a split model, from 0 */
} tmx_tensor_info;

typedef struct tmx_part_info {
    const char *name;              /* the path, or the end of a long one; lives as long as the file */
    uint64_t n_bytes;
    int32_t n_tensors;
} tmx_part_info;

TMX_API tmx_status tmx_file_open(tmx_file **file, const char *path, tmx_error *err);
TMX_API void tmx_file_close(tmx_file *file);
TMX_API int32_t tmx_file_version(const tmx_file *file);
TMX_API uint64_t tmx_file_bytes(const tmx_file *file);                    /* of all parts */
TMX_API int32_t tmx_file_n_parts(const tmx_file *file);                   /* 1 unless the model is split */
TMX_API tmx_status tmx_file_part(const tmx_file *file, int32_t i, tmx_part_info *info, tmx_error *err);
TMX_API int32_t tmx_file_n_keys(const tmx_file *file);
TMX_API const char *tmx_file_key(const tmx_file *file, int32_t i);        /* NULL if i is out of range */
/* Value of key i as text, cut to fit `size` (arrays show type, count and the first values).  Returns buf. */
TMX_API const char *tmx_file_value_text(const tmx_file *file, int32_t i, char *buf, size_t size);
TMX_API int32_t tmx_file_n_tensors(const tmx_file *file);
TMX_API tmx_status tmx_file_tensor(const tmx_file *file, int32_t i, tmx_tensor_info *info, tmx_error *err);
/* Scans every tensor for NaN and infinity (also in block scales).  TMX_E_NUMERIC names the first one found;
 * TMX_E_UNSUPPORTED names the first tensor that cannot be expanded, when nothing worse is there. */
TMX_API tmx_status tmx_file_check_tensors(const tmx_file *file, tmx_error *err);

/* ---------------------------------------------------------------- models */

typedef struct tmx_model_info {
    const char *architecture, *name;       /* borrowed from the model; name may be "" */
    const char *fingerprint;               /* 64 hex digits: SHA-256 of the header and of a sample of every tensor, and
                                              of adapters and another RoPE base if there are any */
    int32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train;
    float rope_freq_base, rms_eps;
    uint64_t n_params;
    int32_t n_ctx_max;                     /* tokens a session may hold: n_ctx_train, unless a RoPE base of one's own
                                              lifts the limit */
    int32_t n_loras;
    uint64_t n_merged;                     /* weights of tensors that adapters change; they get a copy in memory */
    int32_t n_window;                      /* what the model's own sliding-window layers see, the token itself counted;
                                              0: there are none */
    int32_t window_period;                 /* layer l has no window where (l + 1) % window_period == 0; 0: all have it */
    int32_t n_experts, n_experts_used;     /* of a layer, and of those for one token; n_ff is that of an expert.  0: none */
    const char *device;                    /* "cpu" or "cuda:0": what computes, and whose memory tmx_memory_plan speaks of.
                                              tmx_model_probe_file says "cpu"; NULL is "cpu" */
} tmx_model_info;

/* Has the layer a sliding window of the model's own?  A plan cannot change such a layer. */
TMX_API bool tmx_model_layer_has_window(const tmx_model_info *info, int32_t layer);

typedef struct tmx_model tmx_model;

/* A LoRA adapter as llama.cpp reads it: GGUF, general.type "adapter", pairs of tensors NAME.lora_a [rank][n_in] and
 * NAME.lora_b [n_out][rank] for matrices of the model. */
typedef struct tmx_lora {
    const char *path;
    float scale;                   /* on top of alpha / rank; 0 = 1 */
} tmx_lora;

typedef struct tmx_model_params {
    tmx_compute compute;
    tmx_isa isa;
    void (*warn)(void *ctx, const char *line);   /* e.g. unknown extra tensors; may be NULL */
    void *warn_ctx;
    const tmx_lora *loras;         /* [n_loras], added up in the weights: prefill and decode work as without them */
    int32_t n_loras;
    float rope_freq_base;          /* 0 = the file's; a value > 0 also lifts the limit on a session's n_ctx */
    const char *device;            /* NULL or "cpu"; "cuda" (the first) or "cuda:1": an NVIDIA GPU, products in bf16; "auto":
                                      the first GPU that can run the model, else the CPU; the CPU, too, where compute is
                                      f32 or isa is not AUTO.  docs/gpu.md */
} tmx_model_params;

/* Opens and maps the file, proves every shape against the hyper-parameters, merges adapters, packs the weights for
 * `compute` or copies them to the device (uses the pool; deterministic on the CPU).  TMX_E_DEVICE, TMX_E_IO, TMX_E_FORMAT, TMX_E_UNSUPPORTED (the text names the feature),
 * TMX_E_MEMORY; TMX_E_NUMERIC (an adapter holds NaN or infinity), TMX_E_ARG (a params field). */
TMX_API tmx_status tmx_model_open(tmx_model **model, const char *path, const tmx_model_params *params, tmx_pool *pool,
                                  tmx_error *err);
/* A model of a known shape with random weights, made in the memory of a GPU: for timing without a file.  It has no text: calls
 * that need a vocabulary refuse.  shape: "llama-3.1-8b", "qwen2.5-7b", "qwen3-8b", or "llama-3.1-70b-one-layer" (two layers of
 * it, since prefill computes little of the last one).  Of params, device (NULL = "cuda") counts.  TMX_E_ARG, TMX_E_UNSUPPORTED, TMX_E_DEVICE,
 * TMX_E_MEMORY. */
TMX_API tmx_status tmx_model_open_random(tmx_model **model, const char *shape, const tmx_model_params *params, tmx_pool *pool,
                                         tmx_error *err);
/* The same checks on a parsed file and on the adapters of params (NULL = defaults), without packing: could
 * tmx_model_open run it?  Fills info; name and fingerprint stay empty. */
TMX_API tmx_status tmx_model_probe_file(const tmx_file *file, const tmx_model_params *params, tmx_model_info *info,
                                        tmx_error *err);
TMX_API const tmx_model_info *tmx_model_info_get(const tmx_model *model);
TMX_API tmx_compute tmx_model_compute(const tmx_model *model);     /* what AUTO became */
TMX_API tmx_isa tmx_model_isa(const tmx_model *model);
TMX_API const char *tmx_model_provider(const tmx_model *model);    /* who multiplies: "onednn", "builtin" or "cublaslt" */
TMX_API const char *tmx_model_device_name(const tmx_model *model); /* "NVIDIA H200"; "" on the CPU */
TMX_API void tmx_model_close(tmx_model *model);

/* ---------------------------------------------------------------- tokens */

typedef enum tmx_token_flags {
    TMX_TOKEN_PLAIN = 0,
    TMX_TOKEN_SPECIAL = 1,         /* text such as <|im_end|> becomes the control token; otherwise it is plain text */
    TMX_TOKEN_BOS = 2,             /* put the BOS token first if the model asks for it */
} tmx_token_flags;

/* Text (any bytes) -> ids.  Writes at most cap ids; *n_ids is always the full count, so a call with cap 0 sizes the
 * buffer.  Invalid UTF-8 is kept byte for byte.  Linear in n_bytes.
 * TMX_E_ARG n_bytes > INT32_MAX, TMX_E_MEMORY (ids may then be partly written). */
TMX_API tmx_status tmx_tokenize(const tmx_model *model, const char *text, size_t n_bytes, uint32_t flags,
                                int32_t *ids, size_t cap, size_t *n_ids, tmx_error *err);

typedef struct tmx_turn {          /* one that is over */
    const char *user, *assistant;
} tmx_turn;

typedef struct tmx_chat {
    const char *system;            /* NULL = none */
    const char *user;              /* required; never parsed for special tokens, nor is any other text */
    const char *assistant;         /* the assistant's turn begun with this text; NULL = empty */
    const tmx_turn *turns;         /* [n_turns] the conversation so far, oldest first */
    int32_t n_turns;
} tmx_chat;

/* A conversation in the model's own format (chatml, llama3, gemma, phi3, phi4, mistral-v1, mistral-v3, mistral-tekken),
 * recognised by its chat template, up to where the assistant's answer goes on; control tokens come from the format only.
 * Same buffer rule as tmx_tokenize.  TMX_E_UNSUPPORTED quotes the beginning of an unknown template, TMX_E_ARG if the
 * texts make 2^31 bytes or more. */
TMX_API tmx_status tmx_chat_tokenize(const tmx_model *model, const tmx_chat *chat,
                                     int32_t *ids, size_t cap, size_t *n_ids, tmx_error *err);
TMX_API const char *tmx_chat_format(const tmx_model *model);       /* "chatml", ...; NULL = unknown */

TMX_API bool tmx_token_is_end(const tmx_model *model, int32_t id); /* EOS, EOT and their like */
/* Bytes of one token (control tokens: none).  Borrowed from the model; *n_bytes set; NULL if id is out of range. */
TMX_API const char *tmx_token_bytes(const tmx_model *model, int32_t id, size_t *n_bytes);
/* The token as the vocabulary spells it, control tokens too (for display). */
TMX_API const char *tmx_token_name(const tmx_model *model, int32_t id);

/* Turns a stream of ids into text, never ending on half a UTF-8 sequence: incomplete bytes wait for the next token. */
typedef struct tmx_detokenizer {
    unsigned char pending[4];
    int32_t n_pending;
} tmx_detokenizer;
/* Appends at most size - 1 bytes of text and a NUL; *n_written counts without NUL.  id -1 flushes: bytes that never
 * became a character come out as U+FFFD, one for a run.  TMX_E_ARG if id is out of range or the text does not fit
 * (size = 2 * token bytes + 8 always does). */
TMX_API tmx_status tmx_detokenize(const tmx_model *model, tmx_detokenizer *d, int32_t id,
                                  char *text, size_t size, size_t *n_written, tmx_error *err);

/* ---------------------------------------------------------------- plans */

typedef struct tmx_plan tmx_plan;

/* From a command-line spec, for a model of info->n_layers layers:
 *   "dense" | "triangle" (all layers) | "triangle:16-31" | "triangle:5,7,10,15-35" | "streaming:..." | "preset:NAME"
 *   | "xattention(stride=8,threshold=0.9):0-15" (parameters may be left out)
 *   | "minference(FILE)" (sizes of every head) | "xattention(thresholds=FILE)" (a threshold for every head)
 *   | "mix:triangle=16-31,rest=xattention(threshold=0.95)" | anything else: the path of a plan file.  docs/plans.md
 * Layers with a sliding window of the model's own keep it: "all layers" and "rest" leave them out, naming one is TMX_E_ARG.
 * TMX_E_ARG (a bad spec, a layer out of range or named twice), TMX_E_IO, TMX_E_FORMAT (file; line and column),
 * TMX_E_UNSUPPORTED (plan or preset of another model). */
TMX_API tmx_status tmx_plan_parse(tmx_plan **plan, const char *spec, const tmx_model_info *info, tmx_error *err);
/* Plan file: versioned JSON, read strictly; written atomically (temporary file, fsync, rename). docs/plans.md */
TMX_API tmx_status tmx_plan_save(const tmx_plan *plan, const char *path, tmx_error *err);
/* MInference's table of heads alone, in the format of its authors; TMX_E_ARG if the plan has none. */
TMX_API tmx_status tmx_plan_save_heads(const tmx_plan *plan, const char *path, tmx_error *err);
TMX_API void tmx_plan_free(tmx_plan *plan);
TMX_API int32_t tmx_plan_n_layers(const tmx_plan *plan);
TMX_API const tmx_pattern *tmx_plan_layer(const tmx_plan *plan, int32_t layer);   /* NULL if out of range */
/* The window of a layer that has one of the model's own, whatever the plan: tmx_plan_layer says dense there.  Else 0. */
TMX_API int32_t tmx_plan_own_window(const tmx_plan *plan, int32_t layer);
/* Sizes of every non-dense layer; TMX_E_ARG unless n_sink >= 0, n_window >= 1, n_last >= 0. -1 keeps a value. */
TMX_API tmx_status tmx_plan_set_sizes(tmx_plan *plan, int32_t n_sink, int32_t n_window, int32_t n_last, tmx_error *err);
TMX_API const char *tmx_plan_note(const tmx_plan *plan);          /* how it was chosen; "" if unknown */
TMX_API tmx_status tmx_plan_set_note(tmx_plan *plan, const char *note, tmx_error *err);
/* Prompts whose final length (what the sequence holds already, and the prompt) is below n run dense; 0 = none.  For
 * plans that pay only from some length on. */
TMX_API int32_t tmx_plan_min_tokens(const tmx_plan *plan);
TMX_API tmx_status tmx_plan_set_min_tokens(tmx_plan *plan, int32_t n, tmx_error *err);  /* TMX_E_ARG for n < 0 */

/* How FlexPrefill and MInference, which look at a prompt's last rows, estimate.  0: once, for the whole prompt, as their authors do; a
 * session's n_chunk is raised to its context then.  n: in chunks of n tokens (rounded up to whole S2O segments if the plan has any), each
 * estimated as if the prompt ended with it: another method, with results of its own, in a fixed amount of memory.  Nothing changes for
 * other methods, and the first function says 0 for a plan that has neither of the two.  docs/patterns.md */
TMX_API int32_t tmx_plan_estimate_rows(const tmx_plan *plan);
TMX_API tmx_status tmx_plan_set_estimate_rows(tmx_plan *plan, int32_t n, tmx_error *err);   /* TMX_E_ARG unless 0 or a multiple
                                                                       of 128 from 256 to 16777216 */

/* How the plan was chosen, in numbers: on the same prompts, dense beside the first n_sparse layers of some order. */
typedef struct tmx_plan_point {
    int32_t n_sparse;              /* 0 = dense */
    double kl;                     /* mean KL(dense || plan) of the first token, natural log */
    double top1;                   /* share of prompts with dense's best first token, 0..1 */
    double score;                  /* of the task, 0..100 */
    double ttft_ms;                /* median, on the machine that chose */
} tmx_plan_point;
/* Borrowed until the plan changes; NULL and 0 if there is none. */
TMX_API const tmx_plan_point *tmx_plan_curve(const tmx_plan *plan, int32_t *n_points);
/* Copies the points; n_sparse must ascend from 0..n_layers, numbers lie in their ranges.  TMX_E_ARG names the point. */
TMX_API tmx_status tmx_plan_set_curve(tmx_plan *plan, const tmx_plan_point *points, int32_t n_points, tmx_error *err);
/* "triangle 10-29 (sink 8, window 512, last 128), xattention 0-9 (stride 8, threshold 0.9, norm 1); dense below 1024 tokens",
 * cut to fit. Returns buf. */
TMX_API const char *tmx_plan_text(const tmx_plan *plan, char *buf, size_t size);
TMX_API int32_t tmx_preset_count(void);
TMX_API const char *tmx_preset_name(int32_t i);                   /* NULL if out of range */

/* ---------------------------------------------------------------- sessions */

typedef struct tmx_session tmx_session;

typedef struct tmx_progress {
    int64_t n_done, n_total;       /* work finished and in all, in tokens x layers */
} tmx_progress;

typedef struct tmx_session_params {
    int32_t n_ctx;                 /* tokens a sequence may hold; 0 = the model's context */
    int32_t n_chunk;               /* prompt rows worked on at once; 0 = a default; never changes a result; raised to 128
                                      for a plan with dynamic layers, to n_ctx for flexprefill and minference, or to what
                                      tmx_plan_set_estimate_rows says */
    int32_t n_seqs;                /* sequences; 0 = 1 */
    tmx_type kv_type;              /* DEFAULT = bf16, or f32 when compute is f32 */
    bool (*progress)(void *ctx, const tmx_progress *p);   /* false = stop; may be NULL */
    void *progress_ctx;
    const tmx_plan *plan;          /* for tmx_memory_plan: what its dynamic layers need is counted; sessions are given theirs */
} tmx_session_params;

/* What a session will take, before it takes it; of the device's memory when info->device is not the CPU. */
typedef struct tmx_memory {
    uint64_t weight_bytes;         /* packed weights */
    uint64_t merged_bytes;         /* copies of the tensors that adapters change; 0 on a device, where they replace others */
    uint64_t kv_bytes, workspace_bytes;
    uint64_t total_bytes;          /* the four above; the mapped file comes on top, as page cache */
    uint64_t available_bytes;      /* what the machine or device has free now; 0 = unknown */
} tmx_memory;
TMX_API tmx_status tmx_memory_plan(const tmx_model_info *info, tmx_compute compute, tmx_isa isa,
                                   const tmx_session_params *params, int32_t n_threads, tmx_memory *memory, tmx_error *err);

/* Borrows model and pool until freed; copies the plan (NULL = dense).  Takes all memory here.
 * TMX_E_ARG (bad params; n_ctx beyond the model's n_ctx_max), TMX_E_MEMORY. */
TMX_API tmx_status tmx_session_create(tmx_session **session, const tmx_model *model, const tmx_plan *plan,
                                      tmx_pool *pool, const tmx_session_params *params, tmx_error *err);
TMX_API void tmx_session_free(tmx_session *session);
TMX_API void tmx_session_reset(tmx_session *session);             /* forget all tokens and timings; keep the memory */
/* Forget the tokens of a sequence from position n_past on; what stands before keeps its bits.  To answer one prompt in
 * more than one way.  TMX_E_ARG unless 0 <= n_past <= tmx_session_n_past(seq). */
TMX_API tmx_status tmx_session_rewind(tmx_session *session, int32_t seq, int32_t n_past, tmx_error *err);
/* A new prompt of n_prompt tokens begins with tokens that seq holds: how many of its first tokens need no prefill again?
 * Rewind to this many, or to where the tokens part if that comes first, keep at least one token for tmx_prefill, and it
 * leaves what a prefill of the whole prompt from an empty session would: to the bit.  Not counted are tokens that
 * tmx_decode added, and rows whose layers saw other keys than they now would: in a plan with triangle layers, those of the
 * old prompt's last rows (n_last) and what followed; with dynamic layers, all unless they are dense in both prompts.
 * -1 if seq is out of range, 0 for n_prompt < 1. */
TMX_API int32_t tmx_session_n_reusable(const tmx_session *session, int32_t seq, int32_t n_prompt);
/* Needs n_past 0.  A plan with dynamic layers may need a larger workspace: TMX_E_MEMORY, session unchanged.  On a device it is
 * TMX_E_UNSUPPORTED. */
TMX_API tmx_status tmx_session_set_plan(tmx_session *session, const tmx_plan *plan, tmx_error *err);
TMX_API int32_t tmx_session_n_ctx(const tmx_session *session);
TMX_API int32_t tmx_session_n_past(const tmx_session *session, int32_t seq);      /* -1 if seq is out of range */

typedef struct tmx_prompt {
    const int32_t *tokens;         /* [n_tokens], ids in [0, n_vocab) */
    int32_t n_tokens;              /* >= 1: the whole prompt, or the whole new turn */
    int32_t seq;                   /* in [0, n_seqs), each at most once in a call */
    float *logits;                 /* [n_vocab], after the last token; may be NULL */
} tmx_prompt;

/* Run prompts through all layers and append their K and V to the session.
 *
 * Positions go on from tmx_session_n_past(seq), which grows by n_tokens on success.  What each layer may attend to
 * comes from the plan; a pattern's last rows are the last n_last of these tokens.  Inside, the work is cut into
 * chunks of n_chunk rows; the cut never changes a bit of the result.  In the last layer only the last row of each
 * prompt is computed beyond K and V: exact, since nothing else is read afterwards.  Allocates nothing.
 *
 * TMX_OK, or  TMX_E_ARG        n_tokens <= 0, an id or seq out of range, a seq twice     session unchanged
 *             TMX_E_FULL       n_past + n_tokens > n_ctx                                 session unchanged
 *             TMX_E_CANCELLED  progress returned false                     n_past unchanged, logits undefined
 *             TMX_E_NUMERIC    the logits hold NaN or infinity             n_past unchanged, logits as computed
 *             TMX_E_DEVICE     a call of the GPU failed; err names it      free the session                       */
TMX_API tmx_status tmx_prefill(tmx_session *session, const tmx_prompt *prompts, int32_t n_prompts, tmx_error *err);

/* One more token of a sequence that has been prefilled; dense over the whole cache.  logits [n_vocab].
 * Errors as tmx_prefill. */
TMX_API tmx_status tmx_decode(tmx_session *session, int32_t seq, int32_t token, float *logits, tmx_error *err);

typedef struct tmx_timings {       /* wall milliseconds since create or reset; prefill only unless said */
    double prefill_ms, matmul_ms, attention_ms, rest_ms;
    double decode_ms;
    int64_t n_prefill_tokens, n_decode_tokens;
    double estimate_ms;            /* part of attention_ms: dynamic layers finding their pairs */
} tmx_timings;
TMX_API void tmx_session_timings(const tmx_session *session, tmx_timings *timings);
TMX_API double tmx_session_layer_attention_ms(const tmx_session *session, int32_t layer);   /* prefill; 0 if out of range */
/* Share of the causal query-key pairs that prefill attended to since create or reset, 0..1, mean over heads; of the rows that
 * were computed (in the last layer: single ones).  0 if there were none, or layer is out of range. */
TMX_API double tmx_session_layer_density(const tmx_session *session, int32_t layer);
/* From now on, prefill counts the pairs that one query head of one layer attends to, in tiles of TMX_WATCH_TILE rows and keys:
 * pairs[q / TMX_WATCH_TILE][k / TMX_WATCH_TILE] += 1 for each.  pairs [n][n], the caller's, kept until the session is freed or
 * watches something else; n TMX_WATCH_TILE >= n_ctx.  NULL ends it.  For looking, not for timing.
 * TMX_E_ARG (out of range, too small, a session of several sequences), TMX_E_UNSUPPORTED (on a device). */
enum { TMX_WATCH_TILE = 128 };
TMX_API tmx_status tmx_session_watch(tmx_session *session, int32_t layer, int32_t head, double *pairs, int32_t n, tmx_error *err);

/* ---------------------------------------------------------------- MInference's heads */

typedef struct tmx_head_search_params {
    const tmx_prompt *prompts;     /* [n_prompts]: tokens are read, of more than 256 tokens each; they run dense */
    int32_t n_prompts;
    double keep;                   /* share of the causal pairs that every head may keep, more than 0, up to 1 */
    bool (*progress)(void *ctx, const tmx_progress *p);   /* false = stop; may be NULL */
    void *progress_ctx;
} tmx_head_search_params;

typedef struct tmx_head_search_result {
    int32_t n_vertical_slash, n_a_shape, n_block_sparse;   /* heads that were looked at: not those of the last layer */
    double error;                  /* mean over them: ||o - o_dense||^2 / ||o_dense||^2 of a head's output */
} tmx_head_search_result;

/* For every head the type of MInference that loses least at the same number of pairs, measured on these prompts, with sizes for their
 * length: a plan of all layers, docs/patterns.md.  On the CPU.  TMX_E_ARG, TMX_E_UNSUPPORTED, TMX_E_MEMORY, TMX_E_CANCELLED. */
TMX_API tmx_status tmx_minference_search(tmx_plan **plan, const tmx_model *model, tmx_pool *pool, const tmx_head_search_params *params,
                                         tmx_head_search_result *result, tmx_error *err);

/* ---------------------------------------------------------------- the gradient probe */

/* Which layers can lose their Middle Q-K?  For one prompt and one token `target`, let y be the target's logit after the last
 * prompt token, A[h][i][j] the attention probabilities of a layer under dense prefill, and theta[i][j] a factor on A[.][i][j],
 * the same for all heads.  At theta = 1
 *
 *     dy/dtheta[i][j] = sum over h of A[h][i][j] dy/dA[h][i][j]
 *
 * is what the pair (i, j) adds to the answer (arXiv 2507.21526 section 3).  The probe computes it for every layer, exactly, by
 * one backward pass through the activations, and sums it over three sections of the pairs j <= i: what a triangle pattern of
 * these sizes keeps by sink and window (streaming), what it keeps by its last rows (last), and what it drops (middle). */
typedef struct tmx_probe_sections { int32_t n_sink, n_window, n_last; } tmx_probe_sections;
enum { TMX_PROBE_SINK = 64, TMX_PROBE_WINDOW = 128, TMX_PROBE_LAST = 128 };

typedef struct tmx_probe_sums {    /* over the pairs of one section, per pair: */
    double theta_abs;              /* |dy/dtheta|: what layers are ranked by */
    double theta_signed;           /* dy/dtheta: their sum is the change of y by a small factor on the whole section */
    double head_abs;               /* sum over h of |A dy/dA| */
    double da_abs;                 /* sum over h of |dy/dA|: not weighted by the probability */
    double attention;              /* sum over h of A */
} tmx_probe_sums;

typedef struct tmx_probe_layer { tmx_probe_sums streaming, last, middle; } tmx_probe_layer;

typedef struct tmx_probe_cells { int64_t streaming, last, middle; } tmx_probe_cells;
/* Pairs in each section for a prompt of n_tokens; what sums are divided by for means. */
TMX_API tmx_status tmx_probe_count_cells(const tmx_probe_sections *sections, int32_t n_tokens, tmx_probe_cells *cells,
                                         tmx_error *err);

typedef struct tmx_probe_params {
    int32_t n_tokens;              /* longest prompt; 0 = 2048 */
    tmx_probe_sections sections;   /* n_window 0 = all three at their defaults, 64, 128, 128 */
    bool (*progress)(void *ctx, const tmx_progress *p);   /* false = stop; may be NULL */
    void *progress_ctx;
} tmx_probe_params;

/* What a probe will take of the memory of the model's device: weight_bytes for the transposed weights (0 on a GPU), kv_bytes for
 * what the forward pass keeps of every layer, workspace_bytes for the rest.  The model's own weights are not in it. */
TMX_API tmx_status tmx_probe_memory(const tmx_model_info *info, tmx_compute compute, tmx_isa isa,
                                    const tmx_probe_params *params, int32_t n_threads, tmx_memory *memory, tmx_error *err);

typedef struct tmx_probe tmx_probe;

/* Borrows model and pool until freed.  Runs where the model was opened.  Takes all memory here.  TMX_E_ARG (bad params),
 * TMX_E_MEMORY, TMX_E_UNSUPPORTED (models with experts; on a GPU Gemma 3), TMX_E_DEVICE. */
TMX_API tmx_status tmx_probe_create(tmx_probe **probe, const tmx_model *model, tmx_pool *pool, const tmx_probe_params *params,
                                    tmx_error *err);
TMX_API void tmx_probe_free(tmx_probe *probe);

typedef struct tmx_probe_result {
    float target_logit, top_logit;
    int32_t top_token;             /* arg-max; ties: lowest id */
    bool is_correct;               /* top_token is the target */
} tmx_probe_result;

/* One prompt, forward and backward.  Products run in the model's compute mode, everything else in f32, section sums in f64.  On a
 * GPU attention's products run in bf16 as well.
 *
 * tokens  [n_tokens], ids in [0, n_vocab);  target in [0, n_vocab)
 * layers  [n_layers], written: sums over sections.  May be NULL: the forward pass alone.
 * result  written.  May be NULL.
 *
 * TMX_OK, or  TMX_E_ARG        n_tokens < 1, an id out of range
 *             TMX_E_FULL       n_tokens beyond params.n_tokens
 *             TMX_E_CANCELLED  progress returned false
 *             TMX_E_NUMERIC    NaN or infinity in the logits or a sum
 *             TMX_E_DEVICE     a CUDA call failed: free the probe;         outputs untouched in every case */
TMX_API tmx_status tmx_probe_run(tmx_probe *probe, const int32_t *tokens, int32_t n_tokens, int32_t target,
                                 tmx_probe_layer *layers, tmx_probe_result *result, tmx_error *err);

/* Many samples of a probe: means over pairs and samples, and the order of layers they lead to. */
typedef struct tmx_probe_report tmx_probe_report;

typedef struct tmx_probe_settings {        /* what was measured, for whoever reads the numbers or goes on measuring */
    char source[96];               /* what the prompts are, UTF-8: "kv_number", "prompts:FILE:..." */
    tmx_probe_sections sections;   /* n_window 0 = defaults */
    int32_t n_tokens;              /* of a prompt, at most; >= 1 */
    int32_t n_samples;             /* asked for; >= 1 */
    int64_t seed;                  /* >= 0 */
    bool is_correct_only;          /* means leave out samples whose top token is not the target */
    tmx_compute compute;           /* F32 or BF16 */
} tmx_probe_settings;

typedef struct tmx_probe_sample {
    int32_t n_tokens, target, top_token;
    float target_logit;
} tmx_probe_sample;

TMX_API tmx_status tmx_probe_report_create(tmx_probe_report **report, const tmx_model_info *info,
                                           const tmx_probe_settings *settings, tmx_error *err);
/* Probe files: versioned JSON, read strictly, written atomically; docs/probe.md.  info NULL: any model; else
 * TMX_E_UNSUPPORTED for a report of another model file.  A report saved and opened goes on as if it had never been away. */
TMX_API tmx_status tmx_probe_report_open(tmx_probe_report **report, const char *path, const tmx_model_info *info,
                                         tmx_error *err);
TMX_API tmx_status tmx_probe_report_save(const tmx_probe_report *report, const char *path, tmx_error *err);
TMX_API void tmx_probe_report_free(tmx_probe_report *report);
/* layers [n_layers]: the sums of tmx_probe_run; may be NULL for a sample that is left out.  TMX_E_ARG: the prompt is too
 * short to have a Middle section, or longer than settings say.  TMX_E_NUMERIC, TMX_E_MEMORY.  Report unchanged on failure. */
TMX_API tmx_status tmx_probe_report_add(tmx_probe_report *report, const tmx_probe_sample *sample, const tmx_probe_layer *layers,
                                        tmx_error *err);
TMX_API const tmx_probe_settings *tmx_probe_report_settings(const tmx_probe_report *report);   /* defaults filled in */
/* Changes how many samples are asked for. */
TMX_API tmx_status tmx_probe_report_set_n_samples(tmx_probe_report *report, int32_t n_samples, tmx_error *err);
TMX_API int32_t tmx_probe_report_n_layers(const tmx_probe_report *report);
/* Layers without a sliding window of the model's own: those that a plan can change, and an order ranks. */
TMX_API int32_t tmx_probe_report_n_ranked(const tmx_probe_report *report);
TMX_API int32_t tmx_probe_report_n_samples(const tmx_probe_report *report);                    /* run so far */
TMX_API int32_t tmx_probe_report_n_correct(const tmx_probe_report *report);
TMX_API int32_t tmx_probe_report_n_used(const tmx_probe_report *report);                       /* in the means */
TMX_API const tmx_probe_sample *tmx_probe_report_sample(const tmx_probe_report *report, int32_t i);    /* NULL: out of range */
/* Means over a section's pairs, then over the samples used.  NULL if layer is out of range. */
TMX_API const tmx_probe_layer *tmx_probe_report_layer(const tmx_probe_report *report, int32_t layer);

typedef enum tmx_probe_order {     /* which layer becomes triangle first; ties: the higher layer */
    TMX_ORDER_GRADIENT = 0,        /* smallest theta_abs of the Middle section */
    TMX_ORDER_DEEPEST,             /* last layer, the one before, ... */
    TMX_ORDER_SHALLOWEST,
    TMX_ORDER_RANDOM,              /* by seed */
    TMX_ORDER_WORST,               /* largest theta_abs of the Middle section */
} tmx_probe_order;

/* layers [n_layers]: the n_ranked layers in order, behind them those that are not ranked, last first.  TMX_E_ARG for a report
 * without a sample used. */
TMX_API tmx_status tmx_probe_report_order(const tmx_probe_report *report, tmx_probe_order order, uint64_t seed, int32_t *layers,
                                          tmx_error *err);
/* The first n_layers of the order triangle, the others dense, sizes at their defaults; the note says how it was chosen. */
TMX_API tmx_status tmx_probe_report_plan(tmx_plan **plan, const tmx_probe_report *report, const tmx_model_info *info,
                                         tmx_probe_order order, uint64_t seed, int32_t n_layers, tmx_error *err);

/* ---------------------------------------------------------------- sampling */

typedef struct tmx_sampler_params {
    float temperature;             /* 0 = greedy (ties: lowest id) */
    int32_t top_k;                 /* 0 = off */
    float top_p;                   /* 0 or 1 = off */
    float min_p;                   /* 0 = off */
    float repeat_penalty;          /* 0 or 1 = off */
    int32_t repeat_last_n;         /* tokens looked back at; 0 = 64 */
    uint64_t seed;
} tmx_sampler_params;
typedef struct tmx_sampler tmx_sampler;
/* TMX_E_ARG names the parameter that is out of range or NaN. */
TMX_API tmx_status tmx_sampler_create(tmx_sampler **sampler, const tmx_sampler_params *params, int32_t n_vocab, tmx_error *err);
TMX_API void tmx_sampler_free(tmx_sampler *sampler);
TMX_API void tmx_sampler_accept(tmx_sampler *sampler, int32_t token);     /* tell it what was generated or prompted */
TMX_API int32_t tmx_sampler_next(tmx_sampler *sampler, const float *logits);   /* [n_vocab], all finite */

/* tmx_decode, then tmx_sampler_next on its logits: *next is the token to follow.  On a GPU the choice is made there and the logits
 * never leave it, unless the sampler has a repeat penalty; the token is the same, but where a draw falls within 1e-10 of the border
 * between two.  sampler: of the model's n_vocab.  Errors as tmx_decode; *next is set on success only. */
TMX_API tmx_status tmx_decode_next(tmx_session *session, int32_t seq, int32_t token, tmx_sampler *sampler, int32_t *next,
                                   tmx_error *err);

typedef struct tmx_agreement {
    double kl;                     /* KL(softmax(a) || softmax(b)), natural log, computed in f64 */
    double max_abs_diff;           /* of the raw logits */
    int32_t top_a, top_b;          /* arg-max of each; ties: lowest id */
    double margin_a;               /* a's best minus second best logit */
} tmx_agreement;
TMX_API void tmx_logits_compare(const float *a, const float *b, int32_t n, tmx_agreement *result);

/* ---------------------------------------------------------------- the attention operator */

/* Exact softmax attention over the visible pairs of a pattern, on raw buffers; GQA-native (query head h reads KV head
 * h / (n_heads / n_kv_heads)), any number of sequences of different lengths, any chunk of each.
 *   out[i][h] = sum over visible k of softmax(scale * q[i][h] . K[k][g]) V[k][g];  a row that sees nothing gives 0.
 * Strides are in elements; the innermost axis (head_dim) is contiguous. */
typedef struct tmx_attention_seq {
    const void *q;                 /* [n_q][n_heads][head_dim], type q_type; row 0 is position q_begin */
    const void *k, *v;             /* [q_begin + n_q][n_kv_heads][head_dim], type kv_type; row 0 is position 0 */
    void *out;                     /* [n_q][n_heads][head_dim], type q_type */
    float *lse;                    /* [n_q][n_heads], natural log-sum-exp of the scaled scores; -inf if empty; or NULL */
    int32_t q_begin, n_q;
    int32_t n_prompt;              /* final length, >= q_begin + n_q */
} tmx_attention_seq;

typedef struct tmx_attention_params {
    tmx_type q_type, kv_type;      /* DEFAULT = F32 */
    int32_t n_heads, n_kv_heads, head_dim;    /* n_heads % n_kv_heads == 0; 1 <= head_dim <= 512 */
    float scale;                   /* 0 = 1/sqrt(head_dim) */
    size_t q_pos_stride, q_head_stride;       /* also of nothing else: out has its own */
    size_t k_pos_stride, k_head_stride, v_pos_stride, v_head_stride;
    size_t out_pos_stride, out_head_stride;
    tmx_pattern pattern;
    const tmx_attention_seq *seqs;
    int32_t n_seqs;
    tmx_isa isa;
    void *scratch;                 /* tmx_attention_scratch_bytes(), 64-byte aligned; NULL = taken and freed inside */
} tmx_attention_params;

TMX_API size_t tmx_attention_scratch_bytes(const tmx_attention_params *params, int32_t n_threads);
/* TMX_E_ARG names the field; TMX_E_MEMORY. pool may be NULL: the calling thread does the work. */
TMX_API tmx_status tmx_attention(const tmx_attention_params *params, tmx_pool *pool, tmx_error *err);

/* ---------------------------------------------------------------- the attention operator on a CUDA GPU */

/* The same operator on device memory, for 16-bit types; f32 sums.  Enqueued on a stream of the current device: allocates
 * nothing, waits for nothing, may be captured in a CUDA graph.  Bits depend on the kernel, never on batch or chunks.
 * A NaN or infinity in K reaches the rows that see that key; one in V, every row of the up to 128 positions that a tile
 * holds.  n_prompt at most 2^30. */
typedef enum tmx_gpu_kernel {
    TMX_GPU_KERNEL_AUTO = 0,       /* the best for the current device and head_dim */
    TMX_GPU_KERNEL_PORTABLE = 1,   /* mma.sync: compute capability 8.0 and later */
    TMX_GPU_KERNEL_SM90 = 2,       /* TMA and wgmma: compute capability 9.0, head_dim 64 and 128 */
} tmx_gpu_kernel;

typedef struct tmx_gpu_device {
    char name[128];
    int32_t capability;            /* 10 * major + minor */
    tmx_gpu_kernel kernel;         /* what AUTO becomes at head_dim 64 and 128 */
} tmx_gpu_device;

/* The current CUDA device.  TMX_E_UNSUPPORTED in a build without CUDA or for an older card, TMX_E_DEVICE without one. */
TMX_API tmx_status tmx_gpu_device_get(tmx_gpu_device *device, tmx_error *err);

typedef struct tmx_gpu_attention_seq {         /* device pointers */
    const void *q;                 /* [n_q][n_heads][head_dim]; row 0 is position q_begin */
    const void *k, *v;             /* [q_begin + n_q][n_kv_heads][head_dim]; not read if page_size > 0 */
    const int32_t *pages;          /* [ceil((q_begin + n_q) / page_size)] pages of the pool; not read if page_size == 0 */
    void *out;                     /* [n_q][n_heads][head_dim] */
    float *lse;                    /* [n_q][n_heads], natural log-sum-exp of the scaled scores; -inf if empty; or NULL */
    int32_t q_begin, n_q;
    int32_t n_prompt;              /* final length, >= q_begin + n_q */
} tmx_gpu_attention_seq;

/* Addresses and strides: multiples of 16 bytes (8 elements); head_dim is contiguous.  out may be q itself, nothing else. */
typedef struct tmx_gpu_attention_params {
    tmx_type type;                 /* of q, k, v and out: BF16 (default) or F16 */
    int32_t n_heads, n_kv_heads, head_dim;     /* n_heads % n_kv_heads == 0; head_dim 64, 96, 128 or 256 */
    float scale;                   /* 0 = 1/sqrt(head_dim) */
    size_t q_pos_stride, q_head_stride, out_pos_stride, out_head_stride;
    size_t k_pos_stride, k_head_stride, v_pos_stride, v_head_stride;
    int32_t page_size;             /* positions of a page, 16, 32, 64, 128 or 256; 0 = contiguous K and V */
    int32_t n_pages;               /* of the pool */
    const void *k_pages, *v_pages; /* [n_pages][page_size][n_kv_heads][head_dim], device; strides as above */
    size_t k_page_stride, v_page_stride;
    tmx_pattern pattern;
    const tmx_gpu_attention_seq *seqs;         /* host memory, read before the call returns */
    int32_t n_seqs;
    tmx_gpu_kernel kernel;
    void *scratch;                 /* device, 256-byte aligned; belongs to this call until its work is done */
    size_t scratch_bytes;          /* at least tmx_gpu_attention_scratch_bytes() */
} tmx_gpu_attention_params;

/* Reads the shapes, the pattern and the sequences' positions only; needs no device.  0 if they are wrong. */
TMX_API size_t tmx_gpu_attention_scratch_bytes(const tmx_gpu_attention_params *params);
/* stream is a cudaStream_t.  TMX_E_ARG names the field; TMX_E_UNSUPPORTED, TMX_E_DEVICE as above or a failing CUDA call (work
 * of earlier sequences may be on the stream then). */
TMX_API tmx_status tmx_gpu_attention(const tmx_gpu_attention_params *params, void *stream, tmx_error *err);

#ifdef __cplusplus
}
#endif
#endif
