#!/usr/bin/env python3
"""Writes tests/vectors/nfc.txt: what an independent implementation (the tokenizers library) makes of the texts that
tests/test_nfc.c puts together from the same generator: name, bytes and SHA-256 of the normalised text.  The line "skip" names
the characters that the library's tables are too old to know.

    python3 scripts/make-nfc-goldens.py > tests/vectors/nfc.txt
"""
import hashlib
import unicodedata

from tokenizers import normalizers

END = 0x2fa20                      # every character before it is tried
nfc = normalizers.NFC().normalize_str
state = 1


def random(n):
    global state
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    return (state >> 33) % n


def lines_of(code):
    return f"{chr(code)}\ne\u0316{chr(code)}\u0301\n{chr(code)}\u0327\u0301\n"


CODES = [code for code in range(1, END) if not 0xd800 <= code < 0xe000]
SKIPPED = {code for code in CODES if nfc(lines_of(code)) != unicodedata.normalize("NFC", lines_of(code))}
assert len(SKIPPED) < 100


def each():
    yield from (lines_of(code) for code in CODES if code not in SKIPPED)


def mixed():
    pools = ((0x61, 26), (0x300, 80), (0x1100, 19), (0x1161, 21), (0x11a7, 28), (0xac00, 11172), (0xc0, 400), (0x1e00, 512), (0x900, 128),
             (0x9c7, 1), (0x9be, 1), (0x5b0, 20), (0xf900, 512), (0x20d0, 20), (0x4e00, 100))
    for _ in range(100000):
        first, n = pools[random(len(pools))]
        yield chr(first + random(n))


def piled():
    yield "a"
    for _ in range(20000):
        yield chr(0x300 + random(0x4f))


print("skip", *(f"{code:x}" for code in sorted(SKIPPED)))
for make in (each, mixed, piled):
    data = nfc("".join(make())).encode()
    print(make.__name__, len(data), hashlib.sha256(data).hexdigest())
