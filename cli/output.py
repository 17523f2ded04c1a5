"""Standard output that cannot take what a command prints: it lacks a character, or has no room.

A command also ends with one line where the system has not enough memory, or lets it start no thread.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from normfold.cli.terminal import one_line
from normfold.finite_json import finite_json
from normfold.shortage import shortage

__all__ = ["json_of", "printing", "told_after"]

#: The disk is full, a quota or the limit of a file is reached, or the disk fails.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def printing(command: Callable[[], object]) -> None:
    """Run ``command``. Characters that standard output lacks are escaped; where it has no room, one line says so."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # it is None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command()
    except (MemoryError, RuntimeError) as error:
        if (lack := shortage(error)) is None:
            raise
        sys.stderr.write(f"Error: {one_line(lack)}\n")
        sys.exit(1)
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # at its end Python writes what is left, and would fail again
        done = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        sys.stderr.write(f"Error: the output cannot be written: {error.strerror}{done}\n")
        sys.exit(1)


@contextmanager
def told_after(done: str) -> Iterator[None]:
    """Where the output has no room for what this block prints, or Ctrl-C ends it, say that ``done`` is done."""
    try:
        yield
    except (OSError, KeyboardInterrupt) as error:
        error.add_note(one_line(done))
        raise


def json_of(value: object, indent: int | None = None) -> str:
    """``value`` as JSON for standard output. Unless that is UTF-8, JSON's own escapes stand for other than ASCII.

    The escapes of ``printing`` are others, which no reader of JSON takes.
    """
    out = sys.stdout
    unicode = isinstance(out, io.TextIOWrapper) and codecs.lookup(out.encoding).name == "utf-8"
    return finite_json(value, indent, ascii_only=not unicode)
