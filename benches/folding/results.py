"""The figures of the folding benchmark as tables."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from typing import Any

from benches.ratios import with_spread

from normfold.serving.load.rounds import Ratio

#: The order of the columns.
ORDER = (
    "unfolded",
    "torch export",
    "onnxscript",
    "onnxsim",
    "onnxslim",
    "onnxoptimizer",
    "onnxruntime EXTENDED",
    "onnxruntime ALL",
    "OpenVINO",
    "normfold",
)
#: Run times and errors are compared with those of this route.
BASE = "unfolded"
#: An error of up to this many times the unfolded graph's counts as equal.
KEPT = 2.0
#: A smaller error is a few units in the last place, and always counts as equal.
FLOOR = 4.8e-7

Results = dict[str, dict[str, Any]]


def ratio(figures: dict[str, Any], route: str) -> Ratio | None:
    """Return the time of a route over that of the unfolded graph, round by round; None if one was not timed."""
    if "ms" not in figures.get(route, {}) or "ms" not in figures.get(BASE, {}):
        return None
    return Ratio.of(figures[route]["ms"], figures[BASE]["ms"])


def exact(figures: dict[str, Any], route: str) -> bool:
    """Whether a route's error is at most twice the unfolded graph's, or so small that it can be rounding."""
    return bool(figures[route]["error"] <= KEPT * figures[BASE]["error"] + FLOOR)


def table(results: Results, *, heading: bool = True) -> str:
    """Return a row for each network, a column for each route: what is left, and the ratio of the run times."""
    lines = []
    if heading:
        lines = ["| network | " + " | ".join(ORDER) + " |", "|---|" + "---|" * len(ORDER)]
    for name, figures in results.items():
        cells = []
        for route in ORDER:
            entry = figures.get(route, {"failed": "not run"})
            if "failed" in entry:
                cells.append("failed")
                continue
            time = ratio(figures, route)
            wrong = "" if exact(figures, route) else f" error {entry['error']:.0e}"
            cells.append(f"{entry['left']}" + (f"; {with_spread(time)}" if time else "") + wrong)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def totals(results: Results) -> str:
    """Return a row for each route: what is left of all networks, how many failed or lost digits, the run times."""
    lines = [
        "| route | BatchNorms and affines left | of networks | failed | error above twice the unfolded | nodes "
        "| run time, median of the ratios | quartiles |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for route in ORDER:
        good = [figures for figures in results.values() if "failed" not in figures.get(route, {"failed": ""})]
        if not good:
            continue
        left = sum(figures[route]["left"] for figures in good)
        nodes = sum(figures[route]["nodes"] for figures in good)
        inexact = sum(not exact(figures, route) for figures in good)
        times = [time.median for figures in good if (time := ratio(figures, route)) is not None]
        middle = f"{statistics.median(times):.2f}" if times else ""
        quartiles = " to ".join(f"{q:.2f}" for q in statistics.quantiles(times, n=4)[::2]) if len(times) > 1 else ""
        lines.append(
            f"| {route} | {left} | {len(good)} | {len(results) - len(good)} | {inexact} | {nodes} | {middle} "
            f"| {quartiles} |"
        )
    return "\n".join(lines)


def page(results: Results) -> str:
    """Return RESULTS.md."""
    from benches.zoo.networks import NETWORKS

    packages = ("torch", "onnx", "onnxruntime", "onnxscript", "onnxsim", "onnxslim", "onnxoptimizer", "openvino")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    norms = sum(figures[BASE].get("batchnorms", 0) for figures in results.values())
    own = sum(figures[BASE].get("left", 0) for figures in results.values()) - norms
    sources = {network.name: network.package for network in NETWORKS}
    packages_used = len({sources.get(name, name) for name in results})
    return f"""# Folding: the zoo by every route

Written by `python -m benches.folding.bench_folding ZOO --write`; the figures are in `results.json`.

{len(results)} public networks of {packages_used} packages, {norms} BatchNorms. Their statistics and weights are drawn,
with 15 % of gamma negative and 3 % zero, except for networks whose package has trained weights. Every route starts from
torch's default export. {versions}; Python {platform.python_version()}, {platform.machine()}.

*Left* counts BatchNormalization nodes and all other forms of a BatchNorm: Mul, Add, Sub and Div by one constant for
each channel; 1x1 convolutions that only scale channels; Max and Min by channel, except one for each ReLU that they
replace. Such arithmetic is also counted if it belongs to the network itself, as the weights of a layer norm or a
positional constant do: {own} of all that is counted in the unfolded graphs. *Error* is the largest difference from the
float64 PyTorch model, over its largest output. *Run time* is CPU time of one thread, in onnxruntime with all its
optimisations (for OpenVINO in its own runtime), as a ratio to the unfolded file in the same round: the median of the
rounds, ± half the distance between their quartiles.

## All

{totals(results)}

## Each

What is left; run time.

{table(results)}
"""
