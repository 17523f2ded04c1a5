"""The socket of one connection: it is read a turn at a time, and ends so that the last byte of an answer arrives."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import cast

from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import (
    FLYING_BYTES,
    GREETING,
    HANDSHAKE_SECONDS,
    LAST_BYTES_SECONDS,
    LINGER_SECONDS,
    PROBE_SECONDS,
    UNSENT_BYTES,
)
from normfold.serving.frontends.http2.sending import AnswerStream, Sender, joined
from normfold.serving.frontends.http2.system_socket import host_and_port, in_system
from normfold.serving.wire import http2_frames as h2


class SocketSide(asyncio.Protocol):
    """The part of a connection that knows its socket; ``take``, ``busy`` and ``lost`` are the connection's."""

    def __init__(self, holding: Holding) -> None:
        #: The bytes held for this connection.
        self.holding = holding
        self.sender = Sender(holding)
        #: Whether the client does not read what we send.
        self.choked = False
        #: Whether the client sends nothing more, and waits for answers: it answers no PING.
        self.silent = False
        #: Whether no call is accepted any more; the socket is closed once none is under way.
        self.leaving = False
        #: How often something was read from the client, and how often it was seen that the client took unsent bytes.
        self.reads = self.taken = 0
        #: The client's "host:port"; "unix:" for a client on a unix socket. Calls may need it when the socket has gone.
        self.peer = "unix:"
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.TimerHandle | None = None
        #: The bytes that wait in the socket, as far as they are counted among those that are held.
        self._counted = 0
        #: Whether frames wait for the next turn, a flush is certain to come, and everything was sent.
        self._behind = self._flushing = self._ended = False
        #: How long the bytes that are taken now have waited for this turn, and when they came.
        self.waited_seconds = self._came = 0.0
        #: Whether ``_next_turn`` is certain to be called: a connection has one place in the rounds.
        self._queued = False
        #: Whether the client sends nothing more, and frames of it are left: TLS ends together with the last of them.
        self._all_come = False
        #: How long nothing is read from the client, in seconds, and whether such a time goes on; see ``rests.Resting``.
        self.rest_seconds, self._resting, self.step_until = 0.0, False, 0.0
        self._draining: asyncio.Future[None] | None = None

    def take(self, data: bytes) -> bool:
        """Take frames for one turn; whether some are left, or wait in the socket: then other connections go first."""
        raise NotImplementedError

    def in_turn(self, turn: Callable[[], None]) -> None:
        """Call ``turn`` when it is this connection's turn again."""
        raise NotImplementedError

    def busy(self) -> bool:
        """Whether calls are under way."""
        raise NotImplementedError

    def finish(self, streams: list[AnswerStream]) -> None:
        """Forget calls of which the last byte is queued now, and wake those that wait for the client."""
        raise NotImplementedError

    def half_closed(self) -> None:
        """The client sends nothing more: requests that have not ended never will."""
        raise NotImplementedError

    def lost(self) -> None:
        """The connection is gone."""
        raise NotImplementedError

    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client."""
        self._transport = transport = cast(asyncio.Transport, transport)
        self.peer = host_and_port(transport.get_extra_info("peername"))
        transport.set_write_buffer_limits(UNSENT_BYTES)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._handshake = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, transport.abort)
        transport.write(GREETING)

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel every call."""
        self._transport = None
        self.leaving = True
        self._count(0)
        self.greeted()
        self.lost()
        self._wake()

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read."""
        if not self.choked:
            self.choked = True
            self.sender.choke()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read again, and write after that: the next data may fill the socket, and then nothing would be read."""
        self.choked = False
        self.taken += 1
        self._came = monotonic()  # frames that are left waited for the client before
        self._count(0)
        self.finish(self.sender.unchoke())
        self._read_on()
        asyncio.get_running_loop().call_soon(self.flush_soon)

    def data_received(self, data: bytes) -> None:
        """Take whole frames for one turn, then write all answers to them together."""
        if self._ended:
            return
        self.reads += 1
        self._flushing = True
        if self.take(data) and self._transport is not None:
            if data:
                self._came = monotonic()
            self._behind = True
            self._transport.pause_reading()
            self._queue_turn()
        elif self.rest_seconds:
            self._rest()
        self.flush()

    def eof_received(self) -> bool:
        """The client sends nothing more; whether the connection stays open for the answers to its calls."""
        if self._behind:
            self._all_come = True
            return True
        self.flush()  # the end of an answer may be queued: its call is over, and the socket is closed here
        if self._ended or not self.busy():
            return False
        self.leaving = self.silent = True
        self.half_closed()
        self._probe()
        return True

    # called by calls and by the connection

    def flush(self) -> None:
        """Write what is queued; close the socket behind the last answer if no call is accepted any more."""
        self._flushing = False
        transport, sender = self._transport, self.sender
        out = sender.out
        if transport is None or self._ended:
            out.clear()
            return
        if self._counted:
            self.count_unsent()
        while out:
            if sender.large:
                sender.large = False
                for data in joined(out):
                    transport.write(data)
            else:
                transport.write(b"".join(out))
            out.clear()
            if sender.spent and not transport.is_closing():
                self.finish(sender.refill())
        if self.choked or self._counted:
            self.count_unsent()
        if self.leaving and not self.busy():
            self._end(transport)

    def flush_soon(self) -> None:
        """Write what is queued after everything that is ready to run has run."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def greeted(self) -> None:
        """The client speaks HTTP/2, or has gone: stop waiting for its first frames."""
        if self._handshake is not None:
            self._handshake.cancel()

    async def drained(self) -> None:
        """Wait until the client has taken some data, or has allowed more."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._draining)

    def unsent(self) -> int:
        """The bytes that wait in the socket for the client."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def on_the_way(self) -> bool:
        """Whether frames are not written yet, or more bytes under way than arrive once the socket is closed."""
        if self.sender.out:
            return True
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_UNIX:  # what our system holds is the client's already
            return self.unsent() > 0
        return self.unsent() + in_system(sock) > FLYING_BYTES

    def count_unsent(self) -> int:
        """Count the bytes that wait in the socket among those that are held for the client; their number."""
        unsent = self.unsent()
        if unsent < self._counted:
            self.taken += 1
        self._count(unsent)
        return unsent

    def abort(self) -> None:
        """Close the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def _count(self, unsent: int) -> None:
        self.holding.add_beside(unsent - self._counted)
        self._counted = unsent

    def _wake(self) -> None:
        if self._draining is not None:
            self._draining.set_result(None)
            self._draining = None

    def _read_on(self) -> None:
        """Read again, unless the connection rests or its client does not read; first take the frames that are left."""
        if self._transport is None or self._transport.is_closing() or self.choked or self._resting:
            return
        if self._behind:
            self._queue_turn()
        else:
            self._transport.resume_reading()

    def _rest(self) -> None:
        if self._transport is not None:
            self._resting = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(self.rest_seconds, self._rested)
        self.rest_seconds = 0.0

    def _rested(self) -> None:
        self._resting = False
        self._read_on()

    def _queue_turn(self) -> None:
        if not self._queued:
            self._queued = True
            self.in_turn(self._next_turn)

    def _next_turn(self) -> None:
        self._queued = False
        if self._behind and not self.choked and self._transport is not None:
            self._behind = False
            self.waited_seconds = monotonic() - self._came
            self.data_received(b"")
            self.waited_seconds = 0.0
            if not self._behind:
                if self._all_come and not self._ended and not self.eof_received():
                    self._transport.close()
                self._read_on()

    def _probe(self) -> None:
        """Send a PING at times: the answer to it shows whether the client has only stopped sending, or is gone."""
        if self._transport is not None and not self._ended:
            self.sender.out.append(h2.frame(h2.PING, 0, 0, bytes(8)))
            self.flush()
            asyncio.get_running_loop().call_later(PROBE_SECONDS, self._probe)

    def _end(self, transport: asyncio.Transport) -> None:
        """Send the end of the stream behind the last byte, and read on until the client has closed, too.

        Whatever the client sends to a socket that is closed resets the connection: then what our system has still to
        send is lost.
        """
        self._ended = True
        self._behind = False
        try:
            transport.write_eof()
        except OSError:  # the client has gone, and asyncio has not noticed yet
            transport.abort()
            return
        transport.resume_reading()
        self._linger(asyncio.get_running_loop().time() + LAST_BYTES_SECONDS)

    def _linger(self, until: float) -> None:
        transport, loop = self._transport, asyncio.get_running_loop()
        if transport is None:
            return
        if self.on_the_way() and loop.time() < until:
            loop.call_later(LINGER_SECONDS, self._linger, until)
        else:
            loop.call_later(LINGER_SECONDS, transport.abort)
