"""The file of traces, written on a thread of its own: a disk that is slow, or away, makes no request wait."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from pathlib import Path

from normfold.plain_file import append_plain_text
from normfold.serving.errors import StartError

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
        #: What waits for the disk; None behind the last.
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def write(self, lines: str) -> None:
        """Write ``lines`` soon. The first call makes the thread."""
        if self._waiting.qsize() >= MOST_WAITING:
            self._dropped += 1
            return
        if self._thread is None:
            thread = threading.Thread(target=self._write_all, name="normfold-traces", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more threads: the request was answered, and is not to fail
                self._dropped += 1
                return
            self._thread = thread
        self._waiting.put(lines)

    async def close(self) -> None:
        """Wait until everything is written, for a short time; nothing is written after that."""
        if self._thread is not None:
            self._waiting.put(None)
            await asyncio.to_thread(self._thread.join, LAST_SECONDS)

    def _write_all(self) -> None:
        """Write what waits, all of it together, until the end."""
        ended = False
        while not ended:
            found = [self._waiting.get()]
            while not self._waiting.empty():
                found.append(self._waiting.get())
            ended = None in found
            if lines := "".join([each for each in found if each is not None]):
                self._append(lines)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                log.error("%d traces are missing in %s, which could not be written in time", dropped, self.path)

    def _append(self, lines: str) -> None:
        try:
            append_plain_text(self.path, lines)
        except OSError as error:  # the requests were answered, and are not to fail because of their traces
            log.error("trace file %s cannot be written: %s", self.path, error.strerror or error)
