"""The connections of an ``AsyncClient`` on one event loop: made when they are needed, replaced when they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from normfold.serving.client.transport import failures
from normfold.serving.client.transport.answers import Reply
from normfold.serving.client.transport.closing import cancelled_here, closed_within
from normfold.serving.client.transport.destination import Endpoint
from normfold.serving.client.transport.dialling import Worked
from normfold.serving.client.transport.looping import AwaitedCall, LoopConnection
from normfold.serving.client.transport.opening import Opening, Pairs
from normfold.serving.client.transport.reaching import reached, reached_unix
from normfold.serving.client.transport.remote_call import RemoteCall, StreamedCall
from normfold.serving.client.transport.retries import Retries
from normfold.serving.client.transport.sharing import MOST_CONNECTIONS
from normfold.serving.errors import Status

if TYPE_CHECKING:
    import ssl

#: The time for a connection, and that for a place for a stream, in seconds. The second is longer: a stream that gets no
#: connection ends with the reason.
_CONNECT_SECONDS, _STREAM_SECONDS = 20.0, 40.0


class LoopConnections:
    """Sends calls of one event loop to one server."""

    def __init__(
        self,
        address: str,
        destination: Endpoint,
        opening: Opening,
        tls: tuple[ssl.SSLContext, str] | None,
        keepalive: float,
        worked: Worked,
    ) -> None:
        """Connect to nothing yet. ``tls``: how, and the name that the server's certificate must have."""
        self._address, self._destination, self._opening, self._tls, self._keepalive, self._worked = (
            address,
            destination,
            opening,
            tls,
            keepalive,
            worked,
        )
        self._loop = asyncio.get_running_loop()
        #: The reply to every call once the client is closed, or is used on another event loop.
        self._end: Reply | None = None
        #: Set once it has an end.
        self._over = asyncio.Event()
        self._connections: list[LoopConnection] = []
        self._dialling: asyncio.Task[Reply | None] | None = None
        #: Those that wait for a call to end, because the server takes no more.
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def call(self, path: str, data: bytes, seconds: float, metadata: Pairs | None = None) -> Reply:
        """The reply to a call of ``path`` with the serialized request ``data``, within ``seconds``."""
        message = self._opening.message(data)
        deadline = self._loop.time() + seconds
        reply = await self._attempt(self._opening.block(path, seconds, metadata), message, deadline)
        if reply.status is Status.OK:
            return reply
        retries = Retries()
        while (pause := retries.pause(path, reply, deadline - self._loop.time())) is not None:
            if await closed_within(self._over, pause) and self._end is not None:
                return self._end
            left = max(deadline - self._loop.time(), 1e-3)
            reply = await self._attempt(self._opening.block(path, round(left, 2) or left, metadata), message, deadline)
        return reply

    async def stream(self, path: str, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes | Reply, None]:
        """Send ``messages``; gives those of the server, and at last the reply with which the stream ended.

        Sends nothing before the first message is there. Closing this iterator cancels the stream.
        """
        first = self._opening.message(await anext(messages))
        found = await self._connection(self._loop.time() + _STREAM_SECONDS)
        if found is failures.EXPIRED:  # a stream has no deadline
            found = failures.full(self._address, _STREAM_SECONDS)
        if isinstance(found, Reply):
            yield found
            return
        came: asyncio.Queue[bytes | Reply] = asyncio.Queue()

        def ended(call: RemoteCall) -> None:
            if call.reply is not None:
                came.put_nowait(call.reply)
            self._wake()

        call = StreamedCall(came.put_nowait, ended)
        found.open(call, self._opening.block(path, None), first, end=False)
        sending = self._loop.create_task(self._send(found, call, messages))
        try:
            while True:
                item = await came.get()
                yield item
                if isinstance(item, Reply):
                    return
        finally:
            sending.cancel()
            found.cancel(call)
            self._wake()

    async def close(self) -> None:
        """Close the connections; calls without an answer end as CANCELLED."""
        self._close(failures.CLOSED)

    def leave(self, reply: Reply) -> None:
        """Close the connections from another event loop, whether their own still runs, is stopped, or is closed."""
        self._end, runs = reply, self._loop.is_running()
        with contextlib.suppress(RuntimeError):  # of a closed loop, which calls nothing any more
            self._loop.call_soon_threadsafe(self._close, reply)
        if not runs:
            for connection in self._connections:
                connection.abandon()

    def forget(self) -> None:
        """Close the sockets of the process that this one was forked from, and nothing else."""
        for connection in self._connections:
            connection.forget()

    def _close(self, reply: Reply) -> None:
        self._end = reply
        self._over.set()
        if self._dialling is not None:
            self._dialling.cancel()
        for connection in self._connections:
            connection.close(reply)
        self._connections = []
        self._wake_all()

    async def _send(self, connection: LoopConnection, call: RemoteCall, messages: AsyncIterator[bytes]) -> None:
        async for message in messages:
            if call.reply is not None:
                return
            connection.send(call, self._opening.message(message))

    async def _attempt(self, block: bytes, message: tuple[bytes, bytes], deadline: float) -> Reply:
        connection = self._free()
        if connection is None:
            found = await self._connection(deadline)
            if isinstance(found, Reply):
                return found
            connection = found
        future: asyncio.Future[Reply] = self._loop.create_future()
        call = AwaitedCall(future)
        connection.open(call, block, message)
        timer = self._loop.call_at(deadline, _expire, call)
        try:
            return await future
        finally:
            timer.cancel()
            if call.reply is None or call.reply is failures.EXPIRED:
                connection.cancel(call)
            if self._waiting:
                self._wake()

    def _free(self) -> LoopConnection | None:
        for connection in self._connections:
            if connection.end.room > 0:
                return connection
        return None

    async def _connection(self, deadline: float) -> LoopConnection | Reply:
        """A connection that takes a call, as soon as there is one; a reply where none comes about."""
        while True:
            if self._end is not None:
                return self._end
            for silent in [one for one in self._connections if one.end.silent and not one.end.calls][:-1]:
                silent.close()  # a newer one is silent, too: that is listened to
            self._connections = [one for one in self._connections if not one.end.going_away]
            if (connection := self._free()) is not None:
                return connection
            left = deadline - self._loop.time()
            if left <= 0:
                return failures.EXPIRED
            if self._dialling is not None and self._dialling.done():  # somebody cancelled it before it began
                self._dialling = None
            if self._dialling is None and len(self._connections) < MOST_CONNECTIONS:
                self._dialling = self._loop.create_task(self._dial())
            try:
                if (dialling := self._dialling) is not None:
                    async with asyncio.timeout(left):
                        failure = await asyncio.shield(dialling)
                    if failure is not None:
                        return failure
                else:
                    async with asyncio.timeout(left):
                        await self._place()
            except TimeoutError:
                return failures.EXPIRED
            except asyncio.CancelledError:
                if cancelled_here():
                    raise  # else it was the dialling that ended, which the loop begins anew

    async def _place(self) -> None:
        """Wait until there may be a place; whoever is cancelled meanwhile leaves it to the next one."""
        waiting: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        except asyncio.CancelledError:
            if not waiting.cancelled():
                self._wake()
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    async def _dial(self) -> Reply | None:
        """Make one more connection; the failure if there is none."""
        loop = self._loop
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"ssl": self._tls[0], "server_hostname": self._tls[1]}

        def made() -> LoopConnection:
            has_tls, changed = self._tls is not None, self._wake_all
            connection = LoopConnection(self._address, loop, sock, has_tls, self._keepalive, changed)
            connection.end.expect_like(one.end for one in self._connections)
            return connection

        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                if self._destination.path:
                    sock = await reached_unix(loop, self._destination.path)
                    _, protocol = await loop.create_unix_connection(made, sock=sock, **options)
                else:
                    sock, self._worked.address = await reached(loop, self._destination.places, self._worked.address)
                    _, protocol = await loop.create_connection(made, sock=sock, **options)
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # not of the system
                return failures.refused(self._address, f"no connection within {_CONNECT_SECONDS:.0f} s")
            return failures.of_error(self._address, error)
        else:
            if self._end is not None:
                protocol.close(self._end)
            self._connections.append(protocol)
            return None
        finally:
            self._dialling = None

    def _wake(self) -> None:
        """A call has ended: the first of those that wait may begin."""
        while self._waiting:
            if not (waiting := self._waiting.popleft()).done():
                waiting.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._waiting:
            self._wake()


def _expire(call: AwaitedCall) -> None:
    call.finish(failures.EXPIRED)
