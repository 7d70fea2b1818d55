/* model_choice.h - -m, --lora, --lora-scaled, --rope-freq-base -> how the library opens the model. */
#ifndef TMX_CLI_MODEL_CHOICE_H
#define TMX_CLI_MODEL_CHOICE_H

#include "commands.h"
#include "report.h"
#include "tmx.h"

/* Sets the fields that `changes` speaks of.  loras [MAX_TEXTS] is the memory behind params->loras. */
void model_choose(const model_changes *changes, tmx_lora *loras, tmx_model_params *params);
/* --device, whose default is auto. */
static inline const char *device_choose(const char *given) { return given != NULL ? given : "auto"; }
/* "adapters": [{"path": ..., "scale": ...}] */
void json_adapters(json_writer *j, const model_changes *changes);

#endif
