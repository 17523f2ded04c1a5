"""One run for a batch of requests, or one for each of them if that fails or its outputs cannot be divided."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from normfold.serving.scheduling.queues import Array, Job
from normfold.serving.scheduling.running import Ran, Run


def execute(batch: list[Job], run: Run) -> list[Ran]:
    """Run ``batch`` in one run or, if that fails or an output does not have the rows of the batch, each job alone."""
    odd: frozenset[str] = frozenset()
    try:
        ran = _execute_once(batch, run)
        if not ran.odd or len(batch) == 1:
            return [ran]
        odd = ran.odd
    except Exception as error:
        if len(batch) == 1:
            return [Ran([error], batch[0].rows, 0, 0, 0, time.perf_counter_ns())]
    alone = [ran for job in batch for ran in execute([job], run)]
    return [replace(ran, odd=ran.odd | odd) for ran in alone] if odd else alone


def _execute_once(batch: list[Job], run: Run) -> Ran:
    started = time.perf_counter_ns()
    first = batch[0]
    outputs = list(dict.fromkeys(name for job in batch for name in job.outputs))
    if len(batch) == 1:
        feeds = first.feeds
    else:
        feeds = {name: stacked([job.feeds[name] for job in batch]) for name in first.feeds}
    fed = time.perf_counter_ns()
    arrays = dict(zip(outputs, run(feeds, outputs), strict=True))
    inferred = time.perf_counter_ns()
    rows = sum(job.rows for job in batch)
    answers: list[list[Array] | Exception] = []
    odd = without_rows(arrays, rows)
    if len(batch) == 1:
        answers.append([arrays[name] for name in first.outputs])
    elif not odd:
        start = 0
        for job in batch:
            answers.append([arrays[name][start : start + job.rows] for name in job.outputs])
            start += job.rows
    return Ran(answers, rows, fed - started, inferred - fed, time.perf_counter_ns() - inferred, started, odd)


def have_rows(arrays: Iterable[Array], rows: int) -> bool:
    """Whether each of ``arrays`` has ``rows`` rows."""
    return all(array.shape[:1] == (rows,) for array in arrays)


def without_rows(arrays: Mapping[str, Array], rows: int) -> frozenset[str]:
    """The names of those that do not have ``rows`` rows."""
    return frozenset([name for name, array in arrays.items() if array.shape[:1] != (rows,)])


def stacked(arrays: Sequence[Array]) -> Array:
    """``arrays`` one after the other along their first axis; the result may be read only.

    numpy lets go of the interpreter's lock at each array that it copies, and a busy event loop holds the lock for
    milliseconds each time. The join of bytes keeps it, up to 1 MiB.
    """
    first = arrays[0]
    if first.dtype.kind not in "biuf" or not all(array.flags.c_contiguous for array in arrays):
        return np.concatenate(arrays)
    rows = sum([len(array) for array in arrays])
    return np.frombuffer(b"".join([array.data for array in arrays]), first.dtype).reshape(rows, *first.shape[1:])
