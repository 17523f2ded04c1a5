"""The frontend: binds an address, accepts connections, stops."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Iterator
from time import monotonic

from normfold.serving.access.access import Access
from normfold.serving.access.tls import Tls
from normfold.serving.errors import StartError
from normfold.serving.frontends.access_log import AccessLog
from normfold.serving.frontends.http2.call import Service
from normfold.serving.frontends.http2.connection import ServerConnection
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import LOOK_SECONDS, PAUSE_SECONDS
from normfold.serving.frontends.http2.requests import Requests
from normfold.serving.frontends.http2.tls_side import TlsSide
from normfold.serving.frontends.limits import DEFAULT_LIMITS, ClientLimits
from normfold.serving.process import unix_socket
from normfold.serving.process.address import UNIX, host_and_port
from normfold.serving.process.open_files import most_connections
from normfold.serving.rpc.methods import Method
from normfold.serving.rpc.traffic import Traffic

log = logging.getLogger(__name__)

BACKLOG = 1024
#: As a host it is every address of IPv4, too, as in other servers.
ALL_ADDRESSES = "::"


class Http2Frontend:
    """A server of ``methods``; ``traffic`` counts the calls of those that are ``counted``."""

    def __init__(
        self,
        methods: Iterable[Method],
        traffic: Traffic,
        max_message_bytes: int,
        limits: ClientLimits = DEFAULT_LIMITS,
        access: Access | None = None,
        tls: Tls | None = None,
        log: AccessLog | None = None,
    ) -> None:
        """``access`` admits calls by their tokens; None: everybody. ``tls``: the TLS of its port; None: plain text.

        ``log`` has a line for each call; None: there is no access log.
        """
        holding = Holding(limits.max_held_bytes)
        requests = Requests(methods, tokens=access is not None)
        self._service = Service(requests, traffic, max_message_bytes, limits, holding, access, log)
        self._tls = tls
        self._connections: ConnectionPlaces[ServerConnection] = ConnectionPlaces(
            min(limits.max_connections, most_connections())
        )
        self._looking: asyncio.TimerHandle | None = None
        self._servers: list[asyncio.Server] = []
        #: The path of its unix socket, and the file that it made there.
        self._path: str | None = None
        self._file: tuple[int, int] | None = None
        #: The address that the server listens on; empty until it does.
        self.address = ""

    @property
    def freed_bytes(self) -> int:
        """The bytes that were held for clients and are not any more, since the server began."""
        return self._service.holding.freed

    async def start(self, address: str, reuse_port: bool = False) -> None:
        """Listen on ``address``: "host:port", port 0 for any free one, or "unix:/path".

        With ``reuse_port`` other processes that set it, too, may listen on the same port; without, none may. Raises
        StartError.
        """
        loop = asyncio.get_running_loop()
        try:
            sockets, self.address = bound(address, reuse_port)
            for sock in sockets:
                self._servers.append(await loop.create_server(self._accept, sock=sock, backlog=BACKLOG))
        except OSError as error:
            why = error.strerror or str(error)
            raise StartError(f"cannot listen on {address}: {why}; choose another with --listen host:port") from None
        self._look()
        if address.startswith(UNIX):
            self._path = address.removeprefix(UNIX)
            self._file = unix_socket.identity(self._path)

    async def drain(self, most_seconds: float) -> None:
        """Close the port and ask all clients to go elsewhere; calls are answered until they all know.

        It takes at most ``most_seconds``. No call is lost: what a client sends later, it sends on its next connection.
        """
        self._close_port()
        loop = asyncio.get_running_loop()
        until = loop.time() + most_seconds
        for connection in list(self._connections):
            connection.lifetime.part(connection, loop.time())
        while any(not c.leaving or c.opening.begun for c in self._connections) and loop.time() < until:
            await asyncio.sleep(0.01)  # also until the calls that have come are opened: later they would be refused

    def _close_port(self) -> None:
        if self._path is not None:
            unix_socket.remove_own(self._path, self._file)
            self._path = None
        for server in self._servers:
            server.close()

    async def stop(self, grace_seconds: float) -> bool:
        """Close the port and every connection; whether all calls under way ended within ``grace_seconds``.

        A call is over when its last byte has left.
        """
        self._close_port()
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_seconds
        for connection in list(self._connections):
            connection.leave()
        while self._connections and loop.time() < until:
            await asyncio.sleep(min(0.01, grace_seconds))
        if self._looking is not None:
            self._looking.cancel()
        cut = [connection for connection in self._connections if connection.busy() or connection.on_the_way()]
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)
        while self._service.turns.going_on:  # their calls are cancelled in rounds
            await asyncio.sleep(0)
        return not cut

    def _accept(self) -> asyncio.Protocol:
        connection = ServerConnection(self._service, self._connections)
        return connection if self._tls is None else TlsSide(self._tls.identity.context, connection)

    def _look(self) -> None:
        """Look at all connections for those that make no progress or that have lasted long enough, again and again."""
        self._look_on(iter(list(self._connections)))

    def _look_on(self, left: Iterator[ServerConnection]) -> None:
        """Look at the connections that are left, some at a time: the event loop must not wait for all their calls."""
        loop = asyncio.get_running_loop()
        until = monotonic() + LOOK_SECONDS
        for connection in left:
            if connection in self._connections:
                self._look_at(connection, loop.time())
            if monotonic() >= until:
                self._looking = loop.call_later(PAUSE_SECONDS, self._look_on, left)
                return
        self._looking = loop.call_later(min(1.0, self._service.limits.shortest_seconds / 4), self._look)

    @staticmethod
    def _look_at(connection: ServerConnection, now: float) -> None:
        try:
            connection.call_places.keep(len(connection.calls) + len(connection.opening.begun))
            connection.progress.look(connection, now)
            connection.lifetime.look(connection, now)
        except Exception:  # it must not keep the others from being looked at
            log.exception("a look at a connection failed; it is closed")
            connection.abort()


def bound(address: str, reuse_port: bool) -> tuple[list[socket.socket], str]:
    """Sockets bound to ``address``, one for each address that its host has, and the address in use. Raises OSError.

    A unix socket listens already.
    """
    if address.startswith(UNIX):
        return [unix_socket.listening(address.removeprefix(UNIX), BACKLOG)], address
    host, port = host_and_port(address)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, where in dict.fromkeys(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:  # this host lacks the family
                continue
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != ALL_ADDRESSES)
            sock.bind((where[0], port, *where[2:]))
            port = sock.getsockname()[1]  # for port 0, all addresses get the port of the first
        if not sockets:
            raise OSError(f"{host} has no address here")
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets, f"{address.rpartition(':')[0]}:{port}"
