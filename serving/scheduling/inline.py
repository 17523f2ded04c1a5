"""Which runs are so short that handing them to another thread would cost more.

    event loop ── hop ──► executor ── run ──► executor ── hop ──► event loop

What the two hops cost is measured once a process, what a run takes is measured for each exact set of input shapes: by
the warm-up, then by the requests themselves. A run that was shorter is carried out on the event loop, until it is
found to be longer; so one short size of a model says nothing of another.
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

#: The event loop is never held longer than this by a run that is known, whatever a hop costs.
MOST_SECONDS = 1e-3

#: Round trips that are measured, after a few that start the threads.
TRIPS, FIRST_TRIPS = 32, 4

#: So many short runs bring a shape onto the loop, and so many bring it back once it was taken off.
SHORT_RUNS, SHORT_RUNS_AGAIN = 2, 64

#: What a long run adds to the doubt, and one beyond MOST_SECONDS; a short run takes 1 away. A busy machine interrupts
#: any run now and then, so a single one takes no shape off the loop: two very long ones do, or four long ones.
LONG, VERY_LONG, DOUBT = 8, 16, 28

#: Sets of shapes that are remembered for a model; one more, and all are learned again.
LIMIT = 1024


async def hop_seconds(executor: Executor) -> float:
    """What a round trip from the event loop to ``executor`` and back takes, at most MOST_SECONDS."""
    loop = asyncio.get_running_loop()
    trips = []
    for _ in range(FIRST_TRIPS + TRIPS):
        started = time.perf_counter()
        await loop.run_in_executor(executor, time.perf_counter)
        trips.append(time.perf_counter() - started)
    return min(statistics.median(trips[FIRST_TRIPS:]), MOST_SECONDS)


class RunTime:
    """What is known of the runs with one exact set of shapes. ``inline`` says where the next one belongs."""

    __slots__ = ("_bound_ns", "_doubt", "_missing", "inline")

    def __init__(self, bound_ns: int) -> None:
        self.inline = False
        self._bound_ns, self._missing, self._doubt = bound_ns, SHORT_RUNS, 0

    def note(self, ns: int) -> None:
        """Learn from one run that took ``ns`` nanoseconds, wherever it was carried out."""
        if ns < self._bound_ns:
            if self._doubt:
                self._doubt -= 1
            if not self.inline:
                self._missing -= 1
                self.inline = self._missing <= 0
        elif self.inline:
            self._doubt += VERY_LONG if ns > MOST_SECONDS * 1e9 else LONG
            if self._doubt > DOUBT:
                self.inline = False
                self._missing, self._doubt = SHORT_RUNS_AGAIN, 0


class RunTimes:
    """The run times of one model version by the shapes of its inputs. ``bound_seconds`` 0: nothing runs inline."""

    def __init__(self, bound_seconds: float = 0.0) -> None:
        self._bound_ns = int(min(bound_seconds, MOST_SECONDS) * 1e9)
        #: Names and shapes -> what is known of their runs.
        self.known: dict[Shapes, RunTime] = {}

    def of(self, feeds: Mapping[str, Array]) -> RunTime:
        """What is known of runs with the shapes of ``feeds``."""
        return self._of(tuple([(name, array.shape) for name, array in feeds.items()]))

    def of_rows(self, feeds: Mapping[str, Array], rows: int) -> RunTime:
        """The same for a batch of ``rows`` rows, of which ``feeds`` is the first request."""
        return self._of(tuple([(name, (rows, *array.shape[1:])) for name, array in feeds.items()]))

    def _of(self, key: Shapes) -> RunTime:
        known = self.known.get(key)
        if known is None:
            if len(self.known) >= LIMIT:
                self.known.clear()
            known = self.known[key] = RunTime(self._bound_ns)
        return known
