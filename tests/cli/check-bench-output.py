"""check-bench-output.py FOLDER: bench.json, bench.csv, kernels.json and kernels.csv of tmx bench have the fields and types that
docs/bench.md promises, and their numbers hold together.  Silent when they do."""
import csv
import json
import os
import sys

LLAMA_BENCH = {
    "build_commit": str, "build_number": int, "cpu_info": str, "gpu_info": str, "backends": str, "model_filename": str,
    "model_type": str, "model_size": int, "model_n_params": int, "n_threads": int, "type_k": str, "type_v": str,
    "n_gpu_layers": int, "n_prompt": int, "n_gen": int, "n_depth": int, "test_time": str, "avg_ns": int, "stddev_ns": int,
    "avg_ts": float, "stddev_ts": float, "samples_ns": list, "samples_ts": list,
}
OURS = {
    "isa": str, "compute": str, "n_chunk": int, "median_ns": int, "spread_pct": float, "plan": str, "plan_layers": str,
    "ttft_s": float, "attention_share": float, "peak_bytes": int, "seed": int, "n_repetitions": int, "is_complete": bool,
    "layer_attention_ms": list,
}
MAY_BE_NULL = {"ttft_s", "attention_share"}            # of a test that only decodes
ARRAYS = {"samples_ns", "samples_ts", "layer_attention_ms"}
KERNEL = {
    "build_commit": str, "build_number": int, "cpu_info": str, "n_threads": int, "op": str, "pattern": str, "type": str,
    "provider": str, "isa": str, "n_tokens": int, "n_heads": int, "n_kv_heads": int, "head_dim": int, "n_out": int, "n_in": int,
    "median_ms": float, "min_ms": float, "spread_pct": float, "gflops": float, "gbytes_per_s": float, "pct_of_ceiling": float,
    "time_ratio": float, "pair_ratio": float, "relative_error": float,
}


def near(a, b, tolerance=1e-6):
    return abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-30)


def has_type(value, kind):
    return isinstance(value, (int, float)) and not isinstance(value, bool) if kind is float else type(value) is kind


def check_model_result(r):
    for name, kind in {**LLAMA_BENCH, **OURS}.items():
        assert name in r, name
        assert has_type(r[name], kind) or (r[name] is None and name in MAY_BE_NULL and r["n_prompt"] == 0), (name, r[name])
    assert set(r) == set(LLAMA_BENCH) | set(OURS), set(r) ^ (set(LLAMA_BENCH) | set(OURS))
    n, tokens = r["n_repetitions"], r["n_prompt"] + r["n_gen"]
    assert n == 2 and r["is_complete"] and len(r["samples_ns"]) == len(r["samples_ts"]) == n
    for ns, ts in zip(r["samples_ns"], r["samples_ts"]):
        assert near(ts, tokens / (ns * 1e-9)), (ts, ns, tokens)
    assert near(r["avg_ts"], sum(r["samples_ts"]) / n) and abs(r["avg_ns"] - sum(r["samples_ns"]) / n) <= 1
    assert near(r["stddev_ts"], abs(r["samples_ts"][0] - r["samples_ts"][1]) / 2 ** 0.5, 1e-4)
    if r["n_prompt"] > 0:
        assert 0 < r["attention_share"] < 1 and len(r["layer_attention_ms"]) == 30
        assert r["ttft_s"] <= r["median_ns"] * 1e-9
        assert near(sum(r["layer_attention_ms"]) * 1e-3, r["attention_share"] * r["ttft_s"], 0.2)
        if r["n_gen"] == 0:
            assert near(r["ttft_s"], r["median_ns"] * 1e-9, 0.02)


def main(folder):
    results = json.load(open(os.path.join(folder, "bench.json")))
    for r in results:
        check_model_result(r)
    tests = [(r["n_prompt"], r["n_gen"], r["n_depth"], r["plan"]) for r in results]
    per_depth = [(40, 0, "dense"), (40, 0, "triangle"), (0, 3, "dense"), (20, 2, "dense"), (20, 2, "triangle")]
    assert tests == [(p, n, d, plan) for d in (0, 30) for p, n, plan in per_depth], tests
    assert {r["model_size"] for r in results} == {96576768} and {r["model_n_params"] for r in results} == {134515008}

    rows = list(csv.reader(open(os.path.join(folder, "bench.csv"))))
    assert rows[0] == [name for name in results[0] if name not in ARRAYS], rows[0]
    assert len(rows) == 1 + len(results) and all(len(row) == len(rows[0]) for row in rows)
    for row, r in zip(rows[1:], results):
        cells = dict(zip(rows[0], row))
        for name in ("plan", "plan_layers", "model_type", "n_prompt", "n_gen", "n_depth", "seed", "isa"):
            assert cells[name] == str(r[name]), (name, cells[name], r[name])
        assert (cells["ttft_s"] == "") == (r["ttft_s"] is None)

    kernels = json.load(open(os.path.join(folder, "kernels.json")))
    for r in kernels:
        assert list(r) == list(KERNEL), set(r) ^ set(KERNEL)
        for name, value in r.items():
            assert value is None or has_type(value, KERNEL[name]), (name, value)
    ops = {r["op"] for r in kernels}
    assert ops == {"ceiling", "attention", "matmul", "matvec"}, ops
    for r in kernels:
        if r["op"] == "attention":
            n = r["n_tokens"]
            flop = 4 * r["head_dim"] * r["n_heads"] * n * (n + 1) / 2 * r["pair_ratio"]
            assert near(r["gflops"], flop / r["median_ms"] * 1e-6), r
            assert n > 512 or r["pair_ratio"] == 1
        if r["op"] == "matmul":
            assert near(r["gflops"], 2e-6 * r["n_tokens"] * r["n_out"] * r["n_in"] / r["median_ms"]), r
    rows = list(csv.reader(open(os.path.join(folder, "kernels.csv"))))
    assert rows[0] == list(KERNEL) and all(len(row) == len(KERNEL) for row in rows), rows[0]


main(sys.argv[1])
