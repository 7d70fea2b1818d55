#!/usr/bin/env python3
"""The demo model's logits must be the same to the bit however the work is cut: chunks, threads, alone or in a batch, and
between patterns that see the same pairs.  Runs the built tmx on every rung this CPU has; standard library only."""
import argparse
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
N = 100
TRIANGLE = ["--plan", "triangle:3-29", "--sink", "4", "--window", "32", "--last", "20"]
# name, arguments of the first run, and of the runs that must give the same bits
CASES = [
    ("chunks", TRIANGLE, [[*TRIANGLE, "--chunk", str(n)] for n in (1, 7, 64, 500, 2048, N)]),
    ("chunks, dense", [], [["--chunk", "7"], ["--chunk", "64"]]),
    ("threads", [*TRIANGLE, "--threads", "1"], [[*TRIANGLE, "--threads", "2"], [*TRIANGLE, "--threads", "5"]]),
    ("window >= N is dense", ["--plan", "dense"], [["--plan", "triangle", "--window", str(N)]]),
    ("--last 0 is streaming", ["--plan", "streaming", "--window", "32"], [["--plan", "triangle", "--window", "32", "--last", "0"]]),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tmx", default=ROOT / "build/release/tmx")
    parser.add_argument("--model", default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    options = parser.parse_args()
    n_passed = n_failed = n_skipped = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        ids = (ROOT / "tests/vectors/prompt_smollm2_4096.txt").read_text().split()[:N]
        (folder / "ids").write_text(" ".join(ids))

        def logits(*arguments):
            out = folder / "logits.npy"
            done = subprocess.run([str(options.tmx), "run", "-q", "-n", "0", "-m", str(options.model), "--logits", str(out),
                                   *arguments], capture_output=True, text=True)
            return out.read_bytes() if done.returncode == 0 else done.stderr.strip()

        for isa in ("scalar", "avx2", "avx512", "avx512bf16", "amx"):
            for compute in ("f32", "bf16"):
                machine = ["--isa", isa, "--compute", compute, "--ids", str(folder / "ids")]
                for name, first, others in CASES:
                    expected = logits(*machine, *first)
                    if isinstance(expected, str) and "this CPU has no" in expected:
                        print(f"skip {isa:11}{compute:5} {name}: {expected}")
                        n_skipped += 1
                        continue
                    found = [logits(*machine, *other) for other in others]
                    if isinstance(expected, bytes) and all(one == expected for one in found):
                        n_passed += 1
                        print(f"ok   {isa:11}{compute:5} {name}")
                    else:
                        n_failed += 1
                        errors = [one for one in [expected, *found] if isinstance(one, str)]
                        print(f"FAIL {isa:11}{compute:5} {name}: {errors or 'other bits'}")
    print(f"{n_passed} passed, {n_failed} failed, {n_skipped} skipped")
    return n_failed != 0


if __name__ == "__main__":
    sys.exit(main())
