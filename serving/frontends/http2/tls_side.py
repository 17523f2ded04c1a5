"""TLS between a socket and its connection, which takes this for the transport.

asyncio has TLS, too, but does not say how many bytes wait in the socket behind it and has no half of a connection, so
a server that stops could not wait until the last byte of an answer has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import Any, cast

from normfold.serving.access.tls import PROTOCOL

log = logging.getLogger(__name__)

#: Decrypted bytes that are read at a time.
READ_BYTES = 1 << 18


class TlsSide(asyncio.Protocol):
    """The server's end of one connection with TLS; ``protocol`` is the connection behind it."""

    def __init__(self, context: ssl.SSLContext, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        #: What is to be sent after the handshake; None: that is over.
        self._waiting: list[bytes] | None = []
        #: Whether we have said farewell: nothing is read any more.
        self._ended = False
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
        self._protocol.connection_lost(error)

    def pause_writing(self) -> None:
        """The socket takes no more."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._protocol.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Decrypt, and pass on what was decrypted together."""
        if self._ended:
            return
        self._in.write(data)
        found: list[bytes] = []
        closed = False
        try:
            if self._waiting is not None:
                self._shake_hands()
            while part := self._tls.read(READ_BYTES):
                found.append(part)
            closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            closed = True
        except ssl.SSLError as error:
            self._fail(getattr(error, "reason", None) or str(error))  # one of our own has no reason
            return
        self._flush()
        if found:
            self._protocol.data_received(found[0] if len(found) == 1 else b"".join(found))
        if closed and not self._ended and not self._protocol.eof_received() and self._transport is not None:
            self._transport.close()

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

    def __getattr__(self, name: str) -> Any:
        """Everything else is the socket's."""
        return getattr(self._transport, name)

    def _shake_hands(self) -> None:
        """Go on with the handshake. Raises ssl.SSLError."""
        self._tls.do_handshake()
        if self._tls.selected_alpn_protocol() != PROTOCOL:
            raise ssl.SSLError(0, f"the client does not speak {PROTOCOL}")
        waiting, self._waiting = self._waiting, None
        for data in waiting or ():
            self._encrypt(data)

    def _encrypt(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._tls.write(left) :]

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
