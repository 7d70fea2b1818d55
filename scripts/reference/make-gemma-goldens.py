#!/usr/bin/env python3
"""Writes tests/vectors/logits_gemma3_270m.json and its prompt, for tests/check-logits.py --extended: transformers' Gemma 3 in
f64 on the expanded weights of Gemma 3 270M, dense (transformers' own masks) and with two of its three full layers triangle."""
import argparse
import hashlib
import importlib
import subprocess
import sys
import time

import numpy as np
import torch
import transformers

from reference import GgufGemma3, Pattern, Reference, kl, parse_plan

goldens = importlib.import_module("make-logit-goldens")
ROOT = goldens.ROOT
PROMPT_FILE = "tests/vectors/prompt_gemma3_2301.txt"
LENGTHS = (1, 300, 701, 2301)
FIXED_IDS = list(range(17, 262144, 8192))


def plan_of(spec, config):
    """None for dense; else one Pattern per layer, the model's own windows among them."""
    if spec == "dense":
        return None
    own = Pattern("streaming", 0, config.sliding_window)
    return [own if kind == "sliding_attention" else pattern
            for kind, pattern in zip(config.layer_types, parse_plan(spec, config.num_hidden_layers))]


def main():
    parser = argparse.ArgumentParser(description="Makes the stored logits of Gemma 3 270M.")
    parser.add_argument("--model", default=ROOT / "models/gemma-3-270m-q4_k_m.gguf")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = GgufGemma3(options.model)
    text = subprocess.run([sys.executable, ROOT / "scripts/make-document.py", "--seed", "3", "--words", "2400", "--fact", "",
                           "--question", ""], check=True, capture_output=True, text=True).stdout
    prompt = model.split(text)[:max(LENGTHS)]
    assert len(prompt) == max(LENGTHS), len(prompt)
    goldens.write_prompt(ROOT / PROMPT_FILE, prompt)
    goldens.FIXED_IDS[:] = FIXED_IDS
    truth, twin = Reference(model, torch.float64), Reference(model, torch.float32)
    config = truth.model.config
    head = {"about": "logits after the last prompt token; made by scripts/reference/make-gemma-goldens.py",
            "model": "models/gemma-3-270m-q4_k_m.gguf", "model_sha256": goldens.sha256(options.model), "prompt_file": PROMPT_FILE,
            "reference": f"transformers {transformers.__version__}, torch {torch.__version__}, eager, f64", "fixed_ids": FIXED_IDS}
    cases = []
    for n_tokens in LENGTHS:
        for spec in ("dense", "triangle:5,11"):
            begin, plan, ids = time.monotonic(), plan_of(spec, config), prompt[:n_tokens]
            logits, logits_f32 = truth.prefill(ids, plan), twin.prefill(ids, plan)
            cases.append({
                "name": f"{spec}/8/512/128/{n_tokens}", "n_tokens": n_tokens, "plan": spec, "n_sink": 8, "n_window": 512, "n_last": 128,
                "ids_sha256": hashlib.sha256(np.array(ids, dtype="<i4").tobytes()).hexdigest(),
                "f32_max_abs_diff": float(f"{np.abs(logits - logits_f32).max():.1e}"), **goldens.describe(logits)})
            print(f"{cases[-1]['name']:32} argmax {cases[-1]['argmax']:6} margin {cases[-1]['margin']:9.6f}  f32: max diff "
                  f"{cases[-1]['f32_max_abs_diff']:.1e} KL {kl(logits, logits_f32):.1e}  {time.monotonic() - begin:.1f} s", flush=True)
    goldens.write_goldens(ROOT / "tests/vectors/logits_gemma3_270m.json", head, cases)


if __name__ == "__main__":
    main()
