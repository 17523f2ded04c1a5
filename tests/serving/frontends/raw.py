"""A client of HTTP/2 that sends exactly the frames that a test gives it, and a socket without a client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hpack

from normfold.serving.wire import http2_frames as h2


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def request_headers(method: str = "Echo", **more: str) -> list[tuple[str, str]]:
    """The headers that every gRPC request has, and more."""
    headers = {":method": "POST", ":scheme": "http", ":path": f"/t.T/{method}", ":authority": "x", "te": "trailers"}
    headers |= {"content-type": "application/grpc"}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return list(headers.items())


def message(data: bytes, compressed: int = 0) -> bytes:
    """A message with its prefix, as it is in the data of a stream."""
    return bytes([compressed]) + len(data).to_bytes(4, "big") + data


class TlsSocket:
    """A socket behind TLS, of which each side may end alone; Python's own ends both together."""

    def __init__(self, sock: socket.socket, ca: Path) -> None:
        self._socket = sock
        context = ssl.create_default_context(cafile=ca)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.set_alpn_protocols(["h2"])
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="127.0.0.1")
        self._until_done(self._tls.do_handshake)

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def recv(self, size: int) -> bytes:
        try:
            return self._until_done(lambda: self._tls.read(size))
        except ssl.SSLZeroReturnError:
            return b""

    def say_farewell(self) -> None:
        """Send TLS's own end of what this side sends; it still reads."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()

    def shutdown(self, how: int) -> None:
        """Send the end of the socket without TLS's own."""
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()

    def _until_done(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            finally:
                self._flush()
            more = self._socket.recv(1 << 16)
            self._in.write(more) if more else self._in.write_eof()

    def _flush(self) -> None:
        if self._out.pending:
            self._socket.sendall(self._out.read())


class Raw:
    """A client that sends any frames, right or wrong; with ``ca``, the authority of the server, by TLS."""

    def __init__(
        self, address: str, settings: dict[int, int] | None = None, greet: bool = True, ca: Path | None = None
    ) -> None:
        self.socket: Any
        if address.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(20)
            self.socket.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.create_connection((host, int(port)), timeout=20)
        if ca is not None:
            self.socket = TlsSocket(self.socket, ca)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self._data = b""
        if greet:
            self.send(h2.PREFACE, h2.settings(settings or {}))

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def ask(self, stream: int, data: bytes | None, method: str = "Echo", **headers: str) -> None:
        """Send a request with ``data``, which end it; None: only its headers."""
        block = self.encoder.encode(request_headers(method, **headers))
        self.send(h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block))
        if data is not None:
            self.send(h2.frame(h2.DATA, h2.END_STREAM, stream, data))

    def frame(self) -> Frame | None:
        """The next frame; None: the server closed the connection."""
        while len(self._data) < 9 or len(self._data) < 9 + int.from_bytes(self._data[:3], "big"):
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionError:
                return None
            if not more:
                return None
            self._data += more
        size = int.from_bytes(self._data[:3], "big")
        head, payload, self._data = self._data[:9], self._data[9 : 9 + size], self._data[9 + size :]
        return Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)

    def until(self, kind: int) -> Frame:
        """The next frame of this kind."""
        while (found := self.frame()) is not None:
            if found.kind == kind:
                return found
        raise AssertionError("the server closed the connection")

    def answer(self, stream: int) -> tuple[bytes, dict[str, str]]:
        """Data and headers of an answer, to its end."""
        data, headers = bytearray(), {}
        while (found := self.frame()) is not None:
            if found.stream != stream:
                continue
            assert found.kind != h2.RST_STREAM, found
            if found.kind == h2.DATA:
                data += found.payload
            elif found.kind == h2.HEADERS:
                headers |= dict(self.decoder.decode(found.payload))
                if found.flags & h2.END_STREAM:
                    return bytes(data), headers
        raise AssertionError("the server closed the connection")

    def ended_with(self) -> int:
        """The error code of the GOAWAY with which the server closes."""
        code = -1
        while (found := self.frame()) is not None:
            if found.kind == h2.GOAWAY:
                code = int.from_bytes(found.payload[4:8], "big")
        return code

    def still_answers(self, stream: int = 99) -> bool:
        """Whether the connection still answers calls."""
        self.ask(stream, message(b"again"))
        return self.answer(stream)[0] == message(b"again")


class NoSocket(asyncio.Transport):
    """The socket of a connection that a test gives its data; it notes what is written, and whether it is read."""

    def __init__(self):
        super().__init__()
        self.is_read, self.is_closed = True, False
        self.written = b""

    def pause_reading(self):
        self.is_read = False

    def resume_reading(self):
        self.is_read = True

    def is_closing(self):
        return self.is_closed

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def write(self, data):
        self.written += data

    def write_eof(self):
        self.is_closed = True

    def get_write_buffer_size(self):
        return 52

    def frames(self) -> list[Frame]:
        """What was written since the last time."""
        found, data = [], self.written
        while data:
            size = int.from_bytes(data[:3], "big")
            found.append(Frame(data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
            data = data[9 + size :]
        self.written = b""
        return found
