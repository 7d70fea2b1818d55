#!/usr/bin/env python3
"""Writes the seeds of fuzz/corpus/gguf, split and token: small files, one idea each, good ones and ones that come close.

Files there whose names do not start with "seed-" are findings of the fuzzer and are left alone."""
import struct
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
PACK = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q", I64: "<q",
        F64: "<d"}
CORPUS = Path(__file__).resolve().parent.parent / "fuzz" / "corpus"


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

# type id: elements and bytes of a block
BLOCKS = {2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176),
          14: (256, 210), 15: (256, 292), 20: (32, 18), 23: (256, 136), 39: (32, 17)}
for kind, (n, n_bytes) in BLOCKS.items():
    data = bytes((37 * i + kind) % 256 for i in range(2 * n_bytes))
    SEEDS[f"type-{kind}"] = gguf(tensors=[tensor("a", [n, 2], kind, 0)], data=data)
    SEEDS[f"type-{kind}-cut"] = gguf(tensors=[tensor("a", [n, 2], kind, 0)], data=data[:-1])
SEEDS["k-nan"] = gguf(tensors=[tensor("a", [256], 12, 0)], data=struct.pack("<H", 0x7e00) + bytes(142))


def split(no, count, n_tensors, tensors=(), data=b"", more=()):
    keys = [key("split.no", U16, no), key("split.count", U16, count), key("split.tensors.count", I32, n_tensors)]
    return gguf([*keys, *more], tensors, data)


def two(first, second):
    return struct.pack("<H", len(first)) + first + second


ONE, OTHER = [tensor("a", [2], 0, 0)], [tensor("b", [2], 0, 0)]
ARCH = key("general.architecture", STRING, "llama")
SPLITS = {
    "good": two(split(0, 2, 2, ONE, bytes(8), [ARCH]), split(1, 2, 2, OTHER, bytes(8), [ARCH])),
    "no-tensors-first": two(split(0, 2, 1, more=[ARCH]), split(1, 2, 1, OTHER, bytes(8))),
    "same-tensor": two(split(0, 2, 2, ONE, bytes(8)), split(1, 2, 2, ONE, bytes(8))),
    "same-number": two(split(0, 2, 2, ONE, bytes(8)), split(0, 2, 2, OTHER, bytes(8))),
    "other-count": two(split(0, 2, 2, ONE, bytes(8)), split(1, 3, 2, OTHER, bytes(8))),
    "count-lies": two(split(0, 2, 3, ONE, bytes(8)), split(1, 2, 3, OTHER, bytes(8))),
    "count-1": two(split(0, 1, 2, ONE, bytes(8)), split(1, 1, 2, OTHER, bytes(8))),
    "count-huge": two(split(0, 65535, 2, ONE, bytes(8)), split(1, 65535, 2, OTHER, bytes(8))),
    "other-model": two(split(0, 2, 2, ONE, bytes(8), [ARCH]),
                       split(1, 2, 2, OTHER, bytes(8), [key("general.architecture", STRING, "gemma3")])),
    "other-array": two(split(0, 2, 2, ONE, bytes(8), [array("x", STRING, ["a", "b"])]),
                       split(1, 2, 2, OTHER, bytes(8), [array("x", STRING, ["a", "c"])])),
    "same-array": two(split(0, 2, 2, ONE, bytes(8), [array("x", I32, [1, 2])]),
                      split(1, 2, 2, OTHER, bytes(8), [array("x", I32, [1, 2])])),
    "cut": two(split(0, 2, 2, ONE, bytes(8)), split(1, 2, 2, OTHER, bytes(7))),
    "no-keys": two(gguf(tensors=ONE, data=bytes(8)), gguf(tensors=OTHER, data=bytes(8))),
}


def vocabulary(template="", keys=(), n_bytes=256, pieces=()):
    """A SentencePiece vocabulary: <unk> <s> </s>, bytes, letters and what is given as (name, score, type)."""
    tokens = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)] + [(f"<0x{b:02X}>", 0, 6) for b in range(n_bytes)]
    tokens += [("\u2581", -9, 1), ("a", -9, 1), ("b", -9, 1), ("l", -9, 1), ("ab", -2, 1), ("aa", -1, 1), ("aaaa", -3, 1), ("\u2581a", -4, 1)]
    tokens += pieces
    names, scores, types = zip(*tokens)
    all_keys = [key("tokenizer.ggml.model", STRING, "llama"), array("tokenizer.ggml.tokens", STRING, names),
                array("tokenizer.ggml.scores", F32, scores), array("tokenizer.ggml.token_type", I32, types),
                key("tokenizer.ggml.bos_token_id", U32, 1), key("tokenizer.ggml.eos_token_id", U32, 2),
                key("tokenizer.ggml.unknown_token_id", U32, 0), *keys]
    return gguf(all_keys + ([key("tokenizer.chat_template", STRING, template)] if template else []))


def marks(*names):
    return [(name, 0, 3) for name in names]


VOCABULARIES = {
    "spm": vocabulary(),
    "spm-no-bytes": vocabulary(n_bytes=0),
    "spm-trims": vocabulary(keys=[key("tokenizer.ggml.remove_extra_whitespaces", BOOL, 1), key("tokenizer.ggml.add_space_prefix", BOOL, 0)]),
    "spm-byte-255": vocabulary(pieces=[("<0xGG>", 0, 6)]),
    "spm-user": vocabulary(pieces=[("  ", 0, 4), ("<user>", 0, 4), ("", 0, 1), ("\u2581\u2581", 1, 1)]),
    "spm-nan": vocabulary(pieces=[("x", float("nan"), 1)]),
    "spm-infinite": vocabulary(pieces=[("ba", float("inf"), 1), ("bb", float("-inf"), 1)]),
    "chat-gemma": vocabulary(keys=[key("general.architecture", STRING, "gemma3")], pieces=marks("<start_of_turn>", "<end_of_turn>")),
    "chat-gemma-half": vocabulary(keys=[key("general.architecture", STRING, "gemma3")], pieces=marks("<start_of_turn>")),
    "chat-phi3": vocabulary("<|user|><|end|><|assistant|>", pieces=marks("<|system|>", "<|user|>", "<|end|>", "<|assistant|>")),
    "chat-v1": vocabulary("{{ ' [INST] ' + m + ' [/INST]' }}"),
    "chat-v3": vocabulary('{{ bos_token }}{{ "[INST] " + m + "[/INST]" }}', pieces=marks("[INST]", "[/INST]")),
}

for name, seeds in (("gguf", SEEDS), ("split", SPLITS), ("token", VOCABULARIES)):
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("seed-*"):
        old.unlink()
    for seed, data in seeds.items():
        (folder / f"seed-{seed}").write_bytes(data)
    print(f"{name}: {len(seeds)} seeds, the largest of {max(map(len, seeds.values()))} bytes")
