"""Unix domain sockets: a path that a server listens on stays its own, and one that somebody left behind is free."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path


def bound(path: str) -> socket.socket:
    """A socket bound to ``path``, in place of one on which nobody listens any more. Raises OSError."""
    remove_abandoned(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    return sock


def remove_abandoned(path: str) -> None:
    """Remove a socket on which nobody listens. Raises OSError if somebody does, or if ``path`` is no socket."""
    try:
        kind = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind) or _answers(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    Path(path).unlink(missing_ok=True)


def why_not(path: str) -> str:
    """The system's reason why no socket can be bound to ``path``; empty: it can."""
    try:
        sock = bound(path)
    except OSError as error:
        return error.strerror or str(error)
    with sock:
        Path(path).unlink(missing_ok=True)
    return ""


def identity(path: str) -> tuple[int, int] | None:
    """The device and the inode of the file at ``path``; None: there is none."""
    with contextlib.suppress(OSError):
        found = Path(path).stat()
        return found.st_dev, found.st_ino
    return None


def remove_own(path: str, own: tuple[int, int] | None) -> None:
    """Remove the file at ``path``, unless it is another than the one with the identity ``own``."""
    if own is not None and identity(path) == own:
        Path(path).unlink(missing_ok=True)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server whose queue is full does not refuse, it lets us wait
        return probe.connect_ex(path) != errno.ECONNREFUSED
