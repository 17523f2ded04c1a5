"""The connections of a load: it makes them, waits for them, and replaces one that the server ends."""

from __future__ import annotations

import select
import socket
import ssl
import time

from normfold.digits import read_digits
from normfold.serving.client.arguments import checked_address
from normfold.serving.client.connection import ClientTls
from normfold.serving.load.http2 import ClientConnection, Disconnected
from normfold.serving.load.streams import Event

#: The load gives up after this many seconds without a server, which leaves time to restart one.
PATIENCE_SECONDS = 5.0


class Pool:
    """``size`` connections to one address. Raises ConnectionError where nothing listens for PATIENCE_SECONDS."""

    def __init__(
        self, address: str, headers: list[tuple[str, str]], size: int = 1, tls: ClientTls | None = None
    ) -> None:
        """``tls``: connect with TLS; None: in plain text. Raises ValueError for files that cannot be used, too."""
        self.address, self._headers = address, headers
        self._tls = None if tls is None else (tls.context(), tls.host(address))
        self._epoll = select.epoll()
        self._by_fd: dict[int, ClientConnection] = {}
        self._writing: set[int] = set()
        self._slots = [self._connect(0) for _ in range(size)]

    def __len__(self) -> int:
        return len(self._slots)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._by_fd.values():
            connection.close()
        self._epoll.close()

    def at(self, index: int) -> ClientConnection:
        """The connection of a slot; a new one if the last one was closed or will be closed."""
        index %= len(self._slots)
        connection = self._slots[index]
        if connection.going_away or connection.socket.fileno() < 0:
            connection = self._slots[index] = self._connect(PATIENCE_SECONDS)
        return connection

    def flush(self) -> None:
        """Write as much of the queued bytes as the sockets take; ``wait`` reports a connection that is broken."""
        for fd, connection in self._by_fd.items():
            if not connection.blocked:
                continue
            try:
                connection.flush()
            except Disconnected:
                continue  # the next read reports it
            if connection.blocked != (fd in self._writing):
                self._watch(fd, connection.blocked)

    def wait(self, seconds: float) -> list[tuple[ClientConnection, list[Event] | Disconnected]]:
        """The events of each connection, as soon as any comes; none after ``seconds`` without one."""
        found: list[tuple[ClientConnection, list[Event] | Disconnected]] = []
        for fd, _ in self._epoll.poll(seconds):
            connection = self._by_fd[fd]
            try:
                found.append((connection, connection.receive()))
            except Disconnected as error:
                self._forget(fd)
                found.append((connection, error))
                continue
            if connection.going_away and not connection.streams:
                self._forget(fd)
        return found

    def _watch(self, fd: int, writing: bool) -> None:
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if writing else 0))
        (self._writing.add if writing else self._writing.discard)(fd)

    def _forget(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._writing.discard(fd)
        self._by_fd.pop(fd).close()

    def _connect(self, patience: float) -> ClientConnection:
        given_up = time.monotonic() + patience
        while True:
            try:
                connection = ClientConnection(self._dial(), self._headers)
                break
            except ssl.SSLError as error:
                why = getattr(error, "verify_message", "") or (error.reason or "no TLS there").lower().replace("_", " ")
                raise ConnectionError(f"the TLS handshake with {self.address} failed: {why}") from None
            except OSError as error:
                if time.monotonic() >= given_up:
                    raise ConnectionError(f"no server answers at {self.address}: {error.strerror or error}") from None
                time.sleep(0.02)
        fd = connection.socket.fileno()
        self._by_fd[fd] = connection
        self._epoll.register(fd, select.EPOLLIN)
        return connection

    def _dial(self) -> socket.socket:
        """A socket that is connected, after the handshake of TLS if there is one. Raises OSError."""
        sock = dial(self.address)
        if self._tls is None:
            return sock
        context, host = self._tls
        sock.settimeout(PATIENCE_SECONDS)
        try:
            return context.wrap_socket(sock, server_hostname=host)
        except OSError:
            sock.close()
            raise


def dial(address: str) -> socket.socket:
    """A socket connected to "host:port" or "unix:/path". Raises OSError, or ValueError for another form."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(address.removeprefix("unix:").removeprefix("//"))
        except OSError:
            sock.close()
            raise
        return sock
    host, port = host_and_port(address)
    sock = socket.create_connection((host, port), timeout=5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of "host:port". Raises ValueError for another form."""
    host, _, port = checked_address(address).rpartition(":")
    number = read_digits(port, 65535)
    if number is None or "/" in host:
        raise ValueError(f"address {address!r} is not host:port, such as 127.0.0.1:8001, or unix:/path")
    return host.strip("[]"), number
