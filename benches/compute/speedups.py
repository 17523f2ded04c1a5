"""How many times faster the published form is than another route, read from a network's figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benches.compute.measure import ALL, ALONE, HEADLINE, PEAK, SHORT, Cell, peak_per_second
from benches.ratios import geometric_mean

from normfold.serving.load.rounds import Ratio

Figures = Mapping[str, Any]
Results = Mapping[str, Figures]
#: Convolutions take at least this part of the kernels' time in a network that is bound by them.
BOUND = 0.75
CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")


def entry(figures: Figures, route: str, cell: Cell = HEADLINE) -> dict[str, Any]:
    """Return what is known of a route at a cell; nothing where it was not timed there."""
    found: dict[str, Any] = figures["cells"].get(str(cell), {}).get(route, {})
    return found


def speedup(figures: Figures, route: str, cell: Cell = HEADLINE, over: str = "") -> Ratio | None:
    """Return ``route``'s time over the published form's, or over ``over``'s; None where either was not timed."""
    base, mine = entry(figures, route, cell), entry(figures, over or figures["published"], cell)
    return Ratio.of(base["ms"], mine["ms"]) if "ms" in base and "ms" in mine else None


def speedups(results: Results, route: str, cell: Cell = HEADLINE, over: str = "") -> dict[str, float]:
    """Return the median speedup of each network that has one."""
    found = {name: speedup(figures, route, cell, over) for name, figures in results.items()}
    return {name: ratio.median for name, ratio in found.items() if ratio is not None}


def to_fastest(results: Results) -> dict[str, float]:
    """Return how many times faster than the published form the fastest form of each network is: 1 where it is that."""
    found = {}
    for name, figures in results.items():
        times = {form: statistics.median(t) for form in figures["forms"] if (t := entry(figures, form).get("ms"))}
        if figures["published"] in times:
            found[name] = times[figures["published"]] / min(times.values())
    return found


def to_fewer_threads(results: Results) -> dict[str, float]:
    """Return how many times faster than on all threads the published form is on one or all: 1 where all are faster."""
    cell = Cell(1, SHORT, ALL)
    found = {name: speedup(figures, figures["published"], cell, over=ALONE) for name, figures in results.items()}
    return {name: max(1.0, ratio.median) for name, ratio in found.items() if ratio is not None}


def by_family(results: Results, route: str) -> dict[str, float]:
    """Return the geometric mean of the speedups of each family's networks."""
    families: dict[str, list[float]] = {}
    for name, ratio in speedups(results, route).items():
        families.setdefault(results[name]["family"], []).append(ratio)
    return {family: geometric_mean(ratios) for family, ratios in families.items()}


def peak(figures: Figures) -> float | None:
    """Return the most multiply-adds a second that the matrix product reached beside a network."""
    times = entry(figures, PEAK).get("ms")
    return peak_per_second(times) if times else None


def share_of_peak(figures: Figures) -> float | None:
    """Return the published form's multiply-adds a second over the peak measured in the same rounds, at batch 1."""
    times, best = entry(figures, figures["published"]).get("ms"), peak(figures)
    if not times or not best:
        return None
    per_second: float = figures["multiply_adds"]["all"] / statistics.median(times) * 1e3
    return per_second / best


def convolution_part(figures: Figures) -> float:
    """Return the part of the kernels' time that convolutions take."""
    return sum(float(part) for kind, part in figures["where"].items() if kind in CONVOLUTIONS)


def bound_by_convolutions(results: Results) -> dict[str, float]:
    """Return the share of the peak of the networks that are bound by convolutions."""
    bound = {name: share_of_peak(f) for name, f in results.items() if convolution_part(f) >= BOUND}
    return {name: share for name, share in bound.items() if share is not None}
