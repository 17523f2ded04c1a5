"""The places that a server has for connections: how many there are, and who gives its place to a new connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from normfold.serving.frontends.http2.frame_reader import FrameReader


class Placed(Protocol):
    """A connection, as its place needs it."""

    frames: FrameReader

    def busy(self) -> bool:
        """Whether calls are under way."""

    def unsent(self) -> int:
        """The bytes that wait in the socket for the client."""

    def leave(self) -> None:
        """Accept no more calls; close the connection when the calls under way have ended."""

    def abort(self) -> None:
        """Close the connection now."""


C = TypeVar("C", bound=Placed)


class ConnectionPlaces(Generic[C]):
    """The connections that have a place, in the order in which they were made."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[C, None] = {}

    def __len__(self) -> int:
        return len(self._taken)

    def __contains__(self, connection: object) -> bool:
        return connection in self._taken

    def __iter__(self) -> Iterator[C]:
        return iter(self._taken)

    def take(self, connection: C) -> bool:
        """Give ``connection`` a place, of which an idle one may lose its own; False: there is none."""
        if len(self._taken) >= self._most:
            idle = next(filter(is_idle, self._taken), None)
            if idle is None:
                return False
            del self._taken[idle]
            if idle.frames.settled:
                idle.leave()
            else:  # a farewell would wait for a handshake of TLS that perhaps never comes
                idle.abort()
        self._taken[connection] = None
        return True

    def free(self, connection: C) -> None:
        """The connection is gone, or has lost its place before."""
        self._taken.pop(connection, None)


def is_idle(connection: Placed) -> bool:
    """Whether a new connection may take its place.

    One with unsent answers would be forgotten with them, and nobody would see that it makes no progress. A client that
    has not sent its settings has no answers: what is unsent there is our greeting.
    """
    return not connection.busy() and not (connection.frames.settled and connection.unsent())
