#include "number_list.h"

#include <stdio.h>
#include <string.h>

/* Digits at *at, which moves behind them; a number beyond int64 is too large for any caller. */
static bool read_number(const char **at, int64_t *value)
{
    char digits[24];
    const size_t n = strspn(*at, "0123456789");
    if (n == 0 || n >= sizeof digits) return false;
    memcpy(digits, *at, n);
    digits[n] = '\0';
    *at += n;
    return parse_integer(digits, value);
}

typedef struct range { int64_t first, last, step, factor; } range;

/* One piece without its comma; true only if all of it was read. */
static bool read_range(const char *piece, range *r)
{
    const char *at = piece;
    *r = (range){ .step = 1, .factor = 1 };
    if (!read_number(&at, &r->first)) return false;
    r->last = r->first;
    if (*at == '\0') return true;
    if (*at++ != '-' || !read_number(&at, &r->last)) return false;
    if (*at == '\0') return true;
    const char sign = *at++;
    if (sign == '+') return read_number(&at, &r->step) && *at == '\0' && r->step >= 1;
    if (sign != '*') return false;
    r->step = 0;
    return read_number(&at, &r->factor) && *at == '\0' && r->factor >= 2 && r->first >= 1;
}

bool numbers_add(number_list *list, const char *option, const char *text, int32_t min, int32_t max, char *why, size_t size)
{
    for (const char *at = text;;) {
        char piece[80];
        range r;
        const size_t length = strcspn(at, ",");
        snprintf(piece, sizeof piece, "%.*s", (int)(length < sizeof piece ? length : sizeof piece - 1), at);
        if (length >= sizeof piece || !read_range(piece, &r)) {
            snprintf(why, size, "option %s: '%s' is no number or range (a-b, a-b+step, a-b*factor)", option, piece);
            return false;
        }
        if (r.first < min || r.last > max || r.last < r.first) {
            snprintf(why, size, "option %s: %s is out of range %d..%d", option, piece, min, max);
            return false;
        }
        for (int64_t value = r.first; value <= r.last; value = value * r.factor + r.step) {
            if (list->n == MAX_NUMBERS) {
                snprintf(why, size, "option %s: more than %d numbers", option, MAX_NUMBERS);
                return false;
            }
            list->items[list->n++] = (int32_t)value;
            if (value > (INT64_MAX - r.step) / r.factor) break;
        }
        if (at[length] == '\0') return true;
        at += length + 1;
    }
}
