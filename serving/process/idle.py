"""Give memory back to the system once a server has nothing to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

#: Time without work after which memory is given back, in seconds.
IDLE_SECONDS = 2.0


async def give_back_when_idle(
    work: Callable[[], tuple[int, int]], give_back: Callable[[], Awaitable[None]], idle_seconds: float = IDLE_SECONDS
) -> None:
    """Call ``give_back`` after each time of work, for ever.

    ``work`` returns two numbers: how much work there was so far, and how much is under way.
    """
    given_back, before = 0, -1
    while True:
        await asyncio.sleep(idle_seconds)
        done, under_way = work()
        if done == before and done != given_back and not under_way:
            await give_back()
            given_back = done
        before = done
