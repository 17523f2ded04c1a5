"""Work of connections that is left for later is done in rounds, so that it never keeps others waiting for long."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from normfold.serving.frontends.http2.limits import ROUND_SECONDS, ROUND_TURNS, SHORTEST_TURN_SECONDS, TURN_SECONDS


class Turns:
    """The turns of connections that have frames left, or calls to end; many of them have short turns.

    A round takes a few of them in their order, and then everything else that is ready runs. So whoever sends one
    request, or asks for health, waits for a few milliseconds, however many flood. What a turn leaves behind on the
    event loop, such as the first step of each call that it has opened, is as short as the turns of a round.
    """

    def __init__(self) -> None:
        self._behind: set[object] = set()
        self._waiting: deque[Callable[[], None]] = deque()
        #: Whether turns wait, or the last of them may leave some.
        self.going_on = False
        #: The length of a turn that begins now, in seconds: of one in a round, and of one for data that have just come.
        self.round_seconds = self.seconds = TURN_SECONDS

    def end(self, connection: object, left: bool) -> None:
        """The turn of a connection is over; ``left``: and it has frames left."""
        if left is (connection in self._behind):
            return
        if left:
            self._behind.add(connection)
        else:
            self._behind.discard(connection)
        behind = max(len(self._behind), 1)
        self.round_seconds = min(TURN_SECONDS, ROUND_SECONDS / min(behind, ROUND_TURNS))
        self.seconds = max(min(TURN_SECONDS, ROUND_SECONDS / behind), SHORTEST_TURN_SECONDS)

    def add(self, turn: Callable[[], None]) -> None:
        """Call ``turn`` in a later round."""
        self._waiting.append(turn)
        if not self.going_on:
            self.going_on = True
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        if not self._waiting:
            self.going_on = False
            return
        loop = asyncio.get_running_loop()
        for _ in range(min(len(self._waiting), ROUND_TURNS)):
            loop.call_soon(self._waiting.popleft())
        loop.call_soon(self._round)
