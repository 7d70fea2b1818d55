/* rooms: base pattern plan; wrap: calloc fsync rename */
#include "base/mem.h"
#include "plan/plan_parts.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define FINGERPRINT "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define OTHER_PRINT "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"

static const tmx_model_info smollm = { .architecture = "llama", .name = "SmolLM2 135M", .fingerprint = FINGERPRINT,
                                       .n_layers = 30 };
static const tmx_model_info four_layers = { .architecture = "llama", .name = "tiny", .fingerprint = FINGERPRINT,
                                            .n_layers = 4 };

static const char good_file[] =
    "{\n"
    "  \"format\": \"trianglemix-plan\",\n"
    "  \"version\": 1,\n"
    "  \"model\": {\"architecture\": \"llama\", \"name\": \"tiny\", \"n_layers\": 4,\n"
    "            \"fingerprint\": \"" FINGERPRINT "\"},\n"
    "  \"n_sink\": 4,\n"
    "  \"n_window\": 256,\n"
    "  \"n_last\": 64,\n"
    "  \"layers\": [\"dense\", \"streaming\", \"triangle\", \"triangle\"],\n"
    "  \"note\": \"by hand\", \"min_tokens\": 0, \"curve\": [{\"n_sparse\": 0, \"kl\": 0, \"top1\": 1, \"score\": 100, \"ttft_ms\": 9.5}]\n"
    "}\n";

/* ---------------------------------------------------------------- calls that fail when told to */

static int64_t n_allocs_left = INT64_MAX;              /* the call that finds 0 fails; ours and jansson's together */
static bool is_fsync_broken, is_rename_broken;

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size) { return n_allocs_left-- != 0 ? __real_calloc(n, size) : NULL; }

static void *scarce_malloc(size_t n_bytes) { return n_allocs_left-- != 0 ? malloc(n_bytes) : NULL; }

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    if (!is_fsync_broken) return __real_fsync(fd);
    errno = EIO;
    return -1;
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to)
{
    if (!is_rename_broken) return __real_rename(from, to);
    errno = EROFS;
    return -1;
}

/* ---------------------------------------------------------------- a folder of its own for every test */

static char folder[512];

static int enter_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "%s/test-plan-XXXXXX", TMX_BINARY_DIR);
    return mkdtemp(folder) == NULL || chdir(folder) != 0;
}

static int leave_folder(void **state)
{
    (void)state;
    DIR *dir = opendir(".");
    if (dir == NULL) return 1;
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) remove(e->d_name);
    }
    closedir(dir);
    return chdir("/") != 0 || rmdir(folder) != 0;
}

static int32_t count_files(void)
{
    int32_t n = 0;
    DIR *dir = opendir(".");
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fputs(text, f) >= 0, 1);
    assert_int_equal(fclose(f), 0);
}

/* good_file with its first `from` replaced; the caller frees. */
static char *edited(const char *from, const char *to)
{
    const char *at = strstr(good_file, from);
    assert_non_null(at);
    char *text = malloc(sizeof good_file + strlen(to));
    assert_non_null(text);
    sprintf(text, "%.*s%s%s", (int)(at - good_file), good_file, to, at + strlen(from));
    return text;
}

static void assert_parses_to(const char *spec, const tmx_model_info *info, const char *expected)
{
    tmx_plan *plan = NULL;
    tmx_error err = { .text = "" };
    char text[256];
    if (tmx_plan_parse(&plan, spec, info, &err) != TMX_OK) fail_msg("%s: %s", spec, err.text);
    assert_string_equal(tmx_plan_text(plan, text, sizeof text), expected);
    assert_int_equal(tmx_plan_n_layers(plan), info->n_layers);
    tmx_plan_free(plan);
}

static void assert_refused(const char *spec, const tmx_model_info *info, tmx_status code, const char *text)
{
    tmx_plan *plan = (tmx_plan *)&folder;
    tmx_error err = { .text = "" };
    assert_int_equal(tmx_plan_parse(&plan, spec, info, &err), code);
    assert_string_equal(err.text, text);
    assert_int_equal(err.code, code);
    assert_ptr_equal(plan, &folder);                   /* untouched */
    assert_int_equal(tmx_plan_parse(&plan, spec, info, NULL), code);
}

static void assert_json_refused(const char *json, size_t n_bytes, tmx_status code, const char *text)
{
    tmx_plan *plan = NULL;
    tmx_error err = { .text = "" };
    assert_int_equal(plan_read_json(&plan, json, n_bytes, "p.json", &four_layers, &err), code);
    assert_string_equal(err.text, text);
    assert_null(plan);
}

/* ---------------------------------------------------------------- specs */

static void specs_choose_layers(void **state)
{
    (void)state;
    assert_parses_to("dense", &smollm, "dense 0-29");
    assert_parses_to("triangle", &smollm, "triangle 0-29 (sink 8, window 512, last 128)");
    assert_parses_to("streaming", &smollm, "streaming 0-29 (sink 8, window 512)");
    assert_parses_to("triangle:10-29", &smollm, "triangle 10-29 (sink 8, window 512, last 128), dense 0-9");
    assert_parses_to("triangle:29,0", &smollm, "triangle 0,29 (sink 8, window 512, last 128), dense 1-28");
    assert_parses_to("streaming:5,7,10,15-29", &smollm,
                     "streaming 5,7,10,15-29 (sink 8, window 512), dense 0-4,6,8-9,11-14");
    assert_parses_to("triangle:3-3,004", &smollm, "triangle 3-4 (sink 8, window 512, last 128), dense 0-2,5-29");
    const tmx_model_info one = { .architecture = "llama", .n_layers = 1 };
    assert_parses_to("dense", &one, "dense 0");
    assert_parses_to("triangle:0", &one, "triangle 0 (sink 8, window 512, last 128)");

    tmx_plan *plan;
    assert_int_equal(tmx_plan_parse(&plan, "triangle:1", &smollm, NULL), TMX_OK);
    assert_string_equal(plan->model.architecture, "llama");
    assert_string_equal(plan->model.name, "SmolLM2 135M");
    assert_string_equal(plan->model.fingerprint, FINGERPRINT);
    assert_string_equal(tmx_plan_note(plan), "");
    tmx_plan_free(plan);
}

static void bad_specs_are_explained(void **state)
{
    (void)state;
    static const struct { const char *spec, *text; } cases[] = {
        { "triangle:", "layers '', character 1: found the end, expected a layer number 0..29" },
        { "triangle:30", "layers '30', character 1: layer 30 is out of range 0..29" },
        { "triangle:5,28-30", "layers '5,28-30', character 6: layer 30 is out of range 0..29" },
        { "triangle:4294967296", "layers '4294967296', character 1: layer 4294967296 is out of range 0..29" },
        { "triangle:99999999999999999999999999",
          "layers '99999999999999999999999999', character 1: layer 99999999999999999999 is out of range 0..29" },
        { "triangle:5,7,5", "layers '5,7,5', character 5: layer 5 is named twice" },
        { "streaming:3,1-4", "layers '3,1-4', character 3: layer 3 is named twice" },
        { "triangle:9-5", "layers '9-5', character 1: the range 9-5 is reversed" },
        { "triangle:1,,2", "layers '1,,2', character 3: found ',', expected a layer number 0..29" },
        { "triangle:1,", "layers '1,', character 3: found the end, expected a layer number 0..29" },
        { "triangle:-1", "layers '-1', character 1: found '-', expected a layer number 0..29" },
        { "triangle:1-", "layers '1-', character 3: found the end, expected a layer number 0..29" },
        { "triangle:1-2-3", "layers '1-2-3', character 4: found '-', expected ',' or the end" },
        { "triangle:1 ", "layers '1 ', character 2: found ' ', expected ',', '-' or the end" },
        { "triangle:1\xc3\xa9", "layers '1\xc3\xa9', character 2: found byte 0xc3, expected ',', '-' or the end" },
        { "triangle:0x1", "layers '0x1', character 2: found 'x', expected ',', '-' or the end" },
        { "preset:", "preset '': unknown, expected one of llama-3.1-8b-instruct, llama-3-8b-262k, qwen2.5-7b-instruct, "
          "qwen3-8b, smollm2-135m-instruct" },
        { "preset:gpt", "preset 'gpt': unknown, expected one of llama-3.1-8b-instruct, llama-3-8b-262k, "
          "qwen2.5-7b-instruct, qwen3-8b, smollm2-135m-instruct" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_refused(cases[i].spec, &smollm, TMX_E_ARG, cases[i].text);
    }
    static const char *const nothing[] = { "", "trinagle", "dense:0-3", "preset", "triangles", "no/such/plan.json" };
    for (size_t i = 0; i < sizeof nothing / sizeof nothing[0]; i++) {
        char text[256];
        snprintf(text, sizeof text, "plan '%s': no such file, and none of dense, METHOD[:LAYERS], mix:METHOD=LAYERS,rest=METHOD, "
                 "preset:NAME (METHOD triangle, streaming, xattention, flexprefill, minference, s2o; LAYERS as in 5,7,10-29)", nothing[i]);
        assert_refused(nothing[i], &smollm, TMX_E_ARG, text);
    }
    tmx_plan *plan;
    assert_int_equal(tmx_plan_parse(NULL, "dense", &smollm, NULL), TMX_E_ARG);
    assert_int_equal(tmx_plan_parse(&plan, NULL, &smollm, NULL), TMX_E_ARG);
    assert_int_equal(tmx_plan_parse(&plan, "dense", NULL, NULL), TMX_E_ARG);
    assert_int_equal(tmx_plan_parse(&plan, "dense", &(tmx_model_info){ .n_layers = 1 }, NULL), TMX_E_ARG);
    assert_int_equal(tmx_plan_parse(&plan, "dense", &(tmx_model_info){ .architecture = "llama" }, NULL), TMX_E_ARG);
}

static void mixes_and_methods_are_read(void **state)
{
    (void)state;
    assert_parses_to("xattention", &smollm, "xattention 0-29 (stride 8, threshold 0.9, norm 1)");
    assert_parses_to("xattention:3,5-7", &smollm, "xattention 3,5-7 (stride 8, threshold 0.9, norm 1), dense 0-2,4,8-29");
    assert_parses_to("xattention(stride=16,norm=0.25,threshold=0.95):0", &smollm,
                     "xattention 0 (stride 16, threshold 0.95, norm 0.25), dense 1-29");
    assert_parses_to("mix:triangle=9-29,rest=xattention(threshold=1)", &smollm,
                     "triangle 9-29 (sink 8, window 512, last 128), xattention 0-8 (stride 8, threshold 1, norm 1)");
    assert_parses_to("mix:triangle=9,11-12,streaming=1,xattention=3,20-29,rest=dense", &smollm,
                     "triangle 9,11-12 (sink 8, window 512, last 128), streaming 1 (sink 8, window 512), "
                     "xattention 3,20-29 (stride 8, threshold 0.9, norm 1), dense 0,2,4-8,10,13-19");
    assert_parses_to("mix:triangle=16-29,rest=s2o(segment=256,tau=0.01)", &smollm,
                     "triangle 16-29 (sink 8, window 512, last 128), s2o 0-15 (segment 256, tau 0.01, sink 64, min_tiles 2, vote 0, guide 0)");
    assert_parses_to("mix:flexprefill(gamma=0.95,min_budget=1024)=0-3,rest=triangle", &smollm,
                     "triangle 4-29 (sink 8, window 512, last 128), flexprefill 0-3 (gamma 0.95, tau 0.1, min_budget 1024)");
    assert_parses_to("mix:rest=triangle,dense=4", &smollm, "triangle 0-3,5-29 (sink 8, window 512, last 128), dense 4");
    assert_parses_to("mix:streaming=0-29", &smollm, "streaming 0-29 (sink 8, window 512)");
}

static void bad_mixes_are_explained(void **state)
{
    (void)state;
    static const struct { const char *spec, *text; } cases[] = {
        { "mix:", "character 5: expected dense, streaming, triangle, xattention, flexprefill, minference or s2o" },
        { "mix:preset=3", "character 5: expected dense, streaming, triangle, xattention, flexprefill, minference or s2o" },
        { "mix:triangle", "character 13: expected '='" },
        { "mix:triangle=", "layers '', character 1: found the end, expected a layer number 0..29" },
        { "mix:triangle=3,", "character 16: expected dense, streaming, triangle, xattention, flexprefill, minference or s2o" },
        { "mix:triangle=3,,rest=dense", "character 16: expected dense, streaming, triangle, xattention, flexprefill, minference or s2o" },
        { "mix:triangle=3;4", "character 15: expected ',' or the end" },
        { "mix:triangle=30", "layers '30', character 1: layer 30 is out of range 0..29" },
        { "mix:triangle=3,xattention=1-4", "character 27: layer 3 is named twice" },
        { "mix:triangle=3,triangle=4", "character 16: triangle is named twice" },
        { "mix:triangle=3,rest=triangle", "character 21: triangle is named twice" },
        { "mix:rest=dense,rest=triangle", "character 16: the rest is named twice" },
        { "xattention(", "character 12: expected one of stride, threshold, norm" },
        { "xattention()", "character 12: expected one of stride, threshold, norm" },
        { "xattention(speed=3)", "character 12: speed: no parameter of xattention, expected one of stride, threshold, norm" },
        { "xattention(stride)", "character 18: expected '='" },
        { "xattention(stride=)", "character 19: stride: expected a number such as 8 or 0.95" },
        { "xattention(stride=-8)", "character 19: stride: expected a number such as 8 or 0.95" },
        { "xattention(stride=8.5)", "character 19: stride: expected a whole number" },
        { "xattention(stride=9999999999)", "character 19: stride: expected a whole number" },
        { "xattention(threshold=.9)", "character 22: threshold: expected a number such as 8 or 0.95" },
        { "xattention(threshold=0.9000000000000001)", "character 22: threshold: a number of more than 15 digits" },
        { "xattention(threshold=1e-1)", "character 23: expected ')'" },
        { "xattention(stride=8,stride=8)", "character 21: stride is named twice" },
        { "xattention(stride=8", "character 20: expected ')'" },
        { "xattention(stride=8)3", "character 21: expected ':' or the end" },
        { "xattention(stride=8):", "layers '', character 1: found the end, expected a layer number 0..29" },
        { "flexprefill(gamma=2)", "flexprefill gamma: 2, expected more than 0, up to 1" },
        { "flexprefill(stride=8)", "character 13: stride: no parameter of flexprefill, expected one of gamma, tau, min_budget" },
        { "s2o(segment=100)", "s2o segment: 100, expected a multiple of 128 up to 65536" },
        { "s2o(tau=2)", "s2o tau: 2, expected 0..1" },
        { "s2o(vote=2)", "s2o vote: 2, expected 0 (mean) or 1 (max)" },
        { "s2o(guide=0.5)", "guide: expected a whole number" },
        { "s2o(stride=8)", "character 5: stride: no parameter of s2o, expected one of segment, tau, sink, min_tiles, vote, guide" },
        { "mix:s2o=3,rest=s2o", "s2o is named twice" },
        { "flexprefill(min_budget=0)", "flexprefill min_budget: 0, expected 1..16777216 tokens" },
        { "xattention(stride=7)", "xattention stride: 7, expected 4, 8 or 16" },
        { "xattention(threshold=0)", "xattention threshold: 0, expected more than 0, up to 1" },
        { "xattention(threshold=1.5)", "xattention threshold: 1.5, expected more than 0, up to 1" },
        { "xattention(norm=0)", "xattention norm: 0, expected 0.001..1000" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tmx_plan *plan = NULL;
        tmx_error err = { .text = "" };
        assert_int_equal(tmx_plan_parse(&plan, cases[i].spec, &smollm, &err), TMX_E_ARG);
        assert_null(plan);
        if (strstr(err.text, cases[i].text) == NULL) fail_msg("%s: '%s' lacks '%s'", cases[i].spec, err.text, cases[i].text);
    }
}

static void dynamic_plans_are_files_of_version_2(void **state)
{
    (void)state;
    static const struct { const char *from, *to, *text; } cases[] = {
        { "\"version\": 2", "\"version\": 1", "p.json: field \"version\": found 1, expected 2 for a plan with xattention" },
        { "\"xattention\": {", "\"note\": \"\", \"curve\": [], \"min_tokens\": {", "p.json: field \"xattention\": missing, expected an object {...}" },
        { "\"stride\": 8", "\"stride\": 8.5", "p.json: field \"xattention.stride\": found 8.5, expected a whole number" },
        { "\"stride\": 8", "\"stride\": 6", "p.json: xattention stride: 6, expected 4, 8 or 16" },
        { "\"stride\": 8", "\"stride\": \"8\"", "p.json: field \"xattention.stride\": found a string, expected a number" },
        { "\"stride\": 8, ", "", "p.json: field \"xattention.stride\": missing" },
        { "\"stride\": 8", "\"speed\": 8", "unknown" },
        { "0.95", "1.95", "p.json: xattention threshold: 1.95, expected more than 0, up to 1" },
    };
    static const char file[] = "{\"format\": \"trianglemix-plan\", \"version\": 2, \"model\": {\"architecture\": \"\", \"n_layers\": 2}, "
        "\"n_sink\": 8, \"n_window\": 512, \"n_last\": 128, \"layers\": [\"xattention\", \"triangle\"], "
        "\"xattention\": {\"stride\": 8, \"threshold\": 0.95, \"norm\": 1}}";
    tmx_plan *plan, *back;
    tmx_error err;
    char words[256], *text;
    size_t n_bytes;
    if (plan_read_json(&plan, file, strlen(file), "p.json", NULL, &err) != TMX_OK) fail_msg("%s", err.text);
    assert_string_equal(tmx_plan_text(plan, words, sizeof words),
                        "triangle 1 (sink 8, window 512, last 128), xattention 0 (stride 8, threshold 0.95, norm 1)");
    assert_false(plan_is_static(plan));
    assert_int_equal(plan_json_text(plan, &text, &n_bytes, NULL), TMX_OK);
    assert_non_null(strstr(text, "\"version\": 2"));
    assert_non_null(strstr(text, "\"threshold\": 0.95"));
    assert_int_equal(plan_read_json(&back, text, n_bytes, "p.json", NULL, NULL), TMX_OK);
    assert_int_equal(back->xattention.stride, 8);
    assert_true(back->xattention.threshold == 0.95 && back->xattention.norm == 1.0);
    mem_free(text);
    tmx_plan_free(back);
    plan->layers[0].kind = TMX_PATTERN_DENSE;          /* a static plan stays readable for older libraries */
    assert_int_equal(plan_json_text(plan, &text, &n_bytes, NULL), TMX_OK);
    assert_non_null(strstr(text, "\"version\": 1"));
    assert_null(strstr(text, "xattention"));
    mem_free(text);
    tmx_plan_free(plan);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char wrong[sizeof file + 64];
        const char *at = strstr(file, cases[i].from);
        assert_non_null(at);
        snprintf(wrong, sizeof wrong, "%.*s%s%s", (int)(at - file), file, cases[i].to, at + strlen(cases[i].from));
        assert_int_equal(plan_read_json(&plan, wrong, strlen(wrong), "p.json", NULL, &err), TMX_E_FORMAT);
        if (strstr(err.text, cases[i].text) == NULL) fail_msg("'%s' lacks '%s'", err.text, cases[i].text);
    }
}

/* ---------------------------------------------------------------- MInference's heads */

static const char config[] =
    "[{\"0\": [\"vertical_and_slash\", 30, 800, 0.93], \"2\": [\"stream_llm\", 100, 700]}, {},\n"
    " {\"1\": [\"block_sparse\", 0, 0, 1], \"0\": [\"vertical_and_slash\", 1000, 6096]}]";

static const tmx_model_info three = { .architecture = "llama", .n_layers = 3, .n_heads = 4 };

static void assert_head(const tmx_plan *plan, int32_t layer, int32_t head, minference_type type, int32_t a, int32_t b)
{
    const minference_head found = plan_minference_head(plan, layer, head);
    assert_int_equal(found.type, type);
    assert_int_equal(found.a, a);
    assert_int_equal(found.b, b);
}

static void assert_config(const tmx_plan *plan)
{
    assert_head(plan, 0, 0, MINFERENCE_VERTICAL_SLASH, 30, 800);
    assert_head(plan, 0, 1, MINFERENCE_VERTICAL_SLASH, 1000, 6096);
    assert_head(plan, 0, 2, MINFERENCE_A_SHAPE, 100, 700);
    assert_head(plan, 1, 3, MINFERENCE_VERTICAL_SLASH, 1000, 6096);
    assert_head(plan, 2, 0, MINFERENCE_VERTICAL_SLASH, 1000, 6096);
    assert_head(plan, 2, 1, MINFERENCE_BLOCK_SPARSE, 0, 0);
}

static void configurations_are_read_and_kept(void **state)
{
    (void)state;
    tmx_plan *plan, *back;
    tmx_error err;
    char words[256];
    write_text("heads.json", config);
    if (tmx_plan_parse(&plan, "mix:triangle=1,rest=minference(heads.json)", &three, &err) != TMX_OK) fail_msg("%s", err.text);
    assert_string_equal(tmx_plan_text(plan, words, sizeof words),
                        "triangle 1 (sink 8, window 512, last 128), minference 0,2 (vertical 1000, slash 6096, by head aead3109)");
    assert_config(plan);
    assert_int_equal(plan_layer_pattern(plan, 0, 800).kind, TMX_PATTERN_MINFERENCE);
    assert_int_equal(plan_layer_pattern(plan, 0, 700).kind, TMX_PATTERN_DENSE);        /* every head sees all of it */
    assert_int_equal(plan_layer_pattern(plan, 2, 6096).kind, TMX_PATTERN_DENSE);
    assert_int_equal(plan_layer_pattern(plan, 2, 6097).kind, TMX_PATTERN_MINFERENCE);
    assert_int_equal(tmx_plan_save(plan, "self.json", NULL), TMX_OK);
    assert_int_equal(remove("heads.json"), 0);         /* the plan file holds the table */
    if (tmx_plan_parse(&back, "self.json", &three, &err) != TMX_OK) fail_msg("%s", err.text);
    assert_config(back);
    tmx_plan_free(back);
    assert_int_equal(plan_copy(&back, plan, NULL), TMX_OK);
    tmx_plan_free(plan);
    assert_config(back);
    tmx_plan_free(back);
    const tmx_model_info other = { .architecture = "llama", .n_layers = 3, .n_heads = 8 };
    assert_refused("self.json", &other, TMX_E_UNSUPPORTED, "self.json: field \"minference.n_heads\": 4, the model has 8");
    assert_refused("minference(heads.json)", &three, TMX_E_IO, "heads.json: No such file or directory");
    assert_refused("minference(.)", &three, TMX_E_IO, ".: not a regular file, expected a configuration file");
    assert_parses_to("minference(vertical=30,slash=800):2-3", &smollm, "minference 2-3 (vertical 30, slash 800), dense 0-1,4-29");
    assert_parses_to("minference", &smollm, "minference 0-29 (vertical 1000, slash 6096)");
}

static void broken_configurations_are_explained(void **state)
{
    (void)state;
    static const struct { const char *from, *to, *text; } cases[] = {
        { "[{", "{\"a\": [{", "c.json:2:" },
        { "[{\"0\"", "[{}, {\"0\"", "c.json: 4 layers, expected 3" },
        { "{},", "[],", "c.json: field \"[1]\": found an array, expected an object {...}" },
        { "\"0\"", "\"4\"", "c.json: field \"[0]\": head \"4\", expected 0..3" },
        { "\"0\"", "\"00\"", "c.json: field \"[0]\": head \"00\", expected 0..3" },
        { "\"0\"", "\"-1\"", "c.json: field \"[0]\": head \"-1\", expected 0..3" },
        { "\"0\"", "\"\"", "c.json: field \"[0]\": head \"\", expected 0..3" },
        { "\"0\"", "\"99999999999\"", "c.json: field \"[0]\": head \"99999999999\", expected 0..3" },
        { "\"0\"", "\"2\"", "c.json:1:" },
        { "[\"vertical_and_slash\", 30, 800, 0.93]", "3", "c.json: field \"[0].0\": found an integer, expected [type, size, size]" },
        { ", 30, 800, 0.93", ", 30", "c.json: field \"[0].0\": 2 elements, expected [type, size, size] or a score behind them" },
        { "0.93", "0.93, 1", "c.json: field \"[0].0\": 5 elements" },
        { "0.93", "\"best\"", "c.json: field \"[0].0\": score: found a string, expected a number" },
        { "vertical_and_slash", "vertical", "c.json: field \"[0].0\": type \"vertical\", expected vertical_and_slash, stream_llm or block_sparse" },
        { "\"vertical_and_slash\"", "7", "c.json: field \"[0].0\": type \"\", expected" },
        { "30, 800", "30.5, 800", "c.json: field \"[0].0[1]\": found a number with a fraction or an exponent, expected an integer" },
        { "30, 800", "-1, 800", "c.json: field \"[0].0[1]\": found -1, expected 0..16777216" },
        { "30, 800", "30, 99999999999", "c.json: field \"[0].0[2]\": found 99999999999, expected 0..16777216" },
        { "100, 700", "100, 0", "c.json: [0].2 window size: 0, expected 1..16777216" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char wrong[sizeof config + 64];
        const char *at = strstr(config, cases[i].from);
        tmx_error err;
        tmx_plan *plan;
        assert_non_null(at);
        snprintf(wrong, sizeof wrong, "%.*s%s%s", (int)(at - config), config, cases[i].to, at + strlen(cases[i].from));
        assert_int_equal(plan_create_dense(&plan, 3, NULL), TMX_OK);
        assert_int_equal(head_table_read_config(&minference_table, plan, wrong, strlen(wrong), "c.json", 4, &err), TMX_E_FORMAT);
        if (strstr(err.text, cases[i].text) == NULL) fail_msg("%zu: '%s' lacks '%s'", i, err.text, cases[i].text);
        tmx_plan_free(plan);
    }
    static const struct { const char *spec, *text; } specs[] = {
        { "minference(", "character 12: expected a file and ')', or one of vertical, slash" },
        { "minference()", "character 12: expected a file and ')', or one of vertical, slash" },
        { "minference(x.json", "character 18: expected a file and ')', or one of vertical, slash" },
        { "minference(slash=1.5)", "character 18: slash: expected a whole number" },
        { "minference(slash=16777217)", "minference slash: 16777217, expected 0..16777216" },
        { "minference(diagonal=3)", "character 12: diagonal: no parameter of minference, expected one of vertical, slash" },
        { "minference(x.json)0", "x.json: No such file or directory" },
    };
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        tmx_error err;
        tmx_plan *plan;
        assert_int_not_equal(tmx_plan_parse(&plan, specs[i].spec, &three, &err), TMX_OK);
        if (strstr(err.text, specs[i].text) == NULL) fail_msg("%s: '%s' lacks '%s'", specs[i].spec, err.text, specs[i].text);
    }
}

/* ---------------------------------------------------------------- XAttention's thresholds */

static const char thresholds[] = "[[0.9, null, 0.75, 1], null, [null, 0.5, 0.59049, 0.000001]]";

static void assert_thresholds(const tmx_plan *plan)
{
    static const double expected[3][4] = { { 0.9, 0, 0.75, 1 }, { 0 }, { 0, 0.5, 0.59049, 0.000001 } };
    xattention x = plan->xattention;
    assert_int_equal(plan->n_heads, 4);
    for (int32_t l = 0; l < 3; l++) {
        x.thresholds = plan_thresholds(plan, l);
        for (int32_t h = 0; h < 4; h++) assert_true(xattention_threshold(&x, h) == (expected[l][h] != 0 ? expected[l][h] : 0.8));
    }
}

static void thresholds_are_read_and_kept(void **state)
{
    (void)state;
    tmx_plan *plan, *back;
    tmx_error err;
    char words[256];
    write_text("t.json", thresholds);
    if (tmx_plan_parse(&plan, "mix:triangle=1,rest=xattention(thresholds=t.json,threshold=0.8)", &three, &err) != TMX_OK) fail_msg("%s", err.text);
    assert_string_equal(tmx_plan_text(plan, words, sizeof words),
                        "triangle 1 (sink 8, window 512, last 128), xattention 0,2 (stride 8, threshold 0.8, norm 1, by head 5fed30f3)");
    assert_thresholds(plan);
    assert_int_equal(tmx_plan_save(plan, "self.json", NULL), TMX_OK);
    assert_int_equal(remove("t.json"), 0);             /* the plan file holds the table */
    if (tmx_plan_parse(&back, "self.json", &three, &err) != TMX_OK) fail_msg("%s", err.text);
    assert_thresholds(back);
    tmx_plan_free(back);
    assert_int_equal(plan_copy(&back, plan, NULL), TMX_OK);
    tmx_plan_free(plan);
    assert_thresholds(back);
    tmx_plan_free(back);
    const tmx_model_info other = { .architecture = "llama", .n_layers = 3, .n_heads = 8 };
    assert_refused("self.json", &other, TMX_E_UNSUPPORTED, "self.json: field \"xattention.n_heads\": 4, the model has 8");
    write_text("t.json", thresholds);
    write_text("heads.json", config);                  /* both tables in one plan */
    assert_parses_to("mix:minference(heads.json)=0,rest=xattention(thresholds=t.json)", &three,
                     "xattention 1-2 (stride 8, threshold 0.9, norm 1, by head 81cd9888), minference 0 (vertical 1000, slash 6096, by head 661ddc55)");
    static const struct { const char *spec, *text; } bad[] = {
        { "xattention(thresholds=)", "character 23: thresholds: expected a file" },
        { "xattention(thresholds)", "character 22: expected '='" },
        { "xattention(thresholds=t.json", "character 29: expected ')'" },
        { "xattention(thresholds=t.json,thresholds=t.json)", "character 30: thresholds is named twice" },
        { "xattention(thresholds=t.json,threshold=0)", "xattention threshold: 0, expected more than 0, up to 1" },
        { "xattention(thresholds=nowhere.json)", "nowhere.json: No such file or directory" },
        { "xattention(thresholds=heads.json)", "heads.json: field \"[0]\": found an object, expected an array of thresholds or null" },
        { "minference(t.json)", "t.json: field \"[0]\": found an array, expected an object {...}" },
        { "xattention(walk=3)", "expected one of stride, threshold, norm, thresholds" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_not_equal(tmx_plan_parse(&plan, bad[i].spec, &three, &err), TMX_OK);
        if (strstr(err.text, bad[i].text) == NULL) fail_msg("%s: '%s' lacks '%s'", bad[i].spec, err.text, bad[i].text);
    }
    assert_int_equal(truncate("t.json", 2 << 20), 0);
    assert_refused("xattention(thresholds=t.json)", &three, TMX_E_FORMAT, "t.json: 2097152 bytes, a configuration file has at most 1048576");
}

/* A plan's text names its tables by what is read of them: journals of tmx eval tell plans apart by it. */
static void tables_are_told_apart(void **state)
{
    (void)state;
    static const char spec[] = "xattention(thresholds=t.json):0,2", heads_spec[] = "minference(h.json):0-1";
    static const char fine[] = "[[0.1, 0.7290000000000001, 0.5, 1], null, null]";
    static const struct { const char *spec, *file, *text; bool is_same; } cases[] = {
        { spec, "t.json", "[[0.1, 0.7290000000000001, 0.5, 1], [0.3, 0.3, 0.3, 0.3], null]", true },       /* layer 1 is dense */
        { spec, "t.json", "[[0.1, 0.729, 0.5, 1], null, null]", true },                                   /* as files keep it */
        { spec, "t.json", "[[0.1, 0.728, 0.5, 1], null, null]", false },
        { spec, "t.json", "[[0.7290000000000001, 0.1, 0.5, 1], null, null]", false },
        { spec, "t.json", "[[0.1, 0.7290000000000001, null, 1], null, null]", false },
        { spec, "t.json", "[[0.1, 0.7290000000000001, 0.5, 1], null, [1, null, null, null]]", false },
        { heads_spec, "h.json", "[{\"3\": [\"stream_llm\", 100, 800]}, {}, {\"0\": [\"block_sparse\", 0, 0]}]", true },
        { heads_spec, "h.json", "[{\"3\": [\"stream_llm\", 100, 800], \"0\": [\"vertical_and_slash\", 1000, 6096]}, {}, {}]", true },
        { heads_spec, "h.json", "[{\"2\": [\"stream_llm\", 100, 800]}, {}, {}]", false },
        { heads_spec, "h.json", "[{}, {\"3\": [\"stream_llm\", 100, 800]}, {}]", false },
        { heads_spec, "h.json", "[{\"3\": [\"stream_llm\", 100, 801]}, {}, {}]", false },
        { heads_spec, "h.json", "[{\"3\": [\"block_sparse\", 100, 800]}, {}, {}]", false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char words[2][256];
        for (int k = 0; k < 2; k++) {
            tmx_plan *plan;
            tmx_error err;
            const char *first = cases[i].file[0] == 't' ? fine : "[{\"3\": [\"stream_llm\", 100, 800]}, {}, {}]";
            write_text(cases[i].file, k == 0 ? first : cases[i].text);
            if (tmx_plan_parse(&plan, cases[i].spec, &three, &err) != TMX_OK) fail_msg("%zu: %s", i, err.text);
            tmx_plan_text(plan, words[k], sizeof words[k]);
            assert_int_equal(tmx_plan_save(plan, "self.json", NULL), TMX_OK);
            tmx_plan_free(plan);
            if (tmx_plan_parse(&plan, "self.json", &three, &err) != TMX_OK) fail_msg("%zu: %s", i, err.text);
            char back[256];
            assert_string_equal(tmx_plan_text(plan, back, sizeof back), words[k]);
            tmx_plan_free(plan);
        }
        if ((strcmp(words[0], words[1]) == 0) != cases[i].is_same) fail_msg("%zu: '%s' and '%s'", i, words[0], words[1]);
    }
}

static void broken_thresholds_are_explained(void **state)
{
    (void)state;
    static const struct { const char *from, *to, *text; } cases[] = {
        { "[[", "{\"a\": [[", "t.json:1:" },
        { "[[", "[null, [", "t.json: 4 layers, expected 3" },
        { "null, [null", "0.9, [null", "t.json: field \"[1]\": found a number with a fraction or an exponent, expected an array of thresholds or null" },
        { "0.9, ", "", "t.json: field \"[0]\": 3 heads, expected 4" },
        { "0.9, ", "0.9, 0.9, ", "t.json: field \"[0]\": 5 heads, expected 4" },
        { "0.9", "\"0.9\"", "t.json: field \"[0][0]\": found a string, expected a number or null" },
        { "0.75", "true", "t.json: field \"[0][2]\": found a boolean, expected a number or null" },
        { "0.75", "1.5", "t.json: field \"[0][2]\": found 1.5, expected more than 0, up to 1" },
        { "0.75", "0", "t.json: field \"[0][2]\": found 0, expected more than 0, up to 1" },
        { "0.75", "-0.75", "t.json: field \"[0][2]\": found -0.75, expected more than 0, up to 1" },
        { "0.75", "1e999", "t.json:1:" },
        { "0.000001]]", "0.000001]", "t.json:1:" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char wrong[sizeof thresholds + 64];
        const char *at = strstr(thresholds, cases[i].from);
        tmx_error err;
        tmx_plan *plan;
        assert_non_null(at);
        snprintf(wrong, sizeof wrong, "%.*s%s%s", (int)(at - thresholds), thresholds, cases[i].to, at + strlen(cases[i].from));
        assert_int_equal(plan_create_dense(&plan, 3, NULL), TMX_OK);
        assert_int_equal(head_table_read_config(&threshold_table, plan, wrong, strlen(wrong), "t.json", 4, &err), TMX_E_FORMAT);
        if (strstr(err.text, cases[i].text) == NULL) fail_msg("%zu: '%s' lacks '%s'", i, err.text, cases[i].text);
        tmx_plan_free(plan);
    }
    tmx_plan *plan;
    tmx_error err;
    assert_int_equal(plan_create_dense(&plan, 3, NULL), TMX_OK);
    assert_int_equal(head_table_read_config(&threshold_table, plan, thresholds, strlen(thresholds), "t.json", 0, &err), TMX_E_FORMAT);
    assert_non_null(strstr(err.text, "t.json: 3 layers of 0 heads, expected 1..1024 heads"));
    tmx_plan_free(plan);
    static const char two[] = "{\"format\": \"trianglemix-plan\", \"version\": 2, \"model\": {\"architecture\": \"\", \"n_layers\": 2}, "
        "\"n_sink\": 8, \"n_window\": 512, \"n_last\": 128, \"layers\": [\"xattention\", \"minference\"], "
        "\"minference\": {\"vertical\": 30, \"slash\": 800, \"n_heads\": 3, \"heads\": [{}, {}]}, "
        "\"xattention\": {\"stride\": 8, \"threshold\": 0.95, \"norm\": 1, \"n_heads\": 2, \"thresholds\": [null, [1, 1]]}}";
    assert_int_equal(plan_read_json(&plan, two, strlen(two), "p.json", NULL, &err), TMX_E_FORMAT);
    assert_string_equal(err.text, "p.json: minference.heads: of 3 heads, where another method's table has 2");
}

/* ---------------------------------------------------------------- estimates per chunk */

static void estimates_per_chunk_are_named_and_kept(void **state)
{
    (void)state;
    static const int32_t wrong[] = { -1, 1, 128, 300, 1 << 25 };
    tmx_plan *plan, *back;
    tmx_error err;
    char words[256], *text;
    size_t n_bytes;
    assert_int_equal(tmx_plan_parse(&plan, "mix:triangle=1,rest=flexprefill", &three, &err), TMX_OK);
    assert_int_equal(tmx_plan_estimate_rows(plan), 0);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(tmx_plan_set_estimate_rows(plan, wrong[i], &err), TMX_E_ARG);
        assert_non_null(strstr(err.text, "expected 0 or a multiple of 128 from 256 to 16777216"));
    }
    assert_int_equal(tmx_plan_set_estimate_rows(plan, 384, &err), TMX_OK);
    assert_int_equal(tmx_plan_estimate_rows(plan), 384);
    assert_string_equal(tmx_plan_text(plan, words, sizeof words), "triangle 1 (sink 8, window 512, last 128), flexprefill 0,2 (gamma 0.9, tau 0.1, "
                        "min_budget 512); estimated per chunk of 384 tokens");
    assert_int_equal(plan_json_text(plan, &text, &n_bytes, NULL), TMX_OK);
    assert_int_equal(plan_read_json(&back, text, n_bytes, "p.json", NULL, &err), TMX_OK);
    assert_int_equal(tmx_plan_estimate_rows(back), 384);
    tmx_plan_free(back);
    char *number = strstr(text, "384");
    assert_non_null(number);
    memcpy(number, "385", 3);
    assert_int_equal(plan_read_json(&back, text, n_bytes, "p.json", NULL, &err), TMX_E_FORMAT);
    assert_string_equal(err.text, "p.json: plan estimate_rows: 385, expected 0 or a multiple of 128 from 256 to 16777216");
    memcpy(number, "\"\" ", 3);
    assert_int_equal(plan_read_json(&back, text, n_bytes, "p.json", NULL, &err), TMX_E_FORMAT);
    assert_string_equal(err.text, "p.json: field \"estimate_rows\": found a string, expected an integer");
    mem_free(text);
    assert_int_equal(plan_rows_pattern(plan, 0, 5000, 1000).kind, TMX_PATTERN_FLEXPREFILL);
    assert_int_equal(plan_rows_pattern(plan, 0, 5000, 512).kind, TMX_PATTERN_DENSE);   /* as a prompt of so many tokens */
    tmx_plan_free(plan);

    static const struct { const char *spec; int32_t rows, expected; } cases[] = {
        { "xattention", 512, 0 }, { "mix:s2o=1,rest=triangle", 512, 0 }, { "minference", 512, 512 },
        { "mix:s2o=1,rest=minference", 512, 1024 }, { "mix:s2o(segment=256)=1,rest=flexprefill", 384, 512 },
        { "mix:s2o(segment=384)=1,rest=flexprefill", 896, 1152 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(tmx_plan_parse(&plan, cases[i].spec, &three, &err), TMX_OK);
        assert_int_equal(tmx_plan_set_estimate_rows(plan, cases[i].rows, &err), TMX_OK);
        assert_int_equal(tmx_plan_estimate_rows(plan), cases[i].expected);
        for (int32_t n = 1; n < 4000 && cases[i].expected > 0; n += n % 128 == 1 ? 126 : 1) {      /* 1, 127, 128, 129, 255, ... */
            for (int32_t left = n; left > 0;) {
                const int32_t n_rows = plan_rows_together(plan, left);
                assert_true(n_rows > 0 && n_rows <= min_i32(left, cases[i].expected));
                assert_true(n_rows >= 128 || n_rows == n);
                assert_true(n_rows == left || n_rows % plan_cut_unit(plan) == 0);
                assert_true(n_rows == cases[i].expected || left - n_rows <= cases[i].expected);
                left -= n_rows;
            }
        }
        tmx_plan_free(plan);
    }
}

static void a_refused_list_leaves_the_flags(void **state)
{
    (void)state;
    bool flags[4] = { true, false, true, false };
    assert_int_equal(plan_parse_layers("1,3,4", 4, flags, NULL), TMX_E_ARG);
    assert_memory_equal(flags, ((bool[]){ true, false, true, false }), sizeof flags);
    assert_int_equal(plan_parse_layers("1,3", 4, flags, NULL), TMX_OK);
    assert_memory_equal(flags, ((bool[]){ false, true, false, true }), sizeof flags);
    assert_int_equal(plan_parse_layers("0", 0, flags, NULL), TMX_E_ARG);
}

static void presets_fit_their_model_only(void **state)
{
    (void)state;
    static const struct { const char *name, *architecture; int32_t n_layers; const char *text; } cases[] = {
        { "llama-3.1-8b-instruct", "llama", 32, "triangle 16-31 (sink 8, window 512, last 128), dense 0-15" },
        { "llama-3-8b-262k", "llama", 32, "triangle 16-31 (sink 8, window 512, last 128), dense 0-15" },
        { "qwen2.5-7b-instruct", "qwen2", 28, "triangle 20-27 (sink 8, window 512, last 128), dense 0-19" },
        { "qwen3-8b", "qwen3", 36, "triangle 5,7,10,15-35 (sink 8, window 512, last 128), dense 0-4,6,8-9,11-14" },
        { "smollm2-135m-instruct", "llama", 30,
          "triangle 9-11,13,15,17-19,21-29 (sink 8, window 512, last 128), dense 0-8,12,14,16,20" },
    };
    assert_int_equal(tmx_preset_count(), 5);
    for (int32_t i = 0; i < 5; i++) {
        assert_string_equal(tmx_preset_name(i), cases[i].name);
        char spec[64], note[64];
        snprintf(spec, sizeof spec, "preset:%s", cases[i].name);
        snprintf(note, sizeof note, "preset %s", cases[i].name);
        tmx_model_info info = { .architecture = cases[i].architecture, .n_layers = cases[i].n_layers };
        assert_parses_to(spec, &info, cases[i].text);
        tmx_plan *plan;
        assert_int_equal(tmx_plan_parse(&plan, spec, &info, NULL), TMX_OK);
        assert_string_equal(tmx_plan_note(plan), note);
        tmx_plan_free(plan);
        info.n_layers++;
        assert_int_equal(tmx_plan_parse(&plan, spec, &info, NULL), TMX_E_UNSUPPORTED);
    }
    assert_null(tmx_preset_name(-1));
    assert_null(tmx_preset_name(5));
    assert_refused("preset:qwen3-8b", &smollm, TMX_E_UNSUPPORTED,
                   "preset qwen3-8b: made for qwen3 with 36 layers, this model is llama with 30 layers");
    const tmx_model_info wide = { .architecture = "qwen2", .n_layers = 32 };
    assert_refused("preset:llama-3-8b-262k", &wide, TMX_E_UNSUPPORTED,
                   "preset llama-3-8b-262k: made for llama with 32 layers, this model is qwen2 with 32 layers");
}

/* ---------------------------------------------------------------- plan files */

static void files_say_what_they_mean(void **state)
{
    (void)state;
    static const char text[] = "triangle 2-3 (sink 4, window 256, last 64), streaming 1 (sink 4, window 256), dense 0";
    write_text("good.json", good_file);
    assert_parses_to("good.json", &four_layers, text);

    char crlf[2 * sizeof good_file], *c = crlf;
    for (const char *g = good_file; *g != '\0'; g++) {
        if (*g == '\n') *c++ = '\r';
        *c++ = *g;
    }
    *c = '\0';
    write_text("crlf.json", crlf);
    assert_parses_to("crlf.json", &four_layers, text);

    write_text("least.json", "{\"layers\":[\"triangle\"],\"n_last\":0,\"n_window\":2147483647,\"n_sink\":0,"
               "\"model\":{\"n_layers\":1,\"architecture\":\"\"},\"version\":1,\"format\":\"trianglemix-plan\"}");
    const tmx_model_info any = { .architecture = "qwen3", .n_layers = 1, .fingerprint = OTHER_PRINT };
    assert_parses_to("least.json", &any, "triangle 0 (sink 0, window 2147483647, last 0)");

    tmx_model_info unknown = four_layers;              /* a model without a fingerprint can be no other model */
    unknown.fingerprint = NULL;
    assert_parses_to("good.json", &unknown, text);
    unknown.fingerprint = "";
    assert_parses_to("good.json", &unknown, text);

    tmx_plan *plan;
    assert_int_equal(plan_read_json(&plan, good_file, strlen(good_file), "good.json", NULL, NULL), TMX_OK);
    assert_string_equal(plan->model.architecture, "llama");
    assert_string_equal(plan->model.name, "tiny");
    assert_string_equal(plan->model.fingerprint, FINGERPRINT);
    assert_string_equal(plan->note, "by hand");
    assert_int_equal(plan->layers[0].kind, TMX_PATTERN_DENSE);
    assert_int_equal(plan->layers[3].n_last, 64);
    tmx_plan_free(plan);
}

/* Bad-input list B1..B6: what a file says wrongly. */
static void wrong_files_are_explained(void **state)
{
    (void)state;
    static const struct { const char *from, *to; tmx_status code; const char *text; } cases[] = {
        /* B1 */
        { "\"version\": 1", "\"version\": 3", TMX_E_UNSUPPORTED,
          "p.json: plan version 3, this library reads version 1 to 2" },
        { "\"version\": 1", "\"version\": 0", TMX_E_FORMAT,
          "p.json: field \"version\": found 0, expected 1..2147483647" },
        { "\"version\": 1", "\"version\": \"1\"", TMX_E_FORMAT,
          "p.json: field \"version\": found a string, expected an integer" },
        { "\"version\": 1,", "", TMX_E_FORMAT, "p.json: field \"version\": missing, expected an integer" },
        { "trianglemix-plan", "gguf", TMX_E_FORMAT,
          "p.json: field \"format\": found \"gguf\", expected \"trianglemix-plan\"" },
        { "\"format\": \"trianglemix-plan\",", "", TMX_E_FORMAT,
          "p.json: field \"format\": missing, expected \"trianglemix-plan\"" },
        /* B2: the file lists every layer, so "out of range" and "repeated" are a wrong number of entries */
        { "[\"dense\", ", "[", TMX_E_FORMAT, "p.json: field \"layers\": 3 entries, expected 4 (model.n_layers)" },
        { "[\"dense\", ", "[\"dense\", \"dense\", ", TMX_E_FORMAT,
          "p.json: field \"layers\": 5 entries, expected 4 (model.n_layers)" },
        { "\"n_layers\": 4", "\"n_layers\": 2147483647", TMX_E_FORMAT,
          "p.json: field \"layers\": 4 entries, expected 2147483647 (model.n_layers)" },
        { "\"n_layers\": 4", "\"n_layers\": 0", TMX_E_FORMAT,
          "p.json: field \"model.n_layers\": found 0, expected 1..2147483647" },
        /* B3 */
        { "\"streaming\"", "\"triangel\"", TMX_E_FORMAT,
          "p.json: field \"layers[1]\": found \"triangel\", expected dense, streaming, triangle, "
          "xattention, flexprefill, minference or s2o" },
        { "\"streaming\"", "\"Dense\"", TMX_E_FORMAT,
          "p.json: field \"layers[1]\": found \"Dense\", expected dense, streaming, triangle, "
          "xattention, flexprefill, minference or s2o" },
        { "\"streaming\"", "[]", TMX_E_FORMAT, "p.json: field \"layers[1]\": found an array, expected a pattern name" },
        { "\"min_tokens\": 0", "\"min_tokens\": -1", TMX_E_FORMAT,
          "p.json: field \"min_tokens\": found -1, expected 0..2147483647" },
        { "\"curve\": [", "\"curve\": [0, ", TMX_E_FORMAT,
          "p.json: field \"curve[0]\": found an integer, expected an object {...}" },
        { "\"curve\": [", "\"curve\": [[], [], [], [], [], ", TMX_E_FORMAT,
          "p.json: field \"curve\": 6 entries, expected at most 5 (model.n_layers + 1)" },
        { "\"kl\": 0", "\"kl\": \"0\"", TMX_E_FORMAT, "p.json: field \"curve[0].kl\": found a string, expected a number" },
        { "\"kl\": 0, ", "", TMX_E_FORMAT, "p.json: field \"curve[0].kl\": missing, expected a number" },
        { "\"kl\": 0", "\"KL\": 0", TMX_E_FORMAT, "p.json: field \"curve[0].KL\": unknown" },
        { "\"kl\": 0", "\"kl\": -1", TMX_E_FORMAT, "p.json: field \"curve[0].kl\": found -1, expected a finite number, "
          "0 or more" },
        { "\"top1\": 1", "\"top1\": 1.5", TMX_E_FORMAT, "p.json: plan curve[0]: kl 0, top1 1.5, score 100, ttft_ms 9.5, "
          "expected finite numbers from 0, top1 up to 1, score up to 100" },
        { "\"n_sparse\": 0", "\"n_sparse\": 5", TMX_E_FORMAT,
          "p.json: plan curve[0]: n_sparse 5, expected 0..4" },
        /* B4; a size beyond the context is legal: it means "all" */
        { "\"n_sink\": 4", "\"n_sink\": -1", TMX_E_FORMAT,
          "p.json: field \"n_sink\": found -1, expected 0..2147483647" },
        { "\"n_window\": 256", "\"n_window\": 0", TMX_E_FORMAT,
          "p.json: field \"n_window\": found 0, expected 1..2147483647" },
        { "\"n_last\": 64", "\"n_last\": 2147483648", TMX_E_FORMAT,
          "p.json: field \"n_last\": found 2147483648, expected 0..2147483647" },
        { "\"n_last\": 64", "\"n_last\": 9223372036854775808", TMX_E_FORMAT,
          "p.json:8:31: too big integer near '9223372036854775808'" },
        { "\"n_last\": 64", "\"n_last\": 64.0", TMX_E_FORMAT,
          "p.json: field \"n_last\": found a number with a fraction or an exponent, expected an integer" },
        { "\"n_last\": 64", "\"n_last\": 1e2", TMX_E_FORMAT,
          "p.json: field \"n_last\": found a number with a fraction or an exponent, expected an integer" },
        { "\"n_last\": 64", "\"n_last\": null", TMX_E_FORMAT,
          "p.json: field \"n_last\": found null, expected an integer" },
        { "\"n_last\": 64", "\"n_last\": true", TMX_E_FORMAT,
          "p.json: field \"n_last\": found a boolean, expected an integer" },
        { "  \"n_last\": 64,\n", "", TMX_E_FORMAT, "p.json: field \"n_last\": missing, expected an integer" },
        /* B5 */
        { "\"llama\"", "\"qwen2\"", TMX_E_UNSUPPORTED,
          "p.json: made for qwen2 with 4 layers, this model is llama with 4 layers" },
        { "\"n_layers\": 4,\n            \"fingerprint\": \"" FINGERPRINT "\"},\n  \"n_sink\": 4,\n"
          "  \"n_window\": 256,\n  \"n_last\": 64,\n  \"layers\": [\"dense\", ",
          "\"n_layers\": 3},\n  \"n_sink\": 4,\n  \"n_window\": 256,\n  \"n_last\": 64,\n  \"layers\": [",
          TMX_E_UNSUPPORTED, "p.json: made for llama with 3 layers, this model is llama with 4 layers" },
        { FINGERPRINT, OTHER_PRINT, TMX_E_UNSUPPORTED, "p.json: made for another model file, other LoRA adapters or "
          "another RoPE base (fingerprint fedcba987654, here 0123456789ab); set \"fingerprint\" to \"\" to use it anyway" },
        { FINGERPRINT, "0123", TMX_E_FORMAT, "p.json: field \"model.fingerprint\": found \"0123\" (4 bytes), "
          "expected 64 hex digits (0-9a-f) or \"\"" },
        { "0123456789abcdef0123", "0123456789ABCDEF0123", TMX_E_FORMAT, "p.json: field \"model.fingerprint\": found "
          "\"0123456789ABCDEF\" (64 bytes), expected 64 hex digits (0-9a-f) or \"\"" },
        { "0123456789abcdef0123", "0123456789abcdef01234", TMX_E_FORMAT,
          "p.json: field \"model.fingerprint\": 65 bytes, expected at most 64" },
        { "\"model\": {", "\"model\": [{", TMX_E_FORMAT, "p.json:6:11: ']' expected near ':'" },
        { "\"architecture\": \"llama\", ", "", TMX_E_FORMAT,
          "p.json: field \"model.architecture\": missing, expected a string" },
        /* B6 */
        { "\"n_sink\": 4,", "\"n_sink\": 4, \"n_sink\": 4,", TMX_E_FORMAT,
          "p.json:6:23: duplicate object key near '\"n_sink\"'" },
        { "\"name\": \"tiny\"", "\"architecture\": \"tiny\"", TMX_E_FORMAT,
          "p.json:4:51: duplicate object key near '\"architecture\"'" },
        { "\"n_last\": 64", "\"n_last\": 1e999", TMX_E_FORMAT, "p.json:8:17: real number overflow near '1e999'" },
        { "\"n_last\": 64", "\"n_last\": NaN", TMX_E_FORMAT, "p.json:8:15: invalid token near 'NaN'" },
        { "\"n_last\": 64", "\"n_last\": 0x40", TMX_E_FORMAT, "p.json:8:14: '}' expected near 'x'" },
        { "\"n_last\": 64", "\"n_last\": 064", TMX_E_FORMAT, "p.json:8:13: invalid token near '0'" },
        { "by hand", "\\ud800", TMX_E_FORMAT, "p.json:10:18: invalid Unicode '\\uD800' near '\"\\ud800\"'" },
        { "by hand", "\\u0000", TMX_E_FORMAT,
          "p.json:10:18: \\u0000 is not allowed without JSON_ALLOW_NUL near '\"\\u0000\"'" },
        { "by hand", "\xc3(", TMX_E_FORMAT, "p.json:10:11: unable to decode byte 0xc3 near '\"'" },
        { "by hand", "a\nb", TMX_E_FORMAT, "p.json:10:12: unexpected newline near '\"a'" },
        { "{\n  \"format\"", "\xef\xbb\xbf{\n  \"format\"", TMX_E_FORMAT,
          "p.json:1:1: starts with a byte order mark, expected plain UTF-8" },
        { "}\n", "}\n}\n", TMX_E_FORMAT, "p.json:12:1: end of file expected near '}'" },
        /* fields we do not know, types we do not expect */
        { "\"n_window\"", "\"n_windw\"", TMX_E_FORMAT, "p.json: field \"n_windw\": unknown" },
        { "\"name\"", "\"nmae\"", TMX_E_FORMAT, "p.json: field \"model.nmae\": unknown" },
        { "\"by hand\"", "7", TMX_E_FORMAT, "p.json: field \"note\": found an integer, expected a string" },
        { "[\"dense\", \"streaming\", \"triangle\", \"triangle\"]", "{}", TMX_E_FORMAT,
          "p.json: field \"layers\": found an object, expected an array of pattern names" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *text = edited(cases[i].from, cases[i].to);
        assert_json_refused(text, strlen(text), cases[i].code, cases[i].text);
        free(text);
    }
    assert_json_refused("[]", 2, TMX_E_FORMAT, "p.json: found an array, expected an object {...}");
    assert_json_refused("", 0, TMX_E_FORMAT, "p.json:1:0: '[' or '{' expected near end of file");
    assert_json_refused("{}\0", 3, TMX_E_FORMAT, "p.json:1:3: end of file expected near end of file");
}

static void every_truncation_is_refused(void **state)
{
    (void)state;
    for (size_t n = 0; n < strlen(good_file) - 1; n++) {
        char *text = malloc(n + (n == 0));             /* exact size: a read past the end is caught by ASan */
        assert_non_null(text);
        memcpy(text, good_file, n);
        tmx_plan *plan = NULL;
        tmx_error err = { .text = "" };
        assert_int_equal(plan_read_json(&plan, text, n, "p.json", NULL, &err), TMX_E_FORMAT);
        assert_true(strncmp(err.text, "p.json:", 7) == 0);
        assert_null(plan);
        free(text);
    }
}

static void long_texts_are_refused(void **state)
{
    (void)state;
    char to[1024], expected[128];
    static const struct { const char *from, *field; int n_max; } cases[] = {
        { "by hand", "note", 511 }, { "tiny", "model.name", 127 }, { "llama", "model.architecture", 63 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int n = cases[i].n_max; n <= cases[i].n_max + 1; n++) {
            memset(to, 'x', (size_t)n);
            to[n] = '\0';
            char *text = edited(cases[i].from, to);
            tmx_plan *plan = NULL;
            tmx_error err = { .text = "" };
            const tmx_status status = plan_read_json(&plan, text, strlen(text), "p.json", NULL, &err);
            assert_int_equal(status, n <= cases[i].n_max ? TMX_OK : TMX_E_FORMAT);
            snprintf(expected, sizeof expected, "p.json: field \"%s\": %d bytes, expected at most %d", cases[i].field,
                     n, cases[i].n_max);
            if (status != TMX_OK) assert_string_equal(err.text, expected);
            tmx_plan_free(plan);
            free(text);
        }
    }
    enum { N_DEEP = 100000 };
    char *deep = malloc(N_DEEP);
    assert_non_null(deep);
    memset(deep, '[', N_DEEP);
    assert_json_refused(deep, N_DEEP, TMX_E_FORMAT, "p.json:1:2049: maximum parsing depth reached near '['");
    free(deep);
    char path[200];
    memset(path, 'd', sizeof path);
    memcpy(path + 100, "\xc3\xa9", 2);
    path[199] = '\0';
    tmx_error err;
    assert_int_equal(plan_read_json(&(tmx_plan *){ NULL }, "[]", 2, path, NULL, &err), TMX_E_FORMAT);
    assert_true(strstr(err.text, "ddd: found an array, expected an object {...}") != NULL);
}

/* B6, B7: what is at the path is not a file we read. */
static void odd_files_are_refused(void **state)
{
    (void)state;
    assert_int_equal(mkdir("folder", 0777), 0);
    assert_int_equal(mkfifo("fifo", 0666), 0);
    assert_int_equal(symlink("loop", "loop"), 0);
    assert_int_equal(symlink("nowhere", "dangling"), 0);
    write_text("huge.json", "{");
    assert_int_equal(truncate("huge.json", (off_t)1 << 30), 0);
    write_text("empty.json", "");
    assert_refused("folder", &smollm, TMX_E_IO, "folder: not a regular file, expected a plan file");
    assert_refused("fifo", &smollm, TMX_E_IO, "fifo: not a regular file, expected a plan file");
    assert_refused("/dev/zero", &smollm, TMX_E_IO, "/dev/zero: not a regular file, expected a plan file");
    assert_refused("loop", &smollm, TMX_E_IO, "loop: Too many levels of symbolic links");
    assert_refused("dangling", &smollm, TMX_E_ARG, "plan 'dangling': no such file, and none of dense, METHOD[:LAYERS], "
                   "mix:METHOD=LAYERS,rest=METHOD, preset:NAME (METHOD triangle, streaming, xattention, flexprefill, minference, s2o; LAYERS as in 5,7,10-29)");
    assert_refused("huge.json", &smollm, TMX_E_FORMAT, "huge.json: 1073741824 bytes, a plan file has at most 1048576");
    assert_refused("empty.json", &smollm, TMX_E_FORMAT, "empty.json:1:0: '[' or '{' expected near end of file");
}

/* ---------------------------------------------------------------- saving */

static void saved_plans_come_back(void **state)
{
    (void)state;
    static const char *const names[] = { "", "tiny", "quote \" slash \\ tab \t",
                                         "caf\xc3\xa9 \xe6\xbc\xa2 \xf0\x9f\x94\xba",
                                         "broken \xff\xc0\x80 \xed\xa0\x80" };
    for (int i = 0; i < 40; i++) {
        const tmx_model_info info = { .architecture = "llama", .name = names[i % 5], .n_layers = 1 + i * 3,
                                      .fingerprint = i % 2 == 0 ? FINGERPRINT : "" };
        tmx_plan *plan, *back;
        tmx_error err = { .text = "" };
        char spec[32];
        snprintf(spec, sizeof spec, "%s:%d-%d", i % 3 == 0 ? "streaming" : "triangle", i, 3 * i);
        assert_int_equal(tmx_plan_parse(&plan, i % 7 == 6 ? "dense" : spec, &info, NULL), TMX_OK);
        const int32_t n_window = i % 4 == 0 ? INT32_MAX : 1 + i, n_last = i % 5 == 0 ? -1 : i;
        assert_int_equal(tmx_plan_set_sizes(plan, i % 3 * 4, n_window, n_last, NULL), TMX_OK);
        assert_int_equal(tmx_plan_set_note(plan, names[i % 4], NULL), TMX_OK);
        if (tmx_plan_save(plan, "plan.json", &err) != TMX_OK) fail_msg("%s", err.text);
        assert_int_equal(count_files(), 1);
        if (tmx_plan_parse(&back, "plan.json", &info, &err) != TMX_OK) fail_msg("%s", err.text);
        assert_memory_equal(plan->layers, back->layers, (size_t)plan->n_layers * sizeof *plan->layers);
        assert_int_equal(plan->n_layers, back->n_layers);
        assert_string_equal(plan->model.architecture, back->model.architecture);
        assert_string_equal(plan->model.name, back->model.name);
        assert_string_equal(plan->model.fingerprint, back->model.fingerprint);
        assert_string_equal(plan->note, back->note);
        tmx_plan_free(plan);
        tmx_plan_free(back);
    }
}

static void saved_text_is_for_people(void **state)
{
    (void)state;
    tmx_plan *plan;
    assert_int_equal(plan_create_dense(&plan, 2, NULL), TMX_OK);
    plan->layers[1].kind = TMX_PATTERN_TRIANGLE;
    char *text;
    size_t n_bytes;
    assert_int_equal(plan_json_text(plan, &text, &n_bytes, NULL), TMX_OK);
    assert_string_equal(text,
        "{\n  \"format\": \"trianglemix-plan\",\n  \"version\": 1,\n  \"model\": {\n    \"architecture\": \"\",\n"
        "    \"name\": \"\",\n    \"n_layers\": 2,\n    \"fingerprint\": \"\"\n  },\n  \"n_sink\": 8,\n"
        "  \"n_window\": 512,\n  \"n_last\": 128,\n  \"layers\": [\n    \"dense\",\n    \"triangle\"\n  ],\n"
        "  \"note\": \"\"\n}\n");
    assert_int_equal(n_bytes, strlen(text));
    mem_free(text);
    tmx_plan_free(plan);
}

static void assert_not_saved(const tmx_plan *plan, const char *path, const char *text)
{
    const int32_t n_files = count_files();
    tmx_error err = { .text = "" };
    assert_int_equal(tmx_plan_save(plan, path, &err), TMX_E_IO);
    assert_string_equal(err.text, text);
    assert_int_equal(count_files(), n_files);          /* no temporary stays behind */
}

static void a_failed_save_leaves_everything(void **state)
{
    (void)state;
    tmx_plan *plan;
    assert_int_equal(tmx_plan_parse(&plan, "triangle", &smollm, NULL), TMX_OK);
    assert_int_equal(mkdir("folder", 0777), 0);
    assert_int_equal(mkdir("read-only", 0555), 0);
    assert_int_equal(symlink("loop", "loop"), 0);
    assert_int_equal(mkfifo("fifo", 0666), 0);
    write_text("old.json", good_file);
    assert_not_saved(plan, "folder", "folder: not a regular file, left as it is");
    assert_not_saved(plan, "loop", "loop: not a regular file, left as it is");
    assert_not_saved(plan, "fifo", "fifo: not a regular file, left as it is");
    assert_not_saved(plan, "none/p.json", "none/p.json: cannot create a file in its folder: No such file or directory");
    assert_not_saved(plan, "old.json/p.json", "old.json/p.json: cannot create a file in its folder: Not a directory");
    assert_not_saved(plan, "absent/", "absent/: cannot create a file in its folder: No such file or directory");
    assert_int_equal(tmx_plan_save(plan, "/proc/tmx-plan.json", NULL), TMX_E_IO);
    char path[5000];
    memset(path, 'd', sizeof path);
    path[4999] = '\0';
    tmx_error err = { .text = "" };
    assert_int_equal(tmx_plan_save(plan, path, &err), TMX_E_IO);
    assert_string_equal(strchr(err.text, ':'), ": cannot create a file in its folder: File name too long");
    if (geteuid() == 0) print_message("skipped: root may write into any folder\n");
    else {
        assert_not_saved(plan, "read-only/p.json",
                         "read-only/p.json: cannot create a file in its folder: Permission denied");
    }

    is_fsync_broken = true;
    assert_not_saved(plan, "old.json", "old.json: not written: Input/output error");
    is_fsync_broken = false;
    is_rename_broken = true;
    assert_not_saved(plan, "old.json", "old.json: not written: Read-only file system");
    is_rename_broken = false;

    struct rlimit old_limit, limit;                    /* the disk is full after 100 bytes */
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
    limit = (struct rlimit){ .rlim_cur = 100, .rlim_max = old_limit.rlim_max };
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const tmx_status status = tmx_plan_save(plan, "old.json", &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old_limit), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(status, TMX_E_IO);
    assert_string_equal(err.text, "old.json: not written: File too large");
    assert_int_equal(count_files(), 5);
    assert_parses_to("old.json", &four_layers,
                     "triangle 2-3 (sink 4, window 256, last 64), streaming 1 (sink 4, window 256), dense 0");

    assert_int_equal(tmx_plan_save(plan, "", NULL), TMX_E_ARG);
    assert_int_equal(tmx_plan_save(plan, NULL, NULL), TMX_E_ARG);
    assert_int_equal(tmx_plan_save(NULL, "p.json", NULL), TMX_E_ARG);
    tmx_plan_free(plan);
}

static void saved_files_obey_the_umask(void **state)
{
    (void)state;
    tmx_plan *plan;
    struct stat st;
    assert_int_equal(plan_create_dense(&plan, 3, NULL), TMX_OK);
    const mode_t old_mask = umask(027);
    assert_int_equal(tmx_plan_save(plan, "plan.json", NULL), TMX_OK);
    umask(old_mask);
    assert_int_equal(stat("plan.json", &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    tmx_plan_free(plan);
}

/* ---------------------------------------------------------------- the object */

static void sizes_and_notes_are_checked(void **state)
{
    (void)state;
    tmx_plan *plan, *copy;
    tmx_error err;
    assert_int_equal(tmx_plan_parse(&plan, "triangle:1-2", &four_layers, NULL), TMX_OK);
    assert_int_equal(tmx_plan_set_sizes(plan, 0, 1, 0, NULL), TMX_OK);
    assert_int_equal(tmx_plan_set_sizes(plan, -1, 77, -1, NULL), TMX_OK);
    assert_int_equal(tmx_plan_set_sizes(plan, -2, 5, 5, &err), TMX_E_ARG);
    assert_string_equal(err.text, "pattern n_sink: -2, expected 0 or more");
    assert_int_equal(tmx_plan_set_sizes(plan, 5, 0, 5, &err), TMX_E_ARG);
    assert_string_equal(err.text, "pattern n_window: 0, expected 1 or more");
    assert_int_equal(tmx_plan_set_sizes(plan, 5, 5, INT32_MIN, &err), TMX_E_ARG);
    assert_string_equal(err.text, "pattern n_last: -2147483648, expected 0 or more");
    assert_int_equal(tmx_plan_set_sizes(NULL, 5, 5, 5, &err), TMX_E_ARG);
    char text[128];
    assert_string_equal(tmx_plan_text(plan, text, sizeof text), "triangle 1-2 (sink 0, window 77, last 0), dense 0,3");

    char note[513];
    memset(note, 'n', 512);
    note[512] = '\0';
    assert_int_equal(tmx_plan_set_note(plan, note, &err), TMX_E_ARG);
    assert_string_equal(err.text, "plan note: 512 bytes, expected at most 511");
    assert_int_equal(tmx_plan_set_note(plan, "\xc0\x80", &err), TMX_E_ARG);
    assert_string_equal(err.text, "plan note: not valid UTF-8");
    assert_int_equal(tmx_plan_set_note(plan, NULL, NULL), TMX_E_ARG);
    assert_int_equal(tmx_plan_set_note(plan, note + 1, NULL), TMX_OK);
    assert_int_equal(tmx_plan_set_note(plan, tmx_plan_note(plan), NULL), TMX_OK);
    assert_string_equal(tmx_plan_note(plan), note + 1);
    assert_int_equal(tmx_plan_set_note(plan, "short", NULL), TMX_OK);
    assert_string_equal(tmx_plan_note(plan), "short");

    assert_int_equal(plan_copy(&copy, plan, NULL), TMX_OK);
    assert_ptr_not_equal(copy->layers, plan->layers);
    assert_int_equal(tmx_plan_set_sizes(plan, 1, 1, 1, NULL), TMX_OK);
    assert_string_equal(tmx_plan_text(copy, text, sizeof text), "triangle 1-2 (sink 0, window 77, last 0), dense 0,3");
    assert_string_equal(tmx_plan_note(copy), "short");
    tmx_plan_free(copy);
    tmx_plan_free(plan);
}

static void curves_are_checked_and_kept(void **state)
{
    (void)state;
    static const tmx_plan_point good[] = { { 0, 0, 1, 100, 812.5 }, { 2, 0.1, 0.75, 97.5, 700 }, { 4, 3e-7, 0, 0, 0 } };
    static const struct { tmx_plan_point point; const char *text; } bad[] = {
        { { -1, 0, 1, 100, 1 }, "plan curve[1]: n_sparse -1, expected 1..4" },
        { { 0, 0, 1, 100, 1 }, "plan curve[1]: n_sparse 0, expected 1..4" },
        { { 5, 0, 1, 100, 1 }, "plan curve[1]: n_sparse 5, expected 1..4" },
        { { 1, -1e-9, 1, 100, 1 }, "plan curve[1]: kl -1e-09, top1 1, " },
        { { 1, 0, 1.01, 100, 1 }, "plan curve[1]: kl 0, top1 1.01, " },
        { { 1, 0, 1, 100.5, 1 }, "plan curve[1]: kl 0, top1 1, score 100.5, " },
        { { 1, 0, 1, 100, INFINITY }, "plan curve[1]: kl 0, top1 1, score 100, ttft_ms inf, " },
        { { 1, NAN, 1, 100, 1 }, "plan curve[1]: kl nan, " },
    };
    tmx_plan *plan, *back;
    tmx_error err;
    int32_t n = -1;
    assert_int_equal(tmx_plan_parse(&plan, "triangle:1-2", &four_layers, NULL), TMX_OK);
    assert_null(tmx_plan_curve(plan, &n));
    assert_int_equal(n, 0);
    assert_int_equal(tmx_plan_set_curve(plan, good, 3, NULL), TMX_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const tmx_plan_point points[] = { good[0], bad[i].point };
        assert_int_equal(tmx_plan_set_curve(plan, points, 2, &err), TMX_E_ARG);
        assert_memory_equal(err.text, bad[i].text, strlen(bad[i].text));
    }
    assert_int_equal(tmx_plan_set_curve(plan, good, 6, &err), TMX_E_ARG);
    assert_string_equal(err.text, "plan curve: 6 points, expected 0..5");
    assert_int_equal(tmx_plan_set_curve(plan, NULL, 1, NULL), TMX_E_ARG);
    assert_int_equal(tmx_plan_set_curve(NULL, good, 1, NULL), TMX_E_ARG);
    assert_int_equal(tmx_plan_set_min_tokens(plan, -1, &err), TMX_E_ARG);
    assert_string_equal(err.text, "plan min_tokens: -1, expected 0 or more");
    assert_int_equal(tmx_plan_set_min_tokens(plan, 1024, NULL), TMX_OK);

    char text[128];
    assert_int_equal(tmx_plan_save(plan, "curve.json", NULL), TMX_OK);
    assert_parses_to("curve.json", &four_layers,
                     "triangle 1-2 (sink 8, window 512, last 128), dense 0,3; dense below 1024 tokens");
    assert_int_equal(tmx_plan_parse(&back, "curve.json", &four_layers, NULL), TMX_OK);
    assert_memory_equal(tmx_plan_curve(back, &n), good, sizeof good);
    assert_int_equal(n, 3);
    assert_int_equal(tmx_plan_min_tokens(back), 1024);
    tmx_plan_free(plan);
    assert_int_equal(plan_copy(&plan, back, NULL), TMX_OK);
    assert_memory_equal(tmx_plan_curve(plan, &n), good, sizeof good);
    assert_int_equal(tmx_plan_set_curve(plan, tmx_plan_curve(plan, NULL), 2, NULL), TMX_OK);
    assert_memory_equal(tmx_plan_curve(plan, &n), good, 2 * sizeof good[0]);
    assert_int_equal(tmx_plan_set_curve(plan, NULL, 0, NULL), TMX_OK);
    assert_int_equal(tmx_plan_set_min_tokens(plan, 0, NULL), TMX_OK);
    assert_null(tmx_plan_curve(plan, NULL));
    assert_string_equal(tmx_plan_text(plan, text, sizeof text), "triangle 1-2 (sink 8, window 512, last 128), dense 0,3");
    tmx_plan_free(plan);
    tmx_plan_free(back);
}

static void accessors_accept_anything(void **state)
{
    (void)state;
    tmx_plan *plan;
    tmx_error err;
    assert_int_equal(plan_create_dense(&plan, 0, &err), TMX_E_ARG);
    assert_string_equal(err.text, "plan: 0 layers, expected 1 or more");
    assert_int_equal(plan_create_dense(&plan, 4, NULL), TMX_OK);
    assert_null(tmx_plan_layer(plan, -1));
    assert_null(tmx_plan_layer(plan, 4));
    assert_int_equal(tmx_plan_layer(plan, 3)->kind, TMX_PATTERN_DENSE);
    assert_null(tmx_plan_layer(NULL, 0));
    assert_int_equal(tmx_plan_n_layers(NULL), 0);
    assert_string_equal(tmx_plan_note(NULL), "");
    tmx_plan_free(plan);
    tmx_plan_free(NULL);
}

static void text_is_cut_to_fit(void **state)
{
    (void)state;
    static const char whole[] = "triangle 1,3 (sink 8, window 512, last 128), dense 0,2";
    tmx_plan *plan;
    assert_int_equal(tmx_plan_parse(&plan, "triangle:1,3", &four_layers, NULL), TMX_OK);
    for (size_t size = 1; size <= sizeof whole + 1; size++) {
        char *buf = malloc(size);
        assert_non_null(buf);
        memset(buf, '~', size);
        assert_ptr_equal(tmx_plan_text(plan, buf, size), buf);
        const size_t n = size - 1 < strlen(whole) ? size - 1 : strlen(whole);
        assert_int_equal(strlen(buf), n);
        assert_memory_equal(buf, whole, n);
        free(buf);
    }
    char untouched = '~';
    assert_ptr_equal(tmx_plan_text(plan, &untouched, 0), &untouched);
    assert_int_equal(untouched, '~');
    assert_null(tmx_plan_text(plan, NULL, 10));
    assert_string_equal(tmx_plan_text(NULL, (char[4]){ "abc" }, 4), "");
    tmx_plan_free(plan);
}

static void utf8_is_judged_exactly(void **state)
{
    (void)state;
    static const char *const good[] = { "", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                                        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf" };
    static const char *const bad[] = { "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2z", "\xe0\x9f\xbf",
                                       "\xe1\x80", "\xed\xa0\x80", "\xef\xbf", "\xf0\x8f\xbf\xbf", "\xf0\x90\x80",
                                       "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff" };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) assert_true(is_utf8(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(is_utf8(bad[i]));
    tmx_plan *plan;                                    /* a long name is cut between characters, not inside one */
    char name[200];
    memset(name, 'n', sizeof name);
    memcpy(name + 125, "\xe6\xbc\xa2", 3);
    name[199] = '\0';
    const tmx_model_info info = { .architecture = "llama", .name = name, .n_layers = 1 };
    assert_int_equal(tmx_plan_parse(&plan, "dense", &info, NULL), TMX_OK);
    assert_int_equal(strlen(plan->model.name), 125);
    tmx_plan_free(plan);
}

/* ---------------------------------------------------------------- memory that ends anywhere */

typedef tmx_status (*attempt)(tmx_plan **plan, tmx_error *err);

static tmx_status try_spec(tmx_plan **plan, tmx_error *err)
{
    return tmx_plan_parse(plan, "triangle:1-2", &four_layers, err);
}

static tmx_status try_table(tmx_plan **plan, tmx_error *err)
{
    return tmx_plan_parse(plan, "xattention(thresholds=t.json)", &three, err);
}

static tmx_status try_file(tmx_plan **plan, tmx_error *err)
{
    return tmx_plan_parse(plan, "good.json", &four_layers, err);
}

static tmx_status try_copy(tmx_plan **plan, tmx_error *err) { return plan_copy(plan, *plan, err); }

static tmx_status try_save(tmx_plan **plan, tmx_error *err) { return tmx_plan_save(*plan, "saved.json", err); }

/* Lets the n-th allocation fail for n = 0, 1, ... until all succeed; returns how many there are. */
static int64_t fail_each_allocation(attempt try, tmx_plan **plan, bool may_be_format)
{
    tmx_plan *const before = *plan;
    for (int64_t n = 0; n < 1000; n++) {
        tmx_error err = { .text = "" };
        n_allocs_left = n;
        const tmx_status status = try(plan, &err);
        n_allocs_left = INT64_MAX;
        if (status == TMX_OK) return n;
        assert_true(status == TMX_E_MEMORY || (may_be_format && status == TMX_E_FORMAT));
        assert_int_equal(err.code, status);
        assert_true(strlen(err.text) > 10 && err.text[strlen(err.text) - 1] != ' ');
        assert_ptr_equal(*plan, before);
    }
    fail_msg("never enough memory");
    return 0;
}

static void memory_may_end_anywhere(void **state)
{
    (void)state;
    json_set_alloc_funcs(scarce_malloc, free);
    write_text("good.json", good_file);
    tmx_plan *plan = NULL;
    assert_int_equal(fail_each_allocation(try_spec, &plan, false), 4);     /* plan, layers, flags twice */
    tmx_plan *copy = plan, *table = NULL;
    assert_int_equal(fail_each_allocation(try_copy, &copy, false), 2);
    write_text("t.json", thresholds);
    assert_true(fail_each_allocation(try_table, &table, true) > 10);
    tmx_plan *copied = table;
    assert_int_equal(fail_each_allocation(try_copy, &copied, false), 3);
    assert_true(fail_each_allocation(try_save, &table, false) > 20);
    assert_true(fail_each_allocation(try_save, &plan, false) > 20);
    tmx_plan *read = NULL;
    assert_true(fail_each_allocation(try_file, &read, true) > 20);         /* jansson takes some for bad syntax */
    json_set_alloc_funcs(malloc, free);
    assert_int_equal(count_files(), 3);
    tmx_plan_free(plan);
    tmx_plan_free(copy);
    tmx_plan_free(table);
    tmx_plan_free(copied);
    tmx_plan_free(read);
    assert_parses_to("saved.json", &four_layers, "triangle 1-2 (sink 8, window 512, last 128), dense 0,3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(specs_choose_layers, enter_folder, leave_folder),
        cmocka_unit_test_setup_teardown(bad_specs_are_explained, enter_folder, leave_folder),
        cmocka_unit_test(mixes_and_methods_are_read),
        cmocka_unit_test(bad_mixes_are_explained),
        cmocka_unit_test(dynamic_plans_are_files_of_version_2),
        cmocka_unit_test_setup_teardown(configurations_are_read_and_kept, enter_folder, leave_folder),
        cmocka_unit_test(broken_configurations_are_explained),
        cmocka_unit_test_setup_teardown(thresholds_are_read_and_kept, enter_folder, leave_folder),
        cmocka_unit_test(tables_are_told_apart),
        cmocka_unit_test(broken_thresholds_are_explained),
        cmocka_unit_test(estimates_per_chunk_are_named_and_kept),
        cmocka_unit_test(a_refused_list_leaves_the_flags),
        cmocka_unit_test(presets_fit_their_model_only),
        cmocka_unit_test_setup_teardown(files_say_what_they_mean, enter_folder, leave_folder),
        cmocka_unit_test(wrong_files_are_explained),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(long_texts_are_refused),
        cmocka_unit_test_setup_teardown(odd_files_are_refused, enter_folder, leave_folder),
        cmocka_unit_test_setup_teardown(saved_plans_come_back, enter_folder, leave_folder),
        cmocka_unit_test(saved_text_is_for_people),
        cmocka_unit_test_setup_teardown(a_failed_save_leaves_everything, enter_folder, leave_folder),
        cmocka_unit_test_setup_teardown(saved_files_obey_the_umask, enter_folder, leave_folder),
        cmocka_unit_test(sizes_and_notes_are_checked),
        cmocka_unit_test_setup_teardown(curves_are_checked_and_kept, enter_folder, leave_folder),
        cmocka_unit_test(accessors_accept_anything),
        cmocka_unit_test(text_is_cut_to_fit),
        cmocka_unit_test(utf8_is_judged_exactly),
        cmocka_unit_test_setup_teardown(memory_may_end_anywhere, enter_folder, leave_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
