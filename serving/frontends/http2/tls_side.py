"""TLS between a socket and its connection, which takes this for the transport.

asyncio has TLS, too, but does not say how many bytes wait in the socket behind it and has no half of a connection, so
a server that stops could not wait until the last byte of an answer has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from time import monotonic
from typing import Any, cast

from normfold.serving.access.tls import PROTOCOL, has_expired
from normfold.serving.frontends.http2.limits import ROUND_SECONDS, ROUND_TURNS
from normfold.serving.frontends.http2.socket_side import SocketSide

log = logging.getLogger(__name__)

#: Decrypted bytes that are read at a time.
READ_BYTES = 1 << 18
#: Bytes that are decrypted before the clock is looked at: a whole record, or 700 of one byte, which take a millisecond.
PIECE_BYTES = 1 << 14
#: Bytes that are encrypted together. OpenSSL keeps the memory of the most that it ever held for a connection.
PART_BYTES = 1 << 16
#: Time for the bytes of one connection before other connections have their turn, in seconds.
TURN_SECONDS = ROUND_SECONDS / ROUND_TURNS


class TlsSide(asyncio.Protocol):
    """The server's end of one connection with TLS; ``protocol`` is the connection behind it."""

    def __init__(self, context: ssl.SSLContext, protocol: SocketSide) -> None:
        self._protocol = protocol
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        #: What is to be sent after the handshake; None: that is over.
        self._waiting: list[bytes] | None = []
        #: Whether we have said farewell: nothing is read any more.
        self._ended = False
        #: What has come and is not decrypted yet: it waits for this connection's turn, and nothing more is read.
        self._left = b""
        #: Whether ``_next_turn`` is certain to be called, and whether the connection wants nothing now.
        self._queued = self._paused = False
        self._transport: asyncio.Transport | None = None

    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; the connection has its time limit for the handshake, too."""
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.connection_made(cast(asyncio.Transport, self))

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is gone."""
        self._ended = True
        self._transport = None
        self._leave(b"")
        self._protocol.connection_lost(error)

    def pause_writing(self) -> None:
        """The socket takes no more."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._protocol.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Decrypt for one turn, and pass on what was decrypted together.

        A handshake takes a millisecond or more, and after a restart all clients come at once: each step of one has its
        turn in the rounds.
        """
        if self._left:
            self._leave(self._left + data)
        elif self._waiting is not None and not self._ended:
            self._wait_for_turn(data)
        elif not self._ended:
            self._take(data)

    def eof_received(self) -> bool:
        """The client sends nothing more; whether the socket stays open for our answers."""
        return bool(not self._ended and self._waiting is None and self._protocol.eof_received())

    # called by the connection, as by an asyncio.Transport

    def write(self, data: bytes) -> None:
        """Encrypt ``data`` and send them, once the handshake is over."""
        if self._waiting is not None:
            self._waiting.append(data)
            return
        self._encrypt(data)
        self._flush()

    def write_eof(self) -> None:
        """Say farewell and send the end of the stream. Raises OSError when the client has gone."""
        self._ended = True
        self._leave(b"")
        if self._waiting is None:
            with contextlib.suppress(ssl.SSLError):  # we do not wait for the client's farewell
                self._tls.unwrap()
            self._flush()
        if self._transport is not None:
            self._transport.write_eof()

    def get_write_buffer_size(self) -> int:
        """The bytes that have not reached the system yet."""
        behind = 0 if self._waiting is None else sum(map(len, self._waiting))
        return behind + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def pause_reading(self) -> None:
        """Pass nothing on, and read nothing."""
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on with what is left, or read again."""
        self._paused = False
        if self._left:
            self._queue_turn()
        elif self._transport is not None:
            self._transport.resume_reading()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the socket's."""
        return getattr(self._transport, name)

    def _take(self, data: bytes) -> None:
        """Decrypt a piece of ``data``, and others while the turn lasts; the rest is left for later turns.

        Records may be as small as a byte, and there are some without any, so that bytes say little about the time.
        """
        found: list[bytes] = []
        at, until, closed = 0, monotonic() + TURN_SECONDS if len(data) > PIECE_BYTES else 0.0, False
        try:
            while at < len(data) and not closed and (not at or monotonic() < until):
                self._in.write(data[at : at + PIECE_BYTES])
                at += PIECE_BYTES
                closed = self._decrypt(found)
        except ssl.SSLError as error:
            self._fail(getattr(error, "reason", None) or str(error))  # one of our own has no reason
            return
        self._flush()
        if (left := data[at:]) and not closed:
            self._wait_for_turn(left)
        if found:
            self._protocol.data_received(found[0] if len(found) == 1 else b"".join(found))
        if closed and not self._ended and not self._protocol.eof_received() and self._transport is not None:
            self._transport.close()

    def _decrypt(self, found: list[bytes]) -> bool:
        """Add to ``found`` what can be decrypted; whether that was the client's end. Raises ssl.SSLError."""
        try:
            if self._waiting is not None:
                self._shake_hands()
            while part := self._tls.read(READ_BYTES):
                found.append(part)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLZeroReturnError:
            pass
        return True

    def _leave(self, data: bytes) -> None:
        """Keep ``data`` for later turns, in place of what was left; they count among the bytes held for the client."""
        self._protocol.holding.add_beside(len(data) - len(self._left))
        self._left = data

    def _wait_for_turn(self, data: bytes) -> None:
        if self._transport is not None:
            self._leave(data)
            self._transport.pause_reading()
            self._queue_turn()

    def _queue_turn(self) -> None:
        if not self._queued:
            self._queued = True
            self._protocol.in_turn(self._next_turn)

    def _next_turn(self) -> None:
        self._queued = False
        if self._left and not self._paused and not self._ended:
            left = self._left
            self._leave(b"")
            self._take(left)
            if not self._left and not self._paused and self._transport is not None:
                self._transport.resume_reading()

    def _shake_hands(self) -> None:
        """Go on with the handshake. Raises ssl.SSLError."""
        self._tls.do_handshake()
        if self._tls.selected_alpn_protocol() != PROTOCOL:
            raise ssl.SSLError(0, f"the client does not speak {PROTOCOL}")
        if self._tls.session_reused and has_expired(self._tls):
            raise ssl.SSLError(0, "the client resumes a session, and its certificate has expired meanwhile")
        waiting, self._waiting = self._waiting, None
        for data in waiting or ():
            self._encrypt(data)

    def _encrypt(self, data: bytes) -> None:
        """Encrypt ``data``; what is sent with the next ``_flush`` is their end."""
        left = memoryview(data)
        while left:
            if self._out.pending:
                self._flush()
            left = left[self._tls.write(left[:PART_BYTES]) :]

    def _flush(self) -> None:
        if self._out.pending and self._transport is not None:
            self._transport.write(self._out.read())

    def _fail(self, why: str) -> None:
        """End the connection with the alert that OpenSSL has made."""
        self._ended = True
        log.debug("TLS with a client failed: %s", why)
        self._flush()
        if self._transport is not None:
            self._transport.close()
