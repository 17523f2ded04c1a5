"""How long the frames of one connection are taken before the other connections have their turn."""

from __future__ import annotations

from normfold.serving.frontends.http2.limits import ROUND_SECONDS, SHORTEST_TURN_SECONDS, TURN_SECONDS


class Turns:
    """The connections of a server that have frames left; many of them have short turns.

    So whoever sends one request, or asks for health, waits for a round of a few milliseconds, however many flood.
    """

    def __init__(self) -> None:
        self._behind: set[object] = set()
        #: The length of a turn that begins now, in seconds.
        self.seconds = TURN_SECONDS

    def end(self, connection: object, left: bool) -> None:
        """The turn of a connection is over; ``left``: and it has frames left."""
        if left is (connection in self._behind):
            return
        if left:
            self._behind.add(connection)
        else:
            self._behind.discard(connection)
        self.seconds = max(min(TURN_SECONDS, ROUND_SECONDS / max(len(self._behind), 1)), SHORTEST_TURN_SECONDS)
