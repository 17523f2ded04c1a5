"""Reads files again when they change, such as a certificate that was renewed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from normfold.serving.process.file_thread import FileThread
from normfold.serving.process.said_once import SaidOnce

log = logging.getLogger(__name__)

#: Time between two looks at the files.
LOOK_SECONDS = 1.0

Value = TypeVar("Value")
Signature = tuple[tuple[int, ...] | None, ...]


class FileWatch(Generic[Value]):
    """Looks at some files again and again, on a thread of its own: a file system that hangs stops nobody else."""

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], Value], error: type[Exception], apply: Callable[[Value], None]
    ) -> None:
        """``read`` reads the files, on a thread; what was read before stays in force while it raises its ``error``.

        Then the files are read again at each look. ``apply`` gets what was read, on the event loop. A changed file is
        read when two looks find it the same: while it is written it may be empty. Make the watch before the files are
        read for the first time.
        """
        self._paths, self._read, self._error, self._apply = tuple(paths), read, error, apply
        self._known = _signature(self._paths)
        self._files = FileThread("normfold-watch")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look at the files from now on."""
        self._task = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """Look at the files no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _look(self) -> None:
        said, names, last = SaidOnce(log), ", ".join(map(str, self._paths)), self._known
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                before, last = last, await self._files.run(_signature, self._paths)
                if last != before:
                    continue
                if last != self._known:
                    self._apply(await self._files.run(self._read))
                    self._known = last  # the look before they were read: a later change is seen
                    log.info("%s changed and was read again", names)
                said.over()
            except self._error as error:
                said.say(f"{error}; what was read before stays in force")
            except Exception as error:  # such as a system without threads
                what = f"{names} could not be looked at: {type(error).__name__}: {error}"
                said.say(f"{what}; what was read before stays in force", error)


def _signature(paths: Sequence[Path]) -> Signature:
    """A value that changes when one of the files does."""
    found: list[tuple[int, ...] | None] = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)
