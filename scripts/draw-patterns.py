#!/usr/bin/env python3
"""Draws docs/patterns.svg: what the rows of a prompt see in a dense, a streaming and a triangle layer.

Rows are queries, columns are keys; the sizes are scaled down (48 tokens, 2 sinks, window 8, 4 last rows)."""
import pathlib

N, SINK, WINDOW, LAST, CELL, GAP, TOP = 48, 2, 8, 4, 6, 36, 26
COLOURS = {"sink": "#c2571a", "window": "#2a6f97", "last": "#2d8a4e", "middle": "#8a8f98", "dropped": "#eceef1"}


def part(i, j):
    if j < SINK:
        return "sink"
    if i - j < WINDOW:
        return "window"
    return "last" if i >= N - LAST else "middle"


def shown(kind, i, j):
    where = part(i, j)
    if kind == "dense":
        return "window" if where != "sink" else "sink"
    if where == "middle" or (kind == "streaming" and where == "last"):
        return "dropped"
    return where


def panel(kind, x0):
    out = [f'<text x="{x0}" y="16" font-size="13">{kind}</text>']
    for i in range(N):
        j = 0
        while j <= i:                       # one rectangle per run of equal colour
            colour, begin = shown(kind, i, j), j
            while j <= i and shown(kind, i, j) == colour:
                j += 1
            out.append(f'<rect x="{x0 + begin * CELL}" y="{TOP + i * CELL}" width="{(j - begin) * CELL}" '
                       f'height="{CELL}" fill="{COLOURS[colour]}"/>')
    return out


side = N * CELL
width, height = 3 * side + 2 * GAP, TOP + side + 30
svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 0 {width + 16} {height}" font-family="sans-serif" fill="#222">',
       f'<rect x="-8" width="{width + 16}" height="{height}" fill="#fff"/>']
for n, kind in enumerate(("dense", "streaming", "triangle")):
    svg += panel(kind, n * (side + GAP))
legend = [("sink tokens", "sink"), ("sliding window", "window"), ("last rows", "last"), ("middle Q-K: not computed", "dropped")]
for n, (text, colour) in enumerate(legend):
    x, y = n * 200, TOP + side + 12
    svg.append(f'<rect x="{x}" y="{y}" width="11" height="11" fill="{COLOURS[colour]}"/><text x="{x + 17}" y="{y + 10}" font-size="12">{text}</text>')
svg.append("</svg>")
pathlib.Path(__file__).resolve().parents[1].joinpath("docs/patterns.svg").write_text("\n".join(svg) + "\n")
