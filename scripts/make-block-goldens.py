#!/usr/bin/env python3
"""Prints the table `goldens` of tests/test_blocks.c: what the Python package gguf expands random blocks to.

    python3 scripts/make-block-goldens.py

Needs the packages gguf and numpy.  The blocks come from the generator of the test, seeded with the type's id; scales
are made finite by clearing a bit of their exponent.  F32, F16 and Q8_K have no expansion there."""
import hashlib

import numpy
from gguf import GGMLQuantizationType as Type
from gguf import dequantize
from gguf.constants import GGML_QUANT_SIZES

N_BLOCKS = 64
HIGH_BYTES = {  # of the halves in a block
    "BF16": [1], "Q4_0": [1], "Q4_1": [1, 3], "Q5_0": [1], "Q5_1": [1, 3], "Q8_0": [1], "Q2_K": [81, 83], "Q3_K": [109],
    "Q4_K": [1, 3], "Q5_K": [1, 3], "Q6_K": [209], "IQ4_NL": [1], "IQ4_XS": [1], "MXFP4": [0],
}

for name, places in HIGH_BYTES.items():
    kind = Type[name]
    _, n_bytes = GGML_QUANT_SIZES[kind]
    state = int(kind)
    data = bytearray()
    for _ in range(N_BLOCKS * n_bytes):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        data.append(state >> 32 & 255)
    for block in range(N_BLOCKS):
        for place in places:
            data[block * n_bytes + place] &= 0xBF
    values = dequantize(numpy.frombuffer(bytes(data), dtype=numpy.uint8), kind).astype("<f4")
    assert numpy.isfinite(values).all()
    spelled = ", ".join(map(str, (places + [-1, -1])[:2]))
    print(f'    {{ BLOCK_{name}, {{ {spelled} }},\n      "{hashlib.sha256(values.tobytes()).hexdigest()}" }},')
