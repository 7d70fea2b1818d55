#!/usr/bin/env python3
"""methods.py - every method of prefill on the same prompts: what it visits, what it saves, what it loses.

    eval/methods.py -m model.gguf --triangle 9-11,13,15,17-19,21-29 --lengths 2000,4000,8000 -o methods.json --svg methods.svg

Runs `tmx eval` once for each length and method: dense, the method at three settings alone, and the same three in the layers
that --triangle leaves, beside triangle in those.  Times are ratios within such a run; --parallel runs share the machine.  Prints a
Markdown table for each length; -o keeps tmx's rows, from which --rows prints and draws again; --svg draws loss against time, one panel a length,
and the plans that nothing beats.  What comes behind -- goes to tmx eval:

    eval/methods.py ... -- --lora eval/longctx/smollm2-135m-32k.lora.gguf --rope-freq-base 1000000 --chunk 8192"""
import argparse
import concurrent.futures
import json
import math
import os
import subprocess
import sys

METHODS = {
    "xattention": ["xattention(stride=8,threshold=0.8)", "xattention(stride=8,threshold=0.9)", "xattention(stride=8,threshold=0.95)"],
    "flexprefill": ["flexprefill(gamma=0.9)", "flexprefill(gamma=0.95)", "flexprefill(gamma=0.99)"],
    "minference": ["minference(vertical=60,slash=200)", "minference(vertical=120,slash=400)", "minference(vertical=300,slash=1000)"],
    "s2o": ["s2o(tau=0.02)", "s2o(tau=0.005)", "s2o(tau=0.001)"],
}
LONG = 8000                                # tokens, beyond which MInference has these
METHODS_LONG = {"minference": ["minference(vertical=300,slash=1000)", "minference(vertical=1000,slash=3000)", "minference(vertical=1000,slash=6096)"]}
COLORS = {"triangle": "#c0392b", "xattention": "#2471a3", "flexprefill": "#229954", "minference": "#b9770e", "s2o": "#7d3c98"}


def plans_of(method, triangle, length):
    """[(plan, its name in tables)], dense first."""
    settings = METHODS_LONG.get(method, METHODS[method]) if length > LONG else METHODS[method]
    named = [("dense", "dense"), (f"triangle:{triangle}", "triangle")]
    for setting in settings:
        named += [(setting, setting), (f"mix:triangle={triangle},rest={setting}", f"triangle + {setting}")]
    return named


def evaluate(options, length, method):
    named = plans_of(method, options.triangle, length)
    command = [options.tmx, "eval", "-q", "-m", options.model, "--device", options.device, "-t", str(options.threads), "--tasks", options.tasks,
               "--lengths", str(length), "--samples", str(options.samples), "-o", "json", *options.more]
    for plan, _ in named:
        command += ["--plan", plan]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"{method}, {length} tokens: {done.stderr.strip()}", file=sys.stderr)
        return []
    rows = json.loads(done.stdout)["rows"]
    means = [row for row in rows if row["kind"] == "mean" and row["length"] == length] or rows
    found = []
    for row, (_, name) in zip(means, named):
        found.append({**row, "plan": name, "method": "triangle" if name == "triangle" else method, "length": length})
    print(f"{method}, {length} tokens: done", file=sys.stderr, flush=True)
    return found


def cell(row, dense):
    """Share of pairs; times of attention and of prefill, dense = 1; KL of the first token and of the answer's; score beside dense's."""
    low, high = row["interval"]
    return (f"{row['density_pct']:.0f} %; {row['attention_ms'] / dense['attention_ms']:.2f}, {1 / row['gain']:.2f}; {abs(row['kl_first']):.2g}, "
            f"{abs(row['kl_forced']):.2g}; {row['difference']:+.0f} ({low:+.0f} .. {high:+.0f})")


def print_tables(runs):
    for length in sorted({rows[0]["length"] for rows in runs}):
        of_length = [rows for rows in runs if rows[0]["length"] == length]
        dense, triangle = of_length[0][:2]
        print(f"| {length} tokens, dense {dense['score']:.0f} | alone | beside triangle |")
        print("|:--|:--|:--|")
        print(f"| none | | {cell(triangle, dense)} |")
        for rows in of_length:
            for alone, beside in zip(rows[2::2], rows[3::2]):
                print(f"| `{alone['plan']}` | {cell(alone, rows[0])} | {cell(beside, rows[0])} |")
        print()


def draw(runs, path):
    lengths = sorted({rows[0]["length"] for rows in runs})
    width, height, left, top = 300, 260, 60, 40
    low, high = -5.0, 1.0                  # log10 of the KL
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + max(len(lengths) * (width + 40), 5 * 120)}" height="{height + 120}" '
           'font-family="sans-serif" font-size="11">', '<rect width="100%" height="100%" fill="white"/>']
    for panel, length in enumerate(lengths):
        x0 = left + panel * (width + 40)
        points = []
        for rows in runs:
            if rows[0]["length"] != length:
                continue
            for row in rows[1:]:
                if row["method"] != "triangle" or not any(p[2]["method"] == "triangle" for p in points):
                    points.append((1 / row["gain"], max(abs(row["kl_first"]), 10 ** low), row))
        least = min([0.4] + [p[0] for p in points])
        most = max([1.05] + [p[0] for p in points])
        at = lambda time, kl: (x0 + (time - least) / (most - least) * width,
                               top + (high - math.log10(kl)) / (high - low) * height)
        out.append(f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#888"/>')
        out.append(f'<text x="{x0 + width / 2}" y="{top - 12}" text-anchor="middle">{length} tokens</text>')
        out.append(f'<text x="{x0 + width / 2}" y="{top + height + 32}" text-anchor="middle">prefill time, dense = 1</text>')
        for exponent in range(int(low), int(high) + 1):
            y = at(least, 10.0 ** exponent)[1]
            out.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + width}" y2="{y:.1f}" stroke="#ddd"/>')
            if panel == 0:
                out.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">1e{exponent}</text>')
        for tick in range(math.ceil(least * 5), math.floor(most * 5) + 1):
            x = at(tick / 5, 1)[0]
            out.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + height}" stroke="#eee"/>')
            out.append(f'<text x="{x:.1f}" y="{top + height + 15}" text-anchor="middle">{tick / 5:.1f}</text>')
        front, best = [], math.inf
        for time, kl, row in sorted(points, key=lambda p: (p[0], p[1])):
            if kl < best:
                best = kl
                front.append(at(time, kl))
        out.append('<polyline fill="none" stroke="#555" stroke-dasharray="4 3" points="'
                   + " ".join(f"{x:.1f},{y:.1f}" for x, y in front) + '"/>')
        for time, kl, row in points:
            x, y = at(time, kl)
            color, is_mixed = COLORS[row["method"]], row["plan"].startswith("triangle +")
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" stroke="{color}" stroke-width="2" '
                       f'fill="{color if is_mixed or row["method"] == "triangle" else "white"}"><title>{row["plan"]}</title></circle>')
    out.append(f'<text x="14" y="{top + height / 2}" transform="rotate(-90 14 {top + height / 2})" text-anchor="middle">'
               'KL of the first token</text>')
    for i, (method, color) in enumerate(COLORS.items()):
        x = left + i * 120
        out.append(f'<circle cx="{x}" cy="{top + height + 58}" r="5" fill="{color}"/>'
                   f'<text x="{x + 10}" y="{top + height + 62}">{method}</text>')
    out.append(f'<text x="{left}" y="{top + height + 80}">filled: beside triangle in its layers; hollow: alone in all layers; '
               'dashed: what no other plan beats in both</text></svg>')
    with open(path, "w") as f:
        f.write("\n".join(out) + "\n")


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", help="GGUF file")
    parser.add_argument("--triangle", help="layers of triangle, as in a plan")
    parser.add_argument("--rows", action="append", default=[], help="run nothing: rows that -o has written; may be repeated")
    parser.add_argument("--lengths", default="2000,4000,8000")
    parser.add_argument("--tasks", default="kv_uuid,niah_multikey_1")
    parser.add_argument("--samples", type=int, default=10, help="of each task")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count(), help="of one run")
    parser.add_argument("--device", default="cpu", help="cpu, cuda: a GPU runs no s2o")
    parser.add_argument("-o", "--output", help="JSON file for the rows")
    parser.add_argument("--svg", help="picture")
    parser.add_argument("--tmx", default=os.path.join(root, "build", "release", "tmx"))
    parser.add_argument("more", nargs="*", help="options of tmx eval, behind --")
    options = parser.parse_args()
    if not options.rows and (options.model is None or options.triangle is None):
        parser.error("give -m FILE and --triangle LAYERS, or --rows FILE")
    methods = options.methods.split(",")
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        parser.error(f"unknown method '{unknown[0]}'")
    lengths = [int(n) for n in options.lengths.split(",")]
    work = [] if options.rows else [(length, method) for length in sorted(lengths, reverse=True) for method in methods]
    runs = []
    for path in options.rows:
        with open(path) as f:
            runs += json.load(f)
    with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
        for done in concurrent.futures.as_completed([pool.submit(evaluate, options, *job) for job in work]):
            if done.result():
                runs.append(done.result())
            if options.output:
                with open(options.output, "w") as f:
                    json.dump(runs, f, indent=1)
    n_missing = len(work) - len(runs)
    runs.sort(key=lambda rows: (rows[0]["length"], list(METHODS).index(rows[-1]["method"])))
    print_tables(runs)
    if options.svg and runs:
        draw(runs, options.svg)
    return 0 if n_missing <= 0 else 1


sys.exit(main())
