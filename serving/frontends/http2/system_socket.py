"""What the system knows of a socket."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios


def host_and_port(name: object) -> str:
    """The client at the other end, from the name that the system gives it; "unix:" for one on a unix socket."""
    if not isinstance(name, tuple):
        return "unix:"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def in_system(sock: socket.socket | None) -> int:
    """The bytes that our system holds, because the client's has not acknowledged them."""
    if sock is not None:
        with contextlib.suppress(OSError, ValueError):  # closed, or a system that does not tell
            return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    return 0
