"""Accepts connections on bound sockets, with TLS or without, and goes on with a new certificate without a gap."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from normfold.serving.access.tls import Tls

BACKLOG = 1024
#: Time for the handshake of TLS.
TLS_SECONDS = 10.0


class Listener:
    """Accepts connections for ``accept``, which makes the protocol of each."""

    def __init__(self, accept: Callable[[], asyncio.Protocol], tls: Tls | None = None) -> None:
        self._accept, self._tls = accept, tls
        self._sockets: Sequence[socket.socket] = ()
        self._servers: list[asyncio.Server] = []
        self._renewing: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        if tls is not None:
            tls.on_change(self._renew_soon)

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on ``sockets``. Raises OSError."""
        self._sockets = sockets
        self._servers = await self._started()

    def close(self) -> None:
        """Accept no more connections."""
        for task in self._renewing:
            task.cancel()
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
        self._sockets, self._servers = (), []

    async def _started(self) -> list[asyncio.Server]:
        """Servers of asyncio, one for each socket; each has a descriptor of its own, so that it can be closed alone."""
        loop = asyncio.get_running_loop()
        context = None if self._tls is None else self._tls.identity.context
        seconds = None if context is None else TLS_SECONDS
        servers: list[asyncio.Server] = []
        try:
            for sock in self._sockets:
                own = sock.dup()
                servers.append(
                    await loop.create_server(
                        self._accept, sock=own, backlog=BACKLOG, ssl=context, ssl_handshake_timeout=seconds
                    )
                )
        except BaseException:
            for server in servers:
                server.close()
            raise
        return servers

    def _renew_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._renew())
        self._renewing.add(task)
        task.add_done_callback(self._renewing.discard)

    async def _renew(self) -> None:
        """Accept with the new certificate; nobody is turned away, because both accept from the same queue meanwhile."""
        async with self._one_at_a_time:
            servers = await self._started()
            for server in self._servers:
                server.close()
            self._servers = servers
