"""Unix domain sockets: a path that a server listens on stays its own, and one that somebody left behind is free."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from normfold.whole_file import lock_within

#: Numbers for names beside a path.
_NUMBERS = itertools.count()

#: The longest wait for other servers that take a path in the same folder. It takes them a millisecond; a lock that is
#: held for longer is that of a program which keeps its folder from being cleaned up.
LOCK_SECONDS = 0.5


def listening(path: str, backlog: int) -> socket.socket:
    """A socket that listens on ``path``, in place of one on which nobody listens any more. Raises OSError."""
    with _alone(path):
        remove_abandoned(path)
        sock = _bound(path)
        sock.listen(backlog)  # before another server may ask whether it is abandoned
    return sock


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """Keep other servers from taking ``path`` meanwhile.

    Of two that found the same left-over socket, the second removed the one that the first had just made. The folder
    itself is locked, so that no file stays behind; one that cannot be locked is used without.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, folder)
            lock_within(folder, LOCK_SECONDS)
        yield


def _bound(path: str) -> socket.socket:
    """A socket bound to ``path``, where nothing is. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {Path(path).parent}; make it first") from None
        raise
    return sock


def remove_abandoned(path: str) -> None:
    """Remove a socket on which nobody listens. Raises OSError if somebody does, or if ``path`` is no socket."""
    try:
        kind = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a file that is no socket"
        raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: {what} has this name")
    if _answers(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    Path(path).unlink(missing_ok=True)


def take(path: str, own: tuple[int, int] | None, bind: Callable[[str], bool]) -> tuple[int, int] | None:
    """Give the name ``path`` to a socket that ``bind`` binds to a name beside it; the identity of its file.

    gRPC deletes the name to which it was bound when it closes, whoever has that name by then; so it never learns the
    real one. If the file at ``path`` has the identity ``own``, the new socket takes its place. Raises OSError.
    """
    _answers(path)  # raises where the path is longer than a client can connect to, although a file can have it
    with _alone(path):
        return _take(path, own, bind)


def _take(path: str, own: tuple[int, int] | None, bind: Callable[[str], bool]) -> tuple[int, int] | None:
    if own is None or identity(path) != own:
        own = None
        remove_abandoned(path)
    beside = str(Path(path).with_name(f".{os.getpid():x}.{next(_NUMBERS):x}"))
    _bound(beside).close()  # gRPC would not report why it cannot be bound
    Path(beside).unlink()
    if not bind(beside):
        raise OSError("gRPC cannot bind it")
    try:
        if own is None:
            Path(path).hardlink_to(beside)  # fails if another server has the name by now
        else:
            Path(beside).replace(path)
    except FileExistsError:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
    finally:
        Path(beside).unlink(missing_ok=True)
    return identity(path)


def identity(path: str) -> tuple[int, int] | None:
    """The device and the inode of the file at ``path``; None: there is none."""
    with contextlib.suppress(OSError):
        found = Path(path).stat()
        return found.st_dev, found.st_ino
    return None


def remove_own(path: str, own: tuple[int, int] | None) -> None:
    """Remove the file at ``path``, unless it is another than the one with the identity ``own``.

    Call it once, before the socket is closed: then another server may have the path, and a file of the same identity.
    """
    if own is not None and identity(path) == own:
        Path(path).unlink(missing_ok=True)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server whose queue is full does not refuse, it lets us wait
        return probe.connect_ex(path) != errno.ECONNREFUSED
