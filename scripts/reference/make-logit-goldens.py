#!/usr/bin/env python3
"""Writes tests/vectors/prompt_smollm2_4096.txt and the stored truths of tests/check-logits.py: logits_smollm2.json for
the demo model, logits_smollm2_32k.json for the demo model with the adapter of eval/longctx.  The whole logit vectors
go into models/golden/ (not in the repository: 9 MB).

The truth is the reference in f64 (reference.py says what stays f32); the same in f32 runs beside it, and the largest
difference of the two is stored with each case: what f32 arithmetic alone can be blamed for.
"""
import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
import transformers

from reference import Adapter, GgufLlama, Reference, kl, log_softmax, parse_plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPT_FILE = "tests/vectors/prompt_smollm2_4096.txt"
N_PROMPT = 4096


@dataclass(frozen=True)
class Suite:
    """One golden file: a model and the cases it runs, every setting at every length."""
    golden_file: str
    n_tokens: tuple
    settings: tuple                  # (plan, sink, window, last)
    adapter: str = None
    rope_freq_base: float = None


SUITES = {
    # Around the edges of 8/512/128 (first row that skips work: 520), one prompt that is cut everywhere, one long.
    "plain": Suite("tests/vectors/logits_smollm2.json", (1, 2, 127, 128, 129, 520, 521, 1024, N_PROMPT),
                   (("dense", 8, 512, 128), ("triangle:10-29", 8, 512, 128), ("triangle", 4, 100, 0),
                    ("triangle", 1, 64, 17), ("streaming:10-29", 8, 256, 128))),
    "32k": Suite("tests/vectors/logits_smollm2_32k.json", (3800,),
                 (("dense", 8, 512, 128), ("triangle:10-29", 8, 512, 128)),
                 "eval/longctx/smollm2-135m-32k.lora.gguf", 1e6),
}
N_TOP = 64
FIXED_IDS = list(range(17, 49152, 1536))


def make_prompt(tokenizer):
    """Ids of a generated text without a chat format around it."""
    text = subprocess.run([sys.executable, ROOT / "scripts/make-document.py", "--seed", "2", "--words", "3600",
                           "--fact", "", "--question", ""], check=True, capture_output=True, text=True).stdout
    return tokenizer.encode(text).ids[:N_PROMPT]


def write_prompt(path, ids):
    lines = [" ".join(map(str, ids[i:i + 20])) for i in range(0, len(ids), 20)]
    path.write_text("\n".join(lines) + "\n")


def describe(logits):
    order = np.argsort(-logits, kind="stable")[:N_TOP]
    log_p = log_softmax(logits)
    return {
        "argmax": int(order[0]),
        "margin": round(float(logits[order[0]] - logits[order[1]]), 6),
        "lse": round(float(logits[order[0]] - log_p[order[0]]), 6),
        "top_ids": order.tolist(),
        "top_logits": [round(float(x), 6) for x in logits[order]],
        "fixed_logits": [round(float(x), 6) for x in logits[FIXED_IDS]],
    }


def write_goldens(path, head, cases):
    """One line a case and list, so that a change shows as one in a diff."""
    def entry(case):
        return "{" + ",\n   ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in case.items()) + "}"

    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines.append('"cases": [\n  ' + ",\n  ".join(entry(case) for case in cases) + "\n ]")
    path.write_text("{" + ",\n ".join(lines) + "}\n")


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def make_suite(suite, options):
    adapters = [Adapter(ROOT / suite.adapter)] if suite.adapter else []
    gguf_llama = GgufLlama(options.model, adapters, suite.rope_freq_base)
    prompt = make_prompt(gguf_llama.tokenizer())
    assert len(prompt) == N_PROMPT, len(prompt)
    write_prompt(ROOT / PROMPT_FILE, prompt)
    truth, twin = Reference(gguf_llama, torch.float64), Reference(gguf_llama, torch.float32)
    path = ROOT / suite.golden_file
    whole = ROOT / "models/golden" / path.stem
    whole.mkdir(parents=True, exist_ok=True)

    head = {
        "about": "logits after the last prompt token; made by scripts/reference/make-logit-goldens.py",
        "model_sha256": sha256(options.model),
        "prompt_file": PROMPT_FILE,
        "reference": f"transformers {transformers.__version__}, torch {torch.__version__}, eager, f64",
        "fixed_ids": FIXED_IDS,
    }
    if suite.adapter:
        head |= {"adapter": suite.adapter, "adapter_sha256": sha256(ROOT / suite.adapter),
                 "rope_freq_base": suite.rope_freq_base}
    cases = []
    for n_tokens in (n for n in suite.n_tokens if n <= options.max_tokens):
        ids = prompt[:n_tokens]
        for spec, n_sink, n_window, n_last in suite.settings:
            begin = time.monotonic()
            plan = parse_plan(spec, truth.n_layers, n_sink, n_window, n_last)
            logits, logits_f32 = truth.prefill(ids, plan), twin.prefill(ids, plan)
            name = f"{spec}/{n_sink}/{n_window}/{n_last}/{n_tokens}"
            np.save(whole / (name.replace(":", "_").replace("/", "_") + ".npy"), logits.astype(np.float32))
            cases.append({
                "name": name, "n_tokens": n_tokens, "plan": spec,
                "n_sink": n_sink, "n_window": n_window, "n_last": n_last,
                "ids_sha256": hashlib.sha256(np.array(ids, dtype="<i4").tobytes()).hexdigest(),
                "f32_max_abs_diff": float(f"{np.abs(logits - logits_f32).max():.1e}"), **describe(logits)})
            print(f"{name:40} argmax {cases[-1]['argmax']:6} margin {cases[-1]['margin']:9.6f}  f32: max diff "
                  f"{cases[-1]['f32_max_abs_diff']:.1e} KL {kl(logits, logits_f32):.1e}  "
                  f"{time.monotonic() - begin:.1f} s", flush=True)
    write_goldens(path, head, cases)


def main():
    parser = argparse.ArgumentParser(description="Makes the stored logits of the demo model.")
    parser.add_argument("--suite", choices=SUITES, help="make only this golden file (default: both)")
    parser.add_argument("--model", default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--max-tokens", type=int, default=N_PROMPT, help="leave out longer prompts (for a trial)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [options.suite] if options.suite else SUITES:
        make_suite(SUITES[name], options)


if __name__ == "__main__":
    main()
