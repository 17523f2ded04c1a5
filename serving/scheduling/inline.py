"""Which runs are so short that a hop to another thread would take longer than the run itself.

    event loop ── hop ──► executor ── run ──► executor ── hop ──► event loop

The time of the two hops is measured once in each process. The time of a run is measured for each exact set of input
shapes: by the warm-up, then by the requests themselves. Shapes whose runs were shorter than the hops run on the event
loop ("inline") until their runs become longer. Nothing is concluded from one set of shapes about another.

A busy machine interrupts runs, and then they look long, on another thread even more: it waits for the interpreter, too.
So shapes that left the loop try it again after a pause. The pause is short where they had stayed for long, and doubles
each time that they had not.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

#: Shapes whose runs are known to take longer than this never run on the event loop, however long the hops take.
MOST_SECONDS = 1e-3

#: Round trips that are measured, and round trips before them that only start the threads.
TRIPS, FIRST_TRIPS = 32, 4

#: A shape runs inline after this many short runs.
SHORT_RUNS = 2

#: The shortest and the longest pause before a shape that left the loop tries it again, in seconds.
FIRST_PAUSE, MOST_PAUSE = 0.02, 5.0
#: A shape that stayed on the loop for this many times its last pause has the shortest pause the next time.
STEADY = 4

#: The doubt of a shape that runs inline is a leaky counter: a run longer than the hops adds LONG, a run longer than
#: MOST_SECONDS adds VERY_LONG, a short run subtracts 1. Above DOUBT the shape leaves the loop: after two very long runs
#: in a row, or four long ones. A single one does not suffice, because a busy machine interrupts any run now and then.
LONG, VERY_LONG, DOUBT = 8, 16, 28

#: Sets of shapes that are remembered for a model. A table that would exceed it is cleared, and all are learned again.
LIMIT = 1024


async def hop_seconds(executor: Executor) -> float:
    """The seconds that a round trip from the event loop to ``executor`` and back takes, at most MOST_SECONDS."""
    loop = asyncio.get_running_loop()
    trips = []
    for _ in range(FIRST_TRIPS + TRIPS):
        started = time.perf_counter()
        await loop.run_in_executor(executor, time.perf_counter)
        trips.append(time.perf_counter() - started)
    return min(statistics.median(trips[FIRST_TRIPS:]), MOST_SECONDS)


class RunTime:
    """How long the runs with one exact set of shapes take.

    ``inline``: the next run belongs on the event loop.
    """

    __slots__ = ("_again_ns", "_bound_ns", "_doubt", "_missing", "_pause_ns", "inline")

    def __init__(self, bound_ns: int) -> None:
        self.inline = False
        self._bound_ns, self._missing, self._doubt = bound_ns, SHORT_RUNS, 0
        #: When it comes back to the loop, or came there last, by perf_counter_ns; 0: it was never there.
        self._again_ns = 0
        self._pause_ns = 0

    def note(self, ns: int) -> None:
        """Learn from one run that took ``ns`` nanoseconds, on the event loop or elsewhere."""
        if ns < self._bound_ns:
            if self._doubt:
                self._doubt -= 1
            if not self.inline and not self._again_ns:
                self._missing -= 1
                if self._missing <= 0:
                    self.inline, self._again_ns = True, time.perf_counter_ns()
        elif self.inline:
            self._doubt += VERY_LONG if ns > MOST_SECONDS * 1e9 else LONG
            if self._doubt > DOUBT:
                self._leave(time.perf_counter_ns())

    def tries_again(self) -> bool:
        """Whether a shape that is not inline tries the event loop again now; then it is inline."""
        if self._again_ns and time.perf_counter_ns() >= self._again_ns:
            self.inline = True
        return self.inline

    def _leave(self, now_ns: int) -> None:
        steady = now_ns - self._again_ns > STEADY * self._pause_ns
        self._pause_ns = int(FIRST_PAUSE * 1e9) if steady else min(2 * self._pause_ns, int(MOST_PAUSE * 1e9))
        self._again_ns = now_ns + self._pause_ns
        self.inline, self._doubt = False, 0


class RunTimes:
    """The run times of one model version by the shapes of its inputs.

    Runs shorter than ``bound_seconds`` are short; with 0 nothing runs inline.
    """

    def __init__(self, bound_seconds: float = 0.0) -> None:
        self._bound_ns = int(min(bound_seconds, MOST_SECONDS) * 1e9)
        self._by_shapes: dict[Shapes, RunTime] = {}

    def __len__(self) -> int:
        """The number of sets of shapes that are remembered."""
        return len(self._by_shapes)

    def of(self, feeds: Mapping[str, Array]) -> RunTime:
        """The run time for the shapes of ``feeds``."""
        return self._of(tuple([(name, array.shape) for name, array in feeds.items()]))

    def of_rows(self, feeds: Mapping[str, Array], rows: int) -> RunTime:
        """The run time for a batch of ``rows`` rows whose first request has the inputs ``feeds``."""
        return self._of(tuple([(name, (rows, *array.shape[1:])) for name, array in feeds.items()]))

    def _of(self, key: Shapes) -> RunTime:
        run_time = self._by_shapes.get(key)
        if run_time is None:
            if len(self._by_shapes) >= LIMIT:
                self._by_shapes.clear()
            run_time = self._by_shapes[key] = RunTime(self._bound_ns)
        return run_time
