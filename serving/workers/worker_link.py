"""A worker's side of the connection to its supervisor."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from google.protobuf.message import Message

from normfold.protos import metrics as mx
from normfold.serving import errors
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.following import served
from normfold.serving.catalog.served import ServedModel
from normfold.serving.errors import InternalError, ServingError, Unavailable
from normfold.serving.rpc.methods import LOOP_BYTES, MAX_DETAILS, Method, status_of
from normfold.serving.rpc.traffic import EXITING
from normfold.serving.service.polling import SERVICE as REPOSITORY
from normfold.serving.service.snapshot import Snapshots
from normfold.serving.workers.frames import WorkerEnd
from normfold.serving.workers.messages import (
    AllAnswered,
    AskAll,
    CountersChanged,
    Failing,
    InService,
    Looked,
    LookForChanges,
    LookNow,
    ModelsReady,
    Perform,
    Performed,
    Ping,
    Pong,
    Remember,
    RestoreCounters,
    Serve,
    ServerReady,
    StartListening,
    WorkerAnswer,
)
from normfold.serving.workers.shared_methods import CHANGES, QUESTIONS, changes

log = logging.getLogger(__name__)


class WorkerLink:
    """Connects a worker to the other workers of its server, through the supervisor."""

    def __init__(self, worker: int, link: WorkerEnd) -> None:
        self._worker, self._link = worker, link
        #: The methods that concern all workers, as this worker alone answers them.
        self._own: dict[str, Method] = {}
        self._asked: dict[int, asyncio.Future[AllAnswered]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        #: The counters of each model version, and with empty names those of the process, as the supervisor has them.
        self._reported: dict[tuple[str, str], tuple[int, ...]] = {}
        #: Set when the supervisor has said what to load.
        self.may_load = asyncio.Event()
        #: Set when the supervisor says that clients may come.
        self.listen = asyncio.Event()
        #: The models that the others serve, or served last, and that this worker does not: a sentence for each.
        self.lost: dict[str, str] = {}
        #: Whether it must not listen without them.
        self.must_have_all = False

    def share(self, methods: list[Method]) -> list[Method]:
        """``methods``, in which those that concern all workers ask all workers."""
        self._own = {method.path: method for method in methods if method.name in CHANGES or method.name in QUESTIONS}
        return [
            dataclasses.replace(method, unary=None, wire_unary=self._asking_all(method))
            if method.path in self._own
            else method
            for method in methods
        ]

    def _asking_all(self, method: Method) -> Callable[[bytes], Awaitable[bytes]]:
        async def answer(data: bytes) -> bytes:
            request = await method.read(data)
            changed = changes(method.name, request)
            if not changed and method.name not in QUESTIONS:
                return await _alone(method, data)
            if not self.listen.is_set():
                raise Unavailable("the server starts: its workers cannot be asked yet")
            number = next(self._numbers)
            future = self._asked[number] = asyncio.get_running_loop().create_future()
            remember = tuple(
                # a load may bring files of any size: it is passed on as it came
                Remember(each.key, data if each.request is request else _serialized(each.request))
                for each in changed
            )
            self._link.send(AskAll(number, method.path, data, bool(changed), remember))
            return self._one_answer(method, await (future if len(data) <= LOOP_BYTES else _ended(future)))

        return answer

    def _one_answer(self, method: Method, answered: AllAnswered) -> bytes:
        """The one answer to the client, made of the answers of all workers. Raises the error of a worker."""
        own = next((answer for answer in answered.answers if answer.worker == self._worker), None)
        if own is None:  # the supervisor waits no longer than QUESTION_SECONDS or INDEX_SECONDS
            raise Unavailable(f"{method.name} takes too long, as it does while a disk hangs; try again later")
        _raise_error(own)
        others = [answer for answer in answered.answers if answer is not own]
        if method.name in QUESTIONS:
            question = QUESTIONS[method.name]
            answers = [answer.answer for answer in others if not answer.error]
            return question.sum_up(
                question.response.FromString(own.answer), answers, answered.absent
            ).SerializeToString()
        for answer in others:
            if answer.error and not method.path.startswith(f"/{REPOSITORY}/"):  # which says it once, and tries again
                log.error("%s: worker %d could not do what others did", method.path, answer.worker)
            _raise_error(answer, f" (in worker {answer.worker})")
        return own.answer

    def report_readiness(self, catalog: Catalog, strict: bool) -> None:
        """Report to the supervisor whenever this worker's models become ready, or no longer are."""
        reported = False

        def report() -> None:
            nonlocal reported
            ready = catalog.loaded(strict)
            if ready != reported:
                reported = ready
                self._link.send(ModelsReady(ready))

        catalog.others.ready = False
        catalog.on_change(report)

    def report_service(self, catalog: Catalog) -> None:
        """Report to the supervisor which versions this worker serves, whenever that changes."""
        reported: tuple[ServedModel, ...] = ()

        def report() -> None:
            nonlocal reported
            now = tuple(served(catalog.entries))
            if now != reported:
                reported = now
                self._link.send(InService(now))

        catalog.on_change(report)

    async def attend(
        self,
        catalog: Catalog,
        snapshots: Snapshots,
        look: Callable[[Sequence[str]], None],
        look_now: Callable[[Callable[[], None]], None],
    ) -> None:
        """Do what the supervisor asks for, until it closes the connection.

        ``look`` starts to look for changes, after a load of the models that it is given; ``look_now`` looks as soon as
        possible, and calls what it is given then.
        """
        while (message := await self._link.receive()) is not None:
            match message:
                case Perform():
                    task = asyncio.create_task(self._perform(message, catalog, snapshots))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case AllAnswered():
                    future = self._asked.pop(message.number)
                    if not future.done():  # the client may have left
                        future.set_result(message)
                case ServerReady():
                    catalog.others.ready = message.ready
                    catalog.changed()
                case Failing():
                    catalog.hear(dict(message.versions), message.loaded)
                case RestoreCounters():
                    self._restore(message, catalog, snapshots)
                case Serve():
                    catalog.following.follow(message.models)
                    self.may_load.set()
                case Ping():
                    self._link.send(Pong())
                case StartListening():
                    self.lost, self.must_have_all = catalog.following.end(catalog.entries), message.must_have_all
                    catalog.changed()
                    self.listen.set()
                case LookForChanges():
                    look(message.unlike)
                case LookNow():
                    look_now(partial(self._link.send, Looked(message.number)))
        for future in self._asked.values():
            if not future.done():
                future.set_exception(Unavailable(EXITING))

    async def _perform(self, asked: Perform, catalog: Catalog, snapshots: Snapshots) -> None:
        """Carry out a request that all workers get, and report the answer."""
        method = self._own[asked.method]
        error, details, data = "", "", b""
        try:
            data = await _alone(method, asked.request)
        except ServingError as refusal:
            error, details = _class_name(refusal), str(refusal)[:MAX_DETAILS]
        except Exception as unexpected:
            error, details = InternalError.__name__, status_of(unexpected, method.path)[1]
        # Before the answer: a number that a client has seen must outlive this worker.
        self.report_counters(catalog, snapshots)
        self._link.send(Performed(asked.number, WorkerAnswer(self._worker, error, details, data)))

    def _restore(self, message: RestoreCounters, catalog: Catalog, snapshots: Snapshots) -> None:
        """Count on from the predecessor's counters; the supervisor forgets those of models that are not served now."""
        for data in message.counters:
            counters = mx.SnapshotResponse.FromString(data)
            snapshots.restore(counters)
            self._reported |= {(one.statistics.name, one.statistics.version): () for one in counters.models}
        self.report_counters(catalog, snapshots)

    def report_counters(self, catalog: Catalog, snapshots: Snapshots) -> None:
        """Report the counters that have changed to the supervisor, which keeps them for this worker's successor.

        Those of a version that is unloaded are reported as empty: it counts from 0 when it is loaded again.
        """
        gone = self._reported.keys() - {("", "")}
        for entry in catalog.entries.values():
            if not entry.versions and not entry.kept:  # most of thousands of lazy models
                continue
            for model in entry.ready:
                key, counters = (model.name, str(model.version)), model.statistics
                gone.discard(key)
                mark = (counters.executions, counters.success.count, counters.fail.count)
                if self._changed(key, mark):
                    self._report(key, mx.SnapshotResponse(models=[counters.snapshot(*key)]))
            for kept in entry.kept.values():
                one = kept.statistics
                gone.discard((one.name, one.version))
                mark = (one.execution_count, one.inference_stats.success.count, one.inference_stats.fail.count)
                if self._changed((one.name, one.version), mark):
                    self._report((one.name, one.version), mx.SnapshotResponse(models=[kept]))
        for key in gone:
            del self._reported[key]
            self._report(key, mx.SnapshotResponse())
        calls = snapshots.failed_calls()
        if self._changed(("", ""), tuple(row.count for row in calls)):
            self._report(("", ""), mx.SnapshotResponse(failed_calls=calls))

    def _changed(self, key: tuple[str, str], mark: tuple[int, ...]) -> bool:
        before = self._reported.get(key, (0,) * len(mark))
        self._reported[key] = mark
        return mark != before

    def _report(self, key: tuple[str, str], counters: mx.SnapshotResponse) -> None:
        self._link.send(CountersChanged(*key, counters.SerializeToString()))


def _class_name(error: ServingError) -> str:
    """The name of its class, or of the nearest above it, in ``errors``."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


def _raise_error(answer: WorkerAnswer, where: str = "") -> None:
    """Raise the error that the worker raised, if it did; its message ends with ``where``."""
    if answer.error:
        kind: type[ServingError] = getattr(errors, answer.error)
        raise kind(answer.details + where)


async def _ended(future: asyncio.Future[AllAnswered]) -> AllAnswered:
    """The result of ``future``; whoever is cancelled waits for it all the same, because the workers have the request.

    So a client that leaves and asks again does not send one large request after the other.
    """
    try:
        await asyncio.wait([future])
    except asyncio.CancelledError:
        await asyncio.wait([future])
        future.exception()  # nobody else asks for it
        raise
    return future.result()


def _serialized(request: Message | None) -> bytes | None:
    return None if request is None else request.SerializeToString()


async def _alone(method: Method, data: bytes) -> bytes:
    """The answer of this worker alone."""
    assert method.unary is not None
    response: Message = await method.unary(await method.read(data))
    return response.SerializeToString()
