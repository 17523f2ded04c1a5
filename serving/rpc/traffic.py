"""Calls on their way: counted, so that a server that stops can answer them, and refused once it must end.

A server that is stopped while calls keep coming cancels those that it has not looked at, and a cancelled call is not
tried again. So the end comes in steps: calls are still answered while they come (those who watch health go elsewhere),
then new ones are told UNAVAILABLE, which every client may try again, and only when nothing is on its way is the port
closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from normfold.serving.errors import Unavailable

Item = TypeVar("Item")

EXITING = "Server exiting"


class Traffic:
    """The calls of one server; used on its event loop only."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._last_arrival = 0.0
        self._closing = False
        #: Streams that wait for their next request; the end of the server runs them out.
        self._reading: set[asyncio.Timeout] = set()
        #: Set once the server ends and nothing is on its way.
        self._idle = asyncio.Event()

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Count one call while it is worked on. Raises Unavailable once the server ends."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Count a call that begins, and for which ``leave`` will be called. Raises Unavailable once the server ends."""
        if self._closing:
            raise Unavailable(EXITING)
        self.in_flight += 1
        self._last_arrival = time.monotonic()

    def leave(self) -> None:
        """Count a call that ended."""
        self.in_flight -= 1
        if not self.in_flight and self._closing:
            self._idle.set()

    async def requests(self, requests: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """The requests of a stream until it or the server ends. Raises Unavailable when it is the server."""
        while not self._closing:
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
            self._last_arrival = time.monotonic()
            yield request
        raise Unavailable(EXITING)

    async def quieten(self, quiet_seconds: float, most_seconds: float) -> None:
        """Wait until no call has come for ``quiet_seconds``, at most ``most_seconds`` long."""
        end = time.monotonic() + most_seconds
        while time.monotonic() < min(end, self._last_arrival + quiet_seconds):
            await asyncio.sleep(quiet_seconds / 4)

    async def close(self, grace_seconds: float) -> bool:
        """Refuse new calls and wait for those on their way, at most ``grace_seconds`` long; whether all ended."""
        self._closing = True
        for patience in self._reading:
            patience.reschedule(0)
        if not self.in_flight:
            self._idle.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        return not self.in_flight
