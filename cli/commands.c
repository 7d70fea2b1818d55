#include "commands.h"

#include "tmx.h"

#include <stdio.h>
#include <string.h>

/* The order of the words below is the order of the library's enums. */
#define TYPE_WORDS "auto|f32|bf16"
_Static_assert(TMX_COMPUTE_AUTO == 0 && TMX_COMPUTE_F32 == 1 && TMX_COMPUTE_BF16 == 2, "TYPE_WORDS");
_Static_assert(TMX_TYPE_DEFAULT == 0 && TMX_TYPE_F32 == 1 && TMX_TYPE_BF16 == 2, "TYPE_WORDS");

#define MAX_TOKENS 134217728.0     /* 2^27: beyond every context there is */
#define MAX_THREADS 1024.0
#define COUNT(array) ((int32_t)(sizeof (array) / sizeof (array)[0]))

/* ---------------------------------------------------------------- shared rows */

#define MODEL_ROWS(type) \
    { .group = "Input", .name = "lora", .argument = "FILE", .kind = OPTION_UNSCALED, .fallback = "none", \
      .offset = offsetof(type, changes.loras), \
      .help = "LoRA adapter (GGUF, as llama.cpp reads it), merged into the weights when the model is opened. May be " \
              "repeated: adapters add up" }, \
    { .group = "Input", .name = "lora-scaled", .argument = "FILE S", .kind = OPTION_SCALED, .min = -1e6, .max = 1e6, \
      .fallback = "", .offset = offsetof(type, changes.loras), \
      .help = "the same, times S" }, \
    { .group = "Input", .name = "rope-freq-base", .argument = "F", .kind = OPTION_NUMBER, .max = 1e12, \
      .offset = offsetof(type, changes.rope_freq_base), \
      .help = "RoPE base frequency; 0 = the model's; a value also lifts the limit that the model's context sets" }

#define PLAN_ROWS(type) \
    { .group = "Plan", .name = "plan", .argument = "SPEC", .kind = OPTION_TEXT, .fallback = "dense", \
      .offset = offsetof(type, plan.spec), \
      .help = "what each layer may attend to during prefill: dense, triangle (all layers), triangle:16-31, " \
              "triangle:5,7,10,15-35, streaming:..., xattention(stride=8,threshold=0.9):0-15, flexprefill(gamma=0.9):..., minference(FILE):..., " \
              "s2o(tau=0.005):..., " \
              "mix:triangle=16-31,rest=xattention, " \
              "preset:NAME, or the path of a plan file" }, \
    { .group = "Plan", .name = "sink", .argument = "N", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = -1, \
      .fallback = "the plan's, which is 8 unless it says otherwise", .offset = offsetof(type, plan.n_sink), \
      .help = "first tokens that every row of a triangle or streaming layer sees" }, \
    { .group = "Plan", .name = "window", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = MAX_TOKENS, \
      .initial = -1, .fallback = "the plan's, which is 512 unless it says otherwise", \
      .offset = offsetof(type, plan.n_window), \
      .help = "tokens of the sliding window of those layers, the row's own token counted" }, \
    { .group = "Plan", .name = "last", .argument = "N", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = -1, \
      .fallback = "the plan's, which is 128 unless it says otherwise", .offset = offsetof(type, plan.n_last), \
      .help = "last rows of the prompt that see everything in a triangle layer" }, \
    ESTIMATE_ROW("Plan", type, plan.estimate, "the plan's")

#define ESTIMATE_ROW(section, type, member, whose) \
    { .group = section, .name = "estimate", .argument = "HOW", .kind = OPTION_TEXT, .fallback = whose ", which is one-shot unless it says otherwise", \
      .offset = offsetof(type, member), \
      .help = "how flexprefill and minference, which look at a prompt's end, estimate: one-shot, for the whole prompt; per-chunk or " \
              "per-chunk:N, for each N (2048) tokens as if the prompt ended there, which is another method with other results" }

#define DEVICE_ROW(type, what) \
    { .group = "Machine", .name = "device", .argument = "NAME", .kind = OPTION_TEXT, .fallback = "auto", \
      .offset = offsetof(type, device), .help = what }

#define MODEL_DEVICE_ROW(type) \
    DEVICE_ROW(type, "what computes: cpu; cuda or cuda:N, an NVIDIA GPU; auto takes the first GPU that can run the model, else " \
                     "the CPU, and the CPU where --isa or --compute f32 is given")

#define MACHINE_ROWS(type) \
    { .group = "Machine", .letter = 't', .name = "threads", .argument = "N", .kind = OPTION_COUNT, .max = MAX_THREADS, \
      .offset = offsetof(type, n_threads), \
      .help = "worker threads; 0 = one for every core; results never depend on it" }, \
    { .group = "Machine", .name = "compute", .argument = TYPE_WORDS, .kind = OPTION_CHOICE, .choices = TYPE_WORDS, \
      .offset = offsetof(type, compute), \
      .help = "number type of the products; auto is bf16 where the CPU multiplies it, else f32" }, \
    { .group = "Machine", .name = "isa", .argument = "NAME", .kind = OPTION_TEXT, .fallback = "auto", \
      .offset = offsetof(type, isa), \
      .help = "instruction set: auto, scalar, avx2, avx512, avx512bf16 or amx" }

#define SESSION_ROWS(type) \
    { .group = "Machine", .name = "chunk", .argument = "N", .kind = OPTION_COUNT, .max = 1048576, \
      .offset = offsetof(type, n_chunk), \
      .help = "prompt rows worked on at once; 0 = chosen by the library; results never depend on it" }, \
    { .group = "Machine", .name = "cache-type", .argument = TYPE_WORDS, .kind = OPTION_CHOICE, .choices = TYPE_WORDS, \
      .offset = offsetof(type, cache_type), \
      .help = "number type of the KV cache; auto is bf16, or f32 with --compute f32" }

/* ---------------------------------------------------------------- tmx run */

#define AT(member) .offset = offsetof(run_options, member)

static const option_spec run_rows[] = {
    { .group = "Input", .letter = 'm', .name = "model", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "",
      AT(model),
      .help = "model file (GGUF)" },
    MODEL_ROWS(run_options),
    { .group = "Input", .letter = 'p', .name = "prompt", .argument = "TEXT", .kind = OPTION_TEXT, .fallback = "",
      AT(prompt),
      .help = "the prompt itself" },
    { .group = "Input", .letter = 'f', .name = "file", .argument = "FILE", .kind = OPTION_TEXTS, .fallback = "",
      AT(files),
      .help = "read the prompt from FILE, byte for byte (a final newline belongs to it); - is standard input. "
              "Given several times, the prompts run as one batch and are answered one after the other" },
    { .group = "Input", .name = "ids", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(ids_file),
      .help = "read the prompt as token ids separated by white space; - is standard input" },
    { .group = "Input", .name = "chat", .kind = OPTION_SWITCH, AT(is_chat),
      .help = "wrap the prompt in the model's chat format, as the user's turn" },
    { .group = "Input", .letter = 'i', .name = "conversation", .kind = OPTION_SWITCH, AT(is_conversation),
      .help = "chat turn by turn: each line of standard input is the user's next turn (a backslash at its end joins the next "
              "line to it), answered with all turns before it in view; /clear forgets them, /exit or the end of the input ends. "
              "Ctrl-C stops an answer; between answers it ends the program. -p or -f give the first turn" },
    { .group = "Input", .name = "system", .argument = "TEXT", .kind = OPTION_TEXT, .fallback = "none", AT(system),
      .help = "with --chat or -i: the system message" },
    { .group = "Input", .name = "assistant", .argument = "TEXT", .kind = OPTION_TEXT, .fallback = "none",
      AT(assistant),
      .help = "with --chat: text that the assistant's turn begins with; the answer goes on from it" },
    { .group = "Input", .name = "special", .kind = OPTION_SWITCH, AT(parse_special),
      .help = "let text such as <|im_end|> in the prompt become a control token; otherwise it stays text" },

    { .group = "Generation", .letter = 'n', .name = "predict", .alias = "n-predict", .argument = "N",
      .kind = OPTION_COUNT, .min = -1, .max = MAX_TOKENS, .initial = RUN_PREDICT_DEFAULT, .fallback = "128; -1 with -i",
      AT(n_predict),
      .help = "tokens to generate at most; -1 = until the model ends or the context is full; 0 = prefill only" },
    { .group = "Generation", .name = "temp", .argument = "X", .kind = OPTION_NUMBER, .max = 100, AT(temperature),
      .help = "temperature; 0 is greedy: always the most probable token, so that a run can be repeated and "
              "plans compared" },
    { .group = "Generation", .name = "top-k", .argument = "N", .kind = OPTION_COUNT, .max = 2147483647,
      .initial = 40, AT(top_k),
      .help = "sample among the N most probable tokens; 0 = off; nothing when greedy" },
    { .group = "Generation", .name = "top-p", .argument = "X", .kind = OPTION_NUMBER, .max = 1, .initial = 0.95,
      AT(top_p),
      .help = "sample among the most probable tokens that together reach X; 0 or 1 = off; nothing when greedy" },
    { .group = "Generation", .name = "min-p", .argument = "X", .kind = OPTION_NUMBER, .max = 1, .initial = 0.05,
      AT(min_p),
      .help = "drop tokens below X times the best one's probability; 0 = off; nothing when greedy" },
    { .group = "Generation", .name = "repeat-penalty", .argument = "X", .kind = OPTION_NUMBER, .max = 100,
      .initial = 1, AT(repeat_penalty),
      .help = "make recent tokens less likely; 0 or 1 = off" },
    { .group = "Generation", .name = "repeat-last-n", .argument = "N", .kind = OPTION_COUNT, .max = 1048576,
      .initial = 64, AT(repeat_last_n),
      .help = "how many recent tokens --repeat-penalty looks at; 0 = none" },
    { .group = "Generation", .letter = 's', .name = "seed", .argument = "N", .kind = OPTION_INTEGER, .min = -1,
      .max = 4294967295.0, .initial = -1, AT(seed),
      .help = "seed of the sampler; -1 takes one from the clock; the seed in use is always reported" },
    { .group = "Generation", .name = "ignore-eos", .kind = OPTION_SWITCH, AT(ignore_end),
      .help = "never choose an end token: generate all N tokens" },
    { .group = "Generation", .name = "stop", .argument = "TEXT", .kind = OPTION_TEXTS, .fallback = "", AT(stops),
      .help = "stop where TEXT begins; it is not printed. May be repeated" },

    PLAN_ROWS(run_options),
    { .group = "Plan", .name = "compare", .kind = OPTION_SWITCH, AT(compare),
      .help = "run the prompt dense, then with the plan, and print both answers, times and how far they agree" },

    { .group = "Machine", .letter = 'c', .name = "ctx-size", .argument = "N", .kind = OPTION_COUNT,
      .max = MAX_TOKENS, .initial = -1, .fallback = "what the prompt and -n need, at most the model's context; with -i that, at most 8192",
      AT(n_ctx),
      .help = "tokens the context holds; 0 = the model's context" },
    MODEL_DEVICE_ROW(run_options),
    MACHINE_ROWS(run_options),
    SESSION_ROWS(run_options),

    { .group = "Output", .name = "json", .kind = OPTION_SWITCH, AT(json),
      .help = "print one JSON object: settings, plan, token ids, text and every time taken" },
    { .group = "Output", .name = "logits", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(logits_file),
      .help = "write the logits after the last prompt token to FILE (NumPy .npy, float32, [vocabulary], or "
              "[prompts][vocabulary] for a batch; with --compare those of the plan)" },
    { .group = "Output", .name = "tokens", .kind = OPTION_SWITCH, AT(show_tokens),
      .help = "print the prompt's token ids on one line, in the form --ids reads, and stop" },
    { .group = "Output", .letter = 'v', .name = "verbose", .kind = OPTION_SWITCH, AT(is_verbose),
      .help = "say more on standard error: model, memory, attention time of each layer" },
    { .group = "Output", .letter = 'q', .name = "quiet", .kind = OPTION_SWITCH, AT(is_quiet),
      .help = "say nothing on standard error but errors" },
};

static const command_example run_examples[] = {
    { "a question to a chat model", "tmx run -m model.gguf --chat -p 'Name three rivers.'" },
    { "a long document, dense against Triangle attention",
      "tmx run -m model.gguf -f book.txt -n 16 --plan triangle:16-31 --compare" },
    { "a conversation", "tmx run -m model.gguf -i --system 'Answer briefly.'" },
    { "times as JSON", "tmx run -m model.gguf -f - -n 1 --plan preset:llama-3.1-8b-instruct --json < book.txt" },
};

const command run_command = {
    .name = "run",
    .usage = "-m MODEL (-p TEXT | -f FILE | --ids FILE | -i) [options]",
    .summary = "read a prompt and generate text; compare a plan with dense attention",
    .description =
        "Runs a prompt through a GGUF model on the CPU and prints the answer. Prefill follows the plan; generation is "
        "always dense over the whole context.\n"
        "Standard output carries the result only; progress, times and warnings go to standard error. A prompt that "
        "does not fit the context is refused, never cut.",
    .options = run_rows, .n_options = COUNT(run_rows),
    .examples = run_examples, .n_examples = COUNT(run_examples),
};

#undef AT

/* ---------------------------------------------------------------- tmx plan */

#define AT(member) .offset = offsetof(plan_options, member)

static const option_spec plan_rows[] = {
    { .group = "Input", .letter = 'm', .name = "model", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "",
      AT(model),
      .help = "model file (GGUF) the plan is for" },
    MODEL_ROWS(plan_options),
    PLAN_ROWS(plan_options),
    { .group = "Plan from a probe", .name = "probe", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(probe),
      .help = "choose the triangle layers by this report of tmx probe, instead of --plan" },
    { .group = "Plan from a probe", .name = "layers", .argument = "K", .kind = OPTION_COUNT, .max = 1024, .initial = -1,
      .fallback = "", AT(n_layers),
      .help = "with --probe: how many layers become triangle" },
    { .group = "Plan from a probe", .name = "order", .argument = "NAME", .kind = OPTION_TEXT, .fallback = "gradient", AT(order),
      .help = "with --probe: which layers first: gradient (smallest Middle gradient), or for comparison deepest, shallowest, "
              "random:SEED, worst (largest Middle gradient)" },
    { .group = "Plan from a probe", .name = "budget", .argument = "kl=X|drop=X", .kind = OPTION_TEXT, .fallback = "", AT(budget),
      .help = "with --probe, instead of --layers: as many layers as lose at most X, measured on prompts of one task: mean KL(dense, "
              "plan) of the first token, or points of the task's score" },
    { .group = "Plan from a probe", .name = "objective", .argument = "layers|ttft", .kind = OPTION_CHOICE, .choices = "layers|ttft",
      AT(objective),
      .help = "with --budget: of all that was measured and fits, take the most layers, or what was fastest on this machine" },
    { .group = "Plan from a probe", .name = "methods", .argument = "A;B", .kind = OPTION_TEXT, .fallback = "none", AT(methods),
      .help = "with --budget: behind its triangle layers, give each other layer the fastest of these dynamic methods that keeps the whole "
              "inside the budget and is measured to be faster, such as 'xattention(stride=8,threshold=0.9);flexprefill(gamma=0.95)'; each "
              "kind once. How, and in how many runs: above" },
    { .group = "Plan from a probe", .name = "curve", .argument = "N", .kind = OPTION_COUNT, .max = 1024, .fallback = "none",
      AT(curve_step),
      .help = "with --budget: measure 0, N, 2N, ... layers as well, for a whole curve; the choice is among all that was measured" },
    { .group = "Plan from a probe", .name = "task", .argument = "NAME", .kind = OPTION_TEXT, .fallback = "the probe's; kv_uuid for --search", AT(task),
      .help = "with --budget or --search: the task measured; tmx eval --list-tasks names them" },
    { .group = "Plan from a probe", .name = "tokens", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = 1048576, .initial = -1,
      .fallback = "the probe's; 4000 for --search", AT(n_tokens),
      .help = "with --budget or --search: length of a prompt" },
    { .group = "Plan from a probe", .name = "samples", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = 100000, .initial = 8,
      AT(n_samples),
      .help = "with --budget or --search: prompts that dense and every candidate run" },
    { .group = "Plan from a probe", .letter = 's', .name = "seed", .argument = "N", .kind = OPTION_INTEGER, .max = 4294967295.0,
      .initial = 1, AT(seed),
      .help = "with --budget or --search: seed of the prompts; take another than the probe's" },
    { .group = "Plan from a probe", .name = "device", .argument = "NAME", .kind = OPTION_TEXT, .fallback = "auto", AT(device),
      .help = "with --budget, what computes: cpu; cuda or cuda:N, an NVIDIA GPU; auto takes the first GPU that can run the model, "
              "else the CPU" },
    { .group = "Plan from a probe", .letter = 't', .name = "threads", .argument = "N", .kind = OPTION_COUNT, .max = MAX_THREADS,
      AT(n_threads),
      .help = "with --budget or --search: worker threads; 0 = one for every core" },
    { .group = "Plan from a search", .name = "search", .argument = "METHOD", .kind = OPTION_TEXT, .fallback = "", AT(search),
      .help = "instead of a plan: minference finds the type and sizes of every head on prompts of one task and writes them to -o, for "
              "--plan 'minference(FILE)'" },
    { .group = "Plan from a search", .name = "keep", .argument = "X", .kind = OPTION_NUMBER, .max = 1, .initial = 0.3, AT(keep),
      .help = "with --search: share of the pairs that every head may keep" },
    { .group = "Output", .letter = 'o', .name = "output", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "",
      AT(output),
      .help = "write the plan to FILE as JSON, tied to this model; the file appears whole or not at all" },
    { .group = "Output", .name = "note", .argument = "TEXT", .kind = OPTION_TEXT, .fallback = "the plan's",
      AT(note),
      .help = "with -o: a line in the file that says how the plan was chosen" },
    { .group = "Output", .name = "svg", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(picture),
      .help = "with --budget: draw loss and time over the number of layers to FILE" },
    { .group = "Output", .name = "list-presets", .kind = OPTION_SWITCH, AT(list_presets),
      .help = "print the names that --plan preset:NAME knows, and stop" },
    { .group = "Output", .letter = 'q', .name = "quiet", .kind = OPTION_SWITCH, AT(is_quiet),
      .help = "say nothing on standard error but errors" },
};

static const command_example plan_examples[] = {
    { "what a plan saves", "tmx plan -m model.gguf --plan triangle:10-29" },
    { "keep it",
      "tmx plan -m model.gguf --plan triangle:10-29 --window 1024 -o model.plan.json --note 'needle test, 32K'" },
    { "the 16 layers that lose least by a probe", "tmx plan -m model.gguf --probe probe.json --layers 16 -o model.plan.json" },
    { "as many as a loss of 0.01 allows, measured",
      "tmx plan -m model.gguf --probe probe.json --budget kl=0.01 --tokens 8000 -o model.plan.json --svg curve.svg" },
    { "and methods for the other layers, where they are faster and fit",
      "tmx plan -m model.gguf --probe probe.json --budget kl=0.01 --tokens 8000 "
      "--methods 'xattention(threshold=0.95);flexprefill(gamma=0.99)' -o model.plan.json" },
};

const command plan_command = {
    .name = "plan",
    .usage = "-m MODEL (--plan SPEC | --probe FILE ... | --search METHOD -o FILE) [options]",
    .summary = "show what a plan computes in every layer and what it saves; write plan files",
    .description =
        "Shows the pattern of every layer and, for prompts of 2K to 128K tokens, how many query-key pairs the plan "
        "computes against dense attention. That share predicts the attention time; the other work of prefill does not "
        "change.\n"
        "--methods measures on the prompts of --budget. First none of its M methods and each of them in all R layers that are left take turns; "
        "what does not take less time, as a whole or in a layer, is out. Then every layer's fastest, all at once; if that breaks the budget, "
        "layer by layer in the probe's order, the fastest first, each beside what the layers before it got. At last the choice races "
        "dense layers, and what does not pay goes. That is 2 + M times the --samples if the fastest fit, and 1 + M + R M + M times at most.",
    .options = plan_rows, .n_options = COUNT(plan_rows),
    .examples = plan_examples, .n_examples = COUNT(plan_examples),
};

#undef AT

/* ---------------------------------------------------------------- tmx probe */

#define AT(member) .offset = offsetof(probe_options, member)

static const option_spec probe_rows[] = {
    { .group = "Input", .letter = 'm', .name = "model", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "",
      AT(model),
      .help = "model file (GGUF)" },
    MODEL_ROWS(probe_options),
    { .group = "Input", .name = "kind", .argument = PROBE_KINDS, .kind = OPTION_CHOICE, .choices = PROBE_KINDS, AT(kind),
      .help = "prompts to make: a value asked for among records of UUIDs, among records of words and numbers, or a number planted "
              "in a text; auto takes the first of the three of which the dense model begins more than half of 8 answers right" },
    { .group = "Input", .name = "samples", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = 100000, .initial = 100,
      AT(n_samples),
      .help = "prompts to run, or with --prompts at most" },
    { .group = "Input", .name = "tokens", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = 1048576, .initial = -1,
      .fallback = "2000, or the longest prompt of --prompts", AT(n_tokens),
      .help = "length of a prompt; made prompts are as long as fits" },
    { .group = "Input", .name = "seed", .argument = "N", .kind = OPTION_INTEGER, .max = 4294967295.0, .initial = 42, AT(seed),
      .help = "seed of the prompts" },
    { .group = "Input", .name = "prompts", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(prompts),
      .help = "your own prompts: one JSON object on a line, {\"prompt\": ..., \"answer\": ...}, taken as they are, special tokens "
              "parsed; the answer follows the prompt directly" },
    { .group = "Input", .name = "correct-only", .kind = OPTION_SWITCH, AT(is_correct_only),
      .help = "leave samples out of the means that the dense model answers wrongly (its first token is not the answer's)" },

    { .group = "Sections", .name = "sink", .argument = "N", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = TMX_PROBE_SINK,
      AT(n_sink),
      .help = "first tokens of the streaming section" },
    { .group = "Sections", .name = "window", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = MAX_TOKENS,
      .initial = TMX_PROBE_WINDOW, AT(n_window),
      .help = "tokens of the window of the streaming section, the row's own token counted" },
    { .group = "Sections", .name = "last", .argument = "N", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = TMX_PROBE_LAST,
      AT(n_last),
      .help = "rows of the last section; Middle is what is left" },

    MODEL_DEVICE_ROW(probe_options),
    MACHINE_ROWS(probe_options),

    { .group = "Output", .letter = 'o', .name = "output", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(output),
      .help = "write the report to FILE as JSON after every sample; tmx plan --probe reads it" },
    { .group = "Output", .name = "resume", .kind = OPTION_SWITCH, AT(is_resumed),
      .help = "go on with the report in -o if there is one: the same numbers as a run that was never interrupted" },
    { .group = "Output", .name = "svg", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(picture),
      .help = "draw gradient and attention of each layer and section to FILE" },
    { .group = "Output", .letter = 'q', .name = "quiet", .kind = OPTION_SWITCH, AT(is_quiet),
      .help = "say nothing on standard error but errors" },
};

static const command_example probe_examples[] = {
    { "measure, then take the 16 layers that lose least", "tmx probe -m model.gguf -o probe.json --svg probe.svg" },
    { "a first look, a minute or two", "tmx probe -m model.gguf --samples 5" },
    { "go on after Ctrl-C", "tmx probe -m model.gguf -o probe.json --resume" },
};

const command probe_command = {
    .name = "probe",
    .usage = "-m MODEL [-o FILE] [options]",
    .summary = "measure which layers can lose their Middle Q-K: the gradient of the answer by attention",
    .description =
        "Runs prompts whose answer stands somewhere in the middle, and by an exact backward pass finds how much the answer's logit "
        "changes with the attention of every layer, in three sections: streaming (first tokens and a sliding window), last rows, "
        "and Middle, which a triangle layer drops. Layers are ordered by the mean size of the Middle gradient.\n"
        "Ctrl-C keeps what is done: the samples so far are reported and stay in the file of -o. A sample costs about three dense "
        "prefills of its length. docs/probe.md has the formulas.",
    .options = probe_rows, .n_options = COUNT(probe_rows),
    .examples = probe_examples, .n_examples = COUNT(probe_examples),
};

#undef AT

/* ---------------------------------------------------------------- tmx eval */

#define AT(member) .offset = offsetof(eval_options, member)

static const option_spec eval_rows[] = {
    { .group = "Input", .letter = 'm', .name = "model", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "",
      AT(model),
      .help = "model file (GGUF)" },
    MODEL_ROWS(eval_options),
    { .group = "Input", .name = "tasks", .argument = "A,B", .kind = OPTION_TEXT, .fallback = "none", AT(tasks),
      .help = "tasks to generate, separated by commas; all = every one; --list-tasks names them" },
    { .group = "Input", .name = "lengths", .argument = "N,N", .kind = OPTION_TEXT, .fallback = "1024,2048", AT(lengths),
      .help = "lengths of --tasks and --perplexity in tokens, prompt and answer together" },
    { .group = "Input", .name = "samples", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = 100000, .initial = 20,
      AT(n_samples),
      .help = "samples of each task at each length; of files, at most what they hold" },
    { .group = "Input", .name = "data", .argument = "FILE", .kind = OPTION_TEXTS, .fallback = "", AT(data),
      .help = "samples as JSON lines, in RULER's schema (input, outputs) or LongBench's (input, context, answers, dataset); "
              "may be repeated" },
    { .group = "Input", .name = "metric", .argument = "NAME", .kind = OPTION_CHOICE,
      .choices = "auto|match_all|match_part|f1|rouge_l", AT(metric),
      .help = "how --data is scored: auto (by schema and set), match_all, match_part, f1, rouge_l" },
    { .group = "Input", .letter = 'n', .name = "predict", .alias = "n-predict", .argument = "N", .kind = OPTION_COUNT,
      .min = 0, .max = 1048576, AT(n_predict), .fallback = "by schema and set",
      .help = "tokens an answer to --data may take" },
    { .group = "Input", .name = "perplexity", .argument = "FILE", .kind = OPTION_TEXTS, .fallback = "", AT(texts),
      .help = "a text: pieces of each length are prefilled but for their last 128 tokens, which are predicted; may be repeated" },
    { .group = "Input", .name = "template", .argument = "auto|chat|none", .kind = OPTION_CHOICE, .choices = "auto|chat|none",
      AT(template),
      .help = "prompts as chat turns or as plain text; auto is chat where the model has a known format" },
    { .group = "Input", .letter = 's', .name = "seed", .argument = "N", .kind = OPTION_INTEGER, .max = 4294967295.0,
      .initial = 42, AT(seed),
      .help = "seed of the generated samples" },
    { .group = "Input", .name = "list-tasks", .kind = OPTION_SWITCH, AT(list_tasks),
      .help = "print the tasks that can be generated, and stop" },

    { .group = "Plans", .name = "plan", .argument = "SPEC", .kind = OPTION_TEXTS, .fallback = "dense", AT(plans),
      .help = "a plan, as for tmx run; given several times, all run on the same samples and are compared with the first. "
              "Give dense first to compare with dense attention" },
    { .group = "Plans", .name = "sink", .argument = "N", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = -1,
      .fallback = "each plan's own", AT(n_sink),
      .help = "first tokens that every row of a triangle or streaming layer sees, in all plans" },
    { .group = "Plans", .name = "window", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = MAX_TOKENS,
      .initial = -1, .fallback = "each plan's own", AT(n_window),
      .help = "tokens of the sliding window of those layers" },
    { .group = "Plans", .name = "last", .argument = "N", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = -1,
      .fallback = "each plan's own", AT(n_last),
      .help = "last rows that see everything in a triangle layer" },
    ESTIMATE_ROW("Plans", eval_options, estimate, "each plan's own"),
    { .group = "Plans", .name = "sweep", .argument = "NAME=N,N", .kind = OPTION_TEXT, .fallback = "none", AT(sweep),
      .help = "dense against one --plan with a size changed: window=128,256,512 (or sink=, last=); "
              "layers=0..30 takes the plan's pattern to the deepest 0, 1, ... 30 layers" },

    MODEL_DEVICE_ROW(eval_options),
    MACHINE_ROWS(eval_options),
    SESSION_ROWS(eval_options),

    { .group = "Output", .letter = 'o', .name = "output", .argument = "md|csv|json", .kind = OPTION_CHOICE,
      .choices = "md|csv|json", AT(output),
      .help = "form of standard output: an aligned Markdown table, CSV, or JSON with every sample and answer" },
    { .group = "Output", .name = "html", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(page),
      .help = "also write a page with tables and pictures to FILE; it needs nothing else" },
    { .group = "Output", .name = "resume", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(journal),
      .help = "keep each finished sample in FILE, and begin with those that FILE holds; it is made if there is none" },
    { .group = "Output", .letter = 'q', .name = "quiet", .kind = OPTION_SWITCH, AT(is_quiet),
      .help = "say nothing on standard error but errors" },
};

static const command_example eval_examples[] = {
    { "what a plan costs in answers", "tmx eval -m model.gguf --tasks niah_single_2,niah_multikey_1,vt --lengths 2048,4096 "
                                      "--plan dense --plan triangle:16-31 --html report.html" },
    { "how wide a window must be", "tmx eval -m model.gguf --tasks passkey --plan triangle:16-31 --sweep window=128,256,512" },
    { "RULER's own samples, hours long, to be gone on with after Ctrl-C",
      "tmx eval -m model.gguf --data qa_1/validation.jsonl --plan dense --plan model.plan.json --resume qa_1.journal" },
};

const command eval_command = {
    .name = "eval",
    .usage = "-m MODEL (--tasks A,B | --data FILE | --perplexity FILE) [--plan SPEC]... [options]",
    .summary = "measure what plans cost in answers: tasks, agreement with dense, perplexity",
    .description =
        "Answers the same samples with every plan and prints scores, their difference to the first plan with a 95% interval, "
        "prefill times, and how far each plan's predictions agree with the first one's.\n"
        "Tasks are generated for the model's tokenizer after the definitions of RULER and of key-value retrieval; one seed gives "
        "the same samples everywhere. Ctrl-C ends with what is finished.",
    .options = eval_rows, .n_options = COUNT(eval_rows),
    .examples = eval_examples, .n_examples = COUNT(eval_examples),
};

#undef AT

/* ---------------------------------------------------------------- tmx bench */

#define AT(member) .offset = offsetof(bench_options, member)

static const option_spec bench_rows[] = {
    { .group = "Input", .letter = 'm', .name = "model", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "",
      AT(model),
      .help = "model file (GGUF); with --kernels its shapes are what is timed" },
    { .group = "Input", .name = "random-weights", .argument = "SHAPE", .kind = OPTION_TEXT, .fallback = "", AT(random_shape),
      .help = "without a file: a model with random weights, made in a GPU's memory; one of llama-3.1-8b, qwen2.5-7b, qwen3-8b, "
              "llama-3.1-70b-one-layer (two layers of it: prefill computes little of the last)" },
    MODEL_ROWS(bench_options),

    { .group = "Tests", .letter = 'p', .name = "n-prompt", .argument = "N,N", .kind = OPTION_TEXTS, .fallback = "512", AT(prompts),
      .help = "tokens to prefill, one test each: numbers and ranges a-b, a-b+step, a-b*factor; may be repeated; 0 = none. With "
              "--kernels the lengths attention is timed at (default: 512,2048,8192)" },
    { .group = "Tests", .letter = 'n', .name = "n-gen", .argument = "N,N", .kind = OPTION_TEXTS, .fallback = "128", AT(predicts),
      .help = "tokens to decode, one test each, after one token or those of -d; 0 = none" },
    { .group = "Tests", .letter = 'd', .name = "n-depth", .argument = "N,N", .kind = OPTION_TEXTS, .fallback = "0", AT(depths),
      .help = "tokens that are there before a test begins; every test runs at every depth" },
    { .group = "Tests", .name = "pg", .argument = "N,N", .kind = OPTION_TEXTS, .fallback = "none", AT(pairs),
      .help = "one more test: prefill the first number of tokens, then decode the second; may be repeated" },
    { .group = "Tests", .letter = 'r', .name = "repetitions", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = 1000,
      .initial = 5, AT(n_repeats),
      .help = "times each test is taken; in every repetition the plans take turns" },
    { .group = "Tests", .name = "no-warmup", .kind = OPTION_SWITCH, AT(is_cold),
      .help = "take the first time, too; results are checked all the same" },
    { .group = "Tests", .letter = 's', .name = "seed", .argument = "N", .kind = OPTION_INTEGER, .max = 4294967295.0, .initial = 1,
      AT(seed),
      .help = "seed of the token ids, and of the numbers of --kernels" },

    { .group = "Plans", .name = "plan", .argument = "SPEC,SPEC", .kind = OPTION_TEXTS, .fallback = "dense", AT(plans),
      .help = "plans to time side by side, as for tmx run; may be repeated. A comma begins another plan unless a layer's number "
              "follows it: dense,triangle:5,7,10-29,model.plan.json are three" },
    { .group = "Plans", .name = "sink", .argument = "N", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = -1,
      .fallback = "each plan's own", AT(n_sink),
      .help = "first tokens that every row of a triangle or streaming layer sees, in all plans" },
    { .group = "Plans", .name = "window", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = MAX_TOKENS, .initial = -1,
      .fallback = "each plan's own", AT(n_window),
      .help = "tokens of the sliding window of those layers" },
    { .group = "Plans", .name = "last", .argument = "N", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = -1,
      .fallback = "each plan's own", AT(n_last),
      .help = "last rows that see everything in a triangle layer" },
    ESTIMATE_ROW("Plans", bench_options, estimate, "each plan's own"),

    { .group = "Kernels", .name = "kernels", .kind = OPTION_SWITCH, AT(is_kernels),
      .help = "time attention by pattern and the matrix products alone, on every instruction set this CPU has (but scalar: "
              "--isa scalar), beside what loops of registers and a memory copy reach on it" },
    { .group = "Kernels", .name = "head-dim", .argument = "N,N", .kind = OPTION_TEXTS, .fallback = "the model's, or 64,128",
      AT(head_dims),
      .help = "with --kernels: sizes of an attention head" },
    { .group = "Kernels", .name = "gqa", .argument = "N,N", .kind = OPTION_TEXTS, .fallback = "the model's, or 1,4", AT(groups),
      .help = "with --kernels: query heads of each of two KV heads" },
    { .group = "Kernels", .name = "rows", .argument = "N", .kind = OPTION_COUNT, .min = 1, .max = 65536, .initial = -1,
      .fallback = "512", AT(n_rows),
      .help = "with --kernels: rows of activations a product takes" },

    MODEL_DEVICE_ROW(bench_options),
    MACHINE_ROWS(bench_options),
    SESSION_ROWS(bench_options),

    { .group = "Output", .letter = 'o', .name = "output", .argument = "md|csv|json", .kind = OPTION_CHOICE,
      .choices = "md|csv|json", AT(output),
      .help = "form of standard output: a Markdown table, CSV, or a JSON array with every repetition" },
    { .group = "Output", .name = "svg", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(picture),
      .help = "also draw time to first token over length, and each layer's attention time, for every plan to FILE" },
    { .group = "Output", .letter = 'q', .name = "quiet", .kind = OPTION_SWITCH, AT(is_quiet),
      .help = "say nothing on standard error but errors" },
};

static const command_example bench_examples[] = {
    { "what a plan saves, by length", "tmx bench -m model.gguf -p 512-8192*2 -n 0 --plan dense,model.plan.json --svg bench.svg" },
    { "decoding behind a long prompt, for a script", "tmx bench -m model.gguf -p 0 -n 64 -d 512,8000 -o json" },
    { "how much of this machine the kernels use", "tmx bench --kernels -m model.gguf" },
    { "time to first token on a GPU, without a file", "tmx bench --random-weights llama-3.1-8b -p 32768,131072 -n 0 --plan dense,triangle:16-31" },
};

const command bench_command = {
    .name = "bench",
    .usage = "-m MODEL | --random-weights SHAPE | --kernels [-p N,N] [--plan SPEC,SPEC] [options]",
    .summary = "time prefill and decode by plan and length; kernels against this machine's ceilings",
    .description =
        "Times prefill (test ppN) and decoding (tgN) on random token ids, in llama-bench's columns and JSON fields, and adds the "
        "plan, the time to first token, the share that attention has in it, and the peak of memory. t/s is mean and standard "
        "deviation, TTFT the median.\n"
        "A warm-up comes first, and results are checked before time is taken: the same bits in other chunks, on another number of "
        "threads, and in every repetition. Ctrl-C prints the repetitions that are finished and says how many of a test there are. "
        "docs/bench.md explains every column.",
    .options = bench_rows, .n_options = COUNT(bench_rows),
    .examples = bench_examples, .n_examples = COUNT(bench_examples),
};

#undef AT

/* ---------------------------------------------------------------- tmx inspect */

#define AT(member) .offset = offsetof(inspect_options, member)

static const option_spec inspect_rows[] = {
    { .group = "Input", .letter = 'm', .name = "model", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "",
      AT(model),
      .help = "model file (GGUF); a bare argument means the same" },
    MODEL_ROWS(inspect_options),
    { .group = "Memory", .letter = 'c', .name = "ctx-size", .argument = "N", .kind = OPTION_COUNT,
      .max = MAX_TOKENS, .fallback = "the model's context", AT(n_ctx),
      .help = "plan the memory for a context of N tokens; 0 = the model's context" },
    { .group = "Memory", .letter = 't', .name = "threads", .argument = "N", .kind = OPTION_COUNT,
      .max = MAX_THREADS, AT(n_threads),
      .help = "plan the memory for N worker threads; 0 = one for every core" },
    { .group = "Memory", .name = "compute", .argument = TYPE_WORDS, .kind = OPTION_CHOICE, .choices = TYPE_WORDS,
      AT(compute),
      .help = "number type of the products" },
    { .group = "Memory", .name = "cache-type", .argument = TYPE_WORDS, .kind = OPTION_CHOICE, .choices = TYPE_WORDS,
      AT(cache_type),
      .help = "number type of the KV cache" },
    { .group = "Pattern", .name = "pattern", .argument = "SPEC", .kind = OPTION_TEXT, .fallback = "", AT(pattern),
      .help = "run a prompt with this plan (as --plan of tmx run) and say which tiles of 128 rows and 128 keys one head of one "
              "layer attends to; instead of the report on the file" },
    { .group = "Pattern", .letter = 'p', .name = "prompt", .argument = "TEXT", .kind = OPTION_TEXT, .fallback = "", AT(prompt),
      .help = "with --pattern: the prompt" },
    { .group = "Pattern", .letter = 'f', .name = "file", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(prompt_file),
      .help = "with --pattern: read the prompt from FILE; - is standard input" },
    { .group = "Pattern", .name = "layer", .argument = "L", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = -1, .fallback = "",
      AT(layer), .help = "with --pattern: the layer, from 0; of the last one, prefill computes a single row" },
    { .group = "Pattern", .name = "head", .argument = "H", .kind = OPTION_COUNT, .max = MAX_TOKENS, .initial = -1, .fallback = "",
      AT(head), .help = "with --pattern: the query head, from 0" },
    { .group = "Pattern", .name = "svg", .argument = "FILE", .kind = OPTION_TEXT, .fallback = "", AT(picture),
      .help = "with --pattern: draw the tiles to FILE" },
    { .group = "Output", .name = "metadata", .kind = OPTION_SWITCH, AT(show_metadata),
      .help = "list every metadata key and value" },
    { .group = "Output", .name = "tensors", .kind = OPTION_SWITCH, AT(show_tensors),
      .help = "list every tensor: type, shape, bytes, offset" },
    { .group = "Output", .name = "check-tensors", .kind = OPTION_SWITCH, AT(check_tensors),
      .help = "read every tensor and look for NaN and infinity" },
    { .group = "Output", .name = "json", .kind = OPTION_SWITCH, AT(json),
      .help = "print one JSON object" },
};

static const command_example inspect_examples[] = {
    { "can this model run here, with 32K tokens?", "tmx inspect model.gguf -c 32768" },
    { "everything in the file", "tmx inspect model.gguf --metadata --tensors --check-tensors" },
    { "which tiles does a layer visit?", "tmx inspect model.gguf --pattern s2o -f prompt.txt --layer 4 --head 0 --svg tiles.svg" },
};

const command inspect_command = {
    .name = "inspect",
    .usage = "MODEL [options]",
    .summary = "show what is in a model file, whether it can run, and the memory it takes",
    .description =
        "Reads the header of a GGUF file and says what it holds. The exit code is 0 when tmx run can run the model, 2 "
        "when it cannot (standard error says why). A context too large for the memory of this machine is reported, and "
        "leaves the exit code alone.",
    .options = inspect_rows, .n_options = COUNT(inspect_rows),
    .operand = "model",
    .examples = inspect_examples, .n_examples = COUNT(inspect_examples),
};

#undef AT

/* ---------------------------------------------------------------- rules that span options */

static bool refuse_line(char *why, size_t size, const char *line)
{
    snprintf(why, size, "%s", line);
    return false;
}

bool estimate_parse(const char *text, int32_t *rows)
{
    static const char per_chunk[] = "per-chunk", sized[] = "per-chunk:";
    int64_t n;
    *rows = strcmp(text, per_chunk) == 0 ? 2048 : 0;
    if (*rows != 0 || strcmp(text, "one-shot") == 0) return true;
    if (strncmp(text, sized, sizeof sized - 1) != 0 || !parse_integer(text + sizeof sized - 1, &n)) return false;
    if (n < 256 || n > 1 << 24 || n % 128 != 0) return false;
    *rows = (int32_t)n;
    return true;
}

static bool estimate_check(const char *estimate, bool has_plan, char *why, size_t size)
{
    int32_t ignored;
    if (estimate == NULL) return true;
    if (!has_plan) return refuse_line(why, size, "option --estimate needs --plan");
    if (estimate_parse(estimate, &ignored)) return true;
    snprintf(why, size, "option --estimate: '%.40s' is not one-shot, per-chunk or per-chunk:N with N a multiple of 128 from 256 to 16777216", estimate);
    return false;
}

static bool plan_choice_check(const plan_choice *p, char *why, size_t size)
{
    const bool has_sizes = p->n_sink >= 0 || p->n_window >= 0 || p->n_last >= 0;
    if (has_sizes && p->spec == NULL) return refuse_line(why, size, "options --sink, --window and --last need --plan");
    return estimate_check(p->estimate, p->spec != NULL, why, size);
}

static bool conversation_check(const run_options *o, char *why, size_t size)
{
    if (o->ids_file != NULL || o->parse_special || o->assistant != NULL || o->compare || o->json || o->show_tokens || o->logits_file != NULL) {
        return refuse_line(why, size, "option -i excludes --ids, --special, --assistant, --compare, --json, --tokens and --logits");
    }
    if (o->files.n > 1) return refuse_line(why, size, "option -i takes one first turn");
    if (o->files.n == 1 && strcmp(o->files.items[0], "-") == 0) return refuse_line(why, size, "option -i reads standard input by itself");
    return true;
}

bool run_options_check(const run_options *o, char *why, size_t size)
{
    if (o->model == NULL) return refuse_line(why, size, "no model: give -m FILE");
    const int n_sources = (o->prompt != NULL) + (o->files.n > 0) + (o->ids_file != NULL);
    if (n_sources == 0 && !o->is_conversation) return refuse_line(why, size, "no prompt: give -p TEXT, -f FILE, --ids FILE or -i");
    if (n_sources > 1) return refuse_line(why, size, "give only one of -p, -f and --ids");
    if (o->ids_file != NULL && (o->is_chat || o->parse_special)) {
        return refuse_line(why, size, "--ids excludes --chat and --special: its prompt is not text");
    }
    if (o->is_chat && o->parse_special) {
        return refuse_line(why, size, "--chat excludes --special: control tokens come from the chat format only");
    }
    if (o->is_conversation && !conversation_check(o, why, size)) return false;
    if (!o->is_chat && !o->is_conversation && o->system != NULL) return refuse_line(why, size, "option --system needs --chat or -i");
    if (!o->is_chat && o->assistant != NULL) return refuse_line(why, size, "option --assistant needs --chat");
    if (o->compare && o->plan.spec == NULL) return refuse_line(why, size, "option --compare needs --plan");
    if (o->compare && o->files.n > 1) return refuse_line(why, size, "option --compare takes one prompt");
    if (o->show_tokens && o->json) return refuse_line(why, size, "--tokens and --json exclude each other");
    if (o->is_verbose && o->is_quiet) return refuse_line(why, size, "--verbose and --quiet exclude each other");
    for (int32_t i = 0; i < o->stops.n; i++) {
        if (o->stops.items[i][0] == '\0') return refuse_line(why, size, "option --stop: the text is empty");
    }
    int n_stdin = o->ids_file != NULL && o->ids_file[0] == '-' && o->ids_file[1] == '\0';
    for (int32_t i = 0; i < o->files.n; i++) n_stdin += o->files.items[i][0] == '-' && o->files.items[i][1] == '\0';
    if (n_stdin > 1) return refuse_line(why, size, "option -f/--file: standard input can be read only once");
    return plan_choice_check(&o->plan, why, size);
}

bool plan_options_check(const plan_options *o, char *why, size_t size)
{
    if (o->list_presets) return true;
    if (o->model == NULL) return refuse_line(why, size, "no model: give -m FILE");
    if (o->search != NULL) {
        if (strcmp(o->search, "minference") != 0) return refuse_line(why, size, "option --search: the one method is minference");
        if (o->plan.spec != NULL || o->plan.estimate != NULL || o->probe != NULL || o->budget != NULL || o->n_layers >= 0 || o->order != NULL || o->picture != NULL
            || o->methods != NULL || o->note != NULL || o->curve_step > 0 || o->objective != OBJECTIVE_LAYERS) {
            return refuse_line(why, size, "option --search takes --keep, --task, --tokens, --samples and --seed, and no plan or probe");
        }
        if (!(o->keep > 0)) return refuse_line(why, size, "option --keep: expected more than 0, up to 1");
        if (o->output == NULL) return refuse_line(why, size, "option --search needs -o FILE");
        return true;
    }
    if (o->plan.spec == NULL && o->probe == NULL) {
        return refuse_line(why, size, "no plan: give --plan SPEC, or --probe FILE and --layers K or --budget kl=X");
    }
    if (o->plan.spec != NULL && o->probe != NULL) return refuse_line(why, size, "give only one of --plan and --probe");
    if (o->probe != NULL && (o->n_layers < 0) == (o->budget == NULL)) {
        return refuse_line(why, size, "option --probe needs either --layers K or --budget kl=X");
    }
    if (o->probe == NULL && o->budget != NULL) return refuse_line(why, size, "option --budget needs --probe FILE");
    if (o->budget == NULL && (o->objective != OBJECTIVE_LAYERS || o->curve_step > 0 || o->task != NULL || o->n_tokens > 0
                              || o->picture != NULL || o->methods != NULL)) {
        return refuse_line(why, size, "options --objective, --methods, --curve, --task, --tokens and --svg need --budget");
    }
    if (o->probe == NULL && o->n_layers >= 0) return refuse_line(why, size, "option --layers needs --probe FILE");
    if (o->probe == NULL && o->order != NULL) return refuse_line(why, size, "option --order needs --probe FILE");
    if (o->note != NULL && o->output == NULL) return refuse_line(why, size, "option --note needs -o FILE");
    return estimate_check(o->plan.estimate, o->plan.spec != NULL || o->methods != NULL, why, size);
}

bool probe_options_check(const probe_options *o, char *why, size_t size)
{
    if (o->model == NULL) return refuse_line(why, size, "no model: give -m FILE");
    if (o->prompts != NULL && o->kind != 0) return refuse_line(why, size, "give only one of --prompts and --kind");
    if (o->is_resumed && o->output == NULL) return refuse_line(why, size, "option --resume needs -o FILE");
    return true;
}

bool eval_options_check(const eval_options *o, char *why, size_t size)
{
    if (o->list_tasks) return true;
    if (o->model == NULL) return refuse_line(why, size, "no model: give -m FILE");
    if (o->tasks == NULL && o->data.n == 0 && o->texts.n == 0) {
        return refuse_line(why, size, "nothing to evaluate: give --tasks, --data or --perplexity");
    }
    if (o->lengths != NULL && o->tasks == NULL && o->texts.n == 0) {
        return refuse_line(why, size, "option --lengths needs --tasks or --perplexity");
    }
    if (o->data.n == 0 && (o->metric != 0 || o->n_predict != 0)) {
        return refuse_line(why, size, "options --metric and --predict need --data");
    }
    if (o->sweep != NULL && o->plans.n != 1) return refuse_line(why, size, "option --sweep needs one --plan");
    const bool has_sizes = o->n_sink >= 0 || o->n_window >= 0 || o->n_last >= 0;
    if (has_sizes && o->plans.n == 0) return refuse_line(why, size, "options --sink, --window and --last need --plan");
    return estimate_check(o->estimate, o->plans.n > 0, why, size);
}

static bool read_numbers(number_list *list, const char *option, const text_list *texts, const char *fallback, int32_t min,
                         int32_t max, char *why, size_t size)
{
    list->n = 0;
    if (texts->n == 0) return numbers_add(list, option, fallback, min, max, why, size);
    for (int32_t i = 0; i < texts->n; i++) {
        if (!numbers_add(list, option, texts->items[i], min, max, why, size)) return false;
    }
    return true;
}

static bool read_pairs(bench_options *o, char *why, size_t size)
{
    for (int32_t i = 0; i < o->pairs.n; i++) {
        number_list pair = { .n = 0 };
        if (!numbers_add(&pair, "--pg", o->pairs.items[i], 1, (int32_t)MAX_TOKENS, why, size)) return false;
        if (pair.n != 2) {
            snprintf(why, size, "option --pg: '%.40s' is not two numbers, of prompt and generation", o->pairs.items[i]);
            return false;
        }
        o->pair_prompts[i] = pair.items[0];
        o->pair_predicts[i] = pair.items[1];
    }
    return true;
}

bool bench_options_check(bench_options *o, char *why, size_t size)
{
    const bool is_kernels = o->is_kernels;
    const int32_t most = (int32_t)MAX_TOKENS;
    if (!is_kernels && o->model == NULL && o->random_shape == NULL) {
        return refuse_line(why, size, "no model: give -m FILE, --random-weights SHAPE, or --kernels");
    }
    if (o->random_shape != NULL && (o->model != NULL || is_kernels || o->changes.loras.n > 0 || o->changes.rope_freq_base != 0)) {
        return refuse_line(why, size, "option --random-weights excludes -m, --kernels, --lora, --lora-scaled and --rope-freq-base");
    }
    if (o->random_shape != NULL && o->device != NULL && strcmp(o->device, "cpu") == 0) {
        return refuse_line(why, size, "option --random-weights: such a model is made on a GPU only, and --device is cpu");
    }
    if (is_kernels && (o->predicts.n > 0 || o->depths.n > 0 || o->pairs.n > 0 || o->plans.n > 0 || o->picture != NULL || o->is_cold)) {
        return refuse_line(why, size, "option --kernels excludes -n, -d, --pg, --plan, --svg and --no-warmup");
    }
    if (is_kernels && (o->compute != 0 || o->cache_type != 0 || o->n_chunk != 0)) {
        return refuse_line(why, size, "option --kernels excludes --compute, --cache-type and --chunk: it times every type, whole");
    }
    if (!is_kernels && (o->head_dims.n > 0 || o->groups.n > 0 || o->n_rows >= 0)) {
        return refuse_line(why, size, "options --head-dim, --gqa and --rows need --kernels");
    }
    const bool has_sizes = o->n_sink >= 0 || o->n_window >= 0 || o->n_last >= 0;
    if (has_sizes && o->plans.n == 0) return refuse_line(why, size, "options --sink, --window and --last need --plan");
    if (!estimate_check(o->estimate, o->plans.n > 0, why, size)) return false;
    return read_numbers(&o->prompt_list, "-p/--n-prompt", &o->prompts, is_kernels ? "512,2048,8192" : "512", is_kernels, most, why, size)
        && read_numbers(&o->predict_list, "-n/--n-gen", &o->predicts, "128", 0, most, why, size)
        && read_numbers(&o->depth_list, "-d/--n-depth", &o->depths, "0", 0, most, why, size)
        && read_numbers(&o->head_dim_list, "--head-dim", &o->head_dims, "64,128", 1, 512, why, size)
        && read_numbers(&o->group_list, "--gqa", &o->groups, "1,4", 1, 64, why, size)
        && read_pairs(o, why, size);
}

bool inspect_options_check(const inspect_options *o, char *why, size_t size)
{
    if (o->model == NULL) return refuse_line(why, size, "no model: give a FILE");
    const bool has_prompt = o->prompt != NULL || o->prompt_file != NULL;
    if (o->pattern == NULL) {
        if (has_prompt || o->layer >= 0 || o->head >= 0 || o->picture != NULL) {
            return refuse_line(why, size, "-p, -f, --layer, --head and --svg go with --pattern");
        }
        return true;
    }
    if (!has_prompt || (o->prompt != NULL && o->prompt_file != NULL)) return refuse_line(why, size, "--pattern takes one prompt: give -p or -f");
    if (o->layer < 0 || o->head < 0) return refuse_line(why, size, "--pattern needs --layer and --head");
    if (o->show_tensors || o->show_metadata || o->check_tensors || o->json) {
        return refuse_line(why, size, "--pattern goes without --metadata, --tensors, --check-tensors and --json");
    }
    return true;
}
