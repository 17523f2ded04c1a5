"""From an address to a connected socket, on an event loop.

The socket is ours and not only the loop's: once a loop is closed, no transport of it can close its socket.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from normfold.serving.client.transport.dialling import named_places


async def reached(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A socket that is connected to the first address of ``host`` that takes it. Raises OSError."""
    failed: OSError | None = None
    for family, _, _, _, place in await _addresses(loop, host, port):
        try:
            return await _connected(loop, family, place)
        except OSError as error:
            failed = error
    assert failed is not None
    raise failed


async def reached_unix(loop: asyncio.AbstractEventLoop, path: str) -> socket.socket:
    """A socket that is connected to the Unix socket at ``path``. Raises OSError."""
    return await _connected(loop, socket.AF_UNIX, path)


async def _connected(loop: asyncio.AbstractEventLoop, family: int, place: Any) -> socket.socket:
    sock = socket.socket(family)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


async def _addresses(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Any]:
    try:  # a number needs no thread that asks for the name
        return named_places(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await loop.run_in_executor(None, named_places, host, port)
