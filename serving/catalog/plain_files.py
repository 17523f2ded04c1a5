"""Reads the files of a repository: plain files only, and only those that lie in the repository itself.

A link may lead from one place of the repository to another, as in a mounted ConfigMap, but not out of it: a labels.txt
that is a link to a secret would be sent to clients line by line. A named pipe or a device would never end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from normfold.serving.errors import Hindered, LoadError

#: protobuf's own limit, and more than any other file of a repository has.
MOST_BYTES = (2 << 30) - 1
#: Files that are parsed in the server itself, before any trial of the load, by name: the most bytes of each.
PARSED_BYTES = {"config.pbtxt": 1 << 20, "manifest.json": 1 << 20}
#: Errors that mean that a file is not there. Polling loads the model when the file comes: its files have changed then.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
#: How a file is opened.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def read_plain(path: Path, shown: str, root: Path) -> bytes:
    """The bytes of the file ``path``, which messages call ``shown``. Raises LoadError unless it lies below ``root``."""
    try:
        real, top = path.resolve(strict=True), root.resolve()
        if not real.is_relative_to(top):
            raise LoadError(f"{shown} is a link that leads out of the repository; put the file itself there")
        descriptor = _open(top, real.relative_to(top).parts)
    except (OSError, RuntimeError, ValueError) as error:  # links that lead in a circle; a name that holds a zero byte
        raise unreadable(shown, error) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LoadError(f"{shown} cannot be read: it is not a plain file")
        size = os.fstat(descriptor).st_size
        if size > (most := PARSED_BYTES.get(path.name, MOST_BYTES)):
            why_not = "2 GiB, which no ONNX file can be" if most == MOST_BYTES else f"the {most} bytes that it may have"
            raise LoadError(f"{shown} is larger than {why_not}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise unreadable(shown, error) from None
    finally:
        os.close(descriptor)


def _open(top: Path, parts: Sequence[str]) -> int:
    """Open the file ``parts`` below ``top``, folder by folder: none can be made a link after it was looked at."""
    if not parts:
        return os.open(top, _FILE)
    folder = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1], _FILE, dir_fd=folder)
    finally:
        os.close(folder)


def is_there(path: Path) -> bool:
    """Whether there is something at ``path``; also True where that cannot be found out, so that reading it says why."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file; False where that cannot be found out: what reads it as a folder then says why."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def unreadable(shown: str, error: Exception) -> LoadError:
    """The error of a file or folder, which messages call ``shown``; Hindered where it is there, but cannot be read."""
    lasting = not isinstance(error, OSError) or error.errno in _NOT_THERE
    return (LoadError if lasting else Hindered)(f"{shown} cannot be read: {why(error)}")


def why(error: Exception) -> str:
    """The reason in ``error``, for the end of a sentence."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, RuntimeError):
        return "its links lead in a circle"
    if isinstance(error, ValueError):
        return "its name is not that of a file"
    return getattr(error, "strerror", None) or type(error).__name__
