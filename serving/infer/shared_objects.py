"""The shared memory objects that are open: each once, however many regions lie in it, and as long as one is in use."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from normfold.serving.errors import PollFailed, TooManyRegions
from normfold.serving.process.open_files import most_files, most_shared_objects
from normfold.serving.wording import quoted

#: The folder in which Linux keeps POSIX shared memory.
FOLDER = Path("/dev/shm")

#: A key as shm_open takes it: one name, with or without a slash in front.
_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9._+@-]{0,250})")


@dataclass(eq=False)
class SharedObject:
    """An open object; ``identity`` are its device and inode: a key may name another one later."""

    descriptor: int
    identity: tuple[int, int]
    #: The regions that lie in it, and the requests that read or write it; without any it is closed.
    users: int = 0

    def size(self) -> int:
        """The bytes that it has now."""
        return os.fstat(self.descriptor).st_size


class SharedObjects:
    """The open objects. Regions come and go on the event loop, requests read and write on any thread."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], SharedObject] = {}
        self._lock = threading.Lock()

    def open(self, key: str) -> SharedObject:
        """The object that ``key`` names now, for one more user. Raises PollFailed and TooManyRegions."""
        descriptor = _opened(key)
        with self._lock:
            status = os.fstat(descriptor)
            identity = status.st_dev, status.st_ino
            found = self._open.get(identity)
            if found is not None:
                os.close(descriptor)
            elif len(self._open) >= most_shared_objects():
                os.close(descriptor)
                raise TooManyRegions(
                    f"{len(self._open)} shared memory objects are open, and no more may be: unregister regions, put "
                    "several into one object, or start the server with a higher limit of open files (ulimit -n)"
                )
            else:
                found = self._open[identity] = SharedObject(descriptor, identity)
            found.users += 1
            return found

    def leave(self, shared: SharedObject) -> None:
        """One user less; the last one closes the object."""
        with self._lock:
            shared.users -= 1
            if not shared.users:
                del self._open[shared.identity]
                os.close(shared.descriptor)

    @contextlib.contextmanager
    def used(self, shared: SharedObject) -> Iterator[int]:
        """Its descriptor; -1 if it was closed before. It is not closed within this: its number would be another's."""
        with self._lock:
            if not shared.users:
                descriptor = -1
            else:
                descriptor = shared.descriptor
                shared.users += 1
        try:
            yield descriptor
        finally:
            if descriptor >= 0:
                self.leave(shared)


def _opened(key: str) -> int:
    match = _KEY.fullmatch(key)
    try:
        if match is None:
            raise FileNotFoundError
        descriptor = os.open(FOLDER / match[1], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise TooManyRegions(
                f"shared memory region {quoted(key)} cannot be opened: {os.strerror(error.errno)}; close connections, "
                f"or start the server with a higher limit of open files than {most_files()} (ulimit -n)"
            ) from None
        raise PollFailed(f"Unable to open shared memory region: {quoted(key)}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PollFailed(f"Unable to open shared memory region: {quoted(key)}")
    return descriptor
