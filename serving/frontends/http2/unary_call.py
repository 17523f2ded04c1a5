"""A unary call: one message each way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from normfold.serving.errors import Overloaded, Status
from normfold.serving.frontends.http2.call import CUT, UNTAKEN, CallOwner, ServerCall
from normfold.serving.frontends.http2.joining import Later
from normfold.serving.frontends.http2.limits import CallFault
from normfold.serving.frontends.http2.messages import PREFIX_BYTES
from normfold.serving.frontends.http2.refused_again import RefusedAgain
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.methods import DOOR_BYTES, Method
from normfold.serving.rpc.pieces import Answer

#: An answer of this size is written as soon as it is queued, in bytes.
LARGE_BYTES = 1 << 16


class UnaryCall(ServerCall):
    """One message each way."""

    __slots__ = ("_found",)

    def __init__(self, connection: CallOwner, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        self._found: bytes | Later | None = None

    def received(self, data: bytes, begin: int, end: int) -> None:
        """Ask the method once the message is complete and the request has ended."""
        message = begin + PREFIX_BYTES
        if self._reader is None and message <= end and data[begin] == 0:
            again = self.connection.again
            if again is not None and again.is_like(self.asked, data, begin, end):
                self._end_refused(again)
                return
            size = int.from_bytes(data[begin + 1 : message], "big")
            if self.request_ended and size == end - message and size <= self.service.max_message_bytes:
                self._ask(data[message:end])
                return
            if (
                self.method.door is not None
                and not self.request_ended
                and DOOR_BYTES <= size <= self.service.max_message_bytes
                and end - message >= DOOR_BYTES
                and self._is_refused(data[message : message + DOOR_BYTES], size)
            ):
                return
        if self._found is None:  # all data behind the first message are ignored, as grpcio does
            found = self.messages(data, begin, end)
            if found is None:
                return
            self._found = found[0] if found else None
        if not self.request_ended:
            waiting = len(self._found) if self._found is not None else 0
            if self.hold(waiting + (self._reader.held if self._reader is not None else 0)):
                self.grant(0)
        elif self._found is None:
            self.end(Status.INTERNAL, CUT if self.within else "a unary call without a message")
        else:
            whole, self._found = self._found, None
            if isinstance(whole, bytes):
                self.connection.release(self.number)
                self._ask(whole)
            else:
                self._complete(whole)

    def _complete(self, message: Later) -> None:
        try:
            data = message.start()
        except CallFault as error:
            self.end(error.status, str(error))
            return
        if data is not None:
            self.connection.release(self.number)
            self._ask(data)
        elif self.hold(len(message) + message.size):
            self._task = asyncio.ensure_future(self._complete_rest(message))

    async def _complete_rest(self, message: Later) -> None:
        try:
            data = await message.rest(self.hold)
        except CallFault as error:
            self._task = None
            self.end(error.status, str(error))
        except Exception as error:  # no memory, or no thread
            self._task = None
            self.fail(error)
        else:
            self._task = None
            self.connection.release(self.number)
            self._ask(data)
            self.connection.flush_soon()

    def _ask(self, data: bytes) -> None:
        answered: bytes | Awaitable[Answer]
        CALLER.set(self)
        try:
            answered = self.method.answer(data)
        except Overloaded as error:
            self._refuse(data, len(data), error)
            return
        except Exception as error:
            self.fail(error)
            return
        if isinstance(answered, bytes):
            self._answer(answered)
        else:
            self._task = asyncio.ensure_future(answered)
            self._task.add_done_callback(self._answered)

    def _is_refused(self, head: bytes, size: int) -> bool:
        """Whether the message of ``size`` bytes that begins with ``head`` would be refused; then it is now."""
        assert self.method.door is not None
        before = CALLER.set(self)
        try:
            self.method.door(head, size)
        except Overloaded as error:
            self._refuse(head, size, error)
            return True
        finally:
            CALLER.reset(before)  # the context stays, and would keep the call with what comes of its request
        return False

    def _refuse(self, head: bytes, size: int, error: Overloaded) -> None:
        """End the call; let the rest of the turn's requests that are like this one end so, too."""
        connection = self.connection
        if error.alike and self._until is None and self.service.log is None:
            if connection.again is not None:
                connection.again.settle(self.service.traffic, connection.fruitful)
            begin = b"\0" + size.to_bytes(4, "big") + head[: error.alike]
            connection.again = RefusedAgain(self.method, self.asked, begin, error)
        self.fail(error)

    def _end_refused(self, again: RefusedAgain) -> None:
        self.cancel()
        self.connection.sender.end(self, again.refusal())
        self.connection.close(self)

    def _answered(self, task: asyncio.Future[Answer]) -> None:
        self._task = None
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

    def _answer(self, data: Answer) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connection = self.connection
        if connection.sender.answer(self, data):
            connection.close(self)
            if len(data) >= LARGE_BYTES:  # at once, so that the next answers wait if the socket takes no more
                connection.flush()
        else:
            self.end(Status.RESOURCE_EXHAUSTED, UNTAKEN)
