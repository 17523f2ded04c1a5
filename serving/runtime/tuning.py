"""How many threads one run of a model should have: measured when it is loaded, and remembered.

More threads may make one run shorter and leave fewer for the runs beside it, so they are taken only where a run gets
clearly shorter. Only what can matter is measured: models whose run on one thread is long, on more than one CPU.

    $NORMFOLD_CACHE_DIR, else $XDG_CACHE_HOME/normfold, else ~/.cache/normfold
      threads/<digest of model, onnxruntime, processor and CPUs>.json

The folder may be deleted at any time; where it cannot be read or written, the measurement is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from normfold.processor import processor_name
from normfold.serving.runtime.session import Session
from normfold.whole_file import write_whole

Array = NDArray[Any]
log = logging.getLogger(__name__)

#: A run that is shorter than this on one thread stays there.
SHORT_SECONDS = 1e-3

#: The first run pays for allocations; it decides alone only where it takes so many times as long.
COLD = 10

#: More threads must make a run this much shorter.
GAIN = 1.3

#: Measuring ends after so many rounds, or this long after it began, but not before each was run once.
ROUNDS, MOST_SECONDS = 6, 1.5

#: What is larger was not written here.
MOST_BYTES = 4096


@dataclass(frozen=True)
class Tuning:
    """What is remembered in ``folder``, for machines with ``cpus`` CPUs; None: nothing is."""

    folder: Path | None
    cpus: int

    def candidates(self) -> list[int]:
        """The thread counts worth a measurement: one, half of the CPUs, all."""
        return sorted({1, max(1, self.cpus // 2), self.cpus})

    def find(self, data: bytes) -> int | None:
        """The threads remembered for the model in ``data``; None where it was not measured."""
        if self.folder is None:
            return None
        try:
            with self._file(data).open("rb") as file:
                threads = json.loads(file.read(MOST_BYTES))["intra_op_threads"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return threads if threads in self.candidates() else None

    def keep(self, data: bytes, threads: int) -> None:
        """Remember ``threads`` for the model in ``data``; where the folder cannot be written it is measured again."""
        if self.folder is None:
            return
        file = self._file(data)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps({"intra_op_threads": threads}).encode())
        except OSError as error:
            log.debug("%s cannot be kept: %s", file, error.strerror or error)

    def _file(self, data: bytes) -> Path:
        assert self.folder is not None
        about = f"{ort.__version__} {processor_name()} {self.cpus} {hashlib.sha256(data).hexdigest()}"
        return self.folder / f"{hashlib.sha256(about.encode()).hexdigest()}.json"


def choose(
    make: Callable[[int], Session],
    counts: Sequence[int],
    feeds: Mapping[str, Array],
    outputs: Sequence[str],
    now: Callable[[], float] = time.perf_counter,
) -> tuple[Session, bool]:
    """The session, as ``make`` makes it of a thread count, that runs ``feeds`` best; whether more than one was tried.

    ``counts`` begin with 1.
    """
    sessions, best, ends = {1: make(1)}, {1: math.inf}, now() + MOST_SECONDS
    for number in range(ROUNDS):  # in turns, so that what else the machine does meets all of them
        for count, session in sessions.items():
            if best[count] < math.inf and now() >= ends:
                continue
            started = now()
            session.run(feeds, outputs)
            best[count] = min(best[count], now() - started)
        if len(sessions) == 1 < len(counts):
            if best[1] < SHORT_SECONDS:
                return sessions[1], False
            if not number and best[1] < COLD * SHORT_SECONDS:
                continue
            sessions |= {count: make(count) for count in counts[1:]}
            best |= dict.fromkeys(counts[1:], math.inf)
    worth = [count for count in counts if best[count] * GAIN <= best[1]]
    return sessions[min(worth, key=best.__getitem__, default=1)], True
