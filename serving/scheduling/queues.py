"""The waiting requests of one model version, and which of them run together next.

Requests come in on the event loop; the next batch is taken there, or on the thread of a run that has just ended. So
everything here holds one lock, for microseconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from normfold.serving.scheduling.batching import BatchPolicy
from normfold.serving.scheduling.fair_queue import FairQueue, displaced
from normfold.serving.scheduling.inline import RunTime
from normfold.serving.scheduling.running import Mark, Running
from normfold.serving.scheduling.statistics import RequestTiming

Array = NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(eq=False, repr=False)
class Job:
    """One request on its way through the queue."""

    feeds: Feeds
    rows: int
    outputs: tuple[str, ...]
    level: int
    arrived_ns: int
    future: asyncio.Future[tuple[list[Array], RequestTiming]]
    #: How long a run of this request alone takes.
    run_time: RunTime
    #: The connection that the request came on.
    connection: object = None
    #: Requests under way when it came.
    behind: int = 0
    #: Two jobs may share a run if their keys are equal.
    key: object = None
    #: Its run on another thread, once it has begun.
    running: Running | None = None
    #: Who follows it.
    mark: Mark | None = None


@dataclass
class _Level:
    """The waiting jobs of one priority level; those in ``delayed`` waited too long, and come after the others."""

    waiting: FairQueue[Job] = field(default_factory=FairQueue)
    delayed: FairQueue[Job] = field(default_factory=FairQueue)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.delayed)


class Queues:
    """The waiting jobs of one model version, by priority and then by arrival."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._levels = {level: _Level() for level in range(policy.levels + 1)}
        self._lock = threading.Lock()
        #: The outputs for which a job shares no run.
        self._alone: frozenset[str] = frozenset()

    def run_alone(self, outputs: Iterable[str]) -> list[str]:
        """From now on a job for one of ``outputs`` shares no run; those of them for which one might before."""
        if self._policy.max_rows <= 1:
            return []
        with self._lock:
            new = sorted({*outputs} - self._alone)
            self._alone |= {*new}
        return new

    def _is_alone(self, job: Job) -> bool:
        return bool(self._alone) and not self._alone.isdisjoint(job.outputs)

    def add(self, job: Job) -> None:
        """Let ``job`` wait."""
        with self._lock:
            self._levels[job.level].waiting.append(job)

    def remove(self, job: Job) -> bool:
        """Take ``job`` out; False: it does not wait any more."""
        with self._lock:
            level = self._levels[job.level]
            return level.waiting.remove(job) or level.delayed.remove(job)

    def expire(self, job: Job, delay: bool) -> bool:
        """Take out ``job``, which waited too long, or with ``delay`` put it behind all others; False: it runs."""
        with self._lock:
            level = self._levels[job.level]
            there = level.waiting.remove(job)
            if there and delay:
                level.delayed.append(job)
            return there

    def size(self, level: int) -> int:
        """The jobs of one level, those of callers that have left included."""
        return len(self._levels[level])

    def displaced(self, level: int, connection: object) -> Job | None:
        """Take out the job that makes place for one that comes on ``connection``; see ``fair_queue.displaced``."""
        with self._lock:
            return displaced((self._levels[level].waiting, self._levels[level].delayed), connection)

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a run."""
        with self._lock:
            return sum(not job.future.done() for line in self._lines() for job in line)

    def take(self, now_ns: int, begin: Callable[[list[Job]], None]) -> tuple[list[Job], int]:
        """The jobs of the next run, taken out of the queue, after ``begin`` has been called with them.

        Without jobs, the second value is the least time in nanoseconds that a batch may still wait for more; 0: no job
        waits.
        """
        with self._lock:
            head = next((job for line in self._lines() for job in line if not job.future.done()), None)
            if head is None:
                return [], 0
            batch, rows = self._gather(head)
            if self._wait_ns(head, rows, now_ns) > 0:
                batch, left_ns = self._first_due(now_ns)  # what does not run with the head need not wait with it
                if not batch:
                    return [], left_ns
            for job in batch:
                level = self._levels[job.level]
                level.waiting.take(job) or level.delayed.take(job)
            begin(batch)
            return batch, 0

    def _lines(self) -> Iterator[FairQueue[Job]]:
        for level in self._levels.values():
            yield level.waiting
            yield level.delayed

    def _gather(self, head: Job) -> tuple[list[Job], int]:
        """``head`` and the waiting jobs that run with it, by priority and then by arrival; and all their rows.

        The rows are ``max_rows`` where the next job does not fit, or must not be overtaken: this batch is full, too.
        """
        batch, rows = [head], head.rows
        if self._policy.max_rows > 1 and not self._is_alone(head):
            for line in self._lines():
                for job in line:
                    if job is head or job.future.done():
                        continue
                    if job.key != head.key or self._is_alone(job):
                        if self._policy.in_order:
                            return batch, self._policy.max_rows
                        continue
                    if rows + job.rows > self._policy.max_rows:
                        return batch, self._policy.max_rows
                    batch.append(job)
                    rows += job.rows
        return batch, rows

    def _first_due(self, now_ns: int) -> tuple[list[Job], int]:
        """The first batch, in the order of the first job of each, that waits for no more; else the least time to wait.

        One pass over the waiting jobs, for the moments at which the head must wait.
        """
        most = self._policy.max_rows
        batches: dict[object, list[Job]] = {}
        rows: dict[object, int] = {}
        for line in self._lines():
            for job in line:
                if job.future.done():
                    continue
                key = job if self._is_alone(job) else job.key
                batch = batches.setdefault(key, [])
                together = rows.get(key, 0) + job.rows
                if together <= most or not batch:
                    batch.append(job)
                rows[key] = min(together, most)
        least_ns = 0
        for key, batch in batches.items():
            left_ns = self._wait_ns(batch[0], rows[key], now_ns)
            if left_ns <= 0:
                return batch, 0
            least_ns = min(least_ns or left_ns, left_ns)
        return [], least_ns

    def _wait_ns(self, head: Job, rows: int, now_ns: int) -> int:
        """How long a batch of ``rows`` rows should still wait for more, in nanoseconds."""
        policy = self._policy
        if not policy.max_delay_us or policy.max_rows <= 1 or rows >= policy.max_rows or rows in policy.preferred:
            return 0
        if self._is_alone(head):
            return 0
        return head.arrived_ns + policy.max_delay_us * 1000 - now_ns
