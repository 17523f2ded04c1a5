"""How many threads torch has while networks are run for the proof: one, unless a run is long.

A proof runs a small network some hundred times, in torch and in float64. Threads that wait for each other in every
layer then cost far more than they save, most of all where other programs use the processors: an InceptionTime took 35
seconds of CPU time on two threads and 8 on one (two shared cores, 2026-11-28, ``normfold export`` of models/gunpoint
under OMP_NUM_THREADS=2 and 1). So did a chain of 500 small convolutions, although each run of it is long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

import torch

__all__ = ["LONG_RUN_SECONDS", "Threads"]

#: A run that takes longer than this on one thread is tried on all threads.
LONG_RUN_SECONDS = 0.1


class Threads:
    """While entered, torch runs on one thread; ``fit`` gives a long run all threads again where they help."""

    def __enter__(self) -> Threads:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        torch.set_num_threads(self._before)

    def fit(self, run: Callable[[], object]) -> None:
        """Time ``run`` and choose the number of threads for it."""
        if _seconds(run) <= LONG_RUN_SECONDS:
            return
        alone = _seconds(run)  # the first run also prepared what later ones use
        torch.set_num_threads(self._before)
        if _seconds(run) >= alone:
            torch.set_num_threads(1)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
