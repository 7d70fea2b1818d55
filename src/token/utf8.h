/* utf8.h - the one definition of valid UTF-8 (Unicode table 3-7: no overlong forms, no surrogates, <= U+10FFFF). */
#ifndef TMX_TOKEN_UTF8_H
#define TMX_TOKEN_UTF8_H

#include <stddef.h>

enum { UTF8_CUT = 0, UTF8_INVALID = -1 };

/* Length 1..4 of the character at p, UTF8_CUT if the n bytes are only its beginning (n = 0 too), else UTF8_INVALID. */
static inline int utf8_length(const unsigned char *p, size_t n)
{
    if (n == 0) return UTF8_CUT;
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4) return UTF8_INVALID;
    const size_t length = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (n == 1) return UTF8_CUT;
    const unsigned char low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    const unsigned char high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < low || p[1] > high) return UTF8_INVALID;
    for (size_t i = 2; i < length; i++) {
        if (i == n) return UTF8_CUT;
        if (p[i] < 0x80 || p[i] > 0xbf) return UTF8_INVALID;
    }
    return (int)length;
}

#endif
