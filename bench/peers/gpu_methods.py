#!/usr/bin/env python3
"""gpu_methods.py - XAttention's and FlexPrefill's own Triton code beside our estimators and attention, on the same tensors.

    bench/peers/gpu_methods.py --library build/release/libtmx_operator.so --xattention DIR --flexprefill DIR
                               [--lengths 32768,131072] [--budget 400] [--csv FILE]

DIR: checkouts of github.com/mit-han-lab/x-attention and github.com/ByteDance-Seed/FlexPrefill; either may be left out.  Needs torch
and Triton.  Geometry of Llama-3.1-8B: 32 query heads, 8 KV heads, head_dim 128, bf16, batch 1; noise and planted sinks, vertical lines,
slashes and near keys as in bench_gpu_methods.c (the structure, not the bits).

FlexPrefill runs whole.  XAttention's attention is a CUDA extension of its own (block_sparse_attn): only its estimate is timed; K comes
repeated to 32 heads, as it asks for, outside its time.  Its Triton estimate looks for "100" in the name of the card and falls back to a
slow path elsewhere: it is shown such a name, so that the kernels it means to use are timed.  A module einops that is missing is stood in
for by the one call FlexPrefill makes.

Times: device events around a call, host work and synchronisation included, L2 flushed before it, median.  Density: tiles of 128 x 128 of
all causal ones.  In common: tiles that both keep, of those that either keeps."""
import argparse
import csv
import ctypes
import importlib.util
import os
import sys
import types

import torch

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")]
from gpu_attention import Error, Params, Pattern, Seq, TYPES, time_ms  # noqa: E402

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 128


class KeyLists(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("n_heads", "first_block", "n_blocks", "n_words")] + [("bits", ctypes.c_void_p)]


class XAttention(ctypes.Structure):
    _fields_ = [("stride", ctypes.c_int32), ("threshold", ctypes.c_double), ("norm", ctypes.c_double),
                ("thresholds", ctypes.c_void_p)]


class FlexPrefill(ctypes.Structure):
    _fields_ = [("gamma", ctypes.c_double), ("tau", ctypes.c_double), ("min_budget", ctypes.c_int32)]


class Ours:
    def __init__(self, path, q, k, v):
        self.library = ctypes.CDLL(path)
        for name in ("tmx_gpu_attention_scratch_bytes", "gpu_xattention_scratch_bytes", "gpu_flexprefill_scratch_bytes"):
            getattr(self.library, name).restype = ctypes.c_size_t
        n = q.shape[0]
        self.out = torch.empty_like(q)
        self.seq = Seq(q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), out=self.out.data_ptr(), q_begin=0, n_q=n, n_prompt=n)
        p = self.params = Params(type=TYPES[q.dtype], n_heads=HEADS, n_kv_heads=KV_HEADS, head_dim=DIM, q_pos_stride=q.stride(0),
                                 q_head_stride=q.stride(1), out_pos_stride=q.stride(0), out_head_stride=q.stride(1),
                                 k_pos_stride=k.stride(0), k_head_stride=k.stride(1), v_pos_stride=v.stride(0),
                                 v_head_stride=v.stride(1), pattern=Pattern(0, 0, 1, 0), seqs=ctypes.pointer(self.seq), n_seqs=1)
        p.scratch_bytes = self.library.tmx_gpu_attention_scratch_bytes(ctypes.byref(p))
        self.scratch = torch.empty(p.scratch_bytes, dtype=torch.uint8, device="cuda")
        p.scratch = self.scratch.data_ptr()
        self.n_estimate = max(self.library.gpu_xattention_scratch_bytes(ctypes.byref(p), n, n),
                              self.library.gpu_flexprefill_scratch_bytes(ctypes.byref(p), n))
        self.estimate_scratch = torch.empty(self.n_estimate, dtype=torch.uint8, device="cuda")
        n_blocks = -(-n // BLOCK)
        self.bits = torch.empty((HEADS, n_blocks, -(-n_blocks // 64)), dtype=torch.int64, device="cuda")
        self.lists = KeyLists(HEADS, 0, n_blocks, self.bits.shape[2], self.bits.data_ptr())
        self.error = Error()

    def call(self, name, *args):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if getattr(self.library, name)(*args, stream, ctypes.byref(self.error)) != 0:
            raise RuntimeError(self.error.text.decode())

    def estimate(self, name, method):
        self.call(name, ctypes.byref(self.params), ctypes.byref(method), ctypes.byref(self.lists),
                  ctypes.c_void_p(self.estimate_scratch.data_ptr()), ctypes.c_size_t(self.n_estimate))

    def attention(self):
        self.call("gpu_attention_over_lists", ctypes.byref(self.params), ctypes.byref(self.lists))
        return self.out

    def dense(self):
        self.call("tmx_gpu_attention", ctypes.byref(self.params))
        return self.out

    def mask(self):
        """bool [heads][query blocks][key blocks] of the lists."""
        n_blocks = self.lists.n_blocks
        shifts = torch.arange(64, device="cuda")
        return (self.bits[..., None] >> shifts & 1).bool().flatten(2)[..., :n_blocks]


def planted(n):
    """q [n][32][128], k and v [n][8][128]."""
    generator = torch.Generator("cuda").manual_seed(1)
    q, k, v = (torch.randn(n, heads, DIM, generator=generator, device="cuda", dtype=torch.bfloat16) for heads in (HEADS, KV_HEADS, KV_HEADS))
    pos = torch.arange(n, device="cuda", dtype=torch.float64)
    frequency = 2.0 ** (-1 - torch.arange(16, device="cuda", dtype=torch.float64) * 11 / 15)

    def turned(p):
        angle = p[:, None] * frequency
        return 3 * torch.stack((angle.cos(), angle.sin()), -1).flatten(1).to(torch.bfloat16)
    k[:, :, :32] += turned(pos)[:, None]
    k[:4, :, 32:48] += 2.8
    lines = torch.randint(0, n, (n // 4096,), generator=generator, device="cuda")
    k[lines, :, 48:64] += 2.6
    for h in range(HEADS):
        if h % 4 != 3:
            q[:, h, :32] += turned(pos - 1024 - 512 * h if h % 4 == 2 else pos)
        if h % 8 != 3:
            q[:, h, 32:48] += 2.8
        if h % 4 == 1 or h % 8 == 7:
            q[:, h, 48:64] += 2.6
    return q, k, v


def load_flexprefill(path):
    if importlib.util.find_spec("einops") is None:
        stand_in = types.ModuleType("einops")

        def rearrange(x, pattern):
            assert pattern == "b h g i j -> b (h g) i j"
            return x.flatten(1, 2)
        stand_in.rearrange = rearrange
        sys.modules["einops"] = stand_in
    spec = importlib.util.spec_from_file_location("flex_prefill_attention", os.path.join(path, "flex_prefill/ops/flex_prefill_attention.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load_xattention(path):
    sys.modules.setdefault("block_sparse_attn", types.SimpleNamespace(block_sparse_attn_func=None))
    sys.path.insert(0, path)
    from xattn.src.Xattention import xattn_estimate
    properties = torch.cuda.get_device_properties

    class Named100:                            # the rest of it as it is: Triton asks as well
        name = "H100"

        def __init__(self, device):
            self.device = device

        def __getattr__(self, key):
            return getattr(properties(self.device), key)
    if "100" not in properties(0).name:
        torch.cuda.get_device_properties = lambda device=0: Named100(device)

    def chunk(n):                              # of Xattention_prefill
        p2 = 1 << (n - 1).bit_length()
        return max(min(max(2048, p2), 128 * 1024 * 2048 // p2), 2048)

    def estimate(q, k, stride, threshold):
        return xattn_estimate(q, k, block_size=BLOCK, stride=stride, norm=1, threshold=threshold, select_mode="inverse",
                              use_triton=True, causal=True, chunk_size=chunk(q.shape[2]))[1]
    return estimate


def density_of(mask):
    n = mask.shape[-1]
    return 100.0 * float(mask.sum()) / (mask.shape[0] * n * (n + 1) / 2)


def common(a, b):
    return 100.0 * float((a & b).sum()) / max(1.0, float((a | b).sum()))


def run_length(n, args, rows):
    q, k, v = planted(n)
    ours = Ours(args.library, q, k, v)
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    n_blocks = ours.lists.n_blocks

    def time(call):
        return time_ms(call, flush, args.budget)[0]

    def add(method, setting, who, density, estimate, whole, in_common=None):
        rows.append((n, method, setting, who, density, estimate, whole, in_common))
        print(f"| {n} | {method} | {setting} | {who} | {density:.2f} | {estimate:.2f} | " +
              (f"{whole:.2f}" if whole else "-") + " | " + (f"{in_common:.1f}" if in_common is not None else "-") + " |", flush=True)

    add("dense", "", "ours", 100.0, 0.0, time(ours.dense))
    if args.xattention:
        estimate = load_xattention(args.xattention)
        theirs_q, theirs_k = q.transpose(0, 1)[None], k.transpose(0, 1)[None].repeat_interleave(HEADS // KV_HEADS, 1)
        for stride, threshold in ((8, 0.9), (8, 0.95), (16, 0.9)):
            setting, method = f"stride={stride} threshold={threshold}", XAttention(stride, threshold, 1.0)
            ours_ms = time(lambda: ours.estimate("gpu_xattention", method))
            whole = time(lambda: (ours.estimate("gpu_xattention", method), ours.attention()))
            mask = ours.mask()
            add("xattention", setting, "ours", density_of(mask), ours_ms, whole)
            theirs_ms = time(lambda: estimate(theirs_q, theirs_k, stride, threshold))
            theirs = estimate(theirs_q, theirs_k, stride, threshold)[0, :, :n_blocks, :n_blocks]
            add("xattention", setting, "theirs", density_of(theirs), theirs_ms, None, common(mask, theirs))
        del theirs_q, theirs_k, theirs
    if args.flexprefill:
        peer = load_flexprefill(args.flexprefill)
        a, b, c = q[None], k[None], v[None]
        for gamma in (0.9, 0.95, 0.99):
            setting, method, budget = f"gamma={gamma}", FlexPrefill(gamma, 0.1, 512), 512 // BLOCK
            ours_ms = time(lambda: ours.estimate("gpu_flexprefill", method))
            whole = time(lambda: (ours.estimate("gpu_flexprefill", method), ours.attention()))
            mask = ours.mask()
            add("flexprefill", setting, "ours", density_of(mask), ours_ms, whole)
            found = []

            def active():
                found[:] = peer.get_active_blocks(a, b, c, BLOCK, gamma, budget, 2147483647, 0.1)[0]
            with torch.no_grad():
                theirs_ms = time(active)
            theirs = torch.zeros_like(mask)
            for h in range(HEADS):
                theirs[h].view(-1)[found[h].long()] = True
            theirs_whole = time(lambda: peer.flex_prefill_attention(a, b, c, gamma, 0.1, min_budget=512))
            add("flexprefill", setting, "theirs", density_of(theirs), theirs_ms, theirs_whole, common(mask, theirs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True)
    parser.add_argument("--xattention")
    parser.add_argument("--flexprefill")
    parser.add_argument("--lengths", default="32768,131072")
    parser.add_argument("--budget", type=float, default=400.0, help="milliseconds spent on a timing, at least three calls")
    parser.add_argument("--csv")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print("\n| tokens | method | setting | whose | density % | estimate ms | with attention ms | in common % |\n|--|--|--|--|--|--|--|--|")
    rows = []
    for n in map(int, args.lengths.split(",")):
        try:
            run_length(n, args, rows)
        except (RuntimeError, AssertionError, AttributeError, ImportError) as error:
            print(f"stopped at {n} tokens: {type(error).__name__}: {error}", flush=True)
        torch.cuda.empty_cache()
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("n_tokens", "method", "setting", "whose", "density_pct", "estimate_ms", "whole_ms", "in_common_pct"))
            writer.writerows(rows)


if __name__ == "__main__":
    main()
