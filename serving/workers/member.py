"""A worker's side of the connection to its supervisor."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from google.protobuf.message import Message

from normfold.protos import grpc_service as pb
from normfold.serving import errors
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.errors import InternalError, ServingError, Unavailable
from normfold.serving.rpc.methods import Method, parse, status_of
from normfold.serving.rpc.traffic import EXITING
from normfold.serving.workers.frames import Frame, Link
from normfold.serving.workers.shared import CHANGES, QUESTIONS, changes

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What one worker says; ``error`` is the name of an error's class, or empty."""

    worker: int
    error: str
    details: str
    data: bytes

    def raise_error(self) -> None:
        """Raise what the worker raised, if it did."""
        if self.error:
            kind: type[ServingError] = getattr(errors, self.error)
            raise kind(self.details)


class Member:
    """One of the workers of a server, connected to the others."""

    def __init__(self, number: int, link: Link) -> None:
        self._number, self._link = number, link
        self._own: dict[str, Method] = {}
        self._asked: dict[int, asyncio.Future[tuple[list[Answer], list[bytes]]]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        #: The counters of each model version when the supervisor was last told of them.
        self._reported: dict[tuple[str, str], tuple[int, ...]] = {}
        #: Set when the supervisor says that clients may come.
        self.listen = asyncio.Event()

    def shared(self, methods: list[Method]) -> list[Method]:
        """``methods`` with those that concern all workers passed on to all."""
        self._own = {method.path: method for method in methods if method.name in CHANGES or method.name in QUESTIONS}
        return [
            dataclasses.replace(method, unary=None, wire_unary=self._passing_on(method))
            if method.path in self._own
            else method
            for method in methods
        ]

    def _passing_on(self, method: Method) -> Callable[[bytes], Awaitable[bytes]]:
        async def answer(data: bytes) -> bytes:
            changed = changes(method.name, parse(method.request, data))
            if not changed and method.name not in QUESTIONS:
                return await _alone(method, data)
            number = next(self._numbers)
            future = self._asked[number] = asyncio.get_running_loop().create_future()
            kept = [each.request.SerializeToString() for each in changed if each.request is not None]
            self._link.say(
                "ask",
                *(data, *kept),
                id=number,
                method=method.path,
                change=bool(changed),
                remember=[[each.key, each.request is not None] for each in changed],
            )
            return self._agreed(method, *await future)

        return answer

    def _agreed(self, method: Method, answers: list[Answer], absent: list[bytes]) -> bytes:
        """The one answer of all. Raises what was raised."""
        own = next((answer for answer in answers if answer.worker == self._number), None)
        if own is None:
            raise Unavailable(EXITING)
        own.raise_error()
        others = [answer for answer in answers if answer is not own]
        if method.name in QUESTIONS:
            response = parse(_response(method), own.data)
            said = [answer.data for answer in others if not answer.error]
            return QUESTIONS[method.name](response, said, absent).SerializeToString()
        for answer in others:
            if answer.error:
                log.error("%s: worker %d could not do what others did", method.path, answer.worker)
            answer.raise_error()
        return own.data

    def tell_readiness(self, catalog: Catalog, strict: bool) -> None:
        """Tell the supervisor whether this worker's models are ready, now and whenever that changes."""
        said: list[bool] = [False]

        def say() -> None:
            ready = catalog.loaded(strict)
            if ready != said[-1]:
                said[:] = [ready]
                self._link.say("ready", ready=ready)

        catalog.others_ready = False
        catalog.on_change(say)

    async def attend(self, catalog: Catalog) -> None:
        """Do what the supervisor says, until it is gone."""
        while (frame := await self._link.hear()) is not None:
            fields = frame.fields
            if frame.kind == "call":
                task = asyncio.create_task(self._do(frame, catalog))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif frame.kind == "answers":
                self._answered(frame)
            elif frame.kind == "others":
                catalog.others_ready = fields["ready"]
                catalog.changed()
            elif frame.kind == "restore":
                _restore(catalog, frame.parts)
            elif frame.kind == "listen":
                self.listen.set()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(Unavailable(EXITING))

    def _answered(self, frame: Frame) -> None:
        """All that were asked have answered; behind their answers are the counters of workers that are gone."""
        said = frame.fields["answers"]
        answers = [
            Answer(number, error, details, data)
            for (number, error, details), data in zip(said, frame.parts, strict=False)
        ]
        future = self._asked.pop(frame.fields["id"])
        if not future.done():  # the client may have left
            future.set_result((answers, frame.parts[len(said) :]))

    async def _do(self, frame: Frame, catalog: Catalog) -> None:
        """Do what all are asked to do, and say how it went."""
        method = self._own[frame.fields["method"]]
        error, details, data = "", "", b""
        try:
            data = await _alone(method, frame.parts[0])
        except ServingError as refusal:
            error, details = type(refusal).__name__, str(refusal)
        except Exception as unexpected:
            error, details = InternalError.__name__, status_of(unexpected, method.path)[1]
        self.report_counters(catalog)  # first: what a client is told of is never lost again
        self._link.say("answer", data, id=frame.fields["id"], error=error, details=details)

    def report_counters(self, catalog: Catalog) -> None:
        """Tell the supervisor the counters that have changed, for whoever comes after this worker."""
        for entry in catalog.entries.values():
            for model in entry.ready:
                key, counters = (model.name, str(model.version)), model.statistics
                mark = (counters.executions, counters.success.count, counters.fail.count)
                if self._reported.get(key, (0, 0, 0)) != mark:
                    self._reported[key] = mark
                    data = counters.message(*key).SerializeToString()
                    self._link.say("counters", data, model=key[0], version=key[1])


async def _alone(method: Method, data: bytes) -> bytes:
    """The answer of this worker for itself."""
    assert method.unary is not None
    response: Message = await method.unary(parse(method.request, data))
    return response.SerializeToString()


def _restore(catalog: Catalog, counters: list[bytes]) -> None:
    """Go on counting where the worker before this one ended."""
    for data in counters:
        message = pb.ModelStatistics.FromString(data)
        for model in catalog.entries[message.name].ready if message.name in catalog.entries else ():
            if str(model.version) == message.version:
                model.statistics.add(message)


def _response(method: Method) -> type[Any]:
    kind: type[Any] = getattr(pb, f"{method.name}Response")
    return kind
