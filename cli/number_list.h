/* number_list.h - "512,1024-8192*2" -> numbers, as llama-bench reads them.  In: the texts of an option.  Out: the numbers in the
 * order given, or one line that says what is wrong. */
#ifndef TMX_CLI_NUMBER_LIST_H
#define TMX_CLI_NUMBER_LIST_H

#include "options.h"

enum { MAX_NUMBERS = 256 };
typedef struct number_list {
    int32_t items[MAX_NUMBERS];
    int32_t n;
} number_list;

/* Numbers and ranges, separated by commas: a-b counts by one, a-b+s adds s, a-b*m multiplies by m.  Each in [min, max], min >= 0.
 * Appends.  false: `why` holds one line. */
bool numbers_add(number_list *list, const char *option, const char *text, int32_t min, int32_t max, char *why, size_t size);

#endif
