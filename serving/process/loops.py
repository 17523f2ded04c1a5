"""The event loop that a server runs on: uvloop where it is installed, else asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The function that makes the loop; None: asyncio's default."""
    try:
        import uvloop
    except ImportError:
        return None
    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return make


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run ``main`` to its end, as ``asyncio.run`` does, but wait for none of the threads that it has asked to work.

    Work whose caller has left goes on, for minutes where a request was large, and nothing can interrupt it. Whoever
    must not wait for it ends the process by ``os._exit``.
    """
    with asyncio.Runner(loop_factory=factory()) as runner:
        try:
            return runner.run(main)
        finally:
            runner.get_loop().set_default_executor(ThreadPoolExecutor())  # the runner waits for the present one
