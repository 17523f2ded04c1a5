"""One connection on an event loop, asyncio's or uvloop's, and a call that a task awaits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import cast

from normfold.serving.client.transport import failures
from normfold.serving.client.transport.answers import Reply
from normfold.serving.client.transport.blocking import PING_SECONDS
from normfold.serving.client.transport.connection import ClientEnd
from normfold.serving.client.transport.control import ConnectionFault
from normfold.serving.client.transport.remote_call import RemoteCall
from normfold.serving.errors import Status
from normfold.serving.wire import http2_frames as h2

#: From this size on (in bytes) a part is written by itself, which spares a copy.
_WORTH_A_WRITE = 1 << 16


class AwaitedCall(RemoteCall):
    """A call whose reply a task awaits."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Reply]) -> None:
        super().__init__()
        self.future = future

    def finish(self, reply: Reply) -> None:
        """The call has ended with ``reply``."""
        if self.reply is None:
            self.reply = reply
            self.waiting = None
            if not self.future.done():
                self.future.set_result(reply)


class LoopConnection(asyncio.Protocol):
    """One connection. What its calls send in one turn of the loop is written together."""

    def __init__(
        self,
        address: str,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        tls: bool,
        keepalive: float,
        changed: Callable[[], object],
    ) -> None:
        """``sock``: what the transport will read and write.

        ``keepalive``: seconds of silence before a ping while calls wait; 0: no pings.

        ``changed`` is called once the connection has ended, or the server has said how many calls it takes, or is
        heard again.
        """
        self.end = ClientEnd()
        self._sock = sock
        self._address, self._loop, self._has_tls, self._keepalive = address, loop, tls, keepalive
        self._changed = changed
        self._transport: asyncio.Transport | None = None
        self._scheduled = self._choked = False
        self._first = b""
        self._alarm: asyncio.TimerHandle | None = None

    # for calls

    def open(self, call: RemoteCall, block: bytes, message: tuple[bytes, bytes], end: bool = True) -> None:
        """Begin a call; there must be room."""
        self.end.open(call, block, *message, end)
        self._schedule()
        if self._keepalive and self._alarm is None:
            self._listen(self.end.heard, None)

    def send(self, call: RemoteCall, message: tuple[bytes, bytes]) -> None:
        """Send one more message of a stream."""
        self.end.send(call, *message)
        self._schedule()

    def cancel(self, call: RemoteCall) -> None:
        """Forget a call that nobody waits for any more."""
        self.end.doubt(call)
        self.end.cancel(call)
        self._schedule()
        self._part()

    def close(self, reply: Reply = failures.CLOSED) -> None:
        """Close the connection; calls without an answer end with ``reply``."""
        self._give_up(reply.details, reply.status)

    def abandon(self) -> None:
        """Close the connection of an event loop that is stopped or closed."""
        self.end.going_away = True
        transport, self._transport = self._transport, None
        with contextlib.suppress(RuntimeError):  # of a closed loop, which calls nothing any more
            if transport is not None:
                transport.abort()
        self._sock.close()

    def forget(self) -> None:
        """Close the socket of a process that this one was forked from, and nothing else.

        The two processes share what its event loop waits with (epoll): the transport would take the socket out of that.
        """
        self.end.going_away = True
        if (file := self._sock.detach()) >= 0:
            os.close(file)

    # called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there, and TLS with it."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take what the server sends."""
        end = self.end
        most, silent = end.most_calls, end.silent
        if not end.settled:
            self._first += data[:16]
        try:
            end.receive(data)
        except ConnectionFault as fault:
            why = f"the server at {self._address} broke the protocol: {fault}"
            if not end.settled:
                why = failures.not_grpc(self._address, self._first, str(fault)).details
            end.out.append(h2.goaway(0, fault.code))
            self._write()
            self._give_up(why)
            return
        if end.out and not self._scheduled:
            self._write()
        if silent or end.most_calls != most:
            self._changed()
        if end.going_away:
            self._part()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        code = error.errno if isinstance(error, OSError) else None
        if isinstance(error, OSError) and type(error).__module__ == "ssl":
            ended = failures.no_tls(self._address, failures.tls_words(error))
        else:
            ended = failures.ended(self._address, code, self.end.settled, self._has_tls)
        self._give_up(ended.details)

    def pause_writing(self) -> None:
        """The socket takes no more."""
        self._choked = True

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._choked = False
        self._write()

    # the rest

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._scheduled = False
        out = self.end.out
        if not out or self._choked or self._transport is None:
            return
        self.end.out = []
        begin = 0
        for at, part in enumerate(out):
            if len(part) >= _WORTH_A_WRITE:
                if begin < at:
                    self._transport.write(b"".join(out[begin:at]))
                self._transport.write(part)
                begin = at + 1
        if begin < len(out):
            self._transport.write(b"".join(out[begin:] if begin else out))

    def _part(self) -> None:
        """Close a connection that the server has left once its last call is over."""
        if self.end.going_away and not self.end.calls:
            self._give_up("the server goes away")

    def _give_up(self, why: str, status: Status = Status.UNAVAILABLE) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self.end.lost(why, status)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
        self._changed()

    def _listen(self, heard: int, pinged_at: float | None) -> None:
        """Look again after a while whether anything has come; ``heard``: the count before."""
        self._alarm = self._loop.call_later(min(self._keepalive, PING_SECONDS), self._listened, heard, pinged_at)

    def _listened(self, heard: int, pinged_at: float | None) -> None:
        self._alarm = None
        now = self._loop.time()
        if not self.end.calls:
            return
        if self.end.heard != heard:
            self._listen(self.end.heard, None)
        elif pinged_at is None:
            self.end.ping()
            self._schedule()
            self._listen(heard, now)
        elif now - pinged_at < PING_SECONDS:
            self._listen(heard, pinged_at)
        else:
            self.close(failures.no_ping(self._address))
