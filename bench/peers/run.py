#!/usr/bin/env python3
"""run.py -m MODEL - other engines and tmx on the same file, lengths and threads, taking turns in one run.

    bench/peers/run.py -m model.gguf -p 512,2048,8000 -n 32 -t 2 -r 5 --plan dense,model.plan.json
    bench/peers/run.py -m model.gguf --engines llama.cpp,openvino,openvino-trishape,openvino-xattention
    bench/peers/run.py --attention -p 2048,8192 --head-dim 64,128         torch's attention kernel beside ours

Peers are installed by pip into --env (default build/peers/venv), which nothing else uses; llama.cpp is compiled there for this
machine.  What cannot be installed or does not load the file is said and left out.  Each peer is a process of its own that stays alive;
in a round everyone is timed once at each length, the first round is thrown away.  tmx is started anew each time: its check and its
warm-up come before the time that is taken.  First of all every peer must begin the same prompt with our token.

A Markdown table on standard output: median time to first token, least and largest, and how many times faster the first plan of ours
is; with -n the same for a decoded token after that prompt.  Ctrl-C or SIGTERM prints what is finished.  Exit code 1: no peer could
be timed."""
import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PACKAGES = {
    "llama.cpp": ["llama-cpp-python"], "llama.cpp-fa": ["llama-cpp-python"],
    "openvino": ["openvino-genai", "numpy"], "openvino-trishape": ["openvino-genai", "numpy"],
    "openvino-xattention": ["openvino-genai", "numpy"],
    "transformers": ["transformers", "torch", "gguf", "accelerate"], "torch-sdpa": ["torch"],
}
PROMPT = "The capital of France is"


def say(text):
    print(text, file=sys.stderr, flush=True)


def install(env, packages):
    """True once every package is there."""
    python = os.path.join(env, "bin", "python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", env], check=True)
    names = [p.replace("-", "_") for p in packages]
    probe = "import importlib.metadata as m, sys; [m.version(p) for p in sys.argv[1:]]"
    if subprocess.run([python, "-c", probe, *names], stderr=subprocess.DEVNULL).returncode == 0:
        return True
    say(f"installing {', '.join(packages)} into {env}")
    settings = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run([python, "-m", "pip", "install", "-q", *packages], env=settings, stdout=sys.stderr).returncode == 0


class Peer:
    """An engine in a process of its own."""

    def __init__(self, engine, env, model, n_threads, n_longest):
        self.engine, self.error = engine, None
        answers, theirs = os.pipe()
        self.log = os.path.join(env, engine + ".log")
        command = [os.path.join(env, "bin", "python"), os.path.join(HERE, "engines.py"), engine, model, str(n_threads), str(n_longest),
                   str(theirs)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[theirs], text=True,
                                            env={**os.environ, "OMP_NUM_THREADS": str(n_threads)})
        os.close(theirs)
        self.answers = os.fdopen(answers)
        self.name = self.read().get("ready", engine)

    def read(self):
        line = self.answers.readline()
        if not line:
            self.error = f"ended; {self.log} says why"
            return {}
        return json.loads(line)

    def ask(self, request):
        if self.error is None:
            try:
                print(json.dumps(request), file=self.process.stdin, flush=True)
                return self.read()
            except BrokenPipeError:
                self.error = f"ended; {self.log} says why"
        return {}

    def close(self):
        if not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:          # at work on what nobody waits for any more
            self.process.kill()
            self.process.wait()


def tmx(options, *arguments):
    return subprocess.run([options.tmx, *arguments], check=True, capture_output=True, text=True).stdout


def start_peers(options, engines, model, n_longest):
    peers = []
    for engine in engines:
        if not install(options.env, PACKAGES[engine]):
            say(f"{engine}: cannot be installed; left out")
            continue
        peer = Peer(engine, options.env, model, options.threads, n_longest)
        if peer.error:
            say(f"{engine}: {peer.error}; left out")
            peer.close()
            continue
        say(f"{engine}: {peer.name}")
        peers.append(peer)
    return peers


def add(samples, key, value):
    if value is not None:
        samples.setdefault(key, []).append(value)


def print_table(samples, rows, lengths, unit, scale, title):
    """rows: names, the first is what the others are compared with."""
    print(f"\n{title}\n")
    print("| engine | " + " | ".join(f"{n}" for n in lengths) + " |")
    print("|---|" + "---|" * len(lengths))
    for row in rows:
        cells = []
        for n in lengths:
            times, ours = samples.get((row, n)), samples.get((rows[0], n))
            if not times:
                cells.append("")
                continue
            middle = statistics.median(times)
            cell = f"{middle * scale:.4g} {unit} ({min(times) * scale:.4g}..{max(times) * scale:.4g})"
            if row != rows[0] and ours:
                cell += f", {middle / statistics.median(ours):.2f}x"
            cells.append(cell)
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


# ---------------------------------------------------------------- models

def check_first_token(options, peers):
    ids = [int(word) for word in tmx(options, "run", "-q", "-m", options.model, "-p", PROMPT, "--tokens").split()]
    answer = json.loads(tmx(options, "run", "-q", "-m", options.model, "--device", "cpu", "-p", PROMPT, "-n", "1", "--json"))
    ours = answer["runs"][0]["answers"][0]["ids"][0]
    for peer in peers:
        first = peer.ask({"ids": ids, "n_gen": 0}).get("first")
        if peer.error is None and first != ours:
            peer.error = f"begins '{PROMPT}' with token {first}, we with {ours}"
        if peer.error:
            say(f"{peer.engine}: {peer.error}; left out")


def time_ours(options, n, plans):
    """[(plan, ttft_s)], and seconds of a decoded token or None."""
    common = ["bench", "-q", "-m", options.model, "--device", "cpu", "-t", str(options.threads), "-r", "1", "-o", "json"]
    results = json.loads(tmx(options, *common, "-p", str(n), "-n", "0", "--plan", plans))
    step_s = None
    if options.n_gen:
        decoded = json.loads(tmx(options, *common, "-p", "0", "-n", str(options.n_gen), "-d", str(n), "--plan", plans))
        step_s = decoded[0]["median_ns"] * 1e-9 / options.n_gen
    return [("tmx " + r["plan"], r["ttft_s"]) for r in results], step_s


def take_turns(options, lengths, n_vocab, dice, peers, ttft, step, ours):
    """Everyone once at each length, round after round; the first round is thrown away."""
    for i in range(-1, options.repetitions):
        for n in lengths:
            ids = [dice.randrange(n_vocab) for _ in range(n)]
            plans, step_s = time_ours(options, n, options.plan)
            ours[:] = [name for name, _ in plans]
            if i >= 0:
                for name, ttft_s in plans:
                    add(ttft, (name, n), ttft_s)
                add(step, (ours[0], n), step_s)
            times = list(plans)
            for peer in peers:
                answer = peer.ask({"ids": ids, "n_gen": options.n_gen})
                times.append((peer.engine, answer.get("ttft_s", float("nan"))))
                if i >= 0:
                    add(ttft, (peer.engine, n), answer.get("ttft_s"))
                    add(step, (peer.engine, n), answer.get("step_s"))
            say(f"round {i + 1} of {options.repetitions}, {n} tokens: "
                + ", ".join(f"{name} {ttft_s:.2f} s" for name, ttft_s in times))


def run_models(options, lengths):
    dice = random.Random(options.seed)
    n_vocab = json.loads(tmx(options, "inspect", options.model, "--json"))["model"]["n_vocab"]
    peers = start_peers(options, options.engines, options.model, max(lengths) + options.n_gen + 1)
    check_first_token(options, peers)
    peers = [peer for peer in peers if peer.error is None]
    ttft, step, ours = {}, {}, []
    try:
        take_turns(options, lengths, n_vocab, dice, peers, ttft, step, ours)
    except KeyboardInterrupt:
        say("stopped; this is what was finished")
    for peer in peers:
        if peer.error:
            say(f"{peer.engine}: {peer.error}; some of its times are missing")
        peer.close()
    rows = ours + [peer.engine for peer in peers]
    print(f"{options.threads} threads, {os.path.basename(options.model)}, medians of {options.repetitions}; "
          + "; ".join(f"{peer.engine}: {peer.name}" for peer in peers))
    print_table(ttft, rows, lengths, "s", 1, f"Time to first token, by prompt tokens; x: times that of {rows[0]}")
    if options.n_gen:
        print_table(step, ours[:1] + [peer.engine for peer in peers], lengths, "ms", 1e3, "A decoded token after such a prompt")
    return 0 if peers else 1


# ---------------------------------------------------------------- attention alone

def run_attention(options, lengths):
    peers = start_peers(options, ["torch-sdpa"], "-", 0)
    if not peers:
        return 1
    samples = {}
    dims = [int(d) for d in options.head_dim.split(",")]
    columns = [(n, d) for n in lengths for d in dims]
    for i in range(-1, options.repetitions):
        for n, d in columns:
            results = json.loads(tmx(options, "bench", "-q", "--kernels", "--device", "cpu", "-p", str(n), "--head-dim", str(d),
                                     "--gqa", "3", "--rows", "1", "-t", str(options.threads), "-r", "1", "-o", "json"))
            kernels = [r for r in results if r["op"] == "attention"]
            isa = kernels[-1]["isa"]                   # the highest rung comes last
            for kind in ("bf16", "f32"):
                theirs = peers[0].ask({"n": n, "dim": d, "group": 3, "type": kind})
                if i < 0:
                    continue
                add(samples, ("torch-sdpa " + kind, (n, d)), theirs.get("ms"))
                for r in kernels:
                    if r["isa"] == isa and r["type"] == kind:
                        name = f"tmx {r['pattern']} {kind}"
                        add(samples, (name, (n, d)), r["median_ms"])
    peers[0].close()
    for kind in ("bf16", "f32"):
        rows = [f"tmx dense {kind}", f"tmx streaming {kind}", f"tmx triangle {kind}", f"torch-sdpa {kind}"]
        print_table(samples, rows, columns, "ms", 1,
                    f"Attention, {kind}, (tokens, head_dim), 6 query heads on 2 KV heads, {options.threads} threads, {peers[0].name}")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="GGUF file")
    parser.add_argument("-p", "--n-prompt", default="512,2048", help="prompt lengths (default: 512,2048)")
    parser.add_argument("-n", "--n-gen", type=int, default=0, help="tokens to decode after each prompt (default: 0)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-s", "--seed", type=int, default=1)
    parser.add_argument("--plan", default="dense", help="our plans, as for tmx bench; the first is compared with")
    parser.add_argument("--engines", default="llama.cpp,llama.cpp-fa,openvino,openvino-trishape,openvino-xattention,transformers")
    parser.add_argument("--attention", action="store_true", help="time attention kernels instead of models")
    parser.add_argument("--head-dim", default="64,128", help="with --attention")
    parser.add_argument("--tmx", default=os.path.join(ROOT, "build", "release", "tmx"))
    parser.add_argument("--env", default=os.path.join(ROOT, "build", "peers", "venv"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.engines = options.engines.split(",")
    lengths = [int(n) for n in options.n_prompt.split(",")]
    unknown = [engine for engine in options.engines if engine not in PACKAGES or engine == "torch-sdpa"]
    if unknown or (options.model is None and not options.attention) or min(lengths) < 1 or options.threads < 1 or options.repetitions < 1:
        parser.error(f"unknown engine '{unknown[0]}'" if unknown else "give -m FILE, and numbers of at least 1")
    try:
        return run_attention(options, lengths) if options.attention else run_models(options, lengths)
    except subprocess.CalledProcessError as failed:
        say(f"{' '.join(map(str, failed.cmd))}: exit code {failed.returncode}: {failed.stderr}")
        return 1


sys.exit(main())
