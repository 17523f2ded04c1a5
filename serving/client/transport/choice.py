"""Which transport carries the calls of a client."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Protocol

from normfold.serving.client.arguments import is_number
from normfold.serving.client.transport.answers import Reply
from normfold.serving.client.transport.destination import Endpoint, destination
from normfold.serving.client.transport.dialling import Worked
from normfold.serving.client.transport.opening import COMPRESSIONS, Opening, Pairs

if TYPE_CHECKING:
    import ssl

    from normfold.serving.client.connection import ClientTls

#: The transports, the default first.
TRANSPORTS = ("http2", "grpcio")


class BlockingCalls(Protocol):
    """Carries calls to one server."""

    def call(self, path: str, data: bytes, seconds: float, metadata: Pairs | None = None) -> Reply:
        """The reply to a call of ``path`` with the serialized request ``data``, within ``seconds``.

        ``metadata``: in the place of that of all calls.
        """

    def close(self) -> None:
        """Close every connection."""


class LoopCalls(Protocol):
    """Carries calls to one server on one event loop, which runs when this is made."""

    async def call(self, path: str, data: bytes, seconds: float, metadata: Pairs | None = None) -> Reply:
        """The same as ``BlockingCalls.call``."""

    def stream(self, path: str, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes | Reply, None]:
        """Send ``messages``; gives those of the server, and at last the reply with which the stream ended."""

    async def close(self) -> None:
        """Close every connection; calls without an answer end as CANCELLED."""

    def leave(self, reply: Reply) -> None:
        """Close every connection from another event loop; calls without an answer end with ``reply``."""

    def forget(self) -> None:
        """Close the sockets of the process that this one was forked from, and nothing else."""


def checked_options(transport: str, compression: str | None, keepalive: float) -> None:
    """Raise ValueError for an option that is none."""
    if transport not in TRANSPORTS:
        raise ValueError(f"transport {transport!r} is not one of {', '.join(map(repr, TRANSPORTS))}")
    if compression is not None and compression not in COMPRESSIONS:
        raise ValueError(f"compression {compression!r} is not 'gzip' or None")
    if not is_number(keepalive) or not 0 <= keepalive < 1e6:
        raise ValueError(f"keepalive {keepalive!r} is not a number of seconds; 0: no pings")


def blocking_calls(
    address: str,
    tls: ClientTls | None,
    metadata: Pairs,
    transport: str,
    compression: str | None,
    keepalive: float,
) -> BlockingCalls:
    """The transport of a ``Client``; connects to nothing yet. Raises ValueError."""
    checked_options(transport, compression, keepalive)
    if transport == "grpcio":
        import grpc

        from normfold.serving.client.transport.through_grpcio import GrpcioCalls, opener

        return GrpcioCalls(opener(grpc, address, tls, float(keepalive), compression)(), address, metadata)
    from normfold.serving.client.transport.sharing import SharedConnections

    return SharedConnections(address, *_prepared(address, tls, metadata, compression), float(keepalive))


def loop_calls(
    address: str,
    tls: ClientTls | None,
    metadata: Pairs,
    transport: str,
    compression: str | None,
    keepalive: float,
) -> Callable[[], LoopCalls]:
    """Makes the transport of an ``AsyncClient`` for an event loop; connects to nothing yet. Raises ValueError."""
    checked_options(transport, compression, keepalive)
    if transport == "grpcio":
        import grpc.aio

        from normfold.serving.client.transport.through_grpcio import GrpcioLoopCalls, opener

        opened = opener(grpc.aio, address, tls, float(keepalive), compression)
        return lambda: GrpcioLoopCalls(opened(), address, metadata)
    from normfold.serving.client.transport.pooling import LoopConnections

    prepared = _prepared(address, tls, metadata, compression)
    return functools.partial(LoopConnections, address, *prepared, float(keepalive), Worked())


def _prepared(
    address: str, tls: ClientTls | None, metadata: Pairs, compression: str | None
) -> tuple[Endpoint, Opening, tuple[ssl.SSLContext, str] | None]:
    found = destination(address)
    if tls is None:
        return found, Opening("http", found.authority, metadata, compression), None
    opening = Opening("https", tls.server_name or found.authority, metadata, compression)
    return found, opening, (tls.context(), tls.server_name or found.host)
