#include "model_choice.h"

void model_choose(const model_changes *changes, tmx_lora *loras, tmx_model_params *params)
{
    for (int32_t i = 0; i < changes->loras.n; i++) {
        loras[i] = (tmx_lora){ .path = changes->loras.items[i], .scale = (float)changes->loras.scales[i] };
    }
    params->loras = loras;
    params->n_loras = changes->loras.n;
    params->rope_freq_base = (float)changes->rope_freq_base;
}

void json_adapters(json_writer *j, const model_changes *changes)
{
    json_begin_array(j, "adapters");
    for (int32_t i = 0; i < changes->loras.n; i++) {
        json_begin_object(j, NULL);
        json_text(j, "path", changes->loras.items[i]);
        json_number(j, "scale", changes->loras.scales[i]);
        json_end(j);
    }
    json_end(j);
}
