"""Calls over HTTP/1.1, for servers without gRPC: they cost as little CPU time as the load generator's own calls."""

from __future__ import annotations

import re
import select
import socket

from normfold.serving.load.calls import Ended
from normfold.serving.load.pool import dial

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class HttpCalls:
    """The same POST again and again, each on a connection of its own, which is used again after the answer."""

    def __init__(self, address: str, path: str, content_type: str, body: bytes) -> None:
        head = f"POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}"
        self._request = head.encode() + b"\r\n\r\n" + body
        self._address = address
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._idle: list[int] = []
        self._numbers: dict[int, int] = {}
        self._read: dict[int, bytes] = {}
        self._open()

    def send(self, number: int) -> None:
        """Make a call. Requests are so small that the socket takes a whole one."""
        if not self._idle:
            self._open()
        fd = self._idle.pop()
        self._numbers[fd] = number
        self._read[fd] = b""
        self._sockets[fd].sendall(self._request)

    def wait(self, seconds: float) -> Ended:
        """The calls that ended, once something came or ``seconds`` are over; often none."""
        ended: Ended = []
        for fd, _ in self._epoll.poll(seconds):
            try:
                data = self._sockets[fd].recv(1 << 18)
            except OSError:
                data = b""
            if not data:
                self._epoll.unregister(fd)
                self._sockets.pop(fd).close()
                if fd in self._idle:
                    self._idle.remove(fd)
                if fd in self._numbers:
                    ended.append((self._numbers.pop(fd), "UNAVAILABLE"))
                continue
            data = self._read[fd] + data
            head = data.find(b"\r\n\r\n")
            found = _LENGTH.search(data, 0, head) if head >= 0 else None
            if found and len(data) >= head + 4 + int(found[1]):
                ended.append((self._numbers.pop(fd), "OK" if data[9:12] == b"200" else f"HTTP {data[9:12].decode()}"))
                self._idle.append(fd)
            else:
                self._read[fd] = data
        return ended

    def close(self) -> None:
        """Close the connections."""
        for sock in self._sockets.values():
            sock.close()
        self._epoll.close()

    def _open(self) -> None:
        try:
            sock = dial(self._address)
        except OSError as error:
            raise ConnectionError(f"no server answers at {self._address}: {error}") from None
        sock.settimeout(30)
        self._sockets[sock.fileno()] = sock
        self._idle.append(sock.fileno())
        self._epoll.register(sock.fileno(), select.EPOLLIN)
