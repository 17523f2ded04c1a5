"""From an address to a connected socket, on an event loop.

The socket is ours and not only the loop's: once a loop is closed, no transport of it can close its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from typing import Any

from normfold.serving.client.transport.dialling import (
    QUEUE_SECONDS,
    STAGGER_SECONDS,
    Address,
    in_order,
    tcp_socket,
    unix_connected,
)
from normfold.serving.client.transport.lookup import Found, Lookup, numbered


async def reached(
    loop: asyncio.AbstractEventLoop, places: Iterable[tuple[str, int]], worked: Address | None
) -> tuple[socket.socket, Address]:
    """A socket that is connected to the first address of ``places`` that takes it, and this address. Raises OSError.

    ``worked``: the address that took the last connection, which is tried first; the others as in dialling.py.
    """
    found = [one for host, port in places for one in await _addresses(loop, host, port)]
    addresses = in_order(found, worked)
    if len(addresses) == 1:
        return await _connected(loop, addresses[0])
    failed: OSError | None = None
    under_way: set[asyncio.Task[tuple[socket.socket, Address]]] = set()
    try:
        for number, address in enumerate(addresses, 1):
            under_way.add(loop.create_task(_connected(loop, address)))
            until = loop.time() + STAGGER_SECONDS if number < len(addresses) else float("inf")
            while under_way and (left := until - loop.time()) > 0:
                timeout = None if number == len(addresses) else left
                done, _ = await asyncio.wait(under_way, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    under_way.remove(task)
                    try:
                        return task.result()
                    except OSError as error:
                        failed = error
    finally:
        for task in under_way:
            task.cancel()
            task.add_done_callback(_close)
    assert failed is not None
    raise failed


async def reached_unix(loop: asyncio.AbstractEventLoop, path: str) -> socket.socket:
    """A socket that is connected to the Unix socket at ``path``. Raises OSError."""
    return (await _connected(loop, (socket.AF_UNIX, path)))[0]


async def _connected(loop: asyncio.AbstractEventLoop, address: Address) -> tuple[socket.socket, Address]:
    sock = socket.socket(socket.AF_UNIX) if address[0] == socket.AF_UNIX else tcp_socket(address[0])
    try:
        sock.setblocking(False)
        if address[0] != socket.AF_UNIX:
            await loop.sock_connect(sock, address[1])
        else:  # with a full queue, sock_connect takes the socket for a connected one
            while not unix_connected(sock, address[1]):
                await asyncio.sleep(QUEUE_SECONDS)
    except BaseException:
        sock.close()
        raise
    return sock, address


def _close(task: asyncio.Task[tuple[socket.socket, Address]]) -> None:
    """Close the socket of an attempt that came too late."""
    if not task.cancelled() and task.exception() is None:
        task.result()[0].close()


async def _addresses(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Any]:
    if (places := numbered(host, port)) is not None:
        return places
    answer: asyncio.Future[Found] = loop.create_future()

    def tell(found: Found) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_answer, answer, found)

    Lookup(host, port, tell).begin()  # not by the loop's executor: the end of the loop would wait for it
    found = await answer
    if isinstance(found, OSError):
        raise found
    return found


def _answer(answer: asyncio.Future[Found], found: Found) -> None:
    if not answer.done():  # or cancelled
        answer.set_result(found)
