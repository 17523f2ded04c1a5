"""Reads or extends a file that a person named: plain files only, as a named pipe or a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = [
    "CERTIFICATE",
    "KEY",
    "LFS_POINTER",
    "SMALL_BYTES",
    "append_plain_text",
    "read_pem",
    "read_plain_file",
    "read_plain_text",
    "require_plain",
    "why_no_pair",
]

#: The marks of a certificate and of a key in PEM.
CERTIFICATE, KEY = b"BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"
#: How the small file begins that Git LFS keeps in place of a large one.
LFS_POINTER = b"version https://git-lfs"
#: Keys, certificates and tokens are smaller.
SMALL_BYTES = 1 << 24


def read_plain_file(path: Path, most_bytes: int | None = None) -> bytes:
    """The bytes of a plain file, of at most ``most_bytes`` if that is given; links are followed. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        _refuse_others(found.st_mode, path)
        if most_bytes is not None and found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {most_bytes} bytes", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def read_plain_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a plain file. Raises OSError and UnicodeDecodeError."""
    return read_plain_file(path).decode(encoding)


def append_plain_text(path: Path, text: str) -> None:
    """Write ``text`` behind the end of a plain file, which is made where none is. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads, or a socket
            require_plain(path)
        raise
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        _refuse_others(os.fstat(descriptor).st_mode, path)
        file.write(text)


def require_plain(path: Path) -> None:
    """Raise OSError unless ``path`` is a plain file, for a library that opens it itself."""
    _refuse_others(path.stat().st_mode, path)


def read_pem(path: Path, mark: bytes) -> bytes:
    """The bytes of a file in PEM that has ``mark``, such as CERTIFICATE. Raises OSError, or ValueError without it."""
    found = read_plain_file(path, SMALL_BYTES)
    if mark not in found:
        raise ValueError(f"it has no line with {mark.decode().rstrip('-')}; is it the right file, in PEM?")
    return found


def why_no_pair(reason: str) -> str:
    """OpenSSL's ``reason`` against a certificate and a key, in words: it has two for a key of another certificate."""
    words = reason.lower().replace("_", " ")
    other = ("key values mismatch", "no certificate assigned")  # of the same kind of key, of another
    return "the key is not that of the certificate" if words in other else words


def _refuse_others(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
