"""The page RESULTS.md, made from the figures of all networks."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benches.compute.aims import aims
from benches.compute.forms import FOLDED, UNFOLDED
from benches.compute.measure import ALL, BATCHES, LONG, LONGER, ONE, PEAK_SIZE, REST_SECONDS, SHORT, WRONG, Cell, Effort
from benches.compute.routes import COMPILE_SECONDS, COMPILED, EXPORTED, FIXED, PEERS
from benches.compute.speedups import (
    BOUND,
    Figures,
    Results,
    convolution_part,
    entry,
    peak,
    share_of_peak,
    speedup,
    speedups,
    to_fastest,
    to_fewer_threads,
)
from benches.machine import machine
from benches.processors import results_file
from benches.ratios import geometric_mean, with_spread

PACKAGES = ("normfold", "torch", "onnx", "onnxruntime", "onnxsim", "onnxslim", "openvino", "numpy")
CELLS = [
    Cell(batch, length, threads)
    for threads in (ONE, ALL)
    for length, batches in ((SHORT, BATCHES), (LONG, (1,)))
    for batch in batches
]


def report(results: Results, others: Mapping[str, Results]) -> str:
    """Return RESULTS.md; ``others`` are the figures on other kinds of processors, by their names."""
    return HEAD.format(
        machine=machine(),
        how=how(results),
        versions=versions(),
        count=len(results),
        families=len({figures["family"] for figures in results.values()}),
        file=results_file(Path()),
        aims=aims(results, others),
        peak=said_peak(results),
        steps=steps(results),
        everywhere=everywhere(results),
        each=table(results),
        where=where(results),
        untimed=untimed(results),
        LONGER=LONGER,
        COMPILE_SECONDS=COMPILE_SECONDS,
        WRONG=WRONG,
        REST_MS=1e3 * REST_SECONDS,
        PEAK_SIZE=PEAK_SIZE,
        BOUND=BOUND,
        COMPILED=COMPILED,
        FIXED=FIXED,
    )


HEAD = """# Computing: the exported graphs beside other runtimes

Written by `python -m benches.compute`; the figures are in `{file}`. {how} {machine} {versions}.

## Aims and what was measured

Batch 1, one thread, float32, the length that the network is exported with; geometric means over {count} networks of
{families} families. The last column is the same on an older kind of processor, which was measured before.

{aims}

## What was measured

All routes of a network run in one process, in turns, round after round. Each round begins with another route; the first
runs are not counted. A figure is the median of the rounds. A ratio is taken within each round; ± is half the distance
between its quartiles. On one thread the figures are CPU time of the process. On all threads they are wall time, and
{REST_MS:.0f} ms pass before each turn: in these the threads of the turn before stop waiting in a loop. Before a route
is timed, its answer is compared with PyTorch in float64 (from batch 8 on in float32). If the difference is above
{WRONG:g} of the largest output, the route is wrong and is not timed.

*{COMPILED}* is torch.compile with freezing, compiled for one shape, for the first network of each family; it is given
up after {COMPILE_SECONDS} s. The files of all other tools are made from torch's default export, in which the batch is
dynamic, and the length where the network allows it. *{FIXED}* is OpenVINO compiled for one shape; *OpenVINO* takes any
shape, as onnxruntime does. Both have the latency hint, one stream and float32. onnxruntime has its default settings,
except for the threads. Our graph is captured as `normfold export` does it: *folded*, then further forms, of which
the fastest is published ([variants.py](../../export/forms/variants.py)). Weights and statistics are drawn, except for
the reference networks (surnames, gunpoint) and for networks whose package has trained weights. A long input is {LONGER}
times as long.

The peak is the best run of multiplying two {PEAK_SIZE} × {PEAK_SIZE} float32 matrices in NumPy's BLAS on one thread,
timed in the same rounds: {peak}.

## What each step gives

Batch 1, one thread: how many times faster the second of the two is.

{steps}

## At every size

How many times faster the published form is than each route: geometric means, in parentheses the least. The rows of
all threads have the form that `normfold export --threads N` publishes, N being the number of CPUs.

{everywhere}

## Each network

Batch 1, one thread: the time of the published form, and how many times faster it is than each route.

{each}

## Where the time goes

The published form at batch 1 on one thread: the multiply-adds of the network as it is written, the part of them in
depthwise convolutions, the share of the peak, and each operator's part of the time in kernels by onnxruntime's profile.
A network is bound by convolutions if they take {BOUND:.0%} or more of this time.

{where}

## Not timed

{untimed}
"""


def how(results: Results) -> str:
    """Return a sentence: how long was measured, and which routes were left out."""
    effort = Effort(**next(iter(results.values()))["effort"])
    text = f"At most {effort.rounds} rounds of {effort.slice_ms:g} ms a route"
    if effort.quick:
        text += ", batch 1 and one thread only (`--quick`)"
    else:
        text += f" at batch 1 on one thread, {effort.other_rounds} elsewhere, {effort.cell_seconds:g} s a size"
    return text + (f"; not timed: {', '.join(effort.skip)} (`--skip`)." if effort.skip else ".")


def versions() -> str:
    """Return the version of each package that is installed."""
    found = []
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def said_peak(results: Results) -> str:
    """Return the median of the peaks that were measured, one beside each network."""
    peaks = [found for figures in results.values() if (found := peak(figures)) is not None]
    if not peaks:
        return "not measured"
    return f"{statistics.median(peaks) / 1e9:.1f} G multiply-adds a second, the median of {len(peaks)} networks"


def steps(results: Results) -> str:
    """Return a row for each step: the default export, the folded graph, each form, what is published."""
    forms = sorted({form for figures in results.values() for form in figures["forms"]} - {UNFOLDED, FOLDED})
    rows = {
        "the captured graph, to folded": speedups(results, UNFOLDED, over=FOLDED),
        "torch's default export, to folded (fold)": speedups(results, EXPORTED, over=FOLDED),
        **{f"folded, to {form} (layout)": speedups(results, FOLDED, over=form) for form in forms},
        "folded, to the published form": speedups(results, FOLDED),
        "the published form, to the one that is fastest here (choice)": to_fastest(results),
        "torch's default export, to the published form": speedups(results, EXPORTED),
        "all threads, to the faster of one and all, by the clock (tuning)": to_fewer_threads(results),
    }
    lines = ["| step | geometric mean | least | most | networks |", "|---|---|---|---|---|"]
    for name, found in rows.items():
        if found:
            lines.append(
                f"| {name} | {geometric_mean(found.values()):.2f} × | {_extreme(found, min)} | {_extreme(found, max)} "
                f"| {len(found)} |"
            )
    published = [figures["published"] for figures in results.values()]
    chosen = ", ".join(f"{form} {published.count(form)}" for form in sorted(set(published)))
    return "\n".join(lines) + f"\n\nPublished: {chosen}."


def _extreme(found: dict[str, float], which: Callable[..., str]) -> str:
    name = which(found, key=found.__getitem__)
    return f"{found[name]:.2f} × {name}"


def everywhere(results: Results) -> str:
    """Return a row for each batch, length and number of threads."""
    lines = ["| size | networks | " + " | ".join(PEERS) + " |", "|---|---|" + "---|" * len(PEERS)]
    for cell in CELLS:
        found = {route: speedups(results, route, cell) for route in PEERS}
        if any(found.values()):
            cells = [
                f"{geometric_mean(ratios.values()):.2f} ({min(ratios.values()):.2f})" if ratios else ""
                for ratios in found.values()
            ]
            lines.append(f"| {cell} | {max(map(len, found.values()))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(results: Results) -> str:
    """Return a row for each network."""
    heading = "| network | family | published | ms | " + " | ".join(PEERS) + " |"
    return "\n".join([heading, "|---|---|---|---|" + "---|" * len(PEERS), *(row(n, f) for n, f in results.items())])


def row(name: str, figures: Figures) -> str:
    """Return one network's row of the table."""
    times = entry(figures, figures["published"]).get("ms")
    cells = [figures["family"], figures["published"], f"{statistics.median(times):.3g}" if times else "not timed"]
    for route in PEERS:
        ratio = speedup(figures, route)
        found = entry(figures, route)
        cells.append(
            with_spread(ratio) if ratio else "wrong" if "wrong" in found else "failed" if "failed" in found else ""
        )
    return f"| {name} | " + " | ".join(cells) + " |"


def where(results: Results) -> str:
    """Return a row for each network: multiply-adds, share of the peak, the operators that take most of the time."""
    lines = ["| network | M multiply-adds | depthwise | share of the peak | bound by convolutions | time |"]
    lines.append("|---|---|---|---|---|---|")
    for name, figures in results.items():
        adds, share = figures["multiply_adds"], share_of_peak(figures)
        bound = "yes" if convolution_part(figures) >= BOUND else ""
        parts = ", ".join(f"{kind} {part:.0%}" for kind, part in figures["where"].items() if part >= 0.03)
        lines.append(
            f"| {name} | {adds['all'] / 1e6:.3g} | {adds['depthwise'] / max(1, adds['all']):.0%} "
            f"| {'' if share is None else f'{share:.0%}'} | {bound} | {parts} |"
        )
    return "\n".join(lines)


def untimed(results: Results) -> str:
    """Return a line for each route that was wrong or failed: at which sizes, and why."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, figures in results.items():
        for cell, routes in figures["cells"].items():
            for route, known in routes.items():
                why = f"wrong, by {known['error']:.0e}" if "wrong" in known else known.get("failed")
                if why:
                    found.setdefault((name, route, why), []).append(cell)
    lines = [
        f"- {name} ({'; '.join(figures['no time'])}): would take longer than the time that a network is given"
        for name, figures in results.items()
        if figures.get("no time")
    ]
    if not found and not lines:
        return "Every route of every network was right and was timed."
    for (name, route, why), cells in found.items():
        sizes = "everywhere" if len(cells) == len(results[name]["cells"]) else "; ".join(cells)
        lines.append(f"- {name}, {route} ({sizes}): {why}")
    return "\n".join(lines)
