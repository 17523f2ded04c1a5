"""Which runs are so short that the detour over another thread would take longer than the run itself.

    event loop ── hop ──► executor ── run ──► executor ── hop ──► event loop

The time of a run is measured for each exact set of input shapes: by the warm-up, then by the requests themselves.
Shapes whose runs are shorter than INLINE_SECONDS run on the event loop ("inline") until their runs become longer.
Nothing is concluded from one set of shapes about another.

A run on another thread looks longer than it would be on the loop: that thread waits for the interpreter, and finds the
processor's caches empty. So shapes whose runs elsewhere were not very long try the loop, and are measured there. A busy
machine interrupts runs, and then they look long, too. So shapes that left the loop try it again after a pause. The
pause is short where they had stayed for long, and doubles each time that they had not.

However short they are, many runs in a row keep everything else on the event loop waiting: health, too. So the runs of
one turn of the loop, of all models together, take about TURN_SECONDS at most. What is more runs on threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

#: Shapes with longer runs are run on another thread. That detour takes 180 to 250 microseconds of the processor where
#: requests come one at a time, and 35 to 80 for each of 16 in flight, which share runs. With two CPUs and 16 in flight,
#: runs of more than 150 microseconds are faster there; shorter ones, too, where 8 rows take little longer than one.
#: Requests that wait for the event loop are still in their sockets, where they can be neither counted nor refused.
#: (2 CPUs, AMD EPYC, 2026-11-30; `python -m benches.serving detour`)
INLINE_SECONDS = 100e-6
#: Runs that took longer than this elsewhere do not try the event loop.
VERY_LONG_SECONDS = 1e-3

#: A shape tries the event loop after this many runs elsewhere that were not very long.
TRIED_RUNS = 2

#: The shortest and the longest pause before a shape that left the loop tries it again, in seconds.
FIRST_PAUSE, MOST_PAUSE = 0.02, 5.0
#: A shape that stayed on the loop for this many times its last pause has the shortest pause the next time.
STEADY = 4

#: The doubt of a shape that runs inline is a leaky counter: a run longer than the bound adds LONG, a very long one adds
#: VERY_LONG, a short run subtracts 1. Above DOUBT the shape leaves the loop: after two very long runs in a row, or ten
#: long ones. A single one does not suffice, because a busy machine interrupts any run now and then.
LONG, VERY_LONG, DOUBT = 3, 16, 28

#: Runs of all models on the event loop, before everything else there has its turn, in seconds.
TURN_SECONDS = 10e-3

#: Sets of shapes that are remembered for a model. A table that would exceed it is cleared, and all are learned again.
LIMIT = 1024


class RunTime:
    """How long the runs with one exact set of shapes take.

    ``inline``: the next run belongs on the event loop.
    """

    __slots__ = ("_again_ns", "_bound_ns", "_doubt", "_missing", "_pause_ns", "inline")

    def __init__(self, bound_ns: int) -> None:
        self.inline = False
        self._bound_ns, self._missing, self._doubt = bound_ns, TRIED_RUNS, 0
        #: When it comes back to the loop, or came there last, by perf_counter_ns; 0: it was never there.
        self._again_ns = 0
        self._pause_ns = 0

    def note(self, ns: int) -> None:
        """Learn from one run that took ``ns`` nanoseconds, on the event loop or elsewhere."""
        if not self.inline:
            if self._bound_ns and not self._again_ns and ns < VERY_LONG_SECONDS * 1e9:
                self._missing -= 1
                if self._missing <= 0:
                    self.inline, self._again_ns = True, time.perf_counter_ns()
        elif ns >= self._bound_ns:
            self._doubt += VERY_LONG if ns > VERY_LONG_SECONDS * 1e9 else LONG
            if self._doubt > DOUBT:
                self._leave(time.perf_counter_ns())
        elif self._doubt:
            self._doubt -= 1

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


class LoopTurn:
    """What the runs of all models have taken in this turn of the event loop."""

    def __init__(self) -> None:
        self._ns = 0

    @property
    def is_over(self) -> bool:
        """Whether no more runs belong on the event loop in this turn."""
        return self._ns > TURN_SECONDS * 1e9

    def spend(self, ns: int) -> None:
        """Count a run on the event loop that took ``ns`` nanoseconds."""
        if not self._ns:
            asyncio.get_running_loop().call_soon(self._renew)
        self._ns += max(ns, 1)

    def _renew(self) -> None:
        self._ns = 0


class RunTimes:
    """The run times of one model version by the shapes of its inputs.

    Runs shorter than ``bound_seconds`` run inline; with 0 none does. ``turn`` is that of the event loop.
    """

    def __init__(self, bound_seconds: float = 0.0, turn: LoopTurn | None = None) -> None:
        self.turn = LoopTurn() if turn is None else turn
        self._bound_ns = int(bound_seconds * 1e9)
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
