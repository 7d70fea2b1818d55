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

/* The first mark that does not stand in parentheses; NULL: there is none. */
static char *next_mark(char *at, char mark)
{
    for (bool is_inside = false; *at != '\0'; at++) {
        if (*at == '(' || *at == ')') is_inside = *at == '(';
        else if (*at == mark && !is_inside) return at;
    }
    return NULL;
}

static char *next_comma(char *at) { return next_mark(at, ','); }

/* "rest=dense", "xattention(stride=8,threshold=0.9)=0-15": a method, its parameters, "=". */
static bool is_item(const char *at)
{
    const size_t n = strspn(at, "abcdefghijklmnopqrstuvwxyz_");
    at += n;
    if (n > 0 && *at == '(') {
        at += strcspn(at, ")");
        if (*at == ')') at++;
    }
    return n > 0 && *at == '=';
}

/* Does what stands between this comma and the next one go on with the spec? */
static bool goes_on(const char *spec, char *comma)
{
    const char *next = next_comma(comma + 1);
    const size_t n = next != NULL ? (size_t)(next - comma - 1) : strlen(comma + 1);
    return is_layers(comma + 1, n) || (strncmp(spec, "mix:", 4) == 0 && is_item(comma + 1));
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
        for (char *spec = at; spec != NULL;) {
            if (list->n == MAX_TEXTS) {
                snprintf(why, size, "option --plan: more than %d plans", MAX_TEXTS);
                return false;
            }
            list->items[list->n++] = spec;
            char *comma = next_comma(spec);
            while (comma != NULL && goes_on(spec, comma)) comma = next_comma(comma + 1);
            spec = NULL;
            if (comma != NULL) {
                *comma = '\0';
                spec = comma + 1;
            }
        }
    }
    return true;
}

static char *trim(char *text)
{
    while (*text == ' ') text++;
    size_t n = strlen(text);
    while (n > 0 && text[n - 1] == ' ') text[--n] = '\0';
    return text;
}

bool methods_split(spec_list *list, const char *text, char *why, size_t size)
{
    *list = (spec_list){ .n = 0 };
    char *at = list->copies[0] = strdup(text);
    if (at == NULL) {
        snprintf(why, size, "out of memory");
        return false;
    }
    while (at != NULL && list->n < MAX_TEXTS) {
        char *mark = next_mark(at, ';');
        if (mark != NULL) *mark = '\0';
        list->items[list->n++] = trim(at);
        at = mark != NULL ? mark + 1 : NULL;
    }
    if (at == NULL) return true;
    snprintf(why, size, "more than %d methods", MAX_TEXTS);
    return false;
}

void specs_free(spec_list *list)
{
    for (int32_t i = 0; i < MAX_TEXTS; i++) free(list->copies[i]);
}
