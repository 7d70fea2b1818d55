#include "commands.h"
#include "inspect_pattern.h"
#include "model_choice.h"
#include "report.h"

#include <stdlib.h>
#include <string.h>

enum { LABEL_COLUMNS = 16, VALUE_BYTES = 1024, MAX_TYPES = 64 };

/* What of a file tmx run would care about. */
typedef struct verdict {
    bool can_run;
    tmx_model_info info;           /* if can_run */
    tmx_error why;                 /* if not */
    int32_t n_ctx, n_threads;
    tmx_memory memory;             /* if can_run */
    uint64_t resident_bytes;       /* all of it and the mapped file, whose weights are read in place for single rows */
} verdict;

typedef struct type_count {
    const char *name;
    uint64_t n_bytes;
    int32_t n_tensors;
    bool is_supported;
} type_count;

/* The value of a metadata key as text, NULL if the file has no such key. */
static const char *find_value(const tmx_file *file, const char *key, char *buf, size_t size)
{
    for (int32_t i = 0; i < tmx_file_n_keys(file); i++) {
        if (strcmp(tmx_file_key(file, i), key) == 0) return tmx_file_value_text(file, i, buf, size);
    }
    return NULL;
}

static int32_t count_types(const tmx_file *file, type_count types[MAX_TYPES])
{
    int32_t n = 0;
    for (int32_t i = 0; i < tmx_file_n_tensors(file); i++) {
        tmx_tensor_info t;
        int32_t at = 0;
        if (tmx_file_tensor(file, i, &t, NULL) != TMX_OK) continue;
        while (at < n && strcmp(types[at].name, t.type_name) != 0) at++;
        if (at == MAX_TYPES) continue;
        if (at == n) types[n++] = (type_count){ .name = t.type_name, .is_supported = t.is_supported };
        types[at].n_tensors++;
        types[at].n_bytes += t.n_bytes;
    }
    return n;
}

static int judge(const inspect_options *o, const tmx_file *file, verdict *v)
{
    *v = (verdict){ .n_threads = o->n_threads };
    tmx_lora loras[MAX_TEXTS];
    tmx_model_params model_params = { 0 };
    model_choose(&o->changes, loras, &model_params);
    v->can_run = tmx_model_probe_file(file, &model_params, &v->info, &v->why) == TMX_OK;
    if (!v->can_run) return 0;
    tmx_error err;
    tmx_pool *pool;
    if (tmx_pool_create(&pool, o->n_threads, &err) != TMX_OK) return complain_error(&err);
    v->n_threads = tmx_pool_n_threads(pool);
    tmx_pool_free(pool);
    v->n_ctx = o->n_ctx > 0 ? o->n_ctx : v->info.n_ctx_train;
    const tmx_session_params params = { .n_ctx = v->n_ctx, .kv_type = (tmx_type)o->cache_type };
    const tmx_status status = tmx_memory_plan(&v->info, (tmx_compute)o->compute, TMX_ISA_AUTO, &params, v->n_threads,
                                              &v->memory, &err);
    v->resident_bytes = v->memory.total_bytes + tmx_file_bytes(file);
    return status == TMX_OK ? 0 : complain_error(&err);
}

static bool fits(const verdict *v) { return v->memory.available_bytes == 0 || v->resident_bytes <= v->memory.available_bytes; }

/* ---------------------------------------------------------------- text */

static void print_label(const char *label) { printf("%-*s", LABEL_COLUMNS, label); }

static void print_value(const char *label, const tmx_file *file, const char *key)
{
    char value[VALUE_BYTES];
    if (find_value(file, key, value, sizeof value) == NULL) return;
    print_label(label);
    print_safe(stdout, value);
    putchar('\n');
}

static void print_tokenizer(const tmx_file *file)
{
    static const struct { const char *key, *before; } parts[] = {
        { "tokenizer.ggml.model", "" }, { "tokenizer.ggml.pre", ", pre-tokenizer " },
        { "tokenizer.ggml.bos_token_id", ", BOS " }, { "tokenizer.ggml.eos_token_id", ", EOS " },
    };
    char value[VALUE_BYTES];
    print_label("tokenizer");
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (find_value(file, parts[i].key, value, sizeof value) == NULL) continue;
        printf("%s", parts[i].before);
        print_safe(stdout, value);
    }
    const bool has_template = find_value(file, "tokenizer.chat_template", value, sizeof value) != NULL;
    printf(", %s\n", has_template ? "with a chat template" : "no chat template");
}

static void print_parts(const tmx_file *file)
{
    const int32_t n = tmx_file_n_parts(file);
    for (int32_t i = 0; i < n && n > 1; i++) {
        tmx_part_info part;
        char size[32];
        if (tmx_file_part(file, i, &part, NULL) != TMX_OK) continue;
        print_label(i == 0 ? "parts" : "");
        print_safe(stdout, part.name);
        printf(", %s, %d tensors\n", text_of_bytes(part.n_bytes, size), part.n_tensors);
    }
}

static void print_types(const tmx_file *file)
{
    type_count types[MAX_TYPES];
    const int32_t n = count_types(file, types);
    for (int32_t i = 0; i < n; i++) {
        char size[32];
        print_label(i == 0 ? "tensor types" : "");
        printf("%-8s %5d tensors, %s%s\n", types[i].name, types[i].n_tensors, text_of_bytes(types[i].n_bytes, size),
               types[i].is_supported ? "" : ", not supported");
    }
}

static void print_model_facts(const inspect_options *o, const verdict *v)
{
    const tmx_model_info *m = &v->info;
    char size[3][32];
    print_label("layers");
    printf("%d, embedding %d, feed-forward %d\n", m->n_layers, m->n_embd, m->n_ff);
    print_label("attention");
    printf("%d heads, %d KV heads, head dimension %d, RoPE base %g\n", m->n_heads, m->n_kv_heads, m->head_dim,
           (double)m->rope_freq_base);
    if (m->n_window > 0 && m->window_period > 0) {
        print_label("windows");
        printf("%d tokens, in all layers but every %dth; a plan cannot change them\n", m->n_window, m->window_period);
    } else if (m->n_window > 0) {
        print_label("windows");
        printf("%d tokens, in every layer; a plan cannot change them\n", m->n_window);
    }
    if (m->n_experts > 0) {
        print_label("experts");
        printf("%d a layer, %d for a token\n", m->n_experts, m->n_experts_used);
    }
    print_label("parameters");
    printf("%.4g million\n", (double)m->n_params / 1e6);
    for (int32_t i = 0; i < o->changes.loras.n; i++) {
        print_label(i == 0 ? "adapters" : "");
        print_safe(stdout, o->changes.loras.items[i]);
        printf(", scale %g\n", o->changes.loras.scales[i]);
    }
    print_label("vocabulary");
    printf("%d tokens\n", m->n_vocab);
    print_label("context");
    printf("%d tokens\n", m->n_ctx_train);
    print_label("memory");
    printf("%s for %d tokens and %d threads", text_of_bytes(v->resident_bytes, size[0]), v->n_ctx, v->n_threads);
    if (v->memory.available_bytes != 0) {
        printf(": %s (%s available)", fits(v) ? "fits" : "does not fit",
               text_of_bytes(v->memory.available_bytes, size[1]));
    }
    putchar('\n');
    print_label("");
    printf("weights %s, mapped file %s, ", text_of_bytes(v->memory.weight_bytes, size[0]),
           text_of_bytes(v->resident_bytes - v->memory.total_bytes, size[1]));
    if (v->memory.merged_bytes > 0) printf("adapted tensors %s, ", text_of_bytes(v->memory.merged_bytes, size[0]));
    printf("KV cache %s, workspace %s\n", text_of_bytes(v->memory.kv_bytes, size[1]),
           text_of_bytes(v->memory.workspace_bytes, size[2]));
}

static void print_metadata(const tmx_file *file)
{
    char value[VALUE_BYTES];
    printf("\nmetadata\n");
    for (int32_t i = 0; i < tmx_file_n_keys(file); i++) {
        fputs("  ", stdout);
        print_safe(stdout, tmx_file_key(file, i));
        fputs(" = ", stdout);
        print_safe(stdout, tmx_file_value_text(file, i, value, sizeof value));
        putchar('\n');
    }
}

static void print_tensors(const tmx_file *file)
{
    const bool has_parts = tmx_file_n_parts(file) > 1;
    printf("\n%-8s %-22s %14s %s%14s  %s\n", "type", "shape", "bytes", has_parts ? " part " : "", "offset", "tensor");
    for (int32_t i = 0; i < tmx_file_n_tensors(file); i++) {
        tmx_tensor_info t;
        char shape[96] = "";
        int n = 0;
        if (tmx_file_tensor(file, i, &t, NULL) != TMX_OK) continue;
        for (int32_t d = 0; d < t.n_dims; d++) {
            n += snprintf(shape + n, sizeof shape - (size_t)n, "[%lld]", (long long)t.shape[d]);
        }
        printf("%-8s %-22s %14llu ", t.type_name, shape, (unsigned long long)t.n_bytes);
        if (has_parts) printf("%5d ", t.part + 1);
        printf("%14llu  ", (unsigned long long)t.offset_bytes);
        print_safe(stdout, t.name);
        putchar('\n');
    }
}

static void print_text(const inspect_options *o, const tmx_file *file, const verdict *v, const tmx_error *check)
{
    char size[32];
    print_label("file");
    print_safe(stdout, o->model);
    printf(", %s, GGUF version %d, %d keys, %d tensors\n", text_of_bytes(tmx_file_bytes(file), size),
           tmx_file_version(file), tmx_file_n_keys(file), tmx_file_n_tensors(file));
    print_parts(file);
    print_value("name", file, "general.name");
    print_value("architecture", file, "general.architecture");
    if (v->can_run) print_model_facts(o, v);
    print_tokenizer(file);
    print_types(file);
    if (o->check_tensors) {
        print_label("check");
        printf("%s\n", check->code == TMX_OK ? "no NaN, no infinity" : check->text);
    }
    print_label("can run");
    printf("%s%s\n", v->can_run ? "yes" : "no: ", v->can_run ? "" : v->why.text);
    if (o->show_metadata) print_metadata(file);
    if (o->show_tensors) print_tensors(file);
}

/* ---------------------------------------------------------------- JSON */

static void json_model(json_writer *j, const inspect_options *o, const verdict *v)
{
    const tmx_model_info *m = &v->info;
    json_begin_object(j, "model");
    json_count(j, "n_layers", m->n_layers);
    json_count(j, "n_embd", m->n_embd);
    json_count(j, "n_heads", m->n_heads);
    json_count(j, "n_kv_heads", m->n_kv_heads);
    json_count(j, "head_dim", m->head_dim);
    json_count(j, "n_ff", m->n_ff);
    json_count(j, "n_vocab", m->n_vocab);
    json_count(j, "n_ctx_train", m->n_ctx_train);
    json_number(j, "rope_freq_base", (double)m->rope_freq_base);
    json_number(j, "rms_eps", (double)m->rms_eps);
    json_size(j, "n_params", m->n_params);
    json_adapters(j, &o->changes);
    json_end(j);
    json_begin_object(j, "memory");
    json_count(j, "n_ctx", v->n_ctx);
    json_count(j, "n_threads", v->n_threads);
    json_size(j, "weight_bytes", v->memory.weight_bytes);
    json_size(j, "merged_bytes", v->memory.merged_bytes);
    json_size(j, "kv_bytes", v->memory.kv_bytes);
    json_size(j, "workspace_bytes", v->memory.workspace_bytes);
    json_size(j, "total_bytes", v->memory.total_bytes);
    json_size(j, "resident_bytes", v->resident_bytes);
    json_size(j, "available_bytes", v->memory.available_bytes);
    json_bool(j, "fits", fits(v));
    json_end(j);
}

static void json_tensors(json_writer *j, const tmx_file *file)
{
    json_begin_array(j, "tensors");
    for (int32_t i = 0; i < tmx_file_n_tensors(file); i++) {
        tmx_tensor_info t;
        if (tmx_file_tensor(file, i, &t, NULL) != TMX_OK) continue;
        json_begin_object(j, NULL);
        json_text(j, "name", t.name);
        json_text(j, "type", t.type_name);
        json_begin_array(j, "shape");
        for (int32_t d = 0; d < t.n_dims; d++) json_count(j, NULL, t.shape[d]);
        json_end(j);
        json_size(j, "n_bytes", t.n_bytes);
        json_size(j, "offset_bytes", t.offset_bytes);
        json_count(j, "part", t.part);
        json_end(j);
    }
    json_end(j);
}

static void json_parts(json_writer *j, const tmx_file *file)
{
    json_begin_array(j, "parts");
    for (int32_t i = 0; i < tmx_file_n_parts(file); i++) {
        tmx_part_info part;
        if (tmx_file_part(file, i, &part, NULL) != TMX_OK) continue;
        json_begin_object(j, NULL);
        json_text(j, "name", part.name);
        json_size(j, "n_bytes", part.n_bytes);
        json_count(j, "n_tensors", part.n_tensors);
        json_end(j);
    }
    json_end(j);
}

static void json_file(json_writer *j, const inspect_options *o, const tmx_file *file)
{
    char value[VALUE_BYTES];
    type_count types[MAX_TYPES];
    const int32_t n_types = count_types(file, types);
    json_text(j, "path", o->model);
    json_size(j, "n_bytes", tmx_file_bytes(file));
    json_count(j, "gguf_version", tmx_file_version(file));
    json_text(j, "name", find_value(file, "general.name", value, sizeof value));
    json_text(j, "architecture", find_value(file, "general.architecture", value, sizeof value));
    json_text(j, "tokenizer", find_value(file, "tokenizer.ggml.model", value, sizeof value));
    json_text(j, "pre_tokenizer", find_value(file, "tokenizer.ggml.pre", value, sizeof value));
    json_count(j, "n_keys", tmx_file_n_keys(file));
    json_count(j, "n_tensors", tmx_file_n_tensors(file));
    json_parts(j, file);
    json_begin_array(j, "tensor_types");
    for (int32_t i = 0; i < n_types; i++) {
        json_begin_object(j, NULL);
        json_text(j, "type", types[i].name);
        json_count(j, "n_tensors", types[i].n_tensors);
        json_size(j, "n_bytes", types[i].n_bytes);
        json_bool(j, "is_supported", types[i].is_supported);
        json_end(j);
    }
    json_end(j);
}

static void print_json(const inspect_options *o, const tmx_file *file, const verdict *v, const tmx_error *check)
{
    json_writer j = { .out = stdout };
    json_begin_object(&j, NULL);
    json_text(&j, "version", tmx_version());
    json_file(&j, o, file);
    json_bool(&j, "can_run", v->can_run);
    json_text(&j, "reason", v->can_run ? NULL : v->why.text);
    if (v->can_run) json_model(&j, o, v);
    if (o->check_tensors) {
        if (check->code == TMX_E_UNSUPPORTED) json_text(&j, "tensors_are_finite", NULL);     /* nobody knows */
        else json_bool(&j, "tensors_are_finite", check->code == TMX_OK);
        json_text(&j, "check", check->code == TMX_OK ? NULL : check->text);
    }
    if (o->show_metadata) {
        char value[VALUE_BYTES];
        json_begin_object(&j, "metadata");
        for (int32_t i = 0; i < tmx_file_n_keys(file); i++) {
            json_text(&j, tmx_file_key(file, i), tmx_file_value_text(file, i, value, sizeof value));
        }
        json_end(&j);
    }
    if (o->show_tensors) json_tensors(&j, file);
    json_end(&j);
}

/* ---------------------------------------------------------------- the command */

static int inspect(const inspect_options *o, const tmx_file *file)
{
    verdict v;
    tmx_error check = { .code = TMX_OK };
    const int code = judge(o, file, &v);
    if (code != 0) return code;
    if (o->check_tensors) tmx_file_check_tensors(file, &check);
    if (o->json) print_json(o, file, &v, &check);
    else print_text(o, file, &v, &check);
    flush_output();                /* the report stands before the complaint when both go to one terminal */
    if (!v.can_run) return complain_error(&v.why);
    return complain_error(&check);
}

int inspect_main(const inspect_options *o)
{
    if (o->pattern != NULL) return inspect_pattern(o);
    tmx_error err;
    tmx_file *file;
    if (tmx_file_open(&file, o->model, &err) != TMX_OK) return complain_error(&err);
    const int code = inspect(o, file);
    tmx_file_close(file);
    return code;
}
