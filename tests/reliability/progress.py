"""How far a long form is: a line that is rewritten on a terminal, else a line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

#: A stream that is no terminal, such as a file, gets a line after this time, in seconds.
EVERY_SECONDS = 60.0


class Progress:
    """Shows a text again and again; a context, whose end leaves the line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._width, self._next = 0, time.monotonic() + EVERY_SECONDS

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._width:
            self._write("\n")

    def show(self, text: str) -> None:
        """Show ``text``, if it is time."""
        if self._terminal:
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY_SECONDS
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
