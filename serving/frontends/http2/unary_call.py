"""A unary call: one message each way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from normfold.serving.errors import Status
from normfold.serving.frontends.http2.call import CallOwner, ServerCall
from normfold.serving.frontends.http2.messages import PREFIX_BYTES
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.rpc.methods import Method


class UnaryCall(ServerCall):
    """One message each way."""

    __slots__ = ("_counted", "_found")

    def __init__(self, connection: CallOwner, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        self._found: bytes | None = None
        self._counted = method.counted

    def received(self, data: bytes, begin: int, end: int) -> None:
        """Ask the method once the message is complete and the request has ended."""
        message = begin + PREFIX_BYTES
        if self.request_ended and self._reader is None and message <= end and data[begin] == 0:
            size = int.from_bytes(data[begin + 1 : message], "big")
            if size == end - message and size <= self.service.max_message_bytes:
                self._ask(data[message:end])
                return
        for found in self.messages(data, begin, end) or ():
            if self._found is not None:
                self.end(Status.INTERNAL, "a unary call with more than one message")
                return
            self._found = found
        if self.number not in self.connection.calls:
            return
        if not self.request_ended:
            self.grant(0)
        elif self._found is None:
            self.end(Status.INTERNAL, "a unary call without a message")
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
