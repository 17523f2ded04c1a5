"""Time graphs against each other: in turn, so that a busy moment slows all of them, and by medians.

On one thread of the CPU the clock is the CPU time of the calling thread, because onnxruntime runs in it: time that
other programs take from the processor meanwhile is not counted. On several threads it is wall time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray

from normfold.export.graphs.runtime import Runtime

__all__ = ["TimeComparison", "medians", "shapes_of"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TimeComparison:
    """Median run times in onnxruntime, with the shapes of the inputs."""

    before_ms: float
    after_ms: float
    #: Number of rounds that each median is taken over.
    rounds: int
    #: "x[1,77,17]"
    shapes: str
    #: Whether an earlier export measured them.
    remembered: bool = False
    #: The dimensions whose size nobody asked for: another size may be timed.
    free: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """after / before: below 1 is faster."""
        return self.after_ms / self.before_ms


def medians(graphs: Mapping[str, Runtime], inputs: Arrays, seconds: float = 0.6) -> tuple[dict[str, float], int]:
    """Return each graph's median run time in milliseconds, and the number of rounds; a round runs every graph."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for graph in [*graphs.values()] * 2:
        graph.run(inputs)  # the first runs allocate memory
    start, rounds = time.perf_counter(), 0
    while rounds < 9 or (time.perf_counter() - start < seconds and rounds < 2000):
        for name, graph in graphs.items():
            began = graph.clock()
            graph.run(inputs)
            times[name].append(graph.clock() - began)
        rounds += 1
    return {name: median(taken) * 1e3 for name, taken in times.items()}, rounds


def shapes_of(inputs: Arrays) -> str:
    """Return the shapes of the inputs as text: "x[1,77,17]"."""
    return " ".join(f"{name}{list(a.shape)}".replace(" ", "") for name, a in inputs.items())
