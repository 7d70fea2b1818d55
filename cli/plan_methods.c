#include "plan_methods.h"

#include "report.h"

#include <string.h>

static const char option[] = "option --methods";

/* The dynamic kind whose name the spec begins with; TMX_PATTERN_DENSE: there is none. */
static tmx_pattern_kind kind_of(const char *spec)
{
    static const tmx_pattern_kind kinds[] = { TMX_PATTERN_XATTENTION, TMX_PATTERN_FLEXPREFILL, TMX_PATTERN_MINFERENCE, TMX_PATTERN_S2O };
    const size_t n = strcspn(spec, "(");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        const char *name = tmx_pattern_name(kinds[i]);
        if (strlen(name) == n && memcmp(spec, name, n) == 0) return kinds[i];
    }
    return TMX_PATTERN_DENSE;
}

/* "NAME" or "NAME(...)", and nothing behind: layers are the search's to name. */
static int check_method(const char *spec, const tmx_model_info *info, uint32_t *kinds)
{
    const tmx_pattern_kind kind = kind_of(spec);
    const char *bracket = strchr(spec, '(');
    if (kind == TMX_PATTERN_DENSE || (bracket != NULL && strchr(bracket, ')') != spec + strlen(spec) - 1)) {
        return complain(EXIT_INPUT, "%s: '%.80s' is not one of xattention, flexprefill, minference and s2o with or without (parameters), and no layers",
                        option, spec);
    }
    if (*kinds >> kind & 1) {
        return complain(EXIT_INPUT, "%s: %s is named twice, a plan has one setting of each method", option, tmx_pattern_name(kind));
    }
    *kinds |= 1u << kind;
    tmx_plan *plan;
    tmx_error err;
    if (tmx_plan_parse(&plan, spec, info, &err) != TMX_OK) {
        return err.code == TMX_E_ARG ? complain(EXIT_INPUT, "%s: %s", option, err.text) : complain_error(&err);
    }
    tmx_plan_free(plan);
    return 0;
}

int methods_parse(spec_list *methods, const char *text, const tmx_model_info *info)
{
    char why[128];
    uint32_t kinds = 0;
    int code = 0;
    if (!methods_split(methods, text, why, sizeof why)) return complain(EXIT_RESOURCES, "%s: %s", option, why);
    for (int32_t i = 0; i < methods->n && code == 0; i++) code = check_method(methods->items[i], info, &kinds);
    return code;
}

/* Times of rows that took turns; the chosen one was measured later, and its own race says what it saves. */
static void print_row(const char *name, const method_row *row, bool has_times)
{
    const tmx_plan_point *p = &row->point;
    char ttft[32], attention[32];
    printf("%-44s %6d %10.3g %6.0f %% %8.1f", name, row->n_layers, p->kl, 100 * p->top1, p->score);
    if (has_times) printf(" %12s %12s", text_of_ms(p->ttft_ms, ttft), text_of_ms(row->attention_ms, attention));
    putchar('\n');
}

void print_methods(const calibration *found, const spec_list *methods)
{
    if (found->n_rows == 0) {
        printf("methods: no layer is left to run one\n\n");
        return;
    }
    printf("%-44s %6s %10s %8s %8s %12s %12s\n", "method", "layers", "KL", "top-1", "score", "TTFT", "attention");
    print_row("none", &found->rows[0], true);
    for (int32_t m = 0; m < methods->n; m++) print_row(methods->items[m], &found->rows[1 + m], true);
    if (found->n_given > 0) {
        char before[32], after[32];
        print_row("chosen", &found->rows[1 + methods->n], false);
        printf("one prompt, taking turns: %s without methods, %s with those chosen\n\n", text_of_ms(found->race_ms[0], before),
               text_of_ms(found->race_ms[1], after));
    } else {
        printf("none is faster and inside the budget: %d layers stay dense\n\n", found->n_asked);
    }
}
