"""One call on its stream: messages to a method, its answers back, its deadline, its status."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpc import StatusCode

from normfold.serving.errors import InvalidRequest
from normfold.serving.frontends.http2.messages import PREFIX_BYTES, MessageReader, Misframed
from normfold.serving.frontends.http2.requests import DONE, STARTED, Asked, Requests, ended
from normfold.serving.rpc.methods import Method, told
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.service.health import SERVICE as HEALTH

if TYPE_CHECKING:
    from normfold.serving.frontends.http2.connection import Connection

#: Data of a stream that the client may send before they are looked at.
WINDOW_BYTES = 1 << 20


@dataclass(frozen=True)
class Service:
    """What all connections of a server share."""

    requests: Requests
    traffic: Traffic
    max_message_bytes: int


class Call:
    """What unary calls and streams have in common; ``received`` and ``closed`` are theirs."""

    __slots__ = (
        "_reader",
        "_started",
        "_task",
        "_timer",
        "asked",
        "connection",
        "credit",
        "method",
        "number",
        "request_ended",
        "service",
        "window",
    )

    def __init__(self, connection: Connection, number: int, asked: Asked, method: Method) -> None:
        self.connection, self.number, self.asked, self.method = connection, number, asked, method
        self.service = connection.service
        #: Data that the client takes, and that it may send.
        self.window, self.credit = connection.sender.initial, WINDOW_BYTES
        self.request_ended = False
        self._reader: MessageReader | None = None
        self._task: asyncio.Future[bytes] | asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._started = False

    def received(self, data: bytes, begin: int, end: int) -> None:
        """Take ``data[begin:end]``; ``request_ended`` says whether they are the last."""
        raise NotImplementedError

    def hurry(self) -> None:
        """Start the clock of the deadline."""
        if self.asked.timeout is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.asked.timeout, self._expire)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def fail(self, error: Exception) -> None:
        """End the call with the status of ``error``."""
        self.end(*told(error, self.method.path))

    def end(self, status: StatusCode, details: str = "") -> None:
        """End the call with a status."""
        block = ended(status, details) if details else DONE if status is StatusCode.OK else ended(status)
        self.cancel()
        self.connection.sender.end(self, block if self._started else STARTED + block)
        self.connection.close(self)

    def messages(self, data: bytes, begin: int, end: int) -> list[bytes] | None:
        """The messages that end in ``data[begin:end]``; None where they end the call."""
        reader = self._reader
        if reader is None:
            reader = self._reader = MessageReader(self.asked.encoding, self.service.max_message_bytes)
        try:
            found = reader.feed(data[begin:end])
        except Misframed as error:
            self.end(error.status, str(error))
            return None
        if self.request_ended and reader.within:
            self.end(StatusCode.INTERNAL, "the data end within a message")
            return None
        return found

    def grant(self, unread_bytes: int) -> None:
        """Let the client send more: what is missing of a message, and up to a window beyond what is not read yet."""
        missing = self._reader.missing if self._reader is not None else 0
        wanted = max(WINDOW_BYTES - unread_bytes, missing if unread_bytes < WINDOW_BYTES else 0)
        behind = wanted - self.credit
        if not self.request_ended and (behind > WINDOW_BYTES // 2 or (behind > 0 and self.credit < missing)):
            self.connection.grant(self, behind)

    def _expire(self) -> None:
        self.end(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")


class UnaryCall(Call):
    """One message each way."""

    __slots__ = ("_counted", "_found")

    def __init__(self, connection: Connection, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        self._found: bytes | None = None
        self._counted = method.service != HEALTH

    def received(self, data: bytes, begin: int, end: int) -> None:
        """Ask the method once the message is there and the request has ended."""
        message = begin + PREFIX_BYTES
        if self.request_ended and self._reader is None and message <= end and data[begin] == 0:
            size = int.from_bytes(data[begin + 1 : message], "big")
            if size == end - message and size <= self.service.max_message_bytes:
                self._ask(data[message:end])
                return
        for found in self.messages(data, begin, end) or ():
            if self._found is not None:
                self.end(StatusCode.INTERNAL, "a unary call with more than one message")
                return
            self._found = found
        if self.number not in self.connection.calls:
            return
        if not self.request_ended:
            self.grant(0)
        elif self._found is None:
            self.end(StatusCode.INTERNAL, "a unary call without a message")
        else:
            self._ask(self._found)

    def _ask(self, data: bytes) -> None:
        traffic = self.service.traffic
        try:
            if self._counted:
                traffic.enter()
        except Exception as error:
            self.fail(error)
            return
        answered: bytes | Awaitable[bytes]
        try:
            answered = self.method.answer(data)
        except Exception as error:
            if self._counted:
                traffic.leave()
            self.fail(error)
            return
        if isinstance(answered, bytes):
            if self._counted:
                traffic.leave()
            self._answer(answered)
        else:
            self._task = asyncio.ensure_future(answered)
            self._task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Future[bytes]) -> None:
        if self._counted:
            self.service.traffic.leave()
        if task.cancelled():
            return
        error = task.exception()
        if self.number not in self.connection.calls:
            return
        if error is None:
            self._answer(task.result())
        elif isinstance(error, Exception):
            self.fail(error)
        else:
            raise error

    def _answer(self, data: bytes) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.connection.sender.answer(self, data)
        self.connection.close(self)


class StreamCall(Call):
    """Messages both ways, or one from the client and any number back; an iterator over the client's."""

    __slots__ = ("_queue", "_unread", "_waiter")

    def __init__(self, connection: Connection, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        self._queue: deque[bytes] = deque()
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self._task = asyncio.ensure_future(self._run())

    def received(self, data: bytes, begin: int, end: int) -> None:
        """Hand on the messages that end here."""
        found = self.messages(data, begin, end)
        if found is None:
            return
        self._queue += found
        self._unread += sum(map(len, found))
        self.grant(self._unread)
        if self._waiter is not None and not self._waiter.done() and (found or self.request_ended):
            self._waiter.set_result(None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._queue:
            if self.request_ended:
                if self.method.server_stream is not None:
                    raise InvalidRequest("a call without a message")
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._queue.popleft()
        self._unread -= len(message)
        self.grant(self._unread)
        self.connection.flush_soon()
        return message

    async def _run(self) -> None:
        method, traffic = self.method, self.service.traffic
        try:
            if method.server_stream is not None:
                await self._send(method.answers(self))
            else:
                with traffic.call():
                    await self._send(method.answers(traffic.requests(self)))
        except Exception as error:
            self._task = None
            self.fail(error)
        else:
            self._task = None
            self.end(StatusCode.OK)

    async def _send(self, answers: AsyncIterator[bytes]) -> None:
        connection = self.connection
        async for data in answers:
            if not self._started:
                self._started = True
                connection.sender.start(self)
            connection.sender.message(self, data)
            connection.flush_soon()
            while connection.sender.waits(self) or connection.choked:
                await connection.drained()
