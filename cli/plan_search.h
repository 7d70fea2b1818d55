/* plan_search.h - tmx plan --search minference: options -> prompts of one task, a search (tmx_minference_search), a file. */
#ifndef TMX_CLI_PLAN_SEARCH_H
#define TMX_CLI_PLAN_SEARCH_H

#include "commands.h"
#include "tmx.h"

/* Returns an exit code. */
int search_minference(const plan_options *o, const tmx_model *model, tmx_pool *pool);

#endif
