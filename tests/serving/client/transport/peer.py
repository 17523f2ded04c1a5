"""A server of which each test decides every frame, on a thread of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import hpack

from normfold.protos import grpc_service as pb
from normfold.serving.wire import http2_frames as h2

LIVE = pb.ServerLiveResponse(live=True).SerializeToString()
OK = [(":status", "200"), ("content-type", "application/grpc")]


def framed(message: bytes, packed: int = 0) -> bytes:
    return bytes([packed]) + len(message).to_bytes(4, "big") + message


class Peer:
    """The server's end of one connection. A test that ends leaves the rest to ``with``."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.decoder, self.encoder = hpack.Decoder(), hpack.Encoder()
        self.bodies: dict[int, bytearray] = {}
        self.seen: list[tuple[int, int, int, bytes]] = []
        self.headers_of: dict[int, dict[str, str]] = {}

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def frame(self) -> tuple[int, int, int, bytes]:
        """The next frame: kind, flags, stream, payload."""
        word, flags, number = h2.HEAD.unpack(self.exactly(9))
        one = word & 0xFF, flags, number, self.exactly(word >> 8)
        self.seen.append(one)
        return one

    def greet(self, **settings: int) -> None:
        """Take the client's greeting, and send SETTINGS."""
        assert self.exactly(len(h2.PREFACE)) == h2.PREFACE
        self.send(h2.settings({getattr(h2, name): value for name, value in settings.items()}))

    def request(self) -> int:
        """The stream of the next whole request."""
        while True:
            kind, flags, number, payload = self.frame()
            if kind == h2.HEADERS:
                self.headers_of[number] = dict(self.decoder.decode(payload))
                self.bodies[number] = bytearray()
            elif kind == h2.DATA:
                self.bodies[number] += payload
            elif kind == h2.PING and not flags & h2.ACK:
                self.send(h2.frame(h2.PING, h2.ACK, 0, payload))
            if kind in (h2.HEADERS, h2.DATA) and flags & h2.END_STREAM:
                return number

    def until(self, wanted: int) -> tuple[int, int, int, bytes]:
        """The next frame of a kind."""
        while (one := self.frame())[0] != wanted:
            pass
        return one

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def headers(self, number: int, fields: list[tuple[str, str]], flags: int = h2.END_HEADERS) -> None:
        self.send(h2.frame(h2.HEADERS, flags, number, self.encoder.encode(fields, huffman=False)))

    def data(self, number: int, data: bytes, flags: int = 0) -> None:
        self.send(h2.frame(h2.DATA, flags, number, data))

    def end(self, number: int, *fields: tuple[str, str]) -> None:
        self.headers(number, list(fields), h2.END_HEADERS | h2.END_STREAM)

    def answer(self, number: int, message: bytes = LIVE) -> None:
        """A right answer."""
        self.headers(number, OK)
        self.data(number, framed(message))
        self.end(number, ("grpc-status", "0"))

    def refuse(self, number: int, status: int, *fields: tuple[str, str]) -> None:
        """Trailers only."""
        self.end(number, *OK, ("grpc-status", str(status)), *fields)

    def goaway(self, last: int, code: int = 0) -> None:
        self.send(h2.frame(h2.GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big")))

    def wait_for_end(self) -> None:
        """Read until the client has left."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.frame()


@contextlib.contextmanager
def serving(*connections: Callable[[Peer], None], family: int = socket.AF_INET) -> Iterator[str]:
    """An address at which the n-th connection is handled by the n-th function, and each further one by the last."""
    listener = socket.socket(family)
    listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    listener.listen(64)
    sockets: list[socket.socket] = []

    def handle(sock: socket.socket, act: Callable[[Peer], None]) -> None:
        with sock, contextlib.suppress(EOFError, OSError):
            act(Peer(sock))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                act = connections[min(len(sockets), len(connections) - 1)]
                sockets.append(sock)
                threading.Thread(target=handle, args=(sock, act), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    host, port = listener.getsockname()[:2]
    try:
        yield f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """An address that swallows packets: a listener whose queue is full."""
    with contextlib.ExitStack() as stack:
        hole = stack.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(hole.getsockname())
        yield f"127.0.0.1:{hole.getsockname()[1]}"
