/* commands.h - the commands of tmx: what each can be told, as a struct and as the table that fills it. */
#ifndef TMX_CLI_COMMANDS_H
#define TMX_CLI_COMMANDS_H

#include "number_list.h"
#include "options.h"

typedef struct plan_choice {       /* shared by run and plan */
    const char *spec;              /* NULL = dense */
    int32_t n_sink, n_window, n_last;      /* -1 = the plan's own */
    const char *estimate;          /* NULL = the plan's own */
} plan_choice;

typedef struct model_changes {     /* shared by all commands that open a model */
    scaled_list loras;
    double rope_freq_base;         /* 0 = the model's */
} model_changes;

typedef struct run_options {
    const char *model;
    model_changes changes;
    const char *prompt, *ids_file;
    text_list files;
    const char *system, *assistant;
    bool is_chat, is_conversation, parse_special;

    bool ignore_end;
    int32_t n_predict;             /* -1 = until the model ends or the context is full; RUN_PREDICT_DEFAULT = not given */
    int64_t seed;                  /* -1 = from the clock */
    double temperature, top_p, min_p, repeat_penalty;
    int32_t top_k, repeat_last_n;
    text_list stops;

    plan_choice plan;

    const char *device, *isa;    /* NULL = auto */
    int32_t n_ctx;                 /* -1 = what prompt and answer need; 0 = the model's */
    int32_t n_threads, n_chunk;
    int32_t compute, cache_type;   /* tmx_compute, tmx_type */

    bool compare, json, show_tokens;
    bool is_verbose, is_quiet;
    const char *logits_file;
} run_options;

enum { RUN_PREDICT_DEFAULT = -2 };

typedef struct plan_options {
    const char *model;
    model_changes changes;
    plan_choice plan;
    const char *probe, *order;     /* order NULL = gradient */
    int32_t n_layers;              /* -1 = not given */
    const char *budget;            /* "kl=0.01"; instead of n_layers */
    const char *methods;           /* "A;B"; NULL = none */
    const char *search;            /* "minference"; instead of a plan and a probe */
    double keep;
    int32_t objective;             /* layers, ttft */
    int32_t curve_step;            /* 0 = only what the search needs */
    const char *task;              /* NULL = what the probe's prompts were */
    int32_t n_samples, n_tokens;   /* n_tokens -1 = as the probe's prompts */
    int64_t seed;
    int32_t n_threads;
    const char *device;            /* NULL = auto */
    const char *output, *note, *picture;
    bool list_presets, is_quiet;
} plan_options;

enum { OBJECTIVE_LAYERS, OBJECTIVE_TTFT };

typedef struct probe_options {
    const char *model;
    model_changes changes;
    const char *prompts;           /* a file of our own prompts; NULL = generated */
    int32_t kind;                  /* index into PROBE_KINDS */
    int32_t n_samples, n_tokens;   /* n_tokens -1 = 2000, or the longest of the file */
    int64_t seed;
    bool is_correct_only;
    int32_t n_sink, n_window, n_last;      /* of the sections */
    int32_t n_threads, compute;
    const char *device, *isa;    /* NULL = auto */
    const char *output, *picture;
    bool is_resumed, is_quiet;
} probe_options;

typedef struct inspect_options {
    const char *model;
    model_changes changes;
    bool show_tensors, show_metadata, check_tensors, json;
    int32_t n_ctx, n_threads;
    int32_t compute, cache_type;
    const char *pattern;           /* a plan's spec; NULL: the report on the file */
    const char *prompt, *prompt_file;
    int32_t layer, head;           /* -1 = not given */
    const char *picture;
} inspect_options;

typedef struct eval_options {
    const char *model;
    model_changes changes;
    const char *tasks, *lengths;   /* "a,b"; "1024,2048" */
    int32_t n_samples, n_predict;  /* n_predict 0 = the schema's */
    text_list data, texts;
    int32_t metric;                /* 0 = the schema's, else 1 + task_metric */
    int32_t template;              /* auto, chat, none */
    int64_t seed;
    bool list_tasks;

    text_list plans;
    int32_t n_sink, n_window, n_last;      /* -1 = each plan's own */
    const char *estimate;          /* NULL = each plan's own */
    const char *sweep;

    const char *device, *isa;    /* NULL = auto */
    int32_t n_threads, n_chunk;
    int32_t compute, cache_type;

    int32_t output;                /* md, csv, json */
    const char *page, *journal;
    bool is_quiet;
} eval_options;

enum { EVAL_TEMPLATE_AUTO, EVAL_TEMPLATE_CHAT, EVAL_TEMPLATE_NONE };
enum { EVAL_OUTPUT_MD, EVAL_OUTPUT_CSV, EVAL_OUTPUT_JSON };

typedef struct bench_options {
    const char *model;             /* may be NULL with is_kernels */
    const char *random_shape;      /* of a model to make instead of opening one, or NULL */
    model_changes changes;
    text_list prompts, predicts, depths, pairs;
    int32_t n_repeats;
    bool is_cold;
    int64_t seed;

    text_list plans;
    int32_t n_sink, n_window, n_last;      /* -1 = each plan's own */
    const char *estimate;          /* NULL = each plan's own */

    bool is_kernels;
    text_list head_dims, groups;
    int32_t n_rows;                /* -1 = not given */

    const char *device, *isa;      /* NULL = auto */
    int32_t n_threads, n_chunk;
    int32_t compute, cache_type;

    int32_t output;                /* BENCH_OUTPUT_... */
    const char *picture;
    bool is_quiet;

    /* What the texts above say; filled in by bench_options_check. */
    number_list prompt_list, predict_list, depth_list, head_dim_list, group_list;
    int32_t pair_prompts[MAX_TEXTS], pair_predicts[MAX_TEXTS];
} bench_options;

enum { BENCH_OUTPUT_MD, BENCH_OUTPUT_CSV, BENCH_OUTPUT_JSON };

/* What --kind of tmx probe takes; auto chooses among the others, the hardest first. */
#define PROBE_KINDS "auto|kv-uuid|kv-number|passkey"

extern const command run_command, plan_command, probe_command, eval_command, bench_command, inspect_command;

/* --estimate: "one-shot" is 0, "per-chunk" 2048, "per-chunk:N" N, as tmx_plan_set_estimate_rows takes them. */
bool estimate_parse(const char *text, int32_t *rows);

/* Rules that span options.  false: `why` holds one line. */
bool run_options_check(const run_options *o, char *why, size_t size);
bool plan_options_check(const plan_options *o, char *why, size_t size);
bool probe_options_check(const probe_options *o, char *why, size_t size);
bool eval_options_check(const eval_options *o, char *why, size_t size);
bool bench_options_check(bench_options *o, char *why, size_t size);
bool inspect_options_check(const inspect_options *o, char *why, size_t size);

/* Each returns the exit code of the program. */
int run_main(const run_options *o);
int plan_main(const plan_options *o);
int probe_main(const probe_options *o);
/* argv: the command line as it was given, for the report. */
int eval_main(const eval_options *o, int argc, char *const *argv);
int bench_main(const bench_options *o);
int inspect_main(const inspect_options *o);

#endif
