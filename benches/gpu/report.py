"""The page RESULTS.md, made from the figures of all networks."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benches.compute.measure import WRONG
from benches.gpu.routes import COMPILED, COMPILED_GRAPHS, CPU, CUDA, EAGER, FOLDED, GRAPHS, ROUTES, TENSORRT, UNFOLDED
from benches.machine import machine
from benches.ratios import geometric_mean, with_spread

from normfold.serving.load.rounds import Ratio

Results = dict[str, Any]
PACKAGES = (
    "normfold",
    "torch",
    "triton",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "nvidia-cudnn-cu13",
    "timm",
    "numpy",
)
#: (slower, faster): a column says how many times as long as the second the first takes.
PAIRS = (
    (CPU, CUDA),
    (EAGER, CUDA),
    (COMPILED, CUDA),
    (UNFOLDED, CUDA),
    (FOLDED, CUDA),
    (CUDA, GRAPHS),
    (EAGER, GRAPHS),
    (COMPILED, GRAPHS),
    (COMPILED_GRAPHS, GRAPHS),
    (TENSORRT, GRAPHS),
)

HEAD = """# On a GPU: the exported graphs on CUDA beside PyTorch

Written by `python -m benches.gpu --write`; the figures are in `results.json`. {gpus}
{machine} {versions}.

Each run takes its input from ordinary host memory and leaves its answer there; times are wall time. All routes of a
network at one batch run in one process, in turns, {rounds} rounds at most, and each round begins with another route. A
figure is the median of the rounds; a ratio is taken within each round, and ± is half the distance between its
quartiles. Before a route is timed, its answer is compared with PyTorch in float64: beyond {wrong:g} of the largest
output it is wrong and not timed. TF32 is off everywhere.

*CPU* and *CUDA* are sessions of the server with the form that the export publishes (the fastest on the CPU); *CUDA,
folded* and *CUDA, unfolded* are other forms of the same network. *CUDA graphs* and *TensorRT* have fixed shapes.
*eager* and *compile* are PyTorch on the GPU; *compile* has frozen weights, for one shape, and with *CUDA graphs* the
mode `reduce-overhead`.

## Milliseconds

{times}

## How many times as long as the second the first takes

{ratios}

## Not timed

{untimed}
"""


def report(results: Results, gpus: list[str], rounds: int) -> str:
    """Return RESULTS.md."""
    named = "; ".join(f"{gpu.partition(', ')[0]}, driver {gpu.partition(', ')[2]}" for gpu in gpus)
    return HEAD.format(
        gpus=f"GPU: {named}." if gpus else "No GPU: the CPU alone (`--cpu-only`).",
        machine=machine(),
        versions=versions(),
        rounds=rounds,
        wrong=WRONG,
        times=times(results),
        ratios=ratios(results),
        untimed=untimed(results),
    )


def versions() -> str:
    """Return the version of each package that is installed, and of CUDA as torch was built with it."""
    import torch

    found = []
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join([*found, *([f"CUDA {torch.version.cuda}"] if torch.version.cuda else [])])


def cells(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "network, batch" and the routes of each cell."""
    for name, figures in results.items():
        for batch, routes in figures.get("cells", {}).items():
            yield f"{name}, {batch}", routes


def used(results: Results) -> list[str]:
    """Return the routes that any cell knows, in the order of the table."""
    known = {route for _, routes in cells(results) for route in routes}
    return [route for route in ROUTES if route in known]


def times(results: Results) -> str:
    """Return a row for each network and batch, with the median of each route, or one word why there is none."""
    columns = used(results)
    lines = ["| network, batch | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    lines += [
        f"| {cell} | " + " | ".join(said(routes.get(name, {})) for name in columns) + " |"
        for cell, routes in cells(results)
    ]
    return "\n".join(lines)


def said(known: dict[str, Any]) -> str:
    """Return a route's median time in ms, or why it has none."""
    if "ms" in known:
        return f"{statistics.median(known['ms']):.3g}"
    return "wrong" if "wrong" in known else "not timed" if "failed" in known else "–"


def ratios(results: Results) -> str:
    """Return a row for each network and batch, with the ratio of each pair, and their geometric means."""
    columns: list[tuple[str, str]] = []
    rows: dict[str, dict[tuple[str, str], Ratio]] = {}
    for cell, routes in cells(results):
        timed = {name: known["ms"] for name, known in routes.items() if "ms" in known}
        rows[cell] = {(a, b): Ratio.of(timed[a], timed[b]) for a, b in PAIRS if a in timed and b in timed}
    columns = [pair for pair in PAIRS if any(pair in found for found in rows.values())]
    if not columns:
        return "No two routes of a pair were timed."
    lines = [
        "| network, batch | " + " | ".join(f"{a} / {b}" for a, b in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for cell, found in rows.items():
        shown = (with_spread(found[pair]) if pair in found else "" for pair in columns)
        lines.append(f"| {cell} | " + " | ".join(shown) + " |")
    means = (geometric_mean(found[pair].median for found in rows.values() if pair in found) for pair in columns)
    return "\n".join([*lines, "| geometric mean | " + " | ".join(f"{mean:.2f}" for mean in means) + " |"])


def untimed(results: Results) -> str:
    """Return a line for each route that was wrong or could not be had: where, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell, routes in cells(results):
        for route, known in routes.items():
            why = f"wrong, by {known['error']:.0e}" if "wrong" in known else known.get("failed")
            if why:
                found.setdefault((route, why), []).append(cell)
    lines = [f"- {name}: {figures['failed']}" for name, figures in results.items() if "failed" in figures]
    lines += [f"- {route} ({'; '.join(where)}): {why}" for (route, why), where in found.items()]
    return "\n".join(lines) or "Every route was right and was timed."
