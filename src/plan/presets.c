#include "base/status.h"
#include "plan/plan_parts.h"

#include <stdio.h>
#include <string.h>

/* Which layers are triangle, and who says so.  llama-* and qwen2.5-*: arXiv 2507.21526 and its code, starting layers
 * 16, 16 and 20, every layer from there on.  qwen3-8b: the list of the Ascend NPU port.  smollm2-135m-instruct: ours, by
 * tmx probe and a budget (docs/plans.md). */
static const struct { const char *name, *architecture; int32_t n_layers; const char *layers; } presets[] = {
    { .name = "llama-3.1-8b-instruct", .architecture = "llama", .n_layers = 32, .layers = "16-31" },
    { .name = "llama-3-8b-262k", .architecture = "llama", .n_layers = 32, .layers = "16-31" },
    { .name = "qwen2.5-7b-instruct", .architecture = "qwen2", .n_layers = 28, .layers = "20-27" },
    { .name = "qwen3-8b", .architecture = "qwen3", .n_layers = 36, .layers = "5,7,10,15-35" },
    { .name = "smollm2-135m-instruct", .architecture = "llama", .n_layers = 30, .layers = "9-11,13,15,17-19,21-29" },
};
enum { N_PRESETS = sizeof presets / sizeof presets[0] };

int32_t tmx_preset_count(void) { return N_PRESETS; }

const char *tmx_preset_name(int32_t i) { return i >= 0 && i < N_PRESETS ? presets[i].name : NULL; }

tmx_status preset_layers(const char **layers, const char *name, const tmx_model_info *info, tmx_error *err)
{
    for (int32_t i = 0; i < N_PRESETS; i++) {
        if (strcmp(name, presets[i].name) != 0) continue;
        if (strcmp(info->architecture, presets[i].architecture) != 0 || info->n_layers != presets[i].n_layers) {
            return refuse(err, TMX_E_UNSUPPORTED, "preset %s: made for %s with %d layers, this model is %.24s with %d "
                          "layers", name, presets[i].architecture, presets[i].n_layers, info->architecture,
                          info->n_layers);
        }
        *layers = presets[i].layers;
        return TMX_OK;
    }
    char known[160] = "";
    for (int32_t i = 0; i < N_PRESETS; i++) {
        const size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i == 0 ? "" : ", ", presets[i].name);
    }
    return refuse(err, TMX_E_ARG, "preset '%.40s': unknown, expected one of %s", name, known);
}
