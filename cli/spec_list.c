#include "spec_list.h"

#include <stdlib.h>
#include <string.h>

/* "7", "10-29" */
static bool is_layers(const char *at, size_t n)
{
    const size_t n_first = strspn(at, "0123456789");
    if (n_first == 0 || n_first >= n || at[n_first] != '-') return n_first > 0 && n_first == n;
    const size_t n_last = strspn(at + n_first + 1, "0123456789");
    return n_last > 0 && n_first + 1 + n_last == n;
}

bool specs_split(spec_list *list, const text_list *texts, char *why, size_t size)
{
    *list = (spec_list){ .n = 0 };
    for (int32_t i = 0; i < texts->n; i++) {
        char *at = list->copies[i] = strdup(texts->items[i]);
        if (at == NULL) {
            snprintf(why, size, "out of memory for the plans");
            return false;
        }
        for (const char *spec = at; spec != NULL;) {
            if (list->n == MAX_TEXTS) {
                snprintf(why, size, "option --plan: more than %d plans", MAX_TEXTS);
                return false;
            }
            list->items[list->n++] = spec;
            char *comma = strchr(spec, ',');
            while (comma != NULL && is_layers(comma + 1, strcspn(comma + 1, ","))) comma = strchr(comma + 1, ',');
            spec = NULL;
            if (comma != NULL) {
                *comma = '\0';
                spec = comma + 1;
            }
        }
    }
    return true;
}

void specs_free(spec_list *list)
{
    for (int32_t i = 0; i < MAX_TEXTS; i++) free(list->copies[i]);
}
