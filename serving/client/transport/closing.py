"""For tasks that wait: whether their client is closed, or they themselves are cancelled, meanwhile."""

from __future__ import annotations

import asyncio
import contextlib


async def closed_within(over: asyncio.Event, seconds: float) -> bool:
    """Whether ``over`` is set within ``seconds``: a pause that the closing of a client ends."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await over.wait()
    return over.is_set()


def cancelled_here() -> bool:
    """Whether somebody cancels the running task: a CancelledError is for it then, and not of what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
