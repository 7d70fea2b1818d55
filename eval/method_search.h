/* method_search.h - which dense layers of a plan get which dynamic method.  In: what every method costs in every layer, and two functions
 * that measure a choice.  Out: a choice.  It measures nothing itself.
 *
 *   costs     A method with which the prompt as a whole does not take less time than with dense layers is out, and so is a method in
 *             a layer where attention, its estimate included, does not take less.
 *   fits      First the fastest method of every layer, in all layers at once: if it is inside the budget, nothing is better.  Else layer
 *             by layer in the order given: its methods, fastest first, beside what the layers before it got, and dense layers behind; the
 *             first that is inside stays.  Losses need not add up, so a layer that gets none does not end the search.
 *   pays      What was chosen must be faster than dense layers as a whole, too: a single layer of a method that takes the prompt in one
 *             piece may cost the others more than it saves.  If it is not, the method of the fewest layers goes, and the rest is
 *             measured again.
 *
 * With R layers and M methods, fits is asked at most R M + M times and pays at most M times. */
#ifndef TMX_EVAL_METHOD_SEARCH_H
#define TMX_EVAL_METHOD_SEARCH_H

#include <stdbool.h>
#include <stdint.h>

enum { METHOD_NONE = -1, METHODS_MAX = 8 };

/* All times of the same prompts.  Column 0 is with no method in any of the layers, column 1 + m with method m in all of them. */
typedef struct method_costs {
    int32_t n_layers, n_methods;   /* n_methods <= METHODS_MAX */
    const double *ttft_ms;         /* [1 + n_methods] */
    const double *layer_ms;        /* [1 + n_methods][n_layers]: attention */
} method_costs;

typedef struct method_judge {
    /* choice [n_layers]: METHOD_NONE or a method.  1 yes, 0 no, -1 stopped. */
    int (*fits)(void *ctx, const int32_t *choice);     /* is its loss inside the budget?  That of no method is. */
    int (*pays)(void *ctx, const int32_t *choice);     /* is it faster than no method? */
    void *ctx;
} method_judge;

/* May method m run in this layer, by its costs alone? */
bool method_is_faster(const method_costs *c, int32_t layer, int32_t m);

/* Writes choice [n_layers].  0, or -1 if fits or pays gave -1. */
int method_search(int32_t *choice, const method_costs *costs, const method_judge *judge);

#endif
