"""A call with a stream of messages, from the client, from the server or both."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from normfold.serving.errors import InvalidRequest, Status
from normfold.serving.frontends.http2.call import CallOwner, ServerCall
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.rpc.methods import Method


class StreamCall(ServerCall):
    """A call whose method takes an iterator over the client's messages: this call itself."""

    __slots__ = ("_queue", "_unread", "_waiter")

    def __init__(self, connection: CallOwner, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        self._queue: deque[bytes] = deque()
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self._task = asyncio.ensure_future(self._run())

    def received(self, data: bytes, begin: int, end: int) -> None:
        """Queue the messages that end in the data for the method."""
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
            if method.counted:
                with traffic.call():
                    await self._send(method.answers(traffic.requests(self)))
            else:
                await self._send(method.answers(self))
        except Exception as error:
            self._task = None
            self.fail(error)
        else:
            self._task = None
            self.end(Status.OK)

    async def _send(self, answers: AsyncIterator[bytes]) -> None:
        connection = self.connection
        async for data in answers:
            if not self._started:
                self._started = True
                connection.sender.start(self)
            connection.sender.message(self, data)
            connection.fruitful()
            connection.flush_soon()
            while connection.sender.waits(self) or connection.choked:
                await connection.drained()
