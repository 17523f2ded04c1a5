"""Time two graphs against each other: interleaved, so that a busy moment meets both; medians, one thread."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray

from normfold.export.runtime import Runtime

__all__ = ["Timing", "measure"]


@dataclass(frozen=True)
class Timing:
    """Median run times in onnxruntime on one CPU thread, with the shapes they were taken at."""

    before_ms: float
    after_ms: float
    rounds: int
    #: "x[1,77,17]"
    shapes: str

    @property
    def ratio(self) -> float:
        """after / before: below 1 is faster."""
        return self.after_ms / self.before_ms


def measure(before: Runtime, after: Runtime, inputs: Mapping[str, NDArray[Any]], seconds: float = 0.6) -> Timing:
    """Run both graphs in turn on ``inputs`` for about ``seconds`` altogether, at least 9 rounds; return the medians."""
    pair = (before, after)
    times: tuple[list[float], list[float]] = ([], [])
    for graph in pair * 2:
        graph.run(inputs)  # the first runs allocate
    start = time.perf_counter()
    while len(times[0]) < 9 or (time.perf_counter() - start < seconds and len(times[0]) < 2000):
        for graph, kept in zip(pair, times, strict=True):
            began = time.perf_counter()
            graph.run(inputs)
            kept.append(time.perf_counter() - began)
    shapes = " ".join(f"{name}{list(a.shape)}".replace(" ", "") for name, a in inputs.items())
    return Timing(median(times[0]) * 1e3, median(times[1]) * 1e3, len(times[0]), shapes)
