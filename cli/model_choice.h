/* model_choice.h - -m or --random-weights, --lora, --lora-scaled, --rope-freq-base, --compute, --isa, --device -> how the library opens the model,
 * and an open model. */
#ifndef TMX_CLI_MODEL_CHOICE_H
#define TMX_CLI_MODEL_CHOICE_H

#include "commands.h"
#include "report.h"
#include "tmx.h"

/* Sets the fields that `changes` speaks of.  loras [MAX_TEXTS] is the memory behind params->loras. */
void model_choose(const model_changes *changes, tmx_lora *loras, tmx_model_params *params);
/* --device, whose default is auto. */
static inline const char *device_choose(const char *given) { return given != NULL ? given : "auto"; }

typedef struct model_opening {
    const char *path;
    const char *random_shape;      /* NULL: open path */
    const model_changes *changes;
    int32_t compute;
    const char *isa, *device;      /* NULL = the library's default */
    bool is_quiet;                 /* no warnings */
} model_opening;
/* 0, or an exit code after a line on standard error. */
int open_chosen_model(tmx_model **model, const model_opening *o, tmx_pool *pool);

/* "adapters": [{"path": ..., "scale": ...}] */
void json_adapters(json_writer *j, const model_changes *changes);

#endif
