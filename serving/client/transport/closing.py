"""What tasks need to know of a client: that it is closed while they wait, and which event loop it works on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref

#: The event loops that clients have used in this process, and those of the process that it was forked from: the copies
#: of these say for ever that they run.
_USED: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
_OF_PARENT: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: _OF_PARENT.update(_USED))


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


def check_loop(before: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """The running event loop. Raises RuntimeError while ``before``, on which the client was used last, runs, too."""
    loop = asyncio.get_running_loop()
    if before is loop:
        return loop
    _USED.add(loop)
    if before is not None and before.is_running() and before not in _OF_PARENT:
        raise RuntimeError(
            "this AsyncClient works on another event loop, which still runs: use one AsyncClient for each event loop"
        )
    return loop
