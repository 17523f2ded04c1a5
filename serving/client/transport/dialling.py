"""From an address to a connected socket, within a time.

Of several addresses the next is tried beside the one before after STAGGER_SECONDS (RFC 8305, section 5). So an address
that swallows packets delays a connection by little.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import sys
from collections.abc import Callable, Iterable
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from normfold.serving.client.transport.destination import Endpoint
from normfold.serving.client.transport.lookup import places_by

if TYPE_CHECKING:
    from normfold.serving.client.transport.tls import TlsEnd

#: A family of sockets, and what a socket of that family connects to.
Address = tuple[int, Any]

#: The next address is tried this long after the one before, in seconds, or as soon as none is under way.
STAGGER_SECONDS = 0.25
#: A connection whose peer acknowledges nothing for this long ends, in seconds: the peer is gone. A peer that is asked
#: for nothing is probed after KEEPALIVE_IDLE_SECONDS, and then each KEEPALIVE_SECONDS.
UNACKNOWLEDGED_SECONDS, KEEPALIVE_IDLE_SECONDS, KEEPALIVE_SECONDS = 30, 15, 5
#: A Unix socket whose queue is full is tried again after this time, in seconds: Linux does not say when it has room.
QUEUE_SECONDS = 0.01


class Worked:
    """Where the last connection of a client came about."""

    address: Address | None = None


def dial(
    destination: Endpoint, deadline: float, worked: Address | None = None, wait: Callable[[float], object] = sleep
) -> tuple[socket.socket, Address]:
    """A socket that is connected to the first address of ``destination`` that takes it, and this address.

    The socket does not block. ``worked``: the address that took the last connection, which is tried first. ``wait``
    waits for some seconds, or raises OSError. Raises OSError, or a TimeoutError without a number once ``deadline`` (of
    ``time.monotonic``) has passed.
    """
    if destination.path:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            while not unix_connected(sock, destination.path):
                wait(min(_left(deadline), QUEUE_SECONDS))
        except BaseException:
            sock.close()
            raise
        return sock, (socket.AF_UNIX, destination.path)
    attempts = _Attempts()
    try:
        addresses = in_order((one for place in destination.places for one in places_by(deadline, *place)), worked)
        for number, address in enumerate(addresses):
            attempts.begin(address)
            now = monotonic()
            pause = min(STAGGER_SECONDS, (deadline - now) / (len(addresses) - number))
            if (found := attempts.connected(now + pause)) is not None:
                return found
        if (found := attempts.connected(deadline)) is not None:
            return found
        raise TimeoutError if attempts.under_way or attempts.failed is None else attempts.failed
    finally:
        attempts.close()


class _Attempts:
    """Sockets that begin to connect."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.under_way: dict[int, tuple[socket.socket, Address]] = {}
        self.failed: OSError | None = None

    def begin(self, address: Address) -> None:
        """Try one more address."""
        try:
            sock = tcp_socket(address[0])
        except OSError as error:  # such as a family that this system does not have
            self.failed = error
            return
        self.under_way[sock.fileno()] = sock, address
        self._poll.register(sock, select.POLLOUT)
        code = sock.connect_ex(address[1])
        if code not in (0, errno.EINPROGRESS):
            self._fail(sock, code)

    def connected(self, until: float) -> tuple[socket.socket, Address] | None:
        """The first socket that is connected; None: all have failed, or ``until`` has passed."""
        while self.under_way and (left := until - monotonic()) > 0:
            for number, _ in self._poll.poll(math.ceil(left * 1000)):
                sock, address = self.under_way[number]
                if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._fail(sock, code)
                else:
                    del self.under_way[number]
                    return sock, address
        return None

    def _fail(self, sock: socket.socket, code: int) -> None:
        self.failed = OSError(code, os.strerror(code))
        self._poll.unregister(sock)
        del self.under_way[sock.fileno()]
        sock.close()

    def close(self) -> None:
        """End those that are still under way."""
        for sock, _ in self.under_way.values():
            sock.close()


def tcp_socket(family: int) -> socket.socket:
    """A socket that does not block, sends small messages at once, and notices a peer that is gone. Raises OSError.

    The kernel asks the peer's kernel, so this works for a server that is busy, and one that refuses pings of HTTP/2. It
    also ends the connection of a living server that reads nothing for UNACKNOWLEDGED_SECONDS while more bytes wait than
    its kernel has room for (Linux sees no difference); such a call is sent again.
    """
    sock = socket.socket(family)
    sock.setblocking(False)
    tcp = socket.IPPROTO_TCP
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # what passes for Linux, such as WSL 1, may not have them all
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # nothing to acknowledge, or nothing sent
            sock.setsockopt(tcp, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
            sock.setsockopt(tcp, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS)
            probes = (UNACKNOWLEDGED_SECONDS - KEEPALIVE_IDLE_SECONDS) // KEEPALIVE_SECONDS
            sock.setsockopt(tcp, socket.TCP_KEEPCNT, probes)
            sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, 1000 * UNACKNOWLEDGED_SECONDS)  # sent, not acknowledged
    return sock


def in_order(found: Iterable[Any], worked: Address | None) -> list[Address]:
    """The addresses that ``socket.getaddrinfo`` has ``found``; the one that ``worked`` comes first."""
    addresses = [(family, place) for family, _, _, _, place in found]
    return sorted(addresses, key=lambda one: one != worked)


def unix_connected(sock: socket.socket, path: str) -> bool:
    """Whether ``sock`` is connected to the Unix socket at ``path`` now; if not, its queue is full. Raises OSError."""
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True


def shake_hands(sock: socket.socket, tls: TlsEnd, deadline: float) -> None:
    """Carry out the handshake of TLS. Raises OSError (ssl.SSLError is one), or TimeoutError."""
    reading = select.poll()
    reading.register(sock, select.POLLIN)
    data = b""
    while True:
        over = False
        try:
            over = tls.shake_hands(data)
        finally:
            if out := tls.encrypted():  # after an error, too: these bytes say why
                sock.settimeout(_left(deadline))
                sock.sendall(out)
                sock.setblocking(False)
        if over:
            return
        if not reading.poll(_left(deadline) * 1000):
            raise TimeoutError
        data = sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError("it ended the connection in the handshake of TLS")


def _left(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left
