"""Work of connections that is left for later is done in rounds, so that it never keeps others waiting for long."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic

from normfold.serving.frontends.http2.limits import (
    ROUND_MESSAGES,
    ROUND_SECONDS,
    ROUND_TURNS,
    SHORTEST_TURN_SECONDS,
    TURN_SECONDS,
)


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
        #: The turns of the present round.
        self._together = 1
        #: What ``spare`` has given in this turn of the event loop, and when the time for its long reads is over.
        self._spared, self._until = 0, 0.0
        #: Whether ``_renew`` is certain to be called.
        self._renewing = False

    def messages(self) -> int:
        """The messages that streams may ask in one turn of the present round."""
        return ROUND_MESSAGES // self._together

    def spare(self, wanted: int) -> int:
        """How many of ``wanted`` messages need no turn: some, in each turn of the event loop while no round goes on.

        A single stream would have smaller batches in turns of its own, and there is nobody whom it could keep waiting.
        """
        if self.going_on or (given := min(wanted, ROUND_MESSAGES - self._spared)) <= 0:
            return 0
        self._renew_soon()
        self._spared += given
        return given

    def long_read_seconds(self) -> float:
        """The length of the turn for LONG_READ_BYTES or more that have just come."""
        now = monotonic()
        if not self._until:
            self._until = now + ROUND_SECONDS
            self._renew_soon()
        return max(min(self.seconds, self._until - now), SHORTEST_TURN_SECONDS)

    def _renew_soon(self) -> None:
        if not self._renewing:
            self._renewing = True
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        self._renewing = False
        self._spared, self._until = 0, 0.0

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
        self._together = min(len(self._waiting), ROUND_TURNS)
        for _ in range(self._together):
            loop.call_soon(self._waiting.popleft())
        loop.call_soon(self._round)


class Steps:
    """What the streams of one connection still do: some go on in each turn of the connection, in their order.

    So a connection has one place in the rounds for all of them, however many streams it has.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._waiting: deque[Callable[[int], int]] = deque()
        #: Whether ``_turn`` is certain to be called, or what is called now.
        self._queued = False

    def add(self, step: Callable[[int], int]) -> None:
        """Call ``step`` in a later turn, with the most messages that it may ask; it tells how many it has asked."""
        self._waiting.append(step)
        if not self._queued:
            self._queued = True
            self._turns.add(self._turn)

    def _turn(self) -> None:
        left = self._turns.messages()
        try:
            while left > 0 and self._waiting:
                left -= max(self._waiting.popleft()(left), 1)
        finally:
            self._queued = bool(self._waiting)
            if self._queued:
                self._turns.add(self._turn)
