#!/usr/bin/env python3
"""Writes src/token/nfc_table.h: what normalisation to NFC needs of the Unicode tables that this Python carries, the version that
PCRE2's tables have (14).  Characters added later keep their form.

    python3.11 scripts/make-nfc-table.py > src/token/nfc_table.h
"""
import sys
import unicodedata

assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
ALL = [chr(c) for c in range(sys.maxunicode + 1) if not (0xd800 <= c < 0xe000 or 0xac00 <= c < 0xd7a4)]


def rows(entries, per_line):
    return ",\n".join("    " + ", ".join(entries[i:i + per_line]) for i in range(0, len(entries), per_line)) + ","


classes = []                       # [first, last, class]
for c in ALL:
    k = unicodedata.combining(c)
    if k and classes and classes[-1][2] == k and classes[-1][1] + 1 == ord(c):
        classes[-1][1] = ord(c)
    elif k:
        classes.append([ord(c), ord(c), k])
parts = {}                         # character -> what it stands for, one step
for c in ALL:
    text = unicodedata.decomposition(c)
    if text and not text.startswith("<"):
        parts[c] = [int(part, 16) for part in text.split()]
pairs = {tuple(p): c for c, p in parts.items() if len(p) == 2 and unicodedata.normalize("NFC", c) == c}
for (first, second), c in pairs.items():
    assert unicodedata.normalize("NFC", chr(first) + chr(second)) == c

print('''/* nfc_table.h - made by scripts/make-nfc-table.py from Unicode 14; included by nfc.c alone.  Hangul syllables are not in it:
 * they follow a rule. */
#ifndef TMX_TOKEN_NFC_TABLE_H
#define TMX_TOKEN_NFC_TABLE_H

#include <stdint.h>

/* Characters first .. first + n - 1 have this combining class; all others have 0. */
static const struct { uint32_t first; uint8_t n, combining_class; } class_ranges[] = {''')
print(rows([f"{{0x{first:x}, {last - first + 1}, {k}}}" for first, last, k in classes], 6))
print('''};

/* A character and the one (second 0) or two that it stands for, by the character. */
static const struct { uint32_t code, first, second; } decompositions[] = {''')
print(rows([f"{{0x{ord(c):x}, 0x{p[0]:x}, {hex(p[1]) if len(p) > 1 else 0}}}" for c, p in sorted(parts.items())], 5))
print('''};

/* Two characters and the one they become, by the two. */
static const struct { uint32_t first, second, code; } compositions[] = {''')
print(rows([f"{{0x{first:x}, 0x{second:x}, 0x{ord(c):x}}}" for (first, second), c in sorted(pairs.items())], 5))
print('''};

#endif''')
