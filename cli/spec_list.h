/* spec_list.h - several plans, or methods, in one option.  In: the texts of --plan, or that of --methods.  Out: one spec each.
 *
 * A comma outside parentheses ends a spec unless what stands between it and the next one belongs to the spec before: a layer or
 * a range of layers, "7" or "10-29", or after "mix:" an item, which is a method and "=".  So
 * "dense,triangle:5,7,10-29,mix:triangle=3,rest=xattention(stride=8,threshold=0.9),x.json" is four plans, and only a file whose
 * own name has a comma or an open parenthesis cannot be named beside others. */
#ifndef TMX_CLI_SPEC_LIST_H
#define TMX_CLI_SPEC_LIST_H

#include "options.h"

typedef struct spec_list {
    const char *items[MAX_TEXTS];
    int32_t n;
    char *copies[MAX_TEXTS];       /* of the texts, cut; what items point into */
} spec_list;

/* false: memory ran out, or there are more than MAX_TEXTS plans (`why` says which).  To be freed in any case. */
bool specs_split(spec_list *list, const text_list *texts, char *why, size_t size);
/* The methods of --methods: parted by ";" outside parentheses, spaces around them taken off. */
bool methods_split(spec_list *list, const char *text, char *why, size_t size);
void specs_free(spec_list *list);

#endif
