"""Large messages that came in parts: joined on a thread, because a copy of 64 MB takes 50 ms of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from normfold.serving.frontends.http2.inflation import THREADS, Inflation

#: Joined on the event loop, in bytes.
INLINE_BYTES = 4 << 20


class Joining:
    """One message in parts."""

    #: The bytes held beside those of the parts: a copy is made by as many threads as there are, and soon over.
    size = 0

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = parts
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size

    def start(self) -> None:
        """Nothing happens on the event loop: ``rest`` gives the message."""

    async def rest(self, held: Callable[[int], object]) -> bytes:
        """The message."""
        return await asyncio.get_running_loop().run_in_executor(THREADS, b"".join, self._parts)


#: A message that takes a thread's time.
Later = Inflation | Joining
