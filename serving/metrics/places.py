"""The connections of the HTTP port: few at a time, and each for a short time, so that nobody can hold them all."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from time import monotonic

#: The thread of a connection that is cut has this long to end before its place is given up for lost, in seconds.
ENDING_SECONDS = 1.0


class Places:
    """At most ``most`` connections, each for at most ``seconds``; any thread may call each method."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._changed = threading.Condition()
        #: When the time of each connection is over, in the order in which they came.
        self._until: dict[socket.socket, float] = {}
        #: Those of which the request has not come whole.
        self._asking: dict[socket.socket, None] = {}

    def take(self, connection: socket.socket) -> bool:
        """Whether there is a place for ``connection``: a free one, or that of the oldest that still owes its request.

        Probes send their request at once. So they get through while somebody holds connections that ask nothing.
        """
        with self._changed:
            if len(self._until) >= self._most:
                oldest = next(iter(self._asking), None)
                if oldest is None:
                    return False
                self._cut(oldest)
                if not self._changed.wait_for(lambda: len(self._until) < self._most, ENDING_SECONDS):
                    return False
            self._until[connection] = monotonic() + self._seconds
            self._asking[connection] = None
            return True

    def asked(self, connection: socket.socket) -> bool:
        """Note that its request has come whole; False: it has lost its place before."""
        with self._changed:
            asking = connection in self._asking
            self._asking.pop(connection, None)
            return asking

    @contextlib.contextmanager
    def given_back(self, connection: socket.socket) -> Iterator[None]:
        """Close ``connection`` within this; then its place is free.

        Meanwhile nobody cuts it: its number may be that of another file as soon as it is closed.
        """
        with self._changed:
            yield
            self._until.pop(connection, None)
            self._asking.pop(connection, None)
            self._changed.notify_all()

    def look(self) -> None:
        """Cut the connections whose time is over."""
        with self._changed:
            now = monotonic()
            for connection in [each for each, until in self._until.items() if until <= now]:
                self._cut(connection)

    def _cut(self, connection: socket.socket) -> None:
        """End what its thread reads and writes, which then ends, too."""
        self._asking.pop(connection, None)
        with contextlib.suppress(OSError):  # the client has gone
            connection.shutdown(socket.SHUT_RDWR)
