#include "probe_prompts.h"

#include "report.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LINE = 1 << 26, MAX_PROMPTS = 100000 };

void probe_sample_free(probe_sample *sample)
{
    free(sample->ids);
    sample->ids = NULL;
}

void probe_prompts_free(probe_prompts *p)
{
    for (int32_t i = 0; p->samples != NULL && i < p->n_samples; i++) probe_sample_free(&p->samples[i]);
    free(p->samples);
    p->samples = NULL;
}

/* The answer's first token is what follows the prompt's ids in the ids of both together. */
static bool find_target(const int32_t *prompt, size_t n_prompt, const int32_t *both, size_t n_both, int32_t *target)
{
    if (prompt == NULL || both == NULL || n_both <= n_prompt || memcmp(prompt, both, n_prompt * sizeof *prompt) != 0) return false;
    *target = both[n_prompt];
    return true;
}

/* ---------------------------------------------------------------- a file of prompts */

typedef struct line_place { const char *path; int32_t line; } line_place;

static int tokenize(const line_place *at, const tmx_model *model, const char *text, size_t n_bytes, int32_t **ids, size_t *n_ids)
{
    const uint32_t flags = TMX_TOKEN_BOS | TMX_TOKEN_SPECIAL;
    tmx_error err;
    *ids = NULL;
    if (tmx_tokenize(model, text, n_bytes, flags, NULL, 0, n_ids, &err) != TMX_OK) return complain_error(&err);
    if (*n_ids > INT32_MAX) return complain(EXIT_INPUT, "%s:%d: the prompt has %zu tokens", at->path, at->line, *n_ids);
    *ids = malloc((*n_ids + 1) * sizeof **ids);
    if (*ids == NULL) return complain(EXIT_RESOURCES, "%s:%d: out of memory for %zu token ids", at->path, at->line, *n_ids);
    return tmx_tokenize(model, text, n_bytes, flags, *ids, *n_ids, n_ids, &err) == TMX_OK ? 0 : complain_error(&err);
}

static int sample_of_texts(const line_place *at, const tmx_model *model, const json_t *prompt, const json_t *answer,
                           probe_sample *sample)
{
    const size_t n_prompt = json_string_length(prompt), n_answer = json_string_length(answer);
    int32_t *ids = NULL, *both = NULL;
    size_t n_ids = 0, n_both = 0;
    char *text = malloc(n_prompt + n_answer + 1);
    if (text == NULL) return complain(EXIT_RESOURCES, "%s:%d: out of memory for its text", at->path, at->line);
    memcpy(text, json_string_value(prompt), n_prompt);
    memcpy(text + n_prompt, json_string_value(answer), n_answer);
    int code = tokenize(at, model, text, n_prompt, &ids, &n_ids);
    if (code == 0) code = tokenize(at, model, text, n_prompt + n_answer, &both, &n_both);
    if (code == 0 && n_ids == 0) code = complain(EXIT_INPUT, "%s:%d: the prompt is empty", at->path, at->line);
    if (code == 0 && !find_target(ids, n_ids, both, n_both, &sample->target)) {
        code = complain(EXIT_INPUT, "%s:%d: the answer adds no token of its own to the prompt's (it is empty, or its first letters join "
                        "the prompt's last token; let the answer begin with the space)", at->path, at->line);
    }
    free(text);
    free(both);
    if (code == 0) {
        sample->ids = ids;
        sample->n_ids = (int32_t)n_ids;
    } else {
        free(ids);
    }
    return code;
}

static int sample_of_line(const line_place *at, const tmx_model *model, const char *line, size_t n_bytes, probe_sample *sample)
{
    json_error_t e;
    json_t *root = json_loadb(line, n_bytes, JSON_REJECT_DUPLICATES, &e);
    if (root == NULL) {
        if (json_error_code(&e) == json_error_out_of_memory) {
            return complain(EXIT_RESOURCES, "%s:%d: out of memory", at->path, at->line);
        }
        return complain(EXIT_INPUT, "%s:%d:%d: %s", at->path, at->line, e.column, e.text);
    }
    const json_t *prompt = json_object_get(root, "prompt"), *answer = json_object_get(root, "answer");
    int code;
    if (!json_is_string(prompt) || !json_is_string(answer)) {
        code = complain(EXIT_INPUT, "%s:%d: expected {\"prompt\": \"...\", \"answer\": \"...\"}", at->path, at->line);
    } else {
        code = sample_of_texts(at, model, prompt, answer, sample);
    }
    json_decref(root);
    return code;
}

int probe_prompts_check_length(const char *what, int32_t n_tokens, const tmx_probe_sections *sections)
{
    tmx_probe_cells cells;
    tmx_error err;
    if (tmx_probe_count_cells(sections, n_tokens, &cells, &err) != TMX_OK) return complain_error(&err);
    if (cells.middle > 0) return 0;
    return complain(EXIT_INPUT, "%s: a prompt of %d tokens has no Middle section beside sink %d, window %d and last %d", what, n_tokens,
                    sections->n_sink, sections->n_window, sections->n_last);
}

static int check_length(const line_place *at, const probe_sample *s, int32_t n_tokens, const tmx_probe_sections *sections)
{
    char what[512];
    if (n_tokens > 0 && s->n_ids > n_tokens) {
        return complain(EXIT_INPUT, "%s:%d: the prompt has %d tokens, --tokens says at most %d", at->path, at->line, s->n_ids, n_tokens);
    }
    snprintf(what, sizeof what, "%s:%d", at->path, at->line);
    return probe_prompts_check_length(what, s->n_ids, sections);
}

static uint64_t hash_line(uint64_t hash, const char *line, size_t n_bytes)     /* FNV-1a */
{
    for (size_t i = 0; i < n_bytes; i++) hash = (hash ^ (unsigned char)line[i]) * 0x100000001b3u;
    return hash;
}

static int read_lines(probe_prompts *p, FILE *file, const char *path, int32_t n_tokens, const tmx_probe_sections *sections)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n_bytes;
    line_place at = { .path = path };
    uint64_t hash = 0xcbf29ce484222325u;
    int code = 0;
    while (code == 0 && (n_bytes = getline(&line, &cap, file)) > 0) {
        at.line++;
        if (strspn(line, " \t\r\n") == (size_t)n_bytes) continue;
        if (n_bytes > MAX_LINE) code = complain(EXIT_INPUT, "%s:%d: a line of more than 64 MiB", path, at.line);
        else if (p->n_samples == MAX_PROMPTS) code = complain(EXIT_INPUT, "%s: more than %d lines", path, MAX_PROMPTS);
        if (code != 0) break;
        probe_sample *samples = realloc(p->samples, ((size_t)p->n_samples + 1) * sizeof *samples);
        if (samples == NULL) {
            code = complain(EXIT_RESOURCES, "%s:%d: out of memory", path, at.line);
            break;
        }
        p->samples = samples;
        hash = hash_line(hash, line, (size_t)n_bytes);
        code = sample_of_line(&at, p->model, line, (size_t)n_bytes, &p->samples[p->n_samples]);
        if (code != 0) break;
        const probe_sample *s = &p->samples[p->n_samples++];
        if (s->n_ids > p->n_tokens) p->n_tokens = s->n_ids;
        code = check_length(&at, s, n_tokens, sections);
    }
    free(line);
    if (code == 0 && ferror(file)) code = complain(EXIT_INPUT, "%s: %s", path, strerror(errno));
    if (code == 0 && p->n_samples == 0) code = complain(EXIT_INPUT, "%s: no prompts", path);
    snprintf(p->source, sizeof p->source, "prompts:%d:%016llx", p->n_samples, (unsigned long long)hash);
    return code;
}

int probe_prompts_read(probe_prompts *p, const char *path, int32_t n_tokens, const tmx_probe_sections *sections,
                       const tmx_model *model)
{
    *p = (probe_prompts){ .model = model };
    FILE *file = fopen(path, "r");
    if (file == NULL) return complain(EXIT_INPUT, "%s: %s", path, strerror(errno));
    const int code = read_lines(p, file, path, n_tokens, sections);
    fclose(file);
    return code;
}

/* ---------------------------------------------------------------- generated */

int probe_prompts_generate(probe_prompts *p, const char *kind, int32_t n_tokens, int64_t seed, const tmx_model *model)
{
    *p = (probe_prompts){ .model = model, .kind = task_find(kind), .is_chat = tmx_chat_format(model) != NULL, .seed = seed,
                          .n_samples = INT32_MAX, .n_tokens = n_tokens };
    snprintf(p->source, sizeof p->source, "%s", kind);
    if (p->kind == NULL) return complain(EXIT_INPUT, "no prompts of kind '%s' can be made", kind);
    return 0;
}

/* The sample with its answer put behind the turn begun. */
static tmx_status ids_with_answer(const task_sample *s, const probe_prompts *p, int32_t **ids, int32_t *n_ids, tmx_error *err)
{
    const bool is_begun = s->assistant[0] != '\0';
    const size_t n = strlen(s->assistant) + strlen(s->answers[0]) + 2;
    char *assistant = malloc(n);
    if (assistant == NULL) {
        *err = (tmx_error){ .code = TMX_E_MEMORY, .text = "out of memory for an answer" };
        return TMX_E_MEMORY;
    }
    snprintf(assistant, n, "%s%s%s", s->assistant, is_begun ? " " : "", s->answers[0]);
    const task_sample answered = { .user = s->user, .assistant = assistant, .answers = s->answers, .n_answers = s->n_answers };
    const tmx_status status = task_prompt_ids(&answered, p->model, p->is_chat, ids, n_ids, err);
    free(assistant);
    return status;
}

static int generate(const probe_prompts *p, int32_t i, probe_sample *sample)
{
    task_sample made = { 0 };
    tmx_error err;
    int32_t *ids = NULL, *both = NULL, n_ids = 0, n_both = 0;
    tmx_status status = task_make(p->kind, p->model, (uint64_t)p->seed, i, p->n_tokens, p->is_chat, &made, &err);
    if (status == TMX_OK) status = task_prompt_ids(&made, p->model, p->is_chat, &ids, &n_ids, &err);
    if (status == TMX_OK) status = ids_with_answer(&made, p, &both, &n_both, &err);
    int code = status == TMX_OK ? 0 : complain_error(&err);
    if (code == 0 && !find_target(ids, (size_t)n_ids, both, (size_t)n_both, &sample->target)) {
        code = complain(EXIT_INPUT, "sample %d of %s: the tokenizer joins prompt and answer", i, p->kind->name);
    }
    free(both);
    task_sample_free(&made);
    if (code == 0) {
        sample->ids = ids;
        sample->n_ids = n_ids;
    } else {
        free(ids);
    }
    return code;
}

int probe_prompts_get(const probe_prompts *p, int32_t i, probe_sample *sample)
{
    *sample = (probe_sample){ 0 };
    if (p->kind != NULL) return generate(p, i, sample);
    const probe_sample *from = &p->samples[i];
    sample->ids = malloc((size_t)from->n_ids * sizeof *sample->ids);
    if (sample->ids == NULL) return complain(EXIT_RESOURCES, "out of memory for %d token ids", from->n_ids);
    memcpy(sample->ids, from->ids, (size_t)from->n_ids * sizeof *sample->ids);
    sample->n_ids = from->n_ids;
    sample->target = from->target;
    return 0;
}
