"""A call with a stream of messages, from the client, from the server or both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from normfold.serving.errors import InvalidRequest, Status
from normfold.serving.frontends.http2.call import UNTAKEN, CallOwner
from normfold.serving.frontends.http2.limits import CallFault
from normfold.serving.frontends.http2.queued_call import QueuedCall
from normfold.serving.frontends.http2.requests import Asked
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.methods import Method


class StreamCall(QueuedCall):
    """A call whose method takes an iterator over the client's messages: this call itself."""

    __slots__ = ("_waiter",)

    def __init__(self, connection: CallOwner, number: int, asked: Asked, method: Method) -> None:
        super().__init__(connection, number, asked, method)
        self._waiter: asyncio.Future[None] | None = None
        self._task = asyncio.ensure_future(self._run())

    def received(self, data: bytes, begin: int, end: int) -> None:
        """Queue the messages that end in the data for the method."""
        found = self._put(data, begin, end)
        if found is None:
            return
        self.grant(self._unread)
        if self._waiter is not None and not self._waiter.done() and (found or self.request_ended):
            self._waiter.set_result(None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._queue:  # it would take them all before anything else runs
            await self._own_turn()
        while not self._queue:
            if self._all_there:
                if self.method.server_stream is not None:
                    raise InvalidRequest("a call without a message")
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._queue.popleft()
        data = message if isinstance(message, bytes) else await self._whole(message)
        self._take(message)
        self.grant(self._unread)
        self.connection.flush_soon()
        return data

    async def _own_turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()

        def step(most: int) -> int:
            if turn.done():
                return 0
            turn.set_result(None)
            return most  # the method takes the message, and nobody knows how long that takes

        self.connection.steps.add(step)
        await turn

    async def _run(self) -> None:
        method, traffic = self.method, self.service.traffic
        CALLER.set(self)
        try:
            await self._send(method.answers(traffic.requests(self) if method.counted else self))
        except CallFault as error:
            self._task = None
            self.end(error.status, str(error))
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
            if not connection.sender.fits(self, len(data)):
                raise CallFault(Status.RESOURCE_EXHAUSTED, UNTAKEN)
            connection.sender.message(self, data)
            connection.fruitful()
            connection.flush_soon()
            while connection.sender.waits(self) or connection.choked:
                await connection.drained()
