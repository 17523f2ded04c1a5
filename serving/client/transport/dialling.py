"""From an address to a connected socket, within a time."""

from __future__ import annotations

import select
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any

from normfold.serving.client.transport.destination import Endpoint

if TYPE_CHECKING:
    from normfold.serving.client.transport.tls import TlsEnd

#: The longest time for one place, as long as there are others to try, in seconds.
_PLACE_SECONDS = 20.0


def dial(destination: Endpoint, deadline: float) -> socket.socket:
    """A socket that is connected to the first place of ``destination`` that takes it; it does not block.

    Raises OSError, or TimeoutError once ``deadline`` (of ``time.monotonic``) has passed.
    """
    if destination.path:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(_left(deadline))
            sock.connect(destination.path)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock
    addresses = [
        (family, place) for host, port in destination.places for family, _, _, _, place in named_places(host, port)
    ]
    failed: OSError | None = None
    for number, (family, place) in enumerate(addresses):
        last = number == len(addresses) - 1
        sock = socket.socket(family)
        try:
            sock.settimeout(_left(deadline) if last else min(_PLACE_SECONDS, _left(deadline)))
            sock.connect(place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        except OSError as error:
            failed = error
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    assert failed is not None
    raise failed


def named_places(host: str, port: int, flags: int = 0) -> list[Any]:
    """What ``socket.getaddrinfo`` says of ``host``. Raises OSError, also for what cannot be a name."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # a label that is empty, or longer than 63 bytes
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from None


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
            if out := tls.encrypted():  # with an error, too: it tells the server why
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
