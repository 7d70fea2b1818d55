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

static void on_warning(void *ctx, const char *line)
{
    (void)ctx;
    print_warning(line);
}

int open_chosen_model(tmx_model **model, const model_opening *o, tmx_pool *pool)
{
    tmx_error err;
    tmx_lora loras[MAX_TEXTS];
    tmx_model_params params = { .compute = (tmx_compute)o->compute, .warn = o->is_quiet ? NULL : on_warning, .device = o->device };
    model_choose(o->changes, loras, &params);
    if (o->isa != NULL && tmx_isa_parse(o->isa, &params.isa, &err) != TMX_OK) return complain_error(&err);
    const tmx_status status = o->random_shape != NULL ? tmx_model_open_random(model, o->random_shape, &params, pool, &err)
                                                      : tmx_model_open(model, o->path, &params, pool, &err);
    return status == TMX_OK ? 0 : complain_error(&err);
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
