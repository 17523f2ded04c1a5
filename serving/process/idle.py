"""Give memory back to the system once a server has nothing to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from normfold.serving.process.said_once import SaidOnce

log = logging.getLogger(__name__)

#: Time without work after which memory is given back, in seconds.
IDLE_SECONDS = 2.0


async def give_back_when_idle(
    work: Callable[[], tuple[int, int]], give_back: Callable[[], Awaitable[None]], idle_seconds: float = IDLE_SECONDS
) -> None:
    """Call ``give_back`` after each time of work, for ever.

    ``work`` returns two numbers: how much work there was so far, and how much is under way. Where ``give_back`` fails,
    it is called again.
    """
    said = SaidOnce(log)
    given_back, before = 0, -1
    while True:
        await asyncio.sleep(idle_seconds)
        done, under_way = work()
        if done == before and done != given_back and not under_way:
            try:
                await give_back()
            except Exception as error:  # such as a system without threads, or a device without memory
                said.say(f"freed memory was not given back: {type(error).__name__}: {error}", error)
            else:
                said.over()
                given_back = done
        before = done
