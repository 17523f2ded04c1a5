"""How many inferences of a client are at the server at once."""

from __future__ import annotations

import asyncio

from normfold.serving.client.transport.closing import check_loop


class InFlight:
    """A semaphore for each event loop on which the client is used, one loop after another."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._loop: asyncio.AbstractEventLoop | None = None
        self._semaphore: asyncio.Semaphore | None = None

    def here(self) -> asyncio.Semaphore:
        """That of the running loop; turns that were taken on another loop do not count here."""
        loop = asyncio.get_running_loop()
        if self._semaphore is None or loop is not self._loop:
            self._loop, self._semaphore = check_loop(self._loop), asyncio.Semaphore(self._most)
        return self._semaphore
