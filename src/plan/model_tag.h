/* model_tag.h - which model a file of ours (plan, probe report) was made for.  In: a model's info, or the file's "model" object.
 * Out: the tag, or a refusal when file and model do not belong together. */
#ifndef TMX_PLAN_MODEL_TAG_H
#define TMX_PLAN_MODEL_TAG_H

#include "plan/strict_json.h"

typedef struct model_tag {
    char architecture[64], name[128], fingerprint[65];     /* UTF-8; "" = any model of that many layers */
} model_tag;

model_tag model_tag_of(const tmx_model_info *info);
tmx_status model_tag_read(const strict_reader *r, json_t *root, model_tag *tag, int32_t *n_layers);
/* TMX_E_UNSUPPORTED: another architecture, number of layers or file. */
tmx_status model_tag_check(const strict_reader *r, const model_tag *tag, int32_t n_layers, const tmx_model_info *info);
json_t *model_tag_json(const model_tag *tag, int32_t n_layers);        /* NULL: out of memory */

bool is_utf8(const char *text);

#endif
