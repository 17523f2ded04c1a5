"""How many threads one run of a model should have: measured when the model is loaded, and remembered.

More threads may make one run shorter, but leave fewer threads for runs at the same time. So a run gets several threads
only if they make it clearly shorter. A model is measured only if there are several CPUs and its run on one thread is
long.

    $NORMFOLD_CACHE_DIR, else $XDG_CACHE_HOME/normfold, else ~/.cache/normfold
      threads/<digest of model, onnxruntime, processor and CPUs>.json

The folder may be deleted at any time. Without it, or if it cannot be read or written, models are measured again.
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

from normfold.plain_file import read_plain_file
from normfold.processor import processor_name
from normfold.serving.runtime.session import Session
from normfold.whole_file import write_whole

Array = NDArray[Any]
log = logging.getLogger(__name__)

#: A model whose run on one thread takes less than this keeps one thread.
SHORT_SECONDS = 1e-3

#: The first run is slower, because it allocates memory. Below this multiple of SHORT_SECONDS, the second run decides.
COLD = 10

#: More threads must make a run at least this many times shorter.
GAIN = 1.3

#: Measuring ends after ROUNDS rounds or MOST_SECONDS seconds, but not before every number of threads was run once.
ROUNDS, MOST_SECONDS = 6, 1.5

#: A remembered file is smaller than this; a larger one was not written by this module.
MOST_BYTES = 4096


@dataclass(frozen=True)
class Tuning:
    """The measurements that are remembered in ``folder`` for machines with ``cpus`` CPUs; None: none are remembered."""

    folder: Path | None
    cpus: int

    def candidates(self) -> list[int]:
        """The numbers of threads that are measured: one, half of the CPUs, all CPUs."""
        return sorted({1, max(1, self.cpus // 2), self.cpus})

    def find(self, data: bytes) -> int | None:
        """The number of threads that is remembered for the model ``data``; None if it was not measured."""
        if self.folder is None:
            return None
        try:
            threads = json.loads(read_plain_file(self._file(data), MOST_BYTES))["intra_op_threads"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return threads if threads in self.candidates() else None

    def keep(self, data: bytes, threads: int) -> None:
        """Remember ``threads`` for the model ``data``; if the folder cannot be written, the model is measured again."""
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
    """The session whose number of threads runs ``feeds`` best, and whether more than one number was measured.

    ``make`` makes a session from a number of threads; ``counts`` are the numbers, the first of which is 1.
    """
    sessions, best, ends = {1: make(1)}, {1: math.inf}, now() + MOST_SECONDS
    for number in range(ROUNDS):  # in turns, so that other work of the machine disturbs all alike
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
