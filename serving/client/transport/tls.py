"""TLS between a socket and the client's end of a connection: bytes in, bytes out, no socket."""

from __future__ import annotations

import ssl
from collections.abc import Iterable

#: Decrypted bytes that are read at a time.
_READ_BYTES = 1 << 18


class TlsEnd:
    """The client's end of TLS. One thread at a time may use it."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        """``host``: the name that the server's certificate must have."""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        #: Whether the server has said farewell.
        self.ended = False

    def shake_hands(self, data: bytes) -> bool:
        """Go on with the handshake after ``data`` has come; whether it is over. Raises ssl.SSLError."""
        if data:
            self._in.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def encrypted(self, parts: Iterable[bytes | memoryview] = ()) -> bytes:
        """``parts`` as they are sent, and whatever else TLS has to send."""
        for part in parts:
            if len(part):
                self._tls.write(part)
        return self._out.read()

    def decrypted(self, data: bytes) -> bytes:
        """The content of ``data``, with what earlier data had begun. Raises ssl.SSLError."""
        if data:
            self._in.write(data)
        found = []
        try:
            while part := self._tls.read(_READ_BYTES):
                found.append(part)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return found[0] if len(found) == 1 else b"".join(found)
