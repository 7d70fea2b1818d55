#!/usr/bin/env python3
"""gpu_attention.py - our CUDA kernels beside FlashAttention-3, cuDNN and FlexAttention, in one run on one GPU.

    bench/gpu_attention.py --library build/release/libtmx_operator.so [--lengths 32768,131072] [--csv FILE]
                           [--only ours,fa3,cudnn,flex] [--patterns dense,triangle,streaming]

Needs torch; fa3 needs the wheel fa3-fwd.  A peer that is missing is left out and said.  Geometry of Llama-3.1-8B: 32 query heads, 8
KV heads, head_dim 128, bf16, batch 1, random normal inputs; device events, L2 flushed before each call, median.  TFLOP/s count
visible pairs only (4 * head_dim per pair and head); percent is of a bf16 matrix product of 8192^3 in the same run.  Results are compared
first: dense ours against FA-3, triangle ours against FlexAttention where it runs."""
import argparse
import csv
import ctypes
import subprocess
import sys

import torch

HEADS, KV_HEADS, DIM = 32, 8, 128
SINK, WINDOW, LAST = 8, 512, 128
KINDS = {"dense": 0, "streaming": 1, "triangle": 2}
TYPES = {torch.bfloat16: 2, torch.float16: 3}


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("text", ctypes.c_char * 256)]


class Pattern(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("n_sink", ctypes.c_int32), ("n_window", ctypes.c_int32), ("n_last", ctypes.c_int32)]


class Seq(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("q", "k", "v", "pages", "out", "lse")] + \
               [(name, ctypes.c_int32) for name in ("q_begin", "n_q", "n_prompt")]


class Params(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("n_heads", ctypes.c_int32), ("n_kv_heads", ctypes.c_int32),
                ("head_dim", ctypes.c_int32), ("scale", ctypes.c_float)] + \
               [(name, ctypes.c_size_t) for name in ("q_pos_stride", "q_head_stride", "out_pos_stride", "out_head_stride",
                                                     "k_pos_stride", "k_head_stride", "v_pos_stride", "v_head_stride")] + \
               [("page_size", ctypes.c_int32), ("n_pages", ctypes.c_int32), ("k_pages", ctypes.c_void_p),
                ("v_pages", ctypes.c_void_p), ("k_page_stride", ctypes.c_size_t), ("v_page_stride", ctypes.c_size_t),
                ("pattern", Pattern), ("seqs", ctypes.POINTER(Seq)), ("n_seqs", ctypes.c_int32), ("kernel", ctypes.c_int),
                ("scratch", ctypes.c_void_p), ("scratch_bytes", ctypes.c_size_t)]


class Ours:
    """tmx_gpu_attention of one library on q [n][heads][d], k and v [n][kv_heads][d]."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.tmx_gpu_attention_scratch_bytes.restype = ctypes.c_size_t

    def prepare(self, q, k, v, kind, kernel=0):
        """A function that enqueues the call on the current stream and returns the output tensor."""
        n, heads, d = q.shape
        out = torch.empty_like(q)
        seq = Seq(q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), out=out.data_ptr(), q_begin=0, n_q=n, n_prompt=n)
        p = Params(type=TYPES[q.dtype], n_heads=heads, n_kv_heads=k.shape[1], head_dim=d,
                   q_pos_stride=q.stride(0), q_head_stride=q.stride(1), out_pos_stride=out.stride(0),
                   out_head_stride=out.stride(1), k_pos_stride=k.stride(0), k_head_stride=k.stride(1),
                   v_pos_stride=v.stride(0), v_head_stride=v.stride(1), pattern=Pattern(KINDS[kind], SINK, WINDOW, LAST),
                   seqs=ctypes.pointer(seq), n_seqs=1, kernel=kernel)
        n_bytes = self.library.tmx_gpu_attention_scratch_bytes(ctypes.byref(p))
        scratch = torch.empty(n_bytes, dtype=torch.uint8, device="cuda")
        p.scratch, p.scratch_bytes = scratch.data_ptr(), n_bytes
        error = Error()

        def call():
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            if self.library.tmx_gpu_attention(ctypes.byref(p), stream, ctypes.byref(error)) != 0:
                raise RuntimeError(error.text.decode())
            return out
        call.keep = (q, k, v, out, seq, scratch)
        return call


def visible_pairs(kind, n):
    """Sum over rows of the keys a row sees, from the definition of the patterns."""
    i = torch.arange(n, dtype=torch.int64)
    if kind == "dense":
        return int((i + 1).sum())
    rows = torch.minimum(i + 1, torch.tensor(WINDOW)) + torch.clamp(i + 1 - WINDOW, 0, SINK)
    if kind == "triangle":
        first_dense = n - min(LAST, n - 1)
        rows[first_dense:] = i[first_dense:] + 1
    return int(rows.sum())


def time_ms(call, flush, budget_ms=400.0):
    """(median, minimum, spread in percent) of one call in milliseconds."""
    for _ in range(2):
        call()
    times = []
    while len(times) < 3 or (sum(times) < budget_ms and len(times) < 50):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    times.sort()
    median = times[len(times) // 2]
    return median, times[0], 100.0 * (times[-1 - len(times) // 10] - times[len(times) // 10]) / median


def flex_caller(q, k, v, kind):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    n = q.shape[0]
    first_dense = n - min(LAST, n - 1) if kind == "triangle" else n

    def mask(b, h, q_pos, k_pos):
        return (k_pos <= q_pos) & ((q_pos - k_pos < WINDOW) | (k_pos < SINK) | (q_pos >= first_dense))

    def causal(b, h, q_pos, k_pos):
        return k_pos <= q_pos
    torch._dynamo.reset()                      # it gives up compiling after a few lengths and masks
    block_mask = torch.compile(create_block_mask)(causal if kind == "dense" else mask, None, None, n, n, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    a, b, c = (x.transpose(0, 1)[None].contiguous() for x in (q, k, v))
    return lambda: compiled(a, b, c, block_mask=block_mask, enable_gqa=True)[0].transpose(0, 1)


def fa3_caller(q, k, v):
    from fa3_fwd_interface import flash_attn_func
    a, b, c = q[None], k[None], v[None]

    def call():
        out = flash_attn_func(a, b, c, causal=True)
        return (out[0] if isinstance(out, tuple) else out)[0]
    return call


def cudnn_caller(q, k, v):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    a, b, c = (x.transpose(0, 1)[None] for x in (q, k, v))

    def call():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            out = torch.nn.functional.scaled_dot_product_attention(a, b, c, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1)
    return call


def relative_error(a, b):
    error = norm = 0.0
    for x, y in zip(a.split(4096), b.split(4096)):
        error += float((x.float() - y.float()).pow(2).sum())
        norm += float(y.float().pow(2).sum())
    return (error / norm) ** 0.5


def matmul_tflops(flush):
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * 8192 ** 3 / time_ms(lambda: a @ b, flush)[0] / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", action="append", required=True)
    parser.add_argument("--lengths", default="4096,32768,65536,131072")
    parser.add_argument("--patterns", default="dense,triangle,streaming")
    parser.add_argument("--only", default="ours,fa3,cudnn,flex")
    parser.add_argument("--portable", action="store_true", help="time our portable kernel too")
    parser.add_argument("--csv")
    options = parser.parse_args()
    torch.manual_seed(1)
    wanted = options.only.split(",")
    flush = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    ceiling = matmul_tflops(flush)
    machine = torch.cuda.get_device_name()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    print(f"{machine}, torch {torch.__version__}, matrix product {ceiling:.0f} TFLOP/s")
    print(f"{'tokens':>8} {'pattern':10} {'kernel':24} {'ms':>9} {'min':>9} {'spread':>7} {'TFLOP/s':>8} {'ceiling':>8} {'error':>9}")
    records, ours = [], [Ours(path) for path in options.library]
    for n in map(int, options.lengths.split(",")):
        q = torch.randn(n, HEADS, DIM, dtype=torch.bfloat16, device="cuda")
        k, v = (torch.randn(n, KV_HEADS, DIM, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        for kind in options.patterns.split(","):
            callers = []
            if "fa3" in wanted and kind == "dense":
                callers.append(("FlashAttention-3", lambda: fa3_caller(q, k, v)))
            if "cudnn" in wanted and kind == "dense":
                callers.append(("cuDNN", lambda: cudnn_caller(q, k, v)))
            if "flex" in wanted:
                callers.append(("FlexAttention", lambda kind=kind: flex_caller(q, k, v, kind)))
            if "ours" in wanted:
                for i, library in enumerate(ours):
                    name = "ours" if len(ours) == 1 else options.library[i].split("/")[-1]
                    callers.append((name, lambda kind=kind, library=library: library.prepare(q, k, v, kind)))
                if options.portable:
                    callers.append(("ours, portable", lambda kind=kind: ours[0].prepare(q, k, v, kind, kernel=1)))
            flop, first = 4.0 * DIM * HEADS * visible_pairs(kind, n), None
            for name, make in callers:
                try:
                    call = make()
                    result = call()
                    torch.cuda.synchronize()
                except Exception as error:                 # a peer that cannot run is reported, not hidden
                    print(f"{n:8} {kind:10} {name:24} not run: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
                    continue
                difference = 0.0 if first is None else relative_error(result, first)
                first = result.clone() if first is None else first
                median, least, spread = time_ms(call, flush)
                rate = flop / median / 1e9
                print(f"{n:8} {kind:10} {name:24} {median:9.3f} {least:9.3f} {spread:6.1f}% {rate:8.1f} "
                      f"{100 * rate / ceiling:7.1f}% {difference:9.1e}", flush=True)
                records.append([commit, machine, "attention: " + name, kind, "bf16", n, f"{median:.4f}", f"{least:.4f}",
                                f"{spread:.1f}", f"{rate:.1f}", f"{100 * rate / ceiling:.1f}", torch.cuda.max_memory_allocated()])
                if difference > 1e-2 or difference != difference:
                    print("the results differ", file=sys.stderr)
                    return 1
                del call, result
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow("commit machine op pattern dtype n_tokens median_ms min_ms spread_pct tflops pct_of_ceiling peak_bytes".split())
            writer.writerows(records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
