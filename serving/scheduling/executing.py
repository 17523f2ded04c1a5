"""One run for a batch of requests, or one for each of them if the batch fails."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from normfold.serving.scheduling.queues import Array, Job
from normfold.serving.scheduling.running import Ran, Run


def execute(batch: list[Job], run: Run) -> list[Ran]:
    """Run ``batch`` in one run or, if that fails, each job alone."""
    try:
        return [_execute_once(batch, run)]
    except Exception as error:
        if len(batch) > 1:
            return [ran for job in batch for ran in execute([job], run)]
        return [Ran([error], batch[0].rows, 0, 0, 0, time.perf_counter_ns())]


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
    if len(batch) == 1:
        answers.append([arrays[name] for name in first.outputs])
    else:
        if any(not array.shape or len(array) != rows for array in arrays.values()):
            raise ValueError(f"an output does not have the batch's {rows} rows")
        start = 0
        for job in batch:
            answers.append([arrays[name][start : start + job.rows] for name in job.outputs])
            start += job.rows
    return Ran(answers, rows, fed - started, inferred - fed, time.perf_counter_ns() - inferred, started)


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
