"""The event loop that a server runs on: uvloop where it is installed, else asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
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
    """Run ``main`` to its end, as ``asyncio.run`` does."""
    with asyncio.Runner(loop_factory=factory()) as runner:
        return runner.run(main)
