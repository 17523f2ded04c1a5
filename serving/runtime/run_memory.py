"""How much memory a run takes: measured when a model is loaded, and foretold for other numbers of rows and lengths.

A convolution network keeps every activation of a row for a while, which may be 300 times the row itself. onnxruntime
takes this memory from the C library and keeps it for the next run (its *arena*), so the growth of what the C library
has handed out is the memory of the run; onnxruntime doubles what it asks for, so the figure is up to twice the need.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.serving.errors import InvalidRequest
from normfold.serving.process.memory import allocated_bytes
from normfold.serving.runtime.session import Session

Array = NDArray[Any]

#: Rows of the measured batch, and the time that its run may take, in seconds.
ROWS, MOST_SECONDS = 64, 0.2
#: A longer input has this many times the length, and its run takes at most SLOWER times as long.
LONGER, SLOWER = 2, 4
#: A run is never expected to grow faster than with this power of the length: attention compares all pairs.
MOST_POWER = 2.0
#: The arena grows by at least this much, so a run with less cannot be measured, in bytes.
STEP_BYTES = 1 << 20
#: A run, or its input, with this much is large enough to be measured, in bytes. If the time ends before, a step of the
#: arena is taken for it, which is too much.
ENOUGH_BYTES = 3 << 20


@dataclass(frozen=True)
class RunMemory:
    """The memory of a run: ``row_bytes`` for each row with inputs of ``row_input_bytes``.

    For a row with inputs of another size it grows with ``power`` of this size (and falls in proportion).
    """

    row_bytes: float
    row_input_bytes: float
    power: float = 1.0

    def of(self, rows: int, input_bytes: int) -> float:
        """The bytes that a run of ``rows`` rows with inputs of ``input_bytes`` takes."""
        growth = input_bytes / max(rows, 1) / self.row_input_bytes
        return rows * self.row_bytes * (growth**self.power if growth > 1 else growth)

    def most_input_bytes(self, run_bytes: float) -> int:
        """The size in bytes up to which inputs never take more than ``run_bytes``, in any number of rows."""
        ratio = run_bytes / self.row_bytes
        return int(self.row_input_bytes * (ratio ** (1 / self.power) if ratio > 1 else ratio))


def measure(
    session: Session,
    sample: Mapping[str, Array],
    outputs: Sequence[str],
    most_rows: int,
    open_axes: Mapping[str, Sequence[int]],
) -> RunMemory | None:
    """The memory of runs of ``session``, by the inputs ``sample``; None where it cannot be measured.

    ``most_rows``: the largest batch; 0: the inputs have no batch axis. ``open_axes``: for each input the axes whose
    size is free, without that of the batch. Numbers of the sample are repeated to make more rows and longer inputs.
    """
    if session.device != "cpu" or allocated_bytes() is None or not sample:
        return None
    try:
        return _measured(session, sample, outputs, most_rows, open_axes)
    except InvalidRequest:  # repeated numbers may be no valid input
        return None


def _measured(
    session: Session,
    sample: Mapping[str, Array],
    outputs: Sequence[str],
    most_rows: int,
    open_axes: Mapping[str, Sequence[int]],
) -> RunMemory | None:
    one = {name: array[:1] for name, array in sample.items()} if most_rows else dict(sample)
    session.run(one, outputs)
    started = time.perf_counter()
    session.run(one, outputs)
    rows = min(ROWS, most_rows, int(MOST_SECONDS / max(time.perf_counter() - started, 1e-6))) if most_rows else 1
    rows = max(rows, 1)
    batch = {name: np.repeat(array, rows, axis=0) for name, array in one.items()} if most_rows else one
    if not _bytes(batch):
        return None
    taken, seconds = _taken(session, one, batch, outputs)
    is_open = _bytes(_longer(batch, open_axes)) > _bytes(batch)  # an axis of size 0 takes no bytes at any length
    while is_open and taken < ENOUGH_BYTES and _bytes(batch) < ENOUGH_BYTES and seconds * SLOWER < MOST_SECONDS:
        longer = _longer(batch, open_axes)
        try:
            taken, seconds = _taken(session, one, longer, outputs)
        except InvalidRequest:  # the network does not take this length, and what it takes is too little to tell
            if taken < 2 * STEP_BYTES:
                return None
            break
        batch = longer
    row_input = _bytes(batch) / rows
    row = max(taken, STEP_BYTES) / rows
    power = 1.0
    if is_open and seconds < MOST_SECONDS:
        fewer = max(1, rows // LONGER)  # the longer run takes as much time as that of the batch
        longer = _longer({name: array[:fewer] if most_rows else array for name, array in batch.items()}, open_axes)
        growth = _bytes(longer) / fewer / row_input
        with contextlib.suppress(InvalidRequest):
            more = _taken(session, one, longer, outputs)[0] / fewer
            power = min(max(math.log(max(more, row) / row) / math.log(growth), 1.0), MOST_POWER)
    return RunMemory(max(row, 2 * row_input), row_input, power)


def _taken(
    session: Session, one: Mapping[str, Array], feeds: Mapping[str, Array], outputs: Sequence[str]
) -> tuple[int, float]:
    """The bytes that a run of ``feeds`` adds to an empty arena, and the seconds of the run.

    The smaller of two measurements, because other threads allocate, too.
    """
    bytes_of, seconds_of = [], []
    for _ in range(2):
        session.run(one, outputs, give_back=True)
        before, started = allocated_bytes() or 0, time.perf_counter()
        session.run(feeds, outputs, give_back=False)
        bytes_of.append((allocated_bytes() or 0) - before)
        seconds_of.append(time.perf_counter() - started)
    session.run(one, outputs, give_back=True)
    return min(bytes_of), min(seconds_of)


def _bytes(feeds: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in feeds.values())


def _longer(feeds: Mapping[str, Array], open_axes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    return {
        name: np.tile(array, [LONGER if axis in open_axes.get(name, ()) else 1 for axis in range(array.ndim)])
        for name, array in feeds.items()
    }
