#!/usr/bin/env python3
"""Checks reference.py against a second forward pass written from the definition in plain numpy.

The second pass shares the file reader and nothing else: it is f64, rotates interleaved pairs as the GGUF stores them
(so a wrong un-permutation of q and k shows), and asks the visibility predicate for every single pair.
"""
import argparse
import pathlib

import numpy as np
import torch

from reference import GgufLlama, Reference, parse_plan

MODEL = pathlib.Path(__file__).resolve().parents[2] / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
IDS = [504, 3575, 282, 4649, 47, 216, 33, 34, 35, 198] * 4


def is_visible(pattern, n, i, j):
    if pattern.kind == "dense":
        return j <= i
    tail = pattern.kind == "triangle" and i >= n - min(pattern.n_last, n - 1)
    return j <= i and (i - j < pattern.n_window or j < pattern.n_sink or tail)


def rmsnorm(x, weight, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rope(x, base):
    """x [n][heads][d], pairs (2i, 2i+1).  Angles are rounded to f32 as transformers does."""
    n, _, d = x.shape
    freq = (1 / np.float32(base) ** (np.arange(0, d, 2, dtype=np.float32) / np.float32(d))).astype(np.float32)
    angle = (np.arange(n, dtype=np.float32)[:, None] * freq).astype(np.float64)[:, None, :]
    even, odd = x[..., 0::2], x[..., 1::2]
    y = np.empty_like(x)
    y[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    y[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return y


def forward(model, ids, plan):
    n, eps, base = len(ids), model.value("llama.attention.layer_norm_rms_epsilon"), model.rope_base()
    n_heads, n_kv = model.value("llama.attention.head_count"), model.value("llama.attention.head_count_kv")
    embedding = model.tensor("token_embd.weight").astype(np.float64)
    x = embedding[ids]
    for layer, pattern in enumerate(plan):
        def weight(name, layer=layer):
            return model.tensor(f"blk.{layer}.{name}.weight").astype(np.float64)

        y = rmsnorm(x, weight("attn_norm"), eps)
        q = rope((y @ weight("attn_q").T).reshape(n, n_heads, -1), base)
        k = rope((y @ weight("attn_k").T).reshape(n, n_kv, -1), base)
        v = (y @ weight("attn_v").T).reshape(n, n_kv, -1)
        out = np.zeros_like(q)
        for i in range(n):
            seen = [j for j in range(n) if is_visible(pattern, n, i, j)]
            for h in range(n_heads):
                g = h // (n_heads // n_kv)
                p = np.exp(k[seen, g] @ q[i, h] / np.sqrt(q.shape[2]))
                out[i, h] = p @ v[seen, g] / p.sum()
        x = x + out.reshape(n, -1) @ weight("attn_output").T
        z = rmsnorm(x, weight("ffn_norm"), eps)
        gate = z @ weight("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (z @ weight("ffn_up").T)) @ weight("ffn_down").T
    return embedding @ rmsnorm(x[-1], model.tensor("output_norm.weight"), eps)


def main():
    parser = argparse.ArgumentParser(description="Checks the reference against plain numpy.")
    parser.add_argument("--model", default=MODEL)
    model = GgufLlama(parser.parse_args().model)
    torch.set_num_threads(1)
    f32, f64 = Reference(model, torch.float32), Reference(model, torch.float64)
    n_passed = n_failed = 0

    def check(text, ok):
        nonlocal n_passed, n_failed
        n_passed, n_failed = n_passed + ok, n_failed + (not ok)
        print("ok  " if ok else "FAIL", text)

    for n, spec, sizes in ((1, "dense", (8, 512, 128)), (3, "dense", (8, 512, 128)), (40, "dense", (8, 512, 128)),
                           (40, "triangle:10-29", (2, 5, 3)), (40, "triangle", (0, 1, 0)),
                           (40, "streaming:0,7,29", (1, 6, 9))):
        plan = parse_plan(spec, f32.n_layers, *sizes)
        truth, logits = forward(model, IDS[:n], plan), f32.prefill(IDS[:n], plan)
        diff, diff_f64 = np.abs(logits - truth).max(), np.abs(f64.prefill(IDS[:n], plan) - truth).max()
        check(f"{spec} {sizes} N={n}: max |diff| to numpy {diff:.1e} (f32), {diff_f64:.1e} (f64)",
              diff < 2e-4 and diff_f64 < 2e-5)
        check("  the same bits again", np.array_equal(logits, f32.prefill(IDS[:n], plan)))
    dense = f32.prefill(IDS, parse_plan("dense", f32.n_layers))
    check("one narrow layer changes the logits",
          np.abs(f32.prefill(IDS, parse_plan("triangle:5", f32.n_layers, 0, 1, 3)) - dense).max() > 0.01)
    check("the pattern of the last layer alone does not matter: its last row is dense",
          np.array_equal(f32.prefill(IDS, parse_plan("triangle:29", f32.n_layers, 0, 1, 1)), dense))
    check("a window as wide as the prompt is dense",
          np.array_equal(f32.prefill(IDS, parse_plan("triangle", f32.n_layers, 0, len(IDS), 0)), dense))
    print(f"{n_passed} passed, {n_failed} failed")
    return n_failed != 0


if __name__ == "__main__":
    raise SystemExit(main())
