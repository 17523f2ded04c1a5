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
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["alone_in", "write_first", "write_new", "write_whole", "written_whole"]


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
def alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time into this block for ``folder``, where the file system can lock it (NFS cannot)."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that may be entered and not read cannot be locked either
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)  # which gives the lock back
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


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
