"""How many times faster the published variant is than another route, from the figures of a network."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benches.compute.measure import ALL, ALONE, HEADLINE, PEAK, SHORT, Cell, peak_per_second
from benches.ratios import geometric_mean

from normfold.serving.load.rounds import Ratio

Figures = Mapping[str, Any]
Results = Mapping[str, Figures]
#: A network is bound by convolutions if they take at least this part of the time in kernels.
BOUND = 0.75
CONVOLUTIONS = ("Conv", "FusedConv", "ConvTranspose")


def entry(figures: Figures, route: str, cell: Cell = HEADLINE) -> dict[str, Any]:
    """Return the figures of a route at a cell; an empty dict if it has none there."""
    found: dict[str, Any] = figures["cells"].get(str(cell), {}).get(route, {})
    return found


def published(figures: Figures, cell: Cell) -> str:
    """Return the variant that the export publishes for servers with the threads of the cell."""
    on_all: str = figures.get("published on all threads", figures["published"])
    return on_all if cell.threads == ALL else figures["published"]


def speedup(figures: Figures, route: str, cell: Cell = HEADLINE, over: str = "") -> Ratio | None:
    """Return the time of ``route`` over that of ``over``, or of the published variant; None if one was not timed."""
    base, mine = entry(figures, route, cell), entry(figures, over or published(figures, cell), cell)
    return Ratio.of(base["ms"], mine["ms"]) if "ms" in base and "ms" in mine else None


def speedups(results: Results, route: str, cell: Cell = HEADLINE, over: str = "") -> dict[str, float]:
    """Return the median speedup of each network that has one."""
    found = {name: speedup(figures, route, cell, over) for name, figures in results.items()}
    return {name: ratio.median for name, ratio in found.items() if ratio is not None}


def to_fastest(results: Results) -> dict[str, float]:
    """Return the published variant's time over the fastest variant's, for each network; 1 if they are the same."""
    found = {}
    for name, figures in results.items():
        times = {form: statistics.median(t) for form in figures["forms"] if (t := entry(figures, form).get("ms"))}
        if figures["published"] in times:
            found[name] = times[figures["published"]] / min(times.values())
    return found


def to_fewer_threads(results: Results) -> dict[str, float]:
    """Return the published variant's time on all threads over its time on one; 1 where all threads are faster."""
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
    """Return the most multiply-adds a second of the matrix product that was timed beside a network."""
    times = entry(figures, PEAK).get("ms")
    return peak_per_second(times) if times else None


def share_of_peak(figures: Figures) -> float | None:
    """Return the published variant's multiply-adds a second over the peak of the same rounds, at batch 1."""
    times, best = entry(figures, figures["published"]).get("ms"), peak(figures)
    if not times or not best:
        return None
    per_second: float = figures["multiply_adds"]["all"] / statistics.median(times) * 1e3
    return per_second / best


def convolution_part(figures: Figures) -> float:
    """Return the part of the time in kernels that convolutions take."""
    return sum(float(part) for kind, part in figures["where"].items() if kind in CONVOLUTIONS)


def bound_by_convolutions(results: Results) -> dict[str, float]:
    """Return the share of the peak for each network that is bound by convolutions."""
    bound = {name: share_of_peak(f) for name, f in results.items() if convolution_part(f) >= BOUND}
    return {name: share for name, share in bound.items() if share is not None}
