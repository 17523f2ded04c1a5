"""The calls under way: they are counted, so that a server that stops can answer them, and refused once it must end.

A server that closes its port while calls keep coming cancels those that it has not read yet, and clients do not try a
cancelled call again. So a server ends in steps. First it still answers calls as long as they come; clients that watch
health go elsewhere. Then it refuses new calls with UNAVAILABLE, which every client may try again. It closes the port
only when no call is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from normfold.serving.errors import Status, Unavailable

Item = TypeVar("Item")

EXITING = "Server exiting"


class Traffic:
    """The calls of one server; used on its event loop only."""

    def __init__(self) -> None:
        self.in_flight = 0
        #: Calls that did not end with OK, by method ("" for none of the server) and status.
        self.failed: Counter[tuple[str, Status]] = Counter()
        self._last_arrival = 0.0
        #: Whether the server ends: new calls are refused.
        self.closing = False
        #: The time limits of streams that wait for their next request; the end of the server lets them all expire.
        self._reading: set[asyncio.Timeout] = set()
        #: Streams that take requests without ``requests``: called once when the server ends.
        self._streams: dict[object, Callable[[], None]] = {}
        #: Set once the server ends and no call is under way.
        self._idle = asyncio.Event()

    @contextlib.contextmanager
    def call(self, admitted: bool = False) -> Iterator[None]:
        """Count one call while the method runs. Raises as ``enter``."""
        self.enter(admitted)
        try:
            yield
        finally:
            self.leave()

    def enter(self, admitted: bool = False) -> None:
        """Count a call that begins; its end must call ``leave``.

        Raises Unavailable once the server ends, except for a call that was ``admitted`` by its headers before that.
        """
        if self.closing and not admitted:
            raise Unavailable(EXITING)
        self.in_flight += 1
        self._last_arrival = time.monotonic()

    def leave(self) -> None:
        """Count a call that ended."""
        self.in_flight -= 1
        if not self.in_flight and self.closing:
            self._idle.set()

    def arrived(self) -> None:
        """Note that a request of a stream has come."""
        self._last_arrival = time.monotonic()

    def attend(self, stream: object, end: Callable[[], None]) -> None:
        """Call ``end`` when the server ends before ``stream`` is forgotten."""
        self._streams[stream] = end

    def forget(self, stream: object) -> None:
        """The stream has ended."""
        self._streams.pop(stream, None)

    async def requests(self, requests: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """The requests of a stream until it or the server ends. Raises Unavailable when the server ends first."""
        while not self.closing:
            try:
                async with asyncio.timeout(None) as patience:
                    self._reading.add(patience)
                    try:
                        request = await anext(requests, None)
                    finally:
                        self._reading.discard(patience)
            except TimeoutError:
                break
            if request is None:
                return
            self.arrived()
            yield request
        raise Unavailable(EXITING)

    async def quieten(self, quiet_seconds: float, most_seconds: float) -> None:
        """Wait until no call has come for ``quiet_seconds``, but at most ``most_seconds``."""
        end = time.monotonic() + most_seconds
        while time.monotonic() < min(end, self._last_arrival + quiet_seconds):
            await asyncio.sleep(quiet_seconds / 4)

    async def close(self, grace_seconds: float) -> bool:
        """Refuse new calls and wait at most ``grace_seconds`` for those under way; whether all of them ended."""
        self.closing = True
        for patience in self._reading:
            patience.reschedule(0)
        for end in list(self._streams.values()):
            end()
        until, left = time.monotonic() + grace_seconds, grace_seconds
        while self.in_flight and left >= 0:  # once also without any grace: streams that were ended above end now
            self._idle.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), left)
            left = until - time.monotonic()  # an admitted call may enter late
        return not self.in_flight
