"""Standard output and error, written on threads of their own: no reader that hangs, no slow disk keeps anybody waiting.

A pipe whose reader has stopped takes 64 KB, and the next write waits without end. On the event loop that would end all
answers.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

log = logging.getLogger(__name__)

#: Text that may wait for the reader, in bytes. What does not fit is dropped, and its lines are counted in the log.
MOST_WAITING = 4 << 20
#: Time at the end for what waits still, in seconds.
LAST_SECONDS = 2.0

_WRITERS: list[WriterThread] = []


class WriterThread:
    """A text stream that writes to the file of another, in order, and never keeps waiting who writes to it."""

    def __init__(self, stream: TextIO, after: WriterThread | None = None) -> None:
        """``after``: what was written to that one before comes first, if its reader does not hang."""
        self.name, self.encoding = stream.name, stream.encoding
        self._after, self._descriptor, self._terminal = after, stream.fileno(), stream.isatty()
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._waiting_bytes = self._lost = 0
        self._idle = True
        threading.Thread(target=self._write_all, name="normfold-log", daemon=True).start()
        _WRITERS.append(self)

    def isatty(self) -> bool:
        """Whether a terminal shows the text."""
        return self._terminal

    def write(self, text: str) -> None:
        """Write ``text``, which is whole lines, soon."""
        data = text.encode(self.encoding, "backslashreplace")
        with self._changed:
            if self._waiting_bytes + len(data) > MOST_WAITING:
                self._lost += data.count(b"\n")
                return
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._changed.notify_all()

    def flush(self) -> None:
        """Nothing: who calls it does not wait. ``finish`` does."""

    def wait(self, seconds: float) -> None:
        """Wait until everything is written, at most ``seconds``."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle and not self._waiting, seconds)

    def _write_all(self) -> None:
        written = True
        while True:
            with self._changed:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                waiting, self._waiting, self._idle = self._waiting, [], False
                lost = self._lost if written else 0  # a full disk would lose the line that says it, too
                self._lost -= lost
            if self._after is not None:
                self._after.wait(LAST_SECONDS / 2)
            if lost:  # there is room for the line now, and it comes in the place of those that are missing
                log.error("%d lines could not be written to %s in time and are missing", lost, self.name)
            for piece in _pieces(waiting):
                written = self._write(piece)
                with self._changed:
                    self._waiting_bytes -= len(piece)

    def _write(self, data: bytes) -> bool:
        """Write ``data`` to the file itself, without the lock that Python's stream would hold; whether it could."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # who started this process has set its end to O_NONBLOCK
                select.select([], [self._descriptor], [])
            except OSError:
                with self._changed:
                    self._lost += bytes(rest).count(b"\n")
                return False
        return True


def standard_error() -> WriterThread:
    """Standard error, from now on also for what libraries log."""
    stream = WriterThread(sys.stderr)
    logging.lastResort = logging.StreamHandler(stream)
    logging.lastResort.setLevel(logging.WARNING)
    return stream


@atexit.register
def finish() -> None:
    """Wait until everything is written, for a short time. To be called before ``os._exit``."""
    end = time.monotonic() + LAST_SECONDS
    for writer in _WRITERS:
        writer.wait(max(0.0, end - time.monotonic()))


def _pieces(lines: list[bytes]) -> Iterator[bytes]:
    """The lines, some of them together: a pipe takes up to PIPE_BUF bytes whole, also when several processes write."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece
