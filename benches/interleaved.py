"""Time several programs in one run, in turns: what else the machine does slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from normfold.serving.load.rounds import turns

#: The budget never ends the measurement before this many rounds: fewer have no quartiles.
LEAST_ROUNDS = 3
#: Runs of each program before those that are measured.
WARMING = 2


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    slice_ms: float,
    clock: Callable[[], float] = time.process_time,
    budget_seconds: float = math.inf,
    rest_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Return each run's milliseconds on ``clock``, one figure a round.

    Each round runs all programs, and begins with another one than the round before. In its turn a program runs as often
    as fills ``slice_ms``, at least once; its figure is the mean of these runs. Two runs of each program come first and
    are not counted. Before a turn begins, ``rest_seconds`` pass: threads that the turn before left waiting in a loop go
    to sleep. After the third round, no round begins once ``budget_seconds`` are over; these rests do not count in them.
    """
    repeats = {}
    for name, run in runs.items():
        time.sleep(rest_seconds)
        run()
        start = clock()
        run()
        # A difference of 0 means that the run is shorter than the resolution of the clock.
        repeats[name] = max(1, round(slice_ms / 1e3 / max(clock() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    for done in range(rounds):
        rested = done * len(runs) * rest_seconds
        if done >= LEAST_ROUNDS and time.perf_counter() - begun - rested > budget_seconds:
            break
        for name in turns(list(runs), done):
            run, repeat = runs[name], repeats[name]
            time.sleep(rest_seconds)
            start = clock()
            for _ in range(repeat):
                run()
            times[name].append(1e3 * (clock() - start) / repeat)
    return times
