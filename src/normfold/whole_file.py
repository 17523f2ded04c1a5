"""Write a file whole or not at all.

The content goes into a new file in the same folder, reaches the disk (fsync), and then takes the file's name in one
step. A reader sees the old content or the new content, never a part. After an error or an interruption the old file is
unchanged and nothing is left beside it. Only a killed process leaves a file whose name begins with ``.tmp-``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["alone_in", "lock", "lock_within", "write_first", "write_new", "write_whole", "written_whole"]

#: A wait for another process that is shorter than this is not worth a word; and the time between two tries, in seconds.
PATIENCE_SECONDS, _LOOK_SECONDS = 1.0, 0.002


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to; it takes the place of ``path`` when the block ends without error. Raises OSError.

    It has the permissions of the file whose place it takes, and its owner where this process may give it to them.
    """
    with _beside(path) as beside:
        with _new(beside) as file:
            _be_like(path, file.fileno())
            yield file
        beside.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, in the place of what is there. Raises OSError."""
    with written_whole(path) as file:
        file.write(content)


def write_first(path: Path, content: bytes) -> bool:
    """Write ``content`` to ``path`` unless something is there; return whether it was written. Raises OSError.

    Of several processes that write at the same time exactly one gets True: making a hard link fails where the name is
    taken, which a rename does not. On a file system without hard links the file is renamed, and the last one wins.
    """
    with _beside(path) as beside:
        write_new(beside, content)
        try:
            path.hardlink_to(beside)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            beside.replace(path)
        return True


def write_new(path: Path, content: bytes, like: Path | None = None) -> None:
    """Write ``content`` to a file that does not exist yet, and wait until it is on the disk. Raises OSError.

    It has the permissions of ``like``, if that is there. An error leaves a part of the file: this is for a file in a
    folder that is renamed or removed as a whole.
    """
    with _new(path) as file:
        if like is not None:
            _be_like(like, file.fileno())
        file.write(content)


@contextlib.contextmanager
def alone_in(folder: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time into this block for ``folder``, where the file system can lock it (NFS cannot).

    ``waiting`` is called as by ``lock``.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that may be entered and not read cannot be locked either
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)  # which gives the lock back
            lock(descriptor, folder, waiting)
        yield


def lock(descriptor: int, folder: Path, waiting: Callable[[str], None]) -> None:
    """Lock the file ``descriptor``, which stands for ``folder``; wait while another process has it. Raises OSError.

    After a second ``waiting`` is called with a sentence that says who has it.
    """
    if lock_within(descriptor, PATIENCE_SECONDS):
        return
    with contextlib.suppress(OSError):  # such as a full disk under a log: the sentence is lost, the lock is needed
        waiting(f"waiting for {_holder(descriptor)}, which writes in '{folder}'")
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def lock_within(descriptor: int, seconds: float) -> bool:
    """Lock the file ``descriptor``; False where others still have it after ``seconds``.

    Raises OSError where there are no locks.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_LOOK_SECONDS)


def _holder(descriptor: int) -> str:
    """The process that has locked the file ``descriptor``, where the system says so, as Linux does."""
    found = os.fstat(descriptor)
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()  # 1: FLOCK  ADVISORY  WRITE 708 08:01:2359 0 EOF; "->" in the place of FLOCK waits
            if words[1:2] == ["FLOCK"] and file in words and int(words[words.index(file) - 1]) > 0:
                return f"process {words[words.index(file) - 1]}"
    return "another process"


@contextlib.contextmanager
def _new(path: Path) -> Iterator[BinaryIO]:
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _be_like(path: Path, descriptor: int) -> None:
    """Give a new file the permissions and the owner of ``path``, if that is there, and as far as the system allows."""
    with contextlib.suppress(OSError):
        before = path.stat()
        for owner in (before.st_uid, -1):  # only root can keep another owner; a member of the group can keep the group
            with contextlib.suppress(OSError):
                os.fchown(descriptor, owner, before.st_gid)
                break
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A free name in the folder of ``path``; what has this name at the end is removed. Errors name ``path``."""
    beside = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        yield beside
    except OSError as error:
        if error.filename == str(beside):
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)
