#!/usr/bin/env python3
"""Compares the logits of the built tmx with the stored ones of an independent implementation, on the demo model and, with
--extended, on Gemma 3 270M.

tests/vectors/logits_smollm2.json and, for the model with the adapter of eval/longctx, logits_smollm2_32k.json hold, per
case, what transformers computed in f64 on the same weights: the 64 best logits, 32 more at fixed ids, and the
log-sum-exp of all (scripts/reference/ made it); logits_gemma3_270m.json is the same for Gemma.  models/golden/ may hold the whole vectors; where it does, every logit
is compared and the KL divergence is exact.

KL(reference || tmx) from stored data alone: the rest of the vocabulary counts as one event, which gives a lower bound
(data-processing inequality); what happens inside the rest is estimated from the fixed ids as p(rest) * variance of the
difference / 2, the second-order form of the divergence.

Arguments after -- go to tmx: check-logits.py --quick -- --isa avx2 --threads 1
"""
import argparse
import array
import ast
import hashlib
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
WHOLE = ROOT / "models/golden"
QUICK = (1, 129, 1024)           # prompt lengths of --quick
LONG = 2048                      # beyond it, bf16 runs these plans only, the others with --extended
LONG_PLANS = ("dense/8/512/128", "triangle:10-29/8/512/128")

# Largest difference of a logit in f32; largest KL divergence in bf16.
GOLDENS = {
    "logits_smollm2.json": (3e-4, 1e-3),         # measured 7e-5 (one key too many in a window moves 1024 tokens' logits by 2e-3), 4e-4
    "logits_smollm2_32k.json": (3e-4, 1e-3),
    "logits_gemma3_270m.json": (2e-3, 4e-3),     # measured 4e-5, 2e-4
}
EXTENDED = {"logits_gemma3_270m.json"}


def clear_margin(compute, limits):
    """The best token must be the same where the reference's lead over the second is at least this."""
    return 2 * limits[0] if compute == "f32" else 0.5


def read_npy(path):
    """A vector of little-endian f32."""
    data = pathlib.Path(path).read_bytes()
    if data[:6] != b"\x93NUMPY":
        raise ValueError(f"{path}: not a .npy file")
    n_length = 2 if data[6] == 1 else 4
    begin = 8 + n_length
    end = begin + int.from_bytes(data[8:begin], "little")
    header = ast.literal_eval(data[begin:end].decode("latin-1"))
    if header["descr"] != "<f4" or header["fortran_order"] or len(header["shape"]) != 1:
        raise ValueError(f"{path}: {header}, expected a vector of <f4")
    values = array.array("f", data[end:])
    if sys.byteorder == "big":
        values.byteswap()
    if len(values) != header["shape"][0]:
        raise ValueError(f"{path}: {len(values)} values, its header says {header['shape'][0]}")
    return values


def log_sum_exp(logits):
    top = max(logits)
    return top + math.log(math.fsum(math.exp(x - top) for x in logits))


def kl_exact(reference, logits):
    lse_a, lse_b = log_sum_exp(reference), log_sum_exp(logits)
    return math.fsum(math.exp(a - lse_a) * ((a - lse_a) - (b - lse_b)) for a, b in zip(reference, logits))


def kl_from_stored(case, fixed_ids, logits):
    lse = log_sum_exp(logits)
    kl = p_top = q_top = 0.0
    for token, logit in zip(case["top_ids"], case["top_logits"]):
        log_p, log_q = logit - case["lse"], logits[token] - lse
        kl += math.exp(log_p) * (log_p - log_q)
        p_top += math.exp(log_p)
        q_top += math.exp(log_q)
    p_rest, q_rest = 1 - p_top, 1 - q_top
    if p_rest > 0 and q_rest > 0:
        kl += p_rest * math.log(p_rest / q_rest)
    diffs = [logits[token] - logit for token, logit in zip(fixed_ids, case["fixed_logits"])]
    mean = sum(diffs) / len(diffs)
    return kl + max(p_rest, 0) * sum((d - mean) ** 2 for d in diffs) / len(diffs) / 2


def max_diff(case, fixed_ids, logits):
    pairs = [*zip(case["top_ids"], case["top_logits"]), *zip(fixed_ids, case["fixed_logits"])]
    return max(abs(log_sum_exp(logits) - case["lse"]), *(abs(logits[token] - logit) for token, logit in pairs))


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def model_of(options, golden):
    return ROOT / golden["model"] if "model" in golden else options.model


def run_tmx(options, golden, case, compute, ids, folder):
    """The logits that tmx writes; raises RuntimeError with its last line if it fails."""
    ids_path, logits_path = folder / "ids.txt", folder / "logits.npy"
    ids_path.write_text(" ".join(map(str, ids)) + "\n")
    logits_path.unlink(missing_ok=True)
    command = [options.tmx, "run", "-m", model_of(options, golden), "--ids", ids_path, "-n", "0", "-q", "--compute", compute,
               "--plan", case["plan"], "--logits", logits_path]
    if case["plan"] != "dense":
        command += ["--sink", case["n_sink"], "--window", case["n_window"], "--last", case["n_last"]]
    if "adapter" in golden:
        command += ["--lora", ROOT / golden["adapter"], "--rope-freq-base", golden["rope_freq_base"]]
    done = subprocess.run([*map(str, command), *options.more], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return read_npy(logits_path)


def compare(case, fixed_ids, whole_folder, logits, compute, limits):
    """(text for the table, passed?)"""
    if not all(map(math.isfinite, logits)):
        return "NaN or infinity in the logits", False
    whole_path = whole_folder / (case["name"].replace(":", "_").replace("/", "_") + ".npy")
    diff = max_diff(case, fixed_ids, logits)
    if whole_path.exists():
        whole = read_npy(whole_path)
        diff = max(diff, *(abs(a - b) for a, b in zip(whole, logits)))
        kl, mark = kl_exact(whole, logits), "="
    else:
        kl, mark = kl_from_stored(case, fixed_ids, logits), "~"
    best = max(range(len(logits)), key=logits.__getitem__)
    is_clear = case["margin"] > clear_margin(compute, limits)
    passed = (best == case["argmax"] or not is_clear) and (
        diff <= limits[0] if compute == "f32" else kl <= limits[1])
    top = "same" if best == case["argmax"] else f"{best}, not {case['argmax']} (lead {case['margin']:.3f})"
    return f"max diff {diff:8.2e}  KL {mark}{kl:9.2e}  top {top}", passed


def check_golden(options, path, folder):
    """(n_passed, n_failed, n_skipped) of one file of stored logits."""
    golden = json.loads(path.read_text())
    prompt = [int(word) for word in (ROOT / golden["prompt_file"]).read_text().split()]
    cases = [case for case in golden["cases"] if not options.quick or case["n_tokens"] in QUICK]
    computes = (options.compute,) if options.compute else ("f32", "bf16")
    model = model_of(options, golden)
    if path.name in EXTENDED and not options.extended:
        print(f"{path.name}: skipped without --extended")
        return 0, 0, len(cases) * len(computes)
    if not pathlib.Path(model).exists():
        print(f"skipped: no {model}; scripts/fetch-models.sh --all fetches it")
        return 0, 0, len(cases) * len(computes)
    for file, key in ((model, "model_sha256"), (ROOT / golden.get("adapter", ""), "adapter_sha256")):
        if key in golden and sha256(file) != golden[key]:
            raise SystemExit(f"{file}: not the file that the logits in {path.name} are of")
    print(f"{path.name}: {pathlib.Path(model).name}{', ' + golden['adapter'] if 'adapter' in golden else ''}")

    n_passed = n_failed = n_skipped = 0
    for case in cases:
        ids = prompt[:case["n_tokens"]]
        ids_bytes = b"".join(token.to_bytes(4, "little", signed=True) for token in ids)
        if hashlib.sha256(ids_bytes).hexdigest() != case["ids_sha256"]:
            raise SystemExit(f"{golden['prompt_file']}: not the prompt that the logits in {path.name} are of")
        for compute in computes:
            if compute == "bf16" and case["n_tokens"] > LONG and not options.extended and not case["name"].startswith(LONG_PLANS):
                n_skipped += 1
                continue
            begin = time.monotonic()
            try:
                logits = run_tmx(options, golden, case, compute, ids, folder)
                text, passed = compare(case, golden["fixed_ids"], WHOLE / path.stem, logits, compute,
                                       GOLDENS[path.name])
            except (OSError, RuntimeError, ValueError) as error:
                text, passed = str(error), False
            n_passed, n_failed = n_passed + passed, n_failed + (not passed)
            print(f"{'ok  ' if passed else 'FAIL'} {case['name']:32} {compute:4}  {text}  "
                  f"{time.monotonic() - begin:.1f} s", flush=True)
    return n_passed, n_failed, n_skipped


def main():
    parser = argparse.ArgumentParser(description="Compares tmx's logits with stored ones; what follows -- goes to tmx.")
    parser.add_argument("--quick", action="store_true", help=f"only prompts of {', '.join(map(str, QUICK))} tokens")
    parser.add_argument("--extended", action="store_true", help="also Gemma 3 270M, which is a bigger download")
    parser.add_argument("--compute", choices=("f32", "bf16"), help="only this number type (default: both)")
    parser.add_argument("--tmx", default=ROOT / "build/release/tmx", help="the program (default: build/release/tmx)")
    parser.add_argument("--model", default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf", help="the demo model")
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:split])
    options.more = arguments[split + 1:]

    with tempfile.TemporaryDirectory() as folder:
        counts = [check_golden(options, ROOT / "tests/vectors" / name, pathlib.Path(folder)) for name in GOLDENS]
    n_passed, n_failed, n_skipped = map(sum, zip(*counts))
    print(f"{n_passed} passed, {n_failed} failed, {n_skipped} skipped")
    return int(n_failed != 0)


if __name__ == "__main__":
    sys.exit(main())
