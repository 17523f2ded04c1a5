"""The file of traces, written on a thread of its own: a disk that is slow, or away, makes no request wait."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from normfold.plain_file import append_plain_text
from normfold.serving.errors import StartError
from normfold.serving.process.file_thread import FileThread

log = logging.getLogger(__name__)

#: Traces that may wait for the disk; more are dropped, and counted in the log.
MOST_WAITING = 10_000
#: Time at the end for those that wait still, in seconds.
LAST_SECONDS = 2.0


class TraceFile:
    """Lines for the end of a file, in their order."""

    def __init__(self, path: Path) -> None:
        """Raises StartError when ``path`` cannot be written."""
        try:
            append_plain_text(path, "")
        except OSError as error:
            raise StartError(f"--trace-file {path} cannot be written: {error.strerror or error}") from None
        self.path = path
        self._files = FileThread("normfold-traces")
        #: The traces that wait for the disk, and how many were dropped because too many waited.
        self._waiting: list[str] = []
        self._dropped = 0
        self._writing: asyncio.Task[None] | None = None

    def write(self, lines: str) -> None:
        """Write ``lines`` soon; called on the event loop."""
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
            return
        self._waiting.append(lines)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())

    async def close(self) -> None:
        """Wait until everything is written, for a short time."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=LAST_SECONDS)

    async def _write_all(self) -> None:
        """Write what waits, all of it together, until nothing does. The requests were answered: none fails by this."""
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                await self._files.run(append_plain_text, self.path, "".join(waiting))
            except OSError as error:
                log.error("trace file %s cannot be written: %s", self.path, error.strerror or error)
            except RuntimeError:  # the system has no more threads
                self._dropped += len(waiting)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                log.error("%d traces are missing in %s, which could not be written in time", dropped, self.path)
