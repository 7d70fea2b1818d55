#!/usr/bin/env python3
"""Writes the seeds of fuzz/corpus/gguf: small files, one idea each, good ones and ones that come close.

Files there whose names do not start with "seed-" are findings of the fuzzer and are left alone."""
import struct
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
PACK = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q", I64: "<q",
        F64: "<d"}
FOLDER = Path(__file__).resolve().parent.parent / "fuzz" / "corpus" / "gguf"


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, x):
    return string(x) if kind == STRING else struct.pack(PACK[kind], x)


def key(name, kind, x):
    return string(name) + struct.pack("<I", kind) + value(kind, x)


def array(name, kind, xs):
    return string(name) + struct.pack("<IIQ", ARRAY, kind, len(xs)) + b"".join(value(kind, x) for x in xs)


def tensor(name, dims, kind, offset):
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(keys=(), tensors=(), data=b"", alignment=32, version=3):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + (b"\0" * (-len(head) % alignment) + data if tensors else b"")


NUMBERS = [key(f"n.{kind}", kind, 1) for kind in PACK]
SEEDS = {
    "nothing": gguf(),
    "version-2": gguf([key("general.name", STRING, "x")], version=2),
    "numbers": gguf(NUMBERS),
    "signs": gguf([key("a", I8, -1), key("b", I32, -(1 << 31)), key("c", I64, -(1 << 63)), key("d", F64, 1e300),
                   key("e", F32, float("nan")), key("f", U64, (1 << 64) - 1)]),
    "text": gguf([key("a", STRING, "tab\t esc\x1b \u00e9 \U0001f600".encode() + b"\xff\0\\")]),
    "arrays": gguf([array(f"a.{kind}", kind, [1, 0, 1]) for kind in PACK]),
    "strings": gguf([array("tokenizer.ggml.tokens", STRING, ["a", "", "\u0120the", "<|im_end|>"] * 4),
                     array("empty", STRING, [])]),
    "array-of-arrays": gguf([string("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + struct.pack("<IQ", U8, 0)]),
    "bool-2": gguf([key("a", BOOL, 2)]),
    "same-key": gguf([key("a", U8, 1), key("a", U8, 2)]),
    "tensors": gguf(tensors=[tensor("f32", [3], 0, 0), tensor("f16", [5, 2], 1, 32), tensor("bf16", [2, 2, 2], 30, 64),
                             tensor("q8_0", [32], 8, 96), tensor("q4_0", [32, 1, 1, 2], 2, 160),
                             tensor("q4_1", [64], 3, 224)], data=bytes(range(256)) + bytes(8)),
    "unexpanded": gguf(tensors=[tensor("q4_k", [256], 12, 0), tensor("i32", [2], 26, 160)], data=bytes(168)),
    "alignment-8": gguf([key("general.alignment", U32, 8)], [tensor("a", [1], 0, 0), tensor("b", [1], 0, 8)],
                        bytes(12), alignment=8),
    "alignment-3": gguf([key("general.alignment", U32, 3)]),
    "overlap": gguf(tensors=[tensor("a", [16], 0, 0), tensor("b", [16], 0, 32)], data=bytes(96)),
    "nan": gguf(tensors=[tensor("a", [2], 0, 0)], data=struct.pack("<2f", 1, float("nan"))),
    "offset-wraps": gguf(tensors=[tensor("a", [8], 0, (1 << 64) - 32)], data=bytes(32)),
    "shape-wraps": gguf(tensors=[tensor("a", [1 << 32, 1 << 32], 0, 0)], data=bytes(32)),
    "count-lies": b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 1 << 63),
    "string-lies": gguf([string("a") + struct.pack("<IQ", STRING, (1 << 64) - 1)]),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "safetensors": struct.pack("<Q", 16) + b'{"__metadata__":{}}',
}

FOLDER.mkdir(parents=True, exist_ok=True)
for old in FOLDER.glob("seed-*"):
    old.unlink()
for name, data in SEEDS.items():
    (FOLDER / f"seed-{name}").write_bytes(data)
print(f"{len(SEEDS)} seeds, the largest of {max(map(len, SEEDS.values()))} bytes")
