"""Time several programs in one run, in turns, so that whatever else the machine does falls on all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from normfold.serving.load.rounds import turns

#: Rounds are cut short by the budget, but never below this: fewer have no quartiles.
LEAST_ROUNDS = 3
#: So many runs come before those that count.
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

    Every round runs all of them, each time starting with another, and each as often as fills ``slice_ms``, at least
    once. Two runs before that are not counted. Each turn begins after ``rest_seconds``, in which threads that the one
    before has left waiting in a loop go to sleep. No round begins after ``budget_seconds`` without these rests, the
    first three rounds excepted.
    """
    repeats = {}
    for name, run in runs.items():
        time.sleep(rest_seconds)
        run()
        start = clock()
        run()
        # Where the clock did not tick the run is shorter than its resolution.
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
