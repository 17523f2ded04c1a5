"""Reads a file that a person named: plain files only, because a named pipe or a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["CERTIFICATE", "KEY", "read_pem", "read_plain_file"]

#: What a file in PEM of the one kind and of the other has.
CERTIFICATE, KEY = b"BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"


def read_plain_file(path: Path, most_bytes: int = 1 << 24) -> bytes:
    """The bytes of a plain file of at most ``most_bytes``; links are followed. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        if found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {most_bytes} bytes", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most_bytes + 1)
    finally:
        os.close(descriptor)


def read_pem(path: Path, mark: bytes) -> bytes:
    """The bytes of a file in PEM that has ``mark``, such as CERTIFICATE. Raises OSError, or ValueError without it."""
    found = read_plain_file(path)
    if mark not in found:
        raise ValueError(f"it is not in PEM: it has no line with {mark.decode()}")
    return found
