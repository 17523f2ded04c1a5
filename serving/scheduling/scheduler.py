"""The queue of one model version: requests wait for a free instance, and run together where their shapes are equal.

A request never waits for others that it cannot run with. A request that was cancelled or waited too long is never run.
If a batch fails, its requests are run again one by one, so that only the request at fault fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.serving.errors import QueueFull, Unavailable
from normfold.serving.rpc import caller
from normfold.serving.scheduling.admission import LONGEST_RETRY, SHORTEST_RETRY, ModelLoad
from normfold.serving.scheduling.batching import BatchPolicy
from normfold.serving.scheduling.fair_queue import FairQueue
from normfold.serving.scheduling.inline import RunTime, RunTimes
from normfold.serving.scheduling.running import Ran, Run, Running, Stoppable, unstoppable
from normfold.serving.scheduling.statistics import RequestTiming, Statistics

Array = NDArray[Any]
Feeds = Mapping[str, Array]


@dataclass(eq=False)
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
    expiry: asyncio.TimerHandle | None = None
    #: Its run on another thread, once it has begun.
    running: Running | None = None


@dataclass
class Queue:
    """The waiting jobs of one priority level; those in ``delayed`` waited too long, and come after the others."""

    waiting: FairQueue[Job] = field(default_factory=FairQueue)
    delayed: FairQueue[Job] = field(default_factory=FairQueue)


class Scheduler:
    """Runs the requests of one model version. Everything but the run itself happens on the event loop."""

    def __init__(
        self,
        run: Run,
        policy: BatchPolicy,
        instances: int,
        executor: Executor,
        statistics: Statistics,
        times: RunTimes | None = None,
        stoppable: Stoppable | None = None,
    ) -> None:
        self._stoppable = stoppable or unstoppable(run)
        self._running: set[Running] = set()
        self._run, self._policy, self._executor, self._statistics = run, policy, executor, statistics
        self._free = instances
        #: The requests under way for this version; the door of the server counts them.
        self.load = ModelLoad(instances, policy.max_rows)
        self._queues = {level: Queue() for level in range(policy.levels + 1)}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: How long runs take, which decides which of them stay on the event loop.
        self.times = RunTimes() if times is None else times

    async def submit(
        self, feeds: Feeds, rows: int, outputs: Sequence[str], priority: int, timeout_us: int
    ) -> tuple[list[Array], RequestTiming]:
        """The outputs for ``feeds`` in the order of ``outputs``, and how the time was spent.

        Raises QueueFull, Unavailable when the wait was too long, or what the model raises.
        """
        run_time = self.times.of(feeds)
        if (ran := self._run_now(feeds, rows, outputs, run_time)) is not None:
            return ran
        level = self._policy.level(priority)
        policy, queue = self._policy.queue(level), self._queues[level]
        connection = caller.connection()
        if policy.max_size and len(queue.waiting) + len(queue.delayed) >= policy.max_size:
            self._make_place(queue, connection)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[list[Array], RequestTiming]] = loop.create_future()
        job = Job(feeds, rows, tuple(outputs), level, time.perf_counter_ns(), future, run_time, connection)
        job.behind = self.load.under_way.requests - 1
        if self._policy.max_rows > 1:
            job.key = tuple((name, array.shape[1:]) for name, array in sorted(feeds.items()))
        queue.waiting.append(job)
        self._dispatch()
        if (wait_us := policy.wait_us(timeout_us)) and not job.future.done():
            job.expiry = loop.call_later(wait_us / 1e6, self._expire, job, policy.delay)
        try:
            return await job.future
        except asyncio.CancelledError:
            if job.running is not None:
                job.running.left()
            raise
        finally:
            if job.expiry:
                job.expiry.cancel()
            if job.future.cancelled() and (queue.waiting.remove(job) or queue.delayed.remove(job)):
                # it waited at least so long; without those that gave up, the waits would look short
                self.load.waited((time.perf_counter_ns() - job.arrived_ns) / 1e9, job.behind)

    def _make_place(self, queue: Queue, connection: object) -> None:
        """Refuse the last request of the connection that has most of a full queue. Raises QueueFull if it is ours."""
        retry = min(max(self.load.wait_seconds, SHORTEST_RETRY), LONGEST_RETRY)
        displaced = queue.waiting.displaced(connection)
        if displaced is None:
            raise QueueFull("Exceeds maximum queue size", retry)
        if not displaced.future.done():
            displaced.future.set_exception(QueueFull("Exceeds maximum queue size", retry))

    def stop(self) -> None:
        """End the runs under way; their requests get the error of a run that was stopped."""
        for running in self._running:
            running.stop()

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a run."""
        jobs = (job for queue in self._queues.values() for job in (*queue.waiting, *queue.delayed))
        return sum(not job.future.done() for job in jobs)

    def may_run_now(self, run_time: RunTime) -> bool:
        """Whether a request may run on the event loop at once: its run is short, and no other request waits."""
        # While an instance is free nothing waits, unless a batch may wait for more requests.
        return run_time.inline and self._free > 0 and not self._policy.max_delay_us

    def _run_now(
        self, feeds: Feeds, rows: int, outputs: Sequence[str], run_time: RunTime
    ) -> tuple[list[Array], RequestTiming] | None:
        if not self.may_run_now(run_time):
            return None
        started = time.perf_counter_ns()
        answer = self._run(feeds, outputs)
        infer_ns = time.perf_counter_ns() - started
        run_time.note(infer_ns)
        self._statistics.ran(rows, 0, infer_ns, 0)
        return answer, RequestTiming(0, 0, infer_ns, 0)

    def _dispatch(self) -> None:
        """Start runs as long as an instance is free and a batch is due."""
        while self._free and (batch := self._next_batch()):
            self._free -= 1
            for job in batch:
                if job.expiry:
                    job.expiry.cancel()
            run_time = batch[0].run_time
            if len(batch) > 1:
                run_time = self.times.of_rows(batch[0].feeds, sum([job.rows for job in batch]))
            if run_time.inline:
                self._finish(batch, self._execute(batch, self._run), run_time)
            else:
                task = asyncio.get_running_loop().create_task(self._execute_elsewhere(batch, run_time))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> list[Job]:
        """The jobs of the next run, taken off the queue; empty if no job waits, or if the batch may wait for more."""
        queues = [jobs for queue in self._queues.values() for jobs in (queue.waiting, queue.delayed)]
        head = next((job for jobs in queues for job in jobs if not job.future.done()), None)
        if head is None:
            return []
        batch, rows = self._gather(head)
        if self._may_wait(head, rows):
            return []
        for job in batch:
            queue = self._queues[job.level]
            queue.waiting.take(job) or queue.delayed.take(job)
        return batch

    def _gather(self, head: Job) -> tuple[list[Job], int]:
        """``head`` and the waiting jobs that run with it, by priority and then by arrival; and all their rows."""
        batch, rows = [head], head.rows
        if self._policy.max_rows > 1:
            for queue in self._queues.values():
                for jobs in (queue.waiting, queue.delayed):
                    for job in jobs:
                        if job is head or job.key != head.key or job.future.done():
                            continue
                        if rows + job.rows > self._policy.max_rows:
                            return batch, rows
                        batch.append(job)
                        rows += job.rows
        return batch, rows

    def _may_wait(self, head: Job, rows: int) -> bool:
        """Whether a batch of ``rows`` rows should wait for more; if so, a timer is set for the end of that wait."""
        policy = self._policy
        if not policy.max_delay_us or rows >= policy.max_rows or rows in policy.preferred:
            return False
        left_ns = head.arrived_ns + policy.max_delay_us * 1000 - time.perf_counter_ns()
        if left_ns <= 0:
            return False
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(left_ns / 1e9, self._dispatch)
        return True

    def _expire(self, job: Job, delay: bool) -> None:
        """``job`` waited too long: refuse it, or with ``delay`` put it behind all others of its level."""
        queue = self._queues[job.level]
        if not queue.waiting.remove(job):
            return
        if delay:
            queue.delayed.append(job)
        elif not job.future.done():
            job.future.set_exception(Unavailable("Request timeout expired"))

    async def _execute_elsewhere(self, batch: list[Job], run_time: RunTime) -> None:
        run, stop = self._stoppable()
        running = Running(stop, len(batch))
        for job in batch:
            job.running = running
        self._running.add(running)
        ran = await asyncio.get_running_loop().run_in_executor(self._executor, self._execute, batch, run)
        self._running.discard(running)
        took_ns = sum([one.input_ns + one.infer_ns + one.output_ns for one in ran])
        self.load.ran(took_ns / 1e9, len(batch))
        self.load.waited((ran[0].started_ns - batch[0].arrived_ns) / 1e9, batch[0].behind)
        self._finish(batch, ran, run_time)
        self._dispatch()

    def _finish(self, batch: list[Job], ran: list[Ran], run_time: RunTime) -> None:
        """Hand out the answers and count the runs; ``run_time`` notes the time of a run of the whole ``batch``."""
        self._free += 1
        if len(ran) == 1 and not isinstance(ran[0].answers[0], Exception):
            run_time.note(ran[0].infer_ns)
        answers: list[tuple[list[Array] | Exception, Ran]] = []
        for one in ran:
            if not isinstance(one.answers[0], Exception):
                self._statistics.ran(one.rows, one.input_ns, one.infer_ns, one.output_ns)
            answers += [(answer, one) for answer in one.answers]
        for job, (answer, one) in zip(batch, answers, strict=True):
            if job.future.done():
                continue
            if isinstance(answer, Exception):
                job.future.set_exception(answer)
            else:
                waited = max(0, one.started_ns - job.arrived_ns)
                job.future.set_result((answer, RequestTiming(waited, one.input_ns, one.infer_ns, one.output_ns)))

    def _execute(self, batch: list[Job], run: Run) -> list[Ran]:
        """Run ``batch`` in one run or, if that fails, each job alone."""
        try:
            return [self._execute_once(batch, run)]
        except Exception as error:
            if len(batch) > 1:
                return [ran for job in batch for ran in self._execute([job], run)]
            return [Ran([error], batch[0].rows, 0, 0, 0, time.perf_counter_ns())]

    def _execute_once(self, batch: list[Job], run: Run) -> Ran:
        started = time.perf_counter_ns()
        first = batch[0]
        outputs = list(dict.fromkeys(name for job in batch for name in job.outputs))
        if len(batch) == 1:
            feeds = first.feeds
        else:
            feeds = {name: np.concatenate([job.feeds[name] for job in batch]) for name in first.feeds}
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
