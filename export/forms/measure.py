"""Time graphs against each other: interleaved, so that a busy moment meets all of them; medians, one thread.

On the CPU the clock is the calling thread's own CPU time, for onnxruntime runs in it: what other programs take of the
processor meanwhile does not count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray

from normfold.export.graphs.runtime import Runtime

__all__ = ["Timing", "medians", "shapes_of"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Timing:
    """Median run times in onnxruntime on one CPU thread, with the shapes they were taken at."""

    before_ms: float
    after_ms: float
    #: Rounds the medians were taken over.
    rounds: int
    #: "x[1,77,17]"
    shapes: str
    #: Whether they were taken before, and remembered.
    remembered: bool = False

    @property
    def ratio(self) -> float:
        """after / before: below 1 is faster."""
        return self.after_ms / self.before_ms


def medians(graphs: Mapping[str, Runtime], inputs: Arrays, seconds: float = 0.6) -> tuple[dict[str, float], int]:
    """The median run time of each graph in milliseconds, taken in turn, and the number of rounds."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for graph in [*graphs.values()] * 2:
        graph.run(inputs)  # the first runs allocate
    start, rounds = time.perf_counter(), 0
    while rounds < 9 or (time.perf_counter() - start < seconds and rounds < 2000):
        for name, graph in graphs.items():
            began = graph.clock()
            graph.run(inputs)
            times[name].append(graph.clock() - began)
        rounds += 1
    return {name: median(taken) * 1e3 for name, taken in times.items()}, rounds


def shapes_of(inputs: Arrays) -> str:
    """The inputs' shapes in a word: "x[1,77,17]"."""
    return " ".join(f"{name}{list(a.shape)}".replace(" ", "") for name, a in inputs.items())
