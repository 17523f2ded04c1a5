"""The queue of one model version: requests wait for a free instance, and run together where their shapes are equal.

A request never waits for others that it cannot run with. A request that was cancelled or waited too long is never run.
If a batch fails, its requests are run again one by one, so that only the request at fault fails. Once a run gives an
output with another number of rows than its inputs, requests for this output run alone: if by chance it has as many rows
as a batch, it would be shared out among requests that each should have all of it.

While requests wait, the thread of a run takes the next batch itself. A busy event loop comes round only every few
milliseconds, and the processor would do nothing meanwhile:

    event loop   submit ... submit  | answers of run 1 |  submit ...      | answers of run 2 |
    thread           run 1 | run 2                       | run 3 ...
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

from normfold.serving.errors import QueueFull, Unavailable
from normfold.serving.rpc import caller
from normfold.serving.scheduling.admission import LONGEST_RETRY, SHORTEST_RETRY, ModelLoad
from normfold.serving.scheduling.batching import BatchPolicy
from normfold.serving.scheduling.executing import execute, have_rows, without_rows
from normfold.serving.scheduling.inline import RunTime, RunTimes
from normfold.serving.scheduling.queues import Array, Feeds, Job, Queues
from normfold.serving.scheduling.running import MARK, Ran, Run, Running, Stoppable, unstoppable
from normfold.serving.scheduling.statistics import RequestTiming, Statistics


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
        on_alone: Callable[[Iterable[str]], None] | None = None,
    ) -> None:
        """``on_alone`` is called on any thread with the outputs for which requests are found to have to run alone."""
        self._on_alone = on_alone
        self._stoppable = stoppable or unstoppable(run)
        self._running: set[Running] = set()
        self._run, self._policy, self._executor, self._statistics = run, policy, executor, statistics
        self._free = instances
        #: The requests under way for this version; the door of the server counts them.
        self.load = ModelLoad(instances, policy.max_rows)
        #: How long runs take, which decides which of them stay on the event loop.
        self.times = RunTimes() if times is None else times
        self._turn = self.times.turn
        self._queues = Queues(policy)
        self._timer: asyncio.TimerHandle | None = None

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
        policy = self._policy.queue(level)
        connection = caller.connection()
        if policy.max_size and self._queues.size(level) >= policy.max_size:
            self._make_place(level, connection)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[list[Array], RequestTiming]] = loop.create_future()
        job = Job(feeds, rows, tuple(outputs), level, time.perf_counter_ns(), future, run_time, connection)
        job.behind, job.mark = self.load.under_way.requests - 1, MARK.get()
        if self._policy.max_rows > 1:
            job.key = tuple((name, array.shape[1:]) for name, array in sorted(feeds.items()))
        self._queues.add(job)
        self._dispatch(loop)
        wait_us = policy.wait_us(timeout_us)
        expiry = loop.call_later(wait_us / 1e6, self._expire, job, policy.delay) if wait_us else None
        try:
            return await job.future
        finally:
            if expiry is not None:
                expiry.cancel()
            if job.future.cancelled():
                self._gave_up(job)

    def _gave_up(self, job: Job) -> None:
        """Nobody waits for the answer to ``job`` any more."""
        if self._queues.remove(job):
            # it waited at least so long; without those that gave up, the waits would look short
            self.load.waited((time.perf_counter_ns() - job.arrived_ns) / 1e9, job.behind)
        elif job.running is not None:
            job.running.left()

    def _make_place(self, level: int, connection: object) -> None:
        """Refuse the last request of the connection that has most of a full queue. Raises QueueFull if it is ours."""
        retry = min(max(self.load.wait_seconds, SHORTEST_RETRY), LONGEST_RETRY)
        displaced = self._queues.displaced(level, connection)
        if displaced is None:
            raise QueueFull("Exceeds maximum queue size", retry)
        if not displaced.future.done():
            displaced.future.set_exception(QueueFull("Exceeds maximum queue size", retry))

    def stop(self) -> None:
        """End the runs under way; their requests get the error of a run that was stopped."""
        for running in list(self._running):
            running.stop()

    @property
    def free(self) -> int:
        """The instances that have nothing to run."""
        return self._free

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a run."""
        return self._queues.waiting

    def may_run_first(self, run_time: RunTime) -> bool:
        """Whether a request that has just come may run at once, before others whose turn has not come yet."""
        return self.may_run_now(run_time) and not (self._policy.in_order and self.load.under_way.requests)

    def may_run_now(self, run_time: RunTime) -> bool:
        """Whether a request may run on the event loop at once: its run is short, and no other request waits."""
        # While an instance is free nothing waits, unless a batch may wait for more requests.
        return (
            (run_time.inline or run_time.tries_again())
            and self._free > 0
            and not self._policy.max_delay_us
            and not self._turn.is_over
        )

    def ran_now(self, run_time: RunTime, ns: int) -> None:
        """Learn from a run on the event loop that took ``ns`` nanoseconds."""
        run_time.note(ns)
        self._turn.spend(ns)

    def _run_now(
        self, feeds: Feeds, rows: int, outputs: Sequence[str], run_time: RunTime
    ) -> tuple[list[Array], RequestTiming] | None:
        if not self.may_run_now(run_time):
            return None
        started = time.perf_counter_ns()
        answer = self._run(feeds, outputs)
        if not have_rows(answer, rows):
            self.run_alone(without_rows(dict(zip(outputs, answer, strict=True)), rows))
        infer_ns = time.perf_counter_ns() - started
        self.ran_now(run_time, infer_ns)
        self._statistics.ran(rows, 0, infer_ns, 0)
        return answer, RequestTiming(0, 0, infer_ns, 0)

    def _expire(self, job: Job, delay: bool) -> None:
        """``job`` waited too long: refuse it, or with ``delay`` put it behind all others of its level."""
        if self._queues.expire(job, delay) and not delay and not job.future.done():
            job.future.set_exception(Unavailable("Request timeout expired"))

    # on the event loop

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start runs as long as an instance is free and a batch is due."""
        while self._free:
            batch, left_ns = self._queues.take(time.perf_counter_ns(), self._begin)
            if not batch:
                if left_ns:
                    self._look_again(loop, left_ns)
                return
            self._free -= 1
            if batch[0].running is None:
                ran = self._execute(batch, self._run)
                self._turn.spend(time.perf_counter_ns() - ran[0].started_ns)
                self._learn(batch, ran)
                self._finish(batch, ran)
                self._free += 1
            else:
                self._executor.submit(self._work, loop, batch)

    def _look_again(self, loop: asyncio.AbstractEventLoop, left_ns: int) -> None:
        """Dispatch once the batch that may wait for more requests has waited enough."""
        if self._timer:
            self._timer.cancel()
        self._timer = loop.call_later(left_ns / 1e9, self._dispatch, loop)

    def _begin(self, batch: list[Job]) -> None:
        if self._turn.is_over or not self._time_of(batch).inline:
            self._begin_elsewhere(batch)

    def _ran(self, loop: asyncio.AbstractEventLoop, batch: list[Job], ran: list[Ran], ended: bool) -> None:
        """A run on another thread has ended; ``ended``: and its instance is free."""
        if (running := batch[0].running) is not None:
            self._running.discard(running)
        self._learn(batch, ran)
        self._finish(batch, ran)
        if ended:
            self._free += 1
            self._dispatch(loop)

    def _learn(self, batch: list[Job], ran: list[Ran]) -> None:
        """Let the door know how long requests take, and wait."""
        took_ns = sum([one.input_ns + one.infer_ns + one.output_ns for one in ran])
        self.load.ran(took_ns / 1e9, len(batch), len(ran))
        self.load.waited((ran[0].started_ns - batch[0].arrived_ns) / 1e9, batch[0].behind)

    def _finish(self, batch: list[Job], ran: list[Ran]) -> None:
        """Hand out the answers and count the runs."""
        if len(ran) == 1 and not isinstance(ran[0].answers[0], Exception):
            self._time_of(batch).note(ran[0].infer_ns)
        answers: list[tuple[list[Array] | Exception, Ran]] = []
        marks = [job.mark for job in batch if job.mark is not None]
        if marks and len(ran) == 1:
            marks[0].ran(ran[0], marks[1:])
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

    def _time_of(self, batch: list[Job]) -> RunTime:
        """How long a run of the whole ``batch`` takes."""
        return (
            batch[0].run_time if len(batch) == 1 else self.times.of_rows(batch[0].feeds, sum([j.rows for j in batch]))
        )

    # on any thread

    def run_alone(self, outputs: Iterable[str]) -> None:
        """From now on a request for one of ``outputs`` runs alone: these do not have the rows of the inputs."""
        if new := self._queues.run_alone(outputs):
            self.load.alone()
            if self._on_alone is not None:
                self._on_alone(new)

    def _execute(self, batch: list[Job], run: Run) -> list[Ran]:
        ran = execute(batch, run)
        if odd := {name for one in ran for name in one.odd}:
            self.run_alone(odd)
        return ran

    def _begin_elsewhere(self, batch: list[Job]) -> None:
        run, stop = self._stoppable()
        running = Running(run, stop, len(batch))
        for job in batch:
            job.running = running
        self._running.add(running)

    def _work(self, loop: asyncio.AbstractEventLoop, batch: list[Job]) -> None:
        """Run ``batch``, then let the next one follow; behind the runs of other models, which take their turns."""
        running = batch[0].running
        assert running is not None
        ran = self._execute(batch, running.run)
        following, _ = self._queues.take(time.perf_counter_ns(), self._begin_elsewhere)
        with contextlib.suppress(RuntimeError):  # the server has ended, and nobody waits for an answer
            loop.call_soon_threadsafe(self._ran, loop, batch, ran, not following)
            if following:
                self._executor.submit(self._work, loop, following)
