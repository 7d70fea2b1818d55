#!/usr/bin/env python3
"""How many layers of the demo model may be triangle?  Runs tmx over generated documents and prints what each choice
costs in agreement with dense attention and what it saves in attention time.

Every row is one plan over all documents: the mean and the largest KL(dense || plan) of the first answer token, how
often its best token is the same, how often the answer is right (and how often dense attention is), and the attention
time against dense.  The times are only as good as the machine is quiet.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGUN = "The secret passcode of the garden gate is"
DEPTHS = (0.4, 0.1, 0.7, 0.25, 0.9)      # where the fact stands; document i takes depth i


def numbers(text):
    return [int(word) for word in text.split(",")]


def make_documents(folder, lengths, n_seeds):
    """[(path, passcode)]: another text, another passcode and another depth in each."""
    documents = []
    for n_tokens in lengths:
        for seed in range(1, n_seeds + 1):
            passcode = str(100000 + (seed * 7919 + n_tokens * 104729) % 900000)
            path = folder / f"{n_tokens}-{seed}.txt"
            with path.open("wb") as out:
                subprocess.run([sys.executable, ROOT / "scripts/make-document.py", "--tokens-approx", str(n_tokens),
                                "--seed", str(seed), "--depth", str(DEPTHS[len(documents) % len(DEPTHS)]),
                                "--fact", f"{BEGUN} {passcode}."], check=True, stdout=out)
            documents.append((path, passcode))
    return documents


def ask_tmx(options, *arguments):
    """The JSON that tmx prints."""
    try:
        done = subprocess.run([str(word) for word in (options.tmx, *arguments)], capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"sweep-plan: {error}")
    if done.returncode != 0:
        sys.exit(f"sweep-plan: tmx {' '.join(map(str, arguments))}: exit {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def compare(options, plan, path):
    return ask_tmx(options, "run", "-m", options.model, "--chat", "-f", path, "--assistant", BEGUN, "-n", 10, "-q",
                   "--plan", plan, "--sink", options.sink, "--window", options.window, "--last", options.last,
                   "--compare", "--json", *options.more)


def measure(options, plan, documents):
    row = {"plan": plan, "n": 0, "kl": [], "same": 0, "right": 0, "dense_right": 0, "ms": 0.0, "dense_ms": 0.0}
    for path, passcode in documents:
        result = compare(options, plan, path)
        dense, planned = result["runs"]
        agreement = result["agreement"]
        row["n"] += 1
        row["kl"].append(agreement["kl"])
        row["same"] += agreement["top_dense"] == agreement["top_plan"]
        row["right"] += planned["answers"][0]["text"].strip().startswith(passcode)
        row["dense_right"] += dense["answers"][0]["text"].strip().startswith(passcode)
        row["ms"] += planned["timings"]["attention_ms"]
        row["dense_ms"] += dense["timings"]["attention_ms"]
    return row


def plans(options, n_layers):
    """(k, spec): the k deepest layers, then explicit specs."""
    for k in options.deepest:
        if not 0 <= k <= n_layers:
            sys.exit(f"sweep-plan: --deepest {k}: expected 0 to {n_layers}, the layers of the model")
        yield k, f"triangle:{n_layers - k}-{n_layers - 1}" if k else "dense"
    for spec in options.plan:
        yield "", spec


def main():
    parser = argparse.ArgumentParser(description="Agreement and attention time of several plans on the demo model; "
                                     "what follows -- goes to tmx.")
    parser.add_argument("--tmx", default=ROOT / "build/release/tmx")
    parser.add_argument("--model", default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--lengths", type=numbers, default=[1000, 2000, 4000, 6500],
                        help="tokens of the documents (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="documents of each length (default: %(default)s)")
    parser.add_argument("--deepest", type=numbers, default=[0, 5, 10, 15, 20, 25, 30],
                        help="numbers of deepest layers to make triangle (default: %(default)s)")
    parser.add_argument("--plan", action="append", default=[], help="one more plan, as tmx spells it; may be repeated")
    parser.add_argument("--sink", type=int, default=8)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--last", type=int, default=128)
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:split])
    options.more = arguments[split + 1:]

    n_layers = ask_tmx(options, "inspect", options.model, "--json")["model"]["n_layers"]
    specs = list(plans(options, n_layers))
    with tempfile.TemporaryDirectory() as folder:
        documents = make_documents(pathlib.Path(folder), options.lengths, options.seeds)
        print(f"{len(documents)} documents of {options.lengths} tokens; triangle {options.sink}/{options.window}/"
              f"{options.last}; right: the answer, in brackets with dense attention")
        print(f"{'k':>3}  {'plan':24}{'KL mean':>10}{'KL max':>10}{'top-1':>8}{'right':>12}{'attention ms':>14}"
              f"{'dense ms':>10}{'speed-up':>10}")
        for k, spec in specs:
            row = measure(options, spec, documents)
            n = row["n"]
            top, right = f"{row['same']}/{n}", f"{row['right']}/{n} ({row['dense_right']})"
            speedup = row["dense_ms"] / row["ms"] if row["ms"] else float("nan")
            print(f"{k:>3}  {spec:24}{sum(row['kl']) / n:10.2e}{max(row['kl']):10.2e}{top:>8}{right:>12}"
                  f"{row['ms']:14.0f}{row['dense_ms']:10.0f}{speedup:9.2f}x", flush=True)


if __name__ == "__main__":
    main()
