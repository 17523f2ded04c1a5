"""Work on files that nobody else waits for, on a thread of its own.

A file system that hangs, such as NFS without its server, keeps the thread that asked it for as long. So work on files
does not go to the threads that all share (``asyncio.to_thread``): after a few such calls nobody would get one.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Work = tuple[Future[Any], Callable[[], Any]]


class FileThread:
    """Calls functions one after the other on one thread, which keeps no process from ending."""

    def __init__(self, name: str) -> None:
        """The thread begins with the first call, and ends when nothing refers to this object any more."""
        work: SimpleQueue[Work | None] = SimpleQueue()
        self._work = work
        self._thread = threading.Thread(target=_work_off, args=(work,), name=name, daemon=True)
        weakref.finalize(self, work.put, None)

    async def run(
        self, function: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Result:
        """``function`` of the arguments, after the calls before it. Raises what the function raises.

        A caller who leaves before the call has begun takes it back.
        """
        if not self._thread.is_alive():
            self._thread.start()
        future: Future[Result] = Future()
        self._work.put((future, partial(function, *args, **kwargs)))
        return await asyncio.wrap_future(future)


def _work_off(work: SimpleQueue[Work | None]) -> None:
    while (one := work.get()) is not None:
        future, function = one
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        del one, future, function  # what they refer to is free while this thread waits
